"""Which process does what only one may do at a time: a lock that ends with its connection, and who holds it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Self

from sqlalchemy.exc import DBAPIError

from market_data_pipeline.domain.errors import DatabaseUnreachableError

if TYPE_CHECKING:
    from types import TracebackType

    from sqlalchemy import Connection, Engine

# One bigint, as the universe's load has 7306001: all other advisory locks of ours are keyed by two int4.
COLLECT = 7_306_002
WATCH = 7_306_004

# The transaction's lock in a transaction that stays open: a session's would be lost behind a pooler. It holds no snapshot between
# statements, so it keeps no vacuum waiting. Without an end for the idle, and with keepalives: a host that vanished is noticed in a
# quarter of a minute, not in two hours.
_SIT_DOWN = """
select set_config('application_name', %(holder)s, true), set_config('idle_in_transaction_session_timeout', '0', true),
       set_config('tcp_keepalives_idle', '5', true), set_config('tcp_keepalives_interval', '3', true),
       set_config('tcp_keepalives_count', '3', true)
"""
_TAKE = "select pg_try_advisory_xact_lock(%(seat)s)"

_HOLDER = """
select a.application_name, a.xact_start
  from pg_locks l join pg_stat_activity a using (pid)
 where l.locktype = 'advisory' and l.granted and l.objsubid = 1
   and l.database = (select oid from pg_database where datname = current_database())
   and (l.classid::int8 << 32) | l.objid::int8 = %(seat)s
"""


class Seat:
    """A seat that one process at a time has. It is free again the moment that process dies, whatever kills it.

    ``holder`` is what others are told of who sits there. Used by one thread.
    """

    def __init__(self, engine: Engine, holder: str, *, seat: int = COLLECT) -> None:
        self._engine, self._seat = engine, seat
        # Postgres cuts application names there.
        self._holder = holder[:63]
        self._connection: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.leave()

    def take(self) -> str | None:
        """Sit down: None where the seat is ours now, or was already; else who has it and since when."""
        if self.is_ours():
            return None
        connection = self._engine.connect()
        try:
            connection.exec_driver_sql(_SIT_DOWN, {"holder": self._holder})
            if connection.exec_driver_sql(_TAKE, {"seat": self._seat}).scalar_one():
                self._connection = connection
                return None
            found = connection.exec_driver_sql(_HOLDER, {"seat": self._seat}).one_or_none()
        except BaseException:
            connection.invalidate()
            raise
        connection.close()
        return f"{found[0]}, since {found[1]:%Y-%m-%d %H:%M:%S}Z" if found else "another process, which has just left"

    def is_ours(self) -> bool:
        """Whether we still have it: the connection that holds it answers."""
        if self._connection is None:
            return False
        try:
            self._connection.exec_driver_sql("select 1")
        except (DBAPIError, DatabaseUnreachableError):
            self.leave()
        return self._connection is not None

    def leave(self) -> None:
        """Make room. Repeating it is fine."""
        connection, self._connection = self._connection, None
        if connection is not None:
            # Ended by closing it, not by a rollback: the name and the time-outs end with the transaction either way, and a
            # connection that is dead already needs no words.
            with suppress(DBAPIError, DatabaseUnreachableError):
                connection.close()
