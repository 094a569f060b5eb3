"""The real command line in this process: its own environment, a real database, captured output and exit code."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest
from click.testing import CliRunner

from market_data_pipeline.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

# A Saturday: every session before it is over and due.
NOW = "2024-12-07T12:00:00Z"
# Port 9 is "discard": nothing listens there, and a connection is refused at once.
NO_WEBSERVER = "http://127.0.0.1:9"


@dataclass(frozen=True)
class Answer:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:  # noqa: ANN401 - whatever the command printed
        return orjson.loads(self.out)


@dataclass(frozen=True)
class Mdp:
    """Runs `mdp` commands in one environment."""

    environment: Mapping[str, str]
    home: Path

    def __call__(self, *arguments: str, **variables: str) -> Answer:
        """Run one command; ``variables`` are further MDP_ variables, by their name in lower case without the prefix."""
        ours = {name: None for name in os.environ if name.startswith("MDP_")}
        given = {f"MDP_{name.upper()}": value for name, value in variables.items()}
        with CliRunner().isolation(env={**ours, **self.environment, **given}) as (out, err, _):
            code = _exit_code(arguments)
            return Answer(code, out.getvalue().decode(), err.getvalue().decode())


def _exit_code(arguments: tuple[str, ...]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def mdp(database_url: str, tmp_path: Path) -> Mdp:
    """`mdp` on a fresh database, at noon of Saturday 2024-12-07, with no Dagster webserver."""
    environment = {
        "MDP_HOME": str(tmp_path / "home"),
        "MDP_DATABASE_URL": database_url,
        "MDP_DAGSTER_URL": NO_WEBSERVER,
        "MDP_CLOCK": NOW,
    }
    return Mdp(environment, tmp_path)


@pytest.fixture
def offline_mdp(tmp_path: Path) -> Mdp:
    """`mdp` where nothing runs at all."""
    environment = {
        "MDP_HOME": str(tmp_path / "home"),
        "MDP_DATABASE_URL": "postgresql://nobody:secret-word@127.0.0.1:9/nothing",
        "MDP_DAGSTER_URL": NO_WEBSERVER,
        "MDP_CLOCK": NOW,
    }
    return Mdp(environment, tmp_path)


@dataclass(frozen=True)
class Webserver:
    """A running Dagster webserver on ``webserver_definitions``. Runs that work on the symbol HOLD wait for ``release``."""

    url: str
    release: Path


@pytest.fixture(scope="session")
def webserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webserver]:
    """A real Dagster webserver on a code location of our own; runs are launched at once, without a queue."""
    home = tmp_path_factory.mktemp("dagster")
    coordinator = "run_coordinator: {module: dagster._core.run_coordinator, class: DefaultRunCoordinator}"
    (home / "dagster.yaml").write_text(f"telemetry: {{enabled: false}}\n{coordinator}\n")
    release, url = home / "release", f"http://127.0.0.1:{_free_port()}"
    command = [sys.executable, "-W", "ignore", "-m", "dagster_webserver", "--host", "127.0.0.1", "--port", url.rpartition(":")[2]]
    command += ["-m", "market_data_pipeline_tests.cli.webserver_definitions"]
    environment = {**os.environ, "DAGSTER_HOME": str(home), "RELEASE_FILE": str(release)}
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + 60
            while not _answers(url):
                assert process.poll() is None, (home / "log").read_text()
                assert time.monotonic() < deadline, "the webserver did not start within a minute"
                threading.Event().wait(0.2)
            yield Webserver(url, release)
        finally:
            process.terminate()
            process.wait(20)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/server_info", trust_env=False).is_success
    except httpx.TransportError:
        return False
