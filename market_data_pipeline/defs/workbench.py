"""What the definitions need from the rest of the system, opened for one run or one tick. The only module here that knows wiring."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager
    from datetime import datetime

    from market_data_pipeline.domain.candles import Interval
    from market_data_pipeline.domain.sessions import TradingCalendar
    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.ingest.report import Stretch, StretchReport
    from market_data_pipeline.settings import Settings


class Workbench(Protocol):
    """The clock, the universe, the calendars and the use-cases."""

    def now(self) -> datetime:
        """The current instant on the pipeline's clock, which may be a simulator's."""
        ...

    def instruments(self, *, active_only: bool) -> Sequence[Instrument]:
        """The universe."""
        ...

    def calendar(self, name: str) -> TradingCalendar:
        """The calendar called ``name``, with the operator's overrides."""
        ...

    def bring_up_to_date(
        self, stretches: Sequence[Stretch], interval: Interval, *, refetch: bool, run_id: str
    ) -> Iterator[StretchReport]:
        """Fetch or derive what the stretches lack; a report each, in any order."""
        ...

    def beating(self, run_id: str) -> AbstractContextManager[None]:
        """Show that this process works on the run, for as long as the block lasts: what the janitor goes by."""
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

    def instruments(self, *, active_only: bool) -> Sequence[Instrument]:
        """The universe in the database."""
        return self.pipeline.universe.instruments(active_only=active_only)

    def calendar(self, name: str) -> TradingCalendar:
        """The pipeline's calendar."""
        return self.pipeline.calendars(name)

    def bring_up_to_date(
        self, stretches: Sequence[Stretch], interval: Interval, *, refetch: bool, run_id: str
    ) -> Iterator[StretchReport]:
        """The use-case of ``interval``: derived intervals are computed from stored minutes, the others fetched."""
        from market_data_pipeline.ingest.candles import ingest_candles  # noqa: PLC0415 - see Workbenches.open
        from market_data_pipeline.ingest.derive import derive_candles  # noqa: PLC0415

        use_case = ingest_candles if interval.source is None else derive_candles
        return use_case(stretches, interval, pipeline=self.pipeline, refetch=refetch, run_id=run_id)

    @contextmanager
    def beating(self, run_id: str) -> Iterator[None]:
        """Beat from a thread of its own."""
        del run_id
        yield


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
