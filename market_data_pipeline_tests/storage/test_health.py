"""One health for all processes: in Postgres, folded under a lock, written in time, and told once."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market_data_pipeline.domain.health import Breaker, HealthPolicy, Outcome, ProviderHealth
from market_data_pipeline.storage.health import HealthBook
from market_data_pipeline_tests.storage.workers import AFTER_THE_COOL_DOWN, NOON, processes, together

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from market_data_pipeline.storage.health import Key

KEY = ("yahoo", "bars_1m")
OK = Outcome("ok", 0.25, expected=10, received=10)
BROKEN = Outcome("transient", 0.25, attempts=5, detail="HTTP 503")


class HandClock:
    """Monotonic seconds that pass when told."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def a_book(engine: Engine, clock: HandClock | None = None) -> HealthBook:
    """A book as any process would open it."""
    return HealthBook(engine, HealthPolicy(), clock=clock or HandClock())


def seen_by_another(engine: Engine, key: Key = KEY) -> ProviderHealth | None:
    """The health that another process reads."""
    return a_book(engine).all(NOON).get(key)


def kinds(book: HealthBook, *key: str) -> list[str]:
    """The events there are, the oldest first."""
    return [event.kind for event in reversed(book.events(*key))]


# --- shared and lasting ------------------------------------------------------------------------------------------------


def test_who_was_never_asked_is_well(engine: Engine) -> None:
    book = a_book(engine)
    assert book.admit(*KEY, now=NOON).is_admitted
    assert book.all(NOON) == {}


def test_a_failure_is_seen_by_everybody_at_once(engine: Engine) -> None:
    a_book(engine).record(*KEY, BROKEN, now=NOON, run_id="run")
    refused = a_book(engine).admit(*KEY, now=NOON)
    assert (refused.is_admitted, refused.reason) == (False, "breaker open until 2026-03-02 12:01:00Z: HTTP 503")
    (opened,) = a_book(engine).events(*KEY)
    assert (opened.kind, opened.at, opened.run_id, opened.is_recovery) == ("breaker_opened", NOON, "run", False)


def test_successes_wait_for_each_other_at_most_a_second(engine: Engine) -> None:
    clock = HandClock()
    book = a_book(engine, clock)
    book.record(*KEY, OK, now=NOON)
    clock.seconds += 0.9
    book.record(*KEY, OK, now=NOON)
    assert seen_by_another(engine) is None
    clock.seconds += 0.1
    book.record(*KEY, OK, now=NOON)
    health = seen_by_another(engine)
    assert health is not None
    assert health.samples == 3


def test_what_waits_is_written_before_a_failure_and_in_its_order(engine: Engine) -> None:
    book = a_book(engine)
    for outcome in (OK, OK, BROKEN):
        book.record(*KEY, outcome, now=NOON)
    expected = ProviderHealth()
    for outcome in (OK, OK, BROKEN):
        expected = expected.after(outcome, now=NOON, policy=HealthPolicy())
    assert seen_by_another(engine) == expected


def test_flushing_nothing_writes_nothing(engine: Engine) -> None:
    book = a_book(engine)
    book.record(*KEY, Outcome("rate_limited", 0.1), now=NOON)
    book.record(*KEY, Outcome("budget_spent", attempts=0), now=NOON)
    book.flush()
    assert seen_by_another(engine) is None


def test_another_process_is_noticed_within_a_second(engine: Engine) -> None:
    clock = HandClock()
    book = a_book(engine, clock)
    assert book.admit(*KEY, now=NOON).is_admitted
    a_book(engine).record(*KEY, BROKEN, now=NOON)
    clock.seconds += 0.9
    assert book.admit(*KEY, now=NOON).is_admitted
    clock.seconds += 0.1
    assert not book.admit(*KEY, now=NOON).is_admitted


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.builds(
            Outcome,
            kind=st.sampled_from(["ok", "transient", "barren", "entitlement", "malformed", "unknown_symbol"]),
            latency_seconds=st.floats(0, 30),
            attempts=st.integers(1, 4),
            expected=st.integers(0, 9),
            received=st.integers(0, 9),
            detail=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_what_is_read_is_what_was_folded(engine: Engine, outcomes: list[Outcome]) -> None:
    book, expected = a_book(engine), ProviderHealth()
    book.reset(KEY[0], now=NOON)
    for outcome in outcomes:
        book.record(*KEY, outcome, now=NOON)
        expected = expected.after(outcome, now=NOON, policy=HealthPolicy())
    book.flush()
    assert seen_by_another(engine) == expected


def test_what_could_not_be_written_is_written_by_the_next_flush(engine: Engine) -> None:
    book = a_book(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("alter table provider_health rename to elsewhere")
    with pytest.raises(Exception, match="provider_health"):
        book.record(*KEY, BROKEN, now=NOON)
    with engine.begin() as connection:
        connection.exec_driver_sql("alter table elsewhere rename to provider_health")
    book.flush()
    health = seen_by_another(engine)
    assert health is not None
    assert health.breaker is Breaker.OPEN


# --- trials ------------------------------------------------------------------------------------------------------------


def test_one_trial_among_many_processes(engine: Engine, database_url: str) -> None:
    a_book(engine).record(*KEY, BROKEN, now=NOON)
    trials = together(5, "trial", database_url=database_url)
    assert sum(int(count) for (count,) in trials) == 1


def test_the_outcome_of_the_trial_is_known_to_all_at_once(engine: Engine) -> None:
    book = a_book(engine)
    book.record(*KEY, BROKEN, now=NOON)
    assert book.admit(*KEY, now=AFTER_THE_COOL_DOWN).is_trial
    assert a_book(engine).admit(*KEY, now=AFTER_THE_COOL_DOWN).reason.startswith("one trial is under way")
    book.record(*KEY, OK, now=AFTER_THE_COOL_DOWN)
    assert a_book(engine).admit(*KEY, now=AFTER_THE_COOL_DOWN).is_admitted
    assert kinds(book, *KEY) == ["breaker_opened", "breaker_closed"]


def test_a_trial_that_met_a_429_is_free_again(engine: Engine) -> None:
    book = a_book(engine)
    book.record(*KEY, BROKEN, now=NOON)
    assert book.admit(*KEY, now=AFTER_THE_COOL_DOWN).is_trial
    book.record(*KEY, Outcome("rate_limited", 0.1), now=AFTER_THE_COOL_DOWN)
    assert a_book(engine).admit(*KEY, now=AFTER_THE_COOL_DOWN).is_trial


def test_the_trial_of_a_process_that_died_goes_to_another(engine: Engine) -> None:
    book = a_book(engine)
    book.record(*KEY, BROKEN, now=NOON)
    assert book.admit(*KEY, now=AFTER_THE_COOL_DOWN).is_trial
    with engine.begin() as connection:
        # Two minutes of real time, without waiting for them.
        connection.exec_driver_sql("update provider_health set trial_expires_at = trial_expires_at - interval '2 minutes'")
    assert a_book(engine).admit(*KEY, now=AFTER_THE_COOL_DOWN).is_trial


def test_by_hand_what_rests_or_is_disabled_is_tried_at_once(engine: Engine) -> None:
    book = a_book(engine)
    assert book.admit_by_hand(*KEY, now=NOON).is_trial is False
    book.record(*KEY, BROKEN, now=NOON)
    assert book.admit_by_hand(*KEY, now=NOON).is_trial
    assert not book.admit_by_hand(*KEY, now=NOON).is_admitted
    book.record(*KEY, OK, now=NOON)
    assert book.admit(*KEY, now=NOON).is_admitted
    book.record(*KEY, Outcome("entitlement", detail="HTTP 403"), now=NOON)
    assert book.admit_by_hand(*KEY, now=NOON).is_trial
    book.record(*KEY, OK, now=NOON)
    assert kinds(book, *KEY)[-2:] == ["entitlement_lost", "entitlement_restored"]


def test_a_403_is_said_once_however_often_it_is_met(engine: Engine) -> None:
    book, refused = a_book(engine), Outcome("entitlement", 0.1, detail="HTTP 403")
    for day in range(3):
        book.record(*KEY, refused, now=NOON + timedelta(days=day))
        book.record(*KEY, refused, now=NOON + timedelta(days=day))
        assert book.admit(*KEY, now=NOON + timedelta(days=day + 1)).is_trial
    assert kinds(book) == ["entitlement_lost"]
    assert a_book(engine).admit("yahoo", "eod", now=NOON).is_admitted


# --- several processes, and their ends ---------------------------------------------------------------------------------


def test_outcomes_of_several_processes_are_all_folded(engine: Engine, database_url: str) -> None:
    outcome = Outcome("barren", 0.25, expected=10, received=5)
    assert together(4, "record", "barren", "50", database_url=database_url) == [["50"]] * 4
    expected = ProviderHealth()
    for _ in range(200):
        expected = expected.after(outcome, now=NOON, policy=HealthPolicy())
    assert seen_by_another(engine) == expected


def test_failures_of_several_processes_are_counted_one_by_one(engine: Engine, database_url: str) -> None:
    together(4, "record", "transient", "30", database_url=database_url)
    health = seen_by_another(engine)
    assert health is not None
    assert (health.failures_in_row, health.samples) == (120, 120)
    assert kinds(a_book(engine)) == ["breaker_opened"]


def test_kill_9_takes_at_most_a_second_of_successes(engine: Engine, database_url: str) -> None:
    with processes(1, "go_on", database_url=database_url) as (process,):
        process.go()
        recorded = 0
        while recorded < 25:
            recorded = int(process.line())
        process.kill()
    health = seen_by_another(engine)
    assert health is not None
    # The failure, and of 25 successes a tenth of a second apart all but those of the last second.
    assert health.samples >= 1 + 25 - 10
    assert health.failures_in_row == 0
    assert sum(sample.failures for sample in a_book(engine).history(*KEY, now=NOON)) == 1


# --- the past ----------------------------------------------------------------------------------------------------------


def test_the_history_holds_more_than_sixty_samples_with_their_terms(engine: Engine) -> None:
    book = a_book(engine)
    for place in range(100):
        outcome = replace(OK, received=10 - place // 20)
        book.record(*KEY, outcome, now=NOON + timedelta(seconds=10 * place))
    book.flush()
    history = book.history(*KEY, now=NOON + timedelta(seconds=1000))
    assert len(history) == 100
    assert [sample.at for sample in history] == [NOON + timedelta(seconds=10 * place) for place in range(100)]
    last, health = history[-1], book.all(NOON)[KEY]
    assert (last.score, last.completeness, last.latency_p95) == (health.score(HealthPolicy()), health.completeness, 0.25)
    assert [sample.at for sample in book.history(*KEY, now=NOON + timedelta(seconds=1000), limit=2)] == [
        NOON + timedelta(seconds=980),
        NOON + timedelta(seconds=990),
    ]


def test_a_sample_counts_what_fell_into_it(engine: Engine) -> None:
    book = a_book(engine)
    book.record(*KEY, OK, now=NOON + timedelta(seconds=1))
    book.record(*KEY, BROKEN, now=NOON + timedelta(seconds=2))
    a_book(engine).record(*KEY, replace(BROKEN, attempts=1), now=NOON + timedelta(seconds=3))
    (sample,) = book.history(*KEY, now=NOON + timedelta(minutes=1))
    assert (sample.at, sample.resolution_seconds, sample.outcomes, sample.failures) == (NOON, 10, 3, 2)
    assert (sample.breaker, sample.is_demoted) == (Breaker.OPEN, False)
    assert sample.score == sample.score_min < sample.score_mean < sample.score_max


def test_the_past_grows_coarser_and_ends(engine: Engine) -> None:
    book = a_book(engine)
    for seconds in range(0, 7200, 30):
        book.record(*KEY, OK, now=NOON + timedelta(seconds=seconds))
    book.flush()
    for later, resolution, count in ((0, 10, 240), (2, 60, 120), (8, 3600, 2)):
        now = NOON + timedelta(days=later, hours=2)
        history = book.history(*KEY, now=now)
        assert ({sample.resolution_seconds for sample in history}, len(history)) == ({resolution}, count)
        assert sum(sample.outcomes for sample in history) == 240
    book.record(*KEY, BROKEN, now=NOON + timedelta(days=8))
    assert _resolutions(engine) == {10: 1, 60: 1, 3600: 3}
    book.record(*KEY, BROKEN, now=NOON + timedelta(days=400))
    assert _resolutions(engine) == {10: 1, 60: 1, 3600: 1}


def _resolutions(engine: Engine) -> dict[int, int]:
    counted = "select resolution_s, count(*) from provider_health_samples group by 1"
    with engine.connect() as connection:
        return {row[0]: row[1] for row in connection.exec_driver_sql(counted)}


# --- telling -----------------------------------------------------------------------------------------------------------


def test_an_incident_is_told_once_and_so_is_its_end(engine: Engine) -> None:
    book = a_book(engine)

    def tell(*, is_recovery: bool = False, kind: str = "barren_universe") -> bool:
        return a_book(engine).tell("yahoo", "bars_1m", kind, "73 % of 500 symbols", is_recovery=is_recovery, now=NOON)

    assert [tell(is_recovery=True), tell(), tell(), tell(is_recovery=True), tell(is_recovery=True), tell()] == [
        False,
        True,
        False,
        True,
        False,
        True,
    ]
    assert [event.is_recovery for event in book.events("yahoo")] == [False, True, False]
    assert tell(kind="another")
    assert book.tell("finnhub", "bars_1m", "barren_universe", "", is_recovery=False, now=NOON)


def test_a_recovery_may_have_a_name_of_its_own(engine: Engine) -> None:
    book = a_book(engine)
    assert book.tell("yahoo", "", "limit_learned", "70 %", is_recovery=False, now=NOON)
    assert book.tell("yahoo", "", "limit_restored", "100 %", is_recovery=True, now=NOON)
    assert not book.tell("yahoo", "", "limit_restored", "100 %", is_recovery=True, now=NOON)
    assert book.tell("yahoo", "", "limit_learned", "70 %", is_recovery=False, now=NOON)


def test_a_reset_forgets_what_is_held_against_it_and_says_so(engine: Engine) -> None:
    book = a_book(engine)
    book.record(*KEY, BROKEN, now=NOON)
    book.record("yahoo", "eod", Outcome("entitlement", detail="HTTP 403"), now=NOON)
    book.record("finnhub", "eod", BROKEN, now=NOON)
    other = a_book(engine)
    assert other.reset("yahoo", "eod", now=NOON, run_id="by hand") == ["eod"]
    assert book.admit(*KEY, now=NOON).is_admitted is False
    assert other.reset("yahoo", now=NOON) == ["bars_1m"]
    assert set(other.all(NOON)) == {("finnhub", "eod")}
    assert [(event.capability, event.kind) for event in other.events("yahoo", limit=2)] == [("bars_1m", "reset"), ("eod", "reset")]
    assert len(other.history(*KEY, now=NOON)) == 1
    # A process that still remembers the old row goes on with the new one.
    book.record(*KEY, OK, now=NOON)
    book.flush()
    assert seen_by_another(engine) == ProviderHealth().after(OK, now=NOON, policy=HealthPolicy())


def test_instants_come_back_in_utc(engine: Engine) -> None:
    a_book(engine).record(*KEY, BROKEN, now=datetime(2026, 3, 2, 12, tzinfo=UTC))
    health = seen_by_another(engine)
    assert health is not None
    assert health.opened_at == NOON
    assert health.sampled_at is not None
    assert health.sampled_at.utcoffset() == timedelta(0)
