"""Instruments: what a universe file may say, and what we know of each symbol. Pure; files and tables are read elsewhere."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from market_data_pipeline.domain.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import date

# Symbols become Dagster partition keys, URL path segments and file names: a closed alphabet keeps all three safe.
# Dagster forbids "," "|" and "..." in keys (DAGSTER.md §1.1); "/" is allowed for crypto pairs and is quoted in URLs.
SYMBOL_PATTERN = re.compile(r"\^?[A-Z0-9](?:[A-Z0-9=/_-]|\.(?!\.))*", re.ASCII)
SYMBOL_MAX_LENGTH = 32

# Exchange names as users and vendors write them -> the calendar of exchange_calendars that holds their sessions.
CALENDARS: Mapping[str, str] = MappingProxyType(
    {
        "XNYS": "XNYS",
        "NYSE": "XNYS",
        "XNAS": "XNYS",
        "NASDAQ": "XNYS",
        "ARCX": "XNYS",
        "XASE": "XNYS",
        "BATS": "XNYS",
        "XHKG": "XHKG",
        "XTKS": "XTKS",
        "XLON": "XLON",
        "XETR": "XETR",
        "XPAR": "XPAR",
        "XAMS": "XAMS",
        "XTSE": "XTSE",
        "XASX": "XASX",
        "XBOM": "XBOM",
        "CRYPTO": "24/7",
    }
)


class Tier(StrEnum):
    """How much freshness a symbol is worth: T0 most liquid, T1, T2 the rest."""

    T0 = "T0"
    T1 = "T1"
    T2 = "T2"


def valid_symbol(text: str) -> str:
    """``text`` when it can be a symbol; InvalidInputError names it otherwise."""
    if len(text) > SYMBOL_MAX_LENGTH or not SYMBOL_PATTERN.fullmatch(text):
        raise InvalidInputError(
            f"{text!r} is not a symbol: expected 1-{SYMBOL_MAX_LENGTH} capital letters, digits and . - = / _ , with ^ allowed first"
        )
    return text


def calendar_of(exchange: str) -> str:
    """The name of the calendar that ``exchange`` keeps; InvalidInputError lists the exchanges we know."""
    try:
        return CALENDARS[exchange.upper()]
    except KeyError:
        raise InvalidInputError(f"unknown exchange {exchange!r}: expected one of {', '.join(CALENDARS)}") from None


@dataclass(frozen=True, slots=True)
class UniverseEntry:
    """One line of a universe file, already judged: symbol, exchange and tier are valid."""

    symbol: str
    exchange: str
    tier: Tier
    asset_type: str = "equity"
    currency: str | None = None
    adv_21d: float | None = None
    mkt_cap: float | None = None
    active_from: date | None = None
    active_to: date | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def calendar(self) -> str:
        """The calendar that says when this symbol trades."""
        return calendar_of(self.exchange)


@dataclass(frozen=True, slots=True)
class Instrument:
    """A symbol as the database knows it.

    ``active_from`` and ``active_to``, as the universe file says, and ``listed_from`` and ``listed_to``, as ``domain.listing``
    infers, are inclusive session dates, None for open. ``is_unknown``: no provider has ever known it.
    """

    symbol_id: int
    symbol: str
    exchange: str
    calendar: str
    tier: Tier
    asset_type: str = "equity"
    currency: str | None = None
    adv_21d: float | None = None
    mkt_cap: float | None = None
    active_from: date | None = None
    active_to: date | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    listed_from: date | None = None
    listed_to: date | None = None
    is_unknown: bool = False

    def name_at(self, provider: str) -> str:
        """What ``provider`` calls this symbol."""
        return self.aliases.get(provider, self.symbol)

    def listed_on(self, session: date) -> bool:
        """Whether the instrument existed on ``session``, by the universe file and by the evidence: only what both allow."""
        begins = (self.active_from, self.listed_from)
        ends = (self.active_to, self.listed_to)
        return not (
            self.is_unknown
            or any(first is not None and session < first for first in begins)
            or any(last is not None and session > last for last in ends)
        )

    @property
    def as_filed(self) -> Instrument:
        """As the universe file alone has it: what may be asked for on purpose."""
        return replace(self, listed_from=None, listed_to=None, is_unknown=False)

    @property
    def is_always_listed(self) -> bool:
        """Nothing says that there is a session in which it did not exist."""
        bounds = (self.active_from, self.active_to, self.listed_from, self.listed_to)
        return not self.is_unknown and all(bound is None for bound in bounds)
