"""`mdp up`, `down`, `status`, `migrate` and `exec` as a user runs them: processes of their own, exit codes and all."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import psutil
import psycopg2
import pytest
import sqlalchemy as sa

from market_data_pipeline.cli.processes import BackgroundProcess, DagsterStack, dagster_environment
from market_data_pipeline.domain.errors import ConfigurationError, UnavailableError
from market_data_pipeline.settings import Settings
from market_data_pipeline.storage.embedded import EmbeddedPostgres
from market_data_pipeline_tests.conftest import roomy_memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ALL_PARTS = ["postgres", "schema", "code-server", "webserver", "daemon"]


@dataclass(frozen=True)
class Stack:
    """One MDP_HOME and the environment to use it."""

    home: Path
    environment: Mapping[str, str]

    def mdp(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "market_data_pipeline.cli.main", *arguments]
        return subprocess.run(
            command, env={**self.environment, **more}, capture_output=True, text=True, check=False, timeout=200, cwd="/"
        )

    def parts(self, *arguments: str) -> dict[str, Any]:
        """What `mdp status --json` says of each part, by its name."""
        return {part["part"]: part for part in orjson.loads(self.mdp("status", "--json", *arguments).stdout)["parts"]}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def stack() -> Iterator[Stack]:
    """A stack that was never started; stopped and deleted at the end."""
    home = Path(tempfile.mkdtemp(prefix="mdp-stack-", dir=roomy_memory()))
    home.chmod(0o711)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MDP_", "DAGSTER_"))}
    environment |= {"MDP_HOME": str(home), "MDP_DAGSTER_URL": f"http://127.0.0.1:{_free_port()}"}
    made = Stack(home, environment)
    yield made
    made.mdp("down")
    shutil.rmtree(home)


def _password(home: Path) -> str:
    return (home / "postgres" / "password").read_text(encoding="utf-8").strip()


def test_up_starts_the_database_once_and_down_stops_it(stack: Stack) -> None:
    assert (stack.mdp("status", "--no-dagster").returncode, stack.parts("--no-dagster")["postgres"]["state"]) == (1, "stopped")

    first = stack.mdp("up", "--no-dagster")
    assert (first.returncode, "Postgres: started" in first.stderr, "1 of them now" in first.stderr) == (0, True, True)
    pid = stack.parts("--no-dagster")["postgres"]["pid"]

    second = stack.mdp("up", "--no-dagster", "--json")
    assert "Postgres: already running" in second.stderr
    shown = orjson.loads(second.stdout)
    assert shown["up"] is True
    assert shown["disk_free_bytes"] > 0
    assert [(part["part"], part["state"]) for part in shown["parts"]] == [("postgres", "running"), ("schema", "current")]
    assert shown["parts"][0]["pid"] == pid
    # All of it includes Dagster, which does not run.
    assert stack.mdp("status").returncode == 1

    assert "postgres" in stack.mdp("down").stderr
    assert not psutil.pid_exists(pid)
    assert (stack.mdp("down").returncode, stack.mdp("down").stderr) == (0, "nothing was running\n")


def test_migrate_and_exec_use_the_database_and_print_no_password(stack: Stack) -> None:
    early = stack.mdp("exec", "--", "true")
    assert (early.returncode, "start it with `mdp up`" in early.stderr) == (3, True)
    up = stack.mdp("up", "--no-dagster")
    migrated = stack.mdp("migrate", "--json")
    assert orjson.loads(migrated.stdout)["new"] == []

    said = stack.mdp("exec", "--", "sh", "-c", "echo $DAGSTER_HOME; test -n $MDP_DAGSTER_DATABASE_URL; exit 7")
    assert (said.stdout, said.returncode) == (f"{stack.home}/dagster\n", 7)
    assert (stack.home / "dagster" / "dagster.yaml").exists()
    # Found without the virtual environment being active.
    version = stack.mdp("exec", "--", "dagster", "--version", PATH=os.defpath)
    assert version.stdout.startswith("dagster, version")
    unknown = stack.mdp("exec", "--", "no-such-command")
    assert (unknown.returncode, "'no-such-command' is not a command" in unknown.stderr) == (2, True)

    printed = "".join(done.stdout + done.stderr for done in (up, migrated, stack.mdp("status"), unknown))
    assert _password(stack.home) not in printed
    logs = "".join(path.read_text(encoding="utf-8") for path in (stack.home / "logs").iterdir())
    assert _password(stack.home) not in logs


def test_everything_comes_up_survives_a_kill_and_goes_down_without_a_trace(stack: Stack) -> None:
    up = stack.mdp("up")
    assert up.returncode == 0, up.stderr
    parts = stack.parts()
    assert {name: part["up"] for name, part in parts.items()} == dict.fromkeys(ALL_PARTS, True)
    pids = [part["pid"] for part in parts.values() if part["pid"]]
    everything = [process for pid in pids for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))]

    psutil.Process(parts["code-server"]["pid"]).kill()
    psutil.wait_procs([psutil.Process(parts["code-server"]["pid"])], timeout=5)
    broken = stack.parts()
    assert (broken["code-server"]["state"], broken["daemon"]["state"]) == ("stopped", "running")
    assert f"died: see {stack.home}/logs/code-server.log" in broken["code-server"]["note"]
    assert stack.mdp("status").returncode == 1

    # Down with one part already dead: its own child must not be left behind either.
    assert stack.mdp("down").returncode == 0
    _, alive = psutil.wait_procs(everything, timeout=5)
    assert alive == []
    printed = up.stdout + up.stderr + "".join(p.read_text(encoding="utf-8") for p in (stack.home / "logs").iterdir())
    assert _password(stack.home) not in printed


def test_a_taken_port_is_said_before_anything_is_started(stack: Stack) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        port = squatter.getsockname()[1]
        refused = stack.mdp("up", MDP_DAGSTER_URL=f"http://127.0.0.1:{port}")
    assert refused.returncode == 3
    assert f"port {port} is taken by python" in refused.stderr
    assert f"MDP_DAGSTER_URL=http://127.0.0.1:{port + 1}" in refused.stderr
    assert not (stack.home / "postgres").exists()


@pytest.mark.parametrize("command", ["up", "migrate", "status"])
def test_a_database_that_does_not_answer_is_named_without_its_password(stack: Stack, command: str) -> None:
    port = _free_port()
    arguments = (command, "--no-dagster") if command == "up" else (command,)
    done = stack.mdp(*arguments, MDP_DATABASE_URL=f"postgresql://me:correct-horse@127.0.0.1:{port}/prices", COLUMNS="500")
    assert done.returncode == (1 if command == "status" else 3)
    said = done.stdout + done.stderr
    assert f"127.0.0.1:{port}/prices" in said
    assert "correct-horse" not in said


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"MDP_DATABASE_URL": "mysql://me:correct-horse@db/x"}, "begins with mysql://; expected postgresql://"),
        ({"MDP_DAGSTER_URL": "https://dagster.example"}, "not an http:// address of this machine"),
        ({"MDP_DAGSTER_URL": "http://127.0.0.1:3000/ui"}, "has a path"),
        ({"MDP_DAGSTER_URL": "localhost:3000"}, "expected http://"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_bad_usage(stack: Stack, variables: dict[str, str], says: str) -> None:
    done = stack.mdp("up", **variables)
    assert (done.returncode, says in done.stderr) == (2, True), done.stderr
    assert "correct-horse" not in done.stderr
    assert not (stack.home / "postgres").exists()


def test_a_home_that_cannot_be_written_is_exit_code_3(stack: Stack) -> None:
    in_the_way = stack.home / "file"
    in_the_way.write_text("not a directory", encoding="utf-8")
    done = stack.mdp("up", "--no-dagster", MDP_HOME=str(in_the_way / "home"))
    assert (done.returncode, "set MDP_HOME" in done.stderr) == (3, True), done.stderr


@pytest.mark.parametrize("command", ["up", "down", "status", "migrate", "exec"])
def test_every_command_explains_itself_with_an_example(stack: Stack, command: str) -> None:
    helped = stack.mdp(command, "--help")
    assert (helped.returncode, "Example: " in helped.stdout) == (0, True)


def test_dagster_keeps_its_tables_in_a_database_of_its_own_on_the_users_server(database_url: str, tmp_path: Path) -> None:
    settings = Settings.model_validate({"home": tmp_path, "database_url": database_url})
    own = sa.make_url(dagster_environment(settings)["MDP_DAGSTER_DATABASE_URL"])
    try:
        assert own.drivername == "postgresql+psycopg2"
        assert own.database == f"{sa.make_url(database_url).database}_dagster"
        assert dagster_environment(settings)["MDP_DAGSTER_DATABASE_URL"] == own.render_as_string(hide_password=False)
    finally:
        _on(database_url, f'drop database if exists "{own.database}" with (force)')


def test_where_no_database_may_be_created_dagster_gets_a_schema(database_url: str, tmp_path: Path) -> None:
    name = sa.make_url(database_url).database
    _on(database_url, f"create role {name} login password 'modest' nosuperuser nocreatedb")
    _on(database_url, f"alter database {name} owner to {name}")
    try:
        modest = sa.make_url(database_url).set(username=name, password="modest").render_as_string(hide_password=False)  # noqa: S106
        settings = Settings.model_validate({"home": tmp_path, "database_url": modest})
        storage = dagster_environment(settings)["MDP_DAGSTER_DATABASE_URL"]
        engine = sa.create_engine(storage)
        with engine.connect() as connection:
            assert tuple(connection.execute(sa.text("select current_database(), current_schema()")).one()) == (name, "dagster")
        engine.dispose()
    finally:
        _on(database_url, f"alter database {name} owner to current_user")
        _on(database_url, f"drop owned by {name}")
        _on(database_url, f"drop role {name}")


def _on(url: str, statement: str) -> None:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(statement)
    connection.close()


def test_a_process_ends_with_what_it_started_and_a_stranger_with_its_pid_is_spared(tmp_path: Path) -> None:
    background = BackgroundProcess("sleeper", tmp_path)
    # A child that ignores SIGTERM's usual way out by outliving its parent.
    script = "sleep 300 & echo $!; wait"
    live = background.start(["/bin/sh", "-c", script], environment=dict(os.environ), cwd=tmp_path, where="")
    while not live.children():
        assert live.is_running()
    child = live.children()[0]
    live.kill()
    psutil.wait_procs([live], timeout=5)
    assert background.find() is None

    background.end()
    _, alive = psutil.wait_procs([child], timeout=5)
    assert alive == []

    record = tmp_path / "run" / "sleeper.json"
    record.write_bytes(orjson.dumps({"pid": os.getpid(), "started_at": 1.0, "address": "", "settings": ""}))
    assert background.find() is None
    background.end()
    assert psutil.Process().is_running()


def test_a_process_that_ends_while_starting_is_quoted(tmp_path: Path) -> None:
    home = tmp_path / "home"
    settings = Settings.model_validate({"home": home, "dagster_url": "http://[::1"})
    with pytest.raises((ConfigurationError, UnavailableError, ValueError)):
        DagsterStack(settings).check()
    assert not EmbeddedPostgres(home).running()
