"""What a request pays before and after it is sent: leave from the shared budget, a look at the health, a note of the outcome.

python benchmarks/budgets.py [--seconds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batches import fresh_database
from report import report

from market_data_pipeline.domain.capabilities import HISTORY, RateLimit
from market_data_pipeline.domain.health import Outcome
from market_data_pipeline.storage.budgets import PostgresBudget
from market_data_pipeline.storage.database import open_engine
from market_data_pipeline.storage.health import HealthBook

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.synchronize import Barrier

    from sqlalchemy.engine import Engine

# So much that nobody waits for it: what is measured is the asking.
PLENTY = [RateLimit(100_000_000, 1.0), RateLimit(1_000_000_000, 3600.0)]
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


def takes_in(engine: Engine, seconds: float, threads: int) -> int:
    """How many requests ``threads`` of this process get leave for."""
    budget = PostgresBudget(engine, {"finnhub": PLENTY})
    budget.take("finnhub", "key", HISTORY, patience_seconds=1)
    end, counts = time.perf_counter() + seconds, [0] * threads

    def take(place: int) -> None:
        while time.perf_counter() < end:
            budget.take("finnhub", "key", HISTORY, patience_seconds=1)
            counts[place] += 1

    started = [threading.Thread(target=take, args=[place]) for place in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    return sum(counts)


def _process(url: str, seconds: float, threads: int, begin: Barrier, told: Any) -> None:  # noqa: ANN401 - a queue of any context
    engine = open_engine(url)
    begin.wait()
    told.put(takes_in(engine, seconds, threads))
    engine.dispose()


def takes(url: str, seconds: float, processes: int, threads: int) -> float:
    """Leave per second, of all processes together."""
    spawn = multiprocessing.get_context("spawn")
    begin, told = spawn.Barrier(processes), spawn.Queue()
    started = [spawn.Process(target=_process, args=(url, seconds, threads, begin, told)) for _ in range(processes)]
    for process in started:
        process.start()
    total = sum(told.get() for _ in started)
    for process in started:
        process.join()
    return total / seconds


def each(work: Callable[[], object], times: int) -> float:
    """The median of five rounds: seconds for one of ``times``."""
    rounds = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(times):
            work()
        rounds.append((time.perf_counter() - began) / times)
    return statistics.median(rounds)


def budget_rows(engine: Engine, seconds: float) -> list[dict[str, object]]:
    """Leave to send, from free to crowded."""
    free = PostgresBudget(engine, {})
    rows: list[dict[str, object]] = []
    cost = each(lambda: free.take("yahoo", "", HISTORY, patience_seconds=1), 20_000)
    rows.append({"case": "take, no limits", "per second": 1 / cost, "us each": cost * 1e6})
    url = engine.url.render_as_string(hide_password=False)
    for processes, threads in ((1, 1), (1, 8), (1, 32), (4, 8), (8, 8)):
        rate = takes(url, seconds, processes, threads)
        name = f"take, two limits, {processes} x {threads} threads"
        rows.append({"case": name, "per second": rate, "us each": processes * threads / rate * 1e6})
    return rows


def health_rows(engine: Engine) -> list[dict[str, object]]:
    """A look before the request and a note after it."""
    # A clock that stands still: nothing is read or written but where it is measured.
    book = HealthBook(engine, clock=lambda: 0.0)
    good, bad = Outcome("ok", 0.1, expected=390, received=390), Outcome("transient", 0.1, detail="HTTP 503")
    admitted = each(lambda: book.admit("yahoo", "bars_1m", now=NOON), 20_000)
    noted = each(lambda: book.record("yahoo", "bars_1m", good, now=NOON), 200)
    flushes = []
    for second in range(50):
        for _ in range(300):
            book.record("yahoo", "bars_1m", good, now=NOON + timedelta(seconds=second))
        began = time.perf_counter()
        book.flush()
        flushes.append(time.perf_counter() - began)
    failed = each(lambda: book.record("yahoo", "bars_1m", bad, now=NOON), 100)
    costs = {
        "admit": admitted,
        "record a success": noted,
        "flush 300 successes": statistics.median(flushes),
        "record a failure (written at once)": failed,
    }
    return [{"case": name, "per second": 1 / cost, "us each": cost * 1e6} for name, cost in costs.items()]


def main() -> None:
    """Measure, print, write."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=5.0, help="how long each crowd asks")
    arguments.add_argument("--json", type=Path, help="where to write the numbers (default: benchmarks/results/)")
    chosen = arguments.parse_args()
    with fresh_database() as engine:
        rows = budget_rows(engine, chosen.seconds) + health_rows(engine)
    notes = ["us each: how long one caller waits for it; per second: of all callers together"]
    report("budgets", rows, notes=notes, json_path=chosen.json)


if __name__ == "__main__":
    main()
