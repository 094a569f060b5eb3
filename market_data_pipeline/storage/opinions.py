"""Second opinions: what another provider said of a stored session, kept for ever, and what it takes to ask for one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from market_data_pipeline.domain.agreement import Comparison
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.capabilities import Feed
from market_data_pipeline.storage.bulk import instant_of, record_fetches, transaction

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import date, datetime

    from sqlalchemy import Engine

    from market_data_pipeline.domain.ports import Fetch, RefusedBars

_SOURCES_INTRADAY = """
select p.name, b.feed, count(*)
  from candles_intraday b join providers p using (provider)
 where b.symbol_id = %(symbol_id)s and b.interval_s = %(interval_s)s and b.opened_at >= %(start)s and b.opened_at < %(end)s
 group by p.name, b.feed order by count(*) desc, p.name, b.feed"""

_SOURCES_DAILY = """
select p.name, b.feed, count(*)
  from candles_daily b join providers p using (provider)
 where b.symbol_id = %(symbol_id)s and b.session_date = %(session)s
 group by p.name, b.feed order by count(*) desc, p.name, b.feed"""

_FLAGGED_INTRADAY = """
select symbol_id, extract(epoch from opened_at)::int8 from candles_intraday
 where symbol_id = any(%(symbol_ids)s::int4[]) and interval_s = %(interval_s)s
   and opened_at >= %(start)s and opened_at < %(end)s and flags & %(flag)s <> 0"""

_FLAGGED_DAILY = """
select symbol_id, (session_date - date '1970-01-01')::int8 * 86400 from candles_daily
 where symbol_id = any(%(symbol_ids)s::int4[])
   and session_date >= (%(start)s at time zone 'UTC')::date and session_date < (%(end)s at time zone 'UTC')::date
   and flags & %(flag)s <> 0"""

_HEARD = """
select distinct symbol_id, session from second_opinions
 where symbol_id = any(%(symbol_ids)s::int4[]) and interval_s = %(interval_s)s and session between %(first)s and %(last)s"""

_KEEP = """
insert into second_opinions
       (symbol_id, interval_s, session, stored_provider, second_provider, third_provider, verdict, reason, compared, only_stored,
        only_second, off, fields, volume_ratio, winner, decided_by, revised, quarantined, second_fetch_id, third_fetch_id, run_id,
        asked_at)
values (%(symbol_id)s, %(interval_s)s, %(session)s, %(stored_provider)s, %(second_provider)s, %(third_provider)s, %(verdict)s,
        %(reason)s, %(compared)s, %(only_stored)s, %(only_second)s, %(off)s, %(fields)s, %(volume_ratio)s, %(winner)s,
        %(decided_by)s, %(revised)s, %(quarantined)s, %(second_fetch_id)s, %(third_fetch_id)s, %(run_id)s, %(asked_at)s)
returning opinion_id"""

_QUARANTINE = """
insert into refused_bars (symbol_id, interval_s, opened_at, reason, bar, fetch_id)
select %(symbol_id)s, %(interval_s)s, to_timestamp(opened_at), %(reason)s, bar, %(fetch_id)s
  from unnest(%(opened_at)s::int8[], %(bars)s::jsonb[]) as k (opened_at, bar)
 where not exists (select from refused_bars r
                    where r.symbol_id = %(symbol_id)s and r.interval_s = %(interval_s)s
                      and r.opened_at = to_timestamp(k.opened_at) and r.reason = %(reason)s and r.bar = k.bar)"""

_LATEST = """
select * from (
  select distinct on (o.symbol_id, o.interval_s, o.session)
         o.opinion_id, o.symbol_id, u.symbol, o.interval_s, o.session, o.stored_provider, o.second_provider, o.third_provider,
         o.verdict, o.reason, o.compared, o.only_stored, o.only_second, o.off, o.fields, o.volume_ratio, o.winner, o.decided_by,
         o.revised, o.quarantined, o.second_fetch_id, o.third_fetch_id, o.run_id, o.asked_at
    from second_opinions o join symbol_universe u using (symbol_id)
   where o.session >= %(first)s and o.session <= %(last)s
     and (%(symbol_ids)s::int4[] is null or o.symbol_id = any(%(symbol_ids)s::int4[]))
     and (%(intervals)s::int4[] is null or o.interval_s = any(%(intervals)s::int4[]))
   order by o.symbol_id, o.interval_s, o.session, o.opinion_id desc) newest
 order by session desc, symbol, interval_s"""


@dataclass(frozen=True, slots=True)
class Source:
    """Whose bars of a session are stored, of which feed, and how many."""

    provider: str
    feed: Feed
    bars: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """One row of ``second_opinions``. ``reason``: one sentence. ``fields``: by price field, "agreeing" and "worst_bp".

    ``off`` of ``compared`` bars differ by more than the tolerance; ``revised`` stored bars gave way, ``quarantined`` bars of the
    second provider are in ``refused_bars``. ``decided_by``: "agreement", "majority" (the third sided with one) or "policy".
    """

    symbol_id: int
    symbol: str
    interval: Interval
    session: date
    stored_provider: str
    second_provider: str
    third_provider: str | None
    verdict: Comparison
    reason: str
    compared: int
    only_stored: int
    only_second: int
    off: int
    fields: Mapping[str, Mapping[str, float]]
    volume_ratio: float | None
    winner: str
    decided_by: str
    asked_at: datetime
    revised: int = 0
    quarantined: int = 0
    second_fetch_id: int | None = None
    third_fetch_id: int | None = None
    run_id: str | None = None
    opinion_id: int | None = None

    @property
    def is_open(self) -> bool:
        """The two disagree and it is not settled by two of three: somebody should look."""
        if self.verdict.is_agreement:
            return False
        stands = self.winner == self.stored_provider or self.revised == self.off
        return self.decided_by != "majority" or not stands


class OpinionStore:
    """Instances may be shared by threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def sources(self, symbol_id: int, interval: Interval, session: date, start: int, end: int) -> list[Source]:
        """Who gave the stored bars of a session that lasts from ``start`` to ``end`` (epoch seconds), most bars first."""
        query = _SOURCES_DAILY if interval.is_daily else _SOURCES_INTRADAY
        given = {"symbol_id": symbol_id, "interval_s": interval.seconds, "session": session, **_between(start, end)}
        with self._engine.connect() as connection:
            return [Source(name, Feed(feed), count) for name, feed, count in connection.exec_driver_sql(query, given)]

    def flagged(self, symbol_ids: Sequence[int], interval: Interval, start: int, end: int, *, flag: int) -> list[tuple[int, int]]:
        """(symbol_id, opened_at) of the stored bars that carry ``flag`` and opened in [start, end), epoch seconds."""
        query = _FLAGGED_DAILY if interval.is_daily else _FLAGGED_INTRADAY
        given = {"symbol_ids": list(symbol_ids), "interval_s": interval.seconds, "flag": int(flag), **_between(start, end)}
        with self._engine.connect() as connection:
            return [(symbol_id, opened_at) for symbol_id, opened_at in connection.exec_driver_sql(query, given)]

    def heard(self, symbol_ids: Sequence[int], interval: Interval, first: date, last: date) -> set[tuple[int, date]]:
        """The (symbol_id, session)s that somebody gave a second opinion on."""
        given = {"symbol_ids": list(symbol_ids), "interval_s": interval.seconds, "first": first, "last": last}
        with self._engine.connect() as connection:
            return {(symbol_id, session) for symbol_id, session in connection.exec_driver_sql(_HEARD, given)}

    def keep(self, opinion: Opinion, *, second: Fetch | None, third: Fetch | None, quarantined: RefusedBars | None = None) -> int:
        """Store an opinion with the answers it rests on and the bars that lost, all or nothing; its key.

        ``second`` None: that answer is recorded already, as ``opinion.second_fetch_id``.
        """
        with transaction(self._engine) as cursor:
            answers = [fetch for fetch in (second, third) if fetch is not None]
            ids = record_fetches(cursor, answers, [opinion.symbol_id] * len(answers), run_id=opinion.run_id)
            third_id = ids.pop() if third is not None else None
            second_id = ids.pop() if second is not None else opinion.second_fetch_id
            if quarantined is not None and len(quarantined.columns):
                cursor.execute(_QUARANTINE, {**_bars(quarantined), "fetch_id": second_id, **_key(opinion)})
            cursor.execute(_KEEP, _parameters(opinion, second_id, third_id))
            (kept,) = cursor.fetchone() or (0,)
        return int(kept)

    def latest(
        self,
        first: date,
        last: date,
        *,
        symbol_ids: Collection[int] | None = None,
        intervals: Collection[Interval] = (),
    ) -> list[Opinion]:
        """The newest opinion on each session from ``first`` to ``last``, both included; the newest session first."""
        given = {
            "first": first,
            "last": last,
            "symbol_ids": None if symbol_ids is None else list(symbol_ids),
            "intervals": [interval.seconds for interval in intervals] or None,
        }
        with self._engine.connect() as connection:
            return [_opinion(row) for row in connection.exec_driver_sql(_LATEST, given).mappings()]


def _between(start: int, end: int) -> dict[str, datetime]:
    return {"start": instant_of(start * 1_000_000), "end": instant_of(end * 1_000_000)}


def _key(opinion: Opinion) -> dict[str, Any]:
    return {"symbol_id": opinion.symbol_id, "interval_s": opinion.interval.seconds}


def _bars(refused: RefusedBars) -> dict[str, Any]:
    names = ("open", "high", "low", "close", "volume", "vwap", "trades")
    rows = zip(*(getattr(refused.columns, name).tolist() for name in names), strict=True)
    return {
        "opened_at": refused.columns.opened_at.tolist(),
        "bars": [json.dumps({name: repr(value) for name, value in zip(names, row, strict=True)}) for row in rows],
        # They were compared as one, and lost as one.
        "reason": refused.reasons[0],
    }


def _parameters(opinion: Opinion, second_fetch_id: int | None, third_fetch_id: int | None) -> dict[str, Any]:
    return {
        **_key(opinion),
        "session": opinion.session,
        "stored_provider": opinion.stored_provider,
        "second_provider": opinion.second_provider,
        "third_provider": opinion.third_provider,
        "verdict": opinion.verdict.value,
        "reason": opinion.reason,
        "compared": opinion.compared,
        "only_stored": opinion.only_stored,
        "only_second": opinion.only_second,
        "off": opinion.off,
        "fields": json.dumps(opinion.fields),
        "volume_ratio": opinion.volume_ratio,
        "winner": opinion.winner,
        "decided_by": opinion.decided_by,
        "revised": opinion.revised,
        "quarantined": opinion.quarantined,
        "second_fetch_id": second_fetch_id,
        "third_fetch_id": third_fetch_id,
        "run_id": opinion.run_id,
        "asked_at": opinion.asked_at,
    }


def _opinion(row: Mapping[Any, Any]) -> Opinion:
    told = dict(row)
    return Opinion(interval=Interval.of_seconds(told.pop("interval_s")), verdict=Comparison(told.pop("verdict")), **told)
