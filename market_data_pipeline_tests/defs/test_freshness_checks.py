"""Promises about the newest candles, as Dagster shows them: when they fail, how badly, what they say, when they are silent."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import pytest
from pydantic import SecretStr

from market_data_pipeline.defs.build import build_definitions
from market_data_pipeline.defs.candles import heartbeat
from market_data_pipeline.defs.freshness_checks import (
    COMPLETE,
    DEAD,
    HORIZON,
    LEFT_FAILED,
    ON_TIME,
    SANE,
    SHOWN,
    check_keys,
    checks_schedule,
    complete_result,
    horizon_result,
    on_time_result,
)
from market_data_pipeline.defs.materialize import report_runless
from market_data_pipeline.defs.partitions import materialization
from market_data_pipeline.defs.tags import CHECKS
from market_data_pipeline.defs.workbench import Workbenches
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.freshness import Census, FreshnessLine, StaleSymbol
from market_data_pipeline.domain.partitions import Cell, default_plan, plan_partitions
from market_data_pipeline.domain.promises import Share
from market_data_pipeline.domain.quality import Step
from market_data_pipeline.domain.queue import DeadGrowth
from market_data_pipeline.domain.sessions import trading_calendar
from market_data_pipeline.domain.universe import Tier, UniverseEntry
from market_data_pipeline.ingest.promises import IncompleteSymbol, OddPrice, PriceSanity, SessionCompleteness
from market_data_pipeline.settings import Settings, numbers_by_tier
from market_data_pipeline.wiring import open_pipeline
from market_data_pipeline_tests.cli.builders import store
from market_data_pipeline_tests.defs.fakes import NOW, FakeWorkbench, failing, ledger_row, universe
from market_data_pipeline_tests.defs.instances import BATCHED, PLAN, STOCK, run_box, sqlite_instance

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TARGETS = numbers_by_tier(Settings().slo_targets)
FRIDAY = date(2024, 3, 8)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as opened:
        opened.add_dynamic_partitions("symbols", ["AAPL", "IBM", "MSFT"])
        yield opened


def line(tier: Tier, *, symbols: int, stale: int, interval: Interval = Interval.M1, is_over: bool = False) -> FreshnessLine:
    lag = 600.0 if stale else 0.0
    return FreshnessLine(tier, interval, symbols, stale, 100 * symbols, stale, lag, 0.0, is_over=is_over)


def late(symbol: str, tier: Tier = Tier.T0) -> StaleSymbol:
    at = datetime(2024, 3, 8, 15, 30, tzinfo=UTC)
    return StaleSymbol(1, symbol, tier, Interval.M1, FRIDAY, at, behind=10, lag_seconds=600.0, is_answered=False)


def census(*lines: FreshnessLine, stale: tuple[StaleSymbol, ...] = ()) -> Census:
    return Census(NOW, lines, stale)


def evaluated(
    instance: dg.DagsterInstance,
    workbenches: Any,  # noqa: ANN401 - either kind of workbench
    interval: Interval = Interval.M1,
    *,
    settings: Settings | None = None,
) -> dict[str, dg.AssetCheckEvaluation]:
    """The checks of one asset, in a run of the job."""
    definitions = build_definitions(settings or Settings(), PLAN, workbenches=workbenches)
    keys = [key for key in check_keys() if key.asset_key.path[-1] == interval.value and key.name != "providers_agree"]
    job = dg.define_asset_job("some_checks", selection=dg.AssetSelection.checks(*keys))
    run = dg.Definitions.merge(definitions, dg.Definitions(jobs=[job])).resolve_job_def("some_checks")
    found = run.execute_in_process(instance=instance, raise_on_error=False).get_asset_check_evaluations()
    return {evaluation.check_name: evaluation for evaluation in found}


def text_of(evaluation: dg.AssetCheckEvaluation, name: str) -> str:
    return str(evaluation.metadata[name].value)


# --- which there are


def test_every_interval_asset_has_five_promises_and_the_pipeline_two() -> None:
    definitions = build_definitions(Settings(), PLAN, workbenches=FakeWorkbench())
    keys = {check for checks in definitions.asset_checks or () for check in checks.check_keys}
    for interval in Interval:
        names = {key.name for key in keys if key.asset_key.path == ["candles", interval.value]} - {"providers_agree"}
        assert names == {ON_TIME, COMPLETE, SANE, SHOWN, LEFT_FAILED}
    assert {key.name for key in keys if key.asset_key.path == ["coverage"]} == {DEAD, HORIZON}
    assert set(check_keys()) <= keys


def test_one_run_evaluates_all_and_costs_few_events(instance: dg.DagsterInstance) -> None:
    job = build_definitions(Settings(), PLAN, workbenches=FakeWorkbench()).resolve_job_def(CHECKS)
    result = job.execute_in_process(instance=instance)
    assert {evaluation.asset_check_key for evaluation in result.get_asset_check_evaluations()} == set(check_keys())
    assert all(evaluation.passed for evaluation in result.get_asset_check_evaluations())
    # 96 runs a day at most: what a run leaves in the event log is some hundred rows.
    assert len(instance.all_logs(result.run_id)) < 300


def test_a_run_of_candles_runs_none_of_them() -> None:
    job = build_definitions(Settings(), PLAN, workbenches=FakeWorkbench()).resolve_job_def("candles_1d")
    assert list(job.graph.node_dict) == ["fetch_candles_1d"]


# --- the newest candle


def test_one_late_t0_symbol_within_the_target_is_a_warning(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(now_fresh=census(line(Tier.T0, symbols=1_000, stale=1), stale=(late("AAPL"),)))
    found = evaluated(instance, workbench)[ON_TIME]
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert found.description == "1 of 1,000 T0 symbols are late; the worst: AAPL, by 10 minutes"
    assert "mdp backfill --symbols AAPL --interval 1m --start 2024-03-08 --end 2024-03-08" in text_of(found, "what to do")
    table = found.metadata["late symbols"]
    assert isinstance(table, dg.TableMetadataValue)
    assert [record.data["symbol"] for record in table.records] == ["AAPL"]


def test_t0_beyond_its_target_is_an_error() -> None:
    result = on_time_result(census(line(Tier.T0, symbols=100, stale=1)), Interval.M1, TARGETS)
    assert (result.passed, result.severity) == (False, dg.AssetCheckSeverity.ERROR)


@pytest.mark.parametrize(("stale", "passed"), [(50, True), (51, False)])
def test_lower_tiers_may_be_late_within_their_target(stale: int, passed: bool) -> None:  # noqa: FBT001 - a parameter of the test
    result = on_time_result(census(line(Tier.T2, symbols=1_000, stale=stale)), Interval.M1, TARGETS)
    assert (result.passed, result.severity) == (passed, dg.AssetCheckSeverity.WARN)


def test_another_interval_being_late_is_not_this_ones_failure() -> None:
    found = census(line(Tier.T0, symbols=100, stale=9, interval=Interval.H1), stale=(late("AAPL"),))
    assert on_time_result(found, Interval.D1, TARGETS).passed


def test_while_nothing_is_due_the_check_passes_and_says_why() -> None:
    result = on_time_result(census(), Interval.M1, TARGETS)
    assert (result.passed, result.description) == (
        True,
        "nothing is due now: no market is open, or nothing of this interval is followed",
    )
    over = on_time_result(census(line(Tier.T0, symbols=5, stale=0, is_over=True)), Interval.M1, TARGETS)
    assert over.passed
    assert "session_is_complete" in str(over.description)


def stocked(database_url: str, tmp_path: Path, clock: str, *sessions: date, lacking: tuple[int, ...] = ()) -> Settings:
    """AAPL of T0 with its minutes of these sessions; the last without some."""
    settings = Settings(home=tmp_path, database_url=SecretStr(database_url), clock=clock)
    with open_pipeline(settings) as pipeline:
        entries = [UniverseEntry("AAPL", "XNAS", Tier.T0)]
        pipeline.universe.load(entries, version_tag="t", source="t", source_sha256="0" * 64, loaded_by="t")
        at = datetime.fromisoformat(clock)
        for session in sessions:
            store(pipeline, "AAPL", session, lacking=lacking if session == sessions[-1] else (), known_at=at)
    return settings


WEDNESDAY, HALF_DAY = date(2024, 11, 27), date(2024, 11, 29)


@pytest.mark.parametrize(
    ("clock", "passed"),
    [
        pytest.param("2024-11-28T16:00:00+00:00", True, id="Thanksgiving"),
        pytest.param("2024-12-01T16:00:00+00:00", True, id="Sunday"),
        pytest.param("2024-11-29T14:31:00+00:00", True, id="the first minute"),
        pytest.param("2024-11-29T15:00:00+00:00", False, id="half an hour into the half day"),
        pytest.param("2024-11-29T18:05:00+00:00", False, id="13:05 on the half day"),
        pytest.param("2024-11-30T16:00:00+00:00", True, id="the Saturday after"),
    ],
)
def test_the_calendar_says_when_a_symbol_is_late(
    instance: dg.DagsterInstance, database_url: str, tmp_path: Path, clock: str, *, passed: bool
) -> None:
    """Nothing came since Wednesday's close."""
    settings = stocked(database_url, tmp_path, clock, WEDNESDAY)
    found = evaluated(instance, Workbenches(settings), settings=settings)[ON_TIME]
    assert found.passed is passed, (found.description, found.metadata)


def test_backfilling_an_old_partition_never_makes_a_stale_asset_fresh(
    instance: dg.DagsterInstance, database_url: str, tmp_path: Path
) -> None:
    settings = stocked(database_url, tmp_path, "2024-12-04T16:00:00+00:00", date(2024, 12, 3))
    before = evaluated(instance, Workbenches(settings), settings=settings)[ON_TIME]
    old = Cell("2024-03-04", "AAPL")
    assert run_box(instance, FakeWorkbench(universe("AAPL")), old, old).success
    assert instance.get_materialized_partitions(dg.AssetKey(["candles", "1m"])) == {old.key}
    after = evaluated(instance, Workbenches(settings), settings=settings)[ON_TIME]
    assert (before.passed, after.passed, after.severity) == (False, False, dg.AssetCheckSeverity.ERROR)


# --- the newest session


def lacking(tier: Tier, *, missing: int, of: int) -> SessionCompleteness:
    worst = IncompleteSymbol("IBM", tier, "XNYS", FRIDAY, missing, given_up=0, unasked=0)
    return SessionCompleteness(
        NOW, {"XNYS": FRIDAY}, {tier: Share(missing, of)}, symbols_incomplete=1, incomplete=[worst] if missing else []
    )


@pytest.mark.parametrize(
    ("tier", "missing", "passed", "severity"),
    [
        (Tier.T0, 0, True, dg.AssetCheckSeverity.WARN),
        (Tier.T0, 1, False, dg.AssetCheckSeverity.WARN),
        (Tier.T0, 6, False, dg.AssetCheckSeverity.ERROR),
        (Tier.T1, 20, True, dg.AssetCheckSeverity.WARN),
        (Tier.T1, 21, False, dg.AssetCheckSeverity.WARN),
    ],
)
def test_how_much_a_session_may_lack_depends_on_the_tier(
    tier: Tier,
    missing: int,
    passed: bool,  # noqa: FBT001 - a parameter of the test
    severity: dg.AssetCheckSeverity,
) -> None:
    result = complete_result(lacking(tier, missing=missing, of=1_000), Interval.M1, TARGETS)
    assert (result.passed, result.severity) == (passed, severity)


def test_an_incomplete_session_says_what_to_do(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(complete={Interval.M5: lacking(Tier.T0, missing=3, of=78)})
    found = evaluated(instance, workbench, Interval.M5)[COMPLETE]
    assert found.description == "T0 lacks 3 of 78 bars"
    assert "`mdp gaps --symbols IBM --interval 5m --explain`" in text_of(found, "what to do")
    assert "mdp backfill --symbols IBM --interval 1m --start 2024-03-08" in text_of(found, "what to do")


def test_a_session_is_judged_once_its_time_is_up(instance: dg.DagsterInstance, database_url: str, tmp_path: Path) -> None:
    """Tuesday's lacks two minutes; an hour after its close Monday's is still the newest that is judged."""
    told = stocked(database_url, tmp_path, "2024-12-03T22:00:00+00:00", date(2024, 12, 2), date(2024, 12, 3), lacking=(5, 6))
    early = evaluated(instance, Workbenches(told), settings=told)[COMPLETE]
    later = told.model_copy(update={"clock": "2024-12-03T23:30:00+00:00"})
    late_ = evaluated(instance, Workbenches(later), settings=later)[COMPLETE]
    assert (early.passed, text_of(early, "sessions")) == (True, "XNYS 2024-12-02")
    assert (late_.passed, late_.severity, late_.description) == (
        False,
        dg.AssetCheckSeverity.ERROR,
        "T0 lacks 2 of 390 bars",
    )


def test_a_session_that_nobody_asked_for_is_not_taken_for_complete(
    instance: dg.DagsterInstance, database_url: str, tmp_path: Path
) -> None:
    told = stocked(database_url, tmp_path, "2024-12-03T23:30:00+00:00")
    found = evaluated(instance, Workbenches(told), settings=told)[COMPLETE]
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "mdp status" in text_of(found, "what to do")


# --- prices


def odd(*, is_wrong: bool, is_agreed: bool = False) -> PriceSanity:
    step = Step(0, 100.0, is_wrong, "a factor of a hundred: another unit")
    price = OddPrice("IBM", Tier.T0, datetime(2024, 3, 8, 15, tzinfo=UTC), FRIDAY, 10_000.0, 100.0, step, is_agreed)
    return PriceSanity(NOW, {"XNYS": FRIDAY}, 3, [price])


def test_a_price_that_is_off_by_a_factor_is_an_error_with_the_way_out(instance: dg.DagsterInstance) -> None:
    found = evaluated(instance, FakeWorkbench(prices={Interval.M1: odd(is_wrong=True)}))[SANE]
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "mdp agreement --ask --symbols IBM --interval 1m --start 2024-03-08 --end 2024-03-08" in text_of(found, "what to do")


def test_a_move_that_may_be_real_warns_until_a_second_provider_agrees(instance: dg.DagsterInstance) -> None:
    doubtful = evaluated(instance, FakeWorkbench(prices={Interval.M1: odd(is_wrong=False)}))[SANE]
    agreed = evaluated(instance, FakeWorkbench(prices={Interval.M1: odd(is_wrong=False, is_agreed=True)}))[SANE]
    assert (doubtful.passed, doubtful.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert agreed.passed


def a_users_asset(made: list[str], condition: dg.AutomationCondition[Any] | None = None) -> dg.AssetsDefinition:
    """An indicator below candles/1d, in a user's own code beside ours."""

    @dg.asset(deps=[dg.AssetKey(["candles", "1d"])], automation_condition=condition)
    def my_indicator() -> None:
        made.append("my_indicator")

    return my_indicator


DAILY_PRICES = dg.AssetCheckKey(dg.AssetKey(["candles", "1d"]), SANE)


@pytest.mark.parametrize(("prices", "ran"), [(odd(is_wrong=True), False), (odd(is_wrong=False), True)])
def test_a_users_asset_that_runs_behind_the_check_waits_while_prices_are_wrong(
    instance: dg.DagsterInstance,
    prices: PriceSanity,
    ran: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """An error stops it, a warning does not."""
    made: list[str] = []
    workbench = FakeWorkbench(universe("AAPL"), prices={Interval.D1: prices})
    mine = a_users_asset(made)
    job = dg.define_asset_job("mine", selection=dg.AssetSelection.checks(DAILY_PRICES) | dg.AssetSelection.assets(mine))
    ours = build_definitions(Settings(), PLAN, workbenches=workbench)
    merged = dg.Definitions.merge(ours, dg.Definitions(assets=[mine], jobs=[job]))
    result = merged.resolve_job_def("mine").execute_in_process(instance=instance, raise_on_error=False)
    assert (made == ["my_indicator"]) is ran
    assert result.success is ran


@pytest.mark.parametrize(("prices", "asked_for"), [(odd(is_wrong=True), 0), (PriceSanity(NOW), 1)])
def test_a_users_asset_that_is_automated_waits_while_prices_are_wrong(
    instance: dg.DagsterInstance, prices: PriceSanity, asked_for: int
) -> None:
    condition = dg.AutomationCondition.missing() & dg.AutomationCondition.all_deps_blocking_checks_passed()
    workbench = FakeWorkbench(universe("AAPL"), prices={Interval.D1: prices})
    mine = a_users_asset([], condition)
    merged = dg.Definitions.merge(build_definitions(Settings(), PLAN, workbenches=workbench), dg.Definitions(assets=[mine]))
    evaluated(instance, workbench, Interval.D1)
    asked = dg.evaluate_automation_conditions(defs=merged, instance=instance, asset_selection=dg.AssetSelection.assets(mine))
    assert asked.total_requested == asked_for


# --- Dagster and the ledger


def settled_on(*symbols_of: tuple[int, date]) -> list[Any]:
    return [ledger_row(symbol_id, session) for symbol_id, session in symbols_of]


def test_a_partition_that_the_ledger_has_and_dagster_does_not_show_is_named(instance: dg.DagsterInstance) -> None:
    monday = date(2024, 3, 4)
    workbench = FakeWorkbench(
        universe("AAPL"), rows=settled_on((1, monday), (1, date(2024, 3, 5))), at=datetime(2024, 3, 6, 12, tzinfo=UTC)
    )
    cell = Cell("2024-03-04", "AAPL")
    run_box(instance, workbench, cell, cell)
    found = evaluated(instance, workbench)[SHOWN]
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    table = found.metadata["partitions"]
    assert isinstance(table, dg.TableMetadataValue)
    assert [record.data["partition"] for record in table.records] == ["2024-03-05|AAPL"]
    other = Cell("2024-03-05", "AAPL")
    run_box(instance, workbench, other, other)
    assert evaluated(instance, workbench)[SHOWN].passed


def test_a_partition_that_dagster_shows_and_the_ledger_has_not_is_named(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(universe("AAPL"), at=datetime(2024, 3, 6, 12, tzinfo=UTC))
    cell = Cell("2024-03-05", "AAPL")
    run_box(instance, workbench, cell, cell)
    found = evaluated(instance, workbench)[SHOWN]
    assert found.description == "0 partitions are not shown in Dagster, 1 are shown and not in the ledger"
    assert "mdp reconcile --repair" in text_of(found, "what to do")


def test_what_a_failed_run_left_is_named_until_the_ledger_has_it(instance: dg.DagsterInstance) -> None:
    first, last = Cell("2024-03-04", "AAPL"), Cell("2024-03-04", "MSFT")
    rows = [ledger_row(1, date(2024, 3, 4)), ledger_row(2, date(2024, 3, 4))]
    workbench = FakeWorkbench(universe("AAPL", "IBM", "MSFT"), rows=rows, outcome=failing("MSFT"))
    assert not run_box(instance, workbench, first, last).success
    found = evaluated(instance, workbench)[LEFT_FAILED]
    assert (found.passed, found.description) == (False, "1 partitions failed and are still missing")
    assert "mdp backfill --symbols MSFT --interval 1m --start 2024-03-04 --end 2024-03-04" in text_of(found, "what to do")
    workbench.rows = [*rows, ledger_row(3, date(2024, 3, 4))]
    assert evaluated(instance, workbench)[LEFT_FAILED].passed


# --- the pipeline


def test_dead_letters_of_the_last_hour_are_told_with_their_reasons(instance: dg.DagsterInstance) -> None:
    job = build_definitions(
        Settings(), PLAN, workbenches=FakeWorkbench(dead=DeadGrowth(12, [("yahoo: no answer", 3)]))
    ).resolve_job_def(CHECKS)
    found = {e.check_name: e for e in job.execute_in_process(instance=instance).get_asset_check_evaluations()}[DEAD]
    assert (found.passed, found.description) == (False, "3 within the last hour, 12 in all")


def test_a_calendar_that_ends_soon_is_told_two_months_before() -> None:
    near = horizon_result({"XNYS": date(2024, 5, 6), "XLON": date(2025, 12, 31)}, NOW)
    far = horizon_result({"XNYS": date(2024, 5, 7)}, NOW)
    assert (near.passed, near.description) == (False, "XNYS ends in 59 days")
    assert far.passed


# --- when, and the heartbeat


def test_between_sessions_the_checks_run_once_an_hour(tmp_path: Path) -> None:
    instance = dg.DagsterInstance.local_temp(str(tmp_path))
    sunday = FakeWorkbench(universe("AAPL"), at=datetime(2024, 3, 10, 15, tzinfo=UTC))
    monday = FakeWorkbench(universe("AAPL"), at=datetime(2024, 3, 11, 15, tzinfo=UTC))

    def asks(workbench: FakeWorkbench, minute: int) -> bool:
        at = datetime(2024, 3, 10, 15, minute, tzinfo=UTC)
        context = dg.build_schedule_context(instance, scheduled_execution_time=at, resources={"workbenches": workbench})
        return bool(checks_schedule().evaluate_tick(context).run_requests)

    assert [asks(sunday, minute) for minute in (5, 20, 35, 50)] == [True, False, False, False]
    assert [asks(monday, minute) for minute in (5, 20, 35, 50)] == [True, True, True, True]


def test_the_heartbeat_outlasts_the_longest_pause_of_the_plans_exchanges() -> None:
    def of(*names: str) -> timedelta:
        calendars = [trading_calendar(name) for name in names]
        return heartbeat(
            plan_partitions(symbols=3, calendars=calendars, start=date(2023, 1, 2), today=date(2024, 3, 1), budget=60_000)
        )

    assert (of("XNYS"), heartbeat(default_plan())) == (timedelta(days=5), timedelta(days=5))
    # Ten days of Golden Week, and one.
    assert of("XTKS") >= timedelta(days=6)
    specs = build_definitions(Settings(), PLAN, workbenches=FakeWorkbench()).resolve_all_asset_specs()
    assert {s.key.path[0] for s in specs if s.freshness_policy is not None} == {"candles"}


@pytest.mark.parametrize("event_log", [STOCK, BATCHED])
def test_what_is_reported_without_a_run_counts_as_a_sign_of_life(tmp_path: Path, event_log: str) -> None:
    """Dagster's freshness reads the asset's own row: partitions that jobs and `mdp reconcile` report must change it, too."""
    key = dg.AssetKey(["candles", "1m"])
    with sqlite_instance(tmp_path / "home", event_log) as instance:
        assert report_runless(instance, [materialization(key, Cell("2024-03-04", "AAPL"), {})]) == 1
        event = instance.get_latest_materialization_event(key)
        assert event is not None
        assert event.timestamp > NOW.timestamp()


# --- stored prices


def test_prices_stored_off_by_a_factor_are_found_whatever_let_them_in(
    instance: dg.DagsterInstance, database_url: str, tmp_path: Path
) -> None:
    """From 100 to 10,000 in one minute, stored behind the judge's back, and the same minutes again at their level."""
    told = stocked(database_url, tmp_path, "2024-12-03T20:00:00+00:00", date(2024, 12, 3))
    with open_pipeline(told) as pipeline, pipeline.engine.begin() as connection:
        connection.exec_driver_sql(
            "update candles_intraday set open = open * 100, high = high * 100, low = low * 100, close = close * 100, "
            "as_of = as_of + interval '1 second' where opened_at = '2024-12-03 15:00Z'"
        )
    found = evaluated(instance, Workbenches(told), settings=told)[SANE]
    assert (found.passed, found.severity, found.metadata["wrong"].value) == (False, dg.AssetCheckSeverity.ERROR, 2)


def test_sound_prices_pass(instance: dg.DagsterInstance, database_url: str, tmp_path: Path) -> None:
    told = stocked(database_url, tmp_path, "2024-12-03T20:00:00+00:00", date(2024, 12, 3))
    found = evaluated(instance, Workbenches(told), settings=told)[SANE]
    assert (found.passed, found.metadata["symbols looked at"].value) == (True, 1)
    assert np.isclose(float(str(found.metadata["wrong"].value)), 0)
