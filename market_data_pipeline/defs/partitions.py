"""The partition plan as Dagster definitions and run tags. Which grain, and why, is domain/partitions.py."""

from __future__ import annotations

from datetime import datetime, time
from typing import TYPE_CHECKING, Any

import dagster as dg

from market_data_pipeline.domain.partitions import (
    PERIOD_TIMEZONE,
    Box,
    Cell,
    Grain,
    PartitionPlan,
    Periods,
    SymbolDimension,
    cells_between,
    period_start,
)
from market_data_pipeline.domain.runs import RANGE_END, RANGE_START, SYMBOLS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from market_data_pipeline.domain.candles import Interval

# The dimensions' names; a multi-partition key joins the two keys in the alphabetical order of these.
PERIOD, SYMBOL = "period", "symbol"
PARTITION = "dagster/partition"

# What schedules and sensors say rather than ask for partitions that a run would not find.
ANOTHER_PLAN = "the partition plan was changed (mdp universe load) after this code location was loaded: reload it"

_CRON = {
    Grain.SESSION: "0 0 * * *",
    Grain.WEEK: "0 0 * * 1",
    Grain.MONTH: "0 0 1 * *",
    Grain.QUARTER: "0 0 1 1,4,7,10 *",
    Grain.YEAR: "0 0 1 1 *",
}
_WEEKENDS = "0 0 * * 0,6"


def candle_partitions(plan: PartitionPlan, interval: Interval) -> dg.MultiPartitionsDefinition:
    """Period x symbol for the asset of ``interval``, as the plan has it."""
    return dg.MultiPartitionsDefinition({PERIOD: period_definition(plan.periods(interval)), SYMBOL: symbol_definition(plan)})


def symbol_definition(plan: PartitionPlan) -> dg.PartitionsDefinition[str]:
    """The second dimension: dynamic symbols, or the plan's buckets."""
    if plan.dimension is SymbolDimension.SYMBOL:
        return dg.DynamicPartitionsDefinition(name=SYMBOLS)
    return dg.StaticPartitionsDefinition(plan.bucket_keys())


def period_definition(periods: Periods) -> dg.TimeWindowPartitionsDefinition:
    """``periods`` as time windows, the running one included; its keys are exactly those of ``periods.existing(now)``."""
    exclusions: list[str | datetime] = []
    if periods.grain is Grain.SESSION:
        exclusions += [_WEEKENDS] if periods.closed_weekends else []
        exclusions += [datetime.combine(day, time()) for day in sorted(periods.closed_days) if day >= periods.start]
    return dg.TimeWindowPartitionsDefinition(
        start=period_start(periods.start, periods.grain).isoformat(),
        fmt="%Y-%m-%d",
        cron_schedule=_CRON[periods.grain],
        timezone=PERIOD_TIMEZONE,
        end_offset=1,
        exclusions=exclusions or None,
    )


def symbols_in_order(plan: PartitionPlan, instance: dg.DagsterInstance) -> Sequence[str]:
    """The keys of the symbol dimension in Dagster's order: dynamic keys in the order in which they were added."""
    if plan.dimension is SymbolDimension.BUCKET:
        return plan.bucket_keys()
    return instance.get_dynamic_partitions(SYMBOLS)


def partition_key(cell: Cell) -> dg.MultiPartitionKey:
    """``cell`` as Dagster's key."""
    return dg.MultiPartitionKey({PERIOD: cell.period, SYMBOL: cell.symbol})


def materialization(
    key: dg.AssetKey, cell: Cell, metadata: Mapping[str, dg.MetadataValue[Any] | int | float | str]
) -> dg.AssetMaterialization:
    """The event that says that ``cell`` of the asset is done, with the tags by which Dagster finds a dimension's events."""
    return dg.AssetMaterialization(
        key,
        partition=partition_key(cell),
        metadata=metadata,
        tags={f"dagster/partition/{PERIOD}": cell.period, f"dagster/partition/{SYMBOL}": cell.symbol},
    )


def range_tags(box: Box) -> dict[str, str]:
    """The run tags that make one run of all of ``box``."""
    return {RANGE_START: box.first.key, RANGE_END: box.last.key}


def cells_of_tags(tags: Mapping[str, str], *, periods: Sequence[str], symbols: Sequence[str]) -> list[Cell]:
    """The partitions that a run with ``tags`` works on; none where the tags name none, InvalidInputError where they name no box."""
    if RANGE_START in tags and RANGE_END in tags:
        return cells_between(Cell.parse(tags[RANGE_START]), Cell.parse(tags[RANGE_END]), periods=periods, symbols=symbols)
    return [Cell.parse(tags[PARTITION])] if PARTITION in tags else []
