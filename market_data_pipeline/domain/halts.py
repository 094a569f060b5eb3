"""A suspension of trading as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class Halt:
    """Trading was suspended in [starts_at, ends_at), aware instants; ``ends_at`` None: it still is.

    ``symbol_id`` None: of everything that trades by ``calendar`` (a market-wide circuit breaker).
    """

    symbol_id: int | None
    calendar: str
    starts_at: datetime
    ends_at: datetime | None
    reason: str = ""
