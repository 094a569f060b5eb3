"""What each simulated vendor says on the wire: shapes, plans, pages, bases and refusals, as PROVIDERS.md has them."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import orjson
import pytest

from market_data_pipeline.simulator.market import Market
from market_data_pipeline.simulator.sample import write_sample
from market_data_pipeline.simulator.vendor import FREE, made_up_key
from market_data_pipeline_tests.simulator.directories import (
    CLOSE,
    LATER,
    OPEN,
    minute,
    session_of_minutes,
    write_bars,
    write_lines,
)
from market_data_pipeline_tests.simulator.vendors import BARS_OF_A_DAY, Vendors, rows_of

if TYPE_CHECKING:
    from pathlib import Path

CANDLE = "/finnhub/api/v1/stock/candle"
BARS = "/alpaca/v2/stocks/bars"
AGGS = "/massive/v2/aggs/ticker"
QUERY = "/alphavantage/query"
FROM, TO = int(OPEN.timestamp()), int(CLOSE.timestamp())


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A day of AAPL and MSFT, and a split of AAPL four days later."""
    write_lines(tmp_path, "actions.csv", "symbol,kind,session_date,value", "AAPL,split,2024-12-06,4")
    write_bars(tmp_path, session_of_minutes(), symbol="MSFT")
    return write_bars(tmp_path, session_of_minutes())


@pytest.fixture
def vendors(directory: Path) -> Vendors:
    return Vendors(directory)


@pytest.mark.parametrize("vendor", BARS_OF_A_DAY)
def test_every_vendor_answers_with_the_minutes_of_the_day(vendors: Vendors, vendor: str) -> None:
    reply = vendors.day(vendor, "MSFT")

    assert reply.status == 200
    assert len(rows_of(vendor, reply, "MSFT")) == 390


@pytest.mark.parametrize("vendor", BARS_OF_A_DAY)
def test_what_is_not_known_yet_is_not_served(directory: Path, vendor: str) -> None:
    assert len(rows_of(vendor, Vendors(directory, {"action": "stale", "seconds": 86400}).day(vendor))) < 390


@pytest.mark.parametrize("vendor", ["finnhub", "alpaca", "massive", "alphavantage"])
def test_a_key_that_nobody_was_given_is_refused(vendors: Vendors, vendor: str) -> None:
    path, query = BARS_OF_A_DAY[vendor]

    reply = vendors.get(vendor, path.format(symbol="AAPL"), query.format(symbol="AAPL"), key="stolen")

    assert reply.status == {"finnhub": 401, "alpaca": 403, "massive": 401, "alphavantage": 200}[vendor]
    assert b"stolen" not in reply.body


@pytest.mark.parametrize("vendor", ["finnhub", "alpaca", "massive"])
def test_a_path_that_a_vendor_does_not_have_is_404(vendors: Vendors, vendor: str) -> None:
    assert vendors.get(vendor, f"/{vendor}/v9/nothing").status == 404


# --- Finnhub


def test_finnhub_sends_parallel_arrays(vendors: Vendors) -> None:
    answer = vendors.json("finnhub", CANDLE, f"symbol=MSFT&resolution=1&from={FROM}&to={FROM}")

    assert answer == {"o": [100.0], "h": [100.5], "l": [99.5], "c": [100.25], "v": [1000], "s": "ok", "t": [FROM]}


def test_finnhub_sends_minutes_on_the_basis_of_their_day_and_days_adjusted(directory: Path) -> None:
    vendors = Vendors(directory, now=LATER + timedelta(days=10))

    minutes = vendors.json("finnhub", CANDLE, f"symbol=AAPL&resolution=1&from={FROM}&to={FROM}")
    days = vendors.json("finnhub", CANDLE, f"symbol=AAPL&resolution=D&from={FROM - 86400}&to={TO}")

    assert (minutes["o"], minutes["v"]) == ([400.0], [250])
    assert (days["o"], days["t"]) == ([100.0], [FROM // 86400 * 86400])


def test_finnhub_cuts_a_longer_range_of_minutes_to_its_last_month(tmp_path: Path) -> None:
    minutes = [row for days in (0, 20, 40) for row in _moved(session_of_minutes(2), days)]
    vendors = Vendors(write_bars(tmp_path, minutes), now=LATER + timedelta(days=60))

    answer = vendors.json("finnhub", CANDLE, f"symbol=AAPL&resolution=1&from={FROM}&to={FROM + 41 * 86400}")

    assert answer["t"] == [FROM + days * 86400 + n * 60 for days in (20, 40) for n in range(2)]


def _moved(rows: list[list[str]], days: int) -> list[list[str]]:
    return [[(minute(n) + timedelta(days=days)).isoformat(), *row[1:]] for n, row in enumerate(rows)]


def test_finnhub_has_no_data_for_a_symbol_it_does_not_know(vendors: Vendors) -> None:
    assert vendors.json("finnhub", CANDLE, f"symbol=NOPE&resolution=1&from={FROM}&to={TO}") == {"s": "no_data"}


def test_finnhub_sells_candles_and_bid_and_ask(vendors: Vendors) -> None:
    refused = {"error": "You don't have access to this resource."}

    for path in (f"{CANDLE}?", "/finnhub/api/v1/stock/bidask?"):
        reply = vendors.get("finnhub", path[:-1], f"symbol=AAPL&resolution=1&from={FROM}&to={TO}", plan=FREE)
        assert (reply.status, orjson.loads(reply.body)) == (403, refused)


def test_finnhub_quotes_without_bid_and_ask(vendors: Vendors) -> None:
    quote = vendors.json("finnhub", "/finnhub/api/v1/quote", "symbol=AAPL", plan=FREE)

    assert list(quote) == ["c", "d", "dp", "h", "l", "o", "pc", "t"]
    assert (quote["c"], quote["t"]) == (104.14, TO)


def test_finnhub_answers_for_an_unknown_symbol_with_zeros(vendors: Vendors) -> None:
    quote = vendors.json("finnhub", "/finnhub/api/v1/quote", "symbol=NOPE")

    assert quote == {"c": 0, "d": None, "dp": None, "h": 0, "l": 0, "o": 0, "pc": 0, "t": 0}


def test_finnhub_sells_bid_and_ask_in_milliseconds(vendors: Vendors) -> None:
    quote = vendors.json("finnhub", "/finnhub/api/v1/stock/bidask", "symbol=AAPL")

    assert (quote["b"] < quote["a"], quote["t"]) == (True, TO * 1000)


def test_finnhub_tells_the_limit_with_every_reply(directory: Path) -> None:
    vendors = Vendors(directory, limits="")

    headers = dict(vendors.get("finnhub", "/finnhub/api/v1/quote", "symbol=AAPL", plan=FREE).headers)

    assert (headers["x-ratelimit-limit"], headers["x-ratelimit-remaining"]) == ("60", "59")
    assert int(headers["x-ratelimit-reset"]) == LATER.timestamp() + 60


# --- Alpaca


def test_alpaca_cuts_pages_over_all_symbols(vendors: Vendors) -> None:
    asked = "symbols=MSFT,AAPL&timeframe=1Min&start=2024-12-02T14:30:00Z&end=2024-12-02T14:32:00Z&limit=4"
    pages, token = [], ""
    while True:
        pages.append(vendors.json("alpaca", BARS, asked + (f"&page_token={token}" if token else "")))
        token = pages[-1]["next_page_token"]
        if token is None:
            break

    assert [{symbol: len(rows) for symbol, rows in page["bars"].items()} for page in pages] == [{"AAPL": 3, "MSFT": 1}, {"MSFT": 2}]
    assert [row["t"] for row in pages[1]["bars"]["MSFT"]] == ["2024-12-02T14:31:00Z", "2024-12-02T14:32:00Z"]


def test_alpacas_pages_are_the_whole_answer_cut(vendors: Vendors) -> None:
    asked = "symbols=MSFT,AAPL&timeframe=1Min&start=2024-12-02T14:30:00Z&end=2024-12-02T20:59:00Z&limit="
    whole = vendors.json("alpaca", BARS, f"{asked}10000")["bars"]
    rows: dict[str, list[object]] = {"AAPL": [], "MSFT": []}
    token: str | None = ""
    while token is not None:
        page = vendors.json("alpaca", BARS, f"{asked}97" + (f"&page_token={token}" if token else ""))
        for symbol, of_symbol in page["bars"].items():
            rows[symbol] += of_symbol
        token = page["next_page_token"]

    assert rows == whole


def test_a_bar_of_alpaca_has_eight_fields(vendors: Vendors) -> None:
    asked = "symbols=MSFT&timeframe=1Min&start=2024-12-02T14:30:00Z&end=2024-12-02T14:30:59Z"
    (bar,) = vendors.json("alpaca", BARS, asked)["bars"]["MSFT"]

    assert bar == {"t": "2024-12-02T14:30:00Z", "o": 100.0, "h": 100.5, "l": 99.5, "c": 100.25, "v": 1000, "vw": 100.0833, "n": 11}


def test_alpaca_stamps_a_day_with_midnight_in_new_york(vendors: Vendors) -> None:
    bars = vendors.json("alpaca", BARS, "symbols=MSFT&timeframe=1Day&start=2024-12-02&end=2024-12-03")["bars"]["MSFT"]

    assert [(bar["t"], bar["v"]) for bar in bars] == [("2024-12-02T05:00:00Z", 390_000)]


def test_alpaca_sends_prices_as_traded_unless_asked_otherwise(directory: Path) -> None:
    vendors = Vendors(directory, now=LATER + timedelta(days=10))
    opens = {
        adjustment: vendors.json("alpaca", BARS, f"symbols=AAPL&timeframe=1Day&start=2024-12-02&adjustment={adjustment}")["bars"][
            "AAPL"
        ][0]["o"]
        for adjustment in ("raw", "split")
    }

    assert opens == {"raw": 400.0, "split": 100.0}


def test_alpacas_iex_is_a_small_share_of_the_volume_and_lacks_minutes(tmp_path: Path) -> None:
    write_sample(tmp_path / "sample", seed=7, symbols=1)
    vendors = Vendors(tmp_path / "sample")
    volumes = {}
    for feed in ("sip", "iex"):
        asked = f"symbols=NOVA&timeframe=1Min&start=2024-12-02T14:30:00Z&end=2024-12-02T20:59:00Z&limit=10000&feed={feed}"
        volumes[feed] = [bar["v"] for bar in vendors.json("alpaca", BARS, asked)["bars"]["NOVA"]]

    assert len(volumes["sip"]) == 390
    assert 350 < len(volumes["iex"]) < 390
    assert 0.02 < sum(volumes["iex"]) / sum(volumes["sip"]) < 0.05


def test_alpacas_iex_days_are_made_of_its_minutes(tmp_path: Path) -> None:
    write_sample(tmp_path / "sample", seed=7, symbols=1)
    vendors = Vendors(tmp_path / "sample")
    minutes = vendors.json(
        "alpaca", BARS, "symbols=NOVA&timeframe=1Min&start=2024-12-02T14:30:00Z&end=2024-12-02T20:59:00Z&limit=10000&feed=iex"
    )
    days = vendors.json("alpaca", BARS, "symbols=NOVA&timeframe=1Day&start=2024-12-02&end=2024-12-02&feed=iex")

    assert days["bars"]["NOVA"][0]["v"] == sum(bar["v"] for bar in minutes["bars"]["NOVA"])


def test_alpaca_shows_a_free_account_no_recent_sip(vendors: Vendors, directory: Path) -> None:
    recent = Vendors(directory, now=minute(30))
    asked = "symbols=AAPL&timeframe=1Min&start=2024-12-02T14:30:00Z&end=2024-12-02T{end}:00Z&feed=sip"

    refused = recent.get("alpaca", BARS, asked.format(end="15:00"), plan=FREE)

    assert (refused.status, orjson.loads(refused.body)) == (
        403,
        {"message": "subscription does not permit querying recent SIP data"},
    )
    assert recent.get("alpaca", BARS, asked.format(end="14:40"), plan=FREE).status == 200
    assert recent.get("alpaca", BARS, asked.format(end="15:00").replace("sip", "iex"), plan=FREE).status == 200
    assert vendors.get("alpaca", BARS, asked.format(end="15:00"), plan=FREE).status == 200


def test_alpaca_leaves_out_unknown_symbols_and_refuses_impossible_ones(vendors: Vendors) -> None:
    asked = "timeframe=1Day&start=2024-12-02"

    assert vendors.json("alpaca", BARS, f"symbols=NOPE&{asked}") == {"bars": {}, "next_page_token": None}
    refused = vendors.get("alpaca", BARS, f"symbols=AAPL,EURUSD=X&{asked}")
    assert (refused.status, orjson.loads(refused.body)) == (400, {"message": "invalid symbol: EURUSD=X"})


def test_alpaca_quotes_many_symbols_at_once(vendors: Vendors) -> None:
    quotes = vendors.json("alpaca", "/alpaca/v2/stocks/quotes/latest", "symbols=AAPL,MSFT,NOPE")["quotes"]

    assert sorted(quotes) == ["AAPL", "MSFT"]
    assert quotes["AAPL"]["bp"] < quotes["AAPL"]["ap"]
    assert quotes["AAPL"]["t"].startswith("2024-12-02T20:59:59.")


# --- Massive


def test_massive_leads_to_the_next_page_by_an_absolute_url_without_the_key(vendors: Vendors) -> None:
    path = f"{AGGS}/AAPL/range/1/minute/{FROM * 1000}/{FROM * 1000 + 179_999}"

    first = vendors.json("massive", path, "limit=2")
    following = first["next_url"].removeprefix("http://127.0.0.1:1234")
    second = vendors.json("massive", following.partition("?")[0], following.partition("?")[2])

    assert [row["t"] for row in first["results"] + second["results"]] == [(FROM + 60 * n) * 1000 for n in range(3)]
    assert (first["resultsCount"], second["resultsCount"], "next_url" in second) == (2, 1, False)
    assert made_up_key("massive", "premium") not in first["next_url"]


def test_massive_sends_no_results_where_there_are_none(vendors: Vendors) -> None:
    answer = vendors.json("massive", f"{AGGS}/NOPE/range/1/day/2024-12-02/2024-12-03")

    assert (answer["ticker"], answer["resultsCount"], "results" in answer, answer["status"]) == ("NOPE", 0, False, "OK")


def test_massive_sends_the_days_of_all_symbols_stamped_with_their_close(vendors: Vendors) -> None:
    answer = vendors.json("massive", "/massive/v2/aggs/grouped/locale/us/market/stocks/2024-12-02")

    assert [(row["T"], row["t"], row["v"]) for row in answer["results"]] == [
        ("AAPL", TO * 1000, 390_000),
        ("MSFT", TO * 1000, 390_000),
    ]


def test_massive_adjusts_for_splits_unless_told_not_to(directory: Path) -> None:
    vendors = Vendors(directory, now=LATER + timedelta(days=10))
    path = f"{AGGS}/AAPL/range/1/day/2024-12-02/2024-12-02"

    assert [vendors.json("massive", path, f"adjusted={flag}")["results"][0]["o"] for flag in ("true", "false")] == [100.0, 400.0]


@pytest.mark.parametrize(
    ("window", "words"),
    [
        ("2024-12-02/2024-12-03", "Attempted to request today's data before end of day"),
        ("2022-11-01/2024-12-02", "Your plan doesn't include this data timeframe"),
    ],
)
def test_massive_shows_a_free_account_two_years_and_nothing_of_today(vendors: Vendors, window: str, words: str) -> None:
    reply = vendors.get("massive", f"{AGGS}/AAPL/range/1/day/{window}", plan=FREE)

    assert reply.status == 403
    assert (orjson.loads(reply.body)["status"], words in orjson.loads(reply.body)["message"]) == ("NOT_AUTHORIZED", True)
    assert vendors.get("massive", f"{AGGS}/AAPL/range/1/day/2024-12-02/2024-12-02", plan=FREE).status == 200


# --- Alpha Vantage


def test_alpha_vantage_sends_the_newest_first_and_numbers_as_text(vendors: Vendors) -> None:
    asked = "function=TIME_SERIES_INTRADAY&symbol=AAPL&interval=1min&month=2024-12&outputsize=full"
    answer = vendors.json("alphavantage", QUERY, asked)
    stamps = list(answer["Time Series (1min)"])

    assert (stamps[0], stamps[-1]) == ("2024-12-02 15:59:00", "2024-12-02 09:30:00")
    assert answer["Time Series (1min)"]["2024-12-02 09:30:00"] == {
        "1. open": "100.0000",
        "2. high": "100.5000",
        "3. low": "99.5000",
        "4. close": "100.2500",
        "5. volume": "1000",
    }
    assert answer["Meta Data"]["4. Interval"] == "1min"
    assert answer["Meta Data"]["6. Time Zone"] == "US/Eastern"


def test_alpha_vantage_may_name_minutes_by_their_close(directory: Path) -> None:
    write_lines(directory, "profile.yaml", "alphavantage_stamp: close")
    asked = "function=TIME_SERIES_INTRADAY&symbol=AAPL&interval=1min&month=2024-12&outputsize=full"
    stamps = list(Vendors(directory).json("alphavantage", QUERY, asked)["Time Series (1min)"])

    assert (stamps[0], stamps[-1]) == ("2024-12-02 16:00:00", "2024-12-02 09:31:00")


def test_alpha_vantage_sends_a_hundred_rows_unless_asked_for_all(vendors: Vendors) -> None:
    asked = "function=TIME_SERIES_INTRADAY&symbol=AAPL&interval=1min&month=2024-12"

    assert len(vendors.json("alphavantage", QUERY, asked)["Time Series (1min)"]) == 100


def test_alpha_vantage_sends_days_as_traded(directory: Path) -> None:
    vendors = Vendors(directory, now=LATER + timedelta(days=10))
    answer = vendors.json("alphavantage", QUERY, "function=TIME_SERIES_DAILY&symbol=AAPL")

    assert answer["Time Series (Daily)"]["2024-12-02"]["1. open"] == "400.0000"
    assert answer["Meta Data"]["5. Time Zone"] == "US/Eastern"


@pytest.mark.parametrize(
    ("query", "plan", "name", "words"),
    [
        ("function=TIME_SERIES_DAILY&symbol=NOPE", FREE, "Error Message", "Invalid API call"),
        ("function=TIME_SERIES_DAILY&symbol=AAPL&outputsize=full", FREE, "Information", "premium"),
        ("function=FX_DAILY&symbol=AAPL", FREE, "Error Message", "Invalid API call"),
    ],
)
def test_alpha_vantage_refuses_with_status_200(vendors: Vendors, query: str, plan: str, name: str, words: str) -> None:
    reply = vendors.get("alphavantage", QUERY, query, plan=plan)

    assert reply.status == 200
    assert words in orjson.loads(reply.body)[name]


def test_alpha_vantage_repeats_the_key_when_the_day_is_spent(directory: Path) -> None:
    vendors = Vendors(directory, limits="alphavantage=1/d")
    asked = "function=TIME_SERIES_DAILY&symbol=AAPL"
    vendors.get("alphavantage", QUERY, asked)

    refused = orjson.loads(vendors.get("alphavantage", QUERY, asked).body)["Information"]

    assert made_up_key("alphavantage", "premium") in refused
    assert "rate limit is 1 requests per day" in refused
    assert made_up_key("alphavantage", "premium") not in str(vendors.simulator.log)


# --- what US vendors do not know


@pytest.mark.parametrize("vendor", ["alpaca", "massive", "finnhub"])
def test_shares_of_other_countries_are_unknown(tmp_path: Path, vendor: str) -> None:
    write_lines(tmp_path, "universe.csv", "symbol,exchange", "9801.HK,XHKG")
    write_bars(tmp_path, session_of_minutes(), symbol="9801.HK")

    assert Market(tmp_path).listing("9801.HK") is not None
    assert rows_of(vendor, Vendors(tmp_path).day(vendor, "9801.HK"), "9801.HK") == []


def test_a_class_of_shares_is_known_by_either_spelling(tmp_path: Path) -> None:
    write_bars(tmp_path, session_of_minutes(), symbol="BRK-B")

    assert len(rows_of("alpaca", Vendors(tmp_path).day("alpaca", "BRK.B"), "BRK.B")) == 390
