"""When a bar is late, and how fresh a universe is: the census of one instant. Pure; the ledger is counted in storage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.candles import Interval

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date, datetime

    from market_data_pipeline.domain.candles import Int64s
    from market_data_pipeline.domain.universe import Tier

# A symbol whose provider answers and has nothing is stale once its silence has this probability, by its own density.
SILENT_BY_CHANCE = 0.001
# A bar is late after so many times its length, or its tier's cadence where that is longer.
TIMES_THE_INTERVAL = 2
# The sweep asks once a minute at best, and comes for the last time so long after the close (ingest/sweep.py).
SHORTEST_CADENCE_SECONDS, SWEPT_AFTER_CLOSE_SECONDS = 60, 180
# What is not there so long after it had to be is a gap, for healing to see to: nobody is told at night that it is not fresh.
STALE_FOR_SECONDS = 6 * 3600


@dataclass(frozen=True, slots=True)
class Promise:
    """How soon the bars of one tier and interval are there.

    ``settle_seconds``: how long after its end a bar can be asked for. ``cadence_seconds``: how often the tier's minutes are asked
    for while the market is open; 0: only after the close, and then within ``eod_seconds`` of it.
    """

    interval: Interval
    settle_seconds: int
    cadence_seconds: float
    eod_seconds: int

    @property
    def is_live(self) -> bool:
        """Whether bars come while the market is open: minutes, and what is derived from them."""
        return self.cadence_seconds > 0 and Interval.M1 in {self.interval, self.interval.source}

    @property
    def allowed_seconds(self) -> float:
        """How long a bar that comes while the market is open may take from the instant at which it can be asked for."""
        return TIMES_THE_INTERVAL * max(self.interval.seconds, self.cadence_seconds)

    def ready_at(self, ends_at: Int64s) -> Int64s:
        """When each bar can be asked for, epoch seconds."""
        return ends_at + self.settle_seconds

    def deadlines(self, ends_at: Int64s, closes_at: int) -> Int64s:
        """From when on each bar of one session is late, epoch seconds; in order, as ``ends_at`` is.

        The last bars of a session, which no sweep is sure to come back for, are the after-close schedule's, as are all bars that
        are not brought up before.
        """
        ready = self.ready_at(ends_at)
        after_close = np.maximum(ready, closes_at + self.settle_seconds + self.eod_seconds)
        if not self.is_live:
            return after_close
        live = ready + int(self.allowed_seconds)
        swept = ready + max(self.cadence_seconds, SHORTEST_CADENCE_SECONDS) <= closes_at + SWEPT_AFTER_CLOSE_SECONDS
        deadlines: Int64s = np.maximum.accumulate(np.where(swept, live, np.maximum(live, after_close)))
        return deadlines


@dataclass(frozen=True, slots=True, eq=False)
class WatchedSession:
    """One session of a calendar as one tier and interval is judged in it. Slots are in opening order.

    ``ready_at``, ``deadlines``: epoch seconds, one element a slot.
    """

    calendar: str
    interval: Interval
    tier: Tier
    session: date
    ready_at: Int64s
    deadlines: Int64s

    @property
    def expected(self) -> int:
        """How many bars the session has."""
        return len(self.deadlines)

    def due(self, at: float) -> int:
        """How many bars had to be there by ``at``: the first so many. Never less at a later instant."""
        return int(np.searchsorted(self.deadlines, at, side="right"))

    def ready(self, at: float) -> int:
        """How many bars could be asked for by ``at``."""
        return int(np.searchsorted(self.ready_at, at, side="right"))

    def is_over(self, at: float) -> bool:
        """Whether its last bar had to be there so long ago that what is lacking is a gap, and no longer stale."""
        return bool(at > self.deadlines[-1] + STALE_FOR_SECONDS)


def watched(sessions: Sequence[WatchedSession], at: float) -> WatchedSession | None:
    """Of sessions in order the newest of which a bar had to be there by ``at``; None where there is none."""
    return next((one for one in reversed(sessions) if one.due(at)), None)


def to_count(session: WatchedSession, counted: int | None, *, at: float, unwatched_seconds: float) -> tuple[int, int]:
    """The slots to judge now, [first, last): each slot once, however often and by whomever this is asked.

    ``counted``: how many of the first have been judged; None: none ever. What had to be there more than ``unwatched_seconds``
    before ``at`` while nobody looked is left out for good: nobody knows whether it came in time.
    """
    last = session.due(at)
    first = max(counted or 0, session.due(at - unwatched_seconds))
    return min(first, last), last


@dataclass(frozen=True, slots=True)
class FreshnessLine:
    """One tier and interval at one instant, in the sessions watched then.

    ``symbols``: expected and tradable, with at least one bar whose time is up. ``stale``: of them, those whose newest bar is older
    than allowed. ``due``: bars whose time is up and that could be traded; ``lost``: of them, those that are not there.
    ``worst_lag_seconds``, ``median_lag_seconds``: how late the newest bar is, 0 where nothing is late; None without symbols.
    Bars of the watched sessions by verdict: ``present``, ``confirmed_empty``, ``halted``, ``missing``, ``pending``.
    ``is_over``: the sessions ended so long ago that what they lack is a gap: nothing is stale, and no symbol can become so before
    the next session's first bar is due.
    """

    tier: Tier
    interval: Interval
    symbols: int
    stale: int
    due: int
    lost: int
    worst_lag_seconds: float | None
    median_lag_seconds: float | None
    present: int = 0
    confirmed_empty: int = 0
    halted: int = 0
    missing: int = 0
    pending: int = 0
    is_over: bool = False

    @property
    def violation_rate(self) -> float:
        """Share of the symbols that are stale; 0 where there are none."""
        return self.stale / self.symbols if self.symbols else 0.0


@dataclass(frozen=True, slots=True)
class StaleSymbol:
    """A symbol whose newest bar is older than allowed. ``newest_opened_at`` None: nothing of the session came at all.

    ``behind``: bars whose time is up, from the newest one on. ``is_answered``: its provider was heard since, and had nothing.
    """

    symbol_id: int
    symbol: str
    tier: Tier
    interval: Interval
    session: date
    newest_opened_at: datetime | None
    behind: int
    lag_seconds: float
    is_answered: bool


@dataclass(frozen=True, slots=True)
class Census:
    """Every followed symbol against the calendar at ``at``. Lines only of tiers and intervals that something is expected of now.

    ``stale``: the worst ones of each tier and interval, at most so many that a person would read. ``lost``: bars lost in between,
    where the newest is on time, are in the lines only. ``last_due_at``: the newest deadline that has passed; None where nothing was
    ever due.
    """

    at: datetime
    lines: Sequence[FreshnessLine] = ()
    stale: Sequence[StaleSymbol] = ()
    last_due_at: datetime | None = None
