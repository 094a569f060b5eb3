"""What an answer is worth, bar by bar."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.candles import CandleColumns, Interval
from market_data_pipeline.ingest.judge import Judged, judge
from market_data_pipeline_tests.ingest.builders import (
    FRIDAY,
    LONG_AFTER,
    MONDAY,
    XNYS,
    an_answer,
    bars_at,
    except_at,
    grid_of,
    instant,
    whole,
)

if TYPE_CHECKING:
    from market_data_pipeline.domain.ports import BarsAnswer
    from market_data_pipeline.ingest.grid import Grid

GRID = grid_of()
OPENS = GRID.opened_at.tolist()


def judged(answer: BarsAnswer, grid: Grid = GRID, *, now: int = LONG_AFTER) -> Judged:
    return judge(answer, symbol_id=1, window=whole(grid), grid=grid, calendar=XNYS, now=now, settle_seconds=90)


def test_a_full_session_is_kept_whole_and_nothing_is_silent() -> None:
    result = judged(an_answer(bars_at(OPENS)))
    [session] = result.sessions
    assert session.bars.all()
    assert not session.silent.any()
    assert len(result.columns) == 390


def test_a_bar_after_the_close_of_a_half_day_is_left_out_and_counted() -> None:
    half_day = grid_of(first := MONDAY.replace(month=11, day=29), first)
    leaked = [*half_day.opened_at.tolist(), instant("2024-11-29T18:00:00Z"), instant("2024-11-29T18:01:00Z")]
    result = judged(an_answer(bars_at(leaked)), half_day)
    assert len(result.columns) == 210
    assert result.fetch.dropped == {"outside_session": 2}


def test_a_bar_that_has_not_ended_by_the_clock_is_left_out_whatever_it_looks_like() -> None:
    now = OPENS[100] + 60 + 89
    result = judged(an_answer(bars_at(OPENS[:101])), now=now)
    assert len(result.columns) == 100
    assert result.fetch.dropped == {"in_progress": 1}
    assert not result.sessions[0].silent.any()


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"low": 11.2}, "low and high do not enclose open and close"),
        ({"high": 11.2}, "low and high do not enclose open and close"),
        ({"close": np.nan}, "a value is null, NaN or infinite"),
        ({"high": np.inf}, "a value is null, NaN or infinite"),
        ({"volume": np.nan}, "a value is null, NaN or infinite"),
        ({"volume": -1.0}, "volume is negative"),
        ({"open": 0.0, "high": 0.0, "low": 0.0, "close": 0.0}, "all prices are zero"),
    ],
)
def test_a_bar_that_breaks_a_law_is_refused_with_its_reason(broken: dict[str, float], reason: str) -> None:
    result = judged(an_answer(except_at(bars_at(OPENS), 7, **broken)))
    assert result.refused.reasons == [reason]
    assert result.refused.columns.opened_at.tolist() == [OPENS[7]]
    assert not result.sessions[0].bars[7]


def test_a_refused_bar_is_not_silence() -> None:
    result = judged(an_answer(except_at(bars_at(OPENS), 7, low=11.2)))
    assert not result.sessions[0].silent.any()


def test_an_absent_minute_between_two_bars_of_the_answer_is_silent() -> None:
    result = judged(an_answer(bars_at(OPENS[:7] + OPENS[8:])))
    assert np.flatnonzero(result.sessions[0].silent).tolist() == [7]


def test_a_null_bar_is_no_information_and_not_silence() -> None:
    result = judged(an_answer(bars_at(OPENS[:7] + OPENS[8:]), nulls=[OPENS[7]]))
    assert not result.sessions[0].silent.any()
    assert result.fetch.dropped == {"null": 1}


def test_an_answer_cut_short_says_nothing_about_its_tail() -> None:
    result = judged(an_answer(bars_at(OPENS[:200])))
    assert not result.sessions[0].silent.any()


def test_an_empty_answer_where_bars_were_due_is_barren() -> None:
    result = judged(an_answer(CandleColumns.empty()))
    assert result.barren
    assert result.fetch.outcome == "barren"


def test_an_empty_answer_before_anything_is_due_is_not_barren() -> None:
    assert not judged(an_answer(CandleColumns.empty()), now=OPENS[0] + 30).barren


def test_an_answer_of_nulls_only_is_not_barren_and_confirms_nothing() -> None:
    result = judged(an_answer(CandleColumns.empty(), nulls=OPENS))
    assert not result.barren
    assert not result.sessions[0].silent.any()


def test_a_daily_bar_belongs_to_the_session_of_its_date() -> None:
    week = grid_of(MONDAY, FRIDAY, Interval.D1)
    result = judged(an_answer(bars_at(week.opened_at.tolist()), interval=Interval.D1), week)
    assert result.session_index.tolist() == [0, 1, 2, 3, 4]


@given(st.lists(st.sampled_from(range(-5, 400)), unique=True).map(sorted))
def test_every_row_received_is_kept_dropped_or_refused(minutes: list[int]) -> None:
    result = judged(an_answer(bars_at(OPENS[0] + 60 * minute for minute in minutes)))
    assert len(result.columns) + len(result.refused.columns) + sum(result.fetch.dropped.values()) == len(minutes)


@given(st.sets(st.integers(0, 1949)))
def test_the_bitmaps_of_an_answer_are_exactly_its_bars(places: set[int]) -> None:
    week = grid_of(MONDAY, FRIDAY)
    opens = week.opened_at[sorted(places)].tolist()
    result = judged(an_answer(bars_at(opens)), week)
    flat = np.concatenate([session.bars for session in result.sessions])
    assert week.opened_at[flat].tolist() == opens
    per_session = np.bincount(result.session_index, minlength=5) if opens else np.zeros(5)
    assert per_session.tolist() == [session.bars.sum() for session in result.sessions]
