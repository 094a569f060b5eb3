"""Alpaca's market data: bars of many symbols in one request, quotes, and pages of which all must arrive.

Wire facts, beside PROVIDERS.md §5: rows are sorted by symbol, then time, and a page may end within a symbol; ``end`` is included;
a name that cannot be a symbol fails the whole request with 400 "invalid symbol: X", while a symbol nobody trades is just absent.
Sizes of quotes were round lots until 2025-11-03 and are shares since (the SEC's rule on market data; Alpaca's pages say both).
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.capabilities import (
    QUOTES_L1,
    US,
    Access,
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
    ProviderError,
    UnknownSymbolError,
)
from market_data_pipeline.domain.ports import Quote, QuotesAnswer, RefusedRecord
from market_data_pipeline.providers.bars import (
    DAY,
    NEW_YORK,
    ParsedBars,
    RowNames,
    answer_of,
    columns_of_rows,
    joined,
    lay_out,
    local_labels,
    midnight_of,
    of_all_pages,
    refuse_beyond_reach,
    refuse_lacking,
    session_dates,
    window_of,
)
from market_data_pipeline.providers.http import describe
from market_data_pipeline.providers.wire import Exchange, fingerprint, listing, mapping, number, parse_json, refuse_outage, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import SecretStr

    from market_data_pipeline.domain.candles import Int64s
    from market_data_pipeline.domain.capabilities import Priority
    from market_data_pipeline.domain.ports import BarsAnswer, BarsRequest, Fetch
    from market_data_pipeline.providers.http import HttpAnswer, HttpClient
    from market_data_pipeline.providers.registry import ProviderContext

NAME = "alpaca"
ROWS_PER_PAGE = 10_000
SYMBOLS_PER_REQUEST = 200
# Of the free plan; others are told in MDP_LIMITS.
LIMITS = (RateLimit(200, 60.0),)
# What a free key may not see of the SIP, and a minute for its clock and ours to differ.
SIP_DELAY_SECONDS = 15 * 60
_DELAY_MARGIN_SECONDS = 60

_TIMEFRAMES = {Interval.M1: "1Min", Interval.D1: "1Day"}
_ROW = RowNames(vwap="vw", trades="n")
# "^GSPC", "EURUSD=X" or two names with a comma between them are no question for this endpoint.
_SYMBOL = re.compile(r"[A-Z0-9]{1,10}(?:\.[A-Z0-9]{1,5})?", re.ASCII)
_INVALID_SYMBOL = re.compile(r"invalid symbols?: ([^\"\\]+)")
# Each costs a request. So many are no slip of the pen: the universe holds names of another vendor.
_MOST_INVALID_SYMBOLS = 20
# 200 symbols over 31 days with extended hours are 600.
_MOST_PAGES = 1000
_SHARES_SINCE = datetime(2025, 11, 3, tzinfo=UTC)
_ROUND_LOT = 100


@dataclass(frozen=True, slots=True)
class _FeedTerms:
    """A choice of feed: what the vendor calls it for history and for the latest quotes, what it counts, and on which terms."""

    bars: str
    quotes: str
    counts: Feed
    access: Access
    reach_seconds: int
    delay_seconds: int = 0


# History of the SIP begins in 2016, that of IEX in the middle of 2020: the years are rounded down.
_FEEDS = {
    "iex": _FeedTerms("iex", "iex", Feed.IEX, Access.KEY, 5 * 365 * DAY),
    "sip": _FeedTerms("sip", "sip", Feed.SIP, Access.PLAN, 10 * 365 * DAY),
    "delayed_sip": _FeedTerms("sip", "delayed_sip", Feed.SIP, Access.KEY, 10 * 365 * DAY, SIP_DELAY_SECONDS),
}


@dataclass(frozen=True, slots=True, eq=False)
class BarsPage:
    """One page: the rows of each symbol as they came, and the token of the next page, None at the end."""

    rows: Mapping[str, Sequence[Any]]
    next_page: str | None

    @property
    def count(self) -> int:
        """How many rows, over all symbols."""
        return sum(map(len, self.rows.values()))


class AlpacaProvider:
    """Bars of up to 200 symbols a request, and quotes. Safe to use from several threads."""

    name = NAME
    limits: Sequence[RateLimit] = LIMITS
    probe_symbol = "AAPL"

    @classmethod
    def open(cls, context: ProviderContext) -> Self:
        """From the settings; without both keys it lists its capabilities and says what it lacks."""
        settings = context.settings
        return cls(
            context.http,
            base_url=settings.alpaca_base_url,
            key_id=settings.alpaca_key_id,
            secret_key=settings.alpaca_secret_key,
            feed=settings.alpaca_feed,
        )

    def __init__(
        self,
        http: HttpClient,
        *,
        base_url: str,
        key_id: SecretStr | None,
        secret_key: SecretStr | None,
        feed: str = "iex",
        rows_per_page: int = ROWS_PER_PAGE,
    ) -> None:
        self._http = http
        self._base_url = base_url.rstrip("/")
        self._key_id, self._secret_key = key_id, secret_key
        self._terms = _FEEDS[feed]
        self._rows_per_page = rows_per_page
        unset = [f"MDP_ALPACA_{name}" for name, key in (("KEY_ID", key_id), ("SECRET_KEY", secret_key)) if key is None]
        self.lacking: str | None = f"{' and '.join(unset)} {'is' if len(unset) == 1 else 'are'} not set" if unset else None
        self.account = fingerprint(key_id.get_secret_value()) if key_id else ""
        self._bars = MappingProxyType({interval: self._bars_capability(interval) for interval in _TIMEFRAMES})

    @property
    def capabilities(self) -> Sequence[Capability]:
        """On the terms of the feed that was chosen."""
        terms = self._terms
        quotes = Capability(
            name=QUOTES_L1,
            symbols_per_request=SYMBOLS_PER_REQUEST,
            delay_seconds=terms.delay_seconds,
            basis=Basis.RAW,
            feed=terms.counts,
            access=terms.access,
        )
        return (*self._bars.values(), quotes)

    def _bars_capability(self, interval: Interval) -> Capability:
        terms = self._terms
        return bars_capability(
            interval,
            reach_seconds=terms.reach_seconds,
            # Pages have no end, but an answer is held in memory whole.
            span_seconds=None if interval.is_daily else 31 * DAY,
            symbols_per_request=SYMBOLS_PER_REQUEST,
            rows_per_request=ROWS_PER_PAGE,
            delay_seconds=terms.delay_seconds,
            stamp=Stamp.DATE if interval.is_daily else Stamp.OPEN,
            feed=terms.counts,
            access=terms.access,
            calendars=US,
        )

    # --- bars

    def fetch_bars(self, request: BarsRequest, *, now: datetime) -> BarsAnswer:
        """One symbol, as many pages as it takes. Raises as ``fetch_bars_of_many``, and that symbol's own error."""
        answer = self.fetch_bars_of_many([request], now=now)[0]
        if isinstance(answer, ProviderError):
            raise answer
        return answer

    def fetch_bars_of_many(self, requests: Sequence[BarsRequest], *, now: datetime) -> Sequence[BarsAnswer | ProviderError]:
        """The answers in the order of ``requests``; UnknownSymbolError in the place of a name that Alpaca refuses.

        Nothing is answered before the last page has come. Raises OutOfReachError, with nothing sent, for what the capability does
        not cover; what ``HttpClient.get`` raises; PayloadError where pages are missing, repeated or not what Alpaca documents.
        """
        if not requests:
            return []
        first, symbols = requests[0], [request.symbol for request in requests]
        url = f"{self._base_url}/v2/stocks/bars"
        parameters = self._parameters(first, now)
        described = describe(url, {"symbols": ",".join(symbols), **parameters}, {})
        exchange = Exchange(
            provider=NAME,
            symbol=",".join(symbols),
            interval=first.interval,
            request=described,
            started_at=now,
        )
        with exchange.on_record():
            self._refuse_beyond(first, now)
            if len(requests) > SYMBOLS_PER_REQUEST:
                raise OutOfReachError(f"{len(requests)} symbols: at most {SYMBOLS_PER_REQUEST} fit one request", provider=NAME)
            asking = _Asking(self, exchange, first.priority)
            pages = asking.pages(url, parameters, symbols, self._rows_per_page)
            parsed = {request.symbol: parse_pages(pages, request) for request in requests if request.symbol not in asking.unknown}
        whole = of_all_pages(exchange.provenance(), asking.bodies)
        answers: list[BarsAnswer | ProviderError] = []
        for place, request in enumerate(requests):
            fetch = replace(whole, symbol=request.symbol)
            if place > 0:
                # What was sent was sent once, for all; 200 names in each of 200 records would be most of what is stored.
                alone = describe(url, {"symbols": request.symbol, **parameters}, {})
                fetch = replace(fetch, attempts=0, request=f"{alone} (one of {len(requests)} symbols)")
            answers.append(_answer(request, parsed.get(request.symbol), fetch))
        return answers

    def _refuse_beyond(self, request: BarsRequest, now: datetime) -> None:
        refuse_lacking(self.lacking, NAME)
        refuse_beyond_reach(request, self._bars, now=now, provider=NAME)
        if request.start >= self._newest_allowed(now):
            minutes = self._terms.delay_seconds // 60
            raise OutOfReachError(
                f"{window_of(request)} lies within the last {minutes} minutes, which MDP_ALPACA_FEED=delayed_sip does not see",
                provider=NAME,
            )

    def _newest_allowed(self, now: datetime) -> float:
        delay = self._terms.delay_seconds
        return now.timestamp() - delay - _DELAY_MARGIN_SECONDS if delay else float("inf")

    def _parameters(self, request: BarsRequest, now: datetime) -> dict[str, str | int]:
        start, end = request.start, request.end - 1
        if request.interval.is_daily:
            start, end = (midnight_of(session, NEW_YORK) for session in session_dates(request))
        return {
            "timeframe": _TIMEFRAMES.get(request.interval, request.interval.value),
            "start": _rfc3339(start),
            "end": _rfc3339(int(min(end, self._newest_allowed(now)))),
            "adjustment": "split",
            "feed": self._terms.bars,
            "limit": self._rows_per_page,
        }

    # --- quotes

    def fetch_quotes(self, symbols: Sequence[str], *, priority: Priority, now: datetime) -> QuotesAnswer:
        """The newest quote of each symbol. Raises what ``HttpClient.get`` raises, OutOfReachError and PayloadError."""
        url = f"{self._base_url}/v2/stocks/quotes/latest"
        parameters: dict[str, str | int] = {"feed": self._terms.quotes}
        described = describe(url, {"symbols": ",".join(symbols), **parameters}, {})
        exchange = Exchange(provider=NAME, symbol=",".join(symbols), request=described, started_at=now, capability=QUOTES_L1)
        with exchange.on_record():
            refuse_lacking(self.lacking, NAME)
            if len(symbols) > SYMBOLS_PER_REQUEST:
                raise OutOfReachError(f"{len(symbols)} symbols: at most {SYMBOLS_PER_REQUEST} fit one request", provider=NAME)
            asking = _Asking(self, exchange, priority)
            body = asking.once(url, parameters, list(symbols))
            quotes, refused = parse_quotes(body, symbols, delay_seconds=self._terms.delay_seconds) if body else ((), ())
        told = {quote.symbol for quote in quotes} | {record.record.split(":")[0] for record in refused}
        return QuotesAnswer(
            fetch=exchange.provenance(rows=len(quotes)),
            quotes=quotes,
            unknown=tuple(symbol for symbol in symbols if symbol not in told),
            refused=refused,
        )

    # --- asking

    def get(self, url: str, parameters: Mapping[str, str | int], exchange: Exchange, priority: Priority) -> HttpAnswer:
        """One page. A 403 that is about the SIP says what may be set instead."""
        keys = {"APCA-API-KEY-ID": self._key_id, "APCA-API-SECRET-KEY": self._secret_key}
        headers = {name: key.get_secret_value() for name, key in keys.items() if key is not None}
        try:
            return self._http.get(
                url,
                parameters,
                {**headers, "accept": "application/json"},
                provider=NAME,
                account=self.account,
                priority=priority,
                check=lambda answer: refuse_outage(answer, NAME),
                attempts=exchange.attempts,
            )
        except EntitlementError as refused:
            if "recent SIP data" not in str(refused):
                raise
            said = str(refused).removeprefix(f"{NAME}: ")
        raise EntitlementError(f"{said}; set MDP_ALPACA_FEED to delayed_sip or iex, or change the plan", provider=NAME)


class _Asking:
    """The requests of one question: all pages, with the names that Alpaca refuses left out one after the other."""

    def __init__(self, provider: AlpacaProvider, exchange: Exchange, priority: Priority) -> None:
        self._provider, self._exchange, self._priority = provider, exchange, priority
        self.unknown: set[str] = set()
        self.bodies: list[bytes] = []

    def once(self, url: str, parameters: Mapping[str, str | int], symbols: Sequence[str]) -> bytes | None:
        """The body for the symbols that Alpaca takes; None where it takes none of them."""
        self.unknown.update(symbol for symbol in symbols if not _SYMBOL.fullmatch(symbol))
        while known := [symbol for symbol in symbols if symbol not in self.unknown]:
            asked = {"symbols": ",".join(known), **parameters}
            answer = self._provider.get(url, asked, self._exchange, self._priority)
            if answer.status == 200:
                self.bodies.append(answer.body)
                return answer.body
            refused = _INVALID_SYMBOL.search(answer.excerpt(2000))
            named = {name.strip() for name in refused[1].split(",")} & set(known) if answer.status == 400 and refused else set()
            self.unknown |= named
            if not named or len(self.unknown) > _MOST_INVALID_SYMBOLS:
                raise PayloadError(f"HTTP {answer.status}: {answer.excerpt()}", provider=NAME)
        return None

    def pages(self, url: str, parameters: Mapping[str, str | int], symbols: Sequence[str], limit: int) -> list[BarsPage]:
        """Every page. PayloadError where one is repeated, or where it cannot be known that the last is the last."""
        pages: list[BarsPage] = []
        tokens: set[str] = set()
        token, full = "", limit
        while True:
            asked = {**parameters, "limit": full, **({"page_token": token} if token else {})}
            body = self.once(url, asked, symbols)
            if body is None:
                return pages
            page = parse_page(body, symbols)
            if page.count >= full and page.next_page is None:
                # The end of the data, or a token that was lost? Asked for one row less, a page that goes on has to say so.
                if full < limit:
                    raise PayloadError(f"a full page of {page.count:,} rows without a token for the next", provider=NAME)
                full -= 1
                self.bodies.pop()
                continue
            pages.append(page)
            if page.next_page is None:
                return pages
            if page.next_page in tokens:
                raise PayloadError(f"page {len(pages)} leads back to a page that we have", provider=NAME)
            tokens.add(page.next_page)
            token = page.next_page
            if len(tokens) > _MOST_PAGES:
                raise PayloadError(f"more than {_MOST_PAGES} pages, and no end", provider=NAME)


def _answer(request: BarsRequest, parsed: ParsedBars | None, fetch: Fetch) -> BarsAnswer | ProviderError:
    if parsed is None:
        unknown = UnknownSymbolError(f"{request.symbol}: no symbol that Alpaca could know", provider=NAME)
        unknown.fetch = replace(fetch, outcome=unknown.kind, error=str(unknown))
        return unknown
    return answer_of(request, replace(fetch, rows=len(parsed.columns), dropped=parsed.dropped), parsed, currency="USD")


def _rfc3339(instant: int) -> str:
    return datetime.fromtimestamp(instant, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- parsing: pure, from here on ---------------------------------------------------------------------------------------


def parse_page(body: bytes, symbols: Sequence[str]) -> BarsPage:
    """One page of /v2/stocks/bars. PayloadError where it is none, or speaks of a symbol that was not asked for."""
    document = mapping(parse_json(body, NAME), NAME)
    if "next_page_token" not in document:
        raise PayloadError("a page that does not say whether another follows", provider=NAME)
    token = document["next_page_token"]
    if token is not None and not (isinstance(token, str) and token):
        raise PayloadError(f"next_page_token is no text: {shown(token)}", provider=NAME)
    # An answer without bars has null there.
    bars = mapping(document.get("bars") or {}, NAME)
    strange = sorted(set(bars) - set(symbols))
    if strange:
        raise PayloadError(f"bars of {strange[0][:20]!r}, which was not asked for", provider=NAME)
    page = BarsPage({symbol: listing(rows, f"bars.{symbol}", NAME) for symbol, rows in bars.items()}, token)
    if token is not None:
        _refuse_cut(page, token)
    return page


def _refuse_cut(page: BarsPage, token: str) -> None:
    """A token is base64 of "AAPL|M|2024-07-01T13:30:00Z", the last bar of its page: where it reads so, the page must hold that bar.

    Alpaca may send short pages, so their length tells nothing. A token of another form is what it is documented as: opaque.
    """
    try:
        symbol, *_, last = base64.b64decode(token, validate=True).decode().split("|")
        named = int(last) if last.isdigit() else int(_instant(last).timestamp())
    except (ValueError, TypeError):
        return
    stamps = _stamps([row.get("t") for row in page.rows.get(symbol, ()) if isinstance(row, dict)])
    if not len(stamps) or stamps.max() < named:
        raise PayloadError(f"a page that breaks off before the bar of {symbol[:20]} that its token names", provider=NAME)


def parse_pages(pages: Sequence[BarsPage], request: BarsRequest) -> ParsedBars:
    """The bars of one symbol from all pages. 1d is stamped with midnight UTC of its date in New York.

    PayloadError where a page begins at or before the end of the one before: it was sent twice.
    """
    stamps: list[Int64s] = []
    columns: list[dict[str, list[Any]]] = []
    for rows in (page.rows[request.symbol] for page in pages if page.rows.get(request.symbol)):
        columns.append(columns_of_rows(rows, _ROW, f"bars.{request.symbol}", NAME))
        stamps.append(_stamps([row.get("t") for row in rows]))
        if len(stamps) > 1 and stamps[-1].min() <= stamps[-2].max():
            raise PayloadError(f"{request.symbol}: a page repeats rows of the one before", provider=NAME)
    if not stamps:
        return ParsedBars.empty()
    on_wire = np.concatenate(stamps)
    labels = local_labels(on_wire, NEW_YORK) if request.interval.is_daily else on_wire
    return lay_out(labels, joined(columns), request, provider=NAME, stamps=on_wire)


def _stamps(texts: Sequence[object]) -> Int64s:
    """RFC 3339 instants as epoch seconds. Bars have no fractions; those that a vendor writes all the same are cut."""
    try:
        if all(isinstance(text, str) and len(text) == 20 and text.endswith("Z") for text in texts):
            return np.array([str(text)[:-1] for text in texts], "datetime64[s]").astype(np.int64)
        return np.array([_instant(text).timestamp() for text in texts], np.float64).astype(np.int64)
    except (ValueError, TypeError, OverflowError) as wrong:
        raise PayloadError(f"a stamp that is no RFC 3339 instant: {str(wrong)[:80]}", provider=NAME) from None


def _instant(text: object) -> datetime:
    if not isinstance(text, str):
        raise TypeError(shown(text))
    # Nanoseconds are more than fromisoformat can read before Python 3.12, and more than a datetime can hold.
    instant = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))
    if instant.tzinfo is None:
        raise ValueError(f"{text!r} has no offset")
    return instant


def parse_quotes(body: bytes, symbols: Sequence[str], *, delay_seconds: int) -> tuple[Sequence[Quote], Sequence[RefusedRecord]]:
    """The quotes of /v2/stocks/quotes/latest, in the order of ``symbols``, and those that cannot be read, "SYMBOL: record"."""
    found = mapping(mapping(parse_json(body, NAME), NAME).get("quotes"), NAME)
    strange = sorted(set(found) - set(symbols))
    if strange:
        raise PayloadError(f"a quote of {strange[0][:20]!r}, which was not asked for", provider=NAME)
    quotes, refused = list[Quote](), list[RefusedRecord]()
    for symbol in symbols:
        if symbol not in found:
            continue
        try:
            quotes.append(_quote(symbol, mapping(found[symbol], NAME), delay_seconds))
        except (PayloadError, ValueError, TypeError, OverflowError) as wrong:
            refused.append(RefusedRecord(f"{symbol}: {shown(found[symbol])}", str(wrong)))
    return tuple(quotes), tuple(refused)


def _quote(symbol: str, told: Mapping[str, Any], delay_seconds: int) -> Quote:
    quoted_at = _instant(told.get("t")).astimezone(UTC)
    lot = 1 if quoted_at >= _SHARES_SINCE else _ROUND_LOT
    bid, ask = _side(told, "b", lot), _side(told, "a", lot)
    return Quote(
        symbol=symbol,
        bid=bid[0],
        ask=ask[0],
        bid_size=bid[1],
        ask_size=ask[1],
        last=None,
        last_at=None,
        quoted_at=quoted_at,
        currency="USD",
        delay_seconds=delay_seconds,
    )


def _side(told: Mapping[str, Any], side: str, lot: int) -> tuple[float | None, float | None]:
    """Price and size in shares; None for both where nobody bids or offers, which is written as a price of 0."""
    price, size = number(told.get(f"{side}p")), number(told.get(f"{side}s"))
    if not np.isfinite(price) or price < 0:
        raise ValueError(f"{side}p is no price: {shown(told.get(f'{side}p'))}")
    if price == 0:
        return None, None
    return price, size * lot if np.isfinite(size) and size >= 0 else None
