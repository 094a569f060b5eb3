"""What an operator says about alerts: channels, who hears what, thresholds, rules over prices. Values; ingest reads the file."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from market_data_pipeline.domain.alerts import Severity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import SecretStr


@dataclass(frozen=True, slots=True)
class Channel:
    """Where messages go: an Apprise URL, which usually holds a secret and is never printed."""

    name: str
    url: SecretStr


@dataclass(frozen=True, slots=True)
class Route:
    """Who hears of alerts that match: the names of channels. The first route that matches decides.

    ``rules``: shell patterns of rule names, any of them; ``severities``: any of them; empty: all. ``labels``: each as a shell
    pattern. ``escalate_to``: who hears of it when nobody has acknowledged it for the rule's ``escalate_seconds``.
    """

    channels: tuple[str, ...]
    rules: tuple[str, ...] = ()
    severities: tuple[Severity, ...] = ()
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    escalate_to: tuple[str, ...] = ()


class PriceRuleKind(StrEnum):
    """What a rule over prices looks for."""

    THRESHOLD = "threshold"
    """A price above or below a value."""
    MOVE = "move"
    """A price that moved by a share within a window."""
    CROSS = "cross"
    """A price that crossed its own average."""


class PriceSource(StrEnum):
    """What is watched: the newest quote, or the closes of candles."""

    QUOTE = "quote"
    CANDLE = "candle"


@dataclass(frozen=True, slots=True)
class PriceRule:
    """One rule over prices, for each of its symbols. ``name`` is the alert's name.

    THRESHOLD: ``above`` or ``below``, or both, in the currency of the price. MOVE: ``by``, a share such as 0.03, up, down or either
    (``direction``), within ``window_seconds``. CROSS: up, down or either, of the mean of the closes of ``window_seconds``.
    ``hysteresis``: the share of the threshold (of the price, for CROSS) by which the price must come back before the alert is over.
    ``interval``: of candles. ``symbols`` or ``tier``.
    """

    name: str
    kind: PriceRuleKind
    source: PriceSource
    symbols: tuple[str, ...] = ()
    tier: str | None = None
    interval: str = "1m"
    above: float | None = None
    below: float | None = None
    by: float | None = None
    direction: str = "either"
    window_seconds: int = 0
    hysteresis: float = 0.001
    severity: Severity = Severity.WARNING


@dataclass(frozen=True, slots=True)
class AlertsConfig:
    """All of it. ``thresholds``: by rule name, the options of that rule that are not the default.

    Options of every rule: ``enabled``, ``severity``, ``for``, ``clear``, ``escalate`` (seconds), and the numbers that the rule
    documents.
    """

    channels: Mapping[str, Channel] = field(default_factory=lambda: MappingProxyType({}))
    routes: tuple[Route, ...] = ()
    thresholds: Mapping[str, Mapping[str, object]] = field(default_factory=lambda: MappingProxyType({}))
    price_rules: tuple[PriceRule, ...] = ()


NO_CONFIG = AlertsConfig()
