"""What a provider can do, how often it may be asked, and for whom: capabilities, limits and priorities as values. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING

from market_data_pipeline.domain.errors import InvalidInputError

if TYPE_CHECKING:
    from market_data_pipeline.domain.candles import Interval

QUOTES_L1 = "quotes_l1"
OPTIONS_CHAIN = "options_chain"
MACRO = "macro"
ACTIONS = "actions"
EOD = "eod"


def bars(interval: Interval) -> str:
    """The name of the capability to serve ``interval``: "eod" for 1d, else "bars_1m" and so on."""
    return EOD if interval.is_daily else f"bars_{interval.value}"


class Feed(IntEnum):
    """Whose trades a bar counts. The value is what the ``feed`` columns hold."""

    CONSOLIDATED = 0
    SIP = 1
    IEX = 2
    CBOE = 3

    @property
    def label(self) -> str:
        """The name used in settings, tables and JSON."""
        return self.name.lower()

    @property
    def volume_base(self) -> str:
        """Feeds of one base count the same trades: their volumes may stand in one series."""
        return "consolidated" if self in {Feed.CONSOLIDATED, Feed.SIP} else self.label


class Stamp(StrEnum):
    """Which instant a bar is named by on the wire. Adapters hand out the open always."""

    OPEN = "open"
    CLOSE = "close"
    DATE = "date"


class Basis(StrEnum):
    """Which corporate actions the prices are adjusted for."""

    RAW = "raw"
    SPLIT = "split"
    TOTAL = "split+dividend"


class Access(StrEnum):
    """What must be shown at the door."""

    OPEN = "open"
    KEY = "key"
    PLAN = "plan"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """One thing that one provider can do.

    ``reach_seconds``: how long ago the oldest bar may have opened; ``span_seconds``: the longest window of one request;
    ``rows_per_request``: how many rows one page may hold; None for no limit. ``delay_seconds``: how long after a bar's end the
    provider has it. ``interval``: of bars, None for everything else. ``calendars``: of the exchanges whose instruments it knows,
    None where it is not limited to some. ``settled_after_seconds``: how long after a session's close late prints and the closing
    auction are in; ``final_after_sessions``: how many sessions later its last regular correction has come (T+1: 1), asked for as
    long after that session's close. 0 and 0: what is served never changes.
    """

    name: str
    interval: Interval | None = None
    reach_seconds: int | None = None
    span_seconds: int | None = None
    symbols_per_request: int = 1
    rows_per_request: int | None = None
    delay_seconds: int = 0
    stamp: Stamp = Stamp.OPEN
    basis: Basis = Basis.SPLIT
    feed: Feed = Feed.CONSOLIDATED
    access: Access = Access.OPEN
    calendars: frozenset[str] | None = None
    settled_after_seconds: int = 3600
    final_after_sessions: int = 1

    def knows(self, calendar: str | None) -> bool:
        """Whether instruments of this calendar (None: of some calendar) can be asked for."""
        return self.calendars is None or calendar is None or calendar in self.calendars


# XNYS is the calendar of every exchange of US shares.
US = frozenset({"XNYS"})


def bars_capability(  # noqa: PLR0913 - as many limits as vendors invent
    interval: Interval,
    *,
    reach_seconds: int | None,
    span_seconds: int | None,
    symbols_per_request: int = 1,
    rows_per_request: int | None = None,
    delay_seconds: int = 0,
    stamp: Stamp = Stamp.OPEN,
    basis: Basis = Basis.SPLIT,
    feed: Feed = Feed.CONSOLIDATED,
    access: Access = Access.OPEN,
    calendars: frozenset[str] | None = None,
    settled_after_seconds: int = 3600,
    final_after_sessions: int = 1,
) -> Capability:
    """The capability to serve bars of ``interval``."""
    return Capability(
        name=bars(interval),
        interval=interval,
        reach_seconds=reach_seconds,
        span_seconds=span_seconds,
        symbols_per_request=symbols_per_request,
        rows_per_request=rows_per_request,
        delay_seconds=delay_seconds,
        stamp=stamp,
        basis=basis,
        feed=feed,
        access=access,
        calendars=calendars,
        settled_after_seconds=settled_after_seconds,
        final_after_sessions=final_after_sessions,
    )


class Lane(StrEnum):
    """What a request is for: the newest data, history that somebody asked for, or what the ledger itself finds lacking."""

    LIVE = "live"
    BACKFILL = "backfill"
    HEALING = "healing"


@dataclass(frozen=True, slots=True)
class Priority:
    """Who a request is for. ``share`` of every limit is open to it: what is left is kept for those above.

    ``is_trial``: it finds out whether a provider is back. It is sent once: no retries. ``most``: no larger share than this.
    """

    lane: Lane = Lane.BACKFILL
    tier: str = "T0"
    is_trial: bool = False
    most: float = 1.0

    @property
    def share(self) -> float:
        """From 1.0 for live T0 down to 0.4 for a T2 backfill: the scarce budget is spent on T0, and live before backfill."""
        return min(_SHARES[self.lane, self.tier], self.most)


_SHARES = {
    (Lane.LIVE, "T0"): 1.0,
    (Lane.LIVE, "T1"): 0.95,
    (Lane.LIVE, "T2"): 0.9,
    (Lane.BACKFILL, "T0"): 0.8,
    (Lane.BACKFILL, "T1"): 0.6,
    (Lane.BACKFILL, "T2"): 0.4,
    (Lane.HEALING, "T0"): 0.8,
    (Lane.HEALING, "T1"): 0.6,
    (Lane.HEALING, "T2"): 0.4,
}


HISTORY = Priority()


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most ``requests`` in any window of ``seconds``."""

    requests: int
    seconds: float

    def __str__(self) -> str:
        """As it is written in MDP_LIMITS: "60/m"."""
        unit = next((name for name, seconds in _UNITS.items() if seconds == self.seconds), None)
        return f"{self.requests}/{unit}" if unit else f"{self.requests}/{self.seconds:g}s"


_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LIMIT = re.compile(r"(?P<requests>[1-9]\d*)/(?P<count>\d+(?:\.\d+)?)?(?P<unit>[smhd])", re.ASCII)


def parse_limits(text: str) -> dict[str, tuple[RateLimit, ...]]:
    """Limits by provider from "yahoo=2/s,2000/h; finnhub=60/m,30/s"; "yahoo=none" lifts them.

    InvalidInputError names what is wrong.
    """
    limits: dict[str, tuple[RateLimit, ...]] = {}
    for part in filter(None, (p.strip() for p in text.split(";"))):
        name, equals, listed = part.partition("=")
        if not equals or not name.strip() or not listed.strip():
            raise InvalidInputError(f"limits {part!r}: expected PROVIDER=N/s,N/m,N/h,N/d or PROVIDER=none")
        limits[name.strip()] = () if listed.strip() == "none" else tuple(_limit(one.strip(), part) for one in listed.split(","))
    return limits


def _limit(text: str, where: str) -> RateLimit:
    found = _LIMIT.fullmatch(text)
    if found is None or (found["count"] is not None and float(found["count"]) == 0):
        raise InvalidInputError(f"limit {text!r} in {where!r}: expected a number of requests and a time, such as 60/m or 5/s")
    return RateLimit(int(found["requests"]), float(found["count"] or 1) * _UNITS[found["unit"]])
