"""The ledger keeps what it is told, pushes failures back, and gives every gap its turn."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.coverage import LedgerRow
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.finality import Finality
from market_data_pipeline.domain.healing import HealingPolicy
from market_data_pipeline.domain.ports import Fetch
from market_data_pipeline.domain.universe import Tier, UniverseEntry
from market_data_pipeline.storage.fetches import FetchStore
from market_data_pipeline.storage.ledger import DueGap, DueRecheck, Ledger, LedgerTotals
from market_data_pipeline.storage.universe import UniverseStore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Engine

    from market_data_pipeline.domain.candles import Bools

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
MONDAY, TUESDAY, WEDNESDAY, THURSDAY, FRIDAY = (date(2026, 3, day) for day in range(2, 7))
NEXT_MONDAY = date(2026, 3, 9)
POLICY = HealingPolicy()
TIMED_OUT = Fetch(
    provider="yahoo",
    symbol="AAPL",
    interval=Interval.M1,
    request="GET /chart",
    started_at=NOW,
    latency_seconds=20.0,
    outcome="transient",
    error="timed out",
)


def instant(session: date, hour: int, minute: int = 0) -> int:
    return int(datetime(session.year, session.month, session.day, hour, minute, tzinfo=UTC).timestamp())


def slots(text: str) -> Bools:
    return np.array([place == "1" for place in text])


def row(
    symbol_id: int,
    session: date,
    present: str = "000000",
    *,
    empty: str | None = None,
    interval: Interval = Interval.M1,
    due: datetime | None = NOW,
    **but: object,
) -> LedgerRow:
    usual = LedgerRow(
        symbol_id=symbol_id,
        interval=interval,
        session=session,
        opens_at=instant(session, 14, 30),
        closes_at=instant(session, 21),
        present=slots(present),
        confirmed_empty=slots(empty or "0" * len(present)),
        next_attempt_at=due,
        known_at=NOW,
    )
    return replace(usual, **but)  # type: ignore[arg-type]


def spoken(rows: Sequence[LedgerRow]) -> list[Mapping[str, object]]:
    """Ledger rows as values that compare."""
    fields = LedgerRow.__dataclass_fields__
    return [{name: v.tolist() if isinstance(v := getattr(r, name), np.ndarray) else v for name in fields} for r in rows]


def load(engine: Engine, *entries: UniverseEntry) -> None:
    UniverseStore(engine).load(entries, version_tag=f"{entries}"[:60], source="t", source_sha256="s", loaded_by="t")


@pytest.fixture
def ledger(engine: Engine) -> Ledger:
    """A ledger for AAPL (1, T0), MSFT (2, T1) and IBM (3, T2)."""
    load(engine, *(UniverseEntry(s, "XNYS", t) for s, t in zip(["AAPL", "MSFT", "IBM"], Tier, strict=True)))
    return Ledger(engine)


def served(gaps: Sequence[DueGap]) -> list[tuple[str, date, date]]:
    return [(gap.symbol, gap.first, gap.last) for gap in gaps]


# --- rows


def test_what_was_opened_is_read_back_in_order(ledger: Ledger) -> None:
    rows = [
        row(1, MONDAY, "010011", empty="100000", attempts=3, failures=1, last_attempt_at=NOW, digest=b"\x00\xff" * 8),
        row(1, TUESDAY, "1" * 390, due=None),
        row(2, MONDAY, "0"),
    ]
    assert ledger.open_sessions([rows[2], rows[0], rows[1]]) == 3
    assert spoken(ledger.rows([2, 1], Interval.M1, MONDAY, TUESDAY)) == spoken(rows)
    assert spoken(ledger.rows([1, 2], Interval.M1, TUESDAY, FRIDAY)) == spoken(rows[1:2])
    assert ledger.rows([1], Interval.H1, MONDAY, TUESDAY) == []


def test_opening_a_session_again_leaves_it_as_it_is(ledger: Ledger, engine: Engine) -> None:
    ledger.open_sessions([row(1, MONDAY, "111000", attempts=2)])
    with engine.connect() as connection:
        before = connection.exec_driver_sql("select xmin::text, ctid::text from coverage").all()
    assert ledger.open_sessions([row(1, MONDAY), row(1, TUESDAY)]) == 1
    with engine.connect() as connection:
        after = connection.exec_driver_sql("select xmin::text, ctid::text from coverage where session = '2026-03-02'").all()
    assert before == after


def test_knowledge_time_is_the_rows_or_the_callers_or_the_databases(ledger: Ledger) -> None:
    earlier = NOW - timedelta(days=1)
    ledger.open_sessions([row(1, MONDAY, known_at=earlier), row(1, TUESDAY, known_at=None)], known_at=NOW)
    ledger.open_sessions([row(1, WEDNESDAY, known_at=None)])
    monday, tuesday, wednesday = (r.known_at for r in ledger.rows([1], Interval.M1, MONDAY, FRIDAY))
    assert (monday, tuesday) == (earlier, NOW)
    assert wednesday is not None
    assert wednesday.tzinfo is not None


def test_two_that_open_the_same_sessions_neither_deadlock_nor_double(ledger: Ledger) -> None:
    rows = [row(s, MONDAY + timedelta(days=d)) for s in (1, 2, 3) for d in range(100)]
    with ThreadPoolExecutor(4) as threads:
        opened = list(threads.map(ledger.open_sessions, [rows, rows[::-1], rows[150:] + rows[:150], rows[::2] + rows[1::2]]))
    assert sum(opened) == len(rows)


# --- failures


def test_a_failure_pushes_back_what_lacks_bars_and_is_recorded(ledger: Ledger, engine: Engine) -> None:
    ledger.open_sessions([row(1, MONDAY, "110110"), row(1, TUESDAY, "111111", due=None), row(1, WEDNESDAY, "000000")])
    pushed_back = ledger.record_failures(
        [(1, MONDAY), (1, TUESDAY), (1, THURSDAY)], Interval.M1, now=NOW, policy=POLICY, fetches=[(1, TIMED_OUT)], run_id="run-1"
    )
    assert pushed_back == 1
    monday, tuesday, wednesday = ledger.rows([1], Interval.M1, MONDAY, FRIDAY)
    assert (monday.failures, monday.attempts, monday.last_attempt_at, monday.next_attempt_at) == (1, 0, NOW, NOW + POLICY.wait(1))
    assert monday.present.tolist() == slots("110110").tolist()
    assert (tuesday.failures, tuesday.next_attempt_at) == (0, None)
    assert (wednesday.failures, wednesday.next_attempt_at) == (0, NOW)
    (fetch,) = FetchStore(engine).latest(1, Interval.M1)
    assert (fetch.fetch, fetch.run_id) == (TIMED_OUT, "run-1")


def test_failures_in_a_row_wait_longer_each_time(ledger: Ledger) -> None:
    ledger.open_sessions([row(1, MONDAY)])
    waits = []
    for _ in range(3):
        ledger.record_failures([(1, MONDAY)], Interval.M1, now=NOW, policy=POLICY, fetches=[(1, TIMED_OUT)])
        (monday,) = ledger.rows([1], Interval.M1, MONDAY, MONDAY)
        assert monday.next_attempt_at is not None
        waits.append((monday.next_attempt_at - NOW).total_seconds())
    assert waits == [900, 3600, 14400]


def test_failures_at_once_are_all_counted(ledger: Ledger) -> None:
    ledger.open_sessions([row(s, MONDAY) for s in (1, 2, 3)])
    sessions = [(3, MONDAY), (1, MONDAY), (2, MONDAY)]

    def fail(_: int) -> int:
        return ledger.record_failures(sessions, Interval.M1, now=NOW, policy=POLICY, fetches=[(None, TIMED_OUT)])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(fail, range(8)))
    assert [r.failures for r in ledger.rows([1, 2, 3], Interval.M1, MONDAY, MONDAY)] == [8, 8, 8]


def test_an_answer_that_is_not_believed_is_no_attempt_and_waits(ledger: Ledger) -> None:
    ledger.open_sessions([row(1, MONDAY), row(1, TUESDAY), row(1, WEDNESDAY, "111111", due=None)])
    pushed_back = ledger.record_failures(
        [(1, MONDAY)],
        Interval.M1,
        unbelieved=[(1, TUESDAY), (1, WEDNESDAY)],
        now=NOW,
        policy=POLICY,
        fetches=[(1, replace(TIMED_OUT, outcome="barren"))],
    )
    assert pushed_back == 2
    monday, tuesday, wednesday = ledger.rows([1], Interval.M1, MONDAY, WEDNESDAY)
    assert (monday.attempts, monday.failures, monday.next_attempt_at) == (0, 1, NOW + POLICY.wait(1))
    assert (tuesday.attempts, tuesday.failures, tuesday.next_attempt_at) == (0, 1, NOW + POLICY.wait(1))
    assert wednesday.next_attempt_at is None


def test_a_failure_with_unprintable_error_text_is_recorded(ledger: Ledger, engine: Engine) -> None:
    ledger.record_failures(
        [(1, MONDAY)], Interval.M1, now=NOW, policy=POLICY, fetches=[(1, replace(TIMED_OUT, error="<html>\x00"))]
    )
    (fetch,) = FetchStore(engine).latest(1, Interval.M1)
    assert fetch.fetch.error == "<html>\N{REPLACEMENT CHARACTER}"


# --- what is due


def test_a_gap_is_due_once_its_next_attempt_is(ledger: Ledger) -> None:
    ledger.open_sessions(
        [
            row(1, MONDAY, "110011", due=NOW, attempts=2, failures=1),
            row(2, MONDAY, "110011", due=NOW + timedelta(seconds=1)),
            row(3, MONDAY, "110011", due=None),
            row(3, TUESDAY, "101010", empty="010101", due=NOW),
        ]
    )
    assert ledger.due_gaps(NOW, limit=10) == [
        DueGap(1, "AAPL", "XNYS", Interval.M1, MONDAY, MONDAY, sessions=1, absent=2, attempts=2, failures=1, due_since=NOW)
    ]


def test_neighbouring_sessions_are_one_gap_also_across_a_weekend(ledger: Ledger) -> None:
    ledger.open_sessions(
        [
            row(1, MONDAY),
            row(1, TUESDAY, "111111", due=None),
            row(1, WEDNESDAY, "111110", attempts=1),
            row(1, THURSDAY),
            row(1, FRIDAY, due=NOW - timedelta(hours=1)),
            row(1, NEXT_MONDAY),
        ]
    )
    monday, rest = sorted(ledger.due_gaps(NOW, limit=10), key=lambda gap: gap.first)
    assert (monday.first, monday.last) == (MONDAY, MONDAY)
    assert (rest.first, rest.last, rest.sessions, rest.absent, rest.attempts) == (WEDNESDAY, NEXT_MONDAY, 4, 19, 1)
    assert rest.due_since == NOW - timedelta(hours=1)


def test_sessions_that_nobody_opened_divide_two_gaps(ledger: Ledger) -> None:
    ledger.open_sessions([row(1, MONDAY), row(1, MONDAY - timedelta(days=60))])
    assert len(ledger.due_gaps(NOW, limit=10)) == 2


def test_intervals_have_gaps_of_their_own(ledger: Ledger) -> None:
    ledger.open_sessions([row(1, MONDAY), row(1, MONDAY, interval=Interval.H1), row(1, MONDAY, "0", interval=Interval.D1)])
    assert [gap.interval for gap in ledger.due_gaps(NOW, limit=10)] == [Interval.M1, Interval.H1, Interval.D1]
    assert [gap.interval for gap in ledger.due_gaps(NOW, limit=10, intervals=[Interval.D1])] == [Interval.D1]


def test_a_session_is_not_due_before_its_first_bar_has_settled(ledger: Ledger) -> None:
    ledger.open_sessions([row(1, NEXT_MONDAY, due=None, next_attempt_at=datetime(2026, 3, 9, tzinfo=UTC))])
    ledger.open_sessions([row(1, NEXT_MONDAY, "0", interval=Interval.D1, due=datetime(2026, 3, 9, tzinfo=UTC))])
    opens, closes = datetime(2026, 3, 9, 14, 30, tzinfo=UTC), datetime(2026, 3, 9, 21, tzinfo=UTC)

    def due(now: datetime) -> list[Interval]:
        return [gap.interval for gap in ledger.due_gaps(now, limit=10, settle_seconds=90)]

    assert due(opens + timedelta(seconds=149)) == []
    assert due(opens + timedelta(seconds=150)) == [Interval.M1]
    assert due(closes + timedelta(seconds=89)) == [Interval.M1]
    assert due(closes + timedelta(seconds=90)) == [Interval.M1, Interval.D1]


def test_what_no_provider_reaches_is_not_due(ledger: Ledger) -> None:
    ledger.open_sessions([row(1, MONDAY), row(1, NEXT_MONDAY), row(1, MONDAY, interval=Interval.H1)])
    gaps = ledger.due_gaps(NOW, limit=10, reach_seconds={(Interval.M1, None): 2 * 86400, (Interval.H1, None): None})
    assert [(gap.interval, gap.first) for gap in gaps] == [(Interval.M1, NEXT_MONDAY), (Interval.H1, MONDAY)]


def test_what_nobody_serves_of_an_exchange_is_not_due(ledger: Ledger) -> None:
    ledger.open_sessions([row(1, NEXT_MONDAY), row(1, NEXT_MONDAY, interval=Interval.H1)])
    nobody_else: dict[tuple[Interval, str | None], int | None] = {(Interval.M1, None): None, (Interval.M1, "XNYS"): 0}
    gaps = ledger.due_gaps(NOW, limit=10, reach_seconds={**nobody_else, (Interval.H1, None): 0, (Interval.H1, "XNYS"): None})
    assert [gap.interval for gap in gaps] == [Interval.H1]


def test_sessions_without_a_listing_and_deactivated_symbols_are_not_due(ledger: Ledger, engine: Engine) -> None:
    listed = UniverseEntry("AAPL", "XNYS", Tier.T0, active_from=TUESDAY, active_to=WEDNESDAY)
    UniverseStore(engine).load([listed], version_tag="2", source="t", source_sha256="2", loaded_by="t", deactivate_absent=True)
    ledger.open_sessions([row(s, day) for s in (1, 2) for day in (MONDAY, TUESDAY, WEDNESDAY, THURSDAY)])
    assert served(ledger.due_gaps(NOW, limit=10)) == [("AAPL", TUESDAY, WEDNESDAY)]


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_serves_nobody_is_refused(ledger: Ledger, limit: int) -> None:
    with pytest.raises(InvalidInputError, match="expected 1 or more"):
        ledger.due_gaps(NOW, limit=limit)


# --- fairness


def test_of_gaps_of_one_age_the_higher_tier_goes_first(ledger: Ledger) -> None:
    ledger.open_sessions([row(s, MONDAY) for s in (3, 2, 1)])
    assert [gap.symbol for gap in ledger.due_gaps(NOW, limit=2)] == ["AAPL", "MSFT"]


def test_an_old_gap_of_a_low_tier_goes_before_a_new_one_of_a_high_tier(ledger: Ledger) -> None:
    ledger.open_sessions([row(3, MONDAY, due=NOW - timedelta(seconds=601)), row(1, MONDAY, due=NOW)])
    assert [gap.symbol for gap in ledger.due_gaps(NOW, limit=1)] == ["IBM"]


Gaps = dict[tuple[int, date], int]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    gaps=st.dictionaries(
        st.tuples(st.sampled_from([1, 2, 3]), st.sampled_from([MONDAY, WEDNESDAY, FRIDAY])),
        st.integers(0, 3600),
        min_size=1,
    ),
    limit=st.integers(1, 4),
    tick_seconds=st.integers(0, 120),
)
def test_every_gap_is_served_within_as_many_rounds_as_it_takes_to_serve_all_once(
    ledger: Ledger, engine: Engine, gaps: Gaps, limit: int, tick_seconds: int
) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("truncate coverage")
    between = [row(s, day, "111111", due=None) for s in (1, 2, 3) for day in (TUESDAY, THURSDAY)]
    ledger.open_sessions(between + [row(s, day, due=NOW - timedelta(seconds=age)) for (s, day), age in gaps.items()])
    waiting, now = set(gaps), NOW
    for _ in range(ceil(len(gaps) / limit)):
        for gap in ledger.due_gaps(now, limit=limit):
            ledger.record_failures(
                [(gap.symbol_id, gap.first)], gap.interval, now=now, policy=POLICY, fetches=[(gap.symbol_id, TIMED_OUT)]
            )
            waiting.discard((gap.symbol_id, gap.first))
        now += timedelta(seconds=tick_seconds)
    assert waiting == set()


# --- rechecks

HOUR = timedelta(hours=1)


def whole(symbol_id: int, session: date, again: datetime | None, finality: Finality = Finality.PROVISIONAL) -> LedgerRow:
    """A session of which nothing lacks and that is asked for again at ``again``."""
    return row(symbol_id, session, "111111", due=None, recheck_at=again, finality=finality)


def test_a_session_settled_and_the_one_before_it_final_are_one_recheck(ledger: Ledger) -> None:
    ledger.open_sessions(
        [whole(1, MONDAY, None, Finality.FINAL), whole(1, TUESDAY, NOW, Finality.SETTLED), whole(1, WEDNESDAY, NOW)]
    )
    assert ledger.due_rechecks(NOW - timedelta(seconds=1), limit=10) == []
    assert ledger.due_rechecks(NOW, limit=10) == [
        DueRecheck(1, "AAPL", "XNYS", Interval.M1, TUESDAY, WEDNESDAY, sessions=2, finality=Finality.PROVISIONAL, due_since=NOW)
    ]


def test_a_recheck_waits_an_hour_and_no_longer_for_the_session_beside_it(ledger: Ledger) -> None:
    ledger.open_sessions([whole(1, MONDAY, NOW), whole(1, TUESDAY, NOW + HOUR / 2), whole(1, THURSDAY, NOW + HOUR)])
    ledger.open_sessions([row(1, WEDNESDAY, "111111", due=None)])

    def due(now: datetime) -> list[tuple[date, date, int]]:
        return [(recheck.first, recheck.last, recheck.sessions) for recheck in ledger.due_rechecks(now, limit=10)]

    assert due(NOW) == []
    assert due(NOW + HOUR / 2) == [(MONDAY, TUESDAY, 2)]
    ledger.open_sessions([whole(2, MONDAY, NOW), whole(2, TUESDAY, NOW + 2 * HOUR - timedelta(seconds=1))])
    assert (MONDAY, MONDAY, 1) in due(NOW + HOUR)


def test_what_has_a_due_gap_is_left_to_its_gap(ledger: Ledger) -> None:
    ledger.open_sessions(
        [
            row(1, MONDAY, "110011", recheck_at=NOW),
            row(2, MONDAY, "110011", due=NOW + HOUR, recheck_at=NOW),
            row(3, MONDAY, "110011", due=None, recheck_at=NOW),
        ]
    )
    assert [recheck.symbol for recheck in ledger.due_rechecks(NOW, limit=10)] == ["MSFT", "IBM"]


def test_nobody_is_asked_again_for_what_is_out_of_reach_or_not_listed(ledger: Ledger, engine: Engine) -> None:
    listed = UniverseEntry("AAPL", "XNYS", Tier.T0, active_to=TUESDAY)
    UniverseStore(engine).load([listed], version_tag="2", source="t", source_sha256="2", loaded_by="t")
    with engine.begin() as connection:
        connection.exec_driver_sql("update symbol_universe set is_unknown = true where symbol = 'IBM'")
    ledger.open_sessions([whole(s, day, NOW) for s in (1, 2, 3) for day in (MONDAY, WEDNESDAY)])
    reach: dict[tuple[Interval, str | None], int | None] = {(Interval.M1, None): 7 * 86_400}
    found = ledger.due_rechecks(NOW, limit=10, reach_seconds=reach)
    assert [(recheck.symbol, recheck.first) for recheck in found] == [("MSFT", WEDNESDAY)]
    assert len(ledger.due_rechecks(NOW, limit=10)) == 2
    assert ledger.due_rechecks(NOW, limit=10, intervals=[Interval.D1]) == []


def test_inferred_listings_end_the_asking_for_gaps(ledger: Ledger, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "update symbol_universe set listed_from = '2026-03-03', listed_to = '2026-03-04' where symbol_id = 1"
        )
        connection.exec_driver_sql("update symbol_universe set is_unknown = true where symbol_id = 2")
    ledger.open_sessions([row(s, day) for s in (1, 2) for day in (MONDAY, TUESDAY, WEDNESDAY, THURSDAY)])
    assert served(ledger.due_gaps(NOW, limit=10)) == [("AAPL", TUESDAY, WEDNESDAY)]


def test_a_recheck_without_an_answer_waits_and_goes_behind_the_others(ledger: Ledger) -> None:
    ledger.open_sessions([whole(1, MONDAY, NOW - HOUR), whole(2, MONDAY, NOW)])
    assert [recheck.symbol for recheck in ledger.due_rechecks(NOW, limit=1)] == ["AAPL"]
    assert ledger.record_failures([(1, MONDAY)], Interval.M1, now=NOW, policy=POLICY, fetches=[(1, TIMED_OUT)]) == 1
    assert [recheck.symbol for recheck in ledger.due_rechecks(NOW, limit=1)] == ["MSFT"]
    [again] = ledger.rows([1], Interval.M1, MONDAY, MONDAY)
    assert (again.recheck_at, again.next_attempt_at) == (NOW + POLICY.wait(1), None)


def test_rechecks_that_always_fail_end(ledger: Ledger) -> None:
    ledger.open_sessions([whole(1, MONDAY, NOW)])
    now, asked = NOW, 0
    while ledger.due_rechecks(now, limit=1):
        ledger.record_failures([(1, MONDAY)], Interval.M1, now=now, policy=POLICY, fetches=[(1, TIMED_OUT)])
        asked += 1
        now += timedelta(days=1)
    assert asked == POLICY.give_up_failures


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rechecks=st.dictionaries(
        st.tuples(st.sampled_from([1, 2, 3]), st.sampled_from([MONDAY, WEDNESDAY, FRIDAY])),
        st.integers(0, 7200),
        min_size=1,
    ),
    limit=st.integers(1, 4),
    apart=st.booleans(),
)
def test_every_recheck_is_served_within_as_many_rounds_as_it_takes_once_it_has_waited_for_company(
    ledger: Ledger,
    engine: Engine,
    rechecks: Gaps,
    limit: int,
    apart: bool,  # noqa: FBT001 - hypothesis passes it
) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("truncate coverage")
    if apart:
        ledger.open_sessions([row(s, day, "111111", due=None) for s in (1, 2, 3) for day in (TUESDAY, THURSDAY)])
    ledger.open_sessions([whole(s, day, NOW - timedelta(seconds=age)) for (s, day), age in rechecks.items()])
    waiting = set(rechecks)
    for _ in range(ceil(len(rechecks) / limit)):
        for due in ledger.due_rechecks(NOW, limit=limit):
            mine = [key for key in waiting if key[0] == due.symbol_id and due.first <= key[1] <= due.last]
            assert len(mine) == due.sessions
            ledger.record_failures(mine, due.interval, now=NOW, policy=POLICY, fetches=[(due.symbol_id, TIMED_OUT)])
            waiting -= set(mine)
    assert waiting == set()


# --- sums


def test_totals_add_up(ledger: Ledger) -> None:
    ledger.open_sessions([row(1, MONDAY, "110000", empty="001000"), row(1, TUESDAY, "111111"), row(2, MONDAY, "000001")])
    assert ledger.totals(Interval.M1) == [
        LedgerTotals(1, sessions=2, expected=12, present=8, confirmed_empty=1, absent=3, halted=0),
        LedgerTotals(2, sessions=1, expected=6, present=1, confirmed_empty=0, absent=5, halted=0),
    ]
    assert ledger.totals(Interval.M1, symbol_ids=[1], first=TUESDAY, last=FRIDAY) == [LedgerTotals(1, 1, 6, 6, 0, 0, 0)]
    assert ledger.totals(Interval.H1) == []
