"""Every expected bar has exactly one verdict."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from market_data_pipeline.domain.coverage import VERDICTS, Verdict, runs, tally, verdict_codes

NOW = 1_700_000_000

masks = hnp.arrays(bool, st.integers(0, 200))


@st.composite
def bars(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """A grid of bars around now, with any facts about them that the ledger may hold."""
    size = draw(st.integers(0, 60))
    facts = draw(hnp.arrays(bool, (4, size)))
    opened_at = NOW + np.sort(draw(hnp.arrays(np.int64, size, elements=st.integers(-10_000, 10_000))))
    lengths = draw(hnp.arrays(np.int64, size, elements=st.integers(1, 3600)))
    present = facts[0]
    return {
        "present": present,
        "confirmed_empty": facts[1] & ~present,
        "halted": facts[3] & ~present & ~facts[1],
        "listed": facts[2],
        "opened_at": opened_at,
        "ends_at": opened_at + lengths,
    }


@given(bars(), st.integers(0, 600), st.none() | st.integers(0, 10_000))
def test_the_verdicts_add_up_to_the_grid_and_each_bar_has_the_first_that_holds(
    grid: dict[str, np.ndarray], settle: int, reach: int | None
) -> None:
    codes = verdict_codes(**grid, now=NOW, settle_seconds=settle, reach_seconds=reach)
    assert sum(tally(codes).values()) == len(grid["present"])
    for place, code in enumerate(codes.tolist()):
        assert VERDICTS[code] is _verdict_by_hand({name: column[place] for name, column in grid.items()}, settle, reach)


def _verdict_by_hand(bar: dict[str, int], settle: int, reach: int | None) -> Verdict:
    rules = {
        Verdict.PRESENT: bar["present"],
        Verdict.CONFIRMED_EMPTY: bar["confirmed_empty"],
        Verdict.HALTED: bar["halted"],
        Verdict.NOT_LISTED: not bar["listed"],
        Verdict.PENDING: bar["ends_at"] + settle > NOW,
        Verdict.UNREACHABLE: reach is not None and NOW - bar["opened_at"] > reach,
    }
    return next((verdict for verdict, holds in rules.items() if holds), Verdict.MISSING)


def test_a_bar_stops_being_pending_at_the_very_second_it_has_settled() -> None:
    no = np.array([False])
    bar = {"present": no, "confirmed_empty": no, "halted": no, "listed": ~no}
    ends_at = np.array([NOW])
    for now, expected in ((NOW + 89, Verdict.PENDING), (NOW + 90, Verdict.MISSING)):
        codes = verdict_codes(**bar, opened_at=ends_at - 60, ends_at=ends_at, now=now, settle_seconds=90, reach_seconds=None)
        assert tally(codes)[expected] == 1


def test_a_bar_becomes_unreachable_one_second_after_the_provider_s_reach() -> None:
    no = np.array([False])
    bar = {"present": no, "confirmed_empty": no, "halted": no, "listed": ~no}
    opened_at = np.array([NOW])
    for now, expected in ((NOW + 3600, Verdict.MISSING), (NOW + 3601, Verdict.UNREACHABLE)):
        codes = verdict_codes(**bar, opened_at=opened_at, ends_at=opened_at + 60, now=now, settle_seconds=0, reach_seconds=3600)
        assert tally(codes)[expected] == 1


def test_the_tally_names_every_verdict_even_of_no_bars() -> None:
    assert tally(np.array([], np.uint8)) == dict.fromkeys(Verdict, 0)


@given(masks)
def test_runs_cover_exactly_the_mask(mask: np.ndarray) -> None:
    covered = np.zeros(len(mask), bool)
    for run in runs(mask):
        assert run.first < run.last
        assert not covered[run.first : run.last].any()
        covered[run.first : run.last] = True
    assert np.array_equal(covered, mask)


@given(masks)
def test_runs_are_in_order_and_as_few_as_can_be(mask: np.ndarray) -> None:
    stretches = runs(mask)
    assert all(one.last < following.first for one, following in pairwise(stretches))
