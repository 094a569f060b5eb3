"""What is counted is what was committed, exactly: across processes that are killed, roll back, or take each other's place."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.capabilities import bars
from market_data_pipeline.domain.healing import HealingPolicy
from market_data_pipeline.domain.health import FAILURES, HealthPolicy, Outcome
from market_data_pipeline.domain.metrics import LATENCY_BUCKETS, WRITE_BUCKETS
from market_data_pipeline.domain.queue import JobState, QueuePolicy
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.storage.bulk import CandleWriter, record_fetches, transaction
from market_data_pipeline.storage.counters import Counter, Counters, fold_counters, read_counters
from market_data_pipeline.storage.fetches import FetchStore
from market_data_pipeline.storage.health import HealthBook
from market_data_pipeline.storage.jobs import JobQueue
from market_data_pipeline_tests.storage.builders import LATER, MONDAY, add_symbols, batch, fetch, full
from market_data_pipeline_tests.storage.test_health import HandClock
from market_data_pipeline_tests.storage.test_jobs import backfill
from market_data_pipeline_tests.storage.workers import processes, together

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.engine import Engine

    from market_data_pipeline.domain.ports import Fetch

POLICY = HealingPolicy()
ROOMY = QueuePolicy(most_attempts=2)


def values(engine: Engine, name: str) -> dict[tuple[str, ...], float]:
    """The values of one family by labels."""
    return {labels: counter.value for (of, labels), counter in read_counters(engine).items() if of == name}


def record(engine: Engine, *fetches: Fetch) -> None:
    """Fetches of nobody's symbol, one statement."""
    FetchStore(engine).record([(None, one) for one in fetches])


# --- what counts itself ------------------------------------------------------------------------------------------------


def test_each_request_is_counted_by_who_was_asked_for_what(engine: Engine) -> None:
    record(engine, fetch(rows=390), fetch(rows=10), fetch(provider="alpaca", interval=None, capability="quotes_l1", rows=3))
    assert values(engine, "provider_selected_total") == {("bars_1m", "yahoo"): 2, ("quotes_l1", "alpaca"): 1}
    assert values(engine, "provider_bars_total") == {("yahoo", "bars_1m"): 400, ("alpaca", "quotes_l1"): 3}
    assert values(engine, "provider_errors_total") == {}


@pytest.mark.parametrize("interval", list(Interval))
def test_the_endpoint_of_a_row_without_a_capability_is_that_of_its_interval(engine: Engine, interval: Interval) -> None:
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "insert into fetches (provider, interval_s, request, started_at, latency_seconds, outcome)"
                " values ('yahoo', :seconds, '/', now(), 0.1, 'ok')"
            ),
            {"seconds": interval.seconds},
        )
    assert values(engine, "provider_selected_total") == {(bars(interval), "yahoo"): 1}


@pytest.mark.parametrize(
    "outcome", ["transient", "rate_limited", "entitlement", "malformed", "stale", "mixed_basis", "never heard of"]
)
def test_a_failure_is_counted_by_its_class(engine: Engine, outcome: str) -> None:
    record(engine, fetch(outcome=outcome), fetch())
    assert values(engine, "provider_errors_total") == {("yahoo", "bars_1m", outcome): 1}


@pytest.mark.parametrize("outcome", ["ok", "barren", "unknown_symbol", "out_of_reach", "budget_spent"])
def test_an_answer_that_holds_nothing_is_no_error_of_the_provider(engine: Engine, outcome: str) -> None:
    record(engine, fetch(outcome=outcome))
    assert values(engine, "provider_errors_total") == {}
    assert values(engine, "provider_selected_total") == {("bars_1m", "yahoo"): 1}


def test_the_router_has_no_failure_that_is_not_counted_as_an_error(engine: Engine) -> None:
    record(engine, *(fetch(outcome=kind) for kind in sorted(FAILURES)))
    assert {code for _, _, code in values(engine, "provider_errors_total")} == FAILURES


def test_a_request_for_many_symbols_was_sent_once(engine: Engine) -> None:
    record(engine, fetch(rows=5), *(fetch(attempts=0, rows=5, outcome=outcome) for outcome in ("ok", "transient")))
    assert values(engine, "provider_selected_total") == {("bars_1m", "yahoo"): 1}
    assert values(engine, "provider_errors_total") == {}
    assert values(engine, "provider_bars_total") == {("yahoo", "bars_1m"): 15}
    assert read_counters(engine)["provider_latency_seconds", ("yahoo", "bars_1m")].value == pytest.approx(0.1)


def test_latencies_are_in_the_buckets_of_the_catalogue_and_a_bound_belongs_to_its_own(engine: Engine) -> None:
    record(engine, *(fetch(latency_seconds=bound) for bound in LATENCY_BUCKETS), fetch(latency_seconds=31.0))
    counter = read_counters(engine)["provider_latency_seconds", ("yahoo", "bars_1m")]
    assert counter.buckets == (1,) * (len(LATENCY_BUCKETS) + 1)
    assert counter.value == pytest.approx(sum(LATENCY_BUCKETS) + 31)


def test_what_is_rolled_back_was_never_counted(engine: Engine) -> None:
    with transaction(engine) as cursor:
        cursor.execute("savepoint before")
        record_fetches(cursor, [fetch()], [None], run_id=None)
        cursor.execute("select count(*) from metric_counters")
        assert cursor.fetchone() == (1,)
        cursor.execute("rollback to before")
    assert read_counters(engine) == {}


def test_jobs_are_counted_when_they_enter_and_when_they_end(engine: Engine) -> None:
    HealthBook(engine, HealthPolicy()).record("yahoo", "bars_1m", Outcome("transient", 0.1), now=LATER)
    queue = JobQueue(engine, ROOMY)
    hints = (None, "yahoo", "nobody")
    queue.submit([backfill(n, provider_hint=hint) for n, hint in enumerate(hints)])
    queue.submit([backfill(0)])
    done = queue.lease("w", tier=Tier.T0, limit=10)
    queue.heartbeat(done)
    queue.complete_all(done)
    assert values(engine, "backfill_jobs_enqueued_total") == {("T0",): 3}
    assert values(engine, "backfill_jobs_completed_total") == {("T0", "done"): 3}
    assert values(engine, "jobs_processed_total") == {
        ("backfill", "any", "done"): 1,
        ("backfill", "yahoo", "done"): 1,
        ("backfill", "other", "done"): 1,
    }


def test_a_job_that_dies_is_counted_as_dead_and_again_when_it_is_done_after_all(engine: Engine) -> None:
    queue = JobQueue(engine, ROOMY)
    queue.submit([backfill(1)])
    (lease,) = queue.lease("w", tier=Tier.T0, limit=1)
    assert queue.fail(lease, "no use", is_final=True) is JobState.DEAD
    queue.requeue("j-1", actor="a test")
    (lease,) = queue.lease("w", tier=Tier.T0, limit=1)
    queue.complete(lease)
    assert values(engine, "backfill_jobs_completed_total") == {("T0", "dead"): 1, ("T0", "done"): 1}
    assert values(engine, "backfill_jobs_enqueued_total") == {("T0",): 1}


def test_values_that_were_replaced_or_deleted_are_counted_by_interval(engine: Engine) -> None:
    (symbol,) = add_symbols(engine, "AAPL")
    writer = CandleWriter(engine)
    for interval in (Interval.M1, Interval.D1):
        slots = 1 if interval.is_daily else 5
        first, second = full(symbol, MONDAY, slots=slots), full(symbol, MONDAY, 11.0, slots=slots)
        for answer in (first, first, second):
            writer.write(batch(answer, interval=interval), now=LATER, policy=POLICY)
    assert values(engine, "bar_revisions_total") == {("1m",): 5, ("1d",): 1}
    with engine.begin() as connection:
        connection.exec_driver_sql("delete from candles_intraday where opened_at = (select min(opened_at) from candles_intraday)")
        connection.exec_driver_sql("delete from candles_daily")
        connection.exec_driver_sql("delete from candles_daily")
    assert values(engine, "bar_revisions_total") == {("1m",): 6, ("1d",): 2}
    with engine.connect() as connection:
        assert connection.exec_driver_sql("select count(*) from candle_revisions").scalar_one() == 8


def test_refused_bars_are_counted_the_first_time(engine: Engine) -> None:
    (symbol,) = add_symbols(engine, "AAPL")
    with engine.begin() as connection:
        for _ in range(2):
            connection.exec_driver_sql(
                "with f as (insert into fetches (provider, interval_s, request, started_at, latency_seconds, outcome)"
                " values ('yahoo', 60, '/', now(), 0, 'ok') returning fetch_id)"
                " insert into refused_bars (symbol_id, interval_s, opened_at, reason, bar, fetch_id)"
                " select %s, 300, now(), 'a law', '{}', fetch_id from f",
                (symbol,),
            )
    assert values(engine, "refused_bars_total") == {("5m",): 2}


def test_bars_due_and_late_are_counted_on_when_samples_are_added_to_and_stay_when_those_are_pruned(engine: Engine) -> None:
    sample = (
        "insert into slo_samples as s (tier, interval_s, resolution_s, at, looks, symbols, stale, due, late)"
        " select 'T0', 60, r, '2024-03-04 15:00Z', 1, 10, 0, %(due)s, %(late)s from unnest(array[300, 3600]) as r"
        " on conflict (tier, interval_s, resolution_s, at) do update set due = s.due + excluded.due, late = s.late + excluded.late"
    )
    with engine.begin() as connection:
        connection.exec_driver_sql(sample, {"due": 10, "late": 1})
        connection.exec_driver_sql(sample, {"due": 20, "late": 0})
        connection.exec_driver_sql("delete from slo_samples")
    assert values(engine, "slo_bars_due_total") == {("T0", "1m"): 30}
    assert values(engine, "slo_bars_late_total") == {("T0", "1m"): 1}


# --- many processes ----------------------------------------------------------------------------------------------------


def test_many_that_write_at_once_do_not_deadlock_and_lose_no_count(engine: Engine, database_url: str) -> None:
    told = together(6, "fetches", "150", database_url=database_url)
    sent = sum(int(count) for (count,) in told)
    assert sent == 900
    assert sum(values(engine, "provider_selected_total").values()) == sent
    counted = [counter.buckets for (name, _), counter in read_counters(engine).items() if name == "provider_latency_seconds"]
    assert sum(sum(buckets or ()) for buckets in counted) == sent
    with engine.connect() as connection:
        assert connection.exec_driver_sql("select sum(rows) from fetches").scalar_one() == sum(
            values(engine, "provider_bars_total").values()
        )
        deadlocks = "select deadlocks from pg_stat_database where datname = current_database()"
        assert connection.exec_driver_sql(deadlocks).scalar_one() == 0


def test_a_writer_that_is_killed_has_counted_exactly_what_it_committed(engine: Engine, database_url: str) -> None:
    with processes(3, "fetches", "1000000", database_url=database_url) as writers:
        for writer in writers:
            writer.go()
        while sum(values(engine, "provider_selected_total").values()) < 60:
            fold_counters(engine)
        for writer in writers:
            writer.kill()
    _wait_until_alone(engine)
    with engine.connect() as connection:
        stored, rows = connection.exec_driver_sql("select count(*), sum(rows) from fetches").one()
    assert stored >= 60
    assert sum(values(engine, "provider_selected_total").values()) == stored
    assert sum(values(engine, "provider_bars_total").values()) == rows


def _wait_until_alone(engine: Engine) -> None:
    """Until the server has noticed that the others are gone: a backend ends its transaction first."""
    others = (
        "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        " and backend_type = 'client backend' and application_name = 'market_data_pipeline'"
    )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while connection.exec_driver_sql(others).scalar_one():
            threading.Event().wait(0.01)


# --- shards ------------------------------------------------------------------------------------------------------------


def _shards(engine: Engine) -> dict[int, float]:
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("select shard, sum(value) from metric_counters group by shard")
        return {shard: value for shard, value in rows}  # noqa: C416 - rows are no pairs to mypy


def _leave(engine: Engine, shard: int, value: float, buckets: Sequence[int] | None = None, name: str = "gaps_found_total") -> None:
    labels = [] if buckets else ["1m"]
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "insert into metric_counters (name, labels, shard, value, buckets) values (%s, %s, %s, %s, %s)",
            (name, labels, shard, value, None if buckets is None else list(buckets)),
        )


# No process has such a number.
GONE = itertools.count(2_000_000_000)


def test_what_backends_that_are_gone_left_is_added_up_and_the_living_keep_theirs(engine: Engine) -> None:
    for _ in range(3):
        _leave(engine, next(GONE), 2.0)
    with engine.connect() as connection:
        mine = connection.exec_driver_sql("select pg_backend_pid()").scalar_one()
        _leave(engine, mine, 7.0)
        assert fold_counters(engine) == 3
        assert _shards(engine) == {0: 6.0, mine: 7.0}
    assert values(engine, "gaps_found_total") == {("1m",): 13.0}
    assert fold_counters(engine) in {0, 1}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 1 << 40), min_size=3, max_size=3), min_size=1, max_size=6), st.integers(0, 6))
def test_folding_changes_no_sum_and_no_bucket(engine: Engine, left: list[list[int]], folds_after: int) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("truncate metric_counters")
    for place, buckets in enumerate(left):
        _leave(engine, next(GONE), float(sum(buckets)), buckets, "write_batch_seconds")
        if place == folds_after:
            fold_counters(engine)
    expected = {("write_batch_seconds", ()): Counter(sum(map(sum, left)), tuple(map(sum, zip(*left, strict=True))))}
    assert read_counters(engine) == expected
    fold_counters(engine)
    assert read_counters(engine) == expected


def test_a_backend_that_has_the_number_of_one_that_is_gone_loses_nothing_to_whoever_folds(engine: Engine) -> None:
    # A fold that believes our own backend to be gone: what it sees when the number was given again a moment ago.
    fold = _as_if_gone()
    adds, errors = 300, []
    over = threading.Event()

    def keep_folding() -> None:
        try:
            while not over.is_set():
                with engine.begin() as connection:
                    connection.exec_driver_sql(fold)
        except Exception as error:  # noqa: BLE001 - told to the test
            errors.append(error)

    folding = threading.Thread(target=keep_folding)
    folding.start()
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for _ in range(adds):
                connection.exec_driver_sql("select count_up('gaps_found_total', array['1m'], 1, null)")
    finally:
        over.set()
        folding.join(20)
    assert errors == []
    assert values(engine, "gaps_found_total") == {("1m",): adds}


def _as_if_gone() -> str:
    from market_data_pipeline.storage import counters  # noqa: PLC0415 - the statement itself is what is tried

    return counters._FOLD.replace("and not exists (select from pg_stat_activity a where a.pid = c.shard)", "")  # noqa: SLF001


# --- what only a process knows -----------------------------------------------------------------------------------------


def test_what_a_process_counts_waits_for_a_second_and_is_written_when_it_ends(engine: Engine) -> None:
    clock = HandClock()
    counters = Counters(engine, clock=clock)
    counters.add("gaps_found_total", {"interval": "1m"}, 2)
    clock.seconds += 0.9
    counters.add("gaps_found_total", {"interval": "1h"})
    assert read_counters(engine) == {}
    clock.seconds += 0.1
    counters.add("gaps_found_total", {"interval": "1m"}, 3)
    assert values(engine, "gaps_found_total") == {("1m",): 5, ("1h",): 1}
    counters.add("gaps_found_total", {"interval": "1m"})
    counters.close()
    counters.close()
    assert values(engine, "gaps_found_total") == {("1m",): 6, ("1h",): 1}


def test_what_a_process_observes_is_a_histogram_of_the_catalogue(engine: Engine) -> None:
    counters = Counters(engine)
    for seconds in (*WRITE_BUCKETS, 11.0):
        counters.observe("write_batch_seconds", {}, seconds)
    counters.close()
    (counter,) = read_counters(engine).values()
    assert counter.buckets == (1,) * (len(WRITE_BUCKETS) + 1)
    assert counter.value == pytest.approx(sum(WRITE_BUCKETS) + 11)


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("no_such_total", {}),
        ("gaps_found_total", {}),
        ("gaps_found_total", {"symbol": "AAPL"}),
        ("write_batch_seconds", {}),
        ("refused_payloads", {}),
    ],
)
def test_only_counters_of_the_catalogue_can_be_counted(engine: Engine, name: str, labels: Mapping[str, str]) -> None:
    with pytest.raises(ValueError, match="no counter of the catalogue"):
        Counters(engine).add(name, labels)


def test_nobody_fails_for_a_number_and_none_is_lost(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    clock = HandClock()
    counters = Counters(engine, clock=clock)
    with engine.begin() as connection:
        connection.exec_driver_sql("alter table metric_counters rename to elsewhere")
    counters.add("gaps_found_total", {"interval": "1m"})
    counters.flush()
    assert "1 counters wait for the database" in caplog.text
    with engine.begin() as connection:
        connection.exec_driver_sql("alter table elsewhere rename to metric_counters")
    counters.add("gaps_found_total", {"interval": "1m"})
    counters.close()
    assert values(engine, "gaps_found_total") == {("1m",): 2}


def test_how_long_a_batch_took_to_be_committed_is_told(engine: Engine) -> None:
    (symbol,) = add_symbols(engine, "AAPL")
    told: list[float] = []
    writer = CandleWriter(engine, tell_seconds=told.append)
    writer.write(batch(full(symbol, MONDAY)), now=LATER, policy=POLICY)
    (seconds,) = told
    assert 0 < seconds < 60
