"""Connections that keep a deadline: each serves one thread at a time, and nothing on it outlasts the attempt's time."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies

import httpcore
import httpx

from market_data_pipeline.domain.errors import ConfigurationError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable, Iterator, Mapping, Sequence

# Servers close idle connections after 5 s (uvicorn) to some minutes; a closed one is noticed before it is used again.
_KEEP_ALIVE_SECONDS = 30.0
# A proxy of the environment cannot reach the simulator on this machine.
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Connections:
    """HTTP/1.1 and, where the server offers it over TLS, HTTP/2. Safe to use from several threads.

    A connection is used by one thread at a time, also with HTTP/2: httpcore's multiplexing corrupts its state between threads
    (encode/httpx#3072), and one slow answer that is given up would take its neighbours along. There are as many connections as
    threads that ask at the same moment; at most ``kept`` idle ones stay open.

    ``tls`` None: certifi's authorities, or SSL_CERT_FILE's. ``proxies``: by scheme, as ``urllib.request.getproxies`` gives them,
    which is the default (HTTPS_PROXY, NO_PROXY); never for loopback addresses.
    """

    def __init__(self, *, kept: int, tls: ssl.SSLContext | None = None, proxies: Mapping[str, str] | None = None) -> None:
        self._kept = kept
        self._tls = tls
        self._proxies = dict(getproxies() if proxies is None else proxies)
        self._lock = threading.Lock()
        self._idle: list[_Connection] = []

    @contextmanager
    def get(self, url: httpx.URL, headers: Mapping[str, str], *, seconds: float) -> Iterator[httpcore.Response]:
        """The response to GET ``url``, its body still on the wire; everything ends after ``seconds`` with a TimeoutException.

        The connection is kept if the block ends well, so read the body in it. Raises what httpcore raises. Resolving the name of
        the host is the one thing the time does not bound: the operating system does, by its own time-outs.
        """
        connection = self._take(url)
        try:
            response = connection.get(url, headers, seconds)
            yield response
            response.close()
        except BaseException:
            # What is still to come on it would be read as the answer to the next request.
            connection.close()
            raise
        self._keep(connection)

    def close(self) -> None:
        """Close the idle connections; those in use end with their requests. Repeating it is safe."""
        with self._lock:
            self._kept = 0
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take(self, url: httpx.URL) -> _Connection:
        origin = (url.scheme, url.host, url.port)
        with self._lock:
            # The one used last: it is the likeliest to be open still.
            place = next((i for i in range(len(self._idle) - 1, -1, -1) if self._idle[i].origin == origin), None)
            if place is not None:
                return self._idle.pop(place)
            if url.scheme == "https" and self._tls is None:
                # Only now: reading the authorities takes longer than many a command of ours.
                self._tls = httpx.create_ssl_context()
        return _Connection(origin, self._tls, self._proxy_for(url))

    def _keep(self, connection: _Connection) -> None:
        with self._lock:
            self._idle.append(connection)
            surplus = self._idle.pop(0) if len(self._idle) > self._kept else None
        if surplus is not None:
            surplus.close()

    def _proxy_for(self, url: httpx.URL) -> httpcore.Proxy | None:
        address = self._proxies.get(url.scheme) or self._proxies.get("all")
        if not address or url.host in _LOOPBACK or _is_exempt(url.host, self._proxies.get("no", "")):
            return None
        parts = urlsplit(address)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigurationError(f"{url.scheme.upper()}_PROXY or ALL_PROXY: expected http://host:port")
        user = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
        return httpcore.Proxy(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", auth=user)


class _Connection:
    """One connection to ``origin``, made when first used and anew when the server closed it."""

    def __init__(self, origin: tuple[str, str, int | None], tls: ssl.SSLContext | None, proxy: httpcore.Proxy | None) -> None:
        self.origin = origin
        self._deadline = _Deadline()
        # Makes connections, through the proxy or not. It is not asked to keep them: with one alone there is nothing to choose, and
        # its choosing looks at every socket twice a request.
        self._factory = httpcore.ConnectionPool(
            ssl_context=tls,
            proxy=proxy,
            keepalive_expiry=_KEEP_ALIVE_SECONDS,
            http2=True,
            network_backend=_Backend(self._deadline),
        )
        self._wire: httpcore.ConnectionInterface | None = None

    def get(self, url: httpx.URL, headers: Mapping[str, str], seconds: float) -> httpcore.Response:
        """The response, to be read and closed before the next."""
        self._deadline.at = time.monotonic() + seconds
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        listed = [(b"host", url.netloc), *((name.encode(), text.encode()) for name, text in headers.items())]
        request = httpcore.Request("GET", target, headers=listed)
        wire = self._wire
        if wire is not None and not wire.is_closed() and not wire.has_expired():
            try:
                return wire.handle_request(request)
            except httpcore.ConnectionNotAvailable:
                pass  # HTTP/2: the server said goodbye before it saw the request
        self.close()
        self._wire = self._factory.create_connection(target.origin)
        return self._wire.handle_request(request)

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()


class _Deadline:
    """When the attempt in progress must end, in ``time.monotonic`` seconds."""

    __slots__ = ("at",)

    def __init__(self) -> None:
        self.at = 0.0

    def left(self, late: type[httpcore.TimeoutException]) -> float:
        """The seconds left; raises ``late`` where there are none."""
        left = self.at - time.monotonic()
        if left <= 0:
            raise late("the time for this attempt is over")
        return left


class _Stream(httpcore.NetworkStream):
    """A stream whose every operation gets the time that is left, however many came before: dripping gains a server nothing."""

    def __init__(self, inner: httpcore.NetworkStream, deadline: _Deadline) -> None:
        self._inner, self._deadline = inner, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - httpcore's signature
        return self._inner.read(max_bytes, self._deadline.left(httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 - httpcore's signature
        self._inner.write(buffer, self._deadline.left(httpcore.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002 - httpcore's signature
    ) -> httpcore.NetworkStream:
        left = self._deadline.left(httpcore.ConnectTimeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, left), self._deadline)

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401 - httpcore's signature
        return self._inner.get_extra_info(info)


class _Backend(httpcore.NetworkBackend):
    """Opens streams that keep the deadline."""

    def __init__(self, deadline: _Deadline) -> None:
        self._inner = httpcore.SyncBackend()
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = _addresses(host, port)
        for place, address in enumerate(addresses):
            # An equal share of what is left for each: one dead address must not cost the others their turn.
            share = self._deadline.left(httpcore.ConnectTimeout) / (len(addresses) - place)
            try:
                inner = self._inner.connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if place == len(addresses) - 1:
                    raise
            else:
                return _Stream(inner, self._deadline)
        raise httpcore.ConnectError(f"{host} has no address")


def _addresses(host: str, port: int) -> Sequence[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as unknown:
        raise httpcore.ConnectError(str(unknown)) from None
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _is_exempt(host: str, no_proxy: str) -> bool:
    """Whether NO_PROXY names the host, a domain it is in, or everything."""
    names = [name.strip().lstrip(".") for name in no_proxy.split(",")]
    return any(name == "*" or (name and (host == name or host.endswith(f".{name}"))) for name in names)
