"""Where siblings meet: what a provider is asked and answers, what the store takes and reports, and the clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from market_data_pipeline.domain.capabilities import HISTORY, Priority

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
    from market_data_pipeline.domain.capabilities import Capability, Feed, RateLimit
    from market_data_pipeline.domain.errors import ProviderError
    from market_data_pipeline.domain.finality import Settlement


class Clock(Protocol):
    """Tells the time. ``is_virtual``: knowledge times then come from it and not from the database's clock."""

    is_virtual: bool

    def now(self) -> datetime:
        """The current instant, aware, UTC."""
        ...


# --- providers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BarsRequest:
    """Bars of one symbol, as the provider names it, that opened in the half-open window [start, end), epoch seconds UTC."""

    symbol: str
    interval: Interval
    start: int
    end: int
    priority: Priority = HISTORY


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

    ``interval`` is that of bars, None for everything else; ``capability`` names what was asked for, "" where it follows from the
    interval. ``request`` is redacted. ``outcome`` is "ok" or the ``kind`` of a ProviderError. ``dropped`` counts rows left out, by
    reason. ``payload_sha256`` is of the body as received, less a key that the vendor repeated in it; None where there was no
    body. ``attempts``: HTTP requests sent for it, retries included; 0 where it was refused before sending. ``latency_seconds`` is
    that of the last attempt.
    """

    provider: str
    symbol: str
    interval: Interval | None
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
    capability: str = ""


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
    ``flags``: repair flags (``domain.quality``), one a row of ``columns``, or None where nothing was repaired. ``newest``: the
    provider's own newest stamp (last trade, epoch seconds), None where it tells none: an answer from the past shows by it.
    ``previous_close``: the close before the window, as the answer itself names it, None where it does not.
    ``outside_opened_at``: the stamps of intraday rows left out for their stamp, outside the window or off the minute: bars that are
    named by their close show by them. None where there are none.
    """

    request: BarsRequest
    fetch: Fetch
    columns: CandleColumns
    null_opened_at: Int64s
    float32_prices: bool = False
    actions: Sequence[CorporateAction] = ()
    currency: str | None = None
    flags: Int16s | None = None
    newest: int | None = None
    previous_close: float | None = None
    outside_opened_at: Int64s | None = None


class Provider(Protocol):
    """A vendor: what it can do, and under which limits. It has the methods of its capabilities, safe to call from several threads.

    ``account``: whose budget a request spends, the fingerprint of a key and never the key; "" where there is none. ``lacking``:
    what must be set before it can be asked ("MDP_FINNHUB_KEY is not set"), None where nothing is. ``limits``: as documented.
    ``probe_symbol``: something it surely knows, for `mdp providers probe`.
    """

    name: str
    account: str
    lacking: str | None
    limits: Sequence[RateLimit]
    probe_symbol: str

    @property
    def capabilities(self) -> Sequence[Capability]:
        """Everything it can do, whether this key may or not."""
        ...


@runtime_checkable
class BarsProvider(Provider, Protocol):
    """A vendor that serves bars."""

    def fetch_bars(self, request: BarsRequest, *, now: datetime) -> BarsAnswer:
        """One request, one answer. Raises the ProviderError that says how it failed; never sends a request beyond its reach."""
        ...


@runtime_checkable
class ManyBarsProvider(BarsProvider, Protocol):
    """A vendor that serves bars of several symbols in one request (``Capability.symbols_per_request``)."""

    def fetch_bars_of_many(self, requests: Sequence[BarsRequest], *, now: datetime) -> Sequence[BarsAnswer | ProviderError]:
        """The answers in the order of ``requests``, which share interval and window. Raises where the whole call failed.

        Each answer has its own ``fetch``; the HTTP requests sent are counted (``attempts``) in the first only.
        """
        ...


@dataclass(frozen=True, slots=True)
class RefusedRecord:
    """Something in an answer that could not be used: as text that survives JSON, with the reason. Kept and replayable."""

    record: str
    reason: str


@dataclass(frozen=True, slots=True)
class Quote:
    """The best bid and ask of one symbol, as the provider names it. Prices in ``currency``; None where the provider has none.

    ``quoted_at``: when the provider says it was so; None where it does not say. Sizes in shares. ``delay_seconds`` as declared.
    """

    symbol: str
    bid: float | None
    ask: float | None
    bid_size: float | None
    ask_size: float | None
    last: float | None
    last_at: datetime | None
    quoted_at: datetime | None
    volume: float | None = None
    previous_close: float | None = None
    currency: str | None = None
    market_state: str | None = None
    delay_seconds: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class QuotesAnswer:
    """Quotes of the symbols asked for. ``unknown``: those that the provider does not know, told apart from those it refused."""

    fetch: Fetch
    quotes: Sequence[Quote]
    unknown: Sequence[str] = ()
    refused: Sequence[RefusedRecord] = ()


@runtime_checkable
class QuotesProvider(Provider, Protocol):
    """A vendor that serves quotes."""

    def fetch_quotes(self, symbols: Sequence[str], *, priority: Priority, now: datetime) -> QuotesAnswer:
        """Quotes of at most ``symbols_per_request`` symbols. Raises the ProviderError that says how it failed."""
        ...


@dataclass(frozen=True, slots=True)
class OptionQuote:
    """One contract of a chain. ``right``: "C" or "P". ``root``: the option class (SPXW is not SPX; AMD1 is adjusted).

    None where the provider has nothing: never 0 for unknown. ``iv`` and the greeks are the provider's own, unchecked.
    """

    contract: str
    root: str
    expiry: date
    strike: float
    right: str
    bid: float | None
    ask: float | None
    last: float | None
    last_at: datetime | None
    volume: float | None
    open_interest: float | None
    iv: float | None = None
    delta: float | None = None
    gamma: float | None = None
    vega: float | None = None
    theta: float | None = None
    rho: float | None = None
    bid_size: float | None = None
    ask_size: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ChainAnswer:
    """A chain at one moment. ``taken_at``: the provider's own stamp of it. ``complete``: every expiry that was listed is in it."""

    fetch: Fetch
    symbol: str
    taken_at: datetime
    spot: float | None
    contracts: Sequence[OptionQuote]
    complete: bool
    refused: Sequence[RefusedRecord] = ()


@runtime_checkable
class ChainProvider(Provider, Protocol):
    """A vendor that serves option chains."""

    def fetch_chain(self, symbol: str, *, expiry: date | None, priority: Priority, now: datetime) -> ChainAnswer:
        """The chain of one underlying; ``expiry`` None: every expiry. Raises the ProviderError that says how it failed."""
        ...


@dataclass(frozen=True, slots=True)
class Observation:
    """The value of a series for ``observed_on``, as published from ``realtime_start`` to ``realtime_end``, both included (days).

    ``value`` None is what the source says itself ("."): a published absence, which is information.
    """

    observed_on: date
    value: float | None
    realtime_start: date
    realtime_end: date


@dataclass(frozen=True, slots=True, eq=False)
class MacroAnswer:
    """Observations of one series, sorted by (observed_on, realtime_start), one a vintage. The rest as declared.

    ``has_vintages``: the realtime dates are those between which each value held, and everything ever published of an
    ``observed_on`` is here. False: one value each, as it read on the one day that its realtime dates name.
    """

    fetch: Fetch
    series: str
    observations: Sequence[Observation]
    units: str | None = None
    frequency: str | None = None
    refused: Sequence[RefusedRecord] = ()
    has_vintages: bool = False
    title: str | None = None


@runtime_checkable
class MacroProvider(Provider, Protocol):
    """A vendor that serves economic series with their vintages."""

    def fetch_observations(
        self, series: str, *, first: date | None, last: date | None, vintages: bool, priority: Priority, now: datetime
    ) -> MacroAnswer:
        """The observations of [first, last], None for no bound; ``vintages``: every one ever published, else the newest.

        Raises the ProviderError that says how it failed.
        """
        ...


class Budget(Protocol):
    """The right to send, shared by every process that asks a provider with the same account."""

    def take(self, provider: str, account: str, priority: Priority, *, patience_seconds: float) -> None:
        """Return when one request may be sent at once. Raises BudgetSpentError where that is further away than the patience."""
        ...

    def refused(self, provider: str, account: str, *, retry_after_seconds: float | None) -> None:
        """The provider said 429: hold everybody back, and learn a lower limit."""
        ...


# --- storage -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class AnsweredSession:
    """One (symbol, session) that a batch speaks about: its grid and what the answer said of it.

    ``bars``, ``silent`` and ``is_evidence`` as in ``healing.SessionAnswer``; ``due`` marks the slots whose bar should exist by now.
    ``is_whole``: the answer is about every slot. ``settlement``: when such an answer makes the session settled and final; None
    where nobody corrects anything: it is final at once.

    Of silence: ``quiet``: covered, and nothing there, whatever is around it; None where that is ``silent``. ``is_barren``: no bar
    of the session came, wanted or not. ``witnessed``: silent in one provider's answer, and another's with bars of the session has
    nothing there either; ``seconded``: two with bars of the session have nothing there, and no bar beyond it. None: nowhere.
    ``providers``: whose silence it is. ``starts_at``, ``ends_at``: of each slot, epoch seconds; None: no halt is looked up.
    ``next_over_at``: when all bars of the calendar's next session are due, epoch seconds. ``is_taken`` False: other values are kept
    than it holds, which the store finds out.
    """

    symbol_id: int
    session: date
    opens_at: int
    closes_at: int
    bars: Bools
    silent: Bools
    due: Bools
    is_evidence: bool = True
    is_whole: bool = True
    settlement: Settlement | None = None
    quiet: Bools | None = None
    is_barren: bool = False
    witnessed: Bools | None = None
    seconded: Bools | None = None
    providers: tuple[str, ...] = ()
    starts_at: Int64s | None = None
    ends_at: Int64s | None = None
    next_over_at: int | None = None
    is_taken: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class CandleBatch:
    """What the store takes in one transaction: judged bars of one interval, any number of symbols and sessions.

    Row arrays have one element a bar, sorted by (symbol_id, opened_at), unique in it, each bar on its session's grid.
    ``session_index`` points into ``sessions``, which is sorted by (symbol_id, session) and may hold sessions without bars.
    ``fetch_index`` points into ``fetches``, which say whose each bar is: one session may hold bars of several providers. ``feeds``:
    whose trades the bars of each fetch count, one a fetch; left empty, consolidated. ``flags``: repair flags, 0 for none.
    """

    interval: Interval
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
    feeds: Sequence[Feed] = ()
    fetch_symbol_ids: Sequence[int | None] = ()
    """The instrument of each fetch; left empty, it is taken from what points at the fetch (an answer without bars has nothing)."""


@dataclass(frozen=True, slots=True)
class WriteReport:
    """What one write changed. ``unchanged`` bars were already stored with the same values: nothing was written for them.

    ``left_alone`` bars are stored with other values, from a provider that this batch's may not overrule; ``flip_flops`` with other
    values of the same provider, which told this batch's too often before to be believed.
    """

    inserted: int = 0
    revised: int = 0
    unchanged: int = 0
    left_alone: int = 0
    flip_flops: int = 0
    refused: int = 0
    confirmed_empty: int = 0
    known_at: datetime | None = None


@dataclass(frozen=True, slots=True, eq=False)
class StoredCandles:
    """Candles read back, sorted by (symbol_id, opened_at); one array a column. ``known_at``: int64 epoch microseconds UTC.

    ``providers``, ``feeds`` and ``finalities``: the name of each bar's provider, the label of its feed, and how sure its session
    is; None where they were not asked for. How sure a session was is not kept: as of an instant there are no ``finalities``.
    ``is_filled``: the bars that are not stored but made up, with 0 for ``known_at`` and ``fetch_id``; None where none was to be.
    """

    symbol_id: Int32s
    columns: CandleColumns
    known_at: Int64s
    fetch_id: Int64s
    flags: Int16s
    providers: Sequence[str] | None = None
    feeds: Sequence[str] | None = None
    finalities: Sequence[str] | None = None
    is_filled: Bools | None = None


@dataclass(frozen=True, slots=True, eq=False)
class StoredRevisions:
    """Values that were replaced, sorted by (opened_at, known_from). Knowledge times: epoch microseconds UTC, [from, to)."""

    columns: CandleColumns
    known_from: Int64s
    known_to: Int64s
    fetch_id: Int64s
