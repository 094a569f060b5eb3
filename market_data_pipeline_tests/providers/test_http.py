"""How every way a call can end becomes an answer or one of our errors. Against a real socket; no test waits for a back-off."""

from __future__ import annotations

import gzip
import logging
import random
import socket
import zlib
from datetime import UTC, datetime
from threading import Thread
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.errors import (
    ConfigurationError,
    EntitlementError,
    PayloadError,
    ProviderError,
    RateLimitedError,
    TransientError,
)
from market_data_pipeline.providers.http import Attempt, HttpAnswer, HttpClient, HttpPolicy, describe, redact
from market_data_pipeline.settings import Settings
from market_data_pipeline_tests.providers.loopback import Loopback, Reply

if TYPE_CHECKING:
    from collections.abc import Callable

CANARY = "s3cr3t-canary-0123456789"
NOON = datetime(2024, 7, 1, 12, tzinfo=UTC)


class Waits:
    """A clock that only moves when somebody sleeps."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds

    def now(self) -> float:
        return self.seconds


def client_of(waits: Waits | None = None, **policy: float) -> HttpClient:
    """A client that never really sleeps; on a standing clock where ``waits`` is given."""
    waits_or_new = waits or Waits()
    settings = HttpPolicy(**{"timeout_seconds": 5.0, **policy})  # type: ignore[arg-type] # ints and floats by name
    rng = random.Random(7)
    if waits is None:
        return HttpClient(settings, sleep=waits_or_new.sleep, wall_clock=lambda: NOON, rng=rng)
    return HttpClient(settings, sleep=waits.sleep, clock=waits.now, wall_clock=lambda: NOON, rng=rng)


def failure_of(call: Callable[[], object]) -> ProviderError:
    """The provider error that ``call`` ends in."""
    with pytest.raises(ProviderError) as raised:
        call()
    return raised.value


# --- answers -----------------------------------------------------------------------------------------------------------


def test_an_answer_carries_status_headers_body_and_the_request_as_text() -> None:
    with (
        Loopback(Reply(body=b'{"a":1}', headers={"Content-Type": "application/JSON; charset=utf-8"})) as server,
        client_of() as http,
    ):
        answer = http.get(f"{server.url}/v1/x", {"symbol": "A B"}, {"user-agent": "us"}, provider="p")
        assert (answer.status, answer.body, answer.content_type) == (200, b'{"a":1}', "application/json")
        assert answer.request == f"GET {server.url}/v1/x?symbol=A%20B"
        assert answer.latency_seconds > 0
        assert server.requests[0].headers["user-agent"] == "us"
        assert server.requests[0].query == {"symbol": "A B"}


def test_the_query_of_a_url_without_parameters_stays() -> None:
    with Loopback(Reply(body=b"x")) as server, client_of() as http:
        http.get(f"{server.url}/clock?now=1", provider="p")
        assert server.requests[0].query == {"now": "1"}


def test_a_gzip_body_is_unpacked() -> None:
    packed = gzip.compress(b"hello" * 100)
    with Loopback(Reply(body=packed, headers={"Content-Encoding": "gzip"})) as server, client_of() as http:
        assert http.get(server.url, provider="p").body == b"hello" * 100
        assert server.requests[0].headers["accept-encoding"] == "gzip"


@pytest.mark.parametrize("status", [200, 204, 301, 302, 400, 404, 410, 418, 422])
def test_a_status_that_only_the_adapter_can_judge_is_returned_after_one_request(status: int) -> None:
    with Loopback(Reply(status=status)) as server, client_of() as http:
        assert http.get(server.url, provider="p").status == status
        assert len(server.requests) == 1


def test_a_redirect_is_not_followed() -> None:
    with Loopback(Reply(body=b"secret place")) as elsewhere, client_of() as http:
        with Loopback(Reply(status=302, headers={"Location": elsewhere.url})) as server:
            assert http.get(server.url, provider="p").status == 302
        assert elsewhere.requests == []


def test_connections_are_reused() -> None:
    with Loopback(Reply(body=b"1")) as server, client_of() as http:
        for _ in range(5):
            http.get(server.url, provider="p")
        assert len(server.requests) == 5
        assert len(server._connections) == 1  # noqa: SLF001 - the number of connections is what this test is about


def test_one_client_serves_many_threads() -> None:
    with Loopback(Reply(body=b"1")) as server, client_of() as http:
        bodies: list[bytes] = []
        threads = [Thread(target=lambda: bodies.append(http.get(server.url, provider="p").body)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert bodies == [b"1"] * 8


# --- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, EntitlementError),
        (402, EntitlementError),
        (403, EntitlementError),
        (429, RateLimitedError),
        (500, TransientError),
        (502, TransientError),
        (503, TransientError),
        (504, TransientError),
    ],
)
def test_a_status_that_means_the_same_everywhere_becomes_our_error(status: int, expected: type[ProviderError]) -> None:
    with Loopback(Reply(status=status, body=b"No.")) as server, client_of(attempts=1) as http:
        error = failure_of(lambda: http.get(server.url, provider="acme"))
        assert type(error) is expected
        assert str(error) == f"acme: HTTP {status} No."


@pytest.mark.parametrize(
    "broken",
    [
        Reply(reset=True),
        Reply(body=b"x" * 1000, cut_after=500),
        Reply(body=b"x" * 1000, cut_after=0),
        Reply(body=gzip.compress(b"x" * 1000)[:-9], headers={"Content-Encoding": "gzip"}),
        Reply(body=gzip.compress(b"x" * 1000)[:-9], headers={"Content-Encoding": "gzip"}, declare_length=False),
        Reply(body=b"not gzip at all", headers={"Content-Encoding": "gzip"}),
        Reply(status=503),
    ],
    ids=["reset", "half the body", "no body", "gzip cut", "gzip cut, no length", "not gzip", "503"],
)
def test_a_broken_answer_is_tried_again_and_the_next_one_counts(broken: Reply) -> None:
    attempts: list[Attempt] = []
    with Loopback(broken, Reply(body=b"good")) as server, client_of() as http:
        assert http.get(server.url, provider="p", attempts=attempts).body == b"good"
        assert [attempt.outcome for attempt in attempts] == ["transient", "answered"]
        assert len(server.requests) == 2


def test_a_stalled_server_is_a_transient_failure_after_the_time_out() -> None:
    with Loopback(Reply(stall=True)) as server, client_of(timeout_seconds=0.1, attempts=1) as http:
        error = failure_of(lambda: http.get(server.url, provider="p"))
        assert isinstance(error, TransientError)
        assert "read timeout" in str(error)


def test_a_body_that_drips_is_given_up_when_the_time_out_passes() -> None:
    # Each byte comes well within the time-out: only the sum is too long.
    drip = Reply(body=b"x" * 10_000, drip_seconds=0.02)
    with Loopback(drip) as server, client_of(timeout_seconds=0.15, attempts=1) as http:
        error = failure_of(lambda: http.get(server.url, provider="p"))
        assert isinstance(error, TransientError)
        assert "still arriving" in str(error)


def test_a_closed_port_is_a_transient_failure_that_names_the_host() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with client_of(attempts=2) as http:
        error = failure_of(lambda: http.get(f"http://127.0.0.1:{port}/", provider="p"))
    assert isinstance(error, TransientError)
    assert f"127.0.0.1:{port}: connect error" in str(error)


def test_a_name_that_does_not_resolve_is_a_transient_failure() -> None:
    with client_of(attempts=1) as http:
        assert isinstance(failure_of(lambda: http.get("http://localhost.invalid/", provider="p")), TransientError)


def test_a_server_that_speaks_no_tls_is_a_transient_failure() -> None:
    with Loopback(Reply()) as server, client_of(attempts=1, timeout_seconds=0.2) as http:
        url = server.url.replace("http://", "https://")
        assert isinstance(failure_of(lambda: http.get(url, provider="p")), TransientError)


def test_a_body_over_the_limit_is_refused_and_not_asked_for_again() -> None:
    with Loopback(Reply(body=b"x" * 2000)) as server, client_of(max_body_bytes=1999) as http:
        error = failure_of(lambda: http.get(server.url, provider="p"))
        assert isinstance(error, PayloadError)
        assert len(server.requests) == 1
    with Loopback(Reply(body=b"x" * 2000)) as server, client_of(max_body_bytes=2000) as http:
        assert len(http.get(server.url, provider="p").body) == 2000


def test_a_gzip_bomb_is_refused_before_it_unfolds() -> None:
    packer = zlib.compressobj(wbits=31)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()
    assert len(bomb) < 1 << 20
    with Loopback(Reply(body=bomb, headers={"Content-Encoding": "gzip"})) as server, client_of(max_body_bytes=1 << 20) as http:
        assert isinstance(failure_of(lambda: http.get(server.url, provider="p")), PayloadError)


def test_an_encoding_we_did_not_ask_for_is_refused() -> None:
    with Loopback(Reply(body=b"xx", headers={"Content-Encoding": "br"})) as server, client_of() as http:
        error = failure_of(lambda: http.get(server.url, provider="p"))
        assert isinstance(error, PayloadError)
        assert "'br'" in str(error)


@pytest.mark.parametrize("url", ["ftp://example.test/", "http://a\x00b/", "no-scheme"])
def test_a_url_that_cannot_be_requested_is_a_configuration_error(url: str) -> None:
    with client_of() as http, pytest.raises(ConfigurationError, match="cannot request"):
        http.get(url, {"token": CANARY}, provider="p")


# --- retries -----------------------------------------------------------------------------------------------------------


def test_a_transient_failure_is_tried_as_often_as_the_policy_says_with_growing_waits() -> None:
    waits, attempts = Waits(), list[Attempt]()
    with Loopback(Reply(status=500)) as server, client_of(waits, attempts=4, backoff_seconds=1.0, deadline_seconds=90) as http:
        error = failure_of(lambda: http.get(server.url, provider="p", attempts=attempts))
        assert str(error) == "p: HTTP 500 (attempt 4 of 4)"
        assert [attempt.status for attempt in attempts] == [500] * 4
        assert len(server.requests) == 4
    assert len(waits.slept) == 3
    for slept, ceiling in zip(waits.slept, (1.0, 2.0, 4.0), strict=True):
        assert ceiling / 2 <= slept <= ceiling


def test_two_clients_that_fail_together_do_not_come_back_together() -> None:
    slept = []
    for seed in (1, 2):
        waits = Waits()
        policy = HttpPolicy(attempts=2)
        with (
            Loopback(Reply(status=500)) as server,
            HttpClient(policy, sleep=waits.sleep, clock=waits.now, rng=random.Random(seed)) as http,
        ):
            failure_of(lambda http=http, server=server: http.get(server.url, provider="p"))  # type: ignore[misc]
        slept += waits.slept
    assert slept[0] != slept[1]


@pytest.mark.parametrize("status", [401, 403, 429])
def test_a_rejected_request_is_not_retried(status: int) -> None:
    with Loopback(Reply(status=status)) as server, client_of() as http:
        failure_of(lambda: http.get(server.url, provider="p"))
        assert len(server.requests) == 1


def test_no_attempt_begins_after_the_deadline() -> None:
    waits = Waits()
    with Loopback(Reply(status=500)) as server, client_of(waits, attempts=50, backoff_seconds=8.0, deadline_seconds=30) as http:
        failure_of(lambda: http.get(server.url, provider="p"))
        assert waits.seconds < 1030
        assert 1 < len(server.requests) < 50


@pytest.mark.parametrize(
    ("header", "waited"),
    [("7", 7.0), ("0", 0.0), ("1.5", 1.5), ("Mon, 01 Jul 2024 12:00:20 GMT", 20.0), ("Mon, 01 Jul 2024 11:00:00 GMT", 0.0)],
)
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured_in_seconds_and_as_a_date(status: int, header: str, waited: float) -> None:
    waits = Waits()
    busy = Reply(status=status, headers={"Retry-After": header})
    with Loopback(busy, Reply(body=b"ok")) as server, client_of(waits) as http:
        assert http.get(server.url, provider="p").body == b"ok"
    assert waits.slept == [waited]


def test_a_retry_after_date_is_read_against_the_servers_own_clock() -> None:
    waits = Waits()
    headers = {"Retry-After": "Fri, 01 Jan 2021 00:00:09 GMT", "Date": "Fri, 01 Jan 2021 00:00:00 GMT"}
    with Loopback(Reply(status=429, headers=headers), Reply()) as server, client_of(waits) as http:
        http.get(server.url, provider="p")
    assert waits.slept == [9.0]


@pytest.mark.parametrize(
    ("header", "expected"),
    [("3600", 3600.0), ("99999999999", 86_400.0), ("1e400", None), ("-5", None), ("soon", None), ("", None), ("1" * 400, 86_400.0)],
)
def test_a_wait_beyond_the_deadline_is_handed_on_at_once_and_absurd_ones_are_capped(header: str, expected: float | None) -> None:
    waits = Waits()
    busy = Reply(status=429, headers={"Retry-After": header})
    with Loopback(busy) as server, client_of(waits, deadline_seconds=60) as http:
        error = failure_of(lambda: http.get(server.url, provider="p"))
        assert isinstance(error, RateLimitedError)
        assert error.retry_after_seconds == expected
        assert len(server.requests) == 1
    assert waits.slept == []


def test_a_200_that_the_adapter_calls_an_outage_is_retried_in_the_same_loop() -> None:
    def check(answer: HttpAnswer) -> None:
        if answer.body == b"Will be right back":
            raise TransientError("an outage page", provider="p")

    attempts: list[Attempt] = []
    with Loopback(Reply(body=b"Will be right back"), Reply(body=b"data")) as server, client_of() as http:
        assert http.get(server.url, provider="p", check=check, attempts=attempts).body == b"data"
        assert [(a.outcome, a.status, a.payload_bytes) for a in attempts] == [("transient", 200, 18), ("answered", 200, 4)]
        assert len(server.requests) == 2


def test_the_settings_of_the_environment_become_the_policy() -> None:
    with HttpClient.open(Settings(http_attempts=2, http_timeout_seconds=3, requests_in_flight=9)) as http:
        assert (http.policy.attempts, http.policy.timeout_seconds, http.policy.connections) == (2, 3, 10)


# --- secrets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        f"https://x.test/a?token={CANARY}&b=1",
        f"https://x.test/a?b=1&apikey={CANARY}",
        f"https://x.test/a?apiKey={CANARY}#f",
        f"https://x.test/a?api_key={CANARY}",
        f"https://x.test/a?crumb={CANARY}",
        f"https://x.test/a?key={CANARY}",
        f"https://x.test/a?X-Amz-Signature={CANARY}",
        f"https://user:{CANARY}@x.test/a",
        f"https://{CANARY}@x.test/a",
        f"Authorization: Bearer {CANARY}",
        f"X-Finnhub-Token: {CANARY}",
        f'{{"api_key": "{CANARY}"}}',
        f"Cookie: A3={CANARY}; B=1",
    ],
)
def test_no_secret_survives_redaction(text: str) -> None:
    assert CANARY not in redact(text)


def test_redaction_leaves_the_rest_readable() -> None:
    assert redact("GET https://x.test/a?symbol=MSFT&token=abc&period1=5") == "GET https://x.test/a?symbol=MSFT&token=***&period1=5"


@given(value=st.text(min_size=4), name=st.sampled_from(["token", "apikey", "api_key", "crumb", "key", "X-Api-Key"]))
def test_the_value_of_a_secret_parameter_is_never_in_the_description(value: str, name: str) -> None:
    shown = describe("https://x.test/a", {"symbol": "A", name: value}, {})
    assert shown == f"GET https://x.test/a?symbol=A&{name}=***"


def test_redaction_comes_before_cutting_short() -> None:
    echo = (b"x" * 150 + f"?token={CANARY}".encode()) * 2
    answer = HttpAnswer(status=400, headers={}, body=echo, latency_seconds=0.0, request="")
    assert "s3cr3t" not in answer.excerpt(170)


def test_a_hostile_body_does_not_make_redaction_slow() -> None:
    answer = HttpAnswer(status=400, headers={}, body=b"key" * 1_000_000, latency_seconds=0.0, request="")
    assert len(answer.excerpt()) == 160


def errors_with_a_secret(server: Loopback, http: HttpClient) -> ProviderError:
    return failure_of(
        lambda: http.get(f"{server.url}/x", {"token": CANARY, "symbol": "A"}, {"x-api-key": CANARY + "-header"}, provider="p")
    )


@pytest.mark.parametrize(
    "reply",
    [
        Reply(reset=True),
        Reply(status=403, body=f"your token {CANARY} is not entitled, nor is {CANARY}-header".encode()),
        Reply(status=429, body=f"slow down https://x/?token={CANARY}".encode()),
        Reply(status=500, body=CANARY.encode()),
        Reply(body=b"x" * 100, cut_after=3),
    ],
)
def test_no_secret_is_in_an_error_its_chain_the_attempts_or_the_log(reply: Reply, caplog: pytest.LogCaptureFixture) -> None:
    with Loopback(reply) as server, client_of() as http, caplog.at_level(logging.DEBUG):
        error = errors_with_a_secret(server, http)
    assert CANARY not in f"{error!s} {error!r} {error.__dict__}"
    assert error.__cause__ is None
    assert error.__context__ is None
    assert CANARY not in caplog.text


def test_httpx_is_kept_quiet_and_other_loggers_are_left_alone() -> None:
    root = logging.getLogger().level
    with client_of():
        assert logging.getLogger("httpx").getEffectiveLevel() >= logging.WARNING
        assert logging.getLogger("httpcore.connection").getEffectiveLevel() >= logging.WARNING
        assert logging.getLogger().level == root
