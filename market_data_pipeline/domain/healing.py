"""What an answer, or the lack of one, changes in the ledger. Pure: the clock, the policy and the evidence are handed in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.finality import Finality

if TYPE_CHECKING:
    from market_data_pipeline.domain.candles import Bools
    from market_data_pipeline.domain.coverage import LedgerRow
    from market_data_pipeline.domain.finality import Settlement


@dataclass(frozen=True, slots=True)
class HealingPolicy:
    """How often we ask for a bar that does not come, and when we believe that it never will.

    From the ``confirm_after``-th attempt on, an answer that is silent about a minute still absent, with trades on both sides of
    it, makes that minute confirmed empty. From the ``give_up_after``-th on, an answer that brings nothing new ends the asking:
    what is still absent stays *missing*, honestly. So does the ``give_up_failures``-th failure in a row: with the default waits
    three weeks in which nobody gave an answer. The n-th wait is ``backoff_seconds * 4**(n - 1)``, at most
    ``longest_backoff_seconds``.
    """

    confirm_after: int = 3
    give_up_after: int = 6
    give_up_failures: int = 24
    backoff_seconds: float = 900.0
    longest_backoff_seconds: float = 86400.0

    def wait(self, attempts: int) -> timedelta:
        """How long to wait after the ``attempts``-th fruitless answer or failure (1, 2, …)."""
        # 4**30 seconds are longer than anybody waits, and 4.0**512 does not fit a float: failures are counted without end.
        exponent = min(max(attempts, 1) - 1, 30)
        return timedelta(seconds=min(self.backoff_seconds * 4.0**exponent, self.longest_backoff_seconds))


@dataclass(frozen=True, slots=True, eq=False)
class SessionAnswer:
    """What one answer said about one session, slot by slot.

    ``bars``: a usable bar came. ``silent``: the answer covers the slot, the bar was due, and there is nothing at all there.
    An explicit null is neither: it is no information (Yahoo sends nulls for its own losses too). ``is_evidence`` False: an answer
    from the past, whose bars are good and whose silence says nothing: it is no attempt. ``is_whole``, ``settlement``: as in
    ``ports.AnsweredSession``.
    """

    bars: Bools
    silent: Bools
    is_evidence: bool = True
    is_whole: bool = True
    settlement: Settlement | None = None


def enclosed(present: Bools) -> Bools:
    """The slots with at least one present bar before and one after them: trading was observed on both sides."""
    if not present.any():
        return np.zeros(len(present), bool)
    places = np.flatnonzero(present)
    slots = np.arange(len(present))
    inside: Bools = (slots > places[0]) & (slots < places[-1])
    return inside


def after_answer(row: LedgerRow, answer: SessionAnswer, *, due: Bools, now: datetime, policy: HealingPolicy) -> LedgerRow:
    """The ledger row once ``answer`` is stored.

    Present bars stay present whatever a later answer lacks. A bar that arrives after its slot was confirmed empty is present.
    ``due`` marks the slots whose bar should exist by ``now``. Only an answer after the whole session is due, and no sooner than
    the row's ``next_attempt_at``, counts as an attempt: asking twice in a minute is not twice the evidence. While bars are still to
    come, the next attempt is planned for after the close at the latest: nobody else may come back for them. An answer that is no
    evidence stores its bars, and leaves attempts and failures as they are.
    """
    present = row.present | answer.bars
    confirmed = row.confirmed_empty & ~present
    halted = _still(row.halted, present)
    resolved = confirmed if halted is None else confirmed | halted
    spaced = row.next_attempt_at is None or now >= row.next_attempt_at
    counts = answer.is_evidence and spaced and bool(due.all()) and bool((due & ~present & ~resolved).any())
    attempts = row.attempts + counts
    if counts and attempts >= policy.confirm_after:
        confirmed = confirmed | (answer.silent & ~present & ~resolved & enclosed(present))
        resolved = resolved | confirmed
    open_slots = due & ~present & ~resolved
    fruitless = not (answer.bars & ~row.present).any()
    if not open_slots.any():
        to_come = ~due & ~present & ~resolved
        close = datetime.fromtimestamp(row.closes_at, UTC)
        next_attempt = max(now, close) + policy.wait(1) if to_come.any() else None
    elif attempts >= policy.give_up_after and fruitless:
        next_attempt = None
    elif spaced:
        next_attempt = now + policy.wait(attempts)
    else:
        next_attempt = row.next_attempt_at
    finality = _finality(row, answer, is_over=bool(due.all()), now=now)
    return replace(
        row,
        present=present,
        confirmed_empty=confirmed,
        halted=halted,
        finality=finality,
        recheck_at=_recheck(row, answer, finality),
        attempts=attempts,
        failures=0 if answer.is_evidence else row.failures,
        last_attempt_at=now,
        next_attempt_at=next_attempt,
    )


def _still(halted: Bools | None, present: Bools) -> Bools | None:
    """The halted slots without those of which a bar has come; None where none is left."""
    if halted is None:
        return None
    left = halted & ~present
    return left if left.any() else None


def _finality(row: LedgerRow, answer: SessionAnswer, *, is_over: bool, now: datetime) -> Finality:
    """What the session is now: an answer about all of it, given late enough, makes it surer; nothing makes it less sure."""
    if not (answer.is_evidence and answer.is_whole and is_over):
        return row.finality
    return max(row.finality, Finality.FINAL if answer.settlement is None else answer.settlement.reached(now))


def _recheck(row: LedgerRow, answer: SessionAnswer, finality: Finality) -> datetime | None:
    if finality is Finality.FINAL:
        return None
    return row.recheck_at if answer.settlement is None else answer.settlement.recheck_after(finality)


def after_failure(row: LedgerRow, *, now: datetime, policy: HealingPolicy) -> LedgerRow:
    """The ledger row after a request without a usable answer: no verdict changes; the next attempt waits, never gets nearer.

    After too many in a row none is planned any more.
    """
    failures = row.failures + 1
    if failures >= policy.give_up_failures:
        return replace(row, failures=failures, last_attempt_at=now, next_attempt_at=None, recheck_at=None)
    return replace(_later(row, until=now + policy.wait(failures)), failures=failures, last_attempt_at=now)


def postponed(row: LedgerRow, *, until: datetime) -> LedgerRow:
    """The ledger row where nobody could be asked: nothing is known that was not known before; no sooner than ``until``."""
    return _later(row, until=until)


def held_back(row: LedgerRow, *, now: datetime, policy: HealingPolicy) -> LedgerRow:
    """The ledger row after an answer that was not believed: neither an attempt nor a failure; asked again after the first wait."""
    return replace(_later(row, until=now + policy.wait(1)), last_attempt_at=now)


def _later(row: LedgerRow, *, until: datetime) -> LedgerRow:
    """What was planned, and not before ``until``: the next attempt where bars are absent, the recheck where one is planned."""
    attempt, recheck = row.next_attempt_at, row.recheck_at
    return replace(
        row,
        next_attempt_at=attempt if row.resolved.all() else max(until, attempt or until),
        recheck_at=None if recheck is None else max(until, recheck),
    )
