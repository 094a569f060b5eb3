"""When SLOs and alert rules were last looked at, what the next look compares with, and the small questions that rules ask."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from market_data_pipeline.domain.universe import Tier

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from sqlalchemy import Engine

_STATE = "select watched_at, watched_by, memory from watch_state"
_SAVE = """
insert into watch_state (watched_at, watched_by, memory) values (%(at)s, %(by)s, %(memory)s::jsonb)
on conflict (one) do update set watched_at = excluded.watched_at, watched_by = excluded.watched_by, memory = excluded.memory"""

# A transaction that has a number and changes nothing: its commit is written to the log, and waits for the disk as any other.
_NUMBERED = "select pg_current_xact_id()"

# ready_at, not enqueued_at: what waits for its next attempt is not waiting for us. By the queue's own clock, the database's.
_QUEUE = """
select d.tier, d.queued, coalesce(extract(epoch from statement_timestamp() - j.ready_at), 0)::float8
  from job_dispatch d
  left join lateral (select min(ready_at) as ready_at from jobs
                      where tier = d.tier and state = 'queued' and ready_at <= statement_timestamp()) j on true
 order by d.tier"""
_DEAD = "select (select count(*) from jobs where state = 'dead') + (select count(*) from refused_jobs)"
_CALENDARS = "select distinct calendar from symbol_universe where active order by calendar"
_NOTICES = """
select count(*) filter (where state = 'queued'), min(created_at) filter (where state = 'queued'),
       count(*) filter (where state = 'dead')
  from alert_notices where state <> 'sent'"""

_BEGIN_ANEW = "update alerts set began_at = coalesce(%(at)s, clock_timestamp()) where state = 'pending'"


@dataclass(frozen=True, slots=True)
class WatchState:
    """The last look: when, by whom, and what the next one compares with."""

    at: datetime
    by: str
    memory: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TierQueue:
    """Queued jobs of a tier. ``oldest_seconds``: how long the oldest has been ready; 0 where none is."""

    tier: Tier
    queued: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class Outbox:
    """Messages not delivered. ``oldest_at``: of those that are still tried; ``dead``: given up."""

    queued: int
    oldest_at: datetime | None
    dead: int


def watch_state(engine: Engine) -> WatchState | None:
    """The last look; None before the first."""
    with engine.connect() as connection:
        row = connection.exec_driver_sql(_STATE).one_or_none()
    return None if row is None else WatchState(*row)


def save_watch_state(engine: Engine, state: WatchState) -> None:
    """From now on this is the last look."""
    with engine.begin() as connection:
        parameters = {"at": state.at, "by": state.by, "memory": orjson.dumps(state.memory).decode()}
        connection.exec_driver_sql(_SAVE, parameters)


def begin_pending_anew(engine: Engine, *, at: datetime | None) -> None:
    """Whatever is pending is pending since ``at`` (None: now, by the database): nobody looked before for long.

    Found at both ends of a pause, it need not have been there all the time.
    """
    with engine.begin() as connection:
        connection.exec_driver_sql(_BEGIN_ANEW, {"at": at})


def commit_seconds(engine: Engine, *, clock: Callable[[], float] = time.monotonic) -> float:
    """How long a commit that changes nothing takes now, its way to the server included."""
    with engine.connect() as connection:
        connection.exec_driver_sql(_NUMBERED)
        began = clock()
        connection.commit()
        return clock() - began


def tier_queues(engine: Engine) -> list[TierQueue]:
    """The queue of each tier."""
    with engine.connect() as connection:
        return [TierQueue(Tier(tier), queued, max(oldest, 0.0)) for tier, queued, oldest in connection.exec_driver_sql(_QUEUE)]


def dead_letters_now(engine: Engine) -> int:
    """How many jobs, and payloads that were none, wait for a person."""
    with engine.connect() as connection:
        return int(connection.exec_driver_sql(_DEAD).scalar_one())


def calendars_in_use(engine: Engine) -> list[str]:
    """The calendars of active symbols."""
    with engine.connect() as connection:
        return list(connection.exec_driver_sql(_CALENDARS).scalars())


def outbox_now(engine: Engine) -> Outbox:
    """What of the outbox is not delivered."""
    with engine.connect() as connection:
        return Outbox(*connection.exec_driver_sql(_NOTICES).one())
