"""Reporting many partitions from inside a step, in batches and one by one."""

# No `from __future__ import annotations`: Dagster wants the class of an asset's context, not its text.

from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest

from market_data_pipeline.defs.materialize import Materializations, report_runless
from market_data_pipeline.domain.runs import RANGE_END, RANGE_START

KEY = dg.AssetKey("some_asset")


def asset_that_reports(*partitions: str, batching: bool = True, breaks_off: bool = False) -> dg.AssetsDefinition:
    @dg.asset(key=KEY, partitions_def=dg.StaticPartitionsDefinition(["a", "b", "c"]), output_required=False)
    def some_asset(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any]]:
        with Materializations(context, batching=batching) as done:
            for partition in partitions:
                done.add(dg.AssetMaterialization(KEY, partition=partition))
            if breaks_off:
                raise ConnectionError("gone")
        yield from ()

    return some_asset


@pytest.mark.parametrize("batching", [True, False])
def test_with_and_without_batching_the_same_partitions_are_materialised(*, batching: bool) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        dg.materialize(
            [asset_that_reports("a", "b", batching=batching)], instance=instance, tags={RANGE_START: "a", RANGE_END: "c"}
        )
        report_runless(instance, [dg.AssetMaterialization(KEY, partition="c")], batching=batching)
        records = instance.fetch_materializations(KEY, limit=10, ascending=True).records
        assert [record.partition_key for record in records] == ["a", "b", "c"]


def test_what_was_added_is_reported_when_the_work_breaks_off() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        dg.materialize([asset_that_reports("a", breaks_off=True)], instance=instance, partition_key="a", raise_on_error=False)
        assert instance.get_materialized_partitions(KEY) == {"a"}


def test_nothing_to_report_reports_nothing() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        assert report_runless(instance, []) == 0
