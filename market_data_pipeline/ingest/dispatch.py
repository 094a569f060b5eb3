"""Sends requests to several providers at once, a few at a time to each: a slow one keeps nobody waiting but its own."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from types import TracebackType

# A request that several errands may share waits for company no longer than this.
_LONGEST_WAIT_SECONDS = 2.0

E = TypeVar("E")
R = TypeVar("R")


@dataclass(slots=True, eq=False)
class _Group(Generic[E]):
    """Errands that may share a request, ``most`` at a time, the first of them since ``since``."""

    most: int
    since: float
    errands: deque[E] = field(default_factory=deque)


@dataclass(slots=True, eq=False)
class _Queue(Generic[E, R]):
    """What waits for one provider, by what may share a request, and what is on its way there."""

    pool: ThreadPoolExecutor
    groups: dict[Hashable, _Group[E]] = field(default_factory=dict)
    in_flight: dict[Future[R], list[E]] = field(default_factory=dict)

    @property
    def may_bring_company(self) -> bool:
        """Answers are under way whose remainders may go to others."""
        return bool(self.in_flight) or any(group.most == 1 for group in self.groups.values())


class Dispatcher(Generic[E, R]):
    """A queue and a few threads for each provider. Used by one thread; ``send`` runs in the others, with errands of one group.

    ``send`` must not raise but for bugs: what it raises is raised again by ``finished``.
    """

    def __init__(self, send: Callable[[list[E]], R], *, at_a_time: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._send, self._at_a_time, self._clock = send, at_a_time, clock
        self._queues: dict[str, _Queue[E, R]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # The reader of our answers stopped early: what has not been sent never is.
        for queue in self._queues.values():
            queue.pool.shutdown(wait=False, cancel_futures=True)
        for queue in self._queues.values():
            queue.pool.shutdown(wait=True)

    def put(self, errand: E, *, provider: str, group: Hashable, most: int) -> None:
        """Queue an errand. Those of one ``group`` may share a request, ``most`` at a time, the same for all of it."""
        if provider not in self._queues:
            self._queues[provider] = _Queue(ThreadPoolExecutor(self._at_a_time, thread_name_prefix=f"fetch-{provider}"))
        groups = self._queues[provider].groups
        groups.setdefault(group, _Group(most, self._clock())).errands.append(errand)

    @property
    def is_idle(self) -> bool:
        """Nothing waits and nothing is under way."""
        return not any(queue.groups or queue.in_flight for queue in self._queues.values())

    def finished(self, wake: Future[Any] | None = None) -> list[tuple[list[E], R]]:
        """What has come back since the last call, waiting until something has.

        Nothing where nothing is under way, and as soon as ``wake`` is done.
        """
        while True:
            patience = self._fill()
            flying = {future: queue for queue in self._queues.values() for future in queue.in_flight}
            if not flying and patience is None:
                return []
            also = () if wake is None else (wake,)
            done, _ = wait((*flying, *also), timeout=patience, return_when=FIRST_COMPLETED) if flying else (set(), set())
            if done:
                return [(flying[future].in_flight.pop(future), future.result()) for future in done if future in flying]

    def _fill(self) -> float | None:
        """Send what may be sent; seconds until more may, None where nothing waits for company."""
        patience: float | None = None
        for queue in self._queues.values():
            may_grow = any(other.may_bring_company for other in self._queues.values() if other is not queue)
            for key, group in list(queue.groups.items()):
                left = group.since + _LONGEST_WAIT_SECONDS - self._clock() if may_grow else 0.0
                # Twice as many as there are threads: the next one is at hand when a thread is free.
                while group.errands and len(queue.in_flight) < 2 * self._at_a_time:
                    if len(group.errands) < group.most and left > 0:
                        patience = left if patience is None else min(patience, left)
                        break
                    errands = [group.errands.popleft() for _ in range(min(group.most, len(group.errands)))]
                    # With the names and the span around this: whoever sends tells of both.
                    queue.in_flight[queue.pool.submit(copy_context().run, self._send, errands)] = errands
                if not group.errands:
                    del queue.groups[key]
        return patience
