"""Connections against real sockets: HTTP/2 over TLS, certificates, proxies, and the time that everything on them is given."""

from __future__ import annotations

import random
import ssl
import time
from threading import Thread

import pytest

from market_data_pipeline.domain.errors import ConfigurationError, PayloadError, ProviderError, TransientError
from market_data_pipeline.providers.connections import Connections
from market_data_pipeline.providers.http import Attempt, HttpClient, HttpPolicy
from market_data_pipeline_tests.providers.loopback import Loopback, Reply
from market_data_pipeline_tests.providers.secure import SecureServer, trusting


def client_of(
    tls: ssl.SSLContext | None = None, *, proxies: dict[str, str] | None = None, kept: int = 8, **policy: float
) -> HttpClient:
    """A client that trusts our servers and never sleeps."""
    settings = HttpPolicy(**{"timeout_seconds": 5.0, "attempts": 1, **policy})  # type: ignore[arg-type] # numbers by name
    connections = Connections(kept=kept, tls=tls or trusting(), proxies=proxies)
    return HttpClient(settings, connections=connections, sleep=lambda _: None, rng=random.Random(7))


def failure_of(http: HttpClient, url: str) -> ProviderError:
    """The provider error that asking ends in."""
    with pytest.raises(ProviderError) as raised:
        http.get(url, provider="p")
    return raised.value


# --- HTTP/2 ------------------------------------------------------------------------------------------------------------


def test_http_2_is_spoken_where_it_is_offered() -> None:
    with SecureServer(Reply(body=b"hello", headers={"ETag": '"1"'})) as server, client_of() as http:
        answer = http.get(f"{server.url}/x", {"a": "b c"}, {"x-api-key": "k"}, provider="p")
        assert (answer.status, answer.body, answer.headers["etag"]) == (200, b"hello", '"1"')
        assert server.protocols_used == ["h2"]
        assert server.requests[0][":path"] == "/x?a=b+c"
        assert (server.requests[0]["x-api-key"], server.requests[0]["accept-encoding"]) == ("k", "gzip")


def test_http_1_is_spoken_where_nothing_else_is_offered() -> None:
    with SecureServer(Reply(body=b"hello"), protocols=("http/1.1",)) as server, client_of() as http:
        assert http.get(server.url, provider="p").body == b"hello"
        assert server.protocols_used == ["http/1.1"]


def test_an_http_2_connection_is_used_again() -> None:
    with SecureServer(Reply(body=b"hello")) as server, client_of() as http:
        for _ in range(5):
            http.get(server.url, provider="p")
        assert (len(server.requests), server.protocols_used) == (5, ["h2"])


def test_threads_do_not_share_an_http_2_connection() -> None:
    # Shared between threads, httpcore's streams get mixed up (encode/httpx#3072).
    bodies: list[bytes] = []

    def ask() -> None:
        bodies.extend(http.get(server.url, provider="p").body for _ in range(10))

    with SecureServer(Reply(body=b"x" * 30_000)) as server, client_of() as http:
        threads = [Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert bodies == [b"x" * 30_000] * 60
        assert set(server.protocols_used) == {"h2"}
        assert len(server.protocols_used) <= 6


def test_a_large_http_2_body_arrives_whole() -> None:
    body = random.Random(1).randbytes(3 << 20)
    with SecureServer(Reply(body=body)) as server, client_of() as http:
        assert http.get(server.url, provider="p").body == body


def test_an_http_2_body_over_the_limit_is_refused_and_its_connection_not_used_again() -> None:
    with SecureServer(Reply(body=bytes(1 << 20)), Reply(body=b"small")) as server, client_of(max_body_bytes=1000) as http:
        assert isinstance(failure_of(http, server.url), PayloadError)
        assert http.get(server.url, provider="p").body == b"small"
        assert server.protocols_used == ["h2", "h2"]


def test_a_reset_stream_is_a_transient_failure_and_the_next_attempt_counts() -> None:
    attempts: list[Attempt] = []
    with SecureServer(Reply(reset=True), Reply(body=b"good")) as server, client_of(attempts=2) as http:
        assert http.get(server.url, provider="p", attempts=attempts).body == b"good"
    assert [attempt.outcome for attempt in attempts] == ["transient", "answered"]


def test_a_stalled_http_2_server_is_given_up_in_time() -> None:
    with SecureServer(Reply(stall=True)) as server, client_of(timeout_seconds=0.3) as http:
        begun = time.monotonic()
        assert "read timeout" in str(failure_of(http, server.url))
        assert time.monotonic() - begun < 2


# --- TLS ---------------------------------------------------------------------------------------------------------------


def test_a_certificate_of_a_stranger_is_a_transient_failure_that_says_so() -> None:
    with SecureServer(Reply()) as server, client_of(ssl.create_default_context()) as http:
        error = failure_of(http, server.url)
        assert isinstance(error, TransientError)
        assert "certificate verify failed" in str(error)
        assert server.requests == []


def test_a_certificate_for_another_name_is_a_transient_failure() -> None:
    with SecureServer(Reply(), host="elsewhere.test") as server, client_of() as http:
        assert isinstance(failure_of(http, server.url), TransientError)


def test_a_handshake_that_never_ends_is_given_up_in_time() -> None:
    with Loopback(Reply(stall=True)) as server, client_of(timeout_seconds=0.2) as http:
        begun = time.monotonic()
        error = failure_of(http, server.url.replace("http://", "https://"))
        assert "connect timeout" in str(error)
        assert time.monotonic() - begun < 2


def test_the_usual_authorities_are_trusted_unless_told_otherwise() -> None:
    with SecureServer(Reply()) as server, HttpClient(HttpPolicy(attempts=1)) as http:
        assert "certificate verify failed" in str(failure_of(http, server.url))


# --- proxies -----------------------------------------------------------------------------------------------------------


def test_a_proxy_of_the_environment_is_used() -> None:
    with Loopback(Reply(body=b"through the proxy")) as proxy, client_of(proxies={"http": proxy.url}) as http:
        assert http.get("http://data.test/x?a=1", provider="p").body == b"through the proxy"
        assert proxy.requests[0].target == "http://data.test/x?a=1"


def test_a_proxy_is_told_its_user() -> None:
    with Loopback(Reply()) as proxy, client_of(proxies={"all": proxy.url.replace("//", "//me:s%20e@")}) as http:
        http.get("http://data.test/", provider="p")
        assert proxy.requests[0].headers["proxy-authorization"] == "Basic bWU6cyBl"


def test_tls_goes_through_a_proxy_in_a_tunnel() -> None:
    with Loopback(Reply(status=502)) as proxy, client_of(proxies={"https": proxy.url}) as http:
        assert isinstance(failure_of(http, "https://data.test/x?token=abcdef"), TransientError)
        assert (proxy.requests[0].method, proxy.requests[0].target) == ("CONNECT", "data.test:443")


def test_no_proxy_is_used_for_this_machine() -> None:
    with Loopback(Reply(body=b"direct")) as server, Loopback(Reply()) as proxy, client_of(proxies={"all": proxy.url}) as http:
        assert http.get(server.url, provider="p").body == b"direct"
        assert http.get(server.url.replace("127.0.0.1", "localhost"), provider="p").body == b"direct"
        assert proxy.requests == []


@pytest.mark.parametrize(
    ("exempt", "is_used"), [("data.test", False), (".test", False), ("other.test,*", False), ("ta.test", True), ("", True)]
)
def test_no_proxy_is_used_for_what_the_environment_exempts(exempt: str, *, is_used: bool) -> None:
    with Loopback(Reply()) as proxy, client_of(proxies={"http": proxy.url, "no": exempt}, timeout_seconds=1) as http:
        if is_used:
            assert http.get("http://data.test/", provider="p").status == 200
        else:
            assert isinstance(failure_of(http, "http://data.test/"), TransientError)
        assert bool(proxy.requests) == is_used


@pytest.mark.parametrize("address", ["socks5://127.0.0.1:9", "127.0.0.1:9", "http://"])
def test_a_proxy_that_we_cannot_use_is_a_configuration_error(address: str) -> None:
    with client_of(proxies={"http": address}) as http, pytest.raises(ConfigurationError, match="HTTP_PROXY or ALL_PROXY"):
        http.get("http://data.test/", provider="p")


# --- idle connections --------------------------------------------------------------------------------------------------


def test_after_closing_no_connection_is_kept() -> None:
    with Loopback(Reply(body=b"1")) as server:
        http = client_of()
        http.get(server.url, provider="p")
        http.close()
        http.close()
        assert http.get(server.url, provider="p").body == b"1"
        for thread in server._threads[1:]:  # noqa: SLF001 - one a connection: it ends with it
            thread.join(5)
            assert not thread.is_alive()
