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

from market_data_pipeline.domain.alerts import AlertState
from market_data_pipeline.domain.candles import FETCHED_INTERVALS, Interval
from market_data_pipeline.domain.capabilities import Lane
from market_data_pipeline.observability.logs import bound, configure
from market_data_pipeline.observability.tracing import maybe_trace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager
    from datetime import date
    from pathlib import Path

    from market_data_pipeline.domain.alerts import Alert
    from market_data_pipeline.domain.coverage import LedgerRow
    from market_data_pipeline.domain.failures import Failure, FailureKind
    from market_data_pipeline.domain.freshness import Census
    from market_data_pipeline.domain.queue import DeadGrowth, Lease
    from market_data_pipeline.domain.retention import Pruned
    from market_data_pipeline.domain.sessions import TradingCalendar
    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.jobs import EndedJob
    from market_data_pipeline.ingest.listing import ListingChange
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.ingest.promises import PriceSanity, SessionCompleteness
    from market_data_pipeline.ingest.report import Stretch, StretchReport
    from market_data_pipeline.ingest.second_opinion import SecondOpinions
    from market_data_pipeline.ingest.summary import CoverageSummary
    from market_data_pipeline.ingest.watch import WatchReport
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

    def count_gaps(self, interval: Interval, n: int) -> None:
        """Runs were asked for over ``n`` gaps more."""
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

    def census(self, interval: Interval | None = None) -> Census:
        """How fresh the followed symbols are now, of one interval or all."""
        ...

    def completeness(self, interval: Interval) -> SessionCompleteness:
        """What the newest session whose time is up lacks."""
        ...

    def price_sanity(self, interval: Interval) -> PriceSanity:
        """What is odd among the newest stored prices."""
        ...

    def dead_growth(self, *, within: timedelta) -> DeadGrowth:
        """How many dead letters there are, and why those of the last while became so."""
        ...

    def watch(self, *, by: str) -> WatchReport:
        """Look at what alerts are about, unless somebody just did, and deliver the messages that are due."""
        ...

    def firing_alerts(self) -> Sequence[Alert]:
        """Those that hold, the most urgent first."""
        ...

    def failures(self) -> Sequence[Failure]:
        """The jobs and checks that are known to be wrong."""
        ...

    def note_failure(self, failure: Failure) -> None:
        """A run or a check failed, or failed again."""
        ...

    def forget_failures(self, kind: FailureKind, names: Sequence[str]) -> int:
        """They are right again; how many were known to be wrong."""
        ...

    def beating(self, run_id: str) -> AbstractContextManager[None]:
        """Show that this process works on the run, for as long as the block lasts: what the janitor goes by."""
        ...

    def traced(self, label: str) -> AbstractContextManager[Path | None]:
        """Profile the block, where that is switched on; its value is the file that will hold the profile, None otherwise."""
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

    def count_gaps(self, interval: Interval, n: int) -> None:
        """In the metrics."""
        self.pipeline.counters.add("gaps_found_total", {"interval": str(interval)}, n)

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

    def census(self, interval: Interval | None = None) -> Census:
        """The use-case."""
        from market_data_pipeline.ingest.freshness import take_census  # noqa: PLC0415 - see Workbenches.open

        return take_census(self.pipeline, intervals=tuple(Interval) if interval is None else (interval,))

    def completeness(self, interval: Interval) -> SessionCompleteness:
        """The use-case."""
        from market_data_pipeline.ingest.promises import session_completeness  # noqa: PLC0415 - see Workbenches.open

        return session_completeness(self.pipeline, interval)

    def price_sanity(self, interval: Interval) -> PriceSanity:
        """The use-case."""
        from market_data_pipeline.ingest.promises import price_sanity  # noqa: PLC0415 - see Workbenches.open

        return price_sanity(self.pipeline, interval)

    def dead_growth(self, *, within: timedelta) -> DeadGrowth:
        """The queue's; by the database's clock, which stamps them."""
        return self.pipeline.jobs.dead_growth(within=within)

    def watch(self, *, by: str) -> WatchReport:
        """The use-case."""
        from market_data_pipeline.ingest.alert_file import alerts_of_process  # noqa: PLC0415 - see Workbenches.open
        from market_data_pipeline.ingest.watch import watch  # noqa: PLC0415

        return watch(self.pipeline, by=by, alerts=alerts_of_process(self.pipeline.settings.alerts_file))

    def firing_alerts(self) -> Sequence[Alert]:
        """The open ones of the database that are not pending."""
        from market_data_pipeline.storage.alerts import AlertBook  # noqa: PLC0415 - see Workbenches.open

        firing = [alert for alert in AlertBook(self.pipeline.engine).open() if alert.state is AlertState.FIRING]
        return sorted(firing, key=lambda alert: (-alert.severity.urgency, alert.rule, alert.key))

    def failures(self) -> Sequence[Failure]:
        """Every one there is."""
        from market_data_pipeline.storage.failures import FailureStore  # noqa: PLC0415 - see Workbenches.open

        return FailureStore(self.pipeline.engine).all()

    def note_failure(self, failure: Failure) -> None:
        """Insert its row, or count one more."""
        from market_data_pipeline.storage.failures import FailureStore  # noqa: PLC0415 - see Workbenches.open

        FailureStore(self.pipeline.engine).note(failure)

    def forget_failures(self, kind: FailureKind, names: Sequence[str]) -> int:
        """Delete their rows."""
        from market_data_pipeline.storage.failures import FailureStore  # noqa: PLC0415 - see Workbenches.open

        return FailureStore(self.pipeline.engine).forget(kind, names) if names else 0

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
            with bound(run_id=run_id):
                yield
        finally:
            over.set()
            thread.join()

    def traced(self, label: str) -> AbstractContextManager[Path | None]:
        """VizTracer's, as MDP_VIZTRACER_ENABLED says."""
        return maybe_trace(label, self.pipeline.settings)

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

        configure(self.settings, ours_alone=True)
        with open_pipeline(self.settings) as pipeline:
            yield RealWorkbench(pipeline)
