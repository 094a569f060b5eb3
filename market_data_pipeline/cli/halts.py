"""`mdp halts`: load suspensions of trading, so that their minutes are called halted and not missing; list those that are known."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from market_data_pipeline.cli.output import MOST_ROWS, json_option, note, print_json, print_table
from market_data_pipeline.cli.parameters import SESSION
from market_data_pipeline.cli.selection import opened_pipeline

if TYPE_CHECKING:
    from datetime import date

# Names in one line of a message; --json has them all.
_MOST_NAMED = 20
_DEFAULT_DAYS = 30


@click.group()
def halts() -> None:
    """Load and list suspensions of trading."""


@halts.command(epilog="Example: mdp halts load halts.csv --source nasdaqtrader")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--source", help="Who tells it; default: the file's name. The same source told again replaces what it told.")
@json_option
def load(*, file: Path, source: str | None, as_json: bool) -> None:
    """Load the halts in FILE, a CSV with the columns symbol, starts_at and ends_at; * and a calendar for a whole market.

    Further columns may be calendar and reason; Nasdaq Trader's list of halts is taken as it is. Bars that lie wholly inside a halt
    and that nobody has are called halted from then on, in sessions already asked for at once. All or nothing; repeating it is safe.
    """
    from market_data_pipeline.ingest.halts import apply_halts, read_halts  # noqa: PLC0415 - only this command reads them
    from market_data_pipeline.storage.halts import Halts  # noqa: PLC0415

    with opened_pipeline() as pipeline:
        followed = {instrument.symbol: instrument for instrument in pipeline.universe.instruments(active_only=False)}
        told = read_halts(file, followed)
        now = pipeline.clock.now()
        loaded = Halts(pipeline.engine).load(told.halts, source=source or file.name, now=now, actor=getpass.getuser())
        slots = apply_halts(pipeline, told.halts)
    result = {
        "added": loaded.added,
        "changed": loaded.changed,
        "unchanged": loaded.unchanged,
        "bars_now_halted": slots,
        "not_followed": list(told.not_followed),
    }
    if as_json:
        print_json(result)
        return
    print_table([result], columns=["added", "changed", "unchanged", "bars_now_halted"])
    if told.not_followed:
        named = ", ".join(told.not_followed[:_MOST_NAMED])
        more = len(told.not_followed) - _MOST_NAMED
        note(f"not in the universe, left out: {named}{f' and {more} more' if more > 0 else ''}")


@halts.command("list", epilog="Example: mdp halts list --start 2026-11-01")
@click.option("--start", type=SESSION, help=f"From this day on (UTC); default: {_DEFAULT_DAYS} days ago.")
@click.option("--end", type=SESSION, help="To this day, included; default: today.")
@json_option
def list_(*, start: date | None, end: date | None, as_json: bool) -> None:
    """List the halts that are known, by when they began."""
    from market_data_pipeline.storage.halts import Halts  # noqa: PLC0415 - `mdp halts --help` needs no SQLAlchemy

    with opened_pipeline() as pipeline:
        now = pipeline.clock.now()
        since = now - timedelta(days=_DEFAULT_DAYS) if start is None else _midnight(start)
        until = now if end is None else _midnight(end) + timedelta(days=1)
        known = Halts(pipeline.engine).between(None, (), since, until)
    rows = [
        {
            "symbol": halt.symbol or "*",
            "calendar": halt.calendar,
            "starts_at": halt.starts_at.astimezone(UTC).isoformat(),
            "ends_at": None if halt.ends_at is None else halt.ends_at.astimezone(UTC).isoformat(),
            "reason": halt.reason,
            "source": halt.source,
        }
        for halt in known
    ]
    if as_json:
        print_json(rows)
    elif rows:
        print_table(rows, columns=list(rows[0]), most=MOST_ROWS)
    else:
        note("no halts are known in that time: load them with `mdp halts load FILE`")


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
