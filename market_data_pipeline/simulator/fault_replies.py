"""How a fault replaces a reply, or spoils one that is written already: what only HTTP and the bytes know."""

from __future__ import annotations

import gzip
import re
import zlib
from dataclasses import replace
from email.utils import format_datetime
from functools import cache
from math import exp, log
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from market_data_pipeline.simulator.clock import instant_of
from market_data_pipeline.simulator.fault_answers import REQUIRED, STAND_IN
from market_data_pipeline.simulator.vendor import JSON_TYPE, Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from market_data_pipeline.simulator.rules import Strike

HTML_TYPE = "text/html; charset=utf-8"
MEGABYTE = 1 << 20


def bend_reply(reply: Reply, strikes: Sequence[Strike]) -> Reply:
    """``reply`` after every rule that replaces or bends replies; a delay set before survives a replacement after it."""
    for strike in strikes:
        action = strike.rule.action
        if action in REPLACE_THE_REPLY:
            replacement = REPLACE_THE_REPLY[action][0](reply, strike)
            reply = replacement if action == "reset" else replace(replacement, delivery=reply.delivery)
        elif action in BEND_THE_REPLY:
            reply = BEND_THE_REPLY[action][0](reply, strike)
    return reply


# --- another reply -----------------------------------------------------------------------------------------------------


def _status(reply: Reply, strike: Strike) -> Reply:  # noqa: ARG001 - every action takes the same
    """That status, in the vendor's words where it has some for it."""
    code = strike.settings["code"]
    return _with_wait(replace(strike.vendor.refuse(code, ""), status=code), strike)


def _refused(reply: Reply, strike: Strike) -> Reply:  # noqa: ARG001
    """As the vendor itself says it, which may be with status 200."""
    return _with_wait(strike.vendor.refuse(strike.settings["code"], ""), strike)


def _with_wait(reply: Reply, strike: Strike) -> Reply:
    wait = strike.settings["retry_after"]
    if wait is None:
        return reply
    if strike.settings["retry_after_as"] == "nonsense":
        return reply.with_header("retry-after", "soon")
    if strike.settings["retry_after_as"] == "http-date":
        at = instant_of(strike.asked.now_us + round(wait * 1_000_000))
        return reply.with_header("retry-after", format_datetime(at, usegmt=True))
    return reply.with_header("retry-after", f"{wait:g}")


PAGES = {
    "outage": b"<!DOCTYPE html><html><head><title>Yahoo</title></head><body><h1>Will be right back...</h1>"
    b"<p>Thank you for your patience.</p></body></html>",
    "consent": b'<!DOCTYPE html><html><body><form method="post" action="https://consent.yahoo.com/v2/collectConsent">'
    b'<button name="agree">Accept all</button></form></body></html>',
    "challenge": b"<!DOCTYPE html><html><head><title>Just a moment...</title></head><body>"
    b"<h1>Checking your browser before accessing this site.</h1></body></html>",
}


def _html(reply: Reply, strike: Strike) -> Reply:  # noqa: ARG001
    return Reply(200, (("content-type", HTML_TYPE),), PAGES[strike.settings["page"]])


def _empty(reply: Reply, strike: Strike) -> Reply:  # noqa: ARG001
    return Reply(200, (("content-type", JSON_TYPE),), b"")


def _error_json(reply: Reply, strike: Strike) -> Reply:  # noqa: ARG001
    """An error document with status 200."""
    return replace(strike.vendor.refuse(500, strike.settings["description"]), status=200)


def _redirect(reply: Reply, strike: Strike) -> Reply:  # noqa: ARG001
    return Reply(strike.settings["code"], (("location", strike.settings["to"]), ("content-type", HTML_TYPE)), b"")


def _reset(reply: Reply, strike: Strike) -> Reply:
    return replace(reply, delivery=replace(reply.delivery, reset=strike.settings["at"]))


# --- the same reply, spoilt --------------------------------------------------------------------------------------------

_STAND_IN = re.compile(rf"{STAND_IN:.0f}(\.0+)?".encode())


def _nan(reply: Reply, strike: Strike) -> Reply:
    return replace(reply, body=_STAND_IN.sub(strike.settings["literal"].encode(), reply.body))


def _bom(reply: Reply, strike: Strike) -> Reply:  # noqa: ARG001
    return replace(reply, body=b"\xef\xbb\xbf" + reply.body)


def _content_type(reply: Reply, strike: Strike) -> Reply:
    return reply.with_header("content-type", strike.settings["value"])


def _cut(reply: Reply, strike: Strike) -> Reply:
    """A complete HTTP message around half a document."""
    return replace(reply, body=reply.body[: int(len(reply.body) * strike.settings["keep"])])


def _truncated_gzip(reply: Reply, strike: Strike) -> Reply:
    """A whole HTTP message around half a gzip stream. Sent plain and cut where the client takes no gzip."""
    accepts = strike.asked.accepts_gzip
    body = gzip.compress(reply.body, 1, mtime=0) if accepts else reply.body
    cut = replace(reply, body=body[: int(len(body) * strike.settings["keep"])])
    return cut.with_header("content-encoding", "gzip") if accepts else cut


@cache
def _bomb(megabytes: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    spaces = bytes(MEGABYTE).replace(b"\0", b" ")
    return b"".join([*(packer.compress(spaces) for _ in range(megabytes)), packer.flush()])


def _gzip_bomb(reply: Reply, strike: Strike) -> Reply:
    """A small body that unpacks to spaces without end."""
    return replace(reply, body=_bomb(strike.settings["megabytes"])).with_header("content-encoding", "gzip")


def _huge(reply: Reply, strike: Strike) -> Reply:
    return _delivered(reply, padding=strike.settings["megabytes"] * MEGABYTE)


def _stall(reply: Reply, strike: Strike) -> Reply:
    name = {"before": "stall_before_seconds", "headers": "stall_after_headers_seconds"}.get(strike.settings["at"])
    return _delivered(reply, **{name or "stall_after_headers_seconds": strike.settings["seconds"]})


def _latency(reply: Reply, strike: Strike) -> Reply:
    """Log-normal, as real ones are: half come within ``median``, one in twenty takes longer than ``p95``."""
    median, p95 = strike.settings["median"], strike.settings["p95"]
    luck = strike.dice.share("latency", strike.asked.path, strike.asked.query)
    sigma = log(max(1.0, p95 / median)) / NormalDist().inv_cdf(0.95)
    waits = median * exp(sigma * NormalDist().inv_cdf(min(max(luck, 1e-6), 1 - 1e-6)))
    return _delivered(reply, stall_before_seconds=reply.delivery.stall_before_seconds + waits)


def _drip(reply: Reply, strike: Strike) -> Reply:
    return _delivered(reply, bytes_per_second=strike.settings["bytes_per_second"])


def _header_drip(reply: Reply, strike: Strike) -> Reply:
    return _delivered(reply, head_bytes_per_second=strike.settings["bytes_per_second"])


def _truncate(reply: Reply, strike: Strike) -> Reply:
    return _delivered(reply, cut_to=strike.settings["keep"])


def _delivered(reply: Reply, **how: Any) -> Reply:  # noqa: ANN401 - as many types as Delivery has
    return replace(reply, delivery=replace(reply.delivery, **how))


_WAIT = {"retry_after": None, "retry_after_as": "seconds"}

# What each action may be told, with its default. A default of REQUIRED must be given.
REPLACE_THE_REPLY: Mapping[str, tuple[Callable[[Reply, Strike], Reply], Mapping[str, Any]]] = {
    "status": (_status, {"code": REQUIRED, **_WAIT}),
    "refused": (_refused, {"code": 403, **_WAIT}),
    "html": (_html, {"page": "outage"}),
    "empty": (_empty, {}),
    "error_json": (_error_json, {"description": "Something went wrong"}),
    "redirect": (_redirect, {"code": 302, "to": "/redirected"}),
    "reset": (_reset, {"at": "before"}),
}
BEND_THE_REPLY: Mapping[str, tuple[Callable[[Reply, Strike], Reply], Mapping[str, Any]]] = {
    "nan": (_nan, {"literal": "NaN"}),
    "bom": (_bom, {}),
    "content_type": (_content_type, {"value": "text/plain"}),
    "cut": (_cut, {"keep": 0.5}),
    "truncated_gzip": (_truncated_gzip, {"keep": 0.5}),
    "gzip_bomb": (_gzip_bomb, {"megabytes": 100}),
    "huge": (_huge, {"megabytes": 100}),
    "stall": (_stall, {"seconds": 5.0, "at": "before"}),
    "latency": (_latency, {"median": 0.2, "p95": 1.0}),
    "drip": (_drip, {"bytes_per_second": 2000.0}),
    "header_drip": (_header_drip, {"bytes_per_second": 20.0}),
    "truncate": (_truncate, {"keep": 0.5}),
}
