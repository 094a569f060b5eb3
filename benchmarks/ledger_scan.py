"""The whole ledger, asked and updated: 8,000 symbols x 250 sessions of minutes, beside the SQL one would write on the bars.

python benchmarks/ledger_scan.py [--symbols N] [--sessions N] [--rounds N] [--json FILE]

The ledger is made by SQL (2 million rows of it, for 780 million expected bars): every fourth symbol trades in every second minute
only, one symbol-session in a thousand lacks three bars, and the last session is still running. The bars themselves would fill the
disk; the plain SQL has those of a slice, and its time is scaled by the bar: said so wherever it is.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import sqlalchemy as sa
from batches import NOW, POLICY, SLOTS, add_symbols, fresh_database, minutes, timed
from report import report

from market_data_pipeline.domain.candles import CandleColumns, Interval
from market_data_pipeline.domain.coverage import LedgerRow
from market_data_pipeline.domain.ports import AnsweredSession, CandleBatch, Fetch
from market_data_pipeline.storage.bulk import CandleWriter, lock_series, read_ledger, transaction, write_ledger
from market_data_pipeline.storage.ledger import Ledger
from market_data_pipeline.storage.overview import AskedSession, AskedSymbol, EdgeSession, Overview

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy.engine import Engine

FIRST = date(2023, 1, 2)
TEN_YEARS = 2_520
SLICE_SYMBOLS, SLICE_SESSIONS = 100, 20

FILL = """
insert into coverage (symbol_id, interval_s, session, opens_at, closes_at, expected, present, confirmed_empty,
                      attempts, failures, last_attempt_at, next_attempt_at, as_of, digest, finality, recheck_at)
select symbol_id, 60, session, opens_at, closes_at, 390,
       case when has_hole then overlay(traded placing B'000' from 100) else traded end,
       case when is_thin then ~traded else silent end,
       1, 0, closes_at, case when has_hole then closes_at + interval '15 minutes' end, closes_at,
       decode(md5(symbol_id::text || session), 'hex'), 2, null
  from (select symbol_id, day::date as session,
               day + interval '14 hours 30 minutes' as opens_at, day + interval '21 hours' as closes_at,
               symbol_id % 4 = 3 as is_thin, (hashint8(symbol_id * 100000::int8 + n) & 1023) = 0 as has_hole,
               case when symbol_id % 4 = 3 then (:half)::varbit else (:full)::varbit end as traded, (:none)::varbit as silent
          from symbol_universe cross join unnest(cast(:days as timestamptz[])) with ordinality as d (day, n)) as g
 order by session, symbol_id
"""
TIERS = "update symbol_universe set tier = case when symbol_id <= 1200 then 'T0' when symbol_id <= 4200 then 'T1' else 'T2' end"
SIZES = """
select pg_relation_size('coverage'), pg_indexes_size('coverage'),
       coalesce((select pg_relation_size(reltoastrelid) from pg_class where relname = 'coverage'), 0), count(*),
       sum((absent > 0)::int)
  from coverage
"""
# What somebody without a ledger writes: the grid by generate_series, and the bars that it does not find.
LEFT_JOIN = """
select count(*)
  from symbol_universe u
 cross join unnest(cast(:days as timestamptz[])) as d (day)
 cross join generate_series(d.day + interval '14 hours 30 minutes', d.day + interval '20 hours 59 minutes', interval '1 minute')
    as g (minute)
  left join candles_intraday b on b.symbol_id = u.symbol_id and b.interval_s = 60 and b.opened_at = g.minute
 where u.symbol_id <= :symbols and b.symbol_id is null
"""
LOSE = "delete from candles_intraday where hashint8(extract(epoch from opened_at)::int8 + symbol_id) % 1000 = 0"
BY_DAY = """
select symbol_id, (opened_at at time zone 'America/New_York')::date as session, count(*)
  from candles_intraday
 where interval_s = 60 and opened_at >= cast(:first as timestamptz)
   and opened_at < cast(:last as timestamptz) + interval '1 day'
 group by 1, 2 having count(*) < 390
"""


def trading_days(count: int) -> list[date]:
    """So many weekdays from FIRST on: the calendar's holidays are beside the point here."""
    days: list[date] = []
    day = FIRST
    while len(days) < count:
        if day.isoweekday() <= 5:
            days.append(day)
        day += timedelta(days=1)
    return days


def opens_at(day: date) -> int:
    """Half past two, UTC, as epoch seconds."""
    return int(datetime(day.year, day.month, day.day, 14, 30, tzinfo=UTC).timestamp())


def midnights(days: Sequence[date]) -> list[datetime]:
    """The days, as the statements take them."""
    return [datetime(day.year, day.month, day.day, tzinfo=UTC) for day in days]


def fill_ledger(engine: Engine, days: Sequence[date]) -> float:
    """Make the rows of all symbols for these days; the seconds it took."""
    began = time.perf_counter()
    with engine.begin() as connection:
        masks = {"full": "1" * SLOTS, "half": "10" * (SLOTS // 2), "none": "0" * SLOTS}
        connection.execute(sa.text(FILL), {**masks, "days": midnights(days)})
    return time.perf_counter() - began


def one_more_minute(ids: Sequence[int], day: date, minute: int) -> list[LedgerRow]:
    """The running session's rows of all symbols once the first ``minute`` bars are in."""
    opened = opens_at(day)
    now = datetime.fromtimestamp(opened + minute * 60, UTC)
    close = datetime.fromtimestamp(opened + SLOTS * 60 + 900, UTC)
    present, nothing = np.arange(SLOTS) < minute, np.zeros(SLOTS, bool)
    return [
        LedgerRow(
            symbol_id, Interval.M1, day, opened, opened + SLOTS * 60, present.copy(), nothing,
            last_attempt_at=now, next_attempt_at=close, known_at=now, recheck_at=close,
        )
        for symbol_id in ids
    ]  # fmt: skip


def update(engine: Engine, rows: Sequence[LedgerRow]) -> None:
    """What every writer does around its bars: locks, the rows as they are, the rows as they become; one transaction."""
    ids = [row.symbol_id for row in rows]
    with transaction(engine) as cursor:
        lock_series(cursor, ids, 60)
        read_ledger(cursor, Interval.M1, [(row.symbol_id, row.session) for row in rows])
        write_ledger(cursor, Interval.M1, rows)


def a_poll(ids: Sequence[int], day: date, minute: int) -> CandleBatch:
    """An answer for every symbol with the bar of ``minute``, and nothing else."""
    opened, count = opens_at(day), len(ids)
    stamps = np.full(count, opened + minute * 60, np.int64)
    price, slots = np.full(count, 10.0), np.arange(SLOTS)
    return CandleBatch(
        interval=Interval.M1,
        symbol_id=np.array(ids, np.int32),
        columns=CandleColumns.of(stamps, price, price, price, price, np.full(count, 100.0)),
        session_index=np.arange(count, dtype=np.int32),
        fetch_index=np.arange(count, dtype=np.int32),
        flags=np.zeros(count, np.int16),
        sessions=[
            AnsweredSession(symbol_id, day, opened, opened + SLOTS * 60, slots == minute, np.zeros(SLOTS, bool), slots <= minute)
            for symbol_id in ids
        ],
        fetches=[
            Fetch("benchmark", f"S{symbol_id}", Interval.M1, "/benchmark", NOW, 0.1, "ok", status=200, rows=1) for symbol_id in ids
        ],
    )


def ours(engine: Engine, days: Sequence[date], rounds: int) -> Iterator[tuple[str, int, list[float]]]:
    """Each question or update: its name, the bars that the ledger has a verdict for, and the seconds of each round."""
    with engine.connect() as connection:
        ids = list(connection.execute(sa.text("select symbol_id from symbol_universe order by 1")).scalars())
    running = days[-1]
    expected = len(ids) * len(days) * SLOTS
    minute = iter(range(60, 390))
    yield (
        f"one session of {len(ids):,} symbols: the ledger's rows, one transaction",
        len(ids) * SLOTS,
        timed(lambda: update(engine, one_more_minute(ids, running, next(minute))), rounds),
    )
    later = iter(range(380, 390))
    writer = CandleWriter(engine)
    yield (
        f"the same with a new bar each, its provenance and the rules ({len(ids):,} answers)",
        len(ids) * SLOTS,
        timed(lambda: writer.write(a_poll(ids, running, next(later)), now=NOW, policy=POLICY), min(rounds, 5)),
    )
    update(engine, one_more_minute(ids, running, 120))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("vacuum analyze coverage"))
    due = np.arange(SLOTS) < 121
    now = datetime.fromtimestamp(opens_at(running) + 121 * 60 + 30, UTC)
    told: dict[str, Any] = {
        "settle_seconds": {Interval.M1: 30},
        "reach_seconds": {(Interval.M1, None): None},
        "edges": [EdgeSession("XNYS", Interval.M1, running, due)],
    }
    overview, ledger = Overview(engine), Ledger(engine)
    missing = overview.missing(now, **told)
    print(
        f"{sum(line.bars for line in missing):,} bars are missing now, in {sum(line.symbols for line in missing):,} symbol-sessions"
    )
    yield "what is missing now, by session, tier and plan", expected, timed(lambda: overview.missing(now, **told), rounds)
    by_symbol = timed(lambda: overview.missing_symbols(now, limit=100, **told), rounds)
    yield "what is missing now, by symbol", expected, by_symbol
    gaps = timed(lambda: ledger.due_gaps(now, limit=20, settle_seconds=30), rounds)
    yield "due_gaps: the next 20 to heal", expected, gaps
    nothing = np.zeros(SLOTS, bool)
    asked = [AskedSession(day, 0, ~due if day == running else nothing, nothing) for day in days]
    symbols = [AskedSymbol(symbol_id, row, None, None) for row, symbol_id in enumerate(ids)]
    yield "every bar counted by verdict, by symbol", expected, timed(lambda: overview.cells(Interval.M1, symbols, asked), 3)
    by_day = [AskedSession(one.session, place, one.pending, one.unreachable) for place, one in enumerate(asked)]
    buckets = [AskedSymbol(one.symbol_id, one.row // 20, None, None) for one in symbols]
    yield "every bar counted by verdict, 400 x 250 cells", expected, timed(lambda: overview.cells(Interval.M1, buckets, by_day), 3)


def theirs(engine: Engine, rounds: int) -> Iterator[tuple[str, int, list[float]]]:
    """The same question asked of the bars, on a slice."""
    batch = minutes(add_symbols(engine, SLICE_SYMBOLS), SLICE_SESSIONS)
    CandleWriter(engine).write(batch, now=NOW, policy=POLICY)
    days = midnights(sorted({session.session for session in batch.sessions}))
    with engine.begin() as connection:
        connection.execute(sa.text(LOSE))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("vacuum analyze"))
    bars = SLICE_SYMBOLS * SLICE_SESSIONS * SLOTS
    statements: dict[str, tuple[str, dict[str, Any]]] = {
        "plain SQL on the bars: left join on the grid": (LEFT_JOIN, {"days": days, "symbols": SLICE_SYMBOLS}),
        "plain SQL on the bars: count per symbol and day": (BY_DAY, {"first": days[0], "last": days[-1]}),
    }
    for name, (statement, values) in statements.items():

        def ask(statement: str = statement, values: dict[str, Any] = values) -> None:
            with engine.connect() as connection:
                connection.execute(sa.text(statement), values).all()

        yield name, bars, timed(ask, rounds)


def main() -> None:
    """Measure, print, write."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--symbols", type=int, default=8_000)
    arguments.add_argument("--sessions", type=int, default=250)
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--json", type=Path, help="where to write the numbers (default: benchmarks/results/)")
    chosen = arguments.parse_args()
    days = trading_days(chosen.sessions)
    whole = chosen.symbols * chosen.sessions * SLOTS
    seconds: dict[str, list[float]] = defaultdict(list)
    looked_at: dict[str, int] = {}
    with fresh_database() as engine:
        for name, bars, taken in theirs(engine, min(chosen.rounds, 5)):
            seconds[name], looked_at[name] = taken, bars
    with fresh_database() as engine:
        add_symbols(engine, chosen.symbols)
        with engine.begin() as connection:
            connection.execute(sa.text(TIERS))
        made = fill_ledger(engine, days[:-1])
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("vacuum analyze"))
        print(f"{chosen.symbols * (chosen.sessions - 1):,} ledger rows made in {made:.0f} s")
        with engine.connect() as connection:
            heap, indexes, toast, rows, short = connection.execute(sa.text(SIZES)).one()
        for name, bars, taken in ours(engine, days, chosen.rounds):
            seconds[name], looked_at[name] = taken, bars
    table = [
        {
            "question": name,
            "expected bars": looked_at[name],
            "s": statistics.median(taken),
            "worst s": max(taken),
            "s for the whole year (scaled by the bar)": (
                statistics.median(taken) * whole / looked_at[name] if name.startswith("plain SQL") else None
            ),
        }
        for name, taken in seconds.items()
    ]
    each, ten_years = (heap + indexes + toast) / rows, chosen.symbols * TEN_YEARS
    times = whole / (SLICE_SYMBOLS * SLICE_SESSIONS * SLOTS)
    notes = [
        f"{rows:,} ledger rows, {short:,} of them short; medians of {chosen.rounds} rounds; Postgres with durable settings",
        f"bytes a symbol-session: {each:.0f}: heap {heap / rows:.0f}, indexes {indexes / rows:.0f}, toast {toast / rows:.0f}",
        f"on paper, ten years of {chosen.symbols:,} symbols: {ten_years:,} rows, {ten_years * each / 1e9:.1f} GB for minutes",
        "what is missing now is read from an index over the rows that lack something, and grows with those alone",
        f"plain SQL has the bars of {SLICE_SYMBOLS} symbols and {SLICE_SESSIONS} sessions; there are {times:,.0f} times as many",
        "targets: what is missing now under 1 s, one session of the whole universe under 2 s",
    ]
    report("ledger_scan", table, notes=notes, json_path=chosen.json)


if __name__ == "__main__":
    main()
