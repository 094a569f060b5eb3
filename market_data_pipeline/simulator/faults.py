"""Faults on demand: rules that say which requests go wrong and how. Each way of going wrong is one small pure function."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field, fields, replace
from email.utils import format_datetime
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import yaml

from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.simulator.clock import instant_of, microseconds, parse_instant
from market_data_pipeline.simulator.market import PRICES, SECONDS
from market_data_pipeline.simulator.yahoo import ChartAnswer, ChartRefusal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from market_data_pipeline.domain.candles import Bools, Int64s

Headers = tuple[tuple[str, str], ...]
JSON_TYPE = "application/json;charset=utf-8"
HTML_TYPE = "text/html; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Delivery:
    """How the bytes of a reply leave. ``reset``: before, headers or body says when the connection is cut by RST, "" never.

    ``cut_to``: the body ends after this share of it, whatever Content-Length promises. ``bytes_per_second`` 0: all at once.
    """

    stall_before_seconds: float = 0.0
    stall_after_headers_seconds: float = 0.0
    bytes_per_second: float = 0.0
    cut_to: float = 1.0
    reset: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP reply, ready to be sent. ``headers`` without Content-Length, which the server adds from ``body``."""

    status: int
    headers: Headers
    body: bytes
    delivery: Delivery = field(default_factory=Delivery)


@dataclass(frozen=True, slots=True)
class Asked:
    """What rules look at: one request, as parsed as far as it could be. ``start`` and ``end``: epoch seconds of its window."""

    path: str
    query: str
    symbol: str | None
    interval: str | None
    start: int | None
    end: int | None
    accepts_gzip: bool
    now_us: int


@dataclass(frozen=True, slots=True)
class Match:
    """Which requests a rule is about. Everything given must hold; counts are of the requests that fit everything else.

    ``path``, ``symbol`` and ``interval`` take shell wildcards. ``window``: opened_at in [from, to), epoch seconds: only
    requests that overlap it, and only its bars are touched. From ``after_us`` on and before ``until_us``, in virtual time.
    ``nth``: only the nth; ``every``: each nth; ``first``: the first n. They count ``per`` rule, symbol, or request (the same URL).
    """

    provider: str = "*"
    path: str = "*"
    symbol: str = "*"
    interval: str = "*"
    window: tuple[int, int] | None = None
    until_us: int | None = None
    after_us: int | None = None
    nth: int | None = None
    every: int | None = None
    first: int | None = None
    per: str = "rule"

    def fits(self, asked: Asked) -> bool:
        """Whether the request is one of those meant, counts aside."""
        if not (fnmatchcase("yahoo", self.provider) and fnmatchcase(asked.path, self.path)):
            return False
        if not (fnmatchcase(asked.symbol or "", self.symbol) and fnmatchcase(asked.interval or "", self.interval)):
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
        )

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


# --- actions -----------------------------------------------------------------------------------------------------------


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


def _chosen(answer: ChartAnswer, rule: Rule, dice: Dice) -> Bools:
    """The bars that the rule's ``minutes`` list, or its ``fraction`` of all; inside its window."""
    touched = rule.match.touches(answer.timestamp)
    if "minutes" in rule.settings:
        return touched & np.isin(answer.timestamp, rule.settings["minutes"])
    return touched & dice.chosen(answer.timestamp, rule.settings["fraction"], answer.request.symbol)


def _missing_minutes(answer: ChartAnswer, rule: Rule, dice: Dice) -> ChartAnswer:
    return answer.take(~_chosen(answer, rule, dice))


def _null_minutes(answer: ChartAnswer, rule: Rule, dice: Dice) -> ChartAnswer:
    nulls = _chosen(answer, rule, dice)
    return replace(answer, columns={name: np.where(nulls, np.nan, column) for name, column in answer.columns.items()})


def _live_tick(answer: ChartAnswer, rule: Rule, dice: Dice) -> ChartAnswer:  # noqa: ARG001 - every action takes the same
    if not len(answer.timestamp):
        return answer
    stamp = int(answer.timestamp[-1]) + rule.settings["seconds"]
    close = answer.columns["close"][-1]
    flat = dict.fromkeys(PRICES, close) | {"volume": 0.0}
    return replace(
        answer,
        timestamp=np.append(answer.timestamp, stamp),
        columns={name: np.append(column, flat[name]) for name, column in answer.columns.items()},
        adjclose=None if answer.adjclose is None else np.append(answer.adjclose, close),
    )


def _shifted(answer: ChartAnswer, rule: Rule, dice: Dice) -> ChartAnswer:  # noqa: ARG001
    return replace(answer, timestamp=answer.timestamp + rule.settings["seconds"])


def _duplicate(answer: ChartAnswer, rule: Rule, dice: Dice) -> ChartAnswer:
    again = _chosen(answer, rule, dice)
    return answer.take(np.repeat(np.arange(len(again)), 1 + again))


def _out_of_order(answer: ChartAnswer, rule: Rule, dice: Dice) -> ChartAnswer:  # noqa: ARG001
    order = np.argsort([dice.share("order", stamp) for stamp in answer.timestamp.tolist()], kind="stable")
    return answer.take(order)


def _ragged(answer: ChartAnswer, rule: Rule, dice: Dice) -> ChartAnswer:  # noqa: ARG001
    name = rule.settings["field"]
    return replace(answer, columns={**answer.columns, name: answer.columns[name][: -rule.settings["rows"]]})


def _unit(answer: ChartAnswer, rule: Rule, dice: Dice) -> ChartAnswer:
    slipped = _chosen(answer, rule, dice)
    factor = np.where(slipped, rule.settings["factor"], 1.0)
    return replace(answer, columns={n: c * factor if n in PRICES else c for n, c in answer.columns.items()})


def _strings(answer: ChartAnswer, rule: Rule, dice: Dice) -> ChartAnswer:  # noqa: ARG001
    def text(column: Any) -> list[str | None]:  # noqa: ANN401
        return [None if value != value else str(value) for value in column.tolist()]  # noqa: PLR0124 - NaN is what differs from itself

    return replace(answer, columns={name: text(column) for name, column in answer.columns.items()})


def _other_symbol(answer: ChartAnswer, rule: Rule, dice: Dice) -> ChartAnswer:  # noqa: ARG001
    return replace(answer, meta={**answer.meta, "symbol": rule.settings["symbol"]})


def _renamed(answer: ChartAnswer, rule: Rule, dice: Dice) -> ChartAnswer:  # noqa: ARG001
    old, new = rule.settings["field"], rule.settings["to"]
    return replace(answer, columns={new if name == old else name: column for name, column in answer.columns.items()})


def _nan(reply: Reply, rule: Rule, asked: Asked) -> Reply:  # noqa: ARG001
    """The first number of every price list becomes a literal that JSON does not have."""
    body = reply.body
    for name in PRICES:
        head, found, tail = body.partition(f'"{name}":['.encode())
        _, comma, rest = tail.partition(b",")
        if found and comma:
            body = head + found + rule.settings["literal"].encode() + comma + rest
    return replace(reply, body=body)


def _bom(reply: Reply, rule: Rule, asked: Asked) -> Reply:  # noqa: ARG001
    return replace(reply, body=b"\xef\xbb\xbf" + reply.body)


def _content_type(reply: Reply, rule: Rule, asked: Asked) -> Reply:  # noqa: ARG001
    return replace(reply, headers=_with(reply.headers, "content-type", rule.settings["value"]))


def _truncated_gzip(reply: Reply, rule: Rule, asked: Asked) -> Reply:
    """A whole HTTP message around half a gzip stream. Sent plain and cut where the client takes no gzip."""
    body = gzip.compress(reply.body, 1, mtime=0) if asked.accepts_gzip else reply.body
    headers = _with(reply.headers, "content-encoding", "gzip") if asked.accepts_gzip else reply.headers
    return replace(reply, headers=headers, body=body[: int(len(body) * rule.settings["keep"])])


def _status(reply: Reply, rule: Rule, asked: Asked) -> Reply:  # noqa: ARG001
    code, wait = rule.settings["code"], rule.settings["retry_after"]
    headers: Headers = (("content-type", "text/plain" if code == 429 else HTML_TYPE),)
    if wait is not None and rule.settings["retry_after_as"] == "http-date":
        headers += (("retry-after", format_datetime(instant_of(asked.now_us + round(wait * 1_000_000)), usegmt=True)),)
    elif wait is not None:
        headers += (("retry-after", f"{wait:g}"),)
    texts = {
        429: b"Too Many Requests\r\n",
        401: b'{"finance":{"result":null,"error":{"code":"Unauthorized","description":"Invalid Crumb"}}}',
    }
    return Reply(code, headers, texts.get(code, f"<html><body><h1>{code}</h1></body></html>".encode()))


_PAGES = {
    "outage": b"<!DOCTYPE html><html><head><title>Yahoo</title></head><body><h1>Will be right back...</h1>"
    b"<p>Thank you for your patience.</p></body></html>",
    "consent": b'<!DOCTYPE html><html><body><form method="post" action="https://consent.yahoo.com/v2/collectConsent">'
    b'<button name="agree">Accept all</button></form></body></html>',
}


def _html(reply: Reply, rule: Rule, asked: Asked) -> Reply:  # noqa: ARG001
    return Reply(200, (("content-type", HTML_TYPE),), _PAGES[rule.settings["page"]])


def _empty(reply: Reply, rule: Rule, asked: Asked) -> Reply:  # noqa: ARG001
    return Reply(200, (("content-type", JSON_TYPE),), b"")


def _error_json(reply: Reply, rule: Rule, asked: Asked) -> Reply:  # noqa: ARG001
    refusal = ChartRefusal(200, rule.settings["code"], rule.settings["description"])
    return Reply(200, (("content-type", JSON_TYPE),), refusal.body())


def _reset(reply: Reply, rule: Rule, asked: Asked) -> Reply:  # noqa: ARG001
    return replace(reply, delivery=replace(reply.delivery, reset=rule.settings["at"]))


def _stall(reply: Reply, rule: Rule, asked: Asked) -> Reply:  # noqa: ARG001
    seconds = rule.settings["seconds"]
    if rule.settings["at"] == "before":
        return replace(reply, delivery=replace(reply.delivery, stall_before_seconds=seconds))
    return replace(reply, delivery=replace(reply.delivery, stall_after_headers_seconds=seconds))


def _drip(reply: Reply, rule: Rule, asked: Asked) -> Reply:  # noqa: ARG001
    return replace(reply, delivery=replace(reply.delivery, bytes_per_second=rule.settings["bytes_per_second"]))


def _truncate(reply: Reply, rule: Rule, asked: Asked) -> Reply:  # noqa: ARG001
    return replace(reply, delivery=replace(reply.delivery, cut_to=rule.settings["keep"]))


def _with(headers: Headers, name: str, value: str) -> Headers:
    return (*(h for h in headers if h[0] != name), (name, value))


# What each action may be told, with its default. A default of REQUIRED must be given.
_REQUIRED = object()
_FRACTION = {"fraction": 0.05, "minutes": None}

BEND_THE_REQUEST: Mapping[str, Mapping[str, Any]] = {
    "coarser": {"interval": "60m"},
    "stale": {"seconds": 3600},
}
BEND_THE_ANSWER: Mapping[str, tuple[Callable[[ChartAnswer, Rule, Dice], ChartAnswer], Mapping[str, Any]]] = {
    "missing_minutes": (_missing_minutes, _FRACTION),
    "null_minutes": (_null_minutes, _FRACTION),
    "live_tick": (_live_tick, {"seconds": 84}),
    "shifted": (_shifted, {"seconds": 60}),
    "duplicate": (_duplicate, _FRACTION),
    "out_of_order": (_out_of_order, {}),
    "ragged": (_ragged, {"field": "high", "rows": 1}),
    "unit": (_unit, {"fraction": 1.0, "minutes": None, "factor": 100.0}),
    "strings": (_strings, {}),
    "other_symbol": (_other_symbol, {"symbol": _REQUIRED}),
    "renamed": (_renamed, {"field": "volume", "to": "vol"}),
}
REPLACE_THE_REPLY: Mapping[str, tuple[Callable[[Reply, Rule, Asked], Reply], Mapping[str, Any]]] = {
    "status": (_status, {"code": _REQUIRED, "retry_after": None, "retry_after_as": "seconds"}),
    "html": (_html, {"page": "outage"}),
    "empty": (_empty, {}),
    "error_json": (_error_json, {"code": "Internal Server Error", "description": "Something went wrong"}),
    "reset": (_reset, {"at": "before"}),
}
BEND_THE_REPLY: Mapping[str, tuple[Callable[[Reply, Rule, Asked], Reply], Mapping[str, Any]]] = {
    "nan": (_nan, {"literal": "NaN"}),
    "bom": (_bom, {}),
    "content_type": (_content_type, {"value": "text/plain"}),
    "truncated_gzip": (_truncated_gzip, {"keep": 0.5}),
    "stall": (_stall, {"seconds": 5.0, "at": "before"}),
    "drip": (_drip, {"bytes_per_second": 2000.0}),
    "truncate": (_truncate, {"keep": 0.5}),
}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    **BEND_THE_REQUEST,
    **{name: settings for name, (_, settings) in BEND_THE_ANSWER.items()},
    **{name: settings for name, (_, settings) in REPLACE_THE_REPLY.items()},
    **{name: settings for name, (_, settings) in BEND_THE_REPLY.items()},
}


# --- rules -------------------------------------------------------------------------------------------------------------


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


def bend_answer(answer: ChartAnswer, rules: Sequence[Rule], script: FaultScript) -> ChartAnswer:
    """``answer`` after every rule that bends answers."""
    for rule in rules:
        if rule.action in BEND_THE_ANSWER:
            answer = BEND_THE_ANSWER[rule.action][0](answer, rule, script.dice(rule))
    return answer


def bend_reply(reply: Reply, rules: Sequence[Rule], asked: Asked) -> Reply:
    """``reply`` after every rule that replaces or bends replies; a delay set before survives a replacement after it."""
    for rule in rules:
        if rule.action in REPLACE_THE_REPLY:
            reply = replace(REPLACE_THE_REPLY[rule.action][0](reply, rule, asked))
        elif rule.action in BEND_THE_REPLY:
            reply = BEND_THE_REPLY[rule.action][0](reply, rule, asked)
    return reply


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
    "retry_after_as": ("seconds", "http-date"),
    "page": tuple(_PAGES),
    "literal": ("NaN", "Infinity", "-Infinity"),
    "interval": tuple(SECONDS),
    "field": (*PRICES, "volume"),
    "at": ("before", "headers", "body"),
}
_LIMITS: Mapping[str, tuple[float, float]] = {
    "fraction": (0, 1),
    "keep": (0, 1),
    "seconds": (-86400 * 366, 86400 * 366),
    "rows": (1, 100_000),
    "factor": (0, 1e12),
    "retry_after": (0, 1e12),
    "bytes_per_second": (1, 1e12),
}
_STATUSES = (200, 599)


def _setting(where: str, name: str, value: object) -> Any:  # noqa: ANN401 - as many types as settings
    if value is _REQUIRED:
        raise InvalidInputError(f"{where} is missing: the action needs it")
    if value is None and name in {"minutes", "retry_after"}:
        return None
    if name == "minutes":
        return _minutes(where, value)
    if name in _CHOICES:
        return _one_of(where, value, _CHOICES[name])
    if name in _LIMITS:
        return _number(where, value, _LIMITS[name])
    if name == "code" and not isinstance(value, str):
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
    if name in {"nth", "every", "first"}:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidInputError(f"{where} {value!r}: expected a whole number from 1")
        return value
    return _one_of(where, value, ("rule", "symbol", "request")) if name == "per" else str(value)
