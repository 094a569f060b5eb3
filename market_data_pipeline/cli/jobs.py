"""`mdp jobs`: put typed jobs into the queue, and look at those in it."""

from __future__ import annotations

import getpass
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from market_data_pipeline.cli.output import json_option, note, print_json, print_table
from market_data_pipeline.cli.schema import schema
from market_data_pipeline.cli.selection import opened_pipeline
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.jobs import JOB_INTERVALS
from market_data_pipeline.domain.queue import JobKind, JobState
from market_data_pipeline.domain.universe import Tier

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from market_data_pipeline.domain.queue import JobRecord
    from market_data_pipeline.ingest.job_file import SubmittedFile

DONE, FOUND_SOMETHING = 0, 1
MOST_NAMED = 20

id_argument = click.argument("job_id", metavar="ID")
tier_option = click.option("--tier", type=click.Choice([str(tier) for tier in Tier]), help="Only of this tier.")
interval_option = click.option(
    "--interval", type=click.Choice([str(interval) for interval in JOB_INTERVALS]), help="Only about bars of this size."
)


def kind_option(*further: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--kind: one of the kinds of jobs, or ``further``."""
    return click.option("--kind", type=click.Choice([*(str(kind) for kind in JobKind), *further]), help="Only of this kind.")


def limit_option(default: int, text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--limit: as many as ``text`` says."""
    return click.option("--limit", type=click.IntRange(1, 10_000), default=default, show_default=True, help=text)


@click.group()
def jobs() -> None:
    """Put typed jobs into the queue, and look at those in it."""


jobs.add_command(schema)


@jobs.command(epilog="Example: mdp jobs submit jobs.jsonl")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@json_option
def submit(*, file: Path, as_json: bool) -> int:
    """Put the jobs in FILE into the queue: JSON lines, a JSON array or one JSON object; - reads standard input.

    What is no job is kept as a dead letter with the reason (`mdp dlq`); the rest goes in. Submitting a file again changes nothing.
    Exit code 1 when something was refused, or turned away because the queue of its tier is full.
    """
    from market_data_pipeline.ingest.job_file import submit_file  # noqa: PLC0415 - only this command reads a file

    data, name = _read(file)
    with opened_pipeline() as pipeline:
        submitted = submit_file(data, source=f"{getpass.getuser()}: {name}", pipeline=pipeline)
    if as_json:
        print_json(asdict(submitted))
    else:
        _tell(submitted)
    return DONE if submitted.is_complete else FOUND_SOMETHING


def _read(file: Path) -> tuple[bytes, str]:
    if str(file) == "-":
        return sys.stdin.buffer.read(), "standard input"
    try:
        # A file's name may hold bytes that are no text.
        return file.read_bytes(), file.name.encode("utf-8", "replace").decode()
    except OSError as unreadable:
        raise InvalidInputError(f"cannot read {file}: {unreadable.strerror}") from unreadable


def _tell(submitted: SubmittedFile) -> None:
    report = submitted.report
    _name_some("no job, kept as a dead letter", submitted.refused)
    _name_some("turned away", report.turned_away)
    told = {
        "queued": report.accepted,
        "known already": report.duplicates,
        "turned away": len(report.turned_away),
        "refused": len(submitted.refused),
    }
    click.echo(", ".join(f"{count:,} {what}" for what, count in told.items() if count or what == "queued"))


def _name_some(what: str, named: Mapping[str, str]) -> None:
    for name, why in list(named.items())[:MOST_NAMED]:
        note(f"{name}: {what}: {why}")
    if len(named) > MOST_NAMED:
        note(f"and {len(named) - MOST_NAMED:,} more: {what}; --json names all")


@jobs.command("list", epilog="Example: mdp jobs list --state queued --tier T0")
@click.option("--state", type=click.Choice([str(state) for state in JobState]), help="Only those in this state.")
@tier_option
@kind_option()
@interval_option
@limit_option(50, "No more than so many, the newest.")
@json_option
def list_(*, state: str | None, tier: str | None, kind: str | None, interval: str | None, limit: int, as_json: bool) -> None:
    """List jobs, the newest first, and say how many wait in each tier."""
    from market_data_pipeline.cli.discretion import discreet  # noqa: PLC0415 - `mdp --help` must not wait for it
    from market_data_pipeline.settings import secrets_of  # noqa: PLC0415

    with opened_pipeline() as pipeline:
        found = pipeline.jobs.jobs(
            state=JobState(state) if state else None,
            tier=Tier(tier) if tier else None,
            kind=JobKind(kind) if kind else None,
            interval=interval,
            limit=limit,
        )
        depth = pipeline.jobs.depth()
        secrets = secrets_of(pipeline.settings)
    rows = [discreet(_row(job), secrets) for job in found]
    if as_json:
        print_json({"jobs": rows, "depth": [asdict(one) for one in depth]})
        return
    if rows:
        print_table(rows, columns=[name for name in rows[0] if name not in {"source", "enqueued_at"}])
    waiting: Counter[str] = Counter()
    for one in depth:
        waiting[f"{one.tier} {one.state}"] += one.jobs
    note(", ".join(f"{what}: {count:,}" for what, count in waiting.items()) or "nothing is queued, under way or dead")


def _row(job: JobRecord) -> dict[str, Any]:
    payload = job.payload
    symbols = payload.get("symbols") or [payload.get("symbol")]
    return {
        "job_id": job.job_id,
        "state": str(job.state),
        "tier": str(job.tier),
        "kind": str(job.kind),
        "symbols": str(symbols[0]) + (f" +{len(symbols) - 1}" if len(symbols) > 1 else ""),
        "interval": payload.get("interval"),
        "start": payload.get("start"),
        "attempts": job.attempts,
        "leased_by": job.leased_by,
        "reason": job.reason,
        "source": job.source,
        "enqueued_at": job.enqueued_at,
    }


@jobs.command(epilog="Example: mdp jobs show q-1")
@id_argument
@json_option
def show(*, job_id: str, as_json: bool) -> None:
    """Show everything known of the job ID: what it asks for, its attempts, who has it, how it ended. No secret is shown."""
    from market_data_pipeline.cli.discretion import discreet  # noqa: PLC0415 - `mdp --help` must not wait for it
    from market_data_pipeline.settings import secrets_of  # noqa: PLC0415

    with opened_pipeline() as pipeline:
        found = pipeline.jobs.job(job_id)
        secrets = secrets_of(pipeline.settings)
    if found is None:
        raise InvalidInputError(f"no job is called {job_id!r}: see `mdp jobs list`; done jobs are forgotten after a while")
    # dedupe_key sounds like a secret and is none: what is in it is said elsewhere, redacted.
    fields = asdict(found)
    key = discreet(fields.pop("dedupe_key"), secrets)
    shown = {**discreet(fields, secrets), "dedupe_key": key}
    print_fields(shown, as_json=as_json)


def print_fields(fields: Mapping[str, Any], *, as_json: bool) -> None:
    """One thing: JSON for machines, or a line for each field that has a value."""
    if as_json:
        print_json(fields)
        return
    rows = [{"field": name, "value": _written(value)} for name, value in fields.items() if value is not None]
    print_table(rows, columns=["field", "value"])


def _written(value: object) -> str:
    import orjson  # noqa: PLC0415 - only where one thing is shown

    if isinstance(value, dict | list):
        return orjson.dumps(value, option=orjson.OPT_INDENT_2, default=str).decode()
    return str(value)
