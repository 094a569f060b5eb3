"""From the partitions of a run to stretches of sessions, and from their reports back to one outcome a partition."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from market_data_pipeline.domain.coverage import Verdict, runs
from market_data_pipeline.domain.finality import Finality
from market_data_pipeline.domain.partitions import day_in_the_east
from market_data_pipeline.ingest.report import Stretch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import date, datetime

    from market_data_pipeline.domain.candles import Interval
    from market_data_pipeline.domain.coverage import LedgerRow
    from market_data_pipeline.domain.partitions import Cell, PartitionPlan, Periods
    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.report import StretchReport

_DAY = timedelta(days=1)


@dataclass
class LedgerSums:
    """What the ledger says of the sessions of a partition, added up. ``verdicts`` add up to the bars expected."""

    verdicts: Counter[Verdict] = field(default_factory=Counter)
    gaps: int = 0
    attempts: int = 0
    finality: Counter[Finality] = field(default_factory=Counter)

    @classmethod
    def of(cls, reports: Iterable[StretchReport]) -> LedgerSums:
        """As the reports of a run have it."""
        sums = cls()
        for report in reports:
            sums.verdicts.update(report.verdicts)
            sums.gaps += report.history.gaps
            sums.attempts += report.history.attempts
            sums.finality.update(report.history.finality)
        return sums

    def add(self, row: LedgerRow, *, reached_since: float | None) -> None:
        """Take a session that is over, in which the instrument was listed. Who closed before ``reached_since`` is unreachable."""
        absent = ~row.resolved
        unreachable = reached_since is not None and row.closes_at < reached_since
        self.verdicts[Verdict.PRESENT] += int(row.present.sum())
        self.verdicts[Verdict.CONFIRMED_EMPTY] += int(row.confirmed_empty.sum())
        self.verdicts[Verdict.HALTED] += 0 if row.halted is None else int(row.halted.sum())
        self.verdicts[Verdict.UNREACHABLE if unreachable else Verdict.MISSING] += int(absent.sum())
        self.gaps += 0 if unreachable else len(runs(absent))
        self.attempts += row.attempts
        self.finality[row.finality] += 1

    def as_metadata(self) -> dict[str, int]:
        """Numbers, and always the same names, zeros included: an asset's page plots them over time."""
        others = (verdict for verdict in Verdict if verdict is not Verdict.PRESENT)
        return {
            "rows": self.verdicts[Verdict.PRESENT],
            "expected": self.verdicts.total(),
            **{verdict.value: self.verdicts[verdict] for verdict in others},
            "gaps": self.gaps,
            "attempts": self.attempts,
            **{f"{finality.name.lower()}_sessions": self.finality[finality] for finality in Finality},
        }


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
    def sums(self) -> LedgerSums:
        """What the ledger says of it now."""
        return LedgerSums.of(self.reports)

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
    """The partitions of one run. ``failures`` grows while the work is done: the reason for each partition that has one.

    ``again``: the stretches that are asked for whatever the ledger has of them; ``stretches``: those of which only what it lacks
    is.
    """

    cells: Sequence[Cell]
    stretches: list[Stretch]
    again: list[Stretch]
    failures: dict[Cell, str]
    _cell_of: Mapping[tuple[int, date], Cell]
    _stretches_in: Mapping[Cell, int]
    not_begun: int = 0
    answered: set[Cell] = field(default_factory=set)

    @classmethod
    def of(
        cls,
        cells: Sequence[Cell],
        plan: PartitionPlan,
        periods: Periods,
        instruments: Iterable[Instrument],
        *,
        now: datetime,
        again: tuple[date, date] | None = None,
    ) -> PartitionWork:
        """The stretches of ``cells``: one an instrument and period, none of it later than a session can have begun by ``now``.

        Where a period lies partly within ``again``, it is cut there: up to three. A symbol that the universe does not know fails
        its partitions at once; a period that has not begun is left alone.
        """
        held = defaultdict(list)
        for instrument in instruments:
            held[plan.column_of(instrument.symbol)].append(instrument)
        known = set(held) | set(plan.bucket_keys())
        today = day_in_the_east(now)
        stretches: list[Stretch] = []
        refetched: list[Stretch] = []
        failures: dict[Cell, str] = {}
        cell_of: dict[tuple[int, date], Cell] = {}
        stretches_in: dict[Cell, int] = {}
        for cell in cells:
            first, last = periods.days_of(cell.period)
            if cell.symbol not in known:
                failures[cell] = f"{cell.symbol} is not in the universe"
            elif first <= today:
                pieces = list(_pieces(first, min(last, today), again))
                stretches_in[cell] = len(held[cell.symbol]) * len(pieces)
                for instrument in held[cell.symbol]:
                    for begin, end, is_again in pieces:
                        (refetched if is_again else stretches).append(Stretch(instrument, begin, end))
                        cell_of[instrument.symbol_id, begin] = cell
        not_begun = len(cells) - len(stretches_in) - len(failures)
        return cls(cells, stretches, refetched, failures, cell_of, stretches_in, not_begun=not_begun)

    def passes(self, interval: Interval) -> list[tuple[list[Stretch], bool]]:
        """The stretches to bring up to date, and whether to ask again for what is there. What is derived is asked of nobody."""
        if interval.source is not None:
            return [(self.again + self.stretches, False)]
        return [(some, is_again) for some, is_again in ((self.again, True), (self.stretches, False)) if some]

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


def _pieces(first: date, last: date, again: tuple[date, date] | None) -> Iterator[tuple[date, date, bool]]:
    """[first, last] cut where ``again`` begins and ends, and of each piece whether it lies within."""
    if again is None or again[1] < first or last < again[0]:
        yield first, last, False
        return
    begin, end = max(first, again[0]), min(last, again[1])
    if first < begin:
        yield first, begin - _DAY, False
    yield begin, end, True
    if end < last:
        yield end + _DAY, last, False
