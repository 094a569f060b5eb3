"""The schema of each kind of job: what may be asked for, and why anything else is refused. Pure; the queue is in storage.

A job comes from outside: a Rate-Limit Coordinator, a person's file, a row of the dead-letter queue written by an older release.
Whatever cannot be meant is refused here, whole, before anybody works on it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.queue import JOB_ID, JobKind, NewJob
from market_data_pipeline.domain.universe import SYMBOL_MAX_LENGTH, SYMBOL_PATTERN, Tier, valid_symbol

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from market_data_pipeline.domain.queue import Lease

MOST_SYMBOLS = 1_000
# The bar sizes that a job may name. 30m is computed from 1m like 5m and 15m; the reference never had it, so nobody sends it.
JOB_INTERVALS = (Interval.M1, Interval.M5, Interval.M15, Interval.H1, Interval.D1)
# A thousand symbols with names of the longest kind are 36 kB. What is longer was not meant as a job.
MOST_BYTES = 1 << 20
# No exchange in our calendars has bars of before; what ends after is a typing error, whatever the clock says.
EARLIEST, LATEST = datetime(1900, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
# Calendars are preloaded for the next seven days; bars of later sessions are nobody's to give, and the job would wait for them.
AHEAD = timedelta(days=8)
# The longest windows. A job is one worker's: 1,000 symbols x 31 days of minutes are 9 million bars, ten minutes of writing.
LONGEST_FETCH = {False: timedelta(days=31), True: timedelta(days=3_660)}
LONGEST_BACKFILL = {False: timedelta(days=366), True: timedelta(days=36_600)}
# Of one tier what is fresh goes first: a quote is worth nothing a minute later, history waits.
PRIORITIES = {JobKind.QUOTES_FETCH: 20, JobKind.BARS_FETCH: 10, JobKind.BACKFILL: 0}

_HINT = re.compile(r"[a-z][a-z0-9_]{0,31}", re.ASCII)
# RFC 3339 with the seconds left out at will. Python's own parser takes week dates, ordinal dates and times without a zone, too.
_INSTANT = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?(?:Z|[+-]\d{2}:\d{2})", re.ASCII)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_MIDNIGHT = timedelta(days=1)
# No job has more fields.
_TOLD_AT_MOST = 8
_QUOTED_AT_MOST = 60


def _quoted(value: object) -> str:
    """``value`` for a message: printable, and never longer than a line, whoever sent it."""
    try:
        text = repr(value[: 2 * _QUOTED_AT_MOST] if isinstance(value, str | bytes) else value)
    except (ValueError, RecursionError):  # a number of 5,000 digits, a list a thousand deep: Python declines to write them
        text = f"a {type(value).__name__}"
    return text if len(text) <= _QUOTED_AT_MOST else f"{text[:_QUOTED_AT_MOST]}…"


def _job_id(value: object) -> str:
    if not isinstance(value, str) or not JOB_ID.fullmatch(value):
        raise ValueError(f"{_quoted(value)} is not a job id: expected 1-128 letters, digits and . _ : -")
    return value


def _tier(value: object) -> Tier:
    try:
        return Tier(value) if isinstance(value, str) else _refuse_tier(value)
    except ValueError:
        return _refuse_tier(value)


def _refuse_tier(value: object) -> Tier:
    raise ValueError(f"{_quoted(value)} is not a priority: expected one of {', '.join(Tier)}") from None


def _interval(value: object) -> Interval:
    if isinstance(value, str):
        for interval in JOB_INTERVALS:
            if value == interval:
                return interval
    raise ValueError(f"{_quoted(value)} is not an interval of jobs: expected one of {', '.join(JOB_INTERVALS)}")


def _symbol(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{_quoted(value)} is not a symbol: expected text such as 'AAPL'")  # noqa: TRY004 - pydantic collects ValueError
    try:
        return valid_symbol(value)
    except InvalidInputError:
        meant = value.strip().upper()
        hint = f"; did you mean {meant!r}?" if len(value) <= SYMBOL_MAX_LENGTH and SYMBOL_PATTERN.fullmatch(meant) else ""
        expected = f"expected 1-{SYMBOL_MAX_LENGTH} capital letters, digits and . - = / _ , with ^ allowed first"
        raise ValueError(f"{_quoted(value)} is not a symbol: {expected}{hint}") from None


def _symbols(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{_quoted(value)} is not a list: expected 1-{MOST_SYMBOLS:,} symbols such as ['AAPL', 'MSFT']")  # noqa: TRY004 - as above
    if not 1 <= len(value) <= MOST_SYMBOLS:
        raise ValueError(f"{len(value):,} symbols: expected 1-{MOST_SYMBOLS:,}; put the others into further jobs")
    wrong = []
    for place, symbol in enumerate(value):
        try:
            _symbol(symbol)
        except ValueError as refused:
            wrong.append(f"[{place}] {refused}")
    if wrong:
        raise ValueError(_first_of(wrong))
    if len(set(value)) < len(value):
        twice, times = Counter(value).most_common(1)[0]
        raise ValueError(f"{twice!r} is named {times} times: expected each symbol once")
    return tuple(value)


def _instant(value: object) -> datetime:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError(f"{_quoted(value.isoformat())} has no time zone: expected an aware instant")
        return _within_reason(value, value.isoformat())
    if not isinstance(value, str):
        raise ValueError(f"{_quoted(value)} is not an instant: expected text such as '2024-11-29T14:30:00Z'")  # noqa: TRY004 - as above
    if _DATE.fullmatch(value):
        raise ValueError(f"{value!r} is a date: expected an instant such as '{value}T00:00:00Z'; the end is exclusive")
    if not _INSTANT.fullmatch(value):
        zoneless = _INSTANT.fullmatch(f"{value}Z")
        why = "has no time zone: add Z or an offset, as in" if zoneless else "is not an instant: expected ISO 8601 such as"
        raise ValueError(f"{_quoted(value)} {why} '2024-11-29T14:30:00Z'")
    try:
        return _within_reason(datetime.fromisoformat(value), value)
    except (ValueError, OverflowError) as wrong:
        raise ValueError(f"{value!r} is not an instant ({wrong}): expected one such as '2024-11-29T14:30:00Z'") from None


def _within_reason(instant: datetime, text: str) -> datetime:
    # Compared before it is converted: the year 1 at +14:00 has no UTC.
    if not EARLIEST <= instant <= LATEST:
        raise ValueError(f"{text!r} lies outside of {EARLIEST:%Y} to {LATEST:%Y}")
    return instant.astimezone(UTC)


def _hint(value: object) -> str | None:
    if value is None or (isinstance(value, str) and _HINT.fullmatch(value)):
        return value
    raise ValueError(f"{_quoted(value)} is not the name of a provider: expected one such as 'yahoo', or null")


def written(instant: datetime) -> str:
    """``instant`` as every job has it: UTC with a Z."""
    return instant.isoformat().replace("+00:00", "Z")


def _text(pattern: str, *, title: str, example: str, maximum: int | None = None) -> dict[str, Any]:
    bound = {} if maximum is None else {"maxLength": maximum}
    return {"type": "string", "pattern": f"^{pattern}$", "title": title, "examples": [example], **bound}


_SYMBOL_SCHEMA = _text(SYMBOL_PATTERN.pattern, title="Symbol", example="AAPL", maximum=SYMBOL_MAX_LENGTH)
_SYMBOLS_SCHEMA = {
    "type": "array",
    "items": _SYMBOL_SCHEMA,
    "minItems": 1,
    "maxItems": MOST_SYMBOLS,
    "uniqueItems": True,
    "title": "Symbols",
}
_INSTANT_SCHEMA = _text(_INSTANT.pattern, title="Instant", example="2024-11-29T14:30:00Z")

JobId = Annotated[
    str, BeforeValidator(_job_id), WithJsonSchema(_text(JOB_ID.pattern, title="Job id", example="rlc-2024-11-29-000017"))
]
Priority = Annotated[
    Tier, BeforeValidator(_tier), WithJsonSchema({"type": "string", "enum": [str(tier) for tier in Tier], "title": "Priority"})
]
JobInterval = Annotated[
    Interval,
    BeforeValidator(_interval),
    WithJsonSchema({"type": "string", "enum": [str(i) for i in JOB_INTERVALS], "title": "Interval"}),
]
Symbol = Annotated[str, BeforeValidator(_symbol), WithJsonSchema(_SYMBOL_SCHEMA)]
Symbols = Annotated[tuple[str, ...], BeforeValidator(_symbols), WithJsonSchema(_SYMBOLS_SCHEMA)]
Instant = Annotated[
    datetime, BeforeValidator(_instant), PlainSerializer(written, when_used="json"), WithJsonSchema(_INSTANT_SCHEMA)
]
Hint = Annotated[
    str | None,
    BeforeValidator(_hint),
    WithJsonSchema(
        {"anyOf": [_text(_HINT.pattern, title="Provider", example="yahoo"), {"type": "null"}], "title": "Provider hint"}
    ),
]

_ID_SAYS = "Who asks chooses it. The same id again is the same job, and changes nothing."
_PRIORITY_SAYS = "The tier in whose queue the job waits: T0 first."
_SYMBOLS_SAYS = "Each once. One that the universe does not have is refused when the job is carried out, not before."
_START_SAYS = "Bars that open at or after this instant. For 1d: midnight UTC of the first session's date."
_END_SAYS = "Bars that open before this instant. For 1d: midnight UTC of the date after the last session's."
_HINT_SAYS = "The provider to ask first, honoured where MDP_ALLOW_SOURCE_OVERRIDE is on."


class _JobModel(BaseModel):
    """What all jobs share: frozen, no field that we do not know, and nothing of the input in pydantic's own messages."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    job_id: JobId = Field(description=_ID_SAYS)
    priority: Priority = Field(description=_PRIORITY_SAYS)

    @property
    def tier(self) -> Tier:
        """The queue it waits in; ``priority`` under the name that the rest of the project uses."""
        return self.priority


class _WindowedJob(_JobModel):
    """A job about the bars of one interval that open in [start, end)."""

    longest: ClassVar[Mapping[bool, timedelta]] = LONGEST_FETCH

    interval: JobInterval = Field(description="The size of the bars.")
    start: Instant = Field(description=_START_SAYS)
    end: Instant = Field(description=_END_SAYS)

    @model_validator(mode="after")
    def _window_holds_something(self) -> Self:
        start, end = written(self.start), written(self.end)
        if self.start >= self.end:
            raise ValueError(f"start {start} is not before end {end}: expected a window that holds something; the end is exclusive")
        if self.interval.is_daily:
            for name, instant in (("start", self.start), ("end", self.end)):
                if (instant - EARLIEST) % _MIDNIGHT:
                    day = instant.date()
                    raise ValueError(
                        f"{name} {written(instant)}: bars of 1d are named by session, expected midnight UTC such as {day}T00:00:00Z"
                    )
        longest = self.longest[self.interval.is_daily]
        if self.end - self.start > longest:
            days = (self.end - self.start) / _MIDNIGHT
            raise ValueError(
                f"start {start} to end {end} are {days:,.0f} days: expected at most {longest.days:,} for {self.interval};"
                " cut it into several jobs"
            )
        return self


class BarsFetchJob(_WindowedJob):
    """Fetch the bars of up to 1,000 symbols that open in [start, end): what is new."""

    kind: ClassVar[JobKind] = JobKind.BARS_FETCH

    type: Literal["bars_fetch"] = Field(default="bars_fetch", description="What kind of job this is.")
    symbols: Symbols = Field(description=_SYMBOLS_SAYS)
    provider_hint: Hint = Field(default=None, description=_HINT_SAYS)


class QuotesFetchJob(_JobModel):
    """Fetch the current quotes of up to 1,000 symbols."""

    kind: ClassVar[JobKind] = JobKind.QUOTES_FETCH

    type: Literal["quotes_fetch"] = Field(default="quotes_fetch", description="What kind of job this is.")
    symbols: Symbols = Field(description=_SYMBOLS_SAYS)
    provider_hint: Hint = Field(default=None, description=_HINT_SAYS)


class BackfillJob(_WindowedJob):
    """Fetch what is missing of one symbol's bars that open in [start, end): history."""

    kind: ClassVar[JobKind] = JobKind.BACKFILL
    longest: ClassVar[Mapping[bool, timedelta]] = LONGEST_BACKFILL

    type: Literal["backfill"] = Field(default="backfill", description="What kind of job this is.")
    symbol: Symbol = Field(description="One that the universe does not have is refused when the job is carried out, not before.")
    provider_hint: Hint = Field(default=None, description=_HINT_SAYS)

    @property
    def symbols(self) -> tuple[str, ...]:
        """The one symbol, as the other jobs have theirs."""
        return (self.symbol,)


Job = BarsFetchJob | QuotesFetchJob | BackfillJob
MODELS: Mapping[JobKind, type[Job]] = {model.kind: model for model in (BarsFetchJob, QuotesFetchJob, BackfillJob)}


def parse_job(data: str | bytes | Mapping[str, Any], *, now: datetime | None = None) -> Job:
    """The job that ``data`` is: JSON as text or UTF-8 bytes, or what was made of it.

    InvalidInputError names every field that is wrong, its value (shortened) and what was expected. With ``now``, a window that
    begins more than eight days ahead is refused, too.
    """
    fields = data if isinstance(data, Mapping) else _object_in(data)
    model = MODELS[_kind_in(fields)]
    try:
        job = model.model_validate(dict(fields))
    except ValidationError as invalid:
        known = list(model.model_fields)
        # from None: pydantic's chain would repeat the input.
        raise InvalidInputError(f"{model.kind} job: {_first_of([_told(e, known) for e in invalid.errors()])}") from None
    if now is not None and isinstance(job, _WindowedJob) and job.start > now + AHEAD:
        raise InvalidInputError(
            f"{job.kind} job: start {written(job.start)} is more than {AHEAD.days} days after now, {written(now.astimezone(UTC))}:"
            " nobody has these bars yet"
        )
    return job


def payload_of(job: Job) -> dict[str, Any]:
    """``job`` as JSON, always the same for the same job: every field, instants in UTC with Z. ``parse_job`` gives it back."""
    return job.model_dump(mode="json")


def dedupe_key(job: Job) -> str:
    """What ``job`` does, whoever asks for it and however urgently: two jobs with one key need to be done once.

    Kind, symbols in any order, interval, window and the provider to ask first; neither id nor priority.
    """
    does = payload_of(job)
    for name in ("job_id", "priority", "symbol"):
        does.pop(name, None)
    does["symbols"] = sorted(job.symbols)
    digest = hashlib.blake2b(json.dumps(does, sort_keys=True).encode(), digest_size=16).hexdigest()
    first = does["symbols"][0] + (f"+{len(job.symbols) - 1}" if len(job.symbols) > 1 else "")
    # Readable up to the digest: somebody will look for a job by what it does.
    parts = [job.kind.value, first, *([] if isinstance(job, QuotesFetchJob) else [job.interval.value, does["start"]]), digest]
    return ":".join(parts)


def as_new_job(job: Job, *, source: str) -> NewJob:
    """``job`` as the queue takes it. ``source``: who submitted it, for people. Fresh data goes before history of the same tier."""
    return NewJob(
        job_id=job.job_id,
        kind=job.kind,
        tier=job.priority,
        dedupe_key=dedupe_key(job),
        payload=payload_of(job),
        source=source,
        priority=PRIORITIES[job.kind],
    )


def job_of(lease: Lease) -> Job:
    """The job that was leased, judged again: InvalidInputError where an older release wrote what this one does not take."""
    return parse_job(lease.payload)


_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema(kind: JobKind | None = None) -> dict[str, Any]:
    """The JSON Schema (2020-12) of ``kind``, or of any job."""
    if kind is None:
        named = {f"{one}": {k: v for k, v in json_schema(one).items() if k != "$schema"} for one in JobKind}
        return {
            "$schema": _DIALECT,
            "title": "Job",
            "description": "Any job, told apart by its type. What no schema can say is in docs/jobs.md.",
            "oneOf": [{"$ref": f"#/$defs/{one}"} for one in named],
            "$defs": named,
        }
    model = MODELS[kind]
    schema = model.model_json_schema(mode="validation")
    # Without a type nobody knows which schema to hold it against: in JSON it is needed, and first, whatever Python fills in.
    told = {name: value for name, value in schema["properties"].pop("type").items() if name != "default"}
    properties = {"type": told, **schema["properties"]}
    required = ["type", *schema["required"]]
    return {"$schema": _DIALECT, **schema, "properties": properties, "required": required}


def _object_in(data: str | bytes) -> Mapping[str, Any]:
    # Characters or bytes: whichever it is, more of them than this is no job.
    if len(data) > MOST_BYTES:
        raise InvalidInputError(f"{len(data):,} bytes: expected a job, a JSON object of at most {MOST_BYTES:,}")
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
    except UnicodeDecodeError as wrong:
        raise InvalidInputError(
            f"{_quoted(data)} is not UTF-8 ({wrong.reason} at byte {wrong.start}): expected a JSON object"
        ) from None
    try:
        found = json.loads(text, object_pairs_hook=_without_doubles, parse_constant=_no_constant)
    except RecursionError:
        raise InvalidInputError(f"{_quoted(text)} is nested too deeply: expected a flat JSON object") from None
    except ValueError as wrong:
        raise InvalidInputError(f"{_quoted(text)} is not JSON ({wrong}): expected an object such as {_EXAMPLE}") from None
    if not isinstance(found, dict):
        raise InvalidInputError(f"{_quoted(found)} is not a job: expected a JSON object such as {_EXAMPLE}")
    return found


_EXAMPLE = '{"type": "quotes_fetch", "job_id": "a-1", "priority": "T0", "symbols": ["AAPL"]}'


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {_quoted(twice)} occurs more than once")
    return fields


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _kind_in(fields: Mapping[str, Any]) -> JobKind:
    expected = f"expected one of {', '.join(JobKind)}"
    if "type" not in fields:
        near = difflib.get_close_matches("type", [str(name) for name in fields], 1)
        raise InvalidInputError(f"type is missing: {expected}{f'; {_quoted(near[0])} is not known' if near else ''}")
    kind = fields["type"]
    if isinstance(kind, str):
        if kind in set(JobKind):
            return JobKind(kind)
        near = difflib.get_close_matches(kind[:_QUOTED_AT_MOST].lower().replace("-", "_"), list(JobKind), 1, 0.5)
        if near:
            raise InvalidInputError(f"type: {_quoted(kind)} is no kind of job: {expected}; did you mean '{near[0]}'?")
    raise InvalidInputError(f"type: {_quoted(kind)} is no kind of job: {expected}")


def _told(error: ErrorDetails, known: Sequence[str]) -> str:
    """One of pydantic's errors in our words. A rule about several fields names them itself."""
    name = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] == "missing":
        return f"{name} is missing"
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name[:_QUOTED_AT_MOST].lower(), known, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"expected only {', '.join(known)}"
        return f"{_quoted(name)} is not a field of it: {hint}"
    said = str(error.get("ctx", {}).get("error", error["msg"]))
    return f"{name}: {said}" if name else said


def _first_of(problems: Sequence[str]) -> str:
    more = len(problems) - _TOLD_AT_MOST
    return "; ".join(problems[:_TOLD_AT_MOST]) + (f"; and {more:,} more" if more > 0 else "")
