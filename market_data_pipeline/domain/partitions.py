"""How candles are cut into partitions: the grain, the keys of periods, the boxes that a run takes. Pure; knows no Dagster."""

from __future__ import annotations

import bisect
import json
import zlib
from collections import defaultdict
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta, timezone
from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.errors import ConfigurationError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from market_data_pipeline.domain.sessions import TradingCalendar

PLAN_VERSION = 1
# Dagster's own limit; at 500,000 its pages take a minute (DAGSTER.md §1.2).
MOST_PARTITIONS = 100_000
# Adding a dynamic symbol invalidates Dagster's status cache of every asset, and pages list every symbol (DAGSTER.md §1.3).
MOST_SYMBOLS = 1_500
BUCKET_CHOICES = (64, 32, 16, 8)
# A session is named by its date, and Sydney's begins at 23:00 UTC of the day before. With the day of the easternmost zone a
# period exists before any exchange in it can open. The zone has no daylight saving time.
PERIOD_TIMEZONE = "Etc/GMT-14"
_EASTERNMOST = timezone(timedelta(hours=14))
_SATURDAY = 5


class Grain(StrEnum):
    """How long a period is, finest first. A session is one trading day."""

    SESSION = "session"
    WEEK = "week"
    MONTH = "month"
    QUARTER = "quarter"
    YEAR = "year"

    @classmethod
    def parse(cls, text: str) -> Grain:
        """The grain called ``text``; InvalidInputError names the choices."""
        try:
            return cls(text)
        except ValueError:
            raise InvalidInputError(f"unknown grain {text!r}: expected one of {', '.join(cls)}") from None


class SymbolDimension(StrEnum):
    """What the second dimension of the partitions holds."""

    SYMBOL = "symbol"
    BUCKET = "bucket"


@dataclass(frozen=True, slots=True)
class CalendarHours:
    """What must be known of a calendar without building it: the zone, and the local times at which sessions close (HH:MM).

    ``last_session`` is the last that it knew when the plan was made, None where nobody asked it.
    """

    name: str
    timezone: str
    closes: tuple[str, ...]
    last_session: date | None = field(default=None, compare=False)

    def ends_within(self, days: int, today: date) -> bool:
        """Whether the sessions known end less than ``days`` after ``today``: what is beyond cannot be expected, so not missed."""
        return self.last_session is not None and (self.last_session - today).days < days


def day_in_the_east(now: datetime) -> date:
    """The date that ``now`` has where a day begins first: no session of a later date can have begun."""
    return now.astimezone(_EASTERNMOST).date()


def period_start(day: date, grain: Grain) -> date:
    """The first day of the period that holds ``day``. Weeks begin on Monday."""
    match grain:
        case Grain.SESSION:
            return day
        case Grain.WEEK:
            return day - timedelta(days=day.weekday())
        case Grain.MONTH:
            return day.replace(day=1)
        case Grain.QUARTER:
            return day.replace(month=(day.month - 1) // 3 * 3 + 1, day=1)
        case Grain.YEAR:
            return day.replace(month=1, day=1)


def period_end(start: date, grain: Grain) -> date:
    """The last day of the period that begins on ``start``."""
    if grain is Grain.SESSION:
        return start
    longest = {Grain.WEEK: 7, Grain.MONTH: 31, Grain.QUARTER: 92, Grain.YEAR: 366}[grain]
    if grain is Grain.WEEK:
        return start + timedelta(days=6)
    return period_start(start + timedelta(days=longest), grain) - timedelta(days=1)


@dataclass(frozen=True)
class Periods:
    """The periods of one grain from ``start`` on, each named by the ISO date of its first day.

    Only a session period can be closed: a weekend day where ``closed_weekends``, or one of ``closed_days``. A closed day has no
    key.
    """

    grain: Grain
    start: date
    closed_weekends: bool = False
    closed_days: frozenset[date] = frozenset()

    def is_closed(self, day: date) -> bool:
        """Whether ``day`` has no period: only for sessions, on days when no calendar of the plan trades."""
        if self.grain is not Grain.SESSION:
            return False
        return (self.closed_weekends and day.weekday() >= _SATURDAY) or day in self.closed_days

    def key_of(self, session: date) -> str:
        """The key of the period that holds ``session``; InvalidInputError before the start and on a closed day."""
        first = period_start(session, self.grain)
        if first < period_start(self.start, self.grain):
            raise InvalidInputError(f"{session} is before {self.start}, where the partitions begin (mdp universe load --start)")
        if self.is_closed(session):
            raise InvalidInputError(f"{session} is not a session of any calendar in the plan")
        return first.isoformat()

    def days_of(self, key: str) -> tuple[date, date]:
        """The first and the last day of the period called ``key``, both included."""
        try:
            first = date.fromisoformat(key)
        except ValueError:
            raise InvalidInputError(
                f"{key!r} is not a period: expected the date on which its {self.grain} begins, like 2026-11-16"
            ) from None
        if first != period_start(first, self.grain) or self.is_closed(first) or first < period_start(self.start, self.grain):
            raise InvalidInputError(f"{key!r} is not the key of a {self.grain} in the plan, which begins on {self.start}")
        return first, period_end(first, self.grain)

    def keys(self, first: date, last: date) -> list[str]:
        """The keys of every period with a day from ``first`` to ``last``, in order; nothing before the start."""
        day = period_start(max(first, self.start), self.grain)
        keys = []
        while day <= last:
            if not self.is_closed(day):
                keys.append(day.isoformat())
            day = period_end(day, self.grain) + timedelta(days=1)
        return keys

    def existing(self, now: datetime) -> list[str]:
        """Every key that Dagster knows at ``now``: the finished periods and one more, the running or the next one.

        On a day that is closed, that is the next session's: Dagster's ``end_offset`` counts only windows that are not excluded.
        """
        running = period_start(day_in_the_east(now), self.grain)
        if running < period_start(self.start, self.grain):
            return []
        while self.is_closed(running):
            running += timedelta(days=1)
        return self.keys(self.start, running)


@dataclass(frozen=True, slots=True)
class IntervalPartitions:
    """The grain of one interval, how many partitions that was when it was planned, and why this grain."""

    grain: Grain
    partitions: int
    reason: str


@dataclass(frozen=True)
class PartitionPlan:
    """How every candle asset is partitioned: period x symbol, or period x bucket of symbols.

    ``closed_days`` are the days, weekends left out where ``closed_weekends``, on which none of ``calendars`` trades. Days after
    the calendars' horizon are taken to be open until the next plan: a partition that then holds nothing.
    """

    start: date
    calendars: tuple[CalendarHours, ...]
    intervals: Mapping[Interval, IntervalPartitions]
    dimension: SymbolDimension = SymbolDimension.SYMBOL
    buckets: int = 0
    closed_weekends: bool = True
    closed_days: tuple[date, ...] = ()
    version: int = PLAN_VERSION

    def periods(self, interval: Interval) -> Periods:
        """The periods of ``interval``."""
        return self._periods[self.intervals[interval].grain]

    def periods_of(self, grain: Grain) -> Periods:
        """The periods of ``grain``, whichever intervals have it."""
        return self._periods[grain]

    @cached_property
    def _periods(self) -> Mapping[Grain, Periods]:
        closed = frozenset(self.closed_days)
        return {grain: Periods(grain, self.start, self.closed_weekends, closed) for grain in Grain}

    def column_of(self, symbol: str) -> str:
        """The key in the symbol dimension under which ``symbol`` is found: itself, or its bucket."""
        return symbol if self.dimension is SymbolDimension.SYMBOL else bucket_of(symbol, self.buckets)

    def has_the_partitions_of(self, other: PartitionPlan) -> bool:
        """Whether both plans name the same partitions; counts and reasons may differ."""
        return (
            not changes(self, other)
            and (self.start, self.closed_weekends, self.closed_days) == (other.start, other.closed_weekends, other.closed_days)
            and self.calendars == other.calendars
        )

    @property
    def longest_pause(self) -> timedelta:
        """How far apart two sessions of the plan can be, by the days it knows: four for New York, from a Friday to a Tuesday."""
        last = max(self.closed_days, default=self.start) + timedelta(days=7)
        sessions = self.periods_of(Grain.SESSION).keys(self.start, last)
        days = [date.fromisoformat(key) for key in sessions]
        return max((later - earlier for earlier, later in pairwise(days)), default=timedelta(days=1))

    def bucket_keys(self) -> list[str]:
        """The keys of the symbol dimension where it holds buckets."""
        return [_bucket_key(bucket) for bucket in range(self.buckets)]


def bucket_of(symbol: str, buckets: int) -> str:
    """The bucket that holds ``symbol``: the same in every process and for ever, for a given number of buckets."""
    return _bucket_key(zlib.crc32(symbol.encode()) % buckets)


def _bucket_key(bucket: int) -> str:
    return f"bucket-{bucket:02d}"


def plan_partitions(
    *,
    symbols: int,
    calendars: Sequence[TradingCalendar],
    start: date,
    today: date,
    budget: int,
    chosen: Mapping[Interval, Grain] | None = None,
    keep: PartitionPlan | None = None,
) -> PartitionPlan:
    """The plan for a universe of ``symbols`` symbols that keep ``calendars``, from ``start`` until ``today``.

    Each interval gets the finest grain with symbols x periods within ``budget``; ``chosen`` overrides that for the fetched
    intervals it names, and derived ones follow their source. With ``keep``, the grains and the symbol dimension of the plan in
    use stay where ``chosen`` says nothing (a change renames partitions and is for the operator to ask for), as does a start
    earlier than ``start``; calendars, closed days and counts are brought up to date. InvalidInputError says why a grain is
    refused: more than 100,000 partitions of one asset.
    """
    if start > today:
        raise InvalidInputError(f"the partitions cannot begin on {start}: that is after today, {today}")
    if keep is not None:
        start = min(start, keep.start)
    closed_weekends, closed_days = _closed(calendars, start)
    draft = PartitionPlan(
        start=start,
        calendars=tuple(_hours(calendar, today) for calendar in sorted(calendars, key=lambda c: c.name)),
        intervals={},
        closed_weekends=closed_weekends,
        closed_days=closed_days,
    )
    counts = {grain: len(draft._periods[grain].keys(start, today)) for grain in Grain}  # noqa: SLF001 - our own draft
    dimension, buckets = _dimension(symbols, counts, budget)
    if keep is not None:
        dimension, buckets = keep.dimension, keep.buckets
    columns = symbols if dimension is SymbolDimension.SYMBOL else buckets
    what = "symbols" if dimension is SymbolDimension.SYMBOL else f"buckets of {symbols:,} symbols"
    automatic = _automatic(columns, counts, budget, what)
    grains = dict.fromkeys(Interval, automatic)
    for interval in Interval:
        asked = (chosen or {}).get(interval.source or interval)
        kept = keep.intervals[interval].grain if keep is not None else None
        grain = asked or kept or automatic.grain
        if grain is not automatic.grain:
            verb = "as asked" if asked else "kept as it is"
            grains[interval] = _fixed(grain, columns, counts, what, verb=f"{verb}; the automatic choice is {automatic.grain}")
    return replace(draft, intervals=MappingProxyType(grains), dimension=dimension, buckets=buckets)


def _dimension(symbols: int, counts: Mapping[Grain, int], budget: int) -> tuple[SymbolDimension, int]:
    if symbols <= MOST_SYMBOLS:
        return SymbolDimension.SYMBOL, 0
    fitting = [buckets for buckets in BUCKET_CHOICES if buckets * counts[Grain.SESSION] <= budget]
    return SymbolDimension.BUCKET, fitting[0] if fitting else BUCKET_CHOICES[-1]


def _automatic(columns: int, counts: Mapping[Grain, int], budget: int, what: str) -> IntervalPartitions:
    for grain in Grain:
        partitions = columns * counts[grain]
        if partitions <= min(budget, MOST_PARTITIONS):
            return IntervalPartitions(grain, partitions, _reason(grain, columns, counts, what, f"within {budget:,}"))
    return _fixed(Grain.YEAR, columns, counts, what, verb=f"the coarsest there is, above the budget of {budget:,}")


def _fixed(grain: Grain, columns: int, counts: Mapping[Grain, int], what: str, *, verb: str) -> IntervalPartitions:
    partitions = columns * counts[grain]
    if partitions > MOST_PARTITIONS:
        raise InvalidInputError(
            f"{columns:,} {what} x {counts[grain]:,} {grain}s are {partitions:,} partitions of one asset, more than "
            f"{MOST_PARTITIONS:,}: Dagster's pages would take a minute. Choose a coarser grain or a later start"
        )
    return IntervalPartitions(grain, partitions, _reason(grain, columns, counts, what, verb))


def _reason(grain: Grain, columns: int, counts: Mapping[Grain, int], what: str, verdict: str) -> str:
    text = f"{columns:,} {what} x {counts[grain]:,} {grain}s = {columns * counts[grain]:,} partitions, {verdict}"
    finer = list(Grain)[: list(Grain).index(grain)]
    if not finer:
        return text
    return f"{text}; by {finer[-1]} it would be {columns * counts[finer[-1]]:,}"


def _closed(calendars: Sequence[TradingCalendar], start: date) -> tuple[bool, tuple[date, ...]]:
    if not calendars:
        return True, ()
    known_until = min(calendar.last_session for calendar in calendars)
    # Before a calendar begins, its days are taken to be open: nothing is claimed of what is not known.
    known_from = max(start, *(calendar.first_session for calendar in calendars))
    if known_from > known_until:
        return False, ()
    open_days = {day for calendar in calendars for day in calendar.sessions(known_from, known_until)}
    days = (known_from + timedelta(days=n) for n in range((known_until - known_from).days + 1))
    closed = [day for day in days if day not in open_days]
    # Bombay trades on the Sunday of Diwali: one session at a weekend, and the weekends are listed day by day.
    weekends = known_from == start and not any(day.weekday() >= _SATURDAY for day in open_days)
    return weekends, tuple(day for day in closed if not (weekends and day.weekday() >= _SATURDAY))


def _hours(calendar: TradingCalendar, today: date) -> CalendarHours:
    """The closing times of the last two years and of all that is to come: half days have their own."""
    first = max(calendar.first_session, today - timedelta(days=730))
    closes_at = calendar.bounds(first, calendar.last_session).closes_at.tolist() if first <= calendar.last_session else []
    zone = ZoneInfo(calendar.timezone)
    local = {datetime.fromtimestamp(close, zone).strftime("%H:%M") for close in closes_at}
    return CalendarHours(calendar.name, calendar.timezone, tuple(sorted(local)), calendar.last_session)


def default_plan() -> PartitionPlan:
    """What holds until a universe is loaded: true session partitions from 2021, on New York's weekdays."""
    waiting = IntervalPartitions(Grain.SESSION, 0, "no universe is loaded yet (mdp universe load)")
    new_york = CalendarHours("XNYS", "America/New_York", ("13:00", "16:00"))
    intervals = MappingProxyType(dict.fromkeys(Interval, waiting))
    return PartitionPlan(start=date(2021, 1, 4), calendars=(new_york,), intervals=intervals)


def changes(old: PartitionPlan, new: PartitionPlan) -> list[str]:
    """What ``new`` changes so that partitions get other keys, a sentence each; empty when history stays where it is.

    An earlier start or other closed days only add or remove partitions; a new grain or dimension renames them all, and
    `mdp reconcile` must then report them to Dagster again.
    """
    found = [
        f"candles/{interval}: {old.intervals[interval].grain} becomes {new.intervals[interval].grain}"
        for interval in Interval
        if old.intervals[interval].grain is not new.intervals[interval].grain
    ]
    if (old.dimension, old.buckets) != (new.dimension, new.buckets):
        found.append(f"the symbol dimension: {_dimension_text(old)} becomes {_dimension_text(new)}")
    return found


def _dimension_text(plan: PartitionPlan) -> str:
    return "one key a symbol" if plan.dimension is SymbolDimension.SYMBOL else f"{plan.buckets} buckets"


def plan_as_json(plan: PartitionPlan) -> str:
    """``plan`` as the text of its file."""
    return json.dumps(
        {
            "version": plan.version,
            "start": plan.start.isoformat(),
            "dimension": plan.dimension,
            "buckets": plan.buckets,
            "calendars": [
                {
                    "name": c.name,
                    "timezone": c.timezone,
                    "closes": list(c.closes),
                    "last_session": None if c.last_session is None else c.last_session.isoformat(),
                }
                for c in plan.calendars
            ],
            "closed_weekends": plan.closed_weekends,
            "intervals": {
                interval: {"grain": p.grain, "partitions": p.partitions, "reason": p.reason}
                for interval, p in plan.intervals.items()
            },
            "closed_days": [day.isoformat() for day in plan.closed_days],
        },
        indent=1,
        ensure_ascii=False,
    )


def plan_from_json(text: str, *, source: str) -> PartitionPlan:
    """The plan that ``text`` holds; ConfigurationError names ``source`` and what is wrong with it."""
    try:
        held: dict[str, Any] = json.loads(text)
        if held["version"] != PLAN_VERSION:
            raise ConfigurationError(f"{source} is a partition plan of version {held['version']}: expected {PLAN_VERSION}")
        return PartitionPlan(
            start=date.fromisoformat(held["start"]),
            calendars=tuple(
                CalendarHours(
                    str(c["name"]),
                    str(c["timezone"]),
                    tuple(map(str, c["closes"])),
                    None if c["last_session"] is None else date.fromisoformat(c["last_session"]),
                )
                for c in held["calendars"]
            ),
            intervals=MappingProxyType(
                {
                    interval: IntervalPartitions(Grain(p["grain"]), int(p["partitions"]), str(p["reason"]))
                    for interval in Interval
                    for p in [held["intervals"][interval.value]]
                }
            ),
            dimension=SymbolDimension(held["dimension"]),
            buckets=int(held["buckets"]),
            closed_weekends=bool(held["closed_weekends"]),
            closed_days=tuple(date.fromisoformat(day) for day in held["closed_days"]),
        )
    except (KeyError, TypeError, ValueError) as broken:
        raise ConfigurationError(f"{source} is no partition plan ({broken!r}): write it anew with mdp universe load") from broken


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One partition: a period and a symbol (or bucket)."""

    period: str
    symbol: str

    @property
    def key(self) -> str:
        """Its name in Dagster: the two keys in the alphabetical order of their dimensions."""
        return f"{self.period}|{self.symbol}"

    @classmethod
    def parse(cls, key: str) -> Cell:
        """The cell called ``key``."""
        period, separator, symbol = key.partition("|")
        if not separator or not period or not symbol:
            raise InvalidInputError(f"{key!r} is not a partition: expected period|symbol, like 2026-11-16|AAPL")
        return cls(period, symbol)


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """A rectangle of partitions, from its first to its last in both dimensions, in Dagster's order of each."""

    first: Cell
    last: Cell
    partitions: int


def boxes(needs: Iterable[Cell], *, periods: Sequence[str], symbols: Sequence[str], largest: int | None = None) -> list[Box]:
    """``needs`` as few disjoint boxes that together hold exactly them, each of at most ``largest`` partitions.

    ``periods`` and ``symbols`` are all keys in Dagster's order (dynamic keys in the order they were added): a range of keys
    holds everything between its ends, so only neighbours may share a box. InvalidInputError names a need that is no partition.
    The fewer of two sweeps, along the periods and along the symbols: not always the fewest there are, which is not worth its
    price.
    """
    row = {period: index for index, period in enumerate(periods)}
    column = {symbol: index for index, symbol in enumerate(symbols)}
    points: set[tuple[int, int]] = set()
    for need in needs:
        if need.period not in row or need.symbol not in column:
            raise InvalidInputError(f"{need.key!r} is not a partition")
        points.add((row[need.period], column[need.symbol]))
    by_symbol = _rectangles(points)
    by_period = [((c0, r0), (c1, r1)) for (r0, c0), (r1, c1) in _rectangles({(c, r) for r, c in points})]
    found = [
        Box(Cell(periods[r0], symbols[c0]), Cell(periods[r1], symbols[c1]), (r1 - r0 + 1) * (c1 - c0 + 1))
        for corner in min(by_symbol, by_period, key=len)
        for (r0, c0), (r1, c1) in _pieces(corner, largest)
    ]
    return sorted(found)


Rectangle = tuple[tuple[int, int], tuple[int, int]]


def _rectangles(points: set[tuple[int, int]]) -> list[Rectangle]:
    """Join points into runs along the first coordinate, then equal runs of neighbouring second coordinates into rectangles."""
    lines: dict[int, list[int]] = defaultdict(list)
    for along, across in points:
        lines[across].append(along)
    finished: list[Rectangle] = []
    growing: dict[tuple[int, int], int] = {}
    previous = None
    for across in sorted(lines):
        runs = set(_runs(sorted(lines[across])))
        if previous is None or across != previous + 1:
            finished += [((a, begun), (b, previous or 0)) for (a, b), begun in growing.items()]
            growing = {}
        finished += [((a, begun), (b, across - 1)) for (a, b), begun in growing.items() if (a, b) not in runs]
        growing = {run: growing.get(run, across) for run in runs}
        previous = across
    return finished + [((a, begun), (b, previous or 0)) for (a, b), begun in growing.items()]


def _runs(sorted_numbers: Sequence[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for number in sorted_numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def _pieces(rectangle: Rectangle, largest: int | None) -> list[Rectangle]:
    """``rectangle`` cut across symbols first, so that one symbol's periods, which share requests, stay together."""
    (r0, c0), (r1, c1) = rectangle
    height = r1 - r0 + 1
    if largest is None or height * (c1 - c0 + 1) <= largest:
        return [rectangle]
    tall = min(height, largest)
    wide = max(largest // height, 1)
    return [
        ((r, c), (min(r + tall - 1, r1), min(c + wide - 1, c1))) for c in range(c0, c1 + 1, wide) for r in range(r0, r1 + 1, tall)
    ]


def cells_between(first: Cell, last: Cell, *, periods: Sequence[str], symbols: Sequence[str]) -> list[Cell]:
    """Every cell of the box with these corners, symbol by symbol.

    InvalidInputError where a corner is no partition, or where the range holds nothing because they are the wrong way round.
    """
    for cell in (first, last):
        if cell.period not in periods or cell.symbol not in symbols:
            raise InvalidInputError(f"{cell.key!r} is not a partition")
    p0, p1 = bisect.bisect_left(periods, first.period), bisect.bisect_left(periods, last.period)
    s0, s1 = symbols.index(first.symbol), symbols.index(last.symbol)
    if p0 > p1 or s0 > s1:
        raise InvalidInputError(f"the range {first.key!r}...{last.key!r} is empty: its ends are the wrong way round")
    return [Cell(period, symbol) for symbol in symbols[s0 : s1 + 1] for period in periods[p0 : p1 + 1]]
