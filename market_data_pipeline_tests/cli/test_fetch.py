"""`mdp fetch` against simulated vendors: what it stores, what it prints of it, and what it says where something is missing."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.simulator.client import running_simulator
from market_data_pipeline_tests.cli.builders import universe_file
from market_data_pipeline_tests.cli.conftest import Mdp
from market_data_pipeline_tests.economy import ONGOING, write_series
from market_data_pipeline_tests.providers.loopback import Loopback, Reply
from market_data_pipeline_tests.world import FRIDAY, SATURDAY, expected_opens, write_bars

if TYPE_CHECKING:
    from collections.abc import Iterator

    from market_data_pipeline.simulator.client import RunningSimulator

GDP = [
    ("2024-07-01", "23.3", "2024-10-30", "2024-11-26"),
    ("2024-07-01", "23.4", "2024-11-27", ONGOING),
    ("2024-10-01", ".", "2024-11-27", ONGOING),
]
DAY = {"MDP_LIMITS": "fred=none;finnhub=none;alpaca=none;cboe=none;yahoo=none", "MDP_HTTP_BACKOFF_SECONDS": "0"}


@pytest.fixture(scope="module")
def shared_simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSimulator]:
    """A Friday of Apple's and Microsoft's, and two economic series."""
    data = tmp_path_factory.mktemp("data")
    for symbol, close in (("AAPL", 240.0), ("MSFT", 430.0)):
        write_bars(data, symbol, Interval.M1, expected_opens(Interval.M1, FRIDAY, FRIDAY), close=close)
    write_series(data, "GDP", GDP)
    write_series(data, "RATE", [("2024-11-01", "4.6", "", "")])
    (data / "universe.csv").write_text("symbol,exchange\nAAPL,XNAS\nMSFT,XNAS\n")
    with running_simulator(data=data, now=SATURDAY, limits="fred=none;finnhub=none;alpaca=none;cboe=none;yahoo=none") as started:
        yield started


@pytest.fixture
def simulator(shared_simulator: RunningSimulator) -> RunningSimulator:
    """The same, as it was started."""
    shared_simulator.reset()
    return shared_simulator


@pytest.fixture
def at(mdp: Mdp, simulator: RunningSimulator) -> Mdp:
    """`mdp` that lives at the simulator, with quotes of Alpaca and Finnhub, and a universe."""
    environment = {**mdp.environment, **simulator.environment(), **DAY, "MDP_POLICY_QUOTES_L1": "alpaca,finnhub"}
    there = Mdp(environment, mdp.home)
    there("universe", "load", universe_file(mdp.home, "symbol,exchange,tier\nAAPL,XNAS,T0\nMSFT,XNAS,T0\nNOPE,XNAS,T1\n"))
    return there


# --- quotes ------------------------------------------------------------------------------------------------------------


def test_quotes_are_fetched_stored_and_printed_with_who_said_them(at: Mdp) -> None:
    answer = at("fetch", "quotes", "AAPL", "MSFT", "--json")
    assert answer.code == 0
    rows = {row["symbol"]: row for row in answer.json}
    assert {(row["provider"], row["known_from"]) for row in rows.values()} == {("alpaca", "2024-12-07T12:00:00Z")}
    assert 240 < rows["AAPL"]["bid"] < 250
    assert rows["AAPL"]["ask"] > rows["AAPL"]["bid"]
    # Friday's last quote, on Saturday.
    assert rows["AAPL"]["flags"] == "stale"
    assert at("fetch", "quotes", "AAPL", "MSFT", "--stored", "--json").json == answer.json


def test_the_same_quotes_again_are_no_news(at: Mdp) -> None:
    first, second = (at("fetch", "quotes", "AAPL").out.splitlines()[0] for _ in range(2))
    assert (first, second) == ("1 quotes: 1 new, 1 requests", "1 quotes: 0 new, 1 unchanged, 1 requests")


def test_a_symbol_without_a_quote_is_named_with_everybodys_words(at: Mdp) -> None:
    answer = at("fetch", "quotes", "AAPL", "NOPE")
    assert answer.code == 1
    assert "alpaca" in answer.out
    assert "NOPE: " in answer.err
    assert "alpaca: no quote of NOPE" in answer.err
    assert "finnhub: no quote of NOPE" in answer.err


def test_the_provider_that_is_named_is_asked_first(at: Mdp, simulator: RunningSimulator) -> None:
    assert at("fetch", "quotes", "AAPL", "--provider", "finnhub", "--json").json[0]["provider"] == "finnhub"
    assert {entry["provider"] for entry in simulator.requests()} == {"finnhub"}


def test_a_whole_tier_is_quoted(at: Mdp) -> None:
    assert [row["symbol"] for row in at("fetch", "quotes", "--tier", "T0", "--json").json] == ["AAPL", "MSFT"]


def test_stored_quotes_ask_nobody_and_are_read_as_they_were_known(at: Mdp, simulator: RunningSimulator) -> None:
    at("fetch", "quotes", "AAPL")
    simulator.forget_requests()
    assert at("fetch", "quotes", "AAPL", "--stored", "--as-of", "2024-12-07T12:00Z", "--json").code == 0
    earlier = at("fetch", "quotes", "AAPL", "--stored", "--as-of", "2024-12-07T11:59Z", "--json")
    assert (earlier.code, earlier.json) == (1, [{"symbol": "AAPL", "failure": "no quote is stored"}])
    assert simulator.requests() == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("quotes",), "no symbols"),
        (("quotes", "AAPL", "--as-of", "2024-12-07T12:00Z"), "add --stored"),
        (("quotes", "AAPL", "--provider", "nobody"), "no provider is called 'nobody'"),
        (("quotes", "ZZZZ"), "ZZZZ"),
        (("chain", "AAPL", "--stored"), "no chain of AAPL is stored"),
        (("macro", "gdp"), "is not a series"),
        (("macro", "GDP", "--as-of", "2024-11-01"), "add --vintages or --stored"),
        (("macro", "GDP", "--as-of", "2024-11-01T00:00Z"), "add --stored"),
        (("macro", "GDP", "--start", "2024-11-02", "--end", "2024-11-01"), "is after --end"),
    ],
)
def test_what_cannot_be_meant_is_bad_usage(at: Mdp, arguments: tuple[str, ...], words: str) -> None:
    answer = at("fetch", *arguments)
    assert answer.code == 2
    assert words in answer.err


def test_where_nobody_can_be_asked_every_reason_is_said(mdp: Mdp) -> None:
    mdp("universe", "load", universe_file(mdp.home))
    answer = mdp("fetch", "macro", "GDP")
    assert (answer.code, "nobody can be asked for macro: fred: MDP_FRED_KEY is not set" in answer.err) == (1, True)


# --- chains ------------------------------------------------------------------------------------------------------------


def contract(name: str, **changes: object) -> dict[str, object]:
    zeros = ("bid_size", "ask_size", "iv", "open_interest", "volume", "delta", "gamma", "vega", "theta", "rho", "theo")
    return {"option": name, "bid": 1.5, "ask": 1.6, **dict.fromkeys(zeros, 0.0), "last_trade_price": 1.55, **changes}


def chain_body(*contracts: dict[str, object]) -> bytes:
    data = {"options": contracts, "current_price": 242.84, "last_trade_time": "2024-12-06T15:59:59"}
    return json.dumps({"timestamp": "2024-12-07 11:50:00", "data": data, "symbol": "AAPL"}).encode()


def test_a_chain_is_fetched_stored_and_printed_as_one_moment(at: Mdp) -> None:
    body = chain_body(contract("AAPL241220C00240000"), contract("AAPL241220P00240000", bid=1.7), contract("AAPL241227C00240000"))
    with Loopback(Reply(200, body, {"Content-Type": "application/json"})) as cboe:
        there = {"cboe_base_url": cboe.url, "policy_options_chain": "cboe"}
        answer = at("fetch", "chain", "AAPL", "--json", **there)
        again = at("fetch", "chain", "AAPL", **there)
    chain = answer.json
    assert (answer.code, chain["provider"], chain["spot"], chain["is_new"], chain["is_complete"]) == (0, "cboe", 242.84, True, True)
    assert [(row["contract"], row["flags"]) for row in chain["contracts"]] == [
        ("AAPL241220C00240000", ""),
        ("AAPL241220P00240000", "crossed"),
        ("AAPL241227C00240000", ""),
    ]
    assert "3 contracts of cboe at 2024-12-07T11:50:00Z; spot 242.84" in again.out
    assert "as it was" in again.out
    stored = at("fetch", "chain", "AAPL", "--stored", "--expiry", "2024-12-27", "--json").json
    assert (stored["snapshot_id"], [row["contract"] for row in stored["contracts"]]) == (
        chain["snapshot_id"],
        ["AAPL241227C00240000"],
    )


@pytest.mark.parametrize("provider", ["cboe", "yahoo"])
def test_every_expiry_of_a_simulated_chain_is_stored(at: Mdp, provider: str) -> None:
    answer = at("fetch", "chain", "AAPL", "--provider", provider, "--json")
    chain = answer.json
    assert (answer.code, chain["provider"], chain["is_complete"], chain["refused"]) == (0, provider, True, 0)
    assert len({row["expiry"] for row in chain["contracts"]}) > 1
    assert {row["right"] for row in chain["contracts"]} == {"C", "P"}
    stored = at("fetch", "chain", "AAPL", "--stored", "--json").json
    assert stored["contracts"] == chain["contracts"]


@pytest.mark.parametrize("provider", ["cboe", "yahoo", "finnhub", "alpaca"])
def test_every_provider_of_quotes_can_be_asked(at: Mdp, provider: str) -> None:
    answer = at("fetch", "quotes", "AAPL", "--provider", provider, "--json", policy_quotes_l1=provider)
    assert (answer.code, [row["provider"] for row in answer.json]) == (0, [provider])


# --- economic series ---------------------------------------------------------------------------------------------------


def test_a_series_is_fetched_stored_and_printed(at: Mdp) -> None:
    answer = at("fetch", "macro", "GDP", "--json")
    (series,) = answer.json
    assert answer.code == 0
    assert (series["series"], series["provider"], series["units"], series["frequency"]) == ("GDP", "fred", "Index", "Q")
    assert (series["new"], series["unchanged"], series["has_vintages"]) == (2, 0, False)
    assert [(row["observed_on"], row["value"], row["realtime_start"]) for row in series["observations"]] == [
        ("2024-07-01", 23.4, "2024-12-07"),
        ("2024-10-01", None, "2024-12-07"),
    ]
    assert at("fetch", "macro", "GDP", "--json").json[0]["unchanged"] == 2


def test_vintages_tell_what_had_been_published_by_a_day(at: Mdp) -> None:
    (every,) = at("fetch", "macro", "GDP", "--vintages", "--json").json
    assert [(row["value"], row["realtime_start"]) for row in every["observations"]] == [
        (23.3, "2024-10-30"),
        (23.4, "2024-11-27"),
        (None, "2024-11-27"),
    ]
    (then,) = at("fetch", "macro", "GDP", "--stored", "--as-of", "2024-11-01", "--json").json
    assert [row["value"] for row in then["observations"]] == [23.3]
    # By then it had been published; that we knew of it is only true since.
    unknown = at("fetch", "macro", "GDP", "--stored", "--as-of", "2024-11-01T12:00Z")
    assert (unknown.code, "nothing is stored for that" in unknown.err) == (1, True)


def test_the_days_can_be_bounded(at: Mdp) -> None:
    (series,) = at("fetch", "macro", "GDP", "--start", "2024-10-01", "--json").json
    assert [row["observed_on"] for row in series["observations"]] == ["2024-10-01"]


def test_a_table_says_what_was_new_and_from_whom(at: Mdp) -> None:
    answer = at("fetch", "macro", "RATE", "--vintages")
    assert "RATE (RATE, Index, M): 1 values; from fred: 1 new" in answer.out
    assert "current values only" in answer.err


def test_a_series_that_fails_fails_no_other(at: Mdp) -> None:
    answer = at("fetch", "macro", "GDP", "NOSUCH")
    assert answer.code == 1
    assert "GDP" in answer.out
    assert "NOSUCH: fred: " in answer.err
    assert "The series does not exist." in answer.err


def test_where_every_series_fails_each_says_why(at: Mdp) -> None:
    answer = at("fetch", "macro", "NOSUCH", "NEITHER")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.count("The series does not exist.") == 2


def test_a_revision_is_seen_when_it_comes(at: Mdp, simulator: RunningSimulator) -> None:
    simulator.set_now(datetime(2024, 11, 20, 18, tzinfo=UTC))
    at("fetch", "macro", "GDP")
    simulator.set_now(SATURDAY)
    (series,) = at("fetch", "macro", "GDP", "--json").json
    assert (series["new"], series["ended"]) == (2, 1)
    (before,) = at("fetch", "macro", "GDP", "--stored", "--as-of", "2024-11-21T00:00Z", "--json").json
    assert [row["value"] for row in before["observations"]] == [23.3]
