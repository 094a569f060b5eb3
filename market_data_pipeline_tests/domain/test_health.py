"""What each outcome changes in a provider's health, what that scores, and whether the provider may be asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import reduce
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from market_data_pipeline.domain.errors import ProviderError
from market_data_pipeline.domain.health import (
    ANSWERS,
    FAILURES,
    UNDECIDED,
    Breaker,
    HealthPolicy,
    Outcome,
    ProviderHealth,
    events,
    kinds_of_incident,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
POLICY = HealthPolicy()
KINDS = sorted(FAILURES | ANSWERS | UNDECIDED | {"ok", "barren", "entitlement"})

unit = st.floats(0, 1)
outcomes = st.builds(
    Outcome,
    kind=st.sampled_from(KINDS),
    latency_seconds=st.floats(0, 5),
    attempts=st.integers(0, 4),
    expected=st.integers(0, 400),
    received=st.integers(0, 400),
    detail=st.sampled_from(["", "HTTP 503"]),
)


@dataclass(frozen=True)
class Step:
    """Some time passes, perhaps a trial is begun where one is offered, and an outcome comes in."""

    seconds: float
    asks: bool
    outcome: Outcome


steps = st.lists(st.builds(Step, st.floats(0, 100_000) | st.floats(0, 90), st.booleans(), outcomes), max_size=40)


def lived(life: Sequence[Step], policy: HealthPolicy = POLICY) -> list[tuple[datetime, ProviderHealth]]:
    """Every health on the way through ``life``, with its time; the first is fresh."""
    now, health = NOON, ProviderHealth()
    seen = [(now, health)]
    for step in life:
        now += timedelta(seconds=step.seconds)
        if step.asks and health.admission(now=now, policy=policy).is_trial:
            health = health.on_trial()
            seen.append((now, health))
        health = health.after(step.outcome, now=now, policy=policy)
        seen.append((now, health))
    return seen


def a_health(**changes: object) -> ProviderHealth:
    """A fresh health, except ``changes``."""
    return replace(ProviderHealth(), **changes)  # type: ignore[arg-type] # any field


def an_open_one(**changes: object) -> ProviderHealth:
    """One whose breaker opened at noon, except ``changes``."""
    return a_health(breaker=Breaker.OPEN, opened_at=NOON, failures_in_row=5, reason="HTTP 503", **changes)


def after_all(health: ProviderHealth, *kinds: str, now: datetime = NOON) -> ProviderHealth:
    return reduce(lambda h, kind: h.after(Outcome(kind, 0.1), now=now, policy=POLICY), kinds, health)


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


# --- the score ---------------------------------------------------------------------------------------------------------


# By hand from REFERENCE_SERVICE.md, M1: 0.45 breaker + 0.25 (1 - latency) + 0.20 (1 - error) + 0.10 completeness.
@pytest.mark.parametrize(
    ("breaker", "p95", "error", "completeness", "score"),
    [
        (Breaker.CLOSED, 0.0, 0.0, 1.0, 1.0),
        (Breaker.OPEN, 5.0, 1.0, 0.0, 0.0),
        (Breaker.HALF_OPEN, 0.0, 0.0, 1.0, 0.775),
        (Breaker.CLOSED, 0.5, 0.25, 0.4, 0.45 + 0.125 + 0.15 + 0.04),
        (Breaker.CLOSED, 1.0, 0.0, 1.0, 0.75),
        (Breaker.CLOSED, 9.0, 0.0, 1.0, 0.75),
    ],
)
def test_the_score_is_that_of_the_reference(breaker: Breaker, p95: float, error: float, completeness: float, score: float) -> None:
    opened_at = None if breaker is Breaker.CLOSED else NOON
    health = a_health(breaker=breaker, opened_at=opened_at, latencies=(p95,), error=error, completeness=completeness)
    assert health.score(POLICY) == pytest.approx(score)


def test_the_p95_is_of_the_nearest_rank() -> None:
    assert a_health(latencies=tuple(n / 100 for n in range(100, 0, -1))).latency_p95 == 0.95
    assert a_health(latencies=(0.1, 0.3)).latency_p95 == 0.3


def test_only_the_recent_latencies_count() -> None:
    slow = after_all(a_health(latencies=(9.0,) * 60), *["ok"] * 60)
    assert (slow.latency_p95, len(slow.latencies)) == (0.1, 60)


@given(unit, unit, unit, unit, st.sampled_from(Breaker))
def test_the_score_lies_between_0_and_1_and_falls_with_each_term(
    latency: float, error: float, completeness: float, worse: float, breaker: Breaker
) -> None:
    health = a_health(breaker=breaker, latencies=(latency,), error=error, completeness=completeness)
    score = health.score(POLICY)
    assert 0 <= score <= 1
    assert replace(health, latencies=(max(latency, worse),)).score(POLICY) <= score
    assert replace(health, error=max(error, worse)).score(POLICY) <= score
    assert replace(health, completeness=min(completeness, worse)).score(POLICY) <= score
    assert replace(health, breaker=Breaker.OPEN).score(POLICY) <= score <= replace(health, breaker=Breaker.CLOSED).score(POLICY)


@given(steps)
def test_whatever_happens_every_term_stays_in_its_range(life: list[Step]) -> None:
    for _, health in lived(life):
        assert 0 <= health.score(POLICY) <= 1
        assert 0 <= health.error <= 1
        assert 0 <= health.completeness <= 1
        assert (health.breaker is Breaker.CLOSED) == (health.opened_at is None)
        assert (health.disabled_at is None) == (health.disabled_until is None)


# --- what each kind changes --------------------------------------------------------------------------------------------


@given(steps, st.sampled_from(sorted(UNDECIDED)))
def test_a_429_and_a_spent_budget_change_no_score(life: list[Step], kind: str) -> None:
    now, health = lived(life)[-1]
    after = health.after(Outcome(kind, 3.0, attempts=4), now=now, policy=POLICY)
    assert after.score(POLICY) == health.score(POLICY)
    assert after == replace(health, is_on_trial=False)


@given(steps, st.sampled_from(sorted(UNDECIDED)), outcomes)
def test_a_429_may_come_before_or_after_anything_else(life: list[Step], kind: str, other: Outcome) -> None:
    now, health = lived(life)[-1]
    health, refused = health.without_trial(), Outcome(kind)
    one_way = health.after(refused, now=now, policy=POLICY).after(other, now=now, policy=POLICY)
    assert one_way == health.after(other, now=now, policy=POLICY).after(refused, now=now, policy=POLICY)


@given(st.lists(st.sampled_from(["unknown_symbol", "out_of_reach", "rate_limited", "budget_spent"]), max_size=4), st.randoms())
def test_outcomes_that_measure_nothing_commute(kinds: list[str], random: object) -> None:
    shuffled = list(kinds)
    random.shuffle(shuffled)  # type: ignore[attr-defined] # hypothesis hands in a random.Random
    start = a_health(error=0.4, failures_in_row=2)
    assert after_all(start, *kinds) == after_all(start, *shuffled)


@pytest.mark.parametrize("kind", sorted(ANSWERS))
def test_an_answer_about_the_symbol_says_nothing_of_the_provider_but_that_it_answers(kind: str) -> None:
    health = a_health(error=0.3, completeness=0.5, latencies=(0.2,), failures_in_row=4)
    assert after_all(health, kind) == replace(health, failures_in_row=0)


def test_what_was_refused_before_it_was_sent_is_no_answer() -> None:
    health = an_open_one(is_on_trial=True)
    after = health.after(Outcome("out_of_reach", attempts=0), now=NOON, policy=POLICY)
    assert after == replace(health, is_on_trial=False)


@pytest.mark.parametrize("kind", sorted(FAILURES))
def test_failures_raise_the_error_term(kind: str) -> None:
    assert after_all(ProviderHealth(), kind).error == pytest.approx(POLICY.smoothing)


def test_an_error_nobody_has_heard_of_is_a_failure() -> None:
    assert after_all(ProviderHealth(), *[ProviderError.kind] * 5).breaker is Breaker.OPEN


def test_a_barren_answer_lowers_completeness_alone() -> None:
    before = a_health(latencies=(0.1,), samples=1, sampled_at=NOON)
    barren = after_all(before, "barren")
    assert replace(barren, completeness=1.0, samples=1, latencies=(0.1,)) == before
    assert barren.completeness == pytest.approx(0.8)


def test_completeness_is_what_came_of_what_was_due() -> None:
    half = Outcome("ok", 0.1, expected=390, received=195)
    assert ProviderHealth().after(half, now=NOON, policy=POLICY).completeness == pytest.approx(1 - POLICY.smoothing / 2)
    unknown = Outcome("ok", 0.1, expected=0, received=0)
    assert a_health(completeness=0.3).after(unknown, now=NOON, policy=POLICY).completeness == 0.3


# --- the breaker -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["transient", "malformed", "stale"])
def test_failures_in_a_row_open_the_breaker(kind: str) -> None:
    assert after_all(ProviderHealth(), *[kind] * 4).breaker is Breaker.CLOSED
    assert after_all(ProviderHealth(), *[kind] * 5).breaker is Breaker.OPEN
    assert after_all(ProviderHealth(), *[kind] * 4, "ok", kind).breaker is Breaker.CLOSED


def test_every_attempt_counts() -> None:
    twice = [Outcome("transient", 0.1, attempts=4, detail="HTTP 503"), Outcome("transient", 0.1, attempts=1, detail="HTTP 500")]
    health = reduce(lambda h, outcome: h.after(outcome, now=NOON, policy=POLICY), twice, ProviderHealth())
    assert (health.breaker, health.reason, health.failures_in_row) == (Breaker.OPEN, "HTTP 500", 5)


def test_one_symbol_on_a_mixed_basis_does_not_take_the_provider_from_all_others() -> None:
    assert after_all(ProviderHealth(), *["mixed_basis"] * 50).breaker is Breaker.CLOSED


def test_an_open_breaker_rests_for_the_cool_down_and_then_offers_one_trial() -> None:
    health = an_open_one()
    early = health.admission(now=NOON + seconds(59.9), policy=POLICY)
    assert (early.is_admitted, early.reason) == (False, "breaker open until 2026-03-02 12:01:00Z: HTTP 503")
    assert health.admission(now=NOON + seconds(60), policy=POLICY).is_trial
    under_way = health.on_trial()
    assert under_way.breaker is Breaker.HALF_OPEN
    assert not under_way.admission(now=NOON + seconds(61), policy=POLICY).is_admitted


def test_a_virtual_clock_that_was_set_back_keeps_nobody_waiting() -> None:
    assert not an_open_one().admission(now=NOON - seconds(5), policy=POLICY).is_admitted
    assert an_open_one().admission(now=NOON - timedelta(days=365), policy=POLICY).is_trial
    assert not a_health(is_demoted=True, sampled_at=NOON).is_asked_last(now=NOON - timedelta(days=365), policy=POLICY)


def test_a_trial_that_is_answered_closes_the_breaker_and_one_that_fails_opens_it_again() -> None:
    trial, later = an_open_one().on_trial(), NOON + seconds(60)
    for kind in ("ok", "unknown_symbol", "mixed_basis", "entitlement"):
        closed = after_all(trial, kind, now=later)
        assert (closed.breaker, closed.failures_in_row, closed.is_on_trial) == (Breaker.CLOSED, 0, False)
    # An empty answer has not shown that it is back.
    for kind in ("transient", "barren"):
        opened = after_all(trial, kind, now=later)
        assert (opened.breaker, opened.opened_at, opened.is_on_trial) == (Breaker.OPEN, later, False)
        assert not opened.admission(now=later + seconds(59), policy=POLICY).is_admitted


def test_an_incident_of_empty_answers_opens_the_breaker_at_once_and_is_told_by_whoever_counted_them() -> None:
    lost = Outcome("barren", attempts=0, detail="44 of 60 symbols came back without a single bar", is_incident=True)
    opened = a_health().after(lost, now=NOON, policy=POLICY)
    assert (opened.breaker, opened.reason) == (Breaker.OPEN, lost.detail)
    back = opened.on_trial().after(Outcome("ok"), now=NOON + seconds(61), policy=POLICY)
    assert back.breaker is Breaker.CLOSED
    assert (events(a_health(), opened, policy=POLICY), events(opened, back, policy=POLICY)) == ((), ())


def test_a_provider_says_when_it_may_be_asked_again() -> None:
    opened = an_open_one()
    assert opened.rests_until(now=NOON + seconds(5), policy=POLICY) == NOON + seconds(60)
    assert opened.rests_until(now=NOON + seconds(70), policy=POLICY) == NOON + seconds(70)
    assert opened.on_trial().rests_until(now=NOON + seconds(70), policy=POLICY) == NOON + seconds(130)
    disabled = after_all(a_health(), "entitlement", now=NOON)
    assert disabled.rests_until(now=NOON, policy=POLICY) == NOON + timedelta(days=1)


def test_a_trial_that_could_not_be_sent_leaves_the_next_one_to_somebody_else() -> None:
    trial = after_all(an_open_one().on_trial(), "rate_limited", now=NOON + seconds(60))
    assert trial.breaker is Breaker.HALF_OPEN
    assert trial.admission(now=NOON + seconds(60), policy=POLICY).is_trial
    assert an_open_one().on_trial().without_trial().admission(now=NOON, policy=POLICY).is_trial


@pytest.mark.parametrize("kind", ["ok", "transient"])
def test_stragglers_sent_before_it_opened_neither_close_it_nor_prolong_its_rest(kind: str) -> None:
    straggled = after_all(an_open_one(), kind, now=NOON + seconds(30))
    assert (straggled.breaker, straggled.opened_at) == (Breaker.OPEN, NOON)


@given(steps)
def test_nobody_is_admitted_while_it_rests_and_never_two_on_trial(life: list[Step]) -> None:
    for now, health in lived(life):
        admission = health.admission(now=now, policy=POLICY)
        rests = health.breaker is Breaker.OPEN and health.opened_at is not None and now < health.opened_at + seconds(60)
        is_disabled = health.disabled_until is not None and now < health.disabled_until
        assert not ((rests or is_disabled) and admission.is_admitted)
        assert not (health.is_on_trial and admission.is_admitted)
        assert not (health.breaker is not Breaker.CLOSED and admission.is_admitted and not admission.is_trial)
        assert admission.is_admitted or admission.reason


@given(steps)
def test_whatever_happened_two_days_later_somebody_may_try(life: list[Step]) -> None:
    now, health = lived(life)[-1]
    assert health.without_trial().admission(now=now + timedelta(days=2), policy=POLICY).is_admitted


# --- entitlement -------------------------------------------------------------------------------------------------------


def test_a_403_disables_the_capability_for_a_day_and_then_one_trial_finds_out() -> None:
    refused = ProviderHealth().after(Outcome("entitlement", 0.1, detail="HTTP 403"), now=NOON, policy=POLICY)
    tomorrow = NOON + timedelta(days=1)
    said = refused.admission(now=tomorrow - seconds(1), policy=POLICY)
    assert (said.is_admitted, said.reason) == (False, "disabled until 2026-03-03 12:00:00Z: HTTP 403")
    assert refused.admission(now=tomorrow, policy=POLICY).is_trial
    assert not refused.on_trial().admission(now=tomorrow, policy=POLICY).is_admitted
    again = after_all(refused.on_trial(), "entitlement", now=tomorrow)
    assert (again.disabled_at, again.disabled_until) == (NOON, tomorrow + timedelta(days=1))
    restored = after_all(refused.on_trial(), "ok", now=tomorrow)
    assert (restored.disabled_until, restored.reason) == (None, "")


def test_a_403_says_nothing_about_how_well_the_provider_does() -> None:
    health = a_health(error=0.2, completeness=0.9, latencies=(0.3,))
    assert after_all(health, "entitlement").score(POLICY) == health.score(POLICY)


def test_what_was_sent_before_the_403_does_not_undo_it() -> None:
    refused = after_all(ProviderHealth(), "entitlement")
    assert after_all(refused, "ok").disabled_until == refused.disabled_until


def test_an_outage_at_the_daily_trial_decides_nothing_but_is_not_asked_again_at_once() -> None:
    tomorrow = NOON + timedelta(days=1)
    refused = ProviderHealth().after(Outcome("entitlement", detail="HTTP 403"), now=NOON, policy=POLICY)
    failed = after_all(refused.on_trial(), *["transient"] * 5, now=tomorrow)
    assert failed.disabled_at == NOON
    assert not failed.admission(now=tomorrow + seconds(59), policy=POLICY).is_admitted
    assert failed.admission(now=tomorrow + seconds(60), policy=POLICY).is_trial


# --- demotion ----------------------------------------------------------------------------------------------------------


@given(steps)
def test_it_is_demoted_below_055_alone_and_promoted_only_above_070(life: list[Step]) -> None:
    healths = [health for _, health in lived(life)]
    above = 0
    for before, after in pairwise(healths):
        score = after.score(POLICY)
        if after.samples > before.samples:
            above = above + 1 if score > POLICY.promote_above else 0
        if before.is_demoted and not after.is_demoted:
            assert above >= POLICY.promote_after
        if after.is_demoted and not before.is_demoted:
            assert score < POLICY.demote_below


def test_within_the_band_it_stays_what_it_was() -> None:
    # Closed, p95 over the cap, all failed: 0.45 + 0 + 0 + 0.10 = 0.55, which is not below 0.55; half of it complete: 0.50 is.
    in_band = a_health(latencies=(9.0,) * 60, error=0.5, completeness=1.0)
    assert 0.55 < in_band.score(POLICY) < 0.70
    for was in (True, False):
        health = replace(in_band, is_demoted=was)
        for _ in range(20):
            health = replace(health.after(Outcome("ok", 9.0), now=NOON, policy=POLICY), error=0.5)
            assert health.is_demoted is was


def test_three_good_samples_in_a_row_promote() -> None:
    demoted = a_health(is_demoted=True)
    assert [after_all(demoted, *["ok"] * n).is_demoted for n in (1, 2, 3)] == [True, True, False]
    # One answer that drops the score to the promotion mark or below starts the count anew.
    dull = replace(after_all(demoted, "ok", "ok"), latencies=(9.0,) * 60, error=0.5).after(
        Outcome("ok", 9.0), now=NOON, policy=POLICY
    )
    assert (dull.is_demoted, dull.good_samples) == (True, 0)


def test_a_demoted_provider_gets_its_old_place_back_for_a_request_once_a_cool_down() -> None:
    demoted = a_health(is_demoted=True, sampled_at=NOON)
    assert demoted.is_asked_last(now=NOON + seconds(59), policy=POLICY)
    assert not demoted.is_asked_last(now=NOON + seconds(60), policy=POLICY)
    assert not a_health(sampled_at=NOON).is_asked_last(now=NOON, policy=POLICY)


# --- events ------------------------------------------------------------------------------------------------------------


@given(steps)
@example([])
def test_incidents_begin_and_end_in_turns(life: list[Step]) -> None:
    healths = [health for _, health in lived(life)]
    is_open: dict[str, bool] = {}
    for before, after in pairwise(healths):
        for event in events(before, after, policy=POLICY):
            incident = kinds_of_incident(event.kind)[0]
            assert is_open.get(incident, False) is event.is_recovery
            is_open[incident] = not event.is_recovery
    last = healths[-1]
    assert is_open.get("breaker_opened", False) is (last.breaker is not Breaker.CLOSED)
    assert is_open.get("entitlement_lost", False) is (last.disabled_at is not None)
    assert is_open.get("demoted", False) is last.is_demoted


def test_events_say_what_happened_in_words() -> None:
    before, after = a_health(failures_in_row=4), an_open_one(is_demoted=True, error=1.0)
    opened, demoted = events(before, after, policy=POLICY)
    assert (opened.kind, opened.detail) == ("breaker_opened", "5 failed attempts in a row: HTTP 503")
    assert (demoted.kind, demoted.detail) == ("demoted", "health 0.35 is below 0.55")
    closed, promoted = events(after, ProviderHealth(), policy=POLICY)
    assert (closed.kind, closed.is_recovery) == ("breaker_closed", True)
    assert promoted.detail == "health 1.00, above 0.7 for 3 samples"
    (lost,) = events(before, after_all(before, "entitlement"), policy=POLICY)
    assert (lost.kind, lost.is_recovery) == ("entitlement_lost", False)
    assert lost.detail.endswith("asked again after 2026-03-03 12:00:00Z")
