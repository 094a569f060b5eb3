"""What adapters share: outages told from answers, JSON that vendors bend, columns, provenance, fingerprints of keys. No I/O."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from market_data_pipeline.domain.errors import PayloadError, ProviderError, RateLimitedError, TransientError
from market_data_pipeline.domain.ports import Fetch
from market_data_pipeline.domain.quality import BarFlag

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from market_data_pipeline.domain.candles import Bools, CandleColumns, Float64s, Int16s, Int64s, Interval
    from market_data_pipeline.providers.http import Attempt, HttpAnswer

PRICES = ("open", "high", "low", "close")
COLUMNS = (*PRICES, "volume")
_BOM = b"\xef\xbb\xbf"
_CLOSING = {b"{": b"}", b"[": b"]"}
# float() alone would also read "nan", "1_000" and digits of every script.
_DECIMAL = re.compile(r"[-+]?\d{1,40}(?:\.\d{0,40})?(?:[eE][-+]?\d{1,3})?", re.ASCII)


def fingerprint(*secrets: str) -> str:
    """The account that a key stands for, as text that may be stored and shown: 12 hex digits; "" for no key.

    The same key gives the same text in every process. It does not lead back to the key, which is random and long.
    """
    if not any(secrets):
        return ""
    # The lengths keep ("ab", "c") and ("a", "bc") apart.
    told = "".join(f"{len(secret)}:{secret}" for secret in secrets)
    return hashlib.blake2b(told.encode(), digest_size=6, person=b"mdp account").hexdigest()


# --- provenance --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One question put to a provider and every HTTP request sent for it: hand ``attempts`` to ``HttpClient.get``.

    ``request`` is redacted (``http.describe``). The rest as in ``Fetch``.
    """

    provider: str
    symbol: str
    request: str
    started_at: datetime
    interval: Interval | None = None
    capability: str = ""
    attempts: list[Attempt] = field(default_factory=list)

    def provenance(
        self, *, outcome: str = "ok", rows: int = 0, dropped: Mapping[str, int] | None = None, error: str | None = None
    ) -> Fetch:
        """The row of ``fetches``: status, size and latency are those of the last request sent."""
        last = self.attempts[-1] if self.attempts else None
        # A success after failures says so: nothing that happened on the way is hidden.
        earlier = "; ".join(attempt.error for attempt in self.attempts[:-1] if attempt.error)
        return Fetch(
            provider=self.provider,
            symbol=self.symbol,
            interval=self.interval,
            request=self.request,
            started_at=self.started_at,
            latency_seconds=last.latency_seconds if last else 0.0,
            outcome=outcome,
            status=last.status if last else None,
            rows=rows,
            payload_bytes=last.payload_bytes if last else 0,
            payload_sha256=last.payload_sha256 if last else None,
            error=" | ".join(filter(None, (error, earlier and f"earlier attempts: {earlier}"))) or None,
            dropped=dropped or {},
            attempts=len(self.attempts),
            capability=self.capability,
        )

    @contextmanager
    def on_record(self) -> Iterator[None]:
        """A ProviderError that leaves the block carries the provenance of its request as ``fetch``."""
        try:
            yield
        except ProviderError as error:
            error.fetch = self.provenance(outcome=error.kind, error=str(error))
            raise


# --- what kind of answer -----------------------------------------------------------------------------------------------


def refuse_outage(answer: HttpAnswer, provider: str) -> None:
    """Raise for answers that are not the service's own words: outages and walls, whatever status they come with.

    RateLimitedError for the plain text "Too Many Requests"; TransientError for redirects, web pages, nothing, and JSON cut short.
    """
    start = answer.body.removeprefix(_BOM).lstrip()[:64]
    if answer.status in range(300, 400):
        raise TransientError(f"HTTP {answer.status}: sent elsewhere, perhaps to a consent page", provider=provider)
    if "html" in answer.content_type or start.startswith(b"<"):
        raise TransientError(f"HTTP {answer.status} with a web page: {answer.excerpt()}", provider=provider)
    if start.removeprefix(b"Edge: ").startswith(b"Too Many Requests"):
        raise RateLimitedError(f"HTTP {answer.status} {answer.excerpt()}", provider=provider)
    if not start:
        raise TransientError(f"HTTP {answer.status} with an empty body", provider=provider)
    closing = _CLOSING.get(start[:1])
    if closing is not None and not answer.body.rstrip().endswith(closing):
        raise TransientError(f"HTTP {answer.status} with JSON that is cut short ({len(answer.body):,} bytes)", provider=provider)


# --- JSON --------------------------------------------------------------------------------------------------------------


def parse_json(body: bytes, provider: str) -> object:
    """The body as objects. NaN and Infinity, which are no JSON and are sent all the same, become text. Raises PayloadError."""
    text = body.removeprefix(_BOM)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        # As text, only the rows that hold them are refused.
        return json.loads(text, parse_constant=str)
    except (ValueError, RecursionError) as invalid:
        raise PayloadError(f"the body is not JSON: {invalid}"[:200], provider=provider) from None


def mapping(value: object, provider: str) -> dict[str, Any]:
    """``value``, which must be an object; else PayloadError."""
    if not isinstance(value, dict):
        raise PayloadError(f"an object was expected where the body has {shown(value)}", provider=provider)
    return value


def listing(value: object, where: str, provider: str) -> list[Any]:
    """``value``, which must be a list; else PayloadError that names ``where`` it was looked for."""
    if not isinstance(value, list):
        raise PayloadError(f"{where} is no list: {shown(value)}", provider=provider)
    return value


def only(value: object, where: str, provider: str) -> object:
    """The one element of ``value``; PayloadError where it is no list of one."""
    if not isinstance(value, list) or len(value) != 1:
        raise PayloadError(f"{where} is not a list of one element: {shown(value)}", provider=provider)
    return value[0]


def shown(value: object) -> str:
    """A value from a body as short text for a message."""
    return repr(value)[:60]


# --- columns -----------------------------------------------------------------------------------------------------------


def whole_numbers(values: object, where: str, provider: str) -> Int64s:
    """A list of stamps as int64, all of it or PayloadError: a row without its time cannot be kept apart from the others."""
    if not isinstance(values, list):
        raise PayloadError(f"{where} is no list: {shown(values)}", provider=provider)
    try:
        return np.frombuffer(bytearray(struct.pack(f"={len(values)}q", *values)), np.int64)
    except struct.error:
        raise PayloadError(f"{where} holds something that is no whole number of seconds", provider=provider) from None


@dataclass(frozen=True, slots=True, eq=False)
class Numbers:
    """One column as float64. ``is_null`` tells an explicit null from other things that are no number: both are NaN.

    ``is_text``: a number that came as text and was read.
    """

    values: Float64s
    is_null: Bools
    is_text: Bools


def numbers(column: object, name: str, length: int, provider: str) -> Numbers:
    """A list of numbers and nulls as float64; what is no number becomes NaN. PayloadError if not ``length`` long."""
    if not isinstance(column, list):
        raise PayloadError(f"no column {name}: {shown(column)}", provider=provider)
    if len(column) != length:
        raise PayloadError(f"ragged answer: {length} stamps and {len(column)} in {name}", provider=provider)
    with suppress(struct.error, OverflowError):
        # struct reads a list of floats in 4 ns an element, numpy in 22; and unlike numpy it takes no text for a number.
        values = np.frombuffer(bytearray(struct.pack(f"={length}d", *column)), np.float64)
        # It does take true for 1 and false for 0: only then is the price of looking at every type worth paying.
        if not ((values == 0) | (values == 1)).any() or bool not in set(map(type, column)):
            return Numbers(values, np.zeros(length, bool), np.zeros(length, bool))
    if set(map(type, column)) <= {float, int, type(None)}:
        with suppress(OverflowError):
            values = np.array(column, np.float64)
            return Numbers(values, np.isnan(values), np.zeros(length, bool))
    values = np.array([number(v) for v in column], np.float64)
    is_text = np.array([isinstance(v, str) for v in column], bool) & np.isfinite(values)
    return Numbers(values, np.array([v is None for v in column], bool), is_text)


def number(value: object) -> float:
    """A JSON number, or text that is one, as a float; infinity where it is too large; NaN for everything else, true included."""
    if isinstance(value, float):
        return value
    if isinstance(value, str):
        return float(value) if _DECIMAL.fullmatch(value) else math.nan
    if not isinstance(value, int) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def without_repeats(
    columns: CandleColumns, flags: Int16s, dropped: Counter[str], *, stamps: Int64s | None = None
) -> tuple[CandleColumns, Int16s]:
    """The rows by ``opened_at``; of several with one label that with the earliest stamp on the wire, then the first received.

    ``stamps``: what each row was stamped with, where the label is not that already. Counts in ``dropped``: "live_duplicate"
    (another stamp with the same label), "duplicate" (the same in every value), "conflicting_duplicate". ``flags`` (``BarFlag``) go
    with their rows; a row that stood against a live or a conflicting one says so in its own.
    """
    labels = columns.opened_at
    if (labels[1:] > labels[:-1]).all():
        return columns, flags
    stamps = labels if stamps is None else stamps
    order = np.lexsort((stamps, labels))
    is_first = np.concatenate(([True], np.diff(labels[order]) != 0))
    heads = order[np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))]
    repeats, kept = order[~is_first], heads[~is_first]
    same_stamp = stamps[repeats] == stamps[kept]
    same_values = np.ones(len(repeats), bool)
    for name in COLUMNS:
        values = getattr(columns, name)
        same_values &= (values[repeats] == values[kept]) | (np.isnan(values[repeats]) & np.isnan(values[kept]))
    conflicting = same_stamp & ~same_values
    dropped["live_duplicate"] += int((~same_stamp).sum())
    dropped["duplicate"] += int((same_stamp & same_values).sum())
    dropped["conflicting_duplicate"] += int(conflicting.sum())
    flags = flags.copy()
    flags[kept[~same_stamp]] |= BarFlag.LIVE_ROW_MERGED
    flags[kept[conflicting]] |= BarFlag.DUPLICATE_RESOLVED
    return columns.take(order[is_first]), flags[order[is_first]]
