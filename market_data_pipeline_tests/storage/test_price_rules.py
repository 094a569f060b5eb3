"""What rules over prices remember: one look at a time, all of it or nothing; and quotes as prices."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import sqlalchemy.exc

from market_data_pipeline.domain.alert_config import PriceField
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.healing import HealingPolicy
from market_data_pipeline.domain.ports import CorporateAction, Fetch, Quote
from market_data_pipeline.domain.price_rules import PriceState, Side
from market_data_pipeline.domain.snapshots import Flag, JudgedQuotes
from market_data_pipeline.storage.bulk import CandleWriter, micros
from market_data_pipeline.storage.candles import CandleReader
from market_data_pipeline.storage.price_rules import PriceRuleStore, Remembered
from market_data_pipeline.storage.quotes import QuoteStore
from market_data_pipeline_tests.storage.builders import MONDAY, TUESDAY, add_symbols, at, batch, full, opened_at

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from market_data_pipeline.domain.candles import Int32s, Int64s

NOON = datetime(2024, 12, 2, 18, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


def epoch(instant: datetime) -> int:
    return micros(instant) // 1_000_000


def a_row(symbol_id: int, **different: Any) -> Remembered:  # noqa: ANN401 - fields
    valid = Remembered(
        "Mine",
        symbol_id,
        Side.ABOVE,
        "AAPL above",
        "digest",
        PriceState(is_on=True, since=epoch(NOON)),
        NOON,
        251.5,
        "AAPL is above",
    )
    return replace(valid, **different)


def remembered(engine: Engine) -> list[Remembered]:
    with PriceRuleStore(engine).look(NOON) as look:
        return look.remembered()


# --- what is remembered ------------------------------------------------------------------------------------------------


def test_a_row_is_read_back_as_it_was_and_replaced_by_its_name(engine: Engine) -> None:
    (symbol_id,) = add_symbols(engine, "AAPL")
    row = a_row(symbol_id)
    with PriceRuleStore(engine).look(NOON) as look:
        look.remember([row, replace(row, side=Side.BELOW, key="AAPL below")])
        look.remember([replace(row, value=260.0, is_told=True)])
    assert remembered(engine) == [replace(row, value=260.0, is_told=True), replace(row, side=Side.BELOW, key="AAPL below")]
    with PriceRuleStore(engine).look(NOON) as look:
        look.forget([row])
        look.remember([])
        look.forget([])
    assert [one.side for one in remembered(engine)] == [Side.BELOW]


def test_an_error_in_a_look_leaves_what_was_remembered(engine: Engine) -> None:
    (symbol_id,) = add_symbols(engine, "AAPL")

    def dies() -> None:
        with PriceRuleStore(engine).look() as look:
            look.remember([a_row(symbol_id)])
            raise InterruptedError

    with pytest.raises(InterruptedError):
        dies()
    assert remembered(engine) == []


@pytest.mark.parametrize(("seen_after", "is_told"), [(-MINUTE, False), (0 * MINUTE, True), (MINUTE, True)])
def test_it_was_told_when_an_alert_of_it_was_seen_since_it_began(engine: Engine, seen_after: timedelta, is_told: bool) -> None:  # noqa: FBT001
    (symbol_id,) = add_symbols(engine, "AAPL")
    with PriceRuleStore(engine).look(NOON) as look:
        look.remember([a_row(symbol_id)])
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "insert into alerts (rule, key, severity, state, value, text, began_at, seen_at, fired_at) "
            "values ('Mine', 'AAPL above', 'warning', 'firing', 1, '', %(at)s, %(at)s, %(at)s)",
            {"at": NOON + seen_after},
        )
    assert [row.is_told for row in remembered(engine)] == [is_told]
    with engine.begin() as connection:
        connection.exec_driver_sql("delete from alerts")
    assert [row.is_told for row in remembered(engine)] == [is_told]


def test_one_look_waits_for_another(engine: Engine) -> None:
    with PriceRuleStore(engine).look(), engine.connect() as connection:
        connection.exec_driver_sql("set lock_timeout = '50ms'")
        with pytest.raises(sqlalchemy.exc.OperationalError, match="lock timeout"):
            connection.exec_driver_sql("select pg_advisory_xact_lock(7306010)")


def test_a_look_begins_at_the_instant_given_or_by_the_clock_of_the_database(engine: Engine) -> None:
    store = PriceRuleStore(engine)
    with store.look(NOON) as look:
        assert look.at == NOON
    with store.look() as look:
        assert look.at.tzinfo is not None
        assert look.at > NOON


# --- quotes and bars ---------------------------------------------------------------------------------------------------


def said(engine: Engine, symbol_id: int, known_at: datetime, *, flags: Flag = Flag(0), **fields: Any) -> None:  # noqa: ANN401, B008
    quote = replace(Quote("AAPL", None, None, None, None, None, None, known_at), **fields)
    judged = JudgedQuotes(Fetch("yahoo", "AAPL", None, "GET /", known_at, 0.1, "ok", rows=1), [(quote, flags)], (), ())
    QuoteStore(engine).record(judged, {"AAPL": symbol_id}, known_at=known_at)


@pytest.mark.parametrize(
    ("field", "prices"),
    [
        (PriceField.LAST, [10.5]),
        (PriceField.LAST_OR_MID, [10.5]),
        (PriceField.BID, [10.0, 10.0, 11.0]),
        (PriceField.ASK, [11.0, 12.0]),
        (PriceField.MID, [10.5, 11.0]),
    ],
)
def test_quotes_are_prices_by_the_field_that_is_asked_for(engine: Engine, field: PriceField, prices: list[float]) -> None:
    (symbol_id,) = add_symbols(engine, "AAPL")
    said(engine, symbol_id, NOON, bid=10.0, ask=11.0, last=10.5, last_at=NOON)
    said(engine, symbol_id, NOON + MINUTE, bid=10.0, ask=12.0)
    said(engine, symbol_id, NOON + 2 * MINUTE, bid=11.0, delay_seconds=60)
    told = PriceRuleStore(engine).quotes([symbol_id], NOON, NOON + HOUR, field)
    assert (told.panel.price.tolist(), told.delay_seconds) == (prices, 60)


def test_a_quote_without_a_time_of_its_own_has_that_at_which_we_learned_it(engine: Engine) -> None:
    (symbol_id,) = add_symbols(engine, "AAPL")
    said(engine, symbol_id, NOON, last=10.5, quoted_at=None)
    assert PriceRuleStore(engine).quotes([symbol_id], NOON, NOON, PriceField.LAST).panel.at.tolist() == [epoch(NOON)]


def test_without_quotes_there_are_no_prices(engine: Engine) -> None:
    (symbol_id,) = add_symbols(engine, "AAPL")
    told = PriceRuleStore(engine).quotes([symbol_id], NOON, NOON + HOUR, PriceField.LAST)
    assert (len(told.panel), told.delay_seconds) == (0, 0)


def test_prices_before_and_after_a_split_are_told_apart_whoever_told_it(engine: Engine) -> None:
    first, other = add_symbols(engine, "AAPL", "MSFT")
    writer = CandleWriter(engine)
    for seconds, provider in enumerate(("yahoo", "alpaca")):
        split = CorporateAction("split", TUESDAY, 10.0)
        writer.write(
            batch(full(first, TUESDAY), actions=[(first, 0, split)], provider=provider),
            now=at(seconds),
            policy=HealingPolicy(),
            known_at=at(seconds),
        )
    stamps = [opened_at(day, 0) for day in (MONDAY, TUESDAY)]
    since = datetime(2024, 3, 1, tzinfo=UTC)
    owner = [first, first, other, other]
    basis = PriceRuleStore(engine).split_basis(_ids(owner), _stamps(stamps * 2), since)
    assert basis.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("interval", [Interval.M1, Interval.D1])
def test_closes_are_those_of_the_whole_bars(engine: Engine, interval: Interval) -> None:
    first, other = add_symbols(engine, "AAPL", "MSFT")
    slots = 1 if interval.is_daily else 5
    whole = batch(full(first, MONDAY, slots=slots), full(other, TUESDAY, 20.0, slots=slots), interval=interval, flags=8)
    CandleWriter(engine).write(whole, now=at(0), policy=HealingPolicy())
    span = int(datetime(2024, 3, 1, tzinfo=UTC).timestamp()), int(datetime(2024, 4, 1, tzinfo=UTC).timestamp())
    read, closes = (
        CandleReader(engine).read([first, other], interval, *span),
        CandleReader(engine).closes([first, other], interval, *span),
    )
    bars = zip(closes.symbol_id.tolist(), closes.opened_at.tolist(), closes.close.tolist(), closes.flags.tolist(), strict=True)
    assert sorted(bars) == list(
        zip(read.symbol_id.tolist(), read.columns.opened_at.tolist(), read.columns.close.tolist(), [8] * (2 * slots), strict=True)
    )


def _ids(values: list[int]) -> Int32s:
    return np.array(values, np.int32)


def _stamps(values: list[int]) -> Int64s:
    return np.array(values, np.int64)
