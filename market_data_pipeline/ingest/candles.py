"""The main use-case: ask the ledger what is missing, fetch only that, judge it, store it, report each stretch as it is done."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.candles import CandleColumns
from market_data_pipeline.domain.coverage import LedgerRow, tally
from market_data_pipeline.domain.errors import (
    BarrenError,
    EntitlementError,
    InvalidInputError,
    ProviderError,
    RateLimitedError,
    TransientError,
    UnknownSymbolError,
)
from market_data_pipeline.domain.ports import BarsRequest, CandleBatch, Fetch
from market_data_pipeline.ingest.coverage import Masks, codes_of, listed, masks_of, rows_by_symbol
from market_data_pipeline.ingest.grid import Grid
from market_data_pipeline.ingest.judge import Judged, judge
from market_data_pipeline.ingest.plan import Window, windows, within_reach
from market_data_pipeline.ingest.report import Stretch, StretchReport

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import date, datetime

    import numpy.typing as npt

    from market_data_pipeline.domain.candles import Interval
    from market_data_pipeline.domain.capabilities import Capability
    from market_data_pipeline.domain.ports import BarsAnswer, BarsProvider
    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.pipeline import Pipeline

# Instruments planned at a time: their ledger rows are in memory together.
_INSTRUMENTS_AT_ONCE = 100
# A transaction of this many bars keeps the grouping gain (STORAGE.md §2c) without losing much to a crash.
_BARS_PER_WRITE = 50_000
# Behind a slow provider answers do not wait longer than this for company: what is stored need not be fetched again.
_LONGEST_WAIT_SECONDS = 2.0
# Each failure has been retried already. So many in a row are an outage: the rest of the run would only add to it.
_FAILURES_IN_A_ROW = 8


@dataclass(eq=False)
class _Job:
    """One request to send for one instrument, and what came of it."""

    work: _Work
    window: Window
    judged: Judged | None = None
    failure: str | None = None
    store_seconds: float = 0.0
    is_done: bool = False
    was_sent: bool = False

    @property
    def seconds(self) -> float:
        """The time spent on this request: on the wire and in its share of the transaction."""
        return self.store_seconds + (self.judged.fetch.latency_seconds if self.judged else 0.0)

    def done(self, store_seconds: float) -> None:
        """The answer is stored, or the failure recorded."""
        self.is_done, self.store_seconds = True, store_seconds


@dataclass(eq=False)
class _Work:
    """What is to be done for one instrument: its grid, the ledger over it before and after, and the stretches to report."""

    instrument: Instrument
    grid: Grid
    stretches: list[Stretch]
    masks: Masks
    after: Masks | None = None
    jobs: list[_Job] = field(default_factory=list)

    @property
    def outstanding(self) -> bool:
        """Some request has no outcome yet."""
        return not all(job.is_done for job in self.jobs)

    @property
    def touched(self) -> bool:
        """Some answer was stored: the ledger may read differently now."""
        return any(job.judged is not None for job in self.jobs)

    def report(self, stretch: Stretch, codes: npt.NDArray[np.uint8], *, provider: str) -> StretchReport:
        """What became of ``stretch``; ``codes`` are the verdicts over the whole grid."""
        places = self.grid.between(stretch.first, stretch.last)
        bars = slice(int(self.grid.offsets[places.start]), int(self.grid.offsets[places.stop]))
        present = (self.after or self.masks).present[bars]
        mine = [(job, _share(job.window.sessions, places)) for job in self.jobs]
        mine = [(job, share) for job, share in mine if share > 0]
        first = [job.judged for job, _ in mine if job.judged is not None and job.window.sessions.start >= places.start]
        dropped: Counter[str] = Counter()
        for judged in first:
            dropped.update(judged.fetch.dropped)
        return StretchReport(
            stretch=stretch,
            expected=bars.stop - bars.start,
            verdicts=tally(codes[bars]),
            inserted=int((present & ~self.masks.present[bars]).sum()),
            refused=sum(len(judged.refused.columns) for judged in first),
            requests=sum(share for job, share in mine if job.was_sent),
            seconds=sum(share * job.seconds for job, share in mine),
            provider=provider,
            failure=self._failure(places, [job for job, _ in mine]),
            dropped=dict(dropped),
        )

    def _failure(self, places: slice, jobs: list[_Job]) -> str | None:
        if self.masks.misfit[places].any():
            # Fetching on would mix two grids in one bitmap.
            return "the calendar changed since the ledger was opened: run `mdp reconcile --repair`"
        return next((job.failure for job in jobs if job.failure is not None), None)


def _share(window: slice, places: slice) -> float:
    """How much of a window's sessions lie in ``places``."""
    overlap: int = min(window.stop, places.stop) - max(window.start, places.start)
    length: int = window.stop - window.start
    return max(overlap, 0) / length


def ingest_candles(
    stretches: Sequence[Stretch], interval: Interval, *, pipeline: Pipeline, refetch: bool = False, run_id: str | None = None
) -> Iterator[StretchReport]:
    """Bring the stretches up to date and report each one as soon as it is stored; the order is that of completion.

    Only what the ledger lacks is asked for; ``refetch`` asks again for what is there (revisions are kept, nothing is deleted).
    Repeating it is safe. A request that fails fails its own sessions: their reports say why, the others are stored.
    """
    serving = pipeline.bars_providers(interval)
    if not serving:
        raise InvalidInputError(f"no provider serves {interval} bars")
    by_instrument = groupby(sorted(stretches, key=lambda s: s.instrument.symbol_id), key=lambda s: s.instrument.symbol_id)
    groups = [list(group) for _, group in by_instrument]
    ingest = _Ingest(pipeline, interval, *serving[0], run_id)
    for at in range(0, len(groups), _INSTRUMENTS_AT_ONCE):
        yield from ingest.carry_out(ingest.plan(groups[at : at + _INSTRUMENTS_AT_ONCE], refetch=refetch))


class _Ingest:
    """One pass over the instruments, chunk by chunk: what a failure taught holds for the chunks to come."""

    def __init__(
        self, pipeline: Pipeline, interval: Interval, provider: BarsProvider, capability: Capability, run_id: str | None
    ) -> None:
        self._pipeline, self._interval, self._capability, self._run_id = pipeline, interval, capability, run_id
        self._provider = provider
        self._settle = pipeline.settle_seconds(interval)
        self._read_clock()
        self._stopped: ProviderError | None = None
        self._failures_in_a_row = 0
        self._unknown: dict[int, str] = {}

    def _read_clock(self) -> None:
        self._now: datetime = self._pipeline.clock.now()
        self._now_seconds = int(self._now.timestamp())

    def plan(self, groups: list[list[Stretch]], *, refetch: bool) -> list[_Work]:
        """Open the ledger for every session asked for, and cut what it lacks at this moment into requests."""
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
        for work in works:
            self._cut(work, refetch=refetch)
        return works

    def _work(self, instrument: Instrument, grid: Grid, stretches: list[Stretch], rows: list[LedgerRow]) -> _Work:
        asked = np.zeros(len(grid), bool)
        for stretch in stretches:
            asked[grid.between(stretch.first, stretch.last)] = True
        if not asked.all():
            grid = grid.without(~asked)
        return _Work(instrument, grid, stretches, masks_of(grid, rows))

    def _open_ledger(self, works: list[_Work]) -> None:
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
            if work.instrument.listed_on(work.grid.sessions[place])
        ]
        if new:
            self._pipeline.ledger.open_sessions(new, known_at=self._pipeline.known_at(self._now))

    def _cut(self, work: _Work, *, refetch: bool) -> None:
        grid = work.grid
        due = grid.due(self._now_seconds, self._settle)
        wanted = due & within_reach(grid, self._capability, self._now_seconds) & listed(work.instrument, grid)
        wanted &= ~np.repeat(work.masks.misfit, grid.lengths)
        if not refetch:
            wanted &= ~work.masks.present & ~work.masks.confirmed_empty
        cut = windows(grid, wanted, due, self._capability, now=self._now_seconds)
        work.jobs = [_Job(work, window) for window in cut]

    def carry_out(self, works: list[_Work]) -> Iterator[StretchReport]:
        """Send the requests, a few at a time, store the answers in large transactions, and report what is finished."""
        yield from self._report([work for work in works if not work.jobs])
        waiting = [job for work in works for job in work.jobs]
        waiting.reverse()
        in_flight: dict[Future[BarsAnswer], _Job] = {}
        done: list[_Job] = []
        stored_at = time.monotonic()
        workers = self._pipeline.settings.requests_in_flight
        with ThreadPoolExecutor(workers, thread_name_prefix="fetch") as pool:
            try:
                while waiting or in_flight:
                    while waiting and len(in_flight) < 2 * workers:
                        self._submit(waiting.pop(), pool, in_flight, done)
                    finished, _ = wait(in_flight, return_when=FIRST_COMPLETED) if in_flight else ((), ())
                    done.extend(self._settled(in_flight.pop(future), future) for future in finished)
                    waited = time.monotonic() - stored_at >= _LONGEST_WAIT_SECONDS
                    enough = sum(len(job.judged.columns) for job in done if job.judged) >= _BARS_PER_WRITE
                    if done and (waited or enough or not (waiting or in_flight)):
                        yield from self._store(done)
                        done, stored_at = [], time.monotonic()
            finally:
                # The reader of our reports stopped early: what has not been sent never is.
                for future in in_flight:
                    future.cancel()

    def _submit(self, job: _Job, pool: ThreadPoolExecutor, in_flight: dict[Future[BarsAnswer], _Job], done: list[_Job]) -> None:
        instrument = job.work.instrument
        known_bad = self._unknown.get(instrument.symbol_id)
        if self._stopped is not None or known_bad is not None:
            job.failure = f"not asked: {known_bad or self._stopped}"
            done.append(job)
            return
        request = BarsRequest(instrument.name_at(self._provider.name), self._interval, job.window.start, job.window.end)
        job.was_sent = True
        in_flight[pool.submit(self._provider.fetch_bars, request, now=self._now)] = job

    def _settled(self, job: _Job, future: Future[BarsAnswer]) -> _Job:
        work = job.work
        try:
            answer = future.result()
            self._failures_in_a_row = 0
        except ProviderError as error:
            job.failure = str(error)
            self._learn(work.instrument, error)
            self._record_failure(job, error)
            return job
        job.judged = judge(
            answer,
            symbol_id=work.instrument.symbol_id,
            window=job.window,
            # The ledger of a misfit session has another grid: nothing may be stored for it until it is reconciled.
            grid=work.grid.part(job.window.sessions).without(work.masks.misfit[job.window.sessions]),
            calendar=self._pipeline.calendars(work.instrument.calendar),
            now=self._now_seconds,
            settle_seconds=self._settle,
        )
        if job.judged.barren:
            job.failure = str(BarrenError("answered, with no bar where some were due", provider=self._provider.name))
        return job

    def _learn(self, instrument: Instrument, error: ProviderError) -> None:
        """What one failure says about the requests not sent yet."""
        if isinstance(error, UnknownSymbolError):
            self._unknown[instrument.symbol_id] = str(error)
        elif isinstance(error, EntitlementError | RateLimitedError):
            self._stopped = error
        elif isinstance(error, TransientError):
            self._failures_in_a_row += 1
            if self._failures_in_a_row >= _FAILURES_IN_A_ROW:
                self._stopped = error

    def _record_failure(self, job: _Job, error: ProviderError) -> None:
        grid = job.work.grid
        fetch = error.fetch or Fetch(
            provider=error.provider,
            symbol=job.work.instrument.symbol,
            interval=self._interval,
            request="",
            started_at=self._now,
            latency_seconds=0.0,
            outcome=error.kind,
            error=str(error),
        )
        self._pipeline.ledger.record_failures(
            [(job.work.instrument.symbol_id, session) for session in grid.sessions[job.window.sessions]],
            self._interval,
            now=self._now,
            policy=self._pipeline.settings.healing_policy,
            fetches=[(job.work.instrument.symbol_id, fetch)],
            run_id=self._run_id,
        )

    def _store(self, done: list[_Job]) -> Iterator[StretchReport]:
        answered = [(job, job.judged) for job in done if job.judged is not None]
        answered.sort(key=lambda pair: (pair[0].work.instrument.symbol_id, pair[0].window.start))
        started = time.perf_counter()
        if answered:
            self._pipeline.writer.write(
                self._batch(answered),
                now=self._now,
                policy=self._pipeline.settings.healing_policy,
                known_at=self._pipeline.known_at(self._now),
                run_id=self._run_id,
            )
        store_seconds = (time.perf_counter() - started) / max(len(answered), 1)
        for job in done:
            job.done(store_seconds)
        finished = {id(job.work): job.work for job in done if not job.work.outstanding}
        yield from self._report(list(finished.values()))

    def _batch(self, answered: list[tuple[_Job, Judged]]) -> CandleBatch:
        firsts = np.cumsum([0, *(len(judged.sessions) for _, judged in answered)]).tolist()
        lengths = [len(judged.columns) for _, judged in answered]
        symbol_ids = [job.work.instrument.symbol_id for job, _ in answered]
        return CandleBatch(
            interval=self._interval,
            symbol_id=np.repeat(np.array(symbol_ids, np.int32), lengths),
            columns=CandleColumns.concat([judged.columns for _, judged in answered]),
            session_index=np.concatenate(
                [judged.session_index + first for (_, judged), first in zip(answered, firsts, strict=False)]
            ).astype(np.int32),
            fetch_index=np.repeat(np.arange(len(answered), dtype=np.int32), lengths),
            flags=np.zeros(sum(lengths), np.int16),
            sessions=[session for _, judged in answered for session in judged.sessions],
            fetches=[judged.fetch for _, judged in answered],
            fetch_symbol_ids=symbol_ids,
            refused=[
                (symbol_ids[index], index, judged.refused)
                for index, (_, judged) in enumerate(answered)
                if len(judged.refused.columns)
            ],
            actions=[(symbol_ids[index], index, action) for index, (_, judged) in enumerate(answered) for action in judged.actions],
            float32_prices=any(judged.float32_prices for _, judged in answered),
        )

    def _report(self, works: Sequence[_Work]) -> Iterator[StretchReport]:
        touched = [work for work in works if work.touched]
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
                yield work.report(stretch, codes, provider=self._provider.name)

    def _rows(self, instruments: Iterable[Instrument], first: date, last: date) -> dict[int, list[LedgerRow]]:
        return rows_by_symbol(self._pipeline.ledger.rows([i.symbol_id for i in instruments], self._interval, first, last))
