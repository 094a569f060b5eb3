"""Alerts as values: what a rule is, what is found, and what follows for an alert that is open. Pure; no clock, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime


class Severity(StrEnum):
    """Who should hear of it, the most urgent first."""

    CRITICAL = "critical"
    """Somebody is woken: what people rely on is wrong now."""
    WARNING = "warning"
    """Somebody looks today."""
    INFO = "info"
    """Nobody has to do anything."""

    @property
    def urgency(self) -> int:
        """A number to compare by: the greater, the more urgent."""
        return -list(Severity).index(self)


@dataclass(frozen=True, slots=True)
class Rule:
    """What makes an alert of a finding.

    ``for_seconds``: how long it must be found before anybody is told. ``clear_seconds``: how long it must be gone before it counts
    as over. ``escalate_seconds``: unacknowledged for so long after it was told, it is told again, to whoever escalations go to;
    None: never. ``explained_by``: while an alert of one of these rules is open (with labels that do not contradict, and at least as
    urgent), this one is kept and not told: one outage is one alert. ``runbook``: the page ``docs/operations/<runbook>.md``.
    ``numbers``: what else of it an operator may set, by name, such as the value above which it is found.
    """

    name: str
    severity: Severity
    summary: str
    runbook: str
    for_seconds: float = 0.0
    clear_seconds: float = 120.0
    escalate_seconds: float | None = None
    explained_by: tuple[str, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule's condition holds now. ``key`` tells findings of one rule apart ("" where there is one); it never holds a secret.

    ``holds_only``: the value is between the threshold that begins an alert and the one that ends it: an open alert stays open, and
    none begins. ``text``: one sentence with the numbers. ``members``: who is meant, where that is more than one (symbols); a change
    of members alone is not told again. ``labels``: what the alert is about (provider, tier, interval), for silences and routing.
    ``severity``: where it is not the rule's: T1 late is no T0 late. An open alert that becomes more urgent is told again.
    """

    rule: str
    value: float
    text: str
    key: str = ""
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    members: tuple[str, ...] = ()
    holds_only: bool = False
    severity: Severity | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """One look at what some rules are about. A rule in ``rules`` without a finding is clear.

    ``blind``: why nobody could look; then nothing is known, and open alerts of these rules stay as they are: blindness is never
    read as health.
    """

    rules: tuple[str, ...]
    findings: Sequence[Finding] = ()
    blind: str | None = None


class AlertState(StrEnum):
    """Where an alert stands."""

    PENDING = "pending"
    """It was found, and not for long enough yet: nobody is told."""
    FIRING = "firing"
    """It holds. Whether anybody was told is another matter: it may be explained or silenced."""
    RESOLVED = "resolved"
    """It is over."""


class EventKind(StrEnum):
    """What somebody is told of an alert."""

    FIRING = "firing"
    RAISED = "raised"
    """It was told, and is more urgent now."""
    ESCALATED = "escalated"
    """It was told, and nobody has acknowledged it for long."""
    RESOLVED = "resolved"
    TEST = "test"
    """Somebody tries a channel."""


@dataclass(frozen=True, slots=True)
class Blind:
    """Nobody could look, for ``reason``."""

    reason: str


@dataclass(frozen=True, slots=True)
class Alert:
    """One episode of one finding, from when it is first found until it is over: the next is another alert.

    ``alert_id``: None until it is stored. ``severity``, ``value``, ``text``, ``members`` and ``labels`` are those of the last
    finding, of ``seen_at``. ``clear_since``: it was gone from then on whenever somebody looked. ``told_at``: when it was last told
    as new or as more urgent, and ``told_severity`` the most urgent that was told. ``explained_by``: the alert that explains it, or
    did, at ``explained_at``.
    """

    rule: str
    key: str
    severity: Severity
    state: AlertState
    began_at: datetime
    seen_at: datetime
    value: float
    text: str
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    members: tuple[str, ...] = ()
    alert_id: int | None = None
    fired_at: datetime | None = None
    clear_since: datetime | None = None
    resolved_at: datetime | None = None
    told_at: datetime | None = None
    told_severity: Severity | None = None
    escalated_at: datetime | None = None
    acknowledged_at: datetime | None = None
    acknowledged_by: str | None = None
    explained_at: datetime | None = None
    explained_by: int | None = None

    @property
    def name(self) -> tuple[str, str]:
        """What no other open alert is called."""
        return self.rule, self.key

    @property
    def is_open(self) -> bool:
        """Whether it is pending or firing."""
        return self.state is not AlertState.RESOLVED

    @classmethod
    def begin(cls, finding: Finding, rule: Rule, now: datetime) -> Self | None:
        """The alert that ``finding`` begins; None where it only keeps one open."""
        if finding.holds_only:
            return None
        begun = cls(
            rule=finding.rule,
            key=finding.key,
            severity=finding.severity or rule.severity,
            state=AlertState.PENDING,
            began_at=now,
            seen_at=now,
            value=finding.value,
            text=finding.text,
            labels=finding.labels,
            members=finding.members,
        )
        return begun.after(finding, rule, now)

    def after(self, seen: Finding | Blind | None, rule: Rule, now: datetime) -> Self:
        """What becomes of it when ``seen`` is what a look at it brought, None: nothing.

        An alert that was pending and is gone is resolved without ever having fired: it is not worth keeping. To be blind changes
        nothing. What is over stays over.
        """
        if isinstance(seen, Blind) or not self.is_open:
            return self
        if seen is None:
            return self._gone(rule, now)
        fires = self.state is AlertState.PENDING and not seen.holds_only and _seconds(self.began_at, now) >= rule.for_seconds
        return replace(
            self,
            state=AlertState.FIRING if fires else self.state,
            fired_at=now if fires else self.fired_at,
            clear_since=None,
            seen_at=now,
            severity=seen.severity or rule.severity,
            value=seen.value,
            text=seen.text,
            labels=seen.labels,
            members=seen.members,
        )

    def _gone(self, rule: Rule, now: datetime) -> Self:
        if self.state is AlertState.PENDING:
            return replace(self, state=AlertState.RESOLVED, resolved_at=now)
        since = self.clear_since or now
        if _seconds(since, now) < rule.clear_seconds:
            return replace(self, clear_since=since)
        return replace(self, clear_since=since, state=AlertState.RESOLVED, resolved_at=now)

    def telling(self, rule: Rule, now: datetime, *, is_silenced: bool, is_explained: bool) -> tuple[Self, EventKind | None]:
        """Itself, and what somebody is to be told of it now, if anything.

        New, more urgent, escalated: each at most once an episode (for each severity that was told), and none while it is explained,
        silenced, or gone without being over yet. It counts as explained for ``clear_seconds`` longer than it is: a symptom takes a
        while to follow its cause. That it is over is told where it was told that it is, in a silence too: whoever was woken may
        sleep again, and an incident that was opened elsewhere is closed.
        """
        if not self.is_open:
            return self, EventKind.RESOLVED if self.told_at is not None else None
        explained_at = now if is_explained else self.explained_at
        known = replace(self, explained_at=explained_at) if is_explained else self
        still_explained = explained_at is not None and (is_explained or _seconds(explained_at, now) < rule.clear_seconds)
        if known.state is AlertState.PENDING or still_explained or is_silenced or known.clear_since is not None:
            return known, None
        kind = known._news(rule, now)  # noqa: SLF001 - of the same class
        if kind is None:
            return known, None
        if kind is EventKind.ESCALATED:
            return replace(known, escalated_at=now), kind
        return replace(known, told_at=now, told_severity=known.severity, escalated_at=None), kind

    def _news(self, rule: Rule, now: datetime) -> EventKind | None:
        if self.told_at is None or self.told_severity is None:
            return EventKind.FIRING
        if self.severity.urgency > self.told_severity.urgency:
            return EventKind.RAISED
        may_escalate = rule.escalate_seconds is not None and self.escalated_at is None and self.acknowledged_at is None
        if may_escalate and _seconds(self.told_at, now) >= (rule.escalate_seconds or 0.0):
            return EventKind.ESCALATED
        return None


@dataclass(frozen=True, slots=True)
class Silence:
    """Nobody is told of matching alerts in [starts_at, ends_at). ``rule`` and the values of ``labels`` are shell patterns."""

    rule: str
    labels: Mapping[str, str]
    starts_at: datetime
    ends_at: datetime
    reason: str
    created_by: str
    silence_id: int | None = None

    def covers(self, alert: Alert, now: datetime) -> bool:
        """Whether it is about ``alert`` and in force at ``now``."""
        return (
            self.starts_at <= now < self.ends_at and fnmatchcase(alert.rule, self.rule) and labels_match(self.labels, alert.labels)
        )


@dataclass(frozen=True, slots=True)
class Event:
    """Somebody is to be told ``kind`` of ``alert``."""

    kind: EventKind
    alert: Alert


@dataclass(frozen=True, slots=True)
class Folded:
    """What looks made of the open alerts.

    ``alerts``: those that are other than before, new ones without an id. ``explained``: of those that are explained now, the name
    of the alert that does it. ``events`` in the order of the alerts.
    """

    alerts: tuple[Alert, ...]
    events: tuple[Event, ...]
    explained: Mapping[tuple[str, str], tuple[str, str]]


def fold_looks(
    open_alerts: Sequence[Alert],
    looks: Sequence[Look],
    rules: Mapping[str, Rule],
    *,
    silences: Sequence[Silence],
    now: datetime,
    known: Collection[str] | None = None,
) -> Folded:
    """What becomes of the open alerts, and which begin, after ``looks``.

    Findings of rules that are not in ``rules`` are left out. An open alert whose rule nobody looked at stays as it is; it may still
    escalate, or be told because its silence is over. ``known``: the names of all rules there are, where the caller knows them: an
    open alert of any other rule is over, for nobody will ever look at it again.
    """
    before = {alert.name: alert for alert in open_alerts}
    found, unseen = _found(looks, rules), _unseen(looks, rules)
    after = {}
    for name, alert in before.items():
        if known is not None and alert.rule not in known:
            after[name] = alert.after(None, _GONE, now)
        elif alert.rule in unseen:
            after[name] = alert.after(found.get(name, unseen[alert.rule]), rules[alert.rule], now)
        else:
            after[name] = alert
    for name, finding in found.items():
        if name not in after and (begun := Alert.begin(finding, rules[finding.rule], now)) is not None:
            after[name] = begun
    explained = explanations(tuple(after.values()), rules, now)
    changed, events = [], []
    for name, alert in after.items():
        told, kind = alert, None
        if (rule := rules.get(alert.rule)) is not None or not alert.is_open:
            is_silenced = any(silence.covers(alert, now) for silence in silences)
            told, kind = alert.telling(rule or _GONE, now, is_silenced=is_silenced, is_explained=name in explained)
        if told != before.get(name):
            changed.append(told)
        if kind is not None:
            events.append(Event(kind, told))
    return Folded(tuple(changed), tuple(events), explained)


# A rule that nobody knows any more: what is open of it is over at once.
_GONE = Rule("", Severity.INFO, "", "", clear_seconds=0.0)


def _found(looks: Sequence[Look], rules: Mapping[str, Rule]) -> dict[tuple[str, str], Finding]:
    """By name; of two with one name the one that may begin an alert."""
    found: dict[tuple[str, str], Finding] = {}
    for look in looks:
        for finding in look.findings:
            name = finding.rule, finding.key
            if finding.rule in rules and (name not in found or found[name].holds_only):
                found[name] = finding
    return found


def _unseen(looks: Sequence[Look], rules: Mapping[str, Rule]) -> dict[str, Blind | None]:
    """Of each rule that was looked at, what it means not to be found: None, gone; or nothing, where one of the looks was blind."""
    unseen: dict[str, Blind | None] = {}
    for look in looks:
        for rule in look.rules:
            if rule in rules and unseen.get(rule) is None:
                unseen[rule] = None if look.blind is None else Blind(look.blind)
    return unseen


def explanations(alerts: Sequence[Alert], rules: Mapping[str, Rule], now: datetime) -> dict[tuple[str, str], tuple[str, str]]:
    """Of each open alert that another open one explains, that one's name.

    A cause counts from when it is pending, for as long as its rule lets it be. It is at least as urgent, and no label that both
    have differs. Alerts that explain each other in a circle explain nothing, unless something outside explains one of them.
    """
    by_rule: dict[str, list[Alert]] = {}
    for alert in alerts:
        if alert.is_open:
            by_rule.setdefault(alert.rule, []).append(alert)
    causes: dict[tuple[str, str], list[Alert]] = {}
    for alert in (alert for group in by_rule.values() for alert in group):
        rule = rules.get(alert.rule)
        of_these = [cause for name in (rule.explained_by if rule else ()) for cause in by_rule.get(name, ())]
        if found := [cause for cause in of_these if _explains(cause, alert, rules, now)]:
            causes[alert.name] = found
    explained: dict[tuple[str, str], tuple[str, str]] = {}
    # From the roots outwards: each pass finds whom the ones found before explain.
    while True:
        more = {
            name: cause.name
            for name, found in causes.items()
            if name not in explained
            for cause in reversed(found)
            if cause.name not in causes or cause.name in explained
        }
        if not more:
            return explained
        explained |= more


def _explains(cause: Alert, symptom: Alert, rules: Mapping[str, Rule], now: datetime) -> bool:
    if cause.name == symptom.name or cause.severity.urgency < symptom.severity.urgency:
        return False
    if any(symptom.labels.get(name, value) != value for name, value in cause.labels.items()):
        return False
    rule = rules.get(cause.rule)
    return cause.state is AlertState.FIRING or (rule is not None and _seconds(cause.began_at, now) <= rule.for_seconds)


def labels_match(patterns: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether each of ``patterns`` fits the label of its name; a label that is not there is empty."""
    return all(fnmatchcase(labels.get(name, ""), pattern) for name, pattern in patterns.items())


def _seconds(since: datetime, now: datetime) -> float:
    return (now - since).total_seconds()
