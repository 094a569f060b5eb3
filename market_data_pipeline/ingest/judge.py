"""Decides what an answer is worth, bar by bar, against the grid and the clock. Pure: nothing is fetched or stored here."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.capabilities import Basis
from market_data_pipeline.domain.errors import BarrenError
from market_data_pipeline.domain.healing import enclosed
from market_data_pipeline.domain.ports import AnsweredSession, RefusedBars

if TYPE_CHECKING:
    from collections.abc import Sequence

    from market_data_pipeline.domain.candles import Bools, CandleColumns, Int16s, Int32s, Int64s
    from market_data_pipeline.domain.ports import BarsAnswer, CorporateAction, Fetch
    from market_data_pipeline.domain.quality import Reference
    from market_data_pipeline.domain.sessions import TradingCalendar
    from market_data_pipeline.ingest.grid import Grid
    from market_data_pipeline.ingest.plan import Window


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """An answer after judgement, ready to be stored.

    ``columns`` are the bars worth keeping, sorted, on the grid; ``flags`` (``domain.quality.BarFlag``) and ``session_index`` (into
    ``sessions``) have one element for each. ``fetch`` carries the counts of everything left out; its ``outcome`` is ``kind``.

    ``kind`` is "ok" or the ``kind`` of the error that the answer amounts to, and ``reason`` says why in words, None for "ok":
    "barren" (bars were due in the window and none came, not even a null), "stale" (what came is kept), "mixed_basis" and
    "malformed": every bar is refused then and nothing is said of any session, so ``sessions`` is empty and the failure is the
    caller's to record. ``expected``: bars of the window that were due; ``received``: those of them that came and were usable,
    wanted or not.
    """

    fetch: Fetch
    columns: CandleColumns
    session_index: Int32s
    sessions: Sequence[AnsweredSession]
    refused: RefusedBars
    actions: Sequence[CorporateAction]
    float32_prices: bool
    flags: Int16s
    kind: str
    reason: str | None
    expected: int
    received: int

    @property
    def barren(self) -> bool:
        """Bars were due in the window and none came."""
        return self.kind == BarrenError.kind


def judge(  # noqa: PLR0913 - everything a bar is held against
    answer: BarsAnswer,
    *,
    symbol_id: int,
    window: Window,
    grid: Grid,
    calendar: TradingCalendar,
    now: int,
    settle_seconds: int,
    wanted: Bools | None = None,
    reference: Reference | None = None,  # noqa: ARG001
    basis: Basis = Basis.SPLIT,  # noqa: ARG001
) -> Judged:
    """Keep the bars that are on the grid, finished by the clock and lawful; count or refuse the rest; say what was silent.

    ``grid`` holds the sessions that the window covers. Silence needs a bar of the same answer on both sides: the end of an answer
    that was cut short is no evidence. ``wanted``: one element a bar of ``grid``, the bars to keep where only holes are filled; the
    others count as "already_held". ``reference``: what is stored, None to judge the answer by itself alone. ``basis``: the
    provider's declared one.
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
    usable = finished & lawful
    refused = columns.take(finished & ~lawful)
    kept = usable if wanted is None else usable & wanted[places]
    dropped["already_held"] += int((usable & ~kept).sum())

    nulls = calendar.locate(answer.null_opened_at, interval)
    null_places = grid.places_of(nulls.session, nulls.slot)
    dropped["null"] += len(answer.null_opened_at)

    bars, came = _mask(grid, places[kept]), _mask(grid, places[usable])
    asked = due & (grid.starts_at >= window.start) & (grid.starts_at < window.end)
    spoken = _mask(grid, np.concatenate((places, null_places[null_places >= 0])))
    by_session = zip(grid.sessions, grid.split(bars), grid.split(came), grid.split(asked & ~spoken), grid.split(due), strict=True)
    sessions = [
        AnsweredSession(
            symbol_id=symbol_id,
            session=session,
            opens_at=int(grid.opens_at[index]),
            closes_at=int(grid.closes_at[index]),
            bars=bars_here,
            silent=quiet_here & enclosed(came_here),
            due=due_here,
        )
        for index, (session, bars_here, came_here, quiet_here, due_here) in enumerate(by_session)
    ]
    barren = bool(due.any()) and not len(answer.columns) and not len(answer.null_opened_at)
    flags = np.zeros(len(places), np.int16) if answer.flags is None else answer.flags[on_grid]
    return Judged(
        fetch=replace(
            answer.fetch,
            rows=int(kept.sum()),
            dropped={why: count for why, count in sorted(dropped.items()) if count},
            outcome=BarrenError.kind if barren else answer.fetch.outcome,
        ),
        columns=columns.take(kept),
        session_index=(np.searchsorted(grid.offsets, places[kept], side="right") - 1).astype(np.int32),
        sessions=sessions,
        refused=RefusedBars(refused, [reason_for(refused, row) for row in range(len(refused))]),
        actions=answer.actions,
        float32_prices=answer.float32_prices,
        flags=flags[kept],
        kind=BarrenError.kind if barren else "ok",
        reason="answered, with no bar where some were due" if barren else None,
        expected=int(asked.sum()),
        received=int((came & asked).sum()),
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
