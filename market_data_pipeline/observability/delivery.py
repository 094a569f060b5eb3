"""The only place that hands messages to the outside: to any channel that Apprise knows, and to the log. Nothing is retried here.

A channel's URL usually is a secret. It appears in no exception, no log line and no representation, nor does any part of it, and
what Apprise and the libraries below it say is heard by nobody but this module.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from market_data_pipeline.domain.alerts import EventKind, Severity
from market_data_pipeline.domain.errors import InvalidInputError, UndeliverableError
from market_data_pipeline.domain.redaction import SHORTEST_SECRET, redact

if TYPE_CHECKING:
    from collections.abc import Iterable

    from apprise.plugins.base import NotifyBase

    from market_data_pipeline.domain.alert_config import Channel
    from market_data_pipeline.domain.alert_messages import Message

logger = logging.getLogger(__name__)

LOG = "log"
CONNECT_SECONDS, READ_SECONDS = 5.0, 10.0
# With everything: a server that sends a byte now and then never times out by the clock above.
MESSAGE_SECONDS = 15.0
_MOST_ERROR = 500
# Of what a server answered Apprise shows the first 2,000 bytes: where it cut there may be half a secret, which nobody recognises.
_SHORTEST_CUT = 1_900
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# Post to whatever address they are given. Of the others most have their vendor's, and what stands in the place of a host is a token
# then, which nobody may ask a name server about.
_WEBHOOKS = frozenset({"json", "jsons", "xml", "xmls", "form", "forms", "apprise", "apprises"})
_HOST_IS_NO_SECRET = _WEBHOOKS | {"mailto", "mailtos"}
# They keep incidents: each message is about one alert, and the last one closes it.
_INCIDENTS = frozenset({"pagerduty"})
# Where clouds hand credentials to whoever asks from inside. The link-local ones are refused with all of their kind.
_METADATA = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200", "168.63.129.16")))
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# What of Apprise's own talk says why: the rest repeats addresses and payloads.
_REASONS = ("Socket Exception", "SMTP", "Email Exception", "Exception", "Response Details")
_TALKERS = ("urllib3", "urllib3.connectionpool", "requests")


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class _Nothing(logging.Filter):
    """Lets nothing through: these lines hold URLs."""

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002 - the base class's signature
        return False


_NOTHING = _Nothing()


def kind_of(channel: Channel) -> str:
    """The scheme of the channel's URL, such as "slack": what may be shown of it. InvalidInputError where it has none."""
    found = _SCHEME.match(channel.url.get_secret_value())
    if found is None:
        raise InvalidInputError(f"the channel {channel.name} has no URL that can be read: expected one like slack://… or log://")
    return found[1].lower()


def keeps_incidents(channel: Channel) -> bool:
    """Whether each message opens or closes an incident there, so that several must not be joined into one."""
    return kind_of(channel) in _INCIDENTS


def check_channel(channel: Channel) -> None:
    """Raise InvalidInputError where messages can never go there: no such kind, a part that lacks, an address that is refused.

    Nothing is sent, and no name is looked up.
    """
    if kind_of(channel) != LOG:
        _refuse_addresses(channel, _literal(_opened(channel)))


def deliver(channel: Channel, message: Message) -> None:
    """Hand ``message`` to ``channel``, once, within ``MESSAGE_SECONDS``.

    Raises UndeliverableError with the reason where it was not taken, or might not have been; InvalidInputError where it never can.
    """
    if kind_of(channel) == LOG:
        _log(message)
        return
    service = _opened(channel)
    _refuse_addresses(channel, _addresses(channel, service))
    if keeps_incidents(channel) and message.about:
        # Opened by the first message about an alert, and closed by the one that says that it is over.
        vars(service).update(action="map", dedup=message.about)
    _send(channel, service, message)


def _log(message: Message) -> None:
    level = logging.INFO if message.kind in {EventKind.RESOLVED, EventKind.TEST} else _LEVELS[message.severity]
    body = " | ".join(message.body.splitlines())
    about = {"alert": message.about, "alert_kind": str(message.kind), "alert_severity": str(message.severity)}
    logger.log(level, "%s: %s", message.title, body, extra=about)


_LEVELS = {Severity.CRITICAL: logging.ERROR, Severity.WARNING: logging.WARNING, Severity.INFO: logging.INFO}


def _opened(channel: Channel) -> NotifyBase:
    """Apprise's own view of the channel: time-outs bounded, redirects refused, whatever the URL says."""
    _silence()
    from apprise import Apprise, AppriseAsset, OverflowMode  # noqa: PLC0415 - 0.5 s that only those who send pay

    # Nothing is kept on disk, no redirect is followed: where it leads is not what the operator wrote, and it would get the secret.
    asset = AppriseAsset(storage_mode="memory", http_redirects=False, async_mode=False, service_timeout=MESSAGE_SECONDS)
    try:
        service = Apprise.instantiate(channel.url.get_secret_value(), asset=asset)
    except Exception:  # noqa: BLE001 - a plugin's words may hold its URL, and so may the chain
        service = None
    if service is None:
        raise InvalidInputError(
            f"the channel {channel.name} ({kind_of(channel)}://…) is none that Apprise can open: see its documentation for the form"
        )
    service.redirects = False
    service.socket_connect_timeout = min(service.socket_connect_timeout, CONNECT_SECONDS)
    given = service.socket_read_timeout
    # Apprise's own four seconds are few for a vendor on a bad day.
    service.socket_read_timeout = READ_SECONDS if given == type(service).socket_read_timeout else min(given, READ_SECONDS)
    service.retry = 0
    if service.overflow_mode == OverflowMode.UPSTREAM:
        # What is too long for a vendor would be refused for two days, and then be dead: its beginning says what is wrong.
        service.overflow_mode = OverflowMode.TRUNCATE
    return service


def _send(channel: Channel, service: NotifyBase, message: Message) -> None:
    from apprise import Apprise, NotifyFormat, NotifyType  # noqa: PLC0415 - as above

    types = {Severity.CRITICAL: NotifyType.FAILURE, Severity.WARNING: NotifyType.WARNING, Severity.INFO: NotifyType.INFO}
    notify_type = NotifyType.SUCCESS if message.kind is EventKind.RESOLVED else types[message.severity]
    sender = Apprise(asset=service.asset)
    sender.add(service)
    reasons: list[str] = []
    try:
        result = sender.notify(
            body=message.body,
            title=message.title,
            notify_type=notify_type,
            body_format=NotifyFormat.TEXT,
            timeout=MESSAGE_SECONDS,
            log_level=logging.DEBUG,
        )
        is_taken = bool(result)
        said = [(entry.level, entry.message) for entry in result.logs() if len(entry.message) < _SHORTEST_CUT]
        reasons = [text for level, text in said if level in {"WARNING", "ERROR", "CRITICAL"} or text.startswith(_REASONS)]
    except Exception as broken:  # noqa: BLE001 - what a hundred plugins may raise
        is_taken, reasons = False, [f"{type(broken).__name__}: {broken}"]
    if not is_taken:
        # Not raised where it was caught: even a chain that is not shown would carry what the plugin said.
        raise UndeliverableError(_told(channel, reasons or [f"no answer within {MESSAGE_SECONDS:g} seconds"]))


def _told(channel: Channel, reasons: Iterable[str]) -> str:
    """Why, in one line without a part of the URL: redacted before it is cut short."""
    text = " ".join(" ".join(reasons).split())
    text = redact(text, _parts(channel))
    cut = text if len(text) <= _MOST_ERROR else f"{text[:_MOST_ERROR]}…"
    return f"{channel.name} ({kind_of(channel)}): {cut}"


def _parts(channel: Channel) -> frozenset[str]:
    """Whatever in the URL may be a secret: all of it but the scheme, and the host where it is one."""
    url = channel.url.get_secret_value()
    _, _, rest = url.partition("://")
    before, _, query = rest.partition("?")
    authority, _, path = before.partition("/")
    user, _, host = authority.rpartition("@")
    words = [url, rest, *re.split(r"[/:@,&=+?]", f"{user}/{path}/{query}"), user, path]
    if kind_of(channel) not in _HOST_IS_NO_SECRET:
        words += [host, *host.split(":")]
    return frozenset(form for word in words for form in (word, unquote(word)) if len(form) >= SHORTEST_SECRET)


def _refuse_addresses(channel: Channel, addresses: Iterable[_Address]) -> None:
    """Link-local addresses and those of clouds' metadata, in whatever form. Private ones are allowed: receivers live there."""
    for address in addresses:
        if any(form.is_link_local or form in _METADATA for form in _forms(address)):
            raise InvalidInputError(
                f"the channel {channel.name} leads to {address}, where machines keep their credentials: nothing is sent there"
            )


def _forms(address: _Address) -> list[_Address]:
    """``address``, and the IPv4 address that it stands for, if it does."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    inner = [address.ipv4_mapped, address.sixtofour]
    if address in _NAT64 or int(address) >> 32 == 0:
        inner.append(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    return [address, *(form for form in inner if form is not None)]


def _literal(service: NotifyBase) -> list[_Address]:
    host = str(getattr(service, "host", "") or "").strip("[]").partition("%")[0]
    try:
        return [ipaddress.ip_address(host)]
    except ValueError:
        return []


def _addresses(channel: Channel, service: NotifyBase) -> list[_Address]:
    """Where it leads: the address it names, or, of those that post anywhere, what its name resolves to just now."""
    literal = _literal(service)
    host: Any = getattr(service, "host", None)
    if literal or kind_of(channel) not in _WEBHOOKS or not host:
        return literal
    try:
        found = socket.getaddrinfo(str(host), None, type=socket.SOCK_STREAM)
    except OSError as unknown:
        raise UndeliverableError(_told(channel, [f"its host is not known: {unknown.strerror}"])) from None
    return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]


def _silence() -> None:
    # No filter there: it would keep from us, too, what Apprise collects of its own lines for whoever calls it.
    own = logging.getLogger("apprise")
    own.propagate = False
    if not own.handlers:
        own.addHandler(logging.NullHandler())
    for name in _TALKERS:
        talker = logging.getLogger(name)
        if _NOTHING not in talker.filters:
            talker.addFilter(_NOTHING)
