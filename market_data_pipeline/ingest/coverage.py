"""Reads the ledger against the grid: verdicts for every expected bar, counts that add up, and the windows that are missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.coverage import VERDICTS, Verdict, runs, verdict_codes
from market_data_pipeline.domain.finality import Finality
from market_data_pipeline.ingest.grid import Grid
from market_data_pipeline.ingest.overview import verdict_cells
from market_data_pipeline.ingest.report import LedgerHistory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import date, datetime

    import numpy.typing as npt

    from market_data_pipeline.domain.candles import Bools, Int32s, Interval
    from market_data_pipeline.domain.coverage import LedgerRow
    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.pipeline import Pipeline

# Instruments whose ledger rows are held in memory at a time; those only counted have an array a session.
_AT_ONCE = 200
_COUNTED_AT_ONCE = 2_000


@dataclass(frozen=True, slots=True)
class CoverageLine:
    """The verdicts of one symbol and interval over a range of sessions. ``counts`` add up to ``expected``."""

    symbol: str
    interval: Interval
    first: date
    last: date
    sessions: int
    expected: int
    counts: dict[Verdict, int]


@dataclass(frozen=True, slots=True)
class GapWindow:
    """Missing bars in a row: they open in [start, end), epoch seconds UTC. The rest is what the ledger plans for the session."""

    symbol: str
    interval: Interval
    session: date
    start: int
    end: int
    bars: int
    attempts: int
    failures: int
    last_attempt_at: datetime | None
    next_attempt_at: datetime | None
    finality: Finality | None = None
    """How sure the session's other bars are; None for one that the ledger knows nothing of."""


@dataclass(frozen=True, slots=True, eq=False)
class Masks:
    """The ledger laid over a grid: one element a bar. The rest have one element a session; ``known``: whether there is a row."""

    present: Bools
    confirmed_empty: Bools
    halted: Bools
    known: Bools
    misfit: Bools
    """Sessions whose ledger row expects another number of bars than the calendar does now."""
    attempts: Int32s
    """Answers that left a hole."""
    finality: Int32s
    """How sure its bars are; -1 for a session without a row."""

    @property
    def resolved(self) -> Bools:
        """The bars that have their verdict from bars or evidence."""
        return self.present | self.confirmed_empty | self.halted


def masks_of(grid: Grid, rows: Sequence[LedgerRow]) -> Masks:
    """Lay ledger rows of one symbol and interval over their grid. Rows of sessions that the grid lacks are left out."""
    present, confirmed, halted = (np.zeros(len(grid.opened_at), bool) for _ in range(3))
    known, misfit, attempts = np.zeros(len(grid), bool), np.zeros(len(grid), bool), np.zeros(len(grid), np.int32)
    finality = np.full(len(grid), -1, np.int32)
    place_of = {session: place for place, session in enumerate(grid.sessions)}
    edges = grid.offsets.tolist()
    for row in rows:
        place = place_of.get(row.session)
        if place is None:
            continue
        known[place] = True
        attempts[place], finality[place] = row.attempts, int(row.finality)
        if row.expected != edges[place + 1] - edges[place]:
            misfit[place] = True
            continue
        present[edges[place] : edges[place + 1]] = row.present
        confirmed[edges[place] : edges[place + 1]] = row.confirmed_empty
        if row.halted is not None:
            halted[edges[place] : edges[place + 1]] = row.halted
    return Masks(present, confirmed, halted, known, misfit, attempts, finality)


def history_of(grid: Grid, masks: Masks, codes: npt.NDArray[np.uint8], places: slice) -> LedgerHistory:
    """What lies behind the verdicts ``codes`` of the whole grid, in the sessions ``places``."""
    missing = codes == VERDICTS.index(Verdict.MISSING)
    begins = missing & ~np.concatenate(([False], missing[:-1]))
    # A gap ends with its session.
    begins[grid.offsets[:-1]] = missing[grid.offsets[:-1]]
    sure = masks.finality[places]
    counts = np.bincount(sure[sure >= 0], minlength=len(Finality)).tolist()
    return LedgerHistory(
        gaps=int(begins[grid.bars_of(places)].sum()),
        attempts=int(masks.attempts[places].sum()),
        finality={finality: counts[finality] for finality in Finality},
    )


def listed(instrument: Instrument, grid: Grid) -> Bools:
    """One element a bar: whether the instrument existed in its session."""
    if instrument.is_always_listed:
        return np.ones(len(grid.opened_at), bool)
    return np.repeat(np.array([instrument.listed_on(session) for session in grid.sessions], bool), grid.lengths)


def codes_of(
    pipeline: Pipeline, instrument: Instrument, interval: Interval, grid: Grid, masks: Masks, *, now: int
) -> npt.NDArray[np.uint8]:
    """The verdict of every bar of the grid, as indices into ``VERDICTS``."""
    return verdict_codes(
        present=masks.present,
        confirmed_empty=masks.confirmed_empty,
        halted=masks.halted,
        listed=listed(instrument, grid),
        opened_at=grid.starts_at,
        ends_at=grid.ends_at,
        now=now,
        settle_seconds=pipeline.settle_seconds(interval),
        reach_seconds=pipeline.reach_seconds(interval, instrument.calendar),
    )


def coverage_report(
    instruments: Sequence[Instrument], intervals: Sequence[Interval], first: date, last: date, *, pipeline: Pipeline
) -> Iterator[CoverageLine]:
    """One line per instrument and interval, every expected bar of [first, last] counted under exactly one verdict."""
    for interval in intervals:
        grids = {name: Grid.of(pipeline.calendars(name), interval, first, last) for name in {i.calendar for i in instruments}}
        for at in range(0, len(instruments), _COUNTED_AT_ONCE):
            chunk = instruments[at : at + _COUNTED_AT_ONCE]
            cells = verdict_cells(chunk, interval, first, last, pipeline=pipeline, grids=grids)
            for place, instrument in enumerate(chunk):
                counts = dict(zip(VERDICTS, cells.bars[:, place, 0].tolist(), strict=True))
                grid = grids[instrument.calendar]
                yield CoverageLine(instrument.symbol, interval, first, last, len(grid), len(grid.opened_at), counts)


def gap_windows(
    instruments: Sequence[Instrument], intervals: Sequence[Interval], first: date, last: date, *, pipeline: Pipeline
) -> Iterator[GapWindow]:
    """Every missing stretch of bars, by symbol, interval and time: disjoint, and together exactly the bars judged missing."""
    missing = VERDICTS.index(Verdict.MISSING)
    for instrument, interval, grid, masks, rows in _lacking(instruments, intervals, first, last, pipeline):
        now = int(pipeline.clock.now().timestamp())
        gaps = codes_of(pipeline, instrument, interval, grid, masks, now=now) == missing
        by_session = {row.session: row for row in rows}
        for place, (session, gap) in enumerate(zip(grid.sessions, grid.split(gaps), strict=True)):
            row, at = by_session.get(session), int(grid.offsets[place])
            for run in runs(gap):
                yield GapWindow(
                    symbol=instrument.symbol,
                    interval=interval,
                    session=session,
                    start=int(grid.starts_at[at + run.first]),
                    end=int(grid.ends_at[at + run.last - 1]),
                    bars=run.last - run.first,
                    attempts=0 if row is None else row.attempts,
                    failures=0 if row is None else row.failures,
                    last_attempt_at=None if row is None else row.last_attempt_at,
                    next_attempt_at=None if row is None else row.next_attempt_at,
                    finality=None if row is None else row.finality,
                )


def _lacking(
    instruments: Sequence[Instrument], intervals: Sequence[Interval], first: date, last: date, pipeline: Pipeline
) -> Iterator[tuple[Instrument, Interval, Grid, Masks, Sequence[LedgerRow]]]:
    """The instruments that have anything missing, with their ledger laid over the grid: of most there is nothing to look at."""
    for interval in intervals:
        grids = {name: Grid.of(pipeline.calendars(name), interval, first, last) for name in {i.calendar for i in instruments}}
        for at in range(0, len(instruments), _AT_ONCE):
            chunk = instruments[at : at + _AT_ONCE]
            missing = verdict_cells(chunk, interval, first, last, pipeline=pipeline, grids=grids).of(Verdict.MISSING)[:, 0]
            lacking = [chunk[place] for place in np.flatnonzero(missing).tolist()]
            rows_of = rows_by_symbol(pipeline.ledger.rows([i.symbol_id for i in lacking], interval, first, last))
            for instrument in lacking:
                grid, rows = grids[instrument.calendar], rows_of.get(instrument.symbol_id, [])
                yield instrument, interval, grid, masks_of(grid, rows), rows


def rows_by_symbol(rows: Sequence[LedgerRow]) -> dict[int, list[LedgerRow]]:
    """Ledger rows grouped by symbol_id, in their order."""
    grouped: dict[int, list[LedgerRow]] = {}
    for row in rows:
        grouped.setdefault(row.symbol_id, []).append(row)
    return grouped
