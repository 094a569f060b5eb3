"""Live collection: quotes and current minutes at cadences under a minute, each line of work at its own pace, until told to stop.

What is asked for is up to the use-cases (snapshots.py, candles.py), and what is stored up to them too: nothing is kept here that a
crash could lose. Nothing of Dagster: who wants to tell it takes the tallies.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from market_data_pipeline.domain.budget import limits_of
from market_data_pipeline.domain.candles import DERIVED_INTERVALS, Interval
from market_data_pipeline.domain.capabilities import QUOTES_L1, Lane, bars
from market_data_pipeline.domain.errors import MarketDataError
from market_data_pipeline.domain.pacing import Pace
from market_data_pipeline.domain.runs import LIVE_MINUTES, LIVE_QUOTES
from market_data_pipeline.domain.sessions import date_of
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.ingest.candles import ingest_candles
from market_data_pipeline.ingest.derive import derive_candles
from market_data_pipeline.ingest.report import Stretch
from market_data_pipeline.ingest.snapshots import fetch_quotes
from market_data_pipeline.settings import numbers_by_tier
from market_data_pipeline.storage.quotes import QuoteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import date

    from market_data_pipeline.domain.sessions import TradingCalendar
    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.pipeline import Pipeline

# Minutes are asked for so long after they have settled: at the second itself, the first of a thousand symbols may still be early.
_AFTER_SETTLING_SECONDS = 2.0
# A tier that was changed, or a symbol that was added, is followed after so long.
_UNIVERSE_SECONDS = 60.0
# A trading day of New York: a limit a day is spent in it.
_TRADING_SECONDS = 23_400.0
# What goes wrong round after round is said at first and then every so many rounds; it is over after so many good ones.
_SAY_AGAIN_AFTER, _OVER_AFTER = 100, 10


@dataclass(frozen=True, slots=True)
class Tally:
    """What came of some rounds of work on one asset. ``failures``: the last reason of each symbol that has nothing, by symbol."""

    rounds: int = 0
    skipped: int = 0
    symbols: int = 0
    new: int = 0
    failed: int = 0
    requests: float = 0.0
    failures: Mapping[str, str] = field(default_factory=dict)

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.rounds + other.rounds,
            self.skipped + other.skipped,
            self.symbols + other.symbols,
            self.new + other.new,
            self.failed + other.failed,
            self.requests + other.requests,
            other.failures if other.rounds else self.failures,
        )

    def __str__(self) -> str:
        words = [f"{self.new:,} new from {self.symbols:,} symbols in {self.rounds:,} rounds, {self.requests:,.0f} requests"]
        words += [f"{self.failed:,} without an answer"] if self.failed else []
        words += [f"{self.skipped:,} beats skipped"] if self.skipped else []
        return ", ".join(words)


class Tallies:
    """What was collected since the start, and since each reader last looked. Shared by threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total: dict[str, Tally] = {}
        self._since: defaultdict[str, dict[str, Tally]] = defaultdict(dict)

    def add(self, asset: str, tally: Tally) -> None:
        """One round more."""
        with self._lock:
            self._total[asset] = self._total.get(asset, Tally()) + tally
            for waiting in self._since.values():
                waiting[asset] = waiting.get(asset, Tally()) + tally

    def total(self) -> dict[str, Tally]:
        """Everything since the start, by asset."""
        with self._lock:
            return dict(self._total)

    def take(self, reader: str) -> dict[str, Tally]:
        """What came since ``reader`` last asked, by asset; at its first look everything."""
        with self._lock:
            taken = self._since[reader] if reader in self._since else dict(self._total)
            self._since[reader] = {}
            return taken


class Followed:
    """The active instruments, read again every minute. Shared by threads."""

    def __init__(self, pipeline: Pipeline, monotonic: Callable[[], float]) -> None:
        self._pipeline, self._monotonic = pipeline, monotonic
        self._lock = threading.Lock()
        self._instruments: list[Instrument] = []
        self._read_at: float | None = None

    def of(self, tier: Tier) -> list[Instrument]:
        """Those of one tier."""
        with self._lock:
            if self._read_at is None or self._monotonic() - self._read_at >= _UNIVERSE_SECONDS:
                self._instruments = self._pipeline.universe.instruments()
                self._read_at = self._monotonic()
            return [instrument for instrument in self._instruments if instrument.tier is tier]


class QuotesWork:
    """Quotes of one tier, of the markets that are open."""

    asset, capability = LIVE_QUOTES, QUOTES_L1

    def __init__(self, pipeline: Pipeline, followed: Followed, tier: Tier, *, every: float) -> None:
        self._pipeline, self._followed, self.tier = pipeline, followed, tier
        self._every = timedelta(seconds=every)
        self._has_begun = False

    def __call__(self) -> Tally | None:
        """One round; None where no market is open. Whom an earlier process has just asked for is left out of the first."""
        now = self._pipeline.clock.now()
        open_now = _open_markets(self._pipeline, self._followed.of(self.tier), now)
        if not open_now:
            return None
        if not self._has_begun:
            known_at = self._pipeline.known_at(now)
            fresh = QuoteStore(self._pipeline.engine).confirmed_within([i.symbol_id for i in open_now], self._every, now=known_at)
            open_now = [instrument for instrument in open_now if instrument.symbol_id not in fresh]
        tally = Tally(rounds=1)
        for report in fetch_quotes(open_now, pipeline=self._pipeline) if open_now else ():
            tally = Tally(
                1,
                symbols=tally.symbols + len(report.symbols),
                new=tally.new + report.inserted,
                failed=tally.failed + len(report.failures),
                requests=tally.requests + report.requests,
                failures={**tally.failures, **report.failures},
            )
        self._has_begun = True
        return tally


class MinutesWork:
    """The current minutes of one tier: what of the running sessions has settled and is not stored; and what is derived from them.

    The sweep derives from what it brings itself, and brings nothing where this was first. Coarser bars are computed when a round
    may have completed one: of 1,200 symbols it takes a second each.
    """

    asset, capability = LIVE_MINUTES, bars(Interval.M1)

    def __init__(self, pipeline: Pipeline, followed: Followed, tier: Tier, *, every: float) -> None:
        self._pipeline, self._followed, self.tier, self._every = pipeline, followed, tier, every
        self._changed: dict[Interval, dict[tuple[int, date, date], Stretch]] = {interval: {} for interval in DERIVED_INTERVALS}
        self._derived_until: dict[Interval, int] = {}

    @property
    def phase(self) -> float:
        """How many seconds after a full minute the minute before it can be asked for."""
        return self._pipeline.settle_seconds(Interval.M1) + _AFTER_SETTLING_SECONDS

    def __call__(self) -> Tally | None:
        """One round; None where no session is running. The last minutes of a session come after its close."""
        now = self._pipeline.clock.now()
        linger = timedelta(seconds=self.phase + 2 * max(self._every, 60.0))
        instruments = self._followed.of(self.tier)
        sessions = {
            name: running_sessions(self._pipeline.calendars(name), now, linger=linger) for name in {i.calendar for i in instruments}
        }
        stretches = [
            Stretch(instrument, running[0], running[-1])
            for instrument in instruments
            if (running := [day for day in sessions[instrument.calendar] if instrument.listed_on(day)])
        ]
        if not stretches:
            return None
        reports = list(ingest_candles(stretches, Interval.M1, pipeline=self._pipeline, lane=Lane.LIVE))
        self._derive([report.stretch for report in reports if report.failure is None and report.inserted], now)
        failures = {report.stretch.instrument.symbol: report.failure for report in reports if report.failure is not None}
        return Tally(
            1,
            symbols=len(reports),
            new=sum(report.inserted for report in reports),
            failed=len(failures),
            requests=sum(report.requests for report in reports),
            failures=failures,
        )

    def _derive(self, changed: Sequence[Stretch], now: datetime) -> None:
        """Bring coarser bars in line with the minutes that came since it was last done, where another one can be whole by now."""
        settled = int(now.timestamp()) - self._pipeline.settle_seconds(Interval.M1)
        for interval, waiting in self._changed.items():
            waiting |= {(one.instrument.symbol_id, one.first, one.last): one for one in changed}
            until = settled // interval.seconds
            if waiting and self._derived_until.get(interval) != until:
                for _ in derive_candles(list(waiting.values()), interval, pipeline=self._pipeline):
                    pass
                waiting.clear()
                self._derived_until[interval] = until


def running_sessions(calendar: TradingCalendar, now: datetime, *, linger: timedelta) -> list[date]:
    """The sessions that are open at ``now`` or closed less than ``linger`` before, in order. A lunch break is part of one."""
    day = now.astimezone(UTC).date()
    bounds = calendar.bounds(day - timedelta(days=1), day + timedelta(days=1))
    at = now.timestamp()
    is_running = (bounds.opens_at < at) & (at <= bounds.closes_at + linger.total_seconds())
    return [date_of(session) for session in bounds.session[is_running].tolist()]


def _open_markets(pipeline: Pipeline, instruments: Sequence[Instrument], now: datetime) -> list[Instrument]:
    """Those whose market trades at ``now``."""
    names = {instrument.calendar for instrument in instruments}
    open_now = {name for name in names if bool(pipeline.calendars(name).is_open([int(now.timestamp())])[0])}
    return [instrument for instrument in instruments if instrument.calendar in open_now and instrument.listed_on(now.date())]


class Works(Protocol):
    """A kind of work, a round a call."""

    @property
    def asset(self) -> str:
        """What it is about."""
        ...

    def __call__(self) -> Tally | None:
        """One round; None where there was nothing to do. Raises MarketDataError where the round failed as a whole."""
        ...


@dataclass(frozen=True, slots=True)
class Line:
    """One kind of work at its own pace. A round never begins before the one before it has ended.

    ``phase``: how many seconds after a multiple of ``every`` of the clock it is due; None: at once, and then every so often.
    """

    name: str
    work: Works
    every: float
    phase: float | None = None

    def run(
        self,
        tallies: Tallies,
        *,
        monotonic: Callable[[], float],
        wait: Callable[[float], bool],
        clock: Callable[[], float],
        say: Callable[[str], None],
    ) -> None:
        """Work until ``wait``, given seconds, says that it is the end. What goes wrong is said when it begins and when it ends."""
        pace, telling = self._in_phase(Pace(self.every, monotonic()), monotonic, clock), _Telling(self.name, say)
        while not wait(max(pace.next_at - monotonic(), 0.0)):
            try:
                tally = self.work()
            except MarketDataError as failed:
                tally = Tally(rounds=1)
                telling.of("the round", f"the round failed: {failed}; trying again at the next beat")
            else:
                telling.of("the round", None)
                if tally is not None:
                    telling.of("symbols", _unanswered(tally))
            pace, skipped = pace.after(monotonic())
            pace = self._in_phase(pace, monotonic, clock)
            if tally is not None:
                tallies.add(self.work.asset, tally + Tally(skipped=skipped))
                telling.of("the pace", _too_slow(skipped, self.every))

    def _in_phase(self, pace: Pace, monotonic: Callable[[], float], clock: Callable[[], float]) -> Pace:
        return pace if self.phase is None else pace.in_phase(monotonic=monotonic(), clock=clock(), phase=self.phase)


def _unanswered(tally: Tally) -> str | None:
    if not tally.failures:
        return None
    symbol, reason = next(iter(tally.failures.items()))
    more = f" and {len(tally.failures) - 1:,} more" if len(tally.failures) > 1 else ""
    return f"{tally.failed:,} of {tally.symbols:,} symbols have no answer: {symbol}{more}: {reason}"


def _too_slow(skipped: int, every: float) -> str | None:
    if not skipped:
        return None
    return f"a round took longer than {every:g} s, {skipped:,} beats are skipped: fewer symbols or a longer cadence would keep pace"


class _Telling:
    """Says what goes wrong when it begins, now and then while it lasts, and when it is over: never a line a round."""

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self._name, self._say = name, say
        self._lasting = Counter[str]()
        self._good = Counter[str]()

    def of(self, what: str, wrong: str | None) -> None:
        """How the last round was in this respect; None: well."""
        if wrong is not None:
            self._good[what] = 0
            if self._lasting[what] % _SAY_AGAIN_AFTER == 0:
                self._say(f"{self._name}: {wrong}")
            self._lasting[what] += 1
        elif self._lasting[what]:
            self._good[what] += 1
            if self._good[what] >= _OVER_AFTER:
                self._say(f"{self._name}: {what} as it should be again; {self._lasting[what]:,} rounds were not")
                self._lasting[what] = 0


def lines_of(pipeline: Pipeline, *, monotonic: Callable[[], float], quotes: bool = True, minutes: bool = True) -> list[Line]:
    """The lines that the settings ask for: quotes of each tier with a cadence, and the minutes of T0."""
    followed = Followed(pipeline, monotonic)
    lines: list[Line] = []
    if quotes:
        for tier, every in numbers_by_tier(pipeline.settings.quotes_every_seconds).items():
            if every:
                lines.append(Line(f"quotes {tier}", QuotesWork(pipeline, followed, tier, every=every), every))
    every = numbers_by_tier(pipeline.settings.bars_every_seconds)[Tier.T0]
    if minutes and every:
        work = MinutesWork(pipeline, followed, Tier.T0, every=every)
        # A virtual clock may stand still or run: there is no telling when its next minute is.
        lines.append(Line(f"minutes {Tier.T0}", work, every, None if pipeline.clock.is_virtual else work.phase))
    return lines


def foreseeable(pipeline: Pipeline, lines: Sequence[Line]) -> list[str]:
    """What of ``lines`` cannot go well, a sentence each: tiers without symbols, and limits that are too low for the cadences.

    By the provider that stands first now, with all markets open at once.
    """
    sentences: list[str] = []
    counts = Counter(instrument.tier for instrument in pipeline.universe.instruments())
    demands: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)
    for line in lines:
        work = line.work
        if not isinstance(work, QuotesWork | MinutesWork):
            continue
        if not counts[work.tier]:
            sentences.append(
                f"{line.name}: no active symbol has that tier, so nothing is asked until one has (`mdp universe tiers`)"
            )
        configured, _ = pipeline.router.configured(work.capability)
        for provider, capability in configured[:1]:
            requests = math.ceil(counts[work.tier] / capability.symbols_per_request)
            demands[provider.name].append((requests / line.every, line.name))
    limits = limits_of(pipeline.providers.values(), pipeline.settings.limits)
    for name, demand in demands.items():
        a_second = sum(rate for rate, _ in demand)
        for limit in limits.get(name, ()):
            wanted = a_second * min(limit.seconds, _TRADING_SECONDS)
            if wanted > limit.requests:
                of = ", ".join(line for _, line in demand)
                sentences.append(
                    f"{of}: {wanted:,.1f} requests in {limit.seconds:,g} s would go to {name}, which allows {limit}: some rounds"
                    " will bring nothing or ask others; fewer symbols, longer cadences or another provider first would keep pace"
                )
    return sentences


def collect(
    lines: Sequence[Line],
    tallies: Tallies,
    *,
    stop: threading.Event,
    monotonic: Callable[[], float],
    clock: Callable[[], float],
    say: Callable[[str], None],
    beat: Callable[[], object],
    beat_seconds: float = 1.0,
) -> None:
    """Run all lines, each in a thread of its own, until ``stop`` is set; then every round that has begun is finished and stored.

    ``beat`` is called in this thread every ``beat_seconds``. What a line raises, a bug, stops everything and is raised here.
    """
    broken: list[BaseException] = []

    def work(line: Line) -> None:
        try:
            line.run(tallies, monotonic=monotonic, wait=stop.wait, clock=clock, say=say)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised in the other thread
            broken.append(error)
            stop.set()

    threads = [threading.Thread(target=work, args=(line,), name=line.name, daemon=True) for line in lines]
    for thread in threads:
        thread.start()
    try:
        while not stop.wait(beat_seconds):
            beat()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if broken:
        raise broken[0]
