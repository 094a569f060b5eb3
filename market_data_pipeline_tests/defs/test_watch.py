"""Alerts in Dagster: what a tick of the watch shows, how few events it leaves, and what becomes of failed runs and checks."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
from pydantic import SecretStr

from market_data_pipeline.defs.build import build_definitions
from market_data_pipeline.defs.freshness_checks import DEAD, HORIZON, ON_TIME, SANE
from market_data_pipeline.defs.watch import ALERTS_KEY, NO_ALERT, TOLD_ELSEWHERE, evaluations_since
from market_data_pipeline.defs.workbench import Workbenches
from market_data_pipeline.domain.alerts import Alert, AlertState, Severity
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.failures import Failure, FailureKind, failure_look
from market_data_pipeline.domain.freshness import Census, FreshnessLine
from market_data_pipeline.domain.runs import CAUSE
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.settings import Settings
from market_data_pipeline.storage.failures import FailureStore
from market_data_pipeline.wiring import open_pipeline
from market_data_pipeline_tests.defs.fakes import NOW, FakeWorkbench, universe
from market_data_pipeline_tests.defs.instances import (
    BATCHED,
    PLAN,
    STOCK,
    empty_database,
    postgres_instance,
    sqlite_instance,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy.engine import Engine

MINUTES = dg.AssetKey(["candles", "1m"])


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as opened:
        yield opened


def late(count: int) -> Census:
    return Census(NOW, [FreshnessLine(Tier.T0, Interval.M1, 100, count, 39_000, 0, 300.0, 0.0)])


def alert(rule: str = "SymbolStale", key: str = "1m/T0", severity: Severity = Severity.WARNING) -> Alert:
    return Alert(rule, key, severity, AlertState.FIRING, NOW, NOW, 1.0, "AAPL is late by 10 minutes.", fired_at=NOW)


def ticked(
    workbench: FakeWorkbench, instance: dg.DagsterInstance, cursor: str | None = None, *, name: str = "watch"
) -> dg.SensorResult:
    """One tick, its events stored as the daemon stores them."""
    definitions = build_definitions(Settings(), PLAN, workbenches=workbench)
    context = dg.build_sensor_context(
        instance=instance, definitions=definitions, cursor=cursor, resources={"workbenches": workbench}
    )
    result = definitions.resolve_sensor_def(name)(context)
    assert isinstance(result, dg.SensorResult)
    for event in result.asset_events:
        instance.report_runless_asset_event(event)
    return result


def shown(instance: dg.DagsterInstance, key: dg.AssetKey = MINUTES, name: str = ON_TIME) -> dg.AssetCheckEvaluation:
    record = instance.get_latest_asset_check_evaluation_record(dg.AssetCheckKey(key, name))
    assert record is not None
    assert record.evaluation is not None
    return record.evaluation


# --- the look


def test_a_tick_looks_and_says_in_a_sentence_what_it_saw(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(firing=[alert()])
    result = ticked(workbench, instance)
    assert workbench.watched_by == ["dagster sensor watch"]
    assert result.skip_reason is not None
    assert result.skip_reason.skip_message == "1 firing: SymbolStale 1m/T0"


def test_staleness_is_on_the_page_at_the_next_tick_and_gone_at_the_one_after(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(now_fresh=late(0))
    cursor = ticked(workbench, instance).cursor
    assert shown(instance).passed
    workbench.now_fresh = late(7)
    cursor = ticked(workbench, instance, cursor).cursor
    assert (shown(instance).passed, shown(instance).severity) == (False, dg.AssetCheckSeverity.ERROR)
    workbench.now_fresh = late(0)
    ticked(workbench, instance, cursor)
    assert shown(instance).passed


def test_while_nothing_changes_no_event_is_written(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(now_fresh=late(7), firing=[alert()])
    cursor = ticked(workbench, instance).cursor
    for more in (8, 9, 40):
        workbench.now_fresh = late(more)
        result = ticked(workbench, instance, cursor)
        assert result.asset_events == []
        cursor = result.cursor


def test_what_the_job_said_meanwhile_is_corrected(instance: dg.DagsterInstance) -> None:
    """The job ran in the seconds in which a symbol was late; the ticks before and after never saw it."""
    workbench = FakeWorkbench(now_fresh=late(0))
    cursor = ticked(workbench, instance).cursor
    instance.report_runless_asset_event(dg.AssetCheckEvaluation(asset_key=MINUTES, check_name=ON_TIME, passed=False))
    ticked(workbench, instance, cursor)
    assert shown(instance).passed


def test_checks_that_a_run_of_candles_skipped_are_evaluated_again_once(instance: dg.DagsterInstance) -> None:
    """As the button of an asset's page does it: the asset with its checks, which Dagster then skips."""
    workbench = FakeWorkbench(universe("AAPL"), now_fresh=late(7))
    button = dg.define_asset_job("button", selection=dg.AssetSelection.assets(MINUTES))
    ours = build_definitions(Settings(), PLAN, workbenches=workbench)
    job = dg.Definitions.merge(ours, dg.Definitions(jobs=[button])).resolve_job_def("button")
    instance.add_dynamic_partitions("symbols", ["AAPL"])
    day = dg.MultiPartitionKey({"period": "2024-03-04", "symbol": "AAPL"})
    run = job.execute_in_process(instance=instance, partition_key=day)
    record = instance.get_latest_asset_check_evaluation_record(dg.AssetCheckKey(MINUTES, ON_TIME))
    assert record is not None
    assert record.status.value == "PLANNED"
    [request] = ticked(workbench, instance).run_requests or []
    assert request.run_key == f"skipped by {run.run_id}"
    assert ours.resolve_job_def("candle_checks").execute_in_process(instance=instance).success
    assert not ticked(workbench, instance).run_requests
    assert not shown(instance).passed


def test_the_asset_alerts_shows_what_is_firing_each_time_that_changes(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(firing=[alert()])
    cursor = ticked(workbench, instance).cursor
    failed = shown(instance, ALERTS_KEY, NO_ALERT)
    assert (failed.passed, failed.severity) == (False, dg.AssetCheckSeverity.WARN)
    workbench.firing = [alert(severity=Severity.CRITICAL), alert("DiskFilling", "")]
    cursor = ticked(workbench, instance, cursor).cursor
    assert shown(instance, ALERTS_KEY, NO_ALERT).severity is dg.AssetCheckSeverity.ERROR
    workbench.firing = []
    ticked(workbench, instance, cursor)
    assert shown(instance, ALERTS_KEY, NO_ALERT).passed
    events = instance.fetch_materializations(ALERTS_KEY, limit=10).records
    assert [record.asset_materialization.metadata["firing"].value for record in events if record.asset_materialization] == [0, 2, 1]


def test_the_check_of_alerts_can_be_run_by_hand(instance: dg.DagsterInstance) -> None:
    definitions = build_definitions(Settings(), PLAN, workbenches=FakeWorkbench(firing=[alert()]))
    job = dg.define_asset_job("by_hand", selection=dg.AssetSelection.checks(dg.AssetCheckKey(ALERTS_KEY, NO_ALERT)))
    merged = dg.Definitions.merge(definitions, dg.Definitions(jobs=[job]))
    [found] = merged.resolve_job_def("by_hand").execute_in_process(instance=instance).get_asset_check_evaluations()
    assert (found.passed, found.description) == (False, "1 firing: SymbolStale 1m/T0")


# --- failed runs


@dg.op
def breaks() -> None:
    raise dg.Failure("the disk is on fire: https://user:hunter2secret@vendor.example/?apikey=hunter2secret")


@dg.op
def fine() -> None:
    """Nothing."""


def a_job(op: Any, *, name: str = "mine", tags: dict[str, str] | None = None) -> dg.JobDefinition:  # noqa: ANN401 - an op
    @dg.job(name=name, tags=tags or {})
    def job() -> None:
        op()

    return job


def run_of(op: Any, instance: dg.DagsterInstance, **told: Any) -> dg.ExecuteInProcessResult:  # noqa: ANN401
    return a_job(op, **told).execute_in_process(instance=instance, raise_on_error=False)


def heard(result: dg.ExecuteInProcessResult, workbench: FakeWorkbench | Workbenches, instance: dg.DagsterInstance) -> None:
    """What the sensor does with a run that failed."""
    definitions = build_definitions(Settings(), PLAN, workbenches=workbench)
    context = dg.build_run_status_sensor_context(
        sensor_name="run_failures",
        dagster_instance=instance,
        dagster_run=result.dagster_run,
        dagster_event=result.get_run_failure_event(),
        resources={"workbenches": workbench},
    ).for_run_failure()
    definitions.resolve_sensor_def("run_failures")(context)


def test_a_failed_run_is_noted_with_the_steps_own_words(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench()
    heard(run_of(breaks, instance), workbench, instance)
    [failure] = workbench.failures()
    assert (failure.kind, failure.name) == (FailureKind.RUN, "mine")
    assert failure.detail.startswith("the disk is on fire")


@pytest.mark.parametrize("cause", ["gap", "recheck", "jobs"])
def test_runs_that_are_asked_for_again_by_themselves_are_no_alert(instance: dg.DagsterInstance, cause: str) -> None:
    workbench = FakeWorkbench()
    heard(run_of(breaks, instance, tags={CAUSE: cause}), workbench, instance)
    assert workbench.failures() == []


def test_a_job_that_fails_each_minute_is_one_finding_until_it_succeeds(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench()
    for _ in range(3):
        heard(run_of(breaks, instance), workbench, instance)
    look = failure_look(workbench.failures(), NOW)
    assert [(finding.rule, finding.key, finding.labels) for finding in look.findings] == [("RunFailed", "mine", {"job": "mine"})]
    run_of(fine, instance, name="another")
    ticked(workbench, instance)
    assert len(workbench.failures()) == 1
    run_of(fine, instance)
    ticked(workbench, instance)
    assert workbench.failures() == []


def test_a_success_of_before_does_not_clear_a_failure(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench()
    run_of(fine, instance)
    heard(run_of(breaks, instance), workbench, instance)
    ticked(workbench, instance)
    assert len(workbench.failures()) == 1


def test_a_failed_run_is_over_after_a_day_and_a_failed_check_is_not() -> None:
    failures = [Failure(FailureKind.RUN, "mine", "why", NOW), Failure(FailureKind.CHECK, "a/b:c", "why", NOW)]
    rules = [finding.rule for finding in failure_look(failures, NOW + timedelta(days=1)).findings]
    assert rules == ["CheckFailed"]


def test_a_run_that_only_a_blocking_check_stopped_is_the_checks_alert(instance: dg.DagsterInstance) -> None:
    @dg.asset
    def mine() -> None: ...

    @dg.asset_check(asset=mine, blocking=True)
    def never():  # type: ignore[no-untyped-def] # noqa: ANN202 - Dagster reads annotations, and these would be text
        return dg.AssetCheckResult(passed=False)

    definitions = dg.Definitions(assets=[mine], asset_checks=[never], jobs=[dg.define_asset_job("both", "*")])
    result = definitions.resolve_job_def("both").execute_in_process(instance=instance, raise_on_error=False)
    workbench = FakeWorkbench()
    heard(result, workbench, instance)
    assert (result.success, workbench.failures()) == (False, [])


# --- failed checks


def tell(
    instance: dg.DagsterInstance,
    *,
    passed: bool,
    key: dg.AssetKey = MINUTES,
    name: str = "providers_agree",
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
) -> None:
    instance.report_runless_asset_event(
        dg.AssetCheckEvaluation(asset_key=key, check_name=name, passed=passed, severity=severity, description="3 of 9 differ")
    )


def test_a_check_that_does_not_pass_is_noted_until_it_does(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench()
    tell(instance, passed=False)
    tell(instance, passed=False, key=dg.AssetKey("somebody_elses"), name="is_right", severity=dg.AssetCheckSeverity.WARN)
    cursor = ticked(workbench, instance, name="check_failures").cursor
    assert {(f.name, f.is_warning) for f in workbench.failures()} == {
        ("candles/1m:providers_agree", False),
        ("somebody_elses:is_right", True),
    }
    found = failure_look(workbench.failures(), NOW).findings
    assert {finding.severity for finding in found} == {None, Severity.INFO}
    tell(instance, passed=True)
    ticked(workbench, instance, cursor, name="check_failures")
    assert [failure.name for failure in workbench.failures()] == ["somebody_elses:is_right"]


def test_only_the_last_evaluation_counts(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench()
    tell(instance, passed=False)
    tell(instance, passed=True)
    ticked(workbench, instance, name="check_failures")
    assert workbench.failures() == []


def test_checks_with_an_alert_of_their_own_are_left_to_it(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench()
    for key in TOLD_ELSEWHERE:
        tell(instance, passed=False, key=key.asset_key, name=key.name)
    ticked(workbench, instance, name="check_failures")
    assert workbench.failures() == []
    assert {key.name for key in TOLD_ELSEWHERE} == {ON_TIME, DEAD, HORIZON, NO_ALERT}


def _only(*names: str) -> dg.JobDefinition:
    definitions = build_definitions(Settings(), PLAN, workbenches=FakeWorkbench())
    selection = dg.AssetSelection.checks(*(dg.AssetCheckKey(MINUTES, name) for name in names))
    job = dg.define_asset_job("only", selection=selection)
    return dg.Definitions.merge(definitions, dg.Definitions(jobs=[job])).resolve_job_def("only")


@contextmanager
def an_instance(kind: str, event_log: str, home: Path, server: str) -> Iterator[dg.DagsterInstance]:
    if kind == "sqlite":
        with sqlite_instance(home, event_log) as opened:
            yield opened
        return
    with empty_database(server) as url, postgres_instance(home, event_log, url) as opened:
        yield opened


@pytest.mark.parametrize("event_log", [STOCK, BATCHED])
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_evaluations_are_read_from_every_event_log_in_order_and_once(
    kind: str, event_log: str, tmp_path: Path, postgres_url: str
) -> None:
    """The contract with Dagster: evaluations of runs and those without a run, after a cursor, the oldest first."""
    with an_instance(kind, event_log, tmp_path / "home", postgres_url) as instance:
        tell(instance, passed=False)
        tell(instance, passed=True, name="other")
        assert _only(SANE, "providers_agree").execute_in_process(instance=instance).success
        ours = [dg.AssetCheckKey(MINUTES, name) for name in ("providers_agree", "other", SANE)]
        latest, cursor = evaluations_since(instance, 0, ours)
        assert latest[dg.AssetCheckKey(MINUTES, "providers_agree")].passed
        assert latest[dg.AssetCheckKey(MINUTES, "other")].passed
        assert dg.AssetCheckKey(MINUTES, SANE) in latest
        assert evaluations_since(instance, cursor, ours) == ({}, cursor)
        tell(instance, passed=False)
        again, _ = evaluations_since(instance, cursor, ours)
        assert [(key.name, found.passed) for key, found in again.items()] == [("providers_agree", False)]


# --- in the database


def test_what_is_kept_counts_in_a_row_and_holds_no_secret(engine: Engine) -> None:
    store = FailureStore(engine)
    at = datetime(2024, 3, 8, 22, tzinfo=UTC)
    words = "it broke: https://user:hunter2secret@vendor.example/?apikey=hunter2secret"
    for minutes in range(3):
        store.note(Failure(FailureKind.RUN, "mine", words, at + timedelta(minutes=minutes), run_id=f"run{minutes}"))
    store.note(Failure(FailureKind.CHECK, "a/b:c", "x" * 9_000, at, is_warning=True))
    check, run = store.all()
    assert (run.failures, run.since, run.failed_at, run.run_id) == (3, at, at + timedelta(minutes=2), "run2")
    assert "hunter2secret" not in run.detail
    assert (check.is_warning, len(check.detail)) == (True, 500)
    assert (store.forget(FailureKind.RUN, ["mine", "unknown"]), [one.name for one in store.all()]) == (1, ["a/b:c"])


def test_a_failed_run_becomes_an_alert_by_the_real_watch(instance: dg.DagsterInstance, database_url: str, tmp_path: Path) -> None:
    """From Dagster's event to a firing alert in the database, shown on the asset `alerts`."""
    settings = Settings(home=tmp_path, database_url=SecretStr(database_url), clock="2024-03-09T12:00:00+00:00")
    workbenches = Workbenches(settings)
    heard(run_of(breaks, instance), workbenches, instance)
    definitions = build_definitions(settings, PLAN, workbenches=workbenches)
    context = dg.build_sensor_context(instance=instance, definitions=definitions, resources={"workbenches": workbenches})
    result = definitions.resolve_sensor_def("watch")(context)
    assert isinstance(result, dg.SensorResult)
    assert "RunFailed mine" in str(result.skip_reason)
    with open_pipeline(settings) as pipeline, pipeline.engine.connect() as connection:
        rows = connection.exec_driver_sql("select key, state, text from alerts where rule = 'RunFailed'").fetchall()
    [(key, state, text)] = rows
    assert (key, state) == ("mine", "firing")
    assert "hunter2secret" not in text
