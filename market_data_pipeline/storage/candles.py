"""Reads candles back, as they are known now or as they were known at any instant. Writing is bulk.py's."""

from __future__ import annotations

import io
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from market_data_pipeline.domain.candles import CandleColumns, Interval
from market_data_pipeline.domain.capabilities import Feed
from market_data_pipeline.domain.ports import StoredCandles, StoredRevisions
from market_data_pipeline.storage import binary
from market_data_pipeline.storage.bulk import EPOCH, VALUES, transaction

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from sqlalchemy.engine import Engine

# COPY answers rows of one length where nothing is null, and only those can be read by numpy as they are.
_BAR = "open, high, low, close, volume, coalesce(vwap, 'NaN') as vwap, coalesce(trades::float8, 'NaN') as trades"
_BAR_KINDS = dict.fromkeys(VALUES, binary.FLOAT8)
_STORED_KINDS = {
    "symbol_id": binary.INT4,
    "opened_at": binary.TIMESTAMPTZ,
    **_BAR_KINDS,
    "known_at": binary.TIMESTAMPTZ,
    "fetch_id": binary.INT8,
    "flags": binary.INT2,
}
# Read where they are asked for: every column costs every bar.
_ORIGIN_KINDS = {"provider": binary.INT2, "feed": binary.INT2}
_ORIGINS = {False: "", True: ", provider, feed"}
_INTRADAY = {
    provenance: f"""
select symbol_id, opened_at, {_BAR}, as_of, fetch_id, flags{origin}
  from candles_intraday
 where symbol_id = any(%(symbol_ids)s) and interval_s = %(interval_s)s and opened_at >= %(start)s and opened_at < %(end)s"""  # noqa: S608 - constants above
    for provenance, origin in _ORIGINS.items()
}
# A session is a label: as an instant it is midnight UTC. Compared as dates, so that the primary key serves.
_DAILY = {
    provenance: f"""
select symbol_id, session_date::timestamp at time zone 'UTC' as opened_at, {_BAR}, as_of, fetch_id, flags{origin}
  from candles_daily
 where symbol_id = any(%(symbol_ids)s) and session_date >= %(first)s and session_date < %(beyond)s"""  # noqa: S608 - as above
    for provenance, origin in _ORIGINS.items()
}
_KNOWN_BY = " and as_of <= %(known_by)s"
_REPLACED_SINCE = {
    provenance: f"""
union all
select symbol_id, opened_at, {_BAR}, known_from, fetch_id, flags{origin}
  from candle_revisions
 where symbol_id = any(%(symbol_ids)s) and interval_s = %(interval_s)s and opened_at >= %(start)s and opened_at < %(end)s
   and known_from <= %(known_by)s and known_to > %(known_by)s"""  # noqa: S608 - as above
    for provenance, origin in _ORIGINS.items()
}
_PROVIDERS = "select provider, name from providers"
_REVISION_KINDS = {
    "opened_at": binary.TIMESTAMPTZ,
    **_BAR_KINDS,
    "known_from": binary.TIMESTAMPTZ,
    "known_to": binary.TIMESTAMPTZ,
    "fetch_id": binary.INT8,
}
_REVISIONS = f"""
select opened_at, {_BAR}, known_from, known_to, fetch_id
  from candle_revisions
 where symbol_id = %(symbol_id)s and interval_s = %(interval_s)s and opened_at >= %(start)s and opened_at < %(end)s"""  # noqa: S608 - as above


class CandleReader:
    """Reads stored candles. Instances may be shared by threads; each read takes a connection of the engine's pool."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(
        self,
        symbol_ids: Sequence[int],
        interval: Interval,
        start: int,
        end: int,
        *,
        as_of: datetime | None = None,
        provenance: bool = False,
    ) -> StoredCandles:
        """The bars that opened in [start, end), epoch seconds UTC, sorted by (symbol_id, opened_at).

        For 1d the sessions whose midnight UTC lies in it. ``as_of``: what was known at that instant, whatever was learned since;
        it answers the same for ever once every write that began before it is committed. ``provenance``: with the provider and the
        feed of each bar.
        """
        query = (_DAILY if interval.is_daily else _INTRADAY)[provenance]
        if as_of is not None:
            query += _KNOWN_BY + _REPLACED_SINCE[provenance]
        kinds = _STORED_KINDS | (_ORIGIN_KINDS if provenance else {})
        columns = self._copied(query, kinds, {"symbol_ids": list(symbol_ids), "known_by": as_of, **_range(interval, start, end)})
        symbol_id, opened_at = columns["symbol_id"], columns["opened_at"]
        # The primary key mostly answers in this order; asking the server to sort would cost more than looking.
        ascending = (symbol_id[1:] > symbol_id[:-1]) | ((symbol_id[1:] == symbol_id[:-1]) & (opened_at[1:] > opened_at[:-1]))
        if not ascending.all():
            order = np.lexsort((opened_at, symbol_id))
            columns = {name: values[order] for name, values in columns.items()}
        return StoredCandles(
            symbol_id=columns["symbol_id"].astype(np.int32, copy=False),
            columns=_candles(columns),
            known_at=_unix_micros(columns["known_at"]),
            fetch_id=columns["fetch_id"].astype(np.int64, copy=False),
            flags=columns["flags"].astype(np.int16, copy=False),
            providers=self._names_of(columns["provider"]) if provenance else None,
            feeds=[Feed(feed).label for feed in columns["feed"].tolist()] if provenance else None,
        )

    def frame(
        self, symbol_ids: Sequence[int], interval: Interval, start: int, end: int, *, as_of: datetime | None = None
    ) -> pd.DataFrame:
        """The same bars as a frame: columns symbol_id, open, high, low, close, volume, vwap and trades (NaN where unknown).

        Indexed by ``opened_at``, aware, UTC; for 1d by ``session_date``, naive midnights.
        """
        import pandas as pd  # noqa: PLC0415 - half a second that no other read pays

        stored = self.read(symbol_ids, interval, start, end, as_of=as_of)
        opened_at = stored.columns.opened_at.view("datetime64[s]").astype("datetime64[us]")
        index = pd.DatetimeIndex(opened_at, name="session_date" if interval.is_daily else "opened_at")
        if not interval.is_daily:
            index = index.tz_localize("UTC")
        values = {name: getattr(stored.columns, name) for name in VALUES}
        return pd.DataFrame({"symbol_id": stored.symbol_id, **values}, index=index, copy=False)

    def revisions(self, symbol_id: int, interval: Interval, start: int, end: int) -> StoredRevisions:
        """Every value that was replaced, of bars that opened in [start, end), sorted by (opened_at, known_from)."""
        columns = self._copied(_REVISIONS, _REVISION_KINDS, {"symbol_id": symbol_id, **_range(interval, start, end)})
        order = np.lexsort((columns["known_from"], columns["opened_at"]))
        columns = {name: values[order] for name, values in columns.items()}
        return StoredRevisions(
            columns=_candles(columns),
            known_from=_unix_micros(columns["known_from"]),
            known_to=_unix_micros(columns["known_to"]),
            fetch_id=columns["fetch_id"].astype(np.int64, copy=False),
        )

    def _names_of(self, providers: binary.Array) -> list[str]:
        with self._engine.connect() as connection:
            names = {row[0]: row[1] for row in connection.exec_driver_sql(_PROVIDERS)}
        return [names.get(provider, f"number {provider}") for provider in providers.tolist()]

    def _copied(self, query: str, kinds: Mapping[str, str], parameters: Mapping[str, object]) -> dict[str, binary.Array]:
        body = io.BytesIO()
        with transaction(self._engine) as cursor:
            # COPY takes no bound parameters: the driver puts them in, quoted.
            statement = b"copy (" + cursor.mogrify(query, dict(parameters)) + b") to stdout (format binary)"
            cursor.copy_expert(statement, body)
        return binary.decode(body.getbuffer(), kinds)


def _range(interval: Interval, start: int, end: int) -> dict[str, object]:
    days = {"first": -(-start // 86_400), "beyond": -(-end // 86_400)}
    return {
        "interval_s": interval.seconds,
        "start": EPOCH + timedelta(seconds=start),
        "end": EPOCH + timedelta(seconds=end),
        **{name: EPOCH.date() + timedelta(days=day) for name, day in days.items()},
    }


def _candles(columns: Mapping[str, binary.Array]) -> CandleColumns:
    opened_at = _unix_micros(columns["opened_at"]) // 1_000_000
    return CandleColumns(opened_at, **{name: columns[name] for name in VALUES})


def _unix_micros(postgres_micros: binary.Array) -> npt.NDArray[np.int64]:
    return postgres_micros.astype(np.int64, copy=False) + binary.EPOCH_SECONDS * 1_000_000
