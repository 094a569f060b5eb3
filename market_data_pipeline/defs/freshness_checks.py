"""Promises about the newest candles, as asset checks: one op an interval asset, which asks the ledger and never scans it.

They judge by the newest data against the calendar, never by when a run was: a backfill of an old partition changes nothing here.
"""

# No `from __future__ import annotations`: Dagster takes the resources of a check from the annotations themselves.

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import dagster as dg

from market_data_pipeline.defs.candles import asset_key
from market_data_pipeline.defs.checks import PROVIDERS_AGREE
from market_data_pipeline.defs.coverage import KEY as COVERAGE_KEY
from market_data_pipeline.defs.shown import FAILED_RUNS_OF, SESSIONS, Difference, LeftFailed, difference, left_failed
from market_data_pipeline.defs.tags import CHECKS, UNFINISHED
from market_data_pipeline.defs.workbench import OpensWorkbench, Workbench
from market_data_pipeline.domain.candles import FETCHED_INTERVALS, Interval
from market_data_pipeline.domain.partitions import PartitionPlan
from market_data_pipeline.domain.promises import Grade, Share, grade
from market_data_pipeline.domain.runs import CAUSE
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.settings import Settings, numbers_by_tier

if TYPE_CHECKING:
    from datetime import date, datetime

    from market_data_pipeline.domain.freshness import Census
    from market_data_pipeline.domain.queue import DeadGrowth
    from market_data_pipeline.ingest.promises import PriceSanity, SessionCompleteness

ON_TIME = "newest_candle_is_on_time"
COMPLETE = "session_is_complete"
SANE = "prices_are_sane"
SHOWN = "ledger_matches_dagster"
LEFT_FAILED = "no_partition_is_left_failed"
# Of no interval alone. They stand on `coverage`, which is below all candles: jobs that die and calendars that end are both ways in
# which the ledger stops being filled, whatever the interval.
DEAD = "dead_letters_are_not_growing"
HORIZON = "calendar_horizon_is_far"

DEAD_WINDOW = timedelta(hours=1)
HORIZON_DAYS = 60
_ROWS_IN_METADATA = 100
# Between sessions little changes: once an hour is enough, and saves half of the events.
_AFTER_CLOSE = timedelta(hours=3)


class _Asked(NamedTuple):
    """What a check may ask."""

    workbench: Workbench
    instance: dg.DagsterInstance
    plan: PartitionPlan
    settings: Settings
    interval: Interval

    @property
    def targets(self) -> Mapping[Tier, float]:
        return numbers_by_tier(self.settings.slo_targets)


class _Promise(NamedTuple):
    """One check of every interval asset. ``kept``: how it is found out."""

    name: str
    description: str
    kept: Callable[[_Asked], dg.AssetCheckResult]
    blocking: bool = False


def freshness_checks(plan: PartitionPlan, settings: Settings) -> list[dg.AssetChecksDefinition]:
    """Five promises of each interval asset, and two of the whole pipeline."""
    return [*(_of_interval(plan, settings, interval) for interval in Interval), _of_the_pipeline(settings)]


def _of_interval(plan: PartitionPlan, settings: Settings, interval: Interval) -> dg.AssetChecksDefinition:
    """One op for all of them: a step costs some twenty events, and there are 96 quarters of an hour in a day."""
    key = asset_key(interval)

    @dg.multi_asset_check(
        name=f"checks_of_candles_{interval}",
        specs=[
            dg.AssetCheckSpec(promise.name, asset=key, description=promise.description, blocking=promise.blocking)
            for promise in _PROMISES
        ],
        can_subset=True,
    )
    def checks(
        context: dg.AssetCheckExecutionContext, workbenches: dg.ResourceParam[OpensWorkbench]
    ) -> Iterator[dg.AssetCheckResult]:
        with workbenches.open() as workbench, workbench.beating(context.run.run_id):
            asked = _Asked(workbench, context.instance, plan, settings, interval)
            for promise in _PROMISES:
                if dg.AssetCheckKey(key, promise.name) in context.selected_asset_check_keys:
                    yield promise.kept(asked)

    return checks


def _of_the_pipeline(settings: Settings) -> dg.AssetChecksDefinition:
    del settings

    @dg.multi_asset_check(
        name="checks_of_the_pipeline",
        specs=[
            dg.AssetCheckSpec(
                DEAD,
                asset=COVERAGE_KEY,
                description="No job has failed for good, and no payload was refused, within the last hour.",
            ),
            dg.AssetCheckSpec(
                HORIZON,
                asset=COVERAGE_KEY,
                description=f"Every calendar of the universe knows its sessions for at least {HORIZON_DAYS} days from now.",
            ),
        ],
        can_subset=True,
    )
    def checks(
        context: dg.AssetCheckExecutionContext, workbenches: dg.ResourceParam[OpensWorkbench]
    ) -> Iterator[dg.AssetCheckResult]:
        with workbenches.open() as workbench, workbench.beating(context.run.run_id):
            if dg.AssetCheckKey(COVERAGE_KEY, DEAD) in context.selected_asset_check_keys:
                yield dead_letters_result(workbench.dead_growth(within=DEAD_WINDOW))
            if dg.AssetCheckKey(COVERAGE_KEY, HORIZON) in context.selected_asset_check_keys:
                names = sorted({instrument.calendar for instrument in workbench.instruments(active_only=True)})
                yield horizon_result({name: workbench.calendar(name).last_session for name in names}, workbench.now())

    return checks


# --- the newest candle -------------------------------------------------------------------------------------------------------


def on_time_result(census: "Census", interval: Interval, targets: Mapping[Tier, float]) -> dg.AssetCheckResult:
    """Failed where a T0 symbol is late, or more of a lower tier than its target allows; an error where T0's target is missed."""
    lines = [line for line in census.lines if line.interval is interval]
    stale = [one for one in census.stale if one.interval is interval]
    shares = {line.tier: Share(line.stale, line.symbols) for line in lines}
    found = grade(shares, targets)
    metadata: dict[str, Any] = {"judged at": dg.MetadataValue.timestamp(census.at)}
    for line in lines:
        metadata |= {
            f"{line.tier} symbols": line.symbols,
            f"{line.tier} late": line.stale,
            f"{line.tier} late %": round(100 * line.violation_rate, 3),
            f"{line.tier} target %": round(100 * targets[line.tier], 3),
            f"{line.tier} bars lost": line.lost,
        }
        if line.worst_lag_seconds is not None:
            metadata[f"{line.tier} worst lag minutes"] = round(line.worst_lag_seconds / 60, 1)
    if stale:
        metadata["late symbols"] = dg.MetadataValue.table(
            [
                dg.TableRecord(
                    {
                        "symbol": one.symbol,
                        "tier": one.tier.value,
                        "session": one.session.isoformat(),
                        "newest bar": f"{one.newest_opened_at:%H:%M}Z" if one.newest_opened_at else "none yet",
                        "bars behind": one.behind,
                        "late by minutes": round(one.lag_seconds / 60, 1),
                        "provider answered": one.is_answered,
                    }
                )
                for one in stale[:_ROWS_IN_METADATA]
            ]
        )
    if found is not Grade.KEPT:
        worst = stale[0] if stale else None
        first = f"`mdp condition {worst.symbol} --session {worst.session}`" if worst else "`mdp slo`"
        fetch = (
            f"`mdp backfill --symbols {worst.symbol} --interval {interval.source or interval} --start {worst.session} "
            f"--end {worst.session}`"
            if worst
            else "`mdp backfill`"
        )
        metadata["what to do"] = dg.MetadataValue.md(
            f"1. One symbol or all? {first} says why, for one; many at once are a provider (`mdp providers`) or a queue "
            f"that does not move (`mdp jobs list`).\n"
            f"2. Fetch now: {fetch}.\n"
            "3. Since when, and how much of the month's budget is gone: `mdp slo`.\n\n"
            "Pages: docs/operations/symbol-stale.md, docs/operations/slo-gap-violation-high.md."
        )
    return _result(ON_TIME, found, metadata, _on_time_text(lines, shares, stale))


def _on_time_text(lines: Sequence[Any], shares: Mapping[Tier, Share], stale: Sequence[Any]) -> str:
    if not lines:
        return "nothing is due now: no market is open, or nothing of this interval is followed"
    late = [f"{share.bad:,} of {share.of:,} {tier} symbols are late" for tier, share in sorted(shares.items()) if share.bad]
    if late:
        worst = f"; the worst: {stale[0].symbol}, by {stale[0].lag_seconds / 60:.0f} minutes" if stale else ""
        return ", ".join(late) + worst
    if all(line.is_over for line in lines):
        return "the sessions are over: what they lack is a gap (session_is_complete)"
    return f"{sum(share.of for share in shares.values()):,} symbols are on time"


# --- the newest session ------------------------------------------------------------------------------------------------------


def complete_result(found: "SessionCompleteness", interval: Interval, targets: Mapping[Tier, float]) -> dg.AssetCheckResult:
    """Failed where T0 lacks a bar of the newest session whose time is up, or a lower tier more than its target allows."""
    if not found.sessions or not found.is_known:
        nothing = "nothing is expected: no session is over since long enough, or no provider serves this interval"
        what = nothing if not found.sessions else f"nobody has asked for {interval} of that session"
        worse = Grade.KEPT if not found.sessions or not sum(share.of for share in found.shares.values()) else Grade.WARNING
        metadata: dict[str, Any] = {"sessions": _sessions(found.sessions)}
        if worse is not Grade.KEPT:
            metadata["what to do"] = dg.MetadataValue.md(
                f"Nothing of {interval} was ever asked for in that session: the daemon was not running, or this universe is new.\n"
                "1. `mdp status`: does everything run?\n"
                f"2. `mdp backfill --interval {interval.source or interval} --start {_first(found.sessions)} "
                f"--end {_first(found.sessions)}`."
            )
        return _result(COMPLETE, worse, metadata, what)
    level = grade(found.shares, targets)
    metadata = {"sessions": _sessions(found.sessions), "symbols that lack bars": found.symbols_incomplete}
    for tier, share in found.shares.items():
        metadata |= {
            f"{tier} bars": share.of,
            f"{tier} missing": share.bad,
            f"{tier} missing %": round(100 * share.rate, 3),
            f"{tier} target %": round(100 * targets[tier], 3),
        }
    if found.incomplete:
        metadata["symbols"] = dg.MetadataValue.table(
            [
                dg.TableRecord(
                    {
                        "symbol": one.symbol,
                        "tier": one.tier.value,
                        "session": one.session.isoformat(),
                        "missing": one.missing,
                        "given up": one.given_up,
                        "never asked for": one.unasked,
                    }
                )
                for one in found.incomplete[:_ROWS_IN_METADATA]
            ]
        )
    if level is not Grade.KEPT and found.incomplete:
        worst = found.incomplete[0]
        where = f"--symbols {worst.symbol} --interval {interval}"
        metadata["what to do"] = dg.MetadataValue.md(
            f"1. Why: `mdp gaps {where} --explain`. What is due is asked for by the sensor `gaps` without you.\n"
            f"2. At once: `mdp backfill --symbols {worst.symbol} --interval {interval.source or interval} --start {worst.session} "
            f"--end {worst.session}`.\n"
            f"3. What was given up, after a provider was repaired: `mdp gaps {where} --retry`."
        )
    bad = [f"{tier} lacks {share.bad:,} of {share.of:,} bars" for tier, share in found.shares.items() if share.bad]
    return _result(COMPLETE, level, metadata, ", ".join(bad) or "every bar that was due is there or known to be empty")


# --- prices ------------------------------------------------------------------------------------------------------------------


def sane_result(found: "PriceSanity", interval: Interval) -> dg.AssetCheckResult:
    """An error where a stored price is off by a factor; a warning where one may be, or where bars were refused and not replaced."""
    wrong, doubtful = found.wrong, found.doubtful
    refused = sum(one.bars for one in found.refused)
    level = Grade.BROKEN if wrong else Grade.WARNING if doubtful or refused else Grade.KEPT
    metadata: dict[str, Any] = {
        "sessions": _sessions(found.sessions),
        "symbols looked at": found.symbols,
        "wrong": len(wrong),
        "doubtful": len(doubtful),
        "confirmed by a second provider": len(found.odd) - len(wrong) - len(doubtful),
        "refused and not replaced": refused,
        **{f"flag {name}": count for name, count in sorted(found.flags.items())},
    }
    if found.refused:
        metadata["refused"] = dg.MetadataValue.table(
            [dg.TableRecord({"reason": one.reason[:200], "bars": one.bars, "for example": one.example}) for one in found.refused]
        )
    if found.odd:
        metadata["prices"] = dg.MetadataValue.table(
            [
                dg.TableRecord(
                    {
                        "symbol": one.symbol,
                        "tier": one.tier.value,
                        "bar": one.session.isoformat() if interval.is_daily else f"{one.opened_at:%Y-%m-%d %H:%M}Z",
                        "close": one.close,
                        "the one before": one.close_before,
                        "times": round(one.step.factor, 4),
                        "verdict": "wrong" if one.step.is_wrong else "confirmed" if one.is_agreed else "doubtful",
                        "why": one.step.reason,
                    }
                )
                for one in found.odd[:_ROWS_IN_METADATA]
            ]
        )
    if level is not Grade.KEPT:
        metadata["what to do"] = dg.MetadataValue.md(_about_prices(found, interval))
    said = [
        f"{len(wrong):,} prices are off by a factor" if wrong else "",
        f"{len(doubtful):,} moved further than anything known explains" if doubtful else "",
        f"{refused:,} bars were refused and nobody has given them since" if refused else "",
    ]
    return _result(SANE, level, metadata, "; ".join(filter(None, said)) or "no price is off by a factor")


def _about_prices(found: "PriceSanity", interval: Interval) -> str:
    if not found.wrong and not found.doubtful:
        return (
            "Bars broke a law and were kept apart, in `refused_bars`. Another provider is asked for them in turn; "
            f"`mdp gaps --interval {interval} --explain` says what is still missing."
        )
    one = (found.wrong or found.doubtful)[0]
    where = f"--symbols {one.symbol} --interval {interval.source or interval} --start {one.session} --end {one.session}"
    return (
        f"1. Look: `mdp candles {one.symbol} --interval {interval} --start {one.session} --end {one.session} --provenance`.\n"
        f"2. Ask a second provider: `mdp agreement --ask {where}`. What it confirms is not doubted any more.\n"
        f"3. Fetch again: `mdp backfill {where} --refetch`, with `--provider NAME` to ask another one first. What is "
        f"replaced stays in `mdp revisions {one.symbol}`.\n\n"
        "Assets below this one that are materialised in the same run wait until the prices are right: this check blocks."
    )


# --- Dagster against the ledger ----------------------------------------------------------------------------------------------


def shown_result(found: Difference) -> dg.AssetCheckResult:
    """A warning where Dagster shows another state of the newest partitions than the ledger has."""
    if found.last is None:
        return _result(SHOWN, Grade.KEPT, {}, "no session is over since long enough")
    level = Grade.WARNING if found.not_shown or found.not_settled else Grade.KEPT
    metadata: dict[str, Any] = {
        "sessions": f"{found.first} to {found.last}",
        "partitions that the ledger has": found.compared,
        "not shown in Dagster": len(found.not_shown),
        "shown, and not in the ledger": len(found.not_settled),
    }
    cells = [("not shown", cell) for cell in found.not_shown] + [("not in the ledger", cell) for cell in found.not_settled]
    if cells:
        metadata["partitions"] = dg.MetadataValue.table(
            [dg.TableRecord({"partition": cell.key, "what": what}) for what, cell in cells[:_ROWS_IN_METADATA]]
        )
        metadata["what to do"] = dg.MetadataValue.md(
            "* Not shown: nothing is lost; `mdp reconcile` reports to Dagster what the ledger has.\n"
            "* Shown, and not in the ledger: the ledger was changed or restored from an older backup. `mdp reconcile --dry-run` "
            "says what is wrong, `mdp reconcile --repair` rights it, and the gap sensor fetches the rest."
        )
    text = (
        f"{len(found.not_shown):,} partitions are not shown in Dagster, {len(found.not_settled):,} are shown and not in the ledger"
    )
    return _result(SHOWN, level, metadata, text if cells else "both say the same")


def left_failed_result(left: Sequence[LeftFailed], interval: Interval) -> dg.AssetCheckResult:
    """A warning where runs that failed left partitions that nobody has brought since."""
    metadata: dict[str, Any] = {"left failed": len(left), "failed runs of the last days": FAILED_RUNS_OF.days}
    if left:
        metadata["partitions"] = dg.MetadataValue.table(
            [
                dg.TableRecord({"partition": one.cell.key, "run": one.run_id, "failed at": f"{one.failed_at:%Y-%m-%d %H:%M}Z"})
                for one in left[:_ROWS_IN_METADATA]
            ]
        )
        symbol, period = left[0].cell.symbol, left[0].cell.period
        metadata["what to do"] = dg.MetadataValue.md(
            f"1. Why: the run's page, `/runs/{left[0].run_id}`; its last event names the reasons.\n"
            "2. The sensor `gaps` asks again by itself, further and further apart.\n"
            f"3. At once: `mdp backfill --symbols {symbol} --interval {interval.source or interval} --start {period} "
            f"--end {period}` (a bucket's key is no symbol: `mdp gaps --explain` names those in it)."
        )
    return _result(
        LEFT_FAILED,
        Grade.WARNING if left else Grade.KEPT,
        metadata,
        f"{len(left):,} partitions failed and are still missing" if left else "what failed was brought since, or nothing failed",
    )


# --- the pipeline ------------------------------------------------------------------------------------------------------------


def dead_letters_result(found: "DeadGrowth") -> dg.AssetCheckResult:
    """A warning where something became a dead letter within the hour."""
    new = sum(count for _, count in found.reasons)
    metadata: dict[str, Any] = {"dead letters": found.total, "of the last hour": new}
    if found.reasons:
        metadata["reasons"] = dg.MetadataValue.table(
            [dg.TableRecord({"reason": reason[:300], "jobs": count}) for reason, count in found.reasons[:_ROWS_IN_METADATA]]
        )
        metadata["what to do"] = dg.MetadataValue.md(
            "1. What and since when: `mdp dlq stats`, `mdp dlq list`.\n"
            "2. After the cause is gone: `mdp dlq requeue-all`; nothing is asked for twice.\n\n"
            "Page: docs/operations/dead-letters-growing.md."
        )
    return _result(
        DEAD,
        Grade.WARNING if new else Grade.KEPT,
        metadata,
        f"{new:,} within the last hour, {found.total:,} in all" if new else f"none within the last hour, {found.total:,} in all",
    )


def horizon_result(last_sessions: "Mapping[str, date]", now: "datetime") -> dg.AssetCheckResult:
    """A warning where a calendar ends soon: beyond it nothing is expected, so nothing is missed."""
    days = {name: (last - now.date()).days for name, last in last_sessions.items()}
    near = {name: left for name, left in days.items() if left < HORIZON_DAYS}
    metadata: dict[str, Any] = {
        **{f"{name} days": left for name, left in days.items()},
        **{f"{name} until": last.isoformat() for name, last in last_sessions.items()},
    }
    if near:
        metadata["what to do"] = dg.MetadataValue.md(
            "1. Upgrade `exchange_calendars`.\n2. `mdp universe load` your universe again: it writes the plan with the sessions "
            "now known.\n\nPage: docs/operations/calendar-horizon-near.md."
        )
    said = ", ".join(f"{name} ends in {left} days" for name, left in sorted(near.items(), key=lambda item: item[1]))
    return _result(HORIZON, Grade.WARNING if near else Grade.KEPT, metadata, said or "every calendar reaches far enough")


# --- words -------------------------------------------------------------------------------------------------------------------


def _result(name: str, found: Grade, metadata: Mapping[str, Any], text: str) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=name,
        passed=found is Grade.KEPT,
        severity=dg.AssetCheckSeverity.ERROR if found is Grade.BROKEN else dg.AssetCheckSeverity.WARN,
        description=text,
        metadata=metadata,
    )


def _sessions(sessions: "Mapping[str, date]") -> str:
    return ", ".join(f"{name} {session}" for name, session in sorted(sessions.items())) or "none"


def _first(sessions: "Mapping[str, date]") -> str:
    return min(sessions.values()).isoformat()


_PROMISES = (
    _Promise(
        ON_TIME,
        "The newest final bar of every followed symbol is there: of each of T0, of T1 and T2 of all but what MDP_SLO_TARGETS "
        "allows. "
        "Judged against the exchange's calendar; while nothing is due, nothing is late.",
        lambda asked: on_time_result(asked.workbench.census(asked.interval), asked.interval, asked.targets),
    ),
    _Promise(
        COMPLETE,
        "The newest session that closed longer than MDP_EOD_WITHIN_SECONDS ago lacks nothing: every bar is there, confirmed "
        "empty or halted; of T1 and T2 all but what MDP_SLO_TARGETS allows.",
        lambda asked: complete_result(asked.workbench.completeness(asked.interval), asked.interval, asked.targets),
    ),
    _Promise(
        SANE,
        "No newest stored price is off by a factor: of a hundred, of a split, or of more than a market moves; and no bar was "
        "refused without another in its place. Assets below that run with it wait while prices are wrong.",
        lambda asked: sane_result(asked.workbench.price_sanity(asked.interval), asked.interval),
        blocking=True,
    ),
    _Promise(
        SHOWN,
        f"Of the last {SESSIONS} finished sessions Dagster shows as materialised what the ledger has, and nothing else.",
        lambda asked: shown_result(
            difference(
                asked.workbench,
                asked.instance,
                asked.interval,
                asked.plan,
                settles_within=timedelta(seconds=asked.settings.eod_within_seconds),
            )
        ),
    ),
    _Promise(
        LEFT_FAILED,
        f"What runs of the last {FAILED_RUNS_OF.days} days failed to bring has come since, or a run is at it.",
        lambda asked: left_failed_result(left_failed(asked.workbench, asked.instance, asked.interval, asked.plan), asked.interval),
    ),
)


# --- the job -----------------------------------------------------------------------------------------------------------------


def check_keys() -> list[dg.AssetCheckKey]:
    """Every check of ours that the job evaluates."""
    return [
        *(dg.AssetCheckKey(asset_key(interval), promise.name) for interval in Interval for promise in _PROMISES),
        *(dg.AssetCheckKey(asset_key(interval), PROVIDERS_AGREE) for interval in FETCHED_INTERVALS),
        dg.AssetCheckKey(COVERAGE_KEY, DEAD),
        dg.AssetCheckKey(COVERAGE_KEY, HORIZON),
    ]


def checks_job() -> Any:  # noqa: ANN401 - Dagster has no public name for what define_asset_job returns
    """All of them in one run, one after the other, in one process."""
    return dg.define_asset_job(
        CHECKS,
        selection=dg.AssetSelection.checks(*check_keys()),
        description="Evaluate every check of the candles: freshness, completeness, prices, agreement, partitions, jobs, calendars.",
        tags={CAUSE: "maintenance"},
        executor_def=dg.in_process_executor,
    )


def checks_schedule() -> dg.ScheduleDefinition:
    """Every quarter of an hour while an exchange is open or has closed within three hours, else once an hour."""

    @dg.schedule(
        name="candle_checks_every_15_minutes",
        job_name=CHECKS,
        # Not at the same minute as the look at the whole ledger: one maintenance run at a time.
        cron_schedule="5-59/15 * * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Evaluates every check: each quarter of an hour while a market is open and three hours after, else each hour.",
    )
    def every_15_minutes(
        context: dg.ScheduleEvaluationContext, workbenches: dg.ResourceParam[OpensWorkbench]
    ) -> dg.RunRequest | dg.SkipReason:
        unfinished = context.instance.get_runs(dg.RunsFilter(job_name=CHECKS, statuses=UNFINISHED), limit=1)
        if unfinished:
            return dg.SkipReason(f"run {unfinished[0].run_id} still checks")
        if context.scheduled_execution_time.minute >= 15:
            with workbenches.open() as workbench:
                if not _something_happens(workbench):
                    return dg.SkipReason("no market is open or has just closed: the next look is at five past the hour")
        return dg.RunRequest(tags={CAUSE: "maintenance"})

    return every_15_minutes


def _something_happens(workbench: Workbench) -> bool:
    now = workbench.now()
    for name in {instrument.calendar for instrument in workbench.instruments(active_only=True)}:
        calendar = workbench.calendar(name)
        first = max((now - timedelta(days=2)).date(), calendar.first_session)
        last = min((now + timedelta(days=1)).date(), calendar.last_session)
        if last < first:
            continue
        bounds = calendar.bounds(first, last)
        at = now.timestamp()
        if ((bounds.opens_at <= at) & (bounds.closes_at + _AFTER_CLOSE.total_seconds() >= at)).any():
            return True
    return False
