"""Everything Dagster is shown, put together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg

from market_data_pipeline.defs.candles import asset_key, candle_assets, family, job_name
from market_data_pipeline.defs.workbench import Workbenches
from market_data_pipeline.domain.candles import FETCHED_INTERVALS

if TYPE_CHECKING:
    from market_data_pipeline.defs.workbench import OpensWorkbench
    from market_data_pipeline.domain.partitions import PartitionPlan
    from market_data_pipeline.settings import Settings


def build_definitions(settings: Settings, plan: PartitionPlan, *, workbenches: OpensWorkbench | None = None) -> dg.Definitions:
    """The code location. It opens nothing: files, sockets and the database are touched when a run or a tick begins."""
    return dg.Definitions(
        assets=candle_assets(plan),
        jobs=candle_jobs(),
        resources={"workbenches": workbenches or Workbenches(settings)},
        # A process a step costs two seconds; our steps use threads where they wait.
        executor=dg.in_process_executor,
    )


def candle_jobs() -> list[dg.UnresolvedAssetJobDefinition]:
    """One job a fetched interval: it and what is derived from it, so that one run does both."""
    return [
        dg.define_asset_job(
            job_name(fetched),
            selection=dg.AssetSelection.assets(*(asset_key(interval) for interval in family(fetched))),
            description=f"Bring partitions of {', '.join(f'candles/{i}' for i in family(fetched))} up to date.",
        )
        for fetched in FETCHED_INTERVALS
    ]
