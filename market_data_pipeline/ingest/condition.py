"""One session of one symbol, looked at closely: its condition, why, on what evidence, from whom, and what happens next."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from market_data_pipeline.domain.condition import Condition, condition_of
from market_data_pipeline.domain.coverage import Verdict, tally
from market_data_pipeline.ingest.coverage import codes_of, masks_of
from market_data_pipeline.ingest.grid import Grid
from market_data_pipeline.storage.evidence import Evidence
from market_data_pipeline.storage.fetches import FetchStore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date

    from market_data_pipeline.domain.candles import Interval
    from market_data_pipeline.domain.coverage import LedgerRow
    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.storage.evidence import EvidenceRow


@dataclass(frozen=True, slots=True)
class SessionCondition:
    """What there is of one session of one interval. ``counts`` add up to the bars that the calendar expects.

    ``why`` is for people. ``row`` None: the ledger knows nothing of the session. ``providers``: how many bars each gave.
    """

    interval: Interval
    session: date
    opens_at: int
    closes_at: int
    condition: Condition
    why: str
    counts: Mapping[Verdict, int]
    row: LedgerRow | None
    providers: Mapping[str, int]
    evidence: Sequence[EvidenceRow]


def session_condition(instrument: Instrument, interval: Interval, session: date, *, pipeline: Pipeline) -> SessionCondition:
    """The condition of ``session``, which must be one of the instrument's calendar."""
    grid = Grid.of(pipeline.calendars(instrument.calendar), interval, session, session)
    rows = pipeline.ledger.rows([instrument.symbol_id], interval, session, session)
    now = pipeline.clock.now()
    masks = masks_of(grid, rows)
    counts = tally(codes_of(pipeline, instrument, interval, grid, masks, now=int(now.timestamp())))
    row = rows[0] if rows else None
    start, end = int(grid.opened_at[0]), int(grid.opened_at[-1]) + 1
    stored = pipeline.reader.read([instrument.symbol_id], interval, start, end, provenance=True)
    condition = condition_of(counts)
    return SessionCondition(
        interval=interval,
        session=session,
        opens_at=int(grid.opens_at[0]),
        closes_at=int(grid.closes_at[0]),
        condition=condition,
        why=_why(instrument, interval, condition, counts, row, misfit=bool(masks.misfit.any()), pipeline=pipeline),
        counts=counts,
        row=row,
        providers=dict(Counter(stored.providers or ()).most_common()),
        evidence=Evidence(pipeline.engine).of(instrument.symbol_id, interval, session, session),
    )


def _why(
    instrument: Instrument,
    interval: Interval,
    condition: Condition,
    counts: Mapping[Verdict, int],
    row: LedgerRow | None,
    *,
    misfit: bool,
    pipeline: Pipeline,
) -> str:
    if misfit:
        return "the ledger's row was opened under other hours than the calendar has now: `mdp reconcile --repair`"
    if condition is Condition.NOT_LISTED:
        return f"{instrument.symbol} was not listed"
    parts = [f"{count:,} {_WORDS[verdict]}" for verdict, count in counts.items() if count and verdict is not Verdict.PRESENT]
    said = ", ".join(parts) or "every bar is there"
    if not counts[Verdict.MISSING]:
        return said
    return f"{said}; {_why_missing(instrument, interval, row, pipeline)}"


_WORDS = {
    Verdict.CONFIRMED_EMPTY: "without a trade",
    Verdict.HALTED: "halted",
    Verdict.NOT_LISTED: "not listed",
    Verdict.PENDING: "not due yet",
    Verdict.UNREACHABLE: "beyond every provider's reach",
    Verdict.MISSING: "missing",
}


def _why_missing(instrument: Instrument, interval: Interval, row: LedgerRow | None, pipeline: Pipeline) -> str:
    """How the last request ended, and what is planned."""
    if row is None:
        return "nobody was asked yet"
    if interval.source is not None:
        return f"computed when more of its {interval.source} is there"
    latest = FetchStore(pipeline.engine).latest(instrument.symbol_id, interval)
    asked = "" if not latest else f"last request: {latest[0].fetch.provider}, {latest[0].fetch.outcome}; "
    tries = f"{row.attempts} answers without it, {row.failures} failures since"
    if row.next_attempt_at is None:
        return f"{asked}{tries}; given up: `mdp gaps --retry` asks again"
    return f"{asked}{tries}; asked again from {row.next_attempt_at:%Y-%m-%dT%H:%M:%SZ}"
