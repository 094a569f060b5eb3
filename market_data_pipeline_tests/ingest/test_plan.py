"""Which requests are sent for what is wanted."""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.capabilities import bars_capability
from market_data_pipeline.ingest.plan import Neighbours, neighbours, next_over, windows, within_reach
from market_data_pipeline_tests.ingest.builders import FRIDAY, LONG_AFTER, MINUTES, MONDAY, XNYS, grid_of, instant

WEEK = grid_of(MONDAY, FRIDAY)
FORTNIGHT = grid_of(MONDAY, date(2024, 12, 13))
ALL_DUE = np.ones(len(FORTNIGHT.opened_at), bool)


def test_one_missing_minute_asks_for_its_whole_session_so_that_it_has_neighbours() -> None:
    grid = grid_of()
    wanted = np.zeros(390, bool)
    wanted[200] = True
    [window] = windows(grid, wanted, np.ones(390, bool), MINUTES, now=LONG_AFTER)
    assert (window.start, window.end) == (instant("2024-12-02T14:30:00Z"), instant("2024-12-02T21:00:00Z"))


def test_nothing_wanted_sends_nothing() -> None:
    assert windows(WEEK, np.zeros(len(WEEK.opened_at), bool), ALL_DUE[: len(WEEK.opened_at)], MINUTES, now=LONG_AFTER) == []


def test_a_week_of_minutes_is_one_request() -> None:
    wanted = np.ones(len(WEEK.opened_at), bool)
    assert len(windows(WEEK, wanted, wanted, MINUTES, now=LONG_AFTER)) == 1


def test_a_fortnight_of_minutes_is_two_requests_of_at_most_eight_days() -> None:
    cut = windows(FORTNIGHT, ALL_DUE, ALL_DUE, MINUTES, now=instant("2024-12-14T12:00:00Z"))
    assert [window.end - window.start <= 8 * 86400 for window in cut] == [True, True]


def test_a_running_session_is_asked_from_a_few_bars_before_the_first_missing_one() -> None:
    grid = grid_of()
    due = np.arange(390) < 300
    wanted = due & (np.arange(390) >= 290)
    [window] = windows(grid, wanted, due, MINUTES, now=int(grid.ends_at[299]) + 90)
    assert (window.start, window.end) == (int(grid.starts_at[285]), int(grid.ends_at[299]))


def test_a_request_never_begins_beyond_the_reach() -> None:
    now = int(WEEK.starts_at[400]) + 30 * 86400
    wanted = within_reach(WEEK, MINUTES, now)
    assert not wanted[:400].any()
    cut = windows(WEEK, wanted, np.ones(len(wanted), bool), MINUTES, now=now)
    assert min(window.start for window in cut) > now - 30 * 86400


def test_daily_bars_of_years_are_one_request_where_the_provider_has_no_span() -> None:
    grid = grid_of(date(2014, 1, 2), date(2024, 12, 31), Interval.D1)
    wanted = np.ones(len(grid.opened_at), bool)
    [window] = windows(grid, wanted, wanted, bars_capability(Interval.D1, reach_seconds=None, span_seconds=None), now=LONG_AFTER)
    assert window.sessions == slice(0, len(grid))


@given(st.sets(st.integers(0, len(FORTNIGHT.opened_at) - 1)), st.integers(1, 12))
def test_windows_cover_every_wanted_bar_once_and_never_exceed_the_span(places: set[int], span_days: int) -> None:
    wanted = np.zeros(len(FORTNIGHT.opened_at), bool)
    wanted[list(places)] = True
    capability = bars_capability(Interval.M1, reach_seconds=None, span_seconds=span_days * 86400)
    cut = windows(FORTNIGHT, wanted, ALL_DUE, capability, now=LONG_AFTER)
    times_covered = sum((FORTNIGHT.starts_at >= w.start) & (FORTNIGHT.ends_at <= w.end) for w in cut)
    assert not places or (np.asarray(times_covered)[list(places)] == 1).all()
    assert all(w.end - w.start <= timedelta(days=span_days).total_seconds() for w in cut)
    assert [w.start for w in cut] == sorted(w.start for w in cut)


# --- the sessions around


def beside(resolved: np.ndarray[tuple[int], np.dtype[np.bool_]], attempts: int, *, now: int = LONG_AFTER) -> Neighbours | None:
    """What to ask for with Monday the second of December, which has been asked for ``attempts`` times."""
    return neighbours(grid_of(), XNYS, resolved, np.array([attempts], np.int32), confirm_after=3, now=now, settle_seconds=90)


def test_a_session_whose_ends_are_silent_is_asked_for_with_those_around_it_from_the_attempt_on_that_can_confirm_them() -> None:
    grid, ends = grid_of(), np.ones(390, bool)
    ends[[0, -1]] = False
    assert [beside(ends, attempts) is None for attempts in (0, 1, 2)] == [True, True, False]
    [window] = windows(grid, ~ends, np.ones(390, bool), MINUTES, now=LONG_AFTER, beside=beside(ends, 2))
    assert (window.start, window.end) == (instant("2024-11-29T14:30:00Z"), instant("2024-12-03T21:00:00Z"))
    assert window.sessions == slice(0, 1)


def test_only_the_side_that_is_open_is_widened_and_never_beyond_a_session_that_is_over() -> None:
    grid, lead, tail = grid_of(), np.ones(390, bool), np.ones(390, bool)
    lead[:5], tail[-5:] = False, False
    [window] = windows(grid, ~lead, np.ones(390, bool), MINUTES, now=LONG_AFTER, beside=beside(lead, 2))
    assert (window.start, window.end) == (instant("2024-11-29T14:30:00Z"), int(grid.ends_at[-1]))
    tuesday_noon = instant("2024-12-03T17:00:00Z")
    around = beside(tail, 2, now=tuesday_noon)
    [window] = windows(grid, ~tail, np.ones(390, bool), MINUTES, now=tuesday_noon, beside=around)
    assert (window.start, window.end) == (int(grid.starts_at[0]), int(grid.ends_at[-1]))


def test_a_hole_within_the_session_needs_no_neighbours() -> None:
    inside = np.ones(390, bool)
    inside[100] = False
    assert beside(inside, 5) is None


def test_each_further_attempt_reaches_a_session_further_as_far_as_the_span_allows() -> None:
    nothing = np.zeros(390, bool)
    capability = bars_capability(Interval.M1, reach_seconds=None, span_seconds=None)
    starts = []
    for attempts in (2, 3, 4):
        [window] = windows(grid_of(), ~nothing, ~nothing, capability, now=LONG_AFTER, beside=beside(nothing, attempts))
        starts.append(window.start)
    assert starts == [instant(f"2024-11-{day}T14:30:00Z") for day in (29, 27, 26)]
    for attempts in range(2, 9):
        [window] = windows(grid_of(), ~nothing, ~nothing, MINUTES, now=LONG_AFTER, beside=beside(nothing, attempts))
        assert window.end - window.start <= 8 * 86_400


@given(st.lists(st.integers(0, 6), min_size=10, max_size=10), st.sets(st.integers(0, len(FORTNIGHT.opened_at) - 1), min_size=1))
def test_with_neighbours_every_wanted_bar_is_covered_within_the_span_and_each_session_is_listed_once(
    attempts: list[int], places: set[int]
) -> None:
    wanted = np.zeros(len(FORTNIGHT.opened_at), bool)
    wanted[list(places)] = True
    now = instant("2024-12-20T12:00:00Z")
    around = neighbours(FORTNIGHT, XNYS, ~wanted, np.array(attempts, np.int32), confirm_after=3, now=now, settle_seconds=90)
    cut = windows(FORTNIGHT, wanted, ALL_DUE, MINUTES, now=now, beside=around)
    assert all(window.end - window.start <= 8 * 86_400 for window in cut)
    listed = [place for window in cut for place in range(window.sessions.start, window.sessions.stop)]
    assert len(listed) == len(set(listed))
    for window in cut:
        bars = FORTNIGHT.bars_of(window.sessions)
        assert window.start <= FORTNIGHT.starts_at[bars][0]
        assert window.end >= FORTNIGHT.ends_at[bars][-1]
    covered = np.concatenate([np.arange(*FORTNIGHT.bars_of(w.sessions).indices(len(wanted))) for w in cut])
    assert places <= set(covered.tolist())


def test_the_next_session_of_a_friday_is_over_on_monday() -> None:
    assert next_over(grid_of(FRIDAY, FRIDAY), XNYS, settle_seconds=90).tolist() == [instant("2024-12-09T21:01:30Z")]
