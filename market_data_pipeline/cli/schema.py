"""`mdp jobs schema`: what a job must look like, as a table for people and as JSON Schema for machines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import orjson

from market_data_pipeline.cli.output import json_option, print_json, print_table
from market_data_pipeline.domain.queue import JobKind

ANY = "job"


@click.command(epilog="Example: mdp jobs schema bars_fetch --json > bars_fetch.json")
@click.argument("kind", required=False, type=click.Choice([str(kind) for kind in JobKind]))
@click.option(
    "--directory", type=click.Path(file_okay=False, path_type=Path), help="Write the schema of every kind here, one file each."
)
@json_option
def schema(*, kind: str | None, directory: Path | None, as_json: bool) -> None:
    """Show the fields of each KIND of job, or its JSON Schema with --json.

    The schemas are published in docs/schemas, too. What no schema can say is in docs/jobs.md: start before end, midnights for 1d,
    how long a window may be.
    """
    from market_data_pipeline.domain.jobs import json_schema  # noqa: PLC0415 - `mdp --help` must not wait for pydantic

    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in schema_files().items():
            (directory / name).write_bytes(text)
    if as_json:
        print_json(json_schema(JobKind(kind) if kind else None))
        return
    for one in [JobKind(kind)] if kind else JobKind:
        described = json_schema(one)
        rows = [_row(name, told, name in described["required"]) for name, told in described["properties"].items()]
        columns = ["field", "needed", "expected", "what it means"]
        print_table(rows, columns=columns, title=f"{one}: {described['description']}")


def schema_files() -> dict[str, bytes]:
    """The published files by name: one a kind, and one for any job."""
    from market_data_pipeline.domain.jobs import json_schema  # noqa: PLC0415 - as above

    kinds = {ANY: None} | {str(kind): kind for kind in JobKind}
    return {
        f"{name}.json": orjson.dumps(json_schema(kind), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        for name, kind in kinds.items()
    }


def _row(name: str, told: dict[str, Any], is_needed: bool) -> dict[str, Any]:  # noqa: FBT001 - a row's cell
    return {"field": name, "needed": is_needed, "expected": _expected(told), "what it means": told.get("description", "")}


def _expected(told: dict[str, Any]) -> str:
    if "const" in told:
        return str(told["const"])
    if "enum" in told:
        return ", ".join(told["enum"])
    if "items" in told:
        return f"{told['minItems']}-{told['maxItems']:,}, each a {_expected(told['items'])}"
    if "anyOf" in told:
        return " or ".join(_expected(one) for one in told["anyOf"])
    return f"{told['title'].lower()} such as {told['examples'][0]}" if "examples" in told else str(told["type"])
