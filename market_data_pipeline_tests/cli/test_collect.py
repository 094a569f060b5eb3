"""What `mdp collect` asks, what it stores, what it tells Dagster: as a process against a simulator whose clock runs."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import httpx
import pytest

from market_data_pipeline.storage.quotes import QuoteStore
from market_data_pipeline_tests.cli.builders import pipeline_of
from market_data_pipeline_tests.cli.collecting import (
    OPEN,
    SYMBOLS,
    asked,
    collecting,
    follower,
    has_asked,
    rows,
    running_market,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from market_data_pipeline.simulator.client import RunningSimulator
    from market_data_pipeline_tests.cli.conftest import Mdp, Webserver


@pytest.fixture(scope="module")
def shared_simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSimulator]:
    with running_market(tmp_path_factory.mktemp("data")) as started:
        yield started


@pytest.fixture
def simulator(shared_simulator: RunningSimulator) -> RunningSimulator:
    shared_simulator.reset()
    return shared_simulator


@pytest.fixture
def at(mdp: Mdp, simulator: RunningSimulator) -> Mdp:
    return follower(mdp, simulator)


def test_quotes_and_minutes_are_collected_in_batches_until_it_is_told_to_stop(at: Mdp, simulator: RunningSimulator) -> None:
    with collecting(at) as collector:
        until(has_asked(simulator, "quotes_l1", "AAPL,MSFT", 5), collector)
        until(has_asked(simulator, "quotes_l1", "IBM", 2), collector)
        until(has_asked(simulator, "bars_1m", "AAPL,MSFT", 1), collector)
        assert collector.end() == 0
    counted = asked(simulator)
    assert {symbols for capability, symbols in counted if capability == "quotes_l1"} == {"AAPL,MSFT", "IBM"}
    assert {symbols for capability, symbols in counted if capability == "bars_1m"} == {"AAPL,MSFT"}
    assert collector.said[0] == "collecting: quotes T0 every 0.4 s, quotes T1 every 1.2 s, minutes T0 every 1 s"
    assert collector.said[-1].startswith("ended: ")
    with pipeline_of(at) as pipeline:
        instruments = pipeline.universe.instruments()
        stored = QuoteStore(pipeline.engine).latest([i.symbol_id for i in instruments])
    assert {quote.quote.symbol for quote in stored} == set(SYMBOLS)
    assert all(quote.confirmed_at is not None and quote.confirmed_at >= OPEN for quote in stored)
    # All 58 minutes that had settled by then.
    bars = rows(at, "select symbol, count(*) as bars from candles_intraday join symbol_universe using (symbol_id) group by symbol")
    assert {row["symbol"]: row["bars"] >= 58 for row in bars} == {"AAPL": True, "MSFT": True}


def test_nothing_is_asked_until_the_market_opens(at: Mdp, simulator: RunningSimulator) -> None:
    opens_at = datetime(2024, 12, 6, 14, 30, tzinfo=UTC)
    simulator.set_now(datetime(2024, 12, 6, 14, 29, 58, tzinfo=UTC))
    with collecting(at, "--no-minutes") as collector:
        until(has_asked(simulator, "quotes_l1", "AAPL,MSFT", 1), collector)
        assert collector.end() == 0
    assert min(datetime.fromisoformat(entry["at"]) for entry in simulator.requests()) >= opens_at


def test_a_slow_provider_makes_it_skip_beats_and_say_so(at: Mdp, simulator: RunningSimulator) -> None:
    simulator.set_faults([{"match": {"provider": "alpaca"}, "action": "stall", "seconds": 1.0}])
    with collecting(at, "--no-minutes", "--json") as collector:
        until(collector.saying("quotes T0: a round took longer than 0.4 s, "), collector)
        assert collector.end() == 0
    ended = json.loads(collector.said[-1])
    assert ended["quotes/l1"]["skipped"] >= 2


def test_a_dagster_that_is_down_is_told_of_once(at: Mdp, simulator: RunningSimulator) -> None:
    with collecting(at, "--no-minutes", "--report-every", "0.5") as collector:
        until(collector.saying("Dagster is not told: no Dagster webserver answers at http://127.0.0.1:9"), collector)
        simulator.forget_requests()
        until(has_asked(simulator, "quotes_l1", "AAPL,MSFT", 5), collector)
        assert collector.end() == 0
    assert sum("Dagster" in line for line in collector.said) == 1


def test_a_running_dagster_is_told_at_a_bounded_rate(at: Mdp, webserver: Webserver, simulator: RunningSimulator) -> None:
    with collecting(at, "--report-every", "1.5", dagster_url=webserver.url) as collector:
        until(lambda: len(descriptions(webserver, "quotes", "l1")) >= 2, collector)
        until(lambda: len(descriptions(webserver, "candles", "1m")) >= 1, collector)
        assert collector.end() == 0
    told = descriptions(webserver, "quotes", "l1")
    assert [text for text in told if not (text.startswith("mdp collect: ") and "new from" in text)] == []
    assert len(told) * 2 < asked(simulator)["quotes_l1", "AAPL,MSFT"]


def descriptions(webserver: Webserver, *asset: str) -> list[str]:
    """What was reported of an asset, materialisations and observations."""
    query = """
    query Events($path: [String!]!) {
      assetOrError(assetKey: {path: $path}) {
        ... on Asset { assetMaterializations { description } assetObservations { description } }
      }
    }"""
    body = {"query": query, "variables": {"path": list(asset)}}
    found = httpx.post(f"{webserver.url}/graphql", json=body, trust_env=False, timeout=30).json()["data"]["assetOrError"]
    return [event["description"] for kind in ("assetMaterializations", "assetObservations") for event in found.get(kind, ())]


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        (("--no-quotes", "--no-minutes"), {}, "leave nothing to collect"),
        ((), {"quotes_every_seconds": "T0=0", "bars_every_seconds": "T0=0"}, "MDP_QUOTES_EVERY_SECONDS"),
        (("--report-every", "-1"), {}, "--report-every"),
    ],
)
def test_what_would_collect_nothing_is_bad_usage(
    mdp: Mdp, arguments: tuple[str, ...], variables: dict[str, str], words: str
) -> None:
    answer = mdp("collect", *arguments, **variables)
    assert (answer.code, words in answer.err) == (2, True)
