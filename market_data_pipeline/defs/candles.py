"""The candle assets, from one factory: which they are, what they say of themselves, and the one sentence that each run is."""

# No `from __future__ import annotations`: Dagster takes the class of a run's config from the annotation itself, not from its text.

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from itertools import chain
from typing import Any

import dagster as dg

from market_data_pipeline.defs.materialize import Materializations
from market_data_pipeline.defs.outcomes import PartitionOutcome, PartitionWork
from market_data_pipeline.defs.partitions import candle_partitions, materialization
from market_data_pipeline.defs.workbench import OpensWorkbench
from market_data_pipeline.domain.candles import FETCHED_INTERVALS, Interval
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.partitions import Cell, PartitionPlan
from market_data_pipeline.domain.runs import CAUSE, PROVIDER, job_name, lane_of, op_name

GROUP = "candles"
OWNER = "team:market-data"
# The job of runs that are launched from an asset's page.
ASSET_JOB = "__ASSET_JOB"
# More in a failure's text is a wall, not a message; its metadata names more.
_REASONS_IN_A_FAILURE, _NAMED_IN_A_FAILURE = 5, 3
_NAMED_IN_METADATA = 1_000


class CandlesConfig(dg.Config):
    """What a run of candles may be told.

    refetch: ask the provider again for what is already stored; differences become revisions, nothing is deleted. refetch_from,
    refetch_to: the same for the sessions between these dates alone, both included.
    """

    refetch: bool = False
    refetch_from: str = ""
    refetch_to: str = ""

    def again(self) -> tuple[date, date] | None:
        """The sessions to ask for again; None: of none but what is missing. InvalidInputError where they are no dates."""
        if self.refetch:
            return date.min, date.max
        if not self.refetch_from and not self.refetch_to:
            return None
        try:
            return date.fromisoformat(self.refetch_from or "0001-01-01"), date.fromisoformat(self.refetch_to or "9999-12-31")
        except ValueError as wrong:
            raise InvalidInputError(
                f"refetch_from {self.refetch_from!r}, refetch_to {self.refetch_to!r}: expected dates such as 2026-11-16 ({wrong})"
            ) from None


def asset_key(interval: Interval) -> dg.AssetKey:
    """``candles/1m`` and its siblings."""
    return dg.AssetKey(["candles", interval.value])


def family(fetched: Interval) -> tuple[Interval, ...]:
    """``fetched`` and the intervals computed from it, in the order in which a run brings them up to date."""
    return (fetched, *(interval for interval in Interval if interval.source is fetched))


def candle_assets(plan: PartitionPlan) -> list[dg.AssetsDefinition]:
    """Every candle asset: an op for each fetched interval, which also computes the intervals derived from it."""
    return [_family_of_assets(plan, fetched) for fetched in FETCHED_INTERVALS]


def candle_jobs() -> list[Any]:  # Dagster has no public name for what define_asset_job returns
    """One job a fetched interval: it and what is derived from it, so that one run does both."""
    return [
        dg.define_asset_job(
            job_name(fetched),
            # The checks are about a month and have a job of their own: not with every run of a few partitions.
            selection=dg.AssetSelection.assets(*(asset_key(interval) for interval in family(fetched))).without_checks(),
            description=f"Bring partitions of {', '.join(f'candles/{i}' for i in family(fetched))} up to date.",
        )
        for fetched in FETCHED_INTERVALS
    ]


def _family_of_assets(plan: PartitionPlan, fetched: Interval) -> dg.AssetsDefinition:
    """One op for ``fetched`` and what is derived from it; any of them can be selected alone.

    One op rather than one each: when an op fails for 3 of 200 partitions, Dagster does not run the next one for the other 197.
    """

    @dg.multi_asset(
        name=op_name(fetched),
        specs=[_spec(plan, interval) for interval in family(fetched)],
        partitions_def=candle_partitions(plan, fetched),
        can_subset=True,
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def candles(
        context: dg.AssetExecutionContext, config: CandlesConfig, workbenches: dg.ResourceParam[OpensWorkbench]
    ) -> Iterator[dg.MaterializeResult[Any]]:
        cells = [Cell.parse(key) for key in context.partition_keys]
        intervals = [interval for interval in family(fetched) if asset_key(interval) in context.selected_asset_keys]
        run_id = context.run.run_id
        with (
            workbenches.open() as workbench,
            workbench.beating(run_id),
            workbench.traced(f"{op_name(fetched)}-{run_id[:8]}") as trace,
            Materializations(context) as done,
        ):
            traced = {} if trace is None else {"trace": dg.MetadataValue.path(str(trace))}
            instruments = workbench.instruments(active_only=False)
            work = PartitionWork.of(cells, plan, plan.periods(fetched), instruments, now=workbench.now(), again=config.again())
            for interval in intervals:
                passes = [
                    workbench.bring_up_to_date(
                        stretches,
                        interval,
                        refetch=refetch,
                        run_id=run_id,
                        lane=lane_of(context.run.tags.get(CAUSE)),
                        hint=context.run.tags.get(PROVIDER),
                    )
                    for stretches, refetch in work.passes(interval)
                ]
                for outcome in work.outcomes(chain.from_iterable(passes)):
                    done.add(materialization(asset_key(interval), outcome.cell, {**_metadata(outcome), **traced}))
        _fail_for(work)
        # All was said by events, partition by partition. A result would count as every partition of the run.
        yield from ()

    return candles


def _metadata(outcome: PartitionOutcome) -> Mapping[str, int | float | str]:
    """What a person wants to see of one partition. ``rows`` and the verdicts of absent bars add up to ``expected``."""
    about: dict[str, int | float | str] = {
        **outcome.sums.as_metadata(),
        "inserted": sum(report.inserted for report in outcome.reports),
        "requests": round(sum(report.requests for report in outcome.reports), 3),
        "seconds": round(sum(report.seconds for report in outcome.reports), 3),
    }
    if refused := sum(report.refused for report in outcome.reports):
        about["refused"] = refused
    if outcome.provider is not None:
        about["provider"] = outcome.provider
    dropped = Counter[str]()
    for report in outcome.reports:
        dropped.update(report.dropped)
    failures = {f"failed: {provider}": text for provider, text in outcome.failures.items()}
    return about | {f"dropped: {reason}": count for reason, count in dropped.items()} | failures


def _fail_for(work: PartitionWork) -> None:
    if not work.failures:
        return
    by_reason: dict[str, list[str]] = {}
    for cell, reason in work.failures.items():
        by_reason.setdefault(reason, []).append(cell.key)
    reasons = sorted(by_reason.items(), key=lambda item: -len(item[1]))
    said = [f"{_named(keys, _NAMED_IN_A_FAILURE)}: {reason}" for reason, keys in reasons[:_REASONS_IN_A_FAILURE]]
    more = f"; and {len(reasons) - len(said)} more reasons" if len(reasons) > len(said) else ""
    raise dg.Failure(
        f"{len(work.failures)} of {len(work.cells)} partitions failed. {'; '.join(said)}{more}",
        metadata={
            "partitions": len(work.cells),
            "failed": len(work.failures),
            "reasons": dg.MetadataValue.json({reason: _named(keys, _NAMED_IN_METADATA) for reason, keys in reasons}),
        },
        # The requests were retried in providers/http.py, for seconds; for hours, the gap sensor asks again.
        allow_retries=False,
    )


def _named(keys: Sequence[str], most: int) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")


def _spec(plan: PartitionPlan, interval: Interval) -> dg.AssetSpec:
    planned = plan.intervals[interval]
    return dg.AssetSpec(
        asset_key(interval),
        deps=[asset_key(interval.source)] if interval.source is not None else [],
        description=_description(interval),
        metadata={
            "dagster/column_schema": _DAILY_COLUMNS if interval.is_daily else _INTRADAY_COLUMNS,
            "dagster/table_name": "candles_daily" if interval.is_daily else "candles_intraday",
            "grain": planned.grain.value,
            "why this grain": planned.reason,
        },
        group_name=GROUP,
        owners=[OWNER],
        kinds={"postgres", "python"} if interval.source is None else {"postgres", "sql"},
        freshness_policy=dg.FreshnessPolicy.time_window(fail_window=heartbeat(plan)),
        tags={"interval": interval.value, "origin": "fetched" if interval.source is None else "derived"},
        # What is not materialised stays missing: a partition that failed, and one whose period has not begun.
        skippable=True,
    )


def heartbeat(plan: PartitionPlan) -> timedelta:
    """How long nothing at all of an asset may be materialised before Dagster calls it overdue.

    A dead man's switch and nothing more: Dagster looks at when the last materialisation was, of whatever partition, so that a
    backfill of ten years ago makes it fresh. How late the candles are is the check ``newest_candle_is_on_time``. A day longer than
    the plan's longest pause; at least five days, since a plan without a universe knows no holidays.
    """
    return max(plan.longest_pause, timedelta(days=4)) + timedelta(days=1)


def _description(interval: Interval) -> str:
    if interval.source is not None:
        return (
            f"{interval} candles, computed in SQL from the stored {interval.source} candles: a bar exists once each of its minutes "
            "is present or confirmed empty, and at least one is present."
        )
    what = "one a session, named by its date, prices raw" if interval.is_daily else "of the regular session, anchored at its open"
    return (
        f"{interval} candles, {what}, fetched from the best provider that can be asked, what it lacks from the next. A run asks "
        "only for what the coverage ledger lacks inside its partitions. Materialised means that every request was answered by "
        "somebody; `missing` counts bars that are due and did not come, and the gap sensor keeps asking for them."
    )


def _columns(*leading: dg.TableColumn) -> dg.TableSchema:
    law = dg.TableColumnConstraints(nullable=False)
    return dg.TableSchema(
        columns=[
            *leading,
            dg.TableColumn("open", "double precision", "First price, raw, as the provider sent it.", constraints=law),
            dg.TableColumn("high", "double precision", "At least open and close.", constraints=law),
            dg.TableColumn("low", "double precision", "At most open and close.", constraints=law),
            dg.TableColumn("close", "double precision", "Last price.", constraints=law),
            dg.TableColumn("volume", "double precision", "Not negative; fractions are real.", constraints=law),
            dg.TableColumn("vwap", "double precision", "Volume-weighted price, null where the provider has none."),
            dg.TableColumn("trades", "bigint", "Number of trades, null where the provider has none."),
            dg.TableColumn("fetch_id", "bigint", "The answer this row came from: fetches.fetch_id.", constraints=law),
            dg.TableColumn("as_of", "timestamptz", "Since when we know this value; older ones are in candle_revisions."),
            dg.TableColumn("provider", "smallint", "Whose bar it is: providers.provider.", constraints=law),
            dg.TableColumn("feed", "smallint", "Whose trades it counts: 0 consolidated, 1 SIP, 2 IEX, 3 CBOE.", constraints=law),
            dg.TableColumn("finality", "smallint", "Unused: how sure a session is stands in coverage."),
            dg.TableColumn("flags", "smallint", "Repair flags, 0 for none."),
        ]
    )


_SYMBOL_ID = dg.TableColumn("symbol_id", "integer", "symbol_universe.symbol_id; symbols are text only at the edges.")
_INTRADAY_COLUMNS = _columns(
    _SYMBOL_ID,
    dg.TableColumn("interval_s", "integer", "Nominal length in seconds."),
    dg.TableColumn("opened_at", "timestamptz", "The instant the bar opens, UTC: its left edge."),
)
_DAILY_COLUMNS = _columns(_SYMBOL_ID, dg.TableColumn("session_date", "date", "The session, in the exchange's calendar."))
