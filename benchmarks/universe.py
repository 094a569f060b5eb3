"""A universe of 8,000 symbols: loaded, loaded again, tiered; beside pandas.to_sql of the same file, in interleaved rounds.

python benchmarks/universe.py [--symbols N] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from batches import fresh_database
from pydantic import SecretStr
from report import report

from market_data_pipeline.domain.sessions import trading_calendar
from market_data_pipeline.domain.tiers import SESSIONS, TierPolicy
from market_data_pipeline.ingest.tiers import apply_tiers, plan_tiers
from market_data_pipeline.ingest.universe_file import read_universe_file
from market_data_pipeline.settings import Settings
from market_data_pipeline.wiring import open_pipeline

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Engine

    from market_data_pipeline.ingest.pipeline import Pipeline

AS_OF = date(2024, 12, 6)
EXCHANGES = ("XNAS", "XNYS", "ARCX", "XASE", "BATS")
_EMPTY = "truncate symbol_universe, universe_versions, symbol_aliases, symbol_tiers, quotes_confirmed restart identity cascade"
_BARS = """
insert into candles_daily (symbol_id, session_date, open, high, low, close, volume, fetch_id, as_of, provider)
select u.symbol_id, d.day, 10, 100, 9, 10 + u.symbol_id %% 90, 1e9 / u.symbol_id, 1, '2024-12-07', 1
  from symbol_universe u, unnest(%(days)s::date[]) as d (day)
"""


def write_universe(path: Path, symbols: int, *, seed: int = 7) -> None:
    """A synthetic universe: values as skewed as a market's, one in ten without adv_21d, one in fifty an alias at Yahoo."""
    random = np.random.default_rng(seed)
    values, caps = np.sort(random.lognormal(14.0, 2.5, symbols))[::-1], random.lognormal(20.0, 2.0, symbols)
    with path.open("w", newline="", encoding="ascii") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["symbol", "exchange", "tier", "asset_type", "currency", "adv_21d", "mkt_cap", "active_from", "alias_yahoo"]
        )
        for place in range(symbols):
            name = f"{'ABCDEFGHIJKLMNOPQRSTUVWXYZ'[place % 26]}{place:05}"
            adv = "" if place % 10 == 9 else f"{values[place]:.2f}"
            alias = f"{name}-Y" if place % 50 == 0 else ""
            kind = "etf" if place % 4 == 3 else "equity"
            writer.writerow([name, EXCHANGES[place % 5], "T2", kind, "USD", adv, f"{caps[place]:.0f}", "2010-01-04", alias])


class Bench:
    """Timings by name, one a round."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def timed(self, name: str, work: Callable[[], object]) -> None:
        """Run it once and keep its seconds."""
        began = time.perf_counter()
        work()
        self.seconds[name].append(time.perf_counter() - began)


def load(pipeline: Pipeline, path: Path) -> None:
    """What `mdp universe load` does to the database."""
    held = read_universe_file(path)
    pipeline.universe.load(held.entries, version_tag=path.name, source=str(path), source_sha256=held.sha256, loaded_by="benchmark")


def to_sql(engine: Engine, path: Path) -> None:
    """The plain way: no judgement, no version, no ids kept."""
    pd.read_csv(path).to_sql("plain_universe", engine, if_exists="replace", index=False)


def tier(pipeline: Pipeline, *, from_bars: bool) -> None:
    """What `mdp universe tiers` does."""
    apply_tiers(pipeline, plan_tiers(pipeline, TierPolicy(), as_of=AS_OF if from_bars else None), by="benchmark")


def command(environment: dict[str, str], *arguments: str) -> None:
    """A command as a user runs it, interpreter and imports included."""
    done = subprocess.run(
        [sys.executable, "-m", "market_data_pipeline.cli.main", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"mdp {' '.join(arguments)}: {done.stderr}")


def execute(engine: Engine, statement: str, **parameters: object) -> None:
    """One statement, committed."""
    with engine.begin() as connection:
        connection.exec_driver_sql(statement, parameters or None)


def main() -> None:
    """Measure, print, write."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--symbols", type=int, default=8_000)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--json", type=Path, help="where to write the numbers (default: benchmarks/results/)")
    chosen = arguments.parse_args()
    bench = Bench()
    with tempfile.TemporaryDirectory() as folder, fresh_database() as engine:
        path, home = Path(folder) / "universe.csv", Path(folder) / "home"
        write_universe(path, chosen.symbols)
        url = engine.url.render_as_string(hide_password=False)
        settings = Settings(home=home, database_url=SecretStr(url))
        told = {"MDP_HOME": str(home), "MDP_DATABASE_URL": url, "MDP_DAGSTER_URL": "http://127.0.0.1:9"}
        environment = {**{name: value for name, value in os.environ.items() if not name.startswith("MDP_")}, **told}
        sessions = trading_calendar("XNYS").sessions(date(2024, 11, 1), AS_OF)[-SESSIONS:]
        with open_pipeline(settings) as pipeline:
            for _ in range(chosen.rounds):
                execute(engine, _EMPTY)
                execute(engine, "truncate candles_daily")
                bench.timed("pandas.read_csv and to_sql", lambda: to_sql(engine, path))
                bench.timed("load, new", lambda: load(pipeline, path))
                bench.timed("load, the same again", lambda: load(pipeline, path))
                bench.timed("tiers from the file", lambda: tier(pipeline, from_bars=False))
                execute(engine, _BARS, days=sessions)
                execute(engine, "analyze candles_daily")
                bench.timed(f"tiers from {SESSIONS} daily bars each", lambda: tier(pipeline, from_bars=True))
                bench.timed("tiers, the same again", lambda: tier(pipeline, from_bars=True))
                execute(engine, _EMPTY)
                bench.timed("`mdp universe load`, new, with its plan", lambda: command(environment, "universe", "load", str(path)))
                bench.timed("`mdp universe load`, the same again", lambda: command(environment, "universe", "load", str(path)))
                bench.timed("`mdp universe tiers --from-file`", lambda: command(environment, "universe", "tiers", "--from-file"))
    plain = bench.seconds["pandas.read_csv and to_sql"]
    rows = [
        {
            "case": name,
            "seconds": statistics.median(seconds),
            "k symbols/s": chosen.symbols / statistics.median(seconds) / 1e3,
            "x to_sql": statistics.median(theirs / mine for mine, theirs in zip(seconds, plain, strict=True)),
        }
        for name, seconds in bench.seconds.items()
    ]
    notes = [
        f"{chosen.symbols:,} symbols; medians of {chosen.rounds} interleaved rounds; fsync on; x to_sql: how many times as fast",
        "load: parsed, every cell judged, compared with what is stored, versioned, in one transaction; to_sql does none of that",
        "commands include the interpreter and its imports",
        "target: a load in seconds",
    ]
    report("universe", rows, notes=notes, json_path=chosen.json)


if __name__ == "__main__":
    sys.exit(main())
