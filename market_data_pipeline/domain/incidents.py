"""When empty answers are the provider's trouble and not the market's: the rule over all symbols of a pass. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Emptiness(StrEnum):
    """What the share of empty answers says."""

    CALM = "calm"
    """As few as thin symbols give on any day: silence, and nothing to say about it."""
    UNCLEAR = "unclear"
    """Too many for that, or too few were asked, to call it anything."""
    INCIDENT = "incident"
    """The provider has lost its data: what it does not say is no evidence about anything."""


@dataclass(frozen=True, slots=True)
class EmptinessPolicy:
    """``least_symbols``: fewer asked, and nothing is said. ``incident_share`` and ``calm_share``: of them, empty-handed.

    On a full day of the whole US list 7 % of the symbols are too thin to answer; in an outage of Yahoo it was 73 %.
    """

    least_symbols: int = 20
    incident_share: float = 0.5
    calm_share: float = 0.2

    def judge(self, *, asked: int, barren: int) -> Emptiness:
        """What ``barren`` of ``asked`` symbols without a single bar amount to."""
        if asked < self.least_symbols:
            return Emptiness.UNCLEAR
        if barren >= self.incident_share * asked:
            return Emptiness.INCIDENT
        return Emptiness.CALM if barren <= self.calm_share * asked else Emptiness.UNCLEAR
