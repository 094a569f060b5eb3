"""What the simulated Yahoo answers. Session hours are NYSE's and HKEX's published ones; texts are those of PROVIDERS.md §1."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pytest

from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.simulator.market import Market
from market_data_pipeline_tests.simulator.directories import (
    CLOSE,
    LATER,
    OPEN,
    bar,
    chart,
    epochs,
    minute,
    parameters,
    refusal,
    session_of_minutes,
    withdrawn,
    write_bars,
    write_lines,
)

if TYPE_CHECKING:
    from pathlib import Path

WHOLE_SESSION = parameters(OPEN, CLOSE)


@pytest.fixture
def session(tmp_path: Path) -> Path:
    """One symbol with every minute of 2024-12-02."""
    return write_bars(tmp_path, session_of_minutes())


def test_a_minute_appears_when_it_has_ended(session: Path) -> None:
    write_lines(session, "profile.yaml", "live_bar: none")
    market = Market(session)

    before = chart(market, WHOLE_SESSION, now=minute(3) - timedelta(seconds=1))
    after = chart(market, WHOLE_SESSION, now=minute(3))

    assert before["timestamp"] == epochs(minute(0), minute(1))
    assert after["timestamp"] == epochs(minute(0), minute(1), minute(2))


def test_a_delay_postpones_every_bar(session: Path) -> None:
    write_lines(session, "profile.yaml", "live_bar: none", "delay_seconds: 30")
    market = Market(session)

    assert chart(market, WHOLE_SESSION, now=minute(2) + timedelta(seconds=29))["timestamp"] == epochs(minute(0))
    assert chart(market, WHOLE_SESSION, now=minute(2) + timedelta(seconds=30))["timestamp"] == epochs(minute(0), minute(1))


def test_the_end_of_the_window_is_exclusive(session: Path) -> None:
    answer = chart(Market(session), parameters(minute(5), minute(7)), now=LATER)

    assert answer["timestamp"] == epochs(minute(5), minute(6))


def test_prices_are_float32_widened(tmp_path: Path) -> None:
    market = Market(write_bars(tmp_path, [bar(OPEN, price=198.63)]))

    assert chart(market, WHOLE_SESSION, now=LATER)["indicators"]["quote"][0]["open"] == [198.6300048828125]


def test_the_float64_profile_sends_what_the_file_holds(tmp_path: Path) -> None:
    write_lines(tmp_path, "profile.yaml", "prices: float64")
    market = Market(write_bars(tmp_path, [bar(OPEN, price=198.63)]))

    assert chart(market, WHOLE_SESSION, now=LATER)["indicators"]["quote"][0]["open"] == [198.63]


def test_the_newest_version_known_is_served(tmp_path: Path) -> None:
    corrected_at = OPEN + timedelta(hours=20)
    rows = [bar(OPEN, volume=900), bar(OPEN, volume=450, known_from=corrected_at)]
    market = Market(write_bars(tmp_path, rows))

    assert chart(market, WHOLE_SESSION, now=corrected_at - timedelta(seconds=1))["indicators"]["quote"][0]["volume"] == [900]
    assert chart(market, WHOLE_SESSION, now=corrected_at)["indicators"]["quote"][0]["volume"] == [450]


def test_a_withdrawn_bar_is_gone_from_then_on(tmp_path: Path) -> None:
    gone_at = OPEN + timedelta(hours=1)
    market = Market(write_bars(tmp_path, [bar(OPEN), bar(minute(1)), withdrawn(minute(1), gone_at)]))

    assert chart(market, WHOLE_SESSION, now=gone_at - timedelta(seconds=1))["timestamp"] == epochs(OPEN, minute(1))
    assert chart(market, WHOLE_SESSION, now=gone_at)["timestamp"] == epochs(OPEN)


def test_going_back_in_time_shows_the_past_again(session: Path) -> None:
    market = Market(session)
    early = chart(market, WHOLE_SESSION, now=minute(10))
    chart(market, WHOLE_SESSION, now=LATER)

    assert chart(market, WHOLE_SESSION, now=minute(10)) == early


def test_the_bar_in_progress_is_flat_without_volume_in_form_b(session: Path) -> None:
    write_lines(session, "profile.yaml", "live_bar: B")
    answer = chart(Market(session), WHOLE_SESSION, now=minute(1) + timedelta(seconds=20))

    assert answer["timestamp"] == epochs(minute(0), minute(1))
    quote = answer["indicators"]["quote"][0]
    assert {quote[name][1] for name in ("open", "high", "low", "close")} == {quote["open"][1]}
    assert quote["volume"][1] == 0


def test_the_bar_in_progress_is_a_null_and_a_tick_in_form_a(session: Path) -> None:
    write_lines(session, "profile.yaml", "live_bar: A")
    now = minute(1) + timedelta(seconds=24)
    answer = chart(Market(session), WHOLE_SESSION, now=now)

    assert answer["timestamp"] == epochs(minute(0), minute(1), now)
    quote = answer["indicators"]["quote"][0]
    assert quote["close"][1] is None
    assert quote["volume"][1:] == [None, 0]
    assert quote["close"][2] is not None


def test_a_bar_in_progress_stays_out_of_a_window_that_ended_before(session: Path) -> None:
    answer = chart(Market(session), parameters(OPEN, minute(1)), now=minute(1) + timedelta(seconds=20))

    assert answer["timestamp"] == epochs(minute(0))


def test_the_day_in_progress_is_stamped_with_the_last_tick(session: Path) -> None:
    now = minute(100)
    answer = chart(Market(session), parameters(OPEN, CLOSE, "1d"), now=now)

    assert answer["timestamp"] == epochs(now)


def test_a_day_is_stamped_with_the_opening_of_its_session(session: Path) -> None:
    answer = chart(Market(session), parameters(OPEN - timedelta(days=1), LATER, "1d"), now=LATER)

    assert answer["timestamp"] == epochs(OPEN)


def test_a_day_is_the_sum_of_its_minutes(session: Path) -> None:
    quote = chart(Market(session), parameters(OPEN, CLOSE, "1d"), now=LATER)["indicators"]["quote"][0]

    assert quote["volume"] == [390_000]
    assert quote["open"] == [100.0]
    assert quote["close"] == [np.float64(np.float32(100.0 + 3.89 + 0.25))]
    assert quote["high"] == [np.float64(np.float32(100.0 + 3.89 + 0.5))]
    assert quote["low"] == [99.5]


def test_hours_are_anchored_at_the_open_and_the_last_one_is_short(session: Path) -> None:
    answer = chart(Market(session), parameters(OPEN, CLOSE, "1h"), now=LATER)

    assert answer["timestamp"] == epochs(*(OPEN + timedelta(hours=n) for n in range(7)))
    assert answer["indicators"]["quote"][0]["volume"] == [60_000] * 6 + [30_000]


def test_hours_begin_anew_after_the_lunch_break(tmp_path: Path) -> None:
    write_lines(tmp_path, "universe.csv", "symbol,exchange", "9801.HK,XHKG")
    # HKEX: 09:30-12:00 and 13:00-16:00, UTC+8.
    morning, afternoon = datetime(2024, 12, 2, 1, 30, tzinfo=UTC), datetime(2024, 12, 2, 5, 0, tzinfo=UTC)
    rows = [bar(morning + timedelta(minutes=n)) for n in range(150)] + [bar(afternoon + timedelta(minutes=n)) for n in range(180)]
    market = Market(write_bars(tmp_path, rows, symbol="9801.HK"))

    answer = chart(market, parameters(morning, CLOSE, "1h"), now=LATER, symbol="9801.HK")

    hours = [morning + timedelta(hours=n) for n in range(3)] + [afternoon + timedelta(hours=n) for n in range(3)]
    assert answer["timestamp"] == epochs(*hours)
    assert answer["indicators"]["quote"][0]["volume"] == [60_000, 60_000, 30_000, 60_000, 60_000, 60_000]


def test_thirty_minutes_are_answered_with_hours_and_say_so(session: Path) -> None:
    answer = chart(Market(session), parameters(OPEN, CLOSE, "30m"), now=LATER)

    assert len(answer["timestamp"]) == 7
    assert answer["meta"]["dataGranularity"] == "1h"


def test_thirty_minutes_are_served_where_the_profile_says_so(session: Path) -> None:
    write_lines(session, "profile.yaml", "thirty_minutes_as_hours: false")
    answer = chart(Market(session), parameters(OPEN, CLOSE, "30m"), now=LATER)

    assert len(answer["timestamp"]) == 13
    assert answer["meta"]["dataGranularity"] == "30m"


def test_a_missing_minute_is_left_out(tmp_path: Path) -> None:
    market = Market(write_bars(tmp_path, [bar(minute(0)), bar(minute(2))]))

    assert chart(market, WHOLE_SESSION, now=LATER)["timestamp"] == epochs(minute(0), minute(2))


def test_a_missing_minute_is_null_where_the_profile_says_so(tmp_path: Path) -> None:
    write_lines(tmp_path, "profile.yaml", "missing: nulls")
    market = Market(write_bars(tmp_path, [bar(minute(0)), bar(minute(2))]))
    answer = chart(market, parameters(minute(0), minute(3)), now=LATER)

    assert answer["timestamp"] == epochs(minute(0), minute(1), minute(2))
    assert answer["indicators"]["quote"][0]["volume"] == [1000, None, 1000]
    assert answer["indicators"]["quote"][0]["close"][1] is None


def test_minutes_before_the_open_come_only_when_asked_for(tmp_path: Path) -> None:
    early = OPEN - timedelta(minutes=10)
    market = Market(write_bars(tmp_path, [bar(early), bar(OPEN)]))
    window = parameters(early, CLOSE)

    assert chart(market, window, now=LATER)["timestamp"] == epochs(OPEN)
    assert chart(market, window | {"includePrePost": "true"}, now=LATER)["timestamp"] == epochs(early, OPEN)


def test_minutes_after_the_close_of_a_half_day_come_although_nobody_asked(tmp_path: Path) -> None:
    # NYSE closed at 13:00 New York on 2024-11-29.
    half_day_close = datetime(2024, 11, 29, 18, 0, tzinfo=UTC)
    market = Market(write_bars(tmp_path, [bar(half_day_close), bar(CLOSE)]))

    answer = chart(market, parameters(half_day_close - timedelta(days=1), LATER), now=LATER)

    assert answer["timestamp"] == epochs(half_day_close)


def test_nothing_in_the_window_means_no_timestamp_and_an_empty_quote(session: Path) -> None:
    answer = chart(Market(session), parameters(OPEN - timedelta(days=2), OPEN - timedelta(days=1)), now=LATER)

    assert "timestamp" not in answer
    assert answer["indicators"] == {"quote": [{}]}


def test_an_unknown_symbol_is_404(session: Path) -> None:
    answer = refusal(Market(session), WHOLE_SESSION, now=LATER, symbol="NOPE")

    assert (answer.status, answer.code, answer.description) == (404, "Not Found", "No data found, symbol may be delisted")


@pytest.mark.parametrize("symbol", ["../../etc/passwd", "'; drop table", "A" * 40, ""])
def test_a_hostile_symbol_is_404(session: Path, symbol: str) -> None:
    assert refusal(Market(session), WHOLE_SESSION, now=LATER, symbol=symbol).status == 404


@pytest.mark.parametrize("symbol", ["BTC/USD", "^GSPC", "EURUSD=X", "BRK.B"])
def test_any_symbol_has_a_file_name(tmp_path: Path, symbol: str) -> None:
    market = Market(write_bars(tmp_path, [bar(OPEN)], symbol=symbol))

    answer = chart(market, WHOLE_SESSION, now=LATER, symbol=symbol)

    assert answer["meta"]["symbol"] == symbol
    assert answer["timestamp"] == epochs(OPEN)


@pytest.mark.parametrize(
    ("interval", "days"), [("1m", 30), ("2m", 60), ("5m", 60), ("15m", 60), ("30m", 60), ("90m", 60), ("60m", 730), ("1h", 730)]
)
def test_a_window_beyond_the_reach_is_422(session: Path, interval: str, days: int) -> None:
    market = Market(session)
    start = LATER - timedelta(days=days)

    assert "timestamp" not in chart(market, parameters(start, start + timedelta(days=1), interval), now=LATER)
    answer = refusal(market, parameters(start - timedelta(seconds=1), start, interval), now=LATER)

    assert (answer.status, answer.code) == (422, "Unprocessable Entity")
    assert answer.description == (
        f"{interval} data not available for startTime={start.timestamp() - 1:.0f} and endTime={start.timestamp():.0f}. "
        f"The requested range must be within the last {days} days."
    )


def test_days_have_no_reach(session: Path) -> None:
    assert chart(Market(session), parameters(OPEN - timedelta(days=9000), LATER, "1d"), now=LATER)["timestamp"] == epochs(OPEN)


def test_more_than_eight_days_of_minutes_are_422(session: Path) -> None:
    market = Market(session)
    start = LATER - timedelta(days=9)

    chart(market, parameters(start, start + timedelta(days=8)), now=LATER)
    answer = refusal(market, parameters(start, start + timedelta(days=8, seconds=1)), now=LATER)

    assert answer.status == 422
    assert answer.description.endswith("Only 8 days worth of 1m granularity data are allowed to be fetched per request.")


@pytest.mark.parametrize(
    ("broken", "status"),
    [
        ({"period1": "yesterday"}, 400),
        ({"period1": "9999999999"}, 400),
        ({"interval": "7m"}, 422),
        ({"interval": "1wk"}, 422),
    ],
)
def test_a_request_that_cannot_be_meant_is_refused(session: Path, broken: dict[str, str], status: int) -> None:
    assert refusal(Market(session), WHOLE_SESSION | broken, now=LATER).status == status


@pytest.mark.parametrize("chosen", ["1d", "5d", "1mo"])
def test_a_range_ends_now(session: Path, chosen: str) -> None:
    interval = "1m" if chosen != "1mo" else "1h"
    answer = chart(Market(session), {"range": chosen, "interval": interval}, now=LATER)

    assert answer["timestamp"][0] == OPEN.timestamp()
    assert answer["meta"]["range"] == chosen


def test_splits_and_dividends_of_the_window_come_with_the_bars(session: Path) -> None:
    write_lines(
        session,
        "actions.csv",
        "symbol,kind,session_date,value,currency",
        "AAPL,split,2024-12-02,4,",
        "AAPL,dividend,2024-12-02,0.25,USD",
        "AAPL,dividend,2024-11-01,0.25,USD",
    )
    stamp = str(int(OPEN.timestamp()))

    events = chart(Market(session), parameters(OPEN, LATER, "1d"), now=LATER)["events"]

    split = {"date": int(stamp), "numerator": 4, "denominator": 1, "splitRatio": "4:1"}
    dividend = {"amount": 0.25, "date": int(stamp), "currency": "USD"}
    assert events == {"splits": {stamp: split}, "dividends": {stamp: dividend}}


def test_an_action_is_told_once_it_is_known(session: Path) -> None:
    write_lines(session, "actions.csv", "symbol,kind,session_date,value,known_from", "AAPL,split,2024-12-02,4,2024-12-03T00:00:00Z")
    market = Market(session)

    assert "events" not in chart(market, parameters(OPEN, LATER, "1d"), now=CLOSE + timedelta(hours=1))
    assert "events" in chart(market, parameters(OPEN, LATER, "1d"), now=LATER)


def test_adjclose_takes_later_dividends_out(tmp_path: Path) -> None:
    days = [["2024-12-02", "100", "101", "99", "100", "10", ""], ["2024-12-03", "99", "101", "98", "99", "10", ""]]
    write_lines(tmp_path, "actions.csv", "symbol,kind,session_date,value", "AAPL,dividend,2024-12-03,2")
    market = Market(write_bars(tmp_path, days, interval="1d"))

    answer = chart(market, parameters(OPEN, LATER + timedelta(days=1), "1d"), now=LATER + timedelta(days=1))

    assert answer["indicators"]["adjclose"][0]["adjclose"] == [98.0, 99.0]


def test_adjclose_is_for_days_only(session: Path) -> None:
    assert "adjclose" not in chart(Market(session), WHOLE_SESSION, now=LATER)["indicators"]


def test_meta_speaks_of_the_exchange(session: Path) -> None:
    meta = chart(Market(session), WHOLE_SESSION, now=LATER)["meta"]

    assert meta["exchangeTimezoneName"] == "America/New_York"
    assert (meta["gmtoffset"], meta["timezone"]) == (-18000, "EST")
    assert meta["dataGranularity"] == "1m"
    assert meta["currentTradingPeriod"]["regular"]["start"] == int((OPEN + timedelta(days=1)).timestamp())
    assert [(p["start"], p["end"]) for day in meta["tradingPeriods"] for p in day] == [tuple(epochs(OPEN, CLOSE))]
    assert meta["regularMarketPrice"] == 104.14


def test_trading_periods_have_three_kinds_when_pre_and_post_are_asked_for(session: Path) -> None:
    periods = chart(Market(session), WHOLE_SESSION | {"includePrePost": "true"}, now=LATER)["meta"]["tradingPeriods"]

    # 04:00 and 20:00 New York.
    assert periods["pre"][0][0]["start"] == int(datetime(2024, 12, 2, 9, tzinfo=UTC).timestamp())
    assert periods["regular"][0][0]["start"] == int(OPEN.timestamp())
    assert periods["post"][0][0]["end"] == int(datetime(2024, 12, 3, 1, tzinfo=UTC).timestamp())


def test_round_the_clock_markets_send_the_day_that_opens_at_the_end_of_the_window(tmp_path: Path) -> None:
    # Recorded: BTC-USD asked for 2020-01-01 to 01-03 brings three days (yahoo_wire_yf2).
    write_lines(tmp_path, "universe.csv", "symbol,exchange,asset_type", "BTC-USD,CRYPTO,crypto")
    days = [[f"2024-12-0{n}", "9", "9", "9", "9", "1", ""] for n in range(1, 5)]
    market = Market(write_bars(tmp_path, days, symbol="BTC-USD", interval="1d"))
    first, last = datetime(2024, 12, 1, tzinfo=UTC), datetime(2024, 12, 3, tzinfo=UTC)

    answer = chart(market, parameters(first, last, "1d"), now=LATER + timedelta(days=9), symbol="BTC-USD")

    assert answer["timestamp"] == epochs(first, first + timedelta(days=1), last)


def test_a_listed_symbol_without_bars_is_answered_emptily(session: Path) -> None:
    write_lines(session, "universe.csv", "symbol,exchange", "AAPL,XNAS", "QUIET,XNYS")

    answer = chart(Market(session), WHOLE_SESSION, now=LATER, symbol="QUIET")

    assert answer["indicators"] == {"quote": [{}]}


def test_gzipped_files_are_read(tmp_path: Path) -> None:
    write_bars(tmp_path, [bar(OPEN)])
    plain = tmp_path / "1m" / "AAPL.csv"
    (tmp_path / "1m" / "AAPL.csv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()

    assert chart(Market(tmp_path), WHOLE_SESSION, now=LATER)["timestamp"] == epochs(OPEN)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"nowhere.*expected a folder"):
        Market(tmp_path / "nowhere")


def test_a_directory_without_bars_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="nothing to serve"):
        Market(tmp_path)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("2024-12-02T14:30:00Z,1,1,1,one,5", "column close"),
        ("yesterday,1,1,1,1,5", "column opened_at"),
    ],
)
def test_a_broken_file_is_named_with_its_column(tmp_path: Path, line: str, complaint: str) -> None:
    write_lines(tmp_path / "1m", "AAPL.csv", "opened_at,open,high,low,close,volume", line)

    with pytest.raises(InvalidInputError, match=rf"AAPL\.csv: {complaint}"):
        chart(Market(tmp_path), WHOLE_SESSION, now=LATER)


@pytest.mark.parametrize("line", ["prices: float16", "missing: null", "delay_seconds: -1", "colour: blue", "- a list"])
def test_a_profile_that_cannot_be_meant_is_refused(session: Path, line: str) -> None:
    write_lines(session, "profile.yaml", line)

    with pytest.raises(InvalidInputError, match=r"profile\.yaml: .*expected"):
        Market(session)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    write_lines(tmp_path / "1m", "AAPL.csv", "opened_at,open,high,low,close", "2024-12-02T14:30:00Z,1,1,1,1")

    with pytest.raises(InvalidInputError, match="no column volume"):
        chart(Market(tmp_path), WHOLE_SESSION, now=LATER)
