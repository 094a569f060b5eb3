"""Budgets add up, and burning takes two windows and more than an accident of small numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.slo import (
    CREEPING,
    FAST,
    SLOW,
    WINDOWS,
    Bars,
    SloLine,
    SloStatus,
    budget_left,
    burn_rate,
    is_burning,
)
from market_data_pipeline.domain.universe import Tier

T0 = 0.005


def a_line(*, due: int = 0, late: int = 0, objective: float | None = T0, windows: dict[str, Bars] | None = None) -> SloLine:
    return SloLine(Tier.T0, Interval.M1, objective, symbols=1000, stale=5, due=due, late=late, windows=windows or {})


def test_a_budget_is_what_may_be_late() -> None:
    assert a_line(due=100_000, late=0).budget_left == 1.0
    assert a_line(due=100_000, late=125).budget_left == pytest.approx(0.75)
    assert a_line(due=100_000, late=500).is_spent
    assert a_line(due=100_000, late=1000).budget_left == pytest.approx(-1.0)
    assert a_line().budget_left == 1.0


def test_without_an_objective_there_is_no_budget_and_nothing_burns() -> None:
    line = a_line(due=100, late=100, objective=None, windows={"1h": Bars(100, 100), "5m": Bars(100, 100)})
    assert line.budget_left is None
    assert [line.is_spent, line.is_violated, line.is_burning_fast, line.is_burning_slowly] == [False] * 4


def test_five_of_a_thousand_stale_are_just_allowed() -> None:
    assert not a_line().is_violated
    assert SloLine(Tier.T0, Interval.M1, T0, symbols=1000, stale=6).is_violated


def test_it_burns_fast_where_the_hour_and_the_last_minutes_do() -> None:
    hour, minutes = Bars(60_000, 4_400), Bars(5_000, 400)
    assert a_line(windows={"1h": hour, "5m": minutes}).is_burning_fast
    assert not a_line(windows={"1h": hour, "5m": Bars(5_000, 0)}).is_burning_fast, "it is over"
    assert not a_line(windows={"1h": Bars(60_000, 4_000), "5m": minutes}).is_burning_fast, "it has only begun"


def test_a_little_too_much_for_days_burns_slowly() -> None:
    assert a_line(windows={"6h": Bars(100_000, 3_100), "30m": Bars(10_000, 310)}).is_burning_slowly
    assert a_line(windows={"3d": Bars(1_000_000, 5_100), "6h": Bars(100_000, 510)}).is_burning_slowly
    assert not a_line(windows={"3d": Bars(1_000_000, 4_900), "6h": Bars(100_000, 510)}).is_burning_slowly


def test_one_late_bar_of_a_small_universe_burns_nothing() -> None:
    first = {name: Bars(1, 1) for name in WINDOWS}
    assert a_line(windows=first).burn_rates["1h"] == pytest.approx(200.0)
    assert not any(is_burning(rule, first, T0) for rule in (FAST, SLOW, CREEPING))


@given(st.integers(0, 10**9), st.floats(0, 1), st.floats(0.0001, 1))
def test_spending_at_rate_one_for_the_whole_month_leaves_nothing(due: int, share: float, objective: float) -> None:
    bars = Bars(due, int(due * share))
    left = budget_left(bars, objective)
    assert left is not None
    assert left <= 1
    assert left == pytest.approx(1 - burn_rate(bars, objective))


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), max_size=20))
def test_bars_add_up_in_any_order(pairs: list[tuple[int, int]]) -> None:
    bars = [Bars(due + late, late) for due, late in pairs]
    assert sum(bars, Bars()) == sum(reversed(bars), Bars())
    assert 0 <= sum(bars, Bars()).late_share <= 1


def test_a_status_finds_its_lines() -> None:
    line = a_line()
    status = SloStatus(None, [line])  # type: ignore[arg-type]  # the instant is beside the point
    assert status.of(Tier.T0, Interval.M1) is line
    assert status.of(Tier.T1, Interval.M1) is None
