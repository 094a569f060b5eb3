"""CBOE's delayed files, simulated: options, quotes, the minutes of the latest session, and every day. Formats: PROVIDERS.md §4.

Everything is a quarter of an hour late. A file says in UTC when it was made and in New York time when there was a trade; it has an
ETag, and what has not changed is not sent again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from hashlib import md5
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote
from zoneinfo import ZoneInfo

import numpy as np
import orjson

from market_data_pipeline.simulator.clock import instant_of
from market_data_pipeline.simulator.market import FIELDS, PRICES
from market_data_pipeline.simulator.options import contracts_of
from market_data_pipeline.simulator.tape import NEW_YORK, known_bars, listed, newest_tick, rows_of
from market_data_pipeline.simulator.vendor import BarsAnswer, BarTable, Call, RecordsAnswer, Reply, Vendor, bars_capability

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from market_data_pipeline.simulator.market import Bars
    from market_data_pipeline.simulator.options import Contract
    from market_data_pipeline.simulator.tape import Tick
    from market_data_pipeline.simulator.vendor import Answer, Received, Scene

NAME = "cboe"
FILES = "/api/global/delayed_quotes/"
DELAY_SECONDS = 15 * 60
ZONE = ZoneInfo(NEW_YORK)
# The days are written in the morning of a working day: recorded on a Saturday, made on Friday, ending with Thursday.
MADE_AT_HOUR, MADE_AT_SECONDS = 11, 17
NEVER = "2000-01-01T00:00:00"
_KINDS = {
    "options": ("options_chain", None),
    "quotes": ("quotes_l1", None),
    "charts/intraday": (bars_capability("1m"), "1m"),
    "charts/historical": (bars_capability("1d"), "1d"),
}
_DENIED = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>'


@dataclass(frozen=True, slots=True)
class _Asked:
    """A file, and the version of it that the client holds."""

    kind: str
    if_none_match: str


def refuse(status: int, detail: str) -> Reply:
    """Of a file that is not there the bucket says that it is denied; everything else is a web page of the CDN."""
    if status in {403, 404}:
        return Reply(403, (("content-type", "application/xml"),), _DENIED)
    page = f"<html><head><title>{status}</title></head><body><h1>{detail or status}</h1></body></html>"
    return Reply(status, (("content-type", "text/html; charset=UTF-8"),), page.encode())


def _symbol_of(scene: Scene, name: str) -> str | None:
    """The symbol that a file is named after; an index has an underscore there and a caret here."""
    return listed(scene.market, f"^{name[1:]}" if name.startswith("_") else name)


def _echoed(name: str) -> str:
    return f"^{name[1:]}" if name.startswith("_") else name


class FileEndpoint:
    """options, quotes, charts/intraday and charts/historical of one symbol."""

    def parse(self, received: Received) -> Call | Reply | None:
        """The file asked for."""
        kind, _, name = received.path.removeprefix(FILES).rpartition("/")
        if not received.path.startswith(FILES) or kind not in _KINDS or not name.endswith(".json"):
            return None
        capability, interval = _KINDS[kind]
        symbol = unquote(name.removesuffix(".json")).upper()
        return Call(capability, (symbol,), interval=interval, asked=_Asked(kind, received.headers.get("if-none-match", "")))

    def answer(self, call: Call, scene: Scene) -> Answer | Reply:
        """The file; AccessDenied where there is none; 304 where the client holds this very version."""
        asked: _Asked = call.asked
        (name,) = call.symbols
        symbol = _symbol_of(scene, name)
        if symbol is None:
            return refuse(403, "")
        file = _File(name, symbol, scene, replace(scene, now_us=scene.now_us - DELAY_SECONDS * 1_000_000), asked)
        return {"options": file.options, "quotes": file.quotes, "charts/intraday": file.minutes, "charts/historical": file.days}[
            asked.kind
        ]()


@dataclass(frozen=True, slots=True)
class _File:
    """One file as it is written now from what was known a quarter of an hour ago (``past``)."""

    name: str
    symbol: str
    scene: Scene
    past: Scene
    asked: _Asked

    def options(self) -> Answer:
        """The whole chain and its underlying."""
        underlying = self.underlying()

        def written(records: Sequence[Mapping[str, Any]]) -> Reply:
            return self.reply({"options": list(records), **underlying})

        contracts = contracts_of(self.past, self.symbol)
        return RecordsAnswer([_contract_record(contract) for contract in contracts], written, symbol=self.name)

    def quotes(self) -> Answer:
        """The underlying alone."""
        return RecordsAnswer([self.underlying()], lambda records: self.reply(dict(records[0]) if records else {}), symbol=self.name)

    def underlying(self) -> dict[str, Any]:
        """What the file says of the symbol itself; zeros and the year 2000 where it never traded."""
        tick = newest_tick(self.past, self.symbol)
        record: dict[str, Any] = {
            "symbol": _echoed(self.name),
            "security_type": "index" if self.name.startswith("_") else "stock",
            "exchange_id": 2,
            **dict.fromkeys(_ZEROS, 0.0),
            "seqno": 0,
            "last_trade_time": NEVER,
            "tick": "no_change",
        }
        if tick is None:
            return record
        return record | self.as_sent(_numbers(tick)) | {"last_trade_time": _new_york(tick.at), "tick": "up"}

    def as_sent(self, numbers: dict[str, Any]) -> dict[str, Any]:
        """Numbers, and text for an index."""
        return {name: f"{value:.4f}" for name, value in numbers.items()} if self.name.startswith("_") else numbers

    def minutes(self) -> Answer:
        """The latest session that has begun, each minute named by its close; those without a trade, or still to come, are zeros."""
        grid = self.scene.market.grid(self.symbol)
        place = int(np.searchsorted(grid.opens_at, self.past.now, "right")) - 1
        opens_at, closes_at = (int(grid.opens_at[place]), int(grid.closes_at[place])) if place >= 0 else (0, 0)
        bars = known_bars(self.past, self.symbol, "1m").between(opens_at, closes_at)
        table = _table(self.name, "1m", bars)

        def written(page: BarsAnswer) -> Reply:
            (bent,) = page.tables
            absent = np.setdiff1d(np.arange(opens_at, closes_at, 60, dtype=np.int64), bent.opened_at)
            rows = [_minute_row(row) for row in _rows(bent)] + [_minute_row({"at": at}) for at in absent.tolist()]
            if len(bent) < 2 or (np.diff(bent.opened_at) > 0).all():
                rows.sort(key=lambda row: str(row["datetime"]))
            return self.reply(rows)

        return BarsAnswer((table,), written)

    def days(self) -> Answer:
        """Every day that had ended when the file was made; split-adjusted, in two decimals, and as text for an index."""
        made_at = _made_at(self.scene.now)
        days = known_bars(self.scene, self.symbol, "1d", with_today=False)
        table = _table(self.name, "1d", days.take(days.ends_at <= made_at), decimals=2)

        def written(page: BarsAnswer) -> Reply:
            (bent,) = page.tables
            rows = [_day_row(row, as_text=self.name.startswith("_")) for row in _rows(bent)]
            made = datetime.fromtimestamp(made_at, UTC)
            return self.reply(rows, stamp=f"{made:%H:%M:%S}", changed_at=made)

        return BarsAnswer((table,), written)

    def reply(self, data: object, *, stamp: str = "", changed_at: datetime | None = None) -> Reply:
        """The document with its ETag, or 304 for a client that holds it."""
        made = instant_of(self.scene.now_us).replace(microsecond=0)
        document = {"timestamp": stamp or f"{made:%Y-%m-%d %H:%M:%S}", "data": data, "symbol": _echoed(self.name)}
        body = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
        etag = f'W/"{md5(body, usedforsecurity=False).hexdigest()}"'
        headers = (
            ("content-type", "application/json"),
            ("cache-control", "max-age=0, s-maxage=5"),
            ("etag", etag),
            ("last-modified", format_datetime(changed_at or made, usegmt=True)),
        )
        if etag in self.asked.if_none_match:
            return Reply(304, headers[1:], b"")
        return Reply(200, headers, body)


def _made_at(now: int) -> int:
    """When the file of days was made last: a little after 11:00 UTC of a working day."""
    at = datetime.fromtimestamp(now, UTC).replace(hour=MADE_AT_HOUR, minute=0, second=MADE_AT_SECONDS)
    while at.timestamp() > now or at.weekday() >= 5:
        at -= timedelta(days=1)
    return int(at.timestamp())


_ZEROS = (
    *("current_price", "price_change", "price_change_percent", "bid", "ask", "bid_size", "ask_size", "open", "high", "low"),
    *("close", "prev_day_close", "volume", "iv30", "iv30_change", "iv30_change_percent"),
)


def _numbers(tick: Tick) -> dict[str, Any]:
    before = tick.previous_close or tick.opened
    return {
        "current_price": round(tick.last, 4),
        "price_change": round(tick.last - before, 4),
        "price_change_percent": round(100 * (tick.last / before - 1), 4),
        "bid": round(tick.bid, 4),
        "ask": round(tick.ask, 4),
        "bid_size": tick.bid_size,
        "ask_size": tick.ask_size,
        "open": round(tick.opened, 4),
        "high": round(tick.high, 4),
        "low": round(tick.low, 4),
        "close": round(tick.last, 4),
        "prev_day_close": round(before, 4),
        "volume": round(tick.volume),
        "iv30": 25.0,
        "iv30_change": 0.0,
        "iv30_change_percent": 0.0,
    }


def _contract_record(contract: Contract) -> dict[str, Any]:
    return {
        "option": contract.name,
        "bid": contract.bid,
        "bid_size": contract.bid_size if contract.bid else 0.0,
        "ask": contract.ask,
        "ask_size": contract.ask_size,
        "iv": contract.iv,
        "open_interest": contract.open_interest,
        "volume": contract.volume,
        "delta": contract.delta,
        "gamma": contract.gamma,
        "vega": contract.vega,
        "theta": contract.theta,
        "rho": contract.rho,
        "theo": contract.theo,
        "change": 0.0,
        "open": contract.last if contract.volume else 0.0,
        "high": contract.last if contract.volume else 0.0,
        "low": contract.last if contract.volume else 0.0,
        "tick": "no_change",
        "last_trade_price": contract.last,
        "last_trade_time": None if contract.last_at is None else _new_york(contract.last_at),
        "percent_change": 0.0,
        "prev_day_close": contract.last,
    }


def _new_york(at: int) -> str:
    return datetime.fromtimestamp(at, ZONE).strftime("%Y-%m-%dT%H:%M:%S")


def _table(name: str, interval: str, bars: Bars, *, decimals: int = 4) -> BarTable:
    ohlcv = np.vstack([np.round(bars.ohlcv[:4], decimals), bars.ohlcv[4]])
    return BarTable(name, interval, bars.opened_at, dict(zip(FIELDS, ohlcv, strict=True)))


def _rows(table: BarTable) -> list[dict[str, Any]]:
    return rows_of(table, {}, table.opened_at.tolist(), "at")


def _minute_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A minute by its close; 0 for what is not there."""
    volume = _whole(row.get("volume", 0))
    options = round(volume / 1000) if isinstance(volume, int | float) else 0
    return {
        "datetime": _new_york(row["at"] + 60),
        "price": {name: row.get(name, 0) for name in PRICES},
        "volume": {
            "stock_volume": volume,
            "calls_volume": options - options // 3,
            "puts_volume": options // 3,
            "total_options_volume": options,
        },
        **{name: value for name, value in row.items() if name not in {"at", *FIELDS}},
    }


def _day_row(row: Mapping[str, Any], *, as_text: bool) -> dict[str, Any]:
    session = datetime.fromtimestamp(row["at"], ZONE).date().isoformat()
    told = {name: _whole(value) if name == "volume" else value for name, value in row.items() if name != "at"}
    order = sorted(told, key=lambda name: name != "volume")
    return {"date": session, **{name: str(told[name]) if as_text else told[name] for name in order}}


def _whole(value: Any) -> Any:  # noqa: ANN401 - what a fault made of it
    return int(value) if isinstance(value, float) and value.is_integer() else value


class DirectoryEndpoint:
    """www.cboe.com's list of index options: two redirects, as recorded, that lead nowhere."""

    def parse(self, received: Received) -> Call | Reply | None:
        """Either address."""
        moved = _REDIRECTS.get(received.path.rstrip("/"))
        return None if moved is None else Call("", asked=(moved, received.query))

    def answer(self, call: Call, scene: Scene) -> Answer | Reply:
        """302, then 307."""
        (status, onward), query = call.asked
        location = f"{scene.base_url}{onward}" + (f"?{query}" if query and status == 302 else "")
        return Reply(status, (("content-type", "text/html; charset=UTF-8"), ("location", location)), b"")


_REDIRECTS = {
    "/us/options/symboldir/equity_index_options": (302, "/markets/us/options/symbol-directory/equity-index-options"),
    "/markets/us/options/symbol-directory/equity-index-options": (307, "/us/options/symboldir/equity-index-options/download"),
}


def variables(base_url: str, plan: str) -> dict[str, str]:  # noqa: ARG001 - CBOE has no plans
    """What the pipeline must be told to ask here."""
    return {"MDP_CBOE_BASE_URL": base_url}


# No quota is published: nothing is limited unless `--limits` says so.
CBOE = Vendor(name=NAME, prefix="/cboe", endpoints=(FileEndpoint(), DirectoryEndpoint()), variables=variables, refuse=refuse)
