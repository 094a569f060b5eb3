"""Who is asked, in which order, and what of an answer's remainder is asked of the next. Pure rules: no I/O, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Of a session that is over: with fewer of its bars than this the answer is short, and the rest is asked of the next at once.
# What lacks less is mostly minutes without a trade, which nobody has: a second request for each would double the bill.
SHORT_BELOW = 0.9
# Kinds of outcome that leave a window as it was: what was asked for goes to the next provider, whatever the session's state.
FAILED_KINDS = frozenset(
    {
        "failed",
        "transient",
        "rate_limited",
        "budget_spent",
        "entitlement",
        "unknown_symbol",
        "out_of_reach",
        "malformed",
        "stale",
        "mixed_basis",
    }
)


@dataclass(frozen=True, slots=True)
class Contender:
    """One provider as routing sees it at one moment.

    ``obstacle``: why it cannot be asked now (no key, disabled until, breaker open until), None where it can. ``on_trial``: a
    single request will show whether it is back. ``volume_base``: of its feed, None where it serves no bars.
    """

    name: str
    obstacle: str | None = None
    is_demoted: bool = False
    on_trial: bool = False
    volume_base: str | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """Whom to ask, best first; and of every other, and of those set back, why."""

    order: tuple[str, ...] = ()
    passed_over: Mapping[str, str] = field(default_factory=dict)


def ranked(contenders: Sequence[Contender], *, hint: str | None = None) -> Ranking:
    """The order in which ``contenders``, given in the order of the policy, are asked.

    The hint first, where it can be asked; then the policy's order; the demoted last, in the policy's order. One that is on trial
    keeps its old place: the trial is a single request, and without requests nobody ever recovers.
    """
    usable = [c for c in contenders if c.obstacle is None]
    hinted = [c for c in usable if c.name == hint]
    others = [c for c in usable if c.name != hint]
    set_back = [c for c in others if c.is_demoted and not c.on_trial]
    order = (*hinted, *(c for c in others if c not in set_back), *set_back)
    passed_over = {c.name: c.obstacle for c in contenders if c.obstacle is not None}
    passed_over |= {c.name: "demoted: asked last" for c in set_back}
    return Ranking(tuple(c.name for c in order), passed_over)


def series_base(configured: Sequence[str], stored: Sequence[str]) -> str | None:
    """The volume base that a series has: of the bars it holds, or of the first provider that may be asked for it.

    ``configured``: the bases of the providers that serve it and lack nothing, in the order of the policy, whatever their health:
    an outage of the first must not decide what a series is for ever. ``stored``: the bases of its newest bars, the widest
    first; one that the policy's first provider shares is the series', since a labelled fallback may have filled the newest hole.
    """
    if configured and (not stored or configured[0] in stored):
        return configured[0]
    return stored[0] if stored else None


def other_feed(base: str, series: str | None) -> str | None:
    """Why a provider with a feed of ``base`` is passed over for a series of base ``series``; None where it is not."""
    if series is None or base == series:
        return None
    return f"its feed counts the trades of {base}, the series those of {series} (MDP_ALLOW_MIXED_FEEDS)"


def goes_on(kind: str, *, due: int, held: int, is_over: bool, attempts: int) -> bool:
    """Whether what one answer lacks of what was wanted of a session is asked of the next provider in the same pass.

    ``due``: bars of the session that should exist by now; ``held``: those that are stored or were just received. ``is_over``: all
    of its bars are due. ``attempts``: answers that left a hole in it in earlier passes.

    After a failure, always. A session that still runs otherwise waits: a minute without a trade would cost every provider a
    request at every poll. One that is over goes on when the answer is short at the first attempt, and with any hole from the second
    on. A barren answer goes on where the session is over; while it runs, the incidents of the pass decide.
    """
    if kind in FAILED_KINDS:
        return True
    if held >= due or not is_over:
        return False
    return kind == "barren" or attempts >= 1 or held < SHORT_BELOW * due
