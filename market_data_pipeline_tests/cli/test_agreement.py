from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.ingest.candles import ingest_candles
from market_data_pipeline.ingest.report import Stretch
from market_data_pipeline.simulator.client import RunningSimulator, running_simulator
from market_data_pipeline.wiring import open_pipeline
from market_data_pipeline_tests.cli.builders import MONDAY, universe_file
from market_data_pipeline_tests.cli.conftest import Mdp
from market_data_pipeline_tests.world import SATURDAY, UNLIMITED, expected_opens, settings_in, write_bars

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[RunningSimulator]:
    """One Monday of AAPL, from whichever vendor it is asked."""
    write_bars(tmp_path / "data", "AAPL", Interval.M1, expected_opens(last=MONDAY))
    with running_simulator(data=tmp_path / "data", now=SATURDAY, limits=UNLIMITED) as running:
        yield running


@pytest.fixture
def stocked(mdp: Mdp, simulator: RunningSimulator) -> Mdp:
    """That Monday stored from Yahoo; Massive has a key."""
    environment = {
        **mdp.environment,
        **simulator.environment(),
        "MDP_POLICY_BARS_1M": "yahoo,massive",
        "MDP_LIMITS": UNLIMITED,
        "MDP_HTTP_BACKOFF_SECONDS": "0",
    }
    stocked = Mdp(environment, mdp.home)
    assert stocked("universe", "load", universe_file(mdp.home, "symbol,exchange,tier\nAAPL,XNAS,T0\n")).code == 0
    told = settings_in(simulator, home=mdp.home, database_url=environment["MDP_DATABASE_URL"])
    with open_pipeline(told) as pipeline:
        [aapl] = pipeline.universe.instruments()
        [report] = ingest_candles([Stretch(aapl, MONDAY, MONDAY)], Interval.M1, pipeline=pipeline)
        assert report.inserted == 390
    return stocked


def test_without_any_opinion_it_says_how_to_get_one(stocked: Mdp) -> None:
    nothing = stocked("agreement")
    assert (nothing.code, nothing.out) == (0, "")
    assert "`mdp agreement --ask` asks for some" in nothing.err


def test_two_that_agree_are_exit_code_0(stocked: Mdp) -> None:
    asked = stocked("agreement", "--ask", "--interval", "1m", "--json")
    assert asked.code == 0
    assert asked.json["asked"] == [{"opinions": 1, "unheard": {}, "stopped": None}]
    [opinion] = asked.json["opinions"]
    assert (opinion["verdict"], opinion["second_provider"], opinion["is_open"]) == ("agree", "massive", False)
    listed = stocked("agreement", "--interval", "1m")
    assert "1 sessions have a second opinion" in listed.out


def test_two_that_disagree_with_nobody_to_settle_it_are_exit_code_1(stocked: Mdp, simulator: RunningSimulator) -> None:
    simulator.set_faults([{"match": {"provider": "massive"}, "action": "unit", "factor": 100}])
    asked = stocked("agreement", "--ask", "--interval", "1m")
    assert asked.code == 1
    assert "unit_slip" in asked.out
    assert "yahoo, by policy" in asked.out
    assert "1 of them are not settled by a third provider" in asked.err
    # Asked again after it was mended, the newest opinion counts.
    simulator.set_faults([])
    assert stocked("agreement", "--ask", "--interval", "1m").code == 0


def test_with_nobody_else_to_ask_it_says_so(stocked: Mdp) -> None:
    alone = stocked("agreement", "--ask", "--interval", "1m", policy_bars_1m="yahoo")
    assert alone.code == 0
    assert "not all were asked about: nobody can be asked for bars_1m: yahoo: it was heard already" in alone.err


def test_a_derived_interval_is_refused_with_the_one_to_ask_about(offline_mdp: Mdp) -> None:
    refused = offline_mdp("agreement", "--ask", "--interval", "5m")
    assert refused.code == 2
    assert "5m is computed from 1m: ask about 1m" in refused.err
