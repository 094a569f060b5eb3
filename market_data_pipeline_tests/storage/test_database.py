"""Opening engines: every way of naming a server, and every way in which one cannot be used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine


def test_sessions_are_in_utc(engine: Engine) -> None:
    with engine.connect() as connection:
        assert connection.execute(sa.text("show timezone")).scalar_one() == "UTC"


def test_a_fresh_database_is_migrated_and_empty(engine: Engine) -> None:
    with engine.connect() as connection:
        assert connection.execute(sa.text("select count(*) from coverage")).scalar_one() == 0
