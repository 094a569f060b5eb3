"""Faults on demand: the script of rules that a simulator follows, and how rules are read from YAML or JSON."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import yaml

from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.simulator.clock import microseconds, parse_instant
from market_data_pipeline.simulator.fault_answers import BEND_THE_BARS, BEND_THE_PAGE, REQUIRED
from market_data_pipeline.simulator.fault_replies import BEND_THE_REPLY, PAGES, REPLACE_THE_REPLY
from market_data_pipeline.simulator.market import SECONDS
from market_data_pipeline.simulator.rules import Dice, Match, Rule

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from market_data_pipeline.domain.candles import Int64s
    from market_data_pipeline.simulator.rules import Asked

BEND_THE_REQUEST: Mapping[str, Mapping[str, Any]] = {
    "coarser": {"interval": "60m"},
    "stale": {"seconds": 3600},
}
# What each action may be told, with its default.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    **BEND_THE_REQUEST,
    **{name: settings for name, (_, settings) in BEND_THE_BARS.items()},
    **{name: settings for name, (_, settings) in BEND_THE_PAGE.items()},
    **{name: settings for name, (_, settings) in REPLACE_THE_REPLY.items()},
    **{name: settings for name, (_, settings) in BEND_THE_REPLY.items()},
}


@dataclass(slots=True)
class FaultScript:
    """Rules in order, and how often each has fitted. Counting is its only state."""

    rules: Sequence[Rule]
    seed: int
    _counts: dict[tuple[int, str], int] = field(default_factory=dict)

    def hits(self, asked: Asked) -> list[Rule]:
        """The rules that strike this request, in order. One that replaces the whole reply ends the list.

        Rules behind it are not counted then: what they would have done was never seen.
        """
        struck = []
        for rule in self.rules:
            if not rule.match.fits(asked):
                continue
            key = (
                rule.number,
                {"rule": "", "symbol": asked.symbol or "", "request": f"{asked.path}?{asked.query}"}[rule.match.per],
            )
            n = self._counts[key] = self._counts.get(key, 0) + 1
            if not rule.match.counts(n):
                continue
            if (
                rule.probability < 1
                and self.dice(rule).share(asked.path, asked.query, self._asked_before(rule, asked)) >= rule.probability
            ):
                continue
            struck.append(rule)
            if rule.action in REPLACE_THE_REPLY:
                break
        return struck

    def dice(self, rule: Rule) -> Dice:
        """The chance of one rule."""
        return Dice(self.seed, rule.number)

    def _asked_before(self, rule: Rule, asked: Asked) -> int:
        # Counted per URL and not over all: requests in parallel must not change each other's luck.
        key = (-1 - rule.number, f"{asked.path}?{asked.query}")
        self._counts[key] = self._counts.get(key, 0) + 1
        return self._counts[key]


def read_rules(path: Path) -> tuple[Rule, ...]:
    """The rules in a YAML or JSON file; InvalidInputError names the rule, the value and what was expected."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as broken:
        raise InvalidInputError(f"fault file {str(path)!r} cannot be read: {broken}") from None
    try:
        return parse_rules(yaml.safe_load(text))
    except yaml.YAMLError as broken:
        raise InvalidInputError(f"{path}: not YAML: {broken}") from None
    except InvalidInputError as wrong:
        raise InvalidInputError(f"{path}: {wrong}") from None


def parse_rules(given: object) -> tuple[Rule, ...]:
    """Rules from what YAML or JSON held: a list of mappings. None is no rules."""
    if given is None:
        return ()
    if not isinstance(given, list):
        raise InvalidInputError(f"faults {str(given)[:60]!r}: expected a list of rules {{match: …, action: …}}")
    return tuple(_rule(source, number) for number, source in enumerate(given, 1))


def _rule(source: object, number: int) -> Rule:
    where = f"rule {number}"
    if not isinstance(source, dict) or "action" not in source:
        raise InvalidInputError(f"{where}: {str(source)[:80]!r}: expected a mapping with an action")
    action = source["action"]
    if action not in SETTINGS:
        raise InvalidInputError(f"{where}: unknown action {action!r}: expected one of {', '.join(SETTINGS)}")
    allowed = SETTINGS[action]
    for key in source:
        if key not in {"match", "probability", "action", *allowed}:
            expected = ", ".join(["match", "probability", *allowed])
            raise InvalidInputError(f"{where}: {action} does not take {key!r}: expected some of {expected}")
    settings = {name: _setting(f"{where}: {name}", name, source.get(name, default)) for name, default in allowed.items()}
    settings = {name: value for name, value in settings.items() if not (name == "minutes" and value is None)}
    probability = source.get("probability", 1.0)
    if not isinstance(probability, int | float) or isinstance(probability, bool) or not 0 <= probability <= 1:
        raise InvalidInputError(f"{where}: probability {probability!r}: expected a number from 0 to 1")
    printable = orjson.loads(orjson.dumps(source, default=str))
    return Rule(_match(where, source.get("match")), action, settings, float(probability), number, printable)


_CHOICES: Mapping[str, tuple[object, ...]] = {
    "retry_after_as": ("seconds", "http-date", "nonsense"),
    "page": tuple(PAGES),
    "literal": ("NaN", "Infinity", "-Infinity"),
    "interval": tuple(SECONDS),
    "at": ("before", "headers", "body"),
    "of": ("prices", "volume"),
    "days": ("short", "all"),
    "conflicting": (True, False),
}
_LIMITS: Mapping[str, tuple[float, float]] = {
    "fraction": (0, 1),
    "keep": (0, 1),
    "seconds": (-86400 * 366, 86400 * 366),
    "share": (0, 1),
    "lacks": (0, 1),
    "differs": (0, 1),
    "relative": (0, 1),
    "rows": (1, 100_000),
    "bars": (1, 100_000),
    "megabytes": (1, 4096),
    "median": (1e-6, 3600),
    "p95": (1e-6, 3600),
    "factor": (-1e12, 1e12),
    "retry_after": (0, 1e12),
    "bytes_per_second": (1, 1e12),
}
_WHOLE = frozenset({"rows", "bars", "megabytes"})
_STATUSES = (200, 599)


def _setting(where: str, name: str, value: object) -> Any:  # noqa: ANN401 - as many types as settings
    if value is REQUIRED:
        raise InvalidInputError(f"{where} is missing: the action needs it")
    if value is None and name in {"minutes", "retry_after"}:
        return None
    if name == "minutes":
        return _minutes(where, value)
    if name in _CHOICES:
        return _one_of(where, value, _CHOICES[name])
    if name in _LIMITS:
        number = _number(where, value, _LIMITS[name])
        return int(number) if name in _WHOLE else number
    if name == "code":
        return int(_number(where, value, _STATUSES))
    return str(value)


def _one_of(where: str, value: object, choices: Sequence[object]) -> Any:  # noqa: ANN401 - a choice has the type it has
    if value not in choices:
        raise InvalidInputError(f"{where} {value!r}: expected one of {', '.join(map(str, choices))}")
    return value


def _number(where: str, value: object, limits: tuple[float, float]) -> float:
    low, high = limits
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidInputError(f"{where} {value!r}: expected a number from {low:g} to {high:g}")
    return value


def _minutes(where: str, value: object) -> Int64s:
    if not isinstance(value, list):
        raise InvalidInputError(f"{where} {value!r}: expected a list of instants")
    return np.asarray([_epoch(where, item) for item in value], np.int64)


def _epoch(where: str, value: object) -> int:
    return microseconds(parse_instant(value, name=where)) // 1_000_000


def _match(where: str, given: object) -> Match:
    names = {f.name.removesuffix("_us") for f in fields(Match)}
    if given is None:
        return Match()
    if not isinstance(given, dict) or not set(given) <= names:
        raise InvalidInputError(f"{where}: match {given!r}: expected a mapping with some of {', '.join(sorted(names))}")
    parsed: dict[str, Any] = {}
    for name, value in given.items():
        here = f"{where}: match {name}"
        if name in {"until", "after"}:
            parsed[f"{name}_us"] = microseconds(parse_instant(value, name=here))
        else:
            parsed[name] = _condition(here, name, value)
    return Match(**parsed)


def _condition(where: str, name: str, value: object) -> Any:  # noqa: ANN401 - as many types as conditions
    if name == "window":
        if not isinstance(value, list) or len(value) != 2:
            raise InvalidInputError(f"{where} {value!r}: expected [from, to]")
        return _epoch(where, value[0]), _epoch(where, value[1])
    if name in {"nth", "every", "first", "skip"}:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidInputError(f"{where} {value!r}: expected a whole number from 1")
        return value
    return _one_of(where, value, ("rule", "symbol", "request")) if name == "per" else str(value)
