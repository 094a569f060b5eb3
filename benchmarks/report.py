"""How every benchmark reports: a table on the terminal and the same numbers as JSON. What to measure is each script's own."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RESULTS = Path(__file__).parent / "results"


def report(name: str, rows: Sequence[Mapping[str, Any]], *, notes: Sequence[str] = (), json_path: Path | None = None) -> None:
    """Print ``rows`` as a table with ``notes`` below it and write both to ``json_path`` (default: results/<name>.json here).

    The columns are the keys in order of first appearance; a row may lack some. Numbers keep their full precision in the JSON.
    """
    print(f"\n{name}\n{table(rows)}")
    for note in notes:
        print(f"  {note}")
    path = json_path or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"name": name, **_machine(), "rows": [dict(row) for row in rows], "notes": list(notes)}, indent=1, default=str)
        + "\n"
    )
    print(f"  written to {path}")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as aligned text: numbers to the right, three significant digits, thousands separated."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [columns, *([_text(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    numeric = [all(isinstance(row.get(column, 0), int | float) for row in rows) for column in columns]
    justify = [str.rjust if right else str.ljust for right in numeric]
    lines = ["  ".join(place(cell, width) for place, cell, width in zip(justify, line, widths, strict=True)) for line in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def _machine() -> dict[str, object]:
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "load_1m": os.getloadavg()[0],
    }
