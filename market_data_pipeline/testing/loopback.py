"""A real HTTP server on loopback whose answers are computed from what is asked. Not for tests of the HTTP layer itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import TYPE_CHECKING, Self
from urllib.parse import parse_qsl, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it came. ``target`` is the raw path with its query; header names are lower case."""

    target: str
    headers: Mapping[str, str]

    @property
    def path(self) -> str:
        """The path, percent-decoded."""
        return unquote(urlsplit(self.target).path)

    @property
    def query(self) -> dict[str, str]:
        """The parameters; of those that repeat, the last."""
        return dict(parse_qsl(urlsplit(self.target).query, keep_blank_values=True))


@dataclass(frozen=True, slots=True)
class Reply:
    """What to answer. ``cut_after``: only so many bytes of the body are sent, whatever Content-Length says."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    cut_after: int | None = None


class Loopback:
    """Answers each request with what ``respond`` makes of it, which may be changed. ``requests``: everything that came, in order.

    Close the client before it: idle connections are waited for.
    """

    def __init__(self, respond: Callable[[Asked], Reply]) -> None:
        self.requests: list[Asked] = []
        self.respond = respond
        lock, loopback = Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 10.0
            # Head and body are two writes: without this the second waits 40 ms for the first to be acknowledged.
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                asked = Asked(self.path, {name.lower(): value for name, value in self.headers.items()})
                with lock:
                    loopback.requests.append(asked)
                reply = loopback.respond(asked)
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body if reply.cut_after is None else reply.body[: reply.cut_after])
                self.close_connection = reply.cut_after is not None

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
                """Nothing: what came is in ``requests``."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
