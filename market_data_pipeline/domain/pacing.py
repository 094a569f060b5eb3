"""When something that is done again and again is next due: a grid of beats that no round can push aside. Pure; takes the clock."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Pace:
    """Beats ``every`` so many seconds, the next at ``next_at`` of a monotonic clock.

    Beats lie on a grid: a round that took long makes no later beat late, so nothing drifts.
    """

    every: float
    next_at: float

    def after(self, now: float) -> tuple[Pace, int]:
        """The pace once the beat at ``next_at`` has been worked off at ``now``, and how many beats were passed over meanwhile.

        A beat that falls on ``now`` is the next one.
        """
        beats = max(1, math.ceil((now - self.next_at) / self.every))
        return replace(self, next_at=self.next_at + beats * self.every), beats - 1

    def in_phase(self, *, monotonic: float, clock: float, phase: float) -> Pace:
        """The same pace with its next beat moved, by half an interval at most, to where ``clock`` shows a multiple plus ``phase``.

        Two readings of one moment are handed in. A clock that was set, or a machine that slept, is followed within one beat.
        """
        error = (clock + (self.next_at - monotonic) - phase) % self.every
        return replace(self, next_at=self.next_at - (error if 2 * error < self.every else error - self.every))
