"""What really happens in the simulated week: a small market with its incidents, written down as a data directory and as facts.

Nothing here knows the pipeline: what it should have in the end is read from here, never from what it stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.sessions import parse_overrides, trading_calendar
from market_data_pipeline.domain.universe import calendar_of
from market_data_pipeline.simulator.market import FIELDS, file_name
from market_data_pipeline.simulator.sample import CAST, SampleSymbol, minutes_of, write_rows

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from market_data_pipeline.domain.candles import Bools, Float64s, Int64s

# New York and Toronto put their clocks back on Sunday, 2024-11-03.
FIRST, LAST = date(2024, 10, 30), date(2024, 11, 5)
LEAST_SYMBOLS, MOST_SYMBOLS = 8, 1000
# None of our exchanges closes early in that week: this one is declared, two days before, as hurricanes and funerals are.
EARLY_CLOSE = "XNYS,2024-11-05,early_close,13:00,2024-11-03T15:00:00Z,circular 24-31"
OVERRIDE_HEADER = "calendar,session,kind,time,declared_at,source"
# Late prints are in within half an hour of the close (MARKET_CASES.md §4), the volume of days a session later: +27 % was measured.
CLOSING_PRINT_AFTER, LAST_BAR_AFTER = 25 * 60, 12 * 60
# Trading goes on after the week, only nobody counts: evidence of a delisting takes five sessions (domain.listing).
AFTERWARDS = timedelta(days=8)
CORRECTED_VOLUME = 1.27
CORRECTED_AFTER = timedelta(hours=17)

# The first eight hold one of each kind, so that the smallest week has every trouble in it.
_PEOPLE = (
    replace(CAST[0], symbol="NOVA", extended_minutes=0),
    replace(CAST[4], symbol="ORBT"),
    replace(CAST[1], symbol="SLOW"),
    replace(CAST[3], symbol="ZED-USD"),
    SampleSymbol("TEMS.L", "XLON", "T1", price=412.0, minute_volume=9_000, volatility=0.22),
    SampleSymbol("GENX", "XNYS", "T1", price=24.0, minute_volume=30_000, volatility=0.6),
    SampleSymbol("GONE", "XNYS", "T1", price=3.1, minute_volume=30_000, volatility=0.9),
    SampleSymbol("NEVR", "XNYS", "T2"),
)
HALTED, SECRETLY_HALTED, LISTED, DELISTED, UNKNOWN = "ORBT", "A000", "GENX", "GONE", "NEVR"
_EXTRAS = (
    SampleSymbol("A", "XNYS", "T0", price=88.2, minute_volume=35_000),
    SampleSymbol("B.TO", "XTSE", "T1", price=61.0, minute_volume=12_000),
    SampleSymbol("C", "XNAS", "T1", price=27.1, volatility=0.5, minute_volume=12_000),
    SampleSymbol("D", "XNYS", "T2", price=9.3, volatility=0.6, minute_volume=300, empty_share=0.4),
    SampleSymbol("E", "XNAS", "T0", price=401.0, volatility=0.4, minute_volume=25_000),
    SampleSymbol("F", "ARCX", "T1", "etf", price=596.0, volatility=0.13, minute_volume=120_000),
    SampleSymbol("G.L", "XLON", "T1", price=230.0, minute_volume=9_000),
    SampleSymbol("H", "XNYS", "T1", price=53.8, minute_volume=8_000, empty_share=0.02),
    SampleSymbol("I", "XNYS", "T2", price=12.0, minute_volume=5_000),
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What happens, and when. Sessions are included; spans of instants are half-open.

    ``until``: trading goes on to that session, without incidents. ``halts``: a feed tells of those that are ``told``, the others
    have to be inferred. ``listed`` and ``delisted``: the first and the last session of a symbol; ``unknown``: it never existed;
    ``overrides``: sessions that no calendar library knows; ``declared_at``: when the operator hears of them.
    """

    first: date
    last: date
    until: date
    seed: int
    outage: tuple[datetime, datetime]
    halts: Mapping[str, tuple[datetime, datetime]]
    told: frozenset[str]
    listed: Mapping[str, date]
    delisted: Mapping[str, date]
    unknown: frozenset[str]
    overrides: str = ""
    declared_at: datetime | None = None
    thin: frozenset[str] = field(default_factory=frozenset)

    @property
    def begins_at(self) -> datetime:
        """Before any session of the week opens."""
        return datetime.combine(self.first, datetime.min.time(), UTC)

    @property
    def ends_at(self) -> datetime:
        """After every session of the week has closed; trading goes on."""
        return datetime.combine(self.last + timedelta(days=1), datetime.min.time(), UTC) + timedelta(hours=1)


def facts_of(*, seed: int, first: date, last: date, symbols: int) -> Facts:
    """The incidents of a week: an outage and a halt in its second session, changes of listing between its sessions."""
    sessions = trading_calendar("XNYS").sessions(first, last)
    if len(sessions) < 2 or not LEAST_SYMBOLS <= symbols <= MOST_SYMBOLS:
        raise InvalidInputError(
            f"a week of {len(sessions)} sessions and {symbols} symbols: expected 2 sessions of XNYS or more, "
            f"and {LEAST_SYMBOLS} to {MOST_SYMBOLS} symbols"
        )
    second, middle = sessions[1], sessions[(len(sessions) + 1) // 2]
    override = parse_overrides(f"{OVERRIDE_HEADER}\n{EARLY_CLOSE}\n")[0]
    halts = {
        HALTED: (_at(second, 18, 0), _at(second, 18, 40)),
        SECRETLY_HALTED: (_at(sessions[0], 19, 0), _at(sessions[0], 19, 30)),
    }
    followed = {member.symbol for member in cast_of(symbols)}
    is_declared = first <= override.declared_at.date() and override.session <= last
    return Facts(
        first=first,
        last=last,
        until=last + AFTERWARDS,
        seed=seed,
        outage=(_at(second, 15, 30), _at(second, 17, 30)),
        halts={symbol: span for symbol, span in halts.items() if symbol in followed},
        told=frozenset({HALTED}),
        listed={LISTED: middle},
        delisted={DELISTED: sessions[(len(sessions) - 1) // 2]},
        unknown=frozenset({UNKNOWN}),
        overrides=f"{OVERRIDE_HEADER}\n{EARLY_CLOSE}\n" if is_declared else "",
        declared_at=override.declared_at if is_declared else None,
        thin=frozenset(member.symbol for member in cast_of(symbols) if member.empty_share),
    )


def _at(day: date, hour: int, minute: int) -> datetime:
    return datetime(day.year, day.month, day.day, hour, minute, tzinfo=UTC)


def cast_of(symbols: int) -> list[SampleSymbol]:
    """Who is followed: the eight, and further ones of several exchanges and tiers."""
    extras = []
    for number in range(symbols - len(_PEOPLE)):
        kind = _EXTRAS[number % len(_EXTRAS)]
        root, dot, suffix = kind.symbol.partition(".")
        extras.append(replace(kind, symbol=f"{root}{number:03d}{dot}{suffix}"))
    return [*_PEOPLE, *extras]


def write_market(directory: Path, facts: Facts, *, symbols: int) -> None:
    """The data directory that the simulated providers serve, and ``followed.csv``: the universe as the operator believes it to be.

    The same arguments write the same bytes.
    """
    cast = cast_of(symbols)
    for interval in ("1m", "1d"):
        (directory / interval).mkdir(parents=True)
    for member in cast:
        if member.symbol in facts.unknown:
            continue
        minutes = minutes_of(member, seed=facts.seed, start=facts.first, end=facts.until)
        kept = minutes.opened_at[_happened(member, minutes.opened_at, facts)]
        ohlcv = minutes.ohlcv[:, np.isin(minutes.opened_at, kept)]
        closes = _closes(member, facts)
        is_corrected = member.tier == "T0"
        _write_minutes(directory / "1m" / f"{file_name(member.symbol)}.csv", kept, ohlcv, closes if is_corrected else None)
        if is_corrected:
            _write_days(directory / "1d" / f"{file_name(member.symbol)}.csv", kept, ohlcv, closes)
    header, rows = "symbol,exchange,tier,asset_type", [(m.symbol, f"{m.symbol},{m.exchange},{m.tier},{m.asset_type}") for m in cast]
    write_rows(directory / "universe.csv", header, [row for symbol, row in rows if symbol not in facts.unknown])
    write_rows(directory / "followed.csv", header, [row for _, row in rows])
    if facts.overrides:
        (directory / "overrides.csv").write_text(facts.overrides, encoding="ascii")


def _happened(member: SampleSymbol, opened_at: Int64s, facts: Facts) -> Bools:
    """The minutes that are traded: not while trading was suspended, after an early close, before the listing or after its end."""
    calendar = trading_calendar(calendar_of(member.exchange), overrides=parse_overrides(facts.overrides) if facts.overrides else ())
    kept = calendar.is_open(opened_at)
    if member.symbol in facts.halts:
        start, end = (int(at.timestamp()) for at in facts.halts[member.symbol])
        kept &= (opened_at < start) | (opened_at >= end)
    if member.symbol in facts.listed:
        kept &= opened_at >= int(_at(facts.listed[member.symbol], 0, 0).timestamp())
    if member.symbol in facts.delisted:
        kept &= opened_at < int(_at(facts.delisted[member.symbol] + timedelta(days=1), 0, 0).timestamp())
    return kept


def _closes(member: SampleSymbol, facts: Facts) -> Mapping[int, date]:
    """The sessions of the member's exchange by the instant at which they close."""
    calendar = trading_calendar(calendar_of(member.exchange), overrides=parse_overrides(facts.overrides) if facts.overrides else ())
    bounds = calendar.bounds(facts.first, facts.until)
    return {int(at): date(1970, 1, 1) + timedelta(days=int(day)) for at, day in zip(bounds.closes_at, bounds.session, strict=True)}


def _write_minutes(path: Path, opened_at: Int64s, ohlcv: Float64s, closes: Mapping[int, date] | None) -> None:
    """``closes`` None: nothing comes late. Else the last minute of a session is half there at first, and the one before is late."""
    rows = []
    for at, values in zip(opened_at.tolist(), ohlcv.T.tolist(), strict=True):
        if closes is not None and at + 60 in closes:
            rows.append(_row(_iso(at), [*values[:4], values[4] // 2], ""))
            rows.append(_row(_iso(at), values, _iso(at + 60 + CLOSING_PRINT_AFTER)))
        elif closes is not None and at + 120 in closes:
            rows.append(_row(_iso(at), values, _iso(at + 120 + LAST_BAR_AFTER)))
        else:
            rows.append(_row(_iso(at), values, ""))
    write_rows(path, f"opened_at,{','.join(FIELDS)},known_from", rows)


def _write_days(path: Path, opened_at: Int64s, ohlcv: Float64s, closes: Mapping[int, date]) -> None:
    """The days of the minutes, whose volume is 27 % more from the next morning on."""
    rows = []
    place = np.searchsorted(np.array(sorted(closes)), opened_at, "right")
    for number, (close, session) in enumerate(sorted(closes.items())):
        open_, high, low, last, volume = ohlcv[:, place == number]
        if not len(open_):
            continue
        values = [open_[0], high.max(), low.min(), last[-1], volume.sum()]
        rows.append(_row(session.isoformat(), values, ""))
        rows.append(
            _row(
                session.isoformat(), [*values[:4], values[4] * CORRECTED_VOLUME], _iso(close + int(CORRECTED_AFTER.total_seconds()))
            )
        )
    write_rows(path, f"session_date,{','.join(FIELDS)},known_from", rows)


def _row(stamp: str, values: list[float], known_from: str) -> str:
    *prices, volume = values
    return ",".join([stamp, *(f"{price:.2f}" for price in prices), f"{volume:.0f}", known_from])


def _iso(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def listing_rules(facts: Facts) -> list[dict[str, Any]]:
    """What Yahoo says of a symbol from noon after its last session: that there is none. No fault: the others just have no bars."""
    return [
        {
            "match": {"provider": "yahoo", "symbol": symbol, "after": _at(last + timedelta(days=1), 12, 0).isoformat()},
            "action": "status",
            "code": 404,
        }
        for symbol, last in sorted(facts.delisted.items())
    ]


def outage_rules(facts: Facts) -> list[dict[str, Any]]:
    """Yahoo answers nobody for as long as the outage lasts."""
    after, until = (at.isoformat() for at in facts.outage)
    return [{"match": {"provider": "yahoo", "after": after, "until": until}, "action": "status", "code": 503}]
