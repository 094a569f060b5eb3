"""Spans: a real ingest against the simulator, and a real receiver of OTLP over HTTP that reads what was sent."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from pydantic import SecretStr

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.errors import TransientError
from market_data_pipeline.observability.telemetry import tracer_of
from market_data_pipeline.settings import Settings
from market_data_pipeline.simulator.vendor import PREMIUM, made_up_key
from market_data_pipeline.testing.loopback import Loopback, Reply
from market_data_pipeline_tests.world import World, a_world, expected_opens, write_bars

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from opentelemetry.proto.trace.v1.trace_pb2 import Span

CANARY = "canary7f3a91"


class Collector:
    """Takes spans on a port of its own and keeps them."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        keep = self.bodies.append

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                keep(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for body in self.bodies
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


@contextmanager
def a_collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield collector
    finally:
        collector.server.shutdown()
        collector.server.server_close()
        thread.join()


def attributes(span: Span) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in span.attributes}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for symbol in ("ALFA", "BETA"):
        write_bars(tmp_path / "data", symbol, Interval.M1, expected_opens())
    return tmp_path / "data"


def ingest(world: World) -> None:
    assert all(report.failure is None for report in world.ingest(world.load("ALFA", "BETA")))


def test_one_trace_tells_the_journey_of_a_candle_from_the_request_to_the_commit(
    data: Path, tmp_path: Path, database_url: str
) -> None:
    faults = [{"match": {"symbol": "BETA", "first": 1}, "action": "status", "code": 503}]
    with a_collector() as collector:
        with a_world(data, database_url, tmp_path / "home", otel_endpoint=collector.url, faults=faults) as world:
            ingest(world)
        spans = {span.span_id: span for span in collector.spans if attributes(span).get("mdp.provider") != "simulator"}
    parents = {(span.name, spans[span.parent_span_id].name) for span in spans.values() if span.parent_span_id}
    journey = {
        ("fetch", "ingest"),
        ("http", "fetch"),
        ("judge", "fetch"),
        ("store", "ingest"),
        ("save", "store"),
        ("commit", "save"),
    }
    assert parents == journey
    assert len({span.trace_id for span in spans.values()}) == 1
    (root,) = collector.named("ingest")
    assert not root.parent_span_id
    assert attributes(root)["mdp.interval"] == "1m"
    # A transaction stores what several requests brought: it names them.
    fetched = {span.span_id for span in collector.named("fetch")}
    assert {link.span_id for span in collector.named("store") for link in span.links} == fetched
    assert {attributes(span)["mdp.symbol"] for span in collector.named("fetch")} == {"ALFA", "BETA"}
    assert sum(attributes(span)["mdp.inserted"] for span in collector.named("save")) == 2 * len(expected_opens())
    sent = [attributes(span) for span in spans.values() if span.name == "http"]
    assert sorted(one["http.response.status_code"] for one in sent) == [200, 200, 503]
    (failed,) = [span for span in spans.values() if span.status.code]
    assert (attributes(failed)["error.type"], attributes(failed)["mdp.attempt"]) == ("TransientError", 1)
    assert failed.status.message.startswith("yahoo: HTTP 503")


def test_every_span_lies_within_the_one_around_it(data: Path, tmp_path: Path, database_url: str) -> None:
    with a_collector() as collector:
        with a_world(data, database_url, tmp_path / "home", otel_endpoint=collector.url) as world:
            ingest(world)
        spans = {span.span_id: span for span in collector.spans}
    for span in spans.values():
        around = spans.get(span.parent_span_id)
        # Judging belongs to the answer, whose request is over by then.
        if around is not None and span.name != "judge":
            assert around.start_time_unix_nano <= span.start_time_unix_nano
            assert span.end_time_unix_nano <= around.end_time_unix_nano


def test_no_key_is_in_what_is_sent(data: Path, tmp_path: Path, database_url: str) -> None:
    # Alpha Vantage takes its key in the URL, and repeats it in what it answers.
    write_bars(data, "ALFA", Interval.D1, [at - at % 86_400 for at in expected_opens(Interval.D1)])
    key = f"{made_up_key('alphavantage', PREMIUM)}{CANARY}"
    faults = [{"match": {"provider": "alphavantage", "first": 2}, "action": "reset"}]
    with a_collector() as collector:
        options: dict[str, Any] = {"otel_endpoint": collector.url, "vendors": ["alphavantage", "yahoo"], "faults": faults}
        with a_world(data, database_url, tmp_path / "home", **options, alphavantage_key=SecretStr(key)) as world:
            assert [report.failure for report in world.ingest(world.load("ALFA"), Interval.D1)] == [None]
        sent = [span for span in collector.named("http") if attributes(span)["mdp.provider"] == "alphavantage"]
        assert [bool(span.status.code) for span in sent] == [True, True, False]
        assert collector.bodies
        assert [body for body in collector.bodies if CANARY.encode() in body] == []


def test_a_text_with_a_secret_is_hidden_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDP_OTHER_KEY", CANARY)
    with a_collector() as collector:
        with tracer_of(Settings(otel_endpoint=collector.url)) as tracer:
            with tracer.span("one", text=f"my {CANARY}") as span:
                span.note(more=f"x?apikey={CANARY}")
                span.failed(ValueError(f"no {CANARY}"))
            with pytest.raises(TransientError), tracer.span("two"):
                raise TransientError(f"GET /?token={CANARY}", provider="x")
        assert len(collector.spans) == 2
        assert [body for body in collector.bodies if CANARY.encode() in body] == []


def test_work_goes_on_in_the_same_time_where_the_collector_does_not_answer(
    data: Path, tmp_path: Path, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with a_world(data, database_url, tmp_path / "home", otel_endpoint="http://127.0.0.1:9") as world:
        ingest(world)
        began = time.monotonic()
    # Closing waits for the last batch, but never for long.
    assert time.monotonic() - began < 4.0
    told = [record for record in caplog.records if record.name.endswith("observability.telemetry")]
    assert [record.getMessage() for record in told] == [
        "spans are lost: the collector at http://127.0.0.1:9/v1/traces does not take them"
    ]
    assert [record.name for record in caplog.records if record.name.startswith("opentelemetry")] == []


def test_what_the_collector_refuses_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    # It answers a POST with 501.
    with Loopback(lambda _: Reply()) as server, tracer_of(Settings(otel_endpoint=server.url)) as tracer, tracer.span("lost"):
        pass
    assert "spans are lost" in caplog.text


def test_a_collector_that_never_answers_costs_the_end_two_seconds_and_the_work_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with tracer_of(Settings(otel_endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}")) as tracer:
            began = time.monotonic()
            for _ in range(2_000):
                with tracer.span("waiting"):
                    pass
            assert time.monotonic() - began < 1.0
        assert time.monotonic() - began < 4.0


def test_without_an_endpoint_opentelemetry_is_not_imported() -> None:
    script = (
        "import sys\n"
        "from market_data_pipeline import wiring\n"
        "from market_data_pipeline.observability.telemetry import tracer_of\n"
        "from market_data_pipeline.settings import Settings\n"
        "with tracer_of(Settings()) as tracer, tracer.span('x', a=1) as span:\n"
        "    span.note(b=2)\n"
        # Not all of OpenTelemetry: where it is installed, other libraries (redis) import parts of it on their own.
        "print([name for name in ('opentelemetry.exporter', 'viztracer', 'structlog') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
