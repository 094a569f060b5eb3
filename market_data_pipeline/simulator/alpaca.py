"""Alpaca's market data, simulated: bars of many symbols in pages, the newest quotes; two feeds. Formats: PROVIDERS.md §5."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl
from zoneinfo import ZoneInfo

import numpy as np

from market_data_pipeline.domain.capabilities import RateLimit
from market_data_pipeline.simulator.market import NO_BARS, Bars
from market_data_pipeline.simulator.tape import (
    NEW_YORK,
    around,
    as_traded,
    known_bars,
    listed,
    midnights,
    newest_tick,
    on_iex,
    rows_of,
    table_of,
)
from market_data_pipeline.simulator.vendor import (
    FREE,
    PREMIUM,
    BarsAnswer,
    BarTable,
    Call,
    RecordsAnswer,
    Reply,
    Vendor,
    bars_capability,
    json_reply,
    made_up_key,
    plan_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from market_data_pipeline.domain.candles import Int64s
    from market_data_pipeline.simulator.limits import LimitState
    from market_data_pipeline.simulator.vendor import Answer, Headers, Received, Scene

NAME = "alpaca"
TIMEFRAMES = {"1Min": "1m", "1T": "1m", "5Min": "5m", "15Min": "15m", "30Min": "30m", "1Hour": "1h", "1Day": "1d", "1D": "1d"}
FEEDS = ("iex", "sip", "delayed_sip")
DEFAULT_ROWS, MOST_ROWS = 1000, 10_000
# What a free account may not see of the consolidated tape.
SIP_DELAY_SECONDS = 15 * 60
# Sizes of quotes were in round lots before (SEC's rule on market data).
_SHARES_SINCE = int(datetime(2025, 11, 3, tzinfo=UTC).timestamp())
_LETTERS = {"open": "o", "high": "h", "low": "l", "close": "c", "volume": "v", "vwap": "vw", "trades": "n"}
_SYMBOL = re.compile(r"[A-Z0-9]{1,10}(?:[./][A-Z0-9]{1,5})?", re.ASCII)

_WORDS = {
    401: "forbidden.",
    403: "forbidden.",
    404: "endpoint not found.",
    429: "too many requests.",
}


def refuse(status: int, detail: str) -> Reply:
    """``{"message": …}``. A wrong key is 403, too."""
    return json_reply(403 if status == 401 else status, {"message": detail or _WORDS.get(status, "internal server error occurred")})


@dataclass(frozen=True, slots=True)
class _BarsAsked:
    limit: int
    feed: str
    adjustment: str


def _plan(received: Received) -> str | None:
    plan = plan_of(NAME, received.headers.get("apca-api-key-id", ""))
    return plan if plan_of(f"{NAME}-secret", received.headers.get("apca-api-secret-key", "")) == plan else None


def _symbols(given: Mapping[str, str]) -> tuple[str, ...] | Reply:
    symbols = tuple(symbol.strip() for symbol in given.get("symbols", "").split(",") if symbol.strip())
    if not symbols:
        return refuse(400, "symbols is required")
    invalid = next((symbol for symbol in symbols if not _SYMBOL.fullmatch(symbol)), None)
    return symbols if invalid is None else refuse(400, f"invalid symbol: {invalid}")


def _instant(text: str | None, otherwise: int) -> int | None:
    """Epoch seconds of a date or an RFC 3339 instant; None for neither."""
    if not text:
        return otherwise
    try:
        if len(text) == 10:
            return int(datetime.combine(date.fromisoformat(text), datetime.min.time(), ZoneInfo(NEW_YORK)).timestamp())
        stamp = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))
    except ValueError:
        return None
    return int(stamp.timestamp()) if stamp.tzinfo else None


class BarsEndpoint:
    """/v2/stocks/bars: bars of many symbols, sorted by symbol and time, cut into pages over all of them."""

    def parse(self, received: Received) -> Call | Reply | None:
        """The bars asked for."""
        if received.path != "/v2/stocks/bars":
            return None
        given = dict(parse_qsl(received.query, keep_blank_values=True))
        plan = _plan(received)
        if plan is None:
            return refuse(401, "")
        symbols, interval = _symbols(given), TIMEFRAMES.get(given.get("timeframe", ""), "")
        if isinstance(symbols, Reply):
            return symbols
        start, end = _instant(given.get("start"), 0), _instant(given.get("end"), 1 << 40)
        limit, feed = given.get("limit", str(DEFAULT_ROWS)), given.get("feed", "sip" if plan == PREMIUM else "iex")
        wrong = {
            f"invalid timeframe: {given.get('timeframe', '')}": not interval,
            "invalid format for parameter start or end: expected RFC-3339 or YYYY-MM-DD": start is None or end is None,
            f"limit must be between 1 and {MOST_ROWS}": not limit.isdigit() or not 1 <= int(limit) <= MOST_ROWS,
            f"invalid feed: {feed}": feed not in FEEDS,
        }
        refused = next((words for words, is_so in wrong.items() if is_so), "")
        if refused or end is None:
            return refuse(400, refused)
        return Call(
            capability=bars_capability(interval),
            symbols=symbols,
            interval=interval,
            start=start,
            # The end is included on the wire.
            end=end + 1,
            key=received.headers["apca-api-key-id"],
            plan=plan,
            page=given.get("page_token", ""),
            asked=_BarsAsked(int(limit), feed, given.get("adjustment", "raw")),
        )

    def answer(self, call: Call, scene: Scene) -> Answer | Reply:
        """One page; 403 where a free account asks for the newest of the consolidated tape."""
        asked: _BarsAsked = call.asked
        start, end = call.start or 0, call.end or 0
        if asked.feed != "iex" and call.plan == FREE and min(end, scene.now) > scene.now - SIP_DELAY_SECONDS:
            return refuse(403, "subscription does not permit querying recent SIP data")
        first_symbol, after = _page_named(call.page)
        left, tables, token = asked.limit, list[BarTable](), ""
        for name in sorted(set(call.symbols)):
            if name < first_symbol:
                continue
            first = max(start, after) if name == first_symbol else start
            bars = _bars_of(scene, name, call.interval or "1d", asked, (first, end)).between(first, end)
            if len(bars) > left:
                token = _page_name(name, int(bars.opened_at[left - 1]))
                bars = bars.take(slice(0, left))
            left -= len(bars)
            tables.append(table_of(name, call.interval or "1d", bars))
            if token or (not left and name != max(call.symbols)):
                # A page that ends with its symbol names that bar, too: whether more follows is only known afterwards.
                token = token or _page_name(name, int(bars.opened_at[-1]))
                break
        return BarsAnswer(tables, _written, page=call.page, next_page=token)


def _bars_of(scene: Scene, name: str, interval: str, asked: _BarsAsked, window: tuple[int, int]) -> Bars:
    symbol = listed(scene.market, name)
    if symbol is None:
        return NO_BARS
    whole = around(known_bars(scene, symbol, interval), *window)
    bars = on_iex(scene, symbol, interval, *window) if asked.feed == "iex" else whole
    if asked.adjustment in {"raw", "dividend"}:
        bars = as_traded(scene, symbol, bars)
    return replace(bars, opened_at=midnights(bars.opened_at)) if interval == "1d" else bars


def _page_name(symbol: str, last: int) -> str:
    return base64.b64encode(f"{symbol}|{last}".encode()).decode()


def _page_named(page: str) -> tuple[str, int]:
    """The symbol with which a page begins, and the first instant of it."""
    if not page:
        return "", 0
    try:
        symbol, _, last = base64.b64decode(page, validate=True).decode().rpartition("|")
        return symbol, int(last) + 1
    except ValueError:
        return "", 0


def _written(page: BarsAnswer) -> Reply:
    bars = {table.symbol: rows_of(table, _LETTERS, rfc3339(table.opened_at), "t") for table in page.tables if len(table)}
    return json_reply(200, {"bars": bars, "next_page_token": page.next_page or None})


def rfc3339(stamps: Int64s) -> list[str]:
    """Epoch seconds as Alpaca writes instants."""
    return [f"{text}Z" for text in np.datetime_as_string(stamps.astype("datetime64[s]")).tolist()]


class QuotesEndpoint:
    """/v2/stocks/quotes/latest: the newest quote of each symbol; those that it does not know are absent."""

    def parse(self, received: Received) -> Call | Reply | None:
        """The quotes asked for."""
        if received.path != "/v2/stocks/quotes/latest":
            return None
        given = dict(parse_qsl(received.query, keep_blank_values=True))
        plan, symbols = _plan(received), _symbols(given)
        if plan is None:
            return refuse(401, "")
        if isinstance(symbols, Reply):
            return symbols
        feed = given.get("feed", "sip" if plan == PREMIUM else "iex")
        if feed not in FEEDS:
            return refuse(400, f"invalid feed: {feed}")
        return Call(capability="quotes_l1", symbols=symbols, key=received.headers["apca-api-key-id"], plan=plan, asked=feed)

    def answer(self, call: Call, scene: Scene) -> Answer | Reply:
        """Quotes of the feed; the delayed one is of a quarter of an hour ago."""
        if call.asked == "sip" and call.plan == FREE:
            return refuse(403, "subscription does not permit querying recent SIP data")
        if call.asked == "delayed_sip":
            scene = replace(scene, now_us=scene.now_us - SIP_DELAY_SECONDS * 1_000_000)
        records = []
        for name in call.symbols:
            symbol = listed(scene.market, name)
            tick = None if symbol is None else newest_tick(scene, symbol)
            if tick is None:
                continue
            lot = 1 if tick.at >= _SHARES_SINCE else 100
            stamp = datetime.fromtimestamp(tick.at, UTC) - timedelta(milliseconds=317)
            records.append(
                {
                    "symbol": name,
                    "ap": tick.ask,
                    "as": tick.ask_size // lot,
                    "ax": "V",
                    "bp": tick.bid,
                    "bs": tick.bid_size // lot,
                    "bx": "V",
                    "c": ["R"],
                    "t": f"{stamp:%Y-%m-%dT%H:%M:%S.%f}123Z",
                    "z": "C",
                }
            )
        return RecordsAnswer(records, _quotes_written)


def _quotes_written(records: Sequence[Mapping[str, Any]]) -> Reply:
    quotes = {record["symbol"]: {key: value for key, value in record.items() if key != "symbol"} for record in records}
    return json_reply(200, {"quotes": quotes})


def _limit_headers(state: LimitState, scene: Scene) -> Headers:
    if state.limit is None:
        return ()
    reset = scene.now + int(state.limit.seconds)
    return (
        ("x-ratelimit-limit", str(state.limit.requests)),
        ("x-ratelimit-remaining", str(state.remaining)),
        ("x-ratelimit-reset", str(reset)),
    )


def variables(base_url: str, plan: str) -> dict[str, str]:
    """What the pipeline must be told to ask here."""
    return {
        "MDP_ALPACA_BASE_URL": base_url,
        "MDP_ALPACA_KEY_ID": made_up_key(NAME, plan),
        "MDP_ALPACA_SECRET_KEY": made_up_key(f"{NAME}-secret", plan),
        "MDP_ALPACA_FEED": "sip" if plan == PREMIUM else "iex",
    }


ALPACA = Vendor(
    name=NAME,
    prefix="/alpaca",
    endpoints=(BarsEndpoint(), QuotesEndpoint()),
    variables=variables,
    refuse=refuse,
    limits={FREE: (RateLimit(200, 60.0),), PREMIUM: (RateLimit(10_000, 60.0),)},
    limit_headers=_limit_headers,
)
