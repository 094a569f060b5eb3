"""Carries out leased jobs: what each asks for is fetched, judged and stored by the use-cases, and the queue is told how it ended.

Jobs of one interval, lane and provider share requests: they are one call of ``ingest_candles``. Which jobs are leased, and when, is
the sensor's business in defs.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, cast

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.capabilities import QUOTES_L1, Lane
from market_data_pipeline.domain.coverage import Verdict
from market_data_pipeline.domain.errors import InvalidInputError, MarketDataError, NoProviderAvailableError, UnavailableError
from market_data_pipeline.domain.jobs import BackfillJob, QuotesFetchJob, job_of
from market_data_pipeline.domain.queue import JobState
from market_data_pipeline.domain.sessions import date_of
from market_data_pipeline.domain.tracing import in_its_own_context
from market_data_pipeline.ingest.candles import ingest_candles
from market_data_pipeline.ingest.derive import derive_candles
from market_data_pipeline.ingest.report import Stretch, StretchReport
from market_data_pipeline.ingest.snapshots import fetch_quotes
from market_data_pipeline.ingest.telling import Few
from market_data_pipeline.observability.logs import bound

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from market_data_pipeline.domain.jobs import BarsFetchJob, Job
    from market_data_pipeline.domain.queue import Lease
    from market_data_pipeline.domain.sessions import TradingCalendar
    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.storage.jobs import JobQueue

# What is fetched is derived from in lots, each of which costs some statements. A job's end waits for its lot, but not for long:
# what has ended is not done again after a crash.
STRETCHES_DERIVED_TOGETHER, LONGEST_LOT_SECONDS = 200, 2.0
# A heartbeat is lost with one bad moment of the database; a lease is lost with four.
BEATS_A_LEASE = 4
# A result is for people: what is longer is in the ledger.
_NAMED_IN_A_RESULT = 10
# A job that failed so often is carried out alone: if it is what makes the others fail, they end now.
_ALONE_FROM = 3

_Key = tuple[int, date]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """How one job went. ``failure`` None: done, and ``result`` says what came; else whether trying again could help.

    ``reports`` are those of its stretches that were answered, the derived ones included.
    """

    lease: Lease
    result: Mapping[str, Any] = field(default_factory=dict)
    failure: str | None = None
    is_final: bool = False
    reports: Sequence[tuple[Interval, StretchReport]] = ()


@dataclass(frozen=True, slots=True)
class EndedJob:
    """An outcome, and what the queue made of it. None: the lease had been lost; somebody else ends the job."""

    outcome: JobOutcome
    state: JobState | None


def work_off(leases: Sequence[Lease], *, queue: JobQueue, pipeline: Pipeline, run_id: str | None = None) -> Iterator[EndedJob]:
    """Carry out those of ``leases`` that are not lost, hold them meanwhile, and end each job as soon as its outcome is known.

    Cancelled half-way, it gives back what it has not ended. Where it breaks, or its process is killed, the leases lapse: the jobs
    are leased again, one attempt older, and what they had stored by then is not asked for a second time.
    """
    still = queue.heartbeat(leases)
    left = {lease.job_id: lease for lease in leases if lease.job_id in still}
    few = Few()
    with held(list(left.values()), queue):
        try:
            for outcome in carry_out(list(left.values()), pipeline=pipeline, run_id=run_id):
                del left[outcome.lease.job_id]
                ended = EndedJob(outcome, _end(outcome, queue))
                _tell(ended, few)
                yield ended
        except Exception:
            # Given back at once, what breaks would be tried for ever: giving back is no attempt.
            raise
        except BaseException:
            queue.release(list(left.values()))
            raise


def _tell(ended: EndedJob, few: Few) -> None:
    lease, failure = ended.outcome.lease, ended.outcome.failure
    level = logging.DEBUG if failure is None else few.level(logging.WARNING, ended.state)
    word = "lost to another worker" if ended.state is None else ended.state.value
    said = "" if failure is None else f", attempt {lease.attempts}: {failure}"
    about = {"job_id": lease.job_id, "kind": lease.kind.value, "tier": lease.tier.value}
    logger.log(level, "job %s (%s): %s%s", lease.job_id, lease.kind.value, word, said, extra=about)


def _end(outcome: JobOutcome, queue: JobQueue) -> JobState | None:
    lease = outcome.lease
    if outcome.failure is not None:
        return queue.fail(lease, outcome.failure, is_final=outcome.is_final)
    return JobState.DONE if queue.complete(lease, result=outcome.result) else None


@contextmanager
def held(leases: Sequence[Lease], queue: JobQueue) -> Iterator[None]:
    """Keep the leases from lapsing for as long as the block lasts, from a thread of its own."""
    over = threading.Event()

    def keep() -> None:
        while not over.wait(queue.policy.lease_seconds / BEATS_A_LEASE):
            try:
                queue.heartbeat(leases)
            except MarketDataError:
                # The work itself meets the same trouble and says so; the next beat may succeed.
                logger.warning("a heartbeat of %d leased jobs was lost", len(leases), exc_info=True)

    thread = threading.Thread(target=keep, name="heartbeat of leased jobs", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def carry_out(leases: Sequence[Lease], *, pipeline: Pipeline, run_id: str | None = None) -> Iterator[JobOutcome]:
    """Do what the jobs ask for and yield one outcome for each, as soon as it is known. Repeating it is safe.

    Quotes first, then bars of running sessions, then history. Of a job about many symbols, one that is unknown or that nobody
    answered for is named in the result; a job fails where all of its symbols do. A payload that is no job, symbols that the
    universe never had, a provider that is not there: trying again cannot help, and the failure is final.
    """
    readable: list[tuple[Lease, Job]] = []
    for lease in leases:
        try:
            readable.append((lease, job_of(lease)))
        except InvalidInputError as wrong:
            yield JobOutcome(lease, failure=str(wrong), is_final=True)
    known = _instruments({symbol for _, job in readable for symbol in job.symbols}, pipeline)
    groups: dict[tuple[Any, ...], list[_Task]] = defaultdict(list)
    for lease, job in readable:
        members = [known[symbol] for symbol in job.symbols if symbol in known]
        task = _Task(lease, job, members, [symbol for symbol in job.symbols if symbol not in known])
        if members:
            groups[_group_of(task)].append(task)
        else:
            yield JobOutcome(
                lease, failure=f"not in the universe: {_some(task.unknown)}; load them (mdp universe load)", is_final=True
            )
    for _, tasks in sorted(groups.items(), key=lambda item: item[0][:2]):
        yield from _safely(tasks, pipeline, run_id)


def sessions_of(job: BarsFetchJob | BackfillJob, calendar: TradingCalendar) -> tuple[date, date] | None:
    """The first and the last session with a part in the job's window; None where it holds none.

    Of 1d, whose bars are labelled by date, the sessions of the dates in the window. What the calendar does not know is left out.
    """
    if job.interval.is_daily:
        first, last = job.start.date(), (job.end - timedelta(microseconds=1)).date()
    else:
        # A session is named by its date, and may begin or end on the UTC day before or after.
        first, last = job.start.date() - timedelta(days=1), job.end.date() + timedelta(days=1)
    bounds = calendar.bounds(max(first, calendar.covered_from), min(last, calendar.covered_until))
    found = bounds.session
    if not job.interval.is_daily:
        found = found[(bounds.opens_at < job.end.timestamp()) & (bounds.closes_at > job.start.timestamp())]
    return (date_of(int(found[0])), date_of(int(found[-1]))) if len(found) else None


# --- one job and its group


@dataclass(eq=False)
class _Task:
    """A readable job on its way. ``keys``: the stretches that it waits for, or is made of once all have come."""

    lease: Lease
    job: Job
    members: Sequence[Instrument]
    unknown: Sequence[str]
    keys: dict[_Key, None] = field(default_factory=dict)
    is_over: bool = False

    @property
    def window(self) -> BarsFetchJob | BackfillJob:
        """The job of a task that is about bars."""
        return cast("BarsFetchJob | BackfillJob", self.job)


def _group_of(task: _Task) -> tuple[Any, ...]:
    """What tasks must have in common to share requests; the first two put the groups in order."""
    job, hint = task.job, task.job.provider_hint or ""
    alone = "" if task.lease.attempts < _ALONE_FROM else _shuffled(task.lease)
    if isinstance(job, QuotesFetchJob):
        return 0, alone, hint
    return (2 if isinstance(job, BackfillJob) else 1), alone, hint, (job.interval.source or job.interval).seconds


def _shuffled(lease: Lease) -> str:
    # In another order at each attempt: what stands behind one that takes the process along is not always the same.
    return hashlib.blake2b(f"{lease.job_id}:{lease.attempts}".encode(), digest_size=8).hexdigest()


@in_its_own_context
def _safely(tasks: Sequence[_Task], pipeline: Pipeline, run_id: str | None) -> Iterator[JobOutcome]:
    """The outcomes of one group; whatever breaks fails the jobs of it that have none yet, and no other."""
    of_quotes = isinstance(tasks[0].job, QuotesFetchJob)
    job_ids = _some([task.lease.job_id for task in tasks])
    try:
        with (
            bound(run_id=run_id, job_id=job_ids),
            pipeline.tracer.span("jobs", job_id=job_ids, jobs=len(tasks), run_id=run_id or ""),
        ):
            yield from (_quotes if of_quotes else _bars)(tasks, pipeline, run_id)
    except UnavailableError:
        # The database, most likely: no job's fault, and nobody could be told.
        raise
    except (MarketDataError, ValueError, TypeError, LookupError, ArithmeticError) as broken:
        # The last four are faults of ours: told as they are, tried again a few times, and a dead letter in the end.
        is_ours = not isinstance(broken, MarketDataError)
        if is_ours:
            logger.exception("%d jobs failed together", len(tasks))
        reason = f"{type(broken).__name__}: {broken}" if is_ours else str(broken)
        for task in tasks:
            if not task.is_over:
                yield JobOutcome(task.lease, failure=reason, is_final=isinstance(broken, InvalidInputError))


def _instruments(symbols: set[str], pipeline: Pipeline) -> dict[str, Instrument]:
    """Those of ``symbols`` that the universe has or had. One statement: ``symbols=`` would refuse them all for one unknown."""
    if not symbols:
        return {}
    return {i.symbol: i for i in pipeline.universe.instruments(active_only=False) if i.symbol in symbols}


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED_IN_A_RESULT
    return ", ".join(names[:_NAMED_IN_A_RESULT]) + (f" and {more} more" if more > 0 else "")


# --- bars


def _bars(tasks: Sequence[_Task], pipeline: Pipeline, run_id: str | None) -> Iterator[JobOutcome]:
    job = tasks[0].window
    fetched = job.interval.source or job.interval
    stretches = _stretches(tasks, pipeline)
    waiting: dict[_Key, list[_Task]] = defaultdict(list)
    for task in tasks:
        for key in task.keys:
            waiting[key].append(task)
        if not task.keys:
            task.is_over = True
            yield JobOutcome(task.lease, {"sessions": 0, **_unknown(task)})
    if not stretches:
        return
    lane = Lane.BACKFILL if isinstance(job, BackfillJob) else Lane.LIVE
    pass_ = ingest_candles(stretches, fetched, pipeline=pipeline, lane=lane, hint=job.provider_hint, run_id=run_id)
    told: dict[_Key, list[tuple[Interval, StretchReport]]] = {}
    lot: list[StretchReport] = []
    begun = time.monotonic()
    for report in pass_:
        lot.append(report)
        if len(lot) >= STRETCHES_DERIVED_TOGETHER or time.monotonic() - begun > LONGEST_LOT_SECONDS:
            yield from _settle(lot, fetched, waiting, told, pipeline, run_id)
            lot, begun = [], time.monotonic()
    yield from _settle(lot, fetched, waiting, told, pipeline, run_id)


def _stretches(tasks: Sequence[_Task], pipeline: Pipeline) -> list[Stretch]:
    """What the tasks ask for, no session of an instrument twice, and in each task the keys of its stretches.

    Windows of two jobs that overlap are one stretch, and it counts for both.
    """
    asked: dict[int, list[tuple[date, date, _Task]]] = defaultdict(list)
    instruments: dict[int, Instrument] = {}
    for task in tasks:
        of_calendar: dict[str, tuple[date, date] | None] = {}
        for instrument in task.members:
            name = instrument.calendar
            if name not in of_calendar:
                of_calendar[name] = sessions_of(task.window, pipeline.calendars(name))
            sessions = of_calendar[name]
            if sessions is not None:
                instruments[instrument.symbol_id] = instrument
                asked[instrument.symbol_id].append((*sessions, task))
    stretches = []
    for symbol_id, wanted in asked.items():
        wanted.sort(key=lambda part: part[:2])
        joined: list[tuple[date, date, list[_Task]]] = []
        for first, last, task in wanted:
            if joined and first <= joined[-1][1]:
                begun, until, sharing = joined[-1]
                joined[-1] = (begun, max(until, last), [*sharing, task])
            else:
                joined.append((first, last, [task]))
        for first, last, sharing in joined:
            stretches.append(Stretch(instruments[symbol_id], first, last))
            for task in sharing:
                task.keys[symbol_id, first] = None
    return stretches


def _settle(
    lot: Sequence[StretchReport],
    fetched: Interval,
    waiting: Mapping[_Key, Sequence[_Task]],
    told: dict[_Key, list[tuple[Interval, StretchReport]]],
    pipeline: Pipeline,
    run_id: str | None,
) -> Iterator[JobOutcome]:
    """Derive from what came, and yield the jobs that wait for nothing any more."""
    touched: dict[int, _Task] = {}
    for report in lot:
        key = _key(report.stretch)
        told[key] = [(fetched, report)]
        touched |= {id(task): task for task in waiting[key]}
    # Of a running session nothing changes where nothing came. A finished one may have been fetched by a process that was killed.
    changed = [r.stretch for r in lot if r.failure is None and (r.inserted or r.verdicts.get(Verdict.PENDING, 0) == 0)]
    for interval in Interval:
        if interval.source is fetched and changed:
            for report in derive_candles(changed, interval, pipeline=pipeline, run_id=run_id):
                told[_key(report.stretch)].append((interval, report))
    for task in touched.values():
        if all(key in told for key in task.keys):
            task.is_over = True
            yield _outcome(task, [told[key] for key in task.keys])


def _key(stretch: Stretch) -> _Key:
    return stretch.instrument.symbol_id, stretch.first


def _outcome(task: _Task, told: Sequence[Sequence[tuple[Interval, StretchReport]]]) -> JobOutcome:
    fetched = [reports[0][1] for reports in told]
    failed = {report.stretch.instrument.symbol: report.failure for report in fetched if report.failure is not None}
    answered = [report for report in fetched if report.failure is None]
    if not answered:
        symbol, reason = next(iter(failed.items()))
        return JobOutcome(task.lease, failure=f"{symbol}: {reason}" if len(failed) == 1 else f"all {len(failed)} symbols: {reason}")
    result = {
        "inserted": sum(report.inserted for report in fetched),
        "missing": sum(report.verdicts.get(Verdict.MISSING, 0) for report in fetched),
        "requests": round(sum(report.requests for report in fetched), 3),
        "providers": sorted({name for report in fetched for name in report.providers}),
        **_unknown(task),
        **({"failed": dict(list(failed.items())[:_NAMED_IN_A_RESULT]), "failed_symbols": len(failed)} if failed else {}),
    }
    good = [pair for reports in told if reports[0][1].failure is None for pair in reports if pair[1].failure is None]
    return JobOutcome(task.lease, result, reports=good)


def _unknown(task: _Task) -> dict[str, object]:
    return {"unknown": list(task.unknown[:_NAMED_IN_A_RESULT]), "unknown_symbols": len(task.unknown)} if task.unknown else {}


# --- quotes


def _quotes(tasks: Sequence[_Task], pipeline: Pipeline, run_id: str | None) -> Iterator[JobOutcome]:
    hint = tasks[0].job.provider_hint
    configured, reasons = pipeline.router.configured(QUOTES_L1, hint=hint)
    if not configured:
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise InvalidInputError("no provider serves quotes" + (f": {why}" if why else ""))
    wanted = {i.symbol_id: i for task in tasks for i in task.members}
    providers: dict[str, str] = {}
    failures: dict[str, str] = {}
    try:
        for report in fetch_quotes(list(wanted.values()), pipeline=pipeline, hint=hint, run_id=run_id):
            providers |= report.providers
            failures |= report.failures
    except NoProviderAvailableError as nobody:
        # Their breakers are open or their budgets spent: later somebody can be asked.
        failures |= dict.fromkeys((i.symbol for i in wanted.values()), str(nobody))
    for task in tasks:
        task.is_over = True
        names = [i.symbol for i in task.members]
        failed = {name: failures.get(name, "no answer") for name in names if name not in providers}
        if len(failed) == len(names):
            yield JobOutcome(task.lease, failure=f"{names[0]}: {failed[names[0]]}")
            continue
        result = {
            "quotes": len(names) - len(failed),
            "providers": sorted({providers[name] for name in names if name in providers}),
            **_unknown(task),
            **({"failed": dict(list(failed.items())[:_NAMED_IN_A_RESULT]), "failed_symbols": len(failed)} if failed else {}),
        }
        yield JobOutcome(task.lease, result)
