"""Economic series on disk for the simulator: plain rows, and a daily series with more vintages than one request may ask for."""

from __future__ import annotations

import csv
from datetime import date, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# As the publisher writes them: date, value, realtime_start, realtime_end.
Line = tuple[str, str, str, str]
ONGOING = "9999-12-31"


def write_series(data: Path, name: str, lines: Sequence[Line]) -> None:
    """Put a series with vintages into a data directory; without realtime dates it is one that ALFRED does not have."""
    folder = data / "macro"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("date", "value", "realtime_start", "realtime_end"), *lines])


def daily_series(first: date, days: int, *, revised_every: int = 10) -> list[Line]:
    """A value for each day, published the day after; each tenth or so is revised a week after that. The fifth is an absence."""
    lines: list[Line] = []
    for number in range(days):
        day = first + timedelta(days=number)
        published = day + timedelta(days=1)
        value = "." if number == 4 else f"{1 + number / 1000:.3f}"
        if number % revised_every == revised_every - 1:
            revised = published + timedelta(days=7)
            lines.append((day.isoformat(), value, published.isoformat(), (revised - timedelta(days=1)).isoformat()))
            lines.append((day.isoformat(), f"{value}5", revised.isoformat(), ONGOING))
        else:
            lines.append((day.isoformat(), value, published.isoformat(), ONGOING))
    return lines
