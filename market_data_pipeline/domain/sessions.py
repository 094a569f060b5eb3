"""When a market is open: sessions, the bars to expect and where an instant falls, as arithmetic over arrays.

exchange_calendars says what the sessions are; it is imported, with pandas, only when a calendar is first built. What the operator
declares on top of it (``SessionOverride``) carries the time it became known, so that a calendar can be had as it was known then.
Days are int32 days since 1970-01-01; instants are int64 epoch seconds UTC.
"""

from __future__ import annotations

import csv
import warnings
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from functools import lru_cache
from itertools import groupby
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar
from zoneinfo import ZoneInfo

import numpy as np

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.errors import CalendarHorizonError, InvalidInputError
from market_data_pipeline.domain.universe import CALENDARS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from market_data_pipeline.domain.candles import Bools, Int16s, Int32s, Int64s

Parsed = TypeVar("Parsed")

EPOCH = date(1970, 1, 1)
DAY = 86400

# Calendars begin here, or where the library's own history begins: instants are then never negative, and -1 can say "closed".
FIRST_DATE = EPOCH

# Exchanges publish next year's holidays some months ahead, and libraries follow with a release: from here on it is time to look.
HORIZON_WARNING_DAYS = 60


# --- what a calendar answers -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class SessionBounds:
    """One element a session, in order: its label and the regular session's first and (exclusive) last instant."""

    session: Int32s
    opens_at: Int64s
    closes_at: Int64s


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """One element an unbroken stretch of trading, in order: [starts_at, ends_at). A lunch break makes two of a session."""

    session: Int32s
    starts_at: Int64s
    ends_at: Int64s


@dataclass(frozen=True, slots=True, eq=False)
class ExpectedOpens:
    """One element a bar to expect, in order. ``slot`` counts the bars of a session from 0; [opened_at, ends_at) is traded time.

    For 1d, ``opened_at`` is midnight UTC of the session date (a label) and ``ends_at`` the close of the session.
    """

    opened_at: Int64s
    ends_at: Int64s
    session: Int32s
    slot: Int16s

    def __len__(self) -> int:
        return len(self.opened_at)


@dataclass(frozen=True, slots=True, eq=False)
class Located:
    """For each stamp asked about, its session and slot; -1 in both where it is no expected open."""

    session: Int32s
    slot: Int16s


@dataclass(frozen=True, slots=True, eq=False)
class _Grid:
    """Bars of one interval: how many come before each segment, over all (one more element than segments) and in its session."""

    step: int
    before: Int64s
    slot_base: Int64s


@dataclass(frozen=True, slots=True, eq=False)
class TradingCalendar:
    """The sessions of one market from ``first_session`` to ``last_session``. Get one from ``trading_calendar``.

    Everything it returns is in order; arrays may be read-only views of its own. Dates are inclusive at both ends. A range that
    ends before it begins is empty. Beyond what is known, CalendarHorizonError: no answer is better than "closed for ever".
    """

    name: str
    timezone: str
    covered_from: date
    covered_until: date
    _days: Int32s
    _opens: Int64s
    _closes: Int64s
    _segment_starts: Int64s
    _segment_ends: Int64s
    _segment_days: Int32s
    _first_segment: Int64s
    """Of each session, and the number of segments at the end."""
    _edges: Int64s
    """start, end, start, end …: an instant with an odd number of edges at or before it is inside a segment."""
    _grids: Mapping[Interval, _Grid]

    @property
    def first_session(self) -> date:
        """The earliest session known."""
        return date_of(int(self._days[0]))

    @property
    def last_session(self) -> date:
        """The latest session known."""
        return date_of(int(self._days[-1]))

    def days_to_horizon(self, today: date) -> int:
        """How many days from ``today`` until the last session known. Warn below ``HORIZON_WARNING_DAYS``."""
        return (self.last_session - today).days

    # --- sessions

    def sessions(self, first: date, last: date) -> list[date]:
        """The sessions from ``first`` to ``last``, both included."""
        dates: list[date] = self._days[self._between(first, last)].astype("datetime64[D]").tolist()
        return dates

    def bounds(self, first: date, last: date) -> SessionBounds:
        """When each session from ``first`` to ``last`` opens and closes."""
        chosen = self._between(first, last)
        return SessionBounds(self._days[chosen], self._opens[chosen], self._closes[chosen])

    def segments(self, first: date, last: date) -> Segments:
        """The stretches of trading of the sessions from ``first`` to ``last``."""
        chosen = self._segments_between(first, last)
        return Segments(self._segment_days[chosen], self._segment_starts[chosen], self._segment_ends[chosen])

    def is_session(self, day: date) -> bool:
        """Whether the market trades on the session called ``day``."""
        return len(self.sessions(day, day)) == 1

    def next_session(self, day: date) -> date:
        """The first session after ``day``, which need not be one."""
        chosen = self._between(day + timedelta(days=1), self.covered_until)
        if day >= self.covered_until or chosen.start == chosen.stop:
            raise self._beyond(f"the session after {day}")
        return date_of(int(self._days[chosen.start]))

    def previous_session(self, day: date) -> date:
        """The last session before ``day``, which need not be one."""
        chosen = self._between(self.covered_from, day - timedelta(days=1))
        if day <= self.covered_from or chosen.start == chosen.stop:
            raise self._beyond(f"the session before {day}")
        return date_of(int(self._days[chosen.stop - 1]))

    # --- bars

    def expected_opens(self, interval: Interval, first: date, last: date) -> ExpectedOpens:
        """Every bar to expect in the sessions from ``first`` to ``last``.

        Bars are anchored at the open of their segment, so a lunch break starts anew; the last bar of a segment may be shorter.
        """
        if interval.is_daily:
            bounds = self.bounds(first, last)
            opened_at = bounds.session.astype(np.int64) * DAY
            return ExpectedOpens(opened_at, bounds.closes_at, bounds.session, np.zeros(len(opened_at), np.int16))
        grid = self._grids[interval]
        chosen = self._segments_between(first, last)
        before = grid.before[chosen.start : chosen.stop + 1]
        bars = np.diff(before)
        place = np.arange(bars.sum()) - np.repeat(before[:-1] - before[:1], bars)
        opened_at = np.repeat(self._segment_starts[chosen], bars) + place * grid.step
        ends_at = np.minimum(opened_at + grid.step, np.repeat(self._segment_ends[chosen], bars))
        session = np.repeat(self._segment_days[chosen], bars)
        slot = (place + np.repeat(grid.slot_base[chosen], bars)).astype(np.int16)
        return ExpectedOpens(opened_at, ends_at, session, slot)

    def locate(self, opened_at: npt.ArrayLike, interval: Interval) -> Located:
        """The session and slot of each stamp. A stamp beyond the known sessions is no expected open: -1, as for any other."""
        at = np.asarray(opened_at, np.int64)
        if interval.is_daily:
            labels = self._days.astype(np.int64) * DAY
            place = np.minimum(labels.searchsorted(at), len(labels) - 1)
            found = labels[place] == at
            return Located(np.where(found, self._days[place], np.int32(-1)), np.where(found, 0, -1).astype(np.int16))
        grid = self._grids[interval]
        edges_passed = self._edges.searchsorted(at, side="right")
        segment = np.minimum(edges_passed >> 1, len(self._segment_starts) - 1)
        since_open = at - self._segment_starts[segment]
        place = since_open // grid.step
        found = ((edges_passed & 1) == 1) & (place * grid.step == since_open)
        slot = np.where(found, place + grid.slot_base[segment], -1).astype(np.int16)
        return Located(np.where(found, self._segment_days[segment], np.int32(-1)), slot)

    def is_open(self, at: npt.ArrayLike) -> Bools:
        """Whether the market trades at each instant; opens count, closes do not."""
        instants = self._known_instants(at)
        return (self._edges.searchsorted(instants, side="right") & 1).astype(bool)

    def align(self, at: npt.ArrayLike, interval: Interval) -> Int64s:
        """The open of the bar that holds each instant, -1 where the market is closed.

        For 1d: midnight UTC of the session that is open at that instant, which may be another date than the instant's own.
        """
        instants = self._known_instants(at)
        edges_passed = self._edges.searchsorted(instants, side="right")
        segment = np.minimum(edges_passed >> 1, len(self._segment_starts) - 1)
        if interval.is_daily:
            opened_at = self._segment_days[segment].astype(np.int64) * DAY
        else:
            opened_at = instants - (instants - self._segment_starts[segment]) % interval.seconds
        return np.where((edges_passed & 1) == 1, opened_at, np.int64(-1))

    # --- the edge of what is known

    def _between(self, first: date, last: date) -> slice:
        """The places of the sessions from ``first`` to ``last``."""
        if first > last:
            return slice(0, 0)
        if first < self.covered_from:
            raise self._beyond(first)
        if last > self.covered_until:
            raise self._beyond(last)
        start = self._days.searchsorted(np.int32(day_number(first)))
        stop = self._days.searchsorted(np.int32(day_number(last)), side="right")
        return slice(int(start), int(stop))

    def _segments_between(self, first: date, last: date) -> slice:
        chosen = self._between(first, last)
        return slice(int(self._first_segment[chosen.start]), int(self._first_segment[chosen.stop]))

    def _known_instants(self, at: npt.ArrayLike) -> Int64s:
        instants = np.asarray(at, np.int64)
        if instants.size and (instants.min() < self._opens[0] or instants.max() >= self._closes[-1]):
            unknown = (instants < self._opens[0]) | (instants >= self._closes[-1])
            raise self._beyond(f"{instants[unknown].flat[0]} (epoch seconds)")
        return instants

    def _beyond(self, asked: object) -> CalendarHorizonError:
        return CalendarHorizonError(
            f"calendar {self.name} knows the sessions from {self.first_session} to {self.last_session} and was asked for {asked}: "
            "ask within them, or update exchange_calendars if the exchange has published more"
        )


def day_number(day: date) -> int:
    """Days since 1970-01-01."""
    return (day - EPOCH).days


def date_of(day: int) -> date:
    """The date ``day`` days after 1970-01-01."""
    return EPOCH + timedelta(days=day)


# --- what the operator declares --------------------------------------------------------------------------------------------


class OverrideKind(StrEnum):
    """What an override does to a session. Of several declared at one instant, they apply in this order."""

    CLOSED = "closed"
    OPEN = "open"
    LATE_OPEN = "late_open"
    EARLY_CLOSE = "early_close"


@dataclass(frozen=True, slots=True)
class SessionOverride:
    """A fact about one session and the instant from which it was known.

    ``opens`` and ``closes`` are local times: ``closes`` of an early close, ``opens`` of a late open, both or neither (regular
    hours) of an extra session. ``line`` is where it stood in its file.
    """

    calendar: str
    session: date
    kind: OverrideKind
    declared_at: datetime
    source: str
    opens: time | None = None
    closes: time | None = None
    line: int | None = field(default=None, compare=False)

    def __str__(self) -> str:
        place = "" if self.line is None else f"line {self.line}: "
        return f"{place}{self.kind} of {self.calendar} {self.session}"


OVERRIDE_COLUMNS = ("calendar", "session", "kind", "time", "declared_at", "source")


def parse_overrides(text: str) -> tuple[SessionOverride, ...]:
    """The overrides of a CSV with the header ``calendar,session,kind,time,declared_at,source``; # starts a comment line.

    ``time`` is local: HH:MM for early_close and late_open, nothing for closed, nothing (regular hours) or HH:MM-HH:MM for open.
    ``declared_at`` is an ISO instant with its offset. InvalidInputError names each bad line, its value and what was expected.
    """
    lines = [
        (n, line) for n, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1) if line.strip() and line.lstrip()[0] != "#"
    ]
    header = tuple(cell.strip() for cell in next(csv.reader(line for _, line in lines), []))
    if header != OVERRIDE_COLUMNS:
        raise InvalidInputError(
            f"calendar overrides begin with {','.join(header)!r}: expected the header {','.join(OVERRIDE_COLUMNS)}"
        )
    overrides: dict[SessionOverride, int] = {}
    problems: list[str] = []
    for number, line in lines[1:]:
        try:
            override = _parse_line(number, next(csv.reader([line])))
        except InvalidInputError as problem:
            problems.append(f"line {number}: {problem}")
            continue
        if override in overrides:
            problems.append(f"line {number}: says the same as line {overrides[override]}, expected each fact once")
        overrides.setdefault(override, number)
    if problems:
        raise InvalidInputError("calendar overrides: " + "; ".join(problems))
    return tuple(overrides)


def _parse_line(number: int, cells: Sequence[str]) -> SessionOverride:
    if len(cells) != len(OVERRIDE_COLUMNS):
        raise InvalidInputError(f"{len(cells)} values: expected {len(OVERRIDE_COLUMNS)}, {','.join(OVERRIDE_COLUMNS)}")
    calendar, session, kind, hours, declared_at, source = (cell.strip() for cell in cells)
    if not source:
        raise InvalidInputError("empty source: expected where the declaration was made, such as a URL")
    parsed_kind = _parsed(OverrideKind, kind, "kind", f"one of {', '.join(OverrideKind)}")
    opens, closes = _parse_hours(parsed_kind, hours)
    return SessionOverride(
        calendar=_canonical(calendar),
        session=_parsed(date.fromisoformat, session, "session", "a date such as 2025-01-09"),
        kind=parsed_kind,
        declared_at=_parsed(_aware_instant, declared_at, "declared_at", "an instant with its offset such as 2024-12-30T21:00:00Z"),
        source=source,
        opens=opens,
        closes=closes,
        line=number,
    )


def _parsed(parse: Callable[[str], Parsed], text: str, column: str, expected: str) -> Parsed:
    try:
        return parse(text)
    except ValueError:
        raise InvalidInputError(f"{column} {text!r}: expected {expected}") from None


def _aware_instant(text: str) -> datetime:
    instant = datetime.fromisoformat(text)
    if instant.tzinfo is None:
        raise ValueError(text)
    return instant.astimezone(UTC)


def _local_time(text: str) -> time:
    return datetime.strptime(text, "%H:%M").time()  # noqa: DTZ007 - a wall-clock time; its zone is the calendar's


def _parse_hours(kind: OverrideKind, text: str) -> tuple[time | None, time | None]:
    match kind:
        case OverrideKind.CLOSED:
            if text:
                raise InvalidInputError(f"time {text!r}: expected nothing, a closed session has none")
            return None, None
        case OverrideKind.EARLY_CLOSE:
            return None, _parsed(_local_time, text, "time", "the local time of the close, HH:MM")
        case OverrideKind.LATE_OPEN:
            return _parsed(_local_time, text, "time", "the local time of the open, HH:MM"), None
        case OverrideKind.OPEN:
            if not text:
                return None, None
            opens, _, closes = text.partition("-")
            expected = "nothing for regular hours, or HH:MM-HH:MM"
            return _parsed(_local_time, opens, "time", expected), _parsed(_local_time, closes, "time", expected)


# --- building --------------------------------------------------------------------------------------------------------------


def trading_calendar(
    name: str, *, overrides: Sequence[SessionOverride] = (), known_at: datetime | None = None, until: date | None = None
) -> TradingCalendar:
    """The calendar called ``name`` (XNYS, XHKG, "24/7" …) with the overrides declared by ``known_at`` (None: all of them).

    An override declared later than ``known_at`` is also taken back out of what the library says with hindsight: as known before
    2024-12-30, XNYS still expects 2025-01-09. ``until`` is the last date to cover (default: the end of next year), less where
    the library knows less. Calendars are cached: asking again, for the same knowledge, gives the same object at once.
    """
    if known_at is not None and known_at.tzinfo is None:
        raise InvalidInputError(f"known_at {known_at.isoformat()} has no time zone: expected an aware instant")
    canonical = _canonical(name)
    mine = [o for o in overrides if _canonical(o.calendar) == canonical]
    declared = tuple(o for o in mine if known_at is None or o.declared_at <= known_at)
    undeclared = tuple(o for o in mine if known_at is not None and o.declared_at > known_at)
    return _calendar(canonical, until or _end_of_next_year(), declared, undeclared)


def _end_of_next_year() -> date:
    # The only clock in domain/: how far ahead to look is no part of any answer, and a date fixed in the code would end one day.
    # A whole year, so that processes agree and a long-lived one builds anew once a year.
    return date(datetime.now(UTC).year + 1, 12, 31)


@lru_cache(maxsize=256)
def _canonical(name: str) -> str:
    """The library's name for ``name``, which may be an alias of it (NASDAQ)."""
    import exchange_calendars  # noqa: PLC0415 - half a second with pandas: only who needs a calendar pays

    known = exchange_calendars.get_calendar_names(include_aliases=True)
    if name not in known:
        common = ", ".join(sorted(set(CALENDARS.values())))
        raise InvalidInputError(f"unknown calendar {name!r}: expected one of {common}, or another of exchange_calendars")
    return str(exchange_calendars.resolve_alias(name))


@dataclass(frozen=True, slots=True)
class _Hours:
    """The instants of one session; the break is None where it trades through."""

    opens_at: int
    closes_at: int
    pause: tuple[int, int] | None = None

    def between(self, opens_at: int, closes_at: int) -> _Hours:
        """These hours with another open and close; of the break remains what lies between, and it is never at an end."""
        if self.pause is None or closes_at <= self.pause[0] or opens_at >= self.pause[1]:
            return _Hours(opens_at, closes_at)
        pause_starts, pause_ends = self.pause
        if opens_at >= pause_starts:
            return _Hours(pause_ends, closes_at)
        if closes_at <= pause_ends:
            return _Hours(opens_at, pause_starts)
        return _Hours(opens_at, closes_at, self.pause)


@dataclass(frozen=True, slots=True, eq=False)
class _Library:
    """What exchange_calendars says of one calendar, as columns; a break of -1 is none."""

    source: Any
    covered_from: date
    covered_until: date
    days: Int32s
    opens: Int64s
    pause_starts: Int64s
    pause_ends: Int64s
    closes: Int64s

    @property
    def timezone(self) -> str:
        return str(self.source.tz)

    def hours(self, session: date) -> _Hours | None:
        """The hours of ``session``, None where there is none."""
        place = int(self.days.searchsorted(np.int32(day_number(session))))
        if place == len(self.days) or self.days[place] != day_number(session):
            return None
        pause = None if self.pause_starts[place] < 0 else (int(self.pause_starts[place]), int(self.pause_ends[place]))
        return _Hours(int(self.opens[place]), int(self.closes[place]), pause)

    def regular_hours(self, session: date) -> _Hours:
        """The hours that ``session`` has, or would have, when nothing special happens."""
        opens_at, closes_at = (
            self.instant(session, _in_force(times, session), offset)
            for times, offset in (
                (self.source.open_times, self.source.open_offset),
                (self.source.close_times, self.source.close_offset),
            )
        )
        if not self.source.break_start_times:
            return _Hours(opens_at, closes_at)
        pause_starts, pause_ends = (
            self.instant(session, _in_force(times, session))
            for times in (self.source.break_start_times, self.source.break_end_times)
        )
        return _Hours(opens_at, closes_at, (pause_starts, pause_ends))

    def trades_on_weekday_of(self, session: date) -> bool:
        return bool(self.source.weekmask[session.weekday()] == "1")

    def instant(self, session: date, local: time, day_offset: int = 0) -> int:
        at = datetime.combine(session + timedelta(days=day_offset), local, tzinfo=ZoneInfo(self.timezone))
        return int(at.timestamp())


def _in_force(times: Iterable[tuple[Any, time]], session: date) -> time:
    """Of (from when, local time) in order, the time that holds on ``session``."""
    return [local for start, local in times if start is None or start.date() <= session][-1]


_building = Lock()


@lru_cache(maxsize=32)
def _library(name: str, until: date) -> _Library:
    import exchange_calendars  # noqa: PLC0415 - see _canonical

    # exchange_calendars 4.13 still reads Series.values, which pandas 3.1 deprecates: not news for our users. One at a time: the
    # filters of `warnings` belong to the whole process.
    with _building, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            source, covered_from, covered_until = _covering(exchange_calendars, name, until)
        except (ValueError, NotImplementedError) as failure:  # XTAE and ASEX of exchange_calendars 4.13 with pandas 3.1
            raise InvalidInputError(
                f"calendar {name} is known and cannot be built: {str(failure)[:80]} …; expected another"
            ) from failure
        schedule = source.schedule
        days = schedule.index.to_numpy("datetime64[D]").astype(np.int32)
        opens, pause_starts, pause_ends, closes = (
            schedule[column].dt.tz_convert(None).to_numpy("datetime64[s]")
            for column in ("open", "break_start", "break_end", "close")
        )
    return _Library(
        source=source,
        covered_from=covered_from,
        covered_until=covered_until,
        days=days,
        opens=opens.astype(np.int64),
        pause_starts=np.where(np.isnat(pause_starts), -1, pause_starts.astype(np.int64)),
        pause_ends=np.where(np.isnat(pause_ends), -1, pause_ends.astype(np.int64)),
        closes=closes.astype(np.int64),
    )


def _covering(exchange_calendars: Any, name: str, until: date) -> tuple[Any, date, date]:  # noqa: ANN401 - an untyped library
    """The library's calendar, and the first and last date it covers: ours where it can, else its own bounds."""
    try:
        return exchange_calendars.get_calendar(name, start=FIRST_DATE, end=until), FIRST_DATE, until
    except ValueError:  # it knows less than we asked for, and its bounds can only be asked of a calendar that exists
        bounds = type(exchange_calendars.get_calendar(name))
    earliest, latest = bounds.bound_min(), bounds.bound_max()
    covered_from = FIRST_DATE if earliest is None else max(FIRST_DATE, earliest.date())
    covered_until = until if latest is None else min(until, latest.date())
    return exchange_calendars.get_calendar(name, start=covered_from, end=covered_until), covered_from, covered_until


# A calendar takes some 4 MB, and a few milliseconds to build again from its library.
@lru_cache(maxsize=32)
def _calendar(
    name: str, until: date, declared: tuple[SessionOverride, ...], undeclared: tuple[SessionOverride, ...]
) -> TradingCalendar:
    library = _library(name, until)
    changed = dict(_changed_sessions(library, declared, undeclared))
    kept = np.isin(library.days, [day_number(session) for session in changed], invert=True)
    extra = [(day_number(session), hours) for session, hours in changed.items() if hours is not None]
    pauses = [hours.pause or (-1, -1) for _, hours in extra]
    days = np.concatenate((library.days[kept], np.array([day for day, _ in extra], np.int32)))
    opens = np.concatenate((library.opens[kept], np.array([hours.opens_at for _, hours in extra], np.int64)))
    closes = np.concatenate((library.closes[kept], np.array([hours.closes_at for _, hours in extra], np.int64)))
    pause_starts = np.concatenate((library.pause_starts[kept], np.array([starts for starts, _ in pauses], np.int64)))
    pause_ends = np.concatenate((library.pause_ends[kept], np.array([ends for _, ends in pauses], np.int64)))
    order = np.argsort(days)
    return _assembled(name, library, days[order], opens[order], closes[order], pause_starts[order], pause_ends[order])


def _assembled(
    name: str, library: _Library, days: Int32s, opens: Int64s, closes: Int64s, pause_starts: Int64s, pause_ends: Int64s
) -> TradingCalendar:
    paused = pause_starts >= 0
    first_segment = np.concatenate(([0], np.cumsum(1 + paused)))
    segment_session = np.repeat(np.arange(len(days)), 1 + paused)
    is_first = np.concatenate(([True], segment_session[1:] != segment_session[:-1]))
    is_last = np.concatenate((is_first[1:], [True]))
    starts = np.where(is_first, opens[segment_session], pause_ends[segment_session])
    ends = np.where(is_last, closes[segment_session], pause_starts[segment_session])
    edges = np.column_stack((starts, ends)).ravel()
    if (np.diff(edges) < 0).any():
        raise InvalidInputError(f"calendar {name}: two sessions overlap; look at its overrides")
    intraday = [interval for interval in Interval if not interval.is_daily]
    columns = (days, opens, closes, starts, ends, days[segment_session], first_segment, edges)
    for column in columns:
        column.setflags(write=False)
    return TradingCalendar(
        name,
        library.timezone,
        library.covered_from,
        library.covered_until,
        *columns,
        _grids=MappingProxyType({interval: _grid(interval.seconds, starts, ends, first_segment) for interval in intraday}),
    )


def _grid(step: int, starts: Int64s, ends: Int64s, first_segment: Int64s) -> _Grid:
    bars = -((starts - ends) // step)
    before = np.concatenate(([0], np.cumsum(bars)))
    slot_base = before[:-1] - np.repeat(before[first_segment[:-1]], np.diff(first_segment))
    return _Grid(step, before, slot_base)


# --- overrides over the library --------------------------------------------------------------------------------------------


def _changed_sessions(
    library: _Library, declared: Iterable[SessionOverride], undeclared: Iterable[SessionOverride]
) -> Iterator[tuple[date, _Hours | None]]:
    """Each session that an override speaks of, with its hours, or None where it does not take place."""
    known, unknown = set(declared), set(undeclared)
    order = list(OverrideKind)
    in_order = sorted(known | unknown, key=lambda o: (o.session, o.declared_at, order.index(o.kind)))
    for session, group in groupby(in_order, key=lambda o: o.session):
        if not library.covered_from <= session <= library.covered_until:
            continue  # nobody can ask for it
        lines = list(group)
        hours = library.hours(session)
        for override in reversed([o for o in lines if o in unknown]):
            hours = _without(override, hours, library)
        for override in [o for o in lines if o in known]:
            hours = _with(override, hours, library)
        yield session, hours


def _without(override: SessionOverride, hours: _Hours | None, library: _Library) -> _Hours | None:
    """The session as it stood before ``override`` was declared, where the library may know of it already."""
    regular = library.regular_hours(override.session)
    if override.kind is OverrideKind.OPEN:
        return None
    if override.kind is OverrideKind.CLOSED:
        return hours or (regular if library.trades_on_weekday_of(override.session) else None)
    if hours is None:
        return None
    if override.kind is OverrideKind.EARLY_CLOSE:
        return regular.between(hours.opens_at, regular.closes_at)
    return regular.between(regular.opens_at, hours.closes_at)


def _with(override: SessionOverride, hours: _Hours | None, library: _Library) -> _Hours | None:
    """The session as ``override`` declares it. InvalidInputError where that cannot be meant."""
    regular = library.regular_hours(override.session)
    if override.kind is OverrideKind.CLOSED:
        return None
    if override.kind is OverrideKind.OPEN:
        return regular if override.opens is None or override.closes is None else _extra_hours(override, regular, library)
    if hours is None:
        raise InvalidInputError(f"{override}: expected a session, and there is none that day; declare it open first")
    if override.closes is not None:
        closes_at = library.instant(override.session, override.closes, library.source.close_offset)
        # Of a market that closes at or after midnight, the time may be one of the evening before.
        closes_at -= DAY if closes_at >= regular.closes_at else 0
        if hours.opens_at < closes_at:
            return regular.between(hours.opens_at, closes_at)
    if override.opens is not None:
        opens_at = library.instant(override.session, override.opens, library.source.open_offset)
        opens_at += DAY if opens_at <= regular.opens_at else 0
        if opens_at < hours.closes_at:
            return regular.between(opens_at, hours.closes_at)
    raise InvalidInputError(
        f"{override} at {override.opens or override.closes}: expected a local time within the regular hours of {library.timezone}, "
        f"{_clock(regular.opens_at, library)} to {_clock(regular.closes_at, library)}"
    )


def _extra_hours(override: SessionOverride, regular: _Hours, library: _Library) -> _Hours:
    if override.opens is None or override.closes is None or override.closes <= override.opens:
        raise InvalidInputError(f"{override}: {override.opens}-{override.closes}: expected hours that end after they begin")
    return regular.between(library.instant(override.session, override.opens), library.instant(override.session, override.closes))


def _clock(at: int, library: _Library) -> str:
    return datetime.fromtimestamp(at, ZoneInfo(library.timezone)).strftime("%H:%M")
