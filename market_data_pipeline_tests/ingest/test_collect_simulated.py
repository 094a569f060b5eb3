"""Rounds of live collection against simulated vendors, one by one: which symbols and minutes are asked for, and which are not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.ingest.collect import Followed, MinutesWork, QuotesWork, foreseeable, lines_of
from market_data_pipeline.ingest.freshness import take_census
from market_data_pipeline.simulator.client import RunningSimulator, running_simulator
from market_data_pipeline_tests.world import FRIDAY, UNLIMITED, Worlds, expected_opens, write_bars

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.collect import Tally
    from market_data_pipeline_tests.world import World

OPEN = datetime(2024, 12, 6, 15, 30, tzinfo=UTC)
NIGHT = datetime(2024, 12, 6, 3, tzinfo=UTC)
SYMBOLS = tuple(f"S{number:03}" for number in range(120))
HONG_KONG = "0005.HK"


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSimulator]:
    """A Friday of 120 shares in New York and one in Hong Kong; the clock stands still."""
    data = tmp_path_factory.mktemp("data")
    for symbol in SYMBOLS:
        write_bars(data, symbol, Interval.M1, expected_opens(Interval.M1, FRIDAY, FRIDAY))
    write_bars(data, HONG_KONG, Interval.M1, expected_opens(Interval.M1, FRIDAY, FRIDAY, "XHKG"))
    lines = [*(f"{symbol},XNAS" for symbol in SYMBOLS), f"{HONG_KONG},XHKG"]
    (data / "universe.csv").write_text("symbol,exchange\n" + "\n".join(lines) + "\n")
    with running_simulator(data=data, now=OPEN, limits=UNLIMITED) as running:
        yield running


@pytest.fixture
def worlds(simulator: RunningSimulator, database_url: str, tmp_path: Path) -> Worlds:
    simulator.reset()
    return Worlds(simulator, database_url, tmp_path)


def quotes(world: World, *, every: float = 5.0, tier: Tier = Tier.T0) -> QuotesWork:
    return QuotesWork(world.pipeline, Followed(world.pipeline, lambda: 0.0), tier, every=every)


def minutes(world: World) -> MinutesWork:
    return MinutesWork(world.pipeline, Followed(world.pipeline, lambda: 0.0), Tier.T0, every=60.0)


def derived_bars(world: World, instrument: Instrument, interval: Interval) -> int:
    rows = world.pipeline.ledger.rows([instrument.symbol_id], interval, FRIDAY, FRIDAY)
    return sum(int(row.present.sum()) for row in rows)


def told(tally: Tally | None) -> tuple[int, int, int]:
    assert tally is not None
    return tally.symbols, tally.new, round(tally.requests)


@pytest.mark.parametrize("vendor", ["yahoo", "alpaca"])
def test_quotes_are_asked_for_as_many_at_a_time_as_the_provider_takes(worlds: Worlds, vendor: str) -> None:
    with worlds.of(vendor) as world:
        world.load(*SYMBOLS)
        most = next(c.symbols_per_request for c in world.pipeline.providers[vendor].capabilities if c.name == "quotes_l1")
        worlds.asked()
        assert told(quotes(world)())[:2] == (120, 120)
        requests = [entry for entry in worlds.simulator.requests() if entry["capability"] == "quotes_l1"]
    sizes = [len(entry["symbol"].split(",")) for entry in requests]
    assert (sum(sizes), len(sizes)) == (120, -(-120 // most))


def test_where_no_market_is_open_nobody_is_asked(worlds: Worlds) -> None:
    worlds.simulator.set_now(datetime(2024, 12, 7, 15, tzinfo=UTC))
    with worlds.of("yahoo") as world:
        world.load(*SYMBOLS[:3])
        assert (quotes(world)(), minutes(world)()) == (None, None)
    assert not worlds.asked()


def test_only_symbols_whose_own_market_is_open_are_quoted(worlds: Worlds) -> None:
    worlds.simulator.set_now(NIGHT)
    with worlds.of("yahoo") as world:
        world.load(*SYMBOLS[:3])
        world.load(HONG_KONG, exchange="XHKG")
        assert told(quotes(world)())[:2] == (1, 1)


def test_symbols_of_another_tier_are_left_to_its_own_line(worlds: Worlds) -> None:
    with worlds.of("yahoo") as world:
        world.load(*SYMBOLS[:3])
        assert quotes(world, tier=Tier.T1)() is None


def test_the_first_round_leaves_out_whom_another_process_has_just_asked_for(worlds: Worlds) -> None:
    with worlds.of("yahoo") as world:
        world.load(*SYMBOLS[:2])
        quotes(world)()
        world.load(SYMBOLS[2])
        worlds.simulator.set_now(OPEN + timedelta(seconds=4))
        restarted = quotes(world)
        assert told(restarted())[0] == 1
        assert told(restarted())[0] == 3


def test_only_the_minutes_that_have_settled_and_are_not_stored_are_asked_for(worlds: Worlds) -> None:
    with worlds.of("alpaca") as world:
        apple, *_ = world.load(*SYMBOLS[:3])
        work = minutes(world)
        # An hour after the open less the 90 seconds in which a bar may still come.
        assert told(work()) == (3, 3 * 58, 1)
        assert told(work()) == (3, 0, 0)
        worlds.simulator.set_now(OPEN + timedelta(minutes=1))
        worlds.simulator.forget_requests()
        assert told(work()) == (3, 3, 1)
        (request,) = (entry for entry in worlds.simulator.requests() if entry["capability"] == "bars_1m")
        assert len(world.stored(apple)) == 59
    assert request["symbol"] == ",".join(SYMBOLS[:3])
    assert request["period1"] >= (OPEN - timedelta(minutes=32)).timestamp()


def test_what_is_derived_of_the_minutes_comes_with_them_and_is_fresh(worlds: Worlds) -> None:
    with worlds.of("alpaca") as world:
        apple, _ = world.load(*SYMBOLS[:2])
        work = minutes(world)
        work()
        fives = [derived_bars(world, apple, Interval.M5)]
        for minute in (1, 2):
            worlds.simulator.set_now(OPEN + timedelta(minutes=minute))
            work()
            fives.append(derived_bars(world, apple, Interval.M5))
        # 58 minutes are eleven bars of five; the 60th, which settles 90 seconds after half past, makes the twelfth.
        assert fives == [11, 11, 12]
        census = take_census(world.pipeline)
    derived = {line.interval: line.stale for line in census.lines if line.interval in {Interval.M5, Interval.M15}}
    assert derived == {Interval.M5: 0, Interval.M15: 0}


def test_the_last_minutes_of_a_session_come_after_its_close(worlds: Worlds) -> None:
    close = datetime(2024, 12, 6, 21, tzinfo=UTC)
    worlds.simulator.set_now(close + timedelta(seconds=95))
    with worlds.of("yahoo") as world:
        (one,) = world.load(SYMBOLS[0])
        assert told(minutes(world)())[1] == 390
        assert len(world.stored(one)) == 390
        worlds.simulator.set_now(close + timedelta(minutes=10))
        assert minutes(world)() is None


def test_a_symbol_without_a_quote_is_counted_with_the_reason(worlds: Worlds) -> None:
    with worlds.of("yahoo") as world:
        world.load(SYMBOLS[0], "NOPE")
        tally = quotes(world)()
    assert tally is not None
    assert (tally.symbols, tally.new, tally.failed, set(tally.failures)) == (2, 1, 1, {"NOPE"})


def test_the_universe_is_read_again_after_a_minute(worlds: Worlds) -> None:
    with worlds.of("yahoo") as world:
        seconds = [0.0]
        followed = Followed(world.pipeline, lambda: seconds[0])
        assert followed.of(Tier.T0) == []
        world.load(SYMBOLS[0])
        assert followed.of(Tier.T0) == []
        seconds[0] = 60.0
        assert [i.symbol for i in followed.of(Tier.T0)] == [SYMBOLS[0]]


def test_the_settings_say_which_lines_there_are(worlds: Worlds) -> None:
    with worlds.of("yahoo", quotes_every_seconds="T0=5,T2=60", bars_every_seconds="T0=30") as world:
        lines = lines_of(world.pipeline, monotonic=lambda: 0.0)
        assert [(line.name, line.every) for line in lines] == [("quotes T0", 5.0), ("quotes T2", 60.0), ("minutes T0", 30.0)]
        assert lines_of(world.pipeline, monotonic=lambda: 0.0, quotes=False, minutes=False) == []


def test_cadences_that_a_providers_limits_do_not_allow_are_foreseen(worlds: Worlds) -> None:
    with worlds.of("yahoo", limits="yahoo=2/s,2000/h", quotes_every_seconds="T0=0.5,T1=15", bars_every_seconds="T0=60") as world:
        world.load(*SYMBOLS)
        said = foreseeable(world.pipeline, lines_of(world.pipeline, monotonic=lambda: 0.0))
    # Quotes are asked for fifty at a time, 3 requests twice a second; minutes one by one, 120 a minute.
    assert said == [
        "quotes T1: no active symbol has that tier, so nothing is asked until one has (`mdp universe tiers`)",
        *(
            f"quotes T0, quotes T1, minutes T0: {wanted} would go to yahoo, which allows {limit}: some rounds will bring nothing or"
            " ask others; fewer symbols, longer cadences or another provider first would keep pace"
            for wanted, limit in (("8.0 requests in 1 s", "2/s"), ("28,800.0 requests in 3,600 s", "2000/h"))
        ),
    ]


def test_where_nobody_limits_anybody_nothing_is_foreseen(worlds: Worlds) -> None:
    with worlds.of("yahoo", quotes_every_seconds="T0=0.5") as world:
        world.load(*SYMBOLS)
        assert foreseeable(world.pipeline, lines_of(world.pipeline, monotonic=lambda: 0.0)) == []
