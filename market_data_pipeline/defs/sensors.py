"""The symbols that Dagster shows, the gaps that are healed, the runs that a crash left behind."""

from __future__ import annotations

import hashlib
import socket
from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
import psutil

from market_data_pipeline.defs.partitions import ANOTHER_PLAN, range_tags, symbols_in_order
from market_data_pipeline.defs.schedules import last_closed
from market_data_pipeline.defs.tags import FINISHED, GAP, UNFINISHED, WHEN_THERE_IS_ROOM, cells_in_flight, is_ours
from market_data_pipeline.defs.workbench import SECONDS_BETWEEN_BEATS, OpensWorkbench
from market_data_pipeline.domain.candles import FETCHED_INTERVALS
from market_data_pipeline.domain.partitions import Box, Cell, PartitionPlan, boxes, cells_between
from market_data_pipeline.domain.runs import CAUSE, PRIORITY, SYMBOLS, job_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from market_data_pipeline.defs.workbench import Workbench
    from market_data_pipeline.domain.candles import Interval
    from market_data_pipeline.settings import Settings
    from market_data_pipeline.storage.heartbeats import Heartbeat
    from market_data_pipeline.storage.ledger import DueGap

# Gaps looked at in one tick: neighbours merge into boxes, so more of them are needed than runs are asked for.
GAPS_CONSIDERED = 2_000
PARTITIONS_A_HEALING_RUN = 500
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


@dataclass(frozen=True, slots=True)
class Healing:
    """One run to ask for: a box of partitions of one interval, and what names the gaps in it together with their attempt."""

    interval: Interval
    box: Box
    digest: str


def gap_sensor(
    plan: PartitionPlan, settings: Settings, jobs: Sequence[Any], *, in_force: Callable[[], PartitionPlan]
) -> dg.SensorDefinition:
    """Asks for runs over gaps that are due: the longest due first, a bounded number a tick, none that is asked for already."""

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
        waiting = context.instance.get_runs_count(dg.RunsFilter(statuses=UNFINISHED, tags={CAUSE: "gap"}))
        room = settings.heal_requests_per_tick - waiting
        if room <= 0:
            return dg.SkipReason(f"{waiting} healing runs have not ended yet")
        with workbenches.open() as workbench:
            due = finished_parts(workbench.due_gaps(limit=GAPS_CONSIDERED), workbench)
        found = healings(
            due,
            plan,
            symbols=symbols_in_order(plan, context.instance),
            in_flight=cells_in_flight(context.instance, plan, now=datetime.now(UTC)),
            now=datetime.now(UTC),
        )
        requests = _requests(context.instance, found, settings, room)
        return requests or dg.SkipReason(f"gaps that are due: {len(due)}, all asked for already" if due else "no gap is due")

    return gaps


def finished_parts(gaps: Sequence[DueGap], workbench: Workbench) -> list[DueGap]:
    """``gaps`` without the session that still runs or has just closed: polls and the after-close schedules see to that."""
    at = workbench.now() - LEFT_TO_THE_SCHEDULES
    newest = {name: last_closed(workbench.calendar(name), at, within=None) for name in {gap.calendar for gap in gaps}}
    cut = []
    for gap in gaps:
        finished = newest[gap.calendar]
        if finished is not None and gap.first <= finished:
            cut.append(replace(gap, last=min(gap.last, finished)))
    return cut


def healings(
    gaps: Sequence[DueGap],
    plan: PartitionPlan,
    *,
    symbols: Sequence[str],
    in_flight: Mapping[Interval, set[Cell]],
    now: datetime,
) -> list[Healing]:
    """The runs that heal ``gaps``: neighbours share a box, and the boxes come in the order of their first gap.

    Left out is what is in flight, and what Dagster has no key for yet: a new symbol's is added by the symbols sensor.
    """
    columns = set(symbols)
    turn: dict[tuple[Interval, Cell], int] = {}
    attempts: dict[tuple[Interval, Cell], list[str]] = defaultdict(list)
    existing = {interval: plan.periods(interval).existing(now) for interval in FETCHED_INTERVALS}
    for place, gap in enumerate(gaps):
        periods = plan.periods(gap.interval)
        for period in periods.keys(gap.first, gap.last):
            cell = Cell(period, plan.column_of(gap.symbol))
            if cell.symbol in columns and cell not in in_flight.get(gap.interval, ()) and period <= existing[gap.interval][-1]:
                turn.setdefault((gap.interval, cell), place)
                attempts[gap.interval, cell].append(f"{gap.symbol}:{gap.first}:{gap.attempts}:{gap.failures}:{gap.due_since}")
    found: list[tuple[int, Healing]] = []
    for interval in FETCHED_INTERVALS:
        cells = {cell for held, cell in turn if held is interval}
        for box in boxes(cells, periods=existing[interval], symbols=symbols, largest=PARTITIONS_A_HEALING_RUN):
            inside = cells_between(box.first, box.last, periods=existing[interval], symbols=symbols)
            named = "\n".join(f"{cell.key} {attempt}" for cell in inside for attempt in sorted(attempts[interval, cell]))
            digest = hashlib.sha256(named.encode()).hexdigest()[:16]
            found.append((min(turn[interval, cell] for cell in inside), Healing(interval, box, digest)))
    return [healing for _, healing in sorted(found, key=lambda pair: (pair[0], pair[1].box))]


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
                run_key=f"gap:{healing.interval}:{healing.box.first.key}:{healing.box.last.key}:{healing.digest}:{len(ended) + 1}",
                job_name=job_name(healing.interval),
                tags={**range_tags(healing.box), CAUSE: "gap", GAP: healing.digest, PRIORITY: WHEN_THERE_IS_ROOM},
            )
        )
    return requests


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
