"""What Yahoo's chart endpoint is asked and what its answers mean: one test a fact of the wire."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_pipeline.domain.candles import DERIVED_INTERVALS, Interval
from market_data_pipeline.domain.errors import (
    EntitlementError,
    OutOfReachError,
    PayloadError,
    ProviderError,
    RateLimitedError,
    TransientError,
    UnknownSymbolError,
)
from market_data_pipeline.domain.ports import BarsRequest, CorporateAction
from market_data_pipeline.domain.quality import BarFlag
from market_data_pipeline.providers.http import HttpClient, HttpPolicy
from market_data_pipeline.providers.yahoo import ParsedChart, YahooProvider, parse_chart
from market_data_pipeline_tests.providers.loopback import Loopback, Reply

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NOW = datetime(2024, 7, 2, 21, tzinfo=UTC)
OPEN = int(datetime(2024, 7, 1, 13, 30, tzinfo=UTC).timestamp())
CLOSE = OPEN + 390 * 60
MINUTES = BarsRequest("MSFT", Interval.M1, OPEN, CLOSE)
DAYS = BarsRequest("MSFT", Interval.D1, OPEN, OPEN + 4 * 86_400)
JSON = {"Content-Type": "application/json;charset=utf-8"}

# Texts as Yahoo sends them (PROVIDERS.md §1).
NOT_FOUND = b'{"chart":{"result":null,"error":{"code":"Not Found","description":"No data found, symbol may be delisted"}}}'
TOO_OLD = (
    b'{"chart":{"result":null,"error":{"code":"Unprocessable Entity","description":"1m data not available for startTime=1 and '
    b'endTime=2. The requested range must be within the last 30 days."}}}'
)


def at(text: str) -> int:
    """Epoch seconds of an ISO instant."""
    return int(datetime.fromisoformat(text).timestamp())


def chart(
    request: BarsRequest = MINUTES,
    stamps: Sequence[Any] | None = None,
    *,
    quote: Mapping[str, Any] | None = None,
    meta: Mapping[str, Any] | None = None,
    events: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A chart object, valid except for what is given. Bar ``i`` is 10+i, 12+i, 9+i, 11+i, volume 100+i."""
    stamps = [request.start + 60 * i for i in range(3)] if stamps is None else stamps
    base = {"open": 10.0, "high": 12.0, "low": 9.0, "close": 11.0, "volume": 100}
    columns = {name: [first + i for i in range(len(stamps))] for name, first in base.items()}
    result: dict[str, Any] = {
        "meta": {
            "currency": "USD",
            "symbol": request.symbol,
            "instrumentType": "EQUITY",
            "exchangeTimezoneName": "America/New_York",
            "dataGranularity": request.interval.value,
            **(meta or {}),
        },
        "timestamp": list(stamps),
        "indicators": {"quote": [{**columns, **(quote or {})}]},
    }
    if events is not None:
        result["events"] = events
    return {"chart": {"result": [result], "error": None}}


def encoded(value: object) -> bytes:
    return json.dumps(value).encode()


def parsed(request: BarsRequest = MINUTES, stamps: Sequence[Any] | None = None, **changes: Any) -> ParsedChart:  # noqa: ANN401
    return parse_chart(encoded(chart(request, stamps, **changes)), request)


def provider_at(url: str, http: HttpClient) -> YahooProvider:
    return YahooProvider(http, base_url=url, user_agent="test-agent")


def client() -> HttpClient:
    return HttpClient(HttpPolicy(timeout_seconds=5.0, attempts=3), sleep=lambda _: None)


def failure_of(reply: Reply, *more: Reply, request: BarsRequest = MINUTES) -> tuple[ProviderError, int]:
    """The error that fetching ends in when the server answers so, and how many requests it got."""
    with Loopback(reply, *more) as server, client() as http:
        with pytest.raises(ProviderError) as raised:
            provider_at(server.url, http).fetch_bars(request, now=NOW)
        return raised.value, len(server.requests)


# --- what is asked -----------------------------------------------------------------------------------------------------


def test_reach_and_span_are_those_yahoo_enforces() -> None:
    with client() as http:
        yahoo = provider_at("http://127.0.0.1:1", http)
        shown = {c.interval: (c.reach_seconds, c.span_seconds) for c in yahoo.capabilities if c.interval}
    day = 86_400
    assert shown == {Interval.M1: (30 * day, 8 * day), Interval.H1: (730 * day, None), Interval.D1: (None, None)}


@pytest.mark.parametrize("interval", DERIVED_INTERVALS)
def test_the_intervals_we_derive_are_not_served(interval: Interval) -> None:
    with Loopback(Reply()) as server, client() as http:
        yahoo = provider_at(server.url, http)
        assert interval not in {capability.interval for capability in yahoo.capabilities}
        with pytest.raises(OutOfReachError):
            yahoo.fetch_bars(replace(MINUTES, interval=interval), now=NOW)
        assert server.requests == []


@pytest.mark.parametrize(
    "request_",
    [
        replace(MINUTES, start=int((NOW - timedelta(days=30)).timestamp()) - 1, end=int((NOW - timedelta(days=29)).timestamp())),
        replace(MINUTES, start=OPEN, end=OPEN + 8 * 86_400 + 1),
        replace(MINUTES, interval=Interval.H1, start=int((NOW - timedelta(days=730)).timestamp()) - 1),
        replace(MINUTES, start=CLOSE, end=OPEN),
    ],
    ids=["1m too old", "1m too long", "1h too old", "end before start"],
)
def test_a_request_beyond_reach_is_never_sent(request_: BarsRequest) -> None:
    with Loopback(Reply()) as server, client() as http:
        with pytest.raises(OutOfReachError) as raised:
            provider_at(server.url, http).fetch_bars(request_, now=NOW)
        assert server.requests == []
    fetch = raised.value.fetch
    assert fetch is not None
    assert (fetch.attempts, fetch.outcome, fetch.status) == (0, "out_of_reach", None)


def test_the_edge_of_the_reach_is_still_sent() -> None:
    start = int((NOW - timedelta(days=30)).timestamp())
    request = replace(MINUTES, start=start, end=start + 8 * 86_400)
    with Loopback(Reply(body=encoded(chart(request)), headers=JSON)) as server, client() as http:
        assert len(provider_at(server.url, http).fetch_bars(request, now=NOW).columns) == 3


def test_the_window_the_interval_and_regular_hours_are_asked_for() -> None:
    with Loopback(Reply(body=encoded(chart()), headers=JSON)) as server, client() as http:
        provider_at(server.url + "/", http).fetch_bars(MINUTES, now=NOW)
        received = server.requests[0]
    assert received.path == "/v8/finance/chart/MSFT"
    assert received.headers["user-agent"] == "test-agent"
    assert received.query == {
        "period1": str(OPEN),
        "period2": str(CLOSE),
        "interval": "1m",
        "includePrePost": "false",
        "events": "div,splits,capitalGains",
    }


def test_a_daily_request_begins_early_enough_for_any_exchange() -> None:
    """Sydney opens at 23:00 UTC the evening before: a window that begins at UTC midnight would miss the session."""
    midnight = at("2024-01-09T00:00Z")
    request = BarsRequest("BHP.AX", Interval.D1, midnight, midnight + 86_400)
    body = encoded(chart(request, [at("2024-01-08T23:00Z")], meta={"exchangeTimezoneName": "Australia/Sydney"}))
    with Loopback(Reply(body=body, headers=JSON)) as server, client() as http:
        answer = provider_at(server.url, http).fetch_bars(request, now=NOW)
        assert int(server.requests[0].query["period1"]) < at("2024-01-08T23:00Z")
    assert answer.columns.opened_at.tolist() == [midnight]


@pytest.mark.parametrize("symbol", ["^GSPC", "EURUSD=X", "BRK-B", "BTC-USD", "0700.HK", "A/B", "GC=F"])
def test_a_symbol_is_quoted_into_the_path_and_arrives_whole(symbol: str) -> None:
    request = replace(MINUTES, symbol=symbol)
    with Loopback(Reply(body=encoded(chart(request)), headers=JSON)) as server, client() as http:
        provider_at(server.url, http).fetch_bars(request, now=NOW)
        assert server.requests[0].path == f"/v8/finance/chart/{symbol}"
        assert server.requests[0].target.split("?")[0].count("/") == 4


# --- provenance --------------------------------------------------------------------------------------------------------


def test_an_answer_carries_its_provenance() -> None:
    body = encoded(chart(stamps=[OPEN, OPEN + 60, OPEN + 84]))
    reply = Reply(body=gzip.compress(body), headers={**JSON, "Content-Encoding": "gzip"})
    with Loopback(reply) as server, client() as http:
        answer = provider_at(server.url, http).fetch_bars(MINUTES, now=NOW)
    fetch = answer.fetch
    assert fetch.request == (
        f"GET {server.url}/v8/finance/chart/MSFT?period1={OPEN}&period2={CLOSE}"
        "&interval=1m&includePrePost=false&events=div,splits,capitalGains"
    )
    assert (fetch.provider, fetch.symbol, fetch.interval, fetch.started_at) == ("yahoo", "MSFT", Interval.M1, NOW)
    assert (fetch.outcome, fetch.status, fetch.rows, fetch.attempts, fetch.error) == ("ok", 200, 2, 1, None)
    assert (fetch.payload_bytes, fetch.payload_sha256) == (len(body), hashlib.sha256(body).hexdigest())
    assert fetch.dropped == {"unaligned": 1}
    assert fetch.latency_seconds > 0
    assert answer.float32_prices
    assert answer.currency == "USD"
    assert answer.request is MINUTES


def test_a_success_after_failures_says_so() -> None:
    replies = Reply(status=503), Reply(reset=True), Reply(body=encoded(chart()), headers=JSON)
    with Loopback(*replies) as server, client() as http:
        fetch = provider_at(server.url, http).fetch_bars(MINUTES, now=NOW).fetch
    assert (fetch.outcome, fetch.attempts) == ("ok", 3)
    assert fetch.error is not None
    assert fetch.error.startswith("earlier attempts: yahoo: HTTP 503; yahoo: 127.0.0.1")


def test_a_failure_carries_the_provenance_of_its_request() -> None:
    error, _ = failure_of(Reply(status=404, body=NOT_FOUND, headers=JSON))
    fetch = error.fetch
    assert fetch is not None
    assert (fetch.outcome, fetch.status, fetch.attempts, fetch.rows) == ("unknown_symbol", 404, 1, 0)
    assert (fetch.payload_bytes, fetch.payload_sha256) == (len(NOT_FOUND), hashlib.sha256(NOT_FOUND).hexdigest())
    assert fetch.error is not None
    assert "symbol may be delisted" in fetch.error


# --- what kind of answer -----------------------------------------------------------------------------------------------


def chart_error(code: str, description: str) -> bytes:
    return encoded({"chart": {"result": None, "error": {"code": code, "description": description}}})


HTML = b"<!DOCTYPE html><html><head><title>Yahoo</title></head><body>Will be right back...</body></html>"
CONSENT = b"\n  <html><form action='https://consent.yahoo.com/v2/collectConsent'></form></html>"


@pytest.mark.parametrize(
    ("reply", "expected", "requests"),
    [
        (Reply(status=404, body=NOT_FOUND, headers=JSON), UnknownSymbolError, 1),
        (Reply(body=NOT_FOUND, headers=JSON), UnknownSymbolError, 1),
        (Reply(status=422, body=TOO_OLD, headers=JSON), OutOfReachError, 1),
        (Reply(body=TOO_OLD, headers=JSON), OutOfReachError, 1),
        (Reply(status=429, body=b"Too Many Requests\r\n"), RateLimitedError, 1),
        (Reply(status=429, body=b"Edge: Too Many Requests"), RateLimitedError, 1),
        (Reply(body=b"Too Many Requests\r\n"), RateLimitedError, 1),
        (Reply(body=b"Edge: Too Many Requests"), RateLimitedError, 1),
        (Reply(status=401, body=b'{"finance":{"error":{"code":"Unauthorized"}}}'), EntitlementError, 1),
        (Reply(body=chart_error("Unauthorized", "Invalid Crumb")), EntitlementError, 1),
        (Reply(body=HTML, headers={"Content-Type": "text/html"}), TransientError, 3),
        (Reply(body=HTML, headers=JSON), TransientError, 3),
        (Reply(status=404, body=HTML, headers={"Content-Type": "text/html"}), TransientError, 3),
        (Reply(body=CONSENT), TransientError, 3),
        (Reply(status=302, headers={"Location": "https://consent.yahoo.com/"}), TransientError, 3),
        (Reply(body=b"", headers=JSON), TransientError, 3),
        (Reply(body=b" \r\n", headers=JSON), TransientError, 3),
        (Reply(body=encoded(chart())[:-100], headers=JSON), TransientError, 3),
        (Reply(body=encoded(chart()), headers=JSON, cut_after=200), TransientError, 3),
        (Reply(status=502, body=HTML), TransientError, 3),
        (Reply(body=chart_error("Internal Server Error", "boom")), TransientError, 3),
        (Reply(body=chart_error("Never Seen", "what")), PayloadError, 1),
        (Reply(body=b"surprise"), PayloadError, 1),
        (Reply(body=b"{]}"), PayloadError, 1),
        (Reply(status=418, body=b"{}"), PayloadError, 1),
        (Reply(status=204), TransientError, 3),
    ],
)
def test_an_answer_without_bars_is_classed_by_what_it_says(reply: Reply, expected: type[ProviderError], requests: int) -> None:
    error, sent = failure_of(reply)
    assert type(error) is expected
    assert sent == requests
    assert error.fetch is not None
    assert (error.fetch.outcome, error.fetch.attempts) == (expected.kind, requests)


def test_an_outage_page_is_retried_and_the_bars_after_it_count() -> None:
    with Loopback(Reply(body=HTML), Reply(body=encoded(chart()), headers=JSON)) as server, client() as http:
        assert len(provider_at(server.url, http).fetch_bars(MINUTES, now=NOW).columns) == 3


def test_nothing_in_the_window_is_an_empty_answer() -> None:
    body = chart(meta={})
    body["chart"]["result"][0].pop("timestamp")
    body["chart"]["result"][0]["indicators"] = {"quote": [{}]}
    with Loopback(Reply(body=encoded(body), headers=JSON)) as server, client() as http:
        answer = provider_at(server.url, http).fetch_bars(MINUTES, now=NOW)
    assert (len(answer.columns), len(answer.null_opened_at), answer.fetch.outcome, answer.fetch.rows) == (0, 0, "ok", 0)


@pytest.mark.parametrize("status", [200, 400])
def test_a_window_before_the_listing_is_an_empty_answer(status: int) -> None:
    """Yahoo words it as a bad request: wealthfolio pull request 602."""
    body = chart_error("Bad Request", "Data doesn't exist for startDate = 1, endDate = 2")
    with Loopback(Reply(status=status, body=body, headers=JSON)) as server, client() as http:
        answer = provider_at(server.url, http).fetch_bars(MINUTES, now=NOW)
    assert (len(answer.columns), answer.fetch.outcome, answer.fetch.status) == (0, "ok", status)


def test_a_registered_name_that_nothing_trades_under_is_an_unknown_symbol() -> None:
    body = chart(meta={"currency": None, "instrumentType": "MUTUALFUND"})
    body["chart"]["result"][0].pop("timestamp")
    body["chart"]["result"][0]["indicators"] = {"quote": [{}]}
    error, sent = failure_of(Reply(body=encoded(body), headers=JSON))
    assert isinstance(error, UnknownSymbolError)
    assert sent == 1


# --- what the bars say -------------------------------------------------------------------------------------------------


def test_bars_come_out_as_they_were_sent() -> None:
    answer = parsed()
    assert answer.columns.opened_at.tolist() == [OPEN, OPEN + 60, OPEN + 120]
    assert answer.columns.open.tolist() == [10.0, 11.0, 12.0]
    assert answer.columns.high.tolist() == [12.0, 13.0, 14.0]
    assert answer.columns.low.tolist() == [9.0, 10.0, 11.0]
    assert answer.columns.close.tolist() == [11.0, 12.0, 13.0]
    assert answer.columns.volume.tolist() == [100.0, 101.0, 102.0]
    assert np.isnan(answer.columns.vwap).all()
    assert np.isnan(answer.columns.trades).all()
    assert answer.dropped == {}


def test_parsed_columns_can_be_written_to() -> None:
    for column in (parsed().columns.opened_at, parsed().columns.open):
        column[0] = 1


def test_fractional_volume_stays_fractional() -> None:
    assert parsed(quote={"volume": [9099.618093, 0, 1e-5]}).columns.volume.tolist() == [9099.618093, 0.0, 1e-5]


@pytest.mark.parametrize(
    ("interval", "granularity", "fits"),
    [
        (Interval.H1, "1h", True),
        (Interval.H1, "60m", True),
        (Interval.H1, "1d", False),
        (Interval.M1, "5m", False),
        (Interval.M1, "2m", False),
        (Interval.D1, "1wk", False),
        (Interval.M1, None, False),
    ],
)
def test_the_granularity_must_be_the_interval_asked_for(interval: Interval, granularity: str | None, fits: bool) -> None:  # noqa: FBT001
    request = replace(MINUTES, interval=interval)
    body = encoded(chart(request, meta={"dataGranularity": granularity}))
    if fits:
        assert len(parse_chart(body, request).columns) > 0
    else:
        with pytest.raises(PayloadError, match=f"asked for {interval}"):
            parse_chart(body, request)


@pytest.mark.parametrize("echoed", ["AAPL", None, 5])
def test_the_symbol_must_be_the_one_asked_for(echoed: object) -> None:
    with pytest.raises(PayloadError, match="asked for MSFT"):
        parsed(meta={"symbol": echoed})


def test_a_live_tick_after_the_window_is_dropped_and_counted() -> None:
    answer = parsed(stamps=[CLOSE - 60, CLOSE, CLOSE + 5])
    assert answer.columns.opened_at.tolist() == [CLOSE - 60]
    assert answer.dropped == {"outside_window": 2}


def test_rows_before_the_window_are_dropped_and_counted() -> None:
    assert parsed(stamps=[OPEN - 60, OPEN]).dropped == {"outside_window": 1}


def test_a_live_tick_between_the_minutes_is_dropped_and_its_null_slot_is_kept_as_null() -> None:
    """Recorded form: the running slot all null, then an element stamped with the last trade."""
    slot = OPEN + 120
    nulls = {name: [1.0, 1.0, None, 1.0] for name in ("open", "high", "low", "close", "volume")}
    answer = parsed(stamps=[OPEN, OPEN + 60, slot, slot + 24], quote=nulls)
    assert answer.columns.opened_at.tolist() == [OPEN, OPEN + 60]
    assert answer.null_opened_at.tolist() == [slot]
    assert answer.dropped == {"unaligned": 1}


def test_the_flat_bar_in_progress_is_kept_for_the_clock_to_judge() -> None:
    flat = {name: [10.0, 11.0] for name in ("open", "high", "low", "close")}
    answer = parsed(stamps=[OPEN, OPEN + 60], quote={**flat, "volume": [5, 0]})
    assert answer.columns.opened_at.tolist() == [OPEN, OPEN + 60]


def test_hourly_bars_are_anchored_at_the_open_and_not_the_clock_hour() -> None:
    request = replace(MINUTES, interval=Interval.H1)
    stamps = [OPEN + 3600 * i for i in range(7)]
    assert parsed(request, stamps).columns.opened_at.tolist() == stamps


def test_a_bar_of_nulls_is_no_information_and_not_a_row() -> None:
    quote = {name: [1.0, None, 1.0] for name in ("open", "high", "low", "close", "volume")}
    answer = parsed(quote=quote)
    assert answer.columns.opened_at.tolist() == [OPEN, OPEN + 120]
    assert answer.null_opened_at.tolist() == [OPEN + 60]
    assert answer.dropped == {}


def test_null_prices_with_volume_zero_are_no_information_either() -> None:
    quote: dict[str, list[float | None]] = {name: [1.0, None, 1.0] for name in ("open", "high", "low", "close")}
    assert parsed(quote={**quote, "volume": [1, 0, 1]}).null_opened_at.tolist() == [OPEN + 60]


@pytest.mark.parametrize("name", ["open", "high", "low", "close", "volume"])
@pytest.mark.parametrize("value", [None, "", " 11", "1_0", "0x1", "inf", "\u0661", "1e9999", True, False, [], {}, "NaN"])
def test_a_value_that_is_no_number_stays_in_its_row_as_nan_and_is_never_zero(name: str, value: object) -> None:
    good: list[Any] = [10.0, 10.0, 10.0]
    quote = {column: list(good) for column in ("open", "high", "low", "close", "volume")}
    quote[name][1] = value
    answer = parsed(quote=quote)
    assert answer.columns.opened_at.tolist() == [OPEN, OPEN + 60, OPEN + 120]
    assert math.isnan(getattr(answer.columns, name)[1])
    assert answer.columns.obeys_ohlc_laws().tolist() == [True, False, True]


def test_numbers_as_text_are_read_and_their_rows_say_so() -> None:
    """MARKET_CASES.md §3, "numbers": better a repaired bar with a flag than a lost one."""
    good: list[Any] = [10.0, 10.0, 10.0]
    columns: dict[str, list[Any]] = {name: list(good) for name in ("open", "high", "low", "close", "volume")}
    columns["close"][1], columns["volume"][2] = "10.0", "1e1"
    answer = parsed(quote=columns)
    assert answer.columns.close.tolist() == answer.columns.volume.tolist() == good
    assert answer.flags.tolist() == [0, BarFlag.STRING_NUMBERS, BarFlag.STRING_NUMBERS]


def test_an_answer_of_text_alone_is_the_same_bars_as_one_of_numbers() -> None:
    plain = chart()["chart"]["result"][0]["indicators"]["quote"][0]
    as_text = {name: [str(value) for value in column] for name, column in plain.items()}
    told, read = parsed(), parsed(quote=as_text)
    assert all(getattr(told.columns, name).tolist() == getattr(read.columns, name).tolist() for name in plain)
    assert (set(told.flags.tolist()), set(read.flags.tolist())) == ({0}, {BarFlag.STRING_NUMBERS})


@pytest.mark.parametrize("literal", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"1" * 400])
def test_a_number_that_json_does_not_know_costs_its_row_and_not_the_answer(literal: bytes) -> None:
    body = encoded(chart()).replace(b"12.0, 13.0", b"12.0, " + literal, 1)
    columns = parse_chart(body, MINUTES).columns
    assert columns.obeys_ohlc_laws().tolist() == [True, False, True]
    assert not np.isfinite(columns.high[1])


def test_a_volume_without_prices_is_a_broken_row_and_not_a_null_bar() -> None:
    quote = {name: [None, 1.0, 1.0] for name in ("open", "high", "low", "close")}
    answer = parsed(quote={**quote, "volume": [500, 1, 1]})
    assert answer.null_opened_at.tolist() == []
    assert answer.columns.obeys_ohlc_laws().tolist() == [False, True, True]


def test_nan_written_out_four_times_is_a_broken_row_and_not_a_null_bar() -> None:
    body = encoded(chart(stamps=[OPEN], quote={name: [math.nan] for name in ("open", "high", "low", "close", "volume")}))
    answer = parse_chart(body, MINUTES)
    assert (len(answer.columns), len(answer.null_opened_at)) == (1, 0)


@pytest.mark.parametrize("name", ["open", "high", "low", "close", "volume"])
@pytest.mark.parametrize("column", [[1.0, 1.0], [1.0] * 4, []])
def test_arrays_of_unequal_length_make_the_whole_answer_worthless(name: str, column: object) -> None:
    with pytest.raises(PayloadError, match=f"ragged answer: 3 stamps .* {name}"):
        parsed(quote={name: column})


@pytest.mark.parametrize("column", [None, 5, {}, "1,2,3"])
def test_a_column_that_is_no_list_makes_the_whole_answer_worthless(column: object) -> None:
    with pytest.raises(PayloadError, match="no column high"):
        parsed(quote={"high": column})


def test_bars_without_stamps_are_ragged_too() -> None:
    body = chart()
    body["chart"]["result"][0].pop("timestamp")
    with pytest.raises(PayloadError, match="ragged"):
        parse_chart(encoded(body), MINUTES)


@pytest.mark.parametrize("stamp", [None, "1719840600", 1719840600.5, 1e300, 1 << 70, {}])
def test_a_stamp_that_is_no_whole_number_makes_the_whole_answer_worthless(stamp: object) -> None:
    with pytest.raises(PayloadError, match="timestamp"):
        parsed(stamps=[OPEN, stamp])


def test_stamps_far_from_any_date_are_outside_the_window() -> None:
    for request in (MINUTES, DAYS):
        assert parsed(request, [-(1 << 62), request.start, (1 << 62)]).dropped == {"outside_window": 2}


def test_rows_in_disorder_are_sorted_with_their_values() -> None:
    answer = parsed(stamps=[OPEN + 120, OPEN, OPEN + 60])
    assert answer.columns.opened_at.tolist() == [OPEN, OPEN + 60, OPEN + 120]
    assert answer.columns.open.tolist() == [11.0, 12.0, 10.0]


def test_identical_duplicates_collapse_and_of_conflicting_ones_the_first_stays() -> None:
    same = {name: [5.0, 5.0, 7.0, 8.0] for name in ("open", "high", "low", "close", "volume")}
    answer = parsed(stamps=[OPEN, OPEN, OPEN + 60, OPEN + 60], quote=same)
    assert answer.columns.close.tolist() == [5.0, 7.0]
    assert answer.dropped == {"duplicate": 1, "conflicting_duplicate": 1}
    assert answer.flags.tolist() == [0, BarFlag.DUPLICATE_RESOLVED]


def test_the_flag_of_a_row_goes_where_its_row_goes() -> None:
    columns = {name: [5.0, 6.0, "7.0"] for name in ("open", "high", "low", "close", "volume")}
    answer = parsed(stamps=[OPEN + 120, OPEN + 60, OPEN], quote=columns)
    assert answer.flags.tolist() == [BarFlag.STRING_NUMBERS, 0, 0]


def test_a_null_gives_way_to_numbers_for_the_same_stamp() -> None:
    quote = {name: [None, 7.0, None] for name in ("open", "high", "low", "close", "volume")}
    answer = parsed(stamps=[OPEN, OPEN, OPEN], quote=quote)
    assert answer.columns.close.tolist() == [7.0]
    assert answer.null_opened_at.tolist() == []
    assert answer.dropped == {"duplicate": 2}


@pytest.mark.parametrize(
    ("stamp", "newest"), [(OPEN + 95, OPEN + 95), (None, None), ("", None), (0, None), (-5, None), (1 << 70, None), ([], None)]
)
def test_the_newest_trade_that_yahoo_knows_of_is_told(stamp: object, newest: int | None) -> None:
    assert parsed(meta={"regularMarketTime": stamp}).newest == newest


def test_an_answer_tells_its_newest_trade_and_what_was_repaired_if_anything_was() -> None:
    plain = chart(meta={"regularMarketTime": OPEN + 200})
    repaired = chart(quote={"volume": ["1", 2, 3]})
    with Loopback(Reply(body=encoded(plain)), Reply(body=encoded(repaired))) as server, client() as http:
        yahoo = provider_at(server.url, http)
        first, second = (yahoo.fetch_bars(MINUTES, now=NOW) for _ in range(2))
    assert (first.newest, first.flags) == (OPEN + 200, None)
    assert second.flags is not None
    assert second.flags.tolist() == [BarFlag.STRING_NUMBERS, 0, 0]


@pytest.mark.parametrize("currency", ["GBp", "ZAc", "ILA", None])
def test_the_currency_is_kept_as_sent(currency: str | None) -> None:
    assert parsed(meta={"currency": currency}).currency == currency


def test_fields_we_do_not_know_are_no_reason_to_refuse() -> None:
    assert len(parsed(meta={"brandNew": {"a": 1}}, quote={"turnover": [1]}).columns) == 3


def test_a_byte_order_mark_is_ignored() -> None:
    assert len(parse_chart(b"\xef\xbb\xbf" + encoded(chart()), MINUTES).columns) == 3


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"7",
        b"{}",
        b'{"chart":null}',
        b'{"chart":{}}',
        b'{"chart":{"result":null,"error":null}}',
        b'{"chart":{"result":[],"error":null}}',
        b'{"chart":{"result":[1],"error":null}}',
        b'{"chart":{"result":[{},{}],"error":null}}',
        b'{"chart":{"result":[{"meta":{}}],"error":null}}',
        b'{"chart":{"result":[{"meta":{},"indicators":{"quote":[]}}],"error":null}}',
        b'{"chart":{"result":null,"error":"text"}}',
        b"[" * 100_000,
        b'{"chart":' * 50_000,
        b"\xff\xfe{\x00}\x00",
    ],
)
def test_a_body_of_another_shape_is_a_payload_error(body: bytes) -> None:
    with pytest.raises(PayloadError):
        parse_chart(body, MINUTES)


# --- days --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "stamp", "session"),
    [
        ("America/New_York", "2024-07-01T13:30Z", "2024-07-01"),
        ("America/New_York", "2024-01-02T14:30Z", "2024-01-02"),
        ("Australia/Sydney", "2024-01-08T23:00Z", "2024-01-09"),
        ("Asia/Tokyo", "2024-01-09T00:00Z", "2024-01-09"),
        ("Europe/Berlin", "2024-07-01T07:00Z", "2024-07-01"),
        ("Europe/London", "2024-06-30T23:00Z", "2024-07-01"),
        ("UTC", "2024-07-01T00:00Z", "2024-07-01"),
    ],
)
def test_a_day_is_named_by_the_date_at_the_exchange(zone: str, stamp: str, session: str) -> None:
    request = replace(DAYS, start=at(stamp), end=at(stamp) + 3600)
    answer = parsed(request, [at(stamp)], meta={"exchangeTimezoneName": zone})
    assert answer.columns.opened_at.tolist() == [at(session + "T00:00Z")]


def test_of_two_rows_for_the_running_day_the_aligned_one_stays() -> None:
    yesterday, today = OPEN, OPEN + 86_400
    answer = parsed(DAYS, [yesterday, today, today + 22_113])
    assert answer.columns.opened_at.tolist() == [at("2024-07-01T00:00Z"), at("2024-07-02T00:00Z")]
    assert answer.columns.open.tolist() == [10.0, 11.0]
    assert answer.dropped == {"live_duplicate": 1}
    assert answer.flags.tolist() == [0, BarFlag.LIVE_ROW_MERGED]


def test_a_running_day_stamped_with_the_last_trade_is_kept() -> None:
    """Also where that stamp is past the end of the window: its session is in it."""
    request = replace(DAYS, end=OPEN + 390 * 60)
    assert parsed(request, [request.end + 1]).columns.opened_at.tolist() == [at("2024-07-01T00:00Z")]


def test_days_around_the_window_are_dropped_and_counted() -> None:
    request = replace(DAYS, start=OPEN, end=OPEN + 390 * 60)
    answer = parsed(request, [OPEN - 86_400, OPEN, OPEN + 86_400])
    assert answer.columns.opened_at.tolist() == [at("2024-07-01T00:00Z")]
    assert answer.dropped == {"outside_window": 2}


def test_null_days_are_named_by_session_too() -> None:
    quote = {name: [None] for name in ("open", "high", "low", "close", "volume")}
    assert parsed(DAYS, [OPEN], quote=quote).null_opened_at.tolist() == [at("2024-07-01T00:00Z")]


@pytest.mark.parametrize("zone", [None, "", "Mars/Olympus", "../../etc/passwd", "America", 5])
def test_days_in_an_unknown_time_zone_are_a_payload_error(zone: object) -> None:
    with pytest.raises(PayloadError, match="time zone"):
        parsed(DAYS, [OPEN], meta={"exchangeTimezoneName": zone})


# --- actions -----------------------------------------------------------------------------------------------------------


def test_splits_dividends_and_capital_gains_are_read_with_their_dates_at_the_exchange() -> None:
    events = {
        "dividends": {"1604673000": {"amount": 0.205, "date": 1604673000}},
        "splits": {"1598880600": {"date": 1598880600, "numerator": 4, "denominator": 1, "splitRatio": "4:1"}},
        "capitalGains": {"1604673000": {"amount": 1.5, "date": 1604673000}},
        "earnings": {"1": {}},
    }
    assert parsed(DAYS, [OPEN], events=events).actions == (
        CorporateAction("split", date(2020, 8, 31), 4.0),
        CorporateAction("capital_gain", date(2020, 11, 6), 1.5, "USD"),
        CorporateAction("dividend", date(2020, 11, 6), 0.205, "USD"),
    )


def test_a_reverse_split_is_a_fraction() -> None:
    events = {"splits": {"1": {"date": OPEN, "numerator": 1, "denominator": 8}}}
    assert parsed(events=events).actions == (CorporateAction("split", date(2024, 7, 1), 0.125),)


def test_a_dividend_in_a_currency_of_its_own_keeps_it() -> None:
    events = {"dividends": {"1": {"amount": 2.0, "date": OPEN, "currency": "EUR"}}}
    assert parsed(events=events).actions[0].currency == "EUR"


@pytest.mark.parametrize(
    "split",
    [
        {"date": OPEN, "numerator": 4, "denominator": 0},
        {"date": OPEN, "numerator": 0, "denominator": 1},
        {"date": OPEN, "numerator": "4", "denominator": "1"},
        {"date": None, "numerator": 4, "denominator": 1},
        {"date": 1e30, "numerator": 4, "denominator": 1},
        {"numerator": 4},
        None,
        [],
    ],
)
def test_an_event_that_cannot_be_read_is_counted_and_costs_no_bar(split: object) -> None:
    answer = parsed(events={"splits": {"1": split}})
    assert (answer.actions, answer.dropped, len(answer.columns)) == ((), {"malformed_action": 1}, 3)


def test_one_action_of_a_kind_a_day() -> None:
    events = {"dividends": {str(i): {"amount": amount, "date": OPEN + i} for i, amount in enumerate((1.0, 1.0, 2.0))}}
    answer = parsed(events=events)
    assert [action.value for action in answer.actions] == [1.0]
    assert answer.dropped == {"conflicting_action": 1}


# --- laws --------------------------------------------------------------------------------------------------------------

prices = st.floats(width=32, allow_nan=False, allow_infinity=False)
volumes = st.one_of(st.integers(0, 1 << 53), st.floats(0, 1e15))
bars = st.tuples(prices, prices, prices, prices, volumes)


@settings(max_examples=150, deadline=None)
@given(rows=st.dictionaries(st.integers(0, 389), st.one_of(st.none(), bars), max_size=60), gap=st.sampled_from([60, 3600]))
def test_every_bar_sent_comes_back_exactly_and_every_null_as_a_null(rows: dict[int, tuple[float, ...] | None], gap: int) -> None:
    interval = Interval.of_seconds(gap)
    request = BarsRequest("X", interval, OPEN, OPEN + 390 * gap)
    stamps = [OPEN + gap * place for place in sorted(rows)]
    sent = [rows[place] for place in sorted(rows)]
    names = ("open", "high", "low", "close", "volume")
    quote = {name: [None if row is None else row[i] for row in sent] for i, name in enumerate(names)}
    answer = parsed(request, stamps, quote=quote)

    present = [(stamp, row) for stamp, row in zip(stamps, sent, strict=True) if row is not None]
    assert answer.columns.opened_at.tolist() == [stamp for stamp, _ in present]
    for i, name in enumerate(names):
        assert getattr(answer.columns, name).tolist() == [float(row[i]) for _, row in present]
    assert answer.null_opened_at.tolist() == [stamp for stamp, row in zip(stamps, sent, strict=True) if row is None]
    assert answer.dropped == {}


value = st.one_of(st.none(), st.floats(1, 100), st.integers(0, 5), st.just("1.5"))


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(-120, 600), value, value, value, value, value), max_size=40),
    daily=st.booleans(),
)
def test_every_row_received_is_a_bar_a_null_or_counted(rows: list[tuple[Any, ...]], daily: bool) -> None:  # noqa: FBT001
    request = DAYS if daily else replace(MINUTES, end=OPEN + 480)
    scale = 3600 if daily else 1
    stamps = [OPEN + row[0] * scale for row in rows]
    names = ("open", "high", "low", "close", "volume")
    answer = parsed(request, stamps, quote={name: [row[i + 1] for row in rows] for i, name in enumerate(names)})
    assert answer.received == len(rows) == len(answer.columns) + len(answer.null_opened_at) + sum(answer.dropped.values())
    for column in (answer.columns.opened_at, answer.null_opened_at):
        assert (np.diff(column) > 0).all()
    assert not np.intersect1d(answer.columns.opened_at, answer.null_opened_at).size


@settings(max_examples=200, deadline=None)
@given(noise=st.binary(max_size=200), place=st.integers(0, 600))
def test_no_body_ends_in_anything_but_columns_or_our_error(noise: bytes, place: int) -> None:
    body = encoded(chart())
    try:
        answer = parse_chart(body[:place] + noise + body[place + len(noise) :], MINUTES)
    except ProviderError:
        return
    assert answer.received >= len(answer.columns)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["date", "amount", "quote", "open", "error"]), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(replacement=json_values, path=st.sampled_from(["meta", "timestamp", "indicators", "events", "quote", "symbol", "open"]))
def test_any_json_in_any_place_is_columns_or_our_error(replacement: object, path: str) -> None:
    body = chart(events={})
    result = body["chart"]["result"][0]
    places = {"quote": result["indicators"], "symbol": result["meta"], "open": result["indicators"]["quote"][0]}
    places.get(path, result)[path] = replacement
    try:
        answer = parse_chart(encoded(body), MINUTES)
    except ProviderError:
        return
    assert answer.received >= len(answer.columns)
