"""Launches the runs of a backfill once, finds them again after Ctrl-C or a crash, and watches them to their end."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from market_data_pipeline.cli.dagster_client import (
    CodeLocation,
    DagsterLostDatabaseError,
    Run,
    RunStatus,
    WebserverUnreachableError,
)
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.runs import CAUSE, PRIORITY, PROVIDER, RANGE_END, RANGE_START, job_name, op_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from market_data_pipeline.domain.partitions import Box

# The request that a run belongs to, and one giving of that request: the same command after all its runs ended is a new one.
BACKFILL, BATCH = "mdp/backfill", "mdp/batch"
# Behind fresh data (10) and gaps (0): a deep backfill may wait (DAGSTER.md §5).
BEHIND_ALL = "-10"
POLL_SECONDS = 2.0
# A webserver that restarts is back within half a minute; the runs do not need it.
POLLS_WITHOUT_ANSWER = 15


@dataclass(frozen=True, slots=True)
class Task:
    """One run to be: a box of partitions of the job that keeps ``interval``. ``where`` None: not yet looked up."""

    interval: Interval
    box: Box
    where: CodeLocation | None = None

    @property
    def job(self) -> str:
        """Its job."""
        return job_name(self.interval)

    @property
    def op(self) -> str:
        """The op of that job, which takes its configuration."""
        return op_name(self.interval)

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from the others of the same backfill."""
        return self.job, self.box.first.key, self.box.last.key

    @property
    def materializations(self) -> int:
        """How many a run that succeeds reports: one for each partition and interval of the job."""
        return self.box.partitions * sum((interval.source or interval) is self.interval for interval in Interval)


@dataclass(frozen=True, slots=True)
class Launched:
    """A task and its run. ``is_new``: launched by this command, not found from an earlier one."""

    task: Task
    run: Run
    is_new: bool

    @property
    def partitions_done(self) -> int:
        """How many of its partitions are behind it."""
        if self.run.status is RunStatus.SUCCESS:
            return self.task.box.partitions
        return min(self.run.materialized * self.task.box.partitions // self.task.materializations, self.task.box.partitions)


class Webserver(Protocol):
    """What launching needs of ``DagsterClient``."""

    def launch(self, where: CodeLocation, job: str, *, tags: Mapping[str, str], config: Mapping[str, Any] | None = None) -> str:
        """Launch a run; its id."""
        ...

    def runs(self, *, tags: Mapping[str, str]) -> list[Run]:
        """The runs with all of these tags, oldest first."""
        ...


class Launcher:
    """The runs of the backfill called ``digest``. ``sleep`` is given seconds; ``provider``: whom the runs ask first."""

    def __init__(
        self,
        webserver: Webserver,
        digest: str,
        *,
        refetch: bool,
        sleep: Callable[[float], object],
        provider: str | None = None,
    ) -> None:
        self.digest = digest
        self._webserver = webserver
        self._refetch = refetch
        self._provider = provider
        self._sleep = sleep
        self._batch = ""

    def launch(self, tasks: Sequence[Task]) -> list[Launched]:
        """A run for each task: those of an earlier command with runs still in flight are attached to, the rest is launched.

        What was launched stays launched when this is interrupted; calling it again goes on from there.
        """
        earlier = self._webserver.runs(tags={BACKFILL: self.digest})
        unfinished = [run for run in earlier if not run.is_over]
        self._batch = unfinished[-1].tags.get(BATCH, "") if unfinished else uuid.uuid4().hex[:12]
        found = {_key(run): run for run in earlier if unfinished and run.tags.get(BATCH) == self._batch}
        return [
            Launched(task, found[task.key], is_new=False) if task.key in found else Launched(task, self._start(task), is_new=True)
            for task in tasks
        ]

    def watch(self, launched: Sequence[Launched], show: Callable[[Sequence[Launched]], None]) -> list[Launched]:
        """Look every two seconds until every run has ended, showing each look; the last one is returned.

        A run of an earlier command that failed is launched once more: its process may have died with its host. A run of this
        command that fails is not, because it has just said why. A webserver that does not answer for half a minute, or that has
        lost its database for as long, is an error.
        """
        current, silent = list(launched), 0
        while True:
            try:
                # By what it works on and not by its id: the newest run of a box may be Dagster's retry of the one we launched.
                seen = {_key(run): run for run in self._webserver.runs(tags={BACKFILL: self.digest, BATCH: self._batch})}
                current = [replace(one, run=seen.get(one.task.key, one.run)) for one in current]
                current = [self._again(one) for one in current]
                silent = 0
            except (WebserverUnreachableError, DagsterLostDatabaseError):
                silent += 1
                if silent > POLLS_WITHOUT_ANSWER:
                    raise
            show(current)
            if all(one.run.is_over for one in current):
                return current
            self._sleep(POLL_SECONDS)

    def _again(self, one: Launched) -> Launched:
        if one.is_new or not one.run.is_over or one.run.status is not RunStatus.FAILURE:
            return one
        return Launched(one.task, self._start(one.task), is_new=True)

    def _start(self, task: Task) -> Run:
        if task.where is None:
            raise ValueError(f"{task.job} was not looked up before it was launched")
        tags = {
            RANGE_START: task.box.first.key,
            RANGE_END: task.box.last.key,
            BACKFILL: self.digest,
            BATCH: self._batch,
            CAUSE: "backfill",
            PRIORITY: BEHIND_ALL,
            **({PROVIDER: self._provider} if self._provider else {}),
        }
        config = {"ops": {task.op: {"config": {"refetch": True}}}} if self._refetch else {}
        try:
            run_id = self._webserver.launch(task.where, task.job, tags=tags, config=config)
        except WebserverUnreachableError:
            # The answer may have been lost and not the run.
            arrived = [run for run in self._webserver.runs(tags=tags) if run.job == task.job and not run.is_over]
            if not arrived:
                raise
            return arrived[-1]
        return Run(run_id, task.job, RunStatus.NOT_STARTED, tags, created_at=0.0, materialized=0)


def _key(run: Run) -> tuple[str, str, str]:
    return run.job, run.tags.get(RANGE_START, ""), run.tags.get(RANGE_END, "")
