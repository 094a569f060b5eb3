"""Promises about the candles that other providers can check, and the nightly job that asks them."""

# No `from __future__ import annotations`: Dagster takes the class of an op's config from the annotation itself, not from its text.

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from market_data_pipeline.defs.candles import asset_key
from market_data_pipeline.defs.tags import SECOND_OPINIONS
from market_data_pipeline.defs.workbench import OpensWorkbench
from market_data_pipeline.domain.agreement import Comparison
from market_data_pipeline.domain.candles import FETCHED_INTERVALS, Interval
from market_data_pipeline.domain.capabilities import bars
from market_data_pipeline.domain.runs import CAUSE
from market_data_pipeline.settings import Settings

if TYPE_CHECKING:
    from market_data_pipeline.storage.opinions import Opinion

PROVIDERS_AGREE = "providers_agree"
# A disagreement that nobody settled in a month is not news any more; `mdp agreement --start` still shows it.
DAYS = 30
_ROWS_IN_METADATA = 100


class SecondOpinionsConfig(dg.Config):
    """How much to ask about: ``share`` of the sessions of the last week; a negative one takes MDP_SECOND_OPINION_SHARE."""

    share: float = -1.0


def agreement_checks() -> list[dg.AssetChecksDefinition]:
    """``providers_agree`` for each fetched interval. Not by partition: a session is checked when it is in the sample."""
    return [_providers_agree(interval) for interval in FETCHED_INTERVALS]


def _providers_agree(interval: Interval) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=asset_key(interval),
        name=PROVIDERS_AGREE,
        description=(
            f"Every sampled session of {interval} candles of the last {DAYS} days is told alike by a second provider, or the "
            "difference was settled by a third. Feeds that count other trades may differ in volume."
        ),
    )
    def providers_agree(workbenches: dg.ResourceParam[OpensWorkbench]) -> dg.AssetCheckResult:
        with workbenches.open() as workbench:
            return agreement_result(workbench.opinions(interval, days=DAYS), interval)

    return providers_agree


def agreement_result(opinions: Sequence["Opinion"], interval: Interval) -> dg.AssetCheckResult:
    """Passed unless two providers disagree about a session and nobody settled it.

    An error where prices are of another unit or basis: whoever uses them is wrong by a factor. A warning else.
    """
    unsettled = [opinion for opinion in opinions if opinion.is_open]
    counts = Counter(opinion.verdict for opinion in opinions)
    is_by_a_factor = any(opinion.verdict in {Comparison.UNIT_SLIP, Comparison.BASIS} for opinion in unsettled)
    metadata: dict[str, Any] = {
        "sessions with a second opinion": len(opinions),
        **{verdict.value: counts[verdict] for verdict in Comparison if counts[verdict]},
        "revised bars": sum(opinion.revised for opinion in opinions),
        "quarantined bars": sum(opinion.quarantined for opinion in opinions),
        "unsettled": len(unsettled),
    }
    if unsettled:
        metadata["sessions"] = dg.MetadataValue.table([_record(opinion) for opinion in unsettled[:_ROWS_IN_METADATA]])
        metadata["what to do"] = dg.MetadataValue.md(_what_to_do(unsettled[0], interval))
    elif not opinions:
        metadata["what to do"] = (
            "nothing is wrong and nothing was compared: put a second provider with a key into "
            f"MDP_POLICY_{bars(interval).upper()}, and MDP_SECOND_OPINION_SHARE above 0"
        )
    return dg.AssetCheckResult(
        passed=not unsettled,
        severity=dg.AssetCheckSeverity.ERROR if is_by_a_factor else dg.AssetCheckSeverity.WARN,
        description=f"{len(unsettled)} of {len(opinions)} sessions are told differently by two providers" if unsettled else None,
        metadata=metadata,
    )


def _record(opinion: "Opinion") -> dg.TableRecord:
    return dg.TableRecord(
        {
            "symbol": opinion.symbol,
            "session": opinion.session.isoformat(),
            "verdict": opinion.verdict.value,
            "stored": opinion.stored_provider,
            "second": opinion.second_provider,
            "third": opinion.third_provider or "",
            "believed": opinion.winner,
            "by": opinion.decided_by,
            "why": opinion.reason,
        }
    )


def _what_to_do(opinion: "Opinion", interval: Interval) -> str:
    where = f"--symbols {opinion.symbol} --interval {interval} --start {opinion.session} --end {opinion.session}"
    return (
        f"1. See both sides: `mdp agreement {where}`; bars that lost are in `refused_bars`, values that were replaced in "
        f"`mdp revisions {opinion.symbol}`.\n"
        f"2. Fetch again: `mdp backfill {where} --refetch`, with `--provider NAME` to ask the other one first.\n"
        f"3. Ask again: `mdp agreement --ask {where}`. The newest opinion counts, and this check passes."
    )


def second_opinions_job(settings: Settings) -> dg.JobDefinition:
    """Asks other providers about a sample of what is stored, and says in the checks what came of it."""

    @dg.op
    def ask_second_opinions(
        context: dg.OpExecutionContext, config: SecondOpinionsConfig, workbenches: dg.ResourceParam[OpensWorkbench]
    ) -> None:
        share = settings.second_opinion_share if config.share < 0 else config.share
        with workbenches.open() as workbench, workbench.beating(context.run_id):
            for interval in FETCHED_INTERVALS:
                asked = workbench.ask_second_opinions(interval, share=share, run_id=context.run_id)
                differ = sum(not opinion.verdict.is_agreement for opinion in asked.opinions)
                context.log.info("%s: %d sessions asked about, %d differ", interval, len(asked.opinions), differ)
                for session, reason in asked.unheard.items():
                    context.log.info("%s %s: nobody was heard: %s", interval, session, reason)
                if asked.stopped is not None:
                    context.log.info("%s: not all were asked about: %s", interval, asked.stopped)
                _report(context.instance, interval, workbench.opinions(interval, days=DAYS))

    @dg.job(
        name=SECOND_OPINIONS,
        description="Ask other providers about MDP_SECOND_OPINION_SHARE of the week's sessions; what they say is providers_agree.",
        tags={CAUSE: "maintenance"},
    )
    def second_opinions() -> None:
        ask_second_opinions()

    return second_opinions


def _report(instance: dg.DagsterInstance, interval: Interval, opinions: Sequence["Opinion"]) -> None:
    """The check as of now. By an event of its own: a second run for a result that is known already would only wait its turn."""
    result = agreement_result(opinions, interval)
    instance.report_runless_asset_event(
        dg.AssetCheckEvaluation(
            asset_key=asset_key(interval),
            check_name=PROVIDERS_AGREE,
            passed=result.passed,
            severity=result.severity,
            description=result.description,
            metadata=result.metadata,
        )
    )


def second_opinions_schedule() -> dg.ScheduleDefinition:
    """Every night after New York's close; other exchanges' sessions of the last week are asked about in the same run."""
    return dg.ScheduleDefinition(
        name="second_opinions_nightly",
        job_name=SECOND_OPINIONS,
        cron_schedule="40 22 * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )
