"""Which requests are sent for what is wanted."""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.capabilities import bars_capability
from market_data_pipeline.ingest.plan import windows, within_reach
from market_data_pipeline_tests.ingest.builders import FRIDAY, LONG_AFTER, MINUTES, MONDAY, grid_of, instant

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
