"""Asks another provider about sessions that are stored, compares, and does what the rule of the winner says."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.agreement import compare, draw, ruling
from market_data_pipeline.domain.capabilities import Lane, Priority, bars
from market_data_pipeline.domain.errors import (
    BarrenError,
    BudgetSpentError,
    MixedBasisError,
    NoProviderAvailableError,
    PayloadError,
    ProviderError,
    StaleError,
)
from market_data_pipeline.domain.ports import AnsweredSession, BarsProvider, BarsRequest, CandleBatch, RefusedBars
from market_data_pipeline.domain.quality import BarFlag
from market_data_pipeline.ingest.grid import Grid
from market_data_pipeline.ingest.judge import OK, Judged, judge
from market_data_pipeline.ingest.plan import Window
from market_data_pipeline.storage.fetches import FetchStore
from market_data_pipeline.storage.opinions import Opinion, OpinionStore, Source

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from datetime import date, datetime

    from market_data_pipeline.domain.agreement import Agreement, Ruling
    from market_data_pipeline.domain.candles import Bools, Interval
    from market_data_pipeline.domain.capabilities import Capability
    from market_data_pipeline.domain.ports import Fetch, Provider
    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.pipeline import Pipeline

# Sessions older than this were sampled when they were new.
LOOK_BACK = timedelta(days=7)
# One run of sampling: at a request or two each, minutes and not hours of a slow provider.
AT_MOST = 200
_INSTRUMENTS_AT_ONCE = 200
_FAILURES = {error.kind: error for error in (PayloadError, MixedBasisError, BarrenError, StaleError)}


@dataclass(frozen=True, slots=True)
class Subject:
    """A stored, finished session of one instrument. ``is_flagged``: it holds a jump that nothing explains."""

    instrument: Instrument
    session: date
    is_flagged: bool = False


@dataclass(frozen=True, slots=True)
class SecondOpinions:
    """What came of asking. ``unheard``: "SYMBOL SESSION" of those that nobody could speak about, with the reason.

    ``stopped``: why no more were asked, None where all were.
    """

    opinions: Sequence[Opinion] = ()
    unheard: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Voice:
    """What a provider said about one session, judged."""

    provider: str
    capability: Capability
    judged: Judged
    fetch: Fetch


def sampled(
    instruments: Sequence[Instrument], interval: Interval, *, pipeline: Pipeline, now: datetime, share: float
) -> list[Subject]:
    """The sessions of the last week about which a second opinion is due, in the order in which to ask: T0 first.

    ``share`` of all finished sessions that have stored bars and no opinion yet, always the same ones for the same symbols; and
    before them every session with a jump that nothing explains.
    """
    first, last = (now - LOOK_BACK).date(), now.date()
    store, found = OpinionStore(pipeline.engine), list[Subject]()
    settled = now.timestamp() - pipeline.settle_seconds(interval)
    for at in range(0, len(instruments), _INSTRUMENTS_AT_ONCE):
        part = {instrument.symbol_id: instrument for instrument in instruments[at : at + _INSTRUMENTS_AT_ONCE]}
        rows = [r for r in pipeline.ledger.rows(list(part), interval, first, last) if r.present.any() and r.closes_at <= settled]
        heard = store.heard(list(part), interval, first, last)
        flagged = _flagged(store, part, interval, pipeline=pipeline, first=first, last=last)
        for row in rows:
            subject = Subject(part[row.symbol_id], row.session, (row.symbol_id, row.session) in flagged)
            is_due = subject.is_flagged or draw(subject.instrument.symbol, interval, row.session) < share
            if is_due and (row.symbol_id, row.session) not in heard:
                found.append(subject)
    return sorted(found, key=lambda s: (not s.is_flagged, s.instrument.tier, draw(s.instrument.symbol, interval, s.session)))


def _flagged(
    store: OpinionStore, part: dict[int, Instrument], interval: Interval, *, pipeline: Pipeline, first: date, last: date
) -> set[tuple[int, date]]:
    by_calendar = groupby(sorted(part.values(), key=lambda i: i.calendar), key=lambda i: i.calendar)
    found: set[tuple[int, date]] = set()
    for name, instruments in by_calendar:
        grid = Grid.of(pipeline.calendars(name), interval, first, last)
        if not len(grid):
            continue
        ids = [instrument.symbol_id for instrument in instruments]
        edges = int(grid.opened_at[0]), int(grid.opened_at[-1]) + 1
        for symbol_id, opened_at in store.flagged(ids, interval, *edges, flag=BarFlag.UNEXPLAINED_JUMP):
            place = int(np.searchsorted(grid.opened_at, opened_at))
            found.add((symbol_id, grid.sessions[int(np.searchsorted(grid.offsets, place, "right")) - 1]))
    return found


def ask_second_opinions(
    subjects: Sequence[Subject], interval: Interval, *, pipeline: Pipeline, run_id: str | None = None, at_most: int = AT_MOST
) -> SecondOpinions:
    """Ask about ``subjects`` in their order, at most ``at_most`` of them, and store what came of each as soon as it is known.

    A stored bar changes only as a revision, flagged, and only where two of three, or the order of the policy, say so; bars that
    lost are in ``refused_bars``. Nobody to ask, or no budget, ends the asking: what was not asked is asked the next time.
    """
    asking = _Asking(pipeline, interval, run_id)
    opinions, unheard = list[Opinion](), dict[str, str]()
    for subject in subjects[:at_most]:
        name = f"{subject.instrument.symbol} {subject.session}"
        try:
            opinion = asking.about(subject)
        except (NoProviderAvailableError, BudgetSpentError) as stopped:
            return SecondOpinions(opinions, unheard, str(stopped))
        except ProviderError as failed:
            unheard[name] = str(failed)
            continue
        if opinion is None:
            unheard[name] = "no bar in common"
        else:
            opinions.append(opinion)
    left = len(subjects) - at_most
    return SecondOpinions(opinions, unheard, f"{left} more sessions are for the next run" if left > 0 else None)


class _Asking:
    def __init__(self, pipeline: Pipeline, interval: Interval, run_id: str | None) -> None:
        self._pipeline, self._interval, self._run_id = pipeline, interval, run_id
        self._store, self._fetches = OpinionStore(pipeline.engine), FetchStore(pipeline.engine)
        self._now = pipeline.clock.now()
        self._policy = pipeline.settings.policy(bars(interval))

    def about(self, subject: Subject) -> Opinion | None:
        """Ask, compare, decide, store. None where the second has no bar that we have."""
        instrument, interval = subject.instrument, self._interval
        grid = Grid.of(self._pipeline.calendars(instrument.calendar), interval, subject.session, subject.session)
        start, end = int(grid.starts_at[0]), int(grid.ends_at[-1])
        sources = self._store.sources(instrument.symbol_id, interval, subject.session, start, end)
        first = int(grid.opened_at[0])
        read = self._pipeline.reader.read([instrument.symbol_id], interval, first, max(int(grid.opened_at[-1]), first) + 1)
        if not sources:
            return None
        stored = sources[0]
        heard = {source.provider for source in sources}
        second = self._voice(subject, grid, heard)
        agreement = compare(read.columns, second.judged.columns, interval, feeds=(stored.feed, second.capability.feed))
        if agreement is None:
            return None
        third = None if agreement.verdict.is_agreement else self._third(subject, grid, {*heard, second.provider})
        against = [
            third and compare(columns, third.judged.columns, interval, feeds=(feed, third.capability.feed))
            for columns, feed in ((read.columns, stored.feed), (second.judged.columns, second.capability.feed))
        ]
        ruled = ruling(
            stored.provider,
            second.provider,
            agreement.verdict,
            policy=self._policy,
            third_with_stored=against[0].verdict if against[0] else None,
            third_with_second=against[1].verdict if against[1] else None,
        )
        return self._carry_out(subject, grid, stored, second, third, agreement, ruled)

    # --- asking

    def _voice(self, subject: Subject, grid: Grid, heard: Collection[str]) -> _Voice:
        """What the next provider says that was not heard yet. Raises as ``Router.ask`` does."""
        name = bars(self._interval)

        def call(provider: Provider) -> _Voice:
            return self._said(provider, subject, grid)

        return self._pipeline.router.ask(
            name,
            call,
            now=self._now,
            excluding=heard,
            run_id=self._run_id,
            expected=len(grid.opened_at),
            received=lambda voice: voice.judged.received,
        )

    def _third(self, subject: Subject, grid: Grid, heard: Collection[str]) -> _Voice | None:
        try:
            return self._voice(subject, grid, heard)
        except (ProviderError, NoProviderAvailableError):
            # The rule knows what to do without it.
            return None

    def _said(self, provider: Provider, subject: Subject, grid: Grid) -> _Voice:
        instrument = subject.instrument
        capability = next(c for c in provider.capabilities if c.name == bars(self._interval))
        if not isinstance(provider, BarsProvider):
            raise PayloadError(f"it declares {capability.name} and serves no bars", provider=provider.name)
        window = Window(int(grid.starts_at[0]), int(grid.ends_at[-1]), slice(0, len(grid)))
        request = BarsRequest(
            instrument.name_at(provider.name),
            self._interval,
            window.start,
            window.end,
            Priority(Lane.BACKFILL, instrument.tier),
        )
        try:
            answer = provider.fetch_bars(request, now=self._now)
            judged = judge(
                answer,
                symbol_id=instrument.symbol_id,
                window=window,
                grid=grid,
                calendar=self._pipeline.calendars(instrument.calendar),
                now=int(self._now.timestamp()),
                settle_seconds=max(self._pipeline.settings.settle_seconds, capability.delay_seconds),
                basis=capability.basis,
            )
            if judged.kind != OK:
                error = _FAILURES[judged.kind](str(judged.reason), provider=provider.name)
                error.fetch = judged.fetch
                raise error
        except ProviderError as error:
            if error.fetch is not None:
                self._fetches.record([(instrument.symbol_id, error.fetch)], run_id=self._run_id)
            raise
        return _Voice(provider.name, capability, judged, judged.fetch)

    # --- deciding

    def _carry_out(
        self,
        subject: Subject,
        grid: Grid,
        stored: Source,
        second: _Voice,
        third: _Voice | None,
        agreement: Agreement,
        ruled: Ruling,
    ) -> Opinion:
        reason, revised, fetch_id = agreement.reason, 0, None
        lost = None
        off = np.isin(second.judged.columns.opened_at, agreement.off_opened_at)
        if ruled.winner == second.provider and off.any():
            if self._may_replace(stored, second):
                revised, fetch_id = self._revise(subject, grid, second, off)
            else:
                reason += f"; nothing was revised: {second.provider}'s feed counts other trades"
        elif ruled.loser == second.provider and off.any():
            columns = second.judged.columns.take(off)
            lost = RefusedBars(columns, [f"disagrees with {stored.provider}, which is believed by {ruled.by}: {agreement.reason}"])
        opinion = Opinion(
            symbol_id=subject.instrument.symbol_id,
            symbol=subject.instrument.symbol,
            interval=self._interval,
            session=subject.session,
            stored_provider=stored.provider,
            second_provider=second.provider,
            third_provider=third.provider if third else None,
            verdict=agreement.verdict,
            reason=reason,
            compared=agreement.compared,
            only_stored=agreement.only_first,
            only_second=agreement.only_second,
            off=int(agreement.off.sum()),
            fields={n: {"agreeing": f.agreeing, "worst_bp": f.worst_bp} for n, f in agreement.fields.items()},
            volume_ratio=agreement.volume_ratio,
            winner=ruled.winner,
            decided_by=ruled.by,
            revised=revised,
            quarantined=len(lost.columns) if lost else 0,
            second_fetch_id=fetch_id,
            run_id=self._run_id,
            asked_at=self._now,
        )
        kept = self._store.keep(
            opinion,
            second=second.fetch if fetch_id is None else None,
            third=third.fetch if third else None,
            quarantined=lost,
        )
        return replace(opinion, opinion_id=kept)

    def _may_replace(self, stored: Source, second: _Voice) -> bool:
        is_one_base = stored.feed.volume_base == second.capability.feed.volume_base
        return is_one_base or self._pipeline.settings.allow_mixed_feeds

    def _revise(self, subject: Subject, grid: Grid, second: _Voice, off: Bools) -> tuple[int, int | None]:
        """Store the bars that won where others were; how many were revised, and the key of the answer they came from."""
        symbol_id, judged = subject.instrument.symbol_id, second.judged
        columns = judged.columns.take(off)
        places = np.isin(grid.opened_at, columns.opened_at)
        [answered] = judged.sessions
        session = AnsweredSession(
            symbol_id=symbol_id,
            session=subject.session,
            opens_at=answered.opens_at,
            closes_at=answered.closes_at,
            bars=places,
            silent=np.zeros(len(places), bool),
            due=answered.due,
            is_evidence=False,
        )
        flags = judged.flags[off] | np.int16(BarFlag.OVERRULED_ANOTHER)
        report = self._pipeline.writer.write(
            CandleBatch(
                interval=self._interval,
                symbol_id=np.full(len(columns), symbol_id, np.int32),
                columns=columns,
                session_index=np.zeros(len(columns), np.int32),
                fetch_index=np.zeros(len(columns), np.int32),
                flags=flags,
                sessions=[session],
                fetches=[second.fetch],
                float32_prices=judged.float32_prices,
                feeds=[second.capability.feed],
                fetch_symbol_ids=[symbol_id],
            ),
            now=self._now,
            policy=self._pipeline.settings.healing_policy,
            known_at=self._pipeline.known_at(self._now),
            run_id=self._run_id,
            ranking=[second.provider, *(name for name in self._policy if name != second.provider)],
        )
        first, last = int(columns.opened_at[0]), int(columns.opened_at[-1])
        after = self._pipeline.reader.read([symbol_id], self._interval, first, last + 1)
        changed = (after.flags & BarFlag.OVERRULED_ANOTHER) != 0
        return report.revised, int(after.fetch_id[changed].max()) if changed.any() else None


def opinions_since(pipeline: Pipeline, interval: Interval, *, days: int) -> list[Opinion]:
    """The newest opinion on each session of the last ``days`` days, the newest session first."""
    today = pipeline.clock.now().date()
    return OpinionStore(pipeline.engine).latest(today - timedelta(days=days), today, intervals=[interval])


def finished_sessions(
    instruments: Sequence[Instrument], interval: Interval, first: date, last: date, *, pipeline: Pipeline
) -> Iterator[Subject]:
    """Every session from ``first`` to ``last`` that is over and of which bars are stored: for asking by hand."""
    settled = pipeline.clock.now().timestamp() - pipeline.settle_seconds(interval)
    of = {instrument.symbol_id: instrument for instrument in instruments}
    for row in pipeline.ledger.rows(list(of), interval, first, last):
        if row.present.any() and row.closes_at <= settled:
            yield Subject(of[row.symbol_id], row.session)
