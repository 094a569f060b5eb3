"""Reads what an answer is held against before it is believed: stored closes around and inside a window, splits, feeds."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from market_data_pipeline.domain.capabilities import Feed
from market_data_pipeline.domain.ports import CorporateAction
from market_data_pipeline.storage.bulk import instant_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from sqlalchemy import Engine

    from market_data_pipeline.domain.candles import Float64s, Int64s, Interval

# The close nearest to each window: before it where there is one, else after it. Two probes of the primary key at most.
_NEAREST_INTRADAY = """
select k.place, extract(epoch from b.opened_at)::int8, b.close
  from unnest(%(symbol_ids)s::int4[], %(starts)s::timestamptz[], %(ends)s::timestamptz[]) with ordinality
       as k (symbol_id, starts, ends, place)
 cross join lateral (
       (select opened_at, close from candles_intraday c
         where c.symbol_id = k.symbol_id and c.interval_s = %(interval_s)s and c.opened_at < k.starts
         order by opened_at desc limit 1)
       union all
       (select opened_at, close from candles_intraday c
         where c.symbol_id = k.symbol_id and c.interval_s = %(interval_s)s and c.opened_at >= k.ends
         order by opened_at limit 1)
       limit 1) b"""

_NEAREST_DAILY = """
select k.place, (b.session_date - date '1970-01-01')::int8 * 86400, b.close
  from unnest(%(symbol_ids)s::int4[], %(starts)s::timestamptz[], %(ends)s::timestamptz[]) with ordinality
       as k (symbol_id, starts, ends, place)
 cross join lateral (
       (select session_date, close from candles_daily c
         where c.symbol_id = k.symbol_id and c.session_date < (k.starts at time zone 'UTC')::date
         order by session_date desc limit 1)
       union all
       (select session_date, close from candles_daily c
         where c.symbol_id = k.symbol_id and c.session_date >= (k.ends at time zone 'UTC')::date
         order by session_date limit 1)
       limit 1) b"""

_HELD_INTRADAY = """
select k.place, extract(epoch from b.opened_at)::int8, b.close
  from unnest(%(symbol_ids)s::int4[], %(starts)s::timestamptz[], %(ends)s::timestamptz[]) with ordinality
       as k (symbol_id, starts, ends, place)
  join candles_intraday b
    on b.symbol_id = k.symbol_id and b.interval_s = %(interval_s)s and b.opened_at >= k.starts and b.opened_at < k.ends
 order by 1, 2"""

_HELD_DAILY = """
select k.place, (b.session_date - date '1970-01-01')::int8 * 86400, b.close
  from unnest(%(symbol_ids)s::int4[], %(starts)s::timestamptz[], %(ends)s::timestamptz[]) with ordinality
       as k (symbol_id, starts, ends, place)
  join candles_daily b
    on b.symbol_id = k.symbol_id
   and b.session_date >= (k.starts at time zone 'UTC')::date and b.session_date < (k.ends at time zone 'UTC')::date
 order by 1, 2"""

_SPLITS = """
select symbol_id, session_date, value from corporate_actions
 where symbol_id = any(%(symbol_ids)s::int4[]) and kind = 'split' and known_to is null
 order by symbol_id, session_date, provider"""

# Of the newest bars: a series is what it was lately. Enough of them that one labelled hole does not hide the rest.
_FEEDS_INTRADAY = """
select k.symbol_id, array_agg(distinct b.feed)
  from unnest(%(symbol_ids)s::int4[]) as k (symbol_id)
 cross join lateral (select feed from candles_intraday c
                      where c.symbol_id = k.symbol_id and c.interval_s = %(interval_s)s
                      order by opened_at desc limit 400) b
 group by k.symbol_id"""

_FEEDS_DAILY = """
select k.symbol_id, array_agg(distinct b.feed)
  from unnest(%(symbol_ids)s::int4[]) as k (symbol_id)
 cross join lateral (select feed from candles_daily c
                      where c.symbol_id = k.symbol_id order by session_date desc limit 400) b
 group by k.symbol_id"""


class Span(NamedTuple):
    """Bars of one symbol that open in [start, end), epoch seconds UTC; for 1d, sessions whose midnight UTC lies in it."""

    symbol_id: int
    start: int
    end: int


@dataclass(frozen=True, slots=True, eq=False)
class HeldCloses:
    """Stored bars inside a span: their opens and closes, sorted."""

    opened_at: Int64s
    close: Float64s


class References:
    """Reads in a few statements for many windows. Instances may be shared by threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def nearest_closes(self, spans: Sequence[Span], interval: Interval) -> list[tuple[int, float] | None]:
        """For each span the (opened_at, close) stored nearest to it, before where there is one, else after; None for none."""
        query = _NEAREST_DAILY if interval.is_daily else _NEAREST_INTRADAY
        found: list[tuple[int, float] | None] = [None] * len(spans)
        with self._engine.connect() as connection:
            for place, opened_at, close in connection.exec_driver_sql(query, _parameters(spans, interval)):
                found[place - 1] = (opened_at, close)
        return found

    def held_closes(self, spans: Sequence[Span], interval: Interval) -> list[HeldCloses]:
        """What is stored inside each span."""
        query = _HELD_DAILY if interval.is_daily else _HELD_INTRADAY
        found: dict[int, list[tuple[int, float]]] = defaultdict(list)
        with self._engine.connect() as connection:
            for place, opened_at, close in connection.exec_driver_sql(query, _parameters(spans, interval)):
                found[place - 1].append((opened_at, close))
        return [
            HeldCloses(np.array([at for at, _ in held], np.int64), np.array([close for _, close in held], np.float64))
            for held in (found.get(place, []) for place in range(len(spans)))
        ]

    def splits(self, symbol_ids: Sequence[int]) -> dict[int, list[CorporateAction]]:
        """The splits known now, whoever told them, by symbol and date; two providers may tell the same."""
        found: dict[int, dict[tuple[date, float], CorporateAction]] = defaultdict(dict)
        with self._engine.connect() as connection:
            for symbol_id, session, value in connection.exec_driver_sql(_SPLITS, {"symbol_ids": list(symbol_ids)}):
                found[symbol_id][session, value] = CorporateAction("split", session, value)
        return {symbol_id: list(splits.values()) for symbol_id, splits in found.items()}

    def feeds(self, symbol_ids: Sequence[int], interval: Interval) -> dict[int, list[Feed]]:
        """The feeds of the newest 400 bars of each symbol, the widest first; symbols without a bar are left out."""
        query = _FEEDS_DAILY if interval.is_daily else _FEEDS_INTRADAY
        parameters = {"symbol_ids": list(symbol_ids), "interval_s": interval.seconds}
        with self._engine.connect() as connection:
            return {row[0]: [Feed(feed) for feed in sorted(row[1])] for row in connection.exec_driver_sql(query, parameters)}


def _parameters(spans: Sequence[Span], interval: Interval) -> dict[str, object]:
    return {
        "interval_s": interval.seconds,
        "symbol_ids": [span.symbol_id for span in spans],
        "starts": [instant_of(span.start * 1_000_000) for span in spans],
        "ends": [instant_of(span.end * 1_000_000) for span in spans],
    }
