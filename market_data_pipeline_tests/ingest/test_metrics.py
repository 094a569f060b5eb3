"""A snapshot has every metric of the catalogue and no other, few series however large the universe, and no secret."""

from __future__ import annotations

import itertools
import math
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

from pydantic import SecretStr

from market_data_pipeline import __version__
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.capabilities import Lane, Priority
from market_data_pipeline.domain.health import Outcome
from market_data_pipeline.domain.metrics import BY_NAME, METRICS, Histogram, MetricKind
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.ingest.freshness import record_census, take_census
from market_data_pipeline.ingest.grid import Grid
from market_data_pipeline.ingest.metrics import snapshot
from market_data_pipeline.observability.exposition import exposition
from market_data_pipeline.settings import Settings
from market_data_pipeline.storage.fetches import FetchStore
from market_data_pipeline.storage.watch import WatchState, save_watch_state
from market_data_pipeline.wiring import open_pipeline
from market_data_pipeline_tests.storage.builders import fetch
from market_data_pipeline_tests.storage.test_jobs import backfill

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest

    from market_data_pipeline.domain.metrics import MetricsSnapshot
    from market_data_pipeline.ingest.pipeline import Pipeline

SESSION = date(2024, 12, 4)
NOON = datetime(2024, 12, 4, 17, 0, tzinfo=UTC)
CANARY = "canary7f3a91"
# Few enough for Prometheus to keep for years; the benchmark says how many there are on a busy day.
MOST_SERIES = 1_000
SYMBOLS = """
with v as (
  insert into universe_versions (version_tag, source, source_sha256, symbols, added, changed, deactivated, loaded_by)
  values ('v', 'a test', 'none', %(n)s, %(n)s, 0, 0, 'a test') returning version_id
)
insert into symbol_universe (symbol, exchange, calendar, tier, version_id)
select 'SYM' || n, 'XNAS', case when n %% 10 = 0 then 'XLON' else 'XNYS' end, 'T' || n %% 3, version_id
  from v, generate_series(1, %(n)s) as n"""
LEDGER = """
insert into coverage (symbol_id, interval_s, session, opens_at, closes_at, expected, present, confirmed_empty, next_attempt_at,
                      as_of)
select symbol_id, %(seconds)s, %(session)s, to_timestamp(%(opens)s), to_timestamp(%(closes)s), %(length)s,
       case when symbol_id %% 20 = 7 then overlay(%(known)s::varbit placing b'0' from 3) else %(known)s::varbit end,
       %(none)s::varbit, %(now)s, %(now)s
  from symbol_universe where calendar = 'XNYS'"""


@contextmanager
def at(now: datetime, database_url: str, home: Path, **told: object) -> Iterator[Pipeline]:
    """A pipeline whose clock stands."""
    with open_pipeline(Settings(home=home, database_url=SecretStr(database_url), clock=now.isoformat(), **told)) as pipeline:  # type: ignore[arg-type]
        yield pipeline


def follow(pipeline: Pipeline, symbols: int) -> None:
    """A universe in the middle of a session: all have their bars until a quarter of an hour ago; some lack one in between."""
    with pipeline.engine.begin() as connection:
        connection.exec_driver_sql(SYMBOLS, {"n": symbols})
        for interval in (Interval.M1, Interval.M5):
            grid = Grid.of(pipeline.calendars("XNYS"), interval, SESSION, SESSION)
            length, known = len(grid.ends_at), int((grid.ends_at <= NOON.timestamp() - 900).sum())
            bits = {"known": "1" * known + "0" * (length - known), "none": "0" * length, "length": length}
            hours = {"opens": int(grid.opens_at[0]), "closes": int(grid.closes_at[0])}
            connection.exec_driver_sql(LEDGER, {"seconds": interval.seconds, "session": SESSION, "now": NOON, **bits, **hours})
        # As autovacuum does within a minute.
        connection.exec_driver_sql("analyze coverage, symbol_universe")


def keep_busy(pipeline: Pipeline) -> None:
    """Something of everything that is counted."""
    FetchStore(pipeline.engine).record([(None, fetch(rows=3)), (None, fetch(outcome="transient", status=503))])
    pipeline.health.record("yahoo", "bars_1m", Outcome("transient", 0.2), now=NOON)
    assert pipeline.budget is not None
    pipeline.budget.take("alpaca", "", Priority(Lane.LIVE), patience_seconds=1)
    pipeline.jobs.submit([backfill(1), backfill(2)])
    pipeline.jobs.complete(pipeline.jobs.lease("w", tier=Tier.T0, limit=1)[0])
    for name in ("gaps_found_total", "bar_revisions_total", "refused_bars_total"):
        pipeline.counters.add(name, {"interval": "1m"})
    pipeline.counters.observe("write_batch_seconds", {}, 0.2)
    pipeline.counters.flush()
    record_census(pipeline, take_census(pipeline))
    with pipeline.engine.begin() as connection:
        connection.exec_driver_sql(
            "insert into alerts (rule, key, severity, state, value, text, labels, members, began_at, seen_at, fired_at)"
            " values ('SymbolStale', 'SYM1', 'warning', 'firing', 1, 'SYM1 is late', '{}', array['SYM1'], now(), now(), now())"
        )


def of(found: MetricsSnapshot, name: str) -> dict[tuple[str, ...], float | Histogram]:
    """The values of one metric, by labels."""
    return {labels: value for (named, labels), value in found.values.items() if named == name}


def test_every_metric_of_the_catalogue_is_there_and_no_other(database_url: str, tmp_path: Path) -> None:
    with at(NOON, database_url, tmp_path) as pipeline:
        follow(pipeline, 60)
        keep_busy(pipeline)
        found = snapshot(pipeline, now=NOON)
    assert {name for name, _ in found.values} == set(BY_NAME)
    for (name, labels), value in found.values.items():
        metric = BY_NAME[name]
        assert len(labels) == len(metric.labels), name
        assert isinstance(value, Histogram) is (metric.kind is MetricKind.HISTOGRAM), name


def test_its_numbers_are_those_of_the_tables(database_url: str, tmp_path: Path) -> None:
    with at(NOON, database_url, tmp_path, slo_targets="T0=0.005,T1=0.02,T2=0.05") as pipeline:
        follow(pipeline, 60)
        keep_busy(pipeline)
        save_watch_state(pipeline.engine, WatchState(NOON - timedelta(seconds=42), "a test"))
        found = snapshot(pipeline, now=NOON)
        horizon = pipeline.calendars("XNYS").days_to_horizon(NOON.date())
    assert of(found, "provider_errors_total") == {("yahoo", "bars_1m", "transient"): 1}
    assert of(found, "circuit_state") == {("yahoo", "bars_1m"): 1.0}
    assert of(found, "jobs_processed_total") == {("backfill", "any", "done"): 1}
    assert of(found, "backfill_queue_depth") == {("T0",): 1, ("T1",): 0, ("T2",): 0}
    assert of(found, "alerts_firing") == {("SymbolStale", "warning"): 1}
    assert of(found, "watch_age_seconds") == {(): 42.0}
    assert of(found, "calendar_horizon_seconds")["XNYS",] == horizon * 86_400
    assert of(found, "build_info") == {(__version__,): 1.0}
    assert of(found, "slo_objective_ratio") == {("T0",): 0.005, ("T1",): 0.02, ("T2",): 0.05}
    # A fiftieth of what was sent in a second, whatever of alpaca's limit that is.
    ((place, share),) = of(found, "provider_budget_used_ratio").items()
    assert place[0] == "alpaca"
    assert isinstance(share, float)
    assert 0 < share <= 1


def test_who_has_no_bar_of_the_last_quarter_of_an_hour_is_late_by_that(database_url: str, tmp_path: Path) -> None:
    with at(NOON, database_url, tmp_path) as pipeline:
        follow(pipeline, 60)
        found = snapshot(pipeline, now=NOON)
        census = {(str(line.tier), str(line.interval)): line for line in take_census(pipeline).lines}
    rates = of(found, "slo_gap_violation_rate")
    assert rates["T0", "1m"] == 1.0
    lag = of(found, "ingestion_lag_median_seconds")["T0", "1m"]
    assert isinstance(lag, float)
    assert 600 < lag < 1000
    assert of(found, "slo_symbols")["T0", "1m", "stale"] == census["T0", "1m"].stale
    missing = of(found, "ledger_missing_bars")
    assert missing["1m", "T0", "due"]
    assert missing["5m", "T0", "derived"]


def test_with_the_census_of_a_watch_nobody_counts_again(database_url: str, tmp_path: Path) -> None:
    with at(NOON, database_url, tmp_path) as pipeline:
        follow(pipeline, 30)
        census = take_census(pipeline)
        with pipeline.engine.begin() as connection:
            connection.exec_driver_sql("update symbol_universe set active = false")
        rates = of(snapshot(pipeline, now=NOON, census=census), "slo_gap_violation_rate")
        assert rates["T0", "1m"] == 1.0
        assert not of(snapshot(pipeline, now=NOON), "slo_gap_violation_rate")


def test_a_watch_that_never_was_is_infinitely_old(database_url: str, tmp_path: Path) -> None:
    with at(NOON, database_url, tmp_path) as pipeline:
        assert of(snapshot(pipeline, now=NOON), "watch_age_seconds") == {(): math.inf}


def test_8000_symbols_make_as_few_series_as_60(database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with at(NOON, database_url, tmp_path) as pipeline:
        follow(pipeline, 8_000)
        keep_busy(pipeline)
        found = snapshot(pipeline, now=NOON)
    body, _ = exposition(found)
    lines = [line for line in body.decode().splitlines() if not line.startswith("#")]
    with capsys.disabled():
        print(f"\n8,000 symbols: {len(found.values)} series, {len(lines)} samples, {len(body):,} bytes")  # noqa: T201 - a number to read
    assert len(lines) < MOST_SERIES
    assert "SYM" not in body.decode()
    # The most there can be: what is of closed sets, multiplied.
    sets = {"tier": 3, "interval": 6, "verdict": 5, "plan": 4, "window": 5, "state": 3, "severity": 3}
    for metric in METRICS:
        if set(metric.labels) <= set(sets):
            most = math.prod(sets[label] for label in metric.labels)
            assert len(of(found, metric.name)) <= most, metric.name


def test_labels_that_nobody_knows_are_added_up_as_other(database_url: str, tmp_path: Path) -> None:
    strangers = [f"https://evil.example/?token={CANARY}{n}" for n in range(50)]
    with at(NOON, database_url, tmp_path) as pipeline:
        FetchStore(pipeline.engine).record([(None, fetch(provider=name, outcome=name, rows=2)) for name in strangers])
        with pipeline.engine.begin() as connection:
            connection.exec_driver_sql("select count_up(%s, array['x'], 1, null)", (CANARY,))
        found = snapshot(pipeline, now=NOON)
    assert of(found, "provider_selected_total") == {("bars_1m", "other"): 50}
    assert of(found, "provider_errors_total") == {("other", "bars_1m", "other"): 50}
    (latency,) = of(found, "provider_latency_seconds").values()
    assert isinstance(latency, Histogram)
    assert sum(latency.buckets) == 50
    assert CANARY not in exposition(found)[0].decode()


def test_no_secret_is_told_whatever_table_it_stands_in(database_url: str, tmp_path: Path) -> None:
    keys = {name: SecretStr(CANARY) for name in ("finnhub_key", "massive_key", "fred_key", "alpaca_secret_key", "alphavantage_key")}
    with at(NOON, database_url, tmp_path, **keys) as pipeline:
        follow(pipeline, 30)
        keep_busy(pipeline)
        FetchStore(pipeline.engine).record([(None, fetch(error=CANARY, outcome="transient", request=f"/?token={CANARY}"))])
        pipeline.health.record("yahoo", "bars_1m", Outcome("malformed", 0.2, detail=CANARY), now=NOON)
        pipeline.jobs.refuse("a list", CANARY.encode(), CANARY)
        with pipeline.engine.begin() as connection:
            connection.exec_driver_sql("update alerts set text = %s, key = %s, members = array[%s]", (CANARY, CANARY, CANARY))
        body, _ = exposition(snapshot(pipeline, now=NOON))
    assert CANARY not in body.decode()


def test_what_cannot_be_read_is_left_out_and_said_and_the_rest_is_there(
    database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with at(NOON, database_url, tmp_path) as pipeline:
        follow(pipeline, 10)
        with pipeline.engine.begin() as connection:
            connection.exec_driver_sql("alter table slo_samples rename to elsewhere")
        found = snapshot(pipeline, now=NOON)
    assert of(found, "universe_symbols")
    assert of(found, "ledger_missing_bars")
    assert not of(found, "slo_burn_rate")
    assert "some metrics cannot be read: UndefinedTable" in caplog.text


def test_the_scrape_says_how_long_it_took_by_the_stopwatch_it_is_given(database_url: str, tmp_path: Path) -> None:
    ticks = itertools.count(0.0, 0.25)
    with at(NOON, database_url, tmp_path) as pipeline:
        assert of(snapshot(pipeline, now=NOON, stopwatch=lambda: next(ticks)), "scrape_seconds") == {(): 0.25}
