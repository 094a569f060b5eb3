"""How `mdp collect` ends, and who goes on: signals, kill -9, a second one, a connection that is lost."""

from __future__ import annotations

import signal
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.cli.collect import SeatWatch
from market_data_pipeline.domain.errors import UnavailableError
from market_data_pipeline.storage.database import open_engine
from market_data_pipeline.storage.seats import Seat
from market_data_pipeline_tests.cli.collecting import asked, collecting, follower, has_asked, rows, running_market, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from market_data_pipeline.simulator.client import RunningSimulator
    from market_data_pipeline_tests.cli.conftest import Mdp


@pytest.fixture(scope="module")
def shared_simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSimulator]:
    with running_market(tmp_path_factory.mktemp("data")) as started:
        yield started


@pytest.fixture
def simulator(shared_simulator: RunningSimulator) -> RunningSimulator:
    shared_simulator.reset()
    return shared_simulator


@pytest.fixture
def at(mdp: Mdp, simulator: RunningSimulator) -> Mdp:
    return follower(mdp, simulator)


def test_a_killed_collector_leaves_no_lock_and_the_next_asks_for_nothing_twice(at: Mdp, simulator: RunningSimulator) -> None:
    def quoted_and_stored() -> bool:
        stored = rows(
            at, "select (select count(*) from quotes_confirmed) as quotes, (select count(*) from candles_intraday) as bars"
        )
        return bool(stored[0]["quotes"] == 3 and stored[0]["bars"] >= 2 * 58)

    with collecting(at) as first:
        until(quoted_and_stored, first)
        assert first.end(signal.SIGKILL) == -signal.SIGKILL
    stored = rows(at, "select max(opened_at) as newest from candles_intraday")[0]["newest"]
    simulator.forget_requests()
    simulator.set_now(datetime.fromtimestamp(simulator.now().timestamp() + 60, UTC))
    with collecting(at, quotes_every_seconds="T0=3000,T1=3000") as second:
        until(has_asked(simulator, "bars_1m", "AAPL,MSFT", 1), second)
        assert second.end() == 0
    requests = simulator.requests()
    assert [entry for entry in requests if entry["capability"] == "quotes_l1"] == []
    # From the half hour before the first that is missing on, not the session again.
    assert {entry["period1"] >= stored.timestamp() - 36 * 60 for entry in requests if entry["capability"] == "bars_1m"} == {True}
    assert rows(at, "select count(*) as revisions from candle_revisions") == [{"revisions": 0}]


def test_a_second_collector_says_who_collects_and_ends_with_1(at: Mdp) -> None:
    with collecting(at) as first:
        until(first.saying("collecting: "), first)
        second = at("collect")
        assert second.code == 1
        assert f"another process collects: mdp collect, pid {first.process.pid} on " in second.out
        assert "--standby" in second.out
        assert first.end(signal.SIGINT) == 0


def test_whoever_stands_by_takes_over_when_the_first_is_killed(at: Mdp, simulator: RunningSimulator) -> None:
    with collecting(at, "--no-minutes") as first:
        until(first.saying("collecting: "), first)
        with collecting(at, "--no-minutes", "--standby") as second:
            until(second.saying("standing by"), second)
            first.end(signal.SIGKILL)
            simulator.forget_requests()
            until(second.saying("collecting: "), second)
            until(has_asked(simulator, "quotes_l1", "AAPL,MSFT", 2), second)
            assert second.end() == 0


def test_a_round_that_has_begun_is_stored_before_the_process_ends(at: Mdp, simulator: RunningSimulator) -> None:
    simulator.set_faults([{"match": {"provider": "alpaca"}, "action": "stall", "seconds": 1.5}])
    with collecting(at, "--no-minutes", quotes_every_seconds="T0=60") as collector:
        until(has_asked(simulator, "quotes_l1", "AAPL,MSFT", 1), collector)
        assert rows(at, "select count(*) as quotes from quotes_l1") == [{"quotes": 0}]
        assert collector.end() == 0
    assert rows(at, "select count(*) as quotes from quotes_l1") == [{"quotes": 2}]
    assert asked(simulator)["quotes_l1", "AAPL,MSFT"] == 1


def test_lost_connections_are_survived_and_the_seat_is_taken_again(at: Mdp, simulator: RunningSimulator) -> None:
    others = "pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    with collecting(at) as collector:
        for _ in range(8):
            simulator.forget_requests()
            until(has_asked(simulator, "quotes_l1", "AAPL,MSFT", 1), collector)
            rows(at, f"select pg_terminate_backend(pid) from {others}")  # noqa: S608 - a constant
        until(collector.saying("collecting again"), collector)
        simulator.forget_requests()
        until(has_asked(simulator, "quotes_l1", "AAPL,MSFT", 2), collector)
        assert collector.end() == 0
    assert rows(at, "select count(*) as quotes from quotes_confirmed") == [{"quotes": 3}]


def test_whoever_lost_the_seat_to_another_ends_with_who_that_is(engine: Engine, database_url: str) -> None:
    other_engine, said = open_engine(database_url), list[str]()
    try:
        with Seat(engine, "the first") as first, Seat(other_engine, "the second") as second:
            assert first.take() is None
            watch = SeatWatch(first, said.append)
            watch()
            with other_engine.begin() as connection:
                mine = "pg_stat_activity where application_name = 'the first' and datname = current_database()"
                connection.exec_driver_sql(f"select pg_terminate_backend(pid) from {mine}")  # noqa: S608 - a constant
            assert second.take() is None
            with pytest.raises(UnavailableError, match="another process collects now: the second, since"):
                watch()
            second.leave()
            watch()
    finally:
        other_engine.dispose()
    assert said == ["the connection to the database was lost; collecting again"]
