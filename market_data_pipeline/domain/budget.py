"""What keeps N processes within a provider's limits: which limits hold, and how much later than its grant a request may arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from market_data_pipeline.domain.capabilities import parse_limits

if TYPE_CHECKING:
    from collections.abc import Iterable

    from market_data_pipeline.domain.capabilities import RateLimit
    from market_data_pipeline.domain.ports import Provider

# What a new connection, a busy machine or a lost packet may add between the grant and the provider's own counter. Windows are
# counted longer by it: a short one by a seventh at most, for else much of "5 a second" would never be used.
LONGEST_SLACK_SECONDS = 0.25
SLACK_SHARE = 0.15


def slack_seconds(limit: RateLimit) -> float:
    """How much later than its grant a request may reach the provider without breaking ``limit``."""
    return min(LONGEST_SLACK_SECONDS, SLACK_SHARE * limit.seconds)


def limits_of(providers: Iterable[Provider], overrides: str = "") -> dict[str, tuple[RateLimit, ...]]:
    """The limits by provider: as documented, or what ``overrides`` (MDP_LIMITS) says instead; "none" lifts them.

    Of several limits on one window the lowest counts. InvalidInputError for overrides that cannot be read.
    """
    limits = {provider.name: tuple(provider.limits) for provider in providers} | parse_limits(overrides)
    return {name: _lowest_by_window(several) for name, several in limits.items()}


def _lowest_by_window(limits: Iterable[RateLimit]) -> tuple[RateLimit, ...]:
    lowest: dict[float, RateLimit] = {}
    for limit in limits:
        known = lowest.setdefault(limit.seconds, limit)
        lowest[limit.seconds] = min(known, limit, key=lambda one: one.requests)
    return tuple(lowest[seconds] for seconds in sorted(lowest))
