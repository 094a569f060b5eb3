"""What an answer, or the lack of one, changes in the ledger. Pure: the clock, the policy and the evidence are handed in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.coverage import Verdict
from market_data_pipeline.domain.evidence import ALONE, Decision, Rung, Silence, climb
from market_data_pipeline.domain.finality import Finality, confirms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from market_data_pipeline.domain.candles import Bools
    from market_data_pipeline.domain.coverage import LedgerRow
    from market_data_pipeline.domain.evidence import Surroundings
    from market_data_pipeline.domain.finality import Settlement

# Answers in a row that are not believed and asked for again after the first wait each: by default two hours of an outage.
_PATIENT = 8


@dataclass(frozen=True, slots=True)
class HealingPolicy:
    """How often we ask for a bar that does not come, and when we believe that it never will.

    What the ladder of ``domain.evidence`` decides at once (a second provider, the daily bar, a known halt) it decides at the first
    answer; silence between bars of one answer is believed from the ``confirm_after``-th attempt on. From the ``give_up_after``-th
    on, an answer that brings nothing new ends the asking: what is still absent stays *missing*, honestly. So does the
    ``give_up_failures``-th failure since an answer last brought a bar: with the default waits three weeks in which nobody gave one.
    The n-th wait is ``backoff_seconds * 4**(n - 1)``, at most ``longest_backoff_seconds``.

    The bound: once its session is over, a bar that never comes is asked for in at most ``most_rounds`` rounds (31 by default) after
    an answer last brought another bar of that session, and in each round of every provider in the policy at most once: N is 31
    with one provider, 31 P with P. In practice it is the ``confirm_after`` rounds of the ladder, or one. Two rechecks for finality
    a session come on top, and what people ask for by hand.
    """

    confirm_after: int = 3
    give_up_after: int = 6
    give_up_failures: int = 24
    backoff_seconds: float = 900.0
    longest_backoff_seconds: float = 86400.0

    @property
    def most_rounds(self) -> int:
        """In how many rounds a bar that never comes is asked for: all attempts, one after the next session, and all failures."""
        return self.give_up_after + 1 + self.give_up_failures

    def wait(self, attempts: int) -> timedelta:
        """How long to wait after the ``attempts``-th fruitless answer or failure (1, 2, …)."""
        # 4**30 seconds are longer than anybody waits, and 4.0**512 does not fit a float: failures are counted without end.
        exponent = min(max(attempts, 1) - 1, 30)
        return timedelta(seconds=min(self.backoff_seconds * 4.0**exponent, self.longest_backoff_seconds))


@dataclass(frozen=True, slots=True, eq=False)
class SessionAnswer:
    """What one answer said about one session, slot by slot.

    ``bars``: a usable bar came. ``silent``: the answer covers the slot, the bar was due, there is nothing at all there, and bars of
    the same answer are on both sides, in the session or in those around it. An explicit null is no silence: it is no information
    (Yahoo sends nulls for its own losses too). ``is_evidence`` False: an answer from the past, whose bars are good and whose
    silence says nothing: it is no attempt. ``is_whole``, ``settlement``: as in ``ports.AnsweredSession``, and so ``quiet`` (None:
    the same as ``silent``), ``witnessed``, ``seconded``, ``providers``, ``next_over_at`` and ``is_taken``.
    """

    bars: Bools
    silent: Bools
    is_evidence: bool = True
    is_whole: bool = True
    settlement: Settlement | None = None
    quiet: Bools | None = None
    witnessed: Bools | None = None
    seconded: Bools | None = None
    providers: tuple[str, ...] = ()
    next_over_at: int | None = None
    is_taken: bool = True

    @property
    def silence(self) -> Silence:
        """As the ladder takes it."""
        quiet = self.silent if self.quiet is None else self.quiet
        return Silence(self.silent, quiet, self.witnessed, self.seconded, self.providers)


@dataclass(frozen=True, slots=True, eq=False)
class Advanced:
    """A ledger row after an answer, and what was decided on the way."""

    row: LedgerRow
    decisions: Sequence[Decision] = ()


def after_answer(row: LedgerRow, answer: SessionAnswer, *, due: Bools, now: datetime, policy: HealingPolicy) -> LedgerRow:
    """The ledger row once ``answer`` is stored, by what the answer itself says: as ``advanced``, alone."""
    return advanced(row, answer, due=due, now=now, policy=policy).row


def advanced(
    row: LedgerRow,
    answer: SessionAnswer,
    *,
    due: Bools,
    now: datetime,
    policy: HealingPolicy,
    surroundings: Surroundings = ALONE,
) -> Advanced:
    """The ledger row once ``answer`` is stored, and why slots became empty or halted.

    Present bars stay present whatever a later answer lacks. A bar that arrives after its slot was confirmed empty is present.
    ``due`` marks the slots whose bar should exist by ``now``. Only an answer after the whole session is due, and no sooner than
    the row's ``next_attempt_at``, counts as an attempt: asking twice in a minute is not twice the evidence. While bars are still to
    come, the next attempt is planned for after the close at the latest: nobody else may come back for them. An answer that is no
    evidence stores its bars, and leaves attempts and failures as they are. Once there were attempts enough, a silent end of the
    session waits for the session after it, whose bars stand beyond it.
    """
    present = row.present | answer.bars
    confirmed = row.confirmed_empty & ~present
    halted = _still(row.halted, present)
    resolved = confirmed if halted is None else confirmed | halted
    is_over = bool(due.all())
    spaced = row.next_attempt_at is None or now >= row.next_attempt_at
    open_slots = due & ~present & ~resolved
    counts = answer.is_evidence and spaced and is_over and bool(open_slots.any())
    attempts = row.attempts + counts
    decisions: list[Decision] = []
    if answer.is_evidence and answer.is_whole and is_over and surroundings.suspended is not None:
        suspended = surroundings.suspended & open_slots
        if suspended.any():
            told = surroundings.suspension
            decisions.append(Decision(Verdict.HALTED, Rung.HALT_FEED, suspended, answer.providers, attempts, told))
            open_slots = open_slots & ~suspended
    if counts and open_slots.any():
        decisions += climb(
            answer.silence,
            open_slots,
            attempts=attempts,
            confirm_after=policy.confirm_after,
            interval_seconds=row.interval.seconds,
            surroundings=surroundings,
        )
    for decision in decisions:
        if decision.verdict is Verdict.HALTED:
            halted = decision.slots if halted is None else halted | decision.slots
        else:
            confirmed = confirmed | decision.slots
        open_slots = open_slots & ~decision.slots
    resolved = confirmed if halted is None else confirmed | halted
    fruitless = not (answer.bars & ~row.present).any()
    over_at = _next_over(answer, present, open_slots, now=now) if attempts >= policy.confirm_after else None
    if not open_slots.any():
        to_come = ~due & ~present & ~resolved
        close = datetime.fromtimestamp(row.closes_at, UTC)
        next_attempt = max(now, close) + policy.wait(1) if to_come.any() else None
    elif over_at is not None:
        next_attempt = max(now + policy.wait(attempts), over_at) if spaced else row.next_attempt_at
    elif attempts >= policy.give_up_after and fruitless:
        next_attempt = None
    elif spaced:
        next_attempt = now + policy.wait(attempts)
    else:
        next_attempt = row.next_attempt_at
    finality = _finality(row, answer, is_over=is_over, now=now)
    after = replace(
        row,
        present=present,
        confirmed_empty=confirmed,
        halted=halted,
        finality=finality,
        recheck_at=_recheck(row, answer, finality, now=now, policy=policy),
        attempts=attempts,
        failures=_failures(row, answer, is_fruitless=fruitless and bool(open_slots.any())),
        last_attempt_at=now,
        next_attempt_at=next_attempt,
    )
    return Advanced(after, decisions)


def _next_over(answer: SessionAnswer, present: Bools, open_slots: Bools, *, now: datetime) -> datetime | None:
    """When the session after this one is over, where that is still to come and the end of this one is silent; else None."""
    if answer.next_over_at is None or answer.quiet is None or now.timestamp() >= answer.next_over_at:
        return None
    places = np.flatnonzero(present)
    ends = open_slots & answer.quiet & ~answer.silent
    if len(places):
        ends[: places[-1]] = False
    return datetime.fromtimestamp(answer.next_over_at, UTC) if ends.any() else None


def _failures(row: LedgerRow, answer: SessionAnswer, *, is_fruitless: bool) -> int:
    """Requests without an answer since one last brought a bar, or since nothing is lacking any more.

    An answer that brings nothing does not start the count anew: one provider that fails and one that has nothing, in turn, would
    be asked for ever.
    """
    return row.failures if is_fruitless or not answer.is_evidence else 0


def _still(halted: Bools | None, present: Bools) -> Bools | None:
    """The halted slots without those of which a bar has come; None where none is left."""
    if halted is None:
        return None
    left = halted & ~present
    return left if left.any() else None


def _finality(row: LedgerRow, answer: SessionAnswer, *, is_over: bool, now: datetime) -> Finality:
    """What the session is now: an answer about all of it, given late enough, makes it surer; nothing makes it less sure.

    An answer that lacks much of what we hold is none: nothing is deleted for its sake, and nothing confirmed. Nor does one whose
    values are not taken speak for those that are kept.
    """
    speaks = answer.is_evidence and answer.is_whole and answer.is_taken
    if not (speaks and is_over and confirms(answer.bars, row.present)):
        return row.finality
    return max(row.finality, Finality.FINAL if answer.settlement is None else answer.settlement.reached(now))


def _recheck(row: LedgerRow, answer: SessionAnswer, finality: Finality, *, now: datetime, policy: HealingPolicy) -> datetime | None:
    if finality is Finality.FINAL:
        return None
    if answer.settlement is None:
        return row.recheck_at
    return answer.settlement.recheck_at(finality, now=now, shortest=policy.wait(1))


def after_failure(row: LedgerRow, *, now: datetime, policy: HealingPolicy) -> LedgerRow:
    """The ledger row after a request without a usable answer: no verdict changes; the next attempt waits, never gets nearer.

    After too many in a row none is planned any more.
    """
    failures = row.failures + 1
    if failures >= policy.give_up_failures:
        return replace(row, failures=failures, last_attempt_at=now, next_attempt_at=None, recheck_at=None)
    return replace(_later(row, until=now + policy.wait(failures)), failures=failures, last_attempt_at=now)


def suspended(row: LedgerRow, slots: Bools) -> LedgerRow:
    """The ledger row where trading was suspended in ``slots``: those without a bar are halted, though they were taken for empty."""
    halted = row.halted_slots | (slots & ~row.present)
    after = replace(row, confirmed_empty=row.confirmed_empty & ~halted, halted=halted if halted.any() else None)
    return replace(after, next_attempt_at=None) if after.resolved.all() else after


def postponed(row: LedgerRow, *, until: datetime) -> LedgerRow:
    """The ledger row where nobody could be asked: nothing is known that was not known before; no sooner than ``until``."""
    return _later(row, until=until)


def held_back(row: LedgerRow, *, now: datetime, policy: HealingPolicy) -> LedgerRow:
    """The ledger row after an answer that was not believed: no attempt, and a failure that costs no patience at first.

    It is asked again after the first wait, for as long as an outage lasts that people would call one; only then the waits grow.
    """
    failures = row.failures + 1
    if failures >= policy.give_up_failures:
        return replace(row, failures=failures, last_attempt_at=now, next_attempt_at=None, recheck_at=None)
    patience = policy.wait(failures - _PATIENT)
    return replace(_later(row, until=now + patience), failures=failures, last_attempt_at=now)


def _later(row: LedgerRow, *, until: datetime) -> LedgerRow:
    """What was planned, and not before ``until``: the next attempt where bars are absent, the recheck where one is planned."""
    attempt, recheck = row.next_attempt_at, row.recheck_at
    return replace(
        row,
        next_attempt_at=attempt if row.resolved.all() else max(until, attempt or until),
        recheck_at=None if recheck is None else max(until, recheck),
    )
