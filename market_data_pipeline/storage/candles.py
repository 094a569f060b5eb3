"""Reads candles back, as they are known now or as they were known at any instant. Writing is bulk.py's."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from market_data_pipeline.domain.candles import CandleColumns, Interval
from market_data_pipeline.domain.capabilities import Feed
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.filling import carried_closes
from market_data_pipeline.domain.finality import Finality
from market_data_pipeline.domain.ports import StoredCandles, StoredRevisions
from market_data_pipeline.domain.sessions import date_of, day_number
from market_data_pipeline.storage import binary
from market_data_pipeline.storage.bitmaps import mask_of
from market_data_pipeline.storage.bulk import DAY_SECONDS, EPOCH, VALUES, transaction

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from sqlalchemy.engine import Engine

    from market_data_pipeline.domain.candles import Bools, Float64s, Int16s, Int32s, Int64s
    from market_data_pipeline.domain.filling import PreviousClose
    from market_data_pipeline.domain.sessions import ExpectedOpens

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
_FINALITIES = """
select symbol_id, session, extract(epoch from opens_at)::int8, extract(epoch from closes_at)::int8, finality
  from coverage
 where symbol_id = any(%(symbol_ids)s) and interval_s = %(interval_s)s and session between %(first)s and %(last)s
 order by symbol_id, session"""
_RESOLVED = """
select symbol_id, session, confirmed_empty, halted
  from coverage
 where symbol_id = any(%(symbol_ids)s) and interval_s = %(interval_s)s and session between %(first)s and %(last)s
   and (bit_count(confirmed_empty) > 0 or halted is not null)"""
_RESOLVED_BY = """
select symbol_id, session, case verdict when 'halted' then null else slots end, case verdict when 'halted' then slots end
  from verdict_evidence
 where symbol_id = any(%(symbol_ids)s) and interval_s = %(interval_s)s and session between %(first)s and %(last)s
   and decided_at <= %(known_by)s"""
_CLOSE_KINDS = {"symbol_id": binary.INT4, "opened_at": binary.TIMESTAMPTZ, "close": binary.FLOAT8, "flags": binary.INT2}
_CLOSES_INTRADAY = """
select symbol_id, opened_at, close, flags
  from candles_intraday
 where symbol_id = any(%(symbol_ids)s) and interval_s = %(interval_s)s and opened_at >= %(start)s and opened_at < %(end)s"""
_CLOSES_DAILY = """
select symbol_id, session_date::timestamp at time zone 'UTC' as opened_at, close, flags
  from candles_daily
 where symbol_id = any(%(symbol_ids)s) and session_date >= %(first)s and session_date < %(beyond)s"""
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


class Closes(NamedTuple):
    """Closes of stored bars, one element a bar, in no order. ``opened_at``: epoch seconds; ``flags`` of BarFlag."""

    symbol_id: Int32s
    opened_at: Int64s
    close: Float64s
    flags: Int16s


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
        fill: PreviousClose | None = None,
    ) -> StoredCandles:
        """The bars that opened in [start, end), epoch seconds UTC, sorted by (symbol_id, opened_at).

        For 1d the sessions whose midnight UTC lies in it. ``as_of``: what was known at that instant, whatever was learned since;
        it answers the same for ever once every write that began before it is committed. ``provenance``: with the provider and the
        feed of each bar, and now, how sure its session is. ``fill``: with bars made up where nothing was traded, by the verdicts
        that are (that were, as of then) confirmed, and never where a bar is missing. InvalidInputError for 1d: a day's previous
        close is another session's.
        """
        if fill is not None:
            return self._filled(symbol_ids, interval, start, end, as_of=as_of, provenance=provenance, expected=fill.expected)
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
            finalities=self._finalities(columns["symbol_id"], _unix_micros(columns["opened_at"]) // 1_000_000, interval)
            if provenance and as_of is None
            else None,
        )

    def closes(self, symbol_ids: Sequence[int], interval: Interval, start: int, end: int) -> Closes:
        """The closes alone of the bars that opened in [start, end), as they are known now: less than half the work of ``read``."""
        query = _CLOSES_DAILY if interval.is_daily else _CLOSES_INTRADAY
        columns = self._copied(query, _CLOSE_KINDS, {"symbol_ids": list(symbol_ids), **_range(interval, start, end)})
        return Closes(
            columns["symbol_id"].astype(np.int32, copy=False),
            _unix_micros(columns["opened_at"]) // 1_000_000,
            columns["close"].astype(np.float64, copy=False),
            columns["flags"].astype(np.int16, copy=False),
        )

    def frame(
        self,
        symbol_ids: Sequence[int],
        interval: Interval,
        start: int,
        end: int,
        *,
        as_of: datetime | None = None,
        fill: PreviousClose | None = None,
    ) -> pd.DataFrame:
        """The same bars as a frame: columns symbol_id, open, high, low, close, volume, vwap and trades (NaN where unknown).

        Indexed by ``opened_at``, aware, UTC; for 1d by ``session_date``, naive midnights. With ``fill``, a column ``is_filled``.
        """
        import pandas as pd  # noqa: PLC0415 - half a second that no other read pays

        stored = self.read(symbol_ids, interval, start, end, as_of=as_of, fill=fill)
        opened_at = stored.columns.opened_at.view("datetime64[s]").astype("datetime64[us]")
        index = pd.DatetimeIndex(opened_at, name="session_date" if interval.is_daily else "opened_at")
        if not interval.is_daily:
            index = index.tz_localize("UTC")
        values = {name: getattr(stored.columns, name) for name in VALUES}
        marks = {} if stored.is_filled is None else {"is_filled": stored.is_filled}
        return pd.DataFrame({"symbol_id": stored.symbol_id, **values, **marks}, index=index, copy=False)

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

    def _filled(
        self,
        symbol_ids: Sequence[int],
        interval: Interval,
        start: int,
        end: int,
        *,
        as_of: datetime | None,
        provenance: bool,
        expected: ExpectedOpens,
    ) -> StoredCandles:
        if interval.is_daily:
            raise InvalidInputError("1d bars cannot be filled: the close before a day is another session's; expected shorter bars")
        begins = min(start, int(expected.opened_at[0])) if len(expected) else start
        stored = self.read(symbol_ids, interval, begins, end, as_of=as_of, provenance=provenance)
        # After the bars: a bar that comes in between is no longer empty here, and one that is here is never covered.
        verdicts = self._resolved(symbol_ids, interval, expected, as_of=as_of)
        asked = (expected.opened_at >= start) & (expected.opened_at < end)
        parts = [_taken(stored, stored.columns.opened_at >= start)]
        for symbol_id in sorted(set(symbol_ids)):
            mine = stored.symbol_id == symbol_id
            close = np.full(len(expected), np.nan)
            places = np.searchsorted(expected.opened_at, stored.columns.opened_at[mine])
            on_grid = places < len(expected)
            on_grid[on_grid] = expected.opened_at[places[on_grid]] == stored.columns.opened_at[mine][on_grid]
            close[places[on_grid]] = stored.columns.close[mine][on_grid]
            empty, halted = verdicts[symbol_id]
            carried = carried_closes(close, empty=empty, halted=halted, session=expected.session)
            made = asked & ~np.isnan(carried)
            parts.append(_made_up(symbol_id, expected.opened_at[made], carried[made], provenance=provenance, as_of=as_of))
        return _joined(parts)

    def _resolved(
        self, symbol_ids: Sequence[int], interval: Interval, expected: ExpectedOpens, *, as_of: datetime | None
    ) -> dict[int, tuple[Bools, Bools]]:
        """By symbol, one element an expected bar: the confirmed-empty and the halted slots, now or as decided by then."""
        found = {symbol_id: (np.zeros(len(expected), bool), np.zeros(len(expected), bool)) for symbol_id in symbol_ids}
        if not len(expected):
            return found
        parameters = {
            "symbol_ids": list(symbol_ids),
            "interval_s": interval.seconds,
            "first": date_of(int(expected.session[0])),
            "last": date_of(int(expected.session[-1])),
            "known_by": as_of,
        }
        with self._engine.connect() as connection:
            for symbol_id, session, *slots in connection.exec_driver_sql(_RESOLVED if as_of is None else _RESOLVED_BY, parameters):
                first, last = np.searchsorted(expected.session, [day_number(session), day_number(session) + 1]).tolist()
                for mask, text in zip(found[symbol_id], slots, strict=True):
                    # Under another calendar than the ledger's nobody knows which slot is which.
                    if text is not None and len(text) == last - first:
                        mask[first:last] |= mask_of(text)
        return found

    def _finalities(self, symbol_id: binary.Array, opened_at: Int64s, interval: Interval) -> list[str]:
        """How sure the session of each bar is; "" where the ledger has none. Both arrays are sorted, by symbol and then by time."""
        labels = np.full(len(opened_at), "", dtype=object)
        if not len(opened_at):
            return []
        first, last = (date_of(int(edge) // DAY_SECONDS) for edge in (opened_at.min(), opened_at.max()))
        parameters = {
            "symbol_ids": np.unique(symbol_id).tolist(),
            "interval_s": interval.seconds,
            # A session's label may be the day before or after that of its bars in UTC.
            "first": first - timedelta(days=1),
            "last": last + timedelta(days=1),
        }
        with self._engine.connect() as connection:
            rows = connection.exec_driver_sql(_FINALITIES, parameters).all()
        for owner, sessions in groupby(rows, key=lambda row: row.symbol_id):
            bounds = np.searchsorted(symbol_id, [owner, owner + 1])
            mine = slice(*bounds.tolist())
            for _, session, opens_at, closes_at, finality in sessions:
                midnight = day_number(session) * DAY_SECONDS
                span = (midnight, midnight + 1) if interval.is_daily else (opens_at, closes_at)
                begin, end = (int(bounds[0]) + np.searchsorted(opened_at[mine], span)).tolist()
                labels[begin:end] = Finality(finality).name.lower()
        found: list[str] = labels.tolist()
        return found

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


def _taken(stored: StoredCandles, rows: Bools) -> StoredCandles:
    """Some of the bars, none of them filled."""

    def of(labels: Sequence[str] | None) -> list[str] | None:
        return None if labels is None else [label for label, is_taken in zip(labels, rows.tolist(), strict=True) if is_taken]

    return StoredCandles(
        symbol_id=stored.symbol_id[rows],
        columns=stored.columns.take(rows),
        known_at=stored.known_at[rows],
        fetch_id=stored.fetch_id[rows],
        flags=stored.flags[rows],
        providers=of(stored.providers),
        feeds=of(stored.feeds),
        finalities=of(stored.finalities),
        is_filled=np.zeros(int(rows.sum()), bool),
    )


def _made_up(
    symbol_id: int, opened_at: Int64s, close: npt.NDArray[np.float64], *, provenance: bool, as_of: datetime | None
) -> StoredCandles:
    """Flat bars without volume. They come from nobody."""
    count = len(opened_at)
    unknown, nobody = np.full(count, np.nan), [""] * count
    return StoredCandles(
        symbol_id=np.full(count, symbol_id, np.int32),
        columns=CandleColumns(opened_at, close, close, close, close, np.zeros(count), unknown, unknown),
        known_at=np.zeros(count, np.int64),
        fetch_id=np.zeros(count, np.int64),
        flags=np.zeros(count, np.int16),
        providers=nobody if provenance else None,
        feeds=nobody if provenance else None,
        finalities=nobody if provenance and as_of is None else None,
        is_filled=np.ones(count, bool),
    )


def _joined(parts: Sequence[StoredCandles]) -> StoredCandles:
    """The bars of all parts, sorted by (symbol_id, opened_at)."""
    symbol_id = np.concatenate([part.symbol_id for part in parts])
    columns = CandleColumns.concat([part.columns for part in parts])
    order = np.lexsort((columns.opened_at, symbol_id))

    def labels(name: str) -> list[str] | None:
        lists = [getattr(part, name) for part in parts]
        if lists[0] is None:
            return None
        joined = [label for one in lists for label in one]
        return [joined[place] for place in order.tolist()]

    return replace(
        parts[0],
        symbol_id=symbol_id[order],
        columns=columns.take(order),
        known_at=np.concatenate([part.known_at for part in parts])[order],
        fetch_id=np.concatenate([part.fetch_id for part in parts])[order],
        flags=np.concatenate([part.flags for part in parts])[order],
        providers=labels("providers"),
        feeds=labels("feeds"),
        finalities=labels("finalities"),
        is_filled=np.concatenate([part.is_filled for part in parts if part.is_filled is not None])[order],
    )


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
