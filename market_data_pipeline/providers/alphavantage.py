"""Alpha Vantage: minutes by month and days, in words where others use a status, with stamps whose meaning has changed.

Wire facts, beside PROVIDERS.md §5: the newest row comes first and numbers come as text; every refusal is a 200 that says so, and
some repeat the key; without a plan the days are the last 100 (``outputsize=full`` is premium), and nothing of today is there.
"""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import date, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self
from zoneinfo import ZoneInfo

import numpy as np

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.capabilities import US, Access, Basis, RateLimit, Stamp, bars_capability
from market_data_pipeline.domain.errors import (
    EntitlementError,
    OutOfReachError,
    PayloadError,
    ProviderError,
    RateLimitedError,
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
    of_all_pages,
    refuse_beyond_reach,
    refuse_lacking,
    session_dates,
    window_of,
)
from market_data_pipeline.providers.http import describe
from market_data_pipeline.providers.wire import Exchange, fingerprint, mapping, number, parse_json, refuse_outage, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import SecretStr

    from market_data_pipeline.domain.candles import Int64s
    from market_data_pipeline.domain.capabilities import Capability
    from market_data_pipeline.domain.ports import BarsAnswer, BarsRequest
    from market_data_pipeline.providers.http import HttpAnswer, HttpClient
    from market_data_pipeline.providers.registry import ProviderContext

NAME = "alphavantage"
# Of a free key: the first two are asked for in words ("spreading out your requests"), the last is counted.
LIMITS = (RateLimit(1, 1.0), RateLimit(5, 60.0), RateLimit(25, 86_400.0))
# "compact" is the last 100 rows. So many days hold fewer sessions than that, holidays or not.
_COMPACT_SECONDS = 135 * DAY
_FIRST_MONTH = date(2000, 1, 1)

_ROW = RowNames("1. open", "2. high", "3. low", "4. close", "5. volume")
_SERIES = {Interval.M1: "Time Series (1min)", Interval.D1: "Time Series (Daily)"}
_ZONE_KEYS = {Interval.M1: "6. Time Zone", Interval.D1: "5. Time Zone"}
# A refusal is a sentence or two.
_LONGEST_WORDS = 4096
_OPENS, _CLOSES = 9 * 60 + 30, 16 * 60


class AlphaVantageProvider:
    """Bars as traded: nothing is adjusted. Safe to use from several threads."""

    name = NAME
    limits: Sequence[RateLimit] = LIMITS
    probe_symbol = "IBM"

    @classmethod
    def open(cls, context: ProviderContext) -> Self:
        """From the settings; without a key it lists its capabilities and says what it lacks."""
        settings = context.settings
        return cls(
            context.http,
            base_url=settings.alphavantage_base_url,
            key=settings.alphavantage_key,
            stamp=Stamp(settings.alphavantage_stamp),
        )

    def __init__(self, http: HttpClient, *, base_url: str, key: SecretStr | None, stamp: Stamp = Stamp.OPEN) -> None:
        self._http = http
        self._base_url = base_url.rstrip("/")
        self._key = key
        self._stamp = stamp
        self.lacking: str | None = "MDP_ALPHAVANTAGE_KEY is not set" if key is None else None
        self.account = fingerprint(key.get_secret_value()) if key else ""
        self._bars = MappingProxyType(
            {
                Interval.M1: bars_capability(
                    Interval.M1,
                    reach_seconds=None,
                    # A window touches two months at most, and each month is a request.
                    span_seconds=28 * DAY,
                    delay_seconds=DAY,
                    stamp=stamp,
                    basis=Basis.RAW,
                    access=Access.KEY,
                    calendars=US,
                ),
                Interval.D1: bars_capability(
                    Interval.D1,
                    reach_seconds=None,
                    span_seconds=None,
                    delay_seconds=DAY,
                    stamp=Stamp.DATE,
                    basis=Basis.RAW,
                    access=Access.KEY,
                    calendars=US,
                ),
            }
        )

    @property
    def capabilities(self) -> Sequence[Capability]:
        """Minutes and days, as traded."""
        return tuple(self._bars.values())

    def fetch_bars(self, request: BarsRequest, *, now: datetime) -> BarsAnswer:
        """One request a month that the window touches, or one for the days. An error carries its provenance as ``fetch``.

        Raises OutOfReachError, with nothing sent, for what the capability does not cover; else what ``HttpClient.get`` raises, the
        error that the body's words stand for, and PayloadError, also where the stamps contradict the declared convention.
        """
        questions = self._questions(request, now)
        described = describe(f"{self._base_url}/query", {**questions[0], "apikey": "***"}, {})
        if len(questions) > 1:
            described += " and month=" + ", ".join(str(question["month"]) for question in questions[1:])
        exchange = Exchange(
            provider=NAME,
            symbol=request.symbol,
            interval=request.interval,
            request=described,
            started_at=now,
        )
        bodies: list[bytes] = []
        with exchange.on_record():
            self._refuse(request, now)
            bodies.extend(self._ask(question, request, exchange).body for question in questions)
            parsed = parse_series(bodies, request, stamp=self._stamp)
            if questions[0].get("outputsize") == "compact":
                _refuse_cut(bodies[0], request)
        fetch = exchange.provenance(rows=len(parsed.columns), dropped=parsed.dropped)
        return answer_of(request, of_all_pages(fetch, bodies), parsed)

    # --- asking

    def _refuse(self, request: BarsRequest, now: datetime) -> None:
        refuse_lacking(self.lacking, NAME)
        refuse_beyond_reach(request, self._bars, now=now, provider=NAME)
        if not request.interval.is_daily and datetime.fromtimestamp(request.start, NEW_YORK).date() < _FIRST_MONTH:
            raise OutOfReachError(
                f"{window_of(request)} begins before {_FIRST_MONTH:%Y-%m}, the first month there is", provider=NAME
            )

    def _questions(self, request: BarsRequest, now: datetime) -> list[dict[str, str | int]]:
        if request.interval.is_daily:
            is_recent = request.start >= now.timestamp() - _COMPACT_SECONDS
            size = "compact" if is_recent else "full"
            return [{"function": "TIME_SERIES_DAILY", "symbol": request.symbol, "outputsize": size, "datatype": "json"}]
        return [
            {
                "function": "TIME_SERIES_INTRADAY",
                "symbol": request.symbol,
                "interval": "1min",
                "month": month,
                "adjusted": "false",
                "extended_hours": "false",
                "outputsize": "full",
                "datatype": "json",
            }
            for month in _months(request)
        ]

    def _ask(self, question: Mapping[str, str | int], request: BarsRequest, exchange: Exchange) -> HttpAnswer:
        def check(answer: HttpAnswer) -> None:
            refuse_outage(answer, NAME)
            if answer.status != 200:
                raise PayloadError(f"HTTP {answer.status}, which is not documented: {answer.excerpt()}", provider=NAME)
            # The words are read redacted: they may repeat the key.
            refuse_words(answer.body, answer.excerpt(400), request)

        key = {"apikey": self._key.get_secret_value()} if self._key else {}
        return self._http.get(
            f"{self._base_url}/query",
            {**question, **key},
            {"accept": "application/json"},
            provider=NAME,
            account=self.account,
            priority=request.priority,
            check=check,
            attempts=exchange.attempts,
        )


def _months(request: BarsRequest) -> list[str]:
    """The months that a window touches in New York, as the vendor names them; one for an empty window, which is refused."""
    first, last = (datetime.fromtimestamp(at, NEW_YORK) for at in (request.start, max(request.end - 1, request.start)))
    count = (last.year - first.year) * 12 + last.month - first.month + 1
    months = (first.year * 12 + first.month - 1 + n for n in range(min(count, 3)))
    return [f"{month // 12:04}-{month % 12 + 1:02}" for month in months]


# --- parsing: pure, from here on ---------------------------------------------------------------------------------------


def refuse_words(body: bytes, words: str, request: BarsRequest) -> None:
    """Raise what a body without a series stands for. ``words``: its beginning as text, redacted, for the message."""
    if len(body) > _LONGEST_WORDS:
        return
    document = mapping(parse_json(body, NAME), NAME)
    if _SERIES.get(request.interval) in document or not document:
        return
    if not {"Information", "Note", "Error Message"} & set(document):
        return
    said = words.lower()
    # A refusal for asking too often offers a premium plan, too: look for that first.
    if "1 request per second" in said or "sparingly" in said:
        raise RateLimitedError(words[:200], provider=NAME, retry_after_seconds=1.0)
    if re.search(r"rate limit|requests per (?:day|minute)|calls per (?:day|minute)|call frequency|call volume", said):
        raise RateLimitedError(words[:200], provider=NAME)
    kinds: tuple[tuple[str, type[ProviderError]], ...] = (
        ("premium", EntitlementError),
        ("demo", EntitlementError),
        ("apikey", EntitlementError),
        ("api key", EntitlementError),
        ("invalid api call", UnknownSymbolError),
    )
    kind = next((kind for told, kind in kinds if told in said), PayloadError)
    raise kind(f"{request.symbol}: {words[:200]}", provider=NAME)


def parse_series(bodies: Sequence[bytes], request: BarsRequest, *, stamp: Stamp = Stamp.OPEN) -> ParsedBars:
    """The bars of all bodies, one a month, as opens: stamps that name the close are moved by the length of a bar.

    PayloadError where a body is of another symbol or interval, names no time zone, or where the regular session's first and last
    minute fit only the convention that was not declared: shifted by a minute, every bar would look right and be wrong.
    """
    stamps: list[Int64s] = []
    columns: list[Mapping[str, Sequence[Any]]] = []
    for body in bodies:
        document = mapping(parse_json(body, NAME), NAME)
        meta = mapping(document.get("Meta Data"), NAME)
        _check_meta(meta, request)
        series = mapping(document.get(_SERIES[request.interval]), NAME)
        zone = _zone(meta.get(_ZONE_KEYS[request.interval]))
        rows = columns_of_rows(list(series.values()), _ROW, "series", NAME)
        # Text is how this vendor writes numbers: nothing to flag.
        columns.append({name: [None if v is None else number(v) for v in column] for name, column in rows.items()})
        if request.interval.is_daily:
            stamps.append(np.array([label_of(_date(text)) for text in series], np.int64))
        else:
            local = [_local(text) for text in series]
            _refuse_other_convention({moment.hour * 60 + moment.minute for moment in local}, stamp)
            stamps.append(np.array([int(moment.replace(tzinfo=zone).timestamp()) for moment in local], np.int64))
    on_wire = np.concatenate(stamps) if stamps else np.empty(0, np.int64)
    shift = request.interval.seconds if stamp is Stamp.CLOSE and not request.interval.is_daily else 0
    return lay_out(on_wire - shift, joined(columns), request, provider=NAME, stamps=on_wire)


def _refuse_other_convention(seen: set[int], stamp: Stamp) -> None:
    """``seen``: the minutes of the day that were named. Only 09:30 without 16:00, or the reverse, tells one from the other."""
    names_opens, names_closes = _OPENS in seen and _CLOSES not in seen, _CLOSES in seen and _OPENS not in seen
    if stamp is Stamp.OPEN and names_closes:
        told, instead = "16:00 is named and 09:30 is not", "close"
    elif stamp is Stamp.CLOSE and names_opens:
        told, instead = "09:30 is named and 16:00 is not", "open"
    else:
        return
    raise PayloadError(
        f"the stamps name {instead}s ({told}), and MDP_ALPHAVANTAGE_STAMP says {stamp}: set it to {instead}", provider=NAME
    )


def _refuse_cut(body: bytes, request: BarsRequest) -> None:
    """The last 100 days must reach back to the window: a hole before the oldest of them would be read as no trading."""
    series = mapping(mapping(parse_json(body, NAME), NAME).get(_SERIES[request.interval]), NAME)
    oldest = min((_date(text) for text in series), default=None)
    first, _ = session_dates(request)
    if oldest is not None and len(series) >= 100 and oldest > first + timedelta(days=5):
        raise PayloadError(f"{request.symbol}: asked for days from {first}, and the compact answer begins {oldest}", provider=NAME)


def _check_meta(meta: Mapping[str, Any], request: BarsRequest) -> None:
    echoed = meta.get("2. Symbol")
    if str(echoed).upper() != request.symbol.upper():
        raise PayloadError(f"asked for {request.symbol}, answered with {shown(echoed)}", provider=NAME)
    granularity = meta.get("4. Interval")
    if not request.interval.is_daily and granularity != "1min":
        raise PayloadError(f"{request.symbol}: asked for 1min, answered with {shown(granularity)}", provider=NAME)


def _zone(name: object) -> ZoneInfo:
    try:
        return ZoneInfo(str(name))
    except (KeyError, ValueError, OSError):
        raise PayloadError(f"no time zone: {shown(name)}", provider=NAME) from None


def _local(text: str) -> datetime:
    if len(text) == len("2024-07-01 09:30:00"):
        with suppress(ValueError):
            # Without a zone: the body names it once, for all of them.
            return datetime.fromisoformat(text).replace(tzinfo=None)
    raise PayloadError(f"a stamp that is no local time: {shown(text)}", provider=NAME)


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise PayloadError(f"a stamp that is no date: {shown(text)}", provider=NAME) from None
