"""What adapters that serve bars share: refusing what is beyond a capability, and rows of the wire laid out as columns. No I/O."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import numpy as np

from market_data_pipeline.domain.candles import CandleColumns
from market_data_pipeline.domain.errors import EntitlementError, OutOfReachError, PayloadError
from market_data_pipeline.domain.ports import BarsAnswer
from market_data_pipeline.domain.quality import BarFlag
from market_data_pipeline.providers.wire import COLUMNS, numbers, shown, without_repeats

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from market_data_pipeline.domain.candles import Bools, Int16s, Int64s, Interval
    from market_data_pipeline.domain.capabilities import Capability
    from market_data_pipeline.domain.ports import BarsRequest, Fetch

DAY = 86_400
NEW_YORK = ZoneInfo("America/New_York")
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()


# --- asking ------------------------------------------------------------------------------------------------------------


def refuse_lacking(lacking: str | None, provider: str) -> None:
    """EntitlementError for a provider that lacks its key: sending nothing is kinder than being refused."""
    if lacking is not None:
        raise EntitlementError(lacking, provider=provider)


def refuse_beyond_reach(
    request: BarsRequest, capabilities: Mapping[Interval, Capability], *, now: datetime, provider: str
) -> Capability:
    """The capability that serves ``request``; OutOfReachError where none does, or not this much, or not from so long ago.

    A provider would answer such a request with an error or, worse, with a part of it: better said here, at no cost to anybody.
    """
    capability = capabilities.get(request.interval)
    if capability is None:
        served = ", ".join(capabilities) or "none"
        raise OutOfReachError(f"{request.interval} bars are not fetched from here: only {served}", provider=provider)
    if request.end <= request.start:
        raise OutOfReachError(f"an empty window: {window_of(request)}", provider=provider)
    span, reach = capability.span_seconds, capability.reach_seconds
    if span is not None and request.end - request.start > span:
        raise OutOfReachError(f"{window_of(request)} is longer than the {span / DAY:g} days of one request", provider=provider)
    if reach is not None and request.start < now.timestamp() - reach:
        raise OutOfReachError(f"{window_of(request)} begins more than {reach / DAY:g} days ago", provider=provider)
    return capability


def window_of(request: BarsRequest) -> str:
    """What is asked for, as text for messages."""
    first, last = (datetime.fromtimestamp(at, UTC).isoformat() for at in (request.start, request.end))
    return f"{request.symbol} {request.interval} from {first} to {last}"


def session_dates(request: BarsRequest) -> tuple[date, date]:
    """The first and the last session date that a request for 1d is about.

    Dates in UTC: for every exchange, the instants of a regular session that windows are made of lie on its date, or on the one
    before for one that opens before UTC midnight; whoever plans the windows drops what it did not ask for.
    """
    first, last = (datetime.fromtimestamp(at, UTC).date() for at in (request.start, request.end - 1))
    return first, last


def label_of(session: date) -> int:
    """Midnight UTC of a session date: what a 1d bar is stamped with."""
    return (session.toordinal() - _EPOCH_ORDINAL) * DAY


def midnight_of(session: date, zone: ZoneInfo) -> int:
    """The instant a date begins in ``zone``, epoch seconds."""
    return int(datetime(session.year, session.month, session.day, tzinfo=zone).timestamp())


def local_labels(stamps: Int64s, zone: ZoneInfo) -> Int64s:
    """Midnight UTC of each stamp's date in ``zone``; a stamp that no calendar can hold keeps itself, and is in no window."""
    labels = stamps.copy()
    # Year 1 to 9999, less a day for the zone: what datetime can hold.
    holdable = (stamps > -62_135_500_000) & (stamps < 253_402_200_000)
    labels[holdable] = [label_of(datetime.fromtimestamp(stamp, zone).date()) for stamp in stamps[holdable].tolist()]
    return labels


# --- rows as columns ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class ParsedBars:
    """The bars of one symbol in a body. Sorted and unique, stamped with their opens.

    ``received`` rows were in the body: each is in ``columns``, in ``null_opened_at`` or counted in ``dropped``.
    ``flags`` (``BarFlag``): one a row of ``columns``. ``outside_opened_at``: the stamps of intraday rows left out for their stamp,
    outside the window or off the grid of the interval; None where there are none.
    """

    columns: CandleColumns
    null_opened_at: Int64s
    flags: Int16s
    received: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    outside_opened_at: Int64s | None = None

    @classmethod
    def empty(cls) -> ParsedBars:
        """No bars."""
        return cls(CandleColumns.empty(), np.empty(0, np.int64), np.empty(0, np.int16))


@dataclass(frozen=True, slots=True)
class RowNames:
    """What a vendor calls the members of a row. ``vwap`` and ``trades``: None where it has none."""

    open: str = "o"
    high: str = "h"
    low: str = "l"
    close: str = "c"
    volume: str = "v"
    vwap: str | None = None
    trades: str | None = None


def columns_of_rows(rows: Sequence[Any], names: RowNames, where: str, provider: str) -> dict[str, list[Any]]:
    """A list of row objects as one list a column. PayloadError where a row is no object; what a row lacks is null."""
    for row in rows:
        if not isinstance(row, dict):
            raise PayloadError(f"{where} holds something that is no row: {shown(row)}", provider=provider)
    called = {name: getattr(names, name) for name in (*COLUMNS, "vwap", "trades")}
    return {name: [row.get(key) for row in rows] for name, key in called.items() if key is not None}


def lay_out(
    labels: Int64s,
    columns: Mapping[str, Sequence[Any]],
    request: BarsRequest,
    *,
    provider: str,
    stamps: Int64s | None = None,
    aligned: Bools | None = None,
) -> ParsedBars:
    """The rows of ``request``'s window as bars and null bars, both sorted and unique; what is left out is counted.

    ``labels``: what each row is named by, its open, or for 1d midnight UTC of its session. ``stamps``: as on the wire, where that
    is something else. ``aligned``: the rows on the grid of the interval; by default those on a minute. Dropped and counted:
    "outside_window", "unaligned", "live_duplicate", "duplicate", "conflicting_duplicate".

    A value that is no number is NaN, so that the judge refuses its row by name. Raises PayloadError where columns are ragged.
    """
    length = len(labels)
    read = [numbers(columns.get(name), name, length, provider) for name in COLUMNS]
    extra = [
        numbers(columns[name], name, length, provider).values if name in columns else np.full(length, np.nan)
        for name in ("vwap", "trades")
    ]
    dropped = Counter[str]()
    inside = _inside(labels, request)
    if aligned is None:
        aligned = labels % 60 == 0
    dropped["outside_window"] += int((~inside).sum())
    dropped["unaligned"] += int((inside & ~aligned).sum())
    usable = inside & aligned

    # No price and no volume is no information; a volume without prices is a broken row, for the judge to refuse.
    open_, high, low, close, volume = read
    no_price = open_.is_null & high.is_null & low.is_null & close.is_null
    is_null = no_price & (volume.is_null | (volume.values == 0))
    is_text = np.logical_or.reduce([column.is_text for column in read])
    flags = np.where(is_text, np.int16(BarFlag.STRING_NUMBERS), np.int16(0)).astype(np.int16)
    laid = CandleColumns(labels, *(column.values for column in read), *extra)
    bars = np.flatnonzero(usable & ~is_null)
    on_wire = labels if stamps is None else stamps
    kept, flags = without_repeats(laid.take(bars), flags[bars], dropped, stamps=on_wire[bars])

    null_labels = labels[usable & is_null]
    nulls = np.setdiff1d(null_labels, kept.opened_at)
    dropped["duplicate"] += len(null_labels) - len(nulls)
    return ParsedBars(
        kept,
        nulls,
        flags,
        received=length,
        dropped={k: n for k, n in sorted(dropped.items()) if n},
        outside_opened_at=None if request.interval.is_daily or usable.all() else labels[~usable],
    )


def _inside(labels: Int64s, request: BarsRequest) -> Bools:
    if request.interval.is_daily:
        first, last = session_dates(request)
        return (labels >= label_of(first)) & (labels <= label_of(last))
    return (labels >= request.start) & (labels < request.end)


def joined(parts: Sequence[Mapping[str, Sequence[Any]]]) -> dict[str, list[Any]]:
    """The columns of several pages one after the other; every page has the same ones."""
    names = parts[0] if parts else ()
    return {name: [value for part in parts for value in part[name]] for name in names}


# --- answers -----------------------------------------------------------------------------------------------------------


def answer_of(
    request: BarsRequest, fetch: Fetch, parsed: ParsedBars, *, currency: str | None = None, newest: int | None = None
) -> BarsAnswer:
    """What an adapter hands out, from what its parser found."""
    return BarsAnswer(
        request=request,
        fetch=fetch,
        columns=parsed.columns,
        null_opened_at=parsed.null_opened_at,
        currency=currency,
        flags=parsed.flags if parsed.flags.any() else None,
        newest=newest,
        outside_opened_at=parsed.outside_opened_at,
    )


def of_all_pages(fetch: Fetch, bodies: Sequence[bytes]) -> Fetch:
    """``fetch`` with the size and the digest of all pages, in their order, instead of those of the last."""
    if len(bodies) < 2:
        return fetch
    whole = sha256()
    for body in bodies:
        whole.update(body)
    return replace(fetch, payload_bytes=sum(map(len, bodies)), payload_sha256=whole.hexdigest())
