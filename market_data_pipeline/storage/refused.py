"""Records of answers other than bars that could not be used: kept once, with their reason, and read back. Bars have bulk.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from market_data_pipeline.domain.ports import RefusedRecord

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - a class that psycopg2 spells in lower case
    from sqlalchemy import Engine

# One row for what an answer repeats, and none for what an earlier answer had already.
_KEEP = """
insert into refused_records (provider, capability, symbol, record, reason, fetch_id)
select distinct %(provider)s, %(capability)s, symbol, record, reason, %(fetch_id)s::int8
  from unnest(%(symbols)s::text[], %(records)s::text[], %(reasons)s::text[]) as k (symbol, record, reason)
 where not exists (select from refused_records r
                    where r.provider = %(provider)s and r.capability = %(capability)s and r.symbol = k.symbol
                      and r.reason = k.reason and r.record = k.record)
"""

_STORED = """
select provider, capability, symbol, record, reason, fetch_id, refused_at
  from refused_records
 where provider = coalesce(%(provider)s, provider) and capability = coalesce(%(capability)s, capability)
   and symbol = coalesce(%(symbol)s, symbol)
 order by refused_id
"""


@dataclass(frozen=True, slots=True)
class StoredRefusal:
    """A refused record, whose it was, and the answer that it came with. ``symbol`` as the provider names it."""

    provider: str
    capability: str
    symbol: str
    refused: RefusedRecord
    fetch_id: int
    refused_at: datetime


def keep_refused(
    cursor: Cursor, refused: Sequence[tuple[str, RefusedRecord]], *, provider: str, capability: str, fetch_id: int
) -> int:
    """Keep (symbol, record) pairs, each the first time it is seen; how many were given."""
    if refused:
        given = {
            "symbols": [_storable(symbol) for symbol, _ in refused],
            "records": [_storable(record.record) for _, record in refused],
            "reasons": [record.reason for _, record in refused],
        }
        cursor.execute(_KEEP, {"provider": provider, "capability": capability, "fetch_id": fetch_id, **given})
    return len(refused)


def refused_records(
    engine: Engine, *, provider: str | None = None, capability: str | None = None, symbol: str | None = None
) -> list[StoredRefusal]:
    """What was refused, oldest first; None for any."""
    given = {"provider": provider, "capability": capability, "symbol": symbol}
    with engine.connect() as connection:
        return [
            StoredRefusal(
                provider=row.provider,
                capability=row.capability,
                symbol=row.symbol,
                refused=RefusedRecord(row.record, row.reason),
                fetch_id=row.fetch_id,
                refused_at=row.refused_at,
            )
            for row in connection.exec_driver_sql(_STORED, given)
        ]


def _storable(text: str) -> str:
    # What Postgres' text cannot hold: NUL and half a surrogate pair.
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode("utf-8")
