"""What Finnhub's candles and quotes are asked and what their answers mean: one test a fact of the wire."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.capabilities import Access, Basis, Priority, bars
from market_data_pipeline.domain.errors import (
    EntitlementError,
    OutOfReachError,
    PayloadError,
    ProviderError,
    RateLimitedError,
)
from market_data_pipeline.domain.ports import Quote, QuotesAnswer
from market_data_pipeline.providers.finnhub import FinnhubProvider, parse_candles, parse_quote
from market_data_pipeline_tests.providers.loopback import Loopback, Reply
from market_data_pipeline_tests.providers.wire_cases import DAYS, JSON, MINUTES, NOW, OPEN, at, client, encoded, failure_of, ok

if TYPE_CHECKING:
    from market_data_pipeline.providers.http import HttpClient

NO_DATA = {"s": "no_data"}
IN_DOUBT = NOW.replace(second=5)
QUOTE = {"c": 10.5, "d": 0.1, "dp": 1.0, "h": 11.0, "l": 10.0, "o": 10.0, "pc": 10.4, "t": at("2024-07-02T19:59:59Z")}
ZEROS = {"c": 0, "d": None, "dp": None, "h": 0, "l": 0, "o": 0, "pc": 0, "t": 0}


def candles(*stamps: int, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    """Bar i is 10+i, 12+i, 9+i, 11+i, volume 100.5+i."""
    firsts = {"o": 10.0, "h": 12.0, "l": 9.0, "c": 11.0, "v": 100.5}
    return {
        "s": "ok",
        "t": list(stamps),
        **{key: [first + n for n in range(len(stamps))] for key, first in firsts.items()},
        **changes,
    }


def finnhub(url: str, http: HttpClient, *, with_bid_and_ask: bool = False) -> FinnhubProvider:
    return FinnhubProvider(http, base_url=url, key=SecretStr("the-finnhub-key"), with_bid_and_ask=with_bid_and_ask)


# --- candles -----------------------------------------------------------------------------------------------------------


def test_minutes_are_asked_for_with_the_end_left_out_and_the_key_in_a_header() -> None:
    with Loopback(ok(candles(OPEN, OPEN + 60))) as server, client() as http:
        answer = finnhub(server.url, http).fetch_bars(MINUTES, now=NOW)
        received = server.requests[0]
    assert received.path == "/stock/candle"
    assert received.query == {"symbol": "MSFT", "resolution": "1", "from": str(OPEN), "to": str(MINUTES.end - 1)}
    assert received.headers["x-finnhub-token"] == "the-finnhub-key"
    assert answer.columns.opened_at.tolist() == [OPEN, OPEN + 60]
    assert answer.columns.volume.tolist() == [100.5, 101.5]


def test_days_are_named_by_their_date_in_utc() -> None:
    with Loopback(ok(candles(at("2024-06-28T00:00Z"), at("2024-07-01T00:00Z")))) as server, client() as http:
        answer = finnhub(server.url, http).fetch_bars(DAYS, now=NOW)
        asked = server.requests[0].query
    assert (asked["resolution"], asked["from"], asked["to"]) == ("D", str(at("2024-06-28T00:00Z")), str(at("2024-07-01T00:00Z")))
    assert answer.columns.opened_at.tolist() == [at("2024-06-28T00:00Z"), at("2024-07-01T00:00Z")]


def test_minutes_are_raw_days_are_adjusted_and_both_need_a_plan() -> None:
    declared = {c.name: (c.basis, c.access) for c in FinnhubProvider.capabilities}
    assert declared[bars(Interval.M1)] == (Basis.RAW, Access.PLAN)
    assert declared[bars(Interval.D1)] == (Basis.SPLIT, Access.PLAN)
    assert declared["quotes_l1"] == (Basis.RAW, Access.KEY)


def test_more_than_a_month_of_minutes_is_never_asked_for() -> None:
    error, sent = failure_of(finnhub, Reply(), request=replace(MINUTES, start=MINUTES.end - 31 * 86_400))
    assert isinstance(error, OutOfReachError)
    assert sent == 0


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply(status=401, body=b'{"error":"Invalid API key"}', headers=JSON), EntitlementError),
        (Reply(status=403, body=b'{"error":"You don\'t have access to this resource."}', headers=JSON), EntitlementError),
        (ok({"error": "Please use an API key."}), EntitlementError),
        (ok({"error": "You don't have access to this resource."}), EntitlementError),
        (Reply(status=429, body=b'{"error":"API limit reached. Please try again later. Remaining Limit: 0"}'), RateLimitedError),
        (ok({"error": "API limit reached. Please try again later. Remaining Limit: 0"}), RateLimitedError),
        (ok({"error": "Symbol is wrong"}), PayloadError),
        (Reply(status=422, body=b'{"error":"Wrong resolution"}', headers=JSON), PayloadError),
        (ok({"s": "error"}), PayloadError),
        (ok({"s": "ok"}), PayloadError),
        (ok(candles(OPEN, OPEN + 60, h=[12.0])), PayloadError),
        (ok(candles(OPEN, t=["x"])), PayloadError),
        (ok(candles(OPEN, v=None)), PayloadError),
    ],
)
def test_an_answer_without_bars_is_classed_by_what_it_says(reply: Reply, kind: type[ProviderError]) -> None:
    error, sent = failure_of(finnhub, reply)
    assert (type(error), sent) == (kind, 1)


def test_the_status_tells_a_wrong_key_from_a_lesser_plan() -> None:
    wrong, _ = failure_of(finnhub, Reply(status=401, body=b'{"error":"Invalid API key"}', headers=JSON))
    lesser, _ = failure_of(finnhub, Reply(status=403, body=b'{"error":"You don\'t have access to this resource."}', headers=JSON))
    assert wrong.fetch is not None
    assert lesser.fetch is not None
    assert (wrong.fetch.status, lesser.fetch.status) == (401, 403)


def test_no_data_is_an_empty_answer() -> None:
    with Loopback(ok(NO_DATA)) as server, client() as http:
        answer = finnhub(server.url, http).fetch_bars(MINUTES, now=NOW)
        assert len(server.requests) == 1
    assert (len(answer.columns), answer.fetch.outcome) == (0, "ok")


def test_no_data_at_the_beginning_of_a_minute_is_asked_once_more() -> None:
    with Loopback(ok(NO_DATA), ok(candles(OPEN))) as server, client() as http:
        answer = finnhub(server.url, http).fetch_bars(MINUTES, now=IN_DOUBT)
    assert len(answer.columns) == 1
    assert answer.fetch.attempts == 2
    assert "no_data" in str(answer.fetch.error)


def test_no_data_said_twice_is_believed() -> None:
    with Loopback(ok(NO_DATA)) as server, client() as http:
        answer = finnhub(server.url, http).fetch_bars(MINUTES, now=IN_DOUBT)
        assert len(server.requests) == 2
    assert (len(answer.columns), answer.fetch.outcome) == (0, "ok")


def test_bars_outside_of_the_window_are_left_out_and_counted() -> None:
    found = parse_candles(encoded(candles(OPEN - 60, OPEN, OPEN + 60, MINUTES.end)), MINUTES)
    assert (found.columns.opened_at.tolist(), found.dropped) == ([OPEN, OPEN + 60], {"outside_window": 2})


# --- quotes ------------------------------------------------------------------------------------------------------------


def quoted(*replies: Reply, with_bid_and_ask: bool = False) -> tuple[QuotesAnswer, list[str]]:
    with Loopback(*replies) as server, client() as http:
        provider = finnhub(server.url, http, with_bid_and_ask=with_bid_and_ask)
        answer = provider.fetch_quotes(["MSFT"], priority=Priority(), now=NOW)
        return answer, [received.path for received in server.requests]


def test_a_free_quote_is_the_last_trade_alone() -> None:
    answer, paths = quoted(ok(QUOTE))
    last_at = datetime(2024, 7, 2, 19, 59, 59, tzinfo=UTC)
    assert paths == ["/quote"]
    assert answer.quotes == (
        Quote(
            symbol="MSFT",
            bid=None,
            ask=None,
            bid_size=None,
            ask_size=None,
            last=10.5,
            last_at=last_at,
            quoted_at=last_at,
            previous_close=10.4,
        ),
    )
    assert (answer.fetch.rows, answer.fetch.capability) == (1, "quotes_l1")


def test_zeros_throughout_are_an_unknown_symbol() -> None:
    answer, paths = quoted(ok(ZEROS), with_bid_and_ask=True)
    assert (answer.quotes, answer.unknown, paths) == ((), ("MSFT",), ["/quote"])


def test_bid_and_ask_are_another_request_for_who_may() -> None:
    sides = {"a": 10.6, "av": 300, "b": 10.4, "bv": 200, "t": at("2024-07-02T20:00Z") * 1000 + 123}
    answer, paths = quoted(ok(QUOTE), ok(sides), with_bid_and_ask=True)
    quote = answer.quotes[0]
    assert paths == ["/quote", "/stock/bidask"]
    assert (quote.bid, quote.bid_size, quote.ask, quote.ask_size, quote.last) == (10.4, 200.0, 10.6, 300.0, 10.5)
    assert quote.quoted_at == datetime(2024, 7, 2, 20, 0, 0, 123000, tzinfo=UTC)
    assert answer.fetch.attempts == 2


@pytest.mark.parametrize("told", [{**QUOTE, "c": "x"}, {**QUOTE, "t": 0}, {**QUOTE, "c": -1}, {**QUOTE, "t": 1e300}, {}])
def test_a_quote_that_cannot_be_read_is_refused_with_its_reason(told: dict[str, Any]) -> None:
    answer, _ = quoted(ok(told))
    assert answer.quotes == ()
    assert answer.unknown == ()
    assert answer.refused[0].reason


def test_one_symbol_is_a_request() -> None:
    with Loopback(Reply()) as server, client() as http:
        with pytest.raises(OutOfReachError):
            finnhub(server.url, http).fetch_quotes(["MSFT", "AAPL"], priority=Priority(), now=NOW)
        assert server.requests == []


def test_a_quote_that_is_no_object_is_refused() -> None:
    with pytest.raises(PayloadError):
        parse_quote("MSFT", b"[1]")
