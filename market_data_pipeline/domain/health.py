"""How a provider does at one capability, as a value: what each outcome changes, what it scores, and whether it may be asked."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

# The score is M1 of the reference service: H = 0.45·breaker + 0.25·(1 - latency) + 0.20·(1 - error) + 0.10·completeness.
BREAKER_WEIGHT, LATENCY_WEIGHT, ERROR_WEIGHT, COMPLETENESS_WEIGHT = 0.45, 0.25, 0.20, 0.10

# Failures: they raise the error term. Those of the first group are about the provider and count for its breaker, too; prices on a
# mixed basis are about one symbol, and must not take the provider from all others.
BREAKING = frozenset({"transient", "malformed", "stale"})
FAILURES = BREAKING | {"mixed_basis"}
# The provider answered, and the answer says nothing about how well it does.
ANSWERS = frozenset({"unknown_symbol", "out_of_reach"})
# Not sent, or sent away for now: a budget's business and no sign of illness.
UNDECIDED = frozenset({"rate_limited", "budget_spent"})


class Breaker(StrEnum):
    """Closed: requests flow. Open: none does. Half-open: one trial decides."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"

    @property
    def term(self) -> float:
        """What it adds to the score, before the weight."""
        return {Breaker.CLOSED: 1.0, Breaker.HALF_OPEN: 0.5, Breaker.OPEN: 0.0}[self]


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthPolicy:
    """When a provider is asked last, and when it is not asked at all.

    ``breaker_failures``: failed attempts in a row that open the breaker. ``smoothing``: the weight of the newest outcome in the
    moving averages of error and completeness. ``recent_latencies``: of how many outcomes the p95 is. ``promote_after``: samples in
    a row above ``promote_above`` that end a demotion. ``trial_seconds``: of real time, how long a trial may take before its process
    is given up for dead: longer than any request with all its retries.
    """

    latency_cap_seconds: float = 1.0
    demote_below: float = 0.55
    promote_above: float = 0.70
    promote_after: int = 3
    breaker_failures: int = 5
    breaker_cooldown_seconds: float = 60.0
    disabled_seconds: float = 86_400.0
    smoothing: float = 0.2
    recent_latencies: int = 60
    trial_seconds: float = 120.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one call to a provider ended. ``kind``: "ok" or the ``kind`` of a ProviderError.

    ``latency_seconds``: of its last attempt. ``attempts``: HTTP requests sent. ``expected`` bars were due, ``received`` of them
    came; 0 expected: nothing can be said about completeness. ``detail`` is for people and holds no secret. ``is_incident``: an
    empty answer among so many that the provider must have lost its data: the breaker opens, and trials find out when it is back.
    """

    kind: str
    latency_seconds: float = 0.0
    attempts: int = 1
    expected: int = 0
    received: int = 0
    detail: str = ""
    is_incident: bool = False

    @property
    def is_failure(self) -> bool:
        """Whether it raises the error term."""
        return self.kind in FAILURES or self.is_breaking

    @property
    def is_breaking(self) -> bool:
        """Whether it counts for the breaker. So does a kind nobody has heard of: a new error of ours is no proof of health."""
        known = FAILURES | ANSWERS | UNDECIDED | {"ok", "barren", "entitlement"}
        return self.kind in BREAKING or self.kind not in known or self.is_incident

    @property
    def completeness(self) -> float | None:
        """Received over expected, None where nothing can be said."""
        if self.kind == "barren":
            return 0.0
        return min(max(self.received / self.expected, 0.0), 1.0) if self.kind in {"ok", "stale"} and self.expected > 0 else None


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether a provider may be asked now. ``is_trial``: the caller alone may ask, and all depends on the outcome.

    ``reason``: why not, or why only as a trial, for people; "" otherwise.
    """

    is_admitted: bool
    is_trial: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class HealthEvent:
    """What changed between two healths: an incident begins, or ends (``is_recovery``)."""

    kind: str
    detail: str
    is_recovery: bool = False


ADMITTED = Admission(is_admitted=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderHealth:
    """The health of one provider at one capability. A fresh one scores 1: innocent until asked.

    ``error`` and ``completeness`` are moving averages in [0, 1], ``latencies`` the most recent ones in seconds, the oldest first.
    ``opened_at``: since when the breaker has not been closed, renewed by a trial that failed. ``disabled_at``/``disabled_until``:
    this key may not use the capability; until then nobody asks, and then one trial finds out. ``good_samples``: in a row, while
    demoted. ``is_on_trial``: somebody holds the one trial. ``reason``: why it is open or disabled.
    """

    breaker: Breaker = Breaker.CLOSED
    failures_in_row: int = 0
    opened_at: datetime | None = None
    disabled_at: datetime | None = None
    disabled_until: datetime | None = None
    reason: str = ""
    is_demoted: bool = False
    good_samples: int = 0
    error: float = 0.0
    completeness: float = 1.0
    latencies: tuple[float, ...] = ()
    samples: int = 0
    sampled_at: datetime | None = None
    is_on_trial: bool = False

    # --- what it is worth ----------------------------------------------------------------------------------------------

    @property
    def latency_p95(self) -> float:
        """The 95th percentile (nearest rank) of the recent latencies in seconds, 0 where there are none."""
        if not self.latencies:
            return 0.0
        return sorted(self.latencies)[math.ceil(0.95 * len(self.latencies)) - 1]

    def score(self, policy: HealthPolicy) -> float:
        """H, in [0, 1]."""
        latency = min(self.latency_p95 / policy.latency_cap_seconds, 1.0)
        score = (
            BREAKER_WEIGHT * self.breaker.term
            + LATENCY_WEIGHT * (1 - latency)
            + ERROR_WEIGHT * (1 - self.error)
            + COMPLETENESS_WEIGHT * self.completeness
        )
        return min(score, 1.0)  # the weights need not add up to 1 in binary

    def is_asked_last(self, *, now: datetime, policy: HealthPolicy) -> bool:
        """Whether it has lost its place in the order.

        A demoted provider gets it back for the next request when nothing was heard of it for a cool-down: without samples it could
        never be promoted.
        """
        return self.is_demoted and self.sampled_at is not None and _is_near(self.sampled_at, now, policy)

    # --- whether it may be asked ---------------------------------------------------------------------------------------

    def admission(self, *, now: datetime, policy: HealthPolicy) -> Admission:
        """Whether it may be asked at ``now``. A trial must be begun (``on_trial``) by exactly one before it is used."""
        if self.disabled_until is not None and now < self.disabled_until:
            return Admission(is_admitted=False, reason=f"disabled until {_written(self.disabled_until)}: {self.reason}")
        if self.breaker is Breaker.OPEN and self.opened_at is not None and _is_near(self.opened_at, now, policy):
            until = self.opened_at + timedelta(seconds=policy.breaker_cooldown_seconds)
            return Admission(is_admitted=False, reason=f"breaker open until {_written(until)}: {self.reason}")
        if self.disabled_until is None and self.breaker is Breaker.CLOSED:
            return ADMITTED
        why = f"{'breaker was open' if self.disabled_until is None else 'was disabled'}: {self.reason}"
        if self.is_on_trial:
            return Admission(is_admitted=False, reason=f"one trial is under way ({why})")
        return Admission(is_admitted=True, is_trial=True, reason=why)

    def rests_until(self, *, now: datetime, policy: HealthPolicy) -> datetime:
        """When it may be asked again: ``now`` where it may be. Under a trial that is another's: a cool-down from now."""
        if self.admission(now=now, policy=policy).is_admitted:
            return now
        cooldown = timedelta(seconds=policy.breaker_cooldown_seconds)
        if self.is_on_trial:
            return now + cooldown
        opened = self.opened_at + cooldown if self.breaker is Breaker.OPEN and self.opened_at is not None else now
        return max(opened, self.disabled_until or now)

    def on_trial(self) -> ProviderHealth:
        """Somebody begins the trial that ``admission`` offered."""
        breaker = Breaker.HALF_OPEN if self.breaker is Breaker.OPEN else self.breaker
        return replace(self, breaker=breaker, is_on_trial=True)

    def without_trial(self) -> ProviderHealth:
        """Whoever had the trial is gone without an outcome: the next may have it."""
        return replace(self, is_on_trial=False)

    # --- what an outcome changes ---------------------------------------------------------------------------------------

    def after(self, outcome: Outcome, *, now: datetime, policy: HealthPolicy) -> ProviderHealth:
        """The health after ``outcome``, which ended at ``now``. A trial that is under way ends with it."""
        if outcome.kind in UNDECIDED or (outcome.kind in ANSWERS and not outcome.attempts):
            return self.without_trial()
        if outcome.kind == "entitlement":
            until = now + timedelta(seconds=policy.disabled_seconds)
            since = self.disabled_at or now
            return replace(self._reached(), disabled_at=since, disabled_until=until, reason=outcome.detail, is_on_trial=False)
        if outcome.kind == "barren" and self.is_on_trial and self.breaker is Breaker.HALF_OPEN:
            # A trial that brings nothing has not shown that it is back.
            outcome = replace(outcome, is_incident=True, detail=outcome.detail or self.reason)
        decided = self._after_failure(outcome, now=now, policy=policy) if outcome.is_breaking else self._after_answer()
        return decided if outcome.kind in ANSWERS else _sampled(decided, outcome, now=now, policy=policy)

    def _after_failure(self, outcome: Outcome, *, now: datetime, policy: HealthPolicy) -> ProviderHealth:
        # An incident of empty answers is told as such, not as failures in a row.
        failures = self.failures_in_row + (0 if outcome.is_incident else max(outcome.attempts, 1))
        failed = replace(self, failures_in_row=failures, is_on_trial=False)
        # A straggler that was sent before the breaker opened does not prolong its rest.
        enough = failures >= policy.breaker_failures or outcome.is_incident
        opens = self.breaker is Breaker.HALF_OPEN or (self.breaker is Breaker.CLOSED and enough)
        if not opens:
            return failed
        # Why it is disabled is the older news, and what somebody can do something about.
        reason = self.reason if self.disabled_until is not None else outcome.detail or outcome.kind
        return replace(failed, breaker=Breaker.OPEN, opened_at=now, reason=reason)

    def _after_answer(self) -> ProviderHealth:
        health = self._reached()
        if self.is_on_trial:
            health = replace(health, disabled_at=None, disabled_until=None, is_on_trial=False)
        return health if health.breaker is Breaker.OPEN or health.disabled_at is not None else replace(health, reason="")

    def _reached(self) -> ProviderHealth:
        """The breaker after the provider answered, with a 403 even."""
        # Only trials close it: what was sent before it opened must not, or it would flap with every straggler.
        return self if self.breaker is Breaker.OPEN else replace(self, breaker=Breaker.CLOSED, failures_in_row=0, opened_at=None)


def events(before: ProviderHealth, after: ProviderHealth, *, policy: HealthPolicy) -> tuple[HealthEvent, ...]:
    """The incidents that began or ended between two healths of one provider and capability."""
    found: list[HealthEvent] = []
    was_shut, is_shut = before.breaker is not Breaker.CLOSED, after.breaker is not Breaker.CLOSED
    failed = max(before.failures_in_row, after.failures_in_row) >= policy.breaker_failures
    if is_shut and not was_shut and failed:
        found.append(HealthEvent("breaker_opened", f"{after.failures_in_row} failed attempts in a row: {after.reason}"))
    if was_shut and not is_shut and failed:
        found.append(HealthEvent("breaker_closed", "a trial was answered", is_recovery=True))
    if after.disabled_at is not None and before.disabled_at is None:
        found.append(HealthEvent("entitlement_lost", f"{after.reason}; asked again after {_written(after.disabled_until)}"))
    if after.disabled_at is None and before.disabled_at is not None:
        found.append(HealthEvent("entitlement_restored", "a trial was answered", is_recovery=True))
    if after.is_demoted and not before.is_demoted:
        found.append(HealthEvent("demoted", f"health {after.score(policy):.2f} is below {policy.demote_below:g}"))
    if before.is_demoted and not after.is_demoted:
        promoted = f"health {after.score(policy):.2f}, above {policy.promote_above:g} for {policy.promote_after} samples"
        found.append(HealthEvent("promoted", promoted, is_recovery=True))
    return tuple(found)


# What the end of an incident is called, where it has a name of its own.
RECOVERIES = {
    "breaker_closed": "breaker_opened",
    "entitlement_restored": "entitlement_lost",
    "promoted": "demoted",
    "limit_restored": "limit_learned",
}


def kinds_of_incident(kind: str) -> tuple[str, ...]:
    """The kinds of all events that begin or end the incident which an event of ``kind`` begins or ends."""
    begins = RECOVERIES.get(kind, kind)
    return (begins, *(ends for ends, begun in RECOVERIES.items() if begun == begins))


def _sampled(health: ProviderHealth, outcome: Outcome, *, now: datetime, policy: HealthPolicy) -> ProviderHealth:
    """``health`` with its measured terms moved, and what follows from the new score."""
    measured = health.completeness if outcome.completeness is None else outcome.completeness
    sampled = replace(
        health,
        error=_moved(health.error, float(outcome.is_failure), policy.smoothing),
        completeness=_moved(health.completeness, measured, policy.smoothing),
        latencies=(*health.latencies, max(outcome.latency_seconds, 0.0))[-policy.recent_latencies :],
        samples=health.samples + 1,
        sampled_at=now if health.sampled_at is None else max(health.sampled_at, now),
    )
    score = sampled.score(policy)
    if sampled.breaker is Breaker.OPEN:
        # Nobody asks it: where it would stand is no news, and one outage is one event.
        return replace(sampled, good_samples=0)
    if not sampled.is_demoted:
        return replace(sampled, is_demoted=score < policy.demote_below, good_samples=0)
    good = sampled.good_samples + 1 if score > policy.promote_above else 0
    is_promoted = good >= policy.promote_after
    return replace(sampled, is_demoted=not is_promoted, good_samples=0 if is_promoted else good)


def _is_near(past: datetime, now: datetime, policy: HealthPolicy) -> bool:
    """Whether the two are less than a cool-down apart, either way round.

    ``past`` may be the later one: by the seconds that a request was under way, or by years where a virtual clock was set back, and
    then nobody shall wait for years.
    """
    return abs(now - past) < timedelta(seconds=policy.breaker_cooldown_seconds)


def _moved(average: float, newest: float, weight: float) -> float:
    # In this form rounding cannot leave [0, 1].
    return min(max(average + weight * (newest - average), 0.0), 1.0)


def _written(instant: datetime | None) -> str:
    return "" if instant is None else f"{instant:%Y-%m-%d %H:%M:%S}Z"
