"""Yahoo, simulated: the chart wire format (/v8/finance/chart), and the vendor with all its endpoints. No sockets here."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from hashlib import blake2b
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote
from zoneinfo import ZoneInfo

import numpy as np
import orjson

from market_data_pipeline.domain.universe import SYMBOL_MAX_LENGTH, SYMBOL_PATTERN
from market_data_pipeline.simulator.market import DAY, FIELDS, PRICES, SECONDS, Bars
from market_data_pipeline.simulator.vendor import (
    JSON_TYPE,
    BarsAnswer,
    BarTable,
    Call,
    Reply,
    bars_capability,
    json_reply,
    writable,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from market_data_pipeline.domain.candles import Float64s, Int64s
    from market_data_pipeline.simulator.market import Action, Grid, Listing, Market, Profile, Seen
    from market_data_pipeline.simulator.vendor import Received, Scene

CHART_PATH = "/v8/finance/chart/"
INTERVALS = ("1m", "2m", "5m", "15m", "30m", "60m", "90m", "1h", "1d", "5d", "1wk", "1mo", "3mo")
RANGES = ("1d", "5d", "1mo", "3mo", "6mo", "1y", "2y", "5y", "10y", "ytd", "max")
# PROVIDERS.md §1: how many days back each interval reaches; one-minute requests span at most eight.
REACH_DAYS = {"1m": 30, "2m": 60, "5m": 60, "15m": 60, "30m": 60, "90m": 60, "60m": 730, "1h": 730}
MINUTE_SPAN_DAYS = 8


@dataclass(frozen=True, slots=True)
class _Exchange:
    """How Yahoo speaks of an exchange."""

    name: str
    full_name: str
    currency: str = "USD"
    has_pre_post: bool = False


_NYSE = _Exchange("NYQ", "NYSE", has_pre_post=True)
_NASDAQ = _Exchange("NMS", "NasdaqGS", has_pre_post=True)
EXCHANGES = {
    "XNYS": _NYSE,
    "NYSE": _NYSE,
    "XNAS": _NASDAQ,
    "NASDAQ": _NASDAQ,
    "ARCX": _Exchange("PCX", "NYSEArca", has_pre_post=True),
    "XASE": _Exchange("ASE", "NYSE American", has_pre_post=True),
    "BATS": _Exchange("BTS", "Cboe US", has_pre_post=True),
    "XHKG": _Exchange("HKG", "HKSE", "HKD"),
    "XTKS": _Exchange("JPX", "Tokyo", "JPY"),
    "XLON": _Exchange("LSE", "LSE", "GBp"),
    "XETR": _Exchange("GER", "XETRA", "EUR"),
    "XPAR": _Exchange("PAR", "Paris", "EUR"),
    "XAMS": _Exchange("AMS", "Amsterdam", "EUR"),
    "XTSE": _Exchange("TOR", "Toronto", "CAD"),
    "XASX": _Exchange("ASX", "ASX", "AUD"),
    "XBOM": _Exchange("BSE", "BSE", "INR"),
    "CRYPTO": _Exchange("CCC", "CCC"),
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
    """A chart before it is written down. ``table.further`` has ``adjclose`` for 1d and longer."""

    request: ChartRequest
    meta: Mapping[str, Any]
    table: BarTable
    events: Mapping[str, Any]

    def body(self) -> bytes:
        """The JSON document, as Yahoo writes it: without stamps, there is no ``timestamp`` and the quote is empty."""
        told = {"symbol": self.table.symbol} | ({"currency": self.table.currency} if self.table.currency else {})
        result: dict[str, Any] = {"meta": {**self.meta, **told}}
        adjclose = self.table.further.get("adjclose")
        if len(self.table):
            result["timestamp"] = self.table.opened_at
            if self.events:
                result["events"] = self.events
            result["indicators"] = {"quote": [{name: writable(name, column) for name, column in self.table.columns.items()}]}
            if adjclose is not None:
                result["indicators"]["adjclose"] = [{"adjclose": adjclose}]
        else:
            result["indicators"] = {"quote": [{}]}
            if adjclose is not None:
                result["indicators"]["adjclose"] = [{}]
        document = {"chart": {"result": [result], "error": None}}
        return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def parse_request(path: str, query: str) -> ChartRequest | ChartRefusal:
    """The chart that a URL asks for, or how Yahoo refuses it. ``path`` is still percent-encoded."""
    symbol = unquote(path.removeprefix(CHART_PATH)).upper()
    if len(symbol) > SYMBOL_MAX_LENGTH or not SYMBOL_PATTERN.fullmatch(symbol):
        return NOT_FOUND
    given = dict(parse_qsl(query, keep_blank_values=True))
    interval = given.get("interval", "1d")
    chosen = "" if {"period1", "period2"} & given.keys() else given.get("range", "1d")
    refusal = _malformed(interval, chosen, given.get("period1"), given.get("period2"))
    if refusal is not None:
        return refusal
    return ChartRequest(
        symbol=symbol,
        interval=interval,
        start=None if chosen else int(given["period1"]),
        end=None if chosen else int(given["period2"]),
        range=chosen,
        include_pre_post=given.get("includePrePost", "false").lower() == "true",
        events=frozenset(re.split(r"[,|]", given.get("events", ""))),
    )


def _malformed(interval: str, chosen: str, start: str | None, end: str | None) -> ChartRefusal | None:
    if interval not in INTERVALS:
        valid = ", ".join(INTERVALS)
        return _unprocessable(f"Invalid input - interval={interval} is not supported. Valid intervals: [{valid}]")
    if interval not in SECONDS:
        return _unprocessable(f"interval={interval} is not part of this simulator")
    if chosen:
        valid = ", ".join(RANGES)
        return (
            None
            if chosen in RANGES
            else _unprocessable(f"Invalid input - range={chosen} is not supported. Valid ranges: [{valid}]")
        )
    if start is None or end is None or not (_EPOCH.fullmatch(start) and _EPOCH.fullmatch(end)):
        return _bad_request(f"Invalid input - period1={start} and period2={end} must be epoch seconds")
    if int(start) > int(end):
        return _bad_request(f"Invalid input - start date cannot be after end date. startDate = {start}, endDate = {end}")
    return None


_EPOCH = re.compile(r"-?\d{1,12}", re.ASCII)


def _unprocessable(description: str) -> ChartRefusal:
    return ChartRefusal(422, "Unprocessable Entity", description)


def _bad_request(description: str) -> ChartRefusal:
    return ChartRefusal(400, "Bad Request", description)


NOT_FOUND = ChartRefusal(404, "Not Found", "No data found, symbol may be delisted")


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
    bars = seen.finished.between(start, end + 1 if interval == "1d" else end)
    if not request.include_pre_post:
        bars = bars.take(bars.regular | bars.leaked)
    stamps, columns = _columns(bars, market.profile)
    if market.profile.missing == "nulls" and interval != "1d":
        stamps, columns = _with_null_minutes(stamps, columns, grid, SECONDS[interval], start, min(end, now - SECONDS[interval] + 1))
    if len(seen.forming) and start <= seen.forming.opened_at[0] < end:
        form = _live_form(market.profile, seed, request.symbol)
        tick_at = _live_rows(int(seen.forming.opened_at[0]), interval=interval, form=form, now=now)
        _, so_far = _columns(seen.forming, market.profile)
        stamps, columns = _with_live_bar(stamps, columns, so_far, tick_at)
    daily = market.seen(request.symbol, "1d", now_us).finished
    actions = market.actions_of(request.symbol, now_us)
    scene = _Place(listing, grid, now, (start, end))
    further = (
        {"adjclose": _adjusted(stamps, columns["close"], _dividends(actions, daily, grid), market.profile)}
        if interval == "1d"
        else {}
    )
    return ChartAnswer(
        request=request,
        meta=_meta(scene, request, served=interval, daily=daily, seen=seen),
        table=BarTable(request.symbol, interval, stamps, columns, further),
        events=_events(actions, request.events, grid, start, end),
    )


_Columns = dict[str, "Float64s"]


def _columns(bars: Bars, profile: Profile) -> tuple[Int64s, _Columns]:
    prices = bars.ohlcv[:4]
    if profile.prices == "float32":
        prices = prices.astype(np.float32).astype(np.float64)
    return bars.opened_at, dict(zip(FIELDS, (*prices, bars.ohlcv[4]), strict=True))


def _with_null_minutes(
    stamps: Int64s, columns: _Columns, grid: Grid, seconds: int, start: int, end: int
) -> tuple[Int64s, _Columns]:
    """A null bar for every expected open in [start, end) that has no bar."""
    first, last = np.searchsorted(grid.segment_ends_at, start, "right"), np.searchsorted(grid.segment_starts_at, end)
    segments = zip(grid.segment_starts_at[first:last].tolist(), grid.segment_ends_at[first:last].tolist(), strict=True)
    opens = [np.arange(opens_at, closes_at, seconds, dtype=np.int64) for opens_at, closes_at in segments]
    expected = np.concatenate([*opens, np.empty(0, np.int64)])
    absent = np.setdiff1d(expected[(expected >= start) & (expected < end)], stamps)
    merged = np.concatenate([stamps, absent])
    order = np.argsort(merged, kind="stable")
    nulls = np.full(len(absent), np.nan)
    return merged[order], {name: np.concatenate([column, nulls])[order] for name, column in columns.items()}


def _live_form(profile: Profile, seed: int, symbol: str) -> str:
    if profile.live_bar != "auto":
        return profile.live_bar
    return "AB"[blake2b(f"{seed}:{symbol}".encode(), digest_size=1).digest()[0] % 2]


@dataclass(frozen=True, slots=True)
class _LiveRow:
    """One row of a bar in progress. ``holds``: nothing (a null bar), its numbers so far, or only its last price."""

    stamp: int
    holds: str


def _live_rows(opened_at: int, *, interval: str, form: str, now: int) -> list[_LiveRow]:
    """How the bar in progress is written. A day in progress is stamped with the last tick, in either form."""
    if form == "none":
        return []
    if interval == "1d":
        return [_LiveRow(now, "so far")]
    if form == "A":
        return [_LiveRow(opened_at, "null"), _LiveRow(max(now, opened_at + 1), "last price")]
    return [_LiveRow(opened_at, "so far")]


def _with_live_bar(stamps: Int64s, columns: _Columns, so_far: _Columns, rows: list[_LiveRow]) -> tuple[Int64s, _Columns]:
    """The chart with the bar in progress at its end."""
    contents = {
        "null": dict.fromkeys(FIELDS, np.nan),
        "so far": {name: float(so_far[name][0]) for name in FIELDS},
        "last price": dict.fromkeys(PRICES, float(so_far["close"][0])) | {"volume": 0.0},
    }
    ticks = np.asarray([row.stamp for row in rows], np.int64)
    return (
        np.concatenate([stamps, ticks]),
        {name: np.append(column, [contents[row.holds][name] for row in rows]) for name, column in columns.items()},
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
        return _unprocessable(f"{asked} {reason}")
    if interval == "1m" and end - start > MINUTE_SPAN_DAYS * DAY:
        reason = f"Only {MINUTE_SPAN_DAYS} days worth of 1m granularity data are allowed to be fetched per request."
        return _unprocessable(f"{asked} {reason}")
    return None


@dataclass(frozen=True, slots=True)
class _Place:
    """What ``meta`` speaks about: one listing and its sessions at ``now``, and the window that was asked for."""

    listing: Listing
    grid: Grid
    now: int
    window: tuple[int, int]

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.grid.timezone)

    @property
    def instrument_type(self) -> str:
        return INSTRUMENT_TYPES.get(self.listing.asset_type.lower(), self.listing.asset_type.upper())

    @property
    def exchange(self) -> _Exchange:
        return EXCHANGES[self.listing.exchange.upper()]

    @property
    def has_pre_post(self) -> bool:
        return self.exchange.has_pre_post and self.instrument_type in {"EQUITY", "ETF"}


def _meta(scene: _Place, request: ChartRequest, *, served: str, daily: Bars, seen: Seen) -> dict[str, Any]:
    """``meta``: in the present tense, so it speaks about now, whatever window was asked for. ``served``: the interval sent."""
    local = datetime.fromtimestamp(scene.now, scene.zone)
    name = scene.listing.name or scene.listing.symbol
    meta: dict[str, Any] = {
        "currency": scene.listing.currency or scene.exchange.currency,
        "symbol": scene.listing.symbol,
        "exchangeName": scene.exchange.name,
        "fullExchangeName": scene.exchange.full_name,
        "instrumentType": scene.instrument_type,
        "firstTradeDate": None,
        "regularMarketTime": scene.now,
        "hasPrePostMarketData": scene.has_pre_post,
        "gmtoffset": _offset(local),
        "timezone": local.tzname(),
        "exchangeTimezoneName": scene.grid.timezone,
    }
    meta |= _market_numbers(scene, daily)
    meta |= {"shortName": name} if scene.instrument_type == "FUTURE" else {"longName": name, "shortName": name}
    if served != "1d":
        newest = seen.forming if len(seen.forming) else seen.finished
        if len(newest):
            newest_end = min(scene.now, int(newest.ends_at[-1]))
            meta |= {"regularMarketPrice": _rounded(newest.ohlcv[3, -1]), "regularMarketTime": newest_end}
        if len(daily):
            meta |= {"previousClose": _rounded(daily.ohlcv[3, -1]), "scale": 3}
        periods = _trading_periods(scene, pre_post=scene.has_pre_post and request.include_pre_post)
        meta |= {"tradingPeriods": periods} if periods else {}
    meta["priceHint"] = 4 if scene.instrument_type == "CURRENCY" else 2
    meta["currentTradingPeriod"] = _current_period(scene)
    # Honest about what was sent: asked for 30m, Yahoo sends hours and says so.
    meta["dataGranularity"] = "1h" if served == "60m" != request.interval else served
    meta["range"] = request.range
    meta["validRanges"] = list(RANGES)
    return meta


def _market_numbers(scene: _Place, daily: Bars) -> dict[str, Any]:
    """The prices of ``meta``, from the days known now; none for a symbol that has not traded yet."""
    if not len(daily):
        return {}
    year = daily.between(scene.now - 365 * DAY, scene.now + 1)
    year = year if len(year) else daily.take(slice(-1, None))
    _, high, low, close, volume = daily.ohlcv
    before = close[: np.searchsorted(daily.opened_at, scene.window[0])]
    numbers: dict[str, Any] = {
        "firstTradeDate": int(daily.opened_at[0]),
        "regularMarketTime": min(scene.now, int(daily.ends_at[-1])),
        "regularMarketPrice": _rounded(close[-1]),
        "fiftyTwoWeekHigh": _rounded(year.ohlcv[1].max()),
        "fiftyTwoWeekLow": _rounded(year.ohlcv[2].min()),
        "chartPreviousClose": _rounded(before[-1] if len(before) else daily.ohlcv[0, 0]),
    }
    # A fund that is priced once a day has no day's range; recorded so for 0P000071W8.TO.
    if scene.instrument_type != "MUTUALFUND" or volume.any():
        numbers |= {
            "regularMarketDayHigh": _rounded(high[-1]),
            "regularMarketDayLow": _rounded(low[-1]),
            "regularMarketVolume": round(float(volume[-1])),
        }
    return numbers


def _rounded(price: np.floating[Any]) -> float:
    """Prices in ``meta`` are decimals, not widened float32s."""
    return round(float(price), 4)


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


def _current_period(scene: _Place) -> dict[str, Any]:
    """The session of now, or the next one to come."""
    grid, zone = scene.grid, scene.zone
    place = min(int(np.searchsorted(grid.closes_at, scene.now, "right")), len(grid.opens_at) - 1)
    opens_at, closes_at = int(grid.opens_at[place]), int(grid.closes_at[place])
    before, after = _around(opens_at, closes_at, zone, pre_post=scene.has_pre_post)
    return {
        "pre": _period(before, opens_at, zone),
        "regular": _period(opens_at, closes_at, zone),
        "post": _period(closes_at, after, zone),
    }


def _trading_periods(scene: _Place, *, pre_post: bool) -> Any:  # noqa: ANN401 - Yahoo's two shapes
    """The sessions that the window touches: a list of days, or one such list each for pre, regular and post."""
    grid, zone = scene.grid, scene.zone
    first = int(np.searchsorted(grid.closes_at, scene.window[0], "right"))
    last = int(np.searchsorted(grid.opens_at, min(scene.window[1], scene.now + 1)))
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


def _dividends(actions: list[Action], daily: Bars, grid: Grid) -> list[tuple[int, float]]:
    """Each dividend as (opening of its ex-date, share of the price that was paid out)."""
    paid = []
    for action in actions:
        ex = _open_of(action.session, grid)
        before = int(np.searchsorted(daily.opened_at, ex)) - 1
        if action.kind == "dividend" and before >= 0:
            paid.append((ex, action.value / float(daily.ohlcv[3, before])))
    return paid


def _adjusted(stamps: Int64s, close: Float64s, dividends: list[tuple[int, float]], profile: Profile) -> Float64s:
    """Close times the product of (1 - dividend / close before its ex-date) over all later dividends: Yahoo's adjclose."""
    factors = np.ones(len(stamps))
    for ex, share in dividends:
        factors[stamps < ex] *= 1 - share
    adjusted = close * factors
    return adjusted.astype(np.float32).astype(np.float64) if profile.prices == "float32" else adjusted


# --- the endpoint --------------------------------------------------------------------------------------------------------


class ChartEndpoint:
    """/v8/finance/chart: bars of one symbol."""

    def parse(self, received: Received) -> Call | Reply | None:
        """The chart asked for; a refusal as Yahoo words it."""
        if not received.path.startswith(CHART_PATH):
            return None
        request = parse_request(received.path, received.query)
        if isinstance(request, ChartRefusal):
            return _refused(request)
        return Call(
            capability=bars_capability(request.interval),
            symbols=(request.symbol,),
            interval=request.interval,
            start=request.start,
            end=request.end,
            asked=request,
        )

    def answer(self, call: Call, scene: Scene) -> BarsAnswer | Reply:
        """The chart; a refusal where the symbol is unknown or the window out of reach."""
        request = replace(call.asked, interval=call.interval)
        chart = answer_chart(scene.market, request, now_us=scene.now_us, seed=scene.seed)
        if isinstance(chart, ChartRefusal):
            return _refused(chart)
        return BarsAnswer((chart.table,), lambda page: _written(replace(chart, table=page.tables[0])))


def _written(chart: ChartAnswer) -> Reply:
    return Reply(200, (("content-type", JSON_TYPE),), chart.body())


def _refused(refusal: ChartRefusal) -> Reply:
    return Reply(refusal.status, (("content-type", JSON_TYPE),), refusal.body())


def refuse(status: int, detail: str) -> Reply:
    """Yahoo's words: plain text for 429, JSON for 404, a missing crumb and whatever has a detail, a page of HTML for the rest."""
    if status == 429:
        return Reply(429, (("content-type", "text/plain"),), b"Too Many Requests\r\n")
    if status == 401:
        error = {"code": "Unauthorized", "description": detail or "Invalid Crumb"}
        return json_reply(401, {"finance": {"result": None, "error": error}})
    if status == 404 and not detail:
        return _refused(NOT_FOUND)
    if detail:
        return _refused(ChartRefusal(status, HTTPStatus(status).phrase, detail))
    page = f"<html><body><h1>{status}</h1></body></html>".encode()
    return Reply(status, (("content-type", "text/html; charset=utf-8"),), page)
