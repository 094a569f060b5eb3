"""What the simulated provider knows: bars, actions and listings of a data directory, as of any instant. No wire format here."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime, timedelta
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import yaml

from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.sessions import parse_overrides, trading_calendar
from market_data_pipeline.domain.universe import calendar_of, valid_symbol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from market_data_pipeline.domain.candles import Bools, Float64s, Int64s
    from market_data_pipeline.domain.sessions import SessionOverride

DAY = 86400
MINUTE = "1m"
# From an early close at 13:00 to the end of post-market trading at 20:00 and some more; the next morning is another session's.
POST_MARKET_SECONDS = 8 * 3600
PRICES = ("open", "high", "low", "close")
FIELDS = (*PRICES, "volume")
INTRADAY_SECONDS = {"1m": 60, "2m": 120, "5m": 300, "15m": 900, "30m": 1800, "60m": 3600, "90m": 5400, "1h": 3600}
SECONDS = {**INTRADAY_SECONDS, "1d": DAY}


@dataclass(frozen=True, slots=True)
class Profile:
    """How this provider writes what it knows; ``DIR/profile.yaml`` sets it.

    ``prices``: float32 sends prices through float32, as Yahoo does; float64 sends what the files hold, digit by digit.
    ``missing``: omit leaves a minute without a bar out, nulls sends a null bar for it. ``live_bar`` is the form of the bar in
    progress: A (null bar, then a tick stamped now), B (flat, volume 0), none, or auto (A or B, by seed and symbol).
    ``delay_seconds``: how long after its end a bar appears. ``thirty_minutes_as_hours``: Yahoo's answer to interval=30m.
    ``gzip``: compress for clients that accept it. ``alphavantage_stamp``: whether Alpha Vantage names minutes by open or close.
    """

    prices: str = "float32"
    missing: str = "omit"
    live_bar: str = "auto"
    delay_seconds: int = 0
    thirty_minutes_as_hours: bool = True
    gzip: bool = False
    alphavantage_stamp: str = "open"

    @classmethod
    def of_file(cls, path: Path) -> Profile:
        """The profile that ``path`` describes, the default where there is no such file."""
        if not path.exists():
            return cls()
        try:
            given = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as broken:
            raise InvalidInputError(f"{path}: not YAML: {broken}") from None
        names = [f.name for f in fields(cls)]
        if not isinstance(given, dict) or not set(given) <= set(names):
            raise InvalidInputError(f"{path}: {given!r}: expected a mapping with some of {', '.join(names)}")
        profile = cls(**given)
        delay: object = profile.delay_seconds
        choices: Mapping[str, tuple[object, ...]] = {
            "prices": ("float32", "float64"),
            "missing": ("omit", "nulls"),
            "live_bar": ("auto", "A", "B", "none"),
            "thirty_minutes_as_hours": (True, False),
            "gzip": (True, False),
            "alphavantage_stamp": ("open", "close"),
        }
        for name, allowed in choices.items():
            if getattr(profile, name) not in allowed:
                raise InvalidInputError(
                    f"{path}: {name} {getattr(profile, name)!r}: expected one of {', '.join(map(str, allowed))}"
                )
        if not isinstance(delay, int) or isinstance(delay, bool) or delay < 0:
            raise InvalidInputError(f"{path}: delay_seconds {delay!r}: expected whole seconds, 0 or more")
        return profile


@dataclass(frozen=True, slots=True)
class Listing:
    """A symbol as ``DIR/universe.csv`` lists it; without that file, a US share. No currency means that of its exchange."""

    symbol: str
    exchange: str = "XNYS"
    asset_type: str = "equity"
    currency: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Action:
    """A split (``value``: new per old shares) or a dividend (``value``: cash per share), known from ``known_us`` on."""

    kind: str
    session: date
    value: float
    currency: str | None
    known_us: int


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """The sessions of one calendar as arrays, so that any number of stamps is placed with one search."""

    timezone: str
    session: Int64s
    opens_at: Int64s
    closes_at: Int64s
    segment_starts_at: Int64s
    segment_ends_at: Int64s

    def segments_of(self, at: Int64s) -> Int64s:
        """The segment (morning, afternoon, or the whole session) that holds each instant, -1 outside of all."""
        place = np.searchsorted(self.segment_starts_at, at, "right") - 1
        inside = (place >= 0) & (at < self.segment_ends_at[place])
        return np.where(inside, place, -1)

    def sessions_of(self, at: Int64s) -> Int64s:
        """The newest session that has opened at each instant, -1 before the first."""
        return np.searchsorted(self.opens_at, at, "right") - 1

    @property
    def is_short(self) -> Bools:
        """True for the sessions that close early."""
        length = self.closes_at - self.opens_at
        return np.asarray(length < np.median(length))

    def opens_of(self, days: Int64s) -> Int64s:
        """The opening instant of the session on each day; beyond the calendar, the same local time of day as at its edge."""
        place = np.minimum(np.searchsorted(self.session, days), len(self.session) - 1)
        opens = self.opens_at[place].copy()
        zone = ZoneInfo(self.timezone)
        usual = datetime.fromtimestamp(int(self.opens_at[0]), zone).time()
        for i in np.flatnonzero(self.session[place] != days).tolist():
            opens[i] = int(datetime.combine(day(days[i]), usual, zone).timestamp())
        return opens

    def closes_of(self, opens: Int64s) -> Int64s:
        """The closing instant of the sessions that open at ``opens``; six and a half hours later where the calendar ends."""
        place = np.minimum(np.searchsorted(self.opens_at, opens), len(self.opens_at) - 1)
        return np.where(self.opens_at[place] == opens, self.closes_at[place], opens + 23400)


def day(number: int) -> date:
    """The date ``number`` days after 1970-01-01."""
    return date(1970, 1, 1) + timedelta(days=int(number))


@cache
def grid_of(calendar: str, overrides: tuple[SessionOverride, ...] = ()) -> Grid:
    """The whole of one calendar. Slow the first time (exchange_calendars builds it), free afterwards."""
    source = trading_calendar(calendar, overrides=overrides)
    bounds = source.bounds(source.first_session, source.last_session)
    segments = source.segments(source.first_session, source.last_session)
    return Grid(
        timezone=source.timezone,
        session=bounds.session.astype(np.int64),
        opens_at=bounds.opens_at,
        closes_at=bounds.closes_at,
        segment_starts_at=segments.starts_at,
        segment_ends_at=segments.ends_at,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Bars:
    """Bars as known at one instant, sorted by ``opened_at`` (epoch seconds; 1d: the opening of the session), unique in it.

    ``ohlcv`` has one row each for open, high, low, close and volume. ``regular``: inside the exchange's session. ``leaked``: after
    the early close of a short day, which Yahoo sends although nobody asked.
    """

    opened_at: Int64s
    ends_at: Int64s
    ohlcv: Float64s
    regular: Bools
    leaked: Bools

    def __len__(self) -> int:
        return len(self.opened_at)

    def take(self, selector: Bools | Int64s | slice) -> Bars:
        """The bars that ``selector`` names, in its order."""
        return Bars(
            self.opened_at[selector],
            self.ends_at[selector],
            self.ohlcv[:, selector],
            self.regular[selector],
            self.leaked[selector],
        )

    def between(self, start: int, end: int) -> Bars:
        """The bars that opened in [start, end)."""
        first, last = np.searchsorted(self.opened_at, [start, end]).tolist()
        return self.take(slice(first, last))


@dataclass(frozen=True, eq=False)
class BarHistory:
    """Every version of every bar of one file, sorted by (opened_at, known_us): the newest version known at an instant is served.

    A version whose prices are NaN withdraws the bar. ``forming_allowed``: the version's time of knowledge follows from the clock,
    so the bar may be shown half done before.
    """

    bars: Bars
    known_us: Int64s
    forming_allowed: Bools
    _newest: dict[int, Bars] = field(default_factory=dict)

    @cached_property
    def _known_sorted(self) -> Int64s:
        return np.sort(self.known_us)

    def version(self, now_us: int) -> int:
        """How many versions are known by then: the same number means the same view (time does not run backwards within it)."""
        return int(np.searchsorted(self._known_sorted, now_us, "right"))

    def known_at(self, now_us: int) -> Bars:
        """The newest known version of every bar that is known and not withdrawn. Remembered for the last version asked for."""
        version = self.version(now_us)
        if version not in self._newest:
            known = np.flatnonzero(self.known_us <= now_us)
            opened_at = self.bars.opened_at[known]
            newest = np.ones(len(known), bool)
            newest[:-1] = opened_at[1:] != opened_at[:-1]
            rows = known[newest]
            rows = rows[np.isfinite(self.bars.ohlcv[3, rows])]
            self._newest.clear()
            self._newest[version] = self.bars.take(rows)
        return self._newest[version]

    def forming_at(self, now_us: int) -> Bars:
        """The bar in progress, if any: flat at its first price, without volume."""
        opened = int(np.searchsorted(self.bars.opened_at, now_us // 1_000_000, "right"))
        candidates = np.arange(max(0, opened - 1), opened)
        rows = candidates[self.forming_allowed[candidates] & (self.known_us[candidates] > now_us)]
        bars = self.bars.take(rows)
        first_price = bars.ohlcv[0]
        return Bars(bars.opened_at, bars.ends_at, np.stack([first_price] * 4 + [np.zeros(len(rows))]), bars.regular, bars.leaked)


def aggregate(minutes: Bars, grid: Grid, seconds: int) -> Bars:
    """Regular minutes joined into bars of ``seconds`` anchored at each segment's open; a day is the whole session.

    The tail of a segment makes a shorter bar. Bars without a minute do not appear.
    """
    regular = minutes.take(minutes.regular)
    if seconds == DAY:
        place = grid.sessions_of(regular.opened_at)
        opens, ends = grid.opens_at[place], grid.closes_at[place]
    else:
        place = grid.segments_of(regular.opened_at)
        starts = grid.segment_starts_at[place]
        opens = starts + (regular.opened_at - starts) // seconds * seconds
        ends = np.minimum(opens + seconds, grid.segment_ends_at[place])
    first = np.flatnonzero(np.diff(opens, prepend=-1))
    if not len(first):
        return regular
    last = np.append(first[1:], len(opens)) - 1
    open_, high, low, close, volume = regular.ohlcv
    values = np.stack(
        [
            open_[first],
            np.maximum.reduceat(high, first),
            np.minimum.reduceat(low, first),
            close[last],
            np.add.reduceat(volume, first),
        ]
    )
    return Bars(opens[first], ends[first], values, np.ones(len(first), bool), np.zeros(len(first), bool))


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What is seen of one symbol and interval at an instant: the finished bars, and the one in progress (none or one row)."""

    finished: Bars
    forming: Bars


class Market:
    """A data directory, read lazily: each file the first time that it is asked for. Not safe for several threads."""

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise InvalidInputError(f"no data directory {str(directory)!r}: expected a folder with <interval>/<SYMBOL>.csv files")
        served = (*SECONDS, "macro", "universe.csv")
        if not any((directory / name).exists() for name in served):
            raise InvalidInputError(
                f"nothing to serve in {str(directory)!r}: expected <interval>/<SYMBOL>.csv[.gz] files, such as 1m/AAPL.csv"
            )
        self.directory = directory
        self.profile = Profile.of_file(directory / "profile.yaml")
        self.listings = _read_universe(directory / "universe.csv")
        self.actions = _read_actions(directory / "actions.csv")
        self.overrides = _read_overrides(directory / "overrides.csv")
        self._histories: dict[tuple[str, str], BarHistory | None] = {}
        self._built: dict[tuple[str, int], tuple[Bars, Bars]] = {}

    def listing(self, symbol: str) -> Listing | None:
        """How ``symbol`` is listed; None for one that neither the universe nor any file knows."""
        if symbol in self.listings:
            return self.listings[symbol]
        if any(_file_of(self.directory, interval, symbol) for interval in SECONDS):
            return Listing(symbol)
        return None

    def symbols(self) -> set[str]:
        """Every symbol that the universe or a file knows."""
        files = (path for interval in SECONDS for path in (self.directory / interval).glob("*.csv*"))
        return {*self.listings, *(unquote(path.name.removesuffix(".gz").removesuffix(".csv")) for path in files)}

    def grid(self, symbol: str) -> Grid:
        """The sessions of the exchange that lists ``symbol``."""
        listing = self.listing(symbol) or Listing(symbol)
        return grid_of(calendar_of(listing.exchange), self.overrides)

    def seen(self, symbol: str, interval: str, now_us: int) -> Seen:
        """The bars of ``symbol`` as known at ``now_us``: of their own file, else built from the minutes."""
        seconds = SECONDS[interval]
        history = self._history(symbol, interval)
        if history is None and interval == "60m":
            history = self._history(symbol, "1h")
        if history is not None:
            return Seen(history.known_at(now_us), history.forming_at(now_us))
        minutes = self._history(symbol, MINUTE)
        if minutes is None:
            return Seen(NO_BARS, NO_BARS)
        built = self._build(symbol, minutes.known_at(now_us), seconds)
        done = int(np.searchsorted(built.ends_at, now_us // 1_000_000 - self.profile.delay_seconds, "right"))
        return Seen(built.take(slice(0, done)), built.take(slice(done, done + 1)))

    def actions_of(self, symbol: str, now_us: int) -> list[Action]:
        """Splits and dividends of ``symbol`` known by then, by date. Each is remembered as it was told last."""
        newest: dict[tuple[str, date], Action] = {}
        for action in self.actions.get(symbol, ()):
            if action.known_us <= now_us:
                newest[action.kind, action.session] = action
        return sorted(newest.values(), key=lambda a: (a.session, a.kind))

    def _build(self, symbol: str, minutes: Bars, seconds: int) -> Bars:
        source, built = self._built.get((symbol, seconds), (None, NO_BARS))
        if source is not minutes:
            built = aggregate(minutes, self.grid(symbol), seconds)
            self._built[symbol, seconds] = (minutes, built)
        return built

    def _history(self, symbol: str, interval: str) -> BarHistory | None:
        key = (symbol, interval)
        if key not in self._histories:
            path = _file_of(self.directory, interval, symbol)
            self._histories[key] = None if path is None else self._read_bars(path, interval, self.grid(symbol))
        return self._histories[key]

    def _read_bars(self, path: Path, interval: str, grid: Grid) -> BarHistory:
        stamp = "session_date" if interval == "1d" else "opened_at"
        table = _read_csv(path, required=(stamp, *FIELDS))
        stamps = _epoch_us(table[stamp], path) // 1_000_000
        opened_at = grid.opens_of(stamps // DAY) if interval == "1d" else stamps
        segment = grid.segments_of(opened_at)
        regular = (segment >= 0) | (interval == "1d")
        if interval == "1d":
            ends_at = grid.closes_of(opened_at)
        else:
            ends_at = opened_at + SECONDS[interval]
            ends_at = np.where(regular, np.minimum(ends_at, grid.segment_ends_at[segment]), ends_at)
        session = grid.sessions_of(opened_at)
        since_close = opened_at - grid.closes_at[session]
        leaked = ~regular & grid.is_short[session] & (since_close >= 0) & (since_close < POST_MARKET_SECONDS)
        appears_us = (ends_at + self.profile.delay_seconds) * 1_000_000
        known_us, told = appears_us, np.zeros(len(opened_at), bool)
        if "known_from" in table:
            told = table["known_from"].notna().to_numpy()
            known_us = np.where(told, _epoch_us(table["known_from"].where(told, "1970-01-01T00:00:00Z"), path), appears_us)
        values = np.stack([_numbers(table[name], path) for name in FIELDS])
        # A withdrawal (empty prices) is told as a fact of its time, or it would take effect before the bar itself.
        order = np.lexsort((known_us, opened_at))
        bars = Bars(opened_at, ends_at, values, regular, leaked).take(order)
        return BarHistory(bars, known_us[order], ~told[order])


NO_BARS = Bars(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((5, 0)), np.empty(0, bool), np.empty(0, bool))


def file_name(symbol: str) -> str:
    """``symbol`` as a file name without its ending: percent-encoded except for letters, digits and ``= - . _``."""
    return quote(symbol, safe="=-._")


def _file_of(directory: Path, interval: str, symbol: str) -> Path | None:
    candidates = (directory / interval / f"{file_name(symbol)}{ending}" for ending in (".csv", ".csv.gz"))
    return next((path for path in candidates if path.exists()), None)


def _read_csv(path: Path, *, required: Iterable[str]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
    except (OSError, ValueError, UnicodeDecodeError) as broken:
        raise InvalidInputError(f"{path}: cannot be read as CSV: {broken}") from None
    missing = [name for name in required if name not in table.columns]
    if missing:
        raise InvalidInputError(f"{path}: no column {', '.join(missing)}: found {', '.join(map(str, table.columns))}")
    return table


def _epoch_us(column: pd.Series[Any], path: Path) -> Int64s:
    """Stamps as epoch microseconds; those without a zone are UTC, which is what the format says they are."""
    try:
        instants = pd.to_datetime(column, utc=True, format="ISO8601")
    except (ValueError, TypeError) as broken:
        raise InvalidInputError(f"{path}: column {column.name}: expected ISO 8601 in UTC: {broken}") from None
    if instants.isna().any():
        raise InvalidInputError(f"{path}: column {column.name}: row {int(instants.isna().argmax()) + 2} is empty")
    stamps: Int64s = instants.to_numpy(dtype="datetime64[us]").astype(np.int64)
    return stamps


def _numbers(column: pd.Series[Any], path: Path) -> Float64s:
    try:
        # Through Python's float: pandas' fast parser may miss the last digit, and "value by value" is the promise.
        return column.to_numpy(dtype=object, na_value="nan").astype(np.float64)
    except ValueError as broken:
        raise InvalidInputError(f"{path}: column {column.name}: {broken}") from None


def _read_universe(path: Path) -> dict[str, Listing]:
    if not path.exists():
        return {}
    table = _read_csv(path, required=("symbol",))
    names = [f.name for f in fields(Listing) if f.name in table.columns]
    listings = {}
    for row in table[names].to_dict("records"):
        listing = Listing(**{str(k): v for k, v in row.items() if isinstance(v, str)})
        valid_symbol(listing.symbol)
        calendar_of(listing.exchange)
        listings[listing.symbol] = listing
    return listings


def _read_overrides(path: Path) -> tuple[SessionOverride, ...]:
    """Sessions that the libraries do not know, in the form of MDP_CALENDAR_OVERRIDES. The exchange knew them all along."""
    return parse_overrides(path.read_text(encoding="utf-8")) if path.exists() else ()


def _read_actions(path: Path) -> dict[str, list[Action]]:
    if not path.exists():
        return {}
    actions: dict[str, list[Action]] = {}
    for number, row in enumerate(_read_csv(path, required=("symbol", "kind", "session_date", "value")).to_dict("records"), 2):
        try:
            known_from = row.get("known_from")
            known = datetime.fromisoformat(known_from) if isinstance(known_from, str) else datetime(1970, 1, 1, tzinfo=UTC)
            action = Action(
                kind=row["kind"],
                session=date.fromisoformat(row["session_date"]),
                value=float(row["value"]),
                currency=row["currency"] if isinstance(row.get("currency"), str) else None,
                known_us=round(known.timestamp() * 1_000_000),
            )
        except (TypeError, ValueError) as broken:
            raise InvalidInputError(f"{path}:{number}: {broken}: expected symbol,kind,session_date,value") from None
        if action.kind not in {"split", "dividend"}:
            raise InvalidInputError(f"{path}:{number}: kind {action.kind!r}: expected split or dividend")
        actions.setdefault(row["symbol"], []).append(action)
    for of_symbol in actions.values():
        of_symbol.sort(key=lambda a: a.known_us)
    return actions
