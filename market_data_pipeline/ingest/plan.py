"""From what is wanted to the fewest requests that may be sent. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from market_data_pipeline.domain.candles import Bools
    from market_data_pipeline.domain.capabilities import Capability
    from market_data_pipeline.ingest.grid import Grid

# A request sent exactly at the edge of a provider's reach is late when it arrives; a minute is more than a request may take.
REACH_MARGIN_SECONDS = 60
# Bars before the first one wanted, asked for again: silence is only evidence between two bars of the same answer.
NEIGHBOURS = 5
# Where one request takes many symbols, those of a running session begin at every so many bars: symbols whose newest bars came at
# different minutes would otherwise never share a request.
SLOTS_TOGETHER = 30


@dataclass(frozen=True, slots=True)
class Window:
    """One request to send: [start, end) in epoch seconds UTC, and the places in the grid of the sessions it covers."""

    start: int
    end: int
    sessions: slice


def within_reach(grid: Grid, capability: Capability, now: int) -> Bools:
    """The bars that a request sent now may still ask for."""
    return grid.starts_at >= _oldest(capability, now)


def windows(grid: Grid, wanted: Bools, due: Bools, capability: Capability, *, now: int) -> list[Window]:
    """The fewest windows, in order, that cover every wanted bar and that the provider accepts.

    ``wanted`` and ``due`` have one element a bar of ``grid``. A finished session is asked for whole, so that each missing
    minute has neighbours in the same answer; a running one from a few bars before the first wanted, and to the last bar that is
    due. No window begins before the capability's reach, and none is longer than its span unless a single session is.
    """
    together = SLOTS_TOGETHER if capability.symbols_per_request > 1 else 1
    oldest, joined = _oldest(capability, now), list[Window]()
    for place in np.flatnonzero(grid.sessions_with(wanted)).tolist():
        bars = slice(int(grid.offsets[place]), int(grid.offsets[place + 1]))
        slots = np.flatnonzero(wanted[bars])
        finished = bool(due[bars][-1])
        first = 0 if finished else max(int(slots[0]) - NEIGHBOURS, 0) // together * together
        last = -1 if finished else int(np.flatnonzero(due[bars])[-1])
        start, end = max(int(grid.starts_at[bars][first]), oldest), int(grid.ends_at[bars][last])
        before = joined[-1] if joined else None
        if before is not None and (capability.span_seconds is None or end - before.start <= capability.span_seconds):
            joined[-1] = Window(before.start, end, slice(before.sessions.start, place + 1))
        else:
            joined.append(Window(start, end, slice(place, place + 1)))
    return joined


def _oldest(capability: Capability, now: int) -> int:
    return -(1 << 62) if capability.reach_seconds is None else now - capability.reach_seconds + REACH_MARGIN_SECONDS
