"""The write path beside its ceiling (the server given a prepared binary file) and beside pandas.to_sql, in interleaved rounds.

python benchmarks/write_path.py [--symbols N] [--sessions N] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import sqlalchemy as sa
from batches import NOW, POLICY, add_symbols, changed, fresh_database, minutes, one_by_one
from report import report

from market_data_pipeline.storage import binary
from market_data_pipeline.storage.binary import CopyColumn, CopyReader
from market_data_pipeline.storage.bulk import INTRADAY, CandleWriter, transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.engine import Engine

    from market_data_pipeline.domain.ports import CandleBatch

TO_SQL_ROWS = 5_000
SINGLES = 1_000


def prepared(batch: CandleBatch) -> bytes:
    """The rows of ``batch`` as a finished binary COPY file."""
    columns = batch.columns
    return CopyReader(
        [
            CopyColumn(binary.INT4, batch.symbol_id),
            CopyColumn(binary.INT4, batch.interval.seconds),
            CopyColumn(binary.TIMESTAMPTZ, binary.timestamps(columns.opened_at * 1_000_000)),
            *(CopyColumn(binary.FLOAT8, getattr(columns, name)) for name in ("open", "high", "low", "close", "volume")),
            CopyColumn(binary.FLOAT8, columns.vwap, nullable=True),
            CopyColumn(binary.INT8, columns.trades, nullable=True),
            CopyColumn(binary.INT8, 1),
            CopyColumn(binary.TIMESTAMPTZ, 0),
            CopyColumn(binary.INT2, 1),
            CopyColumn(binary.INT2, 0),
            CopyColumn(binary.INT2, batch.flags),
        ],
        len(columns),
    ).read()


def frame(batch: CandleBatch, rows: int) -> pd.DataFrame:
    """The first rows as a frame for to_sql."""
    columns = batch.columns
    values = {name: getattr(columns, name)[:rows] for name in ("open", "high", "low", "close", "volume")}
    return pd.DataFrame(
        {
            "symbol_id": batch.symbol_id[:rows],
            "interval_s": batch.interval.seconds,
            "opened_at": pd.to_datetime(columns.opened_at[:rows], unit="s", utc=True),
            **values,
            "fetch_id": 1,
            "as_of": NOW,
            "provider": 1,
        }
    )


class Bench:
    """One database and the clock; each timing is kept by name."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.writer = CandleWriter(engine)
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.wal: dict[str, list[float]] = defaultdict(list)

    def empty(self) -> None:
        """No bars, no ledger, and the last case's dirty pages are the last case's."""
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("truncate candles_intraday, candle_revisions, coverage, ingestion_cursor"))
            connection.execute(sa.text("checkpoint"))

    def timed(self, name: str, work: Callable[[], object]) -> None:
        """Run it once, keep its seconds and its megabytes of WAL."""
        with self.engine.connect() as connection:
            before = connection.execute(sa.text("select pg_current_wal_lsn()")).scalar_one()
        began = time.perf_counter()
        work()
        self.seconds[name].append(time.perf_counter() - began)
        with self.engine.connect() as connection:
            written = sa.text("select pg_wal_lsn_diff(pg_current_wal_lsn(), :before)")
            self.wal[name].append(float(connection.execute(written, {"before": before}).scalar_one()) / 1e6)

    def copy(self, body: bytes) -> None:
        """The ceiling."""
        with transaction(self.engine) as cursor:
            cursor.copy_expert(
                f"copy candles_intraday ({', '.join(INTRADAY.columns)}) from stdin (format binary)", io.BytesIO(body), size=1 << 18
            )

    def write(self, batches: Sequence[CandleBatch]) -> None:
        """Ours."""
        for batch in batches:
            self.writer.write(batch, now=NOW, policy=POLICY)

    def rows(self, ceiling: str, names: Sequence[tuple[str, int]]) -> list[dict[str, object]]:
        """The table: medians of the rates, and of the ratios to the ceiling of the same round."""
        table = []
        counts = dict(names)
        for name, count in names:
            ratios = [
                (count / mine) / (counts[ceiling] / theirs)
                for mine, theirs in zip(self.seconds[name], self.seconds[ceiling], strict=True)
            ]
            table.append(
                {
                    "case": name,
                    "rows": count,
                    "k rows/s": count / statistics.median(self.seconds[name]) / 1e3,
                    "x ceiling": statistics.median(ratios),
                    "WAL MB": statistics.median(self.wal[name]),
                }
            )
        return table


def main() -> None:
    """Measure, print, write."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--symbols", type=int, default=20)
    arguments.add_argument("--sessions", type=int, default=25, help="sessions of 390 minutes, of each symbol")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--json", type=Path, help="where to write the numbers (default: benchmarks/results/)")
    chosen = arguments.parse_args()
    with fresh_database() as engine:
        bench = Bench(engine)
        batch = minutes(add_symbols(engine, chosen.symbols), chosen.sessions)
        body, sample = prepared(batch), frame(batch, TO_SQL_ROWS)
        one_percent, everything = changed(batch, 0.01), changed(batch, 1.0)
        singles = one_by_one(minutes(add_symbols(engine, SINGLES), 1))
        grouped = minutes([single.sessions[0].symbol_id for single in singles], 1)
        for _ in range(chosen.rounds):
            bench.empty()
            bench.timed("COPY of a prepared file", lambda: bench.copy(body))
            bench.empty()
            bench.timed("new", lambda: bench.write([batch]))
            bench.timed("identical", lambda: bench.write([batch]))
            bench.timed("1 % changed", lambda: bench.write([one_percent]))
            bench.timed("100 % changed", lambda: bench.write([everything]))
            bench.empty()
            bench.timed("pandas.to_sql", lambda: sample.to_sql("candles_intraday", engine, if_exists="append", index=False))
            bench.empty()
            bench.timed(f"{SINGLES} sessions in one batch", lambda: bench.write([grouped]))
            bench.timed(f"{SINGLES} sessions in one batch, again", lambda: bench.write([grouped]))
            bench.empty()
            bench.timed(f"{SINGLES} sessions one by one", lambda: bench.write(singles))
            bench.timed(f"{SINGLES} sessions one by one, again", lambda: bench.write(singles))
    rows, single_rows = len(batch.columns), len(grouped.columns)
    names = [
        (name, TO_SQL_ROWS if name == "pandas.to_sql" else single_rows if "sessions" in name else rows) for name in bench.seconds
    ]
    table = bench.rows("COPY of a prepared file", names)
    new, to_sql = (next(float(str(row["k rows/s"])) for row in table if row["case"] == case) for case in ("new", "pandas.to_sql"))
    notes = [
        f"medians of {chosen.rounds} interleaved rounds; fsync on; {chosen.symbols} symbols x {chosen.sessions} sessions of 390",
        "the ceiling: copy_expert of a finished binary file of the same rows into the same table, constraints and triggers on",
        f"new rows are stored {new / to_sql:.0f} times as fast as by pandas.to_sql",
        "targets: new >= 0.65 of the ceiling, identical >= 8 times it, new >= 15 times to_sql",
    ]
    report("write_path", table, notes=notes, json_path=chosen.json)


if __name__ == "__main__":
    main()
