"""A bar is late when its time is up, by the calendar alone; and each is counted once."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.freshness import (
    FreshnessLine,
    Promise,
    WatchedSession,
    to_count,
    watched,
)
from market_data_pipeline.domain.sessions import trading_calendar
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.ingest.grid import Grid

XNYS = trading_calendar("XNYS")
MONDAY = date(2024, 12, 2)
SETTLE, EOD = 90, 7200


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


def a_promise(interval: Interval = Interval.M1, *, cadence: float = 60, settle: int = SETTLE) -> Promise:
    return Promise(interval, settle, cadence, EOD)


def a_session(promise: Promise, day: date = MONDAY, calendar: str = "XNYS") -> WatchedSession:
    grid = Grid.of(trading_calendar(calendar), promise.interval, day, day)
    deadlines = promise.deadlines(grid.ends_at, int(grid.closes_at[0]))
    return WatchedSession(calendar, promise.interval, Tier.T0, day, promise.ready_at(grid.ends_at), deadlines)


def test_a_minute_of_a_tier_swept_every_minute_is_late_two_minutes_after_it_could_be_there() -> None:
    session = a_session(a_promise())
    assert session.deadlines[0] == at("2024-12-02T09:34:30-05:00")
    assert [session.due(at(f"2024-12-02T{time}-05:00")) for time in ("09:34:29", "09:34:30", "10:00:00")] == [0, 1, 26]


def test_a_slower_cadence_allows_more() -> None:
    assert a_session(a_promise(cadence=300)).deadlines[0] == at("2024-12-02T09:42:30-05:00")


def test_a_derived_bar_is_allowed_two_of_its_own_length() -> None:
    assert a_session(a_promise(Interval.M30)).deadlines[0] == at("2024-12-02T11:01:30-05:00")


@pytest.mark.parametrize(("interval", "cadence"), [(Interval.H1, 60), (Interval.D1, 60), (Interval.M1, 0), (Interval.M15, 0)])
def test_what_is_fetched_after_the_close_is_late_two_hours_after_it(interval: Interval, cadence: float) -> None:
    session = a_session(a_promise(interval, cadence=cadence))
    assert session.due(at("2024-12-02T18:01:29-05:00")) == 0
    assert session.due(at("2024-12-02T18:01:30-05:00")) == session.expected


def test_the_minutes_that_no_sweep_is_sure_to_come_back_for_are_the_after_close_schedules() -> None:
    session = a_session(a_promise(cadence=300))
    assert session.due(at("2024-12-02T16:30:00-05:00")) == 386
    assert session.due(at("2024-12-02T18:01:30-05:00")) == 390
    every_minute = a_session(a_promise())
    assert every_minute.due(at("2024-12-02T16:05:00-05:00")) == 390


def test_a_provider_that_is_a_quarter_of_an_hour_late_is_given_that() -> None:
    session = a_session(a_promise(settle=900))
    assert session.deadlines[0] == at("2024-12-02T09:48:00-05:00")


@pytest.mark.parametrize(("day", "deadline"), [(date(2026, 3, 9), "09:34:30-04:00"), (date(2026, 11, 2), "09:34:30-05:00")])
def test_on_the_monday_after_the_clocks_changed_the_first_minute_is_due_as_ever(day: date, deadline: str) -> None:
    assert a_session(a_promise(), day).deadlines[0] == at(f"{day}T{deadline}")


def test_a_lunch_break_makes_nothing_due() -> None:
    session = a_session(a_promise(), MONDAY, "XHKG")
    due = [session.due(at(f"2024-12-02T{time}+08:00")) for time in ("12:03:30", "12:55:00", "13:04:29", "13:04:30")]
    assert due == [150, 150, 150, 151]


def test_the_newest_session_with_a_bar_due_is_the_one_to_watch() -> None:
    days = XNYS.sessions(date(2024, 11, 27), date(2024, 12, 2))
    sessions = [a_session(a_promise(), day) for day in days]
    found = {
        text: watched(sessions, at(text)) for text in ("2024-11-28T11:00-05:00", "2024-12-01T11:00-05:00", "2024-12-02T09:34-05:00")
    }
    assert [one.session for one in found.values() if one] == [date(2024, 11, 27), date(2024, 11, 29), date(2024, 11, 29)]
    assert watched(sessions, at("2024-11-26T11:00-05:00")) is None


def test_what_is_still_lacking_at_night_is_no_longer_stale() -> None:
    session = a_session(a_promise(Interval.D1))
    assert not session.is_over(at("2024-12-03T00:01:00-05:00"))
    assert session.is_over(at("2024-12-03T00:01:31-05:00"))


CALENDARS = st.sampled_from(["XNYS", "XHKG", "24/7", "XLON"])
DAYS = st.dates(date(2024, 1, 2), date(2026, 11, 30))
PROMISES = st.builds(
    Promise,
    st.sampled_from(list(Interval)),
    st.sampled_from([0, 90, 900]),
    st.sampled_from([0.0, 5.0, 60.0, 300.0, 3600.0]),
    st.sampled_from([0, 7200]),
)


@given(CALENDARS, DAYS, PROMISES)
def test_deadlines_are_in_order_and_never_before_a_bar_could_be_there(name: str, day: date, promise: Promise) -> None:
    calendar = trading_calendar(name)
    if calendar.is_session(day):
        session = a_session(promise, day, name)
        assert (np.diff(session.deadlines) >= 0).all()
        assert (session.deadlines >= session.ready_at).all()


@given(DAYS, PROMISES, st.lists(st.integers(0, 3600), min_size=2, max_size=40))
def test_each_bar_is_counted_once_however_irregular_the_looks(day: date, promise: Promise, gaps: list[int]) -> None:
    if not XNYS.is_session(day):
        return
    session = a_session(promise, day)
    now, counted = int(session.deadlines[0]), None
    seen: list[int] = []
    for gap in gaps:
        first, last = to_count(session, counted, at=now, unwatched_seconds=7200)
        seen += range(first, last)
        counted = max(counted or 0, last) or None
        now += gap
    assert seen == list(range(len(seen)))
    assert len(seen) == session.due(now - gaps[-1])


@given(DAYS, st.lists(st.integers(0, 40_000), min_size=1, max_size=20))
def test_after_a_long_break_no_bar_is_counted_twice_and_none_that_nobody_watched(day: date, gaps: list[int]) -> None:
    if not XNYS.is_session(day):
        return
    session = a_session(a_promise(), day)
    now, counted = int(session.deadlines[0]) - 3600, None
    seen: list[int] = []
    for gap in gaps:
        now += gap
        first, last = to_count(session, counted, at=now, unwatched_seconds=7200)
        assert all(now - 7200 < session.deadlines[slot] <= now for slot in range(first, last))
        seen += range(first, last)
        counted = max(counted or 0, last) or None
    assert all(earlier < later for earlier, later in pairwise(seen))


@given(DAYS, PROMISES, st.integers(0, 90_000), st.integers(0, 90_000))
def test_what_was_due_once_is_due_for_ever(day: date, promise: Promise, earlier: int, later: int) -> None:
    if XNYS.is_session(day):
        session = a_session(promise, day)
        start = int(session.ready_at[0]) - 600
        first, second = sorted((start + earlier, start + later))
        assert session.due(first) <= session.due(second) <= session.expected
        assert session.due(second) <= session.ready(second)


def test_without_symbols_nothing_is_violated() -> None:
    nothing = FreshnessLine(Tier.T0, Interval.M1, 0, 0, 0, 0, None, None)
    assert nothing.violation_rate == 0.0
    assert FreshnessLine(Tier.T0, Interval.M1, 200, 1, 200, 1, 120.0, 0.0).violation_rate == 0.005


def test_the_watch_of_a_session_does_not_end_before_the_next_one_begins() -> None:
    sessions = [a_session(a_promise(), day) for day in (date(2024, 11, 29), date(2024, 12, 2))]
    instants = np.arange(at("2024-11-29T09:34:30-05:00"), at("2024-12-02T16:10:00-05:00"), 1800)
    found = [watched(sessions, int(instant)) for instant in instants]
    assert all(one is not None for one in found)
    assert [one.session for one in found if one] == sorted(one.session for one in found if one)
    assert timedelta(seconds=int(sessions[1].deadlines[0]) - at("2024-12-02T09:30:00-05:00")) == timedelta(seconds=270)
