"""When an instrument was listed, from what providers answered: first session, last session, never at all. Pure rules, no clock.

A finding stops the asking, so each rule wants more than one witness and more than one day: what an outage can look like is no
evidence. What a later bar contradicts is taken back.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date, datetime

    from market_data_pipeline.domain.candles import Interval


class ListingKind(StrEnum):
    """What was found."""

    FIRST_SESSION = "first_session"
    """Before it nobody has a bar: the first bar that any provider has, verified."""
    LAST_SESSION = "last_session"
    """After it nobody has a bar, on evidence of days: delisted."""
    NEVER_LISTED = "never_listed"
    """No provider has ever known it."""


@dataclass(frozen=True, slots=True)
class ListingPolicy:
    """How much evidence is enough, always from one provider that had bars for others meanwhile, and from each behind it.

    A provider is convinced once it has said *not found*, or has answered without a single bar, ``answers`` times, each
    ``apart`` or more after the one before, the last ``spread`` or more after the first: longer than outages of hours last. A
    delisting wants ``sessions`` sessions without a bar, and ``silent_sessions`` where the only provider never says *not found* and
    just has nothing: a suspension looks like that, and so does a provider that has lost one symbol. ``confirm_after`` and
    ``give_up_after``: of the healing policy.
    """

    confirm_after: int = 3
    give_up_after: int = 6
    sessions: int = 5
    silent_sessions: int = 20
    answers: int = 3
    apart: timedelta = timedelta(minutes=55)
    spread: timedelta = timedelta(hours=20)


@dataclass(frozen=True, slots=True)
class BarrenSession:
    """A closed session of the ledger without a bar: ``attempts`` answers had none, ``failures`` requests had no answer.

    ``is_decided``: other evidence says already that nothing was traded in it; nobody asks any more.
    """

    interval: Interval
    session: date
    attempts: int
    failures: int
    is_given_up: bool = False
    is_decided: bool = False

    def was_asked_for(self, times: int) -> bool:
        """Whether so many answers had nothing, or nobody needs to ask."""
        return self.is_decided or self.attempts >= times


class Reply(StrEnum):
    """What an answer about the instrument held."""

    BARS = "bars"
    NOTHING = "nothing"
    NOT_FOUND = "not_found"


@dataclass(frozen=True, slots=True)
class Witness:
    """An answer about the instrument.

    ``is_healthy``: the provider had bars for the others at that time; None where nobody else was asked of it that day: it stands
    behind another in the policy, and is only asked for what that one lacks.
    """

    provider: str
    at: datetime
    reply: Reply
    is_healthy: bool | None = True


@dataclass(frozen=True, slots=True)
class ListingEvidence:
    """All that is known about one instrument.

    ``firsts``: the first session with a bar, by interval; ``last``: the last of any, None where there is none. ``leading`` and
    ``trailing``: closed sessions of the ledger before the first and after the last session with a bar of any interval; where there
    is none, all are trailing. ``answers``, oldest first: of the last weeks, whichever sessions they were about; ``last_closed_at``:
    the end of the last session with a bar. ``serving``: providers that may be asked for it and have answered lately.
    ``others_traded``: whether others of its calendar have bars in the session before the first; None where nobody else was asked
    about it.
    """

    firsts: dict[Interval, date] = field(default_factory=dict)
    last: date | None = None
    last_closed_at: datetime | None = None
    leading: Sequence[BarrenSession] = ()
    trailing: Sequence[BarrenSession] = ()
    answers: Sequence[Witness] = ()
    serving: frozenset[str] = frozenset()
    others_traded: bool | None = None


@dataclass(frozen=True, slots=True)
class ListingFinding:
    """What follows. ``session`` is None for never listed. ``detail``: why, for people."""

    kind: ListingKind
    session: date | None
    providers: tuple[str, ...]
    detail: str


def findings(evidence: ListingEvidence, policy: ListingPolicy) -> list[ListingFinding]:
    """Everything that the evidence is enough for."""
    if evidence.last is None:
        found = [_never_listed(evidence, policy)]
    else:
        found = [_first_session(evidence, policy), _last_session(evidence, policy)]
    return [finding for finding in found if finding is not None]


def contradicts(kind: ListingKind, session: date | None, *, first: date, last: date) -> bool:
    """Whether bars from session ``first`` to ``last`` say that a finding was wrong."""
    if kind is ListingKind.NEVER_LISTED or session is None:
        return True
    return first < session if kind is ListingKind.FIRST_SESSION else last > session


def convinced(answers: Sequence[Witness], policy: ListingPolicy) -> dict[str, bool]:
    """The providers that have refused the instrument often enough: whether any of it was *not found*.

    Answers of a sick provider do not count. Providers of whose health nothing is known only second one that was healthy.
    """
    by_provider: defaultdict[str, list[Witness]] = defaultdict(list)
    for answer in answers:
        if answer.is_healthy is not False and answer.reply is not Reply.BARS:
            by_provider[answer.provider].append(answer)
    enough = {name: mine for name, mine in by_provider.items() if _is_enough(mine, policy)}
    if not any(_is_enough([answer for answer in mine if answer.is_healthy], policy) for mine in enough.values()):
        return {}
    return {name: any(answer.reply is Reply.NOT_FOUND for answer in mine) for name, mine in enough.items()}


def _is_enough(answers: Sequence[Witness], policy: ListingPolicy) -> bool:
    return _count_apart(answers, policy.apart) >= policy.answers and answers[-1].at - answers[0].at >= policy.spread


def _count_apart(answers: Sequence[Witness], apart: timedelta) -> int:
    counted, newest = 0, None
    for answer in answers:
        if newest is None or answer.at - newest >= apart:
            counted, newest = counted + 1, answer.at
    return counted


def _never_listed(evidence: ListingEvidence, policy: ListingPolicy) -> ListingFinding | None:
    refused = convinced(evidence.answers, policy)
    if not evidence.serving or not evidence.serving <= refused.keys() or not any(refused[name] for name in evidence.serving):
        return None
    names = tuple(sorted(evidence.serving))
    not_found = ", ".join(name for name in names if refused[name])
    return ListingFinding(
        ListingKind.NEVER_LISTED,
        None,
        names,
        f"nobody has ever had a bar of it; not found by {not_found}, at least {policy.answers} times over more than a day's hours, "
        "while others were answered",
    )


def _first_session(evidence: ListingEvidence, policy: ListingPolicy) -> ListingFinding | None:
    first = min(evidence.firsts.values())
    leading = [barren for barren in evidence.leading if barren.session < first]
    nearest = {interval: max(b.session for b in leading if b.interval is interval) for interval in {b.interval for b in leading}}
    edges = [barren for barren in leading if barren.session == nearest[barren.interval]]
    asked = [edge for edge in edges if edge.was_asked_for(policy.confirm_after)]
    if not asked or evidence.others_traded is False:
        return None
    told = Counter(answer.provider for answer in evidence.answers if answer.is_healthy is not False)
    answered = sorted(name for name, times in told.items() if times >= policy.confirm_after and name in evidence.serving)
    begins_there = {interval for interval, session in evidence.firsts.items() if session == first}
    agreeing = sorted({edge.interval for edge in edges if edge.was_asked_for(1)} & begins_there)
    if len(agreeing) > 1:
        why = f"{' and '.join(agreeing)} both begin there"
    elif len(answered) > 1:
        why = f"{' and '.join(answered)} have nothing before it"
    elif len(evidence.serving) < 2 and any(e.is_given_up or e.is_decided or e.attempts >= policy.give_up_after for e in asked):
        why = "nobody else can be asked"
    else:
        return None
    edge = max(asked, key=lambda one: one.attempts)
    sessions = len({barren.session for barren in leading})
    detail = f"no bar before it in {sessions} sessions, {edge.attempts} answers about {edge.session}; {why}"
    return ListingFinding(ListingKind.FIRST_SESSION, first, tuple(answered or sorted(evidence.serving)), detail)


def _last_session(evidence: ListingEvidence, policy: ListingPolicy) -> ListingFinding | None:
    since = evidence.last_closed_at
    refused = convinced([answer for answer in evidence.answers if since is None or answer.at > since], policy)
    agreeing = {name: refused[name] for name in evidence.serving if name in refused}
    sessions = {barren.session for barren in evidence.trailing if barren.is_decided or barren.attempts + barren.failures > 0}
    wanted = policy.sessions if len(agreeing) > 1 or any(agreeing.values()) else policy.silent_sessions
    if not agreeing or len(agreeing) < min(2, len(evidence.serving)) or len(sessions) < wanted:
        return None
    names = tuple(sorted(agreeing))
    said = "; ".join(f"{name}: {'not found' if agreeing[name] else 'no bars'}" for name in names)
    detail = f"no bar in the {len(sessions)} sessions from {min(sessions)} to {max(sessions)}; {said}; while others were answered"
    return ListingFinding(ListingKind.LAST_SESSION, evidence.last, names, detail)
