"""The batched event log keeps the promises of Dagster's own: the same run leaves the same record, on SQLite and Postgres."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
from dagster._core.storage.partition_status_cache import get_and_update_asset_status_cache_value

from market_data_pipeline.defs.event_log import BatchSqliteEventLogStorage, missing_names
from market_data_pipeline.defs.materialize import report_runless
from market_data_pipeline.defs.partitions import candle_partitions, partition_key
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.partitions import Cell
from market_data_pipeline_tests.defs.fakes import FakeWorkbench, failing, universe
from market_data_pipeline_tests.defs.instances import (
    BATCHED,
    PLAN,
    STOCK,
    empty_database,
    postgres_instance,
    run_box,
    sqlite_instance,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Pair = dict[str, dg.DagsterInstance]

SYMBOLS = ["AAPL", "IBM", "MSFT"]
MINUTES, FIVES = dg.AssetKey(["candles", "1m"]), dg.AssetKey(["candles", "5m"])
FIRST, LAST = Cell("2024-03-01", "AAPL"), Cell("2024-03-06", "MSFT")


@contextmanager
def two_instances(request: pytest.FixtureRequest, home: Path) -> Iterator[Pair]:
    """The stock instance and the batched one, each after the same run: IBM failed, the others are there."""
    with ExitStack() as stack:
        # Small batches, so that the run takes several and one that is not full.
        stack.enter_context(pytest.MonkeyPatch.context()).setenv("DAGSTER_EVENT_BATCH_SIZE", "5")
        instances = {}
        for event_log in (STOCK, BATCHED):
            if request.param == "sqlite":
                instance = stack.enter_context(sqlite_instance(home / event_log, event_log))
            else:
                url = stack.enter_context(empty_database(request.getfixturevalue("postgres_url")))
                instance = stack.enter_context(postgres_instance(home / event_log, event_log, url))
            instance.add_dynamic_partitions("symbols", SYMBOLS)
            workbench = FakeWorkbench(universe(*SYMBOLS), outcome=failing("IBM"))
            run_box(instance, workbench, FIRST, LAST, intervals=(Interval.M1, Interval.M5))
            instances[event_log] = instance
        yield instances


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """For tests that only read."""
    with two_instances(request, tmp_path_factory.mktemp("shared")) as instances:
        yield instances


@pytest.fixture(params=["sqlite", "postgres"])
def fresh_pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    """For tests that write."""
    with two_instances(request, tmp_path) as instances:
        yield instances


def said(instance: dg.DagsterInstance) -> list[tuple[Any, ...]]:
    """What the log of the one run says, event by event."""
    run = instance.get_runs()[0]
    return [
        (entry.dagster_event_type, entry.get_dagster_event().asset_key, entry.get_dagster_event().partition)
        for entry in instance.all_logs(run.run_id)
        if entry.is_dagster_event
    ]


def statuses(instance: dg.DagsterInstance, key: dg.AssetKey) -> dict[str, set[str]]:
    definition = candle_partitions(PLAN, Interval.M1)
    value = get_and_update_asset_status_cache_value(instance, key, definition, instance)
    assert value is not None
    return {
        "materialized": set(value.deserialize_materialized_partition_subsets(definition).get_partition_keys()),
        "failed": set(value.deserialize_failed_partition_subsets(definition).get_partition_keys()),
        "in progress": set(value.deserialize_in_progress_partition_subsets(definition).get_partition_keys()),
    }


def test_the_log_of_the_run_reads_the_same(pair: Pair) -> None:
    assert said(pair[BATCHED]) == said(pair[STOCK])


def test_good_partitions_are_materialised_and_the_rest_failed(pair: Pair) -> None:
    for instance in pair.values():
        for key in (MINUTES, FIVES):
            shown = statuses(instance, key)
            assert {partition.split("|")[1] for partition in shown["materialized"]} == {"AAPL", "MSFT"}
            assert {partition.split("|")[1] for partition in shown["failed"]} == {"IBM"}
            assert (len(shown["materialized"]), len(shown["failed"]), shown["in progress"]) == (8, 4, set())


def materialisations(instance: dg.DagsterInstance) -> dict[str | None, tuple[dict[str, Any], dict[str, str]]]:
    """The metadata and tags of each, by partition."""
    return {
        record.partition_key: (
            {name: value.value for name, value in record.asset_materialization.metadata.items()},
            dict(record.asset_materialization.tags or {}),
        )
        for record in instance.fetch_materializations(MINUTES, limit=100).records
        if record.asset_materialization is not None
    }


def test_every_materialisation_has_its_metadata_and_tags(pair: Pair) -> None:
    assert materialisations(pair[BATCHED]) == materialisations(pair[STOCK])
    metadata, tags = materialisations(pair[BATCHED])["2024-03-01|AAPL"]
    assert (metadata["rows"], metadata["expected"], metadata["provider"]) == (390, 390, "fake")
    assert (tags["dagster/partition/period"], tags["dagster/partition/symbol"]) == ("2024-03-01", "AAPL")


def test_the_index_of_tags_reads_the_same(pair: Pair) -> None:
    found = {
        name: sorted(tuple(sorted(tags.items())) for tags in instance.get_event_tags_for_asset(MINUTES))
        for name, instance in pair.items()
    }
    assert found[BATCHED] == found[STOCK]
    assert len(found[BATCHED]) == 8


def test_the_newest_materialisation_of_each_partition_is_found(pair: Pair) -> None:
    kind = dg.DagsterEventType.ASSET_MATERIALIZATION
    found = {name: set(i.get_latest_storage_id_by_partition(MINUTES, kind)) for name, i in pair.items()}
    assert found[BATCHED] == found[STOCK]


def test_the_planned_partitions_are_counted_the_same(pair: Pair) -> None:
    kind = dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED
    found = {name: set(i.get_latest_storage_id_by_partition(MINUTES, kind)) for name, i in pair.items()}
    assert found[BATCHED] == found[STOCK]
    assert len(found[BATCHED]) == 12


def test_reading_on_from_a_cursor_meets_each_materialisation_once(pair: Pair) -> None:
    pages = {}
    for name, instance in pair.items():
        cursor, met = None, []
        while True:
            page = instance.fetch_materializations(MINUTES, limit=3, cursor=cursor, ascending=True)
            met += [record.partition_key for record in page.records]
            cursor = page.cursor
            if not page.has_more:
                break
        pages[name] = met
    assert pages[BATCHED] == pages[STOCK]
    assert len(set(pages[BATCHED])) == 8


def test_a_later_event_comes_after_the_cursor_of_an_earlier_reading(fresh_pair: Pair) -> None:
    for instance in fresh_pair.values():
        seen = instance.fetch_materializations(MINUTES, limit=100, ascending=True).cursor
        instance.report_runless_asset_event(dg.AssetMaterialization(MINUTES, partition="2024-03-01|IBM"))
        later = instance.fetch_materializations(MINUTES, limit=100, cursor=seen, ascending=True).records
        assert [record.partition_key for record in later] == ["2024-03-01|IBM"]


@pytest.mark.parametrize("key", [MINUTES, FIVES])
def test_the_asset_knows_its_last_run_and_its_last_materialisation(pair: Pair, key: dg.AssetKey) -> None:
    # Ours alone: in a batch of two assets, stock Postgres brings only the last event's asset up to date.
    instance = pair[BATCHED]
    (record,) = instance.get_asset_records([key])
    last = instance.fetch_materializations(key, limit=1).records[0]
    assert record.asset_entry.last_run_id == instance.get_runs()[0].run_id
    assert record.asset_entry.last_materialization_storage_id == last.storage_id


def test_many_runless_reports_materialise_each_partition_once(fresh_pair: Pair) -> None:
    for instance in fresh_pair.values():
        count = report_runless(
            instance,
            (dg.AssetMaterialization(MINUTES, partition=partition_key(Cell(f"2024-02-{d:02d}", "AAPL"))) for d in range(5, 10)),
        )
        assert count == 5
        assert len(instance.get_materialized_partitions(MINUTES)) == 8 + 5
        assert len(instance.fetch_materializations(MINUTES, limit=100).records) == 8 + 5


def test_a_run_that_is_deleted_takes_its_events_with_it(fresh_pair: Pair) -> None:
    for instance in fresh_pair.values():
        instance.delete_run(instance.get_runs()[0].run_id)
        assert instance.get_materialized_partitions(MINUTES) == set()


def test_this_version_of_dagster_has_every_private_name_we_lean_on() -> None:
    assert missing_names() == ()


def test_a_dagster_that_lacks_a_name_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    class Renamed:
        def store_event_batch(self) -> None: ...

    for _ in range(2):
        assert "_event_to_row" in missing_names(Renamed)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_batches_of_anything_else_are_stored_one_by_one(tmp_path: Path) -> None:
    storage = BatchSqliteEventLogStorage(str(tmp_path))
    entries = [
        dg.EventLogEntry(  # type: ignore[no-untyped-call]
            error_info=None, level=20, user_message=text, run_id="a run", timestamp=1.0, job_name="a job"
        )
        for text in ("one", "two")
    ]
    storage.store_event_batch(entries)
    assert [entry.user_message for entry in storage.get_logs_for_run("a run")] == ["one", "two"]
