"""Which tier each symbol deserves: ranks by liquidity, caps, and a band around each boundary against flapping. Pure."""

from __future__ import annotations

import hashlib
import statistics
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.universe import Tier

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from market_data_pipeline.domain.universe import Instrument

# What the tags of versions that assign tiers begin with.
TIERS = "tiers-"
# The window of the figures, and of how many of its sessions a daily bar must be stored: of more than half.
SESSIONS = 21
LEAST_SESSIONS = 11
# Of these, close times volume is money. The volume of a crypto pair is in either currency, an index counts its members' shares,
# a currency pair has none.
_MEASURED_BY_BARS = frozenset({"equity", "stock", "etf", "etn", "adr", "fund", "reit"})
# Money is compared in one currency, and no rates are stored. What an instrument without a currency is taken to trade in.
BASE_CURRENCY = "USD"
_CURRENCY_OF_CALENDAR = MappingProxyType({"XNYS": "USD"})
# Daily turnover as a share of the market capitalisation where no symbol shows it: some half per cent on US exchanges.
_USUAL_TURNOVER = 0.005


class Basis(StrEnum):
    """What a figure rests on, the best first."""

    BARS = "bars"
    ADV = "adv_21d"
    CAP = "mkt_cap"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Liquidity:
    """How much of a symbol changes hands a day, in money; None where nothing tells. ``tier``: what it has now."""

    symbol: str
    tier: Tier
    daily_value: float | None = None
    basis: Basis = Basis.NONE


@dataclass(frozen=True, slots=True)
class TierPolicy:
    """How many symbols T0 and T1 may have, and how far beyond a boundary, as a share of its cap, a symbol must be to cross it."""

    caps: Mapping[Tier, int] = field(default_factory=lambda: MappingProxyType({Tier.T0: 1_200, Tier.T1: 3_000}))
    band: float = 0.1

    def margin(self, tier: Tier) -> int:
        """The band in ranks: a tenth of the cap, at least one rank where there is a cap at all."""
        cap = self.caps.get(tier, 0)
        return min(cap, max(1, round(cap * self.band))) if self.band else 0

    def __str__(self) -> str:
        caps = ",".join(f"{tier}={self.caps.get(tier, 0)}" for tier in (Tier.T0, Tier.T1))
        return f"caps {caps}, band {self.band:.0%}"


@dataclass(frozen=True, slots=True)
class Placing:
    """The tier that one symbol shall have, and its rank from 1; None for a symbol without a figure, which has no rank."""

    of: Liquidity
    tier: Tier
    rank: int | None

    @property
    def moves(self) -> bool:
        """Whether that is another tier than it has now."""
        return self.tier is not self.of.tier


def measurable_by_bars(instrument: Instrument) -> bool:
    """Whether close times volume of this instrument's daily bars can be compared with others'."""
    currency = instrument.currency or _CURRENCY_OF_CALENDAR.get(instrument.calendar)
    return instrument.asset_type in _MEASURED_BY_BARS and currency == BASE_CURRENCY


def liquidity_of(instruments: Sequence[Instrument], measured: Mapping[int, float]) -> list[Liquidity]:
    """The figure of each instrument: what its bars say (``measured``, by id), else its file's adv_21d, else from its mkt_cap.

    A market capitalisation becomes a daily value by the median turnover of the symbols of which both are known: the two are not
    comparable as they stand.
    """
    daily = {i.symbol_id: measured.get(i.symbol_id, i.adv_21d) for i in instruments}
    turnovers = [value / i.mkt_cap for i in instruments if (value := daily[i.symbol_id]) is not None and i.mkt_cap]
    turnover = statistics.median(turnovers) if turnovers else _USUAL_TURNOVER
    found = []
    for i in instruments:
        value, basis = daily[i.symbol_id], Basis.BARS if i.symbol_id in measured else Basis.ADV
        if value is None and i.mkt_cap is not None:
            value, basis = i.mkt_cap * turnover, Basis.CAP
        found.append(Liquidity(i.symbol, i.tier, value, basis if value is not None else Basis.NONE))
    return found


def assign_tiers(figures: Sequence[Liquidity], policy: TierPolicy) -> list[Placing]:
    """The tier of every symbol, the most liquid first, symbols without a figure last; ties are broken by symbol.

    T0 is filled first, then T1 from those left over; never beyond a cap, and nobody without a figure is in either. Within
    ``policy.margin`` ranks of a boundary a symbol stays on the side on which it is: who is further inside enters, who is further
    outside leaves, and places left over go to those who had them, then by rank. The same figures again move nobody.
    """
    ranked = sorted((f for f in figures if f.daily_value is not None), key=lambda f: (-(f.daily_value or 0.0), f.symbol))
    ranks = {figure.symbol: rank for rank, figure in enumerate(ranked, 1)}
    if len({figure.symbol for figure in figures}) < len(figures):
        raise InvalidInputError("a symbol has two figures: expected one for each")
    top = _filled(ranked, Tier.T0, policy)
    middle = _filled([figure for figure in ranked if figure.symbol not in top], Tier.T1, policy)
    rest = sorted((f for f in figures if f.daily_value is None), key=lambda f: f.symbol)
    return [
        Placing(
            figure,
            Tier.T0 if figure.symbol in top else Tier.T1 if figure.symbol in middle else Tier.T2,
            ranks.get(figure.symbol),
        )
        for figure in (*ranked, *rest)
    ]


def _filled(pool: Sequence[Liquidity], tier: Tier, policy: TierPolicy) -> set[str]:
    """The symbols of ``pool``, which is in order, that get the places of ``tier``; who had a better one counts as its member."""
    cap, margin = policy.caps.get(tier, 0), policy.margin(tier)

    def claim(place: int) -> int:
        if place < cap - margin:
            return 0
        return 1 if pool[place].tier <= tier and place < cap + margin else 2

    # The sort is stable: of one claim, the better rank first.
    return {pool[place].symbol for place in sorted(range(len(pool)), key=claim)[:cap]}


def digest_of(figures: Sequence[Liquidity], policy: TierPolicy) -> str:
    """What a tiering rests on, as one number: the policy and every figure, whatever the order and the tiers before."""
    lines = sorted(f"{f.symbol} {f.basis} {'' if f.daily_value is None else repr(float(f.daily_value))}" for f in figures)
    return hashlib.sha256("\n".join([str(policy), *lines]).encode()).hexdigest()


def digest_of_tiers(tiers: Mapping[str, Tier]) -> str:
    """Which symbol has which tier, as one number."""
    return hashlib.sha256("\n".join(f"{symbol} {tiers[symbol]}" for symbol in sorted(tiers)).encode()).hexdigest()


def why(placing: Placing, policy: TierPolicy) -> str:
    """Why a symbol moved, for the person who reads the list of moves."""
    if placing.rank is None:
        return "nothing tells how liquid it is"
    ends = {Tier.T0: policy.caps.get(Tier.T0, 0), Tier.T1: policy.caps.get(Tier.T0, 0) + policy.caps.get(Tier.T1, 0)}
    boundary = min(placing.tier, placing.of.tier)
    side = "within" if placing.tier < placing.of.tier else "beyond"
    end, margin = ends[boundary], policy.margin(boundary)
    if (side == "within" and placing.rank <= end - margin) or (side == "beyond" and placing.rank > end + margin):
        return f"rank {placing.rank:,} is {side} the {end:,} of {boundary} by {margin:,} or more"
    return f"rank {placing.rank:,}: " + ("a place was free" if side == "within" else "others took its place")
