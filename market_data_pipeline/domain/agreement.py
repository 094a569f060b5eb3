"""Whether two providers tell the same of one session, and who is believed where they do not. Pure: values in, values out.

Two honest providers differ: by the auctions they count, by late corrections, by prints that one of them filters. How far is
measured, field by field: minutes on SPY and QQQ of 2025 (Yahoo and Polygon; PROVIDERS.md), days on five pairs of 1998 to 2026
(``docs/concepts.md`` has the figures). Feeds that count other trades agree in prices and never in volume.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum
from hashlib import blake2b
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.candles import Interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date

    from market_data_pipeline.domain.candles import Bools, CandleColumns, Float64s
    from market_data_pipeline.domain.capabilities import Feed

PRICES = ("open", "high", "low", "close")
_BP = 1e-4
# One tick, however many basis points it is of a cheap stock.
_CENT, _HUNDREDTH_OF_A_CENT = 0.01, 0.0001
# All closes by one factor: another basis, or from about a hundred on, another unit.
_ANOTHER_BASIS = math.log(1.3)
_ANOTHER_UNIT = (80.0, 125.0)


class Comparison(StrEnum):
    """What two answers about one session are to each other. The values are those of ``second_opinions.verdict``."""

    AGREE = "agree"
    FEED_DIFFERENCE = "feed_difference"
    """Prices agree; the feeds count other trades, so volumes need not."""
    DISAGREE = "disagree"
    UNIT_SLIP = "unit_slip"
    BASIS = "basis"

    @property
    def is_agreement(self) -> bool:
        """Nothing about it needs anybody's attention."""
        return self in {Comparison.AGREE, Comparison.FEED_DIFFERENCE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How far two providers may differ.

    ``bp``: basis points, by price field, that ``share`` of the bars must keep to (a cent is always allowed). ``worst_bp``: that no
    bar may exceed. ``volume``: the ratio of the volumes over the session, least and most.
    """

    bp: Mapping[str, float]
    worst_bp: Mapping[str, float]
    share: float
    volume: tuple[float, float]


def _by_field(open_: float, high: float, low: float, close: float) -> Mapping[str, float]:
    return MappingProxyType({"open": open_, "high": high, "low": low, "close": close})


# Minutes: the largest difference measured was 1.4 bp, and 97 to 99 of 100 prices were identical; volume 0.93 to 1.50.
_MINUTES = Tolerance(bp=_by_field(5, 5, 5, 5), worst_bp=_by_field(100, 300, 300, 100), share=0.95, volume=(0.85, 1.6))
# Days, 1 % and 99 % quantiles over five pairs: close 12 bp; open 40 bp (auction or first print); high and low 82 bp (prints that
# one of them filters); volume 1.00 to 1.43.
_DAYS = Tolerance(bp=_by_field(100, 150, 150, 25), worst_bp=_by_field(100, 150, 150, 25), share=1.0, volume=(0.7, 1.7))
# Prices of another feed are those of other trades. Not measured: nothing recorded holds both; a spread's width is allowed.
_OTHER_FEED = Tolerance(bp=_by_field(30, 30, 30, 30), worst_bp=_by_field(300, 300, 300, 300), share=0.9, volume=(0.0, math.inf))


def tolerance(interval: Interval, *, is_one_base: bool) -> Tolerance:
    """What two providers may differ by; ``is_one_base``: their feeds count the same trades."""
    if not is_one_base:
        return _OTHER_FEED
    return _DAYS if interval is Interval.D1 else _MINUTES


@dataclass(frozen=True, slots=True)
class FieldAgreement:
    """One price field: the share of the bars within the tolerance, and the largest difference in basis points."""

    agreeing: float
    worst_bp: float


@dataclass(frozen=True, slots=True, eq=False)
class Agreement:
    """What came of a comparison.

    ``compared`` bars are in both; ``only_first`` and ``only_second`` in one. ``volume_ratio``: of the second's volume to the
    first's over the bars in both, None where the first has none. ``off``: one element a compared bar, those whose prices are beyond
    the tolerance (all of them where the basis or the unit differs). ``opened_at``: of the compared bars. ``reason``: one sentence.
    """

    verdict: Comparison
    reason: str
    compared: int
    only_first: int
    only_second: int
    fields: Mapping[str, FieldAgreement] = field(default_factory=dict)
    volume_ratio: float | None = None
    off: Bools = field(default_factory=lambda: np.zeros(0, bool))
    opened_at: Sequence[int] = ()

    @property
    def off_opened_at(self) -> list[int]:
        """The bars about which the two disagree."""
        return [at for at, is_off in zip(self.opened_at, self.off.tolist(), strict=True) if is_off]


def compare(first: CandleColumns, second: CandleColumns, interval: Interval, *, feeds: tuple[Feed, Feed]) -> Agreement | None:
    """What ``second`` is to ``first``, both lawful, positive and sorted; None where they have no bar in common.

    A bar that only one has is no disagreement: providers omit minutes without a trade, each by its own rules.
    """
    _, here, there = np.intersect1d(first.opened_at, second.opened_at, assume_unique=True, return_indices=True)
    if not len(here):
        return None
    a, b = first.take(here), second.take(there)
    is_one_base = feeds[0].volume_base == feeds[1].volume_base
    allowed = tolerance(interval, is_one_base=is_one_base)
    total = float(a.volume.sum())
    found = Agreement(
        Comparison.AGREE,
        f"{len(a)} bars agree",
        compared=len(a),
        only_first=len(first) - len(a),
        only_second=len(second) - len(a),
        volume_ratio=float(b.volume.sum()) / total if total > 0 else None,
        off=np.zeros(len(a), bool),
        opened_at=a.opened_at.tolist(),
    )
    factor = float(np.exp(np.median(np.log(b.close / a.close))))
    if abs(math.log(factor)) >= _ANOTHER_BASIS:
        low, high = _ANOTHER_UNIT
        is_unit = low <= max(factor, 1 / factor) <= high
        why = f"closes are {factor:.4g} times the stored ones: another {'unit' if is_unit else 'basis'}"
        return replace(found, verdict=Comparison.UNIT_SLIP if is_unit else Comparison.BASIS, reason=why, off=~found.off)
    return _with_fields(found, a, b, allowed, is_one_base=is_one_base)


def _with_fields(found: Agreement, a: CandleColumns, b: CandleColumns, allowed: Tolerance, *, is_one_base: bool) -> Agreement:
    """``found`` with what the fields of bars of one basis say."""
    fields, off, wrong = {}, found.off.copy(), []
    for name in PRICES:
        bp, is_a_tick = _differences(getattr(a, name), getattr(b, name))
        beyond, far = (bp > allowed.bp[name]) & ~is_a_tick, (bp > allowed.worst_bp[name]) & ~is_a_tick
        fields[name] = FieldAgreement(float((~beyond).mean()), float(bp.max()))
        if far.any() or beyond.mean() > 1 - allowed.share:
            off |= beyond
            wrong.append(f"{name} by up to {bp.max():.1f} bp in {int(beyond.sum())} of {len(a)} bars")
    ratio = found.volume_ratio
    least, most = allowed.volume
    # A provider without volumes (of indices, of currencies) says nothing about them; and no bar is to blame for their sum.
    if is_one_base and ratio and not least <= ratio <= most:
        wrong.append(f"volume is {ratio:.3g} times the stored")
    found = replace(found, fields=fields, off=off)
    if wrong:
        return replace(found, verdict=Comparison.DISAGREE, reason="; ".join(wrong))
    if is_one_base:
        return found
    said = f"; volume is {ratio:.3g} times the stored" if ratio else ""
    return replace(found, verdict=Comparison.FEED_DIFFERENCE, reason=f"prices agree{said}, of a feed that counts other trades")


def _differences(a: Float64s, b: Float64s) -> tuple[Float64s, Bools]:
    """In basis points, and which are no more than one tick. Float32 on the wire must not make a cent more than a cent."""
    tick = np.where(a >= 1.0, _CENT, _HUNDREDTH_OF_A_CENT)
    apart = np.abs(b - a)
    return apart / a / _BP, apart <= tick * 1.01


# --- who is believed ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ruling:
    """Who is believed. ``by``: "agreement", "majority" (a third was heard) or "policy" (nobody else was)."""

    winner: str
    loser: str | None
    by: str


def ruling(
    stored: str,
    second: str,
    verdict: Comparison,
    *,
    policy: Sequence[str],
    third_with_stored: Comparison | None = None,
    third_with_second: Comparison | None = None,
) -> Ruling:
    """Two of three are believed; without a third voice that sides with one of them, whoever stands first in the policy.

    A provider that the policy does not name stands behind all that it names, and what is stored before what is not.
    """
    if verdict.is_agreement:
        return Ruling(stored, None, "agreement")
    sides_with_stored = third_with_stored is not None and third_with_stored.is_agreement
    sides_with_second = third_with_second is not None and third_with_second.is_agreement
    if sides_with_stored != sides_with_second:
        winner, loser = (stored, second) if sides_with_stored else (second, stored)
        return Ruling(winner, loser, "majority")
    rank = {name: place for place, name in reversed(list(enumerate(policy)))}
    is_second_better = rank.get(second, len(policy)) < rank.get(stored, len(policy))
    return Ruling(second, stored, "policy") if is_second_better else Ruling(stored, second, "policy")


# --- who is asked ------------------------------------------------------------------------------------------------------


def draw(symbol: str, interval: Interval, session: date) -> float:
    """A number from [0, 1), the same everywhere and always: a session is in the sample where it is less than the share."""
    digest = blake2b(f"{symbol} {interval} {session}".encode(), digest_size=8, person=b"mdp opinion").digest()
    return int.from_bytes(digest) / 2**64
