"""Prometheus' rules, scrape configuration and the operator's files: promtool is content, and what they name exists."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from market_data_pipeline.domain.alert_rules import RULES
from market_data_pipeline.domain.alerts import Severity
from market_data_pipeline.settings import Settings
from market_data_pipeline_tests.deploy.programs import PROMETHEUS, ROOT, promtool

ALERTS = [
    rule for group in yaml.safe_load((PROMETHEUS / "rules/alerts.yml").read_text("utf-8"))["groups"] for rule in group["rules"]
]
NINE, OWN = yaml.safe_load((PROMETHEUS / "rules/alerts.yml").read_text("utf-8"))["groups"]
SUITES = sorted((PROMETHEUS / "tests").glob("*.yml"))
EXPECTATIONS = [
    expected
    for suite in SUITES
    for test in yaml.safe_load(suite.read_text("utf-8"))["tests"]
    for expected in test.get("alert_rule_test", [])
]


def each_alert() -> list[Any]:
    return [pytest.param(rule, id=rule["alert"]) for rule in ALERTS]


def seconds(text: str) -> int:
    """A duration of Prometheus."""
    return sum(int(number) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit] for number, unit in re.findall(r"(\d+)([smhd])", text))


def test_promtool_finds_nothing_wrong() -> None:
    said = promtool("check", "config", "--lint=all", "--lint-fatal", "prometheus.yml")
    assert "rules/alerts.yml" in said
    assert "rules/recording.yml" in said
    promtool("check", "rules", "--lint=all", "--lint-fatal", *(path for path in (PROMETHEUS / "rules").glob("*.yml")))


@pytest.mark.parametrize("suite", SUITES, ids=lambda path: path.stem)
def test_rules_do_what_their_unit_tests_say(suite: Any) -> None:  # noqa: ANN401 - a path of pytest's
    promtool("test", "rules", suite)


@pytest.mark.parametrize("rule", each_alert())
def test_unit_tests_show_each_alert_firing_waiting_and_over(rule: dict[str, Any]) -> None:
    mine = [one for one in EXPECTATIONS if one["alertname"] == rule["alert"]]
    fires = [seconds(one["eval_time"]) for one in mine if one["exp_alerts"]]
    quiet = [seconds(one["eval_time"]) for one in mine if not one["exp_alerts"]]
    assert fires
    assert min(fires) >= seconds(rule["for"])
    assert min(quiet) < max(fires), "not before its time"
    assert max(quiet) > min(fires), "and it ends"
    for expected in mine:
        for alert in expected["exp_alerts"]:
            assert alert["exp_annotations"].keys() == rule["annotations"].keys()


@pytest.mark.parametrize("rule", each_alert())
def test_each_alert_says_how_bad_it_is_and_where_to_look(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in set(Severity)
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url", "dashboard_url"}
    page = re.fullmatch(
        r'\{\{ or \$externalLabels\.runbooks "docs/operations" \}\}/([a-z-]+)\.md', rule["annotations"]["runbook_url"]
    )
    board = re.match(r"\{\{ \$externalLabels\.grafana \}\}/d/([a-z-]+)(\?|$)", rule["annotations"]["dashboard_url"])
    assert page
    assert (ROOT / "docs" / "operations" / f"{page[1]}.md").exists()
    assert board
    assert (ROOT / "deploy" / "grafana" / "dashboards" / f"{board[1]}.json").exists()
    built_in = RULES.get(rule["alert"].removesuffix("T0"))
    # One page for one trouble, whoever tells of it.
    assert built_in is None or built_in.runbook == page[1]


def test_the_nine_are_the_nine() -> None:
    assert [rule["alert"] for rule in NINE["rules"]] == [
        "SLOGapViolationHighT0",
        "BackfillOldestTooOldT0",
        "ProviderErrorSpike",
        "BackfillQueueDepthHigh",
        "ProviderCircuitBreakerOpen",
        "DBWriteLatencyHigh",
        "IngestionLagHigh",
        "MarketDataServiceDown",
        "HealthEndpointFailing",
    ]


def test_replicas_of_serve_are_not_added_up() -> None:
    """Each shows the same Postgres: whatever is summed was the max over instances before."""
    files = [yaml.safe_load(path.read_text("utf-8")) for path in sorted((PROMETHEUS / "rules").glob("*.yml"))]
    exprs = [rule["expr"] for file in files for group in file["groups"] for rule in group["rules"]]
    sums = [found for expr in exprs for found in re.findall(r"\bsum(?: by \([^)]*\))? ?\((\w+)", expr)]
    assert set(sums) == {"max"}


def test_the_scrape_configuration_fits_the_settings_and_the_rules() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text("utf-8"))
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    host, port = (Settings.model_fields[name].default for name in ("serve_host", "serve_port"))
    assert jobs["market-data-pipeline"]["static_configs"] == [{"targets": [f"{host}:{port}"]}]
    assert jobs["market-data-pipeline"]["honor_labels"] is True
    assert jobs["market-data-pipeline-health"]["static_configs"] == [{"targets": [f"http://{host}:{port}/health"]}]
    asked = {name for rule in ALERTS for name in re.findall(r'job="([^"]+)"', rule["expr"])}
    assert asked <= set(jobs)


def test_modules_that_are_asked_for_are_in_the_blackbox_values() -> None:
    modules = set(yaml.safe_load((PROMETHEUS / "blackbox-values.yaml").read_text("utf-8"))["config"]["modules"])
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text("utf-8"))
    monitor = yaml.safe_load((PROMETHEUS / "servicemonitor-blackbox.yaml").read_text("utf-8"))
    asked = [module for job in config["scrape_configs"] for module in job.get("params", {}).get("module", [])]
    asked += [module for endpoint in monitor["spec"]["endpoints"] for module in endpoint["params"]["module"]]
    assert set(asked) == modules


@pytest.mark.parametrize("name", ["servicemonitor-app.yaml", "servicemonitor-blackbox.yaml"])
def test_service_monitors_give_targets_the_jobs_that_rules_ask_for(name: str) -> None:
    monitor = yaml.safe_load((PROMETHEUS / name).read_text("utf-8"))
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "ServiceMonitor")
    (endpoint,) = monitor["spec"]["endpoints"]
    if "jobLabel" in monitor["spec"]:
        job = monitor["spec"]["selector"]["matchLabels"][monitor["spec"]["jobLabel"]]
    else:
        (job,) = [one["replacement"] for one in endpoint["relabelings"] if one["targetLabel"] == "job"]
    assert any(f'job="{job}"' in rule["expr"] for rule in ALERTS)
    # The operator says `endpoint` for the name of a port; ours is a provider's.
    assert endpoint.get("honorLabels", name != "servicemonitor-app.yaml")
