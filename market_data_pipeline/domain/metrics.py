"""The catalogue of metrics: every name that /metrics shows. Labels are closed sets: never a symbol, never a URL."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class MetricKind(StrEnum):
    """As Prometheus has them."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One family. ``name`` as it is queried: counters with their ``_total``; histograms without ``_bucket``.

    ``buckets``: the upper bounds of a histogram, the last one finite.
    """

    name: str
    kind: MetricKind
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()


# A metric's name and the values of its labels in the order of the catalogue.
Series = tuple[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Histogram:
    """What a histogram holds. ``buckets`` counts each value once: one element a bound of the metric and one above."""

    buckets: tuple[int, ...]
    sum: float


@dataclass(frozen=True, slots=True)
class MetricsSnapshot:
    """Every value that /metrics shows, read at one time. A family without values is shown without samples."""

    values: Mapping[Series, float | Histogram]


_C, _G, _H = MetricKind.COUNTER, MetricKind.GAUGE, MetricKind.HISTOGRAM
LATENCY_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
WRITE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

METRICS = (
    # Providers
    Metric("provider_selected_total", _C, ("capability", "provider"), "Requests that a provider was chosen for."),
    Metric("provider_errors_total", _C, ("provider", "endpoint", "code"), "Requests that failed; code: the class of the failure."),
    Metric(
        "provider_latency_seconds",
        _H,
        ("provider", "endpoint"),
        "How long answers and failures took, the last attempt.",
        LATENCY_BUCKETS,
    ),
    Metric("provider_bars_total", _C, ("provider", "endpoint"), "Rows in the answers of providers."),
    Metric("circuit_state", _G, ("provider", "capability"), "0 open, 0.5 half open, 1 closed."),
    Metric("provider_health_score", _G, ("provider", "capability"), "Health from 0 to 1, as the router sees it."),
    Metric("provider_is_demoted", _G, ("provider", "capability"), "1 where it is asked last."),
    Metric("provider_budget_used_ratio", _G, ("provider", "window"), "Share of a rate limit that is spent in its window."),
    Metric("provider_budget_held_seconds", _G, ("provider",), "How long nobody may ask, because the provider said so."),
    Metric("provider_requests_granted_total", _C, ("provider",), "Requests that the shared budget let through."),
    # Jobs and healing
    Metric("jobs_processed_total", _C, ("type", "provider", "outcome"), "Jobs that ended; provider: the one hinted at, or any."),
    Metric("gaps_found_total", _C, ("interval",), "Gaps that the gap sensor found due and asked runs for."),
    Metric("backfill_jobs_enqueued_total", _C, ("tier",), "Jobs put into the queue."),
    Metric("backfill_jobs_completed_total", _C, ("tier", "status"), "Jobs that ended, by how: done or dead."),
    Metric("backfill_queue_depth", _G, ("tier",), "Jobs queued."),
    Metric("backfill_oldest_age_seconds", _G, ("tier",), "How long the oldest queued job has been ready."),
    Metric("dead_letters", _G, ("tier",), "Jobs in the dead-letter queue."),
    Metric("refused_payloads", _G, (), "Payloads kept that could not be read as a job."),
    Metric("runs_at_work", _G, (), "Run processes that showed a heartbeat within two minutes."),
    # Writing
    Metric("write_batch_seconds", _H, (), "How long a batch of candles took to be committed.", WRITE_BUCKETS),
    Metric("bar_revisions_total", _C, ("interval",), "Stored values that were replaced and kept."),
    Metric("refused_bars_total", _C, ("interval",), "Bars that broke a law and were kept aside."),
    # Freshness
    Metric("ingestion_lag_seconds", _G, ("tier", "interval"), "How late the worst symbol's newest bar is; 0: none is late."),
    Metric("ingestion_lag_median_seconds", _G, ("tier", "interval"), "The same of the median symbol."),
    Metric("slo_gap_violation_rate", _G, ("tier", "interval"), "Share of tradable symbols whose newest bar is older than allowed."),
    Metric("slo_objective_ratio", _G, ("tier",), "What that share may be."),
    Metric("slo_symbols", _G, ("tier", "interval", "state"), "Tradable symbols, fresh or stale."),
    Metric("slo_bars_due_total", _C, ("tier", "interval"), "Tradable bars whose time was up."),
    Metric("slo_bars_late_total", _C, ("tier", "interval"), "Of them, those that were not there by then."),
    Metric("slo_burn_rate", _G, ("tier", "interval", "window"), "How fast the error budget is spent; 1: just used up in 30 days."),
    Metric(
        "slo_error_budget_left_ratio", _G, ("tier", "interval"), "Share of the 30 days' error budget that is left; below 0: broken."
    ),
    Metric("ledger_bars", _G, ("tier", "interval", "verdict"), "Bars of the sessions watched now, by verdict."),
    Metric(
        "ledger_missing_bars", _G, ("interval", "tier", "plan"), "Bars missing in the whole ledger, by what is planned for them."
    ),
    # The pipeline itself
    Metric("alerts_firing", _G, ("alert", "severity"), "Alerts that are firing."),
    Metric("alert_notices", _G, ("state",), "Messages in the outbox: queued, sent or dead."),
    Metric("alert_oldest_notice_age_seconds", _G, (), "How long the oldest undelivered message waits."),
    Metric("watch_age_seconds", _G, (), "Since when nobody has looked at SLOs and alert rules."),
    Metric("calendar_horizon_seconds", _G, ("calendar",), "How long until the last session that the calendar knows; whole days."),
    Metric("universe_symbols", _G, ("tier",), "Active symbols."),
    Metric("database_size_bytes", _G, (), "Size of our database."),
    Metric("disk_free_ratio", _G, ("volume",), "Free share of the disk under MDP_HOME."),
    Metric("scrape_seconds", _G, (), "How long it took to read all this."),
    Metric("build_info", _G, ("version",), "1."),
)
BY_NAME = {metric.name: metric for metric in METRICS}
