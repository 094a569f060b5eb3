"""Beats lie on a grid: a slow round skips some, and none is late because of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.pacing import Pace

seconds = st.floats(0.0, 1e6, allow_nan=False)
intervals = st.sampled_from([0.25, 1.0, 5.0, 15.0, 60.0])


def test_a_round_within_its_time_skips_nothing() -> None:
    assert Pace(5.0, 100.0).after(103.0) == (Pace(5.0, 105.0), 0)


def test_a_beat_that_falls_on_the_end_of_a_round_is_the_next_one() -> None:
    assert Pace(5.0, 100.0).after(105.0) == (Pace(5.0, 105.0), 0)


def test_a_slow_round_skips_the_beats_it_covered() -> None:
    assert Pace(5.0, 100.0).after(116.0) == (Pace(5.0, 120.0), 3)


@given(intervals, st.lists(st.floats(0.0, 100.0), max_size=30))
def test_beats_never_leave_their_grid_and_add_up(every: float, durations: list[float]) -> None:
    pace, now, worked, skipped = Pace(every, 0.0), 0.0, 0, 0
    for duration in durations:
        now = max(now, pace.next_at) + duration
        pace, more = pace.after(now)
        worked, skipped = worked + 1, skipped + more
        assert pace.next_at >= now
    assert pace.next_at == (worked + skipped) * every


@given(intervals, seconds, seconds, st.floats(0.0, 120.0), st.floats(-60.0, 60.0))
def test_in_phase_the_next_beat_is_where_the_clock_shows_it_and_half_an_interval_away_at_most(
    every: float, monotonic: float, clock: float, phase: float, ahead: float
) -> None:
    pace = Pace(every, monotonic + ahead)
    moved = pace.in_phase(monotonic=monotonic, clock=clock, phase=phase)
    shown = clock + moved.next_at - monotonic - phase
    assert abs(shown / every - round(shown / every)) < 1e-4
    assert abs(moved.next_at - pace.next_at) <= every / 2 + 1e-6


def test_a_clock_that_was_set_is_followed_by_the_next_beat() -> None:
    # Five seconds after each full minute; the clock was put ten seconds forward.
    pace = Pace(60.0, 65.0)
    assert pace.in_phase(monotonic=30.0, clock=40.0, phase=5.0).next_at == 55.0
