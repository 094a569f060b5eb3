"""The gauges of /metrics that are a count or a size in the database and that nobody else asks for: all in one statement."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from market_data_pipeline.domain.metrics import Series

# A run beats every fifteen seconds; whoever has not for eight beats is taken for dead (defs/sensors.py).
_AT_WORK = "2 minutes"

_GAUGES = """
select 'dead_letters', array[t.tier], count(j.job_id)::float8
  from job_dispatch t left join jobs j on j.tier = t.tier and j.state = 'dead' group by t.tier
union all
select 'refused_payloads', '{}', count(*) from refused_jobs
union all
select 'runs_at_work', '{}', count(*) from run_heartbeats where beat_at > clock_timestamp() - %(at_work)s::interval
union all
select 'alerts_firing', array[rule, severity], count(*) from alerts where state = 'firing' group by rule, severity
union all
select 'alert_notices', array[s.state], count(n.notice_id)
  from unnest(array['queued', 'sent', 'dead']) as s (state) left join alert_notices n using (state) group by s.state
union all
select 'universe_symbols', array[t.tier], count(u.symbol_id)
  from job_dispatch t left join symbol_universe u on u.tier = t.tier and u.active group by t.tier
union all
select 'database_size_bytes', '{}', pg_database_size(current_database())
union all
select 'provider_requests_granted_total', array[provider], sum(granted) from provider_budgets group by provider
union all
select 'provider_budget_held_seconds', array[provider],
       greatest(max(coalesce(extract(epoch from held_until - clock_timestamp()), 0)), 0)
  from provider_budgets group by provider"""


def read_gauges(engine: Engine) -> dict[Series, float]:
    """Each by its name and the values of its labels in the order of the catalogue. Tiers without anything are there, with 0."""
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(_GAUGES, {"at_work": _AT_WORK})
        return {(name, tuple(labels)): float(value) for name, labels, value in rows}
