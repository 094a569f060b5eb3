"""What makes a silent slot empty, halted, or nothing at all."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from market_data_pipeline.domain.coverage import Verdict
from market_data_pipeline.domain.evidence import (
    Company,
    DayTotal,
    Decision,
    Neighbourhood,
    Rung,
    Silence,
    Surroundings,
    climb,
    company_of,
    tails,
)

if TYPE_CHECKING:
    from market_data_pipeline.domain.candles import Bools

SLOTS = 12
MINUTES = 390
slots = hnp.arrays(bool, SLOTS)
NOWHERE = np.zeros(SLOTS, bool)
EVERYWHERE = np.ones(SLOTS, bool)


def mask(text: str) -> Bools:
    """A slot a character: # for true."""
    return np.array([character == "#" for character in text])


@st.composite
def silences(draw: st.DrawFn) -> Silence:
    """As merging makes them: enclosed silence is quiet, a witness needs one enclosed silence, a second none."""
    quiet = draw(slots)
    enclosed = quiet & draw(slots)
    witnessed = draw(st.none() | slots.map(lambda drawn: enclosed & drawn))
    seconded = draw(st.none() | slots.map(lambda drawn: quiet & ~enclosed & drawn))
    return Silence(enclosed, quiet, witnessed, seconded, ("massive", "yahoo"))


@st.composite
def surroundings(draw: st.DrawFn) -> Surroundings:
    company = st.builds(Company, doubtful=slots, traded=slots, is_liquid=st.booleans(), others=st.integers(0, 9))
    day = st.builds(DayTotal, volume=st.none() | st.floats(0, 100), minutes=st.floats(0, 100))
    return Surroundings(day=draw(st.none() | day), company=draw(st.none() | company), may_halt=draw(st.booleans()))


def union(decisions: list[Decision]) -> Bools:
    decided = NOWHERE.copy()
    for decision in decisions:
        decided |= decision.slots
    return decided


# --- laws of the ladder


@given(silences(), slots, st.integers(1, 8), surroundings())
def test_a_slot_is_decided_once_only_where_it_is_open_and_quiet_and_never_in_silence(
    silence: Silence, open_slots: Bools, attempts: int, known: Surroundings
) -> None:
    decisions = climb(silence, open_slots, attempts=attempts, confirm_after=3, interval_seconds=60, surroundings=known)
    assert sum(int(decision.slots.sum()) for decision in decisions) == int(union(decisions).sum())
    assert not (union(decisions) & ~(open_slots & silence.quiet)).any()
    assert all(decision.slots.any() and decision.detail and decision.attempts == attempts for decision in decisions)


@given(silences(), slots, st.integers(1, 8), surroundings())
def test_more_attempts_never_decide_less(silence: Silence, open_slots: Bools, attempts: int, known: Surroundings) -> None:
    def decided(number: int) -> Bools:
        return union(climb(silence, open_slots, attempts=number, confirm_after=3, interval_seconds=60, surroundings=known))

    assert not (decided(attempts) & ~decided(attempts + 1)).any()


@given(silences(), slots, st.integers(1, 8), surroundings(), slots)
def test_what_is_doubtful_only_a_second_provider_can_confirm(
    silence: Silence, open_slots: Bools, attempts: int, known: Surroundings, doubtful: Bools
) -> None:
    company = Company(doubtful, EVERYWHERE, is_liquid=True, others=9)
    told = Surroundings(day=known.day, company=company, may_halt=known.may_halt)
    decisions = climb(silence, open_slots, attempts=attempts, confirm_after=3, interval_seconds=60, surroundings=told)
    for decision in decisions:
        if decision.rung is not Rung.SECOND_PROVIDER:
            witnessed = np.logical_or.reduce([NOWHERE, *(m for m in (silence.witnessed, silence.seconded) if m is not None)])
            assert not (decision.slots & doubtful & ~witnessed).any()
            assert decision.verdict is Verdict.CONFIRMED_EMPTY or not (decision.slots & doubtful).any()


@given(silences(), slots, st.integers(1, 8), surroundings())
def test_whether_it_was_a_halt_changes_the_verdict_and_not_what_is_decided(
    silence: Silence, open_slots: Bools, attempts: int, known: Surroundings
) -> None:
    asked = {"attempts": attempts, "confirm_after": 3, "interval_seconds": 60}
    inferred = climb(silence, open_slots, **asked, surroundings=known)
    unfollowed = Surroundings(day=known.day, company=known.company, may_halt=False)
    plain = climb(silence, open_slots, **asked, surroundings=unfollowed)
    assert np.array_equal(union(inferred), union(plain))
    assert all(decision.verdict is Verdict.CONFIRMED_EMPTY for decision in plain)
    assert all((decision.verdict is Verdict.HALTED) == (decision.rung is Rung.COMPANY) for decision in inferred)


# --- examples of it


@pytest.mark.parametrize(("attempts", "rungs"), [(1, []), (2, []), (3, [Rung.ATTEMPTS]), (4, [Rung.ATTEMPTS])])
def test_silence_between_bars_takes_three_attempts(attempts: int, rungs: list[Rung]) -> None:
    gap = mask("....#.......")
    decisions = climb(Silence(gap, gap), gap, attempts=attempts, confirm_after=3, interval_seconds=60)
    assert [decision.rung for decision in decisions] == rungs


def test_a_witness_with_bars_around_is_enough_at_once_and_two_answers_that_both_end_early_are_not() -> None:
    gap, end = mask("....#......."), mask("..........##")
    silence = Silence(gap, gap | end, witnessed=gap, seconded=end, providers=("massive", "yahoo"))
    [first] = climb(silence, gap | end, attempts=1, confirm_after=3, interval_seconds=60)
    assert (first.rung, first.slots.tolist()) == (Rung.SECOND_PROVIDER, gap.tolist())
    third = climb(silence, end, attempts=3, confirm_after=3, interval_seconds=60)
    assert [(one.rung, one.slots.tolist()) for one in third] == [(Rung.SECOND_PROVIDER, end.tolist())]


@pytest.mark.parametrize(
    ("volume", "minutes", "agrees"),
    [
        (1820.0, 1820.0, True),
        (1821.0, 1820.0, False),
        (1819.0, 1820.0, False),
        (46_587_722.0, 46_587_722.4, True),
        (46_587_722.0, 46_587_723.0, False),
        (0.125, 0.125 + 1e-9, True),
        (0.125, 0.1249, False),
        (0.0, 0.0, True),
        (None, 0.0, True),
        (None, 100.0, False),
    ],
)
def test_a_day_agrees_with_its_minutes_where_not_one_share_is_lacking(volume: float | None, minutes: float, agrees: bool) -> None:  # noqa: FBT001
    assert DayTotal(volume, minutes).agrees is agrees


def test_five_silent_minutes_of_a_liquid_symbol_were_a_halt_and_four_were_not() -> None:
    company = Company(NOWHERE, EVERYWHERE, is_liquid=True, others=40)
    silent = mask("#####..####.")
    decisions = climb(
        Silence(silent, silent), silent, attempts=3, confirm_after=3, interval_seconds=60,
        surroundings=Surroundings(company=company, may_halt=True),
    )  # fmt: skip
    assert {decision.verdict: decision.slots.tolist() for decision in decisions} == {
        Verdict.HALTED: mask("#####.......").tolist(),
        Verdict.CONFIRMED_EMPTY: mask(".......####.").tolist(),
    }


# --- company


def near(*lacking: set[int], full: int = 0) -> Neighbourhood:
    """Symbols of 390 minutes less the given ones; the first is the one in question."""
    present = np.ones((len(lacking), MINUTES), bool)
    for row, minutes in enumerate(lacking):
        present[row, list(minutes)] = False
    return Neighbourhood(present, ~present, full=full, mine=0)


def questioned(neighbourhood: Neighbourhood) -> Bools:
    asked: Bools = ~neighbourhood.present[0]
    return asked


def the_doubts_of(neighbourhood: Neighbourhood) -> list[int]:
    company = company_of(questioned(neighbourhood), neighbourhood, interval_seconds=60)
    return np.flatnonzero(company.doubtful).tolist()


def test_the_same_minute_of_two_liquid_symbols_is_doubtful_and_different_ones_are_not() -> None:
    assert the_doubts_of(near({100, 200}, {100}, full=40)) == [100]
    assert the_doubts_of(near({100}, {101}, full=40)) == []
    assert the_doubts_of(near({100}, full=400)) == []


def test_minutes_that_many_symbols_lack_now_and_then_coincide_by_chance() -> None:
    chance = np.random.default_rng(3)
    crowd = [set(np.flatnonzero(chance.random(MINUTES) < 0.015).tolist()) for _ in range(200)]
    doubted = [the_doubts_of(near(crowd[n], *crowd[:n], *crowd[n + 1 :])) for n in range(40)]
    assert sum(map(len, doubted)) <= 2
    # A minute that a tenth of them lack is another matter.
    crowd = [minutes | {77} if n % 10 == 0 else minutes for n, minutes in enumerate(crowd)]
    assert 77 in the_doubts_of(near(crowd[0], *crowd[1:]))


def test_an_hour_that_all_lack_is_doubtful_though_nobody_is_dense_over_the_whole_session() -> None:
    lost = set(range(120, 180))
    assert the_doubts_of(near(*[lost] * 5)) == sorted(lost)


def test_symbols_that_hardly_trade_are_no_company() -> None:
    thin = set(range(0, MINUTES, 3))
    assert the_doubts_of(near({99}, thin, thin, thin)) == []


def test_a_whole_session_is_weighed_against_the_days_around() -> None:
    present = np.ones((6, MINUTES), bool)
    present[0] = False
    around = np.array([0, 0, 5, 0, 0, 0]), np.full(6, 20 * MINUTES)
    crowd = Neighbourhood(present, ~present, mine=0, around_missing=around[0], around_expected=around[1])
    company = company_of(~present[0], crowd, interval_seconds=60)
    assert company.is_liquid
    assert company.traded.all()
    assert not company.doubtful.any()
    present[1:5] = False
    company = company_of(~present[0], replace(crowd, lacks=~present), interval_seconds=60)
    assert company.doubtful.all()


@given(st.floats(0, 50), st.integers(0, 120))
def test_the_tail_of_a_poisson_number_is_what_its_definition_says(mean: float, count: int) -> None:
    below = sum(math.exp(-mean + n * math.log(mean) - math.lgamma(n + 1)) if mean else float(n == 0) for n in range(count))
    assert tails(mean, np.array([count]))[0] == pytest.approx(max(1 - below, 0.0), abs=1e-9)
