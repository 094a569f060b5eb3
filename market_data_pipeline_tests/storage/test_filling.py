"""Reading with bars made up where nothing was traded: explicit, flagged, and never stored."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.filling import PreviousClose
from market_data_pipeline.domain.healing import HealingPolicy
from market_data_pipeline.domain.sessions import ExpectedOpens, day_number
from market_data_pipeline.storage.bulk import CandleWriter
from market_data_pipeline.storage.candles import CandleReader
from market_data_pipeline_tests.storage.builders import (
    LATER,
    MONDAY,
    TUESDAY,
    WEDNESDAY,
    Answer,
    add_symbols,
    at,
    batch,
    full,
    opened_at,
)

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

POLICY = HealingPolicy(confirm_after=2, give_up_after=4, backoff_seconds=60.0)
ALL = (opened_at(MONDAY, 0), opened_at(WEDNESDAY, 0))
# The third of Monday's five bars is silent, the fourth was answered with a null: no information.
MONDAYS = {0: 10.0, 1: 11.0, 4: 14.0}


def grid() -> PreviousClose:
    days = [(day, slot) for day in (MONDAY, TUESDAY) for slot in range(5)]
    opens = np.array([opened_at(day, slot) for day, slot in days], np.int64)
    session = np.array([day_number(day) for day, _ in days], np.int32)
    return PreviousClose(ExpectedOpens(opens, opens + 60, session, np.array([slot for _, slot in days], np.int16)))


@pytest.fixture
def apple(engine: Engine) -> int:
    (aapl,) = add_symbols(engine, "AAPL")
    for seconds in (0, 100):
        answers = (Answer(aapl, MONDAY, MONDAYS, silent=[2]), full(aapl, TUESDAY, 20.0))
        CandleWriter(engine).write(batch(*answers), now=at(seconds), policy=POLICY, known_at=at(seconds))
    return aapl


def test_confirmed_empty_bars_are_filled_and_missing_ones_are_not(engine: Engine, apple: int) -> None:
    reader = CandleReader(engine)
    read = reader.read([apple], Interval.M1, *ALL, fill=grid(), provenance=True)
    assert read.is_filled is not None
    assert read.providers is not None
    assert read.columns.opened_at.tolist() == [opened_at(MONDAY, s) for s in (0, 1, 2, 4)] + [
        opened_at(TUESDAY, s) for s in range(5)
    ]
    assert np.flatnonzero(read.is_filled).tolist() == [2]
    bar = {name: float(getattr(read.columns, name)[2]) for name in ("open", "high", "low", "close", "volume")}
    assert bar == {"open": 11.0, "high": 11.0, "low": 11.0, "close": 11.0, "volume": 0.0}
    assert (int(read.known_at[2]), int(read.fetch_id[2]), read.providers[2]) == (0, 0, "")
    plain = reader.read([apple], Interval.M1, *ALL)
    assert plain.is_filled is None
    assert len(plain.columns) == 8


def test_a_window_inside_a_session_is_filled_with_the_close_before_it(engine: Engine, apple: int) -> None:
    window = (opened_at(MONDAY, 2), opened_at(MONDAY, 4))
    read = CandleReader(engine).read([apple], Interval.M1, *window, fill=grid())
    assert (read.columns.opened_at.tolist(), read.columns.close.tolist()) == ([opened_at(MONDAY, 2)], [11.0])


def test_a_frame_says_which_bars_are_filled(engine: Engine, apple: int) -> None:
    reader = CandleReader(engine)
    frame = reader.frame([apple], Interval.M1, *ALL, fill=grid())
    assert frame["is_filled"].sum() == 1
    assert "is_filled" not in reader.frame([apple], Interval.M1, *ALL)


def test_what_was_not_confirmed_yet_was_not_filled_then(engine: Engine, apple: int) -> None:
    reader = CandleReader(engine)
    before = reader.read([apple], Interval.M1, *ALL, fill=grid(), as_of=at(50))
    after = reader.read([apple], Interval.M1, *ALL, fill=grid(), as_of=at(100))
    assert (len(before.columns), len(after.columns)) == (8, 9)


def test_a_bar_that_came_after_all_is_no_longer_filled_and_the_past_still_is(engine: Engine, apple: int) -> None:
    late = Answer(apple, MONDAY, {**MONDAYS, 2: 12.0})
    CandleWriter(engine).write(batch(late), now=at(200), policy=POLICY, known_at=at(200))
    reader = CandleReader(engine)
    now = reader.read([apple], Interval.M1, *ALL, fill=grid())
    assert now.is_filled is not None
    assert not now.is_filled.any()
    assert float(now.columns.close[2]) == 12.0
    then = reader.read([apple], Interval.M1, *ALL, fill=grid(), as_of=at(150))
    assert float(then.columns.close[2]) == 11.0


def test_days_are_not_filled(engine: Engine, apple: int) -> None:
    with pytest.raises(InvalidInputError, match="another session"):
        CandleReader(engine).read([apple], Interval.D1, *ALL, fill=grid())


def test_whose_a_bar_is_comes_with_how_sure_its_session_is(engine: Engine, apple: int) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("update coverage set finality = 1 where session = %s", (TUESDAY,))
    reader = CandleReader(engine)
    read = reader.read([apple], Interval.M1, *ALL, provenance=True)
    assert read.finalities == ["final"] * 3 + ["settled"] * 5
    assert reader.read([apple], Interval.M1, *ALL, provenance=True, as_of=at(500)).finalities is None
    days = full(apple, MONDAY, slots=1)
    CandleWriter(engine).write(batch(days, interval=Interval.D1), now=LATER, policy=POLICY)
    midnight = int(datetime(2024, 3, 4, tzinfo=UTC).timestamp())
    daily = reader.read([apple], Interval.D1, midnight, midnight + int(timedelta(days=1).total_seconds()), provenance=True)
    assert daily.finalities == ["final"]
