"""What one pass does for one instrument: the jobs its missing bars are cut into, the errands they send, and what came of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.coverage import tally
from market_data_pipeline.domain.errors import BarrenError
from market_data_pipeline.domain.tracing import NO_SPAN
from market_data_pipeline.ingest.coverage import history_of
from market_data_pipeline.ingest.merge import Part
from market_data_pipeline.ingest.report import StretchReport

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from market_data_pipeline.domain.candles import Bools
    from market_data_pipeline.domain.capabilities import Capability
    from market_data_pipeline.domain.ports import BarsProvider, Fetch
    from market_data_pipeline.domain.quality import Reference
    from market_data_pipeline.domain.tracing import Span
    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.coverage import Masks
    from market_data_pipeline.ingest.grid import Grid
    from market_data_pipeline.ingest.judge import Judged
    from market_data_pipeline.ingest.plan import Window
    from market_data_pipeline.ingest.report import Stretch


@dataclass(eq=False)
class Errand:
    """One request to one provider. ``before``: those that were asked for these sessions earlier in the pass, or could not be."""

    job: Job
    provider: BarsProvider
    capability: Capability
    window: Window
    before: frozenset[str] = frozenset()
    insists: bool = False
    """It is sent even to a provider whose answers are mostly empty: there is nobody better left."""
    span: Span = NO_SPAN
    """Of the request that it was sent with."""
    share: float = 0.0
    """Of an HTTP request: 1 alone, a half where another symbol shared it, 0 while nothing was sent."""

    @property
    def name(self) -> str:
        """The provider's."""
        return self.provider.name

    @property
    def grid(self) -> Grid:
        """The sessions of the window."""
        return self.job.work.grid.part(self.window.sessions)


@dataclass(frozen=True, slots=True)
class Failure:
    """A request without an answer, and what is to be recorded of it."""

    errand: Errand
    kind: str
    text: str
    fetch: Fetch


@dataclass(frozen=True, slots=True)
class Given:
    """An answer. ``is_believed``: an empty one may be an attempt, or no answer at all where it is one of too many."""

    errand: Errand
    judged: Judged
    is_believed: bool = True
    silence_counts: bool = True

    @property
    def is_evidence(self) -> bool:
        """Whether it may count as an attempt for its sessions."""
        return self.judged.kind in {"ok", BarrenError.kind} and self.is_believed

    @property
    def part(self) -> Part:
        """What it adds to its sessions."""
        return Part(self.judged, self.is_evidence, self.silence_counts)


@dataclass(eq=False)
class Job:
    """Sessions of one instrument that are answered together, by one provider or by several, and stored in one piece.

    ``wanted`` and ``received`` have one element a bar of its sessions: what the pass is for, and what came in it. ``turned_away``:
    who could not be asked, and why.
    """

    work: Work
    places: slice
    wanted: Bools
    received: Bools
    reference: Reference | None = None
    errands: list[Errand] = field(default_factory=list)
    given: list[Given] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    turned_away: dict[str, str] = field(default_factory=dict)
    under_way: int = 0
    nobody: str = ""
    """Why nobody could be asked at all."""
    store_seconds: float = 0.0
    is_settled: bool = False
    """Nothing more will come of it in this pass."""
    is_done: bool = False
    """What came is stored."""

    def within(self, window: Window) -> slice:
        """Where the bars of ``window`` are in ``received``."""
        base = int(self.work.grid.offsets[self.places.start])
        bars = self.work.grid.bars_of(window.sessions)
        return slice(bars.start - base, bars.stop - base)

    def receive(self, given: Given) -> None:
        """Take an answer."""
        self.given.append(given)
        grid, came = given.errand.grid, {session.session: session.bars for session in given.judged.sessions}
        # Sessions whose ledger has another grid are not in the answer.
        bars = [came.get(session, np.zeros(length, bool)) for session, length in zip(grid.sessions, grid.lengths, strict=True)]
        self.received[self.within(given.errand.window)] |= np.concatenate(bars)

    def lacking(self, errand: Errand) -> Bools:
        """What is wanted of the sessions of ``errand`` and has not come, one element a bar of them."""
        bars = self.within(errand.window)
        lacking: Bools = self.wanted[bars] & ~self.received[bars]
        return lacking

    # --- by session: one element a session of ``places``

    def _covered(self, errands: Iterator[Errand]) -> Bools:
        covered = np.zeros(self.places.stop - self.places.start, bool)
        for errand in errands:
            sessions = errand.window.sessions
            covered[sessions.start - self.places.start : sessions.stop - self.places.start] = True
        return covered

    @property
    def attempted(self) -> Bools:
        """Some answer counts as an attempt."""
        return self._covered(given.errand for given in self.given if given.is_evidence)

    @property
    def failed(self) -> Bools:
        """Some request failed, or was answered from the past."""
        stale = (given.errand for given in self.given if given.judged.kind not in {"ok", BarrenError.kind})
        return self._covered(failure.errand for failure in self.failures) | self._covered(stale)

    @property
    def unbelieved(self) -> Bools:
        """Some answer was not taken for one."""
        return self._covered(given.errand for given in self.given if not given.is_believed)

    @property
    def unasked(self) -> Bools:
        """Something is lacking, and nobody could be asked for it."""
        return (
            self.unanswered
            & ~self._covered(failure.errand for failure in self.failures)
            & ~self._covered(given.errand for given in self.given)
        )

    @property
    def unanswered(self) -> Bools:
        """Something that was wanted did not come, and nobody gave a usable answer."""
        missed = self.wanted & ~self.received
        lengths = self.work.grid.lengths[self.places]
        firsts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
        lacks: Bools = np.logical_or.reduceat(missed, firsts) if len(missed) else np.zeros(0, bool)
        return lacks & ~self._covered(given.errand for given in self.given if given.judged.kind == "ok")

    @property
    def failure(self) -> str:
        """Why there is no usable answer, in words."""
        texts = [failure.text for failure in self.failures]
        texts += [f"{given.errand.name}: {given.judged.reason}" for given in self.given if given.judged.reason is not None]
        return "; ".join(texts) or f"not asked: {self.nobody}"


@dataclass(eq=False)
class Work:
    """What is to be done for one instrument: its grid, the ledger over it before and after, and the stretches to report."""

    instrument: Instrument
    grid: Grid
    stretches: list[Stretch]
    masks: Masks
    after: Masks | None = None
    jobs: list[Job] = field(default_factory=list)

    @property
    def is_outstanding(self) -> bool:
        """Some job is not done yet."""
        return not all(job.is_done for job in self.jobs)

    @property
    def is_touched(self) -> bool:
        """Some answer was stored: the ledger may read differently now."""
        return any(job.given for job in self.jobs)

    def report(self, stretch: Stretch, codes: npt.NDArray[np.uint8]) -> StretchReport:
        """What became of ``stretch``; ``codes`` are the verdicts over the whole grid."""
        places = self.grid.between(stretch.first, stretch.last)
        bars = self.grid.bars_of(places)
        present = (self.after or self.masks).present[bars]
        jobs = [job for job in self.jobs if _share(job.places, places) > 0]
        shares = {id(errand): _share(errand.window.sessions, places) for job in jobs for errand in job.errands}
        given = [one for job in jobs for one in job.given if shares[id(one.errand)] > 0]
        first = [one.judged for one in given if one.errand.window.sessions.start >= places.start]
        failures = [failure for job in jobs for failure in job.failures if shares[id(failure.errand)] > 0]
        told = {failure.errand.name: failure.text for failure in failures}
        told |= {one.errand.name: f"{one.errand.name}: {one.judged.reason}" for one in given if one.judged.reason is not None}
        dropped: Counter[str] = Counter()
        for judged in first:
            dropped.update(judged.fetch.dropped)
        return StretchReport(
            stretch=stretch,
            expected=bars.stop - bars.start,
            verdicts=tally(codes[bars]),
            inserted=int((present & ~self.masks.present[bars]).sum()),
            refused=sum(len(judged.refused.columns) for judged in first),
            requests=sum(errand.share * shares[id(errand)] for job in jobs for errand in job.errands),
            seconds=sum(one.judged.fetch.latency_seconds * one.errand.share * shares[id(one.errand)] for one in given)
            + sum(job.store_seconds * _share(job.places, places) for job in jobs),
            providers=tuple(sorted({one.errand.name for one in given if one.judged.kind in {"ok", "stale"}})),
            failure=self._failure(places, jobs),
            failures=told,
            dropped=dict(dropped),
            history=history_of(self.grid, self.after or self.masks, codes, places),
        )

    def _failure(self, places: slice, jobs: list[Job]) -> str | None:
        if self.masks.misfit[places].any():
            # Fetching on would mix two grids in one bitmap.
            return "the calendar changed since the ledger was opened: run `mdp reconcile --repair`"
        for job in jobs:
            first, last = max(places.start, job.places.start), min(places.stop, job.places.stop)
            if job.unanswered[first - job.places.start : last - job.places.start].any():
                return job.failure
        return None


def _share(window: slice, places: slice) -> float:
    """How much of a window's sessions lie in ``places``."""
    overlap: int = min(window.stop, places.stop) - max(window.start, places.start)
    length: int = window.stop - window.start
    return max(overlap, 0) / length
