"""How far the ledger goes: the first and last session it has of each symbol and interval."""

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


@dataclass(frozen=True, slots=True)
class Extent:
    """The ledger has sessions of this symbol and interval from ``first`` to ``last``, both included, perhaps not all between."""

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
