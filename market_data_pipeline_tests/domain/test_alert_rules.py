"""What the built-in rules find in what was counted: thresholds, what holds, what explains, what grows."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from market_data_pipeline.domain.alert_config import NO_CONFIG, AlertsConfig
from market_data_pipeline.domain.alert_rules import (
    EVERYBODY,
    RULES,
    Circuit,
    RuleBook,
    Sample,
    Waiting,
    census_look,
    dead_look,
    disk_look,
    error_look,
    health_look,
    horizon_look,
    p95_of,
    queue_look,
    remembered,
    sample_before,
    write_look,
)
from market_data_pipeline.domain.alerts import Finding, Look, Severity
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.freshness import Census, FreshnessLine, StaleSymbol
from market_data_pipeline.domain.metrics import WRITE_BUCKETS
from market_data_pipeline.domain.universe import Tier

AT = datetime(2024, 11, 20, 15, tzinfo=UTC)
TARGETS = {Tier.T0: 0.005, Tier.T1: 0.02, Tier.T2: 0.05}
BOOK = RuleBook.of(NO_CONFIG)


def line(tier: Tier = Tier.T0, *, symbols: int = 1000, stale: int = 0, lost: int = 0, median: float = 0.0) -> FreshnessLine:
    return FreshnessLine(tier, Interval.M1, symbols, stale, 100_000, lost, 600.0 if stale else 0.0, median)


def stale(
    symbol: str = "AAPL", tier: Tier = Tier.T0, *, behind: int = 4, interval: Interval = Interval.M1, answered: bool = False
) -> StaleSymbol:
    return StaleSymbol(1, symbol, tier, interval, date(2024, 11, 20), AT - timedelta(minutes=9), behind, 300.0, answered)


def found(look: Look, rule: str) -> list[Finding]:
    return [finding for finding in look.findings if finding.rule == rule]


def begins(look: Look, rule: str) -> list[str]:
    return [finding.key for finding in found(look, rule) if not finding.holds_only]


def test_a_tier_without_a_target_violates_none() -> None:
    look = census_look(Census(AT, [line(Tier.T2, stale=500)], []), {**TARGETS, Tier.T2: 0.0}, BOOK)
    assert found(look, "SLOGapViolationHigh") == []


def census(*lines: FreshnessLine, late: tuple[StaleSymbol, ...] = ()) -> Look:
    return census_look(Census(AT, lines, late), TARGETS, BOOK)


# --- SLOs ------------------------------------------------------------------------------------------------------------------


def test_more_late_symbols_than_the_target_begin_an_alert_of_the_tier() -> None:
    assert begins(census(line(stale=6)), "SLOGapViolationHigh") == ["T0"]
    assert begins(census(line(stale=5)), "SLOGapViolationHigh") == []


def test_half_the_target_keeps_it_open_and_less_does_not() -> None:
    assert [f.holds_only for f in found(census(line(stale=4)), "SLOGapViolationHigh")] == [True]
    assert found(census(line(stale=2)), "SLOGapViolationHigh") == []


def test_one_late_symbol_of_ten_is_no_outage() -> None:
    look = census(line(symbols=10, stale=1), late=(stale(),))
    assert begins(look, "SLOGapViolationHigh") == []
    assert begins(look, "SymbolStale") == ["T0"]


def test_an_outage_of_all_tiers_is_one_alert_of_the_highest() -> None:
    look = census(line(stale=1000), line(Tier.T1, stale=1000), line(Tier.T2, stale=1000), late=(stale(), stale("B", Tier.T1)))
    assert begins(look, "SLOGapViolationHigh") == ["T0"]
    assert begins(look, "SymbolStale") == []


def test_t0_is_critical_and_the_others_are_a_warning() -> None:
    severities = [found(census(line(tier, stale=900)), "SLOGapViolationHigh")[0].severity for tier in Tier]
    assert severities == [Severity.CRITICAL, Severity.WARNING, Severity.WARNING]


def test_two_bars_behind_are_no_news_and_three_are() -> None:
    assert begins(census(line(stale=1), late=(stale(behind=2),)), "SymbolStale") == []
    assert begins(census(line(stale=1), late=(stale(behind=3),)), "SymbolStale") == ["T0"]


def test_a_t1_symbol_whose_provider_has_nothing_waits_longer() -> None:
    quiet = stale(tier=Tier.T1, behind=14, answered=True)
    assert begins(census(line(Tier.T1, stale=1), late=(quiet,)), "SymbolStale") == []
    assert begins(census(line(Tier.T1, stale=1), late=(replace(quiet, behind=15),)), "SymbolStale") == ["T1"]


def test_a_symbol_late_in_several_intervals_is_named_once() -> None:
    look = census(line(stale=1), late=(stale(), stale(interval=Interval.M5, behind=1)))
    assert [finding.members for finding in found(look, "SymbolStale")] == [("AAPL",)]


def test_lost_minutes_are_told_apart_from_late_symbols() -> None:
    assert begins(census(line(lost=501)), "BarsLost") == ["T0"]
    assert begins(census(line(lost=500)), "BarsLost") == []
    assert begins(census(line(stale=1, lost=501)), "BarsLost") == []


def test_the_lag_is_that_of_the_median_symbol() -> None:
    assert begins(census(line(stale=900, median=301.0)), "IngestionLagHigh") == [""]
    assert begins(census(line(stale=900, median=300.0)), "IngestionLagHigh") == []


# --- providers -------------------------------------------------------------------------------------------------------------


def shut(provider: str, *, stand_ins: tuple[str, ...] = (), is_tried: bool = True) -> Circuit:
    return Circuit(provider, "bars_1m", is_shut=True, is_disabled=False, is_tried=is_tried, reason="503", stand_ins=stand_ins)


def test_an_open_breaker_is_critical_where_nobody_stands_in() -> None:
    assert found(health_look([shut("yahoo")], BOOK), "ProviderCircuitBreakerOpen")[0].severity is Severity.CRITICAL
    served = found(health_look([shut("yahoo", stand_ins=("alpaca",))], BOOK), "ProviderCircuitBreakerOpen")[0]
    assert served.severity is Severity.WARNING


def test_an_outage_of_everybody_is_one_alert() -> None:
    assert begins(health_look([shut("alpaca"), shut("yahoo")], BOOK), "ProviderCircuitBreakerOpen") == [EVERYBODY]


def test_a_breaker_that_nobody_tries_begins_nothing() -> None:
    assert begins(health_look([shut("yahoo", is_tried=False)], BOOK), "ProviderCircuitBreakerOpen") == []


@pytest.mark.parametrize(("openings", "keys"), [(2, []), (3, ["yahoo"])])
def test_a_breaker_that_flaps_is_found_while_it_is_closed(openings: int, keys: list[str]) -> None:
    flaps = Circuit("yahoo", "bars_1m", is_shut=False, is_disabled=False, is_tried=False, reason="", openings=openings)
    assert begins(health_look([flaps], BOOK), "ProviderCircuitBreakerOpen") == keys


# --- the queue, the disk, the calendars ------------------------------------------------------------------------------------


def waiting(tier: Tier, queued: int = 0, oldest: float = 0.0) -> Waiting:
    return Waiting(tier, queued, 20_000, oldest)


@pytest.mark.parametrize(("queued", "holds"), [(8_000, None), (8_001, True), (10_000, True), (10_001, False)])
def test_the_depth_has_a_threshold_to_begin_and_one_to_end(queued: int, *, holds: bool | None) -> None:
    depths = found(queue_look([waiting(Tier.T2, queued)], BOOK), "BackfillQueueDepthHigh")
    assert [finding.holds_only for finding in depths] == ([] if holds is None else [holds])


def test_a_tier_at_its_cap_is_deep_whatever_the_number() -> None:
    assert begins(queue_look([Waiting(Tier.T0, 4_500, 5_000, 0.0)], BOOK), "BackfillQueueDepthHigh") == [""]


@pytest.mark.parametrize(("tier", "seconds"), [(Tier.T0, 900), (Tier.T1, 7_200), (Tier.T2, 43_200)])
def test_each_tier_may_wait_so_long(tier: Tier, seconds: int) -> None:
    assert begins(queue_look([waiting(tier, 1, seconds)], BOOK), "BackfillOldestTooOld") == []
    assert begins(queue_look([waiting(tier, 1, seconds + 1)], BOOK), "BackfillOldestTooOld") == [""]


@pytest.mark.parametrize(
    ("free", "severity", "holds"),
    [(0.13, None, None), (0.11, Severity.WARNING, True), (0.09, Severity.WARNING, False), (0.02, Severity.CRITICAL, False)],
)
def test_a_disk_that_fills(free: float, severity: Severity | None, *, holds: bool | None) -> None:
    findings = disk_look(free, 2**30, 0.1, BOOK).findings
    assert [(one.severity, one.holds_only) for one in findings] == ([] if severity is None else [(severity, holds)])


def test_a_calendar_is_near_its_end_below_sixty_days() -> None:
    today = date(2024, 11, 1)
    assert horizon_look({"XNYS": date(2024, 12, 31)}, today, BOOK).findings == ()
    assert horizon_look({"XNYS": date(2024, 12, 30)}, today, BOOK).findings[0].members == ("XNYS",)


# --- what grows ------------------------------------------------------------------------------------------------------------


def sample(minutes: float, *, errors: float = 0.0, writes: tuple[int, ...] = (), dead: int = 0) -> Sample:
    return Sample(AT + timedelta(minutes=minutes), {"yahoo": errors}, writes, dead)


def test_failures_are_counted_over_ten_minutes() -> None:
    assert begins(error_look(sample(10, errors=3_001), [sample(0)], BOOK), "ProviderErrorSpike") == ["yahoo"]
    assert begins(error_look(sample(10, errors=3_000), [sample(0)], BOOK), "ProviderErrorSpike") == []


def test_a_counter_that_began_anew_counts_from_nothing() -> None:
    assert error_look(sample(10, errors=100), [sample(0, errors=1e9)], BOOK).findings == []


def test_without_an_earlier_count_nobody_can_say_what_grew() -> None:
    assert error_look(sample(10, errors=1e9), [], BOOK).blind is not None


def test_an_hour_old_count_is_no_count_of_ten_minutes_ago() -> None:
    assert error_look(sample(60, errors=1e9), [sample(0)], BOOK).blind is not None


def test_slow_batches_are_found_by_their_95th_percentile_and_a_slow_commit_at_once() -> None:
    quick, slow = (0, 0, 100, *[0] * 9), (0, 0, 100, *[0] * 6, 20, 0, 0)
    assert begins(write_look(sample(5, writes=slow), [sample(0, writes=(0,) * 12)], 0.01, BOOK), "DBWriteLatencyHigh") == [""]
    assert write_look(sample(5, writes=quick), [sample(0, writes=(0,) * 12)], 0.01, BOOK).findings == ()
    assert begins(write_look(sample(5, writes=quick), [], 1.5, BOOK), "DBWriteLatencyHigh") == [""]


def test_dead_letters_grow_within_the_hour() -> None:
    assert begins(dead_look(sample(60, dead=5), [sample(0)], BOOK), "DeadLettersGrowing") == [""]
    assert begins(dead_look(sample(20, dead=5), [sample(0)], BOOK), "DeadLettersGrowing") == [""]
    assert dead_look(sample(60, dead=5), [sample(0, dead=5)], BOOK).findings == ()


@given(st.lists(st.integers(0, 1000), min_size=len(WRITE_BUCKETS) + 1, max_size=len(WRITE_BUCKETS) + 1))
def test_a_p95_lies_in_the_bucket_that_holds_it(counts: list[int]) -> None:
    p95, total = p95_of(counts), sum(counts)
    assert sum(count for count, bound in zip(counts, WRITE_BUCKETS, strict=False) if bound <= p95 - 1e-9) <= 0.95 * total + 1e-6
    assert 0.0 <= p95 <= WRITE_BUCKETS[-1]


@given(st.lists(st.integers(20, 200), min_size=1, max_size=300))
@example([20, 20, 20, 20, 120, 200, 200, 62, 200, 200, 200, 20, 20, 99, 200, 200])
def test_whoever_watches_at_any_pace_remembers_ten_minutes_and_an_hour_in_few_samples(pauses: list[int]) -> None:
    kept: list[Sample] = []
    at = AT
    for pause in pauses:
        at += timedelta(seconds=pause)
        kept = remembered(kept, Sample(at, {}, (), 0))
    assert len(kept) <= 30
    assert [one.at for one in kept] == sorted({one.at for one in kept})
    for seconds in (300.0, 600.0, 3600.0):
        if (at - AT).total_seconds() > 1.4 * seconds + 200:
            assert sample_before(kept, at, seconds) is not None, seconds


# --- what an operator changes ----------------------------------------------------------------------------------------------


def test_numbers_and_times_are_the_operators() -> None:
    book = RuleBook.of(AlertsConfig(thresholds={"SymbolStale": {"behind": 10, "for": 0}}))
    assert book.number("SymbolStale", "behind") == 10
    assert book.rules["SymbolStale"].for_seconds == 0


def test_a_severity_that_was_set_is_that_of_every_finding() -> None:
    book = RuleBook.of(AlertsConfig(thresholds={"SLOGapViolationHigh": {"severity": "info"}}))
    look = book.applied(census_look(Census(AT, [line(stale=900)]), TARGETS, book))
    assert found(look, "SLOGapViolationHigh")[0].severity is None
    assert book.rules["SLOGapViolationHigh"].severity is Severity.INFO


def test_a_rule_that_is_not_wanted_is_not_among_them() -> None:
    assert "DiskFilling" not in RuleBook.of(AlertsConfig(thresholds={"DiskFilling": {"enabled": False}})).rules


def test_a_number_that_no_rule_has_is_refused_by_name() -> None:
    with pytest.raises(InvalidInputError, match=r"SymbolStale: bars: no such option.*behind"):
        RuleBook.of(AlertsConfig(thresholds={"SymbolStale": {"bars": 3}}))


def test_whatever_explains_is_a_rule_and_explains_in_no_circle() -> None:
    reached = {name: set(rule.explained_by) for name, rule in RULES.items()}
    assert set().union(*reached.values()) <= set(RULES)
    for _ in RULES:
        reached = {name: causes.union(*(reached[cause] for cause in causes)) for name, causes in reached.items()}
    assert [name for name, causes in reached.items() if name in causes] == []
