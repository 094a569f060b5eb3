"""Real Dagster instances in a temporary home, on SQLite and Postgres, with the stock event log and with ours."""

from __future__ import annotations

import secrets
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import dagster as dg
import psycopg2
import sqlalchemy as sa
import yaml
from psycopg2 import sql

from market_data_pipeline.defs.build import build_definitions
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.partitions import Cell, default_plan
from market_data_pipeline.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from market_data_pipeline_tests.defs.fakes import FakeWorkbench

STOCK, BATCHED = "stock", "batched"
PLAN = default_plan()
_OURS = "market_data_pipeline.defs.event_log"


@contextmanager
def sqlite_instance(home: Path, event_log: str) -> Iterator[dg.DagsterInstance]:
    home.mkdir(parents=True)
    settings: dict[str, object] = {"telemetry": {"enabled": False}}
    if event_log == BATCHED:
        base = str(home / "history" / "runs")
        settings["event_log_storage"] = {"module": _OURS, "class": "BatchSqliteEventLogStorage", "config": {"base_dir": base}}
    yield from _opened(home, settings)


@contextmanager
def postgres_instance(home: Path, event_log: str, url: str) -> Iterator[dg.DagsterInstance]:
    home.mkdir(parents=True)
    module, name = (_OURS, "BatchPostgresEventLogStorage")
    if event_log == STOCK:
        module, name = "dagster_postgres.event_log", "PostgresEventLogStorage"
    at = {"postgres_url": url}
    settings: dict[str, object] = {
        "telemetry": {"enabled": False},
        "run_storage": {"module": "dagster_postgres.run_storage", "class": "PostgresRunStorage", "config": at},
        "event_log_storage": {"module": module, "class": name, "config": at},
        "schedule_storage": {"module": "dagster_postgres.schedule_storage", "class": "PostgresScheduleStorage", "config": at},
    }
    yield from _opened(home, settings)


def _opened(home: Path, settings: dict[str, object]) -> Iterator[dg.DagsterInstance]:
    (home / "dagster.yaml").write_text(yaml.safe_dump(settings))
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield instance


@contextmanager
def empty_database(server: str) -> Iterator[str]:
    """A database of its own on ``server``, with the driver named as Dagster needs it."""
    name = f"dagster_{secrets.token_hex(6)}"
    libpq = sa.make_url(server).set(drivername="postgresql").render_as_string(hide_password=False)
    with closing(psycopg2.connect(libpq)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
            try:
                url = sa.make_url(server).set(drivername="postgresql+psycopg2", database=name)
                yield url.render_as_string(hide_password=False)
            finally:
                cursor.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def run_box(
    instance: dg.DagsterInstance,
    workbench: FakeWorkbench,
    first: Cell,
    last: Cell,
    *,
    intervals: Sequence[Interval] = (Interval.M1,),
    refetch: bool = False,
    tags: Mapping[str, str] | None = None,
) -> dg.ExecuteInProcessResult:
    """One run over the box from ``first`` to ``last``, as a job launched with range tags does it."""
    job = build_definitions(Settings(), PLAN, workbenches=workbench).resolve_job_def("candles_1m")
    return job.execute_in_process(
        instance=instance,
        asset_selection=[dg.AssetKey(["candles", interval.value]) for interval in intervals],
        tags={"dagster/asset_partition_range_start": first.key, "dagster/asset_partition_range_end": last.key, **(tags or {})},
        run_config={"ops": {"fetch_candles_1m": {"config": {"refetch": refetch}}}},
        raise_on_error=False,
    )
