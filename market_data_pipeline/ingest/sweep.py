"""Which jobs the tiers' cadences make at an instant: the newest minutes of what trades now. Pure; the calendars are handed in."""

from __future__ import annotations

import re
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.jobs import BarsFetchJob
from market_data_pipeline.domain.sessions import date_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from datetime import date

    from market_data_pipeline.domain.sessions import TradingCalendar
    from market_data_pipeline.domain.universe import Instrument, Tier

# As the reference has it: a job that fails, or is done twice, costs 200 symbols and no more.
SYMBOLS_A_JOB = 200
# The last bar of a session is due after its close: one sweep that asks for it, and one in case that failed. What is later still is
# the after-close schedule's.
SWEPT_AFTER_CLOSE = timedelta(minutes=3)


def sweep(
    instruments: Iterable[Instrument],
    calendars: Callable[[str], TradingCalendar],
    every_seconds: Mapping[Tier, float],
    *,
    now: datetime,
    tick: datetime,
    failing: Callable[[Sequence[int], date, date], Collection[int]] = lambda *_: (),
    tick_seconds: float = 60.0,
) -> list[BarsFetchJob]:
    """The jobs of the tick at ``tick``, the best tiers first: all instruments of a tier whose turn it is and whose market is open.

    A tier's turn comes every ``every_seconds`` (0: never), in step with the epoch; turns between two ticks are one. ``now`` says
    which sessions run: it is another clock's than ``tick`` where the pipeline's is virtual. A job is about a whole session, of
    which no more is asked for than is due when it is carried out: so the job of the next turn says the same, and is a duplicate
    while this one waits. Asking twice for one tick gives equal jobs with equal ids.

    ``failing`` says which symbols were asked for in vain in the sessions between two dates: they are left out, unless they are half
    of all. Then it is not them, and the others' next minutes must not wait for theirs.
    """
    stamp = int(tick.timestamp())
    turns = {tier for tier, every in every_seconds.items() if every > 0 and stamp % every < tick_seconds}
    running: dict[str, tuple[date, int, int] | None] = {}
    members: dict[tuple[Tier, str], list[Instrument]] = defaultdict(list)
    for instrument in instruments:
        if instrument.tier not in turns:
            continue
        name = instrument.calendar
        if name not in running:
            running[name] = running_hours(calendars(name), now)
        hours = running[name]
        if hours is not None and instrument.listed_on(hours[0]):
            members[instrument.tier, name].append(instrument)
    everybody = [i.symbol_id for found in members.values() for i in found]
    days = [hours[0] for hours in running.values() if hours is not None]
    resting = frozenset(failing(everybody, min(days), max(days))) if everybody else frozenset()
    if 2 * len(resting) >= len(everybody):
        resting = frozenset()
    jobs = []
    for (tier, name), found in sorted(members.items(), key=lambda item: item[0]):
        session, opens_at, closes_at = running[name] or (now.date(), 0, 0)
        in_order = sorted((i for i in found if i.symbol_id not in resting), key=lambda i: i.symbol_id)
        for number, at in enumerate(range(0, len(in_order), SYMBOLS_A_JOB)):
            jobs.append(
                BarsFetchJob(
                    job_id=f"sweep:{slug(name)}:{session}:{tier}:{number}:{stamp}",
                    priority=tier,
                    symbols=tuple(i.symbol for i in in_order[at : at + SYMBOLS_A_JOB]),
                    interval=Interval.M1,
                    start=datetime.fromtimestamp(opens_at, UTC),
                    end=datetime.fromtimestamp(closes_at, UTC),
                )
            )
    return jobs


def running_hours(calendar: TradingCalendar, at: datetime) -> tuple[date, int, int] | None:
    """The session that is open at ``at`` or closed some minutes before, with its open and close; a lunch break is part of it.

    None where there is none, and beyond what the calendar knows.
    """
    day = timedelta(days=1)
    first = max(at.date() - day, calendar.covered_from)
    last = min(at.date() + day, calendar.covered_until)
    bounds = calendar.bounds(first, last)
    hours = zip(bounds.session.tolist(), bounds.opens_at.tolist(), bounds.closes_at.tolist(), strict=True)
    # The last that holds: where sessions meet at midnight, the new one has begun.
    found = [h for h in hours if h[1] < at.timestamp() <= h[2] + SWEPT_AFTER_CLOSE.total_seconds()]
    return (date_of(found[-1][0]), found[-1][1], found[-1][2]) if found else None


def slug(calendar: str) -> str:
    """``calendar`` as a part of a name: ``xnys``, ``24_7``."""
    return re.sub(r"\W+", "_", calendar.lower())
