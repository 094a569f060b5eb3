"""What one provider said at different times: two of its servers in turn, and snapshots that follow each other."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline_tests.world import World, a_world, expected_opens, write_bars

if TYPE_CHECKING:
    from pathlib import Path

    from market_data_pipeline.domain.universe import Instrument

FRIDAY = date(2024, 12, 6)
SATURDAY = datetime(2024, 12, 7, 12, tzinfo=UTC)
TURNS = 20


def rows(world: World, query: str) -> list[tuple[object, ...]]:
    with world.pipeline.engine.connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(query)]


def asked_again(world: World, instrument: Instrument, interval: Interval, turn: int) -> dict[int, float]:
    world.simulator.set_now(SATURDAY + timedelta(minutes=turn))
    world.ingest([instrument], interval, FRIDAY, FRIDAY, refetch=True)
    return world.stored(instrument, interval)


@pytest.mark.parametrize("interval", [Interval.M1, Interval.D1])
def test_two_servers_of_one_provider_in_turn_make_three_revisions_a_bar_and_no_more(
    tmp_path: Path, database_url: str, interval: Interval
) -> None:
    write_bars(tmp_path / "data", "AAPL", interval, expected_opens(interval, FRIDAY, FRIDAY))
    other = {"match": {"every": 2}, "action": "other_backend", "differs": 0.2 if interval is Interval.M1 else 1.0, "lacks": 0.02}
    if interval.is_daily:
        other["lacks"] = 0.0
    with a_world(tmp_path / "data", database_url, tmp_path / "home", faults=[other]) as world:
        [aapl] = world.load("AAPL")
        history = [asked_again(world, aapl, interval, turn) for turn in range(TURNS)]
        assert len(world.simulator.requests()) == TURNS
        most = rows(world, "select max(n) from (select count(*) as n from candle_revisions group by opened_at) k")
        assert most == [(3,)]
        revised = rows(world, "select count(distinct opened_at), count(*) from candle_revisions")
        assert revised[0][1] == 3 * int(str(revised[0][0]))
        # Nothing went away, and every past reads as it was.
        assert all(set(later) >= set(earlier) for earlier, later in pairwise(history))
        for turn, known in enumerate(history):
            assert world.stored(aapl, interval, as_of=SATURDAY + timedelta(minutes=turn)) == known
        told = rows(world, "select dropped->>'flip_flop' from fetches order by fetch_id")
        assert [place for place, (bars,) in enumerate(told) if bars] == list(range(4, TURNS, 2))


@pytest.mark.parametrize("interval", [Interval.M1, Interval.D1])
def test_snapshots_that_follow_each_other_are_as_many_versions_and_each_reads_back(
    tmp_path: Path, database_url: str, interval: Interval
) -> None:
    opens, snapshots = expected_opens(interval, FRIDAY, FRIDAY), 6
    for number in range(snapshots):
        known_from = None if number == 0 else SATURDAY + timedelta(minutes=number)
        write_bars(tmp_path / "data", "AAPL", interval, opens, close=11.0 + number, known_from=known_from)
    with a_world(tmp_path / "data", database_url, tmp_path / "home") as world:
        [aapl] = world.load("AAPL")
        history = [asked_again(world, aapl, interval, turn) for turn in range(snapshots)]
        assert [round(next(iter(known.values())), 2) for known in history] == [11.0 + number for number in range(snapshots)]
        assert world.count("candle_revisions") == (snapshots - 1) * len(opens)
        for turn, known in enumerate(history):
            assert world.stored(aapl, interval, as_of=SATURDAY + timedelta(minutes=turn)) == known
