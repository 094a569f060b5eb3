"""CBOE's delayed quotes: files on a CDN, one a symbol, without a key. Undocumented: what follows was read in recorded bodies.

A file names its making in UTC and its trades in New York time. Index files begin with an underscore and write numbers as text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote

import numpy as np

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.capabilities import (
    OPTIONS_CHAIN,
    QUOTES_L1,
    US,
    Basis,
    Capability,
    Feed,
    RateLimit,
    Stamp,
    bars_capability,
)
from market_data_pipeline.domain.errors import (
    EntitlementError,
    OutOfReachError,
    PayloadError,
    StaleError,
    UnknownSymbolError,
)
from market_data_pipeline.domain.ports import ChainAnswer, OptionQuote, Quote, QuotesAnswer
from market_data_pipeline.domain.quality import BarFlag
from market_data_pipeline.providers.bars import (
    DAY,
    NEW_YORK,
    ParsedBars,
    RowNames,
    answer_of,
    columns_of_rows,
    label_of,
    lay_out,
    refuse_beyond_reach,
)
from market_data_pipeline.providers.http import describe
from market_data_pipeline.providers.records import ContractName, Record, UnusableRecordError, read_records
from market_data_pipeline.providers.wire import COLUMNS, PRICES, Exchange, listing, mapping, parse_json, refuse_outage, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import date

    from market_data_pipeline.domain.capabilities import Priority
    from market_data_pipeline.domain.ports import BarsAnswer, BarsRequest, RefusedRecord
    from market_data_pipeline.providers.http import HttpAnswer, HttpClient
    from market_data_pipeline.providers.registry import ProviderContext

NAME = "cboe"
FILES = "/api/global/delayed_quotes"
_DELAY_SECONDS = 15 * 60
# No quota is published. A file is renewed every few seconds at best, so there is no point in asking for more.
LIMITS = (RateLimit(2, 1.0), RateLimit(60, 60.0))

# US shares, and indices in the hours of CBOE itself.
_MARKETS = US | {"XCBF"}
CAPABILITIES: Mapping[Interval, Capability] = MappingProxyType(
    {
        # The latest session and no other. Whose volume it counts is not said and no body was recorded: kept apart from the
        # consolidated series until somebody has measured it.
        Interval.M1: bars_capability(
            Interval.M1,
            reach_seconds=DAY,
            span_seconds=DAY,
            delay_seconds=_DELAY_SECONDS,
            stamp=Stamp.CLOSE,
            basis=Basis.RAW,
            feed=Feed.CBOE,
            calendars=_MARKETS,
        ),
        # Consolidated and split-adjusted: AAPL's recorded volume of 2020-08-28, 187,629,916, is four times what was traded. Two
        # decimals. The file is made at 11:00 UTC of a working day: on Saturday it still ends with Thursday.
        Interval.D1: bars_capability(
            Interval.D1, reach_seconds=None, span_seconds=None, delay_seconds=64 * 3600, stamp=Stamp.DATE, calendars=_MARKETS
        ),
    }
)
# Whose bid and ask it is, is not said: AAPL's recorded spread at the close, 14 cents, is not that of the whole market.
QUOTES = Capability(name=QUOTES_L1, delay_seconds=_DELAY_SECONDS, basis=Basis.RAW, feed=Feed.CBOE)
CHAINS = Capability(name=OPTIONS_CHAIN, delay_seconds=_DELAY_SECONDS, basis=Basis.RAW)

_ROW = RowNames("open", "high", "low", "close", "volume")
_GREEKS = ("delta", "gamma", "vega", "theta", "rho")
# What stands where there never was a trade, or is no such symbol.
_NEVER = datetime(2000, 1, 1)  # noqa: DTZ001 - as the file writes it, in New York time
_YEARS = range(1900, 2200)
_STAMP = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d{1,6})?", re.ASCII)

_T = TypeVar("_T")


class CboeProvider:
    """Option chains, quotes and bars of the delayed files. Safe to use from several threads."""

    name = NAME
    account = ""
    lacking: str | None = None
    limits: Sequence[RateLimit] = LIMITS
    probe_symbol = "AAPL"
    capabilities: Sequence[Capability] = (*CAPABILITIES.values(), QUOTES, CHAINS)

    @classmethod
    def open(cls, context: ProviderContext) -> Self:
        """From the settings: no key is needed."""
        return cls(context.http, base_url=context.settings.cboe_base_url, user_agent=context.settings.yahoo_user_agent)

    def __init__(self, http: HttpClient, *, base_url: str, user_agent: str) -> None:
        self._http = http
        self._base_url = base_url.rstrip("/")
        # The CDN turns away what does not look like a browser.
        self._headers = {"user-agent": user_agent, "accept": "application/json"}

    def fetch_bars(self, request: BarsRequest, *, now: datetime) -> BarsAnswer:
        """The whole file and of it the window: a day's minutes, or every day there is. An error carries its ``fetch``.

        Raises OutOfReachError, with nothing sent, for what the capability does not cover; else what ``HttpClient.get`` raises,
        UnknownSymbolError and PayloadError.
        """
        kind, parse = ("historical", parse_days) if request.interval.is_daily else ("intraday", parse_minutes)
        url = self._url(f"charts/{kind}", request.symbol)
        exchange = Exchange(
            provider=NAME, symbol=request.symbol, interval=request.interval, request=describe(url, {}, {}), started_at=now
        )
        with exchange.on_record():
            refuse_beyond_reach(request, CAPABILITIES, now=now, provider=NAME)
            parsed, newest = self._ask(url, request.symbol, exchange, request.priority, lambda a: parse(a.body, request))
        fetch = exchange.provenance(rows=len(parsed.columns), dropped=parsed.dropped)
        return answer_of(request, fetch, parsed, currency="USD", newest=newest)

    def fetch_quotes(self, symbols: Sequence[str], *, priority: Priority, now: datetime) -> QuotesAnswer:
        """The quote of one symbol. One that CBOE has no file of is ``unknown``; any other error is raised with its ``fetch``.

        Raises OutOfReachError, with nothing sent, for any other number of symbols; else what ``HttpClient.get`` raises, StaleError
        for a symbol that never traded, and PayloadError.
        """
        symbol = ",".join(symbols)
        url = self._url("quotes", symbol)
        exchange = self._exchange(url, symbol, QUOTES_L1, now)
        try:
            with exchange.on_record():
                if len(symbols) != 1:
                    raise OutOfReachError(f"{len(symbols)} symbols: one a request", provider=NAME)
                quotes, refused = self._ask(url, symbol, exchange, priority, lambda a: parse_quote(a, symbol))
        except UnknownSymbolError as unknown:
            return QuotesAnswer(fetch=unknown.fetch or exchange.provenance(outcome=unknown.kind), quotes=(), unknown=symbols)
        fetch = exchange.provenance(rows=len(quotes), dropped={"refused": len(refused)} if refused else {})
        return QuotesAnswer(fetch=fetch, quotes=quotes, refused=refused)

    def fetch_chain(self, symbol: str, *, expiry: date | None, priority: Priority, now: datetime) -> ChainAnswer:
        """The chain of one underlying, whole in one request; of it ``expiry``, where one is given. An error carries its ``fetch``.

        Raises what ``HttpClient.get`` raises, UnknownSymbolError, StaleError for a symbol that never traded and PayloadError.
        """
        url = self._url("options", symbol)
        exchange = self._exchange(url, symbol, OPTIONS_CHAIN, now)
        with exchange.on_record():
            chain = self._ask(url, symbol, exchange, priority, lambda a: parse_chain(a, symbol))
        contracts = [contract for contract in chain.contracts if expiry in {None, contract.expiry}]
        counts = {"not_asked": len(chain.contracts) - len(contracts), "refused": len(chain.refused)}
        fetch = exchange.provenance(rows=len(contracts), dropped={name: count for name, count in counts.items() if count})
        return ChainAnswer(
            fetch=fetch,
            symbol=symbol,
            taken_at=chain.taken_at,
            spot=chain.spot,
            contracts=contracts,
            complete=True,
            refused=chain.refused,
        )

    def _url(self, kind: str, symbol: str) -> str:
        return f"{self._base_url}{FILES}/{kind}/{quote(file_of(symbol), safe='')}.json"

    def _exchange(self, url: str, symbol: str, capability: str, now: datetime) -> Exchange:
        return Exchange(provider=NAME, symbol=symbol, request=describe(url, {}, {}), started_at=now, capability=capability)

    def _ask(self, url: str, symbol: str, exchange: Exchange, priority: Priority, parse: Callable[[HttpAnswer], _T]) -> _T:
        found: list[_T] = []

        def check(answer: HttpAnswer) -> None:
            # The CDN's or the bucket's own page; JSON would be somebody else's.
            if answer.status == 404 and answer.body.lstrip()[:1] in {b"<", b""}:
                raise UnknownSymbolError(f"{symbol}: HTTP 404: there is no such file", provider=NAME)
            refuse_outage(answer, NAME)
            if answer.status != 200:
                raise PayloadError(f"HTTP {answer.status}, which this CDN does not answer: {answer.excerpt()}", provider=NAME)
            found.append(parse(answer))

        try:
            self._http.get(
                url, None, self._headers, provider=NAME, priority=priority, check=check, attempts=exchange.attempts, cached=True
            )
        except EntitlementError as refused:
            # A bucket behind a CDN says so of what it does not have; a CDN that turns us away sends a web page.
            if "<Code>AccessDenied</Code>" not in str(refused):
                raise
        else:
            return found[-1]
        raise UnknownSymbolError(f"{symbol}: HTTP 403 AccessDenied: there is no such file", provider=NAME)


def file_of(symbol: str) -> str:
    """The name of a symbol's files: an index, which others call ^SPX, is _SPX here."""
    return f"_{symbol[1:]}" if symbol.startswith("^") else symbol


# --- parsing: pure, from here on ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class ParsedChain:
    """The contracts of one body. ``received`` were in it: each is in ``contracts`` or in ``refused``."""

    taken_at: datetime
    spot: float | None
    contracts: Sequence[OptionQuote]
    refused: Sequence[RefusedRecord]
    received: int


def parse_chain(answer: HttpAnswer, symbol: str) -> ParsedChain:
    """The contracts in a body of options/``symbol``.json.

    A price of 0 is none, and so is a volatility of 0; greeks that are all 0 were not computed. ``spot`` is None for an underlying
    without a trade. Refused: a name that is none, a second contract of one name, numbers that are negative, not finite or none.
    Raises PayloadError, and StaleError where the underlying never traded and there is no contract either.
    """
    document, data = _document(answer.body, symbol)
    records = listing(data.get("options"), "data.options", NAME)
    contracts, refused = read_records(records, _contract, name=lambda contract: contract.contract)
    spot, has_traded = _spot(Record(data))
    if not records and not has_traded:
        raise StaleError(f"{symbol}: no contract, and no trade since 2000-01-01", provider=NAME)
    return ParsedChain(_made_at(document, answer), spot, contracts, refused, len(records))


def _spot(underlying: Record) -> tuple[float | None, bool]:
    """The underlying's last price, and whether it ever traded. What is broken in it costs its price, not the chain."""
    try:
        has_traded = underlying.fields.get("last_trade_time") is None or _trade_time(underlying) is not None
        return (underlying.price("current_price") if has_traded else None), has_traded
    except UnusableRecordError:
        return None, True


def _contract(record: Record) -> OptionQuote:
    contract = record.text("option")
    name = ContractName.of(contract)
    bid, ask, last = record.price("bid"), record.price("ask"), record.price("last_trade_price")
    greeks: dict[str, float | None] = {greek: record.signed(greek) for greek in _GREEKS}
    if not any(greeks.values()):
        greeks = dict.fromkeys(_GREEKS)
    return OptionQuote(
        contract=str(contract),
        root=name.root,
        expiry=name.expiry,
        strike=name.strike,
        right=name.right,
        bid=bid,
        ask=ask,
        last=last,
        last_at=_trade_time(record),
        volume=record.amount("volume"),
        open_interest=record.amount("open_interest"),
        iv=record.price("iv"),
        bid_size=record.price("bid_size") if bid is not None else None,
        ask_size=record.price("ask_size") if ask is not None else None,
        **greeks,
    )


def parse_quote(answer: HttpAnswer, symbol: str) -> tuple[list[Quote], list[RefusedRecord]]:
    """The quote in a body of quotes/``symbol``.json, or why it is refused. Sizes are shares as sent (40 is a round lot at $300).

    ``quoted_at``: when the file was made. ``previous_close`` as sent: after the close it is that of the same day. Raises
    PayloadError, and StaleError where it never traded.
    """
    document, data = _document(answer.body, symbol)
    made_at = _made_at(document, answer)

    def read(record: Record) -> Quote:
        last_at = _trade_time(record)
        if last_at is None and record.fields.get("last_trade_time") is not None:
            raise StaleError(f"{symbol}: no trade since 2000-01-01", provider=NAME)
        bid, ask, last = record.price("bid"), record.price("ask"), record.price("current_price")
        if bid is None and ask is None and last is None:
            raise UnusableRecordError(f"{symbol} has no bid, no ask and no last price")
        return Quote(
            symbol=symbol,
            bid=bid,
            ask=ask,
            bid_size=record.price("bid_size") if bid is not None else None,
            ask_size=record.price("ask_size") if ask is not None else None,
            last=last,
            last_at=last_at,
            quoted_at=made_at,
            volume=record.amount("volume"),
            previous_close=record.price("prev_day_close"),
            currency="USD",
            delay_seconds=_DELAY_SECONDS,
        )

    return read_records([data], read, name=lambda found: found.symbol)


def parse_days(body: bytes, request: BarsRequest) -> tuple[ParsedBars, int | None]:
    """The days of charts/historical, and the close of the newest one in the file. An index has no volume: 0.

    Raises PayloadError where the body is of another symbol or a row has no date.
    """
    document = _of_symbol(body, request.symbol)
    rows = listing(document.get("data"), "data", NAME)
    columns = columns_of_rows(rows, _ROW, "data", NAME)
    if rows and not any("volume" in row for row in rows):
        columns["volume"] = [0] * len(rows)
    days = np.array([_day(row.get("date")) for row in rows], np.int64)
    parsed = lay_out(days, columns, request, provider=NAME)
    if file_of(request.symbol).startswith("_"):
        # Its way of writing indices, and no repair.
        parsed.flags[:] &= ~np.int16(BarFlag.STRING_NUMBERS)
    return parsed, _close_of(int(days.max())) if len(days) else None


def _close_of(label: int) -> int:
    """16:00 in New York of the day that ``label`` names; on a half day it is later than the truth, and still that day."""
    session = datetime.fromtimestamp(label, UTC)
    return int(session.replace(hour=16, tzinfo=NEW_YORK).timestamp())


def parse_minutes(body: bytes, request: BarsRequest) -> tuple[ParsedBars, int | None]:
    """The minutes of charts/intraday by their opens, and the close of the newest one with a price.

    A row is named by its close, 09:31 to 16:00. Minutes without a trade are written as zeros: no information, since those still to
    come are, too. Raises PayloadError where the body is of another symbol or a row has no time.
    """
    document = _of_symbol(body, request.symbol)
    rows = [mapping(row, NAME) for row in listing(document.get("data"), "data", NAME)]
    closes = np.array([_minute(row.get("datetime")) for row in rows], np.int64)
    prices = [mapping(row.get("price"), NAME) for row in rows]
    volumes = [mapping(row.get("volume"), NAME).get("stock_volume") for row in rows]
    columns: dict[str, list[Any]] = {name: [price.get(name) for price in prices] for name in PRICES}
    columns["volume"] = volumes
    is_padding = np.array([not any(column[row] for column in columns.values()) for row in range(len(rows))], bool)
    columns = {
        name: [None if padding else value for value, padding in zip(columns[name], is_padding.tolist(), strict=True)]
        for name in COLUMNS
    }
    parsed = lay_out(closes - 60, columns, request, provider=NAME, stamps=closes)
    told = closes[~is_padding]
    return parsed, int(told.max()) if len(told) else None


def _document(body: bytes, symbol: str) -> tuple[dict[str, Any], dict[str, Any]]:
    document = _of_symbol(body, symbol)
    data = mapping(document.get("data"), NAME)
    _check_echo(data.get("symbol", symbol), symbol)
    return document, data


def _of_symbol(body: bytes, symbol: str) -> dict[str, Any]:
    """The body's object, which must say that it is about ``symbol``; an index may be echoed as _SPX, ^SPX or SPX."""
    document = mapping(parse_json(body, NAME), NAME)
    _check_echo(document.get("symbol"), symbol)
    return document


def _check_echo(echoed: object, symbol: str) -> None:
    if str(echoed).lstrip("_^").upper() != symbol.lstrip("_^").upper():
        raise PayloadError(f"asked for {symbol}, answered with {shown(echoed)}", provider=NAME)


def _made_at(document: Mapping[str, Any], answer: HttpAnswer) -> datetime:
    """When the file was made, UTC: as it says, or as the CDN does where it says the time of day alone."""
    stamp = document.get("timestamp")
    told = _local(stamp)
    if told is not None:
        return told.replace(tzinfo=UTC)
    try:
        at = parsedate_to_datetime(answer.headers.get("last-modified", ""))
    except ValueError:
        raise PayloadError(f"neither the file nor the CDN says when it was made: {shown(stamp)}", provider=NAME) from None
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)


def _trade_time(record: Record) -> datetime | None:
    """``last_trade_time``, New York time, as an instant; None where it is null or 2000-01-01, which means never."""
    text = record.text("last_trade_time")
    if text is None:
        return None
    at = _local(text)
    if at is None:
        raise UnusableRecordError(f"last_trade_time is no time: {shown(text)}")
    return None if at <= _NEVER else at.replace(tzinfo=NEW_YORK).astimezone(UTC)


def _local(text: object) -> datetime | None:
    """A time without a zone; None where ``text`` is none, or one that no market has seen."""
    if not isinstance(text, str) or not _STAMP.fullmatch(text):
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return at if at.year in _YEARS else None


def _minute(text: object) -> int:
    at = _local(text)
    if at is None:
        raise PayloadError(f"a row without a time: {shown(text)}", provider=NAME)
    return int(at.replace(tzinfo=NEW_YORK).timestamp())


def _day(text: object) -> int:
    at = _local(f"{text} 00:00:00")
    if at is None:
        raise PayloadError(f"a row without a date: {shown(text)}", provider=NAME)
    return label_of(at.date())
