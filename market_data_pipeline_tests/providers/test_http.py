"""How every way a call can end becomes an answer or one of our errors. Against a real socket; no test waits for a back-off."""

from __future__ import annotations

import gzip
import logging
import random
import socket
import time
import traceback
import zlib
from contextlib import ExitStack
from datetime import UTC, datetime
from threading import Thread
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.capabilities import Lane, Priority
from market_data_pipeline.domain.errors import (
    BudgetSpentError,
    ConfigurationError,
    EntitlementError,
    PayloadError,
    ProviderError,
    RateLimitedError,
    TransientError,
)
from market_data_pipeline.domain.redaction import redact
from market_data_pipeline.providers.connections import Connections
from market_data_pipeline.providers.http import Attempt, HttpAnswer, HttpClient, HttpPolicy, describe
from market_data_pipeline.settings import Settings
from market_data_pipeline_tests.providers.loopback import Loopback, Reply
from market_data_pipeline_tests.providers.secure import SecureServer, trusting

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


@pytest.mark.parametrize("status", [200, 204, 301, 302, 304, 400, 404, 408, 410, 418, 422, 423])
def test_a_status_that_only_the_adapter_can_judge_is_returned_after_one_request(status: int) -> None:
    with Loopback(Reply(status=status)) as server, client_of() as http:
        assert http.get(server.url, provider="p").status == status
        assert len(server.requests) == 1


def test_connections_are_reused() -> None:
    with Loopback(Reply(body=b"1")) as server, client_of() as http:
        for _ in range(5):
            http.get(server.url, provider="p")
        assert len(server.requests) == 5
        assert len(server._connections) == 1  # noqa: SLF001 - the number of connections is what this test is about


def test_a_connection_that_the_server_closed_meanwhile_is_no_failure() -> None:
    attempts: list[Attempt] = []
    with Loopback(Reply(body=b"1", declare_length=False)) as server, client_of() as http:
        for _ in range(3):
            http.get(server.url, provider="p", attempts=attempts)
        assert [attempt.outcome for attempt in attempts] == ["answered"] * 3


def test_no_more_idle_connections_are_kept_than_the_policy_says() -> None:
    with Loopback(Reply(body=b"1")) as one, Loopback(Reply(body=b"1")) as other, client_of(connections=1) as http:
        for server in (one, other, one, one):
            http.get(server.url, provider="p")
        assert [len(server._connections) for server in (one, other)] == [2, 1]  # noqa: SLF001 - what this test is about


def test_a_failed_attempt_leaves_nothing_to_be_read_as_the_next_answer() -> None:
    slow = Reply(body=b"late" * 50, drip_seconds=0.05)
    with Loopback(slow, Reply(body=b"prompt")) as server, client_of(timeout_seconds=0.15) as http:
        assert http.get(server.url, provider="p").body == b"prompt"


def test_cookies_are_not_kept() -> None:
    with Loopback(Reply(headers={"Set-Cookie": "A3=secret; Path=/"})) as server, client_of() as http:
        assert http.get(server.url, provider="p").headers["set-cookie"] == "A3=secret; Path=/"
        http.get(server.url, provider="p")
        assert "cookie" not in server.requests[1].headers


def test_headers_that_are_repeated_are_joined() -> None:
    two = Reply(headers={"Set-Cookie": "A1=1", "set-cookie": "A3=3"})
    with Loopback(two) as server, client_of() as http:
        assert http.get(server.url, provider="p").headers["set-cookie"] == "A1=1, A3=3"


def test_a_header_of_the_caller_replaces_ours() -> None:
    with Loopback(Reply()) as server, client_of() as http:
        http.get(server.url, headers={"User-Agent": "us", "Accept": "text/csv"}, provider="p")
        assert (server.requests[0].headers["user-agent"], server.requests[0].headers["accept"]) == ("us", "text/csv")


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


@pytest.mark.parametrize(
    "drip",
    [
        Reply(body=b"x" * 1000, drip_head_seconds=0.02),
        Reply(body=gzip.compress(bytes(1000)), headers={"Content-Encoding": "gzip"}, drip_seconds=0.02),
        Reply(headers={f"X-{n}": "y" * 40 for n in range(40)}, drip_head_seconds=0.001),
    ],
    ids=["status line and headers", "compressed body", "many headers, fast"],
)
def test_nothing_that_drips_outlasts_the_time_out(drip: Reply) -> None:
    with Loopback(drip) as server, client_of(timeout_seconds=0.15, attempts=1) as http:
        begun = time.monotonic()
        error = failure_of(lambda: http.get(server.url, provider="p"))
        assert isinstance(error, TransientError)
        # One time-out and what a busy machine adds; before there was a limit on headers, this took the whole drip.
        assert time.monotonic() - begun < 0.15 + 0.5


def test_a_body_that_stops_arriving_is_given_up_when_the_time_out_passes() -> None:
    with Loopback(Reply(body=b"xy", drip_seconds=10)) as server, client_of(timeout_seconds=0.1, attempts=1) as http:
        assert "still arriving when the time-out passed, 1 bytes read" in str(
            failure_of(lambda: http.get(server.url, provider="p"))
        )


def test_an_attempt_has_no_more_time_than_the_deadline_leaves() -> None:
    with Loopback(Reply(stall=True)) as server, client_of(timeout_seconds=30, deadline_seconds=0.1) as http:
        begun = time.monotonic()
        assert isinstance(failure_of(lambda: http.get(server.url, provider="p")), TransientError)
        assert time.monotonic() - begun < 5


def test_headers_without_end_are_a_transient_failure() -> None:
    with Loopback(Reply(headers={"X-Long": "x" * 200_000})) as server, client_of(attempts=1) as http:
        assert isinstance(failure_of(lambda: http.get(server.url, provider="p")), TransientError)


def test_something_that_is_no_http_is_a_transient_failure() -> None:
    with (
        Loopback(Reply(headers={"Transfer-Encoding": "chunked"}, body=b"zzz\r\nnot chunks")) as server,
        client_of(attempts=1) as http,
    ):
        assert isinstance(failure_of(lambda: http.get(server.url, provider="p")), TransientError)


def test_every_address_of_a_host_is_tried() -> None:
    # localhost is ::1 and 127.0.0.1 on most machines; the server listens on the second alone.
    with Loopback(Reply(body=b"found")) as server, client_of(attempts=1) as http:
        assert http.get(server.url.replace("127.0.0.1", "localhost"), provider="p").body == b"found"


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


@pytest.mark.parametrize("url", ["ftp://example.test/", "http://a\x00b/", "no-scheme", "http:///path", "http://x:99999/"])
def test_a_url_that_cannot_be_requested_is_a_configuration_error(url: str) -> None:
    with client_of() as http, pytest.raises(ConfigurationError, match="cannot request") as raised:
        http.get(url, {"token": CANARY}, provider="p")
    assert CANARY not in str(raised.value)


@pytest.mark.parametrize("text", [f"{CANARY}\n", f" {CANARY}", f"{CANARY}\r\nX-Evil: 1", f"{CANARY}\x00", f"{CANARY}é"])
def test_a_key_that_cannot_be_a_header_is_a_configuration_error_that_does_not_show_it(text: str) -> None:
    with Loopback(Reply()) as server, client_of() as http:
        with pytest.raises(ConfigurationError, match="the header x-api-key holds a character that HTTP does not allow") as raised:
            http.get(server.url, headers={"x-api-key": text}, provider="p")
        assert server.requests == []
    assert CANARY not in str(raised.value)


# --- redirects ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["/v2/x?b=2", "{origin}/v2/x?b=2"], ids=["relative", "absolute"])
def test_a_redirect_to_the_same_server_is_followed_without_a_secret(status: int, location: str) -> None:
    attempts: list[Attempt] = []
    replies = [Reply(body=b"moved"), Reply(body=b"here")]
    with Loopback(*replies) as server, client_of() as http:
        replies[0] = Reply(status=status, headers={"Location": location.format(origin=server.url)})
        server._replies = replies  # noqa: SLF001 - its address is only known now
        answer = http.get(f"{server.url}/x", {"a": "1"}, provider="p", attempts=attempts)
        assert answer.body == b"here"
        assert [(r.path, r.query) for r in server.requests] == [("/x", {"a": "1"}), ("/v2/x", {"b": "2"})]
        assert [attempt.status for attempt in attempts] == [status, 200]


@pytest.mark.parametrize(
    ("params", "headers"),
    [
        ({"token": "abcdef"}, {}),
        ({"apikey": "x"}, {}),
        ({}, {"x-api-key": CANARY}),
        ({}, {"authorization": f"Bearer {CANARY}"}),
        ({}, {"cookie": f"A3={CANARY}"}),
    ],
)
def test_a_request_with_a_secret_is_never_redirected(params: dict[str, str | int], headers: dict[str, str]) -> None:
    with Loopback(Reply(status=302, headers={"Location": "/elsewhere"})) as server, client_of() as http:
        assert http.get(server.url, params, headers, provider="p").status == 302
        assert len(server.requests) == 1


def test_a_secret_in_the_url_itself_is_never_redirected() -> None:
    with Loopback(Reply(status=302, headers={"Location": "/elsewhere"})) as server, client_of() as http:
        http.get(f"{server.url}/x?apiKey={CANARY}", provider="p")
        http.get(f"{server.url}/x".replace("//", f"//user:{CANARY}@"), provider="p")
        assert len(server.requests) == 2


@pytest.mark.parametrize("location", ["{elsewhere}/x", "//{elsewhere_host}/x", "https://{host}/x", "ftp://{host}/", "http://[", ""])
def test_a_redirect_to_another_server_is_not_followed(location: str) -> None:
    with Loopback(Reply(body=b"secret place")) as elsewhere, client_of() as http:
        with Loopback() as server:
            told = location.format(
                elsewhere=elsewhere.url, elsewhere_host=f"127.0.0.1:{elsewhere.port}", host=f"127.0.0.1:{server.port}"
            )
            server._replies = [Reply(status=302, headers={"Location": told})]  # noqa: SLF001 - its address is only known now
            assert http.get(server.url, provider="p").status == 302
            assert len(server.requests) == 1
        assert elsewhere.requests == []


def test_redirects_that_lead_in_a_circle_end() -> None:
    with Loopback(Reply(status=302, headers={"Location": "/"})) as server, client_of() as http:
        assert http.get(server.url, provider="p").status == 302
        assert len(server.requests) == 4


# --- budget ------------------------------------------------------------------------------------------------------------


class Purse:
    """A budget with room for ``room`` requests; it notes what it is asked and told."""

    def __init__(self, room: int = 99) -> None:
        self.room = room
        self.taken: list[tuple[str, str, Priority, float]] = []
        self.refusals: list[tuple[str, str, float | None]] = []

    def take(self, provider: str, account: str, priority: Priority, *, patience_seconds: float) -> None:
        if not self.room:
            raise BudgetSpentError("spent until noon", provider=provider, wait_seconds=3600.0)
        self.room -= 1
        self.taken.append((provider, account, priority, patience_seconds))

    def refused(self, provider: str, account: str, *, retry_after_seconds: float | None) -> None:
        self.refusals.append((provider, account, retry_after_seconds))


def client_with(purse: Purse, waits: Waits, **policy: float) -> HttpClient:
    """A client with a budget, on a standing clock."""
    settings = HttpPolicy(**{"timeout_seconds": 5.0, **policy})  # type: ignore[arg-type] # ints and floats by name
    return HttpClient(settings, budget=purse, sleep=waits.sleep, clock=waits.now, wall_clock=lambda: NOON, rng=random.Random(7))


def test_a_trial_is_one_request_whatever_comes_of_it() -> None:
    with Loopback(Reply(status=503)) as server, client_of(Waits()) as http:
        failure_of(lambda: http.get(server.url, provider="acme", priority=Priority(is_trial=True)))
        assert len(server.requests) == 1
        failure_of(lambda: http.get(server.url, provider="acme"))
        assert len(server.requests) == 1 + http.policy.attempts


def test_every_attempt_is_taken_from_the_budget_of_its_account_with_its_priority() -> None:
    purse, priority = Purse(), Priority(Lane.LIVE, "T1")
    with Loopback(Reply(status=500), Reply(status=500), Reply()) as server, client_with(purse, Waits()) as http:
        http.get(server.url, provider="acme", account="a1b2", priority=priority)
    assert [taken[:3] for taken in purse.taken] == [("acme", "a1b2", priority)] * 3


def test_a_redirect_is_taken_from_the_budget_too() -> None:
    purse = Purse()
    with Loopback(Reply(status=302, headers={"Location": "/"}), Reply()) as server, client_with(purse, Waits()) as http:
        http.get(server.url, provider="p")
    assert len(purse.taken) == 2


def test_waiting_for_budget_leaves_time_for_the_answer() -> None:
    purse = Purse()
    with Loopback(Reply()) as server, client_with(purse, Waits(), timeout_seconds=20, deadline_seconds=90) as http:
        http.get(server.url, provider="p")
    with Loopback(Reply()) as server, client_with(purse, Waits(), timeout_seconds=90, deadline_seconds=90) as http:
        http.get(server.url, provider="p")
    assert [taken[3] for taken in purse.taken] == [70.0, 45.0]


def test_nothing_is_sent_for_which_there_is_no_budget() -> None:
    attempts: list[Attempt] = []
    with Loopback(Reply()) as server, client_with(Purse(room=0), Waits()) as http:
        error = failure_of(lambda: http.get(server.url, provider="p", attempts=attempts))
        assert isinstance(error, BudgetSpentError)
        assert (str(error), error.wait_seconds) == ("p: spent until noon", 3600.0)
        assert server.requests == []
        assert attempts == []


def test_a_failure_is_what_it_is_although_there_is_no_budget_to_try_again() -> None:
    with Loopback(Reply(status=500)) as server, client_with(Purse(room=1), Waits()) as http:
        error = failure_of(lambda: http.get(server.url, provider="p"))
        assert type(error) is TransientError
        assert len(server.requests) == 1


def test_a_429_tells_the_budget_and_is_waited_for_where_the_provider_named_a_time_that_fits() -> None:
    purse, waits = Purse(), Waits()
    busy = Reply(status=429, headers={"Retry-After": "7"})
    with Loopback(busy, Reply(body=b"ok")) as server, client_with(purse, waits) as http:
        assert http.get(server.url, provider="acme", account="a1").body == b"ok"
    assert purse.refusals == [("acme", "a1", 7.0)]
    assert waits.slept == [7.0]
    assert len(purse.taken) == 2


def test_a_429_without_a_time_tells_the_budget_and_is_not_waited_for() -> None:
    purse = Purse()
    with Loopback(Reply(status=429)) as server, client_with(purse, Waits()) as http:
        assert isinstance(failure_of(lambda: http.get(server.url, provider="p")), RateLimitedError)
    assert purse.refusals == [("p", "", None)]


def test_a_refusal_that_only_the_body_tells_of_tells_the_budget() -> None:
    def check(answer: HttpAnswer) -> None:
        raise RateLimitedError(answer.excerpt(), provider="p", retry_after_seconds=90_000.0)

    purse = Purse()
    with Loopback(Reply(body=b"API limit reached", headers={"Retry-After": "5"})) as server, client_with(purse, Waits()) as http:
        failure_of(lambda: http.get(server.url, provider="p", check=check))
    assert purse.refusals == [("p", "", 90_000.0)]


@pytest.mark.parametrize(("reset", "waited"), [(str(NOON.timestamp() + 12), 12.0), ("12", 12.0), (str(NOON.timestamp() - 5), 0.0)])
def test_a_429_that_says_when_the_count_begins_anew_is_waited_for(reset: str, waited: float) -> None:
    waits = Waits()
    busy = Reply(status=429, headers={"X-Ratelimit-Remaining": "0", "X-Ratelimit-Reset": reset})
    with Loopback(busy, Reply(body=b"ok")) as server, client_with(Purse(), waits) as http:
        assert http.get(server.url, provider="p").body == b"ok"
    assert waits.slept == [waited]


@pytest.mark.parametrize("reset", ["soon", "", "-5", "nan", "1e400"])
def test_a_reset_that_is_no_time_is_none(reset: str) -> None:
    with Loopback(Reply(status=429, headers={"X-Ratelimit-Reset": reset})) as server, client_of(Waits()) as http:
        error = failure_of(lambda: http.get(server.url, provider="p"))
        assert isinstance(error, RateLimitedError)
        assert error.retry_after_seconds is None


def test_what_is_left_of_a_limit_is_in_the_headers_of_an_answer() -> None:
    with Loopback(Reply(headers={"X-Ratelimit-Remaining": "3"})) as server, client_of() as http:
        assert http.get(server.url, provider="p").headers["x-ratelimit-remaining"] == "3"


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
        f"Cookie: B=1; A3={CANARY}; C=2",
        f"set-cookie: A1=d={CANARY}&S=x; Expires=Wed, 21 Oct 2026 07:28:00 GMT; Path=/",
        f"Authorization: Token {CANARY}",
        f"proxy-authorization: Basic {CANARY}",
        f"APCA-API-KEY-ID: {CANARY}",
        f"APCA-API-SECRET-KEY: {CANARY}",
        f"{{'APCA-API-SECRET-KEY': '{CANARY}'}}",
        f"[(b'x-finnhub-token', b'{CANARY}')]",
        f"[(b'set-cookie', b'B=1; A3={CANARY}')]",
        f"{{'cookie': 'B=1; A3={CANARY}', 'accept': '*/*'}}",
        f"https://api.test/v2/aggs?cursor=abc&apiKey={CANARY}",
        f"https://www.test/query?function=TIME_SERIES&apikey={CANARY}&symbol=A",
        f"https://api.test/fred/series?api_key={CANARY}&file_type=json",
    ],
)
def test_no_secret_survives_redaction(text: str) -> None:
    assert CANARY not in redact(text)


def test_redaction_leaves_the_rest_readable() -> None:
    assert redact("GET https://x.test/a?symbol=MSFT&token=abc&period1=5") == "GET https://x.test/a?symbol=MSFT&token=***&period1=5"


@given(value=st.text(min_size=4), name=st.sampled_from(["token", "apikey", "api_key", "crumb", "key", "X-Api-Key"]))
def test_the_value_of_a_secret_parameter_is_never_in_the_description(value: str, name: str) -> None:
    shown = describe("https://x.test/a", {"symbol": "A", name: value}, {})
    # What comes before it may be hidden, too, where it looks like the secret ("http").
    assert shown.endswith("=***")
    assert shown.count("&") == 1


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


@pytest.mark.parametrize("text", ["B=1; A3=%s", "A3=%s; B=1", "%s"])
def test_a_part_of_a_cookie_is_hidden_where_it_is_echoed(text: str) -> None:
    with Loopback(Reply(status=403, body=f"no {CANARY} here".encode())) as server, client_of() as http:
        error = failure_of(lambda: http.get(server.url, headers={"cookie": text % CANARY}, provider="p"))
    assert str(error) == "p: HTTP 403 no *** here"


def test_a_key_in_the_url_itself_is_hidden_where_it_is_echoed() -> None:
    with Loopback(Reply(status=403, body=f"no {CANARY} here".encode())) as server, client_of() as http:
        error = failure_of(lambda: http.get(f"{server.url}/next?cursor=1&apiKey={CANARY}", provider="p"))
    assert str(error) == "p: HTTP 403 no *** here"


def test_the_error_of_a_check_leaves_without_its_chain_and_notes() -> None:
    def check(answer: HttpAnswer) -> None:
        try:
            int(f"https://x/?token={CANARY}")
        except ValueError as theirs:
            error = PayloadError(f"bad body for token {CANARY}", provider="p")
            error.add_note(f"asked with {CANARY}, got {answer.status}")
            raise error from theirs

    attempts: list[Attempt] = []
    with Loopback(Reply(body=b"x")) as server, client_of() as http:
        error = failure_of(lambda: http.get(server.url, {"token": CANARY}, provider="p", check=check, attempts=attempts))
    assert CANARY not in f"{error!s} {error!r} {error.__dict__} {attempts}"
    assert (error.__cause__, error.__context__) == (None, None)
    assert CANARY not in "".join(traceback.format_exception(error))


def test_no_secret_is_in_the_repr_of_an_answer_or_of_a_client() -> None:
    with Loopback(Reply(body=CANARY.encode(), headers={"Set-Cookie": f"A3={CANARY}"})) as server, client_of() as http:
        answer = http.get(server.url, {"crumb": CANARY}, {"x-api-key": CANARY}, provider="p")
        assert CANARY not in f"{answer!r} {answer.request} {http!r} {vars(http)!r}"


def test_no_library_says_a_secret_although_everything_is_set_to_debug(caplog: pytest.LogCaptureFixture) -> None:
    replies = [Reply(headers={"Set-Cookie": f"A3={CANARY}"}, body=b"{}"), Reply(reset=True), Reply(body=b"{}")]
    with ExitStack() as stack, caplog.at_level(logging.DEBUG):
        http = stack.enter_context(HttpClient(HttpPolicy(timeout_seconds=5), connections=Connections(kept=2, tls=trusting())))
        plain, secure = stack.enter_context(Loopback(*replies)), stack.enter_context(SecureServer(*replies))
        http.get(plain.url, provider="p")
        http.get(secure.url, provider="p")
        # As someone would who looks for a fault: after the client was made, and every logger by its name.
        for name in [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in LIBRARIES]:
            stack.enter_context(caplog.at_level(logging.DEBUG, name))
        for url in (plain.url, secure.url):
            http.get(f"{url}/x", {"token": CANARY}, {"x-api-key": CANARY, "cookie": f"A3={CANARY}"}, provider="p")
        assert secure.protocols_used == ["h2", "h2"]
    assert CANARY not in caplog.text
    assert [record for record in caplog.records if record.name.partition(".")[0] in LIBRARIES] == []


LIBRARIES = {"httpx", "httpcore", "h2", "hpack", "hyperframe", "hishel", "h11"}


def test_every_logger_of_the_libraries_is_silenced_and_the_others_are_left_alone() -> None:
    root = logging.getLogger().level
    with SecureServer(Reply()) as server, HttpClient(connections=Connections(kept=1, tls=trusting())) as http:
        http.get(server.url, provider="p")
    talkers = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in LIBRARIES]
    asynchronous = {"hishel._core._storages._async_sqlite", "hishel._core._storages._async_redis"}
    unused = asynchronous | {
        "hishel",
        "hishel._core",
        "hishel._core._storages",
        "hishel._core._storages._sync_redis",
        "hishel.core",
    }
    assert {name for name in talkers if not logging.getLogger(name).filters} <= unused
    assert logging.getLogger("httpcore.connection").getEffectiveLevel() >= logging.WARNING
    assert logging.getLogger().level == root


def test_a_warning_of_a_library_comes_through_redacted(caplog: pytest.LogCaptureFixture) -> None:
    with client_of():
        logging.getLogger("httpcore.connection").warning("lost %s", f"https://x/?token={CANARY}")
    assert caplog.messages == ["lost https://x/?token=***"]
