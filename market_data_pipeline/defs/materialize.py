"""Reports what was materialised to Dagster, many partitions at a time. One of the two modules that use Dagster's private names."""

from __future__ import annotations

import itertools
import logging
import os
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import dagster as dg

try:
    from dagster._core.events import DagsterEvent, DagsterEventBatchMetadata, DagsterEventType, StepMaterializationData
except ImportError:  # pragma: no cover - a Dagster that moved them: slower, not wrong
    DagsterEvent = None  # type: ignore[assignment,misc]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

# A batch is one transaction. Larger ones gain nothing (1.1 ms a partition is serialising the events) and show progress later.
BATCH = 250
SECONDS_BETWEEN_BATCHES = 2.0

logger = logging.getLogger(__name__)


@dataclass
class Materializations:
    """Collects materialisations inside a step and reports them in batches; at the latest when the ``with`` block is left.

    Whatever happens in the block, what was added is reported: a partition that is stored shows as materialised. Without
    ``batching``, each goes through ``context.log_event``, at 6-30 ms instead of one: so where Dagster's private names are absent.
    """

    context: dg.AssetExecutionContext | dg.OpExecutionContext
    monotonic: Callable[[], float] = time.monotonic
    batching: bool = DagsterEvent is not None
    _waiting: list[dg.AssetMaterialization] = field(default_factory=list)
    _reported_at: float = 0.0

    def __enter__(self) -> Self:
        self._reported_at = self.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.flush()

    def add(self, materialization: dg.AssetMaterialization) -> None:
        """Take one; it is reported with its batch, or after two seconds."""
        self._waiting.append(materialization)
        if len(self._waiting) >= BATCH or self.monotonic() - self._reported_at > SECONDS_BETWEEN_BATCHES:
            self.flush()

    def flush(self) -> None:
        """Report what was added and not yet reported."""
        waiting, self._waiting = self._waiting, []
        if not self.batching:
            for materialization in waiting:
                self.context.log_event(materialization)
        else:
            _report(self.context.instance, self.context.run.run_id, [self._event(m) for m in waiting])
        self._reported_at = self.monotonic()

    def _event(self, materialization: dg.AssetMaterialization) -> DagsterEvent:
        # DagsterEvent.asset_materialization would also write each to the run's console log: thousands of lines nobody reads.
        context = self.context
        step = (
            context if isinstance(context, dg.OpExecutionContext) else context.op_execution_context
        ).get_step_execution_context()
        return DagsterEvent(
            event_type_value=DagsterEventType.ASSET_MATERIALIZATION.value,
            job_name=step.job_name,
            step_handle=step.step.handle,
            node_handle=step.step.node_handle,
            step_kind_value=step.step.kind.value,
            logging_tags=step.event_tags,
            event_specific_data=StepMaterializationData(materialization),
            message=_message(materialization),
            pid=os.getpid(),
        )


def report_runless(
    instance: dg.DagsterInstance,
    materializations: Iterable[dg.AssetMaterialization],
    *,
    batching: bool = DagsterEvent is not None,
) -> int:
    """Tell Dagster of materialisations that no run of its own made, and return how many. ``batching`` as above."""
    count = 0
    while batch := list(itertools.islice(materializations := iter(materializations), BATCH)):
        count += len(batch)
        if not batching:
            for materialization in batch:
                instance.report_runless_asset_event(materialization)
            continue
        events = [
            DagsterEvent(
                event_type_value=DagsterEventType.ASSET_MATERIALIZATION.value,
                job_name="",
                event_specific_data=StepMaterializationData(materialization),
                message=_message(materialization),
            )
            for materialization in batch
        ]
        _report(instance, "", events)
    return count


def _report(instance: dg.DagsterInstance, run_id: str, events: list[Any]) -> None:
    batch = str(uuid.uuid4())
    for place, event in enumerate(events, start=1):
        metadata = DagsterEventBatchMetadata(batch, is_end=place == len(events))
        instance.report_dagster_event(event, run_id, logging.DEBUG, batch_metadata=metadata)


def _message(materialization: dg.AssetMaterialization) -> str:
    return f"{materialization.asset_key.to_user_string()} {materialization.partition}: materialised"
