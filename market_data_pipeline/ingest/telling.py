"""What a pass says in the log: the first failures of a kind aloud, one line at its end, and everything else at debug."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

from market_data_pipeline.domain.capabilities import Lane
from market_data_pipeline.domain.coverage import Verdict

if TYPE_CHECKING:
    from collections.abc import Hashable

    from market_data_pipeline.domain.candles import Interval
    from market_data_pipeline.domain.errors import ProviderError
    from market_data_pipeline.domain.ports import WriteReport
    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.judge import Judged
    from market_data_pipeline.ingest.report import StretchReport

# Each line of a run is also a row of Dagster's event log: of what repeats, a few say it.
_ALOUD = 3
_HEALED_ALOUD = 20
_REASONS = 3

logger = logging.getLogger(__name__)


class Few:
    """The level of what repeats: ``level`` for the first of each kind, debug for the others."""

    def __init__(self, most: int = _ALOUD) -> None:
        self._most, self._said = most, Counter[object]()

    def level(self, level: int, kind: Hashable) -> int:
        """Of the next line of ``kind``."""
        self._said[kind] += 1
        return level if self._said[kind] <= self._most else logging.DEBUG


class PassLog:
    """What one pass of ``ingest_candles`` says. Used by one thread, but for ``stored``, which counts nothing."""

    def __init__(self, interval: Interval, lane: Lane) -> None:
        self._interval, self._lane = interval, lane
        self._few, self._healed = Few(), Few(_HEALED_ALOUD)
        self._counts = Counter[str]()
        self._reasons = Counter[str]()
        self._requests = 0.0
        self._providers: set[str] = set()

    def failed(self, instrument: Instrument, error: ProviderError) -> None:
        """A request that brought nothing."""
        self._counts["failed requests"] += 1
        level = self._few.level(logging.WARNING, (error.provider, error.kind))
        if logger.isEnabledFor(level):
            text = f"{instrument.symbol} {self._interval}: {error.kind}: {error}"
            logger.log(level, "%s", text, extra={"symbol": instrument.symbol, "provider": error.provider, "kind": error.kind})

    def answered(self, instrument: Instrument, provider: str, judged: Judged) -> None:
        """A request that was answered; not always by what it asked for."""
        level = logging.DEBUG if judged.reason is None else self._few.level(logging.WARNING, (provider, judged.kind))
        if logger.isEnabledFor(level):
            came = f"{judged.received:,} of {judged.expected:,} bars that were due"
            why = "" if judged.reason is None else f", {judged.kind}: {judged.reason}"
            text = f"{instrument.symbol} {self._interval}: {provider} answered with {came}{why}"
            logger.log(level, "%s", text, extra={"symbol": instrument.symbol, "provider": provider, "kind": judged.kind})

    def stored(self, written: WriteReport, *, symbols: int, seconds: float) -> None:
        """A transaction."""
        logger.debug(
            "%s: stored in %.3f s: %d bars of %d symbols inserted, %d revised, %d as they were, %d refused",
            self._interval,
            seconds,
            written.inserted,
            symbols,
            written.revised,
            written.unchanged,
            written.refused,
        )

    def note(self, report: StretchReport) -> None:
        """A stretch that is finished."""
        missing = report.verdicts.get(Verdict.MISSING, 0)
        self._counts.update(stretches=1, inserted=report.inserted, missing=missing, unanswered=report.failure is not None)
        self._requests += report.requests
        self._providers.update(report.providers)
        if report.failure is not None:
            self._reasons[report.failure] += 1
        heals = self._lane is Lane.HEALING and report.inserted > 0
        level = self._healed.level(logging.INFO, "healed") if heals else logging.DEBUG
        if (report.inserted or report.failure) and logger.isEnabledFor(level):
            stretch, symbol = report.stretch, report.stretch.instrument.symbol
            days = str(stretch.first) if stretch.first == stretch.last else f"{stretch.first}..{stretch.last}"
            word = "a gap was healed" if heals and not missing else "filled" if report.failure is None else "no usable answer"
            text = f"{symbol} {self._interval} {days}: {word}: {report.inserted:,} bars came, {missing:,} are missing"
            logger.log(level, "%s", text, extra={"symbol": symbol, "session": str(stretch.last), "inserted": report.inserted})

    def tell(self) -> None:
        """The line at the end: a warning where somebody has no answer, nothing but debug where nothing was asked."""
        counts = self._counts
        unanswered = counts["unanswered"]
        level = logging.WARNING if unanswered else logging.INFO if self._requests or counts["inserted"] else logging.DEBUG
        if not logger.isEnabledFor(level):
            return
        of = f" of {', '.join(sorted(self._providers))}" if self._providers else ""
        text = (
            f"{self._interval}: {counts['stretches']:,} stretches, {unanswered:,} without an answer; {counts['inserted']:,} bars "
            f"came, {counts['missing']:,} are missing; {self._requests:,.0f} requests{of}, {counts['failed requests']:,} failed"
        )
        reasons = "".join(f"; {count:,} of them: {reason}" for reason, count in self._reasons.most_common(_REASONS))
        logger.log(level, "%s", text + reasons, extra={"inserted": counts["inserted"], "unanswered": unanswered})
