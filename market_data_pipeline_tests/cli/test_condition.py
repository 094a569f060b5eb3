from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline_tests.cli.builders import FRIDAY, MONDAY, TUESDAY, pipeline_of, store, universe_file

if TYPE_CHECKING:
    from market_data_pipeline_tests.cli.conftest import Mdp


@pytest.fixture
def stocked(mdp: Mdp) -> Mdp:
    """AAPL's Monday lacks three minutes, its Tuesday is whole, a whole hourly Friday."""
    mdp("universe", "load", universe_file(mdp.home))
    with pipeline_of(mdp) as pipeline:
        store(pipeline, "AAPL", MONDAY, lacking=[10, 11, 200])
        store(pipeline, "AAPL", TUESDAY)
        store(pipeline, "AAPL", FRIDAY, interval=Interval.H1)
    return mdp


def test_a_whole_session_is_available_and_says_from_whom(stocked: Mdp) -> None:
    said = stocked("condition", "AAPL", "--session", "2024-12-03", "--json")
    assert said.code == 0
    (minutes,) = said.json["intervals"]
    assert (minutes["interval"], minutes["condition"], minutes["why"]) == ("1m", "available", "every bar is there")
    assert minutes["providers"] == {"yahoo": 390}
    assert (minutes["opens_at"], minutes["closes_at"]) == ("2024-12-03T14:30:00Z", "2024-12-03T21:00:00Z")


def test_a_session_with_holes_is_degraded_and_says_what_is_planned(stocked: Mdp) -> None:
    said = stocked("condition", "AAPL", "--session", "2024-12-02", "--json")
    assert said.code == 1
    (minutes,) = said.json["intervals"]
    assert minutes["condition"] == "degraded"
    assert minutes["why"] == (
        "3 missing; last request: yahoo, ok; 1 answers without it, 0 failures since; asked again from 2024-12-07T09:15:00Z"
    )
    assert (minutes["counts"]["present"], minutes["counts"]["missing"], minutes["attempts"]) == (387, 3, 1)


def test_only_intervals_of_which_there_is_something_are_told_unless_asked_for(stocked: Mdp) -> None:
    (hours,) = stocked("condition", "AAPL", "--session", "2024-12-06", "--json").json["intervals"]
    assert hours["interval"] == "1h"
    asked = stocked("condition", "AAPL", "--session", "2024-12-06", "--interval", "1m", "--json")
    assert asked.code == 1
    assert [(one["condition"], one["why"]) for one in asked.json["intervals"]] == [("missing", "390 missing; nobody was asked yet")]


def test_a_session_to_come_is_pending_and_no_fault(stocked: Mdp) -> None:
    said = stocked("condition", "AAPL", "--session", "2024-12-09", "--interval", "1d", "--json")
    assert said.code == 0
    assert [(one["condition"], one["why"]) for one in said.json["intervals"]] == [("pending", "1 not due yet")]


def test_evidence_is_shown_with_its_rung_and_its_providers(stocked: Mdp) -> None:
    with pipeline_of(stocked) as pipeline, pipeline.engine.begin() as connection:
        connection.exec_driver_sql("update coverage set confirmed_empty = ~present, next_attempt_at = null where absent > 0")
        connection.exec_driver_sql(
            "insert into verdict_evidence (symbol_id, interval_s, session, verdict, rung, slots, providers, attempts,"
            " detail, decided_at) select symbol_id, interval_s, session, 'confirmed_empty', 'second_provider', confirmed_empty,"
            " '{yahoo,alpaca}', 3, 'both are silent', '2024-12-07T10:00:00Z' from coverage where session = '2024-12-02'"
        )
    (minutes,) = stocked("condition", "AAPL", "--session", "2024-12-02", "--json").json["intervals"]
    assert (minutes["condition"], minutes["why"]) == ("available", "3 without a trade")
    assert [(e["rung"], e["bars"], e["providers"]) for e in minutes["evidence"]] == [("second_provider", 3, "yahoo, alpaca")]
    printed = stocked("condition", "AAPL", "--session", "2024-12-02").out
    assert "on what evidence" in printed
    assert "both are silent" in printed


def test_a_day_without_a_session_is_refused_with_its_neighbours(stocked: Mdp) -> None:
    refused = stocked("condition", "AAPL", "--session", "2024-12-07")
    assert refused.code == 2
    assert "2024-12-06" in refused.err


def test_a_row_of_other_hours_says_what_to_do(stocked: Mdp) -> None:
    with pipeline_of(stocked) as pipeline, pipeline.engine.begin() as connection:
        connection.exec_driver_sql(
            "update coverage set expected = 3, present = '111', confirmed_empty = '000' where session = %(day)s",
            {"day": date(2024, 12, 3)},
        )
    (minutes,) = stocked("condition", "AAPL", "--session", "2024-12-03", "--json").json["intervals"]
    assert "mdp reconcile --repair" in minutes["why"]
