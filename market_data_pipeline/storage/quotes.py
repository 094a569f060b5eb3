"""Quotes in Postgres: written where they say something new, read back as known at any instant. Judged elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from market_data_pipeline.domain.capabilities import QUOTES_L1, Feed
from market_data_pipeline.domain.ports import Quote
from market_data_pipeline.domain.snapshots import Flag
from market_data_pipeline.storage.bulk import database_time, lock_series, record_fetches, transaction
from market_data_pipeline.storage.refused import keep_refused

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime, timedelta

    from sqlalchemy import Engine, RowMapping

    from market_data_pipeline.domain.snapshots import JudgedQuotes

# Advisory locks are keyed by (interval, symbol); what is no bar has numbers below all intervals.
QUOTES_LOCK = -1

_FIELDS = (
    "quoted_at", "bid", "ask", "bid_size", "ask_size", "last", "last_at", "volume", "previous_close", "currency", "market_state",
    "delay_seconds",
)  # fmt: skip
_VALUES, _TOLD, _STORED = (", ".join(alias + name for name in _FIELDS) for alias in ("", "t.", "q."))

# flags are left out of the comparison: that a quote has grown old since is to be seen from its stamps.
_STORE = f"""
insert into quotes_l1 (symbol_id, provider, known_from, {_VALUES}, flags, feed, fetch_id)
select t.symbol_id, %(provider)s, greatest(%(known_at)s, n.known_from + interval '1 microsecond'), {_TOLD}, t.flags, %(feed)s,
       %(fetch_id)s
  from (select * from unnest(%(symbol_ids)s::int4[], %(quoted_at)s::timestamptz[], %(bid)s::float8[], %(ask)s::float8[],
                             %(bid_size)s::float8[], %(ask_size)s::float8[], %(last)s::float8[], %(last_at)s::timestamptz[],
                             %(volume)s::float8[], %(previous_close)s::float8[], %(currency)s::text[], %(market_state)s::text[],
                             %(delay_seconds)s::int4[], %(flags)s::int2[])
               as k (symbol_id, {_VALUES}, flags)) t
  left join lateral (
    select q.known_from, row({_STORED}) as said
      from quotes_l1 q
     where q.symbol_id = t.symbol_id and q.provider = %(provider)s
     order by q.known_from desc limit 1) n on true
 where n.known_from is null or n.said is distinct from row({_TOLD})
returning known_from
"""  # noqa: S608 - column names of this module

# greatest: answers may be stored in another order than they came.
_CONFIRM = """
insert into quotes_confirmed as c (symbol_id, provider, confirmed_at)
select distinct symbol_id, %(provider)s, %(known_at)s::timestamptz from unnest(%(symbol_ids)s::int4[]) as k (symbol_id)
on conflict (symbol_id, provider) do update set confirmed_at = greatest(c.confirmed_at, excluded.confirmed_at)
"""

_CONFIRMED_WITHIN = """
select distinct symbol_id from quotes_confirmed
 where symbol_id = any(%(symbol_ids)s::int4[])
   and confirmed_at > coalesce(%(now)s::timestamptz, clock_timestamp()) - %(within)s::interval
   and confirmed_at < coalesce(%(now)s::timestamptz, clock_timestamp()) + %(within)s::interval
"""

_LATEST = f"""
select s.symbol_id, u.symbol, q.provider, q.known_from, q.flags, q.feed, q.fetch_id, {_STORED},
       case when %(as_of)s::timestamptz is null then c.confirmed_at end as confirmed_at
  from unnest(%(symbol_ids)s::int4[]) with ordinality as s (symbol_id, place)
  join symbol_universe u using (symbol_id)
 cross join lateral (
    select * from quotes_l1 q
     where q.symbol_id = s.symbol_id and q.provider = coalesce(%(provider)s, q.provider)
       and q.known_from <= coalesce(%(as_of)s, 'infinity'::timestamptz)
     order by q.known_from desc limit 1) q
  left join quotes_confirmed c on c.symbol_id = s.symbol_id and c.provider = q.provider
 order by s.place
"""  # noqa: S608 - as above

_HISTORY = f"""
select q.symbol_id, u.symbol, q.provider, q.known_from, q.flags, q.feed, q.fetch_id, {_STORED}
  from quotes_l1 q join symbol_universe u on u.symbol_id = q.symbol_id
 where q.symbol_id = %(symbol_id)s and q.known_from >= %(start)s and q.known_from < %(end)s
   and q.provider = coalesce(%(provider)s, q.provider)
 order by q.known_from
"""  # noqa: S608 - as above


@dataclass(frozen=True, slots=True)
class QuotesWritten:
    """What one write changed. ``unchanged`` quotes are what their provider said last already: nothing was written for them."""

    fetch_id: int
    inserted: int
    unchanged: int
    refused: int
    known_at: datetime


@dataclass(frozen=True, slots=True)
class StoredQuote:
    """A quote, who said so, and from when on we knew it. ``quote.symbol`` is our symbol, not the provider's name for it.

    ``confirmed_at``: when its provider last said the same; None of a quote that is read as of an earlier time.
    """

    symbol_id: int
    provider: str
    quote: Quote
    feed: Feed
    flags: Flag
    known_from: datetime
    fetch_id: int
    confirmed_at: datetime | None = None


class QuoteStore:
    """Quotes, written and read. Instances may be shared by threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def record(
        self,
        judged: JudgedQuotes,
        symbol_ids: Mapping[str, int],
        *,
        feed: Feed = Feed.CONSOLIDATED,
        known_at: datetime | None = None,
        run_id: str | None = None,
    ) -> QuotesWritten:
        """Store one answer in one transaction: its fetch, what is new in its quotes, and what was refused.

        ``symbol_ids``: by the provider's names. ``feed``: whose offers they are. ``known_at``: when we learned it, None for the
        database's clock; it is raised where needed to be later than what we knew. The same answer again is recorded as a fetch, and
        confirms its quotes; it changes nothing else.
        """
        provider = judged.fetch.provider
        ids = [symbol_ids[quote.symbol] for quote, _ in judged.quotes]
        with transaction(self._engine) as cursor:
            lock_series(cursor, ids, QUOTES_LOCK)
            learned_at = known_at or database_time(cursor)
            alone = ids[0] if len(ids) == 1 else None
            (fetch_id,) = record_fetches(cursor, [judged.fetch], [alone], run_id=run_id)
            inserted: list[datetime] = []
            if ids:
                quotes = [quote for quote, _ in judged.quotes]
                columns = {name: [getattr(quote, name) for quote in quotes] for name in _FIELDS}
                given = {
                    **columns,
                    "provider": provider,
                    "known_at": learned_at,
                    "fetch_id": fetch_id,
                    "symbol_ids": ids,
                    "feed": int(feed),
                    "flags": [int(flags) for _, flags in judged.quotes],
                }
                cursor.execute(_STORE, given)
                inserted = [known_from for (known_from,) in cursor]
                cursor.execute(_CONFIRM, given)
            refused = keep_refused(cursor, judged.refused, provider=provider, capability=QUOTES_L1, fetch_id=fetch_id)
        return QuotesWritten(fetch_id, len(inserted), len(ids) - len(inserted), refused, max([learned_at, *inserted]))

    def latest(self, symbol_ids: Sequence[int], *, provider: str | None = None, as_of: datetime | None = None) -> list[StoredQuote]:
        """The newest quote of each symbol that has one, in the order given; ``as_of``: as known at that instant."""
        given = {"symbol_ids": list(symbol_ids), "provider": provider, "as_of": as_of}
        with self._engine.connect() as connection:
            return [_stored(row) for row in connection.exec_driver_sql(_LATEST, given).mappings()]

    def confirmed_within(self, symbol_ids: Sequence[int], within: timedelta, *, now: datetime | None = None) -> frozenset[int]:
        """Those of the symbols that some provider has quoted in the last ``within``. ``now`` None: by the database's clock."""
        given = {"symbol_ids": list(symbol_ids), "within": within, "now": now}
        with self._engine.connect() as connection:
            return frozenset(connection.exec_driver_sql(_CONFIRMED_WITHIN, given).scalars())

    def history(self, symbol_id: int, start: datetime, end: datetime, *, provider: str | None = None) -> list[StoredQuote]:
        """Every quote of one symbol that we learned in [start, end), in that order."""
        given = {"symbol_id": symbol_id, "start": start, "end": end, "provider": provider}
        with self._engine.connect() as connection:
            return [_stored(row) for row in connection.exec_driver_sql(_HISTORY, given).mappings()]


def _stored(row: RowMapping) -> StoredQuote:
    return StoredQuote(
        symbol_id=row["symbol_id"],
        provider=row["provider"],
        quote=Quote(symbol=row["symbol"], **{name: row[name] for name in _FIELDS}),
        feed=Feed(row["feed"]),
        flags=Flag(row["flags"]),
        known_from=row["known_from"],
        fetch_id=row["fetch_id"],
        confirmed_at=row.get("confirmed_at"),
    )
