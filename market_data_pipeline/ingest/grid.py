"""The expected bars of a range of sessions, flat: one array a property, one element a bar. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.sessions import date_of, day_number

if TYPE_CHECKING:
    from datetime import date

    from market_data_pipeline.domain.candles import Bools, Int16s, Int32s, Int64s, Interval
    from market_data_pipeline.domain.sessions import TradingCalendar


@dataclass(frozen=True, eq=False)
class Grid:
    """Sessions in order, and their bars one session after the other.

    ``days`` (days since 1970-01-01), ``opens_at`` and ``closes_at`` have one element a session; ``offsets`` one more: the bars of
    session ``i`` are ``offsets[i]`` to ``offsets[i + 1]`` of the bar arrays. ``starts_at`` is the instant a bar opens; it differs
    from ``opened_at`` only for 1d, whose ``opened_at`` is a date label. Instants are epoch seconds UTC.
    """

    days: Int32s
    opens_at: Int64s
    closes_at: Int64s
    offsets: Int64s
    opened_at: Int64s
    starts_at: Int64s
    ends_at: Int64s

    @classmethod
    def of(cls, calendar: TradingCalendar, interval: Interval, first: date, last: date) -> Grid:
        """The grid of ``interval`` from session ``first`` to ``last``, both included."""
        bounds = calendar.bounds(first, last)
        bars = calendar.expected_opens(interval, first, last)
        offsets = np.searchsorted(bars.session, np.append(bounds.session, np.iinfo(np.int32).max)).astype(np.int64)
        starts_at = bounds.opens_at if interval.is_daily else bars.opened_at
        return cls(bounds.session, bounds.opens_at, bounds.closes_at, offsets, bars.opened_at, starts_at, bars.ends_at)

    def __len__(self) -> int:
        return len(self.days)

    @cached_property
    def sessions(self) -> list[date]:
        """The session dates."""
        return [date_of(day) for day in self.days.tolist()]

    @cached_property
    def lengths(self) -> Int64s:
        """How many bars each session expects."""
        return np.diff(self.offsets)

    def between(self, first: date, last: date) -> slice:
        """The places of the sessions from ``first`` to ``last``, both included."""
        edges = np.searchsorted(self.days, [day_number(first), day_number(last) + 1])
        return slice(int(edges[0]), int(edges[1]))

    def part(self, places: slice) -> Grid:
        """The grid of some of the sessions."""
        bars = slice(int(self.offsets[places.start]), int(self.offsets[places.stop]))
        return Grid(
            self.days[places],
            self.opens_at[places],
            self.closes_at[places],
            self.offsets[places.start : places.stop + 1] - bars.start,
            self.opened_at[bars],
            self.starts_at[bars],
            self.ends_at[bars],
        )

    def without(self, sessions: Bools) -> Grid:
        """The grid less the sessions that a mask, one element a session, names."""
        if not sessions.any():
            return self
        keep = ~sessions
        bars = np.repeat(keep, self.lengths)
        offsets = np.concatenate(([0], np.cumsum(self.lengths[keep])))
        return Grid(
            self.days[keep],
            self.opens_at[keep],
            self.closes_at[keep],
            offsets,
            self.opened_at[bars],
            self.starts_at[bars],
            self.ends_at[bars],
        )

    def places_of(self, days: Int32s, slots: Int16s) -> Int64s:
        """Where in the bar arrays the given (session day, slot) are; -1 for a session that is not in this grid."""
        if not len(self):
            return np.full(len(days), -1, np.int64)
        index = np.minimum(np.searchsorted(self.days, days), len(self) - 1)
        return np.where((self.days[index] == days) & (slots >= 0), self.offsets[index] + slots, -1)

    def sessions_with(self, mask: Bools) -> Bools:
        """The sessions in which ``mask``, one element a bar, is true anywhere."""
        counted = np.concatenate(([0], np.cumsum(mask)))
        anywhere: Bools = counted[self.offsets[1:]] > counted[self.offsets[:-1]]
        return anywhere

    def bars_of(self, sessions: slice) -> slice:
        """Where the bars of some of the sessions are in the bar arrays."""
        return slice(int(self.offsets[sessions.start]), int(self.offsets[sessions.stop]))

    def split(self, flat: Bools) -> list[Bools]:
        """A bar array cut into one view a session."""
        return [flat[start:end] for start, end in pairwise(self.offsets.tolist())]

    def due(self, now: int, settle_seconds: int) -> Bools:
        """The bars that should exist by ``now``."""
        return self.ends_at + settle_seconds <= now
