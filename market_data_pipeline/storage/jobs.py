"""The job queue in the table ``jobs``: who may enter, who works on what until when, how it ends, and the dead letters among them.

Every change is one transaction. Locks are taken in one order, so that nobody deadlocks: the right to open jobs (submitting and
requeueing), the rows of ``job_dispatch``, then jobs. The database's clock is the only one: a worker whose clock is wrong hurts
nobody.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from dataclasses import asdict, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import orjson

from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.jobs import MOST_BYTES, as_new_job, parse_job
from market_data_pipeline.domain.queue import (
    ALL_DEAD_LETTERS,
    MOST_AT_ONCE,
    DeadGrowth,
    DeadLetter,
    DeadLetterFilter,
    DeadStatistics,
    JobKind,
    JobRecord,
    JobState,
    Lease,
    QueueDepth,
    RequeueReport,
    SubmitReport,
    batch_size,
    bounded,
    refused_number,
    sort_submitted,
)
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.storage.audit import record
from market_data_pipeline.storage.bulk import transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - a class that psycopg2 spells in lower case
    from sqlalchemy import Engine

    from market_data_pipeline.domain.jobs import Job
    from market_data_pipeline.domain.queue import NewJob, QueuePolicy

logger = logging.getLogger(__name__)

# One statement takes so many in: 30 ms, for which others who submit to the tier or lease from it wait.
SUBMITTED_AT_ONCE = 1_000
LAPSED_AT_ONCE = 5_000
PRUNED_AT_ONCE = 10_000
NAMED_IN_AUDIT = 100

# Any number will do that no other user of the server's advisory locks takes.
_OPENING = int.from_bytes(hashlib.sha256(b"market_data_pipeline jobs").digest()[:8], signed=True)
# Whoever makes a job open that was not, one after the other: what is read of the open keys afterwards stays true until the end.
# And whoever stops in the midst of it (SIGSTOP, a host that sleeps) loses his transaction: otherwise everybody would wait for him.
_BRIEFLY = "set transaction isolation level read committed; set local idle_in_transaction_session_timeout = '5s';"
_OPEN = f"{_BRIEFLY} select pg_advisory_xact_lock(%(opening)s)"

# The rows of some tiers, ours until the end of the transaction, with what may be given out now. clock_timestamp(): not before the
# rows are ours.
_TIERS = f"""
{_BRIEFLY}
select tier, queued, tokens, greatest(extract(epoch from clock_timestamp() - filled_at), 0)::float8
  from job_dispatch where tier = any(%(tiers)s) order by tier for update"""  # noqa: S608 - a constant of ours

_COUNT = """
update job_dispatch d
   set queued = greatest(d.queued + k.change, 0), enqueued = d.enqueued + k.new
  from unnest(%(tiers)s::text[], %(changes)s::int8[], %(new)s::int8[]) as k (tier, change, new)
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

# Counted in the statement that ends them (sql/0011_metrics.sql).
_ENDED_AS = "tier, kind, payload ->> 'provider_hint' as hint, state"
_ENDED = "count_ended_jobs(array_agg(tier), array_agg(kind), array_agg(hint), array_agg(state))"

# statement_timestamp() where an index is searched: it does not change meanwhile, so the search can use it.
_LAPSE = f"""
with lapsed as (
  select job_id from jobs
   where tier = %(tier)s and state = 'leased' and leased_until <= statement_timestamp()
   order by leased_until limit %(most)s for update skip locked
), ended as (
  update jobs j
     set state = case when j.attempts < %(most_attempts)s then 'queued' else 'dead' end,
         ended_at = case when j.attempts < %(most_attempts)s then null else statement_timestamp() end,
         reason = format('given out %%s times and not ended: %%s, the last to have it, fell silent', j.attempts, j.leased_by),
         lapses = j.lapses + 1, leased_by = null, leased_until = null
    from lapsed
   where j.job_id = lapsed.job_id
  returning {_ENDED_AS}
)
select count(*) filter (where state = 'queued'), {_ENDED} from ended"""  # noqa: S608 - text of ours

_NEXT = """
select job_id, lapses from jobs
 where tier = %(tier)s and state = 'queued' and ready_at <= statement_timestamp()
   and (%(kinds)s::text[] is null or kind = any(%(kinds)s))
 order by priority desc, enqueued_at, job_id
 limit %(limit)s for update skip locked"""

# They are queued and locked by us. To say so again would let the planner walk all that is queued where it lacks statistics.
_LEASE = """
update jobs
   set state = 'leased', token = nextval('job_tokens'), attempts = attempts + 1, leased_by = %(worker)s,
       leased_at = statement_timestamp(), leased_until = statement_timestamp() + make_interval(secs => %(seconds)s)
 where job_id = any(%(ids)s)
returning job_id, token, kind, tier, payload, attempts, leased_until"""

_HELD = """
select job_id, token, kind, tier, payload, attempts, leased_until from jobs
 where state = 'leased' and leased_by = %(worker)s
 order by priority desc, enqueued_at, job_id"""

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

_COMPLETE = f"""
with ours as (
  select j.job_id, k.result
    from jobs j
    join unnest(%(ids)s::text[], %(tokens)s::int8[], %(results)s::text[]) as k (job_id, token, result) using (job_id, token)
   where j.state = 'leased' order by j.job_id for no key update of j
), ended as (
  update jobs j
     set state = 'done', ended_at = clock_timestamp(), result = ours.result::jsonb, reason = null,
         leased_by = null, leased_until = null
    from ours where j.job_id = ours.job_id
  returning j.job_id, {_ENDED_AS}
)
select coalesce(array_agg(job_id), '{{}}'), {_ENDED} from ended"""  # noqa: S608 - text of ours

_RETRY = """
update jobs
   set state = 'queued', reason = %(reason)s, ready_at = clock_timestamp() + make_interval(secs => %(wait)s),
       leased_by = null, leased_until = null
 where job_id = %(job_id)s and token = %(token)s and state = 'leased'"""

_DIE = f"""
with ended as (
  update jobs
     set state = 'dead', reason = %(reason)s, ended_at = clock_timestamp(), leased_by = null, leased_until = null
   where job_id = %(job_id)s and token = %(token)s and state = 'leased'
  returning {_ENDED_AS}
)
select count(*), {_ENDED} from ended"""  # noqa: S608 - text of ours

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

_PRUNE = """
with old as (
  select job_id from jobs where state = 'done' and ended_at < statement_timestamp() - %(older_than)s::interval
   order by ended_at limit %(most)s for update skip locked
)
delete from jobs j using old where j.job_id = old.job_id"""

# A payload that comes again, from the same source, is the same dead letter.
_REFUSE = """
insert into refused_jobs (source, payload, payload_sha256, payload_bytes, reason)
values (%(source)s, %(payload)s, %(sha256)s, %(bytes)s, %(reason)s)
on conflict (source, payload_sha256) do update set reason = excluded.reason, refused_at = excluded.refused_at
returning refused_id"""

_IS_MEANT = """
   and (%(tier)s::text is null or tier = %(tier)s) and (%(kind)s::text is null or kind = %(kind)s)
   and (%(interval)s::text is null or payload ->> 'interval' = %(interval)s)"""

_DEAD_JOBS = f"""
select job_id, kind, tier, payload ->> 'interval', source, reason, ended_at, attempts, replays, payload, null
  from jobs
 where state = 'dead' and (%(job_id)s::text is null or job_id = %(job_id)s) {_IS_MEANT}"""  # noqa: S608 - text of ours

_REFUSED_JOBS = """
select 'refused/' || refused_id, 'refused', null, null, source, reason, refused_at, 0, 0, payload, payload_bytes
  from refused_jobs
 where (%(refused_id)s::int8 is null or refused_id = %(refused_id)s)"""

_LOCK, _LOCK_ONE = " for update skip locked", " for update"
_OLDEST_DEAD = " order by ended_at, job_id limit %(limit)s"
_NEWEST_DEAD = " order by ended_at desc, job_id limit %(limit)s"
_OLDEST_REFUSED = " order by refused_at, refused_id limit %(limit)s"
_NEWEST_REFUSED = " order by refused_at desc, refused_id limit %(limit)s"

# As if it had been submitted now: it may have a key of a newer release, and stands behind those that waited meanwhile.
_REQUEUE = """
update jobs j
   set state = 'queued', attempts = 0, lapses = 0, reason = null, ended_at = null, replays = replays + 1,
       kind = k.kind, tier = k.tier, dedupe_key = k.dedupe_key, payload = k.payload::jsonb, priority = k.priority,
       enqueued_at = clock_timestamp(), ready_at = clock_timestamp()
  from unnest(%(job_id)s::text[], %(kind)s::text[], %(tier)s::text[], %(dedupe_key)s::text[], %(payload)s::text[],
              %(priority)s::int4[])
    as k (job_id, kind, tier, dedupe_key, payload, priority)
 where j.job_id = k.job_id and j.state = 'dead'"""

_FORGET_REFUSED = "delete from refused_jobs where refused_id = any(%(ids)s)"
_FORGET_DEAD = "delete from jobs where job_id = any(%(ids)s) and state = 'dead'"

_OLD = " and ended_at < statement_timestamp() - %(older_than)s::interval"
_OLD_REFUSED = " and refused_at < statement_timestamp() - %(older_than)s::interval"

_DEAD_STATISTICS = """
select tier, kind, payload ->> 'interval', count(*), min(ended_at), max(ended_at), count(*) filter (where replays > 0)
  from jobs where state = 'dead' group by 1, 2, 3
union all
select null, 'refused', null, count(*), min(refused_at), max(refused_at), 0 from refused_jobs having count(*) > 0
 order by 1, 2, 3"""

_DEAD_TOTAL = "select (select count(*) from jobs where state = 'dead') + (select count(*) from refused_jobs)"

_DEAD_LATELY = """
select left(reason, 300), count(*) from (
  select reason from jobs where state = 'dead' and ended_at > statement_timestamp() - %(within)s::interval
  union all
  select reason from refused_jobs where refused_at > statement_timestamp() - %(within)s::interval) as lately
 group by 1 order by 2 desc, 1 limit 100"""

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
            # By object: of two with one id the second may be the one that enters, when the first's work is open already.
            text_of = {id(job): text for job, text in zip(jobs, texts, strict=True)}
            cursor.execute(_INSERT, _columns(told.accepted, [text_of[id(job)] for job in told.accepted]))
            entered = Counter(job.tier for job in told.accepted)
            self._count(cursor, entered, new=entered)
        return SubmitReport(len(told.accepted), told.duplicates, told.turned_away)

    def _room(self, cursor: Cursor, tiers: Collection[Tier]) -> dict[Tier, int]:
        """How many more jobs each of these tiers takes; their rows are ours from now on."""
        cursor.execute(_TIERS, {"tiers": sorted(map(str, tiers))})
        return {Tier(tier): self.policy.caps[Tier(tier)] - queued for tier, queued, _, _ in cursor.fetchall()}

    def _count(self, cursor: Cursor, changes: Mapping[Tier, int], *, new: Mapping[Tier, int] | None = None) -> None:
        """Note how many more (or fewer) jobs of each tier are queued, and how many of them never were. Their rows must be ours."""
        entered = [(new or {}).get(tier, 0) for tier in changes]
        cursor.execute(_COUNT, {"tiers": list(map(str, changes)), "changes": list(changes.values()), "new": entered})

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
            ((returned, _),) = cursor.fetchall()
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

    def held(self, worker: str) -> list[Lease]:
        """What ``worker`` was leased and has neither ended nor lost, in the order in which it was given out.

        For a worker that was leased its jobs by somebody else: a Dagster run by the sensor that asked for it.
        """
        with transaction(self._engine) as cursor:
            cursor.execute(_HELD, {"worker": worker})
            return [
                Lease(job_id, token, JobKind(kind), Tier(of), payload, attempts, until)
                for job_id, token, kind, of, payload, attempts, until in cursor.fetchall()
            ]

    def heartbeat(self, leases: Sequence[Lease]) -> frozenset[str]:
        """Hold on for another ``lease_seconds``; the ids of the jobs that are still held. The others belong to somebody else."""
        with transaction(self._engine) as cursor:
            cursor.execute(_HEARTBEAT, {**_named(leases), "seconds": self.policy.lease_seconds})
            return frozenset(job_id for (job_id,) in cursor.fetchall())

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
            ((ids, _),) = cursor.fetchall()
            done = frozenset(ids)
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

    # --- dead letters --------------------------------------------------------------------------------------------------

    def refuse(self, source: str, payload: str | bytes, reason: str) -> int:
        """Keep what ``source`` sent and nobody can read as a job; its number: it is the dead letter refused/NUMBER from now on.

        The same payload from the same source again is the same letter. Of one longer than any job the beginning is kept.
        """
        raw = payload if isinstance(payload, bytes) else payload.encode("utf-8", "surrogatepass")
        kept = raw[:MOST_BYTES].decode("utf-8", "replace")
        given = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw), "payload": storable(kept)}
        with transaction(self._engine) as cursor:
            cursor.execute(_REFUSE, {"source": source, "reason": storable(reason), **given})
            ((refused_id,),) = cursor.fetchall()
        return int(refused_id)

    def dead_letters(self, meant: DeadLetterFilter = ALL_DEAD_LETTERS, *, limit: int) -> list[DeadLetter]:
        """At most ``limit`` of what waits for a person, the newest first."""
        with transaction(self._engine) as cursor:
            found = self._dead(cursor, meant, limit, jobs=_NEWEST_DEAD, refused=_NEWEST_REFUSED)
        return sorted(found, key=lambda letter: letter.since, reverse=True)[:limit]

    def dead_letter(self, letter_id: str) -> DeadLetter | None:
        """The dead letter called so: the id of a dead job, or refused/NUMBER."""
        with transaction(self._engine) as cursor:
            return self._letter(cursor, letter_id)

    def dead_statistics(self) -> list[DeadStatistics]:
        """How many dead letters there are by tier, kind and interval."""
        with transaction(self._engine) as cursor:
            cursor.execute(_DEAD_STATISTICS)
            return [DeadStatistics(None if tier is None else Tier(tier), *rest) for tier, *rest in cursor.fetchall()]

    def dead_growth(self, *, within: timedelta) -> DeadGrowth:
        """How many dead letters there are, and why those of the last while became so."""
        with transaction(self._engine) as cursor:
            cursor.execute(_DEAD_TOTAL)
            [(total,)] = cursor.fetchall()
            cursor.execute(_DEAD_LATELY, {"within": within})
            return DeadGrowth(total, cursor.fetchall())

    def requeue(self, letter_id: str, *, actor: str) -> RequeueReport:
        """Try a dead letter again, judged anew and with all its attempts; asking twice requeues once.

        Left as it is, with the reason: what is queued, leased or done already, what can still not be read as a job, and what its
        queue has no room for. InvalidInputError for an id that nothing has.
        """
        with transaction(self._engine) as cursor:
            room = self._opening(cursor)
            letter = self._letter(cursor, letter_id, lock=True)
            report = self._why_not(cursor, letter_id) if letter is None else self._replay(cursor, [letter], room)
            record(cursor, actor, "dlq.requeue", letter_id, _told(report))
        return report

    def requeue_all(
        self,
        *,
        tier: Tier | None,
        limit: int,
        actor: str,
        kind: str | None = None,
        interval: str | None = None,
        is_dry_run: bool = False,
    ) -> RequeueReport:
        """Try up to ``limit`` dead letters again, the oldest first, as ``requeue`` does each; None for any.

        A dry run says what would become of them and changes nothing. InvalidInputError for more than ``MOST_AT_ONCE``.
        """
        meant = DeadLetterFilter(tier, kind, interval)
        with transaction(self._engine) as cursor:
            room = self._opening(cursor)
            letters = self._dead(cursor, meant, bounded(limit), jobs=_OLDEST_DEAD + _LOCK, refused=_OLDEST_REFUSED + _LOCK)[:limit]
            report = self._replay(cursor, letters, room, is_dry_run=is_dry_run)
            if not is_dry_run:
                record(cursor, actor, "dlq.requeue_all", _words(meant), {"limit": limit, **_told(report)})
        return report

    def delete(self, letter_id: str, *, actor: str) -> DeadLetter:
        """Forget a dead letter for good; what it was. InvalidInputError where none has this name: nothing else is deleted."""
        with transaction(self._engine) as cursor:
            letter = self._letter(cursor, letter_id, lock=True)
            if letter is None:
                why = self._why_not(cursor, letter_id).left[letter_id]
                raise InvalidInputError(f"{letter_id} {why}: only dead letters can be deleted, see `mdp dlq list`")
            self._forget(cursor, [letter])
            detail = {"kind": letter.kind, "tier": letter.tier, "interval": letter.interval, "source": letter.source}
            record(cursor, actor, "dlq.delete", letter_id, detail)
        return letter

    def purge(
        self,
        *,
        older_than: timedelta,
        actor: str,
        meant: DeadLetterFilter = ALL_DEAD_LETTERS,
        limit: int = MOST_AT_ONCE,
        is_dry_run: bool = False,
    ) -> tuple[str, ...]:
        """Forget dead letters that are older, the oldest first; which. A dry run says which and changes nothing."""
        old = {"older_than": older_than}
        with transaction(self._engine) as cursor:
            jobs, refused = _OLD + _OLDEST_DEAD + _LOCK, _OLD_REFUSED + _OLDEST_REFUSED + _LOCK
            letters = self._dead(cursor, meant, bounded(limit), jobs=jobs, refused=refused, **old)[:limit]
            if not is_dry_run:
                self._forget(cursor, letters)
                detail = {
                    "older_than_days": older_than / timedelta(days=1),
                    "purged": _some(letter.letter_id for letter in letters),
                }
                record(cursor, actor, "dlq.purge", _words(meant), detail)
        return tuple(letter.letter_id for letter in letters)

    def _opening(self, cursor: Cursor) -> dict[Tier, int]:
        """From now on nobody else makes a job open; how many more each tier takes."""
        cursor.execute(_OPEN, {"opening": _OPENING})
        return self._room(cursor, set(Tier))

    def _dead(
        self, cursor: Cursor, meant: DeadLetterFilter, limit: int, *, jobs: str, refused: str, **more: object
    ) -> list[DeadLetter]:
        """Dead jobs, then what was refused; up to ``limit`` of each. ``jobs`` and ``refused`` end the statements."""
        named = {**asdict(meant), "tier": _plain(meant.tier), "limit": limit, "job_id": None, "refused_id": None, **more}
        found: list[DeadLetter] = []
        if meant.takes_jobs:
            cursor.execute(_DEAD_JOBS + jobs, named)
            found += map(_letter, cursor.fetchall())
        if meant.takes_refused:
            cursor.execute(_REFUSED_JOBS + refused, named)
            found += map(_letter, cursor.fetchall())
        return found

    def _letter(self, cursor: Cursor, letter_id: str, *, lock: bool = False) -> DeadLetter | None:
        number, suffix = refused_number(letter_id), _LOCK_ONE if lock else ""
        if number is None:
            named = {"job_id": storable(letter_id), "tier": None, "kind": None, "interval": None}
            cursor.execute(_DEAD_JOBS + suffix, named)
        else:
            cursor.execute(_REFUSED_JOBS + suffix, {"refused_id": number})
        found = cursor.fetchone()
        return None if found is None else _letter(found)

    def _why_not(self, cursor: Cursor, letter_id: str) -> RequeueReport:
        """Why ``letter_id`` is no dead letter; InvalidInputError where nothing has this id."""
        if refused_number(letter_id) is not None:
            return RequeueReport(left={letter_id: "is not among the dead letters: it was requeued or deleted before"})
        cursor.execute(_STATE, {"job_id": storable(letter_id)})
        found = cursor.fetchone()
        if found is None:
            raise InvalidInputError(f"no dead letter and no job is called {letter_id!r}: see `mdp dlq list`")
        return RequeueReport(left={letter_id: f"is {found[0]} already"})

    def _replay(
        self, cursor: Cursor, letters: Sequence[DeadLetter], room: Mapping[Tier, int], *, is_dry_run: bool = False
    ) -> RequeueReport:
        left: dict[str, str] = {}
        judged: dict[str, NewJob] = {}  # by the id of the job
        letter_of: dict[str, str] = {}
        for letter in letters:
            try:
                job = as_new_job(_read_again(letter), source=letter.source)
            except InvalidInputError as wrong:
                left[letter.letter_id] = f"still cannot be carried out: {wrong}"
                continue
            if refused_number(letter.letter_id) is None:
                job = replace(job, job_id=letter.letter_id)
            if job.job_id in judged:
                left[letter.letter_id] = f"is {letter_of[job.job_id]} again"
            else:
                judged[job.job_id], letter_of[job.job_id] = job, letter.letter_id
        # A dead job's own id is known, and no reason to leave it.
        read = {job_id for job_id, name in letter_of.items() if refused_number(name) is not None}
        cursor.execute(_KNOWN, {"ids": list(read), "keys": [job.dedupe_key for job in judged.values()]})
        ((known, open_keys),) = cursor.fetchall()
        told = sort_submitted(list(judged.values()), known_ids=known, open_keys=open_keys, room=room)
        entered = {job.job_id for job in told.accepted}
        for job_id, name in letter_of.items():
            if job_id not in entered:
                already = f"a job called {job_id} is there already" if job_id in known else "another job that does the same is open"
                left[name] = told.turned_away.get(job_id, already)
        if told.accepted and not is_dry_run:
            for statement, chosen in (
                (_REQUEUE, [job for job in told.accepted if job.job_id not in read]),
                (_INSERT, [job for job in told.accepted if job.job_id in read]),
            ):
                cursor.execute(statement, _columns(chosen, [_json_of(job.payload, job.job_id) for job in chosen]))
            cursor.execute(_FORGET_REFUSED, {"ids": [refused_number(letter_of[job_id]) for job_id in read & entered]})
            new = Counter(job.tier for job in told.accepted if job.job_id in read)
            self._count(cursor, Counter(job.tier for job in told.accepted), new=new)
        return RequeueReport(tuple(letter_of[job.job_id] for job in told.accepted), left)

    def _forget(self, cursor: Cursor, letters: Sequence[DeadLetter]) -> None:
        numbers = [refused_number(letter.letter_id) for letter in letters]
        cursor.execute(_FORGET_DEAD, {"ids": [letter.letter_id for letter in letters if refused_number(letter.letter_id) is None]})
        cursor.execute(_FORGET_REFUSED, {"ids": [number for number in numbers if number is not None]})

    # --- kept in order -------------------------------------------------------------------------------------------------

    def prune_done(self, older_than: timedelta) -> int:
        """Forget what was done longer ago; how many. Until then a job that comes again under the same id is a duplicate.

        The queued are counted again with it (``recount``): this is what runs every night.
        """
        total = 0
        while True:
            with transaction(self._engine) as cursor:
                cursor.execute(_PRUNE, {"older_than": older_than, "most": PRUNED_AT_ONCE})
                pruned = cursor.rowcount
            total += pruned
            if pruned < PRUNED_AT_ONCE:
                break
        if wrong := self.recount():
            logger.warning(
                "the number of queued jobs of %s was wrong: did somebody change the table jobs by hand?", ", ".join(wrong)
            )
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


def _columns(jobs: Sequence[NewJob], texts: Sequence[str]) -> dict[str, list[Any]]:
    """The columns of ``jobs`` as arrays. ``texts``: their payloads as JSON."""
    return {
        "job_id": [job.job_id for job in jobs],
        "kind": [str(job.kind) for job in jobs],
        "tier": [str(job.tier) for job in jobs],
        "priority": [job.priority for job in jobs],
        "dedupe_key": [job.dedupe_key for job in jobs],
        "payload": list(texts),
        "source": [job.source for job in jobs],
        "ready_at": [job.ready_at for job in jobs],
    }


def _named(leases: Sequence[Lease]) -> dict[str, list[Any]]:
    return {"ids": [lease.job_id for lease in leases], "tokens": [lease.token for lease in leases]}


def _record(row: Sequence[Any]) -> JobRecord:
    job_id, kind, tier, priority, key, payload, source, state, *rest = row
    return JobRecord(job_id, JobKind(kind), Tier(tier), priority, key, payload, source, JobState(state), *rest)


def _letter(row: Sequence[Any]) -> DeadLetter:
    letter_id, kind, tier, *rest = row
    return DeadLetter(letter_id, kind, None if tier is None else Tier(tier), *rest)


def _read_again(letter: DeadLetter) -> Job:
    """The job in it, by the rules of today."""
    kept = letter.payload
    if isinstance(kept, str) and letter.payload_bytes is not None and letter.payload_bytes > MOST_BYTES:
        raise InvalidInputError(f"of its {letter.payload_bytes:,} bytes only the first {MOST_BYTES:,} were kept: no job is so long")
    return parse_job(kept)


def _told(report: RequeueReport) -> dict[str, Any]:
    return {"requeued": _some(report.requeued), "left": _some(report.left)}


def _some(ids: Iterable[str]) -> dict[str, Any]:
    """How many, and the names of the first: an entry of the audit log stays readable."""
    named = list(ids)
    return {"count": len(named), "first": named[:NAMED_IN_AUDIT]}


def _words(meant: DeadLetterFilter) -> str:
    return " ".join(f"{name}={value}" for name, value in asdict(meant).items() if value is not None) or "all"
