"""A canary key in every place that takes one: whatever fails, it is found in no log, event, table, file or output."""

from __future__ import annotations

import base64
import json
from contextlib import closing
from typing import TYPE_CHECKING

import psycopg2
import pytest
import sqlalchemy as sa
from psycopg2 import sql

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.settings import Settings
from market_data_pipeline.simulator.client import running_simulator
from market_data_pipeline.storage.database import database_url
from market_data_pipeline_tests.stack import Running, a_home, a_stack
from market_data_pipeline_tests.world import FRIDAY, MONDAY, SATURDAY, expected_opens, write_bars

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

# Part of every key: the simulated vendors take whatever begins as theirs, so the canary also flies where all goes well.
CANARY = "canary7f3a91"
SYMBOLS = ("ALFA", "BETA", "CARL", "DORA", "ECHO", "FOXY")
# Every way of failing meets every vendor, those that take their key in the URL included.
FAULTS = [
    {"match": {"provider": provider, "every": every}, **fault}
    for provider in ("alphavantage", "finnhub", "massive", "alpaca", "fred", "yahoo")
    for every, fault in (
        (3, {"action": "status", "code": 500}),
        (4, {"action": "reset"}),
        (5, {"action": "html"}),
        (7, {"action": "truncate"}),
    )
]
POLICIES = {
    "MDP_POLICY_BARS_1M": "alpaca,finnhub,massive,alphavantage,yahoo",
    "MDP_POLICY_EOD": "alphavantage,massive,finnhub,alpaca,yahoo",
    "MDP_POLICY_QUOTES_L1": "finnhub,alpaca,yahoo",
    "MDP_LIMITS": "yahoo=none;finnhub=none;alpaca=none;massive=none;alphavantage=none;fred=none",
    "MDP_HTTP_BACKOFF_SECONDS": "0.01",
    "MDP_HTTP_TIMEOUT_SECONDS": "2",
    "MDP_ALLOW_MIXED_FEEDS": "true",
    # Everything that is ever said, and every call that is made.
    "MDP_LOG_LEVEL": "debug",
    "MDP_LOG_FORMAT": "json",
    "MDP_VIZTRACER_ENABLED": "true",
}
COMMANDS = (
    ("backfill", "--all", "--interval", "1m", "--interval", "1d", "--start", str(MONDAY), "--end", str(FRIDAY)),
    ("providers", "probe", "alphavantage"),
    ("providers", "health", "--json"),
    ("providers", "history", "alphavantage"),
    ("fetch", "quotes", *SYMBOLS),
    ("fetch", "macro", "GDP"),
    ("gaps", "--explain"),
)


@pytest.fixture(scope="module")
def used() -> Iterator[tuple[Running, list[str]]]:
    """A stack with the canary in it that was used in every way, and everything its commands said."""
    with a_home() as home:
        _write_data(home)
        with running_simulator(data=home / "data", now=SATURDAY, faults=FAULTS) as simulator:
            told = {**_with_canary(simulator.environment()), **POLICIES}
            with a_stack(home, told) as stack:
                said = [_output(stack, "universe", "load", str(home / "universe.csv"))]
                said += [_output(stack, *command) for command in COMMANDS]
                # A provider that nobody answers for: the error holds the whole request.
                nowhere = dict.fromkeys(("MDP_FRED_BASE_URL", "MDP_ALPHAVANTAGE_BASE_URL"), "http://127.0.0.1:9")
                lost = Running(home, {**stack.environment, **nowhere})
                said += [_output(lost, "fetch", "macro", "GDP"), _output(lost, "providers", "probe", "alphavantage")]
                said.append(str(simulator.requests()))
                yield stack, said


def _with_canary(environment: Mapping[str, str]) -> dict[str, str]:
    keys = {name: value for name, value in environment.items() if "_KEY" in name}
    # FRED's keys are 32 letters and digits, no more: there it takes the place of the end.
    changed = {name: key[: 32 - len(CANARY)] + CANARY if name == "MDP_FRED_KEY" else key + CANARY for name, key in keys.items()}
    assert len(changed) >= 6
    return {**environment, **changed}


def _write_data(home: Path) -> None:
    minutes, days = expected_opens(Interval.M1), [at - at % 86_400 for at in expected_opens(Interval.D1)]
    for place, symbol in enumerate(SYMBOLS):
        write_bars(home / "data", symbol, Interval.M1, minutes, close=10.0 * (place + 1))
        write_bars(home / "data", symbol, Interval.D1, days, close=10.0 * (place + 1))
    (home / "data" / "macro").mkdir()
    (home / "data" / "macro" / "GDP.csv").write_text(
        "date,value,realtime_start,realtime_end\n2024-07-01,1.5,2024-10-30,9999-12-31\n"
    )
    (home / "universe.csv").write_text("symbol,exchange,tier\n" + "".join(f"{symbol},XNAS,T0\n" for symbol in SYMBOLS))


def _output(stack: Running, *arguments: str) -> str:
    done = stack.mdp(*arguments)
    assert done.returncode in {0, 1, 3}, done.stdout + done.stderr
    return done.stdout + done.stderr


# As it is, shouted, and inside a basic-authentication header, whose base64 depends on where in a triple of bytes it begins.
FORMS = (CANARY, CANARY.upper(), *(base64.b64encode((" " * n + CANARY).encode()).decode()[4:12] for n in range(3)))


def holds_it(text: str) -> bool:
    return any(form in text for form in FORMS)


def test_no_command_says_the_key(used: tuple[Running, list[str]]) -> None:
    _, said = used
    assert [text for text in said if holds_it(text)] == []


def test_no_log_or_file_of_the_stack_holds_the_key(used: tuple[Running, list[str]]) -> None:
    stack, _ = used
    files = stack.files()
    assert files
    assert [path for path in files if holds_it(path.read_bytes().decode("utf-8", "replace"))] == []


@pytest.mark.parametrize("database", ["market_data", "dagster"])
def test_no_table_holds_the_key(used: tuple[Running, list[str]], database: str) -> None:
    stack, _ = used
    url = sa.make_url(database_url(Settings(home=stack.home))).set(drivername="postgresql", database=database)
    with closing(psycopg2.connect(url.render_as_string(hide_password=False))) as connection, connection.cursor() as cursor:
        cursor.execute("select schemaname, tablename from pg_tables where schemaname not in ('pg_catalog', 'information_schema')")
        tables = cursor.fetchall()
        assert len(tables) > 10
        found = {}
        for schema, table in tables:
            cursor.execute(
                sql.SQL("select count(*), count(*) filter (where t::text ~* %s) from {} t").format(sql.Identifier(schema, table)),
                ("|".join(FORMS),),
            )
            rows, holding = cursor.fetchone() or (0, 0)
            found[table] = holding
            assert rows or holding == 0
    assert {table: count for table, count in found.items() if count} == {}


def test_the_canary_was_really_used(used: tuple[Running, list[str]]) -> None:
    # A test that greps for something nobody had would always pass.
    stack, _ = used
    asked = stack.rows("select provider, count(*) filter (where error is not null) from fetches group by 1")
    failed = {str(provider): int(str(count)) for provider, count in asked}
    assert {"alphavantage", "finnhub", "massive", "alpaca", "fred"} <= set(failed)
    assert sum(failed.values()) > 5


def test_requests_were_really_logged_and_runs_really_traced(used: tuple[Running, list[str]]) -> None:
    stack, said = used
    assert "'level': 'debug'" in str([json.loads(line) for line in "".join(said).splitlines() if line.startswith('{"time"')])
    traces = [path for path in stack.files() if path.parent.name == "traces"]
    assert any("CandleWriter.write" in path.read_text() for path in traces)
    logged = [path for path in stack.files() if path.suffix == ".err" and '"logger": "market_data_pipeline.' in path.read_text()]
    assert logged
