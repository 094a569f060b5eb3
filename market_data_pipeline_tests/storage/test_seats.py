"""One process has the seat; it is free the moment that process, or its connection, is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.storage.database import open_engine
from market_data_pipeline.storage.seats import Seat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

_THE_FIRST = "pg_stat_activity where application_name = 'the first' and datname = current_database()"
_SIT_UNTIL_KILLED = """
import sys, threading
from market_data_pipeline.storage.database import open_engine
from market_data_pipeline.storage.seats import Seat
print(Seat(open_engine(sys.argv[1]), "the child").take(), flush=True)
threading.Event().wait()
"""


@pytest.fixture
def other_engine(database_url: str) -> Iterator[Engine]:
    opened = open_engine(database_url)
    yield opened
    opened.dispose()


def test_the_second_is_told_who_has_the_seat_and_gets_it_when_the_first_leaves(engine: Engine, other_engine: Engine) -> None:
    with Seat(engine, "the first") as first, Seat(other_engine, "the second") as second:
        assert first.take() is None
        assert first.take() is None
        told = second.take()
        assert told is not None
        assert told.startswith("the first, since 20")
        assert (first.is_ours(), second.is_ours()) == (True, False)
        first.leave()
        assert second.take() is None
        assert (first.take() or "").startswith("the second, since")


def test_seats_of_other_numbers_and_other_locks_do_not_matter(engine: Engine, other_engine: Engine) -> None:
    with Seat(engine, "the first", seat=1), Seat(other_engine, "the second") as second, engine.begin() as connection:
        connection.exec_driver_sql("select pg_advisory_xact_lock(0, 7306002)")
        assert second.take() is None


def test_a_seat_whose_connection_was_ended_is_lost_and_can_be_taken_again(engine: Engine, other_engine: Engine) -> None:
    with Seat(engine, "the first") as seat:
        assert seat.take() is None
        with other_engine.begin() as connection:
            connection.exec_driver_sql(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'the first'"
            )
        assert not seat.is_ours()
        assert seat.take() is None
        assert seat.is_ours()


def test_a_killed_process_leaves_no_seat_behind(engine: Engine, database_url: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", _SIT_UNTIL_KILLED, database_url], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "None\n"
        with Seat(engine, "the next") as seat:
            assert (seat.take() or "").startswith("the child, since")
            os.kill(child.pid, signal.SIGKILL)
            child.wait(20)
            # The server sees the closed socket at once; this waits for as long as that takes, with the lock's own patience.
            with engine.begin() as connection:
                connection.exec_driver_sql("set local lock_timeout = '20s'")
                connection.exec_driver_sql("select pg_advisory_xact_lock(7306002)")
            assert seat.take() is None
    finally:
        child.kill()
        child.wait(20)
        if child.stdout is not None:
            child.stdout.close()


def test_an_open_seat_holds_no_snapshot_that_would_keep_vacuum_waiting(engine: Engine, other_engine: Engine) -> None:
    with Seat(engine, "the first") as seat, other_engine.connect() as connection:
        assert seat.take() is None
        assert seat.is_ours()
        held = f"select backend_xmin, backend_xid from {_THE_FIRST}"  # noqa: S608 - a constant
        assert connection.exec_driver_sql(held).one() == (None, None)
