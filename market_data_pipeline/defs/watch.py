"""Alerts in Dagster: the sensor that looks, those that hear of failed runs and checks, and the asset that shows what is firing.

Dagster of its own tells nobody of anything; who is told, and how, is the alerts file (docs/alerts.md). Who comes first looks: the
sensor here or `mdp serve`; with either alone nothing is lost.
"""

# No `from __future__ import annotations`: Dagster takes the resources of a sensor from the annotations themselves.

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import dagster as dg

from market_data_pipeline.defs.candles import OWNER, asset_key
from market_data_pipeline.defs.coverage import GROUP
from market_data_pipeline.defs.coverage import KEY as COVERAGE_KEY
from market_data_pipeline.defs.freshness_checks import DEAD, HORIZON, ON_TIME, on_time_result
from market_data_pipeline.defs.tags import CHECKS, UNFINISHED
from market_data_pipeline.defs.workbench import OpensWorkbench, Workbench
from market_data_pipeline.domain.alerts import EventKind, Severity
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.failures import Failure, FailureKind
from market_data_pipeline.domain.runs import CAUSE
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.settings import Settings, numbers_by_tier

if TYPE_CHECKING:
    from market_data_pipeline.domain.alerts import Alert
    from market_data_pipeline.domain.freshness import Census
    from market_data_pipeline.ingest.watch import WatchReport

ALERTS_KEY = dg.AssetKey(["alerts"])
NO_ALERT = "no_alert_is_firing"
SENSOR = "dagster sensor watch"
SECONDS_BETWEEN_LOOKS_AT_CHECKS = 30
# Runs for which somebody comes again by himself: what they did not bring is missing, due and told of as that. A provider that is
# down would otherwise be an alert of its breaker and one of every kind of run besides.
ASKED_AGAIN = frozenset({"gap", "recheck", "jobs"})
_ROWS_IN_METADATA = 100
_NAMED = 3
# What Dagster calls a check that a run is to evaluate, and for ever one that the run then skipped.
_PLANNED = "PLANNED"
# Check evaluations read at a time, and in one tick: what is more waits for the next one.
_EVENTS_AT_ONCE, _MOST_PAGES = 500, 20
# They have alerts of their own, which say more; and an alert about alerts would keep itself alive.
TOLD_ELSEWHERE: frozenset[dg.AssetCheckKey] = frozenset(
    {
        *(dg.AssetCheckKey(asset_key(interval), ON_TIME) for interval in Interval),
        dg.AssetCheckKey(COVERAGE_KEY, DEAD),
        dg.AssetCheckKey(COVERAGE_KEY, HORIZON),
        dg.AssetCheckKey(ALERTS_KEY, NO_ALERT),
    }
)


def alerts_asset() -> dg.AssetSpec:
    """``alerts``: nothing to run; it gets an event whenever other alerts fire than before."""
    return dg.AssetSpec(
        ALERTS_KEY,
        deps=[COVERAGE_KEY],
        group_name=GROUP,
        owners=[OWNER],
        kinds={"postgres"},
        description=(
            "The alerts that are firing, as the sensor `watch` last saw them change. Everything about them: `mdp alerts list`; "
            "who is told: docs/alerts.md."
        ),
    )


def alerts_check() -> dg.AssetChecksDefinition:
    """``no_alert_is_firing``: told by the sensor at every change, and to be run by hand."""

    @dg.asset_check(
        asset=ALERTS_KEY,
        name=NO_ALERT,
        description="No alert is firing, silenced and explained ones included. An error where one of them is critical.",
    )
    def no_alert_is_firing(workbenches: dg.ResourceParam[OpensWorkbench]) -> dg.AssetCheckResult:
        with workbenches.open() as workbench:
            return alerts_result(workbench.firing_alerts())

    return no_alert_is_firing


def alerts_result(firing: Sequence["Alert"]) -> dg.AssetCheckResult:
    """Failed where any is firing."""
    is_critical = any(alert.severity is Severity.CRITICAL for alert in firing)
    return dg.AssetCheckResult(
        check_name=NO_ALERT,
        asset_key=ALERTS_KEY,
        passed=not firing,
        severity=dg.AssetCheckSeverity.ERROR if is_critical else dg.AssetCheckSeverity.WARN,
        description=_named(firing) if firing else "nothing is firing",
        metadata=_metadata(firing),
    )


def _metadata(firing: Sequence["Alert"]) -> Mapping[str, Any]:
    counts = {str(severity): sum(alert.severity is severity for alert in firing) for severity in Severity}
    if not firing:
        return {"firing": 0, **counts}
    records = [
        dg.TableRecord(
            {
                "alert": alert.rule,
                "about": alert.key,
                "severity": alert.severity.value,
                "since": f"{alert.fired_at or alert.began_at:%Y-%m-%d %H:%M}Z",
                "told": "yes" if alert.told_at else "no: explained, silenced or no route",
                "acknowledged by": alert.acknowledged_by or "",
                "text": alert.text[:300],
            }
        )
        for alert in firing[:_ROWS_IN_METADATA]
    ]
    what = (
        "1. The page of each: `mdp alerts show ID` names it (docs/operations/).\n"
        "2. Say that you are at it, and nobody else is woken: `mdp alerts ack ID`."
    )
    return {"firing": len(firing), **counts, "alerts": dg.MetadataValue.table(records), "what to do": dg.MetadataValue.md(what)}


def _named(firing: Sequence["Alert"]) -> str:
    names = [f"{alert.rule} {alert.key}".strip() for alert in firing]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{len(names)} firing: {', '.join(names[:_NAMED])}{more}"


# --- the look ----------------------------------------------------------------------------------------------------------------


def watch_sensor(settings: Settings) -> dg.SensorDefinition:
    """Looks at SLOs and alert rules, has messages delivered, and shows in Dagster what changed by it."""

    @dg.sensor(
        name="watch",
        job_name=CHECKS,
        minimum_interval_seconds=max(int(settings.watch_every_seconds), 1),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            "Looks at SLOs and alert rules every MDP_WATCH_EVERY_SECONDS, unless `mdp serve` just did, and delivers what is due. "
            "Where a verdict of newest_candle_is_on_time changes, or other alerts fire, the assets' pages show it at once."
        ),
    )
    def watch(context: dg.SensorEvaluationContext, workbenches: dg.ResourceParam[OpensWorkbench]) -> dg.SensorResult:
        with workbenches.open() as workbench:
            forget_what_is_right_again(context.instance, workbench)
            report = workbench.watch(by=SENSOR)
            census = report.census or workbench.census()
            firing = workbench.firing_alerts()
        records = {
            interval: context.instance.get_latest_asset_check_evaluation_record(dg.AssetCheckKey(asset_key(interval), ON_TIME))
            for interval in Interval
        }
        digest = _digest(firing)
        changed: list[dg.AssetMaterialization | dg.AssetCheckEvaluation] = []
        if context.cursor != digest:
            changed = [_materialization(firing), _evaluation(ALERTS_KEY, alerts_result(firing))]
        events = [*changed_verdicts(records, census, numbers_by_tier(settings.slo_targets)), *changed]
        request = checks_again(context.instance, records)
        if request is not None:
            return dg.SensorResult(run_requests=[request], cursor=digest, asset_events=events)
        return dg.SensorResult(skip_reason=sentence(report, firing), cursor=digest, asset_events=events)

    return watch


def sentence(report: "WatchReport", firing: Sequence["Alert"]) -> str:
    """What the tick did, for whoever reads the sensor's page."""
    said = [_named(firing) if firing else "nothing is firing"]
    if report.skipped is not None:
        said.append(f"not looked: {report.skipped}")
    if report.fold is not None:
        told, ended = (
            report.fold.told(EventKind.FIRING, EventKind.RAISED, EventKind.ESCALATED),
            report.fold.told(EventKind.RESOLVED),
        )
        said += [f"{len(told)} told now"] if told else []
        said += [f"{len(ended)} over"] if ended else []
    if report.delivery is not None and (report.delivery.sent or report.delivery.failed or report.delivery.dead):
        said.append(f"{report.delivery.sent} messages delivered, {report.delivery.failed} to be tried again")
        said += [f"{report.delivery.dead} given up"] if report.delivery.dead else []
    if report.blind:
        said.append(f"blind for {'; '.join(report.blind)}")
    if report.problem is not None:
        said.append(f"the alerts file is not in force: {' '.join(report.problem.split())}")
    return "; ".join(said)


def changed_verdicts(
    records: Mapping[Interval, Any], census: "Census", targets: Mapping[Tier, float]
) -> Iterator[dg.AssetCheckEvaluation]:
    """The checks of freshness whose verdict is another than Dagster shows: an event a change, and none while nothing changes.

    ``records``: the newest execution of each, as Dagster has it; None where there was none.
    """
    for interval, record in records.items():
        if record is not None and record.status.value == _PLANNED:
            # A run is about to say it.
            continue
        shown = record.evaluation if record is not None else None
        result = on_time_result(census, interval, targets)
        if shown is None or _verdict(shown.passed, shown.severity) != _verdict(result.passed, result.severity):
            yield _evaluation(asset_key(interval), result)


def checks_again(instance: dg.DagsterInstance, records: Mapping[Interval, Any]) -> dg.RunRequest | None:
    """A run of all checks, where a run planned some and ended without them; None where there is no need.

    Whoever launches candles on an asset's page launches its checks with them. Dagster skips these, since the run reports partitions
    by events and hands nothing on, and shows them as skipped until they are evaluated again.
    """
    if instance.get_runs(dg.RunsFilter(job_name=CHECKS, statuses=UNFINISHED), limit=1):
        return None
    for run_id in sorted({record.run_id for record in records.values() if record is not None and record.status.value == _PLANNED}):
        run = instance.get_run_by_id(run_id)
        if run is not None and run.is_finished and run.job_name != CHECKS:
            return dg.RunRequest(run_key=f"skipped by {run_id}", tags={CAUSE: "maintenance"})
    return None


def _verdict(passed: bool, severity: dg.AssetCheckSeverity) -> str:  # noqa: FBT001 - of a check
    return "passed" if passed else severity.value


def _evaluation(key: dg.AssetKey, result: dg.AssetCheckResult) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=key,
        check_name=str(result.check_name),
        passed=result.passed,
        severity=result.severity,
        description=result.description,
        metadata=result.metadata,
    )


def _materialization(firing: Sequence["Alert"]) -> dg.AssetMaterialization:
    return dg.AssetMaterialization(ALERTS_KEY, metadata=_metadata(firing), description=_named(firing) if firing else "nothing")


def _digest(firing: Sequence["Alert"]) -> str:
    """Of which alerts fire and how urgent they are; not of their numbers, which change at every look."""
    names = sorted([alert.rule, alert.key, alert.severity.value, alert.acknowledged_by or ""] for alert in firing)
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


# --- what Dagster itself found wrong -----------------------------------------------------------------------------------------


def run_failures_sensor() -> dg.SensorDefinition:
    """Every run that fails, of any code location, becomes what the rule RunFailed finds: one alert a job."""

    @dg.run_failure_sensor(
        name="run_failures",
        monitor_all_code_locations=True,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            "Failed runs of any job become the alert RunFailed: one a job, over when a later run of it succeeds, or in a day. Runs "
            "that are asked for again by themselves (healing, queued jobs) are left to the ledger's and the queue's own alerts."
        ),
    )
    def run_failures(context: dg.RunFailureSensorContext, workbenches: dg.ResourceParam[OpensWorkbench]) -> None:
        run = context.dagster_run
        steps = context.get_step_failure_events()
        if run.tags.get(CAUSE) in ASKED_AGAIN or (steps and all(_is_a_blocking_check(event) for event in steps)):
            return
        with workbenches.open() as workbench:
            workbench.note_failure(
                Failure(
                    FailureKind.RUN,
                    run.job_name,
                    f"{why_it_failed(steps, context.failure_event)} (run {run.run_id[:8]})",
                    failed_at=workbench.now(),
                    run_id=run.run_id,
                )
            )

    return run_failures


def _is_a_blocking_check(event: dg.DagsterEvent) -> bool:
    """The step did what it should, and a check that blocks did not pass: that is the check's alert."""
    error = event.step_failure_data.error
    return error is not None and error.cls_name == "DagsterAssetCheckFailedError"


def why_it_failed(steps: Sequence[dg.DagsterEvent], failure: dg.DagsterEvent) -> str:
    """The first step's own words, else the run's; one line."""
    for event in steps:
        data = event.step_failure_data
        error = data.error
        while error is not None and error.cause is not None:
            error = error.cause
        text = (data.user_failure_data.description if data.user_failure_data else None) or (error.message if error else None)
        if text and text.strip():
            return text.strip().splitlines()[0]
    return (failure.message or "it did not say why").strip().splitlines()[0]


def check_failures_sensor() -> dg.SensorDefinition:
    """Every check that does not pass, ours or a user's, of any code location, becomes what the rule CheckFailed finds."""

    @dg.sensor(
        name="check_failures",
        minimum_interval_seconds=SECONDS_BETWEEN_LOOKS_AT_CHECKS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            "Asset checks that do not pass, of any asset and code location, become the alert CheckFailed: over when they pass. "
            "Checks that have an alert of their own are left to it."
        ),
    )
    def check_failures(
        context: dg.SensorEvaluationContext, workbenches: dg.ResourceParam[OpensWorkbench]
    ) -> dg.SensorResult | dg.SkipReason:
        ours = sorted(context.repository_def.asset_graph.asset_check_keys) if context.repository_def is not None else []
        found = evaluations_since(context.instance, float(context.cursor or 0), ours)
        latest = {key: evaluation for key, evaluation in found.latest.items() if key not in TOLD_ELSEWHERE}
        failed = {key: evaluation for key, evaluation in latest.items() if not evaluation.passed}
        right = [_name(key) for key, evaluation in latest.items() if evaluation.passed]
        if latest:
            with workbenches.open() as workbench:
                for key, evaluation in failed.items():
                    workbench.note_failure(
                        Failure(
                            FailureKind.CHECK,
                            _name(key),
                            (evaluation.description or "it says nothing more").splitlines()[0],
                            failed_at=workbench.now(),
                            is_warning=evaluation.severity is dg.AssetCheckSeverity.WARN,
                        )
                    )
                workbench.forget_failures(FailureKind.CHECK, right)
        said = f"{len(latest)} checks were evaluated since the last tick: {len(failed)} do not pass"
        return dg.SensorResult(skip_reason=said, cursor=repr(found.cursor))

    return check_failures


def _name(key: dg.AssetCheckKey) -> str:
    return f"{key.asset_key.to_user_string()}:{key.name}"


def evaluations_since(instance: dg.DagsterInstance, cursor: float, ours: Sequence[dg.AssetCheckKey]) -> "Evaluations":
    """The newest evaluation of every check that was evaluated after ``cursor``, and the cursor to go on from.

    An event log that is one file a run (SQLite) has no order of all events: there only checks of this code location, ``ours``, are
    looked up, one by one, and the cursor is a time.
    """
    if instance.event_log_storage.is_run_sharded:
        return _of_known_checks(instance, cursor, ours)
    latest: dict[dg.AssetCheckKey, dg.AssetCheckEvaluation] = {}
    for _ in range(_MOST_PAGES):
        # instance.get_event_records is deprecated for all events, and nothing else is public for those of checks.
        records = instance.event_log_storage.get_event_records(
            dg.EventRecordsFilter(event_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION, after_cursor=int(cursor)),
            limit=_EVENTS_AT_ONCE,
            ascending=True,
        )
        for record in records:
            cursor = max(cursor, record.storage_id)
            event = record.event_log_entry.dagster_event
            if event is not None:
                found = event.asset_check_evaluation_data
                latest[dg.AssetCheckKey(found.asset_key, found.check_name)] = found
        if len(records) < _EVENTS_AT_ONCE:
            break
    return Evaluations(latest, cursor)


def _of_known_checks(instance: dg.DagsterInstance, cursor: float, keys: Sequence[dg.AssetCheckKey]) -> "Evaluations":
    latest: dict[dg.AssetCheckKey, dg.AssetCheckEvaluation] = {}
    newest = cursor
    for key in keys:
        record = instance.get_latest_asset_check_evaluation_record(key)
        found = None if record is None or record.event is None or record.status.value == _PLANNED else record.evaluation
        if record is not None and record.event is not None and found is not None and record.event.timestamp > cursor:
            latest[key] = found
            newest = max(newest, record.event.timestamp)
    return Evaluations(latest, newest)


class Evaluations(NamedTuple):
    """By check, the newest there is; and where to go on."""

    latest: Mapping[dg.AssetCheckKey, dg.AssetCheckEvaluation]
    cursor: float


def forget_what_is_right_again(instance: dg.DagsterInstance, workbench: Workbench) -> None:
    """Drop the failures of jobs of which a later run succeeded, and those too old to say anything.

    A run that was deleted meanwhile says nothing any more. It costs two look-ups a job that failed.
    """
    for failure in workbench.failures():
        if not failure.is_current(workbench.now()) or (
            failure.kind is FailureKind.RUN and _succeeded_since(instance, failure.name, failure.run_id)
        ):
            workbench.forget_failures(failure.kind, [failure.name])


def _succeeded_since(instance: dg.DagsterInstance, job: str, run_id: str) -> bool:
    failed = instance.get_run_record_by_id(run_id)
    if failed is None:
        return True
    newest = instance.get_run_records(dg.RunsFilter(job_name=job, statuses=[dg.DagsterRunStatus.SUCCESS]), limit=1)
    return bool(newest) and (newest[0].end_time or 0.0) > (failed.end_time or 0.0)
