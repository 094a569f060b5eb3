"""Computes the candles of derived intervals from stored minutes, in SQL: the bars never leave the database.

Which bars can be computed is the ledger's to say, and it is asked under the locks of both intervals. Rows, revisions and
provenance are written as for fetched bars (``bulk``); the provider is called ``derived``.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from datetime import date
from itertools import product
from typing import TYPE_CHECKING, cast

import numpy as np

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.coverage import LedgerRow
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.ports import Fetch
from market_data_pipeline.domain.sessions import date_of, day_number
from market_data_pipeline.storage.bitmaps import bits
from market_data_pipeline.storage.bulk import (
    CHANNEL,
    INTRADAY,
    database_time,
    instant_of,
    lock_series,
    provider_number,
    read_ledger,
    record_fetches,
    transaction,
    write_ledger,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - a class that psycopg2 spells in lower case
    from sqlalchemy import Engine

    from market_data_pipeline.domain.candles import Bools
    from market_data_pipeline.domain.sessions import Segments
    from market_data_pipeline.storage.bulk import SessionChange

DERIVED = "derived"
# Symbol-sessions of one transaction: some 150,000 bars of 5m.
SESSIONS_AT_ONCE = 2_000
MINUTE = Interval.M1.seconds


# One scan of the minutes' primary key a symbol and segment. A bar is computed only where the ledger has its bit in `complete`, and
# only from as many minutes as the ledger says are there. Sums are taken in the order of the minutes: another order would round
# otherwise, and deriving again would find a difference. Staged is only what is new or differs. A bar with one minute of another
# feed in it is labelled with that feed.
_STAGE = f"""
with computed as materialized (
  select k.symbol_id, k.session_index, to_timestamp(g.starts_at + m.bucket * %(seconds)s) as opened_at,
         m.open, m.high, m.low, m.close, m.volume, m.vwap, m.trades, m.flags, m.feed
    from unnest(%(session_indexes)s::int4[], %(symbol_ids)s::int4[], %(days)s::int4[],
                %(complete)s::varbit[], %(minutes)s::varbit[])
         as k (session_index, symbol_id, day, complete, minutes)
    join unnest(%(segment_days)s::int4[], %(starts_at)s::int8[], %(ends_at)s::int8[],
                %(first_slots)s::int4[], %(first_minutes)s::int4[])
         as g (day, starts_at, ends_at, first_slot, first_minute) using (day)
   cross join lateral (
         select (extract(epoch from b.opened_at)::int8 - g.starts_at) / %(seconds)s as bucket,
                (array_agg(b.open order by b.opened_at))[1] as open, max(b.high) as high, min(b.low) as low,
                (array_agg(b.close order by b.opened_at desc))[1] as close,
                sum(b.volume order by b.opened_at) as volume,
                case when bool_and(b.vwap is not null)
                     then sum(b.vwap * b.volume order by b.opened_at) / nullif(sum(b.volume order by b.opened_at), 0)
                end as vwap,
                case when bool_and(b.trades is not null) then sum(b.trades)::int8 end as trades,
                bit_or(b.flags) as flags, max(b.feed) as feed,
                count(*) as minutes
           from candles_intraday b
          where b.symbol_id = k.symbol_id and b.interval_s = {MINUTE}
            and b.opened_at >= to_timestamp(g.starts_at) and b.opened_at < to_timestamp(g.ends_at)
          group by 1) m
   where get_bit(k.complete, (g.first_slot + m.bucket)::int4) = 1
     and m.minutes = bit_count(substring(
           k.minutes from (g.first_minute + m.bucket * %(per_bar)s + 1)::int4
           for least(%(per_bar)s, (g.ends_at - g.starts_at + {MINUTE - 1}) / {MINUTE} - m.bucket * %(per_bar)s)::int4))
),
staged as (
  insert into {INTRADAY.stage} (symbol_id, interval_s, opened_at, open, high, low, close, volume, vwap, trades, flags, feed,
                                fetch_id, as_of, provider, session_index)
  select c.symbol_id, %(seconds)s, c.opened_at, c.open, c.high, c.low, c.close, c.volume, c.vwap, c.trades, c.flags, c.feed,
         0, %(learned_at)s, %(provider)s, c.session_index
    from computed c
    left join candles_intraday b
      on b.symbol_id = c.symbol_id and b.interval_s = %(seconds)s and b.opened_at = c.opened_at
   where b.symbol_id is null
      or (b.open, b.high, b.low, b.close, b.volume, b.vwap, b.trades)
         is distinct from (c.open, c.high, c.low, c.close, c.volume, c.vwap, c.trades)
)
select session_index, count(*) from computed group by session_index
"""  # noqa: S608 - names and numbers of our modules; values are bound

_UNSTAGE = f"delete from {INTRADAY.stage} where session_index = any(%(sessions)s::int4[])"  # noqa: S608 - a name of our module

_STAGED = f"select symbol_id, count(*) from {INTRADAY.stage} group by symbol_id order by symbol_id"  # noqa: S608 - as above

_SET_PROVENANCE = f"""
update {INTRADAY.stage} s set fetch_id = k.fetch_id
  from unnest(%(symbol_ids)s::int4[], %(fetch_ids)s::int8[]) as k (symbol_id, fetch_id)
 where s.symbol_id = k.symbol_id
"""  # noqa: S608 - as above


@dataclass(frozen=True, slots=True)
class DeriveReport:
    """What deriving changed for one symbol.

    ``unchanged`` bars were stored already with the same values. ``out_of_step``: sessions left alone because the ledger disagrees
    with the calendar or with the stored minutes; `mdp reconcile --repair` brings them back in step.
    """

    inserted: int = 0
    revised: int = 0
    unchanged: int = 0
    confirmed_empty: int = 0
    out_of_step: tuple[date, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class _Shape:
    """How the minutes of one session fall into bars. ``first_minutes`` has one element a bar: the slot of its first minute."""

    session: date
    opens_at: int
    closes_at: int
    minutes: int
    first_minutes: np.ndarray[tuple[int], np.dtype[np.intp]]

    def fits(self, minutes: LedgerRow, bars: LedgerRow | None) -> bool:
        """Whether the ledger rows were opened under this calendar."""
        bounds = (self.opens_at, self.closes_at)
        return (minutes.expected, minutes.opens_at, minutes.closes_at) == (self.minutes, *bounds) and (
            bars is None or (bars.expected, bars.opens_at, bars.closes_at) == (len(self.first_minutes), *bounds)
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Session:
    """One symbol and session to derive: the ledger of its minutes, and what follows from it for the bars."""

    symbol_id: int
    shape: _Shape
    minutes: LedgerRow
    bars: LedgerRow | None
    complete: Bools = field(init=False)
    """Every minute has its final verdict, and at least one is present: the bar can be computed."""
    empty: Bools = field(init=False)
    """Every minute is confirmed empty: so is the bar."""
    halted: Bools = field(init=False)
    """No minute traded, and in some of them trading was suspended: so it was in the bar."""

    def __post_init__(self) -> None:
        at, row = self.shape.first_minutes, self.minutes
        resolved = np.logical_and.reduceat(row.resolved, at)
        traded = np.logical_or.reduceat(row.present, at)
        suspended = np.zeros(len(at), bool) if row.halted is None else np.logical_or.reduceat(row.halted, at)
        object.__setattr__(self, "complete", resolved & traded)
        object.__setattr__(self, "empty", resolved & ~traded & ~suspended)
        object.__setattr__(self, "halted", resolved & ~traded & suspended)

    def advanced(self, change: SessionChange | None, *, learned_at: datetime, now: datetime, seconds: int) -> LedgerRow | None:
        """The ledger row of the bars once they are stored; None where it would say the same as now.

        A bar once present stays: a minute deleted later does not take it back. Nothing is ever planned for a derived bar, since
        no provider is asked for it.
        """
        nothing = np.zeros(len(self.complete), bool)
        before = self.bars or LedgerRow(
            symbol_id=self.symbol_id,
            interval=Interval.of_seconds(seconds),
            session=self.shape.session,
            opens_at=self.shape.opens_at,
            closes_at=self.shape.closes_at,
            present=nothing,
            confirmed_empty=nothing,
            known_at=learned_at,
        )
        present = before.present | self.complete
        confirmed = self.empty & ~present
        halted = self.halted & ~present
        after = replace(
            before,
            present=present,
            confirmed_empty=confirmed,
            halted=halted if halted.any() else None,
            finality=self.minutes.finality,
        )
        same = np.array_equal(present, before.present) and np.array_equal(after.resolved, before.resolved)
        if same and np.array_equal(confirmed, before.confirmed_empty) and after.finality is before.finality and change is None:
            return None
        return replace(
            after,
            last_attempt_at=now,
            known_at=before.known_at if change is None else max(learned_at, instant_of(change.known_at)),
            digest=None,
        )


class CandleDeriver:
    """Keeps derived intervals in line with the minutes. Safe to run beside fetching and beside itself."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def derive(
        self,
        symbol_ids: Iterable[int],
        target: Interval,
        segments: Segments,
        *,
        now: datetime,
        known_at: datetime | None = None,
        run_id: str | None = None,
    ) -> dict[int, DeriveReport]:
        """Compute the bars of ``target`` in all sessions of ``segments``, for symbols that share that calendar; a report each.

        Buckets begin at each segment's open; the last of a segment may be shorter. A bar exists once every minute that the calendar
        expects in it is present or confirmed empty, and at least one is present; where all are confirmed empty, so is the bar.
        Open, high, low, close and volume are the first, highest, lowest, last and sum; VWAP and trades are known where they are
        known of every minute. A revised minute revises its bar, an unchanged one writes nothing: repeating is safe.
        ``known_at`` None: the database's clock. Each transaction holds ``SESSIONS_AT_ONCE`` symbol-sessions.
        """
        if target.source is not Interval.M1:
            raise InvalidInputError(f"{target} is not derived from {Interval.M1}: it is fetched")
        shapes = _shapes(segments, target)
        reports = {symbol_id: DeriveReport() for symbol_id in sorted(set(symbol_ids))}
        if not shapes:
            return reports
        ordered = list(reports)
        at_once = max(1, SESSIONS_AT_ONCE // len(shapes))
        for at in range(0, len(ordered), at_once):
            chunk = ordered[at : at + at_once]
            with transaction(self._engine) as cursor:
                lock_series(cursor, chunk, MINUTE, target.seconds)
                derivation = _Derivation(cursor, target, segments, shapes, now, known_at or database_time(cursor), run_id)
                reports.update(derivation.carry_out(chunk))
        return reports


def _shapes(segments: Segments, target: Interval) -> list[_Shape]:
    """How the minutes of each session fall into bars."""
    per_bar = target.seconds // MINUTE
    shapes = []
    for day in np.unique(segments.session).tolist():
        mine = segments.session == day
        lengths = _minutes_of(segments)[mine].tolist()
        starts = np.concatenate(([0], np.cumsum(lengths)))[:-1]
        firsts = np.concatenate([start + np.arange(0, length, per_bar) for start, length in zip(starts, lengths, strict=True)])
        shapes.append(
            _Shape(
                session=date_of(day),
                opens_at=int(segments.starts_at[mine][0]),
                closes_at=int(segments.ends_at[mine][-1]),
                minutes=sum(lengths),
                first_minutes=firsts,
            )
        )
    return shapes


def _minutes_of(segments: Segments) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return -((segments.starts_at - segments.ends_at) // MINUTE)


def _before_in_session(counts: np.ndarray[tuple[int], np.dtype[np.int64]], segments: Segments) -> list[int]:
    """For each segment, the sum of ``counts`` over the earlier segments of its session."""
    before = np.concatenate(([0], np.cumsum(counts)))[:-1]
    first_of_session = np.searchsorted(segments.session, segments.session)
    earlier: list[int] = (before - before[first_of_session]).tolist()
    return earlier


@dataclass(frozen=True, slots=True, eq=False)
class _Derivation:
    """One transaction's work, under the locks."""

    cursor: Cursor
    target: Interval
    segments: Segments
    shapes: Sequence[_Shape]
    now: datetime
    learned_at: datetime
    run_id: str | None

    def carry_out(self, symbol_ids: Sequence[int]) -> dict[int, DeriveReport]:
        started = time.perf_counter()
        sessions, out_of_step = self._known(symbol_ids)
        if not sessions:
            return {s: DeriveReport(out_of_step=tuple(out_of_step[s])) for s in symbol_ids}
        computed = self._stage(sessions)
        for index in [i for i, session in enumerate(sessions) if computed.get(i, 0) != session.complete.sum()]:
            out_of_step[sessions[index].symbol_id].append(sessions[index].shape.session)
            computed[index] = -1
        self.cursor.execute(_UNSTAGE, {"sessions": [index for index, bars in computed.items() if bars < 0]})
        changes = self._apply(started)
        rows = {
            index: row
            for index, session in enumerate(sessions)
            if computed.get(index, 0) >= 0
            and (row := session.advanced(changes.get(index), learned_at=self.learned_at, now=self.now, seconds=self.target.seconds))
        }
        write_ledger(self.cursor, self.target, list(rows.values()))
        reports = self._reports(symbol_ids, sessions, computed, changes, rows, out_of_step)
        written = sum(report.inserted + report.revised for report in reports.values())
        if written or rows:
            self._notify(len({row.symbol_id for row in rows.values()}), written)
        return reports

    def _known(self, symbol_ids: Sequence[int]) -> tuple[list[_Session], dict[int, list[date]]]:
        """The sessions whose minutes the ledger knows, and those that it knows by another calendar."""
        shape_of = {shape.session: shape for shape in self.shapes}
        keys = list(product(symbol_ids, shape_of))
        minutes = read_ledger(self.cursor, Interval.M1, keys)
        bars = read_ledger(self.cursor, self.target, keys)
        sessions, out_of_step = [], {symbol_id: list[date]() for symbol_id in symbol_ids}
        for key in keys:
            symbol_id, session = key
            if key not in minutes:
                continue
            if shape_of[session].fits(minutes[key], bars.get(key)):
                sessions.append(_Session(symbol_id, shape_of[session], minutes[key], bars.get(key)))
            else:
                out_of_step[symbol_id].append(session)
        return sessions, out_of_step

    def _stage(self, sessions: Sequence[_Session]) -> dict[int, int]:
        """Stage what is new or differs; how many bars were computed, by index of the session."""
        INTRADAY.open_stage(self.cursor)
        seconds = self.target.seconds
        bars_of = -((self.segments.starts_at - self.segments.ends_at) // seconds)
        self.cursor.execute(
            _STAGE,
            {
                "session_indexes": list(range(len(sessions))),
                "symbol_ids": [s.symbol_id for s in sessions],
                "days": [day_number(s.shape.session) for s in sessions],
                "complete": [bits(s.complete) for s in sessions],
                "minutes": [bits(s.minutes.present) for s in sessions],
                "segment_days": self.segments.session.tolist(),
                "starts_at": self.segments.starts_at.tolist(),
                "ends_at": self.segments.ends_at.tolist(),
                "first_slots": _before_in_session(bars_of, self.segments),
                "first_minutes": _before_in_session(_minutes_of(self.segments), self.segments),
                "seconds": seconds,
                "per_bar": seconds // MINUTE,
                "learned_at": self.learned_at,
                "provider": provider_number(self.cursor, DERIVED),
            },
        )
        return dict(cast("list[tuple[int, int]]", self.cursor.fetchall()))

    def _apply(self, started: float) -> Mapping[int, SessionChange]:
        """Write the staged bars with their provenance: one fetch for each symbol that has any."""
        self.cursor.execute(_STAGED)
        staged = cast("list[tuple[int, int]]", self.cursor.fetchall())
        if not staged:
            return {}
        first, last = self.shapes[0], self.shapes[-1]
        derivation = Fetch(
            provider=DERIVED,
            symbol="",
            interval=self.target,
            request=f"derive {self.target} from {Interval.M1}, sessions {first.session} to {last.session}",
            started_at=self.now,
            latency_seconds=time.perf_counter() - started,
            outcome="ok",
        )
        symbol_ids = [symbol_id for symbol_id, _ in staged]
        fetches = [replace(derivation, rows=rows) for _, rows in staged]
        fetch_ids = record_fetches(self.cursor, fetches, symbol_ids, run_id=self.run_id)
        self.cursor.execute(_SET_PROVENANCE, {"symbol_ids": symbol_ids, "fetch_ids": fetch_ids})
        return INTRADAY.apply_stage(
            self.cursor,
            symbol_ids=symbol_ids,
            first=instant_of(first.opens_at * 1_000_000),
            last=instant_of(last.closes_at * 1_000_000),
            # Minutes that take turns bring the same bar back more often than any one of them.
            most_tenures=None,
        ).changed

    def _reports(
        self,
        symbol_ids: Sequence[int],
        sessions: Sequence[_Session],
        computed: Mapping[int, int],
        changes: Mapping[int, SessionChange],
        rows: Mapping[int, LedgerRow],
        out_of_step: Mapping[int, list[date]],
    ) -> dict[int, DeriveReport]:
        reports = {s: DeriveReport(out_of_step=tuple(sorted(out_of_step[s]))) for s in symbol_ids}
        for index, session in enumerate(sessions):
            report, change = reports[session.symbol_id], changes.get(index)
            inserted, revised = (change.inserted, change.revised) if change else (0, 0)
            confirmed = 0
            if index in rows:
                known = session.bars.confirmed_empty if session.bars else np.zeros(len(session.empty), bool)
                confirmed = int((rows[index].confirmed_empty & ~known).sum())
            reports[session.symbol_id] = replace(
                report,
                inserted=report.inserted + inserted,
                revised=report.revised + revised,
                unchanged=report.unchanged + max(computed.get(index, 0), 0) - inserted - revised,
                confirmed_empty=report.confirmed_empty + confirmed,
            )
        return reports

    def _notify(self, symbols: int, rows: int) -> None:
        payload = json.dumps({"interval": self.target.value, "symbols": symbols, "rows": rows}, separators=(",", ":"))
        self.cursor.execute("select pg_notify(%s, %s)", (CHANNEL, payload))
