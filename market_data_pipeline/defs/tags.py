"""The run tags that are ours, and what is asked of Dagster by them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg

from market_data_pipeline.defs.candles import ASSET_JOB, asset_key, family
from market_data_pipeline.defs.partitions import cells_of_tags, symbols_in_order
from market_data_pipeline.domain.candles import FETCHED_INTERVALS
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.runs import RECONCILE, job_name

if TYPE_CHECKING:
    from datetime import datetime

    from market_data_pipeline.domain.candles import Interval
    from market_data_pipeline.domain.partitions import Cell, PartitionPlan

GAP = "mdp/gap"
CALENDAR = "mdp/calendar"
# Of a run that carries out jobs: the worker that was leased them, the tier whose queue they waited in, and whether they are about
# what is fresh (live) or not (history).
BATCH, TIER, PART = "mdp/batch", "mdp/tier", "mdp/part"
# The budget's lane, where it is the healers': dagster.yaml bounds gaps and rechecks together by it.
LANE = "mdp/lane"
FRESH_FIRST, WHEN_THERE_IS_ROOM = "10", "0"

# With RECONCILE the jobs that are not of assets; every op of theirs shows a heartbeat, too.
WORK, PRUNE, SECOND_OPINIONS, LISTINGS = "work_jobs", "prune_event_log", "second_opinions", "listings"
COVERAGE, CHECKS = "coverage_report", "candle_checks"

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


def cells_in_flight(instance: dg.DagsterInstance, plan: PartitionPlan, *, now: datetime) -> dict[Interval, set[Cell]]:
    """The partitions that runs queued or running work on, per fetched interval, whoever launched them."""
    symbols = symbols_in_order(plan, instance)
    found: dict[Interval, set[Cell]] = {fetched: set() for fetched in FETCHED_INTERVALS}
    for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)):
        for fetched in FETCHED_INTERVALS:
            if works_on(run, fetched):
                periods = plan.periods(fetched).existing(now)
                try:
                    found[fetched].update(cells_of_tags(run.tags, periods=periods, symbols=symbols))
                except InvalidInputError:
                    # Launched under another plan, or by hand with keys that do not exist: that run fails by itself.
                    continue
    return found


def is_ours(run: dg.DagsterRun) -> bool:
    """Whether ``run`` is of this code location: another may share the instance, and its runs show us no heartbeat."""
    return run.job_name in {WORK, RECONCILE, PRUNE, SECOND_OPINIONS, LISTINGS, COVERAGE, CHECKS} or any(
        works_on(run, fetched) for fetched in FETCHED_INTERVALS
    )


def works_on(run: dg.DagsterRun, fetched: Interval) -> bool:
    """Whether ``run`` is of partitions of ``fetched`` or of what is derived from it."""
    if run.job_name == job_name(fetched):
        return True
    chosen = run.asset_selection or frozenset()
    return run.job_name.startswith(ASSET_JOB) and any(asset_key(interval) in chosen for interval in family(fetched))
