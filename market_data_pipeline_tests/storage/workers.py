"""A process of its own, for tests of what many share: connected, it waits for a line on its input, then does as it was told."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.capabilities import Lane, Priority, parse_limits
from market_data_pipeline.domain.errors import BudgetSpentError, RateLimitedError
from market_data_pipeline.domain.health import HealthPolicy, Outcome
from market_data_pipeline.domain.ports import Fetch
from market_data_pipeline.providers.http import HttpClient, HttpPolicy
from market_data_pipeline.storage.budgets import PostgresBudget
from market_data_pipeline.storage.database import open_engine
from market_data_pipeline.storage.fetches import FetchStore
from market_data_pipeline.storage.health import HealthBook

if TYPE_CHECKING:
    from collections.abc import Iterator

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
AFTER_THE_COOL_DOWN = NOON + timedelta(seconds=61)


class Process:
    """One worker, connected and waiting to be told."""

    def __init__(self, *arguments: str, database_url: str) -> None:
        command = [sys.executable, "-m", "market_data_pipeline_tests.storage.workers", *arguments]
        environment = {**os.environ, "WORKER_DATABASE_URL": database_url}
        self.popen = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def line(self) -> str:
        """The next line that it prints."""
        assert self.popen.stdout is not None
        return self.popen.stdout.readline().strip()

    def go(self) -> None:
        """Tell it to begin."""
        assert self.popen.stdin is not None
        self.popen.stdin.write("\n")
        self.popen.stdin.flush()

    def kill(self) -> None:
        """kill -9."""
        self.popen.kill()
        self.popen.wait(20)


@contextmanager
def processes(count: int, *arguments: str, database_url: str) -> Iterator[list[Process]]:
    """``count`` workers that are ready to begin at the same time; killed at the end, if they still live."""
    started = [Process(*arguments, database_url=database_url) for _ in range(count)]
    try:
        for process in started:
            assert process.line() == "ready"
        yield started
    finally:
        for process in started:
            process.kill()
            for pipe in (process.popen.stdin, process.popen.stdout):
                assert pipe is not None
                pipe.close()


def together(count: int, *arguments: str, database_url: str) -> list[list[str]]:
    """What each of ``count`` workers, begun at the same time, says as its last line, in words."""
    with processes(count, *arguments, database_url=database_url) as started:
        for process in started:
            process.go()
        return [process.line().split() for process in started]


def _say(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201 - a pipe to the test


def _ready() -> None:
    _say("ready")
    sys.stdin.readline()


def _trial(book: HealthBook) -> None:
    """How many trials it is given in a hundred questions."""
    book.admit("yahoo", "bars_1m", now=NOON)
    _ready()
    _say(sum(book.admit("yahoo", "bars_1m", now=AFTER_THE_COOL_DOWN).is_trial for _ in range(100)))


def _record(book: HealthBook, kind: str, count: str) -> None:
    """Record ``count`` outcomes; says how many."""
    _ready()
    for _ in range(int(count)):
        book.record("yahoo", "bars_1m", Outcome(kind, 0.25, expected=10, received=5), now=NOON)
    book.flush()
    _say(count)


def _go_on(book: HealthBook) -> None:
    """A success every tenth of a second of its own clock, for ever, each told to the test."""
    _ready()
    book.record("yahoo", "bars_1m", Outcome("transient", 0.25, attempts=4, detail="HTTP 503"), now=NOON)
    recorded = 0
    while True:
        book.record("yahoo", "bars_1m", Outcome("ok", 0.25), now=NOON)
        recorded += 1
        _say(recorded)


def _send(budget: PostgresBudget, url: str, seconds: str, lane: str, threads: str, pause: str = "0") -> None:
    """Ask ``url`` as fast as the budget allows for ``seconds``, in ``threads``, each with a ``pause`` between its requests.

    Says how many were sent, how many were refused, and the longest wait for leave to send.
    """
    # Of its deadline a request waits half for leave, at most.
    policy = HttpPolicy(deadline_seconds=2 * float(seconds), connections=int(threads))
    with HttpClient(policy, budget=budget) as http, ThreadPoolExecutor(int(threads)) as pool:
        http.get(url, provider="nobody")  # the first request pays for imports and the connection
        _ready()
        end = time.monotonic() + float(seconds)
        told = list(pool.map(lambda _: _send_until(end, http, url, Priority(Lane(lane)), float(pause)), range(int(threads))))
    _say(sum(sent for sent, _, _ in told), sum(refused for _, refused, _ in told), max(longest for _, _, longest in told))


def _send_until(end: float, http: HttpClient, url: str, priority: Priority, pause: float) -> tuple[int, int, float]:
    sent, refused, longest = 0, 0, 0.0
    while (began := time.monotonic()) < end:
        try:
            answer = http.get(url, provider="yahoo", priority=priority)
        except BudgetSpentError:
            break
        except RateLimitedError:
            refused += 1
        else:
            longest = max(longest, time.monotonic() - began - answer.latency_seconds)
        sent += 1
        threading.Event().wait(pause)
    return sent, refused, longest


def _fetches(store: FetchStore, count: str) -> None:
    """Record ``count`` answers, a transaction each, of whoever and however they may end; says how many."""
    a_fetch = Fetch("yahoo", "AAPL", Interval.M1, "/", NOON, 0.1, "ok", status=200, rows=3)
    outcomes = ("ok", "transient", "barren")
    _ready()
    for number in range(int(count)):
        provider = ("yahoo", "alpaca")[number % 2]
        answer = replace(a_fetch, provider=provider, outcome=outcomes[number % 3], latency_seconds=number % 40, rows=number % 5)
        store.record([(None, answer)])
    _say(count)


def _ticking() -> Iterator[float]:
    tenths = 0
    while True:
        yield tenths / 10
        tenths += 1


def main() -> None:
    """Do as told."""
    command, *arguments = sys.argv[1:]
    engine = open_engine(os.environ["WORKER_DATABASE_URL"])
    if command == "send":
        limits, *rest = arguments
        _send(PostgresBudget(engine, parse_limits(limits)), *rest)
    elif command == "fetches":
        _fetches(FetchStore(engine), *arguments)
    elif command == "go_on":
        ticks = _ticking()
        _go_on(HealthBook(engine, HealthPolicy(), clock=lambda: next(ticks)))
    else:
        book = HealthBook(engine, HealthPolicy())
        _trial(book) if command == "trial" else _record(book, *arguments)


if __name__ == "__main__":
    main()
