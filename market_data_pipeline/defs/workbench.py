"""What the definitions need from the rest of the system, opened for one run or one tick. The only module here that knows wiring."""

from __future__ import annotations

import logging
import os
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol

import psutil

from market_data_pipeline.domain.candles import FETCHED_INTERVALS, Interval
from market_data_pipeline.domain.capabilities import Lane

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager
    from datetime import date

    from market_data_pipeline.domain.coverage import LedgerRow
    from market_data_pipeline.domain.queue import Lease
    from market_data_pipeline.domain.retention import Pruned
    from market_data_pipeline.domain.sessions import TradingCalendar
    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.jobs import EndedJob
    from market_data_pipeline.ingest.listing import ListingChange
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.ingest.report import Stretch, StretchReport
    from market_data_pipeline.ingest.second_opinion import SecondOpinions
    from market_data_pipeline.ingest.summary import CoverageSummary
    from market_data_pipeline.settings import Settings
    from market_data_pipeline.storage.heartbeats import Heartbeat
    from market_data_pipeline.storage.jobs import JobQueue
    from market_data_pipeline.storage.ledger import DueGap, DueRecheck
    from market_data_pipeline.storage.opinions import Opinion

SECONDS_BETWEEN_BEATS = 15.0
# Once may be an accident. Whom nobody knows is asked for so often in a session, and after it by the gap sensor, further and further
# apart: not 390 times a day.
FAILURES_BEFORE_A_REST = 3

logger = logging.getLogger(__name__)


class Workbench(Protocol):
    """The clock, the universe, the calendars, the ledger and the use-cases."""

    def now(self) -> datetime:
        """The current instant on the pipeline's clock, which may be a simulator's."""
        ...

    def is_virtual(self) -> bool:
        """Whether that clock is not the world's: the time of a tick then says nothing."""
        ...

    def instruments(self, *, active_only: bool) -> Sequence[Instrument]:
        """The universe."""
        ...

    def calendar(self, name: str) -> TradingCalendar:
        """The calendar called ``name``, with the operator's overrides."""
        ...

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
        """Fetch or derive what the stretches lack; a report each, in any order. ``hint``: the provider to ask first."""
        ...

    def due_gaps(self, *, limit: int) -> Sequence[DueGap]:
        """The gaps of fetched intervals whose next attempt is due, in the order in which they should be served."""
        ...

    def due_rechecks(self, *, limit: int) -> Sequence[DueRecheck]:
        """The sessions that lack nothing and are due to be asked for again, in the order in which they should be served."""
        ...

    def ledger_rows(self, symbol_ids: Sequence[int], interval: Interval, first: date, last: date) -> Sequence[LedgerRow]:
        """What the ledger holds of these sessions, both included."""
        ...

    def failing(self, symbol_ids: Sequence[int], first: date, last: date) -> frozenset[int]:
        """Those whose minutes of these sessions were asked for in vain some times in a row, and wait for their next attempt."""
        ...

    def reached_since(self, interval: Interval, calendar: str) -> float | None:
        """From when on sessions of ``calendar`` can be asked for, epoch seconds; None: always."""
        ...

    def queue(self) -> JobQueue:
        """The queue of jobs."""
        ...

    def work_off(self, leases: Sequence[Lease], *, run_id: str) -> Iterator[EndedJob]:
        """Carry out leased jobs, and end each in the queue."""
        ...

    def prune(self) -> Iterator[Pruned]:
        """Delete rows of ours that are older than the settings keep them, kind by kind."""
        ...

    def infer_listings(self, *, run_id: str) -> Sequence[ListingChange]:
        """What the ledger's evidence says of when instruments were listed, since the last look; it is stored."""
        ...

    def ask_second_opinions(self, interval: Interval, *, share: float, run_id: str) -> SecondOpinions:
        """Ask other providers about ``share`` of the sessions of the last week, and first about those that look odd."""
        ...

    def opinions(self, interval: Interval, *, days: int) -> Sequence[Opinion]:
        """The newest second opinion on each session of the last ``days`` days, the newest session first."""
        ...

    def coverage_summary(self) -> CoverageSummary:
        """What the ledger has and lacks, for a person."""
        ...

    def beating(self, run_id: str) -> AbstractContextManager[None]:
        """Show that this process works on the run, for as long as the block lasts: what the janitor goes by."""
        ...

    def heartbeats(self) -> Sequence[Heartbeat]:
        """The last sign of life of every run that has shown one and was not forgotten."""
        ...

    def forget_heartbeat(self, run_id: str) -> None:
        """The run has ended."""
        ...


class OpensWorkbench(Protocol):
    """The resource that assets, sensors and schedules are given."""

    def open(self) -> AbstractContextManager[Workbench]:
        """A workbench for the length of one run or tick."""
        ...


@dataclass(frozen=True)
class RealWorkbench:
    """A workbench on the real pipeline."""

    pipeline: Pipeline

    def now(self) -> datetime:
        """The instant on the pipeline's clock."""
        return self.pipeline.clock.now()

    def is_virtual(self) -> bool:
        """As the pipeline's clock says."""
        return self.pipeline.clock.is_virtual

    def instruments(self, *, active_only: bool) -> Sequence[Instrument]:
        """The universe in the database."""
        return self.pipeline.universe.instruments(active_only=active_only)

    def calendar(self, name: str) -> TradingCalendar:
        """The pipeline's calendar."""
        return self.pipeline.calendars(name)

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
        """The use-case of ``interval``: derived intervals are computed from stored minutes, the others fetched."""
        from market_data_pipeline.ingest.candles import ingest_candles  # noqa: PLC0415 - see Workbenches.open
        from market_data_pipeline.ingest.derive import derive_candles  # noqa: PLC0415

        if interval.source is not None:
            return derive_candles(stretches, interval, pipeline=self.pipeline, run_id=run_id)
        return ingest_candles(stretches, interval, pipeline=self.pipeline, refetch=refetch, run_id=run_id, lane=lane, hint=hint)

    def due_gaps(self, *, limit: int) -> Sequence[DueGap]:
        """The ledger's, as far as the provider can be asked for them."""
        return self.pipeline.ledger.due_gaps(
            self.now(),
            limit=limit,
            settle_seconds=max(self.pipeline.settle_seconds(interval) for interval in FETCHED_INTERVALS),
            intervals=FETCHED_INTERVALS,
            reach_seconds=self.pipeline.reaches(FETCHED_INTERVALS),
        )

    def due_rechecks(self, *, limit: int) -> Sequence[DueRecheck]:
        """The ledger's, as far as some provider still has them."""
        return self.pipeline.ledger.due_rechecks(
            self.now(), limit=limit, intervals=FETCHED_INTERVALS, reach_seconds=self.pipeline.reaches(FETCHED_INTERVALS)
        )

    def failing(self, symbol_ids: Sequence[int], first: date, last: date) -> frozenset[int]:
        """As the ledger has it."""
        return self.pipeline.ledger.failing(symbol_ids, Interval.M1, first, last, failures=FAILURES_BEFORE_A_REST, now=self.now())

    def reached_since(self, interval: Interval, calendar: str) -> float | None:
        """By the longest reach of any provider."""
        reach = self.pipeline.reach_seconds(interval, calendar)
        return None if reach is None else self.now().timestamp() - reach

    def queue(self) -> JobQueue:
        """The pipeline's."""
        return self.pipeline.jobs

    def work_off(self, leases: Sequence[Lease], *, run_id: str) -> Iterator[EndedJob]:
        """The use-case."""
        from market_data_pipeline.ingest.jobs import work_off  # noqa: PLC0415 - see Workbenches.open

        return work_off(leases, queue=self.pipeline.jobs, pipeline=self.pipeline, run_id=run_id)

    def prune(self) -> Iterator[Pruned]:
        """The use-case."""
        from market_data_pipeline.ingest.retention import prune  # noqa: PLC0415 - see Workbenches.open

        return prune(self.pipeline)

    def infer_listings(self, *, run_id: str) -> Sequence[ListingChange]:
        """The use-case."""
        from market_data_pipeline.ingest.listing import infer_listings  # noqa: PLC0415 - see Workbenches.open

        return infer_listings(self.pipeline, run_id=run_id)

    def ledger_rows(self, symbol_ids: Sequence[int], interval: Interval, first: date, last: date) -> Sequence[LedgerRow]:
        """The ledger's rows."""
        return self.pipeline.ledger.rows(symbol_ids, interval, first, last)

    def ask_second_opinions(self, interval: Interval, *, share: float, run_id: str) -> SecondOpinions:
        """The use-case, over the active universe."""
        from market_data_pipeline.ingest.second_opinion import ask_second_opinions, sampled  # noqa: PLC0415 - see Workbenches.open

        instruments = self.instruments(active_only=True)
        subjects = sampled(instruments, interval, pipeline=self.pipeline, now=self.now(), share=share)
        return ask_second_opinions(subjects, interval, pipeline=self.pipeline, run_id=run_id)

    def opinions(self, interval: Interval, *, days: int) -> Sequence[Opinion]:
        """The table's."""
        from market_data_pipeline.ingest.second_opinion import opinions_since  # noqa: PLC0415 - see Workbenches.open

        return opinions_since(self.pipeline, interval, days=days)

    def coverage_summary(self) -> CoverageSummary:
        """The use-case, over the active universe."""
        from market_data_pipeline.ingest.summary import coverage_summary  # noqa: PLC0415 - see Workbenches.open

        return coverage_summary(self.pipeline)

    @contextmanager
    def beating(self, run_id: str) -> Iterator[None]:
        """Beat now and every fifteen seconds, from a thread of its own.

        The last beat is left in place: between the end of the block and the end of the run, the run is still alive.
        """
        from market_data_pipeline.storage.heartbeats import Heartbeats  # noqa: PLC0415 - see Workbenches.open

        heartbeats = Heartbeats(self.pipeline.engine)
        process = psutil.Process()
        started_at = datetime.fromtimestamp(process.create_time(), UTC)

        def beat() -> None:
            heartbeats.beat(run_id, host=socket.gethostname(), pid=os.getpid(), process_started_at=started_at)

        over = threading.Event()

        def keep_beating() -> None:
            while not over.wait(SECONDS_BETWEEN_BEATS):
                try:
                    beat()
                except Exception:
                    # The work itself meets the same trouble and says so; the next beat may succeed.
                    logger.warning("a heartbeat of run %s was lost", run_id, exc_info=True)

        beat()
        thread = threading.Thread(target=keep_beating, name=f"heartbeat of {run_id}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def heartbeats(self) -> Sequence[Heartbeat]:
        """Every one there is, the longest silent first."""
        from market_data_pipeline.storage.heartbeats import Heartbeats  # noqa: PLC0415 - see Workbenches.open

        return Heartbeats(self.pipeline.engine).lapsed(timedelta(0))

    def forget_heartbeat(self, run_id: str) -> None:
        """Delete its row."""
        from market_data_pipeline.storage.heartbeats import Heartbeats  # noqa: PLC0415 - see Workbenches.open

        Heartbeats(self.pipeline.engine).forget(run_id)


@dataclass(frozen=True)
class Workbenches:
    """Opens real workbenches as ``settings`` say. Building it touches nothing."""

    settings: Settings

    @contextmanager
    def open(self) -> Iterator[RealWorkbench]:
        """A workbench on a pipeline of its own."""
        # Imported on use: pandas, the calendars and the database's driver take seconds, and the processes that only show the
        # definitions (webserver, daemon, `dagster definitions validate`) need none of them.
        from market_data_pipeline.wiring import open_pipeline  # noqa: PLC0415

        with open_pipeline(self.settings) as pipeline:
            yield RealWorkbench(pipeline)
