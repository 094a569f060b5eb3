"""Dagster's partitions are exactly those that the plan names, on every day and for every grain."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import dagster as dg
import pytest
from dagster._core.definitions.partitions.context import partition_loading_context
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_pipeline.defs.partitions import candle_partitions, cells_of_tags, partition_key, period_definition, range_tags
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.partitions import Box, Cell, Grain, Periods, default_plan, plan_partitions
from market_data_pipeline.domain.runs import RANGE_END, RANGE_START
from market_data_pipeline.domain.sessions import trading_calendar

START = date(2023, 11, 15)
PLAN = plan_partitions(symbols=3, calendars=[trading_calendar("XNYS")], start=START, today=date(2024, 4, 1), budget=60_000)
instants = st.datetimes(datetime(2023, 11, 16, 14), datetime(2024, 4, 10), timezones=st.just(UTC))  # noqa: DTZ001 - a bound


def periods_of(grain: Grain) -> Periods:
    return Periods(grain, START, closed_weekends=True, closed_days=frozenset(PLAN.closed_days))


@settings(max_examples=60, deadline=None)
@given(now=instants, grain=st.sampled_from(Grain))
def test_dagster_and_the_plan_agree_on_the_keys_at_any_instant(now: datetime, grain: Grain) -> None:
    periods = periods_of(grain)
    with partition_loading_context(effective_dt=now):
        assert list(period_definition(periods).get_partition_keys()) == periods.existing(now)


@pytest.mark.parametrize(
    "today",
    [date(2024, 3, 28), date(2024, 3, 29), date(2024, 3, 30), date(2024, 3, 31), date(2024, 4, 1)],
    ids=["Thursday", "Good Friday", "Saturday", "Sunday", "Monday"],
)
def test_over_a_long_weekend_every_way_dagster_counts_partitions_agrees(today: date) -> None:
    # dagster issue #33551: end_offset together with an excluded today.
    now = datetime.combine(today, datetime.min.time(), UTC) + timedelta(hours=3)
    definition = period_definition(periods_of(Grain.SESSION))
    with partition_loading_context(effective_dt=now) as loading:
        keys = list(definition.get_partition_keys())
        backwards = definition.get_paginated_partition_keys(loading, limit=1_000, ascending=False).results
        assert (definition.get_num_partitions(), list(reversed(backwards))) == (len(keys), keys)
        assert definition.has_partition_key(keys[-1])


def test_on_a_closed_day_the_next_session_exists_and_the_closed_day_does_not() -> None:
    good_friday = datetime(2024, 3, 29, 3, tzinfo=UTC)
    assert periods_of(Grain.SESSION).existing(good_friday)[-2:] == ["2024-03-28", "2024-04-01"]


def test_the_running_month_exists() -> None:
    with partition_loading_context(effective_dt=datetime(2024, 2, 10, tzinfo=UTC)):
        assert period_definition(periods_of(Grain.MONTH)).get_partition_keys()[-1] == "2024-02-01"


def test_five_years_of_sessions_are_listed_in_a_tenth_of_a_second() -> None:
    definition = candle_partitions(default_plan(), Interval.M1).get_partitions_def_for_dimension("period")
    begun = datetime.now(UTC)
    assert len(definition.get_partition_keys()) > 1_000
    assert datetime.now(UTC) - begun < timedelta(seconds=1)


def test_a_cell_and_dagsters_key_have_one_name() -> None:
    cell = Cell("2024-03-01", "BRK.B")
    assert (str(partition_key(cell)), Cell.parse(partition_key(cell))) == (cell.key, cell)


def test_the_tags_of_a_box_name_its_partitions() -> None:
    box = Box(Cell("2024-03-01", "A"), Cell("2024-03-04", "B"), 4)
    found = cells_of_tags(range_tags(box), periods=["2024-03-01", "2024-03-04"], symbols=["A", "B", "C"])
    assert {cell.key for cell in found} == {"2024-03-01|A", "2024-03-01|B", "2024-03-04|A", "2024-03-04|B"}


def test_dagster_takes_the_same_box_from_the_tags() -> None:
    definition = candle_partitions(PLAN, Interval.M1)
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("symbols", ["B", "A", "C"])
        with partition_loading_context(dynamic_partitions_store=instance):
            keys = definition.get_partition_keys_in_range(dg.PartitionKeyRange("2024-03-01|B", "2024-03-04|A"))
    expected = cells_of_tags(
        {RANGE_START: "2024-03-01|B", RANGE_END: "2024-03-04|A"}, periods=["2024-03-01", "2024-03-04"], symbols=["B", "A", "C"]
    )
    assert sorted(keys) == sorted(cell.key for cell in expected)


def test_tags_with_a_key_that_is_no_partition_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="2024-03-02"):
        cells_of_tags({RANGE_START: "2024-03-02|A", RANGE_END: "2024-03-04|A"}, periods=["2024-03-01", "2024-03-04"], symbols=["A"])


def test_tags_without_partitions_name_none() -> None:
    assert cells_of_tags({"mdp/cause": "poll"}, periods=[], symbols=[]) == []
