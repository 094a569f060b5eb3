"""A workbench without a database: the universe, the clock and what becomes of each stretch are given."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.capabilities import Lane
from market_data_pipeline.domain.coverage import LedgerRow, Verdict
from market_data_pipeline.domain.finality import Finality
from market_data_pipeline.domain.freshness import Census
from market_data_pipeline.domain.queue import DeadGrowth, JobState
from market_data_pipeline.domain.sessions import trading_calendar
from market_data_pipeline.domain.universe import Instrument, Tier
from market_data_pipeline.ingest.jobs import EndedJob, JobOutcome
from market_data_pipeline.ingest.promises import PriceSanity, SessionCompleteness
from market_data_pipeline.ingest.report import Stretch, StretchReport
from market_data_pipeline.ingest.second_opinion import SecondOpinions
from market_data_pipeline.ingest.summary import CoverageSummary
from market_data_pipeline.ingest.watch import WatchReport
from market_data_pipeline.storage.heartbeats import Heartbeat
from market_data_pipeline.storage.ledger import DueGap, DueRecheck

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from market_data_pipeline.domain.alerts import Alert
    from market_data_pipeline.domain.failures import Failure, FailureKind
    from market_data_pipeline.domain.queue import Lease
    from market_data_pipeline.domain.retention import Pruned
    from market_data_pipeline.domain.sessions import TradingCalendar
    from market_data_pipeline.ingest.listing import ListingChange
    from market_data_pipeline.storage.jobs import JobQueue
    from market_data_pipeline.storage.opinions import Opinion

NOW = datetime(2024, 3, 8, 22, 0, tzinfo=UTC)


def instrument(symbol: str, *, symbol_id: int = 1, calendar: str = "XNYS", tier: Tier = Tier.T0) -> Instrument:
    return Instrument(symbol_id, symbol, exchange=calendar, calendar=calendar, tier=tier)


def universe(*symbols: str) -> list[Instrument]:
    return [instrument(symbol, symbol_id=number) for number, symbol in enumerate(symbols, start=1)]


def complete(stretch: Stretch, interval: Interval) -> StretchReport:
    """Every bar came."""
    del interval
    return StretchReport(stretch, 390, {Verdict.PRESENT: 390}, inserted=390, requests=1.0, seconds=0.5, providers=("fake",))


def failing(*symbols: str, reason: str = "fake: no answer") -> Callable[[Stretch, Interval], StretchReport]:
    """The stretches of these symbols get no answer; the others are complete."""

    def outcome(stretch: Stretch, interval: Interval) -> StretchReport:
        if stretch.instrument.symbol in symbols and interval.source is None:
            return StretchReport(stretch, 390, {Verdict.MISSING: 390}, providers=("fake",), failure=reason)
        return complete(stretch, interval)

    return outcome


def due_gap(  # a gap of one session unless told otherwise
    symbol: str,
    first: date,
    last: date | None = None,
    *,
    symbol_id: int = 1,
    interval: Interval = Interval.M1,
    attempts: int = 1,
    due_since: datetime = NOW - timedelta(hours=1),
) -> DueGap:
    return DueGap(
        symbol_id=symbol_id,
        symbol=symbol,
        calendar="XNYS",
        interval=interval,
        first=first,
        last=last or first,
        sessions=1,
        absent=5,
        attempts=attempts,
        failures=0,
        due_since=due_since,
    )


def due_recheck(
    symbol: str,
    first: date,
    last: date | None = None,
    *,
    symbol_id: int = 1,
    interval: Interval = Interval.M1,
    due_since: datetime = NOW - timedelta(hours=1),
) -> DueRecheck:
    return DueRecheck(
        symbol_id=symbol_id,
        symbol=symbol,
        calendar="XNYS",
        interval=interval,
        first=first,
        last=last or first,
        sessions=1,
        finality=Finality.PROVISIONAL,
        due_since=due_since,
    )


def ledger_row(
    symbol_id: int, session: date, *, interval: Interval = Interval.M1, present: int = 390, answered: bool = True
) -> LedgerRow:
    return LedgerRow(
        symbol_id=symbol_id,
        interval=interval,
        session=session,
        opens_at=0,
        closes_at=1,
        present=np.arange(390) < present,
        confirmed_empty=np.zeros(390, bool),
        last_attempt_at=NOW if answered else None,
    )


def beat(run_id: str, *, pid: int = 1, host: str = "here", silent_for: timedelta = timedelta(seconds=5)) -> Heartbeat:
    return Heartbeat(run_id, host, pid, NOW, NOW, silent_for)


@dataclass
class FakeWorkbench:
    """Opens itself; keeps what it was asked for."""

    held: Sequence[Instrument] = ()
    at: datetime = NOW
    virtual: bool = True
    outcome: Callable[[Stretch, Interval], StretchReport] = complete
    gaps: Sequence[DueGap] = ()
    rechecks: Sequence[DueRecheck] = ()
    jobs: JobQueue | None = None
    work: Callable[[Lease], JobOutcome] = JobOutcome
    old_rows: Sequence[Pruned] = ()
    findings: Sequence[ListingChange] = ()
    since: float | None = None
    in_vain: frozenset[int] = frozenset()
    rows: Sequence[LedgerRow] = ()
    beats: list[Heartbeat] = field(default_factory=list)
    asked: list[tuple[Stretch, Interval]] = field(default_factory=list)
    refetched: list[bool] = field(default_factory=list)
    lanes: list[tuple[Lane, str | None]] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    counted: list[tuple[Interval, int]] = field(default_factory=list)
    opinions_held: list[Opinion] = field(default_factory=list)
    summary: CoverageSummary = field(default_factory=lambda: CoverageSummary(NOW, 0, (), (), (), None))
    opinions_to_come: Sequence[Opinion] = ()
    shares_asked: list[tuple[Interval, float]] = field(default_factory=list)
    now_fresh: Census = field(default_factory=lambda: Census(NOW))
    complete: dict[Interval, SessionCompleteness] = field(default_factory=dict)
    prices: dict[Interval, PriceSanity] = field(default_factory=dict)
    dead: DeadGrowth = field(default_factory=lambda: DeadGrowth(0))
    firing: Sequence[Alert] = ()
    failed: dict[tuple[FailureKind, str], Failure] = field(default_factory=dict)
    watched_by: list[str] = field(default_factory=list)
    traces: Path | None = None

    @contextmanager
    def open(self) -> Iterator[FakeWorkbench]:
        yield self

    def now(self) -> datetime:
        return self.at

    def is_virtual(self) -> bool:
        return self.virtual

    def instruments(self, *, active_only: bool) -> Sequence[Instrument]:
        del active_only
        return self.held

    def calendar(self, name: str) -> TradingCalendar:
        return trading_calendar(name)

    def bring_up_to_date(
        self,
        stretches: Sequence[Stretch],
        interval: Interval,
        *,
        refetch: bool,
        run_id: str,
        lane: Lane = Lane.BACKFILL,
        hint: str | None = None,
    ) -> Iterator[StretchReport]:
        del run_id
        self.refetched.append(refetch)
        self.lanes.append((lane, hint))
        for stretch in reversed(stretches):
            self.asked.append((stretch, interval))
            yield self.outcome(stretch, interval)

    def due_gaps(self, *, limit: int) -> Sequence[DueGap]:
        return self.gaps[:limit]

    def due_rechecks(self, *, limit: int) -> Sequence[DueRecheck]:
        return self.rechecks[:limit]

    def count_gaps(self, interval: Interval, n: int) -> None:
        self.counted.append((interval, n))

    def failing(self, symbol_ids: Sequence[int], first: date, last: date) -> frozenset[int]:
        del first, last
        return frozenset(symbol_ids) & self.in_vain

    def reached_since(self, interval: Interval, calendar: str) -> float | None:
        del interval, calendar
        return self.since

    def queue(self) -> JobQueue:
        assert self.jobs is not None, "this test is about jobs: give it a queue"
        return self.jobs

    def work_off(self, leases: Sequence[Lease], *, run_id: str) -> Iterator[EndedJob]:
        del run_id
        for lease in leases:
            outcome = self.work(lease)
            if outcome.failure is not None:
                yield EndedJob(outcome, self.queue().fail(lease, outcome.failure, is_final=outcome.is_final))
            else:
                yield EndedJob(outcome, JobState.DONE if self.queue().complete(lease, result=outcome.result) else None)

    def prune(self) -> Iterator[Pruned]:
        yield from self.old_rows

    def infer_listings(self, *, run_id: str) -> Sequence[ListingChange]:
        del run_id
        return self.findings

    def coverage_summary(self) -> CoverageSummary:
        return self.summary

    def ledger_rows(self, symbol_ids: Sequence[int], interval: Interval, first: date, last: date) -> Sequence[LedgerRow]:
        return [
            row for row in self.rows if row.symbol_id in symbol_ids and row.interval is interval and first <= row.session <= last
        ]

    def census(self, interval: Interval | None = None) -> Census:
        lines = [line for line in self.now_fresh.lines if interval in {None, line.interval}]
        return Census(self.at, lines, [one for one in self.now_fresh.stale if interval in {None, one.interval}])

    def completeness(self, interval: Interval) -> SessionCompleteness:
        return self.complete.get(interval, SessionCompleteness(self.at))

    def price_sanity(self, interval: Interval) -> PriceSanity:
        return self.prices.get(interval, PriceSanity(self.at))

    def dead_growth(self, *, within: timedelta) -> DeadGrowth:
        del within
        return self.dead

    def watch(self, *, by: str) -> WatchReport:
        self.watched_by.append(by)
        return WatchReport(self.at, by, census=self.now_fresh)

    def firing_alerts(self) -> Sequence[Alert]:
        return self.firing

    def failures(self) -> Sequence[Failure]:
        return list(self.failed.values())

    def note_failure(self, failure: Failure) -> None:
        self.failed[failure.kind, failure.name] = failure

    def forget_failures(self, kind: FailureKind, names: Sequence[str]) -> int:
        return sum(self.failed.pop((kind, name), None) is not None for name in names)

    def ask_second_opinions(self, interval: Interval, *, share: float, run_id: str) -> SecondOpinions:
        del run_id
        self.shares_asked.append((interval, share))
        told = [opinion for opinion in self.opinions_to_come if opinion.interval is interval]
        self.opinions_held.extend(told)
        return SecondOpinions(told, {"IBM 2024-03-08": "nobody answered"}, "the budget is spent")

    def opinions(self, interval: Interval, *, days: int) -> Sequence[Opinion]:
        del days
        return [opinion for opinion in self.opinions_held if opinion.interval is interval]

    @contextmanager
    def beating(self, run_id: str) -> Iterator[None]:
        self.beats.append(beat(run_id))
        yield

    def traced(self, label: str) -> AbstractContextManager[Path | None]:
        return nullcontext(None if self.traces is None else self.traces / f"{label}.json")

    def heartbeats(self) -> Sequence[Heartbeat]:
        return self.beats

    def forget_heartbeat(self, run_id: str) -> None:
        self.forgotten.append(run_id)
