"""The jobs that the tiers' cadences make: which, when, and the same ones for the same tick."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.jobs import as_new_job, parse_job, payload_of
from market_data_pipeline.domain.sessions import trading_calendar
from market_data_pipeline.domain.universe import Instrument, Tier
from market_data_pipeline.ingest.sweep import SYMBOLS_A_JOB, running_hours, sweep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from market_data_pipeline.domain.jobs import BarsFetchJob

EVERY = {Tier.T0: 60.0, Tier.T1: 300.0, Tier.T2: 0.0}
# New York's Thursday, half an hour after the open: a minute at which both T0 and T1 have their turn.
OPEN = datetime(2024, 3, 7, 15, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def instruments(tier: Tier, count: int = 1, *, calendar: str = "XNYS", first_id: int = 1) -> list[Instrument]:
    return [Instrument(first_id + n, f"{tier}N{first_id + n}", calendar, calendar, tier) for n in range(count)]


def swept(held: Sequence[Instrument], at: datetime = OPEN) -> list[BarsFetchJob]:
    return sweep(held, trading_calendar, EVERY, now=at, tick=at)


def test_a_job_holds_the_minutes_of_the_whole_running_session_for_at_most_two_hundred_symbols() -> None:
    jobs = swept(instruments(Tier.T0, 450))
    assert [len(job.symbols) for job in jobs] == [200, 200, 50]
    assert {(job.interval, job.start, job.end) for job in jobs} == {
        (Interval.M1, datetime(2024, 3, 7, 14, 30, tzinfo=UTC), datetime(2024, 3, 7, 21, 0, tzinfo=UTC))
    }
    assert SYMBOLS_A_JOB == 200


def test_t0_is_swept_every_minute_t1_every_fifth_and_t2_never() -> None:
    held = [*instruments(Tier.T0), *instruments(Tier.T1, first_id=2), *instruments(Tier.T2, first_id=3)]
    turns = [[job.priority for job in swept(held, OPEN + n * MINUTE)] for n in range(6)]
    assert turns == [[Tier.T0, Tier.T1], [Tier.T0], [Tier.T0], [Tier.T0], [Tier.T0], [Tier.T0, Tier.T1]]


@given(every=st.integers(61, 4_000), begin=st.integers(1_700_000_000, 1_800_000_000).map(lambda n: n // 60 * 60))
def test_a_cadence_that_is_no_whole_number_of_minutes_has_as_many_turns_as_it_should(every: int, begin: int) -> None:
    held = instruments(Tier.T0, calendar="24/7")
    ticks = [datetime.fromtimestamp(begin + 60 * n, UTC) for n in range(200)]
    turns = sum(bool(sweep(held, lambda _: ROUND_THE_CLOCK, {Tier.T0: every}, now=OPEN, tick=tick)) for tick in ticks)
    assert abs(turns - 200 * 60 / every) <= 1


ROUND_THE_CLOCK = trading_calendar("24/7")


@pytest.mark.parametrize(
    "at",
    [
        datetime(2024, 3, 7, 14, 30, tzinfo=UTC),
        datetime(2024, 3, 7, 21, 4, tzinfo=UTC),
        datetime(2024, 3, 9, 15, 0, tzinfo=UTC),
        # A half day: New York closed at 18:00 UTC.
        datetime(2024, 11, 29, 18, 5, tzinfo=UTC),
    ],
    ids=["at the open", "after the close", "on a Saturday", "on a half day"],
)
def test_while_the_market_is_closed_there_is_nothing_to_sweep(at: datetime) -> None:
    assert swept(instruments(Tier.T0), at) == []


def test_the_last_bars_of_a_session_are_swept_once_they_are_due() -> None:
    assert swept(instruments(Tier.T0), datetime(2024, 3, 7, 21, 2, tzinfo=UTC)) != []


def test_each_market_has_its_own_session() -> None:
    held = [*instruments(Tier.T0), *instruments(Tier.T0, calendar="24/7", first_id=2)]
    assert {job.start for job in swept(held)} == {datetime(2024, 3, 7, tzinfo=UTC), datetime(2024, 3, 7, 14, 30, tzinfo=UTC)}


def test_a_session_belongs_to_the_day_of_the_exchange_and_not_of_utc() -> None:
    # Sydney's Monday 2024-03-04 opened on Sunday at 23:00 UTC.
    found = running_hours(trading_calendar("XASX"), datetime(2024, 3, 3, 23, 30, tzinfo=UTC))
    assert found is not None
    assert found[0] == date(2024, 3, 4)


def test_a_lunch_break_is_part_of_the_session() -> None:
    # Tokyo rests from 02:30 to 03:30 UTC.
    assert swept(instruments(Tier.T0, calendar="XTKS"), datetime(2024, 3, 7, 3, 0, tzinfo=UTC)) != []


def test_who_was_not_listed_that_day_is_left_out() -> None:
    gone = Instrument(9, "GONE", "XNYS", "XNYS", Tier.T0, active_to=date(2024, 3, 6))
    assert [job.symbols for job in swept([*instruments(Tier.T0), gone])] == [("T0N1",)]


def test_who_is_asked_for_in_vain_rests_while_the_others_are_swept() -> None:
    held = instruments(Tier.T0, 5)
    (job,) = sweep(held, trading_calendar, EVERY, now=OPEN, tick=OPEN, failing=lambda *_: {2, 3})
    assert job.symbols == ("T0N1", "T0N4", "T0N5")


def test_in_an_outage_nobody_rests() -> None:
    (job,) = sweep(instruments(Tier.T0, 5), trading_calendar, EVERY, now=OPEN, tick=OPEN, failing=lambda *_: {1, 2, 3})
    assert len(job.symbols) == 5


def test_beyond_what_the_calendar_knows_nothing_is_swept() -> None:
    assert swept(instruments(Tier.T0), datetime(2090, 3, 7, 15, 0, tzinfo=UTC)) == []


def test_the_job_of_the_next_turn_does_the_same_so_it_is_a_duplicate_while_this_one_waits() -> None:
    (now,), (later,) = swept(instruments(Tier.T0)), swept(instruments(Tier.T0), OPEN + MINUTE)
    assert as_new_job(now, source="sweep").dedupe_key == as_new_job(later, source="sweep").dedupe_key
    assert now.job_id != later.job_id


def test_a_tick_that_is_repeated_makes_the_same_jobs() -> None:
    held = instruments(Tier.T0, 450)
    assert [payload_of(job) for job in swept(held)] == [payload_of(job) for job in swept(list(reversed(held)))]


def test_every_job_can_be_read_again() -> None:
    for job in swept([*instruments(Tier.T0), *instruments(Tier.T0, calendar="24/7", first_id=2)]):
        assert parse_job(payload_of(job)) == job
