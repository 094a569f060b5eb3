"""The main use-case against a real provider process and a real Postgres."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.coverage import Verdict
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.ingest.candles import ingest_candles
from market_data_pipeline.ingest.coverage import coverage_report, gap_windows
from market_data_pipeline.ingest.derive import derive_candles
from market_data_pipeline.ingest.report import Stretch
from market_data_pipeline_tests.world import FRIDAY, MONDAY, SATURDAY, World, a_world, expected_opens, withdraw_bar, write_bars

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OPENS = expected_opens()


@pytest.fixture
def world(tmp_path: Path, database_url: str) -> Iterator[World]:
    data = tmp_path / "data"
    write_bars(data, "AAPL", Interval.M1, OPENS)
    write_bars(data, "MSFT", Interval.M1, OPENS, close=400.0)
    write_bars(data, "THIN", Interval.M1, [at for place, at in enumerate(OPENS) if place % 5 or place % 390 in {0, 389}])
    with a_world(data, database_url, tmp_path / "home") as world:
        yield world


def test_a_week_of_minutes_is_fetched_in_one_request_and_stored_bar_for_bar(world: World) -> None:
    [aapl] = world.load("AAPL")
    [report] = world.ingest([aapl])
    assert report.failure is None
    assert report.verdicts[Verdict.PRESENT] == report.expected == report.inserted == 1950
    assert list(world.stored(aapl)) == OPENS
    assert len(world.simulator.requests()) == 1


def test_running_it_again_sends_no_request_and_changes_no_row(world: World) -> None:
    [aapl] = world.load("AAPL")
    world.ingest([aapl])
    fetches = world.count("fetches")
    world.ingest([aapl])
    assert len(world.simulator.requests()) == 1
    assert (world.count("fetches"), world.count("candle_revisions")) == (fetches, 0)


def test_each_stretch_is_reported_once_with_its_own_counts(world: World) -> None:
    instruments = world.load("AAPL", "MSFT")
    reports = world.ingest(instruments)
    assert sorted(report.stretch.instrument.symbol for report in reports) == ["AAPL", "MSFT"]
    assert {report.inserted for report in reports} == {1950}
    assert sum(report.requests for report in reports) == len(world.simulator.requests())


def test_minutes_without_a_trade_stay_missing_until_spaced_answers_agree(world: World) -> None:
    [thin] = world.load("THIN")
    silent = len(OPENS) - len([p for p in range(len(OPENS)) if p % 5 or p % 390 in {0, 389}])
    for wait, verdict in ((None, Verdict.MISSING), (timedelta(minutes=1), Verdict.MISSING), (timedelta(hours=1), Verdict.MISSING)):
        if wait:
            world.simulator.set_now(SATURDAY + wait)
        [report] = world.ingest([thin])
        assert report.verdicts[verdict] == silent
    world.simulator.set_now(SATURDAY + timedelta(hours=8))
    [report] = world.ingest([thin])
    assert report.verdicts[Verdict.CONFIRMED_EMPTY] == silent
    assert report.verdicts[Verdict.MISSING] == 0
    sent = len(world.simulator.requests())
    world.ingest([thin])
    assert len(world.simulator.requests()) == sent


def test_a_hole_left_by_the_provider_is_healed_by_the_next_answer(world: World) -> None:
    [aapl] = world.load("AAPL")
    world.simulator.set_faults([{"match": {"symbol": "AAPL", "first": 1}, "action": "missing_minutes", "fraction": 0.2}])
    [first] = world.ingest([aapl])
    assert first.verdicts[Verdict.MISSING] > 200
    world.simulator.set_now(SATURDAY + timedelta(hours=1))
    [second] = world.ingest([aapl])
    assert second.verdicts[Verdict.PRESENT] == 1950
    assert list(world.stored(aapl)) == OPENS


def test_a_provider_that_is_down_fails_its_sessions_and_changes_no_verdict(world: World) -> None:
    [aapl, msft] = world.load("AAPL", "MSFT")
    world.simulator.set_faults([{"match": {"symbol": "MSFT"}, "action": "status", "code": 503}])
    reports = {report.stretch.instrument.symbol: report for report in world.ingest([aapl, msft])}
    assert reports["AAPL"].failure is None
    assert "503" in str(reports["MSFT"].failure)
    assert reports["MSFT"].verdicts[Verdict.MISSING] == 1950


def test_an_outage_ends_the_asking_and_every_stretch_says_why(world: World) -> None:
    # More instruments than are planned at a time: what the first of them taught holds for the others.
    instruments = world.load(*(f"S{number:03}" for number in range(120)))
    world.simulator.set_faults([{"match": {}, "action": "status", "code": 503}])
    reports = world.ingest(instruments)
    assert len(reports) == 120
    assert all("503" in str(report.failure) for report in reports)
    asked = {request["path"] for request in world.simulator.requests()}
    # The breaker opens with the fifth failed attempt, and a request has four; the others were in flight by then.
    assert 2 <= len(asked) <= 2 + world.settings.requests_in_flight
    assert sum("not asked: nobody can be asked for bars_1m: " in str(report.failure) for report in reports) == 120 - len(asked)


def test_bars_of_sessions_between_those_asked_for_are_not_called_outside_of_a_session(world: World) -> None:
    [aapl] = world.load("AAPL")
    stretches = [Stretch(aapl, MONDAY, MONDAY), Stretch(aapl, FRIDAY, FRIDAY)]
    reports = list(ingest_candles(stretches, Interval.M1, pipeline=world.pipeline))
    assert [report.inserted for report in reports] == [390, 390]
    assert sum((dict(report.dropped).get("not_asked", 0) for report in reports), 0) == 3 * 390


def test_an_empty_answer_is_a_failure_and_never_evidence_of_no_trading(world: World) -> None:
    [nobody] = world.load("AAPL")
    world.simulator.set_faults([{"match": {"symbol": "AAPL"}, "action": "missing_minutes", "fraction": 1.0}])
    for hours in (0, 1, 6, 30, 60):
        world.simulator.set_now(SATURDAY + timedelta(hours=hours))
        [report] = world.ingest([nobody])
        assert report.failure is not None
        assert report.verdicts[Verdict.CONFIRMED_EMPTY] == 0


def test_an_unknown_symbol_is_asked_for_once_and_the_others_are_stored(world: World) -> None:
    instruments = world.load("AAPL", "NOSUCH")
    reports = {r.stretch.instrument.symbol: r for r in world.ingest(instruments, first=date(2024, 11, 11), last=FRIDAY)}
    assert "NOSUCH" in str(reports["NOSUCH"].failure)
    # Some of its windows may be in flight when the first 404 comes; none is sent after it.
    assert len([r for r in world.simulator.requests() if "NOSUCH" in r["path"]]) <= 4


def test_bars_beyond_the_reach_are_unreachable_and_never_asked_for(world: World) -> None:
    [aapl] = world.load("AAPL")
    [report] = world.ingest([aapl], first=date(2024, 10, 28), last=date(2024, 11, 4))
    assert report.verdicts[Verdict.UNREACHABLE] == report.expected == 6 * 390
    assert world.simulator.requests() == []


def test_a_running_session_keeps_finished_bars_and_leaves_the_rest_pending(world: World) -> None:
    [aapl] = world.load("AAPL")
    world.simulator.set_now(datetime(2024, 12, 6, 15, 31, 40, tzinfo=UTC))
    [report] = world.ingest([aapl], first=FRIDAY)
    # 14:30 to 15:30: the bar of 15:29 ended at 15:30 and has settled for 90 s; that of 15:30 has not.
    assert report.verdicts[Verdict.PRESENT] == 60
    assert report.verdicts[Verdict.PENDING] == 330
    world.simulator.set_now(SATURDAY)
    [report] = world.ingest([aapl], first=FRIDAY)
    assert report.verdicts[Verdict.PRESENT] == 390


def test_asking_again_on_purpose_keeps_what_a_later_answer_lacks_and_revises_what_differs(
    tmp_path: Path, database_url: str
) -> None:
    data = tmp_path / "data"
    later = SATURDAY + timedelta(hours=1)
    write_bars(data, "AAPL", Interval.M1, OPENS)
    write_bars(data, "AAPL", Interval.M1, OPENS[:-1], close=12.0, known_from=later)
    withdraw_bar(data, "AAPL", Interval.M1, OPENS[-1], known_from=later)
    with a_world(data, database_url, tmp_path / "home") as world:
        [aapl] = world.load("AAPL")
        world.ingest([aapl])
        before = world.stored(aapl)
        world.simulator.set_now(later)
        [report] = world.ingest([aapl], refetch=True)
        after = world.stored(aapl)
        assert report.verdicts[Verdict.PRESENT] == 1950
        assert after[OPENS[0]] == pytest.approx(12.0)
        assert after[OPENS[-1]] == before[OPENS[-1]]
        assert world.stored(aapl, as_of=SATURDAY) == before
        assert world.stored(aapl, as_of=later) == after
        assert world.count("candle_revisions") == 1949


def test_daily_bars_are_stored_under_their_session_date(tmp_path: Path, database_url: str) -> None:
    data = tmp_path / "data"
    days = expected_opens(Interval.D1)
    write_bars(data, "AAPL", Interval.D1, days)
    with a_world(data, database_url, tmp_path / "home") as world:
        [aapl] = world.load("AAPL")
        [report] = world.ingest([aapl], Interval.D1)
        assert report.verdicts[Verdict.PRESENT] == 5
        assert list(world.stored(aapl, Interval.D1)) == days


def test_hourly_bars_have_a_half_hour_tail(tmp_path: Path, database_url: str) -> None:
    data = tmp_path / "data"
    hours = expected_opens(Interval.H1)
    write_bars(data, "AAPL", Interval.H1, hours)
    with a_world(data, database_url, tmp_path / "home") as world:
        [aapl] = world.load("AAPL")
        [report] = world.ingest([aapl], Interval.H1)
        assert report.verdicts[Verdict.PRESENT] == 35


def test_sessions_before_the_listing_are_not_listed_and_not_asked_for(world: World) -> None:
    [aapl] = world.load("AAPL", active_from=date(2024, 12, 4))
    [report] = world.ingest([aapl])
    assert report.verdicts[Verdict.NOT_LISTED] == 2 * 390
    assert report.verdicts[Verdict.PRESENT] == 3 * 390


def test_a_derived_interval_cannot_be_fetched(world: World) -> None:
    with pytest.raises(InvalidInputError, match="5m"):
        world.ingest(world.load("AAPL"), Interval.M5)


def test_derived_bars_follow_the_minutes_and_wait_for_those_that_are_missing(world: World) -> None:
    [aapl, thin] = world.load("AAPL", "THIN")
    world.ingest([aapl, thin])
    stretches = [Stretch(instrument, MONDAY, FRIDAY) for instrument in (aapl, thin)]
    reports = {r.stretch.instrument.symbol: r for r in derive_candles(stretches, Interval.M5, pipeline=world.pipeline)}
    assert reports["AAPL"].verdicts[Verdict.PRESENT] == reports["AAPL"].inserted == 390
    # Every five minutes one of THIN's is unresolved, except where the first of the session was kept for its edges.
    assert reports["THIN"].verdicts[Verdict.PRESENT] < 20
    again = list(derive_candles(stretches, Interval.M5, pipeline=world.pipeline))
    assert [report.inserted for report in again] == [0, 0]
    assert sum(again[0].verdicts.values()) == 390


def test_coverage_adds_up_to_the_grid_and_gaps_are_exactly_what_is_missing(world: World) -> None:
    instruments = world.load("AAPL", "THIN")
    world.ingest(instruments, last=date(2024, 12, 4))
    for line in coverage_report(instruments, [Interval.M1], MONDAY, FRIDAY, pipeline=world.pipeline):
        assert sum(line.counts.values()) == line.expected == 1950
        gaps = [
            g for g in gap_windows(instruments, [Interval.M1], MONDAY, FRIDAY, pipeline=world.pipeline) if g.symbol == line.symbol
        ]
        assert sum(gap.bars for gap in gaps) == line.counts[Verdict.MISSING]
