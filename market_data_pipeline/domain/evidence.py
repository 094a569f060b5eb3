"""The evidence ladder: what makes a silent slot empty, halted, or nothing at all. Pure: bitmaps and numbers in, decisions out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.coverage import Verdict, runs

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from market_data_pipeline.domain.candles import Bools, Float64s, Int64s

# A symbol is liquid in a stretch where it has this share of the bars.
LIQUID = 0.98
# Fewer slots than this beside those in question say nothing of a session's density: the days around it are asked then.
LEAST_ELSEWHERE = 30
# And fewer bars than this in the days around say nothing either: five sessions on each side of a daily bar are ten.
LEAST_AROUND = 10
# Of sessions in which the silences of liquid symbols have nothing to do with each other, one in so many has a doubt by chance. A
# false doubt costs a question to another provider; a false belief costs a bar for ever.
DOUBT_BY_CHANCE = 0.05
# A pause for volatility (LULD) lasts five minutes at least; a liquid symbol that is silent for less is just silent.
SHORTEST_HALT_SECONDS = 300
# Two others at least, and most of those that there are: the market was open in that minute.
_LEAST_OTHERS = 2
# Volumes are whole shares, sent as float64 and summed in any order: a millionth is far above what rounding does, half a share is
# below what the smallest trade would add. Where a day's volume is small, or in fractions, the millionth is the stricter one.
_RELATIVE, _HALF_A_SHARE = 1e-6, 0.5


class Rung(StrEnum):
    """How a verdict was reached. The values are those of ``verdict_evidence.rung``."""

    ATTEMPTS = "attempts"
    """Silent between bars of one answer, in as many spaced answers as the policy asks for."""
    SECOND_PROVIDER = "second_provider"
    """Two providers that count the same trades are silent at once."""
    DAILY_BAR = "daily_bar"
    """The volume of the day is that of the minutes there are: nothing was traded in the others."""
    HALT_FEED = "halt_feed"
    """Inside a suspension that somebody told us of."""
    COMPANY = "company"
    """A liquid symbol silent for minutes in which its market traded."""
    SOURCE = "source"
    """Follows from the verdicts of the bars that it is computed of."""


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """Why the slots in ``slots`` got ``verdict``: a row of ``verdict_evidence``."""

    verdict: Verdict
    rung: Rung
    slots: Bools
    providers: tuple[str, ...]
    attempts: int
    detail: str


@dataclass(frozen=True, slots=True)
class DayTotal:
    """The daily bar of a session beside the sum of its shorter bars. ``volume`` None: the day itself is confirmed without a bar."""

    volume: float | None
    minutes: float
    provider: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the bars there are hold all that was traded that day.

        Within half a share, or a millionth of the day's volume where that is less. A sum above the day's is no agreement either:
        the day was counted earlier than its minutes.
        """
        day = self.volume or 0.0
        return abs(day - self.minutes) <= min(_HALF_A_SHARE, _RELATIVE * day)


@dataclass(frozen=True, slots=True, eq=False)
class Company:
    """What the liquid symbols of the same calendar say of the slots in question.

    ``doubtful``: more of them lack the slot at once than chance allows: it is the provider's loss until another provider agrees.
    ``traded``: most of the others have a bar there. ``is_liquid``: the symbol itself trades in practically every slot elsewhere.
    """

    doubtful: Bools
    traded: Bools
    is_liquid: bool
    others: int


@dataclass(frozen=True, slots=True, eq=False)
class Surroundings:
    """What is known beside the answer itself. ``suspended``: slots wholly inside a suspension; ``suspension`` says which.

    ``may_halt``: it is followed closely enough (T0, T1) that its halts are inferred. None for what nobody looked up.
    """

    suspended: Bools | None = None
    suspension: str = ""
    day: DayTotal | None = None
    company: Company | None = None
    may_halt: bool = False


ALONE = Surroundings()


@dataclass(frozen=True, slots=True, eq=False)
class Neighbourhood:
    """Symbols of one calendar in one session, a row each; the one in question among them at ``mine`` (None: it is not).

    ``present`` and ``lacks``: symbols x slots; where trading was halted, neither. ``full``: how many more there are that have every
    bar. ``around_missing``, ``around_expected``: bars that each row lacks, and should have, in the sessions around this one; None
    where nobody looked.
    """

    present: npt.NDArray[np.bool_]
    lacks: npt.NDArray[np.bool_]
    full: int = 0
    mine: int | None = None
    around_missing: Int64s | None = None
    around_expected: Int64s | None = None


def company_of(questioned: Bools, near: Neighbourhood, *, interval_seconds: int) -> Company:
    """What the company of a symbol says of the slots it is silent in.

    Symbols count as liquid by the slots that are not in question (``LIQUID``); where those are too few (a whole session, a daily
    bar), by the days around. The symbol itself counts by all slots but its longer silences, which may be halts. If silences were
    independent, the number of liquid symbols without a given slot would be Poisson, its mean the bars they lack elsewhere a slot
    (and one more, so that none is not taken for never). A slot that so many lack that one in ``DOUBT_BY_CHANCE`` sessions would
    have one by chance is doubtful. Two symbols at least: one alone is no pattern.
    """
    slots = len(questioned)
    nowhere = np.zeros(slots, bool)
    elsewhere = ~questioned
    is_seen_here = int(elsewhere.sum()) >= LEAST_ELSEWHERE
    if is_seen_here:
        missing = np.count_nonzero(near.lacks & elsewhere, axis=1)
        expected = np.full(len(near.present), int(elsewhere.sum()))
    elif near.around_missing is not None and near.around_expected is not None:
        missing, expected = near.around_missing, near.around_expected
    else:
        return Company(nowhere, nowhere, is_liquid=False, others=0)
    liquid = (expected >= (LEAST_ELSEWHERE if is_seen_here else LEAST_AROUND)) & (missing <= (1 - LIQUID) * expected)
    if near.mine is not None and is_seen_here:
        lacks = near.lacks[near.mine][~_long(questioned, interval_seconds)]
        liquid[near.mine] = len(lacks) >= LEAST_ELSEWHERE and lacks.mean() <= 1 - LIQUID
    is_liquid = near.mine is not None and bool(liquid[near.mine])
    lacking = np.count_nonzero(near.lacks[liquid], axis=0)
    mean = (float(missing[liquid].sum()) + 1.0) / (int(expected[liquid].max(initial=0)) or slots)
    doubtful: Bools = questioned & (lacking >= _LEAST_OTHERS) & (tails(mean, lacking) * slots <= DOUBT_BY_CHANCE)
    if near.mine is not None:
        liquid[near.mine] = False
    others = int(liquid.sum()) + near.full
    trading = np.count_nonzero(near.present[liquid], axis=0) + near.full
    traded: Bools = (trading >= _LEAST_OTHERS) & (2 * trading > others)
    return Company(doubtful, traded, is_liquid=is_liquid, others=others)


def _long(mask: Bools, interval_seconds: int) -> Bools:
    """The stretches of ``mask`` that are long enough for a halt."""
    long = np.zeros(len(mask), bool)
    for run in runs(mask):
        long[run.first : run.last] = (run.last - run.first) * interval_seconds >= SHORTEST_HALT_SECONDS
    return long


def tails(mean: float, counts: Int64s) -> Float64s:
    """For each count the probability that a Poisson number of this mean is as large, or larger."""
    most = int(counts.max(initial=0))
    terms = [math.exp(-mean)]
    for n in range(1, most + 1):
        terms.append(terms[-1] * mean / n)
    below = np.concatenate(([0.0], np.cumsum(terms)))
    return np.maximum(1.0 - below[counts], 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Silence:
    """What one round of answers was silent about, of the slots still open; a mask each, None for nowhere.

    ``enclosed``: between bars of one answer. ``witnessed``: so, and a second provider has nothing there either. ``seconded``: two
    providers with bars of the session have nothing there, none of them a bar beyond it. ``quiet``: covered, and nothing there.
    """

    enclosed: Bools
    quiet: Bools
    witnessed: Bools | None = None
    seconded: Bools | None = None
    providers: tuple[str, ...] = field(default=())


def climb(
    silence: Silence,
    open_slots: Bools,
    *,
    attempts: int,
    confirm_after: int,
    interval_seconds: int,
    surroundings: Surroundings = ALONE,
) -> list[Decision]:
    """What the ladder decides of the open slots of a finished session, each slot at most once; the highest rung first.

    A second provider is enough at the first attempt, and it alone lifts a doubt: the witness counts where one of the two has bars
    on both sides; where both end before the slot (both may have been cut short) it takes ``confirm_after`` attempts as well.
    The daily bar is enough at the first attempt. Silence between bars of one answer takes ``confirm_after`` attempts. What is so
    confirmed of a liquid symbol, for ``SHORTEST_HALT_SECONDS`` or longer while its market traded, was a halt.
    """
    left = open_slots.copy()
    found: list[Decision] = []
    doubtful = None if surroundings.company is None else surroundings.company.doubtful

    def decide(slots: Bools | None, rung: Rung, detail: str, *, is_above_doubt: bool = False) -> None:
        nonlocal left
        if slots is None:
            return
        mine = slots & left
        if doubtful is not None and not is_above_doubt:
            mine &= ~doubtful
        if mine.any():
            left &= ~mine
            found.append(Decision(Verdict.CONFIRMED_EMPTY, rung, mine, silence.providers, attempts, detail))

    together = "silent in the answers of several providers of one volume base"
    decide(silence.witnessed, Rung.SECOND_PROVIDER, together, is_above_doubt=True)
    day = surroundings.day
    if day is not None and day.agrees:
        words = "the day is confirmed without a bar" if day.volume is None else f"the day's volume is {day.volume:g}"
        told = "" if not day.provider else f" ({day.provider})"
        decide(silence.quiet, Rung.DAILY_BAR, f"{words}{told}, that of the bars there are {day.minutes:g}")
    if attempts >= confirm_after:
        decide(
            silence.seconded,
            Rung.SECOND_PROVIDER,
            f"no provider has a bar there or later, in each of {attempts} attempts",
            is_above_doubt=True,
        )
        decide(silence.enclosed, Rung.ATTEMPTS, f"silent between bars of one answer, at the {_nth(attempts)} spaced attempt")
    return _halts(found, interval_seconds, surroundings)


def _halts(found: Sequence[Decision], interval_seconds: int, surroundings: Surroundings) -> list[Decision]:
    """The decisions with what must have been halts taken out of them and called so."""
    company = surroundings.company
    if not found or company is None or not surroundings.may_halt or not company.is_liquid:
        return list(found)
    confirmed = np.logical_or.reduce([decision.slots for decision in found])
    halted = _long(confirmed & company.traded & ~company.doubtful, interval_seconds)
    decisions = []
    for one in found:
        if (one.slots & halted).any():
            detail = f"{company.others} other liquid symbols of its calendar traded; {one.rung}: {one.detail}"
            slots = one.slots & halted
            decisions.append(Decision(Verdict.HALTED, Rung.COMPANY, slots, one.providers, one.attempts, detail))
        if (one.slots & ~halted).any():
            decisions.append(Decision(one.verdict, one.rung, one.slots & ~halted, one.providers, one.attempts, one.detail))
    return decisions


def _nth(number: int) -> str:
    endings = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{'th' if number % 100 in {11, 12, 13} else endings.get(number % 10, 'th')}"
