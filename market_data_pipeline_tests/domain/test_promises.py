"""How well a promise is kept by tier, and which steps of a price no market makes."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.alerts import Severity
from market_data_pipeline.domain.failures import CHECKS_REMEMBERED, Failure, FailureKind, failure_look
from market_data_pipeline.domain.ports import CorporateAction
from market_data_pipeline.domain.promises import Grade, Share, grade
from market_data_pipeline.domain.quality import Step, step_between
from market_data_pipeline.domain.sessions import day_number
from market_data_pipeline.domain.universe import Tier

TARGETS = {Tier.T0: 0.005, Tier.T1: 0.02, Tier.T2: 0.05}
THURSDAY, FRIDAY = date(2024, 6, 6), date(2024, 6, 7)
# NVIDIA's, from 1,208.88 on the 7th to 121.79 on the 10th.
SPLIT = CorporateAction("split", date(2024, 6, 10), 10.0)
MONDAY = date(2024, 6, 10)
NOW = datetime(2024, 6, 10, 22, tzinfo=UTC)


# --- grades


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ({}, Grade.KEPT),
        ({Tier.T0: Share(0, 0)}, Grade.KEPT),
        ({Tier.T0: Share(0, 1_000), Tier.T2: Share(50, 1_000)}, Grade.KEPT),
        ({Tier.T0: Share(5, 1_000)}, Grade.WARNING),
        ({Tier.T0: Share(6, 1_000)}, Grade.BROKEN),
        ({Tier.T1: Share(1_000, 1_000)}, Grade.WARNING),
    ],
)
def test_t0_counts_each_one_and_the_others_beyond_their_target(shares: dict[Tier, Share], expected: Grade) -> None:
    assert grade(shares, TARGETS) is expected


_SHARES = st.dictionaries(
    st.sampled_from(list(Tier)), st.integers(0, 100).flatmap(lambda of: st.builds(Share, st.integers(0, of), st.just(of)))
)


@given(_SHARES, st.sampled_from(list(Tier)))
def test_one_more_that_is_late_never_makes_it_better(shares: dict[Tier, Share], tier: Tier) -> None:
    share = shares.get(tier, Share(0, 100))
    worse = {**shares, tier: Share(min(share.bad + 1, share.of), share.of)}
    assert grade(worse, TARGETS) >= grade(shares, TARGETS)


# --- steps


def step(
    before: float,
    after: float,
    *,
    on: date = FRIDAY,
    since: date = THURSDAY,
    splits: tuple[CorporateAction, ...] = (),
    near: bool = False,
) -> Step | None:
    return step_between((before, day_number(since)), (after, day_number(on)), splits=splits, is_one_session=near)


def test_a_day_on_the_market_is_no_step() -> None:
    # Silicon Valley Bank lost 60 % on 2023-03-09.
    assert step(267.83, 106.04) is None


def test_pounds_and_pence_are_another_unit_either_way() -> None:
    for before, after in ((1.02, 101.0), (101.0, 1.02)):
        found = step(before, after)
        assert found is not None
        assert found.is_wrong


def test_on_the_first_day_of_a_split_raw_prices_move_by_its_factor() -> None:
    assert step(1_208.88, 121.79, since=FRIDAY, on=MONDAY, splits=(SPLIT,)) is None


def test_no_step_where_the_split_makes_one_is_wrong() -> None:
    found = step(120.89, 121.79, since=FRIDAY, on=MONDAY, splits=(SPLIT,))
    assert found is not None
    assert (found.is_wrong, "one side is adjusted" in found.reason) == (True, True)


def test_the_factor_of_a_split_on_another_day_is_wrong() -> None:
    found = step(1_209.98, 120.89, splits=(SPLIT,))
    assert found is not None
    assert (found.is_wrong, "10:1 split" in found.reason) == (True, True)


def test_far_from_any_split_its_factor_may_be_the_market() -> None:
    # AAPL fell by half on 2000-09-29, a hundred days after a 2:1 split.
    old = CorporateAction("split", date(2000, 6, 21), 2.0)
    assert step(53.50, 25.75, since=date(2000, 9, 28), on=date(2000, 9, 29), splits=(old,)) is None


def test_a_level_that_nothing_explains_wants_a_second_opinion_and_within_a_session_is_wrong() -> None:
    overnight, within = step(10.0, 31.0), step(10.0, 31.0, since=FRIDAY, near=True)
    assert overnight is not None
    assert within is not None
    assert (overnight.is_wrong, within.is_wrong) == (False, True)


@given(st.floats(0.01, 1e6), st.floats(1 / 2.7, 2.7))
def test_what_the_market_may_do_is_never_a_step(price: float, ratio: float) -> None:
    assert step(price, price * ratio, near=True, since=FRIDAY) is None


@given(st.floats(0.01, 1e6), st.floats(1.0, 1_000.0))
def test_a_step_up_is_judged_like_the_same_step_down(price: float, ratio: float) -> None:
    up, down = step(price, price * ratio), step(price * ratio, price)
    assert (up is None, up and up.is_wrong) == (down is None, down and down.is_wrong)
    assert up is None or down is None or math.isclose(up.factor * down.factor, 1.0)


# --- failures


def test_a_check_that_warns_is_nobodys_task_and_one_that_errs_is_as_urgent_as_the_rule() -> None:
    failures = [Failure(FailureKind.CHECK, f"candles/1m:{w}", "3 of 9 differ", NOW, is_warning=w) for w in (True, False)]
    found = failure_look(failures, NOW).findings
    assert [finding.severity for finding in found] == [Severity.INFO, None]
    assert found[1].labels == {"asset": "candles/1m", "check": "False"}
    assert found[1].text == "False of candles/1m does not pass: 3 of 9 differ"


def test_how_often_and_since_when_is_in_the_text() -> None:
    failure = Failure(FailureKind.RUN, "mine", "why", NOW, since=NOW - timedelta(hours=2), failures=120)
    [finding] = failure_look([failure], NOW).findings
    assert (finding.value, finding.text) == (120.0, "A run of mine failed (120 times since 2024-06-10 20:00Z): why")


def test_a_check_that_nobody_evaluates_any_more_is_forgotten() -> None:
    failure = Failure(FailureKind.CHECK, "a:b", "why", NOW - CHECKS_REMEMBERED)
    assert failure_look([failure], NOW).findings == []
