"""The whole path, from HTTP to rows stored, beside a bare httpx loop that only downloads the same bodies, in interleaved rounds.

Both send the same requests with as many threads, to the simulator in a process of its own and to a server that only hands out
bodies it already has: where that one is much faster, the simulator was the limit. Beside them, the path without the database's part
("not stored") and the database's part alone ("stored only": the same batches from memory), for neither can be overtaken.

python benchmarks/throughput.py [--symbols N] [--in-flight 1 8 32] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import httpx
import orjson
import sqlalchemy as sa
from batches import add_symbols, fresh_database
from pydantic import SecretStr
from report import report

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.ports import WriteReport
from market_data_pipeline.ingest.candles import ingest_candles
from market_data_pipeline.ingest.report import Stretch
from market_data_pipeline.settings import Settings
from market_data_pipeline.simulator.client import running_simulator
from market_data_pipeline.simulator.sample import CAST, write_sample
from market_data_pipeline.wiring import open_pipeline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy.engine import Engine

    from market_data_pipeline.domain.ports import CandleBatch
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.storage.bulk import CandleWriter

# Within Yahoo's reach of 30 days; nineteen sessions are three or four requests a symbol.
FIRST, LAST, NOW = date(2024, 11, 11), date(2024, 12, 6), datetime(2024, 12, 7, 12, tzinfo=UTC)
RECORDED = "/__recorded"


# --- the server that only hands out bodies -----------------------------------------------------------------------------


def serve(upstream: str) -> None:
    """Answer each target with the bytes that ``upstream`` answered it with the first time, until standard input ends.

    Prints its URL. A thread a connection, nothing parsed but the target: as fast as Python hands out bytes.
    """
    replies: dict[bytes, bytes] = {}
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)

    def answer(connection: socket.socket) -> None:
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while head := connection.recv(65_536):
                target = head.split(b" ", 2)[1]
                if target == RECORDED.encode():
                    connection.sendall(_reply(orjson.dumps([known.decode() for known in replies])))
                    continue
                if target not in replies:
                    with urlopen(upstream + target.decode()) as fetched:  # noqa: S310 - the simulator on this machine
                        replies[target] = _reply(fetched.read())
                connection.sendall(replies[target])

    def accept() -> None:
        while True:
            threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()


def _reply(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body


@contextmanager
def handing_out(upstream: str) -> Iterator[str]:
    """The URL of such a server, in a process of its own."""
    arguments = [sys.executable, __file__, "--serve", upstream]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        if process.stdout is None or process.stdin is None:
            raise RuntimeError("the server was started without pipes")
        yield process.stdout.readline().strip()
        process.stdin.close()


# --- what is measured --------------------------------------------------------------------------------------------------


class NotStored:
    """A writer that takes the batches and keeps them."""

    def __init__(self) -> None:
        self.batches: list[CandleBatch] = []

    def write(self, batch: CandleBatch, **_: object) -> WriteReport:
        """Nothing is stored."""
        self.batches.append(batch)
        return WriteReport()


@dataclass(frozen=True)
class Case:
    """One server at one number of requests in flight."""

    server: str
    url: str
    in_flight: int


class Bench:
    """The database, the instruments and the times; each timing is kept by case and way."""

    def __init__(self, engine: Engine, home: Path, symbols: int) -> None:
        self.engine, self.home = engine, home
        add_symbols(engine, symbols)
        with engine.begin() as connection:
            # What the simulator calls them.
            connection.execute(
                sa.text(
                    "insert into symbol_aliases (symbol_id, provider, alias)"
                    " select symbol_id, 'yahoo', 'S' || to_char(row_number() over (order by symbol_id) - 1, 'FM0000')"
                    " from symbol_universe"
                )
            )
        self.seconds: dict[tuple[Case | None, str], list[float]] = defaultdict(list)

    def settings(self, case: Case) -> Settings:
        """A process that asks Yahoo at the case's URL and nobody else, as fast as it can."""
        return Settings(
            home=self.home,
            database_url=SecretStr(self.engine.url.render_as_string(hide_password=False)),
            clock=NOW.isoformat(),
            yahoo_base_url=case.url,
            policy_bars_1m="yahoo",
            limits="yahoo=none",
            requests_in_flight=case.in_flight,
            second_opinion_share=0,
        )

    def empty(self) -> None:
        """No bars, no ledger, and the last case's dirty pages are the last case's."""
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("truncate candles_intraday, candle_revisions, coverage, ingestion_cursor, refused_bars"))
            connection.execute(sa.text("checkpoint"))

    def timed(self, case: Case | None, way: str, work: Callable[[], object]) -> None:
        """Run it once and keep its seconds."""
        began = time.perf_counter()
        work()
        self.seconds[case, way].append(time.perf_counter() - began)

    def whole_path(self, case: Case) -> None:
        """What `mdp backfill` does, without starting a process."""
        with open_pipeline(self.settings(case)) as pipeline:
            self.empty()
            self.timed(case, "whole path", lambda: ingest(pipeline))

    def not_stored(self, case: Case) -> list[CandleBatch]:
        """The same but for the transactions with the bars; the ledger is read and opened. The batches it would have written."""
        with open_pipeline(self.settings(case)) as pipeline:
            self.empty()
            writer = NotStored()
            # Stands in for the store: the pipeline is typed to the real one.
            stand_in: Any = writer
            self.timed(case, "not stored", lambda: ingest(replace(pipeline, writer=stand_in), is_stored=False))
            return writer.batches

    def stored_only(self, writer: CandleWriter, batches: Sequence[CandleBatch], settings: Settings) -> None:
        """The database's part alone."""
        self.empty()

        def write() -> None:
            for batch in batches:
                writer.write(batch, now=NOW, policy=settings.healing_policy)

        self.timed(None, "stored only", write)

    def bare(self, case: Case, targets: Sequence[str]) -> None:
        """The loop that only downloads."""
        limits = httpx.Limits(max_connections=case.in_flight, max_keepalive_connections=case.in_flight)
        headers = {"accept-encoding": "gzip"}
        with (
            httpx.Client(base_url=case.url, limits=limits, headers=headers, timeout=30.0, trust_env=False) as client,
            ThreadPoolExecutor(case.in_flight) as pool,
        ):
            self.timed(case, "bare", lambda: sum(pool.map(lambda target: len(client.get(target).content), targets)))


def ingest(pipeline: Pipeline, *, is_stored: bool = True) -> int:
    """Bars stored."""
    stretches = [Stretch(instrument, FIRST, LAST) for instrument in pipeline.universe.instruments()]
    reports = list(ingest_candles(stretches, Interval.M1, pipeline=pipeline))
    if failed := [report.failure for report in reports if report.failure is not None]:
        raise RuntimeError(f"{len(failed)} stretches failed, so the numbers would mean nothing: {failed[0]}")
    inserted = sum(report.inserted for report in reports)
    if is_stored and not inserted:
        raise RuntimeError("nothing was stored, so the numbers would mean nothing")
    return inserted


def rows_of(bench: Bench, cases: Sequence[Case], *, requests: int, bars: int) -> list[dict[str, object]]:
    """The table: medians of rates, and medians of the ratios of each round."""
    stored_only = bench.seconds[None, "stored only"]
    table: list[dict[str, object]] = []
    for case in cases:
        bare, whole, not_stored = (bench.seconds[case, way] for way in ("bare", "whole path", "not stored"))
        rounds = list(zip(bare, whole, not_stored, stored_only, strict=True))
        table.append(
            {
                "server": case.server,
                "in flight": case.in_flight,
                "bare requests/s": requests / statistics.median(bare),
                "bare k bars/s": bars / statistics.median(bare) / 1e3,
                "requests/s": requests / statistics.median(whole),
                "k bars/s": bars / statistics.median(whole) / 1e3,
                "x bare": statistics.median(b / w for b, w, _, _ in rounds),
                "not stored, x bare": statistics.median(b / n for b, _, n, _ in rounds),
                "stored only, k bars/s": bars / statistics.median(stored_only) / 1e3,
                # The slower of the two that the whole path contains is what it cannot overtake.
                "x limit": statistics.median(max(b, s) / w for b, w, _, s in rounds),
            }
        )
    return table


def main() -> None:
    """Measure, print, write."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--symbols", type=int, default=32)
    arguments.add_argument("--in-flight", type=int, nargs="+", default=[1, 8, 32])
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--json", type=Path, help="where to write the numbers (default: benchmarks/results/)")
    arguments.add_argument("--serve", metavar="URL", help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    if chosen.serve:
        serve(chosen.serve)
        return
    with tempfile.TemporaryDirectory(prefix="mdp-bench-data-") as folder, fresh_database() as engine:
        data, home = Path(folder) / "data", Path(folder) / "home"
        write_sample(data, seed=7, symbols=len(CAST) + chosen.symbols, start=FIRST, end=LAST)
        with running_simulator(data=data, now=NOW, limits="yahoo=none") as simulator, handing_out(simulator.yahoo) as hander:
            bench = Bench(engine, home, chosen.symbols)
            cases = [
                Case(server, url, in_flight)
                for server, url in (("bodies at hand", hander), ("simulator", simulator.yahoo))
                for in_flight in chosen.in_flight
            ]
            # Teaches the server its bodies and us the requests; nothing of it is counted.
            batches = bench.not_stored(cases[0])
            with urlopen(hander + RECORDED) as recorded:  # noqa: S310 - our own server
                targets: list[str] = orjson.loads(recorded.read())
            bars = sum(len(batch.columns) for batch in batches)
            for case in cases:
                bench.whole_path(case)
            bench.seconds.clear()
            with open_pipeline(bench.settings(cases[0])) as pipeline:
                for _ in range(chosen.rounds):
                    bench.stored_only(pipeline.writer, batches, pipeline.settings)
                    for case in cases:
                        bench.bare(case, targets)
                        bench.whole_path(case)
                        bench.not_stored(case)
    notes = [
        f"medians of {chosen.rounds} interleaved rounds; {len(targets)} requests for {bars:,} bars; fsync on",
        "bare: httpx, as many threads, the bodies read and dropped; stored only: the same batches from memory, in turn",
        "x limit: beside the slower of bare and stored only; server, path and Postgres share this machine's processors",
        "target: 0.6 x bare until Postgres is the limit, which is where x limit counts",
    ]
    report("throughput", rows_of(bench, cases, requests=len(targets), bars=bars), notes=notes, json_path=chosen.json)


if __name__ == "__main__":
    main()
