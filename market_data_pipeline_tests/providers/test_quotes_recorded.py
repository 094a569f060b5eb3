"""The parsers of quotes, chains and CBOE's files on bodies that were really sent (../shared/data/README.md); none is kept here.

What there is to find is counted in the raw JSON with the standard library, never by the code under test.
"""

from __future__ import annotations

import gzip
import json
import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from zoneinfo import ZoneInfo

import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.ports import BarsRequest
from market_data_pipeline.providers.cboe import parse_chain, parse_days, parse_quote
from market_data_pipeline.providers.http import HttpAnswer
from market_data_pipeline.providers.yahoo_options import parse_options
from market_data_pipeline.providers.yahoo_quotes import parse_quotes

RECORDED = Path(__file__).parents[3] / "shared" / "data" / "recorded"
YAHOO = RECORDED / "yahoo_wire_yf2"
OLD = RECORDED / "yahoo_wire_other" / "pdr_yahoo_options1.json"
CBOE = RECORDED / "cboe_openbb_vcr"
NEW_YORK = ZoneInfo("America/New_York")

pytestmark = pytest.mark.skipif(not YAHOO.is_dir() or not CBOE.is_dir(), reason=f"no recorded bodies at {RECORDED}")


def recordings(service: str) -> list[tuple[Path, str]]:
    """Every recorded body of ``service`` with the URL it answered."""
    index = YAHOO / "INDEX.jsonl"
    lines = index.read_text().splitlines() if index.is_file() else []
    entries = [json.loads(line) for line in lines]
    return [(YAHOO / entry["file"], entry["url"]) for entry in entries if f"/v7/finance/{service}" in entry["url"]]


def chains() -> list[tuple[Path, str]]:
    found = [(path, unquote(urlsplit(url).path.rpartition("/")[2])) for path, url in recordings("options")]
    return [*found, (OLD, "AAPL")] if OLD.is_file() else found


def name_of(value: object) -> str:
    return value.name if isinstance(value, Path) else ""


def test_there_are_recordings_of_every_kind_we_lean_on() -> None:
    assert (len(recordings("quote")), len(chains())) == (16, 6)


# --- Yahoo's quotes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "url"), recordings("quote"), ids=name_of)
def test_every_recorded_quote_is_told_or_is_a_symbol_without_a_price(path: Path, url: str) -> None:
    symbols = parse_qs(urlsplit(url).query)["symbols"][0].split(",")
    raw = json.loads(path.read_bytes())["quoteResponse"]["result"]
    parsed = parse_quotes(path.read_bytes(), symbols)
    priced = [record for record in raw if "regularMarketPrice" in record]
    assert len(raw) == parsed.received == len(parsed.quotes) + len(parsed.refused) + len(parsed.hollow)
    assert list(parsed.refused) == []
    assert [quote.symbol for quote in parsed.quotes] == [record["symbol"] for record in priced]
    assert set(parsed.unknown) == set(symbols) - {record["symbol"] for record in priced}


@pytest.mark.parametrize(("path", "url"), recordings("quote"), ids=name_of)
def test_every_recorded_quote_has_the_prices_that_were_sent(path: Path, url: str) -> None:
    raw = {record["symbol"]: record for record in json.loads(path.read_bytes())["quoteResponse"]["result"]}
    for quote in parse_quotes(path.read_bytes(), parse_qs(urlsplit(url).query)["symbols"][0].split(",")).quotes:
        sent: dict[str, Any] = raw[quote.symbol]
        newest = "post" if "postMarketPrice" in sent else "regular"
        assert (quote.bid, quote.ask, quote.last) == (sent.get("bid"), sent.get("ask"), sent[f"{newest}MarketPrice"])
        assert quote.last_at == datetime.fromtimestamp(sent[f"{newest}MarketTime"], UTC)
        assert (quote.volume, quote.currency) == (sent["regularMarketVolume"], sent["currency"])


def test_recorded_sizes_are_lots_on_the_tape_and_shares_over_the_counter() -> None:
    sizes = {}
    for path, url in recordings("quote"):
        for quote in parse_quotes(path.read_bytes(), parse_qs(urlsplit(url).query)["symbols"][0].split(",")).quotes:
            sizes[quote.symbol] = (quote.bid_size, quote.ask_size)
    assert sizes["AAPL"] == (200.0, 100.0)
    assert sizes["BABA"] == (1200.0, 1800.0)
    assert sizes["AFRAF"] == (385.0, 400.0)
    assert sizes["AZT.OL"] == sizes["EURUSD=X"] == sizes["BTC-USD"] == (None, None)


# --- Yahoo's chains ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "symbol"), chains(), ids=name_of)
def test_every_recorded_contract_is_told(path: Path, symbol: str) -> None:
    (raw,) = json.loads(path.read_bytes())["optionChain"]["result"]
    sent = [record for page in raw["options"] for record in page["calls"] + page["puts"]]
    parsed = parse_options(path.read_bytes(), symbol)
    assert len(sent) == parsed.received == len(parsed.contracts) + len(parsed.refused)
    assert list(parsed.refused) == []
    assert [contract.contract for contract in parsed.contracts] == [record["contractSymbol"] for record in sent]
    assert list(parsed.expiries) == raw["expirationDates"]
    assert parsed.spot == raw["quote"].get(
        "preMarketPrice", raw["quote"].get("postMarketPrice", raw["quote"].get("regularMarketPrice"))
    )


@pytest.mark.parametrize(("path", "symbol"), chains(), ids=name_of)
def test_every_recorded_contract_has_the_values_that_were_sent_and_none_for_zero_and_absent(path: Path, symbol: str) -> None:
    (raw,) = json.loads(path.read_bytes())["optionChain"]["result"]
    sent = {record["contractSymbol"]: record for page in raw["options"] for record in page["calls"] + page["puts"]}
    for contract in parse_options(path.read_bytes(), symbol).contracts:
        record = sent[contract.contract]
        assert (contract.bid or 0, contract.ask or 0, contract.last) == (record["bid"], record["ask"], record["lastPrice"])
        assert 0 not in {contract.bid, contract.ask}
        assert (contract.volume, contract.open_interest) == (record.get("volume"), record["openInterest"])
        assert contract.iv == (record["impliedVolatility"] if record["impliedVolatility"] > 0.0001 else None)
        assert contract.last_at == datetime.fromtimestamp(record["lastTradeDate"], UTC)
        assert contract.expiry == (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=record["expiration"])).date()
        assert contract.strike == record["strike"]
        assert contract.right == ("C" if record in [c for page in raw["options"] for c in page["calls"]] else "P")


def test_an_expiry_that_does_not_exist_is_answered_with_an_empty_page() -> None:
    parsed = parse_options((YAHOO / "options-AAPL-expire-2022-03-01.json").read_bytes(), "AAPL", expiry=1646092800)
    assert (parsed.expiry, list(parsed.contracts), len(parsed.expiries)) == (1646092800, [], 20)


@pytest.mark.parametrize(("name", "symbol"), [("options-ADH.json", "ADH"), ("options-OCDO.L.json", "OCDO.L")])
def test_an_underlying_without_options_has_an_empty_chain(name: str, symbol: str) -> None:
    parsed = parse_options((YAHOO / name).read_bytes(), symbol)
    assert (parsed.expiry, list(parsed.expiries), list(parsed.contracts)) == (None, [], [])


# --- CBOE --------------------------------------------------------------------------------------------------------------


def recorded_answer(pattern: str) -> HttpAnswer:
    """A recorded body with the headers that came with it."""
    (path,) = CBOE.glob(pattern)
    entries = [json.loads(line) for line in (CBOE / "INDEX.jsonl").read_text().splitlines()]
    headers: dict[str, str] = next((entry["headers"] for entry in entries if entry["file"] == path.name), {})
    body = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return HttpAnswer(
        status=200, headers={name.lower(): text for name, text in headers.items()}, body=body, latency_seconds=0.0, request=""
    )


def test_every_recorded_contract_of_cboe_is_told_with_the_values_that_were_sent() -> None:
    answer = recorded_answer("*options__AAPL*")
    sent = json.loads(answer.body)["data"]["options"]
    parsed = parse_chain(answer, "AAPL")
    assert (len(sent), parsed.received, len(parsed.contracts), list(parsed.refused)) == (3576, 3576, 3576, [])
    for contract, record in zip(parsed.contracts, sent, strict=True):
        digits = re.fullmatch(r"AAPL(\d\d)(\d\d)(\d\d)([CP])(\d{8})", record["option"])
        assert digits is not None
        assert contract.expiry == date(2000 + int(digits[1]), int(digits[2]), int(digits[3]))
        assert (contract.right, contract.strike, contract.root) == (digits[4], int(digits[5]) / 1000, "AAPL")
        assert (contract.bid or 0, contract.ask, contract.iv or 0) == (record["bid"], record["ask"], record["iv"])
        assert (contract.last or 0, contract.volume, contract.open_interest) == (
            record["last_trade_price"],
            record["volume"],
            record["open_interest"],
        )
        assert [getattr(contract, g) or 0 for g in ("delta", "gamma", "vega", "theta", "rho")] == [
            record[g] for g in ("delta", "gamma", "vega", "theta", "rho")
        ]


def test_what_cboe_has_nothing_of_is_none_as_often_as_it_was_zero_or_null() -> None:
    answer = recorded_answer("*options__AAPL*")
    contracts = parse_chain(answer, "AAPL").contracts
    counts = {
        name: sum(getattr(contract, name) is None for contract in contracts)
        for name in ("bid", "ask", "iv", "last", "last_at", "delta")
    }
    assert counts == {"bid": 448, "ask": 0, "iv": 354, "last": 598, "last_at": 598, "delta": 33}


def test_the_recorded_chain_was_taken_at_night_and_its_trades_are_of_the_afternoon_before() -> None:
    parsed = parse_chain(recorded_answer("*options__AAPL*"), "AAPL")
    assert parsed.taken_at == datetime(2026, 7, 25, 3, 44, 38, tzinfo=UTC)
    newest = max(contract.last_at for contract in parsed.contracts if contract.last_at)
    assert newest == datetime(2026, 7, 24, 15, 59, 59, tzinfo=NEW_YORK)
    assert parsed.spot == 333.8


def test_the_recorded_quote_is_told() -> None:
    quotes, refused = parse_quote(recorded_answer("*quotes__AAPL*b47395*"), "AAPL")
    assert refused == []
    assert [(q.bid, q.ask, q.bid_size, q.ask_size, q.last, q.volume) for q in quotes] == [
        (333.72, 333.86, 40, 960, 333.8, 47489415)
    ]
    assert quotes[0].quoted_at == datetime(2026, 7, 25, 21, 2, 4, tzinfo=UTC)


def test_every_recorded_day_is_a_bar_with_the_values_that_were_sent() -> None:
    answer = recorded_answer("*charts__historical__AAPL*")
    sent = json.loads(answer.body)["data"]
    parsed, newest = parse_days(answer.body, BarsRequest("AAPL", Interval.D1, 0, 4_000_000_000))
    assert (len(sent), parsed.received, len(parsed.columns), parsed.dropped) == (5675, 5675, 5675, {})
    days = [datetime.fromtimestamp(at, UTC).date().isoformat() for at in parsed.columns.opened_at.tolist()]
    assert days == [row["date"] for row in sent]
    for name in ("open", "high", "low", "close", "volume"):
        assert getattr(parsed.columns, name).tolist() == [row[name] for row in sent]
    assert newest == datetime(2026, 7, 23, 16, tzinfo=NEW_YORK).timestamp()
    # Rounded to two decimals, these no longer enclose their open and close: the judge refuses them, each with its reason.
    unlawful = [r for r in sent if r["low"] > min(r["open"], r["close"]) or r["high"] < max(r["open"], r["close"])]
    assert len(unlawful) == int((~parsed.columns.obeys_ohlc_laws()).sum()) == 15


def test_what_is_no_file_of_ours_is_no_quote() -> None:
    """historical_data is another service: yearly highs and lows of volatilities."""
    quotes, refused = parse_quote(recorded_answer("*historical_data*"), "AAPL")
    assert (quotes, [refusal.reason for refusal in refused]) == ([], ["AAPL has no bid, no ask and no last price"])
