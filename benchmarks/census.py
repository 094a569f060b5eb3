"""The census of a whole universe beside other ways to ask the same: 8,000 symbols in six intervals, in the middle of a session.

python benchmarks/census.py [--symbols N] [--sessions N] [--rounds N] [--json FILE]

The ledger is made by SQL: finished sessions of all six intervals, and one that runs: T0 and T1 have their minutes and what is
derived of them up to now, T2 has nothing of today. Every fourth symbol is thin, one in two hundred lacks its newest bars.
"""

from __future__ import annotations

import argparse
import statistics
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import psutil
import sqlalchemy as sa
from batches import add_symbols, fresh_database, timed
from pydantic import SecretStr
from report import report

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.sessions import trading_calendar
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.ingest.freshness import measure_density, record_census, slo_status, take_census
from market_data_pipeline.ingest.grid import Grid
from market_data_pipeline.ingest.overview import missing_now, verdict_cells
from market_data_pipeline.settings import Settings
from market_data_pipeline.wiring import open_pipeline

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Engine

    from market_data_pipeline.ingest.pipeline import Pipeline

RUNNING = date(2026, 11, 20)
NOW = datetime(2026, 11, 20, 20, 0, tzinfo=UTC)
NEXT = datetime(2026, 11, 20, 20, 1, tzinfo=UTC)
FROZEN = datetime(2026, 11, 20, 20, 30, tzinfo=UTC)

TIERS = """
update symbol_universe set tier = case when n <= 0.15 * total then 'T0' when n <= 0.525 * total then 'T1' else 'T2' end
  from (select symbol_id as id, row_number() over (order by symbol_id) as n, count(*) over () as total from symbol_universe) as o
 where o.id = symbol_id
"""
FILL = """
insert into coverage (symbol_id, interval_s, session, opens_at, closes_at, expected, present, confirmed_empty,
                      attempts, failures, last_attempt_at, next_attempt_at, as_of, digest, finality, recheck_at)
select symbol_id, :seconds, :session, :opens_at, :closes_at, :expected,
       case when is_late then overlay(traded placing (:silent)::varbit from greatest(:known - 3, 1)) else traded end,
       case when :is_over and is_thin then ~traded else (:none)::varbit end,
       1, 0, :asked_at, case when :is_over then null else :closes_at + interval '15 minutes' end, :asked_at,
       decode(md5(symbol_id::text), 'hex'), case when :is_over then 2 else 0 end, null
  from (select symbol_id, symbol_id % 4 = 3 and :seconds = 60 and tier <> 'T0' as is_thin,
               symbol_id % 200 = 7 and not :is_over as is_late,
               case when symbol_id % 4 = 3 and :seconds = 60 and tier <> 'T0' then (:half)::varbit
                    else (:full)::varbit end as traded
          from symbol_universe where tier = any(:tiers)) as g
 order by symbol_id
"""
# What somebody writes first: the newest bar of each symbol, asked of the ledger symbol by symbol.
ONE_SYMBOL = """
select length(rtrim(present::text, '0')) from coverage
 where symbol_id = :symbol_id and interval_s = :seconds and session = :session
"""


def fill(engine: Engine, sessions: int) -> None:
    """The ledger: so many finished sessions, and one that runs."""
    calendar = trading_calendar("XNYS")
    last = calendar.sessions(date(2024, 1, 2), RUNNING)[-sessions - 1 :]
    for session in last:
        for interval in Interval:
            grid = Grid.of(calendar, interval, session, session)
            is_over = session != RUNNING
            if not is_over and interval in {Interval.H1, Interval.D1}:
                continue
            length = len(grid.ends_at)
            known = length if is_over else int((grid.ends_at + 90 <= NOW.timestamp()).sum())
            bounds = {"opens_at": _instant(int(grid.opens_at[0])), "closes_at": _instant(int(grid.closes_at[0]))}
            values: dict[str, Any] = {
                **bounds,
                "seconds": interval.seconds,
                "session": session,
                "expected": length,
                "known": known,
                "silent": "0" * min(4, length),
                "none": "0" * length,
                "full": "1" * known + "0" * (length - known),
                "half": ("10" * length)[:known] + "0" * (length - known),
                "is_over": is_over,
                "asked_at": bounds["closes_at"] if is_over else NOW,
                "tiers": ["T0", "T1", "T2"] if is_over else ["T0", "T1"],
            }
            with engine.begin() as connection:
                connection.execute(sa.text(FILL), values)


def pipeline_at(engine: Engine, home: Path, now: datetime) -> Any:  # noqa: ANN401 - a context manager
    """The pipeline of this database, its clock standing at ``now``."""
    url = engine.url.render_as_string(hide_password=False)
    return open_pipeline(Settings(home=home, database_url=SecretStr(url), clock=now.isoformat()))


class Servers:
    """The CPU time that the server's processes have used: what a question costs when others keep the machine busy, too."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def seconds(self) -> float:
        """Of all that serve a client now."""
        with self._engine.connect() as connection:
            pids = connection.execute(sa.text("select pid from pg_stat_activity where backend_type = 'client backend'")).scalars()
            return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


def questions(pipeline: Pipeline, later: Pipeline, frozen: Pipeline, rounds: int) -> Iterator[tuple[str, list[float]]]:
    """Each question and the seconds of its rounds. ``later``, ``frozen``: a minute after, and after half an hour without a bar."""
    yield "densities of the last 20 sessions, once a day", timed(lambda: measure_density(pipeline), 1)
    census, _ = take_census(pipeline), take_census(frozen)
    symbols, stale, lost = (sum(getattr(line, name) for line in census.lines) for name in ("symbols", "stale", "lost"))
    print(f"{symbols:,} symbol-intervals, {stale:,} stale, {lost:,} bars lost")
    yield "take_census: all tiers, six intervals", timed(lambda: take_census(pipeline), rounds)
    yield "take_census: the same, all of T0 and T1 half an hour late", timed(lambda: take_census(frozen), rounds)
    minute = (Interval.M1,)
    yield "take_census: all tiers, 1m alone", timed(lambda: take_census(pipeline, intervals=minute), rounds)
    yield "record_census: the first", timed(lambda: record_census(pipeline, census), 1)
    yield "record_census: nothing new is due", timed(lambda: record_census(pipeline, census), rounds)
    after = take_census(later)
    yield "record_census: a minute later", timed(lambda: record_census(later, after), 1)
    yield "slo_status (what `mdp slo` does), the census included", timed(lambda: slo_status(pipeline), rounds)
    instruments = pipeline.universe.instruments()
    rows = [list(Tier).index(one.tier) for one in instruments]

    def cells() -> None:
        for interval in Interval:
            verdict_cells(instruments, interval, RUNNING, RUNNING, pipeline=pipeline, row_of=rows)

    yield "peer: verdict_cells of the running session, six intervals (counts only)", timed(cells, min(rounds, 3))
    yield "peer: missing_now of six intervals (no deadlines, no silence)", timed(lambda: missing_now(pipeline), min(rounds, 3))

    def one_by_one() -> None:
        with pipeline.engine.connect() as connection:
            for one in instruments:
                connection.execute(sa.text(ONE_SYMBOL), {"symbol_id": one.symbol_id, "seconds": 60, "session": RUNNING}).all()

    yield "peer: plain SQL, one statement a symbol, 1m alone", timed(one_by_one, 1)


def lines(questions: Iterator[tuple[str, list[float]]], servers: Servers) -> Iterator[dict[str, Any]]:
    """A line a question."""
    before = servers.seconds()
    for name, taken in questions:
        now = servers.seconds()
        yield {
            "question": name,
            "ms": statistics.median(taken) * 1000,
            "best ms": min(taken) * 1000,
            "server's CPU ms": (now - before) * 1000 / len(taken),
        }
        before = servers.seconds()


@contextmanager
def a_universe(symbols: int, sessions: int) -> Iterator[tuple[Engine, Path]]:
    """A database with the ledger of so many symbols, vacuumed, and a folder to work in; both are gone afterwards."""
    with fresh_database() as engine, TemporaryDirectory() as home:
        add_symbols(engine, symbols)
        with engine.begin() as connection:
            connection.execute(sa.text(TIERS))
        fill(engine, sessions)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("vacuum analyze"))
        yield engine, Path(home)


def _instant(at: int) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def main() -> None:
    """Measure, print, write."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--symbols", type=int, default=8_000)
    arguments.add_argument("--sessions", type=int, default=30)
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--json", type=Path, help="where to write the numbers (default: benchmarks/results/)")
    chosen = arguments.parse_args()
    with a_universe(chosen.symbols, chosen.sessions) as (engine, home):
        with engine.connect() as connection:
            rows = connection.execute(sa.text("select count(*) from coverage")).scalar_one()
        with (
            pipeline_at(engine, home, NOW) as pipeline,
            pipeline_at(engine, home, NEXT) as later,
            pipeline_at(engine, home, FROZEN) as frozen,
        ):
            table = list(lines(questions(pipeline, later, frozen, chosen.rounds), Servers(engine)))
    notes = [
        f"{chosen.symbols:,} symbols (15 % T0, 37.5 % T1, the rest T2), {rows:,} ledger rows, a Friday at 15:00 in New York",
        f"medians of {chosen.rounds} rounds; Postgres with durable settings; target: the census under 100 ms",
    ]
    report("census", table, notes=notes, json_path=chosen.json)


if __name__ == "__main__":
    main()
