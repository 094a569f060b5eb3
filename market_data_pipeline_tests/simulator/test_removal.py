"""Bars removed behind the pipeline's back: found, healed, nothing else changed. Ten thousand in benchmarks/healing.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.simulator.ground import proving_ground
from market_data_pipeline.simulator.removal import Key, choose, remove_and_heal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from market_data_pipeline.simulator.removal import Removal

REMOVED = 1_500


@pytest.fixture(scope="module")
def held() -> Iterator[Removal]:
    with proving_ground("removal") as place:
        yield remove_and_heal(place, seed=3, symbols=7, sessions=4, removed=REMOVED)


def test_every_removed_bar_of_every_interval_is_found(held: Removal) -> None:
    assert held.found == held.removed
    assert (held.total, set(held.removed)) == (REMOVED, {interval.value for interval in Interval})


def test_every_removed_bar_comes_back_as_new_knowledge_and_nothing_else_changes(held: Removal) -> None:
    assert (held.complaints, held.healed) == ([], REMOVED)


def test_healing_asks_once_for_each_symbol_interval_and_span_that_lacks_something(held: Removal) -> None:
    assert held.requests <= held.requests_by_span
    assert held.requests_by_span <= held.requests_everything


def test_bars_of_derived_intervals_are_derived_again_without_a_request(held: Removal) -> None:
    assert 0 < held.derived_again <= sum(held.removed[interval] for interval in ("5m", "15m", "30m"))


@given(count=st.integers(10, 300), seed=st.integers(0, 1_000))
def test_as_many_bars_are_chosen_as_asked_for_each_once_and_some_of_every_interval(count: int, seed: int) -> None:
    keys: list[Key] = [
        (symbol, interval_s, day * 86_400 + 36_000 + slot * interval_s)
        for symbol in (1, 2)
        for interval_s, bars in ((60, 60), (300, 12), (3600, 2))
        for day in range(5)
        for slot in range(bars)
    ]
    chosen = choose(sorted(keys), count=count, seed=seed)
    assert len(set(chosen)) == len(chosen) == count
    assert set(chosen) <= set(keys)
    assert chosen == choose(sorted(keys), count=count, seed=seed)
