"""Jobs carried out on the real thing: a provider process, Postgres, and the queue that is told how each ended."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.jobs import BackfillJob, BarsFetchJob, QuotesFetchJob, as_new_job
from market_data_pipeline.domain.queue import JobState, Lease
from market_data_pipeline.domain.sessions import trading_calendar
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.ingest.jobs import carry_out, sessions_of, work_off
from market_data_pipeline_tests.world import FRIDAY, MONDAY, World, a_world, expected_opens, write_bars

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from market_data_pipeline.domain.jobs import Job
    from market_data_pipeline.ingest.routing import Router

OPENS = expected_opens()
WEDNESDAY = date(2024, 12, 4)


@pytest.fixture
def world(tmp_path: Path, database_url: str) -> Iterator[World]:
    data = tmp_path / "data"
    for symbol in ("AAPL", "MSFT"):
        write_bars(data, symbol, Interval.M1, OPENS)
    with a_world(data, database_url, tmp_path / "home") as world:
        world.load("AAPL", "MSFT")
        yield world


def at(day: date, hour: int = 0, minute: int = 0) -> datetime:
    return datetime(day.year, day.month, day.day, hour, minute, tzinfo=UTC)


def window(first: date = MONDAY, last: date = FRIDAY) -> dict[str, datetime]:
    return {"start": at(first, 14, 30), "end": at(last, 21)}


def bars_job(name: str, *symbols: str, **values: Any) -> BarsFetchJob:  # noqa: ANN401 - fields of a job
    told = {"priority": Tier.T0, "symbols": symbols or ("AAPL",), "interval": Interval.M1, **window(), **values}
    return BarsFetchJob(job_id=name, **told)


def backfill_job(name: str, symbol: str = "AAPL", **values: Any) -> BackfillJob:  # noqa: ANN401 - as above
    return BackfillJob(job_id=name, **{"priority": Tier.T0, "symbol": symbol, "interval": Interval.M1, **window(), **values})


def leased(world: World, *jobs: Job) -> list[Lease]:
    queue = world.pipeline.jobs
    queue.submit([as_new_job(job, source="test") for job in jobs])
    return queue.lease("worker", tier=Tier.T0, limit=100)


def done(world: World, *jobs: Job) -> dict[str, tuple[JobState | None, str | None, Any]]:
    """The state, the reason and the result of each."""
    ended = work_off(leased(world, *jobs), queue=world.pipeline.jobs, pipeline=world.pipeline)
    return {e.outcome.lease.job_id: (e.state, e.outcome.failure, e.outcome.result) for e in ended}


def stored(world: World, symbol: str, interval: Interval = Interval.M1) -> int:
    (instrument,) = world.pipeline.universe.instruments(symbols=[symbol])
    return len(world.stored(instrument, interval))


def test_a_jobs_bars_are_stored_with_what_is_derived_from_them_and_it_is_done(world: World) -> None:
    (ended,) = done(world, bars_job("one", "AAPL", "MSFT")).values()
    state, failure, result = ended
    assert (state, failure, result["inserted"], result["providers"]) == (JobState.DONE, None, 2 * len(OPENS), ["yahoo"])
    assert (stored(world, "MSFT"), stored(world, "MSFT", Interval.M5)) == (len(OPENS), len(OPENS) // 5)
    record = world.pipeline.jobs.job("one")
    assert record is not None
    assert (record.state, record.result) == (JobState.DONE, result)


def test_jobs_that_overlap_share_their_requests_and_each_is_done(world: World) -> None:
    alone = done(world, backfill_job("alone"))["alone"][2]["requests"]
    shared = done(
        world,
        backfill_job("early", "MSFT", **window(last=WEDNESDAY)),
        backfill_job("late", "MSFT", **window(first=WEDNESDAY)),
    )
    assert {state for state, _, _ in shared.values()} == {JobState.DONE}
    asked = [request for request in world.simulator.requests() if "MSFT" in str(request)]
    assert len(asked) <= max(alone, 1)
    assert stored(world, "MSFT") == len(OPENS)


def test_a_job_done_twice_takes_effect_once(world: World) -> None:
    done(world, bars_job("one"))
    revisions = world.count("candle_revisions")
    world.simulator.forget_requests()
    assert done(world, bars_job("two"))["two"][2]["inserted"] == 0
    assert (world.simulator.requests(), world.count("candle_revisions"), stored(world, "AAPL")) == ([], revisions, len(OPENS))


def test_a_finished_session_that_a_killed_process_stored_is_still_derived_from(world: World) -> None:
    world.ingest(world.pipeline.universe.instruments(symbols=["AAPL"]))
    assert stored(world, "AAPL", Interval.M5) == 0
    done(world, backfill_job("one"))
    assert stored(world, "AAPL", Interval.M5) == len(OPENS) // 5


def test_of_a_running_session_what_is_due_is_fetched_and_the_next_job_fetches_the_rest(world: World) -> None:
    world.simulator.set_now(at(FRIDAY, 15))
    done(world, bars_job("one", **window(first=FRIDAY)))
    first = stored(world, "AAPL")
    world.simulator.set_now(at(FRIDAY, 15, 10))
    done(world, bars_job("two", **window(first=FRIDAY)))
    assert (25 <= first <= 30, stored(world, "AAPL")) == (True, first + 10)


def test_a_job_for_five_minutes_fetches_the_minutes_they_are_made_of(world: World) -> None:
    done(world, bars_job("one", interval=Interval.M5))
    assert (stored(world, "AAPL"), stored(world, "AAPL", Interval.M5)) == (len(OPENS), len(OPENS) // 5)


def test_a_symbol_that_the_universe_never_had_makes_a_dead_letter(world: World) -> None:
    state, failure, _ = done(world, backfill_job("ghost", "GHOST"))["ghost"]
    assert (state, failure) == (JobState.DEAD, "not in the universe: GHOST; load them (mdp universe load)")


def test_of_many_symbols_the_unknown_one_is_named_and_the_others_are_done(world: World) -> None:
    state, _, result = done(world, bars_job("one", "AAPL", "GHOST"))["one"]
    assert (state, result["unknown"], result["inserted"]) == (JobState.DONE, ["GHOST"], len(OPENS))


def test_a_symbol_that_nobody_answers_for_is_tried_again_and_says_why(world: World) -> None:
    world.load("NOBODY")
    state, failure, _ = done(world, backfill_job("one", "NOBODY"))["one"]
    assert state is JobState.QUEUED
    assert failure is not None
    assert "NOBODY" in failure


def test_of_many_symbols_one_that_nobody_answers_for_does_not_fail_the_job(world: World) -> None:
    world.load("NOBODY")
    state, _, result = done(world, bars_job("one", "AAPL", "NOBODY"))["one"]
    assert (state, list(result["failed"]), result["inserted"]) == (JobState.DONE, ["NOBODY"], len(OPENS))


def test_a_hint_at_somebody_who_is_not_there_makes_a_dead_letter(world: World) -> None:
    state, failure, _ = done(world, backfill_job("one", provider_hint="nowhere"))["one"]
    assert state is JobState.DEAD
    assert "no provider is called 'nowhere'" in (failure or "")


def test_a_hint_is_passed_over_where_overriding_the_policy_is_not_allowed(tmp_path: Path, database_url: str) -> None:
    write_bars(tmp_path / "data", "AAPL", Interval.M1, OPENS)
    with a_world(tmp_path / "data", database_url, tmp_path / "home", allow_source_override=False) as world:
        world.load("AAPL")
        assert done(world, backfill_job("one", provider_hint="nowhere"))["one"][0] is JobState.DONE


def test_a_window_without_a_session_is_done_with_nothing(world: World) -> None:
    weekend = backfill_job("one", start=at(date(2024, 11, 30)), end=at(date(2024, 12, 1)))
    assert done(world, weekend)["one"] == (JobState.DONE, None, {"sessions": 0})


def test_quotes_are_fetched_and_stored(world: World) -> None:
    state, _, result = done(world, QuotesFetchJob(job_id="q", priority=Tier.T0, symbols=("AAPL", "MSFT")))["q"]
    assert (state, result["quotes"], world.count("quotes_l1")) == (JobState.DONE, 2, 2)


def test_a_payload_that_an_older_release_wrote_is_a_dead_letter_with_its_reason(world: World) -> None:
    (lease,) = leased(world, backfill_job("one"))
    (outcome,) = carry_out(
        [Lease(lease.job_id, lease.token, lease.kind, lease.tier, {"type": "backfill"}, 1, lease.until)], pipeline=world.pipeline
    )
    assert outcome.is_final
    assert "symbol is missing" in (outcome.failure or "")


class _BreaksForQuotes:
    """The router with a fault of ours in it."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def configured(self, capability: str, *, hint: str | None = None) -> object:
        if capability == "quotes_l1":
            raise ValueError("a fault of ours")
        return self._router.configured(capability, hint=hint)

    def __getattr__(self, name: str) -> object:
        return getattr(self._router, name)


def test_what_breaks_fails_its_own_jobs_and_no_others(world: World) -> None:
    faulty = replace(world.pipeline, router=_BreaksForQuotes(world.pipeline.router))  # type: ignore[arg-type]
    leases = leased(world, QuotesFetchJob(job_id="q", priority=Tier.T0, symbols=("AAPL",)), bars_job("one"))
    ended = {e.outcome.lease.job_id: e for e in work_off(leases, queue=world.pipeline.jobs, pipeline=faulty)}
    assert (ended["q"].state, ended["q"].outcome.failure) == (JobState.QUEUED, "ValueError: a fault of ours")
    assert ended["one"].state is JobState.DONE


def test_work_that_is_cancelled_gives_back_what_it_has_not_ended(world: World) -> None:
    leases = leased(world, bars_job("fresh"), backfill_job("old", "MSFT"))
    working = work_off(leases, queue=world.pipeline.jobs, pipeline=world.pipeline)
    assert next(working).outcome.lease.job_id == "fresh"
    working.close()  # type: ignore[attr-defined]
    records = {record.job_id: (record.state, record.attempts) for record in world.pipeline.jobs.jobs(limit=9)}
    assert records == {"fresh": (JobState.DONE, 1), "old": (JobState.QUEUED, 0)}


def test_a_job_that_is_lost_while_it_is_worked_on_is_not_ended_twice(world: World) -> None:
    leases = leased(world, bars_job("fresh"), backfill_job("old", "MSFT"))
    working = work_off(leases, queue=world.pipeline.jobs, pipeline=world.pipeline)
    next(working)
    world.pipeline.jobs.release(leases)
    world.pipeline.jobs.lease("another", tier=Tier.T0, limit=1)
    assert [(ended.outcome.lease.job_id, ended.state) for ended in working] == [("old", None)]


def test_a_job_lost_to_another_worker_is_not_done_by_this_one(world: World) -> None:
    (lease,) = leased(world, bars_job("one"))
    world.pipeline.jobs.release([lease])
    world.pipeline.jobs.lease("another", tier=Tier.T0, limit=1)
    world.simulator.forget_requests()
    assert list(work_off([lease], queue=world.pipeline.jobs, pipeline=world.pipeline)) == []
    assert world.simulator.requests() == []
    record = world.pipeline.jobs.job("one")
    assert record is not None
    assert (record.state, record.leased_by) == (JobState.LEASED, "another")


# --- windows


def sessions(calendar: str, start: datetime, end: datetime, interval: Interval = Interval.M1) -> tuple[date, date] | None:
    return sessions_of(backfill_job("one", start=start, end=end, interval=interval), trading_calendar(calendar))


def test_a_window_has_the_sessions_it_overlaps() -> None:
    close = at(MONDAY, 21)
    assert sessions("XNYS", close - timedelta(minutes=1), at(WEDNESDAY, 14, 31)) == (MONDAY, WEDNESDAY)
    assert sessions("XNYS", close, at(WEDNESDAY, 14, 30)) == (date(2024, 12, 3), date(2024, 12, 3))


def test_a_session_that_begins_on_the_utc_day_before_is_found() -> None:
    # Sydney's Tuesday begins on Monday at 23:00 UTC.
    assert sessions("XASX", at(MONDAY, 23), at(MONDAY, 23, 30)) == (date(2024, 12, 3), date(2024, 12, 3))


def test_daily_windows_are_of_dates() -> None:
    assert sessions("XNYS", at(MONDAY), at(FRIDAY), Interval.D1) == (MONDAY, date(2024, 12, 5))


def test_a_window_beyond_what_the_calendar_knows_has_the_sessions_it_does_know() -> None:
    assert sessions("XNYS", at(date(2080, 1, 1)), at(date(2080, 1, 3))) is None
