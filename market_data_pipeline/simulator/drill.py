"""The fault drill: the same backfill with and without faults, into databases of their own; the warehouses must come out equal.

Real parts throughout: a simulator process, HTTP, the production adapters and use-cases, a Postgres that is gone afterwards.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from market_data_pipeline.domain.candles import DERIVED_INTERVALS, FETCHED_INTERVALS, Interval
from market_data_pipeline.domain.coverage import Verdict
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.ingest.candles import ingest_candles
from market_data_pipeline.ingest.coverage import coverage_report
from market_data_pipeline.ingest.derive import derive_candles
from market_data_pipeline.ingest.report import Stretch
from market_data_pipeline.simulator.client import running_simulator
from market_data_pipeline.simulator.ground import counted, loaded, planned_next, proving_ground
from market_data_pipeline.simulator.sample import write_sample
from market_data_pipeline.storage.budgets import PostgresBudget
from market_data_pipeline.wiring import open_pipeline

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.settings import Settings
    from market_data_pipeline.simulator.client import RunningSimulator
    from market_data_pipeline.simulator.ground import ProvingGround

# Thanksgiving, the half day after it and a Monday: short enough to run forty times, with the calendar's tricks in it.
FIRST, LAST = date(2024, 11, 26), date(2024, 12, 3)
SATURDAY = datetime(2024, 12, 7, 12, tzinfo=UTC)
SYMBOLS = 24
SEED = 7
# Every symbol of the sample but the one that trades round the clock.
NOT_CRYPTO = "[!Z]*"
VENDORS = ("yahoo", "alpaca", "massive")
# The simulated providers count, and so do our budgets: no answer of the drill may be a refusal that nobody ordered.
LIMITS = "yahoo=60/s;alpaca=60/s;massive=60/s"
ROUNDS = 250
_HISTORY = timedelta(days=20)
_A_LOOK = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Situation:
    """Something that goes wrong: ``rules`` are those of a fault file; ``victim`` is first in every policy that it serves.

    ``allowance``: how many times the requests of a fault-free backfill it may cost, and one trial a cool-down.
    """

    name: str
    victim: str
    rules: Sequence[Mapping[str, Any]]
    allowance: float = 1.3


@dataclass(frozen=True, slots=True)
class Warehouse:
    """What a backfill left behind, provenance aside. ``bars``: (interval_s, symbol, opened_at, prices as float32, volume)."""

    bars: frozenset[tuple[Any, ...]]
    ledger: frozenset[tuple[Any, ...]]

    @property
    def digest(self) -> str:
        """The same for equal warehouses, whatever order they were filled in."""
        text = "\n".join(map(repr, (*sorted(self.bars), *sorted(self.ledger))))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def differences(self, other: Warehouse) -> list[str]:
        """What one has and the other has not, at most ten lines."""
        lines = []
        for what, ours, theirs in (("bar", self.bars, other.bars), ("ledger", self.ledger, other.ledger)):
            lines += [f"only here: {what} {row}" for row in sorted(ours - theirs)]
            lines += [f"only without faults: {what} {row}" for row in sorted(theirs - ours)]
        return lines[:10]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one backfill went. ``waited``: virtual time from the first request to the last that was needed.

    ``requests`` by provider, as the simulator counted them; ``over_limit`` those that it refused because a limit was exceeded.
    ``outcomes`` counts the rows of ``fetches`` by class, ``events`` those of ``provider_events`` by kind.
    """

    situation: Situation
    seed: int
    warehouse: Warehouse
    missing_at_first: int
    missing: int
    rounds: int
    waited: timedelta
    requests: Mapping[str, int]
    over_limit: int
    outcomes: Mapping[str, int]
    events: Mapping[str, int]
    seconds: float
    refused: int
    trials: int
    struck: int
    """Requests that a rule befell."""

    @property
    def sent(self) -> int:
        """All requests."""
        return sum(self.requests.values())


@dataclass(frozen=True, slots=True)
class Verdicts:
    """A faulty backfill beside the fault-free one of the same policies.

    ``others_sent``: what a fault-free backfill costs those who step in: Alpaca answers for 24 symbols in one request, they do not.
    """

    faulty: Outcome
    fault_free: Outcome
    others_sent: int = 0

    @classmethod
    def of(cls, faulty: Outcome, fault_free: Outcome, *, others_sent: int = 0) -> Verdicts:
        """Both beside each other; of equal warehouses only one is kept, for each is some twenty megabytes."""
        if faulty.warehouse == fault_free.warehouse:
            faulty = replace(faulty, warehouse=fault_free.warehouse)
        return cls(faulty, fault_free, others_sent)

    @property
    def is_equal(self) -> bool:
        """Every bar and every verdict of the ledger is the same."""
        return self.faulty.warehouse == self.fault_free.warehouse

    @property
    def base(self) -> int:
        """The requests of a fault-free backfill."""
        return max(self.fault_free.sent, self.others_sent)

    @property
    def times(self) -> float:
        """Requests over those of the fault-free backfill."""
        return self.faulty.sent / self.base

    @property
    def is_frugal(self) -> bool:
        """Within its allowance (1.3 times the fault-free count), and one trial per cool-down."""
        return self.faulty.sent <= self.faulty.situation.allowance * self.base + self.faulty.trials

    @property
    def passed(self) -> bool:
        """Equal, frugal, and no limit exceeded."""
        return self.is_equal and self.is_frugal and not self.faulty.over_limit and not self.faulty.missing


@contextmanager
def ground() -> Iterator[Ground]:
    """Sample data and a Postgres of their own, both gone at the end."""
    with proving_ground("drill") as place:
        data = place.home / "data"
        write_sample(data, seed=SEED, symbols=SYMBOLS, start=FIRST, end=LAST)
        yield Ground(place, data)


@dataclass(frozen=True, slots=True)
class Ground:
    """Where drills are held."""

    place: ProvingGround
    data: Path

    def hold(self, situation: Situation, *, seed: int = SEED) -> Outcome:
        """One backfill of every interval in this situation, healed as far as it goes by the ledger's own plan."""
        started = time.monotonic()
        with (
            self.place.database() as url,
            running_simulator(data=self.data, now=SATURDAY, seed=seed, faults=list(situation.rules), limits=LIMITS) as simulator,
            open_pipeline(self._settings(url, simulator, situation.victim)) as pipeline,
        ):
            instruments = loaded(pipeline, self.data / "universe.csv", tag="drill")
            _backfill(pipeline, {interval: [Stretch(i, FIRST, LAST) for i in instruments] for interval in FETCHED_INTERVALS})
            missing_at_first = missing = _missing(pipeline, instruments)
            rounds = 1
            while missing and rounds < ROUNDS and _wait_for_the_next_attempt(pipeline, simulator):
                _backfill(pipeline, _due(pipeline, instruments))
                missing = _missing(pipeline, instruments)
                rounds += 1
            pipeline.health.flush()
            log = simulator.requests()
            return Outcome(
                situation=situation,
                seed=seed,
                warehouse=_warehouse(pipeline),
                missing_at_first=missing_at_first,
                missing=missing,
                rounds=rounds,
                waited=simulator.now() - SATURDAY,
                requests=Counter(entry["provider"] for entry in log),
                struck=sum(bool(entry["actions"]) for entry in log),
                over_limit=simulator.over_limit(),
                outcomes=counted(pipeline, "select outcome, count(*) from fetches group by 1"),
                events=counted(pipeline, "select kind, count(*) from provider_events group by 1"),
                refused=counted(pipeline, "select 'rows', count(*) from refused_bars")["rows"],
                trials=counted(pipeline, _TRIALS)["all"],
                seconds=time.monotonic() - started,
            )

    def _settings(self, url: str, simulator: RunningSimulator, victim: str) -> Settings:
        order = ",".join([victim, *(vendor for vendor in VENDORS if vendor != victim)])
        return self.place.settings(url, simulator, policy_bars_1m=order, policy_eod=order, limits=LIMITS)


def _backfill(pipeline: Pipeline, stretches: Mapping[Interval, Sequence[Stretch]]) -> None:
    """Fetch, and derive what follows from the minutes: as a run of each job would."""
    for interval, asked in stretches.items():
        for _ in ingest_candles(asked, interval, pipeline=pipeline, run_id="drill"):
            pass
    for interval in DERIVED_INTERVALS:
        for _ in derive_candles(stretches.get(Interval.M1, ()), interval, pipeline=pipeline, run_id="drill"):
            pass


def _due(pipeline: Pipeline, instruments: Sequence[Instrument]) -> dict[Interval, list[Stretch]]:
    """What the gap sensor would ask for now."""
    by_id = {instrument.symbol_id: instrument for instrument in instruments}
    gaps = pipeline.ledger.due_gaps(
        pipeline.clock.now(),
        limit=10_000,
        settle_seconds=max(pipeline.settle_seconds(interval) for interval in FETCHED_INTERVALS),
        intervals=FETCHED_INTERVALS,
        reach_seconds=pipeline.reaches(FETCHED_INTERVALS),
    )
    stretches: dict[Interval, list[Stretch]] = {}
    for gap in gaps:
        stretches.setdefault(gap.interval, []).append(Stretch(by_id[gap.symbol_id], gap.first, gap.last))
    return stretches


def _missing(pipeline: Pipeline, instruments: Sequence[Instrument]) -> int:
    lines = coverage_report(instruments, FETCHED_INTERVALS, FIRST, LAST, pipeline=pipeline)
    return sum(line.counts[Verdict.MISSING] for line in lines)


def _wait_for_the_next_attempt(pipeline: Pipeline, simulator: RunningSimulator) -> bool:
    """Move the virtual clock to the next instant for which the ledger plans something; False where it plans nothing more.

    By ten minutes at least, as a sensor with much to do would; and by the real clock until no budget is held any more.
    """
    planned = planned_next(pipeline)
    if planned is None or planned > SATURDAY + _HISTORY:
        return False
    simulator.set_now(max(planned + timedelta(seconds=1), simulator.now() + _A_LOOK))
    held = [status.held_until for status in PostgresBudget(pipeline.engine).status() if status.held_until is not None]
    if held:
        time.sleep(max(0.0, (max(held) - datetime.now(UTC)).total_seconds()))  # noqa: TID251 - budgets live in real time
    return True


# Each time a provider was looked at again and found still down: one request each is what a trial costs.
_TRIALS = """
select 'all', count(*)
  from (select distinct provider, capability, started_at from fetches
         where outcome not in ('ok', 'budget_spent') and attempts > 0
           and started_at > (select min(started_at) from fetches)) as looks
"""

_BARS = """
select c.interval_s, u.symbol, extract(epoch from c.opened_at)::int8, c.open::float4, c.high::float4, c.low::float4,
       c.close::float4, c.volume
  from candles_intraday c join symbol_universe u using (symbol_id)
union all
select 86400, u.symbol, (c.session_date - date '1970-01-01')::int8 * 86400, c.open::float4, c.high::float4, c.low::float4,
       c.close::float4, c.volume
  from candles_daily c join symbol_universe u using (symbol_id)
"""
_LEDGER = """
select c.interval_s, u.symbol, c.session::text, c.present::text, c.confirmed_empty::text, coalesce(c.halted::text, '')
  from coverage c join symbol_universe u using (symbol_id)
"""


def _warehouse(pipeline: Pipeline) -> Warehouse:
    with pipeline.engine.connect() as connection:
        bars = frozenset(tuple(row) for row in connection.exec_driver_sql(_BARS))
        return Warehouse(bars, frozenset(tuple(row) for row in connection.exec_driver_sql(_LEDGER)))


# --- situations --------------------------------------------------------------------------------------------------------


def _from(provider: str, **match: Any) -> dict[str, Any]:  # noqa: ANN401 - what a fault file may hold
    """From the fourth request on: the backfill is under way."""
    return {"provider": provider, "skip": 3, **match}


# An hour of the virtual clock: the ledger's first two attempts fall into it, the third does not.
_AN_HOUR = (SATURDAY + timedelta(minutes=50)).isoformat()


def _lasting(victim: str, action: str, symbol: str = "*", **settings: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    return [{"match": _from(victim, symbol=symbol, until=_AN_HOUR), "action": action, **settings}]


def _every_sixth(victim: str, action: str, **settings: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    return [{"match": {"provider": victim, "every": 6}, "action": action, **settings}]


def _situations(victim: str) -> Iterator[Situation]:
    lasting: dict[str, tuple[str, dict[str, Any]]] = {
        "killed": ("reset", {}),
        "down, 503": ("status", {"code": 503}),
        "throttled, 429 that names no wait": ("status", {"code": 429}),
        "throttled, 429 for a second": ("status", {"code": 429, "retry_after": 1}),
        "bankrupt, 402": ("status", {"code": 402}),
        "the key was revoked, 401": ("status", {"code": 401}),
        "out of service page with status 200": ("html", {}),
        "silent: well-formed and empty": ("missing_minutes", {"fraction": 1.0}),
        "slow: stalls longer than the time-out": ("stall", {"seconds": 3}),
        "cut short: half of every body": ("truncate", {}),
        "ragged columns": ("ragged", {}),
        "a hundred times too dear": ("unit", {} if victim == "yahoo" else {"fraction": 0.3}),
        # Where trading never stops, a session has no edges by which the shift would show.
        "close-labelled stamps": ("shifted", {"symbol": NOT_CRYPTO}),
        # At 13:00 UTC no exchange of the sample is open; the running day of crypto could not be told from a finished one.
        "answers from four days ago": ("stale", {"seconds": 3600 * (24 * 3 + 23), "symbol": NOT_CRYPTO}),
    }
    now_and_then: dict[str, tuple[str, dict[str, Any]]] = {
        "now and then: one bar in five is lost": ("missing_minutes", {"fraction": 0.2}),
        "now and then: one bar in five is null": ("null_minutes", {"fraction": 0.2}),
        "now and then: repeated rows": ("duplicate", {"fraction": 0.2}),
        "now and then: out of order": ("out_of_order", {}),
        "now and then: numbers as text": ("strings", {}),
        "now and then: NaN": ("nan", {}),
        "now and then: a column renamed": ("renamed", {}),
        "now and then: 500": ("status", {"code": 500}),
        "now and then: a gzip stream cut": ("truncated_gzip", {}),
    }
    for name, (action, settings) in lasting.items():
        # One symbol without bars is a quiet symbol; of these 24, twenty must say so before it is an outage, for each capability.
        # And where every answer of a vendor can be used in part, the rest of each costs a second request.
        in_part = name in {"ragged columns", "a hundred times too dear", "answers from four days ago"} and victim != "yahoo"
        # A provider that says "in a second" is taken at its word, four times a call: how often depends on the real clock.
        allowance = 1.6 if "silent" in name or in_part or "for a second" in name else 1.3
        yield Situation(name, victim, _lasting(victim, action, **settings), allowance)
    if victim == "yahoo":
        # NOVA split four for one on its second day; the vendor has not adjusted the day before. Only Yahoo tells of splits: of a
        # series that none is known for, a second opinion alone could say so.
        before = {"provider": victim, "symbol": "NOVA", "window": [FIRST.isoformat() + "T00:00:00Z", "2024-11-27T00:00:00Z"]}
        rule = {"match": {**before, "until": _AN_HOUR}, "action": "split_basis", "factor": 4.0}
        yield Situation("half the range on another split basis", victim, [rule])
    for name, (action, settings) in now_and_then.items():
        yield Situation(name, victim, _every_sixth(victim, action, **settings))


SITUATIONS = tuple(situation for victim in VENDORS for situation in _situations(victim))
FAULT_FREE = {victim: Situation("nothing", victim, ()) for victim in VENDORS}

# What may befall any request of a random backfill; the shares add up to the probability that is asked for.
_ANYTHING: tuple[tuple[str, dict[str, Any]], ...] = (
    ("status", {"code": 500}),
    ("status", {"code": 503}),
    ("status", {"code": 429}),
    ("status", {"code": 429, "retry_after": 1}),
    ("reset", {}),
    ("html", {}),
    ("empty", {}),
    ("error_json", {}),
    ("truncate", {}),
    ("truncated_gzip", {}),
    ("missing_minutes", {"fraction": 0.1}),
    ("null_minutes", {"fraction": 0.1}),
    ("duplicate", {"fraction": 0.1}),
    ("out_of_order", {}),
    ("ragged", {}),
    ("nan", {}),
    ("strings", {}),
    ("unit", {"fraction": 0.3}),
    ("shifted", {}),
    ("renamed", {}),
    ("other_symbol", {"symbol": "WRONG"}),
)


def random_faults(victim: str, probability: float) -> Situation:
    """Each request to anybody goes wrong with ``probability``, each way alike."""
    if not 0 < probability < 1:
        raise InvalidInputError(f"a fault probability of {probability}: expected a share between 0 and 1, such as 0.05")
    share = probability / len(_ANYTHING)
    rules = [{"match": {}, "probability": share, "action": action, **settings} for action, settings in _ANYTHING]
    return Situation(f"{probability:.0%} of all requests go wrong, at random", victim, rules)
