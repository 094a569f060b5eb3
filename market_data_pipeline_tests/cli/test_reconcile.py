from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from market_data_pipeline_tests.cli.builders import MONDAY, pipeline_of, store, universe_file

if TYPE_CHECKING:
    from market_data_pipeline_tests.cli.conftest import Mdp, Webserver


@pytest.fixture
def stocked(mdp: Mdp) -> Mdp:
    """One whole Monday of AAPL."""
    mdp("universe", "load", universe_file(mdp.home))
    with pipeline_of(mdp) as pipeline:
        store(pipeline, "AAPL", MONDAY)
    return mdp


def by_hand(mdp: Mdp, statement: str) -> None:
    with pipeline_of(mdp) as pipeline, pipeline.engine.begin() as connection:
        connection.exec_driver_sql(statement)


def test_a_ledger_that_agrees_is_exit_code_0_and_an_absent_dagster_is_said(stocked: Mdp) -> None:
    agreed = stocked("reconcile")
    assert agreed.code == 0
    assert "ledger and bars agree" in agreed.out
    assert "Dagster: unreachable, it was not told what the ledger knows: no Dagster webserver answers" in agreed.out


def test_a_bar_that_was_deleted_by_hand_is_found_and_left_until_repair_is_asked_for(stocked: Mdp) -> None:
    by_hand(stocked, "delete from candles_intraday where opened_at = '2024-12-02T14:31:00Z'")
    for _ in range(2):
        found = stocked("reconcile", "--dry-run", "--json")
        assert found.code == 1
        assert found.json["dagster"]["state"] == "skipped"
        assert ("AAPL", "2024-12-02", "lost_bars", 1, False) in [
            (row["symbol"], row["session"], row["kind"], row["bars"], row["repaired"]) for row in found.json["discrepancies"]
        ]


def test_a_repair_is_told_and_the_lost_bar_is_missing_from_then_on(stocked: Mdp) -> None:
    by_hand(stocked, "delete from candles_intraday where opened_at = '2024-12-02T14:31:00Z'")
    repaired = stocked("reconcile", "--repair")
    assert repaired.code == 0
    assert "1 lost_bars" in repaired.out
    assert stocked("reconcile", "--dry-run").code == 0
    (gap,) = stocked("gaps", "--json").json
    assert (gap["start"], gap["bars"]) == ("2024-12-02T14:31:00Z", 1)


def test_bars_of_a_session_that_the_ledger_never_knew_are_found(stocked: Mdp) -> None:
    by_hand(stocked, "delete from coverage")
    (found,) = stocked("reconcile", "--dry-run", "--json").json["discrepancies"]
    assert (found["kind"], found["bars"]) == ("unrecorded_bars", 390)


# Ten minutes before the open of the oldest session that is stored, where no session begins.
def test_bars_outside_of_every_session_are_for_a_person_and_stay_exit_code_1(stocked: Mdp) -> None:
    by_hand(stocked, "update candles_intraday set opened_at = '2024-12-02T14:20:00Z' where opened_at = '2024-12-02T14:30:00Z'")
    left = stocked("reconcile", "--repair")
    assert left.code == 1
    assert "1 off_grid_bars" in left.out
    assert "for a person to decide about" in left.err


def test_dagster_is_told_where_it_answers(stocked: Mdp, webserver: Webserver) -> None:
    told = stocked("reconcile", "--json", dagster_url=webserver.url)
    assert told.code == 0
    assert told.json["dagster"]["state"] == "told"
    assert told.json["dagster"]["url"].startswith(f"{webserver.url}/runs/")


def test_repairing_in_a_dry_run_is_refused(offline_mdp: Mdp) -> None:
    refused = offline_mdp("reconcile", "--repair", "--dry-run")
    assert refused.code == 2
    assert "--repair and --dry-run were both given" in refused.err
