"""`mdp up`, `down`, `status`, `migrate` and `exec` as a user runs them: processes of their own, exit codes and all."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import psutil
import psycopg2
import pytest
import sqlalchemy as sa

from market_data_pipeline.cli.processes import BackgroundProcess, dagster_environment, is_ready, location_error
from market_data_pipeline.domain.partitions import default_plan
from market_data_pipeline.settings import Settings
from market_data_pipeline.storage.partition_plan import plan_path, write_plan
from market_data_pipeline_tests.cli.conftest import Mdp
from market_data_pipeline_tests.conftest import roomy_memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ALL_PARTS = ["postgres", "schema", "code-server", "webserver", "daemon"]


@pytest.fixture
def mdp(tmp_path: Path) -> Mdp:
    """`mdp` in this process, on a home that was never started: for what is refused before anything runs."""
    return Mdp({"MDP_HOME": str(tmp_path / "home")}, tmp_path / "home")


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
    assert (first.returncode, "Postgres: started" in first.stderr, " of them now" in first.stderr) == (0, True, True)
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
    # A zombie has ended; whether it is collected is its parent's business.
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    again = stack.mdp("down")
    assert (again.returncode, again.stderr) == (0, "nothing was running\n")


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


def test_a_taken_port_is_said_before_anything_is_started(mdp: Mdp) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        port = squatter.getsockname()[1]
        refused = mdp("up", dagster_url=f"http://127.0.0.1:{port}")
    assert refused.code == 3
    assert f"port {port} is taken by " in refused.err
    assert f"(pid {os.getpid()})" in refused.err
    assert f"MDP_DAGSTER_URL=http://127.0.0.1:{port + 1}" in refused.err
    assert not (mdp.home / "postgres").exists()


@pytest.mark.parametrize("command", [("up", "--no-dagster"), ("migrate",), ("status", "--json")])
def test_a_database_that_does_not_answer_is_named_without_its_password(mdp: Mdp, command: tuple[str, ...]) -> None:
    port = _free_port()
    done = mdp(*command, database_url=f"postgresql://me:correct-horse@127.0.0.1:{port}/prices")
    assert done.code == (1 if command[0] == "status" else 3)
    assert f"127.0.0.1:{port}/prices" in done.out + done.err
    assert "correct-horse" not in done.out + done.err


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"database_url": "mysql://me:correct-horse@db/x"}, "begins with mysql://; expected postgresql://"),
        ({"dagster_url": "https://dagster.example"}, "not an http:// address of this machine"),
        ({"dagster_url": "http://127.0.0.1:3000/ui"}, "has a path"),
        ({"dagster_url": "http://127.0.0.1:port"}, "is no address"),
        ({"dagster_url": "localhost:3000"}, "expected http://"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_bad_usage(mdp: Mdp, variables: dict[str, str], says: str) -> None:
    done = mdp("up", **variables)
    assert (done.code, says in done.err) == (2, True), done.err
    assert "correct-horse" not in done.err
    assert not (mdp.home / "postgres").exists()


def test_a_home_that_cannot_be_written_is_exit_code_3(mdp: Mdp, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a directory", encoding="utf-8")
    done = mdp("up", "--no-dagster", home=str(in_the_way / "home"))
    assert (done.code, "set MDP_HOME" in done.err) == (3, True), done.err


@pytest.mark.parametrize("command", ["up", "down", "status", "migrate", "exec"])
def test_every_command_explains_itself_with_an_example(mdp: Mdp, command: str) -> None:
    helped = mdp(command, "--help")
    assert (helped.code, "Example: " in helped.out) == (0, True)


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


def _answer(problem: dict[str, Any] | None, *, healthy: bool = True) -> dict[str, Any]:
    """What a webserver of Dagster 1.13 says of one code location and its daemons."""
    found = {"__typename": "RepositoryLocation"} if problem is None else {"__typename": "PythonError", **problem}
    entry = {"name": "market_data_pipeline", "loadStatus": "LOADED", "locationOrLoadError": found}
    daemons = [
        {"daemonType": "SENSOR", "required": True, "healthy": healthy},
        {"daemonType": "ASSET", "required": False, "healthy": False},
    ]
    return {"workspaceOrError": {"locationEntries": [entry]}, "instance": {"daemonHealth": {"allDaemonStatuses": daemons}}}


def test_dagster_is_ready_when_the_code_is_loaded_and_the_daemons_that_must_beat_do() -> None:
    assert is_ready(_answer(None))
    assert not is_ready(_answer(None, healthy=False))
    assert not is_ready({**_answer(None), "workspaceOrError": {}})


def test_definitions_that_do_not_load_are_named_by_the_deepest_cause() -> None:
    wrapper = {
        "message": "dagster._core.errors.DagsterUserCodeLoadError: Error occurred during the loading of Dagster definitions in …\n",
        "causes": [{"message": "ConfigurationError: partitions.json is not\n a partition plan\n"}],
    }
    assert is_ready(_answer(wrapper))
    assert location_error(_answer(wrapper)) == "ConfigurationError: partitions.json is not a partition plan"
    assert location_error(_answer(None)) is None


def test_a_code_server_that_is_not_found_yet_is_waited_for() -> None:
    unreachable = {
        "message": "dagster._core.errors.DagsterUserCodeUnreachableError: Could not reach user code server.\n",
        "causes": [],
    }
    assert not is_ready(_answer(unreachable))


def test_a_calendar_that_ends_soon_is_found_wrong_by_status(stack: Stack) -> None:
    hours = replace(default_plan().calendars[0], last_session=datetime.now(UTC).date() + timedelta(days=30))
    write_plan(plan_path(stack.home), replace(default_plan(), calendars=(hours,)))
    calendars = stack.parts("--no-dagster")["calendars"]
    assert (calendars["state"], calendars["up"]) == ("ending", False)
    assert f"XNYS until {hours.last_session}" in calendars["note"]
