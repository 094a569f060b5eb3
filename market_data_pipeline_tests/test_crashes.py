"""kill -9 in the middle of a backfill, of the worker, Postgres or everything: the same command again ends in the same tables."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import orjson
import psutil
import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.settings import Settings
from market_data_pipeline.simulator.client import running_simulator
from market_data_pipeline.storage.database import database_url, open_engine
from market_data_pipeline_tests.conftest import roomy_memory
from market_data_pipeline_tests.world import SATURDAY, expected_opens, write_bars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

FIRST, LAST = date(2024, 11, 11), date(2024, 12, 6)
SYMBOLS = ("ALFA", "BETA", "CARL", "DORA")
MINUTES = expected_opens(Interval.M1, FIRST, LAST)
TOTAL = len(SYMBOLS) * len(MINUTES)
# Long enough for the commit every two seconds to come several times, and to be killed between two of them.
SLOWLY = {"match": {}, "action": "stall", "seconds": 0.6}
BACKFILL = ("backfill", "--all", "--interval", "1m", "--start", str(FIRST), "--end", str(LAST))
PATIENCE = 150.0


@dataclass(frozen=True)
class Running:
    """A whole stack on a slow provider."""

    home: Path
    environment: Mapping[str, str]

    def mdp(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), env=self.environment, capture_output=True, text=True, check=False, timeout=200
        )

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "market_data_pipeline.cli.main", *arguments]

    def start_backfill(self) -> subprocess.Popen[bytes]:
        quiet = subprocess.DEVNULL
        return subprocess.Popen(self.command(*BACKFILL), env=self.environment, stdin=quiet, stdout=quiet, stderr=quiet)

    def processes(self) -> list[psutil.Process]:
        """Every process of this stack, the database's included."""
        mine = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("MDP_HOME") == str(self.home) or str(self.home) in process.cwd():
                    mine.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return mine

    def rows(self, query: str) -> list[tuple[object, ...]]:
        engine = open_engine(database_url(Settings(home=self.home)))
        try:
            with engine.connect() as connection:
                return [tuple(row) for row in connection.exec_driver_sql(query)]
        finally:
            engine.dispose()


@pytest.fixture
def running() -> Iterator[Running]:
    home = Path(tempfile.mkdtemp(prefix="mdp-crash-", dir=roomy_memory()))
    home.chmod(0o711)
    data = home / "data"
    for place, symbol in enumerate(SYMBOLS):
        write_bars(data, symbol, Interval.M1, MINUTES, close=10.0 * (place + 1))
    (home / "universe.csv").write_text("symbol,exchange,tier\n" + "".join(f"{symbol},XNAS,T0\n" for symbol in SYMBOLS))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with running_simulator(data=data, now=SATURDAY, faults=[SLOWLY]) as simulator:
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("MDP_", "DAGSTER_"))}
        environment = {
            **ours,
            "MDP_HOME": str(home),
            "MDP_DAGSTER_URL": f"http://127.0.0.1:{port}",
            "MDP_CLOCK": simulator.control,
            "MDP_YAHOO_BASE_URL": simulator.yahoo,
            "MDP_REQUESTS_IN_FLIGHT": "1",
        }
        stack = Running(home, environment)
        try:
            assert stack.mdp("up").returncode == 0
            assert stack.mdp("universe", "load", str(home / "universe.csv")).returncode == 0
            yield stack
        finally:
            stack.mdp("down")
            kill(stack.processes())
            shutil.rmtree(home, ignore_errors=True)


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        # Children of Postgres end by themselves once it is gone.
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(processes, timeout=10)


def workers(stack: Running) -> list[psutil.Process]:
    return [psutil.Process(pid) for (pid,) in stack.rows("select pid from run_heartbeats") if isinstance(pid, int)]


def postgres(stack: Running) -> list[psutil.Process]:
    return [process for process in stack.processes() if process.name() == "postgres"]


def everything(stack: Running) -> list[psutil.Process]:
    return stack.processes()


def wait_until_half_done(stack: Running) -> int:
    """The rows stored once some are and some are not; an assertion where it never happens."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        [(stored,)] = stack.rows("select count(*) from candles_intraday where interval_s = 60")
        assert isinstance(stored, int)
        if 0 < stored < TOTAL:
            return stored
        assert stored < TOTAL, "the backfill was over before it could be interrupted"
        pause()
    raise AssertionError("the backfill never stored anything")


def pause() -> None:
    time.sleep(0.1)  # noqa: TID251 - polling other processes


@pytest.mark.parametrize("victims", [workers, postgres, everything])
def test_after_a_kill_the_same_command_ends_in_the_tables_of_an_undisturbed_run(
    running: Running, victims: Callable[[Running], list[psutil.Process]]
) -> None:
    first = running.start_backfill()
    try:
        wait_until_half_done(running)
        doomed = victims(running)
        assert doomed
        kill(doomed)
        if victims is workers:
            first.wait(PATIENCE)
    finally:
        first.kill()
        first.wait()
    assert running.mdp("up").returncode == 0
    again = running.mdp(*BACKFILL)
    assert again.returncode == 0, again.stdout + again.stderr

    stored = running.rows(
        "select symbol, extract(epoch from opened_at)::int8, open, high, low, close, volume"
        "  from candles_intraday join symbol_universe using (symbol_id) where interval_s = 60 order by symbol, opened_at"
    )
    assert stored == [bar for place, symbol in enumerate(SYMBOLS) for bar in bars_of(symbol, 10.0 * (place + 1))]
    assert running.rows("select count(*) from candle_revisions") == [(0,)]
    assert running.rows("select bool_and(bit_count(present) = expected) from coverage") == [(True,)]
    derived = running.rows("select interval_s, count(*) from candles_intraday where interval_s > 60 group by 1 order by 1")
    assert derived == [(seconds, TOTAL * 60 // seconds) for seconds in (300, 900, 1800)]
    password = (running.home / "postgres" / "password").read_bytes().strip()
    logs = [path for folder in ("logs", "dagster", "run") for path in (running.home / folder).rglob("*") if path.is_file()]
    assert logs
    assert [path for path in logs if password in path.read_bytes()] == []
    lines = orjson.loads(running.mdp("coverage", "--start", str(FIRST), "--end", str(LAST), "--json").stdout)
    assert {line["counts"]["present"] - line["expected"] for line in lines if line["interval"] != "1h"} <= {0}


def bars_of(symbol: str, close: float) -> list[tuple[object, ...]]:
    """What write_bars wrote, as it arrives over a wire of 32-bit floats."""

    def wire(price: float) -> float:
        return float(np.float32(price))

    prices = [close + place / 100 for place in range(len(MINUTES))]
    return [
        (symbol, at, wire(price - 0.5), wire(price + 1), wire(price - 1), wire(price), float(100 + place))
        for place, (at, price) in enumerate(zip(MINUTES, prices, strict=True))
    ]
