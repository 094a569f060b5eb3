"""What work says of itself while it is done: the seam between those who do it and whoever records it. Nothing is recorded here."""

from __future__ import annotations

from collections.abc import Generator
from contextvars import copy_context
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

P = ParamSpec("P")
T = TypeVar("T")

Value = str | int | float | bool


class Span(Protocol):
    """A piece of work with a beginning and an end."""

    def note(self, **attributes: Value) -> None:
        """Add what is known by now. After the end it is lost."""
        ...

    def failed(self, error: Exception) -> None:
        """It came to nothing, though ``error`` does not leave its block."""
        ...


class Tracer(Protocol):
    """Makes spans."""

    def span(
        self, name: str, *, parent: Span | None = None, after: Sequence[Span] = (), **attributes: Value
    ) -> AbstractContextManager[Span]:
        """Work called ``name``, as long as the block lasts, and part of ``parent``: where it is None, of the span around it.

        A parent may have ended. ``after``: spans that led to this one and are no parents of it. What leaves the block as an
        exception is noted by its class and its redacted text. Never raises by itself.
        """
        ...


class _NoSpan:
    """Of a tracer that records nothing: one for all."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def note(self, **attributes: Value) -> None:
        """Nothing."""

    def failed(self, error: Exception) -> None:
        """Nothing."""


class NoTracer:
    """Records nothing, at the price of a call."""

    def span(self, name: str, *, parent: Span | None = None, after: Sequence[Span] = (), **attributes: Value) -> _NoSpan:  # noqa: ARG002
        """Nothing."""
        return NO_SPAN


NO_SPAN = _NoSpan()
NO_TRACER = NoTracer()


def in_its_own_context(begin: Callable[P, Iterator[T]]) -> Callable[P, Iterator[T]]:
    """A generator function whose context variables are its own.

    What its body binds (the span that it is in, the names in its logs) holds from one item to the next, is not seen by whoever
    iterates, and is undone where it was done, also when the generator is given up half-way or closed by another thread.
    """

    @wraps(begin)
    def generate(*args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        context, items = copy_context(), begin(*args, **kwargs)
        try:
            while True:
                try:
                    item = context.run(next, items)
                except StopIteration:
                    return
                yield item
        finally:
            if isinstance(items, Generator):
                context.run(items.close)

    return generate
