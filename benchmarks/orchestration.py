"""What Dagster costs a partition: runs of 1, 100 and 5,000 partitions beside the bare loop of the same use-case.

The use-case is the real one on a real Postgres: ledger, requests, judging, storing. Only the provider answers at once, from memory.
Each measurement fetches sessions that nobody has fetched before. Dagster's three storages are in the same server, with the
event log as it comes ("stock") and as this project ships it ("batched"). Starting a run's process is not in the numbers.

python benchmarks/orchestration.py [--partitions 1 100 5000] [--stock 1 100 500] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import numpy as np
import sqlalchemy as sa
import yaml
from batches import add_symbols, fresh_database
from report import report

from market_data_pipeline.defs.build import build_definitions
from market_data_pipeline.defs.workbench import RealWorkbench
from market_data_pipeline.domain.candles import CandleColumns, Interval
from market_data_pipeline.domain.capabilities import Capability, RateLimit, bars_capability
from market_data_pipeline.domain.partitions import Cell, plan_partitions
from market_data_pipeline.domain.ports import BarsAnswer, BarsRequest, Fetch
from market_data_pipeline.domain.sessions import trading_calendar
from market_data_pipeline.ingest.candles import ingest_candles
from market_data_pipeline.ingest.pipeline import Pipeline
from market_data_pipeline.ingest.report import Stretch
from market_data_pipeline.ingest.routing import Router
from market_data_pipeline.settings import Settings
from market_data_pipeline.storage.bulk import CandleWriter
from market_data_pipeline.storage.candles import CandleReader
from market_data_pipeline.storage.counters import Counters
from market_data_pipeline.storage.derive import CandleDeriver
from market_data_pipeline.storage.health import HealthBook
from market_data_pipeline.storage.jobs import JobQueue
from market_data_pipeline.storage.ledger import Ledger
from market_data_pipeline.storage.universe import UniverseStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import date

    from sqlalchemy.engine import Engine

    from market_data_pipeline.domain.universe import Instrument

INTERVAL = Interval.H1
# The partitions must exist for Dagster, too, which asks the machine's clock.
NOW = datetime.now(UTC)
XNYS = trading_calendar("XNYS")
LAST_SESSION = XNYS.previous_session(NOW.date() - timedelta(days=3))
PLAN = plan_partitions(symbols=1, calendars=[XNYS], start=LAST_SESSION - timedelta(days=400), today=NOW.date(), budget=60_000)
# Sessions of one symbol in a box, at most: 5,000 partitions are then 25 symbols.
SESSIONS = 200
BATCH_SIZE = "DAGSTER_EVENT_BATCH_SIZE"


class FromMemory:
    """A provider that answers at once with every bar of the calendar."""

    name = "yahoo"
    account = ""
    lacking: str | None = None
    limits: Sequence[RateLimit] = ()
    probe_symbol = "A"
    capabilities: Sequence[Capability] = (bars_capability(INTERVAL, reach_seconds=None, span_seconds=366 * 86_400),)

    def __init__(self) -> None:
        expected = XNYS.expected_opens(INTERVAL, LAST_SESSION - timedelta(days=400), LAST_SESSION)
        self._opened_at = expected.opened_at

    def fetch_bars(self, request: BarsRequest, *, now: datetime) -> BarsAnswer:
        """The bars in the window, all of one price."""
        opened_at = self._opened_at[(self._opened_at >= request.start) & (self._opened_at < request.end)]
        flat = np.full(len(opened_at), 10.0)
        return BarsAnswer(
            request=request,
            fetch=Fetch(self.name, request.symbol, request.interval, "memory", now, 0.0, "ok", rows=len(opened_at)),
            columns=CandleColumns.of(opened_at, flat, flat + 1, flat - 1, flat, flat),
            null_opened_at=np.array([], np.int64),
        )


class Standing:
    """A clock that stands still."""

    is_virtual = True

    def now(self) -> datetime:
        """Always the same instant."""
        return NOW


@dataclass(frozen=True)
class Open:
    """Hands out one pipeline that is open already: opening a connection pool is not what is measured."""

    pipeline: Pipeline

    @contextmanager
    def open(self) -> Iterator[RealWorkbench]:
        """The pipeline at hand."""
        yield RealWorkbench(self.pipeline)


def pipeline_on(engine: Engine) -> Pipeline:
    """The real pipeline but for the provider and the clock."""
    settings, health = Settings(), HealthBook(engine)
    providers = {FromMemory.name: FromMemory()}
    return Pipeline(
        settings=settings,
        clock=Standing(),
        engine=engine,
        universe=UniverseStore(engine),
        ledger=Ledger(engine),
        writer=CandleWriter(engine),
        reader=CandleReader(engine),
        deriver=CandleDeriver(engine),
        providers=providers,
        health=health,
        router=Router(settings, providers, health),
        jobs=JobQueue(engine, settings.queue_policy),
        counters=Counters(engine),
        calendars=trading_calendar,
    )


@contextmanager
def dagster_on(engine: Engine, event_log: str) -> Iterator[dg.DagsterInstance]:
    """An instance with its storages in a database of its own on the server of ``engine``."""
    name = f"dagster_{event_log}"
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text(f"create database {name}"))
    at = {"postgres_url": engine.url.set(database=name).render_as_string(hide_password=False)}
    ours = ("market_data_pipeline.defs.event_log", "BatchPostgresEventLogStorage")
    module, log_class = ours if event_log == "batched" else ("dagster_postgres.event_log", "PostgresEventLogStorage")
    settings = {
        "telemetry": {"enabled": False},
        "run_storage": {"module": "dagster_postgres.run_storage", "class": "PostgresRunStorage", "config": at},
        "event_log_storage": {"module": module, "class": log_class, "config": at},
        "schedule_storage": {"module": "dagster_postgres.schedule_storage", "class": "PostgresScheduleStorage", "config": at},
        # The console would be measured, too.
        "python_logs": {"python_log_level": "CRITICAL"},
    }
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "dagster.yaml").write_text(yaml.safe_dump(settings))
        with dg.DagsterInstance.from_config(home) as instance:
            yield instance


class Bench:
    """The instruments not used yet, and the two ways to fetch them."""

    def __init__(self, engine: Engine, symbols: int) -> None:
        self.pipeline = pipeline_on(engine)
        add_symbols(engine, symbols)
        self._fresh = list(self.pipeline.universe.instruments())
        self.symbols = [instrument.symbol for instrument in self._fresh]
        self._sessions = XNYS.sessions(LAST_SESSION - timedelta(days=400), LAST_SESSION)[-SESSIONS:]
        definitions = build_definitions(Settings(), PLAN, workbenches=Open(self.pipeline))
        self._job = definitions.resolve_job_def(f"candles_{INTERVAL}")

    def box(self, partitions: int) -> tuple[list[Instrument], list[date]]:
        """Instruments that nobody fetched yet and the sessions that together are so many partitions."""
        sessions = self._sessions[: min(partitions, SESSIONS)]
        count = -(-partitions // len(sessions))
        taken, self._fresh = self._fresh[:count], self._fresh[count:]
        return taken, sessions

    def bare(self, partitions: int) -> float:
        """Seconds of the use-case alone."""
        instruments, sessions = self.box(partitions)
        stretches = [Stretch(instrument, day, day) for instrument in instruments for day in sessions]
        begun = time.perf_counter()
        done = sum(report.failure is None for report in ingest_candles(stretches, INTERVAL, pipeline=self.pipeline))
        seconds = time.perf_counter() - begun
        _expect(done, len(stretches))
        return seconds

    def run(self, instance: dg.DagsterInstance, partitions: int) -> float:
        """Seconds of a Dagster run over the box, planned events included."""
        instruments, sessions = self.box(partitions)
        first, last = Cell(str(sessions[0]), instruments[0].symbol), Cell(str(sessions[-1]), instruments[-1].symbol)
        key = dg.AssetKey(["candles", INTERVAL.value])
        before = len(instance.get_materialized_partitions(key))
        begun = time.perf_counter()
        self._job.execute_in_process(
            instance=instance,
            tags={"dagster/asset_partition_range_start": first.key, "dagster/asset_partition_range_end": last.key},
        )
        seconds = time.perf_counter() - begun
        _expect(len(instance.get_materialized_partitions(key)) - before, len(instruments) * len(sessions))
        return seconds


def _expect(found: int, expected: int) -> None:
    if found != expected:
        raise RuntimeError(f"{found} partitions were done instead of {expected}: the numbers would mean nothing")


def main() -> None:
    """Measure and report."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--partitions", type=int, nargs="+", default=[1, 100, 5_000])
    arguments.add_argument("--stock", type=int, nargs="*", default=[1, 100, 500], help="sizes of the runs on the stock event log")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--json", type=Path)
    told = arguments.parse_args()
    logging.disable(logging.WARNING)
    sizes = {"bare": told.partitions, "batched": told.partitions, "stock": told.stock}
    need = sum(-(-n // min(n, SESSIONS)) for held in sizes.values() for n in held) * told.rounds + 3
    seconds: dict[tuple[str, int], list[float]] = {}
    with ExitStack() as stack:
        engine = stack.enter_context(fresh_database())
        bench = Bench(engine, need)
        instances = {name: stack.enter_context(dagster_on(engine, name)) for name in ("batched", "stock")}
        for name, instance in instances.items():
            instance.add_dynamic_partitions("symbols", bench.symbols)
            measure(bench, instances, name, 1)
        bench.bare(1)
        for _ in range(told.rounds):
            for name, held in sizes.items():
                for partitions in held:
                    seconds.setdefault((name, partitions), []).append(measure(bench, instances, name, partitions))
    rows = [row(name, partitions, seconds) for name, held in sizes.items() for partitions in held]
    largest = max(told.partitions)
    verdict = overhead("batched", largest, seconds)
    report(
        "orchestration",
        rows,
        notes=[
            f"overhead at {largest:,} partitions: {verdict:.2f} ms a partition (target: below 3)",
            "overhead = (run - bare loop) / partitions; one hourly session a partition, one request a symbol",
        ],
        json_path=told.json,
    )


def measure(bench: Bench, instances: dict[str, dg.DagsterInstance], name: str, partitions: int) -> float:
    """Seconds of one way over so many partitions."""
    if name == "bare":
        return bench.bare(partitions)
    os.environ[BATCH_SIZE] = "1000" if name == "batched" else "0"
    return bench.run(instances[name], partitions)


def row(name: str, partitions: int, seconds: dict[tuple[str, int], list[float]]) -> dict[str, object]:
    """One line of the table: medians over the rounds."""
    median = statistics.median(seconds[name, partitions])
    line: dict[str, object] = {
        "way": "bare loop" if name == "bare" else f"dagster, {name} event log",
        "partitions": partitions,
        "seconds": median,
        "ms_a_partition": 1000 * median / partitions,
    }
    if name != "bare" and (("bare", partitions) in seconds):
        line["overhead_ms_a_partition"] = overhead(name, partitions, seconds)
    return line


def overhead(name: str, partitions: int, seconds: Mapping[tuple[str, int], Sequence[float]]) -> float:
    """What the run costs beyond the bare loop, in milliseconds a partition, of the medians."""
    run, bare = (statistics.median(seconds[way, partitions]) for way in (name, "bare"))
    return 1000 * (run - bare) / partitions


if __name__ == "__main__":
    main()
