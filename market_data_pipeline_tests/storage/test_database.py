"""Opening engines: every way of naming a server, and every way in which one cannot be used."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from market_data_pipeline.domain.errors import ConfigurationError, DatabaseUnreachableError, UnsupportedServerError
from market_data_pipeline.storage.database import address, check_version, open_engine, psycopg2_url

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

SECRET = "correct-horse"  # noqa: S105 - what must not be printed


@pytest.fixture
def silent_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_sessions_are_in_utc(engine: Engine) -> None:
    with engine.connect() as connection:
        assert connection.execute(sa.text("show timezone")).scalar_one() == "UTC"


def test_a_fresh_database_is_migrated_and_empty(engine: Engine) -> None:
    with engine.connect() as connection:
        assert connection.execute(sa.text("select count(*) from coverage")).scalar_one() == 0


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2", "postgresql+psycopg", "postgresql+asyncpg"])
def test_every_way_of_naming_postgres_is_spoken_with_psycopg2(database_url: str, scheme: str) -> None:
    opened = open_engine(f"{scheme}://{database_url.split('://', 1)[1]}")
    assert opened.dialect.driver == "psycopg2"
    opened.dispose()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("mysql://me:correct-horse@db/x", "begins with mysql://"),
        ("sqlite:///x.db", "begins with sqlite://"),
        ("host=db password=correct-horse", "cannot be read"),
        ("postgresql://me:correct-horse@db:port/x", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_a_url_that_is_no_postgres_url_is_refused_with_the_form_expected(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        psycopg2_url(url)
    assert says in str(refused.value)
    assert "postgresql://USER:PASSWORD@HOST:PORT/DATABASE" in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://me:correct-horse@db.example:6543/prices", "db.example:6543/prices"),
        ("postgres://me:correct-horse@db.example/prices", "db.example:5432/prices"),
        ("postgresql:///prices?host=/var/run/postgresql", "/var/run/postgresql:5432/prices"),
        ("postgresql://me:correct-horse@[::1]:6543/prices", "::1:6543/prices"),
    ],
)
def test_an_address_names_host_port_and_database_only(url: str, expected: str) -> None:
    assert address(url) == expected


def test_a_server_that_does_not_answer_is_named_without_the_password(silent_port: int) -> None:
    with pytest.raises(DatabaseUnreachableError) as unreachable:
        open_engine(f"postgresql://me:{SECRET}@127.0.0.1:{silent_port}/prices")
    assert f"the database at 127.0.0.1:{silent_port}/prices cannot be reached" in str(unreachable.value)
    assert "Connection refused" in str(unreachable.value)
    assert SECRET not in "".join(map(str, _chain(unreachable.value)))


def test_a_wrong_password_is_said_without_repeating_it(database_url: str) -> None:
    wrong = sa.make_url(database_url).set(password=SECRET).render_as_string(hide_password=False)
    with pytest.raises(DatabaseUnreachableError, match="password authentication failed") as unreachable:
        open_engine(wrong)
    assert SECRET not in "".join(map(str, _chain(unreachable.value)))


def test_a_database_that_does_not_exist_is_named(database_url: str) -> None:
    elsewhere = sa.make_url(database_url).set(database="no_such_prices").render_as_string(hide_password=False)
    with pytest.raises(DatabaseUnreachableError, match='database "no_such_prices" does not exist'):
        open_engine(elsewhere)


def test_a_connection_lost_in_the_middle_is_our_error(engine: Engine) -> None:
    with engine.connect() as connection, pytest.raises(DatabaseUnreachableError, match="was reached and then lost"):
        connection.execute(sa.text("select pg_terminate_backend(pg_backend_pid())"))


def test_a_connection_that_died_in_the_pool_is_replaced_unnoticed(engine: Engine) -> None:
    with engine.connect() as victim:
        pid = victim.execute(sa.text("select pg_backend_pid()")).scalar_one()
    with open_engine(engine.url.render_as_string(hide_password=False)).connect() as killer:
        killer.execute(sa.text("select pg_terminate_backend(:pid, 5000)"), {"pid": pid})
        killer.engine.dispose()
    with engine.connect() as connection:
        assert connection.execute(sa.text("select pg_backend_pid()")).scalar_one() != pid


def test_a_wrong_statement_stays_the_drivers_error(engine: Engine) -> None:
    with engine.connect() as connection, pytest.raises(sa.exc.ProgrammingError):
        connection.execute(sa.text("select no_such_column"))


def test_a_server_older_than_merge_is_refused_with_both_versions() -> None:
    with pytest.raises(UnsupportedServerError, match=r"db:5432/prices is PostgreSQL 14\.11; 15 or later is needed"):
        check_version((14, 11), where="db:5432/prices")


def test_the_oldest_server_with_merge_is_taken() -> None:
    check_version((15, 0), where="db:5432/prices")


def _chain(error: BaseException | None) -> list[BaseException]:
    links = []
    while error is not None:
        links.append(error)
        error = error.__cause__ or error.__context__
    return links
