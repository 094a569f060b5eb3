"""Findings about listings are kept with the times at which they were known, and say which sessions are asked for."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.coverage import LedgerRow
from market_data_pipeline.domain.listing import ListingFinding, ListingKind, Reply
from market_data_pipeline.domain.ports import Fetch
from market_data_pipeline.domain.universe import Tier, UniverseEntry
from market_data_pipeline.storage.fetches import FetchStore
from market_data_pipeline.storage.ledger import Ledger
from market_data_pipeline.storage.listing import Company, ListingStore
from market_data_pipeline.storage.universe import UniverseStore

if TYPE_CHECKING:
    from sqlalchemy import Engine

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
MONDAY, TUESDAY, WEDNESDAY, THURSDAY, FRIDAY = (date(2026, 3, day) for day in range(2, 7))
AAPL, MSFT, IBM = 1, 2, 3
BEGAN = ListingFinding(ListingKind.FIRST_SESSION, TUESDAY, ("yahoo",), "it began")
ENDED = ListingFinding(ListingKind.LAST_SESSION, WEDNESDAY, ("yahoo",), "it ended")
NEVER = ListingFinding(ListingKind.NEVER_LISTED, None, ("yahoo",), "it never was")


def load(engine: Engine, *entries: UniverseEntry) -> UniverseStore:
    store = UniverseStore(engine)
    store.load(entries, version_tag=f"{entries}"[-120:], source="t", source_sha256=f"{entries}", loaded_by="t")
    return store


@pytest.fixture
def universe(engine: Engine) -> UniverseStore:
    return load(engine, *(UniverseEntry(symbol, "XNYS", Tier.T0) for symbol in ("AAPL", "MSFT", "IBM")))


@pytest.fixture
def store(engine: Engine, universe: UniverseStore) -> ListingStore:
    assert len(universe.instruments()) == 3
    return ListingStore(engine)


def open_sessions(engine: Engine, symbol_id: int, **bars: str) -> None:
    """Sessions by weekday: "#" present, "e" confirmed empty, "." absent after six attempts."""
    days = {"monday": MONDAY, "tuesday": TUESDAY, "wednesday": WEDNESDAY, "thursday": THURSDAY, "friday": FRIDAY}
    Ledger(engine).open_sessions(
        [
            LedgerRow(
                symbol_id=symbol_id,
                interval=Interval.H1,
                session=days[name],
                opens_at=int(datetime(2026, 3, days[name].day, 14, 30, tzinfo=UTC).timestamp()),
                closes_at=int(datetime(2026, 3, days[name].day, 21, tzinfo=UTC).timestamp()),
                present=np.array([slot == "#" for slot in slots]),
                confirmed_empty=np.array([slot == "e" for slot in slots]),
                attempts=6 if "." in slots else 0,
                known_at=NOW,
            )
            for name, slots in bars.items()
        ]
    )


def fetched(engine: Engine, symbol_id: int, at: datetime, outcome: str = "ok", *, provider: str = "yahoo") -> None:
    rows = 7 if outcome == "ok" else 0
    FetchStore(engine).record([(symbol_id, Fetch(provider, "S", Interval.H1, "GET", at, 0.1, outcome, rows=rows))])


# --- findings


def test_a_finding_is_recorded_once_and_says_which_sessions_are_listed(
    engine: Engine, store: ListingStore, universe: UniverseStore
) -> None:
    assert store.record(AAPL, [BEGAN, ENDED], known_at=NOW, run_id="a run") == [BEGAN, ENDED]
    assert store.record(AAPL, [BEGAN, ENDED], known_at=NOW + timedelta(days=1)) == []
    store.record(IBM, [NEVER], known_at=NOW)
    aapl, msft, ibm = universe.instruments()
    assert [day for day in (MONDAY, TUESDAY, WEDNESDAY, THURSDAY) if aapl.listed_on(day)] == [TUESDAY, WEDNESDAY]
    assert msft.is_always_listed
    assert not ibm.listed_on(TUESDAY)
    assert ibm.as_filed.listed_on(TUESDAY)
    open_sessions(engine, AAPL, monday="..", wednesday="..", thursday="..")
    assert [(found.symbol_id, found.finding) for found in store.current()] == [(AAPL, BEGAN), (AAPL, ENDED), (IBM, NEVER)]


def test_what_is_taken_back_stays_readable_and_its_sessions_are_due_as_if_nobody_had_asked(
    engine: Engine, store: ListingStore, universe: UniverseStore
) -> None:
    open_sessions(engine, AAPL, tuesday="##", wednesday="#.", thursday="..", friday="..")
    store.record(AAPL, [ENDED], known_at=NOW)
    assert Ledger(engine).due_gaps(NOW, limit=9) == []
    [found] = store.current()
    store.take_back(found, now=NOW + timedelta(days=1), known_at=NOW + timedelta(days=1))
    [gap] = Ledger(engine).due_gaps(NOW + timedelta(days=1), limit=9)
    assert (gap.first, gap.last, gap.attempts) == (THURSDAY, FRIDAY, 0)
    assert universe.instrument("AAPL").is_always_listed
    [past] = store.history(AAPL)
    assert (past.known_from, past.known_to) == (NOW, NOW + timedelta(days=1))
    assert store.record(AAPL, [ENDED], known_at=NOW) == [ENDED]
    assert store.history(AAPL)[1].known_from == NOW + timedelta(days=1)


def test_sessions_that_were_taken_for_empty_are_not_listed_once_it_is_known_that_there_were_none(
    engine: Engine, store: ListingStore
) -> None:
    open_sessions(engine, AAPL, monday="ee", tuesday="#e", wednesday="ee", thursday="##")
    store.record(AAPL, [BEGAN])
    rows = Ledger(engine).rows([AAPL], Interval.H1, MONDAY, FRIDAY)
    assert [int(row.confirmed_empty.sum()) for row in rows] == [0, 1, 2, 0]


def test_whoever_is_gone_is_not_asked_to_confirm_what_it_failed_to(engine: Engine, store: ListingStore) -> None:
    open_sessions(engine, AAPL, tuesday="##", wednesday="##")
    with engine.begin() as connection:
        connection.exec_driver_sql("update coverage set recheck_at = %s, failures = extract(dow from session)::int - 2", (NOW,))
    store.record(AAPL, [BEGAN])
    assert [due.sessions for due in Ledger(engine).due_rechecks(NOW, limit=9)] == [2]
    store.record(AAPL, [ENDED])
    [due] = Ledger(engine).due_rechecks(NOW, limit=9)
    assert (due.first, due.last) == (TUESDAY, TUESDAY)


def test_bars_outside_contradict_a_finding(engine: Engine, store: ListingStore) -> None:
    open_sessions(engine, AAPL, tuesday="##", wednesday="##")
    store.record(AAPL, [BEGAN, ENDED])
    store.record(IBM, [NEVER])
    assert store.contradicted() == []
    open_sessions(engine, AAPL, thursday=".#")
    open_sessions(engine, IBM, monday="#.")
    assert [(found.symbol_id, found.finding) for found in store.contradicted()] == [(AAPL, ENDED), (IBM, NEVER)]


def test_a_universe_file_that_changes_how_it_is_asked_for_forgets_what_was_found(engine: Engine, store: ListingStore) -> None:
    store.record(AAPL, [BEGAN])
    store.record(IBM, [NEVER])
    same = UniverseEntry("AAPL", "XNYS", Tier.T1, adv_21d=1e6)
    loaded = load(engine, same, UniverseEntry("IBM", "XNYS", Tier.T0, aliases={"yahoo": "IBM.N"}))
    assert [found.finding for found in store.current()] == [BEGAN]
    assert loaded.instrument("AAPL").listed_from == TUESDAY
    assert loaded.instrument("IBM").is_always_listed


# --- evidence


def test_bars_begin_and_end_where_any_interval_has_them_and_the_sessions_around_are_barren(
    engine: Engine, store: ListingStore
) -> None:
    open_sessions(engine, AAPL, monday="..", tuesday=".#", wednesday="..", thursday="##", friday="ee")
    open_sessions(engine, IBM, monday="..")
    [(symbol_id, extent)] = store.extents([AAPL, IBM]).items()
    assert (symbol_id, extent.firsts, extent.lasts) == (AAPL, {Interval.H1: TUESDAY}, {Interval.H1: THURSDAY})
    barren = store.barren([AAPL, IBM], now=NOW)
    [before], [after] = barren[AAPL]
    assert (before.session, before.attempts, before.is_given_up, before.is_decided) == (MONDAY, 6, True, False)
    assert (after.session, after.is_decided) == (FRIDAY, True)
    assert [barren.session for barren in barren[IBM][1]] == [MONDAY]
    assert store.barren([AAPL], now=datetime(2026, 3, 6, 20, tzinfo=UTC))[AAPL][1] == []


def test_whom_to_look_at(engine: Engine, store: ListingStore) -> None:
    def looked_at() -> list[int]:
        return store.candidates(since=NOW - timedelta(days=30), asked=3)

    open_sessions(engine, AAPL, monday="#.", tuesday="##")
    fetched(engine, AAPL, NOW)
    assert looked_at() == []
    open_sessions(engine, AAPL, wednesday="..")
    assert looked_at() == [AAPL]
    fetched(engine, IBM, NOW - timedelta(days=31), "unknown_symbol")
    assert looked_at() == [AAPL]
    fetched(engine, IBM, NOW, "unknown_symbol")
    fetched(engine, MSFT, NOW, "transient")
    assert looked_at() == [AAPL, IBM]
    store.record(IBM, [NEVER])
    assert looked_at() == [AAPL]


def test_answers_are_told_and_failures_are_none(engine: Engine, store: ListingStore) -> None:
    for hours, outcome in enumerate(("ok", "transient", "barren", "unknown_symbol", "rate_limited")):
        fetched(engine, AAPL, NOW + timedelta(hours=hours), outcome)
    told = [(at - NOW, reply) for _, at, reply in store.answers([AAPL], since=NOW - timedelta(days=1))[AAPL]]
    assert told == [
        (timedelta(0), Reply.BARS),
        (timedelta(hours=2), Reply.NOTHING),
        (timedelta(hours=3), Reply.NOT_FOUND),
    ]


def test_a_provider_is_judged_by_symbols_that_it_has_had_bars_of(engine: Engine, store: ListingStore) -> None:
    since, half_hour = NOW - timedelta(days=1), timedelta(minutes=30)
    for symbol_id in (AAPL, MSFT):
        fetched(engine, symbol_id, NOW)
    for symbol_id in (AAPL, IBM):
        fetched(engine, symbol_id, NOW + timedelta(hours=1), "unknown_symbol")
    later = Company(0, 1, frozenset({AAPL}))
    assert store.company([AAPL, IBM], since=since, grain=half_hour) == {
        ("yahoo", NOW): Company(2, 0, frozenset()),
        ("yahoo", NOW + timedelta(hours=1)): later,
    }


def test_whether_others_traded_is_known_only_where_others_were_asked_for(engine: Engine, store: ListingStore) -> None:
    open_sessions(engine, AAPL, monday="..", tuesday="..")
    open_sessions(engine, MSFT, monday="..", tuesday="#.")
    assert [store.others_traded(AAPL, day) for day in (MONDAY, TUESDAY, WEDNESDAY)] == [False, True, None]
