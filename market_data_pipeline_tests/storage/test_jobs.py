"""The job queue against a real Postgres: in, out, ended, lost, given back, and everything at its limits."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest

from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.jobs import as_new_job, parse_job
from market_data_pipeline.domain.queue import JobKind, JobState, QueuePolicy
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.storage.jobs import JobQueue

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from market_data_pipeline.domain.queue import Lease, NewJob

EVERYWHERE = 1_000_000
FAST = MappingProxyType(dict.fromkeys(Tier, 1e6))
POLICY = QueuePolicy(dispatch_per_second=FAST, retry_seconds=0.0)
AGO = timedelta(seconds=1)


def backfill(number: int, tier: Tier = Tier.T0, **fields: Any) -> NewJob:  # noqa: ANN401 - fields of the job
    """A valid job that does something else for each number."""
    day = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=number % 300)
    given = {
        "type": "backfill",
        "job_id": f"j-{number}",
        "priority": str(tier),
        "symbol": f"S{number // 300}",
        "interval": "1m",
        "start": day.isoformat(),
        "end": (day + timedelta(days=1)).isoformat(),
    }
    return as_new_job(parse_job(given | fields), source="test")


def pass_time(engine: Engine, seconds: float) -> None:
    """As if so much time had gone by for every job and bucket."""
    with engine.begin() as connection:
        gone = {"gone": timedelta(seconds=seconds)}
        connection.exec_driver_sql("update jobs set leased_until = leased_until - %(gone)s, ready_at = ready_at - %(gone)s", gone)
        connection.exec_driver_sql("update job_dispatch set filled_at = filled_at - %(gone)s", gone)


def state_of(queue: JobQueue, job_id: str) -> JobState:
    """The state it is in now."""
    job = queue.job(job_id)
    assert job is not None
    return job.state


def only(leases: list[Lease]) -> Lease:
    """The one lease."""
    assert len(leases) == 1
    return leases[0]


@pytest.fixture
def queue(engine: Engine) -> JobQueue:
    """A queue that is never slow and retries at once."""
    return JobQueue(engine, POLICY)


# --- in ----------------------------------------------------------------------------------------------------------------


def test_what_is_submitted_is_leased_with_its_payload_and_ends_done(queue: JobQueue) -> None:
    job = backfill(1)
    assert queue.submit([job]).accepted == 1
    lease = only(queue.lease("w", tier=Tier.T0, limit=10))
    assert (lease.job_id, lease.kind, lease.tier, lease.attempts) == ("j-1", JobKind.BACKFILL, Tier.T0, 1)
    assert lease.payload == job.payload
    assert queue.complete(lease, result={"rows": 390})
    done = queue.job("j-1")
    assert done is not None
    assert (done.state, done.result, done.leased_by) == (JobState.DONE, {"rows": 390}, None)


def test_the_same_id_is_a_duplicate_for_ever_and_the_same_work_while_it_is_open(queue: JobQueue) -> None:
    job = backfill(1)
    same_work = replace(job, job_id="other")
    queue.submit([job])
    assert queue.submit([job, same_work]).duplicates == 2
    queue.complete(only(queue.lease("w", tier=Tier.T0, limit=1)))
    report = queue.submit([job, same_work])
    assert (report.accepted, report.duplicates) == (1, 1)


def test_at_the_cap_what_is_turned_away_is_named_and_duplicates_take_no_room(engine: Engine) -> None:
    queue = JobQueue(engine, replace(POLICY, caps={Tier.T0: 3, Tier.T1: 1, Tier.T2: 0}))
    report = queue.submit(
        [backfill(1), backfill(1), backfill(2), backfill(3), backfill(4), backfill(5, Tier.T1), backfill(6, Tier.T2)]
    )
    assert (report.accepted, report.duplicates, set(report.turned_away)) == (4, 1, {"j-4", "j-6"})
    assert "full" in report.turned_away["j-4"]
    queue.lease("w", tier=Tier.T0, limit=1)
    assert queue.submit([backfill(4), backfill(7)]).turned_away.keys() == {"j-7"}


def test_three_thousand_at_once_are_accepted_in_their_order(queue: JobQueue) -> None:
    report = queue.submit([backfill(n) for n in range(3_000)])
    assert (report.accepted, report.duplicates, report.turned_away) == (3_000, 0, {})
    assert [lease.job_id for lease in queue.lease("w", tier=Tier.T0, limit=2_500)] == [f"j-{n}" for n in range(2_500)]


def test_what_no_column_can_hold_is_refused_by_name_before_anything_is_stored(queue: JobQueue) -> None:
    for payload in ({"symbol": "A\0B"}, {"symbol": "\ud800"}, {"symbol": object()}):
        with pytest.raises(InvalidInputError, match="job j-2"):
            queue.submit([backfill(1), replace(backfill(2), payload=payload)])
    assert queue.job("j-1") is None
    with pytest.raises(InvalidInputError, match="no job id"):
        replace(backfill(1), job_id="refused/1")


# --- out ---------------------------------------------------------------------------------------------------------------


def test_higher_priority_goes_first_then_the_older_and_nothing_before_its_time(queue: JobQueue, engine: Engine) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    jobs = [backfill(1), backfill(2), replace(backfill(3), priority=5), replace(backfill(4), priority=9, ready_at=later)]
    queue.submit(jobs)
    assert [lease.job_id for lease in queue.lease("w", tier=Tier.T0, limit=10)] == ["j-3", "j-1", "j-2"]
    pass_time(engine, 3700)
    assert "j-4" in [lease.job_id for lease in queue.lease("w", tier=Tier.T0, limit=10)]


def test_only_the_kinds_that_are_asked_for_are_leased(queue: JobQueue) -> None:
    quotes = {"type": "quotes_fetch", "job_id": "q-1", "priority": "T0", "symbols": ["AAPL"]}
    queue.submit([backfill(1), as_new_job(parse_job(quotes), source="test")])
    assert only(queue.lease("w", tier=Tier.T0, limit=9, kinds=[JobKind.BACKFILL])).job_id == "j-1"
    assert only(queue.lease("w", tier=Tier.T0, limit=9, kinds=[JobKind.QUOTES_FETCH])).job_id == "q-1"


def test_a_tier_gives_out_its_burst_and_then_its_rate(engine: Engine) -> None:
    queue = JobQueue(engine, replace(POLICY, dispatch_per_second={Tier.T0: 0.01, Tier.T1: 0.0, Tier.T2: 0.001}, burst_seconds=500))
    queue.submit([backfill(n) for n in range(20)] + [backfill(n, Tier.T2) for n in range(20, 25)])
    first = queue.lease("w", tier=Tier.T0, limit=100)
    assert len(queue.complete_all(first)) == 5
    assert queue.lease("w", tier=Tier.T0, limit=100) == []
    queue.submit([backfill(30, Tier.T1)])
    assert queue.lease("w", tier=Tier.T1, limit=100) == []
    assert len(queue.lease("w", tier=Tier.T2, limit=100)) == 1, "a rate too low for one in a burst still gives one"
    pass_time(engine, 310)
    assert len(queue.lease("w", tier=Tier.T0, limit=100)) == 3


# --- lost --------------------------------------------------------------------------------------------------------------


def test_a_lapsed_lease_returns_the_job_and_its_old_holder_can_do_nothing(queue: JobQueue, engine: Engine) -> None:
    queue.submit([backfill(1)])
    old = only(queue.lease("slow", tier=Tier.T0, limit=1))
    pass_time(engine, 121)
    new = only(queue.lease("quick", tier=Tier.T0, limit=1))
    assert new.attempts == 2
    assert new.token != old.token
    assert queue.heartbeat([old]) == frozenset()
    assert not queue.complete(old)
    assert queue.fail(old, "too late") is JobState.LEASED
    assert queue.fail(old, "too late", is_final=True) is JobState.LEASED
    assert queue.release([old]) == 0
    assert queue.complete(new)


def test_heartbeats_keep_a_lease_for_as_long_as_they_come(queue: JobQueue, engine: Engine) -> None:
    queue.submit([backfill(1)])
    lease = only(queue.lease("w", tier=Tier.T0, limit=1))
    for _ in range(5):
        pass_time(engine, 100)
        assert queue.heartbeat([lease]) == {"j-1"}
    assert queue.lease("other", tier=Tier.T0, limit=1) == []


def test_a_lease_that_ran_out_but_was_not_taken_is_still_good(queue: JobQueue, engine: Engine) -> None:
    queue.submit([backfill(1)])
    lease = only(queue.lease("w", tier=Tier.T0, limit=1))
    pass_time(engine, 500)
    assert queue.complete(lease)


def test_an_effect_and_the_end_of_the_job_happen_both_or_not_at_all(queue: JobQueue, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("create table effects (job_id text primary key)")
    queue.submit([backfill(1)])
    lease = only(queue.lease("w", tier=Tier.T0, limit=1))
    put = "insert into effects values (%s)"

    def broken(cursor: Any) -> None:  # noqa: ANN401 - a driver's cursor
        cursor.execute(put, ["j-1"])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        queue.complete(lease, effect=broken)
    assert state_of(queue, "j-1") is JobState.LEASED
    assert queue.complete(lease, effect=lambda cursor: cursor.execute(put, ["j-1"]))
    assert not queue.complete(lease, effect=lambda cursor: cursor.execute(put, ["j-1"]))
    with engine.connect() as connection:
        assert connection.exec_driver_sql("select count(*) from effects").scalar_one() == 1


def test_a_job_that_is_being_completed_is_held_and_nobody_waits_for_it(queue: JobQueue, engine: Engine) -> None:
    queue.submit([backfill(1), backfill(2)])
    first, second = queue.lease("w", tier=Tier.T0, limit=2)
    seen: list[object] = []

    def long_effect(_cursor: object) -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql("update jobs set leased_until = leased_until - interval '500 s' where job_id = 'j-2'")
        seen.append(queue.heartbeat([first, second]))
        seen.append(queue.lease("other", tier=Tier.T0, limit=5))

    assert queue.complete(first, effect=long_effect)
    assert seen == [{"j-1", "j-2"}, []]


# --- failed ------------------------------------------------------------------------------------------------------------


def test_a_failed_job_waits_longer_each_time_and_is_dead_after_its_last_attempt(engine: Engine) -> None:
    queue = JobQueue(engine, replace(POLICY, retry_seconds=15.0, most_attempts=3))
    queue.submit([backfill(1)])
    for wait in (15, 30):
        lease = only(queue.lease("w", tier=Tier.T0, limit=1))
        assert queue.fail(lease, "HTTP 503") is JobState.QUEUED
        pass_time(engine, wait - 1)
        assert queue.lease("w", tier=Tier.T0, limit=1) == []
        pass_time(engine, 1)
    assert queue.fail(only(queue.lease("w", tier=Tier.T0, limit=1)), "HTTP 503\0") is JobState.DEAD
    dead = queue.job("j-1")
    assert dead is not None
    assert dead.reason == "HTTP 503\N{REPLACEMENT CHARACTER}"


def test_a_final_failure_is_dead_at_once(queue: JobQueue) -> None:
    queue.submit([backfill(1)])
    assert queue.fail(only(queue.lease("w", tier=Tier.T0, limit=1)), "no such symbol", is_final=True) is JobState.DEAD


def test_what_is_released_has_not_been_tried(queue: JobQueue) -> None:
    queue.submit([backfill(1), backfill(2, Tier.T1)])
    leases = queue.lease("w", tier=Tier.T0, limit=1) + queue.lease("w", tier=Tier.T1, limit=1)
    assert queue.release(leases) == 2
    assert queue.release(leases) == 0
    assert only(queue.lease("w", tier=Tier.T0, limit=1)).attempts == 1


def test_poison_dies_alone_and_those_that_shared_its_batches_end(engine: Engine) -> None:
    queue = JobQueue(engine, POLICY)
    queue.submit([backfill(n) for n in range(64)])
    rounds = 0
    while any(depth.state is not JobState.DEAD for depth in queue.depth()):
        leases = queue.lease(f"w-{rounds}", tier=Tier.T0, limit=64)
        rounds += 1
        if any(lease.job_id == "j-17" for lease in leases):
            pass_time(engine, 121)  # the worker is killed by it, before it has ended any
        else:
            assert len(queue.complete_all(leases)) == len(leases)
        assert rounds < 100
    dead = queue.jobs(state=JobState.DEAD, limit=100)
    assert [job.job_id for job in dead] == ["j-17"]
    assert dead[0].reason is not None
    assert dead[0].reason.startswith("given out 5 times and not ended: w-")
    assert len(queue.jobs(state=JobState.DONE, limit=100)) == 63


# --- asked and kept in order -------------------------------------------------------------------------------------------


def test_the_depth_counts_what_is_open_and_dead_by_tier_and_kind(queue: JobQueue) -> None:
    queue.submit([backfill(n) for n in range(5)] + [backfill(9, Tier.T2)])
    first, second, _ = queue.lease("w", tier=Tier.T0, limit=3)
    queue.complete(first)
    queue.fail(second, "broken", is_final=True)
    told = {(depth.tier, depth.kind, depth.state): depth.jobs for depth in queue.depth()}
    assert told == {
        (Tier.T0, JobKind.BACKFILL, JobState.QUEUED): 2,
        (Tier.T0, JobKind.BACKFILL, JobState.LEASED): 1,
        (Tier.T0, JobKind.BACKFILL, JobState.DEAD): 1,
        (Tier.T2, JobKind.BACKFILL, JobState.QUEUED): 1,
    }
    assert all(0 <= depth.oldest_seconds < 3600 for depth in queue.depth())


def test_done_jobs_are_forgotten_when_they_are_old_and_no_others(queue: JobQueue) -> None:
    queue.submit([backfill(n) for n in range(3)])
    first, second, _ = queue.lease("w", tier=Tier.T0, limit=3)
    queue.complete(first)
    queue.fail(second, "broken", is_final=True)
    assert queue.prune_done(timedelta(days=1)) == 0
    assert queue.prune_done(timedelta(0)) == 1
    assert {job.job_id for job in queue.jobs(limit=9)} == {"j-1", "j-2"}


def test_a_number_made_wrong_by_hand_is_counted_again(queue: JobQueue, engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    queue.submit([backfill(n) for n in range(4)])
    assert queue.recount() == ()
    with engine.begin() as connection:
        connection.exec_driver_sql("delete from jobs where job_id in ('j-0', 'j-1')")
    assert queue.recount() == (Tier.T0,)
    assert queue.recount() == ()
    with engine.begin() as connection:
        connection.exec_driver_sql("delete from jobs where job_id = 'j-2'")
    with caplog.at_level("WARNING"):
        queue.prune_done(timedelta(days=1))
    assert "queued jobs of T0 was wrong" in caplog.text
    assert queue.recount() == ()
