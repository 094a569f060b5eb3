"""The adapters of vendors against the simulator over real HTTP: the bars of the data file, page by page, and no half answers."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.capabilities import Feed, Priority
from market_data_pipeline.domain.errors import (
    EntitlementError,
    OutOfReachError,
    PayloadError,
    ProviderError,
    RateLimitedError,
    UnknownSymbolError,
)
from market_data_pipeline.domain.ports import BarsAnswer, BarsProvider, BarsRequest, ManyBarsProvider, QuotesProvider
from market_data_pipeline.providers.alpaca import AlpacaProvider
from market_data_pipeline.providers.http import HttpClient, HttpPolicy
from market_data_pipeline.providers.massive import MassiveProvider
from market_data_pipeline.providers.registry import ProviderContext, open_providers
from market_data_pipeline.settings import Settings
from market_data_pipeline.simulator.client import RunningSimulator, running_simulator
from market_data_pipeline.simulator.vendor import FREE, PREMIUM
from market_data_pipeline_tests.simulator.directories import bar, write_bars, write_lines
from market_data_pipeline_tests.world import UNLIMITED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from market_data_pipeline.domain.ports import Provider

NOW = datetime(2024, 12, 7, 12, 0, 30, tzinfo=UTC)
SESSIONS = [datetime(2024, 12, day, 14, 30, tzinfo=UTC) for day in (2, 3, 4, 5)]
SYMBOLS = ("AAPL", "MSFT", "SPY")
PRICES = {"AAPL": 100.0, "MSFT": 200.0, "SPY": 300.0}
VENDORS = ("alpaca", "massive", "finnhub", "alphavantage")
ALL_DAYS = (int(SESSIONS[0].timestamp()), int(SESSIONS[-1].timestamp()) + 390 * 60)
TWO_DAYS = (int(SESSIONS[1].timestamp()), int(SESSIONS[2].timestamp()) + 390 * 60)
ONE_DAY = (int(SESSIONS[1].timestamp()), int(SESSIONS[1].timestamp()) + 390 * 60)


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSimulator]:
    directory = tmp_path_factory.mktemp("vendors") / "data"
    write_lines(directory, "universe.csv", "symbol,exchange,tier,asset_type", *(f"{symbol},XNYS,T0,equity" for symbol in SYMBOLS))
    for symbol, price in PRICES.items():
        minutes = [bar(opens + timedelta(minutes=n), price + n / 100, 50_000 + n) for opens in SESSIONS for n in range(390)]
        write_bars(directory, minutes, symbol=symbol)
        days = [[opens.date().isoformat(), *bar(opens, price + n, 9_000_000)[1:]] for n, opens in enumerate(SESSIONS)]
        write_bars(directory, days, symbol=symbol, interval="1d")
    with running_simulator(data=directory, now=NOW, limits=UNLIMITED) as running:
        yield running


def told_by(simulator: RunningSimulator, *, plan: str = PREMIUM, **changes: Any) -> Settings:  # noqa: ANN401
    """The settings of a process whose environment is the simulator's."""
    told = {name.removeprefix("MDP_").lower(): value for name, value in simulator.environment(plan=plan).items()}
    return Settings(**{**told, "massive_plan": "advanced", "alpaca_feed": "sip", **changes})


@contextmanager
def opened(simulator: RunningSimulator, *, plan: str = PREMIUM, **changes: Any) -> Iterator[dict[str, Provider]]:  # noqa: ANN401
    """The providers as a process opens them whose environment is the simulator's."""
    settings = told_by(simulator, plan=plan, **changes)
    with HttpClient(HttpPolicy(timeout_seconds=5.0, attempts=2, backoff_seconds=0.0), sleep=lambda _: None) as http:
        yield open_providers(ProviderContext(settings, http))


def asked(name: str, providers: dict[str, Provider], request: BarsRequest) -> BarsAnswer:
    provider = providers[name]
    assert isinstance(provider, BarsProvider)
    return provider.fetch_bars(request, now=NOW)


def minutes_of(symbol: str, sessions: Sequence[datetime] = SESSIONS) -> dict[int, float]:
    """Closes by open, computed as the data file was written."""
    opens = [(int((at + timedelta(minutes=n)).timestamp()), PRICES[symbol] + n / 100 + 0.25) for at in sessions for n in range(390)]
    return {at: round(close, 2) for at, close in opens}


def closes(answer: BarsAnswer) -> dict[int, float]:
    return dict(zip(answer.columns.opened_at.tolist(), np.round(answer.columns.close, 4).tolist(), strict=True))


@pytest.mark.parametrize("name", VENDORS)
def test_minutes_are_those_of_the_data_file(simulator: RunningSimulator, name: str) -> None:
    with opened(simulator) as providers:
        answer = asked(name, providers, BarsRequest("MSFT", Interval.M1, *ALL_DAYS))
    assert closes(answer) == pytest.approx(minutes_of("MSFT"))
    assert (answer.fetch.outcome, answer.fetch.rows) == ("ok", 4 * 390)


@pytest.mark.parametrize("name", VENDORS)
def test_days_are_those_of_the_data_file(simulator: RunningSimulator, name: str) -> None:
    with opened(simulator) as providers:
        answer = asked(name, providers, BarsRequest("SPY", Interval.D1, *ALL_DAYS))
    midnights = [int(at.replace(hour=0, minute=0).timestamp()) for at in SESSIONS]
    assert closes(answer) == pytest.approx({at: 300.25 + n for n, at in enumerate(midnights)})


@pytest.mark.parametrize("name", VENDORS)
def test_a_free_key_is_told_what_it_may_not_do(simulator: RunningSimulator, name: str) -> None:
    """Alpaca's SIP, Massive's today and Alpha Vantage's full history are refused, Finnhub's candles altogether."""
    now_request = BarsRequest("AAPL", Interval.M1, int(NOW.timestamp()) - 3600, int(NOW.timestamp()))
    expected: dict[str, tuple[BarsRequest, type[ProviderError]]] = {
        "alpaca": (now_request, EntitlementError),
        "massive": (now_request, OutOfReachError),
        "finnhub": (BarsRequest("AAPL", Interval.M1, *ONE_DAY), EntitlementError),
        "alphavantage": (BarsRequest("AAPL", Interval.D1, 0, ONE_DAY[1]), EntitlementError),
    }
    request, kind = expected[name]
    with opened(simulator, plan=FREE) as providers, pytest.raises(kind) as refused:
        asked(name, providers, request)
    assert refused.value.fetch is not None
    assert refused.value.fetch.attempts == 1


def test_a_free_key_has_all_but_fifteen_minutes_of_the_sip(simulator: RunningSimulator) -> None:
    simulator.set_now(SESSIONS[3] + timedelta(hours=2))
    now = simulator.now()
    try:
        with opened(simulator, plan=FREE, alpaca_feed="delayed_sip") as providers:
            alpaca = providers["alpaca"]
            assert isinstance(alpaca, BarsProvider)
            request = BarsRequest("AAPL", Interval.M1, int(SESSIONS[3].timestamp()), int(now.timestamp()))
            newest = int(alpaca.fetch_bars(request, now=now).columns.opened_at[-1])
            with pytest.raises(OutOfReachError, match="last 15 minutes") as refused:
                alpaca.fetch_bars(replace(request, start=int(now.timestamp()) - 600), now=now)
    finally:
        simulator.set_now(NOW)
    assert 15 * 60 <= now.timestamp() - newest <= 18 * 60
    assert refused.value.fetch is not None
    assert refused.value.fetch.attempts == 0
    assert {capability.feed for capability in alpaca.capabilities} == {Feed.SIP}
    assert {capability.delay_seconds for capability in alpaca.capabilities} == {900}


def test_the_iex_feed_counts_less_and_says_so(simulator: RunningSimulator) -> None:
    request = BarsRequest("AAPL", Interval.M1, *ONE_DAY)
    with opened(simulator) as consolidated, opened(simulator, alpaca_feed="iex") as iex:
        whole, part = asked("alpaca", consolidated, request), asked("alpaca", iex, request)
        assert {c.feed for c in iex["alpaca"].capabilities} == {Feed.IEX}
    assert part.columns.volume.sum() < 0.1 * whole.columns.volume.sum()


def alpaca_in_pages(simulator: RunningSimulator, http: HttpClient, rows: int) -> AlpacaProvider:
    told = told_by(simulator)
    return AlpacaProvider(
        http,
        base_url=told.alpaca_base_url,
        key_id=told.alpaca_key_id,
        secret_key=told.alpaca_secret_key,
        feed="sip",
        rows_per_page=rows,
    )


def massive_in_pages(simulator: RunningSimulator, http: HttpClient, rows: int) -> MassiveProvider:
    told = told_by(simulator)
    return MassiveProvider(http, base_url=told.massive_base_url, key=told.massive_key, plan="advanced", rows_per_page=rows)


PAGED: dict[str, Callable[[RunningSimulator, HttpClient, int], BarsProvider]] = {
    "alpaca": alpaca_in_pages,
    "massive": massive_in_pages,
}


@pytest.mark.parametrize(("name", "rows"), [("alpaca", 100), ("alpaca", 130), ("massive", 100), ("massive", 137)])
def test_pages_are_put_together(simulator: RunningSimulator, name: str, rows: int) -> None:
    with HttpClient() as http:
        answer = PAGED[name](simulator, http, rows).fetch_bars(BarsRequest("AAPL", Interval.M1, *ALL_DAYS), now=NOW)
    assert closes(answer) == pytest.approx(minutes_of("AAPL"))
    assert answer.fetch.attempts >= 1560 // rows
    assert answer.fetch.payload_bytes > 1560 * 60


def test_pages_that_end_where_the_data_ends_are_believed_once_asked_again(simulator: RunningSimulator) -> None:
    """1,560 rows in pages of 390: the last is full, and nothing follows."""
    with HttpClient() as http:
        answer = alpaca_in_pages(simulator, http, 390).fetch_bars(BarsRequest("AAPL", Interval.M1, *ALL_DAYS), now=NOW)
    assert closes(answer) == pytest.approx(minutes_of("AAPL"))
    assert answer.fetch.attempts == 4 + 2


@pytest.mark.parametrize("name", PAGED)
@pytest.mark.parametrize("action", ["lost_page_token", "repeated_page", "truncated_page"])
def test_of_an_answer_without_all_its_pages_nothing_is_used(simulator: RunningSimulator, name: str, action: str) -> None:
    """Massive's count tells of a page broken off, and so does the last bar that a token of Alpaca's names."""
    simulator.set_faults([{"match": {"provider": name}, "action": action}])
    try:
        with HttpClient() as http:
            provider = PAGED[name](simulator, http, 390 if action == "lost_page_token" else 100)
            with pytest.raises(PayloadError) as refused:
                provider.fetch_bars(BarsRequest("AAPL", Interval.M1, *ALL_DAYS), now=NOW)
    finally:
        simulator.set_faults([])
    assert refused.value.fetch is not None
    assert (refused.value.fetch.outcome, refused.value.fetch.rows) == ("malformed", 0)


def test_two_hundred_symbols_are_one_request(simulator: RunningSimulator) -> None:
    names = [f"Z{n:03}" for n in range(197)]
    requests = [BarsRequest(symbol, Interval.M1, ONE_DAY[0], ONE_DAY[0] + 300) for symbol in (*SYMBOLS, *names)]
    simulator.forget_requests()
    with opened(simulator) as providers:
        alpaca = providers["alpaca"]
        assert isinstance(alpaca, ManyBarsProvider)
        answers = alpaca.fetch_bars_of_many(requests, now=NOW)
    assert len(simulator.requests()) == 1
    assert [len(a.columns) for a in answers if isinstance(a, BarsAnswer)] == [5, 5, 5] + [0] * 197


def test_one_name_that_alpaca_refuses_costs_the_others_nothing(simulator: RunningSimulator) -> None:
    requests = [BarsRequest(symbol, Interval.M1, *ONE_DAY) for symbol in ("AAPL", "EURUSD=X", "TOOLONGNAME1", "SPY")]
    with opened(simulator) as providers:
        alpaca = providers["alpaca"]
        assert isinstance(alpaca, ManyBarsProvider)
        answers = alpaca.fetch_bars_of_many(requests, now=NOW)
    assert [type(answer) for answer in answers] == [BarsAnswer, UnknownSymbolError, UnknownSymbolError, BarsAnswer]


def test_one_request_a_date_serves_the_whole_market(simulator: RunningSimulator) -> None:
    requests = [BarsRequest(symbol, Interval.D1, *TWO_DAYS) for symbol in (*SYMBOLS, "NOPE")]
    simulator.forget_requests()
    with opened(simulator) as providers:
        massive = providers["massive"]
        assert isinstance(massive, ManyBarsProvider)
        answers = massive.fetch_bars_of_many(requests, now=NOW)
    assert [entry["path"].rpartition("/")[2] for entry in simulator.requests()] == ["2024-12-03", "2024-12-04"]
    assert [len(answer.columns) for answer in answers if isinstance(answer, BarsAnswer)] == [2, 2, 2, 0]
    assert [answer.fetch.attempts for answer in answers if isinstance(answer, BarsAnswer)] == [2, 0, 0, 0]


@pytest.mark.parametrize("name", ["alpaca", "finnhub"])
def test_quotes_of_what_is_known(simulator: RunningSimulator, name: str) -> None:
    with opened(simulator, finnhub_bid_ask=True) as providers:
        provider = providers[name]
        assert isinstance(provider, QuotesProvider)
        known = provider.fetch_quotes(["AAPL"], priority=Priority(), now=NOW)
        unknown = provider.fetch_quotes(["NOPE"], priority=Priority(), now=NOW)
    assert [(quote.symbol, quote.currency or "USD") for quote in known.quotes] == [("AAPL", "USD")]
    quote = known.quotes[0]
    assert quote.bid is not None
    assert quote.ask is not None
    assert 90 < quote.bid <= quote.ask < 110
    assert quote.bid_size is not None
    assert quote.bid_size >= 100
    assert (unknown.quotes, unknown.unknown, unknown.fetch.outcome) == ((), ("NOPE",), "ok")


@pytest.mark.parametrize("name", VENDORS)
def test_a_limit_that_is_reached_is_told_as_such(simulator: RunningSimulator, name: str) -> None:
    simulator.set_limits(f"{name}=1/d")
    try:
        with opened(simulator) as providers:
            request = BarsRequest("AAPL", Interval.M1, *ONE_DAY)
            asked(name, providers, request)
            with pytest.raises(RateLimitedError):
                asked(name, providers, request)
    finally:
        simulator.set_limits(UNLIMITED)


@pytest.mark.parametrize("name", VENDORS)
def test_a_stolen_key_is_refused_and_never_told(simulator: RunningSimulator, name: str) -> None:
    keys = {"alpaca_key_id": "stolen-key-0001", "alpaca_secret_key": "stolen-key-0002"} if name == "alpaca" else {}
    keys = keys or {f"{name}_key": "stolen-key-0001"}
    with opened(simulator, **keys) as providers, pytest.raises(EntitlementError) as refused:
        asked(name, providers, BarsRequest("AAPL", Interval.M1, *ONE_DAY))
    assert "stolen" not in f"{refused.value!r} {refused.value.fetch!r}"
