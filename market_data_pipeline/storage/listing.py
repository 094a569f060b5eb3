"""Listings in Postgres: what the ledger and the fetches say of an instrument's first and last session, and what was found.

The rules are in ``domain.listing``. Nothing here is on the way of a bar: it is read once a day, over the last fetches and the
sessions of the few instruments in question.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from market_data_pipeline.domain.candles import FETCHED_INTERVALS, Interval
from market_data_pipeline.domain.listing import BarrenSession, ListingFinding, ListingKind, Reply, contradicts
from market_data_pipeline.storage.bulk import lock_series, transaction

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date, datetime, timedelta

    from sqlalchemy import Engine

_SECONDS = [interval.seconds for interval in FETCHED_INTERVALS]
_ALL_SECONDS = [interval.seconds for interval in Interval]
# Fetches have no index by time, but keys in its order: some weeks of 8,000 symbols.
_FETCHES_CONSIDERED = 1_000_000
# Sessions nearest to the bars that are read on either side.
_SESSIONS_CONSIDERED = 60

_LATELY = """
lately as materialized (
  select provider, symbol_id, started_at, outcome, rows
    from fetches
   where fetch_id > (select max(fetch_id) from fetches) - %(considered)s and started_at > %(since)s
     and interval_s is not null and symbol_id is not null
)"""

# Whom to look at: without a single bar in some session that was asked for, or refused lately.
_CANDIDATES = f"""
with {_LATELY}
select symbol_id
  from (select symbol_id from lately where outcome in ('barren', 'unknown_symbol')
        union
        select symbol_id from coverage
         where absent > 0 and absent = expected and attempts + failures >= %(asked)s and interval_s = any(%(intervals)s)
        union
        select symbol_id from verdict_evidence where decided_at > %(since)s and bit_count(slots) = length(slots)) c
  join symbol_universe u using (symbol_id)
 where u.active and not u.is_unknown
 order by symbol_id
"""  # noqa: S608 - pieces of this module; values are bound

_EXTENTS = """
select symbol_id, interval_s, min(session), max(session), max(closes_at)
  from coverage
 where symbol_id = any(%(symbol_ids)s::int4[]) and interval_s = any(%(intervals)s) and bit_count(present) > 0
 group by symbol_id, interval_s
"""

# A session in which trading was suspended says nothing of a listing.
_BARREN = """
with extents as (
  select k.symbol_id, e.first, e.last
    from unnest(%(symbol_ids)s::int4[]) as k (symbol_id)
    left join (select symbol_id, min(session) as first, max(session) as last
                 from coverage
                where symbol_id = any(%(symbol_ids)s::int4[]) and interval_s = any(%(intervals)s) and bit_count(present) > 0
                group by symbol_id) e using (symbol_id)
),
sides as (
  select c.symbol_id, c.interval_s, c.session, c.attempts, c.failures, c.next_attempt_at is null as is_given_up,
         c.absent = 0 as is_decided, coalesce(c.session < e.first, false) as is_leading
    from extents e join coverage c using (symbol_id)
   where c.interval_s = any(%(intervals)s) and c.halted is null and c.closes_at <= %(now)s
     and (e.first is null or c.session < e.first or c.session > e.last)
),
placed as (
  select *, row_number() over (partition by symbol_id, interval_s, is_leading
                               order by case when is_leading then '2000-01-01'::date - session else session - '2000-01-01'::date end
                              ) as place
    from sides
)
select symbol_id, is_leading, interval_s, session, attempts, failures, is_given_up, is_decided
  from placed where place <= %(considered)s
 order by symbol_id, session
"""

_ANSWERS = f"""
with {_LATELY}
select symbol_id, provider, started_at, case outcome when 'ok' then 'bars' when 'barren' then 'nothing' else 'not_found' end
  from lately
 where symbol_id = any(%(symbol_ids)s::int4[]) and (outcome in ('barren', 'unknown_symbol') or outcome = 'ok' and rows > 0)
 order by started_at
"""  # noqa: S608 - as above

# Others are those of whom the provider has had bars: who never existed says nothing of its health. What we refused to send, and
# what our budget did, is no answer. Five hundred, the most followed, tell how a provider did as well as eight thousand.
_COMPANY = f"""
with {_LATELY},
followed as (select symbol_id from symbol_universe where active order by tier, symbol_id limit 500),
told as (
  select provider, symbol_id, started_at, outcome = 'ok' and rows > 0 as has_bars
    from lately
   where (outcome in ('barren', 'unknown_symbol', 'transient', 'malformed', 'stale', 'failed') or outcome = 'ok' and rows > 0)
     and (symbol_id in (select symbol_id from followed) or symbol_id = any(%(symbol_ids)s::int4[]))
),
others as (select distinct provider, symbol_id from told where has_bars),
counted as (
  select provider, symbol_id, date_bin(%(grain)s, started_at, 'epoch'::timestamptz) as began, bool_or(has_bars) as has_bars
    from told join others using (provider, symbol_id)
   group by 1, 2, 3
)
select provider, began, count(*) filter (where has_bars), count(*) filter (where not has_bars),
       coalesce(array_agg(symbol_id) filter (where not has_bars and symbol_id = any(%(symbol_ids)s::int4[])), '{{}}')
  from counted group by provider, began
"""  # noqa: S608 - as above

# Of other symbols of the calendar, the first fifty will do: whether the exchange traded and the provider told is the same for all.
_OTHERS_TRADED = """
select bool_or(bit_count(c.present) > 0)
  from (select o.symbol_id
          from symbol_universe o join symbol_universe u on u.symbol_id = %(symbol_id)s and o.calendar = u.calendar
         where o.active and o.symbol_id <> u.symbol_id
         order by o.symbol_id limit 50) k
  join coverage c using (symbol_id)
 where c.interval_s = any(%(intervals)s) and c.session = %(session)s
"""

_CURRENT = """
select e.symbol_id, e.kind, e.session, e.providers, e.detail, e.known_from
  from listing_evidence e
 where e.known_to is null and (%(symbol_ids)s::int4[] is null or e.symbol_id = any(%(symbol_ids)s::int4[]))
 order by e.symbol_id, e.kind
"""

_HISTORY = """
select kind, session, providers, detail, known_from, known_to
  from listing_evidence where symbol_id = %(symbol_id)s
 order by known_from, kind
"""

_NEWEST_FETCHES = """
select k.symbol_id, (select max(f.started_at) from fetches f where f.symbol_id = k.symbol_id and f.interval_s is not null)
  from unnest(%(symbol_ids)s::int4[]) as k (symbol_id)
"""

_FIND = """
insert into listing_evidence (symbol_id, kind, session, providers, detail, run_id, known_from)
values (%(symbol_id)s, %(kind)s, %(session)s, %(providers)s, %(detail)s, %(run_id)s,
        greatest(coalesce(%(known_at)s, clock_timestamp()),
                 (select max(known_to) from listing_evidence where symbol_id = %(symbol_id)s and kind = %(kind)s)))
on conflict do nothing
"""

_TAKE_BACK = """
update listing_evidence
   set known_to = greatest(coalesce(%(known_at)s, clock_timestamp()), known_from + interval '1 microsecond')
 where symbol_id = %(symbol_id)s and kind = %(kind)s and known_to is null
"""

_SET_LISTING = """
update symbol_universe u
   set listed_from = (select session from listing_evidence e
                       where e.symbol_id = u.symbol_id and e.kind = 'first_session' and e.known_to is null),
       listed_to = (select session from listing_evidence e
                     where e.symbol_id = u.symbol_id and e.kind = 'last_session' and e.known_to is null),
       is_unknown = exists (select from listing_evidence e
                             where e.symbol_id = u.symbol_id and e.kind = 'never_listed' and e.known_to is null)
 where u.symbol_id = %(symbol_id)s
"""

# What was taken for sessions without a trade were no sessions of it: their verdict follows from the listing. The evidence stays.
_UNDECIDE = """
update coverage c
   set confirmed_empty = (c.present # c.present)
  from symbol_universe u
 where u.symbol_id = %(symbol_id)s and c.symbol_id = u.symbol_id and bit_count(c.present) = 0 and bit_count(c.confirmed_empty) > 0
   and (u.is_unknown or c.session < u.listed_from or c.session > u.listed_to)
"""

# Whoever is gone confirms nothing any more: what has failed since stays as sure as it is.
_END_RECHECKS = """
update coverage set recheck_at = null where symbol_id = %(symbol_id)s and recheck_at is not null and failures > 0
"""

# Sessions that it has again begin anew, as if nobody had ever asked.
_REOPEN = """
update coverage c
   set attempts = 0, failures = 0, next_attempt_at = %(now)s
  from symbol_universe u
 where u.symbol_id = %(symbol_id)s and c.symbol_id = u.symbol_id and c.interval_s = any(%(intervals)s)
   and bit_count(c.present) = 0 and c.absent > 0 and not u.is_unknown
   and (u.listed_from is null or c.session >= u.listed_from) and (u.listed_to is null or c.session <= u.listed_to)
   and case %(kind)s when 'first_session' then c.session < %(session)s
                     when 'last_session' then c.session > %(session)s
                     else true end
"""


@dataclass(frozen=True, slots=True)
class Extent:
    """Which sessions of an instrument have bars, by interval: first and last; and when the last of all closed."""

    firsts: Mapping[Interval, date]
    lasts: Mapping[Interval, date]
    last_closed_at: datetime


@dataclass(frozen=True, slots=True)
class StoredFinding:
    """A finding as it is known: in [``known_from``, ``known_to``), None while it holds."""

    symbol_id: int
    finding: ListingFinding
    known_from: datetime
    known_to: datetime | None = None


@dataclass(frozen=True, slots=True)
class Company:
    """Of the other symbols a provider was asked for in a stretch of time: with bars, and without. ``without``: who of ours."""

    with_bars: int
    bare: int
    without: frozenset[int]


class ListingStore:
    """The evidence for listings, and what was found from it. Findings are taken back, never deleted."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def candidates(self, *, since: datetime, asked: int) -> list[int]:
        """Instruments worth a look: refused since then, or with a session without a bar that was asked for ``asked`` times."""
        parameters = {"considered": _FETCHES_CONSIDERED, "since": since, "asked": asked, "intervals": _SECONDS}
        with self._engine.connect() as connection:
            return list(connection.exec_driver_sql(_CANDIDATES, parameters).scalars())

    def extents(self, symbol_ids: Sequence[int]) -> dict[int, Extent]:
        """Where the bars of these instruments begin and end; instruments without any are not in it."""
        found: defaultdict[int, list[tuple[Interval, date, date, datetime]]] = defaultdict(list)
        parameters = {"symbol_ids": list(symbol_ids), "intervals": _SECONDS}
        with self._engine.connect() as connection:
            for symbol_id, interval_s, first, last, closed_at in connection.exec_driver_sql(_EXTENTS, parameters):
                found[symbol_id].append((Interval.of_seconds(interval_s), first, last, closed_at))
        return {
            symbol_id: Extent(
                {interval: first for interval, first, _, _ in rows},
                {interval: last for interval, _, last, _ in rows},
                max(closed_at for *_, closed_at in rows),
            )
            for symbol_id, rows in found.items()
        }

    def barren(self, symbol_ids: Sequence[int], *, now: datetime) -> dict[int, tuple[list[BarrenSession], list[BarrenSession]]]:
        """By instrument: the closed sessions without a bar before all its bars, and those after them (all, where it has none)."""
        found: defaultdict[int, tuple[list[BarrenSession], list[BarrenSession]]] = defaultdict(lambda: ([], []))
        parameters = {"symbol_ids": list(symbol_ids), "intervals": _SECONDS, "now": now, "considered": _SESSIONS_CONSIDERED}
        with self._engine.connect() as connection:
            for symbol_id, is_leading, interval_s, *session in connection.exec_driver_sql(_BARREN, parameters):
                found[symbol_id][0 if is_leading else 1].append(BarrenSession(Interval.of_seconds(interval_s), *session))
        return found

    def answers(self, symbol_ids: Sequence[int], *, since: datetime) -> dict[int, list[tuple[str, datetime, Reply]]]:
        """By instrument, the oldest first: who answered about it, when, and what. Failures are no answers."""
        found: defaultdict[int, list[tuple[str, datetime, Reply]]] = defaultdict(list)
        parameters = {"considered": _FETCHES_CONSIDERED, "since": since, "symbol_ids": list(symbol_ids)}
        with self._engine.connect() as connection:
            for symbol_id, provider, at, reply in connection.exec_driver_sql(_ANSWERS, parameters):
                found[symbol_id].append((provider, at, Reply(reply)))
        return found

    def company(self, symbol_ids: Sequence[int], *, since: datetime, grain: timedelta) -> dict[tuple[str, datetime], Company]:
        """How each provider did, by stretches of ``grain`` since the epoch: over the symbols of whom it has had bars since then."""
        parameters = {"considered": _FETCHES_CONSIDERED, "since": since, "grain": grain, "symbol_ids": list(symbol_ids)}
        with self._engine.connect() as connection:
            return {
                (provider, began): Company(with_bars, bare, frozenset(without))
                for provider, began, with_bars, bare, without in connection.exec_driver_sql(_COMPANY, parameters)
            }

    def others_traded(self, symbol_id: int, session: date) -> bool | None:
        """Whether others of its calendar have bars in ``session``; None where the ledger knows the session of nobody else."""
        parameters = {"symbol_id": symbol_id, "session": session, "intervals": _SECONDS}
        with self._engine.connect() as connection:
            traded: bool | None = connection.exec_driver_sql(_OTHERS_TRADED, parameters).scalar()
        return traded

    def current(self, symbol_ids: Sequence[int] | None = None) -> list[StoredFinding]:
        """The findings that hold, of these instruments or of all."""
        parameters = {"symbol_ids": None if symbol_ids is None else list(symbol_ids)}
        with self._engine.connect() as connection:
            return [
                StoredFinding(symbol_id, ListingFinding(ListingKind(kind), session, tuple(providers), detail), known_from)
                for symbol_id, kind, session, providers, detail, known_from in connection.exec_driver_sql(_CURRENT, parameters)
            ]

    def history(self, symbol_id: int) -> list[StoredFinding]:
        """Everything ever found of one instrument, the oldest first."""
        with self._engine.connect() as connection:
            return [
                StoredFinding(symbol_id, ListingFinding(ListingKind(kind), session, tuple(providers), detail), known_from, known_to)
                for kind, session, providers, detail, known_from, known_to in connection.exec_driver_sql(
                    _HISTORY, {"symbol_id": symbol_id}
                )
            ]

    def newest_fetches(self, symbol_ids: Sequence[int]) -> dict[int, datetime | None]:
        """When somebody was last asked for bars of each."""
        with self._engine.connect() as connection:
            rows = connection.exec_driver_sql(_NEWEST_FETCHES, {"symbol_ids": list(symbol_ids)})
            return {symbol_id: at for symbol_id, at in rows}  # noqa: C416 - rows are not pairs to a type checker

    def record(
        self,
        symbol_id: int,
        findings: Sequence[ListingFinding],
        *,
        known_at: datetime | None = None,
        run_id: str | None = None,
    ) -> list[ListingFinding]:
        """Store what was found of one instrument; those that were not known. ``known_at`` None: the database's clock.

        From then on its sessions outside are not listed, and nobody is asked for them. Repeating it changes nothing.
        """
        new = []
        with transaction(self._engine) as cursor:
            lock_series(cursor, [symbol_id], *_ALL_SECONDS)
            for finding in findings:
                cursor.execute(
                    _FIND,
                    {
                        "symbol_id": symbol_id,
                        "kind": str(finding.kind),
                        "session": finding.session,
                        "providers": list(finding.providers),
                        "detail": finding.detail,
                        "run_id": run_id,
                        "known_at": known_at,
                    },
                )
                if cursor.rowcount:
                    new.append(finding)
            if new:
                cursor.execute(_SET_LISTING, {"symbol_id": symbol_id})
                cursor.execute(_UNDECIDE, {"symbol_id": symbol_id})
            if any(finding.kind is not ListingKind.FIRST_SESSION for finding in new):
                cursor.execute(_END_RECHECKS, {"symbol_id": symbol_id})
        return new

    def take_back(self, found: StoredFinding, *, now: datetime, known_at: datetime | None = None) -> None:
        """A finding was wrong: it held until now, and what it kept from being asked for is due."""
        finding = found.finding
        told = {"symbol_id": found.symbol_id, "kind": str(finding.kind), "session": finding.session}
        with transaction(self._engine) as cursor:
            lock_series(cursor, [found.symbol_id], *_ALL_SECONDS)
            cursor.execute(_TAKE_BACK, {**told, "known_at": known_at})
            cursor.execute(_SET_LISTING, told)
            cursor.execute(_REOPEN, {**told, "now": now, "intervals": _SECONDS})

    def contradicted(self) -> list[StoredFinding]:
        """The findings that bars stored since say are wrong."""
        current = self.current()
        extents = self.extents(sorted({found.symbol_id for found in current}))
        return [
            found
            for found in current
            if (extent := extents.get(found.symbol_id)) is not None
            and contradicts(
                found.finding.kind,
                found.finding.session,
                first=min(extent.firsts.values()),
                last=max(extent.lasts.values()),
            )
        ]
