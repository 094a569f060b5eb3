"""The grain, the keys of periods, the plan and its changes, and the boxes that a run takes."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.errors import ConfigurationError, InvalidInputError
from market_data_pipeline.domain.partitions import (
    Box,
    CalendarHours,
    Cell,
    Grain,
    IntervalPartitions,
    PartitionPlan,
    Periods,
    SymbolDimension,
    boxes,
    bucket_of,
    cells_between,
    changes,
    day_in_the_east,
    default_plan,
    period_end,
    period_start,
    plan_as_json,
    plan_from_json,
    plan_partitions,
)
from market_data_pipeline.domain.sessions import trading_calendar

START, TODAY, BUDGET = date(2021, 1, 4), date(2026, 11, 20), 60_000

days = st.dates(date(2000, 1, 1), date(2030, 12, 31))


def planned(*, symbols: int = 20, start: date = START, budget: int = BUDGET, keep: PartitionPlan | None = None) -> PartitionPlan:
    return plan_partitions(
        symbols=symbols, calendars=[trading_calendar("XNYS")], start=start, today=TODAY, budget=budget, keep=keep
    )


# --- the grain


def test_a_small_universe_has_a_partition_for_each_symbol_and_session() -> None:
    assert planned(symbols=20).intervals[Interval.M1].grain is Grain.SESSION


def test_a_thousand_symbols_over_five_years_have_months() -> None:
    # 60 months from December 2021 to November 2026: exactly the budget.
    assert planned(symbols=1_000, start=date(2021, 12, 1)).intervals[Interval.M1].grain is Grain.MONTH


def test_beyond_fifteen_hundred_symbols_buckets_take_the_place_of_symbols_and_sessions_come_back() -> None:
    plan = planned(symbols=3_000)
    assert (plan.dimension, plan.buckets, plan.intervals[Interval.D1].grain) == (SymbolDimension.BUCKET, 32, Grain.SESSION)


def test_the_reason_says_what_was_multiplied_and_what_the_finer_grain_would_be() -> None:
    reason = planned(symbols=100).intervals[Interval.M1].reason
    assert reason == "100 symbols x 307 weeks = 30,700 partitions, within 60,000; by session it would be 147,900"


def test_more_than_a_hundred_thousand_partitions_are_refused_with_the_reason() -> None:
    with pytest.raises(InvalidInputError, match=r"1,000 symbols x 1,479 sessions are 1,479,000 partitions of one asset"):
        plan_partitions(
            symbols=1_000,
            calendars=[trading_calendar("XNYS")],
            start=START,
            today=TODAY,
            budget=BUDGET,
            chosen={Interval.M1: Grain.SESSION},
        )


def test_a_budget_that_nothing_meets_gives_the_coarsest_grain_and_says_so() -> None:
    held = planned(symbols=1_000, budget=10).intervals[Interval.M1]
    assert held.grain is Grain.YEAR
    assert "above the budget of 10" in held.reason


def test_a_start_after_today_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="after today"):
        planned(start=TODAY + timedelta(days=1))


@settings(deadline=None)
@given(symbols=st.integers(1, 1_500), budget=st.integers(1_500 * 6, 100_000))
def test_the_grain_is_the_finest_within_the_budget(symbols: int, budget: int) -> None:
    held = planned(symbols=symbols, budget=budget).intervals[Interval.M1]
    assert held.partitions <= budget
    finer = [grain for grain in Grain if list(Grain).index(grain) < list(Grain).index(held.grain)]
    plan = planned(symbols=symbols)
    counts = [
        len(Periods(g, START, closed_weekends=True, closed_days=frozenset(plan.closed_days)).keys(START, TODAY)) for g in finer
    ]
    assert all(symbols * count > budget for count in counts)


def test_a_derived_interval_has_the_grain_of_its_source() -> None:
    plan = plan_partitions(
        symbols=20,
        calendars=[trading_calendar("XNYS")],
        start=START,
        today=TODAY,
        budget=BUDGET,
        chosen={Interval.M1: Grain.MONTH, Interval.D1: Grain.YEAR},
    )
    grains = {interval.value: held.grain.value for interval, held in plan.intervals.items()}
    assert grains == {"1m": "month", "5m": "month", "15m": "month", "30m": "month", "1h": "session", "1d": "year"}


# --- what a new plan changes


def test_a_grain_in_use_is_kept_when_the_universe_grows() -> None:
    small = planned(symbols=20)
    grown = planned(symbols=60, keep=small)
    assert changes(small, grown) == []
    assert grown.intervals[Interval.M1].reason == (
        "60 symbols x 1,479 sessions = 88,740 partitions, kept as it is; the automatic choice is week"
    )


def test_a_grain_in_use_that_no_longer_can_be_is_refused_and_not_changed_in_silence() -> None:
    with pytest.raises(InvalidInputError, match="147,900 partitions"):
        planned(symbols=100, keep=planned(symbols=20))


def test_a_change_of_grain_is_said_for_each_asset() -> None:
    assert changes(planned(symbols=20), planned(symbols=100))[0] == "candles/1m: session becomes week"


def test_a_change_to_buckets_is_said() -> None:
    assert changes(planned(symbols=20), planned(symbols=3_000)) == ["the symbol dimension: one key a symbol becomes 32 buckets"]


def test_a_plan_with_other_counts_names_the_same_partitions_and_one_with_another_start_does_not() -> None:
    plan = planned(symbols=20)
    assert plan.has_the_partitions_of(planned(symbols=21))
    assert not plan.has_the_partitions_of(planned(symbols=20, start=date(2022, 1, 3)))


# --- closed days


def test_christmas_has_no_session_partition() -> None:
    assert date(2024, 12, 25) in planned().closed_days


def test_a_market_that_never_closes_leaves_no_day_out() -> None:
    calendars = [trading_calendar("XNYS"), trading_calendar("24/7")]
    plan = plan_partitions(symbols=5, calendars=calendars, start=START, today=TODAY, budget=BUDGET)
    assert (plan.closed_weekends, plan.closed_days) == (False, ())


def test_a_day_on_which_one_of_two_exchanges_trades_has_a_partition() -> None:
    calendars = [trading_calendar("XNYS"), trading_calendar("XHKG")]
    plan = plan_partitions(symbols=5, calendars=calendars, start=START, today=TODAY, budget=BUDGET)
    assert not plan.periods(Interval.M1).is_closed(date(2024, 7, 4))


def test_the_plan_knows_the_close_of_half_days() -> None:
    assert planned().calendars == (CalendarHours("XNYS", "America/New_York", ("13:00", "16:00")),)


# --- periods


@pytest.mark.parametrize(
    ("grain", "first", "last"),
    [
        (Grain.SESSION, date(2024, 2, 29), date(2024, 2, 29)),
        (Grain.WEEK, date(2024, 2, 26), date(2024, 3, 3)),
        (Grain.MONTH, date(2024, 2, 1), date(2024, 2, 29)),
        (Grain.QUARTER, date(2024, 1, 1), date(2024, 3, 31)),
        (Grain.YEAR, date(2024, 1, 1), date(2024, 12, 31)),
    ],
)
def test_the_period_of_a_leap_day(grain: Grain, first: date, last: date) -> None:
    assert (period_start(date(2024, 2, 29), grain), period_end(first, grain)) == (first, last)


@given(day=days, grain=st.sampled_from(Grain))
def test_a_day_lies_in_the_period_that_its_key_names(day: date, grain: Grain) -> None:
    periods = Periods(grain, date(1999, 1, 1))
    first, last = periods.days_of(periods.key_of(day))
    assert first <= day <= last


@given(day=days, grain=st.sampled_from(Grain))
def test_periods_follow_each_other_without_a_gap(day: date, grain: Grain) -> None:
    last = period_end(period_start(day, grain), grain)
    assert period_start(last + timedelta(days=1), grain) == last + timedelta(days=1)


@pytest.mark.parametrize("key", ["2024-02-02", "2024-W05", "", "2024-02-30", "2024-02-01|AAPL"])
def test_what_is_no_month_is_refused(key: str) -> None:
    with pytest.raises(InvalidInputError):
        Periods(Grain.MONTH, START).days_of(key)


def test_a_session_before_the_start_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="before 2021-01-04"):
        planned().periods(Interval.M1).key_of(date(2020, 12, 31))


def test_a_closed_day_has_no_key() -> None:
    with pytest.raises(InvalidInputError, match="not a session"):
        planned().periods(Interval.M1).key_of(date(2024, 7, 4))


def test_the_period_that_holds_the_start_exists_from_its_first_day() -> None:
    assert Periods(Grain.MONTH, date(2024, 1, 17)).keys(date(2024, 1, 1), date(2024, 2, 1)) == ["2024-01-01", "2024-02-01"]


def test_sydneys_monday_exists_while_it_is_sunday_in_london() -> None:
    opening = datetime(2024, 3, 3, 23, 0, tzinfo=UTC)
    assert day_in_the_east(opening) == date(2024, 3, 4)


# --- the file's text


@given(
    grain=st.sampled_from(Grain),
    start=days,
    closed=st.lists(days, unique=True, max_size=5),
    buckets=st.sampled_from([0, 32]),
    weekends=st.booleans(),
)
def test_a_plan_survives_its_file(*, grain: Grain, start: date, closed: list[date], buckets: int, weekends: bool) -> None:
    plan = PartitionPlan(
        start=start,
        calendars=(CalendarHours("XHKG", "Asia/Hong_Kong", ("12:00", "16:00")),),
        intervals=MappingProxyType(dict.fromkeys(Interval, IntervalPartitions(grain, 7, "seven of them"))),
        dimension=SymbolDimension.BUCKET if buckets else SymbolDimension.SYMBOL,
        buckets=buckets,
        closed_weekends=weekends,
        closed_days=tuple(closed),
    )
    assert plan_from_json(plan_as_json(plan), source="here") == plan


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1}', "no json"])
def test_a_file_that_is_no_plan_is_named(text: str) -> None:
    with pytest.raises(ConfigurationError, match="/here is no partition plan"):
        plan_from_json(text, source="/here")


def test_a_plan_of_another_version_is_refused() -> None:
    text = plan_as_json(default_plan()).replace('"version": 1', '"version": 2')
    with pytest.raises(ConfigurationError, match="version 2: expected 1"):
        plan_from_json(text, source="/here")


# --- buckets


@settings(deadline=None)
@given(symbol=st.text(st.characters(codec="ascii", categories=["Lu", "Nd"]), min_size=1, max_size=8))
def test_a_symbol_is_in_one_of_the_buckets(symbol: str) -> None:
    plan = planned(symbols=3_000)
    assert plan.column_of(symbol) in plan.bucket_keys()


def test_the_bucket_of_a_symbol_never_changes() -> None:
    # 0xCBF43926 is the published check value of CRC-32: that of the text "123456789".
    assert bucket_of("123456789", 32) == f"bucket-{0xCBF43926 % 32:02d}"


# --- boxes

PERIODS = [f"2024-01-{day:02d}" for day in range(1, 9)]
SYMBOLS = ["MSFT", "AAPL", "IBM", "BAC", "SPY", "QQQ"]
cells = st.builds(Cell, st.sampled_from(PERIODS), st.sampled_from(SYMBOLS))


def cells_of(box: Box) -> list[Cell]:
    return cells_between(box.first, box.last, periods=PERIODS, symbols=SYMBOLS)


@given(needs=st.sets(cells), largest=st.none() | st.integers(1, 12))
def test_boxes_hold_exactly_the_needs_and_none_of_them_twice(needs: set[Cell], largest: int | None) -> None:
    found = boxes(needs, periods=PERIODS, symbols=SYMBOLS, largest=largest)
    covered = [cell for box in found for cell in cells_of(box)]
    assert sorted(covered) == sorted(needs)


@given(needs=st.sets(cells), largest=st.integers(1, 12))
def test_no_box_is_larger_than_asked(needs: set[Cell], largest: int) -> None:
    found = boxes(needs, periods=PERIODS, symbols=SYMBOLS, largest=largest)
    assert all(len(cells_of(box)) == box.partitions <= largest for box in found)


@given(needs=st.sets(cells))
def test_boxes_are_never_more_than_the_symbols_or_the_periods_need_alone(needs: set[Cell]) -> None:
    lines = {cell for cell in needs if not (p := PERIODS.index(cell.period)) or Cell(PERIODS[p - 1], cell.symbol) not in needs}
    assert len(boxes(needs, periods=PERIODS, symbols=SYMBOLS)) <= len(lines)


def test_a_full_grid_is_one_box() -> None:
    needs = [Cell(period, symbol) for period in PERIODS for symbol in SYMBOLS]
    assert boxes(needs, periods=PERIODS, symbols=SYMBOLS) == [Box(Cell(PERIODS[0], "MSFT"), Cell(PERIODS[-1], "QQQ"), 48)]


def test_neighbours_in_dagsters_order_share_a_box_and_neighbours_in_the_alphabet_do_not() -> None:
    together = boxes([Cell(PERIODS[0], "MSFT"), Cell(PERIODS[0], "AAPL")], periods=PERIODS, symbols=SYMBOLS)
    apart = boxes([Cell(PERIODS[0], "AAPL"), Cell(PERIODS[0], "BAC")], periods=PERIODS, symbols=SYMBOLS)
    assert (len(together), len(apart)) == (1, 2)


def test_a_need_that_is_no_partition_is_refused_by_name() -> None:
    with pytest.raises(InvalidInputError, match=r"2024-01-01\|NOPE"):
        boxes([Cell("2024-01-01", "NOPE")], periods=PERIODS, symbols=SYMBOLS)


def test_a_range_with_its_ends_swapped_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="wrong way round"):
        cells_between(Cell(PERIODS[3], "MSFT"), Cell(PERIODS[0], "MSFT"), periods=PERIODS, symbols=SYMBOLS)


@pytest.mark.parametrize("key", ["", "2024-01-01", "|AAPL", "2024-01-01|"])
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(InvalidInputError):
        Cell.parse(key)


def test_a_plan_remembers_how_far_its_calendars_know_and_says_when_that_is_near() -> None:
    [hours] = plan_from_json(plan_as_json(planned()), source="here").calendars
    assert hours.last_session is not None
    assert hours.last_session > TODAY
    assert not hours.ends_within(60, hours.last_session - timedelta(days=60))
    assert hours.ends_within(60, hours.last_session - timedelta(days=59))
