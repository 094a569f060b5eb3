"""Jobs that a Rate-Limit Coordinator pushes to Redis lists, brought into the queue in Postgres: none lost, none twice.

A job is moved from its list to a processing list of this consumer, submitted, and removed from there only when Postgres has it on
disk. So each job is, at any moment, in one of Redis' lists or in the queue or for a moment in both; that it is submitted again
after a crash changes nothing, because the queue knows its id. What cannot be read as a job is kept with the reason and removed
likewise. A job whose tier's queue is full goes back to Redis, to the list of its tier.

The keys, all of Redis' own types: lists ``market:jobs`` and ``market:backfills:T0|T1|T2`` (pushed left, taken right); a list
``market:processing:<consumer>:<list>`` for each; ``market:consumer:<consumer>``, which lapses when its consumer is gone; the set
``market:consumers``, of all that may have something in a processing list.
"""

from __future__ import annotations

import re
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from market_data_pipeline.domain.errors import (
    ConfigurationError,
    DatabaseUnreachableError,
    InvalidInputError,
    UnavailableError,
    UnsupportedServerError,
)
from market_data_pipeline.domain.jobs import as_new_job, parse_job
from market_data_pipeline.domain.queue import SubmitReport
from market_data_pipeline.domain.universe import Tier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from redis import Redis

    from market_data_pipeline.domain.queue import NewJob

LIVE = "market:jobs"
BY_TIER = {tier: f"market:backfills:{tier}" for tier in Tier}
# In the order in which they are drained: what is live, then history by tier.
SOURCES = (LIVE, *BY_TIER.values())
CONSUMERS = "market:consumers"
SOURCE_NAME = "rlc"

# Of each list in one round. Of every list some, the live one first: a flood there does not starve the others.
TAKEN_AT_ONCE = 500
# A consumer unheard of for so long is gone, and what it had is another's. Several times the longest round; a live one that was only
# slow loses nothing but its work of that round.
LAPSE_SECONDS = 15.0
# How long one waits for a live job while there is nothing to do; backfills and SIGTERM wait as long, at most.
IDLE_SECONDS = 1.0
# How long a tier's list rests when the queue of the tier is full, at first and at most. The live list never does: it holds all
# tiers, and what is turned away of it goes to the list of its tier, so that a full T2 does not keep T0 waiting.
FIRST_REST_SECONDS, MOST_REST_SECONDS = 0.5, 30.0
FIRST_RETRY_SECONDS, MOST_RETRY_SECONDS = 0.2, 5.0
CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 30.0
OLDEST_SERVER = (6, 2)  # LMOVE came with 6.2
URL_FORM = "redis://[[USER]:PASSWORD@]HOST[:PORT]/NUMBER, rediss://… for TLS, or unix:///PATH"
INSTALL = "pip install redis (the extra rlc of this package)"

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


class Queue(Protocol):
    """Where jobs go: ``storage.jobs.JobQueue``. Each call is durable when it returns, and may be repeated."""

    def submit(self, jobs: Sequence[NewJob]) -> SubmitReport:
        """Put jobs into the queue."""

    def refuse(self, source: str, payload: str | bytes, reason: str) -> int:
        """Keep what is no job, with the reason."""


@dataclass(slots=True)
class Consumed:
    """What a consumer did, counted. ``taken`` is the sum of accepted, duplicates, refused and put_back.

    ``put_back``: how often a job went back to Redis as its tier's queue was full. ``taken_over``: of consumers that are gone.
    ``interruptions``: how often Redis or Postgres was lost and came back.
    """

    batches: int = 0
    taken: int = 0
    accepted: int = 0
    duplicates: int = 0
    refused: int = 0
    put_back: int = 0
    taken_over: int = 0
    interruptions: int = 0

    def add(self, other: Consumed) -> None:
        """Count what ``other`` counted, too."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))


@dataclass(frozen=True, slots=True)
class _Taken:
    """One entry of a processing list."""

    source: str
    payload: bytes


@dataclass(slots=True)
class _Rest:
    """Until when a list is left alone, and for how long it was last."""

    until: float = 0.0
    seconds: float = 0.0


@dataclass(slots=True)
class _Judged:
    """A batch that was submitted: what Postgres has, and what goes back, each with the list of its tier."""

    settled: list[_Taken] = field(default_factory=list)
    turned_away: list[tuple[_Taken, str]] = field(default_factory=list)
    counts: Consumed = field(default_factory=Consumed)


class Consumer:
    """Takes jobs from Redis to the queue. One thread's; any number of processes may run one, each under its own ``name``.

    ``clock``: the time by which a window may not begin far ahead. ``wait``: sleeps so many seconds or until told to stop, and says
    whether it was; ``tell``: is given what happens, a line at a time.
    """

    def __init__(
        self,
        redis: Redis,
        queue: Queue,
        *,
        name: str,
        clock: Callable[[], datetime],
        wait: Callable[[float], bool],
        tell: Callable[[str], None],
        where: str = "",
        lapse_seconds: float = LAPSE_SECONDS,
    ) -> None:
        self._redis, self._queue, self._clock, self._wait, self._tell = redis, queue, clock, wait, tell
        self.name = valid_name(name)
        self._where = f"Redis at {where}" if where else "Redis"
        self._lapse_seconds = lapse_seconds
        # Of this process: another one under the same name has another, so each notices the other.
        self._token = secrets.token_hex(8)
        self._rests = {source: _Rest() for source in BY_TIER.values()}
        self._looked_for_lapsed = -float("inf")
        self._is_registered = False
        self.total = Consumed()

    def run(self, *, once: bool = False) -> Consumed:
        """Consume until ``wait`` says stop, or ``once`` until the lists hold nothing that the queue takes; what was done.

        Where Redis or Postgres cannot be reached it says so once and tries again, less and less often, for as long as it takes;
        ``once``, and at the very start where Redis refuses us, raises UnavailableError.
        """
        self._greet(once=once)
        lost_errors: tuple[type[Exception], ...] = (*_lost(), DatabaseUnreachableError)
        silence, said = 0.0, ""
        while not self._wait(silence):
            try:
                if not self._is_registered:
                    self._register()
                busy = self._round(idle=0.0 if once else min(IDLE_SECONDS, self._lapse_seconds / 3))
            except lost_errors as lost:
                problem = str(lost) if isinstance(lost, DatabaseUnreachableError) else f"{self._where}: {lost}"
                if once:
                    raise UnavailableError(f"{problem}; nothing is lost: run it again when it is back") from None
                if problem != said:
                    self._tell(f"{problem}; trying again until it is back, nothing is lost")
                self.total.interruptions += not said
                said, silence = problem, min(max(2 * silence, FIRST_RETRY_SECONDS), MOST_RETRY_SECONDS)
                continue
            if said:
                self._tell("back again")
            said, silence = "", 0.0
            if once and not busy:
                break
        self._say_goodbye()
        return self.total

    # --- a round -------------------------------------------------------------------------------------------------------

    def _round(self, *, idle: float) -> bool:
        """Take a batch over to Postgres; whether there was one. Waits ``idle`` seconds for a live job at most.

        First what is in our processing lists already: whatever happened before (a crash under this name, an answer of Redis that
        was lost on its way, a database that was gone), it is found there. So no error needs a repair of its own.
        """
        if time.monotonic() - self._looked_for_lapsed > self._lapse_seconds / 3:
            self._take_over()
            self._looked_for_lapsed = time.monotonic()
        waiting, held = self._lengths()
        if any(held.values()):
            batch = self._held(held)
        else:
            batch = self._take({source: number for source, number in waiting.items() if number and not self._rests_now(source)})
        if batch:
            self._settle(batch, waiting)
            return True
        if idle:
            # What comes is in our processing list then.
            self._redis.blmove(LIVE, self._processing(LIVE), idle, "RIGHT", "LEFT")  # type: ignore[arg-type]  # fractions since 6.0
        return False

    def _lengths(self) -> tuple[dict[str, int], dict[str, int]]:
        """How much waits in each list, and how much is in our processing lists; with that we are alive for another while."""
        with self._redis.pipeline(transaction=True) as pipe:
            self._beat(pipe)
            for source in SOURCES:
                pipe.llen(source)
                pipe.llen(self._processing(source))
            lengths = pipe.execute()[2:]
        return dict(zip(SOURCES, lengths[::2], strict=True)), dict(zip(SOURCES, lengths[1::2], strict=True))

    def _beat(self, pipe: Redis) -> None:
        # In one transaction with whatever is moved: nothing can be in a processing list that nobody would look for.
        pipe.set(_heartbeat(self.name), self._token, px=int(self._lapse_seconds * 1000))
        pipe.sadd(CONSUMERS, self.name)

    def _held(self, held: dict[str, int]) -> list[_Taken]:
        """The oldest of what is in our processing lists."""
        with self._redis.pipeline(transaction=False) as pipe:
            for source in SOURCES:
                pipe.lrange(self._processing(source), -min(max(held[source], 1), TAKEN_AT_ONCE), -1)
            answers = pipe.execute()
        return [_Taken(source, raw) for source, raws in zip(SOURCES, answers, strict=True) for raw in reversed(raws)]

    def _take(self, numbers: dict[str, int]) -> list[_Taken]:
        """Move so many from each list, or TAKEN_AT_ONCE, to our processing lists."""
        if not numbers:
            return []
        wanted = [source for source, number in numbers.items() for _ in range(min(number, TAKEN_AT_ONCE))]
        with self._redis.pipeline(transaction=True) as pipe:
            self._beat(pipe)
            for source in wanted:
                pipe.lmove(source, self._processing(source), "RIGHT", "LEFT")
            answers = pipe.execute()[2:]
        # None: another consumer was faster.
        return [_Taken(source, raw) for source, raw in zip(wanted, answers, strict=True) if raw is not None]

    def _settle(self, batch: list[_Taken], waiting: dict[str, int]) -> None:
        began = time.perf_counter()
        judged = self._judge(batch)
        self._acknowledge(judged)
        judged.counts.batches, judged.counts.taken = 1, len(batch)
        self.total.add(judged.counts)
        self._rest(judged, {taken.source for taken in batch})
        counts, left = judged.counts, max(sum(waiting.values()) - len(batch), 0)
        self._tell(
            f"{counts.taken:,} jobs: {counts.accepted:,} new, {counts.duplicates:,} known, {counts.refused:,} refused,"
            f" {counts.put_back:,} put back; about {left:,} wait; {time.perf_counter() - began:.3f} s"
        )

    def _judge(self, batch: list[_Taken]) -> _Judged:
        """Submit what is a job and keep what is none; durable when this returns."""
        judged, jobs, now = _Judged(), [], self._clock()
        for taken in batch:
            try:
                jobs.append((taken, as_new_job(parse_job(taken.payload, now=now), source=SOURCE_NAME)))
            except InvalidInputError as wrong:
                self._refuse(taken, str(wrong), judged)
        report = self._submitted([job for _, job in jobs])
        judged.counts.accepted = report.accepted
        for taken, job in jobs:
            if job.job_id in report.turned_away:
                judged.turned_away.append((taken, BY_TIER[job.tier]))
            else:
                judged.settled.append(taken)
        judged.counts.put_back = len(judged.turned_away)
        # Several entries of one id that was turned away: the queue counts one and knows the others. All of them go back.
        judged.counts.duplicates = len(jobs) - report.accepted - judged.counts.put_back
        return judged

    def _submitted(self, jobs: list[NewJob]) -> SubmitReport:
        return self._queue.submit(jobs) if jobs else SubmitReport()

    def _refuse(self, taken: _Taken, reason: str, judged: _Judged) -> None:
        self._queue.refuse(f"{SOURCE_NAME}:{taken.source}", taken.payload, reason)
        judged.counts.refused += 1
        judged.settled.append(taken)

    def _acknowledge(self, judged: _Judged) -> None:
        """Remove what Postgres has from our processing lists, and return what it did not take to Redis: first in their tier's list.

        By value and from the right, where the oldest are: the first that is looked at. Two equal entries are one job.
        """
        with self._redis.pipeline(transaction=True) as pipe:
            self._beat(pipe)
            for taken in (*judged.settled, *(taken for taken, _ in judged.turned_away)):
                pipe.lrem(self._processing(taken.source), -1, taken.payload)  # type: ignore[arg-type]  # bytes are fine
            for taken, target in reversed(judged.turned_away):
                pipe.rpush(target, taken.payload)
            pipe.execute()

    # --- back-pressure -------------------------------------------------------------------------------------------------

    def _rests_now(self, source: str) -> bool:
        return source in self._rests and time.monotonic() < self._rests[source].until

    def _rest(self, judged: _Judged, sources: Iterable[str]) -> None:
        """Leave the lists of full tiers alone for a while, longer each time; one whose jobs were all taken is as before."""
        full = {target for _, target in judged.turned_away}
        for source, rest in self._rests.items():
            if source in full:
                if not rest.seconds:
                    self._tell(f"the queue is full: what it does not take waits in Redis, in {source}")
                rest.seconds = min(max(2 * rest.seconds, FIRST_REST_SECONDS), MOST_REST_SECONDS)
                rest.until = time.monotonic() + rest.seconds
            elif source in sources:
                rest.seconds = 0.0

    # --- who is alive --------------------------------------------------------------------------------------------------

    def _processing(self, source: str, name: str | None = None) -> str:
        return f"market:processing:{name or self.name}:{source.removeprefix('market:')}"

    def _greet(self, *, once: bool) -> None:
        """Say whom we speak to; UnavailableError where the server refuses us or is too old, InvalidInputError for a taken name.

        Where it does not answer at all, that is for the first round to say.
        """
        from redis import exceptions  # noqa: PLC0415 - an optional extra

        try:
            told = self._redis.info("server") | self._redis.info("persistence")
        except (exceptions.AuthenticationError, exceptions.AuthorizationError) as refused:
            raise UnavailableError(f"{self._where} refused us ({refused}): expected user and password in MDP_REDIS_URL") from None
        except exceptions.ConnectionError as gone:
            if once:
                raise UnavailableError(f"{self._where}: {gone}") from None
            return
        except exceptions.RedisError:
            return  # INFO is not ours to ask here; whatever else is wrong will be said by what needs it
        version = str(told.get("redis_version", "0"))
        if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST_SERVER:
            raise UnsupportedServerError(f"{self._where} is version {version}: expected Redis 6.2 or later, or Valkey")
        if not told.get("aof_enabled"):
            self._tell(f"{self._where} keeps no append-only file: what is pushed there is lost where it crashes (appendonly yes)")

    def _register(self) -> None:
        """Make the name ours. After a crash under this name: once the heartbeat of before has lapsed."""
        key, deadline = _heartbeat(self.name), time.monotonic() + 2 * self._lapse_seconds
        while not self._redis.set(key, self._token, nx=True, px=int(self._lapse_seconds * 1000)):
            if self._redis.get(key) == self._token.encode():
                break
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"another consumer is called {self.name!r} and is alive: stop it, or choose another name with --name"
                )
            if self._wait(min(self._lapse_seconds / 10, 1.0)):
                return
        self._redis.sadd(CONSUMERS, self.name)
        self._is_registered = True

    def _take_over(self) -> None:
        """Move what consumers that are gone had under way to our own processing lists, where the next round finds it."""
        names = sorted(name.decode("utf-8", "replace") for name in self._redis.smembers(CONSUMERS))  # type: ignore[union-attr]
        others = [name for name in names if name != self.name and _NAME.fullmatch(name)]
        for name in others:
            if self._redis.exists(_heartbeat(name)):
                continue
            moved = 0
            for source in SOURCES:
                from_list, to_list = self._processing(source, name), self._processing(source)
                with self._redis.pipeline(transaction=True) as pipe:
                    self._beat(pipe)
                    for _ in range(int(self._redis.llen(from_list))):
                        pipe.lmove(from_list, to_list, "RIGHT", "LEFT")
                    moved += sum(raw is not None for raw in pipe.execute()[2:])
            self._forget(name)
            self.total.taken_over += moved
            if moved:
                self._tell(f"{name} is gone: {moved:,} jobs that it had under way are taken over")

    def _forget(self, name: str) -> None:
        """Look for ``name`` no more, unless it came back meanwhile or has something in a processing list."""
        from redis.exceptions import WatchError  # noqa: PLC0415 - an optional extra

        with self._redis.pipeline(transaction=True) as pipe, suppress(WatchError):
            # Whoever moves anything under the name sets its heartbeat in the same transaction: then this one fails.
            pipe.watch(_heartbeat(name))  # type: ignore[no-untyped-call]  # redis' own
            if not pipe.exists(_heartbeat(name), *(self._processing(source, name) for source in SOURCES)):
                pipe.multi()
                pipe.srem(CONSUMERS, name)
                pipe.execute()

    def _say_goodbye(self) -> None:
        """Leave no name behind where nothing is left in our processing lists; where Redis is gone, the name lapses by itself."""
        if not self._is_registered:
            return
        try:
            if not any(self._lengths()[1].values()):
                self._redis.srem(CONSUMERS, self.name)
            self._redis.delete(_heartbeat(self.name))
        except _lost():
            return


def valid_name(text: str) -> str:
    """``text`` when a consumer can be called so; InvalidInputError otherwise."""
    if not _NAME.fullmatch(text):
        raise InvalidInputError(f"{text!r} is no name of a consumer: expected 1-64 letters, digits and . _ -")
    return text


def open_redis(url: str) -> Redis:
    """A client for ``url``. Nothing is sent yet. ConfigurationError where the URL cannot be used; it never repeats it.

    The client repeats no command by itself: a move whose answer was lost happened or not, and only who reads the processing list
    knows.
    """
    try:
        from redis import Redis  # noqa: PLC0415 - an optional extra
        from redis.backoff import NoBackoff  # noqa: PLC0415
        from redis.retry import Retry  # noqa: PLC0415
    except ImportError:
        raise ConfigurationError(
            f"the Python package redis is not installed, which speaks to Redis and Valkey: {INSTALL}"
        ) from None
    try:
        redis = Redis.from_url(
            url, socket_connect_timeout=CONNECT_SECONDS, socket_timeout=ANSWER_SECONDS, retry=Retry(NoBackoff(), 0)
        )
        address_of(url)
    except (ValueError, TypeError):
        raise ConfigurationError(f"MDP_REDIS_URL cannot be read: expected {URL_FORM}") from None
    return redis


def address_of(url: str) -> str:
    """``host:port/number`` or the socket's path, for messages: never the user, never the password."""
    parts = urlsplit(url)
    return parts.path if parts.scheme == "unix" else f"{parts.hostname or 'localhost'}:{parts.port or 6379}{parts.path or '/0'}"


def _heartbeat(name: str) -> str:
    return f"market:consumer:{name}"


def _lost() -> tuple[type[Exception], ...]:
    """What Redis' client raises: another attempt may work, whatever it is: down, loading, a replica for now, out of memory."""
    from redis.exceptions import RedisError  # noqa: PLC0415 - an optional extra

    return (RedisError,)
