"""The job queue in the table ``jobs``: who may enter, who works on what until when, how it ends, and the dead letters among them.

Every change is one transaction. Locks are taken in one order, so that nobody deadlocks: the right to open jobs (submitting and
requeueing), the rows of ``job_dispatch``, then jobs. The database's clock is the only one: a worker whose clock is wrong hurts
nobody.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING, Any

import orjson

from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.queue import (
    JobKind,
    JobRecord,
    JobState,
    Lease,
    QueueDepth,
    SubmitReport,
    batch_size,
    sort_submitted,
)
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.storage.bulk import transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from datetime import timedelta

    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - a class that psycopg2 spells in lower case
    from sqlalchemy import Engine

    from market_data_pipeline.domain.queue import NewJob, QueuePolicy

# One statement takes so many in: 30 ms, for which others who submit to the tier or lease from it wait.
SUBMITTED_AT_ONCE = 1_000
LAPSED_AT_ONCE = 5_000
PRUNED_AT_ONCE = 10_000

# Any number will do that no other user of the server's advisory locks takes.
_OPENING = int.from_bytes(hashlib.sha256(b"market_data_pipeline jobs").digest()[:8], signed=True)
# Whoever makes a job open that was not, one after the other: what is read of the open keys afterwards stays true until the end.
_OPEN = "set transaction isolation level read committed; select pg_advisory_xact_lock(%(opening)s)"

# The rows of some tiers, ours until the end of the transaction, with what may be given out now. clock_timestamp(): not before the
# rows are ours.
_TIERS = """
set transaction isolation level read committed;
select tier, queued, tokens, greatest(extract(epoch from clock_timestamp() - filled_at), 0)::float8
  from job_dispatch where tier = any(%(tiers)s) order by tier for update"""

_COUNT = """
update job_dispatch d
   set queued = greatest(d.queued + k.change, 0)
  from unnest(%(tiers)s::text[], %(changes)s::int8[]) as k (tier, change)
 where d.tier = k.tier"""

_DISPATCH = """
update job_dispatch
   set queued = greatest(queued + %(change)s, 0), tokens = %(tokens)s, filled_at = clock_timestamp()
 where tier = %(tier)s"""

_KNOWN = """
select array(select job_id from jobs where job_id = any(%(ids)s)),
       array(select dedupe_key from jobs where dedupe_key = any(%(keys)s) and state in ('queued', 'leased'))"""

_INSERT = """
insert into jobs (job_id, kind, tier, priority, dedupe_key, payload, source, ready_at)
select job_id, kind, tier, priority, dedupe_key, payload::jsonb, source, coalesce(ready_at, clock_timestamp())
  from unnest(%(job_id)s::text[], %(kind)s::text[], %(tier)s::text[], %(priority)s::int4[], %(dedupe_key)s::text[],
              %(payload)s::text[], %(source)s::text[], %(ready_at)s::timestamptz[])
    as k (job_id, kind, tier, priority, dedupe_key, payload, source, ready_at)"""

# statement_timestamp() where an index is searched: it does not change meanwhile, so the search can use it.
_LAPSE = """
with lapsed as (
  select job_id from jobs
   where tier = %(tier)s and state = 'leased' and leased_until <= statement_timestamp()
   order by leased_until limit %(most)s for update skip locked
)
update jobs j
   set state = case when j.attempts < %(most_attempts)s then 'queued' else 'dead' end,
       ended_at = case when j.attempts < %(most_attempts)s then null else statement_timestamp() end,
       reason = format('given out %%s times and not ended: %%s, the last to have it, fell silent', j.attempts, j.leased_by),
       lapses = j.lapses + 1, leased_by = null, leased_until = null
  from lapsed
 where j.job_id = lapsed.job_id
returning j.state"""

_NEXT = """
select job_id, lapses from jobs
 where tier = %(tier)s and state = 'queued' and ready_at <= statement_timestamp()
   and (%(kinds)s::text[] is null or kind = any(%(kinds)s))
 order by priority desc, enqueued_at, job_id
 limit %(limit)s for update skip locked"""

_LEASE = """
update jobs
   set state = 'leased', token = nextval('job_tokens'), attempts = attempts + 1, leased_by = %(worker)s,
       leased_at = statement_timestamp(), leased_until = statement_timestamp() + make_interval(secs => %(seconds)s)
 where job_id = any(%(ids)s) and state = 'queued'
returning job_id, token, kind, tier, payload, attempts, leased_until"""

# A job that is being completed is locked by whoever does that, for as long as its effect takes: it is still held, and is not waited
# for. A crash of the server may forget the last heartbeats; to wait for its disk would buy nothing.
_HEARTBEAT = """
set local synchronous_commit = off;
with held as (
  select j.job_id from jobs j join unnest(%(ids)s::text[], %(tokens)s::int8[]) as k (job_id, token) using (job_id, token)
   where j.state = 'leased'
), ours as (
  select j.job_id from jobs j join unnest(%(ids)s::text[], %(tokens)s::int8[]) as k (job_id, token) using (job_id, token)
   where j.state = 'leased' for no key update of j skip locked
), longer as (
  update jobs j set leased_until = greatest(j.leased_until, statement_timestamp() + make_interval(secs => %(seconds)s))
    from ours where j.job_id = ours.job_id
)
select job_id from held"""

_COMPLETE = """
with ours as (
  select j.job_id, k.result
    from jobs j
    join unnest(%(ids)s::text[], %(tokens)s::int8[], %(results)s::text[]) as k (job_id, token, result) using (job_id, token)
   where j.state = 'leased' order by j.job_id for no key update of j
)
update jobs j
   set state = 'done', ended_at = clock_timestamp(), result = ours.result::jsonb, reason = null,
       leased_by = null, leased_until = null
  from ours where j.job_id = ours.job_id
returning j.job_id"""

_RETRY = """
update jobs
   set state = 'queued', reason = %(reason)s, ready_at = clock_timestamp() + make_interval(secs => %(wait)s),
       leased_by = null, leased_until = null
 where job_id = %(job_id)s and token = %(token)s and state = 'leased'"""

_DIE = """
update jobs
   set state = 'dead', reason = %(reason)s, ended_at = clock_timestamp(), leased_by = null, leased_until = null
 where job_id = %(job_id)s and token = %(token)s and state = 'leased'"""

# Not worked on, so not an attempt.
_RELEASE = """
with ours as (
  select j.job_id from jobs j join unnest(%(ids)s::text[], %(tokens)s::int8[]) as k (job_id, token) using (job_id, token)
   where j.state = 'leased' order by j.job_id for no key update of j
)
update jobs j
   set state = 'queued', attempts = j.attempts - 1, leased_by = null, leased_until = null
  from ours where j.job_id = ours.job_id
returning j.tier"""

_STATE = "select state from jobs where job_id = %(job_id)s"

_COLUMNS = """job_id, kind, tier, priority, dedupe_key, payload, source, state, attempts, lapses, ready_at, leased_by, leased_until,
       reason, result, replays, enqueued_at, leased_at, ended_at"""

_JOB = f"select {_COLUMNS} from jobs where job_id = %(job_id)s"  # noqa: S608 - names of ours

_JOBS = f"""
select {_COLUMNS} from jobs
 where (%(state)s::text is null or state = %(state)s) and (%(tier)s::text is null or tier = %(tier)s)
   and (%(kind)s::text is null or kind = %(kind)s) and (%(interval)s::text is null or payload ->> 'interval' = %(interval)s)
 order by coalesce(ended_at, enqueued_at) desc, job_id limit %(limit)s"""  # noqa: S608 - names of ours

# The done are many and say nothing of the queue.
_DEPTH = """
select tier, kind, state, count(*), extract(epoch from statement_timestamp() - min(since))::float8
  from (select tier, kind, state, enqueued_at as since from jobs where state = 'queued'
        union all select tier, kind, state, leased_at from jobs where state = 'leased'
        union all select tier, kind, state, ended_at from jobs where state = 'dead') as k
 group by tier, kind, state order by tier, kind, state"""

_HOLDERS = """
select tier, count(distinct leased_by) from jobs
 where state = 'leased' and leased_until > statement_timestamp() group by tier"""

_PRUNE = """
with old as (
  select job_id from jobs where state = 'done' and ended_at < statement_timestamp() - %(older_than)s::interval
   order by ended_at limit %(most)s for update skip locked
)
delete from jobs j using old where j.job_id = old.job_id"""

_RECOUNT = """
update job_dispatch d
   set queued = k.found
  from (select t.tier, count(j.job_id) as found from job_dispatch t left join jobs j on j.tier = t.tier and j.state = 'queued'
         group by t.tier) as k
 where d.tier = k.tier and d.queued <> k.found
returning d.tier"""


class JobQueue:
    """``domain.queue`` over the table ``jobs``. Safe to use from several threads, each call a transaction of its own.

    Within ``policy``: a tier's queue is never filled above its cap (jobs that come back to it, after a lapse or a failure, are not
    turned away), and what is leased never exceeds its dispatch rate. Raises DatabaseUnreachableError where the database is gone:
    what was under way may have happened or not, and repeating it is safe.
    """

    def __init__(self, engine: Engine, policy: QueuePolicy) -> None:
        self._engine = engine
        self.policy = policy

    # --- in ------------------------------------------------------------------------------------------------------------

    def submit(self, jobs: Sequence[NewJob]) -> SubmitReport:
        """Put ``jobs`` into the queue, in their order; durable when this returns. Submitting again is safe: duplicates.

        A thousand in one transaction. InvalidInputError for a payload that no JSON column can hold, before any is stored.
        """
        texts = [_json_of(job.payload, job.job_id) for job in jobs]
        total = SubmitReport()
        for start in range(0, len(jobs), SUBMITTED_AT_ONCE):
            part = slice(start, start + SUBMITTED_AT_ONCE)
            with transaction(self._engine) as cursor:
                report = self._enter(cursor, jobs[part], texts[part])
            total = SubmitReport(
                total.accepted + report.accepted,
                total.duplicates + report.duplicates + len(total.turned_away.keys() & report.turned_away.keys()),
                {**total.turned_away, **report.turned_away},
            )
        return total

    def _enter(self, cursor: Cursor, jobs: Sequence[NewJob], texts: Sequence[str]) -> SubmitReport:
        cursor.execute(_OPEN, {"opening": _OPENING})
        room = self._room(cursor, {job.tier for job in jobs})
        cursor.execute(_KNOWN, {"ids": [job.job_id for job in jobs], "keys": [job.dedupe_key for job in jobs]})
        ((ids, keys),) = cursor.fetchall()
        told = sort_submitted(jobs, known_ids=ids, open_keys=keys, room=room)
        if told.accepted:
            text_of = {id(job): text for job, text in zip(jobs, texts, strict=True)}
            rows = [
                (j.job_id, j.kind, j.tier, j.priority, j.dedupe_key, text_of[id(j)], j.source, j.ready_at) for j in told.accepted
            ]
            names = ("job_id", "kind", "tier", "priority", "dedupe_key", "payload", "source", "ready_at")
            cursor.execute(
                _INSERT, {name: list(map(_plain, column)) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
            )
            self._count(cursor, Counter(job.tier for job in told.accepted))
        return SubmitReport(len(told.accepted), told.duplicates, told.turned_away)

    def _room(self, cursor: Cursor, tiers: Collection[Tier]) -> dict[Tier, int]:
        """How many more jobs each of these tiers takes; their rows are ours from now on."""
        cursor.execute(_TIERS, {"tiers": sorted(map(str, tiers))})
        return {Tier(tier): self.policy.caps[Tier(tier)] - queued for tier, queued, _, _ in cursor.fetchall()}

    def _count(self, cursor: Cursor, changes: Mapping[Tier, int]) -> None:
        """Note how many more (or fewer) jobs of each tier are queued. Their rows must be ours."""
        cursor.execute(_COUNT, {"tiers": list(map(str, changes)), "changes": list(changes.values())})

    # --- out -----------------------------------------------------------------------------------------------------------

    def lease(self, worker: str, *, tier: Tier, limit: int, kinds: Collection[JobKind] | None = None) -> list[Lease]:
        """The next jobs of ``tier`` for ``worker``, for ``lease_seconds``: at most ``limit``, and what the dispatch rate allows.

        Leases of the tier that lapsed are returned to the queue first, or to the dead letters after their last attempt. A batch is
        smaller where a job in it brought silence before (``domain.queue.batch_size``).
        """
        policy = self.policy
        rate = policy.dispatch_per_second[tier]
        with transaction(self._engine) as cursor:
            cursor.execute(_TIERS, {"tiers": [str(tier)]})
            ((_, _, tokens, elapsed),) = cursor.fetchall()
            # A rate below one in a burst still gives one out now and then.
            tokens = min(tokens + rate * elapsed, max(rate * policy.burst_seconds, 1.0))
            cursor.execute(_LAPSE, {"tier": str(tier), "most": LAPSED_AT_ONCE, "most_attempts": policy.most_attempts})
            returned = sum(state == JobState.QUEUED for (state,) in cursor.fetchall())
            wanted = min(limit, int(tokens))
            leases = self._take(cursor, worker, tier, wanted, kinds) if wanted > 0 else []
            if leases or returned:
                change = {"tier": str(tier), "change": returned - len(leases), "tokens": tokens - len(leases)}
                cursor.execute(_DISPATCH, change)
        return leases

    def _take(self, cursor: Cursor, worker: str, tier: Tier, wanted: int, kinds: Collection[JobKind] | None) -> list[Lease]:
        named = None if kinds is None else list(map(str, kinds))
        cursor.execute(_NEXT, {"tier": str(tier), "kinds": named, "limit": wanted})
        waiting = cursor.fetchall()
        size = batch_size([lapses for _, lapses in waiting], limit=wanted, most_attempts=self.policy.most_attempts)
        ids = [job_id for job_id, _ in waiting[:size]]
        if not ids:
            return []
        cursor.execute(_LEASE, {"ids": ids, "worker": worker, "seconds": self.policy.lease_seconds})
        leased = {row[0]: row for row in cursor.fetchall()}
        found = (leased[job_id] for job_id in ids)
        return [
            Lease(job_id, token, JobKind(kind), Tier(of), payload, attempts, until)
            for job_id, token, kind, of, payload, attempts, until in found
        ]

    def heartbeat(self, leases: Sequence[Lease]) -> frozenset[str]:
        """Hold on for another ``lease_seconds``; the ids of the jobs that are still held. The others belong to somebody else."""
        with transaction(self._engine) as cursor:
            cursor.execute(_HEARTBEAT, {**_named(leases), "seconds": self.policy.lease_seconds})
            return frozenset(job_id for (job_id,) in cursor.fetchall())

    def under_way(self) -> dict[Tier, int]:
        """How many workers hold jobs of each tier now, by leases that have not lapsed."""
        with transaction(self._engine) as cursor:
            cursor.execute(_HOLDERS)
            found = {Tier(tier): workers for tier, workers in cursor.fetchall()}
        return {tier: found.get(tier, 0) for tier in Tier}

    # --- ended ---------------------------------------------------------------------------------------------------------

    def complete(
        self, lease: Lease, *, result: Mapping[str, Any] | None = None, effect: Callable[[Cursor], object] | None = None
    ) -> bool:
        """The job is done; False where the lease was lost: then nothing happened.

        ``effect`` runs in the same transaction, which holds the job: it and the job's end happen both or not at all, once. A lease
        that ran out of time but that nobody took since is still good.
        """
        done = self.complete_all(
            [lease], results={lease.job_id: result or {}}, effect=None if effect is None else lambda cursor, _: effect(cursor)
        )
        return bool(done)

    def complete_all(
        self,
        leases: Sequence[Lease],
        *,
        results: Mapping[str, Mapping[str, Any]] | None = None,
        effect: Callable[[Cursor, Sequence[Lease]], object] | None = None,
    ) -> frozenset[str]:
        """Complete many in one transaction; the ids of those that were ours. ``effect`` is given their leases, if there are any."""
        texts = [_json_of((results or {}).get(lease.job_id, {}), lease.job_id) for lease in leases]
        with transaction(self._engine) as cursor:
            cursor.execute(_COMPLETE, {**_named(leases), "results": texts})
            done = frozenset(job_id for (job_id,) in cursor.fetchall())
            if effect is not None and done:
                effect(cursor, [lease for lease in leases if lease.job_id in done])
        return done

    def fail(self, lease: Lease, reason: str, *, is_final: bool = False) -> JobState:
        """The job did not work out: it waits for its next attempt, or is dead where that was the last or there is no use in one.

        The state it is in now, whatever that is where the lease was lost; dead where the job is no longer there. ``reason`` is kept
        and shown: no secret may be in it.
        """
        policy = self.policy
        ended = is_final or lease.attempts >= policy.most_attempts
        named = {"job_id": lease.job_id, "token": lease.token, "reason": storable(reason)}
        with transaction(self._engine) as cursor:
            if ended:
                cursor.execute(_DIE, named)
            else:
                self._room(cursor, {lease.tier})
                cursor.execute(_RETRY, {**named, "wait": policy.retry_wait(lease.attempts)})
                if cursor.rowcount:
                    self._count(cursor, {lease.tier: 1})
            cursor.execute(_STATE, named)
            found = cursor.fetchone()
        return JobState(found[0]) if found else JobState.DEAD

    def release(self, leases: Sequence[Lease]) -> int:
        """Give back what was not worked on, at once and without counting as an attempt; how many were still held."""
        if not leases:
            return 0
        with transaction(self._engine) as cursor:
            self._room(cursor, {lease.tier for lease in leases})
            cursor.execute(_RELEASE, _named(leases))
            returned = Counter(Tier(tier) for (tier,) in cursor.fetchall())
            if returned:
                self._count(cursor, returned)
        return returned.total()

    # --- asked ---------------------------------------------------------------------------------------------------------

    def depth(self) -> list[QueueDepth]:
        """What is queued, leased and dead, by tier and kind; nothing of what is done."""
        with transaction(self._engine) as cursor:
            cursor.execute(_DEPTH)
            return [QueueDepth(Tier(t), JobKind(k), JobState(s), jobs, oldest) for t, k, s, jobs, oldest in cursor.fetchall()]

    def job(self, job_id: str) -> JobRecord | None:
        """The job called ``job_id``; None where there is none, or no longer."""
        with transaction(self._engine) as cursor:
            cursor.execute(_JOB, {"job_id": storable(job_id)})
            found = cursor.fetchone()
        return None if found is None else _record(found)

    def jobs(
        self,
        *,
        state: JobState | None = None,
        tier: Tier | None = None,
        kind: JobKind | None = None,
        interval: str | None = None,
        limit: int,
    ) -> list[JobRecord]:
        """At most ``limit`` jobs, None for any; the newest first."""
        named = {"state": _plain(state), "tier": _plain(tier), "kind": _plain(kind), "interval": interval, "limit": limit}
        with transaction(self._engine) as cursor:
            cursor.execute(_JOBS, named)
            return [_record(row) for row in cursor.fetchall()]

    # --- kept in order -------------------------------------------------------------------------------------------------

    def prune_done(self, older_than: timedelta) -> int:
        """Forget what was done longer ago; how many. Until then a job that comes again under the same id is a duplicate."""
        total = 0
        while True:
            with transaction(self._engine) as cursor:
                cursor.execute(_PRUNE, {"older_than": older_than, "most": PRUNED_AT_ONCE})
                pruned = cursor.rowcount
            total += pruned
            if pruned < PRUNED_AT_ONCE:
                return total

    def recount(self) -> tuple[Tier, ...]:
        """Count the queued jobs and correct the numbers that caps are held against; the tiers where they were wrong.

        They never are, but where somebody changed the table by hand.
        """
        with transaction(self._engine) as cursor:
            self._room(cursor, set(Tier))
            cursor.execute(_RECOUNT)
            return tuple(sorted(Tier(tier) for (tier,) in cursor.fetchall()))


def storable(text: str) -> str:
    """``text`` without what Postgres' text cannot hold: NUL and half a surrogate pair."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode("utf-8")


def _plain(value: object) -> object:
    """Enumerations as text: psycopg2 knows no subclass of it."""
    return str(value) if isinstance(value, str) else value


def _json_of(value: Mapping[str, Any], job_id: str) -> str:
    try:
        text = orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError as unwritable:
        raise InvalidInputError(f"job {job_id}: what it carries cannot be written as JSON ({unwritable})") from None
    if "\\u0000" in text:
        raise InvalidInputError(f"job {job_id}: what it carries holds a NUL character, which Postgres cannot store")
    return text


def _named(leases: Sequence[Lease]) -> dict[str, list[Any]]:
    return {"ids": [lease.job_id for lease in leases], "tokens": [lease.token for lease in leases]}


def _record(row: Sequence[Any]) -> JobRecord:
    job_id, kind, tier, priority, key, payload, source, state, *rest = row
    return JobRecord(job_id, JobKind(kind), Tier(tier), priority, key, payload, source, JobState(state), *rest)
