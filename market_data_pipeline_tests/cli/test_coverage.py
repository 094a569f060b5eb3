from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline_tests.cli.builders import FRIDAY, LATER, MONDAY, TUESDAY, fetch_of, pipeline_of, store, universe_file

if TYPE_CHECKING:
    from market_data_pipeline_tests.cli.conftest import Mdp


@pytest.fixture
def stocked(mdp: Mdp) -> Mdp:
    """AAPL's Monday lacks three minutes, its Tuesday is whole, the rest of the week is not in the ledger; a whole hourly Friday."""
    mdp("universe", "load", universe_file(mdp.home))
    with pipeline_of(mdp) as pipeline:
        store(pipeline, "AAPL", MONDAY, lacking=[10, 11, 200])
        store(pipeline, "AAPL", TUESDAY)
        store(pipeline, "AAPL", FRIDAY, interval=Interval.H1)
    return mdp


# XNYS has 390 minutes and seven hourly bars in a full session (NYSE, Holidays & Trading Hours).
def test_counts_by_verdict_add_up_to_the_grid_of_what_the_ledger_has(stocked: Mdp) -> None:
    covered = stocked("coverage", "--json")
    assert covered.code == 0
    minutes, hours = covered.json
    assert (minutes["symbol"], minutes["interval"], minutes["first"], minutes["last"]) == ("AAPL", "1m", "2024-12-02", "2024-12-03")
    assert (minutes["sessions"], minutes["expected"]) == (2, 780)
    assert (minutes["counts"]["present"], minutes["counts"]["missing"]) == (777, 3)
    assert (hours["first"], hours["expected"], hours["counts"]["present"]) == ("2024-12-06", 7, 7)
    assert all(sum(line["counts"].values()) == line["expected"] for line in covered.json)


def test_the_table_has_totals_and_says_that_it_adds_up(stocked: Mdp) -> None:
    printed = stocked("coverage")
    assert "787 verdicts for 787 expected bars: every bar has exactly one" in printed.out
    assert "total" in printed.out
    assert "99.61" in printed.out


def test_totals_are_one_line_an_interval_and_one_over_all(stocked: Mdp) -> None:
    totals = stocked("coverage", "--totals", "--json").json
    assert [(line["interval"], line["expected"], line["missing"]) for line in totals] == [
        ("1m", 780, 3),
        ("1h", 7, 0),
        ("all", 787, 3),
    ]


def test_a_range_asked_for_counts_sessions_that_the_ledger_lacks_as_missing(stocked: Mdp) -> None:
    week = ("--start", "2024-12-02", "--end", "2024-12-06")
    (minutes,) = stocked("coverage", "--symbols", "AAPL", "--interval", "1m", *week, "--json").json
    assert (minutes["expected"], minutes["counts"]["missing"]) == (5 * 390, 3 * 390 + 3)
    intervals = [line["interval"] for line in stocked("coverage", "--symbols", "AAPL", *week, "--json").json]
    assert intervals == ["1m", "1h"]


def test_one_end_of_the_range_may_be_left_to_the_ledger(stocked: Mdp) -> None:
    (minutes,) = stocked("coverage", "--interval", "1m", "--start", "2024-12-03", "--json").json
    assert (minutes["first"], minutes["last"], minutes["counts"]["present"]) == ("2024-12-03", "2024-12-03", 390)


def test_an_empty_ledger_is_said_to_be_empty(stocked: Mdp) -> None:
    nothing = stocked("coverage", "--symbols", "BRK.B")
    assert nothing.code == 0
    assert "the ledger has nothing of these symbols yet" in nothing.err


def test_gaps_are_windows_and_their_presence_is_exit_code_1(stocked: Mdp) -> None:
    found = stocked("gaps", "--json")
    assert found.code == 1
    assert [(gap["start"], gap["end"], gap["bars"]) for gap in found.json] == [
        ("2024-12-02T14:40:00Z", "2024-12-02T14:42:00Z", 2),
        ("2024-12-02T17:50:00Z", "2024-12-02T17:51:00Z", 1),
    ]
    assert found.json[0]["attempts"] == 1
    # The first wait of the default policy is a quarter of an hour after the answer at nine.
    assert found.json[0]["next_attempt_at"] == "2024-12-07T09:15:00Z"


def test_gaps_of_whole_sessions_never_asked_for_are_found_in_a_range(stocked: Mdp) -> None:
    wednesday = ("--interval", "1m", "--start", "2024-12-04", "--end", "2024-12-04")
    (gap,) = stocked("gaps", "--symbols", "AAPL", *wednesday, "--explain", "--json").json
    assert (gap["bars"], gap["attempts"], gap["last_attempt_at"]) == (390, 0, None)
    assert gap["next"] == "the next schedule, or `mdp backfill`"
    (unknown,) = stocked("gaps", "--symbols", "BRK.B", *wednesday, "--explain", "--json").json
    assert unknown["why"] == "no request was made yet"


def test_explained_gaps_say_how_the_last_request_ended_and_what_is_next(stocked: Mdp) -> None:
    (gap, _) = stocked("gaps", "--explain", "--json").json
    assert gap["why"] == "yahoo at 2024-12-07T09:00:00Z: answered without it"
    assert gap["next"] == "due now: the gap sensor's next tick"


def test_a_failed_request_is_named_with_its_error(stocked: Mdp) -> None:
    with pipeline_of(stocked) as pipeline:
        apple = pipeline.universe.instrument("AAPL").symbol_id
        refused = replace(fetch_of("AAPL"), outcome="rate_limited", error="429 Too Many Requests")
        policy = pipeline.settings.healing_policy
        pipeline.ledger.record_failures([(apple, MONDAY)], Interval.M1, now=LATER, policy=policy, fetches=[(apple, refused)])
    gap = stocked("gaps", "--explain", "--json").json[0]
    assert gap["why"] == "yahoo at 2024-12-07T09:00:00Z: rate_limited, 429 Too Many Requests"
    assert (gap["attempts"], gap["failures"]) == (1, 1)


def test_the_table_is_limited_and_json_is_not(stocked: Mdp) -> None:
    limited = stocked("gaps", "--limit", "1")
    assert "14:40" in limited.out
    assert "17:50" not in limited.out
    assert "2 windows, 1 of them not shown: --limit 2 shows all" in limited.err
    assert len(stocked("gaps", "--limit", "1", "--json").json) == 2


def test_nothing_missing_is_exit_code_0(stocked: Mdp) -> None:
    whole = stocked("gaps", "--interval", "1h")
    assert (whole.code, whole.out.strip()) == (0, "nothing is missing")
    assert stocked("gaps", "--interval", "1h", "--json").json == []


@pytest.mark.parametrize(("name", "begins"), [("week.png", b"\x89PNG"), ("week.SVG", b"<?xml")])
def test_the_ledger_is_drawn_into_a_file(stocked: Mdp, name: str, begins: bytes) -> None:
    path = stocked.home / name
    drawn = stocked("coverage", "--interval", "1m", "--plot", str(path))
    assert drawn.code == 0
    assert f"1m of 1 symbols, 2024-12-02 to 2024-12-03, drawn into {path}" in drawn.err
    assert path.read_bytes().startswith(begins)
    assert "780 verdicts for 780 expected bars" in drawn.out


def test_a_picture_is_of_one_interval_and_of_a_known_kind(stocked: Mdp) -> None:
    several = stocked("coverage", "--plot", str(stocked.home / "week.png"))
    assert several.code == 2
    assert "--plot draws one interval, and here are 1m, 1h: choose one with --interval" in several.err
    unknown = stocked("coverage", "--interval", "1m", "--plot", "week.pdf")
    assert unknown.code == 2
    assert "expected a file name that ends in .png or .svg" in unknown.err


def test_a_picture_that_cannot_be_written_says_so(stocked: Mdp) -> None:
    refused = stocked("coverage", "--interval", "1m", "--plot", str(stocked.home / "nowhere" / "week.png"))
    assert refused.code == 2
    assert "week.png: No such file or directory" in refused.err


def test_what_was_given_up_is_taken_up_again(stocked: Mdp) -> None:
    with pipeline_of(stocked) as pipeline, pipeline.engine.begin() as connection:
        connection.exec_driver_sql("update coverage set next_attempt_at = null, attempts = 6 where absent > 0")
    given_up = stocked("gaps", "--explain", "--json").json[0]
    assert given_up["next"] == "given up after 6 answers without it (MDP_GIVE_UP_AFTER is 6): `mdp gaps --retry` asks again"
    retried = stocked("gaps", "--retry", "--explain", "--json")
    assert retried.code == 1
    assert "1 sessions that were given up are asked for again from now on" in retried.err
    assert {(gap["attempts"], gap["next"]) for gap in retried.json} == {(0, "due now: the gap sensor's next tick")}


def test_explained_gaps_say_how_sure_the_rest_of_the_session_is(stocked: Mdp) -> None:
    (gap, _) = stocked("gaps", "--explain", "--json").json
    assert gap["finality"] == "final"
