"""Shows how far the runs of a backfill are: a bar on a terminal, plain lines in a pipe or a log."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from market_data_pipeline.cli.output import note
from market_data_pipeline.domain.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from market_data_pipeline.cli.launching import Launched

    CountsBars = Callable[[], tuple[int, int]]
    """Bars stored and bars expected, as the ledger has them now."""

    Show = Callable[[Sequence[Launched]], None]

# The ledger is asked this often: its sums over a million sessions take the database a second.
SECONDS_BETWEEN_COUNTS = 10.0
# In a log, news of the same kind is worth a line this often.
SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress(count: CountsBars, *, monotonic: Callable[[], float] = time.monotonic) -> Iterator[Show]:
    """Something to show each look at the runs to. Standard error, so that pipes stay clean."""
    console = Console(stderr=True)
    bars = _Sparingly(count, monotonic)
    if not console.is_terminal:
        yield _Lines(bars, monotonic).show
        return
    columns = (TextColumn("partitions"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as display:
        task = display.add_task("", total=None)

        def show(launched: Sequence[Launched]) -> None:
            display.update(
                task, completed=_done(launched), total=_total(launched), description=f"{_runs(launched)}{bars.text(launched)}"
            )

        yield show


class _Sparingly:
    """Asks the ledger now and then, and remembers in between."""

    def __init__(self, count: CountsBars, monotonic: Callable[[], float]) -> None:
        self._count = count
        self._monotonic = monotonic
        self._asked_at: float | None = None
        self._text = ""

    def text(self, launched: Sequence[Launched]) -> str:
        """Empty until the ledger expects something; the last word is always fresh."""
        now = self._monotonic()
        all_over = all(one.run.is_over for one in launched)
        if self._asked_at is None or all_over or now - self._asked_at >= SECONDS_BETWEEN_COUNTS:
            self._asked_at = now
            try:
                stored, expected = self._count()
                self._text = f"; {stored:,} of {expected:,} bars stored" if expected else ""
            except UnavailableError:
                # Looking on must not end because the database restarts: the runs decide what becomes of them.
                self._text = "; the database does not answer"
        return self._text


class _Lines:
    """A line when a run has ended, and otherwise at most every ten seconds."""

    def __init__(self, bars: _Sparingly, monotonic: Callable[[], float]) -> None:
        self._bars = bars
        self._monotonic = monotonic
        self._said = ""
        self._said_at = 0.0
        self._ended = -1

    def show(self, launched: Sequence[Launched]) -> None:
        ended = sum(one.run.is_over for one in launched)
        now = self._monotonic()
        if ended == self._ended and now - self._said_at < SECONDS_BETWEEN_LINES:
            return
        line = f"{_done(launched):,} of {_total(launched):,} partitions; {_runs(launched)}{self._bars.text(launched)}"
        if line != self._said:
            note(line)
        self._said, self._said_at, self._ended = line, now, ended


def _done(launched: Sequence[Launched]) -> int:
    return sum(one.partitions_done for one in launched)


def _total(launched: Sequence[Launched]) -> int:
    return sum(one.task.box.partitions for one in launched)


def _runs(launched: Sequence[Launched]) -> str:
    counts = Counter(one.run.status for one in launched)
    return "runs: " + ", ".join(f"{count} {status.lower().replace('_', ' ')}" for status, count in sorted(counts.items()))
