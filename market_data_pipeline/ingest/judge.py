"""Decides what an answer is worth, bar by bar, against the grid, the clock and what is stored. Pure: nothing is fetched here."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.candles import CandleColumns
from market_data_pipeline.domain.capabilities import Basis
from market_data_pipeline.domain.errors import BarrenError, PayloadError, StaleError
from market_data_pipeline.domain.ports import AnsweredSession, RefusedBars
from market_data_pipeline.domain.quality import BarFlag, Findings, Reference, examine
from market_data_pipeline.domain.sessions import date_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from market_data_pipeline.domain.candles import Bools, Float64s, Int16s, Int32s, Int64s, Interval
    from market_data_pipeline.domain.finality import Settlement
    from market_data_pipeline.domain.ports import BarsAnswer, CorporateAction, Fetch
    from market_data_pipeline.domain.sessions import TradingCalendar
    from market_data_pipeline.ingest.grid import Grid
    from market_data_pipeline.ingest.plan import Window

OK = "ok"
# Two clocks may differ by this much before a bar that has not opened yet is called impossible instead of early.
_CLOCK_SKEW_SECONDS = 60
# A last trade is older than this for many a quiet symbol, and for every provider that is a quarter of an hour late.
_STALE_SECONDS = 1800
# The share of bars there that makes an absence among them remarkable.
_DENSE = 0.9
# Fewer bars than this are no pattern.
_PATTERN, _HOURS = 8, 6
# So many closes in a row do not repeat those of the bars before them by chance.
_TELLING = 3
_DAY = 86_400
_NOTHING = Reference()


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """An answer after judgement, ready to be stored.

    ``columns`` are the bars worth keeping, sorted, on the grid; ``flags`` (``domain.quality.BarFlag``) and ``session_index`` (into
    ``sessions``) have one element for each. ``fetch`` carries the counts of everything left out; its ``outcome`` is ``kind``.
    Every row received is in ``columns``, in ``refused`` or counted in ``fetch.dropped``.

    ``kind`` is "ok" or the ``kind`` of the error that the answer amounts to, and ``reason`` says why in words, None for "ok":
    "barren" (bars were due in the window and none came, not even a null), "stale" (what came is kept), "mixed_basis" and
    "malformed": every bar is refused then and nothing is said of any session, so ``sessions`` is empty and the failure is the
    caller's to record. ``expected``: bars of the window that were due; ``received``: those of them that came and were usable,
    wanted or not.
    """

    fetch: Fetch
    columns: CandleColumns
    session_index: Int32s
    sessions: Sequence[AnsweredSession]
    refused: RefusedBars
    actions: Sequence[CorporateAction]
    float32_prices: bool
    flags: Int16s
    kind: str
    reason: str | None
    expected: int
    received: int

    @property
    def barren(self) -> bool:
        """Bars were due in the window and none came."""
        return self.kind == BarrenError.kind


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """The rows of an answer that are on the grid, each with its place there; ``stray``: the stamps of those that are not."""

    columns: CandleColumns
    places: Int64s
    days: Int32s
    flags: Int16s
    null_places: Int64s
    stray: Int64s
    beyond: Int32s
    """The days of lawful bars of sessions that the grid does not have: trading was observed there."""


def _reference(held: Reference, answer: BarsAnswer, window: Window) -> Reference:
    """What the answer is held against: what we hold, or else the close before the window that it names itself.

    Without it a symbol's very first answer, a hundred times too dear, would have nothing to contradict it.
    """
    if held.close is not None or answer.previous_close is None:
        return held
    return replace(held, close=answer.previous_close, session=date_of(window.start // _DAY - 1), source="own previous")


def judge(  # noqa: PLR0913 - everything a bar is held against
    answer: BarsAnswer,
    *,
    symbol_id: int,
    window: Window,
    grid: Grid,
    calendar: TradingCalendar,
    now: int,
    settle_seconds: int,
    wanted: Bools | None = None,
    reference: Reference | None = None,
    basis: Basis = Basis.SPLIT,
    settlements: Sequence[Settlement | None] = (),
    next_over: Int64s | None = None,
) -> Judged:
    """Keep the bars that are on the grid, finished by the clock and lawful; count or refuse the rest; say what was silent.

    ``grid`` holds the sessions that the window is for. Silence needs a bar of the same answer on both sides, in the session or in
    another: the end of an answer that was cut short is no evidence.

    ``wanted``: one element a bar of ``grid``, the bars to keep where only holes are filled; the
    others count as "already_held". ``reference``: what is stored, None to judge the answer by itself alone. ``basis``: the
    provider's declared one. ``settlements``: one a session, when an answer makes it final; left out, at once. ``next_over``: one a
    session, when all bars of the calendar's next one are due. What each rule does is the table in docs/providers.md.
    """
    dropped = Counter(answer.fetch.dropped)
    rows = _located(answer, grid, calendar, dropped)
    columns, places = rows.columns, rows.places
    due = grid.due(now, settle_seconds)
    asked = due & (grid.starts_at >= window.start) & (grid.starts_at < window.end)

    finished = due[places]
    early = grid.starts_at[places] > now + _CLOCK_SKEW_SECONDS
    dropped["in_progress"] += int((~finished & ~early).sum())
    # Low is the least of a lawful bar: above zero, all four are.
    usable = finished & columns.obeys_ohlc_laws() & (columns.low > 0)
    reasons = {row: reason_for(columns, row) for row in np.flatnonzero(finished & ~usable).tolist()}
    reasons |= dict.fromkeys(np.flatnonzero(early).tolist(), "it opens after the time it was asked at")

    everything = bool(usable.all())
    sound = np.arange(len(places)) if everything else np.flatnonzero(usable)
    misfit = (
        _misplaced(rows, grid, asked)
        or _told_of_other_bars(rows, grid, reference, answer.request.interval)
        or _coarser(rows, grid, asked)
        or _lawless(finished, usable, reasons)
    )
    findings = (
        Findings(PayloadError.kind, misfit)
        if misfit
        else examine(
            columns if everything else columns.take(sound),
            days=rows.days[sound],
            places=places[sound],
            reference=_reference(reference or _NOTHING, answer, window),
            actions=answer.actions,
            basis=basis,
            today=now // _DAY,
        )
    )
    if findings.reason is not None:
        return _condemned(answer, rows, findings, reasons, usable, dropped, expected=int(asked.sum()))
    for row, why in findings.refused.items():
        reasons[int(sound[row])] = why
        usable[sound[row]] = False
    rows.flags[sound[list(findings.jumps)]] |= BarFlag.UNEXPLAINED_JUMP

    kind, reason = _as_a_whole(answer, grid, asked, _mask(grid, places[usable]))
    spoken = _mask(grid, np.concatenate((places, rows.null_places)))
    quiet = asked & ~spoken
    if kind == StaleError.kind and answer.newest is not None:
        # The bar that ran at that time is of that time: it may have the flat prices of a bar in progress.
        ran = usable & (grid.ends_at[places] > answer.newest)
        dropped["in_progress"] += int(ran.sum())
        usable &= ~ran
        quiet &= grid.ends_at <= answer.newest

    kept = usable if wanted is None else usable & wanted[places]
    dropped["already_held"] += int(usable.sum()) - int(kept.sum())
    bars, came = _mask(grid, places[kept]), _mask(grid, places[usable])
    return Judged(
        fetch=_told(answer.fetch, kind, int(kept.sum()), dropped),
        columns=columns.take(kept),
        session_index=(np.searchsorted(grid.offsets, places[kept], side="right") - 1).astype(np.int32),
        sessions=_sessions(
            symbol_id,
            grid,
            _Said(bars=bars, came=came, quiet=quiet, due=due, asked=asked, silent=quiet & _between_bars(grid, came, rows.beyond)),
            provider=answer.fetch.provider,
            settlements=settlements or [None] * len(grid),
            next_over=[None] * len(grid) if next_over is None else next_over.tolist(),
        ),
        refused=_refused(columns, reasons),
        actions=answer.actions,
        float32_prices=answer.float32_prices,
        flags=rows.flags[kept],
        kind=kind,
        reason=reason,
        expected=int(asked.sum()),
        received=int((came & asked).sum()),
    )


def reason_for(columns: CandleColumns, row: int) -> str:
    """Which law the bar at ``row`` breaks, in words."""
    open_, high, low, close = (float(getattr(columns, name)[row]) for name in ("open", "high", "low", "close"))
    volume = float(columns.volume[row])
    if not np.isfinite([open_, high, low, close, volume]).all():
        return "a value is null, NaN or infinite"
    if open_ == high == low == close == 0:
        return "all prices are zero"
    if min(open_, high, low, close) <= 0:
        return "a price is zero or negative"
    if volume < 0:
        return "volume is negative"
    return "low and high do not enclose open and close"


# --- where the rows are ------------------------------------------------------------------------------------------------


def _located(answer: BarsAnswer, grid: Grid, calendar: TradingCalendar, dropped: Counter[str]) -> _Rows:
    """The rows on the grid; what is off it is counted in ``dropped``."""
    interval = answer.request.interval
    located = calendar.locate(answer.columns.opened_at, interval)
    places = grid.places_of(located.session, located.slot)
    nulls = calendar.locate(answer.null_opened_at, interval)
    null_places = grid.places_of(nulls.session, nulls.slot)
    dropped["null"] += len(answer.null_opened_at)
    flags = np.zeros(len(places), np.int16) if answer.flags is None else answer.flags.astype(np.int16)
    on_grid = places >= 0
    if on_grid.all():
        stray = answer.columns.opened_at[:0]
        nowhere = located.session[:0]
        return _Rows(
            answer.columns, places, located.session, flags, null_places[null_places >= 0], _with_left_out(stray, answer), nowhere
        )
    # A window may span sessions that were not asked for; their bars are good, and nobody wanted them.
    dropped["not_asked"] += int((~on_grid & (located.slot >= 0)).sum())
    dropped["outside_session"] += int((located.slot < 0).sum())
    return _Rows(
        answer.columns.take(on_grid),
        places[on_grid],
        located.session[on_grid],
        flags[on_grid],
        null_places[null_places >= 0],
        _with_left_out(answer.columns.opened_at[located.slot < 0], answer),
        located.session[~on_grid & (located.slot >= 0) & answer.columns.obeys_ohlc_laws() & (answer.columns.low > 0)],
    )


def _with_left_out(stray: Int64s, answer: BarsAnswer) -> Int64s:
    if answer.outside_opened_at is None:
        return stray
    return np.unique(np.concatenate((stray, answer.outside_opened_at)))


def _misplaced(rows: _Rows, grid: Grid, asked: Bools) -> str | None:
    """Why the stamps cannot be opens: a session that begins and ends late (or early) by the same time, or bars off the grid."""
    if not len(rows.stray):
        return None
    stamps = np.unique(np.concatenate((grid.starts_at[rows.places], rows.stray)))
    thin = Counter[int]()
    for place in range(len(grid)):
        bars = slice(int(grid.offsets[place]), int(grid.offsets[place + 1]))
        if not asked[bars].all() or bars.stop - bars.start < _PATTERN:
            continue
        first, last = int(grid.starts_at[bars][0]), int(grid.starts_at[bars][-1])
        # Half a day on either side belongs to no other session.
        mine = stamps[(stamps > first - _DAY // 4) & (stamps < last + _DAY // 4)]
        if len(mine) < 2:
            continue
        # A live tick at the end, at whatever second the last trade was, is no bar.
        mine = mine[:-1] if (mine[-1] - mine[-2]) % 60 else mine
        shift = int(mine[0]) - first
        is_shifted = bool(shift) and int(mine[-1]) - last == shift
        if len(mine) < _DENSE * (bars.stop - bars.start):
            thin[shift if is_shifted else 0] += 1
        elif is_shifted:
            return f"every bar of {grid.sessions[place]} is stamped {_late(shift)}"
    if len(thin) == 1 and thin.most_common(1)[0][1] > 1 and not thin[0]:
        # One thin session may begin and end late by chance; not each of several by the same time.
        return f"the first and last bars of {thin.total()} sessions are stamped {_late(next(iter(thin)))}"
    inside = np.searchsorted(grid.opens_at, rows.stray, "right") - 1
    off = int(((inside >= 0) & (rows.stray < grid.closes_at[inside])).sum())
    if off >= _PATTERN and off > len(rows.places):
        return f"{off} bars open where no bar of the interval does"
    return None


def _told_of_other_bars(rows: _Rows, grid: Grid, held: Reference | None, interval: Interval) -> str | None:
    """Why the stamps cannot be opens: each close is the one that we hold of the bar before, and not of the same.

    A request for a running session holds a few bars that are stored, and its ends show nothing. Only late stamps are looked for:
    if it is what we hold that is stamped late, a right answer looks early, and must be able to correct it.
    """
    if interval.is_daily or held is None or held.held_at is None or held.held_close is None or not len(held.held_at):
        return None
    stamps = grid.opened_at[rows.places]
    with np.errstate(over="ignore", invalid="ignore"):
        closes = rows.columns.close.astype(np.float32)
        own = _held(held.held_at, held.held_close, stamps)
        before = _held(held.held_at, held.held_close, stamps - interval.seconds)
        # A comparison with NaN, where nothing is held, is false.
        telling = np.abs(own - before) > 0
        same = closes == before
    if telling.sum() >= _TELLING and same[telling].all():
        return f"{int(telling.sum())} bars have the closes that we hold of the bars before them: stamped {_late(interval.seconds)}"
    return None


def _held(held_at: Int64s, held_close: Float64s, stamps: Int64s) -> npt.NDArray[np.float32]:
    """The closes held at ``stamps``, NaN where there is none. Providers that widen float32 are compared as such."""
    places = np.minimum(np.searchsorted(held_at, stamps), len(held_at) - 1)
    return np.where(held_at[places] == stamps, held_close[places], np.nan).astype(np.float32)


def _late(shift: int) -> str:
    return f"{abs(shift)} seconds {'late, as if they were named by their close' if shift > 0 else 'early'}"


def _coarser(rows: _Rows, grid: Grid, asked: Bools) -> str | None:
    """Why the bars must be of a longer interval than asked: every k-th is there, and none between."""
    # Seven hours of a session are enough: that thin trading falls on every whole hour and nowhere else does not happen.
    if len(rows.places) < _HOURS or 4 * len(rows.places) > int(asked.sum()):
        return None
    session = np.searchsorted(grid.offsets, rows.places, "right") - 1
    step = int(np.gcd.reduce(rows.places - grid.offsets[session]))
    if step < 5 or len(rows.places) < _DENSE * int(asked.sum()) / step:
        return None
    return f"every {step}th bar came and none between: bars of a longer interval than asked"


def _lawless(finished: Bools, usable: Bools, reasons: Mapping[int, str]) -> str | None:
    """Why the answer as a whole breaks the laws: not one finished bar of it can be used."""
    if usable.any() or not finished.any():
        return None
    [(reason, count)] = Counter(reasons.values()).most_common(1)
    return f"none of {int(finished.sum())} bars can be used: {reason} ({count})"


# --- the answer as a whole ---------------------------------------------------------------------------------------------


def _as_a_whole(answer: BarsAnswer, grid: Grid, asked: Bools, came: Bools) -> tuple[str, str | None]:
    """The kind of an answer whose bars are good, and why."""
    if not asked.any():
        return OK, None
    newest = "" if answer.newest is None else f"; its newest stamp is {datetime.fromtimestamp(answer.newest, UTC).isoformat()}"
    if not len(answer.columns) and not len(answer.null_opened_at):
        return BarrenError.kind, f"answered, with no bar where some were due{newest}"
    if answer.newest is not None and _is_stale(answer.newest, grid, asked, came, is_daily=answer.request.interval.is_daily):
        return StaleError.kind, f"answered from the past{newest}"
    return OK, None


def _is_stale(newest: int, grid: Grid, asked: Bools, came: Bools, *, is_daily: bool) -> bool:
    """Whether an answer stops at its own newest stamp, though bars are due since, and it was dense until then.

    Sparse bars say nothing: a thin symbol's last trade may be of any time.
    """
    last = int(np.flatnonzero(asked)[-1])
    behind = newest < int(grid.starts_at[last]) if is_daily else newest < int(grid.ends_at[last]) - _STALE_SECONDS
    if not behind or (came & (grid.starts_at > newest)).any():
        return False
    before = asked & (grid.ends_at <= newest)
    return int(before.sum()) >= _PATTERN and bool(came[before].mean() >= _DENSE)


def _condemned(
    answer: BarsAnswer,
    rows: _Rows,
    findings: Findings,
    reasons: dict[int, str],
    usable: Bools,
    dropped: Counter[str],
    *,
    expected: int,
) -> Judged:
    """An answer of which nothing can be used: every finished row of it is refused. A split that it tells is still told."""
    whole = dict.fromkeys(np.flatnonzero(usable).tolist(), str(findings.reason))
    return Judged(
        fetch=_told(answer.fetch, findings.kind, 0, dropped),
        columns=CandleColumns.empty(),
        session_index=np.empty(0, np.int32),
        sessions=(),
        refused=_refused(rows.columns, whole | reasons),
        actions=() if findings.kind == PayloadError.kind else answer.actions,
        float32_prices=answer.float32_prices,
        flags=np.empty(0, np.int16),
        kind=findings.kind,
        reason=findings.reason,
        expected=expected,
        received=0,
    )


def _told(fetch: Fetch, kind: str, rows: int, dropped: Counter[str]) -> Fetch:
    counts = {why: count for why, count in sorted(dropped.items()) if count}
    return replace(fetch, rows=rows, dropped=counts, outcome=fetch.outcome if kind == OK else kind)


def _refused(columns: CandleColumns, reasons: Mapping[int, str]) -> RefusedBars:
    if not reasons:
        return RefusedBars(CandleColumns.empty(), [])
    rows = sorted(reasons)
    return RefusedBars(columns.take(np.array(rows)), [reasons[row] for row in rows])


@dataclass(frozen=True, slots=True, eq=False)
class _Said:
    """What an answer says of each bar of the grid; ``silent``: quiet with bars of the answer on both sides."""

    bars: Bools
    came: Bools
    quiet: Bools
    silent: Bools
    due: Bools
    asked: Bools


def _between_bars(grid: Grid, came: Bools, beyond: Int32s) -> Bools:
    """The slots with a bar of the answer before and one after them, be it of a session that the grid does not have."""
    # A bar of another day stands where that day's would: before the first slot of the next session of the grid.
    edges = np.concatenate((np.flatnonzero(came), grid.offsets[np.searchsorted(grid.days, beyond)] - 0.5))
    if not len(edges):
        return np.zeros(len(came), bool)
    slots = np.arange(len(came))
    inside: Bools = (slots > edges.min()) & (slots < edges.max())
    return inside


def _sessions(
    symbol_id: int,
    grid: Grid,
    said: _Said,
    *,
    provider: str,
    settlements: Sequence[Settlement | None],
    next_over: Sequence[int | None],
) -> list[AnsweredSession]:
    masks = (grid.split(mask) for mask in (said.bars, said.came, said.quiet, said.silent, said.due, said.asked))
    by_session = zip(grid.sessions, settlements, next_over, *masks, strict=True)
    return [
        AnsweredSession(
            symbol_id=symbol_id,
            session=session,
            opens_at=int(grid.opens_at[index]),
            closes_at=int(grid.closes_at[index]),
            bars=bars,
            silent=silent,
            due=due,
            is_whole=bool(asked.all()),
            settlement=settlement,
            quiet=quiet,
            is_barren=not came.any(),
            providers=(provider,),
            starts_at=grid.starts_at[grid.offsets[index] : grid.offsets[index + 1]],
            ends_at=grid.ends_at[grid.offsets[index] : grid.offsets[index + 1]],
            next_over_at=over,
        )
        for index, (session, settlement, over, bars, came, quiet, silent, due, asked) in enumerate(by_session)
    ]


def _mask(grid: Grid, places: Int64s) -> Bools:
    mask = np.zeros(len(grid.opened_at), bool)
    mask[places] = True
    return mask
