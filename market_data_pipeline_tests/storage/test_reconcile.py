"""Whatever was done to the tables by hand is found, and repairing the ledger changes exactly the verdicts that were wrong."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.healing import HealingPolicy
from market_data_pipeline.domain.sessions import ExpectedOpens, Segments, SessionBounds
from market_data_pipeline.storage import reconcile
from market_data_pipeline.storage.bulk import CandleWriter
from market_data_pipeline.storage.derive import CandleDeriver
from market_data_pipeline.storage.ledger import Ledger
from market_data_pipeline.storage.reconcile import Discrepancy, DiscrepancyKind
from market_data_pipeline_tests.storage.builders import (
    LATER,
    MONDAY,
    TUESDAY,
    WEDNESDAY,
    Answer,
    add_symbols,
    at,
    batch,
    full,
    opened_at,
    opens_at,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Engine

POLICY = HealingPolicy()
EPOCH = date(1970, 1, 1)
DAYS = (MONDAY, TUESDAY, WEDNESDAY)
USUAL = dict.fromkeys(DAYS, 5)


class Calendar:
    """A toy calendar: the bars of each session, one a step from its open."""

    def __init__(self, slots: Mapping[date, int], interval: Interval = Interval.M1) -> None:
        days = np.array([(day - EPOCH).days for day in slots], np.int32)
        opens = np.array([opens_at(day) for day in slots], np.int64)
        counts = np.array(list(slots.values()))
        closes = opens + (23_400 if interval.is_daily else counts * interval.seconds)
        stamps = [opened_at(day, slot, interval) for day, count in slots.items() for slot in range(count)]
        self.bounds = SessionBounds(days, opens, closes)
        self.expected = ExpectedOpens(
            np.array(stamps, np.int64),
            np.array(stamps, np.int64) + interval.seconds,
            np.repeat(days, counts),
            np.concatenate([np.arange(count) for count in counts]).astype(np.int16),
        )


@pytest.fixture
def apple(engine: Engine) -> int:
    """AAPL, with every bar of three sessions."""
    (symbol_id,) = add_symbols(engine, "AAPL")
    write(engine, *(full(symbol_id, day) for day in DAYS))
    return symbol_id


def write(engine: Engine, *answers: Answer, interval: Interval = Interval.M1, float32_prices: bool = False) -> None:
    CandleWriter(engine).write(
        batch(*answers, interval=interval, float32_prices=float32_prices), now=LATER, policy=POLICY, known_at=LATER
    )


def audit(engine: Engine, symbol_id: int, slots: Mapping[date, int] = USUAL, interval: Interval = Interval.M1) -> list[Discrepancy]:
    calendar = Calendar(slots, interval)
    return list(reconcile.audit(engine, [symbol_id], interval, bounds=calendar.bounds, expected=calendar.expected))


def repair(
    engine: Engine, symbol_id: int, slots: Mapping[date, int] = USUAL, interval: Interval = Interval.M1, *, now: datetime = LATER
) -> list[Discrepancy]:
    calendar = Calendar(slots, interval)
    return reconcile.repair(
        engine, [symbol_id], interval, bounds=calendar.bounds, expected=calendar.expected, now=now, known_at=now
    )


def told(found: Sequence[Discrepancy]) -> list[tuple[date, str, int]]:
    return [(discrepancy.session, discrepancy.kind.value, discrepancy.bars) for discrepancy in found]


def by_hand(engine: Engine, statement: str, **values: object) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(statement, values)


def delete_bar(engine: Engine, session: date, slot: int) -> None:
    by_hand(engine, "delete from candles_intraday where opened_at = to_timestamp(%(at)s)", at=opened_at(session, slot))


def verdicts(engine: Engine, symbol_id: int, interval: Interval = Interval.M1) -> dict[tuple[date, int], str]:
    """p: present, c: confirmed empty, -: neither, for every slot that the ledger knows."""
    return {
        (row.session, slot): "p" if present else "c" if confirmed else "-"
        for row in Ledger(engine).rows([symbol_id], interval, MONDAY - timedelta(days=9), WEDNESDAY + timedelta(days=9))
        for slot, (present, confirmed) in enumerate(zip(row.present.tolist(), row.confirmed_empty.tolist(), strict=True))
    }


def written(engine: Engine, table: str = "coverage") -> Sequence[object]:
    with engine.connect() as connection:
        return connection.exec_driver_sql(f"select xmin::text, ctid::text, t::text from {table} t").all()  # noqa: S608 - a test's own words


# --- nothing wrong


def test_what_was_written_is_in_step(engine: Engine, apple: int) -> None:
    assert audit(engine, apple) == []


@pytest.mark.parametrize("float32_prices", [False, True])
def test_digests_of_either_resolution_are_understood(engine: Engine, float32_prices: bool) -> None:  # noqa: FBT001 - parametrised
    (symbol_id,) = add_symbols(engine, "AAPL")
    write(engine, full(symbol_id, MONDAY, 10.1), float32_prices=float32_prices)
    (row,) = Ledger(engine).rows([symbol_id], Interval.M1, MONDAY, MONDAY)
    assert row.digest is not None
    assert audit(engine, symbol_id) == []


def test_sessions_that_nobody_asked_for_are_in_step(engine: Engine) -> None:
    (symbol_id,) = add_symbols(engine, "AAPL")
    assert audit(engine, symbol_id) == []
    assert repair(engine, symbol_id) == []


def test_daily_bars_are_in_step(engine: Engine) -> None:
    (symbol_id,) = add_symbols(engine, "AAPL")
    write(engine, *(full(symbol_id, day, slots=1) for day in DAYS), interval=Interval.D1)
    assert audit(engine, symbol_id, dict.fromkeys(DAYS, 1), Interval.D1) == []


def test_repairing_what_is_in_step_writes_nothing(engine: Engine, apple: int) -> None:
    before = written(engine)
    assert repair(engine, apple) == []
    assert written(engine) == before


# --- bars that are gone


def test_a_bar_deleted_by_hand_changes_exactly_one_verdict(engine: Engine, apple: int) -> None:
    before = verdicts(engine, apple)
    delete_bar(engine, TUESDAY, 3)
    assert told(audit(engine, apple)) == [(TUESDAY, "lost_bars", 1)]
    assert verdicts(engine, apple) == before
    assert told(repair(engine, apple)) == [(TUESDAY, "lost_bars", 1)]
    assert verdicts(engine, apple) == before | {(TUESDAY, 3): "-"}
    assert audit(engine, apple) == []


def test_healing_asks_again_for_a_bar_that_is_gone(engine: Engine, apple: int) -> None:
    delete_bar(engine, TUESDAY, 3)
    repair(engine, apple, now=at(60))
    (gap,) = Ledger(engine).due_gaps(at(60), limit=9)
    assert (gap.symbol, gap.first, gap.last, gap.absent, gap.attempts, gap.due_since) == ("AAPL", TUESDAY, TUESDAY, 1, 0, at(60))


def test_a_bar_that_is_gone_comes_back_with_the_same_answer(engine: Engine, apple: int) -> None:
    """The row's digest must not let the answer pass for stored."""
    before = verdicts(engine, apple)
    delete_bar(engine, TUESDAY, 3)
    repair(engine, apple)
    write(engine, full(apple, TUESDAY))
    assert verdicts(engine, apple) == before
    assert audit(engine, apple) == []


def test_only_the_row_with_something_wrong_is_written(engine: Engine, apple: int) -> None:
    delete_bar(engine, TUESDAY, 3)
    before = written(engine)
    repair(engine, apple)
    assert len(set(before) & set(written(engine))) == 2


def test_repair_touches_no_bar(engine: Engine, apple: int) -> None:
    delete_bar(engine, TUESDAY, 3)
    by_hand(engine, "update coverage set present = '00000' where session = '2024-03-04'")
    before = written(engine, "candles_intraday")
    repair(engine, apple, {MONDAY: 5, TUESDAY: 5, WEDNESDAY: 2})
    assert written(engine, "candles_intraday") == before


def test_a_daily_bar_that_is_gone_is_found(engine: Engine) -> None:
    (symbol_id,) = add_symbols(engine, "AAPL")
    one_a_day = dict.fromkeys(DAYS, 1)
    write(engine, *(full(symbol_id, day, slots=1) for day in DAYS), interval=Interval.D1)
    by_hand(engine, "delete from candles_daily where session_date = '2024-03-05'")
    assert told(repair(engine, symbol_id, one_a_day, Interval.D1)) == [(TUESDAY, "lost_bars", 1)]
    assert verdicts(engine, symbol_id, Interval.D1) == {(MONDAY, 0): "p", (TUESDAY, 0): "-", (WEDNESDAY, 0): "p"}


def test_no_provider_is_asked_for_a_derived_bar_that_is_gone(engine: Engine, apple: int) -> None:
    sessions = Calendar(USUAL).bounds
    segments = Segments(sessions.session, sessions.opens_at, sessions.closes_at)
    CandleDeriver(engine).derive([apple], Interval.M5, segments, now=LATER)
    by_hand(engine, "delete from candles_intraday where interval_s = 300 and opened_at < '2024-03-05'")
    calendar = Calendar(USUAL)
    one_a_day = SessionBounds(sessions.session, sessions.opens_at, sessions.closes_at)
    expected = ExpectedOpens(
        sessions.opens_at, calendar.bounds.closes_at, sessions.session, np.zeros(len(sessions.session), np.int16)
    )
    found = reconcile.repair(engine, [apple], Interval.M5, bounds=one_a_day, expected=expected, now=LATER, known_at=LATER)
    assert told(found) == [(MONDAY, "lost_bars", 1)]
    assert Ledger(engine).due_gaps(at(9e9), limit=9) == []
    CandleDeriver(engine).derive([apple], Interval.M5, segments, now=LATER)
    assert list(reconcile.audit(engine, [apple], Interval.M5, bounds=one_a_day, expected=expected)) == []


# --- bars that the ledger does not know


def test_a_bar_that_the_ledger_does_not_know_becomes_present(engine: Engine, apple: int) -> None:
    before = verdicts(engine, apple)
    by_hand(engine, "update coverage set present = '11011', confirmed_empty = '00100' where session = '2024-03-05'")
    assert told(repair(engine, apple)) == [(TUESDAY, "unrecorded_bars", 1)]
    assert verdicts(engine, apple) == before
    assert Ledger(engine).due_gaps(at(9e9), limit=9) == []


def test_a_ledger_row_that_is_gone_is_written_again_from_the_bars(engine: Engine) -> None:
    (symbol_id,) = add_symbols(engine, "AAPL")
    write(engine, Answer(symbol_id, MONDAY, {0: 10.0, 2: 10.0}), full(symbol_id, TUESDAY))
    before = verdicts(engine, symbol_id)
    by_hand(engine, "delete from coverage")
    assert told(repair(engine, symbol_id)) == [(MONDAY, "unrecorded_bars", 2), (TUESDAY, "unrecorded_bars", 5)]
    assert verdicts(engine, symbol_id) == before
    assert [(gap.first, gap.last) for gap in Ledger(engine).due_gaps(LATER, limit=9)] == [(MONDAY, MONDAY)]


def test_what_healing_tried_for_the_other_gaps_still_holds(engine: Engine) -> None:
    (symbol_id,) = add_symbols(engine, "AAPL")
    write(engine, Answer(symbol_id, MONDAY, {0: 10.0, 2: 10.0}))
    by_hand(engine, "update coverage set present = '10000', attempts = 4, failures = 2, next_attempt_at = %(at)s", at=at(7200))
    repair(engine, symbol_id)
    (row,) = Ledger(engine).rows([symbol_id], Interval.M1, MONDAY, MONDAY)
    assert (row.attempts, row.failures, row.next_attempt_at) == (4, 2, at(7200))
    assert row.present.tolist() == [True, False, True, False, False]


# --- digests, provenance


def test_a_value_edited_by_hand_does_not_pass_for_what_was_answered(engine: Engine, apple: int) -> None:
    before = verdicts(engine, apple)
    by_hand(
        engine,
        "update candles_intraday set high = 99, as_of = as_of + interval '1 s' where opened_at = to_timestamp(%(at)s)",
        at=opened_at(MONDAY, 1),
    )
    assert told(repair(engine, apple)) == [(MONDAY, "stale_digest", 5)]
    assert verdicts(engine, apple) == before
    write(engine, full(apple, MONDAY))
    with engine.connect() as connection:
        assert connection.exec_driver_sql("select max(high) from candles_intraday").scalar_one() == 10.04


def test_bars_without_their_fetch_are_told_and_left(engine: Engine, apple: int) -> None:
    by_hand(engine, "update candles_intraday set fetch_id = 999, as_of = as_of + interval '1 s' where opened_at > '2024-03-06'")
    (orphans,) = repair(engine, apple)
    assert told([orphans]) == [(WEDNESDAY, "orphan_bars", 5)]
    assert not orphans.is_repairable
    assert told(audit(engine, apple)) == [(WEDNESDAY, "orphan_bars", 5)]


# --- the calendar changed


def test_a_late_closure_shortens_the_session_and_tells_the_bars_after_it(engine: Engine, apple: int) -> None:
    before = verdicts(engine, apple)
    closed_early = USUAL | {TUESDAY: 3}
    assert told(repair(engine, apple, closed_early)) == [(TUESDAY, "calendar_changed", 2), (TUESDAY, "off_grid_bars", 2)]
    expected = {place: verdict for place, verdict in before.items() if place not in {(TUESDAY, 3), (TUESDAY, 4)}}
    assert verdicts(engine, apple) == expected
    assert told(audit(engine, apple, closed_early)) == [(TUESDAY, "off_grid_bars", 2)]


def test_a_longer_session_leaves_the_new_bars_to_healing(engine: Engine, apple: int) -> None:
    before = verdicts(engine, apple)
    repair(engine, apple, USUAL | {TUESDAY: 7})
    assert verdicts(engine, apple) == before | {(TUESDAY, 5): "-", (TUESDAY, 6): "-"}
    assert [gap.absent for gap in Ledger(engine).due_gaps(LATER, limit=9)] == [2]


def test_a_minute_confirmed_empty_stays_so_in_a_shortened_session(engine: Engine) -> None:
    (symbol_id,) = add_symbols(engine, "AAPL")
    write(engine, Answer(symbol_id, TUESDAY, {0: 10.0, 2: 10.0, 4: 10.0}))
    by_hand(engine, "update coverage set confirmed_empty = '01010'")
    repair(engine, symbol_id, USUAL | {TUESDAY: 3})
    assert verdicts(engine, symbol_id) == {(TUESDAY, 0): "p", (TUESDAY, 1): "c", (TUESDAY, 2): "p"}


def test_a_session_that_was_called_off_leaves_the_ledger(engine: Engine, apple: int) -> None:
    without_tuesday = {MONDAY: 5, WEDNESDAY: 5}
    found = repair(engine, apple, without_tuesday)
    assert told(found) == [(TUESDAY, "no_session", 5), (TUESDAY, "off_grid_bars", 5)]
    assert {session for session, _ in verdicts(engine, apple)} == {MONDAY, WEDNESDAY}
    assert [discrepancy.kind for discrepancy in audit(engine, apple, without_tuesday)] == [DiscrepancyKind.OFF_GRID_BARS]


# --- much


def test_a_long_history_is_read_in_pieces_and_nothing_falls_between_them(engine: Engine) -> None:
    (symbol_id,) = add_symbols(engine, "AAPL")
    days = [MONDAY + timedelta(days=2 * n) for n in range(2 * reconcile.SESSIONS_AT_ONCE + 3)]
    calendar = dict.fromkeys(days, 2)
    write(engine, *(full(symbol_id, day, slots=2) for day in days))
    edges = [days[reconcile.SESSIONS_AT_ONCE + place] for place in (-1, 0)]
    for day in edges:
        delete_bar(engine, day, 1)
    between = edges[0] + timedelta(days=1)
    by_hand(engine, "update coverage set session = %(day)s where session = %(last)s", day=between, last=days[-1])
    found = audit(engine, symbol_id, calendar)
    assert told(found) == [
        (edges[0], "lost_bars", 1),
        (between, "no_session", 2),
        (edges[1], "lost_bars", 1),
        (days[-1], "unrecorded_bars", 2),
    ]


def test_symbols_are_told_one_by_one(engine: Engine) -> None:
    apple, microsoft = add_symbols(engine, "AAPL", "MSFT")
    write(engine, full(apple, MONDAY), full(microsoft, MONDAY))
    delete_bar(engine, MONDAY, 0)
    calendar = Calendar(USUAL)
    found = reconcile.audit(engine, [microsoft, apple, apple], Interval.M1, bounds=calendar.bounds, expected=calendar.expected)
    assert [discrepancy.symbol_id for discrepancy in found] == [apple, microsoft]
