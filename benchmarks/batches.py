"""What the storage benchmarks share: a server of their own, symbols, and batches of whole sessions of plausible minutes."""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import sqlalchemy as sa

from market_data_pipeline.domain.candles import CandleColumns, Interval
from market_data_pipeline.domain.healing import HealingPolicy
from market_data_pipeline.domain.ports import AnsweredSession, CandleBatch, Fetch
from market_data_pipeline.storage.database import open_engine
from market_data_pipeline.storage.embedded import EmbeddedPostgres
from market_data_pipeline.storage.migrations import apply_migrations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy.engine import Engine

SLOTS = 390
FIRST_SESSION = date(2024, 1, 1)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = HealingPolicy()


@contextmanager
def fresh_database() -> Iterator[Engine]:
    """A migrated, empty database on an embedded server with its default, durable settings; both are gone afterwards."""
    # Not under a private directory: root's server runs as another account, which must be able to enter.
    home = Path(tempfile.mkdtemp(prefix="mdp-bench-"))
    home.chmod(0o711)
    server = EmbeddedPostgres(home)
    try:
        engine = open_engine(server.ensure())
        apply_migrations(engine)
        yield engine
        engine.dispose()
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)


def add_symbols(engine: Engine, count: int) -> list[int]:
    """The ids of ``count`` new symbols."""
    with engine.begin() as connection:
        version = connection.execute(
            sa.text(
                "insert into universe_versions (version_tag, source, source_sha256, symbols, added, changed, deactivated,"
                " loaded_by) values (gen_random_uuid()::text, 'benchmark', 'none', :n, :n, 0, 0, 'benchmark') returning version_id"
            ),
            {"n": count},
        ).scalar_one()
        added = connection.execute(
            sa.text(
                "insert into symbol_universe (symbol, exchange, calendar, tier, version_id)"
                " select 'S' || :version || '.' || n, 'XNYS', 'XNYS', 'T0', :version from generate_series(1, :n) as n"
                " returning symbol_id"
            ),
            {"n": count, "version": version},
        )
        return sorted(added.scalars().all())


def minutes(symbol_ids: Sequence[int], sessions: int, *, seed: int = 1) -> CandleBatch:
    """One batch of whole sessions of minutes: float32 prices widened, whole volumes, no VWAP: what Yahoo sends."""
    random = np.random.default_rng(seed)
    days = [FIRST_SESSION + timedelta(days=day) for day in range(sessions)]
    opens = np.array([int(datetime(d.year, d.month, d.day, 14, 30, tzinfo=UTC).timestamp()) for d in days])
    rows = len(symbol_ids) * sessions * SLOTS
    close = (50 + np.abs(np.cumsum(random.normal(0, 0.05, rows)))).astype(np.float32).astype(np.float64)
    open_ = np.roll(close, 1)
    spread = np.float32(0.02)
    high = (np.maximum(open_, close).astype(np.float32) + spread).astype(np.float64)
    low = (np.minimum(open_, close).astype(np.float32) - spread).astype(np.float64)
    volume = random.integers(100, 100_000, rows).astype(np.float64)
    stamps = np.tile((opens[:, None] + np.arange(SLOTS) * 60).ravel(), len(symbol_ids))
    everything, nothing = np.ones(SLOTS, bool), np.zeros(SLOTS, bool)
    return CandleBatch(
        interval=Interval.M1,
        symbol_id=np.repeat(np.array(symbol_ids, np.int32), sessions * SLOTS),
        columns=CandleColumns.of(stamps, open_, high, low, close, volume),
        session_index=np.repeat(np.arange(len(symbol_ids) * sessions, dtype=np.int32), SLOTS),
        fetch_index=np.repeat(np.arange(len(symbol_ids), dtype=np.int32), sessions * SLOTS),
        flags=np.zeros(rows, np.int16),
        sessions=[
            AnsweredSession(symbol_id, day, int(opened), int(opened) + 23_400, everything, nothing, everything)
            for symbol_id in symbol_ids
            for day, opened in zip(days, opens, strict=True)
        ],
        fetches=[
            Fetch("benchmark", f"S{symbol_id}", Interval.M1, "/benchmark", NOW, 0.1, "ok", status=200, rows=sessions * SLOTS)
            for symbol_id in symbol_ids
        ],
        float32_prices=True,
    )


def changed(batch: CandleBatch, share: float, *, seed: int = 2) -> CandleBatch:
    """The same batch with another volume in this share of its bars, scattered over all of it."""
    chosen = np.random.default_rng(seed).random(len(batch.columns)) < share
    return replace(batch, columns=replace(batch.columns, volume=batch.columns.volume + chosen))


def one_by_one(batch: CandleBatch) -> list[CandleBatch]:
    """The same bars as a batch for each session."""
    edges = np.searchsorted(batch.session_index, np.arange(len(batch.sessions) + 1)).tolist()
    parts = []
    for index, session in enumerate(batch.sessions):
        rows = np.arange(edges[index], edges[index + 1])
        fetch = batch.fetches[int(batch.fetch_index[rows[0]])]
        parts.append(
            replace(
                batch,
                symbol_id=batch.symbol_id[rows],
                columns=batch.columns.take(rows),
                session_index=np.zeros(len(rows), np.int32),
                fetch_index=np.zeros(len(rows), np.int32),
                flags=batch.flags[rows],
                sessions=[session],
                fetches=[fetch],
            )
        )
    return parts


def timed(work: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of each round."""
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return taken
