"""docs/monitoring.md names every metric, alert, module and dashboard, and what it links to exists."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from market_data_pipeline.domain.metrics import METRICS, Metric
from market_data_pipeline_tests.deploy.programs import PROMETHEUS, ROOT

PAGE = (ROOT / "docs" / "monitoring.md").read_text("utf-8")
RUNBOOKS = ("market-data-service-down", "health-endpoint-failing", "watch-silent")


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_every_metric_is_in_the_table_as_the_catalogue_has_it(metric: Metric) -> None:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    row = f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |"
    assert row.replace("|  |", "| |") in PAGE


def test_no_metric_is_in_the_table_that_there_is_not() -> None:
    assert set(re.findall(r"^\| `(\w+)` \| (?:counter|gauge|histogram)", PAGE, re.MULTILINE)) == {metric.name for metric in METRICS}


def test_every_alert_is_in_the_table_with_its_wait_and_severity() -> None:
    groups = yaml.safe_load((PROMETHEUS / "rules" / "alerts.yml").read_text("utf-8"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    told = re.findall(r"^\| \[(\w+)\]\(operations/([a-z-]+)\.md\) \|.*\| (\d+) ([smhd]) \| (\w+) \|$", PAGE, re.MULTILINE)
    pages = {rule["alert"]: rule["annotations"]["runbook_url"].rpartition("/")[2].removesuffix(".md") for rule in rules}
    assert [(name, page, number + unit, severity) for name, page, number, unit, severity in told] == [
        (rule["alert"], pages[rule["alert"]], rule["for"], rule["labels"]["severity"]) for rule in rules
    ]


def test_every_module_and_dashboard_is_named() -> None:
    modules = yaml.safe_load((PROMETHEUS / "blackbox-values.yaml").read_text("utf-8"))["config"]["modules"]
    assert [name for name in modules if f"`{name}`" not in PAGE] == []
    titles = [json.loads(path.read_text("utf-8"))["title"] for path in (ROOT / "deploy/grafana/dashboards").glob("*.json")]
    assert [title for title in titles if f"**{title}**" not in PAGE] == []


def test_everything_that_is_linked_exists() -> None:
    linked = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", PAGE)]
    assert [target for target in linked if not (ROOT / "docs" / target).exists()] == []


@pytest.mark.parametrize("name", RUNBOOKS)
def test_the_runbooks_of_what_prometheus_alone_sees_have_the_common_form(name: str) -> None:
    text = (ROOT / "docs" / "operations" / f"{name}.md").read_text("utf-8")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["What it means", "What to look at", "What to do", "When it is over"]
