from __future__ import annotations

from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.cli.parameters import (
    in_order,
    parse_instant,
    parse_moment,
    parse_session,
    parse_symbols,
    window,
    written,
)
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.sessions import trading_calendar


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


@pytest.mark.parametrize(
    ("text", "expectation"),
    [
        ("2024-11-29T14:30Z", "'2024-11-29T14:30Z' is an instant: expected a session, a date like"),
        ("20241129", "'20241129' is not a session"),
        ("2024-W48-5", "'2024-W48-5' is not a session"),
        ("2024-02-30", "'2024-02-30' is not a date of the calendar"),
        ("yesterday", "'yesterday' is not a session"),
        ("", "'' is not a session"),
        ("\N{FULLWIDTH DIGIT TWO}024-11-29", "is not a session"),
    ],
)
def test_what_is_no_session_is_refused_with_its_text(text: str, expectation: str) -> None:
    with pytest.raises(InvalidInputError, match=expectation):
        parse_session(text)


@pytest.mark.parametrize(
    ("text", "expectation"),
    [
        ("2024-11-29T14:30", r"'2024-11-29T14:30' has no time zone: add Z or an offset, like 2024-11-29T14:30Z"),
        ("2024-11-29", "'2024-11-29' is a date: expected an instant like 2024-11-29T14:30Z"),
        ("14:30Z", "'14:30Z' is not an instant"),
        ("2024-11-29T25:00Z", "'2024-11-29T25:00Z' is not an instant"),
    ],
)
def test_what_is_no_instant_is_refused_with_its_text(text: str, expectation: str) -> None:
    with pytest.raises(InvalidInputError, match=expectation):
        parse_instant(text)


def test_an_instant_with_an_offset_is_the_same_moment_in_utc() -> None:
    assert parse_instant("2024-11-29T09:30-05:00") == datetime(2024, 11, 29, 14, 30, tzinfo=UTC)


def test_a_moment_is_a_session_or_an_instant() -> None:
    assert parse_moment("2024-11-29") == date(2024, 11, 29)
    assert parse_moment("2024-11-29T14:30Z") == datetime(2024, 11, 29, 14, 30, tzinfo=UTC)


@given(st.datetimes(timezones=st.just(UTC)))
def test_every_instant_is_read_back_as_it_is_written(instant: datetime) -> None:
    assert parse_instant(written(instant)) == instant


@given(st.dates())
def test_every_session_is_read_back_as_it_is_written(session: date) -> None:
    assert parse_session(written(session)) == session


def test_symbols_keep_their_order_and_come_once() -> None:
    assert parse_symbols("MSFT, AAPL,MSFT,BRK.B") == ("MSFT", "AAPL", "BRK.B")


def test_every_symbol_that_cannot_be_one_is_named() -> None:
    with pytest.raises(InvalidInputError) as refused:
        parse_symbols("AAPL,aapl,'; drop table")
    assert "'aapl'" in str(refused.value)
    assert "drop table" in str(refused.value)


def test_an_empty_list_of_symbols_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="'' is not a symbol"):
        parse_symbols("")


def test_a_start_after_the_end_is_refused_and_both_are_named() -> None:
    with pytest.raises(InvalidInputError, match="--start 2024-12-02 is after --end 2024-11-29"):
        in_order(date(2024, 12, 2), date(2024, 11, 29))


def test_a_single_session_is_in_order_and_an_empty_stretch_of_instants_is_not() -> None:
    noon = datetime(2024, 12, 2, 12, tzinfo=UTC)
    in_order(date(2024, 12, 2), date(2024, 12, 2))
    with pytest.raises(InvalidInputError, match="are both 2024-12-02T12:00:00Z"):
        in_order(noon, noon)


# The day after Thanksgiving closes at 13:00 New York (NYSE, Holidays & Trading Hours 2024).
def test_dates_mean_whole_sessions_of_the_calendar() -> None:
    found = window(date(2024, 11, 29), date(2024, 11, 29), interval=Interval.M1, calendar=trading_calendar("XNYS"))
    assert (found.start, found.end) == (at("2024-11-29T14:30Z"), at("2024-11-29T18:00Z"))


def test_a_range_that_begins_on_a_holiday_begins_with_its_first_session() -> None:
    found = window(date(2024, 11, 28), date(2024, 12, 1), interval=Interval.M1, calendar=trading_calendar("XNYS"))
    assert (found.start, found.end) == (at("2024-11-29T14:30Z"), at("2024-11-29T18:00Z"))


def test_daily_windows_are_midnights_of_session_dates() -> None:
    found = window(date(2024, 11, 27), date(2024, 11, 29), interval=Interval.D1, calendar=trading_calendar("XNYS"))
    assert (found.start, found.end) == (at("2024-11-27T00:00Z"), at("2024-11-30T00:00Z"))


def test_instants_mean_themselves_and_may_be_mixed_with_a_session() -> None:
    start = datetime(2024, 11, 29, 15, tzinfo=UTC)
    found = window(start, date(2024, 11, 29), interval=Interval.M1, calendar=trading_calendar("XNYS"))
    assert (found.start, found.end) == (at("2024-11-29T15:00Z"), at("2024-11-29T18:00Z"))


def test_a_holiday_is_refused_with_the_sessions_around_it() -> None:
    with pytest.raises(InvalidInputError) as refused:
        window(date(2024, 11, 28), date(2024, 11, 28), interval=Interval.M1, calendar=trading_calendar("XNYS"))
    assert "2024-11-28 is no session of XNYS" in str(refused.value)
    assert "the one before is 2024-11-27, the next 2024-11-29" in str(refused.value)


def test_instants_are_refused_for_daily_bars() -> None:
    noon = datetime(2024, 11, 29, 12, tzinfo=UTC)
    with pytest.raises(InvalidInputError, match="a 1d bar is named by its session; expected a date"):
        window(noon, date(2024, 11, 29), interval=Interval.D1, calendar=trading_calendar("XNYS"))


def test_dates_that_no_calendar_knows_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="calendar XNYS knows the sessions from"):
        window(date(1066, 10, 14), date(1066, 10, 14), interval=Interval.D1, calendar=trading_calendar("XNYS"))
