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

from market_data_pipeline.domain.capabilities import parse_limits
from market_data_pipeline.domain.errors import InvalidInputError, UnavailableError
from market_data_pipeline.simulator.clock import instant_of, parse_instant, parse_speed
from market_data_pipeline.simulator.fault_answers import bend_answer
from market_data_pipeline.simulator.fault_replies import MEGABYTE, bend_reply
from market_data_pipeline.simulator.faults import FaultScript, parse_rules
from market_data_pipeline.simulator.limits import LimitBook, LimitState
from market_data_pipeline.simulator.rules import Asked, Strike
from market_data_pipeline.simulator.vendor import FREE, Call, Delivery, Received, Reply, Scene
from market_data_pipeline.simulator.vendors import VENDORS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from market_data_pipeline.domain.capabilities import RateLimit
    from market_data_pipeline.simulator.clock import VirtualClock
    from market_data_pipeline.simulator.market import Market
    from market_data_pipeline.simulator.rules import Rule
    from market_data_pipeline.simulator.vendor import Endpoint, Vendor

    _Accept = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

HOST = "127.0.0.1"
SECRET_PARAMETERS = frozenset({"token", "api_key", "apikey", "crumb", "key", "access_token", "secret", "signature"})
LOGGED_HEADERS = ("user-agent", "accept", "accept-encoding", "if-none-match", "content-type")
LONGEST_LOG = 200_000
LARGEST_BODY = 4 << 20
DEFAULT_DELIVERY = Delivery()
MOST_WRITTEN_BYTES = 128 << 20


@dataclass(slots=True)
class Simulator:
    """The simulated providers and all of their state: clock, fault script, limits and request log. It knows nothing of sockets.

    ``limits`` by vendor stand in place of those that it documents.
    """

    market: Market
    clock: VirtualClock
    seed: int
    rules: Sequence[Rule] = ()
    limits: Mapping[str, Sequence[RateLimit]] = field(default_factory=dict)
    vendors: Sequence[Vendor] = VENDORS
    log: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=LONGEST_LOG))
    script: FaultScript = field(init=False)
    book: LimitBook = field(init=False)
    _started: tuple[Any, float, Sequence[Rule], Mapping[str, Sequence[RateLimit]]] = field(init=False)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _by_prefix: Sequence[Vendor] = field(init=False)
    _written: dict[tuple[object, ...], Reply] = field(default_factory=dict)
    _written_bytes: int = 0

    def __post_init__(self) -> None:
        unknown = sorted(set(self.limits) - {vendor.name for vendor in self.vendors})
        if unknown:
            raise InvalidInputError(
                f"limits for {', '.join(unknown)}: expected some of {', '.join(vendor.name for vendor in self.vendors)}"
            )
        self._started = (self.clock.base, self.clock.speed, self.rules, self.limits)
        self.script = FaultScript(self.rules, self.seed)
        self.book = LimitBook(self.clock.monotonic, self.limits)
        self._by_prefix = sorted(self.vendors, key=lambda vendor: -len(vendor.prefix))

    def reset(self) -> None:
        """As it was started: clock, faults and their counts, limits and what they counted; the log is empty."""
        base, speed, rules, limits = self._started
        self.clock.set(base, speed=speed)
        self.script = FaultScript(rules, self.seed)
        self.book.change(limits)
        self.log.clear()
        self._numbers = itertools.count(1)

    # --- data plane

    def answer(self, received: Received) -> Reply:
        """The provider's reply to one request, limits and faults included; the request is in the log afterwards."""
        now_us = self.clock.now_us()
        vendor = next((v for v in self._by_prefix if received.path.startswith(f"{v.prefix}/")), self._by_prefix[-1])
        if received.method not in {"GET", "HEAD"}:
            return self._logged(
                received,
                _asked(received, vendor, None, now_us),
                Reply(405, (("content-type", "text/plain"),), b"Method Not Allowed"),
            )
        endpoint, call = _understood(vendor, replace(received, path=received.path.removeprefix(vendor.prefix)))
        asked = _asked(received, vendor, call if isinstance(call, Call) else None, now_us)
        if endpoint is None:
            return self._logged(received, asked, Reply(404, (("content-type", "text/html"),), b"<html>Not Found</html>"))
        plan = call.plan if isinstance(call, Call) else FREE
        state = self.book.arrive(vendor.name, asked.account, vendor.limits.get(plan, ()))
        scene = Scene(self.market, now_us, self.seed, _base_url(received, vendor))
        if state.is_refused:
            reply, rules = _too_often(vendor, call, state), []
        else:
            rules = self.script.hits(asked)
            strikes = [Strike(rule, self.script.dice(rule), asked, scene, vendor) for rule in rules]
            reply = self._bent(endpoint, call, scene, strikes) if strikes else self._unbent(endpoint, call, scene)
        reply = replace(reply, headers=(*reply.headers, *vendor.limit_headers(state, scene)))
        return self._logged(received, asked, self._packed(reply, asked), rules, state)

    def _bent(self, endpoint: Endpoint, call: Call | Reply, scene: Scene, strikes: Sequence[Strike]) -> Reply:
        """The answer as the faults leave it."""
        for strike in strikes:
            if strike.rule.action == "stale":
                scene = replace(scene, now_us=scene.now_us - round(strike.settings["seconds"] * 1_000_000))
            elif strike.rule.action == "coarser" and isinstance(call, Call):
                call = replace(call, interval=strike.settings["interval"])
        answer = call if isinstance(call, Reply) else endpoint.answer(call, scene)
        reply = answer if isinstance(answer, Reply) else bend_answer(answer, strikes).reply()
        return bend_reply(reply, strikes)

    def _unbent(self, endpoint: Endpoint, call: Call | Reply, scene: Scene) -> Reply:
        """The answer itself. While the clock stands still, the same question has the same one: bars are written once."""
        if self.clock.speed or isinstance(call, Reply) or call.interval is None:
            return self._bent(endpoint, call, scene, ())
        key = (scene.base_url, type(endpoint), scene.now_us, call.key, repr(call))
        reply = self._written.get(key)
        if reply is None:
            reply = self._written[key] = self._bent(endpoint, call, scene, ())
            self._written_bytes += len(reply.body)
            if self._written_bytes > MOST_WRITTEN_BYTES:
                self._written.clear()
                self._written_bytes = 0
        return reply

    def _packed(self, reply: Reply, asked: Asked) -> Reply:
        if not (self.market.profile.gzip and asked.accepts_gzip) or any(name == "content-encoding" for name, _ in reply.headers):
            return reply
        return replace(reply, body=gzip.compress(reply.body, 1, mtime=0)).with_header("content-encoding", "gzip")

    def _logged(
        self, received: Received, asked: Asked, reply: Reply, rules: Sequence[Rule] = (), state: LimitState | None = None
    ) -> Reply:
        limit = None if state is None or state.limit is None else {"limit": str(state.limit), "remaining": state.remaining}
        self.log.append(
            {
                "number": next(self._numbers),
                "provider": asked.provider,
                "method": received.method,
                "path": received.path,
                "query": redacted(received.query),
                "headers": {name: received.headers[name] for name in LOGGED_HEADERS if name in received.headers},
                "capability": asked.capability,
                "account": asked.account,
                "symbol": asked.symbol,
                "interval": asked.interval,
                "period1": asked.start,
                "period2": asked.end,
                "at": instant_of(asked.now_us).isoformat(),
                "status": reply.status,
                "bytes": len(reply.body),
                "actions": [rule.action for rule in rules],
                "limit": limit,
                "limited": state is not None and state.is_refused,
            }
        )
        date = format_datetime(instant_of(asked.now_us), usegmt=True)
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
            ("GET", "/__sim/limits"): lambda _: self._limits(),
            ("POST", "/__sim/limits"): lambda posted: self._set_limits(orjson.loads(posted.body)),
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

    def _limits(self) -> Reply:
        return _json(200, self.book.report())

    def _set_limits(self, given: object) -> Reply:
        """Of the vendors named; the others keep theirs."""
        if not isinstance(given, str):
            raise InvalidInputError(f'limits {given!r}: expected a text such as "massive=none;finnhub=60/m"')
        limits = parse_limits(given)
        known = [vendor.name for vendor in self.vendors]
        if not set(limits) <= set(known):
            raise InvalidInputError(f"limits {given!r}: expected limits of {', '.join(known)}")
        self.book.change({**self.book.overrides, **limits})
        return self._limits()

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


def _understood(vendor: Vendor, received: Received) -> tuple[Endpoint | None, Call | Reply]:
    """The endpoint that the request is for, and what it makes of it; None where the vendor has no such path."""
    for endpoint in vendor.endpoints:
        call = endpoint.parse(received)
        if call is not None:
            return endpoint, call
    return None, Call("")


def _asked(received: Received, vendor: Vendor, call: Call | None, now_us: int) -> Asked:
    return Asked(
        path=received.path,
        query=received.query,
        symbol=",".join(call.symbols) if call and call.symbols else None,
        interval=call.interval if call else None,
        start=call.start if call else None,
        end=call.end if call else None,
        accepts_gzip="gzip" in received.headers.get("accept-encoding", ""),
        now_us=now_us,
        provider=vendor.name,
        capability=call.capability if call else "",
        account=call.account if call else "",
    )


def _too_often(vendor: Vendor, call: Call | Reply, state: LimitState) -> Reply:
    return vendor.over_limit(call, state) if vendor.over_limit and isinstance(call, Call) else vendor.refuse(429, "")


def _base_url(received: Received, vendor: Vendor) -> str:
    return f"http://{received.headers.get('host', HOST)}{vendor.prefix}"


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
    """Where the simulator listens, as base URLs without a slash at the end: ``urls`` by vendor, and ``control``."""

    urls: Mapping[str, str]
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
        yield Addresses({vendor.name: f"{_url(data)}{vendor.prefix}" for vendor in simulator.vendors}, control=_url(control))
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
    if how == DEFAULT_DELIVERY:
        writer.write(head + (connection.send(h11.Data(body)) or b"") + (connection.send(h11.EndOfMessage()) or b""))
        await writer.drain()
        return True
    await _write(writer, head, how.head_bytes_per_second)
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
    padding = 0 if head_only else how.padding
    while padding > 0:
        spaces = b" " * min(padding, MEGABYTE)
        writer.write(connection.send(h11.Data(spaces)) or b"")
        await writer.drain()
        padding -= len(spaces)
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
    headers = [*reply.headers, ("content-length", str(len(reply.body) + reply.delivery.padding))]
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
