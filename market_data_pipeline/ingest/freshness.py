"""How fresh everything is now, by the calendar and the ledger; and what becomes of the error budgets.

The calendar says which bars had to be there; the ledger is counted in one statement (storage/freshness.py).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.freshness import Census, FreshnessLine, Promise, StaleSymbol, WatchedSession, to_count
from market_data_pipeline.domain.slo import WINDOWS, Bars, SloLine, SloStatus
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.ingest.grid import Grid
from market_data_pipeline.settings import numbers_by_tier
from market_data_pipeline.storage.freshness import AskedFreshness, FreshnessReader
from market_data_pipeline.storage.slo import BUDGET_WINDOW, Glance, SloBook

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from market_data_pipeline.domain.candles import Int64s
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.storage.freshness import SessionCounts
    from market_data_pipeline.storage.slo import Line, Place

# As many as a person would read of one tier and interval.
MOST_STALE = 100
# Who watches again after a longer break does not know whether what it finds came in time.
UNWATCHED_SECONDS = 2 * 3600
# The longest closures of exchanges are shorter, weekends around them included.
_BACK, _AHEAD = timedelta(days=14), timedelta(days=1)
# Densities are of 20 sessions: six weeks hold them, holidays included.
_DENSITY_DAYS, _DENSITY_AFTER_CLOSE = timedelta(days=45), timedelta(hours=6)
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


def take_census(pipeline: Pipeline, *, intervals: Sequence[Interval] = tuple(Interval)) -> Census:
    """Count every followed symbol against the bars that had to be there by now. Reads ledger rows only, and changes nothing."""
    at = pipeline.clock.now()
    stamp = at.timestamp()
    watch = [one for one in _watch(pipeline, intervals, stamp) if one.is_newest]
    asked = [one.asked(0, one.watched.due(stamp), stamp) for one in watch]
    counted = FreshnessReader(pipeline.engine).count(asked, now=at, most=MOST_STALE)
    places: dict[Line, list[int]] = defaultdict(list)
    for place, one in enumerate(watch):
        places[one.watched.tier, one.watched.interval].append(place)
    lines = [
        _line(line, [(watch[place].watched, counted.sessions[place]) for place in found], stamp)
        for line, found in sorted(places.items(), key=lambda item: (item[0][0], item[0][1].seconds))
    ]
    stale = [
        StaleSymbol(
            symbol_id=row.symbol_id,
            symbol=row.symbol,
            tier=one.watched.tier,
            interval=one.watched.interval,
            session=one.watched.session,
            newest_opened_at=_instant(int(one.starts_at[row.newest - 1])) if row.newest else None,
            behind=row.behind,
            lag_seconds=stamp - float(one.watched.ready_at[row.newest]),
            is_answered=row.is_answered,
        )
        for row in counted.stale
        for one in [watch[row.place]]
    ]
    stale.sort(key=lambda one: (one.tier, one.interval.seconds, -one.lag_seconds, one.symbol))
    newest = [int(one.watched.deadlines[one.watched.due(stamp) - 1]) for one in watch]
    return Census(
        at=at,
        lines=[line for line in lines if line.symbols or line.pending],
        stale=stale,
        last_due_at=_instant(max(newest)) if newest else None,
    )


def record_census(pipeline: Pipeline, census: Census) -> None:
    """Add ``census`` to the samples, and the bars whose time came since somebody last did: each bar once, late or not.

    Safe to be called by several at once, after a crash, and after a break: see ``to_count`` for what nobody watched.
    """
    glances = {
        (line.tier, line.interval): Glance(line.symbols, line.stale) for line in census.lines if line.symbols and not line.is_over
    }
    stamp = census.at.timestamp()
    intervals = tuple(Interval)
    watch = list(_watch(pipeline, intervals, stamp))

    def uncounted(progress: Mapping[Place, int]) -> list[AskedFreshness]:
        asked = []
        for one in watch:
            w = one.watched
            counted = progress.get((w.calendar, w.interval, w.tier, w.session))
            first, last = to_count(w, counted, at=stamp, unwatched_seconds=UNWATCHED_SECONDS)
            if first < last:
                asked.append(one.asked(first, last, stamp))
        return asked

    SloBook(pipeline.engine).record(glances, uncounted, at=census.at)


def slo_status(pipeline: Pipeline, *, census: Census | None = None) -> SloStatus:
    """How fresh each tier and interval is, and what is left of its error budget. ``census``: the one taken just now, if any."""
    census = census or take_census(pipeline)
    targets = numbers_by_tier(pipeline.settings.slo_targets)
    windows = SloBook(pipeline.engine).windows(now=census.at)
    fresh = {(line.tier, line.interval): line for line in census.lines}
    lines = []
    for key in sorted({*fresh, *windows}, key=lambda line: (line[0], line[1].seconds)):
        (tier, interval), now, past = key, fresh.get(key), windows.get(key, {})
        month = past.get(BUDGET_WINDOW, Bars())
        lines.append(
            SloLine(
                tier=tier,
                interval=interval,
                objective=targets[tier] or None,
                symbols=now.symbols if now else 0,
                stale=now.stale if now else 0,
                worst_lag_seconds=now.worst_lag_seconds if now else None,
                is_over=now.is_over if now else True,
                due=month.due,
                late=month.late,
                windows={name: past.get(name, Bars()) for name in WINDOWS},
            )
        )
    return SloStatus(census.at, lines, census.last_due_at)


def measure_density(pipeline: Pipeline, *, older_than: timedelta = timedelta(0)) -> int | None:
    """Measure how densely each symbol trades, and say of how many; None where that is known since less than ``older_than``.

    Once a day is enough: it reads a month of the ledger.
    """
    reader, now = FreshnessReader(pipeline.engine), pipeline.clock.now()
    if older_than and now - (reader.measured_at() or _LONG_AGO) < older_than:
        return None
    return reader.measure(now=now, since=(now - _DENSITY_DAYS).date(), over_by=now - _DENSITY_AFTER_CLOSE)


# --- what the calendar says ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Session:
    """A session that something is or was expected of, and its bars. ``is_newest``: the one that a census judges."""

    watched: WatchedSession
    promise: Promise
    is_newest: bool
    closes_at: int
    starts_at: Int64s
    ends_at: Int64s
    minute_ends: Int64s | None

    def asked(self, first: int, last: int, at: float) -> AskedFreshness:
        """The slots [first, last) of it, as the ledger is asked about them."""
        minutes = self.minute_ends
        # Whoever is added after the last sweep is first asked for at the next close.
        followed_by = min(at - self.promise.allowed_seconds, self.closes_at) if self.promise.is_live else self.closes_at
        return AskedFreshness(
            watched=self.watched,
            due=last,
            ready=self.watched.ready(at),
            can_be_stale=not self.watched.is_over(at),
            last_opens=int(self.starts_at[last - 1]),
            last_ends=int(self.ends_at[last - 1]),
            followed_by=_instant(int(followed_by)),
            counted=first,
            minutes=0 if minutes is None else self.watched.interval.seconds // Interval.M1.seconds,
            minutes_counted=0 if minutes is None or not first else int(np.searchsorted(minutes, self.ends_at[first - 1], "right")),
            minutes_due=0 if minutes is None else int(np.searchsorted(minutes, self.ends_at[last - 1], "right")),
        )


def _watch(pipeline: Pipeline, intervals: Sequence[Interval], at: float) -> Iterator[_Session]:
    """The sessions of every calendar, interval and tier of which a bar had to be there lately, or which are the newest such."""
    cadences = numbers_by_tier(pipeline.settings.bars_every_seconds)
    day = _instant(int(at)).date()
    names = FreshnessReader(pipeline.engine).calendars()
    for interval in intervals:
        if pipeline.capability(interval) is None:
            continue
        settle = pipeline.settle_seconds(interval)
        promises = {tier: Promise(interval, settle, cadences[tier], pipeline.settings.eod_within_seconds) for tier in Tier}
        for name in names:
            calendar = pipeline.calendars(name)
            # Beyond what the calendar knows nothing is expected; that it ends is told by the horizon's own alert.
            first, last = max(day - _BACK, calendar.first_session), min(day + _AHEAD, calendar.last_session)
            if first > last:
                continue
            grid = Grid.of(calendar, interval, first, last)
            minutes = None if interval.source is None else Grid.of(calendar, interval.source, first, last)
            reach = pipeline.reach_seconds(interval, name)
            for promise_tier, promise in promises.items():
                yield from _sessions(name, promise_tier, promise, grid, minutes, reach, at)


def _sessions(
    calendar: str, tier: Tier, promise: Promise, grid: Grid, minutes: Grid | None, reach: int | None, at: float
) -> Iterator[_Session]:
    """The newest session of ``grid`` of which a bar had to be there by ``at``, and those before it that were still due lately."""
    found_newest = False
    for place in reversed(range(len(grid))):
        if reach is not None and grid.opens_at[place] < at - reach:
            return
        bars = grid.bars_of(slice(place, place + 1))
        ends_at, closes_at = grid.ends_at[bars], int(grid.closes_at[place])
        deadlines = promise.deadlines(ends_at, closes_at)
        watched = WatchedSession(calendar, promise.interval, tier, grid.sessions[place], promise.ready_at(ends_at), deadlines)
        if not watched.due(at):
            continue
        if found_newest and deadlines[-1] <= at - UNWATCHED_SECONDS:
            return
        minute_ends = None if minutes is None else minutes.ends_at[minutes.bars_of(slice(place, place + 1))]
        yield _Session(watched, promise, not found_newest, closes_at, grid.starts_at[bars], ends_at, minute_ends)
        found_newest = True


# --- what is made of the counts ------------------------------------------------------------------------------------------


def _line(line: Line, found: Sequence[tuple[WatchedSession, SessionCounts]], at: float) -> FreshnessLine:
    tier, interval = line
    lags = sorted((at - float(w.ready_at[slot]), symbols) for w, counts in found for slot, symbols in counts.newest.items())
    symbols = sum(counts.symbols for _, counts in found)
    return FreshnessLine(
        tier=tier,
        interval=interval,
        symbols=symbols,
        stale=sum(counts.stale for _, counts in found),
        due=sum(counts.due for _, counts in found),
        lost=sum(counts.lost for _, counts in found),
        worst_lag_seconds=(lags[-1][0] if lags else 0.0) if symbols else None,
        median_lag_seconds=_median(lags, symbols) if symbols else None,
        present=sum(counts.present for _, counts in found),
        confirmed_empty=sum(counts.confirmed_empty for _, counts in found),
        halted=sum(counts.halted for _, counts in found),
        missing=sum(counts.missing for _, counts in found),
        pending=sum(counts.pending for _, counts in found),
        is_over=all(w.is_over(at) for w, _ in found),
    )


def _median(lags: Sequence[tuple[float, int]], symbols: int) -> float:
    """The lag of the symbol in the middle; those that are not named in ``lags`` have none."""
    place = symbols - sum(count for _, count in lags)
    for lag, count in lags:
        if place > symbols // 2:
            break
        place += count
        if place > symbols // 2:
            return lag
    return 0.0


def _instant(at: int) -> datetime:
    return datetime.fromtimestamp(at, UTC)
