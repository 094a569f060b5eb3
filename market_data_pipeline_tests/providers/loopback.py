"""A real HTTP server on loopback that answers as a script says: also late, in pieces, half, or not at all."""

from __future__ import annotations

import socket
import struct
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self
from urllib.parse import parse_qsl, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Reply:
    """How to answer one request.

    ``cut_after``: send this many bytes of the body and close, whatever Content-Length says. ``declare_length`` False: the body ends
    where the connection does. ``stall``: send nothing until the server closes. ``reset``: close with a TCP reset. ``drip_seconds``:
    pause between single bytes of the body; ``drip_head_seconds``: between single bytes of the status line and the headers.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    declare_length: bool = True
    stall: bool = False
    reset: bool = False
    drip_seconds: float = 0.0
    drip_head_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it came over the wire."""

    method: str
    target: str
    headers: Mapping[str, str]

    @property
    def path(self) -> str:
        return unquote(urlsplit(self.target).path)

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.target).query))


class Loopback:
    """Serves ``replies`` one after the other, the last one for ever. ``requests`` is everything that arrived, in order."""

    def __init__(self, *replies: Reply) -> None:
        self.requests: list[Received] = []
        self._replies: Sequence[Reply] = replies
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._connections: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        # A blocked accept() does not notice close(); a connection wakes it.
        socket.create_connection(("127.0.0.1", self.port)).close()
        self._threads[0].join()
        self._listener.close()
        with self._lock:
            for connection in self._connections:
                _shut(connection)
        for thread in self._threads[1:]:
            thread.join()

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type] # bound methods of this class
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            connection, _ = self._listener.accept()
            with self._lock:
                self._connections.append(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                while (request := _read_request(connection)) is not None:
                    with self._lock:
                        reply = self._replies[min(len(self.requests), len(self._replies) - 1)]
                        self.requests.append(request)
                    if not self._answer(connection, reply):
                        return
            except OSError:
                return  # the client gave up on us, as many of these tests want

    def _answer(self, connection: socket.socket, reply: Reply) -> bool:
        """Whether the connection may serve another request."""
        if reply.stall:
            self._closing.wait(30)
            return False
        if reply.reset:
            # Linger of zero seconds: close() sends RST in place of FIN.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        headers = dict(reply.headers)
        if reply.declare_length:
            headers.setdefault("Content-Length", str(len(reply.body)))
        lines = [f"HTTP/1.1 {reply.status} Scripted", *(f"{name}: {value}" for name, value in headers.items())]
        body = reply.body if reply.cut_after is None else reply.body[: reply.cut_after]
        is_sent = self._drip(connection, "\r\n".join([*lines, "", ""]).encode(), reply.drip_head_seconds) and self._drip(
            connection, body, reply.drip_seconds
        )
        return is_sent and reply.declare_length and reply.cut_after is None

    def _drip(self, connection: socket.socket, text: bytes, seconds: float) -> bool:
        """Send it, byte by byte where there are ``seconds`` between them; whether it was all sent before the server closed."""
        if not seconds:
            connection.sendall(text)
            return True
        for place in range(len(text)):
            connection.sendall(text[place : place + 1])
            if self._closing.wait(seconds):
                return False
        return True


def _read_request(connection: socket.socket) -> Received | None:
    head = b""
    while b"\r\n\r\n" not in head:
        chunk = connection.recv(65_536)
        if not chunk:
            return None
        head += chunk
    first, *lines = head.decode("latin-1").split("\r\n\r\n")[0].split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Received(method, target, headers)


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # already closed by its own thread
