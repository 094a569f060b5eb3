"""Bitmaps of the ledger between Postgres' text and numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from market_data_pipeline.domain.candles import Bools


def bits(mask: Bools) -> str:
    """A bitmap as Postgres reads it: '0110…'."""
    return (mask.view(np.uint8) + ord("0")).tobytes().decode("ascii")


def mask_of(text: str) -> Bools:
    """The inverse of ``bits``."""
    mask: Bools = np.frombuffer(text.encode("ascii"), np.uint8) == ord("1")
    return mask
