"""A worker of the job queue as a process of its own, and a crew of them that is killed at random while it works."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from market_data_pipeline.domain.queue import QueuePolicy
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.storage.database import open_engine
from market_data_pipeline.storage.jobs import JobQueue

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - a class that psycopg2 spells in lower case
    from sqlalchemy.engine import Engine

    from market_data_pipeline.domain.queue import Lease

# Leases so short that what a killed worker held is soon another's, and so many attempts that nobody's bad luck is taken for poison.
POLICY = QueuePolicy(
    caps=MappingProxyType(dict.fromkeys(Tier, 1_000_000)),
    dispatch_per_second=MappingProxyType(dict.fromkeys(Tier, 1e6)),
    lease_seconds=1.0,
    most_attempts=1_000,
)
AT_ONCE = 40


@dataclass(eq=False)
class Crew:
    """Workers that do one kind of thing. ``kill`` ends one with SIGKILL wherever it is just then, and hires another."""

    work: str
    database_url: str
    size: int = 4
    killed: int = 0
    living: list[subprocess.Popen[str]] = field(default_factory=list)

    def hire(self) -> None:
        """One more."""
        command = [sys.executable, "-m", "market_data_pipeline_tests.storage.job_workers", self.work, str(len(self.living))]
        environment = {**os.environ, "WORKER_DATABASE_URL": self.database_url}
        self.living.append(subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, text=True))

    def kill(self, place: int) -> None:
        """kill -9, and a new one in its place."""
        victim = self.living.pop(place)
        assert victim.poll() is None, f"a worker ended by itself with {victim.returncode}"
        victim.kill()
        victim.wait(20)
        self.killed += 1
        self.hire()

    def kill_at_random(self, engine: Engine, jobs: int, *, every: int, rng: random.Random) -> None:
        """Let them work until ``jobs`` are done; somebody is killed each time that about ``every`` more are."""
        next_kill = every
        while (done := ended(engine)) < jobs:
            assert all(worker.poll() is None for worker in self.living), "a worker ended by itself"
            if done >= next_kill:
                self.kill(rng.randrange(len(self.living)))
                next_kill = done + rng.randint(1, 2 * every)
            threading.Event().wait(rng.uniform(0.001, 0.03))


@contextmanager
def crew(work: str, *, database_url: str) -> Iterator[Crew]:
    """Four workers, killed at the end."""
    workers = Crew(work, database_url)
    try:
        for _ in range(workers.size):
            workers.hire()
        yield workers
    finally:
        for worker in workers.living:
            worker.kill()
        for worker in workers.living:
            worker.wait(20)


def ended(engine: Engine) -> int:
    """How many jobs are done or dead."""
    with engine.connect() as connection:
        return int(connection.exec_driver_sql("select count(*) from jobs where state in ('done', 'dead')").scalar_one())


def _insert(_engine: Engine, queue: JobQueue, lease: Lease) -> None:
    """The effect is a row in the transaction that completes the job. Nothing but that keeps it from being there twice."""

    def effect(cursor: Cursor) -> None:
        cursor.execute("insert into effects (job_id, pid) values (%s, %s)", (lease.job_id, os.getpid()))

    queue.complete(lease, effect=effect)


def _write_candles(engine: Engine, queue: JobQueue, lease: Lease) -> None:
    """The effect is a session of candles, stored before the job is completed: whoever takes it over stores the same again."""
    from datetime import datetime  # noqa: PLC0415 - the other work needs no numpy

    from market_data_pipeline.domain.healing import HealingPolicy  # noqa: PLC0415
    from market_data_pipeline.storage.bulk import CandleWriter  # noqa: PLC0415
    from market_data_pipeline_tests.storage.builders import LATER, batch, full  # noqa: PLC0415

    symbol_id, session = int(lease.payload["symbol"].removeprefix("S")), datetime.fromisoformat(lease.payload["start"]).date()
    CandleWriter(engine).write(batch(full(symbol_id, session)), now=LATER, policy=HealingPolicy())
    queue.complete(lease)


def main() -> None:
    """Take jobs and do them, one after the other, until somebody ends this process."""
    work, name = sys.argv[1:]
    do: Callable[[Engine, JobQueue, Lease], None] = {"insert": _insert, "candles": _write_candles}[work]
    engine = open_engine(os.environ["WORKER_DATABASE_URL"])
    queue = JobQueue(engine, POLICY)
    while True:
        leases = queue.lease(f"{name}-{os.getpid()}", tier=Tier.T0, limit=AT_ONCE)
        for place, lease in enumerate(leases):
            if place % 10 == 0:
                queue.heartbeat(leases[place:])
            do(engine, queue, lease)
        if not leases:
            threading.Event().wait(0.02)


if __name__ == "__main__":
    main()
