"""`mdp simulate` runs the provider simulator; `mdp sample` writes data for it to serve."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import asdict
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from time import monotonic

import click
import orjson

from market_data_pipeline.cli.output import json_option, print_json
from market_data_pipeline.domain.capabilities import parse_limits
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.simulator.client import variables
from market_data_pipeline.simulator.clock import VirtualClock, parse_instant, parse_speed
from market_data_pipeline.simulator.faults import read_rules
from market_data_pipeline.simulator.market import Market
from market_data_pipeline.simulator.sample import CAST, DEFAULT_END, DEFAULT_START, write_sample
from market_data_pipeline.simulator.server import Addresses, Simulator, listening
from market_data_pipeline.simulator.vendor import PREMIUM

# click keeps the lines of a paragraph that begins with \b as they are.
_SIMULATE_EXAMPLES = """\b
Examples:
  mdp sample ./sample && mdp simulate --data ./sample --now 2024-12-07T12:00:00Z --speed 0
  mdp simulate --data ./sample --now 2024-12-02T15:00:00Z --faults ./sample/faults.yaml --export
  mdp simulate --data ./sample --limits "massive=none; finnhub=60/m,30/s"
  curl -s $MDP_CLOCK/__sim/clock -d '{"now": "2024-12-07T12:00:00Z"}'
  curl -s $MDP_CLOCK/__sim/faults -d '[{"match": {"provider": "alpaca"}, "action": "status", "code": 503}]'
"""
_SAMPLE_EXAMPLES = """\b
Examples:
  mdp sample ./sample
  mdp sample ./sample --seed 11 --symbols 50 --start 2024-11-04 --end 2024-12-06
"""


@click.command(short_help="Serve the providers' wire formats from a data directory, on a virtual clock.", epilog=_SIMULATE_EXAMPLES)
@click.option("--data", type=click.Path(path_type=Path), required=True, metavar="DIR", help="<interval>/<SYMBOL>.csv[.gz] files.")
@click.option("--seed", type=int, default=7, show_default=True, help="Everything left to chance follows from it.")
@click.option(
    "--now", "now_text", metavar="T", help="Where the virtual clock begins, ISO 8601 with a zone. Default: the real time."
)
@click.option("--speed", type=float, default=1.0, show_default=True, help="0 stands still, 1 is the real pace.")
@click.option("--faults", type=click.Path(path_type=Path), metavar="FILE", help="YAML or JSON list of rules (docs/simulator.md).")
@click.option(
    "--limits", metavar="TEXT", default="", help='Rate limits, as MDP_LIMITS: "massive=none;finnhub=60/m". Default: as documented.'
)
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
    limits: str,
    port: int,
    control_port: int,
    ready_file: Path | None,
    export: bool,
) -> None:
    """Serve the wire formats of the providers from DIR on 127.0.0.1 until SIGTERM or Ctrl-C.

    Once it answers it prints one line of JSON with its base URLs: one for each provider, and control for MDP_CLOCK.
    """
    now = datetime.now(UTC) if now_text is None else parse_instant(now_text, name="--now")
    rules, told = () if faults is None else read_rules(faults), parse_limits(limits)
    clock = VirtualClock(now, parse_speed(speed), monotonic)
    simulator = Simulator(Market(data), clock, seed, rules, told)
    asyncio.run(_serve(simulator, port=port, control_port=control_port, ready_file=ready_file, export=export))


@click.command(short_help="Write sample data for `mdp simulate`.", epilog=_SAMPLE_EXAMPLES)
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--seed", type=click.IntRange(min=0), default=7, show_default=True, help="The same seed writes the same files.")
@click.option("--symbols", type=int, default=len(CAST), show_default=True, help="How many instruments.")
@click.option("--start", metavar="D", default=DEFAULT_START.isoformat(), show_default=True, help="First session.")
@click.option("--end", metavar="D", default=DEFAULT_END.isoformat(), show_default=True, help="Last session, included.")
@json_option
def sample(*, directory: Path, seed: int, symbols: int, start: str, end: str, as_json: bool) -> None:
    """Write a small invented market into DIR: minutes, universe.csv, actions.csv and faults.yaml.

    Several exchanges, a half day (2024-11-29), a lunch break, round-the-clock crypto, a split, a dividend, a symbol with four in
    ten minutes empty. Seeded: the same command writes the same files.
    """
    report = write_sample(directory, seed=seed, symbols=symbols, start=_session("--start", start), end=_session("--end", end))
    if as_json:
        print_json({"directory": str(directory), **asdict(report)})
        return
    click.echo(f"{report.minutes:,} minutes of {report.symbols} symbols, {report.first} to {report.last}, in {directory}")
    # Noon after the range: every session is over, and its minutes are within Yahoo's thirty days.
    noon = datetime.combine(report.last + timedelta(days=1), time(12), UTC)
    faults = directory / "faults.yaml"
    click.echo(f"Next: mdp simulate --data {directory} --now {noon:%Y-%m-%dT%H:%M:%SZ} --speed 0 --faults {faults} --export")


def _session(option: str, text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InvalidInputError(f"{option} {text!r} is not a date: expected ISO 8601 such as 2024-11-25") from None


async def _serve(simulator: Simulator, *, port: int, control_port: int, ready_file: Path | None, export: bool) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with listening(simulator, port=port, control_port=control_port) as addresses:
        line = _announced(addresses, export=export)
        if ready_file is not None:
            # Renamed into place: who waits for the file must never read half of it.
            part = ready_file.with_name(f"{ready_file.name}.part")
            part.write_text(f"{line}\n", encoding="utf-8")
            part.replace(ready_file)
        click.echo(line)
        await stopped.wait()


def _announced(addresses: Addresses, *, export: bool) -> str:
    if export:
        told = variables(addresses.urls, addresses.control, plan=PREMIUM)
        return "\n".join(f"export {name}={value}" for name, value in told.items())
    return orjson.dumps({**addresses.urls, "control": addresses.control}).decode()
