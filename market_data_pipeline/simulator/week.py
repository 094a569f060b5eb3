"""The simulated week: the pipeline lives through it on a virtual clock, driven as Dagster's schedules and sensors drive it.

Real parts throughout: a simulator process, HTTP, the production adapters and use-cases, a Postgres that is gone afterwards. What
happens is ``week_market``'s, what came of it ``week_report``'s.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from market_data_pipeline.domain.candles import DERIVED_INTERVALS, FETCHED_INTERVALS, Interval
from market_data_pipeline.domain.capabilities import Lane
from market_data_pipeline.domain.halts import Halt
from market_data_pipeline.domain.runs import lane_of
from market_data_pipeline.domain.sessions import date_of
from market_data_pipeline.ingest.candles import ingest_candles
from market_data_pipeline.ingest.derive import derive_candles
from market_data_pipeline.ingest.halts import apply_halts
from market_data_pipeline.ingest.listing import infer_listings
from market_data_pipeline.ingest.report import Stretch
from market_data_pipeline.ingest.sweep import sweep
from market_data_pipeline.settings import numbers_by_tier
from market_data_pipeline.simulator.client import running_simulator
from market_data_pipeline.simulator.drill import random_faults
from market_data_pipeline.simulator.ground import loaded, planned_next
from market_data_pipeline.simulator.week_market import FIRST, LAST, facts_of, listing_rules, outage_rules, write_market
from market_data_pipeline.storage.budgets import PostgresBudget
from market_data_pipeline.storage.halts import Halts
from market_data_pipeline.storage.reconcile import repair
from market_data_pipeline.wiring import open_pipeline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.settings import Settings
    from market_data_pipeline.simulator.client import RunningSimulator
    from market_data_pipeline.simulator.ground import ProvingGround
    from market_data_pipeline.simulator.week_market import Facts

Judged = TypeVar("Judged")

# One symbol a request, all three: who shares a request with whom is a matter of real time, and a week is to be the same twice.
PROVIDERS = "yahoo,massive,finnhub"
# Real seconds: nobody is to be slowed down by a limit that virtual minutes have long lifted.
LIMITS = "yahoo=1000/s;massive=1000/s;finnhub=1000/s"
TICK = timedelta(minutes=5)
CADENCES = "T0=300,T1=900,T2=0"
# As the schedules and the gap sensor have them.
AFTER_CLOSE = timedelta(minutes=10)
LEFT_TO_THE_SCHEDULES = timedelta(minutes=30)
GAPS_A_TICK = 500
IN_VAIN = 3
# Whose closes are the instants as of which the store is read, then and at the end: one a day is enough, a read is of everything.
READ_AFTER = "XNYS"
# The longest that healing may go on after the week: attempts wait a day at most, and there are six.
SETTLING = timedelta(days=24)
SETTLES_AFTER = timedelta(days=3)
HALTS_ARE_TOLD_AFTER = timedelta(minutes=10)
LISTINGS_AT_HOUR = 6


@dataclass(frozen=True, slots=True)
class WeekPlan:
    """What week to live through. The same plan gives the same week."""

    seed: int
    symbols: int = 50
    first: date = FIRST
    last: date = LAST
    probability: float = 0.03
    tick: timedelta = TICK
    cadences: str = CADENCES

    @property
    def facts(self) -> Facts:
        """What happens in it."""
        return facts_of(seed=self.seed, first=self.first, last=self.last, symbols=self.symbols)


@dataclass(frozen=True, slots=True)
class Look:
    """Somebody asked for these sessions at this instant."""

    at: datetime
    first: date
    last: date


@dataclass(frozen=True, slots=True)
class AsOf:
    """What a read as of ``at`` answered then: a digest of every bar."""

    at: datetime
    digest: str


@dataclass(slots=True)
class Diary:
    """What the driver saw while the week went by.

    ``requests`` by cause and provider; ``struck``: what befell the requests for a symbol and capability at an instant.
    """

    looks: dict[tuple[int, Interval], list[Look]] = field(default_factory=lambda: defaultdict(list))
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    struck: dict[tuple[str, str, datetime], str] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    as_of: list[AsOf] = field(default_factory=list)
    ticks: int = 0
    ended_at: datetime | None = None
    is_at_rest: bool = False
    """At the end, nothing more is planned."""


@dataclass(frozen=True, slots=True)
class Lived:
    """A week that is over, its database still there."""

    plan: WeekPlan
    faulty: bool
    facts: Facts
    data: Path
    diary: Diary
    pipeline: Pipeline
    instruments: Sequence[Instrument]
    over_limit: int
    seconds: float


def live(place: ProvingGround, plan: WeekPlan, *, faulty: bool, judge: Callable[[Lived], Judged]) -> Judged:
    """Live through the week of ``plan`` and hand what came of it to ``judge`` before its database goes; what that returns.

    Not ``faulty``: the same market with its halts, listings, late prints and corrections, and providers that never fail.
    """
    started = time.monotonic()
    facts, data = plan.facts, place.home / f"week-{plan.seed}-{plan.symbols}-{plan.first}-{plan.last}"
    if not data.exists():
        data.mkdir()
        write_market(data, facts, symbols=plan.symbols)
    rules: list[Mapping[str, Any]] = [*listing_rules(facts)]
    if faulty:
        rules = [*outage_rules(facts), *rules, *random_faults("yahoo", plan.probability).rules]
    with (
        place.database() as url,
        running_simulator(data=data, now=facts.begins_at, seed=plan.seed, faults=rules, limits=LIMITS) as simulator,
        ExitStack() as stack,
    ):
        settings = place.settings(
            url,
            simulator,
            policy_bars_1m=PROVIDERS,
            policy_eod=PROVIDERS,
            limits=LIMITS,
            bars_every_seconds=plan.cadences,
            # One at a time and no term for latency in the health: the order of events is that of the plan, on any machine.
            requests_in_flight=1,
            latency_cap_ms=1e9,
        )
        week = _Week(plan, facts, data, simulator, settings, stack)
        week.live()
        lived = Lived(
            plan,
            faulty,
            facts,
            data,
            week.diary,
            week.pipeline,
            week.instruments,
            simulator.over_limit(),
            time.monotonic() - started,
        )
        return judge(lived)


class _Week:
    """The schedules and sensors, in one process, on one virtual clock."""

    def __init__(
        self, plan: WeekPlan, facts: Facts, data: Path, simulator: RunningSimulator, settings: Settings, stack: ExitStack
    ) -> None:
        self._plan, self._facts, self._data, self._simulator, self._stack = plan, facts, data, simulator, stack
        self._settings = settings
        self.diary = Diary()
        self.pipeline = stack.enter_context(open_pipeline(settings))
        self.instruments = loaded(self.pipeline, data / "followed.csv", tag="week")
        self._by_symbol = {instrument.symbol: instrument for instrument in self.instruments}
        self._now = facts.begins_at
        self._seen = 0
        self._to_close = sorted(self._closes(), key=lambda close: (close[0], close[1]))
        self._to_declare = facts.declared_at
        self._to_tell = sorted((facts.halts[symbol][1] + HALTS_ARE_TOLD_AFTER, symbol) for symbol in facts.told)

    # --- time ----------------------------------------------------------------------------------------------------------

    def live(self) -> None:
        """The week itself tick by tick, then from one close or planned instant to the next until nothing more is planned."""
        # The first tick is not at the open of the first session: what closed a moment before it is another week's.
        at = self._facts.begins_at + self._plan.tick
        while at <= self._facts.ends_at:
            self._tick(at, is_running=True)
            at += self._plan.tick
        quiet = datetime.combine(self._facts.until, datetime.min.time(), UTC) + SETTLES_AFTER
        while self._now < quiet + SETTLING and (self._now < quiet or planned_next(self.pipeline, rechecks=True) is not None):
            self._tick(self._next_instant(), is_running=False)
        self.diary.ended_at = self._now
        self.diary.is_at_rest = planned_next(self.pipeline, rechecks=True) is None

    def _next_instant(self) -> datetime:
        """The next tick at which anything is planned, closes or is looked at once a day."""
        instants = [at for at in (planned_next(self.pipeline, rechecks=True),) if at is not None]
        instants += [at for at, _, _ in self._to_close[:1]]
        later = max(min(instants, default=self._now + timedelta(days=1)), self._now + self._plan.tick)
        morning = datetime(self._now.year, self._now.month, self._now.day, LISTINGS_AT_HOUR, tzinfo=UTC)
        morning += timedelta(days=morning <= self._now)
        seconds = self._plan.tick.total_seconds()
        return min(datetime.fromtimestamp(-(-later.timestamp() // seconds) * seconds, UTC), morning)

    def _tick(self, at: datetime, *, is_running: bool) -> None:
        self._now = at
        self._simulator.set_now(at)
        self.diary.ticks += 1
        self._operate()
        if is_running:
            self._sweep()
        closed = self._close()
        self._heal()
        self._recheck()
        if (at.hour, at.minute) == (LISTINGS_AT_HOUR, 0):
            self._infer_listings()
        if closed:
            self.diary.as_of.append(AsOf(at, digest_as_of(self.pipeline, self.instruments, self._facts, at)))

    # --- what an operator does -----------------------------------------------------------------------------------------

    def _operate(self) -> None:
        if self._to_declare is not None and self._now >= self._to_declare:
            self._to_declare = None
            self._declare()
        while self._to_tell and self._now >= self._to_tell[0][0]:
            self._tell_of_halt(self._to_tell.pop(0)[1])

    def _declare(self) -> None:
        """The circular is in the file of overrides; the processes are started again, and the ledger is reconciled."""
        path = self._data / "declared.csv"
        path.write_text(self._facts.overrides, encoding="ascii")
        self._settings = self._settings.model_copy(update={"calendar_overrides": path})
        self.pipeline = self._stack.enter_context(open_pipeline(self._settings))
        self._to_close = [close for close in sorted(self._closes()) if close[0] > self._now]
        for name, members in self._by_calendar(self.instruments).items():
            calendar = self.pipeline.calendars(name)
            for interval in Interval:
                repair(
                    self.pipeline.engine,
                    [instrument.symbol_id for instrument in members],
                    interval,
                    bounds=calendar.bounds(self._facts.first, self._facts.until),
                    expected=calendar.expected_opens(interval, self._facts.first, self._facts.until),
                    now=self._now,
                    known_at=self._now,
                )

    def _tell_of_halt(self, symbol: str) -> None:
        """A feed tells of what was suspended and is traded again."""
        instrument, (starts_at, ends_at) = self._by_symbol[symbol], self._facts.halts[symbol]
        halt = Halt(instrument.symbol_id, instrument.calendar, starts_at, ends_at, "news pending")
        Halts(self.pipeline.engine).load([halt], source="feed", now=self._now)
        apply_halts(self.pipeline, [halt])

    def _infer_listings(self) -> None:
        """What the evidence says of when symbols were listed, once a day."""
        infer_listings(self.pipeline, run_id="listings")
        self._read_log("listings")
        self.instruments = self.pipeline.universe.instruments()
        self._by_symbol = {instrument.symbol: instrument for instrument in self.instruments}

    # --- what schedules and sensors do ---------------------------------------------------------------------------------

    def _sweep(self) -> None:
        """The newest minutes, by the cadence of each tier."""
        jobs = sweep(
            self.instruments,
            self.pipeline.calendars,
            numbers_by_tier(self._settings.bars_every_seconds),
            now=self._now,
            tick=self._now,
            failing=lambda ids, first, last: self.pipeline.ledger.failing(
                ids, Interval.M1, first, last, failures=IN_VAIN, now=self._now
            ),
            tick_seconds=self._plan.tick.total_seconds(),
        )
        stretches = []
        for job in jobs:
            for symbol in job.symbols:
                instrument = self._by_symbol[symbol]
                sessions = self._sessions_between(instrument, job.start, job.end)
                stretches += [Stretch(instrument, session, session) for session in sessions]
        self._run("sweep", {Interval.M1: stretches}, derive=False)

    def _sessions_between(self, instrument: Instrument, start: datetime, end: datetime) -> list[date]:
        """The sessions of the week that [start, end) touches."""
        bounds = self.pipeline.calendars(instrument.calendar).bounds(self._facts.first, self._facts.until)
        inside = (bounds.opens_at < int(end.timestamp())) & (bounds.closes_at > int(start.timestamp()))
        return [date_of(day) for day in bounds.session[inside].tolist()]

    def _closes(self) -> Iterator[tuple[datetime, str, date]]:
        for name in self._by_calendar(self.instruments):
            bounds = self.pipeline.calendars(name).bounds(self._facts.first, self._facts.until)
            for day, closes_at in zip(bounds.session.tolist(), bounds.closes_at.tolist(), strict=True):
                yield datetime.fromtimestamp(closes_at, UTC) + AFTER_CLOSE, name, date_of(day)

    def _close(self) -> bool:
        """Ten minutes after a close: every interval of every symbol of that exchange. Whether it is an instant to be read as of."""
        is_to_be_read = False
        stretches: dict[Interval, list[Stretch]] = defaultdict(list)
        while self._to_close and self._to_close[0][0] <= self._now:
            _, name, session = self._to_close.pop(0)
            for instrument in self._by_calendar(self.instruments)[name]:
                for interval in FETCHED_INTERVALS:
                    stretches[interval].append(Stretch(instrument, session, session))
            is_to_be_read |= name == READ_AFTER
        self._run("close", stretches, derive=True)
        return is_to_be_read

    def _heal(self) -> None:
        """What the gap sensor would ask for: what is due and not the schedules' any more."""
        by_id = {instrument.symbol_id: instrument for instrument in self.instruments}
        gaps = self.pipeline.ledger.due_gaps(
            self._now,
            limit=GAPS_A_TICK,
            settle_seconds=max(self.pipeline.settle_seconds(interval) for interval in FETCHED_INTERVALS),
            intervals=FETCHED_INTERVALS,
            reach_seconds=self.pipeline.reaches(FETCHED_INTERVALS),
        )
        stretches: dict[Interval, list[Stretch]] = defaultdict(list)
        for gap in gaps:
            finished = self._newest_finished(gap.calendar, gap.first, gap.last)
            if finished is not None:
                stretches[gap.interval].append(Stretch(by_id[gap.symbol_id], gap.first, finished))
        self._run("gap", stretches, derive=True)

    def _newest_finished(self, calendar: str, first: date, last: date) -> date | None:
        bounds = self.pipeline.calendars(calendar).bounds(first, last)
        done = bounds.session[bounds.closes_at <= (self._now - LEFT_TO_THE_SCHEDULES).timestamp()]
        return date_of(int(done[-1])) if len(done) else None

    def _recheck(self) -> None:
        """What settles or becomes final is asked for again."""
        by_id = {instrument.symbol_id: instrument for instrument in self.instruments}
        stretches: dict[Interval, list[Stretch]] = defaultdict(list)
        for due in self.pipeline.ledger.due_rechecks(
            self._now,
            limit=GAPS_A_TICK,
            intervals=FETCHED_INTERVALS,
            reach_seconds=self.pipeline.reaches(FETCHED_INTERVALS),
        ):
            stretches[due.interval].append(Stretch(by_id[due.symbol_id], due.first, due.last))
        self._run("recheck", stretches, derive=True, refetch=True)

    def _run(self, cause: str, stretches: Mapping[Interval, Sequence[Stretch]], *, derive: bool, refetch: bool = False) -> None:
        if not any(stretches.values()):
            return
        for interval in FETCHED_INTERVALS:
            asked = stretches.get(interval, ())
            for stretch in asked:
                self.diary.looks[stretch.instrument.symbol_id, interval].append(Look(self._now, stretch.first, stretch.last))
            lane = lane_of(cause) if cause != "sweep" else Lane.LIVE
            for _ in ingest_candles(asked, interval, pipeline=self.pipeline, refetch=refetch, run_id=cause, lane=lane):
                pass
        if derive and stretches.get(Interval.M1):
            for interval in DERIVED_INTERVALS:
                for _ in derive_candles(stretches[Interval.M1], interval, pipeline=self.pipeline, run_id=cause):
                    pass
        self._read_log(cause)

    def _read_log(self, cause: str) -> None:
        """What the simulator saw since: who was asked on whose account, and what went wrong."""
        refused = False
        for entry in self._simulator.requests(since=self._seen):
            self._seen = entry["number"]
            self.diary.requests[cause, entry["provider"]] += 1
            refused |= entry["status"] == 429
            if not entry["actions"]:
                continue
            action = entry["actions"][0]
            named = f"{action} {entry['status']}" if action == "status" else action
            self.diary.faults[named] += 1
            for symbol in (entry["symbol"] or "").split(","):
                self.diary.struck.setdefault((symbol, entry["capability"], self._now), named)
        if refused:
            # Budgets live in real time. By the next tick, virtual minutes later, what a refusal taught is over.
            for provider in PROVIDERS.split(","):
                PostgresBudget(self.pipeline.engine).reset(provider)

    @staticmethod
    def _by_calendar(instruments: Iterable[Instrument]) -> dict[str, list[Instrument]]:
        grouped: dict[str, list[Instrument]] = defaultdict(list)
        for instrument in instruments:
            grouped[instrument.calendar].append(instrument)
        return grouped


def digest_as_of(pipeline: Pipeline, instruments: Sequence[Instrument], facts: Facts, at: datetime) -> str:
    """Every bar of the week as it was known at ``at``, in one number."""
    digest = hashlib.blake2b(digest_size=8)
    start, end = (
        int(facts.begins_at.timestamp()) - 86_400,
        int(datetime.combine(facts.until, datetime.min.time(), UTC).timestamp()) + 2 * 86_400,
    )
    for interval in Interval:
        read = pipeline.reader.read([i.symbol_id for i in instruments], interval, start, end, as_of=at)
        columns = read.columns
        for values in (read.symbol_id, columns.opened_at, columns.open, columns.high, columns.low, columns.close, columns.volume):
            digest.update(values.tobytes())
    return digest.hexdigest()
