from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

import pytest

from market_data_pipeline_tests.cli.builders import FRIDAY, pipeline_of, store, universe_file

if TYPE_CHECKING:
    from market_data_pipeline_tests.cli.conftest import Mdp

UNIVERSE = "symbol,exchange,tier\nAAPL,XNAS,T0\nMSFT,XNAS,T0\n"
NOON, EVENING, SATURDAY = "2024-12-06T17:00:00Z", "2024-12-06T21:06:00Z", "2024-12-07T12:00:00Z"


@pytest.fixture
def stocked(mdp: Mdp) -> Mdp:
    """Friday's minutes of both symbols; MSFT lacks the last half hour."""
    mdp("universe", "load", universe_file(mdp.home, UNIVERSE))
    with pipeline_of(mdp) as pipeline:
        store(pipeline, "AAPL", FRIDAY)
        store(pipeline, "MSFT", FRIDAY, lacking=range(360, 390))
    return mdp


def test_it_says_which_tier_is_late_and_names_the_symbol(stocked: Mdp) -> None:
    said = stocked("slo", "--interval", "1m", "--stale", clock=EVENING)
    assert said.code == 1
    assert "T0 1m: 1 of 2 symbols are late, more than 0.50% allows" in said.err
    assert "MSFT" in said.out
    assert "2024-12-06T20:29:00Z" in said.out
    assert "answers without it" in said.out
    assert "AAPL" not in said.out


def test_it_says_the_same_to_machines(stocked: Mdp) -> None:
    said = stocked("slo", "--interval", "1m", "--tier", "T0", "--json", clock=EVENING)
    assert said.code == 1
    (line,) = said.json["lines"]
    assert (line["tier"], line["interval"], line["symbols"], line["stale"], line["objective"]) == ("T0", "1m", 2, 1, 0.005)
    assert (line["violation_rate"], line["is_violated"], line["budget_left"]) == (0.5, True, 1.0)
    assert line["burn_rates"] == {"5m": 0.0, "30m": 0.0, "1h": 0.0, "6h": 0.0, "3d": 0.0}
    (stale,) = said.json["stale"]
    assert (stale["symbol"], stale["session"], stale["behind"], stale["newest_opened_at"]) == (
        "MSFT",
        "2024-12-06",
        30,
        "2024-12-06T20:29:00Z",
    )


def test_on_a_closed_day_it_says_since_when_nothing_is_due(stocked: Mdp) -> None:
    said = stocked("slo", clock=SATURDAY)
    assert said.code == 0
    assert "markets are closed: nothing has become due since 2024-12-06T23:01:30Z" in said.err


def test_a_spent_budget_is_something_wrong_though_everything_is_fresh_again(stocked: Mdp) -> None:
    with pipeline_of(stocked) as pipeline, pipeline.engine.begin() as connection:
        connection.exec_driver_sql(
            "insert into slo_samples values ('T0', 60, 3600, '2024-12-06T15:00Z', 1, 2, 1, 100, 3), ('T0', 60, 300,"
            " '2024-12-06T15:00Z', 1, 2, 1, 100, 3)"
        )
    said = stocked("slo", "--interval", "1m", clock=SATURDAY)
    assert said.code == 1
    assert "3 of 100 bars of 30 days were late: the error budget is spent" in said.err


def test_an_empty_universe_is_told_and_no_fault(mdp: Mdp) -> None:
    said = mdp("slo")
    assert said.code == 0
    assert "mdp universe load" in said.err


def test_a_tier_that_does_not_exist_is_refused(mdp: Mdp) -> None:
    assert mdp("slo", "--tier", "T9").code == 2


def test_before_the_first_bar_had_to_be_there_the_last_session_counts(stocked: Mdp) -> None:
    lines = stocked("slo", "--interval", "1m", "--json", clock="2024-12-09T14:34:29Z").json["lines"]
    assert [(line["stale"], line["is_over"]) for line in lines] == [(0, True)]
    later = stocked("slo", "--interval", "1m", "--json", clock="2024-12-09T14:34:30Z").json
    assert [(line["stale"], line["is_over"]) for line in later["lines"]] == [(2, False)]
    assert {one["session"] for one in later["stale"]} == {str(date(2024, 12, 9))}
