"""When sessions settle and become final, by the calendar and by what a provider says of its corrections."""

from __future__ import annotations

from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.finality import Settlement

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from market_data_pipeline.domain.capabilities import Capability
    from market_data_pipeline.domain.sessions import TradingCalendar
    from market_data_pipeline.ingest.grid import Grid

# The longest that exchanges close in a row: Tokyo's golden week of 2019 was ten days, Hong Kong's lunar new year is a week.
_LONGEST_CLOSURE = timedelta(days=12)
_DAY = 86_400


def settlements(grid: Grid, calendar: TradingCalendar, capability: Capability) -> Sequence[Settlement | None]:
    """For each session of ``grid``; all None where ``capability`` is of a provider that never corrects anything.

    Where the calendar ends before the session of the last correction, each session it lacks counts as a day.
    """
    margin, later = capability.settled_after_seconds, capability.final_after_sessions
    if not len(grid) or (margin, later) == (0, 0):
        return [None] * len(grid)
    days, closes = _closes(calendar, grid.sessions[0], grid.sessions[-1], later)
    places = np.searchsorted(days, grid.days) + later
    beyond = np.maximum(places - (len(days) - 1), 0)
    final = closes[np.minimum(places, len(days) - 1)] + beyond * _DAY + margin
    return [
        Settlement(settled_from=settled, final_from=last)
        for settled, last in zip((grid.closes_at + margin).tolist(), final.tolist(), strict=True)
    ]


# A pass judges thousands of answers about the same few sessions.
@lru_cache(maxsize=256)
def _closes(calendar: TradingCalendar, first: date, last: date, later: int) -> tuple[np.ndarray, np.ndarray]:
    bounds = calendar.bounds(first, min(last + later * _LONGEST_CLOSURE, calendar.last_session))
    return bounds.session, bounds.closes_at
