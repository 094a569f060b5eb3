"""FRED and ALFRED, simulated: economic series with their vintages, from macro/<SERIES>.csv. Formats: PROVIDERS.md §3.

The virtual clock decides what has been published: a value is there from its ``realtime_start`` on, and that it will be revised is
not known before it is.
"""

from __future__ import annotations

import csv
import gzip
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl
from zoneinfo import ZoneInfo

from market_data_pipeline.domain.capabilities import RateLimit
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.simulator.vendor import FREE, PREMIUM, Call, RecordsAnswer, Reply, Vendor, json_reply

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from market_data_pipeline.simulator.vendor import Answer, Received, Scene

NAME = "fred"
FOLDER = "macro"
DESCRIPTIONS = "series.csv"
ST_LOUIS = ZoneInfo("America/Chicago")
FIRST, LAST = date(1776, 7, 4), date(9999, 12, 31)
DEFAULT_OBSERVATION_START = "1600-01-01"
VINTAGES_PER_REQUEST = 2_000
ONE_DAY = timedelta(days=1)
LIMITS = (RateLimit(2, 1.0), RateLimit(120, 60.0))

_KEY = re.compile(r"[0-9a-z]{32}", re.ASCII)
_OUR_KEYS = "simulatedfred"
_SERIES = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*", re.ASCII)
_WHOLE = re.compile(r"\d{1,9}", re.ASCII)
_READ_MORE = "Read https://fred.stlouisfed.org/docs/api/api_key.html for more information."
_FREQUENCIES = {"D": "Daily", "W": "Weekly", "BW": "Biweekly", "M": "Monthly", "Q": "Quarterly", "SA": "Semiannual", "A": "Annual"}
_DAYS_BETWEEN = ((5, "D"), (10, "W"), (20, "BW"), (45, "M"), (120, "Q"), (270, "SA"))

_WORDS = {
    423: "Locked",
    429: "Too Many Requests.  Exceeded Rate Limit",
    500: "Internal Server Error",
}


def refuse(status: int, detail: str) -> Reply:
    """``{"error_code": …, "error_message": …}``. FRED knows no 401 and no 403: what is wrong with a key is a 400."""
    if status in {401, 402, 403}:
        return refuse(400, f"The value for variable api_key is not registered.  {_READ_MORE}")
    if status == 404:
        return refuse(400, "The series does not exist.")
    message = f"Bad Request.  {detail}" if status == 400 else detail or _WORDS.get(status, "Error")
    return json_reply(status, {"error_code": status, "error_message": message})


def key_of(plan: str) -> str:
    """A key as FRED makes them, of an account here: 32 lower-case letters and digits. Other ends are other accounts."""
    return f"{_OUR_KEYS}{plan}key".ljust(32, "0")


# --- what there is -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One value and the days between which it was the published one. ``value`` as sent, "." for none."""

    observed_on: date
    value: str
    start: date
    end: date


@dataclass(frozen=True, slots=True)
class Series:
    """A file. ``has_vintages`` False: its values have no realtime dates, FRED has them and ALFRED does not."""

    name: str
    rows: Sequence[Row]
    has_vintages: bool

    def vintages(self, today: date) -> list[date]:
        """The days on which something was published, up to today."""
        taken_back = (row.end + ONE_DAY for row in self.rows if row.end < today)
        return sorted({day for day in (*(row.start for row in self.rows), *taken_back) if day <= today})

    def known(self, today: date) -> list[Row]:
        """What has been published by today; the end of a value is told once it has come."""
        return [
            row if row.end < today else Row(row.observed_on, row.value, row.start, LAST) for row in self.rows if row.start <= today
        ]


def read_series(directory: Path, name: str) -> Series | None:
    """The series in macro/<name>.csv[.gz]: date,value[,realtime_start,realtime_end]. None where there is no such file."""
    candidates = (directory / FOLDER / f"{name}{ending}" for ending in (".csv", ".csv.gz"))
    path = next((path for path in candidates if path.name != DESCRIPTIONS and path.exists()), None)
    if path is None:
        return None
    written = path.stat()
    return _read(path, name, (written.st_mtime_ns, written.st_size))


@lru_cache(maxsize=64)
def _read(path: Path, name: str, _written: tuple[int, int]) -> Series:
    rows = []
    has_vintages = False
    for number, cells in enumerate(_lines(path), 2):
        try:
            start, end = cells.get("realtime_start") or "", cells.get("realtime_end") or ""
            has_vintages = has_vintages or bool(start)
            row = Row(
                date.fromisoformat(cells["date"]),
                cells["value"] or ".",
                date.fromisoformat(start) if start else FIRST,
                date.fromisoformat(end) if end else LAST,
            )
        except (KeyError, TypeError, ValueError) as broken:
            raise InvalidInputError(f"{path}:{number}: {broken}: expected date,value,realtime_start,realtime_end") from None
        rows.append(row)
    return Series(name, sorted(rows, key=lambda r: (r.observed_on, r.start)), has_vintages)


def _lines(path: Path) -> list[dict[str, str]]:
    body = path.read_bytes()
    text = (gzip.decompress(body) if path.suffix == ".gz" else body).decode("utf-8")
    return list(csv.DictReader(text.splitlines()))


def _described(directory: Path, name: str) -> dict[str, str]:
    path = directory / FOLDER / DESCRIPTIONS
    return next((line for line in _lines(path) if line["series"] == name), {}) if path.exists() else {}


# --- what is asked -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Question:
    """The query of one request. ``realtime`` None: today's values."""

    series: str
    observed: tuple[date | None, date | None] = (None, None)
    realtime: tuple[date, date] | None = None
    limit: int = 100_000
    offset: int = 0
    is_descending: bool = False


def _call(received: Received, *, longest: int) -> Call | Reply:
    """The call of a registered key, or the refusal of what is wrong with it, in FRED's order: the key first."""
    given = dict(parse_qsl(received.query, keep_blank_values=True))
    key = given.get("api_key", "")
    if not key:
        return refuse(400, f"Variable api_key is not set.  {_READ_MORE}")
    if not _KEY.fullmatch(key):
        return refuse(400, f"The value for variable api_key is not a 32 character alpha-numeric lower-case string.  {_READ_MORE}")
    if not key.startswith(_OUR_KEYS):
        return refuse(400, f"The value for variable api_key is not registered.  {_READ_MORE}")
    if given.get("file_type") != "json":
        return refuse(400, "This simulator speaks JSON alone: ask with file_type=json.")
    question = _question(given, longest=longest)
    if isinstance(question, Reply):
        return question
    first, last = question.observed
    return Call(
        capability="macro",
        symbols=(question.series,),
        start=None if first is None else _epoch(first),
        end=None if last is None else _epoch(last + ONE_DAY),
        key=key,
        plan=PREMIUM if PREMIUM in key else FREE,
        page=str(question.offset) if question.offset else "",
        asked=question,
    )


def _question(given: Mapping[str, str], *, longest: int) -> Question | Reply:
    series = given.get("series_id", "")
    if not _SERIES.fullmatch(series):
        return refuse(400, "The value for variable series_id is not valid." if series else "Variable series_id is not set.")
    days: dict[str, date | None] = {}
    for name in ("observation_start", "observation_end", "realtime_start", "realtime_end"):
        text = given.get(name)
        try:
            days[name] = None if text is None else date.fromisoformat(text)
        except ValueError:
            return refuse(400, f"Variable {name} is not a date of the form YYYY-MM-DD.")
    numbers = {}
    for name, default in (("limit", str(longest)), ("offset", "0")):
        text = given.get(name, default)
        if not _WHOLE.fullmatch(text) or (name == "limit" and not 1 <= int(text) <= longest):
            return refuse(400, f"Variable {name} is not between {1 if name == 'limit' else 0} and {longest}.")
        numbers[name] = int(text)
    start, end = days["realtime_start"], days["realtime_end"]
    if start is not None and end is not None and start > end:
        return refuse(400, "Variable realtime_start can not be after variable realtime_end.")
    return Question(
        series=series,
        observed=(days["observation_start"], days["observation_end"]),
        realtime=None if start is None and end is None else (start or FIRST, end or LAST),
        limit=numbers["limit"],
        offset=numbers["offset"],
        is_descending=given.get("sort_order") == "desc",
    )


def _epoch(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


def _today(scene: Scene) -> date:
    return datetime.fromtimestamp(scene.now, ST_LOUIS).date()


def _series_asked(call: Call, scene: Scene) -> tuple[Question, Series, date] | Reply:
    question: Question = call.asked
    today = _today(scene)
    series = read_series(scene.market.directory, question.series)
    if series is None or not series.known(today):
        return refuse(400, "The series does not exist.")
    if not series.has_vintages and question.realtime not in {None, (today, today)}:
        return refuse(400, "The series does not exist in ALFRED but may exist in FRED.")
    return question, series, today


# --- what is answered --------------------------------------------------------------------------------------------------


class ObservationsEndpoint:
    """/fred/series/observations: the values of one series, as they were published in a window of days."""

    def parse(self, received: Received) -> Call | Reply | None:
        """The observations asked for."""
        return _call(received, longest=100_000) if received.path == "/fred/series/observations" else None

    def answer(self, call: Call, scene: Scene) -> Answer | Reply:
        """One page. 400 where more than 2,000 vintage dates lie in the window."""
        asked = _series_asked(call, scene)
        if isinstance(asked, Reply):
            return asked
        question, series, today = asked
        start, end = question.realtime or (today, today)
        inside = sum(start <= day <= end for day in series.vintages(today))
        if inside > VINTAGES_PER_REQUEST:
            return refuse(
                400,
                f"There are {inside} vintage dates in the specified real-time period: {start} to {end}.  "
                f"This exceeds the maximum number of vintage dates allowed for this file type ({VINTAGES_PER_REQUEST}).",
            )
        first, last = question.observed
        known = series.known(today)
        # As recorded: asked for monthly values from 30 June, FRED begins with June's.
        since = None if first is None else _period_begin(first, _frequency(known))
        records = [
            {
                "realtime_start": max(row.start, start).isoformat(),
                "realtime_end": min(row.end, end).isoformat(),
                "date": row.observed_on.isoformat(),
                "value": row.value,
            }
            for row in known
            if row.start <= end
            and row.end >= start
            and (since is None or since <= row.observed_on)
            and (last is None or row.observed_on <= last)
        ]
        if question.is_descending:
            records.reverse()
        page = {
            "realtime_start": start.isoformat(),
            "realtime_end": end.isoformat(),
            "observation_start": DEFAULT_OBSERVATION_START if first is None else first.isoformat(),
            "observation_end": LAST.isoformat() if last is None else last.isoformat(),
            "units": "lin",
            "output_type": 1,
            "file_type": "json",
            "order_by": "observation_date",
            "sort_order": "desc" if question.is_descending else "asc",
            "count": len(records),
            "offset": question.offset,
            "limit": question.limit,
        }

        def write(kept: Sequence[Mapping[str, Any]]) -> Reply:
            return json_reply(200, {**page, "observations": kept})

        return RecordsAnswer(records[question.offset : question.offset + question.limit], write, symbol=question.series)


class VintageDatesEndpoint:
    """/fred/series/vintagedates: the days on which values of one series were published or revised."""

    def parse(self, received: Received) -> Call | Reply | None:
        """The dates asked for."""
        return _call(received, longest=10_000) if received.path == "/fred/series/vintagedates" else None

    def answer(self, call: Call, scene: Scene) -> Answer | Reply:
        """One page of dates."""
        asked = _series_asked(call, scene)
        if isinstance(asked, Reply):
            return asked
        question, series, today = asked
        start, end = question.realtime or (FIRST, LAST)
        dates = [day.isoformat() for day in series.vintages(today) if start <= day <= end]
        page = {
            "realtime_start": start.isoformat(),
            "realtime_end": end.isoformat(),
            "order_by": "vintage_date",
            "sort_order": "asc",
            "count": len(dates),
            "offset": question.offset,
            "limit": question.limit,
            "vintage_dates": dates[question.offset : question.offset + question.limit],
        }
        return json_reply(200, page)


class SeriesEndpoint:
    """/fred/series: what a series is."""

    def parse(self, received: Received) -> Call | Reply | None:
        """The series asked for."""
        return _call(received, longest=1_000) if received.path == "/fred/series" else None

    def answer(self, call: Call, scene: Scene) -> Answer | Reply:
        """Its title, units and frequency: from macro/series.csv, else from what its file looks like."""
        asked = _series_asked(call, scene)
        if isinstance(asked, Reply):
            return asked
        question, series, today = asked
        start, end = question.realtime or (today, today)
        known = series.known(today)
        told = _described(scene.market.directory, series.name)
        frequency = told.get("frequency") or _frequency(known)
        units = told.get("units") or "Index"
        updated = max((row.start for row in known), default=today)
        moment = datetime(updated.year, updated.month, updated.day, 7, 31, 4, tzinfo=ST_LOUIS)
        window = {"realtime_start": start.isoformat(), "realtime_end": end.isoformat()}
        record = {
            "id": series.name,
            **window,
            "title": told.get("title") or series.name,
            "observation_start": known[0].observed_on.isoformat(),
            "observation_end": known[-1].observed_on.isoformat(),
            "frequency": _FREQUENCIES[frequency],
            "frequency_short": frequency,
            "units": units,
            "units_short": units,
            "seasonal_adjustment": "Not Seasonally Adjusted",
            "seasonal_adjustment_short": "NSA",
            "last_updated": moment.strftime("%Y-%m-%d %H:%M:%S%z")[:-2],
            "popularity": 50,
            "notes": told.get("notes") or "Simulated.",
        }
        return RecordsAnswer([record], lambda kept: json_reply(200, {**window, "seriess": kept}), symbol=series.name)


def _frequency(rows: Sequence[Row]) -> str:
    days = sorted({row.observed_on for row in rows})
    between = sorted((later - earlier).days for earlier, later in pairwise(days))
    typical = between[len(between) // 2] if between else 30
    return next((name for most, name in _DAYS_BETWEEN if typical <= most), "A")


def _period_begin(day: date, frequency: str) -> date:
    """The first day of the month, quarter, half or whole year that ``day`` lies in; of other frequencies ``day`` itself."""
    months = {"M": 1, "Q": 3, "SA": 6, "A": 12}.get(frequency)
    return day if months is None else date(day.year, (day.month - 1) // months * months + 1, 1)


def _variables(base_url: str, plan: str) -> Mapping[str, str]:
    return {"MDP_FRED_BASE_URL": base_url, "MDP_FRED_KEY": key_of(plan)}


FRED = Vendor(
    name=NAME,
    prefix="/fred",
    endpoints=(ObservationsEndpoint(), VintageDatesEndpoint(), SeriesEndpoint()),
    variables=_variables,
    refuse=refuse,
    limits={FREE: LIMITS, PREMIUM: LIMITS},
)
