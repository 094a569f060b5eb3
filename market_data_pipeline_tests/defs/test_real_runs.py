"""Dagster runs on the real thing: a provider process, Postgres, and nothing handed in but settings."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest

from market_data_pipeline.defs.build import build_definitions
from market_data_pipeline.defs.workbench import Workbenches
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.jobs import BackfillJob, as_new_job
from market_data_pipeline.domain.partitions import default_plan
from market_data_pipeline.domain.queue import JobState
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.ingest.sweep import sweep
from market_data_pipeline_tests.defs.instances import BATCHED, sqlite_instance
from market_data_pipeline_tests.world import FRIDAY, MONDAY, World, a_world, expected_opens, write_bars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OPENS = expected_opens()
SYMBOLS = ["AAPL", "GHOST", "MSFT"]
PLAN = default_plan()


@pytest.fixture
def world(tmp_path: Path, database_url: str) -> Iterator[World]:
    data = tmp_path / "data"
    write_bars(data, "AAPL", Interval.M1, OPENS)
    # The provider loses ten minutes of MSFT's Wednesday.
    write_bars(data, "MSFT", Interval.M1, [*OPENS[:900], *OPENS[910:]])
    with a_world(data, database_url, tmp_path / "home") as world:
        world.load(*SYMBOLS)
        yield world


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as opened:
        opened.add_dynamic_partitions("symbols", SYMBOLS)
        yield opened


def run(world: World, instance: dg.DagsterInstance, job: str = "candles_1m", **tags: str) -> dg.ExecuteInProcessResult:
    definition = build_definitions(world.settings, PLAN).resolve_job_def(job)
    return definition.execute_in_process(instance=instance, tags=tags or None, raise_on_error=False)


def the_week(first: str = "AAPL", last: str = "MSFT") -> dict[str, str]:
    return {
        "dagster/asset_partition_range_start": f"{MONDAY}|{first}",
        "dagster/asset_partition_range_end": f"{FRIDAY}|{last}",
    }


def shown(instance: dg.DagsterInstance, interval: Interval) -> dict[str, int]:
    """Materialised partitions by symbol."""
    keys = instance.get_materialized_partitions(dg.AssetKey(["candles", interval.value]))
    return {symbol: sum(key.endswith(f"|{symbol}") for key in keys) for symbol in SYMBOLS}


def test_a_week_of_three_symbols_in_one_run_stores_what_there_is_and_fails_for_the_one_nobody_knows(
    world: World, instance: dg.DagsterInstance
) -> None:
    result = run(world, instance, **the_week())
    assert not result.success
    assert shown(instance, Interval.M1) == {"AAPL": 5, "GHOST": 0, "MSFT": 5}
    assert shown(instance, Interval.M5) == {"AAPL": 5, "GHOST": 0, "MSFT": 5}
    aapl, _, msft = world.pipeline.universe.instruments(symbols=SYMBOLS)
    assert list(world.stored(aapl)) == OPENS
    assert len(world.stored(msft)) == len(OPENS) - 10
    assert len(world.stored(aapl, Interval.M5)) == len(OPENS) // 5


def test_the_gap_that_is_left_is_asked_for_when_it_is_due(world: World, instance: dg.DagsterInstance) -> None:
    run(world, instance, **the_week())
    # A day later: the waits after the first attempt are over.
    world.simulator.set_now(datetime(2024, 12, 8, 12, tzinfo=UTC))
    definitions = build_definitions(world.settings, PLAN)
    context = dg.build_sensor_context(
        instance=instance, definitions=definitions, resources={"workbenches": Workbenches(world.settings)}
    )
    said = definitions.resolve_sensor_def("gaps")(context)
    assert isinstance(said, list)
    asked = {
        (request.tags["dagster/asset_partition_range_start"], request.tags["dagster/asset_partition_range_end"]) for request in said
    }
    assert ("2024-12-04|MSFT", "2024-12-04|MSFT") in asked
    assert not any("AAPL" in start for start, _ in asked)


def test_an_instance_that_lost_everything_is_told_by_the_ledger(world: World, instance: dg.DagsterInstance) -> None:
    run(world, instance, **the_week())
    with dg.DagsterInstance.ephemeral() as empty:
        empty.add_dynamic_partitions("symbols", SYMBOLS)
        run(world, empty, "reconcile")
        for interval in (Interval.M1, Interval.M5, Interval.M15, Interval.M30):
            assert shown(empty, interval) == shown(instance, interval)


def test_a_run_leaves_the_heartbeat_of_this_process(world: World, instance: dg.DagsterInstance) -> None:
    result = run(world, instance, **the_week(last="AAPL"))
    with Workbenches(world.settings).open() as workbench:
        (heartbeat,) = workbench.heartbeats()
        assert heartbeat.run_id == result.run_id
        workbench.forget_heartbeat(heartbeat.run_id)
        assert workbench.heartbeats() == []


def test_a_running_session_is_swept_into_the_queue_and_stored_by_a_run_without_an_event(
    world: World, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    world.simulator.set_now(datetime(2024, 12, 6, 15, 0, tzinfo=UTC))
    definitions, resources = build_definitions(world.settings, PLAN), {"workbenches": Workbenches(world.settings)}
    with sqlite_instance(tmp_path / "dagster", BATCHED) as on_files:
        at = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
        context = dg.build_schedule_context(instance=on_files, scheduled_execution_time=at, resources=resources)
        said: Any = definitions.resolve_schedule_def("sweep")(context)
    assert said.skip_message == "1 jobs queued; 0 are queued or under way already"
    sensed: Any = definitions.resolve_sensor_def("jobs")(
        dg.build_sensor_context(instance=instance, definitions=definitions, resources=resources)
    )
    (request,) = sensed.run_requests
    result = run(world, instance, "work_jobs", **request.tags)
    [aapl] = world.pipeline.universe.instruments(symbols=["AAPL"])
    # Half an hour after the open, less what has not settled.
    assert result.success
    assert 25 <= len(world.stored(aapl)) <= 30
    assert len(world.stored(aapl, Interval.M5)) == 5
    assert shown(instance, Interval.M1) == dict.fromkeys(SYMBOLS, 0)
    (job,) = world.pipeline.jobs.jobs(limit=9)
    # Nobody knows GHOST; the others of its job are none the worse for it.
    assert (job.state, list((job.result or {})["failed"])) == (JobState.DONE, ["GHOST"])


def test_a_symbol_that_nobody_knows_is_not_swept_all_day(world: World) -> None:
    ghost = world.pipeline.universe.instrument("GHOST")
    for minute in range(0, 60, 10):
        world.simulator.set_now(datetime(2024, 12, 6, 15, minute, tzinfo=UTC))
        with Workbenches(world.settings).open() as workbench:
            held = workbench.instruments(active_only=True)
            jobs = sweep(
                held, workbench.calendar, {Tier.T0: 60}, now=workbench.now(), tick=workbench.now(), failing=workbench.failing
            )
            world.pipeline.jobs.submit([as_new_job(job, source="test") for job in jobs])
            leases = world.pipeline.jobs.lease(f"at {minute}", tier=Tier.T0, limit=9)
            assert [ended.state for ended in workbench.work_off(leases, run_id="test")] == [JobState.DONE]
    asked = [request for request in world.simulator.requests() if "GHOST" in str(request)]
    assert len(asked) == 3
    assert world.stored(ghost) == {}
    # The others went on.
    assert len(world.stored(world.pipeline.universe.instrument("AAPL"))) >= 75


def test_the_jobs_that_complete_a_finished_week_materialise_it(world: World, instance: dg.DagsterInstance) -> None:
    start, end = datetime(2024, 12, 2, tzinfo=UTC), datetime(2024, 12, 7, tzinfo=UTC)
    job = BackfillJob(job_id="week", priority=Tier.T1, symbol="AAPL", interval=Interval.M1, start=start, end=end)
    world.pipeline.jobs.submit([as_new_job(job, source="test")])
    (lease,) = world.pipeline.jobs.lease("batch", tier=Tier.T1, limit=9)
    assert run(world, instance, "work_jobs", **{"mdp/batch": "batch"}).success
    assert world.pipeline.jobs.heartbeat([lease]) == frozenset()
    for interval in (Interval.M1, Interval.M5, Interval.M15, Interval.M30):
        assert shown(instance, interval) == {"AAPL": 5, "GHOST": 0, "MSFT": 0}


def test_a_session_that_is_due_for_it_is_asked_again_by_one_run_and_is_final(world: World, instance: dg.DagsterInstance) -> None:
    # Half an hour after Friday's close: what came is not settled yet.
    world.simulator.set_now(datetime(2024, 12, 6, 21, 10, tzinfo=UTC))
    run(world, instance, **the_week(last="AAPL"))
    world.simulator.set_now(datetime(2024, 12, 11, 12, 0, tzinfo=UTC))
    world.simulator.forget_requests()
    definitions, resources = build_definitions(world.settings, PLAN), {"workbenches": Workbenches(world.settings)}
    context = dg.build_sensor_context(instance=instance, definitions=definitions, resources=resources)
    said: Any = definitions.resolve_sensor_def("gaps")(context)
    again = [request for request in said if request.tags["mdp/cause"] == "recheck" and request.job_name == "candles_1m"]
    assert again
    for request in again:
        job = definitions.resolve_job_def("candles_1m")
        assert job.execute_in_process(
            instance=instance, tags=request.tags, run_config=request.run_config, resources=resources
        ).success
    with world.pipeline.engine.connect() as connection:
        left = connection.exec_driver_sql(
            "select count(*) from coverage where interval_s = 60 and recheck_at is not null"
        ).scalar_one()
    assert (left, world.count("candle_revisions")) == (0, 0)
    assert world.simulator.requests() != []


_WORKER = """
import sys
import dagster as dg
from market_data_pipeline.definitions import defs
tags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
with dg.DagsterInstance.get() as instance:
    defs().resolve_job_def("candles_1m").execute_in_process(instance=instance, tags=tags)
"""


def test_a_run_whose_process_was_killed_is_ended_by_the_janitor_and_done_by_the_next(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "dagster"
    with sqlite_instance(home, BATCHED) as instance:
        instance.add_dynamic_partitions("symbols", SYMBOLS)
        world.simulator.set_faults([{"match": {"symbol": "MSFT"}, "action": "stall", "seconds": 60}])
        for name, value in environment_of(world).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("DAGSTER_HOME", str(home))
        arguments = [part for tag in the_week().items() for part in tag]
        worker = subprocess.Popen([sys.executable, "-c", _WORKER, *arguments], stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: "MSFT" in str(world.simulator.requests()))
        finally:
            worker.kill()
            worker.wait()
        world.simulator.set_faults([])
        (run_,) = instance.get_runs()
        assert run_.status is dg.DagsterRunStatus.STARTED
        janitor = build_definitions(world.settings, PLAN).resolve_sensor_def("janitor")
        janitor(dg.build_sensor_context(instance=instance, resources={"workbenches": Workbenches(world.settings)}))
        ended = instance.get_run_by_id(run_.run_id)
        assert ended is not None
        assert ended.status is dg.DagsterRunStatus.FAILURE
        run(world, instance, **the_week())
        assert shown(instance, Interval.M1) == {"AAPL": 5, "GHOST": 0, "MSFT": 5}
        [aapl] = world.pipeline.universe.instruments(symbols=["AAPL"])
        assert (list(world.stored(aapl)), world.count("candle_revisions")) == (OPENS, 0)


def environment_of(world: World) -> dict[str, str]:
    assert world.settings.database_url is not None
    return {
        "MDP_HOME": str(world.settings.home),
        "MDP_DATABASE_URL": world.settings.database_url.get_secret_value(),
        "MDP_CLOCK": world.settings.clock,
        "MDP_YAHOO_BASE_URL": world.settings.yahoo_base_url,
        "MDP_HTTP_TIMEOUT_SECONDS": "30",
    }


def wait_until(holds: Callable[[], bool]) -> None:
    pause = threading.Event()
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "it did not come to pass within a minute"
        pause.wait(0.05)
