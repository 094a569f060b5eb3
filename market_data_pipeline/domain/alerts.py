"""Alerts as values: what a rule is, what is found, and what follows for an alert that is open. Pure; no clock, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Severity(StrEnum):
    """Who should hear of it, the most urgent first."""

    CRITICAL = "critical"
    """Somebody is woken: what people rely on is wrong now."""
    WARNING = "warning"
    """Somebody looks today."""
    INFO = "info"
    """Nobody has to do anything."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What makes an alert of a finding.

    ``for_seconds``: how long it must be found before anybody is told. ``clear_seconds``: how long it must be gone before it counts
    as over. ``escalate_seconds``: unacknowledged for so long after it was told, it is told again, to whoever escalations go to;
    None: never. ``explained_by``: while an alert of one of these rules is open (with labels that do not contradict, and at least as
    urgent), this one is kept and not told: one outage is one alert. ``runbook``: the page ``docs/operations/<runbook>.md``.
    """

    name: str
    severity: Severity
    summary: str
    runbook: str
    for_seconds: float = 0.0
    clear_seconds: float = 120.0
    escalate_seconds: float | None = None
    explained_by: tuple[str, ...] = ()


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
