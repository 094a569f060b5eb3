"""The ledger as a whole against the calendar: what is missing now, and every expected bar counted by verdict, cell by cell.

The rules are those of ``domain.coverage.verdict_codes``, applied to sums that the database makes: no bar and no bitmap is fetched,
so a year of 8,000 symbols takes seconds. ``ingest.coverage`` says the same bar by bar.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.coverage import VERDICTS, Verdict, verdict_codes
from market_data_pipeline.domain.finality import Finality
from market_data_pipeline.domain.partitions import day_in_the_east
from market_data_pipeline.domain.sessions import date_of
from market_data_pipeline.ingest.grid import Grid
from market_data_pipeline.storage.overview import AskedSession, AskedSymbol, EdgeSession, Overview
from market_data_pipeline.storage.watch import calendars_in_use

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from market_data_pipeline.domain.candles import Bools, Int64s
    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.storage.overview import MissingLine, MissingSymbol

# A session is some hours around its date in UTC, wherever it is held: so many days hold every session that can be running.
_AROUND = timedelta(days=2)


@dataclass(frozen=True, slots=True, eq=False)
class VerdictCells:
    """Expected bars by verdict, counted in the cells of a picture; every bar of the grid is in one cell under one verdict.

    ``bars`` has an axis of ``VERDICTS``, one of rows and one of columns; ``sessions`` one of ``Finality`` in place of verdicts, and
    counts symbols' sessions that the ledger has a row of. ``given_up`` and ``unasked`` have rows and columns: the missing bars for
    which nothing is planned, and those of sessions of which the ledger has no row at all.
    """

    bars: Int64s
    sessions: Int64s
    given_up: Int64s
    unasked: Int64s

    def of(self, verdict: Verdict) -> Int64s:
        """The bars under one verdict, by row and column."""
        counted: Int64s = self.bars[VERDICTS.index(verdict)]
        return counted


def verdict_cells(
    instruments: Sequence[Instrument],
    interval: Interval,
    first: date,
    last: date,
    *,
    pipeline: Pipeline,
    row_of: Sequence[int] | None = None,
    column_of: Mapping[date, int] | None = None,
    grids: Mapping[str, Grid] | None = None,
) -> VerdictCells:
    """The verdicts of every bar expected of these instruments from session ``first`` to ``last``, by cell.

    ``row_of``: in which row an instrument is counted, in their order; None: each in its own. ``column_of``: in which column a
    session is, which never goes down in time; None: all in one. ``grids``, by calendar, where the caller has them.
    """
    rows = np.arange(len(instruments)) if row_of is None else np.asarray(row_of, np.int64)
    shape = (int(rows.max(initial=-1)) + 1, 1 if column_of is None else max(column_of.values(), default=-1) + 1)
    bars, sessions = np.zeros((len(VERDICTS), *shape), np.int64), np.zeros((len(Finality), *shape), np.int64)
    given_up, unasked = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    overview, now = Overview(pipeline.engine), int(pipeline.clock.now().timestamp())
    for name in sorted({instrument.calendar for instrument in instruments}):
        places = [place for place, instrument in enumerate(instruments) if instrument.calendar == name]
        grid = grids[name] if grids is not None else Grid.of(pipeline.calendars(name), interval, first, last)
        part = _Part.of(grid, [instruments[place] for place in places], rows[places], column_of)
        pending, unreachable = _before_any_answer(grid, interval, name, pipeline, now=now)
        counts = overview.cells(interval, part.asked_symbols(), part.asked_sessions(pending, unreachable))
        at = counts.row, counts.column
        for place, verdict in enumerate(VERDICTS):
            bars[place][at] += getattr(counts, verdict)
        for finality in Finality:
            sessions[finality][at] += getattr(counts, finality.name.lower())
        given_up[at] += counts.given_up
        for verdict, rest in part.if_nothing_were_known(pending, unreachable, shape).items():
            rest[at] -= getattr(counts, f"known_{verdict}")
            bars[VERDICTS.index(verdict)] += rest
            if verdict is Verdict.MISSING:
                unasked += rest
    return VerdictCells(bars, sessions, given_up, unasked)


def missing_now(
    pipeline: Pipeline, *, intervals: Sequence[Interval] = tuple(Interval), symbol_ids: Sequence[int] | None = None
) -> list[MissingLine]:
    """What is missing now of the sessions that the ledger knows, by interval, session, tier and plan; the newest session first."""
    edges, settle_seconds = _edges(pipeline, intervals)
    return Overview(pipeline.engine).missing(
        pipeline.clock.now(),
        settle_seconds=settle_seconds,
        reach_seconds=pipeline.reaches(intervals),
        edges=edges,
        symbol_ids=symbol_ids,
    )


def missing_symbols_now(
    pipeline: Pipeline,
    *,
    intervals: Sequence[Interval] = tuple(Interval),
    symbol_ids: Sequence[int] | None = None,
    limit: int = 100,
) -> list[MissingSymbol]:
    """The same bars by symbol and interval: the best tier first, in it the symbol that lacks most; at most ``limit``."""
    edges, settle_seconds = _edges(pipeline, intervals)
    return Overview(pipeline.engine).missing_symbols(
        pipeline.clock.now(),
        settle_seconds=settle_seconds,
        reach_seconds=pipeline.reaches(intervals),
        edges=edges,
        symbol_ids=symbol_ids,
        limit=limit,
    )


# --- what the calendar says ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """The instruments of one calendar on its grid, and where in the picture they and its sessions are.

    ``listed`` has one element an instrument: the places of the first session in which it was listed and of the one after the last.
    """

    grid: Grid
    instruments: Sequence[Instrument]
    rows: Int64s
    columns: Int64s
    listed: Sequence[tuple[int, int]]

    @classmethod
    def of(cls, grid: Grid, instruments: Sequence[Instrument], rows: Int64s, column_of: Mapping[date, int] | None) -> _Part:
        columns = np.array([0 if column_of is None else column_of[session] for session in grid.sessions], np.int64)
        return cls(grid, instruments, rows, columns, [_listed(instrument, grid.sessions) for instrument in instruments])

    def asked_symbols(self) -> list[AskedSymbol]:
        """The instruments, as the overview takes them."""
        sessions, whole = self.grid.sessions, (0, len(self.grid))
        bounds = [
            (None, None)
            if span == whole
            else (date.max, date.min)
            if span[0] == span[1]
            else (sessions[span[0]], sessions[span[1] - 1])
            for span in self.listed
        ]
        return [
            AskedSymbol(instrument.symbol_id, row, *bound)
            for instrument, row, bound in zip(self.instruments, self.rows.tolist(), bounds, strict=True)
        ]

    def asked_sessions(self, pending: Bools, unreachable: Bools) -> list[AskedSession]:
        """The sessions, as the overview takes them."""
        grid = self.grid
        parts = zip(grid.sessions, self.columns.tolist(), grid.split(pending), grid.split(unreachable), strict=True)
        return [AskedSession(*part) for part in parts]

    def if_nothing_were_known(self, pending: Bools, unreachable: Bools, shape: tuple[int, int]) -> dict[Verdict, Int64s]:
        """The cells as they would be if the ledger were empty."""
        # How many are listed in each session, by row: one more at the first, one less after the last, added up.
        steps = np.zeros((shape[0], len(self.grid) + 1), np.int64)
        spans = np.array(self.listed, np.int64).reshape(-1, 2)
        np.add.at(steps, (self.rows, spans[:, 0]), 1)
        np.add.at(steps, (self.rows, spans[:, 1]), -1)
        listed = steps.cumsum(axis=1)[:, :-1]
        unlisted = np.bincount(self.rows, minlength=shape[0])[:, None] - listed
        later, beyond = self._by_session(pending), self._by_session(unreachable)
        edges = np.searchsorted(self.columns, np.arange(shape[1] + 1))
        return {
            verdict: _by_column(counted, edges)
            for verdict, counted in (
                (Verdict.NOT_LISTED, unlisted * self.grid.lengths),
                (Verdict.PENDING, listed * later),
                (Verdict.UNREACHABLE, listed * beyond),
                (Verdict.MISSING, listed * (self.grid.lengths - later - beyond)),
            )
        }

    def _by_session(self, mask: Bools) -> Int64s:
        counted = np.concatenate(([0], np.cumsum(mask)))
        return np.diff(counted[self.grid.offsets]).astype(np.int64)


def _by_column(by_session: Int64s, edges: Int64s) -> Int64s:
    added = np.zeros((by_session.shape[0], by_session.shape[1] + 1), np.int64)
    np.cumsum(by_session, axis=1, out=added[:, 1:])
    return np.diff(added[:, edges], axis=1)


def _listed(instrument: Instrument, sessions: Sequence[date]) -> tuple[int, int]:
    """Where among ``sessions`` those in which the instrument was listed begin and end: they are next to each other."""
    if not sessions or (instrument.listed_on(sessions[0]) and instrument.listed_on(sessions[-1])):
        return 0, len(sessions)
    within = [place for place, session in enumerate(sessions) if instrument.listed_on(session)]
    return (within[0], within[-1] + 1) if within else (0, 0)


def _before_any_answer(grid: Grid, interval: Interval, calendar: str, pipeline: Pipeline, *, now: int) -> tuple[Bools, Bools]:
    """Of bars that nothing is known of, those that are pending and those that are unreachable; the others are missing."""
    nothing = np.zeros(len(grid.opened_at), bool)
    codes = verdict_codes(
        present=nothing,
        confirmed_empty=nothing,
        halted=nothing,
        listed=~nothing,
        opened_at=grid.starts_at,
        ends_at=grid.ends_at,
        now=now,
        settle_seconds=pipeline.settle_seconds(interval),
        reach_seconds=pipeline.reach_seconds(interval, calendar),
    )
    return codes == VERDICTS.index(Verdict.PENDING), codes == VERDICTS.index(Verdict.UNREACHABLE)


def _edges(pipeline: Pipeline, intervals: Sequence[Interval]) -> tuple[list[EdgeSession], dict[Interval, int]]:
    """The sessions of which only some bars count as missing now, and the margin of each interval."""
    now = pipeline.clock.now()
    stamp = int(now.timestamp())
    found = []
    for name in calendars_in_use(pipeline.engine):
        calendar = pipeline.calendars(name)
        for interval in intervals:
            reach = pipeline.reach_seconds(interval, name)
            borders = [day_in_the_east(now)] + ([] if reach is None else [date_of((stamp - reach) // 86_400)])
            for border in borders:
                first, last = max(border - _AROUND, calendar.first_session), min(border + _AROUND, calendar.last_session)
                if first > last:
                    continue
                grid = Grid.of(calendar, interval, first, last)
                pending, unreachable = _before_any_answer(grid, interval, name, pipeline, now=stamp)
                counts = grid.split(~pending & ~unreachable)
                found += [
                    EdgeSession(name, interval, session, mask)
                    for session, mask in zip(grid.sessions, counts, strict=True)
                    if mask.any() and not mask.all()
                ]
    unique = {(edge.calendar, edge.interval, edge.session): edge for edge in found}
    return list(unique.values()), {interval: pipeline.settle_seconds(interval) for interval in intervals}
