"""One round of live collection of a whole tier, beside a bare loop that asks the same and appends the answers to a table.

python benchmarks/live.py [--symbols N] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pandas as pd
from batches import fresh_database
from pydantic import SecretStr
from report import report

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.sessions import trading_calendar
from market_data_pipeline.domain.universe import Tier, UniverseEntry
from market_data_pipeline.ingest.collect import Followed, MinutesWork, QuotesWork
from market_data_pipeline.settings import Settings
from market_data_pipeline.simulator.client import running_simulator
from market_data_pipeline.wiring import open_pipeline

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.engine import Engine

    from market_data_pipeline.simulator.client import RunningSimulator

DAY = date(2024, 12, 6)
# An hour after the open of New York.
BEGIN = datetime(2024, 12, 6, 15, 30, tzinfo=UTC)
SYMBOLS_A_REQUEST = 200


def write_data(data: Path, symbols: Sequence[str]) -> None:
    """A session of minutes of each symbol, all on one path with its own level."""
    opens = trading_calendar("XNYS").expected_opens(Interval.M1, DAY, DAY).opened_at.tolist()
    stamps = [datetime.fromtimestamp(at, UTC).isoformat() for at in opens]
    (data / "1m").mkdir(parents=True)
    for place, symbol in enumerate(symbols):
        level = 20.0 + place % 300
        lines = [
            f"{at},{level + n / 100},{level + 1 + n / 100},{level - 1},{level + n / 100},{100 + n}," for n, at in enumerate(stamps)
        ]
        text = "\n".join(["opened_at,open,high,low,close,volume,known_from", *lines])
        (data / "1m" / f"{symbol}.csv").write_text(text + "\n", encoding="ascii")
    (data / "universe.csv").write_text("symbol,exchange\n" + "".join(f"{symbol},XNAS\n" for symbol in symbols), encoding="ascii")


def settings_on(simulator: RunningSimulator, url: str, home: Path) -> Settings:
    """Alpaca alone, nobody limits anybody."""
    told = {name.removeprefix("MDP_").lower(): value for name, value in simulator.environment().items()}
    values: dict[str, Any] = {
        **told,
        "home": home,
        "database_url": SecretStr(url),
        "limits": "alpaca=none",
        "policy_quotes_l1": "alpaca",
        "policy_bars_1m": "alpaca",
    }
    return Settings(**values)


def size_of(engine: Engine, table: str) -> tuple[int, int]:
    """Bytes, indexes included, and rows of a table of ours."""
    with engine.connect() as connection:
        query = f"select pg_total_relation_size('{table}'), count(*) from {table}"  # noqa: S608 - names of ours
        size, rows = connection.exec_driver_sql(query).one()
        return int(size), int(rows)


def grown(engine: Engine, table: str, before: tuple[int, int]) -> float:
    """Bytes for each row that came since ``before``."""
    size, rows = size_of(engine, table)
    return (size - before[0]) / max(rows - before[1], 1)


class BareLoop:
    """One request after the other on one connection, parsed and appended: no judgement, no news, no ledger, no provenance."""

    def __init__(self, engine: Engine, base_url: str, settings: Settings, symbols: Sequence[str]) -> None:
        keys = {"APCA-API-KEY-ID": settings.alpaca_key_id, "APCA-API-SECRET-KEY": settings.alpaca_secret_key}
        headers = {name: key.get_secret_value() for name, key in keys.items() if key is not None}
        self._engine, self._http = engine, httpx.Client(base_url=base_url, headers=headers, timeout=60.0, trust_env=False)
        self._groups = [",".join(symbols[at : at + SYMBOLS_A_REQUEST]) for at in range(0, len(symbols), SYMBOLS_A_REQUEST)]

    def _get(self, path: str, **parameters: str) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads(self._http.get(path, params=parameters).raise_for_status().content)
        return found

    def quotes(self) -> None:
        """The newest quote of each symbol."""
        rows = [
            {"symbol": symbol, "quoted_at": quote["t"], "bid": quote["bp"], "ask": quote["ap"]}
            for group in self._groups
            for symbol, quote in self._get("/v2/stocks/quotes/latest", symbols=group, feed="sip")["quotes"].items()
        ]
        pd.DataFrame(rows).to_sql("plain_quotes", self._engine, if_exists="append", index=False, method="multi")

    def minutes(self, at: datetime) -> None:
        """The last minute of each symbol."""
        window = {
            "start": f"{at - timedelta(minutes=3):%Y-%m-%dT%H:%M:%SZ}",
            "end": f"{at - timedelta(minutes=2):%Y-%m-%dT%H:%M:%SZ}",
        }
        given = {"timeframe": "1Min", "limit": "10000", "feed": "sip", "adjustment": "split", **window}
        rows = [
            {"symbol": symbol, **bar}
            for group in self._groups
            for symbol, bars in self._get("/v2/stocks/bars", symbols=group, **given)["bars"].items()
            for bar in bars
        ]
        pd.DataFrame(rows).to_sql("plain_minutes", self._engine, if_exists="append", index=False, method="multi")


def main() -> None:
    """Measure, print, write."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--symbols", type=int, default=1_200)
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--json", type=Path, help="where to write the numbers (default: benchmarks/results/)")
    chosen = arguments.parse_args()
    symbols = [f"S{number:05}" for number in range(chosen.symbols)]
    seconds: dict[str, list[float]] = defaultdict(list)
    new: dict[str, list[int]] = defaultdict(list)

    def timed(name: str, work: Callable[[], Any]) -> None:
        began = time.perf_counter()
        tally = work()
        seconds[name].append(time.perf_counter() - began)
        new[name].append(chosen.symbols if tally is None else tally.new)

    with tempfile.TemporaryDirectory() as folder, fresh_database() as engine:
        data = Path(folder) / "data"
        write_data(data, symbols)
        with running_simulator(data=data, now=BEGIN, limits="alpaca=none") as simulator:
            told = settings_on(simulator, engine.url.render_as_string(hide_password=False), Path(folder) / "home")
            with open_pipeline(told) as pipeline:
                entries = [UniverseEntry(symbol, "XNAS", Tier.T0) for symbol in symbols]
                pipeline.universe.load(entries, version_tag="b", source="b", source_sha256="b", loaded_by="benchmark")
                followed = Followed(pipeline, time.monotonic)
                quotes = QuotesWork(pipeline, followed, Tier.T0, every=5.0)
                minutes = MinutesWork(pipeline, followed, Tier.T0, every=60.0)
                bare = BareLoop(engine, simulator.urls["alpaca"], told, symbols)
                before = {table: size_of(engine, table) for table in ("quotes_l1", "fetches")}
                # The hour so far, and what every first time costs.
                timed("minutes: an hour of the session, at once", minutes)
                quotes()
                for number in range(1, chosen.rounds + 1):
                    now = BEGIN + timedelta(minutes=number)
                    simulator.set_now(now)
                    timed("bare loop: quotes", bare.quotes)
                    timed("quotes, all of them news", quotes)
                    timed("quotes, the same again", quotes)
                    timed("bare loop: one minute", lambda now=now: bare.minutes(now))
                    timed("minutes, one new", minutes)
                    timed("minutes, nothing due", minutes)
                bytes_a_quote, bytes_a_fetch = (grown(engine, table, before[table]) for table in ("quotes_l1", "fetches"))
    cadence = {"quotes": 5.0, "minutes": 60.0}
    rows = [
        {
            "case": name,
            "symbols": chosen.symbols,
            "new": statistics.median(new[name]),
            "seconds": statistics.median(taken),
            "slowest": max(taken),
            "of its cadence": next(
                (statistics.median(taken) / every for what, every in cadence.items() if name.startswith(what)), None
            ),
        }
        for name, taken in seconds.items()
    ]
    notes = [
        f"medians of {chosen.rounds} interleaved rounds; the simulator, Postgres (fsync on) and this process share the machine",
        "the bare loop asks for the same over one connection and appends it with to_sql: nothing judged, compared or recorded",
        f"{bytes_a_quote:.0f} bytes a stored change of a quote, {bytes_a_fetch:.0f} bytes a recorded request, indexes included",
        "target: a round of T0 at its cap within half of its cadence: quotes 5 s, minutes 60 s",
    ]
    report("live", rows, notes=notes, json_path=chosen.json)


if __name__ == "__main__":
    sys.exit(main())
