"""Laws of published values: what a window cut is one again, and a sighting never rewrites the days before it."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.macro import LATEST, joined, publishing_day, valid_series, with_sighting, with_sightings
from market_data_pipeline.domain.ports import Observation

MARCH = date(2024, 3, 1)
DAY = timedelta(days=1)

days = st.integers(0, 60).map(lambda n: MARCH + n * DAY)
values = st.sampled_from([None, 1.0, 2.0])


def at(value: float | None, start: str, end: str = "9999-12-31", observed_on: date = MARCH) -> Observation:
    return Observation(observed_on, value, date.fromisoformat(start), date.fromisoformat(end))


@st.composite
def histories(draw: st.DrawFn) -> list[Observation]:
    """Stretches of one observation, each beginning the day after the one before; neighbours differ, the last has no end."""
    starts = sorted(draw(st.sets(days, min_size=1, max_size=6)))
    told: list[Observation] = []
    for start in starts:
        value = draw(values.filter(lambda v: not told or v != told[-1].value))
        if told:
            last = told[-1]
            told[-1] = Observation(last.observed_on, last.value, last.realtime_start, start - DAY)
        told.append(Observation(MARCH, value, start, LATEST))
    return told


def clipped(history: list[Observation], first: date, last: date) -> list[Observation]:
    """What a window shows: rows that overlap it, cut to it."""
    return [
        Observation(row.observed_on, row.value, max(row.realtime_start, first), min(row.realtime_end, last))
        for row in history
        if row.realtime_start <= last and row.realtime_end >= first
    ]


def value_on(rows: list[Observation], day: date) -> tuple[float | None, ...]:
    """Every value that is told for that day: one, or none."""
    return tuple(row.value for row in rows if row.realtime_start <= day <= row.realtime_end)


@given(histories(), st.sets(days))
def test_a_history_read_window_by_window_is_the_history(history: list[Observation], cuts: set[date]) -> None:
    first, last_days = MARCH - DAY, [*sorted(cuts), LATEST]
    pieces: list[Observation] = []
    for last in last_days:
        pieces += clipped(history, first, last)
        first = last + DAY if last != LATEST else last
    assert joined(pieces, last_days=last_days) == history


def test_values_that_meet_away_from_a_seam_stay_apart() -> None:
    told = [at(1.0, "2024-03-01", "2024-03-09"), at(1.0, "2024-03-10")]
    assert joined(told, last_days=[date(2024, 3, 20)]) == told


def test_two_observations_are_never_joined() -> None:
    told = [at(1.0, "2024-03-01", "2024-03-09"), at(1.0, "2024-03-10", observed_on=MARCH + DAY)]
    assert joined(told, last_days=[date(2024, 3, 9)]) == told


@given(histories(), days, values)
def test_after_a_sighting_its_day_has_the_value_seen_and_no_day_has_two(
    history: list[Observation], day: date, value: float | None
) -> None:
    after = with_sighting(history, Observation(MARCH, value, day, day))
    assert value_on(after, day) == (value,)
    assert all(len(value_on(after, MARCH + n * DAY)) <= 1 for n in range(-1, 63))
    assert after == sorted(after, key=lambda row: row.realtime_start)


@given(histories(), days, values)
def test_a_sighting_leaves_the_days_before_it_alone(history: list[Observation], day: date, value: float | None) -> None:
    after = with_sighting(history, Observation(MARCH, value, day, day))
    earlier = [MARCH + n * DAY for n in range(-1, 63) if MARCH + n * DAY < day]
    assert [value_on(after, d) for d in earlier] == [value_on(history, d) for d in earlier]


@given(histories(), days, values)
def test_the_same_sighting_again_changes_nothing(history: list[Observation], day: date, value: float | None) -> None:
    seen = Observation(MARCH, value, day, day)
    once = with_sighting(history, seen)
    assert with_sighting(once, seen) == once


def test_a_value_seen_first_holds_until_further_notice() -> None:
    assert with_sighting([], at(1.5, "2024-03-05", "2024-03-05")) == [at(1.5, "2024-03-05")]


def test_a_new_value_ends_the_old_one_the_day_before() -> None:
    held = [at(1.5, "2024-03-05")]
    assert with_sighting(held, at(1.6, "2024-03-08", "2024-03-08")) == [at(1.5, "2024-03-05", "2024-03-07"), at(1.6, "2024-03-08")]


def test_the_last_word_of_a_day_stands_for_the_day() -> None:
    assert with_sighting([at(1.5, "2024-03-05")], at(1.6, "2024-03-05", "2024-03-05")) == [at(1.6, "2024-03-05")]


def test_an_absence_is_a_value_like_any_other() -> None:
    assert with_sighting([at(1.5, "2024-03-05")], at(None, "2024-03-08", "2024-03-08"))[-1] == at(None, "2024-03-08")


def test_only_what_was_seen_is_told_of() -> None:
    other = MARCH + DAY
    held = {MARCH: [at(1.0, "2024-03-05")], other: [at(2.0, "2024-03-05", observed_on=other)]}
    assert with_sightings(held, [at(1.0, "2024-03-06", "2024-03-06")]) == {MARCH: [at(1.0, "2024-03-05")]}


def test_the_publishers_day_is_that_of_st_louis() -> None:
    assert publishing_day(datetime(2024, 7, 5, 4, 59, tzinfo=UTC)) == date(2024, 7, 4)
    assert publishing_day(datetime(2024, 7, 5, 5, 0, tzinfo=UTC)) == date(2024, 7, 5)


@pytest.mark.parametrize("name", ["", "gdp", "A B", "../X", "A..B", "GDP?x=1", "X" * 65, "_X"])
def test_a_name_that_could_be_a_path_or_a_query_is_no_series(name: str) -> None:
    with pytest.raises(InvalidInputError, match="is not a series"):
        valid_series(name)


def test_names_as_fred_has_them_are_series() -> None:
    assert [valid_series(name) for name in ("DGS10", "A191RL1Q225SBEA", "BAMLC0A0CMEY")] == [
        "DGS10",
        "A191RL1Q225SBEA",
        "BAMLC0A0CMEY",
    ]
