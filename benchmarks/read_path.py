"""A symbol-year of minutes into a frame: CandleReader beside pandas.read_sql and beside the same bars in Parquet.

python benchmarks/read_path.py [--symbols N] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import sqlalchemy as sa
from batches import NOW, POLICY, add_symbols, changed, fresh_database, minutes
from report import report

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.storage.bulk import CandleWriter
from market_data_pipeline.storage.candles import CandleReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Engine

YEAR = 252
PLAIN = sa.text(
    "select opened_at, symbol_id, open, high, low, close, volume, vwap, trades from candles_intraday"
    " where symbol_id = :symbol_id and interval_s = 60 and opened_at >= '2024-01-01' and opened_at < '2025-01-01'"
    " order by opened_at"
)
PRICES = ["open", "high", "low", "close", "volume"]
FIRST, LAST = 1_704_067_200, 1_735_689_600


def fill(engine: Engine, symbols: int) -> int:
    """A year of minutes for each of ``symbols``, 2 % of one of them revised: its id."""
    writer = CandleWriter(engine)
    ids = add_symbols(engine, symbols)
    for seed, symbol_id in enumerate(ids):
        writer.write(minutes([symbol_id], YEAR, seed=seed), now=NOW, policy=POLICY)
    subject = ids[len(ids) // 2]
    writer.write(changed(minutes([subject], YEAR, seed=len(ids) // 2), 0.02), now=NOW, policy=POLICY)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("vacuum analyze"))
    return subject


def main() -> None:
    """Measure, print, write."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--symbols", type=int, default=5, help="symbols in the table; one of them is read")
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--json", type=Path, help="where to write the numbers (default: benchmarks/results/)")
    chosen = arguments.parse_args()
    seconds: dict[str, list[float]] = defaultdict(list)
    with fresh_database() as engine, tempfile.TemporaryDirectory() as folder:
        subject = fill(engine, chosen.symbols)
        reader = CandleReader(engine)
        with engine.connect() as connection:
            early = connection.execute(sa.text("select min(as_of) from candles_intraday where symbol_id = :s"), {"s": subject})
            first_known = early.scalar_one()

        def plain() -> pd.DataFrame:
            with engine.connect() as connection:
                return pd.read_sql(PLAIN, connection, params={"symbol_id": subject}, index_col="opened_at")

        parquet = Path(folder) / "year.parquet"
        ours = reader.frame([subject], Interval.M1, FIRST, LAST)
        ours.to_parquet(parquet, compression="zstd")
        cases: dict[str, Callable[[], pd.DataFrame]] = {
            "pandas.read_sql (SQLAlchemy, psycopg2)": plain,
            "CandleReader.frame": lambda: reader.frame([subject], Interval.M1, FIRST, LAST),
            "CandleReader.frame, as of the first pull": lambda: reader.frame(
                [subject], Interval.M1, FIRST, LAST, as_of=first_known
            ),
            "Parquet (zstd, pandas and pyarrow)": lambda: pd.read_parquet(parquet),
        }
        theirs = plain()
        pd.testing.assert_frame_equal(theirs[PRICES], ours[PRICES], check_freq=False)
        for _ in range(chosen.rounds):
            for name, work in cases.items():
                began = time.perf_counter()
                work()
                seconds[name].append(time.perf_counter() - began)
    slow = seconds["pandas.read_sql (SQLAlchemy, psycopg2)"]
    table = [
        {
            "case": name,
            "rows": YEAR * 390,
            "ms": statistics.median(taken) * 1e3,
            "x faster than read_sql": statistics.median(s / t for s, t in zip(slow, taken, strict=True)),
        }
        for name, taken in seconds.items()
    ]
    notes = [
        f"medians of {chosen.rounds} interleaved rounds; {chosen.symbols} symbols of {YEAR * 390:,} minutes stored, one read",
        "target: CandleReader.frame at least 4 times as fast as pandas.read_sql",
    ]
    report("read_path", table, notes=notes, json_path=chosen.json)


if __name__ == "__main__":
    main()
