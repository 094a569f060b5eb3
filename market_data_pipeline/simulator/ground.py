"""Where drills and weeks are held: a Postgres of their own, gone afterwards, and what every proof on simulated providers needs."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from pydantic import SecretStr

from market_data_pipeline.ingest.universe_file import read_universe_file
from market_data_pipeline.settings import Settings
from market_data_pipeline.storage.database import open_engine
from market_data_pipeline.storage.embedded import EmbeddedPostgres
from market_data_pipeline.storage.migrations import apply_migrations

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.simulator.client import RunningSimulator


@dataclass(frozen=True, slots=True)
class ProvingGround:
    """A folder and a Postgres server. ``keep``: what is made on it stays."""

    home: Path
    server_url: str
    keep: bool = False

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a fresh, migrated database."""
        name = f"proof_{secrets.token_hex(6)}"
        server = open_engine(self.server_url)
        try:
            with server.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql(f'create database "{name}"')
                url = sa.make_url(self.server_url).set(database=name).render_as_string(hide_password=False)
                engine = open_engine(url)
                apply_migrations(engine)
                engine.dispose()
                yield url
                if self.keep:
                    return
                connection.exec_driver_sql(f'drop database "{name}" with (force)')
        finally:
            server.dispose()

    def settings(self, url: str, simulator: RunningSimulator, **more: Any) -> Settings:  # noqa: ANN401 - fields of Settings
        """The settings of a pipeline that lives on ``simulator``, with short real waits; ``more`` has the last word."""
        told: dict[str, Any] = {name.removeprefix("MDP_").lower(): value for name, value in simulator.environment().items()}
        return Settings(
            **{
                **told,
                "home": self.home / "pipeline",
                "database_url": SecretStr(url),
                "policy_bars_1h": "yahoo",
                "alpaca_feed": "sip",
                # Real waits: short, for what is waited for is on this machine.
                "http_backoff_seconds": 0.01,
                "http_timeout_seconds": 1.0,
                "http_deadline_seconds": 4.0,
                "settle_seconds": 90,
                **more,
            }
        )


@contextmanager
def proving_ground(name: str, *, keep: bool = False) -> Iterator[ProvingGround]:
    """A folder called after ``name`` and a Postgres in it, both gone at the end; with ``keep`` both stay, stopped."""
    # Not under a private directory: root's server runs as another account, which must be able to enter.
    home = Path(tempfile.mkdtemp(prefix=f"mdp-{name}-"))
    home.chmod(0o711)
    server = EmbeddedPostgres(home, extra_settings={"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"})
    try:
        yield ProvingGround(home, server.ensure(), keep)
    finally:
        server.stop()
        if not keep:
            shutil.rmtree(home, ignore_errors=True)


def loaded(pipeline: Pipeline, universe: Path, *, tag: str) -> list[Instrument]:
    """The instruments of a universe file, once they are in the database."""
    file = read_universe_file(universe)
    pipeline.universe.load(file.entries, version_tag=tag, source="sample", source_sha256=file.sha256, loaded_by=tag)
    return pipeline.universe.instruments()


def counted(pipeline: Pipeline, statement: str) -> dict[str, int]:
    """The rows of a statement that selects a name and a count."""
    with pipeline.engine.connect() as connection:
        return {name: int(count) for name, count in connection.exec_driver_sql(statement)}


# Of symbols that are followed, in the sessions in which they were listed: nothing else is ever due.
_PLANNED = """
select min(least(case when c.absent > 0 then c.next_attempt_at end, case when %(rechecks)s then c.recheck_at end))
  from coverage c
  join symbol_universe u using (symbol_id)
 where u.active and not u.is_unknown and c.session >= coalesce(greatest(u.active_from, u.listed_from), c.session)
   and c.session <= coalesce(least(u.active_to, u.listed_to), c.session)
   and (c.next_attempt_at is not null or c.recheck_at is not null)
"""


def planned_next(pipeline: Pipeline, *, rechecks: bool = False) -> datetime | None:
    """The first instant for which the ledger plans an attempt (with ``rechecks``: or a recheck); None where it plans nothing."""
    with pipeline.engine.connect() as connection:
        planned: datetime | None = connection.exec_driver_sql(_PLANNED, {"rechecks": rechecks}).scalar_one()
    return planned
