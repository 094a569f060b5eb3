"""kill -9 in the middle of a backfill, of the worker, Postgres or everything: the same command again ends in the same tables."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import date
from typing import TYPE_CHECKING

import numpy as np
import orjson
import psutil
import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.simulator.client import running_simulator
from market_data_pipeline_tests.stack import Running, a_home, a_stack, kill
from market_data_pipeline_tests.world import SATURDAY, expected_opens, write_bars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FIRST, LAST = date(2024, 11, 11), date(2024, 12, 6)
SYMBOLS = ("ALFA", "BETA", "CARL", "DORA")
MINUTES = expected_opens(Interval.M1, FIRST, LAST)
TOTAL = len(SYMBOLS) * len(MINUTES)
# Long enough for the commit every two seconds to come several times, and to be killed between two of them.
SLOWLY = {"match": {}, "action": "stall", "seconds": 0.6}
BACKFILL = ("backfill", "--all", "--interval", "1m", "--start", str(FIRST), "--end", str(LAST))
PATIENCE = 150.0


@pytest.fixture
def running() -> Iterator[Running]:
    with a_home() as home:
        data = home / "data"
        for place, symbol in enumerate(SYMBOLS):
            write_bars(data, symbol, Interval.M1, MINUTES, close=10.0 * (place + 1))
        (home / "universe.csv").write_text("symbol,exchange,tier\n" + "".join(f"{symbol},XNAS,T0\n" for symbol in SYMBOLS))
        with running_simulator(data=data, now=SATURDAY, faults=[SLOWLY]) as simulator:
            told = {"MDP_CLOCK": simulator.control, "MDP_YAHOO_BASE_URL": simulator.yahoo, "MDP_REQUESTS_IN_FLIGHT": "1"}
            with a_stack(home, told) as stack:
                assert stack.mdp("universe", "load", str(home / "universe.csv")).returncode == 0
                yield stack


def workers(stack: Running) -> list[psutil.Process]:
    return [psutil.Process(pid) for (pid,) in stack.rows("select pid from run_heartbeats") if isinstance(pid, int)]


def postgres(stack: Running) -> list[psutil.Process]:
    found = []
    for process in stack.processes():
        # Backends come and go while we look.
        with suppress(psutil.NoSuchProcess):
            if process.name() == "postgres":
                found.append(process)
    return found


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


# Two backfills and two starts of everything, beside other tests on two cores.
@pytest.mark.timeout(600)
@pytest.mark.parametrize("victims", [workers, postgres, everything])
def test_after_a_kill_the_same_command_ends_in_the_tables_of_an_undisturbed_run(
    running: Running, victims: Callable[[Running], list[psutil.Process]]
) -> None:
    first = running.start(*BACKFILL)
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
    logs = running.files()
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
