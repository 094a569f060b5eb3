"""The universe's tiers from stored daily bars or the universe file's own figures, made a version. The rule is domain/tiers.py."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.sessions import day_number
from market_data_pipeline.domain.tiers import (
    LEAST_SESSIONS,
    SESSIONS,
    TIERS,
    Basis,
    TierPolicy,
    assign_tiers,
    digest_of,
    digest_of_tiers,
    liquidity_of,
    measurable_by_bars,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date, datetime

    from market_data_pipeline.domain.sessions import TradingCalendar
    from market_data_pipeline.domain.tiers import Placing
    from market_data_pipeline.domain.universe import Instrument, Tier
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.storage.universe import UniverseLoadReport

_DAY_SECONDS = 86_400
# The shortest stretch that holds 21 sessions of any exchange, its longest closures included (China's weeks, New York in 2001).
_DAYS_LOOKED_BACK = 60


@dataclass(frozen=True, slots=True)
class Tiering:
    """Every active symbol with the tier that it shall have, and what that rests on. ``digest``: of the policy and the figures."""

    placings: Sequence[Placing]
    policy: TierPolicy
    digest: str
    as_of: date | None
    known_at: datetime | None

    @property
    def tiers(self) -> dict[str, Tier]:
        """The tier of each symbol."""
        return {placing.of.symbol: placing.tier for placing in self.placings}

    @property
    def moves(self) -> list[Placing]:
        """Those whose tier changes, the most liquid first."""
        return [placing for placing in self.placings if placing.moves]

    @property
    def version_tag(self) -> str:
        """What the version is called: the same figures under the same policy have the same tag."""
        return f"{TIERS}{self.as_of or 'file'}@{self.digest[:12]}"

    @property
    def source(self) -> str:
        """Everything needed to do it again, in one line."""
        before = digest_of_tiers({placing.of.symbol: placing.of.tier for placing in self.placings})
        known = f", as known at {self.known_at.isoformat()}" if self.known_at else ""
        rests_on = f"daily bars of {SESSIONS} sessions to {self.as_of}{known}" if self.as_of else "adv_21d and mkt_cap"
        after = digest_of_tiers(self.tiers)
        return f"mdp universe tiers: {rests_on}; {self.policy}; tiers before sha256 {before[:16]}, after {after[:16]}"


def plan_tiers(pipeline: Pipeline, policy: TierPolicy, *, as_of: date | None, known_at: datetime | None = None) -> Tiering:
    """The tiers that the active universe should have; nothing is written.

    ``as_of``: the last session whose daily bars count; None: no bars, only what the universe file says. ``known_at``: the bars as
    known at that instant. An instrument whose listing has ended by then ranks nowhere. InvalidInputError where not one symbol has
    a figure: all of them would fall to T2.
    """
    instruments = pipeline.universe.instruments()
    if not instruments:
        raise InvalidInputError("the universe is empty: expected symbols, loaded with `mdp universe load FILE`")
    day = as_of or pipeline.clock.now().date()
    current = [i for i in instruments if i.active_to is None or i.active_to >= day]
    measured = {} if as_of is None else _measured(pipeline, current, as_of, known_at)
    figures = liquidity_of(current, measured)
    if all(figure.basis is Basis.NONE for figure in figures):
        where = f"daily bars of at least {LEAST_SESSIONS} of the {SESSIONS} sessions to {as_of}, or " if as_of else ""
        expected = f"{where}adv_21d or mkt_cap in the universe file"
        raise InvalidInputError(f"nothing tells how liquid any of {len(instruments):,} symbols is: expected {expected}")
    listed = {figure.symbol for figure in figures}
    figures += liquidity_of([_without_figures(i) for i in instruments if i.symbol not in listed], {})
    return Tiering(assign_tiers(figures, policy), policy, digest_of(figures, policy), as_of, known_at)


def apply_tiers(pipeline: Pipeline, tiering: Tiering, *, by: str) -> UniverseLoadReport:
    """Make it so, as a version of the universe. Repeating it writes nothing."""
    return pipeline.universe.retier(
        tiering.tiers,
        version_tag=tiering.version_tag,
        source=tiering.source,
        source_sha256=tiering.digest,
        loaded_by=by,
    )


def _without_figures(instrument: Instrument) -> Instrument:
    return replace(instrument, adv_21d=None, mkt_cap=None)


def _measured(pipeline: Pipeline, instruments: Sequence[Instrument], as_of: date, known_at: datetime | None) -> dict[int, float]:
    """The mean daily value of each instrument that has enough bars, by id."""
    by_calendar: defaultdict[str, list[int]] = defaultdict(list)
    for instrument in instruments:
        if measurable_by_bars(instrument):
            by_calendar[instrument.calendar].append(instrument.symbol_id)
    found: dict[int, float] = {}
    for name, symbol_ids in by_calendar.items():
        found |= _mean_values(pipeline, symbol_ids, _window(pipeline.calendars(name), as_of), known_at)
    return found


def _window(calendar: TradingCalendar, as_of: date) -> list[date]:
    return calendar.sessions(max(as_of - timedelta(days=_DAYS_LOOKED_BACK), calendar.covered_from), as_of)[-SESSIONS:]


def _mean_values(
    pipeline: Pipeline, symbol_ids: Sequence[int], sessions: Sequence[date], known_at: datetime | None
) -> Mapping[int, float]:
    if not sessions:
        return {}
    days = np.array([day_number(session) for session in sessions], np.int64) * _DAY_SECONDS
    read = pipeline.reader.read(symbol_ids, Interval.D1, int(days[0]), int(days[-1]) + 1, as_of=known_at)
    # In any order of the rows the same sum: the digest of the figures must not depend on it. Read sorted, so it is.
    is_counted = np.isin(read.columns.opened_at, days)
    ids, place, counts = np.unique(read.symbol_id[is_counted], return_inverse=True, return_counts=True)
    totals = np.bincount(place, weights=(read.columns.close * read.columns.volume)[is_counted], minlength=len(ids))
    enough = counts >= min(LEAST_SESSIONS, len(sessions))
    return dict(zip(ids[enough].tolist(), (totals[enough] / counts[enough]).tolist(), strict=True))
