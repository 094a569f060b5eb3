"""Dagster's event log, written in batches: what every partition costs twice falls from 17-39 ms to about one.

The second of the two modules that use Dagster's private names. Only the events that come by the thousand are treated here
(planned and done materialisations); everything else, and everything where a private name is gone, is the stock storage's.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import sqlalchemy as sa
from dagster._core.storage.event_log import SqlEventLogStorage, SqlEventLogStorageTable, SqliteEventLogStorage
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable, AssetEventTagsTable
from dagster_postgres.event_log import PostgresEventLogStorage
from dagster_postgres.utils import pg_url_from_config

from market_data_pipeline.domain.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from dagster import EventLogEntry

_BATCHED = {dg.DagsterEventType.ASSET_MATERIALIZATION, dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED}
_LEANS_ON = (
    "_event_to_row",
    "_store_asset_event",
    "_store_asset_event_tags",
    "index_connection",
    "index_transaction",
    "run_connection",
    "store_event_batch",
)
_BATCH_SIZE_VARIABLE = "DAGSTER_EVENT_BATCH_SIZE"
DEFAULT_BATCH_SIZE = 1000
# SQLite takes no more values in one statement.
_IDS_AT_ONCE = 500

logger = logging.getLogger(__name__)


class BatchSqliteEventLogStorage(SqliteEventLogStorage):
    """The SQLite event log, one transaction a batch in each of its two files. For dagster.yaml: ``event_log_storage``.

    Config: ``base_dir`` as the stock class, DAGSTER_HOME/history/runs where it is left out, and ``batch_size``.
    """

    @classmethod
    def config_type(cls) -> Any:  # noqa: ANN401 - Dagster's config schema
        """The stock fields and ours."""
        return {"base_dir": dg.Field(dg.StringSource, is_required=False), **_OUR_FIELDS}

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Any) -> BatchSqliteEventLogStorage:  # noqa: ANN401 - Dagster's
        """As dagster.yaml says."""
        ask_for_batches(config_value["batch_size"])
        return cls(inst_data=inst_data, base_dir=config_value.get("base_dir") or _stock_directory())

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """Store ``events``; in two transactions where they are materialisations of one run."""
        if not _can_batch(events) or len({event.run_id for event in events}) != 1:
            super().store_event_batch(events)
            return
        rows = [self._event_to_row(event) for event in events]
        # The order of the stock storage: the run's own file first. The index is what is read for assets; if it fails, Dagster
        # stores the events again one by one and the run's page shows them twice, which is the lesser harm.
        with self.run_connection(events[0].run_id) as connection:
            connection.execute(SqlEventLogStorageTable.insert(), rows)
        with self.index_transaction() as connection:
            self._index(connection, events, rows)

    def _index(self, connection: sa.Connection, events: Sequence[EventLogEntry], rows: Sequence[Mapping[str, Any]]) -> None:
        ids = _insert(connection, rows)
        self._store_asset_event_tags(connection, events, ids)
        for event, event_id in _last_of_each_asset(events, ids):
            self._store_asset_event(connection, event, event_id)


class BatchPostgresEventLogStorage(PostgresEventLogStorage):
    """The Postgres event log, one transaction a batch, planned events included. For dagster.yaml: ``event_log_storage``.

    Config: as the stock class, and ``batch_size``.
    """

    @classmethod
    def config_type(cls) -> Any:  # noqa: ANN401 - Dagster's config schema
        """The stock fields and ours."""
        return {**_fields(super().config_type()), **_OUR_FIELDS}

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Mapping[str, Any]) -> BatchPostgresEventLogStorage:  # noqa: ANN401
        """As dagster.yaml says."""
        ask_for_batches(config_value["batch_size"])
        return cls(
            inst_data=inst_data,
            postgres_url=pg_url_from_config(config_value),
            should_autocreate_tables=config_value.get("should_autocreate_tables", True),
        )

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """Store ``events``; in one transaction where they are materialisations, so that a failure leaves nothing half stored."""
        if not _can_batch(events):
            super().store_event_batch(events)
            return
        rows = [self._event_to_row(event) for event in events]
        with self.index_transaction() as connection:
            ids = _insert(connection, rows)
            self._store_asset_event_tags(connection, events, ids)
            for event, event_id in _last_of_each_asset(events, ids):
                self._store_asset_event(connection, event, event_id)


_OUR_FIELDS = {
    "batch_size": dg.Field(
        dg.IntSource,
        is_required=False,
        default_value=DEFAULT_BATCH_SIZE,
        description="Most events of one transaction, unless DAGSTER_EVENT_BATCH_SIZE says otherwise; 0: none are batched.",
    )
}


def ask_for_batches(size: int) -> None:
    """Have this process hand events over in batches of up to ``size``, unless the operator said otherwise.

    Dagster takes the size from the environment alone, in each process that makes or runs a run: setting it where the storage is
    made spares the operator to set it for webserver, daemon, code server and workers alike, and to find out when one was missed.
    """
    os.environ.setdefault(_BATCH_SIZE_VARIABLE, str(size))


def _stock_directory() -> str:
    home = os.environ.get("DAGSTER_HOME")
    if not home:
        raise ConfigurationError("DAGSTER_HOME is not set: expected it, or base_dir in the config of the event log storage")
    return str(Path(home) / "history" / "runs")


def _fields(schema: Any) -> Mapping[str, Any]:  # noqa: ANN401 - Dagster's config schema
    return schema if isinstance(schema, dict) else schema.fields


def _can_batch(events: Sequence[EventLogEntry]) -> bool:
    kinds = {event.dagster_event_type for event in events}
    keyed = all(event.dagster_event is not None and event.dagster_event.asset_key is not None for event in events)
    return len(kinds) == 1 and kinds <= _BATCHED and keyed and not missing_names()


@cache
def missing_names(storage: type = SqlEventLogStorage) -> tuple[str, ...]:
    """The private names that this version of Dagster lacks; said once, in the log of the process, when there are any."""
    missing = tuple(name for name in _LEANS_ON if not hasattr(storage, name))
    if missing:
        logger.warning(
            "this Dagster's event log has no %s: events are written one by one, at 20-40 ms a partition", ", ".join(missing)
        )
    return missing


def _insert(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Insert ``rows`` and return their ids in the same order."""
    table = SqlEventLogStorageTable
    result = connection.execute(table.insert().returning(table.c.id, sort_by_parameter_order=True), rows)
    return [int(row[0]) for row in result]


def _last_of_each_asset(events: Sequence[EventLogEntry], ids: Sequence[int]) -> list[tuple[EventLogEntry, int]]:
    """The last event of each asset: all that the asset's own row keeps.

    Sorted by asset: two processes that update the same rows in another order would wait for each other for ever.
    """
    last = {event.get_dagster_event().asset_key: (event, event_id) for event, event_id in zip(events, ids, strict=True)}
    return [last[key] for key in sorted(last, key=lambda key: key.to_string() if key else "")]


# --- what Dagster itself never deletes ---------------------------------------------------------------------------------


def prune_without_runs(instance: dg.DagsterInstance, *, before: datetime, at_most: int) -> int | None:
    """Delete old events that belong to no run, and old results of checks: how many rows; None where this Dagster stores otherwise.

    Deleting a run takes its events with it, but not the results of its checks; and what was reported without a run (live quotes,
    the ledger's partitions, checks) stays for ever. The newest event of each asset, partition and kind stays, and the newest
    result of each check: that is what the pages show. ``at_most``: rows of each of the two in one call.
    """
    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage) or missing_names(type(storage)):
        return None
    # Dagster's stamps are UTC without saying so.
    edge = before.replace(tzinfo=None)
    if isinstance(storage, SqliteEventLogStorage):
        # A file a run, and one for those without: what is in it is in the index, too, and is read there.
        with storage.run_connection("") as connection:
            connection.execute(SqlEventLogStorageTable.delete().where(SqlEventLogStorageTable.c.timestamp < edge))
    with storage.index_transaction() as connection:
        return _prune_events(connection, edge, at_most) + _prune_checks(connection, edge, at_most)


def _prune_events(connection: sa.Connection, before: datetime, at_most: int) -> int:
    log = SqlEventLogStorageTable
    newer = log.alias("newer")
    same = [
        newer.c.dagster_event_type == log.c.dagster_event_type,
        newer.c.asset_key.is_not_distinct_from(log.c.asset_key),
        newer.c.partition.is_not_distinct_from(log.c.partition),
    ]
    # What names no asset (a check's evaluation is read from its own table, ticks' words from nowhere) has nothing that rests on it.
    is_shown = sa.and_(log.c.asset_key.is_not(None), ~sa.exists().where(newer.c.id > log.c.id, *same))
    old = sa.select(log.c.id).where(log.c.run_id == "", log.c.timestamp < before, ~is_shown).order_by(log.c.id).limit(at_most)
    ids = [row[0] for row in connection.execute(old)]
    for at in range(0, len(ids), _IDS_AT_ONCE):
        some = ids[at : at + _IDS_AT_ONCE]
        connection.execute(AssetEventTagsTable.delete().where(AssetEventTagsTable.c.event_id.in_(some)))
        connection.execute(log.delete().where(log.c.id.in_(some)))
    return len(ids)


def _prune_checks(connection: sa.Connection, before: datetime, at_most: int) -> int:
    results = AssetCheckExecutionsTable
    newer = results.alias("newer")
    is_newest = ~sa.exists().where(
        newer.c.asset_key == results.c.asset_key,
        newer.c.check_name == results.c.check_name,
        newer.c.partition.is_not_distinct_from(results.c.partition),
        newer.c.id > results.c.id,
    )
    old = sa.select(results.c.id).where(results.c.evaluation_event_timestamp < before, ~is_newest).order_by(results.c.id)
    ids = [row[0] for row in connection.execute(old.limit(at_most))]
    for at in range(0, len(ids), _IDS_AT_ONCE):
        connection.execute(results.delete().where(results.c.id.in_(ids[at : at + _IDS_AT_ONCE])))
    return len(ids)
