"""Halts as files tell them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.halts import Halt
from market_data_pipeline.domain.universe import Instrument, Tier
from market_data_pipeline.ingest.halts import parse_halts, read_halts

if TYPE_CHECKING:
    from pathlib import Path


def an_instrument(symbol_id: int, symbol: str, calendar: str = "XNYS") -> Instrument:
    return Instrument(symbol_id=symbol_id, symbol=symbol, exchange="XNAS", calendar=calendar, tier=Tier.T0)


FOLLOWED = {one.symbol: one for one in (an_instrument(1, "AAPL"), an_instrument(2, "9801.HK", "XHKG"))}
NOON, LATER = datetime(2024, 12, 3, 17, tzinfo=UTC), datetime(2024, 12, 3, 17, 5, tzinfo=UTC)


def test_symbols_whole_markets_and_halts_that_last_are_read() -> None:
    told = parse_halts(
        "symbol,calendar,starts_at,ends_at,reason\n"
        "AAPL,,2024-12-03T12:00:00-05:00,2024-12-03T17:05:00Z,LUDP\n"
        "*,XNYS,2024-12-03T17:00:00Z,,MWC1\n"
        "ZZZZ,,2024-12-03T17:00:00Z,,T1\n",
        FOLLOWED,
        name="halts.csv",
    )
    assert told.halts == (Halt(1, "XNYS", NOON, LATER, "LUDP"), Halt(None, "XNYS", NOON, None, "MWC1"))
    assert told.not_followed == ("ZZZZ",)


def test_the_list_of_nasdaq_trader_is_read_as_it_is() -> None:
    told = parse_halts(
        "Halt Date,Halt Time,Issue Symbol,Issue Name,Market,Reason Codes,Pause Threshold Price,Resumption Date,"
        "Resumption Quote Time,Resumption Trade Time\n"
        '12/03/2024,12:00:00.123,AAPL,"Apple, Inc.",NASDAQ,LUDP,,12/03/2024,12:00:00,12:05:00\n'
        "12/03/2024,12:00:00,AAPL,Apple,NASDAQ,T1,,,,\n"
        "12/03/2024,12:00:00,ZZZZ,Other,NYSE,T1,,,,\n",
        FOLLOWED,
        name="tradehalts.csv",
    )
    assert told.halts == (Halt(1, "XNYS", NOON, LATER, "LUDP"), Halt(1, "XNYS", NOON, None, "T1"))
    assert told.not_followed == ("ZZZZ",)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("AAPL,,2024-12-03T17:00:00,,", "line 2: starts_at '2024-12-03T17:00:00' has no time zone: add Z or an offset"),
        ("AAPL,,yesterday,,", "line 2: starts_at 'yesterday': expected an instant like"),
        ("AAPL,,2024-12-03T17:00:00Z,2024-12-03T17:00:00Z,", "is not after starts_at"),
        ("*,,2024-12-03T17:00:00Z,,", "calendar '': expected one of XHKG, XNYS where the symbol is *"),
        ("AAPL,XHKG,2024-12-03T17:00:00Z,,", "calendar 'XHKG': AAPL trades by XNYS"),
        (",,2024-12-03T17:00:00Z,,", "symbol is empty"),
    ],
)
def test_what_cannot_be_a_halt_is_named_with_its_line_and_nothing_is_read(line: str, complaint: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        parse_halts(f"symbol,calendar,starts_at,ends_at,reason\n{line}\n", FOLLOWED, name="halts.csv")
    assert complaint in str(refused.value)
    assert "halts.csv: nothing was loaded" in str(refused.value)


@pytest.mark.parametrize("header", ["symbol,starts_at", "symbol,starts_at,ends_at,colour", ""])
def test_another_header_is_refused_with_what_was_expected(header: str) -> None:
    with pytest.raises(InvalidInputError, match="expected symbol, starts_at, ends_at"):
        parse_halts(f"{header}\n", FOLLOWED, name="halts.csv")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"cannot read the halts file .*nowhere\.csv"):
        read_halts(tmp_path / "nowhere.csv", FOLLOWED)
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"symbol\xff")
    with pytest.raises(InvalidInputError, match="is not UTF-8"):
        read_halts(binary, FOLLOWED)
