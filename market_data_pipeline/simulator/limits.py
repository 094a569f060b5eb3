"""Rate limits as a provider enforces them: sliding windows per account on real time, and what was seen in any of them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from market_data_pipeline.domain.capabilities import RateLimit


@dataclass(frozen=True, slots=True)
class LimitState:
    """An account at one request. ``limit``: the one that refused it, else that of the longest window; None where there are none.

    ``remaining``: requests left of it. ``reset_seconds``: until the oldest request counted leaves the window.
    """

    is_refused: bool = False
    limit: RateLimit | None = None
    remaining: int = 0
    reset_seconds: float = 0.0


@dataclass(slots=True)
class _Window:
    """One limit of one account. ``most``: the most arrivals, refused ones included, in any window so far."""

    limit: RateLimit
    granted: deque[float] = field(default_factory=deque)
    arrived: deque[float] = field(default_factory=deque)
    most: int = 0

    def arrive(self, at: float) -> bool:
        """Whether there is room for a request that arrives now."""
        for moments in (self.granted, self.arrived):
            while moments and moments[0] <= at - self.limit.seconds:
                moments.popleft()
        self.arrived.append(at)
        self.most = max(self.most, len(self.arrived))
        return len(self.granted) < self.limit.requests

    def state(self, at: float, *, is_refused: bool) -> LimitState:
        reset = self.granted[0] + self.limit.seconds - at if self.granted else self.limit.seconds
        return LimitState(is_refused, self.limit, max(0, self.limit.requests - len(self.granted)), reset)


@dataclass(slots=True)
class _Account:
    windows: Sequence[_Window]
    requests: int = 0
    refused: int = 0


@dataclass(slots=True)
class LimitBook:
    """The accounts of every vendor. ``overrides`` by vendor stand in place of what it documents, whatever the plan."""

    monotonic: Callable[[], float]
    overrides: Mapping[str, Sequence[RateLimit]] = field(default_factory=dict)
    _accounts: dict[tuple[str, str], _Account] = field(default_factory=dict)

    def limits_of(self, vendor: str, documented: Sequence[RateLimit]) -> Sequence[RateLimit]:
        """What is enforced."""
        return self.overrides.get(vendor, documented)

    def arrive(self, vendor: str, account: str, documented: Sequence[RateLimit]) -> LimitState:
        """Count one request; refused where any window is full. A refused request uses up nothing."""
        key = (vendor, account)
        known = self._accounts.get(key)
        if known is None:
            known = self._accounts[key] = _Account([_Window(limit) for limit in self.limits_of(vendor, documented)])
        known.requests += 1
        if not known.windows:
            return LimitState()
        at = self.monotonic()
        full = [window for window in known.windows if not window.arrive(at)]
        if full:
            known.refused += 1
            return max((window.state(at, is_refused=True) for window in full), key=lambda state: state.reset_seconds)
        for window in known.windows:
            window.granted.append(at)
        return max(known.windows, key=lambda window: window.limit.seconds).state(at, is_refused=False)

    def change(self, overrides: Mapping[str, Sequence[RateLimit]]) -> None:
        """Other limits from now on; what was counted is forgotten."""
        self.overrides = overrides
        self.forget()

    def forget(self) -> None:
        """As if nothing had been asked yet."""
        self._accounts.clear()

    def report(self) -> list[dict[str, Any]]:
        """Every account, as the control plane tells it: what is allowed, the most seen in any window, how many refused."""
        return [
            {
                "provider": vendor,
                "account": account,
                "requests": known.requests,
                "refused": known.refused,
                "limits": [
                    {"limit": str(window.limit), "allowed": window.limit.requests, "most": window.most} for window in known.windows
                ],
            }
            for (vendor, account), known in sorted(self._accounts.items())
        ]
