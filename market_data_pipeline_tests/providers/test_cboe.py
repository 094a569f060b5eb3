"""What CBOE's delayed files are asked for and what they mean: one test a fact of the wire."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.capabilities import EOD, HISTORY, OPTIONS_CHAIN, QUOTES_L1, Feed, Stamp
from market_data_pipeline.domain.errors import (
    EntitlementError,
    OutOfReachError,
    PayloadError,
    ProviderError,
    RateLimitedError,
    StaleError,
    TransientError,
    UnknownSymbolError,
)
from market_data_pipeline.domain.ports import BarsProvider, BarsRequest, ChainProvider, QuotesProvider
from market_data_pipeline.providers.answer_cache import AnswerCache
from market_data_pipeline.providers.cboe import CboeProvider, parse_days, parse_minutes
from market_data_pipeline.providers.http import HttpClient, HttpPolicy
from market_data_pipeline_tests.providers.loopback import Loopback, Reply

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from market_data_pipeline.domain.ports import ChainAnswer, OptionQuote, Quote, QuotesAnswer

NOW = datetime(2026, 7, 24, 19, 44, 38, tzinfo=UTC)
TODAY = datetime(2026, 7, 24, 13, 30, tzinfo=UTC)
MINUTES = BarsRequest("AAPL", Interval.M1, int(TODAY.timestamp()), int(TODAY.timestamp()) + 390 * 60)
DAYS = BarsRequest(
    "AAPL",
    Interval.D1,
    int(datetime(2026, 7, 20, 13, 30, tzinfo=UTC).timestamp()),
    int(datetime(2026, 7, 22, 20, tzinfo=UTC).timestamp()),
)
JSON = {"Content-Type": "application/json", "Last-Modified": "Fri, 24 Jul 2026 19:44:40 GMT"}
DENIED = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>'


def underlying(**changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """The record of a share, valid except for what is given; ... leaves a field out."""
    record: dict[str, Any] = {
        "symbol": "AAPL",
        "security_type": "stock",
        "current_price": 333.8,
        "bid": 333.72,
        "ask": 333.86,
        "bid_size": 40,
        "ask_size": 960,
        "prev_day_close": 333.02,
        "volume": 47489415,
        "last_trade_time": "2026-07-24T15:29:59",
        **changes,
    }
    return {name: value for name, value in record.items() if value is not ...}


def contract(name: str = "AAPL260821C00330000", **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    record: dict[str, Any] = {
        "option": name,
        "bid": 12.1,
        "bid_size": 31.0,
        "ask": 12.4,
        "ask_size": 45.0,
        "iv": 0.277,
        "open_interest": 3344.0,
        "volume": 463.0,
        "delta": 0.55,
        "gamma": 0.0119,
        "vega": 0.3978,
        "theta": -0.1204,
        "rho": 0.193,
        "last_trade_price": 12.2,
        "last_trade_time": "2026-07-24T15:13:49",
        **changes,
    }
    return {field: value for field, value in record.items() if value is not ...}


def quote_body(timestamp: object = "2026-07-24 19:44:38", symbol: str = "AAPL", **changes: Any) -> bytes:  # noqa: ANN401
    return json.dumps({"timestamp": timestamp, "data": underlying(symbol=symbol, **changes), "symbol": symbol}).encode()


def chain_body(*contracts: object, timestamp: object = "2026-07-24 19:44:38", symbol: str = "AAPL", **changes: Any) -> bytes:  # noqa: ANN401
    data = {"options": list(contracts), **underlying(symbol=symbol, **changes)}
    return json.dumps({"timestamp": timestamp, "data": data, "symbol": symbol}).encode()


def days_body(*rows: object, symbol: str = "AAPL") -> bytes:
    return json.dumps({"timestamp": "11:00:17", "data": list(rows), "symbol": symbol}).encode()


def day(session: str = "2026-07-21", **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    record = {"date": session, "volume": 41338917, "open": 323.44, "high": 329.6, "low": 322.22, "close": 327.74, **changes}
    return {name: value for name, value in record.items() if value is not ...}


def minute(label: str, price: float = 333.0, volume: float = 1000) -> dict[str, Any]:
    high, low = (price + 0.5, price - 0.5) if price else (0, 0)
    options = {"calls_volume": 12, "puts_volume": 7, "total_options_volume": 19}
    return {
        "datetime": f"2026-07-24T{label}",
        "price": {"open": price, "high": high, "low": low, "close": price},
        "volume": {"stock_volume": volume, **options},
    }


def minutes_body(*rows: object, symbol: str = "AAPL") -> bytes:
    return json.dumps({"timestamp": "2026-07-24 19:44:38", "data": list(rows), "symbol": symbol}).encode()


def cboe_at(url: str, http: HttpClient) -> CboeProvider:
    return CboeProvider(http, base_url=url, user_agent="test-agent")


def client() -> HttpClient:
    return HttpClient(HttpPolicy(timeout_seconds=5.0, attempts=2), sleep=lambda _: None)


def reply(body: bytes) -> Reply:
    return Reply(body=body, headers=JSON)


def quotes_from(body: bytes, symbol: str = "AAPL") -> tuple[QuotesAnswer, Loopback]:
    with Loopback(reply(body)) as server, client() as http:
        return cboe_at(server.url, http).fetch_quotes([symbol], priority=HISTORY, now=NOW), server


def chain_from(body: bytes, symbol: str = "AAPL", expiry: date | None = None) -> ChainAnswer:
    with Loopback(reply(body)) as server, client() as http:
        return cboe_at(server.url, http).fetch_chain(symbol, expiry=expiry, priority=HISTORY, now=NOW)


def one(**changes: Any) -> Quote:  # noqa: ANN401
    (found,) = quotes_from(quote_body(**changes))[0].quotes
    return found


def one_contract(**changes: Any) -> OptionQuote:  # noqa: ANN401
    (found,) = chain_from(chain_body(contract(**changes))).contracts
    return found


def chain_of(cboe: CboeProvider) -> object:
    return cboe.fetch_chain("AAPL", expiry=None, priority=HISTORY, now=NOW)


def failure_of(answered: Reply, ask: Callable[[CboeProvider], object] = chain_of) -> tuple[ProviderError, int]:
    with Loopback(answered) as server, client() as http:
        with pytest.raises(ProviderError) as raised:
            ask(cboe_at(server.url, http))
        return raised.value, len(server.requests)


# --- what it can do ----------------------------------------------------------------------------------------------------


def test_it_serves_bars_quotes_and_chains_a_quarter_of_an_hour_late() -> None:
    with client() as http:
        cboe = cboe_at("http://127.0.0.1:1", http)
    assert isinstance(cboe, BarsProvider)
    assert isinstance(cboe, QuotesProvider)
    assert isinstance(cboe, ChainProvider)
    can = {capability.name: capability for capability in cboe.capabilities}
    assert set(can) == {"bars_1m", EOD, QUOTES_L1, OPTIONS_CHAIN}
    assert (can["bars_1m"].stamp, can["bars_1m"].feed, can["bars_1m"].reach_seconds) == (Stamp.CLOSE, Feed.CBOE, 86_400)
    assert (can[EOD].stamp, can[EOD].feed, can[QUOTES_L1].feed) == (Stamp.DATE, Feed.CONSOLIDATED, Feed.CBOE)
    assert {can[name].delay_seconds for name in ("bars_1m", QUOTES_L1, OPTIONS_CHAIN)} == {900}


@pytest.mark.parametrize(("symbol", "file"), [("AAPL", "AAPL"), ("^SPX", "_SPX"), ("_VIX", "_VIX"), ("BRK.B", "BRK.B")])
def test_an_index_has_an_underscore_before_its_name(symbol: str, file: str) -> None:
    _, server = quotes_from(quote_body(symbol=symbol), symbol)
    assert [request.path for request in server.requests] == [f"/api/global/delayed_quotes/quotes/{file}.json"]
    assert server.requests[0].headers["user-agent"] == "test-agent"


@pytest.mark.parametrize("echoed", ["_SPX", "^SPX", "SPX", "spx"])
def test_an_index_may_be_echoed_as_anybody_writes_it(echoed: str) -> None:
    assert [q.symbol for q in quotes_from(quote_body(symbol=echoed), "^SPX")[0].quotes] == ["^SPX"]


# --- quotes ------------------------------------------------------------------------------------------------------------


def test_a_quote_is_stamped_in_utc_and_its_trade_in_new_york() -> None:
    found = one()
    assert found.quoted_at == datetime(2026, 7, 24, 19, 44, 38, tzinfo=UTC)
    assert found.last_at == datetime(2026, 7, 24, 19, 29, 59, tzinfo=UTC)
    assert (found.bid, found.ask, found.last) == (333.72, 333.86, 333.8)
    assert (found.bid_size, found.ask_size, found.volume) == (40.0, 960.0, 47489415.0)
    assert (found.previous_close, found.currency, found.delay_seconds) == (333.02, "USD", 900)


def test_in_winter_new_york_is_five_hours_behind() -> None:
    assert one(last_trade_time="2026-01-15T15:29:59").last_at == datetime(2026, 1, 15, 20, 29, 59, tzinfo=UTC)


def test_a_file_that_says_only_the_time_of_day_is_as_old_as_the_cdn_says() -> None:
    assert one(timestamp="11:00:17").quoted_at == datetime(2026, 7, 24, 19, 44, 40, tzinfo=UTC)


def test_a_bid_of_zero_is_none_and_so_is_its_size() -> None:
    found = one(bid=0.0, bid_size=0)
    assert (found.bid, found.bid_size, found.ask, found.ask_size) == (None, None, 333.86, 960.0)


def test_numbers_of_an_index_come_as_text() -> None:
    found = one(current_price="6321.51", bid="0.00", ask="0.00", volume=..., prev_day_close="6300.10")
    assert (found.last, found.bid, found.ask, found.volume, found.previous_close) == (6321.51, None, None, None, 6300.1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bid": -1}, "bid is negative: -1"),
        ({"last_trade_time": "yesterday"}, "last_trade_time is no time: 'yesterday'"),
        ({"last_trade_time": "9999-12-31T23:59:59"}, "last_trade_time is no time: '9999-12-31T23:59:59'"),
        ({"last_trade_time": "2026-02-30T10:00:00"}, "last_trade_time is no time: '2026-02-30T10:00:00'"),
        ({"bid": 0, "ask": 0, "current_price": 0}, "AAPL has no bid, no ask and no last price"),
    ],
)
def test_a_quote_that_breaks_a_law_is_refused_with_its_reason(changes: dict[str, Any], reason: str) -> None:
    answer, _ = quotes_from(quote_body(**changes))
    assert (list(answer.quotes), list(answer.unknown)) == ([], [])
    assert [r.reason for r in answer.refused] == [reason]
    assert answer.fetch.dropped == {"refused": 1}


def test_a_last_trade_in_2000_means_that_it_never_traded() -> None:
    error, _ = failure_of(
        reply(quote_body(last_trade_time="2000-01-01T00:00:00")),
        lambda cboe: cboe.fetch_quotes(["AAPL"], priority=HISTORY, now=NOW),
    )
    assert isinstance(error, StaleError)


def test_a_symbol_without_a_file_is_unknown() -> None:
    with Loopback(Reply(status=403, body=DENIED, headers={"Content-Type": "application/xml"})) as server, client() as http:
        answer = cboe_at(server.url, http).fetch_quotes(["NOPE"], priority=HISTORY, now=NOW)
    assert (list(answer.unknown), list(answer.quotes), answer.fetch.status) == (["NOPE"], [], 403)


@pytest.mark.parametrize("symbols", [[], ["AAPL", "MSFT"]])
def test_quotes_are_asked_for_one_by_one(symbols: list[str]) -> None:
    with Loopback(reply(quote_body())) as server, client() as http:
        with pytest.raises(OutOfReachError):
            cboe_at(server.url, http).fetch_quotes(symbols, priority=HISTORY, now=NOW)
        assert server.requests == []


# --- chains ------------------------------------------------------------------------------------------------------------


def test_a_contract_is_what_its_name_says_with_greeks_as_sent() -> None:
    found = one_contract()
    assert (found.root, found.expiry, found.strike, found.right) == ("AAPL", date(2026, 8, 21), 330.0, "C")
    assert (found.bid, found.ask, found.bid_size, found.ask_size) == (12.1, 12.4, 31.0, 45.0)
    assert (found.last, found.last_at) == (12.2, datetime(2026, 7, 24, 19, 13, 49, tzinfo=UTC))
    assert (found.volume, found.open_interest, found.iv) == (463.0, 3344.0, 0.277)
    assert (found.delta, found.gamma, found.vega, found.theta, found.rho) == (0.55, 0.0119, 0.3978, -0.1204, 0.193)


def test_a_contract_that_never_traded_has_no_last_price() -> None:
    found = one_contract(last_trade_price=0.0, last_trade_time=None)
    assert (found.last, found.last_at) == (None, None)


def test_zero_is_no_bid_and_no_volatility_but_an_amount() -> None:
    found = one_contract(bid=0.0, bid_size=0.0, iv=0.0, volume=0.0, open_interest=0.0)
    assert (found.bid, found.bid_size, found.iv, found.volume, found.open_interest) == (None, None, None, 0.0, 0.0)


def test_greeks_that_are_all_zero_were_not_computed_while_one_alone_may_be_zero() -> None:
    none = one_contract(delta=0.0, gamma=0.0, vega=0.0, theta=0.0, rho=0.0)
    assert {none.delta, none.gamma, none.vega, none.theta, none.rho} == {None}
    deep = one_contract(delta=1.0, gamma=0.0, vega=0.0, theta=0.0, rho=0.0)
    assert (deep.delta, deep.gamma) == (1.0, 0.0)


def test_a_weekly_of_an_index_keeps_its_class() -> None:
    answer = chain_from(chain_body(contract("SPXW260918P05432500"), symbol="^SPX"), "^SPX")
    assert [(c.root, c.strike) for c in answer.contracts] == [("SPXW", 5432.5)]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (contract(bid=-1), "bid is negative: -1"),
        (contract(iv="NaN"), "iv is no number: 'NaN'"),
        (contract(option=None), "no name of a contract: None"),
        (contract(last_trade_time="soon"), "last_trade_time is no time: 'soon'"),
        ([], "no object: []"),
    ],
)
def test_a_contract_that_breaks_a_law_is_refused_and_costs_no_other(record: object, reason: str) -> None:
    answer = chain_from(chain_body(record, contract("AAPL260821P00330000")))
    assert [c.right for c in answer.contracts] == ["P"]
    assert [r.reason for r in answer.refused] == [reason]
    assert (answer.fetch.rows, answer.fetch.dropped) == (1, {"refused": 1})


def test_of_two_contracts_with_one_name_the_first_is_kept() -> None:
    answer = chain_from(chain_body(contract(), contract(bid=1)))
    assert [c.bid for c in answer.contracts] == [12.1]
    assert [r.reason for r in answer.refused] == ["a second record of AAPL260821C00330000"]


def test_a_chain_has_one_moment_the_file_was_made_at() -> None:
    answer = chain_from(chain_body(contract()))
    assert (answer.taken_at, answer.spot, answer.complete) == (datetime(2026, 7, 24, 19, 44, 38, tzinfo=UTC), 333.8, True)
    assert (answer.fetch.capability, answer.fetch.interval) == (OPTIONS_CHAIN, None)


def test_of_one_expiry_asked_for_the_others_are_counted() -> None:
    answer = chain_from(chain_body(contract(), contract("AAPL260918C00330000")), expiry=date(2026, 9, 18))
    assert [c.contract for c in answer.contracts] == ["AAPL260918C00330000"]
    assert answer.fetch.dropped == {"not_asked": 1}


def test_an_underlying_that_never_traded_has_no_spot_and_without_contracts_no_chain() -> None:
    never = "2000-01-01T00:00:00"
    assert chain_from(chain_body(contract(), last_trade_time=never)).spot is None
    assert isinstance(failure_of(reply(chain_body(last_trade_time=never)))[0], StaleError)


def test_a_broken_underlying_costs_the_spot_and_not_the_chain() -> None:
    answer = chain_from(chain_body(contract(), current_price=-1, last_trade_time="soon"))
    assert (answer.spot, len(answer.contracts)) == (None, 1)


# --- bars --------------------------------------------------------------------------------------------------------------


def label(session: str) -> int:
    return int(datetime.fromisoformat(f"{session}T00:00:00+00:00").timestamp())


def test_days_are_named_by_their_session_and_the_rest_of_history_is_counted() -> None:
    sessions = ["2004-01-02", "2026-07-17", "2026-07-20", "2026-07-21", "2026-07-22", "2026-07-23"]
    parsed, newest = parse_days(days_body(*(day(session) for session in sessions)), DAYS)
    assert parsed.columns.opened_at.tolist() == [label("2026-07-20"), label("2026-07-21"), label("2026-07-22")]
    assert (parsed.received, parsed.dropped) == (6, {"outside_window": 3})
    assert newest == int(datetime(2026, 7, 23, 20, tzinfo=UTC).timestamp())
    assert (parsed.columns.close[0], parsed.columns.volume[0]) == (327.74, 41338917.0)


def test_days_of_an_index_are_text_without_volume() -> None:
    row = {name: f"{value}" if name != "date" else value for name, value in day(volume=...).items()}
    request = BarsRequest("^SPX", Interval.D1, DAYS.start, DAYS.end)
    parsed, _ = parse_days(days_body(row, symbol="_SPX"), request)
    assert (parsed.columns.close.tolist(), parsed.columns.volume.tolist()) == ([327.74], [0.0])
    assert parsed.flags.tolist() == [0]


def test_a_day_that_lacks_a_value_keeps_its_row_for_the_judge() -> None:
    parsed, _ = parse_days(days_body(day("2026-07-20", volume=...), day("2026-07-21", close="n/a"), day("2026-07-22")), DAYS)
    assert parsed.columns.obeys_ohlc_laws().tolist() == [False, False, True]


@pytest.mark.parametrize("row", [day(date=None), day(date="21.07.2026"), day(date="2026-02-30"), "2026-07-21"])
def test_a_row_without_a_date_makes_the_file_worthless(row: object) -> None:
    with pytest.raises(PayloadError):
        parse_days(days_body(row), DAYS)


def test_minutes_are_named_by_their_close_in_new_york_and_handed_out_by_their_open() -> None:
    parsed, newest = parse_minutes(minutes_body(minute("09:31:00"), minute("09:32:00", 334.0), minute("16:00:00", 335.0)), MINUTES)
    opens = [
        datetime(2026, 7, 24, 13, 30, tzinfo=UTC),
        datetime(2026, 7, 24, 13, 31, tzinfo=UTC),
        datetime(2026, 7, 24, 19, 59, tzinfo=UTC),
    ]
    assert parsed.columns.opened_at.tolist() == [int(at.timestamp()) for at in opens]
    assert parsed.columns.close.tolist() == [333.0, 334.0, 335.0]
    assert newest == int(datetime(2026, 7, 24, 20, tzinfo=UTC).timestamp())


def test_minutes_of_zeros_are_no_information() -> None:
    rows = (minute("09:31:00"), minute("09:32:00", 0, 0), minute("09:33:00", 334.0), minute("09:34:00", 0, 0))
    parsed, newest = parse_minutes(minutes_body(*rows), MINUTES)
    assert parsed.columns.opened_at.tolist() == [MINUTES.start, MINUTES.start + 120]
    assert parsed.null_opened_at.tolist() == [MINUTES.start + 60, MINUTES.start + 180]
    assert newest == MINUTES.start + 180


def test_a_minute_of_zeros_with_volume_is_a_broken_row() -> None:
    parsed, _ = parse_minutes(minutes_body(minute("09:31:00", 0, 500)), MINUTES)
    assert len(parsed.columns) == 1
    assert np.all(parsed.columns.close == 0)


@pytest.mark.parametrize(
    "row",
    [{"datetime": "2026-07-24T09:31:00"}, {**minute("09:31:00"), "datetime": "soon"}, {**minute("09:31:00"), "price": None}, 5],
)
def test_a_row_that_is_no_minute_makes_the_file_worthless(row: object) -> None:
    with pytest.raises(PayloadError):
        parse_minutes(minutes_body(row), MINUTES)


def test_bars_are_fetched_with_their_provenance() -> None:
    body = days_body(day("2026-07-20"), day("2026-07-23"))
    with Loopback(reply(body)) as server, client() as http:
        answer = cboe_at(server.url, http).fetch_bars(DAYS, now=NOW)
    assert [request.path for request in server.requests] == ["/api/global/delayed_quotes/charts/historical/AAPL.json"]
    assert (answer.fetch.rows, answer.fetch.dropped, answer.fetch.interval) == (1, {"outside_window": 1}, Interval.D1)
    assert (answer.newest, answer.currency, answer.flags) == (label("2026-07-23") + 20 * 3600, "USD", None)


@pytest.mark.parametrize(
    "request_",
    [
        BarsRequest("AAPL", Interval.M1, MINUTES.start - 86_400, MINUTES.end - 86_400),
        BarsRequest("AAPL", Interval.H1, MINUTES.start, MINUTES.end),
        BarsRequest("AAPL", Interval.M1, MINUTES.start, MINUTES.start),
    ],
)
def test_what_no_file_holds_is_refused_before_anything_is_sent(request_: BarsRequest) -> None:
    error, requests = failure_of(reply(b"{}"), lambda cboe: cboe.fetch_bars(request_, now=NOW))
    assert (type(error), requests) == (OutOfReachError, 0)
    assert error.fetch is not None


# --- how a call ends ---------------------------------------------------------------------------------------------------

HTML = {"Content-Type": "text/html"}


@pytest.mark.parametrize(
    ("answered", "expected", "requests"),
    [
        (Reply(status=403, body=DENIED, headers={"Content-Type": "application/xml"}), UnknownSymbolError, 1),
        (Reply(status=404, body=b"<html></html>", headers=HTML), UnknownSymbolError, 1),
        (Reply(status=403, body=b"<html>Access denied | cdn.cboe.com used Cloudflare</html>", headers=HTML), EntitlementError, 1),
        (Reply(status=302, headers={"Location": "https://www.cboe.com/elsewhere"}), TransientError, 2),
        (Reply(status=307, headers={"Location": "https://www.cboe.com/elsewhere"}), TransientError, 2),
        (Reply(body=b"<html>maintenance</html>", headers=HTML), TransientError, 2),
        (Reply(status=503), TransientError, 2),
        (Reply(status=429), RateLimitedError, 1),
        (Reply(status=206, body=b"{}"), PayloadError, 1),
        (reply(b""), TransientError, 2),
        (reply(chain_body(contract())[:-1]), TransientError, 2),
        (reply(b"[]"), PayloadError, 1),
        (reply(b'{"symbol":"AAPL"}'), PayloadError, 1),
        (reply(chain_body(symbol="MSFT")), PayloadError, 1),
        (reply(b'{"symbol":"AAPL","data":{"symbol":"MSFT","options":[]}}'), PayloadError, 1),
        (Reply(body=chain_body(timestamp=None), headers={"Content-Type": "application/json"}), PayloadError, 1),
        (Reply(body=chain_body(timestamp="2026-13-40 00:00:00")), PayloadError, 1),
    ],
)
def test_every_way_a_call_can_end_has_a_class(answered: Reply, expected: type[ProviderError], requests: int) -> None:
    error, sent = failure_of(answered)
    assert (type(error), sent) == (expected, requests)
    assert error.fetch is not None
    assert (error.fetch.outcome, error.fetch.attempts, error.fetch.capability) == (error.kind, requests, OPTIONS_CHAIN)
    assert error.__context__ is None


def test_a_file_that_still_stands_is_not_sent_again(tmp_path: Path) -> None:
    body = chain_body(contract())
    first = Reply(body=body, headers={**JSON, "ETag": '"7"'})
    unchanged = Reply(status=304, headers={"ETag": '"7"'})
    with Loopback(first, unchanged) as server, HttpClient(cache=AnswerCache(tmp_path / "answers.db")) as http:
        cboe = cboe_at(server.url, http)
        one, two = (cboe.fetch_chain("AAPL", expiry=None, priority=HISTORY, now=NOW) for _ in range(2))
    assert server.requests[1].headers["if-none-match"] == '"7"'
    assert (one.contracts, one.taken_at) == (two.contracts, two.taken_at)
