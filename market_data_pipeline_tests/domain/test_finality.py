"""How sure a session is, and when it is asked for again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from market_data_pipeline.domain.finality import RECHECKED_FOR, Finality, Settlement, confirms

if TYPE_CHECKING:
    from market_data_pipeline.domain.candles import Bools

CLOSE = datetime(2024, 12, 6, 21, tzinfo=UTC)
SETTLEMENT = Settlement(settled_from=int(CLOSE.timestamp()) + 3600, final_from=int(CLOSE.timestamp()) + 3 * 86_400 + 3600)
QUARTER = timedelta(minutes=15)

instants = st.integers(-86_400, 30 * 86_400).map(lambda seconds: CLOSE + timedelta(seconds=seconds))


@given(instants, instants)
def test_a_later_answer_never_reaches_less(earlier: datetime, later: datetime) -> None:
    if earlier <= later:
        assert SETTLEMENT.reached(earlier) <= SETTLEMENT.reached(later)


@given(instants)
def test_an_answer_when_the_recheck_is_planned_reaches_more_than_the_one_before(now: datetime) -> None:
    reached = SETTLEMENT.reached(now)
    again = SETTLEMENT.recheck_at(reached, now=now, shortest=QUARTER)
    if reached is Finality.FINAL:
        assert again is None
    else:
        assert again is not None
        assert again > now
        assert SETTLEMENT.reached(again) > reached


def test_two_rechecks_make_a_session_final_and_one_that_closed_long_ago_needs_none() -> None:
    settled = SETTLEMENT.recheck_at(Finality.PROVISIONAL, now=CLOSE, shortest=QUARTER)
    assert settled == CLOSE + timedelta(hours=1)
    final = SETTLEMENT.recheck_at(SETTLEMENT.reached(settled), now=settled, shortest=QUARTER)
    assert final == CLOSE + timedelta(days=3, hours=1)
    assert SETTLEMENT.reached(final) is Finality.FINAL
    assert SETTLEMENT.reached(CLOSE + timedelta(days=300)) is Finality.FINAL


@given(st.sampled_from([Finality.PROVISIONAL, Finality.SETTLED]), st.integers(0, 3600).map(lambda s: timedelta(seconds=s)))
def test_answers_that_confirm_nothing_are_asked_for_at_most_a_dozen_times(finality: Finality, delay: timedelta) -> None:
    """Each is answered ``delay`` after it was planned."""
    asked, now = 0, SETTLEMENT.recheck_after(finality)
    while now is not None:
        asked += 1
        now += delay
        again = SETTLEMENT.recheck_at(finality, now=now, shortest=QUARTER)
        assert again is None or again > now
        now = again
    assert 1 <= asked <= 12


def test_what_is_found_long_after_its_time_is_not_asked_for_again() -> None:
    late = CLOSE + timedelta(hours=1) + RECHECKED_FOR
    assert SETTLEMENT.recheck_at(Finality.PROVISIONAL, now=late, shortest=QUARTER) is None


@given(hnp.arrays(bool, 20), hnp.arrays(bool, 20))
def test_an_answer_confirms_where_it_has_nine_in_ten_of_the_bars_that_we_hold(bars: Bools, present: Bools) -> None:
    held = int(present.sum())
    lacking = int((present & ~bars).sum())
    assert confirms(bars, present) == (10 * lacking <= held)


def test_an_empty_answer_confirms_no_bar() -> None:
    nothing, one = np.zeros(5, bool), np.array([True, False, False, False, False])
    assert not confirms(nothing, one)
    assert confirms(nothing, nothing)
