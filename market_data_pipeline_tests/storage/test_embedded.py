"""The embedded Postgres: started by many at once, killed, left with somebody else's pid, on disks that refuse."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import psycopg2
import pytest

from market_data_pipeline.domain.errors import DiskError, UnavailableError, UnsupportedServerError
from market_data_pipeline.storage.embedded import (
    EmbeddedPostgres,
    binaries_version,
    copy_installation,
    installation,
    service_account,
)
from market_data_pipeline_tests.conftest import roomy_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

FAST = {"fsync": "off", "shared_buffers": "32MB"}
OUR_MAJOR = binaries_version().split(".")[0]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as another account")


@pytest.fixture(scope="module")
def ground() -> Iterator[Path]:
    """A directory that any account may pass through: pytest's own is for root's eyes only."""
    directory = Path(tempfile.mkdtemp(prefix="mdp-embedded-", dir=roomy_memory()))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def pristine(ground: Path) -> Path:
    """A home whose server was created and then stopped."""
    home = ground / "pristine"
    server = EmbeddedPostgres(home, extra_settings=FAST)
    server.ensure()
    server.stop()
    return home


@pytest.fixture
def home(ground: Path, pristine: Path) -> Iterator[Path]:
    """A copy of ``pristine``; whatever runs in it at the end is stopped."""
    copy = Path(tempfile.mkdtemp(prefix="home-", dir=ground))
    _system("cp", "-a", f"{pristine}/.", str(copy))  # with the owners, which shutil does not keep
    yield copy
    EmbeddedPostgres(copy).stop()
    shutil.rmtree(copy)


@pytest.fixture
def server(home: Path) -> EmbeddedPostgres:
    """The server of ``home``, not running."""
    return EmbeddedPostgres(home, extra_settings=FAST)


def _system(program: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    found = shutil.which(program) or pytest.skip(f"this machine has no {program}")
    return subprocess.run([found, *arguments], check=check, capture_output=True, text=True)


def _ask(dsn: str, statement: str) -> object:
    with closing(psycopg2.connect(dsn)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0] if cursor.description else None  # type: ignore[index]


def _pid(server: EmbeddedPostgres) -> int:
    pid = server.state().pid
    assert pid is not None
    return pid


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=10)


def test_it_starts_with_both_databases_on_the_loopback_only(server: EmbeddedPostgres) -> None:
    dsn = server.ensure()
    assert _ask(dsn, "select current_database()") == "market_data"
    assert _ask(server.dsn("dagster"), "select current_database()") == "dagster"
    assert _ask(dsn, "show listen_addresses") == "127.0.0.1"
    assert _ask(dsn, "show unix_socket_directories") == ""
    assert server.running()


def test_nobody_gets_in_without_the_password(server: EmbeddedPostgres, home: Path) -> None:
    server.ensure()
    with pytest.raises(psycopg2.OperationalError, match=r"no password supplied|password authentication failed"):
        psycopg2.connect(host="127.0.0.1", port=server.state().port, user="market_data", dbname="postgres", passfile="/dev/null")
    assert stat.S_IMODE((home / "postgres" / "password").stat().st_mode) == 0o600


def test_starting_twice_is_one_server(server: EmbeddedPostgres, home: Path) -> None:
    first = server.ensure()
    pid = _pid(server)
    assert EmbeddedPostgres(home).ensure() == first
    assert _pid(server) == pid


def test_stopping_stops_and_stopping_again_says_that_nothing_ran(server: EmbeddedPostgres) -> None:
    server.ensure()
    assert server.stop() is True
    assert (server.running(), server.state().pid, server.stop()) == (False, None, False)


def test_the_port_is_remembered(server: EmbeddedPostgres) -> None:
    dsn = server.ensure()
    server.stop()
    assert server.ensure() == dsn


def test_a_port_taken_meanwhile_is_replaced(server: EmbeddedPostgres) -> None:
    server.ensure()
    port = server.state().port
    server.stop()
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", port))
        squatter.listen()
        assert _ask(server.ensure(), "select 1") == 1
    assert server.state().port != port


def test_eight_starters_on_a_fresh_home_make_one_server(ground: Path) -> None:
    home = ground / "raced"
    program = (
        "import sys, pathlib\n"
        "from market_data_pipeline.storage.embedded import EmbeddedPostgres\n"
        "server = EmbeddedPostgres(pathlib.Path(sys.argv[1]), extra_settings={'fsync': 'off'})\n"
        "server.ensure()\n"
        "print(server.state().pid, server.state().port)\n"
    )
    # Variables that mean another server to every client and tool of Postgres.
    environment = {**os.environ, "PGPORT": "1", "PGDATA": "/nowhere", "PGDATABASE": "other"}
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(home)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(8)
    ]
    ends = [(*racer.communicate(timeout=120), racer.returncode) for racer in racers]
    server = EmbeddedPostgres(home)
    expected = f"{server.state().pid} {server.state().port}\n"
    server.stop()
    assert ends == [(expected, "", 0)] * 8


def test_a_pid_file_whose_process_is_gone_is_no_obstacle(server: EmbeddedPostgres, home: Path) -> None:
    server.ensure()
    left = (home / "postgres" / "data" / "postmaster.pid").read_text(encoding="utf-8")
    server.stop()
    _leave_pid_file(home, left)
    assert _ask(server.ensure(), "select 1") == 1


def test_a_pid_file_that_names_a_stranger_is_no_obstacle(server: EmbeddedPostgres, home: Path) -> None:
    server.ensure()
    left = (home / "postgres" / "data" / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    server.stop()
    # A container restarted on its volume: the pid of the old server is now somebody else's, here ours.
    _leave_pid_file(home, "\n".join([str(os.getpid()), *left[1:], ""]))
    assert not server.state().running
    assert _ask(server.ensure(), "select 1") == 1


def _leave_pid_file(home: Path, text: str) -> None:
    data = home / "postgres" / "data"
    path = data / "postmaster.pid"
    path.write_text(text, encoding="utf-8")
    os.chown(path, data.stat().st_uid, data.stat().st_gid)


def test_after_a_kill_it_starts_at_once_with_what_was_committed(home: Path) -> None:
    server = EmbeddedPostgres(home)  # with fsync on, as users run it
    _ask(server.ensure(), "create table kept as select 42 as n")
    _kill(_pid(server))
    assert not server.running()
    assert _ask(server.ensure(), "select n from kept") == 42


def test_a_kill_that_leaves_a_busy_backend_is_no_obstacle(server: EmbeddedPostgres) -> None:
    dsn = server.ensure()
    busy = "import psycopg2, sys; psycopg2.connect(sys.argv[1]).cursor().execute(sys.argv[2])"
    endless = "do $$ begin loop null; end loop; end $$"
    client = subprocess.Popen([sys.executable, "-c", busy, dsn, endless], stderr=subprocess.DEVNULL)
    while not _ask(dsn, "select count(*) from pg_stat_activity where state = 'active' and query like 'do %'"):
        assert client.poll() is None
    _kill(_pid(server))
    try:
        assert _ask(server.ensure(), "select 1") == 1
    finally:
        client.kill()
        client.wait()


def test_data_of_another_major_version_is_refused_with_both_and_what_to_do(server: EmbeddedPostgres, home: Path) -> None:
    (home / "postgres" / "data" / "PG_VERSION").write_text("15\n", encoding="utf-8")
    with pytest.raises(UnsupportedServerError) as refused:
        server.ensure()
    said = str(refused.value)
    assert "written by PostgreSQL 15" in said
    assert f"is PostgreSQL {OUR_MAJOR}" in said
    assert "pg_dump" in said
    assert "MDP_HOME" in said


def test_a_directory_that_is_no_data_directory_is_left_alone(server: EmbeddedPostgres, home: Path) -> None:
    (home / "postgres" / "data" / "PG_VERSION").unlink()
    with pytest.raises(UnavailableError, match="has no PG_VERSION"):
        server.ensure()
    assert (home / "postgres" / "data" / "base").is_dir()


def test_a_start_that_fails_quotes_the_log(server: EmbeddedPostgres, home: Path) -> None:
    with (home / "postgres" / "data" / "postgresql.conf").open("a", encoding="utf-8") as configuration:
        configuration.write("no_such_parameter = on\n")
    with pytest.raises(UnavailableError, match='unrecognized configuration parameter "no_such_parameter"'):
        server.ensure()


def test_a_creation_that_was_interrupted_is_begun_again(ground: Path) -> None:
    home = ground / "interrupted"
    half = home / "postgres" / "unfinished"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text(OUR_MAJOR, encoding="utf-8")
    server = EmbeddedPostgres(home, extra_settings=FAST)
    assert _ask(server.ensure(), "select 1") == 1
    server.destroy()
    assert not (home / "postgres").exists()


def test_asking_for_the_address_before_the_first_start_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="run `mdp up`"):
        EmbeddedPostgres(tmp_path / "never").dsn()


def test_looking_at_a_home_that_does_not_exist_creates_nothing(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "never")
    assert (server.running(), server.state().running, server.stop()) == (False, False, False)
    assert not (tmp_path / "never").exists()


def test_a_home_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("not a directory", encoding="utf-8")
    with pytest.raises(DiskError, match=r"/home.*is a file, not a directory\. Make room or set MDP_HOME"):
        EmbeddedPostgres(tmp_path / "home").ensure()


@contextmanager
def _disk(ground: Path, megabytes: int) -> Iterator[Path]:
    where = Path(tempfile.mkdtemp(prefix="disk-", dir=ground))
    mounted = _system("mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0755", "tmpfs", str(where), check=False)
    if mounted.returncode != 0:
        where.rmdir()
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.strip()}")
    yield where
    _system("umount", str(where))
    where.rmdir()


@pytest.fixture
def small_disk(ground: Path) -> Iterator[Path]:
    """A file system of 12 MB: less than an empty Postgres."""
    with _disk(ground, 12) as disk:
        yield disk


@pytest.fixture
def filled_disk(ground: Path, pristine: Path) -> Iterator[Path]:
    """A file system with a home on it and no room left."""
    with _disk(ground, 120) as disk:
        _system("cp", "-a", str(pristine), str(disk / "home"))
        with contextlib.suppress(OSError), (disk / "filling").open("wb", buffering=0) as filling:
            while True:
                filling.write(bytes(4096))
        yield disk


def test_a_disk_that_filled_up_since_is_said_and_the_data_survives(filled_disk: Path) -> None:
    server = EmbeddedPostgres(filled_disk / "home", extra_settings=FAST)
    with pytest.raises(DiskError, match=rf"cannot write {filled_disk}.*: the disk is full\. Make room"):
        server.ensure()
    (filled_disk / "filling").unlink()
    assert _ask(server.ensure(), "select 1") == 1
    server.stop()


def test_a_full_disk_is_said_and_leaves_nothing_half_made(small_disk: Path) -> None:
    server = EmbeddedPostgres(small_disk / "home")
    with pytest.raises(DiskError, match=rf"cannot write {small_disk}.*: the disk is full\. Make room"):
        server.ensure()
    assert not (small_disk / "home" / "postgres" / "data").exists()
    assert not server.running()


def test_a_read_only_disk_is_said(small_disk: Path) -> None:
    _system("mount", "-o", "remount,ro", str(small_disk))
    with pytest.raises(DiskError, match=rf"cannot write {small_disk}/home: the disk is read-only"):
        EmbeddedPostgres(small_disk / "home").ensure()


@as_root
def test_under_a_directory_for_root_only_the_data_goes_elsewhere_and_no_permission_changes(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    server = EmbeddedPostgres(closed / "home", extra_settings=FAST)
    try:
        assert _ask(server.ensure(), "select 1") == 1
        data = server.state().data
        assert not data.is_relative_to(closed)
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
        server.stop()
        assert _ask(EmbeddedPostgres(closed / "home").ensure(), "select 1") == 1
    finally:
        server.destroy()
    assert not data.parent.exists()


@as_root
def test_the_server_of_root_runs_as_somebody_else(server: EmbeddedPostgres) -> None:
    server.ensure()
    assert psutil.Process(_pid(server)).uids().effective != 0


@as_root
def test_programs_under_a_directory_for_root_only_are_copied_to_where_the_account_can_run_them(
    tmp_path: Path, ground: Path
) -> None:
    account = service_account()
    assert account is not None
    shipped = installation()
    closed = tmp_path / "site-packages"
    closed.mkdir(mode=0o700)
    for part in (shipped, shipped.with_name(f"{shipped.name}.libs")):
        if part.is_dir():
            shutil.copytree(part, closed / part.name, symlinks=True)
    copy = copy_installation(closed / shipped.name, into=ground / "cache", account=account)
    initdb = [str(copy / "pginstall" / "bin" / "initdb"), "--version"]
    said = subprocess.run(initdb, user=account.uid, group=account.gid, extra_groups=[], check=True, capture_output=True, text=True)
    assert said.stdout.startswith("initdb (PostgreSQL)")
    # Once a version: the second time it is only found.
    assert copy_installation(closed / shipped.name, into=ground / "cache", account=account) == copy
    assert [path.name for path in (ground / "cache").iterdir()] == [copy.parent.name]
