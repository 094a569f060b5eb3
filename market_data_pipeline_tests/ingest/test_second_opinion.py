"""Another provider is asked about what is stored, and what comes of it: real adapters, a simulator, a real database."""

from __future__ import annotations

import csv
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.domain.agreement import draw
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.quality import BarFlag
from market_data_pipeline.domain.universe import Tier, UniverseEntry
from market_data_pipeline.ingest.second_opinion import SecondOpinions, Subject, ask_second_opinions, finished_sessions, sampled
from market_data_pipeline.simulator.client import RunningSimulator, running_simulator
from market_data_pipeline.storage.opinions import Opinion, OpinionStore
from market_data_pipeline_tests.world import FRIDAY, MONDAY, SATURDAY, UNLIMITED, World, Worlds, expected_opens

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.pipeline import Pipeline

OPENS = expected_opens()
MONDAYS = expected_opens(last=MONDAY)
SYMBOLS = [f"S{number:02}" for number in range(20)]


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSimulator]:
    """A week of minutes at about a hundred dollars, with the ranges that minutes have. Each test takes symbols of its own."""
    data = tmp_path_factory.mktemp("data")
    (data / "1m").mkdir()
    for number, symbol in enumerate(SYMBOLS):
        with (data / "1m" / f"{symbol}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["opened_at", "open", "high", "low", "close", "volume"])
            for place, at in enumerate(OPENS):
                close = 100 + number + (place % 20) / 100
                stamp = datetime.fromtimestamp(at, UTC).isoformat()
                writer.writerow([stamp, close - 0.01, close + 0.02, close - 0.03, close, 10_000 + place])
    with running_simulator(data=data, now=SATURDAY, limits=UNLIMITED) as running:
        yield running


@pytest.fixture
def worlds(simulator: RunningSimulator, database_url: str, tmp_path: Path) -> Worlds:
    """Worlds whose providers do nothing wrong yet."""
    simulator.reset()
    return Worlds(simulator, database_url, tmp_path)


def of_monday(world: World, symbol: str = "S00") -> Subject:
    """A symbol whose Monday is stored from the first provider in the policy."""
    [instrument] = world.load(symbol)
    [report] = world.ingest([instrument], last=MONDAY)
    assert (report.failure, report.inserted) == (None, 390)
    return Subject(instrument, MONDAY)


def origins(world: World, instrument: Instrument) -> dict[str, int]:
    """Whose bars of Monday are stored, and how many."""
    found = OpinionStore(world.pipeline.engine).sources(instrument.symbol_id, Interval.M1, MONDAY, MONDAYS[0], MONDAYS[-1] + 60)
    return {source.provider: source.bars for source in found}


def asked(pipeline: Pipeline, *subjects: Subject, at_most: int = 100) -> SecondOpinions:
    return ask_second_opinions(subjects, Interval.M1, pipeline=pipeline, at_most=at_most)


def the_opinion(world: World, subject: Subject) -> Opinion:
    """What was told, which is what is stored."""
    result = asked(world.pipeline, subject)
    assert (result.unheard, result.stopped) == ({}, None)
    [opinion] = result.opinions
    [latest] = OpinionStore(world.pipeline.engine).latest(MONDAY, FRIDAY, symbol_ids=[subject.instrument.symbol_id])
    assert replace(latest, second_fetch_id=None, third_fetch_id=None) == replace(opinion, second_fetch_id=None)
    assert latest.second_fetch_id is not None
    return latest


def test_a_second_provider_that_says_the_same_changes_nothing(worlds: Worlds) -> None:
    with worlds.of("yahoo", "massive") as world:
        subject = of_monday(world)
        opinion = the_opinion(world, subject)
        assert (opinion.verdict, opinion.compared, opinion.second_provider) == ("agree", 390, "massive")
        assert (opinion.winner, opinion.decided_by, opinion.is_open) == ("yahoo", "agreement", False)
        assert world.count("candle_revisions") == world.count("refused_bars") == 0


def test_the_volume_of_one_exchange_is_a_difference_of_feeds(worlds: Worlds) -> None:
    with worlds.of("yahoo", "alpaca", alpaca_feed="iex") as world:
        opinion = the_opinion(world, of_monday(world))
        assert opinion.verdict == "feed_difference"
        assert opinion.volume_ratio is not None
        assert opinion.volume_ratio < 0.1
        assert not opinion.is_open


def test_a_hundred_times_the_price_gives_way_to_two_others_and_stays_a_revision(worlds: Worlds) -> None:
    # Massive names no close of its own before the window, so that nothing contradicts a symbol's first answer.
    worlds.simulator.set_faults([{"match": {"provider": "massive"}, "action": "unit", "factor": 100}])
    with worlds.of("massive", "yahoo", "alpaca", alpaca_feed="sip") as world:
        subject = of_monday(world)
        before = world.stored(subject.instrument)
        opinion = the_opinion(world, subject)
        assert (opinion.verdict, opinion.decided_by, opinion.winner) == ("unit_slip", "majority", "yahoo")
        assert (opinion.third_provider, opinion.revised, opinion.is_open) == ("alpaca", 390, False)
        now = world.stored(subject.instrument)
        assert now == pytest.approx({at: close / 100 for at, close in before.items()}, rel=1e-6)
        assert origins(world, subject.instrument) == {"yahoo": 390}
        # What was believed is still what was believed then.
        assert world.count("candle_revisions") == 390
        read = world.pipeline.reader.read([subject.instrument.symbol_id], Interval.M1, MONDAYS[0], MONDAYS[-1] + 60)
        assert set(read.flags.tolist()) == {BarFlag.OVERRULED_ANOTHER}
        assert set(read.fetch_id.tolist()) == {opinion.second_fetch_id}


def test_a_second_provider_that_slips_loses_to_the_first_and_its_bars_are_quarantined(worlds: Worlds) -> None:
    with worlds.of("yahoo", "massive") as world:
        subject = of_monday(world)
        before = world.stored(subject.instrument)
        world.simulator.set_faults([{"match": {"provider": "massive"}, "action": "unit", "factor": 100}])
        opinion = the_opinion(world, subject)
        assert (opinion.verdict, opinion.decided_by, opinion.winner) == ("unit_slip", "policy", "yahoo")
        assert (opinion.quarantined, opinion.revised, opinion.is_open) == (390, 0, True)
        assert world.stored(subject.instrument) == before
        assert world.count("refused_bars") == 390


def test_only_the_bars_that_disagree_are_revised_and_by_whom_the_policy_puts_first(worlds: Worlds) -> None:
    with worlds.of("massive") as fallback:
        worlds.simulator.set_faults([{"match": {"provider": "massive"}, "action": "unit", "factor": 1.02, "fraction": 0.2}])
        subject = of_monday(fallback)
    with worlds.of("yahoo", "massive") as world:
        opinion = the_opinion(world, subject)
        assert (opinion.verdict, opinion.decided_by, opinion.winner) == ("disagree", "policy", "yahoo")
        assert 40 < opinion.revised == opinion.off < 120
        assert origins(world, subject.instrument) == {"massive": 390 - opinion.revised, "yahoo": opinion.revised}
        # Nobody else was heard: a person should look.
        assert opinion.is_open


def test_a_provider_of_another_feed_overrules_nobody(worlds: Worlds) -> None:
    worlds.simulator.set_faults([{"match": {"provider": "massive"}, "action": "unit", "factor": 100}])
    with worlds.of("massive") as world:
        subject = of_monday(world)
    with worlds.of("alpaca", "massive", alpaca_feed="iex") as world:
        opinion = the_opinion(world, subject)
        assert (opinion.winner, opinion.revised, opinion.is_open) == ("alpaca", 0, True)
        assert opinion.reason.endswith("nothing was revised: alpaca's feed counts other trades")
        assert origins(world, subject.instrument) == {"massive": 390}


def test_with_one_provider_there_is_nobody_to_ask(worlds: Worlds) -> None:
    with worlds.of("yahoo") as world:
        result = asked(world.pipeline, of_monday(world))
        assert result.stopped == "nobody can be asked for bars_1m: yahoo: it was heard already"
        assert world.count("second_opinions") == 0


def test_a_second_provider_that_fails_leaves_the_session_unheard_and_on_record(worlds: Worlds) -> None:
    with worlds.of("yahoo", "massive") as world:
        subject = of_monday(world)
        world.simulator.set_faults([{"match": {"provider": "massive"}, "action": "ragged"}, {"action": "status", "code": 500}])
        result = asked(world.pipeline, subject)
        assert list(result.unheard) == ["S00 2024-12-02"]
        assert world.count("second_opinions") == 0
        assert world.count("fetches where outcome = 'transient' and provider = 'massive'") == 1


def test_opinions_are_asked_for_once_of_every_sampled_session_t0_first(worlds: Worlds) -> None:
    with worlds.of("yahoo", "massive") as world:
        entries = [UniverseEntry("S03", "XNAS", Tier.T2), UniverseEntry("S04", "XNAS", Tier.T0)]
        world.pipeline.universe.load(entries, version_tag="t", source="t", source_sha256="0" * 64, loaded_by="t")
        instruments = world.pipeline.universe.instruments()
        world.ingest(instruments)
        now = SATURDAY

        def due(share: float) -> list[Subject]:
            return sampled(instruments, Interval.M1, pipeline=world.pipeline, now=now, share=share)

        everything = due(1.0)
        assert [subject.instrument.symbol for subject in everything] == ["S04"] * 5 + ["S03"] * 5
        half = due(0.5)
        assert half == [s for s in everything if draw(s.instrument.symbol, Interval.M1, s.session) < 0.5]
        first = asked(world.pipeline, *everything, at_most=3)
        assert (len(first.opinions), first.stopped) == (3, "7 more sessions are for the next run")
        assert due(1.0) == everything[3:]


def test_second_opinions_spend_the_backfill_share_of_the_budget_and_no_more(worlds: Worlds) -> None:
    """Of ten requests an hour four are open to the history of T2."""
    with worlds.of("yahoo", "massive", limits="yahoo=none;massive=10/h") as world:
        entries = [UniverseEntry(symbol, "XNAS", Tier.T2) for symbol in ("S07", "S08")]
        world.pipeline.universe.load(entries, version_tag="t2", source="t", source_sha256="0" * 64, loaded_by="t")
        instruments = world.pipeline.universe.instruments()
        world.ingest(instruments)
        due = sampled(instruments, Interval.M1, pipeline=world.pipeline, now=SATURDAY, share=1.0)
        result = asked(world.pipeline, *due)
        assert (len(due), len(result.opinions)) == (10, 4)
        assert str(result.stopped).startswith("massive: ")
        assert len(sampled(instruments, Interval.M1, pipeline=world.pipeline, now=SATURDAY, share=1.0)) == 6


def test_a_session_with_a_jump_that_nothing_explains_is_asked_about_first(worlds: Worlds) -> None:
    with worlds.of("yahoo", "massive") as world:
        tuesday = OPENS[500]
        spike = {"action": "unit", "factor": 4.0, "minutes": [datetime.fromtimestamp(tuesday, UTC).isoformat()]}
        world.simulator.set_faults([spike])
        world.ingest(instruments := world.load("S05"))
        due = sampled(instruments, Interval.M1, pipeline=world.pipeline, now=SATURDAY, share=0.0)
        assert [(s.session.isoformat(), s.is_flagged) for s in due] == [("2024-12-03", True)]


def test_a_running_session_is_not_asked_about(worlds: Worlds) -> None:
    with worlds.of("yahoo", "massive") as world:
        world.simulator.set_now(datetime.fromtimestamp(OPENS[-100], UTC))
        world.ingest(instruments := world.load("S06"))
        subjects = list(finished_sessions(instruments, Interval.M1, MONDAY, FRIDAY, pipeline=world.pipeline))
        assert [subject.session.isoformat() for subject in subjects] == ["2024-12-02", "2024-12-03", "2024-12-04", "2024-12-05"]
