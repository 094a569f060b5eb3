"""A simulated week, small: eight symbols, two sessions around an outage. The whole one is `mdp week` (docs/week.md)."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.simulator.ground import proving_ground
from market_data_pipeline.simulator.week import WeekPlan, live
from market_data_pipeline.simulator.week_market import FIRST, LAST, cast_of, facts_of, write_market
from market_data_pipeline.simulator.week_report import OUTAGE, report_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from market_data_pipeline.simulator.week_report import WeekReport

SMALL = WeekPlan(seed=1, symbols=8, first=date(2024, 10, 31), last=date(2024, 11, 1), probability=0.04)


@pytest.fixture(scope="module")
def lived() -> Iterator[WeekReport]:
    with proving_ground("week") as place:
        yield live(place, SMALL, faulty=True, judge=report_of)


def test_in_the_end_nothing_is_missing_that_any_provider_has_and_every_bar_has_the_verdict_it_deserves(lived: WeekReport) -> None:
    assert lived.complaints == []
    assert {deserved for deserved, _ in lived.verdicts} == {"present", "confirmed_empty", "halted", "not_listed"}


def test_bars_were_lost_in_the_outage_and_each_came_back(lived: WeekReport) -> None:
    by_cause = {loss.cause: loss for loss in lived.losses}
    assert by_cause[OUTAGE].bars > 0
    assert {cause: loss.never for cause, loss in by_cause.items() if loss.never} == {}


def test_the_outage_is_felt_and_reads_as_of_earlier_were_asked_again(lived: WeekReport) -> None:
    assert lived.faults["status 503"] > 0
    assert lived.as_of_reads > 2


def test_the_market_of_a_week_is_the_same_for_the_same_seed_and_another_for_another(tmp_path: Path) -> None:
    written = {}
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        (tmp_path / name).mkdir()
        write_market(tmp_path / name, facts_of(seed=seed, first=FIRST, last=LAST, symbols=9), symbols=9)
        written[name] = {path.name: path.read_bytes() for path in sorted((tmp_path / name).rglob("*.csv"))}
    assert written["a"] == written["b"] != written["c"]


def test_the_whole_week_holds_a_half_day_declared_two_days_before_and_symbols_of_every_kind() -> None:
    facts = facts_of(seed=1, first=FIRST, last=LAST, symbols=50)
    assert facts.declared_at is not None
    assert (LAST - facts.declared_at.date()).days == 2
    assert {member.exchange for member in cast_of(50)} >= {"XNYS", "XNAS", "XLON", "XTSE", "CRYPTO"}
    assert len({member.symbol for member in cast_of(50)}) == 50


def test_a_week_of_one_session_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="1 sessions"):
        facts_of(seed=1, first=FIRST, last=FIRST, symbols=8)
