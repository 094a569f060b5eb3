"""How sure a session's values are: provisional, settled, final, and when it is asked for again to become so. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from market_data_pipeline.domain.candles import Bools

# An answer with less than this share of the bars that we hold confirms nothing: it comes from a provider in trouble.
CONFIRMING_SHARE = 0.9
# Asking again for the sake of finality ends so long after it was first due: the session stays as sure as it is.
RECHECKED_FOR = timedelta(days=7)


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

    def recheck_at(self, finality: Finality, *, now: datetime, shortest: timedelta) -> datetime | None:
        """When to ask again after an answer at ``now`` that left the session ``finality``; None: never.

        As planned while that is to come. An answer after it that confirmed nothing is followed by one as much later as it was late,
        ``shortest`` at least, until ``RECHECKED_FOR`` has passed: with 15 minutes ten requests at most, whatever goes wrong.
        """
        planned = self.recheck_after(finality)
        if planned is None or planned > now:
            return planned
        late = now - planned
        return None if late >= RECHECKED_FOR else now + max(late, shortest)


def confirms(bars: Bools, present: Bools) -> bool:
    """Whether an answer with ``bars`` speaks for a session of which we hold ``present``: most of what we hold is in it."""
    held = int(present.sum())
    return int((bars & present).sum()) >= CONFIRMING_SHARE * held
