"""The trading calendar against what exchanges published, a second library and recorded bars; and its laws."""

from __future__ import annotations

import csv
import gzip
import subprocess
import sys
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.errors import CalendarHorizonError, InvalidInputError
from market_data_pipeline.domain.sessions import (
    OverrideKind,
    SessionOverride,
    TradingCalendar,
    date_of,
    day_number,
    parse_overrides,
    trading_calendar,
)

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet

ANSWERS = Path(__file__).parent / "answers"
RECORDED = Path(__file__).parents[3] / "shared" / "data" / "recorded"
needs_recorded_bars = pytest.mark.skipif(not RECORDED.is_dir(), reason="the recorded bars of ../shared/data are not here")

UNTIL = date(2027, 12, 31)
CALENDARS = ("XNYS", "XHKG", "XTKS", "XLON", "XASX", "CMES", "24/7")
HEADER = "calendar,session,kind,time,declared_at,source\n"


def answers(name: str) -> list[dict[str, str]]:
    lines = [line for line in (ANSWERS / name).read_text().splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines))


def calendar(name: str, *, overrides: str = "", known_at: str | None = None) -> TradingCalendar:
    known = None if known_at is None else datetime.fromisoformat(known_at)
    return trading_calendar(name, overrides=parse_overrides(HEADER + overrides), known_at=known, until=UNTIL)


def epoch(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


def local_seconds(session: str, hours: str, timezone: str) -> tuple[int, int]:
    opens, closes = (datetime.fromisoformat(f"{session}T{clock}").replace(tzinfo=ZoneInfo(timezone)) for clock in hours.split("-"))
    return int(opens.timestamp()), int(closes.timestamp())


def published_hours() -> list[ParameterSet]:
    """A row a case; where the library is known to be wrong, a case that must fail until it is not."""
    return [
        pytest.param(row, id=f"{row['calendar']} {row['session']}", marks=[_library_is_wrong] if row["library"] == "wrong" else [])
        for row in answers("trading_hours.csv")
    ]


_library_is_wrong = pytest.mark.xfail(
    strict=True, reason="exchange_calendars 4.13 gives Hong Kong today's lunch break for all time"
)


def minutes(of: TradingCalendar, session: str) -> int:
    day = date.fromisoformat(session)
    return len(of.expected_opens(Interval.M1, day, day))


# --- against what the exchanges published


def test_xnys_expects_390_210_or_no_minutes_on_each_weekday_as_the_nyse_announced() -> None:
    special = {row["session"]: {"closed": 0, "early": 210}[row["kind"]] for row in answers("xnys_special_days.csv")}
    weekdays = [date(2022, 1, 1) + timedelta(days=n) for n in range(6 * 365 + 1)]
    expected = {str(day): special.get(str(day), 390) for day in weekdays if day.weekday() < 5}
    assert {day: minutes(calendar("XNYS"), day) for day in expected} == expected


@pytest.mark.parametrize("row", published_hours())
def test_a_session_trades_in_the_hours_its_exchange_published(row: dict[str, str]) -> None:
    session = date.fromisoformat(row["session"])
    segments = calendar(row["calendar"]).segments(session, session)
    published = [local_seconds(row["session"], hours, row["timezone"]) for hours in row["hours"].split()]
    assert list(zip(segments.starts_at.tolist(), segments.ends_at.tolist(), strict=True)) == published
    assert minutes(calendar(row["calendar"]), row["session"]) == int(row["minutes"])


def test_xnys_has_seven_hourly_bars_and_the_last_is_half_an_hour() -> None:
    bars = calendar("XNYS").expected_opens(Interval.H1, date(2024, 6, 3), date(2024, 6, 3))
    lengths = (bars.ends_at - bars.opened_at).tolist()
    assert lengths == [3600] * 6 + [1800]
    assert bars.slot.tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_hourly_bars_begin_anew_after_the_lunch_break() -> None:
    bars = calendar("XHKG").expected_opens(Interval.H1, date(2024, 12, 23), date(2024, 12, 23))
    opens = [datetime.fromtimestamp(at, ZoneInfo("Asia/Hong_Kong")).strftime("%H:%M") for at in bars.opened_at.tolist()]
    assert opens == ["09:30", "10:30", "11:30", "13:00", "14:00", "15:00"]
    assert (bars.ends_at - bars.opened_at).tolist() == [3600, 3600, 1800, 3600, 3600, 3600]


def test_a_daily_bar_is_named_by_its_session_and_ends_with_it() -> None:
    bars = calendar("XNYS").expected_opens(Interval.D1, date(2024, 11, 28), date(2024, 11, 29))
    assert bars.opened_at.tolist() == [epoch("2024-11-29T00:00Z")]
    assert bars.ends_at.tolist() == [epoch("2024-11-29T13:00-05:00")]


def test_crypto_trades_1440_minutes_of_every_utc_day() -> None:
    always = calendar("24/7")
    assert always.sessions(date(2024, 2, 28), date(2024, 3, 3)) == [date(2024, 2, 28) + timedelta(days=n) for n in range(5)]
    bars = always.expected_opens(Interval.M1, date(2024, 3, 2), date(2024, 3, 3))
    assert bars.opened_at.tolist() == list(range(epoch("2024-03-02T00:00Z"), epoch("2024-03-04T00:00Z"), 60))
    assert bars.slot.tolist() == [*range(1440)] * 2


def test_the_session_of_an_instant_may_have_another_date_than_the_instant_in_utc() -> None:
    monday_morning_in_sydney = epoch("2024-01-14T23:30Z")
    assert calendar("XASX").align([monday_morning_in_sydney], Interval.D1).tolist() == [epoch("2024-01-15T00:00Z")]
    sunday_evening_in_chicago = epoch("2024-01-07T17:00-06:00")
    located = calendar("CMES").locate([sunday_evening_in_chicago], Interval.M1)
    assert (date_of(int(located.session[0])), int(located.slot[0])) == (date(2024, 1, 8), 0)


@pytest.mark.parametrize(("name", "first"), [("XNYS", "1990-01-02"), ("24/7", "1990-01-01"), ("XHKG", "1990-01-02")])
def test_history_reaches_back_to_1990(name: str, first: str) -> None:
    assert calendar(name).next_session(date(1989, 12, 31)) == date.fromisoformat(first)


# --- against a second library


# (our name, the second library's own calendar of it, from where its rules are complete)
PEERS = [
    ("XNYS", "NYSE", "1990-01-01"),
    ("XLON", "LSE", "2000-01-01"),
    ("XTKS", "JPX", "2006-01-01"),
    ("XHKG", "HKEX", "2012-03-05"),
]


@pytest.mark.parametrize(("name", "peer", "first"), PEERS, ids=lambda value: value)
def test_sessions_and_hours_equal_those_of_a_second_library_but_for_the_disagreements_on_file(
    name: str, peer: str, first: str
) -> None:
    second = _peer_hours(peer, first)
    bounds = calendar(name).bounds(date.fromisoformat(first), date(2026, 12, 31))
    ours = {
        str(date_of(day)): {"open": opens, "close": closes}
        for day, opens, closes in zip(bounds.session.tolist(), bounds.opens_at.tolist(), bounds.closes_at.tolist(), strict=True)
    }
    differences = {(day, "session") for day in ours.keys() ^ second.keys()}
    for day in ours.keys() & second.keys():
        if name == "XHKG" and _is_hong_kong_half_day(day, ours[day]["close"]):
            continue  # HKEX publishes them (answers/trading_hours.csv) and the second library has none
        differences |= {(day, edge) for edge in ("open", "close") if ours[day][edge] != second[day][edge]}
    assert differences == {(row["session"], row["what"]) for row in answers("library_disagreements.csv") if row["calendar"] == name}


def _peer_hours(peer: str, first: str) -> dict[str, dict[str, int]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas 3.1 deprecates what this library calls
        import pandas_market_calendars  # noqa: PLC0415 - its import warns as well

        schedule = pandas_market_calendars.get_calendar(peer).schedule(first, "2026-12-31")
    return {
        str(day.date()): {"open": int(opens.timestamp()), "close": int(closes.timestamp())}
        for day, opens, closes in zip(schedule.index, schedule["market_open"], schedule["market_close"], strict=True)
    }


def _is_hong_kong_half_day(day: str, closes_at: int) -> bool:
    eve = day.endswith(("-12-24", "-12-31")) or "-01-20" < day[4:] < "-02-20"  # Lunar New Year begins from January 21 on
    return eve and datetime.fromtimestamp(closes_at, ZoneInfo("Asia/Hong_Kong")).hour == 12


# --- against recorded bars


@needs_recorded_bars
def test_a_recorded_month_of_yahoo_minutes_is_exactly_the_grid() -> None:
    rows = _csv_of(gzip.decompress((RECORDED / "yahoo_market_prices_mit/MSFT_T1.csv.gz").read_bytes()))
    recorded = np.array([epoch(row["date"]) for row in rows])
    grid = calendar("XNYS").expected_opens(Interval.M1, date(2022, 5, 18), date(2022, 6, 15)).opened_at
    assert np.array_equal(recorded, grid[(grid >= recorded[0]) & (grid <= recorded[-1])])


@needs_recorded_bars
def test_recorded_daily_bars_since_1986_are_exactly_the_sessions() -> None:
    rows = _csv_of(gzip.decompress((RECORDED / "yahoo_market_prices_mit/MSFT_D1.csv.gz").read_bytes()))
    assert [str(day) for day in calendar("XNYS").sessions(date(1986, 3, 13), date(2022, 6, 15))] == [row["date"] for row in rows]


@needs_recorded_bars
def test_every_regular_minute_of_spy_was_traded_on_the_recorded_days() -> None:
    for day in ("20131004", "20131007", "20131008", "20131009", "20131010"):
        session = date.fromisoformat(day)
        with zipfile.ZipFile(RECORDED / f"lean/equity/usa/minute/spy/{day}_trade.zip") as archive:
            milliseconds = [int(line.split(b",")[0]) for line in archive.read(archive.namelist()[0]).splitlines()]
        midnight = int(datetime(session.year, session.month, session.day, tzinfo=ZoneInfo("America/New_York")).timestamp())
        grid = calendar("XNYS").expected_opens(Interval.M1, session, session).opened_at
        assert set(grid.tolist()) <= {midnight + ms // 1000 for ms in milliseconds}


@needs_recorded_bars
def test_recorded_five_minute_bars_of_a_half_day_are_exactly_the_grid() -> None:
    newest = sorted((RECORDED / "yahoo_snapshots_sds_202603/AAPL/5m").glob("*.csv.gz"))
    half_day = calendar("XNYS").expected_opens(Interval.M5, date(2025, 12, 24), date(2025, 12, 24)).opened_at
    rows = [line.split(",")[0] for line in gzip.decompress(newest[0].read_bytes()).decode().splitlines()]
    recorded = [epoch(stamp) for stamp in rows if stamp.startswith("2025-12-24")]
    if not recorded:
        pytest.skip("the oldest snapshot does not reach back to the half day")
    assert recorded == half_day.tolist()


def _csv_of(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(TextIOWrapper(BytesIO(content), "utf-8")))


# --- laws

names = st.sampled_from(CALENDARS)
intervals = st.sampled_from(list(Interval))
intraday = st.sampled_from([interval for interval in Interval if not interval.is_daily])
dates = st.dates(date(1998, 1, 1), date(2027, 11, 1))
lengths = st.integers(0, 40)


@given(names, intervals, dates, lengths)
def test_every_expected_open_is_located_at_its_own_session_and_slot(name: str, interval: Interval, first: date, days: int) -> None:
    bars = calendar(name).expected_opens(interval, first, first + timedelta(days=days))
    located = calendar(name).locate(bars.opened_at, interval)
    assert np.array_equal(located.session, bars.session)
    assert np.array_equal(located.slot, bars.slot)


@given(names, intraday, dates, lengths)
def test_an_expected_open_is_open_and_aligned_to_itself_and_so_is_the_last_second_of_its_bar(
    name: str, interval: Interval, first: date, days: int
) -> None:
    bars = calendar(name).expected_opens(interval, first, first + timedelta(days=days))
    assert calendar(name).is_open(bars.opened_at).all()
    assert np.array_equal(calendar(name).align(bars.opened_at, interval), bars.opened_at)
    assert np.array_equal(calendar(name).align(bars.ends_at - 1, interval), bars.opened_at)


@given(names, intraday, dates, lengths)
def test_bars_tile_the_segments(name: str, interval: Interval, first: date, days: int) -> None:
    last = first + timedelta(days=days)
    bars, segments = calendar(name).expected_opens(interval, first, last), calendar(name).segments(first, last)
    lengths_of_bars = bars.ends_at - bars.opened_at
    assert lengths_of_bars.sum() == (segments.ends_at - segments.starts_at).sum()
    assert ((lengths_of_bars > 0) & (lengths_of_bars <= interval.seconds)).all()
    assert (bars.opened_at[1:] >= bars.ends_at[:-1]).all()
    assert set(segments.starts_at.tolist()) <= set(bars.opened_at.tolist())


@given(names, intervals, dates, lengths)
def test_the_bars_of_a_range_are_those_of_its_sessions_counted_from_nought(
    name: str, interval: Interval, first: date, days: int
) -> None:
    last = first + timedelta(days=days)
    sessions = calendar(name).sessions(first, last)
    each = [calendar(name).expected_opens(interval, session, session) for session in sessions]
    whole = calendar(name).expected_opens(interval, first, last)
    assert whole.opened_at.tolist() == [at for bars in each for at in bars.opened_at.tolist()]
    assert all(bars.slot.tolist() == list(range(len(bars))) for bars in each)
    assert all(set(bars.session.tolist()) == {day_number(session)} for bars, session in zip(each, sessions, strict=True))


@given(names, intraday, st.lists(st.integers(epoch("1998-01-02T00:00Z"), epoch("2027-11-01T00:00Z")), max_size=50))
def test_an_instant_is_in_at_most_one_bar(name: str, interval: Interval, instants: list[int]) -> None:
    market = calendar(name)
    at = np.array(instants, np.int64)
    aligned, is_open, located = market.align(at, interval), market.is_open(at), market.locate(at, interval)
    assert np.array_equal(aligned >= 0, is_open)
    assert (aligned[is_open] <= at[is_open]).all()
    assert (at[is_open] < aligned[is_open] + interval.seconds).all()
    assert np.array_equal(located.slot >= 0, is_open & (aligned == at))
    assert np.array_equal(market.align(at, Interval.D1) >= 0, is_open)


@given(names, dates)
def test_the_next_session_and_the_previous_one_are_inverse(name: str, day: date) -> None:
    market = calendar(name)
    following = market.next_session(day)
    assert following > day
    assert market.is_session(following)
    assert market.sessions(day + timedelta(days=1), following) == [following]
    if market.is_session(day):
        assert market.previous_session(following) == day


def test_a_stamp_off_the_grid_of_another_day_or_century_is_no_expected_open() -> None:
    stamps = [epoch(text) for text in ("2024-06-03T13:30:30Z", "2024-06-03T20:00Z", "2024-06-01T15:00Z", "2199-06-03T13:30Z")]
    extremes = [-1, 0, 2**62, -(2**62)]
    located = calendar("XNYS").locate(stamps + extremes, Interval.M1)
    assert set(located.slot.tolist()) == set(located.session.tolist()) == {-1}
    daily = calendar("XNYS").locate([epoch("2024-06-03T00:00Z"), epoch("2024-06-03T13:30Z"), *extremes], Interval.D1)
    assert daily.slot.tolist() == [0, -1, -1, -1, -1, -1]


def test_a_range_that_ends_before_it_begins_is_empty() -> None:
    market = calendar("XNYS")
    assert market.sessions(date(2024, 6, 4), date(2024, 6, 3)) == []
    assert len(market.expected_opens(Interval.M1, date(2024, 6, 4), date(2024, 6, 3))) == 0


# --- what the operator declares

CARTER = "XNYS,2025-01-09,closed,,2024-12-30T09:00:00-05:00,ICE\n"


@pytest.mark.parametrize(
    ("known_at", "expected"),
    [("2024-12-30T08:59:59-05:00", 390), ("2024-12-30T09:00:00-05:00", 0), ("2026-01-01T00:00:00Z", 0), (None, 0)],
)
def test_the_mourning_day_of_2025_is_expected_until_the_instant_its_closure_was_declared(
    known_at: str | None, expected: int
) -> None:
    assert minutes(calendar("XNYS", overrides=CARTER, known_at=known_at), "2025-01-09") == expected


def test_a_closure_that_the_library_never_heard_of_is_applied() -> None:
    declared = parse_overrides((ANSWERS / "calendar_overrides.csv").read_text())
    corrected = trading_calendar("XHKG", overrides=declared, until=UNTIL)
    assert minutes(calendar("XHKG"), "2023-09-01") == 330
    assert not corrected.is_session(date(2023, 9, 1))
    before = trading_calendar("XHKG", overrides=declared, until=UNTIL, known_at=datetime(2023, 9, 1, 3, 59, tzinfo=UTC))
    assert minutes(before, "2023-09-01") == 330


def test_overrides_of_another_calendar_change_nothing_and_aliases_name_the_same_calendar() -> None:
    assert calendar("XHKG", overrides=CARTER) is calendar("XHKG")
    assert not calendar("NASDAQ", overrides=CARTER.replace("XNYS", "NYSE")).is_session(date(2025, 1, 9))
    assert calendar("NASDAQ") is calendar("XNYS")


@pytest.mark.parametrize(
    ("override", "session", "hours", "timezone"),
    [
        ("XNYS,2024-06-03,early_close,13:00", "2024-06-03", ["09:30-13:00"], "America/New_York"),
        ("XNYS,2024-06-03,late_open,11:05", "2024-06-03", ["11:05-16:00"], "America/New_York"),
        ("XNYS,2024-06-01,open,", "2024-06-01", ["09:30-16:00"], "America/New_York"),
        ("XNYS,2024-11-29,open,", "2024-11-29", ["09:30-16:00"], "America/New_York"),
        ("XBOM,2026-11-08,open,18:00-19:15", "2026-11-08", ["18:00-19:15"], "Asia/Kolkata"),
        ("XHKG,2024-06-03,early_close,14:00", "2024-06-03", ["09:30-12:00", "13:00-14:00"], "Asia/Hong_Kong"),
        ("XHKG,2024-06-03,early_close,12:30", "2024-06-03", ["09:30-12:00"], "Asia/Hong_Kong"),
        ("XHKG,2024-06-03,late_open,12:15", "2024-06-03", ["13:00-16:00"], "Asia/Hong_Kong"),
        ("XHKG,2024-06-03,late_open,14:30", "2024-06-03", ["14:30-16:00"], "Asia/Hong_Kong"),
        ("XHKG,2024-06-01,open,", "2024-06-01", ["09:30-12:00", "13:00-16:00"], "Asia/Hong_Kong"),
        ("24/7,2024-06-03,early_close,20:00", "2024-06-03", ["00:00-20:00"], "UTC"),
        ("CMES,2024-06-03,late_open,02:00", "2024-06-03", ["02:00-17:00"], "America/Chicago"),
    ],
)
def test_an_override_gives_a_session_its_declared_hours(override: str, session: str, hours: list[str], timezone: str) -> None:
    day = date.fromisoformat(session)
    segments = calendar(override.partition(",")[0], overrides=f"{override},2020-01-01T00:00:00Z,here\n").segments(day, day)
    stretches = list(zip(segments.starts_at.tolist(), segments.ends_at.tolist(), strict=True))
    assert stretches == [local_seconds(session, stretch, timezone) for stretch in hours]


def test_an_early_close_that_the_library_knows_is_taken_back_before_it_was_declared() -> None:
    override = "XNYS,2024-11-29,early_close,13:00,2021-12-27T15:00:00Z,NYSE\n"
    assert minutes(calendar("XNYS", overrides=override, known_at="2021-12-01T00:00:00Z"), "2024-11-29") == 390
    assert minutes(calendar("XNYS", overrides=override, known_at="2022-12-01T00:00:00Z"), "2024-11-29") == 210
    lunch = "XHKG,2024-12-24,early_close,12:00,2023-01-01T00:00:00Z,HKEX\n"
    assert minutes(calendar("XHKG", overrides=lunch, known_at="2022-01-01T00:00:00Z"), "2024-12-24") == 330


@pytest.mark.parametrize(
    ("known_at", "expected"), [("2024-05-01", 390), ("2024-05-11", 0), ("2024-05-21", 390), ("2024-05-31", 210)]
)
def test_later_declarations_of_one_session_replace_earlier_ones(known_at: str, expected: int) -> None:
    story = (
        "XNYS,2024-06-03,early_close,13:00,2024-05-30T00:00:00Z,third\n"
        "XNYS,2024-06-03,closed,,2024-05-10T00:00:00Z,first\n"
        "XNYS,2024-06-03,open,,2024-05-20T00:00:00Z,second\n"
    )
    assert minutes(calendar("XNYS", overrides=story, known_at=f"{known_at}T00:00:00Z"), "2024-06-03") == expected


def test_a_closure_of_a_saturday_does_not_make_it_a_session_before_it_was_declared() -> None:
    override = "XNYS,2024-06-01,closed,,2024-05-01T00:00:00Z,here\n"
    assert minutes(calendar("XNYS", overrides=override, known_at="2024-04-01T00:00:00Z"), "2024-06-01") == 0


@given(st.permutations([0, 1, 2]), st.integers(0, 4))
def test_the_order_of_the_lines_of_a_file_does_not_matter(order: list[int], known: int) -> None:
    declared = [datetime(2024, 5, day, tzinfo=UTC) for day in (1, 2, 3)]
    kinds = [OverrideKind.CLOSED, OverrideKind.OPEN, OverrideKind.CLOSED]
    lines = [SessionOverride("XNYS", date(2024, 6, 3), kind, at, "here") for kind, at in zip(kinds, declared, strict=True)]
    market = trading_calendar(
        "XNYS", overrides=[lines[n] for n in order], known_at=datetime(2024, 5, known + 1, tzinfo=UTC), until=UNTIL
    )
    assert market.is_session(date(2024, 6, 3)) is (known == 1)


@st.composite
def declarations(draw: st.DrawFn) -> list[SessionOverride]:
    """A few overrides of one month, each a possible one by itself; an hour lies within the regular hours of both markets."""
    days = draw(st.lists(st.dates(date(2024, 6, 1), date(2024, 6, 30)), max_size=8, unique=True))
    overrides = []
    for day in days:
        kind = draw(st.sampled_from(list(OverrideKind) if day.weekday() < 5 else [OverrideKind.CLOSED, OverrideKind.OPEN]))
        hour = draw(st.times(time(10, 0), time(15, 59))).replace(second=0, microsecond=0)
        overrides.append(
            SessionOverride(
                calendar=draw(st.sampled_from(["XNYS", "XHKG"])),
                session=day,
                kind=kind,
                declared_at=draw(st.datetimes(datetime(2024, 1, 1), datetime(2024, 6, 1), timezones=st.just(UTC))),  # noqa: DTZ001
                source="drawn",
                opens=hour if kind is OverrideKind.LATE_OPEN else None,
                closes=hour if kind is OverrideKind.EARLY_CLOSE else None,
            )
        )
    return overrides


# Of June 2024, the weekdays on which a market was closed anyway: an early close of them would be refused.
HOLIDAYS = {("XNYS", date(2024, 6, 19)), ("XHKG", date(2024, 6, 10))}


@given(declarations(), st.sampled_from(["XNYS", "XHKG"]), intraday, st.none() | st.datetimes(timezones=st.just(UTC)))
def test_the_laws_hold_for_a_calendar_with_any_overrides(
    declared: list[SessionOverride], name: str, interval: Interval, known_at: datetime | None
) -> None:
    possible = [override for override in declared if (override.calendar, override.session) not in HOLIDAYS]
    market = trading_calendar(name, overrides=possible, known_at=known_at, until=UNTIL)
    first, last = date(2024, 5, 28), date(2024, 7, 3)
    bars, segments = market.expected_opens(interval, first, last), market.segments(first, last)
    assert (bars.ends_at - bars.opened_at).sum() == (segments.ends_at - segments.starts_at).sum()
    located = market.locate(bars.opened_at, interval)
    assert np.array_equal(located.session, bars.session)
    assert np.array_equal(located.slot, bars.slot)
    for override in possible:
        known = known_at is None or override.declared_at <= known_at
        if known and override.calendar == name:
            assert market.is_session(override.session) is (override.kind is not OverrideKind.CLOSED)


def test_threads_that_ask_at_once_get_equal_calendars() -> None:
    with ThreadPoolExecutor(8) as pool:
        markets = list(pool.map(lambda _: trading_calendar("XPAR", until=date(2026, 3, 31)), range(8)))
    assert {(market.last_session, minutes(market, "2026-03-31")) for market in markets} == {(date(2026, 3, 31), 510)}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("XXXX,2025-01-09,closed,,2024-12-30T09:00:00Z,here", "unknown calendar 'XXXX'"),
        ("XNYS,09/01/2025,closed,,2024-12-30T09:00:00Z,here", "session '09/01/2025': expected a date"),
        (
            "XNYS,2025-01-09,holiday,,2024-12-30T09:00:00Z,here",
            "kind 'holiday': expected one of closed, open, late_open, early_close",
        ),
        ("XNYS,2025-01-09,closed,13:00,2024-12-30T09:00:00Z,here", "time '13:00': expected nothing"),
        ("XNYS,2025-01-09,early_close,,2024-12-30T09:00:00Z,here", "time '': expected the local time of the close"),
        ("XNYS,2025-01-09,late_open,25:00,2024-12-30T09:00:00Z,here", "time '25:00': expected the local time of the open"),
        ("XNYS,2025-01-09,open,18:00,2024-12-30T09:00:00Z,here", "time '': expected nothing for regular hours, or HH:MM-HH:MM"),
        (
            "XNYS,2025-01-09,closed,,2024-12-30T09:00:00,here",
            "declared_at '2024-12-30T09:00:00': expected an instant with its offset",
        ),
        ("XNYS,2025-01-09,closed,,2024-12-30T09:00:00Z,", "empty source"),
        ("XNYS,2025-01-09,closed", "3 values: expected 6"),
        (CARTER.strip(), "says the same as line 2"),
    ],
)
def test_a_bad_override_is_refused_with_its_line_value_and_what_was_expected(line: str, complaint: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        parse_overrides(f"{HEADER}{CARTER}\n# a comment\n{line}\n")
    assert f"line 5: {complaint}" in str(refused.value)


def test_all_bad_lines_are_named_at_once() -> None:
    with pytest.raises(InvalidInputError, match=r"line 2: .*; line 3: "):
        parse_overrides(HEADER + "a,b\nc,d\n")


def test_a_missing_column_is_named() -> None:
    with pytest.raises(InvalidInputError, match="expected the header calendar,session,kind,time,declared_at,source"):
        parse_overrides("calendar,session,kind,time,source\n")
    with pytest.raises(InvalidInputError, match="expected the header"):
        parse_overrides("")


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("XNYS,2024-06-03,early_close,16:30", "line 2: early_close of XNYS 2024-06-03 at 16:30.* 09:30 to 16:00"),
        ("XNYS,2024-06-03,early_close,09:00", "line 2: early_close of XNYS 2024-06-03 at 09:00"),
        ("XNYS,2024-06-03,late_open,16:00", "line 2: late_open of XNYS 2024-06-03 at 16:00"),
        ("XNYS,2024-06-01,early_close,13:00", "there is none that day"),
        ("XNYS,2024-06-01,open,14:00-13:00", "hours that end after they begin"),
    ],
)
def test_an_override_that_cannot_be_meant_is_refused(override: str, complaint: str) -> None:
    with pytest.raises(InvalidInputError, match=complaint):
        calendar("XNYS", overrides=f"{override},2020-01-01T00:00:00Z,here\n")


def test_a_naive_knowledge_time_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="2024-12-30T00:00:00 has no time zone"):
        trading_calendar("XNYS", known_at=datetime(2024, 12, 30))  # noqa: DTZ001 - the point of the test


# --- the edge of what is known


def test_beyond_the_last_session_known_there_is_no_answer() -> None:
    market = trading_calendar("XNYS", until=date(2026, 6, 30))
    last = market.last_session
    assert last == date(2026, 6, 30)
    beyond = last + timedelta(days=1)
    at = epoch("2026-07-01T14:00Z")
    for ask in (
        lambda: market.sessions(last, beyond),
        lambda: market.expected_opens(Interval.M1, last, beyond),
        lambda: market.is_session(beyond),
        lambda: market.next_session(last),
        lambda: market.is_open([at]),
        lambda: market.align([at], Interval.M1),
    ):
        with pytest.raises(
            CalendarHorizonError, match=r"XNYS knows the sessions from 1970-01-02 to 2026-06-30.*update exchange_calendars"
        ):
            ask()


def test_before_the_first_session_known_there_is_no_answer_either() -> None:
    with pytest.raises(CalendarHorizonError, match="XTKS knows the sessions from 1997-01-06"):
        calendar("XTKS").sessions(date(1990, 1, 1), date(2000, 1, 1))
    with pytest.raises(CalendarHorizonError):
        calendar("XTKS").previous_session(date(1997, 1, 6))


def test_the_days_to_the_horizon_are_counted_to_the_last_session() -> None:
    market = trading_calendar("XETR", until=date(2026, 12, 31))
    assert market.days_to_horizon(date(2026, 12, 1)) == 29  # December 31 is no session in Frankfurt


def test_a_calendar_that_the_library_bounds_ends_there() -> None:
    assert trading_calendar("XHKG", until=date(2060, 1, 1)).covered_until == date(2049, 12, 31)


def test_without_a_limit_a_calendar_covers_at_least_the_coming_year() -> None:
    today = datetime.now(UTC).date()
    assert trading_calendar("XNYS").days_to_horizon(today) >= 360
    assert trading_calendar("XNYS") is trading_calendar("XNYS")


@pytest.mark.parametrize("name", ["XXXX", "", "xnys", "'; drop table"])
def test_an_unknown_calendar_is_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidInputError, match="unknown calendar"):
        trading_calendar(name)


def test_a_caller_cannot_change_the_calendar_through_what_it_returns() -> None:
    bounds = calendar("XNYS").bounds(date(2024, 6, 3), date(2024, 6, 7))
    with pytest.raises(ValueError, match="read-only"):
        bounds.opens_at[0] = 0


def test_importing_the_module_does_not_import_pandas() -> None:
    code = (
        "import sys, market_data_pipeline.domain.sessions; sys.exit('pandas' in sys.modules or 'exchange_calendars' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_the_same_fact_on_another_line_is_the_same_override() -> None:
    (override,) = parse_overrides(HEADER + CARTER)
    assert replace(override, line=99) == override
