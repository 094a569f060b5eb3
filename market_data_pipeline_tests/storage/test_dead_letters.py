"""The dead letters of the queue: seen, tried again once, deleted, purged, counted, and every step of it in the audit log."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import orjson
import psycopg2
import pytest
from sqlalchemy.exc import DBAPIError

from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.jobs import MOST_BYTES
from market_data_pipeline.domain.queue import DeadLetterFilter, JobState
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.storage.audit import AuditLog
from market_data_pipeline.storage.jobs import JobQueue
from market_data_pipeline_tests.storage.test_jobs import POLICY, backfill, only, state_of

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from market_data_pipeline.domain.queue import NewJob

ANNA = "anna"


@pytest.fixture
def queue(engine: Engine) -> JobQueue:
    """A queue that is never slow and retries at once."""
    return JobQueue(engine, POLICY)


def bury(queue: JobQueue, *jobs: NewJob) -> None:
    """Make dead letters of ``jobs``."""
    queue.submit(jobs)
    for tier in Tier:
        for lease in queue.lease("w", tier=tier, limit=1000):
            assert queue.fail(lease, "no such symbol", is_final=True) is JobState.DEAD


def age(engine: Engine, days: float) -> None:
    """As if everything had died so long ago."""
    with engine.begin() as connection:
        connection.exec_driver_sql("update jobs set ended_at = ended_at - %s", (timedelta(days=days),))
        connection.exec_driver_sql("update refused_jobs set refused_at = refused_at - %s", (timedelta(days=days),))


def test_requeueing_twice_requeues_once_and_all_attempts_are_given_again(queue: JobQueue) -> None:
    bury(queue, backfill(1))
    assert queue.requeue("j-1", actor=ANNA).requeued == ("j-1",)
    again = queue.requeue("j-1", actor=ANNA)
    assert (again.requeued, again.left) == ((), {"j-1": "is queued already"})
    lease = only(queue.lease("w", tier=Tier.T0, limit=9))
    assert lease.attempts == 1
    assert queue.complete(lease)
    assert queue.requeue("j-1", actor=ANNA).left == {"j-1": "is done already"}
    done = queue.job("j-1")
    assert done is not None
    assert done.replays == 1


def test_a_payload_that_is_refused_is_a_dead_letter_once_and_can_be_tried_again(queue: JobQueue, engine: Engine) -> None:
    number = queue.refuse("file", '{"type": "backfil"}', "type: no kind of job")
    assert queue.refuse("file", b'{"type": "backfil"}', "type: no kind of job") == number
    assert queue.refuse("rlc", '{"type": "backfil"}', "type: no kind of job") != number
    name = f"refused/{number}"
    report = queue.requeue(name, actor=ANNA)
    assert "did you mean 'backfill'?" in report.left[name]
    # As if a newer release understood what this one does not.
    with engine.begin() as connection:
        text = orjson.dumps(backfill(7).payload).decode()
        connection.exec_driver_sql("update refused_jobs set payload = %s where refused_id = %s", (text, number))
    assert queue.requeue(name, actor=ANNA).requeued == (name,)
    assert state_of(queue, "j-7") is JobState.QUEUED
    assert "requeued or deleted before" in queue.requeue(name, actor=ANNA).left[name]


def test_what_no_text_column_can_hold_and_what_is_too_long_for_a_job_is_kept_as_far_as_possible(queue: JobQueue) -> None:
    queue.refuse("rlc", b"\0\xff\xfe", "not UTF-8")
    queue.refuse("rlc", "\ud800", "not JSON")
    number = queue.refuse("rlc", "x" * (MOST_BYTES + 1), "too long")
    letter = queue.dead_letter(f"refused/{number}")
    assert letter is not None
    assert (len(letter.payload), letter.payload_bytes) == (MOST_BYTES, MOST_BYTES + 1)
    assert "only the first 1,048,576 were kept" in queue.requeue(letter.letter_id, actor=ANNA).left[letter.letter_id]
    assert len(queue.dead_letters(limit=10)) == 3


def test_requeue_all_takes_the_oldest_of_those_that_are_meant_within_the_limit(queue: JobQueue, engine: Engine) -> None:
    bury(queue, *(backfill(n) for n in range(4)), backfill(5, Tier.T1), backfill(6, interval="5m"))
    age(engine, 1)
    queue.refuse("file", "[]", "not a job")
    planned = queue.requeue_all(tier=Tier.T0, interval="1m", limit=3, actor=ANNA, is_dry_run=True)
    assert planned.requeued == ("j-0", "j-1", "j-2")
    assert len(queue.dead_letters(limit=99)) == 7, "a dry run changes nothing"
    assert queue.requeue_all(tier=Tier.T0, interval="1m", limit=3, actor=ANNA) == planned
    assert queue.requeue_all(tier=Tier.T0, interval="1m", limit=3, actor=ANNA).requeued == ("j-3",)
    rest = queue.requeue_all(tier=None, limit=100, actor=ANNA)
    assert (set(rest.requeued), set(rest.left)) == ({"j-5", "j-6"}, {"refused/1"})
    for limit in (0, 10_001):
        with pytest.raises(InvalidInputError, match="expected 1 to 10,000"):
            queue.requeue_all(tier=None, limit=limit, actor=ANNA)


def test_a_dead_letter_whose_work_is_open_already_is_left_and_so_is_one_for_which_there_is_no_room(engine: Engine) -> None:
    queue = JobQueue(engine, replace(POLICY, caps={Tier.T0: 2, Tier.T1: 0, Tier.T2: 0}))
    bury(queue, backfill(1), backfill(2))
    queue.submit([replace(backfill(1), job_id="other")])
    left = queue.requeue("j-1", actor=ANNA).left
    assert left == {"j-1": "another job that does the same is open"}
    queue.submit([backfill(3)])
    assert "the queue of T0 is full" in queue.requeue("j-2", actor=ANNA).left["j-2"]


def test_a_dead_job_that_an_older_release_wrote_is_judged_by_the_rules_of_today(queue: JobQueue, engine: Engine) -> None:
    bury(queue, backfill(1))
    with engine.begin() as connection:
        connection.exec_driver_sql("""update jobs set payload = payload || '{"interval": "2m"}'""")
    left = queue.requeue("j-1", actor=ANNA).left
    assert "'2m' is not an interval" in left["j-1"]
    assert state_of(queue, "j-1") is JobState.DEAD


def test_only_dead_letters_can_be_deleted(queue: JobQueue) -> None:
    bury(queue, backfill(1))
    queue.submit([backfill(2)])
    number = queue.refuse("file", "[]", "not a job")
    assert queue.delete("j-1", actor=ANNA).reason == "no such symbol"
    assert queue.delete(f"refused/{number}", actor=ANNA).payload == "[]"
    for name, why in (("j-1", "no dead letter and no job"), ("j-2", "is queued already"), ("refused/1", "deleted before")):
        with pytest.raises(InvalidInputError, match=why):
            queue.delete(name, actor=ANNA)
    assert state_of(queue, "j-2") is JobState.QUEUED


def test_a_lease_of_a_job_that_was_deleted_is_worth_nothing_in_the_next_life_of_its_id(queue: JobQueue) -> None:
    queue.submit([backfill(1)])
    old = only(queue.lease("zombie", tier=Tier.T0, limit=1))
    queue.fail(old, "no such symbol", is_final=True)
    queue.delete("j-1", actor=ANNA)
    queue.submit([backfill(1)])
    new = only(queue.lease("w", tier=Tier.T0, limit=1))
    assert new.attempts == old.attempts
    assert not queue.complete(old)
    assert queue.complete(new)


def test_purging_forgets_what_is_older_and_meant_and_nothing_else(queue: JobQueue, engine: Engine) -> None:
    bury(queue, backfill(1), backfill(2, Tier.T1))
    queue.refuse("file", "[]", "not a job")
    age(engine, 40)
    bury(queue, backfill(3))
    queue.submit([backfill(4)])
    month = timedelta(days=30)
    meant = DeadLetterFilter(tier=Tier.T1)
    assert queue.purge(older_than=month, actor=ANNA, meant=meant, is_dry_run=True) == ("j-2",)
    assert queue.purge(older_than=month, actor=ANNA, meant=meant) == ("j-2",)
    assert set(queue.purge(older_than=month, actor=ANNA)) == {"j-1", "refused/1"}
    assert {letter.letter_id for letter in queue.dead_letters(limit=9)} == {"j-3"}
    assert state_of(queue, "j-4") is JobState.QUEUED


def test_dead_letters_are_counted_by_tier_kind_and_interval(queue: JobQueue) -> None:
    bury(queue, backfill(1), backfill(2), backfill(3, Tier.T1, interval="1d"))
    queue.requeue("j-1", actor=ANNA)
    bury(queue)
    queue.refuse("file", "[]", "not a job")
    told = {(one.tier, one.kind, one.interval): (one.letters, one.replayed) for one in queue.dead_statistics()}
    assert told == {
        (Tier.T0, "backfill", "1m"): (2, 1),
        (Tier.T1, "backfill", "1d"): (1, 0),
        (None, "refused", None): (1, 0),
    }


def test_every_action_is_in_the_log_with_who_did_it_and_nobody_can_rewrite_it(queue: JobQueue, engine: Engine) -> None:
    bury(queue, *(backfill(n) for n in range(4)))
    queue.requeue("j-0", actor=ANNA)
    queue.requeue("j-0", actor="boris")
    queue.requeue_all(tier=Tier.T0, limit=1, actor=ANNA)
    queue.delete("j-2", actor=ANNA)
    queue.purge(older_than=timedelta(0), actor=ANNA)
    queue.requeue_all(tier=None, limit=5, actor=ANNA, is_dry_run=True)
    told = [(entry.actor, entry.action, entry.subject) for entry in reversed(AuditLog(engine).entries(99))]
    assert told == [
        (ANNA, "dlq.requeue", "j-0"),
        ("boris", "dlq.requeue", "j-0"),
        (ANNA, "dlq.requeue_all", "tier=T0"),
        (ANNA, "dlq.delete", "j-2"),
        (ANNA, "dlq.purge", "all"),
    ]
    assert AuditLog(engine).entries(1, action="dlq")[0].detail["purged"] == {"count": 1, "first": ["j-3"]}
    assert AuditLog(engine).entries(9, action="dl") == []
    for statement in ("delete from audit_log", "update audit_log set actor = 'nobody'", "truncate audit_log"):
        with pytest.raises(DBAPIError) as refused, engine.begin() as connection:
            connection.exec_driver_sql(statement)
        assert isinstance(refused.value.orig, psycopg2.errors.RaiseException)
