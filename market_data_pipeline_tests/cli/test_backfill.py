from __future__ import annotations

import os
import signal
import subprocess
import sys
from subprocess import PIPE
from typing import TYPE_CHECKING

import orjson
import pytest

from market_data_pipeline_tests.cli.builders import UNIVERSE, universe_file

if TYPE_CHECKING:
    from market_data_pipeline_tests.cli.conftest import Mdp, Webserver

WEEK = ("--start", "2024-12-02", "--end", "2024-12-06")


@pytest.fixture
def loaded(mdp: Mdp) -> Mdp:
    """A universe of three symbols on two exchanges, in session partitions."""
    mdp("universe", "load", universe_file(mdp.home))
    return mdp


def dry_run(mdp: Mdp, *arguments: str) -> list[dict[str, object]]:
    planned = mdp("backfill", *arguments, "--dry-run", "--json")
    assert planned.code == 0, planned.err
    rows: list[dict[str, object]] = planned.json
    return rows


def test_a_box_holds_what_was_asked_for(loaded: Mdp) -> None:
    assert dry_run(loaded, "--symbols", "AAPL,BRK.B", "--interval", "1m", *WEEK) == [
        {"job": "candles_1m", "from": "2024-12-02|AAPL", "to": "2024-12-06|BRK.B", "partitions": 10}
    ]


def test_the_last_sessions_are_counted_back_from_now(loaded: Mdp) -> None:
    # Now is noon UTC of Saturday 2024-12-07.
    [box] = dry_run(loaded, "--symbols", "AAPL", "--interval", "1m", "--last", "3")
    assert (box["from"], box["to"]) == ("2024-12-04|AAPL", "2024-12-06|AAPL")


@pytest.mark.parametrize("which", [(), ("--start", "2024-12-02"), ("--last", "3", "--start", "2024-12-02"), ("--last", "3", *WEEK)])
def test_sessions_are_named_in_one_way(loaded: Mdp, which: tuple[str, ...]) -> None:
    refused = loaded("backfill", "--symbols", "AAPL", "--interval", "1m", *which, "--dry-run")
    assert refused.code == 2
    assert "expected --start and --end, or --last N" in refused.err


def test_symbols_that_are_not_neighbours_get_boxes_of_their_own(loaded: Mdp) -> None:
    planned = dry_run(loaded, "--symbols", "AAPL,0700.HK", "--interval", "1m", *WEEK)
    assert [(row["from"], row["to"]) for row in planned] == [
        ("2024-12-02|0700.HK", "2024-12-06|0700.HK"),
        ("2024-12-02|AAPL", "2024-12-06|AAPL"),
    ]


def test_derived_intervals_come_with_their_source_and_each_job_once(loaded: Mdp) -> None:
    planned = dry_run(loaded, "--symbols", "AAPL", "--interval", "5m", "--interval", "1m", "--interval", "1d", *WEEK)
    assert [row["job"] for row in planned] == ["candles_1m", "candles_1d"]


def test_a_tier_and_the_whole_universe_may_be_asked_for(loaded: Mdp) -> None:
    assert sum(int(str(row["partitions"])) for row in dry_run(loaded, "--tier", "T1", "--interval", "1d", *WEEK)) == 10
    assert sum(int(str(row["partitions"])) for row in dry_run(loaded, "--all", "--interval", "1d", *WEEK)) == 15


def test_a_holiday_within_the_range_cuts_no_box_in_two(loaded: Mdp) -> None:
    planned = dry_run(loaded, "--all", "--interval", "1m", "--start", "2024-11-27", "--end", "2024-11-29")
    assert planned == [{"job": "candles_1m", "from": "2024-11-27|AAPL", "to": "2024-11-29|0700.HK", "partitions": 9}]


# Thanksgiving is a session in Hong Kong and not in New York.
def test_a_holiday_of_one_exchange_leaves_the_others_symbols_in(loaded: Mdp) -> None:
    planned = loaded("backfill", "--all", "--interval", "1m", "--start", "2024-11-28", "--end", "2024-11-28", "--dry-run", "--json")
    assert planned.code == 0
    assert planned.json == [{"job": "candles_1m", "from": "2024-11-28|0700.HK", "to": "2024-11-28|0700.HK", "partitions": 1}]
    assert "AAPL, BRK.B: 2024-11-28 is no session of XNYS" in planned.err
    assert "the next 2024-11-29" in planned.err


# Yahoo serves minutes of the last 30 days (PROVIDERS.md §1): on 2024-12-07, those from 2024-11-07 on.
def test_what_is_beyond_the_providers_reach_is_said_and_the_rest_is_planned(loaded: Mdp) -> None:
    arguments = ("--symbols", "AAPL", "--interval", "1m", "--start", "2024-11-04", "--end", "2024-11-08", "--dry-run", "--json")
    planned = loaded("backfill", *arguments)
    assert planned.code == 0
    assert [row["from"] for row in planned.json] == ["2024-11-07|AAPL"]
    assert "1m: 2024-11-04 to 2024-11-06 is beyond what yahoo serves of XNYS" in planned.err
    assert "fetching from 2024-11-07" in planned.err


def test_a_provider_to_ask_first_must_be_there_and_usable(loaded: Mdp) -> None:
    request = ("backfill", "--symbols", "AAPL", "--interval", "1m", *WEEK, "--dry-run")
    unknown = loaded(*request, "--provider", "nobody")
    assert unknown.code == 2
    assert "no provider is called 'nobody': expected one of " in unknown.err
    keyless = loaded(*request, "--provider", "alpaca")
    assert keyless.code == 2
    assert "--provider alpaca: MDP_ALPACA_KEY_ID and MDP_ALPACA_SECRET_KEY are not set" in keyless.err
    assert loaded(*request, "--provider", "yahoo").code == 0
    assert "does not serve bars_1m" in loaded(*request, "--provider", "fred").err


def test_a_range_that_is_all_beyond_reach_is_refused(loaded: Mdp) -> None:
    refused = loaded("backfill", "--symbols", "AAPL", "--interval", "1m", "--start", "2024-01-02", "--end", "2024-01-05")
    assert refused.code == 2
    assert "1m: 2024-01-02 to 2024-01-05 is beyond what yahoo serves of XNYS now (unreachable)" in refused.err
    assert "expected sessions from" in refused.err


def test_sessions_in_which_a_symbol_was_not_listed_are_no_partitions(mdp: Mdp) -> None:
    text = "symbol,exchange,tier,active_from,active_to\nNEW,XNAS,T0,2024-12-04,\nGONE,XNYS,T0,,2024-11-29\n"
    mdp("universe", "load", universe_file(mdp.home, text))
    assert [(row["from"], row["to"]) for row in dry_run(mdp, "--all", "--interval", "1d", *WEEK)] == [
        ("2024-12-04|NEW", "2024-12-06|NEW")
    ]
    refused = mdp("backfill", "--symbols", "GONE", "--interval", "1d", *WEEK)
    assert refused.code == 2
    assert "none of GONE was listed from 2024-12-02 to 2024-12-06" in refused.err


def test_a_coarser_grain_makes_partitions_of_whole_periods(mdp: Mdp) -> None:
    mdp("universe", "load", universe_file(mdp.home), "--grain", "1m=month")
    assert dry_run(mdp, "--symbols", "AAPL", "--interval", "1m", "--start", "2024-11-27", "--end", "2024-12-03") == [
        {"job": "candles_1m", "from": "2024-11-01|AAPL", "to": "2024-12-01|AAPL", "partitions": 2}
    ]


def test_a_run_takes_at_most_two_thousand_partitions(mdp: Mdp) -> None:
    symbols = "".join(f"S{n:03},XNAS,T2,equity,USD,\n" for n in range(900))
    mdp("universe", "load", universe_file(mdp.home, UNIVERSE + symbols), "--start", "2024-11-01")
    sizes = [int(str(row["partitions"])) for row in dry_run(mdp, "--tier", "T2", "--interval", "1d", *WEEK)]
    assert sum(sizes) == 900 * 5
    assert max(sizes) <= 2000


def test_without_a_webserver_nothing_is_launched_and_the_way_out_is_named(loaded: Mdp) -> None:
    down = loaded("backfill", "--symbols", "AAPL", "--interval", "1m", *WEEK)
    assert down.code == 3
    assert "no Dagster webserver answers at http://127.0.0.1:9" in down.err
    assert "start it with `mdp up`" in down.err


def test_runs_are_launched_watched_and_judged(loaded: Mdp, webserver: Webserver) -> None:
    request = ("backfill", "--symbols", "AAPL,BRK.B", "--interval", "1h", *WEEK)
    done = loaded(*request, dagster_url=webserver.url)
    assert done.code == 0
    assert "1 runs launched; 10 partitions" in done.err
    assert "10 of 10 partitions; runs: 1 success" in done.err
    assert "1 of 1 runs succeeded" in done.out

    failed = loaded(*request, "--refetch", dagster_url=webserver.url)
    assert failed.code == 1
    assert "candles_1h 2024-12-02|AAPL … 2024-12-06|BRK.B: FAILURE: 2 symbols failed" in failed.err
    assert f"{webserver.url}/runs/" in failed.err
    assert "0 of 1 runs succeeded" in failed.out


def test_ctrl_c_detaches_and_the_same_command_attaches_again(mdp: Mdp, webserver: Webserver) -> None:
    mdp("universe", "load", universe_file(mdp.home, "symbol,exchange,tier\nHOLD,XNYS,T0\n"))
    request = ("backfill", "--symbols", "HOLD", "--interval", "1h", "--start", "2024-12-02", "--end", "2024-12-04")
    ours = {name: value for name, value in os.environ.items() if not name.startswith("MDP_")}
    environment = {**ours, **mdp.environment, "MDP_DAGSTER_URL": webserver.url}
    command = [sys.executable, "-m", "market_data_pipeline.cli.main", *request]
    with subprocess.Popen(command, env=environment, stderr=PIPE, text=True) as first:
        assert first.stderr is not None
        assert "1 runs launched" in first.stderr.readline()
        first.send_signal(signal.SIGINT)
        said = first.stderr.read()
    assert first.returncode == 130
    assert "the same command attaches to them again" in said
    assert "Traceback" not in said

    (in_flight,) = mdp(*request, "--no-wait", "--json", dagster_url=webserver.url).json["runs"]
    with subprocess.Popen([*command, "--json"], env=environment, stdout=PIPE, stderr=PIPE, text=True) as again:
        assert again.stdout is not None
        assert again.stderr is not None
        assert "0 runs launched, 1 of an earlier command found again" in again.stderr.readline()
        webserver.release.touch()
        (ended,) = orjson.loads(again.stdout.read())["runs"]
    assert again.returncode == 0
    assert (ended["run_id"], ended["status"], ended["error"]) == (in_flight["run_id"], "SUCCESS", None)
