"""The built-in alert rules: what each means, its numbers, and the pure functions that turn what was counted into findings.

Rules over prices are the user's own (``domain.price_rules``). What Prometheus alone can see (that we are gone) is in deploy/.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Self

from market_data_pipeline.domain.alert_config import configured
from market_data_pipeline.domain.alerts import Finding, Look, Rule, Severity
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.health import ANSWERS
from market_data_pipeline.domain.metrics import WRITE_BUCKETS
from market_data_pipeline.domain.sessions import HORIZON_WARNING_DAYS
from market_data_pipeline.domain.slo import CREEPING, FAST, SLOW, is_burning
from market_data_pipeline.domain.universe import Tier

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import date, datetime

    from market_data_pipeline.domain.alert_config import AlertsConfig
    from market_data_pipeline.domain.freshness import Census, FreshnessLine, StaleSymbol
    from market_data_pipeline.domain.slo import BurnRule, SloLine

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
# A list in a message is for reading: the rest is a number, and `mdp slo` has them all.
NAMED = 5


@dataclass(frozen=True, slots=True)
class Threshold:
    """A number of a rule that an operator may change. ``says``: what it is, for the docs and for messages."""

    name: str
    default: float
    says: str


# --- the catalogue ---------------------------------------------------------------------------------------------------------

_CRITICAL, _WARNING = Severity.CRITICAL, Severity.WARNING

_CATALOGUE: Final[tuple[tuple[Rule, tuple[Threshold, ...]], ...]] = (
    (
        Rule(
            "SLOGapViolationHigh",
            _CRITICAL,
            "More symbols of a tier are late than its SLO allows.",
            "slo-gap-violation-high",
            for_seconds=5 * MINUTE,
            clear_seconds=3 * MINUTE,
            escalate_seconds=15 * MINUTE,
            explained_by=("ProviderCircuitBreakerOpen",),
        ),
        (
            Threshold("times_target", 1.0, "times the tier's target (MDP_SLO_TARGETS) above which it begins"),
            Threshold("clear_times_target", 0.5, "times the target below which it ends"),
            Threshold("symbols", 2.0, "fewest late symbols: of a small universe one is SymbolStale and no outage"),
        ),
    ),
    (
        Rule(
            "SymbolStale",
            _WARNING,
            "Some symbols are late, fewer than an outage.",
            "symbol-stale",
            for_seconds=MINUTE,
            clear_seconds=3 * MINUTE,
            explained_by=("SLOGapViolationHigh", "ProviderCircuitBreakerOpen"),
        ),
        (
            Threshold("behind", 3.0, "minutes due and not there; of coarser intervals: late at all"),
            Threshold("behind_answered", 15.0, "the same for T1 where its provider was heard since and had nothing"),
        ),
    ),
    (
        Rule(
            "BarsLost",
            _WARNING,
            "Minutes of T0 are lacking though newer ones are there.",
            "bars-lost",
            for_seconds=30 * MINUTE,
            clear_seconds=5 * MINUTE,
            explained_by=("SLOGapViolationHigh", "ProviderCircuitBreakerOpen"),
        ),
        (
            Threshold("share", 0.005, "share of the due minutes above which it begins"),
            Threshold("bars", 5.0, "fewest lost minutes"),
        ),
    ),
    (
        Rule(
            "ErrorBudgetBurnFast",
            _CRITICAL,
            "At this pace the month's error budget is gone within two days.",
            "error-budget-burn",
            for_seconds=10 * MINUTE,
            clear_seconds=10 * MINUTE,
            escalate_seconds=30 * MINUTE,
            explained_by=("SLOGapViolationHigh", "ProviderCircuitBreakerOpen", "SymbolStale"),
        ),
        (Threshold("burn", 14.4, "burn rate over 1 h and over 5 m above which it begins"),),
    ),
    (
        Rule(
            "ErrorBudgetBurnSlow",
            _WARNING,
            "At this pace the month's error budget will not last.",
            "error-budget-burn",
            for_seconds=HOUR,
            clear_seconds=HOUR,
            explained_by=("ErrorBudgetBurnFast", "SLOGapViolationHigh", "ProviderCircuitBreakerOpen", "SymbolStale"),
        ),
        (
            Threshold("burn", 6.0, "burn rate over 6 h and over 30 m above which it begins"),
            Threshold("burn_3d", 1.0, "burn rate over 3 d and over 30 m above which it begins"),
        ),
    ),
    (
        Rule(
            "ProviderCircuitBreakerOpen",
            _WARNING,
            "A provider fails so often that it is not asked.",
            "provider-circuit-breaker-open",
            for_seconds=2 * MINUTE,
            clear_seconds=15 * MINUTE,
            escalate_seconds=30 * MINUTE,
        ),
        (Threshold("openings", 3.0, "openings within 20 minutes from which on a breaker that closes again counts, too"),),
    ),
    (
        Rule(
            "ProviderErrorSpike",
            _WARNING,
            "A provider fails many times a second.",
            "provider-error-spike",
            clear_seconds=5 * MINUTE,
            explained_by=("ProviderCircuitBreakerOpen",),
        ),
        (
            Threshold("per_second", 5.0, "failures a second, over ten minutes, above which it begins"),
            Threshold("clear_per_second", 2.5, "below which it ends"),
        ),
    ),
    (
        Rule(
            "ProviderEntitlementLost",
            _WARNING,
            "A provider says that our key may not use what it is asked for.",
            "provider-entitlement-lost",
            clear_seconds=MINUTE,
        ),
        (),
    ),
    (
        Rule(
            "BackfillQueueDepthHigh",
            _WARNING,
            "More jobs wait than are worked off.",
            "backfill-queue-depth-high",
            for_seconds=15 * MINUTE,
            clear_seconds=5 * MINUTE,
        ),
        (
            Threshold("jobs", 10_000.0, "queued jobs of all tiers above which it begins"),
            Threshold("share_of_cap", 0.9, "share of a tier's cap (MDP_QUEUE_CAPS) above which it begins"),
            Threshold("clear_share", 0.8, "share of either below which it ends"),
        ),
    ),
    (
        Rule(
            "BackfillOldestTooOld",
            _WARNING,
            "A job has been waiting for too long.",
            "backfill-oldest-too-old",
            for_seconds=2 * MINUTE,
            clear_seconds=2 * MINUTE,
            explained_by=("BackfillQueueDepthHigh",),
        ),
        (
            Threshold("t0_seconds", 15 * MINUTE, "age of T0's oldest ready job above which it begins"),
            Threshold("t1_seconds", 2 * HOUR, "the same of T1"),
            Threshold("t2_seconds", 12 * HOUR, "the same of T2"),
            Threshold("clear_share", 0.8, "share of these below which it ends"),
        ),
    ),
    (
        Rule(
            "DeadLettersGrowing",
            _WARNING,
            "Jobs die faster than anybody looks at them.",
            "dead-letters-growing",
            clear_seconds=10 * MINUTE,
        ),
        (Threshold("more", 5.0, "more dead letters than an hour ago, from which on it begins; it ends where there are no more"),),
    ),
    (
        Rule(
            "DBWriteLatencyHigh",
            _WARNING,
            "Writing to the database takes long.",
            "db-write-latency-high",
            for_seconds=2 * MINUTE,
            clear_seconds=5 * MINUTE,
        ),
        (
            Threshold("seconds", 1.0, "p95 of a batch over five minutes, or one commit of the watch, above which it begins"),
            Threshold("clear_seconds", 0.5, "below which it ends"),
            Threshold("batches", 20.0, "fewest batches in five minutes of which a p95 says something"),
        ),
    ),
    (
        Rule(
            "IngestionLagHigh",
            _WARNING,
            "The median symbol of a tier is late.",
            "ingestion-lag-high",
            for_seconds=3 * MINUTE,
            clear_seconds=3 * MINUTE,
            explained_by=("SLOGapViolationHigh", "SymbolStale", "ProviderCircuitBreakerOpen"),
        ),
        (
            Threshold("seconds", 5 * MINUTE, "lateness of the median symbol above which it begins"),
            Threshold("clear_seconds", 2 * MINUTE, "below which it ends"),
        ),
    ),
    (
        Rule(
            "DiskFilling",
            _WARNING,
            "Little room is left on the disk.",
            "disk-filling",
            for_seconds=MINUTE,
            clear_seconds=5 * MINUTE,
            escalate_seconds=2 * HOUR,
        ),
        (
            Threshold("clear_margin", 0.02, "share of the disk above MDP_DISK_FREE_LEAST from which on it ends"),
            Threshold("critical_share", 0.3, "share of MDP_DISK_FREE_LEAST below which it is critical"),
        ),
    ),
    (
        Rule(
            "CalendarHorizonNear",
            _WARNING,
            "A calendar soon knows no more sessions.",
            "calendar-horizon-near",
            clear_seconds=MINUTE,
        ),
        (Threshold("days", float(HORIZON_WARNING_DAYS), "days until the last session known below which it begins"),),
    ),
    (
        Rule("RunFailed", _WARNING, "A Dagster run failed.", "run-failed", clear_seconds=0.0),
        (),
    ),
    (
        Rule("CheckFailed", _WARNING, "An asset check failed.", "check-failed", clear_seconds=0.0),
        (),
    ),
    (
        Rule(
            "NoticesUndelivered",
            _WARNING,
            "Messages about alerts do not get through.",
            "notices-undelivered",
            clear_seconds=MINUTE,
        ),
        (Threshold("seconds", 15 * MINUTE, "how long the oldest message waits when it begins"),),
    ),
)

RULES: Final[Mapping[str, Rule]] = MappingProxyType(
    {
        rule.name: replace(rule, numbers=MappingProxyType({found.name: found.default for found in numbers}))
        for rule, numbers in _CATALOGUE
    }
)
"""Every built-in rule by name, as shipped."""
THRESHOLDS: Final[Mapping[str, tuple[Threshold, ...]]] = MappingProxyType({rule.name: found for rule, found in _CATALOGUE})
"""The numbers of each, and what they mean."""


@dataclass(frozen=True, slots=True)
class RuleBook:
    """The built-in rules as an operator wants them. ``rules``: without those that are not enabled."""

    rules: Mapping[str, Rule]
    config: AlertsConfig

    @classmethod
    def of(cls, config: AlertsConfig) -> Self:
        """As ``config`` says. InvalidInputError names what of it cannot be meant."""
        return cls(configured(RULES, config), config)

    def number(self, rule: str, name: str) -> float:
        """The number called ``name`` of ``rule``."""
        return self.rules.get(rule, RULES[rule]).numbers[name]

    def applied(self, look: Look) -> Look:
        """``look`` with the operator's severity where there is one: it is for all findings of its rule."""
        told = {name for name, options in self.config.thresholds.items() if "severity" in options}
        return replace(look, findings=[replace(f, severity=None) if f.rule in told else f for f in look.findings])


# --- SLOs and lateness -----------------------------------------------------------------------------------------------------

CENSUS_RULES = ("SLOGapViolationHigh", "SymbolStale", "BarsLost", "IngestionLagHigh")


def census_look(census: Census, targets: Mapping[Tier, float], book: RuleBook) -> Look:
    """What a census says. ``targets``: the share of symbols that may be late, by tier.

    One outage is one finding that may begin: that of the highest tier it reaches; those of the tiers below only hold, and single
    symbols are nobody's news while their tier, or one above, violates its SLO.
    """
    violating = {tier: [line for line in census.lines if line.tier is tier and _violates(line, targets, book)] for tier in Tier}
    highest = next((tier for tier in Tier if violating[tier]), None)
    findings = [
        *_slo_findings(census, violating, highest, targets, book),
        *_stale_findings(census, highest, book),
        *_lost_findings(census, book),
        *_lag_findings(census, book),
    ]
    return Look(CENSUS_RULES, findings)


def _violates(line: FreshnessLine, targets: Mapping[Tier, float], book: RuleBook, *, times: str = "times_target") -> bool:
    rule = "SLOGapViolationHigh"
    # A target of 0 is none, as in all numbers by tier.
    is_above = 0 < book.number(rule, times) * targets[line.tier] < line.violation_rate
    return is_above and line.stale >= book.number(rule, "symbols")


def _slo_findings(
    census: Census,
    violating: Mapping[Tier, Sequence[FreshnessLine]],
    highest: Tier | None,
    targets: Mapping[Tier, float],
    book: RuleBook,
) -> Iterable[Finding]:
    for tier in Tier:
        holding = [
            line for line in census.lines if line.tier is tier and _violates(line, targets, book, times="clear_times_target")
        ]
        lines = violating[tier] or holding
        if not lines:
            continue
        worst = max(lines, key=lambda line: line.violation_rate)
        yield Finding(
            "SLOGapViolationHigh",
            worst.violation_rate,
            f"{worst.stale:,} of {worst.symbols:,} symbols of {tier} have no {worst.interval} bar that is new enough: "
            f"{worst.violation_rate:.1%}, and {targets[tier]:.1%} may be. The worst is {_lasted(worst.worst_lag_seconds)} late.",
            key=str(tier),
            labels={"tier": str(tier)},
            members=tuple(f"{line.tier}/{line.interval} {line.stale:,} of {line.symbols:,}" for line in lines),
            holds_only=not violating[tier] or tier is not highest,
            severity=_CRITICAL if tier is Tier.T0 else _WARNING,
        )


def _stale_findings(census: Census, highest: Tier | None, book: RuleBook) -> Iterable[Finding]:
    for tier in (Tier.T0, Tier.T1):
        found = [one for one in census.stale if one.tier is tier and _is_news(one, book)]
        if not found:
            continue
        found.sort(key=lambda one: (-one.lag_seconds, one.symbol))
        symbols = tuple(dict.fromkeys(one.symbol for one in found))
        many = f"{len(symbols):,} symbols of {tier} are late: {_some(symbols)}. " if len(symbols) > 1 else ""
        yield Finding(
            "SymbolStale",
            float(len(symbols)),
            f"{many}{_late(found[0])}.",
            key=str(tier),
            labels={"tier": str(tier)},
            members=symbols,
            holds_only=highest is not None and list(Tier).index(highest) <= list(Tier).index(tier),
        )


def _is_news(one: StaleSymbol, book: RuleBook) -> bool:
    if one.interval is not Interval.M1:
        return not (one.tier is Tier.T1 and one.is_answered)
    is_quiet = one.tier is Tier.T1 and one.is_answered
    return one.behind >= book.number("SymbolStale", "behind_answered" if is_quiet else "behind")


def _late(one: StaleSymbol) -> str:
    newest = "none of this session" if one.newest_opened_at is None else f"of {one.newest_opened_at:%H:%M}Z"
    heard = "; its provider was heard since and had nothing" if one.is_answered else ""
    return f"{one.symbol}: the newest {one.interval} bar is {newest}, {one.behind:,} behind, {_lasted(one.lag_seconds)} late{heard}"


def _lost_findings(census: Census, book: RuleBook) -> Iterable[Finding]:
    for line in census.lines:
        if line.tier is not Tier.T0 or line.interval is not Interval.M1 or not line.due or not line.lost:
            continue
        share = line.lost / line.due
        enough = line.lost >= book.number("BarsLost", "bars") and share > book.number("BarsLost", "share")
        yield Finding(
            "BarsLost",
            float(line.lost),
            f"{line.lost:,} of {line.due:,} due minutes of {line.tier} are not there ({share:.2%}).",
            key=str(line.tier),
            labels={"tier": str(line.tier)},
            # While symbols are late, what is lost is what they are late by; long after the close it is a gap, and no news at night.
            holds_only=line.stale > 0 or line.is_over or not enough,
        )


def _lag_findings(census: Census, book: RuleBook) -> Iterable[Finding]:
    lines = [line for line in census.lines if line.tier is not Tier.T2 and not line.interval.is_daily]
    worst = max(lines, key=lambda line: line.median_lag_seconds or 0.0, default=None)
    lag = 0.0 if worst is None else worst.median_lag_seconds or 0.0
    if worst is None or lag <= book.number("IngestionLagHigh", "clear_seconds"):
        return
    yield Finding(
        "IngestionLagHigh",
        lag,
        f"The median symbol of {worst.tier}/{worst.interval} is {_lasted(lag)} late.",
        holds_only=lag <= book.number("IngestionLagHigh", "seconds"),
    )


# --- error budgets ---------------------------------------------------------------------------------------------------------

BURN_RULES = ("ErrorBudgetBurnFast", "ErrorBudgetBurnSlow")


def burn_look(lines: Sequence[SloLine], book: RuleBook) -> Look:
    """What burn rates say, each rule about all tiers at once. What is over burns no more, and ends its alert."""
    fast = replace(FAST, factor=book.number("ErrorBudgetBurnFast", "burn"))
    slow = replace(SLOW, factor=book.number("ErrorBudgetBurnSlow", "burn"))
    # Over 30 minutes instead of domain.slo's six hours: an outage that is long over is no news.
    creeping = replace(CREEPING, factor=book.number("ErrorBudgetBurnSlow", "burn_3d"), short=SLOW.short)
    return Look(
        BURN_RULES,
        [
            *_burn_findings("ErrorBudgetBurnFast", (fast,), lines),
            *_burn_findings("ErrorBudgetBurnSlow", (slow, creeping), lines),
        ],
    )


def _burn_findings(rule: str, burns: Sequence[BurnRule], lines: Sequence[SloLine]) -> Iterable[Finding]:
    burning = [(line, burn) for line in lines for burn in burns if is_burning(burn, line.windows, line.objective)]
    if not burning:
        return
    worst, burn = max(burning, key=lambda pair: pair[0].burn_rates[pair[1].long])
    rate = worst.burn_rates[burn.long]
    yield Finding(
        rule,
        rate,
        f"Over {burn.long}, {worst.tier}/{worst.interval} spent its error budget {rate:.1f} times as fast as it lasts; "
        f"{worst.budget_left or 0.0:.0%} of the 30 days' budget is left.",
        members=tuple(dict.fromkeys(f"{line.tier}/{line.interval}" for line, _ in burning)),
        severity=None if any(line.tier is Tier.T0 for line, _ in burning) else _WARNING,
    )


# --- providers -------------------------------------------------------------------------------------------------------------

HEALTH_RULES = ("ProviderCircuitBreakerOpen", "ProviderEntitlementLost")
EVERYBODY = "everybody"


@dataclass(frozen=True, slots=True)
class Circuit:
    """A provider at a capability that our policies name. ``stand_ins``: who else can be asked for it now.

    ``is_tried``: it failed a moment ago, at a trial perhaps. One that nobody tries any more, at night, may be well by now.
    ``openings``: how often its breaker opened lately, while the last time is not long ago.
    """

    provider: str
    capability: str
    is_shut: bool
    is_disabled: bool
    is_tried: bool
    reason: str
    stand_ins: tuple[str, ...] = ()
    openings: int = 0


def health_look(circuits: Sequence[Circuit], book: RuleBook) -> Look:
    """What the health of providers says: one finding a provider, however many capabilities it concerns.

    Where several are shut and nobody is left to ask, that is one outage and one finding, whose key is EVERYBODY.
    """
    shut = [one for one in circuits if one.is_shut or one.openings >= book.number("ProviderCircuitBreakerOpen", "openings")]
    alone = [one for one in shut if one.is_shut and not one.stand_ins]
    is_everybody = len({one.provider for one in alone}) > 1
    findings = [_everybody_finding(alone)] if is_everybody else []
    for provider in sorted({one.provider for one in circuits}):
        mine = [one for one in shut if one.provider == provider]
        if mine:
            finding = _breaker_finding(provider, mine)
            findings.append(replace(finding, holds_only=True) if is_everybody else finding)
        disabled = [one for one in circuits if one.provider == provider and one.is_disabled]
        if disabled:
            findings.append(
                Finding(
                    "ProviderEntitlementLost",
                    float(len(disabled)),
                    f"{provider} refuses our key for {_some([one.capability for one in disabled])}: {disabled[0].reason}.",
                    key=provider,
                    labels={"provider": provider},
                    members=tuple(one.capability for one in disabled),
                )
            )
    return Look(HEALTH_RULES, findings)


def _breaker_finding(provider: str, shut: Sequence[Circuit]) -> Finding:
    alone = [one.capability for one in shut if one.is_shut and not one.stand_ins]
    others = sorted({name for one in shut for name in one.stand_ins})
    consequence = f"Nobody else can be asked for {_some(alone)}" if alone else f"{_some(others)} can be asked instead"
    capabilities = [one.capability for one in shut]
    worst = max(shut, key=lambda one: (one.is_shut, one.openings))
    what = f"is not asked for {_some(capabilities)}: {worst.reason}"
    if not worst.is_shut:
        what = f"comes and goes: its breaker for {_some(capabilities)} opened {worst.openings} times lately"
    return Finding(
        "ProviderCircuitBreakerOpen",
        float(len(shut)),
        f"{provider} {what}. {consequence}.",
        key=provider,
        labels={"provider": provider},
        members=tuple(capabilities),
        holds_only=not any(one.is_tried or not one.is_shut for one in shut),
        severity=_CRITICAL if alone else _WARNING,
    )


def _everybody_finding(alone: Sequence[Circuit]) -> Finding:
    providers = sorted({one.provider for one in alone})
    capabilities = sorted({one.capability for one in alone})
    return Finding(
        "ProviderCircuitBreakerOpen",
        float(len(alone)),
        f"{_some(providers)} are not asked, and nobody is left to ask for {_some(capabilities)}: {alone[0].reason}. "
        "Where all fail at once it may be our network.",
        key=EVERYBODY,
        members=tuple(f"{one.provider} {one.capability}" for one in alone),
        holds_only=not any(one.is_tried for one in alone),
        severity=_CRITICAL,
    )


# --- the queue and its dead letters ----------------------------------------------------------------------------------------

QUEUE_RULES = ("BackfillQueueDepthHigh", "BackfillOldestTooOld")


@dataclass(frozen=True, slots=True)
class Waiting:
    """The queue of one tier. ``oldest_seconds``: how long the oldest job has been ready, 0 where none is."""

    tier: Tier
    queued: int
    cap: int
    oldest_seconds: float


def queue_look(queue: Sequence[Waiting], book: RuleBook) -> Look:
    """What the queue says: one finding for its depth, one for its age."""
    return Look(QUEUE_RULES, [*_depth_findings(queue, book), *_age_findings(queue, book)])


def _depth_findings(queue: Sequence[Waiting], book: RuleBook) -> Iterable[Finding]:
    rule = "BackfillQueueDepthHigh"
    most, share, clear = (book.number(rule, name) for name in ("jobs", "share_of_cap", "clear_share"))
    total = sum(one.queued for one in queue)
    fullest = max((one for one in queue if one.cap), key=lambda one: one.queued / one.cap, default=None)
    full = 0.0 if fullest is None else fullest.queued / fullest.cap
    if total <= clear * most and full < clear * share:
        return
    by_tier = ", ".join(f"{one.tier} {one.queued:,} of {one.cap:,}" for one in queue)
    yield Finding(
        rule,
        float(total),
        f"{total:,} jobs are queued ({by_tier}). What a full queue turns away comes again with the next look at the ledger.",
        holds_only=total <= most and full < share,
    )


def _age_findings(queue: Sequence[Waiting], book: RuleBook) -> Iterable[Finding]:
    rule = "BackfillOldestTooOld"
    most = {tier: book.number(rule, f"{tier.lower()}_seconds") for tier in Tier}
    old = [one for one in queue if one.oldest_seconds > book.number(rule, "clear_share") * most[one.tier]]
    if not old:
        return
    too_old = [one for one in old if one.oldest_seconds > most[one.tier]]
    worst = (too_old or old)[0]
    yield Finding(
        rule,
        worst.oldest_seconds,
        f"The oldest job of {worst.tier} has been waiting for {_lasted(worst.oldest_seconds)}; "
        f"{_lasted(most[worst.tier])} would be all right.",
        members=tuple(str(one.tier) for one in too_old or old),
        holds_only=not too_old,
    )


# --- what grows: counters now and some minutes ago -------------------------------------------------------------------------

ERROR_RULES, WRITE_RULES, DEAD_RULES = ("ProviderErrorSpike",), ("DBWriteLatencyHigh",), ("DeadLettersGrowing",)
ERROR_WINDOW, WRITE_WINDOW, DEAD_WINDOW = 10 * MINUTE, 5 * MINUTE, HOUR
# The first sample of each minute and a half is kept for as long as any window but an hour's asks for it, twice its length; the
# first of each ten minutes for two hours.
_FINE, _FINE_STEP, _COARSE_STEP, _KEPT = 20 * MINUTE, 1.5 * MINUTE, 10 * MINUTE, 2 * HOUR
NOT_THE_PROVIDERS_FAULT = ANSWERS | {"budget_spent"}


@dataclass(frozen=True, slots=True)
class Sample:
    """Counters at one instant. ``errors``: failures by provider. ``writes``: batches by bound of WRITE_BUCKETS and above."""

    at: datetime
    errors: Mapping[str, float]
    writes: tuple[int, ...]
    dead: int


def remembered(samples: Sequence[Sample], newest: Sample) -> list[Sample]:
    """What to keep for later looks: some twenty-five samples, the oldest first. Those from the future of ``newest`` go."""
    kept: dict[tuple[float, float], Sample] = {}
    for sample in sorted(samples, key=lambda one: one.at):
        age = (newest.at - sample.at).total_seconds()
        if 0 < age <= _KEPT:
            step = _FINE_STEP if age <= _FINE else _COARSE_STEP
            kept.setdefault((step, sample.at.timestamp() // step), sample)
    return [*kept.values(), newest]


def sample_before(samples: Sequence[Sample], now: datetime, seconds: float) -> Sample | None:
    """The newest sample that is ``seconds`` old, or nearly; None where there is none, or only one much older than that."""
    ages = [((now - sample.at).total_seconds(), sample) for sample in samples]
    return next((sample for age, sample in sorted(ages, key=lambda one: one[0]) if 0.9 * seconds <= age <= 2 * seconds), None)


def too_early(rules: tuple[str, ...], seconds: float) -> Look:
    """Nobody counted ``seconds`` ago: what grew since cannot be said."""
    return Look(rules, blind=f"nobody counted {_lasted(seconds)} ago")


def error_look(now: Sample, samples: Sequence[Sample], book: RuleBook) -> Look:
    """Failures a second of each provider, over the last ten minutes."""
    before = sample_before(samples, now.at, ERROR_WINDOW)
    if before is None:
        return too_early(ERROR_RULES, ERROR_WINDOW)
    seconds = (now.at - before.at).total_seconds()
    findings = []
    for provider, count in sorted(now.errors.items()):
        rate = _grown(count, before.errors.get(provider, 0.0)) / seconds
        if rate > book.number("ProviderErrorSpike", "clear_per_second"):
            findings.append(
                Finding(
                    "ProviderErrorSpike",
                    rate,
                    f"{provider} failed {rate:.1f} times a second over the last {_lasted(seconds)}.",
                    key=provider,
                    labels={"provider": provider},
                    holds_only=rate <= book.number("ProviderErrorSpike", "per_second"),
                )
            )
    return Look(ERROR_RULES, findings)


def write_look(now: Sample, samples: Sequence[Sample], commit_seconds: float, book: RuleBook) -> Look:
    """How long batches took over the last five minutes, and how long a small commit takes now."""
    rule = "DBWriteLatencyHigh"
    before = sample_before(samples, now.at, WRITE_WINDOW)
    grown = _grown_each(now.writes, before.writes) if before else ()
    p95 = p95_of(grown) if sum(grown) >= book.number(rule, "batches") else 0.0
    worst = max(p95, commit_seconds)
    if worst <= book.number(rule, "clear_seconds"):
        # Nobody counted some minutes ago, after a pause: a quick commit proves that writing is quick.
        return Look(WRITE_RULES)
    what = (
        f"95 % of {sum(grown):,} batches took up to {p95:.1f} s"
        if p95 >= commit_seconds
        else f"a commit took {commit_seconds:.1f} s"
    )
    return Look(WRITE_RULES, [Finding(rule, worst, f"Writing is slow: {what}.", holds_only=worst <= book.number(rule, "seconds"))])


def dead_look(now: Sample, samples: Sequence[Sample], book: RuleBook) -> Look:
    """How many dead letters there are more than an hour ago."""
    before = sample_before(samples, now.at, DEAD_WINDOW)
    oldest = before or min((sample for sample in samples if sample.at < now.at), key=lambda one: one.at, default=None)
    if oldest is None:
        return too_early(DEAD_RULES, DEAD_WINDOW)
    more = now.dead - oldest.dead
    if more <= 0:
        # Only of a whole hour can it be said that none came.
        return Look(DEAD_RULES) if before else too_early(DEAD_RULES, DEAD_WINDOW)
    text = f"{more:,} more dead letters than at {oldest.at:%H:%M}Z, {now.dead:,} in all."
    return Look(
        DEAD_RULES,
        [Finding("DeadLettersGrowing", float(more), text, holds_only=more < book.number("DeadLettersGrowing", "more"))],
    )


def p95_of(counts: Sequence[int]) -> float:
    """The 95th percentile of a histogram over WRITE_BUCKETS, linear within a bucket, as Prometheus has it.

    The last bound where it lies above all; 0 for an empty one.
    """
    wanted, below, lower = 0.95 * sum(counts), 0, 0.0
    for count, upper in zip(counts, WRITE_BUCKETS, strict=False):
        if count and below + count >= wanted:
            return lower + (upper - lower) * (wanted - below) / count
        below, lower = below + count, upper
    return WRITE_BUCKETS[-1] if below or wanted else 0.0


def _grown(now: float, before: float) -> float:
    # A counter that is smaller than it was began anew.
    return now - before if now >= before else now


def _grown_each(now: Sequence[int], before: Sequence[int]) -> tuple[int, ...]:
    if len(now) != len(before) or any(new < old for new, old in zip(now, before, strict=True)):
        return tuple(now)
    return tuple(new - old for new, old in zip(now, before, strict=True))


# --- the machine, the calendars, the messages ------------------------------------------------------------------------------

DISK_RULES, HORIZON_RULES, NOTICE_RULES = ("DiskFilling",), ("CalendarHorizonNear",), ("NoticesUndelivered",)


def disk_look(free_share: float, free_bytes: int, least: float, book: RuleBook) -> Look:
    """What the disk under MDP_HOME says. ``least``: MDP_DISK_FREE_LEAST."""
    if free_share >= least + book.number("DiskFilling", "clear_margin"):
        return Look(DISK_RULES)
    return Look(
        DISK_RULES,
        [
            Finding(
                "DiskFilling",
                free_share,
                f"{free_share:.1%} of the disk under MDP_HOME is free, {free_bytes / 2**30:.1f} GiB; {least:.0%} should be.",
                holds_only=free_share >= least,
                severity=_CRITICAL if free_share < book.number("DiskFilling", "critical_share") * least else _WARNING,
            )
        ],
    )


def horizon_look(last_sessions: Mapping[str, date], today: date, book: RuleBook) -> Look:
    """``last_sessions``: of the calendars of active symbols."""
    days = {name: (last - today).days for name, last in last_sessions.items()}
    near = sorted((left, name) for name, left in days.items() if left < book.number("CalendarHorizonNear", "days"))
    if not near:
        return Look(HORIZON_RULES)
    left, name = near[0]
    text = f"The calendar {name} knows sessions until {last_sessions[name]}, {left:,} days from now: upgrade exchange_calendars."
    members = tuple(name for _, name in near)
    return Look(HORIZON_RULES, [Finding("CalendarHorizonNear", float(left), text, members=members)])


def notice_look(queued: int, oldest_seconds: float, dead: int, book: RuleBook) -> Look:
    """What the outbox says: messages that have waited too long. ``dead``: those that nobody tries again."""
    if not queued or oldest_seconds <= book.number("NoticesUndelivered", "seconds"):
        return Look(NOTICE_RULES)
    given_up = f" {dead:,} were given up." if dead else ""
    text = f"{queued:,} messages wait to be delivered, the oldest for {_lasted(oldest_seconds)}.{given_up}"
    return Look(NOTICE_RULES, [Finding("NoticesUndelivered", oldest_seconds, text)])


# --- words -----------------------------------------------------------------------------------------------------------------


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED:,} more" if len(names) > NAMED else "")


def _lasted(seconds: float | None) -> str:
    seconds = seconds or 0.0
    if seconds < 2 * MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 2 * HOUR:
        return f"{seconds / MINUTE:.0f} min"
    return f"{seconds / HOUR:.1f} h" if seconds < 2 * DAY else f"{seconds / DAY:.0f} days"
