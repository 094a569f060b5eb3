"""Three routes and nothing else: what they say of a pipeline that is well, of one that is not, and of a database that is away."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus
from pydantic import SecretStr

from market_data_pipeline import __version__
from market_data_pipeline.domain.metrics import METRICS
from market_data_pipeline.serving.app import application, is_loopback
from market_data_pipeline.serving.source import PipelineSource
from market_data_pipeline.settings import Settings
from market_data_pipeline.storage.watch import WatchState, save_watch_state
from market_data_pipeline_tests.serving.gate import a_gate
from market_data_pipeline_tests.storage.builders import add_symbols
from market_data_pipeline_tests.storage.test_jobs import backfill

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine

    from market_data_pipeline.ingest.pipeline import Pipeline

NOON = datetime(2024, 12, 4, 17, 0, tzinfo=UTC)
SECRET = "secret-word"  # noqa: S105 - what must not be told
NOWHERE = f"postgresql://nobody:{SECRET}@127.0.0.1:9/nothing"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@dataclass(frozen=True)
class Served:
    """The application, asked without a network."""

    source: PipelineSource
    host: str = "127.0.0.1"

    def ask(self, *paths: str, method: str = "GET", **headers: str) -> list[httpx.Response]:
        """All of these at the same time."""

        async def asked() -> list[httpx.Response]:
            transport = httpx.ASGITransport(application(self.source, host=self.host), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8600") as client:
                return list(await asyncio.gather(*(client.request(method, path, headers=headers) for path in paths)))

        return asyncio.run(asked())

    def one(self, path: str, method: str = "GET", **headers: str) -> httpx.Response:
        """One of them."""
        (answer,) = self.ask(path, method=method, **headers)
        return answer

    def part(self, name: str) -> Any:  # noqa: ANN401 - JSON
        """One part of the health."""
        return self.one("/health").json()["parts"][name]

    @property
    def pipeline(self) -> Pipeline:
        return self.source.get()


@contextmanager
def serving(url: str, home: Path, **told: Any) -> Iterator[Served]:  # noqa: ANN401 - fields of Settings
    source = PipelineSource(Settings(home=home, database_url=SecretStr(url), clock=NOON.isoformat(), **told))
    try:
        yield Served(source)
    finally:
        source.close()


@pytest.fixture
def served(database_url: str, tmp_path: Path) -> Iterator[Served]:
    """A pipeline that is well: somebody watches."""
    with serving(database_url, tmp_path) as one:
        save_watch_state(one.pipeline.engine, WatchState(NOON, "a test"))
        yield one


@pytest.fixture
def nowhere(tmp_path: Path) -> Iterator[Served]:
    """One without a database."""
    with serving(NOWHERE, tmp_path) as one:
        yield one


# --- what there is -----------------------------------------------------------------------------------------------------


def test_the_root_says_who_it_is_and_where_to_go(nowhere: Served) -> None:
    answer = nowhere.one("/")
    assert answer.status_code == 200
    assert answer.json() == {
        "name": "market_data_pipeline",
        "version": __version__,
        "links": {"health": "/health", "metrics": "/metrics"},
    }


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/health/", "/metrics/x", "/stats/providers", "/redoc"])
def test_there_is_nothing_else_and_that_is_said_as_json(nowhere: Served, path: str) -> None:
    answer = nowhere.one(path)
    assert (answer.status_code, answer.json()) == (404, {"error": "not found"})


@pytest.mark.parametrize("path", ["/", "/health", "/metrics"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_changed(nowhere: Served, path: str, method: str) -> None:
    answer = nowhere.one(path, method)
    assert (answer.status_code, answer.json()) == (405, {"error": "method not allowed"})
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}


@pytest.mark.parametrize("path", ["/", "/health", "/metrics"])
def test_head_is_answered_like_get(served: Served, path: str) -> None:
    answer = served.one(path, "HEAD")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == served.one(path).headers["content-type"]


# --- health ------------------------------------------------------------------------------------------------------------


def test_a_pipeline_that_is_well_says_so_part_by_part(served: Served) -> None:
    answer = served.one("/health")
    good = {"ok": True, "why": None}
    parts = ("database", "migrations", "watch", "queue", "outbox", "calendars")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "version": __version__, "parts": dict.fromkeys(parts, good)}
    assert answer.headers["cache-control"] == "no-store"


def test_without_a_database_it_is_503_with_the_address_and_no_account(nowhere: Served) -> None:
    answer = nowhere.one("/health")
    assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
    assert answer.json()["parts"]["database"] == {"ok": False, "why": "the database at 127.0.0.1:9/nothing cannot be reached"}
    assert answer.json()["parts"]["watch"] == {"ok": False, "why": "not looked at: database"}
    assert SECRET not in answer.text
    assert "nobody" not in answer.text


def test_a_schema_that_is_behind_is_503_and_says_what_to_do(served: Served) -> None:
    with served.pipeline.engine.begin() as connection:
        connection.exec_driver_sql("delete from schema_migrations where number = (select max(number) from schema_migrations)")
    answer = served.one("/health")
    assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
    assert answer.json()["parts"]["database"]["ok"]
    assert "run `mdp migrate`" in answer.json()["parts"]["migrations"]["why"]


def test_a_database_that_is_newer_than_this_software_is_503(served: Served) -> None:
    with served.pipeline.engine.begin() as connection:
        connection.exec_driver_sql("insert into schema_migrations (number, name, sha256) values (9999, '9999_later.sql', 'x')")
    answer = served.one("/health")
    assert answer.status_code == 503
    assert "newer than this software" in answer.json()["parts"]["migrations"]["why"]


def test_where_nobody_watches_it_is_degraded_and_still_200(database_url: str, tmp_path: Path) -> None:
    with serving(database_url, tmp_path) as one:
        answer = one.one("/health")
        assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
        assert "nobody has looked" in one.part("watch")["why"]
        save_watch_state(one.pipeline.engine, WatchState(NOON - timedelta(seconds=120), "somebody"))
        assert one.part("watch")["ok"]
        save_watch_state(one.pipeline.engine, WatchState(NOON - timedelta(seconds=121), "somebody"))
        assert one.part("watch") == {
            "ok": False,
            "why": "nobody has looked at SLOs and alert rules for 121 s; the last was somebody",
        }


def test_a_full_queue_is_degraded(database_url: str, tmp_path: Path) -> None:
    with serving(database_url, tmp_path, queue_caps="T0=2,T1=2,T2=2") as one:
        one.pipeline.jobs.submit([backfill(n) for n in range(2)])
        assert one.part("queue") == {"ok": False, "why": "the queue of T0 is full: 2 jobs"}


def test_a_job_of_t0_that_waits_for_a_quarter_of_an_hour_is_degraded(served: Served) -> None:
    served.pipeline.jobs.submit([backfill(1)])
    assert served.part("queue")["ok"]
    with served.pipeline.engine.begin() as connection:
        connection.exec_driver_sql("update jobs set ready_at = clock_timestamp() - interval '901 seconds'")
    assert "the oldest job of T0 has been ready for 901 s" in served.part("queue")["why"]


def test_a_message_that_nobody_takes_is_degraded(served: Served) -> None:
    with served.pipeline.engine.begin() as connection:
        connection.exec_driver_sql(
            "insert into alert_notices (channel, kind, severity, title, body, ready_at, created_at, queued_at)"
            " values ('c', 'test', 'info', 't', 'b', %(at)s, %(at)s, %(at)s)",
            {"at": NOON - timedelta(seconds=901)},
        )
    assert served.part("outbox") == {"ok": False, "why": "1 messages are not delivered, the oldest for 901 s"}


def test_a_calendar_that_ends_soon_is_degraded_and_says_what_to_do(database_url: str, tmp_path: Path, engine: Engine) -> None:
    add_symbols(engine, "AAPL")
    with serving(database_url, tmp_path) as one:
        # The first time, the calendars are computed, which takes a second.
        _until(lambda: one.part("calendars") == {"ok": True, "why": None})
        last = one.pipeline.calendars("XNYS").last_session
    source = PipelineSource(
        Settings(home=tmp_path, database_url=SecretStr(database_url), clock=f"{last - timedelta(days=59)}T12:00:00Z")
    )
    try:
        said = f"known no further: XNYS until {last}; upgrade exchange_calendars"
        _until(lambda: Served(source).part("calendars")["why"] == said)
    finally:
        source.close()


# --- a database that has stopped ---------------------------------------------------------------------------------------


def test_health_is_answered_within_two_seconds_though_the_database_has_stopped(database_url: str, tmp_path: Path) -> None:
    with a_gate(database_url) as gate, serving(gate.url, tmp_path) as one:
        assert one.one("/health").status_code == 200
        gate.shut()
        before = gate.connected
        began = time.monotonic()
        answers = one.ask(*["/health"] * 5)
        assert time.monotonic() - began < 2.0
        assert {answer.status_code for answer in answers} == {503}
        assert answers[0].json()["parts"]["database"] == {"ok": False, "why": "no answer within 1.5 s"}
        # Five that ask hold as much as one: a thread and a connection for what is vital, and for the others.
        assert [thread.name for thread in threading.enumerate()].count("health") == 2
        assert gate.connected <= before + 2
        gate.open()
        _until(lambda: one.one("/health").status_code == 200)


def test_a_connection_that_was_cut_is_replaced(database_url: str, tmp_path: Path, engine: Engine) -> None:
    with serving(database_url, tmp_path) as one:
        assert one.one("/metrics").status_code == 200
        with engine.connect() as connection:
            connection.exec_driver_sql(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )
        _until(lambda: {answer.status_code for answer in one.ask("/health", "/metrics")} == {200})


def _until(holds: Any) -> None:  # noqa: ANN401 - a question
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)


# --- metrics -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", ["*/*", OPENMETRICS])
def test_metrics_are_in_the_format_that_is_asked_for(served: Served, accept: str) -> None:
    answer = served.one("/metrics", accept=accept)
    parse = parse_openmetrics if accept == OPENMETRICS else parse_prometheus
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/openmetrics-text" if accept == OPENMETRICS else "text/plain")
    assert len(list(parse(answer.text))) == len(METRICS)


def test_without_a_database_there_are_no_metrics_and_no_old_ones(nowhere: Served) -> None:
    answer = nowhere.one("/metrics")
    assert answer.status_code == 503
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.text == "no metrics: the database at 127.0.0.1:9/nothing cannot be reached\n"


def test_a_part_that_cannot_be_asked_says_so_without_the_statement(served: Served) -> None:
    with served.pipeline.engine.begin() as connection:
        connection.exec_driver_sql("alter table job_dispatch drop column queued cascade")
    answer = served.one("/health")
    assert answer.status_code == 200
    assert answer.json()["parts"]["queue"] == {"ok": False, "why": "cannot be asked: ProgrammingError"}


# --- by which name -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST:8600", "127.0.0.1:8600", "127.9.9.9", "[::1]:8600"])
def test_on_loopback_it_answers_to_the_names_of_this_machine(nowhere: Served, name: str) -> None:
    assert nowhere.one("/", host=name).status_code == 200


@pytest.mark.parametrize("name", ["evil.example", "evil.example:8600", "localhost.evil.example", "[::2]", "10.0.0.1", "x"])
def test_on_loopback_a_page_that_calls_us_by_another_name_reads_nothing(nowhere: Served, name: str) -> None:
    for path in ("/", "/health", "/metrics"):
        assert nowhere.one(path, host=name).status_code == 421


def test_who_listens_for_others_is_known_by_any_name(nowhere: Served) -> None:
    assert Served(nowhere.source, host="10.0.0.1").one("/", host="metrics.internal").status_code == 200


@pytest.mark.parametrize(
    ("host", "so"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("10.0.0.1", False), ("a", False)]
)
def test_loopback_is_known_by_its_addresses(host: str, *, so: bool) -> None:
    assert is_loopback(host) is so
