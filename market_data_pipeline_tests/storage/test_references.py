"""What answers are held against, read back from a real database."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.capabilities import Feed
from market_data_pipeline.domain.healing import HealingPolicy
from market_data_pipeline.domain.ports import CorporateAction
from market_data_pipeline.storage.bulk import CandleWriter
from market_data_pipeline.storage.fetches import FetchStore
from market_data_pipeline.storage.references import References, Span
from market_data_pipeline_tests.storage.builders import (
    LATER,
    MONDAY,
    TUESDAY,
    WEDNESDAY,
    Answer,
    add_symbols,
    batch,
    fetch,
    full,
    opened_at,
)

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from market_data_pipeline.domain.ports import CandleBatch

DAY = 86_400


@pytest.fixture
def symbols(engine: Engine) -> list[int]:
    return add_symbols(engine, "AAPL", "MSFT", "NEW")


def put(engine: Engine, whole: CandleBatch) -> None:
    CandleWriter(engine).write(whole, now=LATER, policy=HealingPolicy())


def test_the_nearest_close_is_the_last_before_a_window_or_else_the_first_after_it(engine: Engine, symbols: list[int]) -> None:
    aapl, msft, new = symbols
    put(engine, batch(full(aapl, MONDAY, 10.0), full(aapl, WEDNESDAY, 30.0), full(msft, WEDNESDAY, 90.0)))
    start, end = opened_at(TUESDAY, 0), opened_at(TUESDAY, 4) + 60
    spans = [Span(aapl, start, end), Span(msft, start, end), Span(new, start, end), Span(aapl, 0, 1 << 33)]
    assert References(engine).nearest_closes(spans, Interval.M1) == [
        (opened_at(MONDAY, 4), 10.04),
        (opened_at(WEDNESDAY, 0), 90.0),
        None,
        None,
    ]


def test_days_are_named_by_their_midnight(engine: Engine, symbols: list[int]) -> None:
    days = [Answer(symbols[0], day, {0: price}, slots=1) for day, price in ((MONDAY, 10.0), (TUESDAY, 11.0))]
    put(engine, batch(*days, interval=Interval.D1))
    monday = opened_at(MONDAY, 0, Interval.D1)
    references = References(engine)
    assert references.nearest_closes([Span(symbols[0], monday + DAY, monday + 2 * DAY)], Interval.D1) == [(monday, 10.0)]
    [held] = references.held_closes([Span(symbols[0], monday, monday + DAY)], Interval.D1)
    assert (held.opened_at.tolist(), held.close.tolist()) == ([monday], [10.0])
    assert references.feeds([symbols[0]], Interval.D1) == {symbols[0]: [Feed.CONSOLIDATED]}


def test_closes_inside_a_window_are_those_of_its_symbol_in_order(engine: Engine, symbols: list[int]) -> None:
    aapl, msft, _ = symbols
    put(engine, batch(Answer(aapl, MONDAY, {0: 10.0, 3: 13.0}), full(msft, MONDAY, 90.0)))
    start, end = opened_at(MONDAY, 0), opened_at(MONDAY, 4)
    spans = [Span(aapl, start, end), Span(msft, end, end + 60), Span(aapl, end, end + 60)]
    held = References(engine).held_closes(spans, Interval.M1)
    assert [(one.opened_at.tolist(), one.close.tolist()) for one in held] == [
        ([opened_at(MONDAY, 0), opened_at(MONDAY, 3)], [10.0, 13.0]),
        ([opened_at(MONDAY, 4)], [90.04]),
        ([], []),
    ]


def test_a_split_that_two_providers_tell_is_one_and_dividends_are_none(engine: Engine, symbols: list[int]) -> None:
    aapl = symbols[0]
    split, dividend = CorporateAction("split", date(2024, 6, 10), 10.0), CorporateAction("dividend", date(2024, 6, 11), 0.25)
    for provider in ("yahoo", "massive"):
        put(engine, batch(full(aapl, MONDAY), provider=provider, actions=[(aapl, 0, split), (aapl, 0, dividend)]))
    assert References(engine).splits(symbols) == {aapl: [split]}


def test_the_feeds_of_a_series_are_those_of_its_newest_bars(engine: Engine, symbols: list[int]) -> None:
    aapl = symbols[0]
    put(engine, batch(full(aapl, MONDAY)))
    put(engine, replace(batch(full(aapl, TUESDAY), provider="alpaca"), feeds=[Feed.IEX]))
    assert References(engine).feeds(symbols, Interval.M1) == {aapl: [Feed.CONSOLIDATED, Feed.IEX]}


def test_recent_emptiness_is_by_symbol_provider_and_time(engine: Engine, symbols: list[int]) -> None:
    aapl, msft, new = symbols
    store = FetchStore(engine)
    told = [
        (aapl, fetch(outcome="barren")),
        (aapl, fetch(outcome="ok")),
        (msft, fetch(outcome="barren")),
        (msft, fetch(outcome="transient")),
        (new, fetch(outcome="barren", provider="massive")),
        (new, fetch(outcome="barren", started_at=LATER - timedelta(hours=1))),
        (None, fetch(outcome="barren")),
    ]
    store.record(told)
    assert store.recent_emptiness("yahoo", "bars_1m", since=LATER - timedelta(minutes=15)) == {aapl: False, msft: True}
