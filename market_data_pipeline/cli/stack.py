"""`mdp up | down | status | migrate | exec`: the database and Dagster on this machine."""

from __future__ import annotations

import os
import shutil
import sysconfig
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from market_data_pipeline.cli.main import DONE, FOUND_SOMETHING
from market_data_pipeline.cli.output import json_option, note, print_json, print_table
from market_data_pipeline.cli.processes import (
    DagsterStack,
    ProcessState,
    dagster_environment,
    dagster_version,
    prepare_dagster_home,
)
from market_data_pipeline.domain.errors import InvalidInputError, UnavailableError
from market_data_pipeline.domain.sessions import HORIZON_WARNING_DAYS
from market_data_pipeline.settings import Settings
from market_data_pipeline.storage.database import address, database_url, open_engine
from market_data_pipeline.storage.embedded import EmbeddedPostgres
from market_data_pipeline.storage.migrations import apply_migrations, migration_status
from market_data_pipeline.storage.partition_plan import plan_path, read_plan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy.engine import Engine

    from market_data_pipeline.storage.migrations import MigrationReport

no_dagster_option = click.option("--no-dagster", is_flag=True, help="Leave Dagster out: only the database.")


@dataclass(frozen=True, slots=True)
class Part:
    """One line of `mdp status`; ``up`` judges its state.

    ``state`` is running, starting, stopped, current, pending, ending (a calendar), failed or unknown.
    """

    part: str
    state: str
    up: bool
    pid: int | None = None
    address: str | None = None
    version: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class StackStatus:
    """All of it. ``up`` is whether every part that was asked about is."""

    up: bool
    home: str
    parts: tuple[Part, ...]
    disk_free_bytes: int


@click.command("up")
@no_dagster_option
@json_option
def up(*, no_dagster: bool, as_json: bool) -> int:
    """Start the database and Dagster, and bring the schema up to date. What runs already is left alone.

    Everything lives under MDP_HOME and stays up until `mdp down`. With MDP_DATABASE_URL set, that server is used.

    Example: mdp up && mdp status
    """
    settings = Settings.from_environment()
    stack = DagsterStack(settings)
    if not no_dagster:
        stack.check()
    _start_database(settings)
    with _open(settings) as engine:
        report = apply_migrations(engine)
    note(f"schema: {_counted(report)}")
    if not no_dagster:
        started = stack.start()
        note(f"Dagster: {', '.join(started) + ' started' if started else 'already running'}, {settings.dagster_url}")
        if stack.outdated():
            note("Dagster was started with other MDP_* settings than these: `mdp down`, then `mdp up` applies them")
    return _show(_status(settings, dagster=not no_dagster), as_json=as_json)


@click.command("down")
def down() -> int:
    """Stop Dagster, with the runs in progress, and then the embedded database. Nothing is left behind; no data is lost.

    Example: mdp down
    """
    settings = Settings.from_environment()
    stopped = DagsterStack(settings).stop()
    # The user's own server is not ours to stop; an embedded one from before MDP_DATABASE_URL was set is.
    if EmbeddedPostgres(settings.home).stop():
        stopped.append("postgres")
    note(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")
    return DONE


@click.command("status")
@no_dagster_option
@json_option
def status(*, no_dagster: bool, as_json: bool) -> int:
    """Show each part: whether it runs, where, which version, which migrations, how much disk is free.

    Exit code 0 when all of it is up, 1 when something is not.

    Example: mdp status --json
    """
    return _show(_status(Settings.from_environment(), dagster=not no_dagster), as_json=as_json)


@click.command("migrate")
@json_option
def migrate(*, as_json: bool) -> int:
    """Apply the migrations in sql/ that the database does not have yet. Safe to repeat, and from several machines at once.

    Example: MDP_DATABASE_URL=postgresql://me@db.example/market_data mdp migrate
    """
    with _open(Settings.from_environment()) as engine:
        report = apply_migrations(engine)
    if as_json:
        print_json(asdict(report))
    else:
        for name in report.new:
            click.echo(f"applied {name}")
        click.echo(_counted(report))
    return DONE


@click.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(command: tuple[str, ...]) -> None:
    """Run COMMAND with the environment of this stack: DAGSTER_HOME, the storage of Dagster, the database. Prints no password.

    Example: mdp exec -- dagster dev
    """
    settings = Settings.from_environment()
    database_url(settings)  # says now, in our words, that nothing runs
    prepare_dagster_home(settings)
    # Our own scripts first, so that `dagster` is found without activating the virtual environment.
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    program = shutil.which(command[0], path=path)
    if program is None:
        raise InvalidInputError(f"{command[0]!r} is not a command: neither next to mdp nor in PATH")
    os.execve(program, list(command), {**os.environ, **dagster_environment(settings), "PATH": path})  # noqa: S606 - the very purpose


def _start_database(settings: Settings) -> None:
    if settings.database_url is not None:
        note(f"Postgres: yours, {address(settings.database_url.get_secret_value())}")
        return
    embedded = EmbeddedPostgres(settings.home)
    ran = embedded.running()
    where = address(embedded.ensure())
    note(f"Postgres: {'already running' if ran else 'started'}, {where}")


@contextmanager
def _open(settings: Settings) -> Iterator[Engine]:
    engine = open_engine(database_url(settings))
    try:
        yield engine
    finally:
        engine.dispose()


def _status(settings: Settings, *, dagster: bool) -> StackStatus:
    parts = [*_database_parts(settings), *_calendar_parts(settings)]
    if dagster:
        parts += [_dagster_part(state) for state in DagsterStack(settings).states()]
    return StackStatus(
        up=all(part.up for part in parts), home=str(settings.home), parts=tuple(parts), disk_free_bytes=_disk_free(settings.home)
    )


def _database_parts(settings: Settings) -> tuple[Part, Part]:
    pid = None
    where = version = None
    unknown = Part("schema", "unknown", up=False)
    try:
        if settings.database_url is None:
            state = EmbeddedPostgres(settings.home).state()
            pid, version = state.pid, state.version
            if not state.running:
                return Part("postgres", "starting" if pid else "stopped", up=False, pid=pid, version=version), unknown
        url = database_url(settings)
        where = address(url)
        engine = open_engine(url)
    except UnavailableError as error:
        return Part("postgres", "failed", up=False, pid=pid, address=where, version=version, note=str(error)), unknown
    try:
        with engine.connect() as connection:
            version = ".".join(map(str, connection.dialect.server_version_info or ()))
        postgres = Part("postgres", "running", up=True, pid=pid, address=where, version=version)
        report = migration_status(engine)
    except UnavailableError as error:
        return postgres, Part("schema", "failed", up=False, note=str(error))
    finally:
        engine.dispose()
    newest = report.applied[-1].removesuffix(".sql") if report.applied else None
    state_name = "pending" if report.pending else "current"
    return postgres, Part("schema", state_name, up=not report.pending, version=newest, note=_counted(report))


def _calendar_parts(settings: Settings) -> list[Part]:
    """The guard of the horizon: a calendar that ends soon is said long before its sessions go missing without a gap."""
    path = plan_path(settings.home)
    if not path.exists():
        return []
    today = datetime.now(UTC).date()
    calendars = read_plan(path).calendars
    ending = [c for c in calendars if c.ends_within(HORIZON_WARNING_DAYS, today)]
    said = ", ".join(f"{c.name} until {c.last_session}" for c in ending or calendars)
    if ending:
        said += ": upgrade exchange_calendars, then `mdp universe load`"
    return [Part("calendars", "ending" if ending else "current", up=not ending, note=said)]


def _dagster_part(state: ProcessState) -> Part:
    return Part(
        state.name,
        state.state,
        up=state.state == "running",
        pid=state.pid,
        address=state.address,
        version=dagster_version(),
        note=state.note,
    )


def _show(found: StackStatus, *, as_json: bool) -> int:
    if as_json:
        print_json(asdict(found))
    else:
        rows = [{**asdict(part), "pid": str(part.pid or "")} for part in found.parts]
        print_table(rows, columns=("part", "state", "pid", "address", "version", "note"))
        click.echo(f"{found.home}: {found.disk_free_bytes / 2**30:,.1f} GiB free")
    return DONE if found.up else FOUND_SOMETHING


def _counted(report: MigrationReport) -> str:
    new = f", {len(report.new)} of them now" if report.new else ""
    return f"{len(report.applied)} applied{new}, {len(report.pending)} pending"


def _disk_free(home: Path) -> int:
    there = home
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free
