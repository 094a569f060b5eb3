"""What the orchestrator found wrong, runs and checks, and what the alert rules make of it. Pure.

The orchestrator tells of failures as they happen; rules ask what is wrong now. So each job and check has one row that lasts until a
later run succeeds, or the check passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from market_data_pipeline.domain.alerts import Finding, Look, Severity

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

RULES = ("RunFailed", "CheckFailed")
# Longer than that nobody waits for a run that would succeed: the job may have been removed, or is only ever started by hand.
RUNS_REMEMBERED = timedelta(days=1)
# A check that nobody has evaluated for so long may have been removed.
CHECKS_REMEMBERED = timedelta(days=30)
MOST_CHARACTERS = 500


class FailureKind(StrEnum):
    """What failed."""

    RUN = "run"
    CHECK = "check"


@dataclass(frozen=True, slots=True)
class Failure:
    """A job whose last run failed, or a check that does not pass. ``name``: the job's, or ``asset/key:check``.

    ``detail``: one sentence, without secrets. ``is_warning``: a check that warns. ``since``: the first of ``failures`` in a row.
    """

    kind: FailureKind
    name: str
    detail: str
    failed_at: datetime
    run_id: str = ""
    is_warning: bool = False
    since: datetime | None = None
    failures: int = 1

    def is_current(self, now: datetime) -> bool:
        """Whether it still says something at ``now``."""
        remembered = RUNS_REMEMBERED if self.kind is FailureKind.RUN else CHECKS_REMEMBERED
        return now - self.failed_at < remembered


def failure_look(failures: Iterable[Failure], now: datetime) -> Look:
    """What the rules RunFailed and CheckFailed find: one finding a job and a check, however often it failed."""
    return Look(RULES, [_finding(failure) for failure in failures if failure.is_current(now)])


def _finding(failure: Failure) -> Finding:
    often = f" ({failure.failures:,} times since {failure.since:%Y-%m-%d %H:%M}Z)" if failure.since and failure.failures > 1 else ""
    if failure.kind is FailureKind.RUN:
        return Finding(
            "RunFailed",
            float(failure.failures),
            f"A run of {failure.name} failed{often}: {failure.detail}",
            key=failure.name,
            labels={"job": failure.name},
        )
    asset, _, check = failure.name.rpartition(":")
    return Finding(
        "CheckFailed",
        float(failure.failures),
        f"{check} of {asset} does not pass{often}: {failure.detail}",
        key=failure.name,
        labels={"asset": asset, "check": check},
        severity=Severity.INFO if failure.is_warning else None,
    )
