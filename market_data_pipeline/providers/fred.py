"""FRED and ALFRED: economic series with every value that was ever published of them. Judging and storing are elsewhere."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import date, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self, TypeVar

from market_data_pipeline.domain.capabilities import HISTORY, MACRO, Access, Capability, RateLimit, Stamp
from market_data_pipeline.domain.errors import (
    EntitlementError,
    PayloadError,
    ProviderError,
    RateLimitedError,
    TransientError,
    UnknownSymbolError,
)
from market_data_pipeline.domain.macro import EARLIEST, LATEST, ONE_DAY, joined
from market_data_pipeline.domain.ports import MacroAnswer, Observation, RefusedRecord
from market_data_pipeline.providers.http import describe
from market_data_pipeline.providers.wire import Exchange, fingerprint, listing, mapping, only, parse_json, refuse_outage, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from pydantic import SecretStr

    from market_data_pipeline.domain.capabilities import Priority
    from market_data_pipeline.providers.http import HttpAnswer, HttpClient
    from market_data_pipeline.providers.registry import ProviderContext

    Window = tuple[date, date]

Parsed = TypeVar("Parsed")

NAME = "fred"
ROWS_PER_PAGE = 100_000
VINTAGES_PER_PAGE = 10_000
VINTAGES_PER_REQUEST = 2_000
# 120 a minute is published; more than two at once are refused, too (PROVIDERS.md §3).
LIMITS = (RateLimit(2, 1.0), RateLimit(120, 60.0))
EVER = (EARLIEST, LATEST)
_LONGEST_PERIOD = timedelta(days=366)

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


class _TooManyVintagesError(PayloadError):
    """The window holds more vintage dates than one request may ask for: it must be cut."""


class _NotInAlfredError(UnknownSymbolError):
    """The series has no vintages; it may well have a current value."""


@dataclass(frozen=True, slots=True)
class SeriesInfo:
    """What FRED says of a series. ``frequency``: D, W, BW, M, Q, SA or A."""

    series: str
    title: str
    units: str
    frequency: str
    seasonal_adjustment: str | None = None
    last_updated: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ParsedObservations:
    """One page. ``received`` rows were in it: each is in ``observations`` (in the order received) or in ``refused``.

    ``count`` rows answer the whole question; this page begins at ``offset`` and may hold ``limit`` of them.
    """

    observations: Sequence[Observation]
    refused: Sequence[RefusedRecord]
    received: int
    count: int
    offset: int
    limit: int


class FredProvider:
    """Economic series from FRED, their vintages from ALFRED. Safe to use from several threads.

    The key goes into the URL, for FRED takes it nowhere else: it is redacted wherever the URL is shown. ``rows_per_page`` is for
    tests of paging.
    """

    name = NAME
    limits: Sequence[RateLimit] = LIMITS
    probe_symbol = "UNRATE"
    capabilities: Sequence[Capability] = (
        Capability(name=MACRO, rows_per_request=ROWS_PER_PAGE, stamp=Stamp.DATE, access=Access.KEY),
    )

    @classmethod
    def open(cls, context: ProviderContext) -> Self:
        """From the settings; without MDP_FRED_KEY it says what it lacks."""
        return cls(context.http, base_url=context.settings.fred_base_url, key=context.settings.fred_key)

    def __init__(self, http: HttpClient, *, base_url: str, key: SecretStr | None, rows_per_page: int = ROWS_PER_PAGE) -> None:
        self._http = http
        self._base_url = base_url.rstrip("/")
        self._key = key
        self._rows_per_page = rows_per_page
        self._known: dict[str, SeriesInfo] = {}
        self.account = fingerprint(key.get_secret_value()) if key else ""
        self.lacking = None if key else "MDP_FRED_KEY is not set"

    def fetch_observations(
        self, series: str, *, first: date | None, last: date | None, vintages: bool, priority: Priority, now: datetime
    ) -> MacroAnswer:
        """The observations of [first, last]; ``vintages``: every value ever published, each with the days between which it held.

        An observation is named by the first day of its period, and FRED begins with the period in which ``first`` lies.
        A series without vintages (FRED says that it is not in ALFRED) is answered with its current values, ``has_vintages`` False.
        The first time that a series is asked for, one more request asks what it is: observations do not name their series.

        An error carries the provenance of the request as ``fetch``: what ``HttpClient.get`` raises, EntitlementError (FRED answers
        400 to a bad key), UnknownSymbolError, TransientError (423, or the series changed while we paged) and PayloadError.
        """
        asked = _Asked(series, first, last)
        asking = self._asking(series, "series/observations", asked.parameters(EVER if vintages else None), priority, now)
        with asking.exchange.on_record():
            if self.lacking is not None:
                raise EntitlementError(self.lacking, provider=NAME)
            info = self._described(series, asking)
            found, has_vintages = asking.vintages(asked) if vintages else (asking.window(asked, None), False)
        return MacroAnswer(
            fetch=asking.exchange.provenance(rows=len(found.observations), dropped=found.dropped),
            series=series,
            observations=found.observations,
            units=info.units,
            frequency=info.frequency,
            refused=found.refused,
            has_vintages=has_vintages,
            title=info.title,
        )

    def describe_series(self, series: str, *, priority: Priority = HISTORY, now: datetime) -> SeriesInfo:
        """What ``series`` is; asked once and remembered. Raises as ``fetch_observations``."""
        asking = self._asking(series, "series", {"series_id": series}, priority, now)
        with asking.exchange.on_record():
            return self._described(series, asking)

    def _asking(self, series: str, path: str, parameters: Mapping[str, str | int], priority: Priority, now: datetime) -> _Asking:
        exchange = Exchange(
            provider=NAME,
            symbol=series,
            request=describe(f"{self._base_url}/fred/{path}", parameters, {}),
            started_at=now,
            capability=MACRO,
        )
        key = self._key.get_secret_value() if self._key else ""
        return _Asking(self._http, self._base_url, key, self.account, self._rows_per_page, exchange, priority)

    def _described(self, series: str, asking: _Asking) -> SeriesInfo:
        if series not in self._known:
            self._known[series] = asking.get("series", {"series_id": series}, lambda body: _one_series(body, series))
        return self._known[series]


# --- asking ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Asked:
    """The question: one series, and the observation dates [first, last]."""

    series: str
    first: date | None
    last: date | None

    def parameters(self, window: Window | None) -> dict[str, str | int]:
        """The query, for the vintages of ``window`` (both days included); None: as things are today."""
        bounds = {"observation_start": self.first, "observation_end": self.last}
        if window is not None:
            bounds |= {"realtime_start": window[0], "realtime_end": window[1]}
        return {"series_id": self.series, **{name: day.isoformat() for name, day in bounds.items() if day is not None}}

    def holds(self, day: date) -> bool:
        """Whether it answers the question: asked from 30 June, FRED begins with June's value, named 1 June."""
        return (self.first is None or self.first - _LONGEST_PERIOD < day) and (self.last is None or day <= self.last)


@dataclass(slots=True)
class _Found:
    """What all pages and windows of one question brought."""

    observations: list[Observation] = field(default_factory=list)
    refused: list[RefusedRecord] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Asking:
    """The requests of one question."""

    http: HttpClient
    base_url: str
    key: str = field(repr=False)
    account: str
    rows_per_page: int
    exchange: Exchange
    priority: Priority

    def get(self, path: str, parameters: Mapping[str, str | int], parse: Callable[[bytes], Parsed]) -> Parsed:
        """One GET with the key, counted in ``exchange``, and what ``parse`` makes of its body."""
        parsed: list[Parsed] = []

        def check(answer: HttpAnswer) -> None:
            # Inside the attempt, so that an outage which only the body tells of is retried by the one loop there is.
            refuse_outage(answer, NAME)
            _refuse(answer)
            parsed.append(parse(answer.body))

        self.http.get(
            f"{self.base_url}/fred/{path}",
            {**parameters, "file_type": "json", "api_key": self.key},
            provider=NAME,
            account=self.account,
            priority=self.priority,
            check=check,
            attempts=self.exchange.attempts,
        )
        return parsed[-1]

    def vintages(self, asked: _Asked) -> tuple[_Found, bool]:
        """Everything ever published, in as few requests as FRED's rule allows; False: it keeps no vintages of this."""
        try:
            return self.window(asked, EVER), True
        except _NotInAlfredError:
            return self.window(asked, None), False
        except _TooManyVintagesError:
            # FRED has said how many there are, not when. Asked for the dates, we cut exactly; halving in the dark costs more.
            return self._cut(asked, EVER, self._vintage_dates(asked.series)), True

    def _cut(self, asked: _Asked, window: Window, dates: Sequence[date]) -> _Found:
        """``window`` in parts of at most 2,000 of its vintage ``dates`` (sorted), joined again at the seams."""
        if len(dates) < 2:
            raise PayloadError(f"{asked.series}: a window of {len(dates)} vintage dates is refused as too many", provider=NAME)
        count = max(-(-len(dates) // VINTAGES_PER_REQUEST), 2)
        edges = [len(dates) * part // count for part in range(count + 1)]
        found = _Found()
        last_days = set()
        for begin, end in pairwise(edges):
            first = window[0] if begin == 0 else dates[begin]
            last = window[1] if end == len(dates) else dates[end] - ONE_DAY
            part = (first, last)
            last_days.add(part[1])
            try:
                of_part = self.window(asked, part)
            except _TooManyVintagesError:
                # New vintages since we asked for the dates.
                of_part = self._cut(asked, part, dates[begin:end])
            found.observations += of_part.observations
            found.refused += of_part.refused
            found.dropped += of_part.dropped
        found.observations = joined(found.observations, last_days=last_days)
        return found

    def _vintage_dates(self, series: str) -> list[date]:
        dates: list[date] = []
        while True:
            parameters: dict[str, str | int] = {"series_id": series, "limit": VINTAGES_PER_PAGE, "offset": len(dates)}
            parameters |= {"realtime_start": EARLIEST.isoformat(), "realtime_end": LATEST.isoformat()}
            page, count = self.get("series/vintagedates", parameters, parse_vintage_dates)
            dates += page
            if len(dates) >= count:
                return sorted(set(dates))
            if not page:
                raise PayloadError(f"{series}: {count:,} vintage dates were promised and {len(dates):,} came", provider=NAME)

    def window(self, asked: _Asked, window: Window | None) -> _Found:
        """Every page of one realtime window. What the pages lack of their promise fails the whole: a part is not stored as all."""
        found, received, promised = _Found(), 0, None
        while promised is None or received < promised:
            parameters = {**asked.parameters(window), "limit": self.rows_per_page, "offset": received}
            page = self.get("series/observations", parameters, lambda body: parse_observations(body, window=window))
            if promised not in {None, page.count}:
                raise TransientError(f"{asked.series}: {promised} rows became {page.count} while we paged", provider=NAME)
            due = min(page.limit, self.rows_per_page, page.count - received)
            if (page.offset, page.received) != (received, due) or (not due and received < page.count):
                message = f"{due} of {page.count} rows from {received} were due, {page.received} from {page.offset} came"
                raise PayloadError(f"{asked.series}: {message}", provider=NAME)
            promised = page.count
            received += page.received
            found.observations += page.observations
            found.refused += page.refused
        found.observations = _sorted_and_unique(found, asked)
        return found


def _sorted_and_unique(found: _Found, asked: _Asked) -> list[Observation]:
    """Those asked for by (observed_on, realtime_start), one each: a repeat is counted, one that says something else is refused."""
    kept: dict[tuple[date, date], Observation] = {}
    for row in found.observations:
        if not asked.holds(row.observed_on):
            found.dropped["outside_window"] += 1
            continue
        first = kept.setdefault((row.observed_on, row.realtime_start), row)
        if first is row:
            continue
        if first == row:
            found.dropped["duplicate"] += 1
        else:
            found.refused.append(_refused(_as_sent(row), "conflicting_duplicate"))
    return [kept[key] for key in sorted(kept)]


# --- what kind of answer -----------------------------------------------------------------------------------------------


def _refuse(answer: HttpAnswer) -> None:
    """Raise for answers that are no data. FRED tells by the text: an unknown series and a bad key are 400, both."""
    if answer.status == 423:
        raise TransientError(f"HTTP 423: the series is locked: {answer.excerpt()}", provider=NAME)
    document = parse_json(answer.body, NAME)
    if isinstance(document, dict) and "error_code" in document:
        raise refusal(document, said=f"HTTP {answer.status} {answer.excerpt(300)}")
    if answer.status != 200:
        raise PayloadError(f"HTTP {answer.status}, which FRED does not document: {answer.excerpt()}", provider=NAME)


def refusal(document: Mapping[str, Any], *, said: str) -> ProviderError:
    """The error that an error body stands for; ``said`` is its text without secrets."""
    code, message = document.get("error_code"), str(document.get("error_message", ""))
    for text, kind in (
        ("api_key", EntitlementError),
        ("vintage dates", _TooManyVintagesError),
        # Before the next line, which it contains.
        ("does not exist in ALFRED", _NotInAlfredError),
        ("series does not exist", UnknownSymbolError),
        ("variable series_id", UnknownSymbolError),
        ("Rate Limit", RateLimitedError),
    ):
        if text in message:
            return kind(said, provider=NAME)
    by_code: dict[object, type[ProviderError]] = {423: TransientError, 429: RateLimitedError, 500: TransientError}
    return by_code.get(code, PayloadError)(said, provider=NAME)


# --- parsing: pure, from here on ---------------------------------------------------------------------------------------


def parse_observations(body: bytes, *, window: Window | None = None) -> ParsedObservations:
    """One page of observations. The same bytes always give the same page. "." is a value that is not there, and is kept as None.

    ``window``: the realtime window asked for, which the answer must echo. Rows that cannot be read are refused one by one; raises
    PayloadError where the page is not what was asked for: transformed values, a matrix of vintages, another window.
    """
    page = mapping(parse_json(body, NAME), NAME)
    rows = listing(page.get("observations"), "observations", NAME)
    echoed = (page.get("units"), page.get("output_type"))
    if echoed != ("lin", 1):
        raise PayloadError(f"values as they are were asked for; answered with units and output type {shown(echoed)}", provider=NAME)
    told = (page.get("realtime_start"), page.get("realtime_end"))
    if window is not None and told != (window[0].isoformat(), window[1].isoformat()):
        raise PayloadError(f"asked for the vintages from {window[0]} to {window[1]}; answered with {shown(told)}", provider=NAME)
    counts = [_count(page, name) for name in ("count", "offset", "limit")]
    observations: list[Observation] = []
    refused: list[RefusedRecord] = []
    days: dict[object, date | None] = {}
    for row in rows:
        parsed = _observation(row, days)
        if isinstance(parsed, Observation):
            observations.append(parsed)
        else:
            refused.append(_refused(row, parsed))
    return ParsedObservations(observations, refused, len(rows), *counts)


def _observation(row: object, days: dict[object, date | None]) -> Observation | str:
    """The row, or the reason why it cannot be one. ``days`` remembers the dates read: a page has few of them, many times."""
    if not isinstance(row, dict):
        return "not_an_object"
    found = []
    for name in ("date", "realtime_start", "realtime_end"):
        text = row.get(name)
        if not isinstance(text, str):
            return f"no_{name}"
        if text not in days:
            days[text] = _date_of(text)
        day = days[text]
        if day is None:
            return f"{name}_unreadable"
        found.append(day)
    observed_on, start, end = found
    if start > end:
        return "realtime_backwards"
    value = _value(row.get("value"))
    return "value_not_a_number" if value is not None and math.isnan(value) else Observation(observed_on, value, start, end)


def _date_of(text: str) -> date | None:
    try:
        return date.fromisoformat(text) if _DAY.fullmatch(text) else None
    except ValueError:
        return None


def _value(sent: object) -> float | None:
    """FRED's values are text, "." for none; NaN for what is neither. Python would take "1_000" and "infinity" for numbers, too."""
    if sent == ".":
        return None
    if isinstance(sent, int | float) and not isinstance(sent, bool):
        sent = repr(sent)
    if not isinstance(sent, str) or not _NUMBER.fullmatch(sent):
        return math.nan
    value = float(sent)
    return value if math.isfinite(value) else math.nan


def _count(page: Mapping[str, Any], name: str) -> int:
    value = page.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise PayloadError(f"{name} is no count: {shown(value)}", provider=NAME)
    return value


def parse_vintage_dates(body: bytes) -> tuple[list[date], int]:
    """The vintage dates of one page, and how many there are in all. Raises PayloadError."""
    page = mapping(parse_json(body, NAME), NAME)
    texts = listing(page.get("vintage_dates"), "vintage_dates", NAME)
    dates = [_date_of(text) if isinstance(text, str) else None for text in texts]
    if None in dates:
        raise PayloadError(f"a vintage date is no date: {shown(texts[dates.index(None)])}", provider=NAME)
    return [day for day in dates if day is not None], _count(page, "count")


def parse_series(body: bytes) -> list[SeriesInfo]:
    """What a body of /fred/series or /fred/release/series says of each series. Raises PayloadError where one is not described."""
    page = mapping(parse_json(body, NAME), NAME)
    return [_series_info(mapping(row, NAME)) for row in listing(page.get("seriess"), "seriess", NAME)]


def _series_info(row: Mapping[str, Any]) -> SeriesInfo:
    texts = [row.get(name) for name in ("id", "title", "units", "frequency_short")]
    if not all(isinstance(text, str) for text in texts):
        raise PayloadError(f"a series without its id, title, units or frequency: {shown(row)}", provider=NAME)
    series, title, units, frequency = map(str, texts)
    adjustment, updated = row.get("seasonal_adjustment_short"), row.get("last_updated")
    return SeriesInfo(
        series=series,
        title=title,
        units=units,
        frequency=frequency,
        seasonal_adjustment=adjustment if isinstance(adjustment, str) else None,
        last_updated=updated if isinstance(updated, str) else None,
    )


def _one_series(body: bytes, asked: str) -> SeriesInfo:
    info = only(parse_series(body), "seriess", NAME)
    if not isinstance(info, SeriesInfo) or info.series.upper() != asked.upper():
        raise PayloadError(f"asked for {asked}, answered with {shown(getattr(info, 'series', info))}", provider=NAME)
    return info


def _as_sent(row: Observation) -> dict[str, str | None]:
    return {
        "realtime_start": row.realtime_start.isoformat(),
        "realtime_end": row.realtime_end.isoformat(),
        "date": row.observed_on.isoformat(),
        "value": "." if row.value is None else repr(row.value),
    }


def _refused(row: object, reason: str) -> RefusedRecord:
    # ASCII: Postgres' text holds neither NUL nor half a surrogate pair.
    return RefusedRecord(json.dumps(row, default=repr), reason)
