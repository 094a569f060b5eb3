"""How complete the last weeks are and what is missing now, as a person wants to see it: numbers, the worst cases, a picture."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.coverage import VERDICTS, Verdict
from market_data_pipeline.domain.finality import Finality
from market_data_pipeline.domain.partitions import day_in_the_east
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.ingest.heatmap import drawn, heatmap_of
from market_data_pipeline.ingest.overview import missing_now, missing_symbols_now, verdict_cells

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date, datetime

    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.overview import VerdictCells
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.storage.overview import MissingLine, MissingSymbol

# How far back every bar is counted: a month of 8,000 symbols is a million ledger rows, which take a second; a decade would take
# minutes each time. What is missing now is of the whole ledger.
DAYS = 30
MOST_SYMBOLS = 100
# In base64 a third more: a page with some of them stays readable, and the event log small.
MOST_PICTURE_BYTES = 140_000
_PICTURE_ROWS = 100


@dataclass(frozen=True, slots=True)
class IntervalSummary:
    """The active symbols' bars of one interval from ``first`` to ``last``, by verdict and tier: they add up to the grid.

    ``unasked``: those of the missing that the ledger has no row of. ``given_up``: those for which nothing is planned. ``finality``
    counts symbols' sessions.
    """

    interval: Interval
    first: date
    last: date
    by_tier: Mapping[Tier, Mapping[Verdict, int]]
    unasked: int
    given_up: int
    finality: Mapping[Finality, int]

    @property
    def counts(self) -> dict[Verdict, int]:
        """Over all tiers."""
        return {verdict: sum(counts[verdict] for counts in self.by_tier.values()) for verdict in VERDICTS}


@dataclass(frozen=True, slots=True)
class CoverageSummary:
    """``intervals``: those of which the ledger has any of the last ``DAYS`` days. ``missing`` and ``worst``: of the whole ledger.

    ``picture``: the finest of the intervals as a png; None where there is none.
    """

    at: datetime
    symbols: int
    intervals: Sequence[IntervalSummary]
    missing: Sequence[MissingLine]
    worst: Sequence[MissingSymbol]
    picture: bytes | None


def coverage_summary(pipeline: Pipeline, *, days: int = DAYS) -> CoverageSummary:
    """What there is now. It reads ledger rows, never bars, and changes nothing."""
    now = pipeline.clock.now()
    instruments = pipeline.universe.instruments()
    last = day_in_the_east(now)
    found = [_interval(pipeline, instruments, interval, last - timedelta(days=days), last) for interval in Interval]
    intervals = [summary for summary in found if summary is not None]
    return CoverageSummary(
        at=now,
        symbols=len(instruments),
        intervals=intervals,
        missing=missing_now(pipeline),
        worst=missing_symbols_now(pipeline, limit=MOST_SYMBOLS),
        picture=_picture(pipeline, instruments, intervals[0]) if intervals else None,
    )


def _interval(
    pipeline: Pipeline, instruments: Sequence[Instrument], interval: Interval, first: date, last: date
) -> IntervalSummary | None:
    calendars = {instrument.calendar: pipeline.calendars(instrument.calendar) for instrument in instruments}
    within = {name: (max(first, one.first_session), min(last, one.last_session)) for name, one in calendars.items()}
    days = sorted({day for name, one in calendars.items() for day in one.sessions(*within[name])})
    if not days:
        return None
    tiers = list(Tier)
    rows = [tiers.index(instrument.tier) for instrument in instruments]
    column_of = {day: place for place, day in enumerate(days)}
    cells = verdict_cells(instruments, interval, days[0], days[-1], pipeline=pipeline, row_of=rows, column_of=column_of)
    known = cells.sessions.sum(axis=(0, 1)) > 0
    if not known.any():
        return None
    # Before the ledger begins nobody was asked, which is nothing to complain of: what is wanted begins where it does.
    return _summed(interval, cells, days, slice(int(np.argmax(known)), len(days)), tiers)


def _summed(interval: Interval, cells: VerdictCells, days: Sequence[date], shown: slice, tiers: Sequence[Tier]) -> IntervalSummary:
    bars = cells.bars[:, :, shown].sum(axis=2)
    return IntervalSummary(
        interval=interval,
        first=days[shown.start],
        last=days[-1],
        by_tier={
            tier: dict(zip(VERDICTS, bars[:, row].tolist(), strict=True))
            for row, tier in enumerate(tiers[: bars.shape[1]])
            if bars[:, row].any()
        },
        unasked=int(cells.unasked[:, shown].sum()),
        given_up=int(cells.given_up[:, shown].sum()),
        finality={finality: int(cells.sessions[finality][:, shown].sum()) for finality in Finality},
    )


def _picture(pipeline: Pipeline, instruments: Sequence[Instrument], summary: IntervalSummary) -> bytes | None:
    """The finest picture that is small enough."""
    heatmap = heatmap_of(instruments, summary.interval, summary.first, summary.last, pipeline=pipeline, most_rows=_PICTURE_ROWS)
    for dots_per_inch in (90, 60, 40):
        picture = drawn(heatmap, dots_per_inch=dots_per_inch)
        if len(picture) <= MOST_PICTURE_BYTES:
            return picture
    return None
