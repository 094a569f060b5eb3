"""Which requests a fault rule is about, how often it strikes, and its seeded chance. What it does is said elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from market_data_pipeline.domain.candles import Bools, Int64s
    from market_data_pipeline.simulator.vendor import Scene, Vendor


@dataclass(frozen=True, slots=True)
class Asked:
    """What rules look at: one request, as parsed as far as it could be. ``start`` and ``end``: epoch seconds of its window.

    ``symbol`` is the one asked for, several with commas between them; ``symbols`` are the same apart.
    """

    path: str
    query: str
    symbol: str | None
    interval: str | None
    start: int | None
    end: int | None
    accepts_gzip: bool
    now_us: int
    provider: str = "yahoo"
    capability: str = ""
    account: str = ""

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols asked for, apart."""
        return tuple((self.symbol or "").split(","))


@dataclass(frozen=True, slots=True)
class Match:
    """Which requests a rule is about. Everything given must hold; counts are of the requests that fit everything else.

    ``provider``, ``capability``, ``path``, ``symbol`` and ``interval`` take shell wildcards. A request for several symbols fits if
    one of them does, and only those are touched. ``window``: opened_at in [from, to), epoch seconds: only requests that overlap it,
    and only its bars are touched. From ``after_us`` on and before ``until_us``, in virtual time.
    ``nth``: only the nth; ``every``: each nth; ``first``: the first n; ``skip``: not the first n. They count ``per`` rule, symbol,
    or request (the same URL).
    """

    provider: str = "*"
    capability: str = "*"
    path: str = "*"
    symbol: str = "*"
    interval: str = "*"
    window: tuple[int, int] | None = None
    until_us: int | None = None
    after_us: int | None = None
    nth: int | None = None
    every: int | None = None
    first: int | None = None
    skip: int | None = None
    per: str = "rule"

    def fits(self, asked: Asked) -> bool:
        """Whether the request is one of those meant, counts aside."""
        if not (fnmatchcase(asked.provider, self.provider) and fnmatchcase(asked.capability, self.capability)):
            return False
        if not (fnmatchcase(asked.path, self.path) and fnmatchcase(asked.interval or "", self.interval)):
            return False
        if not any(self.names(symbol) for symbol in asked.symbols):
            return False
        if self.window is not None:
            overlaps = (
                asked.start is not None and asked.end is not None and asked.start < self.window[1] and asked.end > self.window[0]
            )
            if not overlaps:
                return False
        return (self.until_us is None or asked.now_us < self.until_us) and (self.after_us is None or asked.now_us >= self.after_us)

    def counts(self, n: int) -> bool:
        """Whether the ``n``-th fitting request (1, 2, …) is hit."""
        return (
            (self.nth is None or n == self.nth)
            and (self.every is None or n % self.every == 0)
            and (self.first is None or n <= self.first)
            and (self.skip is None or n > self.skip)
        )

    def names(self, symbol: str) -> bool:
        """Whether the rule is about this symbol."""
        return fnmatchcase(symbol, self.symbol)

    def touches(self, opened_at: Int64s) -> Bools:
        """True for the bars that the rule may bend."""
        if self.window is None:
            return np.ones(len(opened_at), bool)
        return (opened_at >= self.window[0]) & (opened_at < self.window[1])


@dataclass(frozen=True, slots=True)
class Rule:
    """One fault: which requests, how likely, which action with which settings."""

    match: Match
    action: str
    settings: Mapping[str, Any]
    probability: float
    number: int
    source: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Strike:
    """One rule that strikes one request: everything that an action may look at."""

    rule: Rule
    dice: Dice
    asked: Asked
    scene: Scene
    vendor: Vendor

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the rule tells its action."""
        return self.rule.settings


@dataclass(frozen=True, slots=True)
class Dice:
    """Seeded chance: the same seed, rule and name always falls the same way, whatever came in between."""

    seed: int
    rule: int

    def share(self, *names: object) -> float:
        """A number in [0, 1) for ``names``."""
        digest = blake2b(repr((self.seed, self.rule, names)).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64

    def chosen(self, stamps: Int64s, fraction: float, *names: object) -> Bools:
        """A ``fraction`` of ``stamps``, each judged by itself: the same minute is chosen in whatever window it is asked for."""
        salt = int.from_bytes(blake2b(repr((self.seed, self.rule, names)).encode(), digest_size=8).digest(), "big")
        # splitmix64: a few multiplications spread neighbouring stamps over the whole range.
        with np.errstate(over="ignore"):
            z = stamps.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z ^= z >> np.uint64(31)
        return (z >> np.uint64(11)).astype(np.float64) / 2**53 < fraction
