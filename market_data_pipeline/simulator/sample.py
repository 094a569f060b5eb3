"""Sample data that looks like a market: invented symbols, real calendars, seeded random walks; a data directory to simulate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np
import yaml

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.sessions import trading_calendar
from market_data_pipeline.domain.universe import calendar_of
from market_data_pipeline.simulator.market import FIELDS, file_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from market_data_pipeline.domain.candles import Float64s, Int64s
    from market_data_pipeline.domain.sessions import SessionBounds

DEFAULT_START, DEFAULT_END = date(2024, 11, 25), date(2024, 12, 6)
MOST_SYMBOLS = 1000
STEPS_A_MINUTE = 6
MINUTES_A_YEAR = 252 * 390


@dataclass(frozen=True, slots=True)
class SampleSymbol:
    """An invented instrument. ``volatility``: of a year. ``empty_share``: of the minutes between the first and last of a session.

    ``extended_minutes``: that many minutes before and after each session have bars too, as US shares do.
    """

    symbol: str
    exchange: str
    tier: str
    asset_type: str = "equity"
    price: float = 100.0
    tick: float = 0.01
    volatility: float = 0.25
    minute_volume: float = 20_000.0
    empty_share: float = 0.0
    extended_minutes: int = 0


# The first few already hold one of each kind, so that a small sample still has every kind of trouble in it.
CAST = (
    SampleSymbol("NOVA", "XNAS", "T0", price=142.0, volatility=0.35, minute_volume=60_000, extended_minutes=45),
    SampleSymbol("SLOW", "XNYS", "T2", price=17.4, volatility=0.45, minute_volume=300, empty_share=0.4),
    SampleSymbol("9801.HK", "XHKG", "T1", price=61.5, tick=0.05, volatility=0.3, minute_volume=45_000),
    SampleSymbol("ZED-USD", "CRYPTO", "T1", "crypto", price=3150.0, volatility=0.7, minute_volume=900),
    SampleSymbol("ORBT", "XNYS", "T0", price=88.2, minute_volume=35_000),
    SampleSymbol("HELX", "XNAS", "T0", price=401.0, volatility=0.4, minute_volume=25_000),
    SampleSymbol("INDX", "ARCX", "T0", "etf", price=596.0, volatility=0.13, minute_volume=120_000),
    SampleSymbol("PRSM", "XNYS", "T1", price=53.8, minute_volume=8_000, empty_share=0.02),
    SampleSymbol("QRTZ", "XNAS", "T1", price=27.1, volatility=0.5, minute_volume=12_000),
    SampleSymbol("VELA", "XNYS", "T2", price=9.3, volatility=0.6, minute_volume=4_000),
)


@dataclass(frozen=True, slots=True)
class SampleReport:
    """What was written."""

    symbols: int
    minutes: int
    first: date
    last: date


@dataclass(frozen=True, slots=True, eq=False)
class Minutes:
    """Minutes of one symbol, pre- and post-market included; ``bounds``: the sessions that they fill."""

    opened_at: Int64s
    ohlcv: Float64s
    bounds: SessionBounds


def write_sample(
    directory: Path, *, seed: int, symbols: int = len(CAST), start: date = DEFAULT_START, end: date = DEFAULT_END
) -> SampleReport:
    """Write minutes, universe.csv, actions.csv and faults.yaml of ``symbols`` instruments, ``start`` to ``end`` (both included).

    The same arguments write the same bytes. Hours and days need no files: the simulator builds them from the minutes, so they
    agree. Refuses a directory that already holds something, so that two samples never mix.
    """
    if not 1 <= symbols <= MOST_SYMBOLS:
        raise InvalidInputError(f"--symbols {symbols}: expected 1 to {MOST_SYMBOLS}")
    if start > end:
        raise InvalidInputError(f"--start {start} is after --end {end}: expected a start on or before the end")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InvalidInputError(f"{str(directory)!r} is not an empty directory: expected a new or empty one")
    cast = _cast(symbols)
    grown = {member.symbol: minutes_of(member, seed=seed, start=start, end=end) for member in cast}
    (directory / "1m").mkdir(parents=True)
    for member in cast:
        minutes = grown[member.symbol]
        path = directory / "1m" / f"{file_name(member.symbol)}.csv"
        path.write_text(as_csv(minutes, decimals=2, correct=member.tier == "T0"), encoding="ascii")
    write_rows(
        directory / "universe.csv",
        "symbol,exchange,tier,asset_type",
        [f"{m.symbol},{m.exchange},{m.tier},{m.asset_type}" for m in cast],
    )
    actions = _actions(grown)
    write_rows(directory / "actions.csv", "symbol,kind,session_date,value,currency", actions)
    faults = _faults(grown)
    (directory / "faults.yaml").write_text(
        "# What goes wrong in the demo. All of it heals when it is asked for again: see docs/simulator.md.\n"
        + yaml.safe_dump(faults, sort_keys=False, width=128),
        encoding="utf-8",
    )
    return SampleReport(len(cast), sum(len(m.opened_at) for m in grown.values()), start, end)


def _cast(count: int) -> list[SampleSymbol]:
    """The first ``count`` of the cast; extras after them repeat its plain US shares under numbered names."""
    extras = [replace(CAST[4 + i % 6], symbol=f"S{i:04d}", extended_minutes=0) for i in range(count - len(CAST))]
    return [*CAST[:count], *extras]


def minutes_of(member: SampleSymbol, *, seed: int, start: date, end: date) -> Minutes:
    """A geometric random walk on the minutes of the exchange's sessions: livelier, and with more volume, near open and close."""
    # By name and not by position: a symbol keeps its history whatever else is in the sample.
    chance = np.random.default_rng([seed, crc32(member.symbol.encode())])
    calendar = trading_calendar(calendar_of(member.exchange))
    bounds = calendar.bounds(start, end)
    if not len(bounds.session):
        raise InvalidInputError(f"no session of {member.exchange} from {start} to {end}: expected at least one in the range")
    grid = calendar.expected_opens(Interval.M1, start, end)
    place = np.searchsorted(bounds.session, grid.session)
    opened_at, place = _extended(grid.opened_at, place, bounds, member.extended_minutes)
    opens, closes = bounds.opens_at[place], bounds.closes_at[place]
    through = np.clip((opened_at - opens) / (closes - opens), 0, 1)
    regular = (opened_at >= opens) & (opened_at < closes)
    liveliness = np.where(regular, 0.6 + 1.2 * (2 * through - 1) ** 2, 0.3)
    if member.exchange == "CRYPTO":
        liveliness = np.ones(len(opened_at))
    path = _walk(chance, member, liveliness, new_session=np.diff(place, prepend=-1) != 0)
    ohlc = np.stack([path[:, 0], path.max(axis=1), path.min(axis=1), path[:, -1]])
    noise = chance.lognormal(-0.18, 0.6, len(opened_at))
    volume = np.maximum(1, np.round(member.minute_volume * liveliness**2 * noise * np.where(regular, 1, 0.05)))
    ends_a_session = np.isin(opened_at, opens) | np.isin(opened_at, closes - 60)
    # The opening and the closing auction print even where nothing trades in between.
    traded = ends_a_session | (chance.random(len(opened_at)) >= member.empty_share)
    return Minutes(opened_at[traded], np.vstack([ohlc, volume])[:, traded], bounds)


def _walk(chance: np.random.Generator, member: SampleSymbol, liveliness: Float64s, *, new_session: Float64s) -> Float64s:
    """Prices at the steps of each minute, one row a minute, rounded to ticks; a session opens with a jump of its own."""
    a_step = member.volatility / np.sqrt(MINUTES_A_YEAR * STEPS_A_MINUTE)
    moves = chance.normal(0.0, a_step, (len(liveliness), STEPS_A_MINUTE)) * liveliness[:, None]
    jumps = chance.normal(0.0, member.volatility / np.sqrt(252) / 2, len(liveliness))
    if member.exchange != "CRYPTO":
        moves[:, 0] += np.where(new_session, jumps, 0.0)
    price = member.price * np.exp(np.cumsum(moves)).reshape(moves.shape)
    ticks = np.maximum(1, np.round(price / member.tick))
    # Rounded again: 1234 * 0.05 is 61.7 plus noise.
    return np.round(ticks * member.tick, 2)


def _extended(opened_at: Int64s, place: Int64s, bounds: SessionBounds, minutes: int) -> tuple[Int64s, Int64s]:
    """The grid with ``minutes`` more before and after each session."""
    if not minutes:
        return opened_at, place
    beside = np.arange(minutes) * 60
    before = bounds.opens_at[:, None] - beside[None, ::-1] - 60
    after = bounds.closes_at[:, None] + beside[None, :]
    added = np.concatenate([before.ravel(), after.ravel()])
    sessions = np.repeat(np.arange(len(bounds.session)), minutes)
    stamps, places = np.concatenate([opened_at, added]), np.concatenate([place, sessions, sessions])
    order = np.argsort(stamps)
    return stamps[order], places[order]


def as_csv(minutes: Minutes, *, decimals: int, correct: bool) -> str:
    """The file. ``correct``: the volume of each session's first minute is corrected the next morning, as Yahoo's is."""
    stamps = np.datetime_as_string(minutes.opened_at.astype("datetime64[s]"))
    opens = dict.fromkeys(minutes.bounds.opens_at.tolist()) if correct else {}
    lines = [f"opened_at,{','.join(FIELDS)},known_from"]
    rows = zip(minutes.opened_at.tolist(), stamps.tolist(), minutes.ohlcv.T.tolist(), strict=True)
    for opened_at, stamp, (*prices, volume) in rows:
        row = ",".join([f"{stamp}Z", *(f"{price:.{decimals}f}" for price in prices)])
        lines.append(f"{row},{volume:.0f},")
        if opened_at in opens:
            lines.append(f"{row},{volume // 2:.0f},{_iso(opened_at + 20 * 3600)}")
    return "\n".join(lines) + "\n"


def _iso(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def write_rows(path: Path, header: str, rows: Sequence[str]) -> None:
    """A CSV file of a data directory."""
    path.write_text("\n".join([header, *rows]) + "\n", encoding="ascii")


def _actions(grown: dict[str, Minutes]) -> list[str]:
    """A split and a dividend late in the range. The bars are already on the new basis, as Yahoo's are after a split."""
    planned = [("NOVA", "split", 4.0, ""), ("INDX", "dividend", 1.45, "USD")]
    rows = []
    for symbol, kind, value, currency in planned:
        if symbol in grown:
            sessions = grown[symbol].bounds.session
            ex = np.datetime64(int(sessions[-min(len(sessions), 4)]), "D")
            rows.append(f"{symbol},{kind},{ex},{value:g},{currency}")
    return rows


def _faults(grown: dict[str, Minutes]) -> list[dict[str, object]]:
    """One fault of each common kind. Those that replace an answer come first; each strikes once, so asking again heals it."""
    whole_answers: list[tuple[str, dict[str, object]]] = [
        ("ORBT", {"action": "status", "code": 429, "retry_after": 1}),
        ("HELX", {"action": "status", "code": 503}),
        ("QRTZ", {"action": "html"}),
        ("9801.HK", {"action": "reset"}),
        ("ZED-USD", {"action": "empty"}),
        ("PRSM", {"action": "truncate"}),
        ("INDX", {"action": "stall", "seconds": 2}),
        ("VELA", {"action": "content_type", "value": "text/html"}),
    ]
    rules: list[dict[str, object]] = [
        {"match": {"symbol": symbol, "interval": "1m", "nth": 1}, **fault} for symbol, fault in whole_answers if symbol in grown
    ]
    # The first answer that covers the session lacks the minutes, every later one has them.
    holes: list[tuple[str, int, dict[str, object]]] = [
        ("NOVA", 1, {"action": "missing_minutes", "fraction": 0.05}),
        ("NOVA", 3, {"action": "missing_minutes", "fraction": 0.2}),
        ("9801.HK", 2, {"action": "missing_minutes", "fraction": 0.04}),
        ("ZED-USD", 2, {"action": "missing_minutes", "fraction": 0.02}),
        ("ORBT", 2, {"action": "missing_minutes", "fraction": 0.03}),
        ("HELX", 2, {"action": "null_minutes", "fraction": 0.03}),
        ("INDX", 4, {"action": "null_minutes", "fraction": 0.01}),
    ]
    for symbol, number, fault in holes:
        if symbol in grown:
            bounds = grown[symbol].bounds
            place = min(number, len(bounds.session) - 1)
            window = [_iso(int(bounds.opens_at[place])), _iso(int(bounds.closes_at[place]))]
            rules.append({"match": {"symbol": symbol, "interval": "1m", "window": window, "first": 1}, **fault})
    return rules
