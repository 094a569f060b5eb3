"""Halts in the store: what was known when, and what they do to ledger rows."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.coverage import LedgerRow, Verdict
from market_data_pipeline.domain.evidence import Rung
from market_data_pipeline.domain.halts import Halt
from market_data_pipeline.domain.universe import Tier, UniverseEntry
from market_data_pipeline.storage.audit import AuditLog
from market_data_pipeline.storage.evidence import Evidence, slots_within
from market_data_pipeline.storage.halts import Halts, HaltsLoaded, SuspendedSlots
from market_data_pipeline.storage.ledger import Ledger
from market_data_pipeline.storage.universe import UniverseStore
from market_data_pipeline_tests.storage.builders import MONDAY

if TYPE_CHECKING:
    from sqlalchemy import Engine

NOON = datetime(2024, 12, 2, 17, tzinfo=UTC)
NOW = datetime(2024, 12, 2, 23, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
OPEN = datetime(MONDAY.year, MONDAY.month, MONDAY.day, 14, 30, tzinfo=UTC)


def aapl(engine: Engine) -> int:
    store = UniverseStore(engine)
    entries = [UniverseEntry("AAPL", "XNAS", Tier.T0)]
    store.load(entries, version_tag="test", source="test", source_sha256="0" * 64, loaded_by="test")
    return store.instruments()[0].symbol_id


def test_a_halt_told_again_changes_nothing_and_one_with_another_end_takes_its_place(engine: Engine) -> None:
    symbol_id = aapl(engine)
    halts = Halts(engine)
    lasting = Halt(symbol_id, "XNYS", NOON, None, "T1")
    market = Halt(None, "XNYS", NOON, NOON + 15 * MINUTE, "MWC1")
    assert halts.load([lasting, market], source="exchange", now=NOW, actor="me") == HaltsLoaded(2, 0, 0)
    assert halts.load([lasting, market], source="exchange", now=NOW) == HaltsLoaded(0, 0, 2)
    over = Halt(symbol_id, "XNYS", NOON, NOON + 5 * MINUTE, "T1")
    assert halts.load([over], source="exchange", now=NOW) == HaltsLoaded(0, 1, 0)
    known = halts.between([symbol_id], ["XNYS"], NOON, NOON + MINUTE)
    assert {(halt.symbol, halt.ends_at) for halt in known} == {("AAPL", over.ends_at), (None, market.ends_at)}
    assert halts.between([symbol_id], [], NOON + 5 * MINUTE, NOON + 9 * MINUTE) == []
    with engine.connect() as connection:
        assert connection.exec_driver_sql("select count(*) from trading_halts where known_to is not null").scalar_one() == 1
    entries = AuditLog(engine).entries(10, action="halts")
    assert [(entry.actor, entry.subject) for entry in entries] == [("exchange", "exchange")] * 2 + [("me", "exchange")]


def row_of(symbol_id: int, *, present: str, empty: str, asked_at: datetime | None) -> LedgerRow:
    """A toy session of six minutes."""
    return LedgerRow(
        symbol_id=symbol_id,
        interval=Interval.M1,
        session=MONDAY,
        opens_at=int(OPEN.timestamp()),
        closes_at=int(OPEN.timestamp()) + 360,
        present=np.array([c == "#" for c in present]),
        confirmed_empty=np.array([c == "#" for c in empty]),
        attempts=2,
        last_attempt_at=asked_at,
        next_attempt_at=NOW,
        known_at=NOW,
    )


SUSPENDED = np.array([False, True, True, True, False, False])


def test_slots_without_a_bar_are_halted_empty_ones_too_and_what_is_still_absent_stays_planned(engine: Engine) -> None:
    symbol_id = aapl(engine)
    ledger, halts = Ledger(engine), Halts(engine)
    ledger.open_sessions([row_of(symbol_id, present="##....", empty="..#...", asked_at=NOW)])
    told = [SuspendedSlots(symbol_id, MONDAY, SUSPENDED, "halted, T1 (exchange)")]
    assert halts.apply(Interval.M1, told, now=NOW) == 2
    [row] = ledger.rows([symbol_id], Interval.M1, MONDAY, MONDAY)
    assert row.halted is not None
    assert np.flatnonzero(row.halted).tolist() == [2, 3]
    assert not row.confirmed_empty.any()
    assert (row.present.tolist()[:2], row.next_attempt_at) == ([True, True], NOW)
    assert halts.apply(Interval.M1, told, now=NOW) == 0
    [decided] = Evidence(engine).of(symbol_id, Interval.M1, MONDAY, MONDAY)
    assert (decided.verdict, decided.rung, decided.detail) == (Verdict.HALTED, Rung.HALT_FEED, "halted, T1 (exchange)")


def test_where_nothing_is_absent_any_more_no_attempt_is_planned(engine: Engine) -> None:
    symbol_id = aapl(engine)
    ledger = Ledger(engine)
    ledger.open_sessions([row_of(symbol_id, present="##..##", empty="......", asked_at=NOW)])
    Halts(engine).apply(Interval.M1, [SuspendedSlots(symbol_id, MONDAY, SUSPENDED, "halted")], now=NOW)
    [row] = ledger.rows([symbol_id], Interval.M1, MONDAY, MONDAY)
    assert row.resolved.all()
    assert row.next_attempt_at is None


def test_a_session_that_nobody_has_asked_for_is_left_to_its_first_answer(engine: Engine) -> None:
    symbol_id = aapl(engine)
    for asked_at in (None, OPEN + MINUTE):
        Ledger(engine).open_sessions([row_of(symbol_id, present="##..##", empty="......", asked_at=asked_at)])
        assert Halts(engine).apply(Interval.M1, [SuspendedSlots(symbol_id, MONDAY, SUSPENDED, "halted")], now=NOW) == 0


def test_only_slots_wholly_inside_a_halt_count_and_halts_that_touch_are_one() -> None:
    starts = np.arange(0, 600, 60)
    ends = starts + 60
    assert np.flatnonzero(slots_within(starts, ends, [(30, 240)])).tolist() == [1, 2, 3]
    assert np.flatnonzero(slots_within(starts, ends, [(60, 90), (90, 180)])).tolist() == [1, 2]
    assert np.flatnonzero(slots_within(starts, ends, [(90, 180), (60, 90), (480, None)])).tolist() == [1, 2, 8, 9]
    assert not slots_within(starts, ends, [(61, 119)]).any()


def test_what_was_given_up_is_asked_for_again_from_the_start_and_what_is_planned_or_whole_is_left_alone(engine: Engine) -> None:
    symbol_id = aapl(engine)
    ledger = Ledger(engine)
    given_up = row_of(symbol_id, present="##....", empty="......", asked_at=NOW)
    given_up = replace(given_up, next_attempt_at=None, failures=24)
    ledger.open_sessions([given_up])
    later = NOW + timedelta(days=9)
    assert ledger.retry(later, symbol_ids=[symbol_id + 1]) == 0
    assert ledger.retry(later, symbol_ids=[symbol_id], intervals=[Interval.M1], first=MONDAY, last=MONDAY) == 1
    [row] = ledger.rows([symbol_id], Interval.M1, MONDAY, MONDAY)
    assert (row.attempts, row.failures, row.next_attempt_at) == (0, 0, later)
    assert ledger.retry(later) == 0
