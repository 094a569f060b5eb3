"""A market whose clock runs and `mdp collect` as a process on it, for the tests of live collection."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.simulator.client import running_simulator
from market_data_pipeline_tests.cli.builders import pipeline_of, universe_file
from market_data_pipeline_tests.cli.conftest import Mdp
from market_data_pipeline_tests.world import FRIDAY, UNLIMITED, expected_opens, write_bars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from market_data_pipeline.simulator.client import RunningSimulator

SYMBOLS = ("AAPL", "IBM", "MSFT")
# Friday 2024-12-06, an hour after the open of New York.
OPEN = datetime(2024, 12, 6, 15, 30, 5, tzinfo=UTC)
PATIENCE = 60.0
pause = threading.Event().wait


@contextmanager
def running_market(data: Path) -> Iterator[RunningSimulator]:
    """A Friday of three shares, on a clock that runs."""
    for place, symbol in enumerate(SYMBOLS):
        write_bars(data, symbol, Interval.M1, expected_opens(Interval.M1, FRIDAY, FRIDAY), close=100.0 * (place + 1))
    (data / "universe.csv").write_text("symbol,exchange\n" + "".join(f"{symbol},XNAS\n" for symbol in SYMBOLS))
    with running_simulator(data=data, now=OPEN, speed=1.0, limits=UNLIMITED) as started:
        yield started


def follower(mdp: Mdp, simulator: RunningSimulator) -> Mdp:
    """`mdp` that lives at the simulator: two symbols of T0 and one of T1, quotes and minutes of Alpaca's, many in a request."""
    told = {
        **mdp.environment,
        **simulator.environment(),
        "MDP_LIMITS": UNLIMITED,
        "MDP_POLICY_QUOTES_L1": "alpaca",
        "MDP_POLICY_BARS_1M": "alpaca",
        "MDP_QUOTES_EVERY_SECONDS": "T0=0.4,T1=1.2,T2=0",
        "MDP_BARS_EVERY_SECONDS": "T0=1,T1=0,T2=0",
    }
    there = Mdp(told, mdp.home)
    there("universe", "load", universe_file(mdp.home, "symbol,exchange,tier\nAAPL,XNAS,T0\nIBM,XNAS,T1\nMSFT,XNAS,T0\n"))
    return there


@dataclass
class Collector:
    """A running `mdp collect`; ``said`` grows as it speaks."""

    process: subprocess.Popen[str]
    said: list[str]
    reader: threading.Thread

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        self.reader.join(PATIENCE)
        return code

    def saying(self, words: str) -> Callable[[], bool]:
        return lambda: any(words in line for line in self.said)


@contextmanager
def collecting(mdp: Mdp, *arguments: str, **variables: str) -> Iterator[Collector]:
    """`mdp collect` in a process of its own, killed at the end if nothing else ended it."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("MDP_")}
    told = {f"MDP_{name.upper()}": value for name, value in variables.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "market_data_pipeline.cli.main", "collect", *arguments],
        env={**ours, **mdp.environment, **told},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said: list[str] = []

    def read_lines() -> None:
        assert process.stdout is not None
        said.extend(line.rstrip() for line in process.stdout)

    reader = threading.Thread(target=read_lines, daemon=True)
    reader.start()
    try:
        yield Collector(process, said, reader)
    finally:
        process.kill()
        process.wait(PATIENCE)
        reader.join(PATIENCE)
        if process.stdout is not None:
            process.stdout.close()


def until(condition: Callable[[], bool], collector: Collector | None = None) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, collector and collector.said
        assert collector is None or collector.process.poll() is None, collector.said
        pause(0.05)


def asked(simulator: RunningSimulator) -> Counter[tuple[str, str]]:
    """Requests by capability and the symbols they were for."""
    return Counter((entry["capability"], entry["symbol"] or "") for entry in simulator.requests())


def has_asked(simulator: RunningSimulator, capability: str, symbols: str, times: int) -> Callable[[], bool]:
    return lambda: asked(simulator)[capability, symbols] >= times


def rows(mdp: Mdp, query: str) -> list[Mapping[str, Any]]:
    with pipeline_of(mdp) as pipeline, pipeline.engine.connect() as connection:
        return [dict(row) for row in connection.exec_driver_sql(query).mappings()]
