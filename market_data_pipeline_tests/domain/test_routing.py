"""Who is asked, in which order, and what goes to the next."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.incidents import Emptiness, EmptinessPolicy
from market_data_pipeline.domain.routing import FAILED_KINDS, Contender, goes_on, other_feed, ranked, series_base

NAMES = "abcdefg"
CONTENDERS = st.lists(
    st.builds(
        Contender,
        name=st.sampled_from(NAMES),
        obstacle=st.sampled_from([None, None, "breaker open until noon"]),
        is_demoted=st.booleans(),
        on_trial=st.booleans(),
    ),
    unique_by=lambda contender: contender.name,
)


def test_the_order_is_that_of_the_policy_with_the_demoted_last() -> None:
    ranking = ranked([Contender("a", is_demoted=True), Contender("b"), Contender("c", is_demoted=True), Contender("d")])
    assert ranking.order == ("b", "d", "a", "c")
    assert ranking.passed_over == {"a": "demoted: asked last", "c": "demoted: asked last"}


def test_a_hint_is_asked_first_even_where_it_is_demoted_but_not_where_it_cannot_be_asked() -> None:
    contenders = [Contender("a"), Contender("b", is_demoted=True), Contender("c", obstacle="disabled until tomorrow")]
    assert ranked(contenders, hint="b").order == ("b", "a")
    assert ranked(contenders, hint="c").order == ("a", "b")
    assert ranked(contenders, hint="c").passed_over["c"] == "disabled until tomorrow"


def test_one_on_trial_stands_in_its_old_place_for_its_single_request() -> None:
    assert ranked([Contender("a", is_demoted=True, on_trial=True), Contender("b")]).order == ("a", "b")


@given(CONTENDERS, st.sampled_from([None, *NAMES]))
def test_everybody_is_ranked_or_passed_over_with_a_reason(contenders: list[Contender], hint: str | None) -> None:
    ranking = ranked(contenders, hint=hint)
    assert len(set(ranking.order)) == len(ranking.order)
    for contender in contenders:
        assert (contender.name in ranking.order) is (contender.obstacle is None)
        assert contender.obstacle is None or ranking.passed_over[contender.name] == contender.obstacle
    usable = [c for c in contenders if c.obstacle is None and c.name != hint and (not c.is_demoted or c.on_trial)]
    assert [name for name in ranking.order if name in {c.name for c in usable}] == [c.name for c in usable]


# --- feeds -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("configured", "stored", "expected"),
    [
        (["consolidated", "iex"], [], "consolidated"),
        (["iex", "consolidated"], [], "iex"),
        (["consolidated"], ["iex"], "iex"),
        # A labelled fallback filled a hole of the series; it is still what its first provider makes it.
        (["consolidated", "iex"], ["consolidated", "iex"], "consolidated"),
        (["iex", "consolidated"], ["consolidated", "iex"], "iex"),
        ([], [], None),
    ],
)
def test_a_series_counts_the_trades_of_its_first_provider_or_of_what_it_holds(
    configured: list[str], stored: list[str], expected: str | None
) -> None:
    assert series_base(configured, stored) == expected


def test_a_provider_with_another_feed_is_passed_over_with_the_setting_that_would_let_it_in() -> None:
    assert other_feed("iex", "iex") is None
    assert other_feed("iex", None) is None
    assert "MDP_ALLOW_MIXED_FEEDS" in str(other_feed("iex", "consolidated"))


# --- what goes on ------------------------------------------------------------------------------------------------------


def test_twelve_of_390_bars_go_on_at_the_first_attempt_and_380_at_the_second() -> None:
    assert goes_on("ok", due=390, held=12, is_over=True, attempts=0)
    assert not goes_on("ok", due=390, held=380, is_over=True, attempts=0)
    assert goes_on("ok", due=390, held=380, is_over=True, attempts=1)


def test_a_session_that_still_runs_goes_on_only_after_a_failure() -> None:
    assert not goes_on("ok", due=100, held=0, is_over=False, attempts=3)
    assert not goes_on("barren", due=100, held=0, is_over=False, attempts=3)
    assert goes_on("transient", due=100, held=0, is_over=False, attempts=0)
    assert goes_on("stale", due=100, held=90, is_over=False, attempts=0)


@given(st.sampled_from(["ok", "barren"]), st.integers(0, 390), st.integers(0, 390), st.booleans(), st.integers(0, 9))
def test_an_answer_after_which_a_session_is_full_goes_nowhere(kind: str, due: int, more: int, is_over: bool, attempts: int) -> None:  # noqa: FBT001 - hypothesis passes it
    assert not goes_on(kind, due=due, held=due + more, is_over=is_over, attempts=attempts)


@pytest.mark.parametrize("kind", sorted(FAILED_KINDS))
def test_a_failure_goes_on_even_where_everything_is_stored_for_then_it_was_asked_for_again_on_purpose(kind: str) -> None:
    assert goes_on(kind, due=390, held=390, is_over=True, attempts=0)
    assert goes_on(kind, due=390, held=390, is_over=False, attempts=0)


# --- empty answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "barren", "expected"),
    [
        (100, 73, Emptiness.INCIDENT),
        (100, 7, Emptiness.CALM),
        (100, 35, Emptiness.UNCLEAR),
        (20, 10, Emptiness.INCIDENT),
        (19, 19, Emptiness.UNCLEAR),
        (20, 4, Emptiness.CALM),
        (0, 0, Emptiness.UNCLEAR),
    ],
)
def test_most_symbols_empty_is_an_incident_and_a_thin_tail_is_silence(asked: int, barren: int, expected: Emptiness) -> None:
    assert EmptinessPolicy().judge(asked=asked, barren=barren) is expected
