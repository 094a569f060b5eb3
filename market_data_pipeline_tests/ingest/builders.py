"""Builders for the ingest tests: valid answers, except …"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.candles import CandleColumns, Interval
from market_data_pipeline.domain.capabilities import bars_capability
from market_data_pipeline.domain.ports import BarsAnswer, BarsRequest, Fetch
from market_data_pipeline.domain.sessions import trading_calendar
from market_data_pipeline.ingest.grid import Grid
from market_data_pipeline.ingest.plan import Window

if TYPE_CHECKING:
    from collections.abc import Iterable

XNYS = trading_calendar("XNYS")
MONDAY = date(2024, 12, 2)
FRIDAY = date(2024, 12, 6)
MINUTES = bars_capability(Interval.M1, reach_seconds=30 * 86400, span_seconds=8 * 86400)


def instant(text: str) -> int:
    """Epoch seconds of an ISO instant."""
    return int(datetime.fromisoformat(text).timestamp())


LONG_AFTER = instant("2024-12-07T12:00:00Z")


def grid_of(first: date = MONDAY, last: date = MONDAY, interval: Interval = Interval.M1) -> Grid:
    return Grid.of(XNYS, interval, first, last)


def bars_at(opened_at: Iterable[int]) -> CandleColumns:
    """Lawful bars at the given opens: 10 to 12, volume 100."""
    opens = np.fromiter(opened_at, np.int64)
    return CandleColumns.of(opens, *(np.full(len(opens), value) for value in (11.0, 12.0, 10.0, 11.5, 100.0)))


def an_answer(columns: CandleColumns, *, nulls: Iterable[int] = (), interval: Interval = Interval.M1) -> BarsAnswer:
    request = BarsRequest("AAPL", interval, 0, 1 << 40)
    fetch = Fetch(
        provider="yahoo",
        symbol="AAPL",
        interval=interval,
        request="GET /v8/finance/chart/AAPL",
        started_at=datetime(2024, 12, 7, tzinfo=UTC),
        latency_seconds=0.1,
        outcome="ok",
        status=200,
        rows=len(columns),
    )
    return BarsAnswer(request, fetch, columns, np.fromiter(nulls, np.int64))


def whole(grid: Grid) -> Window:
    return Window(int(grid.starts_at[0]), int(grid.ends_at[-1]), slice(0, len(grid)))


def except_at(columns: CandleColumns, row: int, **values: float) -> CandleColumns:
    """``columns`` with some values of one row replaced."""
    changed = {name: getattr(columns, name).copy() for name in values}
    for name, value in values.items():
        changed[name][row] = value
    return replace(columns, **changed)
