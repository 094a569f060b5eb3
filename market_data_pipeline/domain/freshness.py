"""When a bar is late, and how fresh a universe is: the census of one instant. Pure; the ledger is counted in storage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date, datetime

    from market_data_pipeline.domain.candles import Interval
    from market_data_pipeline.domain.universe import Tier


@dataclass(frozen=True, slots=True)
class FreshnessLine:
    """One tier and interval at one instant, in the sessions watched then.

    ``symbols``: expected and tradable, with at least one bar whose time is up. ``stale``: of them, those whose newest bar is older
    than allowed. ``due``: bars whose time is up and that could be traded; ``lost``: of them, those that are not there.
    ``worst_lag_seconds``, ``median_lag_seconds``: how late the newest bar is, 0 where nothing is late; None without symbols.
    Bars of the watched sessions by verdict: ``present``, ``confirmed_empty``, ``halted``, ``missing``, ``pending``.
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
    where the newest is on time, are in the lines only.
    """

    at: datetime
    lines: Sequence[FreshnessLine] = ()
    stale: Sequence[StaleSymbol] = field(default=())
