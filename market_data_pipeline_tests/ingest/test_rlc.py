"""The consumer of Redis lists, on a real server and a real Postgres."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.domain.errors import ConfigurationError, DatabaseUnreachableError, InvalidInputError, UnavailableError
from market_data_pipeline.domain.queue import JobKind, QueuePolicy, SubmitReport
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.ingest.rlc import CONSUMERS, LIVE, SOURCES, Consumed, Consumer, Queue, address_of, open_redis
from market_data_pipeline.storage.bulk import transaction
from market_data_pipeline.storage.jobs import _OPEN, _OPENING, JobQueue
from market_data_pipeline.testing.redis_server import NO_SERVER, RedisServer, redis_server, server_binary
from market_data_pipeline_tests.ingest.coordinator import backfill, left_in, push, quotes, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

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
    # On a busy machine the first one may well be silent for half a second.
    first, second = (consumer(redis, queue, lapse_seconds=2.0) for _ in range(2))
    with background(first), pytest.raises(UnavailableError, match="another consumer is called 'one' and is alive"):
        second.run(once=True)


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


@contextmanager
def stopped_while_submitting(engine: Engine) -> Iterator[None]:
    """SIGSTOP, or a host that went to sleep: the lock is theirs until the server has had enough."""
    with transaction(engine) as cursor:
        cursor.execute(_OPEN, {"opening": _OPENING})
        yield
        cursor.execute("select 1")


def test_whoever_stops_in_the_midst_of_submitting_does_not_stop_the_others(
    redis: RedisServer, queue: JobQueue, engine: Engine
) -> None:
    push(redis, LIVE, quotes(1))
    with pytest.raises(DatabaseUnreachableError), stopped_while_submitting(engine):
        assert consumer(redis, queue).run(once=True).accepted == 1


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


def test_every_list_is_where_the_coordinator_pushes() -> None:
    assert SOURCES == ("market:jobs", "market:backfills:T0", "market:backfills:T1", "market:backfills:T2")
