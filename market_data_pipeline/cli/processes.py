"""Dagster's long-lived processes in the background (code server, webserver, daemon): how `mdp` starts, watches and stops them.

Dagster itself is not imported here: these are commands with an environment, a log and a pid file.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import orjson
import psutil
import psycopg2
import psycopg2.errors
import yaml
from psycopg2 import sql

from market_data_pipeline.domain.errors import ConfigurationError, DatabaseUnreachableError, UnavailableError
from market_data_pipeline.storage.database import address, psycopg2_url
from market_data_pipeline.storage.embedded import DAGSTER_DATABASE, EmbeddedPostgres, naming_disk_trouble, open_log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sqlalchemy.engine import URL

    from market_data_pipeline.settings import Settings

CODE_LOCATION = "market_data_pipeline"
DEFINITIONS = "market_data_pipeline.definitions"
HOST = "127.0.0.1"
LOOPBACK = {"127.0.0.1", "localhost", "::1"}

# All three import Dagster, some 3 s of one core each; a machine busy with something else takes several times that.
START_SECONDS = 120
# Long enough for a run process to tell Dagster that it was interrupted.
STOP_SECONDS = 15
POLL_SECONDS = 0.2
LOG_TAIL_LINES = 12
# The clock that process start times are counted from moves when the machine's clock is set.
START_TIME_TOLERANCE_SECONDS = 5


@dataclass(frozen=True, slots=True)
class PidFile:
    """Which process we started: a pid alone may belong to a stranger by now. ``settings`` is a digest of its MDP_* variables."""

    pid: int
    started_at: float
    address: str
    settings: str


@dataclass(frozen=True, slots=True)
class ProcessState:
    """One process as `mdp status` shows it. ``state`` is running, starting (alive, does not answer yet), failed or stopped."""

    name: str
    state: str
    pid: int | None = None
    address: str | None = None
    note: str | None = None


# -- the environment of every Dagster process --------------------------------------------------------------------------


def dagster_home(settings: Settings) -> Path:
    """DAGSTER_HOME of this stack."""
    return settings.home / "dagster"


def dagster_environment(settings: Settings) -> dict[str, str]:
    """What to add to os.environ for any Dagster command on this stack: its home, its storage, and where our own data is.

    Holds passwords: hand it to a process, never print it. Raises UnavailableError where the embedded Postgres was never started,
    and DatabaseUnreachableError where the server of MDP_DATABASE_URL does not answer.
    """
    environment = {
        "MDP_HOME": str(settings.home),
        "MDP_DAGSTER_URL": settings.dagster_url,
        "MDP_DAGSTER_DATABASE_URL": dagster_database_url(settings),
        "DAGSTER_HOME": str(dagster_home(settings)),
        "DAGSTER_EVENT_BATCH_SIZE": "1000",
        "DAGSTER_DISABLE_TELEMETRY": "yes",
        # Logs as they happen, also into files.
        "PYTHONUNBUFFERED": "1",
    }
    if settings.database_url is not None:
        environment["MDP_DATABASE_URL"] = settings.database_url.get_secret_value()
    return environment


def dagster_database_url(settings: Settings) -> str:
    """Where Dagster keeps its runs and events, as ``postgresql+psycopg2://…`` with the password.

    On the embedded server that is the database ``dagster``. On a server of the user's own it is ``<database>_dagster`` where that
    exists or may be created, else the schema ``dagster`` in the user's database. Never plain ``dagster`` there: another Dagster
    may own it.
    """
    if settings.database_url is None:
        url = psycopg2_url(EmbeddedPostgres(settings.home).dsn(DAGSTER_DATABASE))
    else:
        url = _storage_beside(psycopg2_url(settings.database_url.get_secret_value()))
    return url.render_as_string(hide_password=False)


def _storage_beside(url: URL) -> URL:
    own = url.set(database=f"{url.database or url.username}_dagster")
    try:
        _connect(url.set(database=own.database)).close()
    except psycopg2.OperationalError:
        return _made_beside(url, own)
    return own


def _made_beside(url: URL, own: URL) -> URL:
    try:
        connection = _connect(url)
    except psycopg2.OperationalError as error:
        reason = " ".join(str(error).split())
        raise DatabaseUnreachableError(f"the database at {address(url)} cannot be reached: {reason}") from error
    connection.autocommit = True
    with contextlib.closing(connection), connection.cursor() as cursor:
        try:
            with contextlib.suppress(psycopg2.errors.DuplicateDatabase):
                cursor.execute(sql.SQL("create database {}").format(sql.Identifier(str(own.database))))
            _connect(own).close()
        except psycopg2.Error:
            cursor.execute(sql.SQL("create schema if not exists {}").format(sql.Identifier(DAGSTER_DATABASE)))
            return url.update_query_dict({"options": f"-csearch_path={DAGSTER_DATABASE}"})
    return own


def _connect(url: URL) -> psycopg2.extensions.connection:
    return psycopg2.connect(url.set(drivername="postgresql").render_as_string(hide_password=False), connect_timeout=10)


def prepare_dagster_home(settings: Settings) -> None:
    """Make DAGSTER_HOME with the dagster.yaml that this version ships. Safe to repeat; changes made to the copy are lost."""
    home = dagster_home(settings)
    with naming_disk_trouble(home):
        home.mkdir(parents=True, exist_ok=True)
        shipped = shipped_file("dagster.yaml").read_bytes()
        copy = home / "dagster.yaml"
        if not copy.exists() or copy.read_bytes() != shipped:
            _write_whole(copy, shipped)


def shipped_file(name: str) -> Path:
    """A file from the top of the repository: in the checkout this package runs from, or where its wheel put it."""
    checkout, installed = (
        Path(__file__).parents[2] / name,
        Path(sysconfig.get_path("data")) / "share" / "market_data_pipeline" / name,
    )
    for candidate in (checkout, installed):
        if candidate.is_file():
            return candidate
    raise UnavailableError(f"{name} was not installed: it is neither {checkout} nor {installed}")


# -- one process -------------------------------------------------------------------------------------------------------


class BackgroundProcess:
    """A command in a session of its own, with a log and a pid file. Everything it starts belongs to it and ends with it."""

    def __init__(self, name: str, home: Path) -> None:
        self.name = name
        self.log = home / "logs" / f"{name}.log"
        self._pid_file = home / "run" / f"{name}.json"
        # Kept for as long as we live: Python complains about a child that nobody waits for.
        self._child: subprocess.Popen[bytes] | None = None

    def recorded(self) -> PidFile | None:
        """What was started last, alive or not."""
        try:
            return PidFile(**orjson.loads(self._pid_file.read_bytes()))
        except (FileNotFoundError, NotADirectoryError, orjson.JSONDecodeError, TypeError):
            return None

    def find(self) -> psutil.Process | None:
        """The live process, or None: never a zombie, never a stranger that was given the same pid."""
        recorded = self.recorded()
        return _same_process(recorded) if recorded else None

    def start(self, command: Sequence[str], *, environment: Mapping[str, str], cwd: Path, where: str) -> psutil.Process:
        """Run ``command`` in the background and remember it; whatever was left of an earlier one is ended first."""
        self.end()
        with naming_disk_trouble(self.log), open_log(self.log) as log:
            self._pid_file.parent.mkdir(parents=True, exist_ok=True)
            # A session of its own: Ctrl-C in the shell of `mdp up` does not reach it, and its members can be found after its death.
            self._child = subprocess.Popen(
                command, env=environment, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
            process = psutil.Process(self._child.pid)
            noted = PidFile(process.pid, process.create_time(), where, settings_digest(environment))
            _write_whole(self._pid_file, orjson.dumps(asdict(noted)))
        return process

    def terminate(self) -> bool:
        """Ask it and all it started to end, without waiting. False where nothing is left of it."""
        members = self._members()
        _signal(members, signal.SIGTERM)
        return bool(members)

    def end(self) -> None:
        """End it and all it started: SIGTERM, patience, SIGKILL. Safe to repeat."""
        self.terminate()
        psutil.wait_procs(self._members(), timeout=STOP_SECONDS)
        stubborn = self._members()
        _signal(stubborn, signal.SIGKILL)
        psutil.wait_procs(stubborn, timeout=STOP_SECONDS)
        if self._child is not None:
            self._child.poll()
        left = [process.pid for process in self._members()]
        if left:
            raise UnavailableError(f"{self.name} does not end: pids {left}")
        self._pid_file.unlink(missing_ok=True)

    def log_tail(self) -> str:
        """The end of its log, for an error message."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
            if lines:
                return f"The last lines of {self.log}:\n" + "\n".join(f"  {line}" for line in lines)
        return f"{self.log} is empty."

    def _members(self) -> list[psutil.Process]:
        """The process and everything in its session, also what outlived it (a run whose code server was killed)."""
        recorded = self.recorded()
        if recorded is None:
            return []
        leader = _same_process(recorded)
        if leader is None and psutil.pid_exists(recorded.pid) and not _is_zombie(recorded.pid):
            return []  # the pid is a stranger's now, so nothing of our session is left: the kernel gives no number out twice
        return [
            process for process in psutil.process_iter() if _session_of(process) == recorded.pid and not _is_zombie(process.pid)
        ]


def settings_digest(environment: Mapping[str, str]) -> str:
    """Tells whether two processes were started with the same MDP_* variables, without keeping them: some are secret."""
    ours = sorted((name, value) for name, value in environment.items() if name.startswith("MDP_"))
    return hashlib.sha256(orjson.dumps(ours)).hexdigest()


def _same_process(recorded: PidFile) -> psutil.Process | None:
    try:
        process = psutil.Process(recorded.pid)
        if abs(process.create_time() - recorded.started_at) > START_TIME_TOLERANCE_SECONDS:
            return None
        return None if process.status() == psutil.STATUS_ZOMBIE else process
    except psutil.Error:
        return None


def _signal(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def _is_zombie(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _session_of(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except OSError:
        return None


# -- the three of them -------------------------------------------------------------------------------------------------


class DagsterStack:
    """Dagster on one MDP_HOME. One code server for both others: half the imports, and a reload reaches both."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._home = settings.home
        self._code_server = BackgroundProcess("code-server", self._home)
        self._webserver = BackgroundProcess("webserver", self._home)
        self._daemon = BackgroundProcess("daemon", self._home)

    def check(self) -> None:
        """Raise what would stop ``start`` before anything is started: an address that cannot be served, a port that is taken."""
        host, port = self._webserver_address()
        if self._webserver.find() is None:
            _refuse_taken_port(host, port)

    def start(self) -> list[str]:
        """Start what does not run and wait until all of it works. The names of what was started; none where all ran already.

        UnavailableError quotes the log of a process that died, and what Dagster said of definitions that did not load.
        """
        host, port = self._webserver_address()
        with self._locked():
            prepare_dagster_home(self._settings)
            environment = {**os.environ, **dagster_environment(self._settings)}
            started = []
            if self._code_server.find() is None:
                self._start_code_server(environment)
                started.append(self._code_server.name)
                # A webserver that ran already still shows what the code server before this one said.
                self._ask(_RELOAD, seconds=START_SECONDS)
            workspace = ["-w", str(self._workspace())]
            if self._webserver.find() is None:
                _refuse_taken_port(host, port)
                command = _script("dagster-webserver", "-h", host, "-p", str(port), *workspace)
                self._start(self._webserver, command, environment, self._settings.dagster_url)
                started.append(self._webserver.name)
            if self._daemon.find() is None:
                self._start(self._daemon, _script("dagster-daemon", "run", *workspace), environment, "")
                started.append(self._daemon.name)
            self._wait_until_it_works()
        return started

    def stop(self) -> list[str]:
        """Stop everything, also what is left of what died. The names of what was stopped. Safe to repeat."""
        if not (self._home / "run").is_dir():
            return []
        with self._locked():
            # The daemon first, so that nothing new is launched. The runs are children of the code server.
            stopped = [self._daemon] if self._daemon.terminate() else []
            self._daemon.end()
            stopped += [process for process in (self._code_server, self._webserver) if process.terminate()]
            self._code_server.end()
            self._webserver.end()
        return [process.name for process in stopped]

    def states(self) -> list[ProcessState]:
        """Each process as it is now, in the order they start."""
        data = self._ask(_READY)
        code_server = self._state(self._code_server, answers=_accepts(self._code_server.recorded()))
        problem = location_error(data) if data else None
        if problem and code_server.state == "running":
            code_server = replace(code_server, state="failed", note=f"the definitions do not load: {problem}")
        return [code_server, self._state(self._webserver, answers=data is not None), self._state(self._daemon, answers=True)]

    def outdated(self) -> bool:
        """Whether something runs that was started with other MDP_* variables than those of now."""
        digest = settings_digest({**os.environ, **dagster_environment(self._settings)})
        recorded = [process.recorded() for process in self._all if process.find()]
        return any(note is not None and note.settings != digest for note in recorded)

    @property
    def _all(self) -> tuple[BackgroundProcess, ...]:
        return (self._code_server, self._webserver, self._daemon)

    def _state(self, process: BackgroundProcess, *, answers: bool) -> ProcessState:
        live, recorded = process.find(), process.recorded()
        if live is None or recorded is None:
            return ProcessState(process.name, "stopped", note=f"died: see {process.log}" if recorded else None)
        state = "running" if answers else "starting"
        return ProcessState(process.name, state, pid=live.pid, address=recorded.address or None)

    def _start_code_server(self, environment: Mapping[str, str]) -> None:
        port = self._code_server_port()
        where = ("-h", HOST, "-p", str(port))
        command = _script("dagster", "code-server", "start", "-m", DEFINITIONS, "--location-name", CODE_LOCATION, *where)
        self._start(self._code_server, command, environment, f"{HOST}:{port}")
        # The others would note an error and try again later: slower than waiting, and alarming in their logs.
        self._wait_for(lambda: _accepts(self._code_server.recorded()), self._code_server)
        entry = {"host": HOST, "port": port, "location_name": CODE_LOCATION}
        _write_whole(self._workspace(), yaml.safe_dump({"load_from": [{"grpc_server": entry}]}).encode())

    def _start(self, process: BackgroundProcess, command: Sequence[str], environment: Mapping[str, str], where: str) -> None:
        process.start(command, environment=environment, cwd=self._home, where=where)

    def _workspace(self) -> Path:
        return dagster_home(self._settings) / "workspace.yaml"

    def _code_server_port(self) -> int:
        """The port the others know from last time where it is free, else any."""
        with contextlib.suppress(OSError, KeyError, TypeError, IndexError, yaml.YAMLError):
            known = yaml.safe_load(self._workspace().read_text(encoding="utf-8"))["load_from"][0]["grpc_server"]["port"]
            if _is_free(HOST, int(known)):
                return int(known)
        for process in (self._webserver, self._daemon):
            process.end()  # they know the port that was taken meanwhile
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            return int(probe.getsockname()[1])

    def _webserver_address(self) -> tuple[str, int]:
        given = self._settings.dagster_url
        try:
            parts = urlsplit(given)
            port = parts.port or 80
        except ValueError as wrong:
            raise ConfigurationError(
                f"MDP_DAGSTER_URL: {given!r} is no address ({wrong}): expected http://127.0.0.1:PORT"
            ) from None
        if parts.hostname not in LOOPBACK or parts.scheme != "http":
            raise ConfigurationError(
                f"MDP_DAGSTER_URL: {given!r} is not an http:// address of this machine, so `mdp up` cannot start the webserver"
                " there: expected http://127.0.0.1:PORT, or use `mdp up --no-dagster`"
            )
        if parts.path:
            raise ConfigurationError(f"MDP_DAGSTER_URL: {given!r} has a path: expected http://127.0.0.1:PORT")
        return str(parts.hostname), port

    def _wait_until_it_works(self) -> None:
        problem = self._problem()
        if problem:
            # It may have been mended since the code server read it.
            self._ask(_RELOAD, seconds=START_SECONDS)
            problem = self._problem()
        if problem:
            raise UnavailableError(f"Dagster runs, but its definitions do not load: {problem}. More: {self._code_server.log}")

    def _problem(self) -> str | None:
        self._wait_for(self._is_ready, *self._all)
        data = self._ask(_READY)
        return location_error(data) if data else None

    def _is_ready(self) -> bool:
        data = self._ask(_READY)
        return data is not None and is_ready(data)

    def _wait_for(self, happened: Callable[[], bool], *watched: BackgroundProcess) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not happened():
            for process in watched:
                if process.find() is None:
                    raise UnavailableError(f"{process.name} ended while it was starting. {process.log_tail()}")
            if time.monotonic() > deadline:
                raise UnavailableError(f"{watched[0].name} is not ready after {START_SECONDS} s. {watched[0].log_tail()}")
            # Waits for a death, and so no longer than needed.
            psutil.wait_procs([live for process in watched if (live := process.find())], timeout=POLL_SECONDS)

    def _ask(self, query: str, *, seconds: float = 10) -> dict[str, Any] | None:
        """What the webserver answers to a GraphQL query; None while it does not."""
        try:
            url = f"{self._settings.dagster_url}/graphql"
            response = httpx.post(url, json={"query": query}, timeout=seconds, trust_env=False)
            data: dict[str, Any] | None = response.json().get("data")
        except (httpx.HTTPError, ValueError, AttributeError):
            return None
        return data

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        run = self._home / "run"
        with naming_disk_trouble(run):
            run.mkdir(parents=True, exist_ok=True)
            lock = (run / "lock").open("w")
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


_RELOAD = f'mutation Reload {{ reloadRepositoryLocation(repositoryLocationName: "{CODE_LOCATION}") {{ __typename }} }}'

_READY = """
query Ready {
  workspaceOrError {
    ... on Workspace {
      locationEntries { name loadStatus locationOrLoadError { __typename ... on PythonError { message causes { message } } } }
    }
  }
  instance { daemonHealth { allDaemonStatuses { daemonType required healthy } } }
}"""


def is_ready(answer: Mapping[str, Any]) -> bool:
    """Whether the webserver has heard from the code server, good or bad, and every daemon that must beat does."""
    entries = answer["workspaceOrError"].get("locationEntries", [])
    # Right after the code server was started again, the webserver still holds the error of not finding the old one.
    heard = bool(entries) and all(entry["loadStatus"] == "LOADED" and not _is_unreachable(entry) for entry in entries)
    return heard and all(
        daemon["healthy"] for daemon in answer["instance"]["daemonHealth"]["allDaemonStatuses"] if daemon["required"]
    )


def location_error(answer: Mapping[str, Any]) -> str | None:
    """Why the definitions do not load: the deepest cause, since Dagster wraps what our code raised. None where they do."""
    for entry in answer["workspaceOrError"].get("locationEntries", []):
        problem = entry["locationOrLoadError"] or {}
        if problem.get("__typename") == "PythonError":
            causes = [problem, *problem["causes"]]
            return " ".join(str(causes[-1]["message"]).split())
    return None


def _is_unreachable(entry: Mapping[str, Any]) -> bool:
    return "DagsterUserCodeUnreachableError" in str((entry["locationOrLoadError"] or {}).get("message"))


def dagster_version() -> str:
    """The installed Dagster's version."""
    return importlib.metadata.version("dagster")


def _script(name: str, *arguments: str) -> list[str]:
    """A console script of our own environment, whatever PATH says."""
    path = Path(sysconfig.get_path("scripts")) / name
    found = str(path) if path.exists() else shutil.which(name)
    if found is None:
        raise UnavailableError(f"{name} is not installed: looked for {path} and in PATH")
    return [sys.executable, found, *arguments]


def _accepts(recorded: PidFile | None) -> bool:
    if recorded is None:
        return False
    host, port = recorded.address.rsplit(":", 1)
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
        return True
    return False


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return True
    return False


def _refuse_taken_port(host: str, port: int) -> None:
    if not _is_free(host, port):
        raise UnavailableError(
            f"port {port} is taken{_holder(port)}, so the Dagster webserver cannot start: stop what listens there, or choose"
            f" another port, as in MDP_DAGSTER_URL=http://127.0.0.1:{port + 1}"
        )


def _holder(port: int) -> str:
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""


def _write_whole(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)
