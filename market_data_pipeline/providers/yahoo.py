"""Yahoo: its chart endpoint, how it is asked and its answers as columns; quotes and options have files of their own."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote
from zoneinfo import ZoneInfo

import numpy as np

from market_data_pipeline.domain.candles import CandleColumns, Interval
from market_data_pipeline.domain.capabilities import RateLimit, Stamp, bars_capability
from market_data_pipeline.domain.errors import (
    OutOfReachError,
    PayloadError,
    ProviderError,
    UnknownSymbolError,
)
from market_data_pipeline.domain.ports import BarsAnswer, CorporateAction
from market_data_pipeline.domain.quality import BarFlag
from market_data_pipeline.providers.bars import label_of
from market_data_pipeline.providers.http import describe
from market_data_pipeline.providers.wire import (
    COLUMNS,
    Exchange,
    mapping,
    number,
    numbers,
    only,
    parse_json,
    refuse_outage,
    shown,
    whole_numbers,
    without_repeats,
)
from market_data_pipeline.providers.yahoo_options import CHAINS, fetch_chain
from market_data_pipeline.providers.yahoo_quotes import QUOTES, fetch_quotes
from market_data_pipeline.providers.yahoo_session import NAME, YahooSession, error_of
from market_data_pipeline.settings import YAHOO_COOKIE_URL, YAHOO_CRUMB_URL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from market_data_pipeline.domain.candles import Bools, Int16s, Int64s
    from market_data_pipeline.domain.capabilities import Capability, Priority
    from market_data_pipeline.domain.ports import BarsRequest, ChainAnswer, QuotesAnswer
    from market_data_pipeline.providers.http import HttpAnswer, HttpClient
    from market_data_pipeline.providers.registry import ProviderContext

_DAY = 86_400

# 5m, 15m and 30m are absent on purpose: we derive them from 1m, and for 30m Yahoo returns 60m bars.
CAPABILITIES: Mapping[Interval, Capability] = MappingProxyType(
    {
        Interval.M1: bars_capability(Interval.M1, reach_seconds=30 * _DAY, span_seconds=8 * _DAY),
        Interval.H1: bars_capability(Interval.H1, reach_seconds=730 * _DAY, span_seconds=None),
        Interval.D1: bars_capability(Interval.D1, reach_seconds=None, span_seconds=None, stamp=Stamp.DATE),
    }
)
# Yahoo publishes no quota. This is what its own pages ask for in an evening's use; a 429 teaches the rest.
LIMITS = (RateLimit(5, 1.0), RateLimit(2000, 3600.0))

# What meta.dataGranularity may say; anything else is another interval than asked (the 30m bug, silent coarsening).
_GRANULARITIES = {Interval.M1: {"1m"}, Interval.H1: {"1h", "60m"}, Interval.D1: {"1d"}}

# Yahoo's idea of a daily bar's open may be earlier than the calendar's (auctions, Sydney's session opens before UTC midnight).
# Four hours reach every such open and no session of the day before.
_DAILY_LEAD_SECONDS = 4 * 3600

# A stamp beyond this is milliseconds or nonsense, and too large for a date.
_END_OF_TIME = 1 << 33


@dataclass(frozen=True, slots=True, eq=False)
class ParsedChart:
    """The bars, nulls and actions of one chart body.

    ``received`` rows were in the body: each is in ``columns``, in ``null_opened_at`` or counted in ``dropped`` (whose keys that
    end in "_action" count events, not rows). ``columns`` are sorted and unique; a value that is null, no number or not finite is
    NaN or infinite there, so that the judge refuses its row by name. ``flags``: what was repaired, one a row (``BarFlag``).
    ``newest``: the last trade that Yahoo knows of, epoch seconds; None where it does not say. ``previous_close``: before the
    window, as Yahoo names it. ``outside_opened_at``: the stamps of intraday rows left out for their stamp, outside the window or
    between the minutes; None where there are none.
    """

    columns: CandleColumns
    null_opened_at: Int64s
    received: int = 0
    actions: Sequence[CorporateAction] = ()
    currency: str | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    flags: Int16s = field(default_factory=lambda: np.empty(0, np.int16))
    newest: int | None = None
    previous_close: float | None = None
    outside_opened_at: Int64s | None = None


class YahooProvider:
    """Bars from Yahoo's keyless chart endpoint; quotes and option chains with a cookie that Yahoo hands out. Safe to share."""

    name = NAME
    account = ""
    lacking: str | None = None
    limits: Sequence[RateLimit] = LIMITS
    probe_symbol = "AAPL"
    capabilities: Sequence[Capability] = (*CAPABILITIES.values(), QUOTES, CHAINS)

    @classmethod
    def open(cls, context: ProviderContext) -> Self:
        """From the settings: no key is needed."""
        settings = context.settings
        return cls(
            context.http,
            base_url=settings.yahoo_base_url,
            user_agent=settings.yahoo_user_agent,
            cookie_url=settings.yahoo_cookie_url,
            crumb_url=settings.yahoo_crumb_url,
        )

    def __init__(
        self,
        http: HttpClient,
        *,
        base_url: str,
        user_agent: str,
        cookie_url: str = YAHOO_COOKIE_URL,
        crumb_url: str = YAHOO_CRUMB_URL,
    ) -> None:
        self._http = http
        self._base_url = base_url.rstrip("/")
        self._headers = {"user-agent": user_agent, "accept": "application/json"}
        self._session = YahooSession(http, cookie_url.rstrip("/"), crumb_url.rstrip("/"), self._headers)

    def fetch_bars(self, request: BarsRequest, *, now: datetime) -> BarsAnswer:
        """One request, one answer. An error carries the provenance of the request as ``fetch``.

        Raises OutOfReachError, with nothing sent, for an interval we do not fetch, a window longer than the span or one that begins
        before the reach; else what ``HttpClient.get`` raises, UnknownSymbolError, OutOfReachError (Yahoo's 422) and PayloadError.
        """
        url = f"{self._base_url}/v8/finance/chart/{quote(request.symbol, safe='')}"
        parameters = _parameters(request)
        described = describe(url, parameters, self._headers)
        exchange = Exchange(provider=NAME, symbol=request.symbol, interval=request.interval, request=described, started_at=now)
        charts: list[ParsedChart] = []

        def check(answer: HttpAnswer) -> None:
            # Inside the attempt, so that an outage which only the body tells of is retried by the one loop there is.
            refuse_outage(answer, NAME)
            charts.append(_chart_of(answer, request))

        with exchange.on_record():
            _refuse_beyond_reach(request, now)
            self._http.get(
                url,
                parameters,
                self._headers,
                provider=NAME,
                priority=request.priority,
                check=check,
                attempts=exchange.attempts,
            )
        chart = charts[-1]
        return BarsAnswer(
            request=request,
            fetch=exchange.provenance(rows=len(chart.columns), dropped=chart.dropped),
            columns=chart.columns,
            null_opened_at=chart.null_opened_at,
            float32_prices=True,
            actions=chart.actions,
            currency=chart.currency,
            flags=chart.flags if chart.flags.any() else None,
            newest=chart.newest,
            previous_close=chart.previous_close,
            outside_opened_at=chart.outside_opened_at,
        )

    def fetch_quotes(self, symbols: Sequence[str], *, priority: Priority, now: datetime) -> QuotesAnswer:
        """As ``yahoo_quotes.fetch_quotes``."""
        return fetch_quotes(self._session, self._base_url, symbols, priority=priority, now=now)

    def fetch_chain(self, symbol: str, *, expiry: date | None, priority: Priority, now: datetime) -> ChainAnswer:
        """As ``yahoo_options.fetch_chain``."""
        return fetch_chain(self._session, self._base_url, symbol, expiry=expiry, priority=priority, now=now)


# --- asking ------------------------------------------------------------------------------------------------------------


def _parameters(request: BarsRequest) -> dict[str, str | int]:
    lead = _DAILY_LEAD_SECONDS if request.interval.is_daily else 0
    return {
        "period1": request.start - lead,
        "period2": request.end,
        "interval": request.interval.value,
        "includePrePost": "false",
        "events": "div,splits,capitalGains",
    }


def _refuse_beyond_reach(request: BarsRequest, now: datetime) -> None:
    """Yahoo answers such a request with 422 and nothing of it: better said here, at no cost to anybody."""
    capability = CAPABILITIES.get(request.interval)
    if capability is None:
        raise OutOfReachError(f"{request.interval} bars are not fetched: they are derived from 1m", provider=NAME)
    if request.end <= request.start:
        raise OutOfReachError(f"an empty window: {_window(request)}", provider=NAME)
    span, reach = capability.span_seconds, capability.reach_seconds
    if span is not None and request.end - request.start > span:
        raise OutOfReachError(f"{_window(request)} is longer than the {span // _DAY} days of one request", provider=NAME)
    if reach is not None and request.start < now.timestamp() - reach:
        raise OutOfReachError(f"{_window(request)} begins more than {reach // _DAY} days ago", provider=NAME)


def _window(request: BarsRequest) -> str:
    first, last = (datetime.fromtimestamp(at, UTC).isoformat() for at in (request.start, request.end))
    return f"{request.symbol} {request.interval} from {first} to {last}"


# --- what kind of answer -----------------------------------------------------------------------------------------------


def _chart_of(answer: HttpAnswer, request: BarsRequest) -> ParsedChart:
    if answer.status == 404:
        raise UnknownSymbolError(f"{request.symbol}: HTTP 404 {answer.excerpt()}", provider=NAME)
    if answer.status == 422:
        raise OutOfReachError(f"{_window(request)}: HTTP 422 {answer.excerpt()}", provider=NAME)
    if answer.status not in {200, 400}:
        raise PayloadError(f"HTTP {answer.status}, which the chart service does not document: {answer.excerpt()}", provider=NAME)
    return parse_chart(answer.body, request)


def _chart_error(error: object, request: BarsRequest) -> ProviderError | None:
    """The error that ``chart.error`` stands for; None where it only says that there is no data in the window."""
    # Asked for a window before the listing, Yahoo says "Bad Request", "Data doesn't exist for startDate = …".
    if str(mapping(error, NAME).get("description", "")).startswith("Data doesn't exist for startDate"):
        return None
    return error_of(error, request.symbol)


# --- parsing: pure, from here on ---------------------------------------------------------------------------------------


def parse_chart(body: bytes, request: BarsRequest) -> ParsedChart:
    """The columns in a chart body, of status 200 or 400. The same bytes always give the same columns.

    Sorted by stamp. Dropped and counted: rows outside the window ("outside_window"), live ticks between the minutes ("unaligned"),
    a second daily row of a session ("live_duplicate"), repeated stamps ("duplicate", "conflicting_duplicate": the first is kept; a
    null gives way to numbers). 1d is stamped with midnight UTC of the session date in the exchange's time zone.

    Raises PayloadError where the body is not what Yahoo documents (nothing of it may be used), and the error of ``chart.error``.
    """
    chart = mapping(mapping(parse_json(body, NAME), NAME).get("chart"), NAME)
    if chart.get("error") is not None:
        failure = _chart_error(chart["error"], request)
        if failure is not None:
            raise failure
        return ParsedChart(CandleColumns.empty(), np.empty(0, np.int64))
    result = mapping(only(chart.get("result"), "chart.result", NAME), NAME)
    meta = mapping(result.get("meta"), NAME)
    quotes = mapping(only(mapping(result.get("indicators"), NAME).get("quote"), "indicators.quote", NAME), NAME)
    stamps = _stamps(result.get("timestamp"))
    _check_meta(meta, quotes, request)
    dropped = Counter[str]()
    actions = _actions(mapping(result.get("events") or {}, NAME), meta, dropped)
    columns, flags, null_opened_at = _rows(stamps, quotes, request, meta, dropped)
    has_left_out = bool(dropped["outside_window"] + dropped["unaligned"]) and not request.interval.is_daily
    return ParsedChart(
        columns=columns,
        null_opened_at=null_opened_at,
        received=len(stamps),
        actions=actions,
        currency=meta.get("currency"),
        dropped={reason: count for reason, count in sorted(dropped.items()) if count},
        flags=flags,
        newest=_newest(meta.get("regularMarketTime")),
        previous_close=_price(meta.get("chartPreviousClose")),
        outside_opened_at=stamps[~_is_usable(stamps, request)] if has_left_out else None,
    )


def _newest(stamp: object) -> int | None:
    """The last trade that ``meta`` speaks of: an answer from the past shows by it. It costs no bars where it is no epoch."""
    seconds = number(stamp)
    return int(seconds) if 0 < seconds < _END_OF_TIME else None


def _price(value: object) -> float | None:
    price = number(value)
    return price if 0 < price < math.inf else None


def _check_meta(meta: Mapping[str, Any], quotes: Mapping[str, Any], request: BarsRequest) -> None:
    if not quotes and meta.get("currency") is None and meta.get("instrumentType") == "MUTUALFUND":
        raise UnknownSymbolError(f"{request.symbol}: registered, but nothing that trades", provider=NAME)
    echoed, granularity = meta.get("symbol"), meta.get("dataGranularity")
    if str(echoed).upper() != request.symbol.upper():
        raise PayloadError(f"asked for {request.symbol}, answered with {shown(echoed)}", provider=NAME)
    if granularity not in _GRANULARITIES[request.interval]:
        raise PayloadError(f"{request.symbol}: asked for {request.interval}, answered with {shown(granularity)}", provider=NAME)


def _stamps(values: object) -> Int64s:
    """The ``timestamp`` array; empty where the key is absent, which is how Yahoo says that it has no bars."""
    if values is None:
        return np.empty(0, np.int64)
    return whole_numbers(values, "timestamp", NAME)


def _rows(
    stamps: Int64s, quotes: Mapping[str, Any], request: BarsRequest, meta: Mapping[str, Any], dropped: Counter[str]
) -> tuple[CandleColumns, Int16s, Int64s]:
    """The bars with their flags and the stamps of null bars, all sorted and unique; what is left out is counted in ``dropped``."""
    if not len(stamps) and not quotes:
        return CandleColumns.empty(), np.empty(0, np.int16), stamps
    values = [numbers(quotes.get(name), name, len(stamps), NAME) for name in COLUMNS]
    if request.interval.is_daily:
        labels, inside = _session_labels(stamps, request, _zone(meta))
        aligned = np.ones(len(stamps), bool)
    else:
        labels, inside = stamps, _is_inside(stamps, request)
        aligned = stamps % 60 == 0
    dropped["outside_window"] += int((~inside).sum())
    dropped["unaligned"] += int((inside & ~aligned).sum())
    usable = inside & aligned

    # No price and no volume is no information; a volume without prices is a broken row, for the judge to refuse.
    open_, high, low, close, volume = values
    no_price = open_.is_null & high.is_null & low.is_null & close.is_null
    is_null = no_price & (volume.is_null | (volume.values == 0))
    columns = CandleColumns.of(labels, *(column.values for column in values))
    is_text = open_.is_text | high.is_text | low.is_text | close.is_text | volume.is_text
    flags = is_text * np.int16(BarFlag.STRING_NUMBERS)
    bars = np.flatnonzero(usable & ~is_null)
    if len(bars) < len(stamps):
        columns, stamps, flags = columns.take(bars), stamps[bars], flags[bars]
    columns, flags = without_repeats(columns, flags, dropped, stamps=stamps)

    null_labels = labels[usable & is_null]
    nulls = np.unique(null_labels)
    superseded = np.searchsorted(columns.opened_at, nulls, "right") > np.searchsorted(columns.opened_at, nulls, "left")
    nulls = nulls[~superseded]
    dropped["duplicate"] += len(null_labels) - len(nulls)
    return columns, flags, nulls


def _is_inside(stamps: Int64s, request: BarsRequest) -> Bools:
    return (stamps >= request.start) & (stamps < request.end)


def _is_usable(stamps: Int64s, request: BarsRequest) -> Bools:
    usable: Bools = _is_inside(stamps, request) & (stamps % 60 == 0)
    return usable


def _session_labels(stamps: Int64s, request: BarsRequest, zone: ZoneInfo) -> tuple[Int64s, Bools]:
    """Midnight UTC of each stamp's date at the exchange, and whether that date is in the window.

    By date and not by instant: today's bar may be stamped with the last trade, just after the close.
    """
    # Two days of slack hold every time zone; what is beyond may be too large for a date.
    near = (stamps >= request.start - 2 * _DAY) & (stamps < request.end + 2 * _DAY)
    labels = np.full(len(stamps), np.iinfo(np.int64).min)
    labels[near] = [label_of(_local_date(stamp, zone)) for stamp in stamps[near].tolist()]
    first, last = (label_of(_local_date(instant, zone)) for instant in (request.start, request.end - 1))
    return labels, (labels >= first) & (labels <= last)


def _local_date(instant: float, zone: ZoneInfo) -> date:
    return datetime.fromtimestamp(instant, zone).date()


def _zone(meta: Mapping[str, Any]) -> ZoneInfo:
    name = meta.get("exchangeTimezoneName")
    try:
        return ZoneInfo(str(name))
    except (KeyError, ValueError, OSError):
        raise PayloadError(f"exchangeTimezoneName is no time zone: {shown(name)}", provider=NAME) from None


def _actions(events: Mapping[str, Any], meta: Mapping[str, Any], dropped: Counter[str]) -> tuple[CorporateAction, ...]:
    """Splits, dividends and capital gains in order of their ex-dates, one of a kind a date.

    An event we cannot read is counted and left out: it must not cost the bars it came with.
    """
    found: dict[tuple[date, str], CorporateAction] = {}
    for group, kind in (("splits", "split"), ("dividends", "dividend"), ("capitalGains", "capital_gain")):
        for event in mapping(events.get(group) or {}, NAME).values():
            action = _action(event, kind, meta)
            if action is None:
                dropped["malformed_action"] += 1
            elif found.setdefault((action.session, kind), action) != action:
                dropped["conflicting_action"] += 1
    return tuple(found[key] for key in sorted(found))


def _action(event: Any, kind: str, meta: Mapping[str, Any]) -> CorporateAction | None:  # noqa: ANN401 - whatever JSON held
    try:
        session = _local_date(event["date"], _zone(meta))
        value = float(event["numerator"] / event["denominator"] if kind == "split" else event["amount"])
        currency = None if kind == "split" else event.get("currency") or meta.get("currency")
    except (TypeError, KeyError, ValueError, ArithmeticError, OSError):
        return None
    return CorporateAction(kind, session, value, currency) if math.isfinite(value) and value > 0 else None
