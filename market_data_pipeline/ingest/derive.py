"""Bring derived intervals in line with the stored minutes, and report it stretch by stretch like a fetch."""

from __future__ import annotations

import time
from collections import defaultdict
from datetime import date, timedelta
from typing import TYPE_CHECKING

from market_data_pipeline.domain.coverage import tally
from market_data_pipeline.domain.tracing import in_its_own_context
from market_data_pipeline.ingest.coverage import codes_of, history_of, masks_of, rows_by_symbol
from market_data_pipeline.ingest.grid import Grid
from market_data_pipeline.ingest.report import Stretch, StretchReport
from market_data_pipeline.observability.logs import bound

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from market_data_pipeline.domain.candles import Interval
    from market_data_pipeline.ingest.pipeline import Pipeline

# Instruments whose ledger rows are in memory together.
_INSTRUMENTS_AT_ONCE = 100
# Stretches this close are derived as one range: a week bridges any holiday, and deriving a session in between changes nothing.
_LONGEST_BREAK = timedelta(days=7)
DERIVED = "derived"

_Range = tuple[date, date]


@in_its_own_context
def derive_candles(
    stretches: Sequence[Stretch], interval: Interval, *, pipeline: Pipeline, run_id: str | None = None
) -> Iterator[StretchReport]:
    """Compute ``interval`` from the stored minutes over the stretches, and report each. Repeating it is safe and writes nothing."""
    with (
        bound(run_id=run_id, interval=interval.value),
        pipeline.tracer.span("derive", interval=interval.value, stretches=len(stretches), run_id=run_id or ""),
    ):
        for (calendar, ranges), members in _alike(stretches).items():
            for at in range(0, len(members), _INSTRUMENTS_AT_ONCE):
                for first, last in ranges:
                    chunk = [[s for s in own if first <= s.first <= last] for own in members[at : at + _INSTRUMENTS_AT_ONCE]]
                    yield from _derive(chunk, interval, calendar, first, last, pipeline=pipeline, run_id=run_id)


def _alike(stretches: Sequence[Stretch]) -> dict[tuple[str, tuple[_Range, ...]], list[list[Stretch]]]:
    """The stretches of each instrument; those with the same calendar and ranges together: one statement derives them all."""
    by_instrument: dict[int, list[Stretch]] = defaultdict(list)
    for stretch in sorted(stretches, key=lambda s: (s.instrument.symbol_id, s.first)):
        by_instrument[stretch.instrument.symbol_id].append(stretch)
    alike: dict[tuple[str, tuple[_Range, ...]], list[list[Stretch]]] = defaultdict(list)
    for own in by_instrument.values():
        alike[own[0].instrument.calendar, _ranges(own)].append(own)
    return alike


def _ranges(stretches: Sequence[Stretch]) -> tuple[_Range, ...]:
    ranges = [(stretches[0].first, stretches[0].last)]
    for stretch in stretches[1:]:
        first, last = ranges[-1]
        if stretch.first - last <= _LONGEST_BREAK:
            ranges[-1] = (first, max(last, stretch.last))
        else:
            ranges.append((stretch.first, stretch.last))
    return tuple(ranges)


def _derive(
    members: Sequence[Sequence[Stretch]],
    interval: Interval,
    calendar_name: str,
    first: date,
    last: date,
    *,
    pipeline: Pipeline,
    run_id: str | None,
) -> Iterator[StretchReport]:
    started = time.perf_counter()
    now = pipeline.clock.now()
    calendar = pipeline.calendars(calendar_name)
    symbol_ids = [own[0].instrument.symbol_id for own in members]
    grid = Grid.of(calendar, interval, first, last)
    before = rows_by_symbol(pipeline.ledger.rows(symbol_ids, interval, first, last))
    changes = pipeline.deriver.derive(
        symbol_ids, interval, calendar.segments(first, last), now=now, known_at=pipeline.known_at(now), run_id=run_id
    )
    after = rows_by_symbol(pipeline.ledger.rows(symbol_ids, interval, first, last))
    seconds = (time.perf_counter() - started) / sum(len(own) for own in members)
    for own in members:
        symbol_id = own[0].instrument.symbol_id
        masks, was = masks_of(grid, after.get(symbol_id, [])), masks_of(grid, before.get(symbol_id, []))
        codes = codes_of(pipeline, own[0].instrument, interval, grid, masks, now=int(now.timestamp()))
        out_of_step = set(changes[symbol_id].out_of_step)
        for stretch in own:
            places = grid.between(stretch.first, stretch.last)
            bars = slice(int(grid.offsets[places.start]), int(grid.offsets[places.stop]))
            astray = any(session in out_of_step for session in grid.sessions[places])
            yield StretchReport(
                stretch=stretch,
                expected=bars.stop - bars.start,
                verdicts=tally(codes[bars]),
                inserted=int((masks.present[bars] & ~was.present[bars]).sum()),
                seconds=seconds,
                providers=(DERIVED,),
                history=history_of(grid, masks, codes, places),
                failure="the ledger is out of step with calendar or minutes: run `mdp reconcile --repair`" if astray else None,
            )
