"""`mdp consume` as processes of their own: killed at random, stopped and told to stop, before a server that comes and goes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import RedisError

from market_data_pipeline.domain.queue import QueuePolicy
from market_data_pipeline.ingest.rlc import CONSUMERS, LIVE
from market_data_pipeline.storage.jobs import JobQueue
from market_data_pipeline.testing.redis_server import NO_SERVER, RedisServer, redis_server, server_binary
from market_data_pipeline_tests.ingest.coordinator import backfill, left_in, push, quotes, until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import Engine

pytestmark = pytest.mark.skipif(server_binary() is None, reason=NO_SERVER)

PUSHES, STRIKES = 1_500, 10


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture
def queue(engine: Engine) -> JobQueue:
    return JobQueue(engine, QueuePolicy())


def environment(server: RedisServer, database_url: str) -> dict[str, str]:
    """What `mdp consume` is told by it."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("MDP_")}
    return {**ours, "MDP_REDIS_URL": server.url, "MDP_DATABASE_URL": database_url, "MDP_USE_RLC": "true"}


def consume_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "market_data_pipeline.cli.main", "consume", *arguments]


def start(server: RedisServer, database_url: str, *arguments: str) -> subprocess.Popen[str]:
    """`mdp consume`, a process of its own."""
    pipe = subprocess.PIPE
    return subprocess.Popen(consume_command(*arguments), env=environment(server, database_url), stdout=pipe, stderr=pipe, text=True)


def insist(server: RedisServer, source: str, job: Mapping[str, Any]) -> None:
    """Push until it was acknowledged, as every producer does that must not lose anything."""
    while True:
        try:
            server.client.lpush(source, json.dumps(job))
        except RedisError:
            threading.Event().wait(0.01)
        else:
            return


class Chaos:
    """Two consumers and the server they take from, each killed at random and started again."""

    def __init__(self, server: RedisServer, database_url: str, seed: int) -> None:
        self._server, self._database_url, self._chance = server, database_url, random.Random(seed)
        self._started = 0
        self._victims = self._chance.sample(["consumer"] * 5 + ["server"] * 3 + ["pause"] * 2, STRIKES)
        self.consumers = [self._another(), self._another()]
        self.kills: Counter[str] = Counter()

    def _another(self) -> tuple[str, subprocess.Popen[bytes]]:
        # A name of its own: what a dead one had under way is the others' to take over.
        name, self._started = f"c{self._started}", self._started + 1
        command = consume_command("--name", name, "--lapse", "1")
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, env=environment(self._server, self._database_url), stdout=quiet, stderr=quiet)
        until(lambda: self._server.client.exists(f"market:consumer:{name}") == 1)
        return name, process

    def strike(self) -> None:
        """Kill one of the three in the midst of whatever it does and start it again, or stop one for longer than its name lasts."""
        threading.Event().wait(self._chance.uniform(0, 0.03))
        victim = self._victims.pop()
        self.kills[victim] += 1
        if victim == "server":
            self._server.kill()
            self._server.start()
            return
        place = self._chance.randrange(2)
        if victim == "pause":
            # The other takes over what it holds; then it goes on with it as if nothing had been.
            name, process = self.consumers[place]
            process.send_signal(signal.SIGSTOP)
            until(lambda: self._server.client.sismember(CONSUMERS, name) == 0, seconds=60)
            process.send_signal(signal.SIGCONT)
            return
        self.consumers[place][1].kill()
        self.consumers[place][1].wait(20)
        self.consumers[place] = self._another()

    def stop(self) -> list[int]:
        """Ask both to stop; their exit codes."""
        for _, process in self.consumers:
            process.send_signal(signal.SIGTERM)
        return [process.wait(30) for _, process in self.consumers]

    def end(self) -> None:
        """Whatever still runs, runs no more."""
        for _, process in self.consumers:
            process.kill()
            process.wait(20)


def test_consumers_and_the_server_killed_at_random_lose_nothing_and_double_nothing(database_url: str, queue: JobQueue) -> None:
    with redis_server() as server:
        chaos = Chaos(server, database_url, seed=4)
        try:
            for number in range(PUSHES):
                tier = f"T{number % 3}"
                if number % 2:
                    insist(server, f"market:backfills:{tier}", backfill(number, tier))
                else:
                    insist(server, LIVE, quotes(number, tier))
                if number % (PUSHES // STRIKES) == 0:
                    chaos.strike()
            # Nothing is left, and of the dead not even the names.
            until(lambda: not left_in(server) and server.client.scard(CONSUMERS) == 2, seconds=60)
            assert chaos.stop() == [0, 0]
        finally:
            chaos.end()
        assert set(chaos.kills) == {"consumer", "server", "pause"}
        assert server.client.keys("market:consumer*") == []
    jobs = queue.jobs(limit=10 * PUSHES)
    assert Counter(job.job_id for job in jobs) == Counter(f"{'qb'[number % 2]}-{number}" for number in range(PUSHES))


def test_it_stops_cleanly_when_it_is_told_to_and_says_what_it_did(redis: RedisServer, database_url: str) -> None:
    push(redis, LIVE, quotes(1), "nonsense")
    with start(redis, database_url, "--json") as process:
        try:
            until(lambda: redis.client.llen(LIVE) == 0 and not left_in(redis))
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 1, err  # something was refused
    assert json.loads(out) == {
        "batches": 1,
        "taken": 2,
        "accepted": 1,
        "duplicates": 0,
        "refused": 1,
        "put_back": 0,
        "taken_over": 0,
        "interruptions": 0,
    }
    assert "2 jobs: 1 new, 0 known, 1 refused, 0 put back" in err
    assert redis.client.keys("*") == []


def test_a_server_that_comes_up_later_is_waited_for(database_url: str, queue: JobQueue) -> None:
    with redis_server() as server:
        push(server, LIVE, quotes(1))
        server.kill()
        with start(server, database_url) as process:
            try:
                assert process.stderr is not None
                lines = iter(process.stderr.readline, "")
                assert any("trying again until it is back, nothing is lost" in line for line in lines)
                server.start()
                until(lambda: len(queue.jobs(limit=2)) == 1)
                process.send_signal(signal.SIGTERM)
                assert process.wait(30) == 0
            finally:
                process.kill()
