"""Which limits hold, and how much later than its grant a request may arrive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.budget import limits_of, slack_seconds
from market_data_pipeline.domain.capabilities import RateLimit
from market_data_pipeline.domain.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from market_data_pipeline.domain.capabilities import Capability


@dataclass
class Vendor:
    """A provider that documents limits."""

    name: str
    limits: Sequence[RateLimit]
    account: str = ""
    lacking: str | None = None
    probe_symbol: str = "AAPL"
    capabilities: Sequence[Capability] = ()


DOCUMENTED = [Vendor("finnhub", [RateLimit(60, 60.0), RateLimit(30, 1.0)]), Vendor("files", [])]


def test_the_documented_limits_hold_the_shortest_window_first() -> None:
    assert limits_of(DOCUMENTED) == {"finnhub": (RateLimit(30, 1.0), RateLimit(60, 60.0)), "files": ()}


def test_what_the_user_says_holds_instead_and_none_lifts_them() -> None:
    assert limits_of(DOCUMENTED, "finnhub=300/m")["finnhub"] == (RateLimit(300, 60.0),)
    assert limits_of(DOCUMENTED, "finnhub=none;files=2/s") == {"finnhub": (), "files": (RateLimit(2, 1.0),)}


def test_of_two_limits_on_one_window_the_lower_counts() -> None:
    assert limits_of(DOCUMENTED, "finnhub=9/m,5/m,7/60s")["finnhub"] == (RateLimit(5, 60.0),)


def test_limits_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="finnhub"):
        limits_of(DOCUMENTED, "finnhub=lots")


@given(st.floats(0.1, 1e6))
def test_the_slack_leaves_most_of_every_window_to_be_used(seconds: float) -> None:
    slack = slack_seconds(RateLimit(10, seconds))
    assert 0 < slack <= 0.25
    # With one sub-bucket of 32: what a saturating sender may use of the documented rate.
    assert seconds / (seconds + slack + seconds / 32) > 0.84
