"""The job queue's values: what a job is to the queue, its lease, its limits and how it may end. Pure; the table is in storage."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from market_data_pipeline.domain.universe import Tier

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime


class JobKind(StrEnum):
    """What a job asks for; ``domain.jobs`` has the schema of each."""

    BARS_FETCH = "bars_fetch"
    QUOTES_FETCH = "quotes_fetch"
    BACKFILL = "backfill"


class JobState(StrEnum):
    """queued -> leased -> done or dead. A lease that lapses makes the job queued again. The dead ones are the dead-letter queue."""

    QUEUED = "queued"
    LEASED = "leased"
    DONE = "done"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job on its way into the queue. ``payload``: the validated job as JSON, as ``domain.jobs`` writes it.

    ``dedupe_key`` names what the job does, whoever asks: at most one of a key is queued or leased. Of one tier a higher
    ``priority`` goes first, and of one priority the older. ``ready_at`` None: at once.
    """

    job_id: str
    kind: JobKind
    tier: Tier
    dedupe_key: str
    payload: Mapping[str, Any]
    source: str
    priority: int = 0
    ready_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """A job that a worker holds until ``until``, longer with each heartbeat.

    ``token`` is of this lease and no other: only with it can the job be ended. ``attempts`` counts the leases of the job, this one
    included.
    """

    job_id: str
    token: int
    kind: JobKind
    tier: Tier
    payload: Mapping[str, Any]
    attempts: int
    until: datetime


@dataclass(frozen=True, slots=True)
class SubmitReport:
    """What became of submitted jobs. The numbers and the length of ``turned_away`` add up to how many there were.

    ``duplicates``: the same job id is known, or a job of the same key is queued or leased. ``turned_away``: the queue of their tier
    is full, by job id with the reason. Nothing is lost: what is missing can always be derived from the ledger again.
    """

    accepted: int = 0
    duplicates: int = 0
    turned_away: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """The queue's limits, each by tier where it says so.

    ``caps``: jobs queued; ``concurrency``: batches (Dagster runs) under way; ``dispatch_per_second``: jobs leased, with a burst of
    ``burst_seconds``. A job leased ``most_attempts`` times that has not ended is poison: dead. The n-th retry waits
    ``retry_seconds * 2**(n - 1)``.
    """

    caps: Mapping[Tier, int] = field(default_factory=lambda: MappingProxyType({Tier.T0: 5_000, Tier.T1: 10_000, Tier.T2: 20_000}))
    concurrency: Mapping[Tier, int] = field(default_factory=lambda: MappingProxyType({Tier.T0: 4, Tier.T1: 2, Tier.T2: 1}))
    dispatch_per_second: Mapping[Tier, float] = field(
        default_factory=lambda: MappingProxyType({Tier.T0: 20.0, Tier.T1: 10.0, Tier.T2: 5.0})
    )
    burst_seconds: float = 60.0
    lease_seconds: float = 120.0
    most_attempts: int = 5
    retry_seconds: float = 15.0
