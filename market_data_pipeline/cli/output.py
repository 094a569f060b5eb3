"""How commands print: a table for people, JSON for machines, from the same rows."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click
import orjson
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines instead of a table.")


def print_json(value: object) -> None:
    """``value`` as indented JSON on standard output; dates and instants as ISO 8601."""
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY, default=str).decode())


def print_table(rows: Iterable[Mapping[str, Any]], *, columns: Sequence[str], title: str | None = None) -> None:
    """``rows`` as a table with ``columns`` in that order; numbers to the right, None as an empty cell."""
    rows = list(rows)
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        numeric = any(isinstance(row.get(column), int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    # A pipe has no width: 80 columns would fold every row for the program that reads it.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)
