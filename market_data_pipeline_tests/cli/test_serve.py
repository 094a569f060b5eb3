"""The real process, asked over real HTTP, and how it begins and ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest
import sqlalchemy as sa

from market_data_pipeline_tests.serving.gate import a_gate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy.engine import Engine

    from market_data_pipeline_tests.cli.conftest import Mdp

PATIENCE = 60.0
SECRET = "secret-word"  # noqa: S105 - what must not be told


@dataclass
class Server:
    """A running `mdp serve`."""

    process: subprocess.Popen[str]
    log: Path
    told: Any

    def said(self) -> str:
        """What it has said on standard error."""
        return self.log.read_text(encoding="utf-8")

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.told['url']}{path}", timeout=20, trust_env=False)

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Its exit code, and what it said on standard error."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE), self.said()


@contextmanager
def serving(mdp: Mdp, *arguments: str, **variables: str) -> Iterator[Server]:
    """`mdp serve --json` on a port that is free, once it answers."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("MDP_")}
    told = {f"MDP_{name.upper()}": value for name, value in variables.items()}
    environment = {**ours, **mdp.environment, "MDP_CLOCK": "system", "MDP_WATCH_EVERY_SECONDS": "5", **told}
    command = [sys.executable, "-m", "market_data_pipeline.cli.main", "serve", "--port", "0", "--json", *arguments]
    log = mdp.home / "serve.log"
    with log.open("w") as errors:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout is not None
        said = ""
        while not said.endswith("}\n"):
            line = process.stdout.readline()
            assert line, f"it ended: {said}{log.read_text()}"
            said += line
        yield Server(process, log, orjson.loads(said))
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        threading.Event().wait(0.05)


def watchers(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.execute(sa.text("select watched_by from watch_state")).scalars())


def test_it_answers_where_it_says_watches_and_ends_on_sigterm(mdp: Mdp, engine: Engine) -> None:
    with serving(mdp) as server:
        assert server.told["watches"] is True
        assert server.told["url"].startswith("http://127.0.0.1:")
        until(lambda: server.get("/health").json()["status"] == "ok")
        assert watchers(engine) == ["mdp serve"]
        metrics = server.get("/metrics")
        assert metrics.status_code == 200
        assert "watch_age_seconds " in metrics.text
        code, said = server.end()
        assert code == 0
        assert "stopped" in said
        assert "Traceback" not in said


def test_it_need_not_watch(mdp: Mdp, engine: Engine) -> None:
    with serving(mdp, "--no-watch") as server:
        assert server.told["watches"] is False
        assert server.get("/health").json()["parts"]["watch"]["ok"] is False
        assert server.end(signal.SIGINT)[0] == 0
    assert watchers(engine) == []


def test_a_database_that_goes_and_comes_is_survived_by_the_watch(mdp: Mdp, engine: Engine, database_url: str) -> None:
    with a_gate(database_url) as gate:
        port = int(gate.url.partition("@")[2].partition(":")[2].partition("/")[0])
        with serving(mdp, database_url=gate.url) as server:
            until(lambda: server.get("/health").json()["status"] == "ok")
            gate.close()
            until(lambda: server.get("/health").status_code == 503)
            until(lambda: "nobody watches until the database is back" in server.said())
            assert server.get("/metrics").status_code == 503
            with engine.begin() as connection:
                connection.exec_driver_sql("delete from watch_state")
            with a_gate(database_url, port=port):
                until(lambda: server.get("/health").json()["status"] == "ok")
                assert watchers(engine) == ["mdp serve"]
                until(lambda: "watching again" in server.said())
                code, said = server.end()
            assert code == 0
            assert said.count("nobody watches") == 1


def test_without_a_database_it_starts_all_the_same_and_says_503(mdp: Mdp) -> None:
    with serving(mdp, database_url=f"postgresql://nobody:{SECRET}@127.0.0.1:9/nothing") as server:
        answers = [server.get("/health?token=x7y8"), server.get("/metrics?token=x7y8")]
        code, said = server.end()
    assert [answer.status_code for answer in answers] == [503, 503]
    assert code == 0
    for text in (said, *(answer.text for answer in answers)):
        assert SECRET not in text
        assert "x7y8" not in text


def test_it_ends_though_the_database_has_stopped(mdp: Mdp, database_url: str) -> None:
    with a_gate(database_url) as gate, serving(mdp, database_url=gate.url) as server:
        until(lambda: server.get("/health").json()["status"] == "ok")
        gate.shut()
        assert server.get("/health").status_code == 503
        began = time.monotonic()
        code, _ = server.end()
        assert code == 0
        assert time.monotonic() - began < 30


def test_a_port_that_is_taken_is_exit_code_3(mdp: Mdp) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = mdp("serve", "--port", str(port))
    assert answer.code == 3
    assert f"cannot listen on 127.0.0.1, port {port}" in answer.err


@pytest.mark.parametrize("told", [{"alerts_file": "/no/such/file.yaml"}, {"policy_eod": "nobody"}])
def test_what_cannot_be_used_is_exit_code_2_before_anything_is_served(mdp: Mdp, told: dict[str, str]) -> None:
    answer = mdp("serve", "--port", "0", **told)
    assert (answer.code, answer.out) == (2, "")


def test_help_has_an_example(mdp: Mdp) -> None:
    answer = mdp("serve", "--help")
    assert answer.code == 0
    assert "Example: mdp serve" in answer.out
