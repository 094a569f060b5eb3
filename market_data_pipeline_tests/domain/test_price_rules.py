"""Rules over prices: when they begin and end, whatever is missing, late, looked at twice or split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.alert_config import PriceRule, PriceRuleKind, PriceSource
from market_data_pipeline.domain.price_rules import (
    Judgement,
    PricePanel,
    PriceState,
    Side,
    duration,
    evaluate,
    live_seconds,
    sentence,
    short_of_window,
    sides,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

AAPL, MSFT = 7, 9
MINUTE = 60
NOON = 1_733_162_400  # 2024-12-02 18:00 UTC
NAN = float("nan")


def a_rule(kind: PriceRuleKind = PriceRuleKind.THRESHOLD, **different: Any) -> PriceRule:  # noqa: ANN401 - fields
    return PriceRule(**{"name": "Mine", "kind": kind, "source": PriceSource.CANDLE, "symbols": ("AAPL",), **different})


ABOVE_100 = a_rule(above=100.0, hysteresis=0.01)
UP_3_PERCENT = a_rule(PriceRuleKind.MOVE, by=0.03, direction="up", window_seconds=5 * MINUTE, hysteresis=0.1)
CROSS_OF_3 = a_rule(PriceRuleKind.CROSS, direction="up", window_seconds=3 * MINUTE, hysteresis=0.001)


def minutes(prices: Sequence[float], *, first: int = 0, owner: int = AAPL, basis: int | Sequence[int] = 0) -> PricePanel:
    """A price each minute; NaN: none."""
    at = [NOON + (first + place) * MINUTE for place in range(len(prices))]
    return PricePanel.of([owner] * len(prices), at, prices, np.broadcast_to(basis, len(prices)))


def looked(
    rule: PriceRule, panel: PricePanel, state: PriceState | None = None, *, side: Side | None = None, live_from: int = 0
) -> Judgement | None:
    """What one look says of AAPL."""
    states = {} if state is None else {AAPL: state}
    return evaluate(rule, side or sides(rule)[0], panel, states, live_from=live_from).get(AAPL)


def told(rule: PriceRule, prices: Sequence[float], *, live: int | None = None, side: Side | None = None) -> list[int]:
    """The minutes by which it began, looking once a minute; ``live``: how many minutes a price is live."""
    state, begun = None, []
    for minute in range(len(prices)):
        live_from = 0 if live is None else NOON + (minute - live) * MINUTE
        judged = looked(rule, minutes(prices[: minute + 1]), state, side=side, live_from=live_from)
        state = judged.state if judged else None
        if judged and judged.began and judged.at is not None:
            begun.append((judged.at - NOON) // MINUTE)
    return begun


def is_on(rule: PriceRule, prices: Sequence[float]) -> bool:
    judged = looked(rule, minutes(prices))
    return judged is not None and judged.state.is_on


# --- threshold ---------------------------------------------------------------------------------------------------------


def test_a_price_above_the_threshold_begins_once_and_ends_when_it_has_come_back_by_the_hysteresis() -> None:
    assert told(ABOVE_100, [99, 101, 102, 99.5, 101, 98.9, 99.5, 101]) == [1, 7]


def test_a_price_at_the_threshold_is_not_above_it() -> None:
    assert told(ABOVE_100, [100, 100]) == []


def test_a_rule_with_both_thresholds_has_two_sides_each_an_alert_of_its_own() -> None:
    rule = a_rule(above=110.0, below=90.0)
    assert sides(rule) == (Side.ABOVE, Side.BELOW)
    assert told(rule, [100, 111, 100, 89, 100], side=Side.BELOW) == [3]


@pytest.mark.parametrize("no_price", [NAN, 0.0, -1.0, float("inf"), -0.0])
def test_what_is_no_price_is_no_observation(no_price: float) -> None:
    assert told(a_rule(below=90.0), [100, no_price, 100]) == []


def test_a_spike_that_is_over_within_one_look_is_told_with_its_own_price() -> None:
    judged = looked(ABOVE_100, minutes([99, 105, 98]))
    assert judged == Judgement(PriceState(is_on=False, since=NOON + 2 * MINUTE), True, NOON + MINUTE, 105.0, 100.0)


def test_without_a_live_price_it_stays_as_it_was() -> None:
    on = PriceState(is_on=True, since=NOON)
    assert looked(ABOVE_100, minutes([90, 90]), on, live_from=NOON + 10 * MINUTE) == Judgement(on)


def test_a_price_of_another_day_begins_nothing() -> None:
    assert looked(ABOVE_100, minutes([105]), live_from=NOON + MINUTE) is None


def test_a_price_that_is_corrected_takes_back_what_it_began() -> None:
    first = looked(ABOVE_100, minutes([99, 105]))
    assert first is not None
    assert first.state.is_on
    corrected = looked(ABOVE_100, minutes([99, 99.5]), first.state)
    assert corrected is not None
    assert not corrected.state.is_on
    assert not corrected.began


def test_a_price_that_is_corrected_upwards_begins() -> None:
    assert looked(ABOVE_100, minutes([99])) is None
    judged = looked(ABOVE_100, minutes([105]))
    assert judged is not None
    assert judged.began


def test_a_price_that_comes_late_is_judged_with_those_after_it() -> None:
    judged = looked(ABOVE_100, minutes([99, 105, 98, 98]))
    assert judged is not None
    assert (judged.began, judged.state.is_on) == (True, False)


# --- moves -------------------------------------------------------------------------------------------------------------


def test_a_move_is_measured_from_the_furthest_price_within_the_window() -> None:
    assert told(UP_3_PERCENT, [100, 99, 100, 101, 101.97]) == [4]


def test_a_slow_move_is_none() -> None:
    assert told(UP_3_PERCENT, [100 * 1.005**minute for minute in range(60)]) == []


def test_a_move_is_over_when_its_beginning_has_left_the_window() -> None:
    assert is_on(UP_3_PERCENT, [100, 104])
    assert is_on(UP_3_PERCENT, [100, 104, 104, 104, 104, 104])
    assert not is_on(UP_3_PERCENT, [100, 104, 104, 104, 104, 104, 104])


def test_either_direction_is_two_sides() -> None:
    rule = a_rule(PriceRuleKind.MOVE, by=0.03, window_seconds=5 * MINUTE)
    assert told(rule, [100, 103, 100, 96], side=Side.UP) == [1]
    assert told(rule, [100, 103, 99.9, 96], side=Side.DOWN) == [2]


def test_over_a_hole_longer_than_the_window_nothing_has_moved() -> None:
    assert told(UP_3_PERCENT, [100, *[NAN] * 6, 110, 110]) == []


def test_a_split_is_no_move() -> None:
    rule = a_rule(PriceRuleKind.MOVE, by=0.03, window_seconds=5 * MINUTE)
    split = minutes([100, 100, 10, 10.1], basis=[0, 0, 1, 1])
    assert looked(rule, split, side=Side.DOWN) is None
    assert looked(rule, minutes([100, 100, 10, 10.4], basis=[0, 0, 1, 1]), side=Side.UP) is not None


# --- crossings ---------------------------------------------------------------------------------------------------------


def test_a_price_that_goes_above_its_average_begins() -> None:
    # Of 10, 10, 13 the mean is 11; the one before was at its own mean.
    assert told(CROSS_OF_3, [10, 10, 10, 13, 14]) == [3]


def test_a_price_that_is_above_its_average_all_along_has_crossed_nothing() -> None:
    assert told(CROSS_OF_3, [10, 11, 12, 13, 14]) == []


def test_without_a_full_window_nothing_is_said_and_that_is_said() -> None:
    panel = minutes([10, 9, 13])
    assert looked(a_rule(PriceRuleKind.CROSS, window_seconds=4 * MINUTE), panel) is None
    assert short_of_window(a_rule(PriceRuleKind.CROSS, window_seconds=4 * MINUTE), panel, live_from=0) == [AAPL]
    assert short_of_window(CROSS_OF_3, panel, live_from=0) == []
    assert short_of_window(CROSS_OF_3, PricePanel.of([], [], []), live_from=0) == []


def test_a_window_is_of_traded_time() -> None:
    # Friday's last three bars and Monday's first one.
    monday = NOON + 3 * 86_400
    panel = PricePanel.of([AAPL] * 4, [NOON, NOON + MINUTE, NOON + 2 * MINUTE, monday], [10, 10, 10, 11])
    judged = looked(CROSS_OF_3, panel, live_from=monday)
    assert judged is not None
    assert judged.began


def test_an_average_is_never_taken_across_a_split_and_not_knowing_it_ends_nothing() -> None:
    panel = minutes([100, 100, 100, 10, 11], basis=[0, 0, 0, 1, 1])
    assert looked(CROSS_OF_3, panel) is None
    on = PriceState(is_on=True, since=NOON - MINUTE)
    judged = looked(CROSS_OF_3, panel, on, live_from=NOON + 3 * MINUTE)
    assert judged is not None
    assert judged.state == on


def test_prices_that_do_not_move_cross_nothing_whatever_the_rounding() -> None:
    assert told(a_rule(PriceRuleKind.CROSS, direction="either", window_seconds=7 * MINUTE), [0.1] * 50) == []


def test_a_cheap_symbol_beside_a_dear_one_keeps_its_digits() -> None:
    dear = minutes([600_000.0] * 400, owner=1)
    cheap = minutes([0.0101, 0.0101, 0.0101, 0.0102])
    both = PricePanel.of(
        np.concatenate([dear.owner, cheap.owner]),
        np.concatenate([dear.at, cheap.at]),
        np.concatenate([dear.price, cheap.price]),
    )
    judged = looked(CROSS_OF_3, both)
    assert judged is not None
    assert judged.reference == pytest.approx((0.0101 * 2 + 0.0102) / 3, rel=1e-12)


# --- laws --------------------------------------------------------------------------------------------------------------

steps = st.lists(st.sampled_from([-0.05, -0.02, -0.004, -0.001, 0.0, 0.001, 0.004, 0.02, 0.05]), min_size=1, max_size=40)
rules = st.sampled_from(
    [
        ABOVE_100,
        a_rule(below=99.0, hysteresis=0.02),
        UP_3_PERCENT,
        a_rule(PriceRuleKind.MOVE, by=0.02, direction="down", window_seconds=3 * MINUTE, hysteresis=0.3),
        CROSS_OF_3,
        a_rule(PriceRuleKind.CROSS, direction="down", window_seconds=5 * MINUTE, hysteresis=0.003),
    ]
)


def walk(moves: Iterable[float]) -> list[float]:
    """Prices around 100."""
    prices, price = [], 100.0
    for move in moves:
        price *= 1 + move
        prices.append(round(price, 4))
    return prices


def slowly(rule: PriceRule, prices: Sequence[float]) -> tuple[list[int], bool]:
    """The same rules as one would write them first, a price at a time: the minutes by which it began, and whether it holds."""
    begun, on = [], False
    for now, price in enumerate(prices):
        if rule.kind is PriceRuleKind.THRESHOLD:
            above, below = rule.above, rule.below
            begins = price > above if above else price < (below or 0)
            lasts = price > above * (1 - rule.hysteresis) if above else price < (below or 0) * (1 + rule.hysteresis)
        elif rule.kind is PriceRuleKind.MOVE:
            seen = prices[max(now - rule.window_seconds // MINUTE, 0) : now + 1]
            move = price / min(seen) - 1 if rule.direction == "up" else -(price / max(seen) - 1)
            begins, lasts = move >= (rule.by or 0), move >= (rule.by or 0) * (1 - rule.hysteresis)
        else:
            count, sign = rule.window_seconds // MINUTE, 1 if rule.direction == "up" else -1
            mean = sum(prices[now - count + 1 : now + 1]) / count if now >= count - 1 else None
            before = sum(prices[now - count : now]) / count if now >= count else None
            begins = (
                mean is not None
                and before is not None
                and sign * (price - mean) > 1e-9 * mean
                and sign * (prices[now - 1] - before) <= 1e-9 * before
            )
            lasts = mean is None or not sign * price <= sign * mean * (1 - sign * rule.hysteresis)
        if on:
            on = lasts
        elif begins:
            on = True
            begun.append(now)
    return begun, on


@given(rules, steps)
def test_it_says_what_a_slow_and_simple_reading_says(rule: PriceRule, moves: list[float]) -> None:
    prices = walk(moves)
    begun, on = slowly(rule, prices)
    assert told(rule, prices) == begun
    assert is_on(rule, prices) == on


@given(rules, steps, st.integers(3, 12))
def test_looking_at_what_is_live_alone_says_the_same_as_looking_at_all(rule: PriceRule, moves: list[float], live: int) -> None:
    prices = walk(moves)
    assert told(rule, prices, live=live) == slowly(rule, prices)[0]


@given(rules, steps, st.lists(st.integers(0, 40), max_size=6))
def test_a_batch_and_single_prices_end_in_the_same_state(rule: PriceRule, moves: list[float], cuts: list[int]) -> None:
    prices = walk(moves)
    state = None
    for end in sorted({*(cut for cut in cuts if 0 < cut <= len(prices)), len(prices)}):
        judged = looked(rule, minutes(prices[:end]), state)
        state = judged.state if judged else None
    at_once = looked(rule, minutes(prices))
    assert state == (at_once.state if at_once else None)


@given(rules, steps)
def test_looking_again_says_nothing_new(rule: PriceRule, moves: list[float]) -> None:
    first = looked(rule, minutes(walk(moves)))
    again = looked(rule, minutes(walk(moves)), first.state if first else None)
    assert (again.state if again else None) == (first.state if first else None)
    assert not (again and again.began)


@given(st.lists(st.floats(99.01, 100.9), min_size=1, max_size=60))
def test_flapping_within_the_hysteresis_begins_at_most_once(prices: list[float]) -> None:
    assert len(told(ABOVE_100, prices)) <= 1


@given(rules.filter(lambda rule: rule.kind is not PriceRuleKind.CROSS), steps, st.data())
def test_a_hole_never_begins_what_the_whole_would_not(rule: PriceRule, moves: list[float], data: st.DataObject) -> None:
    prices = walk(moves)
    there = data.draw(st.lists(st.booleans(), min_size=len(prices), max_size=len(prices)))
    holed = [price if kept else NAN for price, kept in zip(prices, there, strict=True)]
    if told(rule, holed):
        assert told(rule, prices)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 500))
def test_a_hole_in_prices_that_stand_still_begins_nothing(before: int, after: int, hole: int) -> None:
    panel = PricePanel.of(
        [AAPL] * (before + after),
        [NOON + MINUTE * (place + (hole if place >= before else 0)) for place in range(before + after)],
        [100.0] * (before + after),
    )
    for rule in (UP_3_PERCENT, CROSS_OF_3, ABOVE_100):
        assert looked(rule, panel) is None


@given(steps, steps)
def test_symbols_know_nothing_of_each_other(mine: list[float], others: list[float]) -> None:
    alone, other = minutes(walk(mine)), minutes(walk(others), owner=MSFT)
    both = PricePanel.of(
        np.concatenate([other.owner, alone.owner]),
        np.concatenate([other.at, alone.at]),
        np.concatenate([other.price, alone.price]),
    )
    for rule in (ABOVE_100, UP_3_PERCENT, CROSS_OF_3):
        assert looked(rule, both) == looked(rule, alone)


# --- words -------------------------------------------------------------------------------------------------------------


def test_a_sentence_says_the_numbers_and_their_time() -> None:
    judged = looked(ABOVE_100, minutes([101.5]))
    assert judged is not None
    assert sentence(ABOVE_100, Side.ABOVE, "AAPL", judged, currency="USD") == (
        "AAPL at 101.5 USD is above 100 (close of the 1m bar, 2024-12-02 18:00:00 UTC)"
    )


def test_a_sentence_about_a_move_names_where_it_came_from() -> None:
    judged = looked(UP_3_PERCENT, minutes([100, 104, 90]))
    assert judged is not None
    assert sentence(UP_3_PERCENT, Side.UP, "AAPL", judged).startswith("AAPL moved +4.00 % within 5m, from 100 to 104 (")
    assert sentence(UP_3_PERCENT, Side.UP, "AAPL", judged).endswith("; it is over already")


@pytest.mark.parametrize(("seconds", "text"), [(90, "90s"), (300, "5m"), (7200, "2h"), (86400, "1d"), (0.5, "0.5s")])
def test_durations_are_written_as_people_write_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_price_is_live_for_a_quarter_of_an_hour_or_a_bar() -> None:
    assert live_seconds(a_rule(interval="1m")) == 900
    assert live_seconds(a_rule(interval="1d")) == 86_400
    assert live_seconds(a_rule(source=PriceSource.QUOTE, interval="1d")) == 900
    assert live_seconds(a_rule(max_age_seconds=60)) == 60
