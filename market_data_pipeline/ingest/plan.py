"""From what is wanted to the fewest requests that may be sent. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datetime import date

    from market_data_pipeline.domain.candles import Bools, Int32s, Int64s
    from market_data_pipeline.domain.capabilities import Capability
    from market_data_pipeline.domain.sessions import SessionBounds, TradingCalendar
    from market_data_pipeline.ingest.grid import Grid

# A request sent exactly at the edge of a provider's reach is late when it arrives; a minute is more than a request may take.
REACH_MARGIN_SECONDS = 60
# Bars before the first one wanted, asked for again: silence is only evidence between two bars of the same answer.
NEIGHBOURS = 5
# Where one request takes many symbols, those of a running session begin at every so many bars: symbols whose newest bars came at
# different minutes would otherwise never share a request.
SLOTS_TOGETHER = 30
# Sessions asked for with one whose ends are silent, on each side at most: of a symbol that trades twice a week, five hold a bar.
MOST_NEIGHBOURS = 5
# Five sessions and the longest closures around them.
_AROUND = timedelta(days=25)
_DAY = 86_400


@dataclass(frozen=True, slots=True)
class Window:
    """One request to send: [start, end) in epoch seconds UTC, and the places in the grid of the sessions it covers."""

    start: int
    end: int
    sessions: slice


def within_reach(grid: Grid, capability: Capability, now: int) -> Bools:
    """The bars that a request sent now may still ask for."""
    return grid.starts_at >= _oldest(capability, now)


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """The sessions of the calendar around those of a grid, and how many of them to ask for with each, by its place in the grid.

    ``opens_at`` and ``closes_at`` are of consecutive sessions, the newest of them over; ``at`` says where in them each session of
    the grid is. ``before`` and ``after``: how many to ask for on each side, 0 for none.
    """

    opens_at: Int64s
    closes_at: Int64s
    at: Int64s
    before: Int64s
    after: Int64s

    def around(self, place: int, start: int, end: int, capability: Capability, *, oldest: int) -> tuple[int, int]:
        """[start, end) widened to the neighbours of the session at ``place``, as far as the span and the reach allow."""
        at, last = int(self.at[place]), len(self.opens_at) - 1
        before, after = min(int(self.before[place]), at), min(int(self.after[place]), max(last - at, 0))
        while before or after:
            wide_start = max(int(self.opens_at[at - before]), oldest) if before else start
            wide_end = int(self.closes_at[at + after]) if after else end
            if capability.span_seconds is None or wide_end - wide_start <= capability.span_seconds:
                return min(wide_start, start), max(wide_end, end)
            before, after = (before - 1, after) if before >= after else (before, after - 1)
        return start, end


def neighbours(
    grid: Grid,
    calendar: TradingCalendar,
    resolved: Bools,
    attempts: Int32s,
    *,
    confirm_after: int,
    now: int,
    settle_seconds: int,
) -> Neighbours | None:
    """Whose neighbours to ask for as well, None for nobody's.

    Silence at the end of a session is evidence only with a bar of the same answer beyond it. So from the attempt on that can
    confirm it, a session whose first or last bar is still open is asked for together with the one before or after it; with each
    further attempt, with one more. Until then, and for all others, it would cost rows and windows for nothing.
    """
    sizes = np.clip(attempts.astype(np.int64) - (confirm_after - 2), 0, MOST_NEIGHBOURS)
    before = np.where(resolved[grid.offsets[:-1]], 0, sizes)
    after = np.where(resolved[grid.offsets[1:] - 1], 0, sizes)
    if not (before.any() or after.any()):
        return None
    bounds = _around(calendar, grid.sessions[0], grid.sessions[-1])
    over = bounds.closes_at + settle_seconds <= now
    at = np.searchsorted(bounds.session, grid.days).astype(np.int64)
    return Neighbours(bounds.opens_at[over], bounds.closes_at[over], at, before, after)


def next_over(grid: Grid, calendar: TradingCalendar, *, settle_seconds: int) -> Int64s:
    """For each session, when all bars of the next one are due; a day after its own where the calendar ends."""
    if not len(grid):
        return grid.closes_at
    bounds = _around(calendar, grid.sessions[0], grid.sessions[-1])
    places = np.searchsorted(bounds.session, grid.days) + 1
    known = places < len(bounds.closes_at)
    closes = np.where(known, bounds.closes_at[np.minimum(places, len(bounds.closes_at) - 1)], grid.closes_at + _DAY)
    over: Int64s = closes + settle_seconds
    return over


# A pass plans thousands of symbols over the same few ranges.
@lru_cache(maxsize=256)
def _around(calendar: TradingCalendar, first: date, last: date) -> SessionBounds:
    return calendar.bounds(max(first - _AROUND, calendar.first_session), min(last + _AROUND, calendar.last_session))


def windows(
    grid: Grid,
    wanted: Bools,
    due: Bools,
    capability: Capability,
    *,
    now: int,
    beside: Neighbours | None = None,
) -> list[Window]:
    """The fewest windows, in order, that cover every wanted bar and that the provider accepts.

    ``wanted`` and ``due`` have one element a bar of ``grid``. A finished session is asked for whole, so that each missing
    minute has neighbours in the same answer; a running one from a few bars before the first wanted, and to the last bar that is
    due. ``beside``: the sessions to ask for with them, which a window may reach into and does not list. No window begins before the
    capability's reach, and none is longer than its span unless a single session is.
    """
    together = SLOTS_TOGETHER if capability.symbols_per_request > 1 else 1
    oldest, joined = _oldest(capability, now), list[Window]()
    for place in np.flatnonzero(grid.sessions_with(wanted)).tolist():
        bars = slice(int(grid.offsets[place]), int(grid.offsets[place + 1]))
        slots = np.flatnonzero(wanted[bars])
        finished = bool(due[bars][-1])
        first = 0 if finished else max(int(slots[0]) - NEIGHBOURS, 0) // together * together
        last = -1 if finished else int(np.flatnonzero(due[bars])[-1])
        start, end = max(int(grid.starts_at[bars][first]), oldest), int(grid.ends_at[bars][last])
        if beside is not None and finished:
            start, end = beside.around(place, start, end, capability, oldest=oldest)
        before = joined[-1] if joined else None
        if before is not None and (
            capability.span_seconds is None or max(end, before.end) - min(start, before.start) <= capability.span_seconds
        ):
            joined[-1] = Window(min(start, before.start), max(end, before.end), slice(before.sessions.start, place + 1))
        else:
            joined.append(Window(start, end, slice(place, place + 1)))
    return joined


def _oldest(capability: Capability, now: int) -> int:
    return -(1 << 62) if capability.reach_seconds is None else now - capability.reach_seconds + REACH_MARGIN_SECONDS
