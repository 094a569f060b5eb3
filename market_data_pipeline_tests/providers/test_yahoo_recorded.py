"""The parser on bodies that Yahoo really sent (../shared/data/README.md says where they are from); none of them is kept here."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.errors import PayloadError
from market_data_pipeline.domain.ports import BarsRequest, CorporateAction
from market_data_pipeline.providers.yahoo import ParsedChart, parse_chart

RECORDED = Path(__file__).parents[3] / "shared" / "data" / "recorded"
WIRE = RECORDED / "yahoo_wire_yf2"
OTHER = RECORDED / "yahoo_wire_other"

# Asked for as a range, so the recording names no window: this one holds all of it.
MUNICH_RE = BarsRequest("MUV2.DE", Interval.D1, 0, 4_000_000_000)

pytestmark = pytest.mark.skipif(not WIRE.is_dir(), reason=f"no recorded bodies at {WIRE}")


def recordings() -> list[tuple[Path, BarsRequest]]:
    """Every recorded chart body with the request it answered."""
    found = []
    index = WIRE / "INDEX.jsonl"
    for line in index.read_text().splitlines() if index.is_file() else ():
        entry = json.loads(line)
        url = urlsplit(entry["url"])
        if "/v8/finance/chart/" in url.path:
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            symbol = unquote(url.path.rpartition("/")[2])
            request = BarsRequest(symbol, Interval(query["interval"]), int(query["period1"]), int(query["period2"]))
            found.append((WIRE / entry["file"], request))
    found.append((OTHER / "pp_response_yahoo_historical02.txt", MUNICH_RE))
    return found


def result_of(path: Path) -> dict[str, Any]:
    """chart.result[0], read with the standard library: not the code under test."""
    result: dict[str, Any] = json.loads(path.read_bytes())["chart"]["result"][0]
    return result


def parsed(name: str) -> ParsedChart:
    """The recording whose file name begins with ``name``."""
    path, request = next((p, r) for p, r in recordings() if p.name.startswith(name))
    return parse_chart(path.read_bytes(), request)


def sessions(answer: ParsedChart) -> list[str]:
    """The dates of a daily answer."""
    return [datetime.fromtimestamp(at, UTC).date().isoformat() for at in answer.columns.opened_at.tolist()]


def test_there_are_recordings_of_every_kind_we_lean_on() -> None:
    names = " ".join(path.name for path, _ in recordings())
    assert len(recordings()) == 24
    for kind in ("BTC-USD", "EURUSD=X", "GC=F", "OCDO.L", "interval-1m", "AAPL-2020-08-31", "historical02"):
        assert kind in names


@pytest.mark.parametrize(("path", "request_"), recordings(), ids=lambda value: value.name if isinstance(value, Path) else "")
def test_every_row_received_is_a_bar_a_null_or_counted(path: Path, request_: BarsRequest) -> None:
    answer = parse_chart(path.read_bytes(), request_)
    rows = len(result_of(path).get("timestamp", ()))
    assert rows == answer.received == len(answer.columns) + len(answer.null_opened_at) + sum(answer.dropped.values())
    assert answer.columns.obeys_ohlc_laws().all()


@pytest.mark.parametrize(("path", "request_"), recordings(), ids=lambda value: value.name if isinstance(value, Path) else "")
def test_every_bar_has_the_values_that_were_sent(path: Path, request_: BarsRequest) -> None:
    result = result_of(path)
    quote = result["indicators"]["quote"][0]
    rows = zip(*(quote.get(name, ()) for name in ("open", "high", "low", "close", "volume")), strict=True)
    stamped = zip(result.get("timestamp", ()), rows, strict=True)
    sent = [row for stamp, row in stamped if stamp < request_.end and row[3] is not None]
    columns = parse_chart(path.read_bytes(), request_).columns
    got = list(zip(*(getattr(columns, name).tolist() for name in ("open", "high", "low", "close", "volume")), strict=True))
    assert got == sent


def test_a_weekend_of_minutes_is_an_empty_answer() -> None:
    answer = parsed("chart-AAPL-2025-02-01")
    assert (answer.received, len(answer.columns), answer.currency) == (0, 0, "USD")


def test_the_split_and_the_dividend_of_apple_in_2020_are_read() -> None:
    assert parsed("chart-AAPL-2020-08-31").actions == (
        CorporateAction("split", date(2020, 8, 31), 4.0),
        CorporateAction("dividend", date(2020, 11, 6), 0.205, "USD"),
    )


def test_the_dividends_of_microsoft_in_2021_are_read() -> None:
    # Ex-dates and amounts as Microsoft's investor relations list them.
    assert [(str(a.session), a.value) for a in parsed("historical-via-chart-MSFT").actions] == [
        ("2021-02-17", 0.56),
        ("2021-05-19", 0.56),
        ("2021-08-18", 0.56),
        ("2021-11-17", 0.62),
    ]


def test_pence_stay_pence() -> None:
    assert parsed("chart-OCDO.L").currency == "GBp"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chart-BTC-USD", ["2020-01-01", "2020-01-02"]),
        ("chart-EURUSD=X", ["2020-01-01", "2020-01-02"]),
        ("chart-GC=F", ["2020-01-02"]),
        ("chart-OCDO.L", ["2020-01-02"]),
        ("chart-WSKT.JK", ["2020-01-02"]),
        ("chart-WSU.DE", ["2023-08-04", "2023-08-07", "2023-08-08"]),
    ],
)
def test_days_have_the_date_of_their_exchange(name: str, expected: list[str]) -> None:
    assert sessions(parsed(name)) == expected


def test_the_bar_that_yahoo_sends_at_period2_is_dropped() -> None:
    assert parsed("chart-BTC-USD").dropped == {"outside_window": 1}


def test_two_vintages_of_the_same_days_name_the_same_sessions() -> None:
    """Recorded in 2020 and in 2025."""
    stamps = result_of(OTHER / "pp_response_yahoo_historical01.txt")["timestamp"]
    answer = parsed("pp_response_yahoo_historical02")
    # Xetra opens at 08:00 or 07:00 UTC, the same date as in Frankfurt.
    assert sessions(answer) == [datetime.fromtimestamp(stamp, UTC).date().isoformat() for stamp in stamps]
    assert len(answer.columns) == 124


def test_a_body_with_closes_alone_is_refused() -> None:
    with pytest.raises(PayloadError, match="no column open"):
        parse_chart((OTHER / "pp_response_yahoo_historical01.txt").read_bytes(), MUNICH_RE)
