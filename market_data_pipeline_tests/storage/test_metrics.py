"""The counts and sizes of /metrics are those of the tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from market_data_pipeline.domain.queue import QueuePolicy
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.storage.heartbeats import Heartbeats
from market_data_pipeline.storage.jobs import JobQueue
from market_data_pipeline.storage.metrics import read_gauges
from market_data_pipeline_tests.storage.builders import LATER, add_symbols
from market_data_pipeline_tests.storage.test_jobs import backfill

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine


def test_an_empty_database_has_every_tier_and_every_state_with_nothing_in_it(engine: Engine) -> None:
    gauges = read_gauges(engine)
    assert gauges.pop(("database_size_bytes", ())) > 1e6
    by_tier = {(name, (str(tier),)) for name in ("dead_letters", "universe_symbols") for tier in Tier}
    by_state = {("alert_notices", (state,)) for state in ("queued", "sent", "dead")}
    assert gauges == dict.fromkeys({*by_tier, *by_state, ("refused_payloads", ()), ("runs_at_work", ())}, 0.0)


def test_dead_letters_are_counted_by_tier_and_payloads_that_are_no_jobs_apart(engine: Engine) -> None:
    queue = JobQueue(engine, QueuePolicy(most_attempts=1))
    queue.submit([backfill(1, Tier.T0), backfill(2, Tier.T1), backfill(3, Tier.T1)])
    for tier in (Tier.T0, Tier.T1):
        for lease in queue.lease("w", tier=tier, limit=10):
            queue.fail(lease, "no use")
    queue.refuse("a list", b"no job", "not JSON")
    gauges = read_gauges(engine)
    assert [gauges["dead_letters", (tier,)] for tier in Tier] == [1, 2, 0]
    assert gauges["refused_payloads", ()] == 1


def test_only_active_symbols_count(engine: Engine) -> None:
    add_symbols(engine, "AAPL", "MSFT", "IBM")
    with engine.begin() as connection:
        connection.exec_driver_sql("update symbol_universe set active = false where symbol = 'IBM'")
        connection.exec_driver_sql("update symbol_universe set tier = 'T2' where symbol = 'MSFT'")
    gauges = read_gauges(engine)
    assert [gauges["universe_symbols", (tier,)] for tier in Tier] == [1, 0, 1]


def test_a_run_that_has_been_silent_for_two_minutes_is_not_at_work(engine: Engine) -> None:
    beats = Heartbeats(engine)
    for run in ("fresh", "silent"):
        beats.beat(run, host="here", pid=1, process_started_at=LATER)
    with engine.begin() as connection:
        connection.exec_driver_sql("update run_heartbeats set beat_at = beat_at - interval '121 seconds' where run_id = 'silent'")
    assert read_gauges(engine)["runs_at_work", ()] == 1


def test_alerts_that_fire_are_counted_by_rule_and_severity_and_messages_by_state(engine: Engine) -> None:
    with engine.begin() as connection:
        for key, state in (("a", "firing"), ("b", "firing"), ("c", "pending")):
            connection.exec_driver_sql(
                "insert into alerts (rule, key, severity, state, value, text, began_at, seen_at, fired_at)"
                " values ('SymbolStale', %s, 'warning', %s, 1, 'late', now(), now(), case when %s = 'firing' then now() end)",
                (key, state, state),
            )
        connection.exec_driver_sql(
            "insert into alert_notices (channel, kind, severity, title, body, ready_at, created_at, queued_at)"
            " values ('c', 'test', 'info', 't', 'b', now(), now(), now())"
        )
    gauges = read_gauges(engine)
    firing = {labels: value for (name, labels), value in gauges.items() if name == "alerts_firing"}
    assert firing == {("SymbolStale", "warning"): 2}
    assert [gauges["alert_notices", (state,)] for state in ("queued", "sent", "dead")] == [1, 0, 0]


def test_what_the_budget_granted_and_how_long_it_holds_everybody_back_is_told_by_provider(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "insert into provider_budgets (provider, account, granted, held_until) values ('yahoo', 'a', 5, null),"
            " ('yahoo', 'b', 7, clock_timestamp() + interval '1 minute'),"
            " ('alpaca', '', 1, clock_timestamp() - interval '1 minute')"
        )
    gauges = read_gauges(engine)
    granted = {labels: value for (name, labels), value in gauges.items() if name == "provider_requests_granted_total"}
    assert granted == {("yahoo",): 12, ("alpaca",): 1}
    assert 50 < gauges["provider_budget_held_seconds", ("yahoo",)] <= 60
    assert gauges["provider_budget_held_seconds", ("alpaca",)] == 0
