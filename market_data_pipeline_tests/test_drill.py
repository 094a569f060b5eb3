"""Providers that fail in the middle of a backfill: the warehouse comes out equal. A few situations here, all by `mdp drill`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.simulator.drill import FAULT_FREE, SITUATIONS, Outcome, Verdicts, ground, random_faults

if TYPE_CHECKING:
    from collections.abc import Iterator

    from market_data_pipeline.simulator.drill import Ground, Situation

CHOSEN = {
    "killed",
    "bankrupt, 402",
    "silent: well-formed and empty",
    "a hundred times too dear",
    "now and then: one bar in five is lost",
}


@pytest.fixture(scope="module")
def where() -> Iterator[Ground]:
    with ground() as made:
        yield made


@pytest.fixture(scope="module")
def fault_free(where: Ground) -> Outcome:
    return where.hold(FAULT_FREE["yahoo"])


def test_a_fault_free_backfill_leaves_nothing_missing_and_is_within_all_limits(fault_free: Outcome) -> None:
    assert (fault_free.missing, fault_free.over_limit) == (0, 0)
    assert len(fault_free.warehouse.bars) > 50_000


@pytest.mark.parametrize("situation", [s for s in SITUATIONS if s.victim == "yahoo" and s.name in CHOSEN], ids=lambda s: s.name)
def test_whatever_befalls_the_first_provider_the_warehouse_is_that_of_a_fault_free_backfill(
    where: Ground, fault_free: Outcome, situation: Situation
) -> None:
    held = Verdicts(where.hold(situation), fault_free)
    assert held.faulty.warehouse.differences(fault_free.warehouse) == []
    assert (held.is_frugal, held.faulty.over_limit, held.faulty.missing) == (True, 0, 0)


@pytest.mark.parametrize("seed", range(1, 4))
def test_five_per_cent_of_random_faults_change_nothing(where: Ground, fault_free: Outcome, seed: int) -> None:
    held = where.hold(random_faults("yahoo", 0.05), seed=seed)
    assert held.warehouse.differences(fault_free.warehouse) == []
    assert held.struck > 0
