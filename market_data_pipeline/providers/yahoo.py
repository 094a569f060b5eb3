"""Yahoo's chart endpoint: what it serves, how it is asked, its answers as columns. Finality and sessions are judged elsewhere."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote
from zoneinfo import ZoneInfo

import numpy as np
import orjson

from market_data_pipeline.domain.candles import CandleColumns, Interval
from market_data_pipeline.domain.capabilities import RateLimit, Stamp, bars_capability
from market_data_pipeline.domain.errors import (
    EntitlementError,
    OutOfReachError,
    PayloadError,
    ProviderError,
    RateLimitedError,
    TransientError,
    UnknownSymbolError,
)
from market_data_pipeline.domain.ports import BarsAnswer, CorporateAction, Fetch
from market_data_pipeline.providers.http import describe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from market_data_pipeline.domain.candles import Bools, Float64s, Int64s
    from market_data_pipeline.domain.capabilities import Capability
    from market_data_pipeline.domain.ports import BarsRequest
    from market_data_pipeline.providers.http import Attempt, HttpAnswer, HttpClient
    from market_data_pipeline.providers.registry import ProviderContext

NAME = "yahoo"
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

_PRICES = ("open", "high", "low", "close")
_COLUMNS = (*_PRICES, "volume")
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, eq=False)
class ParsedChart:
    """The bars, nulls and actions of one chart body.

    ``received`` rows were in the body: each is in ``columns``, in ``null_opened_at`` or counted in ``dropped`` (whose keys that
    end in "_action" count events, not rows). ``columns`` are sorted and unique; a value that is null, text or not finite is NaN
    or infinite there, so that the judge refuses its row by name.
    """

    columns: CandleColumns
    null_opened_at: Int64s
    received: int = 0
    actions: Sequence[CorporateAction] = ()
    currency: str | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)


class YahooProvider:
    """Bars from Yahoo's keyless chart endpoint. Safe to use from several threads."""

    name = NAME
    account = ""
    lacking: str | None = None
    limits: Sequence[RateLimit] = LIMITS
    probe_symbol = "AAPL"
    capabilities: Sequence[Capability] = tuple(CAPABILITIES.values())

    @classmethod
    def open(cls, context: ProviderContext) -> Self:
        """From the settings: no key is needed."""
        settings = context.settings
        return cls(context.http, base_url=settings.yahoo_base_url, user_agent=settings.yahoo_user_agent)

    def __init__(self, http: HttpClient, *, base_url: str, user_agent: str) -> None:
        self._http = http
        self._base_url = base_url.rstrip("/")
        self._headers = {"user-agent": user_agent, "accept": "application/json"}

    def fetch_bars(self, request: BarsRequest, *, now: datetime) -> BarsAnswer:
        """One request, one answer. An error carries the provenance of the request as ``fetch``.

        Raises OutOfReachError, with nothing sent, for an interval we do not fetch, a window longer than the span or one that begins
        before the reach; else what ``HttpClient.get`` raises, UnknownSymbolError, OutOfReachError (Yahoo's 422) and PayloadError.
        """
        url = f"{self._base_url}/v8/finance/chart/{quote(request.symbol, safe='')}"
        parameters = _parameters(request)
        described = describe(url, parameters, self._headers)
        attempts: list[Attempt] = []
        charts: list[ParsedChart] = []

        def check(answer: HttpAnswer) -> None:
            # Inside the attempt, so that an outage which only the body tells of is retried by the one loop there is.
            _refuse_outage(answer)
            charts.append(_chart_of(answer, request))

        try:
            _refuse_beyond_reach(request, now)
            self._http.get(url, parameters, self._headers, provider=NAME, check=check, attempts=attempts)
        except ProviderError as error:
            error.fetch = _provenance(request, described, now, attempts, outcome=error.kind, error=str(error))
            raise
        chart = charts[-1]
        fetch = _provenance(request, described, now, attempts, outcome="ok", chart=chart)
        return BarsAnswer(
            request=request,
            fetch=fetch,
            columns=chart.columns,
            null_opened_at=chart.null_opened_at,
            float32_prices=True,
            actions=chart.actions,
            currency=chart.currency,
        )


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


def _provenance(
    request: BarsRequest,
    described: str,
    now: datetime,
    attempts: Sequence[Attempt],
    *,
    outcome: str,
    chart: ParsedChart | None = None,
    error: str | None = None,
) -> Fetch:
    last = attempts[-1] if attempts else None
    earlier = "; ".join(str(attempt.error) for attempt in attempts[:-1])
    return Fetch(
        provider=NAME,
        symbol=request.symbol,
        interval=request.interval,
        request=described,
        started_at=now,
        latency_seconds=last.latency_seconds if last else 0.0,
        outcome=outcome,
        status=last.status if last else None,
        rows=len(chart.columns) if chart else 0,
        payload_bytes=last.payload_bytes if last else 0,
        payload_sha256=last.payload_sha256 if last else None,
        # A success after failures says so: nothing that happened on the way is hidden.
        error=" | ".join(filter(None, (error, earlier and f"earlier attempts: {earlier}"))) or None,
        dropped=chart.dropped if chart else {},
        attempts=len(attempts),
    )


# --- what kind of answer -----------------------------------------------------------------------------------------------


def _refuse_outage(answer: HttpAnswer) -> None:
    """Raise for answers that are not the chart service's own words: outages and walls, whatever status they come with."""
    start = answer.body.removeprefix(_BOM).lstrip()[:64]
    if answer.status in range(300, 400):
        raise TransientError(f"HTTP {answer.status}: sent elsewhere, perhaps to a consent page", provider=NAME)
    if "html" in answer.content_type or start.startswith(b"<"):
        raise TransientError(f"HTTP {answer.status} with a web page: {answer.excerpt()}", provider=NAME)
    if start.removeprefix(b"Edge: ").startswith(b"Too Many Requests"):
        raise RateLimitedError(f"HTTP {answer.status} {answer.excerpt()}", provider=NAME)
    if not start:
        raise TransientError(f"HTTP {answer.status} with an empty body", provider=NAME)
    if start.startswith(b"{") and not answer.body.rstrip().endswith(b"}"):
        raise TransientError(f"HTTP {answer.status} with JSON that is cut short ({len(answer.body):,} bytes)", provider=NAME)


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
    code, description = (str(_mapping(error).get(key, "")) for key in ("code", "description"))
    message = f"{request.symbol}: {code}: {description}"[:300]
    # Asked for a window before the listing, Yahoo says "Bad Request", "Data doesn't exist for startDate = …".
    if description.startswith("Data doesn't exist for startDate"):
        return None
    kinds: dict[str, type[ProviderError]] = {
        "Not Found": UnknownSymbolError,
        "Unprocessable Entity": OutOfReachError,
        "Too Many Requests": RateLimitedError,
        "Unauthorized": EntitlementError,
        "Forbidden": EntitlementError,
        "Internal Server Error": TransientError,
        "Service Unavailable": TransientError,
    }
    return kinds.get(code, PayloadError)(message, provider=NAME)


# --- parsing: pure, from here on ---------------------------------------------------------------------------------------


def parse_chart(body: bytes, request: BarsRequest) -> ParsedChart:
    """The columns in a chart body, of status 200 or 400. The same bytes always give the same columns.

    Sorted by stamp. Dropped and counted: rows outside the window ("outside_window"), live ticks between the minutes ("unaligned"),
    a second daily row of a session ("live_duplicate"), repeated stamps ("duplicate", "conflicting_duplicate": the first is kept; a
    null gives way to numbers). 1d is stamped with midnight UTC of the session date in the exchange's time zone.

    Raises PayloadError where the body is not what Yahoo documents (nothing of it may be used), and the error of ``chart.error``.
    """
    chart = _mapping(_mapping(_json(body)).get("chart"))
    if chart.get("error") is not None:
        failure = _chart_error(chart["error"], request)
        if failure is not None:
            raise failure
        return ParsedChart(CandleColumns.empty(), np.empty(0, np.int64))
    result = _mapping(_only(chart.get("result"), "chart.result"))
    meta = _mapping(result.get("meta"))
    quotes = _mapping(_only(_mapping(result.get("indicators")).get("quote"), "indicators.quote"))
    stamps = _stamps(result.get("timestamp"))
    _check_meta(meta, quotes, request)
    dropped = Counter[str]()
    actions = _actions(_mapping(result.get("events") or {}), meta, dropped)
    columns, null_opened_at = _rows(stamps, quotes, request, meta, dropped)
    return ParsedChart(
        columns=columns,
        null_opened_at=null_opened_at,
        received=len(stamps),
        actions=actions,
        currency=meta.get("currency"),
        dropped={reason: count for reason, count in sorted(dropped.items()) if count},
    )


def _json(body: bytes) -> object:
    text = body.removeprefix(_BOM)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        # NaN and Infinity are not JSON, and Yahoo has sent both: kept as text, so that only the rows that hold them are refused.
        return json.loads(text, parse_constant=str)
    except (ValueError, RecursionError) as invalid:
        raise PayloadError(f"the body is not JSON: {invalid}"[:200], provider=NAME) from None


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PayloadError(f"an object was expected where the body has {_shown(value)}", provider=NAME)
    return value


def _only(value: object, where: str) -> object:
    if not isinstance(value, list) or len(value) != 1:
        raise PayloadError(f"{where} is not a list of one element: {_shown(value)}", provider=NAME)
    return value[0]


def _shown(value: object) -> str:
    return repr(value)[:60]


def _check_meta(meta: Mapping[str, Any], quotes: Mapping[str, Any], request: BarsRequest) -> None:
    if not quotes and meta.get("currency") is None and meta.get("instrumentType") == "MUTUALFUND":
        raise UnknownSymbolError(f"{request.symbol}: registered, but nothing that trades", provider=NAME)
    echoed, granularity = meta.get("symbol"), meta.get("dataGranularity")
    if str(echoed).upper() != request.symbol.upper():
        raise PayloadError(f"asked for {request.symbol}, answered with {_shown(echoed)}", provider=NAME)
    if granularity not in _GRANULARITIES[request.interval]:
        raise PayloadError(f"{request.symbol}: asked for {request.interval}, answered with {_shown(granularity)}", provider=NAME)


def _stamps(values: object) -> Int64s:
    """The ``timestamp`` array; empty where the key is absent, which is how Yahoo says that it has no bars."""
    if values is None:
        return np.empty(0, np.int64)
    if not isinstance(values, list):
        raise PayloadError(f"timestamp is no list: {_shown(values)}", provider=NAME)
    try:
        return np.frombuffer(bytearray(struct.pack(f"={len(values)}q", *values)), np.int64)
    except struct.error:
        raise PayloadError("timestamp holds something that is no whole number of seconds", provider=NAME) from None


@dataclass(frozen=True, slots=True, eq=False)
class _Numbers:
    values: Float64s
    is_null: Bools


def _numbers(quotes: Mapping[str, Any], name: str, length: int) -> _Numbers:
    """One quote array as float64. Null and whatever is no JSON number become NaN; ``is_null`` tells the two apart."""
    column = quotes.get(name)
    if not isinstance(column, list):
        raise PayloadError(f"no column {name}: {_shown(column)}", provider=NAME)
    if len(column) != length:
        raise PayloadError(f"ragged answer: {length} stamps and {len(column)} in {name}", provider=NAME)
    with suppress(struct.error, OverflowError):
        # struct reads a list of floats in 4 ns an element, numpy in 22; and unlike numpy it takes no text for a number.
        values = np.frombuffer(bytearray(struct.pack(f"={length}d", *column)), np.float64)
        # It does take true for 1 and false for 0: only then is the price of looking at every type worth paying.
        if not ((values == 0) | (values == 1)).any() or bool not in set(map(type, column)):
            return _Numbers(values, np.zeros(length, bool))
    if set(map(type, column)) <= {float, int, type(None)}:
        with suppress(OverflowError):
            values = np.array(column, np.float64)
            return _Numbers(values, np.isnan(values))
    return _Numbers(np.array([_number(v) for v in column], np.float64), np.array([v is None for v in column], bool))


def _number(value: object) -> float:
    if isinstance(value, float):
        return value
    if not isinstance(value, int) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _rows(
    stamps: Int64s, quotes: Mapping[str, Any], request: BarsRequest, meta: Mapping[str, Any], dropped: Counter[str]
) -> tuple[CandleColumns, Int64s]:
    """The bars and the stamps of null bars, both sorted and unique; what is left out is counted in ``dropped``."""
    if not len(stamps) and not quotes:
        return CandleColumns.empty(), stamps
    numbers = [_numbers(quotes, name, len(stamps)) for name in _COLUMNS]
    if request.interval.is_daily:
        labels, inside = _session_labels(stamps, request, _zone(meta))
        aligned = np.ones(len(stamps), bool)
    else:
        labels, inside = stamps, (stamps >= request.start) & (stamps < request.end)
        aligned = stamps % 60 == 0
    dropped["outside_window"] += int((~inside).sum())
    dropped["unaligned"] += int((inside & ~aligned).sum())
    usable = inside & aligned

    # No price and no volume is no information; a volume without prices is a broken row, for the judge to refuse.
    open_, high, low, close, volume = numbers
    no_price = open_.is_null & high.is_null & low.is_null & close.is_null
    is_null = no_price & (volume.is_null | (volume.values == 0))
    columns = CandleColumns.of(labels, *(column.values for column in numbers))
    bars = np.flatnonzero(usable & ~is_null)
    if len(bars) < len(stamps):
        columns, stamps = columns.take(bars), stamps[bars]
    columns = _sorted_and_unique(columns, stamps, dropped)

    null_labels = labels[usable & is_null]
    nulls = np.unique(null_labels)
    superseded = np.searchsorted(columns.opened_at, nulls, "right") > np.searchsorted(columns.opened_at, nulls, "left")
    nulls = nulls[~superseded]
    dropped["duplicate"] += len(null_labels) - len(nulls)
    return columns, nulls


def _sorted_and_unique(columns: CandleColumns, stamps: Int64s, dropped: Counter[str]) -> CandleColumns:
    """The rows by label; of several with one label that with the earliest stamp on the wire, then the first received."""
    labels = columns.opened_at
    if (labels[1:] > labels[:-1]).all():
        return columns
    order = np.lexsort((stamps, labels))
    is_first = np.concatenate(([True], np.diff(labels[order]) != 0))
    heads = order[np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))]
    repeats, kept = order[~is_first], heads[~is_first]
    same_stamp = stamps[repeats] == stamps[kept]
    same_values = np.ones(len(repeats), bool)
    for name in _COLUMNS:
        values = getattr(columns, name)
        same_values &= (values[repeats] == values[kept]) | (np.isnan(values[repeats]) & np.isnan(values[kept]))
    dropped["live_duplicate"] += int((~same_stamp).sum())
    dropped["duplicate"] += int((same_stamp & same_values).sum())
    dropped["conflicting_duplicate"] += int((same_stamp & ~same_values).sum())
    return columns.take(order[is_first])


def _session_labels(stamps: Int64s, request: BarsRequest, zone: ZoneInfo) -> tuple[Int64s, Bools]:
    """Midnight UTC of each stamp's date at the exchange, and whether that date is in the window.

    By date and not by instant: today's bar may be stamped with the last trade, just after the close.
    """
    # Two days of slack hold every time zone; what is beyond may be too large for a date.
    near = (stamps >= request.start - 2 * _DAY) & (stamps < request.end + 2 * _DAY)
    labels = np.full(len(stamps), np.iinfo(np.int64).min)
    labels[near] = [_midnight(_local_date(stamp, zone)) for stamp in stamps[near].tolist()]
    first, last = (_midnight(_local_date(instant, zone)) for instant in (request.start, request.end - 1))
    return labels, (labels >= first) & (labels <= last)


def _local_date(instant: float, zone: ZoneInfo) -> date:
    return datetime.fromtimestamp(instant, zone).date()


def _midnight(day: date) -> int:
    return (day.toordinal() - _EPOCH_ORDINAL) * _DAY


def _zone(meta: Mapping[str, Any]) -> ZoneInfo:
    name = meta.get("exchangeTimezoneName")
    try:
        return ZoneInfo(str(name))
    except (KeyError, ValueError, OSError):
        raise PayloadError(f"exchangeTimezoneName is no time zone: {_shown(name)}", provider=NAME) from None


def _actions(events: Mapping[str, Any], meta: Mapping[str, Any], dropped: Counter[str]) -> tuple[CorporateAction, ...]:
    """Splits, dividends and capital gains in order of their ex-dates, one of a kind a date.

    An event we cannot read is counted and left out: it must not cost the bars it came with.
    """
    found: dict[tuple[date, str], CorporateAction] = {}
    for group, kind in (("splits", "split"), ("dividends", "dividend"), ("capitalGains", "capital_gain")):
        for event in _mapping(events.get(group) or {}).values():
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
