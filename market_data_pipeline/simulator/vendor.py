"""What the server and a simulated vendor say to each other: a request as read, a call as understood, an answer faults can bend.

A vendor is a ``Vendor`` with one ``Endpoint`` for each thing it serves; ``simulator/vendors.py`` lists them all.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import orjson

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from market_data_pipeline.domain.candles import Bools, Int64s
    from market_data_pipeline.domain.capabilities import RateLimit
    from market_data_pipeline.simulator.limits import LimitState
    from market_data_pipeline.simulator.market import Market

Headers = tuple[tuple[str, str], ...]
JSON_TYPE = "application/json;charset=utf-8"
FREE, PREMIUM = "free", "premium"


# --- HTTP --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Received:
    """One HTTP request, read whole. ``path`` is still percent-encoded; header names are lower case.

    An endpoint gets it with the vendor's prefix taken off ``path``.
    """

    method: str
    path: str
    query: str
    headers: dict[str, str] = field(repr=False)
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Delivery:
    """How the bytes of a reply leave. ``reset``: before, headers or body says when the connection is cut by RST, "" never.

    ``cut_to``: the body ends after this share of it, whatever Content-Length promises. ``bytes_per_second`` and
    ``head_bytes_per_second`` 0: all at once. ``padding``: that many spaces follow the body and are part of it.
    """

    stall_before_seconds: float = 0.0
    stall_after_headers_seconds: float = 0.0
    bytes_per_second: float = 0.0
    head_bytes_per_second: float = 0.0
    cut_to: float = 1.0
    reset: str = ""
    padding: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP reply, ready to be sent. ``headers`` without Content-Length, which the server adds from ``body``."""

    status: int
    headers: Headers
    body: bytes
    delivery: Delivery = field(default_factory=Delivery)

    def with_header(self, name: str, value: str) -> Reply:
        """The same reply with this header once."""
        return replace(self, headers=(*(h for h in self.headers if h[0] != name), (name, value)))


def json_reply(status: int, document: object, *, content_type: str = JSON_TYPE) -> Reply:
    """A reply that says ``document``; numpy arrays become lists, NaN null."""
    return Reply(status, (("content-type", content_type),), orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY))


def bars_capability(interval: str) -> str:
    """The name of the capability to serve bars of ``interval``, as `domain.capabilities.bars` names it."""
    if interval == "1d":
        return "eod"
    return "bars_1h" if interval in {"60m", "1h"} else f"bars_{interval}"


# --- what is asked -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """One request as the vendor understood it: what limits and fault rules look at, and what the vendor answers.

    ``capability`` as in ``domain.capabilities`` ("bars_1m", "eod", "quotes_l1", "options_chain", "macro"), "" for anything
    else, such as a cookie. ``interval``: of bars, as the data directory spells it ("1m", "1h", "1d"). ``start`` and ``end``: epoch
    seconds, half-open. ``key``: the account's key as sent. ``plan``: what it has paid for. ``page``: the page asked for, "" the
    first. ``asked``: whatever else the endpoint has read from the request.
    """

    capability: str
    symbols: tuple[str, ...] = ()
    interval: str | None = None
    start: int | None = None
    end: int | None = None
    key: str = field(default="", repr=False)
    plan: str = FREE
    page: str = ""
    asked: Any = None

    @property
    def account(self) -> str:
        """The fingerprint of the key: tells accounts apart and gives none away. "" without a key."""
        return sha256(self.key.encode()).hexdigest()[:12] if self.key else ""


@dataclass(frozen=True, slots=True)
class Scene:
    """What an endpoint answers from. ``base_url``: the vendor's, as this client reached it, for links to further pages."""

    market: Market
    now_us: int
    seed: int
    base_url: str

    @property
    def now(self) -> int:
        """Epoch seconds of the virtual now."""
        return self.now_us // 1_000_000


# --- what is answered --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class BarTable:
    """The bars of one symbol before they are written down. Arrays are parallel; a null bar is NaN in all columns.

    ``symbol`` is what the answer will echo. ``opened_at``: epoch seconds; a vendor that names bars by their close adds that when it
    writes. ``columns``: open, high, low, close and volume, as floats, or as lists where a fault made something else of them.
    ``further``: what else the vendor sends for each bar (adjclose, vw, n). ``currency``: "" for what the vendor says by itself.
    """

    symbol: str
    interval: str
    opened_at: Int64s
    columns: Mapping[str, Any]
    further: Mapping[str, Any] = field(default_factory=dict)
    currency: str = ""

    def __len__(self) -> int:
        return len(self.opened_at)

    def take(self, selector: Bools | Int64s) -> BarTable:
        """The same table with the rows that ``selector`` names, in its order."""
        return replace(
            self,
            opened_at=self.opened_at[selector],
            columns={name: column[selector] for name, column in self.columns.items()},
            further={name: column[selector] for name, column in self.further.items()},
        )


class Answer(Protocol):
    """Something that can be written down."""

    def reply(self) -> Reply:
        """The reply in the vendor's wire format."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class BarsAnswer:
    """One page of bars of one or more symbols. ``write`` puts it in the vendor's wire format after every fault has bent it.

    ``next_page``: how the vendor names the page after this one, "" where there is none; ``page``: this one. ``declared``: how many
    rows the answer says it has, where that is not how many it has.
    """

    tables: Sequence[BarTable]
    write: Callable[[BarsAnswer], Reply]
    page: str = ""
    next_page: str = ""
    declared: int | None = None

    @property
    def count(self) -> int:
        """How many rows the answer says it has, over all tables."""
        return sum(map(len, self.tables)) if self.declared is None else self.declared

    def reply(self) -> Reply:
        """The reply in the vendor's wire format."""
        return self.write(self)


@dataclass(frozen=True, slots=True, eq=False)
class RecordsAnswer:
    """An answer of records that are not bars: quotes, contracts, observations. Faults may drop, repeat, or change them.

    ``symbol``: what the records belong to, for faults that choose by symbol; "" where each record names its own.
    """

    records: Sequence[Mapping[str, Any]]
    write: Callable[[Sequence[Mapping[str, Any]]], Reply]
    symbol: str = ""

    def reply(self) -> Reply:
        """The reply in the vendor's wire format."""
        return self.write(self.records)


def writable(name: str, column: Any) -> Any:  # noqa: ANN401 - faults may have made a list of strings of it
    """A column as orjson takes it; NaN becomes null. A volume is written as JSON integers as long as it has no fraction."""
    if not isinstance(column, np.ndarray):
        return column
    known = np.isfinite(column)
    if name != "volume" or not (column[known] == np.floor(column[known])).all():
        return np.ascontiguousarray(column)
    if known.all():
        return column.astype(np.int64)
    return [int(v) if k else None for v, k in zip(column.tolist(), known.tolist(), strict=True)]


# --- vendors -----------------------------------------------------------------------------------------------------------


class Endpoint(Protocol):
    """One thing that a vendor serves. Without state: the same call in the same scene has the same answer, byte for byte."""

    def parse(self, received: Received) -> Call | Reply | None:
        """What is asked; a Reply that refuses it (a bad key, an unknown interval); None where the path is another endpoint's."""
        ...

    def answer(self, call: Call, scene: Scene) -> Answer | Reply:
        """The answer, which faults may bend; a Reply where there is nothing to bend (an unknown symbol, a lesser plan)."""
        ...


@dataclass(frozen=True, slots=True)
class Vendor:
    """A simulated provider. ``prefix``: its paths begin with it ("/finnhub/api/v1"; "" is the root, for whatever no other claims).

    ``limits`` by plan, as documented; a plan that is not listed has none. ``variables``: the MDP_* variables that make the
    pipeline use it, from its base URL and a plan. ``refuse``: its own words for an HTTP status, with its own status; ``detail``
    is what went wrong, "" for the usual text. ``over_limit``: what it says when an account asks too often, where that is more than
    ``refuse(429, "")``. ``limit_headers``: what it tells about the account's limit with every reply.
    """

    name: str
    prefix: str
    endpoints: Sequence[Endpoint]
    variables: Callable[[str, str], Mapping[str, str]]
    refuse: Callable[[int, str], Reply]
    limits: Mapping[str, Sequence[RateLimit]] = field(default_factory=dict)
    over_limit: Callable[[Call, LimitState], Reply] | None = None
    limit_headers: Callable[[LimitState, Scene], Headers] = lambda _state, _scene: ()


def made_up_key(vendor: str, plan: str) -> str:
    """A key that the simulated ``vendor`` takes for an account with ``plan``. Anything may follow it, for several accounts."""
    return f"simulated-{vendor}-{plan}-key"


def plan_of(vendor: str, key: str) -> str | None:
    """The plan of the account that ``key`` belongs to; None for a key that ``vendor`` does not know."""
    return next((plan for plan in (FREE, PREMIUM) if key.startswith(made_up_key(vendor, plan))), None)
