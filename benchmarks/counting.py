"""What it costs that writes count themselves: the same work with the triggers of sql/0011_metrics.sql and without, in turn.

python benchmarks/counting.py [--rounds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from batches import NOW, POLICY, add_symbols, changed, fresh_database, minutes, one_by_one
from jobs import AT_ONCE, IN_ONE_COMMIT, payload
from jobs import POLICY as QUEUE
from report import report

from market_data_pipeline.domain.jobs import as_new_job, parse_job
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.storage.bulk import CandleWriter
from market_data_pipeline.storage.jobs import JobQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import Engine

SYMBOLS, SESSIONS, SINGLES, JOBS, SINGLE_JOBS = 20, 25, 300, 20_000, 500
TRIGGERS = {"fetches": "count_fetches", "refused_bars": "count_refused_bars"}
# Called by the statements of the queue: without its body it costs what a call costs.
NOT_COUNTING = """
create or replace function count_ended_jobs(tiers text[], kinds text[], hints text[], states text[]) returns void
language plpgsql as $$ begin end $$"""
SQL = Path(__file__).parents[1] / "sql"


def function(file: str, name: str) -> str:
    """The text that makes a function, from a migration."""
    text = (SQL / file).read_text(encoding="utf-8")
    found = re.search(rf"create (?:or replace )?(function {name}\(.*?\nend \$\$;)", text, re.DOTALL)
    if found is None:
        raise LookupError(f"{file} makes no {name}")
    return f"create or replace {found[1]}"


def switch(engine: Engine, *, on: bool) -> None:
    """Counting on or off, for everybody."""
    with engine.begin() as connection:
        for table, name in TRIGGERS.items():
            connection.execute(sa.text(f"alter table {table} {'enable' if on else 'disable'} trigger {name}"))
        counting = function("0011_metrics.sql", "count_ended_jobs") if on else NOT_COUNTING
        connection.exec_driver_sql(counting, execution_options={"no_parameters": True})
        file = "0011_metrics.sql" if on else "0001_core.sql"
        connection.exec_driver_sql(function(file, "keep_intraday_revision"), execution_options={"no_parameters": True})
        # Nor is there a wait for the disk in what is compared.
        name = connection.execute(sa.text("select quote_ident(current_database())")).scalar_one()
        connection.exec_driver_sql(f"alter database {name} set synchronous_commit = off")
    engine.dispose()  # connections that know neither


class Work:
    """What is timed; each step by name, with what it is counted in."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.writer, self.queue = CandleWriter(engine), JobQueue(engine, replace(QUEUE, lease_seconds=3600.0))
        self.batch = minutes(add_symbols(engine, SYMBOLS), SESSIONS)
        self.everything = changed(self.batch, 1.0)
        self.singles = one_by_one(minutes(add_symbols(engine, SINGLES), 1))
        self.jobs = [as_new_job(parse_job(payload(number)), source="benchmark") for number in range(JOBS)]
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """One step."""
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began

    def once(self) -> dict[str, float]:
        """The seconds of every step, from an empty database on."""
        self.seconds = {}
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            emptied = "candles_intraday, candle_revisions, coverage, ingestion_cursor, jobs"
            connection.execute(sa.text(f"truncate {emptied}"))
            connection.execute(sa.text("update job_dispatch set queued = 0"))
            connection.execute(sa.text("vacuum job_dispatch"))
            connection.execute(sa.text("checkpoint"))
        self.bars()
        self.queued()
        return self.seconds

    def bars(self) -> None:
        """Batches of candles."""

        def write(*batches: object) -> Callable[[], None]:
            return lambda: [self.writer.write(one, now=NOW, policy=POLICY) for one in batches]  # type: ignore[arg-type, return-value]

        with self.timed(f"write {len(self.batch.columns):,} new bars"):
            write(self.batch)()
        with self.timed("write them again"):
            write(self.batch)()
        with self.timed("write them, each another volume"):
            write(self.everything)()
        with self.timed(f"write {SINGLES} sessions, one a batch"):
            write(*self.singles)()

    def queued(self) -> None:
        """Jobs from their entry to their end."""
        with self.timed(f"enqueue {JOBS - SINGLE_JOBS:,} jobs, 1,000 a statement"):
            self.queue.submit(self.jobs[SINGLE_JOBS:])
        with self.timed(f"enqueue {SINGLE_JOBS} jobs, one a call"):
            for job in self.jobs[:SINGLE_JOBS]:
                self.queue.submit([job])
        leases = []
        with self.timed(f"lease {JOBS // 4:,}, {AT_ONCE} a call"):
            while len(leases) < JOBS // 4:
                leases += self.queue.lease("one", tier=Tier.T0, limit=AT_ONCE)
        with self.timed(f"heartbeat {len(leases):,}, {AT_ONCE} a call"):
            for start in range(0, len(leases), AT_ONCE):
                self.queue.heartbeat(leases[start : start + AT_ONCE])
        with self.timed(f"complete {SINGLE_JOBS}, one a commit"):
            for lease in leases[:SINGLE_JOBS]:
                self.queue.complete(lease)
        with self.timed(f"complete {len(leases) - SINGLE_JOBS:,}, {IN_ONE_COMMIT} a commit"):
            for start in range(SINGLE_JOBS, len(leases), IN_ONE_COMMIT):
                self.queue.complete_all(leases[start : start + IN_ONE_COMMIT])


def main() -> None:
    """Measure, print, write."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--json", type=Path, help="where to write the numbers (default: benchmarks/results/)")
    chosen = arguments.parse_args()
    seconds: dict[tuple[str, bool], list[float]] = defaultdict(list)
    with fresh_database() as engine:
        work = Work(engine)
        for turn in range(2 * chosen.rounds + 2):
            # on, off, off, on: what slows down over time slows both
            counts = turn % 4 in {0, 3}
            switch(engine, on=counts)
            for name, took in work.once().items():
                if turn >= 2:  # the first of each warms up
                    seconds[name, counts].append(took)
    table = [
        {
            "work": name,
            "counting s": statistics.median(seconds[name, True]),
            "not counting s": statistics.median(seconds[name, False]),
            "% more": 100 * (statistics.median(seconds[name, True]) / statistics.median(seconds[name, False]) - 1),
            "% more, best of each": 100 * (min(seconds[name, True]) / min(seconds[name, False]) - 1),
        }
        for name, counts in seconds
        if counts
    ]
    notes = [
        f"medians of {chosen.rounds} rounds in turn on a server that waits for no disk: that would only hide what counting costs",
        "target: 5 % at most",
    ]
    report("counting", table, notes=notes, json_path=chosen.json)


if __name__ == "__main__":
    main()
