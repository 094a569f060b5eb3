"""Provisional, settled, final: late prints, corrections and withdrawals by a real provider process."""

from __future__ import annotations

import csv
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.capabilities import Lane
from market_data_pipeline.domain.finality import Finality
from market_data_pipeline.ingest.candles import ingest_candles
from market_data_pipeline.ingest.derive import derive_candles
from market_data_pipeline.ingest.report import Stretch
from market_data_pipeline_tests.world import World, a_world, expected_opens, withdraw_bar, write_bars

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from market_data_pipeline.domain.universe import Instrument

THURSDAY, FRIDAY, MONDAY = date(2024, 12, 5), date(2024, 12, 6), date(2024, 12, 9)
CLOSE = datetime(2024, 12, 6, 21, tzinfo=UTC)
SETTLED, NEXT_SETTLED = CLOSE + timedelta(hours=1), CLOSE + timedelta(days=3, hours=1)
FINAL = NEXT_SETTLED


def print_bar(data: Path, opened_at: int, close: float, volume: float, known_from: datetime, interval: Interval) -> None:
    """What the provider says of one bar from then on."""
    stamp = datetime.fromtimestamp(opened_at, UTC)
    named = stamp.date().isoformat() if interval.is_daily else stamp.isoformat()
    with (data / interval / "AAPL.csv").open("a", newline="") as file:
        csv.writer(file).writerow([named, close - 0.5, close + 1, close - 1, close, volume, known_from.isoformat()])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    for interval in (Interval.M1, Interval.D1):
        write_bars(data, "AAPL", interval, expected_opens(interval, THURSDAY, MONDAY))
    return data


@pytest.fixture
def world(data: Path, tmp_path: Path, database_url: str) -> Iterator[World]:
    with a_world(data, database_url, tmp_path / "home", now=CLOSE) as world:
        yield world


def recheck(world: World, now: datetime) -> list[tuple[date, date]]:
    """What the sensor does: ask again for what is due."""
    world.simulator.set_now(now)
    due = world.pipeline.ledger.due_rechecks(now, limit=100)
    for one in due:
        stretch = Stretch(world.pipeline.universe.instrument(one.symbol), one.first, one.last)
        for _ in ingest_candles([stretch], one.interval, pipeline=world.pipeline, refetch=True, lane=Lane.HEALING):
            pass
    return [(one.first, one.last) for one in due]


def finality(world: World, instrument: Instrument, session: date = FRIDAY, interval: Interval = Interval.M1) -> Finality:
    [row] = world.pipeline.ledger.rows([instrument.symbol_id], interval, session, session)
    return row.finality


def volume(world: World, instrument: Instrument, interval: Interval, opened_at: int, as_of: datetime | None = None) -> float:
    read = world.pipeline.reader.read([instrument.symbol_id], interval, opened_at, opened_at + 1, as_of=as_of)
    return float(read.columns.volume[0])


def test_a_volume_corrected_the_next_day_lands_and_the_first_value_stays_readable(world: World, data: Path) -> None:
    [friday] = expected_opens(Interval.D1, FRIDAY, FRIDAY)
    corrected = datetime(2024, 12, 9, 14, tzinfo=UTC)
    before = 101.0
    print_bar(data, friday, 11.01, round(before * 1.27, 2), corrected, Interval.D1)
    [aapl] = world.load("AAPL")
    world.simulator.set_now(SETTLED)
    world.ingest([aapl], Interval.D1, THURSDAY, FRIDAY)
    assert (finality(world, aapl, THURSDAY, Interval.D1), finality(world, aapl, FRIDAY, Interval.D1)) == (
        Finality.FINAL,
        Finality.SETTLED,
    )
    assert volume(world, aapl, Interval.D1, friday) == before
    assert recheck(world, FINAL - timedelta(seconds=1)) == []
    assert recheck(world, FINAL) == [(FRIDAY, FRIDAY)]
    assert volume(world, aapl, Interval.D1, friday) == round(before * 1.27, 2)
    assert volume(world, aapl, Interval.D1, friday, as_of=FINAL - timedelta(seconds=1)) == before
    assert finality(world, aapl, FRIDAY, Interval.D1) is Finality.FINAL
    assert world.count("candle_revisions") == 1
    sent = len(world.simulator.requests())
    assert recheck(world, FINAL + timedelta(days=9)) == []
    world.ingest([aapl], Interval.D1, THURSDAY, FRIDAY)
    assert len(world.simulator.requests()) == sent


def test_the_closing_auction_that_is_printed_five_minutes_late_settles_the_session(world: World, data: Path) -> None:
    last = expected_opens(Interval.M1, FRIDAY, FRIDAY)[-1]
    print_bar(data, last, 14.89, 9_000.0, CLOSE + timedelta(minutes=5), Interval.M1)
    [aapl] = world.load("AAPL")
    world.simulator.set_now(CLOSE + timedelta(minutes=2))
    world.ingest([aapl], first=FRIDAY, last=FRIDAY)
    first_print = volume(world, aapl, Interval.M1, last)
    assert (first_print, finality(world, aapl)) == (100 + 389 + 390, Finality.PROVISIONAL)
    assert recheck(world, SETTLED) == [(FRIDAY, FRIDAY)]
    assert (volume(world, aapl, Interval.M1, last), finality(world, aapl)) == (9_000.0, Finality.SETTLED)
    assert volume(world, aapl, Interval.M1, last, as_of=CLOSE + timedelta(minutes=3)) == first_print
    [report] = derive_candles([Stretch(aapl, FRIDAY, FRIDAY)], Interval.M5, pipeline=world.pipeline)
    assert (report.inserted, finality(world, aapl, interval=Interval.M5)) == (78, Finality.SETTLED)
    recheck(world, FINAL)
    list(derive_candles([Stretch(aapl, FRIDAY, FRIDAY)], Interval.M5, pipeline=world.pipeline))
    assert finality(world, aapl, interval=Interval.M5) is Finality.FINAL


def test_one_request_settles_a_session_and_makes_the_one_before_final(world: World) -> None:
    [aapl] = world.load("AAPL")
    world.simulator.set_now(CLOSE + timedelta(minutes=2))
    world.ingest([aapl], first=FRIDAY, last=FRIDAY)
    recheck(world, SETTLED)
    world.simulator.set_now(NEXT_SETTLED - timedelta(minutes=58))
    world.ingest([aapl], first=MONDAY, last=MONDAY)
    world.simulator.forget_requests()
    assert recheck(world, NEXT_SETTLED) == [(FRIDAY, MONDAY)]
    assert len(world.simulator.requests()) == 1
    assert (finality(world, aapl), finality(world, aapl, MONDAY)) == (Finality.FINAL, Finality.SETTLED)


def test_a_session_that_polls_alone_completed_is_settled_and_made_final(world: World) -> None:
    [aapl] = world.load("AAPL")
    # Each answer is about a part of the session only.
    for minutes in (90, 200, 320, 391, 392):
        world.simulator.set_now(datetime(2024, 12, 6, 14, 30, tzinfo=UTC) + timedelta(minutes=minutes))
        world.ingest([aapl], first=FRIDAY, last=FRIDAY)
    assert (finality(world, aapl), len(world.stored(aapl))) == (Finality.PROVISIONAL, 390)
    assert recheck(world, SETTLED) == [(FRIDAY, FRIDAY)]
    assert finality(world, aapl) is Finality.SETTLED
    assert recheck(world, FINAL) == [(FRIDAY, FRIDAY)]
    assert finality(world, aapl) is Finality.FINAL


def test_a_session_that_closed_long_ago_is_final_at_its_first_answer(world: World) -> None:
    [aapl] = world.load("AAPL")
    world.simulator.set_now(datetime(2024, 12, 20, tzinfo=UTC))
    world.ingest([aapl], first=FRIDAY, last=FRIDAY)
    assert finality(world, aapl) is Finality.FINAL
    assert world.pipeline.ledger.due_rechecks(datetime(2025, 1, 20, tzinfo=UTC), limit=9) == []


def test_a_bar_that_the_provider_withdrew_is_kept_and_the_session_is_final_all_the_same(world: World, data: Path) -> None:
    gone = expected_opens(Interval.M1, FRIDAY, FRIDAY)[100]
    withdraw_bar(data, "AAPL", Interval.M1, gone, known_from=CLOSE + timedelta(hours=5))
    [aapl] = world.load("AAPL")
    world.simulator.set_now(SETTLED)
    world.ingest([aapl], first=FRIDAY, last=FRIDAY)
    before = world.stored(aapl)
    recheck(world, FINAL)
    assert world.stored(aapl) == before
    assert (finality(world, aapl), world.count("candle_revisions")) == (Finality.FINAL, 0)


def test_an_answer_with_little_in_it_makes_nothing_final_and_asking_again_ends(world: World) -> None:
    [aapl] = world.load("AAPL")
    world.simulator.set_now(SETTLED)
    world.ingest([aapl], first=FRIDAY, last=FRIDAY)
    before = world.stored(aapl)
    world.simulator.set_faults([{"match": {"symbol": "AAPL"}, "action": "missing_minutes", "fraction": 0.5}])
    world.simulator.forget_requests()
    now = FINAL
    while now < FINAL + timedelta(days=25):
        recheck(world, now)
        now += timedelta(minutes=15)
        again = world.pipeline.ledger.rows([aapl.symbol_id], Interval.M1, FRIDAY, FRIDAY)[0].recheck_at
        now = FINAL + timedelta(days=25) if again is None else max(now, again)
    assert 2 <= len(world.simulator.requests()) <= 12
    assert (finality(world, aapl), world.stored(aapl)) == (Finality.SETTLED, before)


def test_what_lacks_in_a_recheck_of_a_session_from_two_providers_is_asked_of_the_second(
    data: Path, tmp_path: Path, database_url: str
) -> None:
    with a_world(data, database_url, tmp_path / "home", now=SETTLED, vendors=("yahoo", "massive")) as world:
        [aapl] = world.load("AAPL")
        world.simulator.set_faults([{"match": {"provider": "yahoo"}, "action": "missing_minutes", "fraction": 0.5}])
        world.ingest([aapl], first=FRIDAY, last=FRIDAY)
        assert len(world.stored(aapl)) == 390
        recheck(world, FINAL)
        assert finality(world, aapl) is Finality.FINAL
        assert world.count("candle_revisions") == 0
