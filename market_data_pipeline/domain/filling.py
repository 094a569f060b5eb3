"""Bars made up at read time, where somebody asks for them: flat at the previous close, without volume. Never stored. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from market_data_pipeline.domain.candles import Bools, Float64s, Int32s
    from market_data_pipeline.domain.sessions import ExpectedOpens


class Fill(StrEnum):
    """What stands in for a bar in which nobody traded."""

    PREVIOUS = "previous"


@dataclass(frozen=True, slots=True, eq=False)
class PreviousClose:
    """Fill confirmed-empty bars with the close before them. ``expected``: the grid of whole sessions, of the symbols' calendar."""

    expected: ExpectedOpens


def carried_closes(close: Float64s, *, empty: Bools, halted: Bools, session: Int32s) -> Float64s:
    """The close that stands in each confirmed-empty slot, NaN where none does.

    All arrays have one element an expected bar, in opening order; ``close`` is NaN where there is no bar. A close is carried over
    empty and halted slots within its session. What is missing may have traded at any price: nothing is carried over it, nor from
    one session into the next.
    """
    places = np.arange(len(close))
    present = ~np.isnan(close)
    begins = np.empty(len(session), bool)
    begins[:1] = True
    begins[1:] = session[1:] != session[:-1]
    newest = np.maximum.accumulate(np.where(present, places, -1))
    broken = np.maximum.accumulate(np.where(~(present | empty | halted), places, -1))
    opened = np.maximum.accumulate(np.where(begins, places, 0))
    stands = empty & ~present & (newest > broken) & (newest >= opened)
    return np.where(stands, close[newest], np.nan) if len(close) else close
