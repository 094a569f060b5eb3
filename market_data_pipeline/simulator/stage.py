"""A pipeline on a clock that is moved by hand, whose collectors are played: what they would have stored is written to the ledger.

What is watched is real: Postgres, the calendars, the census, the alert rules, the state machine, the outbox. What is played is who
collects (which bars are there by when), how providers answer, how full queue and disk are, and the channel that messages go to.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from pydantic import SecretStr

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.coverage import LedgerRow
from market_data_pipeline.domain.errors import UndeliverableError
from market_data_pipeline.domain.health import Outcome
from market_data_pipeline.domain.sessions import trading_calendar
from market_data_pipeline.domain.universe import Tier, UniverseEntry
from market_data_pipeline.ingest.watch import DiskUse, watch
from market_data_pipeline.settings import Settings
from market_data_pipeline.storage.bitmaps import bits
from market_data_pipeline.wiring import open_pipeline

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from market_data_pipeline.domain.alert_config import Channel
    from market_data_pipeline.domain.alert_messages import Message
    from market_data_pipeline.domain.alerts import EventKind, Severity
    from market_data_pipeline.domain.candles import Bools, Int64s
    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.ingest.watch import WatchReport

CALENDAR = "XNYS"
PROVIDERS = ("yahoo", "alpaca")
MINUTES = "bars_1m"
# A bar can be asked for 90 s after its end, and then takes a moment to come.
SETTLE, A_MOMENT = 90, 30
T1_CADENCE, SWEPT_AFTER_CLOSE, AFTER_CLOSE = 300, 180, 1800
# What nobody traded is believed to be empty at the third answer without it: after a quarter of an hour, and an hour.
CONFIRMED_AFTER = 4500
HISTORY_SESSIONS = 5
GIB = 2**30

_ALERTS = """
channels:
  ops: log://
  boss: log://
  mail: log://
routes:
  - rules: [NoticesUndelivered]
    channels: [mail]
  - channels: [ops]
    escalate_to: [boss]
"""

_COLLECT = """
update coverage c
   set present = k.present, confirmed_empty = k.empty, last_attempt_at = k.heard_at
  from unnest(%(symbol_ids)s::int4[], %(intervals)s::int4[], %(sessions)s::date[], %(present)s::varbit[], %(empty)s::varbit[],
              %(heard_at)s::timestamptz[]) as k (symbol_id, interval_s, session, present, empty, heard_at)
 where c.symbol_id = k.symbol_id and c.interval_s = k.interval_s and c.session = k.session"""

# The queue lives by the database's clock: a job that has been waiting since some virtual instant is as old there as it is here.
_FORGET_QUEUE = "delete from jobs where source = 'stage' and state = 'queued'"
_QUEUED = "update job_dispatch set queued = %(queued)s where tier = %(tier)s"
_OLDEST = """
insert into jobs (job_id, kind, tier, dedupe_key, payload, source, ready_at)
values ('oldest-' || %(tier)s, 'backfill', %(tier)s, 'oldest-' || %(tier)s, '{}', 'stage',
        clock_timestamp() - make_interval(secs => %(age)s))"""
_DEAD = """
insert into jobs (job_id, kind, tier, dedupe_key, payload, source, state, attempts, reason, ended_at)
select 'dead-' || n, 'backfill', 'T0', 'dead-' || n, '{}', 'stage', 'dead', 5, 'played', clock_timestamp()
  from generate_series(%(first)s, %(last)s) as n"""
_REQUEUED = "delete from jobs where source = 'stage' and state = 'dead'"


class MovedClock:
    """A virtual clock that stands until it is moved."""

    is_virtual = True

    def __init__(self, instant: datetime) -> None:
        self.instant = instant

    def now(self) -> datetime:
        """The instant it was moved to."""
        return self.instant


@dataclass(frozen=True, slots=True)
class Told:
    """A message that a channel took, and when."""

    at: datetime
    channel: str
    kind: EventKind
    severity: Severity
    title: str
    body: str

    @property
    def rule(self) -> str:
        """The rule that it is about; of several at once, nothing."""
        return next((word for word in self.title.split() if word[:1].isupper() and not word.isupper()), "")


@dataclass(frozen=True, slots=True)
class Troupe:
    """Who is on stage: how many symbols of each tier; of it so many are illiquid, and in what share of the minutes these trade."""

    t0: int = 12
    t1: int = 8
    t2: int = 4
    illiquid: Mapping[Tier, tuple[int, float]] = field(default_factory=dict)
    liquid_density: float = 1.0

    def entries(self) -> list[UniverseEntry]:
        """The universe."""
        sizes = {Tier.T0: self.t0, Tier.T1: self.t1, Tier.T2: self.t2}
        return [
            UniverseEntry(f"{tier}{chr(65 + n // 26)}{chr(65 + n % 26)}", "XNYS", tier)
            for tier, size in sizes.items()
            for n in range(size)
        ]

    def density(self, tier: Tier, place: int) -> float:
        """How densely the symbol of this place in its tier trades."""
        illiquid, density = self.illiquid.get(tier, (0, 1.0))
        return density if place < illiquid else self.liquid_density


@dataclass(slots=True)
class Outage:
    """Bars of these symbols (None: of all) do not come from ``since`` until ``until``; then all do. ``heard``: answers do come."""

    symbols: frozenset[str] | None
    since: float
    until: float = float("inf")
    heard: bool = False

    def touches(self, symbol: str) -> bool:
        """Whether it is about ``symbol``."""
        return self.symbols is None or symbol in self.symbols


@dataclass(frozen=True, slots=True, eq=False)
class _Grid:
    """The bars of one interval in one session, and when those of each tier come if all is well."""

    interval: Interval
    session: date
    opens_at: int
    closes_at: int
    ends_at: Int64s
    minutes: Int64s
    """Of each minute the place of the bar that it is part of."""
    comes_at: Mapping[Tier, Int64s]


class Stage:
    """The pipeline, who plays what, and everything that was told."""

    def __init__(self, pipeline: Pipeline, clock: MovedClock, *, troupe: Troupe, seed: int) -> None:
        self.pipeline, self.clock = pipeline, clock
        self.troupe = troupe
        self.told: list[Told] = []
        self.looks: list[WatchReport] = []
        self.is_watched = True
        self.deaf_channels: set[str] = set()
        self.outages: list[Outage] = []
        self.failing: set[str] = set()
        self.disk_free = 0.6
        self.write_seconds = 0.01
        self.failures_a_minute = 0
        self.waiting: dict[Tier, tuple[int, datetime]] = {}
        self._dead = 0
        self._is_queue_clean = True
        self._unserved: Outage | None = None
        self._traded_by = np.random.default_rng(seed)
        self._traded: dict[tuple[str, date], Bools] = {}
        self._opened: set[date] = set()
        self._over: set[date] = set()
        self._grids: dict[date, list[_Grid]] = {}
        self._written: dict[tuple[int, Interval, date], tuple[str, str]] = {}
        entries = troupe.entries()
        pipeline.universe.load(entries, version_tag="stage", source="stage", source_sha256="0" * 64, loaded_by="stage")
        self.instruments = pipeline.universe.instruments()
        places = {entry.symbol: sum(e.tier is entry.tier for e in entries[:n]) for n, entry in enumerate(entries)}
        self._density = {i.symbol: troupe.density(i.tier, places[i.symbol]) for i in self.instruments}

    # --- playing -------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """What happened before: some complete sessions, and what there is of the one that is running."""
        calendar = self.pipeline.calendars(CALENDAR)
        today = self.clock.now().date()
        for day in calendar.sessions(today - timedelta(days=14), today)[-HISTORY_SESSIONS - 1 :]:
            self._open(day)
        self.collect()

    def go_to(self, instant: datetime) -> None:
        """Move the clock there; collect, ask, fill and watch as it is then."""
        self.clock.instant = instant
        day = instant.date()
        if self.pipeline.calendars(CALENDAR).is_session(day):
            self._open(day)
        self._ask_providers()
        self.collect()
        self._write_counters()
        self._fill_queue()
        if self.is_watched:
            self.looks.append(watch(self.pipeline, by="stage", send=self.take, disk=self._disk, stopwatch=lambda: 0.0))

    def stop(self, *symbols: str, heard: bool = False) -> Outage:
        """From now on no bars of ``symbols`` come (none: of any symbol)."""
        outage = Outage(frozenset(symbols) or None, self._now(), heard=heard)
        self.outages.append(outage)
        return outage

    def go_on(self) -> None:
        """Everything comes again, what was missed included."""
        for outage in self.outages:
            outage.until = min(outage.until, self._now())

    def add_dead_letters(self, count: int) -> None:
        """So many jobs die now."""
        with self.pipeline.engine.begin() as connection:
            connection.exec_driver_sql(_DEAD, {"first": self._dead + 1, "last": self._dead + count})
        self._dead += count

    def requeue_dead_letters(self) -> None:
        """Somebody sees to them."""
        with self.pipeline.engine.begin() as connection:
            connection.exec_driver_sql(_REQUEUED)

    def lose_entitlement(self, provider: str) -> None:
        """``provider`` says once that our key may not use its minutes."""
        self.pipeline.health.record(provider, MINUTES, Outcome("entitlement", detail="403 Forbidden"), now=self.clock.now())

    def regain_entitlement(self, provider: str) -> None:
        """Somebody probes it with a new key."""
        self.pipeline.health.admit_by_hand(provider, MINUTES, now=self.clock.now())
        self.pipeline.health.record(provider, MINUTES, Outcome("ok"), now=self.clock.now())

    def hiccup(self, provider: str) -> None:
        """One request fails, with a 500, and so do its retries."""
        self.pipeline.health.record(provider, MINUTES, Outcome("transient", 0.2, attempts=4, detail="500"), now=self.clock.now())

    def upgrade_calendars(self, until: date) -> None:
        """From now on sessions are known until then."""
        self.pipeline = replace(self.pipeline, calendars=partial(trading_calendar, until=until))

    def take(self, channel: Channel, message: Message) -> None:
        """Every channel: it takes the message, unless it is deaf."""
        if channel.name in self.deaf_channels:
            raise UndeliverableError(f"{channel.name}: played: nobody answers")
        self.told.append(Told(self.clock.now(), channel.name, message.kind, message.severity, message.title, message.body))

    # --- what is played ------------------------------------------------------------------------------------------------

    def _now(self) -> float:
        return self.clock.now().timestamp()

    def _disk(self, _home: Path) -> DiskUse:
        return DiskUse(int(self.disk_free * 100 * GIB), 100 * GIB)

    def _ask_providers(self) -> None:
        """One request for minutes, while the market is open: who may be asked is asked, in order; nobody answers, nothing comes."""
        now = self.clock.now()
        if not self.pipeline.calendars(CALENDAR).is_open([int(self._now())])[0]:
            return
        health, served = self.pipeline.health, False
        for provider in PROVIDERS:
            if not health.admit(provider, MINUTES, now=now).is_admitted:
                continue
            if provider in self.failing:
                health.record(provider, MINUTES, Outcome("transient", 1.0, attempts=4, detail="HTTP 503"), now=now)
                continue
            health.record(provider, MINUTES, Outcome("ok", 0.1, expected=1, received=1), now=now)
            served = True
            break
        if not served and self._unserved is None:
            self._unserved = self.stop()
        elif served and self._unserved is not None:
            self._unserved.until = self._now()
            self._unserved = None

    def _write_counters(self) -> None:
        for batch in range(30):
            # One in thirty waits for something, on any machine.
            self.pipeline.counters.observe("write_batch_seconds", {}, self.write_seconds if batch else 2.0)
        if self.failures_a_minute:
            labels = {"provider": "yahoo", "endpoint": "chart", "code": "transient"}
            self.pipeline.counters.add("provider_errors_total", labels, self.failures_a_minute)
        self.pipeline.counters.flush()

    def _fill_queue(self) -> None:
        if not self.waiting and self._is_queue_clean:
            return
        self._is_queue_clean = not self.waiting
        now = self.clock.now()
        with self.pipeline.engine.begin() as connection:
            connection.exec_driver_sql(_FORGET_QUEUE)
            for tier in Tier:
                queued, since = self.waiting.get(tier, (0, now))
                if queued:
                    connection.exec_driver_sql(_OLDEST, {"tier": str(tier), "age": (now - since).total_seconds()})
                connection.exec_driver_sql(_QUEUED, {"tier": str(tier), "queued": queued})

    # --- the ledger ----------------------------------------------------------------------------------------------------

    def _open(self, day: date) -> None:
        if day in self._opened or not self.pipeline.calendars(CALENDAR).is_session(day):
            return
        self._opened.add(day)
        self._grids[day] = [self._grid(interval, day) for interval in Interval]
        nothing = [
            LedgerRow(
                i.symbol_id,
                grid.interval,
                day,
                grid.opens_at,
                grid.closes_at,
                present=np.zeros(len(grid.ends_at), bool),
                confirmed_empty=np.zeros(len(grid.ends_at), bool),
                known_at=self.clock.now(),
            )
            for i in self.instruments
            for grid in self._grids[day]
        ]
        self.pipeline.ledger.open_sessions(nothing)

    def _grid(self, interval: Interval, day: date) -> _Grid:
        calendar = self.pipeline.calendars(CALENDAR)
        bounds = calendar.bounds(day, day)
        opens_at, closes_at = int(bounds.opens_at[0]), int(bounds.closes_at[0])
        ends_at = calendar.expected_opens(interval, day, day).ends_at
        minute_ends = calendar.expected_opens(Interval.M1, day, day).ends_at
        at_close = closes_at + AFTER_CLOSE
        asked = ends_at + SETTLE
        is_live = Interval.M1 in {interval, interval.source}
        live = {Tier.T0: asked + A_MOMENT, Tier.T1: -(-asked // T1_CADENCE) * T1_CADENCE + A_MOMENT}
        comes_at = {
            tier: np.where(live[tier] <= closes_at + SWEPT_AFTER_CLOSE, live[tier], at_close)
            if is_live and tier in live
            else np.full(len(ends_at), at_close)
            for tier in Tier
        }
        minutes = np.searchsorted(ends_at, minute_ends)
        return _Grid(interval, day, opens_at, closes_at, ends_at, minutes, comes_at)

    def _minutes_traded(self, symbol: str, grid: _Grid) -> Bools:
        """Which minutes of the session the symbol trades in, if it trades as it does."""
        key = symbol, grid.session
        if key not in self._traded:
            self._traded[key] = self._traded_by.random(len(grid.minutes)) < self._density[symbol]
        return self._traded[key]

    def collect(self) -> None:
        """Write what has come by now."""
        now = self._now()
        rows: list[tuple[int, int, date, str, str, datetime]] = []
        for day, grids in self._grids.items():
            if now < grids[0].opens_at or day in self._over:
                continue
            if self._will_not_change(grids[0], now):
                self._over.add(day)
            for grid in grids:
                for instrument in self.instruments:
                    rows += self._row(instrument, grid, now)
        if not rows:
            return
        names = ("symbol_ids", "intervals", "sessions", "present", "empty", "heard_at")
        with self.pipeline.engine.begin() as connection:
            connection.exec_driver_sql(_COLLECT, dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))

    def _will_not_change(self, grid: _Grid, now: float) -> bool:
        ends = all(outage.until + A_MOMENT < now or outage.since > grid.closes_at + AFTER_CLOSE for outage in self.outages)
        return now > grid.closes_at + AFTER_CLOSE + CONFIRMED_AFTER + A_MOMENT and ends

    def _row(self, instrument: Instrument, grid: _Grid, now: float) -> Iterator[tuple[int, int, date, str, str, datetime]]:
        comes_at = grid.comes_at[instrument.tier]
        heard_at = now
        for outage in self.outages:
            if outage.touches(instrument.symbol):
                comes_at = np.where((comes_at >= outage.since) & (comes_at < outage.until), outage.until + A_MOMENT, comes_at)
                if outage.since <= now < outage.until and not outage.heard:
                    heard_at = min(heard_at, outage.since)
        traded = self._minutes_traded(instrument.symbol, grid)
        if not traded.all():
            traded = np.bincount(grid.minutes, weights=traded, minlength=len(grid.ends_at)) > 0
        else:
            traded = np.ones(len(grid.ends_at), bool)
        present = traded & (comes_at <= now)
        empty = ~traded & (comes_at + CONFIRMED_AFTER <= now)
        key = instrument.symbol_id, grid.interval, grid.session
        state = bits(present), bits(empty)
        is_running = now <= grid.closes_at + SWEPT_AFTER_CLOSE
        # When a provider was last heard is asked of the minutes, also for what is derived from them.
        if self._written.get(key) == state and not (is_running and grid.interval is Interval.M1):
            return
        self._written[key] = state
        if instrument.tier is Tier.T1 and is_running:
            heard_at = heard_at // T1_CADENCE * T1_CADENCE
        yield instrument.symbol_id, grid.interval.seconds, grid.session, *state, datetime.fromtimestamp(heard_at, UTC)


@contextmanager
def stage(
    database_url: str, home: Path, *, at: datetime, troupe: Troupe | None = None, seed: int = 7, known_until: date | None = None
) -> Iterator[Stage]:
    """A stage on a fresh, migrated database. ``known_until``: how far the calendars go; default: the end of the year after."""
    alerts = home / "alerts.yaml"
    alerts.write_text(_ALERTS, encoding="utf-8")
    settings = Settings(
        home=home,
        database_url=SecretStr(database_url),
        policy_bars_1m=",".join(PROVIDERS),
        policy_eod=",".join(PROVIDERS),
        policy_bars_1h="yahoo",
        alpaca_key_id=SecretStr("played"),
        alpaca_secret_key=SecretStr("played"),
        alpaca_feed="sip",
        clock=at.isoformat(),
        alerts_file=alerts,
    )
    clock = MovedClock(at)
    with open_pipeline(settings) as opened:
        calendars = partial(trading_calendar, until=known_until or date(at.year + 1, 12, 31))
        pipeline = replace(opened, clock=clock, calendars=calendars)
        played = Stage(pipeline, clock, troupe=troupe or Troupe(), seed=seed)
        played.begin()
        yield played


def ticks(first: datetime, last: datetime, step: timedelta) -> Sequence[datetime]:
    """From ``first`` to ``last``, both included."""
    return [first + n * step for n in range((last - first) // step + 1)]
