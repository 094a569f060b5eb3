"""Yahoo's chart wire format (/v8/finance/chart): what a query asks for, and the answer to it from a Market. No sockets here."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote
from zoneinfo import ZoneInfo

import numpy as np
import orjson

from market_data_pipeline.domain.universe import SYMBOL_MAX_LENGTH, SYMBOL_PATTERN
from market_data_pipeline.simulator.market import DAY, INTRADAY_SECONDS, PRICES, SECONDS, Bars, day

if TYPE_CHECKING:
    from collections.abc import Mapping

    from market_data_pipeline.domain.candles import Bools, Float64s, Int64s
    from market_data_pipeline.simulator.market import Action, Grid, Listing, Market, Profile

CHART_PATH = "/v8/finance/chart/"
INTERVALS = ("1m", "2m", "5m", "15m", "30m", "60m", "90m", "1h", "1d", "5d", "1wk", "1mo", "3mo")
RANGES = ("1d", "5d", "1mo", "3mo", "6mo", "1y", "2y", "5y", "10y", "ytd", "max")
# PROVIDERS.md §1: how many days back each interval reaches; one-minute requests span at most eight.
REACH_DAYS = {"1m": 30, "2m": 60, "5m": 60, "15m": 60, "30m": 60, "90m": 60, "60m": 730, "1h": 730}
MINUTE_SPAN_DAYS = 8

# exchange -> (exchangeName, fullExchangeName, does it have pre- and post-market data)
EXCHANGE_NAMES = {
    "XNYS": ("NYQ", "NYSE", True),
    "NYSE": ("NYQ", "NYSE", True),
    "XNAS": ("NMS", "NasdaqGS", True),
    "NASDAQ": ("NMS", "NasdaqGS", True),
    "ARCX": ("PCX", "NYSEArca", True),
    "XHKG": ("HKG", "HKSE", False),
    "XTKS": ("JPX", "Tokyo", False),
    "XLON": ("LSE", "LSE", False),
    "XETR": ("GER", "XETRA", False),
    "CRYPTO": ("CCC", "CCC", False),
}
INSTRUMENT_TYPES = {"crypto": "CRYPTOCURRENCY", "fund": "MUTUALFUND", "fx": "CURRENCY", "currency": "CURRENCY"}


@dataclass(frozen=True, slots=True)
class ChartRefusal:
    """An answer without bars: ``status`` and the error that Yahoo puts in ``chart.error``."""

    status: int
    code: str
    description: str

    def body(self) -> bytes:
        """The JSON document."""
        error = {"code": self.code, "description": self.description}
        return orjson.dumps({"chart": {"result": None, "error": error}})


@dataclass(frozen=True, slots=True)
class ChartRequest:
    """What a chart URL asks for. ``start`` and ``end``: epoch seconds, None where ``range`` says it instead."""

    symbol: str
    interval: str
    start: int | None
    end: int | None
    range: str
    include_pre_post: bool
    events: frozenset[str]


@dataclass(frozen=True, slots=True, eq=False)
class ChartAnswer:
    """A chart before it is written down, so that faults can bend it. Arrays are parallel; a null bar is NaN in all columns.

    ``columns`` hold float arrays, or lists where a fault made something else of them. ``adjclose`` only for 1d and longer.
    """

    request: ChartRequest
    meta: Mapping[str, Any]
    timestamp: Int64s
    columns: Mapping[str, Any]
    adjclose: Float64s | None
    events: Mapping[str, Any]

    def take(self, selector: Bools | Int64s) -> ChartAnswer:
        """The same answer with the rows that ``selector`` names, in its order."""
        return replace(
            self,
            timestamp=self.timestamp[selector],
            columns={name: column[selector] for name, column in self.columns.items()},
            adjclose=None if self.adjclose is None else self.adjclose[selector],
        )

    def body(self) -> bytes:
        """The JSON document, as Yahoo writes it: without stamps, there is no ``timestamp`` and the quote is empty."""
        result: dict[str, Any] = {"meta": self.meta}
        if len(self.timestamp):
            result["timestamp"] = self.timestamp
            if self.events:
                result["events"] = self.events
            quote = {name: _writable(column, whole=name == "volume") for name, column in self.columns.items()}
            result["indicators"] = {"quote": [quote]}
            if self.adjclose is not None:
                result["indicators"]["adjclose"] = [{"adjclose": self.adjclose}]
        else:
            result["indicators"] = {"quote": [{}]}
            if self.adjclose is not None:
                result["indicators"]["adjclose"] = [{}]
        document = {"chart": {"result": [result], "error": None}}
        return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _writable(column: Any, *, whole: bool) -> Any:  # noqa: ANN401 - faults may have made a list of strings of it
    """A column as orjson takes it. ``whole``: as JSON integers, as long as no number of it has a fraction; NaN becomes null."""
    if not isinstance(column, np.ndarray):
        return column
    known = np.isfinite(column)
    if not whole or not (column[known] == np.floor(column[known])).all():
        return np.ascontiguousarray(column)
    if known.all():
        return column.astype(np.int64)
    return [int(v) if k else None for v, k in zip(column.tolist(), known.tolist(), strict=True)]


def parse_request(path: str, query: str) -> ChartRequest | ChartRefusal:
    """The chart that a URL asks for, or how Yahoo refuses it. ``path`` is still percent-encoded."""
    symbol = unquote(path.removeprefix(CHART_PATH)).upper()
    given = dict(parse_qsl(query, keep_blank_values=True))
    interval = given.get("interval", "1d")
    if len(symbol) > SYMBOL_MAX_LENGTH or not SYMBOL_PATTERN.fullmatch(symbol):
        return NOT_FOUND
    if interval not in INTERVALS:
        return ChartRefusal(
            422,
            "Unprocessable Entity",
            f"Invalid input - interval={interval} is not supported. Valid intervals: [{', '.join(INTERVALS)}]",
        )
    if interval not in SECONDS:
        return ChartRefusal(422, "Unprocessable Entity", f"interval={interval} is not part of this simulator")
    start, end = given.get("period1"), given.get("period2")
    if start is None and end is None:
        chosen = given.get("range", "1d")
        if chosen not in RANGES:
            return ChartRefusal(
                422, "Unprocessable Entity", f"Invalid input - range={chosen} is not supported. Valid ranges: [{', '.join(RANGES)}]"
            )
        span = (None, None)
    else:
        chosen = ""
        if not (_is_whole(start) and _is_whole(end)):
            return ChartRefusal(400, "Bad Request", f"Invalid input - period1={start} and period2={end} must be epoch seconds")
        span = (int(start or 0), int(end or 0))
        if span[0] > span[1]:
            return ChartRefusal(
                400,
                "Bad Request",
                f"Invalid input - start date cannot be after end date. startDate = {span[0]}, endDate = {span[1]}",
            )
    return ChartRequest(
        symbol=symbol,
        interval=interval,
        start=span[0],
        end=span[1],
        range=chosen,
        include_pre_post=given.get("includePrePost", "true").lower() == "true",
        events=frozenset(re.split(r"[,|]", given.get("events", ""))),
    )


NOT_FOUND = ChartRefusal(404, "Not Found", "No data found, symbol may be delisted")


def _is_whole(text: str | None) -> bool:
    return text is not None and re.fullmatch(r"-?\d{1,12}", text) is not None


def answer_chart(market: Market, request: ChartRequest, *, now_us: int, seed: int) -> ChartAnswer | ChartRefusal:
    """What Yahoo would answer at ``now_us``. The same arguments give the same answer, byte for byte."""
    listing = market.listing(request.symbol)
    if listing is None:
        return NOT_FOUND
    now = now_us // 1_000_000
    grid = market.grid(request.symbol)
    start, end = (request.start, request.end)
    if start is None or end is None:
        start, end = _span_of(request.range, now, grid)
    refusal = _beyond_reach(request.interval, start, end, now)
    if refusal is not None:
        return refusal
    interval = request.interval
    if interval == "30m" and market.profile.thirty_minutes_as_hours:
        interval = "60m"
    seen = market.seen(request.symbol, interval, now_us)
    # Recorded (BTC-USD, EURUSD=X): a day that opens exactly at period2 comes too, where every midnight opens one.
    window = seen.finished.between(start, end + 1 if interval == "1d" else end)
    if not request.include_pre_post:
        window = window.take(window.regular | window.leaked)
    chart = _columns(window, market.profile)
    if market.profile.missing == "null" and interval != "1d":
        chart = _with_null_minutes(chart, grid, SECONDS[interval], start, min(end, now - SECONDS[interval] + 1))
    if len(seen.forming) and start <= seen.forming.opened_at[0] < end:
        chart = _with_live_bar(chart, seen.forming, market.profile, interval, now, _live_form(market.profile, seed, request.symbol))
    daily = market.seen(request.symbol, "1d", now_us)
    actions = market.actions_of(request.symbol, now_us)
    stamps, columns = chart
    return ChartAnswer(
        request=request,
        meta=_meta(listing, grid, request, interval=interval, daily=daily.finished, newest=seen, window=(start, end), now=now),
        timestamp=stamps,
        columns=columns,
        adjclose=_adjusted(stamps, columns["close"], actions, daily.finished, grid, market.profile) if interval == "1d" else None,
        events=_events(actions, request.events, grid, start, end),
    )


_Chart = tuple["Int64s", dict[str, "Float64s"]]


def _columns(bars: Bars, profile: Profile) -> _Chart:
    prices = bars.values[:4]
    if profile.prices == "float32":
        prices = prices.astype(np.float32).astype(np.float64)
    return bars.opened_at, dict(zip((*PRICES, "volume"), (*prices, bars.values[4]), strict=True))


def _with_null_minutes(chart: _Chart, grid: Grid, seconds: int, start: int, end: int) -> _Chart:
    """A null bar for every expected open in [start, end) that has no bar."""
    first, last = np.searchsorted(grid.segment_ends_at, start, "right"), np.searchsorted(grid.segment_starts_at, end)
    segments = zip(grid.segment_starts_at[first:last].tolist(), grid.segment_ends_at[first:last].tolist(), strict=True)
    opens = [np.arange(opens_at, closes_at, seconds, dtype=np.int64) for opens_at, closes_at in segments]
    expected = np.concatenate([*opens, np.empty(0, np.int64)])
    stamps, columns = chart
    absent = np.setdiff1d(expected[(expected >= start) & (expected < end)], stamps)
    merged = np.concatenate([stamps, absent])
    order = np.argsort(merged, kind="stable")
    nulls = np.full(len(absent), np.nan)
    return merged[order], {name: np.concatenate([column, nulls])[order] for name, column in columns.items()}


def _live_form(profile: Profile, seed: int, symbol: str) -> str:
    if profile.live_bar != "auto":
        return profile.live_bar
    return "AB"[blake2b(f"{seed}:{symbol}".encode(), digest_size=1).digest()[0] % 2]


def _with_live_bar(chart: _Chart, forming: Bars, profile: Profile, interval: str, now: int, form: str) -> _Chart:
    """The bar in progress at the end. A day in progress, and a bar built from the minutes so far, has its numbers so far."""
    if form == "none":
        return chart
    stamps, columns = chart
    _, so_far_columns = _columns(forming, profile)
    so_far = {name: float(column[0]) for name, column in so_far_columns.items()}
    opened_at = int(forming.opened_at[0])
    if interval == "1d":
        rows = [(now, so_far)]
    elif form == "A":
        flat = dict.fromkeys(PRICES, so_far["close"]) | {"volume": 0.0}
        rows = [(opened_at, dict.fromkeys(so_far, np.nan)), (max(now, opened_at + 1), flat)]
    else:
        rows = [(opened_at, so_far)]
    added = {name: np.asarray([row[name] for _, row in rows]) for name in columns}
    return (
        np.concatenate([stamps, np.asarray([stamp for stamp, _ in rows], np.int64)]),
        {name: np.concatenate([column, added[name]]) for name, column in columns.items()},
    )


def _span_of(chosen: str, now: int, grid: Grid) -> tuple[int, int]:
    """The window that a ``range`` means: whole sessions back from the newest one, or calendar months and years back from now."""
    newest = max(0, int(grid.sessions_of(np.asarray([now]))[0]))
    if chosen in {"1d", "5d"}:
        return int(grid.opens_at[max(0, newest + 1 - int(chosen[0]))]), now + 1
    if chosen == "max":
        return -(1 << 40), now + 1
    today = datetime.fromtimestamp(now, UTC)
    if chosen == "ytd":
        return int(today.replace(month=1, day=1, hour=0, minute=0, second=0, microsecond=0).timestamp()), now + 1
    months = {"1mo": 1, "3mo": 3, "6mo": 6, "1y": 12, "2y": 24, "5y": 60, "10y": 120}[chosen]
    return now - round(months * 30.436875 * DAY), now + 1


def _beyond_reach(interval: str, start: int, end: int, now: int) -> ChartRefusal | None:
    asked = f"{interval} data not available for startTime={start} and endTime={end}."
    reach = REACH_DAYS.get(interval)
    if reach is not None and start < now - reach * DAY:
        reason = f"The requested range must be within the last {reach} days."
        return ChartRefusal(422, "Unprocessable Entity", f"{asked} {reason}")
    if interval == "1m" and end - start > MINUTE_SPAN_DAYS * DAY:
        reason = f"Only {MINUTE_SPAN_DAYS} days worth of 1m granularity data are allowed to be fetched per request."
        return ChartRefusal(422, "Unprocessable Entity", f"{asked} {reason}")
    return None


def _meta(  # noqa: PLR0913 - one argument a thing that meta speaks about
    listing: Listing,
    grid: Grid,
    request: ChartRequest,
    *,
    interval: str,
    daily: Bars,
    newest: Any,
    window: tuple[int, int],
    now: int,  # noqa: ANN401
) -> dict[str, Any]:
    """``meta``: present tense, so it speaks about ``now``, whatever window was asked for."""
    zone = ZoneInfo(grid.timezone)
    local = datetime.fromtimestamp(now, zone)
    exchange, full_name, has_pre_post = EXCHANGE_NAMES.get(listing.exchange.upper(), (listing.exchange, listing.exchange, False))
    instrument_type = INSTRUMENT_TYPES.get(listing.asset_type.lower(), listing.asset_type.upper())
    has_pre_post = has_pre_post and instrument_type in {"EQUITY", "ETF"}
    name = listing.name or listing.symbol
    meta: dict[str, Any] = {
        "currency": listing.currency,
        "symbol": listing.symbol,
        "exchangeName": exchange,
        "fullExchangeName": full_name,
        "instrumentType": instrument_type,
        "firstTradeDate": None,
        "regularMarketTime": now,
        "hasPrePostMarketData": has_pre_post,
        "gmtoffset": _offset(local),
        "timezone": local.tzname(),
        "exchangeTimezoneName": grid.timezone,
    }
    finished, forming = newest.finished, newest.forming
    if len(daily):
        year = daily.between(now - 365 * DAY, now + 1)
        year = year if len(year) else daily.take(slice(-1, None))
        last = year.values[:, -1].tolist()
        meta |= {
            "firstTradeDate": int(daily.opened_at[0]),
            "regularMarketTime": min(now, int(daily.ends_at[-1])),
            "regularMarketPrice": _rounded(last[3]),
            "fiftyTwoWeekHigh": _rounded(float(year.values[1].max())),
            "fiftyTwoWeekLow": _rounded(float(year.values[2].min())),
        }
        if instrument_type != "MUTUALFUND" or daily.values[4].any():
            meta |= {
                "regularMarketDayHigh": _rounded(last[1]),
                "regularMarketDayLow": _rounded(last[2]),
                "regularMarketVolume": round(last[4]),
            }
        before = daily.values[3, : np.searchsorted(daily.opened_at, window[0])]
        meta["chartPreviousClose"] = _rounded(float(before[-1] if len(before) else daily.values[0, 0]))
    if len(finished) and interval != "1d":
        newest_bar = forming if len(forming) else finished
        meta["regularMarketPrice"] = _rounded(float(newest_bar.values[3, -1]))
        meta["regularMarketTime"] = min(now, int(newest_bar.ends_at[-1]))
    if instrument_type != "FUTURE":
        meta["longName"] = name
    meta["shortName"] = name
    if interval != "1d" and len(daily):
        meta |= {"previousClose": _rounded(float(daily.values[3, -1])), "scale": 3}
    meta["priceHint"] = 4 if instrument_type == "CURRENCY" else 2
    meta["currentTradingPeriod"] = _current_period(grid, zone, now, has_pre_post=has_pre_post)
    if interval != "1d":
        periods = _trading_periods(grid, zone, window, now, pre_post=has_pre_post and request.include_pre_post)
        if periods:
            meta["tradingPeriods"] = periods
    meta["dataGranularity"] = "1h" if interval == "60m" and request.interval == "30m" else interval
    meta["range"] = request.range
    meta["validRanges"] = list(RANGES)
    return meta


def _rounded(price: float) -> float:
    """Prices in ``meta`` are decimals, not widened float32s."""
    return round(price, 4)


def _offset(local: datetime) -> int:
    offset = local.utcoffset()
    return 0 if offset is None else int(offset.total_seconds())


def _period(start: int, end: int, zone: ZoneInfo) -> dict[str, Any]:
    local = datetime.fromtimestamp(start, zone)
    return {"timezone": local.tzname(), "start": start, "end": end, "gmtoffset": _offset(local)}


def _around(opens_at: int, closes_at: int, zone: ZoneInfo, *, pre_post: bool) -> tuple[int, int]:
    """When pre-market starts and post-market ends: 04:00 and 20:00 local, or nowhere."""
    if not pre_post:
        return opens_at, closes_at
    midnight = datetime.fromtimestamp(opens_at, zone).replace(hour=0, minute=0, second=0)
    return int(midnight.replace(hour=4).timestamp()), int(midnight.replace(hour=20).timestamp())


def _current_period(grid: Grid, zone: ZoneInfo, now: int, *, has_pre_post: bool) -> dict[str, Any]:
    """The session of today, or the next one to come."""
    place = min(int(np.searchsorted(grid.closes_at, now, "right")), len(grid.opens_at) - 1)
    opens_at, closes_at = int(grid.opens_at[place]), int(grid.closes_at[place])
    before, after = _around(opens_at, closes_at, zone, pre_post=has_pre_post)
    return {
        "pre": _period(before, opens_at, zone),
        "regular": _period(opens_at, closes_at, zone),
        "post": _period(closes_at, after, zone),
    }


def _trading_periods(grid: Grid, zone: ZoneInfo, window: tuple[int, int], now: int, *, pre_post: bool) -> Any:  # noqa: ANN401 - Yahoo's two shapes
    """The sessions that the window touches: a list of days, or one such list each for pre, regular and post."""
    first = int(np.searchsorted(grid.closes_at, window[0], "right"))
    last = int(np.searchsorted(grid.opens_at, min(window[1], now + 1)))
    sessions = list(zip(grid.opens_at[first:last].tolist(), grid.closes_at[first:last].tolist(), strict=True))
    regular = [[_period(opens, closes, zone)] for opens, closes in sessions]
    if not pre_post or not regular:
        return regular
    around = [_around(opens, closes, zone, pre_post=True) for opens, closes in sessions]
    return {
        "pre": [[_period(before, opens, zone)] for (before, _), (opens, _) in zip(around, sessions, strict=True)],
        "regular": regular,
        "post": [[_period(closes, after, zone)] for (_, after), (_, closes) in zip(around, sessions, strict=True)],
    }


def _open_of(session: date, grid: Grid) -> int:
    return int(grid.opens_of(np.asarray([(session - date(1970, 1, 1)) // timedelta(days=1)]))[0])


def _events(actions: list[Action], asked: frozenset[str], grid: Grid, start: int, end: int) -> dict[str, Any]:
    """Splits and dividends with an ex-date in the window, keyed by the opening of that session."""
    events: dict[str, dict[str, Any]] = {}
    for action in actions:
        stamp = _open_of(action.session, grid)
        if not start <= stamp < end:
            continue
        if action.kind == "dividend" and asked & {"div", "dividends"}:
            amount = {"amount": action.value, "date": stamp}
            events.setdefault("dividends", {})[str(stamp)] = amount | ({"currency": action.currency} if action.currency else {})
        elif action.kind == "split" and asked & {"split", "splits"}:
            ratio = Fraction(action.value).limit_denominator(1000)
            events.setdefault("splits", {})[str(stamp)] = {
                "date": stamp,
                "numerator": ratio.numerator,
                "denominator": ratio.denominator,
                "splitRatio": f"{ratio.numerator}:{ratio.denominator}",
            }
    return events


def _adjusted(  # noqa: PLR0913 - what Yahoo's formula takes
    stamps: Int64s, close: Float64s, actions: list[Action], daily: Bars, grid: Grid, profile: Profile
) -> Float64s:
    """Close times the product of (1 - dividend / close before its ex-date) over all later dividends: Yahoo's adjclose."""
    factors = np.ones(len(stamps))
    for action in actions:
        if action.kind != "dividend":
            continue
        ex = _open_of(action.session, grid)
        before = int(np.searchsorted(daily.opened_at, ex)) - 1
        if before >= 0:
            factors[stamps < ex] *= 1 - action.value / daily.values[3, before]
    adjusted = close * factors
    return adjusted.astype(np.float32).astype(np.float64) if profile.prices == "float32" else adjusted


__all__ = ["CHART_PATH", "INTRADAY_SECONDS", "ChartAnswer", "ChartRefusal", "ChartRequest", "answer_chart", "day", "parse_request"]
