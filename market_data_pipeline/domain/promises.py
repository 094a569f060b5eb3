"""How well a promise about the universe is kept, by tier: one rule for whatever is counted. Pure."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from market_data_pipeline.domain.universe import Tier

if TYPE_CHECKING:
    from collections.abc import Mapping


class Grade(IntEnum):
    """The worse, the greater."""

    KEPT = 0
    WARNING = 1
    """Somebody should look: a T0 symbol within what its target allows, or a lower tier beyond it."""
    BROKEN = 2
    """T0 beyond its target."""


class Share(NamedTuple):
    """So many of so many."""

    bad: int
    of: int

    @property
    def rate(self) -> float:
        """0 where there is nothing."""
        return self.bad / self.of if self.of else 0.0


def grade(shares: Mapping[Tier, Share], targets: Mapping[Tier, float]) -> Grade:
    """Of T0 every single one counts; the lower tiers may lack what their target allows, since some of them always do."""
    grades = [Grade.KEPT]
    for tier, share in shares.items():
        is_beyond = share.rate > targets[tier]
        if tier is Tier.T0:
            grades.append(Grade.BROKEN if is_beyond else Grade.WARNING if share.bad else Grade.KEPT)
        else:
            grades.append(Grade.WARNING if is_beyond else Grade.KEPT)
    return max(grades)
