"""A universe file is either entirely valid or refused with every problem in it."""

from __future__ import annotations

import hashlib
from datetime import date
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.universe import Tier, UniverseEntry
from market_data_pipeline.ingest.universe_file import MOST_PROBLEMS, parse_universe, read_universe_file

if TYPE_CHECKING:
    from pathlib import Path

HEADER = "symbol,exchange,tier"


def entries_of(text: str) -> tuple[UniverseEntry, ...]:
    return parse_universe(text.encode(), name="u.csv").entries


def complaint_about(text: str | bytes) -> str:
    data = text.encode() if isinstance(text, str) else text
    with pytest.raises(InvalidInputError) as refused:
        parse_universe(data, name="u.csv")
    return str(refused.value)


def test_three_columns_are_enough() -> None:
    assert entries_of(f"{HEADER}\nAAPL,NASDAQ,T0\n0700.HK,XHKG,T1\n") == (
        UniverseEntry(symbol="AAPL", exchange="NASDAQ", tier=Tier.T0),
        UniverseEntry(symbol="0700.HK", exchange="XHKG", tier=Tier.T1),
    )


def test_every_column_is_read() -> None:
    (entry,) = entries_of(
        "tier,symbol,exchange,asset_type,currency,adv_21d,mkt_cap,active_from,active_to,alias_yahoo,alias_alpaca\n"
        "T1,BRK.B,nyse,equity,USD,3.5e9,9e11,1996-05-09,2030-01-31,BRK-B,BRK.B\n"
    )
    assert entry == UniverseEntry(
        symbol="BRK.B",
        exchange="NYSE",
        tier=Tier.T1,
        currency="USD",
        adv_21d=3.5e9,
        mkt_cap=9e11,
        active_from=date(1996, 5, 9),
        active_to=date(2030, 1, 31),
        aliases={"yahoo": "BRK-B"},  # an alias equal to the symbol says nothing
    )
    assert entry.calendar == "XNYS"


def test_a_byte_order_mark_blank_lines_spaces_and_windows_line_ends_mean_nothing() -> None:
    plain = entries_of(f"{HEADER}\nAAPL,XNAS,T0\nMSFT,XNAS,T0\n")
    assert entries_of(f"\ufeff{HEADER}\r\n\r\n AAPL , XNAS,T0\r\nMSFT,XNAS,T0\r\n\r\n,,\r\n") == plain


def test_the_version_is_the_sha256_of_the_bytes() -> None:
    data = f"\ufeff{HEADER}\nAAPL,XNAS,T0\n".encode()
    assert parse_universe(data, name="u.csv").sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("'; drop table,XNYS,T0", 'line 2: "\'; drop table" is not a symbol: expected 1-32 capital letters'),
        ("aapl,XNYS,T0", "line 2: 'aapl' is not a symbol"),
        ("A" * 33 + ",XNYS,T0", "is not a symbol: expected 1-32"),
        ("AAPL,MARS,T0", "line 2: unknown exchange 'MARS': expected one of XNYS"),
        ("AAPL,XNYS,T9", "line 2: tier 'T9': expected one of T0, T1, T2"),
        ("AAPL,XNYS,", "line 2: tier is empty"),
        (",XNYS,T0", "line 2: symbol is empty"),
        ("AAPL,XNYS", "line 2: 2 cells: expected 3"),
        ("AAPL,XNYS,T0,surplus", "line 2: 4 cells: expected 3"),
        ('"AAPL,XNYS,T0', "not CSV"),
        ("AAPL\x00,XNYS,T0", "is not a symbol"),
    ],
)
def test_a_bad_line_is_named_with_its_value_and_what_was_expected(line: str, expected: str) -> None:
    assert expected in complaint_about(f"{HEADER}\n{line}\n")


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("adv_21d", "many", "adv_21d 'many': expected a number of 0 or more"),
        ("adv_21d", "-1", "adv_21d '-1': expected a number"),
        ("mkt_cap", "nan", "mkt_cap 'nan': expected a number"),
        ("mkt_cap", "inf", "mkt_cap 'inf': expected a number"),
        ("mkt_cap", "1_000", "mkt_cap '1_000': expected a number"),
        ("active_from", "31.01.2024", "active_from '31.01.2024': expected a date such as 2024-01-31"),
        ("active_from", "20240131", "active_from '20240131': expected a date"),
        ("active_to", "2024-02-30", "active_to '2024-02-30': expected a date"),
        ("currency", "$", "currency '$': expected a code such as USD"),
        ("asset_type", "Equity!", "asset_type 'Equity!': expected a lower-case word"),
        ("alias_yahoo", "../../etc", "alias_yahoo '../../etc': expected a name of up to 64"),
        ("alias_yahoo", "x" * 500, f"alias_yahoo '{'x' * 61}...': expected a name"),
    ],
)
def test_a_bad_optional_cell_is_named(column: str, value: str, expected: str) -> None:
    assert f"line 2: {expected}" in complaint_about(f"{HEADER},{column}\nAAPL,XNYS,T0,{value}\n")


def test_an_instrument_cannot_end_before_it_starts() -> None:
    complaint = complaint_about(f"{HEADER},active_from,active_to\nAAPL,XNYS,T0,2024-02-01,2024-01-31\n")
    assert "line 2: active_from 2024-02-01 is after active_to 2024-01-31" in complaint


def test_a_symbol_that_stands_twice_is_named_with_both_lines() -> None:
    complaint = complaint_about(f"{HEADER}\nAAPL,XNYS,T0\n\nMSFT,XNYS,T0\nAAPL,XNYS,T1\n")
    assert "line 5: symbol 'AAPL' stands on line 2 already: expected once in the file" in complaint


def test_two_symbols_with_one_name_at_a_provider_are_named() -> None:
    complaint = complaint_about(f"{HEADER},alias_yahoo\nBRK.B,XNYS,T0,BRK-B\nBRK.A,XNYS,T0,BRK-B\n")
    assert "line 3: alias_yahoo 'BRK-B' stands on line 2 already" in complaint


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("symbol,tier", "line 1: column 'exchange' is missing: expected symbol, exchange, tier in the header"),
        ("symbol,exchange,tier,sector", "line 1: unknown column 'sector': expected one of symbol, exchange, tier, asset_type"),
        ("symbol,exchange,tier,alias_", "line 1: unknown column 'alias_'"),
        ("symbol,exchange,tier,tier", "line 1: column 'tier' stands 2 times: expected once"),
    ],
)
def test_a_bad_header_is_named(header: str, expected: str) -> None:
    assert expected in complaint_about(f"{header}\nAAPL,XNYS,T0,x\n")


def test_all_problems_are_told_at_once() -> None:
    complaint = complaint_about(f"{HEADER},adv_21d\naapl,MARS,T9,many\nMSFT,XNYS,T0,1\nIBM,XNYS,T0\n")
    assert complaint.splitlines()[0] == "u.csv: 5 problems, nothing was loaded"
    assert [line.split(":")[0].strip() for line in complaint.splitlines()[1:]] == ["line 2"] * 4 + ["line 4"]


def test_the_list_of_problems_is_capped_and_counts_the_rest() -> None:
    complaint = complaint_about(HEADER + "\nbad,XNYS,T0" * (MOST_PROBLEMS + 7))
    assert len(complaint.splitlines()) == 1 + MOST_PROBLEMS + 1
    assert complaint.splitlines()[-1].strip() == "and 7 more"


@pytest.mark.parametrize("text", ["", "\n\n", HEADER, f"{HEADER}\n\n"])
def test_a_file_without_symbols_is_refused(text: str) -> None:
    assert "the file has no symbols" in complaint_about(text)


def test_bytes_that_are_not_utf8_are_named_with_their_line() -> None:
    assert "u.csv: line 3: byte 0xe9 is not UTF-8" in complaint_about(f"{HEADER}\nAAPL,XNYS,T0\nCAF".encode() + b"\xe9,XPAR,T1\n")
    assert "byte 0xff is not UTF-8" in complaint_about(f"{HEADER}\n".encode("utf-16"))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"cannot read the universe file '.*absent\.csv': No such file"):
        read_universe_file(tmp_path / "absent.csv")
    with pytest.raises(InvalidInputError, match="Is a directory"):
        read_universe_file(tmp_path)


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: f"{HEADER}\n{text}".encode()))
def test_any_bytes_are_either_read_or_refused_in_our_words(data: bytes) -> None:
    try:
        outcome = str(len(parse_universe(data, name="u.csv").entries))
    except InvalidInputError as refused:
        outcome = str(refused)
    assert outcome.startswith("u.csv: ") or int(outcome) > 0
