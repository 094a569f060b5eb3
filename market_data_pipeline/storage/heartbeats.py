"""Signs of life of the run processes. A run that stopped beating was left behind by a crash: the janitor ends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from sqlalchemy import Engine

_BEAT = """
insert into run_heartbeats (run_id, host, pid, process_started_at, beat_at)
values (%(run_id)s, %(host)s, %(pid)s, %(process_started_at)s, clock_timestamp())
on conflict (run_id) do update
   set host = excluded.host, pid = excluded.pid, process_started_at = excluded.process_started_at, beat_at = excluded.beat_at
"""

_LAPSED = """
select run_id, host, pid, process_started_at, beat_at, clock_timestamp() - beat_at
  from run_heartbeats
 where beat_at <= clock_timestamp() - %(older_than)s::interval
 order by beat_at
"""

_FORGET = "delete from run_heartbeats where run_id = %(run_id)s"


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The last sign of life of a run. Host, pid and start of the process name it even after the pid was given to another."""

    run_id: str
    host: str
    pid: int
    process_started_at: datetime
    beat_at: datetime
    silent_for: timedelta


class Heartbeats:
    """Who is alive, by the database's clock: the clocks of the hosts need not agree."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def beat(self, run_id: str, *, host: str, pid: int, process_started_at: datetime) -> None:
        """The run is alive now, in this process. A restarted run takes over its own heartbeat."""
        parameters = {"run_id": run_id, "host": host, "pid": pid, "process_started_at": process_started_at}
        with self._engine.begin() as connection:
            connection.exec_driver_sql(_BEAT, parameters)

    def lapsed(self, older_than: timedelta) -> list[Heartbeat]:
        """The runs that were last heard of ``older_than`` ago or longer, the longest silent first."""
        with self._engine.connect() as connection:
            return [Heartbeat(*row) for row in connection.exec_driver_sql(_LAPSED, {"older_than": older_than})]

    def forget(self, run_id: str) -> None:
        """The run has ended; saying so again is fine."""
        with self._engine.begin() as connection:
            connection.exec_driver_sql(_FORGET, {"run_id": run_id})
