"""What people did by hand, in the table ``audit_log``: written in the transaction of what was done, never changed afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - a class that psycopg2 spells in lower case
    from sqlalchemy import Engine

_RECORD = """
insert into audit_log (actor, action, subject, detail)
values (%(actor)s, %(action)s, %(subject)s, %(detail)s::jsonb)"""

_ENTRIES = """
select audit_id, at, actor, action, subject, detail
  from audit_log
 where %(action)s::text is null or action = %(action)s or starts_with(action, %(action)s || '.')
 order by audit_id desc limit %(limit)s"""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """``actor`` did ``action`` (such as "dlq.requeue") to ``subject`` at ``at``; ``detail`` says with what outcome."""

    audit_id: int
    at: datetime
    actor: str
    action: str
    subject: str
    detail: Mapping[str, Any]


def record(cursor: Cursor, actor: str, action: str, subject: str, detail: Mapping[str, Any]) -> None:
    """Note in the transaction of ``cursor`` who does what to what. ``detail``: no payload, no secret: it is kept for good."""
    given = {"actor": actor, "action": action, "subject": subject, "detail": orjson.dumps(detail).decode()}
    cursor.execute(_RECORD, given)


class AuditLog:
    """Reads the log."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def entries(self, limit: int, *, action: str | None = None) -> list[AuditEntry]:
        """The newest ``limit`` entries, the newest first. ``action``: only this, or those below it ("dlq" for all "dlq.…")."""
        with self._engine.connect() as connection:
            return [AuditEntry(*row) for row in connection.exec_driver_sql(_ENTRIES, {"action": action, "limit": limit})]
