"""How far the ledger and the stored bars go: the first and last day there is of each symbol and interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from market_data_pipeline.domain.candles import Interval

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from sqlalchemy import Engine

_EXTENTS = """
select symbol_id, interval_s, min(session), max(session)
  from coverage
 where symbol_id = any(%(symbol_ids)s::int4[])
 group by symbol_id, interval_s
 order by interval_s, symbol_id
"""

# Two looks at the primary key for each symbol and interval; a minimum by group would read every bar there is.
_STORED_EXTENTS = """
select s.symbol_id, i.interval_s, least(c.first, d.first, b.first), greatest(c.last, d.last, b.last)
  from unnest(%(symbol_ids)s::int4[]) as s (symbol_id)
 cross join unnest(%(intervals)s::int4[]) as i (interval_s)
 cross join lateral (
   select min(session) as first, max(session) as last
     from coverage where symbol_id = s.symbol_id and interval_s = i.interval_s) as c
 cross join lateral (
   select min(session_date) as first, max(session_date) as last
     from candles_daily where symbol_id = s.symbol_id and i.interval_s = 86400) as d
 cross join lateral (
   select (min(opened_at) at time zone 'UTC')::date as first, (max(opened_at) at time zone 'UTC')::date as last
     from candles_intraday where symbol_id = s.symbol_id and interval_s = i.interval_s) as b
 where c.first is not null or d.first is not null or b.first is not null
 order by i.interval_s, s.symbol_id
"""


@dataclass(frozen=True, slots=True)
class Extent:
    """There is something of this symbol and interval from ``first`` to ``last``, both included, perhaps not all between."""

    symbol_id: int
    interval: Interval
    first: date
    last: date


def ledger_extents(engine: Engine, symbol_ids: Sequence[int]) -> list[Extent]:
    """The extent of each symbol and interval that the ledger has anything of, by interval and symbol_id."""
    with engine.connect() as connection:
        return [
            Extent(symbol_id, Interval.of_seconds(interval_s), first, last)
            for symbol_id, interval_s, first, last in connection.exec_driver_sql(_EXTENTS, {"symbol_ids": list(symbol_ids)})
        ]


def stored_extents(engine: Engine, symbol_ids: Sequence[int]) -> list[Extent]:
    """The same over ledger and bars together: bars that the ledger knows nothing of count, too. Bars count by their UTC date."""
    parameters = {"symbol_ids": list(symbol_ids), "intervals": [interval.seconds for interval in Interval]}
    with engine.connect() as connection:
        return [
            Extent(symbol_id, Interval.of_seconds(interval_s), first, last)
            for symbol_id, interval_s, first, last in connection.exec_driver_sql(_STORED_EXTENTS, parameters)
        ]
