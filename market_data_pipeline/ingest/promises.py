"""What the checks of a candle asset promise, asked of the database: is the newest finished session complete, are prices sane.

Only the newest sessions are read. How late the newest bar is, is the census (``ingest.freshness``).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.coverage import Verdict
from market_data_pipeline.domain.ports import CorporateAction
from market_data_pipeline.domain.promises import Share
from market_data_pipeline.domain.quality import LOOKED_AT, LOOKED_AT_WITH_A_SPLIT, BarFlag, step_between
from market_data_pipeline.domain.sessions import date_of, day_number
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.ingest.overview import verdict_cells
from market_data_pipeline.storage.steps import Looked, PriceSteps

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from market_data_pipeline.domain.candles import Interval
    from market_data_pipeline.domain.quality import Step
    from market_data_pipeline.domain.sessions import TradingCalendar
    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.storage.steps import FarPair, RefusedCount

# The longest holidays of any exchange: Shanghai's and Tokyo's golden weeks with the weekends around them.
_DAYS_BACK = 15
# Of daily bars so many sessions are looked at: a week, so that a weekend's correction is seen on Monday.
_DAILY_SESSIONS = 5
# A split may be mixed up so long before and after its day.
_NEAR_A_SPLIT = timedelta(days=45)
MOST_STEPS = 1_000


@dataclass(frozen=True, slots=True)
class IncompleteSymbol:
    """What one symbol lacks of the session. ``given_up``: of that, what nobody asks for any more; ``unasked``: nobody ever did."""

    symbol: str
    tier: Tier
    calendar: str
    session: date
    missing: int
    given_up: int
    unasked: int


@dataclass(frozen=True, slots=True)
class SessionCompleteness:
    """The newest session of each calendar whose time is up. ``due``: bars by tier that could be had, and of them the missing.

    ``is_known``: the ledger has anything of those sessions; where it has not, nobody asks for this interval yet, or nothing runs.
    ``incomplete``: the worst first, T0 before T1; at most as many as were asked for, of ``symbols_incomplete``.
    """

    at: datetime
    sessions: Mapping[str, date] = field(default_factory=dict)
    shares: Mapping[Tier, Share] = field(default_factory=dict)
    is_known: bool = True
    symbols_incomplete: int = 0
    incomplete: Sequence[IncompleteSymbol] = ()


@dataclass(frozen=True, slots=True)
class OddPrice:
    """A stored close that is far from the one before it. ``is_agreed``: a second provider said the same of the session."""

    symbol: str
    tier: Tier
    opened_at: datetime
    session: date
    close: float
    close_before: float
    step: Step
    is_agreed: bool = False


@dataclass(frozen=True, slots=True)
class PriceSanity:
    """What is odd among the newest stored bars. ``sessions``: by calendar, the newest of those that were looked at."""

    at: datetime
    sessions: Mapping[str, date] = field(default_factory=dict)
    symbols: int = 0
    odd: Sequence[OddPrice] = ()
    refused: Sequence[RefusedCount] = ()
    flags: Mapping[str, int] = field(default_factory=dict)

    @property
    def wrong(self) -> list[OddPrice]:
        """Those that no market explains."""
        return [one for one in self.odd if one.step.is_wrong]

    @property
    def doubtful(self) -> list[OddPrice]:
        """Those that may be real and that no second provider has confirmed."""
        return [one for one in self.odd if not one.step.is_wrong and not one.is_agreed]


def session_completeness(pipeline: Pipeline, interval: Interval, *, limit: int = 100) -> SessionCompleteness:
    """What the newest session lacks of which MDP_EOD_WITHIN_SECONDS have passed since its close; ledger rows only."""
    now = pipeline.clock.now()
    if pipeline.capability(interval) is None:
        # Nobody is configured who serves it: nothing of it is expected, as in the census.
        return SessionCompleteness(now)
    by_calendar = _by_calendar(pipeline.universe.instruments())
    until = now - timedelta(seconds=max(pipeline.settings.eod_within_seconds, pipeline.settle_seconds(interval)))
    sessions: dict[str, date] = {}
    due, bad = Counter[Tier](), Counter[Tier]()
    incomplete: list[IncompleteSymbol] = []
    is_known = False
    for name, instruments in sorted(by_calendar.items()):
        session = _newest(pipeline.calendars(name), until, closed=True)
        if session is None:
            continue
        sessions[name] = session
        cells = verdict_cells(instruments, interval, session, session, pipeline=pipeline)
        is_known = is_known or bool(cells.sessions.any())
        missing = cells.of(Verdict.MISSING)[:, 0]
        wanted = missing + sum(cells.of(v)[:, 0] for v in (Verdict.PRESENT, Verdict.CONFIRMED_EMPTY, Verdict.HALTED))
        for place, instrument in enumerate(instruments):
            due[instrument.tier] += int(wanted[place])
            bad[instrument.tier] += int(missing[place])
        incomplete += [
            IncompleteSymbol(
                symbol=instruments[place].symbol,
                tier=instruments[place].tier,
                calendar=name,
                session=session,
                missing=int(missing[place]),
                given_up=int(cells.given_up[place, 0]),
                unasked=int(cells.unasked[place, 0]),
            )
            for place in np.flatnonzero(missing).tolist()
        ]
    incomplete.sort(key=lambda one: (one.tier, -one.missing, one.symbol))
    return SessionCompleteness(
        at=now,
        sessions=sessions,
        shares={tier: Share(bad[tier], due[tier]) for tier in sorted(due) if due[tier]},
        is_known=is_known,
        symbols_incomplete=len(incomplete),
        incomplete=incomplete[:limit],
    )


def price_sanity(pipeline: Pipeline, interval: Interval, *, limit: int = 100) -> PriceSanity:
    """Neighbouring closes of the newest session that are off by a factor; of 1d, of the newest five.

    The first bar of a session is held against the daily close before it. It reads the bars of one session: 3 million minutes of
    8,000 symbols take seconds.
    """
    now = pipeline.clock.now()
    store = PriceSteps(pipeline.engine)
    instruments = {one.symbol_id: one for one in pipeline.universe.instruments()}
    since = now.date() - timedelta(days=_DAYS_BACK) - _NEAR_A_SPLIT
    splits: dict[int, list[CorporateAction]] = {}
    for symbol_id, session, value in store.splits(list(instruments), since=since):
        splits.setdefault(symbol_id, []).append(CorporateAction("split", session, value))
    looked = _looked(pipeline, list(instruments.values()), interval, now, splits)
    if not looked:
        return PriceSanity(now)
    far = store.far(list(looked.values()), interval, plain=LOOKED_AT, limit=MOST_STEPS)
    found = [(pair, step) for pair in far if (step := _step(pair, looked[pair.symbol_id], interval, splits)) is not None]
    doubted = sorted({pair.symbol_id for pair, step in found if not step.is_wrong})
    verdicts = store.opinions(doubted, interval, first=min(one.first for one in looked.values()))
    odd = [
        OddPrice(
            symbol=instruments[pair.symbol_id].symbol,
            tier=instruments[pair.symbol_id].tier,
            opened_at=pair.opened_at,
            session=(session := _session_of(pair, looked[pair.symbol_id], interval)),
            close=pair.close,
            close_before=pair.close_before,
            step=step,
            is_agreed=verdicts.get((pair.symbol_id, session)) in {"agree", "feed_difference"},
        )
        for pair, step in found
    ]
    odd.sort(key=lambda one: (not one.step.is_wrong, one.is_agreed, one.tier, one.symbol, one.opened_at))
    flags = Counter[str]()
    for bits, count in store.flags(list(looked.values()), interval).items():
        flags.update({str(flag.name).lower(): count for flag in BarFlag if bits & flag})
    return PriceSanity(
        at=now,
        sessions={instruments[symbol_id].calendar: one.session for symbol_id, one in looked.items()},
        symbols=len(looked),
        odd=odd[:limit],
        refused=store.refused(list(looked.values()), interval),
        flags=flags,
    )


def _looked(
    pipeline: Pipeline,
    instruments: Sequence[Instrument],
    interval: Interval,
    now: datetime,
    splits: Mapping[int, Sequence[CorporateAction]],
) -> dict[int, Looked]:
    looked: dict[int, Looked] = {}
    for name, some in _by_calendar(instruments).items():
        calendar = pipeline.calendars(name)
        session = _newest(calendar, now, closed=False)
        if session is None:
            continue
        bounds = calendar.bounds(session, session)
        starts, ends = (datetime.fromtimestamp(int(at[0]), UTC) for at in (bounds.opens_at, bounds.closes_at))
        recent = calendar.sessions(max(session - timedelta(days=_DAYS_BACK), calendar.first_session), session)
        first = recent[-_DAILY_SESSIONS - 1 :][0] if interval.is_daily else session
        for one in some:
            factor = LOOKED_AT_WITH_A_SPLIT if one.symbol_id in splits else LOOKED_AT
            looked[one.symbol_id] = Looked(one.symbol_id, first, session, starts, ends, factor)
    return looked


def _step(pair: FarPair, looked: Looked, interval: Interval, splits: Mapping[int, Sequence[CorporateAction]]) -> Step | None:
    day = day_number(_session_of(pair, looked, interval))
    before = day if pair.before_session is None or pair.before_at is not None else day_number(pair.before_session)
    is_next = pair.before_at is not None and (pair.opened_at - pair.before_at).total_seconds() == interval.seconds
    return step_between(
        (pair.close_before, before), (pair.close, day), splits=splits.get(pair.symbol_id, ()), is_one_session=is_next
    )


def _session_of(pair: FarPair, looked: Looked, interval: Interval) -> date:
    return pair.opened_at.astimezone(UTC).date() if interval.is_daily else looked.session


def _by_calendar(instruments: Sequence[Instrument]) -> dict[str, list[Instrument]]:
    found: dict[str, list[Instrument]] = {}
    for instrument in instruments:
        if not instrument.is_unknown:
            found.setdefault(instrument.calendar, []).append(instrument)
    return found


def _newest(calendar: TradingCalendar, at: datetime, *, closed: bool) -> date | None:
    """The newest session that had closed, or else opened, by ``at``; None where there is none within a fortnight."""
    first = max(at.date() - timedelta(days=_DAYS_BACK), calendar.first_session)
    last = min(at.date() + timedelta(days=1), calendar.last_session)
    if last < first:
        return None
    bounds = calendar.bounds(first, last)
    begun = bounds.session[(bounds.closes_at if closed else bounds.opens_at) <= at.timestamp()]
    return date_of(int(begun[-1])) if len(begun) else None
