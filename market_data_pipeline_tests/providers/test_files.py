"""A directory of vendor files: what is found in it, how it is read, what is refused; at the end, the recorded sets as they lie."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import re
import zipfile
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.capabilities import Basis, Feed, Stamp
from market_data_pipeline.domain.errors import (
    ConfigurationError,
    OutOfReachError,
    PayloadError,
    ProviderError,
    UnknownSymbolError,
)
from market_data_pipeline.domain.ports import BarsProvider, BarsRequest
from market_data_pipeline.providers.files import FileSet, FilesProvider, FolderSettings
from market_data_pipeline.providers.http import HttpClient
from market_data_pipeline.providers.registry import ProviderContext
from market_data_pipeline.settings import Settings
from market_data_pipeline_tests.providers.wire_cases import NOW, OPEN, at
from market_data_pipeline_tests.recorded import FIELDS, lean_2013, recorded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from market_data_pipeline.domain.ports import BarsAnswer
    from market_data_pipeline_tests.recorded import Row

HEADER = "opened_at,open,high,low,close,volume"
MINUTES = BarsRequest("MSFT", Interval.M1, OPEN, OPEN + 390 * 60)
NEW_YORK = ZoneInfo("America/New_York")


def lines(*stamps: str, header: str = HEADER) -> str:
    """A CSV; bar i is 10+i, 12+i, 9+i, 11+i, volume 100+i."""
    rows = [f"{stamp},{10 + n}.0,{12 + n}.0,{9 + n}.0,{11 + n}.0,{100 + n}" for n, stamp in enumerate(stamps)]
    return "\n".join([header, *rows]) + "\n"


GOOD = lines("2024-07-01T13:30:00Z", "2024-07-01T13:31:00Z", "2024-07-01T13:32:00Z")


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def describe(folder: Path, *sets: Mapping[str, Any]) -> None:
    write(folder / "files.yaml", yaml.safe_dump({"sets": list(sets)}))


def read(directory: Path, request: BarsRequest = MINUTES, **options: Any) -> BarsAnswer:  # noqa: ANN401 - of the provider
    return FilesProvider(directory, **options).fetch_bars(request, now=NOW)


def zipped(**members: str | bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_csv", ".csv"), content)
    return buffer.getvalue()


# --- what is found -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("MSFT.csv", GOOD.encode()),
        ("MSFT.csv.gz", gzip.compress(GOOD.encode(), mtime=0)),
        ("MSFT.zip", zipped(any_csv=GOOD)),
        ("MSFT.csv.zip", zipped(any_csv=GOOD)),
        ("MSFT.csv", b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode()),
        ("MSFT.csv", GOOD.replace("\n", "\n\n").encode()),
        ("MSFT.csv", lines("1719840600", "1719840660", "1719840720").encode()),
        ("MSFT.csv", lines("1719840600000", "1719840660000", "1719840720000").encode()),
        ("MSFT.csv", lines("2024-07-01 09:30:00-04:00", "2024-07-01 09:31:00-04:00", "2024-07-01 09:32:00-04:00").encode()),
        (
            "MSFT.csv",
            lines("2024-07-01 13:30", "2024-07-01 13:31", "2024-07-01 13:32", header="Date,Open,High,Low,Close,Volume").encode(),
        ),
    ],
    ids=["csv", "gzip", "zip", "csv.zip", "BOM and CRLF", "blank lines", "epoch", "milliseconds", "offsets", "naive is UTC"],
)
def test_a_file_by_interval_and_symbol_needs_no_description(tmp_path: Path, name: str, content: bytes) -> None:
    write(tmp_path / "1m" / name, content)
    answer = read(tmp_path)
    assert answer.columns.opened_at.tolist() == [OPEN, OPEN + 60, OPEN + 120]
    assert answer.columns.close.tolist() == [11.0, 12.0, 13.0]
    assert answer.columns.volume.tolist() == [100.0, 101.0, 102.0]


def test_a_directory_is_a_provider_of_bars_without_a_key(tmp_path: Path) -> None:
    write(tmp_path / "1m" / "MSFT.csv", GOOD)
    with HttpClient() as http:
        provider = FilesProvider.open(ProviderContext(Settings(files_dir=tmp_path), http))
        assert FilesProvider.open(ProviderContext(Settings(), http)) is None
    assert isinstance(provider, BarsProvider)
    assert (provider.account, provider.lacking, provider.limits) == ("", None, ())
    assert [(c.name, c.stamp, c.basis, c.feed) for c in provider.capabilities] == [
        ("bars_1m", Stamp.OPEN, Basis.SPLIT, Feed.CONSOLIDATED)
    ]


def test_an_answer_says_which_file_it_is_from(tmp_path: Path) -> None:
    path = write(tmp_path / "1m" / "MSFT.csv.gz", gzip.compress(GOOD.encode()))
    fetch = read(tmp_path).fetch
    assert fetch.request == "READ 1m/MSFT.csv.gz"
    assert fetch.payload_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (fetch.payload_bytes, fetch.attempts, fetch.rows, fetch.status) == (path.stat().st_size, 0, 3, None)
    assert str(tmp_path) not in fetch.request


def test_the_window_is_half_open(tmp_path: Path) -> None:
    write(tmp_path / "1m" / "MSFT.csv", GOOD)
    answer = read(tmp_path, replace(MINUTES, start=OPEN + 60, end=OPEN + 120))
    assert answer.columns.opened_at.tolist() == [OPEN + 60]
    # A file holds more than was asked for: that is no loss to be counted.
    assert answer.fetch.dropped == {}


def test_rows_in_any_order_and_twice_come_out_sorted_and_once(tmp_path: Path) -> None:
    head, *rows = GOOD.splitlines()
    write(tmp_path / "1m" / "MSFT.csv", "\n".join([head, *reversed(rows), rows[0]]))
    answer = read(tmp_path)
    assert answer.columns.opened_at.tolist() == [OPEN, OPEN + 60, OPEN + 120]
    assert answer.fetch.dropped == {"duplicate": 1}


def test_an_empty_row_is_no_information_and_an_empty_cell_is_for_the_judge(tmp_path: Path) -> None:
    write(tmp_path / "1m" / "MSFT.csv", GOOD + "2024-07-01T13:33:00Z,,,,,\n2024-07-01T13:34:00Z,10,,9,10,5\n")
    answer = read(tmp_path)
    assert answer.null_opened_at.tolist() == [OPEN + 180]
    assert answer.columns.obeys_ohlc_laws().tolist() == [True, True, True, False]


@pytest.mark.parametrize(("start", "end"), [("2024-06-28T13:30Z", "2024-06-28T20:00Z"), ("2024-07-02T13:30Z", "2024-07-02T20:00Z")])
def test_beyond_the_oldest_and_the_newest_bar_is_out_of_reach(tmp_path: Path, start: str, end: str) -> None:
    """A directory of history is not to blame for what it never held."""
    write(tmp_path / "1m" / "MSFT.csv", GOOD)
    with pytest.raises(OutOfReachError, match="hold bars from 2024-07-01T13:30:00"):
        read(tmp_path, replace(MINUTES, start=at(start), end=at(end)))


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "1m" / "MSFT.csv", GOOD)
    provider = FilesProvider(tmp_path)
    before = provider.fetch_bars(MINUTES, now=NOW)
    write(path, GOOD.replace("13.0", "13.5"))
    os.utime(path, ns=(1, 1))
    after = provider.fetch_bars(MINUTES, now=NOW)
    assert (before.columns.close[-1], after.columns.close[-1]) == (13.0, 13.5)
    assert before.fetch.payload_sha256 != after.fetch.payload_sha256


@pytest.mark.parametrize(
    "symbol",
    ["../MSFT", "..", "a/b", "1m\\MSFT", "", ".hidden", "MSFT\n", "{symbol}", "A" * 40, "/etc/passwd", "%2e%2e", "\uff2dSFT"],
)
def test_no_symbol_leads_out_of_the_directory(tmp_path: Path, symbol: str) -> None:
    write(tmp_path / "outside.csv", GOOD)
    write(tmp_path / "data" / "1m" / "MSFT.csv", GOOD)
    with pytest.raises(UnknownSymbolError) as refused:
        read(tmp_path / "data", replace(MINUTES, symbol=symbol))
    assert refused.value.fetch is not None
    assert refused.value.fetch.outcome == "unknown_symbol"


def test_no_link_leads_out_of_the_directory(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside.csv", GOOD)
    write(tmp_path / "data" / "1m" / "AAPL.csv", GOOD)
    (tmp_path / "data" / "1m" / "MSFT.csv").symlink_to(outside)
    with pytest.raises(UnknownSymbolError):
        read(tmp_path / "data")
    assert len(read(tmp_path / "data", replace(MINUTES, symbol="AAPL")).columns) == 3


def test_symbols_with_signs_are_files_like_any_other(tmp_path: Path) -> None:
    for symbol in ("BRK-B", "BRK.B", "^GSPC", "EURUSD=X", "0700.HK"):
        write(tmp_path / "1m" / f"{symbol}.csv", GOOD)
        assert len(read(tmp_path, replace(MINUTES, symbol=symbol)).columns) == 3


# --- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (GOOD.replace("13.0,10.0", "13.0,abc", 1), "1m/MSFT.csv:3: low 'abc' is no number"),
        (GOOD.replace("12.0", "1_2.0", 1), "1m/MSFT.csv:2: high '1_2.0' is no number"),
        (GOOD.replace("2024-07-01T13:31:00Z", "2024-07-00T13:31:00Z"), "1m/MSFT.csv:3: stamp '2024-07-00T13:31:00Z' is no date"),
        (GOOD.replace("2024-07-01T13:31:00Z", "yesterday"), "1m/MSFT.csv:3: stamp 'yesterday'"),
        (GOOD.replace("2024-07-01T13:31:00Z", ""), "1m/MSFT.csv:3: stamp ''"),
        (GOOD.replace("2024-07-01T13:31:00Z", "2024-07-01T13:31:00"), "1m/MSFT.csv:3: a stamp without an offset"),
        (GOOD + "2024-07-01T13:33:00Z,1,2\n", "1m/MSFT.csv:5: not 6 cells"),
        (GOOD.replace("volume", "shares"), "no column is volume or vol or v"),
        (GOOD.replace("high", "open"), "several columns are"),
        ("", "no first line"),
        (b"\x00\x01\x02\xff", "no first line"),
    ],
)
def test_a_row_that_cannot_be_read_refuses_its_file_by_line(tmp_path: Path, content: str | bytes, words: str) -> None:
    write(tmp_path / "1m" / "MSFT.csv", content)
    with pytest.raises(PayloadError) as refused:
        read(tmp_path)
    assert words in str(refused.value)
    assert refused.value.fetch is not None
    assert refused.value.fetch.outcome == "malformed"


def test_the_line_that_is_named_counts_blank_lines(tmp_path: Path) -> None:
    write(tmp_path / "1m" / "MSFT.csv", GOOD.replace("\n2024-07-01T13:31", "\n\n\n2024-07-01T13:31").replace("13.0,", "x,", 1))
    with pytest.raises(PayloadError, match=r"1m/MSFT.csv:5: high 'x'"):
        read(tmp_path)


def test_a_header_without_rows_is_an_empty_file(tmp_path: Path) -> None:
    write(tmp_path / "1m" / "MSFT.csv", HEADER + "\n")
    assert len(read(tmp_path).columns) == 0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("MSFT.csv", b"0" * 5000),
        ("MSFT.csv.gz", gzip.compress(b"0" * 10_000_000, mtime=0)),
        ("MSFT.zip", zipped(bomb_csv=b"0" * 10_000_000)),
    ],
)
def test_a_file_that_unfolds_to_too_much_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    write(tmp_path / "1m" / name, content)
    with pytest.raises(PayloadError, match="longer than 4,096 bytes"):
        read(tmp_path, most_bytes=4096)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("MSFT.csv.gz", gzip.compress(GOOD.encode(), mtime=0)[:40], "cannot be unpacked"),
        ("MSFT.csv.gz", b"no gzip at all", "cannot be unpacked"),
        ("MSFT.zip", b"no zip at all", "cannot be unpacked"),
        ("MSFT.zip", zipped(a_csv=GOOD, b_csv=GOOD), "holds 2 files"),
        ("MSFT.parquet", b"PAR1 no parquet", "is no Parquet file"),
    ],
)
def test_what_is_not_what_its_name_says_is_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    write(tmp_path / "1m" / name, content)
    with pytest.raises(PayloadError, match=words):
        read(tmp_path)


# --- Parquet -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stamps",
    [
        pa.array([OPEN * 10**9, (OPEN + 60) * 10**9], pa.timestamp("ns", "UTC")),
        pa.array([OPEN * 1000, (OPEN + 60) * 1000], pa.timestamp("ms")),
        pa.array([OPEN, OPEN + 60], pa.int64()),
        pa.array([OPEN * 10**6, (OPEN + 60) * 10**6], pa.int64()),
        pa.array(["2024-07-01T13:30:00Z", "2024-07-01T13:31:00Z"]),
    ],
    ids=["instants", "wall clock", "seconds", "microseconds", "text"],
)
def test_parquet_is_read_by_its_types(tmp_path: Path, stamps: pa.Array) -> None:
    numbers = {name: pa.array([10.0, 11.0]) for name in ("Open", "High", "Low", "Close")}
    (tmp_path / "1m").mkdir()
    pq.write_table(pa.table({"Datetime": stamps, **numbers, "Volume": pa.array([5, 6])}), tmp_path / "1m" / "MSFT.parquet")
    answer = read(tmp_path)
    assert answer.columns.opened_at.tolist() == [OPEN, OPEN + 60]
    assert answer.columns.volume.tolist() == [5.0, 6.0]


def test_days_of_parquet_are_dates(tmp_path: Path) -> None:
    columns = {name: pa.array([10.0]) for name in ("open", "high", "low", "close", "volume")}
    (tmp_path / "1d").mkdir()
    pq.write_table(pa.table({"date": pa.array([date(2024, 7, 1)]), **columns}), tmp_path / "1d" / "MSFT.parquet")
    answer = read(tmp_path, replace(MINUTES, interval=Interval.D1))
    assert answer.columns.opened_at.tolist() == [at("2024-07-01T00:00Z")]


# --- files.yaml --------------------------------------------------------------------------------------------------------


def test_a_description_names_columns_zone_stamps_and_units(tmp_path: Path) -> None:
    vendor = tmp_path / "vendor"
    describe(
        vendor,
        {
            "interval": "1m",
            "path": "{symbol_lower}/{symbol}-{date}.csv",
            "header": False,
            "skip_rows": 1,
            "delimiter": ";",
            "columns": {"stamp": 5, "open": 0, "high": 1, "low": 2, "close": 3, "volume": 4},
            "stamp": "close",
            "stamp_format": "%d.%m.%Y %H:%M",
            "time_zone": "America/New_York",
            "price_divisor": 100,
            "volume_multiplier": 100,
            "basis": "raw",
            "feed": "iex",
            "currency": "USD",
        },
    )
    write(vendor / "msft" / "MSFT-20240701.csv", "exported by hand\n1000;1200;900;1100;7;01.07.2024 09:31\n")
    provider = FilesProvider(tmp_path)
    answer = provider.fetch_bars(MINUTES, now=NOW)
    assert answer.columns.opened_at.tolist() == [OPEN]
    assert (answer.columns.open[0], answer.columns.volume[0], answer.currency) == (10.0, 700.0, "USD")
    capability = provider.capabilities[0]
    assert (capability.stamp, capability.basis, capability.feed) == (Stamp.CLOSE, Basis.RAW, Feed.IEX)


def test_the_folder_that_holds_most_of_the_window_answers(tmp_path: Path) -> None:
    for folder, text in (("a", lines("2024-07-01T13:30:00Z")), ("b", GOOD), ("c", lines("2020-07-01T13:30:00Z"))):
        describe(tmp_path / folder, {"interval": "1m", "path": "{symbol}.csv"})
        write(tmp_path / folder / "MSFT.csv", text)
    assert read(tmp_path).fetch.request == "READ b/MSFT.csv"
    old = replace(MINUTES, start=at("2020-07-01T13:30Z"), end=at("2020-07-01T20:00Z"))
    assert read(tmp_path, old).fetch.request == "READ c/MSFT.csv"


@pytest.mark.parametrize(
    ("described", "words"),
    [
        ({"interval": "5m", "path": "{symbol}.csv"}, "sets.0.interval"),
        ({"interval": "1m", "path": "all.csv"}, "where the symbol stands"),
        ({"interval": "1m", "path": "../{symbol}.csv"}, "leads out of its directory"),
        ({"interval": "1m", "path": "/{symbol}.csv"}, "leads out of its directory"),
        ({"interval": "1m", "path": "{symbol.__class__}.csv"}, "expected {date}, {symbol}, {symbol_lower}"),
        ({"interval": "1m", "path": "{date}/{symbol}.csv"}, "belongs into the name of the file"),
        ({"interval": "1m", "path": "{symbol}.csv}"}, "a brace too many"),
        ({"interval": "1m", "path": "{symbol}.csv", "stamp": "date"}, "does not go with 1m"),
        ({"interval": "1d", "path": "{symbol}.csv", "stamp": "close"}, "does not go with 1d"),
        ({"interval": "1m", "path": "{symbol}.csv", "header": False}, "needs the position of every column"),
        ({"interval": "1m", "path": "{symbol}.csv", "time_zone": "Mars/Olympus"}, "is no time zone"),
        ({"interval": "1m", "path": "{symbol}.csv", "price_divisor": 0}, "price_divisor"),
        ({"interval": "1m", "path": "{symbol}.csv", "colums": {}}, "colums"),
        ({"interval": "1m", "path": "{symbol}.csv", "stamp_format": "milliseconds_since_midnight"}, "needs {date}"),
    ],
)
def test_a_description_that_cannot_be_meant_is_named(tmp_path: Path, described: dict[str, Any], words: str) -> None:
    describe(tmp_path, described)
    with pytest.raises(ConfigurationError) as refused:
        FilesProvider(tmp_path)
    assert words in str(refused.value)
    assert "files.yaml" in str(refused.value)


def test_what_is_no_yaml_and_what_is_no_directory_is_named(tmp_path: Path) -> None:
    write(tmp_path / "files.yaml", "sets: [")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        FilesProvider(tmp_path)
    with pytest.raises(ConfigurationError, match="MDP_FILES_DIR"):
        FilesProvider(tmp_path / "nowhere")


def test_one_directory_has_one_meaning_for_an_interval(tmp_path: Path) -> None:
    write(tmp_path / "1m" / "MSFT.csv", GOOD)
    describe(tmp_path / "vendor", {"interval": "1m", "path": "{symbol}.csv", "basis": "raw"})
    with pytest.raises(ConfigurationError, match="one directory has one meaning"):
        FilesProvider(tmp_path)


@pytest.mark.parametrize(("stamp", "opens"), [("2024-11-01 09:30", "2024-11-01T13:30Z"), ("2024-11-04 09:30", "2024-11-04T14:30Z")])
def test_local_time_follows_the_clock_change(tmp_path: Path, stamp: str, opens: str) -> None:
    describe(tmp_path, {"interval": "1m", "path": "{symbol}.csv", "time_zone": "America/New_York"})
    write(tmp_path / "MSFT.csv", lines(stamp))
    request = replace(MINUTES, start=at(opens), end=at(opens) + 60)
    assert read(tmp_path, request).columns.opened_at.tolist() == [at(opens)]


@pytest.mark.parametrize("stamp", ["2024-11-03 01:30", "2024-03-10 02:30"])
def test_a_local_time_that_names_no_instant_is_refused(tmp_path: Path, stamp: str) -> None:
    describe(tmp_path, {"interval": "1m", "path": "{symbol}.csv", "time_zone": "America/New_York"})
    write(tmp_path / "MSFT.csv", lines("2024-11-01 09:30", stamp))
    with pytest.raises(PayloadError, match=r"MSFT.csv:3: .* shown twice or never by the clocks of America/New_York"):
        read(tmp_path)


# --- the recorded sets, as they lie ------------------------------------------------------------------------------------

LEAN_COLUMNS = {"stamp": 0, "open": 1, "high": 2, "low": 3, "close": 4, "volume": 5}
LEAN = {"header": False, "columns": LEAN_COLUMNS, "time_zone": "America/New_York", "price_divisor": 10_000, "basis": "raw"}


def linked(directory: Path, name: str) -> Path:
    """A copy of a recorded set: links would lead out of the directory."""
    source = recorded(name)
    for path in source.rglob("*"):
        if path.is_file():
            write(directory / name / path.relative_to(source), path.read_bytes())
    return directory / name


def expect_rows(answer: BarsAnswer, rows: list[Row]) -> None:
    assert answer.columns.opened_at.tolist() == [row.opened_at for row in rows]
    for name in FIELDS:
        assert getattr(answer.columns, name).tolist() == [getattr(row, name) for row in rows]
    assert answer.fetch.dropped == {}


def span_of(rows: list[Row], symbol: str, interval: Interval) -> BarsRequest:
    return BarsRequest(symbol, interval, rows[0].opened_at, rows[-1].opened_at + 60)


@pytest.mark.parametrize("symbol", ["SPY", "IBM", "BAC"])
def test_leans_minutes_and_days_are_read_digit_by_digit(tmp_path: Path, symbol: str) -> None:
    usa = linked(tmp_path / "files", "lean") / "equity" / "usa"
    describe(
        usa.parent.parent,
        {
            **LEAN,
            "interval": "1m",
            "path": "equity/usa/minute/{symbol_lower}/{date}_trade.zip",
            "stamp_format": "milliseconds_since_midnight",
        },
        {**LEAN, "interval": "1d", "path": "equity/usa/daily/{symbol_lower}.zip", "stamp_format": "%Y%m%d %H:%M"},
    )
    expected = lean_2013(tmp_path / "expected")
    minutes = sorted((*expected.rows["1m", symbol], *expected.extended["1m", symbol]), key=lambda row: row.opened_at)
    days = list(expected.rows["1d", symbol])
    expect_rows(read(tmp_path / "files", span_of(minutes, symbol, Interval.M1)), minutes)
    expect_rows(read(tmp_path / "files", span_of(days, symbol, Interval.D1)), days)


def rows_of(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return [{name.lower(): text for name, text in row.items()} for row in csv.DictReader(io.StringIO(file.read()))]


def described_set(directory: Path, name: str, *sets: Mapping[str, Any]) -> Path:
    folder = linked(directory, name)
    describe(folder, *sets)
    return folder


@pytest.mark.parametrize("symbol", ["SPY", "AAPL", "BAC", "UGA", "VIX"])
def test_alpha_vantages_closes_of_2019_become_opens(tmp_path: Path, symbol: str) -> None:
    folder = described_set(
        tmp_path,
        "alphavantage_eqker_201902",
        {"interval": "1m", "path": "{symbol}_1min.csv.gz", "stamp": "close", "time_zone": "America/New_York", "basis": "raw"},
        {"interval": "1d", "path": "{symbol}_daily.csv.gz", "basis": "raw"},
    )
    minutes, days = rows_of(folder / f"{symbol}_1min.csv.gz"), rows_of(folder / f"{symbol}_daily.csv.gz")
    week = BarsRequest(symbol, Interval.M1, at("2019-02-11T14:30Z"), at("2019-02-15T21:00Z"))
    answer = read(tmp_path, week)
    labels = [datetime.fromisoformat(row["datetime"]).replace(tzinfo=NEW_YORK) for row in reversed(minutes)]
    assert answer.columns.opened_at.tolist() == [int(label.astimezone(UTC).timestamp()) - 60 for label in labels]
    assert answer.columns.close.tolist() == [float(row["close"]) for row in reversed(minutes)]
    years = BarsRequest(symbol, Interval.D1, at("2018-01-02T14:30Z"), at("2019-02-15T21:00Z"))
    assert read(tmp_path, years).columns.close.tolist() == [float(row["close"]) for row in reversed(days)]


def test_ibkrs_minutes_carry_vwap_and_trades(tmp_path: Path) -> None:
    folder = described_set(tmp_path, "ibkr_aapl_20250926", {"interval": "1m", "path": "{symbol}_1min.csv", "basis": "raw"})
    rows = rows_of(folder / "AAPL_1min.csv")
    answer = read(tmp_path, BarsRequest("AAPL", Interval.M1, at("2025-09-26T08:00Z"), at("2025-09-27T00:00Z")))
    assert len(answer.columns) == len(rows) == 960
    assert answer.columns.vwap.tolist() == [float(row["average"]) for row in rows]
    assert answer.columns.trades.tolist() == [float(row["barcount"]) for row in rows]


def test_ibkrs_file_with_a_day_zero_is_refused_by_its_line(tmp_path: Path) -> None:
    described_set(tmp_path, "ibkr_aapl_20250926", {"interval": "1m", "path": "{symbol}.csv", "basis": "raw"})
    with pytest.raises(PayloadError, match=r"ibkr_aapl_20250926/AAPL.csv:2: stamp '2025-08-00"):
        read(tmp_path, BarsRequest("AAPL", Interval.M1, at("2025-08-01T13:30Z"), at("2025-08-01T20:00Z")))


@pytest.mark.parametrize(
    ("name", "path", "file", "symbol"),
    [
        ("daily_mplfinance", "yahoofinance-{symbol}-20040819-20180120.csv", "yahoofinance-AAPL-20040819-20180120.csv", "AAPL"),
        ("daily_mplfinance", "yahoofinance-{symbol}-20080101-20180101.csv", "yahoofinance-SPY-20080101-20180101.csv", "SPY"),
        ("zipline", "{symbol}.csv.gz", "AAPL.csv.gz", "AAPL"),
        ("zipline", "{symbol}.csv.gz", "IBM.csv.gz", "IBM"),
        ("yahoo_market_prices_mit", "{symbol}_D1.csv.gz", "MSFT_D1.csv.gz", "MSFT"),
    ],
)
def test_days_of_other_vendors_are_read_as_they_lie(tmp_path: Path, name: str, path: str, file: str, symbol: str) -> None:
    folder = described_set(tmp_path, name, {"interval": "1d", "path": path})
    rows = rows_of(folder / file)
    answer = read(tmp_path, BarsRequest(symbol, Interval.D1, at("1980-01-01T14:30Z"), at("2025-12-31T21:00Z")))
    assert answer.columns.opened_at.tolist() == [at(f"{row['date'][:10]}T00:00Z") for row in rows]
    for field in FIELDS:
        assert np.array_equal(getattr(answer.columns, field), [float(row[field]) for row in rows])


def test_what_fails_is_always_an_error_of_ours(tmp_path: Path) -> None:
    """Every file cut at every place: bars, or an error that names the file; never another exception."""
    whole = zipped(any_csv=GOOD)
    for length in range(0, len(whole), 7):
        write(tmp_path / "1m" / "MSFT.zip", whole[:length])
        with pytest.raises(ProviderError, match=r"1m/MSFT\.zip"):
            read(tmp_path)


# --- the page about it -------------------------------------------------------------------------------------------------

PAGE = Path(__file__).resolve().parents[2] / "docs" / "vendor-files.md"


def test_the_page_shows_descriptions_that_can_be_used(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        assert FolderSettings.model_validate(yaml.safe_load(block)).sets
        write(tmp_path / "files.yaml", block)
        FilesProvider(tmp_path)


def test_the_page_names_every_key_of_a_description() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [name for name in FileSet.model_fields if f"`{name}`" not in page] == []
