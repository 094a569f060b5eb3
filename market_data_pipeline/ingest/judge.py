"""Decides what an answer is worth, bar by bar, against the grid and the clock. Pure: nothing is fetched or stored here."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.errors import BarrenError
from market_data_pipeline.domain.healing import enclosed
from market_data_pipeline.domain.ports import AnsweredSession, RefusedBars

if TYPE_CHECKING:
    from collections.abc import Sequence

    from market_data_pipeline.domain.candles import Bools, CandleColumns, Int32s, Int64s
    from market_data_pipeline.domain.ports import BarsAnswer, CorporateAction, Fetch
    from market_data_pipeline.domain.sessions import TradingCalendar
    from market_data_pipeline.ingest.grid import Grid
    from market_data_pipeline.ingest.plan import Window


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """An answer after judgement, ready to be stored.

    ``columns`` are the bars worth keeping, sorted, on the grid; ``session_index`` says which of ``sessions`` each belongs to.
    ``fetch`` carries the counts of everything left out. ``barren``: bars were due in the window and none came, not even a null.
    """

    fetch: Fetch
    columns: CandleColumns
    session_index: Int32s
    sessions: Sequence[AnsweredSession]
    refused: RefusedBars
    actions: Sequence[CorporateAction]
    float32_prices: bool
    barren: bool


def judge(
    answer: BarsAnswer,
    *,
    symbol_id: int,
    window: Window,
    grid: Grid,
    calendar: TradingCalendar,
    now: int,
    settle_seconds: int,
) -> Judged:
    """Keep the bars that are on the grid, finished by the clock and lawful; count or refuse the rest; say what was silent.

    ``grid`` holds the sessions that the window covers. Silence needs a bar of the same answer on both sides: the end of an answer
    that was cut short is no evidence.
    """
    interval = answer.request.interval
    dropped = Counter(answer.fetch.dropped)
    located = calendar.locate(answer.columns.opened_at, interval)
    places = grid.places_of(located.session, located.slot)
    on_grid = places >= 0
    columns, places = answer.columns.take(on_grid), places[on_grid]
    # A window may span sessions that were not asked for; their bars are good, and nobody wanted them.
    dropped["not_asked"] += int((~on_grid & (located.slot >= 0)).sum())
    dropped["outside_session"] += int((located.slot < 0).sum())

    due = grid.due(now, settle_seconds)
    finished = due[places]
    dropped["in_progress"] += int((~finished).sum())
    lawful = columns.obeys_ohlc_laws() & ~_all_zero(columns)
    kept = finished & lawful
    refused = columns.take(finished & ~lawful)

    nulls = calendar.locate(answer.null_opened_at, interval)
    null_places = grid.places_of(nulls.session, nulls.slot)
    dropped["null"] += len(answer.null_opened_at)

    bars = _mask(grid, places[kept])
    spoken = _mask(grid, np.concatenate((places, null_places[null_places >= 0])))
    quiet = due & ~spoken & (grid.starts_at >= window.start) & (grid.starts_at < window.end)
    by_session = zip(grid.sessions, grid.split(bars), grid.split(quiet), grid.split(due), strict=True)
    sessions = [
        AnsweredSession(
            symbol_id=symbol_id,
            session=session,
            opens_at=int(grid.opens_at[index]),
            closes_at=int(grid.closes_at[index]),
            bars=bars_here,
            silent=quiet_here & enclosed(bars_here),
            due=due_here,
        )
        for index, (session, bars_here, quiet_here, due_here) in enumerate(by_session)
    ]
    barren = bool(due.any()) and not len(answer.columns) and not len(answer.null_opened_at)
    return Judged(
        fetch=replace(
            answer.fetch,
            rows=int(kept.sum()),
            dropped={reason: count for reason, count in sorted(dropped.items()) if count},
            outcome=BarrenError.kind if barren else answer.fetch.outcome,
        ),
        columns=columns.take(kept),
        session_index=(np.searchsorted(grid.offsets, places[kept], side="right") - 1).astype(np.int32),
        sessions=sessions,
        refused=RefusedBars(refused, [reason_for(refused, row) for row in range(len(refused))]),
        actions=answer.actions,
        float32_prices=answer.float32_prices,
        barren=barren,
    )


def reason_for(columns: CandleColumns, row: int) -> str:
    """Which law the bar at ``row`` breaks, in words."""
    open_, high, low, close = (float(getattr(columns, name)[row]) for name in ("open", "high", "low", "close"))
    volume = float(columns.volume[row])
    if not np.isfinite([open_, high, low, close, volume]).all():
        return "a value is null, NaN or infinite"
    if low > min(open_, close) or high < max(open_, close):
        return "low and high do not enclose open and close"
    return "volume is negative" if volume < 0 else "all prices are zero"


def _all_zero(columns: CandleColumns) -> Bools:
    zero: Bools = (columns.open == 0) & (columns.high == 0) & (columns.low == 0) & (columns.close == 0)
    return zero


def _mask(grid: Grid, places: Int64s) -> Bools:
    mask = np.zeros(len(grid.opened_at), bool)
    mask[places] = True
    return mask
