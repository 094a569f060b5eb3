"""`mdp dlq`: what ended without its effect: look at it, try it again, forget it; who did so before."""

from __future__ import annotations

import getpass
import re
import sys
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from market_data_pipeline.cli.jobs import id_argument, interval_option, kind_option, limit_option, print_fields, tier_option
from market_data_pipeline.cli.output import json_option, note, print_json, print_table
from market_data_pipeline.cli.selection import opened_pipeline
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.queue import MOST_AT_ONCE, REFUSED, DeadLetterFilter
from market_data_pipeline.domain.universe import Tier

if TYPE_CHECKING:
    from market_data_pipeline.domain.queue import DeadLetter, RequeueReport

DONE, FOUND_SOMETHING = 0, 1
MOST_NAMED = 20
_AGE = re.compile(r"([0-9]{1,6})([mhd])", re.ASCII)
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}
# A century: older than anything here, and young enough for Postgres to subtract.
_OLDEST = timedelta(days=36_525)

actor_option = click.option("--actor", help="Who does this, for the audit log; default: the user of this shell.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")


def parse_age(text: str) -> timedelta:
    """30d, 12h, 45m: how long ago. InvalidInputError for anything else."""
    matched = _AGE.fullmatch(text)
    if not matched:
        raise InvalidInputError(f"{text!r} is no age: expected a number and d, h or m, like 30d")
    age = timedelta(**{_UNITS[matched[2]]: int(matched[1])})
    if age > _OLDEST:
        raise InvalidInputError(f"{text!r} is more than a century: expected an age like 30d")
    return age


class _Age(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    name = "AGE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401 - click's signature
        try:
            return parse_age(value) if isinstance(value, str) else value
        except InvalidInputError as wrong:
            self.fail(str(wrong), param, ctx)


AGE = _Age()


@click.group()
def dlq() -> None:
    """Look at dead letters, try them again, forget them. Everything that is done is kept in an audit log.

    A dead letter is a job that failed for good, by its id, or a payload that is no job, called refused/NUMBER.
    """


@dlq.command("list", epilog="Example: mdp dlq list --tier T0 --kind backfill --interval 1m")
@tier_option
@kind_option(REFUSED)
@interval_option
@limit_option(50, "No more than so many, the newest.")
@json_option
def list_(*, tier: str | None, kind: str | None, interval: str | None, limit: int, as_json: bool) -> None:
    """List dead letters, the newest first."""
    from market_data_pipeline.cli.discretion import discreet  # noqa: PLC0415 - `mdp --help` must not wait for it
    from market_data_pipeline.settings import secrets_of  # noqa: PLC0415

    with opened_pipeline() as pipeline:
        letters = pipeline.jobs.dead_letters(_meant(tier, kind, interval), limit=limit)
        secrets = secrets_of(pipeline.settings)
    rows = [discreet(_row(letter), secrets) for letter in letters]
    if as_json:
        print_json(rows)
    elif rows:
        print_table(rows, columns=["id", "kind", "tier", "interval", "since", "attempts", "replays", "reason"])
    else:
        note("there are no such dead letters")


def _row(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.letter_id,
        "kind": letter.kind,
        "tier": letter.tier,
        "interval": letter.interval,
        "since": letter.since.isoformat(timespec="seconds").replace("+00:00", "Z"),
        "attempts": letter.attempts,
        "replays": letter.replays,
        "source": letter.source,
        "reason": letter.reason,
    }


@dlq.command(epilog="Example: mdp dlq show refused/12")
@id_argument
@json_option
def show(*, job_id: str, as_json: bool) -> None:
    """Show one dead letter with its payload. What a name calls secret is shown as ***, and so is every secret of our own."""
    from market_data_pipeline.cli.discretion import discreet, payload  # noqa: PLC0415 - `mdp --help` must not wait for it
    from market_data_pipeline.settings import secrets_of  # noqa: PLC0415

    with opened_pipeline() as pipeline:
        letter = pipeline.jobs.dead_letter(job_id)
        secrets = secrets_of(pipeline.settings)
    if letter is None:
        raise InvalidInputError(
            f"no dead letter is called {job_id!r}: see `mdp dlq list`, or `mdp jobs show` for a job that is not dead"
        )
    print_fields({**discreet(_row(letter), secrets), "payload": payload(letter.payload, secrets)}, as_json=as_json)


@dlq.command(epilog="Example: mdp dlq requeue bf-AAPL-2026-11-20")
@id_argument
@actor_option
@json_option
def requeue(*, job_id: str, actor: str | None, as_json: bool) -> int:
    """Try the dead letter ID again, judged by the rules of today, with all its attempts. Doing it twice does it once.

    Exit code 1 when it is left as it is; the reason is said.
    """
    with opened_pipeline() as pipeline:
        report = pipeline.jobs.requeue(job_id, actor=who(actor))
    return _tell(report, as_json=as_json, verb="requeued")


@dlq.command("requeue-all", epilog="Example: mdp dlq requeue-all --tier T0 --limit 500 --dry-run")
@tier_option
@kind_option(REFUSED)
@interval_option
@limit_option(100, "No more than so many, the oldest.")
@dry_run_option
@actor_option
@json_option
def requeue_all(
    *, tier: str | None, kind: str | None, interval: str | None, limit: int, dry_run: bool, actor: str | None, as_json: bool
) -> int:
    """Try the oldest dead letters again, as `mdp dlq requeue` does each, no more than --limit of them.

    Exit code 1 when some are left as they are; the reasons are said.
    """
    meant = _meant(tier, kind, interval)
    with opened_pipeline() as pipeline:
        report = pipeline.jobs.requeue_all(
            tier=meant.tier, kind=meant.kind, interval=meant.interval, limit=limit, actor=who(actor), is_dry_run=dry_run
        )
    return _tell(report, as_json=as_json, verb="would be requeued" if dry_run else "requeued")


def _tell(report: RequeueReport, *, as_json: bool, verb: str) -> int:
    if as_json:
        print_json(asdict(report))
    else:
        for name, why in list(report.left.items())[:MOST_NAMED]:
            note(f"{name} {why}" if why.startswith("is ") else f"{name}: {why}")
        if len(report.left) > MOST_NAMED:
            note(f"and {len(report.left) - MOST_NAMED:,} more are left as they are; --json names all")
        left = f", {len(report.left):,} left" if report.left else ""
        click.echo(f"{len(report.requeued):,} {verb}{left}")
    return FOUND_SOMETHING if report.left else DONE


@dlq.command(epilog="Example: mdp dlq delete refused/12 --yes")
@id_argument
@yes_option
@actor_option
@json_option
def delete(*, job_id: str, yes: bool, actor: str | None, as_json: bool) -> None:
    """Forget the dead letter ID for good. Nothing but a dead letter can be deleted."""
    with opened_pipeline() as pipeline:
        _ask(f"Forget {job_id} for good?", yes=yes)
        pipeline.jobs.delete(job_id, actor=who(actor))
    if as_json:
        print_json({"deleted": job_id})
    else:
        click.echo(f"{job_id} is deleted")


@dlq.command(epilog="Example: mdp dlq purge --older-than 30d --dry-run")
@click.option("--older-than", type=AGE, required=True, help="Only what died longer ago: 30d, 12h or 45m.")
@tier_option
@kind_option(REFUSED)
@interval_option
@limit_option(MOST_AT_ONCE, "No more than so many, the oldest.")
@dry_run_option
@yes_option
@actor_option
@json_option
def purge(  # noqa: PLR0913 - one an option
    *,
    older_than: timedelta,
    tier: str | None,
    kind: str | None,
    interval: str | None,
    limit: int,
    dry_run: bool,
    yes: bool,
    actor: str | None,
    as_json: bool,
) -> None:
    """Forget old dead letters for good, no more than --limit of them. Says how many first, and asks."""
    meant = _meant(tier, kind, interval)
    with opened_pipeline() as pipeline:
        name = who(actor)
        named = pipeline.jobs.purge(older_than=older_than, actor=name, meant=meant, limit=limit, is_dry_run=True)
        if named and not dry_run:
            _ask(f"Forget {len(named):,} dead letters for good?", yes=yes)
            named = pipeline.jobs.purge(older_than=older_than, actor=name, meant=meant, limit=limit)
    if as_json:
        print_json({"purged": [] if dry_run else named, "would_purge": named if dry_run else []})
    else:
        click.echo(f"{len(named):,} dead letters {'would be' if dry_run else 'are'} forgotten")


@dlq.command(epilog="Example: mdp dlq stats")
@json_option
def stats(*, as_json: bool) -> None:
    """Count dead letters by tier, kind and interval: since when, and how many were tried again before."""
    with opened_pipeline() as pipeline:
        found = pipeline.jobs.dead_statistics()
    if as_json:
        print_json([asdict(one) for one in found])
    elif found:
        rows = [
            {**asdict(one), "oldest": f"{one.oldest:%Y-%m-%d %H:%M}Z", "newest": f"{one.newest:%Y-%m-%d %H:%M}Z"} for one in found
        ]
        print_table(rows, columns=["tier", "kind", "interval", "letters", "replayed", "oldest", "newest"])
    else:
        note("there are no dead letters")


@dlq.command(epilog="Example: mdp dlq audit --limit 20")
@limit_option(50, "No more than so many, the newest.")
@json_option
def audit(*, limit: int, as_json: bool) -> None:
    """Print who did what by hand, the newest first. The log can be added to, and never changed."""
    from market_data_pipeline.cli.discretion import discreet  # noqa: PLC0415 - `mdp --help` must not wait for it
    from market_data_pipeline.settings import secrets_of  # noqa: PLC0415
    from market_data_pipeline.storage.audit import AuditLog  # noqa: PLC0415 - nor for psycopg2

    with opened_pipeline() as pipeline:
        entries = AuditLog(pipeline.engine).entries(limit)
        secrets = secrets_of(pipeline.settings)
    rows = [discreet(asdict(entry), secrets) for entry in entries]
    if as_json:
        print_json(rows)
        return
    if not rows:
        note("nobody has done anything by hand")
        return
    shown = [{**row, "at": f"{row['at']:%Y-%m-%d %H:%M:%S}Z", "outcome": _outcome(row["detail"])} for row in rows]
    print_table(shown, columns=["at", "actor", "action", "subject", "outcome"])


def _outcome(detail: dict[str, Any]) -> str:
    """How many of each, where there are many; what it was otherwise."""
    told = [(name, value["count"] if isinstance(value, dict) else value) for name, value in detail.items()]
    return ", ".join(f"{name} {value}" for name, value in told if value is not None)


def _meant(tier: str | None, kind: str | None, interval: str | None) -> DeadLetterFilter:
    if kind == REFUSED and (tier or interval):
        raise InvalidInputError(
            "what was refused has no tier and no interval: expected --kind refused without --tier and --interval"
        )
    return DeadLetterFilter(Tier(tier) if tier else None, kind, interval)


def who(actor: str | None) -> str:
    """The name for the audit log: ``actor``, or the user of this shell."""
    name = getpass.getuser() if actor is None else actor.strip()
    if not 1 <= len(name) <= 128 or not name.isprintable():
        raise InvalidInputError(f"{name[:128]!r} is no name for the audit log: expected 1-128 printable characters")
    return name


def _ask(question: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidInputError(f"{question} nobody is there to answer: expected --yes")
    click.confirm(question, abort=True)
