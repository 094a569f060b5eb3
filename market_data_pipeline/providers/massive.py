"""Massive, formerly Polygon: aggregates by cursor, and the daily bars of the whole market in one request.

Wire facts, beside PROVIDERS.md §5: ``limit`` counts base aggregates (minutes), hence at most a month of minutes a request; minutes
without a trade are absent; a range's day is stamped with midnight in New York, a grouped day with the close; a range whose end the
plan does not include yet is refused with 403, like one that lies before its history: neither says anything about the key.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import numpy as np

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.capabilities import US, Access, RateLimit, Stamp, bars_capability
from market_data_pipeline.domain.errors import (
    BudgetSpentError,
    EntitlementError,
    OutOfReachError,
    PayloadError,
    ProviderError,
    RateLimitedError,
    TransientError,
    UnknownSymbolError,
)
from market_data_pipeline.providers.bars import (
    DAY,
    NEW_YORK,
    ParsedBars,
    RowNames,
    answer_of,
    columns_of_rows,
    joined,
    label_of,
    lay_out,
    local_labels,
    of_all_pages,
    refuse_beyond_reach,
    refuse_lacking,
    session_dates,
)
from market_data_pipeline.providers.http import describe
from market_data_pipeline.providers.wire import (
    Exchange,
    fingerprint,
    listing,
    mapping,
    parse_json,
    refuse_outage,
    shown,
    whole_numbers,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import SecretStr

    from market_data_pipeline.domain.candles import Int64s
    from market_data_pipeline.domain.capabilities import Capability, Priority
    from market_data_pipeline.domain.ports import BarsAnswer, BarsRequest
    from market_data_pipeline.providers.http import HttpAnswer, HttpClient
    from market_data_pipeline.providers.registry import ProviderContext

NAME = "massive"
ROWS_PER_PAGE = 50_000
# One grouped request serves every symbol there is.
SYMBOLS_PER_REQUEST = 10_000
# A free key has five requests a minute: what cannot be had within the patience of one call is asked for symbol by symbol, so that
# each answer is stored when it is there.
_MOST_GROUPED_DATES = 5
_MOST_PAGES = 100

_TIMESPANS = {Interval.M1: "minute", Interval.D1: "day"}
_ROW = RowNames(vwap="vw", trades="n")
# The company has two names and one API. A cursor may name either; we stay with the host that we were told.
_HOSTS = {"api.massive.com", "api.polygon.io"}
_NOT_OF_THIS_PLAN = ("data timeframe", "before end of day")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a subscription to stocks includes. ``delay_seconds``: a day stands for "end of day"."""

    reach_seconds: int | None
    delay_seconds: int
    limits: tuple[RateLimit, ...]
    access: Access


PLANS: Mapping[str, Plan] = MappingProxyType(
    {
        "basic": Plan(2 * 365 * DAY, DAY, (RateLimit(5, 60.0),), Access.KEY),
        "starter": Plan(5 * 365 * DAY, 15 * 60, (RateLimit(100, 1.0),), Access.PLAN),
        "developer": Plan(10 * 365 * DAY, 15 * 60, (RateLimit(100, 1.0),), Access.PLAN),
        "advanced": Plan(None, 0, (RateLimit(100, 1.0),), Access.PLAN),
    }
)


@dataclass(frozen=True, slots=True, eq=False)
class AggregatesPage:
    """One page of a range: its rows as they came, and where the next one is, None at the end."""

    rows: Sequence[Any]
    next_page: Cursor | None


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a page is: a path under our base URL, percent-encoded as it came, and its query without a key."""

    path: str
    query: Mapping[str, str]


class MassiveProvider:
    """Bars of one symbol over a range, or of all symbols on few dates. Safe to use from several threads."""

    name = NAME
    probe_symbol = "AAPL"

    @classmethod
    def open(cls, context: ProviderContext) -> Self:
        """From the settings; without a key it lists its capabilities and says what it lacks."""
        settings = context.settings
        return cls(context.http, base_url=settings.massive_base_url, key=settings.massive_key, plan=settings.massive_plan)

    def __init__(
        self,
        http: HttpClient,
        *,
        base_url: str,
        key: SecretStr | None,
        plan: str = "basic",
        rows_per_page: int = ROWS_PER_PAGE,
    ) -> None:
        self._http = http
        self._base_url = base_url.rstrip("/")
        self._key = key
        self._rows_per_page = rows_per_page
        terms = PLANS[plan]
        self.limits: Sequence[RateLimit] = terms.limits
        self.lacking: str | None = "MDP_MASSIVE_KEY is not set" if key is None else None
        self.account = fingerprint(key.get_secret_value()) if key else ""
        self._bars = MappingProxyType({interval: _capability(interval, terms) for interval in _TIMESPANS})

    @property
    def capabilities(self) -> Sequence[Capability]:
        """On the terms of the plan."""
        return tuple(self._bars.values())

    # --- one symbol over a range

    def fetch_bars(self, request: BarsRequest, *, now: datetime) -> BarsAnswer:
        """One symbol, as many pages as it takes. An error carries the provenance of the request as ``fetch``.

        Raises OutOfReachError, with nothing sent, for what the capability does not cover, and for a 403 that is about the plan's
        time frame; else what ``HttpClient.get`` raises, UnknownSymbolError and PayloadError.
        """
        path = f"/v2/aggs/ticker/{quote(request.symbol, safe='')}/range/1/{_TIMESPANS.get(request.interval, '?')}/{_range(request)}"
        parameters: dict[str, str | int] = {"adjusted": "true", "sort": "asc", "limit": self._rows_per_page}
        exchange = self._exchange(request, path, parameters, now)
        bodies: list[bytes] = []
        with exchange.on_record():
            self._refuse(request, now)
            pages = self._pages(path, parameters, request, exchange, bodies)
            parsed = parse_pages(pages, request)
        fetch = exchange.provenance(rows=len(parsed.columns), dropped=parsed.dropped)
        return answer_of(request, of_all_pages(fetch, bodies), parsed, currency="USD")

    def _pages(
        self,
        path: str,
        parameters: Mapping[str, str | int],
        request: BarsRequest,
        exchange: Exchange,
        bodies: list[bytes],
    ) -> list[AggregatesPage]:
        pages: list[AggregatesPage] = []
        followed: list[Cursor] = []
        while True:
            answer = self._get(path, parameters, exchange, request.priority)
            if answer.status == 404:
                raise UnknownSymbolError(f"{request.symbol}: HTTP 404 {answer.excerpt()}", provider=NAME)
            _refuse_status(answer)
            bodies.append(answer.body)
            page = parse_page(answer.body, request, base_url=self._base_url, rows_per_page=self._rows_per_page)
            pages.append(page)
            if page.next_page is None:
                return pages
            if page.next_page in followed:
                raise PayloadError(f"page {len(pages)} leads back to a page that we have", provider=NAME)
            if len(pages) >= _MOST_PAGES:
                raise PayloadError(f"more than {_MOST_PAGES} pages, and no end", provider=NAME)
            followed.append(page.next_page)
            path, parameters = page.next_page.path, page.next_page.query

    # --- all symbols on few dates

    def fetch_bars_of_many(self, requests: Sequence[BarsRequest], *, now: datetime) -> Sequence[BarsAnswer | ProviderError]:
        """The answers in the order of ``requests``: days of few dates by one request a date, all else symbol by symbol.

        Symbol by symbol, what failed stands in its place, and after a failure that is not about the symbol nobody else is asked.
        Raises OutOfReachError, with nothing sent, for what the capability does not cover; by date, whatever any request ended in.
        """
        dates = _weekdays(requests[0]) if requests and requests[0].interval.is_daily else []
        if 0 < len(dates) <= _MOST_GROUPED_DATES and len(dates) < len(requests):
            return self._by_date(requests, dates, now)
        return self._by_symbol(requests, now)

    def _by_symbol(self, requests: Sequence[BarsRequest], now: datetime) -> list[BarsAnswer | ProviderError]:
        answers: list[BarsAnswer | ProviderError] = []
        ended: ProviderError | None = None
        for request in requests:
            if ended is not None:
                answers.append(ended)
                continue
            try:
                answers.append(self.fetch_bars(request, now=now))
            except (TransientError, RateLimitedError, BudgetSpentError, EntitlementError, OutOfReachError) as failure:
                answers.append(failure)
                ended = _for_the_others(failure)
            except ProviderError as failure:
                answers.append(failure)
        return answers

    def _by_date(self, requests: Sequence[BarsRequest], dates: Sequence[date], now: datetime) -> list[BarsAnswer | ProviderError]:
        path, parameters = "/v2/aggs/grouped/locale/us/market/stocks", {"adjusted": "true"}
        asked = f"{path}/{','.join(day.isoformat() for day in dates)}"
        exchange = self._exchange(requests[0], asked, parameters, now)
        bodies: list[bytes] = []
        found: list[Mapping[str, Sequence[Any]]] = []
        with exchange.on_record():
            self._refuse(requests[0], now)
            wanted = {request.symbol for request in requests}
            for day in dates:
                answer = self._get(f"{path}/{day.isoformat()}", parameters, exchange, requests[0].priority)
                _refuse_status(answer)
                bodies.append(answer.body)
                found.append(parse_grouped(answer.body, day, wanted))
            parsed = [_grouped_bars(dates, found, request) for request in requests]
        whole = of_all_pages(exchange.provenance(), bodies)
        return [
            answer_of(
                request,
                replace(
                    whole,
                    symbol=request.symbol,
                    rows=len(bars.columns),
                    dropped=bars.dropped,
                    # What was sent was sent once, for all of them.
                    attempts=whole.attempts if place == 0 else 0,
                ),
                bars,
                currency="USD",
            )
            for place, (request, bars) in enumerate(zip(requests, parsed, strict=True))
        ]

    # --- asking

    def _exchange(self, request: BarsRequest, path: str, parameters: Mapping[str, str | int], now: datetime) -> Exchange:
        described = describe(f"{self._base_url}{path}", parameters, {})
        return Exchange(
            provider=NAME,
            symbol=request.symbol,
            interval=request.interval,
            request=described,
            started_at=now,
        )

    def _refuse(self, request: BarsRequest, now: datetime) -> None:
        refuse_lacking(self.lacking, NAME)
        refuse_beyond_reach(request, self._bars, now=now, provider=NAME)

    def _get(self, path: str, parameters: Mapping[str, str | int], exchange: Exchange, priority: Priority) -> HttpAnswer:
        """One request, to our own base URL always: a cursor's URL is taken apart, never followed."""
        headers = {"accept": "application/json"}
        if self._key is not None:
            headers["authorization"] = f"Bearer {self._key.get_secret_value()}"
        try:
            return self._http.get(
                f"{self._base_url}{path}",
                parameters,
                headers,
                provider=NAME,
                account=self.account,
                priority=priority,
                check=lambda answer: refuse_outage(answer, NAME),
                attempts=exchange.attempts,
            )
        except EntitlementError as refused:
            if not any(words in str(refused) for words in _NOT_OF_THIS_PLAN):
                raise
            said = str(refused).removeprefix(f"{NAME}: ")
        # The key is good: only this much of the past, or of today, is not in its plan.
        raise OutOfReachError(said, provider=NAME)


def _capability(interval: Interval, plan: Plan) -> Capability:
    return bars_capability(
        interval,
        reach_seconds=plan.reach_seconds,
        span_seconds=None if interval.is_daily else 31 * DAY,
        symbols_per_request=SYMBOLS_PER_REQUEST if interval.is_daily else 1,
        rows_per_request=ROWS_PER_PAGE,
        delay_seconds=plan.delay_seconds,
        stamp=Stamp.DATE if interval.is_daily else Stamp.OPEN,
        access=plan.access,
        calendars=US,
    )


def _for_the_others(failure: ProviderError) -> ProviderError:
    """The same failure in the place of a symbol that was not asked for any more: nothing was sent for it."""
    text = str(failure).removeprefix(f"{NAME}: ")
    if isinstance(failure, BudgetSpentError):
        other: ProviderError = BudgetSpentError(text, provider=NAME, wait_seconds=failure.wait_seconds)
    elif isinstance(failure, RateLimitedError):
        other = RateLimitedError(text, provider=NAME, retry_after_seconds=failure.retry_after_seconds)
    else:
        other = type(failure)(text, provider=NAME)
    other.fetch = replace(failure.fetch, attempts=0, status=None) if failure.fetch else None
    return other


def _range(request: BarsRequest) -> str:
    if request.interval.is_daily:
        first, last = session_dates(request)
        return f"{first.isoformat()}/{last.isoformat()}"
    return f"{request.start * 1000}/{request.end * 1000 - 1}"


def _weekdays(request: BarsRequest) -> list[date]:
    """The dates of a window on which there may have been a session, no more than are looked at."""
    first, last = session_dates(request)
    days = (first + timedelta(days=n) for n in range(min((last - first).days + 1, 2 * _MOST_GROUPED_DATES)))
    return [day for day in days if day.weekday() < 5]


# --- parsing: pure, from here on ---------------------------------------------------------------------------------------


def parse_page(body: bytes, request: BarsRequest, *, base_url: str, rows_per_page: int = ROWS_PER_PAGE) -> AggregatesPage:
    """One page of a range. PayloadError where it is none, is of something else, or may have lost its cursor."""
    document = _document(body)
    echoed = document.get("ticker")
    if echoed != request.symbol:
        raise PayloadError(f"asked for {request.symbol}, answered with {shown(echoed)}", provider=NAME)
    rows = _results(document)
    following = document.get("next_url")
    if following is None:
        if len(rows) >= rows_per_page:
            raise PayloadError(f"a full page of {len(rows):,} rows without a cursor for the next", provider=NAME)
        return AggregatesPage(rows, None)
    return AggregatesPage(rows, _cursor(following, request, base_url))


def parse_pages(pages: Sequence[AggregatesPage], request: BarsRequest) -> ParsedBars:
    """The bars of all pages. PayloadError where a page begins at or before the end of the one before: it was sent twice."""
    stamps: list[Int64s] = []
    columns: list[Mapping[str, list[Any]]] = []
    for page in pages:
        if not page.rows:
            continue
        columns.append(columns_of_rows(page.rows, _ROW, "results", NAME))
        stamps.append(whole_numbers([row.get("t") for row in page.rows], "results[].t", NAME))
        if len(stamps) > 1 and stamps[-1].min() <= stamps[-2].max():
            raise PayloadError("a page repeats rows of the one before", provider=NAME)
    if not stamps:
        return ParsedBars.empty()
    on_wire = np.concatenate(stamps)
    instants = on_wire // 1000
    labels = local_labels(instants, NEW_YORK) if request.interval.is_daily else instants
    aligned = None if request.interval.is_daily else on_wire % 60_000 == 0
    return lay_out(labels, joined(columns), request, provider=NAME, stamps=on_wire, aligned=aligned)


def parse_grouped(body: bytes, day: date, wanted: set[str]) -> Mapping[str, Sequence[Any]]:
    """The rows of the symbols wanted, of all that traded on ``day``. PayloadError where a row of theirs is of another day."""
    rows = _results(_document(body))
    found: dict[str, list[Any]] = {}
    for row in rows:
        symbol = mapping(row, NAME).get("T")
        if symbol in wanted:
            found.setdefault(str(symbol), []).append(row)
    kept = [row for of_symbol in found.values() for row in of_symbol]
    told = local_labels(whole_numbers([row.get("t") for row in kept], "results[].t", NAME) // 1000, NEW_YORK)
    if (told != label_of(day)).any():
        strange = kept[int(np.flatnonzero(told != label_of(day))[0])]
        raise PayloadError(f"asked for {day}, answered with another day: {shown(strange.get('t'))}", provider=NAME)
    return found


def _grouped_bars(dates: Sequence[date], found: Sequence[Mapping[str, Sequence[Any]]], request: BarsRequest) -> ParsedBars:
    rows = [(day, row) for day, of_day in zip(dates, found, strict=True) for row in of_day.get(request.symbol, ())]
    columns = columns_of_rows([row for _, row in rows], _ROW, "results", NAME)
    return lay_out(np.array([label_of(day) for day, _ in rows], np.int64), columns, request, provider=NAME)


def _document(body: bytes) -> dict[str, Any]:
    """The body, once its status says that it is an answer; else the error that it stands for."""
    document = mapping(parse_json(body, NAME), NAME)
    status = document.get("status")
    said = str(document.get("error") or document.get("message") or document.get("status"))[:200]
    if status == "NOT_AUTHORIZED":
        beyond = any(words in said for words in _NOT_OF_THIS_PLAN)
        raise (OutOfReachError if beyond else EntitlementError)(said, provider=NAME)
    if status == "ERROR" and "exceeded the maximum requests" in said:
        raise RateLimitedError(said, provider=NAME)
    if status not in {"OK", "DELAYED"}:
        raise PayloadError(f"status {shown(status)}: {said}", provider=NAME)
    if document.get("adjusted") is not True:
        raise PayloadError(
            f"asked for prices adjusted for splits, answered with adjusted={shown(document.get('adjusted'))}", provider=NAME
        )
    return document


def _results(document: Mapping[str, Any]) -> list[Any]:
    """The rows, as many as the body says there are: fewer are a part of an answer."""
    rows = listing(document.get("results") or [], "results", NAME)
    if document.get("resultsCount") != len(rows):
        raise PayloadError(f"resultsCount says {shown(document.get('resultsCount'))}, and there are {len(rows):,}", provider=NAME)
    return rows


def _cursor(url: object, request: BarsRequest, base_url: str) -> Cursor:
    """Where the next page is. PayloadError where the URL is not one of the same question on our own host."""
    if not isinstance(url, str):
        raise PayloadError(f"next_url is no text: {shown(url)}", provider=NAME)
    told, ours = urlsplit(url), urlsplit(base_url)
    same_host = (told.scheme, told.netloc) == (ours.scheme, ours.netloc)
    by_its_other_name = told.scheme == ours.scheme == "https" and {told.netloc, ours.netloc} <= _HOSTS
    # By its other name it has no prefix of ours.
    prefix = ours.path if same_host else ""
    same_question = unquote(told.path).startswith(
        f"{prefix}/v2/aggs/ticker/{request.symbol}/range/1/{_TIMESPANS[request.interval]}/"
    )
    if not (same_host or by_its_other_name) or not same_question or "/." in unquote(told.path):
        raise PayloadError(f"next_url leads elsewhere: {shown(f'{told.scheme}://{told.hostname}{told.path}')}", provider=NAME)
    query = {name: value for name, value in parse_qsl(told.query) if name.lower() != "apikey"}
    if not query.get("cursor"):
        raise PayloadError("next_url without a cursor", provider=NAME)
    return Cursor(told.path.removeprefix(prefix), query)


def _refuse_status(answer: HttpAnswer) -> None:
    if answer.status != 200:
        raise PayloadError(f"HTTP {answer.status}, which is not documented: {answer.excerpt()}", provider=NAME)
