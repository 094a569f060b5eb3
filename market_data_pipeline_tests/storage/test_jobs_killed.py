"""Workers that are killed while they work: every job took effect, and took it once."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from market_data_pipeline.domain.queue import JobState
from market_data_pipeline.storage.jobs import JobQueue
from market_data_pipeline_tests.storage.builders import add_symbols
from market_data_pipeline_tests.storage.job_workers import POLICY, crew
from market_data_pipeline_tests.storage.test_jobs import backfill

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

JOBS, KILLED_EVERY = 2_500, 150
SEED = 20261123


def test_each_of_thousands_of_jobs_takes_effect_once_though_their_workers_are_killed(engine: Engine, database_url: str) -> None:
    with engine.begin() as connection:
        # No key: what happened twice would be there twice.
        connection.exec_driver_sql("create table effects (job_id text not null, pid int not null)")
    queue = JobQueue(engine, POLICY)
    queue.submit([backfill(n) for n in range(JOBS)])
    with crew("insert", database_url=database_url) as workers:
        workers.kill_at_random(engine, JOBS, every=KILLED_EVERY, rng=random.Random(SEED))
        assert workers.killed >= JOBS // KILLED_EVERY // 2
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("select job_id, count(*) from effects group by job_id").all()
        taken_over = connection.exec_driver_sql("select count(*) from jobs where attempts > 1").scalar_one()
    assert {job_id: count for job_id, count in rows} == {f"j-{n}": 1 for n in range(JOBS)}  # noqa: C416 - rows are no pairs to mypy
    assert taken_over > 0, "nobody was killed with jobs in hand: the test shows nothing"
    assert queue.recount() == ()


def test_candles_of_jobs_whose_workers_are_killed_are_there_once_and_were_never_revised(engine: Engine, database_url: str) -> None:
    symbols = add_symbols(engine, *(f"S{n}" for n in range(15)))
    queue = JobQueue(engine, POLICY)
    # Thirty sessions of each symbol.
    wanted = [
        backfill(n, symbol=f"S{symbols[n // 30]}", start=_at(n % 30, 0), end=_at(n % 30, 23)) for n in range(30 * len(symbols))
    ]
    assert queue.submit(wanted).accepted == len(wanted)
    with crew("candles", database_url=database_url) as workers:
        workers.kill_at_random(engine, len(wanted), every=60, rng=random.Random(SEED))
        assert workers.killed > 0
    with engine.connect() as connection:
        bars = connection.exec_driver_sql("select count(*), count(distinct (symbol_id, opened_at)) from candles_intraday").one()
        revisions = connection.exec_driver_sql("select count(*) from candle_revisions").scalar_one()
        sessions = connection.exec_driver_sql("select count(*), max(absent) from coverage").one()
    assert tuple(bars) == (5 * len(wanted), 5 * len(wanted))
    assert revisions == 0
    assert tuple(sessions) == (len(wanted), 0)
    assert len(queue.jobs(state=JobState.DONE, limit=10_000)) == len(wanted)


def _at(day: int, hour: int) -> str:
    return f"2024-01-{day + 1:02}T{hour:02}:00:00Z"
