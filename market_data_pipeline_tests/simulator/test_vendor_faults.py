"""Every fault works in every vendor's wire format, and the same script twice is the same byte for byte."""

from __future__ import annotations

import zlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.simulator.fault_answers import BEND_THE_BARS, BEND_THE_RECORDS
from market_data_pipeline.simulator.fault_replies import BEND_THE_REPLY, REPLACE_THE_REPLY
from market_data_pipeline.simulator.faults import SETTINGS
from market_data_pipeline_tests.simulator.directories import (
    CLOSE,
    OPEN,
    bar,
    minute,
    session_of_minutes,
    write_bars,
    write_lines,
)
from market_data_pipeline_tests.simulator.vendors import BARS_OF_A_DAY, Vendors, rows_of

if TYPE_CHECKING:
    from pathlib import Path

    from market_data_pipeline.simulator.vendor import Reply

NEEDED: dict[str, dict[str, Any]] = {"status": {"code": 500}, "other_symbol": {"symbol": "X"}}
# What one finished, whole, single-paged session cannot show.
NEEDS_MORE = {"late_correction", "post_market_leak", "other_currency"}
# One object keyed by stamp cannot hold a row twice, four decimals hide the seventh, and Finnhub's candles name no symbol.
NOT_WRITTEN = {("alphavantage", "duplicate"), ("alphavantage", "noise"), ("finnhub", "other_symbol")}
ACTIONS = sorted(set(SETTINGS) - {"gzip_bomb", "huge"})
VENDORS = sorted(BARS_OF_A_DAY)
FROM, TO = int(OPEN.timestamp()), int(CLOSE.timestamp())


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_bars(tmp_path, session_of_minutes(), symbol="MSFT")
    return write_bars(tmp_path, session_of_minutes())


def rule(action: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"action": action, **NEEDED.get(action, {}), **more}


@pytest.mark.parametrize("action", sorted(set(BEND_THE_BARS) - NEEDS_MORE))
@pytest.mark.parametrize("vendor", BARS_OF_A_DAY)
def test_every_bend_shows_in_every_format(directory: Path, vendor: str, action: str) -> None:
    faultless = Vendors(directory).day(vendor)

    bent = Vendors(directory, rule(action)).day(vendor)

    assert bent.status == 200
    assert (bent.body != faultless.body) == ((vendor, action) not in NOT_WRITTEN)


@pytest.mark.parametrize("action", sorted({**REPLACE_THE_REPLY, **BEND_THE_REPLY}))
@pytest.mark.parametrize("vendor", BARS_OF_A_DAY)
def test_every_spoilt_reply_differs(directory: Path, vendor: str, action: str) -> None:
    assert Vendors(directory, rule(action)).day(vendor) != Vendors(directory).day(vendor)


@pytest.mark.parametrize("vendor", BARS_OF_A_DAY)
def test_the_same_script_twice_is_the_same_byte_for_byte(directory: Path, vendor: str) -> None:
    rules = [rule(action, probability=0.1) for action in SETTINGS if action not in {"gzip_bomb", "huge"}]
    first, second = (Vendors(directory, *rules, limits="") for _ in range(2))

    script = [symbol for _ in range(12) for symbol in ("AAPL", "MSFT", "NOPE")]

    assert [first.day(vendor, symbol) for symbol in script] == [second.day(vendor, symbol) for symbol in script]
    assert list(first.simulator.log) == list(second.simulator.log)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bars(tmp_path_factory.mktemp("data"), session_of_minutes(30))


@given(actions=st.lists(st.sampled_from(ACTIONS), max_size=8), vendor=st.sampled_from(VENDORS))
def test_faults_may_come_together_in_any_order(shared: Path, actions: list[str], vendor: str) -> None:
    vendors = Vendors(shared, *map(rule, actions))

    vendors.day(vendor)

    assert vendors.simulator.log[-1]["actions"] == actions[: len(vendors.simulator.log[-1]["actions"])]


@pytest.mark.parametrize("vendor", BARS_OF_A_DAY)
def test_a_fault_of_one_vendor_is_not_anothers(directory: Path, vendor: str) -> None:
    vendors = Vendors(directory, {"match": {"provider": vendor}, "action": "status", "code": 503})

    assert {name for name in BARS_OF_A_DAY if vendors.day(name).status == 503} == {vendor}


@pytest.mark.parametrize("vendor", BARS_OF_A_DAY)
def test_missing_minutes_are_the_same_for_all(directory: Path, vendor: str) -> None:
    gone = [minute(3).isoformat(), minute(7).isoformat()]

    assert len(rows_of(vendor, Vendors(directory, rule("missing_minutes", minutes=gone)).day(vendor))) == 388


@pytest.mark.parametrize("vendor", BARS_OF_A_DAY)
@pytest.mark.parametrize("literal", ["NaN", "-Infinity"])
def test_literals_that_json_does_not_have_are_written_by_all(directory: Path, vendor: str, literal: str) -> None:
    assert Vendors(directory, rule("nan", literal=literal)).day(vendor).body.count(literal.encode()) == 4


@pytest.mark.parametrize("vendor", ["finnhub", "alpaca", "massive", "alphavantage"])
def test_half_the_refusals_of_a_plan_come_in_the_vendors_words(directory: Path, vendor: str) -> None:
    vendors = Vendors(directory, {"match": {"capability": "bars_1m"}, "action": "refused", "code": 403})

    assert vendors.day(vendor).status == (200 if vendor == "alphavantage" else 403)
    assert b"402" not in vendors.day(vendor).body


# --- faults that have come with many vendors


def column(vendors: Vendors, name: str) -> list[Any]:
    quote = orjson.loads(vendors.day("yahoo").body)["chart"]["result"][0]["indicators"]["quote"][0]
    values: list[Any] = quote[name]
    return values


def stamps(vendors: Vendors) -> list[int]:
    found: list[int] = orjson.loads(vendors.day("yahoo").body)["chart"]["result"][0]["timestamp"]
    return found


THREE = {"minutes": [minute(3).isoformat()]}


def test_partial_nulls_leave_the_other_fields(directory: Path) -> None:
    vendors = Vendors(directory, rule("partial_nulls", field="low", **THREE))

    assert [column(vendors, name)[3] is None for name in ("open", "high", "low", "close", "volume")] == [
        False,
        False,
        True,
        False,
        False,
    ]


def test_volume_only_has_no_prices(directory: Path) -> None:
    vendors = Vendors(directory, rule("volume_only", **THREE))

    assert (column(vendors, "close")[3], column(vendors, "volume")[3]) == (None, 1000)


def test_zero_prices_keep_their_volume(directory: Path) -> None:
    vendors = Vendors(directory, rule("zero_prices", **THREE))

    assert [column(vendors, name)[3] for name in ("open", "high", "low", "close", "volume")] == [0, 0, 0, 0, 1000]


def test_crossed_bars_have_their_high_below_their_low(directory: Path) -> None:
    vendors = Vendors(directory, rule("crossed", **THREE))

    assert column(vendors, "high")[3] < column(vendors, "low")[3]


def test_the_bar_in_progress_looks_like_any_other(directory: Path) -> None:
    vendors = Vendors(directory, rule("forming_bar"), now=minute(30) + timedelta(seconds=20))
    rows = rows_of("massive", vendors.day("massive"))

    assert (rows[-1]["t"], rows[-1]["v"]) == (int(minute(30).timestamp()) * 1000, 7)


def test_another_currency_is_named(directory: Path) -> None:
    answer = orjson.loads(Vendors(directory, rule("other_currency")).day("yahoo").body)

    assert answer["chart"]["result"][0]["meta"]["currency"] == "GBp"


def test_half_a_document_comes_as_a_whole_message(directory: Path) -> None:
    reply, whole = Vendors(directory, rule("cut")).day("massive"), Vendors(directory).day("massive")

    assert (reply.status, reply.body, reply.delivery) == (200, whole.body[: len(whole.body) // 2], whole.delivery)


def test_a_retry_after_may_be_nonsense(directory: Path) -> None:
    reply = Vendors(directory, rule("status", code=429, retry_after=1, retry_after_as="nonsense")).day("finnhub")

    assert dict(reply.headers)["retry-after"] == "soon"


def test_a_bar_of_the_future_is_on_the_grid_and_after_now(directory: Path) -> None:
    vendors = Vendors(directory, rule("future_bar"), now=minute(30))

    assert stamps(vendors)[-1] == int(minute(90).timestamp())


def test_bars_outside_the_window_come_unasked(directory: Path) -> None:
    found = stamps(Vendors(directory, rule("outside_window", bars=2)))

    assert (found[:2], found[-2:]) == ([FROM - 120, FROM - 60], [TO, TO + 60])


def test_bars_leak_after_an_early_close_only(tmp_path: Path) -> None:
    half_day = datetime(2024, 11, 29, 14, 30, tzinfo=UTC)
    rows = [bar(half_day + timedelta(minutes=n)) for n in range(210)] + session_of_minutes(390)
    vendors = Vendors(write_bars(tmp_path, rows), rule("post_market_leak", bars=3))
    answer = vendors.json(
        "alpaca", "/alpaca/v2/stocks/bars", "symbols=AAPL&timeframe=1Min&start=2024-11-29&end=2024-12-03&limit=10000"
    )["bars"]["AAPL"]

    assert [row["t"] for row in answer[209:214]] == [
        "2024-11-29T17:59:00Z",
        "2024-11-29T18:00:00Z",
        "2024-11-29T18:01:00Z",
        "2024-11-29T18:02:00Z",
        "2024-12-02T14:30:00Z",
    ]
    assert len(answer) == 603


def test_close_labels_are_an_interval_late(directory: Path) -> None:
    assert stamps(Vendors(directory, rule("close_labelled"))) == [FROM + 60 * n for n in range(1, 391)]


def test_duplicates_may_conflict(directory: Path) -> None:
    closes = column(Vendors(directory, rule("duplicate", conflicting=True, **THREE)), "close")

    assert closes[4] == pytest.approx(closes[3] * 1.01, rel=1e-6)


def test_another_split_basis_keeps_the_volume(directory: Path) -> None:
    vendors = Vendors(directory, rule("split_basis", factor=4))

    assert (column(vendors, "open")[0], column(vendors, "volume")[0]) == (400.0, 1000)


def test_noise_is_in_the_last_digits_only(directory: Path) -> None:
    noisy, quiet = column(Vendors(directory, rule("noise")), "close"), column(Vendors(directory), "close")

    assert noisy != quiet
    assert np.allclose(noisy, quiet, rtol=2e-7)


def test_lots_are_a_unit_of_volume(directory: Path) -> None:
    vendors = Vendors(directory, rule("unit", of="volume", factor=0.01))

    assert (column(vendors, "volume")[0], column(vendors, "open")[0]) == (10, 100.0)


def test_a_late_correction_comes_when_its_time_has_come(directory: Path) -> None:
    early, late = (
        column(Vendors(directory, rule("late_correction", fraction=1.0), now=now), "volume")[0] for now in (minute(15), minute(16))
    )

    assert (early, late) == (500, 1000)


def test_another_backend_lacks_some_bars_and_differs_in_others_and_answers_flip_flop(directory: Path) -> None:
    vendors = Vendors(directory, rule("other_backend", lacks=0.1, differs=0.1, probability=0.5))
    answers = [tuple(stamps(vendors)) for _ in range(20)]

    assert len(set(answers)) == 2
    assert {len(answer) for answer in answers} >= {390}
    assert 330 < min(map(len, answers)) < 370


def test_a_share_of_the_universe_is_barren(tmp_path: Path) -> None:
    symbols = [f"S{n:03}" for n in range(200)]
    write_lines(tmp_path, "universe.csv", "symbol,exchange", *(f"{symbol},XNYS" for symbol in symbols))
    for symbol in symbols:
        write_bars(tmp_path, [bar(OPEN)], symbol=symbol)
    vendors = Vendors(tmp_path, rule("barren", share=0.73))
    asked = "/alpaca/v2/stocks/bars", f"symbols={','.join(symbols)}&timeframe=1Min&start=2024-12-02&limit=10000"

    answered = vendors.json("alpaca", *asked)["bars"]

    assert 0.2 < len(answered) / 200 < 0.34
    assert vendors.json("alpaca", *asked)["bars"] == answered


def test_of_many_symbols_only_the_one_that_is_meant_is_bent(directory: Path) -> None:
    vendors = Vendors(directory, {"match": {"symbol": "MSFT"}, **rule("unit")})
    asked = "symbols=AAPL,MSFT&timeframe=1Min&start=2024-12-02T14:30:00Z&end=2024-12-02T14:30:00Z"

    bars = vendors.json("alpaca", "/alpaca/v2/stocks/bars", asked)["bars"]

    assert (bars["AAPL"][0]["o"], bars["MSFT"][0]["o"]) == (100.0, 10_000.0)


# --- pages

PAGED = "symbols=AAPL&timeframe=1Min&start=2024-12-02T14:30:00Z&end=2024-12-02T20:59:00Z&limit=100"
AGGS = f"/massive/v2/aggs/ticker/AAPL/range/1/minute/{FROM * 1000}/{TO * 1000 - 1}"


def test_a_page_token_may_be_lost(directory: Path) -> None:
    vendors = Vendors(directory, rule("lost_page_token"))

    assert vendors.json("alpaca", "/alpaca/v2/stocks/bars", PAGED)["next_page_token"] is None
    assert "next_url" not in vendors.json("massive", AGGS, "limit=100")


def test_a_page_may_lead_to_itself(directory: Path) -> None:
    vendors = Vendors(directory, rule("repeated_page"))
    token = ""
    seen = []
    for _ in range(4):
        page = vendors.json("alpaca", "/alpaca/v2/stocks/bars", PAGED + (f"&page_token={token}" if token else ""))
        token = page["next_page_token"]
        seen.append(page["bars"]["AAPL"][0]["t"])

    assert seen[1:] == [seen[1]] * 3


def test_a_page_may_break_off_and_declare_what_it_does_not_have(directory: Path) -> None:
    page = Vendors(directory, rule("truncated_page", keep=0.25)).json("massive", AGGS, "limit=100")

    assert (len(page["results"]), page["resultsCount"], "next_url" in page) == (25, 100, True)


# --- records

QUOTES = ("alpaca", "/alpaca/v2/stocks/quotes/latest", "symbols=AAPL,MSFT")


@pytest.mark.parametrize("action", sorted(set(BEND_THE_RECORDS) - {"out_of_order", "duplicate"}))
def test_quotes_are_bent_by_the_same_words(directory: Path, action: str) -> None:
    more: dict[str, Any] = {"fraction": 1.0} if "fraction" in SETTINGS[action] else {}
    more |= {"field": "bp"} if "field" in SETTINGS[action] else {}

    assert Vendors(directory, rule(action, **more)).get(*QUOTES).body != Vendors(directory).get(*QUOTES).body


# --- replies


def unpacked(reply: Reply) -> int:
    return len(zlib.decompress(reply.body, 31))


def test_a_gzip_bomb_is_small_until_it_is_opened(directory: Path) -> None:
    reply = Vendors(directory, rule("gzip_bomb", megabytes=8)).day("massive")

    assert (len(reply.body) < 20_000, unpacked(reply)) == (True, 8 << 20)
    assert dict(reply.headers)["content-encoding"] == "gzip"


def test_a_redirect_leads_where_the_rule_says(directory: Path) -> None:
    reply = Vendors(directory, rule("redirect", code=307, to="http://127.0.0.1:9/x")).day("finnhub")

    assert (reply.status, dict(reply.headers)["location"]) == (307, "http://127.0.0.1:9/x")


def test_latencies_are_spread_as_told_and_the_same_again(directory: Path) -> None:
    def waits() -> list[float]:
        vendors = Vendors(directory, rule("latency", median=0.1, p95=0.4))
        windows = [f"period1={FROM}&period2={FROM + 60 * n}&interval=1m" for n in range(1, 201)]
        return [vendors.get("yahoo", "/v8/finance/chart/AAPL", w).delivery.stall_before_seconds for w in windows]

    found = waits()

    assert found == waits()
    assert 0.07 < np.median(found) < 0.13
    assert 0.25 < np.quantile(found, 0.95) < 0.6


def test_a_delay_survives_the_refusal_behind_it(directory: Path) -> None:
    reply = Vendors(directory, rule("stall", seconds=2), rule("status", code=503)).day("yahoo")

    assert (reply.status, reply.delivery.stall_before_seconds) == (503, 2)


def test_all_but_the_first_requests_are_meant_by_skip(directory: Path) -> None:
    vendors = Vendors(directory, {"match": {"skip": 2}, "action": "status", "code": 503})

    assert [vendors.day("yahoo").status for _ in range(4)] == [200, 200, 503, 503]
