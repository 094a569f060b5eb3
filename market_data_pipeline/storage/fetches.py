"""The provenance of answers, and of the lack of them: rows of ``fetches``, written and read back. They are never changed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.ports import Fetch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Connection, Engine

_RECORD = """
insert into fetches (provider, symbol_id, interval_s, request, started_at, latency_seconds, outcome, status, rows,
                     payload_bytes, payload_sha256, error, dropped, run_id)
select f.provider, f.symbol_id, f.interval_s, f.request, f.started_at, f.latency_seconds, f.outcome, f.status, f.rows,
       f.payload_bytes, f.payload_sha256, f.error, f.dropped, %(run_id)s
  from unnest(%(provider)s::text[], %(symbol_id)s::int4[], %(interval_s)s::int4[], %(request)s::text[],
              %(started_at)s::timestamptz[], %(latency_seconds)s::float8[], %(outcome)s::text[], %(status)s::int4[],
              %(rows)s::int4[], %(payload_bytes)s::int8[], %(payload_sha256)s::text[], %(error)s::text[], %(dropped)s::jsonb[])
       with ordinality
    as f (provider, symbol_id, interval_s, request, started_at, latency_seconds, outcome, status, rows,
          payload_bytes, payload_sha256, error, dropped, place)
 order by f.place
returning fetch_id
"""

_LATEST = """
select f.fetch_id, f.symbol_id, f.run_id, f.recorded_at, f.provider, u.symbol, f.interval_s, f.request, f.started_at,
       f.latency_seconds, f.outcome, f.status, f.rows, f.payload_bytes, f.payload_sha256, f.error, f.dropped
  from fetches f join symbol_universe u using (symbol_id)
 where f.symbol_id = %(symbol_id)s and f.interval_s = %(interval_s)s
 order by f.recorded_at desc, f.fetch_id desc
 limit %(limit)s
"""


@dataclass(frozen=True, slots=True)
class StoredFetch:
    """A fetch as it was recorded. ``fetch.symbol`` is our symbol, not the provider's name for it."""

    fetch_id: int
    symbol_id: int
    run_id: str | None
    recorded_at: datetime
    fetch: Fetch


class FetchStore:
    """Fetches outside of a batch of bars, and the latest of a symbol. ``CandleWriter`` records those of its batches itself."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def record(self, fetches: Sequence[tuple[int | None, Fetch]], *, run_id: str | None = None) -> list[int]:
        """Record (symbol_id, fetch) pairs in one transaction; their ids, in the same order. Repeating it records them twice."""
        with self._engine.begin() as connection:
            return insert_fetches(connection, fetches, run_id=run_id)

    def latest(self, symbol_id: int, interval: Interval, *, limit: int = 1) -> list[StoredFetch]:
        """The last ``limit`` fetches for a symbol and interval, the newest first."""
        parameters = {"symbol_id": symbol_id, "interval_s": interval.seconds, "limit": limit}
        with self._engine.connect() as connection:
            return [
                StoredFetch(
                    fetch_id=row.fetch_id,
                    symbol_id=row.symbol_id,
                    run_id=row.run_id,
                    recorded_at=row.recorded_at,
                    fetch=Fetch(
                        provider=row.provider,
                        symbol=row.symbol,
                        interval=Interval.of_seconds(row.interval_s),
                        request=row.request,
                        started_at=row.started_at,
                        latency_seconds=row.latency_seconds,
                        outcome=row.outcome,
                        status=row.status,
                        rows=row.rows,
                        payload_bytes=row.payload_bytes,
                        payload_sha256=row.payload_sha256,
                        error=row.error,
                        dropped=row.dropped,
                    ),
                )
                for row in connection.exec_driver_sql(_LATEST, parameters)
            ]


def insert_fetches(connection: Connection, fetches: Sequence[tuple[int | None, Fetch]], *, run_id: str | None) -> list[int]:
    """Record (symbol_id, fetch) pairs in the transaction of ``connection``; their ids, in the same order."""
    if not fetches:
        return []
    of = [fetch for _, fetch in fetches]
    parameters = {
        "run_id": run_id,
        "provider": [f.provider for f in of],
        "symbol_id": [symbol_id for symbol_id, _ in fetches],
        "interval_s": [f.interval.seconds for f in of],
        "request": [_storable(f.request) for f in of],
        "started_at": [f.started_at for f in of],
        "latency_seconds": [f.latency_seconds for f in of],
        "outcome": [f.outcome for f in of],
        "status": [f.status for f in of],
        "rows": [f.rows for f in of],
        "payload_bytes": [f.payload_bytes for f in of],
        "payload_sha256": [f.payload_sha256 for f in of],
        "error": [None if f.error is None else _storable(f.error) for f in of],
        "dropped": [json.dumps(dict(f.dropped)) for f in of],
    }
    return list(connection.exec_driver_sql(_RECORD, parameters).scalars())


def _storable(text: str) -> str:
    """``text`` as Postgres can hold it: an error may quote a body, and a body may hold NUL or half a surrogate pair."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\x00", "\N{REPLACEMENT CHARACTER}")
