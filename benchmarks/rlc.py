"""10,000 jobs pushed to Redis while two consumers and the server are killed at random: what is lost, what doubled, and how fast.

`mdp consume` beside plain consumers: BRPOP, parse, submit, as the reference had it, and the same with 500 at once. Redis writes
everything to disk before it answers (appendfsync always), the producer pushes until it is told that Redis has it, Postgres is
durable. Whoever is killed starts again at once. Fails where `mdp consume` lost or doubled a job.

python benchmarks/rlc.py [--pushes N] [--strikes N] [--seed N] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
from batches import fresh_database
from redis.exceptions import RedisError
from report import report

from market_data_pipeline.domain.jobs import as_new_job, parse_job
from market_data_pipeline.domain.queue import QueuePolicy
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.ingest.rlc import LIVE, SOURCES, open_redis
from market_data_pipeline.storage.database import open_engine
from market_data_pipeline.storage.jobs import JobQueue
from market_data_pipeline.testing.redis_server import RedisServer, redis_server

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Engine

ROOMY = QueuePolicy(caps=dict.fromkeys(Tier, 1_000_000))
CAPS = ",".join(f"{tier}=1000000" for tier in Tier)
OURS = [sys.executable, "-m", "market_data_pipeline.cli.main", "consume", "--lapse", "1"]
BRPOP = [sys.executable, __file__, "--be-plain", "1"]
RPOP = [sys.executable, __file__, "--be-plain", "500"]
PUSHED_AT_ONCE = 100
# How long nothing changes before a plain consumer is taken to be done: it cannot say.
QUIET_SECONDS = 3.0


def plain_consumer(at_once: int) -> None:
    """BRPOP, or RPOP of so many at once; parse, submit; for ever. What was popped and not yet submitted is nowhere."""
    engine = open_engine(os.environ["MDP_DATABASE_URL"])
    queue, redis = JobQueue(engine, ROOMY), open_redis(os.environ["MDP_REDIS_URL"])
    while True:
        try:
            if at_once == 1:
                popped = redis.brpop(list(SOURCES), timeout=1)
                texts = [popped[1]] if popped else []  # type: ignore[index]
            else:
                texts = [text for source in SOURCES for text in redis.rpop(source, at_once) or []]  # type: ignore[union-attr]
                threading.Event().wait(0 if texts else 0.01)
        except RedisError:
            threading.Event().wait(0.05)
            continue
        queue.submit([as_new_job(parse_job(text), source="plain") for text in texts])


def job(number: int) -> tuple[str, bytes]:
    """The list and the text of a job like no other: half of them live, the tiers in turn."""
    tier = f"T{number % 3}"
    shared = {"job_id": f"job-{number}", "priority": tier}
    if number % 2:
        window = {"interval": "1d", "start": "2024-01-01T00:00:00Z", "end": "2024-12-01T00:00:00Z"}
        return f"market:backfills:{tier}", orjson.dumps({"type": "backfill", **shared, "symbol": f"S{number}", **window})
    return LIVE, orjson.dumps({"type": "quotes_fetch", **shared, "symbols": [f"S{number}"]})


class Scene:
    """Two consumers of one kind, the server they take from, and the database they bring it to."""

    def __init__(self, server: RedisServer, engine: Engine, command: Sequence[str], seed: int) -> None:
        self.server, self.engine, self._command, self._chance = server, engine, command, random.Random(seed)
        url = engine.url.render_as_string(hide_password=False)
        ours = {name: value for name, value in os.environ.items() if not name.startswith("MDP_")}
        told = {"MDP_DATABASE_URL": url, "MDP_QUEUE_CAPS": CAPS, "MDP_USE_RLC": "true"}
        self._environment = {**ours, **told}
        self.kills: Counter[str] = Counter()
        self._started = 0
        with engine.begin() as connection:
            connection.exec_driver_sql("truncate jobs; update job_dispatch set queued = 0")
        server.client.flushall()
        self.consumers = [self._another(), self._another()]

    def _another(self) -> subprocess.Popen[bytes]:
        quiet = subprocess.DEVNULL
        # Its connection has a name by which the server shows that it is there.
        name, self._started = f"consumer-{self._started}", self._started + 1
        environment = {**self._environment, "MDP_REDIS_URL": f"{self.server.url}?client_name={name}"}
        process = subprocess.Popen(self._command, env=environment, stdout=quiet, stderr=quiet)
        wait_until(lambda: name in {client["name"] for client in self.server.client.client_list()})
        return process

    def push(self, numbers: Sequence[int]) -> None:
        """Until Redis has acknowledged each."""
        left = [job(number) for number in numbers]
        while left:
            try:
                with self.server.client.pipeline(transaction=False) as pipe:
                    for source, text in left:
                        pipe.lpush(source, text)
                    pipe.execute()
                left = []
            except RedisError:
                threading.Event().wait(0.01)

    def strike(self) -> None:
        """Kill one of the three in the midst of whatever it does, and start it again."""
        threading.Event().wait(self._chance.uniform(0, 0.05))
        victim = self._chance.choice(["consumer", "consumer", "server"])
        self.kills[victim] += 1
        if victim == "server":
            self.server.kill()
            self.server.start()
            return
        place = self._chance.randrange(2)
        self.consumers[place].kill()
        self.consumers[place].wait(20)
        self.consumers[place] = self._another()

    def arrived(self) -> int:
        """How many jobs Postgres has."""
        with self.engine.connect() as connection:
            return int(connection.exec_driver_sql("select count(*) from jobs").scalar_one())

    def waiting(self) -> int:
        """How many are in Redis, under way included."""
        names = [name for name in self.server.client.scan_iter("market:*") if self.server.client.type(name) == b"list"]
        return sum(int(self.server.client.llen(name)) for name in names)

    def drained(self) -> float:
        """When the last job arrived, on the monotonic clock."""
        last, count = time.monotonic(), self.arrived()
        while self.waiting() or time.monotonic() - last < QUIET_SECONDS:
            threading.Event().wait(0.02)
            if (now := self.arrived()) > count:
                last, count = time.monotonic(), now
        return last

    def end(self) -> None:
        """Nobody consumes any more."""
        for process in self.consumers:
            process.kill()
            process.wait(20)


def wait_until(holds: Callable[[], bool]) -> None:
    """Until it holds, for a minute at most."""
    deadline = time.monotonic() + 60
    while not holds():
        if time.monotonic() > deadline:
            sys.exit("it did not become true within a minute")
        threading.Event().wait(0.01)


def measure(
    server: RedisServer, engine: Engine, name: str, command: Sequence[str], chosen: argparse.Namespace
) -> dict[str, object]:
    """One row: the rate over a full list and nobody killed, then what the kills did to as many pushes again."""
    scene = Scene(server, engine, command, chosen.seed)
    try:
        began = time.monotonic()
        scene.push(range(chosen.pushes))
        calm = chosen.pushes / (scene.drained() - began)
        calmly = scene.arrived()
    finally:
        scene.end()
    scene = Scene(server, engine, command, chosen.seed)
    try:
        began, every = time.monotonic(), max(chosen.pushes // max(chosen.strikes, 1), 1)
        for start in range(0, chosen.pushes, PUSHED_AT_ONCE):
            scene.push(range(start, min(start + PUSHED_AT_ONCE, chosen.pushes)))
            while sum(scene.kills.values()) < min((start + PUSHED_AT_ONCE) // every, chosen.strikes):
                scene.strike()
        seconds = scene.drained() - began
        arrived = scene.arrived()
    finally:
        scene.end()
    with engine.connect() as connection:
        distinct = connection.exec_driver_sql("select count(distinct dedupe_key), count(distinct job_id) from jobs").one()
    return {
        "consumer": name,
        "jobs/s, nobody killed": calm,
        "lost calmly": chosen.pushes - calmly,
        "kills": scene.kills.total(),
        "of them the server": scene.kills["server"],
        "pushed": chosen.pushes,
        "lost": chosen.pushes - distinct[1],
        "doubled": arrived - distinct[0],
        "seconds with kills": seconds,
    }


def main() -> int:
    """Measure, print, write; 1 where ours lost or doubled a job."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--pushes", type=int, default=10_000)
    arguments.add_argument("--strikes", type=int, default=40, help="how often one of the three is killed")
    arguments.add_argument("--seed", type=int, default=4)
    arguments.add_argument("--json", type=Path, help="where to write the numbers (default: benchmarks/results/)")
    arguments.add_argument("--be-plain", type=int, metavar="N", help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    if chosen.be_plain:
        plain_consumer(chosen.be_plain)
    with redis_server() as server, fresh_database() as engine:
        rows = [
            measure(server, engine, "mdp consume (two)", OURS, chosen),
            measure(server, engine, "BRPOP, then submit (two)", BRPOP, chosen),
            measure(server, engine, "RPOP 500, then submit (two)", RPOP, chosen),
        ]
        version = server.client.info("server")["redis_version"]
    notes = [
        f"seed {chosen.seed}; Redis {version}, appendfsync always; Postgres with its durable defaults; jobs/s from the first push",
        "a kill is SIGKILL to one of the consumers or to Redis at a random moment, and a new start at once",
    ]
    report("rlc", rows, notes=notes, json_path=chosen.json)
    return 1 if rows[0]["lost"] or rows[0]["doubled"] else 0


if __name__ == "__main__":
    sys.exit(main())
