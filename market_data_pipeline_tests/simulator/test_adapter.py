"""The production adapter against the simulator over real HTTP: whatever goes wrong once, asking again brings every bar."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.errors import ProviderError
from market_data_pipeline.domain.ports import BarsRequest
from market_data_pipeline.providers.http import HttpClient, HttpPolicy
from market_data_pipeline.providers.yahoo import YahooProvider
from market_data_pipeline.simulator.client import RunningSimulator, running_simulator
from market_data_pipeline.simulator.clock import microseconds
from market_data_pipeline.simulator.market import Market
from market_data_pipeline.simulator.sample import CAST, write_sample

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOW = datetime(2024, 12, 7, 12, tzinfo=UTC)
DAY = 86400
FIRST = int(datetime(2024, 11, 25, tzinfo=UTC).timestamp())
WINDOWS = [(FIRST, FIRST + 6 * DAY), (FIRST + 6 * DAY, FIRST + 12 * DAY)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "data"
    write_sample(folder, seed=7)
    return folder


@pytest.fixture(scope="module")
def simulator(directory: Path) -> Iterator[RunningSimulator]:
    with running_simulator(data=directory, now=NOW, faults=directory / "faults.yaml") as running:
        yield running


@pytest.fixture
def yahoo(simulator: RunningSimulator) -> Iterator[YahooProvider]:
    with HttpClient(HttpPolicy(attempts=1), sleep=lambda _: None) as http:
        yield YahooProvider(http, base_url=simulator.yahoo, user_agent="tests")


def fetched_minutes(yahoo: YahooProvider, symbol: str) -> set[int]:
    """The regular minutes that one round of asking brings, each window once and without a retry."""
    opened_at: set[int] = set()
    for start, end in WINDOWS:
        try:
            answer = yahoo.fetch_bars(BarsRequest(symbol, Interval.M1, start, end), now=NOW)
        except ProviderError:
            continue
        opened_at |= set(answer.columns.opened_at.tolist())
    return opened_at


@pytest.mark.parametrize("symbol", [member.symbol for member in CAST])
def test_the_faults_of_the_demo_heal_by_asking_again(yahoo: YahooProvider, directory: Path, symbol: str) -> None:
    bars = Market(directory).seen(symbol, "1m", microseconds(NOW)).finished
    expected = set(bars.opened_at[bars.regular | bars.leaked].tolist())

    first = fetched_minutes(yahoo, symbol)
    fetched_minutes(yahoo, symbol)
    third = fetched_minutes(yahoo, symbol)

    assert first <= expected
    assert third == expected
    assert (first == expected) == (symbol == "SLOW")


@pytest.mark.parametrize("interval", [Interval.H1, Interval.D1])
@pytest.mark.parametrize("symbol", ["NOVA", "9801.HK", "ZED-USD"])
def test_hours_and_days_are_answered(yahoo: YahooProvider, directory: Path, symbol: str, interval: Interval) -> None:
    answer = yahoo.fetch_bars(BarsRequest(symbol, interval, FIRST, FIRST + 12 * DAY), now=NOW)

    bars = Market(directory).seen(symbol, interval.value, microseconds(NOW)).finished
    assert answer.columns.volume.tolist() == bars.ohlcv[4].tolist()


def test_splits_and_dividends_are_read(yahoo: YahooProvider) -> None:
    answer = yahoo.fetch_bars(BarsRequest("NOVA", Interval.D1, FIRST, FIRST + 12 * DAY), now=NOW)

    assert [(action.kind, action.value) for action in answer.actions] == [("split", 4.0)]
