"""A real TLS server on loopback that speaks HTTP/2 or, where it is told to, only HTTP/1.1, with a certificate of its own making."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Self

import trustme
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived, WindowUpdated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from h2.events import Event

    from market_data_pipeline_tests.providers.loopback import Reply

AUTHORITY = trustme.CA()


def trusting() -> ssl.SSLContext:
    """What a client needs to believe our servers."""
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context


class SecureServer:
    """Serves ``replies`` one after the other, the last one for ever. ``protocols``: what is offered, "h2" before "http/1.1".

    Of a reply it knows status, headers, body, ``reset`` (of the stream) and ``stall``. ``protocols_used`` has one element a
    connection, ``requests`` the headers of each request.
    """

    def __init__(self, *replies: Reply, protocols: Sequence[str] = ("h2", "http/1.1"), host: str = "localhost") -> None:
        self.requests: list[dict[str, str]] = []
        self.protocols_used: list[str | None] = []
        self._replies = replies
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.set_alpn_protocols(list(protocols))
        AUTHORITY.issue_cert(host).configure_cert(self._context)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://localhost:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._sockets: list[ssl.SSLSocket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        socket.create_connection(self._listener.getsockname()).close()
        self._threads[0].join()
        self._listener.close()
        for connection in self._sockets:
            with suppress(OSError):
                # Not SSLSocket.shutdown, which takes the TLS away from under the thread that reads.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if self._closing.is_set():
                connection.close()
                return
            secure = self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            self._sockets.append(secure)
            thread = threading.Thread(target=self._serve, args=(secure,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, secure: ssl.SSLSocket) -> None:
        with secure, suppress(OSError):  # the client gave up on us, as many of these tests want
            secure.do_handshake()
            protocol = secure.selected_alpn_protocol()
            with self._lock:
                self.protocols_used.append(protocol)
            if protocol == "h2":
                _Http2(self, secure).serve()
            else:
                self._serve_http1(secure)

    def _serve_http1(self, secure: ssl.SSLSocket) -> None:
        head = b""
        while chunk := secure.recv(65_536):
            head += chunk
            if head.endswith(b"\r\n\r\n"):
                lines = (line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:])
                reply = self.next_reply({name.lower(): text.strip() for name, _, text in lines if name})
                headers = {**reply.headers, "Content-Length": str(len(reply.body))}
                told = "".join(f"{name}: {text}\r\n" for name, text in headers.items())
                secure.sendall(f"HTTP/1.1 {reply.status} Scripted\r\n{told}\r\n".encode() + reply.body)
                head = b""

    def next_reply(self, headers: dict[str, str]) -> Reply:
        """Note the request, and what to answer."""
        with self._lock:
            self.requests.append(headers)
            return self._replies[min(len(self.requests), len(self._replies)) - 1]

    def wait_for_the_end(self) -> None:
        """Until the server closes."""
        self._closing.wait(30)


class _Http2:
    """One HTTP/2 connection: bodies are sent as far as the client's windows allow."""

    def __init__(self, server: SecureServer, secure: ssl.SSLSocket) -> None:
        self._server, self._secure = server, secure
        self._state = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self._unsent: dict[int, bytes] = {}

    def serve(self) -> None:
        self._state.initiate_connection()
        self._flush()
        while chunk := self._secure.recv(65_536):
            for event in self._state.receive_data(chunk):
                self._take(event)
            self._flush()

    def _take(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            reply = self._server.next_reply({str(name): str(text) for name, text in event.headers})
            if reply.stall:
                self._server.wait_for_the_end()
            if reply.reset:
                self._state.reset_stream(event.stream_id)
                return
            self._state.send_headers(event.stream_id, [(":status", str(reply.status)), *_lower(reply)])
            self._unsent[event.stream_id] = reply.body
            self._send_body(event.stream_id)
        elif isinstance(event, WindowUpdated):
            for stream_id in list(self._unsent):
                self._send_body(stream_id)

    def _send_body(self, stream_id: int) -> None:
        body = self._unsent.pop(stream_id)
        while body and (room := min(self._state.local_flow_control_window(stream_id), self._state.max_outbound_frame_size)):
            self._state.send_data(stream_id, body[:room])
            body = body[room:]
        if body:
            self._unsent[stream_id] = body
        else:
            self._state.end_stream(stream_id)

    def _flush(self) -> None:
        self._secure.sendall(self._state.data_to_send())


def _lower(reply: Reply) -> list[tuple[str, str]]:
    return [(name.lower(), text) for name, text in reply.headers.items()]
