"""Finnhub, simulated: candles for accounts that pay, quotes for all, bid and ask. Formats: PROVIDERS.md §2."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import numpy as np

from market_data_pipeline.domain.capabilities import RateLimit
from market_data_pipeline.simulator.market import DAY
from market_data_pipeline.simulator.tape import as_traded, known_bars, listed, newest_tick, table_of
from market_data_pipeline.simulator.vendor import (
    FREE,
    PREMIUM,
    BarsAnswer,
    Call,
    RecordsAnswer,
    Reply,
    Vendor,
    bars_capability,
    json_reply,
    made_up_key,
    plan_of,
    writable,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from market_data_pipeline.simulator.limits import LimitState
    from market_data_pipeline.simulator.vendor import Answer, BarTable, Headers, Received, Scene

NAME = "finnhub"
RESOLUTIONS = {"1": "1m", "5": "5m", "15": "15m", "30": "30m", "60": "1h", "D": "1d"}
_LETTERS = {"open": "o", "high": "h", "low": "l", "close": "c", "volume": "v"}
_EPOCH = re.compile(r"\d{1,12}", re.ASCII)
# A longer intraday range is not refused: what comes is its last month.
INTRADAY_SPAN_SECONDS = 31 * DAY

_WORDS = {
    401: "Invalid API key",
    402: "You don't have access to this resource.",
    403: "You don't have access to this resource.",
    404: "Symbol not supported",
    429: "API limit reached. Please try again later. Remaining Limit: 0",
}


def refuse(status: int, detail: str) -> Reply:
    """``{"error": …}``, whatever went wrong."""
    return json_reply(status, {"error": detail or _WORDS.get(status, "Internal error")})


def _call(received: Received, capability: str, given: Mapping[str, str], **more: Any) -> Call | Reply:  # noqa: ANN401 - fields of Call
    """The call of a known account: the key comes as a header or, as in the vendor's own client, in the query."""
    key = received.headers.get("x-finnhub-token") or given.get("token", "")
    if not key:
        return refuse(401, "Please use an API key.")
    plan = plan_of(NAME, key)
    if plan is None:
        return refuse(401, "")
    return Call(capability=capability, symbols=(given.get("symbol", "").upper(),), key=key, plan=plan, **more)


class CandleEndpoint:
    """/stock/candle: bars of one symbol. Intraday as traded, days adjusted for splits."""

    def parse(self, received: Received) -> Call | Reply | None:
        """The candles asked for."""
        if received.path != "/stock/candle":
            return None
        given = dict(parse_qsl(received.query, keep_blank_values=True))
        interval = RESOLUTIONS.get(given.get("resolution", ""))
        start, end = given.get("from", ""), given.get("to", "")
        if interval is None or not (_EPOCH.fullmatch(start) and _EPOCH.fullmatch(end)):
            return refuse(
                422, "Wrong resolution. Available values: 1, 5, 15, 30, 60, D, W, M" if interval is None else "Wrong range"
            )
        # Both ends are included on the wire.
        return _call(received, bars_capability(interval), given, interval=interval, start=int(start), end=int(end) + 1)

    def answer(self, call: Call, scene: Scene) -> Answer | Reply:
        """Parallel arrays; ``{"s": "no_data"}`` for nothing and for a symbol that it does not know."""
        if call.plan == FREE:
            return refuse(403, "")
        symbol = listed(scene.market, call.symbols[0])
        if symbol is None or call.interval is None or call.start is None or call.end is None:
            return json_reply(200, {"s": "no_data"})
        bars = known_bars(scene, symbol, call.interval)
        start = call.start
        if call.interval == "1d":
            days = bars.opened_at // DAY * DAY
            bars = bars.take((days >= start) & (days < call.end))
        else:
            start = max(start, call.end - INTRADAY_SPAN_SECONDS)
            bars = as_traded(scene, symbol, bars.between(start, call.end))
        return BarsAnswer((table_of(call.symbols[0], call.interval, bars),), lambda page: _written(page.tables[0]))


def _written(table: BarTable) -> Reply:
    if not len(table):
        return json_reply(200, {"s": "no_data"})
    stamps = table.opened_at - table.opened_at % DAY if table.interval == "1d" else table.opened_at
    letters = {_LETTERS.get(name, name): writable(name, column) for name, column in table.columns.items()}
    return json_reply(200, {**letters, "s": "ok", "t": np.ascontiguousarray(stamps)})


class QuoteEndpoint:
    """/quote: the last price of one symbol, and no bid or ask."""

    def parse(self, received: Received) -> Call | Reply | None:
        """The quote asked for."""
        if received.path != "/quote":
            return None
        return _call(received, "quotes_l1", dict(parse_qsl(received.query, keep_blank_values=True)))

    def answer(self, call: Call, scene: Scene) -> Answer | Reply:
        """Zeros, and null for the change, where the symbol is unknown."""
        symbol = listed(scene.market, call.symbols[0])
        tick = None if symbol is None else newest_tick(scene, symbol)
        if tick is None:
            return json_reply(200, {"c": 0, "d": None, "dp": None, "h": 0, "l": 0, "o": 0, "pc": 0, "t": 0})
        before = tick.previous_close or tick.opened
        change = round(tick.last - before, 4)
        record = {
            "c": tick.last,
            "d": change,
            "dp": round(100 * change / before, 4),
            "h": tick.high,
            "l": tick.low,
            "o": tick.opened,
            "pc": before,
            "t": tick.at,
        }
        return RecordsAnswer([record], _one_record, symbol=call.symbols[0])


class BidAskEndpoint:
    """/stock/bidask: the best bid and ask of one symbol, for accounts that pay."""

    def parse(self, received: Received) -> Call | Reply | None:
        """The quote asked for."""
        if received.path != "/stock/bidask":
            return None
        return _call(received, "quotes_l1", dict(parse_qsl(received.query, keep_blank_values=True)))

    def answer(self, call: Call, scene: Scene) -> Answer | Reply:
        """Zeros where the symbol is unknown. ``t`` in milliseconds."""
        if call.plan == FREE:
            return refuse(403, "")
        symbol = listed(scene.market, call.symbols[0])
        tick = None if symbol is None else newest_tick(scene, symbol)
        if tick is None:
            return json_reply(200, {"a": 0, "av": 0, "b": 0, "bv": 0, "t": 0})
        record = {"a": tick.ask, "av": tick.ask_size, "b": tick.bid, "bv": tick.bid_size, "t": tick.at * 1000}
        return RecordsAnswer([record], _one_record, symbol=call.symbols[0])


def _one_record(records: Sequence[Mapping[str, Any]]) -> Reply:
    return json_reply(200, records[0] if records else {})


def _limit_headers(state: LimitState, scene: Scene) -> Headers:
    if state.limit is None:
        return ()
    # On the virtual clock, and a whole window away: the same script twice must read the same.
    reset = scene.now + int(state.limit.seconds)
    return (
        ("x-ratelimit-limit", str(state.limit.requests)),
        ("x-ratelimit-remaining", str(state.remaining)),
        ("x-ratelimit-reset", str(reset)),
    )


def variables(base_url: str, plan: str) -> dict[str, str]:
    """What the pipeline must be told to ask here."""
    told = {"MDP_FINNHUB_BASE_URL": base_url, "MDP_FINNHUB_KEY": made_up_key(NAME, plan)}
    return told | ({"MDP_FINNHUB_BID_ASK": "true"} if plan == PREMIUM else {})


_A_SECOND = RateLimit(30, 1.0)
FINNHUB = Vendor(
    name=NAME,
    prefix="/finnhub/api/v1",
    endpoints=(CandleEndpoint(), QuoteEndpoint(), BidAskEndpoint()),
    variables=variables,
    refuse=refuse,
    limits={FREE: (RateLimit(60, 60.0), _A_SECOND), PREMIUM: (RateLimit(300, 60.0), _A_SECOND)},
    limit_headers=_limit_headers,
)
