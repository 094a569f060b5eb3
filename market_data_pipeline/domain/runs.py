"""The names by which runs are asked for and found again: one spelling for the definitions and for the CLI that launches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from market_data_pipeline.domain.capabilities import Lane

if TYPE_CHECKING:
    from market_data_pipeline.domain.candles import Interval

# Dagster's own: the two corners of the box of partitions that one run takes.
RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
PRIORITY = "dagster/priority"
# The dynamic partitions, one a symbol.
SYMBOLS = "symbols"
# Why a run is there: backfill, gap, recheck, close, sweep, jobs or maintenance. dagster.yaml limits concurrency by it.
CAUSE = "mdp/cause"
# The provider that a run wants asked first.
PROVIDER = "mdp/provider"
# The job that reports the ledger to Dagster; every code location of ours has it.
RECONCILE = "reconcile"

# The assets that `mdp collect` tells Dagster of without a run.
LIVE_QUOTES, LIVE_MINUTES = "quotes/l1", "candles/1m"


def lane_of(cause: str | None) -> Lane:
    """Whose part of the budgets a run with this ``CAUSE`` spends: sweeps and closes bring the newest data, all else is history."""
    if cause in {"gap", "recheck"}:
        return Lane.HEALING
    return Lane.LIVE if cause in {"close", "sweep"} else Lane.BACKFILL


def job_name(interval: Interval) -> str:
    """The job that keeps ``interval``: a derived interval is kept with its source."""
    return f"candles_{(interval.source or interval).value}"


def op_name(interval: Interval) -> str:
    """The op of that job, which is where its config goes: ``{"ops": {"fetch_candles_1m": {"config": {"refetch": true}}}}``."""
    return f"fetch_{job_name(interval)}"
