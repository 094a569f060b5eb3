"""Fresh candles: on the day, on half days, holidays and across the change of clocks."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
from dagster._utils.schedules import schedule_execution_time_iterator

from market_data_pipeline.defs.build import build_definitions
from market_data_pipeline.defs.schedules import crons_after_close, last_closed
from market_data_pipeline.domain.partitions import CalendarHours, default_plan
from market_data_pipeline.domain.sessions import trading_calendar
from market_data_pipeline.settings import Settings
from market_data_pipeline_tests.defs.fakes import FakeWorkbench, instrument, ledger_row, universe
from market_data_pipeline_tests.defs.instances import STOCK, sqlite_instance

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NEW_YORK = ZoneInfo("America/New_York")
XNYS = CalendarHours("XNYS", "America/New_York", ("13:00", "16:00"))
SYMBOLS = ["AAPL", "IBM", "MSFT"]


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    # The context of a schedule's tick takes no ephemeral instance.
    with sqlite_instance(tmp_path_factory.mktemp("dagster") / "home", STOCK) as opened:
        opened.add_dynamic_partitions("symbols", [*SYMBOLS, "BTC"])
        yield opened


def tick(
    name: str, workbench: FakeWorkbench, instance: dg.DagsterInstance, at: datetime
) -> Sequence[dg.RunRequest] | dg.SkipReason:
    definitions = build_definitions(Settings(), default_plan(), workbenches=workbench)
    schedule = definitions.resolve_schedule_def(name)
    context = dg.build_schedule_context(instance=instance, scheduled_execution_time=at, resources={"workbenches": workbench})
    said: Any = schedule(context)
    return [said] if isinstance(said, dg.RunRequest) else said


def asked(said: Sequence[dg.RunRequest] | dg.SkipReason) -> list[tuple[str, str]]:
    assert not isinstance(said, dg.SkipReason), said.skip_message
    return [
        (request.tags["dagster/asset_partition_range_start"], request.tags["dagster/asset_partition_range_end"]) for request in said
    ]


def skipped(said: Sequence[dg.RunRequest] | dg.SkipReason) -> str:
    assert isinstance(said, dg.SkipReason)
    return str(said.skip_message)


def real(*symbols: str) -> FakeWorkbench:
    """On the world's clock: the time of the tick is what counts."""
    return FakeWorkbench(universe(*symbols), virtual=False)


# --- after the close


def test_after_the_close_the_session_of_all_symbols_is_one_box(instance: dg.DagsterInstance) -> None:
    at = datetime(2024, 3, 7, 16, 10, tzinfo=NEW_YORK)
    assert asked(tick("xnys_candles_1m_after_close", real(*SYMBOLS), instance, at)) == [("2024-03-07|AAPL", "2024-03-07|MSFT")]


def test_on_a_half_day_the_tick_after_one_oclock_asks(instance: dg.DagsterInstance) -> None:
    # NYSE closed at 13:00 on 2024-11-29, the day after Thanksgiving.
    at = datetime(2024, 11, 29, 13, 10, tzinfo=NEW_YORK)
    assert asked(tick("xnys_candles_1d_after_close", real(*SYMBOLS), instance, at)) == [("2024-11-29|AAPL", "2024-11-29|MSFT")]


def test_on_a_full_day_the_tick_after_one_oclock_asks_for_nothing(instance: dg.DagsterInstance) -> None:
    at = datetime(2024, 3, 7, 13, 10, tzinfo=NEW_YORK)
    assert skipped(tick("xnys_candles_1m_after_close", real(*SYMBOLS), instance, at)) == (
        "XNYS has not closed within the last six hours"
    )


def test_on_a_half_day_both_ticks_ask_with_one_run_key(instance: dg.DagsterInstance) -> None:
    early, late = (datetime(2024, 11, 29, hour, 10, tzinfo=NEW_YORK) for hour in (13, 16))
    keys = []
    for at in (early, late):
        said = tick("xnys_candles_1m_after_close", real(*SYMBOLS), instance, at)
        assert not isinstance(said, dg.SkipReason)
        keys.append([request.run_key for request in said])
    assert keys[0] == keys[1]


@pytest.mark.parametrize("holiday", [date(2024, 12, 25), date(2024, 3, 9)], ids=["Christmas", "Saturday"])
def test_on_a_day_without_a_session_nothing_is_asked(instance: dg.DagsterInstance, holiday: date) -> None:
    at = datetime.combine(holiday, datetime.min.time(), NEW_YORK).replace(hour=16, minute=10)
    assert "has not closed" in skipped(tick("xnys_candles_1m_after_close", real(*SYMBOLS), instance, at))


@pytest.mark.parametrize("day", [date(2024, 3, 8), date(2024, 3, 11)], ids=["before the change", "after it"])
def test_the_schedule_fires_ten_minutes_after_the_close_on_both_sides_of_the_change_of_clocks(day: date) -> None:
    midnight = datetime.combine(day, datetime.min.time(), NEW_YORK)
    times = schedule_execution_time_iterator(midnight.timestamp(), crons_after_close(XNYS), XNYS.timezone)
    ticks = {next(times).timestamp() for _ in XNYS.closes}
    close = int(trading_calendar("XNYS").bounds(day, day).closes_at[0])
    assert close + 600 in ticks


def test_symbols_of_another_calendar_are_left_alone(instance: dg.DagsterInstance) -> None:
    held = [*universe("AAPL"), instrument("BTC", symbol_id=9, calendar="24/7")]
    said = tick(
        "xnys_candles_1m_after_close", FakeWorkbench(held, virtual=False), instance, datetime(2024, 3, 7, 16, 10, tzinfo=NEW_YORK)
    )
    assert asked(said) == [("2024-03-07|AAPL", "2024-03-07|AAPL")]


def test_a_symbol_without_its_partition_key_waits_for_it(instance: dg.DagsterInstance) -> None:
    said = tick("xnys_candles_1m_after_close", real("AAPL", "NEW"), instance, datetime(2024, 3, 7, 16, 10, tzinfo=NEW_YORK))
    assert asked(said) == [("2024-03-07|AAPL", "2024-03-07|AAPL")]


def test_sessions_that_passed_while_everything_was_down_are_asked_for_too(instance: dg.DagsterInstance) -> None:
    workbench = real("AAPL")
    workbench.rows = [ledger_row(1, date(2024, 3, 4))]
    said = tick("xnys_candles_1m_after_close", workbench, instance, datetime(2024, 3, 7, 16, 10, tzinfo=NEW_YORK))
    assert asked(said) == [("2024-03-05|AAPL", "2024-03-07|AAPL")]


def test_on_a_virtual_clock_the_tick_asks_for_the_session_that_closed_there(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(universe("AAPL"), at=datetime(2024, 3, 6, 21, 30, tzinfo=UTC))
    said = tick("xnys_candles_1m_after_close", workbench, instance, datetime(2026, 11, 20, 16, 10, tzinfo=NEW_YORK))
    assert asked(said) == [("2024-03-06|AAPL", "2024-03-06|AAPL")]


def test_a_session_counts_as_closed_from_its_close_on() -> None:
    close = datetime(2024, 3, 7, 16, 0, tzinfo=NEW_YORK)
    calendar = trading_calendar("XNYS")
    found = [last_closed(calendar, at.astimezone(UTC), within=None) for at in (close - timedelta(seconds=1), close)]
    assert found == [date(2024, 3, 6), date(2024, 3, 7)]
