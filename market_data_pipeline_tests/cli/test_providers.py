"""`mdp providers` against a simulated Yahoo and a simulated Finnhub whose key is a free one."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.cli.providers import sparkline
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.health import Outcome
from market_data_pipeline.simulator.client import running_simulator
from market_data_pipeline.simulator.vendor import FREE, PREMIUM
from market_data_pipeline_tests.cli.conftest import Mdp
from market_data_pipeline_tests.world import FRIDAY, SATURDAY, expected_opens, write_bars

if TYPE_CHECKING:
    from collections.abc import Iterator

    from market_data_pipeline.simulator.client import RunningSimulator

OUTAGE = {"match": {"path": "/finnhub/*"}, "action": "status", "code": 503}


@pytest.fixture(scope="module")
def shared_simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSimulator]:
    """Vendors with a Friday of Apple's."""
    data = tmp_path_factory.mktemp("data")
    for interval in (Interval.M1, Interval.H1, Interval.D1):
        write_bars(data, "AAPL", interval, expected_opens(interval, FRIDAY, FRIDAY))
    with running_simulator(data=data, now=SATURDAY) as started:
        yield started


@pytest.fixture
def simulator(shared_simulator: RunningSimulator) -> RunningSimulator:
    """The same, as it was started."""
    shared_simulator.reset()
    return shared_simulator


@pytest.fixture
def free(mdp: Mdp, simulator: RunningSimulator) -> Mdp:
    """`mdp` with free keys at the simulator."""
    return with_plan(mdp, simulator, FREE)


def with_plan(mdp: Mdp, simulator: RunningSimulator, plan: str) -> Mdp:
    return Mdp({**mdp.environment, **simulator.environment(plan=plan), "MDP_HTTP_BACKOFF_SECONDS": "0"}, mdp.home)


# --- list --------------------------------------------------------------------------------------------------------------


def test_every_capability_is_listed_with_its_reach_and_limits_and_whether_it_is_usable(free: Mdp) -> None:
    rows = {(row["provider"], row.get("capability")): row for row in free("providers", "list", "--json").json}
    minutes = rows["yahoo", "bars_1m"]
    assert (minutes["reach_seconds"], minutes["span_seconds"], minutes["symbols"]) == (30 * 86400, 8 * 86400, 1)
    assert (minutes["stamp"], minutes["basis"], minutes["feed"]) == ("open", "split", "consolidated")
    assert (minutes["usable"], minutes["why"]) == (True, None)
    assert rows["finnhub", "bars_1m"]["limits"] == "30/s, 60/m"
    assert rows["files", None]["why"] == "it is not configured (docs/configuration.md)"


def test_what_is_missing_is_named(mdp: Mdp) -> None:
    rows = {row["provider"]: row for row in mdp("providers", "list", "--json").json}
    assert (rows["finnhub"]["usable"], rows["finnhub"]["why"]) == (False, "MDP_FINNHUB_KEY is not set")
    only = mdp("providers", "list", "--json", policy_bars_1m="alpaca").json
    (minutes,) = [row for row in only if (row["provider"], row.get("capability")) == ("yahoo", "bars_1m")]
    assert (minutes["usable"], minutes["why"]) == (False, "MDP_POLICY_BARS_1M does not name it")


def test_limits_are_those_in_force(free: Mdp) -> None:
    rows = free("providers", "list", "--json", limits="yahoo=3/s;finnhub=none").json
    assert {row["limits"] for row in rows if row["provider"] == "yahoo"} == {"3/s"}
    assert {row["limits"] for row in rows if row["provider"] == "finnhub"} == {"none"}


def test_the_table_is_for_people(free: Mdp) -> None:
    listed = free("providers", "list")
    assert (listed.code, listed.err) == (0, "")
    assert "30 d" in listed.out
    assert "no limit" in listed.out


# --- probe -------------------------------------------------------------------------------------------------------------


def test_a_free_key_loses_the_candles_alone_and_says_so_once(free: Mdp, simulator: RunningSimulator) -> None:
    probed = free("providers", "probe", "finnhub", "--json")
    assert probed.code == 0
    kinds = {row["capability"]: (row["works"], row["kind"]) for row in probed.json}
    assert kinds["bars_1m"] == kinds["eod"] == (False, "entitlement")
    assert kinds["quotes_l1"] == (True, "ok")
    rows = {row["capability"]: row for row in free("providers", "list", "--json").json if row["provider"] == "finnhub"}
    assert rows["bars_1m"]["why"].startswith("disabled until 2024-12-08 12:00:00Z: HTTP 403")
    assert rows["quotes_l1"]["usable"]
    simulator.forget_requests()
    free("providers", "probe", "finnhub")
    assert len(simulator.requests()) == 3, "one small request for each capability"
    events = free("providers", "history", "finnhub", "--json").json["events"]
    assert sorted((event["capability"], event["kind"]) for event in events) == [
        ("bars_1m", "entitlement_lost"),
        ("eod", "entitlement_lost"),
    ]


def test_a_plan_that_was_bought_is_found_by_the_next_probe(free: Mdp, simulator: RunningSimulator) -> None:
    free("providers", "probe", "finnhub")
    paying = with_plan(free, simulator, PREMIUM)
    assert all(row["works"] for row in paying("providers", "probe", "finnhub", "--json").json)
    assert paying("providers", "list", "--json").json != free("providers", "list")
    (minutes, *_) = paying("providers", "health", "finnhub", "--json").json
    assert (minutes["usable"], minutes["disabled_until"]) == (True, None)
    events = paying("providers", "history", "finnhub", "--capability", "bars_1m", "--json").json["events"]
    assert [event["kind"] for event in events] == ["entitlement_restored", "entitlement_lost"]


def test_a_probe_says_how_much_came_and_counts_for_the_health(free: Mdp) -> None:
    probed = free("providers", "probe", "yahoo", "--json").json
    (minutes,) = [row for row in probed if row["capability"] == "bars_1m"]
    assert (minutes["kind"], minutes["expected"], minutes["received"]) == ("ok", 30, 30)
    (health,) = [row for row in free("providers", "health", "yahoo", "--json").json if row["capability"] == "bars_1m"]
    assert (health["samples"], health["breaker"], health["completeness"]) == (1, "closed", 1.0)


def test_a_probe_by_hand_is_the_trial_of_an_open_breaker(free: Mdp, simulator: RunningSimulator) -> None:
    simulator.set_faults([OUTAGE])
    for _ in range(2):
        broken = free("providers", "probe", "finnhub")
    assert broken.code == 1
    assert "HTTP 503" in broken.out
    sick = free("providers", "health", "finnhub", "--json")
    assert sick.code == 1
    assert {row["breaker"] for row in sick.json} == {"open"}
    simulator.set_faults([])
    assert free("providers", "probe", "finnhub").code == 0
    assert {row["breaker"] for row in free("providers", "health", "finnhub", "--json").json} == {"closed"}


def test_without_its_key_a_provider_is_not_asked(mdp: Mdp) -> None:
    probed = mdp("providers", "probe", "finnhub")
    assert probed.code == 1
    assert "MDP_FINNHUB_KEY is not set" in probed.out


def test_a_provider_that_is_not_there_is_bad_usage(free: Mdp) -> None:
    for command in ("probe", "history", "reset", "health"):
        answer = free("providers", command, "bloomberg")
        assert answer.code == 2
        assert "no provider is called 'bloomberg': expected one of" in answer.err
    assert "it is installed and not configured" in free("providers", "probe", "files").err
    assert "has no capability 'macro'" in free("providers", "reset", "yahoo", "--capability", "macro").err


# --- health and history ------------------------------------------------------------------------------------------------


@pytest.fixture
def ill(free: Mdp) -> Mdp:
    """Yahoo's minutes failed, and its budget was refused."""
    from market_data_pipeline_tests.cli.builders import pipeline_of  # noqa: PLC0415 - needs the environment

    with pipeline_of(free) as pipeline:
        for place in range(70):
            now = SATURDAY - timedelta(minutes=20) + timedelta(seconds=10 * place)
            pipeline.health.record("yahoo", "bars_1m", Outcome("ok", 0.2, expected=390, received=390), now=now)
        failed = Outcome("transient", 1.5, attempts=5, detail="HTTP 503")
        pipeline.health.record("yahoo", "bars_1m", failed, now=SATURDAY, run_id="a-run")
        assert pipeline.budget is not None
        pipeline.budget.refused("yahoo", "", retry_after_seconds=600)
    return free


def test_the_health_is_told_with_its_terms_and_what_is_wrong_is_exit_code_1(ill: Mdp) -> None:
    told = ill("providers", "health", "yahoo", "--json")
    assert told.code == 1
    (minutes,) = [row for row in told.json if row["capability"] == "bars_1m"]
    # By hand: open 0, p95 of 70 x 0.2 s and one 1.5 s over a cap of 1 s, one failure in the average, all came.
    assert minutes["score"] == pytest.approx(0.25 * 0.8 + 0.20 * 0.8 + 0.10)
    assert (minutes["breaker"], minutes["error"], minutes["demoted"]) == ("open", 0.2, False)
    assert minutes["why"] == "breaker open until 2024-12-07 12:01:00Z: HTTP 503"
    assert minutes["limit_factor"] == pytest.approx(0.7)
    assert minutes["held_until"] is not None
    assert minutes["left"] == "3 of 5/s, 1400 of 2000/h"
    assert len(minutes["recent"]) == 60
    assert minutes["recent"].endswith("▄")
    (days,) = [row for row in told.json if row["capability"] == "eod"]
    assert (days["score"], days["samples"]) == (1.0, 0)
    assert "breaker open until" in ill("providers", "health").out


def test_all_is_well_is_exit_code_0(free: Mdp) -> None:
    assert free("providers", "health").code == 0


def test_the_history_shows_samples_a_picture_and_what_happened(ill: Mdp) -> None:
    told = ill("providers", "history", "yahoo")
    assert told.code == 0
    assert "bars_1m: " + "█" * 59 + "▄ now 0.46, worst 0.46" in told.out
    assert "breaker_opened" in told.out
    assert "5 failed attempts in a row: HTTP 503" in told.out
    everything = ill("providers", "history", "yahoo", "--last", "1000", "--json").json
    assert len(everything["samples"]) == 71
    assert [event["kind"] for event in everything["events"]] == ["limit_learned", "breaker_opened"]
    assert everything["events"][1]["run_id"] == "a-run"
    recent = ill("providers", "history", "yahoo", "--since", "2024-12-07T11:59Z", "--json").json
    assert len(recent["samples"]) == 1
    assert "was not asked for anything" in ill("providers", "history", "finnhub").err


def test_a_reset_gives_a_fresh_start_and_is_itself_told(ill: Mdp) -> None:
    told = ill("providers", "reset", "yahoo")
    assert (told.code, told.out) == (0, "yahoo: bars_1m; learned limits\n")
    healthy = ill("providers", "health", "yahoo", "--json")
    assert healthy.code == 0
    assert {(row["score"], row["held_until"]) for row in healthy.json} == {(1.0, None)}
    assert ill("providers", "history", "yahoo", "--json").json["events"][0]["kind"] == "reset"
    again = ill("providers", "reset", "yahoo", "--capability", "bars_1m", "--json").json
    assert again == {"provider": "yahoo", "capabilities": [], "learned_limits": False}


def test_a_sparkline_is_as_high_as_the_scores() -> None:
    assert sparkline([0.0, 0.124, 0.126, 0.5, 0.99, 1.0]) == "▁▁▂▅██"
    assert sparkline([]) == ""
