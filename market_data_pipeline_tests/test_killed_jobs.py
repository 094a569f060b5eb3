"""kill -9 of a run that works on queued jobs: its leases lapse, another run takes them, and each job takes effect exactly once."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

import psutil
import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.jobs import BackfillJob, as_new_job
from market_data_pipeline.domain.queue import JobState
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.settings import Settings
from market_data_pipeline.simulator.client import running_simulator
from market_data_pipeline.storage.database import database_url, open_engine
from market_data_pipeline.storage.jobs import JobQueue
from market_data_pipeline_tests.stack import Running, a_home, a_stack, kill
from market_data_pipeline_tests.world import MONDAY, SATURDAY, expected_opens, write_bars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SYMBOLS = ("ALFA", "BETA", "CARL", "DORA", "ECHO", "FAXE")
OPENS = expected_opens()
TOTAL = len(SYMBOLS) * len(OPENS)
# One request a symbol, one after the other: the run takes long enough to be killed between two of its commits.
SLOWLY = {"match": {}, "action": "stall", "seconds": 1.0}
PATIENCE = 150.0
# Longer than a loaded machine takes from a tick to the first heartbeat of its run, and short enough to wait for.
LEASE_SECONDS = 20


@pytest.fixture
def running() -> Iterator[Running]:
    with a_home() as home:
        for place, symbol in enumerate(SYMBOLS):
            write_bars(home / "data", symbol, Interval.M1, OPENS, close=10.0 * (place + 1))
        (home / "universe.csv").write_text("symbol,exchange,tier\n" + "".join(f"{symbol},XNAS,T0\n" for symbol in SYMBOLS))
        with running_simulator(data=home / "data", now=SATURDAY, faults=[SLOWLY]) as simulator:
            told = {
                "MDP_CLOCK": simulator.control,
                "MDP_YAHOO_BASE_URL": simulator.yahoo,
                "MDP_REQUESTS_IN_FLIGHT": "1",
                "MDP_QUEUE_LEASE_SECONDS": str(LEASE_SECONDS),
            }
            with a_stack(home, told) as stack:
                assert stack.mdp("universe", "load", str(home / "universe.csv")).returncode == 0
                yield stack


def jobs() -> list[BackfillJob]:
    start, end = midnight(MONDAY), midnight(date(2024, 12, 7))
    return [
        BackfillJob(job_id=f"week-of-{symbol}", priority=Tier.T0, symbol=symbol, interval=Interval.M1, start=start, end=end)
        for symbol in SYMBOLS
    ]


def midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"in {PATIENCE:.0f} seconds it did not come to pass that {what}"
        time.sleep(0.1)  # noqa: TID251 - polling other processes


@pytest.mark.timeout(400)
def test_the_jobs_of_a_killed_run_take_effect_exactly_once(running: Running) -> None:
    settings = Settings(home=running.home, queue_lease_seconds=LEASE_SECONDS)
    engine = open_engine(database_url(settings))
    try:
        queue = JobQueue(engine, settings.queue_policy)
        assert queue.submit([as_new_job(job, source="test") for job in jobs()]).accepted == len(SYMBOLS)

        def bars() -> int:
            with engine.connect() as connection:
                return int(connection.exec_driver_sql("select count(*) from candles_intraday where interval_s = 60").scalar_one())

        def done() -> set[str]:
            return {record.job_id for record in queue.jobs(state=JobState.DONE, limit=99)}

        wait_until(lambda: bool(done()), "a run ended some job")
        doomed = [psutil.Process(pid) for (pid,) in running.rows("select pid from run_heartbeats") if isinstance(pid, int)]
        assert doomed
        kill(doomed)
        stored, ended = bars(), done()
        assert stored < TOTAL, "the run was over before it could be killed"
        assert len(ended) < len(SYMBOLS)

        wait_until(lambda: len(done()) == len(SYMBOLS), "every job was done")
        records = {record.job_id: record for record in queue.jobs(limit=99)}
        # What had ended stays as it ended; the leases of the others lapsed, and they were given out again.
        assert {records[job_id].attempts for job_id in ended} == {1}
        assert all(record.lapses >= 1 < record.attempts for record in records.values() if record.job_id not in ended)
        assert sum((record.result or {})["inserted"] for record in records.values()) <= TOTAL
    finally:
        engine.dispose()
    each = running.rows(
        "select symbol_id, count(*), count(distinct opened_at) from candles_intraday where interval_s = 60 group by 1"
    )
    assert {(rows, opens) for _, rows, opens in each} == {(len(OPENS), len(OPENS))}
    assert len(each) == len(SYMBOLS)
    assert running.rows("select count(*) from candle_revisions") == [(0,)]
    assert running.rows("select count(distinct session) from coverage where interval_s = 60 and absent = 0") == [(5,)]
    derived = running.rows("select interval_s, count(*) from candles_intraday where interval_s > 60 group by 1 order by 1")
    assert derived == [(seconds, TOTAL * 60 // seconds) for seconds in (300, 900, 1800)]
