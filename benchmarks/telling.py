"""What it costs to be seen: spans, profiles and log lines, switched off and on, a call each and over a real ingest.

python benchmarks/telling.py [--symbols N] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import logging
import statistics
import sys
import tempfile
import threading
import time
import timeit
from collections import defaultdict
from datetime import UTC, date, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batches import fresh_database
from pydantic import SecretStr
from report import report

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.sessions import trading_calendar
from market_data_pipeline.domain.tracing import NO_TRACER
from market_data_pipeline.domain.universe import Tier, UniverseEntry
from market_data_pipeline.ingest.candles import ingest_candles
from market_data_pipeline.ingest.report import Stretch
from market_data_pipeline.observability.logs import bound, configure
from market_data_pipeline.observability.telemetry import tracer_of
from market_data_pipeline.observability.tracing import maybe_trace
from market_data_pipeline.settings import Settings
from market_data_pipeline.simulator.client import running_simulator
from market_data_pipeline.wiring import open_pipeline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FIRST, LAST = date(2024, 12, 2), date(2024, 12, 6)
NOW = datetime(2024, 12, 7, 12, tzinfo=UTC)
# Nobody listens there.
NOWHERE = "http://127.0.0.1:9"


@contextlib.contextmanager
def collector() -> Iterator[str]:
    """Where spans are taken and thrown away."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def write_data(data: Path, symbols: list[str]) -> None:
    """A week of minutes each."""
    (data / "1m").mkdir(parents=True)
    opens = trading_calendar("XNYS").expected_opens(Interval.M1, FIRST, LAST).opened_at.tolist()
    stamps = [datetime.fromtimestamp(at, UTC).isoformat() for at in opens]
    for symbol in symbols:
        with (data / "1m" / f"{symbol}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["opened_at", "open", "high", "low", "close", "volume"])
            writer.writerows([stamp, 10, 11, 9, 10 + place / 1000, 100] for place, stamp in enumerate(stamps))


def microseconds(work: Callable[[], object], *, number: int = 20_000) -> float:
    """The best of five."""
    return min(timeit.repeat(work, number=number, repeat=5)) / number * 1e6


def calls(endpoint: str) -> list[dict[str, Any]]:
    """A row for each thing that is called often."""
    off, logger = Settings(), logging.getLogger("market_data_pipeline.benchmark")

    def trace() -> None:
        with maybe_trace("label", off):
            pass

    def span() -> None:
        with NO_TRACER.span("http", provider="yahoo", attempt=1) as one:
            one.note(bytes=3)

    def names() -> None:
        with bound(provider="yahoo", symbol="ALFA"):
            pass

    def line() -> None:
        logger.info("%s: %d bars came", "ALFA", 390, extra={"symbol": "ALFA", "provider": "yahoo"})

    found = {"maybe_trace, off": microseconds(trace), "span, off": microseconds(span), "names bound": microseconds(names)}
    with tracer_of(Settings(otel_endpoint=endpoint)) as tracer:

        def recorded() -> None:
            with tracer.span("http", provider="yahoo", attempt=1) as one:
                one.note(bytes=3)

        found["span, on"] = microseconds(recorded, number=2_000)
    with contextlib.redirect_stderr(io.StringIO()):
        undo = configure(Settings(log_format="json", log_level="warning"))
        found["log line below the level"] = microseconds(line)
        undo = configure(Settings(log_format="json"))
        found["log line as JSON"] = microseconds(line, number=2_000)
        undo = configure(Settings(log_format="text"))
        found["log line as text"] = microseconds(line, number=2_000)
        undo()
    return [{"case": name, "µs": value} for name, value in found.items()]


def ingest(settings: Settings, symbols: list[str]) -> float:
    """Seconds from opening the pipeline to closing it, with a week of minutes fetched, judged and stored between."""
    began = time.perf_counter()
    with open_pipeline(settings) as pipeline:
        entries = [UniverseEntry(symbol, "XNAS", Tier.T0) for symbol in symbols]
        pipeline.universe.load(entries, version_tag="b", source="b", source_sha256="b", loaded_by="benchmark")
        stretches = [Stretch(one, FIRST, LAST) for one in pipeline.universe.instruments()]
        with maybe_trace("benchmark", settings):
            reports = list(ingest_candles(stretches, Interval.M1, pipeline=pipeline))
        if any(one.failure for one in reports):
            sys.exit(f"an ingest failed: {next(one.failure for one in reports if one.failure)}")
    return time.perf_counter() - began


def main() -> None:
    """Measure, print, write."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--symbols", type=int, default=60)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--json", type=Path, help="where to write the numbers (default: benchmarks/results/)")
    chosen = arguments.parse_args()
    symbols = [f"S{number:03}" for number in range(chosen.symbols)]
    seconds: dict[str, list[float]] = defaultdict(list)
    sizes: list[int] = []
    with tempfile.TemporaryDirectory() as folder, collector() as endpoint:
        rows = calls(endpoint)
        home, data = Path(folder) / "home", Path(folder) / "data"
        write_data(data, symbols)
        modes: dict[str, dict[str, Any]] = {
            "ingest, all off": {},
            "ingest, spans": {"otel_endpoint": endpoint},
            "ingest, spans that nobody takes": {"otel_endpoint": NOWHERE},
            "ingest, every log line": {"log_level": "debug", "log_format": "json"},
            "ingest, profiled": {"viztracer_enabled": True},
        }
        with running_simulator(data=data, now=NOW, limits="yahoo=none") as simulator:
            base: dict[str, Any] = {"yahoo_base_url": simulator.urls["yahoo"], "clock": simulator.control, "limits": "yahoo=none"}
            # The first round pays for what is only done once.
            for number in range(chosen.rounds + 1):
                for name, told in modes.items():
                    with fresh_database() as engine, contextlib.redirect_stderr(io.StringIO()):
                        url = engine.url.render_as_string(hide_password=False)
                        settings = Settings(**base, home=home, database_url=SecretStr(url), policy_bars_1m="yahoo", **told)
                        undo = configure(settings, least=None if "log_level" in told else "warning")
                        taken = ingest(settings, symbols)
                        undo()
                    if number:
                        seconds[name].append(taken)
        sizes = [path.stat().st_size for path in (home / "traces").iterdir()]
    rows += [{"case": name, "seconds": statistics.median(taken), "slowest": max(taken)} for name, taken in seconds.items()]
    notes = [
        f"calls: the best of five; ingests: medians of {chosen.rounds} interleaved rounds, {chosen.symbols} symbols, five sessions",
        "the simulator, Postgres and this process share the machine; an ingest includes opening and closing the pipeline",
        f"a profile has {max(sizes) / 1e6:.1f} MB",
    ]
    report("telling", rows, notes=notes, json_path=chosen.json)


if __name__ == "__main__":
    main()
