from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from market_data_pipeline.domain.candles import CandleColumns, Interval
from market_data_pipeline.domain.healing import HealingPolicy
from market_data_pipeline.storage.bulk import CandleWriter
from market_data_pipeline.storage.candles import CandleReader
from market_data_pipeline_tests.storage.builders import (
    LATER,
    MONDAY,
    NAN,
    TUESDAY,
    WEDNESDAY,
    Answer,
    Bar,
    add_symbols,
    at,
    batch,
    flat,
    full,
    opened_at,
)

if TYPE_CHECKING:
    from datetime import date

    from sqlalchemy.engine import Engine

ALL = (opened_at(MONDAY, 0), opened_at(WEDNESDAY, 0))


def write(
    engine: Engine, *answers: Answer, known_at: datetime | None = None, interval: Interval = Interval.M1, flags: int = 0
) -> None:
    whole = batch(*answers, interval=interval, flags=flags)
    CandleWriter(engine).write(whole, now=LATER, policy=HealingPolicy(), known_at=known_at)


def test_bars_come_sorted_by_symbol_and_time_whatever_the_order_of_writing(engine: Engine) -> None:
    aapl, ibm, msft = add_symbols(engine, "AAPL", "IBM", "MSFT")
    for symbol_id, day in ((msft, TUESDAY), (aapl, TUESDAY), (ibm, MONDAY), (aapl, MONDAY), (msft, MONDAY)):
        write(engine, full(symbol_id, day))

    stored = CandleReader(engine).read([msft, aapl], Interval.M1, *ALL)

    expected = [(s, opened_at(day, slot)) for s in sorted((aapl, msft)) for day in (MONDAY, TUESDAY) for slot in range(5)]
    assert list(zip(stored.symbol_id.tolist(), stored.columns.opened_at.tolist(), strict=True)) == expected


def test_a_window_is_half_open_and_holds_one_interval(engine: Engine) -> None:
    (aapl,) = add_symbols(engine, "AAPL")
    for interval in (Interval.M1, Interval.M5, Interval.D1):
        write(engine, full(aapl, MONDAY, slots=1 if interval.is_daily else 5), interval=interval)

    stored = CandleReader(engine).read([aapl], Interval.M1, opened_at(MONDAY, 1), opened_at(MONDAY, 3))

    assert stored.columns.opened_at.tolist() == [opened_at(MONDAY, 1), opened_at(MONDAY, 2)]


def midnight(day: date) -> int:
    return opened_at(day, 0, Interval.D1)


@pytest.mark.parametrize(
    ("start", "end", "sessions"),
    [
        (midnight(MONDAY), midnight(TUESDAY), [MONDAY]),
        (midnight(MONDAY) + 1, midnight(TUESDAY) + 1, [TUESDAY]),
        (midnight(MONDAY), midnight(WEDNESDAY) + 1, [MONDAY, TUESDAY, WEDNESDAY]),
        (midnight(TUESDAY), midnight(TUESDAY), []),
    ],
)
def test_a_daily_window_holds_the_sessions_whose_midnight_lies_in_it(
    engine: Engine, start: int, end: int, sessions: list[date]
) -> None:
    (aapl,) = add_symbols(engine, "AAPL")
    days = (MONDAY, TUESDAY, WEDNESDAY)
    write(engine, *(full(aapl, day, 10.0, slots=1) for day in days), interval=Interval.D1, known_at=at(0))
    write(engine, *(full(aapl, day, 11.0, slots=1) for day in days), interval=Interval.D1, known_at=at(2))
    reader = CandleReader(engine)

    expected = [midnight(day) for day in sessions]
    for as_of, price in ((None, 11.0), (at(1), 10.0)):
        columns = reader.read([aapl], Interval.D1, start, end, as_of=as_of).columns
        assert (columns.opened_at.tolist(), columns.close.tolist()) == (expected, [price] * len(sessions))
    assert reader.revisions(aapl, Interval.D1, start, end).columns.opened_at.tolist() == expected


def test_every_value_comes_back_as_it_was_written(engine: Engine) -> None:
    (aapl,) = add_symbols(engine, "AAPL")
    bars = {0: Bar(0.1, 1 / 3, -0.0, 0.2, 1e12 + 0.5, 0.15, 9_007_199_254_740_991.0), 1: Bar(*flat(5e-324)[:4], 0.0, NAN, 4.0)}
    write(engine, Answer(aapl, MONDAY, bars), known_at=at(1.000001), flags=3)

    stored = CandleReader(engine).read([aapl], Interval.M1, *ALL)

    values = np.column_stack([getattr(stored.columns, name) for name in Bar._fields])
    assert values.tobytes() == np.array(list(bars.values())).tobytes()
    assert stored.known_at.tolist() == [round(at(0).timestamp()) * 1_000_000 + 1_000_001] * 2
    assert stored.flags.tolist() == [3, 3]
    assert len(set(stored.fetch_id.tolist())) == 1


def test_as_of_is_what_was_known_then_from_the_first_moment_to_the_last(engine: Engine) -> None:
    (aapl,) = add_symbols(engine, "AAPL")
    for tick, price in enumerate((10.0, 11.0, 12.0)):
        write(engine, Answer(aapl, MONDAY, {0: price, tick: price}), known_at=at(tick))
    reader, instant = CandleReader(engine), timedelta(microseconds=1)

    def closes(as_of: datetime) -> list[float]:
        return [float(close) for close in reader.read([aapl], Interval.M1, *ALL, as_of=as_of).columns.close]

    assert closes(at(0) - instant) == []
    assert closes(at(0)) == closes(at(1) - instant) == [10.0]
    assert closes(at(1)) == closes(at(2) - instant) == [11.0, 11.0]
    assert closes(at(2)) == closes(at(99)) == [12.0, 11.0, 12.0]


def test_revisions_are_half_open_and_follow_one_another(engine: Engine) -> None:
    (aapl,) = add_symbols(engine, "AAPL")
    for tick, price in enumerate((10.0, 11.0, 12.0)):
        write(engine, Answer(aapl, MONDAY, {1: price}), known_at=at(tick))

    old = CandleReader(engine).revisions(aapl, Interval.M1, *ALL)

    start = round(at(0).timestamp()) * 1_000_000
    assert old.columns.close.tolist() == [10.0, 11.0]
    assert old.known_from.tolist() == [start, start + 1_000_000]
    assert old.known_to.tolist() == [start + 1_000_000, start + 2_000_000]
    assert old.columns.opened_at.tolist() == [opened_at(MONDAY, 1)] * 2


def test_a_frame_is_indexed_by_aware_opens(engine: Engine) -> None:
    (aapl,) = add_symbols(engine, "AAPL")
    write(engine, Answer(aapl, MONDAY, {0: Bar(1.0, 3.0, 0.5, 2.0, 100.0, 1.5, 7.0), 2: flat(2.0)}))

    frame = CandleReader(engine).frame([aapl], Interval.M1, *ALL)

    index = pd.DatetimeIndex(["2024-03-04 14:30", "2024-03-04 14:32"], tz="UTC", name="opened_at").as_unit("us")
    expected = pd.DataFrame(
        {
            "symbol_id": np.array([aapl, aapl], np.int32),
            "open": [1.0, 2.0],
            "high": [3.0, 2.0],
            "low": [0.5, 2.0],
            "close": [2.0, 2.0],
            "volume": [100.0, 100.0],
            "vwap": [1.5, NAN],
            "trades": [7.0, NAN],
        },
        index=index,
    )
    pd.testing.assert_frame_equal(frame, expected)


def test_a_daily_frame_is_indexed_by_session(engine: Engine) -> None:
    (aapl,) = add_symbols(engine, "AAPL")
    write(engine, full(aapl, MONDAY, slots=1), full(aapl, TUESDAY, slots=1), interval=Interval.D1)

    frame = CandleReader(engine).frame([aapl], Interval.D1, midnight(MONDAY), midnight(WEDNESDAY))

    assert frame.index.equals(pd.DatetimeIndex([MONDAY, TUESDAY]).as_unit("us"))
    assert frame.index.name == "session_date"


def test_nothing_stored_is_an_empty_answer_of_the_same_shape(engine: Engine) -> None:
    reader = CandleReader(engine)

    stored, frame, old = (
        reader.read([1, 2], Interval.M1, *ALL, as_of=at(0)),
        reader.frame([], Interval.M1, *ALL),
        reader.revisions(1, Interval.M1, *ALL),
    )

    assert (len(stored.columns), len(frame), len(old.columns)) == (0, 0, 0)
    assert stored.columns.close.dtype == CandleColumns.empty().close.dtype
    assert list(frame.columns) == ["symbol_id", *Bar._fields]
    assert str(frame.index.dtype) == "datetime64[us, UTC]"
