"""Economic series twice in time: nothing written twice, nothing overwritten, and what was known then is what is read then."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg2.errors
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import DBAPIError

from market_data_pipeline.domain.macro import LATEST, publishing_day
from market_data_pipeline.domain.ports import Fetch, MacroAnswer, Observation, RefusedRecord
from market_data_pipeline.storage.macro import MacroStore
from market_data_pipeline.storage.refused import refused_records

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Engine

JANUARY, FEBRUARY = date(2024, 1, 1), date(2024, 2, 1)
NOON = datetime(2024, 3, 1, 18, tzinfo=UTC)
DAY = timedelta(days=1)


def row(value: float | None, start: str, end: str = "9999-12-31", *, observed_on: date = JANUARY) -> Observation:
    return Observation(observed_on, value, date.fromisoformat(start), date.fromisoformat(end))


def told(
    *observations: Observation, vintages: bool = True, series: str = "GDP", refused: Sequence[RefusedRecord] = (), **more: str
) -> MacroAnswer:
    fetch = Fetch(
        provider="fred",
        symbol=series,
        interval=None,
        request="GET /fred/series/observations",
        started_at=NOON,
        latency_seconds=0.1,
        outcome="ok",
        rows=len(observations),
        capability="macro",
    )
    return MacroAnswer(fetch, series, observations, refused=refused, has_vintages=vintages, **more)


def seen(value: float | None, day: date, *, observed_on: date = JANUARY) -> MacroAnswer:
    """The answer of one day: values as they are, with that day for its realtime dates."""
    return told(Observation(observed_on, value, day, day), vintages=False)


def held(store: MacroStore, **narrowed: datetime | date) -> list[tuple[str, float | None]]:
    return [(str(s.observation.observed_on), s.observation.value) for s in store.read("GDP", **narrowed)]  # type: ignore[arg-type]


def test_what_is_told_is_read_back_with_its_provenance(engine: Engine) -> None:
    store = MacroStore(engine)
    observations = [row(1.5, "2024-02-01", "2024-02-28"), row(1.6, "2024-02-29"), row(None, "2024-02-29", observed_on=FEBRUARY)]
    written = store.record(told(*observations), known_at=NOON)
    stored = store.vintages("GDP")
    assert [s.observation for s in stored] == observations
    assert {(s.series, s.provider, s.fetch_id, s.known_from, s.known_to) for s in stored} == {
        ("GDP", "fred", written.fetch_id, NOON, None)
    }
    assert (written.changed, written.ended, written.unchanged, written.known_at) == (3, 0, 0, NOON)


def test_the_same_again_is_a_fetch_and_nothing_else(engine: Engine) -> None:
    store = MacroStore(engine)
    answer = told(row(1.5, "2024-02-01", "2024-02-28"), row(1.6, "2024-02-29"), title="GDP", units="Index", frequency="Q")
    first = store.record(answer, known_at=NOON)
    again = store.record(answer, known_at=NOON + DAY)
    assert (again.changed, again.ended, again.unchanged) == (0, 0, 2)
    assert again.fetch_id != first.fetch_id
    assert {s.fetch_id for s in store.vintages("GDP")} == {first.fetch_id}
    assert [(d.units, d.known_from) for d in store.described()] == [("Index", NOON)]


def test_an_absence_is_stored_and_read_as_one(engine: Engine) -> None:
    store = MacroStore(engine)
    store.record(told(row(None, "2024-02-01")), known_at=NOON)
    assert held(store) == [("2024-01-01", None)]


def test_a_revision_ends_the_old_value_and_keeps_what_was_believed(engine: Engine) -> None:
    store = MacroStore(engine)
    store.record(told(row(1.5, "2024-02-01")), known_at=NOON)
    written = store.record(told(row(1.5, "2024-02-01", "2024-03-09"), row(1.6, "2024-03-10")), known_at=NOON + 10 * DAY)
    assert (written.changed, written.ended, written.unchanged) == (2, 1, 0)
    assert [s.observation for s in store.vintages("GDP")] == [row(1.5, "2024-02-01", "2024-03-09"), row(1.6, "2024-03-10")]
    # Then, we believed that it held until further notice.
    before = store.vintages("GDP", as_of=NOON + 9 * DAY)
    assert [(s.observation, s.known_to) for s in before] == [(row(1.5, "2024-02-01"), NOON + 10 * DAY)]


def test_a_vintage_that_reads_differently_now_is_kept_as_it_read(engine: Engine) -> None:
    """The publisher corrects history: the same realtime dates, another value."""
    store = MacroStore(engine)
    store.record(told(row(1.5, "2024-02-01")), known_at=NOON)
    written = store.record(told(row(1.55, "2024-02-01")), known_at=NOON + DAY)
    assert (written.changed, written.ended) == (1, 1)
    assert held(store) == [("2024-01-01", 1.55)]
    assert held(store, as_of=NOON) == [("2024-01-01", 1.5)]


def test_an_answer_says_nothing_of_days_that_are_not_in_it(engine: Engine) -> None:
    store = MacroStore(engine)
    store.record(told(row(1.5, "2024-02-01"), row(2.5, "2024-03-01", observed_on=FEBRUARY)), known_at=NOON)
    store.record(told(row(2.6, "2024-03-01", observed_on=FEBRUARY)), known_at=NOON + DAY)
    assert held(store) == [("2024-01-01", 1.5), ("2024-02-01", 2.6)]


def test_a_value_seen_day_after_day_is_one_row(engine: Engine) -> None:
    store = MacroStore(engine)
    for number in range(3):
        store.record(seen(1.5, date(2024, 3, 1) + number * DAY), known_at=NOON + number * DAY)
    assert [s.observation for s in store.vintages("GDP")] == [row(1.5, "2024-03-01")]


def test_a_value_seen_to_be_another_begins_that_day(engine: Engine) -> None:
    store = MacroStore(engine)
    store.record(seen(1.5, date(2024, 3, 1)), known_at=NOON)
    written = store.record(seen(1.6, date(2024, 3, 5)), known_at=NOON + 4 * DAY)
    assert (written.changed, written.ended, written.unchanged) == (1, 1, 0)
    assert [s.observation for s in store.vintages("GDP")] == [row(1.5, "2024-03-01", "2024-03-04"), row(1.6, "2024-03-05")]
    assert held(store, as_of=NOON + 3 * DAY) == [("2024-01-01", 1.5)]


def test_vintages_take_the_place_of_what_was_seen(engine: Engine) -> None:
    store = MacroStore(engine)
    store.record(seen(1.6, date(2024, 3, 5)), known_at=NOON + 4 * DAY)
    vintages = [row(1.5, "2024-02-01", "2024-03-03"), row(1.6, "2024-03-04")]
    written = store.record(told(*vintages), known_at=NOON + 5 * DAY)
    assert (written.changed, written.ended) == (2, 1)
    assert [s.observation for s in store.vintages("GDP")] == vintages


def test_what_had_been_published_by_a_day_is_read_by_its_vintages(engine: Engine) -> None:
    store = MacroStore(engine)
    store.record(told(row(1.5, "2024-02-01", "2024-02-28"), row(1.6, "2024-02-29")), known_at=NOON)
    assert held(store, published_by=date(2024, 1, 31)) == []
    assert held(store, published_by=date(2024, 2, 28)) == [("2024-01-01", 1.5)]
    assert held(store, published_by=date(2024, 2, 29)) == [("2024-01-01", 1.6)]


def test_a_value_that_was_taken_back_is_no_longer_read(engine: Engine) -> None:
    store = MacroStore(engine)
    store.record(told(row(1.5, "2024-02-01", "2024-02-10")), known_at=NOON)
    assert held(store) == []
    assert held(store, published_by=date(2024, 2, 10)) == [("2024-01-01", 1.5)]
    assert held(store, as_of=NOON) == []


def test_nothing_is_known_before_we_learned_it_however_long_it_had_been_published(engine: Engine) -> None:
    store = MacroStore(engine)
    store.record(told(row(1.5, "2024-02-01")), known_at=NOON)
    assert held(store, as_of=NOON - timedelta(microseconds=1)) == []
    assert held(store, as_of=NOON) == [("2024-01-01", 1.5)]


def test_a_value_dated_ahead_is_not_known_before_its_day_at_the_publisher(engine: Engine) -> None:
    store = MacroStore(engine)
    store.record(told(row(1.5, "2024-03-02")), known_at=NOON)
    # Midnight in St. Louis is 06:00 UTC.
    assert held(store, as_of=datetime(2024, 3, 2, 5, 59, tzinfo=UTC)) == []
    assert held(store, as_of=datetime(2024, 3, 2, 6, tzinfo=UTC)) == [("2024-01-01", 1.5)]


def test_days_can_be_bounded(engine: Engine) -> None:
    store = MacroStore(engine)
    store.record(told(row(1.5, "2024-02-01"), row(2.5, "2024-03-01", observed_on=FEBRUARY)), known_at=NOON)
    assert held(store, first=FEBRUARY) == [("2024-02-01", 2.5)]
    assert held(store, last=JANUARY) == [("2024-01-01", 1.5)]


def test_knowledge_never_runs_backwards(engine: Engine) -> None:
    """A clock that was set back: what replaces is known later than what it replaces."""
    store = MacroStore(engine)
    store.record(told(row(1.5, "2024-02-01")), known_at=NOON)
    written = store.record(told(row(1.6, "2024-02-01")), known_at=NOON - DAY)
    assert written.known_at == NOON + timedelta(microseconds=1)
    assert held(store, as_of=NOON) == [("2024-01-01", 1.5)]
    assert held(store, as_of=written.known_at) == [("2024-01-01", 1.6)]


def test_a_description_that_changes_is_kept_as_it_was(engine: Engine) -> None:
    store = MacroStore(engine)
    store.record(told(units="Index 2012=100"), known_at=NOON)
    store.record(told(units="Index 2017=100"), known_at=NOON + DAY)
    assert [(d.units, d.known_from) for d in store.described("GDP")] == [("Index 2017=100", NOON + DAY)]
    with engine.connect() as connection:
        assert connection.exec_driver_sql("select count(*) from macro_series where known_to is not null").scalar_one() == 1


def test_refused_records_are_kept_once_with_their_reason(engine: Engine) -> None:
    refused = [RefusedRecord('{"value": "n/a"}', "value_not_a_number"), RefusedRecord("\0\ud800", "not_an_object")]
    for _ in range(2):
        written = MacroStore(engine).record(told(refused=refused), known_at=NOON)
        assert written.refused == 2
    kept = refused_records(engine, provider="fred", capability="macro", symbol="GDP")
    assert sorted((k.refused.record, k.refused.reason) for k in kept) == [
        ('{"value": "n/a"}', "value_not_a_number"),
        ("\N{REPLACEMENT CHARACTER}?", "not_an_object"),
    ]


def test_the_table_refuses_what_is_no_number(engine: Engine) -> None:
    with pytest.raises((psycopg2.errors.CheckViolation, DBAPIError)):
        MacroStore(engine).record(told(row(float("nan"), "2024-02-01")))


# --- laws --------------------------------------------------------------------------------------------------------------

# Every example gets series of its own: the database is that of the whole test.
fresh = itertools.count()
days = st.integers(0, 9).map(lambda n: date(2024, 3, 1) + n * DAY)
sightings = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from([JANUARY, FEBRUARY]), st.sampled_from([None, 1.0, 2.0])), max_size=12
).map(lambda found: sorted(found, key=lambda one: one[0]))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sightings)
def test_as_of_answers_for_ever_what_a_diary_would_have_said(engine: Engine, found: list[tuple[int, date, float | None]]) -> None:
    """Sightings in order of time, each written down in a plain dictionary as well: reading as of any day finds that page of it."""
    store, series = MacroStore(engine), f"X{next(fresh)}"
    diary: dict[int, dict[date, float | None]] = {}
    page: dict[date, float | None] = {}
    for number, observed_on, value in found:
        moment = NOON + number * DAY
        observation = Observation(observed_on, value, publishing_day(moment), publishing_day(moment))
        answer = told(observation, vintages=False, series=series)
        written = store.record(answer, known_at=moment + timedelta(microseconds=1) * len(diary))
        page = {**page, observed_on: value}
        diary[number] = page
        assert written.changed + written.unchanged == 1
    for number, expected in diary.items():
        read = store.read(series, as_of=NOON + number * DAY + timedelta(hours=1))
        assert {s.observation.observed_on: s.observation.value for s in read} == expected


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(days, min_size=1, max_size=5, unique=True))
def test_a_history_written_as_it_grew_is_the_history_written_at_once(engine: Engine, starts: list[date]) -> None:
    store, name = MacroStore(engine), next(fresh)
    ordered = sorted(starts)
    ends = [start - DAY for start in ordered[1:]] + [LATEST]
    whole = [Observation(JANUARY, float(n), start, end) for n, (start, end) in enumerate(zip(ordered, ends, strict=True))]
    for count in range(1, len(whole) + 1):
        grown = [*whole[: count - 1], replace(whole[count - 1], realtime_end=LATEST)]
        store.record(told(*grown, series=f"GROWN{name}"), known_at=NOON + count * DAY)
    store.record(told(*whole, series=f"ONCE{name}"), known_at=NOON)
    assert [s.observation for s in store.vintages(f"GROWN{name}")] == [s.observation for s in store.vintages(f"ONCE{name}")]
