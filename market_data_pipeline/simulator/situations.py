"""The table of situations: what goes wrong, who must be told of it by when, that it is told once, and that nothing else is told.

Each is played on a ``stage`` of its own, on the virtual clock, minute by minute; messages are counted where a channel takes them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from market_data_pipeline.domain.alerts import EventKind
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.ingest.alerting import acknowledge, open_alerts, silence
from market_data_pipeline.simulator.stage import CALENDAR, Stage, Troupe, stage, ticks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from market_data_pipeline.simulator.stage import Told

    Act = Callable[[Stage], object]

NEW_YORK = ZoneInfo("America/New_York")
MINUTE = timedelta(minutes=1)
# A Wednesday on which nothing happens, and the half day after Thanksgiving.
PLAIN_DAY, HALF_DAY = "2024-11-20", "2024-11-29"


def local(text: str) -> datetime:
    """``2024-11-20 10:00`` of New York as an instant."""
    return datetime.fromisoformat(text).replace(tzinfo=NEW_YORK).astimezone(UTC)


@dataclass(frozen=True, slots=True)
class Expected:
    """An alert that must be told, once: within so many minutes of the trouble, and, over, within so many of the repair.

    ``over_within`` None: it is not over when the play ends. ``also``: what else is said of it, in order, such as an escalation.
    """

    rule: str
    within: int
    over_within: int | None
    also: tuple[EventKind, ...] = ()


@dataclass(frozen=True, slots=True)
class Situation:
    """One play. ``acts``: what happens when, New York's time. ``trouble`` and ``repair``: from when minutes are counted."""

    name: str
    what: str
    first: str
    last: str
    acts: Sequence[tuple[str, Act]] = ()
    expected: tuple[Expected, ...] = ()
    trouble: str = ""
    repair: str = ""
    every: timedelta = MINUTE
    troupe: Troupe = field(default_factory=Troupe)
    known_until: date | None = None


@dataclass(frozen=True, slots=True)
class Heard:
    """What was told of one expected alert: minutes after the trouble, and after the repair; None: never."""

    expected: Expected
    told_after: float | None
    over_after: float | None
    kinds: tuple[EventKind, ...]

    @property
    def said(self) -> str:
        """The rule, and what else was said than that it began and was over."""
        more = [str(kind) for kind in self.kinds if kind not in {EventKind.FIRING, EventKind.RESOLVED}]
        return ", ".join([self.expected.rule, *more])

    @property
    def passed(self) -> bool:
        """Once, in time, and over in time."""
        wanted = (EventKind.FIRING, *self.expected.also, *([] if self.expected.over_within is None else [EventKind.RESOLVED]))
        in_time = self.told_after is not None and 0 <= self.told_after <= self.expected.within
        most = self.expected.over_within
        over_in_time = most is None or (self.over_after is not None and 0 <= self.over_after <= most)
        return self.kinds == wanted and in_time and over_in_time


@dataclass(frozen=True, slots=True)
class Played:
    """How one situation went. ``unexpected``: every message about anything else. ``blind``: looks at something that failed."""

    situation: Situation
    heard: tuple[Heard, ...]
    unexpected: tuple[Told, ...]
    told: tuple[Told, ...]
    looks: int

    @property
    def passed(self) -> bool:
        """All that was expected, and nothing else."""
        return all(one.passed for one in self.heard) and not self.unexpected

    @property
    def row(self) -> str:
        """Its line of the table in docs/situations.md."""
        told = "<br>".join(one.said for one in self.heard) or "nobody is told anything"
        after = "<br>".join(_minutes(one.told_after, one.expected.within) for one in self.heard) or "-"
        over = "<br>".join(_minutes(one.over_after, one.expected.over_within) for one in self.heard) or "-"
        others = len(self.unexpected)
        return f"| {self.situation.name} | {self.situation.what} | {told} | {after} | {over} | {others} |"


COLUMNS = ("situation", "what happens", "told, once", "after (at most), minutes", "over after (at most), minutes", "other messages")


def table(played: Sequence[Played]) -> str:
    """The table in docs/situations.md."""
    return "\n".join(["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS), *(one.row for one in played)])


def _minutes(measured: float | None, most: int | None) -> str:
    return "never" if measured is None else f"{measured:.0f} ({most})"


def play(situation: Situation, database_url: str, home: Path) -> Played:
    """Play it on a fresh, migrated database."""
    first = local(situation.first)
    acts = [(local(when), act) for when, act in situation.acts]
    with stage(database_url, home, at=first, troupe=situation.troupe, known_until=situation.known_until) as played:
        for instant in ticks(first, local(situation.last), situation.every):
            while acts and acts[0][0] <= instant:
                # What happens between two looks happened by then, at its own time.
                played.clock.instant = acts[0][0]
                acts.pop(0)[1](played)
            played.go_to(instant)
        return _judged(situation, played)


def _judged(situation: Situation, played: Stage) -> Played:
    rules = {expected.rule for expected in situation.expected}
    return Played(
        situation,
        tuple(_heard(expected, situation, [t for t in played.told if t.rule == expected.rule]) for expected in situation.expected),
        tuple(told for told in played.told if told.rule not in rules),
        tuple(played.told),
        len(played.looks),
    )


def _heard(expected: Expected, situation: Situation, told: Sequence[Told]) -> Heard:
    began = next((one.at for one in told if one.kind is EventKind.FIRING), None)
    ended = next((one.at for one in told if one.kind is EventKind.RESOLVED), None)
    return Heard(
        expected,
        None if began is None else (began - local(situation.trouble)) / MINUTE,
        None if ended is None or not situation.repair else (ended - local(situation.repair)) / MINUTE,
        # One message to several channels is told once.
        tuple(kind for _, kind in dict.fromkeys((one.at, one.kind) for one in told)),
    )


# --- who does what ---------------------------------------------------------------------------------------------------------


def _set(name: str, value: object) -> Act:
    return lambda stage: setattr(stage, name, value)


def _stop(*symbols: str, heard: bool = False) -> Act:
    return lambda stage: stage.stop(*symbols, heard=heard)


def _go_on(stage: Stage) -> None:
    stage.go_on()


def _fill(jobs: Mapping[Tier, int]) -> Act:
    return lambda stage: stage.waiting.update({tier: (queued, stage.clock.now()) for tier, queued in jobs.items()})


def _work_off(stage: Stage) -> None:
    stage.waiting = {}


def _flow(jobs: int) -> Act:
    """A deep queue that moves: its oldest job is always young."""
    return lambda stage: stage.waiting.update({Tier.T2: (jobs, stage.clock.now())})


def _day(text: str) -> Callable[[str], str]:
    return lambda time: f"{text} {time}"


def _stale(name: str, what: str, day: str, *, symbol: str = "T0AA", heard: bool = False) -> Situation:
    at = _day(day)
    return Situation(
        name,
        what,
        at("09:35"),
        at("10:30"),
        [(at("10:00"), _stop(symbol, heard=heard)), (at("10:15"), _go_on)],
        (Expected("SymbolStale", 8, 5),),
        at("10:00"),
        at("10:15"),
    )


def _flapping(stage: Stage) -> None:
    """It fails where it answered, and answers where it failed."""
    stage.failing = set() if stage.failing else {"yahoo"}


def _fail_twice(stage: Stage) -> None:
    """Eight attempts in a row: the breaker opens, and the next request is its trial."""
    stage.hiccup("yahoo")
    stage.hiccup("yahoo")


def _acknowledge(stage: Stage) -> None:
    for alert in open_alerts(stage.pipeline):
        acknowledge(stage.pipeline, alert.alert_id or 0, actor="stage", now=stage.clock.now())


def _silence(stage: Stage) -> None:
    silence(
        stage.pipeline,
        "SymbolStale",
        {"tier": "T0"},
        lasting=timedelta(hours=2),
        reason="played",
        actor="stage",
        now=stage.clock.now(),
    )


_WED = _day(PLAIN_DAY)
_HALF = _day(HALF_DAY)

FRESHNESS: tuple[Situation, ...] = (
    _stale("stale symbol", "No bar of one T0 symbol comes from 10:00 to 10:15; it is asked for, and answers fail.", PLAIN_DAY),
    _stale("symbol late by 3 bars", "A provider answers for one T0 symbol, without its newest bars.", PLAIN_DAY, heard=True),
    _stale("DST Monday in spring", "The same on the Monday after clocks went forward.", "2024-03-11"),
    _stale("DST Monday in autumn", "The same on the Monday after they went back.", "2024-11-04"),
    Situation(
        "quiet DST Monday", "Nothing happens on the Monday after clocks went forward.", "2024-03-11 08:30", "2024-03-11 10:30"
    ),
    Situation(
        "all symbols late",
        "Bars of no symbol come from 11:00 to 11:30, though everybody answers. Somebody acknowledges it.",
        _WED("10:45"),
        _WED("12:00"),
        [(_WED("11:00"), _stop(heard=True)), (_WED("11:15"), _acknowledge), (_WED("11:30"), _go_on)],
        (Expected("SLOGapViolationHigh", 12, 6),),
        _WED("11:00"),
        _WED("11:30"),
    ),
    Situation(
        "nothing is collected",
        "The market opens and nobody asks for anything until 10:00.",
        _WED("09:25"),
        _WED("10:40"),
        [(_WED("09:29"), _stop()), (_WED("09:45"), _acknowledge), (_WED("10:00"), _go_on)],
        (Expected("SLOGapViolationHigh", 12, 6),),
        _WED("09:30"),
        _WED("10:00"),
    ),
    Situation(
        "half day, stale since 12:30",
        "The market closes at 13:00, and a T0 symbol has been late since 12:30, repaired at 13:20.",
        _HALF("12:15"),
        _HALF("13:45"),
        [(_HALF("12:30"), _stop("T0AA")), (_HALF("13:20"), _go_on)],
        (Expected("SymbolStale", 8, 6),),
        _HALF("12:30"),
        _HALF("13:20"),
    ),
    Situation("half day, complete", "The same half day, and all is there.", _HALF("12:15"), _HALF("15:30"), every=5 * MINUTE),
    Situation(
        "a Sunday",
        "Nobody asks for anything from Saturday morning until Monday's open.",
        "2024-11-16 00:00",
        "2024-11-18 09:00",
        [("2024-11-16 00:00", _stop()), ("2024-11-18 09:00", _go_on)],
        every=timedelta(hours=1),
    ),
    Situation(
        "Thanksgiving",
        "Nobody asks for anything on the holiday.",
        "2024-11-28 00:00",
        "2024-11-29 09:00",
        [("2024-11-28 00:00", _stop()), ("2024-11-29 09:00", _go_on)],
        every=timedelta(minutes=30),
    ),
)

DEPENDENCIES: tuple[Situation, ...] = (
    Situation(
        "provider down, another serves",
        "yahoo answers 503 from 11:00 to 11:30; alpaca is asked instead.",
        _WED("10:50"),
        _WED("12:00"),
        [(_WED("11:00"), _set("failing", {"yahoo"})), (_WED("11:30"), _set("failing", set()))],
        (Expected("ProviderCircuitBreakerOpen", 6, 20),),
        _WED("11:00"),
        _WED("11:30"),
    ),
    Situation(
        "all providers down",
        "yahoo and alpaca answer 503 from 11:00 to 11:40: no bar of any symbol comes.",
        _WED("10:50"),
        _WED("12:15"),
        [
            (_WED("11:00"), _set("failing", {"yahoo", "alpaca"})),
            (_WED("11:15"), _acknowledge),
            (_WED("11:40"), _set("failing", set())),
        ],
        (Expected("ProviderCircuitBreakerOpen", 6, 20),),
        _WED("11:00"),
        _WED("11:40"),
    ),
    Situation(
        "breaker flaps",
        "yahoo fails for three minutes, answers for three, and so on for half an hour.",
        _WED("10:50"),
        _WED("12:00"),
        [(_WED(f"11:{minute:02}"), _flapping) for minute in range(0, 36, 3)],
        (Expected("ProviderCircuitBreakerOpen", 18, 25),),
        _WED("11:00"),
        _WED("11:33"),
    ),
    Situation(
        "errors without end",
        "From 11:00 to 11:20 yahoo fails 600 times a minute, and answers in between: its breaker stays closed.",
        _WED("10:45"),
        _WED("11:50"),
        [(_WED("11:00"), _set("failures_a_minute", 600)), (_WED("11:20"), _set("failures_a_minute", 0))],
        (Expected("ProviderErrorSpike", 8, 15),),
        _WED("11:00"),
        _WED("11:20"),
    ),
    Situation(
        "entitlement lost",
        "yahoo answers 403 once at 11:00; somebody probes it with a new key at 11:30.",
        _WED("10:50"),
        _WED("11:45"),
        [(_WED("11:00"), lambda s: s.lose_entitlement("yahoo")), (_WED("11:30"), lambda s: s.regain_entitlement("yahoo"))],
        (Expected("ProviderEntitlementLost", 2, 3),),
        _WED("11:00"),
        _WED("11:30"),
    ),
    Situation(
        "queue deep",
        "12,000 jobs of T2 are queued at 11:00 and worked off in turn, until 11:40.",
        _WED("10:50"),
        _WED("12:00"),
        [
            *((_WED(f"11:{minute:02}"), _flow(12_000)) for minute in range(0, 40, 5)),
            (_WED("11:40"), _work_off),
        ],
        (Expected("BackfillQueueDepthHigh", 18, 7),),
        _WED("11:00"),
        _WED("11:40"),
    ),
    Situation(
        "nobody works",
        "From 11:00 on queued jobs of every tier are not given out, until 11:40.",
        _WED("10:50"),
        _WED("12:00"),
        [(_WED("11:00"), _fill({Tier.T0: 40, Tier.T1: 200, Tier.T2: 900})), (_WED("11:40"), _work_off)],
        (Expected("BackfillOldestTooOld", 19, 4),),
        _WED("11:00"),
        _WED("11:40"),
    ),
    Situation(
        "dead letters grow",
        "Twenty jobs die at 11:00; somebody requeues them at 11:30.",
        _WED("09:50"),
        _WED("11:50"),
        [(_WED("11:00"), lambda s: s.add_dead_letters(20)), (_WED("11:30"), lambda s: s.requeue_dead_letters())],
        (Expected("DeadLettersGrowing", 2, 12),),
        _WED("11:00"),
        _WED("11:30"),
        every=timedelta(minutes=2),
    ),
    Situation(
        "database slow",
        "From 11:00 to 11:20 every batch takes three seconds to be committed.",
        _WED("10:50"),
        _WED("11:45"),
        [(_WED("11:00"), _set("write_seconds", 3.0)), (_WED("11:20"), _set("write_seconds", 0.01))],
        (Expected("DBWriteLatencyHigh", 6, 13),),
        _WED("11:00"),
        _WED("11:20"),
    ),
    Situation(
        "disk fills",
        "At 11:00 7 % of the disk are free, at 11:20 10.5 %, at 11:30 half.",
        _WED("10:50"),
        _WED("11:45"),
        [
            (_WED("11:00"), _set("disk_free", 0.07)),
            (_WED("11:20"), _set("disk_free", 0.105)),
            (_WED("11:30"), _set("disk_free", 0.5)),
        ],
        (Expected("DiskFilling", 3, 7),),
        _WED("11:00"),
        _WED("11:30"),
    ),
    Situation(
        "calendar horizon",
        "Midnight UTC of a Saturday: the calendar ends in 59 days. Somebody upgrades it on Sunday.",
        "2024-11-01 18:00",
        "2024-11-03 15:00",
        [("2024-11-03 12:00", lambda s: s.upgrade_calendars(date(2025, 12, 31)))],
        (Expected("CalendarHorizonNear", 30, 60),),
        "2024-11-01 20:00",
        "2024-11-03 12:00",
        every=timedelta(minutes=30),
        known_until=date(2024, 12, 31),
    ),
)

MESSAGES: tuple[Situation, ...] = (
    Situation(
        "channel down and back",
        "The channel takes nothing from 09:55 to 10:20, while a symbol is late from 10:00 to 10:10. Both messages come, in order.",
        _WED("09:45"),
        _WED("10:35"),
        [
            (_WED("09:55"), _set("deaf_channels", {"ops"})),
            (_WED("10:00"), _stop("T0AA")),
            (_WED("10:10"), _go_on),
            (_WED("10:20"), _set("deaf_channels", set())),
        ],
        (Expected("SymbolStale", 22, 12),),
        _WED("10:00"),
        _WED("10:10"),
    ),
    Situation(
        "channel down for long",
        "The same channel is down until 10:50 while a symbol is late until 10:45; another channel is told so.",
        _WED("09:45"),
        _WED("11:10"),
        [
            (_WED("09:55"), _set("deaf_channels", {"ops"})),
            (_WED("10:00"), _stop("T0AA")),
            (_WED("10:45"), _go_on),
            (_WED("10:50"), _set("deaf_channels", set())),
        ],
        (Expected("SymbolStale", 65, 20), Expected("NoticesUndelivered", 22, 20)),
        _WED("10:00"),
        _WED("10:45"),
    ),
    Situation(
        "silenced",
        "Somebody silences SymbolStale for two hours before a symbol is late from 10:00 to 10:15.",
        _WED("09:45"),
        _WED("10:45"),
        [
            (_WED("09:50"), _silence),
            (_WED("10:00"), _stop("T0AA")),
            (_WED("10:15"), _go_on),
        ],
    ),
    Situation(
        "nobody acknowledges",
        "Bars of no symbol come from 11:00 to 11:40, and nobody acknowledges it: after a quarter of an hour others are told.",
        _WED("10:45"),
        _WED("12:00"),
        [(_WED("11:00"), _stop(heard=True)), (_WED("11:40"), _go_on)],
        (Expected("SLOGapViolationHigh", 12, 6, also=(EventKind.ESCALATED,)),),
        _WED("11:00"),
        _WED("11:40"),
    ),
    Situation(
        "watcher down for an hour",
        "Nobody watches from 10:04 to 11:05. A symbol is late for a moment as the watcher stops, and another as it returns.",
        _WED("09:45"),
        _WED("11:30"),
        [
            (_WED("10:00"), _stop("T0AA")),
            (_WED("10:04"), _go_on),
            (_WED("10:04"), _set("is_watched", False)),
            (_WED("11:00"), _stop("T0AB")),
            (_WED("11:05"), _set("is_watched", True)),
            (_WED("11:05"), _go_on),
        ],
    ),
)

SITUATIONS = (*FRESHNESS, *DEPENDENCIES, *MESSAGES)


# --- the quiet month -------------------------------------------------------------------------------------------------------

# Of T0 and the liquid of the others two minutes in a thousand are not traded; many of the lower tiers trade a third, or a seventh.
QUIET_TROUPE = Troupe(t0=12, t1=16, t2=12, illiquid={Tier.T1: (6, 0.35), Tier.T2: (10, 0.15)}, liquid_density=0.998)
# November 2024: clocks go back on the 3rd, Thanksgiving is the 28th, the 29th is a half day.
QUIET_WEEKS = tuple(
    (date(2024, 11, first), date(2024, 11, last)) for first, last in ((1, 6), (7, 12), (13, 18), (19, 24), (25, 30))
)
_OFTEN, _IN_SESSION, _BEFORE, _AFTER = timedelta(minutes=5), timedelta(minutes=10), timedelta(minutes=10), timedelta(minutes=150)


@dataclass(frozen=True, slots=True)
class Quiet:
    """Some days on which nothing happened that anybody has to hear of. ``noise``: what happened all the same, counted by kind."""

    first: date
    last: date
    looks: int
    told: tuple[Told, ...]
    noise: Mapping[str, int]


def play_quiet(first: date, last: date, database_url: str, home: Path, *, seed: int = 7) -> Quiet:
    """The days from ``first`` to ``last``, with ordinary noise.

    Somebody looks every ten minutes in session, every five around open and close, hourly outside.
    Noise: fetches that come a minute late, single failed requests, a breaker that opens once and closes at its first trial, minutes
    that nobody traded, an evening's backfill in the queue, a dead letter a day, one batch in thirty that takes two seconds, a disk
    that fills by a fifth of it in a month.
    """
    noise: Counter[str] = Counter()
    with stage(database_url, home, at=local(f"{first} 00:00"), troupe=QUIET_TROUPE, seed=seed) as played:
        random = Random(seed)  # noqa: S311 - a play
        day = first
        while day <= last:
            for instant, act in _quiet_day(played, day, random, noise):
                if act is None:
                    played.go_to(instant)
                else:
                    played.clock.instant = instant
                    act(played)
            played.disk_free -= 0.2 / 30
            day += timedelta(days=1)
        return Quiet(first, last, len(played.looks), tuple(played.told), dict(noise))


def _quiet_day(stage: Stage, day: date, random: Random, noise: Counter[str]) -> list[tuple[datetime, Act | None]]:
    """When somebody looks (None), and what happens in between, in order."""
    midnight = local(f"{day} 00:00")
    calendar = stage.pipeline.calendars(CALENDAR)
    hourly = ticks(midnight, midnight + timedelta(hours=23), timedelta(hours=1))
    if not calendar.is_session(day):
        return [(instant, None) for instant in hourly]
    bounds = calendar.bounds(day, day)
    opens, closes = (datetime.fromtimestamp(int(at[0]), UTC) for at in (bounds.opens_at, bounds.closes_at))
    hour = timedelta(hours=1)
    edges = (*ticks(opens - _BEFORE, opens + hour, _OFTEN), *ticks(closes - hour, closes + hour, _OFTEN))
    looks = sorted({*hourly, *edges, *ticks(opens - _BEFORE, closes + _AFTER, _IN_SESSION)})
    in_session = [instant for instant in looks if opens < instant < closes]
    acts: list[tuple[datetime, Act]] = []

    def happens(kind: str, at: datetime, act: Act) -> None:
        noise[kind] += 1
        acts.append((at, act))

    for late in random.sample(in_session, 3):
        # Just before somebody looks, so that he sees it.
        happens("late by a minute", late - timedelta(seconds=30), _stop())
        acts.append((late + timedelta(seconds=30), _go_on))
    for failed in random.sample(in_session, 4):
        happens("failed request", failed - timedelta(seconds=70), lambda s: s.hiccup("yahoo"))
    if random.random() < 0.4:
        opened = random.choice(in_session)
        happens("breaker opened once", opened - timedelta(seconds=20), _fail_twice)
    happens("dead letter", random.choice(looks), lambda s: s.add_dead_letters(1))
    happens("evening's backfill", closes + timedelta(minutes=40), _fill({Tier.T2: 800}))
    acts.append((closes + timedelta(minutes=70), _work_off))
    return sorted([*((instant, None) for instant in looks), *acts], key=lambda one: one[0])
