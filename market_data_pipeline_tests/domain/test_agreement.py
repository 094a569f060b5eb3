"""Whether two providers agree, held against real pairs of providers, and who is believed where they do not."""

from __future__ import annotations

import csv
import gzip
import json
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.agreement import Agreement, Comparison, Ruling, compare, draw, ruling
from market_data_pipeline.domain.candles import CandleColumns, Interval
from market_data_pipeline.domain.capabilities import Feed
from market_data_pipeline_tests.recorded import FIELDS, lean_2013, recorded

if TYPE_CHECKING:
    from collections.abc import Callable

ONE_BASE = (Feed.CONSOLIDATED, Feed.SIP)
OTHER_FEED = (Feed.SIP, Feed.IEX)
DAY = 86_400
Days = dict[int, tuple[float, ...]]


def bars(close: float = 100.0, *, count: int = 390, volume: float = 1000.0) -> CandleColumns:
    opens = 1_733_149_800 + 60 * np.arange(count)
    flat = np.full(count, close)
    return CandleColumns.of(opens, flat.copy(), flat * 1.001, flat * 0.999, flat.copy(), np.full(count, volume))


def compared(
    first: CandleColumns, second: CandleColumns, *, feeds: tuple[Feed, Feed] = ONE_BASE, interval: Interval = Interval.M1
) -> Agreement:
    found = compare(first, second, interval, feeds=feeds)
    assert found is not None
    return found


# --- comparing ---------------------------------------------------------------------------------------------------------


def test_the_same_bars_agree() -> None:
    found = compared(bars(), bars())
    assert (found.verdict, found.compared, found.volume_ratio, found.off_opened_at) == ("agree", 390, 1.0, [])


def test_the_noise_of_float32_and_a_cent_are_no_disagreement() -> None:
    cheap = bars(2.0)
    other = bars(2.0)
    other.close[:] = np.float32(2.01)
    assert compared(cheap, other).verdict is Comparison.AGREE


def test_a_bar_that_only_one_has_is_no_disagreement() -> None:
    found = compared(bars(), bars(count=380))
    assert (found.verdict, found.compared, found.only_first, found.only_second) == ("agree", 380, 10, 0)


def test_bars_without_one_in_common_cannot_be_compared() -> None:
    assert compare(bars(), CandleColumns.empty(), Interval.M1, feeds=ONE_BASE) is None


def test_a_few_late_corrections_are_no_disagreement() -> None:
    other = bars()
    other.close[:5] *= 1.002
    assert compared(bars(), other).verdict is Comparison.AGREE


def test_prices_that_differ_in_one_bar_of_ten_disagree_and_those_bars_are_named() -> None:
    other = bars()
    other.close[:39] *= 1.002
    found = compared(bars(), other)
    assert (found.verdict, len(found.off_opened_at)) == ("disagree", 39)
    assert found.reason == "close by up to 20.0 bp in 39 of 390 bars"


def test_one_close_that_is_far_away_disagrees() -> None:
    other = bars()
    other.close[7] *= 1.03
    assert compared(bars(), other).off_opened_at == [other.opened_at[7]]


@pytest.mark.parametrize("factor", [100.0, 0.01])
def test_a_hundred_times_the_price_is_another_unit(factor: float) -> None:
    found = compared(bars(), bars(100.0 * factor))
    assert (found.verdict, len(found.off_opened_at)) == ("unit_slip", 390)


@pytest.mark.parametrize("factor", [10.0, 0.5, 4.0])
def test_every_price_by_one_factor_is_another_basis(factor: float) -> None:
    assert compared(bars(), bars(100.0 * factor)).verdict is Comparison.BASIS


def test_a_28th_of_the_volume_on_another_feed_is_a_difference_of_feeds() -> None:
    # AAPL, 2025-12-01: 1,647,255 shares on IEX, 46,587,722 consolidated.
    found = compared(bars(volume=46_587_722 / 390), bars(volume=1_647_255 / 390), feeds=OTHER_FEED)
    assert found.verdict is Comparison.FEED_DIFFERENCE
    assert found.verdict.is_agreement
    assert found.off_opened_at == []


def test_a_28th_of_the_volume_on_the_same_feed_disagrees_and_blames_no_bar() -> None:
    found = compared(bars(volume=28_000.0), bars(volume=1000.0))
    assert (found.verdict, found.off_opened_at) == ("disagree", [])


def test_a_hundred_times_the_price_on_another_feed_is_no_difference_of_feeds() -> None:
    assert compared(bars(), bars(10_000.0), feeds=OTHER_FEED).verdict is Comparison.UNIT_SLIP


@given(st.floats(0.02, 50_000), st.lists(st.floats(-1.4, 1.4), min_size=1, max_size=50), st.floats(0.93, 1.5))
def test_what_was_measured_between_honest_providers_agrees(price: float, moves: list[float], volume: float) -> None:
    """Minutes of SPY and QQQ from Yahoo and Polygon: at most 1.4 bp apart, volume 0.93 to 1.50."""
    first, second = bars(price, count=len(moves)), bars(price, count=len(moves), volume=1000.0 * volume)
    for name in FIELDS[:4]:
        getattr(second, name)[:] *= 1 + np.array(moves) / 1e4
    assert compared(first, second).verdict is Comparison.AGREE


# --- real pairs of providers -------------------------------------------------------------------------------------------


def lean(symbol: str, tmp_path: object) -> Days:
    return {row.opened_at: tuple(getattr(row, name) for name in FIELDS) for row in lean_2013(tmp_path).rows["1d", symbol]}  # type: ignore[arg-type]


def yahoo_spy() -> Days:
    with (recorded("daily_mplfinance") / "yahoofinance-SPY-20080101-20180101.csv").open(newline="") as file:
        return _days(list(csv.DictReader(file)))


def alphavantage(symbol: str) -> Days:
    with gzip.open(recorded("alphavantage_eqker_201902") / f"{symbol}_daily.csv.gz", "rt", newline="") as file:
        return _days(list(csv.DictReader(file)))


def yahoo_ibm() -> Days:
    with gzip.open(recorded("zipline") / "IBM.csv.gz", "rt", newline="") as file:
        return _days(list(csv.DictReader(file)))


def cboe_aapl() -> Days:
    name = "api__global__delayed_quotes__charts__historical__AAPL.json__457b6f.json.gz"
    with gzip.open(recorded("cboe_openbb_vcr") / name, "rt") as file:
        return _days(json.load(file)["data"])


def yahoo_aapl_2026() -> Days:
    newest = max((recorded("yahoo_snapshots_sds_202603") / "AAPL" / "1d").glob("*.csv.gz"))
    with gzip.open(newest, "rt", newline="") as file:
        return _days(list(csv.DictReader(file)))


def _days(rows: list[dict[str, str]]) -> Days:
    days = {}
    for row in rows:
        cells = {name.lower(): text for name, text in row.items()}
        stamp = next(cells[name] for name in ("date", "timestamp", "datetime", "") if name in cells)
        day = datetime.fromisoformat(str(stamp)[:10]).toordinal() - 719_163
        days[day * DAY] = tuple(float(cells[name]) for name in FIELDS)
    return days


def columns_of(days: Days) -> CandleColumns:
    stamps = sorted(days)
    return CandleColumns.of(stamps, *np.array([days[at] for at in stamps]).T)


def day_by_day(first: Days, second: Days, *, since: date = date(1990, 1, 1)) -> list[Comparison]:
    """Each day compared by itself, as a second opinion on days is."""
    common = sorted(at for at in first.keys() & second.keys() if at >= (since.toordinal() - 719_163) * DAY)
    a, b = columns_of({at: first[at] for at in common}), columns_of({at: second[at] for at in common})
    lawful = a.obeys_ohlc_laws() & b.obeys_ohlc_laws() & (a.low > 0) & (b.low > 0)
    a, b = a.take(lawful), b.take(lawful)
    return [compared(a.take(row), b.take(row), interval=Interval.D1).verdict for row in (np.array([at]) for at in range(len(a)))]


PAIRS: dict[str, tuple[Callable[[object], Days], Callable[[], Days], date]] = {
    # Until 2011 the two mean another close: 85 of 1,010 days are more than 25 bp apart.
    "SPY, QuantConnect and Yahoo": (lambda tmp: lean("SPY", tmp), yahoo_spy, date(2012, 1, 1)),
    "SPY, QuantConnect and Alpha Vantage": (lambda tmp: lean("SPY", tmp), lambda: alphavantage("SPY"), date(2018, 1, 1)),
    "BAC, QuantConnect and Alpha Vantage": (lambda tmp: lean("BAC", tmp), lambda: alphavantage("BAC"), date(2018, 1, 1)),
    "IBM, QuantConnect and Yahoo": (lambda tmp: lean("IBM", tmp), yahoo_ibm, date(2012, 1, 1)),
    "AAPL, CBOE and Yahoo": (lambda _: cboe_aapl(), yahoo_aapl_2026, date(2024, 1, 1)),
}


@pytest.mark.parametrize("pair", PAIRS, ids=[name.replace(" ", "-") for name in PAIRS])
def test_honest_providers_disagree_on_one_real_day_in_a_hundred_at_most(pair: str, tmp_path: object) -> None:
    one, other, since = PAIRS[pair]
    verdicts = day_by_day(one(tmp_path), other(), since=since)
    assert len(verdicts) > 250
    assert sum(not verdict.is_agreement for verdict in verdicts) <= len(verdicts) / 100
    assert not {Comparison.UNIT_SLIP, Comparison.BASIS} & set(verdicts)


# --- who is believed ---------------------------------------------------------------------------------------------------

POLICY = ("yahoo", "alpaca", "massive")
YES, NO = Comparison.AGREE, Comparison.DISAGREE


def test_where_two_agree_what_is_stored_stands() -> None:
    assert ruling("yahoo", "massive", Comparison.FEED_DIFFERENCE, policy=POLICY) == Ruling("yahoo", None, "agreement")


@pytest.mark.parametrize(
    ("with_stored", "with_second", "expected"),
    [
        (YES, NO, Ruling("massive", "yahoo", "majority")),
        (NO, YES, Ruling("yahoo", "massive", "majority")),
        # A third that sides with both or with neither decides nothing.
        (YES, YES, Ruling("yahoo", "massive", "policy")),
        (NO, NO, Ruling("yahoo", "massive", "policy")),
        (None, None, Ruling("yahoo", "massive", "policy")),
        (None, YES, Ruling("yahoo", "massive", "majority")),
    ],
)
def test_two_of_three_are_believed_else_the_first_in_the_policy(
    with_stored: Comparison | None, with_second: Comparison | None, expected: Ruling
) -> None:
    """Massive's bars are stored, Yahoo's is the second opinion."""
    told = ruling("massive", "yahoo", NO, policy=POLICY, third_with_stored=with_stored, third_with_second=with_second)
    assert told == expected


def test_a_provider_outside_the_policy_stands_behind_it_and_behind_what_is_stored() -> None:
    assert ruling("yahoo", "files", NO, policy=POLICY).winner == "yahoo"
    assert ruling("files", "yahoo", NO, policy=POLICY).winner == "yahoo"
    assert ruling("files", "cboe", NO, policy=POLICY).winner == "files"


# --- who is asked ------------------------------------------------------------------------------------------------------


def test_the_sample_is_the_same_everywhere_and_always() -> None:
    # Computed once, by hand, with hashlib: a new release must not ask about other sessions.
    assert round(draw("AAPL", Interval.M1, date(2024, 12, 2)), 6) == 0.56989


def test_the_sample_is_about_the_share_that_was_asked_for() -> None:
    sessions = [date(2020, 1, 1) + timedelta(days=n) for n in range(250)]
    drawn = sum(draw(f"S{n}", Interval.M1, day) < 0.01 for n in range(80) for day in sessions)
    assert 150 < drawn < 250
