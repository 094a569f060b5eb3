"""What an operator says about alerts: channels, who hears what, thresholds, rules over prices. Values; ingest reads the file."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from market_data_pipeline.domain.alerts import Severity
from market_data_pipeline.domain.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import SecretStr

    from market_data_pipeline.domain.alerts import Rule


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


class PriceField(StrEnum):
    """Which price of a quote is looked at."""

    LAST_OR_MID = "last_or_mid"
    """The last trade; the middle of bid and ask for a symbol of whose quotes none has one."""
    LAST = "last"
    BID = "bid"
    ASK = "ask"
    MID = "mid"
    """The middle of bid and ask, where there are both."""


@dataclass(frozen=True, slots=True)
class PriceRule:
    """One rule over prices, for each of its symbols. ``name`` is the alert's name.

    THRESHOLD: ``above`` or ``below``, or both, in the currency of the price. MOVE: ``by``, a share such as 0.03, up, down or either
    (``direction``), within ``window_seconds``. CROSS: up, down or either, of the mean of the closes of ``window_seconds``.
    ``hysteresis``: the share of the threshold (of the price, for CROSS) by which the price must come back before the alert is over.
    ``interval``: of candles. ``field``: of quotes. ``symbols`` or ``tier``. ``max_age_seconds``: only prices that are not older
    count as live and can begin or end an alert; None: 15 minutes, or one bar where bars are longer. ``escalate_seconds`` as of
    every rule.
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
    field: PriceField = PriceField.LAST_OR_MID
    max_age_seconds: int | None = None
    escalate_seconds: float | None = None


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


_OPTIONS = ("enabled", "severity", "for", "clear", "escalate")


def configured(rules: Mapping[str, Rule], config: AlertsConfig) -> dict[str, Rule]:
    """``rules`` as the operator wants them, without those that are not enabled.

    InvalidInputError names a rule or an option that nothing has, and a value that cannot be meant.
    """
    for name in config.thresholds:
        if name not in rules:
            raise InvalidInputError(f"thresholds: no rule is called {name!r}: expected one of {', '.join(sorted(rules))}")
    wanted = {name: _configured(rule, config.thresholds.get(name, {})) for name, rule in rules.items()}
    return {name: rule for name, rule in wanted.items() if rule is not None}


def _configured(rule: Rule, options: Mapping[str, object]) -> Rule | None:
    for option, value in options.items():
        where = f"thresholds: {rule.name}: {option}"
        if option == "enabled":
            if not isinstance(value, bool):
                raise InvalidInputError(f"{where}: {value!r} is neither true nor false")
        elif option == "severity":
            rule = replace(rule, severity=_severity(where, value))
        elif option == "escalate" and (value is None or value is False):
            rule = replace(rule, escalate_seconds=None)
        elif option == "for":
            rule = replace(rule, for_seconds=_number(where, value, least=0.0))
        elif option == "clear":
            rule = replace(rule, clear_seconds=_number(where, value, least=0.0))
        elif option == "escalate":
            rule = replace(rule, escalate_seconds=_number(where, value, least=0.0))
        elif option in rule.numbers:
            rule = replace(rule, numbers=MappingProxyType({**rule.numbers, option: _number(where, value)}))
        else:
            raise InvalidInputError(f"{where}: no such option: expected one of {', '.join((*_OPTIONS, *rule.numbers))}")
    return None if options.get("enabled") is False else rule


def _severity(where: str, value: object) -> Severity:
    try:
        return Severity(str(value))
    except ValueError:
        raise InvalidInputError(f"{where}: {value!r} is no severity: expected {', '.join(Severity)}") from None


def _number(where: str, value: object, *, least: float = -math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
        raise InvalidInputError(
            f"{where}: {value!r} is no number that can be meant{': expected seconds, 0 or more' if least == 0 else ''}"
        )
    return float(value)
