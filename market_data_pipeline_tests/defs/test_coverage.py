"""The asset ``coverage``: numbers that can be plotted, a report that a person can read, a picture that stays small."""

from __future__ import annotations

import base64
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import pytest
from pydantic import SecretStr

from market_data_pipeline.defs.build import build_definitions
from market_data_pipeline.defs.coverage import KEY, coverage_schedule, report_of
from market_data_pipeline.defs.tags import COVERAGE
from market_data_pipeline.defs.workbench import RealWorkbench, Workbenches
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.coverage import VERDICTS, LedgerRow, Verdict
from market_data_pipeline.domain.partitions import default_plan
from market_data_pipeline.domain.universe import Tier, UniverseEntry
from market_data_pipeline.ingest.summary import MOST_PICTURE_BYTES, coverage_summary
from market_data_pipeline.settings import Settings
from market_data_pipeline.storage.bulk import transaction, write_ledger
from market_data_pipeline.storage.overview import Plan
from market_data_pipeline.wiring import open_pipeline
from market_data_pipeline_tests.cli.builders import store
from market_data_pipeline_tests.defs.fakes import NOW, FakeWorkbench

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MONDAY, TUESDAY = date(2024, 12, 2), date(2024, 12, 3)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as opened:
        yield opened


@pytest.fixture
def told(database_url: str, tmp_path: Path) -> Settings:
    """The evening of a Tuesday of which AAPL has all, on Monday all but three minutes; MSFT was never asked for."""
    settings = Settings(home=tmp_path, database_url=SecretStr(database_url), clock="2024-12-03T23:00:00+00:00")
    universe = [UniverseEntry("AAPL", "XNAS", Tier.T0), UniverseEntry("MSFT", "XNAS", Tier.T1)]
    with open_pipeline(settings) as pipeline:
        pipeline.universe.load(universe, version_tag="t", source="t", source_sha256="0" * 64, loaded_by="t")
        at = datetime(2024, 12, 3, 22, tzinfo=UTC)
        store(pipeline, "AAPL", MONDAY, lacking=[10, 11, 200], known_at=at)
        store(pipeline, "AAPL", TUESDAY, known_at=at)
    return settings


def materialized(instance: dg.DagsterInstance, workbenches: Any) -> dict[str, Any]:  # noqa: ANN401 - either kind of workbench
    definitions = build_definitions(Settings(), default_plan(), workbenches=workbenches)
    result = definitions.resolve_job_def(COVERAGE).execute_in_process(instance=instance)
    [event] = result.get_asset_materialization_events()
    assert event.asset_key == KEY
    return {name: value.value for name, value in event.materialization.metadata.items()}


def test_what_the_asset_says_is_what_the_ledger_has(instance: dg.DagsterInstance, told: Settings) -> None:
    metadata = materialized(instance, Workbenches(told))
    assert metadata["symbols"] == 2
    assert (metadata["missing now"], metadata["missing now T0"], metadata["given up"]) == (3, 3, 0)
    # Two sessions of two symbols: MSFT's are missing, and nobody was asked for them. In the east it is Wednesday already.
    assert [metadata[f"1m {verdict}"] for verdict in VERDICTS] == [777, 0, 0, 0, 780, 0, 783]
    assert (metadata["1m never asked for"], metadata["1m complete %"]) == (780, 49.8)
    assert sum(metadata[f"1m {verdict}"] for verdict in VERDICTS) == 6 * 390


def test_the_gap_report_names_the_worst_and_what_to_do(instance: dg.DagsterInstance, told: Settings) -> None:
    metadata = materialized(instance, Workbenches(told))
    report = metadata["gap report"]
    assert "3 bars are missing" in report
    assert "| AAPL | T0 | 1m | 3 | 1 | 0 | 2024-12-02 | 2024-12-02 |" in report
    assert "`mdp gaps --symbols AAPL --interval 1m --explain`" in report
    [record] = metadata["gaps"].records
    assert (record.data["symbol"], record.data["bars"]) == ("AAPL", 3)


def test_the_picture_is_a_png_in_the_metadata(instance: dg.DagsterInstance, told: Settings) -> None:
    shown = materialized(instance, Workbenches(told))["picture"]
    head, _, body = shown.removesuffix(")").partition("base64,")
    assert head == "![sessions by symbols](data:image/png;"
    assert base64.b64decode(body).startswith(b"\x89PNG")


def test_a_picture_of_thousands_of_symbols_stays_small(database_url: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, database_url=SecretStr(database_url), clock="2024-12-07T23:00:00+00:00")
    with open_pipeline(settings) as pipeline:
        universe = [UniverseEntry(f"S{number:04}", "XNAS", Tier.T2) for number in range(2_000)]
        pipeline.universe.load(universe, version_tag="t", source="t", source_sha256="0" * 64, loaded_by="t")
        instruments = pipeline.universe.instruments()
        random = np.random.default_rng(1)
        days = pipeline.calendars("XNYS").sessions(date(2024, 11, 8), date(2024, 12, 6))
        rows = [
            LedgerRow(one.symbol_id, Interval.D1, day, 0, 1, random.random(1) < 0.7, np.zeros(1, bool), known_at=NOW)
            for one in instruments
            for day in days
        ]
        with transaction(pipeline.engine) as cursor:
            write_ledger(cursor, Interval.D1, rows)
        summary = RealWorkbench(pipeline).coverage_summary()
    assert summary.picture is not None
    assert len(summary.picture) <= MOST_PICTURE_BYTES
    assert len(summary.worst) == 100
    [daily] = summary.intervals
    assert (daily.interval, daily.first, sum(daily.counts.values())) == (Interval.D1, date(2024, 11, 8), 2_000 * len(days))


def test_an_empty_ledger_is_reported_as_one(instance: dg.DagsterInstance) -> None:
    metadata = materialized(instance, FakeWorkbench())
    assert metadata["missing now"] == 0
    assert "nothing that was asked for is missing" in metadata["gap report"]
    assert "picture" not in metadata


def test_what_was_given_up_is_counted_apart(told: Settings) -> None:
    with open_pipeline(told) as pipeline:
        with pipeline.engine.begin() as connection:
            connection.exec_driver_sql("update coverage set next_attempt_at = null")
        summary = coverage_summary(pipeline)
    assert [(line.plan, line.bars) for line in summary.missing] == [(Plan.GIVEN_UP, 3)]
    assert summary.intervals[0].by_tier[Tier.T0][Verdict.MISSING] == 3
    assert summary.intervals[0].given_up == 3
    assert "3 bars given up: `mdp gaps --retry` asks again" in report_of(summary)


def test_the_asset_is_below_every_candle_asset() -> None:
    graph = build_definitions(Settings(), default_plan(), workbenches=FakeWorkbench()).resolve_asset_graph()
    assert graph.get(KEY).parent_keys == {dg.AssetKey(["candles", str(interval)]) for interval in Interval}


def test_a_look_that_is_not_over_is_not_joined_by_another(tmp_path: Path) -> None:
    # A tick wants an instance that another process could open.
    instance = dg.DagsterInstance.local_temp(str(tmp_path))
    definitions = build_definitions(Settings(), default_plan(), workbenches=FakeWorkbench())
    schedule = coverage_schedule()
    context = dg.build_schedule_context(instance, scheduled_execution_time=NOW)
    assert schedule.evaluate_tick(context).run_requests
    instance.create_run_for_job(definitions.resolve_job_def(COVERAGE), status=dg.DagsterRunStatus.STARTED)
    assert "still looks" in str(schedule.evaluate_tick(context).skip_message)
