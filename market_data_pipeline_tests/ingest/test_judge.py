"""What an answer is worth, bar by bar."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.candles import CandleColumns, Interval
from market_data_pipeline.domain.ports import CorporateAction
from market_data_pipeline.domain.quality import BarFlag, Reference
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
    from market_data_pipeline.domain.candles import Bools
    from market_data_pipeline.domain.ports import BarsAnswer
    from market_data_pipeline.ingest.grid import Grid

GRID = grid_of()
OPENS = GRID.opened_at.tolist()


def judged(
    answer: BarsAnswer,
    grid: Grid = GRID,
    *,
    now: int = LONG_AFTER,
    wanted: Bools | None = None,
    reference: Reference | None = None,
) -> Judged:
    return judge(
        answer,
        symbol_id=1,
        window=whole(grid),
        grid=grid,
        calendar=XNYS,
        now=now,
        settle_seconds=90,
        wanted=wanted,
        reference=reference,
    )


def received(answer: BarsAnswer) -> int:
    """Rows in the body."""
    return len(answer.columns) + len(answer.null_opened_at) + sum(answer.fetch.dropped.values())


def accounted_for(result: Judged) -> int:
    return len(result.columns) + len(result.refused.columns) + sum(result.fetch.dropped.values())


def is_condemned(result: Judged, kind: str, answer: BarsAnswer) -> bool:
    """Nothing is kept, nothing is said of any session, and every row is still there to be looked at."""
    nothing = not len(result.columns) and not result.sessions and not result.received
    return nothing and result.kind == result.fetch.outcome == kind and accounted_for(result) == received(answer)


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


def climbing(opens: list[int]) -> CandleColumns:
    """Bars whose closes all differ: each opens where the one before it closed."""
    closes = 100 + np.arange(len(opens)) / 16
    return CandleColumns.of(np.array(opens), closes - 0.0625, closes + 0.25, closes - 0.25, closes, np.full(len(opens), 100.0))


HELD = Reference(held_at=np.array(OPENS[:60]), held_close=climbing(OPENS[:60]).close)
LATE = replace(climbing(OPENS[:66]).take(np.arange(54, 65)), opened_at=np.array(OPENS[55:66]))


def test_stamps_that_are_late_in_a_running_session_are_told_by_the_closes_that_are_held() -> None:
    now = OPENS[66] + 90
    answer = an_answer(LATE)
    result = judged(answer, now=now, reference=HELD)
    assert is_condemned(result, "malformed", answer)
    assert str(result.reason).startswith("5 bars have the closes that we hold of the bars before them: stamped 60 seconds late")


def test_a_right_answer_is_taken_though_what_is_held_is_stamped_late() -> None:
    held = replace(HELD, held_at=np.array(OPENS[1:61]))
    result = judged(an_answer(climbing(OPENS[:66])), now=OPENS[66] + 90, reference=held)
    assert result.kind == "ok"
    assert len(result.columns) == 66


def test_a_price_that_stands_still_is_not_stamped_late() -> None:
    held = Reference(held_at=np.array(OPENS[:60]), held_close=bars_at(OPENS[:60]).close)
    assert judged(an_answer(bars_at(OPENS[:66])), now=OPENS[66] + 90, reference=held).kind == "ok"


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
        ({"low": 0.0}, "a price is zero or negative"),
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


def test_the_ends_of_a_session_are_silent_where_the_answer_has_bars_of_the_days_around() -> None:
    friday, tuesday = instant("2024-11-29T15:00:00Z"), instant("2024-12-03T15:00:00Z")
    middle = OPENS[5:380]
    ends = [*range(5), *range(380, 390)]
    for around, silent in (([friday, tuesday], ends), ([friday], ends[:5]), ([tuesday], ends[5:]), ([], [])):
        [session] = judged(an_answer(bars_at(sorted([*around, *middle])))).sessions
        assert np.flatnonzero(session.silent).tolist() == silent
        assert session.quiet is not None
        assert np.flatnonzero(session.quiet).tolist() == ends
    [nothing] = judged(an_answer(bars_at([friday, tuesday]))).sessions
    assert nothing.silent.all()
    assert nothing.is_barren


def test_a_bar_of_another_day_that_breaks_a_law_encloses_nothing() -> None:
    broken = except_at(bars_at([*OPENS[:200], instant("2024-12-03T15:00:00Z")]), 200, low=0.0)
    assert not judged(an_answer(broken)).sessions[0].silent.any()


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


def test_only_the_bars_that_are_wanted_are_kept_and_the_others_are_counted() -> None:
    wanted = np.zeros(390, bool)
    wanted[100:110] = True
    result = judged(an_answer(bars_at(OPENS[:105] + OPENS[106:])), wanted=wanted)
    assert result.columns.opened_at.tolist() == OPENS[100:105] + OPENS[106:110]
    assert result.fetch.dropped == {"already_held": 380}
    assert (result.expected, result.received) == (390, 389)
    # The neighbours that were not wanted are evidence all the same.
    assert np.flatnonzero(result.sessions[0].silent).tolist() == [105]


def test_the_repairs_of_an_adapter_stay_with_their_bars() -> None:
    flags = np.zeros(390, np.int16)
    flags[8] = BarFlag.STRING_NUMBERS
    answer = replace(an_answer(except_at(bars_at(OPENS), 7, low=11.2)), flags=flags)
    assert np.flatnonzero(judged(answer).flags).tolist() == [7]


def test_a_bar_of_the_future_is_refused() -> None:
    now = OPENS[100]
    result = judged(an_answer(bars_at([*OPENS[:98], OPENS[102]])), now=now)
    assert result.refused.reasons == ["it opens after the time it was asked at"]
    assert (result.kind, len(result.columns)) == ("ok", 98)


def test_an_answer_of_which_every_bar_breaks_a_law_is_malformed() -> None:
    answer = an_answer(replace(bars_at(OPENS), high=np.full(390, np.nan)))
    result = judged(answer)
    assert is_condemned(result, "malformed", answer)
    assert result.reason == "none of 390 bars can be used: a value is null, NaN or infinite (390)"


# --- named by their close ----------------------------------------------------------------------------------------------


def named_by_their_close(*, is_clipped: bool) -> BarsAnswer:
    """A whole session, each bar a minute late. ``is_clipped``: the adapter left out the one at the close, and said so."""
    late = [at + 60 for at in OPENS]
    if not is_clipped:
        return an_answer(bars_at(late))
    return replace(an_answer(bars_at(late[:-1])), outside_opened_at=np.array(late[-1:]))


@pytest.mark.parametrize("is_clipped", [False, True])
def test_bars_that_are_named_by_their_close_are_malformed(is_clipped: bool) -> None:  # noqa: FBT001
    answer = named_by_their_close(is_clipped=is_clipped)
    result = judged(answer)
    assert is_condemned(result, "malformed", answer)
    assert result.reason == "every bar of 2024-12-02 is stamped 60 seconds late, as if they were named by their close"


@pytest.mark.parametrize("shift", [-3600, -30, 30, 300, 3600])
def test_a_session_displaced_by_any_time_is_malformed(shift: int) -> None:
    answer = an_answer(bars_at(at + shift for at in OPENS))
    assert is_condemned(judged(answer), "malformed", answer)


def thin_sessions(shift: int, *, sessions: int) -> tuple[BarsAnswer, Grid]:
    """A bar at the open, one at the close and every fifth between, all displaced."""
    grid = grid_of(MONDAY, date(2024, 12, 1 + sessions))
    opens = grid.starts_at.reshape(sessions, 390)[:, [*range(0, 389, 5), 389]]
    return an_answer(bars_at((opens + shift).ravel().tolist())), grid


def test_thin_sessions_that_all_begin_and_end_late_by_the_same_time_are_malformed() -> None:
    answer, grid = thin_sessions(60, sessions=4)
    result = judged(answer, grid=grid)
    assert is_condemned(result, "malformed", answer)
    assert (
        result.reason == "the first and last bars of 4 sessions are stamped 60 seconds late, as if they were named by their close"
    )


@pytest.mark.parametrize(("shift", "sessions"), [(60, 1), (0, 4)])
def test_one_thin_session_that_begins_and_ends_late_may_be_chance(shift: int, sessions: int) -> None:
    answer, grid = thin_sessions(shift, sessions=sessions)
    assert judged(answer, grid=grid).kind == "ok"


def test_a_first_answer_a_hundred_times_too_dear_is_contradicted_by_the_close_before_it_that_it_names() -> None:
    answer = replace(an_answer(bars_at(OPENS)), previous_close=0.115)
    result = judged(answer)
    assert is_condemned(result, "malformed", answer)
    assert result.reason == "every price is a hundred times the own previous close of 2024-12-01"
    assert judged(replace(answer, previous_close=11.4)).kind == "ok"


def test_a_live_tick_behind_bars_named_by_their_close_hides_nothing() -> None:
    answer = named_by_their_close(is_clipped=True)
    ticking = replace(answer, outside_opened_at=np.array([OPENS[-1] + 60, OPENS[-1] + 84]))
    assert is_condemned(judged(ticking), "malformed", ticking)


def test_a_bar_at_the_close_beside_a_whole_session_is_a_late_print() -> None:
    result = judged(an_answer(bars_at([*OPENS, OPENS[-1] + 60])))
    assert (result.kind, len(result.columns)) == ("ok", 390)


def test_the_leak_after_a_half_day_whose_first_minute_is_missing_is_no_displacement() -> None:
    half_day = grid_of(first := MONDAY.replace(month=11, day=29), first)
    opens = half_day.opened_at.tolist()
    result = judged(an_answer(bars_at([*opens[1:], *(opens[-1] + 60 * n for n in range(1, 240))])), half_day)
    assert (result.kind, len(result.columns)) == ("ok", 209)


def test_bars_between_the_places_of_the_grid_are_malformed() -> None:
    hours = grid_of(MONDAY, FRIDAY, Interval.H1)
    # On the hour of the clock, where ours open with the session, at half past.
    clock_hours = [at + 1800 for at in hours.opened_at.tolist()]
    answer = an_answer(bars_at(clock_hours), interval=Interval.H1)
    assert is_condemned(judged(answer, hours), "malformed", answer)


@pytest.mark.parametrize("step", [5, 15, 30, 60])
def test_bars_of_a_longer_interval_than_asked_are_malformed(step: int) -> None:
    answer = an_answer(bars_at(OPENS[::step]))
    result = judged(answer)
    assert is_condemned(result, "malformed", answer)
    assert result.reason == f"every {step}th bar came and none between: bars of a longer interval than asked"


def test_a_thin_symbol_is_not_taken_for_a_longer_interval() -> None:
    result = judged(an_answer(bars_at(OPENS[at] for at in (0, 5, 30, 75, 110, 200, 205, 340, 385))))
    assert (result.kind, len(result.columns)) == ("ok", 9)


# --- from the past -----------------------------------------------------------------------------------------------------


def test_a_dense_answer_that_ends_at_its_own_newest_stamp_is_stale_and_kept() -> None:
    result = judged(replace(an_answer(bars_at(OPENS[:200])), newest=OPENS[200]))
    assert (result.kind, result.fetch.outcome, len(result.columns)) == ("stale", "stale", 200)
    assert result.reason == "answered from the past; its newest stamp is 2024-12-02T17:50:00+00:00"


def test_a_provider_that_is_a_quarter_of_an_hour_late_is_not_stale() -> None:
    now = OPENS[200]
    assert judged(replace(an_answer(bars_at(OPENS[:185])), newest=OPENS[185]), now=now).kind == "ok"


def test_a_thin_symbol_whose_last_trade_was_long_ago_is_not_stale() -> None:
    assert judged(replace(an_answer(bars_at(OPENS[:200:7])), newest=OPENS[196])).kind == "ok"


def test_days_that_end_before_the_newest_session_are_stale() -> None:
    weeks = grid_of(MONDAY, FRIDAY.replace(day=20), Interval.D1)
    labels = weeks.opened_at.tolist()
    assert (
        judged(
            replace(an_answer(bars_at(labels[:-1]), interval=Interval.D1), newest=int(weeks.ends_at[-2])),
            weeks,
            now=instant("2024-12-21T12:00:00Z"),
        ).kind
        == "stale"
    )


# --- against what is stored --------------------------------------------------------------------------------------------


def test_an_answer_on_another_basis_than_what_is_stored_is_refused_whole() -> None:
    split = CorporateAction("split", MONDAY.replace(day=5), 10.0)
    answer = replace(an_answer(bars_at(OPENS)), actions=[split])
    result = judged(answer, reference=Reference(close=115.0, session=MONDAY.replace(month=11, day=29)))
    assert is_condemned(result, "mixed_basis", answer)
    # What it tells of the split is what makes the next answer readable.
    assert result.actions == [split]


def test_a_bar_in_another_unit_is_refused_and_is_not_silence() -> None:
    slip = {name: 100.0 * value for name, value in (("open", 11.0), ("high", 12.0), ("low", 10.0), ("close", 11.5))}
    result = judged(an_answer(except_at(bars_at(OPENS), 7, **slip)))
    assert result.refused.reasons == ["the prices are a hundred times those around them"]
    assert not result.sessions[0].silent.any()
    assert (result.expected, result.received) == (390, 389)


# --- laws --------------------------------------------------------------------------------------------------------------

ROWS = st.lists(
    st.tuples(st.integers(-70, 460), st.sampled_from([0.01, 1.0, 10.0, 100.0, 0.0, np.nan])), unique_by=lambda row: row[0]
)


@given(ROWS, st.sets(st.integers(0, 389), max_size=5), st.integers(-100, 500), st.booleans(), st.sampled_from([None, 11.5, 115.0]))
def test_every_row_received_is_kept_refused_or_counted(
    rows: list[tuple[int, float]],
    nulls: set[int],
    minutes_later: int,
    is_filling: bool,  # noqa: FBT001
    stored: float | None,
) -> None:
    minutes, factors = zip(*sorted(rows), strict=True) if rows else ((), ())
    columns = bars_at(OPENS[0] + 60 * minute for minute in minutes)
    for name in ("open", "high", "low", "close"):
        getattr(columns, name)[:] *= factors
    answer = an_answer(columns, nulls=[OPENS[at] for at in nulls if at not in minutes])
    result = judged(
        answer,
        now=OPENS[0] + 60 * minutes_later,
        wanted=np.arange(390) % 2 == 0 if is_filling else None,
        reference=Reference(close=stored, session=MONDAY.replace(month=11, day=29)),
    )
    assert accounted_for(result) == received(answer)
    assert len(result.refused.reasons) == len(result.refused.columns)
    assert len(result.flags) == len(result.session_index) == len(result.columns)
    assert result.received <= result.expected


@given(st.sets(st.integers(0, 1949)))
def test_the_bitmaps_of_an_answer_are_exactly_its_bars(places: set[int]) -> None:
    week = grid_of(MONDAY, FRIDAY)
    opens = week.opened_at[sorted(places)].tolist()
    result = judged(an_answer(bars_at(opens)), week)
    flat = np.concatenate([session.bars for session in result.sessions])
    assert week.opened_at[flat].tolist() == opens
    per_session = np.bincount(result.session_index, minlength=5) if opens else np.zeros(5)
    assert per_session.tolist() == [session.bars.sum() for session in result.sessions]
