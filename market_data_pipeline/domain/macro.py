"""Economic series: their names, the days between which a published value held, and how such stretches are joined. Pure."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import date, timedelta
from itertools import groupby
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from market_data_pipeline.domain.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import datetime

    from market_data_pipeline.domain.ports import Observation

# What FRED takes for "since ever" and "until further notice".
EARLIEST, LATEST = date(1776, 7, 4), date(9999, 12, 31)
ONE_DAY = timedelta(days=1)
# FRED's vintages have days, not instants: days of the bank that publishes them, in St. Louis.
PUBLISHERS_ZONE = ZoneInfo("America/Chicago")

# Series become URL parameters, file names and keys: a closed alphabet keeps all three safe.
_SERIES = re.compile(r"[A-Z0-9][A-Z0-9_.-]{0,63}", re.ASCII)


def valid_series(text: str) -> str:
    """``text`` when it can name an economic series; InvalidInputError names it otherwise."""
    if not _SERIES.fullmatch(text) or ".." in text:
        raise InvalidInputError(f"{text!r} is not a series: expected 1-64 capital letters, digits and _ - . such as CPIAUCSL")
    return text


def publishing_day(instant: datetime) -> date:
    """The publisher's date at ``instant``, which is aware."""
    return instant.astimezone(PUBLISHERS_ZONE).date()


def joined(observations: Iterable[Observation], *, last_days: Collection[date]) -> list[Observation]:
    """The observations, sorted, with those put together again that were cut because one window ended and the next began.

    ``last_days``: the last day of each window. Two rows of one ``observed_on`` that meet there with the same value are one: had the
    value changed on the first day of the next window, it would be another. Values that meet elsewhere were told apart by the source
    and stay apart.
    """
    whole: list[Observation] = []
    for row in sorted(observations, key=lambda o: (o.observed_on, o.realtime_start)):
        before = whole[-1] if whole else None
        if (
            before is not None
            and before.observed_on == row.observed_on
            and before.realtime_end in last_days
            and before.realtime_end + ONE_DAY == row.realtime_start
            and before.value == row.value
        ):
            whole[-1] = replace(before, realtime_end=row.realtime_end)
        else:
            whole.append(row)
    return whole


def by_day(observations: Iterable[Observation]) -> dict[date, list[Observation]]:
    """The observations of each ``observed_on``, sorted by ``realtime_start``."""
    ordered = sorted(observations, key=lambda o: (o.observed_on, o.realtime_start))
    return {day: list(rows) for day, rows in groupby(ordered, key=lambda o: o.observed_on)}


def with_sightings(held: Mapping[date, Sequence[Observation]], seen: Iterable[Observation]) -> dict[date, list[Observation]]:
    """What is to be held of every ``observed_on`` that was seen, given what is ``held`` of it (sorted, disjoint)."""
    return {sighting.observed_on: with_sighting(held.get(sighting.observed_on, ()), sighting) for sighting in seen}


def with_sighting(held: Sequence[Observation], seen: Observation) -> list[Observation]:
    """``held``, the stretches of one ``observed_on``, once its value was seen on the one day ``seen.realtime_start``.

    A value that we saw is taken to hold until we see another, as the source itself writes it (…, 9999-12-31). Seen again, it
    changes nothing; a new value ends the old one the day before. The stretches stay sorted and disjoint, and the days before the
    sighting keep the values they had; only days that nobody spoke of gain one.
    """
    day, value = seen.realtime_start, seen.value
    rows: list[Observation] = []
    is_placed = False
    for row in held:
        if row.realtime_start <= day <= row.realtime_end:
            is_placed = True
            if row.value == value:
                return list(held)
            if row.realtime_start < day:
                rows.append(replace(row, realtime_end=day - ONE_DAY))
            rows.append(replace(row, realtime_start=day, value=value))
        elif row.realtime_start > day and not is_placed:
            is_placed = True
            if row.value == value:
                rows.append(replace(row, realtime_start=day))
            else:
                rows += [replace(seen, realtime_end=row.realtime_start - ONE_DAY), row]
        else:
            rows.append(row)
    if not is_placed:
        rows.append(replace(seen, realtime_end=LATEST))
    return rows
