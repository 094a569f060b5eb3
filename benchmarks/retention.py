"""A day of quotes and a night's provenance pruned; beside a plain DELETE by time of the same rows, in the same run.

python benchmarks/retention.py [--symbols N] [--days N] [--quotes N] [--json FILE]

The plain DELETE is the ceiling: it deletes the last quote before the edge as well, and so loses what held at that time.
"""

from __future__ import annotations

import argparse
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from batches import fresh_database
from report import report

from market_data_pipeline.domain.retention import RetentionPolicy
from market_data_pipeline.domain.universe import Tier, UniverseEntry
from market_data_pipeline.storage.retention import Retention
from market_data_pipeline.storage.universe import UniverseStore

if TYPE_CHECKING:
    from sqlalchemy import Engine

NOW = datetime(2026, 11, 20, 4, tzinfo=UTC)
POLICY = RetentionPolicy()
_FETCHES = """
insert into fetches (provider, symbol_id, interval_s, request, started_at, latency_seconds, outcome, rows, capability, recorded_at)
select 'yahoo', null, null, 'GET /quotes', at, 0.1, 'ok', 200, 'quotes_l1', at
  from generate_series(%(first)s::timestamptz, %(last)s, %(step)s) as k (at)"""
_QUOTES = """
insert into quotes_l1 (symbol_id, provider, known_from, bid, ask, delay_seconds, fetch_id)
select u.symbol_id, 'yahoo', %(first)s::timestamptz + n * %(step)s::interval, 100, 101, 0, 1 + n
  from symbol_universe u, generate_series(0, %(most)s::int4) as k (n)"""
_PLAIN = "delete from quotes_l1 where known_from < %(before)s"


def fill(engine: Engine, *, symbols: int, days: int, quotes: int) -> None:
    """So many symbols with so many quotes a day, half of them older than they are kept."""
    entries = [UniverseEntry(f"S{number:05}", "XNAS", Tier.T0) for number in range(symbols)]
    UniverseStore(engine).load(entries, version_tag="v", source="b", source_sha256="0" * 64, loaded_by="b")
    first = NOW - POLICY.quotes - timedelta(days=days)
    step = timedelta(days=1) / quotes
    given = {"first": first, "step": step, "last": first + 2 * days * quotes * step, "most": 2 * days * quotes - 1}
    with engine.begin() as connection:
        connection.exec_driver_sql(_FETCHES, given)
        connection.exec_driver_sql(_QUOTES, given)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("vacuum analyze quotes_l1")


def main() -> None:
    """Print and keep the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--symbols", type=int, default=400)
    arguments.add_argument("--days", type=int, default=1)
    arguments.add_argument("--quotes", type=int, default=2_000, help="of a symbol a day")
    arguments.add_argument("--json", type=Path)
    options = arguments.parse_args()
    rows = []
    for name in ("plain delete by time", "retention"):
        with fresh_database() as engine:
            fill(engine, symbols=options.symbols, days=options.days, quotes=options.quotes)
            began = time.perf_counter()
            if name == "retention":
                (pruned,) = Retention(engine).prune(POLICY, now=NOW, only=["quotes_l1"])
                deleted = pruned.rows
            else:
                with engine.begin() as connection:
                    deleted = connection.exec_driver_sql(_PLAIN, {"before": NOW - POLICY.quotes}).rowcount
            seconds = time.perf_counter() - began
        rows.append({"way": name, "rows": deleted, "seconds": round(seconds, 2), "rows a second": round(deleted / seconds)})
    notes = [
        f"{options.symbols} symbols, {options.quotes} quotes each a day, {2 * options.days} days of which half are old; fsync on",
        "target: a night's quotes at full caps (4,200 symbols, 20 million rows) in less than ten minutes",
    ]
    report("retention", rows, notes=notes, json_path=options.json)


if __name__ == "__main__":
    main()
