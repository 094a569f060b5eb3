"""The four Grafana dashboards, as code: writes dashboards/*.json beside it. `--check` compares instead and says what differs.

Panels ask for max over instances, never sums: each replica of `mdp serve` shows the same numbers (prometheus/rules/alerts.yml).
Plain dicts: the grafana-foundation-sdk would add some thousand generated classes for what a dozen functions say here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from market_data_pipeline.settings import Settings, numbers_by_tier

HERE = Path(__file__).resolve().parent / "dashboards"
OBJECTIVES = {str(tier): share for tier, share in numbers_by_tier(Settings.model_fields["slo_targets"].default).items()}
DISK_LEAST = float(Settings.model_fields["disk_free_least"].default)
DEMOTE_BELOW, PROMOTE_ABOVE = (float(Settings.model_fields[name].default) for name in ("demote_below", "promote_above"))
WIDTH = 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
GREEN, YELLOW, RED = "green", "yellow", "red"

Json = dict[str, Any]


def query(expr: str, legend: str = "", *, instant: bool = False) -> Json:
    """One PromQL query of a panel."""
    return {"datasource": SOURCE, "expr": expr, "legendFormat": legend or "__auto", "instant": instant, "range": not instant}


def steps(*above: tuple[float | None, str]) -> Json:
    """Thresholds: colours from these values on; the first has None for "from below"."""
    return {"mode": "absolute", "steps": [{"value": value, "color": color} for value, color in above]}


def panel(kind: str, title: str, description: str, unit: str, *queries: Json, **more: Any) -> Json:  # noqa: ANN401 - Grafana's options
    """One panel. ``width`` and ``height`` in Grafana's grid of 24; ``thresholds``; ``defaults`` and ``options``: Grafana's own.

    ``may_be_empty``: why its queries may well have no answer while all is in order.
    """
    thresholds = more.pop("thresholds", None)
    defaults: Json = {"unit": unit, **more.pop("defaults", {})}
    if thresholds:
        defaults["thresholds"] = thresholds
        if kind == "timeseries":
            defaults["custom"] = {"thresholdsStyle": {"mode": "dashed"}, **defaults.get("custom", {})}
    for place, one in enumerate(queries):
        one["refId"] = "ABCDEFGH"[place]
    made: Json = {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": SOURCE,
        "targets": list(queries),
        "fieldConfig": {"defaults": defaults, "overrides": more.pop("overrides", [])},
        "options": more.pop("options", {}),
        "gridPos": {"w": more.pop("width", 8), "h": more.pop("height", 8)},
    }
    why = more.pop("may_be_empty", None)
    if why:
        defaults["noValue"] = why
    return made | more


def lines(title: str, description: str, unit: str, *queries: Json, **more: Any) -> Json:  # noqa: ANN401
    """Lines over time; ``stacked`` sums them up."""
    custom: Json = {"lineWidth": 1, "fillOpacity": 5, "showPoints": "never"}
    if more.pop("stacked", False):
        custom |= {"stacking": {"mode": "normal"}, "fillOpacity": 30}
    defaults = {"min": 0, **more.pop("defaults", {}), "custom": custom}
    options = {
        "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi"},
    }
    return panel("timeseries", title, description, unit, *queries, defaults=defaults, options=options, **more)


def number(title: str, description: str, unit: str, expr: str, thresholds: Json, **more: Any) -> Json:  # noqa: ANN401
    """One number with its colour, now."""
    options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "background", "graphMode": "none"}
    return panel(
        "stat",
        title,
        description,
        unit,
        query(expr, instant=True),
        thresholds=thresholds,
        options=options,
        width=4,
        height=4,
        **more,
    )


def variable(name: str, ask: str, label: str) -> Json:
    """A choice with "all", from the values that a label has."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": ask, "refId": name},
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
        "sort": 1,
    }


PROVIDER = variable("provider", "label_values(circuit_state, provider)", "Provider")
TIER = variable("tier", "label_values(universe_symbols, tier)", "Tier")


def dashboard(uid: str, title: str, description: str, variables: list[Json], panels: list[Json]) -> Json:
    """All of one: panels placed from left to right and top to bottom, numbered, alerts as annotations."""
    left = top = tallest = 0
    for number_, one in enumerate(panels, start=1):
        at = one["gridPos"]
        if left + at["w"] > WIDTH:
            left, top, tallest = 0, top + tallest, 0
        one["gridPos"] = {"x": left, "y": top, **at}
        one["id"] = number_
        left, tallest = left + at["w"], max(tallest, at["h"])
    firing = {
        "name": "Alerts",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": RED,
        "expr": 'max by (alertname, severity) (ALERTS{alertstate="firing"})',
        "titleFormat": "{{alertname}}",
        "tagKeys": "severity",
    }
    datasource = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["market-data-pipeline"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "utc",
        "links": [{"type": "dashboards", "title": "market data pipeline", "tags": ["market-data-pipeline"], "asDropdown": True}],
        "templating": {"list": [datasource, *variables]},
        "annotations": {"list": [firing]},
        "panels": panels,
    }


def provider_health() -> Json:
    """Whom we ask, whether they answer, and how much of their limits is left."""
    mine = 'provider=~"$provider"'
    states = {"0": ("open", RED), "0.5": ("half open", YELLOW), "1": ("closed", GREEN)}
    mapping = {"type": "value", "options": {value: {"text": text, "color": color} for value, (text, color) in states.items()}}
    return dashboard(
        "mdp-providers",
        "Provider health",
        "Whom we ask, whether they answer, and how much of their limits is left.",
        [PROVIDER],
        [
            number(
                "Breakers not closed",
                "Provider and capability pairs that are not asked, or only tried.",
                "none",
                f"count(min by (provider, capability) (circuit_state{{{mine}}}) < 1) or vector(0)",
                steps((None, GREEN), (1, RED)),
            ),
            number(
                "Asked last",
                "Pairs that are demoted: asked after all others.",
                "none",
                f"sum(max by (provider, capability) (provider_is_demoted{{{mine}}})) or vector(0)",
                steps((None, GREEN), (1, YELLOW)),
            ),
            number(
                "Worst health",
                "The lowest health score. Below the lower mark it is demoted, above the upper one promoted again.",
                "percentunit",
                f"min(provider_health_score{{{mine}}})",
                steps((None, RED), (DEMOTE_BELOW, YELLOW), (PROMOTE_ABOVE, GREEN)),
            ),
            number(
                "Requests",
                "Requests that a provider was chosen for, a second.",
                "reqps",
                f"sum(provider:provider_selected:rate5m{{{mine}}})",
                steps((None, GREEN)),
            ),
            number(
                "Errors",
                "Requests that failed, a second, all providers. More than 5 of one for ten minutes is an alert.",
                "reqps",
                f"sum(provider:provider_errors:rate5m{{{mine}}}) or vector(0)",
                steps((None, GREEN), (1, YELLOW), (5, RED)),
            ),
            number(
                "Fullest limit",
                "The rate limit of which most is spent.",
                "percentunit",
                f"max(provider_budget_used_ratio{{{mine}}})",
                steps((None, GREEN), (0.8, YELLOW), (0.95, RED)),
            ),
            panel(
                "state-timeline",
                "Circuit breakers",
                "Open: not asked. Half open: one trial. Closed: asked.",
                "none",
                query(f"min by (provider, capability) (circuit_state{{{mine}}})", "{{provider}} {{capability}}"),
                width=12,
                defaults={"mappings": [mapping]},
                options={"mergeValues": True, "showValue": "never"},
            ),
            lines(
                "Health",
                "Health from 0 to 1 as the router sees it; the marks are where a provider is demoted and promoted again.",
                "percentunit",
                query(f"min by (provider, capability) (provider_health_score{{{mine}}})", "{{provider}} {{capability}}"),
                width=12,
                thresholds=steps((None, RED), (DEMOTE_BELOW, YELLOW), (PROMOTE_ABOVE, GREEN)),
                defaults={"max": 1},
            ),
            lines(
                "Requests by provider",
                "Requests that each was chosen for, a second.",
                "reqps",
                query(f"provider:provider_selected:rate5m{{{mine}}}", "{{provider}}"),
                stacked=True,
            ),
            lines(
                "Errors by class",
                "Requests that failed, a second, by the class of the failure. Five a second of one provider is an alert.",
                "reqps",
                query(
                    "sum by (provider, code) (max by (provider, endpoint, code) "
                    f"(rate(provider_errors_total{{{mine}}}[$__rate_interval])))",
                    "{{provider}} {{code}}",
                ),
                thresholds=steps((None, GREEN), (5, RED)),
                may_be_empty="no failures",
            ),
            lines(
                "Share that failed",
                "Of the requests that a provider was chosen for.",
                "percentunit",
                query(f"provider:provider_error_ratio:rate5m{{{mine}}}", "{{provider}}"),
                thresholds=steps((None, GREEN), (0.1, YELLOW), (0.5, RED)),
            ),
            lines(
                "Answer times, p95",
                "95 % of the answers, failures included, took no longer.",
                "s",
                query(f"provider_endpoint:provider_latency_seconds:p95_5m{{{mine}}}", "{{provider}} {{endpoint}}"),
            ),
            lines(
                "Answer times, mean",
                "The mean of the same.",
                "s",
                query(f"provider_endpoint:provider_latency_seconds:mean_5m{{{mine}}}", "{{provider}} {{endpoint}}"),
            ),
            lines(
                "Rows in answers",
                "Rows that each provider's answers held, a second.",
                "cps",
                query(f"provider:provider_bars:rate5m{{{mine}}}", "{{provider}}"),
                stacked=True,
            ),
            lines(
                "Limits used",
                "Share of each rate limit that is spent in its window.",
                "percentunit",
                query(f"max by (provider, window) (provider_budget_used_ratio{{{mine}}})", "{{provider}} {{window}}"),
                thresholds=steps((None, GREEN), (0.8, YELLOW), (0.95, RED)),
                defaults={"max": 1},
            ),
            lines(
                "Requests let through",
                "What the shared budget granted, a second. Less than was wanted: jobs wait.",
                "reqps",
                query(
                    f"max by (provider) (rate(provider_requests_granted_total{{{mine}}}[$__rate_interval]))",
                    "{{provider}}",
                ),
            ),
            lines(
                "Told to wait",
                "For how long nobody may ask, because the provider said so (429, Retry-After).",
                "s",
                query(f"max by (provider) (provider_budget_held_seconds{{{mine}}})", "{{provider}}"),
            ),
        ],
    )


def ingestion_quality() -> Json:
    """What is there, what is missing and why, and what works on it."""
    mine = 'tier=~"$tier"'
    return dashboard(
        "mdp-ingestion",
        "Ingestion quality",
        "What is there, what is missing and why, and what works on it.",
        [TIER],
        [
            number(
                "Missing bars",
                "In the whole ledger, whatever is planned for them. `mdp gaps --explain` names them.",
                "short",
                f"sum(max by (interval, tier, plan) (ledger_missing_bars{{{mine}}})) or vector(0)",
                steps((None, GREEN), (1, YELLOW), (10_000, RED)),
            ),
            number(
                "Refused bars, 24 h",
                "Bars that broke a law (high below low, negative volume) and were kept aside.",
                "short",
                "sum(max by (interval) (increase(refused_bars_total[24h]))) or vector(0)",
                steps((None, GREEN), (1, YELLOW), (1000, RED)),
            ),
            number(
                "Revisions, 24 h",
                "Stored values that were replaced; the old ones are kept.",
                "short",
                "sum(max by (interval) (increase(bar_revisions_total[24h]))) or vector(0)",
                steps((None, GREEN)),
            ),
            number(
                "Jobs queued",
                "More than 10,000 for a quarter of an hour is an alert.",
                "short",
                f"sum(max by (tier) (backfill_queue_depth{{{mine}}}))",
                steps((None, GREEN), (5_000, YELLOW), (10_000, RED)),
            ),
            number(
                "Oldest job",
                "How long it has been ready. More than 15 minutes of T0 is an alert.",
                "s",
                f"max(backfill_oldest_age_seconds{{{mine}}})",
                steps((None, GREEN), (300, YELLOW), (900, RED)),
            ),
            number(
                "Dead letters",
                "Jobs that nobody tries again: `mdp dlq list`.",
                "short",
                f"sum(max by (tier) (dead_letters{{{mine}}}))",
                steps((None, GREEN), (1, YELLOW), (100, RED)),
            ),
            lines(
                "Bars of the sessions watched now",
                "By verdict. Pending: their time is not up.",
                "short",
                query(f"sum by (verdict) (max by (tier, interval, verdict) (ledger_bars{{{mine}}}))", "{{verdict}}"),
                stacked=True,
                width=12,
            ),
            lines(
                "Missing bars by plan",
                "The whole ledger: what is planned for what is missing.",
                "short",
                query(
                    f"sum by (interval, plan) (max by (interval, tier, plan) (ledger_missing_bars{{{mine}}}))",
                    "{{interval}} {{plan}}",
                ),
                width=12,
                may_be_empty="nothing is missing",
            ),
            lines(
                "Gaps found",
                "Gaps that the sensor found due, an hour.",
                "short",
                query("max by (interval) (rate(gaps_found_total[$__rate_interval])) * 3600", "{{interval}}"),
            ),
            lines(
                "Bars refused",
                "An hour, by interval.",
                "short",
                query("max by (interval) (rate(refused_bars_total[$__rate_interval])) * 3600", "{{interval}}"),
                may_be_empty="none refused",
            ),
            lines(
                "Values revised",
                "An hour, by interval.",
                "short",
                query("max by (interval) (rate(bar_revisions_total[$__rate_interval])) * 3600", "{{interval}}"),
                may_be_empty="none revised",
            ),
            lines(
                "Queue",
                "Jobs queued, by tier.",
                "short",
                query(f"max by (tier) (backfill_queue_depth{{{mine}}})", "{{tier}}"),
                stacked=True,
                thresholds=steps((None, GREEN), (10_000, RED)),
            ),
            lines(
                "Oldest job by tier",
                "How long it has been ready.",
                "s",
                query(f"max by (tier) (backfill_oldest_age_seconds{{{mine}}})", "{{tier}}"),
                thresholds=steps((None, GREEN), (900, RED)),
            ),
            lines(
                "Jobs in and out",
                "Enqueued and ended, a second.",
                "cps",
                query(f"sum(tier:backfill_jobs_enqueued:rate5m{{{mine}}})", "in"),
                query(f"sum(tier:backfill_jobs_completed:rate5m{{{mine}}})", "out"),
            ),
            lines(
                "Jobs by outcome",
                "Ended, a second, by kind and how.",
                "cps",
                query("type_outcome:jobs_processed:rate5m", "{{type}} {{outcome}}"),
            ),
            lines(
                "Dead letters by tier",
                "Five more within an hour is an alert.",
                "short",
                query(f"max by (tier) (dead_letters{{{mine}}})", "{{tier}}"),
            ),
            lines(
                "Payloads refused",
                "Payloads kept that could not be read as a job.",
                "short",
                query("max(refused_payloads)", "refused"),
            ),
        ],
    )


def performance() -> Json:
    """How fast it writes, answers and is read, and what it takes of the machine."""
    return dashboard(
        "mdp-performance",
        "Performance",
        "How fast the pipeline writes, answers and is read, and what it takes of the machine.",
        [],
        [
            number(
                "mdp serve",
                "Whether Prometheus reaches it: 1 yes, 0 no.",
                "none",
                'min(up{job="market-data-pipeline"})',
                steps((None, RED), (1, GREEN)),
            ),
            number(
                "/health",
                "Whether the Blackbox Exporter finds it healthy: 1 yes, 0 no.",
                "none",
                'min(probe_success{job="market-data-pipeline-health"})',
                steps((None, RED), (1, GREEN)),
                may_be_empty="no probe",
            ),
            number(
                "Write, p95",
                "95 % of the batches of candles are committed within it. More than a second is an alert.",
                "s",
                "pipeline:write_batch_seconds:p95_5m",
                steps((None, GREEN), (0.5, YELLOW), (1, RED)),
                may_be_empty="nothing written",
            ),
            number(
                "Disk free",
                "Of the disk under MDP_HOME.",
                "percentunit",
                "min(disk_free_ratio)",
                steps((None, RED), (DISK_LEAST, YELLOW), (2 * DISK_LEAST, GREEN)),
            ),
            number(
                "Calendar",
                "Days until the last session that the calendars know; after it nothing is expected.",
                "d",
                "min(calendar_horizon_seconds) / 86400",
                steps((None, RED), (60, YELLOW), (90, GREEN)),
            ),
            number(
                "Version",
                "How many versions of mdp serve answer; two only while one replaces the other.",
                "none",
                "count(count by (version) (build_info))",
                steps((None, GREEN), (2, YELLOW)),
            ),
            lines(
                "Writing a batch",
                "How long a batch of candles took to be committed.",
                "s",
                query("pipeline:write_batch_seconds:p95_5m", "p95"),
                query("pipeline:write_batch_seconds:p50_5m", "p50"),
                thresholds=steps((None, GREEN), (1, RED)),
                may_be_empty="nothing written",
            ),
            lines(
                "Batches",
                "Batches of candles committed, a second.",
                "cps",
                query("max(rate(write_batch_seconds_count[$__rate_interval]))", "batches"),
            ),
            lines(
                "Rows from providers",
                "Rows in answers, a second.",
                "cps",
                query("sum(provider:provider_bars:rate5m)", "rows"),
            ),
            lines(
                "Reading the metrics",
                "How long /metrics took to read all of Postgres that it shows. The aim is 0.1 s at 8,000 symbols.",
                "s",
                query("max(scrape_seconds)", "scrape"),
                query('max(probe_duration_seconds{job="market-data-pipeline-health"})', "/health, from outside"),
                thresholds=steps((None, GREEN), (0.1, YELLOW), (1, RED)),
            ),
            lines(
                "Runs at work",
                "Run processes that showed a heartbeat within two minutes.",
                "none",
                query("max(runs_at_work)", "runs"),
            ),
            lines(
                "Database",
                "Size of our database.",
                "bytes",
                query("max(database_size_bytes)", "database"),
            ),
            lines(
                "Disk",
                "Free share, and what it will be in a day at the pace of the last six hours.",
                "percentunit",
                query("min by (volume) (disk_free_ratio)", "{{volume}}"),
                query("min by (volume) (clamp_min(predict_linear(disk_free_ratio[6h], 86400), 0))", "{{volume}} in a day"),
                thresholds=steps((None, RED), (DISK_LEAST, GREEN)),
                defaults={"max": 1},
            ),
            lines(
                "Symbols",
                "Active symbols by tier.",
                "none",
                query("max by (tier) (universe_symbols)", "{{tier}}"),
                stacked=True,
            ),
            lines(
                "Calendar horizon",
                "Days until the last session that each calendar knows.",
                "d",
                query("min by (calendar) (calendar_horizon_seconds) / 86400", "{{calendar}}"),
                thresholds=steps((None, RED), (60, GREEN)),
            ),
        ],
    )


def freshness() -> Json:
    """Whether what should be there is there, against the objectives; and who was told that it is not."""
    mine = 'tier=~"$tier"'
    least, most = min(OBJECTIVES.values()), max(OBJECTIVES.values())
    said = ", ".join(f"{tier} {share:.1%}" for tier, share in OBJECTIVES.items())
    return dashboard(
        "mdp-freshness",
        "Freshness and alerts",
        "Whether what should be there is there, against the objectives; and who was told that it is not.",
        [TIER],
        [
            number(
                "Stale symbols",
                "Tradable symbols whose newest bar is older than allowed, now.",
                "none",
                f'sum(max by (tier, interval) (slo_symbols{{{mine}, state="stale"}})) or vector(0)',
                steps((None, GREEN), (1, YELLOW), (10, RED)),
            ),
            number(
                "Worst violation",
                f"The highest share of stale symbols of a tier and interval. Objectives unless told otherwise: {said}.",
                "percentunit",
                f"max(slo_gap_violation_rate{{{mine}}})",
                steps((None, GREEN), (least, YELLOW), (most, RED)),
                may_be_empty="market closed",
            ),
            number(
                "Error budget left",
                "Of 30 days, of the tier and interval that has least; below 0 the objective is broken.",
                "percentunit",
                f"min(slo_error_budget_left_ratio{{{mine}}})",
                steps((None, RED), (0, YELLOW), (0.25, GREEN)),
            ),
            number(
                "Alerts firing",
                "The pipeline's own: `mdp alerts list`.",
                "none",
                "sum(max by (alert, severity) (alerts_firing)) or vector(0)",
                steps((None, GREEN), (1, YELLOW), (5, RED)),
            ),
            number(
                "Oldest message",
                "How long the oldest undelivered message waits. More than 15 minutes: nobody hears of anything.",
                "s",
                "max(alert_oldest_notice_age_seconds)",
                steps((None, GREEN), (120, YELLOW), (900, RED)),
                may_be_empty="none waits",
            ),
            number(
                "Last look",
                "Since when nobody has looked at SLOs and alert rules. More than 5 minutes: the pipeline's own alerts are blind.",
                "s",
                "max(watch_age_seconds)",
                steps((None, GREEN), (120, YELLOW), (300, RED)),
            ),
            lines(
                "Stale share of symbols",
                "By tier and interval, while something is expected of them; dashed: what it may be.",
                "percentunit",
                query(f"max by (tier, interval) (slo_gap_violation_rate{{{mine}}})", "{{tier}} {{interval}}"),
                query(f"max by (tier) (slo_objective_ratio{{{mine}}})", "{{tier}} objective"),
                width=12,
                overrides=[
                    {
                        "matcher": {"id": "byRegexp", "options": ".* objective"},
                        "properties": [{"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [6, 6]}}],
                    }
                ],
                may_be_empty="market closed",
            ),
            lines(
                "How late",
                "The newest bar of the worst symbol and of the median one. Five minutes of the median is an alert.",
                "s",
                query(f"max by (tier, interval) (ingestion_lag_seconds{{{mine}}})", "{{tier}} {{interval}} worst"),
                query(f"max by (tier, interval) (ingestion_lag_median_seconds{{{mine}}})", "{{tier}} {{interval}} median"),
                width=12,
                thresholds=steps((None, GREEN), (300, RED)),
                may_be_empty="market closed",
            ),
            lines(
                "Late bars",
                "Of the bars whose time came within the hour, those that were late.",
                "percentunit",
                query(f"tier_interval:slo_bars_late_ratio:rate1h{{{mine}}}", "{{tier}} {{interval}}"),
                may_be_empty="nothing was due",
            ),
            lines(
                "Budget burn, one hour",
                "1: the error budget of 30 days is just used up in 30 days. 14.4, and over five minutes as well, wakes somebody.",
                "none",
                query(f'max by (tier, interval) (slo_burn_rate{{{mine}, window="1h"}})', "{{tier}} {{interval}}"),
                thresholds=steps((None, GREEN), (1, YELLOW), (14.4, RED)),
            ),
            lines(
                "Budget burn, six hours and three days",
                "6 over six hours, or 1 over three days, is for the day.",
                "none",
                query(
                    f'max by (tier, interval, window) (slo_burn_rate{{{mine}, window=~"6h|3d"}})',
                    "{{tier}} {{interval}} {{window}}",
                ),
                thresholds=steps((None, GREEN), (1, YELLOW), (6, RED)),
            ),
            panel(
                "bargauge",
                "Error budget left",
                "Of 30 days, by tier and interval.",
                "percentunit",
                query(f"min by (tier, interval) (slo_error_budget_left_ratio{{{mine}}})", "{{tier}} {{interval}}", instant=True),
                thresholds=steps((None, RED), (0, YELLOW), (0.25, GREEN)),
                defaults={"min": 0, "max": 1},
                options={"orientation": "horizontal", "displayMode": "basic"},
            ),
            panel(
                "table",
                "Alerts firing",
                "The pipeline's own alerts by rule and severity; what they say: `mdp alerts list`.",
                "none",
                query("max by (alert, severity) (alerts_firing) > 0", instant=True),
                options={"showHeader": True},
                may_be_empty="none is firing",
            ),
            lines(
                "Outbox",
                "Messages about alerts: queued, sent, or given up.",
                "none",
                query("max by (state) (alert_notices)", "{{state}}"),
            ),
            lines(
                "Alerts over time",
                "The pipeline's own, while they are firing.",
                "none",
                query("max by (alert) (alerts_firing)", "{{alert}}"),
                width=16,
                may_be_empty="none is firing",
            ),
            lines(
                "Symbols",
                "Tradable symbols of which something is expected now, fresh and stale.",
                "none",
                query(f"sum by (state) (max by (tier, interval, state) (slo_symbols{{{mine}}}))", "{{state}}"),
                stacked=True,
                may_be_empty="market closed",
            ),
        ],
    )


def written() -> dict[str, str]:
    """The files' texts by name."""
    made = [provider_health(), ingestion_quality(), performance(), freshness()]
    return {f"{one['uid']}.json": json.dumps(one, indent=1, ensure_ascii=False) + "\n" for one in made}


def main() -> int:
    """Write the files; with --check compare them, 1 where one differs."""
    files = written()
    if "--check" in sys.argv[1:]:
        stale = [name for name, text in files.items() if not (HERE / name).exists() or (HERE / name).read_text("utf-8") != text]
        extra = sorted({path.name for path in HERE.glob("*.json")} - files.keys())
        for name in [*stale, *extra]:
            print(f"{name} is not what dashboards.py says: run python deploy/grafana/dashboards.py")
        return 1 if stale or extra else 0
    HERE.mkdir(exist_ok=True)
    for name, text in files.items():
        (HERE / name).write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
