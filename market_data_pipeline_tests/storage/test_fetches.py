"""What is recorded of an answer is what is read back."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.ports import Fetch
from market_data_pipeline.domain.universe import Tier, UniverseEntry
from market_data_pipeline.storage.fetches import FetchStore
from market_data_pipeline.storage.universe import UniverseStore

if TYPE_CHECKING:
    from sqlalchemy import Engine

ANSWERED = Fetch(
    provider="yahoo",
    symbol="AAPL",
    interval=Interval.M1,
    request="GET /v8/finance/chart/AAPL?interval=1m",
    started_at=datetime(2026, 3, 2, 14, 30, tzinfo=UTC),
    latency_seconds=0.25,
    outcome="ok",
    status=200,
    rows=390,
    payload_bytes=51234,
    payload_sha256="a" * 64,
    dropped={"unaligned": 1, "null": 3},
)
FAILED = replace(
    ANSWERED, outcome="transient", status=None, rows=0, payload_bytes=0, payload_sha256=None, dropped={}, error="timed out"
)


@pytest.fixture
def apple(engine: Engine) -> int:
    universe = UniverseStore(engine)
    universe.load([UniverseEntry("AAPL", "XNYS", Tier.T0)], version_tag="v", source="t", source_sha256="s", loaded_by="t")
    return universe.instrument("AAPL").symbol_id


def test_a_fetch_is_read_back_as_it_was(engine: Engine, apple: int) -> None:
    (fetch_id,) = FetchStore(engine).record([(apple, ANSWERED)], run_id="run-1")
    (stored,) = FetchStore(engine).latest(apple, Interval.M1)
    assert (stored.fetch_id, stored.symbol_id, stored.run_id, stored.fetch) == (fetch_id, apple, "run-1", ANSWERED)


def test_ids_come_in_the_order_of_the_fetches(engine: Engine, apple: int) -> None:
    given = [(apple, replace(ANSWERED, rows=n)) for n in range(50)]
    ids = FetchStore(engine).record(given)
    stored = FetchStore(engine).latest(apple, Interval.M1, limit=100)
    assert [(s.fetch_id, s.fetch.rows) for s in reversed(stored)] == list(zip(ids, range(50), strict=True))


def test_the_latest_is_that_of_the_interval(engine: Engine, apple: int) -> None:
    store = FetchStore(engine)
    store.record([(apple, ANSWERED)])
    store.record([(apple, FAILED)])
    store.record([(apple, replace(ANSWERED, interval=Interval.H1, started_at=ANSWERED.started_at + timedelta(hours=1)))])
    (latest,) = store.latest(apple, Interval.M1)
    assert latest.fetch == FAILED
    assert store.latest(apple, Interval.D1) == []


def test_an_error_may_quote_any_bytes(engine: Engine, apple: int) -> None:
    FetchStore(engine).record([(apple, replace(FAILED, error="body: \x00\ud800 %s '; drop table fetches"))])
    (stored,) = FetchStore(engine).latest(apple, Interval.M1)
    assert stored.fetch.error == "body: \N{REPLACEMENT CHARACTER}? %s '; drop table fetches"


def test_nothing_to_record_is_fine(engine: Engine) -> None:
    assert FetchStore(engine).record([]) == []
