"""Halts from a file into the store, and from there into the verdicts of sessions that are in the ledger already."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.halts import Halt
from market_data_pipeline.ingest.grid import Grid
from market_data_pipeline.storage.evidence import slots_within, words_of_halt
from market_data_pipeline.storage.halts import Halts, SuspendedSlots

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.storage.halts import StoredHalt

EVERYTHING = "*"
MOST_PROBLEMS = 20
_COLUMNS = ("symbol", "starts_at", "ends_at")
_FURTHER = ("calendar", "reason")
# The columns of nasdaqtrader.com's list of current and past halts; its times are of New York, to the second.
_ISSUE, _REASON = "Issue Symbol", "Reason Codes"
_HALTED, _RESUMED = ("Halt Date", "Halt Time"), ("Resumption Date", "Resumption Trade Time")
_NEW_YORK = ZoneInfo("America/New_York")
# Symbols whose ledger rows are looked at together.
_AT_ONCE = 500
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class HaltsFile:
    """What a file tells. ``not_followed``: its symbols that the universe does not have; a feed names every symbol there is."""

    halts: tuple[Halt, ...]
    not_followed: tuple[str, ...]


def read_halts(path: Path, instruments: Mapping[str, Instrument]) -> HaltsFile:
    """The halts in the file at ``path``, of ``instruments`` by symbol; InvalidInputError names every problem, with its line."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as unreadable:
        raise InvalidInputError(f"cannot read the halts file {str(path)!r}: {unreadable.strerror}") from unreadable
    except UnicodeDecodeError as undecodable:
        raise InvalidInputError(f"{path}: byte {undecodable.start} is not UTF-8: expected a CSV file saved as UTF-8") from None
    return parse_halts(text, instruments, name=str(path))


def parse_halts(text: str, instruments: Mapping[str, Instrument], *, name: str) -> HaltsFile:
    """The halts in a CSV with the columns symbol, starts_at, ends_at and maybe calendar and reason, or in Nasdaq Trader's list.

    ``symbol`` "*" is everything of ``calendar``. Instants are ISO 8601 with a zone; an empty end means that the halt lasts.
    """
    lines = csv.DictReader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    try:
        header = [column.strip() for column in lines.fieldnames or ()]
    except csv.Error as malformed:
        raise InvalidInputError(f"{name}: not CSV: {malformed}") from None
    lines.fieldnames = header
    is_nasdaq = _ISSUE in header
    needed = (_ISSUE, *_HALTED, *_RESUMED) if is_nasdaq else _COLUMNS
    absent = [column for column in needed if column not in header]
    unknown = [] if is_nasdaq else [column for column in header if column not in (*_COLUMNS, *_FURTHER)]
    if absent or unknown:
        told = "; ".join([*(f"no column {column!r}" for column in absent), *(f"unknown column {column!r}" for column in unknown)])
        raise InvalidInputError(
            f"{name}: {told}: expected {', '.join(_COLUMNS)} and maybe {', '.join(_FURTHER)}, or Nasdaq Trader's own columns"
        )
    halts, problems, strangers = [], list[str](), dict[str, None]()
    try:
        for cells in lines:
            line = {key: (value or "").strip() for key, value in cells.items() if isinstance(key, str)}
            if not any(line.values()):
                continue
            try:
                halt = _nasdaq_halt(line, instruments) if is_nasdaq else _halt(line, instruments)
            except InvalidInputError as wrong:
                problems.append(f"line {lines.line_num}: {wrong}")
                continue
            if halt is None:
                strangers[line[_ISSUE if is_nasdaq else "symbol"]] = None
            else:
                halts.append(halt)
    except csv.Error as malformed:
        problems.append(f"line {lines.line_num}: not CSV: {malformed}")
    if problems:
        more = [f"and {len(problems) - MOST_PROBLEMS} more"] if len(problems) > MOST_PROBLEMS else []
        raise InvalidInputError("\n  ".join([f"{name}: nothing was loaded", *problems[:MOST_PROBLEMS], *more]))
    return HaltsFile(tuple(halts), tuple(strangers))


def _halt(line: Mapping[str, str], instruments: Mapping[str, Instrument]) -> Halt | None:
    symbol, calendar = line["symbol"], line.get("calendar", "")
    starts_at = _instant(line["starts_at"], "starts_at")
    ends_at = _instant(line["ends_at"], "ends_at") if line["ends_at"] else None
    if not symbol:
        raise InvalidInputError("symbol is empty: expected a symbol, or * for everything of a calendar")
    if symbol == EVERYTHING:
        known = sorted({instrument.calendar for instrument in instruments.values()})
        if calendar not in known:
            raise InvalidInputError(f"calendar {calendar!r}: expected one of {', '.join(known)} where the symbol is *")
        return _checked(Halt(None, calendar, starts_at, ends_at, line.get("reason", "")))
    instrument = instruments.get(symbol)
    if instrument is None:
        return None
    if calendar and calendar != instrument.calendar:
        raise InvalidInputError(f"calendar {calendar!r}: {symbol} trades by {instrument.calendar}")
    return _checked(Halt(instrument.symbol_id, instrument.calendar, starts_at, ends_at, line.get("reason", "")))


def _nasdaq_halt(line: Mapping[str, str], instruments: Mapping[str, Instrument]) -> Halt | None:
    instrument = instruments.get(line[_ISSUE])
    starts_at = _new_york(*(line[column] for column in _HALTED))
    day, time = (line[column] for column in _RESUMED)
    ends_at = _new_york(day, time) if day and time else None
    if instrument is None:
        return None
    return _checked(Halt(instrument.symbol_id, instrument.calendar, starts_at, ends_at, line.get(_REASON, "")))


def _checked(halt: Halt) -> Halt:
    if halt.ends_at is not None and halt.ends_at <= halt.starts_at:
        raise InvalidInputError(f"ends_at {halt.ends_at.isoformat()} is not after starts_at {halt.starts_at.isoformat()}")
    return halt


def _instant(text: str, column: str) -> datetime:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInputError(f"{column} {text[:64]!r}: expected an instant like 2024-11-29T14:30:00Z") from None
    if instant.tzinfo is None:
        raise InvalidInputError(f"{column} {text!r} has no time zone: add Z or an offset, like {text}Z")
    return instant.astimezone(UTC)


def _new_york(day: str, time: str) -> datetime:
    try:
        at = datetime.strptime(f"{day} {time.partition('.')[0]}", "%m/%d/%Y %H:%M:%S").replace(tzinfo=_NEW_YORK)
    except ValueError:
        raise InvalidInputError(f"{day} {time}: expected a date and a time like 11/29/2024 09:45:00") from None
    return at.astimezone(UTC)


# --- into the ledger ---------------------------------------------------------------------------------------------------


def apply_halts(pipeline: Pipeline, halts: Sequence[Halt], *, run_id: str | None = None) -> int:
    """Bring the verdicts of sessions that were asked for already in line with ``halts``; how many slots became halted.

    All halts that are known of those symbols count, so that two which touch cover the bar between them. Of every interval.
    Sessions that nobody has asked for yet are left to their first answer. Repeating it changes nothing.
    """
    if not halts:
        return 0
    now = pipeline.clock.now()
    changed = 0
    by_calendar: dict[str, list[Halt]] = {}
    for halt in halts:
        by_calendar.setdefault(halt.calendar, []).append(halt)
    for calendar, mine in by_calendar.items():
        ids = None if any(halt.symbol_id is None for halt in mine) else {halt.symbol_id for halt in mine}
        chosen = [
            instrument
            for instrument in pipeline.universe.instruments(active_only=False)
            if instrument.calendar == calendar and (ids is None or instrument.symbol_id in ids)
        ]
        start, end = min(halt.starts_at for halt in mine), max(min(halt.ends_at or now, now) for halt in mine)
        for at in range(0, len(chosen), _AT_ONCE):
            changed += _apply(pipeline, chosen[at : at + _AT_ONCE], calendar, start, max(end, start), now=now, run_id=run_id)
    return changed


def _apply(
    pipeline: Pipeline,
    instruments: Sequence[Instrument],
    calendar: str,
    start: datetime,
    end: datetime,
    *,
    now: datetime,
    run_id: str | None,
) -> int:
    symbol_ids = [instrument.symbol_id for instrument in instruments]
    # A night market's session is called by the day after it opens.
    trading = pipeline.calendars(calendar)
    first, last = max((start - _DAY).date(), trading.first_session), min((end + _DAY).date(), trading.last_session)
    stored = Halts(pipeline.engine)
    known = stored.between(symbol_ids, [calendar], start - 2 * _DAY, end + 2 * _DAY)
    of: dict[int | None, list[StoredHalt]] = {}
    for halt in known:
        of.setdefault(halt.symbol_id, []).append(halt)
    changed = 0
    for interval in Interval:
        grid = Grid.of(trading, interval, first, last)
        suspensions = []
        for symbol_id in symbol_ids:
            mine = [(halt.starts_at, halt.ends_at, halt) for halt in (*of.get(symbol_id, ()), *of.get(None, ()))]
            spans = [(_seconds(since), None if until is None else _seconds(until)) for since, until, _ in mine]
            inside = slots_within(grid.starts_at, grid.ends_at, spans)
            for place, slots in enumerate(grid.split(inside)):
                if slots.any():
                    suspensions.append(SuspendedSlots(symbol_id, grid.sessions[place], slots, _words(mine, grid, place)))
        if suspensions:
            changed += stored.apply(interval, suspensions, now=now, run_id=run_id)
    return changed


def _words(halts: Sequence[tuple[datetime, datetime | None, StoredHalt]], grid: Grid, place: int) -> str:
    opens, closes = int(grid.opens_at[place]), int(grid.closes_at[place])
    return "; ".join(
        words_of_halt(_seconds(since), None if until is None else _seconds(until), halt.reason, halt.source)
        for since, until, halt in halts
        if _seconds(since) < closes and (until is None or _seconds(until) > opens)
    )


def _seconds(instant: datetime) -> int:
    return int(instant.timestamp())
