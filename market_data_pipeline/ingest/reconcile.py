"""The ledger compared with bars and calendar, and brought in line: what is lost becomes missing, what is derived comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.ingest.derive import derive_candles
from market_data_pipeline.ingest.report import Stretch
from market_data_pipeline.storage.extents import stored_extents
from market_data_pipeline.storage.reconcile import DiscrepancyKind, audit, repair

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import date

    from market_data_pipeline.domain.sessions import TradingCalendar
    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.storage.reconcile import Discrepancy

# What leaves a derived bar absent whose minutes may all be there.
_LOSSES = frozenset({DiscrepancyKind.LOST_BARS, DiscrepancyKind.CALENDAR_CHANGED})


@dataclass(frozen=True, slots=True)
class _Part:
    """Symbols that share a calendar, and the sessions in which anything is stored of them for one interval."""

    calendar: TradingCalendar
    interval: Interval
    symbol_ids: tuple[int, ...]
    first: date
    last: date


def compare(pipeline: Pipeline, instruments: Sequence[Instrument], intervals: Sequence[Interval] = ()) -> Iterator[Discrepancy]:
    """Everything in which the ledger disagrees with the stored bars or the calendar; nothing is changed. No intervals: all."""
    for part in _parts(pipeline, instruments, intervals):
        bounds = part.calendar.bounds(part.first, part.last)
        expected = part.calendar.expected_opens(part.interval, part.first, part.last)
        yield from audit(pipeline.engine, part.symbol_ids, part.interval, bounds=bounds, expected=expected)


def bring_in_line(
    pipeline: Pipeline, instruments: Sequence[Instrument], intervals: Sequence[Interval] = ()
) -> Iterator[Discrepancy]:
    """The same, and the ledger is corrected: only verdicts that were wrong change, and no bar. Repeating it is safe.

    A bar that was lost is missing from then on, and healing asks for it; ``derive_lost`` brings back what no provider is asked for.
    """
    now = pipeline.clock.now()
    for part in _parts(pipeline, instruments, intervals):
        yield from repair(
            pipeline.engine,
            part.symbol_ids,
            part.interval,
            bounds=part.calendar.bounds(part.first, part.last),
            expected=part.calendar.expected_opens(part.interval, part.first, part.last),
            now=now,
            known_at=pipeline.known_at(now),
        )


def derive_lost(
    pipeline: Pipeline, instruments: Sequence[Instrument], found: Sequence[Discrepancy], *, run_id: str | None = None
) -> int:
    """Compute the lost bars of derived intervals whose minutes are there, and return how many: no gap run would come for them.

    ``found`` is what ``bring_in_line`` told. Those whose minutes are lost too are derived with these, when they are healed.
    """
    by_id = {instrument.symbol_id: instrument for instrument in instruments}
    lost: dict[Interval, set[tuple[int, date]]] = {}
    for one in found:
        if one.kind in _LOSSES and one.interval.source is not None:
            lost.setdefault(one.interval, set()).add((one.symbol_id, one.session))
    return sum(
        report.inserted
        for interval, sessions in lost.items()
        for report in derive_candles(
            [Stretch(by_id[symbol_id], session, session) for symbol_id, session in sorted(sessions)],
            interval,
            pipeline=pipeline,
            run_id=run_id,
        )
    )


def _parts(pipeline: Pipeline, instruments: Sequence[Instrument], intervals: Sequence[Interval]) -> Iterator[_Part]:
    calendar_of = {instrument.symbol_id: instrument.calendar for instrument in instruments}
    extents = stored_extents(pipeline.engine, list(calendar_of))
    # Minutes before what is derived from them: a bar is computed again from a ledger that is right.
    for interval in sorted(intervals or Interval, key=lambda one: one.seconds):
        for name in sorted(set(calendar_of.values())):
            theirs = [e for e in extents if e.interval is interval and calendar_of[e.symbol_id] == name]
            if not theirs:
                continue
            calendar = pipeline.calendars(name)
            # A session more at both ends: bars outside of every session's hours lie next to one.
            first, last = min(extent.first for extent in theirs), max(extent.last for extent in theirs)
            yield _Part(
                calendar,
                interval,
                tuple(extent.symbol_id for extent in theirs),
                _session_before(calendar, first),
                _session_after(calendar, last),
            )


def _session_before(calendar: TradingCalendar, day: date) -> date:
    return calendar.previous_session(day) if day > calendar.first_session else calendar.first_session


def _session_after(calendar: TradingCalendar, day: date) -> date:
    return calendar.next_session(day) if day < calendar.last_session else calendar.last_session
