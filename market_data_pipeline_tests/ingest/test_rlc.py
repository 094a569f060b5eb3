"""The consumer of Redis lists, on a real server and a real Postgres."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import RedisError

from market_data_pipeline.domain.errors import ConfigurationError, DatabaseUnreachableError, InvalidInputError, UnavailableError
from market_data_pipeline.domain.queue import JobKind, QueuePolicy, SubmitReport
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.ingest.rlc import CONSUMERS, LIVE, SOURCES, Consumed, Consumer, Queue, address_of, open_redis
from market_data_pipeline.storage.bulk import transaction
from market_data_pipeline.storage.jobs import _OPEN, _OPENING, JobQueue
from market_data_pipeline.testing.redis_server import NO_SERVER, RedisServer, redis_server, server_binary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sqlalchemy import Engine

    from market_data_pipeline.domain.queue import NewJob

pytestmark = pytest.mark.skipif(server_binary() is None, reason=NO_SERVER)

NOON = datetime(2024, 12, 2, 12, tzinfo=UTC)
# Long enough for a test that is slow, short enough to wait for.
LAPSE = 0.5


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture
def redis(server: RedisServer) -> RedisServer:
    """The server, with nothing in it."""
    server.client.flushall()
    return server


@pytest.fixture
def queue(engine: Engine) -> JobQueue:
    return JobQueue(engine, QueuePolicy())


def quotes(number: int, tier: str = "T0", **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - any field
    """A valid job like no other of another number."""
    return {"type": "quotes_fetch", "job_id": f"q-{number}", "priority": tier, "symbols": [f"S{number}"], **changes}


def backfill(number: int, tier: str = "T1") -> dict[str, Any]:
    window = {"interval": "1d", "start": "2024-01-01T00:00:00Z", "end": "2024-12-01T00:00:00Z"}
    return {"type": "backfill", "job_id": f"b-{number}", "priority": tier, "symbol": f"S{number}", **window}


def push(redis: RedisServer, source: str, *jobs: dict[str, Any] | bytes | str) -> None:
    """As a Rate-Limit Coordinator does."""
    for job in jobs:
        redis.client.lpush(source, job if isinstance(job, bytes | str) else json.dumps(job))


def consumer(
    redis: RedisServer,
    queue: Queue,
    *,
    name: str = "one",
    tell: Callable[[str], None] = lambda _: None,
    wait: Callable[[float], bool] | None = None,
    lapse_seconds: float = LAPSE,
) -> Consumer:
    return Consumer(
        open_redis(redis.url),
        queue,
        name=name,
        clock=lambda: NOON,
        wait=wait or threading.Event().wait,
        tell=tell,
        where=address_of(redis.url),
        lapse_seconds=lapse_seconds,
    )


def left_in(redis: RedisServer) -> dict[str, int]:
    """How much is in each list, processing lists included; nothing of those that are empty."""
    names = [name.decode() for name in redis.client.keys("market:*")]  # type: ignore[union-attr]
    return {name: int(redis.client.llen(name)) for name in names if redis.client.type(name) == b"list"}


class FakeQueue:
    """Takes everything and remembers the order; or fails as told, so many times."""

    def __init__(self, *, failures: int = 0, full: frozenset[Tier] = frozenset()) -> None:
        self.failures, self.full = failures, full
        self.submitted: list[str] = []
        self.refused: list[tuple[str, str | bytes, str]] = []

    def submit(self, jobs: Sequence[NewJob]) -> SubmitReport:
        if self.failures:
            self.failures -= 1
            raise DatabaseUnreachableError("the database at nowhere cannot be reached")
        turned_away = {job.job_id: "full" for job in jobs if job.tier in self.full}
        taken = [job.job_id for job in jobs if job.job_id not in turned_away]
        known = set(self.submitted)
        fresh = [job_id for job_id in dict.fromkeys(taken) if job_id not in known]
        self.submitted += fresh
        return SubmitReport(len(fresh), len(jobs) - len(fresh) - len(turned_away), turned_away)

    def refuse(self, source: str, payload: str | bytes, reason: str) -> int:
        self.refused.append((source, payload, reason))
        return len(self.refused)


# --- what becomes of what is pushed ------------------------------------------------------------------------------------


def test_jobs_of_every_list_reach_the_queue_and_nothing_of_them_stays(redis: RedisServer, queue: JobQueue) -> None:
    push(redis, LIVE, quotes(1), quotes(2, "T2"))
    for tier in Tier:
        push(redis, f"market:backfills:{tier}", backfill(int(tier[1]), tier))
    told = consumer(redis, queue).run(once=True)
    assert told == Consumed(batches=1, taken=5, accepted=5)
    found = {job.job_id: (job.kind, job.tier, job.source) for job in queue.jobs(limit=100)}
    assert found == {
        "q-1": (JobKind.QUOTES_FETCH, Tier.T0, "rlc"),
        "q-2": (JobKind.QUOTES_FETCH, Tier.T2, "rlc"),
        **{f"b-{tier[1]}": (JobKind.BACKFILL, tier, "rlc") for tier in Tier},
    }
    assert redis.client.keys("*") == []


def test_live_jobs_go_before_backfills_and_t0_before_t1_before_t2_each_oldest_first(redis: RedisServer) -> None:
    push(redis, "market:backfills:T2", backfill(5, "T2"))
    push(redis, "market:backfills:T1", backfill(4, "T1"))
    push(redis, "market:backfills:T0", backfill(2, "T0"), backfill(3, "T0"))
    push(redis, LIVE, quotes(0, "T2"), quotes(1))
    queue = FakeQueue()
    consumer(redis, queue).run(once=True)
    assert queue.submitted == ["q-0", "q-1", "b-2", "b-3", "b-4", "b-5"]


def test_a_flood_of_live_jobs_does_not_starve_the_backfills(redis: RedisServer) -> None:
    push(redis, LIVE, *(quotes(n) for n in range(1_200)))
    push(redis, "market:backfills:T2", backfill(1, "T2"))
    queue = FakeQueue()
    consumer(redis, queue).run(once=True)
    assert len(queue.submitted) == 1_201
    assert queue.submitted.index("b-1") < 1_000


def test_the_same_push_again_changes_nothing(redis: RedisServer, queue: JobQueue) -> None:
    push(redis, LIVE, quotes(1), quotes(1))
    assert consumer(redis, queue).run(once=True) == Consumed(batches=1, taken=2, accepted=1, duplicates=1)
    push(redis, LIVE, quotes(1))
    assert consumer(redis, queue).run(once=True) == Consumed(batches=1, taken=1, duplicates=1)
    assert len(queue.jobs(limit=10)) == 1
    assert left_in(redis) == {}


def test_what_is_no_job_is_kept_with_its_reason_and_holds_up_nobody(redis: RedisServer, queue: JobQueue, engine: Engine) -> None:
    hostile: list[bytes | str] = [
        b"",
        b"\x00\xff\xfe",
        "nonsense",
        "[]",
        "{" * 5_000,
        json.dumps(quotes(1, "T7")),
        json.dumps(quotes(2, symbols=["x"])),
    ]
    push(redis, LIVE, quotes(3), *hostile, quotes(4))
    far = {**backfill(9), "start": "2050-01-01T00:00:00Z", "end": "2050-02-01T00:00:00Z"}
    push(redis, "market:backfills:T1", far)
    told = consumer(redis, queue).run(once=True)
    assert (told.accepted, told.refused) == (2, len(hostile) + 1)
    assert left_in(redis) == {}
    with engine.connect() as connection:
        kept = dict(tuple(row) for row in connection.exec_driver_sql("select payload, reason from refused_jobs"))
    assert len(kept) == len(hostile) + 1
    assert "'T7' is not a priority: expected one of T0, T1, T2" in kept[json.dumps(quotes(1, "T7"))]
    assert "more than 8 days after now" in kept[json.dumps(far)]


# --- a full queue ------------------------------------------------------------------------------------------------------


def test_what_a_full_queue_does_not_take_waits_in_redis_and_goes_in_once_there_is_room(redis: RedisServer, engine: Engine) -> None:
    small = JobQueue(engine, QueuePolicy(caps={Tier.T0: 10, Tier.T1: 3, Tier.T2: 10}))
    push(redis, "market:backfills:T1", *(backfill(n) for n in range(8)))
    said: list[str] = []
    told = consumer(redis, small, tell=said.append).run(once=True)
    assert (told.accepted, told.put_back, told.duplicates) == (3, 5, 0)
    assert left_in(redis) == {"market:backfills:T1": 5}
    assert sum("the queue is full" in line for line in said) == 1
    roomy = JobQueue(engine, QueuePolicy())
    assert consumer(redis, roomy).run(once=True) == Consumed(batches=1, taken=5, accepted=5)
    assert [job.job_id for job in sorted(roomy.jobs(limit=10), key=lambda job: job.enqueued_at)][-5:] == [
        f"b-{n}" for n in range(3, 8)
    ]


def test_a_full_tier_does_not_keep_the_live_jobs_of_another_waiting(redis: RedisServer) -> None:
    push(redis, LIVE, *(quotes(n, "T2") for n in range(1_500)), *(quotes(n, "T0") for n in range(2_000, 2_003)))
    queue = FakeQueue(full=frozenset({Tier.T2}))
    told = consumer(redis, queue).run(once=True)
    assert queue.submitted == ["q-2000", "q-2001", "q-2002"]
    assert told.put_back == 1_500
    assert left_in(redis) == {"market:backfills:T2": 1_500}
    queue.full = frozenset()
    consumer(redis, queue).run(once=True)
    assert sorted(queue.submitted[3:], key=lambda job_id: int(job_id[2:])) == [f"q-{n}" for n in range(1_500)]


# --- whoever is killed or gone -----------------------------------------------------------------------------------------


def test_what_was_under_way_when_it_was_killed_is_found_under_the_same_name(redis: RedisServer, queue: JobQueue) -> None:
    redis.client.lpush("market:processing:one:jobs", json.dumps(quotes(1)))
    redis.client.lpush("market:processing:one:backfills:T1", json.dumps(backfill(2)))
    assert consumer(redis, queue).run(once=True) == Consumed(batches=1, taken=2, accepted=2)
    assert left_in(redis) == {}


def test_what_a_consumer_that_is_gone_had_under_way_is_taken_over(redis: RedisServer, queue: JobQueue) -> None:
    redis.client.sadd(CONSUMERS, "gone")
    redis.client.lpush("market:processing:gone:jobs", *(json.dumps(quotes(n)) for n in range(700)))
    told = consumer(redis, queue).run(once=True)
    assert (told.accepted, told.taken_over) == (700, 700)
    assert redis.client.keys("*") == []


def test_what_a_consumer_that_lives_has_under_way_is_left_alone(redis: RedisServer, queue: JobQueue) -> None:
    redis.client.sadd(CONSUMERS, "alive", "not a/name")
    redis.client.set("market:consumer:alive", "token", px=60_000)
    redis.client.lpush("market:processing:alive:jobs", json.dumps(quotes(1)))
    assert consumer(redis, queue).run(once=True).taken == 0
    assert left_in(redis) == {"market:processing:alive:jobs": 1}
    assert redis.client.smembers(CONSUMERS) == {b"alive", b"not a/name"}


def test_a_name_is_one_consumers_at_a_time(redis: RedisServer, queue: JobQueue) -> None:
    with background(consumer(redis, queue)), pytest.raises(UnavailableError, match="another consumer is called 'one' and is alive"):
        consumer(redis, queue).run(once=True)


def test_a_name_whose_consumer_was_killed_is_free_once_it_lapsed(redis: RedisServer, queue: JobQueue) -> None:
    redis.client.set("market:consumer:one", "of the one that was killed", px=200)
    push(redis, LIVE, quotes(1))
    assert consumer(redis, queue).run(once=True).accepted == 1


def test_a_database_that_is_gone_is_told_once_and_waited_for(redis: RedisServer) -> None:
    push(redis, LIVE, quotes(1), quotes(2))
    queue, said = FakeQueue(failures=3), list[str]()
    with background(consumer(redis, queue, tell=said.append)) as running:
        until(lambda: bool(queue.submitted))
    assert queue.submitted == ["q-1", "q-2"]
    assert sum("cannot be reached" in line for line in said) == 1
    assert sum("back again" in line for line in said) == 1
    assert (running.total.interruptions, running.total.accepted) == (1, 2)
    assert left_in(redis) == {}


def test_once_does_not_wait_for_a_database_that_is_gone_and_loses_nothing(redis: RedisServer, queue: JobQueue) -> None:
    push(redis, LIVE, quotes(1))
    with pytest.raises(UnavailableError, match="nothing is lost"):
        consumer(redis, FakeQueue(failures=1)).run(once=True)
    assert left_in(redis) == {"market:processing:one:jobs": 1}
    assert consumer(redis, queue, name="two", wait=Lapsed(redis, "one")).run(once=True).accepted == 1


class Lapsed:
    """A wait that comes after everybody called ``name`` is forgotten."""

    def __init__(self, redis: RedisServer, name: str) -> None:
        redis.client.delete(f"market:consumer:{name}")

    def __call__(self, seconds: float) -> bool:
        return threading.Event().wait(seconds)


def test_a_live_job_is_taken_as_soon_as_it_comes(redis: RedisServer) -> None:
    queue = FakeQueue()
    with background(consumer(redis, queue)):
        until(lambda: redis.client.exists("market:consumer:one") == 1)
        push(redis, LIVE, quotes(1))
        until(lambda: queue.submitted == ["q-1"])


@contextmanager
def background(one: Consumer) -> Iterator[Consumer]:
    """It runs in a thread and has its name; stopped at the end as SIGTERM does."""
    stop = threading.Event()
    one._wait = stop.wait  # noqa: SLF001 - its own wait is what stops it
    failed: list[BaseException] = []

    def run() -> None:
        try:
            one.run()
        except BaseException as wrong:  # noqa: BLE001 - told below
            failed.append(wrong)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        until(lambda: one._is_registered)  # noqa: SLF001 - nothing else says so for certain
        yield one
    finally:
        stop.set()
        thread.join(20)
    assert failed == []


def until(holds: Callable[[], bool], *, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not become true in time"
        threading.Event().wait(0.01)


def test_whoever_stops_in_the_midst_of_submitting_does_not_stop_the_others(
    redis: RedisServer, queue: JobQueue, engine: Engine
) -> None:
    push(redis, LIVE, quotes(1))
    with pytest.raises(DatabaseUnreachableError), transaction(engine) as stopped:
        stopped.execute(_OPEN, {"opening": _OPENING})
        # Here SIGSTOP, or a host that went to sleep: the lock is its until the server has had enough.
        assert consumer(redis, queue).run(once=True).accepted == 1
        stopped.execute("select 1")


# --- the address -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://user:hunter2@example.com:7000/3", "example.com:7000/3"),
        ("rediss://:hunter2@example.com", "example.com:6379/0"),
        ("redis://localhost", "localhost:6379/0"),
        ("unix:///run/redis.sock", "/run/redis.sock"),
    ],
)
def test_an_address_in_a_message_has_neither_user_nor_password(url: str, address: str) -> None:
    assert address_of(url) == address


@pytest.mark.parametrize("url", ["http://:hunter2@host", "redis://:hunter2@host:hunter2/0", "hunter2", "redis://[hunter2", ""])
def test_an_address_that_cannot_be_used_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match="MDP_REDIS_URL cannot be read: expected redis://") as refused:
        open_redis(url)
    assert "hunter2" not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a/b", "x" * 65, "ü", "a\n"])
def test_a_name_that_is_no_name_is_refused(name: str, redis: RedisServer) -> None:
    with pytest.raises(InvalidInputError, match="is no name of a consumer"):
        consumer(redis, FakeQueue(), name=name)


# --- real processes, killed at random ----------------------------------------------------------------------------------

PUSHES, STRIKES = 1_500, 10


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


def test_every_list_is_where_the_coordinator_pushes() -> None:
    assert SOURCES == ("market:jobs", "market:backfills:T0", "market:backfills:T1", "market:backfills:T2")
