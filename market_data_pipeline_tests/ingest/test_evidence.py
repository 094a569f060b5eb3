"""When silence is believed: real adapters, a simulator of the vendors, a real database, and a clock that waits for nobody."""

from __future__ import annotations

import csv
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.coverage import Verdict
from market_data_pipeline.domain.evidence import Rung
from market_data_pipeline.domain.halts import Halt
from market_data_pipeline.domain.universe import Tier, UniverseEntry
from market_data_pipeline.ingest.candles import ingest_candles
from market_data_pipeline.ingest.coverage import coverage_report
from market_data_pipeline.ingest.halts import apply_halts
from market_data_pipeline.ingest.report import Stretch
from market_data_pipeline.simulator.client import RunningSimulator, running_simulator
from market_data_pipeline.storage.evidence import Evidence
from market_data_pipeline.storage.halts import Halts
from market_data_pipeline_tests.world import SATURDAY, UNLIMITED, World, Worlds, expected_opens, write_bars

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.storage.evidence import EvidenceRow

# Two weeks with Thanksgiving and the half day after it; the vendors have a session more on either side of what is asked for.
FIRST, LAST = date(2024, 11, 26), date(2024, 12, 5)
BEFORE, AFTER = date(2024, 11, 25), date(2024, 12, 6)
TUESDAY, WEDNESDAY, THURSDAY, FRIDAY = date(2024, 12, 3), date(2024, 12, 4), date(2024, 12, 5), date(2024, 12, 6)
QUIET_DAYS = (date(2024, 11, 27), WEDNESDAY)
OPENS = expected_opens(first=BEFORE, last=AFTER)
CROWD = [f"S{number:02}" for number in range(8)]
SILENT_AT, LUNCH = 100, 200
# Half an hour of Tuesday, as slots.
HALT = range(60, 90)


def slots_of(session: date) -> list[int]:
    return expected_opens(first=session, last=session)


def lacking(*absent: int) -> list[int]:
    return [at for at in OPENS if at not in absent]


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSimulator]:
    """A crowd of liquid symbols, one that hardly trades, and some that are silent here and there."""
    data = tmp_path_factory.mktemp("data")
    days = expected_opens(Interval.D1, date(2024, 11, 4), AFTER)
    for symbol in CROWD:
        write_bars(data, symbol, Interval.M1, OPENS, close=50.0)
        write_bars(data, symbol, Interval.D1, days, close=50.0)
    write_bars(data, "HALT", Interval.D1, [day for day in days if datetime.fromtimestamp(day, UTC).date() != WEDNESDAY])
    tuesday = slots_of(TUESDAY)
    traded = np.random.default_rng(7).random(len(OPENS)) >= 0.4
    quiet = {at for day in QUIET_DAYS for at in slots_of(day)}
    # The days at either end trade throughout: what is asked for lies between them.
    ends = {*slots_of(BEFORE), *slots_of(AFTER)}
    rare = [at for at, is_traded in zip(OPENS, traded, strict=True) if at in ends or (is_traded and at not in quiet)]
    write_bars(data, "RARE", Interval.M1, rare)
    write_bars(data, "HALT", Interval.M1, lacking(*(tuesday[slot] for slot in HALT), *slots_of(WEDNESDAY)))
    write_bars(data, "LONE", Interval.M1, lacking(tuesday[SILENT_AT]))
    for symbol in ("MMM", "HON"):
        write_bars(data, symbol, Interval.M1, OPENS)
    for symbol in ("CAT", "IBM"):
        write_bars(data, symbol, Interval.M1, lacking(tuesday[LUNCH]))
    write_bars(data, "FULL", Interval.M1, OPENS)
    _write_with_day(data, "SUMS", [at for place, at in enumerate(OPENS) if place % 3], short_by=0)
    _write_with_day(data, "LESS", [at for place, at in enumerate(OPENS) if place % 3 != 1], short_by=1)
    with running_simulator(data=data, now=SATURDAY, limits=UNLIMITED) as running:
        yield running


def _write_with_day(data: Path, symbol: str, opened_at: Sequence[int], *, short_by: int) -> None:
    """Minutes of 7 shares, and days of their sum and ``short_by`` shares more."""
    rows = {Interval.M1: ["opened_at"], Interval.D1: ["session_date"]}
    minutes = [[datetime.fromtimestamp(at, UTC).isoformat(), 10, 11, 9, 10.5, 7, ""] for at in opened_at]
    days = sorted({datetime.fromtimestamp(at, UTC).date() for at in opened_at})
    sums = {day: 7 * sum(datetime.fromtimestamp(at, UTC).date() == day for at in opened_at) for day in days}
    daily = [[day.isoformat(), 10, 11, 9, 10.5, sums[day] + short_by, ""] for day in days]
    for interval, lines in ((Interval.M1, minutes), (Interval.D1, daily)):
        path = data / interval / f"{symbol}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*rows[interval], "open", "high", "low", "close", "volume", "known_from"])
            writer.writerows(lines)


@pytest.fixture
def worlds(simulator: RunningSimulator, database_url: str, tmp_path: Path) -> Worlds:
    """Worlds whose providers do nothing wrong yet."""
    simulator.reset()
    return Worlds(simulator, database_url, tmp_path)


def ask(world: World, instruments: Sequence[Instrument], first: date = FIRST, last: date = LAST, **terms: Any) -> None:  # noqa: ANN401
    for _ in ingest_candles([Stretch(i, first, last) for i in instruments], Interval.M1, pipeline=world.pipeline, **terms):
        pass


def heal(worlds: Worlds, world: World, *, rounds: int = 60, interval: Interval = Interval.M1) -> int:
    """Do what the ledger plans, whenever it plans it, until it plans nothing more or ``rounds`` are over; how many those were."""
    by_id = {instrument.symbol_id: instrument for instrument in world.pipeline.universe.instruments()}
    for done in range(rounds):
        with world.pipeline.engine.connect() as connection:
            planned = connection.exec_driver_sql("select min(next_attempt_at) from coverage where absent > 0").scalar_one()
        if planned is None:
            return done
        worlds.simulator.set_now(max(worlds.simulator.now(), planned + timedelta(seconds=1)))
        gaps = world.pipeline.ledger.due_gaps(world.pipeline.clock.now(), limit=1_000, settle_seconds=90)
        stretches = [Stretch(by_id[gap.symbol_id], gap.first, gap.last) for gap in gaps]
        for _ in ingest_candles(stretches, interval, pipeline=world.pipeline):
            pass
    return rounds


def verdicts(world: World, instrument: Instrument, first: date = FIRST, last: date = LAST) -> dict[Verdict, int]:
    [line] = coverage_report([instrument], [Interval.M1], first, last, pipeline=world.pipeline)
    assert sum(line.counts.values()) == line.expected
    return {verdict: bars for verdict, bars in line.counts.items() if bars}


def evidence(world: World, instrument: Instrument, first: date = FIRST, last: date = LAST) -> list[EvidenceRow]:
    return Evidence(world.pipeline.engine).of(instrument.symbol_id, Interval.M1, first, last)


def planned(world: World, instrument: Instrument, session: date) -> datetime | None:
    [row] = world.pipeline.ledger.rows([instrument.symbol_id], Interval.M1, session, session)
    return row.next_attempt_at


# --- an illiquid symbol ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vendors", [("yahoo",), ("yahoo", "massive")])
def test_a_symbol_with_forty_per_cent_of_its_minutes_empty_ends_with_none_missing_and_costs_nothing_more(
    worlds: Worlds, vendors: tuple[str, ...]
) -> None:
    with worlds.of(*vendors) as world:
        # In company: what is silent by nature was not halted, and the minutes it shares with nobody are not doubted.
        instruments = world.load("RARE", *CROWD)
        [rare] = [instrument for instrument in instruments if instrument.symbol == "RARE"]
        ask(world, [i for i in instruments if i is not rare])
        worlds.asked()
        ask(world, [rare])
        heal(worlds, world)
        counted = verdicts(world, rare)
        assert set(counted) == {Verdict.PRESENT, Verdict.CONFIRMED_EMPTY}
        assert counted[Verdict.CONFIRMED_EMPTY] > 0.4 * sum(counted.values())
        # Edges and whole sessions among them, and each slot decided once, by somebody, for a reason.
        [quiet] = world.pipeline.ledger.rows([rare.symbol_id], Interval.M1, QUIET_DAYS[0], QUIET_DAYS[0])
        assert quiet.confirmed_empty.all()
        decided = evidence(world, rare)
        assert sum(int(row.slots.sum()) for row in decided) == counted[Verdict.CONFIRMED_EMPTY]
        assert all(row.providers and row.detail and row.verdict is Verdict.CONFIRMED_EMPTY for row in decided)
        rungs = {row.rung for row in decided}
        assert rungs == ({Rung.ATTEMPTS} if len(vendors) == 1 else {Rung.SECOND_PROVIDER})
        spent = sum(worlds.asked().values())
        # Three rounds of the ladder by one provider, two by two; each of at most three windows of eight days.
        assert spent <= 12
        worlds.simulator.set_now(SATURDAY + timedelta(days=3))
        ask(world, [rare])
        assert heal(worlds, world) == 0
        assert sum(worlds.asked().values()) == 0


def test_the_volume_of_the_day_says_at_the_first_attempt_that_nothing_is_lacking_and_only_where_it_agrees(worlds: Worlds) -> None:
    with worlds.of("yahoo") as world:
        instruments = world.load("SUMS", "LESS")
        sums, less = sorted(instruments, key=lambda instrument: instrument.symbol, reverse=True)
        world.ingest(instruments, Interval.D1, FIRST, LAST)
        worlds.asked()
        ask(world, instruments)
        assert Verdict.MISSING not in verdicts(world, sums)
        assert {row.rung for row in evidence(world, sums)} == {Rung.DAILY_BAR}
        assert Verdict.CONFIRMED_EMPTY not in verdicts(world, less)


# --- what is no evidence -----------------------------------------------------------------------------------------------


def test_the_end_of_an_answer_that_is_cut_short_is_never_taken_for_silence(worlds: Worlds) -> None:
    friday = slots_of(FRIDAY)
    cut = {
        "match": {"symbol": "FULL", "window": [_iso(friday[12]), _iso(friday[-1] + 30 * 86_400)]},
        "action": "missing_minutes",
        "fraction": 1.0,
    }
    worlds.simulator.set_faults([cut])
    with worlds.of("yahoo") as world:
        [full] = world.load("FULL")
        ask(world, [full], FRIDAY, FRIDAY)
        assert verdicts(world, full, FRIDAY, FRIDAY) == {Verdict.PRESENT: 12, Verdict.MISSING: 378}
        heal(worlds, world, rounds=2)
        # From the third attempt on the end waits for Monday's bars, which would stand beyond it.
        waits_for = planned(world, full, FRIDAY)
        assert waits_for is not None
        assert waits_for >= datetime(2024, 12, 9, 21, tzinfo=UTC)
        heal(worlds, world)
        assert verdicts(world, full, FRIDAY, FRIDAY) == {Verdict.PRESENT: 12, Verdict.MISSING: 378}
        assert evidence(world, full, FRIDAY, FRIDAY) == []
        worlds.simulator.set_faults([])
        assert world.pipeline.ledger.retry(world.pipeline.clock.now(), symbol_ids=[full.symbol_id]) == 1
        heal(worlds, world)
        assert verdicts(world, full, FRIDAY, FRIDAY) == {Verdict.PRESENT: 390}


def test_a_minute_that_two_liquid_symbols_lack_is_the_providers_loss_until_it_or_another_brings_it(worlds: Worlds) -> None:
    minute = slots_of(TUESDAY)[LUNCH]
    lost = [
        {
            "match": {"provider": "yahoo", "symbol": symbol, "window": [_iso(minute), _iso(minute + 60)]},
            "action": "missing_minutes",
            "fraction": 1.0,
        }
        for symbol in ("MMM", "HON")
    ]
    worlds.simulator.set_faults(lost)
    with worlds.of("yahoo") as world:
        instruments = world.load("MMM", "HON", *CROWD)
        pair = [instrument for instrument in instruments if instrument.symbol in {"MMM", "HON"}]
        ask(world, instruments)
        assert heal(worlds, world) <= world.settings.healing_policy.give_up_after
        for one in pair:
            assert verdicts(world, one)[Verdict.MISSING] == 1
            assert evidence(world, one) == []
            assert planned(world, one, TUESDAY) is None
    with worlds.of("yahoo", "massive") as world:
        assert world.pipeline.ledger.retry(world.pipeline.clock.now()) == 2
        heal(worlds, world)
        assert [set(verdicts(world, one)) for one in pair] == [{Verdict.PRESENT}] * 2


def test_the_same_minute_of_two_liquid_symbols_is_empty_where_a_second_provider_agrees(worlds: Worlds) -> None:
    with worlds.of("yahoo") as world:
        pair = world.load("CAT", "IBM")
        world.load(*CROWD)
        ask(world, [*pair, *world.pipeline.universe.instruments(symbols=CROWD)])
        heal(worlds, world)
        assert [verdicts(world, one)[Verdict.MISSING] for one in pair] == [1, 1]
    with worlds.of("yahoo", "massive") as world:
        world.pipeline.ledger.retry(world.pipeline.clock.now())
        heal(worlds, world)
        for one in pair:
            assert verdicts(world, one)[Verdict.CONFIRMED_EMPTY] == 1
            [row] = evidence(world, one)
            assert (row.rung, row.providers) == (Rung.SECOND_PROVIDER, ("massive", "yahoo"))


def test_a_minute_that_one_liquid_symbol_lacks_alone_is_confirmed_by_attempts(worlds: Worlds) -> None:
    with worlds.of("yahoo") as world:
        [lone, *crowd] = sorted(world.load("LONE", *CROWD), key=lambda instrument: instrument.symbol)
        ask(world, [lone, *crowd])
        heal(worlds, world)
        [row] = evidence(world, lone)
        assert (row.session, row.rung, row.verdict, row.attempts) == (TUESDAY, Rung.ATTEMPTS, Verdict.CONFIRMED_EMPTY, 3)
        assert np.flatnonzero(row.slots).tolist() == [SILENT_AT]


# --- halts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vendors", [("yahoo",), ("yahoo", "massive")])
def test_a_liquid_symbol_that_is_silent_while_its_market_trades_was_halted(worlds: Worlds, vendors: tuple[str, ...]) -> None:
    with worlds.of(*vendors) as world:
        instruments = world.load("HALT", *CROWD)
        [halted] = [instrument for instrument in instruments if instrument.symbol == "HALT"]
        ask(world, instruments)
        heal(worlds, world)
        counted = verdicts(world, halted)
        assert set(counted) == {Verdict.PRESENT, Verdict.HALTED}
        assert counted[Verdict.HALTED] == len(HALT) + 390
        assert {(row.session, row.rung) for row in evidence(world, halted)} == {(TUESDAY, Rung.COMPANY), (WEDNESDAY, Rung.COMPANY)}
        worlds.asked()
        assert heal(worlds, world) == 0


def test_the_daily_bar_of_a_day_long_suspension_is_halted_too(worlds: Worlds) -> None:
    first = date(2024, 11, 11)
    with worlds.of("yahoo") as world:
        instruments = world.load("HALT", *CROWD)
        [halted] = [instrument for instrument in instruments if instrument.symbol == "HALT"]
        world.ingest(instruments, Interval.D1, first, LAST)
        heal(worlds, world, interval=Interval.D1)
        [line] = coverage_report([halted], [Interval.D1], first, LAST, pipeline=world.pipeline)
        assert (line.counts[Verdict.HALTED], line.counts[Verdict.PRESENT]) == (1, line.expected - 1)
        [row] = Evidence(world.pipeline.engine).of(halted.symbol_id, Interval.D1, first, LAST)
        assert (row.session, row.rung, row.attempts) == (WEDNESDAY, Rung.COMPANY, 3)


def test_the_silence_of_a_symbol_that_few_follow_is_just_silence(worlds: Worlds) -> None:
    with worlds.of("yahoo", "massive") as world:
        world.load(*CROWD)
        entries = [replace(_entry("HALT"), tier=Tier.T2)]
        world.pipeline.universe.load(entries, version_tag="t2", source="test", source_sha256="0" * 64, loaded_by="test")
        instruments = world.pipeline.universe.instruments()
        [halted] = [instrument for instrument in instruments if instrument.symbol == "HALT"]
        ask(world, instruments)
        heal(worlds, world)
        assert set(verdicts(world, halted)) == {Verdict.PRESENT, Verdict.CONFIRMED_EMPTY}


def test_a_halt_that_was_told_of_is_halted_at_the_first_answer(worlds: Worlds) -> None:
    with worlds.of("yahoo") as world:
        [halted] = world.load("HALT")
        _load(world, _halt_of_tuesday(halted))
        ask(world, [halted], TUESDAY, TUESDAY)
        assert verdicts(world, halted, TUESDAY, TUESDAY) == {Verdict.PRESENT: 360, Verdict.HALTED: 30}
        [row] = evidence(world, halted, TUESDAY, TUESDAY)
        assert (row.rung, row.verdict) == (Rung.HALT_FEED, Verdict.HALTED)
        assert "LUDP (exchange)" in row.detail
        assert planned(world, halted, TUESDAY) is None


def test_a_halt_that_is_told_later_changes_what_is_missing_or_empty_and_no_bar_that_is_there(worlds: Worlds) -> None:
    with worlds.of("yahoo") as world:
        halted, full = sorted(world.load("HALT", "FULL"), key=lambda instrument: instrument.symbol, reverse=True)
        ask(world, [halted, full], TUESDAY, TUESDAY)
        everything = Halt(None, halted.calendar, *_half_hour(), "market-wide")
        assert _load(world, everything) == 30
        assert verdicts(world, halted, TUESDAY, TUESDAY) == {Verdict.PRESENT: 360, Verdict.HALTED: 30}
        assert verdicts(world, full, TUESDAY, TUESDAY) == {Verdict.PRESENT: 390}
        assert _load(world, everything) == 0
        worlds.asked()
        assert heal(worlds, world) == 0


def _entry(symbol: str) -> UniverseEntry:
    return UniverseEntry(symbol, "XNAS", Tier.T0)


def _half_hour() -> tuple[datetime, datetime]:
    tuesday = slots_of(TUESDAY)
    return datetime.fromtimestamp(tuesday[HALT.start], UTC), datetime.fromtimestamp(tuesday[HALT.stop], UTC)


def _halt_of_tuesday(instrument: Instrument) -> Halt:
    return Halt(instrument.symbol_id, instrument.calendar, *_half_hour(), "LUDP")


def _load(world: World, *halts: Halt) -> int:
    Halts(world.pipeline.engine).load(halts, source="exchange", now=world.pipeline.clock.now())
    return apply_halts(world.pipeline, halts)


def _iso(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()
