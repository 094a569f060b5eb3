"""When a rule over prices begins to hold and when it is over: arithmetic over arrays of prices. No clock, no I/O.

A rule has one or two sides (above, below; up, down), and each symbol and side is a machine of its own: off, on, off. It is driven
by the prices whose own time is recent enough to be live, again and again. What was decided is remembered by the time of the price
that decided it. So looking twice, looking late, and looking at each price alone all say the same, and a price that is corrected
meanwhile is judged anew.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np

from market_data_pipeline.domain.alert_config import PriceRuleKind, PriceSource
from market_data_pipeline.domain.candles import Interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from market_data_pipeline.domain.alert_config import PriceRule
    from market_data_pipeline.domain.candles import Bools, Float64s, Int32s, Int64s

    Places = npt.NDArray[np.intp]

# A watch that is delayed must not lose a price, and what is older than this is no news.
LIVE_SECONDS = 900
# Bars that a window may span. A session of minutes is 390; what is longer is better told from longer bars, and read faster.
MOST_BARS = 500
# A mean of equal prices is equal to them only up to rounding.
_EQUAL = 1e-9
# Later than any instant, so that (symbol, instant) is one number that sorts.
_BEYOND = 1 << 35


class Side(StrEnum):
    """Which way a rule looks; each way is an alert of its own."""

    ABOVE = "above"
    BELOW = "below"
    UP = "up"
    DOWN = "down"

    @property
    def sign(self) -> int:
        """1 where higher prices make it hold, -1 where lower ones do."""
        return 1 if self in {Side.ABOVE, Side.UP} else -1


@dataclass(frozen=True, eq=False)
class PricePanel:
    """Prices of many symbols, one element a price, sorted by (owner, at). Get one from ``PricePanel.of``.

    ``owner``: the symbol's id. ``at``: the instant the price held, epoch seconds UTC; of a bar, its end. ``basis``: prices of one
    symbol can be compared where it is the same, and not across a split.
    """

    owner: Int32s
    at: Int64s
    price: Float64s
    basis: Int32s

    @classmethod
    def of(cls, owner: npt.ArrayLike, at: npt.ArrayLike, price: npt.ArrayLike, basis: npt.ArrayLike | None = None) -> Self:
        """The prices in order. No number, zero and less are no price; of two of one symbol and instant the later one counts."""
        owners, instants, prices = np.asarray(owner, np.int32), np.asarray(at, np.int64), np.asarray(price, np.float64)
        bases = np.zeros(len(owners), np.int32) if basis is None else np.asarray(basis, np.int32)
        with np.errstate(invalid="ignore"):
            good = np.isfinite(prices) & (prices > 0)
        owners, instants, prices, bases = owners[good], instants[good], prices[good], bases[good]
        order = np.lexsort((instants, owners))
        owners, instants, prices, bases = owners[order], instants[order], prices[order], bases[order]
        last = np.ones(len(owners), bool)
        last[:-1] = (owners[1:] != owners[:-1]) | (instants[1:] != instants[:-1])
        return cls(owners[last], instants[last], prices[last], bases[last])

    def __len__(self) -> int:
        return len(self.owner)

    def only(self, owners: Sequence[int]) -> PricePanel:
        """The prices of these symbols."""
        chosen = np.isin(self.owner, np.asarray(owners, np.int32))
        return self if chosen.all() else PricePanel(self.owner[chosen], self.at[chosen], self.price[chosen], self.basis[chosen])

    @cached_property
    def run_start(self) -> Places:
        """Of each price, the place of the first one that it can be compared with."""
        begins = np.ones(len(self), bool)
        begins[1:] = (self.owner[1:] != self.owner[:-1]) | (self.basis[1:] != self.basis[:-1])
        return np.maximum.accumulate(np.where(begins, np.arange(len(self)), 0))

    @cached_property
    def _keys(self) -> Int64s:
        ranks = np.zeros(len(self), np.int64)
        ranks[1:] = np.cumsum(self.owner[1:] != self.owner[:-1])
        return ranks * _BEYOND + self.at

    @cached_property
    def _running(self) -> Float64s:
        """Sums of prices in units of the first of their run: prices of 0.01 and of 600,000 side by side keep their digits."""
        return np.concatenate([[0.0], np.cumsum(self.price / self.price[self.run_start])])

    @cached_property
    def _lowest(self) -> list[Float64s]:
        return _tables(self.price, np.minimum)

    @cached_property
    def _highest(self) -> list[Float64s]:
        return _tables(self.price, np.maximum)

    def lowest(self, places: Places, window: int) -> Float64s:
        """The least price of the ``window`` seconds up to each place, its own included."""
        return self._extreme(places, window, self._lowest, np.minimum)

    def highest(self, places: Places, window: int) -> Float64s:
        """The greatest price of the ``window`` seconds up to each place, its own included."""
        return self._extreme(places, window, self._highest, np.maximum)

    def mean(self, places: Places, count: int) -> Float64s:
        """The mean of the last ``count`` prices up to each place, its own included; NaN where there are not so many."""
        first = places - count + 1
        full = (places >= 0) & (first >= self.run_start[places])
        sums = self._running[places + 1] - self._running[np.where(full, first, 0)]
        return np.where(full, sums / count * self.price[self.run_start[places]], np.nan)

    def _extreme(self, places: Places, window: int, tables: list[Float64s], better: np.ufunc) -> Float64s:
        # Two blocks of a power of two that overlap cover any range.
        first = np.maximum(np.searchsorted(self._keys, self._keys[places] - window), self.run_start[places])
        level = np.log2(places - first + 1).astype(np.intp)
        found = np.empty(len(places))
        for power in np.unique(level).tolist():
            of = level == power
            table = tables[power]
            found[of] = better(table[first[of]], table[places[of] - (1 << power) + 1])
        return found


def _tables(prices: Float64s, better: np.ufunc) -> list[Float64s]:
    """Element i of table k: the best of the 2**k prices from i on."""
    tables = [prices]
    while len(tables[-1]) > 1 << (len(tables) - 1) and len(tables) <= MOST_BARS.bit_length() + 6:
        half = 1 << (len(tables) - 1)
        tables.append(better(tables[-1][:-half], tables[-1][half:]))
    return tables


@dataclass(frozen=True, slots=True)
class PriceState:
    """What is remembered of one symbol and side. ``since``: of the price by which it began (``is_on``) or ended, epoch seconds."""

    is_on: bool
    since: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one look says of one symbol and side.

    ``began``: it began in this look, or had begun otherwise than remembered. Then ``is_on`` False of the state: it is over already.
    ``at``, ``price``, ``reference``: of the newest live price, or of the one by which it began where it is over; ``reference``: the
    threshold, the price it moved from, the average. None, with nothing new known, where no price is live.
    """

    state: PriceState
    began: bool = False
    at: int | None = None
    price: float = 0.0
    reference: float = 0.0


def sides(rule: PriceRule) -> tuple[Side, ...]:
    """The sides that ``rule`` looks at."""
    if rule.kind is PriceRuleKind.THRESHOLD:
        given = ((Side.ABOVE, rule.above), (Side.BELOW, rule.below))
        return tuple(side for side, threshold in given if threshold is not None)
    return tuple(side for side in (Side.UP, Side.DOWN) if rule.direction in {side, "either"})


def evaluate(
    rule: PriceRule, side: Side, panel: PricePanel, states: Mapping[int, PriceState], *, live_from: int
) -> dict[int, Judgement]:
    """What ``rule`` says of one side, by symbol: of those in ``states``, and of those where it began. No other symbol has news.

    ``panel``: the live prices, at or after ``live_from``, and those before that the rule compares them with. ``states``: as the
    looks before left them; a symbol without one is off. Without a live price a symbol stays as it was: silence decides nothing.
    """
    live = np.flatnonzero(panel.at >= live_from)
    signals = _signals(rule, side, panel, live)
    owners = panel.owner[live]
    concerned = sorted({*states, *owners[signals.begins].tolist()})
    first, beyond = np.searchsorted(owners, concerned), np.searchsorted(owners, concerned, side="right")
    found = {}
    for owner, start, stop in zip(concerned, first.tolist(), beyond.tolist(), strict=True):
        known = states.get(owner)
        judged = _followed(known, panel.at[live[start:stop]].tolist(), signals.part(start, stop), live_from=live_from)
        if judged is None:
            continue
        state, place, began = judged
        if place is None:
            found[owner] = Judgement(state)
        else:
            at = int(live[start + place])
            found[owner] = Judgement(
                state, began, int(panel.at[at]), float(panel.price[at]), float(signals.reference[start + place])
            )
    return found


def short_of_window(rule: PriceRule, panel: PricePanel, *, live_from: int) -> list[int]:
    """The symbols with live prices of which a CROSS rule knows too few before them to have an average."""
    if rule.kind is not PriceRuleKind.CROSS:
        return []
    newest = np.flatnonzero(np.append(panel.owner[1:] != panel.owner[:-1], np.ones(min(len(panel), 1), bool)))
    newest = newest[panel.at[newest] >= live_from]
    short: list[int] = panel.owner[newest[np.isnan(panel.mean(newest, bars_in_window(rule)))]].tolist()
    return short


def bars_in_window(rule: PriceRule) -> int:
    """How many bars the average of a CROSS rule is of."""
    return rule.window_seconds // Interval(rule.interval).seconds


def live_seconds(rule: PriceRule) -> int:
    """How old a price may be to count as live."""
    if rule.max_age_seconds is not None:
        return rule.max_age_seconds
    return max(LIVE_SECONDS, Interval(rule.interval).seconds if rule.source is PriceSource.CANDLE else 0)


@dataclass(frozen=True, slots=True, eq=False)
class _Signals:
    """Of each live price: whether the rule begins by it, whether it still holds, and what it was compared with."""

    begins: Bools
    lasts: Bools
    reference: Float64s

    def part(self, start: int, stop: int) -> _Signals:
        return _Signals(self.begins[start:stop], self.lasts[start:stop], self.reference[start:stop])


def _signals(rule: PriceRule, side: Side, panel: PricePanel, live: Places) -> _Signals:
    if rule.kind is PriceRuleKind.MOVE:
        return _moves(rule, side, panel, live)
    if rule.kind is PriceRuleKind.CROSS:
        return _crossings(rule, side, panel, live)
    threshold = (rule.above if side is Side.ABOVE else rule.below) or 0.0
    price, sign = panel.price[live], side.sign
    back = threshold * (1 - sign * rule.hysteresis)
    return _Signals(sign * price > sign * threshold, sign * price > sign * back, np.full(len(live), threshold))


def _moves(rule: PriceRule, side: Side, panel: PricePanel, live: Places) -> _Signals:
    """The largest move up (or down) to each price from any within the window. Across a hole longer than that nothing compares."""
    reference = panel.lowest(live, rule.window_seconds) if side is Side.UP else panel.highest(live, rule.window_seconds)
    move = side.sign * (panel.price[live] / reference - 1)
    by = rule.by or 0.0
    return _Signals(move >= by, move >= by * (1 - rule.hysteresis), reference)


def _crossings(rule: PriceRule, side: Side, panel: PricePanel, live: Places) -> _Signals:
    """Where the price is beyond the mean and the one before was not. Without a full window nothing begins and nothing ends."""
    count, sign = bars_in_window(rule), side.sign
    mean, before = panel.mean(live, count), panel.mean(np.maximum(live - 1, 0), count)
    price, previous = panel.price[live], panel.price[np.maximum(live - 1, 0)]
    has_before = live > panel.run_start[live]
    with np.errstate(invalid="ignore"):
        begins = has_before & (sign * (price - mean) > _EQUAL * mean) & (sign * (previous - before) <= _EQUAL * before)
        lasts = ~(sign * price <= sign * mean * (1 - sign * rule.hysteresis))
    return _Signals(begins, lasts, mean)


def _followed(
    known: PriceState | None, at: Sequence[int], signals: _Signals, *, live_from: int
) -> tuple[PriceState, int | None, bool] | None:
    """The state after the live prices, the place of the price to tell of, and whether it began; None where there is nothing."""
    begins, lasts = signals.begins.tolist(), signals.lasts.tolist()
    # What began by a price that is still live is judged anew from that price on: it may have been corrected.
    is_anew = known is not None and known.is_on and known.since >= live_from
    state = replace(known, is_on=False) if known is not None and is_anew else known
    began_at: int | None = None
    for place, instant in enumerate(at):
        if state is not None and (instant < state.since or (instant == state.since and not is_anew)):
            continue
        if state is not None and state.is_on:
            if not lasts[place]:
                state = PriceState(is_on=False, since=instant)
        elif begins[place]:
            state, began_at = PriceState(is_on=True, since=instant), place
    if state is None:
        return None
    newest = len(at) - 1 if at else None
    is_new = began_at is not None and not (known is not None and known.is_on and at[began_at] == known.since)
    if is_new and not state.is_on:
        return state, began_at, True
    if not at and known is not None:
        return known, None, False
    return state, newest, is_new


def sentence(rule: PriceRule, side: Side, symbol: str, judged: Judgement, *, currency: str | None = None) -> str:
    """What happened, with the numbers, for the person who is told. ``judged.at`` is not None."""
    money = f" {currency}" if currency else ""
    price, reference = f"{judged.price:.6g}", f"{judged.reference:.6g}"
    window = duration(rule.window_seconds)
    if rule.kind is PriceRuleKind.MOVE:
        share = 100 * (judged.price / judged.reference - 1)
        said = f"{symbol} moved {share:+.2f} % within {window}, from {reference} to {price}{money}"
    elif rule.kind is PriceRuleKind.CROSS:
        said = f"{symbol} at {price}{money} went {'above' if side is Side.UP else 'below'} its {window} average of {reference}"
    else:
        said = f"{symbol} at {price}{money} is {side} {reference}"
    what = f"close of the {rule.interval} bar" if rule.source is PriceSource.CANDLE else rule.field.replace("_", " ")
    instant = datetime.fromtimestamp(judged.at or 0, UTC)
    over = "" if judged.state.is_on else "; it is over already"
    return f"{said} ({what}, {instant:%Y-%m-%d %H:%M:%S} UTC){over}"


def duration(seconds: float) -> str:
    """``seconds`` as a person writes them: 90s, 5m, 2h, 1d."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:g}{unit}"
    return f"{seconds:g}s"
