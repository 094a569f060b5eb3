"""Dashboards: the files are what the script says, and a real Prometheus answers each panel's query with something."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from market_data_pipeline.domain.metrics import BY_NAME, METRICS
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.settings import Settings, numbers_by_tier
from market_data_pipeline_tests.deploy.example_day import FIRST, MINUTES
from market_data_pipeline_tests.deploy.programs import PROMETHEUS, ROOT, Prometheus, a_prometheus_of_the_example_day

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GRAFANA = ROOT / "deploy" / "grafana"
DASHBOARDS = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}
PANELS = [(uid, panel) for uid, dashboard in DASHBOARDS.items() for panel in dashboard["panels"]]
SCRIPT = [sys.executable, str(GRAFANA / "dashboards.py")]
NOT_OURS = {"up", "probe_success", "probe_duration_seconds", "ALERTS"}
# Words of PromQL that are no metric's name.
WORDS = re.compile(
    r"\b(by|on|group_left|or|and|unless|sum|max|min|count|avg|rate|increase|vector|clamp_min|predict_linear|absent|histogram_quantile)\b"
)


def named_panels() -> list[Any]:
    return [pytest.param(panel, id=f"{uid}: {panel['title']}") for uid, panel in PANELS]


def names_in(expr: str) -> set[str]:
    """The metrics that an expression asks for: what is left of it without its strings, labels, windows, words and numbers."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\boffset \w+|\b(by|on|group_left|without|ignoring)\s*\([^)]*\)", " ", expr)
    return set(re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", WORDS.sub(" ", bare)))


def family(name: str) -> str:
    """The catalogue's name of a series: histograms without what their parts add."""
    bare = re.sub(r"_(bucket|count|sum)$", "", name)
    return bare if bare in BY_NAME else name


def rules() -> list[dict[str, Any]]:
    files = [yaml.safe_load(path.read_text("utf-8")) for path in sorted((PROMETHEUS / "rules").glob("*.yml"))]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def substituted(expr: str) -> str:
    return expr.replace("$__rate_interval", "5m").replace("$provider", ".*").replace("$tier", ".*")


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with a_prometheus_of_the_example_day(tmp_path_factory.mktemp("prometheus")) as running:
        yield running


def test_the_files_are_what_the_script_writes() -> None:
    checked = subprocess.run([*SCRIPT, "--check"], capture_output=True, text=True, check=False, timeout=60)
    assert (checked.returncode, checked.stdout) == (0, "")


def test_the_dashboards_can_be_drawn_without_grafana(prometheus: Prometheus, tmp_path: Path) -> None:
    span = ["--until", "2026-11-20T18:10:00Z", "--hours", "4", "--out", str(tmp_path)]
    drawn = subprocess.run(
        [sys.executable, str(GRAFANA / "draw.py"), prometheus.url, *span], capture_output=True, text=True, check=False, timeout=120
    )
    assert (drawn.returncode, drawn.stderr) == (0, "")
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(DASHBOARDS)


def test_there_are_four_and_each_has_its_own_id() -> None:
    assert [board["uid"] for board in DASHBOARDS.values()] == ["mdp-freshness", "mdp-ingestion", "mdp-performance", "mdp-providers"]
    assert sorted(DASHBOARDS) == sorted(board["uid"] for board in DASHBOARDS.values())


@pytest.mark.parametrize("panel", named_panels())
def test_prometheus_answers_each_panel_with_something(panel: dict[str, Any], prometheus: Prometheus) -> None:
    begin, end = FIRST.timestamp(), FIRST.timestamp() + 60 * (MINUTES - 1)
    for target in panel["targets"]:
        expr = substituted(target["expr"])
        if target["instant"]:
            # Half an hour into the outage, when every alert of the story is firing.
            found = prometheus.get("query", query=expr, time=FIRST.timestamp() + 60 * 208)
        else:
            found = prometheus.get("query_range", query=expr, start=begin, end=end, step=300)
        assert found["result"], expr


@pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=lambda dashboard: dashboard["uid"])
def test_prometheus_understands_annotations_and_choices(dashboard: dict[str, Any], prometheus: Prometheus) -> None:
    for annotation in dashboard["annotations"]["list"]:
        # Alerts of Prometheus itself: there are none of a day that was put in afterwards.
        prometheus.get("query", query=annotation["expr"], time=FIRST.timestamp())
    for choice in dashboard["templating"]["list"]:
        if choice["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", choice["query"]["query"]).groups()  # type: ignore[union-attr]
            assert label in BY_NAME[metric].labels


@pytest.mark.parametrize("panel", named_panels())
def test_each_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".") or "`" in panel["description"]
    assert panel["fieldConfig"]["defaults"]["unit"]


@pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=lambda dashboard: dashboard["uid"])
def test_no_panel_lies_on_another(dashboard: dict[str, Any]) -> None:
    places = [
        (x, y)
        for grid in (panel["gridPos"] for panel in dashboard["panels"])
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(places) == len(set(places))
    assert max(x for x, _ in places) < 24


def test_dashboards_and_rules_ask_only_for_what_there_is() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    asked = {name for _, panel in PANELS for target in panel["targets"] for name in names_in(target["expr"])}
    asked |= {name for rule in rules() for name in names_in(rule["expr"])}
    assert {name for name in asked if family(name) not in BY_NAME} - recorded - NOT_OURS == set()
    assert recorded - asked == set(), "recorded, and nobody asks for it"


def test_labels_in_selectors_are_those_of_the_metric() -> None:
    exprs = [target["expr"] for _, panel in PANELS for target in panel["targets"]] + [rule["expr"] for rule in rules()]
    for expr in exprs:
        for name, inside in re.findall(r"([a-z_:]+)\{([^}]*)\}", expr):
            if family(name) in BY_NAME:
                assert set(re.findall(r"(\w+)\s*(?:=|!)", inside)) <= {*BY_NAME[family(name)].labels, "le"}, expr


def test_every_metric_of_the_catalogue_is_on_a_dashboard() -> None:
    shown = {name for _, panel in PANELS for target in panel["targets"] for name in names_in(target["expr"])}
    behind = {name for rule in rules() if rule.get("record") in shown for name in names_in(rule["expr"])}
    # Recording rules over recording rules.
    behind |= {name for rule in rules() if rule.get("record") in behind for name in names_in(rule["expr"])}
    assert {metric.name for metric in METRICS} - {family(name) for name in shown | behind} == set()


def test_the_thresholds_of_violations_are_the_objectives() -> None:
    objectives = numbers_by_tier(Settings.model_fields["slo_targets"].default)
    (panel,) = [panel for _, panel in PANELS if panel["title"] == "Worst violation"]
    colours = [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]]
    assert colours == [None, objectives[Tier.T0], objectives[Tier.T2]]


def test_what_grafana_is_given_fits_together() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text("utf-8"))["datasources"]
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/market-data-pipeline.yaml").read_text("utf-8"))["providers"]
    scraped = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text("utf-8"))["global"]["scrape_interval"]
    assert source["type"] == "prometheus"
    assert source["jsonData"]["timeInterval"] == scraped
    assert provider["allowUiUpdates"] is False
    # No password and no key is shipped.
    assert "secureJsonData" not in source
