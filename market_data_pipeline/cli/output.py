"""How commands print: a table for people, JSON for machines, from the same rows. Notes go to standard error."""

from __future__ import annotations

import errno
import struct
import sys
from typing import TYPE_CHECKING, Any

import click
import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines instead of a table.")

# What fits on two screens. Whoever wants all rows of a long table wants a file or a pipe: csv and json are never cut.
MOST_ROWS = 60
_LEFT_OUT = "…"
# Our enumerations are strings, and so are the keys made of them; orjson wants to be told.
JSON = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY


def print_json(value: object) -> None:
    """``value`` as indented JSON on standard output; dates and instants as ISO 8601."""
    click.echo(orjson.dumps(value, option=JSON, default=str).decode())


def print_table(
    rows: Iterable[Mapping[str, Any]], *, columns: Sequence[str], title: str | None = None, most: int | None = None
) -> None:
    """``rows`` as a table with ``columns`` in that order; numbers to the right, None as an empty cell.

    More than ``most`` rows are cut in the middle, and a line under the table says how many are not shown.
    """
    rows = list(rows)
    head, tail = _ends(rows, most)
    table = Table(header_style="bold")
    for column in columns:
        numeric = any(isinstance(row.get(column), int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in head:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    if tail:
        table.add_row(*(_LEFT_OUT for _ in columns))
    for row in tail:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    if title:
        # A line of its own: rich would fold a title to the width of a narrow table.
        click.secho(title, bold=True)
    # A pipe has no width: 80 columns would fold every row for the program that reads it.
    _Console(width=None if sys.stdout.isatty() else 200).print(table)
    hidden = len(rows) - len(head) - len(tail)
    if hidden:
        note(f"{len(rows):,} rows, {hidden:,} of them not shown: --json prints all")


class _Console(Console):
    """Leaves a closed pipe to ``main``, as click does; rich would end the process itself, with 1."""

    def on_broken_pipe(self) -> None:
        """Say it as the system said it."""
        raise BrokenPipeError(errno.EPIPE, "the reader has gone")


def note(text: str) -> None:
    """Something a person should know that is not the answer itself: standard error, so that pipes stay clean."""
    click.echo(text, err=True)


def _ends(rows: Sequence[Mapping[str, Any]], most: int | None) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
    if most is None or len(rows) <= most:
        return rows, ()
    return rows[: most - most // 2], rows[len(rows) - most // 2 :]


def _cell(value: object) -> Text:
    """Text, never markup: a symbol or an error message may hold square brackets."""
    return Text(_written(value))


def _written(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return shortest(value) if isinstance(value, float) else str(value)


def shortest(value: float) -> str:
    """``value`` in the fewest digits that still mean it, thousands separated.

    Where it is a 32-bit float, as every price of Yahoo's is, in the fewest that still mean that: 138.74 for 138.74000549316406.
    """
    if value.is_integer():
        return f"{value:,.0f}"
    texts = (f"{value:,.{digits}g}" for digits in range(6, 10))
    same = (text for text in texts if _as_float32(float(text.replace(",", ""))) == value)
    return next(same, f"{value:,}")


def _as_float32(value: float) -> float | None:
    try:
        (narrowed,) = struct.unpack("f", struct.pack("f", value))
    except OverflowError:
        return None
    return float(narrowed)
