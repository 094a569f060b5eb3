"""Counters that outlive processes: rows of ``metric_counters``, one a backend, added up when they are read.

What is written to the database counts itself there (sql/0011_metrics.sql), in the same transaction. ``Counters`` is for what SQL
cannot know, such as how long a commit took.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from market_data_pipeline.domain.errors import MarketDataError
from market_data_pipeline.domain.health import ANSWERS
from market_data_pipeline.domain.metrics import BY_NAME, Histogram, MetricKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import Engine

    from market_data_pipeline.domain.metrics import Series

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0
# How often a process that lives adds up what others left; each does when it ends, so this is for those that are killed.
FOLD_SECONDS = 60.0
# One row for several metrics (sql/0011_metrics.sql).
_JOBS_ENDED, _FETCHES = "jobs_ended", "fetches"
# Nothing there, nobody knows the symbol, further back than the provider reaches: those are answers. Nothing sent: our own affair.
NO_FAILURES = ANSWERS | {"ok", "barren", "budget_spent"}
# Any number will do that no other user of the server's advisory locks takes.
_FOLDING = int.from_bytes(hashlib.sha256(b"market_data_pipeline counters").digest()[:8], signed=True)

_COUNT_UP = "select count_up(%(name)s, %(labels)s::text[], %(value)s, %(buckets)s::int8[])"

# One row a series: what is in the shards is not anybody's business.
_READ = """
with whole as (
  select name, labels, sum(value) as value, bool_or(buckets is not null) as is_histogram from metric_counters group by name, labels
), places as (
  select c.name, c.labels, k.place, sum(k.bucket)::int8 as bucket
    from metric_counters c, unnest(c.buckets) with ordinality as k (bucket, place) group by 1, 2, 3
)
select w.name, w.labels, w.value,
       case when w.is_histogram
            then (select array_agg(p.bucket order by p.place) from places p where p.name = w.name and p.labels = w.labels) end
  from whole w
union all
select 'backfill_jobs_enqueued_total', array[tier], enqueued, null from job_dispatch where enqueued > 0"""

# Of backends that are gone, whose transactions are over. A new one that was given the number of one that is gone waits for us,
# finds the row deleted and begins anew; a row that it has in hand is skipped.
_FOLD = """
with gone as materialized (
  select name, labels, shard from metric_counters c
   where shard <> 0 and not exists (select from pg_stat_activity a where a.pid = c.shard)
   order by name, labels, shard for update skip locked
), taken as (
  delete from metric_counters c using gone g
   where c.name = g.name and c.labels = g.labels and c.shard = g.shard
  returning c.name, c.labels, c.value, c.buckets
), places as (
  select t.name, t.labels, k.place, sum(k.bucket)::int8 as bucket
    from taken t, unnest(t.buckets) with ordinality as k (bucket, place) group by 1, 2, 3
), whole as (
  select t.name, t.labels, sum(t.value) as value,
         (select array_agg(p.bucket order by p.place) from places p where p.name = t.name and p.labels = t.labels) as buckets
    from taken t group by t.name, t.labels
), added as (
  insert into metric_counters as c (name, labels, shard, value, buckets)
  select name, labels, 0, value, buckets from whole
  on conflict (name, labels, shard) do update
     set value = c.value + excluded.value, buckets = add_buckets(c.buckets, excluded.buckets)
)
select count(*) from taken"""


@dataclass(frozen=True, slots=True)
class Counter:
    """What was counted. Of a histogram ``value`` is the sum; ``buckets`` are as in ``Histogram``."""

    value: float
    buckets: tuple[int, ...] | None = None


class Counters:
    """Counts for this process what the database cannot count itself. Safe to use from several threads.

    Kept in memory for at most a second, as long as something is counted, and written when it is closed: a process that is killed
    loses that. Never raises because the database is away: nobody's work shall fail for a number; what was not written is kept.
    """

    def __init__(self, engine: Engine, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._pending: dict[Series, Counter] = {}
        self._pending_since = 0.0
        self._folded_at = clock()
        self._noting = threading.Lock()
        self._flushing = threading.Lock()

    def add(self, name: str, labels: Mapping[str, str] | None = None, n: float = 1) -> None:
        """``n`` more. ``name`` and ``labels`` are a counter of the catalogue (``domain.metrics``); ValueError for anything else."""
        self._note(_series(name, MetricKind.COUNTER, labels or {}), Counter(n))

    def observe(self, name: str, labels: Mapping[str, str] | None, seconds: float) -> None:
        """One more value of a histogram of the catalogue; ValueError for anything else."""
        bounds = BY_NAME[name].buckets if name in BY_NAME else ()
        buckets = [0] * (len(bounds) + 1)
        buckets[bisect_left(bounds, seconds)] = 1
        self._note(_series(name, MetricKind.HISTOGRAM, labels or {}), Counter(seconds, tuple(buckets)))

    def _note(self, series: Series, more: Counter) -> None:
        with self._noting:
            if not self._pending:
                self._pending_since = self._clock()
            self._pending[series] = _sum(self._pending.get(series), more)
            waits = self._clock() - self._pending_since < FLUSH_SECONDS
        if not waits:
            self.flush()

    def flush(self) -> None:
        """Write what is in memory; now and then, add up what processes that are gone left."""
        with self._flushing:
            with self._noting:
                pending, self._pending = self._pending, {}
            try:
                if pending:
                    self._write(pending)
                if self._clock() - self._folded_at >= FOLD_SECONDS:
                    self._folded_at = self._clock()
                    fold_counters(self._engine)
            except (MarketDataError, SQLAlchemyError) as error:
                # Two lines of SQLAlchemy's would hold the statement; the name says what there is to say.
                logger.warning("%d counters wait for the database: %s", len(pending), type(error).__name__)
                with self._noting:
                    if not self._pending:
                        self._pending_since = self._clock()
                    for series, more in pending.items():
                        self._pending[series] = _sum(self._pending.get(series), more)

    def close(self) -> None:
        """Write what is in memory, and add up what others left: for the end of the process."""
        self._folded_at = -FOLD_SECONDS + self._clock()
        self.flush()

    def _write(self, pending: Mapping[Series, Counter]) -> None:
        rows = [
            {"name": name, "labels": list(labels), "value": counter.value, "buckets": _listed(counter.buckets)}
            for (name, labels), counter in sorted(pending.items(), key=lambda item: item[0])
        ]
        with self._engine.begin() as connection:
            # A crash of the server may cost the last second's numbers; to wait for its disk would buy nothing.
            connection.exec_driver_sql("set local synchronous_commit = off")
            for row in rows:
                connection.exec_driver_sql(_COUNT_UP, row)


def read_counters(engine: Engine) -> dict[Series, Counter]:
    """Every series that was ever counted, by (name, labels in the order of the catalogue); what is committed, exactly."""
    found: dict[Series, Counter] = {}
    with engine.connect() as connection:
        for name, labels, value, buckets in connection.exec_driver_sql(_READ):
            more = Counter(value, None if buckets is None else tuple(buckets))
            for series, part in _shown_as(name, tuple(labels), more):
                found[series] = _sum(found.get(series), part)
    return found


def fold_counters(engine: Engine) -> int:
    """Add up what backends that are gone have left, so that the table does not grow with every process; how many rows that were.

    Changes no sum. Of several that try at the same time one does it.
    """
    with engine.begin() as connection:
        alone = connection.execute(sa.text("select pg_try_advisory_xact_lock(:folding)"), {"folding": _FOLDING}).scalar_one()
        return int(connection.exec_driver_sql(_FOLD).scalar_one()) if alone else 0


def as_metric(counter: Counter) -> float | Histogram:
    """A counter as the catalogue's value."""
    return counter.value if counter.buckets is None else Histogram(counter.buckets, counter.value)


def _series(name: str, kind: MetricKind, labels: Mapping[str, str]) -> Series:
    metric = BY_NAME.get(name)
    if metric is None or metric.kind is not kind or set(labels) != set(metric.labels):
        raise ValueError(f"no {kind} of the catalogue is called {name} with the labels {sorted(labels)}")
    return name, tuple(labels[label] for label in metric.labels)


def _shown_as(name: str, labels: tuple[str, ...], counted: Counter) -> list[tuple[Series, Counter]]:
    """What of the catalogue a series of the table adds to."""
    if name == _JOBS_ENDED:
        tier, kind, provider, state = labels
        return [
            (("backfill_jobs_completed_total", (tier, state)), counted),
            (("jobs_processed_total", (kind, provider, state)), counted),
        ]
    if name != _FETCHES:
        return [((name, labels), counted)]
    endpoint, provider, outcome = labels
    *latencies, rows = counted.buckets or (0,)
    shown: list[tuple[Series, Counter]] = []
    if sent := sum(latencies):
        shown.append((("provider_selected_total", (endpoint, provider)), Counter(sent)))
        shown.append((("provider_latency_seconds", (provider, endpoint)), Counter(counted.value, tuple(latencies))))
        if outcome not in NO_FAILURES:
            shown.append((("provider_errors_total", (provider, endpoint, outcome)), Counter(sent)))
    if rows:
        shown.append((("provider_bars_total", (provider, endpoint)), Counter(rows)))
    return shown


def _sum(one: Counter | None, other: Counter) -> Counter:
    if one is None:
        return other
    if one.buckets is None or other.buckets is None:
        return Counter(one.value + other.value)
    return Counter(one.value + other.value, tuple(a + b for a, b in zip(one.buckets, other.buckets, strict=True)))


def _listed(buckets: Sequence[int] | None) -> list[int] | None:
    return None if buckets is None else list(buckets)
