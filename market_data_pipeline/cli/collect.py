"""`mdp collect`: quotes every few seconds and the newest minutes, as long as the process lives."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
import orjson

from market_data_pipeline.cli.dagster_client import DagsterClient, DagsterRefusedError, WebserverUnreachableError
from market_data_pipeline.cli.output import json_option
from market_data_pipeline.cli.selection import opened_pipeline
from market_data_pipeline.domain.errors import DatabaseUnreachableError, InvalidInputError, UnavailableError
from market_data_pipeline.domain.runs import LIVE_QUOTES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from market_data_pipeline.ingest.collect import Line, Tallies, Tally
    from market_data_pipeline.storage.seats import Seat

DONE, TAKEN = 0, 1
# How often the seat is looked at, and how often whoever stands by tries to take it.
SEAT_SECONDS, STANDBY_SECONDS = 5.0, 1.0
SUMMARY_SECONDS = 60.0


@click.command(epilog="Example: mdp collect --standby")
@click.option("--no-quotes", is_flag=True, help="Only the minutes of T0.")
@click.option("--no-minutes", is_flag=True, help="Only quotes.")
@click.option("--standby", is_flag=True, help="Where another process collects, wait and take over when it ends.")
@click.option(
    "--report-every",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="Seconds between events to Dagster, at most one an asset; 0: none.",
)
@json_option
def collect(*, no_quotes: bool, no_minutes: bool, standby: bool, report_every: float, as_json: bool) -> int:
    """Collect quotes of the tiers in MDP_QUOTES_EVERY_SECONDS and the newest minutes of T0 while their markets are open.

    Runs until SIGTERM or Ctrl-C, which ends it after the rounds that have begun; a second one ends it at once. Everything it knows
    is in the database: it can be killed and started again. One process collects; another says who, and ends with 1.
    """
    from market_data_pipeline.ingest.collect import Tallies, foreseeable, lines_of  # noqa: PLC0415 - help must not wait for SQLAlchemy
    from market_data_pipeline.ingest.collect import collect as collect_until  # noqa: PLC0415
    from market_data_pipeline.storage.seats import Seat  # noqa: PLC0415

    if no_quotes and no_minutes:
        raise InvalidInputError("--no-quotes and --no-minutes leave nothing to collect: expected one of them")
    say = _say_as_json if as_json else click.echo
    stop = _stopped_by_signals()
    with (
        opened_pipeline() as pipeline,
        Seat(pipeline.engine, f"mdp collect, pid {os.getpid()} on {socket.gethostname()}") as seat,
        DagsterClient(pipeline.settings.dagster_url) as dagster,
    ):
        lines = lines_of(pipeline, monotonic=time.monotonic, quotes=not no_quotes, minutes=not no_minutes)
        if not lines:
            raise InvalidInputError(
                "MDP_QUOTES_EVERY_SECONDS and MDP_BARS_EVERY_SECONDS leave nothing to collect: expected T0=5 or so"
            )
        if not _seated(seat, stop, say, standby=standby):
            return DONE if stop.is_set() else TAKEN
        tallies = Tallies()
        say(f"collecting: {_described(lines)}")
        for sentence in foreseeable(pipeline, lines):
            say(sentence)
        collect_until(
            lines,
            tallies,
            stop=stop,
            monotonic=time.monotonic,
            clock=lambda: pipeline.clock.now().timestamp(),
            say=say,
            beat=Beat(
                [
                    (SEAT_SECONDS, SeatWatch(seat, say)),
                    (SUMMARY_SECONDS, lambda: _summarise(tallies, say)),
                    *([(report_every, DagsterReports(dagster, tallies, say))] if report_every else []),
                ],
                time.monotonic,
            ),
        )
    total = tallies.total()
    if as_json:
        click.echo(orjson.dumps({"ended": True, **{asset: _row(tally) for asset, tally in total.items()}}))
    else:
        say("ended: " + ("; ".join(f"{asset}: {tally}" for asset, tally in total.items()) or "nothing was collected"))
    return DONE


def _described(lines: list[Line]) -> str:
    return ", ".join(f"{line.name} every {line.every:g} s" for line in lines)


def _stopped_by_signals() -> threading.Event:
    """An event that SIGTERM or Ctrl-C sets. A second signal does what it always does."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: object) -> None:
        stop.set()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    return stop


def _seated(seat: Seat, stop: threading.Event, say: Callable[[str], None], *, standby: bool) -> bool:
    """Whether we are the one who collects; where another does, said and, in standby, waited for."""
    holder = seat.take()
    if holder is None:
        return True
    say(f"another process collects: {holder}" + ("; standing by" if standby else "; end it first, or wait for it with --standby"))
    while standby and not stop.wait(STANDBY_SECONDS):
        if seat.take() is None:
            return True
    return False


class Beat:
    """Duties, each due every so many seconds and the first time after that long; they are done when this is called."""

    def __init__(self, duties: Sequence[tuple[float, Callable[[], None]]], monotonic: Callable[[], float]) -> None:
        self._duties, self._monotonic = duties, monotonic
        self._due_at = [monotonic() + seconds for seconds, _ in duties]

    def __call__(self) -> None:
        """Everything that is due now, once."""
        for place, (seconds, duty) in enumerate(self._duties):
            now = self._monotonic()
            if self._due_at[place] <= now:
                self._due_at[place] = now + seconds
                duty()


class SeatWatch:
    """Makes sure that we are still the one who collects."""

    def __init__(self, seat: Seat, say: Callable[[str], None]) -> None:
        self._seat, self._say = seat, say

    def __call__(self) -> None:
        """UnavailableError where another took our place while the database was away."""
        if self._seat.is_ours():
            return
        try:
            holder = self._seat.take()
        except DatabaseUnreachableError:
            # The lines say so already, and try again as this does.
            return
        if holder is not None:
            raise UnavailableError(f"the connection to the database was lost, and another process collects now: {holder}")
        self._say("the connection to the database was lost; collecting again")


class DagsterReports:
    """Tells Dagster what was collected since the last time: an event an asset, none where there was nothing."""

    def __init__(self, dagster: DagsterClient, tallies: Tallies, say: Callable[[str], None]) -> None:
        self._dagster, self._tallies, self._say = dagster, tallies, say
        self._is_down = False

    def __call__(self) -> None:
        """Never raises for Dagster's sake: what is collected is in the database either way."""
        for asset, tally in self._tallies.take("dagster").items():
            if not tally.symbols:
                continue
            try:
                # A materialisation of candles/1m would name no partition; that is the after-close schedule's to report.
                is_new_data = asset == LIVE_QUOTES and tally.new > 0
                self._dagster.report_asset_event(asset.split("/"), f"mdp collect: {tally}", is_new_data=is_new_data)
            except (WebserverUnreachableError, DagsterRefusedError) as down:
                if not self._is_down:
                    self._say(f"Dagster is not told: {down}; collecting goes on")
                self._is_down = True
                return
            if self._is_down:
                self._say("Dagster is told again")
            self._is_down = False


def _summarise(tallies: Tallies, say: Callable[[str], None]) -> None:
    for asset, tally in tallies.take("summary").items():
        if tally.rounds:
            say(f"{asset}: {tally}")


def _row(tally: Tally) -> Mapping[str, Any]:
    names = ("rounds", "skipped", "symbols", "new", "failed", "requests")
    return {name: getattr(tally, name) for name in names}


def _say_as_json(text: str) -> None:
    click.echo(orjson.dumps({"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "said": text}))
