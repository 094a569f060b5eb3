"""The simulator's HTTP/1.1 server: one process, a data plane and a control plane on the loopback.

Our own loop over h11, because faults need what frameworks hide: a reset, a body shorter than promised, a stall between bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import os
import socket
import struct
import sys
import traceback
from collections import deque
from dataclasses import dataclass, field, replace
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import h11
import orjson

from market_data_pipeline.domain.errors import InvalidInputError, UnavailableError
from market_data_pipeline.simulator.clock import instant_of, parse_instant, parse_speed
from market_data_pipeline.simulator.faults import (
    JSON_TYPE,
    Asked,
    FaultScript,
    Reply,
    Rule,
    bend_answer,
    bend_reply,
    parse_rules,
)
from market_data_pipeline.simulator.yahoo import CHART_PATH, ChartRefusal, ChartRequest, answer_chart, parse_request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from market_data_pipeline.simulator.clock import VirtualClock
    from market_data_pipeline.simulator.market import Market

    _Accept = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

HOST = "127.0.0.1"
SECRET_PARAMETERS = frozenset({"token", "api_key", "apikey", "crumb", "key", "access_token"})
LOGGED_HEADERS = ("user-agent", "accept", "accept-encoding", "if-none-match", "content-type")
LONGEST_LOG = 200_000
LARGEST_BODY = 4 << 20


@dataclass(frozen=True, slots=True)
class Received:
    """One HTTP request, read whole. ``path`` is still percent-encoded; header names are lower case."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Simulator:
    """The simulated provider and all of its state: clock, fault script and request log. It knows nothing of sockets."""

    market: Market
    clock: VirtualClock
    seed: int
    rules: Sequence[Rule] = ()
    log: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=LONGEST_LOG))
    script: FaultScript = field(init=False)
    _started: tuple[Any, float, Sequence[Rule]] = field(init=False)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        self._started = (self.clock.base, self.clock.speed, self.rules)
        self.script = FaultScript(self.rules, self.seed)

    def reset(self) -> None:
        """As it was started: clock, faults and their counts; the log is empty."""
        base, speed, rules = self._started
        self.clock.set(base, speed=speed)
        self.script = FaultScript(rules, self.seed)
        self.log.clear()
        self._numbers = itertools.count(1)

    # --- data plane

    def answer(self, received: Received) -> Reply:
        """The provider's reply to one request, faults included; the request is in the log afterwards."""
        now_us = self.clock.now_us()
        if received.method not in {"GET", "HEAD"}:
            return self._logged(received, now_us, Reply(405, (("content-type", "text/plain"),), b"Method Not Allowed"), ())
        if not received.path.startswith(CHART_PATH):
            return self._logged(received, now_us, Reply(404, (("content-type", "text/html"),), b"<html>Not Found</html>"), ())
        request = parse_request(received.path, received.query)
        asked = _asked(received, request, now_us)
        rules = self.script.hits(asked)
        for rule in rules:
            if rule.action == "stale":
                now_us -= round(rule.settings["seconds"] * 1_000_000)
            elif rule.action == "coarser" and isinstance(request, ChartRequest):
                request = replace(request, interval=rule.settings["interval"])
        answer = request if isinstance(request, ChartRefusal) else answer_chart(self.market, request, now_us=now_us, seed=self.seed)
        if isinstance(answer, ChartRefusal):
            reply = Reply(answer.status, (("content-type", JSON_TYPE),), answer.body())
        else:
            reply = Reply(200, (("content-type", JSON_TYPE),), bend_answer(answer, rules, self.script).body())
        if self.market.profile.gzip and asked.accepts_gzip and not any(rule.action == "truncated_gzip" for rule in rules):
            headers = (*reply.headers, ("content-encoding", "gzip"))
            reply = replace(reply, headers=headers, body=gzip.compress(reply.body, 1, mtime=0))
        return self._logged(received, asked.now_us, bend_reply(reply, rules, asked), rules, asked)

    def _logged(self, received: Received, now_us: int, reply: Reply, rules: Sequence[Rule], asked: Asked | None = None) -> Reply:
        self.log.append(
            {
                "number": next(self._numbers),
                "provider": "yahoo",
                "method": received.method,
                "path": received.path,
                "query": redacted(received.query),
                "headers": {name: received.headers[name] for name in LOGGED_HEADERS if name in received.headers},
                "symbol": asked.symbol if asked else None,
                "interval": asked.interval if asked else None,
                "period1": asked.start if asked else None,
                "period2": asked.end if asked else None,
                "at": instant_of(now_us).isoformat(),
                "status": reply.status,
                "bytes": len(reply.body),
                "actions": [rule.action for rule in rules],
            }
        )
        date = format_datetime(instant_of(now_us), usegmt=True)
        return replace(reply, headers=(("date", date), ("server", "ATS"), *reply.headers))

    # --- control plane

    def control(self, received: Received) -> Reply:
        """The control plane's reply: 400 says what was wrong with a request, 404 lists what there is."""
        try:
            return self._control(received)
        except InvalidInputError as wrong:
            return _json(400, {"error": str(wrong)})
        except orjson.JSONDecodeError as wrong:
            return _json(400, {"error": f"the body is not JSON: {wrong}"})

    def _control(self, received: Received) -> Reply:
        routes: Mapping[tuple[str, str], Callable[[Received], Reply]] = {
            ("GET", "/__sim/clock"): lambda _: self._clock(),
            ("POST", "/__sim/clock"): self._set_clock,
            ("GET", "/__sim/faults"): lambda _: self._faults(),
            ("POST", "/__sim/faults"): lambda posted: self._set_faults(parse_rules(orjson.loads(posted.body))),
            ("DELETE", "/__sim/faults"): lambda _: self._set_faults(()),
            ("GET", "/__sim/requests"): self._requests,
            ("DELETE", "/__sim/requests"): self._forget,
            ("POST", "/__sim/reset"): self._reset,
        }
        route = routes.get((received.method, received.path))
        if route is None:
            known = [f"{method} {path}" for method, path in routes]
            return _json(404, {"error": f"no {received.method} {received.path}", "known": known})
        return route(received)

    def _set_clock(self, received: Received) -> Reply:
        given = orjson.loads(received.body)
        if not isinstance(given, dict) or not set(given) <= {"now", "speed"}:
            raise InvalidInputError(f'clock {given!r}: expected {{"now": ISO 8601, "speed": number}}')
        speed = parse_speed(given.get("speed", self.clock.speed))
        now = parse_instant(given["now"], name="now") if "now" in given else self.clock.now()
        self.clock.set(now, speed=speed)
        return self._clock()

    def _faults(self) -> Reply:
        return _json(200, [rule.source for rule in self.script.rules])

    def _set_faults(self, rules: Sequence[Rule]) -> Reply:
        self.script = FaultScript(rules, self.seed)
        return self._faults()

    def _requests(self, received: Received) -> Reply:
        since = dict(parse_qsl(received.query)).get("since", "0")
        if not since.isdigit():
            raise InvalidInputError(f"since {since!r}: expected the number of a request")
        return _json(200, [entry for entry in self.log if entry["number"] > int(since)])

    def _forget(self, received: Received) -> Reply:  # noqa: ARG002 - a route takes what was received
        self.log.clear()
        return _json(200, [])

    def _reset(self, received: Received) -> Reply:  # noqa: ARG002
        self.reset()
        return self._clock()

    def _clock(self) -> Reply:
        return _json(200, {"now": self.clock.now().isoformat(), "speed": self.clock.speed})


def _asked(received: Received, request: ChartRequest | ChartRefusal, now_us: int) -> Asked:
    known = request if isinstance(request, ChartRequest) else None
    return Asked(
        path=received.path,
        query=received.query,
        symbol=known.symbol if known else None,
        interval=known.interval if known else None,
        start=known.start if known else None,
        end=known.end if known else None,
        accepts_gzip="gzip" in received.headers.get("accept-encoding", ""),
        now_us=now_us,
    )


def redacted(query: str) -> str:
    """``query`` with the values of secret parameters replaced."""
    pairs = [
        (name, "REDACTED" if name.lower() in SECRET_PARAMETERS else value)
        for name, value in parse_qsl(query, keep_blank_values=True)
    ]
    return urlencode(pairs)


def _json(status: int, value: object) -> Reply:
    return Reply(status, (("content-type", "application/json"),), orjson.dumps(value))


# --- sockets -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the simulator listens, as base URLs without a slash at the end."""

    yahoo: str
    control: str


@contextlib.asynccontextmanager
async def listening(simulator: Simulator, *, port: int = 0, control_port: int = 0) -> AsyncIterator[Addresses]:
    """Serve on the loopback for the length of the block; 0 lets the system choose a port. Open connections end with the block."""
    connections: set[asyncio.Task[None]] = set()

    def serving(handler: Callable[[Received], Reply]) -> _Accept:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            if task is not None:
                connections.add(task)
            try:
                await _converse(reader, writer, handler)
            except (ConnectionError, asyncio.CancelledError):
                writer.transport.abort()
            finally:
                if task is not None:
                    connections.discard(task)
                writer.close()

        return accept

    data = await _listen(serving(simulator.answer), port)
    try:
        control = await _listen(serving(simulator.control), control_port)
    except UnavailableError:
        data.close()
        raise
    try:
        yield Addresses(yahoo=_url(data), control=_url(control))
    finally:
        data.close()
        control.close()
        for task in tuple(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def _listen(accept: _Accept, port: int) -> asyncio.Server:
    try:
        return await asyncio.start_server(accept, HOST, port, backlog=512)
    except OSError as refused:
        reason = os.strerror(refused.errno) if refused.errno else str(refused)
        raise UnavailableError(f"cannot listen on {HOST}:{port}: {reason}: choose another port, or 0 for a free one") from None


def _url(server: asyncio.Server) -> str:
    return f"http://{HOST}:{server.sockets[0].getsockname()[1]}"


async def _converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Callable[[Received], Reply]) -> None:
    """One connection: request after request until either side has had enough."""
    connection = h11.Connection(h11.SERVER)
    while True:
        try:
            received = await _receive(connection, reader)
        except h11.RemoteProtocolError as wrong:
            writer.write(
                _bytes_of(connection, Reply(wrong.error_status_hint, (("content-type", "text/plain"),), str(wrong).encode()))
            )
            await writer.drain()
            return
        if received is None:
            return
        reply = _handled(handler, received)
        alive = await _send(connection, writer, reply, head_only=received.method == "HEAD")
        if not alive or connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
            return
        connection.start_next_cycle()


def _handled(handler: Callable[[Received], Reply], received: Received) -> Reply:
    try:
        return handler(received)
    except InvalidInputError as wrong:
        # Files are read on their first request: a bad one must be seen where the simulator was started, too.
        print(f"mdp simulate: {wrong}", file=sys.stderr, flush=True)  # noqa: T201
        return Reply(500, (("content-type", "text/plain"),), str(wrong).encode())
    except Exception:  # noqa: BLE001 - one broken answer must not end the others
        traceback.print_exc()
        return Reply(500, (("content-type", "text/plain"),), b"the simulator failed: its standard error says how")


async def _receive(connection: h11.Connection, reader: asyncio.StreamReader) -> Received | None:
    """The next request with its body; None when the client has closed."""
    request: h11.Request | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > LARGEST_BODY:
                raise h11.RemoteProtocolError("the body is too long", error_status_hint=413)
        elif isinstance(event, h11.EndOfMessage) and request is not None:
            target = urlsplit(request.target.decode("ascii"))
            headers = {name.decode("ascii"): value.decode("latin-1") for name, value in request.headers}
            return Received(request.method.decode("ascii"), target.path, target.query, headers, bytes(body))
        elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
            return None


async def _send(connection: h11.Connection, writer: asyncio.StreamWriter, reply: Reply, *, head_only: bool) -> bool:
    """Send ``reply`` the way its delivery says; False when the connection is unusable afterwards."""
    how = reply.delivery
    if how.stall_before_seconds:
        await asyncio.sleep(how.stall_before_seconds)
    if how.reset == "before":
        return _cut(writer)
    head = connection.send(_head(reply)) or b""
    body = b"" if head_only else reply.body
    if how == type(how)():
        writer.write(head + (connection.send(h11.Data(body)) or b"") + (connection.send(h11.EndOfMessage()) or b""))
        await writer.drain()
        return True
    writer.write(head)
    await writer.drain()
    if how.reset == "headers":
        return _cut(writer)
    if how.stall_after_headers_seconds:
        await asyncio.sleep(how.stall_after_headers_seconds)
    part = body[: int(len(body) * how.cut_to)] if how.reset != "body" else body[: len(body) // 2]
    # Straight to the socket where less is sent than promised: h11 would refuse to end such a message.
    await _write(writer, part, how.bytes_per_second)
    if how.reset == "body":
        return _cut(writer)
    if len(part) < len(body):
        return False
    connection.send(h11.Data(body))
    connection.send(h11.EndOfMessage())
    return True


async def _write(writer: asyncio.StreamWriter, body: bytes, bytes_per_second: float) -> None:
    if not bytes_per_second:
        writer.write(body)
        await writer.drain()
        return
    # Ten drops a second: fine enough to defeat a time-out between reads.
    drop = max(1, int(bytes_per_second / 10))
    for start in range(0, len(body), drop):
        writer.write(body[start : start + drop])
        await writer.drain()
        await asyncio.sleep(drop / bytes_per_second)


def _head(reply: Reply) -> h11.Response:
    headers = [*reply.headers, ("content-length", str(len(reply.body)))]
    return h11.Response(status_code=reply.status, headers=[(name.encode(), value.encode()) for name, value in headers])


def _bytes_of(connection: h11.Connection, reply: Reply) -> bytes:
    if connection.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
        return b""
    parts = (_head(reply), h11.Data(reply.body), h11.EndOfMessage())
    return b"".join(connection.send(part) or b"" for part in parts)


def _cut(writer: asyncio.StreamWriter) -> bool:
    """End the connection with RST instead of FIN: the client sees "connection reset by peer"."""
    peer: socket.socket = writer.get_extra_info("socket")
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False
