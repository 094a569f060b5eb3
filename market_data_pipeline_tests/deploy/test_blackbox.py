"""The modules of our Blackbox Exporter values, asked of real servers by the real exporter."""

from __future__ import annotations

import base64
import hashlib
import socket
import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Self

import httpx
import psutil
import pytest

from market_data_pipeline_tests.deploy.programs import a_blackbox_exporter
from market_data_pipeline_tests.providers.loopback import Loopback, Reply

if TYPE_CHECKING:
    from collections.abc import Iterator

# What RFC 6455 has a server append to the key.
MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class WebSocketServer:
    """Opens each WebSocket as RFC 6455 asks, then says nothing and keeps it open: as one does while no price changes."""

    def __init__(self, *, magic: bytes = MAGIC) -> None:
        self._magic = magic
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # A blocked accept() does not notice close().
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for connection in [self._listening, *self._open]:
            connection.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self._open.append(connection)
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(4096) or b"\r\n\r\n"
            headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
            key = next(line.split(b": ", 1)[1] for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key: "))
            assert (headers[b"upgrade"], headers[b"sec-websocket-version"]) == (b"websocket", b"13")
            accept = base64.b64encode(hashlib.sha1(key + self._magic, usedforsecurity=False).digest())
            answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            connection.sendall(answer + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")


@contextmanager
def nobody() -> Iterator[str]:
    """An address where nobody listens, for as long as it is held."""
    with closing(socket.socket()) as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


@pytest.fixture(scope="module")
def exporter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with a_blackbox_exporter(tmp_path_factory.mktemp("blackbox")) as url:
        yield url


def probe(exporter: str, module: str, target: str, *, allowed_seconds: float = 10.0) -> bool:
    """Whether the exporter finds ``target`` well. ``allowed_seconds``: as Prometheus tells it how long it would wait."""
    told = {"X-Prometheus-Scrape-Timeout-Seconds": f"{allowed_seconds:g}"}
    answer = httpx.get(f"{exporter}/probe", params={"module": module, "target": target}, headers=told, timeout=20)
    (found,) = [line for line in answer.text.splitlines() if line.startswith("probe_success ")]
    return found == "probe_success 1"


def test_a_service_that_says_it_is_well_is_well(exporter: str) -> None:
    with Loopback(Reply(body=b'{"status": "ok"}')) as service:
        assert probe(exporter, "http_health", f"{service.url}/health")
        assert [request.target for request in service.requests] == ["/health"]


@pytest.mark.parametrize(
    "reply",
    [Reply(status=503), Reply(status=500), Reply(status=204), Reply(reset=True), Reply(status=302, headers={"Location": "/login"})],
    ids=["unhealthy", "broken", "nothing", "reset", "redirected"],
)
def test_a_service_that_says_anything_else_is_not(exporter: str, reply: Reply) -> None:
    with Loopback(reply) as service:
        assert not probe(exporter, "http_health", f"{service.url}/health")


def test_a_service_that_answers_too_late_is_not(exporter: str) -> None:
    with Loopback(Reply(stall=True)) as service:
        # The exporter leaves half a second of what Prometheus would wait for itself.
        assert not probe(exporter, "http_health", f"{service.url}/health", allowed_seconds=0.8)


def test_a_service_that_is_not_there_is_not(exporter: str) -> None:
    with nobody() as address:
        assert not probe(exporter, "http_health", f"http://{address}/health")


def test_a_websocket_that_opens_is_well_though_its_server_says_nothing_more(exporter: str) -> None:
    with WebSocketServer() as server:
        assert probe(exporter, "websocket", server.address)


def test_a_server_that_knows_no_websocket_is_not(exporter: str) -> None:
    with Loopback(Reply(body=b"hello")) as service:
        assert not probe(exporter, "websocket", service.url.removeprefix("http://"), allowed_seconds=1.5)


def test_a_server_that_switches_protocols_without_knowing_the_key_is_not(exporter: str) -> None:
    with WebSocketServer(magic=b"another protocol") as server:
        assert not probe(exporter, "websocket", server.address, allowed_seconds=1.0)


def test_a_websocket_server_that_is_not_there_is_not(exporter: str) -> None:
    with nobody() as address:
        assert not probe(exporter, "websocket", address)


def test_an_exporter_bound_to_loopback_hears_nobody_else(exporter: str) -> None:
    """Whoever reaches it can have it ask any address: SSRF as a service."""
    everywhere = [
        address.address for found in psutil.net_if_addrs().values() for address in found if address.family == socket.AF_INET
    ]
    outside = [address for address in everywhere if not address.startswith("127.")]
    if not outside:
        pytest.skip("this machine has no address but loopback")
    port = int(exporter.rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((outside[0], port), timeout=5)
