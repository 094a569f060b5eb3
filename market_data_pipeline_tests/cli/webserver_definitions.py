"""A small code location for tests of the GraphQL client: the assets, dimensions and jobs of the real one, and no database.

Without postponed annotations: Dagster reads the config's type from the signature itself.
"""

import os
import threading
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg

_PARTITIONS = dg.MultiPartitionsDefinition(
    {
        "period": dg.DailyPartitionsDefinition("2024-12-02", end_date=datetime(2024, 12, 7, tzinfo=UTC)),
        "symbol": dg.DynamicPartitionsDefinition(name="symbols"),
    }
)


class _Config(dg.Config):
    refetch: bool = False


@dg.multi_asset(
    name="fetch_candles_1h", specs=[dg.AssetSpec(["candles", "1h"], partitions_def=_PARTITIONS)], partitions_def=_PARTITIONS
)
def candles_1h(context: dg.AssetExecutionContext, config: _Config) -> object:
    """Materialise the box; fail where it is told to ask again; with the symbol HOLD, wait to be released."""
    symbols = {key.split("|")[1] for key in context.partition_keys}
    while "HOLD" in symbols and not Path(os.environ["RELEASE_FILE"]).exists():
        threading.Event().wait(0.1)
    if config.refetch:
        raise dg.Failure(f"{len(symbols)} symbols failed", metadata={"symbols": sorted(symbols)}, allow_retries=False)
    return dg.MaterializeResult(asset_key=["candles", "1h"])


@dg.op
def report_the_ledger() -> None:
    """Nothing to report."""


@dg.job
def reconcile() -> None:
    """The job that `mdp reconcile` launches."""
    report_the_ledger()


defs = dg.Definitions(
    assets=[candles_1h],
    jobs=[dg.define_asset_job("candles_1h", selection=dg.AssetSelection.assets(["candles", "1h"])), reconcile],
    executor=dg.in_process_executor,
)
