"""Alpha Vantage, simulated: minutes by month and days, newest first, numbers as text, and refusals with status 200."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl
from zoneinfo import ZoneInfo

import numpy as np

from market_data_pipeline.domain.capabilities import RateLimit
from market_data_pipeline.simulator.market import DAY, SECONDS
from market_data_pipeline.simulator.tape import NEW_YORK, as_traded, known_bars, listed, midnights, rows_of, table_of
from market_data_pipeline.simulator.vendor import (
    FREE,
    PREMIUM,
    BarsAnswer,
    Call,
    Reply,
    Vendor,
    bars_capability,
    json_reply,
    made_up_key,
    plan_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from market_data_pipeline.simulator.limits import LimitState
    from market_data_pipeline.simulator.vendor import Answer, BarTable, Received, Scene

NAME = "alphavantage"
INTERVALS = {"1min": "1m", "5min": "5m", "15min": "15m", "30min": "30m", "60min": "1h"}
COMPACT_ROWS = 100
FULL_INTRADAY_SECONDS = 30 * DAY
_NAMES = {"open": "1. open", "high": "2. high", "low": "3. low", "close": "4. close", "volume": "5. volume"}

_PREMIUM = (
    "Thank you for using Alpha Vantage! This is a premium endpoint. You may subscribe to any of the premium plans at "
    "https://www.alphavantage.co/premium/ to instantly unlock all premium endpoints"
)
_KEY = (
    "the parameter apikey is invalid or missing. Please claim your free API key on "
    "(https://www.alphavantage.co/support/#api-key). It should take less than 20 seconds."
)


def refuse(status: int, detail: str) -> Reply:
    """Status 200, whatever went wrong: Error Message, Information or Note say it."""
    if status in {400, 401, 404}:
        words = {"Error Message": detail or (_KEY if status == 401 else _invalid("TIME_SERIES_DAILY"))}
    elif status in {402, 403}:
        words = {"Information": detail or _PREMIUM}
    elif status == 429:
        words = {"Note": detail or "Thank you for using Alpha Vantage! Our standard API call frequency is 5 calls per minute."}
    else:
        words = {"Error Message": detail or "Internal error"}
    return json_reply(200, words, content_type="application/json")


def _over_limit(call: Call, state: LimitState) -> Reply:
    """Of the day's limit it tells with the key in its words; of the second's, without."""
    if state.limit is not None and state.limit.seconds <= 1:
        words = (
            "Thank you for using Alpha Vantage! Please consider spreading out your free API requests more sparingly "
            "(1 request per second)."
        )
        return json_reply(200, {"Information": words}, content_type="application/json")
    allowed = state.limit.requests if state.limit else 25
    words = (
        f"We have detected your API key as {call.key} and our standard API rate limit is {allowed} requests per day. Please "
        "subscribe to any of the premium plans at https://www.alphavantage.co/premium/ to instantly remove all daily rate limits."
    )
    return json_reply(200, {"Information": words}, content_type="application/json")


def _invalid(function: str) -> str:
    return f"Invalid API call. Please retry or visit the documentation (https://www.alphavantage.co/documentation/) for {function}."


@dataclass(frozen=True, slots=True)
class _SeriesAsked:
    function: str
    full: bool
    month: str
    adjusted: bool
    extended: bool
    label: str


class SeriesEndpoint:
    """/query?function=TIME_SERIES_INTRADAY and TIME_SERIES_DAILY."""

    def parse(self, received: Received) -> Call | Reply | None:
        """The series asked for."""
        if received.path != "/query":
            return None
        given = dict(parse_qsl(received.query, keep_blank_values=True))
        function, key = given.get("function", ""), given.get("apikey", "")
        plan = plan_of(NAME, key)
        if plan is None:
            return refuse(401, "")
        label = given.get("interval", "")
        interval = "1d" if function == "TIME_SERIES_DAILY" else INTERVALS.get(label)
        if function not in {"TIME_SERIES_INTRADAY", "TIME_SERIES_DAILY"} or interval is None or not given.get("symbol"):
            return refuse(400, _invalid(function))
        month = given.get("month", "")
        window = _month(month)
        if month and window is None:
            return refuse(400, _invalid(function))
        return Call(
            capability=bars_capability(interval),
            symbols=(given["symbol"].upper(),),
            interval=interval,
            start=window[0] if window else None,
            end=window[1] if window else None,
            key=key,
            plan=plan,
            asked=_SeriesAsked(
                function=function,
                full=given.get("outputsize", "compact") == "full",
                month=month,
                adjusted=given.get("adjusted", "true") == "true",
                extended=given.get("extended_hours", "true") == "true",
                label=label,
            ),
        )

    def answer(self, call: Call, scene: Scene) -> Answer | Reply:
        """The series; days as traded, minutes adjusted for splits unless asked otherwise. A free account sees nothing of today."""
        asked: _SeriesAsked = call.asked
        if call.interval == "1d" and asked.full and call.plan == FREE:
            return refuse(403, "")
        symbol = listed(scene.market, call.symbols[0])
        if symbol is None:
            return refuse(404, _invalid(asked.function))
        interval = call.interval or "1d"
        bars = known_bars(scene, symbol, interval, with_today=call.plan == PREMIUM)
        if interval == "1d" or not asked.adjusted:
            bars = as_traded(scene, symbol, bars)
        if interval != "1d":
            if not asked.extended:
                bars = bars.take(bars.regular)
            first = scene.now - FULL_INTRADAY_SECONDS if call.start is None else call.start
            bars = bars.between(first, scene.now + 1 if call.end is None else call.end)
        if call.plan == FREE:
            today = int(midnights(np.asarray([scene.now]))[0])
            bars = bars.take(bars.opened_at < today)
        if not asked.full:
            bars = bars.take(slice(max(0, len(bars) - COMPACT_ROWS), None))
        by_close = scene.market.profile.alphavantage_stamp == "close" and interval != "1d"
        table = replace(table_of(call.symbols[0], interval, bars), further={})
        return BarsAnswer((table,), lambda page: _written(page.tables[0], asked, SECONDS[interval] if by_close else 0))


def _month(text: str) -> tuple[int, int] | None:
    """The month in New York as epoch seconds."""
    try:
        first = datetime.strptime(text, "%Y-%m").replace(tzinfo=ZoneInfo(NEW_YORK))
    except ValueError:
        return None
    following = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    return int(first.timestamp()), int(following.timestamp())


def _written(table: BarTable, asked: _SeriesAsked, shift: int) -> Reply:
    zone, is_daily = ZoneInfo(NEW_YORK), table.interval == "1d"
    form = "%Y-%m-%d" if is_daily else "%Y-%m-%d %H:%M:%S"
    stamps = [datetime.fromtimestamp(at + shift, zone).strftime(form) for at in table.opened_at.tolist()]
    rows = rows_of(table, _NAMES, stamps, "stamp")
    series: dict[str, Mapping[str, Any]] = {}
    # One object keyed by stamp: a stamp that comes twice is written once.
    for stamp, row in zip(reversed(stamps), reversed(rows), strict=True):
        series[stamp] = {name: _text(value, name) for name, value in row.items() if name != "stamp"}
    size = "Full size" if asked.full else "Compact"
    refreshed = max(stamps, default="")
    if is_daily:
        about = ["Daily Prices (open, high, low, close) and Volumes", table.symbol, refreshed, size, "US/Eastern"]
        names = ["1. Information", "2. Symbol", "3. Last Refreshed", "4. Output Size", "5. Time Zone"]
    else:
        told = f"Intraday ({asked.label}) open, high, low, close prices and volume"
        label = f"{SECONDS[table.interval] // 60}min"
        about = [told, table.symbol, refreshed, label, size, "US/Eastern"]
        names = ["1. Information", "2. Symbol", "3. Last Refreshed", "4. Interval", "5. Output Size", "6. Time Zone"]
    document = {
        "Meta Data": dict(zip(names, about, strict=True)),
        "Time Series (Daily)" if is_daily else f"Time Series ({about[3]})": series,
    }
    return json_reply(200, document, content_type="application/json")


def _text(value: Any, name: str) -> str | None:  # noqa: ANN401 - what a fault may have made of a number
    """Numbers are text: prices with four decimals, whole volumes without any."""
    if isinstance(value, str) or value is None:
        return value
    return f"{value:.0f}" if name == _NAMES["volume"] and float(value).is_integer() else f"{value:.4f}"


def variables(base_url: str, plan: str) -> dict[str, str]:
    """What the pipeline must be told to ask here."""
    return {"MDP_ALPHAVANTAGE_BASE_URL": base_url, "MDP_ALPHAVANTAGE_KEY": made_up_key(NAME, plan)}


ALPHAVANTAGE = Vendor(
    name=NAME,
    prefix="/alphavantage",
    endpoints=(SeriesEndpoint(),),
    variables=variables,
    refuse=refuse,
    over_limit=_over_limit,
    limits={FREE: (RateLimit(1, 1.0), RateLimit(25, 86_400.0)), PREMIUM: (RateLimit(75, 60.0),)},
)
