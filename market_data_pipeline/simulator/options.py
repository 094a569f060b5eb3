"""The option chains that simulated vendors know: of options/<SYMBOL>.json, or made up from the last price. No wire format.

A file is a body of CBOE's options service (``{"data": {"options": [...]}}``), so that a recorded one can be put there as it is.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import orjson

from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.simulator.market import DAY, file_name
from market_data_pipeline.simulator.tape import NEW_YORK, newest_tick

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from market_data_pipeline.simulator.market import Grid
    from market_data_pipeline.simulator.tape import Tick
    from market_data_pipeline.simulator.vendor import Scene

FOLDER = "options"
RATE = 0.04
STRIKES_EACH_WAY = 5
_STEPS = (0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0)
_OCC = re.compile(r"(?P<root>[A-Z][A-Z0-9.]{0,9})(?P<expiry>\d{6})(?P<right>[CP])(?P<strike>\d{8})", re.ASCII)
_CLOSE = time(16)


@dataclass(frozen=True, slots=True)
class Contract:
    """One option. ``last_at``: epoch seconds, None where it never traded; 0 stands for none in prices, sizes and ``iv``."""

    name: str
    expiry: date
    right: str
    strike: float
    bid: float
    ask: float
    bid_size: float
    ask_size: float
    last: float
    last_at: int | None
    volume: float
    open_interest: float
    iv: float
    delta: float
    gamma: float
    vega: float
    theta: float
    rho: float
    theo: float

    @property
    def expires_at(self) -> int:
        """Midnight UTC of its last day, epoch seconds: how Yahoo names an expiry."""
        return (self.expiry - date(1970, 1, 1)).days * DAY


def contracts_of(scene: Scene, symbol: str) -> list[Contract]:
    """Every contract on ``symbol`` that has not expired, by expiry, strike and right. None before the underlying has traded."""
    tick = newest_tick(scene, symbol)
    if tick is None:
        return []
    path = scene.market.directory / FOLDER / f"{file_name(symbol)}.json"
    today = datetime.fromtimestamp(scene.now, ZoneInfo(NEW_YORK)).date()
    if path.exists():
        written = path.stat()
        given = _read(path, (written.st_mtime_ns, written.st_size))
        return [contract for contract in given if contract.expiry >= today]
    return _made_up(scene, symbol, tick, today)


@lru_cache(maxsize=16)
def _read(path: Path, _written: tuple[int, int]) -> tuple[Contract, ...]:
    try:
        records = orjson.loads(path.read_bytes())["data"]["options"]
        contracts = [_given(record) for record in records]
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError) as broken:
        raise InvalidInputError(f"{path}: {broken!r}: expected a body of CBOE's options service") from None
    return tuple(sorted(contracts, key=lambda c: (c.expiry, c.strike, c.right)))


def _given(record: Mapping[str, Any]) -> Contract:
    found = _OCC.fullmatch(record["option"])
    if found is None:
        raise ValueError(f"{record['option']!r} is no name of an option")
    traded = record.get("last_trade_time")
    at = None if traded is None else datetime.fromisoformat(traded).replace(tzinfo=ZoneInfo(NEW_YORK))
    numbers = {name: float(record.get(name) or 0.0) for name in _NUMBERS}
    return Contract(
        name=record["option"],
        expiry=datetime.strptime(found["expiry"], "%y%m%d").replace(tzinfo=UTC).date(),
        right=found["right"],
        strike=int(found["strike"]) / 1000,
        last=float(record.get("last_trade_price") or 0.0),
        last_at=None if at is None else int(at.timestamp()),
        **numbers,
    )


_NUMBERS = (
    *("bid", "ask", "bid_size", "ask_size", "volume", "open_interest"),
    *("iv", "delta", "gamma", "vega", "theta", "rho", "theo"),
)


# --- made up -----------------------------------------------------------------------------------------------------------


def _made_up(scene: Scene, symbol: str, tick: Tick, today: date) -> list[Contract]:
    """Three expiries of eleven strikes. The same data, seed and time give the same chain."""
    step = next((step for step in _STEPS if step >= tick.last * 0.02), _STEPS[-1])
    middle = round(tick.last / step)
    strikes = [step * n for n in range(middle - STRIKES_EACH_WAY, middle + STRIKES_EACH_WAY + 1) if n > 0]
    root = re.sub(r"[^A-Z0-9]", "", symbol)[:6]
    return [
        _priced(f"{root}{expiry:%y%m%d}{right}{round(strike * 1000):08d}", expiry, right, strike, tick, scene)
        for expiry in expiries(today, scene.market.grid(symbol))
        for strike in strikes
        for right in "CP"
    ]


def expiries(today: date, grid: Grid) -> list[date]:
    """The next two weekly expiries and the next monthly one after them, on the last session of their weeks up to Friday."""
    fridays = [today + timedelta(days=(4 - today.weekday()) % 7 + 7 * week) for week in range(10)]
    monthly = next(friday for friday in fridays[2:] if 15 <= friday.day <= 21)
    return [_session_before(friday, grid) for friday in (fridays[0], fridays[1], monthly)]


def _session_before(friday: date, grid: Grid) -> date:
    day = (friday - date(1970, 1, 1)).days
    sessions = grid.session[(grid.session <= day) & (grid.session > day - 5)]
    return date(1970, 1, 1) + timedelta(days=int(sessions[-1])) if len(sessions) else friday


def _priced(name: str, expiry: date, right: str, strike: float, tick: Tick, scene: Scene) -> Contract:
    """Black and Scholes without dividends; a smile around the money; a spread of four percent."""
    closes_at = datetime.combine(expiry, _CLOSE, ZoneInfo(NEW_YORK)).timestamp()
    years = max(closes_at - scene.now, 60.0) / (365 * DAY)
    sigma = round(0.25 + 0.4 * math.log(strike / tick.last) ** 2, 4)
    value = black_scholes(tick.last, strike, years, sigma, right)
    luck = blake2b(f"{scene.seed}:{name}".encode(), digest_size=4).digest()
    has_traded = luck[0] >= 40
    half = max(0.01, round(value.price * 0.02, 2))
    theo = round(value.price, 4)
    return Contract(
        name=name,
        expiry=expiry,
        right=right,
        strike=strike,
        bid=round(max(theo - half, 0.0), 2),
        ask=round(theo + half, 2),
        bid_size=float(1 + luck[1]),
        ask_size=float(1 + luck[2]),
        last=max(round(theo, 2), 0.01) if has_traded else 0.0,
        last_at=tick.at - 60 * luck[3] if has_traded else None,
        volume=float(luck[1] * 3) if has_traded else 0.0,
        open_interest=float(luck[2] * 11),
        iv=sigma,
        delta=round(value.delta, 4),
        gamma=round(value.gamma, 4),
        vega=round(value.vega, 4),
        theta=round(value.theta, 4),
        rho=round(value.rho, 4),
        theo=theo,
    )


@dataclass(frozen=True, slots=True)
class Valued:
    """A price and what moves it: ``vega`` and ``rho`` for a hundredth of volatility and rate, ``theta`` for a day."""

    price: float
    delta: float
    gamma: float
    vega: float
    theta: float
    rho: float


def black_scholes(spot: float, strike: float, years: float, sigma: float, right: str, *, rate: float = RATE) -> Valued:
    """A European option without dividends. Price: Black, Scholes, 1973, equation 13; the rest: Hull, chapter 19."""
    spread = sigma * math.sqrt(years)
    d1 = (math.log(spot / strike) + (rate + sigma**2 / 2) * years) / spread
    d2 = d1 - spread
    sign = 1 if right == "C" else -1
    discounted = strike * math.exp(-rate * years)
    density = math.exp(-(d1**2) / 2) / math.sqrt(2 * math.pi)
    decay = -spot * density * sigma / (2 * math.sqrt(years))
    return Valued(
        price=max(sign * (spot * _normal(sign * d1) - discounted * _normal(sign * d2)), 0.0),
        delta=sign * _normal(sign * d1),
        gamma=density / (spot * spread),
        vega=spot * density * math.sqrt(years) / 100,
        theta=(decay - sign * rate * discounted * _normal(sign * d2)) / 365,
        rho=sign * discounted * years * _normal(sign * d2) / 100,
    )


def _normal(x: float) -> float:
    return (1 + math.erf(x / math.sqrt(2))) / 2
