"""What Alpha Vantage is asked and what its answers mean: one test a fact of the wire, and the minutes of 2019 as they were sent."""

from __future__ import annotations

import csv
import gzip
import io
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import SecretStr

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.capabilities import Basis, Stamp
from market_data_pipeline.domain.errors import (
    EntitlementError,
    OutOfReachError,
    PayloadError,
    ProviderError,
    RateLimitedError,
    TransientError,
    UnknownSymbolError,
)
from market_data_pipeline.domain.ports import BarsRequest
from market_data_pipeline.domain.sessions import trading_calendar
from market_data_pipeline.providers.alphavantage import AlphaVantageProvider, parse_series
from market_data_pipeline_tests.providers.loopback import Loopback, Reply
from market_data_pipeline_tests.providers.wire_cases import DAYS, MINUTES, NOW, OPEN, at, client, encoded, failure_of, ok
from market_data_pipeline_tests.recorded import FIELDS, recorded

if TYPE_CHECKING:
    from market_data_pipeline.providers.http import HttpClient

KEY = "AV0KEY7DEMO9"
NEW_YORK = ZoneInfo("America/New_York")
LIMIT = (
    "We have detected your API key as {key} and our standard API rate limit is 25 requests per day. Please subscribe to any of the "
    "premium plans at https://www.alphavantage.co/premium/ to instantly remove all daily rate limits."
)
BURST = (
    "Thank you for using Alpha Vantage! Please consider spreading out your free API requests more sparingly "
    "(1 request per second). You may subscribe to any of the premium plans at "
    "https://www.alphavantage.co/premium/ to lift the free key rate limit."
)
PREMIUM = "Thank you for using Alpha Vantage! The outputsize=full parameter value is a premium feature for this endpoint."
OLD_NOTE = "Thank you for using Alpha Vantage! Our standard API call frequency is 5 calls per minute and 500 calls per day."


def values(price: float = 10.0) -> dict[str, str]:
    return row_of(f"{price:.4f}", f"{price + 2:.4f}", f"{price - 1:.4f}", f"{price + 1:.4f}", "100")


def row_of(*texts: str) -> dict[str, str]:
    return dict(zip(("1. open", "2. high", "3. low", "4. close", "5. volume"), texts, strict=True))


def minutes(*labels: str, month: str = "2024-07-01", **meta: str) -> dict[str, Any]:
    """A month of minutes with these times of one day, newest first as they are sent."""
    rows = {f"{month} {label}:00": values() for label in sorted(labels, reverse=True)}
    said = {"1. Information": "Intraday", "2. Symbol": "MSFT", "4. Interval": "1min", "6. Time Zone": "US/Eastern", **meta}
    return {"Meta Data": said, "Time Series (1min)": rows}


def days(*dates: str, **meta: str) -> dict[str, Any]:
    said = {"2. Symbol": "MSFT", "4. Output Size": "Compact", "5. Time Zone": "US/Eastern", **meta}
    return {"Meta Data": said, "Time Series (Daily)": {day: values() for day in sorted(dates, reverse=True)}}


def alphavantage(url: str, http: HttpClient, *, stamp: Stamp = Stamp.OPEN) -> AlphaVantageProvider:
    return AlphaVantageProvider(http, base_url=url, key=SecretStr(KEY), stamp=stamp)


# --- what is asked -----------------------------------------------------------------------------------------------------


def test_a_month_of_regular_unadjusted_minutes_is_asked_for() -> None:
    with Loopback(ok(minutes("09:30", "15:59"))) as server, client() as http:
        answer = alphavantage(server.url, http).fetch_bars(MINUTES, now=NOW)
        received = server.requests[0]
    assert received.path == "/query"
    assert received.query == {
        "function": "TIME_SERIES_INTRADAY",
        "symbol": "MSFT",
        "interval": "1min",
        "month": "2024-07",
        "adjusted": "false",
        "extended_hours": "false",
        "outputsize": "full",
        "datatype": "json",
        "apikey": KEY,
    }
    assert KEY not in answer.fetch.request
    assert "apikey=***" in answer.fetch.request


def test_a_window_over_the_end_of_a_month_is_two_requests_and_one_answer() -> None:
    request = replace(MINUTES, start=at("2024-06-28T13:30Z"))
    replies = ok(minutes("09:30", month="2024-06-28")), ok(minutes("09:30", month="2024-07-01"))
    with Loopback(*replies) as server, client() as http:
        answer = alphavantage(server.url, http).fetch_bars(request, now=NOW)
        assert [received.query["month"] for received in server.requests] == ["2024-06", "2024-07"]
    assert answer.columns.opened_at.tolist() == [at("2024-06-28T13:30Z"), at("2024-07-01T13:30Z")]
    assert answer.fetch.attempts == 2
    assert "2024-07" in answer.fetch.request


@pytest.mark.parametrize(("start", "size"), [(DAYS.start, "compact"), (at("2024-01-02T14:30Z"), "full")])
def test_days_of_the_last_months_need_no_plan(start: int, size: str) -> None:
    with Loopback(ok(days("2024-06-28", "2024-01-02"))) as server, client() as http:
        alphavantage(server.url, http).fetch_bars(replace(DAYS, start=start), now=NOW)
        assert server.requests[0].query["outputsize"] == size


def test_everything_is_declared_as_traded() -> None:
    with client() as http:
        declared = alphavantage("http://127.0.0.1:1", http, stamp=Stamp.CLOSE).capabilities
    assert {c.basis for c in declared} == {Basis.RAW}
    assert {c.interval: c.stamp for c in declared} == {Interval.M1: Stamp.CLOSE, Interval.D1: Stamp.DATE}


def test_there_are_no_minutes_before_the_year_2000() -> None:
    start = at("1999-12-30T14:30Z")
    error, sent = failure_of(alphavantage, Reply(), request=replace(MINUTES, start=start, end=start + 3600))
    assert isinstance(error, OutOfReachError)
    assert sent == 0


# --- refusals in words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "kind", "requests"),
    [
        ({"Information": LIMIT.format(key=KEY)}, RateLimitedError, 1),
        ({"Note": OLD_NOTE}, RateLimitedError, 1),
        # It names its own wait, which is worth waiting for.
        ({"Information": BURST}, RateLimitedError, 3),
        ({"Information": PREMIUM}, EntitlementError, 1),
        ({"Information": "Thank you for using Alpha Vantage! This is a premium endpoint."}, EntitlementError, 1),
        ({"Information": "The **demo** API key is for demo purposes only."}, EntitlementError, 1),
        ({"Error Message": "the parameter apikey is invalid or missing."}, EntitlementError, 1),
        ({"Error Message": "Invalid API call. Please retry or visit the documentation"}, UnknownSymbolError, 1),
        ({"Information": "Something new"}, PayloadError, 1),
        ({}, PayloadError, 1),
    ],
)
def test_a_200_without_a_series_is_classed_by_its_words(document: dict[str, str], kind: type[ProviderError], requests: int) -> None:
    error, sent = failure_of(alphavantage, ok(document))
    assert (type(error), sent) == (kind, requests)
    assert KEY not in f"{error!r} {error.fetch!r}"


def test_a_burst_is_waited_for_and_then_answered() -> None:
    with Loopback(ok({"Information": BURST}), ok(minutes("09:30"))) as server, client() as http:
        assert alphavantage(server.url, http).fetch_bars(MINUTES, now=NOW).fetch.attempts == 2


def test_an_outage_is_tried_again() -> None:
    error, sent = failure_of(alphavantage, Reply(body=b"<html>", headers={"Content-Type": "text/html"}))
    assert (type(error), sent) == (TransientError, 3)


@pytest.mark.parametrize(
    "document",
    [
        minutes("09:30", **{"2. Symbol": "TSLA"}),
        minutes("09:30", **{"4. Interval": "5min"}),
        minutes("09:30", **{"6. Time Zone": "Mars/Olympus"}),
        {"Meta Data": {"2. Symbol": "MSFT", "4. Interval": "1min", "6. Time Zone": "US/Eastern"}},
        {**minutes("09:30"), "Time Series (1min)": {"soon": values()}},
        {**minutes("09:30"), "Time Series (1min)": {"2024-07-01 09:30:00": 7}},
        {**minutes("09:30"), "Time Series (1min)": {"2024-07-01 09:30:00+02": values()}},
    ],
)
def test_an_answer_to_another_question_is_refused(document: dict[str, Any]) -> None:
    error, sent = failure_of(alphavantage, ok(document))
    assert (type(error), sent) == (PayloadError, 1)


def test_a_compact_answer_that_does_not_reach_back_is_refused() -> None:
    hundred = [(date(2024, 6, 10) + timedelta(days=n)).isoformat() for n in range(100)]
    error, _ = failure_of(alphavantage, ok(days(*hundred)), request=replace(DAYS, start=at("2024-05-01T13:30Z")))
    assert isinstance(error, PayloadError)
    assert "begins 2024-06-10" in str(error)


# --- what the stamps mean ----------------------------------------------------------------------------------------------


def test_the_newest_comes_first_and_comes_out_last() -> None:
    found = parse_series([encoded(minutes("09:30", "09:31", "15:59"))], MINUTES)
    assert found.columns.opened_at.tolist() == [OPEN, OPEN + 60, OPEN + 389 * 60]
    assert (found.columns.open.tolist()[0], found.columns.volume.tolist()[0]) == (10.0, 100.0)
    # Text is how it writes numbers: nothing was repaired.
    assert not found.flags.any()


def test_closes_become_opens_where_that_is_declared() -> None:
    found = parse_series([encoded(minutes("09:31", "16:00"))], MINUTES, stamp=Stamp.CLOSE)
    assert found.columns.opened_at.tolist() == [OPEN, OPEN + 389 * 60]


@pytest.mark.parametrize(
    ("labels", "stamp", "instead"),
    [(("09:31", "12:00", "16:00"), Stamp.OPEN, "close"), (("09:30", "12:00", "15:59"), Stamp.CLOSE, "open")],
)
def test_stamps_that_fit_only_the_other_convention_are_refused_by_name(labels: tuple[str, ...], stamp: Stamp, instead: str) -> None:
    with pytest.raises(PayloadError, match=f"set it to {instead}"):
        parse_series([encoded(minutes(*labels))], MINUTES, stamp=stamp)


@pytest.mark.parametrize("labels", [("09:30", "16:00"), ("12:00",), ("09:31", "12:59")])
def test_stamps_that_fit_both_are_taken_as_declared(labels: tuple[str, ...]) -> None:
    """A closing print at 16:00 beside an open at 09:30, a thin symbol, a half day: no evidence against the declaration."""
    found = parse_series([encoded(minutes(*labels))], replace(MINUTES, end=MINUTES.end + 60))
    assert len(found.columns) == len(labels)


def test_one_month_by_closes_among_months_by_opens_is_noticed() -> None:
    bodies = [encoded(minutes("09:30", "15:59", month="2024-06-28")), encoded(minutes("09:31", "16:00", month="2024-07-01"))]
    with pytest.raises(PayloadError, match="16:00 is named and 09:30 is not"):
        parse_series(bodies, replace(MINUTES, start=at("2024-06-28T13:30Z")))


def test_local_time_follows_the_clock_change() -> None:
    january = replace(MINUTES, start=at("2024-01-02T14:30Z"), end=at("2024-01-02T21:00Z"))
    found = parse_series([encoded(minutes("09:30", month="2024-01-02"))], january)
    assert found.columns.opened_at.tolist() == [at("2024-01-02T14:30Z")]


def test_a_value_that_is_no_number_is_left_to_the_judge() -> None:
    document = minutes("09:30")
    document["Time Series (1min)"]["2024-07-01 09:30:00"]["2. high"] = "n/a"
    assert parse_series([encoded(document)], MINUTES).columns.obeys_ohlc_laws().tolist() == [False]


# --- the minutes of 2019 -----------------------------------------------------------------------------------------------


def as_sent(symbol: str) -> tuple[bytes, list[dict[str, str]]]:
    """The recorded rows as a body, newest first as they were saved, and the rows."""
    with gzip.open(recorded("alphavantage_eqker_201902") / f"{symbol}_1min.csv.gz", "rt", encoding="ascii") as file:
        rows = list(csv.DictReader(io.StringIO(file.read())))
    series = {r["datetime"]: row_of(*(r[name] for name in FIELDS)) for r in rows}
    meta = {"2. Symbol": symbol, "4. Interval": "1min", "6. Time Zone": "US/Eastern"}
    return encoded({"Meta Data": meta, "Time Series (1min)": series}), rows


WEEK = BarsRequest("", Interval.M1, at("2019-02-11T14:30Z"), at("2019-02-15T21:00Z"))


@pytest.mark.parametrize("symbol", ["SPY", "AAPL", "BAC", "UGA", "VIX"])
def test_recorded_minutes_are_refused_as_opens_and_lie_on_the_grid_as_closes(symbol: str) -> None:
    body, rows = as_sent(symbol)
    request = replace(WEEK, symbol=symbol)
    with pytest.raises(PayloadError, match="set it to close"):
        parse_series([body], request)
    found = parse_series([body], request, stamp=Stamp.CLOSE)
    assert (len(found.columns), found.dropped) == (len(rows), {})
    expected = [
        int(datetime.fromisoformat(r["datetime"]).replace(tzinfo=NEW_YORK).astimezone(UTC).timestamp()) - 60 for r in reversed(rows)
    ]
    assert found.columns.opened_at.tolist() == expected
    assert found.columns.close.tolist() == [float(r["close"]) for r in reversed(rows)]
    grid = trading_calendar("XNYS").expected_opens(Interval.M1, date(2019, 2, 11), date(2019, 2, 15)).opened_at
    assert set(expected) <= set(grid.tolist())
