"""The laws of the job queue, over any history: no job lost or twice, effects at most once, fences hold, caps and rates hold."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from market_data_pipeline.domain.queue import JobState, QueuePolicy
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.storage.jobs import JobQueue
from market_data_pipeline_tests.storage.test_jobs import FAST, backfill, pass_time

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.engine import Engine

    from market_data_pipeline.domain.queue import Lease

TIERS = st.sampled_from([Tier.T0, Tier.T1])
CAPS = {Tier.T0: 6, Tier.T1: 4, Tier.T2: 0}
POLICY = QueuePolicy(caps=CAPS, dispatch_per_second=FAST, retry_seconds=0.0, most_attempts=3)
JOBS = st.lists(st.tuples(st.integers(0, 11), TIERS, st.sampled_from(["", "again"])), min_size=1, max_size=6)


class _Queue(RuleBasedStateMachine):
    """What may happen to a queue, beside a model of it: who is in which state, and who holds which lease."""

    engine: Engine

    @initialize()
    def begin(self) -> None:
        with self.engine.begin() as connection:
            connection.exec_driver_sql("truncate jobs, refused_jobs")
            connection.exec_driver_sql("update job_dispatch set queued = 0")
            connection.exec_driver_sql("create table if not exists effects (job_id text, life int)")
            connection.exec_driver_sql("truncate effects")
        self.queue = JobQueue(self.engine, POLICY)
        self.state: dict[str, JobState] = {}
        self.tier: dict[str, Tier] = {}
        self.key: dict[str, str] = {}
        self.held: dict[str, Lease] = {}
        self.lost: list[Lease] = []
        self.lives: Counter[str] = Counter()
        self.expected: Counter[str] = Counter()
        self.workers = itertools.count()
        # Something to work on, in the histories without the rule that submits, too.
        self.submit([(number, Tier.T0 if number else Tier.T1, "") for number in range(5)])

    def _open(self) -> set[str]:
        return {self.key[job] for job, state in self.state.items() if state in {JobState.QUEUED, JobState.LEASED}}

    def _queued(self, tier: Tier) -> int:
        return sum(state is JobState.QUEUED and self.tier[job] is tier for job, state in self.state.items())

    @rule(wanted=JOBS)
    def more(self, wanted: list[tuple[int, Tier, str]]) -> None:
        """The same number is the same work; ``again`` is another job that asks for it."""
        self.submit(wanted)

    def submit(self, wanted: list[tuple[int, Tier, str]]) -> None:
        jobs = [replace(backfill(number, tier), job_id=f"j-{number}{again}") for number, tier, again in wanted]
        accepted, duplicates, turned_away = 0, 0, set()
        for job in jobs:
            if job.job_id in self.state or job.dedupe_key in self._open() or job.job_id in turned_away:
                duplicates += 1
            elif self._queued(job.tier) >= CAPS[job.tier]:
                turned_away.add(job.job_id)
            else:
                accepted += 1
                self.state[job.job_id], self.tier[job.job_id], self.key[job.job_id] = JobState.QUEUED, job.tier, job.dedupe_key
                self.lives[job.job_id] += 1
        told = self.queue.submit(jobs)
        assert (told.accepted, told.duplicates, set(told.turned_away)) == (accepted, duplicates, turned_away)

    @rule(tier=TIERS, limit=st.integers(1, 5))
    def lease(self, tier: Tier, limit: int) -> None:
        leases = self.queue.lease(f"w-{next(self.workers)}", tier=tier, limit=limit)
        assert len(leases) <= limit
        assert bool(leases) == (self._queued(tier) > 0)
        for lease in leases:
            assert self.state[lease.job_id] is JobState.QUEUED
            assert self.tier[lease.job_id] is lease.tier is tier
            self.state[lease.job_id] = JobState.LEASED
            self.held[lease.job_id] = lease

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def lapse(self, data: st.DataObject) -> None:
        """Their workers fall silent; others go on beating."""
        silent = data.draw(st.sets(st.sampled_from(sorted(self.held)), min_size=1))
        pass_time(self.engine, 100)
        alive = [lease for job, lease in self.held.items() if job not in silent]
        assert self.queue.heartbeat(alive) == {lease.job_id for lease in alive}
        pass_time(self.engine, 100)
        # Whoever asks next notices, here with no room in its hands.
        for tier in Tier:
            self.queue.lease("nobody", tier=tier, limit=0)
        for job in silent:
            lease = self.held.pop(job)
            self.lost.append(lease)
            self.state[job] = JobState.DEAD if lease.attempts >= POLICY.most_attempts else JobState.QUEUED

    def _effect(self, lease: Lease) -> bool:
        put = "insert into effects values (%s, %s)"
        return self.queue.complete(
            lease, effect=lambda cursor: cursor.execute(put, [lease.job_id, self.lives[lease.job_id]]), result={"n": 1}
        )

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(sorted(self.held)))
        lease = self.held.pop(job)
        assert self._effect(lease)
        self.expected[job] += 1
        self.state[job] = JobState.DONE
        self.lost.append(lease)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), is_final=st.booleans())
    def fail(self, data: st.DataObject, *, is_final: bool) -> None:
        job = data.draw(st.sampled_from(sorted(self.held)))
        lease = self.held.pop(job)
        is_dead = is_final or lease.attempts >= POLICY.most_attempts
        self.state[job] = JobState.DEAD if is_dead else JobState.QUEUED
        assert self.queue.fail(lease, "it broke", is_final=is_final) is self.state[job]
        self.lost.append(lease)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        jobs = data.draw(st.sets(st.sampled_from(sorted(self.held)), min_size=1))
        leases = [self.held.pop(job) for job in sorted(jobs)]
        assert self.queue.release(leases) == len(leases)
        self.state |= dict.fromkeys(jobs, JobState.QUEUED)
        self.lost += leases

    @precondition(lambda self: self.lost)
    @rule(data=st.data(), how=st.sampled_from(["complete", "fail", "release", "beat"]))
    def come_too_late(self, data: st.DataObject, how: str) -> None:
        """Whoever lost a lease, by silence or by ending it, changes nothing."""
        lease = data.draw(st.sampled_from(self.lost))
        if how == "complete":
            assert not self._effect(lease)
        elif how == "fail":
            self.queue.fail(lease, "late", is_final=data.draw(st.booleans()))
        elif how == "release":
            assert self.queue.release([lease]) == 0
        else:
            assert self.queue.heartbeat([lease]) == frozenset()

    @precondition(lambda self: self.state)
    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(sorted(self.state)))
        may = (
            self.state[job] is JobState.DEAD
            and self.key[job] not in self._open()
            and self._queued(self.tier[job]) < CAPS[self.tier[job]]
        )
        told = self.queue.requeue(job, actor="test")
        assert (told.requeued, set(told.left)) == (((job,), set()) if may else ((), {job}))
        if may:
            self.state[job] = JobState.QUEUED

    @precondition(lambda self: JobState.DEAD in self.state.values())
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        """Afterwards the id may be submitted anew, and old leases must not reach into its next life."""
        job = data.draw(st.sampled_from(sorted(job for job, state in self.state.items() if state is JobState.DEAD)))
        self.queue.delete(job, actor="test")
        for known in (self.state, self.tier, self.key):
            del known[job]

    @invariant()
    def every_job_is_in_the_one_state_that_it_should_be_in(self) -> None:
        if hasattr(self, "queue"):
            assert {job.job_id: job.state for job in self.queue.jobs(limit=1000)} == self.state

    @invariant()
    def an_effect_happened_once_for_each_job_that_is_done_and_never_else(self) -> None:
        if hasattr(self, "queue"):
            with self.engine.connect() as connection:
                rows = connection.exec_driver_sql("select job_id, count(*) from effects group by job_id").all()
            assert {job: count for job, count in rows} == self.expected  # noqa: C416 - rows are no pairs to mypy

    @invariant()
    def the_numbers_beside_the_queue_are_those_of_the_queue(self) -> None:
        if hasattr(self, "queue"):
            assert self.queue.recount() == ()


def test_no_job_is_lost_or_doubled_whatever_happens(engine: Engine) -> None:
    machine: Any = type("Queue", (_Queue,), {"engine": engine})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=60, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck))
    )


def test_many_who_do_everything_at_once_neither_wait_for_ever_nor_break_a_law(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("create table effects (job_id text not null)")
    caps = {Tier.T0: 40, Tier.T1: 25, Tier.T2: 0}
    queue = JobQueue(engine, replace(POLICY, caps=caps, most_attempts=4))
    kept = (JobState.DONE, JobState.DEAD, JobState.QUEUED, JobState.LEASED)

    def effect(cursor: Any, leases: Sequence[Lease]) -> None:  # noqa: ANN401 - a driver's cursor
        cursor.execute("insert into effects select unnest(%s::text[])", ([lease.job_id for lease in leases],))

    def one_of_them(number: int) -> int:
        rng = random.Random(number)
        completed = 0
        for turn in range(60):
            # In another order each time, of both tiers, and the same work under several ids.
            picked = rng.sample(range(60), 20)
            queue.submit([replace(backfill(n, Tier.T0 if n % 2 else Tier.T1), job_id=f"j-{n}-{rng.randrange(9)}") for n in picked])
            leases = queue.lease(f"w-{number}-{turn}", tier=rng.choice([Tier.T0, Tier.T1]), limit=12)
            queue.heartbeat(leases)
            for_now = rng.choice(["complete", "complete", "fail", "release", "lapse", "complete one"])
            if for_now == "complete":
                completed += len(queue.complete_all(leases, effect=effect))
            elif for_now == "complete one":
                completed += sum(len(queue.complete_all([lease], effect=effect)) for lease in leases)
            elif for_now == "fail":
                for lease in leases:
                    queue.fail(lease, "broken", is_final=rng.random() < 0.5)
            elif for_now == "release":
                queue.release(leases)
            else:
                with engine.begin() as connection:
                    ids = [lease.job_id for lease in leases]
                    lapse = "update jobs set leased_until = clock_timestamp() where job_id = any(%s) and state = 'leased'"
                    connection.exec_driver_sql(lapse, (ids,))
            queue.requeue_all(tier=None, limit=5, actor="test")
            if turn % 10 == 0:
                queue.purge(older_than=timedelta(days=1), actor="test")
                assert queue.recount() == ()
        return completed

    with ThreadPoolExecutor(4) as pool:
        completed = sum(pool.map(one_of_them, range(4)))
    states = {state: {job.job_id for job in queue.jobs(state=state, limit=10_000)} for state in kept}
    assert queue.recount() == ()
    assert completed == len(states[JobState.DONE])
    with engine.connect() as connection:
        effects = list(connection.exec_driver_sql("select job_id from effects").scalars())
    assert sorted(effects) == sorted(states[JobState.DONE])
    open_ = [job.dedupe_key for job in queue.jobs(limit=10_000) if job.state in {JobState.QUEUED, JobState.LEASED}]
    assert len(open_) == len(set(open_))


def test_a_tier_never_gives_out_more_than_its_rate(engine: Engine) -> None:
    queue = JobQueue(
        engine, replace(POLICY, caps=dict.fromkeys(Tier, 10_000), dispatch_per_second=dict.fromkeys(Tier, 0.02), burst_seconds=500)
    )
    queue.submit([backfill(n) for n in range(300)])
    given_out = []
    for _ in range(21):
        given_out.append(len(queue.complete_all(queue.lease("w", tier=Tier.T0, limit=1000))))
        pass_time(engine, 100)
    assert given_out[0] == 10
    # What goes by between two looks of this test comes on top: less than one job a minute.
    assert 40 <= sum(given_out[1:]) < 45
