"""From the partitions of a run to stretches of sessions, and from their reports back to one outcome a partition."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from market_data_pipeline.domain.partitions import day_in_the_east
from market_data_pipeline.ingest.report import Stretch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import date, datetime

    from market_data_pipeline.domain.coverage import Verdict
    from market_data_pipeline.domain.partitions import Cell, PartitionPlan, Periods
    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.report import StretchReport


@dataclass(frozen=True, slots=True)
class PartitionOutcome:
    """What became of one partition: the reports of its stretches (one, or one a symbol of a bucket) taken together."""

    cell: Cell
    reports: Sequence[StretchReport]

    @property
    def failure(self) -> str | None:
        """Why some request of it was not answered, None where every one was."""
        return next((report.failure for report in self.reports if report.failure is not None), None)

    @property
    def verdicts(self) -> Counter[Verdict]:
        """How many expected bars have each verdict; they add up to ``expected``."""
        total: Counter[Verdict] = Counter()
        for report in self.reports:
            total.update(report.verdicts)
        return total

    @property
    def expected(self) -> int:
        """How many bars the calendar expects."""
        return sum(report.expected for report in self.reports)

    @property
    def provider(self) -> str | None:
        """Who answered; None where nobody was asked."""
        return ", ".join(sorted({name for report in self.reports for name in report.providers})) or None

    @property
    def failures(self) -> dict[str, str]:
        """How each provider that failed did so, the first time."""
        return {name: text for report in reversed(self.reports) for name, text in report.failures.items()}


@dataclass
class PartitionWork:
    """The partitions of one run. ``failures`` grows while the work is done: the reason for each partition that has one."""

    cells: Sequence[Cell]
    stretches: list[Stretch]
    failures: dict[Cell, str]
    _cell_of: Mapping[tuple[int, date], Cell]
    _stretches_in: Mapping[Cell, int]
    not_begun: int = 0
    answered: set[Cell] = field(default_factory=set)

    @classmethod
    def of(
        cls, cells: Sequence[Cell], plan: PartitionPlan, periods: Periods, instruments: Iterable[Instrument], *, now: datetime
    ) -> PartitionWork:
        """The stretches of ``cells``: one an instrument and period, none of it later than a session can have begun by ``now``.

        A symbol that the universe does not know fails its partitions at once; a period that has not begun is left alone.
        """
        held = defaultdict(list)
        for instrument in instruments:
            held[plan.column_of(instrument.symbol)].append(instrument)
        known = set(held) | set(plan.bucket_keys())
        today = day_in_the_east(now)
        stretches: list[Stretch] = []
        failures: dict[Cell, str] = {}
        cell_of: dict[tuple[int, date], Cell] = {}
        stretches_in: dict[Cell, int] = {}
        for cell in cells:
            first, last = periods.days_of(cell.period)
            if cell.symbol not in known:
                failures[cell] = f"{cell.symbol} is not in the universe"
            elif first <= today:
                stretches_in[cell] = len(held[cell.symbol])
                for instrument in held[cell.symbol]:
                    stretches.append(Stretch(instrument, first, min(last, today)))
                    cell_of[instrument.symbol_id, first] = cell
        return cls(cells, stretches, failures, cell_of, stretches_in, not_begun=len(cells) - len(stretches_in) - len(failures))

    def outcomes(self, reports: Iterable[StretchReport]) -> Iterator[PartitionOutcome]:
        """Each partition once all its stretches have reported, in the order of completion; every partition that began, once.

        Those with a failure of their own, or in an earlier pass over the same work, are noted in ``failures`` and not yielded.
        """
        gathered: dict[Cell, list[StretchReport]] = {cell: [] for cell in self._stretches_in}
        for cell, expected in self._stretches_in.items():
            if expected == 0:
                yield PartitionOutcome(cell, ())
        for report in reports:
            cell = self._cell_of[report.stretch.instrument.symbol_id, report.stretch.first]
            gathered[cell].append(report)
            if len(gathered[cell]) == self._stretches_in[cell]:
                outcome = PartitionOutcome(cell, gathered.pop(cell))
                if outcome.failure is not None:
                    self.failures.setdefault(cell, outcome.failure)
                elif cell not in self.failures:
                    yield outcome
        for cell in gathered:
            if self._stretches_in[cell] > 0:
                self.failures.setdefault(cell, "the work ended without a report on it")
