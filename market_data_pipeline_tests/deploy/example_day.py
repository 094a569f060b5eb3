"""A trading day as /metrics would have shown it, every minute, each metric of the catalogue: in OpenMetrics' text, for promtool.

Its story: at 17:00Z yahoo fails for half an hour. Its breaker opens and is tried in vain, alpaca takes over, some symbols of T0 are
stale for a while, jobs pile up and are worked off, and the error budget is smaller afterwards.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from market_data_pipeline.domain.metrics import BY_NAME, MetricKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FIRST, MINUTES = datetime(2026, 11, 20, 14, 0, tzinfo=UTC), 450
OPEN, CLOSE, FAILS, RECOVERS, CAUGHT_UP = 30, 420, 180, 212, 275
OBJECTIVES = {"T0": 0.005, "T1": 0.02, "T2": 0.05}
SYMBOLS = {"T0": 1200, "T1": 3000, "T2": 3800}
CAPABILITIES = {"yahoo": ("bars_1m", "eod"), "alpaca": ("bars_1m",), "finnhub": ("quotes_l1",), "fred": ("macro",)}
Value = float | None


def is_open(minute: int) -> bool:
    return OPEN <= minute < CLOSE


def is_down(minute: int) -> bool:
    return FAILS <= minute < RECOVERS


def hump(minute: int) -> float:
    """From 0 when yahoo fails up to 1 at its recovery, and down to 0 once all is caught up."""
    if minute < FAILS or minute >= CAUGHT_UP:
        return 0.0
    return (minute - FAILS) / (RECOVERS - FAILS) if minute < RECOVERS else (CAUGHT_UP - minute) / (CAUGHT_UP - RECOVERS)


class Day:
    """Collects the samples. Values are functions of the minute; None: not shown in that minute."""

    def __init__(self) -> None:
        self.chance = random.Random(20261120)
        self._lines: list[str] = []
        self._shown: set[str] = set()

    def noise(self, about: float) -> float:
        return about * self.chance.uniform(0.85, 1.15)

    def add(self, name: str, labels: Mapping[str, str] | None, value: Callable[[int], Value]) -> None:
        """A gauge, or anything else that is shown as it is."""
        text = ",".join(f'{key}="{one}"' for key, one in (labels or {}).items())
        begin = int(FIRST.timestamp())
        for minute in range(MINUTES):
            at = value(minute)
            if at is not None:
                self._lines.append(f"{name}{{{text}}} {at:.6g} {begin + 60 * minute}")

    def show(self, name: str, labels: Mapping[str, str] | None, value: Callable[[int], Value]) -> None:
        """A metric of the catalogue, with exactly its labels. Of a counter ``value`` is what comes in a minute."""
        metric = BY_NAME[name]
        assert set(labels or {}) == set(metric.labels), f"{name} has other labels in the catalogue: {metric.labels}"
        self._shown.add(name)
        self.add(name, labels, self._sums(value) if metric.kind is MetricKind.COUNTER else value)

    def show_histogram(
        self, name: str, labels: Mapping[str, str] | None, often: Callable[[int], float], takes: Callable[[int], float]
    ) -> None:
        """``often`` values a minute, exponentially distributed around ``takes`` seconds."""
        self._shown.add(name)
        counted = [self.noise(often(minute)) for minute in range(MINUTES)]
        for bound in (*BY_NAME[name].buckets, float("inf")):
            below = [n * (1 - 2.718281828 ** (-bound / takes(m))) for m, n in enumerate(counted)]
            text = "+Inf" if bound == float("inf") else f"{bound}"
            self.add(f"{name}_bucket", {**(labels or {}), "le": text}, self._sums(below.__getitem__))
        self.add(f"{name}_count", labels, self._sums(counted.__getitem__))
        self.add(f"{name}_sum", labels, self._sums(lambda m: counted[m] * takes(m)))

    def text(self) -> str:
        """All of it. Each metric of the catalogue must have been shown."""
        missing = BY_NAME.keys() - self._shown
        assert not missing, f"give the example day values of {sorted(missing)}"
        return "\n".join([*self._lines, "# EOF", ""])

    @staticmethod
    def _sums(value: Callable[[int], Value]) -> Callable[[int], Value]:
        total, so_far = 0.0, []
        for minute in range(MINUTES):
            total += value(minute) or 0.0
            so_far.append(total)
        return so_far.__getitem__


def example_day() -> str:
    """The day in OpenMetrics' text."""
    day = Day()
    for provider, capabilities in CAPABILITIES.items():
        _provider(day, provider, capabilities)
    for tier, deep in (("T0", 900.0), ("T1", 2600.0), ("T2", 4100.0)):
        _queue(day, tier, deep)
        hit = {"T0": 1.0, "T1": 0.6, "T2": 0.2}[tier]
        for interval, worse in (("1m", hit), ("1h", 0.3 * hit)):
            _line(day, {"tier": tier, "interval": interval}, SYMBOLS[tier], OBJECTIVES[tier] * worse, worse)
    for interval, often in (("1m", 3.0), ("1h", 0.5), ("1d", 0.1)):
        _interval(day, interval, often)
    _pipeline(day)
    return day.text()


def _provider(day: Day, provider: str, capabilities: tuple[str, ...]) -> None:
    busy = {"yahoo": 240.0, "alpaca": 20.0, "finnhub": 60.0, "fred": 1.0}[provider]

    def fails(minute: int) -> bool:
        return provider == "yahoo" and is_down(minute)

    def asked(minute: int) -> float:
        if not is_open(minute):
            return 2.0
        if fails(minute):
            return 40.0
        return day.noise(220.0 if provider == "alpaca" and is_down(minute) else busy)

    def health(minute: int) -> float:
        return max(0.2, 0.97 - 0.9 * hump(minute)) if provider == "yahoo" else 0.98

    def breaker(minute: int) -> float:
        return (0.5 if minute % 7 == 0 else 0.0) if fails(minute) and minute > FAILS + 2 else 1.0

    for capability in capabilities:
        pair = {"provider": provider, "capability": capability}
        endpoint = {"provider": provider, "endpoint": capability}
        day.show("provider_selected_total", pair, asked)
        day.show("provider_bars_total", endpoint, lambda m: 0 if fails(m) else 30 * asked(m))
        day.show("circuit_state", pair, breaker)
        day.show("provider_health_score", pair, health)
        day.show("provider_is_demoted", pair, lambda m: float(health(m) < 0.55))
        day.show_histogram("provider_latency_seconds", endpoint, asked, lambda m: 4.0 if fails(m) else 0.18)
    bad = {"provider": provider, "endpoint": capabilities[0]}
    day.show("provider_errors_total", {**bad, "code": "transient"}, lambda m: 39.0 if fails(m) else 0.002 * asked(m))
    day.show("provider_errors_total", {**bad, "code": "rate_limited"}, lambda m: day.noise(0.005 * busy) if is_open(m) else 0.0)
    mine = {"provider": provider}
    day.show("provider_budget_used_ratio", {**mine, "window": "1m"}, lambda m: asked(m) / 300)
    day.show("provider_budget_used_ratio", {**mine, "window": "1d"}, lambda m: busy / 400 * m / MINUTES)
    day.show("provider_budget_held_seconds", mine, lambda m: 30.0 if fails(m) else 0.0)
    day.show("provider_requests_granted_total", mine, asked)


def _queue(day: Day, tier: str, deep: float) -> None:
    mine = {"tier": tier}
    day.show("backfill_queue_depth", mine, lambda m: round(deep * hump(m) + (12 if is_open(m) else 0)))
    day.show("backfill_oldest_age_seconds", mine, lambda m: 20 + 700 * hump(m))
    day.show("backfill_jobs_enqueued_total", mine, lambda m: deep / 30 if is_down(m) else deep / 300)
    done = {**mine, "status": "done"}
    day.show("backfill_jobs_completed_total", done, lambda m: deep / 70 if FAILS < m < CAUGHT_UP else deep / 300)
    day.show("backfill_jobs_completed_total", {**mine, "status": "dead"}, lambda m: 0.2 if is_down(m) else 0.0)
    day.show("dead_letters", mine, lambda m: 3 + (4 if m > RECOVERS else 0))
    day.show("universe_symbols", mine, lambda _: SYMBOLS[tier])
    day.show("slo_objective_ratio", mine, lambda _: OBJECTIVES[tier])


def _interval(day: Day, interval: str, often: float) -> None:
    mine = {"interval": interval}
    day.show("gaps_found_total", mine, lambda m: often * (1 + 8 * hump(m)))
    day.show("bar_revisions_total", mine, lambda m: day.noise(often) if is_open(m) else 0.0)
    day.show("refused_bars_total", mine, lambda m: often / 10 if is_open(m) else 0.0)


def _line(day: Day, line: Mapping[str, str], symbols: int, objective: float, worse: float) -> None:
    gone = [min(max(minute - OPEN, 0), CLOSE - OPEN) for minute in range(MINUTES)]

    def stale(minute: int) -> int:
        return round(symbols * objective * (0.15 + 2.4 * hump(minute)))

    def while_open(value: Callable[[int], float]) -> Callable[[int], Value]:
        return lambda minute: value(minute) if is_open(minute) else None

    day.show("slo_gap_violation_rate", line, while_open(lambda m: stale(m) / symbols))
    day.show("slo_symbols", {**line, "state": "stale"}, while_open(stale))
    day.show("slo_symbols", {**line, "state": "fresh"}, while_open(lambda m: symbols - stale(m)))
    day.show("ingestion_lag_seconds", line, while_open(lambda m: 20 + 900 * worse * hump(m)))
    day.show("ingestion_lag_median_seconds", line, while_open(lambda m: 90 * worse * hump(m)))
    day.show("slo_bars_due_total", line, lambda m: symbols if is_open(m) else 0)
    day.show("slo_bars_late_total", line, lambda m: symbols * objective * (0.3 + 6 * hump(m)) if is_open(m) else 0)
    for window, steep in (("5m", 20.0), ("30m", 12.0), ("1h", 9.0), ("6h", 3.0), ("3d", 0.8)):
        _burn(day, {**line, "window": window}, steep, worse)
    day.show("slo_error_budget_left_ratio", line, lambda m: 0.86 - 0.25 * worse * (1.0 if m >= RECOVERS else hump(m)))
    day.show("ledger_missing_bars", {**line, "plan": "retry"}, lambda m: round(symbols * worse * hump(m)))
    day.show("ledger_missing_bars", {**line, "plan": "given_up"}, lambda _: 14)
    day.show("ledger_bars", {**line, "verdict": "present"}, lambda m: symbols * gone[m])
    day.show("ledger_bars", {**line, "verdict": "confirmed_empty"}, lambda m: symbols * gone[m] // 50)
    day.show("ledger_bars", {**line, "verdict": "halted"}, lambda m: symbols * gone[m] // 1000)
    day.show("ledger_bars", {**line, "verdict": "missing"}, lambda m: round(symbols * 4 * hump(m)))
    day.show("ledger_bars", {**line, "verdict": "pending"}, lambda m: symbols * (CLOSE - OPEN - gone[m]))


def _burn(day: Day, labels: Mapping[str, str], steep: float, worse: float) -> None:
    day.show("slo_burn_rate", labels, lambda m: worse * (0.3 + steep * (hump(m) + (0.1 if m >= CAUGHT_UP else 0.0))))


def _pipeline(day: Day) -> None:
    backfills = {"type": "backfill", "provider": "any"}
    day.show("jobs_processed_total", {**backfills, "outcome": "done"}, lambda m: day.noise(20 + 60 * hump(m)))
    day.show("jobs_processed_total", {**backfills, "outcome": "dead"}, lambda m: 0.4 * is_down(m))
    day.show("refused_payloads", None, lambda _: 1)
    day.show("runs_at_work", None, lambda m: 2 + round(6 * hump(m)) if is_open(m) else 1)
    day.show_histogram("write_batch_seconds", None, lambda m: 90.0 if is_open(m) else 3.0, lambda m: 0.03 + 0.05 * hump(m))
    breaker = {"alert": "ProviderCircuitBreakerOpen", "severity": "warning"}
    violation = {"alert": "SLOGapViolationHigh", "severity": "critical"}
    day.show("alerts_firing", breaker, lambda m: 1 if FAILS + 3 < m < RECOVERS + 15 else None)
    day.show("alerts_firing", violation, lambda m: 1 if FAILS + 20 < m < CAUGHT_UP - 20 else None)
    day.show("alert_notices", {"state": "queued"}, lambda m: 1 if m in {FAILS + 4, RECOVERS + 15} else 0)
    day.show("alert_notices", {"state": "sent"}, lambda m: 5 + 2 * (m > FAILS + 4) + 2 * (m > RECOVERS + 15))
    day.show("alert_notices", {"state": "dead"}, lambda _: 0)
    day.show("alert_oldest_notice_age_seconds", None, lambda m: 25.0 * is_down(m))
    day.show("watch_age_seconds", None, lambda _: day.chance.uniform(1, 31))
    day.show("calendar_horizon_seconds", {"calendar": "XNYS"}, lambda _: 402 * 86_400)
    day.show("calendar_horizon_seconds", {"calendar": "CMES"}, lambda _: 391 * 86_400)
    day.show("database_size_bytes", None, lambda m: 41e9 + 2.2e6 * m)
    day.show("disk_free_ratio", {"volume": "home"}, lambda m: 0.46 - 0.00004 * m)
    day.show("scrape_seconds", None, lambda _: day.noise(0.04))
    day.show("build_info", {"version": "0.1.0"}, lambda _: 1)
    served = {"job": "market-data-pipeline", "instance": "127.0.0.1:8600"}
    probed = {"job": "market-data-pipeline-health", "instance": "http://127.0.0.1:8600/health"}
    day.add("up", served, lambda _: 1)
    day.add("up", probed, lambda _: 1)
    day.add("probe_success", probed, lambda _: 1)
    day.add("probe_duration_seconds", probed, lambda _: day.noise(0.01))
