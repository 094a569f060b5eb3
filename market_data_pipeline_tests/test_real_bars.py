"""Real recorded bars through the whole path: wire format, adapter, judgement, Postgres, point in time."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.coverage import Verdict
from market_data_pipeline_tests.recorded import Row, lean_2013, yahoo_aapl_snapshots_2026, yahoo_msft_2022
from market_data_pipeline_tests.world import World, a_world

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from market_data_pipeline.domain.ports import StoredCandles
    from market_data_pipeline.domain.universe import Instrument

FIELDS = ("open", "high", "low", "close", "volume")
DAY = 86_400


def values_of(rows: Sequence[Row]) -> dict[int, tuple[float, ...]]:
    return {row.opened_at: tuple(getattr(row, name) for name in FIELDS) for row in rows}


def stored_values(stored: StoredCandles) -> dict[int, tuple[float, ...]]:
    columns = [getattr(stored.columns, name).tolist() for name in FIELDS]
    return dict(zip(stored.columns.opened_at.tolist(), zip(*columns, strict=True), strict=True))


def as_float32(bars: dict[int, tuple[float, ...]]) -> dict[int, tuple[float, ...]]:
    """Prices at the resolution at which Yahoo's are compared: a difference below it is noise and makes no revision."""
    return {at: (*(float(np.float32(price)) for price in prices), volume) for at, (*prices, volume) in bars.items()}


def day_of(opened_at: int) -> date:
    return date(1970, 1, 1) + timedelta(days=opened_at // DAY)


def read(
    world: World, instrument: Instrument, interval: Interval, *, as_of: datetime | None = None
) -> dict[int, tuple[float, ...]]:
    return stored_values(world.pipeline.reader.read([instrument.symbol_id], interval, 0, 1 << 33, as_of=as_of))


def backfilled(world: World, instrument: Instrument, interval: Interval, rows: Sequence[Row], *, refetch: bool = False) -> int:
    """Ingest the days of ``rows``; how many of their bars are present afterwards."""
    days = [day_of(row.opened_at) for row in rows]
    [report] = world.ingest([instrument], interval, min(days), max(days), refetch=refetch)
    assert report.failure is None
    return report.verdicts[Verdict.PRESENT]


def test_a_month_of_msft_minutes_of_2022_is_stored_value_by_value(tmp_path: Path, database_url: str) -> None:
    recorded = yahoo_msft_2022(tmp_path / "data")
    # Yahoo serves minutes of the last 30 days: the file begins on 2022-05-18 and ends on 2022-06-15 at 12:30 New York. Any later it
    # would be what it looks like: an answer from the past.
    with a_world(recorded.directory, database_url, tmp_path, now=datetime(2022, 6, 15, 16, 32, tzinfo=UTC)) as world:
        [msft] = world.load("MSFT")
        rows = recorded.rows["1m", "MSFT"]
        assert backfilled(world, msft, Interval.M1, rows) == len(rows) == 7440
        assert read(world, msft, Interval.M1) == values_of(rows)


def test_msft_days_since_1986_are_stored_value_by_value(tmp_path: Path, database_url: str) -> None:
    recorded = yahoo_msft_2022(tmp_path / "data")
    with a_world(recorded.directory, database_url, tmp_path, now=recorded.now) as world:
        [msft] = world.load("MSFT")
        rows = recorded.rows["1d", "MSFT"]
        backfilled(world, msft, Interval.D1, rows)
        assert read(world, msft, Interval.D1) == values_of(rows)


@pytest.mark.parametrize("interval", [Interval.M1, Interval.D1])
def test_lean_bars_of_2013_are_stored_without_what_traded_outside_the_session(
    tmp_path: Path, database_url: str, interval: Interval
) -> None:
    recorded = lean_2013(tmp_path / "data")
    with a_world(recorded.directory, database_url, tmp_path, now=recorded.now) as world:
        for instrument in world.load("SPY", "IBM", "BAC", exchange="XNYS"):
            rows = recorded.rows[interval, instrument.symbol]
            if interval.is_daily:
                rows = tuple(row for row in rows if row.opened_at < recorded.now.timestamp() - DAY)
            backfilled(world, instrument, interval, rows)
            assert read(world, instrument, interval) == values_of(rows)


@pytest.mark.parametrize("interval", [Interval.M1, Interval.D1])
def test_as_of_each_pull_every_bar_of_that_pull_has_its_values(tmp_path: Path, database_url: str, interval: Interval) -> None:
    """But for what flickers: Yahoo's servers tell some days in two values that differ in the last bit, now this, now that."""
    recorded = yahoo_aapl_snapshots_2026(tmp_path / "data")
    pulls = recorded.pulls[interval, "AAPL"]
    with a_world(recorded.directory, database_url, tmp_path, now=pulls[0].known_from) as world:
        [aapl] = world.load("AAPL")
        seen: dict[int, tuple[float, ...]] = {}
        tenures: Counter[tuple[int, tuple[float, ...]]] = Counter()
        believed: list[tuple[datetime, dict[int, tuple[float, ...]]]] = []
        for pull in pulls:
            world.simulator.set_now(pull.known_from)
            backfilled(world, aapl, interval, pull.rows, refetch=True)
            # What is unfinished at the time of the pull is not a bar yet.
            for at, told in as_float32(finished(interval, values_of(pull.rows), pull.known_from)).items():
                if told == seen.get(at):
                    continue
                if tenures[at, told] < 2:
                    seen[at] = told
                    tenures[at, told] += 1
                else:
                    assert told == pytest.approx(seen[at], rel=1e-6), "the third time it is left out, and is the same but for noise"
            believed.append((pull.known_from, dict(seen)))
        for known_at, bars in believed:
            assert as_float32(read(world, aapl, interval, as_of=known_at)) == bars
        assert world.count("candle_revisions") > 0


def finished(interval: Interval, bars: dict[int, tuple[float, ...]], now: datetime) -> dict[int, tuple[float, ...]]:
    """The bars that had ended a minute and a half before ``now``; a day ends with its session, at 20:00 UTC in that March."""
    length = 20 * 3600 if interval.is_daily else interval.seconds
    return {at: values for at, values in bars.items() if at + length + 90 <= now.timestamp()}
