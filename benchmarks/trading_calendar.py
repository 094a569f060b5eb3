"""Calendar lookups: ours over arrays and one by one, beside exchange_calendars one by one, in one process.

python benchmarks/trading_calendar.py [--json FILE]. (Not named calendar.py: a script's folder leads sys.path, and the standard
library's `calendar` would be this file for everything imported from here.)
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from report import report

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.sessions import date_of, trading_calendar

if TYPE_CHECKING:
    from collections.abc import Callable

REFERENCE_NANOSECONDS = 50_000  # what the reference service claims for one lookup
INSTANTS = 1_000_000
LAST = date(2025, 12, 31)
CALENDARS = {"XNYS": date(2005, 1, 3), "XHKG": date(2005, 1, 3), "24/7": date(2022, 1, 1)}


def nanoseconds(work: Callable[[], object], *, lookups: int, repeats: int = 7) -> float:
    """Of the median repeat, the time of one lookup. The first call is not counted: it builds what is cached."""
    work()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter_ns()
        work()
        taken.append((time.perf_counter_ns() - began) / lookups)
    return statistics.median(taken)


def rows(name: str, first: date) -> list[dict[str, object]]:
    """One row a way of looking up, for the calendar ``name``."""
    calendar = trading_calendar(name)
    random = np.random.default_rng(7)
    bounds = calendar.bounds(first, LAST)
    anywhere = random.integers(int(bounds.opens_at[0]), int(bounds.closes_at[-1]), INSTANTS)
    grid = calendar.expected_opens(Interval.M1, first, LAST).opened_at
    in_order, shuffled = grid[:INSTANTS], random.permutation(grid)[:INSTANTS]
    days = [date_of(int(day)) for day in random.choice(bounds.session, 500)]
    few = anywhere[:2000]

    def over(what: str, how: str, work: Callable[[], object], lookups: int) -> dict[str, object]:
        cost = nanoseconds(work, lookups=lookups)
        return {
            "calendar": name,
            "lookup": what,
            "how": how,
            "lookups": lookups,
            "ns each": cost,
            "below 50 µs": REFERENCE_NANOSECONDS / cost,
        }

    def each(what: str, work: Callable[[int], object]) -> dict[str, object]:
        return over(what, "one a call", lambda: [work(at) for at in few.tolist()], len(few))

    ours = [
        over("align 1m", "array, random", lambda: calendar.align(anywhere, Interval.M1), INSTANTS),
        over("align 1m", "array, in order", lambda: calendar.align(in_order, Interval.M1), len(in_order)),
        over("is_open", "array, random", lambda: calendar.is_open(anywhere), INSTANTS),
        over("is_open", "array, in order", lambda: calendar.is_open(in_order), len(in_order)),
        over("locate 1m", "array, random", lambda: calendar.locate(shuffled, Interval.M1), len(shuffled)),
        over("locate 1m", "array, in order", lambda: calendar.locate(in_order, Interval.M1), len(in_order)),
        over(
            "expected_opens 1m",
            f"array, {LAST.year - first.year + 1} years",
            lambda: calendar.expected_opens(Interval.M1, first, LAST),
            len(grid),
        ),
        each("align 1m", lambda at: calendar.align(at, Interval.M1)),
        each("is_open", calendar.is_open),
        each("locate 1m", lambda at: calendar.locate(at, Interval.M1)),
        over(
            "expected_opens 1m", "a session a call", lambda: [calendar.expected_opens(Interval.M1, d, d) for d in days], len(days)
        ),
    ]
    return ours + library_rows(name, first, few, days)


def library_rows(name: str, first: date, instants: np.ndarray, days: list[date]) -> list[dict[str, object]]:
    """The same questions asked of exchange_calendars. Making the Timestamps it takes is not counted."""
    import exchange_calendars  # noqa: PLC0415 - beside the filter below

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = exchange_calendars.get_calendar(name, start=first, end=LAST)
    minutes = [pd.Timestamp(at // 60 * 60, unit="s", tz="UTC") for at in instants.tolist()]
    open_minutes = [minute for minute in minutes if theirs.is_open_on_minute(minute)]
    labels = [pd.Timestamp(day) for day in days]

    def over(what: str, how: str, work: Callable[[], object], lookups: int) -> dict[str, object]:
        cost = nanoseconds(work, lookups=lookups, repeats=5)
        return {
            "calendar": name,
            "lookup": f"exchange_calendars.{what}",
            "how": how,
            "lookups": lookups,
            "ns each": cost,
            "below 50 µs": REFERENCE_NANOSECONDS / cost,
        }

    return [
        over("is_open_on_minute", "one a call", lambda: [theirs.is_open_on_minute(m) for m in minutes], len(minutes)),
        over("minute_to_session", "one a call", lambda: [theirs.minute_to_session(m) for m in open_minutes], len(open_minutes)),
        over("session_minutes", "a session a call", lambda: [theirs.session_minutes(d) for d in labels], len(labels)),
    ]


def main() -> None:
    """Measure, print, write."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--json", type=Path, help="where to write the numbers (default: benchmarks/results/)")
    json_path = arguments.parse_args().json
    began = time.perf_counter()
    trading_calendar("XNYS")
    first = time.perf_counter() - began
    began = time.perf_counter()
    trading_calendar("XHKG")
    second = time.perf_counter() - began
    began = time.perf_counter()
    for _ in range(1000):
        trading_calendar("XNYS")
    again = (time.perf_counter() - began) * 1e6 / 1000
    notes = [
        f"first calendar {first:.2f} s (pandas imported before), the next {second:.2f} s, again {again:.1f} µs",
        "target: at most 1,000 ns each over an array, 50 times below the 50 µs that the reference service claims for a lookup",
    ]
    measured = [row for name, first in CALENDARS.items() for row in rows(name, first)]
    report("trading_calendar", measured, notes=notes, json_path=json_path)


if __name__ == "__main__":
    main()
