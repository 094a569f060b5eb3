"""What users may write on the command line: symbols, intervals, sessions and instants. Parsing only: no clock, no database."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.errors import CalendarHorizonError, InvalidInputError
from market_data_pipeline.domain.macro import valid_series
from market_data_pipeline.domain.universe import Tier, valid_symbol

if TYPE_CHECKING:
    from collections.abc import Callable

    from market_data_pipeline.domain.sessions import TradingCalendar

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_INSTANT = re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}.*", re.ASCII)


def parse_session(text: str) -> date:
    """The session called ``text``, YYYY-MM-DD; InvalidInputError for an instant or a date that does not exist."""
    if _INSTANT.fullmatch(text):
        raise InvalidInputError(f"{text!r} is an instant: expected a session, a date like 2024-11-29")
    if not _DATE.fullmatch(text):
        raise InvalidInputError(f"{text!r} is not a session: expected a date like 2024-11-29")
    try:
        return date.fromisoformat(text)
    except ValueError as wrong:
        raise InvalidInputError(f"{text!r} is not a date of the calendar ({wrong}): expected one like 2024-11-29") from None


def parse_instant(text: str) -> datetime:
    """The instant called ``text``, in UTC. One without a time zone is refused: it means another moment on each machine."""
    if _DATE.fullmatch(text):
        raise InvalidInputError(f"{text!r} is a date: expected an instant like {text}T14:30Z")
    try:
        instant = datetime.fromisoformat(text)
    except ValueError as wrong:
        raise InvalidInputError(f"{text!r} is not an instant ({wrong}): expected ISO 8601 like 2024-11-29T14:30Z") from None
    if instant.tzinfo is None:
        raise InvalidInputError(f"{text!r} has no time zone: add Z or an offset, like {text}Z")
    return instant.astimezone(UTC)


def parse_moment(text: str) -> date | datetime:
    """A session when ``text`` is a plain date, an instant in UTC otherwise."""
    return parse_session(text) if _DATE.fullmatch(text) else parse_instant(text)


def parse_symbols(text: str) -> tuple[str, ...]:
    """The symbols of a comma-separated list, in its order, each once; every one that cannot be a symbol is named."""
    names = [name.strip() for name in text.split(",")]
    refused = []
    for name in names:
        try:
            valid_symbol(name)
        except InvalidInputError as wrong:
            refused.append(str(wrong))
    if refused:
        raise InvalidInputError("; ".join(refused))
    return tuple(dict.fromkeys(names))


Parsed = TypeVar("Parsed")


class _Text(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """A click type around a parser of ours: its refusal becomes click's, which names the option."""

    def __init__(self, name: str, parse: Callable[[str], Parsed]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401 - click's signature
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except InvalidInputError as wrong:
            self.fail(str(wrong), param, ctx)


SYMBOL = _Text("symbol", valid_symbol)
SYMBOLS = _Text("A,B,…", parse_symbols)
SERIES = _Text("series", valid_series)
INTERVAL = _Text("interval", Interval.parse)
SESSION = _Text("YYYY-MM-DD", parse_session)
INSTANT = _Text("instant", parse_instant)
MOMENT = _Text("date|instant", parse_moment)

symbols_option = click.option("--symbols", type=SYMBOLS, help="Symbols of the universe, separated by commas.")
tier_option = click.option("--tier", type=click.Choice([str(tier) for tier in Tier]), help="Every symbol of this tier.")
intervals_option = click.option(
    "--interval", "intervals", type=INTERVAL, multiple=True, help=f"{', '.join(Interval)}; may be repeated."
)


def in_order(start: date | datetime | None, end: date | datetime | None) -> None:
    """InvalidInputError when ``start`` lies after ``end``. Sessions may be equal (one day), instants may not (nothing)."""
    if start is None or end is None or isinstance(start, datetime) is not isinstance(end, datetime):
        return
    if start > end:
        raise InvalidInputError(f"--start {written(start)} is after --end {written(end)}: expected start first")
    if isinstance(start, datetime) and start == end:
        raise InvalidInputError(f"--start and --end are both {written(start)}: expected a window that holds something")


def written(moment: date | datetime) -> str:
    """``moment`` as users write it: a date, or an instant ending in Z."""
    return moment.isoformat().replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Window:
    """Bars that opened in [start, end), as the reader takes it: epoch seconds UTC. For 1d, midnights UTC of session dates."""

    start: int
    end: int


def window(start: date | datetime, end: date | datetime, *, interval: Interval, calendar: TradingCalendar) -> Window:
    """What ``start`` and ``end`` mean for one symbol: a date stands for its whole session, an instant for itself.

    The end is inclusive when it is a session and exclusive when it is an instant. Daily bars are named by session, so instants
    are refused for them. InvalidInputError when no session lies in a range of dates.
    """
    in_order(start, end)
    for option, moment in (("--start", start), ("--end", end)):
        if isinstance(moment, datetime) and interval.is_daily:
            raise InvalidInputError(f"{option} {written(moment)}: a 1d bar is named by its session; expected a date")
        if isinstance(moment, datetime) and moment.microsecond:
            raise InvalidInputError(f"{option} {written(moment)} is finer than a second: expected whole seconds")
    first, last = _day_of(start), _day_of(end)
    if not isinstance(start, datetime) and not isinstance(end, datetime):
        sessions = sessions_in(calendar, first, last)
        first, last = sessions[0], sessions[-1]
    found = Window(_start_of(start, first, interval, calendar), _end_of(end, last, interval, calendar))
    if found.start >= found.end:
        raise InvalidInputError(f"--start {written(start)} to --end {written(end)} holds no trading: expected start first")
    return found


def sessions_in(calendar: TradingCalendar, start: date, end: date) -> list[date]:
    """The sessions from ``start`` to ``end``, both included; where there is none, InvalidInputError says when the next is."""
    try:
        sessions = calendar.sessions(start, end)
        if sessions:
            return sessions
        before, after = calendar.previous_session(start), calendar.next_session(end)
    except CalendarHorizonError as beyond:
        # Elsewhere this is an error of ours; on the command line it is a date that cannot be meant.
        raise InvalidInputError(f"{start} to {end}: {beyond}") from None
    nothing = f"{start} is no session of" if start == end else f"from {start} to {end} there is no session of"
    raise InvalidInputError(
        f"{nothing} {calendar.name}, a holiday or weekend: expected a session, and the one before is {before}, the next {after}"
    )


def _day_of(moment: date | datetime) -> date:
    return moment.date() if isinstance(moment, datetime) else moment


def _start_of(moment: date | datetime, session: date, interval: Interval, calendar: TradingCalendar) -> int:
    if isinstance(moment, datetime):
        return int(moment.timestamp())
    if interval.is_daily:
        return _midnight(session)
    if not calendar.is_session(session):
        session = calendar.next_session(session)
    return int(calendar.bounds(session, session).opens_at[0])


def _end_of(moment: date | datetime, session: date, interval: Interval, calendar: TradingCalendar) -> int:
    if isinstance(moment, datetime):
        return int(moment.timestamp())
    if interval.is_daily:
        return _midnight(session) + 86400
    if not calendar.is_session(session):
        session = calendar.previous_session(session)
    return int(calendar.bounds(session, session).closes_at[0])


def _midnight(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
