"""The main use-case: ask the ledger what is missing, fetch only that from whoever can give it, judge it, store it, report it."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.candles import CandleColumns
from market_data_pipeline.domain.capabilities import Lane, Priority, bars
from market_data_pipeline.domain.coverage import LedgerRow
from market_data_pipeline.domain.errors import (
    BarrenError,
    BudgetSpentError,
    InvalidInputError,
    ProviderError,
    RateLimitedError,
    StaleError,
    UnknownSymbolError,
)
from market_data_pipeline.domain.health import Outcome
from market_data_pipeline.domain.incidents import Emptiness, EmptinessPolicy
from market_data_pipeline.domain.ports import BarsAnswer, BarsProvider, BarsRequest, CandleBatch, Fetch, ManyBarsProvider
from market_data_pipeline.domain.quality import Reference
from market_data_pipeline.domain.routing import goes_on, other_feed, series_base
from market_data_pipeline.domain.sessions import date_of
from market_data_pipeline.domain.tracing import in_its_own_context
from market_data_pipeline.ingest.coverage import codes_of, listed, masks_of, rows_by_symbol
from market_data_pipeline.ingest.dispatch import Dispatcher
from market_data_pipeline.ingest.grid import Grid
from market_data_pipeline.ingest.judge import judge
from market_data_pipeline.ingest.merge import Merged, merge
from market_data_pipeline.ingest.plan import neighbours, next_over, windows, within_reach
from market_data_pipeline.ingest.routing import Route, nobody, outcome_of, words_of
from market_data_pipeline.ingest.settlement import settlements
from market_data_pipeline.ingest.telling import PassLog
from market_data_pipeline.ingest.work import Errand, Failure, Given, Job, Work
from market_data_pipeline.observability.logs import bound
from market_data_pipeline.storage.fetches import FetchStore
from market_data_pipeline.storage.references import References, Span

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from datetime import date, datetime

    from market_data_pipeline.domain.candles import Bools, Interval
    from market_data_pipeline.domain.capabilities import Capability
    from market_data_pipeline.domain.tracing import Span as TraceSpan
    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.judge import Judged
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.ingest.plan import Window
    from market_data_pipeline.ingest.report import Stretch, StretchReport

# Instruments planned at a time: their ledger rows are in memory together. More where one request takes more symbols, as long as
# the rows are not too many.
_INSTRUMENTS_AT_ONCE, _SESSIONS_AT_ONCE = 100, 50_000
# A transaction of this many bars keeps the grouping gain (STORAGE.md §2c) without losing much to a crash.
_BARS_PER_WRITE = 50_000
# Behind a slow provider answers do not wait longer than this for company: what is stored need not be fetched again.
_LONGEST_WAIT_SECONDS = 2.0
# One request for many symbols asks for no more bars than this: its answer is in memory whole, and takes one deadline.
_BARS_A_REQUEST = 100_000
# A provider that says 429 without a time is not asked again for so long by this pass; others learn it from the budget.
_PAUSE_SECONDS = 60.0
# The order of providers is looked up again after this long, or when one has failed.
_ROUTE_SECONDS = 0.5
# In a running session an empty answer says something from this many bars on: a minute without a trade is nothing remarkable.
_BARS_TO_BE_MISSED = 15
# A run of a few symbols is judged together with what other processes were answered within this time.
_COMPANY = timedelta(minutes=15)
_EMPTINESS = EmptinessPolicy()
# Below this share some symbols still come, and are worth a request each.
_LOST_EVERYTHING = 0.95
# What nobody can be asked for comes back with the first provider that can; a disabled one may be repaired by hand before its day.
_SHORTEST_POSTPONEMENT, _LONGEST_POSTPONEMENT = timedelta(minutes=1), timedelta(hours=1)
_DAY_SECONDS = 86_400
# In a span that is about many, so many are named; the others are in the spans beside it.
_SYMBOLS_NAMED, _MOST_LINKS = 10, 100


@in_its_own_context
def ingest_candles(
    stretches: Sequence[Stretch],
    interval: Interval,
    *,
    pipeline: Pipeline,
    refetch: bool = False,
    run_id: str | None = None,
    lane: Lane = Lane.BACKFILL,
    hint: str | None = None,
) -> Iterator[StretchReport]:
    """Bring the stretches up to date and report each one as soon as it is stored; the order is that of completion.

    Only what the ledger lacks is asked for, of the best provider that can be asked; what an answer lacks goes to the next by the
    rules of ``domain.routing``. ``refetch`` asks again for what is there (revisions are kept, nothing is deleted). ``lane`` and the
    tiers of the instruments say how much of the budgets is open to the requests; ``hint``: the provider to ask first. Repeating it
    is safe. What nobody answers fails its own sessions: their reports say why, the others are stored.
    """
    ingest = _Ingest(pipeline, interval, lane=lane, hint=hint, refetch=refetch, run_id=run_id)
    by_instrument = groupby(sorted(stretches, key=_place), key=_place)
    groups = [list(group) for _, group in by_instrument]
    about: dict[str, str | None] = {"run_id": run_id, "interval": interval.value, "lane": lane.value}
    with (
        bound(**about),
        pipeline.tracer.span("ingest", stretches=len(stretches), interval=interval.value, lane=lane.value, run_id=run_id or ""),
        ingest.dispatcher,
        ingest.store,
    ):
        at_once = ingest.at_once(groups)
        for at in range(0, len(groups), at_once):
            for report in ingest.carry_out(ingest.plan(groups[at : at + at_once])):
                ingest.said.note(report)
                yield report
        ingest.tell_of_recoveries()
        ingest.said.tell()


def _place(stretch: Stretch) -> tuple[str, int]:
    # The best tiers first: what is left of a scarce budget is theirs.
    return stretch.instrument.tier, stretch.instrument.symbol_id


@dataclass(frozen=True, slots=True)
class _Reply:
    """What came of one request: an answer or an error for each of its errands, and for those behind them, why nothing was sent."""

    answers: Sequence[BarsAnswer | ProviderError] = ()
    turned_away: str = ""
    is_recorded: bool = False
    """The health knows of it already."""
    is_postponed: bool = False
    """Others first; this provider may be asked after them."""


class _Census:
    """The symbols that one provider answered for in this pass, and those of them without a single bar."""

    def __init__(self) -> None:
        self.empty: dict[int, bool] = {}
        self.is_told = False

    def note(self, symbol_id: int, *, is_empty: bool) -> None:
        self.empty[symbol_id] = is_empty and self.empty.get(symbol_id, True)

    def emptiness(self, company: Mapping[int, bool] | None = None) -> Emptiness:
        together = {**(company or {}), **self.empty}
        return _EMPTINESS.judge(asked=len(together), barren=sum(together.values()))

    @property
    def is_mostly_empty(self) -> bool:
        return 2 * sum(self.empty.values()) >= len(self.empty)


class _Ingest:
    """One pass over the instruments, chunk by chunk: what a failure taught holds for the chunks to come."""

    def __init__(
        self, pipeline: Pipeline, interval: Interval, *, lane: Lane, hint: str | None, refetch: bool, run_id: str | None
    ) -> None:
        self._pipeline, self._interval, self._capability = pipeline, interval, bars(interval)
        self._lane, self._hint, self._refetch, self._run_id = lane, hint, refetch, run_id
        configured, reasons = pipeline.router.configured(self._capability, hint=hint)
        self._serving = [(provider, capability) for provider, capability in configured if isinstance(provider, BarsProvider)]
        self._configured = [capability for _, capability in self._serving]
        if not self._configured:
            why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
            raise InvalidInputError(f"no provider serves {interval} bars" + (f": {why}" if why else ""))
        self._settle = pipeline.settle_seconds(interval)
        self._most = pipeline.settings.heal_budget_share if lane is Lane.HEALING else 1.0
        self.dispatcher = Dispatcher(self.send, at_a_time=pipeline.settings.requests_in_flight)
        # One at a time: transactions on the same symbols would only wait for each other.
        self.store = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._storing: Future[list[Job]] | None = None
        self._references, self._fetches = References(pipeline.engine), FetchStore(pipeline.engine)
        self._unknown: dict[tuple[str, int], str] = {}
        self._paused: dict[tuple[str, str | None], tuple[float, str]] = {}
        self._suspects: set[str] = set()
        self._series: dict[int, str | None] = {}
        self._censuses: defaultdict[str, _Census] = defaultdict(_Census)
        self._quiet: list[tuple[Errand, Judged]] = []
        self._settled: list[Job] = []
        self._route: Route | None = None
        self._routed_at = 0.0
        self.said = PassLog(interval, lane)
        self._read_clock()

    def at_once(self, groups: Sequence[Sequence[Stretch]]) -> int:
        """How many instruments are planned together."""
        most = max(capability.symbols_per_request for capability in self._configured)
        days = max(((s.last - s.first).days + 1 for group in groups for s in group), default=1)
        return max(min(most, _SESSIONS_AT_ONCE // days), _INSTRUMENTS_AT_ONCE)

    def _read_clock(self) -> None:
        self._now: datetime = self._pipeline.clock.now()
        self._now_seconds = int(self._now.timestamp())

    def _instant(self) -> datetime:
        # A virtual clock may be at the other end of a connection: one look a chunk is enough.
        return self._now if self._pipeline.clock.is_virtual else self._pipeline.clock.now()

    # --- planning ------------------------------------------------------------------------------------------------------

    def plan(self, groups: list[list[Stretch]]) -> list[Work]:
        """Open the ledger for every session asked for, and cut what it lacks at this moment into jobs."""
        self._read_clock()
        first, last = min(s.first for g in groups for s in g), max(s.last for g in groups for s in g)
        rows = self._rows([g[0].instrument for g in groups], first, last)
        grids: dict[tuple[str, object, object], Grid] = {}
        works = []
        for group in groups:
            instrument = group[0].instrument
            key = (instrument.calendar, min(s.first for s in group), max(s.last for s in group))
            if key not in grids:
                grids[key] = Grid.of(self._pipeline.calendars(instrument.calendar), self._interval, key[1], key[2])
            works.append(self._work(instrument, grids[key], group, rows.get(instrument.symbol_id, [])))
        self._open_ledger(works)
        self._look_up_series(works)
        for work in works:
            self._cut(work)
        self._look_up_references([job for work in works for job in work.jobs if job.errands])
        return works

    def _work(self, instrument: Instrument, grid: Grid, stretches: list[Stretch], rows: list[LedgerRow]) -> Work:
        asked = np.zeros(len(grid), bool)
        for stretch in stretches:
            asked[grid.between(stretch.first, stretch.last)] = True
        if not asked.all():
            grid = grid.without(~asked)
        return Work(instrument, grid, stretches, masks_of(grid, rows))

    def _open_ledger(self, works: list[Work]) -> None:
        new = [
            LedgerRow(
                symbol_id=work.instrument.symbol_id,
                interval=self._interval,
                session=work.grid.sessions[place],
                opens_at=int(work.grid.opens_at[place]),
                closes_at=int(work.grid.closes_at[place]),
                present=np.zeros(int(work.grid.lengths[place]), bool),
                confirmed_empty=np.zeros(int(work.grid.lengths[place]), bool),
                next_attempt_at=self._now,
            )
            for work in works
            for place in np.flatnonzero(~work.masks.known).tolist()
            # Sessions outside an inferred listing, too: nobody asks for them, and where it is taken back they are known to lack.
            if work.instrument.as_filed.listed_on(work.grid.sessions[place])
        ]
        if new:
            self._pipeline.ledger.open_sessions(new, known_at=self._pipeline.known_at(self._now))

    def _as_asked(self, instrument: Instrument) -> Instrument:
        """Asked again on purpose, what was inferred of the listing is in question, too: only the universe file holds."""
        return instrument.as_filed if self._refetch else instrument

    def _cut(self, work: Work) -> None:
        """The jobs of one instrument. No session is in two of them."""
        grid = work.grid
        wanted = self._due(grid) & listed(self._as_asked(work.instrument), grid)
        mine = [capability for capability in self._configured if capability.knows(work.instrument.calendar)]
        wanted &= np.logical_or.reduce([np.zeros(len(wanted), bool), *(within_reach(grid, c, self._now_seconds) for c in mine)])
        wanted &= ~np.repeat(work.masks.misfit, grid.lengths)
        if not self._refetch:
            wanted &= ~work.masks.resolved
        if not wanted.any():
            return
        route = self._route_for(work.instrument)
        shares, left = self._shared_out(work, wanted, route)
        for provider, capability, window in shares:
            job = self._job(work, window.sessions, wanted)
            job.errands.append(Errand(job, provider, capability, window, insists=provider.name in self._suspects))
        for place in np.flatnonzero(grid.sessions_with(left)).tolist():
            self._job(work, slice(place, place + 1), wanted).nobody = str(nobody(route))

    def _job(self, work: Work, places: slice, wanted: Bools) -> Job:
        mine = wanted[work.grid.bars_of(places)].copy()
        job = Job(work, places, mine, np.zeros(len(mine), bool))
        work.jobs.append(job)
        return job

    def _due(self, grid: Grid) -> Bools:
        return grid.due(self._now_seconds, self._settle)

    def _shared_out(self, work: Work, wanted: Bools, route: Route) -> tuple[list[tuple[BarsProvider, Capability, Window]], Bools]:
        """Windows for the providers of ``route``, and what none of them has or reaches. No session is in two windows.

        A session goes whole to the first who has all that is wanted of it, or else to the first who has anything.
        """
        grid, left = work.grid, wanted.copy()
        beside = neighbours(
            grid,
            self._pipeline.calendars(work.instrument.calendar),
            work.masks.resolved,
            work.masks.attempts,
            confirm_after=self._pipeline.settings.healing_policy.confirm_after,
            now=self._now_seconds,
            settle_seconds=self._settle,
        )
        shares: list[tuple[BarsProvider, Capability, Window]] = []
        for is_whole in (True, False):
            for provider, capability in route.order:
                due = grid.due(self._now_seconds, self._settle_of(capability))
                mine = left & due & within_reach(grid, capability, self._now_seconds)
                if is_whole:
                    mine &= ~np.repeat(grid.sessions_with(left & ~mine), grid.lengths)
                my_sessions = grid.sessions_with(mine)
                if not isinstance(provider, BarsProvider) or not my_sessions.any():
                    continue
                # No window may span a session that is another's.
                stretch = np.repeat(np.cumsum(grid.sessions_with(wanted) & ~my_sessions), grid.lengths)
                for number in np.unique(stretch[mine]).tolist() if stretch[-1] else [0]:
                    cut = windows(grid, mine & (stretch == number), due, capability, now=self._now_seconds, beside=beside)
                    shares += [(provider, capability, window) for window in cut]
                left &= ~np.repeat(my_sessions, grid.lengths)
        return shares, left

    def _settle_of(self, capability: Capability) -> int:
        return max(self._pipeline.settings.settle_seconds, capability.delay_seconds)

    # --- whom to ask ---------------------------------------------------------------------------------------------------

    def _look_up_series(self, works: Sequence[Work]) -> None:
        """Whose trades each series counts: only asked where the providers count different ones."""
        in_order = (
            self._pipeline.router.configured(self._capability)[0]
            or self._pipeline.router.configured(self._capability, hint=self._hint)[0]
        )
        configured = [capability.feed.volume_base for _, capability in in_order]
        if len({capability.feed.volume_base for capability in self._configured} | set(configured)) < 2:
            return
        symbol_ids = [work.instrument.symbol_id for work in works]
        stored = self._references.feeds(symbol_ids, self._interval)
        for symbol_id in symbol_ids:
            self._series[symbol_id] = series_base(configured, [feed.volume_base for feed in stored.get(symbol_id, ())])

    def _route_for(self, instrument: Instrument, *, without: frozenset[str] = frozenset()) -> Route:
        """Whom to ask for this instrument now, and why not the others."""
        if self._route is None or time.monotonic() - self._routed_at > _ROUTE_SECONDS:
            self._route = self._pipeline.router.candidates(self._capability, hint=self._hint, now=self._instant())
            self._routed_at = time.monotonic()
        order, passed_over = [], dict(self._route.passed_over)
        for provider, capability in self._route.order:
            obstacle = self._obstacle(instrument, provider.name, capability)
            if obstacle is not None:
                passed_over[provider.name] = obstacle
            elif provider.name not in without:
                order.append((provider, capability))
        order.sort(key=lambda pair: pair[0].name in self._suspects)
        return Route(self._capability, order, passed_over)

    def _obstacle(self, instrument: Instrument, name: str, capability: Capability) -> str | None:
        """What this pass has learned against asking ``name`` for this instrument."""
        if (name, instrument.symbol_id) in self._unknown:
            return self._unknown[name, instrument.symbol_id]
        if not capability.knows(instrument.calendar):
            return f"it does not serve {instrument.calendar}"
        if not self._pipeline.settings.allow_mixed_feeds:
            foreign = other_feed(capability.feed.volume_base, self._series.get(instrument.symbol_id))
            if foreign is not None:
                return foreign
        return self._pause_of(name, instrument.tier)

    def _pause_of(self, name: str, tier: str) -> str | None:
        for key in ((name, None), (name, tier)):
            until, reason = self._paused.get(key, (0.0, ""))
            if time.monotonic() < until:
                return reason
        return None

    def _again_at(self, instrument: Instrument) -> datetime:
        """When somebody can be asked for ``instrument`` again: a minute from now at the soonest, an hour at the latest."""
        now, health = self._instant(), self._pipeline.health
        healths, waits = health.all(now), [_LONGEST_POSTPONEMENT]
        for provider, capability in self._serving:
            if not capability.knows(instrument.calendar) or (provider.name, instrument.symbol_id) in self._unknown:
                continue
            known = healths.get((provider.name, self._capability))
            rest = timedelta() if known is None else known.rests_until(now=now, policy=health.policy) - now
            pauses = (self._paused.get((provider.name, tier), (0.0, ""))[0] for tier in (None, instrument.tier))
            waits.append(max(rest, timedelta(seconds=max(pauses) - time.monotonic())))
        return now + max(min(waits), _SHORTEST_POSTPONEMENT)

    def _learn(self, errand: Errand, error: ProviderError) -> None:
        """What one failure says about the requests not sent yet; what it says of the provider's health is in the book."""
        instrument, self._route = errand.job.work.instrument, None
        if isinstance(error, UnknownSymbolError):
            self._unknown[errand.name, instrument.symbol_id] = words_of(error)
        elif isinstance(error, RateLimitedError | BudgetSpentError):
            is_theirs = isinstance(error, RateLimitedError)
            seconds = error.retry_after_seconds if isinstance(error, RateLimitedError) else error.wait_seconds
            until = time.monotonic() + (_PAUSE_SECONDS if seconds is None else seconds)
            # Our own budget may be spent for one tier only.
            self._paused[errand.name, None if is_theirs else instrument.tier] = until, words_of(error)

    # --- asking --------------------------------------------------------------------------------------------------------

    def carry_out(self, works: list[Work]) -> Iterator[StretchReport]:
        """Send the errands, store the answers in large transactions, and report what is finished."""
        yield from self._report([work for work in works if not work.jobs])
        self._settled = [job for work in works for job in work.jobs if not job.errands]
        for job in self._settled:
            job.is_settled = True
        for work in works:
            for job in work.jobs:
                for errand in job.errands:
                    self._dispatch(errand)
        stored_at = time.monotonic()
        is_over = False
        while not is_over:
            for errands, reply in self.dispatcher.finished(self._storing):
                self._take_reply(errands, reply)
            if self.dispatcher.is_idle and self._quiet:
                self._decide_on_the_quiet()
            is_over = self.dispatcher.is_idle and not self._quiet
            waiting = sum(len(given.judged.columns) for job in self._settled for given in job.given)
            waited = time.monotonic() - stored_at >= _LONGEST_WAIT_SECONDS
            if not self._settled or not (waited or waiting >= _BARS_PER_WRITE or is_over):
                yield from self._stored(is_awaited=False)
            elif self._storing is None or self._storing.done() or is_over or waiting >= 4 * _BARS_PER_WRITE:
                yield from self._stored(is_awaited=True)
                done, self._settled = self._settled, []
                self._storing = self.store.submit(copy_context().run, self._store, done)
                stored_at = time.monotonic()
        yield from self._stored(is_awaited=True)

    def _stored(self, *, is_awaited: bool) -> Iterator[StretchReport]:
        """The reports of what has been stored since."""
        if self._storing is None or not (is_awaited or self._storing.done()):
            return
        done, self._storing = self._storing.result(), None
        for job in done:
            job.is_done = True
        finished = {id(job.work): job.work for job in done if not job.work.is_outstanding}
        yield from self._report(list(finished.values()))

    def _dispatch(self, errand: Errand) -> None:
        errand.job.under_way += 1
        window, capability, tier = errand.window, errand.capability, errand.job.work.instrument.tier
        most, group = 1, None
        if capability.symbols_per_request > 1 and isinstance(errand.provider, ManyBarsProvider):
            bars_of_one = errand.job.within(window)
            most = min(capability.symbols_per_request, max(1, _BARS_A_REQUEST // (bars_of_one.stop - bars_of_one.start)))
            group = (window.start, window.end, tier, errand.insists)
        self.dispatcher.put(errand, provider=errand.name, group=group, most=most)

    def send(self, errands: list[Errand]) -> _Reply:
        """One request, from a thread of the dispatcher. Whoever is under a cloud by now is not asked."""
        provider, instrument = errands[0].provider, errands[0].job.work.instrument
        unknown = self._unknown.get((provider.name, instrument.symbol_id)) if len(errands) == 1 else None
        obstacle = unknown or self._pause_of(provider.name, instrument.tier)
        if obstacle is not None:
            return _Reply(turned_away=obstacle)
        if provider.name in self._suspects and not errands[0].insists:
            return _Reply(turned_away="most of its answers are empty", is_postponed=True)
        admission = self._pipeline.health.admit(provider.name, self._capability, now=self._instant())
        if not admission.is_admitted:
            return _Reply(turned_away=admission.reason)
        # A trial is a single request, and one for several symbols may be several.
        trial = admission.is_trial
        requests = [self._request(errand, is_trial=trial) for errand in (errands[:1] if trial else errands)]
        began = time.monotonic()
        symbols = ",".join(errand.job.work.instrument.symbol for errand in errands[: min(len(requests), _SYMBOLS_NAMED)])
        try:
            with bound(provider=provider.name, symbol=symbols), self._fetch_span(errands[: len(requests)], symbols, trial) as span:
                for errand in errands[: len(requests)]:
                    errand.span = span
                if len(requests) > 1 and isinstance(provider, ManyBarsProvider):
                    return _Reply(provider.fetch_bars_of_many(requests, now=self._now))
                return _Reply([provider.fetch_bars(requests[0], now=self._now)], turned_away=admission.reason)
        except ProviderError as error:
            # At once: those behind this one must not be sent to an open breaker.
            self._pipeline.health.record(
                provider.name, self._capability, outcome_of(error, began), now=self._instant(), run_id=self._run_id
            )
            self._learn(errands[0], error)
            return _Reply([error] * len(requests), turned_away=admission.reason, is_recorded=True)

    def _fetch_span(self, errands: Sequence[Errand], symbols: str, trial: bool) -> AbstractContextManager[TraceSpan]:  # noqa: FBT001
        sessions = errands[0].grid.sessions
        return self._pipeline.tracer.span(
            "fetch",
            provider=errands[0].name,
            symbol=symbols,
            symbols=len(errands),
            interval=self._interval.value,
            first=str(sessions[0]),
            last=str(sessions[-1]),
            is_trial=trial,
        )

    def _request(self, errand: Errand, *, is_trial: bool) -> BarsRequest:
        instrument = errand.job.work.instrument
        return BarsRequest(
            instrument.name_at(errand.name),
            self._interval,
            errand.window.start,
            errand.window.end,
            Priority(self._lane, instrument.tier, is_trial=is_trial, most=self._most),
        )

    # --- what came back ------------------------------------------------------------------------------------------------

    def _take_reply(self, errands: list[Errand], reply: _Reply) -> None:
        asked, turned_away = errands[: len(reply.answers)], errands[len(reply.answers) :]
        answers = [
            answer if isinstance(answer, ProviderError) else self._judged(errand, answer)
            for errand, answer in zip(asked, reply.answers, strict=True)
        ]
        if answers and not reply.is_recorded:
            self._pipeline.health.record(
                asked[0].name, self._capability, _outcome(answers), now=self._instant(), run_id=self._run_id
            )
        # What several symbols shared was sent once, and is in the record of the first of them.
        sent = sum(answer.fetch is None or answer.fetch.attempts > 0 for answer in answers[: 1 if reply.is_recorded else None])
        for place, (errand, answer) in enumerate(zip(asked, answers, strict=True)):
            errand.share = sent / len(asked)
            if isinstance(answer, ProviderError):
                self._fail(errand, answer, is_first=place == 0 or not reply.is_recorded)
            else:
                self._take(errand, answer)
        for errand in turned_away:
            if not reply.is_postponed:
                errand.job.turned_away[errand.name] = reply.turned_away
            self._go_on(errand, BudgetSpentError.kind, without=not reply.is_postponed)
        for errand in errands:
            self._one_less(errand.job)

    def _one_less(self, job: Job) -> None:
        job.under_way -= 1
        if job.under_way == 0 and not job.is_settled:
            job.is_settled = True
            self._settled.append(job)

    def _judged(self, errand: Errand, answer: BarsAnswer) -> Judged:
        instrument = errand.job.work.instrument
        with self._pipeline.tracer.span("judge", parent=errand.span, provider=errand.name, symbol=instrument.symbol) as span:
            judged = self._judge(errand, answer)
            refused = len(judged.refused.columns)
            span.note(kind=judged.kind, expected=judged.expected, received=judged.received, refused=refused)
        self.said.answered(instrument, errand.name, judged)
        return judged

    def _judge(self, errand: Errand, answer: BarsAnswer) -> Judged:
        job = errand.job
        misfit = job.work.masks.misfit[errand.window.sessions]
        received = job.received[job.within(errand.window)]
        grid, calendar = errand.grid.without(misfit), self._pipeline.calendars(job.work.instrument.calendar)
        return judge(
            answer,
            symbol_id=job.work.instrument.symbol_id,
            window=errand.window,
            # The ledger of a misfit session has another grid: nothing may be stored for it until it is reconciled.
            grid=grid,
            calendar=calendar,
            now=self._now_seconds,
            settle_seconds=self._settle_of(errand.capability),
            # Another provider only fills the holes of this pass; what is stored already is the store's to defend.
            wanted=job.lacking(errand)[~np.repeat(misfit, errand.grid.lengths)] if received.any() else None,
            reference=self._reference_for(job),
            basis=errand.capability.basis,
            settlements=settlements(grid, calendar, errand.capability),
            next_over=next_over(grid, calendar, settle_seconds=self._settle_of(errand.capability)),
        )

    def _take(self, errand: Errand, judged: Judged) -> None:
        job = errand.job
        symbol_id = job.work.instrument.symbol_id
        if judged.kind in {"ok", StaleError.kind, BarrenError.kind} and self._would_be_missed(errand, judged):
            census = self._censuses[errand.name]
            census.note(symbol_id, is_empty=judged.barren)
            if census.emptiness() is Emptiness.INCIDENT:
                self._rest(errand.name)
        if judged.barren:
            # Whether it is an answer depends on the company it is in: decided when nothing is under way any more.
            job.under_way += 1
            self._quiet.append((errand, judged))
        else:
            series = self._series.get(symbol_id)
            job.receive(Given(errand, judged, silence_counts=series in {None, errand.capability.feed.volume_base}))
        self._go_on(errand, judged.kind)

    def _would_be_missed(self, errand: Errand, judged: Judged) -> bool:
        """Whether an empty answer to this errand says anything at all."""
        is_over = bool(self._due(errand.grid).all())
        return judged.expected > 0 and (is_over or judged.expected >= _BARS_TO_BE_MISSED)

    def _fail(self, errand: Errand, error: ProviderError, *, is_first: bool) -> None:
        symbol = errand.job.work.instrument.symbol
        if is_first:
            self.said.failed(errand.job.work.instrument, error)
        fetch = error.fetch or Fetch(
            provider=error.provider,
            symbol=symbol,
            interval=self._interval,
            request="",
            started_at=self._now,
            latency_seconds=0.0,
            outcome=error.kind,
            error=str(error),
            attempts=0,
        )
        # One request of several symbols is in the record of each, and was sent once.
        errand.job.failures.append(Failure(errand, error.kind, str(error), fetch if is_first else replace(fetch, attempts=0)))
        self._learn(errand, error)
        self._go_on(errand, error.kind)

    def _go_on(self, errand: Errand, kind: str, *, only_running: bool = False, without: bool = True) -> None:
        """Ask the next provider for what is lacking, session by session, where the rules say so.

        ``without``: never again the provider of this errand; False where it was only put behind the others.
        """
        job, grid = errand.job, errand.job.work.grid
        masks, bars_here = job.work.masks, grid.bars_of(errand.window.sessions)
        part, lacking = errand.grid, job.lacking(errand)
        # Asked again on purpose, a stored bar that does not come is lacking like any other: the next provider may have it.
        stands = masks.resolved & ~masks.present if self._refetch else masks.resolved
        held = stands[bars_here] | job.received[job.within(errand.window)]
        wanted = np.zeros(len(grid.opened_at), bool)
        by_session = zip(part.split(self._due(part)), part.split(held), part.split(lacking), strict=True)
        for place, (due, here, lacks) in enumerate(by_session, start=errand.window.sessions.start):
            goes = lacks.any() and goes_on(
                kind,
                due=int(due.sum()),
                held=int((due & here).sum()),
                is_over=bool(due.all()),
                attempts=int(masks.attempts[place]),
            )
            if goes and not (only_running and due.all()):
                wanted[grid.bars_of(slice(place, place + 1))] = lacks
        if not wanted.any():
            return
        before = errand.before | {errand.name} if without else errand.before
        route = self._route_for(job.work.instrument, without=before)
        shares, _ = self._shared_out(job.work, wanted, route)
        if not shares and not job.nobody:
            job.nobody = str(nobody(Route(self._capability, (), {**route.passed_over, **job.turned_away})))
        for provider, capability, window in shares:
            following = Errand(job, provider, capability, window, before, insists=provider.name in self._suspects)
            job.errands.append(following)
            self._dispatch(following)

    # --- answers with nothing in them ----------------------------------------------------------------------------------

    def _decide_on_the_quiet(self) -> None:
        """Whether the empty answers of this chunk are answers, now that it is known how many there are."""
        quiet, self._quiet = self._quiet, []
        incidents = {name for name in {errand.name for errand, _ in quiet} if self._is_incident(name)}
        for errand, judged in quiet:
            errand.job.given.append(Given(errand, judged, is_believed=errand.name not in incidents))
            # While a session runs, one thin symbol is no reason to ask elsewhere; most of them are.
            if self._would_be_missed(errand, judged) and self._censuses[errand.name].is_mostly_empty:
                self._go_on(errand, StaleError.kind, only_running=True)
            self._one_less(errand.job)

    def _is_incident(self, name: str) -> bool:
        census = self._censuses[name]
        if self._emptiness(name) is not Emptiness.INCIDENT:
            return False
        self._rest(name)
        if not census.is_told:
            census.is_told = True
            empty = f"{sum(census.empty.values())} of {len(census.empty)} symbols came back without a single bar"
            self._tell(name, f"{empty}: none of it is believed, no verdict was written", is_recovery=False)
        return True

    def _rest(self, name: str) -> None:
        """Ask ``name`` after all others; and where it has lost everything, not at all but by trials, until one brings something."""
        census, is_new = self._censuses[name], name not in self._suspects
        self._suspects.add(name)
        if not is_new or sum(census.empty.values()) < _LOST_EVERYTHING * len(census.empty):
            return
        self._route = None
        empty = f"{sum(census.empty.values())} of {len(census.empty)} symbols came back without a single bar"
        lost = Outcome(BarrenError.kind, attempts=0, detail=empty, is_incident=True)
        self._pipeline.health.record(name, self._capability, lost, now=self._instant(), run_id=self._run_id)

    def _emptiness(self, name: str) -> Emptiness:
        """Of this pass, and where that is of few symbols, of everybody's last minutes."""
        census, company = self._censuses[name], None
        if len(census.empty) < _EMPTINESS.least_symbols:
            company = self._fetches.recent_emptiness(name, self._capability, since=self._now - _COMPANY)
        return census.emptiness(company)

    def tell_of_recoveries(self) -> None:
        """Where a provider's answers are as full as on any day, the incident that was open is over."""
        for name, census in self._censuses.items():
            if not census.is_told and not all(census.empty.values()) and self._emptiness(name) is Emptiness.CALM:
                self._tell(name, "answers hold bars again", is_recovery=True)

    def _tell(self, name: str, detail: str, *, is_recovery: bool) -> None:
        self._pipeline.health.tell(
            name, self._capability, BarrenError.kind, detail, is_recovery=is_recovery, now=self._instant(), run_id=self._run_id
        )

    # --- what answers are held against ---------------------------------------------------------------------------------

    def _look_up_references(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        spans = [self._span(job) for job in jobs]
        nearest = self._references.nearest_closes(spans, self._interval)
        splits = self._references.splits(sorted({span.symbol_id for span in spans}))
        holding = [place for place, job in enumerate(jobs) if job.work.masks.present[job.work.grid.bars_of(job.places)].any()]
        held = dict(
            zip(holding, self._references.held_closes([spans[place] for place in holding], self._interval), strict=True)
            if holding
            else ()
        )
        for place, job in enumerate(jobs):
            close = nearest[place]
            inside = held.get(place)
            job.reference = Reference(
                close=close and close[1],
                session=close and date_of(close[0] // _DAY_SECONDS),
                splits=splits.get(job.work.instrument.symbol_id, ()),
                held_at=None if inside is None else inside.opened_at,
                held_close=None if inside is None else inside.close,
            )

    def _span(self, job: Job) -> Span:
        bars_here = job.work.grid.bars_of(job.places)
        stamps = job.work.grid.opened_at
        first, last = int(stamps[bars_here.start]), int(stamps[bars_here.stop - 1])
        return Span(job.work.instrument.symbol_id, first, last + self._interval.seconds)

    def _reference_for(self, job: Job) -> Reference:
        """What is stored, and what other providers have just said about the same sessions."""
        stored = job.reference or Reference()
        told = [given.judged.columns for given in job.given if len(given.judged.columns)]
        if not told:
            return stored
        stamps = np.concatenate([*(columns.opened_at for columns in told), *([] if stored.held_at is None else [stored.held_at])])
        closes = np.concatenate([*(columns.close for columns in told), *([] if stored.held_close is None else [stored.held_close])])
        stamps, places = np.unique(stamps, return_index=True)
        return replace(stored, held_at=stamps, held_close=closes[places])

    # --- storing and reporting -----------------------------------------------------------------------------------------

    def _store(self, done: list[Job]) -> list[Job]:
        """Write what came of these jobs, from the store's thread: the next answers are judged meanwhile."""
        done.sort(key=lambda job: (job.work.instrument.symbol_id, job.places.start))
        started = time.perf_counter()
        settings = self._pipeline.settings
        # Prices that were float32 on the wire are compared as such, others are not: two batches.
        for is_float32 in (True, False):
            answered = [job for job in done if _stored_of(job) and _is_float32(job) is is_float32]
            if not answered:
                continue
            fetched = list(dict.fromkeys(given.errand.span for job in answered for given in _stored_of(job)))
            with self._pipeline.tracer.span("store", after=fetched[:_MOST_LINKS], jobs=len(answered)):
                written = self._pipeline.writer.write(
                    self._batch(answered, float32_prices=is_float32),
                    now=self._now,
                    policy=settings.healing_policy,
                    known_at=self._pipeline.known_at(self._now),
                    run_id=self._run_id,
                    ranking=self._ranking() if self._refetch else None,
                )
            self.said.stored(written, symbols=len(answered), seconds=time.perf_counter() - started)
        self._push_back(done)
        for job in done:
            job.store_seconds = (time.perf_counter() - started) / len(done)
        return done

    def _ranking(self) -> list[str]:
        """Who may replace whose bars when they are asked for again on purpose: the provider asked for by name, then the policy."""
        names = (self._hint, *self._pipeline.settings.policy(self._capability))
        return [name for name in dict.fromkeys(names) if name is not None and name in self._pipeline.providers]

    def _push_back(self, done: list[Job]) -> None:
        """Record what failed and what was not believed; their sessions wait, unless somebody answered for them."""
        failed: list[tuple[int, date]] = []
        unbelieved: list[tuple[int, date]] = []
        waiting: dict[tuple[int, date], datetime] = {}
        fetches: list[tuple[int | None, Fetch]] = []
        for job in done:
            symbol_id, sessions = job.work.instrument.symbol_id, job.work.grid.sessions[job.places]
            fetches += [(symbol_id, failure.fetch) for failure in job.failures]
            fetches += [(symbol_id, given.judged.fetch) for given in job.given if not given.is_believed]
            attempted, is_failed, is_unbelieved = job.attempted, job.failed, job.unbelieved
            failed += [(symbol_id, sessions[place]) for place in np.flatnonzero(is_failed & ~attempted)]
            unbelieved += [(symbol_id, sessions[place]) for place in np.flatnonzero(is_unbelieved & ~is_failed & ~attempted)]
            for place in np.flatnonzero(job.unasked):
                waiting[symbol_id, sessions[place]] = self._again_at(job.work.instrument)
        if failed or unbelieved or waiting or fetches:
            self._pipeline.ledger.record_failures(
                failed,
                self._interval,
                unbelieved=unbelieved,
                waiting=waiting,
                fetches=fetches,
                now=self._now,
                policy=self._pipeline.settings.healing_policy,
                run_id=self._run_id,
            )

    def _batch(self, jobs: list[Job], *, float32_prices: bool) -> CandleBatch:
        merged: list[Merged] = []
        stored: list[tuple[int, Given]] = []
        session_index, fetch_index, sessions = [], [], 0
        for job in jobs:
            parts = [given for given in _stored_of(job) if given.judged.sessions]
            whole = merge([given.part for given in parts])
            places = np.arange(len(stored), len(stored) + len(parts), dtype=np.int32)
            symbol_id = job.work.instrument.symbol_id
            stored += [(symbol_id, given) for given in parts]
            stored += [(symbol_id, given) for given in _stored_of(job) if not given.judged.sessions]
            merged.append(whole)
            session_index.append(whole.session_index + sessions)
            fetch_index.append(places[whole.part])
            sessions += len(whole.sessions)
        symbol_ids = [job.work.instrument.symbol_id for job in jobs]
        lengths = [len(whole.columns) for whole in merged]
        return CandleBatch(
            interval=self._interval,
            symbol_id=np.repeat(np.array(symbol_ids, np.int32), lengths),
            columns=CandleColumns.concat([whole.columns for whole in merged]),
            session_index=np.concatenate(session_index).astype(np.int32),
            fetch_index=np.concatenate(fetch_index).astype(np.int32),
            flags=np.concatenate([whole.flags for whole in merged]),
            sessions=[session for whole in merged for session in whole.sessions],
            fetches=[given.judged.fetch for _, given in stored],
            feeds=[given.errand.capability.feed for _, given in stored],
            fetch_symbol_ids=[symbol_id for symbol_id, _ in stored],
            refused=[
                (symbol_id, index, given.judged.refused)
                for index, (symbol_id, given) in enumerate(stored)
                if len(given.judged.refused.columns)
            ],
            actions=[
                (symbol_id, index, action) for index, (symbol_id, given) in enumerate(stored) for action in given.judged.actions
            ],
            float32_prices=float32_prices,
        )

    def _report(self, works: Sequence[Work]) -> Iterator[StretchReport]:
        touched = [work for work in works if work.is_touched]
        if touched:
            first, last = min(w.grid.sessions[0] for w in touched), max(w.grid.sessions[-1] for w in touched)
            rows = self._rows([work.instrument for work in touched], first, last)
            for work in touched:
                work.after = masks_of(work.grid, rows.get(work.instrument.symbol_id, []))
        for work in works:
            codes = codes_of(
                self._pipeline, work.instrument, self._interval, work.grid, work.after or work.masks, now=self._now_seconds
            )
            for stretch in work.stretches:
                yield work.report(stretch, codes)

    def _rows(self, instruments: Iterable[Instrument], first: date, last: date) -> dict[int, list[LedgerRow]]:
        return rows_by_symbol(self._pipeline.ledger.rows([i.symbol_id for i in instruments], self._interval, first, last))


def _stored_of(job: Job) -> list[Given]:
    """What of a job goes into a batch: all but the answers that are taken for none."""
    return [given for given in job.given if given.is_believed]


def _is_float32(job: Job) -> bool:
    return any(given.judged.float32_prices for given in _stored_of(job))


def _outcome(answers: Sequence[Judged | ProviderError]) -> Outcome:
    """What one request says of its provider's health, all its symbols together: it is bad where half of what it brought is."""
    kinds = Counter(answer.kind for answer in answers)
    kind, count = kinds.most_common(1)[0]
    judged = [answer for answer in answers if not isinstance(answer, ProviderError)]
    if 2 * count <= len(answers) or (kind != "ok" and not judged):
        kind = "ok" if judged else kind
    bad = next((answer for answer in answers if answer.kind == kind), None)
    fetches = [answer.fetch for answer in answers if answer.fetch is not None]
    return Outcome(
        kind,
        fetches[0].latency_seconds if fetches else 0.0,
        attempts=sum(fetch.attempts for fetch in fetches),
        expected=sum(one.expected for one in judged),
        received=sum(one.received for one in judged),
        detail="" if kind == "ok" or bad is None else words_of(bad) if isinstance(bad, ProviderError) else str(bad.reason),
    )
