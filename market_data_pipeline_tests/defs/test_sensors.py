"""The symbols that Dagster knows, gaps that are asked for fairly and within bounds, runs that a crash left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_pipeline.defs.build import build_definitions
from market_data_pipeline.defs.healing import healings
from market_data_pipeline.defs.sensors import finished_parts, left_behind, process_lives
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.partitions import Box, Cell, cells_between, default_plan
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.settings import Settings
from market_data_pipeline_tests.defs.fakes import FakeWorkbench, beat, due_gap, due_recheck, instrument, universe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from market_data_pipeline.storage.heartbeats import Heartbeat
    from market_data_pipeline.storage.ledger import DueGap

PLAN = default_plan()
SYMBOLS = ["AAPL", "IBM", "MSFT"]
NOW = datetime(2024, 3, 20, 22, 0, tzinfo=UTC)
DAY = date(2024, 3, 5)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as opened:
        opened.add_dynamic_partitions("symbols", SYMBOLS)
        yield opened


def definitions_of(workbench: FakeWorkbench, **told: int) -> dg.Definitions:
    return build_definitions(Settings(**told), PLAN, workbenches=workbench)  # type: ignore[arg-type]


def tick(name: str, workbench: FakeWorkbench, instance: dg.DagsterInstance, **told: int) -> Any:  # noqa: ANN401 - what a sensor says
    definitions = definitions_of(workbench, **told)
    context = dg.build_sensor_context(instance=instance, definitions=definitions, resources={"workbenches": workbench})
    return definitions.resolve_sensor_def(name)(context)


# --- symbols


def test_new_symbols_get_their_keys_tier_by_tier(instance: dg.DagsterInstance) -> None:
    held = [
        instrument("ZZZ", symbol_id=1, tier=Tier.T2),
        instrument("BBB", symbol_id=2),
        instrument("CCC", symbol_id=3),
        *universe("IBM"),
    ]
    (request,) = tick("symbols", FakeWorkbench(held), instance).dynamic_partitions_requests
    assert (request.partitions_def_name, list(request.partition_keys)) == ("symbols", ["BBB", "CCC", "ZZZ"])


def test_when_every_symbol_has_its_key_nothing_is_added(instance: dg.DagsterInstance) -> None:
    assert tick("symbols", FakeWorkbench(universe(*SYMBOLS)), instance).skip_message == "all 3 symbols have their partitions"


# --- gaps


def ask(workbench: FakeWorkbench, instance: dg.DagsterInstance, **told: int) -> list[dg.RunRequest]:
    said = tick("gaps", workbench, instance, **told)
    return [] if isinstance(said, dg.SkipReason) else list(said)


def box_of(request: dg.RunRequest) -> tuple[str, str]:
    return request.tags["dagster/asset_partition_range_start"], request.tags["dagster/asset_partition_range_end"]


def queue(instance: dg.DagsterInstance, request: dg.RunRequest, status: dg.DagsterRunStatus) -> dg.DagsterRun:
    """What the daemon does with a request."""
    job = definitions_of(FakeWorkbench()).resolve_job_def(str(request.job_name))
    return instance.create_run_for_job(job, status=status, tags=request.tags)


def test_neighbouring_gaps_are_one_run(instance: dg.DagsterInstance) -> None:
    gaps = [due_gap(symbol, DAY, date(2024, 3, 6), symbol_id=n) for n, symbol in enumerate(SYMBOLS)]
    (request,) = ask(FakeWorkbench(gaps=gaps, at=NOW), instance)
    assert (request.job_name, box_of(request)) == ("candles_1m", ("2024-03-05|AAPL", "2024-03-06|MSFT"))


def test_each_interval_has_its_own_runs(instance: dg.DagsterInstance) -> None:
    gaps = [due_gap("AAPL", DAY, interval=Interval.D1), due_gap("AAPL", DAY, interval=Interval.M1)]
    assert [request.job_name for request in ask(FakeWorkbench(gaps=gaps, at=NOW), instance)] == ["candles_1d", "candles_1m"]


def test_a_tick_asks_for_no_more_runs_than_it_may(instance: dg.DagsterInstance) -> None:
    gaps = [due_gap("AAPL", date(2024, 1, 2) + timedelta(weeks=n)) for n in range(9)]
    requests = ask(FakeWorkbench(gaps=gaps, at=NOW), instance, heal_requests_per_tick=4)
    assert [box_of(request)[0][:10] for request in requests] == ["2024-01-02", "2024-01-09", "2024-01-16", "2024-01-23"]


def test_runs_that_wait_count_against_the_bound(instance: dg.DagsterInstance) -> None:
    gaps = [due_gap("AAPL", date(2024, 1, 2) + timedelta(weeks=n)) for n in range(9)]
    workbench = FakeWorkbench(gaps=gaps, at=NOW)
    for request in ask(workbench, instance, heal_requests_per_tick=3):
        queue(instance, request, dg.DagsterRunStatus.STARTING)
    assert tick("gaps", workbench, instance, heal_requests_per_tick=3).skip_message == "3 healing runs have not ended yet"


def test_what_is_asked_for_already_is_not_asked_for_again(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(gaps=[due_gap("AAPL", DAY), due_gap("MSFT", DAY, symbol_id=3)], at=NOW)
    first, _ = ask(workbench, instance)
    queue(instance, first, dg.DagsterRunStatus.STARTED)
    assert [box_of(request) for request in ask(workbench, instance)] == [("2024-03-05|MSFT", "2024-03-05|MSFT")]


def test_what_an_operators_backfill_works_on_is_left_to_it(instance: dg.DagsterInstance) -> None:
    job = definitions_of(FakeWorkbench()).resolve_job_def("candles_1m")
    tags = {"dagster/asset_partition_range_start": "2024-03-04|AAPL", "dagster/asset_partition_range_end": "2024-03-08|IBM"}
    instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTING, tags=tags)
    assert ask(FakeWorkbench(gaps=[due_gap("IBM", DAY)], at=NOW), instance) == []


def test_what_a_backfill_launched_in_the_ui_works_on_is_left_to_it(instance: dg.DagsterInstance) -> None:
    job = definitions_of(FakeWorkbench()).resolve_implicit_global_asset_job_def()
    tags = {"dagster/asset_partition_range_start": "2024-03-04|AAPL", "dagster/asset_partition_range_end": "2024-03-08|IBM"}
    instance.create_run_for_job(
        job, status=dg.DagsterRunStatus.STARTING, tags=tags, asset_selection=frozenset({dg.AssetKey(["candles", "1m"])})
    )
    assert ask(FakeWorkbench(gaps=[due_gap("IBM", DAY)], at=NOW), instance) == []


def test_a_flood_at_the_head_never_starves_the_tail(instance: dg.DagsterInstance) -> None:
    # Nine gaps, four a tick, nothing ever heals: each served gap goes to the back, as the ledger does it.
    gaps = [due_gap("AAPL", date(2024, 1, 2) + timedelta(weeks=n)) for n in range(9)]
    served: set[str] = set()
    for attempt in range(3):
        requests = ask(FakeWorkbench(gaps=gaps, at=NOW), instance, heal_requests_per_tick=4)
        for request in requests:
            queue(instance, request, dg.DagsterRunStatus.FAILURE)
            served.add(box_of(request)[0])
        gaps = [*gaps[4:], *(replace(gap, attempts=attempt + 2) for gap in gaps[:4])]
    assert len(served) == 9


def test_the_next_attempt_at_a_gap_has_another_run_key(instance: dg.DagsterInstance) -> None:
    keys = {ask(FakeWorkbench(gaps=[due_gap("AAPL", DAY, attempts=n)], at=NOW), instance)[0].run_key for n in (1, 2)}
    assert len(keys) == 2


def test_a_tick_that_is_repeated_asks_with_the_same_run_key(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(gaps=[due_gap("AAPL", DAY)], at=NOW)
    assert ask(workbench, instance)[0].run_key == ask(workbench, instance)[0].run_key


def test_a_run_that_changed_nothing_is_not_asked_for_again_at_once(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(gaps=[due_gap("AAPL", DAY)], at=NOW)
    (request,) = ask(workbench, instance)
    instance.report_run_failed(queue(instance, request, dg.DagsterRunStatus.STARTED))
    assert ask(workbench, instance) == []


def test_a_run_that_changed_nothing_is_asked_for_again_after_the_wait(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(gaps=[due_gap("AAPL", DAY)], at=NOW)
    (first,) = ask(workbench, instance)
    instance.report_run_failed(queue(instance, first, dg.DagsterRunStatus.STARTED))
    (second,) = ask(workbench, instance, heal_backoff_seconds=0)
    assert (second.run_key or "").endswith(":2")


def test_a_symbol_without_its_partition_key_waits(instance: dg.DagsterInstance) -> None:
    assert ask(FakeWorkbench(gaps=[due_gap("NEW", DAY)], at=NOW), instance) == []


def test_under_another_plan_nothing_is_asked_until_the_code_location_is_reloaded(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(gaps=[due_gap("AAPL", DAY)], at=NOW)
    changed = replace(PLAN, start=date(2022, 1, 3))
    definitions = build_definitions(Settings(), PLAN, workbenches=workbench, in_force=lambda: changed)
    context = dg.build_sensor_context(instance=instance, definitions=definitions, resources={"workbenches": workbench})
    said = definitions.resolve_sensor_def("gaps")(context)
    assert isinstance(said, dg.SkipReason)
    assert "reload" in (said.skip_message or "")


def test_what_runs_are_asked_for_over_gaps_is_counted_by_interval(instance: dg.DagsterInstance) -> None:
    minutes = [due_gap("AAPL", date(2024, 1, 2) + timedelta(weeks=n)) for n in range(3)]
    gaps, again = [due_gap("AAPL", DAY, interval=Interval.D1), *minutes], [due_recheck("IBM", DAY, symbol_id=2)]
    workbench = FakeWorkbench(gaps=gaps, rechecks=again, at=NOW)
    asked = [request.tags["mdp/cause"] for request in ask(workbench, instance)]
    assert sorted(workbench.counted) == [(Interval.D1, 1), (Interval.M1, 3)]
    assert sorted(asked) == ["gap"] * 4 + ["recheck"]


def test_without_gaps_the_tick_says_so(instance: dg.DagsterInstance) -> None:
    assert tick("gaps", FakeWorkbench(at=NOW), instance).skip_message == "no gap is due"


def test_the_running_session_is_left_to_the_sweep() -> None:
    running = date(2024, 3, 20)
    at = datetime(2024, 3, 20, 18, 0, tzinfo=UTC)
    gaps = [due_gap("AAPL", date(2024, 3, 19), running), due_gap("IBM", running, symbol_id=2)]
    assert [(gap.symbol, gap.last) for gap in finished_parts(gaps, FakeWorkbench(at=at))] == [("AAPL", date(2024, 3, 19))]


def test_half_an_hour_after_the_close_the_session_is_the_sensors() -> None:
    at = datetime(2024, 3, 20, 20, 31, tzinfo=UTC)
    gap = due_gap("AAPL", date(2024, 3, 20))
    assert finished_parts([gap], FakeWorkbench(at=at)) == [gap]


@settings(deadline=None)
@given(
    picks=st.lists(st.tuples(st.sampled_from(SYMBOLS), st.integers(0, 40), st.integers(0, 6)), max_size=25),
    flying=st.sets(st.tuples(st.sampled_from(SYMBOLS), st.sampled_from(["2024-01-03", "2024-01-10", "2024-01-11"])), max_size=4),
)
def test_healings_hold_every_due_partition_that_is_not_in_flight_and_no_other(
    picks: list[tuple[str, int, int]], flying: set[tuple[str, str]]
) -> None:
    start = date(2024, 1, 2)
    gaps: list[DueGap] = [due_gap(symbol, start + timedelta(days=a), start + timedelta(days=a + b)) for symbol, a, b in picks]
    in_flight = {Cell(period, symbol) for symbol, period in flying}
    periods = PLAN.periods(Interval.M1)
    due = {Cell(period, gap.symbol) for gap in gaps for period in periods.keys(gap.first, gap.last)}
    found = healings(gaps, PLAN, symbols=SYMBOLS, in_flight={Interval.M1: in_flight}, now=NOW)
    covered = [cell for healing in found for cell in cells_of(healing.box)]
    assert sorted(covered) == sorted(due - in_flight)


def cells_of(box: Box) -> list[Cell]:
    return cells_between(box.first, box.last, periods=PLAN.periods(Interval.M1).existing(NOW), symbols=SYMBOLS)


# --- the janitor

SOON, LATER = timedelta(seconds=10), timedelta(hours=1)


def judged(
    heartbeat: Heartbeat | None,
    *,
    unchanged_for: timedelta = LATER,
    lives: bool = True,
    status: dg.DagsterRunStatus = dg.DagsterRunStatus.STARTED,
) -> str | None:
    return left_behind(heartbeat, status, unchanged_for=unchanged_for, host="here", lives=lambda *_: lives)


def test_a_run_whose_process_is_gone_was_left_behind() -> None:
    assert judged(beat("run", pid=42), lives=False) == (
        "left behind by a crash: the process that worked on this run (pid 42 on here) is gone; it was last heard of 5 seconds ago"
    )


def test_a_run_whose_process_lives_and_beats_is_left_alone() -> None:
    assert judged(beat("run")) is None


def test_of_a_process_on_another_host_only_its_silence_counts() -> None:
    silent = beat("run", host="there", silent_for=timedelta(minutes=3))
    assert judged(beat("run", host="there"), lives=False) is None
    assert "has been silent for 3 minutes" in (judged(silent, lives=False) or "")


def test_a_run_that_has_just_started_has_time_for_its_first_heartbeat() -> None:
    assert judged(None, unchanged_for=SOON) is None


def test_a_run_without_any_heartbeat_was_left_behind() -> None:
    assert judged(None) == "left behind by a crash: 60 minutes after its start no process has said that it works on this run"


def test_a_run_that_was_made_and_never_launched_is_ended_in_time() -> None:
    never = dg.DagsterRunStatus.NOT_STARTED
    assert judged(None, status=never, unchanged_for=timedelta(minutes=9)) is None
    assert judged(None, status=never) == "it was made 60 minutes ago and never launched"


def test_this_process_lives_and_one_that_ended_does_not() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    started_at = datetime.fromtimestamp(psutil.Process(child.pid).create_time(), UTC)
    child.wait()
    mine = datetime.fromtimestamp(psutil.Process().create_time(), UTC)
    assert (process_lives(os.getpid(), mine), process_lives(child.pid, started_at)) == (True, False)


def test_a_pid_that_was_given_to_another_process_does_not_count() -> None:
    assert not process_lives(os.getpid(), datetime(2001, 1, 1, tzinfo=UTC))


def status(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRunStatus:
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    return found.status


def test_the_janitor_ends_a_run_that_was_left_behind_and_says_why(instance: dg.DagsterInstance) -> None:
    job = definitions_of(FakeWorkbench()).resolve_job_def("candles_1m")
    run = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    gone = beat(run.run_id, host="elsewhere", silent_for=timedelta(minutes=10))
    said = tick("janitor", FakeWorkbench(beats=[gone]), instance)
    assert (status(instance, run), said.skip_message) == (
        dg.DagsterRunStatus.FAILURE,
        "1 of 1 unfinished runs had been left behind and were ended",
    )


def test_the_janitor_leaves_a_run_alone_that_beats(instance: dg.DagsterInstance) -> None:
    job = definitions_of(FakeWorkbench()).resolve_job_def("candles_1m")
    run = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    tick("janitor", FakeWorkbench(beats=[beat(run.run_id, host="elsewhere")]), instance)
    assert status(instance, run) is dg.DagsterRunStatus.STARTED


def test_the_janitor_leaves_the_runs_of_others_alone(instance: dg.DagsterInstance) -> None:
    @dg.job
    def somebody_elses() -> None:
        pass

    run = instance.create_run_for_job(somebody_elses, status=dg.DagsterRunStatus.STARTED)
    tick("janitor", FakeWorkbench(beats=[beat(run.run_id, host="elsewhere", silent_for=timedelta(days=1))]), instance)
    assert status(instance, run) is dg.DagsterRunStatus.STARTED


def test_the_heartbeats_of_runs_that_ended_are_forgotten(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(beats=[beat("ended", silent_for=timedelta(minutes=5)), beat("just now")])
    tick("janitor", workbench, instance)
    assert workbench.forgotten == ["ended"]
