"""How log lines look and what may stand in them: one line a fact, with the ids of what it is about, and no secret.

Whoever has something to say calls the standard library's ``logging`` and names in ``extra`` what a machine would ask for. How it
is shown is decided here, where a process starts.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from market_data_pipeline.domain.redaction import HIDDEN, redact

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping
    from types import TracebackType

    from market_data_pipeline.settings import Settings

    _Raised = tuple[type[BaseException], BaseException, TracebackType | None]

OURS = "market_data_pipeline"
LONGEST_TEXT = 8 << 10
# A text that secrets were taken from may end in half of one: of what was cut, this much more goes.
_LONGEST_KEY = 256
# What logging puts into every record; the rest came with ``extra``. Dagster's marks are its own affair.
_OF_EVERY_RECORD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_OF_DAGSTER = "dagster_"

_BOUND: ContextVar[Mapping[str, str | int]] = ContextVar("names in log lines", default=MappingProxyType({}))


@contextmanager
def bound(**names: str | int | None) -> Iterator[None]:
    """Put these into every log line of the block, also of threads that are started with its context. None: not known."""
    token = _BOUND.set({**_BOUND.get(), **{name: value for name, value in names.items() if value is not None}})
    try:
        yield
    finally:
        _BOUND.reset(token)


def configure(settings: Settings, *, least: str | None = None, ours_alone: bool = False) -> Callable[[], None]:
    """Show log lines on standard error as ``settings`` say, and return what undoes it. Repeating it replaces what it did before.

    ``least``: the least level instead of MDP_LOG_LEVEL. Other people's libraries are heard from warnings on. ``ours_alone``: in
    Dagster's processes, which show everything else themselves, and our lines of a run, too, as text on the run's page.
    """
    from market_data_pipeline.settings import secrets_of  # noqa: PLC0415 - `mdp --help` must not wait for pydantic

    _undo()
    secrets = secrets_of(settings)
    handler = _Lines(ours_alone=ours_alone and settings.log_format == "text")
    handler.setFormatter(_Formatter(settings.log_format, secrets))
    logging.getLogger(OURS if ours_alone else None).addHandler(handler)
    logging.getLogger(OURS).setLevel((least or settings.log_level).upper())
    logging.setLogRecordFactory(_Discreet(secrets))
    return _undo


def configure_when_needed() -> Callable[[], None]:
    """Show warnings of this process, or what MDP_LOG_LEVEL asks for, from the first of them on; what it returns undoes it.

    For commands that say by themselves what they have to say: until something is logged it costs nothing.
    """
    root = logging.getLogger()
    if not any(isinstance(handler, _Lines | _Unconfigured) for handler in root.handlers):
        root.addHandler(_Unconfigured())
    # A word that is no level is refused with all other settings, by who reads them.
    named = logging.getLevelName(os.environ.get("MDP_LOG_LEVEL", "warning").upper())
    logging.getLogger(OURS).setLevel(named if isinstance(named, int) else logging.WARNING)
    return _undo


def _undo() -> None:
    for logger in (logging.getLogger(), logging.getLogger(OURS)):
        for handler in [handler for handler in logger.handlers if isinstance(handler, _Lines | _Unconfigured)]:
            logger.removeHandler(handler)
    logging.getLogger(OURS).setLevel(logging.NOTSET)
    factory = logging.getLogRecordFactory()
    if isinstance(factory, _Discreet):
        logging.setLogRecordFactory(factory.theirs)


class _Unconfigured(logging.Handler):
    """Waits for the first record, and gives it to what ``configure`` makes of the settings."""

    def emit(self, record: logging.LogRecord) -> None:
        from market_data_pipeline.domain.errors import ConfigurationError  # noqa: PLC0415 - see configure_when_needed
        from market_data_pipeline.settings import Settings  # noqa: PLC0415

        try:
            settings = Settings.from_environment()
        except ConfigurationError:
            # The command itself says so.
            settings = Settings.model_construct()
        configure(settings, least=None if "log_level" in settings.model_fields_set else "warning")
        for handler in logging.getLogger().handlers:
            if isinstance(handler, _Lines):
                handler.handle(record)


class _Lines(logging.StreamHandler[Any]):
    """Writes to whatever standard error is at the time: tests and Dagster put another one in its place."""

    def __init__(self, *, ours_alone: bool) -> None:
        logging.Handler.__init__(self)
        self._leaves_runs = ours_alone

    @property
    def stream(self) -> Any:  # noqa: ANN401 - as in logging
        """Standard error."""
        return sys.stderr

    @stream.setter
    def stream(self, stream: Any) -> None:  # noqa: ANN401 - StreamHandler has a setter
        raise AttributeError(f"log lines go to standard error, not to {stream!r}")

    def filter(self, record: logging.LogRecord) -> bool:
        """All but what Dagster has taken for a run's page: it is on standard error already, in Dagster's words."""
        if self._leaves_runs and hasattr(record, "dagster_meta"):
            return False
        return super().filter(record)


class _Discreet:
    """Makes records. Our own are redacted before any handler, Dagster's included, can see them, and hold no exception any more.

    An exception brings those that it came from, with URLs and parameters in their messages: what is left is the class, the redacted
    message and the places of the last one.
    """

    def __init__(self, secrets: Collection[str]) -> None:
        self.theirs, self._secrets = logging.getLogRecordFactory(), secrets

    def __call__(self, *given: Any, **more: Any) -> logging.LogRecord:  # noqa: ANN401 - as in logging
        record = self.theirs(*given, **more)
        # makeLogRecord gives no name.
        if not record.name or record.name.partition(".")[0] != OURS:
            return record
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - the arguments do not fit the text: a bug, and no reason to end the work that it is in
            message = f"{record.msg} (this line's arguments do not fit it)"
        if record.exc_info is not None and record.exc_info[0] is not None:
            message = f"{message}: {record.exc_info[0].__name__}: {' '.join(str(record.exc_info[1]).split())}"
            record.exc_text, record.exc_info = told(record.exc_info, self._secrets), None
        record.msg, record.args = discreet(message, self._secrets), ()
        return record


class _Formatter(logging.Formatter):
    """Renders with structlog, which takes a tenth of a second to import: for the first record, not before."""

    def __init__(self, shape: str, secrets: Collection[str]) -> None:
        super().__init__()
        self._shape, self._secrets = shape, secrets
        self._render: Callable[[object, str, MutableMapping[str, Any]], str | bytes] | None = None

    def format(self, record: logging.LogRecord) -> str:
        """One line, and under it, in text, where an exception came from."""
        if self._render is None:
            self._render = _renderer(self._shape)
        return str(self._render(None, record.levelname.lower(), facts_of(record, self._secrets)))


def _renderer(shape: str) -> Callable[[object, str, MutableMapping[str, Any]], str | bytes]:
    import structlog  # noqa: PLC0415 - see _Formatter

    if shape == "json":
        return structlog.processors.JSONRenderer(ensure_ascii=False)
    return structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), pad_event_to=0, sort_keys=False, timestamp_key="time", event_key="message"
    )


def facts_of(record: logging.LogRecord, secrets: Collection[str] = ()) -> dict[str, Any]:
    """What a line says, in order: time (UTC), level, logger, message, the names bound around it, its own, and an exception."""
    dagster = getattr(record, "dagster_meta", None)
    # Dagster writes its own names before the message, for everybody who comes after it.
    message = dagster["orig_message"] if dagster else record.getMessage()
    facts: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": discreet(message, secrets),
    }
    if dagster:
        facts |= {name: dagster[name] for name in ("run_id", "step_key") if dagster.get(name)}
    own = {n: v for n, v in record.__dict__.items() if n not in _OF_EVERY_RECORD and not n.startswith((_OF_DAGSTER, "_"))}
    for name, value in {**_BOUND.get(), **own}.items():
        facts[name] = value if isinstance(value, int | float | bool) or value is None else discreet(str(value), secrets)
    if record.exc_info is not None and record.exc_info[0] is not None:
        facts["exception"] = told(record.exc_info, secrets)
    elif record.exc_text:
        facts["exception"] = discreet(record.exc_text, secrets, lines=True)
    return facts


def discreet(text: str, secrets: Collection[str], *, lines: bool = False) -> str:
    """``text`` redacted and then cut, in characters that a terminal prints and that begin no line of their own.

    ``lines``: it may have several.
    """
    is_long = len(text) > 2 * LONGEST_TEXT
    if is_long:
        # The values of secrets in all of it. The patterns are slow on long texts: they see twice as much as is shown.
        text = _without(text, secrets)[: 2 * LONGEST_TEXT]
    shown = redact(text, secrets)
    if is_long and len(shown) <= LONGEST_TEXT:
        shown = f"{shown[:-_LONGEST_KEY]}…"
    elif len(shown) > LONGEST_TEXT:
        shown = f"{shown[:LONGEST_TEXT]}…"
    if shown.isprintable():
        return shown
    return "".join(
        c if c.isprintable() or (lines and c == "\n") else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in shown
    )


def _without(text: str, secrets: Collection[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def told(raised: Any, secrets: Collection[str]) -> str:  # noqa: ANN401 - exc_info, as logging has it
    """An exception without those it came from: their messages hold URLs. Places and source lines, no values."""
    lines = traceback.TracebackException(*raised, compact=True).format(chain=False)
    return discreet("".join(lines).rstrip(), secrets, lines=True)
