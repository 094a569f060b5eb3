"""Candles from several vendors: real adapters, a simulator of all of them, a real database."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.capabilities import Lane
from market_data_pipeline.domain.coverage import Verdict
from market_data_pipeline.domain.evidence import Rung
from market_data_pipeline.domain.health import Breaker
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.ingest.candles import ingest_candles
from market_data_pipeline.ingest.report import Stretch
from market_data_pipeline.simulator.client import RunningSimulator, running_simulator
from market_data_pipeline.storage.evidence import Evidence
from market_data_pipeline_tests.world import (
    FRIDAY,
    MONDAY,
    SATURDAY,
    UNLIMITED,
    World,
    Worlds,
    expected_opens,
    write_bars,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.report import StretchReport

OPENS = expected_opens()
MINUTES = expected_opens(last=MONDAY)
TUESDAY = date(2024, 12, 3)
MANY = [f"S{number:02}" for number in range(66)]
DOWN = {"action": "status", "code": 503}


def by(vendor: str, **fault: Any) -> dict[str, Any]:  # noqa: ANN401 - a fault's own settings
    """A fault of one vendor."""
    return {"match": {"provider": vendor, **fault.pop("match", {})}, **fault}


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSimulator]:
    """A week of minutes of two symbols, Mondays of many, a symbol that trades every fifth minute, and days."""
    data = tmp_path_factory.mktemp("data")
    write_bars(data, "AAPL", Interval.M1, OPENS)
    write_bars(data, "MSFT", Interval.M1, OPENS, close=400.0)
    write_bars(data, "THIN", Interval.M1, [at for place, at in enumerate(OPENS) if place * place % 7 < 3])
    for symbol in MANY:
        write_bars(data, symbol, Interval.M1, MINUTES, close=50.0)
    with running_simulator(data=data, now=SATURDAY, limits=UNLIMITED) as running:
        yield running


@pytest.fixture
def worlds(simulator: RunningSimulator, database_url: str, tmp_path: Path) -> Worlds:
    """Worlds whose providers do nothing wrong yet."""
    simulator.reset()
    return Worlds(simulator, database_url, tmp_path)


def origins(world: World, instrument: Instrument, interval: Interval = Interval.M1) -> Counter[str]:
    """How many stored bars are whose."""
    read = world.pipeline.reader.read([instrument.symbol_id], interval, 0, 1 << 33, provenance=True)
    return Counter(read.providers)


def ledger(world: World, instrument: Instrument, session: date = MONDAY) -> tuple[int, int, datetime | None]:
    [row] = world.pipeline.ledger.rows([instrument.symbol_id], Interval.M1, session, session)
    return row.attempts, row.failures, row.next_attempt_at


def told(world: World) -> list[tuple[str, str, bool]]:
    return [(event.provider, event.kind, event.is_recovery) for event in reversed(world.pipeline.health.events())]


def ask(
    world: World,
    instruments: Sequence[Instrument],
    *,
    first: date = MONDAY,
    last: date = MONDAY,
    **terms: Any,  # noqa: ANN401
) -> list[StretchReport]:
    stretches = [Stretch(instrument, first, last) for instrument in instruments]
    return list(ingest_candles(stretches, Interval.M1, pipeline=world.pipeline, **terms))


# --- what one lacks, the next is asked for -----------------------------------------------------------------------------


def test_twelve_of_390_bars_from_one_and_378_from_the_next(worlds: Worlds) -> None:
    worlds.simulator.set_faults([by("yahoo", action="missing_minutes", fraction=0.97)])
    with worlds.of("yahoo", "massive") as world:
        [aapl] = world.load("AAPL")
        [report] = ask(world, [aapl])
        mine = origins(world, aapl)
        assert (report.inserted, report.failure, report.providers) == (390, None, ("massive", "yahoo"))
        assert mine["yahoo"] + mine["massive"] == 390
        assert 0 < mine["yahoo"] < 40
        assert list(world.stored(aapl)) == MINUTES
        assert worlds.asked() == {"yahoo": 1, "massive": 1}
        assert report.requests == 2
        assert ledger(world, aapl) == (0, 0, None)


def test_an_answer_that_is_not_short_waits_for_the_next_attempt_and_is_then_completed(worlds: Worlds) -> None:
    worlds.simulator.set_faults([by("yahoo", action="missing_minutes", fraction=0.05)])
    with worlds.of("yahoo", "massive") as world:
        [aapl] = world.load("AAPL")
        [first] = ask(world, [aapl])
        assert first.verdicts[Verdict.MISSING] > 0
        assert worlds.asked() == {"yahoo": 1}
        worlds.simulator.set_now(SATURDAY + timedelta(hours=1))
        [second] = ask(world, [aapl])
        assert second.verdicts[Verdict.PRESENT] == 390
        assert worlds.asked() == {"yahoo": 1, "massive": 1}


def test_a_minute_that_two_providers_lack_at_once_is_confirmed_at_the_first_attempt(
    worlds: Worlds,
) -> None:
    with worlds.of("yahoo", "massive") as world:
        [thin] = world.load("THIN")
        [report] = ask(world, [thin])
        assert (report.verdicts[Verdict.PRESENT], report.verdicts[Verdict.CONFIRMED_EMPTY]) == (279, 111)
        assert worlds.asked() == {"yahoo": 1, "massive": 1}
        assert ledger(world, thin) == (1, 0, None)
        [row] = Evidence(world.pipeline.engine).of(thin.symbol_id, Interval.M1, MONDAY, MONDAY)
        assert (row.rung, row.providers, row.attempts) == (Rung.SECOND_PROVIDER, ("massive", "yahoo"), 1)
        assert int(row.slots.sum()) == 111


def test_a_minute_that_one_provider_lacks_alone_is_confirmed_by_the_third_spaced_pass(worlds: Worlds) -> None:
    with worlds.of("yahoo") as world:
        [thin] = world.load("THIN")
        for hours, attempts in ((0, 1), (1, 2)):
            worlds.simulator.set_now(SATURDAY + timedelta(hours=hours))
            [report] = ask(world, [thin])
            assert report.verdicts[Verdict.CONFIRMED_EMPTY] == 0
            assert ledger(world, thin)[0] == attempts
        worlds.simulator.set_now(SATURDAY + timedelta(hours=8))
        [report] = ask(world, [thin])
        assert (report.verdicts[Verdict.PRESENT], report.verdicts[Verdict.CONFIRMED_EMPTY]) == (279, 111)
        assert worlds.asked() == {"yahoo": 3}


def test_a_provider_that_is_down_costs_a_few_requests_and_the_next_gives_everything(worlds: Worlds) -> None:
    worlds.simulator.set_faults([by("yahoo", **DOWN)])
    with worlds.of("yahoo", "massive") as world:
        instruments = world.load("AAPL", "MSFT", *MANY[:20])
        reports = ask(world, instruments)
        assert {(report.failure, report.inserted) for report in reports} == {(None, 390)}
        asked = worlds.asked()
        assert asked["massive"] == 22
        # Five failed attempts open the breaker; four requests were under way.
        assert asked["yahoo"] <= 4 * (world.settings.requests_in_flight + 1)
        assert any("503" in report.failures.get("yahoo", "") for report in reports)
        assert told(world) == [("yahoo", "breaker_opened", False)]
        # Somebody answered: no session waits, no failure is counted.
        assert {ledger(world, instrument) for instrument in instruments} == {(0, 0, None)}
        again = ask(world, world.load("AAPL"), refetch=True)
        assert worlds.asked() == {"massive": 1}
        assert again[0].providers == ("massive",)


def test_a_cooled_breaker_gets_one_trial_and_with_its_answer_its_place_back(worlds: Worlds) -> None:
    worlds.simulator.set_faults([by("yahoo", **DOWN)])
    with worlds.of("yahoo", "massive") as world:
        instruments = world.load("AAPL", *MANY[:10])
        ask(world, instruments)
        worlds.asked()
        worlds.simulator.set_now(SATURDAY + timedelta(seconds=61))
        ask(world, instruments, refetch=True)
        tried = [request["path"] for request in worlds.simulator.requests() if request["provider"] == "yahoo"]
        assert len(set(tried)) == 1
        worlds.asked()
        worlds.simulator.set_faults([])
        worlds.simulator.set_now(SATURDAY + timedelta(seconds=200))
        ask(world, instruments[:1], refetch=True)
        assert worlds.asked() == {"yahoo": 1}
        health = world.pipeline.health.all()["yahoo", "bars_1m"]
        assert health.breaker is Breaker.CLOSED
        assert ("yahoo", "breaker_closed", True) in told(world)


def test_where_everybody_is_down_nobody_is_asked_for_long_and_every_stretch_says_why(worlds: Worlds) -> None:
    worlds.simulator.set_faults([{"match": {}, **DOWN}])
    with worlds.of("yahoo", "massive") as world:
        instruments = world.load(*MANY)
        reports = ask(world, instruments)
        asked = worlds.asked()
        assert max(asked.values()) <= 4 * (world.settings.requests_in_flight + 1)
        assert all(report.failure is not None for report in reports)
        not_asked = [report for report in reports if str(report.failure).startswith("not asked")]
        assert len(not_asked) > 50
        [reason] = {str(report.failure) for report in not_asked}
        assert "nobody can be asked for bars_1m: yahoo: breaker open until" in reason
        assert "massive: breaker open until" in reason
        # Those who were asked in vain wait; those who were not asked are left to the sensor.
        waits = Counter(ledger(world, instrument)[1] for instrument in instruments)
        assert waits[0] == len(not_asked)
        assert waits[1] == 66 - len(not_asked)


def test_an_entitlement_is_lost_once_for_everybody_and_a_run_later_still(worlds: Worlds) -> None:
    worlds.simulator.set_faults([by("finnhub", action="refused", code=403)])
    with worlds.of("finnhub", "yahoo", requests_in_flight=1) as world:
        instruments = world.load(*MANY[:8])
        assert {report.failure for report in ask(world, instruments)} == {None}
        assert worlds.asked() == {"finnhub": 1, "yahoo": 8}
        ask(world, instruments, refetch=True)
        assert worlds.asked() == {"yahoo": 8}
        assert told(world) == [("finnhub", "entitlement_lost", False)]


def test_a_symbol_that_one_does_not_know_is_asked_of_the_next_and_never_again_of_the_first(worlds: Worlds) -> None:
    with worlds.of("yahoo", "massive", requests_in_flight=1) as world:
        [nobody] = world.load("NOSUCH")
        [report] = ask(world, [nobody], first=date(2024, 11, 18), last=FRIDAY)
        assert "NOSUCH" in report.failures["yahoo"]
        assert set(report.failures) == {"yahoo", "massive"}
        asked = worlds.asked()
        # Three windows: the first taught what the others need not ask.
        assert asked["yahoo"] == 1
        assert asked["massive"] == 3
        # Not found once is no delisting, and no illness of the provider.
        assert told(world) == []


def test_a_provider_that_wants_us_to_wait_is_not_asked_again_in_the_pass(worlds: Worlds) -> None:
    worlds.simulator.set_faults([by("yahoo", action="status", code=429)])
    with worlds.of("yahoo", "massive", requests_in_flight=1) as world:
        instruments = world.load(*MANY[:10])
        reports = ask(world, instruments)
        assert {(report.failure, report.inserted) for report in reports} == {(None, 390)}
        assert worlds.asked() == {"yahoo": 1, "massive": 10}
        # Waiting is no illness.
        assert told(world) == [("yahoo", "limit_learned", False)]


def test_a_request_that_our_own_budget_does_not_allow_goes_to_the_next(worlds: Worlds) -> None:
    with worlds.of("yahoo", "massive", limits=f"{UNLIMITED};yahoo=4/h", http_deadline_seconds=1.0, requests_in_flight=1) as world:
        reports = ask(world, world.load(*MANY[:10]))
        assert {(report.failure, report.inserted) for report in reports} == {(None, 390)}
        asked = worlds.asked()
        # A backfill of T0 has four fifths of the limit.
        assert asked["yahoo"] == 3
        assert asked["massive"] == 7


def test_live_requests_may_spend_what_a_backfill_may_not(worlds: Worlds) -> None:
    with worlds.of("yahoo", limits=f"{UNLIMITED};yahoo=5/h", http_deadline_seconds=1.0, requests_in_flight=1) as world:
        backfill = ask(world, world.load(*MANY[:6]))
        assert [report.failure is None for report in backfill].count(True) == 4
        live = ask(world, world.load(*MANY[6:10]), lane=Lane.LIVE)
        assert [report.failure is None for report in live].count(True) == 1
        assert "budget" in str(live[-1].failure)


def test_an_answer_that_cannot_be_believed_is_quarantined_and_the_next_is_asked(worlds: Worlds) -> None:
    with worlds.of("yahoo", "massive") as world:
        [aapl] = world.load("AAPL")
        ask(world, [aapl])
        worlds.simulator.set_faults([by("yahoo", action="unit", factor=100)])
        worlds.asked()
        [report] = ask(world, [aapl], first=TUESDAY, last=TUESDAY)
        assert (report.failure, report.inserted, report.providers) == (None, 390, ("massive",))
        assert report.refused == 390
        assert worlds.asked() == {"yahoo": 1, "massive": 1}
        assert max(world.stored(aapl).values()) < 100
        assert world.count("refused_bars") == 390


def test_where_nobody_gives_a_usable_answer_the_session_waits_and_its_failures_are_counted(worlds: Worlds) -> None:
    with worlds.of("yahoo", "massive") as world:
        [aapl] = world.load("AAPL")
        ask(world, [aapl])
        worlds.simulator.set_faults([by("yahoo", action="unit", factor=100), by("massive", **DOWN)])
        [report] = ask(world, [aapl], first=TUESDAY, last=TUESDAY)
        assert "503" in str(report.failure)
        assert "yahoo: " in str(report.failure)
        assert ledger(world, aapl, TUESDAY) == (0, 1, SATURDAY + timedelta(minutes=15))


# --- while the session runs --------------------------------------------------------------------------------------------

DURING = datetime(2024, 12, 2, 16, 31, 40, tzinfo=UTC)


def test_a_thin_symbol_costs_the_second_provider_nothing_while_the_session_runs(worlds: Worlds) -> None:
    worlds.simulator.set_now(DURING)
    with worlds.of("yahoo", "massive") as world:
        [aapl, thin] = world.load("AAPL", "THIN")
        for minutes in (0, 1, 2):
            worlds.simulator.set_now(DURING + timedelta(minutes=minutes))
            ask(world, [aapl, thin])
        assert worlds.asked() == {"yahoo": 6}


def test_a_failure_while_the_session_runs_is_made_good_by_the_next_at_once(worlds: Worlds) -> None:
    worlds.simulator.set_now(DURING)
    worlds.simulator.set_faults([by("yahoo", **DOWN)])
    with worlds.of("yahoo", "massive") as world:
        [report] = ask(world, world.load("AAPL"))
        assert (report.inserted, report.failure) == (120, None)
        assert report.verdicts[Verdict.PENDING] == 270


def test_where_most_symbols_are_empty_while_the_session_runs_the_next_is_asked_once_that_would_be_missed(worlds: Worlds) -> None:
    worlds.simulator.set_faults([by("yahoo", action="barren")])
    with worlds.of("yahoo", "massive") as world:
        instruments = world.load("AAPL", "MSFT")
        # Nine minutes after the open an empty answer is nothing remarkable; an hour later it is.
        worlds.simulator.set_now(datetime(2024, 12, 2, 14, 40, 40, tzinfo=UTC))
        ask(world, instruments)
        assert worlds.asked() == {"yahoo": 2}
        worlds.simulator.set_now(datetime(2024, 12, 2, 15, 31, 40, tzinfo=UTC))
        reports = ask(world, instruments)
        assert {(report.failure, report.inserted) for report in reports} == {(None, 60)}
        assert worlds.asked() == {"yahoo": 2, "massive": 2}


def test_an_answer_from_the_past_keeps_its_bars_and_the_rest_comes_from_the_next(worlds: Worlds) -> None:
    worlds.simulator.set_now(DURING)
    worlds.simulator.set_faults([by("yahoo", action="stale", seconds=3600)])
    with worlds.of("yahoo", "massive") as world:
        [aapl] = world.load("AAPL")
        [report] = ask(world, [aapl])
        assert (report.inserted, report.failure) == (120, None)
        # An hour of them are the first's own.
        assert origins(world, aapl) == {"yahoo": 61, "massive": 59}


# --- empty answers -----------------------------------------------------------------------------------------------------


def test_most_symbols_empty_is_one_incident_without_a_verdict_and_the_next_provider_has_their_bars(worlds: Worlds) -> None:
    worlds.simulator.set_faults([by("yahoo", action="barren", share=0.73)])
    with worlds.of("yahoo", "massive") as world:
        instruments = world.load(*MANY)
        reports = ask(world, instruments)
        assert {(report.failure, report.inserted) for report in reports} == {(None, 390)}
        asked = worlds.asked()
        # Soon the other one is asked first: the incident costs no second request a symbol.
        assert sum(asked.values()) < 1.6 * len(MANY)
        assert told(world) == [("yahoo", "barren", False)]
        assert {ledger(world, instrument) for instrument in instruments} == {(0, 0, None)}
        worlds.simulator.set_faults([])
        ask(world, instruments, refetch=True)
        assert told(world) == [("yahoo", "barren", False), ("yahoo", "barren", True)]


def test_an_incident_of_the_only_provider_is_told_once_and_its_sessions_wait_untouched(worlds: Worlds) -> None:
    worlds.simulator.set_faults([by("yahoo", action="barren", share=0.73)])
    with worlds.of("yahoo") as world:
        instruments = world.load(*MANY)
        reports = ask(world, instruments)
        empty = [report for report in reports if report.failure is not None]
        assert 40 <= len(empty) <= 56
        assert all(report.verdicts[Verdict.MISSING] == 390 for report in empty)
        rows = Counter(ledger(world, instrument) for instrument in instruments)
        # No attempt, and the first wait, so that the sensor does not come at once; counted, so that it does not come for ever.
        assert rows == {(0, 1, SATURDAY + timedelta(minutes=15)): len(empty), (0, 0, None): 66 - len(empty)}
        worlds.simulator.set_now(SATURDAY + timedelta(minutes=20))
        ask(world, instruments)
        assert told(world) == [("yahoo", "barren", False)]
        # Those that were empty are asked again, until it is plain that nothing comes: then one trial a cool-down will tell.
        assert 66 + 20 <= world.count("fetches") < 66 + len(empty)


def test_a_tail_of_thin_symbols_is_silence_and_no_incident(worlds: Worlds) -> None:
    worlds.simulator.set_faults([by("yahoo", action="barren", share=0.07)])
    with worlds.of("yahoo") as world:
        instruments = world.load(*MANY)
        reports = ask(world, instruments)
        empty = [report for report in reports if report.failure is not None]
        assert 1 <= len(empty) <= 12
        assert told(world) == []
        # An attempt like any other, and no evidence.
        assert {ledger(world, report.stretch.instrument)[:2] for report in empty} == {(1, 0)}


def test_a_run_of_few_symbols_is_judged_by_the_company_of_other_runs(worlds: Worlds) -> None:
    worlds.simulator.set_faults([by("yahoo", action="barren")])
    with worlds.of("yahoo") as world:
        instruments = world.load(*MANY[:30])
        for at in range(0, 30, 3):
            ask(world, instruments[at : at + 3])
        attempts = [ledger(world, instrument)[0] for instrument in instruments]
        # The first eighteen are too few to tell; with the twentieth it is an incident.
        assert attempts == [1] * 18 + [0] * 12
        assert told(world) == [("yahoo", "barren", False)]


# --- whom it makes no sense to ask -------------------------------------------------------------------------------------


def test_what_nobody_can_be_asked_for_waits_for_the_first_who_can(worlds: Worlds) -> None:
    worlds.simulator.set_faults([by("yahoo", **DOWN)])
    with worlds.of("yahoo") as world:
        instruments = world.load(*MANY)
        reports = ask(world, instruments)
        unasked = [r.stretch.instrument for r in reports if r.failure is not None and r.failure.startswith("not asked")]
        assert len(unasked) > 40
        # The breaker rests for a minute. Neither attempt nor failure: nothing was learned about them.
        assert {ledger(world, instrument) for instrument in unasked} == {(0, 0, SATURDAY + timedelta(minutes=1))}
        due = world.pipeline.ledger.due_gaps(SATURDAY + timedelta(seconds=59), limit=100)
        assert due == []
        worlds.simulator.set_faults([])
        worlds.simulator.set_now(SATURDAY + timedelta(minutes=1))
        ask(world, unasked)
        worlds.simulator.set_now(SATURDAY + timedelta(minutes=2))
        again = ask(world, unasked)
        assert {report.verdicts[Verdict.PRESENT] for report in again} == {390}


def test_a_vendor_of_us_shares_is_not_asked_for_hong_kong(worlds: Worlds) -> None:
    with worlds.of("massive", "alpaca", "yahoo") as world:
        [abroad] = world.load("9801.HK", exchange="XHKG")
        [report] = ask(world, [abroad])
        assert worlds.asked() == {"yahoo": 1}
        assert "it does not serve XHKG" not in (report.failure or "")
    with worlds.of("massive") as world:
        [report] = ask(world, world.pipeline.universe.instruments(symbols=["9801.HK"]))
        assert worlds.asked() == {}
        # Nobody there serves it at all: that is no gap, and nobody is sent to heal it.
        assert report.verdicts[Verdict.UNREACHABLE] == report.expected > 0
        reaches = world.pipeline.reaches([Interval.M1])
        assert world.pipeline.ledger.due_gaps(SATURDAY + timedelta(days=1), limit=10, reach_seconds=reaches) == []


# --- feeds -------------------------------------------------------------------------------------------------------------


def test_a_feed_that_counts_other_trades_fills_no_hole_unless_it_may_and_then_under_its_name(worlds: Worlds) -> None:
    worlds.simulator.set_faults([by("yahoo", **DOWN)])
    with worlds.of("yahoo", "alpaca", alpaca_feed="iex") as world:
        [aapl] = world.load("AAPL")
        [report] = ask(world, [aapl])
        assert report.inserted == 0
        assert worlds.asked()["alpaca"] == 0
    with worlds.of("yahoo", "alpaca", alpaca_feed="iex", allow_mixed_feeds=True) as world:
        [report] = ask(world, [aapl])
        assert report.inserted > 0
        read = world.pipeline.reader.read([aapl.symbol_id], Interval.M1, 0, 1 << 33, provenance=True)
        assert set(read.feeds or ()) == {"iex"}
        # What nobody traded on one exchange was traded on others.
        worlds.simulator.set_now(SATURDAY + timedelta(hours=1))
        ask(world, [aapl])
        worlds.simulator.set_now(SATURDAY + timedelta(hours=9))
        [report] = ask(world, [aapl])
        assert report.verdicts[Verdict.CONFIRMED_EMPTY] == 0


def test_the_same_trades_by_another_name_may_stand_in_one_series(worlds: Worlds) -> None:
    worlds.simulator.set_faults([by("yahoo", **DOWN)])
    with worlds.of("yahoo", "alpaca", alpaca_feed="sip") as world:
        [aapl] = world.load("AAPL")
        [report] = ask(world, [aapl])
        assert (report.inserted, report.providers) == (390, ("alpaca",))


def test_a_series_of_one_exchange_stays_one(worlds: Worlds) -> None:
    with worlds.of("alpaca", alpaca_feed="iex") as world:
        [aapl] = world.load("AAPL")
        ask(world, [aapl])
    worlds.asked()
    with worlds.of("yahoo", "alpaca", alpaca_feed="iex") as world:
        ask(world, [aapl], first=TUESDAY, last=TUESDAY)
        assert worlds.asked() == {"alpaca": 1}


# --- hints, tiers, groups ----------------------------------------------------------------------------------------------


def test_a_hint_is_asked_first_where_that_is_allowed(worlds: Worlds) -> None:
    with worlds.of("yahoo", "massive") as world:
        [aapl, msft] = world.load("AAPL", "MSFT")
        ask(world, [aapl], hint="massive")
        assert worlds.asked() == {"massive": 1}
    with worlds.of("yahoo", "massive", allow_source_override=False) as world:
        ask(world, [msft], hint="massive")
        assert worlds.asked() == {"yahoo": 1}


def test_a_refetch_of_a_better_provider_takes_over_and_of_a_worse_one_does_not(worlds: Worlds) -> None:
    with worlds.of("massive", "yahoo") as world:
        [aapl] = world.load("AAPL")
        ask(world, [aapl])
    worlds.simulator.set_faults(
        [by("yahoo", action="unit", of="volume", factor=2), by("massive", action="unit", of="volume", factor=3)]
    )
    with worlds.of("yahoo", "massive") as world:
        ask(world, [aapl])
        assert origins(world, aapl) == {"massive": 390}
        ask(world, [aapl], refetch=True)
        assert origins(world, aapl) == {"yahoo": 390}
        assert world.count("candle_revisions") == 390
    worlds.simulator.set_faults([by("yahoo", **DOWN), by("massive", action="unit", of="volume", factor=4)])
    with worlds.of("yahoo", "massive") as world:
        ask(world, [aapl], refetch=True)
        assert origins(world, aapl) == {"yahoo": 390}
        with world.pipeline.engine.connect() as connection:
            left = connection.exec_driver_sql(
                "select dropped->>'left_alone' from fetches where provider = 'massive' order by fetch_id desc limit 1"
            ).scalar_one()
        assert left == "390"


def test_many_symbols_share_a_request_and_one_that_is_unknown_fails_alone(worlds: Worlds) -> None:
    with worlds.of("alpaca", "yahoo", alpaca_feed="sip") as world:
        instruments = world.load(*MANY, "^NONE")
        reports = {report.stretch.instrument.symbol: report for report in ask(world, instruments)}
        assert {reports[symbol].failure for symbol in MANY} == {None}
        assert "^NONE" in str(reports["^NONE"].failure)
        asked = worlds.asked()
        # 67 times 390 bars are three pages.
        assert asked["alpaca"] == 3
        assert asked["yahoo"] == 1
        assert sum(report.requests for report in reports.values()) == pytest.approx(2)


def test_symbols_whose_newest_bars_differ_still_share_a_request_while_the_session_runs(worlds: Worlds) -> None:
    worlds.simulator.set_now(DURING)
    with worlds.of("alpaca", alpaca_feed="sip") as world:
        instruments = world.load(*MANY[:10])
        ask(world, instruments[:5])
        worlds.simulator.set_now(DURING + timedelta(minutes=3))
        ask(world, instruments[5:])
        worlds.simulator.set_now(DURING + timedelta(minutes=4))
        worlds.asked()
        ask(world, instruments)
        assert worlds.asked() == {"alpaca": 1}


def test_the_best_tier_is_asked_for_first(worlds: Worlds) -> None:
    with worlds.of("yahoo", requests_in_flight=1) as world:
        instruments = [
            replace(one, tier=tier) for one, tier in zip(world.load(*MANY[:6]), (Tier.T2, Tier.T1, Tier.T0) * 2, strict=True)
        ]
        ask(world, instruments)
        asked = [request["path"].rsplit("/", 1)[1] for request in worlds.simulator.requests()]
        assert asked == [MANY[2], MANY[5], MANY[1], MANY[4], MANY[0], MANY[3]]


# --- laws --------------------------------------------------------------------------------------------------------------


# A fault's luck hangs on the URL: other symbols, other luck.
@pytest.mark.parametrize("part", range(4))
def test_whatever_fails_every_bar_is_there_once_with_its_origin_and_nobody_is_asked_twice_for_one_window(
    worlds: Worlds, part: int
) -> None:
    trouble = [
        by("yahoo", action="missing_minutes", fraction=0.5, probability=0.4),
        by("yahoo", action="barren", share=0.2),
        by("massive", action="null_minutes", fraction=0.3, probability=0.5),
        by("massive", action="error_json", probability=0.2),
        by("alpaca", action="crossed", fraction=0.2, probability=0.5),
        by("alpaca", action="cut", probability=0.3),
    ]
    worlds.simulator.set_faults(trouble)
    with worlds.of("yahoo", "massive", "alpaca", alpaca_feed="sip", http_attempts=1, breaker_failures=1000) as world:
        instruments = world.load(*MANY[16 * part : 16 * (part + 1)])
        reports = ask(world, instruments)
        asked = Counter((r["provider"], r["path"], str(r["query"])) for r in worlds.simulator.requests())
        assert max(asked.values()) == 1
        per_provider = worlds.asked()
        assert max(per_provider["yahoo"], per_provider["massive"]) <= len(instruments)
        for instrument in instruments:
            read = world.pipeline.reader.read([instrument.symbol_id], Interval.M1, 0, 1 << 33, provenance=True)
            stamps = read.columns.opened_at.tolist()
            assert len(set(stamps)) == len(stamps)
            assert set(stamps) <= set(MINUTES)
            assert set(read.providers or ()) <= {"yahoo", "massive", "alpaca"}
        with world.pipeline.engine.connect() as connection:
            orphans = connection.exec_driver_sql(
                "select count(*) from candles_intraday b left join fetches f using (fetch_id) left join providers p"
                " on p.provider = b.provider where f.fetch_id is null or f.provider <> p.name"
            ).scalar_one()
        assert orphans == 0
        for report in reports:
            assert sum(report.verdicts.values()) == report.expected == 390
