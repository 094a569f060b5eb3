"""Messages that are really delivered, to a web server and a mail server on loopback, and servers that do their worst."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import struct
import threading
from contextlib import contextmanager
from email import message_from_string
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from apprise import Apprise
from pydantic import SecretStr

from market_data_pipeline.domain.alert_config import Channel
from market_data_pipeline.domain.alert_messages import Message
from market_data_pipeline.domain.alerts import EventKind, Severity
from market_data_pipeline.domain.errors import InvalidInputError, UndeliverableError
from market_data_pipeline.observability.delivery import READ_SECONDS, check_channel, deliver, keeps_incidents, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterator

CANARY = "canary4711secret"
FIRING = Message("CRITICAL Slow", "It is <slow> & late.\nSince noon", EventKind.FIRING, Severity.CRITICAL, "mdp-alert-7")


def channel(url: str, name: str = "ops") -> Channel:
    return Channel(name, SecretStr(url))


class Receiver:
    """A web server that does what the last part of the path says, and keeps what it was sent."""

    def __init__(self) -> None:
        self.posts: list[tuple[str, dict[str, Any]]] = []
        self.over = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.posts.append((self.path, json.loads(body)))
                getattr(receiver, self.path.partition("?")[0].rpartition("/")[2])(self)

            def do_GET(self) -> None:
                receiver.posts.append((self.path, {}))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port

    @contextmanager
    def running(self) -> Iterator[Receiver]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.over.set()
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    def channel(self, what: str, *, options: str = "") -> Channel:
        return channel(f"json://anna:{CANARY}pw@127.0.0.1:{self.port}/{CANARY}/{what}?-token={CANARY}q{options}")

    @staticmethod
    def ok(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()

    @staticmethod
    def broken(handler: BaseHTTPRequestHandler) -> None:
        body = f"cannot post to {handler.path}".encode()
        handler.send_response(500)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    @staticmethod
    def elsewhere(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(307)
        handler.send_header("Location", "/stolen/ok")
        handler.end_headers()

    def silent(self, handler: BaseHTTPRequestHandler) -> None:  # noqa: ARG002 - as the others
        self.over.wait(60)

    @staticmethod
    def reset(handler: BaseHTTPRequestHandler) -> None:
        # Closed with a reset instead of an end.
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver().running() as running:
        yield running


class Heard(logging.Handler):
    """Everything that anybody says, at any level, where an operator's log would have it."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.getMessage()} {vars(record)}")


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> Iterator[Heard]:
    """Whatever a test is about, no secret is in the log."""
    # caplog puts the levels back. Its own text is no proof: it listens to loggers that pass nothing on, too.
    for name in (None, "apprise", "urllib3", "urllib3.connectionpool"):
        caplog.set_level(logging.DEBUG, logger=name)
    listener = Heard()
    logging.getLogger().addHandler(listener)
    yield listener
    logging.getLogger().removeHandler(listener)
    assert not [line for line in listener.lines if CANARY in line]


def refused(to: Channel, message: Message = FIRING) -> str:
    """Why it was not delivered; without a secret, in the text, in what led to it and in the representation."""
    with pytest.raises(UndeliverableError) as failed:
        deliver(to, message)
    error: BaseException | None = failed.value
    while error is not None:
        assert CANARY not in repr(error)
        error = error.__cause__ or error.__context__
    return str(failed.value)


def test_a_webhook_gets_title_text_and_kind(receiver: Receiver) -> None:
    deliver(receiver.channel("ok"), FIRING)
    path, posted = receiver.posts[-1]
    assert path == f"/{CANARY}/ok?token={CANARY}q"
    assert (posted["title"], posted["message"], posted["type"]) == (FIRING.title, FIRING.body, "failure")
    deliver(receiver.channel("ok"), Message("RESOLVED Slow", "Over", EventKind.RESOLVED, Severity.CRITICAL))
    assert receiver.posts[-1][1]["type"] == "success"


def test_a_server_that_fails_is_named_without_what_it_repeats(receiver: Receiver) -> None:
    error = refused(receiver.channel("broken"))
    assert error.startswith("ops (json): Failed to send JSON POST notification: Internal server error")


def test_no_redirect_is_followed_though_the_url_asks_for_it(receiver: Receiver) -> None:
    receiver.posts.clear()
    assert "error=307" in refused(receiver.channel("elsewhere", options="&redirect=yes"))
    assert [path.rpartition("/")[2].partition("?")[0] for path, _ in receiver.posts] == ["elsewhere"]


def test_a_connection_that_is_reset_and_one_that_nobody_takes_are_told_apart(receiver: Receiver) -> None:
    assert "reset" in refused(receiver.channel("reset")).lower()
    assert "Connection refused" in refused(channel(f"json://127.0.0.1:9/{CANARY}"))


def test_a_server_that_never_answers_is_left_after_its_time(receiver: Receiver) -> None:
    error = refused(receiver.channel("silent", options="&rto=0.3"))
    assert "timed out" in error
    assert READ_SECONDS <= 10


def test_no_half_of_a_secret_is_told_where_an_answer_was_cut(receiver: Receiver) -> None:
    long = channel(f"json://127.0.0.1:{receiver.port}/{CANARY}{'x' * 3000}/broken")
    assert len(refused(long)) < 600


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "2852039166",
        "0xa9fea9fe",
        "[fe80::1]",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
        "[fd00:ec2::254]",
        "100.100.100.200",
        "169.254.10.20:8080",
    ],
)
@pytest.mark.parametrize("scheme", ["json", "xmls", "form"])
def test_nothing_is_sent_to_where_machines_keep_their_credentials(scheme: str, host: str) -> None:
    with pytest.raises(InvalidInputError, match="where machines keep their credentials") as wrong:
        deliver(channel(f"{scheme}://{host}/{CANARY}"), FIRING)
    assert CANARY not in str(wrong.value)


def test_private_addresses_are_allowed() -> None:
    for host in ("10.1.2.3", "192.168.0.9", "[fd12:3456::1]", "alertmanager"):
        check_channel(channel(f"json://{host}:9093/hook"))


@pytest.mark.parametrize("url", [f"nonsense://{CANARY}", f"slack://{CANARY}", "no url at all", f"mailto://{CANARY}:x@"])
def test_what_is_no_channel_is_refused_without_its_url(url: str) -> None:
    with pytest.raises(InvalidInputError, match="the channel ops") as wrong:
        check_channel(channel(url))
    assert CANARY not in str(wrong.value)
    assert CANARY not in repr(channel(url))


def test_channels_of_slack_and_pagerduty_are_taken_and_incidents_keep_their_key() -> None:
    pager = channel(f"pagerduty://{'i' * 32}@{'A' * 20}", "pager")
    for one in (channel("slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7/#ops"), pager):
        check_channel(one)
    assert (kind_of(pager), keeps_incidents(pager)) == ("pagerduty", True)
    # What the attributes are called that make one incident of all messages about an alert.
    service = Apprise.instantiate(pager.url.get_secret_value())
    assert {"action", "dedup"} <= set(vars(service))


def test_what_is_too_long_for_a_vendor_is_cut_instead_of_refused(receiver: Receiver) -> None:
    deliver(receiver.channel("ok"), Message("WARNING Slow", "x" * 100_000, EventKind.FIRING, Severity.WARNING))
    assert 30_000 < len(receiver.posts[-1][1]["message"]) < 33_000


def test_a_name_that_nothing_resolves_may_be_there_later() -> None:
    assert "its host is not known" in refused(channel(f"json://no-such-host.invalid/{CANARY}"))


def test_the_log_is_a_channel_of_one_line(heard: Heard) -> None:
    deliver(channel("log://"), FIRING)
    (line,) = heard.lines
    assert line.startswith("CRITICAL Slow: It is <slow> & late. | Since noon {")
    assert "'levelname': 'ERROR'" in line
    assert "'alert': 'mdp-alert-7'" in line


def test_what_apprise_and_its_libraries_say_is_heard_by_nobody(receiver: Receiver, heard: Heard) -> None:
    deliver(receiver.channel("ok"), FIRING)
    refused(receiver.channel("broken"))
    assert heard.lines == []


class MailServer:
    """Takes mail as RFC 5321 has it, as far as a client needs; ``refuse``: no recipient is known."""

    def __init__(self, *, refuse: bool = False) -> None:
        self.mails: list[str] = []
        self.port = 0
        self._refuse = refuse
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()

    @contextmanager
    def running(self) -> Iterator[MailServer]:
        thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)
        thread.start()
        assert self._ready.wait(10)
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._over.set)
            thread.join()
            self._loop.close()

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 test\r\n")
        while line := await reader.readline():
            verb = line[:4].upper()
            if verb == b"DATA":
                writer.write(b"354 go on\r\n")
                self.mails.append((await reader.readuntil(b"\r\n.\r\n")).decode())
            answers = {b"QUIT": b"221 bye\r\n", b"RCPT": f"550 {CANARY} unknown\r\n".encode() if self._refuse else b"250 ok\r\n"}
            writer.write(answers.get(verb, b"250 ok\r\n"))
            if verb == b"QUIT":
                break
        writer.close()

    def channel(self) -> Channel:
        return channel(f"mailto://127.0.0.1:{self.port}?from=mdp@example.test&to={CANARY}@example.test&mode=insecure&format=text")


def test_mail_is_delivered() -> None:
    with MailServer().running() as server:
        deliver(server.channel(), FIRING)
        (mail,) = map(message_from_string, server.mails)
    assert mail["Subject"] == FIRING.title
    assert mail["To"] == f"{CANARY}@example.test"
    payload = mail.get_payload(decode=True)
    assert isinstance(payload, bytes)
    assert payload.decode().removesuffix(".\r\n").split() == FIRING.body.split()


def test_mail_that_is_refused_is_told() -> None:
    with MailServer(refuse=True).running() as server:
        assert "ops (mailto)" in refused(server.channel())
