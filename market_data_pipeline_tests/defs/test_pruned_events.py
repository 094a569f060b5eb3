"""What Dagster itself never deletes goes with age: events without a run, results of checks. What the pages show stays."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.event_log import SqlEventLogStorageTable
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable

from market_data_pipeline.defs.event_log import prune_without_runs
from market_data_pipeline.defs.partitions import partition_key
from market_data_pipeline.domain.partitions import Cell
from market_data_pipeline_tests.defs.fakes import FakeWorkbench, universe
from market_data_pipeline_tests.defs.instances import BATCHED, empty_database, postgres_instance, run_box, sqlite_instance

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SYMBOLS = ["AAPL", "IBM"]
MINUTES = dg.AssetKey(["candles", "1m"])
FIRST = Cell("2024-03-01", "AAPL")
TOMORROW = datetime.now(UTC) + timedelta(days=1)
QUOTES = dg.AssetKey(["quotes", "l1"])


@pytest.fixture(params=["sqlite", "postgres"])
def instance(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance whose event log is ours, empty."""
    home = tmp_path / "home"
    if request.param == "sqlite":
        with sqlite_instance(home, BATCHED) as opened:
            opened.add_dynamic_partitions("symbols", SYMBOLS)
            yield opened
        return
    with empty_database(request.getfixturevalue("postgres_url")) as url, postgres_instance(home, BATCHED, url) as opened:
        opened.add_dynamic_partitions("symbols", SYMBOLS)
        yield opened


def checked(instance: dg.DagsterInstance, *, passed: bool) -> None:
    instance.report_runless_asset_event(
        dg.AssetCheckEvaluation(asset_key=MINUTES, check_name="newest_candle_is_on_time", passed=passed, metadata={})
    )


def rows(instance: dg.DagsterInstance, table: sa.Table) -> int:
    """Rows of the event log, or results of our check: of those that a run planned, in-process runs leave some for ever."""
    wanted: sa.ColumnElement[bool] = sa.true()
    if table is AssetCheckExecutionsTable:
        wanted = sa.and_(table.c.check_name == "newest_candle_is_on_time", table.c.asset_key == MINUTES.to_string())
    with instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined]
        return int(connection.execute(sa.select(sa.func.count()).select_from(table).where(wanted)).scalar_one())


def test_of_events_without_a_run_the_newest_of_each_partition_and_kind_stays(instance: dg.DagsterInstance) -> None:
    for day in (5, 6):
        for _ in range(3):
            key = partition_key(Cell(f"2024-02-{day:02d}", "AAPL"))
            instance.report_runless_asset_event(dg.AssetMaterialization(MINUTES, partition=key))
    for _ in range(4):
        instance.report_runless_asset_event(dg.AssetObservation(QUOTES))
    shown = instance.get_materialized_partitions(MINUTES)
    assert prune_without_runs(instance, before=TOMORROW, at_most=1_000) == 2 * 2 + 3
    assert instance.get_materialized_partitions(MINUTES) == shown
    assert len(instance.fetch_observations(QUOTES, limit=10).records) == 1
    assert prune_without_runs(instance, before=TOMORROW, at_most=1_000) == 0


def test_an_event_without_a_run_goes_once_a_run_has_said_the_same_later(instance: dg.DagsterInstance) -> None:
    instance.report_runless_asset_event(dg.AssetMaterialization(MINUTES, partition=partition_key(FIRST)))
    run = run_box(instance, FakeWorkbench(universe(*SYMBOLS)), FIRST, FIRST)
    prune_without_runs(instance, before=TOMORROW, at_most=1_000)
    told = instance.fetch_materializations(MINUTES, limit=100).records
    assert {record.run_id for record in told if record.partition_key == FIRST.key} >= {run.run_id}
    assert "" not in {record.run_id for record in told}


def test_of_a_checks_results_the_newest_stays_and_is_shown(instance: dg.DagsterInstance) -> None:
    for passed in (True, False, True, False):
        checked(instance, passed=passed)
    prune_without_runs(instance, before=TOMORROW, at_most=1_000)
    assert rows(instance, AssetCheckExecutionsTable) == 1
    key = dg.AssetCheckKey(MINUTES, "newest_candle_is_on_time")
    newest = instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
    assert newest.status is AssetCheckExecutionRecordStatus.FAILED


def test_what_is_young_stays(instance: dg.DagsterInstance) -> None:
    checked(instance, passed=False)
    checked(instance, passed=True)
    assert prune_without_runs(instance, before=datetime.now(UTC) - timedelta(days=1), at_most=1_000) == 0


def test_no_more_is_deleted_than_asked(instance: dg.DagsterInstance) -> None:
    for _ in range(5):
        instance.report_runless_asset_event(dg.AssetObservation(QUOTES))
    assert [prune_without_runs(instance, before=TOMORROW, at_most=3) for _ in range(3)] == [3, 1, 0]


def test_a_minute_cadence_does_not_let_the_event_log_grow(instance: dg.DagsterInstance) -> None:
    sizes = []
    for _night in range(4):
        for minute in range(20):
            instance.report_runless_asset_event(dg.AssetObservation(QUOTES))
            checked(instance, passed=minute % 2 == 0)
        prune_without_runs(instance, before=TOMORROW, at_most=1_000)
        sizes.append((rows(instance, SqlEventLogStorageTable), rows(instance, AssetCheckExecutionsTable)))
    assert len(set(sizes)) == 1
