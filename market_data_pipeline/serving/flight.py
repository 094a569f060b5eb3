"""Blocking work for the event loop: one at a time of a kind, awaited for so long and no longer."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Flight(Generic[T]):
    """Does ``work`` in a thread when it is asked to; whoever asks while it is under way is given the same answer.

    So a database that has stopped holds one thread and one connection, however often it is asked after. The thread does not keep
    the process alive.
    """

    def __init__(self, name: str, work: Callable[[], T]) -> None:
        self._name, self._work = name, work
        self._current: Future[T] | None = None

    async def ask(self, patience_seconds: float) -> T:
        """What ``work`` returns or raises. TimeoutError after ``patience_seconds``; the work goes on."""
        if self._current is None or self._current.done():
            self._current = Future()
            threading.Thread(target=self._do, args=(self._current,), name=self._name, daemon=True).start()
        return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._current)), patience_seconds)

    def _do(self, future: Future[T]) -> None:
        try:
            future.set_result(self._work())
        except BaseException as error:  # noqa: BLE001 - raised again by whoever asked
            future.set_exception(error)
