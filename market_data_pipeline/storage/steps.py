"""Finds, among the newest stored bars, neighbours whose closes are far apart, refused bars that nobody replaced, and flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from market_data_pipeline.storage.bulk import transaction

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date, datetime

    from sqlalchemy import Engine

    from market_data_pipeline.domain.candles import Interval

# One scan of a symbol's newest bars, along the primary key. The first is held against the daily close before the session: what is
# of another unit or basis from its first bar on has no neighbour that says so. A split somewhere near lowers what counts as far.
_FAR_INTRADAY = """
select s.symbol_id, b.opened_at, b.close, b.close_before, b.before_at, a.session_date
  from unnest(%(symbol_ids)s::int4[], %(starts)s::timestamptz[], %(ends)s::timestamptz[], %(sessions)s::date[],
              %(factors)s::float8[])
       as s (symbol_id, starts, ends, session, factor)
  left join lateral (
       select session_date, close from candles_daily d
        where d.symbol_id = s.symbol_id and d.session_date < s.session and d.session_date >= s.session - 45
        order by session_date desc limit 1) a on true
 cross join lateral (
       select c.opened_at, c.close, lag(c.opened_at) over w as before_at, lag(c.close, 1, a.close) over w as close_before
         from candles_intraday c
        where c.symbol_id = s.symbol_id and c.interval_s = %(interval_s)s and c.opened_at >= s.starts and c.opened_at < s.ends
       window w as (order by c.opened_at)) b
 where b.close > 0 and b.close_before > 0 and (b.close > s.factor * b.close_before or b.close_before > s.factor * b.close)
 order by s.symbol_id, b.opened_at limit %(limit)s"""

_FAR_DAILY = """
select s.symbol_id, b.session_date::timestamp at time zone 'UTC', b.close, b.close_before, null, b.before
  from unnest(%(symbol_ids)s::int4[], %(firsts)s::date[], %(sessions)s::date[], %(factors)s::float8[])
       as s (symbol_id, first, session, factor)
 cross join lateral (
       select d.session_date, d.close, lag(d.session_date) over w as before, lag(d.close) over w as close_before
         from candles_daily d
        where d.symbol_id = s.symbol_id and d.session_date >= s.first and d.session_date <= s.session
       window w as (order by d.session_date)) b
 where b.close > 0 and b.close_before > 0
   and (s.factor < %(plain)s or b.close > s.factor * b.close_before or b.close_before > s.factor * b.close)
 order by s.symbol_id, b.session_date limit %(limit)s"""

_REFUSED_INTRADAY = """
select r.reason, count(*), min(u.symbol)
  from unnest(%(symbol_ids)s::int4[], %(starts)s::timestamptz[], %(ends)s::timestamptz[]) as s (symbol_id, starts, ends)
  join refused_bars r on r.symbol_id = s.symbol_id and r.interval_s = %(interval_s)s
                     and r.opened_at >= s.starts and r.opened_at < s.ends
  join symbol_universe u on u.symbol_id = s.symbol_id
 where not exists (select from candles_intraday c
                    where c.symbol_id = r.symbol_id and c.interval_s = r.interval_s and c.opened_at = r.opened_at)
 group by r.reason order by count(*) desc, r.reason limit 20"""

_REFUSED_DAILY = """
select r.reason, count(*), min(u.symbol)
  from unnest(%(symbol_ids)s::int4[], %(firsts)s::date[], %(sessions)s::date[]) as s (symbol_id, first, session)
  join refused_bars r on r.symbol_id = s.symbol_id and r.interval_s = %(interval_s)s
                     and r.opened_at >= s.first::timestamp at time zone 'UTC'
                     and r.opened_at <= s.session::timestamp at time zone 'UTC'
  join symbol_universe u on u.symbol_id = s.symbol_id
 where not exists (select from candles_daily c
                    where c.symbol_id = r.symbol_id and c.session_date = (r.opened_at at time zone 'UTC')::date)
 group by r.reason order by count(*) desc, r.reason limit 20"""

# Every flag that is set is counted in the same scan: bits 1 to 16.
_FLAGS_INTRADAY = """
select b.flags, count(*)
  from unnest(%(symbol_ids)s::int4[], %(starts)s::timestamptz[], %(ends)s::timestamptz[]) as s (symbol_id, starts, ends)
  join candles_intraday b on b.symbol_id = s.symbol_id and b.interval_s = %(interval_s)s
                         and b.opened_at >= s.starts and b.opened_at < s.ends
 where b.flags <> 0 group by b.flags"""

_FLAGS_DAILY = """
select b.flags, count(*)
  from unnest(%(symbol_ids)s::int4[], %(firsts)s::date[], %(sessions)s::date[]) as s (symbol_id, first, session)
  join candles_daily b on b.symbol_id = s.symbol_id and b.session_date >= s.first and b.session_date <= s.session
 where b.flags <> 0 group by b.flags"""

# Splits that lie in reach of the window; the same as References.splits, for some days only.
_SPLITS = """
select symbol_id, session_date, value from corporate_actions
 where kind = 'split' and known_to is null and session_date >= %(since)s and symbol_id = any(%(symbol_ids)s::int4[])
 group by symbol_id, session_date, value"""

_AGREED = """
select distinct on (symbol_id, session) symbol_id, session, verdict from second_opinions
 where symbol_id = any(%(symbol_ids)s::int4[]) and interval_s = %(interval_s)s and session >= %(first)s
 order by symbol_id, session, opinion_id desc"""


class Looked(NamedTuple):
    """The stretch of a symbol that is looked at: bars that open in [starts, ends) of ``session``; of 1d those since ``first``.

    ``factor``: from how many times the neighbour on a pair is returned.
    """

    symbol_id: int
    first: date
    session: date
    starts: datetime
    ends: datetime
    factor: float


@dataclass(frozen=True, slots=True)
class FarPair:
    """Two stored closes that follow each other and are far apart.

    ``before_at``: when the one before opened, where it is of the same session; else ``before_session`` is the session of the daily
    close that stands for it.
    """

    symbol_id: int
    opened_at: datetime
    close: float
    close_before: float
    before_at: datetime | None
    before_session: date | None


class RefusedCount(NamedTuple):
    """Bars that were refused for ``reason`` where none is stored now, and one of their symbols."""

    reason: str
    bars: int
    example: str


class PriceSteps:
    """Reads the newest bars only. Instances may be shared by threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def far(self, looked: Sequence[Looked], interval: Interval, *, plain: float, limit: int) -> list[FarPair]:
        """Neighbours further apart than their symbol's factor, by symbol and time.

        Of 1d every pair of a symbol whose factor is below ``plain``: where a split should show, its absence is as odd as a step.
        """
        query = _FAR_DAILY if interval.is_daily else _FAR_INTRADAY
        with transaction(self._engine) as cursor:
            cursor.execute(query, {**_columns(looked, interval), "plain": plain, "limit": limit})
            return [FarPair(*row) for row in cursor.fetchall()]

    def refused(self, looked: Sequence[Looked], interval: Interval) -> list[RefusedCount]:
        """What was refused and nobody has given since, by reason."""
        with transaction(self._engine) as cursor:
            cursor.execute(_REFUSED_DAILY if interval.is_daily else _REFUSED_INTRADAY, _columns(looked, interval))
            return [RefusedCount(*row) for row in cursor.fetchall()]

    def flags(self, looked: Sequence[Looked], interval: Interval) -> Mapping[int, int]:
        """How many stored bars have each combination of flags, of those that have any."""
        with transaction(self._engine) as cursor:
            cursor.execute(_FLAGS_DAILY if interval.is_daily else _FLAGS_INTRADAY, _columns(looked, interval))
            return dict(cursor.fetchall())

    def splits(self, symbol_ids: Sequence[int], *, since: date) -> list[tuple[int, date, float]]:
        """(symbol_id, first session, new per old shares) of the splits known since then."""
        with transaction(self._engine) as cursor:
            cursor.execute(_SPLITS, {"symbol_ids": list(symbol_ids), "since": since})
            return cursor.fetchall()

    def opinions(self, symbol_ids: Sequence[int], interval: Interval, *, first: date) -> Mapping[tuple[int, date], str]:
        """The newest second opinion's verdict on each session of these symbols since ``first``."""
        if not symbol_ids:
            return {}
        with transaction(self._engine) as cursor:
            cursor.execute(_AGREED, {"symbol_ids": list(symbol_ids), "interval_s": interval.seconds, "first": first})
            return {(symbol_id, session): verdict for symbol_id, session, verdict in cursor.fetchall()}


def _columns(looked: Sequence[Looked], interval: Interval) -> dict[str, object]:
    return {
        "interval_s": interval.seconds,
        "symbol_ids": [one.symbol_id for one in looked],
        "firsts": [one.first for one in looked],
        "sessions": [one.session for one in looked],
        "starts": [one.starts for one in looked],
        "ends": [one.ends for one in looked],
        "factors": [one.factor for one in looked],
    }
