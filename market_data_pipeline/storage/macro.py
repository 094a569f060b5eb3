"""Economic series in Postgres, twice in time: when a value was published and when we learned it. Nothing is ever overwritten."""

from __future__ import annotations

from binascii import crc32
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from market_data_pipeline.domain.capabilities import MACRO
from market_data_pipeline.domain.macro import LATEST, by_day, publishing_day, with_sightings
from market_data_pipeline.domain.ports import Observation
from market_data_pipeline.storage.bulk import database_time, lock_series, record_fetches, transaction
from market_data_pipeline.storage.refused import keep_refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import date, datetime

    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - a class that psycopg2 spells in lower case
    from sqlalchemy import Engine

    from market_data_pipeline.domain.ports import MacroAnswer

# Below all intervals, and another than those of quotes and chains. Series are text: their lock goes by a number made of it.
MACRO_LOCK = -3
_MICROSECOND = timedelta(microseconds=1)

_HELD = """
select observed_on, value, realtime_start, realtime_end, known_from
  from macro_observations
 where series = %(series)s and provider = %(provider)s and known_to is null and observed_on between %(first)s and %(last)s
"""

_END = """
update macro_observations m set known_to = k.known_to
  from unnest(%(observed_on)s::date[], %(realtime_start)s::date[], %(known_to)s::timestamptz[])
       as k (observed_on, realtime_start, known_to)
 where m.series = %(series)s and m.provider = %(provider)s and m.known_to is null
   and m.observed_on = k.observed_on and m.realtime_start = k.realtime_start
"""

_BEGIN = """
insert into macro_observations (series, provider, observed_on, realtime_start, realtime_end, value, fetch_id, known_from)
select %(series)s, %(provider)s, observed_on, realtime_start, realtime_end, value, %(fetch_id)s, known_from
  from unnest(%(observed_on)s::date[], %(realtime_start)s::date[], %(realtime_end)s::date[], %(value)s::float8[],
              %(known_from)s::timestamptz[])
       as k (observed_on, realtime_start, realtime_end, value, known_from)
"""

_DESCRIBE = """
with told as (select %(title)s::text as title, %(units)s::text as units, %(frequency)s::text as frequency),
held as (
  select m.known_from, (m.title, m.units, m.frequency) is not distinct from (t.title, t.units, t.frequency) as is_same
    from macro_series m, told t where m.series = %(series)s and m.provider = %(provider)s and m.known_to is null),
ended as (
  update macro_series m set known_to = greatest(%(known_at)s, m.known_from + interval '1 microsecond') from held h
   where m.series = %(series)s and m.provider = %(provider)s and m.known_to is null and not h.is_same
  returning m.known_to)
select t.title, t.units, t.frequency, coalesce((select known_to from ended), %(known_at)s) from told t
 where not exists (select from held where is_same)
"""

_DESCRIBE_ANEW = """
insert into macro_series (series, provider, title, units, frequency, fetch_id, known_from)
values (%(series)s, %(provider)s, %(title)s, %(units)s, %(frequency)s, %(fetch_id)s, %(known_from)s)
"""

_KNOWN = "known_from <= %(as_of)s and (known_to is null or known_to > %(as_of)s)"
_NOW = "known_to is null"
_MATCHES = """series = %(series)s and provider = coalesce(%(provider)s, provider)
   and observed_on between coalesce(%(first)s, '-infinity'::date) and coalesce(%(last)s, 'infinity'::date)"""

# The last word that had been spoken of each day, unless the publisher has taken it back since.
_READ = """
select * from (
  select distinct on (observed_on) observed_on, value, realtime_start, realtime_end, provider, known_from, known_to, fetch_id
    from macro_observations
   where {matches} and {known} and realtime_start <= %(published_by)s
   order by observed_on, realtime_start desc, known_from desc) m
 where realtime_end >= %(published_by)s
 order by observed_on
"""

_VINTAGES = """
select observed_on, value, realtime_start, realtime_end, provider, known_from, known_to, fetch_id
  from macro_observations
 where {matches} and {known}
 order by observed_on, realtime_start, known_from
"""

_SERIES = """
select series, provider, title, units, frequency, fetch_id, known_from
  from macro_series
 where series = coalesce(%(series)s, series) and known_to is null
 order by series, provider
"""


@dataclass(frozen=True, slots=True)
class MacroWritten:
    """What one write changed. Of the answer's observations ``changed`` said something new, ``unchanged`` was held already.

    ``ended``: stored rows that no longer hold as they were (their value was revised, so its stretch has an end now, or it is
    another); they are kept, with the time until which we believed them.
    """

    fetch_id: int
    changed: int
    ended: int
    unchanged: int
    refused: int
    known_at: datetime


@dataclass(frozen=True, slots=True)
class StoredObservation:
    """A value, when it was published (``observation``), and when we knew it to be so; ``known_to`` None: still."""

    series: str
    provider: str
    observation: Observation
    known_from: datetime
    known_to: datetime | None
    fetch_id: int


@dataclass(frozen=True, slots=True)
class StoredSeries:
    """What a provider says of a series."""

    series: str
    provider: str
    title: str | None
    units: str | None
    frequency: str | None
    fetch_id: int
    known_from: datetime


@dataclass(frozen=True, slots=True)
class _Held:
    observation: Observation
    known_from: datetime


class MacroStore:
    """Economic series, written and read. Instances may be shared by threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def record(self, answer: MacroAnswer, *, known_at: datetime | None = None, run_id: str | None = None) -> MacroWritten:
        """Store one answer in one transaction: its fetch, what is new in it, what ends by it, and what was refused.

        An answer with vintages says everything of each ``observed_on`` in it, so it replaces what we held of that. One without says
        what each value was on one day (``domain.macro.with_sighting``). What is not in an answer stays. The same answer again is
        recorded as a fetch and changes nothing else. ``known_at``: when we learned it, None for the database's clock; raised where
        needed to be later than what it replaces.
        """
        names = {"series": answer.series, "provider": answer.fetch.provider}
        with transaction(self._engine) as cursor:
            lock_series(cursor, [crc32(answer.series.encode())], MACRO_LOCK)
            learned_at = known_at or database_time(cursor)
            (fetch_id,) = record_fetches(cursor, [answer.fetch], [None], run_id=run_id)
            told = by_day(answer.observations)
            held = _held(cursor, names, told)
            if not answer.has_vintages:
                observations = {day: [h.observation for h in rows] for day, rows in held.items()}
                told = with_sightings(observations, answer.observations)
            begun, ended, known_until = _differences(told, held, learned_at)
            _write(cursor, {**names, "fetch_id": fetch_id}, begun, ended)
            _describe(cursor, {**names, "fetch_id": fetch_id}, answer, learned_at)
            refused = keep_refused(
                cursor,
                [(answer.series, record) for record in answer.refused],
                provider=answer.fetch.provider,
                capability=MACRO,
                fetch_id=fetch_id,
            )
        changed_days = {row.observation.observed_on for row in begun}
        changed = len(begun) if answer.has_vintages else sum(o.observed_on in changed_days for o in answer.observations)
        unchanged = len(answer.observations) - changed
        return MacroWritten(fetch_id, changed, len(ended), unchanged, refused, max(learned_at, known_until))

    def read(
        self,
        series: str,
        *,
        first: date | None = None,
        last: date | None = None,
        published_by: date | None = None,
        as_of: datetime | None = None,
        provider: str | None = None,
    ) -> list[StoredObservation]:
        """One value for each ``observed_on`` in [first, last] that has one, in order.

        As published and known now; ``published_by``: as the publisher had it at the end of that day, as far as we know now;
        ``as_of``: what we ourselves held at that instant, of what had been published by then (by its date at the publisher). Asked
        again later, ``as_of`` answers the same for ever.
        """
        day = published_by or (LATEST if as_of is None else publishing_day(as_of))
        if as_of is not None and published_by is not None:
            day = min(day, publishing_day(as_of))
        return self._rows(_READ, series, first, last, as_of, provider, published_by=day)

    def vintages(
        self,
        series: str,
        *,
        first: date | None = None,
        last: date | None = None,
        as_of: datetime | None = None,
        provider: str | None = None,
    ) -> list[StoredObservation]:
        """Every value ever published of [first, last] by (observed_on, realtime_start), as far as we know, or knew at ``as_of``."""
        return self._rows(_VINTAGES, series, first, last, as_of, provider)

    def described(self, series: str | None = None) -> list[StoredSeries]:
        """What the series are; all of them for None."""
        with self._engine.connect() as connection:
            return [StoredSeries(*row) for row in connection.exec_driver_sql(_SERIES, {"series": series})]

    def _rows(
        self,
        query: str,
        series: str,
        first: date | None,
        last: date | None,
        as_of: datetime | None,
        provider: str | None,
        *,
        published_by: date | None = None,
    ) -> list[StoredObservation]:
        query = query.format(matches=_MATCHES, known=_NOW if as_of is None else _KNOWN)
        given = {"series": series, "first": first, "last": last, "as_of": as_of, "provider": provider, "published_by": published_by}
        with self._engine.connect() as connection:
            return [
                StoredObservation(
                    series=series,
                    provider=row.provider,
                    observation=Observation(row.observed_on, row.value, row.realtime_start, row.realtime_end),
                    known_from=row.known_from,
                    known_to=row.known_to,
                    fetch_id=row.fetch_id,
                )
                for row in connection.exec_driver_sql(query, given)
            ]


def _held(cursor: Cursor, names: Mapping[str, str], told: Mapping[date, object]) -> dict[date, list[_Held]]:
    """What is held of the days that were told of, sorted by ``realtime_start``. Read under the lock it stays true until commit."""
    if not told:
        return {}
    cursor.execute(_HELD, {**names, "first": min(told), "last": max(told)})
    held: dict[date, list[_Held]] = {}
    for observed_on, value, start, end, known_from in cursor:
        if observed_on in told:
            held.setdefault(observed_on, []).append(_Held(Observation(observed_on, value, start, end), known_from))
    for rows in held.values():
        rows.sort(key=lambda row: row.observation.realtime_start)
    return held


def _differences(
    told: Mapping[date, Iterable[Observation]], held: Mapping[date, Sequence[_Held]], learned_at: datetime
) -> tuple[list[_Held], list[_Held], datetime]:
    """Rows that begin, each with its ``known_from``; rows that end, each with its ``known_to``; the newest of these times."""
    begun: list[_Held] = []
    ended: list[_Held] = []
    newest = learned_at
    for day, rows in told.items():
        before = {row.observation.realtime_start: row for row in held.get(day, ())}
        same = {row.realtime_start for row in rows if _says(before.get(row.realtime_start), row)}
        going = [row for start, row in before.items() if start not in same]
        # One moment for the whole day: in between, no reader may find two values of it, or none.
        moment = max([learned_at, *(row.known_from + _MICROSECOND for row in going)])
        newest = max(newest, moment)
        ended += [_Held(row.observation, moment) for row in going]
        begun += [_Held(row, moment) for row in rows if row.realtime_start not in same]
    return begun, ended, newest


def _says(held: _Held | None, told: Observation) -> bool:
    return held is not None and held.observation == told


def _write(cursor: Cursor, names: Mapping[str, object], begun: Sequence[_Held], ended: Sequence[_Held]) -> None:
    if ended:
        gone = {
            "observed_on": [row.observation.observed_on for row in ended],
            "realtime_start": [row.observation.realtime_start for row in ended],
            "known_to": [row.known_from for row in ended],
        }
        cursor.execute(_END, {**names, **gone})
    if begun:
        come = {
            name: [getattr(row.observation, name) for row in begun]
            for name in ("observed_on", "realtime_start", "realtime_end", "value")
        }
        cursor.execute(_BEGIN, {**names, **come, "known_from": [row.known_from for row in begun]})


def _describe(cursor: Cursor, names: Mapping[str, object], answer: MacroAnswer, learned_at: datetime) -> None:
    told = {"title": answer.title, "units": answer.units, "frequency": answer.frequency}
    if not any(told.values()):
        return
    cursor.execute(_DESCRIBE, {**names, **told, "known_at": learned_at})
    anew = cursor.fetchone()
    if anew is not None:
        cursor.execute(_DESCRIBE_ANEW, {**names, **told, "known_from": anew[3]})
