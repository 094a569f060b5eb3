"""Intervals and candles as columns."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.candles import DERIVED_INTERVALS, FETCHED_INTERVALS, CandleColumns, Interval
from market_data_pipeline.domain.errors import InvalidInputError


def candles(count: int, *, first: int = 0) -> CandleColumns:
    """``count`` lawful candles, all different."""
    base = np.arange(first, first + count, dtype=np.float64)
    return CandleColumns.of(base * 60, base + 2, base + 4, base + 1, base + 3, base * 100)


def one(open_: float = 2, high: float = 4, low: float = 1, close: float = 3, volume: float = 100) -> CandleColumns:
    """One lawful candle, except for what is given."""
    return CandleColumns.of([0], [open_], [high], [low], [close], [volume])


# --- intervals


def test_an_interval_has_one_name_and_one_length() -> None:
    assert {interval.value: interval.seconds for interval in Interval} == {
        "1m": 60,
        "5m": 300,
        "15m": 900,
        "30m": 1800,
        "1h": 3600,
        "1d": 86400,
    }
    assert all(Interval.of_seconds(interval.seconds) is interval for interval in Interval)
    assert all(Interval.parse(interval.value) is interval for interval in Interval)


@pytest.mark.parametrize("text", ["", "1M", "60", "2m", "1m ", "'; drop table"])
def test_an_unknown_interval_is_refused_with_the_choices(text: str) -> None:
    with pytest.raises(InvalidInputError, match="expected one of 1m, 5m, 15m, 30m, 1h, 1d") as refused:
        Interval.parse(text)
    assert repr(text) in str(refused.value)


def test_every_interval_is_either_fetched_or_derived_from_a_fetched_one_that_divides_it() -> None:
    assert set(FETCHED_INTERVALS) | set(DERIVED_INTERVALS) == set(Interval)
    assert FETCHED_INTERVALS == (Interval.M1, Interval.H1, Interval.D1)
    for interval in DERIVED_INTERVALS:
        assert interval.source in FETCHED_INTERVALS
        assert interval.seconds % Interval.M1.seconds == 0


def test_only_one_interval_is_daily() -> None:
    assert [interval for interval in Interval if interval.is_daily] == [Interval.D1]


# --- columns


def test_columns_of_different_lengths_are_refused_with_their_lengths() -> None:
    with pytest.raises(ValueError, match=r"ragged candle columns: .*'close': 1"):
        CandleColumns.of([0, 60], [1, 2], [1, 2], [1, 2], [1], [1, 2])


def test_columns_have_the_types_that_the_store_copies() -> None:
    columns = candles(3)
    assert columns.opened_at.dtype == np.int64
    assert {getattr(columns, field.name).dtype for field in fields(columns)[1:]} == {np.dtype(np.float64)}
    assert np.isnan(columns.vwap).all()
    assert np.isnan(columns.trades).all()


def test_no_candles_are_columns_too() -> None:
    assert len(CandleColumns.empty()) == 0
    assert len(CandleColumns.concat([])) == 0
    assert CandleColumns.empty().obeys_ohlc_laws().tolist() == []


@given(st.lists(st.integers(0, 5), max_size=6))
def test_concatenated_parts_keep_every_row_in_order(sizes: list[int]) -> None:
    whole = CandleColumns.concat([candles(size, first=10 * place) for place, size in enumerate(sizes)])
    expected = [60 * (10 * place + n) for place, size in enumerate(sizes) for n in range(size)]
    assert whole.opened_at.tolist() == expected
    assert (whole.close * 60 - 180).tolist() == expected


@given(st.lists(st.booleans(), max_size=30))
def test_taking_by_mask_and_by_index_is_the_same(chosen: list[bool]) -> None:
    columns, mask = candles(len(chosen)), np.array(chosen, bool)
    by_mask, by_index = columns.take(mask), columns.take(np.flatnonzero(mask))
    for field in fields(columns):
        assert np.array_equal(getattr(by_mask, field.name), getattr(by_index, field.name), equal_nan=True)


def test_taking_by_index_reorders() -> None:
    assert candles(3).take(np.array([2, 0])).opened_at.tolist() == [120, 0]


@pytest.mark.parametrize(
    "bad",
    [
        one(low=2.5),
        one(low=3.5, open_=4, close=3),
        one(high=2.5),
        one(high=1, low=1),
        one(open_=math.nan),
        one(high=math.nan),
        one(low=math.nan),
        one(close=math.nan),
        one(high=math.inf),
        one(low=-math.inf),
        one(volume=-1),
        one(volume=math.nan),
        one(volume=math.inf),
    ],
)
def test_a_candle_that_breaks_a_law_is_told_apart(bad: CandleColumns) -> None:
    assert bad.obeys_ohlc_laws().tolist() == [False]


def test_flat_candles_without_volume_and_negative_prices_are_lawful() -> None:
    assert one(2, 2, 2, 2, 0).obeys_ohlc_laws().all()
    assert one(-37, -13, -40, -38).obeys_ohlc_laws().all()  # crude oil, 2020-04-20
    assert one(volume=0.5).obeys_ohlc_laws().all()


prices = st.floats(allow_nan=True, allow_infinity=True)


@given(prices, prices, prices, prices, prices)
def test_the_laws_are_those_of_the_database(open_: float, high: float, low: float, close: float, volume: float) -> None:
    lawful = (
        all(math.isfinite(value) for value in (open_, high, low, close, volume))
        and low <= min(open_, close)
        and high >= max(open_, close)
        and volume >= 0
    )
    assert one(open_, high, low, close, volume).obeys_ohlc_laws().tolist() == [lawful]
