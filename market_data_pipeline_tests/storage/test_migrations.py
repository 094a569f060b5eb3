"""Migrations: applied once, in order, whole or not at all, by one process at a time, and never edited."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from market_data_pipeline.domain.errors import MigrationEditedError, MigrationError
from market_data_pipeline.storage.migrations import apply_migrations, migration_status, migrations_directory, read_migrations

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.engine import Engine

FIRST = "create table ticks (n int4 not null);"
SECOND = "-- 100 % of ticks, :named and %s are only text here\ninsert into ticks values (1);"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two migrations of a small schema of its own."""
    (tmp_path / "0001_ticks.sql").write_text(FIRST, encoding="utf-8")
    (tmp_path / "0002_first_tick.sql").write_text(SECOND, encoding="utf-8")
    return tmp_path


@pytest.fixture
def bare(engine: Engine) -> Engine:
    """A database that no migration was applied to."""
    with engine.begin() as connection:
        connection.execute(sa.text("drop schema public cascade"))
        connection.execute(sa.text("create schema public"))
    return engine


def _ticks(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(sa.text("select count(*) from ticks")).scalar_one())


def _has_table(engine: Engine, name: str) -> bool:
    return sa.inspect(engine).has_table(name)


def test_migrations_are_applied_in_order_and_reported(bare: Engine, directory: Path) -> None:
    report = apply_migrations(bare, directory)
    assert report.new == ("0001_ticks.sql", "0002_first_tick.sql")
    assert report.applied == report.new
    assert _ticks(bare) == 1


def test_applying_again_does_nothing(bare: Engine, directory: Path) -> None:
    apply_migrations(bare, directory)
    assert apply_migrations(bare, directory).new == ()
    assert _ticks(bare) == 1


def test_a_new_file_is_applied_to_a_migrated_database(bare: Engine, directory: Path) -> None:
    apply_migrations(bare, directory)
    (directory / "0003_another.sql").write_text("insert into ticks values (2);", encoding="utf-8")
    assert migration_status(bare, directory).pending == ("0003_another.sql",)
    assert apply_migrations(bare, directory).new == ("0003_another.sql",)
    assert _ticks(bare) == 2


def test_status_of_a_bare_database_changes_nothing(bare: Engine, directory: Path) -> None:
    status = migration_status(bare, directory)
    assert (status.applied, status.pending) == ((), ("0001_ticks.sql", "0002_first_tick.sql"))
    assert not _has_table(bare, "schema_migrations")


def test_the_schema_of_this_project_applies_to_a_bare_database(bare: Engine) -> None:
    report = apply_migrations(bare)
    assert "0001_core.sql" in report.new
    assert _has_table(bare, "candles_intraday")


def test_the_project_finds_its_migrations_in_the_checkout() -> None:
    assert read_migrations(migrations_directory())[0].name == "0001_core.sql"


def test_an_edited_migration_is_refused_by_name(bare: Engine, directory: Path) -> None:
    apply_migrations(bare, directory)
    (directory / "0001_ticks.sql").write_text(FIRST + " -- harmless", encoding="utf-8")
    (directory / "0003_another.sql").write_text("insert into ticks values (2);", encoding="utf-8")
    with pytest.raises(MigrationEditedError, match=r"0001_ticks\.sql was edited after it was applied"):
        apply_migrations(bare, directory)
    with pytest.raises(MigrationEditedError, match=r"0001_ticks\.sql"):
        migration_status(bare, directory)
    assert _ticks(bare) == 1


def test_other_line_ends_are_no_edit(bare: Engine, directory: Path) -> None:
    apply_migrations(bare, directory)
    (directory / "0002_first_tick.sql").write_bytes(SECOND.replace("\n", "\r\n").encode())
    assert apply_migrations(bare, directory).new == ()


def test_a_renamed_file_is_reported_as_missing(bare: Engine, directory: Path) -> None:
    apply_migrations(bare, directory)
    (directory / "0002_first_tick.sql").rename(directory / "0002_opening_tick.sql")
    with pytest.raises(MigrationError, match=r"missing: 0002_first_tick\.sql \(found 0002_opening_tick\.sql"):
        apply_migrations(bare, directory)


def test_a_database_newer_than_the_software_is_reported(bare: Engine, directory: Path) -> None:
    apply_migrations(bare, directory)
    (directory / "0002_first_tick.sql").unlink()
    with pytest.raises(MigrationError, match=r"newer than this software: it has 0002_first_tick\.sql"):
        apply_migrations(bare, directory)


def test_a_migration_that_fails_leaves_no_trace_and_keeps_those_before(bare: Engine, directory: Path) -> None:
    (directory / "0003_broken.sql").write_text("insert into ticks values (2); select no_such_column;", encoding="utf-8")
    with pytest.raises(MigrationError, match=r"0003_broken\.sql failed and was rolled back: .*no_such_column"):
        apply_migrations(bare, directory)
    assert _ticks(bare) == 1
    assert migration_status(bare, directory).pending == ("0003_broken.sql",)


@pytest.mark.parametrize("name", ["3_third.sql", "0003-third.sql", "0003_Third.sql", "0003_.sql", "third.sql", "0003_a b.sql"])
def test_a_file_name_that_says_no_order_is_refused(directory: Path, name: str) -> None:
    (directory / name).write_text("select 1;", encoding="utf-8")
    with pytest.raises(MigrationError, match=r"is not named NNNN_name\.sql"):
        read_migrations(directory)


def test_a_gap_in_the_numbers_is_refused(directory: Path) -> None:
    (directory / "0004_fourth.sql").write_text("select 1;", encoding="utf-8")
    with pytest.raises(MigrationError, match=r"migration 0003 is missing .* the next file is 0004_fourth\.sql"):
        read_migrations(directory)


def test_a_number_used_twice_is_refused(directory: Path) -> None:
    (directory / "0002_second.sql").write_text("select 1;", encoding="utf-8")
    with pytest.raises(MigrationError, match=r"two migrations are numbered 0002: 0002_first_tick\.sql and 0002_second\.sql"):
        read_migrations(directory)


def test_ten_processes_at_once_apply_each_migration_once(bare: Engine, directory: Path) -> None:
    program = (
        "import sys, pathlib\n"
        "from market_data_pipeline.storage.database import open_engine\n"
        "from market_data_pipeline.storage.migrations import apply_migrations\n"
        "engine = open_engine(sys.stdin.readline().strip())\n"
        "print(*apply_migrations(engine, pathlib.Path(sys.argv[1])).new)\n"
    )
    # Long enough that all ten are there before the first is done.
    (directory / "0003_slow.sql").write_text("select pg_sleep(0.5); insert into ticks values (2);", encoding="utf-8")
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(10)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write(bare.url.render_as_string(hide_password=False) + "\n")
        racer.stdin.flush()
    ends = [(*racer.communicate(timeout=60), racer.returncode) for racer in racers]
    assert [(err, code) for _, err, code in ends] == [("", 0)] * 10
    applied = sorted(name for out, _, _ in ends for name in out.split())
    assert applied == ["0001_ticks.sql", "0002_first_tick.sql", "0003_slow.sql"]
    assert _ticks(bare) == 2
