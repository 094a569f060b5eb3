"""From a vendor to the database: what files and Alpaca's many symbols a request bring is stored, and says where it is from."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline_tests.providers.test_files import LEAN, describe, linked
from market_data_pipeline_tests.recorded import lean_2013
from market_data_pipeline_tests.world import MONDAY, a_world, expected_opens, write_bars

if TYPE_CHECKING:
    from pathlib import Path


def test_leans_zips_become_stored_minutes(tmp_path: Path, database_url: str) -> None:
    usa = linked(tmp_path / "files", "lean")
    minutes = {**LEAN, "interval": "1m", "path": "equity/usa/minute/{symbol_lower}/{date}_trade.zip"}
    describe(usa, {**minutes, "stamp_format": "milliseconds_since_midnight"})
    expected = lean_2013(tmp_path / "expected")
    now = datetime(2013, 10, 12, 12, tzinfo=UTC)
    with a_world(
        expected.directory, database_url, tmp_path / "home", now=now, vendors=("files",), files_dir=tmp_path / "files"
    ) as world:
        instruments = world.load("SPY", exchange="ARCX")
        reports = world.ingest(instruments, Interval.M1, date(2013, 10, 4), date(2013, 10, 10))
        stored = world.stored(instruments[0])
        with world.pipeline.engine.connect() as connection:
            told = connection.exec_driver_sql("select distinct provider, request, attempts from fetches where rows > 0").all()
    assert stored == {row.opened_at: row.close for row in expected.rows["1m", "SPY"]}
    assert [report.failure for report in reports] == [None]
    assert {(provider, attempts) for provider, _, attempts in told} == {("files", 0)}
    assert all(request.startswith("READ lean/equity/usa/minute/spy/2013") for _, request, _ in told)


def test_alpaca_serves_many_symbols_in_few_requests(tmp_path: Path, database_url: str) -> None:
    names = [f"S{n:02}" for n in range(25)]
    for name in names:
        write_bars(tmp_path / "data", name, Interval.M1, expected_opens(first=MONDAY, last=MONDAY))
    with a_world(tmp_path / "data", database_url, tmp_path / "home", vendors=("alpaca",), alpaca_feed="sip") as world:
        instruments = world.load(*names)
        world.ingest(instruments, Interval.M1, MONDAY, MONDAY)
        counts = {len(world.stored(instrument)) for instrument in instruments}
        asked = [entry for entry in world.simulator.requests() if entry["path"].startswith("/alpaca")]
    assert counts == {390}
    assert len(asked) < len(names)
