"""A way to Postgres that can be shut: what is on its way then waits, as it does for a server that has stopped."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Iterator


class Gate:
    """Forwards connections to where ``url`` points, as long as it is open. ``url``: the same database through it."""

    def __init__(self, url: str, port: int) -> None:
        target = sa.make_url(url)
        self._to = (target.host or "127.0.0.1", target.port or 5432)
        self._listener = socket.create_server(("127.0.0.1", port))
        self._is_open = threading.Event()
        self._is_open.set()
        self._connections: list[socket.socket] = []
        self.connected = 0
        self.url = target.set(host="127.0.0.1", port=self._listener.getsockname()[1]).render_as_string(hide_password=False)
        threading.Thread(target=self._accept, daemon=True).start()

    def shut(self) -> None:
        """Nothing passes from now on; nobody is told."""
        self._is_open.clear()

    def open(self) -> None:
        """Everything passes again, what has waited included."""
        self._is_open.set()

    def _accept(self) -> None:
        while True:
            try:
                ours, _ = self._listener.accept()
            except OSError:
                return
            self.connected += 1
            theirs = socket.create_connection(self._to)
            self._connections += [ours, theirs]
            for one, other in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=self._forward, args=(one, other), daemon=True).start()

    def _forward(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(1 << 16):
                self._is_open.wait()
                other.sendall(data)
        except OSError:
            pass
        for end in (one, other):
            end.close()

    def close(self) -> None:
        """Cut every connection; from now on nobody answers at the address."""
        self.open()
        # Whoever waits in accept is only woken by this.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._connections:
            end.close()


@contextmanager
def a_gate(url: str, *, port: int = 0) -> Iterator[Gate]:
    """Open at first; on any port that is free unless one is named."""
    gate = Gate(url, port)
    try:
        yield gate
    finally:
        gate.close()
