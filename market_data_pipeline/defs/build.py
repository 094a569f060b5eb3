"""Everything Dagster is shown, put together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg

from market_data_pipeline.defs.candles import candle_assets, candle_jobs
from market_data_pipeline.defs.checks import agreement_checks, second_opinions_job, second_opinions_schedule
from market_data_pipeline.defs.coverage import coverage_asset, coverage_job, coverage_schedule
from market_data_pipeline.defs.freshness_checks import checks_job, checks_schedule, freshness_checks
from market_data_pipeline.defs.jobs import jobs_sensor, sweep_schedule, work_jobs
from market_data_pipeline.defs.live import live_assets
from market_data_pipeline.defs.maintenance import listings_job, listings_schedule, prune_job, prune_schedule, reconcile_job
from market_data_pipeline.defs.schedules import schedules
from market_data_pipeline.defs.sensors import gap_sensor, janitor_sensor, symbols_sensor
from market_data_pipeline.defs.watch import alerts_asset, alerts_check, check_failures_sensor, run_failures_sensor, watch_sensor
from market_data_pipeline.defs.workbench import Workbenches
from market_data_pipeline.domain.partitions import SymbolDimension

if TYPE_CHECKING:
    from collections.abc import Callable

    from market_data_pipeline.defs.workbench import OpensWorkbench
    from market_data_pipeline.domain.partitions import PartitionPlan
    from market_data_pipeline.settings import Settings


def build_definitions(
    settings: Settings,
    plan: PartitionPlan,
    *,
    workbenches: OpensWorkbench | None = None,
    in_force: Callable[[], PartitionPlan] | None = None,
) -> dg.Definitions:
    """The code location. It opens nothing: files, sockets and the database are touched when a run or a tick begins.

    ``in_force`` reads the plan that holds at the time of a tick, where that can be another than ``plan``.
    """
    in_force = in_force or (lambda: plan)
    jobs = candle_jobs()
    sensors = [gap_sensor(plan, settings, jobs, in_force=in_force), jobs_sensor(settings), janitor_sensor()]
    sensors += [watch_sensor(settings), run_failures_sensor(), check_failures_sensor()]
    if plan.dimension is SymbolDimension.SYMBOL:
        sensors.append(symbols_sensor(plan))
    nightly = [prune_schedule(), second_opinions_schedule(), listings_schedule()]
    ticking = [*schedules(plan, in_force=in_force), *nightly, coverage_schedule(), checks_schedule()]
    if not settings.use_rlc:
        # Where a Rate-Limit Coordinator makes the jobs, ours would be asked for twice.
        ticking.append(sweep_schedule(settings))
    return dg.Definitions(
        assets=[*candle_assets(plan), *live_assets(), coverage_asset(), alerts_asset()],
        asset_checks=[*agreement_checks(), *freshness_checks(plan, settings), alerts_check()],
        jobs=[
            *jobs,
            work_jobs(plan),
            reconcile_job(plan),
            prune_job(settings),
            listings_job(),
            second_opinions_job(settings),
            coverage_job(),
            checks_job(),
        ],
        schedules=ticking,
        sensors=sensors,
        resources={"workbenches": workbenches or Workbenches(settings)},
        # A process a step costs two seconds; our steps use threads where they wait.
        executor=dg.in_process_executor,
    )
