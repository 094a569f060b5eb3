"""What a reader may expect of one session's bars, in one word: from the counts of their verdicts. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from market_data_pipeline.domain.coverage import Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping


class Condition(StrEnum):
    """How far the bars of a session can be relied on."""

    AVAILABLE = "available"
    """Everything that there can be is there: each bar is present, or known to be empty or halted."""
    DEGRADED = "degraded"
    """Some of it is there, and some is missing or beyond reach."""
    PENDING = "pending"
    """Nothing is missing so far; the rest is not due yet."""
    MISSING = "missing"
    """Nothing is there that should be."""
    NOT_LISTED = "not_listed"
    """Nothing is expected: the symbol was not listed."""


def condition_of(counts: Mapping[Verdict, int]) -> Condition:
    """The condition of a session whose bars have these verdicts."""
    known = counts[Verdict.PRESENT] + counts[Verdict.CONFIRMED_EMPTY] + counts[Verdict.HALTED]
    if counts[Verdict.MISSING] + counts[Verdict.UNREACHABLE]:
        return Condition.DEGRADED if known else Condition.MISSING
    if counts[Verdict.PENDING]:
        return Condition.PENDING
    return Condition.AVAILABLE if known or not counts[Verdict.NOT_LISTED] else Condition.NOT_LISTED
