"""`mdp consume`: jobs of a Rate-Limit Coordinator, from its Redis lists into the queue."""

from __future__ import annotations

import os
import secrets
import select
import signal
import socket
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from market_data_pipeline.cli.output import json_option, note, print_json
from market_data_pipeline.domain.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from market_data_pipeline.ingest.rlc import Consumed
    from market_data_pipeline.settings import Settings

DONE, FOUND_SOMETHING = 0, 1


@click.command(epilog="Example: mdp consume --once --json")
@click.option("--once", is_flag=True, help="End when the lists hold nothing more that the queue takes.")
@click.option("--name", help="What this consumer is called in Redis; by default the host, the process and a random part.")
@click.option(
    "--lapse",
    "lapse_seconds",
    type=click.FloatRange(1.0, 600.0),
    default=15.0,
    show_default=True,
    help="Seconds without a sign of life after which others take over what this consumer had under way.",
)
@json_option
def consume(*, once: bool, name: str | None, lapse_seconds: float, as_json: bool) -> int:
    """Take the jobs that a Rate-Limit Coordinator pushes to Redis (MDP_REDIS_URL) into the queue.

    Lists: market:jobs, then market:backfills:T0, T1 and T2. None is lost and none taken twice, whatever is killed when; several
    may run at a time. Ends on SIGTERM and Ctrl-C after the batch under way. What is no job is kept with the reason (`mdp dlq
    list`); exit code 1 when that happened, or with --once when a full queue left jobs in Redis.
    """
    from market_data_pipeline.ingest.rlc import Consumer, address_of, open_redis  # noqa: PLC0415 - `mdp --help` must not wait
    from market_data_pipeline.settings import Settings  # noqa: PLC0415
    from market_data_pipeline.storage.database import database_url, open_engine  # noqa: PLC0415
    from market_data_pipeline.storage.jobs import JobQueue  # noqa: PLC0415

    settings = Settings.from_environment()
    if settings.redis_url is None:
        raise ConfigurationError("MDP_REDIS_URL is not set: expected the Redis of the coordinator, redis://host:6379/0")
    url = settings.redis_url.get_secret_value()
    redis = open_redis(url)
    if not settings.use_rlc:
        note("MDP_USE_RLC is false, so the local sweeper makes the same jobs: nothing is done twice, but set it to true")
    with _clock(settings) as clock, _stop_on_signals() as wait:
        engine = open_engine(database_url(settings))
        try:
            consumer = Consumer(
                redis,
                JobQueue(engine, settings.queue_policy),
                name=name or default_name(),
                clock=clock,
                wait=wait,
                tell=note,
                where=address_of(url),
                lapse_seconds=lapse_seconds,
            )
            note(f"{consumer.name} takes jobs from Redis at {address_of(url)}")
            total = consumer.run(once=once)
        finally:
            engine.dispose()
            redis.close()
    _say(total, as_json=as_json)
    return FOUND_SOMETHING if total.refused or (once and total.put_back) else DONE


def default_name() -> str:
    """A name that no other process has or had."""
    host = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in socket.gethostname())
    return f"{host[:40] or 'host'}-{os.getpid()}-{secrets.token_hex(3)}"


def _say(total: Consumed, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(total))
        return
    click.echo(
        f"{total.taken:,} jobs in {total.batches:,} batches: {total.accepted:,} new, {total.duplicates:,} known,"
        f" {total.refused:,} refused, {total.put_back:,} put back"
    )
    if total.taken_over or total.interruptions:
        click.echo(f"{total.taken_over:,} of them taken over from consumers that were gone; {total.interruptions:,} interruptions")
    if total.refused:
        note("refused jobs are kept with the reason: `mdp dlq list`")


@contextmanager
def _stop_on_signals() -> Iterator[Callable[[float], bool]]:
    """Waits so many seconds or until SIGTERM or SIGINT came, and says whether one did; a second one has its usual effect.

    A pipe, not an event: a handler that sets an event waits for ever where it interrupted somebody who was looking at it.
    """
    reading, writing = os.pipe()
    before = {int(number): signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def stop(number: int, _frame: object) -> None:
        os.write(writing, b".")
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, stop)
    try:
        yield lambda seconds: bool(select.select([reading], [], [], seconds)[0])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)


@contextmanager
def _clock(settings: Settings) -> Iterator[Callable[[], datetime]]:
    """The clock that MDP_CLOCK names; the machine's without what the others need."""
    if settings.clock == "system":
        yield lambda: datetime.now(UTC)
        return
    from market_data_pipeline.providers.http import HttpClient  # noqa: PLC0415 - only a simulator's clock is asked by HTTP
    from market_data_pipeline.wiring import clock_of  # noqa: PLC0415

    with HttpClient.open(settings) as http:
        yield clock_of(settings, http).now
