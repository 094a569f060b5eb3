"""What Alpaca's bars and quotes are asked and what their answers mean: one test a fact of the wire."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.capabilities import Access, Feed, Priority
from market_data_pipeline.domain.errors import EntitlementError, OutOfReachError, PayloadError, UnknownSymbolError
from market_data_pipeline.domain.ports import BarsAnswer, BarsRequest
from market_data_pipeline.providers.alpaca import AlpacaProvider, parse_page, parse_pages, parse_quotes
from market_data_pipeline_tests.providers.loopback import Loopback, Reply
from market_data_pipeline_tests.providers.wire_cases import (
    DAYS,
    JSON,
    MINUTES,
    NOW,
    OPEN,
    at,
    client,
    encoded,
    failure_of,
    ok,
)

if TYPE_CHECKING:
    from market_data_pipeline.providers.http import HttpClient

LIVE = Priority()


def row(opened_at: int, price: float = 10.0, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    stamp = datetime.fromtimestamp(opened_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"t": stamp, "o": price, "h": price + 2, "l": price - 1, "c": price + 1, "v": 100, "n": 7, "vw": price + 0.5, **more}


def page(rows: dict[str, list[Any]], token: str | None = None) -> dict[str, Any]:
    return {"bars": rows, "next_page_token": token}


def parsed(*rows: dict[str, Any], request: BarsRequest = MINUTES) -> Any:  # noqa: ANN401 - the bars
    return parse_pages([parse_page(encoded(page({"MSFT": list(rows)})), ["MSFT"])], request)


def alpaca(url: str, http: HttpClient, *, feed: str = "iex", rows_per_page: int = 10_000) -> AlpacaProvider:
    keys = SecretStr("the-key-id"), SecretStr("the-secret-key")
    return AlpacaProvider(http, base_url=url, key_id=keys[0], secret_key=keys[1], feed=feed, rows_per_page=rows_per_page)


def requests_for(*symbols: str) -> list[BarsRequest]:
    return [replace(MINUTES, symbol=symbol) for symbol in symbols]


# --- what is asked -----------------------------------------------------------------------------------------------------


def test_many_symbols_the_feed_and_split_prices_are_asked_for_with_the_keys_in_headers() -> None:
    with Loopback(ok(page({"MSFT": [row(OPEN)]}))) as server, client() as http:
        alpaca(server.url + "/", http).fetch_bars_of_many(requests_for("MSFT", "BRK.B"), now=NOW)
        received = server.requests[0]
    assert received.path == "/v2/stocks/bars"
    assert received.query == {
        "symbols": "MSFT,BRK.B",
        "timeframe": "1Min",
        "start": "2024-07-01T13:30:00Z",
        # The end is included on the wire.
        "end": "2024-07-01T19:59:59Z",
        "adjustment": "split",
        "feed": "iex",
        "limit": "10000",
    }
    assert received.headers["apca-api-key-id"] == "the-key-id"
    assert received.headers["apca-api-secret-key"] == "the-secret-key"


def test_days_are_asked_for_from_midnight_to_midnight_in_new_york() -> None:
    with Loopback(ok(page({}))) as server, client() as http:
        alpaca(server.url, http).fetch_bars(DAYS, now=NOW)
        asked = server.requests[0].query
    assert (asked["timeframe"], asked["start"], asked["end"]) == ("1Day", "2024-06-28T04:00:00Z", "2024-07-01T04:00:00Z")


@pytest.mark.parametrize(
    ("feed", "counts", "access", "delay"),
    [("iex", Feed.IEX, Access.KEY, 0), ("sip", Feed.SIP, Access.PLAN, 0), ("delayed_sip", Feed.SIP, Access.KEY, 900)],
)
def test_a_feed_is_declared_with_its_terms(feed: str, counts: Feed, access: Access, delay: int) -> None:
    with client() as http:
        declared = alpaca("http://127.0.0.1:1", http, feed=feed).capabilities
    assert {(c.feed, c.access, c.delay_seconds) for c in declared} == {(counts, access, delay)}


def test_the_delayed_sip_is_asked_for_only_until_a_quarter_of_an_hour_ago() -> None:
    request = replace(MINUTES, end=int(NOW.timestamp()))
    with Loopback(ok(page({}))) as server, client() as http:
        alpaca(server.url, http, feed="delayed_sip").fetch_bars(request, now=NOW)
        asked = server.requests[0].query
    assert (asked["feed"], asked["end"]) == ("sip", (NOW - timedelta(minutes=16)).strftime("%Y-%m-%dT%H:%M:%SZ"))


@pytest.mark.parametrize("symbol", ["^GSPC", "EURUSD=X", "BRK-B", "A,B", "msft", "../..", "", "A B"])
def test_what_cannot_be_a_symbol_is_never_sent(symbol: str) -> None:
    error, sent = failure_of(alpaca, Reply(), request=replace(MINUTES, symbol=symbol))
    assert isinstance(error, UnknownSymbolError)
    assert sent == 0


def test_nothing_asked_is_nothing_sent() -> None:
    with Loopback(Reply()) as server, client() as http:
        assert alpaca(server.url, http).fetch_bars_of_many([], now=NOW) == []
        assert server.requests == []


def test_more_symbols_than_fit_one_request_are_refused() -> None:
    with Loopback(Reply()) as server, client() as http:
        with pytest.raises(OutOfReachError, match="at most 200"):
            alpaca(server.url, http).fetch_bars_of_many(requests_for(*(f"S{n}" for n in range(201))), now=NOW)
        assert server.requests == []


# --- pages -------------------------------------------------------------------------------------------------------------


def test_a_symbol_that_goes_on_on_the_next_page_is_whole() -> None:
    pages = [
        page({"AAPL": [row(OPEN)], "MSFT": [row(OPEN)]}, "one"),
        page({"MSFT": [row(OPEN + 60), row(OPEN + 120)]}, "two"),
        page({"MSFT": [row(OPEN + 180)], "SPY": [row(OPEN)]}),
    ]
    with Loopback(*map(ok, pages)) as server, client() as http:
        answers = alpaca(server.url, http).fetch_bars_of_many(requests_for("AAPL", "SPY", "MSFT"), now=NOW)
        tokens = [received.query.get("page_token") for received in server.requests]
    bars = [answer for answer in answers if isinstance(answer, BarsAnswer)]
    assert tokens == [None, "one", "two"]
    assert [len(answer.columns) for answer in bars] == [1, 1, 4]
    assert [answer.fetch.attempts for answer in bars] == [3, 0, 0]
    assert "symbols=AAPL,SPY,MSFT" in bars[0].fetch.request
    assert "symbols=MSFT&" in bars[2].fetch.request
    assert bars[2].fetch.request.endswith("(one of 3 symbols)")
    assert bars[0].fetch.payload_bytes == sum(len(encoded(one)) for one in pages)


@pytest.mark.parametrize(
    ("replies", "words"),
    [
        ([ok({"bars": {"MSFT": [row(OPEN)]}})], "does not say whether another follows"),
        ([ok(page({"MSFT": [row(OPEN)]}, "a")), ok(page({"MSFT": [row(OPEN + 60)]}, "a"))], "leads back"),
        ([ok(page({"MSFT": [row(OPEN)]}, "a")), ok(page({"MSFT": [row(OPEN)]}))], "repeats rows"),
        ([ok(page({"MSFT": [row(OPEN)]}, ""))], "next_page_token"),
        ([ok(page({"MSFT": [row(OPEN)], "TSLA": [row(OPEN)]}))], "'TSLA', which was not asked for"),
        ([ok(page({"MSFT": [row(OPEN), 7]}))], "no row"),
        ([ok(page({"MSFT": [row(OPEN, t="yesterday")]}))], "RFC 3339"),
        ([ok(page({"MSFT": [row(OPEN, t=OPEN)]}))], "RFC 3339"),
    ],
)
def test_an_answer_that_is_not_whole_is_refused(replies: list[Reply], words: str) -> None:
    error, _ = failure_of(alpaca, *replies)
    assert isinstance(error, PayloadError)
    assert words in str(error)


def token_of(symbol: str, opened_at: int) -> str:
    return base64.b64encode(f"{symbol}|M|{row(opened_at)['t']}".encode()).decode()


def test_a_page_must_hold_the_bar_that_its_token_names() -> None:
    rows = {"MSFT": [row(OPEN), row(OPEN + 60)]}
    assert parse_page(encoded(page(rows, token_of("MSFT", OPEN + 60))), ["MSFT"]).count == 2
    with pytest.raises(PayloadError, match="breaks off"):
        parse_page(encoded(page(rows, token_of("MSFT", OPEN + 120))), ["MSFT"])
    with pytest.raises(PayloadError, match="breaks off"):
        parse_page(encoded(page(rows, token_of("SPY", OPEN))), ["MSFT", "SPY"])


def test_a_failure_on_a_later_page_ends_the_whole_call() -> None:
    error, sent = failure_of(alpaca, ok(page({"MSFT": [row(OPEN)]}, "a")), Reply(status=500))
    assert (error.kind, sent) == ("transient", 4)


def test_a_full_page_without_a_token_is_asked_for_again_with_one_row_less() -> None:
    full, shorter = page({"MSFT": [row(OPEN), row(OPEN + 60)]}), page({"MSFT": [row(OPEN)]}, "a")
    with Loopback(ok(full), ok(shorter), ok(page({"MSFT": []}))) as server, client() as http:
        answer = alpaca(server.url, http, rows_per_page=2).fetch_bars(MINUTES, now=NOW)
        limits = [received.query["limit"] for received in server.requests]
    assert limits == ["2", "1", "1"]
    assert len(answer.columns) == 1


# --- refusals ----------------------------------------------------------------------------------------------------------


def test_a_free_key_that_asks_for_the_sip_is_told_what_to_set() -> None:
    body = b'{"message":"subscription does not permit querying recent SIP data"}'
    error, sent = failure_of(alpaca, Reply(status=403, body=body, headers=JSON))
    assert isinstance(error, EntitlementError)
    assert sent == 1
    assert "MDP_ALPACA_FEED" in str(error)
    assert error.fetch is not None
    assert error.fetch.status == 403


def test_names_that_alpaca_refuses_are_left_out_one_after_the_other() -> None:
    refusals = [Reply(status=400, body=encoded({"message": f"invalid symbol: {name}"}), headers=JSON) for name in ("3USL", "CSP1")]
    with Loopback(*refusals, ok(page({"MSFT": [row(OPEN)]}))) as server, client() as http:
        answers = alpaca(server.url, http).fetch_bars_of_many(requests_for("3USL", "MSFT", "CSP1"), now=NOW)
        asked = [received.query["symbols"] for received in server.requests]
    assert asked == ["3USL,MSFT,CSP1", "MSFT,CSP1", "MSFT"]
    assert [type(answer) for answer in answers] == [UnknownSymbolError, BarsAnswer, UnknownSymbolError]
    unknown = answers[0]
    assert isinstance(unknown, UnknownSymbolError)
    assert unknown.fetch is not None
    assert (unknown.fetch.symbol, unknown.fetch.outcome) == ("3USL", "unknown_symbol")


@pytest.mark.parametrize("message", ["invalid symbol: TSLA", "invalid timeframe: 1Min", "end is before start"])
def test_another_400_is_no_unknown_symbol(message: str) -> None:
    error, sent = failure_of(alpaca, Reply(status=400, body=encoded({"message": message}), headers=JSON))
    assert isinstance(error, PayloadError)
    assert sent == 1


def test_a_symbol_nobody_trades_is_an_empty_answer() -> None:
    with Loopback(ok({"bars": None, "next_page_token": None})) as server, client() as http:
        answer = alpaca(server.url, http).fetch_bars(MINUTES, now=NOW)
    assert (len(answer.columns), answer.fetch.outcome, answer.fetch.rows) == (0, "ok", 0)


# --- what the bars say -------------------------------------------------------------------------------------------------


def test_bars_carry_vwap_trades_and_fractional_volume() -> None:
    columns = parsed(row(OPEN, 10.0, v=9099.618093)).columns
    assert (columns.vwap.tolist(), columns.trades.tolist(), columns.volume.tolist()) == ([10.5], [7.0], [9099.618093])


def test_extended_hours_are_cut_by_the_window_and_counted() -> None:
    found = parsed(row(OPEN - 60), row(OPEN), row(OPEN + 390 * 60))
    assert found.columns.opened_at.tolist() == [OPEN]
    assert found.dropped == {"outside_window": 2}


@pytest.mark.parametrize(("stamp", "session"), [("2024-06-28T04:00:00Z", "2024-06-28"), ("2024-01-02T05:00:00Z", "2024-01-02")])
def test_a_day_is_named_by_its_date_in_new_york(stamp: str, session: str) -> None:
    opens = at(f"{session}T14:30Z")
    found = parsed(row(0, t=stamp), request=BarsRequest("MSFT", Interval.D1, opens, opens + 6 * 3600))
    assert found.columns.opened_at.tolist() == [at(f"{session}T00:00Z")]


@pytest.mark.parametrize("stamp", ["2024-07-01T13:30:00.000000000Z", "2024-07-01T09:30:00-04:00", "2024-07-01T13:30:00.123Z"])
def test_other_ways_to_write_the_same_instant(stamp: str) -> None:
    assert parsed(row(0, t=stamp)).columns.opened_at.tolist() == [OPEN]


def test_a_value_that_is_no_number_is_left_to_the_judge() -> None:
    columns = parsed(row(OPEN, h=None), row(OPEN + 60, c="x")).columns
    assert [int(n) for n in columns.obeys_ohlc_laws()] == [0, 0]


@given(st.lists(st.integers(-5, 400), max_size=40), st.data())
def test_every_row_is_kept_once_or_counted(minutes: list[int], data: st.DataObject) -> None:
    rows = data.draw(st.permutations([row(OPEN + 60 * minute) for minute in minutes]))
    found = parsed(*rows)
    assert len(found.columns) + sum(found.dropped.values()) == len(minutes)
    assert found.columns.opened_at.tolist() == sorted({OPEN + 60 * m for m in minutes if 0 <= m < 390})


# --- quotes ------------------------------------------------------------------------------------------------------------


def quote(**changes: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    return {"t": "2026-11-20T15:00:00.123456789Z", "bp": 10.0, "bs": 300, "ap": 10.1, "as": 200, **changes}


def test_quotes_of_several_symbols_come_in_the_order_asked() -> None:
    body = {"quotes": {"SPY": quote(bp=500.0), "MSFT": quote()}}
    with Loopback(ok(body)) as server, client() as http:
        answer = alpaca(server.url, http, feed="delayed_sip").fetch_quotes(["MSFT", "NOPE", "SPY", "^X"], priority=LIVE, now=NOW)
        received = server.requests[0]
    assert (received.path, received.query) == ("/v2/stocks/quotes/latest", {"symbols": "MSFT,NOPE,SPY", "feed": "delayed_sip"})
    assert [(q.symbol, q.bid, q.ask, q.bid_size, q.delay_seconds) for q in answer.quotes] == [
        ("MSFT", 10.0, 10.1, 300.0, 900),
        ("SPY", 500.0, 10.1, 300.0, 900),
    ]
    assert answer.quotes[0].quoted_at == datetime(2026, 11, 20, 15, 0, 0, 123456, tzinfo=UTC)
    assert answer.unknown == ("NOPE", "^X")
    assert (answer.fetch.capability, answer.fetch.rows, answer.fetch.interval) == ("quotes_l1", 2, None)


def test_sizes_were_round_lots_before_november_2025() -> None:
    quotes, _ = parse_quotes(encoded({"quotes": {"A": quote(t="2025-10-31T15:00:00Z", bs=3)}}), ["A"], delay_seconds=0)
    assert quotes[0].bid_size == 300.0


def test_a_side_that_nobody_quotes_is_none_and_not_zero() -> None:
    quotes, _ = parse_quotes(encoded({"quotes": {"A": quote(bp=0, bs=0)}}), ["A"], delay_seconds=0)
    assert (quotes[0].bid, quotes[0].bid_size, quotes[0].ask) == (None, None, 10.1)


@pytest.mark.parametrize("broken", [quote(t=None), quote(t="soon"), quote(bp="x"), quote(ap=-1), 7])
def test_a_quote_that_cannot_be_read_is_refused_with_its_reason(broken: object) -> None:
    quotes, refused = parse_quotes(encoded({"quotes": {"A": broken, "B": quote()}}), ["A", "B"], delay_seconds=0)
    assert [q.symbol for q in quotes] == ["B"]
    assert refused[0].record.startswith("A: ")
    assert refused[0].reason
