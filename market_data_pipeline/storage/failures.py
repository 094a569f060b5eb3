"""Keeps what the orchestrator found wrong until it is right again: one row a job and a check."""

from __future__ import annotations

from typing import TYPE_CHECKING

from market_data_pipeline.domain.failures import MOST_CHARACTERS, Failure, FailureKind
from market_data_pipeline.domain.redaction import redact
from market_data_pipeline.storage.bulk import transaction

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Engine

_NOTE = """
insert into orchestrator_failures as f (kind, name, detail, is_warning, run_id, since, failed_at)
values (%(kind)s, %(name)s, %(detail)s, %(is_warning)s, %(run_id)s, %(failed_at)s, %(failed_at)s)
on conflict (kind, name) do update
   set detail = excluded.detail, is_warning = excluded.is_warning, run_id = excluded.run_id,
       failed_at = greatest(f.failed_at, excluded.failed_at), failures = f.failures + 1"""

_ALL = "select kind, name, detail, failed_at, run_id, is_warning, since, failures from orchestrator_failures order by kind, name"

_FORGET = "delete from orchestrator_failures where kind = %(kind)s and name = any(%(names)s)"


class FailureStore:
    """What is wrong now. Instances may be shared by threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def note(self, failure: Failure) -> None:
        """It failed, or failed again; ``since`` and ``failures`` are counted here."""
        with transaction(self._engine) as cursor:
            cursor.execute(
                _NOTE,
                {
                    "kind": failure.kind.value,
                    "name": failure.name,
                    "detail": redact(failure.detail)[:MOST_CHARACTERS],
                    "is_warning": failure.is_warning,
                    "run_id": failure.run_id,
                    "failed_at": failure.failed_at,
                },
            )

    def forget(self, kind: FailureKind, names: Iterable[str]) -> int:
        """It is right again; how many rows that were."""
        with transaction(self._engine) as cursor:
            cursor.execute(_FORGET, {"kind": kind.value, "names": list(names)})
            return cursor.rowcount

    def all(self) -> list[Failure]:
        """Everything that is wrong, runs after checks."""
        with transaction(self._engine) as cursor:
            cursor.execute(_ALL)
            return [Failure(FailureKind(kind), *rest) for kind, *rest in cursor.fetchall()]
