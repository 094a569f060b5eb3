"""The asset ``coverage``: what the ledger has and lacks, as numbers that Dagster plots, a table of gaps, a report and a picture."""

# No `from __future__ import annotations`: Dagster takes the resources of an asset from the annotations themselves.

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from market_data_pipeline.defs.candles import OWNER, asset_key
from market_data_pipeline.defs.tags import COVERAGE, UNFINISHED
from market_data_pipeline.defs.workbench import OpensWorkbench
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.coverage import VERDICTS, Verdict
from market_data_pipeline.domain.finality import Finality
from market_data_pipeline.domain.runs import CAUSE
from market_data_pipeline.domain.universe import Tier

if TYPE_CHECKING:
    from market_data_pipeline.ingest.summary import CoverageSummary, IntervalSummary
    from market_data_pipeline.storage.overview import MissingLine, MissingSymbol

KEY = dg.AssetKey(["coverage"])
GROUP = "ledger"
EVERY_QUARTER_OF_AN_HOUR = "*/15 * * * *"
# What a person reads before the command line is the better tool.
_LINES_IN_THE_REPORT = 10


def coverage_asset() -> dg.AssetsDefinition:
    """``coverage``: below all candles, not partitioned, one materialisation a look."""

    @dg.asset(
        key=KEY,
        deps=[asset_key(interval) for interval in Interval],
        group_name=GROUP,
        owners=[OWNER],
        kinds={"postgres"},
        description=(
            "Every expected bar of the last 30 days by verdict, and what is missing now in the whole ledger: read from the ledger, "
            "without a bar. The gap report says what to do; the picture is that of `mdp coverage --plot`."
        ),
    )
    def coverage(context: dg.AssetExecutionContext, workbenches: dg.ResourceParam[OpensWorkbench]) -> dg.MaterializeResult[Any]:
        with workbenches.open() as workbench, workbench.beating(context.run.run_id):
            return dg.MaterializeResult(metadata=metadata_of(workbench.coverage_summary()))

    return coverage


def coverage_job() -> Any:  # noqa: ANN401 - Dagster has no public name for what define_asset_job returns
    """The asset alone."""
    return dg.define_asset_job(
        COVERAGE,
        selection=dg.AssetSelection.assets(KEY).without_checks(),
        description="Look at the whole ledger: verdict counts, what is missing, a picture.",
        tags={CAUSE: "maintenance"},
    )


def coverage_schedule() -> dg.ScheduleDefinition:
    """Every quarter of an hour, unless the look before is not over."""

    @dg.schedule(
        name="coverage_every_15_minutes",
        job_name=COVERAGE,
        cron_schedule=EVERY_QUARTER_OF_AN_HOUR,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )
    def every_15_minutes(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        unfinished = context.instance.get_runs(dg.RunsFilter(job_name=COVERAGE, statuses=UNFINISHED), limit=1)
        if unfinished:
            return dg.SkipReason(f"run {unfinished[0].run_id} still looks")
        return dg.RunRequest(tags={CAUSE: "maintenance"})

    return every_15_minutes


def metadata_of(summary: "CoverageSummary") -> dict[str, Any]:
    """What the asset says of itself: for people first; then numbers by interval under names that stay, to be plotted."""
    metadata: dict[str, Any] = {"gap report": dg.MetadataValue.md(report_of(summary))}
    if summary.picture is not None:
        picture = base64.b64encode(summary.picture).decode("ascii")
        metadata["picture"] = dg.MetadataValue.md(f"![sessions by symbols](data:image/png;base64,{picture})")
    if summary.worst:
        metadata["gaps"] = dg.MetadataValue.table([_record(one) for one in summary.worst])
    metadata |= {
        "symbols": summary.symbols,
        "missing now": sum(line.bars for line in summary.missing),
        "given up": sum(line.bars for line in summary.missing if line.plan == "given_up"),
        **{f"missing now {tier}": sum(line.bars for line in summary.missing if line.tier is tier) for tier in Tier},
    }
    for one in summary.intervals:
        counts = one.counts
        metadata |= {f"{one.interval} {verdict}": counts[verdict] for verdict in VERDICTS}
        metadata[f"{one.interval} never asked for"] = one.unasked
        metadata[f"{one.interval} complete %"] = _complete(counts)
        metadata[f"{one.interval} final sessions"] = one.finality[Finality.FINAL]
        metadata[f"{one.interval} provisional sessions"] = one.finality[Finality.PROVISIONAL]
    return metadata


def _complete(counts: Mapping[Verdict, int]) -> float:
    """Percent of the due bars that are there or known to be empty or halted; 100 where none is due."""
    known = counts[Verdict.PRESENT] + counts[Verdict.CONFIRMED_EMPTY] + counts[Verdict.HALTED]
    due = known + counts[Verdict.MISSING]
    # Rounded down: 100 means every one.
    return known * 10_000 // due / 100 if due else 100.0


def report_of(summary: "CoverageSummary") -> str:
    """The gap report: what is missing, in whom, what is done about it, and what a person can do."""
    parts = [f"**{_headline(summary)}**"]
    if summary.intervals:
        parts.append(_counts_by_interval(summary.intervals))
    if summary.missing:
        parts.append(_what_is_planned(summary.missing))
        parts.append(_worst(summary.worst))
    return "\n\n".join(parts)


def _headline(summary: "CoverageSummary") -> str:
    at = f"{summary.at:%Y-%m-%d %H:%M} UTC, {summary.symbols:,} symbols"
    bars = sum(line.bars for line in summary.missing)
    return f"{at}: {bars:,} bars are missing" if bars else f"{at}: nothing that was asked for is missing"


def _counts_by_interval(intervals: Sequence["IntervalSummary"]) -> str:
    head = ["interval", "since", *(verdict.value.replace("_", " ") for verdict in VERDICTS), "never asked for", "complete %"]
    rows = [
        [
            one.interval.value,
            one.first.isoformat(),
            *(f"{one.counts[verdict]:,}" for verdict in VERDICTS),
            f"{one.unasked:,}",
            f"{_complete(one.counts):g}",
        ]
        for one in intervals
    ]
    return _markdown(head, rows)


def _what_is_planned(missing: Sequence["MissingLine"]) -> str:
    words = {
        "due": "due now: the gap sensor asks at its next tick",
        "waiting": "asked for and wait for their next attempt",
        "derived": "computed again when more of their source is there",
        "given_up": "given up: `mdp gaps --retry` asks again, after a provider was repaired or added",
    }
    bars: Counter[str] = Counter()
    for line in missing:
        bars[line.plan] += line.bars
    return "\n".join(f"* {bars[plan]:,} bars {text}" for plan, text in words.items() if bars[plan])


def _worst(worst: Sequence["MissingSymbol"]) -> str:
    head = ["symbol", "tier", "interval", "bars", "sessions", "given up", "from", "to"]
    rows = [[str(value) for value in _record(one).data.values()] for one in worst[:_LINES_IN_THE_REPORT]]
    first = worst[0]
    look = f"`mdp gaps --symbols {first.symbol} --interval {first.interval} --explain`"
    return f"{_markdown(head, rows)}\n\nWhy, for the first: {look}. All: `mdp gaps`."


def _record(one: "MissingSymbol") -> dg.TableRecord:
    return dg.TableRecord(
        {
            "symbol": one.symbol,
            "tier": one.tier.value,
            "interval": one.interval.value,
            "bars": one.bars,
            "sessions": one.sessions,
            "given up": one.given_up,
            "from": one.first.isoformat(),
            "to": one.last.isoformat(),
        }
    )


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
