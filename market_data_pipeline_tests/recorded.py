"""Recorded sets under ../shared/data as data directories for the simulator, with the plain rows that a test expects to find again.

The rows are read here with the standard library only, so that no answer is computed by the code under test. Values go over the
wire as float64 (``prices: float64`` in profile.yaml): stored bars must equal the files digit by digit, decimals included.
"""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

RECORDED = Path(__file__).parents[2] / "shared" / "data" / "recorded"
NEW_YORK = ZoneInfo("America/New_York")
FIELDS = ("open", "high", "low", "close", "volume")


@dataclass(frozen=True, slots=True)
class Row:
    """One bar of a file. ``opened_at``: epoch seconds; for days, midnight UTC of the session date, as the store has it."""

    opened_at: int
    open: float
    high: float
    low: float
    close: float
    volume: float


@dataclass(frozen=True, slots=True)
class Pull:
    """What a provider answered at one time: ``known_from``, and every bar of that answer, sorted."""

    known_from: datetime
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class RecordedSet:
    """A data directory and what is in it. ``rows[interval, symbol]``: the file's regular-session bars, sorted.

    ``extended[interval, symbol]``: its bars outside of the session. ``pulls``: for snapshots, each pull by itself; ``rows`` is then
    the last that any pull said of each bar. ``now``: an instant at which Yahoo would serve all of it.
    """

    directory: Path
    now: datetime
    rows: dict[tuple[str, str], tuple[Row, ...]]
    extended: dict[tuple[str, str], tuple[Row, ...]]
    pulls: dict[tuple[str, str], tuple[Pull, ...]]


def recorded(name: str) -> Path:
    """The folder of a recorded set; the test is skipped, with the reason, where it is absent."""
    folder = RECORDED / name
    if not folder.is_dir():
        pytest.skip(f"recorded data not here: {folder}")
    return folder


def yahoo_msft_2022(directory: Path) -> RecordedSet:
    """Yahoo's MSFT, minutes 2022-05-18 12:00 to 2022-06-15 12:30 New York, and days from 1986."""
    folder = recorded("yahoo_market_prices_mit")
    minutes = tuple(_row(r["date"], r) for r in _csv(folder / "MSFT_T1.csv.gz"))
    days = tuple(_row(f"{r['date']}T00:00:00+00:00", r) for r in _csv(folder / "MSFT_D1.csv.gz"))
    rows = {("1m", "MSFT"): minutes, ("1d", "MSFT"): days}
    _write(directory, rows, {"MSFT": "XNAS"})
    return RecordedSet(directory, datetime(2022, 6, 16, 12, tzinfo=UTC), rows, {}, {})


def lean_2013(directory: Path, *, extended: bool = True) -> RecordedSet:
    """QuantConnect's SPY, IBM and BAC, trade minutes of 2013-10-04 and 07 to 11 and days from 1998. Raw decimals, ten-thousandths.

    SPY lacks 2013-10-11. ``extended`` False leaves the pre- and post-market minutes out of the directory.
    """
    folder = recorded("lean") / "equity" / "usa"
    inside: dict[tuple[str, str], tuple[Row, ...]] = {}
    outside: dict[tuple[str, str], tuple[Row, ...]] = {}
    for symbol in ("SPY", "IBM", "BAC"):
        every = [row for path in sorted((folder / "minute" / symbol.lower()).glob("*_trade.zip")) for row in _lean_minutes(path)]
        inside["1m", symbol] = tuple(row for row in every if _in_new_york_hours(row.opened_at))
        outside["1m", symbol] = tuple(row for row in every if not _in_new_york_hours(row.opened_at))
        inside["1d", symbol] = tuple(_lean_days(folder / "daily" / f"{symbol.lower()}.zip"))
    written = {key: inside[key] + (outside.get(key, ()) if extended else ()) for key in inside}
    _write(directory, written, {"SPY": "ARCX", "IBM": "XNYS", "BAC": "XNYS"})
    return RecordedSet(directory, datetime(2013, 10, 12, 12, tzinfo=UTC), inside, outside, {})


def yahoo_aapl_snapshots_2026(directory: Path) -> RecordedSet:
    """AAPL as pulled again and again from 2026-03-20 to 04-01, minutes and days: each pull is what is known from its time on.

    A bar that a later pull lacks, between that pull's first and last bar, is withdrawn from then on.
    """
    folder = recorded("yahoo_snapshots_sds_202603") / "AAPL"
    pulls = {
        (interval, "AAPL"): tuple(_pull(path, interval) for path in sorted((folder / interval).glob("*.csv.gz")))
        for interval in ("1m", "1d")
    }
    for (interval, symbol), of_symbol in pulls.items():
        _write_versions(directory / interval / f"{symbol}.csv", interval, of_symbol)
    _write(directory, {}, {"AAPL": "XNAS"})
    known = {key: tuple(_last_known(of_symbol)) for key, of_symbol in pulls.items()}
    return RecordedSet(directory, datetime(2026, 4, 1, 13, tzinfo=UTC), known, {}, pulls)


def _last_known(pulls: tuple[Pull, ...]) -> list[Row]:
    newest = {row.opened_at: row for pull in pulls for row in pull.rows}
    return [newest[opened_at] for opened_at in sorted(newest)]


def _pull(path: Path, interval: str) -> Pull:
    known_from = datetime.strptime(path.name.split(".")[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    rows = []
    for record in _csv(path):
        # The feed changed its mind about capitals and about writing days as instants (MARKET_CASES.md).
        cells = {name.lower(): text for name, text in record.items()}
        stamp = cells.get("datetime") or cells["date"]
        rows.append(_row(f"{stamp[:10]}T00:00:00+00:00" if interval == "1d" else stamp, cells))
    return Pull(known_from, tuple(sorted(rows, key=lambda row: row.opened_at)))


def _row(stamp: str, cells: dict[str, str]) -> Row:
    open_, high, low, close, volume = (float(cells[name]) for name in FIELDS)
    return Row(int(datetime.fromisoformat(stamp).timestamp()), open_, high, low, close, volume)


def _csv(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _lean_lines(path: Path) -> list[list[str]]:
    with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as file:
        return list(csv.reader(io.TextIOWrapper(file, encoding="ascii")))


def _lean_minutes(path: Path) -> list[Row]:
    """Milliseconds since New York midnight; prices in ten-thousandths."""
    session = datetime.strptime(path.name[:8], "%Y%m%d").replace(tzinfo=NEW_YORK)
    # No clock change falls on these days, so midnight plus milliseconds is right in UTC as well.
    midnight = int(session.timestamp())
    return [_lean_row(midnight + int(line[0]) // 1000, line[1:]) for line in _lean_lines(path)]


def _lean_days(path: Path) -> list[Row]:
    days = (datetime.strptime(line[0], "%Y%m%d %H:%M").replace(tzinfo=UTC) for line in _lean_lines(path))
    return [_lean_row(int(day.timestamp()), line[1:]) for day, line in zip(days, _lean_lines(path), strict=True)]


def _lean_row(opened_at: int, cells: list[str]) -> Row:
    open_, high, low, close = (int(price) / 10_000 for price in cells[:4])
    return Row(opened_at, open_, high, low, close, float(cells[4]))


def _in_new_york_hours(opened_at: int) -> bool:
    return time(9, 30) <= datetime.fromtimestamp(opened_at, NEW_YORK).time() < time(16)


def _stamp(opened_at: int, interval: str) -> str:
    if interval == "1d":
        return (date(1970, 1, 1) + timedelta(seconds=opened_at)).isoformat()
    return datetime.fromtimestamp(opened_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _cells(row: Row) -> list[str]:
    return [repr(getattr(row, name)) for name in FIELDS]


def _write(directory: Path, rows: dict[tuple[str, str], tuple[Row, ...]], exchanges: dict[str, str]) -> None:
    for (interval, symbol), of_symbol in rows.items():
        stamped = [[_stamp(row.opened_at, interval), *_cells(row)] for row in of_symbol]
        _write_csv(directory / interval / f"{symbol}.csv", [_first_column(interval), *FIELDS], stamped)
    listed = [[symbol, exchange, "T0", "etf" if exchange == "ARCX" else "equity"] for symbol, exchange in exchanges.items()]
    _write_csv(directory / "universe.csv", ["symbol", "exchange", "tier", "asset_type"], listed)
    (directory / "profile.yaml").write_text("prices: float64\n", encoding="ascii")


def _write_versions(path: Path, interval: str, pulls: tuple[Pull, ...]) -> None:
    """Only what a pull changed: values that differ from what was known, and bars within its span that it lacks."""
    known: dict[int, Row | None] = {}
    lines = []
    for pull in pulls:
        known_from = pull.known_from.strftime("%Y-%m-%dT%H:%M:%SZ")
        told = {row.opened_at: row for row in pull.rows}
        first, last = pull.rows[0].opened_at, pull.rows[-1].opened_at
        for opened_at in sorted(told.keys() | {at for at in known if first <= at <= last}):
            row = told.get(opened_at)
            if opened_at in known and known[opened_at] == row:
                continue
            known[opened_at] = row
            lines.append([_stamp(opened_at, interval), *(_cells(row) if row else [""] * len(FIELDS)), known_from])
    _write_csv(path, [_first_column(interval), *FIELDS, "known_from"], lines)


def _first_column(interval: str) -> str:
    return "session_date" if interval == "1d" else "opened_at"


def _write_csv(path: Path, header: list[str], rows: list[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="ascii", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
