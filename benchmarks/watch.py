"""One look of the watch at a whole universe, by what it consists of: the ledger of benchmarks/census.py, a minute apart.

python benchmarks/watch.py [--symbols N] [--sessions N] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from census import NOW, a_universe, pipeline_at
from report import report

from market_data_pipeline.ingest.freshness import record_census, slo_status, take_census
from market_data_pipeline.ingest.watch import watch
from market_data_pipeline.simulator.stage import MovedClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from market_data_pipeline.ingest.pipeline import Pipeline


def looks(pipeline: Pipeline, clock: MovedClock, rounds: int) -> Iterator[tuple[str, list[float]]]:
    """Each part and the seconds of its rounds; the clock goes on by half a minute before each."""

    def timed(work: Callable[[], object], times: int = rounds) -> list[float]:
        taken = []
        for _ in range(times):
            clock.instant += timedelta(seconds=30)
            began = time.perf_counter()
            work()
            taken.append(time.perf_counter() - began)
        return taken

    def look() -> None:
        said = watch(pipeline, by="benchmark")
        assert said.skipped is None, said.skipped  # noqa: S101 - a benchmark of nothing would be quick

    yield "watch: the first (densities of 20 sessions, once a day)", timed(look, 1)
    yield "watch: one look, every 30 s", timed(look)
    yield "of it take_census", timed(lambda: take_census(pipeline))
    census = take_census(pipeline)
    yield "of it record_census", timed(lambda: record_census(pipeline, replace(census, at=clock.instant)))
    yield "of it slo_status", timed(lambda: slo_status(pipeline, census=census))
    watch(pipeline, by="benchmark", force=True)

    def skip() -> None:
        clock.instant -= timedelta(seconds=30)
        said = watch(pipeline, by="benchmark")
        assert said.skipped is not None  # noqa: S101 - as above

    yield "watch: somebody looked a moment ago", timed(skip)


def main() -> None:
    """Measure, print, write."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--symbols", type=int, default=8_000)
    arguments.add_argument("--sessions", type=int, default=20)
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--json", type=Path, help="where to write the numbers (default: benchmarks/results/)")
    chosen = arguments.parse_args()
    with a_universe(chosen.symbols, chosen.sessions) as (engine, home):
        clock = MovedClock(NOW)
        with pipeline_at(engine, home, NOW) as opened:
            pipeline = replace(opened, clock=clock)
            table = [
                {"part": name, "ms": statistics.median(taken) * 1000, "worst ms": max(taken) * 1000}
                for name, taken in looks(pipeline, clock, chosen.rounds)
            ]
    notes = [
        f"{chosen.symbols:,} symbols in six intervals, a Friday at 15:00 in New York, one in two hundred late",
        f"medians of {chosen.rounds} rounds; Postgres with durable settings",
    ]
    report("watch", table, notes=notes, json_path=chosen.json)


if __name__ == "__main__":
    main()
