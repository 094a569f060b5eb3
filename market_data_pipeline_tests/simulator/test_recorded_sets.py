"""Recorded bars go into a data directory and come back over the wire value by value, at each time what was known then."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.simulator.market import Market
from market_data_pipeline_tests.recorded import FIELDS, RecordedSet, Row, lean_2013, yahoo_aapl_snapshots_2026, yahoo_msft_2022
from market_data_pipeline_tests.simulator.directories import chart, parameters

if TYPE_CHECKING:
    from collections.abc import Sequence

EIGHT_DAYS = 8 * 86400


def served_minutes(market: Market, symbol: str, rows: Sequence[Row], now: datetime) -> list[Row]:
    """What Yahoo answers for the span of ``rows``, in windows of eight days."""
    first, last = rows[0].opened_at, rows[-1].opened_at + 60
    windows = [(start, min(start + EIGHT_DAYS, last)) for start in range(first, last, EIGHT_DAYS)]
    return [row for start, end in windows for row in _served(market, symbol, "1m", start, end, now)]


def served_days(market: Market, symbol: str, rows: Sequence[Row], now: datetime) -> list[Row]:
    served = _served(market, symbol, "1d", rows[0].opened_at, rows[-1].opened_at + 86400, now)
    # The stamp is the opening, 14:30 or 13:30 UTC in New York: its UTC day is the session.
    return [Row(row.opened_at // 86400 * 86400, row.open, row.high, row.low, row.close, row.volume) for row in served]


def _served(market: Market, symbol: str, interval: str, start: int, end: int, now: datetime) -> list[Row]:
    window = parameters(datetime.fromtimestamp(start, UTC), datetime.fromtimestamp(end, UTC), interval)
    answer = chart(market, window, now=now, symbol=symbol)
    if "timestamp" not in answer:
        return []
    quote = answer["indicators"]["quote"][0]
    return [Row(*row) for row in zip(answer["timestamp"], *(quote[name] for name in FIELDS), strict=True)]


@pytest.fixture(scope="module")
def msft(tmp_path_factory: pytest.TempPathFactory) -> RecordedSet:
    return yahoo_msft_2022(tmp_path_factory.mktemp("msft"))


@pytest.fixture(scope="module")
def lean(tmp_path_factory: pytest.TempPathFactory) -> RecordedSet:
    return lean_2013(tmp_path_factory.mktemp("lean"))


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> RecordedSet:
    return yahoo_aapl_snapshots_2026(tmp_path_factory.mktemp("snapshots"))


def test_every_minute_and_day_of_msft_comes_back(msft: RecordedSet) -> None:
    market = Market(msft.directory)
    minutes, days = msft.rows["1m", "MSFT"], msft.rows["1d", "MSFT"]

    assert len(minutes) == 7440
    assert served_minutes(market, "MSFT", minutes, msft.now) == list(minutes)
    assert served_days(market, "MSFT", days, msft.now) == list(days)


@pytest.mark.parametrize(("symbol", "minutes"), [("SPY", 5 * 390), ("IBM", 6 * 390 - 2), ("BAC", 6 * 390)])
def test_every_regular_minute_of_lean_comes_back_and_no_other(lean: RecordedSet, symbol: str, minutes: int) -> None:
    rows = lean.rows["1m", symbol]

    assert len(rows) == minutes
    assert len(lean.extended["1m", symbol]) > 200
    assert served_minutes(Market(lean.directory), symbol, rows, lean.now) == list(rows)


def test_extended_minutes_of_lean_come_when_asked_for(lean: RecordedSet) -> None:
    rows = sorted((*lean.rows["1m", "SPY"], *lean.extended["1m", "SPY"]), key=lambda row: row.opened_at)
    start, end = (datetime.fromtimestamp(at, UTC) for at in (rows[0].opened_at, rows[-1].opened_at + 60))

    answer = chart(Market(lean.directory), parameters(start, end) | {"includePrePost": "true"}, now=lean.now, symbol="SPY")

    assert answer["timestamp"] == [row.opened_at for row in rows]


def test_lean_days_up_to_now_come_back(lean: RecordedSet) -> None:
    rows = [row for row in lean.rows["1d", "SPY"] if row.opened_at < lean.now.timestamp() - 86400]

    assert served_days(Market(lean.directory), "SPY", rows, lean.now) == rows


def test_a_volume_of_lean_is_the_sum_of_its_regular_minutes(lean: RecordedSet) -> None:
    # Measured in the data (MARKET_CASES.md): SPY 2013-10-07, 81,489,219 in regular hours.
    day = int(datetime(2013, 10, 7, tzinfo=UTC).timestamp())
    minutes = [row for row in lean.rows["1m", "SPY"] if day <= row.opened_at < day + 86400]

    assert sum(row.volume for row in minutes) == 81_489_219
    assert next(row.volume for row in lean.rows["1d", "SPY"] if row.opened_at == day) == 81_489_219


def test_at_the_time_of_each_pull_its_minutes_are_served(snapshots: RecordedSet) -> None:
    market = Market(snapshots.directory)
    pulls = snapshots.pulls["1m", "AAPL"]

    assert len(pulls) == 4
    for pull in pulls:
        assert served_minutes(market, "AAPL", pull.rows, pull.known_from) == list(pull.rows)


def test_at_the_time_of_each_pull_its_days_are_served(snapshots: RecordedSet) -> None:
    market = Market(snapshots.directory)
    pulls = snapshots.pulls["1d", "AAPL"]

    assert len(pulls) == 10
    for pull in pulls:
        assert served_days(market, "AAPL", pull.rows, pull.known_from) == list(pull.rows)


def test_before_the_first_pull_nothing_is_known(snapshots: RecordedSet) -> None:
    pull = snapshots.pulls["1m", "AAPL"][0]

    assert served_minutes(Market(snapshots.directory), "AAPL", pull.rows, pull.known_from - timedelta(seconds=1)) == []


def test_the_last_word_on_each_bar_is_what_the_set_expects(snapshots: RecordedSet) -> None:
    pulls = snapshots.pulls["1m", "AAPL"]
    known = {row.opened_at: row for row in snapshots.rows["1m", "AAPL"]}

    assert set(known) == {row.opened_at for pull in pulls for row in pull.rows}
    assert [known[row.opened_at] for row in pulls[-1].rows] == list(pulls[-1].rows)
