"""What can be wrong with bars that look right: repair flags, units, bases, and what an answer is held against. No I/O.

A price is called wrong only where something explains it: a factor of a hundred against what stands around it or what we hold, a
split that is known, a level that no market reaches from one minute to the next. What is merely far away (a crash, a takeover, the
first print after a halt) is kept and flagged. The rules of a hundred and their bad and fixed examples are yfinance's
(``_fix_unit_mixups``, ``tests/data``); the thresholds are ours, held against every real bar recorded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntFlag
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.capabilities import Basis
from market_data_pipeline.domain.errors import MixedBasisError, PayloadError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date

    from market_data_pipeline.domain.candles import Bools, CandleColumns, Float64s, Int32s, Int64s
    from market_data_pipeline.domain.ports import CorporateAction

# A slip of pounds and pence is a hundred; what the market moved meanwhile may be a quarter of it, either way.
_HUNDRED = (80.0, 125.0)
# No market goes so far from one minute to the next and stays: trading is halted long before (LULD: 20 %, doubled at the edges).
_NO_MARKET_MOVES = math.log(2.8)
# From here on a move is worth a second opinion.
_WORTH_A_LOOK = math.log(3.0)
# Smaller splits than 13:10 cannot be told from a bad day.
_SMALLEST_SPLIT = math.log(1.3)
# How far a move may be from the factor of a split and still be that split: a day's move, less for small splits.
_SPLIT_TOLERANCE = 0.2
# Providers mix bases around a split, not years from it. AAPL fell by half on 2000-09-29, a hundred days after a 2:1 split.
_NEAR_A_SPLIT_DAYS = 45
# A stored close this far from the window says nothing of today's level.
_NEAR_ENOUGH_DAYS = 45
# Bars on each side that must stand on their level for a step to be one.
_SIDE = 5
# The share of bars that settles which of two units is the usual one, where nothing stored does.
_MAJORITY = 2 / 3


class BarFlag(IntFlag):
    """What was done to a bar, or is odd about it, before it was stored: the bits of the ``flags`` columns; 0 for none."""

    DUPLICATE_RESOLVED = 1
    """Several rows had this stamp and different values: the first received was kept."""
    STRING_NUMBERS = 2
    """Some of its values came as text and were read as numbers."""
    LIVE_ROW_MERGED = 4
    """A live row of the same session came beside it and was left out."""
    UNEXPLAINED_JUMP = 8
    """Far from the bar before it, and nothing explains why: kept as it came, and the first to get a second opinion."""
    OVERRULED_ANOTHER = 16
    """It replaced another provider's bar after a second opinion: ``second_opinions`` says why, the revisions what was there."""


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """What we hold already, for an answer to be held against.

    ``close``: the stored close nearest to the window, before it where there is one, else after it; None where nothing is stored.
    ``session``: the session it belongs to. ``splits``: those known for the symbol, whoever told them. ``held_at`` and
    ``held_close``: opens and closes stored inside the window itself (a refetch), sorted; None where none were looked up.
    ``source``: whose word ``close`` is: "stored", or "own" for what the answer itself says of the session before.
    """

    close: float | None = None
    session: date | None = None
    splits: Sequence[CorporateAction] = ()
    held_at: Int64s | None = None
    held_close: Float64s | None = None
    source: str = "stored"


@dataclass(frozen=True, slots=True)
class Findings:
    """What is wrong with the prices of an answer.

    ``kind`` "ok", or "malformed" or "mixed_basis": then nothing of it can be used, and ``reason`` says why. ``refused``: rows to
    refuse, by index, each with its reason. ``jumps``: rows that nothing explains and nothing condemns.
    """

    kind: str = "ok"
    reason: str | None = None
    refused: Mapping[int, str] = field(default_factory=dict)
    jumps: tuple[int, ...] = ()


def examine(
    columns: CandleColumns,
    *,
    days: Int32s,
    places: Int64s,
    reference: Reference,
    actions: Sequence[CorporateAction],
    basis: Basis,
    today: int,
) -> Findings:
    """Hold prices against each other and against ``reference``.

    ``columns`` are lawful, positive and sorted; ``days`` says the session of each (days since 1970) and ``places`` its place in the
    grid: the next place in the same session is the next bar. ``actions``: what the answer itself tells. ``today``: days since 1970.
    """
    if not len(columns):
        return Findings()
    splits = _splits((*reference.splits, *actions))
    smallest = _SMALLEST_SPLIT if splits else _NO_MARKET_MOVES
    near = _Nearest.to(columns, days, reference)
    held = _held_against(columns, reference)
    # Most answers end here: nothing in them is far from anything.
    is_calm = float(columns.high.max()) < math.exp(smallest) * float(columns.low.min())
    if is_calm and (near is None or abs(near.log_ratio) < smallest) and (held is None or abs(held) < _SMALLEST_SPLIT):
        return Findings()
    units = _units(columns, near, held)
    if units.kind != "ok":
        return units
    good = np.ones(len(columns), bool)
    good[list(units.refused)] = False
    rest = _Series(columns.close[good], days[good], places[good], np.flatnonzero(good))
    if not len(rest.rows):
        return units
    near = _Nearest.to(columns.take(good), days[good], reference)
    reason = _other_than_held(held) or (near and near.on_another_basis(splits, today)) or rest.two_bases(splits, basis, today)
    if reason:
        return Findings(MixedBasisError.kind, reason, units.refused)
    jumps = set(rest.jumps(splits)) | {int(row) for row in np.flatnonzero(good & _wide(columns))}
    if near is not None and near.is_worth_a_look(splits):
        jumps.add(int(rest.rows[near.row]))
    return Findings(refused=units.refused, jumps=tuple(sorted(jumps)))


@dataclass(frozen=True, slots=True)
class Step:
    """A stored close so far from the one before it that somebody should look: ``place`` is where it stands in the series.

    ``factor``: how many times the one before. ``is_wrong``: no market does this (a hundred, the factor of a split on another day
    than the split's, a level reached from one bar of a session to the next); else it may be real, and wants a second opinion.
    """

    place: int
    factor: float
    is_wrong: bool
    reason: str


# How far two neighbours may be apart before they are looked at: with a split about, and without.
LOOKED_AT_WITH_A_SPLIT, LOOKED_AT = math.exp(_SMALLEST_SPLIT), math.exp(_NO_MARKET_MOVES)


def step_between(
    before: tuple[float, int], after: tuple[float, int], *, splits: Sequence[CorporateAction], is_one_session: bool, place: int = 0
) -> Step | None:
    """What is odd about two stored closes that follow each other, each with its session (days since 1970); None: nothing.

    Prices are raw, as we store them: on the first day of a split they move by its factor. ``is_one_session``: both are bars of one
    session, next to each other.
    """
    move, day = math.log(after[0] / before[0]), after[1]
    known = _splits(splits)
    # Several splits may lie between: what raw prices show is all of them.
    expected = -sum(split.log_value for split in known if before[1] < split.day <= day)
    rest = move - expected
    if _is_a_hundred(rest):
        return Step(place, math.exp(move), is_wrong=True, reason="a factor of a hundred: another unit")
    for split in known:
        if abs(move) >= _SMALLEST_SPLIT and split.explains(move) and split.is_near(day, day) and abs(rest) > abs(move) / 2:
            return Step(place, math.exp(move), is_wrong=True, reason=f"the factor of {split.text}, and not on its first day")
        if before[1] < split.day <= day and abs(move) < abs(split.log_value) / 2 and split.is_near(day, day):
            return Step(place, math.exp(move), is_wrong=True, reason=f"no step where {split.text} makes one: one side is adjusted")
    if abs(rest) < _NO_MARKET_MOVES:
        return None
    if is_one_session:
        return Step(place, math.exp(move), is_wrong=True, reason="no market moves so far from one bar to the next")
    return Step(place, math.exp(move), is_wrong=False, reason="nothing that is known explains it")


# --- units -------------------------------------------------------------------------------------------------------------


def _units(columns: CandleColumns, near: _Nearest | None, held: float | None) -> Findings:
    """Rows, or single prices in them, that are a hundred times or a hundredth of what they should be."""
    if held is not None and _is_a_hundred(held):
        return Findings(PayloadError.kind, f"closes are {math.exp(held):.3g} times those stored for the same bars: another unit")
    close = columns.close
    steps = _hundreds(close[1:] / close[:-1])
    levels = np.concatenate(([0], np.cumsum(steps)))
    usual = _usual_level(levels, near)
    if usual is None:
        return Findings(PayloadError.kind, "prices stand on two levels a hundred times apart, and nothing says which is right")
    off = levels - usual
    if off.all():
        return Findings(
            PayloadError.kind, f"every price is {_times(int(off[0]))} the {near.source} close of {near.session}" if near else ""
        )
    refused = {int(row): f"the prices are {_times(int(off[row]))} those around them" for row in np.flatnonzero(off)}
    odd = {name: _hundreds(getattr(columns, name) / close) for name in ("open", "high", "low")}
    for row in np.flatnonzero((off == 0) & np.logical_or.reduce([cells != 0 for cells in odd.values()])).tolist():
        names = [name for name, cells in odd.items() if cells[row]]
        refused[row] = f"{' and '.join(names)}: {_times(int(odd[names[0]][row]))} the close"
    return Findings(refused=refused)


def _hundreds(ratio: Float64s) -> Int64s:
    """1 where a ratio is about a hundred, -1 where it is about a hundredth, else 0."""
    low, high = _HUNDRED
    above = (ratio >= low) & (ratio <= high)
    below = (ratio >= 1 / high) & (ratio <= 1 / low)
    return above.astype(np.int64) - below


def _is_a_hundred(log_ratio: float) -> bool:
    low, high = _HUNDRED
    return low <= math.exp(abs(log_ratio)) <= high


def _usual_level(levels: Int64s, near: _Nearest | None) -> int | None:
    """The level that is right: the one that what is stored stands on, else that of the great majority; None: undecided."""
    if near is not None and abs(near.log_ratio) < _NO_MARKET_MOVES:
        return int(levels[near.row])
    if near is not None and _is_a_hundred(near.log_ratio):
        return int(levels[near.row]) - (1 if near.log_ratio > 0 else -1)
    values, counts = np.unique(levels, return_counts=True)
    most = int(counts.argmax())
    return int(values[most]) if counts[most] >= _MAJORITY * len(levels) else None


def _times(level: int) -> str:
    return "a hundred times" if level > 0 else "a hundredth of"


def _wide(columns: CandleColumns) -> Bools:
    """Bars whose high or low is far from where they opened and closed."""
    factor = math.exp(_WORTH_A_LOOK)
    far: Bools = (columns.high > factor * np.maximum(columns.open, columns.close)) | (
        factor * columns.low < np.minimum(columns.open, columns.close)
    )
    return far


# --- bases -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Split:
    """``log_value``: of new per old shares, so raw prices move by minus this on ``day`` (days since 1970)."""

    day: int
    log_value: float
    text: str

    def explains(self, log_move: float) -> bool:
        """A move, either way, is by the factor of this split."""
        tolerance = min(_SPLIT_TOLERANCE, abs(self.log_value) / 3)
        return abs(abs(log_move) - abs(self.log_value)) <= tolerance

    def is_raw_step(self, move: float, before: int, day: int) -> bool:
        """A move from ``before`` to ``day`` is what prices that are not adjusted show on the first day of this split."""
        return before < self.day <= day and move * self.log_value < 0 and self.explains(move)

    def is_near(self, day: int, today: int) -> bool:
        """Its bases may have been mixed at ``day``."""
        return min(abs(self.day - day), abs(self.day - today)) <= _NEAR_A_SPLIT_DAYS


def _splits(actions: Sequence[CorporateAction]) -> list[_Split]:
    """Splits large enough to be seen in prices, each once, whoever told them."""
    found = {
        (action.session, round(action.value, 6)): _Split(
            action.session.toordinal() - _EPOCH_ORDINAL, math.log(action.value), f"the {action.value:g}:1 split of {action.session}"
        )
        for action in actions
        if action.kind == "split" and action.value > 0 and abs(math.log(action.value)) >= _SMALLEST_SPLIT
    }
    return list(found.values())


_EPOCH_ORDINAL = 719_163


@dataclass(frozen=True, slots=True)
class _Nearest:
    """The bar of an answer next to the stored close, and how far apart they are."""

    row: int
    day: int
    session: date
    stored_day: int
    log_ratio: float
    source: str

    @classmethod
    def to(cls, columns: CandleColumns, days: Int32s, reference: Reference) -> _Nearest | None:
        """None where nothing is stored near enough."""
        if reference.close is None or reference.session is None or reference.close <= 0 or not len(columns):
            return None
        stored_day = reference.session.toordinal() - _EPOCH_ORDINAL
        row = 0 if stored_day <= days[0] else len(columns) - 1
        if abs(int(days[row]) - stored_day) > _NEAR_ENOUGH_DAYS:
            return None
        log_ratio = math.log(columns.close[row] / reference.close)
        return cls(row, int(days[row]), reference.session, stored_day, log_ratio, reference.source)

    def on_another_basis(self, splits: Sequence[_Split], today: int) -> str | None:
        """Why this bar and the stored close cannot be of one series; None where they can.

        A split between the two is what raw prices show, and what a series shows that was stored day by day: no reason.
        """
        if self.source != "stored":
            # Whether a vendor adjusts the close before the window as it does the bars in it, nobody says.
            return None
        between = self._raw_move(splits)
        for split in splits:
            is_less = abs(self.log_ratio) > abs(split.log_value) / 2 and abs(self.log_ratio - between) > abs(split.log_value) / 2
            if is_less and split.explains(self.log_ratio) and split.is_near(self.day, today):
                return (
                    f"prices are {math.exp(self.log_ratio):.3g} times the stored close of {self.session}: "
                    f"one is adjusted for {split.text}, the other is not"
                )
        return None

    def is_worth_a_look(self, splits: Sequence[_Split]) -> bool:
        """Far from the stored close, and no split lies between the two that would move raw prices so."""
        return min(abs(self.log_ratio), abs(self.log_ratio - self._raw_move(splits))) >= _WORTH_A_LOOK

    def _raw_move(self, splits: Sequence[_Split]) -> float:
        """How far the splits between the two move prices that are not adjusted, as a logarithm."""
        first, last = sorted((self.day, self.stored_day))
        sign = -1 if self.stored_day <= self.day else 1
        return sign * sum(split.log_value for split in splits if first < split.day <= last)


def _held_against(columns: CandleColumns, reference: Reference) -> float | None:
    """The logarithm of how far the closes are from those stored for the same bars, in the median; None without such bars."""
    if reference.held_at is None or reference.held_close is None or not len(reference.held_at):
        return None
    found = np.minimum(np.searchsorted(reference.held_at, columns.opened_at), len(reference.held_at) - 1)
    same = (reference.held_at[found] == columns.opened_at) & (reference.held_close[found] > 0)
    if not same.any():
        return None
    return float(np.median(np.log(columns.close[same] / reference.held_close[found[same]])))


def _other_than_held(held: float | None) -> str | None:
    # The same bar by another factor: no correction is like that, known split or not.
    if held is None or abs(held) < _SMALLEST_SPLIT:
        return None
    return f"closes are {math.exp(held):.3g} times those stored for the same bars: another basis than ours"


@dataclass(frozen=True, slots=True, eq=False)
class _Series:
    """The closes of an answer that are of one unit; ``rows`` are their places in the answer."""

    close: Float64s
    days: Int32s
    places: Int64s
    rows: Int64s

    def _moves(self, least: float) -> list[tuple[int, float]]:
        """(place, logarithm of the move) of every close that is further than ``least`` from the one before it."""
        if len(self.close) < 2:
            return []
        ratio = self.close[1:] / self.close[:-1]
        far = np.flatnonzero((ratio >= math.exp(least)) | (ratio <= math.exp(-least))) + 1
        return [(place, math.log(self.close[place] / self.close[place - 1])) for place in far.tolist()]

    def jumps(self, splits: Sequence[_Split]) -> list[int]:
        """Rows whose close is worth a second look."""
        return [
            int(self.rows[place])
            for place, move in self._moves(_WORTH_A_LOOK)
            if not any(split.is_raw_step(move, int(self.days[place - 1]), int(self.days[place])) for split in splits)
        ]

    def two_bases(self, splits: Sequence[_Split], basis: Basis, today: int) -> str | None:
        """Why part of the answer must be on another basis than the rest; None where nothing says so."""
        for place, move in self._moves(_SMALLEST_SPLIT if splits else _NO_MARKET_MOVES):
            if not self._stays(place, move):
                continue
            before, day = int(self.days[place - 1]), int(self.days[place])
            for split in splits:
                is_right = basis is Basis.RAW and split.is_raw_step(move, before, day)
                if split.explains(move) and split.is_near(day, today) and not is_right:
                    return f"prices step by {math.exp(move):.3g} inside the answer: only part of it is adjusted for {split.text}"
            if abs(move) >= _NO_MARKET_MOVES and self._is_one_minute_to_the_next(place):
                return f"prices step by {math.exp(move):.3g} between two neighbouring bars and stay: two bases in one answer"
        return None

    def _stays(self, place: int, move: float) -> bool:
        """Both sides stand on their level: the medians are as far apart as the two bars are."""
        before, after = self.close[max(place - _SIDE, 0) : place], self.close[place : place + _SIDE]
        return abs(math.log(float(np.median(after)) / float(np.median(before))) - move) <= max(abs(move) / 4, 0.05)

    def _is_one_minute_to_the_next(self, place: int) -> bool:
        """No bar is missing on either side of the step, and the session is the same: nothing was halted."""
        side = slice(max(place - 3, 0), place + 3)
        steady = bool((np.diff(self.places[side]) == 1).all())
        return steady and len(self.places[side]) == 6 and self.days[side][0] == self.days[side][-1]
