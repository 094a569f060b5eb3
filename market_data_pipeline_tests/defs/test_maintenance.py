"""What the ledger knows is shown in Dagster, and runs that nothing rests on are deleted."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg
import pytest

from market_data_pipeline.defs.build import build_definitions
from market_data_pipeline.defs.maintenance import Settled, prune, settled_partitions
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.listing import ListingFinding, ListingKind
from market_data_pipeline.domain.partitions import Cell, PartitionPlan, plan_partitions
from market_data_pipeline.domain.retention import Pruned
from market_data_pipeline.domain.sessions import trading_calendar
from market_data_pipeline.ingest.listing import ListingChange
from market_data_pipeline.settings import Settings
from market_data_pipeline_tests.defs.fakes import FakeWorkbench, failing, ledger_row, universe
from market_data_pipeline_tests.defs.instances import STOCK, run_box, sqlite_instance

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MINUTES = dg.AssetKey(["candles", "1m"])
SYMBOLS = ["AAPL", "IBM"]
WEEK = [date(2024, 3, day) for day in (4, 5, 6, 7, 8)]
FIRST, LAST = Cell("2024-03-04", "AAPL"), Cell("2024-03-08", "IBM")


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as opened:
        opened.add_dynamic_partitions("symbols", SYMBOLS)
        yield opened


def plan_of(budget: int) -> PartitionPlan:
    return plan_partitions(
        symbols=2, calendars=[trading_calendar("XNYS")], start=date(2024, 3, 4), today=date(2024, 3, 8), budget=budget
    )


DAYS, WEEKS = plan_of(60_000), plan_of(2)


def settled(workbench: FakeWorkbench, plan: PartitionPlan, interval: Interval = Interval.M1) -> list[Settled]:
    return list(settled_partitions(workbench.held, interval, plan, workbench))


# --- from the ledger


def test_a_session_that_was_answered_is_settled_with_its_counts() -> None:
    workbench = FakeWorkbench(universe("AAPL"), rows=[ledger_row(1, WEEK[0], present=380)])
    (found,) = settled(workbench, DAYS)
    said = found.as_metadata()
    assert (found.cell, said["rows"], said["expected"], said["missing"], said["gaps"]) == (FIRST, 380, 390, 10, 1)


def test_a_session_without_an_answer_is_not_settled() -> None:
    rows = [ledger_row(1, WEEK[0], present=0, answered=False), ledger_row(1, WEEK[1], present=0)]
    assert [found.cell.period for found in settled(FakeWorkbench(universe("AAPL"), rows=rows), DAYS)] == ["2024-03-05"]


def test_a_week_is_settled_when_all_its_sessions_are() -> None:
    rows = [*(ledger_row(1, day) for day in WEEK), *(ledger_row(2, day) for day in WEEK[:-1])]
    assert [found.cell for found in settled(FakeWorkbench(universe(*SYMBOLS), rows=rows), WEEKS)] == [FIRST]


def test_the_counts_of_a_week_are_those_of_its_sessions() -> None:
    (found,) = settled(FakeWorkbench(universe("AAPL"), rows=[ledger_row(1, day, present=100) for day in WEEK]), WEEKS)
    said = found.as_metadata()
    assert (said["rows"], said["expected"], said["provisional_sessions"]) == (500, 1_950, 5)


def test_what_nobody_can_be_asked_for_any_more_is_unreachable_and_not_missing() -> None:
    workbench = FakeWorkbench(universe("AAPL"), rows=[ledger_row(1, WEEK[0], present=380)], since=2.0)
    (found,) = settled(workbench, DAYS)
    said = found.as_metadata()
    assert (said["unreachable"], said["missing"], said["gaps"]) == (10, 0, 0)


def test_a_session_that_still_runs_is_not_over() -> None:
    rows = [ledger_row(1, day) for day in WEEK]
    friday = FakeWorkbench(universe("AAPL"), rows=rows, at=datetime(2024, 3, 8, 15, 0, tzinfo=UTC))
    found = settled_partitions(friday.held, Interval.M1, DAYS, friday, over=True)
    assert [cell.cell.period for cell in found] == [f"2024-03-0{day}" for day in (4, 5, 6, 7)]


def reconcile(
    instance: dg.DagsterInstance, workbench: FakeWorkbench, plan: PartitionPlan, *, everything: bool = False
) -> dg.ExecuteInProcessResult:
    job = build_definitions(Settings(), plan, workbenches=workbench).resolve_job_def("reconcile")
    config = {"ops": {"report_the_ledger": {"config": {"everything": everything}}}}
    return job.execute_in_process(instance=instance, run_config=config)


def test_after_a_change_of_grain_dagster_shows_what_the_ledger_has(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(universe(*SYMBOLS), rows=[ledger_row(n, day) for n in (1, 2) for day in WEEK])
    reconcile(instance, workbench, DAYS)
    reconcile(instance, workbench, WEEKS)
    shown = instance.get_materialized_partitions(MINUTES)
    assert len(shown) == 10
    assert {"2024-03-04|AAPL", "2024-03-04|IBM"} <= shown


def test_what_dagster_shows_already_is_not_reported_again(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(universe(*SYMBOLS), rows=[ledger_row(1, day) for day in WEEK])
    for _ in range(2):
        reconcile(instance, workbench, DAYS)
    assert len(instance.fetch_materializations(MINUTES, limit=100).records) == 5


def test_everything_can_be_reported_again(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(universe(*SYMBOLS), rows=[ledger_row(1, day) for day in WEEK])
    for _ in range(2):
        reconcile(instance, workbench, DAYS, everything=True)
    assert len(instance.fetch_materializations(MINUTES, limit=100).records) == 10


# --- pruning

TOMORROW = datetime.now(UTC) + timedelta(days=1)


def test_a_run_that_a_later_one_made_superfluous_is_deleted(instance: dg.DagsterInstance) -> None:
    old, new = (run_box(instance, FakeWorkbench(universe(*SYMBOLS)), FIRST, LAST).run_id for _ in range(2))
    assert prune(instance, before=TOMORROW, at_most=10) == (1, 1)
    assert (instance.has_run(old), instance.has_run(new)) == (False, True)


def test_no_partition_stops_being_materialised_by_pruning(instance: dg.DagsterInstance) -> None:
    run_box(instance, FakeWorkbench(universe(*SYMBOLS)), FIRST, LAST)
    run_box(instance, FakeWorkbench(universe(*SYMBOLS)), FIRST, FIRST)
    run_box(instance, FakeWorkbench(universe(*SYMBOLS), outcome=failing(*SYMBOLS)), FIRST, FIRST)
    shown = instance.get_materialized_partitions(MINUTES)
    assert prune(instance, before=TOMORROW, at_most=10) == (1, 2)
    assert instance.get_materialized_partitions(MINUTES) == shown


def test_young_runs_are_kept(instance: dg.DagsterInstance) -> None:
    run_box(instance, FakeWorkbench(universe(*SYMBOLS), outcome=failing(*SYMBOLS)), FIRST, FIRST)
    assert prune(instance, before=datetime.now(UTC) - timedelta(days=1), at_most=10) == (0, 0)


def test_no_more_runs_are_deleted_than_asked(instance: dg.DagsterInstance) -> None:
    for _ in range(3):
        run_box(instance, FakeWorkbench(universe(*SYMBOLS), outcome=failing(*SYMBOLS)), FIRST, FIRST)
    assert prune(instance, before=TOMORROW, at_most=2) == (2, 0)
    assert len(instance.get_runs()) == 1


def test_the_prune_job_deletes_by_its_config(instance: dg.DagsterInstance) -> None:
    run = run_box(instance, FakeWorkbench(universe(*SYMBOLS), outcome=failing(*SYMBOLS)), FIRST, FIRST)
    job = build_definitions(Settings(), DAYS, workbenches=FakeWorkbench()).resolve_job_def("prune_event_log")
    job.execute_in_process(instance=instance, run_config={"ops": {"prune_finished_runs": {"config": {"older_than_days": 3}}}})
    assert instance.has_run(run.run_id)


def test_the_prune_job_says_what_it_deleted_of_ours(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(old_rows=[Pruned("quotes_l1", 7), Pruned("fetches", 0), Pruned("alerts", 3, is_complete=False)])
    run = build_definitions(Settings(), DAYS, workbenches=workbench).resolve_job_def("prune_event_log")
    done = run.execute_in_process(instance=instance)
    said = [entry.user_message for entry in instance.all_logs(done.run_id) if "old rows" in entry.user_message]
    assert said == ["quotes_l1: 7 old rows deleted", "alerts: 3 old rows deleted; there are more, which the next night deletes"]


def test_what_a_run_printed_goes_with_it(tmp_path: Path) -> None:
    with sqlite_instance(tmp_path / "home", STOCK) as instance:
        instance.add_dynamic_partitions("symbols", SYMBOLS)
        run = run_box(instance, FakeWorkbench(universe(*SYMBOLS), outcome=failing(*SYMBOLS)), FIRST, FIRST)
        printed = [path for path in tmp_path.rglob("*") if path.is_dir() and path.name == run.run_id]
        assert printed
        prune(instance, before=TOMORROW, at_most=10)
        assert [path for path in printed if path.exists()] == []


# --- listings


def test_the_listings_job_infers_them_from_the_ledger(instance: dg.DagsterInstance) -> None:
    finding = ListingFinding(ListingKind.FIRST_SESSION, WEEK[0], ("yahoo",), "nobody has anything of before")
    workbench = FakeWorkbench(findings=[ListingChange(1, "IBM", finding)])
    job = build_definitions(Settings(), DAYS, workbenches=workbench).resolve_job_def("listings")
    assert job.execute_in_process(instance=instance).success
    assert len(workbench.beats) == 1
