"""Queued jobs in Dagster: the sweep that makes them, the sensor that gives them to runs, and the run that carries them out."""

# No `from __future__ import annotations`: Dagster takes the class of an op's config from the annotation itself, not from its text.

import json
import secrets
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING

import dagster as dg

from market_data_pipeline.defs.candles import asset_key
from market_data_pipeline.defs.maintenance import Settled, settled_partitions
from market_data_pipeline.defs.materialize import Materializations
from market_data_pipeline.defs.partitions import materialization, symbols_in_order
from market_data_pipeline.defs.tags import BATCH, FRESH_FIRST, PART, TIER, UNFINISHED, WHEN_THERE_IS_ROOM, WORK
from market_data_pipeline.defs.workbench import OpensWorkbench, Workbench
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.jobs import as_new_job
from market_data_pipeline.domain.partitions import PartitionPlan
from market_data_pipeline.domain.queue import JobKind, JobState
from market_data_pipeline.domain.runs import CAUSE, PRIORITY
from market_data_pipeline.domain.universe import Instrument, Tier
from market_data_pipeline.ingest.sweep import sweep
from market_data_pipeline.settings import Settings, numbers_by_tier

if TYPE_CHECKING:
    from market_data_pipeline.domain.queue import QueuePolicy
    from market_data_pipeline.ingest.jobs import EndedJob
    from market_data_pipeline.ingest.report import StretchReport
    from market_data_pipeline.storage.jobs import JobQueue

# What is fresh, and what can wait. Each run carries out one of the two: fresh jobs never stand behind history.
LIVE, HISTORY = "live", "history"
PARTS: Mapping[str, frozenset[JobKind]] = {
    LIVE: frozenset({JobKind.BARS_FETCH, JobKind.QUOTES_FETCH}),
    HISTORY: frozenset({JobKind.BACKFILL}),
}
# The reference's batches. A batch is one run: fewer and larger ones share requests, and a run costs seconds to start.
JOBS_A_RUN = {LIVE: 500, HISTORY: 5_000}
# T0's minutes are swept every minute; a tick that finds nothing costs one small transaction a tier. With short leases it comes more
# often: until a run's process holds its leases itself, each tick holds them.
SECONDS_BETWEEN_TICKS, TICKS_A_LEASE = 10, 4
# Answered sessions are reported to Dagster in lots: a lot reads the ledger once for each interval.
SESSIONS_REPORTED_TOGETHER = 1_000
_REASONS_IN_A_LOG = 5


def sweep_schedule(settings: Settings) -> dg.ScheduleDefinition:
    """Queues the jobs of the tiers' cadences, every minute. The tick itself does it: a run would cost more than what it did."""

    @dg.schedule(
        name="sweep",
        job_name=WORK,
        cron_schedule="* * * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="While a market is open: jobs for the newest minutes of each tier, as often as MDP_BARS_EVERY_SECONDS says.",
    )
    def sweep_(context: dg.ScheduleEvaluationContext, workbenches: dg.ResourceParam[OpensWorkbench]) -> dg.SkipReason:
        with workbenches.open() as workbench:
            tick = context.scheduled_execution_time
            jobs = sweep(
                workbench.instruments(active_only=True),
                workbench.calendar,
                numbers_by_tier(settings.bars_every_seconds),
                now=workbench.now() if workbench.is_virtual() else tick,
                tick=tick,
                failing=workbench.failing,
            )
            if not jobs:
                return dg.SkipReason("no market is open for a tier whose turn it is")
            report = workbench.queue().submit([as_new_job(job, source="sweep") for job in jobs])
        said = f"{report.accepted} jobs queued; {report.duplicates} are queued or under way already"
        if report.turned_away:
            said += f"; {len(report.turned_away)} turned away: {next(iter(report.turned_away.values()))}"
        return dg.SkipReason(said)

    return sweep_


@dataclass(frozen=True, slots=True)
class Batch:
    """Jobs leased for one run that does not exist yet. ``name`` is the worker that holds them, and the run's key and tag."""

    name: str
    tier: Tier
    part: str
    jobs: int


def jobs_sensor(settings: Settings) -> dg.SensorDefinition:
    """Leases what is queued, the best tiers first, and asks for a run for each batch; within MDP_QUEUE_CONCURRENCY."""
    policy = settings.queue_policy

    @dg.sensor(
        name="jobs",
        job_name=WORK,
        minimum_interval_seconds=max(min(SECONDS_BETWEEN_TICKS, int(policy.lease_seconds / TICKS_A_LEASE)), 1),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Queued jobs become runs of work_jobs: a batch a run, as many at a time as MDP_QUEUE_CONCURRENCY says.",
    )
    def jobs(context: dg.SensorEvaluationContext, workbenches: dg.ResourceParam[OpensWorkbench]) -> dg.SensorResult | dg.SkipReason:
        runs = context.instance.get_runs(dg.RunsFilter(job_name=WORK, statuses=UNFINISHED))
        turns: dict[str, str] = json.loads(context.cursor or "{}")
        with workbenches.open() as workbench:
            queue = workbench.queue()
            at_work = {beat.run_id for beat in workbench.heartbeats()}
            for run in runs:
                if run.run_id not in at_work and BATCH in run.tags:
                    queue.heartbeat(queue.held(run.tags[BATCH]))
            batches = lease_batches(queue, policy, [(run.tags.get(TIER, ""), run.tags.get(PART, "")) for run in runs], turns)
        if not batches:
            return dg.SkipReason(f"nothing is queued that may be given out now; {len(runs)} runs are at work")
        return dg.SensorResult(run_requests=[_request(batch) for batch in batches], cursor=json.dumps(turns))

    return jobs


def lease_batches(
    queue: "JobQueue", policy: "QueuePolicy", at_work: Iterable[tuple[str, str]], turns: dict[str, str]
) -> list[Batch]:
    """The batches that may begin now, leased. ``at_work``: tier and part of each unfinished run.

    Of a tier's places history never takes the last one that fresh jobs may need; where there is only one, they take turns, of which
    ``turns`` is the memory.
    """
    busy = Counter(at_work)
    batches: list[Batch] = []
    for tier in Tier:
        places = policy.concurrency[tier]
        free = {
            LIVE: places - busy[tier, LIVE] - busy[tier, HISTORY],
            HISTORY: (places - 1 if places > 1 else places) - busy[tier, HISTORY],
        }
        order = [HISTORY, LIVE] if places == 1 and turns.get(tier) == LIVE else [LIVE, HISTORY]
        for part in order:
            while min(free[LIVE], free[part]) > 0:
                name = f"jobs:{tier}:{part}:{secrets.token_hex(8)}"
                leases = queue.lease(name, tier=tier, limit=JOBS_A_RUN[part], kinds=PARTS[part])
                if not leases:
                    break
                batches.append(Batch(name, tier, part, len(leases)))
                turns[tier] = part
                # What a run does, whichever part it is of, takes one of the tier's places.
                free = {LIVE: free[LIVE] - 1, HISTORY: free[HISTORY] - (part == HISTORY)}
    return batches


def _request(batch: Batch) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=batch.name,
        tags={
            CAUSE: "jobs",
            BATCH: batch.name,
            TIER: batch.tier.value,
            PART: batch.part,
            "mdp/jobs": str(batch.jobs),
            PRIORITY: FRESH_FIRST if batch.part == LIVE else WHEN_THERE_IS_ROOM,
            # A lease that lapses is the retry; a second one, of the same batch, would only race it.
            "dagster/max_retries": "0",
        },
    )


def work_jobs(plan: PartitionPlan) -> dg.JobDefinition:
    """The job whose runs carry out leased jobs."""

    @dg.op
    def carry_out_jobs(context: dg.OpExecutionContext, workbenches: dg.ResourceParam[OpensWorkbench]) -> None:
        batch = context.run.tags.get(BATCH)
        if batch is None:
            raise dg.Failure(
                f"this run has no batch of jobs: the sensor `jobs` leases one and names it in the tag {BATCH}; "
                "to have a job carried out, `mdp jobs submit` it",
                allow_retries=False,
            )
        with (
            workbenches.open() as workbench,
            workbench.beating(context.run_id),
            workbench.traced(f"{WORK}-{context.run_id[:8]}"),
            Materializations(context) as done,
        ):
            leases = workbench.queue().held(batch)
            if not leases:
                context.log.info("the leases of %s have lapsed, or their jobs have ended: nothing is left to do", batch)
                return
            report = _Reporter(plan, workbench, done, known=frozenset(symbols_in_order(plan, context.instance)))
            states: Counter[str] = Counter()
            reasons: Counter[str] = Counter()
            for ended in workbench.work_off(leases, run_id=context.run_id):
                states[_word(ended)] += 1
                if ended.outcome.failure is not None:
                    reasons[ended.outcome.failure] += 1
                report.note(ended.outcome.reports)
            report.tell()
            context.log.info("%d jobs of %s: %s", len(leases), batch, ", ".join(f"{n} {word}" for word, n in states.items()))
            for reason, count in reasons.most_common(_REASONS_IN_A_LOG):
                context.log.warning("%d jobs failed: %s", count, reason)
            if reasons and reasons.total() == len(leases):
                raise dg.Failure(
                    f"all {len(leases)} jobs failed: {reasons.most_common(1)[0][0]}",
                    metadata={"reasons": dg.MetadataValue.json(dict(reasons.most_common(_REASONS_IN_A_LOG)))},
                    allow_retries=False,
                )

    @dg.job(
        name=WORK,
        description="Carry out a batch of queued jobs: fetch, judge, store, derive; each job ends in the queue by itself.",
        tags={CAUSE: "jobs"},
    )
    def work() -> None:
        carry_out_jobs()

    return work


def _word(ended: "EndedJob") -> str:
    if ended.state is None:
        return "lost to another worker"
    return {JobState.QUEUED: "to be tried again", JobState.DEAD: "dead letters"}.get(ended.state, ended.state.value)


@dataclass
class _Reporter:
    """Tells Dagster of the partitions that jobs made complete: those in which every session is over and was answered.

    A running session has no event: one a sweep would be 390 a day, symbol and interval, some 4 kB each in Dagster's database for
    ever. Its partition is materialised once, after the close.
    """

    plan: PartitionPlan
    workbench: Workbench
    done: Materializations
    known: frozenset[str]
    _instruments: Sequence[Instrument] = ()
    _touched: dict[Interval, dict[str, set[str]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(set)))
    _noted: int = 0

    def note(self, reports: "Sequence[tuple[Interval, StretchReport]]") -> None:
        """Take the reports of one job; Dagster is told when there are enough."""
        for interval, report in reports:
            stretch = report.stretch
            column = self.plan.column_of(stretch.instrument.symbol)
            for period in self.plan.periods(interval).keys(stretch.first, stretch.last):
                self._touched[interval][column].add(period)
                self._noted += 1
        if self._noted >= SESSIONS_REPORTED_TOGETHER:
            self.tell()

    def tell(self) -> None:
        """Report what was noted and not reported yet."""
        touched, self._touched, self._noted = self._touched, defaultdict(lambda: defaultdict(set)), 0
        for interval, columns in touched.items():
            for found in self._settled(interval, columns):
                self.done.add(materialization(asset_key(interval), found.cell, found.as_metadata()))

    def _settled(self, interval: Interval, columns: Mapping[str, set[str]]) -> Iterator[Settled]:
        if not self._instruments:
            self._instruments = self.workbench.instruments(active_only=False)
        mine = [i for i in self._instruments if self.plan.column_of(i.symbol) in columns]
        days = [day for held in columns.values() for period in held for day in self.plan.periods(interval).days_of(period)]
        for found in settled_partitions(
            mine,
            interval,
            self.plan,
            self.workbench,
            first=min(days, default=date.max),
            last=max(days, default=date.min),
            over=True,
        ):
            if found.cell.period in columns[found.cell.symbol] and found.cell.symbol in self.known:
                yield found
