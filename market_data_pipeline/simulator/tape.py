"""What simulated vendors of US shares know: bars on either split basis, IEX's share of them, the newest quote. No wire format."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import blake2b
from itertools import zip_longest
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import numpy as np

from market_data_pipeline.simulator.market import DAY, FIELDS, NO_BARS, SECONDS, Bars, aggregate
from market_data_pipeline.simulator.vendor import BarTable, writable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from market_data_pipeline.domain.candles import Float64s, Int64s
    from market_data_pipeline.simulator.market import Market
    from market_data_pipeline.simulator.vendor import Scene

US_EXCHANGES = frozenset({"XNYS", "NYSE", "XNAS", "NASDAQ", "ARCX", "XASE", "BATS"})
NEW_YORK = "America/New_York"
# Measured on AAPL, 2025-12-01 (MARKET_CASES.md §4): IEX saw 1,647,255 of 46,587,722 shares.
IEX_SHARE = 0.035
IEX_EMPTY = 0.03


def listed(market: Market, name: str) -> str | None:
    """The symbol of the data directory that a vendor of US shares calls ``name``; None for one that it does not know."""
    for symbol in dict.fromkeys((name, name.replace(".", "-").replace("/", "-"))):
        listing = market.listing(symbol)
        if listing is not None and listing.exchange.upper() in US_EXCHANGES:
            return symbol
    return None


def known_bars(scene: Scene, symbol: str, interval: str, *, with_today: bool = True) -> Bars:
    """Every bar of ``symbol`` that has ended, extended hours too; ``with_today``: also the day in progress, as it is so far."""
    seen = scene.market.seen(symbol, interval, scene.now_us)
    if interval != "1d" or not with_today or not len(seen.forming):
        return seen.finished
    parts = (seen.finished, seen.forming)
    return Bars(
        np.concatenate([part.opened_at for part in parts]),
        np.concatenate([part.ends_at for part in parts]),
        np.concatenate([part.ohlcv for part in parts], axis=1),
        np.concatenate([part.regular for part in parts]),
        np.concatenate([part.leaked for part in parts]),
    )


def as_traded(scene: Scene, symbol: str, bars: Bars) -> Bars:
    """``bars`` on the basis of their own day: the data directory holds them adjusted for every split, as Yahoo sends them."""
    grid = scene.market.grid(symbol)
    factors = np.ones(len(bars))
    for action in scene.market.actions_of(symbol, scene.now_us):
        if action.kind == "split":
            ex = grid.opens_of(np.asarray([np.datetime64(action.session, "D").astype(np.int64)]))[0]
            # Pre-market trading of the ex-date is on the new basis.
            factors[bars.opened_at < ex - DAY // 4] *= action.value
    if (factors == 1).all():
        return bars
    return replace(bars, ohlcv=np.vstack([np.round(bars.ohlcv[:4] * factors, 6), np.round(bars.ohlcv[4] / factors, 6)]))


def around(bars: Bars, start: int, end: int) -> Bars:
    """The bars of [start, end) and of two days on either side: those asked for are among them, whatever they are stamped with."""
    return bars.between(start - 2 * DAY, end + 2 * DAY)


def on_iex(scene: Scene, symbol: str, interval: str, start: int, end: int) -> Bars:
    """What was traded on IEX alone: a small share of the volume, a narrower range, and some minutes without a trade.

    Those ``around`` [start, end). Days and hours are made of its minutes, so that they agree; without minutes, they are a share of
    the whole.
    """
    own = around(known_bars(scene, symbol, interval), start, end)
    minutes = own if interval == "1m" else around(known_bars(scene, symbol, "1m"), start, end + DAY)
    if not len(minutes) or interval == "1m":
        return _iex_share(scene, symbol, own)
    built = aggregate(_iex_share(scene, symbol, minutes), scene.market.grid(symbol), SECONDS[interval])
    return built.take(np.isin(built.opened_at, own.opened_at)) if len(built) else NO_BARS


def _iex_share(scene: Scene, symbol: str, bars: Bars) -> Bars:
    luck = _luck(bars.opened_at, f"{scene.seed}:{symbol}:iex")
    open_, high, low, close, volume = bars.ohlcv
    upper, lower = np.maximum(open_, close), np.minimum(open_, close)
    shares = np.floor(volume * IEX_SHARE * (0.5 + luck))
    traded = Bars(
        bars.opened_at,
        bars.ends_at,
        np.stack([open_, np.round((high + upper) / 2, 4), np.round((low + lower) / 2, 4), close, shares]),
        bars.regular,
        bars.leaked,
    )
    return traded.take((shares >= 1) & (luck >= IEX_EMPTY))


def _luck(stamps: Int64s, salt: str) -> Float64s:
    """A number in [0, 1) for each stamp, the same in whatever window it is asked for."""
    number = np.uint64(int.from_bytes(blake2b(salt.encode(), digest_size=8).digest(), "big"))
    with np.errstate(over="ignore"):
        z = (stamps.astype(np.uint64) + number) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z ^= z >> np.uint64(27)
    return (z >> np.uint64(11)).astype(np.float64) / 2**53


def table_of(name: str, interval: str, bars: Bars) -> BarTable:
    """``bars`` as a table that faults can bend, with what US vendors send beside: vwap and the number of trades, both invented."""
    open_, high, low, close, volume = bars.ohlcv
    return BarTable(
        symbol=name,
        interval=interval,
        opened_at=bars.opened_at,
        columns=dict(zip(FIELDS, (open_, high, low, close, volume), strict=True)),
        further={"vwap": np.round((high + low + close) / 3, 4), "trades": np.maximum(1, volume // 90).astype(np.int64)},
    )


def midnights(opened_at: Int64s) -> Int64s:
    """The midnight in New York before each instant: how vendors of US shares stamp a day."""
    zone = ZoneInfo(NEW_YORK)
    local = (datetime.fromtimestamp(at, zone) for at in opened_at.tolist())
    return np.asarray([int(at.replace(hour=0, minute=0, second=0).timestamp()) for at in local], np.int64)


# --- rows --------------------------------------------------------------------------------------------------------------

_NOTHING = object()


def rows_of(table: BarTable, names: Mapping[str, str], stamps: Sequence[Any], stamp_name: str) -> list[dict[str, Any]]:
    """The table as vendors write it that send a list of objects; ``names``: what they call our columns, those left out as they are.

    Where a fault made a column shorter, its last rows lack the field.
    """
    columns = {**table.columns, **table.further}
    keys = [stamp_name, *(names.get(name, name) for name in columns)]
    values = [_listed(writable(name, column)) for name, column in columns.items()]
    if all(len(column) == len(stamps) for column in values):
        return [dict(zip(keys, row, strict=True)) for row in zip(stamps, *values, strict=True)]
    rows = zip_longest(stamps, *values, fillvalue=_NOTHING)
    return [{key: value for key, value in zip(keys, row, strict=True) if value is not _NOTHING} for row in rows]


def _listed(column: Any) -> list[Any]:  # noqa: ANN401 - arrays, or lists where a fault made one
    if isinstance(column, list):
        return column
    values: list[Any] = column.tolist()
    return [None if value != value else value for value in values] if np.isnan(column).any() else values  # noqa: PLR0124 - NaN


# --- quotes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tick:
    """What is known of a symbol at this moment. ``at``: epoch seconds of the last trade. Sizes in shares.

    ``opened``, ``high``, ``low`` and ``volume`` are of the newest session so far, ``previous_close`` of the one before.
    """

    bid: float
    ask: float
    bid_size: int
    ask_size: int
    last: float
    at: int
    opened: float
    high: float
    low: float
    volume: float
    previous_close: float | None


def newest_tick(scene: Scene, symbol: str) -> Tick | None:
    """The newest quote of ``symbol``, from its minutes or else its days; None before it has traded."""
    days = known_bars(scene, symbol, "1d")
    minutes = scene.market.seen(symbol, "1m", scene.now_us).finished
    newest = minutes.take(minutes.regular) if len(minutes) else days
    if not len(newest) or not len(days):
        return None
    last, at = float(newest.ohlcv[3, -1]), min(scene.now, int(newest.ends_at[-1]))
    luck = _luck(np.asarray([at]), f"{scene.seed}:{symbol}:quote")[0]
    half = max(0.01, round(last * 1e-4, 2)) / 2
    opened, high, low, _, volume = (float(value) for value in days.ohlcv[:, -1])
    return Tick(
        bid=round(last - half, 2),
        ask=round(last - half, 2) + max(0.01, round(2 * half, 2)),
        bid_size=100 * (1 + int(luck * 9)),
        ask_size=100 * (1 + int(luck * 97) % 9),
        last=last,
        at=at,
        opened=opened,
        high=high,
        low=low,
        volume=volume,
        previous_close=float(days.ohlcv[3, -2]) if len(days) > 1 else None,
    )
