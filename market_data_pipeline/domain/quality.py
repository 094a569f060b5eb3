"""What can be wrong with bars that look right: repair flags, and what an answer is held against. Values and arithmetic; no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from market_data_pipeline.domain.candles import Float64s, Int64s
    from market_data_pipeline.domain.ports import CorporateAction


class BarFlag(IntFlag):
    """What was done to a bar, or is odd about it, before it was stored: the bits of the ``flags`` columns; 0 for none."""

    DUPLICATE_RESOLVED = 1
    """Several rows had this stamp and different values: the first received was kept."""
    STRING_NUMBERS = 2
    """Some of its values came as text and were read as numbers."""
    LIVE_ROW_MERGED = 4
    """A live row of the same session came beside it and was left out."""
    UNEXPLAINED_JUMP = 8
    """Far from the bar before it, and nothing explains why: kept as it came, and the first to get a second opinion."""


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """What we hold already, for an answer to be held against.

    ``close``: the stored close nearest to the window, before it where there is one, else after it; None where nothing is stored.
    ``session``: the session it belongs to. ``splits``: those known for the symbol, whoever told them. ``held_at`` and
    ``held_close``: opens and closes stored inside the window itself (a refetch), sorted; None where none were looked up.
    """

    close: float | None = None
    session: date | None = None
    splits: Sequence[CorporateAction] = ()
    held_at: Int64s | None = None
    held_close: Float64s | None = None
