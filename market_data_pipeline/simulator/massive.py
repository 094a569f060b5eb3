"""Massive, formerly Polygon, simulated: aggregates with a cursor, and the days of the whole market. Formats: PROVIDERS.md §5."""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote
from zoneinfo import ZoneInfo

from market_data_pipeline.domain.capabilities import RateLimit
from market_data_pipeline.simulator.market import DAY, NO_BARS, Bars
from market_data_pipeline.simulator.tape import NEW_YORK, around, as_traded, known_bars, listed, midnights, rows_of, table_of
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
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from market_data_pipeline.simulator.vendor import Answer, Received, Scene

NAME = "massive"
TIMESPANS = {
    ("1", "minute"): "1m",
    ("5", "minute"): "5m",
    ("15", "minute"): "15m",
    ("30", "minute"): "30m",
    ("1", "hour"): "1h",
    ("1", "day"): "1d",
}
RANGE_PATH, GROUPED_PATH = "/v2/aggs/ticker/", "/v2/aggs/grouped/locale/us/market/stocks/"
DEFAULT_ROWS, MOST_ROWS = 5000, 50_000
# What a free account may see: the last two years, and nothing of today before the day is over.
FREE_REACH_SECONDS = 2 * 365 * DAY
_LETTERS = {"open": "o", "high": "h", "low": "l", "close": "c", "volume": "v", "vwap": "vw", "trades": "n"}

_PRICING = "Please upgrade your plan at https://massive.com/pricing"
_WORDS = {
    401: ("ERROR", "error", "Unknown API Key"),
    402: ("NOT_AUTHORIZED", "message", f"You are not entitled to this data. {_PRICING}"),
    403: ("NOT_AUTHORIZED", "message", f"You are not entitled to this data. {_PRICING}"),
    404: ("NOT_FOUND", "message", "Data not found."),
    429: (
        "ERROR",
        "error",
        f"You've exceeded the maximum requests per minute, please wait. {_PRICING}",
    ),
}


def refuse(status: int, detail: str) -> Reply:
    """An object with a status in words; the text is called error or message."""
    word, name, text = _WORDS.get(status, ("ERROR", "error", "Internal error"))
    return json_reply(status, {"status": word, "request_id": _request_id(str(status), detail), name: detail or text})


def _request_id(*names: str) -> str:
    return blake2b("\n".join(names).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class _RangeAsked:
    path: str
    limit: int
    adjusted: bool


def _account(received: Received, given: Mapping[str, str]) -> tuple[str, str] | Reply:
    """Key and plan: the key comes as a bearer token, or in the query."""
    key = received.headers.get("authorization", "").removeprefix("Bearer ") or given.get("apiKey", "")
    plan = plan_of(NAME, key)
    return refuse(401, "" if key else "API Key was not provided") if plan is None else (key, plan)


def _instant(text: str, *, last: bool) -> int | None:
    """Epoch milliseconds of a date in New York or of milliseconds; ``last``: the end of that date, included."""
    if text.isdigit() and len(text) > 8:
        return int(text)
    try:
        day = date.fromisoformat(text)
    except ValueError:
        return None
    at = datetime.combine(day + timedelta(days=1) if last else day, datetime.min.time(), ZoneInfo(NEW_YORK))
    return int(at.timestamp()) * 1000 - (1 if last else 0)


def _not_in_the_plan(call: Call, scene: Scene) -> str:
    """Why a free account may not see this window; "" where it may."""
    today = datetime.fromtimestamp(scene.now, ZoneInfo(NEW_YORK)).replace(hour=0, minute=0, second=0)
    if call.plan != FREE or call.start is None or call.end is None:
        return ""
    if call.start < scene.now - FREE_REACH_SECONDS:
        return f"Your plan doesn't include this data timeframe. {_PRICING}"
    return f"Attempted to request today's data before end of day. {_PRICING}" if call.end > int(today.timestamp()) else ""


class RangeEndpoint:
    """/v2/aggs/ticker/…/range/…: bars of one symbol, with a URL for the next page."""

    def parse(self, received: Received) -> Call | Reply | None:
        """The bars asked for."""
        parts = received.path.removeprefix(RANGE_PATH).split("/")
        if not received.path.startswith(RANGE_PATH) or len(parts) != 6 or parts[1] != "range":
            return None
        given = dict(parse_qsl(received.query, keep_blank_values=True))
        account = _account(received, given)
        if isinstance(account, Reply):
            return account
        interval = TIMESPANS.get((parts[2], parts[3]))
        first, last = _instant(parts[4], last=False), _instant(parts[5], last=True)
        limit = given.get("limit", str(DEFAULT_ROWS))
        if interval is None or first is None or last is None:
            return refuse(400, "Could not parse the time parameter or the timespan")
        if not limit.isdigit() or not 1 <= int(limit) <= MOST_ROWS:
            return refuse(400, f"The limit must be between 1 and {MOST_ROWS}")
        return Call(
            capability=bars_capability(interval),
            symbols=(unquote(parts[0]),),
            interval=interval,
            # Both ends are included on the wire.
            start=-(-first // 1000),
            end=last // 1000 + 1,
            key=account[0],
            plan=account[1],
            page=given.get("cursor", ""),
            asked=_RangeAsked(received.path, int(limit), given.get("adjusted", "true") == "true"),
        )

    def answer(self, call: Call, scene: Scene) -> Answer | Reply:
        """One page; without results where there are none, known symbol or not."""
        refused = _not_in_the_plan(call, scene)
        if refused:
            return refuse(403, refused)
        asked: _RangeAsked = call.asked
        name, interval = call.symbols[0], call.interval or "1d"
        start, end = max(call.start or 0, _after(call.page)), call.end or 0
        bars = _bars_of(scene, name, interval, (start, end), adjusted=asked.adjusted).between(start, end)
        following = ""
        if len(bars) > asked.limit:
            bars = bars.take(slice(0, asked.limit))
            following = _page_name(int(bars.opened_at[-1]))

        def write(page: BarsAnswer) -> Reply:
            table = page.tables[0]
            rows = rows_of(table, _LETTERS, (table.opened_at * 1000).tolist(), "t")
            document: dict[str, Any] = {
                "ticker": table.symbol,
                "queryCount": page.count,
                "resultsCount": page.count,
                "adjusted": asked.adjusted,
                **({"results": rows} if rows else {}),
                "status": "OK",
                "request_id": _request_id(asked.path, page.page),
                "count": page.count,
            }
            if page.next_page:
                document["next_url"] = f"{scene.base_url}{asked.path}?cursor={page.next_page}&limit={asked.limit}&sort=asc"
                document["next_url"] += f"&adjusted={str(asked.adjusted).lower()}"
            return json_reply(200, document)

        return BarsAnswer((table_of(name, interval, bars),), write, page=call.page, next_page=following)


def _bars_of(scene: Scene, name: str, interval: str, window: tuple[int, int], *, adjusted: bool) -> Bars:
    symbol = listed(scene.market, name)
    if symbol is None:
        return NO_BARS
    bars = around(known_bars(scene, symbol, interval), *window)
    if not adjusted:
        bars = as_traded(scene, symbol, bars)
    return replace(bars, opened_at=midnights(bars.opened_at)) if interval == "1d" else bars


def _page_name(last: int) -> str:
    return base64.urlsafe_b64encode(f"after={last}".encode()).decode().rstrip("=")


def _after(page: str) -> int:
    """The first instant of a page."""
    try:
        return int(base64.urlsafe_b64decode(page + "=" * (-len(page) % 4)).decode().removeprefix("after=")) + 1 if page else 0
    except ValueError:
        return 0


class GroupedEndpoint:
    """/v2/aggs/grouped/…: one day of every symbol there is."""

    def parse(self, received: Received) -> Call | Reply | None:
        """The day asked for."""
        if not received.path.startswith(GROUPED_PATH):
            return None
        given = dict(parse_qsl(received.query, keep_blank_values=True))
        account = _account(received, given)
        if isinstance(account, Reply):
            return account
        text = received.path.removeprefix(GROUPED_PATH)
        first, last = _instant(text, last=False), _instant(text, last=True)
        if first is None or last is None or text.isdigit():
            return refuse(400, f"Could not parse the date {text}")
        return Call(
            capability="eod",
            interval="1d",
            start=first // 1000,
            end=last // 1000 + 1,
            key=account[0],
            plan=account[1],
            asked=(received.path, given.get("adjusted", "true") == "true"),
        )

    def answer(self, call: Call, scene: Scene) -> Answer | Reply:
        """A row a symbol, stamped with its close; none on a day without a session."""
        refused = _not_in_the_plan(call, scene)
        if refused:
            return refuse(403, refused)
        path, adjusted = call.asked
        records = []
        for name in sorted(scene.market.symbols()):
            bars = NO_BARS if listed(scene.market, name) is None else known_bars(scene, name, "1d")
            of_day = bars.between(call.start or 0, call.end or 0)
            if not len(of_day):
                continue
            table = table_of(name, "1d", of_day if adjusted else as_traded(scene, name, of_day))
            records += [{"T": name, **row} for row in rows_of(table, _LETTERS, (of_day.ends_at * 1000).tolist(), "t")]

        def write(rows: Sequence[Mapping[str, Any]]) -> Reply:
            document = {"queryCount": len(rows), "resultsCount": len(rows), "adjusted": adjusted}
            document |= {"results": rows} if rows else {}
            return json_reply(200, {**document, "status": "OK", "request_id": _request_id(path), "count": len(rows)})

        return RecordsAnswer(records, write)


def variables(base_url: str, plan: str) -> dict[str, str]:
    """What the pipeline must be told to ask here."""
    return {
        "MDP_MASSIVE_BASE_URL": base_url,
        "MDP_MASSIVE_KEY": made_up_key(NAME, plan),
        "MDP_MASSIVE_PLAN": "advanced" if plan == PREMIUM else "basic",
    }


MASSIVE = Vendor(
    name=NAME,
    prefix="/massive",
    endpoints=(RangeEndpoint(), GroupedEndpoint()),
    variables=variables,
    refuse=refuse,
    # Plans that cost are unlimited, with the request to stay below a hundred a second.
    limits={FREE: (RateLimit(5, 60.0),), PREMIUM: (RateLimit(100, 1.0),)},
)
