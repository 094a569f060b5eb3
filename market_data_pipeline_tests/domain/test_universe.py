"""Which symbols and exchanges a universe may name."""

from __future__ import annotations

import re
from datetime import date

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.sessions import trading_calendar
from market_data_pipeline.domain.universe import CALENDARS, Instrument, Tier, UniverseEntry, calendar_of, valid_symbol


@pytest.mark.parametrize(
    "symbol", ["A", "AAPL", "BRK.B", "BRK-B", "BRK/B", "^GSPC", "BTC-USD", "EURUSD=X", "0700.HK", "7203.T", "ES=F"]
)
def test_symbols_as_markets_write_them_are_valid(symbol: str) -> None:
    assert valid_symbol(symbol) == symbol


@pytest.mark.parametrize(
    "symbol",
    [
        "",
        " AAPL",
        "AAPL ",
        "AAPL\n",
        "aapl",
        "'; drop table",
        "A,B",
        "A|B",
        "A..B",
        "../A",
        "A" * 33,
        "^",
        "^^A",
        "A^B",
        ".A",
        "A B",
        "ÄPL",
        "A\u0660",
    ],
)
def test_what_cannot_be_a_symbol_is_refused_by_name(symbol: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        valid_symbol(symbol)
    assert f"{symbol!r} is not a symbol" in str(refused.value)


@given(st.text(alphabet="AZ09.-=/_^,|'; \n\u212a", max_size=40) | st.text(max_size=40))
@example("A" * 32)
def test_a_valid_symbol_is_safe_as_a_partition_key_a_path_and_in_the_table(text: str) -> None:
    try:
        symbol = valid_symbol(text)
    except InvalidInputError:
        return
    assert ".." not in symbol
    assert not set(symbol) & set(",|\\'\"; \t\r\n\0")
    assert not symbol.startswith(("/", ".", "-"))
    # The same law as the constraint of symbol_universe (sql/0001_core.sql).
    assert re.fullmatch(r"\^?[A-Z0-9][A-Z0-9.=/_-]{0,31}", symbol, re.ASCII)


def test_exchanges_are_known_by_their_usual_names_in_any_case() -> None:
    assert calendar_of("NYSE") == calendar_of("nasdaq") == calendar_of("XNAS") == "XNYS"
    assert calendar_of("crypto") == "24/7"


def test_an_unknown_exchange_is_refused_with_the_choices() -> None:
    with pytest.raises(InvalidInputError, match="unknown exchange 'MOON': expected one of XNYS, NYSE"):
        calendar_of("MOON")


@pytest.mark.parametrize("name", sorted(set(CALENDARS.values())))
def test_every_exchange_has_a_calendar_that_can_be_built(name: str) -> None:
    assert trading_calendar(name).name == name


def test_an_entry_keeps_the_calendar_of_its_exchange() -> None:
    assert UniverseEntry(symbol="AAPL", exchange="NASDAQ", tier=Tier.T0).calendar == "XNYS"


def an_instrument(**changes: object) -> Instrument:
    return Instrument(**{"symbol_id": 1, "symbol": "BRK.B", "exchange": "NYSE", "calendar": "XNYS", "tier": Tier.T0} | changes)  # type: ignore[arg-type] # builder


def test_an_instrument_goes_by_its_alias_where_a_provider_has_one() -> None:
    instrument = an_instrument(aliases={"yahoo": "BRK-B"})
    assert (instrument.name_at("yahoo"), instrument.name_at("polygon")) == ("BRK-B", "BRK.B")


@pytest.mark.parametrize(
    ("active_from", "active_to", "listed"),
    [
        (None, None, [True, True, True]),
        (date(2024, 6, 4), None, [False, True, True]),
        (None, date(2024, 6, 4), [True, True, False]),
        (date(2024, 6, 4), date(2024, 6, 4), [False, True, False]),
    ],
)
def test_an_instrument_is_listed_from_its_first_session_to_its_last(
    active_from: date | None, active_to: date | None, listed: list[bool]
) -> None:
    instrument = an_instrument(active_from=active_from, active_to=active_to)
    assert [instrument.listed_on(date(2024, 6, day)) for day in (3, 4, 5)] == listed
