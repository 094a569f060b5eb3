"""How we reach Postgres: one engine a process, always psycopg2, always in UTC. What is asked of it lives in the other modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg2
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from market_data_pipeline.domain.errors import ConfigurationError, DatabaseUnreachableError, UnsupportedServerError
from market_data_pipeline.storage.embedded import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.engine import URL, Engine, ExceptionContext

    from market_data_pipeline.settings import Settings

OLDEST_SERVER = 15  # MERGE, on which the write path rests, came with 15
CONNECT_TIMEOUT_SECONDS = 10
# A statement failed though the server is there: it timed out, a lock was not given, a table is not. Through SQLAlchemy, or a cursor
# of ``bulk.transaction``. Their texts hold the statement, over many lines: for people their class says what there is to say.
STATEMENT_FAILURES = (SQLAlchemyError, psycopg2.Error)
URL_FORM = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"


def psycopg2_url(url: str) -> URL:
    """``url`` with the psycopg2 driver, whatever way of naming Postgres it came with.

    ``postgres://``, ``postgresql://`` and ``postgresql+<any driver>://`` are taken. ConfigurationError for anything else; it never
    repeats the URL, which may hold a password.
    """
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        raise ConfigurationError(f"the database URL cannot be read; expected {URL_FORM}") from None
    scheme = parsed.drivername.split("+")[0]
    if scheme not in {"postgres", "postgresql"}:
        raise ConfigurationError(f"the database URL begins with {scheme}://; expected {URL_FORM}")
    # Named in full: SQLAlchemy 2.1 takes a bare postgresql:// to mean psycopg 3.
    return parsed.set(drivername="postgresql+psycopg2")


def database_url(settings: Settings) -> str:
    """Where our tables are: MDP_DATABASE_URL, or the embedded server when it runs. Holds a password: never print it."""
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    embedded = EmbeddedPostgres(settings.home)
    if not embedded.running():
        raise DatabaseUnreachableError(f"the embedded Postgres under {settings.home} is not running: start it with `mdp up`")
    return embedded.dsn()


def address(url: URL | str) -> str:
    """``host:port/database`` for messages: never the user, never the password."""
    url = psycopg2_url(url) if isinstance(url, str) else url
    host = url.host or url.query.get("host") or "local socket"
    return f"{host if isinstance(host, str) else ','.join(host)}:{url.port or 5432}/{url.database or url.username or ''}"


def open_engine(url: str, *, pool_size: int = 5) -> Engine:
    """An engine on ``url`` whose server answered just now. The caller disposes of it.

    Sessions are in UTC and a connection that died in the pool is replaced before use. Raises DatabaseUnreachableError where nothing
    answers, here and whenever the connection is lost later, and UnsupportedServerError for a server older than 15.
    """
    target = psycopg2_url(url)
    query = {"connect_timeout": str(CONNECT_TIMEOUT_SECONDS), "application_name": "market_data_pipeline"} | dict(target.query)
    engine = sa.create_engine(target.set(query=query), pool_size=pool_size, pool_pre_ping=True)
    event.listen(engine, "connect", _speak_utc)
    event.listen(engine, "handle_error", _name_lost_connections, retval=True)
    try:
        with engine.connect() as connection:
            check_version(connection.dialect.server_version_info or (0,), where=address(target))
    except BaseException:
        engine.dispose()
        raise
    return engine


def check_version(version: Sequence[int | str], *, where: str) -> None:
    """Raise UnsupportedServerError for a server that cannot run our statements."""
    if int(version[0]) < OLDEST_SERVER:
        found = ".".join(map(str, version))
        raise UnsupportedServerError(f"the server at {where} is PostgreSQL {found}; {OLDEST_SERVER} or later is needed")


def _speak_utc(connection: Any, _record: object) -> None:  # noqa: ANN401 - SQLAlchemy hands over a driver connection
    # A statement rather than the start-up parameter "options": PgBouncer refuses the latter.
    with connection.cursor() as cursor:
        cursor.execute("set time zone 'UTC'")
    connection.commit()


def _name_lost_connections(context: ExceptionContext) -> DatabaseUnreachableError | None:
    """Our error in place of the driver's, or None to leave that one as it is."""
    # Pre-ping expects the driver's error: it replaces the connection and nobody notices.
    if context.is_pre_ping or not isinstance(context.original_exception, psycopg2.OperationalError):
        return None
    if context.connection is None:
        what_happened = "cannot be reached"
    elif context.is_disconnect:
        what_happened = "was reached and then lost"
    else:
        return None
    where = address(context.engine.url) if context.engine else "an unknown address"
    # libpq's own text names host, port, user and reason, never the password.
    reason = " ".join(str(context.original_exception).split())
    return DatabaseUnreachableError(f"the database at {where} {what_happened}: {reason}")
