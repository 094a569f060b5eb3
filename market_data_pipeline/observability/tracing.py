"""Profiles of what a process did, call by call, by VizTracer: ``with maybe_trace("label")``. Off, it costs a call and no more."""

from __future__ import annotations

import logging
import os
import re
import threading
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from market_data_pipeline.domain.errors import ConfigurationError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path
    from types import TracebackType

    from market_data_pipeline.settings import Settings

# The newest function calls of a block: some 19 MB of JSON. What is older is lost, and the file says so.
MOST_ENTRIES = 100_000
# A gigabyte in all: a traced run a minute would fill the disk in a day.
FILES_KEPT = 50
_LONGEST_LABEL = 60
_FILE = re.compile(r"\d{8}T\d{6}\.\d{6}Z-[a-z0-9_-]+-\d+\.json")

logger = logging.getLogger(__name__)


@cache
def _off() -> AbstractContextManager[None]:
    return nullcontext()


@cache
def _folder_of_this_process() -> Path | None:
    from market_data_pipeline.settings import Settings  # noqa: PLC0415 - `mdp --help` must not wait for pydantic

    return folder_of(Settings.from_environment())


def folder_of(settings: Settings) -> Path | None:
    """Where ``settings`` want traces to be written; None: none."""
    if not settings.viztracer_enabled:
        return None
    return settings.viz_out_dir or settings.home / "traces"


def maybe_trace(label: str, settings: Settings | None = None) -> AbstractContextManager[Path | None]:
    """Record the calls of the block, and write them when it ends; its value is the file that will hold them, None where off.

    On with MDP_VIZTRACER_ENABLED, which is read from ``settings`` or, where there are none, from the environment, once a process.
    The file is ``<UTC>-<label>-<pid>.json`` under MDP_VIZ_OUT_DIR, readable by its owner alone; the newest fifty stay. It holds
    names of functions, threads and files, and times: no argument, no value, no line of source. VizTracer sees a whole process, all
    its threads: a block within a block, or beside it, is an event in the file of the first and has no file of its own.

    Trouble with tracing is logged and never reaches the work; but where it is on and VizTracer is not installed, that is a
    ConfigurationError.
    """
    folder = _folder_of_this_process() if settings is None else folder_of(settings)
    return _off() if folder is None else _Traced(folder, label)


@dataclass(eq=False)
class _OfThisProcess:
    """The tracer that is running, if any: VizTracer has one profile function for the whole process."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    tracer: Any = None


_RUNNING = _OfThisProcess()


class _Traced:
    """One traced block."""

    def __init__(self, folder: Path, label: str) -> None:
        self._label = re.sub(r"[^a-z0-9_]+", "-", label.lower())[:_LONGEST_LABEL].strip("-") or "trace"
        self._folder = folder
        self._path: Path | None = None
        self._mine: Any = None
        self._event: Any = None

    def __enter__(self) -> Path | None:
        try:
            # Only here, since most processes never trace.
            from viztracer import VizTracer  # noqa: PLC0415
        except ImportError as missing:
            told = "MDP_VIZTRACER_ENABLED is on, and traces need the extra `tracing`: pip install 'market-data-pipeline[tracing]'"
            raise ConfigurationError(f"{told} ({missing})") from missing
        try:
            with _RUNNING.lock:
                if _RUNNING.tracer is not None:
                    self._event = _RUNNING.tracer.log_event(self._label)
                else:
                    self._path = self._reserved()
                    self._mine = _RUNNING.tracer = _tracer(VizTracer)
            if self._event is not None:
                self._event.__enter__()
            else:
                self._mine.start()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no reason not to do the work
            self._give_up("not begun", error)
        return self._path

    def __exit__(self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self._event is not None:
                self._event.__exit__(None, None, None)
            elif self._mine is not None and self._path is not None:
                self._write(self._path)
        except Exception as error:  # noqa: BLE001 - as above
            self._give_up("lost", error)
        finally:
            self._end()

    def _reserved(self) -> Path:
        """An empty file for the trace, ours alone: a disk that is full or not ours is noticed before the work, not after it."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        path = self._folder / f"{stamp}-{self._label}-{os.getpid()}.json"
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        return path

    def _write(self, path: Path) -> None:
        self._mine.stop()
        # Written into the file that is there already, so its mode stays.
        self._mine.save(str(path), file_info=False, verbose=0)
        logger.info("trace of %s: %s, %d KiB", self._label, path, path.stat().st_size >> 10, extra={"trace": str(path)})
        for old in sorted(p for p in self._folder.iterdir() if _FILE.fullmatch(p.name))[:-FILES_KEPT]:
            old.unlink(missing_ok=True)

    def _give_up(self, what: str, error: Exception) -> None:
        logger.warning("the trace of %s was %s; the work goes on", self._label, what, exc_info=error)
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink()
        self._path = None
        self._end()

    def _end(self) -> None:
        mine, self._mine = self._mine, None
        if mine is None:
            return
        with suppress(Exception):
            mine.stop()
            mine.terminate()
        with _RUNNING.lock:
            if _RUNNING.tracer is mine:
                _RUNNING.tracer = None


def _tracer(make: Any) -> Any:  # noqa: ANN401 - VizTracer, imported where it is used
    return make(
        tracer_entries=MOST_ENTRIES,
        verbose=0,
        # Calls into C are most of all and say the least.
        ignore_c_function=True,
        # Each of these would write values, or source, into the file.
        log_func_args=False,
        log_func_retval=False,
        log_print=False,
        file_info=False,
        # It would answer to get_tracer() in other people's code, which may log what it likes.
        register_global=False,
    )
