"""Builders of small data directories, and questions to a Market without a server in between."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import orjson

from market_data_pipeline.simulator.clock import microseconds
from market_data_pipeline.simulator.yahoo import CHART_PATH, ChartAnswer, ChartRefusal, answer_chart, parse_request

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from market_data_pipeline.simulator.market import Market

# XNYS, Monday 2024-12-02: 09:30-16:00 New York, winter time.
OPEN = datetime(2024, 12, 2, 14, 30, tzinfo=UTC)
CLOSE = datetime(2024, 12, 2, 21, 0, tzinfo=UTC)
LATER = datetime(2024, 12, 3, 12, tzinfo=UTC)


def minute(n: int) -> datetime:
    """The opening of the ``n``-th minute of the session."""
    return OPEN + timedelta(minutes=n)


def bar(opened_at: datetime, price: float = 100.0, volume: float = 1000, known_from: datetime | None = None) -> list[str]:
    """A row of a minute file whose open is ``price``, with a little room above and below."""
    known = known_from.isoformat() if known_from else ""
    prices = (price, price + 0.5, price - 0.5, price + 0.25)
    return [opened_at.isoformat(), *(f"{p:.2f}" for p in prices), f"{volume:g}", known]


def withdrawn(opened_at: datetime, known_from: datetime) -> list[str]:
    return [opened_at.isoformat(), "", "", "", "", "", known_from.isoformat()]


def write_bars(directory: Path, rows: Sequence[Sequence[str]], *, symbol: str = "AAPL", interval: str = "1m") -> Path:
    path = directory / interval / f"{quote(symbol, safe='=-._')}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    stamp = "session_date" if interval == "1d" else "opened_at"
    lines = [[stamp, "open", "high", "low", "close", "volume", "known_from"], *rows]
    path.write_text("\n".join(",".join(line) for line in lines) + "\n", encoding="ascii")
    return directory


def write_lines(directory: Path, name: str, *lines: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text("\n".join(lines) + "\n", encoding="ascii")
    return directory


def session_of_minutes(count: int = 390, *, price: float = 100.0) -> list[list[str]]:
    return [bar(minute(n), price + n / 100) for n in range(count)]


def parameters(start: datetime, end: datetime, interval: str = "1m", **more: str) -> dict[str, str]:
    window = {"period1": f"{start.timestamp():.0f}", "period2": f"{end.timestamp():.0f}", "interval": interval}
    return {**window, "includePrePost": "false", "events": "div,splits", **more}


def ask(market: Market, query: dict[str, str], *, now: datetime, symbol: str = "AAPL", seed: int = 7) -> ChartAnswer | ChartRefusal:
    request = parse_request(f"{CHART_PATH}{quote(symbol, safe='')}", urlencode(query))
    if isinstance(request, ChartRefusal):
        return request
    return answer_chart(market, request, now_us=microseconds(now), seed=seed)


def chart(market: Market, query: dict[str, str], *, now: datetime, symbol: str = "AAPL") -> dict[str, Any]:
    """``chart.result[0]`` as a client reads it."""
    answer = ask(market, query, now=now, symbol=symbol)
    assert isinstance(answer, ChartAnswer), answer
    result: dict[str, Any] = orjson.loads(answer.body())["chart"]["result"][0]
    return result


def refusal(market: Market, query: dict[str, str], *, now: datetime, symbol: str = "AAPL") -> ChartRefusal:
    answer = ask(market, query, now=now, symbol=symbol)
    assert isinstance(answer, ChartRefusal)
    return answer


def epochs(*instants: datetime) -> list[int]:
    return [int(instant.timestamp()) for instant in instants]
