"""A run of candles: what it asks for, what it reports of each partition, and how it fails."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest

from market_data_pipeline.defs.build import build_definitions
from market_data_pipeline.defs.candles import CandlesConfig
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.capabilities import Lane
from market_data_pipeline.domain.coverage import Verdict
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.finality import Finality
from market_data_pipeline.domain.partitions import Cell, PartitionPlan, bucket_of, default_plan, plan_partitions
from market_data_pipeline.domain.sessions import trading_calendar
from market_data_pipeline.ingest.report import LedgerHistory, Stretch, StretchReport
from market_data_pipeline.settings import Settings
from market_data_pipeline_tests.defs.fakes import FakeWorkbench, complete, failing, universe
from market_data_pipeline_tests.defs.instances import run_box

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SYMBOLS = ["AAPL", "IBM", "MSFT"]
FIRST, LAST = Cell("2024-03-01", "AAPL"), Cell("2024-03-06", "MSFT")


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as opened:
        opened.add_dynamic_partitions("symbols", SYMBOLS)
        yield opened


def key(interval: Interval) -> dg.AssetKey:
    return dg.AssetKey(["candles", interval.value])


def metadata_of(instance: dg.DagsterInstance, interval: Interval, partition: str) -> dict[str, Any]:
    for record in instance.fetch_materializations(key(interval), limit=1_000).records:
        if record.partition_key == partition and record.asset_materialization is not None:
            return {name: value.value for name, value in record.asset_materialization.metadata.items()}
    raise LookupError(partition)


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    event = result.failure_data_for_node("fetch_candles_1m")
    assert event is not None
    assert event.user_failure_data is not None
    return str(event.user_failure_data.description)


def test_a_run_asks_once_for_each_partition_of_its_box(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(universe(*SYMBOLS))
    run_box(instance, workbench, FIRST, LAST)
    asked = {(stretch.instrument.symbol, stretch.first, stretch.last) for stretch, _ in workbench.asked}
    days = [date(2024, 3, 1), date(2024, 3, 4), date(2024, 3, 5), date(2024, 3, 6)]
    assert (asked, len(workbench.asked)) == ({(symbol, day, day) for symbol in SYMBOLS for day in days}, 12)


def test_a_box_holds_neighbours_in_the_order_in_which_symbols_were_added(instance: dg.DagsterInstance) -> None:
    instance.add_dynamic_partitions("symbols", ["AAA"])
    workbench = FakeWorkbench(universe(*SYMBOLS, "AAA"))
    run_box(instance, workbench, Cell("2024-03-01", "MSFT"), Cell("2024-03-01", "AAA"))
    assert {stretch.instrument.symbol for stretch, _ in workbench.asked} == {"MSFT", "AAA"}


def test_the_metadata_of_a_partition_says_what_a_person_wants_to_know(instance: dg.DagsterInstance) -> None:
    def outcome(stretch: Stretch, interval: Interval) -> StretchReport:
        del interval
        verdicts = {Verdict.PRESENT: 380, Verdict.CONFIRMED_EMPTY: 6, Verdict.MISSING: 4, Verdict.PENDING: 0}
        return StretchReport(
            stretch,
            390,
            verdicts,
            inserted=12,
            refused=1,
            requests=0.5,
            seconds=1.23456,
            providers=("yahoo",),
            dropped={"live": 2},
            history=LedgerHistory(gaps=2, attempts=3, finality={Finality.SETTLED: 1}),
        )

    run_box(instance, FakeWorkbench(universe(*SYMBOLS), outcome=outcome), FIRST, FIRST)
    assert metadata_of(instance, Interval.M1, FIRST.key) == {
        "rows": 380,
        "expected": 390,
        "confirmed_empty": 6,
        "halted": 0,
        "not_listed": 0,
        "pending": 0,
        "unreachable": 0,
        "missing": 4,
        "gaps": 2,
        "attempts": 3,
        "provisional_sessions": 0,
        "settled_sessions": 1,
        "final_sessions": 0,
        "inserted": 12,
        "requests": 0.5,
        "seconds": 1.235,
        "refused": 1,
        "provider": "yahoo",
        "dropped: live": 2,
    }


def test_a_run_that_is_profiled_names_the_file_with_each_partition(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    run = run_box(instance, FakeWorkbench(universe(*SYMBOLS), traces=tmp_path), FIRST, FIRST)
    trace = tmp_path / f"fetch_candles_1m-{run.run_id[:8]}.json"
    assert metadata_of(instance, Interval.M1, FIRST.key)["trace"] == str(trace)


def test_a_partition_with_bars_still_missing_is_materialised(instance: dg.DagsterInstance) -> None:
    def outcome(stretch: Stretch, interval: Interval) -> StretchReport:
        del interval
        return StretchReport(stretch, 390, {Verdict.MISSING: 390}, providers=("fake",))

    result = run_box(instance, FakeWorkbench(universe(*SYMBOLS), outcome=outcome), FIRST, FIRST)
    assert (result.success, instance.get_materialized_partitions(key(Interval.M1))) == (True, {FIRST.key})


def test_when_one_symbol_fails_the_others_are_materialised_and_the_failure_names_it(instance: dg.DagsterInstance) -> None:
    result = run_box(instance, FakeWorkbench(universe(*SYMBOLS), outcome=failing("IBM")), FIRST, Cell("2024-03-01", "MSFT"))
    assert not result.success
    assert instance.get_materialized_partitions(key(Interval.M1)) == {"2024-03-01|AAPL", "2024-03-01|MSFT"}
    assert failure_of(result) == "1 of 3 partitions failed. 2024-03-01|IBM: fake: no answer"


def test_a_failure_of_many_for_one_reason_names_three_and_counts_the_rest(instance: dg.DagsterInstance) -> None:
    result = run_box(instance, FakeWorkbench(universe(*SYMBOLS), outcome=failing(*SYMBOLS)), FIRST, LAST)
    assert failure_of(result).startswith("12 of 12 partitions failed. 2024-03-")
    assert failure_of(result).endswith(" and 9 more: fake: no answer")


def test_what_is_derived_from_a_failed_partition_is_not_materialised(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(universe(*SYMBOLS), outcome=failing("IBM"))
    run_box(instance, workbench, FIRST, Cell("2024-03-01", "MSFT"), intervals=(Interval.M1, Interval.M5, Interval.M30))
    for interval in (Interval.M5, Interval.M30):
        assert instance.get_materialized_partitions(key(interval)) == {"2024-03-01|AAPL", "2024-03-01|MSFT"}


def test_minutes_are_fetched_before_anything_is_derived_from_them(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(universe(*SYMBOLS))
    run_box(instance, workbench, FIRST, FIRST, intervals=(Interval.M15, Interval.M1, Interval.M5))
    assert [interval for _, interval in workbench.asked] == [Interval.M1, Interval.M5, Interval.M15]


def test_a_derived_interval_can_be_computed_alone(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(universe(*SYMBOLS))
    run_box(instance, workbench, FIRST, FIRST, intervals=(Interval.M5,))
    assert [interval for _, interval in workbench.asked] == [Interval.M5]


def test_every_verdict_is_a_number_of_every_partition_so_that_the_page_plots_them(instance: dg.DagsterInstance) -> None:
    run_box(instance, FakeWorkbench(universe(*SYMBOLS)), FIRST, FIRST)
    said = metadata_of(instance, Interval.M1, FIRST.key)
    absent = [said[verdict.value] for verdict in Verdict if verdict is not Verdict.PRESENT]
    assert all(isinstance(count, int) for count in absent)
    assert said["rows"] + sum(absent) == said["expected"]


def test_only_the_sessions_named_are_asked_again(instance: dg.DagsterInstance) -> None:
    plan, workbench = plan_of(symbols=3), FakeWorkbench(universe(*SYMBOLS))
    job = build_definitions(Settings(), plan, workbenches=workbench).resolve_job_def("candles_1d")
    config = {"refetch_from": "2024-03-05", "refetch_to": "2024-03-06"}
    result = job.execute_in_process(
        instance=instance, partition_key="2024-03-01|AAPL", run_config={"ops": {"fetch_candles_1d": {"config": config}}}
    )
    asked = [(stretch.first.day, stretch.last.day) for stretch, _ in workbench.asked]
    assert (result.success, workbench.refetched, asked) == (True, [True, False], [(5, 6), (7, 9), (1, 4)])
    # Three pieces, one partition.
    assert metadata_of(instance, Interval.D1, "2024-03-01|AAPL")["rows"] == 3 * 390


def test_a_range_that_is_no_dates_is_refused_in_words() -> None:
    with pytest.raises(InvalidInputError, match="expected dates such as 2026-11-16"):
        CandlesConfig(refetch_from="yesterday").again()


def test_a_backfill_launched_on_the_assets_page_goes_the_same_way(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(universe(*SYMBOLS), outcome=failing("IBM"))
    definitions = build_definitions(Settings(), default_plan(), workbenches=workbench)
    # What the daemon makes of a backfill of two assets: one run of the implicit job over the box, and nothing of ours in its tags.
    tags = {"dagster/asset_partition_range_start": "2024-03-01|AAPL", "dagster/asset_partition_range_end": "2024-03-01|MSFT"}
    result = definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance,
        asset_selection=[key(Interval.M1), key(Interval.M5)],
        tags={**tags, "dagster/backfill": "abcdefgh"},
        raise_on_error=False,
    )
    assert failure_of(result) == "1 of 3 partitions failed. 2024-03-01|IBM: fake: no answer"
    for interval in (Interval.M1, Interval.M5):
        assert instance.get_materialized_partitions(key(interval)) == {"2024-03-01|AAPL", "2024-03-01|MSFT"}
    assert (workbench.lanes[0], len(workbench.beats)) == ((Lane.BACKFILL, None), 1)


@pytest.mark.parametrize("refetch", [True, False])
def test_refetch_is_passed_on(instance: dg.DagsterInstance, *, refetch: bool) -> None:
    workbench = FakeWorkbench(universe(*SYMBOLS))
    run_box(instance, workbench, FIRST, FIRST, refetch=refetch)
    assert workbench.refetched == [refetch]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, (Lane.BACKFILL, None)),
        ({"mdp/cause": "gap"}, (Lane.HEALING, None)),
        ({"mdp/cause": "recheck"}, (Lane.HEALING, None)),
        ({"mdp/cause": "close"}, (Lane.LIVE, None)),
        ({"mdp/cause": "backfill", "mdp/provider": "alpaca"}, (Lane.BACKFILL, "alpaca")),
    ],
)
def test_the_tags_of_a_run_say_whose_budget_it_spends_and_whom_it_asks_first(
    instance: dg.DagsterInstance, tags: dict[str, str], expected: tuple[Lane, str | None]
) -> None:
    workbench = FakeWorkbench(universe(*SYMBOLS))
    run_box(instance, workbench, FIRST, FIRST, tags=tags)
    assert workbench.lanes == [expected]


def test_a_run_shows_that_it_is_alive(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(universe(*SYMBOLS))
    result = run_box(instance, workbench, FIRST, FIRST)
    assert [beat.run_id for beat in workbench.beats] == [result.run_id]


def test_a_symbol_that_the_universe_does_not_know_fails_by_name(instance: dg.DagsterInstance) -> None:
    result = run_box(instance, FakeWorkbench(universe("AAPL", "MSFT")), FIRST, Cell("2024-03-01", "MSFT"))
    assert failure_of(result) == "1 of 3 partitions failed. 2024-03-01|IBM: IBM is not in the universe"


def test_a_period_that_has_not_begun_on_our_clock_is_neither_done_nor_failed(instance: dg.DagsterInstance) -> None:
    # The clock of the fake stands at 2024-03-08 22:00 UTC, which is the 9th, a Saturday, where days begin first.
    result = run_box(instance, FakeWorkbench(universe(*SYMBOLS)), Cell("2024-03-08", "AAPL"), Cell("2024-03-11", "AAPL"))
    assert (result.success, instance.get_materialized_partitions(key(Interval.M1))) == (True, {"2024-03-08|AAPL"})


def test_what_was_stored_before_a_crash_of_the_work_is_materialised(instance: dg.DagsterInstance) -> None:
    def outcome(stretch: Stretch, interval: Interval) -> StretchReport:
        if stretch.instrument.symbol == "AAPL":
            raise ConnectionError("the database went away")
        return complete(stretch, interval)

    result = run_box(instance, FakeWorkbench(universe(*SYMBOLS), outcome=outcome), FIRST, Cell("2024-03-01", "MSFT"))
    assert not result.success
    assert instance.get_materialized_partitions(key(Interval.M1)) == {"2024-03-01|IBM", "2024-03-01|MSFT"}


# --- longer periods and buckets


def plan_of(*, symbols: int, start: date = date(2024, 1, 2)) -> PartitionPlan:
    return plan_partitions(
        symbols=symbols,
        calendars=[trading_calendar("XNYS")],
        start=start,
        today=date(2024, 3, 8),
        budget=60_000 if symbols > 1_500 else 9,
    )


def run_single(
    instance: dg.DagsterInstance, plan: PartitionPlan, workbench: FakeWorkbench, cell: Cell
) -> dg.ExecuteInProcessResult:
    job = build_definitions(Settings(), plan, workbenches=workbench).resolve_job_def("candles_1d")
    return job.execute_in_process(instance=instance, partition_key=cell.key, raise_on_error=False)


def test_the_running_month_is_asked_for_until_today(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(universe(*SYMBOLS))
    run_single(instance, plan_of(symbols=3), workbench, Cell("2024-03-01", "AAPL"))
    ((stretch, interval),) = workbench.asked
    assert (stretch.first, stretch.last, interval) == (date(2024, 3, 1), date(2024, 3, 9), Interval.D1)


def test_a_bucket_is_materialised_when_all_its_symbols_are_and_adds_them_up(instance: dg.DagsterInstance) -> None:
    plan = plan_of(symbols=3_000)
    together = [s for s in (f"S{n:03d}" for n in range(500)) if bucket_of(s, plan.buckets) == "bucket-03"][:2]
    workbench = FakeWorkbench(universe(*together))
    run_single(instance, plan, workbench, Cell("2024-03-01", "bucket-03"))
    metadata = metadata_of(instance, Interval.D1, "2024-03-01|bucket-03")
    assert (len(workbench.asked), metadata["rows"], metadata["requests"]) == (2, 780, 2.0)


def test_a_bucket_with_one_symbol_that_failed_is_failed(instance: dg.DagsterInstance) -> None:
    plan = plan_of(symbols=3_000)
    together = [s for s in (f"S{n:03d}" for n in range(500)) if bucket_of(s, plan.buckets) == "bucket-03"][:2]
    result = run_single(
        instance, plan, FakeWorkbench(universe(*together), outcome=failing(together[0])), Cell("2024-03-01", "bucket-03")
    )
    assert (result.success, instance.get_materialized_partitions(key(Interval.D1))) == (False, set())
