"""From looks to messages: fold what was found into the open alerts, deliver what that has to say, and what operators do by hand.

Folding and delivering share nothing but the outbox: a channel that does not answer never keeps an alert from being noticed, and a
watcher that is killed between the two leaves nothing unsaid.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from market_data_pipeline.domain.alert_config import Channel
from market_data_pipeline.domain.alert_messages import MOST_APART, Message, NewNotice, digest, notices_of, trial_message
from market_data_pipeline.domain.alerts import EventKind, fold_looks
from market_data_pipeline.domain.errors import InvalidInputError, UndeliverableError
from market_data_pipeline.domain.redaction import redact
from market_data_pipeline.observability.delivery import deliver, keeps_incidents
from market_data_pipeline.settings import secrets_of
from market_data_pipeline.storage.alerts import AlertBook, Outbox, wait_seconds
from market_data_pipeline.storage.jobs import storable

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime, timedelta

    from market_data_pipeline.domain.alert_config import AlertsConfig
    from market_data_pipeline.domain.alerts import Alert, Event, Finding, Folded, Look, Rule, Silence
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.settings import Settings
    from market_data_pipeline.storage.alerts import Notice

logger = logging.getLogger(__name__)

Send = Callable[[Channel, Message], None]

# One pass ends after so long and leaves the rest to the next. With the message under way it stays below the minute that Dagster
# gives a sensor, and below the outbox's lease.
PASS_SECONDS = 15.0
_CHANNELS_AT_ONCE = 4
_LONGEST_TEXT = 2_000
_LONGEST_REASON = 500


@dataclass(frozen=True, slots=True)
class FoldReport:
    """What a fold changed. ``events``: what somebody is told, with the alerts as they are stored. ``notices``: messages for it."""

    events: tuple[Event, ...] = ()
    notices: int = 0

    def told(self, *kinds: EventKind) -> tuple[Alert, ...]:
        """The alerts of events of these kinds."""
        return tuple(event.alert for event in self.events if event.kind in kinds)


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """How many messages were sent, were not and will be tried again, and were given up; why, by channel, the last reason."""

    sent: int = 0
    failed: int = 0
    dead: int = 0
    errors: tuple[tuple[str, str], ...] = ()

    def __add__(self, other: DeliveryReport) -> DeliveryReport:
        """Both together."""
        return DeliveryReport(
            self.sent + other.sent, self.failed + other.failed, self.dead + other.dead, (*self.errors, *other.errors)
        )


def fold(
    pipeline: Pipeline,
    looks: Sequence[Look],
    rules: Mapping[str, Rule],
    config: AlertsConfig,
    *,
    now: datetime,
    known: Collection[str] | None = None,
) -> FoldReport:
    """Take ``looks`` into the open alerts, and write what has to be said of them into the outbox, in one transaction.

    ``rules`` are those whose alerts may change or be told; nothing is said of others. ``known``: the names of all rules there are,
    for whoever knows them all: open alerts of any other are over. Two at once wait for each other. Texts are redacted here.
    """
    secrets = _secrets(pipeline.settings, config)
    redacted = [replace(look, findings=[_discreet(finding, secrets) for finding in look.findings]) for look in looks]

    def decide(open_alerts: Sequence[Alert], silences: Sequence[Silence], instant: datetime) -> Folded:
        return fold_looks(open_alerts, redacted, rules, silences=silences, now=instant, known=known)

    def post(events: Sequence[Event], told: Mapping[int, Sequence[str]]) -> list[NewNotice]:
        return notices_of(events, rules, config, told=told)

    events, notices = AlertBook(pipeline.engine).fold(decide, post, at=pipeline.known_at(now))
    return FoldReport(events, notices)


def open_alerts(pipeline: Pipeline) -> list[Alert]:
    """The alerts that are pending or firing, the oldest first."""
    return AlertBook(pipeline.engine).open()


def deliver_due(pipeline: Pipeline, config: AlertsConfig, *, now: datetime, send: Send = deliver) -> DeliveryReport:
    """Send what is due, each channel in its order and several channels at once, for no longer than half a minute.

    More than five messages for one channel are one. After one that fails, its channel is left alone until that is due again; the
    others go on. At least once: whoever is killed while he sends leaves his messages to the next, and some may come twice.
    """
    at = pipeline.known_at(now)
    outbox = Outbox(pipeline.engine)
    channels = outbox.due_channels(at=at)
    if not channels:
        return DeliveryReport()
    one = partial(_deliver_to, outbox=outbox, config=config, at=at, send=send, until=time.monotonic() + PASS_SECONDS)
    with ThreadPoolExecutor(min(len(channels), _CHANNELS_AT_ONCE), thread_name_prefix="alert delivery") as pool:
        return sum(pool.map(one, channels), DeliveryReport())


def send_test(
    pipeline: Pipeline, config: AlertsConfig, channel: str, *, actor: str, now: datetime, send: Send = deliver
) -> str | None:
    """Send a message to ``channel`` the way alerts go, through the outbox, now; None where it was taken, else why not.

    InvalidInputError for a channel that nothing is called.
    """
    at = pipeline.known_at(now)
    outbox = Outbox(pipeline.engine)
    told = _named(channel, config)
    notice = outbox.post(NewNotice(None, channel, trial_message(channel, now)), actor=actor, at=at)
    error = _attempt(told, [notice], send)
    if error is None:
        outbox.sent([notice], at=at)
    else:
        outbox.failed([notice], error, at=at)
    return error


def acknowledge(pipeline: Pipeline, alert_id: int, *, actor: str, now: datetime) -> bool:
    """Somebody looks at this alert: it does not escalate. False where that was said before, or it is over."""
    book = AlertBook(pipeline.engine)
    if book.acknowledge(alert_id, actor=actor, at=pipeline.known_at(now)):
        return True
    if book.alert(alert_id) is None:
        raise InvalidInputError(f"there is no alert {alert_id}: see `mdp alerts list --all`")
    return False


def silence(
    pipeline: Pipeline,
    rule: str,
    labels: Mapping[str, str],
    *,
    lasting: timedelta,
    reason: str,
    actor: str,
    now: datetime,
) -> Silence:
    """Tell nobody of alerts of ``rule`` with these ``labels`` (shell patterns) for so long. What fires then is told afterwards."""
    if not rule.strip():
        raise InvalidInputError("a silence needs a rule: expected a name or a pattern such as Provider*")
    if not reason.strip() or len(reason) > _LONGEST_REASON:
        raise InvalidInputError(f"a silence needs a reason of 1 to {_LONGEST_REASON} characters: somebody else will ask why")
    if lasting.total_seconds() <= 0:
        raise InvalidInputError("a silence of no length silences nobody: expected a time such as 2h")
    text = redact(reason, _secrets(pipeline.settings, None))
    return AlertBook(pipeline.engine).silence(rule, labels, lasting=lasting, reason=text, actor=actor, at=pipeline.known_at(now))


def unsilence(pipeline: Pipeline, silence_id: int, *, actor: str, now: datetime) -> None:
    """End a silence. InvalidInputError where none of this number is in force."""
    if not AlertBook(pipeline.engine).unsilence(silence_id, actor=actor, at=pipeline.known_at(now)):
        raise InvalidInputError(f"no silence {silence_id} is in force: see `mdp alerts silences`")


def _deliver_to(
    channel: str, *, outbox: Outbox, config: AlertsConfig, at: datetime | None, send: Send, until: float
) -> DeliveryReport:
    report = DeliveryReport()
    while time.monotonic() < until and (taken := outbox.take(channel, at=at)):
        told = config.channels.get(channel)
        if told is None:
            # Kept: who mistyped a name in the alerts file has two days to correct it.
            error = f"{channel}: no channel is called so in the alerts file"
            dead = outbox.failed(taken, error, at=at)
            return report + DeliveryReport(failed=len(taken) - dead, dead=dead, errors=((channel, error),))
        part, is_well = _hand_over(told, taken, outbox=outbox, at=at, send=send, until=until)
        report += part
        if not is_well:
            break
    return report


def _hand_over(
    channel: Channel, taken: Sequence[Notice], *, outbox: Outbox, at: datetime | None, send: Send, until: float
) -> tuple[DeliveryReport, bool]:
    """Send what was taken; whether all went well. The first failure ends it, and what was not tried is given back."""
    report = DeliveryReport()
    lots = _lots(channel, taken)
    for place, lot in enumerate(lots):
        rest = [notice for later in lots[place:] for notice in later]
        if time.monotonic() >= until:
            outbox.give_back(rest, after_seconds=0.0, at=at)
            return report, False
        error = _attempt(channel, lot, send)
        if error is not None:
            dead = outbox.failed(lot, error, at=at)
            outbox.give_back(rest[len(lot) :], after_seconds=wait_seconds(lot[0].attempts), at=at)
            logger.warning("%d alert messages were not delivered and will be tried again: %s", len(lot) - dead, error)
            return report + DeliveryReport(failed=len(lot) - dead, dead=dead, errors=((channel.name, error),)), False
        outbox.sent(lot, at=at)
        report += DeliveryReport(sent=len(lot))
    return report, True


def _lots(channel: Channel, taken: Sequence[Notice]) -> list[Sequence[Notice]]:
    """What goes out as one message each: few messages one by one, many as a digest.

    Those that failed least often first, so that one that is never taken does not hold up the others; but never before an earlier
    one about the same alert.
    """
    if len(taken) > MOST_APART and not keeps_incidents(channel):
        return [taken]
    tried: dict[int | None, int] = {}
    order = []
    for notice in taken:
        least = max(notice.attempts, tried.get(notice.alert_id, 0)) if notice.alert_id is not None else notice.attempts
        tried[notice.alert_id] = least
        order.append((least, notice.notice_id, notice))
    return [[notice] for *_, notice in sorted(order, key=lambda one: one[:2])]


def _attempt(channel: Channel, lot: Sequence[Notice], send: Send) -> str | None:
    """None where it was taken, else why not."""
    messages = [replace(n.message, about="" if n.alert_id is None else f"mdp-alert-{n.alert_id}") for n in lot]
    try:
        send(channel, messages[0] if len(messages) == 1 else digest(messages))
    except (UndeliverableError, InvalidInputError) as refused:
        return redact(str(refused), [channel.url.get_secret_value()])
    return None


def _named(channel: str, config: AlertsConfig) -> Channel:
    if (found := config.channels.get(channel)) is not None:
        return found
    known = ", ".join(sorted(config.channels)) or "none is configured, see MDP_ALERTS_FILE"
    raise InvalidInputError(f"no channel is called {channel!r}: expected one of them ({known})")


def _secrets(settings: Settings, config: AlertsConfig | None) -> frozenset[str]:
    return secrets_of(settings) | {channel.url.get_secret_value() for channel in (config.channels.values() if config else ())}


def _discreet(finding: Finding, secrets: Collection[str]) -> Finding:
    """Redacted before it is cut: a provider's words may be in it. The key as it will be read again, or it were another alert."""
    text = redact(finding.text, secrets)[:_LONGEST_TEXT]
    shown = "".join(one if one.isprintable() or one == "\n" else "\N{REPLACEMENT CHARACTER}" for one in text)
    return replace(finding, key=storable(finding.key), text=shown)
