"""Finnhub: candles where the plan has them, quotes on a free key. A refusal is an object with "error", whatever the status says.

Wire facts, beside PROVIDERS.md §2: ``to`` is included; minutes are as traded and days adjusted for splits; a day is stamped with
midnight UTC of its date. In the first 20 seconds of a minute "no_data" is often untrue (Finnhub-API #303, #519).
"""

from __future__ import annotations

from dataclasses import replace
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
    RateLimit,
    Stamp,
    bars_capability,
)
from market_data_pipeline.domain.errors import (
    EntitlementError,
    OutOfReachError,
    PayloadError,
    RateLimitedError,
    TransientError,
)
from market_data_pipeline.domain.ports import Quote, QuotesAnswer, RefusedRecord
from market_data_pipeline.providers.bars import (
    DAY,
    ParsedBars,
    answer_of,
    label_of,
    lay_out,
    of_all_pages,
    refuse_beyond_reach,
    refuse_lacking,
    session_dates,
)
from market_data_pipeline.providers.http import describe
from market_data_pipeline.providers.wire import (
    COLUMNS,
    Exchange,
    fingerprint,
    mapping,
    number,
    parse_json,
    refuse_outage,
    shown,
    whole_numbers,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pydantic import SecretStr

    from market_data_pipeline.domain.capabilities import Priority
    from market_data_pipeline.domain.ports import BarsAnswer, BarsRequest
    from market_data_pipeline.providers.http import HttpAnswer, HttpClient
    from market_data_pipeline.providers.registry import ProviderContext

NAME = "finnhub"
LIMITS = (RateLimit(60, 60.0), RateLimit(30, 1.0))
# Within this many seconds of a full minute "no_data" is asked once more before it is believed.
DOUBTFUL_SECONDS = 20

_RESOLUTIONS = {Interval.M1: "1", Interval.D1: "D"}
_KEYS = dict(zip(COLUMNS, "ohlcv", strict=True))
_END_OF_TIME = 253_402_300_800

CAPABILITIES: Mapping[Interval, Capability] = MappingProxyType(
    {
        # A longer window is answered with a part of it.
        Interval.M1: bars_capability(
            Interval.M1, reach_seconds=None, span_seconds=30 * DAY, basis=Basis.RAW, access=Access.PLAN, calendars=US
        ),
        Interval.D1: bars_capability(
            Interval.D1, reach_seconds=None, span_seconds=None, stamp=Stamp.DATE, access=Access.PLAN, calendars=US
        ),
    }
)


class FinnhubProvider:
    """Bars and quotes, one symbol a request. Safe to use from several threads."""

    name = NAME
    limits: Sequence[RateLimit] = LIMITS
    probe_symbol = "AAPL"
    capabilities: Sequence[Capability] = (
        *CAPABILITIES.values(),
        Capability(name=QUOTES_L1, basis=Basis.RAW, access=Access.KEY),
    )

    @classmethod
    def open(cls, context: ProviderContext) -> Self:
        """From the settings; without a key it lists its capabilities and says what it lacks."""
        settings = context.settings
        return cls(
            context.http,
            base_url=settings.finnhub_base_url,
            key=settings.finnhub_key,
            with_bid_and_ask=settings.finnhub_bid_ask,
        )

    def __init__(self, http: HttpClient, *, base_url: str, key: SecretStr | None, with_bid_and_ask: bool = False) -> None:
        self._http = http
        self._base_url = base_url.rstrip("/")
        self._key = key
        self._with_bid_and_ask = with_bid_and_ask
        self.lacking: str | None = "MDP_FINNHUB_KEY is not set" if key is None else None
        self.account = fingerprint(key.get_secret_value()) if key else ""

    # --- bars

    def fetch_bars(self, request: BarsRequest, *, now: datetime) -> BarsAnswer:
        """One request, one answer. An error carries the provenance of the request as ``fetch``.

        Raises OutOfReachError, with nothing sent, for what the capability does not cover; else what ``HttpClient.get`` raises, the
        error that a body with "error" stands for, and PayloadError. "no_data" is an empty answer: it proves no silence.
        """
        url = f"{self._base_url}/stock/candle"
        parameters = _parameters(request)
        exchange = Exchange(
            provider=NAME,
            symbol=request.symbol,
            interval=request.interval,
            request=describe(url, parameters, {}),
            started_at=now,
        )
        # One more request where the clock gives cause for doubt, then it is believed: nothing is concluded from an empty answer,
        # so the gap will be asked for again anyway, in minutes instead of half a second.
        doubts = [TransientError(f"{request.symbol}: no_data, in the first {DOUBTFUL_SECONDS} s of a minute", provider=NAME)]
        if now.second >= DOUBTFUL_SECONDS:
            doubts.clear()
        found: list[ParsedBars] = []

        def check(answer: HttpAnswer) -> None:
            _refuse_words(answer)
            found.append(parse_candles(answer.body, request))
            if not found[-1].received and doubts:
                raise doubts.pop()

        with exchange.on_record():
            refuse_lacking(self.lacking, NAME)
            refuse_beyond_reach(request, CAPABILITIES, now=now, provider=NAME)
            self._get(url, parameters, exchange, request.priority, check)
        parsed = found[-1]
        return answer_of(request, exchange.provenance(rows=len(parsed.columns), dropped=parsed.dropped), parsed)

    # --- quotes

    def fetch_quotes(self, symbols: Sequence[str], *, priority: Priority, now: datetime) -> QuotesAnswer:
        """The last trade of one symbol, with bid and ask where the key may ask for them. Raises as ``fetch_bars``."""
        parameters = {"symbol": symbols[0]}
        exchange = Exchange(
            provider=NAME,
            symbol=symbols[0],
            request=describe(f"{self._base_url}/quote", parameters, {}),
            started_at=now,
            capability=QUOTES_L1,
        )
        bodies: list[bytes] = []

        def check(answer: HttpAnswer) -> None:
            _refuse_words(answer)
            mapping(parse_json(answer.body, NAME), NAME)

        with exchange.on_record():
            refuse_lacking(self.lacking, NAME)
            if len(symbols) != 1:
                raise OutOfReachError(f"{len(symbols)} symbols: one a request", provider=NAME)
            bodies.append(self._get(f"{self._base_url}/quote", parameters, exchange, priority, check).body)
            told = parse_quote(symbols[0], bodies[0])
            if isinstance(told, Quote) and self._with_bid_and_ask:
                bodies.append(self._get(f"{self._base_url}/stock/bidask", parameters, exchange, priority, check).body)
                told = with_bid_and_ask(told, bodies[1])
        return QuotesAnswer(
            fetch=of_all_pages(exchange.provenance(rows=int(isinstance(told, Quote))), bodies),
            quotes=(told,) if isinstance(told, Quote) else (),
            unknown=tuple(symbols) if told is None else (),
            refused=(told,) if isinstance(told, RefusedRecord) else (),
        )

    # --- asking

    def _get(
        self,
        url: str,
        parameters: Mapping[str, str | int],
        exchange: Exchange,
        priority: Priority,
        check: Callable[[HttpAnswer], None],
    ) -> HttpAnswer:
        headers = {"accept": "application/json"}
        if self._key is not None:
            headers["x-finnhub-token"] = self._key.get_secret_value()
        return self._http.get(
            url,
            parameters,
            headers,
            provider=NAME,
            account=self.account,
            priority=priority,
            check=check,
            attempts=exchange.attempts,
        )


def _parameters(request: BarsRequest) -> dict[str, str | int]:
    start, end = request.start, request.end - 1
    if request.interval.is_daily:
        start, end = (label_of(session) for session in session_dates(request))
    resolution = _RESOLUTIONS.get(request.interval, request.interval.value)
    return {"symbol": request.symbol, "resolution": resolution, "from": start, "to": end}


def _refuse_words(answer: HttpAnswer) -> None:
    """Raise what an answer stands for that holds no data: an outage, a refusal in words, a status that is not documented."""
    refuse_outage(answer, NAME)
    said = answer.excerpt()
    document = parse_json(answer.body, NAME)
    if isinstance(document, dict) and "error" in document:
        told = str(document["error"]).lower()
        if "limit" in told:
            raise RateLimitedError(f"HTTP {answer.status} {said}", provider=NAME)
        if "access" in told or "api key" in told:
            raise EntitlementError(f"HTTP {answer.status} {said}", provider=NAME)
        raise PayloadError(f"HTTP {answer.status} {said}", provider=NAME)
    if answer.status != 200:
        raise PayloadError(f"HTTP {answer.status}, which is not documented: {said}", provider=NAME)


# --- parsing: pure, from here on ---------------------------------------------------------------------------------------


def parse_candles(body: bytes, request: BarsRequest) -> ParsedBars:
    """The bars of /stock/candle; none for "no_data". PayloadError where arrays are missing or of different lengths."""
    document = mapping(parse_json(body, NAME), NAME)
    status = document.get("s")
    if status == "no_data":
        return ParsedBars.empty()
    if status != "ok":
        raise PayloadError(f"{request.symbol}: status {shown(status)}", provider=NAME)
    stamps = whole_numbers(document.get("t"), "t", NAME)
    columns: dict[str, Any] = {name: document.get(key) for name, key in _KEYS.items()}
    # Midnight UTC of the date, or some hours later: the date is what counts.
    labels = stamps // DAY * DAY if request.interval.is_daily else stamps
    return lay_out(labels, columns, request, provider=NAME, stamps=stamps)


def parse_quote(symbol: str, body: bytes) -> Quote | RefusedRecord | None:
    """The last trade in /quote; None for zeros throughout, which is how an unknown symbol is answered."""
    told = mapping(parse_json(body, NAME), NAME)
    last, traded_at, previous = (number(told.get(key)) for key in ("c", "t", "pc"))
    if last == 0 and traded_at == 0:
        return None
    if not (np.isfinite(last) and last > 0 and 0 < traded_at < _END_OF_TIME):
        return RefusedRecord(f"{symbol}: {shown(told)}", "no price, or no time of it")
    at = datetime.fromtimestamp(traded_at, UTC)
    return Quote(
        symbol=symbol,
        bid=None,
        ask=None,
        bid_size=None,
        ask_size=None,
        last=last,
        last_at=at,
        quoted_at=at,
        previous_close=previous if np.isfinite(previous) and previous > 0 else None,
    )


def with_bid_and_ask(quote: Quote, body: bytes) -> Quote | RefusedRecord:
    """``quote`` with the sides of /stock/bidask: prices of 0 are nobody, sizes are shares, the stamp is in milliseconds."""
    told = mapping(parse_json(body, NAME), NAME)
    prices = {key: number(told.get(key)) for key in "ab"}
    quoted_at = number(told.get("t")) / 1000
    if not all(np.isfinite(price) and price >= 0 for price in prices.values()) or not 0 < quoted_at < _END_OF_TIME:
        return RefusedRecord(f"{quote.symbol}: {shown(told)}", "no bid and ask, or no time of them")
    sizes = {key: number(told.get(f"{key}v")) for key in "ab"}
    return replace(
        quote,
        bid=prices["b"] or None,
        ask=prices["a"] or None,
        bid_size=sizes["b"] if prices["b"] and np.isfinite(sizes["b"]) else None,
        ask_size=sizes["a"] if prices["a"] and np.isfinite(sizes["a"]) else None,
        quoted_at=datetime.fromtimestamp(quoted_at, UTC),
    )
