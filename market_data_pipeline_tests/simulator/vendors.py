"""A simulator without sockets, its clock standing still, asked as each vendor's clients ask; and its answers as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from market_data_pipeline.domain.capabilities import parse_limits
from market_data_pipeline.simulator.clock import VirtualClock
from market_data_pipeline.simulator.faults import parse_rules
from market_data_pipeline.simulator.market import Market
from market_data_pipeline.simulator.server import Simulator
from market_data_pipeline.simulator.vendor import PREMIUM, Received, made_up_key
from market_data_pipeline_tests.simulator.directories import CLOSE, LATER, OPEN, parameters
from market_data_pipeline_tests.world import UNLIMITED

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from market_data_pipeline.simulator.vendor import Reply

# One question about the minutes of 2024-12-02 to each vendor of bars: path, query, and the header or parameter of its key.
BARS_OF_A_DAY = {
    "yahoo": ("/v8/finance/chart/{symbol}", "&".join(f"{k}={v}" for k, v in parameters(OPEN, CLOSE).items())),
    "finnhub": (
        "/finnhub/api/v1/stock/candle",
        f"symbol={{symbol}}&resolution=1&from={OPEN.timestamp():.0f}&to={CLOSE.timestamp() - 1:.0f}",
    ),
    "alpaca": (
        "/alpaca/v2/stocks/bars",
        "symbols={symbol}&timeframe=1Min&start=2024-12-02T14:30:00Z&end=2024-12-02T20:59:59Z&limit=10000&adjustment=split&feed=sip",
    ),
    "massive": (
        f"/massive/v2/aggs/ticker/{{symbol}}/range/1/minute/{OPEN.timestamp() * 1000:.0f}/{CLOSE.timestamp() * 1000 - 1:.0f}",
        "adjusted=true&limit=50000",
    ),
    "alphavantage": (
        "/alphavantage/query",
        "function=TIME_SERIES_INTRADAY&symbol={symbol}&interval=1min&month=2024-12&outputsize=full&adjusted=true",
    ),
}


def headers_of(vendor: str, key: str | None = None, *, plan: str = PREMIUM) -> dict[str, str]:
    """The headers with which a client of ``vendor`` shows its key."""
    key = made_up_key(vendor, plan) if key is None else key
    shown = {
        "finnhub": {"x-finnhub-token": key},
        "alpaca": {"apca-api-key-id": key, "apca-api-secret-key": made_up_key("alpaca-secret", plan)},
        "massive": {"authorization": f"Bearer {key}"},
    }
    return {"host": "127.0.0.1:1234", "accept-encoding": "gzip", **shown.get(vendor, {})}


class Vendors:
    """The simulated vendors over one data directory."""

    def __init__(
        self, directory: Path, *rules: dict[str, Any], now: datetime = LATER, limits: str = UNLIMITED, seed: int = 7
    ) -> None:
        self.seconds = 0.0
        clock = VirtualClock(now, 0.0, lambda: self.seconds)
        self.simulator = Simulator(Market(directory), clock, seed, parse_rules(list(rules)), parse_limits(limits))

    def get(self, vendor: str, path: str, query: str = "", *, plan: str = PREMIUM, key: str | None = None) -> Reply:
        """One request below the vendor's prefix, with the key of an account that has ``plan``."""
        if vendor == "alphavantage":
            query += f"&apikey={made_up_key(vendor, plan) if key is None else key}"
        return self.simulator.answer(Received("GET", path, query, headers_of(vendor, key, plan=plan)))

    def json(self, vendor: str, path: str, query: str = "", *, plan: str = PREMIUM) -> Any:  # noqa: ANN401
        """The body of the answer."""
        return orjson.loads(self.get(vendor, path, query, plan=plan).body)

    def day(self, vendor: str, symbol: str = "AAPL") -> Reply:
        """The minutes of 2024-12-02, as this vendor is asked for them."""
        path, query = BARS_OF_A_DAY[vendor]
        return self.get(vendor, path.format(symbol=symbol), query.format(symbol=symbol))


def rows_of(vendor: str, reply: Reply, symbol: str = "AAPL") -> list[Any]:
    """The bars in a body as its vendor lays them out: a list of whatever stands for one bar."""
    document = orjson.loads(reply.body)
    if vendor == "yahoo":
        result = document["chart"]["result"][0]
        columns = [result.get("timestamp", []), *result["indicators"]["quote"][0].values()]
        return list(zip(*columns, strict=True)) if len(columns) > 1 else []
    if vendor == "finnhub":
        return list(zip(*(document[name] for name in "tohlcv"), strict=True)) if document["s"] == "ok" else []
    if vendor == "alpaca":
        return list(document["bars"].get(symbol, []))
    if vendor == "massive":
        return list(document.get("results", []))
    return list(document["Time Series (1min)"].items())
