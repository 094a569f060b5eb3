"""Ledger against bars and calendar: finds where they disagree and corrects the ledger. Bars are never touched."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.candles import CandleColumns
from market_data_pipeline.domain.coverage import LedgerRow
from market_data_pipeline.domain.finality import Finality
from market_data_pipeline.domain.ports import CandleBatch
from market_data_pipeline.domain.sessions import date_of
from market_data_pipeline.storage import binary
from market_data_pipeline.storage.bulk import (
    EPOCH,
    VALUES,
    database_time,
    lock_series,
    read_ledger,
    session_digests,
    transaction,
    write_ledger,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - a class that psycopg2 spells in lower case
    from sqlalchemy import Engine

    from market_data_pipeline.domain.candles import Bools, Int64s, Interval
    from market_data_pipeline.domain.sessions import ExpectedOpens, SessionBounds

# A year of sessions: some 100,000 minutes, 8 MB, are in memory at a time, however long the history is.
SESSIONS_AT_ONCE = 250

_SNAPSHOT = "set transaction isolation level repeatable read, read only"

_INTRADAY_BARS = """
select opened_at, open, high, low, close, volume, coalesce(vwap, 'NaN') as vwap, coalesce(trades::float8, 'NaN') as trades, fetch_id
  from candles_intraday
 where symbol_id = %(symbol_id)s and interval_s = %(interval_s)s and opened_at >= %(start)s and opened_at < %(end)s
 order by opened_at
"""
_DAILY_BARS = """
select session_date::timestamp at time zone 'UTC' as opened_at, open, high, low, close, volume,
       coalesce(vwap, 'NaN') as vwap, coalesce(trades::float8, 'NaN') as trades, fetch_id
  from candles_daily
 where symbol_id = %(symbol_id)s and session_date >= %(first)s and session_date < %(beyond)s
 order by session_date
"""
_KINDS = {"opened_at": binary.TIMESTAMPTZ, **dict.fromkeys(VALUES, binary.FLOAT8), "fetch_id": binary.INT8}

_ORPHANS = (
    "select id from unnest(%(ids)s::int8[]) as f (id) except select fetch_id from fetches where fetch_id = any(%(ids)s::int8[])"
)

_ROWS_WITHOUT_SESSION = """
select session, expected from coverage
 where symbol_id = %(symbol_id)s and interval_s = %(interval_s)s and session >= %(first)s and session < %(beyond)s
   and session <> all(%(sessions)s::date[])
 order by session
"""

_DROP_ROWS = """
delete from coverage where symbol_id = %(symbol_id)s and interval_s = %(interval_s)s and session = any(%(sessions)s::date[])
"""


class DiscrepancyKind(StrEnum):
    """What is wrong. Only the last two cannot be corrected in the ledger: a person decides about those bars."""

    LOST_BARS = "lost_bars"
    """The ledger says present, and there is no bar."""
    UNRECORDED_BARS = "unrecorded_bars"
    """A bar is stored that the ledger does not call present."""
    CALENDAR_CHANGED = "calendar_changed"
    """The ledger row was opened under other hours than the calendar has now."""
    NO_SESSION = "no_session"
    """The ledger has a row for a day that is no session."""
    STALE_DIGEST = "stale_digest"
    """The stored bars are no longer those that the row's digest is of: an identical answer would be taken for stored."""
    OFF_GRID_BARS = "off_grid_bars"
    """Bars are stored at instants where the calendar expects none."""
    ORPHAN_BARS = "orphan_bars"
    """Bars name a fetch that does not exist: their provenance is lost."""


REPAIRABLE = frozenset(DiscrepancyKind) - {DiscrepancyKind.OFF_GRID_BARS, DiscrepancyKind.ORPHAN_BARS}


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """One thing that is wrong with one session of one symbol and interval; ``bars`` is how many bars it is about.

    ``session`` of bars off the grid is their UTC date. ``detail`` is for people.
    """

    symbol_id: int
    interval: Interval
    session: date
    kind: DiscrepancyKind
    bars: int
    detail: str

    @property
    def is_repairable(self) -> bool:
        """Whether ``repair`` corrects it."""
        return self.kind in REPAIRABLE


def audit(
    engine: Engine, symbol_ids: Iterable[int], interval: Interval, *, bounds: SessionBounds, expected: ExpectedOpens
) -> Iterator[Discrepancy]:
    """Everything that is wrong in the sessions of ``bounds``, by symbol and time; nothing is changed.

    ``bounds`` and ``expected`` are the calendar's over one range of sessions, for symbols that share it. Each symbol is read in
    snapshots of ``SESSIONS_AT_ONCE`` sessions, so writers are neither blocked nor half seen. Bars before the first open and after
    the last close of the range are not looked at.
    """
    for symbol_id in sorted(set(symbol_ids)):
        for grid in _grids(bounds, expected):
            with transaction(engine) as cursor:
                cursor.execute(_SNAPSHOT)
                findings = _examine(cursor, symbol_id, interval, grid)
            yield from findings.discrepancies


def repair(
    engine: Engine,
    symbol_ids: Iterable[int],
    interval: Interval,
    *,
    bounds: SessionBounds,
    expected: ExpectedOpens,
    now: datetime,
    known_at: datetime | None = None,
) -> list[Discrepancy]:
    """Audit again under the writers' locks, bring the ledger in line with bars and calendar, and return what was wrong.

    Only rows with something wrong are written, and only verdicts that were wrong change. Where bars are absent afterwards and
    their interval is fetched, the next attempt is ``now`` and attempts count anew, so healing asks for them. A minute that was
    confirmed empty stays so where the calendar still expects it. A row for a day that is no session is removed. What is not
    ``is_repairable`` is returned and left as it is. Repeating it is safe.
    """
    found: list[Discrepancy] = []
    for symbol_id in sorted(set(symbol_ids)):
        for grid in _grids(bounds, expected):
            with transaction(engine) as cursor:
                lock_series(cursor, [symbol_id], interval.seconds)
                findings = _examine(cursor, symbol_id, interval, grid)
                found.extend(findings.discrepancies)
                if not findings.wrong and not findings.surplus:
                    continue
                learned_at = known_at or database_time(cursor)
                write_ledger(cursor, interval, [wrong.corrected(now=now, learned_at=learned_at) for wrong in findings.wrong])
                cursor.execute(
                    _DROP_ROWS,
                    {"symbol_id": symbol_id, "interval_s": interval.seconds, "sessions": findings.surplus},
                )
    return found


# --- what the calendar says ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Grid:
    """What the calendar expects of some sessions in a row. ``offsets``: where the bars of each session begin, and the end.

    Everything from session ``sessions[0]`` until the day ``beyond`` belongs here, holidays included.
    """

    sessions: Sequence[date]
    beyond: date
    opens_at: Int64s
    closes_at: Int64s
    until: int | None
    """The next grid's first open, None for the last grid."""
    opened_at: Int64s
    offsets: Int64s

    def bars_of(self, index: int) -> slice:
        """Where the bars of a session are in ``opened_at``."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))


def _grids(bounds: SessionBounds, expected: ExpectedOpens) -> Iterator[_Grid]:
    """The calendar cut into pieces of ``SESSIONS_AT_ONCE`` sessions that leave no day between them."""
    offsets = np.searchsorted(expected.session, np.append(bounds.session, np.iinfo(np.int32).max)).astype(np.int64)
    for first in range(0, len(bounds.session), SESSIONS_AT_ONCE):
        last = min(first + SESSIONS_AT_ONCE, len(bounds.session))
        is_end = last == len(bounds.session)
        yield _Grid(
            sessions=[date_of(day) for day in bounds.session[first:last].tolist()],
            beyond=date_of(int(bounds.session[last - 1]) + 1 if is_end else int(bounds.session[last])),
            opens_at=bounds.opens_at[first:last],
            closes_at=bounds.closes_at[first:last],
            until=None if is_end else int(bounds.opens_at[last]),
            opened_at=expected.opened_at[offsets[first] : offsets[last]],
            offsets=offsets[first : last + 1] - offsets[first],
        )


# --- what is stored ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Stored:
    columns: CandleColumns
    fetch_id: Int64s


def _stored(cursor: Cursor, symbol_id: int, interval: Interval, grid: _Grid, rows: Iterable[LedgerRow]) -> _Stored:
    """The bars in the range of the grid, and in that of its ledger rows where those were opened under longer hours."""
    start = min([int(grid.opens_at[0]), *(row.opens_at for row in rows)])
    end = grid.until or max([int(grid.closes_at[-1]), *(row.closes_at for row in rows)])
    parameters = {
        "symbol_id": symbol_id,
        "interval_s": interval.seconds,
        "start": EPOCH + timedelta(seconds=start),
        "end": EPOCH + timedelta(seconds=end),
        "first": grid.sessions[0],
        "beyond": grid.beyond,
    }
    query = cursor.mogrify(_DAILY_BARS if interval.is_daily else _INTRADAY_BARS, parameters)
    body = io.BytesIO()
    cursor.copy_expert(b"copy (" + query + b") to stdout (format binary)", body)
    columns = binary.decode(body.getbuffer(), _KINDS)
    opened_at = columns["opened_at"].astype(np.int64) // 1_000_000 + binary.EPOCH_SECONDS
    values = {name: columns[name].astype(np.float64, copy=False) for name in VALUES}
    return _Stored(CandleColumns(opened_at, **values), columns["fetch_id"].astype(np.int64, copy=False))


# --- comparing -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _WrongRow:
    """A ledger row that has to be written: what is stored, on the grid that the calendar has now."""

    row: LedgerRow | None
    symbol_id: int
    interval: Interval
    session: date
    opens_at: int
    closes_at: int
    opened_at: Int64s
    stored: Bools

    def corrected(self, *, now: datetime, learned_at: datetime) -> LedgerRow:
        """The row as it should be."""
        before, confirmed = self.row, self._still_confirmed()
        is_same_grid = self._is_same_grid
        halted = before.halted & ~self.stored if before is not None and before.halted is not None and is_same_grid else None
        right = LedgerRow(
            symbol_id=self.symbol_id,
            interval=self.interval,
            session=self.session,
            opens_at=self.opens_at,
            closes_at=self.closes_at,
            present=self.stored,
            confirmed_empty=confirmed,
            last_attempt_at=before.last_attempt_at if before else None,
            # Knowledge never runs backwards, whatever the caller's clock says.
            known_at=max(learned_at, before.known_at or learned_at) if before else learned_at,
            halted=halted if halted is not None and halted.any() else None,
            finality=before.finality if before and is_same_grid else Finality.PROVISIONAL,
            recheck_at=before.recheck_at if before and is_same_grid else None,
        )
        absent = ~right.resolved
        if before is not None and before.expected == len(absent):
            already = ~before.resolved
            if not (absent & ~already).any():
                # Nothing new is absent: what healing has tried and planned so far still holds.
                planned = before.next_attempt_at if absent.any() else None
                return replace(right, attempts=before.attempts, failures=before.failures, next_attempt_at=planned)
        if absent.any() and self.interval.source is None:
            return replace(right, next_attempt_at=now)
        return right

    @property
    def _is_same_grid(self) -> bool:
        row = self.row
        return row is not None and (row.opens_at, row.closes_at, row.expected) == (self.opens_at, self.closes_at, len(self.stored))

    def _still_confirmed(self) -> Bools:
        """The slots confirmed empty that the calendar still expects, told by the instant at which they open."""
        nothing = np.zeros(len(self.stored), bool)
        if self.row is None:
            return nothing
        step = self.interval.seconds
        if self._is_same_grid:
            return self.row.confirmed_empty & ~self.stored
        if self.row.expected != -((self.row.opens_at - self.row.closes_at) // step):
            # A session with a break, under hours that are no longer known: its empty minutes have to be confirmed again.
            return nothing
        opened = self.row.opens_at + step * np.flatnonzero(self.row.confirmed_empty)
        return np.isin(self.opened_at, opened) & ~self.stored


@dataclass(frozen=True, slots=True, eq=False)
class _Findings:
    discrepancies: list[Discrepancy]
    wrong: list[_WrongRow]
    surplus: list[date]
    """Sessions of ledger rows that the calendar does not have."""


def _examine(cursor: Cursor, symbol_id: int, interval: Interval, grid: _Grid) -> _Findings:
    rows = read_ledger(cursor, interval, [(symbol_id, session) for session in grid.sessions])
    stored = _stored(cursor, symbol_id, interval, grid, rows.values())
    opened_at = stored.columns.opened_at
    findings = _Findings([], [], [])

    def report(session: date, kind: DiscrepancyKind, bars: int, detail: str) -> None:
        findings.discrepancies.append(Discrepancy(symbol_id, interval, session, kind, bars, detail))

    for session, count in _surplus_rows(cursor, symbol_id, interval, grid):
        findings.surplus.append(session)
        report(session, DiscrepancyKind.NO_SESSION, count, "the ledger has a row, the calendar has no session")

    places = np.searchsorted(grid.opened_at, opened_at)
    on_grid = np.zeros(len(opened_at), bool)
    inside = places < len(grid.opened_at)
    on_grid[inside] = grid.opened_at[places[inside]] == opened_at[inside]
    for day, instants in _by_day(opened_at[~on_grid]):
        report(day, DiscrepancyKind.OFF_GRID_BARS, len(instants), f"from {_instant(instants[0])} to {_instant(instants[-1])}")

    orphans = np.isin(stored.fetch_id, _orphans(cursor, stored.fetch_id))
    for day, instants in _by_day(opened_at[orphans]):
        report(day, DiscrepancyKind.ORPHAN_BARS, len(instants), f"from {_instant(instants[0])} to {_instant(instants[-1])}")

    have = np.zeros(len(grid.opened_at), bool)
    have[places[on_grid]] = True
    first_bars = np.searchsorted(opened_at[on_grid], np.append(grid.opened_at, np.iinfo(np.int64).max)[grid.offsets])
    usable = stored.columns.take(on_grid)
    for index, session in enumerate(grid.sessions):
        row, bars = rows.get((symbol_id, session)), grid.bars_of(index)
        wrong = _WrongRow(
            row,
            symbol_id,
            interval,
            session,
            int(grid.opens_at[index]),
            int(grid.closes_at[index]),
            grid.opened_at[bars],
            have[bars],
        )
        own = usable.take(np.arange(first_bars[index], first_bars[index + 1]))
        complaints = _complaints(wrong, own)
        for kind, count, detail in complaints:
            report(session, kind, count, detail)
        if complaints:
            findings.wrong.append(wrong)
    findings.discrepancies.sort(key=lambda found: (found.session, found.kind))
    return findings


def _complaints(found: _WrongRow, bars: CandleColumns) -> list[tuple[DiscrepancyKind, int, str]]:
    """What is wrong with one session's ledger row, given the bars stored on its grid."""
    row, stored = found.row, found.stored
    if row is None:
        count = int(stored.sum())
        return [(DiscrepancyKind.UNRECORDED_BARS, count, "bars are stored, the ledger has no row")] if count else []
    if (row.opens_at, row.closes_at, row.expected) != (found.opens_at, found.closes_at, len(stored)):
        detail = (
            f"the ledger expects {row.expected} bars from {_instant(row.opens_at)} to {_instant(row.closes_at)}, "
            f"the calendar {len(stored)} from {_instant(found.opens_at)} to {_instant(found.closes_at)}"
        )
        return [(DiscrepancyKind.CALENDAR_CHANGED, abs(row.expected - len(stored)), detail)]
    complaints = []
    lost, unrecorded = row.present & ~stored, stored & ~row.present
    if lost.any():
        complaints.append((DiscrepancyKind.LOST_BARS, int(lost.sum()), f"the first opened at {_first(found, lost)}"))
    if unrecorded.any():
        complaints.append(
            (DiscrepancyKind.UNRECORDED_BARS, int(unrecorded.sum()), f"the first opened at {_first(found, unrecorded)}")
        )
    if not complaints and row.digest is not None and row.digest not in _digests(found, bars):
        complaints.append((DiscrepancyKind.STALE_DIGEST, len(bars), "the stored bars are not those that were digested"))
    return complaints


def _digests(found: _WrongRow, bars: CandleColumns) -> list[bytes | None]:
    """The digests that an answer with exactly the stored bars would have, at either resolution of prices.

    VWAP and trades are those of the stored bars, or untold: another provider may have said the same without them.
    """
    unknown = np.full(len(bars), np.nan)
    return [
        digest
        for told in (bars, replace(bars, vwap=unknown, trades=unknown))
        for float32_prices in (False, True)
        for digest in session_digests(_as_batch(found, told, float32_prices=float32_prices), np.array([0, len(bars)], np.int64))
    ]


def _as_batch(found: _WrongRow, bars: CandleColumns, *, float32_prices: bool) -> CandleBatch:
    nothing = np.zeros(len(bars), np.int32)
    return CandleBatch(
        interval=found.interval,
        symbol_id=np.full(len(bars), found.symbol_id, np.int32),
        columns=bars,
        session_index=nothing,
        fetch_index=nothing,
        flags=nothing.astype(np.int16),
        sessions=[],
        fetches=[],
        float32_prices=float32_prices,
    )


def _surplus_rows(cursor: Cursor, symbol_id: int, interval: Interval, grid: _Grid) -> list[tuple[date, int]]:
    cursor.execute(
        _ROWS_WITHOUT_SESSION,
        {
            "symbol_id": symbol_id,
            "interval_s": interval.seconds,
            "first": grid.sessions[0],
            "beyond": grid.beyond,
            "sessions": list(grid.sessions),
        },
    )
    return [(session, expected) for session, expected in cursor]


def _orphans(cursor: Cursor, fetch_id: Int64s) -> list[int]:
    cursor.execute(_ORPHANS, {"ids": np.unique(fetch_id).tolist()})
    return [orphan for (orphan,) in cursor]


def _by_day(opened_at: Int64s) -> Iterator[tuple[date, Int64s]]:
    """Sorted instants, together with those of the same UTC date."""
    days = opened_at // 86_400
    for day in np.unique(days).tolist():
        yield date_of(day), opened_at[days == day]


def _first(found: _WrongRow, mask: Bools) -> str:
    return _instant(found.opened_at[mask][0])


def _instant(epoch_seconds: int | np.int64) -> str:
    return (EPOCH + timedelta(seconds=int(epoch_seconds))).strftime("%Y-%m-%dT%H:%M:%SZ")
