"""What people read of alerts, and who: titles, bodies, digests, routes. Pure; nothing is sent here."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from market_data_pipeline.domain.alert_config import Route
from market_data_pipeline.domain.alerts import EventKind, Severity, labels_match

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from market_data_pipeline.domain.alert_config import AlertsConfig
    from market_data_pipeline.domain.alerts import Event, Rule

# More of one channel at a time are one message: a pager that rings seven times is not read seven times.
MOST_APART = 5
_MEMBERS_NAMED = 20
_LINES_OF_A_DIGEST = 50
RUNBOOKS = "docs/operations"


@dataclass(frozen=True, slots=True)
class Message:
    """What is handed to a channel: plain text. ``kind`` and ``severity`` tell its colour, or whether it pages.

    ``about``: the same in all messages about one alert, so that whoever keeps incidents closes the one that he opened.
    """

    title: str
    body: str
    kind: EventKind
    severity: Severity
    about: str = ""


@dataclass(frozen=True, slots=True)
class NewNotice:
    """A message for the outbox."""

    alert_id: int | None
    channel: str
    message: Message


def route_of(rule: str, severity: Severity, labels: Mapping[str, str], config: AlertsConfig) -> Route:
    """Who hears of such an alert: the first route that matches, then all channels for warnings and what is worse, then nobody."""
    for route in config.routes:
        if (
            (not route.rules or any(fnmatchcase(rule, pattern) for pattern in route.rules))
            and (not route.severities or severity in route.severities)
            and labels_match(route.labels, labels)
        ):
            return route
    return Route(channels=tuple(config.channels) if severity.urgency >= Severity.WARNING.urgency else ())


def hearers(event: Event, config: AlertsConfig, *, told: Collection[str]) -> tuple[str, ...]:
    """The channels that hear of ``event``. ``told``: those that heard of this alert before: they hear that it is over."""
    if event.kind is EventKind.RESOLVED:
        return tuple(sorted(told))
    route = route_of(event.alert.rule, event.alert.severity, event.alert.labels, config)
    return (route.escalate_to or route.channels) if event.kind is EventKind.ESCALATED else route.channels


def message_of(event: Event, rule: Rule | None) -> Message:
    """``event`` for people: what, since when, whose, and where to read on. ``rule``: None where nobody knows it any more."""
    alert = event.alert
    # In one line: it becomes the subject of a mail.
    name = " ".join(f"{alert.rule} {alert.key}".split())
    lines = [alert.text]
    if rule is not None and rule.summary:
        lines.append(rule.summary)
    if alert.members:
        more = len(alert.members) - _MEMBERS_NAMED
        lines.append(", ".join(alert.members[:_MEMBERS_NAMED]) + (f" and {more} more" if more > 0 else ""))
    lines.append(_when(event))
    if rule is not None and rule.runbook:
        lines.append(f"What to do: {RUNBOOKS}/{rule.runbook}.md")
    if alert.alert_id is not None:
        ack = "" if event.kind is EventKind.RESOLVED else f" · mdp alerts ack {alert.alert_id}"
        lines.append(f"mdp alerts show {alert.alert_id}{ack}")
    return Message(f"{_head(event)} {name}", "\n".join(lines), event.kind, alert.severity)


def trial_message(channel: str, now: datetime) -> Message:
    """What `mdp alerts test` sends."""
    body = f"This is a test of the channel {channel}, sent at {_stamp(now)} by `mdp alerts test`. Nothing is wrong."
    return Message(f"TEST {channel}", body, EventKind.TEST, Severity.INFO)


def digest(messages: Sequence[Message]) -> Message:
    """``messages`` as one: a line each, in their order, no more than fifty."""
    worst = max((message.severity for message in messages), key=lambda severity: severity.urgency)
    are_over = all(message.kind is EventKind.RESOLVED for message in messages)
    kind = EventKind.RESOLVED if are_over else EventKind.FIRING
    lines = [f"{message.title}: {message.body.partition(chr(10))[0]}" for message in messages[:_LINES_OF_A_DIGEST]]
    if len(messages) > _LINES_OF_A_DIGEST:
        lines.append(f"and {len(messages) - _LINES_OF_A_DIGEST} more")
    title = f"{len(messages)} alerts{' are over' if are_over else ''}"
    return Message(title, "\n".join([*lines, "mdp alerts list"]), kind, worst)


def notices_of(
    events: Sequence[Event], rules: Mapping[str, Rule], config: AlertsConfig, *, told: Mapping[int, Collection[str]]
) -> list[NewNotice]:
    """The messages of ``events``, one for each channel that hears of it. ``told``: by alert the channels that were told of it."""
    return [
        NewNotice(event.alert.alert_id, channel, message_of(event, rules.get(event.alert.rule)))
        for event in events
        for channel in dict.fromkeys(hearers(event, config, told=told.get(event.alert.alert_id or 0, ())))
    ]


def _head(event: Event) -> str:
    severity = event.alert.severity.upper()
    return {
        EventKind.RESOLVED: "RESOLVED",
        EventKind.ESCALATED: f"NOT ACKNOWLEDGED {severity}",
        EventKind.RAISED: f"NOW {severity}",
    }.get(event.kind, severity)


def _when(event: Event) -> str:
    alert = event.alert
    if event.kind is EventKind.RESOLVED and alert.resolved_at is not None:
        since = alert.clear_since or alert.resolved_at
        return f"From {_stamp(alert.began_at)} to {_stamp(since)}"
    return f"Since {_stamp(alert.began_at)}"


def _stamp(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}Z"
