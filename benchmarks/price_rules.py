"""What rules over prices cost a look: 100 rules over the 1,200 symbols of T0 when a new minute has come, in a universe of 8,000.

python benchmarks/price_rules.py [--rules N] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import statistics
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import sqlalchemy as sa
from batches import NOW as WRITTEN_AT
from batches import POLICY, add_symbols, fresh_database, minutes
from pydantic import SecretStr
from report import report

from market_data_pipeline.domain.alert_config import AlertsConfig, PriceRule, PriceRuleKind, PriceSource
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.ingest.price_watch import look_at_prices
from market_data_pipeline.settings import Settings
from market_data_pipeline.storage.bulk import CandleWriter
from market_data_pipeline.wiring import open_pipeline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from market_data_pipeline.ingest.pipeline import Pipeline

UNIVERSE, FOLLOWED, SESSIONS = 8_000, 1_200, 3
# Three hours into the third session of batches.minutes.
NOON = datetime(2024, 1, 3, 17, 30, tzinfo=UTC)


# Seconds by the clock, and of them those that this process computed: the rest is the database's, or another's.
Round = tuple[float, float]


def threshold(number: int, above: float) -> PriceRule:
    """Prices of batches.minutes begin at 50."""
    return PriceRule(f"Above{number}", PriceRuleKind.THRESHOLD, PriceSource.CANDLE, tier="T0", above=above + number)


def move(number: int, by: float) -> PriceRule:
    """Windows of five minutes to four hours."""
    window = 300 * (1 + number % 48)
    return PriceRule(f"Move{number}", PriceRuleKind.MOVE, PriceSource.CANDLE, tier="T0", by=by, window_seconds=window)


def cross(number: int) -> PriceRule:
    """Averages of 20 minutes to four hours."""
    window = 60 * (20 + 5 * (number % 45))
    return PriceRule(f"Cross{number}", PriceRuleKind.CROSS, PriceSource.CANDLE, tier="T0", direction="up", window_seconds=window)


def looks(pipeline: Pipeline, count: int, rounds: int) -> Iterator[tuple[str, list[Round], int]]:
    """Each situation, its rounds, a minute apart, and how many findings there were."""
    quiet = [threshold(n, 1e6) if n % 2 else move(n, 0.9) for n in range(count)]
    mixed = [(threshold(n, 1e6), move(n, 0.9), cross(n))[n % 3] for n in range(count)]
    loud = [threshold(n, 0.001 - n) for n in range(count)]
    yield "no rule", *timed(pipeline, [], rounds)
    yield "1 threshold, quiet", *timed(pipeline, quiet[1:2], rounds)
    yield f"{count} thresholds and moves, quiet", *timed(pipeline, quiet, rounds)
    yield f"{count} thresholds, moves and crossings", *timed(pipeline, mixed, rounds)
    yield f"{count} thresholds, every one holds: first look", *timed(pipeline, loud, 1)
    yield f"{count} thresholds, every one holds: next looks", *timed(pipeline, loud, min(rounds, 3), first=1)
    look_at_prices(pipeline, AlertsConfig(), now=NOON)
    ids = [one.symbol_id for one in pipeline.universe.instruments()][:FOLLOWED]
    start, end = int((NOON - timedelta(hours=5)).timestamp()), int(NOON.timestamp())

    def each_rule_reads() -> int:
        for _ in range(10):
            pipeline.reader.read(ids, Interval.M1, start, end)
        return 0

    yield "peer: 10 rules, each reads its bars (only reads)", *clocked(each_rule_reads, 1)

    def each_symbol_is_asked() -> int:
        for symbol_id in ids:
            pipeline.reader.read([symbol_id], Interval.M1, start, end)
        return 0

    yield "peer: 1 rule, a statement for each symbol (only reads)", *clocked(each_symbol_is_asked, 1)


def timed(pipeline: Pipeline, rules: list[PriceRule], rounds: int, *, first: int = 0) -> tuple[list[Round], int]:
    """Looks a minute apart, the first one to warm up left out where there are more."""
    config, minute = AlertsConfig(price_rules=tuple(rules)), iter(range(first, 1000))

    def look() -> int:
        found = look_at_prices(pipeline, config, now=NOON + timedelta(minutes=next(minute)))
        return sum(len(one.findings) for one in found.looks)

    return clocked(look, rounds)


def clocked(work: Callable[[], int], rounds: int) -> tuple[list[Round], int]:
    """How long each round took, and what the last one returned."""
    taken, found = [], 0
    for _ in range(rounds):
        began, computed = time.perf_counter(), time.process_time()
        found = work()
        taken.append((time.perf_counter() - began, time.process_time() - computed))
    return taken, found


def main() -> None:
    """Measure, print, write."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rules", type=int, default=100)
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--json", type=Path, help="where to write the numbers (default: benchmarks/results/)")
    chosen = arguments.parse_args()
    with fresh_database() as engine, TemporaryDirectory() as home:
        ids = add_symbols(engine, UNIVERSE)
        with engine.begin() as connection:
            connection.execute(
                sa.text("update symbol_universe set tier = 'T2' where symbol_id > :last"), {"last": ids[FOLLOWED - 1]}
            )
        writer = CandleWriter(engine)
        for place in range(0, FOLLOWED, 100):
            writer.write(minutes(ids[place : place + 100], SESSIONS, seed=place), now=WRITTEN_AT, policy=POLICY)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("vacuum analyze"))
        url = engine.url.render_as_string(hide_password=False)
        with open_pipeline(Settings(home=Path(home), database_url=SecretStr(url), clock=NOON.isoformat())) as pipeline:
            table = [
                {
                    "look": name,
                    "findings": found,
                    "ms": statistics.median(clock for clock, _ in taken) * 1000,
                    "best ms": min(clock for clock, _ in taken) * 1000,
                    "own cpu ms": statistics.median(cpu for _, cpu in taken) * 1000,
                }
                for name, taken, found in looks(pipeline, chosen.rules, chosen.rounds)
            ]
    notes = [
        f"{FOLLOWED:,} symbols of T0 in a universe of {UNIVERSE:,}, minutes, three hours into a session; a look each minute",
        f"medians of {chosen.rounds} looks; Postgres with durable settings; the longest window is four hours, of averages 240 bars",
    ]
    report("price_rules", table, notes=notes, json_path=chosen.json)


if __name__ == "__main__":
    main()
