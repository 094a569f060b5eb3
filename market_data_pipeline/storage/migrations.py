"""Brings a database to the schema in ``sql/``: numbered plain-SQL files, each applied once, in order, and never edited."""

from __future__ import annotations

import hashlib
import re
import site
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2.errors
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from market_data_pipeline.domain.errors import MigrationEditedError, MigrationError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.engine import Connection, Engine

FILE_NAME = re.compile(r"(\d{4})_[a-z0-9][a-z0-9_]*\.sql")
# Any number will do that no other user of the server's advisory locks takes: the first bytes of sha256("market_data_pipeline").
LOCK_KEY = int.from_bytes(hashlib.sha256(b"market_data_pipeline migrations").digest()[:8], signed=True)
LOCK_TIMEOUT = "10min"


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of ``sql/``. ``sha256`` is of the text with Unix line ends: a checkout with others is no edit."""

    number: int
    name: str
    sql: str
    sha256: str


@dataclass(frozen=True, slots=True)
class AppliedMigration:
    """One row of ``schema_migrations``."""

    number: int
    name: str
    sha256: str
    applied_at: datetime


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """What is applied now (``applied``, file names in order), what of it this call did (``new``), and what waits (``pending``)."""

    applied: tuple[str, ...]
    new: tuple[str, ...]
    pending: tuple[str, ...] = ()


def migrations_directory() -> Path:
    """Where the files are: in the checkout this package runs from, or where its wheel put them."""
    candidates = [Path(__file__).parents[2] / "sql"]
    prefixes = [sysconfig.get_path("data"), site.getuserbase()]
    candidates += [Path(prefix) / "share" / "market_data_pipeline" / "sql" for prefix in prefixes]
    for candidate in candidates:
        if (candidate / "0001_core.sql").is_file():
            return candidate
    raise MigrationError(f"the migrations were not installed: looked for 0001_core.sql in {', '.join(map(str, candidates))}")


def read_migrations(directory: Path) -> list[Migration]:
    """Every migration in ``directory``, in order. MigrationError for a name, gap or duplicate that makes the order unclear."""
    if not directory.is_dir():
        raise MigrationError(f"{directory} is not a directory of migrations")
    migrations: list[Migration] = []
    for path in sorted(directory.glob("*.sql")):
        matched = FILE_NAME.fullmatch(path.name)
        if not matched:
            raise MigrationError(f"{path} is not named NNNN_name.sql (four digits, then lower case letters, digits and _)")
        sql = path.read_text(encoding="utf-8")
        migration = Migration(int(matched[1]), path.name, sql, hashlib.sha256(sql.encode()).hexdigest())
        expected = len(migrations) + 1
        if migration.number < expected:
            raise MigrationError(f"two migrations are numbered {migration.number:04}: {migrations[-1].name} and {path.name}")
        if migration.number > expected:
            raise MigrationError(f"migration {expected:04} is missing from {directory}: the next file is {path.name}")
        migrations.append(migration)
    return migrations


def apply_migrations(engine: Engine, directory: Path | None = None) -> MigrationReport:
    """Apply what is not applied yet. Safe to repeat, and safe from any number of processes at once: one applies, the others wait.

    Each migration is one transaction with its row in ``schema_migrations``: one that fails leaves no trace and keeps those before.
    """
    migrations = read_migrations(directory or migrations_directory())
    new: list[str] = []
    while True:
        # The lock is the transaction's, not the session's: a pooler in between does not matter.
        with engine.begin() as connection:
            _lock(connection)
            _create_table(connection)
            applied = _read_applied(connection)
            pending = _pending(migrations, applied)
            if not pending:
                return MigrationReport(applied=tuple(row.name for row in applied), new=tuple(new))
            _apply(connection, pending[0])
        new.append(pending[0].name)


def migration_status(engine: Engine, directory: Path | None = None) -> MigrationReport:
    """What is applied and what waits, changing nothing. Raises as ``apply_migrations`` would where the two do not fit."""
    migrations = read_migrations(directory or migrations_directory())
    with engine.connect() as connection:
        exists = connection.execute(sa.text("select to_regclass('schema_migrations') is not null")).scalar_one()
        applied = _read_applied(connection) if exists else []
    pending = _pending(migrations, applied)
    return MigrationReport(applied=tuple(row.name for row in applied), new=(), pending=tuple(m.name for m in pending))


def _lock(connection: Connection) -> None:
    connection.execute(sa.text("select set_config('lock_timeout', :timeout, true)"), {"timeout": LOCK_TIMEOUT})
    try:
        connection.execute(sa.text("select pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
    except DBAPIError as error:
        if isinstance(error.orig, psycopg2.errors.LockNotAvailable):
            raise MigrationError(f"another process has been migrating this database for more than {LOCK_TIMEOUT}") from error
        raise


def _create_table(connection: Connection) -> None:
    connection.exec_driver_sql(
        "create table if not exists schema_migrations (number int4 primary key, name text not null, sha256 text not null,"
        " applied_at timestamptz not null default clock_timestamp())"
    )


def _read_applied(connection: Connection) -> list[AppliedMigration]:
    rows = connection.exec_driver_sql("select number, name, sha256, applied_at from schema_migrations order by number")
    return [AppliedMigration(*row) for row in rows]


def _pending(migrations: Sequence[Migration], applied: Sequence[AppliedMigration]) -> list[Migration]:
    known = {migration.number: migration for migration in migrations}
    for row in applied:
        if row.number > len(migrations):
            raise MigrationError(
                f"the database is newer than this software: it has {row.name}, applied {row.applied_at:%Y-%m-%d %H:%M}Z,"
                f" and this software knows {len(migrations)} migrations. Upgrade the software."
            )
        migration = known[row.number]
        if migration.name != row.name:
            raise MigrationError(f"the file of an applied migration is missing: {row.name} (found {migration.name} in its place)")
        if migration.sha256 != row.sha256:
            raise MigrationEditedError(
                f"{row.name} was edited after it was applied on {row.applied_at:%Y-%m-%d %H:%M}Z."
                " Put it back as it was, and write the change as the next migration."
            )
    done = {row.number for row in applied}
    return [migration for migration in migrations if migration.number not in done]


def _apply(connection: Connection, migration: Migration) -> None:
    try:
        # no_parameters: a % in the file is a %, not a place for a parameter.
        connection.exec_driver_sql(migration.sql, execution_options={"no_parameters": True})
    except DBAPIError as error:
        reason = " ".join(str(error.orig).split())
        raise MigrationError(f"{migration.name} failed and was rolled back: {reason}") from error
    connection.execute(
        sa.text("insert into schema_migrations (number, name, sha256) values (:number, :name, :sha256)"),
        {"number": migration.number, "name": migration.name, "sha256": migration.sha256},
    )
