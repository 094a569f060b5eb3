"""The watch: one look at SLOs and alert rules, what follows for alerts, and the messages that are due. Who comes first looks."""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from market_data_pipeline.domain.alert_rules import (
    BURN_RULES,
    DEAD_RULES,
    DISK_RULES,
    ERROR_RULES,
    HEALTH_RULES,
    HORIZON_RULES,
    NOT_THE_PROVIDERS_FAULT,
    NOTICE_RULES,
    QUEUE_RULES,
    WRITE_RULES,
    Circuit,
    RuleBook,
    Sample,
    Waiting,
    burn_look,
    census_look,
    dead_look,
    disk_look,
    error_look,
    health_look,
    horizon_look,
    notice_look,
    queue_look,
    remembered,
    write_look,
)
from market_data_pipeline.domain.alerts import Look
from market_data_pipeline.domain.errors import DatabaseUnreachableError, MarketDataError
from market_data_pipeline.domain.failures import RULES as FAILURE_RULES
from market_data_pipeline.domain.failures import failure_look
from market_data_pipeline.domain.health import Breaker, ProviderHealth
from market_data_pipeline.ingest.alert_file import read_alerts_file
from market_data_pipeline.ingest.alerting import deliver_due, fold
from market_data_pipeline.ingest.freshness import measure_density, record_census, slo_status, take_census
from market_data_pipeline.ingest.price_watch import price_looks
from market_data_pipeline.observability.delivery import deliver
from market_data_pipeline.settings import numbers_by_tier
from market_data_pipeline.storage.counters import read_counters
from market_data_pipeline.storage.database import STATEMENT_FAILURES
from market_data_pipeline.storage.failures import FailureStore
from market_data_pipeline.storage.seats import WATCH, Seat
from market_data_pipeline.storage.watch import (
    WatchState,
    begin_pending_anew,
    calendars_in_use,
    commit_seconds,
    dead_letters_now,
    outbox_now,
    save_watch_state,
    tier_queues,
    watch_state,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from market_data_pipeline.domain.alert_config import AlertsConfig
    from market_data_pipeline.domain.alerts import Rule
    from market_data_pipeline.domain.freshness import Census
    from market_data_pipeline.ingest.alert_file import AlertsFile
    from market_data_pipeline.ingest.alerting import DeliveryReport, FoldReport, Send
    from market_data_pipeline.ingest.pipeline import Pipeline

logger = logging.getLogger(__name__)

DENSITY_EVERY = timedelta(days=1)
# Two who look every thirty seconds come at slightly different times: who comes a moment early shall not wait for another turn.
_A_MOMENT = timedelta(seconds=1)
# A provider whose breaker was opened within so many cool-downs was tried just now: one trial a cool-down.
_TRIED_COOLDOWNS = 2
# A breaker flaps while it opened in the last ten minutes; how often is counted over twenty.
_OPENED_LATELY, _OPENINGS_OVER = timedelta(minutes=10), timedelta(minutes=20)
_NEWEST_EVENTS = 200
# Who looks again after so many turns knows nothing of the time between.
_TURNS_MISSED = 10


@dataclass(frozen=True, slots=True)
class DiskUse:
    """Bytes of the disk that holds MDP_HOME."""

    free: int
    total: int


def disk_under(home: Path) -> DiskUse:
    """The disk that holds ``home``, or will hold it. OSError where it cannot be asked."""
    there = next(path for path in (home, *home.parents) if path.exists())
    usage = shutil.disk_usage(there)
    return DiskUse(usage.free, usage.total)


@dataclass(frozen=True, slots=True)
class WatchReport:
    """What one call of ``watch`` did. ``skipped``: why nobody looked now, None where it looked; messages are delivered either way.

    ``blind``: of each group of rules that could not be looked at, why. ``problem``: why the alerts file in force is not the one
    that is there. ``seconds``: how long it took, of real time.
    """

    at: datetime
    by: str
    skipped: str | None = None
    census: Census | None = None
    findings: int = 0
    blind: Mapping[str, str] = field(default_factory=dict)
    problem: str | None = None
    fold: FoldReport | None = None
    delivery: DeliveryReport | None = None
    seconds: float = 0.0


def watch(
    pipeline: Pipeline,
    *,
    by: str,
    force: bool = False,
    alerts: AlertsFile | None = None,
    disk: Callable[[Path], DiskUse] = disk_under,
    send: Send = deliver,
    stopwatch: Callable[[], float] = time.monotonic,
) -> WatchReport:
    """Look at everything that alerts are about, unless somebody did within MDP_WATCH_EVERY_SECONDS, and deliver what is due.

    ``by``: who says so, for people ("sensor watch", "mdp serve"). ``force``: look now, unless somebody is looking at this moment:
    one look at a time, in all processes. What cannot be looked at is blind, which ends no alert. Repeating it is safe; a process
    that dies in it leaves at most a look that is not remembered. ``alerts``: of a process that goes on, whose last usable file
    stays in force. Raises DatabaseUnreachableError where the database is away, and ConfigurationError where there is no ``alerts``
    and the file cannot be used; SLOs are counted all the same.
    """
    began = stopwatch()
    now = pipeline.clock.now()
    report = WatchReport(now, by)
    with Seat(pipeline.engine, f"mdp watch: {by}", seat=WATCH) as seat:
        taken = seat.take()
        last = watch_state(pipeline.engine) if taken is None else None
        if taken is not None:
            report = replace(report, skipped=f"{taken} is looking")
        elif not force and last is not None and _is_recent(last, now, pipeline):
            report = replace(report, skipped=f"{last.by} looked at {last.at:%H:%M:%S}Z")
        else:
            report = replace(report, census=_counted(pipeline))
        config, problem = alerts.current() if alerts else (read_alerts_file(pipeline.settings.alerts_file), None)
        if report.census is not None:
            report = _looked(pipeline, report, report.census, last, _Looker(pipeline, RuleBook.of(config), now, stopwatch, disk))
    delivery = deliver_due(pipeline, config, now=now, send=send)
    return replace(report, problem=problem, delivery=delivery, seconds=stopwatch() - began)


def _is_recent(last: WatchState, now: datetime, pipeline: Pipeline) -> bool:
    # Either way round: a virtual clock that was set back must not keep everybody from looking for years.
    return abs(now - last.at) < timedelta(seconds=pipeline.settings.watch_every_seconds) - _A_MOMENT


def _counted(pipeline: Pipeline) -> Census:
    measure_density(pipeline, older_than=DENSITY_EVERY)
    census = take_census(pipeline)
    record_census(pipeline, census)
    return census


def _looked(pipeline: Pipeline, report: WatchReport, census: Census, last: WatchState | None, looker: _Looker) -> WatchReport:
    """``report`` with what was found and what became of the alerts; the look is remembered."""
    config, remembers = looker.book.config, _Memory.of(last)
    if last is not None and abs(report.at - last.at) > _TURNS_MISSED * timedelta(seconds=pipeline.settings.watch_every_seconds):
        begin_pending_anew(pipeline.engine, at=pipeline.known_at(report.at))
    sample = looker.sample()
    looks = [looker.book.applied(look) for look in looker.looks(census, sample, remembers.samples)]
    priced, price_rules = _priced(pipeline, config, report.at)
    rules: dict[str, Rule] = {**looker.book.rules, **price_rules}
    known = {*rules, *(rule.name for rule in config.price_rules)}
    folded = fold(pipeline, [*looks, *priced], rules, config, now=report.at, known=known)
    kept = remembered(remembers.samples, sample) if sample else remembers.samples
    save_watch_state(pipeline.engine, WatchState(report.at, report.by, _Memory(kept).as_json()))
    return replace(
        report,
        findings=sum(len(look.findings) for look in (*looks, *priced)),
        blind={", ".join(look.rules): look.blind for look in (*looks, *priced) if look.blind is not None},
        fold=folded,
    )


def _priced(pipeline: Pipeline, config: AlertsConfig, now: datetime) -> tuple[list[Look], Mapping[str, Rule]]:
    """What rules over prices say; where their data cannot be read their alerts stay as they are."""
    try:
        return price_looks(pipeline, config, now=now)
    except DatabaseUnreachableError:
        raise
    except (MarketDataError, *STATEMENT_FAILURES) as failure:
        names = tuple(rule.name for rule in config.price_rules)
        return [_blind(names, failure)], {}


def _blind(rules: tuple[str, ...], failure: Exception) -> Look:
    said = type(failure).__name__ if isinstance(failure, STATEMENT_FAILURES) else str(failure)
    logger.warning("blind for %s: %s", ", ".join(rules), said)
    return Look(rules, blind=said)


# --- looking ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Looker:
    """One look: each question asked once, each failure a blindness."""

    pipeline: Pipeline
    book: RuleBook
    now: datetime
    stopwatch: Callable[[], float]
    disk: Callable[[Path], DiskUse]

    def looks(self, census: Census, sample: Sample | None, samples: Sequence[Sample]) -> list[Look]:
        """All of them."""
        targets = numbers_by_tier(self.pipeline.settings.slo_targets)
        looks = [
            census_look(census, targets, self.book),
            self._probed(BURN_RULES, lambda: self._burn(census)),
            self._probed(HEALTH_RULES, self._health),
            self._probed(QUEUE_RULES, self._queue),
            self._probed(DISK_RULES, self._disk),
            self._probed(HORIZON_RULES, self._horizon),
            self._probed(NOTICE_RULES, self._notices),
            self._probed(FAILURE_RULES, lambda: failure_look(FailureStore(self.pipeline.engine).all(), self.now)),
        ]
        if sample is None:
            return [*looks, Look((*ERROR_RULES, *WRITE_RULES, *DEAD_RULES), blind="the counters cannot be read")]
        return [
            *looks,
            error_look(sample, samples, self.book),
            self._probed(WRITE_RULES, lambda: self._writing(sample, samples)),
            dead_look(sample, samples, self.book),
        ]

    def _probed(self, rules: tuple[str, ...], probe: Callable[[], Look]) -> Look:
        """What ``probe`` saw, or why it could not look. Without the database nothing goes on."""
        try:
            return probe()
        except DatabaseUnreachableError:
            raise
        except (MarketDataError, *STATEMENT_FAILURES, OSError) as failure:
            return _blind(rules, failure)

    def sample(self) -> Sample | None:
        """The counters as they are now, None where they cannot be read."""
        try:
            counters = read_counters(self.pipeline.engine)
            dead = dead_letters_now(self.pipeline.engine)
        except STATEMENT_FAILURES as failure:
            logger.warning("the counters cannot be read: %s", type(failure).__name__)
            return None
        errors: dict[str, float] = {}
        writes: tuple[int, ...] = ()
        for (name, labels), counter in counters.items():
            if name == "provider_errors_total" and labels[-1] not in NOT_THE_PROVIDERS_FAULT:
                errors[labels[0]] = errors.get(labels[0], 0.0) + counter.value
            elif name == "write_batch_seconds":
                writes = counter.buckets or ()
        return Sample(self.now, errors, writes, dead)

    def _burn(self, census: Census) -> Look:
        return burn_look(slo_status(self.pipeline, census=census).lines, self.book)

    def _health(self) -> Look:
        healths = self.pipeline.health.all(self.now)
        resting = {key for key, health in healths.items() if health.breaker is not Breaker.CLOSED or health.disabled_at is not None}
        openings = self._openings()
        circuits = []
        for provider, capability in sorted(resting | openings.keys()):
            configured, _ = self.pipeline.router.configured(capability)
            if provider not in {one.name for one, _ in configured}:
                continue
            others = [one.name for one, _ in self.pipeline.router.candidates(capability, now=self.now).order]
            stand_ins = tuple(name for name in others if name != provider and (name, capability) not in resting)
            circuits.append(
                self._circuit(provider, capability, healths.get((provider, capability)), stand_ins, openings[provider, capability])
            )
        return health_look(circuits, self.book)

    def _circuit(
        self, provider: str, capability: str, health: ProviderHealth | None, stand_ins: tuple[str, ...], openings: int
    ) -> Circuit:
        health = health or ProviderHealth()
        recent = timedelta(seconds=_TRIED_COOLDOWNS * self.pipeline.health.policy.breaker_cooldown_seconds)
        return Circuit(
            provider,
            capability,
            is_shut=health.breaker is not Breaker.CLOSED,
            is_disabled=health.disabled_at is not None,
            is_tried=health.opened_at is not None and abs(self.now - health.opened_at) < recent,
            reason=health.reason,
            stand_ins=stand_ins,
            openings=openings,
        )

    def _openings(self) -> Counter[tuple[str, str]]:
        """How often each breaker opened lately; only of those whose last time is not long ago."""
        opened = [event for event in self.pipeline.health.events(limit=_NEWEST_EVENTS) if event.kind == "breaker_opened"]
        counted = Counter((e.provider, e.capability) for e in opened if timedelta(0) <= self.now - e.at < _OPENINGS_OVER)
        newest = {(e.provider, e.capability): e.at for e in reversed(opened)}
        return Counter({key: count for key, count in counted.items() if self.now - newest[key] < _OPENED_LATELY})

    def _queue(self) -> Look:
        caps = self.pipeline.jobs.policy.caps
        queues = [Waiting(one.tier, one.queued, caps[one.tier], one.oldest_seconds) for one in tier_queues(self.pipeline.engine)]
        return queue_look(queues, self.book)

    def _writing(self, sample: Sample, samples: Sequence[Sample]) -> Look:
        return write_look(sample, samples, commit_seconds(self.pipeline.engine, clock=self.stopwatch), self.book)

    def _disk(self) -> Look:
        use = self.disk(self.pipeline.settings.home)
        return disk_look(use.free / use.total, use.free, self.pipeline.settings.disk_free_least, self.book)

    def _horizon(self) -> Look:
        calendars = [self.pipeline.calendars(name) for name in calendars_in_use(self.pipeline.engine)]
        return horizon_look({one.name: one.last_session for one in calendars}, self.now.date(), self.book)

    def _notices(self) -> Look:
        outbox = outbox_now(self.pipeline.engine)
        waits = (self.now - outbox.oldest_at).total_seconds() if outbox.oldest_at else 0.0
        return notice_look(outbox.queued, waits, outbox.dead, self.book)


# --- what the next look compares with --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Memory:
    """``watch_state.memory``. What an older release left there and we cannot read is forgotten: the next looks fill it again."""

    samples: Sequence[Sample] = ()

    @classmethod
    def of(cls, last: WatchState | None) -> _Memory:
        try:
            return cls(
                [
                    Sample(datetime.fromisoformat(one["at"]), one["errors"], tuple(one["writes"]), int(one["dead"]))
                    for one in (last.memory if last else {}).get("samples", ())
                ]
            )
        except (KeyError, TypeError, ValueError):
            return cls()

    def as_json(self) -> dict[str, Any]:
        """What ``of`` reads."""
        return {
            "samples": [
                {"at": one.at.isoformat(), "errors": dict(one.errors), "writes": list(one.writes), "dead": one.dead}
                for one in self.samples
            ],
        }
