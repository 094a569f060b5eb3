"""What Yahoo's quote and option endpoints are asked and what their answers mean: one test a fact of the wire."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict, replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.capabilities import HISTORY, OPTIONS_CHAIN, QUOTES_L1
from market_data_pipeline.domain.errors import (
    EntitlementError,
    OutOfReachError,
    PayloadError,
    ProviderError,
    RateLimitedError,
    TransientError,
    UnknownSymbolError,
)
from market_data_pipeline.domain.ports import ChainProvider, QuotesProvider
from market_data_pipeline.providers.http import HttpClient, HttpPolicy
from market_data_pipeline.providers.yahoo import YahooProvider
from market_data_pipeline.providers.yahoo_options import parse_options
from market_data_pipeline.providers.yahoo_quotes import parse_quotes
from market_data_pipeline_tests.providers.loopback import Loopback, Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from market_data_pipeline.domain.ports import ChainAnswer, OptionQuote, Quote, QuotesAnswer

NOW = datetime(2025, 2, 24, 15, tzinfo=UTC)
FEB, MAR = 1740700800, 1741305600
COOKIE, CRUMB = "d=AQABBCanary-Cookie-3f9&S=AQAAAk", "Canary.Crumb/8Qz"
JSON = {"Content-Type": "application/json;charset=utf-8"}
INVALID_CRUMB = b'{"finance":{"result":null,"error":{"code":"Unauthorized","description":"Invalid Crumb"}}}'
SET_COOKIE = f"A3={COOKIE}; Expires=Tue, 24 Feb 2026 21:21:02 GMT; Max-Age=31557600; Domain=.yahoo.com; Path=/; Secure; HttpOnly"


def quote(**changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """A record of AAPL, valid except for what is given; ... leaves a field out."""
    record: dict[str, Any] = {
        "quoteType": "EQUITY",
        "symbol": "AAPL",
        "exchange": "NMS",
        "currency": "USD",
        "marketState": "REGULAR",
        "regularMarketPrice": 244.6,
        "regularMarketTime": 1740408000,
        "regularMarketVolume": 40896227,
        "regularMarketPreviousClose": 241.53,
        "bid": 244.44,
        "ask": 244.5,
        "bidSize": 2,
        "askSize": 3,
        "exchangeDataDelayedBy": 0,
        **changes,
    }
    return {name: value for name, value in record.items() if value is not ...}


def contract(name: str = "AAPL250228C00110000", **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """A contract of the first expiry, valid except for what is given; ... leaves a field out."""
    record: dict[str, Any] = {
        "contractSymbol": name,
        "strike": int(name[-8:]) / 1000,
        "currency": "USD",
        "lastPrice": 111.67,
        "change": 0,
        "percentChange": 0,
        "volume": 4,
        "openInterest": 7,
        "bid": 135.9,
        "ask": 136.65,
        "contractSize": "REGULAR",
        "expiration": FEB,
        "lastTradeDate": 1737487202,
        "impliedVolatility": 0.58,
        "inTheMoney": True,
        **changes,
    }
    return {field: value for field, value in record.items() if value is not ...}


def quotes_body(*records: object) -> bytes:
    return json.dumps({"quoteResponse": {"result": list(records), "error": None}}).encode()


def chain_body(
    *calls: object,
    puts: tuple[object, ...] = (),
    expiry: int = FEB,
    expiries: tuple[int, ...] = (FEB,),
    symbol: str = "AAPL",
    underlying: Mapping[str, Any] | None = None,
) -> bytes:
    page = {"expirationDate": expiry, "hasMiniOptions": False, "calls": list(calls), "puts": list(puts)}
    result = {
        "underlyingSymbol": symbol,
        "expirationDates": list(expiries),
        "strikes": [],
        "hasMiniOptions": False,
        "quote": quote(symbol=symbol) if underlying is None else dict(underlying),
        "options": [page],
    }
    return json.dumps({"optionChain": {"result": [result], "error": None}}).encode()


def reply(body: bytes, status: int = 200) -> Reply:
    return Reply(status=status, body=body, headers={**JSON, "Date": "Mon, 24 Feb 2025 14:59:48 GMT"})


COOKIE_PAGE = Reply(status=404, body=b"<html>Not Found</html>", headers={"Content-Type": "text/html", "Set-Cookie": SET_COOKIE})
CRUMB_TEXT = Reply(body=CRUMB.encode(), headers={"Content-Type": "text/plain"})
PASS = (COOKIE_PAGE, CRUMB_TEXT)
UNAUTHORIZED = reply(INVALID_CRUMB, 401)


def yahoo_at(url: str, http: HttpClient) -> YahooProvider:
    return YahooProvider(http, base_url=url, user_agent="test-agent", cookie_url=f"{url}/fc", crumb_url=url)


def client() -> HttpClient:
    return HttpClient(HttpPolicy(timeout_seconds=5.0, attempts=2), sleep=lambda _: None)


def quotes_from(*replies: Reply, symbols: tuple[str, ...] = ("AAPL",)) -> tuple[QuotesAnswer, Loopback]:
    with Loopback(*replies) as server, client() as http:
        return yahoo_at(server.url, http).fetch_quotes(symbols, priority=HISTORY, now=NOW), server


def chain_from(*replies: Reply, expiry: date | None = None) -> tuple[ChainAnswer, Loopback]:
    with Loopback(*PASS, *replies) as server, client() as http:
        return yahoo_at(server.url, http).fetch_chain("AAPL", expiry=expiry, priority=HISTORY, now=NOW), server


def failure_of(*replies: Reply, ask: Callable[[YahooProvider], object] | None = None) -> tuple[ProviderError, Loopback]:
    ask = ask or (lambda yahoo: yahoo.fetch_quotes(["AAPL"], priority=HISTORY, now=NOW))
    with Loopback(*replies) as server, client() as http:
        with pytest.raises(ProviderError) as raised:
            ask(yahoo_at(server.url, http))
        return raised.value, server


def one(record: dict[str, Any]) -> Quote:
    (found,) = parse_quotes(quotes_body(record), ["AAPL"]).quotes
    return found


def why(record: object, *, symbols: tuple[str, ...] = ("AAPL",)) -> str:
    """The reason that a record is refused for."""
    parsed = parse_quotes(quotes_body(record, quote()), symbols)
    assert parsed.received == 2
    return parsed.refused[0].reason


def one_contract(record: dict[str, Any]) -> OptionQuote:
    (found,) = parse_options(chain_body(record), "AAPL").contracts
    return found


def why_contract(record: object) -> str:
    parsed = parse_options(chain_body(record), "AAPL")
    assert (parsed.received, list(parsed.contracts)) == (1, [])
    return parsed.refused[0].reason


# --- quotes: what a record means ---------------------------------------------------------------------------------------


def test_a_quote_is_bid_ask_and_last_trade_with_sizes_in_shares() -> None:
    found = one(quote())
    assert (found.bid, found.ask, found.bid_size, found.ask_size) == (244.44, 244.5, 200.0, 300.0)
    assert (found.last, found.last_at) == (244.6, datetime(2025, 2, 24, 14, 40, tzinfo=UTC))
    assert (found.volume, found.previous_close, found.currency, found.market_state) == (40896227.0, 241.53, "USD", "REGULAR")


@pytest.mark.parametrize(
    ("exchange", "shares"), [("NMS", 200.0), ("NYQ", 200.0), ("PCX", 200.0), ("PNK", 2.0), ("LSE", 2.0), (..., 2.0)]
)
def test_lots_are_lots_where_the_consolidated_tape_is_quoted(exchange: object, shares: float) -> None:
    assert one(quote(exchange=exchange)).bid_size == shares


@pytest.mark.parametrize("value", [0, 0.0, None, ...])
def test_a_bid_of_zero_is_no_bid_and_its_size_is_no_size(value: object) -> None:
    found = one(quote(bid=value))
    assert (found.bid, found.bid_size) == (None, None)
    assert (found.ask, found.ask_size) == (244.5, 300.0)


def test_a_size_of_zero_is_none_beside_a_price() -> None:
    found = one(quote(bidSize=0, askSize=...))
    assert (found.bid, found.bid_size, found.ask, found.ask_size) == (244.44, None, 244.5, None)


def test_the_last_trade_is_the_newest_of_all_sessions_and_the_quote_is_as_old_as_it() -> None:
    found = one(quote(postMarketPrice=245.0, postMarketTime=1740420000, preMarketPrice=1.0, preMarketTime=1740389047))
    assert (found.last, found.last_at) == (245.0, datetime(2025, 2, 24, 18, tzinfo=UTC))
    assert found.quoted_at == found.last_at


def test_a_price_without_its_time_is_no_trade_of_pre_or_post_market() -> None:
    assert one(quote(postMarketPrice=245.0)).last == 244.6


def test_a_regular_price_without_a_time_is_told_without_one() -> None:
    found = one(quote(regularMarketTime=...))
    assert (found.last, found.last_at, found.quoted_at) == (244.6, None, None)


def test_the_delay_is_told_in_seconds() -> None:
    assert one(quote(exchangeDataDelayedBy=15)).delay_seconds == 900


def test_a_crossed_market_is_told_as_it_is() -> None:
    """Recorded for EURUSD=X: indicative prices cross, and both are what Yahoo has."""
    found = one(quote(bid=1.0489877, ask=1.0484378))
    assert (found.bid, found.ask) == (1.0489877, 1.0484378)


def test_numbers_as_text_are_read() -> None:
    assert one(quote(bid="244.44", bidSize="2")) == one(quote())


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (quote(bid=-1), "bid is negative: -1"),
        (quote(askSize=-3), "askSize is negative: -3"),
        (quote(ask="NaN"), "ask is no number: 'NaN'"),
        (quote(regularMarketTime=1740408000000), "regularMarketTime is no time: 1.74041e+12"),
        (quote(bidSize=1.7e307), "bidSize is not finite"),
        (quote(exchangeDataDelayedBy=1e308), "exchangeDataDelayedBy is no delay: 1e+308"),
        (quote(symbol="MSFT"), "'MSFT' was not asked for"),
        (quote(symbol=...), "None was not asked for"),
        (quote(bid=0, ask=0, regularMarketPrice=0), "AAPL has no bid, no ask and no last price"),
        ("AAPL", "no object: 'AAPL'"),
        (None, "no object: None"),
    ],
)
def test_a_record_that_breaks_a_law_is_refused_with_its_reason_and_costs_no_other(record: object, reason: str) -> None:
    assert why(record) == reason


def test_the_second_record_of_a_symbol_is_refused() -> None:
    parsed = parse_quotes(quotes_body(quote(), quote(bid=1)), ["AAPL"])
    assert [found.bid for found in parsed.quotes] == [244.44]
    assert [r.reason for r in parsed.refused] == ["a second record of AAPL"]


def test_symbols_that_are_missing_are_unknown_and_those_refused_are_not() -> None:
    parsed = parse_quotes(quotes_body(quote(), quote(symbol="MSFT", bid=-1)), ["AAPL", "MSFT", "NOPE"])
    assert list(parsed.unknown) == ["NOPE"]


def test_a_quote_is_named_as_it_was_asked_for() -> None:
    assert [q.symbol for q in parse_quotes(quotes_body(quote(symbol="BRK-B")), ["brk-b"]).quotes] == ["brk-b"]


@pytest.mark.parametrize(
    "hollow",
    [
        {"quoteType": "NONE", "symbol": "AAPL"},
        {"quoteType": "MUTUALFUND", "symbol": "AAPL", "regularMarketTime": 1561759658, "marketState": "CLOSED"},
    ],
)
def test_a_symbol_that_is_registered_and_nothing_more_is_unknown(hollow: dict[str, Any]) -> None:
    """Recorded for BRKS and ADH."""
    parsed = parse_quotes(quotes_body(hollow), ["AAPL"])
    assert (list(parsed.quotes), list(parsed.unknown), list(parsed.hollow), list(parsed.refused)) == ([], ["AAPL"], ["AAPL"], [])


def test_an_answer_about_nothing_that_was_asked_for_is_worthless() -> None:
    with pytest.raises(PayloadError, match="asked for AAPL, answered with MSFT"):
        parse_quotes(quotes_body(quote(symbol="MSFT")), ["AAPL"])


@pytest.mark.parametrize("body", [b"[]", b"{}", b"5", b'{"quoteResponse":{}}', b'{"quoteResponse":{"result":5}}', b"nonsense"])
def test_a_body_that_is_not_what_yahoo_documents_is_malformed(body: bytes) -> None:
    with pytest.raises(PayloadError):
        parse_quotes(body, ["AAPL"])


# --- options: what a record means --------------------------------------------------------------------------------------


def test_a_contract_is_what_its_name_says() -> None:
    found = one_contract(contract())
    assert (found.contract, found.root, found.expiry, found.strike, found.right) == (
        "AAPL250228C00110000",
        "AAPL",
        date(2025, 2, 28),
        110.0,
        "C",
    )
    assert (found.bid, found.ask, found.last, found.iv) == (135.9, 136.65, 111.67, 0.58)
    assert (found.volume, found.open_interest) == (4.0, 7.0)
    assert found.last_at == datetime(2025, 1, 21, 19, 20, 2, tzinfo=UTC)


def test_what_is_absent_is_none_and_never_zero() -> None:
    found = one_contract(contract(volume=..., openInterest=..., bid=..., ask=..., lastPrice=..., lastTradeDate=...))
    assert {found.volume, found.open_interest, found.bid, found.ask, found.last, found.last_at} == {None}


def test_off_hours_a_bid_and_ask_of_zero_are_none_while_nothing_traded_is_zero() -> None:
    found = one_contract(contract(bid=0, ask=0, volume=0, openInterest=0))
    assert (found.bid, found.ask, found.volume, found.open_interest) == (None, None, 0.0, 0.0)


@pytest.mark.parametrize(
    ("sent", "kept"), [(0, None), (1e-05, None), (1.0000000000000003e-05, None), (..., None), (0.0078, 0.0078)]
)
def test_a_volatility_of_nothing_is_none(sent: object, kept: float | None) -> None:
    assert one_contract(contract(impliedVolatility=sent)).iv == kept


@pytest.mark.parametrize("root", ["AMD1", "AAPL7", "SPXW"])
def test_adjusted_mini_and_weekly_contracts_keep_a_class_of_their_own(root: str) -> None:
    assert one_contract(contract(f"{root}250228C00110000")).root == root


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (contract(bid=-1), "bid is negative: -1"),
        (contract(impliedVolatility="Infinity"), "impliedVolatility is no number: 'Infinity'"),
        (contract(contractSymbol="AAPL"), "no name of a contract: 'AAPL'"),
        (contract("AAPL250228P00110000"), "AAPL250228P00110000 is listed among the calls"),
        (contract(strike=11000.0), "AAPL250228C00110000 is said to have the strike 11000"),
        (contract("AAPL250307C00110000"), f"AAPL250307C00110000 is listed under 2025-02-28, and says {FEB}"),
        (contract(expiration=MAR), f"AAPL250228C00110000 is listed under 2025-02-28, and says {MAR}"),
        (7, "no object: 7"),
    ],
)
def test_a_contract_that_breaks_a_law_is_refused_with_its_reason(record: object, reason: str) -> None:
    assert why_contract(record) == reason


def test_of_two_contracts_with_one_name_the_first_is_kept() -> None:
    parsed = parse_options(chain_body(contract(), contract(bid=1)), "AAPL")
    assert [c.bid for c in parsed.contracts] == [135.9]
    assert [r.reason for r in parsed.refused] == ["a second record of AAPL250228C00110000"]


def test_a_chain_of_something_else_is_worthless() -> None:
    with pytest.raises(PayloadError, match="asked for AAPL, answered with 'MSFT'"):
        parse_options(chain_body(contract(), symbol="MSFT"), "AAPL")


def test_another_expiry_than_asked_for_is_worthless() -> None:
    with pytest.raises(PayloadError, match="expiry"):
        parse_options(chain_body(contract()), "AAPL", expiry=MAR)


@pytest.mark.parametrize("expiry", [None, "soon", 1740700801, -86400, 1 << 60])
def test_an_expiry_that_is_no_day_is_worthless(expiry: object) -> None:
    with pytest.raises(PayloadError, match="no expiry"):
        parse_options(chain_body(contract(), expiries=(expiry,)), "AAPL")  # type: ignore[arg-type] # what the wire may hold


def test_a_broken_quote_of_the_underlying_costs_the_spot_and_not_the_chain() -> None:
    parsed = parse_options(chain_body(contract(), underlying={"regularMarketPrice": -1, "regularMarketTime": 5}), "AAPL")
    assert (parsed.spot, len(parsed.contracts)) == (None, 1)


def test_no_result_is_an_unknown_symbol() -> None:
    with pytest.raises(UnknownSymbolError):
        parse_options(b'{"optionChain":{"result":[],"error":null}}', "NOPE")


# --- whatever comes ----------------------------------------------------------------------------------------------------

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


def places_in(document: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:  # noqa: ANN401 - JSON
    """The way to everything in a document."""
    inner = document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    return [here, *(place for key, value in inner for place in places_in(value, (*here, key)))]


def with_another(document: Any, place: tuple[Any, ...], value: object) -> Any:  # noqa: ANN401 - JSON
    """A copy of a document that holds ``value`` at ``place``."""
    if not place:
        return value
    copy = dict(document) if isinstance(document, dict) else list(document)
    copy[place[0]] = with_another(copy[place[0]], place[1:], value)
    return copy


QUOTES = json.loads(quotes_body(quote(), quote(symbol="MSFT")))
CHAIN = json.loads(chain_body(contract(), contract("AAPL250228C00120000"), puts=(contract("AAPL250228P00110000"),)))


@given(st.sampled_from(places_in(QUOTES)), ANYTHING)
def test_of_bent_quotes_every_record_is_told_refused_or_hollow_or_the_answer_is_an_error(place: Any, value: object) -> None:  # noqa: ANN401
    try:
        parsed = parse_quotes(json.dumps(with_another(QUOTES, place, value)).encode(), ["AAPL", "MSFT"])
    except ProviderError:
        return
    assert len(parsed.quotes) + len(parsed.refused) + len(parsed.hollow) == parsed.received
    for found in parsed.quotes:
        told = [v for v in (found.bid, found.ask, found.last, found.bid_size, found.volume) if v is not None]
        assert all(math.isfinite(number) and number >= 0 for number in told)


@given(st.sampled_from(places_in(CHAIN)), ANYTHING)
def test_of_a_bent_chain_every_contract_is_told_or_refused_or_the_answer_is_an_error(place: Any, value: object) -> None:  # noqa: ANN401
    try:
        parsed = parse_options(json.dumps(with_another(CHAIN, place, value)).encode(), "AAPL")
    except ProviderError:
        return
    assert len(parsed.contracts) + len(parsed.refused) == parsed.received
    for found in parsed.contracts:
        told = [v for v in (found.bid, found.ask, found.last, found.volume, found.iv) if v is not None]
        assert all(math.isfinite(number) and number >= 0 for number in told)
        assert found.strike > 0


# --- asking: the session -----------------------------------------------------------------------------------------------


def test_yahoo_serves_quotes_and_chains() -> None:
    with client() as http:
        yahoo = yahoo_at("http://127.0.0.1:1", http)
    assert isinstance(yahoo, QuotesProvider)
    assert isinstance(yahoo, ChainProvider)
    capabilities = {capability.name: capability for capability in yahoo.capabilities}
    assert capabilities[QUOTES_L1].symbols_per_request == 50
    assert OPTIONS_CHAIN in capabilities


def test_a_quote_is_asked_for_with_a_cookie_and_the_crumb_that_goes_with_it() -> None:
    answer, server = quotes_from(*PASS, reply(quotes_body(quote(), quote(symbol="MSFT"))), symbols=("AAPL", "MSFT"))
    assert [request.path for request in server.requests] == ["/fc/", "/v1/test/getcrumb", "/v7/finance/quote"]
    assert "cookie" not in server.requests[0].headers
    assert [request.headers["cookie"] for request in server.requests[1:]] == [f"A3={COOKIE}"] * 2
    assert server.requests[2].query == {"symbols": "AAPL,MSFT", "crumb": CRUMB}
    assert {request.headers["user-agent"] for request in server.requests} == {"test-agent"}
    assert [q.symbol for q in answer.quotes] == ["AAPL", "MSFT"]


def test_the_pass_is_fetched_once_and_kept() -> None:
    with Loopback(*PASS, reply(quotes_body(quote()))) as server, client() as http:
        yahoo = yahoo_at(server.url, http)
        for _ in range(3):
            yahoo.fetch_quotes(["AAPL"], priority=HISTORY, now=NOW)
    assert [r.path for r in server.requests].count("/v1/test/getcrumb") == 1


def test_every_cookie_of_a_session_is_sent_and_no_other() -> None:
    several = f"GUC=x; Path=/, A1=first; Expires=Tue, 24 Feb 2026 21:21:02 GMT, A3={COOKIE}; Path=/, A1S=third; Path=/"
    page = replace(COOKIE_PAGE, headers={"Set-Cookie": several})
    _, server = quotes_from(page, CRUMB_TEXT, reply(quotes_body(quote())))
    assert server.requests[2].headers["cookie"] == f"A1=first; A3={COOKIE}; A1S=third"


@pytest.mark.parametrize("refusal", [UNAUTHORIZED, reply(INVALID_CRUMB)], ids=["status", "body"])
def test_a_pass_that_is_refused_is_renewed_once(refusal: Reply) -> None:
    answer, server = quotes_from(*PASS, refusal, COOKIE_PAGE, replace(CRUMB_TEXT, body=b"Fresh.Crumb"), reply(quotes_body(quote())))
    assert server.requests[-1].query["crumb"] == "Fresh.Crumb"
    assert (len(server.requests), answer.fetch.attempts, answer.fetch.outcome) == (6, 6, "ok")
    assert answer.fetch.error is not None
    assert "earlier attempts" in answer.fetch.error


def test_a_new_pass_that_is_refused_too_means_that_it_is_not_for_us() -> None:
    error, server = failure_of(*PASS, UNAUTHORIZED, *PASS, UNAUTHORIZED)
    assert isinstance(error, EntitlementError)
    assert len(server.requests) == 6
    assert error.fetch is not None
    assert (error.fetch.outcome, error.fetch.status, error.fetch.capability) == ("entitlement", 401, QUOTES_L1)
    assert error.__context__ is None


def test_a_403_is_no_matter_of_the_pass() -> None:
    error, server = failure_of(*PASS, reply(b'{"finance":{"error":{"code":"Forbidden"}}}', 403))
    assert isinstance(error, EntitlementError)
    assert len(server.requests) == 3


@pytest.mark.parametrize("text", [b"Too Many Requests\r\n", b"Edge: Too Many Requests"])
def test_too_many_requests_in_place_of_a_crumb_is_a_rate_limit_and_no_crumb(text: bytes) -> None:
    error, server = failure_of(COOKIE_PAGE, replace(CRUMB_TEXT, body=text))
    assert isinstance(error, RateLimitedError)
    assert [r.path for r in server.requests] == ["/fc/", "/v1/test/getcrumb"]


CONSENT = Reply(status=302, headers={"Location": "https://consent.yahoo.com/v2/collectConsent"})
PAGE = Reply(body=b"<html>Will be right back</html>", headers={"Content-Type": "text/html"})


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        ((CONSENT,), TransientError),
        ((PAGE,), TransientError),
        ((Reply(body=b"ok", headers={"Set-Cookie": "GUC=x; Path=/"}),), TransientError),
        ((COOKIE_PAGE, CONSENT), TransientError),
        ((COOKIE_PAGE, PAGE), TransientError),
        ((COOKIE_PAGE, Reply(body=b"")), TransientError),
        ((COOKIE_PAGE, Reply(body=b"two words")), PayloadError),
        ((COOKIE_PAGE, Reply(body=b"x" * 65)), PayloadError),
        ((COOKIE_PAGE, Reply(body=b'{"finance":{}}')), PayloadError),
        ((COOKIE_PAGE, Reply(status=404, body=b"nothing")), PayloadError),
        ((*PASS, PAGE), TransientError),
        ((*PASS, reply(b'{"quoteResponse"')), TransientError),
        ((*PASS, reply(b"Too Many Requests\r\n")), RateLimitedError),
        ((*PASS, reply(b'{"finance":{"result":null,"error":{"code":"Internal Server Error"}}}')), TransientError),
    ],
)
def test_what_stands_in_the_way_has_a_class(replies: tuple[Reply, ...], expected: type[ProviderError]) -> None:
    error, _ = failure_of(*replies)
    assert type(error) is expected
    assert error.fetch is not None
    assert error.fetch.outcome == error.kind


def test_a_pass_that_could_not_be_had_is_asked_for_again_by_the_next_request() -> None:
    replies = (COOKIE_PAGE, replace(CRUMB_TEXT, body=b"Too Many Requests"), *PASS, reply(quotes_body(quote())))
    with Loopback(*replies) as server, client() as http:
        yahoo = yahoo_at(server.url, http)
        with pytest.raises(RateLimitedError):
            yahoo.fetch_quotes(["AAPL"], priority=HISTORY, now=NOW)
        assert len(yahoo.fetch_quotes(["AAPL"], priority=HISTORY, now=NOW).quotes) == 1


@pytest.mark.parametrize("count", [0, 51])
def test_more_symbols_than_fit_are_refused_before_anything_is_sent(count: int) -> None:
    with Loopback(PAGE) as server, client() as http:
        with pytest.raises(OutOfReachError, match="1 to 50"):
            yahoo_at(server.url, http).fetch_quotes([f"S{n}" for n in range(count)], priority=HISTORY, now=NOW)
        assert server.requests == []


def test_the_provenance_of_quotes_counts_what_was_left_out() -> None:
    body = quotes_body(quote(), quote(symbol="MSFT", bid=-1), {"symbol": "BRKS", "quoteType": "NONE"})
    answer, _ = quotes_from(*PASS, reply(body), symbols=("AAPL", "MSFT", "BRKS", "NOPE"))
    assert list(answer.unknown) == ["BRKS", "NOPE"]
    assert (answer.fetch.rows, answer.fetch.dropped) == (1, {"hollow": 1, "refused": 1})
    assert (answer.fetch.interval, answer.fetch.capability, answer.fetch.symbol) == (None, QUOTES_L1, "AAPL,MSFT,BRKS,NOPE")
    assert (answer.fetch.payload_bytes, answer.fetch.status, answer.fetch.attempts) == (len(body), 200, 3)


# --- asking: chains ----------------------------------------------------------------------------------------------------

MARCH = contract("AAPL250307C00110000", expiration=MAR)
BOTH = (FEB, MAR)


def test_a_chain_is_asked_for_expiry_by_expiry_and_taken_when_the_first_was_answered() -> None:
    first, second = chain_body(contract(), expiries=BOTH), chain_body(MARCH, expiry=MAR, expiries=BOTH)
    answer, server = chain_from(reply(first), reply(second))
    assert [r.path for r in server.requests[2:]] == ["/v7/finance/options/AAPL"] * 2
    assert [r.query.get("date") for r in server.requests[2:]] == [None, str(MAR)]
    assert [c.expiry for c in answer.contracts] == [date(2025, 2, 28), date(2025, 3, 7)]
    assert (answer.complete, answer.spot, answer.symbol) == (True, 244.6, "AAPL")
    assert answer.taken_at == datetime(2025, 2, 24, 14, 59, 48, tzinfo=UTC)
    assert (answer.fetch.rows, answer.fetch.payload_bytes) == (2, len(first) + len(second))
    assert (answer.fetch.capability, answer.fetch.dropped, answer.fetch.error) == (OPTIONS_CHAIN, {}, None)


def test_one_expiry_is_one_request() -> None:
    answer, server = chain_from(reply(chain_body(MARCH, expiry=MAR, expiries=BOTH)), expiry=date(2025, 3, 7))
    assert [r.query.get("date") for r in server.requests[2:]] == [str(MAR)]
    assert (len(answer.contracts), answer.complete) == (1, True)


def test_an_underlying_without_options_has_an_empty_and_complete_chain() -> None:
    body = json.loads(chain_body(expiries=()))
    body["optionChain"]["result"][0]["options"] = []
    answer, _ = chain_from(reply(json.dumps(body).encode()))
    assert (list(answer.contracts), answer.complete) == ([], True)


def test_an_expiry_that_fails_leaves_the_rest_and_a_chain_that_says_so() -> None:
    april = 1743724800
    expiries = (FEB, MAR, april)
    late = contract("AAPL250404C00110000", expiration=april)
    answer, server = chain_from(
        reply(chain_body(contract(), expiries=expiries)),
        reply(b"{}"),
        reply(chain_body(late, expiry=april, expiries=expiries)),
    )
    assert [c.expiry.month for c in answer.contracts] == [2, 4]
    assert not answer.complete
    assert answer.fetch.dropped == {"missing_expiry": 1}
    assert answer.fetch.error is not None
    assert "2025-03-07" in answer.fetch.error
    assert (answer.fetch.outcome, answer.fetch.status, len(server.requests)) == ("ok", 200, 5)


def test_a_listed_expiry_without_contracts_is_missing() -> None:
    answer, _ = chain_from(reply(chain_body(contract(), expiries=BOTH)), reply(chain_body(expiry=MAR, expiries=BOTH)))
    assert (len(answer.contracts), answer.complete) == (1, False)


def test_an_expiry_that_nobody_listed_and_that_holds_nothing_is_complete() -> None:
    """Recorded: asked for 2022-03-01, Yahoo lists what there is and answers with empty calls and puts."""
    answer, _ = chain_from(reply(chain_body(expiry=1646092800, expiries=BOTH)), expiry=date(2022, 3, 1))
    assert (list(answer.contracts), answer.complete) == ([], True)


def test_once_yahoo_says_too_many_the_expiries_left_are_not_asked_for() -> None:
    expiries = (FEB, MAR, 1743724800, 1744848000)
    answer, server = chain_from(reply(chain_body(contract(), expiries=expiries)), Reply(status=429, body=b"Too Many Requests\r\n"))
    assert len(server.requests) == 4
    assert (answer.complete, answer.fetch.dropped) == (False, {"missing_expiry": 3})
    assert "2025-04-17: not asked for after rate_limited" in str(answer.fetch.error)


def test_a_contract_listed_under_two_expiries_is_kept_once() -> None:
    twin = chain_body(MARCH, MARCH, expiry=MAR, expiries=BOTH)
    answer, _ = chain_from(reply(chain_body(contract(), expiries=BOTH)), reply(twin))
    assert [c.contract for c in answer.contracts] == ["AAPL250228C00110000", "AAPL250307C00110000"]
    assert (len(answer.refused), answer.fetch.dropped) == (1, {"refused": 1})


def test_a_chain_of_which_nothing_came_is_an_error_with_its_provenance() -> None:
    error, _ = failure_of(
        *PASS,
        reply(b'{"optionChain":{"result":[],"error":null}}'),
        ask=lambda yahoo: yahoo.fetch_chain("NOPE", expiry=None, priority=HISTORY, now=NOW),
    )
    assert isinstance(error, UnknownSymbolError)
    assert error.fetch is not None
    assert (error.fetch.capability, error.fetch.symbol, error.fetch.attempts) == (OPTIONS_CHAIN, "NOPE", 3)


def test_without_a_date_of_its_own_a_chain_was_taken_when_it_was_asked_for() -> None:
    answer, _ = chain_from(Reply(body=chain_body(contract()), headers=JSON))
    assert answer.taken_at == NOW


# --- secrets -----------------------------------------------------------------------------------------------------------


def test_neither_cookie_nor_crumb_is_in_anything_that_is_kept_said_or_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    said: list[str] = []
    two = chain_body(contract(), expiries=BOTH)
    echo = reply(f'{{"finance":{{"error":{{"code":"Unauthorized","description":"{CRUMB} {COOKIE}"}}}}}}'.encode(), 401)
    mirror = Reply(status=500, body=f"you sent A3={COOKIE} {COOKIE}".encode())
    with (
        Loopback(*PASS, reply(quotes_body(quote())), reply(two), Reply(status=503, body=CRUMB.encode())) as server,
        client() as http,
    ):
        yahoo = yahoo_at(server.url, http)
        said.append(repr(asdict(yahoo.fetch_quotes(["AAPL"], priority=HISTORY, now=NOW).fetch)))
        said.append(repr(asdict(yahoo.fetch_chain("AAPL", expiry=None, priority=HISTORY, now=NOW).fetch)))
        said += [repr(vars(yahoo)), repr(yahoo._session), repr(yahoo._session._held)]  # noqa: SLF001 - what a debugger would print
    for replies in (
        (*PASS, echo, *PASS, echo),
        (*PASS, Reply(status=500, body=f"{COOKIE} {CRUMB}".encode())),
        (COOKIE_PAGE, mirror),
    ):
        error, _ = failure_of(*replies)
        said += [repr(error), str(error), repr(asdict(error.fetch)) if error.fetch else ""]
    everything = "\n".join([*said, *(record.getMessage() for record in caplog.records)])
    assert CRUMB not in everything
    assert COOKIE not in everything
    assert COOKIE[:20] not in everything
