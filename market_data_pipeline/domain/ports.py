"""Where siblings meet: what a provider is asked and answers, what the store takes and reports, and the clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date, datetime

    from market_data_pipeline.domain.candles import (
        Bools,
        CandleColumns,
        Int16s,
        Int32s,
        Int64s,
        Interval,
    )


class Clock(Protocol):
    """Tells the time. ``is_virtual``: knowledge times then come from it and not from the database's clock."""

    is_virtual: bool

    def now(self) -> datetime:
        """The current instant, aware, UTC."""
        ...


# --- providers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BarsCapability:
    """What a provider can do for one interval.

    ``reach_seconds``: how long ago the oldest bar may have opened (None: no limit). ``span_seconds``: the longest window of
    one request (None: no limit). ``delay_seconds``: how long after a bar's end the provider has it.
    """

    interval: Interval
    reach_seconds: int | None
    span_seconds: int | None
    delay_seconds: int = 0


@dataclass(frozen=True, slots=True)
class BarsRequest:
    """Bars of one symbol, as the provider names it, that opened in the half-open window [start, end), epoch seconds UTC."""

    symbol: str
    interval: Interval
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class CorporateAction:
    """A split or dividend as a provider told it. ``session``: the ex-date. ``value``: new per old shares, or cash per share."""

    kind: str
    session: date
    value: float
    currency: str | None = None


@dataclass(frozen=True, slots=True)
class Fetch:
    """The provenance of an answer, or of the lack of one: a row of ``fetches``.

    ``request`` is redacted. ``outcome`` is "ok" or the ``kind`` of a ProviderError. ``dropped`` counts rows left out, by
    reason. ``payload_sha256`` is of the body's bytes as received, None where there was no body. ``attempts``: HTTP requests sent
    for it, retries included; 0 where it was refused before sending. ``latency_seconds`` is that of the last attempt.
    """

    provider: str
    symbol: str
    interval: Interval
    request: str
    started_at: datetime
    latency_seconds: float
    outcome: str
    status: int | None = None
    rows: int = 0
    payload_bytes: int = 0
    payload_sha256: str | None = None
    error: str | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    attempts: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class RefusedBars:
    """Rows that broke a law: kept with their reason so that they can be looked at and replayed."""

    columns: CandleColumns
    reasons: Sequence[str]


@dataclass(frozen=True, slots=True, eq=False)
class BarsAnswer:
    """A provider's answer, parsed and not yet judged.

    ``columns``: every bar with numbers in it, sorted by stamp and unique, stamped with the bar's open (left edge); 1d is stamped
    with midnight UTC of the session date. ``null_opened_at``: the stamps answered with an explicit null bar (no information).
    ``float32_prices``: prices are float32 widened on the wire, so compare them at that resolution. ``currency`` as sent.
    """

    request: BarsRequest
    fetch: Fetch
    columns: CandleColumns
    null_opened_at: Int64s
    float32_prices: bool = False
    actions: Sequence[CorporateAction] = ()
    currency: str | None = None


class BarsProvider(Protocol):
    """A vendor that serves bars. Implementations are safe to call from several threads at once."""

    name: str

    def capability(self, interval: Interval) -> BarsCapability | None:
        """What it can do for ``interval``, None where it cannot serve it."""
        ...

    def fetch_bars(self, request: BarsRequest, *, now: datetime) -> BarsAnswer:
        """One request, one answer. Raises the ProviderError that says how it failed; never sends a request beyond its reach."""
        ...


# --- storage -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class AnsweredSession:
    """One (symbol, session) that a batch speaks about: its grid and what the answer said of it.

    ``bars`` and ``silent`` as in ``healing.SessionAnswer``; ``due`` marks the slots whose bar should exist by now.
    """

    symbol_id: int
    session: date
    opens_at: int
    closes_at: int
    bars: Bools
    silent: Bools
    due: Bools


@dataclass(frozen=True, slots=True, eq=False)
class CandleBatch:
    """What the store takes in one transaction: judged bars of one interval, any number of symbols and sessions.

    Row arrays have one element a bar, sorted by (symbol_id, opened_at), unique in it, each bar on its session's grid.
    ``session_index`` points into ``sessions``, which is sorted by (symbol_id, session) and may hold sessions without bars.
    ``fetch_index`` points into ``fetches``. ``flags``: repair flags, 0 for none.
    """

    interval: Interval
    provider: str
    symbol_id: Int32s
    columns: CandleColumns
    session_index: Int32s
    fetch_index: Int32s
    flags: Int16s
    sessions: Sequence[AnsweredSession]
    fetches: Sequence[Fetch]
    refused: Sequence[tuple[int, int, RefusedBars]] = ()
    """(symbol_id, fetch index, rows)."""
    actions: Sequence[tuple[int, int, CorporateAction]] = ()
    """(symbol_id, fetch index, action)."""
    float32_prices: bool = False
    fetch_symbol_ids: Sequence[int | None] = ()
    """The instrument of each fetch; left empty, it is taken from what points at the fetch (an answer without bars has nothing)."""


@dataclass(frozen=True, slots=True)
class WriteReport:
    """What one write changed. ``unchanged`` bars were already stored with the same values: nothing was written for them."""

    inserted: int = 0
    revised: int = 0
    unchanged: int = 0
    refused: int = 0
    confirmed_empty: int = 0
    known_at: datetime | None = None


@dataclass(frozen=True, slots=True, eq=False)
class StoredCandles:
    """Candles read back, sorted by (symbol_id, opened_at); one array a column. ``known_at``: int64 epoch microseconds UTC."""

    symbol_id: Int32s
    columns: CandleColumns
    known_at: Int64s
    fetch_id: Int64s
    flags: Int16s


@dataclass(frozen=True, slots=True, eq=False)
class StoredRevisions:
    """Values that were replaced, sorted by (opened_at, known_from). Knowledge times: epoch microseconds UTC, [from, to)."""

    columns: CandleColumns
    known_from: Int64s
    known_to: Int64s
    fetch_id: Int64s
