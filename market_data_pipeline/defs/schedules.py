"""Fresh candles: each exchange's session as partitions, soon after its close. While it is open, the sweep brings them (jobs.py)."""

# No `from __future__ import annotations`: Dagster takes the class of an op's config from the annotation itself, not from its text.

from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from market_data_pipeline.defs.partitions import ANOTHER_PLAN, range_tags, symbols_in_order
from market_data_pipeline.defs.tags import CALENDAR, FRESH_FIRST
from market_data_pipeline.defs.workbench import OpensWorkbench, Workbench
from market_data_pipeline.domain.candles import FETCHED_INTERVALS, Interval
from market_data_pipeline.domain.partitions import CalendarHours, Cell, PartitionPlan, boxes
from market_data_pipeline.domain.runs import CAUSE, PRIORITY, job_name
from market_data_pipeline.domain.sessions import date_of
from market_data_pipeline.domain.universe import Instrument
from market_data_pipeline.ingest.sweep import slug

if TYPE_CHECKING:
    from market_data_pipeline.domain.sessions import TradingCalendar

# Providers publish the last bars of a session minutes late; what is later still is the gap sensor's.
MINUTES_AFTER_CLOSE = 10
# A half day closes three hours early: the tick of the full day's close then finds a session that closed some hours ago.
LATEST_AFTER_CLOSE = timedelta(hours=6)
# How far back a close looks for sessions that nobody asked for, because the stack was down.
CATCH_UP = timedelta(days=14)


def schedules(plan: PartitionPlan, *, in_force: Callable[[], PartitionPlan]) -> list[dg.ScheduleDefinition]:
    """For each calendar of the plan one schedule a fetched interval, after the close.

    ``in_force`` reads the plan anew: until the code location is reloaded, it may differ from ``plan``.
    """
    return [_after_close(plan, hours, fetched, in_force) for hours in plan.calendars for fetched in FETCHED_INTERVALS]


def _after_close(
    plan: PartitionPlan, hours: CalendarHours, fetched: Interval, in_force: Callable[[], PartitionPlan]
) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=f"{slug(hours.name)}_{job_name(fetched)}_after_close",
        job_name=job_name(fetched),
        cron_schedule=crons_after_close(hours),
        execution_timezone=hours.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Ten minutes after {hours.name} closes, half days included: the session's partitions of {fetched}.",
    )
    def after_close(
        context: dg.ScheduleEvaluationContext, workbenches: dg.ResourceParam[OpensWorkbench]
    ) -> list[dg.RunRequest] | dg.SkipReason:
        if not plan.has_the_partitions_of(in_force()):
            return dg.SkipReason(ANOTHER_PLAN)
        with workbenches.open() as workbench:
            at = workbench.now() if workbench.is_virtual() else context.scheduled_execution_time
            session = last_closed(workbench.calendar(hours.name), at - timedelta(minutes=MINUTES_AFTER_CLOSE - 1))
            if session is None:
                return dg.SkipReason(f"{hours.name} has not closed within the last six hours")
            instruments = [i for i in workbench.instruments(active_only=True) if i.calendar == hours.name]
            needs = list(_needs(workbench, plan, fetched, instruments, session))
        known = set(symbols_in_order(plan, context.instance))
        requests = [
            dg.RunRequest(
                run_key=f"close:{hours.name}:{fetched}:{session}:{box.first.key}:{box.last.key}",
                tags={**range_tags(box), CAUSE: "close", CALENDAR: hours.name, PRIORITY: FRESH_FIRST},
            )
            for box in boxes(
                (cell for cell in needs if cell.symbol in known),
                periods=plan.periods(fetched).existing(context.scheduled_execution_time),
                symbols=symbols_in_order(plan, context.instance),
            )
        ]
        return requests or dg.SkipReason(f"no symbol of the universe traded in {hours.name}'s session of {session}")

    return after_close


def crons_after_close(hours: CalendarHours) -> list[str]:
    """Ten minutes after each time at which sessions of this calendar close, every day: the tick asks whether there was one."""
    times = (datetime.strptime(close, "%H:%M") + timedelta(minutes=MINUTES_AFTER_CLOSE) for close in hours.closes)  # noqa: DTZ007
    return [f"{time.minute} {time.hour} * * *" for time in times]


def last_closed(calendar: "TradingCalendar", at: datetime, *, within: timedelta | None = LATEST_AFTER_CLOSE) -> date | None:
    """The newest session that had closed by ``at`` and not longer than ``within`` before; None where there is none."""
    closed = [
        (session, close)
        for session, _, close in _hours(calendar, at.date() - timedelta(days=15), at.date() + timedelta(days=1))
        if close <= at.timestamp()
    ]
    if not closed or (within is not None and closed[-1][1] < (at - within).timestamp()):
        return None
    return closed[-1][0]


def _hours(calendar: "TradingCalendar", first: date, last: date) -> list[tuple[date, int, int]]:
    """The sessions from ``first`` to ``last`` with their opens and closes, epoch seconds UTC."""
    bounds = calendar.bounds(first, last)
    sessions = map(date_of, bounds.session.tolist())
    return list(zip(sessions, bounds.opens_at.tolist(), bounds.closes_at.tolist(), strict=True))


def _needs(
    workbench: Workbench, plan: PartitionPlan, interval: Interval, instruments: Sequence[Instrument], session: date
) -> Iterator[Cell]:
    """The partitions of ``session``, and of those before it that the ledger has never heard of since it last heard of a symbol.

    A symbol that the ledger does not know at all gets the one session: its history is for `mdp backfill`.
    """
    first = max(session - CATCH_UP, plan.start)
    newest: dict[int, date] = {}
    for row in workbench.ledger_rows([i.symbol_id for i in instruments], interval, first, session):
        newest[row.symbol_id] = max(row.session, newest.get(row.symbol_id, row.session))
    sessions = {name: workbench.calendar(name).sessions(first, session) for name in {i.calendar for i in instruments}}
    periods = plan.periods(interval)
    for instrument in instruments:
        since = newest.get(instrument.symbol_id, session)
        for day in sessions[instrument.calendar]:
            if (day == session or since < day) and instrument.listed_on(day):
                yield Cell(periods.key_of(day), plan.column_of(instrument.symbol))
