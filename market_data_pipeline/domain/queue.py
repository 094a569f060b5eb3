"""The job queue's values: what a job is to the queue, its lease, its limits and how it may end. Pure; the table is in storage."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.universe import Tier

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

# As sql/0007_jobs.sql has it. No "/": what could not be read as a job has a name with one among the dead letters.
JOB_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)
# Of a job whose leases lapsed, the next batch is this many times smaller for each lapse: poison is alone before it is dead.
SMALLER_BATCHES = 4
LONGEST_RETRY_SECONDS = 3600.0
# refused/12: the twelfth payload that could not be read as a job.
REFUSED = "refused"
_REFUSED_ID = re.compile(rf"{REFUSED}/([0-9]{{1,18}})", re.ASCII)
# Of dead letters one call requeues or purges no more: a person who meant fewer should notice before all are gone.
MOST_AT_ONCE = 10_000


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

    def __post_init__(self) -> None:
        """Refuse an id that the table would refuse: there it would take the whole batch with it."""
        if not JOB_ID.fullmatch(self.job_id):
            raise InvalidInputError(f"{self.job_id!r} is no job id: expected 1-128 letters, digits and . _ : -")


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

    def retry_wait(self, attempts: int) -> float:
        """Seconds until a job that failed after so many leases is tried again; never more than an hour."""
        return float(min(self.retry_seconds * 2.0 ** min(attempts - 1, 32), LONGEST_RETRY_SECONDS))


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job as it stands in the table: what was submitted, how it did so far, and who has it."""

    job_id: str
    kind: JobKind
    tier: Tier
    priority: int
    dedupe_key: str
    payload: Mapping[str, Any]
    source: str
    state: JobState
    attempts: int
    lapses: int
    ready_at: datetime
    leased_by: str | None
    leased_until: datetime | None
    reason: str | None
    result: Mapping[str, Any] | None
    replays: int
    enqueued_at: datetime
    leased_at: datetime | None
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """How many jobs of a tier and kind are in a state, and since when the oldest is: seconds, by the database's clock."""

    tier: Tier
    kind: JobKind
    state: JobState
    jobs: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class Sorted:
    """Submitted jobs, sorted: into the queue, known already, or turned away with the reason."""

    accepted: tuple[NewJob, ...]
    duplicates: int
    turned_away: Mapping[str, str]


def sort_submitted(
    jobs: Sequence[NewJob], *, known_ids: Collection[str], open_keys: Collection[str], room: Mapping[Tier, int]
) -> Sorted:
    """Who of ``jobs`` may enter, in their order: no id twice, no key twice among the open ones, no more of a tier than its room.

    A job that does not enter takes neither its key nor room from those after it. One id is turned away once: it again is a
    duplicate.
    """
    ids, keys, left = set(known_ids), set(open_keys), dict(room)
    accepted: list[NewJob] = []
    turned_away: dict[str, str] = {}
    duplicates = 0
    for job in jobs:
        if job.job_id in ids or job.dedupe_key in keys:
            duplicates += 1
        elif job.job_id in turned_away:
            duplicates += 1  # the same job twice in one batch: one reason says it all
        elif left.get(job.tier, 0) <= 0:
            turned_away[job.job_id] = f"the queue of {job.tier} is full; what is missing is derived from the ledger again"
        else:
            accepted.append(job)
            ids.add(job.job_id)
            keys.add(job.dedupe_key)
            left[job.tier] -= 1
    return Sorted(tuple(accepted), duplicates, turned_away)


def batch_size(lapses: Sequence[int], *, limit: int, most_attempts: int) -> int:
    """How many of the next jobs, whose leases lapsed so often, may be given to one worker.

    A job that kills its workers takes those it shares a batch with along: their leases lapse too. So for each lapse of one of its
    jobs a batch is a fourth of the size, and a job that has one lease left is alone: the innocent end, and only poison dies.
    """
    size = limit
    for place, lapsed in enumerate(lapses):
        allowed = 1 if lapsed and lapsed >= most_attempts - 1 else max(limit // SMALLER_BATCHES**lapsed, 1)
        if place >= min(size, allowed):
            return place
        size = min(size, allowed)
    return min(size, len(lapses))


def refused_number(letter_id: str) -> int | None:
    """12 for "refused/12", None for the id of a job."""
    matched = _REFUSED_ID.fullmatch(letter_id)
    return int(matched[1]) if matched else None


def bounded(limit: int) -> int:
    """``limit`` where it may be of one call about many dead letters; InvalidInputError otherwise."""
    if not 1 <= limit <= MOST_AT_ONCE:
        raise InvalidInputError(f"a limit of {limit:,} dead letters: expected 1 to {MOST_AT_ONCE:,}; call again for more")
    return limit


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Which dead letters are meant; None for any. ``kind`` "refused": what could not be read as a job, which has no tier."""

    tier: Tier | None = None
    kind: str | None = None
    interval: str | None = None

    @property
    def takes_jobs(self) -> bool:
        """Whether dead jobs can be among them."""
        return self.kind != REFUSED

    @property
    def takes_refused(self) -> bool:
        """Whether payloads that are no jobs can be among them: where only what they lack is asked for, none."""
        return self.kind in {None, REFUSED} and self.tier is None and self.interval is None


@dataclass(frozen=True, slots=True)
class DeadGrowth:
    """How many dead letters there are, and (reason, how many) of those that became so lately, the most frequent first."""

    total: int
    reasons: Sequence[tuple[str, int]] = ()


ALL_DEAD_LETTERS = DeadLetterFilter()


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What ended without its effect and waits for a person: a dead job, or a payload that could not be read as one.

    ``payload``: a job's as JSON, the other as the text that came; of ``payload_bytes`` it may be the beginning only. Whatever is
    shown of it must be redacted: it came from outside.
    """

    letter_id: str
    kind: str
    tier: Tier | None
    interval: str | None
    source: str
    reason: str
    since: datetime
    attempts: int
    replays: int
    payload: Mapping[str, Any] | str
    payload_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class DeadStatistics:
    """How many dead letters of a tier, kind and interval there are, since when, and how many of them were replayed before."""

    tier: Tier | None
    kind: str
    interval: str | None
    letters: int
    oldest: datetime
    newest: datetime
    replayed: int


@dataclass(frozen=True, slots=True)
class RequeueReport:
    """What became of dead letters that were to be tried again: ``requeued``, or ``left`` as they were, with the reason."""

    requeued: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)
