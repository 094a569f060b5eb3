from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.condition import Condition, condition_of
from market_data_pipeline.domain.coverage import Verdict

NOTHING = dict.fromkeys(Verdict, 0)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({Verdict.PRESENT: 390}, Condition.AVAILABLE),
        ({Verdict.PRESENT: 200, Verdict.CONFIRMED_EMPTY: 100, Verdict.HALTED: 90}, Condition.AVAILABLE),
        ({Verdict.HALTED: 390}, Condition.AVAILABLE),
        ({Verdict.PRESENT: 389, Verdict.MISSING: 1}, Condition.DEGRADED),
        ({Verdict.PRESENT: 10, Verdict.UNREACHABLE: 380}, Condition.DEGRADED),
        ({Verdict.PRESENT: 10, Verdict.MISSING: 1, Verdict.PENDING: 379}, Condition.DEGRADED),
        ({Verdict.PRESENT: 10, Verdict.PENDING: 380}, Condition.PENDING),
        ({Verdict.PENDING: 390}, Condition.PENDING),
        ({Verdict.MISSING: 390}, Condition.MISSING),
        ({Verdict.UNREACHABLE: 390}, Condition.MISSING),
        ({Verdict.NOT_LISTED: 390}, Condition.NOT_LISTED),
    ],
)
def test_a_session_is_called_what_its_verdicts_make_of_it(counts: dict[Verdict, int], expected: Condition) -> None:
    assert condition_of(NOTHING | counts) is expected


@given(st.fixed_dictionaries({verdict: st.integers(0, 3) for verdict in Verdict}))
def test_nothing_is_called_available_that_lacks_a_bar(counts: dict[Verdict, int]) -> None:
    if condition_of(counts) is Condition.AVAILABLE:
        assert not counts[Verdict.MISSING] + counts[Verdict.UNREACHABLE] + counts[Verdict.PENDING]
