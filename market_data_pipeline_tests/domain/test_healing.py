"""What an answer, or the lack of one, changes in the ledger."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from market_data_pipeline.domain.candles import Bools, Interval
from market_data_pipeline.domain.coverage import LedgerRow
from market_data_pipeline.domain.finality import Finality, Settlement
from market_data_pipeline.domain.healing import HealingPolicy, SessionAnswer, after_answer, after_failure, held_back

SLOTS = 12
OPEN = datetime(2024, 6, 3, 13, 30, tzinfo=UTC)
CLOSE = datetime(2024, 6, 3, 20, 0, tzinfo=UTC)
EVENING = datetime(2024, 6, 3, 22, 0, tzinfo=UTC)
POLICY = HealingPolicy()

slots = hnp.arrays(bool, SLOTS)
times = st.integers(-6 * 3600, 30 * 86400).map(lambda seconds: EVENING + timedelta(seconds=seconds))
policies = st.builds(
    HealingPolicy,
    confirm_after=st.integers(2, 6),
    give_up_after=st.integers(2, 8),
    backoff_seconds=st.floats(0, 1e6),
    longest_backoff_seconds=st.floats(0, 1e6),
)


def mask(text: str) -> Bools:
    """A slot a character: # for true."""
    return np.array([character == "#" for character in text])


def a_row(**changes: Any) -> LedgerRow:  # noqa: ANN401 - any field
    """A session of twelve bars of which nothing is known yet, except ``changes``."""
    row = LedgerRow(
        symbol_id=1,
        interval=Interval.M30,
        session=date(2024, 6, 3),
        opens_at=int(OPEN.timestamp()),
        closes_at=int(CLOSE.timestamp()),
        present=np.zeros(SLOTS, bool),
        confirmed_empty=np.zeros(SLOTS, bool),
    )
    return replace(row, **changes)


def an_answer(bars: Bools) -> SessionAnswer:
    """An answer about the whole session, and nothing else, that holds ``bars`` and is silent about the rest."""
    places = np.flatnonzero(bars)
    inside = (np.arange(SLOTS) > places.min(initial=SLOTS)) & (np.arange(SLOTS) < places.max(initial=-1))
    return SessionAnswer(bars=bars, silent=~bars & inside, quiet=~bars)


ALL_DUE = np.ones(SLOTS, bool)
GAP = mask("#####.######")
OPEN_END = mask("###########.")


@st.composite
def rows(draw: st.DrawFn) -> LedgerRow:
    """Any row that the ledger may hold."""
    present = draw(slots)
    return a_row(
        present=present,
        confirmed_empty=draw(slots) & ~present,
        attempts=draw(st.integers(0, 10)),
        failures=draw(st.integers(0, 10)),
        next_attempt_at=draw(st.none() | times),
        recheck_at=draw(st.none() | times),
    )


@st.composite
def answers(draw: st.DrawFn) -> SessionAnswer:
    """Any answer: what is neither a bar nor silent was an explicit null, or was not asked for."""
    bars = draw(slots)
    settlement = st.none() | st.builds(Settlement, st.just(SETTLEMENT.settled_from), st.just(SETTLEMENT.final_from))
    return SessionAnswer(
        bars=bars,
        silent=draw(slots) & ~bars,
        is_evidence=draw(st.booleans()),
        is_whole=draw(st.booleans()),
        settlement=draw(settlement),
    )


# --- laws


@given(rows(), answers(), slots, times, policies)
def test_present_bars_stay_present_and_no_slot_is_both_present_and_empty(
    row: LedgerRow, answer: SessionAnswer, due: Bools, now: datetime, policy: HealingPolicy
) -> None:
    after = after_answer(row, answer, due=due, now=now, policy=policy)
    assert np.array_equal(after.present, row.present | answer.bars)
    assert not (after.present & after.confirmed_empty).any()


@given(rows(), answers(), slots, times, policies)
def test_a_slot_is_only_called_empty_on_silence_and_stays_so_until_a_bar_comes(
    row: LedgerRow, answer: SessionAnswer, due: Bools, now: datetime, policy: HealingPolicy
) -> None:
    after = after_answer(row, answer, due=due, now=now, policy=policy)
    newly_empty = after.confirmed_empty & ~row.confirmed_empty
    assert not (newly_empty & ~answer.silent).any()
    assert not (row.confirmed_empty & ~after.confirmed_empty & ~answer.bars).any()
    if newly_empty.any():
        assert after.attempts >= policy.confirm_after


@given(rows(), st.permutations(range(4)), st.lists(answers(), min_size=4, max_size=4), times)
def test_the_order_of_answers_does_not_matter_for_what_is_present(
    row: LedgerRow, order: list[int], several: list[SessionAnswer], now: datetime
) -> None:
    def present_after(sequence: list[SessionAnswer]) -> Bools:
        state = row
        for answer in sequence:
            state = after_answer(state, answer, due=ALL_DUE, now=now, policy=POLICY)
        return state.present

    assert np.array_equal(present_after(several), present_after([several[n] for n in order]))


@given(rows(), answers(), times, st.floats(0, 899))
def test_asking_twice_in_a_row_is_not_two_attempts(row: LedgerRow, answer: SessionAnswer, now: datetime, seconds: float) -> None:
    once = after_answer(row, answer, due=ALL_DUE, now=now, policy=POLICY)
    if once.next_attempt_at is None:
        return  # nothing is planned: nobody asks
    twice = after_answer(once, answer, due=ALL_DUE, now=min(now + timedelta(seconds=seconds), _just_before(once)), policy=POLICY)
    assert twice.attempts == once.attempts
    assert np.array_equal(twice.confirmed_empty, once.confirmed_empty)
    assert twice.next_attempt_at in {once.next_attempt_at, None}


def _just_before(row: LedgerRow) -> datetime:
    assert row.next_attempt_at is not None
    return row.next_attempt_at - timedelta(microseconds=1)


@given(slots, st.booleans(), policies)
def test_attempts_for_bars_that_never_come_end(bars: Bools, nulls: bool, policy: HealingPolicy) -> None:  # noqa: FBT001 - drawn
    answer = SessionAnswer(bars=bars, silent=np.zeros(SLOTS, bool) if nulls else ~bars)
    row, now, requests = a_row(next_attempt_at=EVENING), EVENING, 0
    while row.next_attempt_at is not None:
        now = max(now, row.next_attempt_at)
        row = after_answer(row, answer, due=ALL_DUE, now=now, policy=policy)
        requests += 1
        assert requests <= policy.give_up_after + 1
    assert np.array_equal(row.present, bars)


@given(slots, st.data(), policies)
def test_attempts_end_even_where_every_answer_brings_another_bar(bars: Bools, data: st.DataObject, policy: HealingPolicy) -> None:
    row, now, requests = a_row(next_attempt_at=EVENING), EVENING, 0
    while row.next_attempt_at is not None:
        now = max(now, row.next_attempt_at)
        row = after_answer(row, an_answer(data.draw(slots) & bars), due=ALL_DUE, now=now, policy=policy)
        requests += 1
        assert requests <= policy.give_up_after + SLOTS


@st.composite
def fates(draw: st.DrawFn) -> SessionAnswer | str:
    """What befalls a request for a session that is over: nothing usable, or an answer without the bar of slot 3."""
    answer = draw(st.sampled_from(["failed", "not believed"]) | answers())
    if isinstance(answer, str):
        return answer
    never = np.arange(SLOTS) == 3
    following = draw(st.none() | st.integers(-86_400, 4 * 86_400))
    next_over_at = None if following is None else int(CLOSE.timestamp()) + following
    return replace(
        answer,
        bars=answer.bars & ~never,
        silent=answer.silent & ~never,
        quiet=~answer.bars,
        is_evidence=True,
        next_over_at=next_over_at,
    )


@settings(max_examples=60)
@given(st.lists(fates(), min_size=1, max_size=60), policies, st.integers(1, 24))
def test_a_bar_that_never_comes_costs_no_more_rounds_than_the_policy_says(
    befalls: list[SessionAnswer | str], policy: HealingPolicy, give_up_failures: int
) -> None:
    policy = replace(policy, give_up_failures=give_up_failures)
    row, now, rounds, place = a_row(next_attempt_at=EVENING), EVENING, 0, 0
    while row.next_attempt_at is not None:
        now = max(now, row.next_attempt_at)
        # What was drawn comes again and again: whatever a provider does, it does for ever.
        answer = befalls[place % len(befalls)]
        before = int(row.present.sum())
        if isinstance(answer, str):
            row = (after_failure if answer == "failed" else held_back)(row, now=now, policy=policy)
        else:
            row = after_answer(row, answer, due=ALL_DUE, now=now, policy=policy)
        place += 1
        # Each bar that comes is worth its request, and starts the count of those that bring nothing anew.
        rounds = rounds + 1 if int(row.present.sum()) == before else 0
        assert rounds <= policy.most_rounds
    assert not row.present[3]


def test_by_default_a_bar_that_never_comes_is_asked_for_in_31_rounds_at_most() -> None:
    assert POLICY.most_rounds == 31


@given(rows(), answers(), slots, times, policies)
def test_with_a_hole_or_bars_to_come_either_a_later_attempt_is_planned_or_we_gave_up(
    row: LedgerRow, answer: SessionAnswer, due: Bools, now: datetime, policy: HealingPolicy
) -> None:
    after = after_answer(row, answer, due=due, now=now, policy=policy)
    absent = ~after.present & ~after.confirmed_empty
    if after.next_attempt_at is None:
        assert not absent.any() or after.attempts >= policy.give_up_after
    else:
        assert absent.any()


@given(rows(), times, policies)
def test_a_failure_changes_no_verdict_and_never_brings_the_next_attempt_nearer(
    row: LedgerRow, now: datetime, policy: HealingPolicy
) -> None:
    after = after_failure(row, now=now, policy=policy)
    assert np.array_equal(after.present, row.present)
    assert np.array_equal(after.confirmed_empty, row.confirmed_empty)
    assert (after.attempts, after.failures) == (row.attempts, row.failures + 1)
    if after.failures >= policy.give_up_failures:
        assert after.next_attempt_at is None
        assert after.recheck_at is None
    elif row.resolved.all():
        assert after.next_attempt_at == row.next_attempt_at
    else:
        assert after.next_attempt_at is not None
        assert after.next_attempt_at >= (row.next_attempt_at or now)
        assert after.next_attempt_at >= now + policy.wait(after.failures)
    if after.recheck_at is not None:
        assert row.recheck_at is not None
        assert after.recheck_at >= max(row.recheck_at, now + policy.wait(after.failures))


@given(rows(), st.lists(st.tuples(answers(), times), max_size=30))
def test_a_session_only_ever_becomes_surer_and_is_checked_again_until_it_is_final(
    row: LedgerRow, given_: list[tuple[SessionAnswer, datetime]]
) -> None:
    for answer, now in given_:
        after = after_answer(row, answer, due=ALL_DUE, now=now, policy=POLICY)
        assert after.finality >= row.finality
        if after.finality is Finality.FINAL:
            assert after.recheck_at is None
        elif answer.settlement is not None:
            assert after.recheck_at == answer.settlement.recheck_at(after.finality, now=now, shortest=POLICY.wait(1))
        row = after


SETTLEMENT = Settlement(settled_from=int(CLOSE.timestamp()) + 3600, final_from=int(CLOSE.timestamp()) + 86_400 + 3600)
WHOLE = SessionAnswer(bars=ALL_DUE, silent=~ALL_DUE, settlement=SETTLEMENT)


@pytest.mark.parametrize(
    ("at", "expected", "again"),
    [
        (CLOSE + timedelta(minutes=10), Finality.PROVISIONAL, CLOSE + timedelta(hours=1)),
        (CLOSE + timedelta(hours=1), Finality.SETTLED, CLOSE + timedelta(hours=25)),
        (CLOSE + timedelta(hours=25), Finality.FINAL, None),
    ],
)
def test_a_session_is_as_final_as_its_last_whole_answer_was_late(at: datetime, expected: Finality, again: datetime | None) -> None:
    after = after_answer(a_row(), WHOLE, due=ALL_DUE, now=at, policy=POLICY)
    assert (after.finality, after.recheck_at) == (expected, again)


def test_an_answer_about_a_part_of_the_session_or_from_the_past_makes_nothing_final() -> None:
    late = CLOSE + timedelta(days=3)
    for answer in (replace(WHOLE, is_whole=False), replace(WHOLE, is_evidence=False)):
        after = after_answer(a_row(), answer, due=ALL_DUE, now=late, policy=POLICY)
        # It was due since an hour after the close: the next one is as much later again.
        assert (after.finality, after.recheck_at) == (Finality.PROVISIONAL, late + timedelta(hours=71))


def test_an_answer_that_lacks_much_of_what_we_hold_deletes_and_confirms_nothing() -> None:
    held = a_row(present=ALL_DUE)
    few = replace(WHOLE, bars=mask("######......"), silent=mask("......######"))
    at = CLOSE + timedelta(hours=2)
    after = after_answer(held, few, due=ALL_DUE, now=at, policy=POLICY)
    assert after.present.all()
    assert (after.finality, after.recheck_at) == (Finality.PROVISIONAL, at + timedelta(hours=1))


def test_a_bar_that_comes_after_all_is_no_longer_halted() -> None:
    row = a_row(present=mask("####....####"), halted=mask("....####...."))
    after = after_answer(row, an_answer(mask("#####...####")), due=ALL_DUE, now=EVENING, policy=POLICY)
    assert after.halted is not None
    assert np.array_equal(after.halted, mask(".....###...."))
    assert after.resolved.all()
    assert after.next_attempt_at is None


def test_answers_that_are_not_believed_are_asked_for_again_soon_for_two_hours_and_then_ever_later() -> None:
    row, waits = a_row(next_attempt_at=EVENING), []
    while row.next_attempt_at is not None:
        now = row.next_attempt_at
        row = held_back(row, now=now, policy=POLICY)
        if row.next_attempt_at is not None:
            waits.append(row.next_attempt_at - now)
    assert waits[:9] == [timedelta(minutes=15)] * 9
    assert waits[9:12] == [timedelta(hours=1), timedelta(hours=4), timedelta(hours=16)]
    assert (row.failures, row.attempts) == (POLICY.give_up_failures, 0)


@given(policies, st.integers(0, 100_000))
def test_waits_grow_up_to_the_longest_however_often_we_failed(policy: HealingPolicy, attempts: int) -> None:
    assert timedelta(0) <= policy.wait(attempts) <= policy.wait(attempts + 1) <= timedelta(seconds=policy.longest_backoff_seconds)


@given(rows(), answers(), times)
def test_neither_the_row_nor_the_answer_is_changed_in_place(row: LedgerRow, answer: SessionAnswer, now: datetime) -> None:
    for array in (row.present, row.confirmed_empty, answer.bars, answer.silent):
        array.setflags(write=False)
    after = after_answer(row, answer, due=ALL_DUE, now=now, policy=POLICY)
    assert after is not row


# --- examples


def asked_until_settled(row: LedgerRow, answer: SessionAnswer) -> list[LedgerRow]:
    history, now = [row], EVENING
    while history[-1].next_attempt_at is not None:
        now = max(now, history[-1].next_attempt_at)
        history.append(after_answer(history[-1], answer, due=ALL_DUE, now=now, policy=POLICY))
    return history


def test_a_minute_between_trades_is_confirmed_empty_by_the_third_spaced_answer() -> None:
    history = asked_until_settled(a_row(next_attempt_at=EVENING), an_answer(GAP))
    assert [int(row.confirmed_empty.sum()) for row in history] == [0, 0, 0, 1]
    waits = [row.next_attempt_at - row.last_attempt_at for row in history[1:-1] if row.next_attempt_at and row.last_attempt_at]
    assert waits == [timedelta(minutes=15), timedelta(hours=1)]


def test_a_missing_last_bar_is_never_called_empty_and_is_given_up_after_six_answers() -> None:
    history = asked_until_settled(a_row(next_attempt_at=EVENING), an_answer(OPEN_END))
    assert history[-1].attempts == 6
    assert not history[-1].confirmed_empty.any()
    assert not history[-1].present[-1]


def test_the_silent_end_of_a_session_waits_for_the_next_one_and_is_then_given_up() -> None:
    monday_over = int(CLOSE.timestamp()) + 3 * 86_400
    answer = replace(an_answer(OPEN_END), next_over_at=monday_over)
    history = asked_until_settled(a_row(next_attempt_at=EVENING), answer)
    attempted = [row.last_attempt_at for row in history[1:] if row.last_attempt_at]
    assert attempted[3] == datetime.fromtimestamp(monday_over, UTC)
    assert history[-1].attempts == 6
    beyond = replace(an_answer(OPEN_END), silent=~OPEN_END, next_over_at=monday_over)
    confirmed = after_answer(history[4], beyond, due=ALL_DUE, now=attempted[4], policy=POLICY)
    assert confirmed.confirmed_empty.tolist() == (~OPEN_END).tolist()


def test_an_explicit_null_is_no_evidence_of_silence() -> None:
    history = asked_until_settled(a_row(next_attempt_at=EVENING), SessionAnswer(bars=GAP, silent=np.zeros(SLOTS, bool)))
    assert not history[-1].confirmed_empty.any()


def test_a_bar_that_arrives_after_its_slot_was_confirmed_empty_is_present() -> None:
    row = a_row(present=GAP, confirmed_empty=~GAP, attempts=3)
    after = after_answer(row, an_answer(ALL_DUE), due=ALL_DUE, now=EVENING, policy=POLICY)
    assert after.present.all()
    assert not after.confirmed_empty.any()
    assert after.next_attempt_at is None


def test_a_complete_session_plans_nothing_and_counts_no_attempt() -> None:
    after = after_answer(a_row(next_attempt_at=EVENING), an_answer(ALL_DUE), due=ALL_DUE, now=EVENING, policy=POLICY)
    assert (after.attempts, after.next_attempt_at) == (0, None)


def test_an_answer_in_the_middle_of_the_session_is_no_attempt() -> None:
    noon = OPEN + timedelta(hours=3)
    after = after_answer(
        a_row(next_attempt_at=noon), an_answer(mask("##.###......")), due=mask("######......"), now=noon, policy=POLICY
    )
    assert after.attempts == 0
    assert after.next_attempt_at == noon + timedelta(minutes=15)


def test_bars_still_to_come_are_asked_for_after_the_close_though_nothing_is_missing_yet() -> None:
    noon = OPEN + timedelta(hours=3)
    after = after_answer(
        a_row(next_attempt_at=noon), an_answer(mask("######......")), due=mask("######......"), now=noon, policy=POLICY
    )
    assert after.next_attempt_at == CLOSE + timedelta(minutes=15)


def test_the_last_bar_of_a_closed_session_that_has_not_settled_is_asked_for_too() -> None:
    now = CLOSE + timedelta(seconds=30)
    after = after_answer(a_row(), an_answer(OPEN_END), due=OPEN_END, now=now, policy=POLICY)
    assert after.next_attempt_at == now + timedelta(minutes=15)


def test_an_answer_ends_a_row_of_failures() -> None:
    failed = after_failure(a_row(failures=4), now=EVENING, policy=POLICY)
    assert failed.failures == 5
    answered = after_answer(failed, an_answer(GAP), due=ALL_DUE, now=EVENING, policy=POLICY)
    assert answered.failures == 0
    # One that brings nothing does not start the count anew: see the bound.
    again = after_failure(answered, now=EVENING, policy=POLICY)
    assert after_answer(again, an_answer(GAP), due=ALL_DUE, now=EVENING + timedelta(hours=2), policy=POLICY).failures == 1
