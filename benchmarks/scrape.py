"""One scrape of /metrics at 8,000 symbols in the middle of a session, beside the promise of 100 ms and a bare round trip.

python benchmarks/scrape.py [--symbols N] [--sessions N] [--rounds N] [--json FILE]

The ledger is that of benchmarks/census.py, with every thousandth session short; the queue is full, and there are a thousand dead
letters, ten thousand messages, six providers with all they can do, and counters in thirty shards.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import httpx
import sqlalchemy as sa
from batches import add_symbols, fresh_database
from census import NOW, TIERS, fill, pipeline_at, timed
from report import report

from market_data_pipeline.ingest.freshness import measure_density, record_census, slo_status, take_census
from market_data_pipeline.ingest.metrics import snapshot
from market_data_pipeline.ingest.overview import missing_now
from market_data_pipeline.observability.exposition import exposition
from market_data_pipeline.storage.counters import fold_counters, read_counters
from market_data_pipeline.storage.metrics import read_gauges

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Engine

    from market_data_pipeline.ingest.pipeline import Pipeline

PROMISED_SECONDS = 0.1
BUSY = """
update coverage set present = overlay(present placing (:hole)::varbit from 20), next_attempt_at = :now
 where finality = 2 and expected > 100 and hashint8(symbol_id * 100000::int8 + (session - date '2020-01-01')) % 1000 = 0;
insert into jobs (job_id, kind, tier, dedupe_key, payload, source, ready_at)
select 'q-' || n, 'backfill', t.tier, 'q-' || n || t.tier, '{}', 'benchmark', clock_timestamp() - interval '1 minute'
  from (values ('T0', 1, 5000), ('T1', 5001, 15000), ('T2', 15001, 35000)) as t (tier, low, high),
       generate_series(t.low, t.high) as n;
insert into jobs (job_id, kind, tier, dedupe_key, payload, source, state, reason, ended_at)
select 'd-' || n, 'backfill', 'T1', 'd-' || n, '{}', 'benchmark', 'dead', 'benchmark', clock_timestamp()
  from generate_series(1, 1000) n;
update job_dispatch d set queued = (select count(*) from jobs j where j.tier = d.tier and j.state = 'queued');
insert into alert_notices (channel, kind, severity, title, body, state, ready_at, created_at, queued_at, sent_at)
select 'c', 'firing', 'warning', 'benchmark', 'benchmark', case when n % 100 = 0 then 'queued' else 'sent' end, :now, :now, :now,
       case when n % 100 > 0 then cast(:now as timestamptz) end
  from generate_series(1, 10000) n;
insert into provider_health (provider, capability)
select p, c from unnest(cast(:providers as text[])) p, unnest(cast(:capabilities as text[])) c;
insert into metric_counters (name, labels, shard, value, buckets)
select m.name, case m.name when 'provider_selected_total' then array[c, p]
                   when 'provider_errors_total' then array[p, c, 'transient'] else array[p, c] end,
       s, 1000, case when m.name like '%seconds' then array_fill(100::int8, array[10]) end
  from unnest(cast(:providers as text[])) p, unnest(cast(:capabilities as text[])) c, generate_series(2000000001, 2000000030) s,
       unnest(array['provider_selected_total', 'provider_errors_total', 'provider_latency_seconds', 'provider_bars_total']) m (name)
"""
PROVIDERS = ["yahoo", "alpaca", "massive", "finnhub", "alphavantage", "files"]
CAPABILITIES = ["bars_1m", "bars_1h", "eod", "quotes_l1", "options_chain"]


def fill_up(engine: Engine, symbols: int, sessions: int) -> None:
    """A universe and a busy day."""
    add_symbols(engine, symbols)
    with engine.begin() as connection:
        connection.execute(sa.text(TIERS))
    fill(engine, sessions)
    with engine.begin() as connection:
        values = {"hole": "000", "now": NOW, "providers": PROVIDERS, "capabilities": CAPABILITIES}
        for statement in BUSY.split(";\n"):
            connection.execute(sa.text(statement), {name: value for name, value in values.items() if f":{name}" in statement})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("vacuum analyze"))


@contextmanager
def served(engine: Engine, home: Path, *arguments: str) -> Iterator[str]:
    """The real process, on the same database; its URL."""
    told = {
        "MDP_HOME": str(home),
        "MDP_DATABASE_URL": engine.url.render_as_string(hide_password=False),
        "MDP_CLOCK": NOW.isoformat(),
        "MDP_SERVE_PORT": "0",
    }
    command = [sys.executable, "-m", "market_data_pipeline.cli.main", "serve", "--json", *arguments]
    process = subprocess.Popen(command, env={**os.environ, **told}, stdout=subprocess.PIPE, text=True)
    try:
        text = ""
        for line in process.stdout or ():
            text += line
            if line.startswith("}"):
                break
        yield str(json.loads(text)["url"])
    finally:
        process.terminate()
        process.wait(30)


@dataclass(frozen=True)
class Round:
    """What is asked, and of how many series it tells."""

    name: str
    seconds: list[float]
    series: int | None = None


def requests(url: str, name: str, rounds: int) -> Iterator[Round]:
    """What Prometheus and a probe wait for."""
    with httpx.Client(trust_env=False) as client:

        def scrape() -> None:
            client.get(f"{url}/metrics").raise_for_status()

        scrape()
        series = sum(not line.startswith("#") for line in client.get(f"{url}/metrics").text.splitlines())
        yield Round(f"GET /metrics of `{name}`", timed(scrape, rounds), series)
        yield Round(f"GET /health of `{name}`", timed(lambda: client.get(f"{url}/health").raise_for_status(), rounds))


def questions(pipeline: Pipeline, rounds: int) -> Iterator[Round]:
    """All of it, then its parts one after the other."""
    engine = pipeline.engine
    now = pipeline.clock.now()
    with engine.connect() as connection:
        yield Round("peer: select 1", timed(lambda: connection.execute(sa.text("select 1")).scalar_one(), rounds))
    found = snapshot(pipeline, now=now)
    yield Round("snapshot, three connections at a time", timed(lambda: snapshot(pipeline, now=now), rounds), len(found.values))
    taken = take_census(pipeline)
    watched = timed(lambda: snapshot(pipeline, now=now, census=taken), rounds)
    yield Round("snapshot, with the census of a watch in the same process", watched)
    yield Round("of it: the census", timed(lambda: take_census(pipeline), rounds))
    yield Round("of it: SLO windows", timed(lambda: slo_status(pipeline, census=taken), rounds))
    yield Round("of it: what is missing now", timed(lambda: missing_now(pipeline), rounds))
    yield Round("of it: counters", timed(lambda: read_counters(engine), rounds))
    yield Round("of it: counts and sizes", timed(lambda: read_gauges(engine), rounds))
    yield Round("as text", timed(lambda: exposition(found), rounds))


def _wait_for_the_watch(url: str) -> None:
    while not httpx.get(f"{url}/health", trust_env=False).json()["parts"]["watch"]["ok"]:
        threading.Event().wait(0.2)


def main() -> None:
    """Measure, print, write."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--symbols", type=int, default=8_000)
    arguments.add_argument("--sessions", type=int, default=40, help="finished sessions of six intervals each")
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--json", type=Path, help="where to write the numbers (default: benchmarks/results/)")
    chosen = arguments.parse_args()
    with fresh_database() as engine, TemporaryDirectory() as home:
        began = time.perf_counter()
        fill_up(engine, chosen.symbols, chosen.sessions)
        with engine.connect() as connection:
            rows, short = connection.execute(sa.text("select count(*), sum((absent > 0)::int) from coverage")).one()
        print(f"{rows:,} ledger rows, {short:,} of them short, made in {time.perf_counter() - began:.0f} s")
        with pipeline_at(engine, Path(home), NOW) as pipeline:
            measure_density(pipeline)
            record_census(pipeline, take_census(pipeline))
            rounds: list[Round] = []
            for watching in ([], ["--no-watch"]):
                with served(engine, Path(home), *watching) as url:
                    if not watching:
                        _wait_for_the_watch(url)
                    rounds += requests(url, " ".join(["mdp serve", *watching]), chosen.rounds)
            rounds += questions(pipeline, chosen.rounds)
            fold_counters(engine)
            rounds.append(Round("counters, shards of the gone added up", timed(lambda: read_counters(engine), chosen.rounds)))
    table: list[dict[str, Any]] = [
        {
            "question": one.name,
            "ms": 1e3 * statistics.median(one.seconds),
            "worst ms": 1e3 * max(one.seconds),
            "of the promise": statistics.median(one.seconds) / PROMISED_SECONDS,
            "series": one.series,
        }
        for one in rounds
    ]
    notes = [
        f"{rows:,} ledger rows, {short:,} of them short; medians of {chosen.rounds} rounds; one client, nobody else on the server",
        "the parts are asked one after the other here and three at a time in a scrape",
        f"target: a scrape under {PROMISED_SECONDS * 1e3:.0f} ms",
    ]
    report("scrape", table, notes=notes, json_path=chosen.json)


if __name__ == "__main__":
    main()
