"""Bars in the database for tests of commands that read: whole sessions of the real calendar, "full, except …"."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
from pydantic import SecretStr

from market_data_pipeline.domain.candles import CandleColumns, Interval
from market_data_pipeline.domain.ports import AnsweredSession, CandleBatch, Fetch
from market_data_pipeline.ingest.grid import Grid
from market_data_pipeline.settings import Settings
from market_data_pipeline.wiring import open_pipeline

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline_tests.cli.conftest import Mdp

MONDAY, TUESDAY, FRIDAY = date(2024, 12, 2), date(2024, 12, 3), date(2024, 12, 6)
UNIVERSE = """\
symbol,exchange,tier,asset_type,currency,alias_yahoo
AAPL,XNAS,T0,equity,USD,
BRK.B,XNYS,T1,equity,USD,BRK-B
0700.HK,XHKG,T1,equity,HKD,
"""
LATER = datetime(2024, 12, 7, 9, tzinfo=UTC)


def universe_file(folder: Path, text: str = UNIVERSE, *, name: str = "universe.csv") -> str:
    """The path of a universe file with this text."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def fetch_of(symbol: str, interval: Interval = Interval.M1, *, rows: int = 0, started_at: datetime = LATER) -> Fetch:
    """The provenance of an answer of Yahoo's."""
    return Fetch(
        provider="yahoo",
        symbol=symbol,
        interval=interval,
        request="GET /v8/finance/chart",
        started_at=started_at,
        latency_seconds=0.1,
        outcome="ok",
        rows=rows,
    )


@contextmanager
def pipeline_of(mdp: Mdp) -> Iterator[Pipeline]:
    """The pipeline on the database that ``mdp`` uses."""
    settings = Settings(
        home=mdp.home / "home",
        database_url=SecretStr(mdp.environment["MDP_DATABASE_URL"]),
        clock=mdp.environment["MDP_CLOCK"],
    )
    with open_pipeline(settings) as pipeline:
        yield pipeline


def store(
    pipeline: Pipeline,
    symbol: str,
    session: date,
    *,
    interval: Interval = Interval.M1,
    lacking: Collection[int] = (),
    price: float = 100.0,
    known_at: datetime = LATER,
) -> None:
    """Store one session of ``symbol``, except the slots that are ``lacking``: each bar opens at ``price`` plus its slot."""
    instrument = pipeline.universe.instrument(symbol)
    grid = Grid.of(pipeline.calendars(instrument.calendar), interval, session, session)
    bars = np.array([slot not in lacking for slot in range(len(grid.opened_at))], bool)
    slots = np.flatnonzero(bars)
    opens = price + slots
    answered = AnsweredSession(
        symbol_id=instrument.symbol_id,
        session=session,
        opens_at=int(grid.opens_at[0]),
        closes_at=int(grid.closes_at[0]),
        bars=bars,
        silent=~bars,
        due=np.ones(len(bars), bool),
    )
    fetch = fetch_of(symbol, interval, rows=len(slots), started_at=known_at)
    batch = CandleBatch(
        interval=interval,
        symbol_id=np.full(len(slots), instrument.symbol_id, np.int32),
        columns=CandleColumns.of(grid.opened_at[slots], opens, opens + 1, opens - 1, opens + 0.5, np.full(len(slots), 1500.0)),
        session_index=np.zeros(len(slots), np.int32),
        fetch_index=np.zeros(len(slots), np.int32),
        flags=np.zeros(len(slots), np.int16),
        sessions=[answered],
        fetches=[fetch],
    )
    policy = pipeline.settings.healing_policy
    pipeline.writer.write(batch, now=known_at, policy=policy, known_at=known_at)


def hours(count: float) -> timedelta:
    """A stretch of knowledge time."""
    return timedelta(hours=count)
