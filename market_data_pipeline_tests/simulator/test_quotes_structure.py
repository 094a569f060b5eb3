"""Simulated quotes, chains and CBOE's files against what was really recorded: the same keys, types and nulls."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from market_data_pipeline.simulator.vendor import Received
from market_data_pipeline_tests.recorded import RECORDED
from market_data_pipeline_tests.simulator.directories import LATER, OPEN, minute, session_of_minutes, write_bars, write_lines
from market_data_pipeline_tests.simulator.test_recorded_structure import shape
from market_data_pipeline_tests.simulator.vendors import Vendors

if TYPE_CHECKING:
    from pathlib import Path

    from market_data_pipeline.simulator.vendor import Reply

YAHOO, CBOE = RECORDED / "yahoo_wire_yf2", RECORDED / "cboe_openbb_vcr"
recorded_only = pytest.mark.skipif(not YAHOO.is_dir() or not CBOE.is_dir(), reason=f"recorded data not here: {RECORDED}")

# New York: Monday 2024-12-02 after hours, in session, before it; and a Saturday.
EVENING, NOON, MORNING = OPEN + timedelta(hours=8), minute(150), OPEN + timedelta(days=1, hours=-3)
SATURDAY = datetime(2024, 12, 7, 12, tzinfo=UTC)
FILES = "/cboe/api/global/delayed_quotes"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A day of five kinds of symbol; AAPL has paid a dividend, BRKS never traded."""
    listed = ("AAPL,XNAS,equity,", "AMZN,XNAS,equity,", "BTC-USD,CRYPTO,crypto,USD", "EURUSD=X,CRYPTO,fx,USD", "BRKS,XNAS,equity,")
    write_lines(tmp_path, "universe.csv", "symbol,exchange,asset_type,currency", *listed, "^SPX,XNYS,index,")
    write_lines(tmp_path, "actions.csv", "symbol,kind,session_date,value", "AAPL,dividend,2024-12-02,0.25")
    for symbol in ("AMZN", "BTC-USD", "EURUSD=X", "^SPX"):
        write_bars(tmp_path, session_of_minutes(), symbol=symbol)
    return write_bars(tmp_path, session_of_minutes())


class Yahoo:
    """The simulated Yahoo, asked with a pass as its adapter has one."""

    def __init__(self, directory: Path, now: datetime = EVENING, *rules: dict[str, Any]) -> None:
        self.vendors = Vendors(directory, *rules, now=now)
        told = dict(self.get("/fc/").headers)["set-cookie"]
        self.cookie = told.partition(";")[0]
        self.crumb = self.get("/v1/test/getcrumb").body.decode()

    def get(self, path: str, query: str = "") -> Reply:
        headers = {"host": "127.0.0.1", "cookie": getattr(self, "cookie", "")}
        return self.vendors.simulator.answer(Received("GET", path, query, headers))

    def ask(self, path: str, query: str = "") -> Any:  # noqa: ANN401 - JSON
        return json.loads(self.get(path, f"{query}&crumb={self.crumb}").body)

    def quotes(self, symbols: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("/v7/finance/quote", f"symbols={symbols}")["quoteResponse"]["result"]
        return found

    def chain(self, symbol: str = "AAPL", query: str = "") -> dict[str, Any]:
        (found,) = self.ask(f"/v7/finance/options/{symbol}", query)["optionChain"]["result"]
        assert isinstance(found, dict)
        return found


def recorded(name: str) -> Any:  # noqa: ANN401 - JSON
    return json.loads((YAHOO / name).read_bytes())


def recorded_file(pattern: str) -> Any:  # noqa: ANN401 - JSON
    (path,) = CBOE.glob(pattern)
    return json.loads(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())


def cboe(directory: Path, path: str, now: datetime = LATER, etag: str = "") -> Reply:
    headers = {"host": "127.0.0.1:1234", "if-none-match": etag}
    return Vendors(directory, now=now).simulator.answer(Received("GET", f"{FILES}/{path}.json", "", headers))


def document(directory: Path, path: str, now: datetime = LATER) -> Any:  # noqa: ANN401 - JSON
    return json.loads(cboe(directory, path, now).body)


# --- the same structure ------------------------------------------------------------------------------------------------


@recorded_only
@pytest.mark.parametrize(
    ("symbol", "name"),
    [("AAPL", "AAPL"), ("AMZN", "AMZN"), ("BTC-USD", "BTC-USD"), ("EURUSD=X", "EURUSD=X"), ("BRKS", "BRKS")],
)
def test_a_quote_has_the_structure_of_the_recorded_one(directory: Path, symbol: str, name: str) -> None:
    (generated,) = Yahoo(directory).quotes(symbol)
    (told,) = recorded(f"quote-{name}.json")["quoteResponse"]["result"]
    assert shape(generated) == shape(told)


@recorded_only
def test_a_whole_answer_of_quotes_has_the_structure_of_the_recorded_one(directory: Path) -> None:
    generated = Yahoo(directory).ask("/v7/finance/quote", "symbols=AAPL")
    assert shape(generated) == shape(recorded("quote-AAPL.json"))


@recorded_only
def test_quotes_of_nothing_known_have_the_structure_of_the_recorded_one(directory: Path) -> None:
    generated = Yahoo(directory).ask("/v7/finance/quote", "symbols=APS.AX")
    assert generated == recorded("quote-APS.AX.json")


@recorded_only
def test_a_chain_has_the_structure_of_the_recorded_one(directory: Path) -> None:
    """Recorded before the open, so asked before the open."""
    generated = Yahoo(directory, MORNING).ask("/v7/finance/options/AAPL")
    assert shape(generated) == shape(recorded("options-AAPL.json"))


@recorded_only
def test_an_expiry_that_does_not_exist_has_the_structure_of_the_recorded_one(directory: Path) -> None:
    generated = Yahoo(directory, MORNING).ask("/v7/finance/options/AAPL", "date=1646092800")
    assert shape(generated) == shape(recorded("options-AAPL-expire-2022-03-01.json"))


@recorded_only
def test_an_underlying_without_options_has_the_structure_of_the_recorded_one(directory: Path) -> None:
    generated = Yahoo(directory).chain("BRKS")
    (told,) = recorded("options-ADH.json")["optionChain"]["result"]
    # Their quotes are of different kinds: a fund, and a symbol that never traded.
    assert shape({**generated, "quote": {}}) == shape({**told, "quote": {}})


@recorded_only
@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        ("options/AAPL", "*options__AAPL*"),
        ("quotes/AAPL", "*quotes__AAPL*b47395*"),
        ("charts/historical/AAPL", "*historical__AAPL*"),
    ],
)
def test_a_file_of_cboe_has_the_structure_of_the_recorded_one(directory: Path, path: str, pattern: str) -> None:
    assert shape(document(directory, path, SATURDAY)) == shape(recorded_file(pattern))


@recorded_only
def test_a_recorded_chain_put_into_the_directory_is_served_again_value_by_value(directory: Path) -> None:
    (path,) = CBOE.glob("*options__AAPL*")
    (directory / "options").mkdir()
    (directory / "options" / "AAPL.json").write_bytes(gzip.decompress(path.read_bytes()))
    names = ("option", "bid", "ask", "iv", "open_interest", "volume", "delta", "gamma", "last_trade_price", "last_trade_time")

    def told(chain: Any) -> dict[str, list[Any]]:  # noqa: ANN401 - JSON
        return {record["option"]: [record[name] for name in names] for record in chain["data"]["options"]}

    assert told(document(directory, "options/AAPL")) == told(recorded_file("*options__AAPL*"))


# --- Yahoo's behaviour -------------------------------------------------------------------------------------------------


def test_without_its_cookie_and_crumb_nobody_is_let_in(directory: Path) -> None:
    yahoo = Yahoo(directory)
    assert yahoo.get("/v7/finance/quote", f"symbols=AAPL&crumb={yahoo.crumb}").status == 200
    assert yahoo.get("/v7/finance/quote", "symbols=AAPL&crumb=wrong").status == 401
    yahoo.cookie = ""
    refused = yahoo.get("/v7/finance/options/AAPL", f"crumb={yahoo.crumb}")
    assert (refused.status, json.loads(refused.body)["finance"]["error"]["description"]) == (401, "Invalid Crumb")
    assert yahoo.get("/v1/test/getcrumb").body == b""


def test_the_cookie_comes_with_a_page_that_is_not_there(directory: Path) -> None:
    reply = Yahoo(directory).get("/fc")
    assert (reply.status, dict(reply.headers)["set-cookie"].startswith("A3=d=")) == (404, True)


def test_a_crumb_is_good_until_the_end_of_the_next_day(directory: Path) -> None:
    yahoo = Yahoo(directory)
    answered = []
    for days in (0, 1, 2):
        yahoo.vendors.simulator.clock.set(EVENING + timedelta(days=days), speed=0.0)
        answered.append(yahoo.get("/v7/finance/quote", f"symbols=AAPL&crumb={yahoo.crumb}").status)
    assert answered == [200, 200, 401]


def test_neither_cookie_nor_crumb_is_in_the_log(directory: Path) -> None:
    yahoo = Yahoo(directory)
    yahoo.quotes("AAPL")
    logged = repr(list(yahoo.vendors.simulator.log))
    assert yahoo.crumb not in logged
    assert yahoo.cookie not in logged


def test_a_quote_is_of_the_newest_minute_and_unknown_symbols_are_missing(directory: Path) -> None:
    (found,) = Yahoo(directory, NOON).quotes("AAPL,NOPE")
    assert found["regularMarketPrice"] == 100 + 149 / 100 + 0.25
    assert found["regularMarketTime"] == int(minute(150).timestamp())
    assert found["bid"] < found["regularMarketPrice"] <= found["ask"]


@pytest.mark.parametrize(
    ("now", "state"),
    [
        (NOON, "REGULAR"),
        (EVENING, "POST"),
        (OPEN + timedelta(hours=11), "POSTPOST"),
        (MORNING, "PRE"),
        (OPEN + timedelta(days=1, hours=-7), "PREPRE"),
        (SATURDAY, "CLOSED"),
        (datetime(2024, 12, 25, 17, tzinfo=UTC), "CLOSED"),
    ],
)
def test_the_state_of_the_market_follows_from_its_sessions(directory: Path, now: datetime, state: str) -> None:
    (found,) = Yahoo(directory, now).quotes("AAPL")
    assert found["marketState"] == state
    assert ("preMarketPrice" in found, "postMarketPrice" in found) == (state == "PRE", state not in {"PRE", "REGULAR"})


def test_a_chain_is_one_expiry_at_a_time(directory: Path) -> None:
    yahoo = Yahoo(directory)
    first = yahoo.chain()
    assert len(first["expirationDates"]) == 3
    assert first["options"][0]["expirationDate"] == first["expirationDates"][0]
    last = yahoo.chain(query=f"date={first['expirationDates'][2]}")["options"][0]
    assert {record["expiration"] for record in last["calls"] + last["puts"]} == {first["expirationDates"][2]}
    assert {record["contractSymbol"][-9] for record in last["puts"]} == {"P"}


def test_an_unknown_underlying_has_no_result(directory: Path) -> None:
    assert Yahoo(directory).ask("/v7/finance/options/NOPE") == {"optionChain": {"result": [], "error": None}}


def test_the_same_question_has_the_same_bytes(directory: Path) -> None:
    def asked() -> list[bytes]:
        yahoo = Yahoo(directory)
        query = f"symbols=AAPL&crumb={yahoo.crumb}"
        return [yahoo.get(path, query).body for path in ("/v7/finance/quote", "/v7/finance/options/AAPL")]

    assert asked() == asked()


# --- CBOE's behaviour --------------------------------------------------------------------------------------------------


def test_a_file_is_a_quarter_of_an_hour_behind_and_made_now(directory: Path) -> None:
    told = document(directory, "quotes/AAPL", NOON)
    assert told["timestamp"] == "2024-12-02 17:00:00"
    assert told["data"]["last_trade_time"] == "2024-12-02T11:45:00"
    assert told["data"]["current_price"] == 100 + 134 / 100 + 0.25


def test_an_index_has_an_underscore_and_its_numbers_are_text(directory: Path) -> None:
    told = document(directory, "quotes/_SPX")
    assert (told["symbol"], told["data"]["security_type"]) == ("^SPX", "index")
    assert told["data"]["current_price"] == "104.1400"
    days = document(directory, "charts/historical/_SPX", LATER)
    assert {type(value) for row in days["data"] for value in row.values()} == {str}


@pytest.mark.parametrize("name", ["NOPE", "_NOPE", "BTC-USD"])
def test_of_a_symbol_without_a_file_access_is_denied(directory: Path, name: str) -> None:
    reply = cboe(directory, f"quotes/{name}")
    assert (reply.status, b"<Code>AccessDenied</Code>" in reply.body) == (403, True)


def test_a_symbol_that_never_traded_is_of_the_year_2000(directory: Path) -> None:
    told = document(directory, "options/BRKS")["data"]
    assert (told["last_trade_time"], told["current_price"], told["options"]) == ("2000-01-01T00:00:00", 0.0, [])


def test_minutes_are_named_by_their_close_and_padded_with_zeros(directory: Path) -> None:
    rows = document(directory, "charts/intraday/AAPL", NOON)["data"]
    assert (len(rows), rows[0]["datetime"], rows[-1]["datetime"]) == (390, "2024-12-02T09:31:00", "2024-12-02T16:00:00")
    traded = [row for row in rows if row["price"]["close"]]
    assert (len(traded), traded[-1]["datetime"]) == (135, "2024-12-02T11:45:00")
    assert rows[-1]["price"] == {"open": 0, "high": 0, "low": 0, "close": 0}
    assert set(rows[0]["volume"]) == {"stock_volume", "calls_volume", "puts_volume", "total_options_volume"}


def test_minutes_are_of_the_latest_session_alone(directory: Path) -> None:
    before, after = (document(directory, "charts/intraday/AAPL", MORNING + timedelta(hours=h))["data"] for h in (0, 8))
    assert {row["datetime"][:10] for row in before} == {"2024-12-02"}
    assert {row["datetime"][:10] for row in after} == {"2024-12-03"}


@pytest.mark.parametrize(
    ("now", "days"),
    [
        (EVENING, []),
        (OPEN + timedelta(days=1, hours=-4), []),
        (OPEN + timedelta(days=1, hours=-3), ["2024-12-02"]),
    ],
)
def test_days_are_written_in_the_morning_after(directory: Path, now: datetime, days: list[str]) -> None:
    told = document(directory, "charts/historical/AAPL", now)
    assert ([row["date"] for row in told["data"]], told["timestamp"]) == (days, "11:00:17")


def test_on_saturday_the_days_still_end_with_thursday(tmp_path: Path) -> None:
    sessions = [f"2024-12-0{day}" for day in range(2, 7)]
    rows = [[session, "10", "11", "9", "10.123456", "100", ""] for session in sessions]
    told = document(write_bars(tmp_path, rows, interval="1d"), "charts/historical/AAPL", SATURDAY)
    assert [row["date"] for row in told["data"]] == sessions[:4]
    assert told["data"][0] == {"date": "2024-12-02", "volume": 100, "open": 10.0, "high": 11.0, "low": 9.0, "close": 10.12}


@pytest.mark.parametrize("path", ["options/AAPL", "quotes/AAPL", "charts/intraday/AAPL", "charts/historical/AAPL"])
def test_a_file_that_the_client_holds_is_not_sent_again(directory: Path, path: str) -> None:
    first = cboe(directory, path)
    headers = dict(first.headers)
    again = cboe(directory, path, etag=headers["etag"])
    assert (again.status, again.body, dict(again.headers)["etag"]) == (304, b"", headers["etag"])
    assert headers["cache-control"] == "max-age=0, s-maxage=5"
    assert cboe(directory, path, etag='W/"another"').body == first.body


def test_the_list_of_index_options_is_elsewhere_and_elsewhere_again(directory: Path) -> None:
    vendors = Vendors(directory)
    moved = vendors.get("cboe", "/cboe/us/options/symboldir/equity_index_options/", "download=csv")
    onward = dict(moved.headers)["location"]
    assert (moved.status, onward.partition("/cboe")[2]) == (
        302,
        "/markets/us/options/symbol-directory/equity-index-options?download=csv",
    )
    again = vendors.get("cboe", "/cboe/markets/us/options/symbol-directory/equity-index-options", "download=csv")
    assert again.status == 307
    assert dict(again.headers)["location"].endswith("/us/options/symboldir/equity-index-options/download")
