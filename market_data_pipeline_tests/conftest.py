"""A real Postgres for every test that asks for one: started once a session, a fresh migrated database a test."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import psycopg2
import pytest
import sqlalchemy as sa
from psycopg2 import sql

from market_data_pipeline.storage.database import open_engine, psycopg2_url
from market_data_pipeline.storage.embedded import EmbeddedPostgres
from market_data_pipeline.storage.migrations import apply_migrations

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Engine

# For tests only: a crash of the machine may lose everything here, and nobody minds.
FAST_AND_FORGETFUL = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    "max_wal_size": "1GB",
    "log_checkpoints": "off",
}
HOMES = "mdp-test-"

# A shell that starts us in the background makes us, and all whom we start, deaf to Ctrl-C, which some tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Files that take the longest, the longest first: begun last, one of them alone would keep everybody waiting for minutes.
LONGEST = (
    "test_crashes.py",
    "test_canary.py",
    "test_demo.py",
    "test_ui_backfill.py",
    "test_drill.py",
    "test_killed_jobs.py",
    "test_week.py",
    "test_quiet_month_",
    "test_ui_checks.py",
    "test_event_log.py",
    "test_stack.py",
    "test_situations_",
    "test_serve.py",
    "test_recorded_bodies.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, the others as they were found."""
    rank = {
        path: next((place for place, name in enumerate(LONGEST) if path.name.startswith(name)), len(LONGEST))
        for path in {item.path for item in items}
    }
    items.sort(key=lambda item: rank[item.path])


def roomy_memory() -> str | None:
    """Where temporary data directories go: memory where there is plenty, since disks make these tests several times slower."""
    memory = Path("/dev/shm")  # noqa: S108 - mkdtemp makes the names
    plenty = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 4 << 30
    return str(memory) if plenty else None


def _with_database(url: str, database: str) -> str:
    return sa.make_url(url).set(database=database).render_as_string(hide_password=False)


def _execute(url: str, statement: sql.Composable) -> None:
    libpq = psycopg2_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with closing(psycopg2.connect(libpq)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)


def _remove_what_killed_sessions_left() -> None:
    for owner in Path(roomy_memory() or tempfile.gettempdir()).glob(f"{HOMES}*/owner"):
        try:
            pid, created = owner.read_text(encoding="utf-8").split()
            alive = psutil.Process(int(pid)).create_time() == float(created)
        except (OSError, ValueError, psutil.NoSuchProcess):
            alive = False
        if not alive and owner.exists():
            EmbeddedPostgres(owner.parent).stop()
            shutil.rmtree(owner.parent, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A server where databases may be created: MDP_TEST_DATABASE_URL, or an embedded one of this session alone."""
    given = os.environ.get("MDP_TEST_DATABASE_URL")
    if given:
        yield given
        return
    _remove_what_killed_sessions_left()
    # Not pytest's own temporary directory: its parent is 0700, which the account that root's Postgres runs as cannot enter.
    home = Path(tempfile.mkdtemp(prefix=HOMES, dir=roomy_memory()))
    home.chmod(0o711)
    (home / "owner").write_text(f"{os.getpid()} {psutil.Process().create_time()}", encoding="utf-8")
    server = EmbeddedPostgres(home, extra_settings=FAST_AND_FORGETFUL)
    try:
        yield server.ensure()
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def template_database(postgres_url: str) -> Iterator[str]:
    """The name of a migrated database that nobody is connected to: what each test's database is cloned from."""
    name = f"template_{secrets.token_hex(6)}"
    _execute(postgres_url, sql.SQL("create database {}").format(sql.Identifier(name)))
    engine = open_engine(_with_database(postgres_url, name))
    apply_migrations(engine)
    engine.dispose()
    yield name
    _execute(postgres_url, sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def database_url(postgres_url: str, template_database: str) -> Iterator[str]:
    """A fresh, migrated, empty database."""
    name = f"test_{secrets.token_hex(6)}"
    # file_copy: a fifth faster than wal_log here, since nothing is flushed.
    clone = sql.SQL("create database {} template {} strategy file_copy").format(
        sql.Identifier(name), sql.Identifier(template_database)
    )
    _execute(postgres_url, clone)
    yield _with_database(postgres_url, name)
    _execute(postgres_url, sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on ``database_url``."""
    opened = open_engine(database_url)
    yield opened
    opened.dispose()
