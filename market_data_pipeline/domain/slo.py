"""Error budgets: how much may be late in 30 days, how much of it is spent, and how fast. Pure.

The windows and factors are those of Google's SRE workbook, chapter 5: two windows must burn, the long one so that it matters, the
short one so that it is not over already.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from market_data_pipeline.domain.candles import Interval
    from market_data_pipeline.domain.universe import Tier

BUDGET = timedelta(days=30)
WINDOWS: Mapping[str, timedelta] = MappingProxyType(
    {
        "5m": timedelta(minutes=5),
        "30m": timedelta(minutes=30),
        "1h": timedelta(hours=1),
        "6h": timedelta(hours=6),
        "3d": timedelta(days=3),
    }
)
# One late bar of a small universe at the open is 100 % of what was due, and no reason to wake anybody.
LEAST_LATE = 5


@dataclass(frozen=True, slots=True)
class BurnRule:
    """It burns where both windows exceed ``factor``: 14.4 for an hour spends 2 % of a month's budget, 6 for six hours 5 %."""

    long: str
    short: str
    factor: float


FAST, SLOW, CREEPING = BurnRule("1h", "5m", 14.4), BurnRule("6h", "30m", 6.0), BurnRule("3d", "6h", 1.0)


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars judged, each once: ``due``, and of them ``late``."""

    due: int = 0
    late: int = 0

    def __add__(self, other: Bars) -> Bars:
        return Bars(self.due + other.due, self.late + other.late)

    @property
    def late_share(self) -> float:
        """0 where nothing was due."""
        return self.late / self.due if self.due else 0.0


def burn_rate(bars: Bars, objective: float | None) -> float:
    """How many times faster than allowed the budget is spent; 0 where there is no objective to miss."""
    return bars.late_share / objective if objective else 0.0


def budget_left(bars: Bars, objective: float | None) -> float | None:
    """The share of the budget that is left, below 0 where more was spent; None without an objective."""
    if not objective:
        return None
    return 1.0 - bars.late / (objective * bars.due) if bars.due else 1.0


def is_burning(rule: BurnRule, bars: Mapping[str, Bars], objective: float | None, *, least_late: int = LEAST_LATE) -> bool:
    """Whether both windows of ``rule`` burn, and so many bars were late in the long one that it is no accident of small numbers."""
    long, short = bars.get(rule.long, Bars()), bars.get(rule.short, Bars())
    return long.late >= least_late and min(burn_rate(long, objective), burn_rate(short, objective)) > rule.factor


@dataclass(frozen=True, slots=True)
class SloLine:
    """One tier and interval. ``objective`` None: nothing is promised of the tier (MDP_SLO_TARGETS).

    ``symbols``, ``stale``, ``worst_lag_seconds``, ``is_over``: of the census now, as in FreshnessLine. ``due``, ``late``: bars of
    30 days, each counted once. ``windows``: the same of shorter ones, by the names in WINDOWS.
    """

    tier: Tier
    interval: Interval
    objective: float | None
    symbols: int = 0
    stale: int = 0
    worst_lag_seconds: float | None = None
    is_over: bool = False
    due: int = 0
    late: int = 0
    windows: Mapping[str, Bars] = field(default_factory=dict)

    @property
    def violation_rate(self) -> float:
        """Share of the symbols that are stale now."""
        return self.stale / self.symbols if self.symbols else 0.0

    @property
    def is_violated(self) -> bool:
        """Whether more are stale now than the objective allows."""
        return self.objective is not None and self.violation_rate > self.objective

    @property
    def budget_left(self) -> float | None:
        """Share of the 30 days' error budget that is left; below 0: broken."""
        return budget_left(Bars(self.due, self.late), self.objective)

    @property
    def is_spent(self) -> bool:
        """Whether nothing of the budget is left."""
        left = self.budget_left
        return left is not None and left <= 0

    @property
    def burn_rates(self) -> dict[str, float]:
        """By the names in WINDOWS; 1: the budget would just last for 30 days."""
        return {name: burn_rate(self.windows.get(name, Bars()), self.objective) for name in WINDOWS}

    @property
    def is_burning_fast(self) -> bool:
        """Somebody should be woken: at this rate the month's budget is gone in two days."""
        return is_burning(FAST, self.windows, self.objective)

    @property
    def is_burning_slowly(self) -> bool:
        """Somebody should look today: the budget lasts for days, or is spent by a little too much all the time."""
        return any(is_burning(rule, self.windows, self.objective) for rule in (SLOW, CREEPING))


@dataclass(frozen=True, slots=True)
class SloStatus:
    """Every tier and interval that something was expected of, now or in the last 30 days. ``last_due_at``: the newest deadline."""

    at: datetime
    lines: Sequence[SloLine] = ()
    last_due_at: datetime | None = None

    def of(self, tier: Tier, interval: Interval) -> SloLine | None:
        """The line of one tier and interval."""
        return next((line for line in self.lines if line.tier is tier and line.interval is interval), None)
