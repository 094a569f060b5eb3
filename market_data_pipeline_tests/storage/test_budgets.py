"""The right to send: never more than the limits in any window, however many processes; live first; less after a refusal."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.exc import ProgrammingError

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.capabilities import Lane, Priority, RateLimit
from market_data_pipeline.domain.errors import BudgetSpentError
from market_data_pipeline.simulator.client import running_simulator
from market_data_pipeline.storage.budgets import PostgresBudget
from market_data_pipeline.storage.health import HealthBook
from market_data_pipeline_tests.storage.workers import processes
from market_data_pipeline_tests.world import SATURDAY, expected_opens, write_bars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from sqlalchemy import Engine

    from market_data_pipeline.simulator.client import RunningSimulator
    from market_data_pipeline_tests.storage.workers import Process

LIVE = Priority(Lane.LIVE, "T0")
BACKFILL = Priority(Lane.BACKFILL, "T0")
WHO = ("finnhub", "key")
A_DAY = RateLimit(10, 86_400.0)


class Naps:
    """A sleeper that only notes how long it was to sleep, and a monotonic clock that jumps by it."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def clock(self) -> float:
        return self.now


def a_budget(engine: Engine, *limits: RateLimit, naps: Naps | None = None) -> PostgresBudget:
    """The budget of Finnhub with these limits, as any process would open it."""
    naps = naps or Naps()
    return PostgresBudget(engine, {"finnhub": limits}, sleep=naps.sleep, clock=naps.clock)


def taken(budget: PostgresBudget, priority: Priority = LIVE, *, most: int = 100, account: str = "key") -> int:
    """How many requests may be sent at once."""
    for count in range(most):
        try:
            budget.take("finnhub", account, priority, patience_seconds=0)
        except BudgetSpentError:
            return count
    return most


def let_pass(engine: Engine, seconds: float) -> None:
    """Make everything that the table remembers ``seconds`` older."""
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "update provider_budgets set held_until = held_until - %(ago)s::interval, learned_at = learned_at - %(ago)s::interval,"
            " refused_at = refused_at - %(ago)s::interval,"
            " heads = (select coalesce(array_agg(head - ceil(%(seconds)s / (s / 32))::int8 order by place), '{}')"
            " from unnest(heads, seconds) with ordinality as w(head, s, place))",
            {"ago": f"{seconds} seconds", "seconds": seconds},
        )


# --- limits ------------------------------------------------------------------------------------------------------------


def test_so_many_may_be_sent_and_no_more(engine: Engine) -> None:
    assert taken(a_budget(engine, A_DAY)) == 10
    with pytest.raises(BudgetSpentError, match=r"finnhub: our budget for live T0 is spent for another 8\d{4}\.\d s") as spent:
        a_budget(engine, A_DAY).take(*WHO, LIVE, patience_seconds=3600)
    # A day, and at most one sub-bucket of a 32nd of it and the slack.
    assert 86_400 < spent.value.wait_seconds <= 86_400 * 33 / 32 + 0.25


def test_every_window_counts(engine: Engine) -> None:
    budget = a_budget(engine, RateLimit(4, 3600.0), A_DAY)
    assert taken(budget) == 4
    let_pass(engine, 3720)
    assert taken(a_budget(engine, RateLimit(4, 3600.0), A_DAY)) == 4
    let_pass(engine, 3720)
    assert taken(a_budget(engine, RateLimit(4, 3600.0), A_DAY)) == 2
    let_pass(engine, 3720)
    assert taken(a_budget(engine, RateLimit(4, 3600.0), A_DAY)) == 0


def test_accounts_and_providers_have_budgets_of_their_own(engine: Engine) -> None:
    budget = a_budget(engine, A_DAY)
    assert (taken(budget), taken(budget, account="another key")) == (10, 10)


def test_a_changed_limit_keeps_what_was_counted_on_its_window(engine: Engine) -> None:
    assert taken(a_budget(engine, A_DAY)) == 10
    assert taken(a_budget(engine, RateLimit(3, 1800.0), RateLimit(12, 86_400.0))) == 2


def test_what_is_not_granted_is_not_counted(engine: Engine) -> None:
    assert taken(a_budget(engine, RateLimit(1, 60.0), RateLimit(5, 3600.0))) == 1
    for _ in range(20):
        assert taken(a_budget(engine, RateLimit(1, 60.0), RateLimit(5, 3600.0))) == 0
    assert a_budget(engine, RateLimit(5, 3600.0)).status()[0].left == {"5/h": 4}


def test_a_clock_that_was_set_back_frees_nothing(engine: Engine) -> None:
    assert taken(a_budget(engine, RateLimit(5, 60.0))) == 5
    let_pass(engine, -90)
    assert taken(a_budget(engine, RateLimit(5, 60.0))) == 0


def test_taking_waits_for_its_turn_as_long_as_its_patience(engine: Engine) -> None:
    naps = Naps()
    budget = a_budget(engine, RateLimit(1, 60.0), naps=naps)
    budget.take(*WHO, LIVE, patience_seconds=0)
    with pytest.raises(BudgetSpentError):
        budget.take(*WHO, LIVE, patience_seconds=59)
    assert naps.slept == []
    with pytest.raises(BudgetSpentError):
        # Its clock says that the first wait is over; the database's, which counts, that it is not.
        budget.take(*WHO, LIVE, patience_seconds=100)
    (slept,) = naps.slept
    assert 60 < slept < 60 * 33 / 32 + 0.25 + 0.1


def test_without_limits_nothing_is_counted(engine: Engine) -> None:
    budget = a_budget(engine)
    assert taken(budget, most=1000) == 1000
    assert budget.status() == []


# --- who comes first ---------------------------------------------------------------------------------------------------


def test_each_lane_and_tier_uses_its_share_and_leaves_the_rest_to_those_above(engine: Engine) -> None:
    budget = a_budget(engine, RateLimit(20, 86_400.0))
    order = [
        (Lane.BACKFILL, "T2"),
        (Lane.BACKFILL, "T1"),
        (Lane.BACKFILL, "T0"),
        (Lane.LIVE, "T2"),
        (Lane.LIVE, "T1"),
        (Lane.LIVE, "T0"),
    ]
    assert [taken(budget, Priority(*who)) for who in order] == [8, 4, 4, 2, 1, 1]


def test_even_the_last_in_line_may_send_one(engine: Engine) -> None:
    assert taken(a_budget(engine, RateLimit(1, 60.0)), Priority(Lane.BACKFILL, "T2")) == 1


# --- refusals ----------------------------------------------------------------------------------------------------------


def test_a_429_holds_everybody_for_as_long_as_the_provider_said(engine: Engine) -> None:
    a_budget(engine, A_DAY).refused(*WHO, retry_after_seconds=30)
    with pytest.raises(BudgetSpentError, match=r"finnhub: it told us to wait for another (30\.0|29\.\d) s"):
        a_budget(engine, A_DAY).take(*WHO, LIVE, patience_seconds=10)
    assert taken(a_budget(engine, A_DAY), account="another key") == 10
    let_pass(engine, 31)
    assert taken(a_budget(engine, A_DAY)) == 7


def test_a_429_holds_those_without_limits_too(engine: Engine) -> None:
    mine, other = a_budget(engine), a_budget(engine)
    other.refused(*WHO, retry_after_seconds=30)
    for budget in (mine, other):
        with pytest.raises(BudgetSpentError):
            budget.take(*WHO, LIVE, patience_seconds=10)
    let_pass(engine, 31)
    assert taken(a_budget(engine), most=5) == 5


def test_a_process_without_limits_notices_a_hold_within_a_second(engine: Engine) -> None:
    naps = Naps()
    budget = a_budget(engine, naps=naps)
    budget.take(*WHO, LIVE, patience_seconds=0)
    a_budget(engine).refused(*WHO, retry_after_seconds=30)
    naps.now = 1.0
    with pytest.raises(BudgetSpentError):
        budget.take(*WHO, LIVE, patience_seconds=10)


def test_without_a_time_the_back_off_doubles_and_forgets_after_ten_quiet_minutes(engine: Engine) -> None:
    holds = []
    for pause in (60, 60, 60, 700, 0):
        a_budget(engine, A_DAY).refused(*WHO, retry_after_seconds=None)
        (status,) = a_budget(engine, A_DAY).status()
        assert status.held_until is not None
        with engine.connect() as connection:
            holds.append(
                round(
                    connection.exec_driver_sql(
                        "select extract(epoch from held_until - refused_at)::float8 from provider_budgets"
                    ).scalar_one()
                )
            )
        let_pass(engine, pause)
    assert holds == [2, 4, 8, 16, 2]


def test_each_refusal_teaches_less_and_an_echo_of_it_nothing(engine: Engine) -> None:
    factors = []
    for _ in range(8):
        for _ in range(3):  # requests that were under way together are refused together
            a_budget(engine, A_DAY).refused(*WHO, retry_after_seconds=5)
        factors.append(a_budget(engine, A_DAY).status()[0].factor)
        let_pass(engine, 6)
    # x 0.7 each time, of what a few seconds gave back (a tenth an hour), and never below a tenth.
    assert factors == pytest.approx([0.7, 0.49, 0.343, 0.24, 0.168, 0.118, 0.1, 0.1], abs=0.002)


def test_what_was_learned_wears_off_by_a_tenth_an_hour_and_both_are_told_once(engine: Engine) -> None:
    a_budget(engine, A_DAY).refused(*WHO, retry_after_seconds=5)
    a_budget(engine, A_DAY).refused(*WHO, retry_after_seconds=5)
    let_pass(engine, 2 * 3600)
    assert a_budget(engine, A_DAY).status()[0].factor == pytest.approx(0.9, abs=0.001)
    assert taken(a_budget(engine, A_DAY)) == 9
    let_pass(engine, 3600 + 1)
    assert taken(a_budget(engine, A_DAY)) == 1
    events = HealthBook(engine).events("finnhub")
    assert [(event.kind, event.is_recovery) for event in events] == [("limit_restored", True), ("limit_learned", False)]
    assert events[0].detail == "no refusal for hours: all of 10/d is used again"
    assert events[1].detail == "refused with 429: everybody waits 5 s; 70% of 10/d is used from now on"


def test_refusals_of_one_bad_day_are_one_incident(engine: Engine) -> None:
    for _ in range(3):
        a_budget(engine, A_DAY).refused(*WHO, retry_after_seconds=5)
        let_pass(engine, 60)
    assert [event.kind for event in HealthBook(engine).events("finnhub")] == ["limit_learned"]
    let_pass(engine, 86_400)
    a_budget(engine, A_DAY).refused(*WHO, retry_after_seconds=5)
    kinds = [event.kind for event in HealthBook(engine).events("finnhub")]
    assert kinds == ["limit_learned", "limit_restored", "limit_learned"]


def test_those_without_limits_hear_the_end_of_it_too(engine: Engine) -> None:
    a_budget(engine).refused(*WHO, retry_after_seconds=5)
    let_pass(engine, 4 * 3600)
    for _ in range(2):
        a_budget(engine).take(*WHO, LIVE, patience_seconds=0)
    assert [event.kind for event in HealthBook(engine).events("finnhub")] == ["limit_restored", "limit_learned"]


def test_a_reset_ends_the_hold_and_forgets_what_was_learned_but_not_what_was_sent(engine: Engine) -> None:
    budget = a_budget(engine, A_DAY)
    assert taken(budget, most=4) == 4
    budget.refused(*WHO, retry_after_seconds=3600)
    assert budget.reset("finnhub")
    assert taken(a_budget(engine, A_DAY)) == 6
    assert not budget.reset("finnhub")


def test_without_its_database_everybody_who_asks_together_hears_it(engine: Engine) -> None:
    budget = PostgresBudget(engine, {"finnhub": [A_DAY]})
    with engine.begin() as connection:
        connection.exec_driver_sql("alter table provider_budgets rename to elsewhere")
    heard: list[BaseException] = []

    def ask() -> None:
        try:
            budget.take(*WHO, LIVE, patience_seconds=1)
        except ProgrammingError as gone:
            heard.append(gone)

    in_threads(8, ask)
    assert len(heard) == 8


# --- several threads and processes, and a provider that counts ---------------------------------------------------------


def test_threads_of_one_process_that_ask_together_get_no_more_than_there_is(engine: Engine) -> None:
    budget = PostgresBudget(engine, {"finnhub": [RateLimit(50, 86_400.0)]})
    counts: list[int] = []
    in_threads(16, lambda: counts.append(taken(budget)))
    assert sum(counts) == 50


def in_threads(count: int, work: Callable[[], None]) -> None:
    """Do ``work`` in ``count`` threads at once."""
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[RunningSimulator]:
    """A Yahoo with a few bars of one symbol."""
    write_bars(tmp_path, "ALFA", Interval.M1, expected_opens()[:10])
    with running_simulator(data=tmp_path, now=SATURDAY) as started:
        yield started


def chart(simulator: RunningSimulator) -> str:
    """Something small to ask for."""
    return f"{simulator.yahoo}/v8/finance/chart/ALFA?interval=1d&range=1d"


def test_processes_together_stay_within_every_limit_and_use_most_of_it(simulator: RunningSimulator, database_url: str) -> None:
    limits, seconds = "yahoo=20/s,60/4s", "4"
    with processes(4, "send", limits, chart(simulator), seconds, "live", "3", database_url=database_url) as senders:
        simulator.set_limits(limits)
        told = all_told(senders)
    (account,) = [account for account in simulator.limits() if account["provider"] == "yahoo"]
    assert account["refused"] == 0
    assert all(limit["most"] <= limit["allowed"] for limit in account["limits"])
    assert sum(sent for sent, *_ in told) >= 0.8 * 60


def test_live_does_not_wait_behind_a_backfill_that_takes_all_it_may(simulator: RunningSimulator, database_url: str) -> None:
    limits = "yahoo=40/2s"
    send = ("send", limits, chart(simulator), "4")
    with (
        processes(2, *send, "backfill", "4", database_url=database_url) as backfill,
        # Three a second, of the four that the backfill has to leave.
        processes(1, *send, "live", "1", "0.33", database_url=database_url) as live,
    ):
        simulator.set_limits(limits)
        *saturating, (sent, _, longest) = all_told([*backfill, *live])
    assert simulator.over_limit() == 0
    behind = max(waited for _, _, waited in saturating)
    assert behind > 1.0
    assert sent >= 8
    assert longest < behind / 2


def all_told(senders: Sequence[Process]) -> list[tuple[int, int, float]]:
    """Requests sent, refused, and the longest wait for leave to send, of senders that all begin now."""
    for sender in senders:
        sender.go()
    words = [sender.line().split() for sender in senders]
    return [(int(sent), int(refused), float(longest)) for sent, refused, longest in words]
