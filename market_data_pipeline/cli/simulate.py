"""`mdp simulate` runs the provider simulator; `mdp sample` writes data for it to serve."""

from __future__ import annotations

import asyncio
import signal
import time
from datetime import UTC, datetime
from pathlib import Path

import click
import orjson

from market_data_pipeline.simulator.clock import VirtualClock, parse_instant, parse_speed
from market_data_pipeline.simulator.faults import read_rules
from market_data_pipeline.simulator.market import Market
from market_data_pipeline.simulator.server import Addresses, Simulator, listening


@click.command(short_help="Serve a provider's wire format from a data directory, on a virtual clock.")
@click.option("--data", type=click.Path(path_type=Path), required=True, metavar="DIR", help="<interval>/<SYMBOL>.csv[.gz] files.")
@click.option("--seed", type=int, default=7, show_default=True, help="Everything left to chance follows from it.")
@click.option(
    "--now", "now_text", metavar="T", help="Where the virtual clock begins, ISO 8601 with a zone. Default: the real time."
)
@click.option("--speed", type=float, default=1.0, show_default=True, help="0 stands still, 1 is the real pace.")
@click.option("--faults", type=click.Path(path_type=Path), metavar="FILE", help="YAML or JSON list of rules (docs/simulator.md).")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port of the provider. Default: a free one.")
@click.option("--control-port", type=click.IntRange(0, 65535), default=0, help="Port of the control plane. Default: a free one.")
@click.option("--ready-file", type=click.Path(path_type=Path), metavar="FILE", help="Write the URLs there once it answers.")
@click.option("--export", is_flag=True, help="Print lines to export for `mdp` instead of JSON.")
def simulate(  # noqa: PLR0913 - one argument an option
    *,
    data: Path,
    seed: int,
    now_text: str | None,
    speed: float,
    faults: Path | None,
    port: int,
    control_port: int,
    ready_file: Path | None,
    export: bool,
) -> None:
    """Serve Yahoo's chart wire format from DIR on 127.0.0.1 until SIGTERM or Ctrl-C.

    Once it answers it prints one line of JSON with its base URLs: yahoo for MDP_YAHOO_BASE_URL, control for MDP_CLOCK.

    \b
    Examples:
      mdp sample ./sample && mdp simulate --data ./sample --now 2024-12-07T12:00:00Z --speed 0
      mdp simulate --data ./sample --now 2024-12-02T15:00:00Z --faults ./sample/faults.yaml --export
      curl -s CONTROL/__sim/clock -d '{"now": "2024-12-07T12:00:00Z"}'
    """
    now = datetime.now(UTC) if now_text is None else parse_instant(now_text, name="--now")
    rules = () if faults is None else read_rules(faults)
    clock = VirtualClock(now, parse_speed(speed), time.monotonic)
    simulator = Simulator(Market(data), clock, seed, rules)
    asyncio.run(_serve(simulator, port=port, control_port=control_port, ready_file=ready_file, export=export))


async def _serve(simulator: Simulator, *, port: int, control_port: int, ready_file: Path | None, export: bool) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with listening(simulator, port=port, control_port=control_port) as addresses:
        line = _announced(addresses, export=export)
        click.echo(line)
        if ready_file is not None:
            # Renamed into place: who waits for the file must never read half of it.
            part = ready_file.with_name(f"{ready_file.name}.part")
            part.write_text(f"{line}\n", encoding="utf-8")
            part.replace(ready_file)
        await stopped.wait()


def _announced(addresses: Addresses, *, export: bool) -> str:
    if export:
        return f"export MDP_YAHOO_BASE_URL={addresses.yahoo}\nexport MDP_CLOCK={addresses.control}"
    return orjson.dumps({"yahoo": addresses.yahoo, "control": addresses.control}).decode()
