"""What Dagster shows of the newest partitions, held against what the ledger has of them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from market_data_pipeline.defs.candles import asset_key
from market_data_pipeline.defs.maintenance import settled_partitions
from market_data_pipeline.defs.partitions import cells_of_tags, symbols_in_order
from market_data_pipeline.defs.tags import cells_in_flight, works_on
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.partitions import Cell, day_in_the_east
from market_data_pipeline.domain.sessions import date_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from market_data_pipeline.defs.workbench import Workbench
    from market_data_pipeline.domain.candles import Interval
    from market_data_pipeline.domain.partitions import PartitionPlan
    from market_data_pipeline.domain.universe import Instrument

# The sessions that are compared: what is older was compared when it was new, and `mdp reconcile` looks at everything.
SESSIONS = 3
# Runs that failed longer ago are history: what they left is missing, and the gap sensor's.
FAILED_RUNS_OF = timedelta(days=7)
_MOST_RUNS, _MOST_CELLS = 100, 1_000
# Fifteen days hold three sessions around any holiday.
_DAYS_BACK = 15


@dataclass(frozen=True, slots=True)
class Difference:
    """Partitions of the newest sessions on which Dagster and the ledger do not agree; ``compared`` were settled in the ledger.

    ``not_shown``: settled in the ledger, not materialised in Dagster. ``not_settled``: the other way round.
    """

    first: date | None = None
    last: date | None = None
    compared: int = 0
    not_shown: Sequence[Cell] = ()
    not_settled: Sequence[Cell] = ()


@dataclass(frozen=True, slots=True)
class LeftFailed:
    """A partition of a run that failed, which the ledger still lacks and no run works on."""

    cell: Cell
    run_id: str
    failed_at: datetime


def difference(
    workbench: Workbench, instance: dg.DagsterInstance, interval: Interval, plan: PartitionPlan, *, settles_within: timedelta
) -> Difference:
    """Compare the newest sessions that closed longer than ``settles_within`` ago on every exchange."""
    instruments = workbench.instruments(active_only=True)
    sessions = _finished(workbench, instruments, plan, until=workbench.now() - settles_within)
    if not sessions:
        return Difference()
    periods = plan.periods(interval)
    keys = periods.keys(sessions[0], sessions[-1])
    first, last = periods.days_of(keys[0])[0], periods.days_of(keys[-1])[1]
    settled = {
        found.cell.key: found.cell
        for found in settled_partitions(instruments, interval, plan, workbench, first=first, last=last, over=True)
        if found.cell.period in keys
    }
    shown = _materialised(instance, interval, None if workbench.is_virtual() else first)
    columns = set(symbols_in_order(plan, instance))
    busy = {cell.key for cell in cells_in_flight(instance, plan, now=datetime.now(UTC))[interval.source or interval]}
    # A period with days to come may be shown for what it had, and is settled again when the next session is.
    ended = {key for key in keys if periods.days_of(key)[1] <= sessions[-1]}
    listed = {plan.column_of(instrument.symbol) for instrument in instruments}
    only_shown = [Cell.parse(key) for key in shown - set(settled) - busy]
    return Difference(
        first=sessions[0],
        last=sessions[-1],
        compared=len(settled),
        not_shown=sorted(c for key, c in settled.items() if key not in shown and key not in busy and c.symbol in columns),
        not_settled=sorted(cell for cell in only_shown if cell.period in ended and cell.symbol in listed),
    )


def _finished(workbench: Workbench, instruments: Sequence[Instrument], plan: PartitionPlan, *, until: datetime) -> list[date]:
    """The newest sessions that every calendar had closed by ``until``, in order."""
    newest: list[date] = []
    for name in {instrument.calendar for instrument in instruments}:
        calendar = workbench.calendar(name)
        first = max(plan.start, calendar.first_session, until.date() - timedelta(days=_DAYS_BACK))
        last = min(until.date() + timedelta(days=1), calendar.last_session)
        bounds = calendar.bounds(first, last) if first <= last else None
        over = [] if bounds is None else bounds.session[bounds.closes_at <= until.timestamp()].tolist()
        newest.append(date_of(over[-1]) if over else date.min)
    last = min(newest, default=date.min)
    days: set[date] = set()
    for name in {instrument.calendar for instrument in instruments}:
        calendar = workbench.calendar(name)
        first = max(plan.start, calendar.first_session)
        if last > first:
            days.update(calendar.sessions(max(first, last - timedelta(days=_DAYS_BACK)), last))
    return sorted(days)[-SESSIONS:]


def _materialised(instance: dg.DagsterInstance, interval: Interval, since: date | None) -> set[str]:
    """The partitions materialised since the day ``since`` began anywhere; None: ever."""
    key = asset_key(interval)
    if since is None:
        return instance.get_materialized_partitions(key)
    begun = datetime.combine(since, time(), UTC) - timedelta(days=1)
    # From the first event of those days on: the index is read from there, however long the history is.
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=key, after_timestamp=begun.timestamp()), limit=1, ascending=True
    ).records
    return instance.get_materialized_partitions(key, after_cursor=records[0].storage_id - 1) if records else set()


def left_failed(workbench: Workbench, instance: dg.DagsterInstance, interval: Interval, plan: PartitionPlan) -> list[LeftFailed]:
    """What failed runs of the last week left behind, the newest periods first; at most a thousand partitions are looked at."""
    fetched = interval.source or interval
    candidates = _of_failed_runs(instance, interval, plan)
    if not candidates:
        return []
    busy = cells_in_flight(instance, plan, now=datetime.now(UTC))[fetched]
    newest = sorted(set(candidates) - busy, key=lambda cell: (cell.period, cell.symbol), reverse=True)[:_MOST_CELLS]
    lacking = _lacking(newest, workbench, interval, plan)
    return [LeftFailed(cell, *candidates[cell]) for cell in newest if cell in lacking]


def _of_failed_runs(instance: dg.DagsterInstance, interval: Interval, plan: PartitionPlan) -> dict[Cell, tuple[str, datetime]]:
    symbols = symbols_in_order(plan, instance)
    fetched = interval.source or interval
    periods = plan.periods(interval).existing(datetime.now(UTC))
    found: dict[Cell, tuple[str, datetime]] = {}
    records = instance.get_run_records(
        dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=datetime.now(UTC) - FAILED_RUNS_OF), limit=_MOST_RUNS
    )
    for record in records:
        run = record.dagster_run
        chosen = run.asset_selection
        if not works_on(run, fetched) or (chosen and asset_key(interval) not in chosen):
            continue
        try:
            cells = cells_of_tags(run.tags, periods=periods, symbols=symbols)
        except InvalidInputError:
            # Launched under another plan: its partitions do not exist any more.
            continue
        for cell in cells:
            # The newest run that failed is the one to look at.
            found.setdefault(cell, (run.run_id, record.update_timestamp))
    return found


def _lacking(cells: Collection[Cell], workbench: Workbench, interval: Interval, plan: PartitionPlan) -> set[Cell]:
    """Those of ``cells`` in which a session that could be asked for was not answered."""
    if not cells:
        return set()
    periods = plan.periods(interval)
    spans = {cell.period: periods.days_of(cell.period) for cell in cells}
    columns = {cell.symbol for cell in cells}
    instruments = [one for one in workbench.instruments(active_only=True) if plan.column_of(one.symbol) in columns]
    first, last = min(span[0] for span in spans.values()), max(span[1] for span in spans.values())
    settled = {
        found.cell
        for found in settled_partitions(instruments, interval, plan, workbench, first=first, last=last)
        if found.cell in cells
    }
    by_column: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        by_column[cell.symbol].append(cell)
    expected = {
        cell
        for one in instruments
        for cell in by_column[plan.column_of(one.symbol)]
        if _was_expected(one, spans[cell.period], workbench, interval)
    }
    return expected - settled


def _was_expected(instrument: Instrument, span: tuple[date, date], workbench: Workbench, interval: Interval) -> bool:
    calendar = workbench.calendar(instrument.calendar)
    since = workbench.reached_since(interval, instrument.calendar)
    reached = date.min if since is None else datetime.fromtimestamp(since, UTC).date()
    first = max(span[0], calendar.first_session, reached)
    last = min(span[1], calendar.last_session, day_in_the_east(workbench.now()))
    return first <= last and any(instrument.listed_on(session) for session in calendar.sessions(first, last))
