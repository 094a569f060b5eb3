"""Intervals and candles as columns. A candle is named by the instant it opens (left edge, UTC); nothing here does I/O."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from market_data_pipeline.domain.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Int16s = npt.NDArray[np.int16]
Float64s = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class Interval(StrEnum):
    """The bar sizes we keep. The value is the name used everywhere: CLI, partitions, assets, JSON."""

    M1 = "1m"
    M5 = "5m"
    M15 = "15m"
    M30 = "30m"
    H1 = "1h"
    D1 = "1d"

    @property
    def seconds(self) -> int:
        """Nominal length in seconds; the key of the interval in the database. A half-hour tail bar of 1h keeps 3600."""
        return _SECONDS[self]

    @property
    def is_daily(self) -> bool:
        """One bar a session, named by its session date instead of an instant."""
        return self is Interval.D1

    @property
    def source(self) -> Interval | None:
        """The interval this one is computed from, or None where it is fetched from a provider."""
        return Interval.M1 if self in {Interval.M5, Interval.M15, Interval.M30} else None

    @classmethod
    def parse(cls, text: str) -> Interval:
        """The interval called ``text``; InvalidInputError names the value and the choices."""
        try:
            return cls(text)
        except ValueError:
            raise InvalidInputError(f"unknown interval {text!r}: expected one of {', '.join(cls)}") from None

    @classmethod
    def of_seconds(cls, seconds: int) -> Interval:
        """The interval whose database key is ``seconds``."""
        return _OF_SECONDS[seconds]


_SECONDS = {
    Interval.M1: 60,
    Interval.M5: 300,
    Interval.M15: 900,
    Interval.M30: 1800,
    Interval.H1: 3600,
    Interval.D1: 86400,
}
_OF_SECONDS = {seconds: interval for interval, seconds in _SECONDS.items()}

FETCHED_INTERVALS = tuple(i for i in Interval if i.source is None)
DERIVED_INTERVALS = tuple(i for i in Interval if i.source is not None)


@dataclass(frozen=True, slots=True, eq=False)
class CandleColumns:
    """Candles of one symbol and one interval, one array a column, all of the same length.

    ``opened_at``: int64 epoch seconds, UTC, the instant the bar opens; for 1d, midnight UTC of the **session date** (a label,
    not an instant). Prices and volume: float64 as the provider sent them. ``vwap`` and ``trades``: NaN where unknown.
    """

    opened_at: Int64s
    open: Float64s
    high: Float64s
    low: Float64s
    close: Float64s
    volume: Float64s
    vwap: Float64s
    trades: Float64s

    def __post_init__(self) -> None:
        lengths = {f.name: len(getattr(self, f.name)) for f in fields(self)}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"ragged candle columns: {lengths}")

    def __len__(self) -> int:
        return len(self.opened_at)

    @classmethod
    def of(
        cls,
        opened_at: npt.ArrayLike,
        open_: npt.ArrayLike,
        high: npt.ArrayLike,
        low: npt.ArrayLike,
        close: npt.ArrayLike,
        volume: npt.ArrayLike,
    ) -> Self:
        """Columns from anything array-like, without VWAP and trade count."""
        stamps = np.asarray(opened_at, dtype=np.int64)
        unknown = np.full(len(stamps), np.nan)
        numbers = [np.asarray(column, dtype=np.float64) for column in (open_, high, low, close, volume, unknown, unknown)]
        return cls(stamps, *numbers)

    @classmethod
    def empty(cls) -> Self:
        """No candles."""
        return cls.of([], [], [], [], [], [])

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        """All parts one after the other, in the order given."""
        if not parts:
            return cls.empty()
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)))

    def take(self, selector: Bools | npt.NDArray[np.intp]) -> Self:
        """The rows that a boolean mask or an index array names, in its order."""
        return type(self)(*(getattr(self, f.name)[selector] for f in fields(self)))

    def obeys_ohlc_laws(self) -> Bools:
        """True where prices are finite, low <= open, close <= high, and volume is finite and not negative."""
        with np.errstate(invalid="ignore"):
            bounded = (self.low <= np.minimum(self.open, self.close)) & (self.high >= np.maximum(self.open, self.close))
            finite = np.isfinite(self.low) & np.isfinite(self.high) & np.isfinite(self.volume)
            return bounded & finite & (self.volume >= 0)
