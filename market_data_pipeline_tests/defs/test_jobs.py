"""Queued jobs in Dagster: swept, leased within bounds, carried out in runs, and ended exactly once. The queue is the real one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.defs.build import build_definitions
from market_data_pipeline.defs.jobs import HISTORY, JOBS_A_RUN, LIVE, PARTS, lease_batches
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.coverage import Verdict
from market_data_pipeline.domain.jobs import BackfillJob, BarsFetchJob, as_new_job
from market_data_pipeline.domain.partitions import default_plan
from market_data_pipeline.domain.queue import JobKind, JobState, Lease, QueuePolicy
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.ingest.jobs import JobOutcome
from market_data_pipeline.ingest.report import Stretch, StretchReport
from market_data_pipeline.settings import Settings
from market_data_pipeline.storage.jobs import JobQueue
from market_data_pipeline_tests.defs.fakes import FakeWorkbench, beat, instrument, ledger_row, universe
from market_data_pipeline_tests.defs.instances import STOCK, sqlite_instance

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from sqlalchemy import Engine

PLAN = default_plan()
OPEN = datetime(2024, 3, 7, 15, 0, tzinfo=UTC)
THURSDAY = date(2024, 3, 7)
MINUTES = dg.AssetKey(["candles", "1m"])


@pytest.fixture
def queue(engine: Engine) -> JobQueue:
    return JobQueue(engine, Settings().queue_policy)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as opened:
        opened.add_dynamic_partitions("symbols", ["AAPL", "IBM"])
        yield opened


def live(name: str, *, tier: Tier = Tier.T0, symbols: tuple[str, ...] = ("AAPL",)) -> BarsFetchJob:
    opens = datetime(2024, 3, 7, 14, 30, tzinfo=UTC)
    # Each its own second, or it would be the same job.
    begin = opens + timedelta(seconds=sum(map(ord, name)))
    return BarsFetchJob(job_id=name, priority=tier, symbols=symbols, interval=Interval.M1, start=begin, end=opens.replace(hour=21))


def history(name: str, *, tier: Tier = Tier.T0) -> BackfillJob:
    begin = datetime(2024, 3, 4, 14, 30, sum(map(ord, name)) % 60, tzinfo=UTC)
    return BackfillJob(job_id=name, priority=tier, symbol="AAPL", interval=Interval.M1, start=begin, end=begin + timedelta(days=2))


def submit(queue: JobQueue, *jobs: BarsFetchJob | BackfillJob) -> None:
    report = queue.submit([as_new_job(job, source="test") for job in jobs])
    assert report.accepted == len(jobs)


# --- the sweep


@pytest.fixture(scope="module")
def on_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    # The context of a schedule's tick takes no ephemeral instance.
    with sqlite_instance(tmp_path_factory.mktemp("dagster") / "home", STOCK) as opened:
        yield opened


def swept(workbench: FakeWorkbench, instance: dg.DagsterInstance, at: datetime) -> str:
    schedule = build_definitions(Settings(), PLAN, workbenches=workbench).resolve_schedule_def("sweep")
    context = dg.build_schedule_context(instance=instance, scheduled_execution_time=at, resources={"workbenches": workbench})
    said: Any = schedule(context)
    assert isinstance(said, dg.SkipReason)
    return str(said.skip_message)


def test_the_sweep_queues_the_minutes_of_what_trades_now(queue: JobQueue, on_files: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(universe("AAPL", "IBM"), virtual=False, jobs=queue)
    assert swept(workbench, on_files, OPEN) == "1 jobs queued; 0 are queued or under way already"
    (record,) = queue.jobs(limit=9)
    assert (record.kind, record.tier, record.source) == (JobKind.BARS_FETCH, Tier.T0, "sweep")
    assert record.payload["symbols"] == ["AAPL", "IBM"]


def test_a_late_sweep_does_not_pile_up(queue: JobQueue, on_files: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(universe("AAPL"), virtual=False, jobs=queue)
    swept(workbench, on_files, OPEN)
    assert swept(workbench, on_files, OPEN + timedelta(minutes=1)).startswith("0 jobs queued; 1 are queued")
    (lease,) = queue.lease("worker", tier=Tier.T0, limit=9)
    assert swept(workbench, on_files, OPEN + timedelta(minutes=2)).startswith("0 jobs queued; 1 are queued")
    queue.complete(lease)
    assert swept(workbench, on_files, OPEN + timedelta(minutes=3)).startswith("1 jobs queued")


def test_while_every_market_is_closed_nothing_is_swept(queue: JobQueue, on_files: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(universe("AAPL"), virtual=False, jobs=queue)
    assert swept(workbench, on_files, OPEN + timedelta(days=2)) == "no market is open for a tier whose turn it is"


def test_on_a_virtual_clock_the_session_is_the_one_that_runs_there(queue: JobQueue, on_files: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(universe("AAPL"), at=OPEN, jobs=queue)
    swept(workbench, on_files, datetime(2026, 11, 21, 12, 0, tzinfo=UTC))
    assert queue.jobs(limit=9)[0].payload["end"] == "2024-03-07T21:00:00Z"


def test_a_full_queue_is_said(engine: Engine, on_files: dg.DagsterInstance) -> None:
    full = JobQueue(engine, replace(Settings().queue_policy, caps=dict.fromkeys(Tier, 0)))
    workbench = FakeWorkbench(universe("AAPL"), virtual=False, jobs=full)
    assert "1 turned away: the queue of T0 is full" in swept(workbench, on_files, OPEN)


# --- the sensor


def tick(workbench: FakeWorkbench, instance: dg.DagsterInstance, cursor: str | None = None, **told: str) -> dg.SensorResult:
    definitions = build_definitions(Settings(**told), PLAN, workbenches=workbench)  # type: ignore[arg-type]
    context = dg.build_sensor_context(
        instance=instance, definitions=definitions, resources={"workbenches": workbench}, cursor=cursor
    )
    said: Any = definitions.resolve_sensor_def("jobs")(context)
    return dg.SensorResult(run_requests=[], cursor=cursor) if isinstance(said, dg.SkipReason) else said


def parts(result: dg.SensorResult) -> list[tuple[str, str]]:
    return [(request.tags["mdp/tier"], request.tags["mdp/part"]) for request in result.run_requests or ()]


def queued(instance: dg.DagsterInstance, request: dg.RunRequest, status: dg.DagsterRunStatus) -> dg.DagsterRun:
    """What the daemon does with a request."""
    job = build_definitions(Settings(), PLAN, workbenches=FakeWorkbench()).resolve_job_def("work_jobs")
    return instance.create_run_for_job(job, status=status, tags=request.tags)


def test_queued_jobs_become_runs_the_best_tier_first_and_what_is_fresh_before_history(
    queue: JobQueue, instance: dg.DagsterInstance
) -> None:
    submit(queue, history("h", tier=Tier.T1), live("a", tier=Tier.T1), live("b"), live("c"))
    result = tick(FakeWorkbench(jobs=queue), instance)
    assert parts(result) == [("T0", "live"), ("T1", "live"), ("T1", "history")]
    first, _, last = result.run_requests or ()
    assert (first.tags["mdp/jobs"], first.tags["dagster/priority"], last.tags["dagster/priority"]) == ("2", "10", "0")
    assert first.run_key == first.tags["mdp/batch"]
    assert [lease.job_id for lease in queue.held(first.tags["mdp/batch"])] == ["b", "c"]


def test_what_is_leased_is_not_asked_for_again(queue: JobQueue, instance: dg.DagsterInstance) -> None:
    submit(queue, live("a"))
    assert len(parts(tick(FakeWorkbench(jobs=queue), instance))) == 1
    assert parts(tick(FakeWorkbench(jobs=queue), instance)) == []


def test_no_more_runs_of_a_tier_are_at_work_than_it_may_have(queue: JobQueue, instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(jobs=queue)
    submit(queue, live("a"))
    (request,) = tick(workbench, instance, queue_concurrency="T0=1,T1=1,T2=1").run_requests or ()
    run = queued(instance, request, dg.DagsterRunStatus.STARTED)
    submit(queue, live("b"))
    assert parts(tick(workbench, instance, queue_concurrency="T0=1,T1=1,T2=1")) == []
    instance.report_run_failed(run)
    assert parts(tick(workbench, instance, queue_concurrency="T0=1,T1=1,T2=1")) == [("T0", "live")]


def test_history_leaves_a_place_for_what_is_fresh(queue: JobQueue, instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(jobs=queue)
    submit(queue, history("h"))
    (request,) = tick(workbench, instance, queue_concurrency="T0=2,T1=1,T2=1").run_requests or ()
    queued(instance, request, dg.DagsterRunStatus.STARTED)
    submit(queue, history("i"))
    assert parts(tick(workbench, instance, queue_concurrency="T0=2,T1=1,T2=1")) == []
    submit(queue, live("a"))
    assert parts(tick(workbench, instance, queue_concurrency="T0=2,T1=1,T2=1")) == [("T0", "live")]


def test_where_a_tier_has_one_place_fresh_jobs_and_history_take_turns(queue: JobQueue, instance: dg.DagsterInstance) -> None:
    workbench, cursor, seen = FakeWorkbench(jobs=queue), None, []
    for n in range(4):
        submit(queue, live(f"a{n}"), *([history("h"), history("i")] if n == 0 else []))
        result = tick(workbench, instance, cursor, queue_concurrency="T0=1,T1=1,T2=1")
        cursor = result.cursor
        seen += parts(result)
    assert [part for _, part in seen] == ["live", "history", "live", "live"]


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED])
def test_the_leases_of_a_run_whose_process_is_not_at_work_yet_do_not_lapse(
    queue: JobQueue, engine: Engine, instance: dg.DagsterInstance, status: dg.DagsterRunStatus
) -> None:
    submit(queue, live("a"))
    workbench = FakeWorkbench(jobs=queue)
    (request,) = tick(workbench, instance).run_requests or ()
    queued(instance, request, status)
    with engine.begin() as connection:
        connection.exec_driver_sql("update jobs set leased_until = clock_timestamp() + interval '1 second'")
    tick(workbench, instance)
    (lease,) = queue.held(request.tags["mdp/batch"])
    assert lease.until - datetime.now(UTC) > timedelta(seconds=60)


def test_the_leases_of_a_run_at_work_are_its_own_to_hold(queue: JobQueue, engine: Engine, instance: dg.DagsterInstance) -> None:
    submit(queue, live("a"))
    workbench = FakeWorkbench(jobs=queue)
    (request,) = tick(workbench, instance).run_requests or ()
    workbench.beats.append(beat(queued(instance, request, dg.DagsterRunStatus.STARTED).run_id))
    with engine.begin() as connection:
        connection.exec_driver_sql("update jobs set leased_until = clock_timestamp() - interval '1 second'")
    # The run's process is gone and its leases have lapsed: the job is another's now.
    (again,) = tick(workbench, instance).run_requests or ()
    assert again.run_key != request.run_key


class _EndlessQueue:
    """A queue in which every tier has every kind, always."""

    def lease(self, worker: str, *, tier: Tier, limit: int, kinds: Collection[JobKind] | None = None) -> list[Lease]:
        assert limit in JOBS_A_RUN.values()
        kind = min(kinds or set(JobKind))
        return [Lease(worker, 1, kind, tier, {}, 1, OPEN)]


@given(
    places=st.fixed_dictionaries({tier: st.integers(0, 5) for tier in Tier}),
    busy=st.lists(st.tuples(st.sampled_from([tier.value for tier in Tier]), st.sampled_from([LIVE, HISTORY])), max_size=9),
    turns=st.dictionaries(st.sampled_from([tier.value for tier in Tier]), st.sampled_from([LIVE, HISTORY])),
)
def test_whatever_is_at_work_a_tier_never_has_more_runs_than_places(
    places: dict[Tier, int], busy: list[tuple[str, str]], turns: dict[str, str]
) -> None:
    batches = lease_batches(_EndlessQueue(), QueuePolicy(concurrency=places), busy, dict(turns))  # type: ignore[arg-type]
    for tier in Tier:
        old = Counter(part for of, part in busy if of == tier)
        new = Counter(batch.part for batch in batches if batch.tier is tier)
        assert new.total() == max(places[tier] - old.total(), 0)
        if places[tier] > 1 and new[HISTORY]:
            assert old[HISTORY] + new[HISTORY] < places[tier]
    assert set(PARTS[LIVE]) | set(PARTS[HISTORY]) == set(JobKind)


# --- the run


def work(workbench: FakeWorkbench, instance: dg.DagsterInstance, batch: str | None = "batch") -> dg.ExecuteInProcessResult:
    job = build_definitions(Settings(), PLAN, workbenches=workbench).resolve_job_def("work_jobs")
    tags = {} if batch is None else {"mdp/batch": batch}
    return job.execute_in_process(instance=instance, tags=tags, raise_on_error=False)


def test_a_run_ends_each_of_its_jobs_by_itself(queue: JobQueue, instance: dg.DagsterInstance) -> None:
    outcomes = {
        "good": lambda lease: JobOutcome(lease, {"inserted": 3}),
        "again": lambda lease: JobOutcome(lease, failure="yahoo: 503"),
        "never": lambda lease: JobOutcome(lease, failure="not in the universe: GHOST", is_final=True),
    }
    submit(queue, *(live(name) for name in outcomes))
    queue.lease("batch", tier=Tier.T0, limit=9)
    workbench = FakeWorkbench(jobs=queue, work=lambda lease: outcomes[lease.job_id](lease))
    assert work(workbench, instance).success
    ended = {record.job_id: (record.state, record.reason, record.result) for record in queue.jobs(limit=9)}
    assert ended == {
        "good": (JobState.DONE, None, {"inserted": 3}),
        "again": (JobState.QUEUED, "yahoo: 503", None),
        "never": (JobState.DEAD, "not in the universe: GHOST", None),
    }
    assert len(workbench.beats) == 1


def test_a_run_of_which_every_job_failed_has_failed(queue: JobQueue, instance: dg.DagsterInstance) -> None:
    submit(queue, live("a"), live("b"))
    queue.lease("batch", tier=Tier.T0, limit=9)
    result = work(FakeWorkbench(jobs=queue, work=lambda lease: JobOutcome(lease, failure="yahoo: 503")), instance)
    assert not result.success
    assert "all 2 jobs failed: yahoo: 503" in str(result.all_events)


def test_a_run_whose_leases_have_lapsed_does_nothing(queue: JobQueue, instance: dg.DagsterInstance) -> None:
    submit(queue, live("a"))
    (lease,) = queue.lease("another", tier=Tier.T0, limit=9)
    assert work(FakeWorkbench(jobs=queue), instance, "batch").success
    assert queue.held("another") == [lease]


def test_a_run_without_a_batch_says_where_batches_come_from(queue: JobQueue, instance: dg.DagsterInstance) -> None:
    result = work(FakeWorkbench(jobs=queue), instance, None)
    assert not result.success
    assert "mdp jobs submit" in str(result.all_events)


def answered(session: date) -> StretchReport:
    return StretchReport(Stretch(instrument("AAPL"), session, session), 390, {Verdict.PRESENT: 390}, inserted=390)


def shown_after(
    queue: JobQueue, instance: dg.DagsterInstance, at: datetime, *, present: int = 390, is_answered: bool = True
) -> set[str]:
    submit(queue, live("a"))
    queue.lease("batch", tier=Tier.T0, limit=9)
    workbench = FakeWorkbench(
        universe("AAPL"),
        at=at,
        jobs=queue,
        rows=[ledger_row(1, THURSDAY, present=present, answered=is_answered)],
        work=lambda lease: JobOutcome(lease, reports=[(Interval.M1, answered(THURSDAY))]),
    )
    assert work(workbench, instance).success
    return set(instance.get_materialized_partitions(MINUTES))


def test_a_finished_session_that_jobs_made_complete_is_materialised(queue: JobQueue, instance: dg.DagsterInstance) -> None:
    assert shown_after(queue, instance, OPEN + timedelta(hours=12)) == {"2024-03-07|AAPL"}
    (event,) = instance.fetch_materializations(MINUTES, limit=9).records
    assert event.asset_materialization is not None
    assert event.asset_materialization.metadata["rows"].value == 390


def test_a_running_session_has_no_event_until_its_close(queue: JobQueue, instance: dg.DagsterInstance) -> None:
    assert shown_after(queue, instance, OPEN, present=30) == set()


def test_a_session_that_nobody_answered_for_is_not_materialised(queue: JobQueue, instance: dg.DagsterInstance) -> None:
    assert shown_after(queue, instance, OPEN + timedelta(hours=12), present=0, is_answered=False) == set()
