"""A real Prometheus scrapes the real `mdp serve`, a real Blackbox Exporter asks for /health: alerts fire, and end with the trouble.

The files are those that are shipped. Only times differ, in what the test loads: everything is scraped each two seconds, and
no alert waits (`for`, `keep_firing_for`); that they wait as written is promtool's part (test_rules.py).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from market_data_pipeline.domain.health import HealthPolicy, Outcome
from market_data_pipeline.domain.metrics import METRICS, MetricKind
from market_data_pipeline.domain.queue import JobKind, NewJob, QueuePolicy
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.storage.health import HealthBook
from market_data_pipeline.storage.jobs import JobQueue
from market_data_pipeline_tests.deploy.programs import PROMETHEUS, Prometheus, a_blackbox_exporter, a_prometheus, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy.engine import Engine

# Alerts about this machine rather than about what the test does.
OF_THE_MACHINE = {"DiskFilling"}


@dataclass(frozen=True)
class Serve:
    """A running `mdp serve`."""

    url: str
    process: subprocess.Popen[str]


@contextmanager
def a_service(database_url: str, home: Path) -> Iterator[Serve]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MDP_")}
    told = {"MDP_DATABASE_URL": database_url, "MDP_HOME": str(home), "MDP_LOG_LEVEL": "warning"}
    command = [sys.executable, "-m", "market_data_pipeline.cli.main", "serve", "--port", "0"]
    with (home / "serve.log").open("w") as log:
        process = subprocess.Popen(command, env={**environment, **told}, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout
        line = process.stdout.readline()
        said = re.match(r"(http://\S+)/health", line)
        assert said, (home / "serve.log").read_text("utf-8")
        yield Serve(said[1], process)
    finally:
        process.terminate()
        process.communicate(timeout=20)


def impatient_rules(folder: Path) -> list[str]:
    """The shipped rules, judged each second and without waiting."""
    paths = []
    for shipped in sorted((PROMETHEUS / "rules").glob("*.yml")):
        rules = yaml.safe_load(shipped.read_text("utf-8"))
        for group in rules["groups"]:
            group["interval"] = "1s"
            for rule in group["rules"]:
                rule.pop("for", None)
                rule.pop("keep_firing_for", None)
        path = folder / shipped.name
        path.write_text(yaml.safe_dump(rules), "utf-8")
        paths.append(str(path))
    return paths


def impatient_config(folder: Path, *, serve: str, exporter: str) -> dict[str, Any]:
    """The shipped configuration, with the addresses of this test."""
    config: dict[str, Any] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text("utf-8"))
    config["global"] |= {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"}
    config["rule_files"] = impatient_rules(folder)
    moved = json.dumps(config).replace("127.0.0.1:8600", serve).replace("127.0.0.1:9115", exporter)
    return json.loads(moved)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Watched:
    """A pipeline's database, its `mdp serve`, and the Prometheus that watches it."""

    engine: Engine
    serve: Serve
    prometheus: Prometheus

    def firing(self) -> set[str]:
        return self.prometheus.firing() - OF_THE_MACHINE


@pytest.fixture
def watched(engine: Engine, database_url: str, tmp_path: Path) -> Iterator[Watched]:
    with a_service(database_url, tmp_path) as serve, a_blackbox_exporter(tmp_path) as exporter:
        config = impatient_config(tmp_path, serve=serve.url.removeprefix("http://"), exporter=exporter.removeprefix("http://"))
        with a_prometheus(tmp_path, config) as prometheus:
            up = 'up{job=~"market-data-pipeline(-health)?"} == 1'
            wait_until("both targets are up", lambda: len(prometheus.get("query", query=up)["result"]) == 2)
            yield Watched(engine, serve, prometheus)


def let_yahoo_fail(engine: Engine) -> HealthBook:
    book, now = HealthBook(engine, HealthPolicy()), datetime.now(UTC)
    for _ in range(HealthPolicy().breaker_failures):
        book.record("yahoo", "bars_1m", Outcome("transient", latency_seconds=1.0), now=now)
    book.flush()
    return book


def queue_jobs(engine: Engine, number: int) -> None:
    jobs = [NewJob(f"job-{n}", JobKind.BACKFILL, Tier.T2, f"key-{n}", {"symbol": "AAPL"}, "test") for n in range(number)]
    assert JobQueue(engine, QueuePolicy()).submit(jobs).accepted == number


def forget_the_jobs(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("delete from jobs")
        connection.exec_driver_sql("update job_dispatch set queued = 0")


def test_alerts_fire_in_trouble_and_end_with_it(watched: Watched) -> None:
    wait_until("nothing fires while all is well", lambda: watched.firing() == set())

    book = let_yahoo_fail(watched.engine)
    wait_until("the breaker's alert", lambda: watched.firing() == {"ProviderCircuitBreakerOpen"})
    (alert,) = [one for one in watched.prometheus.get("alerts")["alerts"] if one["state"] == "firing"]
    assert alert["labels"]["provider"] == "yahoo"
    assert alert["annotations"]["runbook_url"] == (
        "https://example.org/market_data_pipeline/docs/operations/provider-circuit-breaker-open.md"
    )

    queue_jobs(watched.engine, 10_001)
    wait_until("the queue's alert", lambda: watched.firing() == {"ProviderCircuitBreakerOpen", "BackfillQueueDepthHigh"})

    forget_the_jobs(watched.engine)
    book.reset("yahoo", now=datetime.now(UTC))
    wait_until("all is well again", lambda: watched.firing() == set())

    watched.serve.process.terminate()
    gone = {"MarketDataServiceDown", "HealthEndpointFailing"}
    wait_until("the service's alerts", lambda: watched.firing() == gone)


def test_prometheus_reads_each_family_as_the_catalogue_has_it(watched: Watched) -> None:
    told = {
        one["metric"]: (one["type"], one["help"])
        for one in watched.prometheus.get("targets/metadata", match_target='{job="market-data-pipeline"}')
    }
    shown = {metric.name.removesuffix("_total") if metric.kind is MetricKind.COUNTER else metric.name: metric for metric in METRICS}
    # OpenMetrics, which Prometheus asks for, names a counter's family without its _total.
    families = {name.removesuffix("_total") for name in told}
    assert families == set(shown)
    for name, (kind, said) in told.items():
        metric = shown[name.removesuffix("_total")]
        assert (kind, said) == (str(metric.kind), metric.help)
