"""Quotes and chains of simulated Yahoo and CBOE on their whole way: HTTP, adapter, judge, Postgres; and who stands in for whom."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.domain.capabilities import Feed
from market_data_pipeline.ingest.snapshots import fetch_chain, fetch_quotes
from market_data_pipeline.simulator.client import RunningSimulator, running_simulator
from market_data_pipeline.simulator.yahoo_quotes import cookie, crumb
from market_data_pipeline.storage.options import OptionStore
from market_data_pipeline_tests.simulator.directories import minute, session_of_minutes, write_bars, write_lines
from market_data_pipeline_tests.world import Worlds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from market_data_pipeline_tests.world import World

NOON = minute(150)
SEED = 7


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSimulator]:
    """A day of two shares, at noon."""
    folder = tmp_path_factory.mktemp("snapshots")
    write_lines(folder, "universe.csv", "symbol,exchange,asset_type", "AAPL,XNAS,equity", "MSFT,XNAS,equity")
    for symbol in ("AAPL", "MSFT"):
        write_bars(folder, session_of_minutes(), symbol=symbol)
    with running_simulator(data=folder, now=NOON, seed=SEED) as running:
        yield running


@pytest.fixture
def worlds(simulator: RunningSimulator, database_url: str, tmp_path: Path) -> Worlds:
    simulator.reset()
    return Worlds(simulator, database_url, tmp_path)


def everything_in(world: World) -> str:
    """Every row of every table of ours, as text."""
    with world.pipeline.engine.connect() as connection:
        tables = connection.exec_driver_sql(
            "select quote_ident(tablename) from pg_tables where schemaname = 'public' order by 1"
        ).scalars()
        return "\n".join(
            row
            for table in tables
            for row in connection.exec_driver_sql(f"select t::text from {table} t").scalars()  # noqa: S608 - quoted by Postgres
        )


@pytest.mark.parametrize("vendor", ["yahoo", "cboe"])
def test_quotes_and_a_chain_are_stored_as_told(worlds: Worlds, vendor: str) -> None:
    with worlds.of(vendor) as world:
        instruments = world.load("AAPL", "MSFT")
        reports = list(fetch_quotes(instruments, pipeline=world.pipeline))
        told = fetch_chain(instruments[0], pipeline=world.pipeline)
        stored = OptionStore(world.pipeline.engine).latest(instruments[0].symbol_id)
        with world.pipeline.engine.connect() as connection:
            feeds = set(connection.exec_driver_sql("select feed from quotes_l1").scalars())
    assert {symbol: who for report in reports for symbol, who in report.providers.items()} == {"AAPL": vendor, "MSFT": vendor}
    assert (told.is_complete, told.taken_at, told.written.contracts) == (True, NOON, 66)
    assert stored is not None
    assert len(stored.contracts) == 66
    assert feeds == {Feed.CBOE if vendor == "cboe" else Feed.CONSOLIDATED}


def test_where_yahoo_lets_nobody_in_cboe_is_asked(worlds: Worlds) -> None:
    worlds.simulator.set_faults([{"match": {"provider": "yahoo", "path": "/v7/*"}, "action": "status", "code": 401}])
    with worlds.of("yahoo", "cboe") as world:
        (apple,) = world.load("AAPL")
        (report,) = fetch_quotes([apple], pipeline=world.pipeline)
        told = fetch_chain(apple, pipeline=world.pipeline)
    assert report.providers == {"AAPL": "cboe"}
    assert told.provider == "cboe"


def test_no_pass_to_yahoo_is_in_any_table(worlds: Worlds) -> None:
    with worlds.of("yahoo") as world:
        (apple,) = world.load("AAPL")
        list(fetch_quotes([apple], pipeline=world.pipeline))
        worlds.simulator.set_faults([{"match": {"path": "/v7/*", "first": 1}, "action": "status", "code": 401}])
        fetch_chain(apple, pipeline=world.pipeline)
        stored = everything_in(world)
    day = int(datetime(2024, 12, 2, tzinfo=UTC).timestamp()) // 86_400
    assert "Invalid Crumb" in stored
    assert cookie(SEED) not in stored
    assert crumb(SEED, cookie(SEED), day) not in stored
