"""Reads the alerts file (MDP_ALERTS_FILE) and judges all of it: a configuration out, or one error that names every problem.

Nothing of it is a secret by the time it is told: values that may hold one are never repeated.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, model_validator

from market_data_pipeline.domain.alert_config import (
    NO_CONFIG,
    AlertsConfig,
    Channel,
    PriceField,
    PriceRule,
    PriceRuleKind,
    PriceSource,
    Route,
    configured,
)
from market_data_pipeline.domain.alert_rules import RULES
from market_data_pipeline.domain.alerts import Severity
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.errors import ConfigurationError, InvalidInputError
from market_data_pipeline.domain.price_rules import MOST_BARS, duration
from market_data_pipeline.domain.universe import Tier, valid_symbol
from market_data_pipeline.observability.delivery import LOG, check_channel, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from pydantic_core import ErrorDetails

MOST_BYTES = 1 << 20
MOST_PROBLEMS = 20
_LONGEST_OF_QUOTES = 86400
# A file that a person wrote is some levels deep. What is nested deeper was not meant for us.
_DEEPEST = 20
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}", re.ASCII)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)", re.ASCII)
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%", re.ASCII)
_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
# What stands in examples where a secret belongs, ours included.
_SAMPLES = re.compile(
    r"change[-_]?me|x{3,}|\b(?:your|my)[-_]?(?:token|key|password|secret|webhook)|<[^>]*>|/T0+/B0+/", re.IGNORECASE
)
# Of every rule, and the numbers that are seconds: these may be written as durations.
_TIMES = frozenset({"for", "clear", "escalate"})
_URL = "://"
_MISSING_FILE = "MDP_ALERTS_FILE"


# --- what the file may say ---------------------------------------------------------------------------------------------


def _duration(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("is not a duration: expected seconds, or text such as 90s, 5m, 2h, 1d")  # noqa: TRY004 - pydantic collects ValueError
    found = _DURATION.fullmatch(str(value).strip())
    if found is None or float(found[1]) * _UNITS[found[2]] > 100 * 366 * 86400:
        raise ValueError(f"{_shown(value)} is not a duration: expected seconds, or text such as 90s, 5m, 2h, 1d")
    return float(found[1]) * _UNITS[found[2]]


def _whole_seconds(value: object) -> int:
    seconds = _duration(value)
    if seconds != int(seconds):
        raise ValueError(f"{_shown(value)} is not a whole number of seconds")
    return int(seconds)


def _share(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value >= 1:
            raise ValueError(f"{_shown(value)} is {value:.0%}: expected a share such as 0.03, or text such as 3%")
        return float(value)
    found = _SHARE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"{_shown(value)} is not a share: expected a number such as 0.03, or text such as 3%")
    return float(found[1]) / 100


def _one_or_more(value: object) -> object:
    """A list, for which its only element may stand."""
    return (value,) if isinstance(value, str) else value


def _name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"{_shown(value)} is not a name: expected a letter and up to 63 letters, digits, _ - or . after it")
    return value


def _symbol(value: object) -> str:
    if not isinstance(value, str):
        # YAML reads ON, NO and Y as truth values, and 700 as a number: there are symbols called so.
        raise ValueError(f"{_shown(value)} is not text: put symbols that YAML takes for something else in quotes, like 'ON'")  # noqa: TRY004 - as above
    try:
        return valid_symbol(value)
    except InvalidInputError as unfit:
        raise ValueError(str(unfit)) from None


def _shown(value: object) -> str:
    """``value`` for a message. A URL is never shown: it stands in the wrong place, and still is a secret."""
    text = repr(value)
    if _URL in text:
        return "a URL"
    return text if len(text) <= 60 else f"{text[:57]}…"


def _word(text: str) -> str:
    """``text`` for a message, which is not to hold a URL."""
    return "…" if _URL in text else text


Duration = Annotated[float, BeforeValidator(_duration)]
WholeSeconds = Annotated[int, BeforeValidator(_whole_seconds)]
Share = Annotated[float, BeforeValidator(_share), Field(ge=0, lt=1, allow_inf_nan=False)]
Name = Annotated[str, BeforeValidator(_name)]
Symbol = Annotated[str, BeforeValidator(_symbol)]
Price = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Names = Annotated[tuple[str, ...], BeforeValidator(_one_or_more)]


class _Part(BaseModel):
    # hide_input: what stands in the file may be a secret in the wrong place.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class _ChannelPart(_Part):
    url: str


def _as_channel(value: object) -> object:
    """A channel, for which its URL may stand."""
    return {"url": value} if isinstance(value, str) else value


class _RoutePart(_Part):
    channels: Names = ()
    rules: Names = ()
    severities: Annotated[tuple[Severity, ...], BeforeValidator(_one_or_more)] = ()
    labels: dict[str, str] = Field(default_factory=dict)
    escalate_to: Names = ()


class PriceRulePart(_Part):
    """A rule over prices as the file has it: its options are the fields."""

    kind: PriceRuleKind
    source: PriceSource = PriceSource.CANDLE
    symbols: Annotated[tuple[Symbol, ...], BeforeValidator(_one_or_more)] = ()
    tier: Tier | None = None
    interval: Interval | None = None
    above: Price | None = None
    below: Price | None = None
    by: Annotated[float, BeforeValidator(_share), Field(gt=0, allow_inf_nan=False)] | None = None
    direction: Literal["up", "down", "either"] | None = None
    window: WholeSeconds | None = None
    hysteresis: Share = 0.001
    field: PriceField | None = None
    severity: Severity = Severity.WARNING
    max_age: Annotated[int, BeforeValidator(_whole_seconds), Field(gt=0)] | None = None
    escalate: Duration | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        problems = list(self._problems())
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _problems(self) -> Iterator[str]:
        if bool(self.symbols) == (self.tier is not None):
            yield "expected either symbols or tier"
        if len(set(self.symbols)) < len(self.symbols):
            yield "expected each symbol once"
        is_candle = self.source is PriceSource.CANDLE
        if is_candle and self.field is not None:
            yield "field: is of quotes (source: quote); of candles the close is looked at"
        if not is_candle and self.interval is not None:
            yield "interval: is of candles, and source is quote"
        longest = 2 * MOST_BARS * self.bar.seconds if is_candle else _LONGEST_OF_QUOTES
        if self.max_age is not None and self.max_age > longest:
            yield f"max_age: expected at most {duration(longest)}: what is older is no news"
        if self.kind is PriceRuleKind.THRESHOLD:
            yield from self._threshold_problems()
        else:
            yield from self._window_problems()

    def _threshold_problems(self) -> Iterator[str]:
        if self.above is None and self.below is None:
            yield "expected above, below, or both"
        if self.above is not None and self.below is not None and self.below >= self.above:
            yield f"below {self.below:g} is not less than above {self.above:g}: every price would hold"
        for name in ("by", "direction", "window"):
            if getattr(self, name) is not None:
                yield f"{name}: a threshold has none"

    def _window_problems(self) -> Iterator[str]:
        for name in ("above", "below"):
            if getattr(self, name) is not None:
                yield f"{name}: is for kind: threshold"
        if self.kind is PriceRuleKind.MOVE:
            if self.by is None:
                yield "expected by, such as 3%"
            elif self.by >= 1 and self.direction != "up":
                yield "by: no price falls by all of itself; expected less, or direction: up"
        else:
            if self.by is not None:
                yield "by: is for kind: move"
            if self.source is PriceSource.QUOTE:
                yield "source: an average is of the closes of candles"
        if self.window is None:
            yield "expected window, such as 5m"
        elif (wrong := self._wrong_window(self.window)) is not None:
            yield f"window: {wrong}"

    def _wrong_window(self, window: int) -> str | None:
        if self.source is PriceSource.QUOTE:
            return None if 0 < window <= _LONGEST_OF_QUOTES else "expected up to 1d of quotes; of more, candles tell"
        bars, rest = divmod(window, self.bar.seconds)
        if bars > MOST_BARS:
            return f"{bars:,} bars of {self.bar}: expected at most {MOST_BARS}; take a longer interval"
        if self.kind is PriceRuleKind.MOVE:
            return None if bars else f"shorter than a bar of {self.bar}: nothing can move within it"
        return f"expected two bars of {self.bar} or more, and whole ones" if rest or bars < 2 else None

    @property
    def bar(self) -> Interval:
        """The candles that it looks at, where it does."""
        return self.interval or Interval.M1

    def as_rule(self, name: str) -> PriceRule:
        """The rule, called ``name``."""
        return PriceRule(
            name=name,
            kind=self.kind,
            source=self.source,
            symbols=self.symbols,
            tier=None if self.tier is None else str(self.tier),
            interval=str(self.bar),
            above=self.above,
            below=self.below,
            by=self.by,
            direction=self.direction or "either",
            window_seconds=self.window or 0,
            hysteresis=self.hysteresis,
            severity=self.severity,
            field=self.field or PriceField.LAST_OR_MID,
            max_age_seconds=self.max_age,
            escalate_seconds=self.escalate,
        )


class _File(_Part):
    channels: dict[Name, Annotated[_ChannelPart, BeforeValidator(_as_channel)]] = Field(default_factory=dict)
    routes: tuple[_RoutePart, ...] = ()
    thresholds: dict[str, dict[str, Any]] = Field(default_factory=dict)
    price_rules: dict[Name, PriceRulePart] = Field(default_factory=dict)


# --- reading it --------------------------------------------------------------------------------------------------------


def read_alerts_file(path: Path | None, *, environment: Mapping[str, str] = os.environ) -> AlertsConfig:
    """The configuration in the YAML file at ``path``; None: no channel, nothing that is not as shipped.

    ``${NAME}`` in a channel's URL is taken from ``environment``. ConfigurationError names up to ``MOST_PROBLEMS`` problems, each
    with its place and what was expected, and never a URL.
    """
    if path is None:
        return NO_CONFIG
    return parse_alerts(_bytes_of(path), name=str(path), environment=environment)


def parse_alerts(data: bytes, *, name: str, environment: Mapping[str, str] = os.environ) -> AlertsConfig:
    """The configuration that ``data``, YAML in UTF-8, holds. ``name`` is what errors call the file. Otherwise as above."""
    problems = _Problems(name)
    tree = _tree_of(data, problems)
    try:
        file = _File.model_validate({} if tree is None else tree)
    except ValidationError as invalid:
        # from None: the chain would repeat the input.
        problems.add_all(_told(error) for error in invalid.errors(include_input=False, include_url=False))
        file = None
    if file is None:
        raise problems.error() from None
    channels = {channel: _channel(channel, part.url, environment, problems) for channel, part in file.channels.items()}
    for place, route in enumerate(file.routes):
        _judge_route(f"routes.{place}", route, file, problems)
    thresholds = _thresholds(file.thresholds, problems)
    for rule in file.price_rules:
        if rule in RULES:
            problems.add(f"price_rules.{rule}: is the name of a built-in rule: expected another")
    if problems:
        raise problems.error()
    return AlertsConfig(
        channels=MappingProxyType({channel: opened for channel, opened in channels.items() if opened is not None}),
        routes=tuple(
            Route(
                channels=route.channels,
                rules=route.rules,
                severities=route.severities,
                labels=MappingProxyType(dict(route.labels)),
                escalate_to=route.escalate_to,
            )
            for route in file.routes
        ),
        thresholds=thresholds,
        price_rules=tuple(part.as_rule(rule) for rule, part in file.price_rules.items()),
    )


def exposed_channels(path: Path) -> tuple[str, ...]:
    """The channels whose URLs stand in the file itself while others than its owner may read it; empty where all is well."""
    if not path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        return ()
    read = _File.model_validate(_tree_of(_bytes_of(path), _Problems(str(path))) or {})
    urls = {name: part.url for name, part in read.channels.items()}
    return tuple(name for name, url in urls.items() if not _VARIABLE.search(url) and not url.startswith(f"{LOG}{_URL}"))


@dataclass(frozen=True, slots=True)
class _InForce:
    config: AlertsConfig | None
    problem: str | None
    version: tuple[int, int, int] | None


class AlertsFile:
    """The alerts file of a process that goes on: read again when it has changed. Instances may be shared by threads."""

    def __init__(self, path: Path | None, *, environment: Mapping[str, str] = os.environ) -> None:
        self._path, self._environment = path, environment
        self._read = _InForce(None, None, None)

    def current(self) -> tuple[AlertsConfig, str | None]:
        """The configuration in force, and why it is not the file's; None where it is.

        A file that cannot be used changes nothing: the last one that could stays in force. Where none ever could in this process,
        ConfigurationError: with no channels and no rules of the user's at all, alerts would seem to be over, or to have been told.
        """
        version, known = self._version(), self._read
        if known.config is None or version is None or version != known.version:
            try:
                known = _InForce(read_alerts_file(self._path, environment=self._environment), None, version)
            except ConfigurationError as unusable:
                if known.config is None:
                    raise
                known = _InForce(known.config, str(unusable), version)
            self._read = known
        return known.config or NO_CONFIG, known.problem

    def _version(self) -> tuple[int, int, int] | None:
        if self._path is None:
            return (0, 0, 0)
        try:
            found = self._path.stat()
        except OSError:
            return None
        # An editor that writes a new file and renames it may keep time and size: the inode is another.
        return found.st_mtime_ns, found.st_size, found.st_ino


@cache
def alerts_of_process(path: Path | None) -> AlertsFile:
    """The one ``AlertsFile`` of this process for ``path``: for whoever comes again and again without a place to keep it."""
    return AlertsFile(path)


class _Problems:
    """What is wrong with the file called ``name``, in the order found."""

    def __init__(self, name: str) -> None:
        self._name, self._found = name, list[str]()

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, text: str) -> None:
        self._found.append(text)

    def add_all(self, texts: Iterator[str]) -> None:
        self._found += texts

    def error(self, *more: str) -> ConfigurationError:
        found = [*self._found, *more]
        count = "1 problem" if len(found) == 1 else f"{len(found)} problems"
        rest = [f"and {len(found) - MOST_PROBLEMS} more"] if len(found) > MOST_PROBLEMS else []
        return ConfigurationError("\n  ".join([f"{self._name}: {count}", *found[:MOST_PROBLEMS], *rest]))


def _bytes_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as unreadable:
        raise ConfigurationError(
            f"cannot read the alerts file {str(path)!r} ({_MISSING_FILE}): {unreadable.strerror}"
        ) from unreadable
    if len(data) > MOST_BYTES:
        raise ConfigurationError(f"{path}: larger than {MOST_BYTES >> 20} MiB: this is no alerts file")
    return data


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key stands once, and nothing refers to anything: a page of references can stand for gigabytes."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401 - the base class's signature
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError(f"line {self._line()}: references (*name) are not taken: write it out")
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.YAMLError(f"line {self._line()}: nested deeper than {_DEEPEST} levels")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - as above
        seen = set[str]()
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"line {line}: a key is not text")
            if key.value in seen:
                raise yaml.YAMLError(f"line {line}: {_shown(key.value)} stands there for the second time: expected once")
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def _line(self) -> int:
        event = self.peek_event()  # type: ignore[no-untyped-call] # of the stubs
        return int(event.start_mark.line) + 1


def _tree_of(data: bytes, problems: _Problems) -> Any:  # noqa: ANN401 - whatever stands there
    try:
        return yaml.load(data.decode("utf-8-sig"), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except UnicodeDecodeError as undecodable:
        line = data.count(b"\n", 0, undecodable.start) + 1
        raise problems.error(f"line {line}: not UTF-8") from None
    except yaml.MarkedYAMLError as malformed:
        # from None, and without its snippet: the line may hold a URL.
        line = malformed.problem_mark.line + 1 if malformed.problem_mark else 0
        raise problems.error(f"line {line}: not YAML: {malformed.problem}") from None
    except (yaml.YAMLError, ValueError) as malformed:
        raise problems.error(str(malformed) if type(malformed) is yaml.YAMLError else "not YAML") from None


def _told(error: ErrorDetails) -> str:
    place = ".".join(_word(str(part)) for part in error["loc"] if part != "[key]") or "the file"
    if error["type"] == "value_error":
        return f"{place}: {error['ctx']['error']}"
    if error["type"] == "extra_forbidden":
        return f"{place}: is not known here{_meant(error)}"
    if error["type"] == "missing":
        return f"{place}: is missing"
    message = error["msg"]
    return f"{place}: {message[0].lower()}{message[1:]}"


def _meant(error: ErrorDetails) -> str:
    """What may be written in that place instead."""
    parts: dict[str, type[_Part]] = {"channels": _ChannelPart, "routes": _RoutePart, "price_rules": PriceRulePart}
    part = parts.get(str(error["loc"][0]), _File) if len(error["loc"]) > 1 else _File
    names = list(part.model_fields)
    near = difflib.get_close_matches(str(error["loc"][-1]), names, 1)
    return f": did you mean {near[0]}?" if near else f": expected one of {', '.join(names)}"


# --- channels, routes, thresholds --------------------------------------------------------------------------------------


def _channel(name: str, url: str, environment: Mapping[str, str], problems: _Problems) -> Channel | None:
    """The channel, with its variables put in; None where something is wrong with it."""
    place = f"channels.{name}.url"
    missing = []

    def put_in(found: re.Match[str]) -> str:
        variable = found[1]
        if not _VARIABLE_NAME.fullmatch(variable):
            missing.append("${…} does not hold the name of an environment variable")
        elif not environment.get(variable):
            missing.append(f"the environment variable {variable} is not set")
        return environment.get(variable, "")

    opened = Channel(name, SecretStr(_VARIABLE.sub(put_in, url).strip()))
    if missing:
        problems.add_all(f"{place}: {text}" for text in missing)
        return None
    if _SAMPLES.search(opened.url.get_secret_value()):
        problems.add(f"{place}: holds a sample value: expected your own, best from the environment as ${{NAME}}")
        return None
    try:
        kind_of(opened)
        check_channel(opened)
    except InvalidInputError as unfit:
        problems.add(f"{place}: {unfit}")
        return None
    return opened


def _judge_route(place: str, route: _RoutePart, file: _File, problems: _Problems) -> None:
    for name in ("channels", "escalate_to"):
        for channel in getattr(route, name):
            if channel not in file.channels:
                problems.add(f"{place}.{name}: no channel is called {_shown(channel)}{_nearest(channel, list(file.channels))}")
    for rule in route.rules:
        names = [*RULES, *file.price_rules]
        if not re.search(r"[*?\[]", rule) and rule not in names:
            problems.add(f"{place}.rules: no rule is called {_shown(rule)}{_nearest(rule, names)}")


def _thresholds(told: Mapping[str, Mapping[str, Any]], problems: _Problems) -> Mapping[str, Mapping[str, object]]:
    """Every option of every rule, durations as seconds."""
    wanted: dict[str, Mapping[str, object]] = {}
    for rule, options in told.items():
        if rule not in RULES:
            problems.add(f"thresholds.{_word(rule)}: no rule is called so{_nearest(rule, list(RULES))}")
            continue
        read: dict[str, object] = {}
        for option, value in options.items():
            try:
                read[option] = _duration(value) if isinstance(value, str) and _is_time(option) else value
                configured({rule: RULES[rule]}, AlertsConfig(thresholds={rule: {option: read[option]}}))
            except (ValueError, InvalidInputError) as unfit:
                text = str(unfit).removeprefix(f"thresholds: {rule}: {option}: ")
                problems.add(f"thresholds.{rule}.{_word(option)}: {_word(text)}")
        wanted[rule] = MappingProxyType(read)
    return MappingProxyType(wanted)


def _is_time(option: str) -> bool:
    return option in _TIMES or option.endswith("seconds")


def _nearest(name: str, known: Sequence[str]) -> str:
    # A list of names is for reading: as many as fit a line.
    near = difflib.get_close_matches(name, known, 3, 0.5)
    if near:
        return f": did you mean {' or '.join(near)}?"
    return f": expected one of {', '.join(known[:10])}" + ("…" if len(known) > 10 else "") if known else ": there is none"
