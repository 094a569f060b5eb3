"""Whether the pipeline can do its work: part by part, with the reason where one cannot. What is late is the alerts' business."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from market_data_pipeline.domain.errors import MarketDataError, MigrationError
from market_data_pipeline.domain.sessions import HORIZON_WARNING_DAYS
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.storage.database import STATEMENT_FAILURES
from market_data_pipeline.storage.migrations import migration_status
from market_data_pipeline.storage.watch import calendars_in_use, outbox_now, tier_queues, watch_state

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from market_data_pipeline.ingest.pipeline import Pipeline

# As the alert rules BackfillOldestTooOld (of T0) and NoticesUndelivered have it by default.
OLDEST_T0_SECONDS, OLDEST_NOTICE_SECONDS = 900.0, 900.0
WATCHES_MISSED, SHORTEST_SILENCE_SECONDS = 3, 120.0


class Status(StrEnum):
    """All of it in a word."""

    OK = "ok"
    DEGRADED = "degraded"
    """It works, and somebody should look."""
    UNAVAILABLE = "unavailable"
    """Nothing can be read or written."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part. ``why``: what is wrong, None where nothing is."""

    ok: bool
    why: str | None = None


GOOD = Part(ok=True)
VITAL = ("database", "migrations")
OTHERS = ("watch", "queue", "outbox", "calendars")


@dataclass(frozen=True, slots=True)
class Health:
    """The parts by name; always the same names."""

    parts: Mapping[str, Part]

    @property
    def status(self) -> Status:
        """Without the database or its schema nothing works; without another part the rest does."""
        if not all(self.parts[name].ok for name in VITAL):
            return Status.UNAVAILABLE
        return Status.OK if all(part.ok for part in self.parts.values()) else Status.DEGRADED


def health_of(vital: Mapping[str, Part], others: Mapping[str, Part]) -> Health:
    """Both together. Where something vital is wrong, what was found of the others says nothing."""
    wrong = next((name for name, part in vital.items() if not part.ok), None)
    if wrong is not None:
        others = dict.fromkeys(OTHERS, Part(ok=False, why=f"not looked at: {wrong}"))
    return Health({**vital, **others})


def without_database(why: str) -> dict[str, Part]:
    """The vital parts of a pipeline whose database cannot be asked."""
    return {"database": Part(ok=False, why=why), "migrations": Part(ok=False, why="not looked at: database")}


def vital_parts(pipeline: Pipeline) -> dict[str, Part]:
    """The database and its schema. Raises DatabaseUnreachableError where it is away."""
    with pipeline.engine.connect() as connection:
        connection.exec_driver_sql("select 1")
    return {"database": GOOD, "migrations": _schema(pipeline)}


def other_parts(pipeline: Pipeline) -> dict[str, Part]:
    """What the pipeline can do its work without, for a while."""
    now = pipeline.clock.now()
    looks: dict[str, Callable[[Pipeline, datetime], Part]] = {
        "watch": _watch,
        "queue": _queue,
        "outbox": _outbox,
        "calendars": _calendars,
    }
    return {name: _looked(look, pipeline, now) for name, look in looks.items()}


def _looked(look: Callable[[Pipeline, datetime], Part], pipeline: Pipeline, now: datetime) -> Part:
    try:
        return look(pipeline, now)
    except (MarketDataError, *STATEMENT_FAILURES) as failure:
        return Part(ok=False, why=f"cannot be asked: {type(failure).__name__}")


def _schema(pipeline: Pipeline) -> Part:
    try:
        pending = migration_status(pipeline.engine).pending
    except MigrationError as wrong:
        return Part(ok=False, why=str(wrong))
    if pending:
        return Part(ok=False, why=f"not applied: {', '.join(pending)}; run `mdp migrate`")
    return GOOD


def _watch(pipeline: Pipeline, now: datetime) -> Part:
    last = watch_state(pipeline.engine)
    if last is None:
        return Part(ok=False, why="nobody has looked at SLOs and alert rules yet")
    allowed = max(WATCHES_MISSED * pipeline.settings.watch_every_seconds, SHORTEST_SILENCE_SECONDS)
    silent = (now - last.at).total_seconds()
    if silent > allowed:
        return Part(ok=False, why=f"nobody has looked at SLOs and alert rules for {silent:,.0f} s; the last was {last.by}")
    return GOOD


def _queue(pipeline: Pipeline, _now: datetime) -> Part:
    caps = pipeline.jobs.policy.caps
    for queue in tier_queues(pipeline.engine):
        if queue.queued >= caps[queue.tier]:
            return Part(ok=False, why=f"the queue of {queue.tier} is full: {queue.queued:,} jobs")
        if queue.tier is Tier.T0 and queue.oldest_seconds > OLDEST_T0_SECONDS:
            return Part(ok=False, why=f"the oldest job of T0 has been ready for {queue.oldest_seconds:,.0f} s")
    return GOOD


def _outbox(pipeline: Pipeline, now: datetime) -> Part:
    outbox = outbox_now(pipeline.engine)
    waits = (now - outbox.oldest_at).total_seconds() if outbox.oldest_at else 0.0
    if waits > OLDEST_NOTICE_SECONDS:
        return Part(ok=False, why=f"{outbox.queued:,} messages are not delivered, the oldest for {waits:,.0f} s")
    return GOOD


def _calendars(pipeline: Pipeline, now: datetime) -> Part:
    calendars = [pipeline.calendars(name) for name in calendars_in_use(pipeline.engine)]
    ending = [f"{one.name} until {one.last_session}" for one in calendars if one.days_to_horizon(now.date()) < HORIZON_WARNING_DAYS]
    return Part(ok=False, why=f"known no further: {', '.join(ending)}; upgrade exchange_calendars") if ending else GOOD
