"""The health of every provider, shared by all processes and outliving them: read often, written little, folded under a lock."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from psycopg2.extras import execute_batch, execute_values

from market_data_pipeline.domain.health import (
    ADMITTED,
    UNDECIDED,
    Admission,
    Breaker,
    HealthPolicy,
    ProviderHealth,
    events,
    kinds_of_incident,
)
from market_data_pipeline.storage.bulk import transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - a class that psycopg2 names like a function
    from sqlalchemy import Engine

    from market_data_pipeline.domain.health import HealthEvent, Outcome

Key = tuple[str, str]
"""(provider, capability)."""

logger = logging.getLogger(__name__)

# How old a decision may be, and how long a success may wait to be written: of real time.
SNAPSHOT_SECONDS = 1.0
BATCH_SECONDS = 1.0

# How fine the past is kept, and for how long.
RESOLUTIONS = {10: timedelta(days=1), 60: timedelta(days=7), 3600: timedelta(days=365)}

# A trial whose process died is nobody's: what reads the row may give it away again.
_READ = """
select breaker, failures_in_row, opened_at, disabled_at, disabled_until, reason, is_demoted, good_samples, error, completeness,
       latencies, samples, sampled_at, is_on_trial and trial_expires_at > clock_timestamp(), provider, capability
  from provider_health"""

_LOCK = (
    _READ  # noqa: S608 - two constants
    + """
 where (provider, capability) in (select * from unnest(%(providers)s::text[], %(capabilities)s::text[]))
 order by provider, capability
   for update"""
)

_CREATE = """
insert into provider_health (provider, capability)
select * from unnest(%(providers)s::text[], %(capabilities)s::text[]) as k(provider, capability) order by 1, 2
on conflict do nothing"""

_SAVE = """
update provider_health
   set breaker = %(breaker)s, failures_in_row = %(failures_in_row)s, opened_at = %(opened_at)s, disabled_at = %(disabled_at)s,
       disabled_until = %(disabled_until)s, reason = %(reason)s, is_demoted = %(is_demoted)s, good_samples = %(good_samples)s,
       error = %(error)s, completeness = %(completeness)s, latencies = %(latencies)s::float8[], samples = %(samples)s,
       sampled_at = %(sampled_at)s, is_on_trial = %(is_on_trial)s,
       trial_expires_at = case when not %(is_on_trial)s then null
                               when %(begins_trial)s then clock_timestamp() + make_interval(secs => %(trial_seconds)s)
                               else trial_expires_at end
 where provider = %(provider)s and capability = %(capability)s"""

_SAMPLE = """
insert into provider_health_samples as s (provider, capability, resolution_s, at, outcomes, failures, score, score_min, score_max,
                                          score_sum, breaker, error, latency_p95, completeness, is_demoted)
values %s
on conflict (provider, capability, resolution_s, at) do update
   set outcomes = s.outcomes + excluded.outcomes, failures = s.failures + excluded.failures, score = excluded.score,
       score_min = least(s.score_min, excluded.score_min), score_max = greatest(s.score_max, excluded.score_max),
       score_sum = s.score_sum + excluded.score_sum, breaker = excluded.breaker, error = excluded.error,
       latency_p95 = excluded.latency_p95, completeness = excluded.completeness, is_demoted = excluded.is_demoted"""

_PRUNE = """
delete from provider_health_samples
 where provider = %(provider)s and capability = %(capability)s and resolution_s = %(resolution)s and at < %(before)s"""

_HISTORY = """
select provider, capability, at, resolution_s, outcomes, failures, score, score_sum / outcomes, score_min, score_max, breaker,
       error, latency_p95, completeness, is_demoted
  from provider_health_samples
 where provider = %(provider)s and (%(capability)s::text is null or capability = %(capability)s)
   and (%(since)s::timestamptz is null or at >= %(since)s)
   and resolution_s = case when at >= %(day)s then 10 when at >= %(week)s then 60 else 3600 end
 order by at desc, capability
 limit %(limit)s"""

_TELL = """
insert into provider_events (at, provider, capability, kind, detail, is_recovery, run_id)
values (%(at)s, %(provider)s, %(capability)s, %(kind)s, %(detail)s, %(is_recovery)s, %(run_id)s)"""

_TOLD = """
select is_recovery from provider_events
 where provider = %(provider)s and capability = %(capability)s and kind = any(%(kinds)s)
 order by event_id desc
 limit 1"""

_EVENTS = """
select event_id, at, provider, capability, kind, detail, is_recovery, run_id from provider_events
 where (%(provider)s::text is null or provider = %(provider)s) and (%(capability)s::text is null or capability = %(capability)s)
 order by event_id desc
 limit %(limit)s"""

# Locked in the order in which a flush locks them: neither waits for the other.
_FORGET = """
with forgotten as (
  select provider, capability from provider_health
   where provider = %(provider)s and (%(capability)s::text is null or capability = %(capability)s)
   order by provider, capability
     for update
)
delete from provider_health h using forgotten f where (h.provider, h.capability) = (f.provider, f.capability)
returning h.capability"""


@dataclass(frozen=True, slots=True)
class HealthSample:
    """The outcomes of one bucket of time. ``score`` and the terms are as the last of them left them; ``score_mean`` is over all."""

    provider: str
    capability: str
    at: datetime
    resolution_seconds: int
    outcomes: int
    failures: int
    score: float
    score_mean: float
    score_min: float
    score_max: float
    breaker: Breaker
    error: float
    latency_p95: float
    completeness: float
    is_demoted: bool


@dataclass(frozen=True, slots=True)
class ProviderEvent:
    """One row of ``provider_events``. ``capability`` "": of the provider as a whole."""

    event_id: int
    at: datetime
    provider: str
    capability: str
    kind: str
    detail: str
    is_recovery: bool
    run_id: str | None


@dataclass(frozen=True, slots=True)
class _Entry:
    key: Key
    outcome: Outcome
    now: datetime
    run_id: str | None


@dataclass(slots=True)
class _Bucket:
    """What one flush adds to one sample."""

    health: ProviderHealth
    outcomes: int = 0
    failures: int = 0
    low: float = 1.0
    high: float = 0.0
    total: float = 0.0
    last: float = 0.0

    def add(self, entry: _Entry, health: ProviderHealth, score: float) -> None:
        self.health, self.last = health, score
        self.outcomes += 1
        self.failures += entry.outcome.is_failure
        self.low, self.high, self.total = min(self.low, score), max(self.high, score), self.total + score


class HealthBook:
    """The health of all providers, as every process sees it. Safe to use from several threads.

    ``admit`` looks at a copy no older than a second, but a trial is given under the row's lock, to exactly one process, and comes
    back by itself where that process dies. ``record`` writes failures at once and successes together, a second's worth at a time:
    what a killed process takes with it. Outcomes are folded in the order in which each process recorded them. ``now`` is the
    pipeline's clock, which may be virtual; ``clock`` is monotonic and real.

    Everything raises DatabaseUnreachableError where the database is gone; what was not written then is kept for the next flush.
    """

    def __init__(self, engine: Engine, policy: HealthPolicy | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.policy = policy or HealthPolicy()
        self._engine = engine
        self._clock = clock
        self._known: dict[Key, ProviderHealth] = {}
        self._read_at: float | None = None
        self._reading = threading.Lock()
        self._pending: list[_Entry] = []
        self._pending_since = 0.0
        self._noting = threading.Lock()
        self._flushing = threading.Lock()
        self._pruned: dict[Key, datetime] = {}

    # --- asking --------------------------------------------------------------------------------------------------------

    def admit(self, provider: str, capability: str, *, now: datetime) -> Admission:
        """Whether ``provider`` may be asked at ``now``. ``record`` how that ended: during a trial nobody else may ask."""
        health = self._snapshot().get((provider, capability))
        admission = health.admission(now=now, policy=self.policy) if health else ADMITTED
        return self._begin_trial((provider, capability), now) if admission.is_trial else admission

    def all(self, now: datetime | None = None) -> Mapping[Key, ProviderHealth]:  # noqa: ARG002 - the value judges itself by it
        """Every health there is, no older than a second, by (provider, capability). Who is absent was never asked: it is well."""
        return self._snapshot()

    def _snapshot(self) -> Mapping[Key, ProviderHealth]:
        read_at = self._read_at
        is_old = read_at is None or self._clock() - read_at >= SNAPSHOT_SECONDS
        # One thread reads; the others go on with what they have, unless that is nothing.
        if is_old and self._reading.acquire(blocking=read_at is None):
            try:
                if self._read_at == read_at:
                    self._read()
            finally:
                self._reading.release()
        return self._known

    def _read(self) -> None:
        asked_at = self._clock()
        with self._engine.connect() as connection:
            rows = connection.exec_driver_sql(_READ).all()
        self._known = {(row[-2], row[-1]): _health(row) for row in rows}
        self._read_at = asked_at

    def _learn(self, healths: Mapping[Key, ProviderHealth]) -> None:
        # Under the reader's lock: a read that began before we committed must not put the older value back.
        with self._reading:
            self._known = {**self._known, **healths}

    def _begin_trial(self, key: Key, now: datetime) -> Admission:
        with self._changing([key]) as (cursor, healths):
            admission = healths[key].admission(now=now, policy=self.policy)
            if admission.is_trial:
                healths[key] = healths[key].on_trial()
                self._save(cursor, healths, begins_trial=True)
        return admission

    def admit_by_hand(self, provider: str, capability: str, *, now: datetime) -> Admission:
        """As ``admit``, for somebody who asks to know how it is: what rests or is disabled is tried at once."""
        with self._changing([(provider, capability)]) as (cursor, healths):
            health = healths[provider, capability]
            admission = health.admission(now=now, policy=self.policy)
            if admission == ADMITTED or health.is_on_trial:
                return admission
            self._save(cursor, {(provider, capability): health.on_trial()}, begins_trial=True)
            healths[provider, capability] = health.on_trial()
        return Admission(is_admitted=True, is_trial=True, reason=admission.reason)

    @contextmanager
    def _changing(self, keys: Iterable[Key]) -> Iterator[tuple[Cursor, dict[Key, ProviderHealth]]]:
        """The rows of ``keys``, locked; what the block leaves in the mapping is what this process knows after the commit."""
        ordered = sorted(set(keys))
        names = {"providers": [provider for provider, _ in ordered], "capabilities": [capability for _, capability in ordered]}
        with transaction(self._engine) as cursor:
            # A crash of the server may cost the last half-second of health; a disk's answer would cost every failure more.
            cursor.execute("set local synchronous_commit = off")
            cursor.execute(_LOCK, names)
            rows = cursor.fetchall()
            while len(rows) < len(ordered):  # the first outcome of a capability, or the first since a reset
                cursor.execute(_CREATE, names)
                cursor.execute(_LOCK, names)
                rows = cursor.fetchall()
            healths = {(row[-2], row[-1]): _health(row) for row in rows}
            yield cursor, healths
        self._learn(healths)

    def _save(self, cursor: Cursor, healths: Mapping[Key, ProviderHealth], *, begins_trial: bool = False) -> None:
        trial = {"begins_trial": begins_trial, "trial_seconds": self.policy.trial_seconds}
        execute_batch(cursor, _SAVE, [_parameters(key, health) | trial for key, health in healths.items()])

    # --- recording -----------------------------------------------------------------------------------------------------

    def record(self, provider: str, capability: str, outcome: Outcome, *, now: datetime, run_id: str | None = None) -> None:
        """Note how a call ended. Failures, and whatever may end an incident, are written before this returns."""
        entry = _Entry((provider, capability), outcome, now, run_id)
        known = self._known.get(entry.key)
        if outcome.kind in UNDECIDED and not (known and known.is_on_trial):
            return
        is_calm = known is None or (known.breaker is Breaker.CLOSED and known.disabled_at is None and not known.is_demoted)
        with self._noting:
            if not self._pending:
                self._pending_since = self._clock()
            self._pending.append(entry)
            waits = is_calm and not outcome.is_failure and outcome.kind != "entitlement"
            waits = waits and self._clock() - self._pending_since < BATCH_SECONDS
        if not waits:
            self.flush()

    def flush(self) -> None:
        """Write what is still in memory. Does nothing where there is nothing."""
        with self._flushing:
            with self._noting:
                entries, self._pending = self._pending, []
            if not entries:
                return
            try:
                self._write(entries)
            except BaseException:
                with self._noting:
                    self._pending = entries + self._pending
                raise

    def _write(self, entries: Sequence[_Entry]) -> None:
        with self._changing(entry.key for entry in entries) as (cursor, healths):
            buckets: dict[tuple[Key, int, datetime], _Bucket] = {}
            happened: list[dict[str, Any]] = []
            for entry in entries:
                before = healths[entry.key]
                after = before.after(entry.outcome, now=entry.now, policy=self.policy)
                healths[entry.key] = after
                happened.extend(_event_row(entry, event) for event in events(before, after, policy=self.policy))
                score = after.score(self.policy)
                for resolution in RESOLUTIONS:
                    place = entry.key, resolution, _bucket_start(entry.now, resolution)
                    buckets.setdefault(place, _Bucket(after)).add(entry, after, score)
            self._save(cursor, healths)
            execute_values(cursor, _SAMPLE, [_sample_row(place, bucket) for place, bucket in sorted(buckets.items(), key=_place)])
            if happened:
                execute_batch(cursor, _TELL, happened)
            self._prune(cursor, entries)
        for event in happened:
            _log(**event)

    def _prune(self, cursor: Cursor, entries: Sequence[_Entry]) -> None:
        """Drop the samples that are too old for their resolution: once an hour and key, with what is written anyway."""
        newest = {entry.key: entry.now for entry in entries}
        due = {key: now for key, now in newest.items() if now - self._pruned.get(key, _LONG_AGO) >= timedelta(hours=1)}
        rows = [
            {"provider": key[0], "capability": key[1], "resolution": resolution, "before": now - kept}
            for key, now in due.items()
            for resolution, kept in RESOLUTIONS.items()
        ]
        if rows:
            execute_batch(cursor, _PRUNE, rows)
            self._pruned |= due

    # --- telling -------------------------------------------------------------------------------------------------------

    def tell(
        self,
        provider: str,
        capability: str,
        kind: str,
        detail: str,
        *,
        is_recovery: bool,
        now: datetime,
        run_id: str | None = None,
    ) -> bool:
        """Write an event; whether it was news. An incident that is open is not told again, and a recovery only where one is open.

        A recovery has the ``kind`` of its incident, or one of the names in ``health.RECOVERIES``. ``capability`` "": all of them.
        """
        row = {"provider": provider, "capability": capability}
        event = {"at": now, "kind": kind, "detail": detail, "is_recovery": is_recovery, "run_id": run_id}
        with transaction(self._engine) as cursor:
            cursor.execute("select pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"provider_events {provider} {capability}",))
            cursor.execute(_TOLD, row | {"kinds": [*kinds_of_incident(kind), "reset"]})
            last = cursor.fetchone()
            is_open = last is not None and not last[0]
            if is_open is not is_recovery:
                return False
            cursor.execute(_TELL, row | event)
        _log(provider=provider, capability=capability, kind=kind, detail=detail, is_recovery=is_recovery)
        return True

    def events(self, provider: str | None = None, capability: str | None = None, *, limit: int = 100) -> list[ProviderEvent]:
        """The last ``limit`` events, the newest first."""
        wanted = {"provider": provider, "capability": capability, "limit": limit}
        with self._engine.connect() as connection:
            return [ProviderEvent(*row) for row in connection.exec_driver_sql(_EVENTS, wanted)]

    def history(
        self, provider: str, capability: str | None = None, *, now: datetime, since: datetime | None = None, limit: int = 1000
    ) -> list[HealthSample]:
        """The last ``limit`` samples, the oldest first: of 10 s in the last day, of minutes in the last week, of hours before."""
        day, week = now - RESOLUTIONS[10], now - RESOLUTIONS[60]
        wanted = {"provider": provider, "capability": capability, "since": since, "day": day, "week": week, "limit": limit}
        with self._engine.connect() as connection:
            rows = connection.exec_driver_sql(_HISTORY, wanted).all()
        return [_sample(row) for row in reversed(rows)]

    def reset(self, provider: str, capability: str | None = None, *, now: datetime, run_id: str | None = None) -> list[str]:
        """Forget breaker, disablement and averages, and say so in an event; the capabilities that had any. The history stays."""
        with transaction(self._engine) as cursor:
            cursor.execute(_FORGET, {"provider": provider, "capability": capability})
            forgotten = sorted(row[0] for row in cursor)
            for name in forgotten or [capability or ""]:
                detail = "by hand: breaker closed, enabled, averages forgotten"
                row = {"provider": provider, "capability": name, "kind": "reset", "detail": detail}
                cursor.execute(_TELL, row | {"at": now, "is_recovery": True, "run_id": run_id})
        with self._reading:
            self._known = {key: health for key, health in self._known.items() if key[0] != provider or key[1] not in forgotten}
        return forgotten


_LONG_AGO = datetime.min.replace(tzinfo=UTC)


def _health(row: Sequence[Any]) -> ProviderHealth:
    """The value in the columns of ``_READ``."""
    return ProviderHealth(
        breaker=Breaker(row[0]),
        failures_in_row=row[1],
        opened_at=row[2],
        disabled_at=row[3],
        disabled_until=row[4],
        reason=row[5],
        is_demoted=row[6],
        good_samples=row[7],
        error=row[8],
        completeness=row[9],
        latencies=tuple(row[10]),
        samples=row[11],
        sampled_at=row[12],
        is_on_trial=bool(row[13]),
    )


def _sample(row: Sequence[Any]) -> HealthSample:
    """The value in the columns of ``_HISTORY``."""
    provider, capability, at, resolution, outcomes, failures, score, mean, low, high, breaker, *terms = row
    error, latency_p95, completeness, is_demoted = terms
    return HealthSample(
        provider=provider,
        capability=capability,
        at=at,
        resolution_seconds=resolution,
        outcomes=outcomes,
        failures=failures,
        score=score,
        score_mean=mean,
        score_min=low,
        score_max=high,
        breaker=Breaker(breaker),
        error=error,
        latency_p95=latency_p95,
        completeness=completeness,
        is_demoted=is_demoted,
    )


def _parameters(key: Key, health: ProviderHealth) -> dict[str, Any]:
    return {
        "provider": key[0],
        "capability": key[1],
        "breaker": str(health.breaker),
        "failures_in_row": health.failures_in_row,
        "opened_at": health.opened_at,
        "disabled_at": health.disabled_at,
        "disabled_until": health.disabled_until,
        "reason": health.reason,
        "is_demoted": health.is_demoted,
        "good_samples": health.good_samples,
        "error": health.error,
        "completeness": health.completeness,
        "latencies": list(health.latencies),
        "samples": health.samples,
        "sampled_at": health.sampled_at,
        "is_on_trial": health.is_on_trial,
    }


def _log(*, provider: str, capability: str, kind: str, detail: str, is_recovery: bool, **_: object) -> None:
    # What becomes an event is news by itself: a breaker that opens, a capability that is lost, and their ends.
    logger.log(
        logging.INFO if is_recovery else logging.WARNING,
        "%s%s: %s: %s",
        provider,
        f" {capability}" if capability else "",
        kind,
        detail,
        extra={"provider": provider, "capability": capability, "kind": kind},
    )


def _event_row(entry: _Entry, event: HealthEvent) -> dict[str, Any]:
    provider, capability = entry.key
    said = {"kind": event.kind, "detail": event.detail, "is_recovery": event.is_recovery}
    return {"at": entry.now, "provider": provider, "capability": capability, "run_id": entry.run_id} | said


def _bucket_start(instant: datetime, resolution: int) -> datetime:
    return datetime.fromtimestamp(int(instant.timestamp()) // resolution * resolution, UTC)


def _place(item: tuple[tuple[Key, int, datetime], _Bucket]) -> tuple[Key, int, datetime]:
    # Always in one order: two processes that write the same samples must not wait for each other.
    return item[0]


def _sample_row(place: tuple[Key, int, datetime], bucket: _Bucket) -> tuple[object, ...]:
    (provider, capability), resolution, at = place
    counts = (bucket.outcomes, bucket.failures, bucket.last, bucket.low, bucket.high, bucket.total)
    health = bucket.health
    terms = (str(health.breaker), health.error, health.latency_p95, health.completeness, health.is_demoted)
    return (provider, capability, resolution, at, *counts, *terms)
