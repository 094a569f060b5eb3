"""The ledger in Postgres: rows of ``coverage`` opened, read, pushed back after a failure, and asked for what is due.

What an answer changes in them is written together with its bars, in ``bulk``; the rules are in ``domain.healing``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.finality import Finality
from market_data_pipeline.domain.healing import after_failure, held_back, postponed
from market_data_pipeline.storage.bitmaps import bits
from market_data_pipeline.storage.bulk import ledger_row, lock_series, read_ledger, record_fetches, transaction

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import date, datetime

    from sqlalchemy import Engine

    from market_data_pipeline.domain.coverage import LedgerRow
    from market_data_pipeline.domain.healing import HealingPolicy
    from market_data_pipeline.domain.ports import Fetch

# Rows of one statement: a minute session is some 800 characters of bitmap, so this is a few megabytes of text.
ROWS_AT_ONCE = 5_000

# A gap of a lower tier counts as due this much later than it is. The steps are shorter than the shortest wait of the default
# policy (900 s), so a gap just tried and pushed back never passes one that still waits for its first turn.
HEAD_START_SECONDS = 300
# What one question looks at: the rows that have been due longest. Enough for many ticks, and the cost of a tick stays bounded.
ROWS_CONSIDERED = 5_000
# Due sessions further apart than this are two gaps even where the ledger has no session between them: nobody asked for those.
# Five days bridge Easter (Thursday to Tuesday).
LONGEST_BREAK_DAYS = 5
# A recheck waits so long for the sessions next to it: a session's settled and the one before's final are one request then, though
# their providers settle at different times of the evening.
COMPANY_SECONDS = 3_600

# The columns are those of bulk.READ_LEDGER, in its order.
_ROWS = """
select symbol_id, session, extract(epoch from opens_at)::int8, extract(epoch from closes_at)::int8, present, confirmed_empty,
       attempts, failures, last_attempt_at, next_attempt_at, as_of, digest, halted, finality, recheck_at
  from coverage
 where symbol_id = any(%(symbol_ids)s::int4[]) and interval_s = %(interval_s)s and session between %(first)s and %(last)s
 order by symbol_id, session
"""

_OPEN = """
insert into coverage (symbol_id, interval_s, session, opens_at, closes_at, expected, present, confirmed_empty,
                      attempts, failures, last_attempt_at, next_attempt_at, as_of, digest, halted, finality, recheck_at)
select symbol_id, interval_s, session, to_timestamp(opens_at), to_timestamp(closes_at), length(present), present, confirmed_empty,
       attempts, failures, last_attempt_at, next_attempt_at, coalesce(known_at, %(known_at)s, clock_timestamp()), digest,
       halted, finality, recheck_at
  from unnest(%(symbol_id)s::int4[], %(interval_s)s::int4[], %(session)s::date[], %(opens_at)s::int8[], %(closes_at)s::int8[],
              %(present)s::varbit[], %(confirmed_empty)s::varbit[], %(attempts)s::int2[], %(failures)s::int2[],
              %(last_attempt_at)s::timestamptz[], %(next_attempt_at)s::timestamptz[], %(row_known_at)s::timestamptz[],
              %(digest)s::bytea[], %(halted)s::varbit[], %(finality)s::int2[], %(recheck_at)s::timestamptz[])
    as k (symbol_id, interval_s, session, opens_at, closes_at, present, confirmed_empty, attempts, failures,
          last_attempt_at, next_attempt_at, known_at, digest, halted, finality, recheck_at)
 order by symbol_id, interval_s, session
on conflict do nothing
"""

_PUSH_BACK = """
update coverage c
   set failures = k.failures, last_attempt_at = k.last_attempt_at, next_attempt_at = k.next_attempt_at,
       recheck_at = k.recheck_at
  from unnest(%(symbol_id)s::int4[], %(session)s::date[], %(failures)s::int2[], %(last_attempt_at)s::timestamptz[],
              %(next_attempt_at)s::timestamptz[], %(recheck_at)s::timestamptz[])
    as k (symbol_id, session, failures, last_attempt_at, next_attempt_at, recheck_at)
 where c.symbol_id = k.symbol_id and c.session = k.session and c.interval_s = %(interval_s)s
"""

# What can be asked for: reaches by interval and calendar; followed symbols with the sessions in which they were listed, by the
# universe file and by what was inferred. Greatest and least pass over nulls.
_REACHES = """
with reaches as (
  select * from unnest(%(reach_intervals)s::int4[], %(reach_calendars)s::text[], %(reach_seconds)s::int4[])
             as k (interval_s, calendar, seconds)
)"""
_FOLLOWED = """
    from coverage c
    join (select symbol_id, calendar, greatest(active_from, listed_from) as first, least(active_to, listed_to) as last,
                 case tier when 'T0' then 0 when 'T1' then 1 else 2 end as head_starts
            from symbol_universe where active and not is_unknown) u using (symbol_id)
    left join reaches r on r.interval_s = c.interval_s and r.calendar = u.calendar
    left join reaches e on e.interval_s = c.interval_s and e.calendar is null
   where (%(intervals)s::int4[] is null or c.interval_s = any(%(intervals)s::int4[]))
     and (u.first is null or u.first <= c.session)
     and (u.last is null or c.session <= u.last)"""

# A session is part of the stretch before it when the ledger has no other session between the two.
_NUMBERED = """
neighbours as (
  select *, lag(session) over (partition by symbol_id, interval_s order by session) as previous from due
),
marked as (
  select *,
         case when previous is null or session - previous > %(longest_break)s then 1
              when session - previous = 1 then 0
              when exists (select from coverage b
                            where b.symbol_id = n.symbol_id and b.interval_s = n.interval_s
                              and b.session > n.previous and b.session < n.session) then 1
              else 0
         end as begins
    from neighbours n
),
numbered as (
  select *, sum(begins) over (partition by symbol_id, interval_s order by session) as stretch from marked
)"""


def _within_reach(edge: str) -> str:
    """That somebody still serves the session of ``c``: its ``edge`` is not too long ago, by its calendar or else by any."""
    reach = "case when r.interval_s is null then e.seconds else r.seconds end"
    return f"({reach} is null or c.{edge} > %(now)s - make_interval(secs => {reach}))"


_DUE_GAPS = f"""{_REACHES},
due as materialized (
  select c.symbol_id, c.interval_s, c.session, c.absent, c.attempts, c.failures, c.next_attempt_at,
         c.next_attempt_at + u.head_starts * %(head_start)s as turn
{_FOLLOWED}
     and c.absent > 0
     and c.next_attempt_at <= %(now)s
     and case c.interval_s when 86400 then c.closes_at
              else least(c.opens_at + make_interval(secs => c.interval_s), c.closes_at)
         end <= %(now)s - %(settle)s
     and {_within_reach("closes_at")}
   order by c.next_attempt_at, u.head_starts, c.symbol_id, c.interval_s, c.session
   limit %(considered)s
),
{_NUMBERED},
gaps as (
  select symbol_id, interval_s, min(session) as first, max(session) as last, count(*) as sessions, sum(absent) as absent,
         max(attempts) as attempts, max(failures) as failures, min(next_attempt_at) as due_since, min(turn) as turn
    from numbered
   group by symbol_id, interval_s, stretch
   order by min(turn), symbol_id, interval_s, min(session)
   limit %(limit)s
)
select g.symbol_id, u.symbol, u.calendar, g.interval_s, g.first, g.last, g.sessions, g.absent, g.attempts, g.failures, g.due_since
  from gaps g join symbol_universe u using (symbol_id)
 order by g.turn, g.symbol_id, g.interval_s, g.first
"""  # noqa: S608 - pieces of this module; values are bound

# A session whose gap is due is left to its gap: finished sessions are asked for whole, which is the recheck, too. One that only the
# edge of a reach cuts through cannot be confirmed any more.
_DUE_RECHECKS = f"""{_REACHES},
due as materialized (
  select c.symbol_id, c.interval_s, c.session, c.finality, c.recheck_at, c.recheck_at <= %(now)s as is_due,
         c.recheck_at + u.head_starts * %(head_start)s as turn
{_FOLLOWED}
     and c.recheck_at <= %(now)s + %(company)s
     and not coalesce(c.absent > 0 and c.next_attempt_at <= %(now)s, false)
     and {_within_reach("opens_at")}
   order by c.recheck_at, u.head_starts, c.symbol_id, c.interval_s, c.session
   limit %(considered)s
),
{_NUMBERED},
rechecks as (
  select symbol_id, interval_s, min(session) filter (where is_due) as first, max(session) filter (where is_due) as last,
         count(*) filter (where is_due) as sessions, min(finality) as finality, min(recheck_at) as due_since, min(turn) as turn
    from numbered
   group by symbol_id, interval_s, stretch
  having bool_and(is_due) or min(recheck_at) <= %(now)s - %(company)s
   order by min(turn), symbol_id, interval_s, min(session)
   limit %(limit)s
)
select k.symbol_id, u.symbol, u.calendar, k.interval_s, k.first, k.last, k.sessions, k.finality, k.due_since
  from rechecks k join symbol_universe u using (symbol_id)
 order by k.turn, k.symbol_id, k.interval_s, k.first
"""  # noqa: S608 - as above

_FAILING = """
select distinct symbol_id from coverage
 where symbol_id = any(%(symbol_ids)s::int4[]) and interval_s = %(interval_s)s and session between %(first)s and %(last)s
   and failures >= %(failures)s and next_attempt_at > %(now)s
"""

_TOTALS = """
select symbol_id, count(*), sum(expected), sum(bit_count(present)), sum(bit_count(confirmed_empty)), sum(absent),
       coalesce(sum(bit_count(halted)), 0)
  from coverage
 where interval_s = %(interval_s)s and (%(symbol_ids)s::int4[] is null or symbol_id = any(%(symbol_ids)s::int4[]))
   and session between coalesce(%(first)s, '-infinity'::date) and coalesce(%(last)s, 'infinity'::date)
 group by symbol_id
 order by symbol_id
"""


@dataclass(frozen=True, slots=True)
class DueGap:
    """Sessions of one symbol and interval, next to each other in the ledger, that lack bars and are due to be asked for.

    ``first`` and ``last`` are included. ``sessions`` and ``absent`` count sessions and bars. ``attempts`` and ``failures`` are the
    most of any session. ``due_since`` is the oldest planned attempt: it changes whenever the gap is pushed back, so together with
    symbol, interval and dates it names one attempt.
    """

    symbol_id: int
    symbol: str
    calendar: str
    interval: Interval
    first: date
    last: date
    sessions: int
    absent: int
    attempts: int
    failures: int
    due_since: datetime


@dataclass(frozen=True, slots=True)
class DueRecheck:
    """Sessions of one symbol and interval, next to each other in the ledger, that are to be asked for again to become surer.

    ``first`` and ``last`` are included; between them may be one or two that are not due themselves. ``sessions`` counts those that
    are. ``finality`` is the least of any. ``due_since`` names one round, as in ``DueGap``.
    """

    symbol_id: int
    symbol: str
    calendar: str
    interval: Interval
    first: date
    last: date
    sessions: int
    finality: Finality
    due_since: datetime


@dataclass(frozen=True, slots=True)
class LedgerTotals:
    """Bars of one symbol in the sessions that the ledger knows. ``expected`` is the sum of the last four."""

    symbol_id: int
    sessions: int
    expected: int
    present: int
    confirmed_empty: int
    absent: int
    halted: int


# Given up: bars are absent and no request is planned. A running session always has one planned.
_RETRY = """
update coverage
   set attempts = 0, failures = 0, next_attempt_at = %(now)s
 where absent > 0 and next_attempt_at is null and (attempts > 0 or failures > 0)
   and (%(symbol_ids)s::int4[] is null or symbol_id = any(%(symbol_ids)s::int4[]))
   and (%(intervals)s::int4[] is null or interval_s = any(%(intervals)s::int4[]))
   and session between coalesce(%(first)s, '-infinity'::date) and coalesce(%(last)s, 'infinity'::date)
"""


class Ledger:
    """What we have and what we lack, session by session."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def rows(self, symbol_ids: Sequence[int], interval: Interval, first: date, last: date) -> list[LedgerRow]:
        """The rows of these symbols from session ``first`` to ``last``, both included, sorted by symbol_id and session."""
        parameters = {"symbol_ids": list(symbol_ids), "interval_s": interval.seconds, "first": first, "last": last}
        with self._engine.connect() as connection:
            return [ledger_row(interval, record) for record in connection.exec_driver_sql(_ROWS, parameters)]

    def open_sessions(self, rows: Sequence[LedgerRow], *, known_at: datetime | None = None) -> int:
        """Insert the rows that the ledger lacks, and return how many that were; the others stay as they are, untouched.

        ``known_at`` stands in for rows that have none of their own (None: the database's clock).
        """
        # Everybody inserts in this order, so two that open the same sessions wait for each other and never deadlock.
        ordered = sorted(rows, key=lambda row: (row.symbol_id, row.interval.seconds, row.session))
        opened = 0
        with self._engine.begin() as connection:
            for at in range(0, len(ordered), ROWS_AT_ONCE):
                some = ordered[at : at + ROWS_AT_ONCE]
                parameters = {
                    "known_at": known_at,
                    "symbol_id": [r.symbol_id for r in some],
                    "interval_s": [r.interval.seconds for r in some],
                    "session": [r.session for r in some],
                    "opens_at": [r.opens_at for r in some],
                    "closes_at": [r.closes_at for r in some],
                    "present": [bits(r.present) for r in some],
                    "confirmed_empty": [bits(r.confirmed_empty) for r in some],
                    "attempts": [r.attempts for r in some],
                    "failures": [r.failures for r in some],
                    "last_attempt_at": [r.last_attempt_at for r in some],
                    "next_attempt_at": [r.next_attempt_at for r in some],
                    "row_known_at": [r.known_at for r in some],
                    "digest": [r.digest for r in some],
                    "halted": [None if r.halted is None else bits(r.halted) for r in some],
                    "finality": [int(r.finality) for r in some],
                    "recheck_at": [r.recheck_at for r in some],
                }
                opened += connection.exec_driver_sql(_OPEN, parameters).rowcount
        return opened

    def record_failures(
        self,
        failed: Collection[tuple[int, date]],
        interval: Interval,
        *,
        fetches: Sequence[tuple[int | None, Fetch]],
        now: datetime,
        policy: HealingPolicy,
        unbelieved: Collection[tuple[int, date]] = (),
        waiting: Mapping[tuple[int, date], datetime] | None = None,
        run_id: str | None = None,
    ) -> int:
        """Record requests without a usable answer, and push back the (symbol_id, session)s nobody answered; how many those are.

        ``failed`` had only failures; ``unbelieved`` had an answer that is not taken for one, which is a failure too; for
        ``waiting`` nobody could be asked, and nobody can before the instant they map to. No verdict changes. Sessions that lack
        nothing and are final, or that the ledger does not know, have nothing to push back.
        """
        waiting = waiting or {}
        keys = sorted({*failed, *unbelieved, *waiting})
        with transaction(self._engine) as cursor:
            lock_series(cursor, {symbol_id for symbol_id, _ in keys}, interval.seconds)
            record_fetches(cursor, [fetch for _, fetch in fetches], [symbol_id for symbol_id, _ in fetches], run_id=run_id)
            rows = read_ledger(cursor, interval, keys)
            refused = set(failed)
            pushed_back = [
                postponed(row, until=waiting[key])
                if key in waiting
                else (after_failure if key in refused else held_back)(row, now=now, policy=policy)
                for key, row in rows.items()
                if row.recheck_at is not None or not row.resolved.all()
            ]
            cursor.execute(
                _PUSH_BACK,
                {
                    "interval_s": interval.seconds,
                    "symbol_id": [r.symbol_id for r in pushed_back],
                    "session": [r.session for r in pushed_back],
                    # int2 in the table; 20 years of daily failures are 7,300.
                    "failures": [min(r.failures, 32_767) for r in pushed_back],
                    "last_attempt_at": [r.last_attempt_at for r in pushed_back],
                    "next_attempt_at": [r.next_attempt_at for r in pushed_back],
                    "recheck_at": [r.recheck_at for r in pushed_back],
                },
            )
        return len(pushed_back)

    def due_gaps(
        self,
        now: datetime,
        *,
        limit: int,
        settle_seconds: int = 0,
        intervals: Sequence[Interval] | None = None,
        reach_seconds: Mapping[tuple[Interval, str | None], int | None] | None = None,
    ) -> list[DueGap]:
        """At most ``limit`` gaps whose next attempt is due, in the order in which they should be served.

        The order is by how long a gap has been due, where each tier below T0 counts as due ``HEAD_START_SECONDS`` later: among
        gaps of one age T0 goes first, and no flood of newer gaps ever holds an older one back for longer than that. A gap that was
        served and pushed back goes to the end. So each of n gaps has its turn within ceil(n / limit) questions.

        Left out are deactivated symbols, sessions in which the symbol was not listed, sessions whose first bar is not due yet
        (``settle_seconds`` after its end), and those that closed more than ``reach_seconds`` ago, by interval and calendar (None:
        every other): nobody can be asked for them. ``intervals`` None means all.
        """
        parameters = {
            **_what_is_due(now, limit=limit, intervals=intervals, reach_seconds=reach_seconds),
            "settle": timedelta(seconds=settle_seconds),
        }
        with self._engine.connect() as connection:
            return [
                DueGap(symbol_id, symbol, calendar, Interval.of_seconds(interval_s), *rest)
                for symbol_id, symbol, calendar, interval_s, *rest in connection.exec_driver_sql(_DUE_GAPS, parameters)
            ]

    def due_rechecks(
        self,
        now: datetime,
        *,
        limit: int,
        intervals: Sequence[Interval] | None = None,
        reach_seconds: Mapping[tuple[Interval, str | None], int | None] | None = None,
    ) -> list[DueRecheck]:
        """At most ``limit`` stretches of sessions that are to be asked for again, in the order in which they should be served.

        The order, and what is left out, are those of ``due_gaps``. A stretch waits up to ``COMPANY_SECONDS`` for sessions next to
        it that will be due by then: the answer about one is the answer about all. Sessions with a due gap are left to it.
        """
        parameters = {
            **_what_is_due(now, limit=limit, intervals=intervals, reach_seconds=reach_seconds),
            "company": timedelta(seconds=COMPANY_SECONDS),
        }
        with self._engine.connect() as connection:
            return [
                DueRecheck(
                    symbol_id=row.symbol_id,
                    symbol=row.symbol,
                    calendar=row.calendar,
                    interval=Interval.of_seconds(row.interval_s),
                    first=row.first,
                    last=row.last,
                    sessions=row.sessions,
                    finality=Finality(row.finality),
                    due_since=row.due_since,
                )
                for row in connection.exec_driver_sql(_DUE_RECHECKS, parameters)
            ]

    def retry(
        self,
        now: datetime,
        *,
        symbol_ids: Sequence[int] | None = None,
        intervals: Sequence[Interval] | None = None,
        first: date | None = None,
        last: date | None = None,
    ) -> int:
        """Ask again for what was given up: attempts and failures count anew, the next is due ``now``; how many sessions that are.

        The way back after a provider was added or repaired. Sessions that lack nothing, or that have an attempt planned, stay as
        they are. None for no bound. Repeating it before anything was asked changes nothing.
        """
        parameters = {
            "now": now,
            "symbol_ids": None if symbol_ids is None else list(symbol_ids),
            "intervals": None if intervals is None else [interval.seconds for interval in intervals],
            "first": first,
            "last": last,
        }
        with self._engine.begin() as connection:
            return connection.exec_driver_sql(_RETRY, parameters).rowcount

    def failing(
        self, symbol_ids: Sequence[int], interval: Interval, first: date, last: date, *, failures: int, now: datetime
    ) -> frozenset[int]:
        """Those of the symbols with a session from ``first`` to ``last`` that failed so often in a row and is not due again yet."""
        parameters = {
            "symbol_ids": list(symbol_ids),
            "interval_s": interval.seconds,
            "first": first,
            "last": last,
            "failures": failures,
            "now": now,
        }
        with self._engine.connect() as connection:
            return frozenset(symbol_id for (symbol_id,) in connection.exec_driver_sql(_FAILING, parameters))

    def totals(
        self,
        interval: Interval,
        *,
        symbol_ids: Sequence[int] | None = None,
        first: date | None = None,
        last: date | None = None,
    ) -> list[LedgerTotals]:
        """Sums over the sessions from ``first`` to ``last`` that the ledger knows, by symbol; None for no bound."""
        parameters = {
            "interval_s": interval.seconds,
            "symbol_ids": None if symbol_ids is None else list(symbol_ids),
            "first": first,
            "last": last,
        }
        with self._engine.connect() as connection:
            return [LedgerTotals(*map(int, row)) for row in connection.exec_driver_sql(_TOTALS, parameters)]


def _what_is_due(
    now: datetime,
    *,
    limit: int,
    intervals: Sequence[Interval] | None,
    reach_seconds: Mapping[tuple[Interval, str | None], int | None] | None,
) -> dict[str, object]:
    """What the two questions after due sessions share."""
    if limit < 1:
        raise InvalidInputError(f"a limit of {limit} gaps: expected 1 or more")
    reach = [(interval.seconds, calendar, seconds) for (interval, calendar), seconds in (reach_seconds or {}).items()]
    return {
        "now": now,
        "limit": limit,
        "intervals": None if intervals is None else [interval.seconds for interval in intervals],
        "reach_intervals": [interval_s for interval_s, _, _ in reach],
        "reach_calendars": [calendar for _, calendar, _ in reach],
        "reach_seconds": [seconds for _, _, seconds in reach],
        "head_start": timedelta(seconds=HEAD_START_SECONDS),
        "considered": max(ROWS_CONSIDERED, limit),
        "longest_break": LONGEST_BREAK_DAYS,
    }
