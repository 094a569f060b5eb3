"""Jobs that look after Dagster's own record: what the ledger knows is shown, and what nobody will look at again is deleted."""

# No `from __future__ import annotations`: Dagster takes the class of an op's config from the annotation itself, not from its text.

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from market_data_pipeline.defs.candles import asset_key
from market_data_pipeline.defs.event_log import prune_without_runs
from market_data_pipeline.defs.materialize import report_runless
from market_data_pipeline.defs.outcomes import LedgerSums
from market_data_pipeline.defs.partitions import materialization, symbols_in_order
from market_data_pipeline.defs.tags import FINISHED, LISTINGS, PRUNE
from market_data_pipeline.defs.workbench import OpensWorkbench, Workbench
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.coverage import LedgerRow
from market_data_pipeline.domain.partitions import Cell, PartitionPlan, day_in_the_east
from market_data_pipeline.domain.runs import CAUSE, RECONCILE
from market_data_pipeline.domain.sessions import date_of
from market_data_pipeline.domain.universe import Instrument
from market_data_pipeline.settings import Settings

if TYPE_CHECKING:
    from market_data_pipeline.domain.sessions import TradingCalendar

# Ledger rows of this many instruments are in memory together.
_INSTRUMENTS_AT_ONCE = 50
# A session is taken for running until so long after its close: its last bar is still on its way.
SETTLING_SECONDS = 90
_RUNS_AT_ONCE = 200
# One transaction on Dagster's storage; a night has some thousands, a storage that was never pruned takes some nights.
_EVENTS_AT_ONCE = 100_000
_RECORDS_AT_ONCE = 500
_FINDINGS_IN_A_LOG = 100


class ReconcileConfig(dg.Config):
    """Which partitions are reported to Dagster: those it does not show as materialised, or with ``everything`` all of them."""

    everything: bool = False


class PruneConfig(dg.Config):
    """How old a finished run must be; 0 takes MDP_EVENT_RETENTION_DAYS. ``at_most`` bounds the runs of one run of the job."""

    older_than_days: int = 0
    at_most: int = 5_000


@dataclass(frozen=True, slots=True)
class Settled:
    """A partition of which the ledger says that every session in it has been answered, and what it says of them."""

    cell: Cell
    sums: LedgerSums

    def as_metadata(self) -> dict[str, int | float | str]:
        """As the asset reports it, and where this report is from."""
        return {**self.sums.as_metadata(), "reported from": "the ledger"}


def reconcile_job(plan: PartitionPlan) -> dg.JobDefinition:
    """Shows in Dagster what the ledger knows: after a new grain, a lost event log, or a run that died between its two reports."""

    @dg.op
    def report_the_ledger(
        context: dg.OpExecutionContext, config: ReconcileConfig, workbenches: dg.ResourceParam[OpensWorkbench]
    ) -> None:
        known = set(symbols_in_order(plan, context.instance))
        with workbenches.open() as workbench, workbench.beating(context.run_id):
            instruments = workbench.instruments(active_only=False)
            for interval in Interval:
                key = asset_key(interval)
                shown = set() if config.everything else context.instance.get_materialized_partitions(key)
                settled = settled_partitions(instruments, interval, plan, workbench)
                count = report_runless(
                    context.instance,
                    (
                        materialization(key, found.cell, found.as_metadata())
                        for found in settled
                        if found.cell.key not in shown and found.cell.symbol in known
                    ),
                )
                context.log.info("%s: %d partitions reported from the ledger", key.to_user_string(), count)

    @dg.job(
        name=RECONCILE,
        description="Report to Dagster the partitions that the ledger has and Dagster does not show as materialised.",
        tags={CAUSE: "maintenance"},
    )
    def reconcile() -> None:
        report_the_ledger()

    return reconcile


def settled_partitions(
    instruments: Sequence[Instrument],
    interval: Interval,
    plan: PartitionPlan,
    workbench: Workbench,
    *,
    first: date = date.min,
    last: date = date.max,
    over: bool = False,
) -> Iterator[Settled]:
    """The partitions in which every session that has begun, of every instrument listed then, was answered.

    ``first`` and ``last``: of whole periods with days between them, where not all. ``over``: only where no session still runs.
    """
    now = workbench.now()
    today = day_in_the_east(now)
    sessions: dict[str, list[date]] = {}
    running: dict[str, set[date]] = {}
    for name in {instrument.calendar for instrument in instruments}:
        calendar = workbench.calendar(name)
        from_, until = max(plan.start, calendar.first_session, first), min(today, calendar.last_session, last)
        sessions[name] = calendar.sessions(from_, until)
        running[name] = set(_unfinished(calendar, from_, until, now)) if over else set()
    columns = defaultdict(list)
    for instrument in instruments:
        columns[plan.column_of(instrument.symbol)].append(instrument)
    names = sorted(columns)
    for at in range(0, len(names), _INSTRUMENTS_AT_ONCE):
        chunk = names[at : at + _INSTRUMENTS_AT_ONCE]
        rows: dict[int, dict[date, LedgerRow]] = defaultdict(dict)
        ids = [instrument.symbol_id for name in chunk for instrument in columns[name]]
        for row in workbench.ledger_rows(ids, interval, max(plan.start, first), min(today, last)):
            rows[row.symbol_id][row.session] = row
        for name in chunk:
            yield from _settled_column(name, columns[name], sessions, running, rows, interval, plan, workbench)


def _unfinished(calendar: "TradingCalendar", first: date, last: date, now: datetime) -> Iterator[date]:
    """The sessions whose last bar need not be there yet."""
    if last < first:
        return
    bounds = calendar.bounds(first, last)
    for day, closes_at in zip(bounds.session.tolist(), bounds.closes_at.tolist(), strict=True):
        if closes_at + SETTLING_SECONDS > now.timestamp():
            yield date_of(day)


def _settled_column(
    name: str,
    instruments: Sequence[Instrument],
    sessions: dict[str, list[date]],
    running: dict[str, set[date]],
    rows: dict[int, dict[date, LedgerRow]],
    interval: Interval,
    plan: PartitionPlan,
    workbench: Workbench,
) -> Iterator[Settled]:
    periods = plan.periods(interval)
    told: dict[str, LedgerSums] = defaultdict(LedgerSums)
    open_: set[str] = set()
    for instrument in instruments:
        since = workbench.reached_since(interval, instrument.calendar)
        for session in sessions[instrument.calendar]:
            if not instrument.listed_on(session) or periods.is_closed(session):
                continue
            period = periods.key_of(session)
            row = rows[instrument.symbol_id].get(session)
            if row is None or not _was_answered(row) or session in running[instrument.calendar]:
                open_.add(period)
            else:
                told[period].add(row, reached_since=since)
    for period, sums in told.items():
        if sums.verdicts.total() and period not in open_:
            yield Settled(Cell(period, name), sums)


def _was_answered(row: LedgerRow) -> bool:
    return bool(row.present.any()) or (row.last_attempt_at is not None and row.failures == 0)


def listings_job() -> dg.JobDefinition:
    """Infers from what providers answered when instruments were listed: new ones, delisted ones, and those that never were."""

    @dg.op
    def infer_listings(context: dg.OpExecutionContext, workbenches: dg.ResourceParam[OpensWorkbench]) -> None:
        with workbenches.open() as workbench, workbench.beating(context.run_id):
            found = workbench.infer_listings(run_id=context.run_id)
        context.log.info("%d findings about when instruments were listed", len(found))
        for change in found[:_FINDINGS_IN_A_LOG]:
            finding, taken_back = change.finding, "taken back: " if change.is_taken_back else ""
            context.log.info("%s: %s%s %s: %s", change.symbol, taken_back, finding.kind, finding.session or "", finding.detail)

    @dg.job(
        name=LISTINGS,
        description="Infer first and last sessions of instruments from the ledger's evidence; what is not listed is not missing.",
        tags={CAUSE: "maintenance"},
    )
    def listings() -> None:
        infer_listings()

    return listings


def listings_schedule() -> dg.ScheduleDefinition:
    """Every night: the evidence is attempts that lie hours apart."""
    return dg.ScheduleDefinition(
        name="listings_nightly",
        job_name=LISTINGS,
        cron_schedule="47 2 * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )


def prune_job(settings: Settings) -> dg.JobDefinition:
    """Deletes what nobody will look at again: Dagster keeps runs and events for ever, some 4 kB a partition and materialisation."""

    @dg.op
    def prune_finished_runs(
        context: dg.OpExecutionContext, config: PruneConfig, workbenches: dg.ResourceParam[OpensWorkbench]
    ) -> None:
        days = config.older_than_days or settings.event_retention_days
        before = datetime.now(UTC) - timedelta(days=days)
        with workbenches.open() as workbench, workbench.beating(context.run_id):
            for pruned in workbench.prune():
                if pruned.rows:
                    more = "" if pruned.is_complete else "; there are more, which the next night deletes"
                    context.log.info("%s: %d old rows deleted%s", pruned.what, pruned.rows, more)
            deleted, kept = prune(context.instance, before=before, at_most=config.at_most)
        context.log.info(
            "%d runs older than %d days deleted, %d kept: they are what a partition's status rests on", deleted, days, kept
        )
        rows = prune_without_runs(context.instance, before=before, at_most=_EVENTS_AT_ONCE)
        if rows is None:
            context.log.warning("events without a run and results of checks are not pruned: this Dagster stores them otherwise")
        else:
            context.log.info("%d events without a run and results of checks older than %d days deleted", rows, days)

    @dg.job(
        name=PRUNE,
        description=(
            "Delete finished runs older than MDP_EVENT_RETENTION_DAYS with their events and logs, except those that partitions' "
            "status rests on; events without a run; and rows of ours that are older than they are kept (docs/retention.md)."
        ),
        tags={CAUSE: "maintenance"},
    )
    def prune_event_log() -> None:
        prune_finished_runs()

    return prune_event_log


def prune_schedule() -> dg.ScheduleDefinition:
    """Every night, when no exchange of New York's day is open."""
    return dg.ScheduleDefinition(
        name="prune_event_log_nightly",
        job_name=PRUNE,
        cron_schedule="17 3 * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )


def prune(instance: dg.DagsterInstance, *, before: datetime, at_most: int) -> tuple[int, int]:
    """Delete up to ``at_most`` finished runs created before ``before``, and return how many were deleted and how many kept.

    Kept are runs with the newest materialisation of a partition: Dagster's view of a partition rests on that event alone.
    """
    newest = _Newest(instance)
    deleted = kept = 0
    cursor = None
    while deleted < at_most:
        records = instance.get_run_records(
            dg.RunsFilter(statuses=FINISHED, created_before=before), limit=_RUNS_AT_ONCE, ascending=True, cursor=cursor
        )
        if not records:
            break
        for record in records[: at_most - deleted]:
            run_id = record.dagster_run.run_id
            if newest.is_of(run_id):
                kept += 1
                # The cursor may not point to a run that is gone: it follows the kept ones.
                cursor = run_id
            else:
                # Before the run: what it printed is found by its id alone.
                instance.compute_log_manager.delete_logs(prefix=[run_id])
                instance.delete_run(run_id)
                deleted += 1
        if len(records) < _RUNS_AT_ONCE:
            break
    return deleted, kept


class _Newest:
    """Which runs hold the newest materialisation of some partition. Each asset's newest events are read once."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._runs: set[str] = set()
        for interval in Interval:
            key = asset_key(interval)
            latest = instance.get_latest_storage_id_by_partition(key, dg.DagsterEventType.ASSET_MATERIALIZATION)
            ids = sorted(latest.values())
            for at in range(0, len(ids), _RECORDS_AT_ONCE):
                chunk = dg.AssetRecordsFilter(asset_key=key, storage_ids=ids[at : at + _RECORDS_AT_ONCE])
                self._runs.update(
                    record.run_id for record in instance.fetch_materializations(chunk, limit=_RECORDS_AT_ONCE).records
                )

    def is_of(self, run_id: str) -> bool:
        """Whether ``run_id`` holds one of them."""
        return run_id in self._runs
