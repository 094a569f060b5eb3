"""Real programs for these tests: Prometheus and the Blackbox Exporter, each on a port that the system chose."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import yaml

from market_data_pipeline_tests.deploy.example_day import FIRST, MINUTES, example_day
from market_data_pipeline_tests.tools import tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
LISTENS = re.compile(r'msg="Listening on" address=127\.0\.0\.1:(\d+)')


def wait_until(what: str, holds: Callable[[], Any], *, seconds: float = 60.0) -> None:
    """Return as soon as ``holds`` gives something true; AssertionError, with ``what``, where it does not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        threading.Event().wait(0.05)


@contextmanager
def running(program: Path, *arguments: str, log: Path) -> Iterator[str]:
    """The URL of a program that logs where it listens; ended afterwards."""
    with log.open("wb") as output:
        process = subprocess.Popen([program, *arguments], stdout=output, stderr=output)
    try:

        def listens() -> re.Match[str] | None:
            text = log.read_text("utf-8")
            assert process.poll() is None, text
            return LISTENS.search(text)

        wait_until(f"{program.name} listens", listens)
        found = listens()
        assert found
        yield f"http://127.0.0.1:{found[1]}"
    finally:
        process.terminate()
        process.wait(20)


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def get(self, path: str, **parameters: str | float) -> Any:  # noqa: ANN401 - their JSON
        """``data`` of an answer; AssertionError with their words where there is an error in it."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=20).json()
        assert answer["status"] == "success", f"{parameters}: {answer}"
        return answer["data"]

    def firing(self) -> set[str]:
        """The names of the alerts that are firing."""
        return {alert["labels"]["alertname"] for alert in self.get("alerts")["alerts"] if alert["state"] == "firing"}


@contextmanager
def a_prometheus(folder: Path, config: Mapping[str, Any], *, data: Path | None = None) -> Iterator[Prometheus]:
    """Prometheus with ``config``, on ``data`` if there is any, ready to be asked."""
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(dict(config)), "utf-8")
    arguments = [
        f"--config.file={file}",
        f"--storage.tsdb.path={data or folder / 'data'}",
        "--storage.tsdb.retention.time=100y",
        "--web.listen-address=127.0.0.1:0",
        "--log.level=info",
    ]
    with running(tool("prometheus"), *arguments, log=folder / "prometheus.log") as url:
        wait_until("Prometheus is ready", lambda: httpx.get(f"{url}/-/ready", timeout=5).status_code == 200)
        yield Prometheus(url)


@contextmanager
def a_blackbox_exporter(folder: Path) -> Iterator[str]:
    """The Blackbox Exporter with the modules of our Helm values, bound to loopback as our docs have it."""
    values = yaml.safe_load((PROMETHEUS / "blackbox-values.yaml").read_text("utf-8"))
    file = folder / "blackbox.yml"
    file.write_text(yaml.safe_dump(values["config"]), "utf-8")
    arguments = [f"--config.file={file}", "--web.listen-address=127.0.0.1:0"]
    with running(tool("blackbox_exporter"), *arguments, log=folder / "blackbox.log") as url:
        yield url


def promtool(*arguments: str | Path) -> str:
    """What promtool says; AssertionError with it where it is not content."""
    done = subprocess.run(
        [str(tool("promtool")), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120, cwd=PROMETHEUS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def a_prometheus_of_the_example_day(folder: Path) -> Iterator[Prometheus]:
    """Prometheus that has the example day, and what our recording rules made of it, in its store."""
    data = folder / "data"
    (folder / "day.txt").write_text(example_day(), "utf-8")
    promtool("tsdb", "create-blocks-from", "openmetrics", folder / "day.txt", data)
    config = {"global": {"evaluation_interval": "1h"}}
    begin, end = FIRST.timestamp(), FIRST.timestamp() + 60 * (MINUTES - 1)
    rules = PROMETHEUS / "rules" / "recording.yml"
    # Twice: rules that ask for other rules' series find those of the first pass.
    for _ in range(2):
        with a_prometheus(folder, config, data=data) as prometheus:
            options = [f"--start={begin:.0f}", f"--end={end:.0f}", f"--url={prometheus.url}", "--eval-interval=60s"]
            promtool("tsdb", "create-blocks-from", "rules", *options, f"--output-dir={data}", rules)
    with a_prometheus(folder, config, data=data) as prometheus:
        yield prometheus
