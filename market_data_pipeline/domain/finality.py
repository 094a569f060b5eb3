"""How sure a session's values are: provisional, settled, final, and when it is asked for again to become so. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum


class Finality(IntEnum):
    """How sure the bars of a session are. Stored as the number."""

    PROVISIONAL = 0
    """As they were while the session ran, or soon after: late prints and the closing auction may be lacking."""
    SETTLED = 1
    """Confirmed, or corrected, once late prints and the closing auction are in."""
    FINAL = 2
    """Confirmed, or corrected, after the provider's last regular correction. A later difference is a revision all the same."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """From when on an answer about a session makes it settled, and from when on final; epoch seconds UTC."""

    settled_from: int
    final_from: int

    def reached(self, now: datetime) -> Finality:
        """What an answer about the whole session, given at ``now``, makes of it."""
        at = now.timestamp()
        if at >= self.final_from:
            return Finality.FINAL
        return Finality.SETTLED if at >= self.settled_from else Finality.PROVISIONAL

    def recheck_after(self, finality: Finality) -> datetime | None:
        """When to ask again for a session that is ``finality``; None for one that is final."""
        if finality is Finality.FINAL:
            return None
        return datetime.fromtimestamp(self.settled_from if finality is Finality.PROVISIONAL else self.final_from, UTC)
