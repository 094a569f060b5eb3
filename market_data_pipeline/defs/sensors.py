"""The symbols that Dagster shows, the gaps that are healed, the runs that a crash left behind."""

from __future__ import annotations

import socket
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import dagster as dg
import psutil

from market_data_pipeline.defs.healing import healings, in_turn
from market_data_pipeline.defs.partitions import ANOTHER_PLAN, range_tags, symbols_in_order
from market_data_pipeline.defs.schedules import last_closed
from market_data_pipeline.defs.tags import FINISHED, GAP, LANE, UNFINISHED, WHEN_THERE_IS_ROOM, cells_in_flight, is_ours
from market_data_pipeline.defs.workbench import SECONDS_BETWEEN_BEATS, OpensWorkbench
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.runs import CAUSE, PRIORITY, SYMBOLS, job_name, op_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from market_data_pipeline.defs.healing import Healing
    from market_data_pipeline.defs.workbench import Workbench
    from market_data_pipeline.domain.partitions import PartitionPlan
    from market_data_pipeline.settings import Settings
    from market_data_pipeline.storage.heartbeats import Heartbeat
    from market_data_pipeline.storage.ledger import DueGap, DueRecheck

D = TypeVar("D", "DueGap", "DueRecheck")

# Gaps looked at in one tick: neighbours merge into boxes, so more of them are needed than runs are asked for.
GAPS_CONSIDERED = 2_000
# The after-close schedules have this long before the gap sensor takes a session as its own.
LEFT_TO_THE_SCHEDULES = timedelta(minutes=30)
HEARTBEAT_LAPSES_AFTER = timedelta(seconds=8 * SECONDS_BETWEEN_BEATS)
# From STARTED to the first beat: importing everything on a busy machine takes half a minute.
GRACE_BEFORE_THE_FIRST_BEAT = timedelta(minutes=5)
# From being made to being queued: planned events are written in between, 5,000 of them in minutes on the stock event log.
GRACE_BEFORE_THE_QUEUE = timedelta(minutes=10)
LEFT_BEHIND_IN = [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


def symbols_sensor(plan: PartitionPlan) -> dg.SensorDefinition:
    """Adds a partition key for each new symbol, tiers together, so that a range of keys can be a tier.

    Keys are never removed: their partitions are history.
    """

    @dg.sensor(name="symbols", minimum_interval_seconds=60, default_status=dg.DefaultSensorStatus.RUNNING)
    def symbols(
        context: dg.SensorEvaluationContext, workbenches: dg.ResourceParam[OpensWorkbench]
    ) -> dg.SensorResult | dg.SkipReason:
        with workbenches.open() as workbench:
            universe = sorted(workbench.instruments(active_only=True), key=lambda i: (i.tier, i.symbol))
        known = set(symbols_in_order(plan, context.instance))
        new = [instrument.symbol for instrument in universe if instrument.symbol not in known]
        if not new:
            return dg.SkipReason(f"all {len(universe):,} symbols have their partitions")
        return dg.SensorResult(dynamic_partitions_requests=[dg.DynamicPartitionsDefinition(name=SYMBOLS).build_add_request(new)])

    return symbols


def gap_sensor(
    plan: PartitionPlan, settings: Settings, jobs: Sequence[Any], *, in_force: Callable[[], PartitionPlan]
) -> dg.SensorDefinition:
    """Asks for runs over gaps and rechecks that are due: in turn, a bounded number a tick, none that is asked for already."""

    @dg.sensor(
        name="gaps",
        jobs=jobs,
        minimum_interval_seconds=settings.heal_every_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def gaps(
        context: dg.SensorEvaluationContext, workbenches: dg.ResourceParam[OpensWorkbench]
    ) -> list[dg.RunRequest] | dg.SkipReason:
        if not plan.has_the_partitions_of(in_force()):
            return dg.SkipReason(ANOTHER_PLAN)
        waiting = sum(
            context.instance.get_runs_count(dg.RunsFilter(statuses=UNFINISHED, tags={CAUSE: cause})) for cause in ("gap", "recheck")
        )
        room = settings.heal_requests_per_tick - waiting
        if room <= 0:
            return dg.SkipReason(f"{waiting} healing runs have not ended yet")
        with workbenches.open() as workbench:
            due = finished_parts(workbench.due_gaps(limit=GAPS_CONSIDERED), workbench)
            again = finished_parts(workbench.due_rechecks(limit=GAPS_CONSIDERED), workbench)
            tiers = {i.symbol_id: i.tier for i in workbench.instruments(active_only=True)} if due or again else {}
            found = healings(
                due,
                plan,
                rechecks=again,
                tiers=tiers,
                symbols=symbols_in_order(plan, context.instance),
                in_flight=cells_in_flight(context.instance, plan, now=datetime.now(UTC)),
                now=datetime.now(UTC),
            )
            requests = _requests(context.instance, in_turn(found, room), settings, room)
            for interval, asked in Counter(_interval_of(one) for one in requests if one.tags[CAUSE] == "gap").items():
                workbench.count_gaps(interval, asked)
        if requests:
            return requests
        return dg.SkipReason(
            f"gaps that are due: {len(due)}, rechecks: {len(again)}, all asked for already" if due or again else "no gap is due"
        )

    return gaps


def finished_parts(gaps: Sequence[D], workbench: Workbench) -> list[D]:
    """``gaps`` without the session that still runs or has just closed: sweeps and the after-close schedules see to that."""
    at = workbench.now() - LEFT_TO_THE_SCHEDULES
    newest = {name: last_closed(workbench.calendar(name), at, within=None) for name in {gap.calendar for gap in gaps}}
    cut = []
    for gap in gaps:
        finished = newest[gap.calendar]
        if finished is not None and gap.first <= finished:
            cut.append(replace(gap, last=min(gap.last, finished)))
    return cut


def _requests(instance: dg.DagsterInstance, found: Sequence[Healing], settings: Settings, room: int) -> list[dg.RunRequest]:
    """The first ``room`` requests, each with the number of its attempt in the run key.

    The ledger counts attempts that reached a provider, and each changes the digest. A run that ended without changing anything
    there (it crashed, or the calendar changed under it) would be asked for again every tick: it waits as long as an attempt does.
    """
    requests: list[dg.RunRequest] = []
    for healing in found:
        if len(requests) >= room:
            break
        ended = instance.get_run_records(dg.RunsFilter(statuses=FINISHED, tags={GAP: healing.digest}), limit=10)
        if ended:
            last_end = max(record.end_time or 0.0 for record in ended)
            wait = settings.healing_policy.wait(len(ended)).total_seconds()
            if last_end + wait > datetime.now(UTC).timestamp():
                continue
        requests.append(
            dg.RunRequest(
                run_key=(
                    f"{healing.cause}:{healing.interval}:{healing.box.first.key}:{healing.box.last.key}:{healing.digest}:"
                    f"{len(ended) + 1}"
                ),
                job_name=job_name(healing.interval),
                run_config=_asking_again(healing),
                tags={
                    **range_tags(healing.box),
                    CAUSE: healing.cause,
                    LANE: "healing",
                    GAP: healing.digest,
                    PRIORITY: WHEN_THERE_IS_ROOM,
                },
            )
        )
    return requests


def _interval_of(request: dg.RunRequest) -> Interval:
    return next(interval for interval in Interval if job_name(interval) == request.job_name)


def _asking_again(healing: Healing) -> dict[str, Any]:
    if healing.again is None:
        return {}
    first, last = healing.again
    config = {"refetch_from": first.isoformat(), "refetch_to": last.isoformat()}
    return {"ops": {op_name(healing.interval): {"config": config}}}


def janitor_sensor() -> dg.SensorDefinition:
    """Ends the runs that a crash left behind: Dagster itself never does, and they hold a place in the queue for ever."""

    @dg.sensor(name="janitor", minimum_interval_seconds=60, default_status=dg.DefaultSensorStatus.RUNNING)
    def janitor(context: dg.SensorEvaluationContext, workbenches: dg.ResourceParam[OpensWorkbench]) -> dg.SkipReason:
        records = context.instance.get_run_records(dg.RunsFilter(statuses=LEFT_BEHIND_IN))
        ours = [record for record in records if is_ours(record.dagster_run)]
        with workbenches.open() as workbench:
            beats = {beat.run_id: beat for beat in workbench.heartbeats()}
            for run_id in set(beats) - {record.dagster_run.run_id for record in ours}:
                if beats[run_id].silent_for > HEARTBEAT_LAPSES_AFTER:
                    workbench.forget_heartbeat(run_id)
        ended = 0
        for record in ours:
            run = record.dagster_run
            reason = left_behind(
                beats.get(run.run_id),
                run.status,
                unchanged_for=datetime.now(UTC) - _last_change(record),
                host=socket.gethostname(),
                lives=process_lives,
            )
            if reason is not None and _end(context.instance, run, reason):
                ended += 1
                context.log.warning("run %s was ended: %s", run.run_id, reason)
        return dg.SkipReason(f"{ended} of {len(ours)} unfinished runs had been left behind and were ended")

    return janitor


def _end(instance: dg.DagsterInstance, run: dg.DagsterRun, reason: str) -> bool:
    # A process writes how its run ended before it goes: one that is gone may have done so since the runs were listed.
    now = instance.get_run_by_id(run.run_id)
    if now is None or now.status is not run.status:
        return False
    if run.status is dg.DagsterRunStatus.CANCELING:
        instance.report_run_canceled(run, message=reason)
    else:
        instance.report_run_failed(run, message=reason)
    return True


def _last_change(record: dg.RunRecord) -> datetime:
    # A run that was cancelled before it began has no start.
    return datetime.fromtimestamp(record.start_time, UTC) if record.start_time else record.update_timestamp


def left_behind(
    beat: Heartbeat | None,
    status: dg.DagsterRunStatus,
    *,
    unchanged_for: timedelta,
    host: str,
    lives: Callable[[int, datetime], bool],
) -> str | None:
    """Why an unfinished run must be taken for dead, None while it may live.

    ``host`` is this one, where ``lives`` can say whether a process (its pid and start) is there; for another host only silence
    counts.
    """
    if beat is None or status is dg.DagsterRunStatus.NOT_STARTED:
        return _never_heard_of(status, unchanged_for)
    process = f"the process that worked on this run (pid {beat.pid} on {beat.host})"
    if beat.host == host and not lives(beat.pid, beat.process_started_at):
        return f"left behind by a crash: {process} is gone; it was last heard of {_text(beat.silent_for)} ago"
    if beat.silent_for > HEARTBEAT_LAPSES_AFTER:
        return f"left behind by a crash: {process} has been silent for {_text(beat.silent_for)}"
    return None


def _never_heard_of(status: dg.DagsterRunStatus, unchanged_for: timedelta) -> str | None:
    if status is dg.DagsterRunStatus.NOT_STARTED:
        is_over = unchanged_for > GRACE_BEFORE_THE_QUEUE
        return f"it was made {_text(unchanged_for)} ago and never launched" if is_over else None
    is_over = unchanged_for > GRACE_BEFORE_THE_FIRST_BEAT
    reason = f"left behind by a crash: {_text(unchanged_for)} after its start no process has said that it works on this run"
    return reason if is_over else None


def process_lives(pid: int, started_at: datetime) -> bool:
    """Whether the process ``pid`` is the one that started at ``started_at``: pids are given again, and a zombie does nothing."""
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started_at.timestamp()) < 1.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _text(span: timedelta) -> str:
    seconds = span.total_seconds()
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
