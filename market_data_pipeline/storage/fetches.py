"""The provenance of answers, and of the lack of them: rows of ``fetches``, written and read back. They are never changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.ports import Fetch
from market_data_pipeline.storage.bulk import record_fetches, transaction

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Engine

_LATEST = """
select f.fetch_id, f.symbol_id, f.run_id, f.recorded_at, f.provider, u.symbol, f.interval_s, f.request, f.started_at,
       f.latency_seconds, f.outcome, f.status, f.rows, f.payload_bytes, f.payload_sha256, f.error, f.attempts, f.dropped,
       f.capability
  from fetches f join symbol_universe u using (symbol_id)
 where f.symbol_id = %(symbol_id)s and f.interval_s = %(interval_s)s
 order by f.recorded_at desc, f.fetch_id desc
 limit %(limit)s
"""


# By the newest keys: there is no index by time, and there need not be. Of the busiest hour these are the last minutes.
_RECENT = """
select symbol_id, bool_and(outcome = 'barren')
  from (select provider, capability, symbol_id, outcome, started_at from fetches order by fetch_id desc limit 1000) f
 where provider = %(provider)s and capability = %(capability)s and started_at > %(since)s and symbol_id is not null
   and outcome in ('ok', 'barren', 'stale')
 group by symbol_id"""


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
        with transaction(self._engine) as cursor:
            return record_fetches(cursor, [fetch for _, fetch in fetches], [symbol_id for symbol_id, _ in fetches], run_id=run_id)

    def recent_emptiness(self, provider: str, capability: str, *, since: datetime) -> dict[int, bool]:
        """Of the symbols that a provider answered for since then, in whatever process: whether each answer was barren.

        Looks at the last thousand fetches, so it costs a millisecond however many there are.
        """
        parameters = {"provider": provider, "capability": capability, "since": since}
        with self._engine.connect() as connection:
            return {row[0]: row[1] for row in connection.exec_driver_sql(_RECENT, parameters)}

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
                        interval=Interval.of_seconds(row.interval_s) if row.interval_s else None,
                        request=row.request,
                        started_at=row.started_at,
                        latency_seconds=row.latency_seconds,
                        outcome=row.outcome,
                        status=row.status,
                        rows=row.rows,
                        payload_bytes=row.payload_bytes,
                        payload_sha256=row.payload_sha256,
                        error=row.error,
                        attempts=row.attempts,
                        dropped=row.dropped,
                        capability="" if row.interval_s else row.capability,
                    ),
                )
                for row in connection.exec_driver_sql(_LATEST, parameters)
            ]
