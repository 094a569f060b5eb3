"""`mdp demo`: the main job from nothing to a coverage table, by the commands a user would type, on simulated data."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import orjson

from market_data_pipeline.domain.errors import InvalidInputError, MarketDataError, UnavailableError
from market_data_pipeline.simulator.client import variables
from market_data_pipeline.simulator.vendor import FREE
from market_data_pipeline.storage.embedded import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import Iterator

FIRST, LAST = "2024-11-25", "2024-12-06"
# The range holds Thanksgiving and the half day after it; by the Saturday after it every session is over and due.
NOW = "2024-12-07T12:00:00Z"
# An hour passes in half a minute: the waits between attempts, a quarter of an hour and an hour, fit in the demo.
SPEED = 120
# Crypto trades on while virtual time passes; with data for these days, the intraday schedule finds what it asks for.
SAMPLE_END = "2024-12-09"
SEED = 7
_MARKER = "this-is-a-demo"


@dataclass(frozen=True, slots=True)
class _Demo:
    home: Path

    @property
    def data(self) -> Path:
        return self.home / "sample"

    def environment(self, urls: dict[str, str], port: int) -> dict[str, str]:
        """What the pipeline must be told to live on the simulator's data and in its time."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith("MDP_")}
        return {
            **ours,
            "MDP_HOME": str(self.home),
            "MDP_DAGSTER_URL": f"http://127.0.0.1:{port}",
            # Of every provider, those without a key included: nothing of the demo may leave this machine.
            **{name: url for name, url in variables(urls, urls["control"], plan=FREE).items() if name.endswith("_URL")},
            "MDP_CLOCK": urls["control"],
            # The simulated Yahoo refuses nobody; ours would spread the requests over half a minute.
            "MDP_LIMITS": "yahoo=none",
            "MDP_HEAL_EVERY_SECONDS": "5",
            # A stalled request costs the demo this long before it is tried again.
            "MDP_HTTP_TIMEOUT_SECONDS": "3",
        }


@click.command()
@click.option(
    "--home", type=click.Path(path_type=Path, file_okay=False), default=Path(".mdp-demo"), show_default=True, help="Where it lives."
)
@click.option("--serve", is_flag=True, help="Start what an earlier demo made, with Dagster's UI, until Ctrl-C.")
@click.option(
    "--patience", type=click.IntRange(10), default=150, show_default=True, help="Seconds to wait for the holes to be healed."
)
def demo(home: Path, *, serve: bool, patience: int) -> int:
    """Fetch, lose, find and heal candles of ten simulated symbols, and print the coverage.

    Example: mdp demo && mdp demo --serve
    """
    this = _Demo(home.absolute())
    if serve:
        return _serve(this)
    started = time.monotonic()
    _clear(this)
    with ExitStack() as stack:
        _say(f"sample data: ten symbols, {FIRST} to {LAST}, seed {SEED}")
        _mdp("sample", str(this.data), "--seed", str(SEED), "--start", FIRST, "--end", SAMPLE_END, environment=dict(os.environ))
        environment = stack.enter_context(_stack(this))
        _mdp("universe", "load", str(this.data / "universe.csv"), "--start", FIRST, environment=environment)
        _say("fetch: Dagster runs over every symbol, through a provider that loses, throttles, stalls and truncates")
        intervals = ("--interval", "1m", "--interval", "1h", "--interval", "1d")
        _mdp("backfill", "--all", *intervals, "--start", FIRST, "--end", LAST, environment=environment, may_find=True)
        _mdp("coverage", "--totals", "--start", FIRST, "--end", LAST, environment=environment)
        healed = _wait_until_healed(environment, patience)
        _say("what is stored now: one verdict for every expected bar")
        _mdp("coverage", "--start", FIRST, "--end", LAST, environment=environment)
        adds_up = _adds_up(environment)
    _say(f"finished in {time.monotonic() - started:.0f} s")
    _say(f"look at it in Dagster's UI:  mdp demo --serve --home {os.path.relpath(this.home)}")
    if not healed:
        click.echo("mdp: some bars are still missing; `mdp gaps --explain` on the served demo says why", err=True)
    return 0 if healed and adds_up else 1


def _serve(this: _Demo) -> int:
    if not (this.home / _MARKER).exists():
        raise InvalidInputError(f"no demo under {this.home}: run `mdp demo --home {this.home}` first")
    with _stack(this) as environment:
        _say(f"Dagster's UI: {environment['MDP_DAGSTER_URL']}/assets — Ctrl-C stops it")
        exports = " ".join(f"{name}={environment[name]}" for name in sorted(environment) if name.startswith("MDP_"))
        _say(f"to use it from another shell:\n   export {exports}")
        stopped = _signals(signal.SIGINT, signal.SIGTERM)
        signal.sigwait(stopped)
    return 0


def _signals(*which: signal.Signals) -> set[signal.Signals]:
    signal.pthread_sigmask(signal.SIG_BLOCK, which)
    return set(which)


@contextmanager
def _stack(this: _Demo) -> Iterator[dict[str, str]]:
    """A simulator and the whole stack on it; yields the environment to use them; everything is stopped at the end."""
    ready = this.home / "simulator.json"
    ready.unlink(missing_ok=True)
    where = ["--data", str(this.data), "--faults", str(this.data / "faults.yaml"), "--ready-file", str(ready)]
    command = [sys.executable, "-m", "market_data_pipeline.cli.main", "simulate", *where]
    command += ["--seed", str(SEED), "--now", NOW, "--speed", str(SPEED)]
    with (this.home / "simulator.log").open("wb") as log:
        # A session of its own: Ctrl-C is ours to act on, in order.
        simulator = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        environment = this.environment(_urls(ready, simulator, this.home / "simulator.log"), _free_port())
        _say(f"provider simulator at {environment['MDP_YAHOO_BASE_URL']}, {NOW}, {SPEED} times real pace")
        try:
            _mdp("up", environment=environment)
            yield environment
        finally:
            _mdp("down", environment=environment)
    finally:
        simulator.terminate()
        simulator.wait(10)


def _urls(ready: Path, simulator: subprocess.Popen[bytes], log: Path) -> dict[str, str]:
    deadline = time.monotonic() + 30
    while not ready.exists():
        if simulator.poll() is not None or time.monotonic() > deadline:
            raise UnavailableError(f"the simulator did not start: {log.read_text(errors='replace')[-500:]}")
        _pause(0.05)
    urls: dict[str, str] = orjson.loads(ready.read_bytes())
    return urls


def _wait_until_healed(environment: dict[str, str], patience: int) -> bool:
    """Watch the gap sensor work until nothing is missing; False when patience ran out."""
    _say("heal: the gap sensor asks again for what is missing; silence must repeat before it is believed")
    deadline, shown = time.monotonic() + patience, -1
    while time.monotonic() < deadline:
        gaps = orjson.loads(_output("gaps", "--start", FIRST, "--end", LAST, "--json", environment=environment))
        missing = sum(gap["bars"] for gap in gaps)
        if missing != shown:
            click.echo(f"   {missing:,} bars missing")
            shown = missing
        if not missing:
            return True
        _pause(2)
    return False


def _adds_up(environment: dict[str, str]) -> bool:
    lines = orjson.loads(_output("coverage", "--start", FIRST, "--end", LAST, "--json", environment=environment))
    return bool(lines) and all(sum(line["counts"].values()) == line["expected"] for line in lines)


def _mdp(*arguments: str, environment: dict[str, str], may_find: bool = False) -> None:
    click.echo(f"$ mdp {' '.join(arguments)}")
    code = subprocess.run(_command(arguments), env=environment, check=False).returncode
    if code != 0 and not (may_find and code == 1):
        raise MarketDataError(f"`mdp {arguments[0]}` ended with exit code {code}")


def _output(*arguments: str, environment: dict[str, str]) -> bytes:
    done = subprocess.run(_command(arguments), env=environment, check=False, stdout=subprocess.PIPE)
    if done.returncode not in {0, 1}:
        raise MarketDataError(f"`mdp {arguments[0]}` ended with exit code {done.returncode}")
    return done.stdout


def _command(arguments: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", "market_data_pipeline.cli.main", *arguments]


def _clear(this: _Demo) -> None:
    """Start from nothing, but only where an earlier demo, or nobody, was."""
    if this.home.exists() and any(this.home.iterdir()):
        if not (this.home / _MARKER).exists():
            raise InvalidInputError(f"{this.home} holds something else than a demo: name another --home")
        subprocess.run(_command(("down",)), env={**os.environ, "MDP_HOME": str(this.home)}, check=False, stdout=subprocess.DEVNULL)
        EmbeddedPostgres(this.home).destroy()
        shutil.rmtree(this.home)
    this.home.mkdir(parents=True, exist_ok=True)
    (this.home / _MARKER).touch()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _pause(seconds: float) -> None:
    time.sleep(seconds)  # noqa: TID251 - waiting for other processes is what this command does


def _say(text: str) -> None:
    click.secho(f"== {text}", bold=True)
