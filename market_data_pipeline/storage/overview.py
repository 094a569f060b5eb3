"""Questions over the whole ledger, answered without reading a bar: what is missing now, and how much there is of what, where.

What is missing is read from the partial index over rows that lack something, so it costs what is missing, not what is stored.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.storage import binary
from market_data_pipeline.storage.bitmaps import bits
from market_data_pipeline.storage.bulk import transaction

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date, datetime

    from sqlalchemy import Engine

    from market_data_pipeline.domain.candles import Bools, Int64s


class Plan(StrEnum):
    """What is planned for a session that lacks bars."""

    DUE = "due"
    """Its next attempt is due: whoever has a request to spare makes it."""
    WAITING = "waiting"
    """It was asked for and is asked for again later."""
    DERIVED = "derived"
    """It is computed again when more of its source is there."""
    GIVEN_UP = "given_up"
    """Nothing more is planned."""


@dataclass(frozen=True, slots=True, eq=False)
class EdgeSession:
    """A session of which only some bars count as missing now: it runs, or reaches over the edge of what anybody serves.

    ``counts`` has one element a slot: the bar is due, and somebody can be asked for it.
    """

    calendar: str
    interval: Interval
    session: date
    counts: Bools


@dataclass(frozen=True, slots=True)
class MissingLine:
    """What is missing of one interval, session and tier under one plan: in so many symbols, so many bars."""

    interval: Interval
    session: date
    tier: Tier
    plan: Plan
    symbols: int
    bars: int


@dataclass(frozen=True, slots=True)
class MissingSymbol:
    """What is missing of one symbol and interval: in so many sessions, so many bars, of which for so many none is planned."""

    symbol: str
    tier: Tier
    interval: Interval
    sessions: int
    bars: int
    given_up: int
    first: date
    last: date


@dataclass(frozen=True, slots=True, eq=False)
class AskedSession:
    """A session of the calendar, and what its bars are as long as the ledger has no verdict for them: one element a slot.

    ``column``: where in the picture it is counted. No slot is both ``pending`` and ``unreachable``; the others are missing.
    """

    session: date
    column: int
    pending: Bools
    unreachable: Bools


@dataclass(frozen=True, slots=True)
class AskedSymbol:
    """A symbol, where in the picture it is counted, and the first and last session in which it was listed; None for no bound."""

    symbol_id: int
    row: int
    first: date | None
    last: date | None


@dataclass(frozen=True, slots=True, eq=False)
class CellCounts:
    """What the ledger's rows say, by cell of a picture: one element a cell that has any; ``row`` and ``column`` say which.

    Bars by verdict, each under exactly one, from ``present`` to ``missing``; ``given_up`` are those missing for which nothing is
    planned. Sessions by finality. The ``known_`` counts are those of the same sessions if nothing at all were known of them: taken
    from the whole grid's, they leave the sessions that the ledger has no row of.
    """

    row: Int64s
    column: Int64s
    present: Int64s
    confirmed_empty: Int64s
    halted: Int64s
    not_listed: Int64s
    pending: Int64s
    unreachable: Int64s
    missing: Int64s
    given_up: Int64s
    provisional: Int64s
    settled: Int64s
    final: Int64s
    known_not_listed: Int64s
    known_pending: Int64s
    known_unreachable: Int64s
    known_missing: Int64s


# One definition of "missing now" for both questions. Bars of an edge session are counted slot by slot, those of the others by the
# row. A row that was opened under other hours than the calendar has now counts as it is: `mdp reconcile` finds it.
_MISSING = """
with reaches as materialized (
  select * from unnest(%(reach_intervals)s::int4[], %(reach_calendars)s::text[], %(reach_seconds)s::int4[])
             as k (interval_s, calendar, seconds)
),
settles as materialized (
  select * from unnest(%(settle_intervals)s::int4[], %(settle_seconds)s::int4[]) as k (interval_s, seconds)
),
edges as materialized (
  select * from unnest(%(edge_calendars)s::text[], %(edge_intervals)s::int4[], %(edge_sessions)s::date[], %(edge_bits)s::varbit[])
             as k (calendar, interval_s, session, counts)
),
listed as materialized (
  select symbol_id, symbol, calendar, tier, greatest(active_from, listed_from) as first, least(active_to, listed_to) as last
    from symbol_universe
   where active and not is_unknown and (%(symbol_ids)s::int4[] is null or symbol_id = any(%(symbol_ids)s::int4[]))
),
found as (
  select c.symbol_id, u.symbol, u.tier, c.interval_s, c.session, c.attempts,
         case when c.interval_s = any(%(derived)s::int4[]) then 'derived' when c.next_attempt_at is null then 'given_up'
              when c.next_attempt_at <= %(now)s then 'due' else 'waiting' end as plan,
         case when length(e.counts) = c.expected
              then bit_count(e.counts & ~(c.present | c.confirmed_empty | coalesce(c.halted, c.confirmed_empty)))
              else c.absent end as bars
    from coverage c
    join listed u using (symbol_id)
    join settles s using (interval_s)
    left join reaches r on r.interval_s = c.interval_s and r.calendar = u.calendar
    left join reaches w on w.interval_s = c.interval_s and w.calendar is null
    left join edges e on e.calendar = u.calendar and e.interval_s = c.interval_s and e.session = c.session
   where c.absent > 0
     and (u.first is null or u.first <= c.session) and (u.last is null or c.session <= u.last)
     and (e.counts is not null
          or (c.closes_at + make_interval(secs => s.seconds) <= %(now)s
              and case when r.interval_s is null then w.seconds is null or c.opens_at >= %(now)s - make_interval(secs => w.seconds)
                       else r.seconds is null or c.opens_at >= %(now)s - make_interval(secs => r.seconds) end))
)"""

_MISSING_BY_SESSION = (
    _MISSING
    + """
select interval_s, session, tier, plan, count(*), sum(bars) from found where bars > 0
 group by interval_s, session, tier, plan order by interval_s, session desc, tier, plan
"""
)

_MISSING_BY_SYMBOL = (
    _MISSING
    + """
select symbol, tier, interval_s, count(*), sum(bars), coalesce(sum(bars) filter (where plan = 'given_up'), 0),
       min(session), max(session)
  from found where bars > 0
 group by symbol, tier, interval_s order by tier, sum(bars) desc, symbol, interval_s limit %(limit)s
"""
)

# Counted in the server: 2 M rows go in, and as many come out as the picture has cells. A row that was opened under other hours than
# the calendar has now counts as none: nothing is known of the session's bars. bit_count of the absent slots is only asked for where
# a session is in part pending or unreachable: almost all are one thing as a whole.
_CELLS = """
with judged as (
  select s.place as row, d.place as col, c.expected, c.finality, c.absent, c.next_attempt_at is null as is_given_up,
         bit_count(c.present) as present, bit_count(c.confirmed_empty) as confirmed_empty,
         coalesce(bit_count(c.halted), 0) as halted,
         (s.first is null or s.first <= c.session) and (s.last is null or c.session <= s.last) as is_listed,
         d.pending as all_pending, d.unreachable as all_unreachable,
         case d.pending when 0 then 0 when c.expected then c.absent
              else bit_count(d.pending_bits & ~(c.present | c.confirmed_empty | coalesce(c.halted, c.present)))
         end as pending,
         case d.unreachable when 0 then 0 when c.expected then c.absent
              else bit_count(d.unreachable_bits & ~(c.present | c.confirmed_empty | coalesce(c.halted, c.present)))
         end as unreachable
    from coverage c
    join unnest(%(symbol_ids)s::int4[], %(rows)s::int4[], %(firsts)s::date[], %(lasts)s::date[])
      as s (symbol_id, place, first, last) using (symbol_id)
    join unnest(%(sessions)s::date[], %(columns)s::int4[], %(expected)s::int2[], %(pending)s::int4[], %(unreachable)s::int4[],
                %(pending_bits)s::varbit[], %(unreachable_bits)s::varbit[])
      as d (session, place, expected, pending, unreachable, pending_bits, unreachable_bits)
      on d.session = c.session and d.expected = c.expected
   where c.interval_s = %(interval_s)s and c.session between %(first)s and %(last)s
)
select row::int8, col::int8 as column, sum(present)::int8 as present, sum(confirmed_empty)::int8 as confirmed_empty,
       sum(halted)::int8 as halted,
       coalesce(sum(absent) filter (where not is_listed), 0)::int8 as not_listed,
       coalesce(sum(pending) filter (where is_listed), 0)::int8 as pending,
       coalesce(sum(unreachable) filter (where is_listed), 0)::int8 as unreachable,
       coalesce(sum(absent - pending - unreachable) filter (where is_listed), 0)::int8 as missing,
       coalesce(sum(absent - pending - unreachable) filter (where is_listed and is_given_up), 0)::int8 as given_up,
       count(*) filter (where finality = 0) as provisional, count(*) filter (where finality = 1) as settled,
       count(*) filter (where finality = 2) as final,
       coalesce(sum(expected) filter (where not is_listed), 0)::int8 as known_not_listed,
       coalesce(sum(all_pending) filter (where is_listed), 0)::int8 as known_pending,
       coalesce(sum(all_unreachable) filter (where is_listed), 0)::int8 as known_unreachable,
       coalesce(sum(expected - all_pending - all_unreachable) filter (where is_listed), 0)::int8 as known_missing
  from judged
 group by row, col
"""
_CELL_NAMES = tuple(field.name for field in fields(CellCounts))


class Overview:
    """Asks the ledger as a whole. Instances may be shared by threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def missing(
        self,
        now: datetime,
        *,
        settle_seconds: Mapping[Interval, int],
        reach_seconds: Mapping[tuple[Interval, str | None], int | None],
        edges: Sequence[EdgeSession],
        symbol_ids: Sequence[int] | None = None,
    ) -> list[MissingLine]:
        """What is missing now, the newest session first: due or waiting, derived or given up.

        A bar counts that has no verdict from bars or evidence, whose symbol is active and was listed in its session, that is due,
        and that somebody can still be asked for. ``settle_seconds`` names the intervals that are looked at; ``edges`` must have
        every session of these that is only in part due or within ``reach_seconds``: of a session that is not among them all bars
        count, or none. Sessions that the ledger has no row of are not known here. ``symbol_ids`` None: all.
        """
        parameters = self._missing_parameters(now, settle_seconds, reach_seconds, edges, symbol_ids)
        with self._engine.connect() as connection:
            return [
                MissingLine(Interval.of_seconds(seconds), session, Tier(tier), Plan(plan), int(symbols), int(bars))
                for seconds, session, tier, plan, symbols, bars in connection.exec_driver_sql(_MISSING_BY_SESSION, parameters)
            ]

    def missing_symbols(
        self,
        now: datetime,
        *,
        settle_seconds: Mapping[Interval, int],
        reach_seconds: Mapping[tuple[Interval, str | None], int | None],
        edges: Sequence[EdgeSession],
        symbol_ids: Sequence[int] | None = None,
        limit: int,
    ) -> list[MissingSymbol]:
        """The same bars by symbol and interval: the best tier first, in it the symbol that lacks most; at most ``limit``."""
        if limit < 1:
            raise InvalidInputError(f"a limit of {limit} symbols: expected 1 or more")
        parameters = {**self._missing_parameters(now, settle_seconds, reach_seconds, edges, symbol_ids), "limit": limit}
        with self._engine.connect() as connection:
            return [
                MissingSymbol(
                    symbol, Tier(tier), Interval.of_seconds(seconds), int(sessions), int(bars), int(given_up), first, last
                )
                for symbol, tier, seconds, sessions, bars, given_up, first, last in connection.exec_driver_sql(
                    _MISSING_BY_SYMBOL, parameters
                )
            ]

    @staticmethod
    def _missing_parameters(
        now: datetime,
        settle_seconds: Mapping[Interval, int],
        reach_seconds: Mapping[tuple[Interval, str | None], int | None],
        edges: Sequence[EdgeSession],
        symbol_ids: Sequence[int] | None,
    ) -> dict[str, object]:
        reach = [(interval.seconds, calendar, seconds) for (interval, calendar), seconds in reach_seconds.items()]
        return {
            "now": now,
            "symbol_ids": None if symbol_ids is None else list(symbol_ids),
            "derived": [interval.seconds for interval in Interval if interval.source is not None],
            "reach_intervals": [seconds for seconds, *_ in reach],
            "reach_calendars": [calendar for _, calendar, _ in reach],
            "reach_seconds": [seconds for *_, seconds in reach],
            "settle_intervals": [interval.seconds for interval in settle_seconds],
            "settle_seconds": list(settle_seconds.values()),
            "edge_calendars": [edge.calendar for edge in edges],
            "edge_intervals": [edge.interval.seconds for edge in edges],
            "edge_sessions": [edge.session for edge in edges],
            "edge_bits": [bits(edge.counts) for edge in edges],
        }

    def cells(self, interval: Interval, symbols: Sequence[AskedSymbol], sessions: Sequence[AskedSession]) -> CellCounts:
        """What the ledger holds of these symbols in these sessions, which one calendar has, counted by cell.

        It reads every row there is of them: a second for 2 million.
        """
        if not symbols or not sessions:
            return CellCounts(*(np.zeros(0, np.int64) for _ in _CELL_NAMES))
        parameters = {
            "interval_s": interval.seconds,
            "symbol_ids": [symbol.symbol_id for symbol in symbols],
            "rows": [symbol.row for symbol in symbols],
            "firsts": [symbol.first for symbol in symbols],
            "lasts": [symbol.last for symbol in symbols],
            "sessions": [asked.session for asked in sessions],
            "columns": [asked.column for asked in sessions],
            "expected": [len(asked.pending) for asked in sessions],
            "pending": [int(asked.pending.sum()) for asked in sessions],
            "unreachable": [int(asked.unreachable.sum()) for asked in sessions],
            "pending_bits": [_partly(asked.pending) for asked in sessions],
            "unreachable_bits": [_partly(asked.unreachable) for asked in sessions],
            "first": min(asked.session for asked in sessions),
            "last": max(asked.session for asked in sessions),
        }
        body = io.BytesIO()
        with transaction(self._engine) as cursor:
            cursor.copy_expert(b"copy (" + cursor.mogrify(_CELLS, parameters) + b") to stdout (format binary)", body)
        columns = binary.decode(body.getbuffer(), dict.fromkeys(_CELL_NAMES, binary.INT8))
        return CellCounts(**{name: columns[name].astype(np.int64, copy=False) for name in _CELL_NAMES})


def _partly(mask: Bools) -> str | None:
    """The bitmap of a session that is this in part; None for one that is wholly or not at all."""
    return None if not mask.any() or mask.all() else bits(mask)
