"""What is asked for when bars are missing or sessions are due to be asked again: in turn, shared, and a part for each tier."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_pipeline.defs.build import build_definitions
from market_data_pipeline.defs.healing import HEAD_START, SHARES, Healing, healings, in_turn
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.partitions import Box, Cell, cells_between, default_plan, plan_partitions
from market_data_pipeline.domain.sessions import trading_calendar
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.settings import Settings
from market_data_pipeline.storage.ledger import HEAD_START_SECONDS
from market_data_pipeline_tests.defs.fakes import FakeWorkbench, due_gap, due_recheck, instrument, universe

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from market_data_pipeline.domain.partitions import PartitionPlan
    from market_data_pipeline.storage.ledger import DueGap, DueRecheck

PLAN = default_plan()
MONTHS = plan_partitions(symbols=3, calendars=[trading_calendar("XNYS")], start=date(2024, 1, 2), today=date(2024, 3, 20), budget=9)
SYMBOLS = ["AAPL", "IBM", "MSFT"]
NOW = datetime(2024, 3, 20, 22, 0, tzinfo=UTC)
MONDAY, TUESDAY, FRIDAY = date(2024, 3, 4), date(2024, 3, 5), date(2024, 3, 8)
LONG_AGO = NOW - timedelta(days=3)


def found(gaps: Sequence[DueGap] = (), rechecks: Sequence[DueRecheck] = (), plan: PartitionPlan = PLAN) -> list[Healing]:
    return healings(gaps, plan, rechecks=rechecks, symbols=SYMBOLS, in_flight={}, now=NOW)


def summary(healing: Healing) -> tuple[str, str, str]:
    return healing.cause, healing.box.first.key, healing.box.last.key


# --- rechecks


def test_sessions_to_ask_again_are_one_run_of_neighbours() -> None:
    rechecks = [due_recheck(symbol, MONDAY, TUESDAY, symbol_id=n) for n, symbol in enumerate(SYMBOLS)]
    (healing,) = found(rechecks=rechecks)
    assert (summary(healing), healing.again) == (("recheck", "2024-03-04|AAPL", "2024-03-05|MSFT"), (MONDAY, TUESDAY))


@pytest.mark.parametrize(("symbol", "session"), [("AAPL", TUESDAY), ("IBM", MONDAY)], ids=["the next session", "the next symbol"])
def test_a_gap_beside_a_recheck_rides_in_its_run(symbol: str, session: date) -> None:
    (healing,) = found([due_gap(symbol, session)], [due_recheck("AAPL", MONDAY)])
    assert (healing.cause, healing.box.partitions) == ("recheck", 2)


def test_a_gap_elsewhere_has_its_own_run_in_which_only_what_is_missing_is_asked_for() -> None:
    assert {summary(healing) for healing in found([due_gap("MSFT", FRIDAY)], [due_recheck("AAPL", MONDAY)])} == {
        ("recheck", "2024-03-04|AAPL", "2024-03-04|AAPL"),
        ("gap", "2024-03-08|MSFT", "2024-03-08|MSFT"),
    }


def test_in_a_partition_of_a_month_only_the_sessions_that_are_due_are_asked_again() -> None:
    gap = due_gap("AAPL", date(2024, 3, 12), interval=Interval.D1)
    (healing,) = found([gap], [due_recheck("AAPL", TUESDAY, FRIDAY, interval=Interval.D1)], MONTHS)
    # The gap rides along: the run asks for what is missing of the rest of the month.
    assert (healing.cause, healing.again, healing.box.partitions) == ("recheck", (TUESDAY, FRIDAY), 1)


def test_months_of_which_other_sessions_are_due_are_runs_of_their_own() -> None:
    rechecks = [due_recheck("AAPL", TUESDAY, interval=Interval.D1), due_recheck("IBM", FRIDAY, symbol_id=2, interval=Interval.D1)]
    assert [healing.again for healing in found(rechecks=rechecks, plan=MONTHS)] == [(TUESDAY, TUESDAY), (FRIDAY, FRIDAY)]


@settings(deadline=None)
@given(
    gaps=st.lists(st.tuples(st.sampled_from(SYMBOLS), st.integers(0, 20), st.integers(0, 6)), max_size=12),
    again=st.lists(st.tuples(st.sampled_from(SYMBOLS), st.integers(0, 20), st.integers(0, 6)), max_size=12),
    monthly=st.booleans(),
)
def test_what_is_due_is_in_one_run_and_every_session_to_ask_again_is_asked_again(
    gaps: list[tuple[str, int, int]], again: list[tuple[str, int, int]], *, monthly: bool
) -> None:
    plan, interval = (MONTHS, Interval.D1) if monthly else (PLAN, Interval.M1)
    start = date(2024, 2, 20)

    def dates(a: int, b: int) -> tuple[date, date]:
        return start + timedelta(days=a), start + timedelta(days=a + b)

    holes = [due_gap(symbol, *dates(a, b), symbol_id=SYMBOLS.index(symbol), interval=interval) for symbol, a, b in gaps]
    looks = [due_recheck(symbol, *dates(a, b), symbol_id=SYMBOLS.index(symbol), interval=interval) for symbol, a, b in again]
    periods = plan.periods(interval)
    runs = found(holes, looks, plan)
    held = [(cell, healing) for healing in runs for cell in cells_of(healing.box, plan, interval)]
    asked_for = [(due.symbol, due.first, due.last) for due in holes] + [(due.symbol, due.first, due.last) for due in looks]
    needed = {Cell(period, symbol) for symbol, begin, end in asked_for for period in periods.keys(begin, end)}
    assert sorted(cell for cell, _ in held) == sorted(needed)
    run_of = dict(held)
    for look in looks:
        for period in periods.keys(look.first, look.last):
            asked, (first, last) = run_of[Cell(period, look.symbol)].again, periods.days_of(period)
            assert asked is not None
            assert asked[0] <= max(look.first, first)
            assert min(look.last, last) <= asked[1]


def cells_of(box: Box, plan: PartitionPlan, interval: Interval) -> list[Cell]:
    return cells_between(box.first, box.last, periods=plan.periods(interval).existing(NOW), symbols=SYMBOLS)


# --- whose turn it is


def test_the_head_start_of_the_better_tiers_is_the_ledgers() -> None:
    assert HEAD_START.total_seconds() == HEAD_START_SECONDS


def test_gaps_and_rechecks_have_one_order_by_how_long_they_have_been_due() -> None:
    gaps = [due_gap("AAPL", MONDAY, due_since=LONG_AGO), due_gap("AAPL", FRIDAY, due_since=LONG_AGO + timedelta(hours=2))]
    rechecks = [due_recheck("MSFT", MONDAY, due_since=LONG_AGO + timedelta(hours=1))]
    assert [healing.cause for healing in found(gaps, rechecks)] == ["gap", "recheck", "gap"]


def healing(number: int, tier: Tier) -> Healing:
    cell = Cell("2024-03-04", f"S{number:04d}")
    return Healing(Interval.M1, Box(cell, cell, 1), str(number), None, tier, (NOW + timedelta(seconds=number), number))


@given(tiers=st.lists(st.sampled_from(list(Tier)), max_size=60), room=st.integers(1, 30))
def test_a_tick_serves_the_oldest_of_all_and_of_each_tier_at_least_its_share(tiers: list[Tier], room: int) -> None:
    due = [healing(number, tier) for number, tier in enumerate(tiers)]
    order = in_turn(due, room)
    served = order[:room]
    assert sorted(order, key=lambda h: h.turn) == due
    assert served[:1] == due[:1]
    assert len(served) == min(room, len(due))
    for tier, share in SHARES.items():
        mine = [h for h in due if h.tier is tier]
        assert len([h for h in served if h.tier is tier]) >= min(len(mine), int(room * share))
        # Within a tier nobody is passed by somebody who has waited less.
        assert [h for h in served if h.tier is tier] == mine[: len([h for h in served if h.tier is tier])]


@given(
    tiers=st.lists(st.sampled_from(list(Tier)), min_size=1, max_size=40),
    room=st.integers(1, 12),
    newcomers=st.lists(st.lists(st.sampled_from(list(Tier)), max_size=6), max_size=12),
)
def test_no_gap_waits_longer_than_one_round_whatever_comes_after_it(
    tiers: list[Tier], room: int, newcomers: list[list[Tier]]
) -> None:
    """A round: as many ticks as it takes to serve, one a tick at the least, all that were due before it."""
    waiting = [healing(number, tier) for number, tier in enumerate(tiers)]
    first = set(waiting)
    ticks = 0
    while first & set(waiting):
        served = set(in_turn(waiting, room)[:room])
        came = newcomers[ticks] if ticks < len(newcomers) else []
        ticks += 1
        # What is served and does not heal is due again later: behind everything that waits.
        again = [replace(h, turn=(h.turn[0] + timedelta(days=ticks), h.turn[1])) for h in waiting if h in served]
        new = [healing(10_000 * ticks + n, tier) for n, tier in enumerate(came)]
        waiting = sorted([*(h for h in waiting if h not in served), *again, *new], key=lambda h: h.turn)
        assert ticks <= len(tiers)


def test_a_flood_of_old_gaps_of_t2_leaves_t0_its_half() -> None:
    due = [healing(n, Tier.T2) for n in range(100)] + [healing(n, Tier.T0) for n in range(100, 130)]
    assert [h.tier for h in in_turn(due, 25)[:25]].count(Tier.T0) == 12


# --- the sensor


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as opened:
        opened.add_dynamic_partitions("symbols", SYMBOLS)
        yield opened


def ask(workbench: FakeWorkbench, instance: dg.DagsterInstance, **told: int) -> list[dg.RunRequest]:
    definitions = build_definitions(Settings(**told), PLAN, workbenches=workbench)  # type: ignore[arg-type]
    context = dg.build_sensor_context(instance=instance, definitions=definitions, resources={"workbenches": workbench})
    said: Any = definitions.resolve_sensor_def("gaps")(context)
    return [] if isinstance(said, dg.SkipReason) else list(said)


def test_a_recheck_becomes_a_run_that_asks_again_for_what_is_there(instance: dg.DagsterInstance) -> None:
    (request,) = ask(FakeWorkbench(rechecks=[due_recheck("AAPL", MONDAY, TUESDAY)], at=NOW), instance)
    assert (request.job_name, request.tags["mdp/cause"], request.tags["mdp/lane"]) == ("candles_1m", "recheck", "healing")
    config = request.run_config["ops"]["fetch_candles_1m"]["config"]
    assert config == {"refetch_from": "2024-03-04", "refetch_to": "2024-03-05"}


def test_the_run_of_a_recheck_can_be_launched_and_asks_again(instance: dg.DagsterInstance) -> None:
    (request,) = ask(FakeWorkbench(rechecks=[due_recheck("AAPL", MONDAY)], at=NOW), instance)
    workbench = FakeWorkbench(universe(*SYMBOLS), at=NOW)
    job = build_definitions(Settings(), PLAN, workbenches=workbench).resolve_job_def("candles_1m")
    assert job.execute_in_process(instance=instance, tags=request.tags, run_config=request.run_config).success
    # The minutes again, and what is derived from them once.
    assert workbench.refetched == [True, False, False, False]
    assert {lane.value for lane, _ in workbench.lanes[:1]} == {"healing"}


def test_a_recheck_of_the_session_that_has_just_closed_waits_for_the_schedules(instance: dg.DagsterInstance) -> None:
    at = datetime(2024, 3, 20, 20, 15, tzinfo=UTC)
    assert ask(FakeWorkbench(rechecks=[due_recheck("AAPL", date(2024, 3, 20))], at=at), instance) == []


def test_rechecks_and_gaps_share_the_bound_of_a_tick(instance: dg.DagsterInstance) -> None:
    gaps = [due_gap("AAPL", date(2024, 1, 2) + timedelta(weeks=n)) for n in range(4)]
    rechecks = [due_recheck("MSFT", date(2024, 1, 3) + timedelta(weeks=n)) for n in range(4)]
    workbench = FakeWorkbench(gaps=gaps, rechecks=rechecks, at=NOW)
    requests = ask(workbench, instance, heal_requests_per_tick=3)
    assert len(requests) == 3
    job = build_definitions(Settings(), PLAN, workbenches=FakeWorkbench()).resolve_job_def("candles_1m")
    for request in requests:
        instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags=request.tags)
    assert ask(workbench, instance, heal_requests_per_tick=3) == []


def test_a_new_gap_of_t0_is_served_before_older_ones_of_t2_have_all_been(instance: dg.DagsterInstance) -> None:
    old = [due_gap("MSFT", date(2024, 1, 2) + timedelta(weeks=n), symbol_id=2, due_since=LONG_AGO) for n in range(9)]
    new = due_gap("AAPL", FRIDAY, symbol_id=1)
    held = [instrument("AAPL", symbol_id=1), instrument("MSFT", symbol_id=2, tier=Tier.T2)]
    requests = ask(FakeWorkbench(held, gaps=[*old, new], at=NOW), instance, heal_requests_per_tick=4)
    assert "2024-03-08|AAPL" in {request.tags["dagster/asset_partition_range_start"] for request in requests}


def test_another_round_of_the_same_recheck_has_another_run_key(instance: dg.DagsterInstance) -> None:
    first = due_recheck("AAPL", MONDAY)
    keys = {
        ask(FakeWorkbench(rechecks=[due], at=NOW), instance)[0].run_key
        for due in (first, first, replace(first, due_since=first.due_since + timedelta(days=1)))
    }
    assert len(keys) == 2
