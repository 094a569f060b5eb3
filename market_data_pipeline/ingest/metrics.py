"""Everything that /metrics shows, read from Postgres at one time: what processes that are gone have counted is still counted."""

from __future__ import annotations

import logging
import math
import shutil
import threading
import time
from collections import defaultdict
from concurrent.futures import Future
from contextvars import copy_context
from typing import TYPE_CHECKING

from market_data_pipeline import __version__
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.capabilities import ACTIONS, MACRO, OPTIONS_CHAIN, QUOTES_L1, bars
from market_data_pipeline.domain.coverage import Verdict
from market_data_pipeline.domain.errors import DatabaseUnreachableError, MarketDataError, ProviderError
from market_data_pipeline.domain.metrics import BY_NAME, Histogram, MetricsSnapshot
from market_data_pipeline.domain.queue import JobKind
from market_data_pipeline.domain.sessions import DAY
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.ingest.freshness import slo_status, take_census
from market_data_pipeline.ingest.overview import missing_now
from market_data_pipeline.settings import numbers_by_tier
from market_data_pipeline.storage.budgets import PostgresBudget
from market_data_pipeline.storage.counters import as_metric, read_counters
from market_data_pipeline.storage.database import STATEMENT_FAILURES
from market_data_pipeline.storage.metrics import read_gauges
from market_data_pipeline.storage.watch import calendars_in_use, outbox_now, tier_queues, watch_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    from market_data_pipeline.domain.freshness import Census, FreshnessLine
    from market_data_pipeline.domain.metrics import Series
    from market_data_pipeline.ingest.pipeline import Pipeline

    Values = Iterator[tuple[Series, float | Histogram]]

logger = logging.getLogger(__name__)

# Of the sessions watched now, as a census counts them.
_VERDICTS = (Verdict.PRESENT, Verdict.CONFIRMED_EMPTY, Verdict.HALTED, Verdict.MISSING, Verdict.PENDING)
_WINDOWS = {1.0: "1s", 60.0: "1m", 3600.0: "1h", 86_400.0: "1d"}
OTHER, ANY = "other", "any"
_CAPABILITIES = {*map(bars, Interval), QUOTES_L1, OPTIONS_CHAIN, MACRO, ACTIONS, OTHER}


def snapshot(
    pipeline: Pipeline, *, now: datetime, census: Census | None = None, stopwatch: Callable[[], float] = time.perf_counter
) -> MetricsSnapshot:
    """Every value of the catalogue that there is, and no other. ``now``: of the pipeline's clock.

    ``census``: one that was taken just now, by a watch in the same process; None: take one, which is most of the work.

    Labels are of closed sets: what the database holds beyond them (a provider or an outcome of another release) is added up under
    "other". What cannot be read for a reason of its own is left out and logged; a metric that is not there is not zero. Asks three
    questions at a time, each on a connection of its own. Raises DatabaseUnreachableError where the database is away.
    """
    began = stopwatch()
    values: dict[Series, float | Histogram] = {}
    for found in _at_once([lambda: _slo(pipeline, census), lambda: _missing(pipeline), lambda: _small(pipeline, now)]):
        values.update(found)
    values["build_info", (__version__,)] = 1.0
    values["scrape_seconds", ()] = stopwatch() - began
    return MetricsSnapshot(values)


def _at_once(questions: Sequence[Callable[[], Values]]) -> list[dict[Series, float | Histogram]]:
    """The answers, in order. Not a pool: Python waits for its threads at the end, for ever where the database has stopped."""

    def answer(question: Callable[[], Values], answered: Future[dict[Series, float | Histogram]]) -> None:
        try:
            answered.set_result(_read(question))
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            answered.set_exception(error)

    answers: list[Future[dict[Series, float | Histogram]]] = []
    for question in questions:
        answers.append(Future())
        run = copy_context().run
        threading.Thread(target=run, args=(answer, question, answers[-1]), name="metrics", daemon=True).start()
    return [answered.result() for answered in answers]


def _read(question: Callable[[], Values]) -> dict[Series, float | Histogram]:
    values: dict[Series, float | Histogram] = {}
    try:
        values.update(question())
    except DatabaseUnreachableError:
        raise
    except (MarketDataError, *STATEMENT_FAILURES, OSError) as failure:
        said = str(failure) if isinstance(failure, MarketDataError | OSError) else type(failure).__name__
        logger.warning("some metrics cannot be read: %s", said)
    return values


def _slo(pipeline: Pipeline, census: Census | None) -> Values:
    """How fresh everything is now, and what is left of the error budgets."""
    census = census or take_census(pipeline)
    for line in census.lines:
        yield from _freshness(line)
    for tier, objective in numbers_by_tier(pipeline.settings.slo_targets).items():
        if objective:  # 0: the tier has none
            yield ("slo_objective_ratio", (tier,)), objective
    for one in slo_status(pipeline, census=census).lines:
        place = (str(one.tier), str(one.interval))
        for window, rate in one.burn_rates.items():
            yield ("slo_burn_rate", (*place, window)), rate
        if one.budget_left is not None:
            yield ("slo_error_budget_left_ratio", place), one.budget_left


def _freshness(line: FreshnessLine) -> Values:
    place = (str(line.tier), str(line.interval))
    # A session whose bars all were due long ago says nothing of now.
    if line.symbols and not line.is_over:
        yield ("ingestion_lag_seconds", place), line.worst_lag_seconds or 0.0
        yield ("ingestion_lag_median_seconds", place), line.median_lag_seconds or 0.0
        yield ("slo_gap_violation_rate", place), line.violation_rate
        yield ("slo_symbols", (*place, "fresh")), line.symbols - line.stale
        yield ("slo_symbols", (*place, "stale")), line.stale
    for verdict in _VERDICTS:
        yield ("ledger_bars", (*place, str(verdict))), getattr(line, verdict)


def _missing(pipeline: Pipeline) -> Values:
    """What is missing in the whole ledger. Cells that lack nothing now have no series: what lacked something yesterday is gone."""
    missing: dict[tuple[str, ...], float] = defaultdict(float)
    for line in missing_now(pipeline):
        missing[line.interval, line.tier, line.plan] += line.bars
    for labels, count in missing.items():
        yield ("ledger_missing_bars", tuple(map(str, labels))), count


def _small(pipeline: Pipeline, now: datetime) -> Values:
    """What costs a millisecond each."""
    engine, providers = pipeline.engine, set(pipeline.providers)
    yield from _bounded({series: as_metric(counter) for series, counter in read_counters(engine).items()}, providers).items()
    yield from _bounded(read_gauges(engine), providers).items()
    yield from _providers(pipeline, now)
    for queue in tier_queues(engine):
        yield ("backfill_queue_depth", (queue.tier,)), queue.queued
        yield ("backfill_oldest_age_seconds", (queue.tier,)), queue.oldest_seconds
    oldest = outbox_now(engine).oldest_at
    yield ("alert_oldest_notice_age_seconds", ()), max((now - oldest).total_seconds(), 0.0) if oldest else 0.0
    watched = watch_state(engine)
    # Of a watch that never was it is not known for how long; it is too long by any measure.
    yield ("watch_age_seconds", ()), max((now - watched.at).total_seconds(), 0.0) if watched else math.inf
    for name in calendars_in_use(engine):
        yield ("calendar_horizon_seconds", (name,)), pipeline.calendars(name).days_to_horizon(now.date()) * DAY
    home = pipeline.settings.home
    there = next(path for path in (home, *home.parents) if path.exists())
    usage = shutil.disk_usage(there)
    yield ("disk_free_ratio", ("home",)), usage.free / usage.total


def _providers(pipeline: Pipeline, now: datetime) -> Values:
    """Of those that are installed."""
    policy = pipeline.health.policy
    for (provider, capability), health in pipeline.health.all(now).items():
        if provider in pipeline.providers and capability in _CAPABILITIES:
            yield ("circuit_state", (provider, capability)), health.breaker.term
            yield ("provider_health_score", (provider, capability)), health.score(policy)
            yield ("provider_is_demoted", (provider, capability)), float(health.is_asked_last(now=now, policy=policy))
    used: dict[tuple[str, str], float] = {}
    for status in pipeline.budget.status() if isinstance(pipeline.budget, PostgresBudget) else ():
        for limit, share in status.used_shares.items():
            place = status.provider, _WINDOWS.get(limit.seconds, f"{limit.seconds:g}s")
            # Of several accounts the one that is nearest to its limit.
            used[place] = max(used.get(place, 0.0), share)
    for place, share in used.items():
        yield ("provider_budget_used_ratio", place), share


# --- closed sets -----------------------------------------------------------------------------------------------------------


def _kinds(of: type[ProviderError]) -> set[str]:
    return {of.kind}.union(*map(_kinds, of.__subclasses__()))


def _bounded(values: Mapping[Series, float | Histogram], providers: set[str]) -> dict[Series, float | Histogram]:
    """``values`` with labels of closed sets; what differs in others alone is added up. Metrics that we do not know are left out."""
    allowed = {
        "provider": {*providers, ANY, OTHER},
        "capability": _CAPABILITIES,
        "endpoint": _CAPABILITIES,
        "code": _kinds(ProviderError),
        "interval": set(map(str, Interval)),
        "type": set(map(str, JobKind)),
        "tier": set(map(str, Tier)),
    }
    found: dict[Series, float | Histogram] = {}
    for (name, labels), value in values.items():
        metric = BY_NAME.get(name)
        if metric is None or len(labels) != len(metric.labels):
            continue
        closed = tuple(
            text if text in allowed.get(label, {text}) else OTHER for label, text in zip(metric.labels, labels, strict=True)
        )
        found[name, closed] = _sum(found.get((name, closed)), value)
    return found


def _sum(one: float | Histogram | None, other: float | Histogram) -> float | Histogram:
    if isinstance(other, Histogram):
        if not isinstance(one, Histogram):
            return other
        return Histogram(tuple(a + b for a, b in zip(one.buckets, other.buckets, strict=True)), one.sum + other.sum)
    return other + (one if isinstance(one, float | int) else 0.0)
