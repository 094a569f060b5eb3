"""Suspensions of trading as feeds and operators tell them, and what they make of ledger rows that are there already."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from market_data_pipeline.domain.coverage import Verdict
from market_data_pipeline.domain.evidence import Decision, Rung
from market_data_pipeline.domain.healing import suspended
from market_data_pipeline.storage.audit import record
from market_data_pipeline.storage.bulk import lock_series, read_ledger, transaction, write_ledger
from market_data_pipeline.storage.evidence import Decided, record_evidence

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from sqlalchemy import Engine

    from market_data_pipeline.domain.candles import Bools, Interval
    from market_data_pipeline.domain.halts import Halt

# A halt that is told again with another end is closed and written anew: what was known when stays readable.
_LOAD = """
with told as materialized (
  select * from unnest(%(symbol_ids)s::int4[], %(calendars)s::text[], %(starts_at)s::timestamptz[], %(ends_at)s::timestamptz[],
                       %(reasons)s::text[]) as k (symbol_id, calendar, starts_at, ends_at, reason)
),
compared as (
  select t.*, h.halt_id, greatest(%(now)s, h.known_from + interval '1 microsecond') as replaced_at,
         h.halt_id is not null and h.ends_at is not distinct from t.ends_at and h.reason = t.reason as is_same
    from told t
    left join trading_halts h
      on h.known_to is null and h.source = %(source)s and h.calendar = t.calendar and h.starts_at = t.starts_at
     and h.symbol_id is not distinct from t.symbol_id
),
closed as (
  update trading_halts h set known_to = c.replaced_at from compared c where c.halt_id = h.halt_id and not c.is_same
)
select symbol_id, calendar, starts_at, ends_at, reason, replaced_at, halt_id is not null as is_known
  from compared where not is_same"""

_INSERT = """
insert into trading_halts (symbol_id, calendar, starts_at, ends_at, reason, source, known_from)
select symbol_id, calendar, starts_at, ends_at, reason, %(source)s, coalesce(known_from, %(now)s)
  from unnest(%(symbol_ids)s::int4[], %(calendars)s::text[], %(starts_at)s::timestamptz[], %(ends_at)s::timestamptz[],
              %(reasons)s::text[], %(known_from)s::timestamptz[])
       as k (symbol_id, calendar, starts_at, ends_at, reason, known_from)"""

_BETWEEN = """
select h.symbol_id, u.symbol, h.calendar, h.starts_at, h.ends_at, h.reason, h.source, h.known_from
  from trading_halts h left join symbol_universe u using (symbol_id)
 where h.known_to is null and h.starts_at < %(end)s and (h.ends_at is null or h.ends_at > %(start)s)
   and (%(symbol_ids)s::int4[] is null or h.symbol_id = any(%(symbol_ids)s::int4[])
        or (h.symbol_id is null and h.calendar = any(%(calendars)s::text[])))
 order by h.starts_at, h.halt_id"""


@dataclass(frozen=True, slots=True)
class StoredHalt:
    """A halt as it is known now. ``symbol`` None: everything of ``calendar``. ``ends_at`` None: it lasts."""

    symbol_id: int | None
    symbol: str | None
    calendar: str
    starts_at: datetime
    ends_at: datetime | None
    reason: str
    source: str
    known_from: datetime


@dataclass(frozen=True, slots=True)
class HaltsLoaded:
    """What loading changed; ``unchanged`` halts were known with the same end and reason."""

    added: int
    changed: int
    unchanged: int


class SuspendedSlots(NamedTuple):
    """The slots of a session that lie wholly inside a halt, and the halt in words."""

    symbol_id: int
    session: date
    slots: Bools
    detail: str


class Halts:
    """The halts there are, and the ledger brought in line with them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def load(self, rows: Sequence[Halt], *, source: str, now: datetime, actor: str | None = None) -> HaltsLoaded:
        """Store what ``source`` tells, in one transaction, and note it in the audit log (``actor`` None: the source itself).

        One halt is known by its symbol, calendar and start: told again with another end or reason it takes the place of what was
        told. Repeating it changes nothing. Halts that ``rows`` lacks stay.
        """
        told = {(halt.symbol_id, halt.calendar, halt.starts_at): halt for halt in rows}
        with transaction(self._engine) as cursor:
            parameters = {
                "symbol_ids": [halt.symbol_id for halt in told.values()],
                "calendars": [halt.calendar for halt in told.values()],
                "starts_at": [halt.starts_at for halt in told.values()],
                "ends_at": [halt.ends_at for halt in told.values()],
                "reasons": [halt.reason for halt in told.values()],
                "source": source,
                "now": now,
            }
            cursor.execute("lock table trading_halts in share row exclusive mode")
            cursor.execute(_LOAD, parameters)
            news = cursor.fetchall()
            # A statement of its own: in the first, the row that is replaced would still be there for the unique index.
            cursor.execute(
                _INSERT,
                {
                    "source": source,
                    "now": now,
                    "symbol_ids": [row[0] for row in news],
                    "calendars": [row[1] for row in news],
                    "starts_at": [row[2] for row in news],
                    "ends_at": [row[3] for row in news],
                    "reasons": [row[4] for row in news],
                    "known_from": [row[5] for row in news],
                },
            )
            changed = sum(row[6] for row in news)
            loaded = HaltsLoaded(len(news) - changed, changed, len(told) - len(news))
            counts = {"added": loaded.added, "changed": loaded.changed, "unchanged": loaded.unchanged}
            record(cursor, actor or source, "halts.load", source, counts)
        return loaded

    def between(
        self, symbol_ids: Sequence[int] | None, calendars: Sequence[str], start: datetime, end: datetime
    ) -> list[StoredHalt]:
        """The halts that touch [start, end): of these symbols, and of whole calendars; ``symbol_ids`` None: all there are."""
        parameters = {
            "symbol_ids": None if symbol_ids is None else list(symbol_ids),
            "calendars": list(calendars),
            "start": start,
            "end": end,
        }
        with self._engine.connect() as connection:
            return [StoredHalt(*row) for row in connection.exec_driver_sql(_BETWEEN, parameters)]

    def apply(self, interval: Interval, suspensions: Sequence[SuspendedSlots], *, now: datetime, run_id: str | None = None) -> int:
        """Call the slots without a bar halted, in sessions that were asked for since they were over; how many slots that are.

        What was confirmed empty there was a halt: the evidence for both stays. Present bars stay present. A session that nobody
        has asked for yet is left to its first answer. Repeating it changes nothing.
        """
        with transaction(self._engine) as cursor:
            lock_series(cursor, {one.symbol_id for one in suspensions}, interval.seconds)
            rows = read_ledger(cursor, interval, [(one.symbol_id, one.session) for one in suspensions])
            written, decided = [], []
            for one in suspensions:
                row = rows.get((one.symbol_id, one.session))
                if row is None or row.expected != len(one.slots) or row.last_attempt_at is None:
                    continue
                if row.last_attempt_at < datetime.fromtimestamp(row.closes_at, UTC):
                    continue
                after = suspended(row, one.slots)
                newly = after.halted_slots & ~row.halted_slots
                if newly.any():
                    written.append(after)
                    decision = Decision(Verdict.HALTED, Rung.HALT_FEED, newly, (), row.attempts, one.detail)
                    decided.append(Decided(one.symbol_id, one.session, decision))
            write_ledger(cursor, interval, written)
            record_evidence(cursor, interval, decided, now=now, run_id=run_id)
        return sum(int(one.decision.slots.sum()) for one in decided)
