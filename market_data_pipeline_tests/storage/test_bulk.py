from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
from contextlib import closing
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg2
import psycopg2.errors
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market_data_pipeline.domain.candles import CandleColumns, Interval
from market_data_pipeline.domain.capabilities import Feed
from market_data_pipeline.domain.errors import DatabaseUnreachableError, InvalidInputError
from market_data_pipeline.domain.healing import HealingPolicy
from market_data_pipeline.domain.ports import CorporateAction, RefusedBars
from market_data_pipeline.domain.quality import BarFlag
from market_data_pipeline.storage.bulk import INTRADAY, LOCK_BUCKETS, CandleWriter, lock_series, transaction
from market_data_pipeline.storage.candles import CandleReader
from market_data_pipeline.storage.database import open_engine
from market_data_pipeline_tests.storage.builders import (
    LATER,
    MONDAY,
    TUESDAY,
    WEDNESDAY,
    Answer,
    Bar,
    add_symbols,
    at,
    batch,
    fetch,
    flat,
    full,
    opened_at,
    opens_at,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.synchronize import Barrier

    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - a class that psycopg2 spells in lower case
    from sqlalchemy.engine import Engine

    from market_data_pipeline.domain.ports import CandleBatch, WriteReport

POLICY = HealingPolicy(confirm_after=2, give_up_after=4, backoff_seconds=60.0)
WEEK = (opens_at(MONDAY), opens_at(MONDAY) + 5 * 86_400)
MIDNIGHTS = (opened_at(MONDAY, 0, Interval.D1), opened_at(WEDNESDAY, 0, Interval.D1) + 1)


class Store:
    """A database with one symbol in it, and short words for what the tests do to it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.writer = CandleWriter(engine)
        self.reader = CandleReader(engine)
        (self.aapl,) = add_symbols(engine, "AAPL")

    def write(
        self,
        *answers: Answer,
        now: datetime = LATER,
        known_at: datetime | None = None,
        ranking: Sequence[str] | None = None,
        **different: Any,  # noqa: ANN401 - builders.batch's own
    ) -> WriteReport:
        return self.put(batch(*answers, **different), now=now, known_at=known_at, ranking=ranking)

    def put(
        self, whole: CandleBatch, *, now: datetime = LATER, known_at: datetime | None = None, ranking: Sequence[str] | None = None
    ) -> WriteReport:
        return self.writer.write(whole, now=now, policy=POLICY, known_at=known_at, run_id="a run", ranking=ranking)

    def closes(self, symbol_id: int | None = None, as_of: datetime | None = None) -> dict[int, float]:
        stored = self.reader.read([symbol_id or self.aapl], Interval.M1, *WEEK, as_of=as_of).columns
        return dict(zip(stored.opened_at.tolist(), stored.close.tolist(), strict=True))

    def rows(self, statement: str, **parameters: object) -> list[tuple[Any, ...]]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.text(statement), parameters)]

    def one(self, statement: str, **parameters: object) -> Any:  # noqa: ANN401 - whatever the column holds
        ((value,),) = self.rows(statement, **parameters)
        return value

    def tuples(self) -> list[tuple[Any, ...]]:
        """Every row that a change of bars or verdicts would touch, with the transaction that wrote it and where it lies."""
        tables = ("candles_intraday", "candles_daily", "candle_revisions", "coverage", "ingestion_cursor", "corporate_actions")
        return [row for t in tables for row in self.rows(f"select '{t}', ctid::text, xmin::text, t::text from {t} t order by 2")]  # noqa: S608 - names above

    def coverage(self, symbol_id: int | None = None, session: date = MONDAY) -> Any:  # noqa: ANN401 - a row
        with self.engine.connect() as connection:
            return connection.execute(
                sa.text("select * from coverage where symbol_id = :s and session = :d"),
                {"s": symbol_id or self.aapl, "d": session},
            ).one()


@pytest.fixture
def store(engine: Engine) -> Store:
    return Store(engine)


# --- new, identical, changed -------------------------------------------------------------------------------------------


def test_new_bars_are_stored_as_they_came(store: Store) -> None:
    bars = {0: Bar(10.0, 11.5, 9.25, 10.5, 123.75, 10.1, 7.0), 3: Bar(10.5, 10.5, 10.5, 10.5, 0.0)}

    report = store.write(Answer(store.aapl, MONDAY, bars), known_at=at(0), flags=4)

    assert (report.inserted, report.revised, report.unchanged, report.known_at) == (2, 0, 0, at(0))
    assert store.rows(
        "select extract(epoch from opened_at)::int8, interval_s, open, high, low, close, volume, vwap, trades, as_of,"
        " feed, finality, flags"
        " from candles_intraday order by opened_at"
    ) == [
        (opened_at(MONDAY, 0), 60, 10.0, 11.5, 9.25, 10.5, 123.75, 10.1, 7, at(0), 0, 0, 4),
        (opened_at(MONDAY, 3), 60, 10.5, 10.5, 10.5, 10.5, 0.0, None, None, at(0), 0, 0, 4),
    ]
    assert store.coverage().present == "10010"


def test_the_same_answer_again_changes_no_row_and_writes_almost_no_wal(store: Store) -> None:
    answers = [full(store.aapl, day, slots=390) for day in (MONDAY, TUESDAY)]
    position = "select pg_current_wal_insert_lsn() - '0/0'::pg_lsn"
    before = store.one(position)
    store.write(*answers)
    first_wal = store.one(position) - before
    stored = store.tuples()

    again = []
    for minute in range(3):
        before = store.one(position)
        report = store.write(*answers, now=LATER + timedelta(minutes=minute))
        again.append(store.one(position) - before)
        assert (report.inserted, report.revised, report.unchanged) == (0, 0, 780)

    assert store.tuples() == stored
    # One row of provenance. The least of three: another process of the server may log something at any time.
    assert min(again) < 4_000 < first_wal / 20


def test_the_same_bars_in_another_batch_change_no_row(store: Store) -> None:
    store.write(full(store.aapl, MONDAY), full(store.aapl, TUESDAY))
    stored = store.tuples()

    store.write(full(store.aapl, TUESDAY))

    assert store.tuples() == stored


def test_a_bar_that_differs_is_replaced_and_its_old_value_kept(store: Store) -> None:
    store.write(full(store.aapl, MONDAY, 10.0), known_at=at(0))

    report = store.write(full(store.aapl, MONDAY, 10.0).but({2: Bar(10.0, 12.0, 9.0, 11.0, 5.0)}), known_at=at(60))

    assert (report.inserted, report.revised, report.unchanged) == (0, 1, 4)
    old = store.reader.revisions(store.aapl, Interval.M1, *WEEK)
    assert old.columns.opened_at.tolist() == [opened_at(MONDAY, 2)]
    assert old.columns.close.tolist() == [10.02]
    assert (old.known_from[0], old.known_to[0]) == (at(0).timestamp() * 1e6, at(60).timestamp() * 1e6)
    assert store.closes()[opened_at(MONDAY, 2)] == 11.0
    assert store.coverage().as_of == at(60)


@pytest.mark.parametrize("float32_prices", [False, True])
def test_a_change_of_any_value_is_a_revision(store: Store, float32_prices: bool) -> None:  # noqa: FBT001 - pytest passes it
    bar = Bar(10.0, 12.0, 8.0, 11.0, 100.0, 10.0, 5.0)
    store.write(Answer(store.aapl, MONDAY, {0: bar}), float32_prices=float32_prices)

    for name in Bar._fields:
        bar = bar._replace(**{name: getattr(bar, name) + (1.0 if name == "trades" else 0.5)})
        report = store.write(Answer(store.aapl, MONDAY, {0: bar}), float32_prices=float32_prices)
        assert report.revised == 1, name


def test_vwap_and_trades_that_become_known_or_unknown_are_revisions(store: Store) -> None:
    unknown, known = flat(10.0), Bar(10.0, 10.0, 10.0, 10.0, 100.0, 10.0, 3.0)

    reports = [store.write(Answer(store.aapl, MONDAY, {0: bar, 1: flat(9.0)})) for bar in (unknown, known, known, unknown)]

    assert [report.revised for report in reports] == [0, 1, 0, 1]
    assert store.rows("select vwap, trades from candles_intraday order by opened_at") == [(None, None), (None, None)]


def test_a_better_provider_that_tells_no_vwap_takes_none_from_a_bar_that_agrees(store: Store) -> None:
    known, untold = Bar(10.0, 10.0, 10.0, 10.0, 100.0, 10.0, 3.0), flat(10.0)
    store.write(Answer(store.aapl, MONDAY, {0: known}), provider="massive")

    report = store.write(Answer(store.aapl, MONDAY, {0: untold}), provider="yahoo", ranking=["yahoo", "massive"])

    assert (report.revised, report.left_alone, report.unchanged) == (0, 0, 1)
    assert store.rows("select vwap, trades from candles_intraday") == [(10.0, 3)]


def test_a_bar_that_a_later_answer_lacks_stays(store: Store) -> None:
    store.write(full(store.aapl, MONDAY))
    before = store.closes()

    report = store.write(Answer(store.aapl, MONDAY, {0: 10.0, 4: 99.0}))

    assert (report.inserted, report.revised) == (0, 1)
    assert store.closes() == before | {opened_at(MONDAY, 4): 99.0}
    assert store.coverage().present == "11111"


def test_a_gap_is_filled_without_a_revision(store: Store) -> None:
    store.write(Answer(store.aapl, MONDAY, {0: 1.0, 4: 5.0}), known_at=at(0))

    report = store.write(Answer(store.aapl, MONDAY, {1: 2.0, 2: 3.0, 3: 4.0, 4: 5.0}), known_at=at(1))

    assert (report.inserted, report.revised, report.unchanged) == (3, 0, 1)
    assert list(store.closes().values()) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert list(store.closes(as_of=at(0)).values()) == [1.0, 5.0]


# --- float32 -----------------------------------------------------------------------------------------------------------


def widened(price: float) -> float:
    return float(np.float32(price))


def test_the_noise_of_widened_float32_makes_no_revision(store: Store) -> None:
    exact = Bar(150.31, 151.07, 149.93, 150.77)
    noisy = Bar(widened(150.31), widened(151.07), widened(149.93), widened(150.77))
    store.write(Answer(store.aapl, MONDAY, {0: exact, 1: flat(1.1)}))
    stored = store.rows("select ctid::text, t::text from candles_intraday t")

    reports = [
        store.write(Answer(store.aapl, MONDAY, {0: noisy, 1: flat(widened(1.1))}), float32_prices=True),
        store.write(Answer(store.aapl, MONDAY, {0: exact, 1: flat(1.1)}), float32_prices=True),
    ]

    assert [(report.revised, report.unchanged) for report in reports] == [(0, 2), (0, 2)]
    assert store.rows("select ctid::text, t::text from candles_intraday t") == stored


def test_float64_prices_are_compared_to_the_last_bit(store: Store) -> None:
    store.write(Answer(store.aapl, MONDAY, {0: 150.31}))

    assert store.write(Answer(store.aapl, MONDAY, {0: np.nextafter(150.31, 151)})).revised == 1
    # The same bits were stored at another resolution before: that must not pass for the same answer.
    assert store.write(Answer(store.aapl, MONDAY, {0: 150.31}), float32_prices=True).revised == 0
    assert store.write(Answer(store.aapl, MONDAY, {0: 150.31})).revised == 1


@pytest.mark.parametrize("price", [0.0, 1e-300, 1e300, -40.0])
def test_prices_that_float32_cannot_hold_are_still_compared(store: Store, price: float) -> None:
    store.write(Answer(store.aapl, MONDAY, {0: price}))

    assert store.write(Answer(store.aapl, MONDAY, {0: 7.0}), float32_prices=True).revised == 1
    assert list(store.closes().values()) == [7.0]


# --- knowledge ---------------------------------------------------------------------------------------------------------

DAYS = (MONDAY, TUESDAY)
PRICE = st.sampled_from([10.0, 10.1, 11.0])
HOLES = st.dictionaries(st.integers(0, 3), PRICE, max_size=4)
STEPS = st.lists(
    st.tuples(
        st.dictionaries(st.tuples(st.integers(0, 1), st.sampled_from(DAYS)), HOLES, max_size=4), st.booleans(), st.booleans()
    ),
    min_size=1,
    max_size=8,
)
AGAINST_ONE_DATABASE = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def fresh_pair(store: Store) -> list[int]:
    """Two symbols that no example has used yet."""
    number = store.one("select count(*) from symbol_universe")
    return add_symbols(store.engine, f"X{number}", f"Y{number}")


def answers_of(pair: Sequence[int], said: dict[tuple[int, date], dict[int, float]]) -> list[Answer]:
    return [Answer(pair[which], day, dict(bars), slots=4) for (which, day), bars in said.items()]


@AGAINST_ONE_DATABASE
@given(steps=STEPS)
def test_what_was_known_at_an_instant_never_changes_and_the_ledger_marks_exactly_what_is_stored(
    store: Store, steps: list[tuple[dict[tuple[int, date], dict[int, float]], bool, bool]]
) -> None:
    pair = fresh_pair(store)
    known: dict[tuple[int, int], float] = {}
    history: list[tuple[datetime, dict[tuple[int, int], float]]] = []
    tick = 0
    for said, clock_moves, float32_prices in steps:
        if clock_moves:
            history.append((at(tick + 0.5), dict(known)))
            tick += 1
        report = store.write(*answers_of(pair, said), known_at=at(tick), float32_prices=float32_prices)
        told = {(pair[w], opened_at(day, slot)): price for (w, day), bars in said.items() for slot, price in bars.items()}
        assert report.inserted == len(told.keys() - known.keys())
        assert report.revised == sum(known[key] != price for key, price in told.items() if key in known)
        known |= told
    history.append((at(tick + 0.5), dict(known)))

    for instant, then in history:
        assert {(s, o): c for s in pair for o, c in store.closes(s, as_of=instant).items()} == then
    assert {(s, o): c for s in pair for o, c in store.closes(s).items()} == known
    marked = store.rows(
        "select symbol_id, extract(epoch from opens_at)::int8, present from coverage where symbol_id = any(:pair)", pair=pair
    )
    assert {
        (s, opens + 60 * slot) for s, opens, present in marked for slot, bit in enumerate(present) if bit == "1"
    } == known.keys()
    assert broken_chains(store) == []


def broken_chains(store: Store) -> list[tuple[Any, ...]]:
    """Bars whose values do not follow one another in time without a break, up to the current one."""
    return store.rows(
        "select r.symbol_id, r.opened_at from candle_revisions r"
        " left join candle_revisions n on (n.symbol_id, n.interval_s, n.opened_at, n.known_from)"
        "                               = (r.symbol_id, r.interval_s, r.opened_at, r.known_to)"
        " left join candles_intraday c on (c.symbol_id, c.interval_s, c.opened_at, c.as_of)"
        "                               = (r.symbol_id, r.interval_s, r.opened_at, r.known_to)"
        " where n is null and c is null"
    )


@AGAINST_ONE_DATABASE
@given(steps=STEPS, order=st.randoms(use_true_random=False))
def test_how_answers_are_spread_over_batches_does_not_matter_while_knowledge_comes_in_order(
    store: Store, steps: list[tuple[dict[tuple[int, date], dict[int, float]], bool, bool]], order: random.Random
) -> None:
    together, apart = fresh_pair(store), fresh_pair(store)
    queues: dict[tuple[int, date], list[tuple[int, dict[int, float]]]] = {}
    for tick, (said, _, _) in enumerate(steps):
        store.write(*answers_of(together, said), known_at=at(tick))
        for key, bars in said.items():
            queues.setdefault(key, []).append((tick, bars))
    while queues:
        key = order.choice(sorted(queues))
        tick, bars = queues[key].pop(0)
        store.write(*answers_of(apart, {key: bars}), known_at=at(tick))
        if not queues[key]:
            del queues[key]

    assert [contents(store, s) for s in apart] == [contents(store, s) for s in together]


def contents(store: Store, symbol_id: int) -> list[list[tuple[Any, ...]]]:
    """All that the tables say of a symbol, but for its own number and the numbers of fetches."""
    bars = "interval_s, opened_at, open, high, low, close, volume, vwap, trades, provider, flags"
    return [
        store.rows(f"select {columns} from {table} where symbol_id = :s order by {columns}", s=symbol_id)  # noqa: S608 - names here
        for table, columns in (
            ("candles_intraday", f"{bars}, as_of"),
            ("candle_revisions", f"{bars}, known_from, known_to"),
            ("coverage", "interval_s, session, opens_at, closes_at, expected, present, confirmed_empty, attempts, as_of, digest"),
            ("ingestion_cursor", "interval_s, provider, last_opened_at, status"),
        )
    ]


def test_under_a_clock_that_stands_still_two_changes_are_two_states_of_knowledge(store: Store) -> None:
    reports = [store.write(full(store.aapl, MONDAY, price), known_at=at(0)) for price in (10.0, 11.0, 12.0)]

    assert [report.known_at for report in reports] == [at(0), at(0.000001), at(0.000002)]
    assert [store.closes(as_of=report.known_at)[opened_at(MONDAY, 0)] for report in reports] == [10.0, 11.0, 12.0]


def test_under_a_clock_that_stands_still_a_bar_that_came_later_was_not_known_before(store: Store) -> None:
    store.write(Answer(store.aapl, MONDAY, {0: 10.0}), known_at=at(0))

    report = store.write(Answer(store.aapl, MONDAY, {1: 10.0}), known_at=at(0))

    assert report.known_at == at(0.000001)
    assert list(store.closes(as_of=at(0))) == [opened_at(MONDAY, 0)]


def test_knowledge_does_not_run_backwards_with_the_clock(store: Store) -> None:
    store.write(full(store.aapl, MONDAY, 10.0), known_at=at(60))

    report = store.write(full(store.aapl, MONDAY, 11.0), known_at=at(0))

    assert report.known_at == at(60.000001)
    assert store.closes(as_of=at(60))[opened_at(MONDAY, 0)] == 10.0


def test_a_session_that_was_only_opened_in_the_ledger_is_known_from_the_time_of_its_answer(store: Store) -> None:
    store.write(Answer(store.aapl, MONDAY), known_at=at(0))

    report = store.write(full(store.aapl, MONDAY), known_at=at(0))

    assert report.known_at == at(0)
    assert len(store.closes(as_of=at(0))) == 5


def test_one_session_known_ahead_of_time_does_not_postpone_another(store: Store) -> None:
    store.write(full(store.aapl, MONDAY, 10.0), known_at=at(3600))

    store.write(full(store.aapl, MONDAY, 11.0), full(store.aapl, TUESDAY, 11.0), known_at=at(0))

    assert list(store.closes(as_of=at(0))) == [opened_at(TUESDAY, slot) for slot in range(5)]


def test_without_a_virtual_clock_the_database_says_when_we_knew(store: Store) -> None:
    before = store.one("select clock_timestamp()")

    report = store.write(full(store.aapl, MONDAY))

    assert report.known_at is not None
    assert before < report.known_at < store.one("select clock_timestamp()")


# --- the ledger --------------------------------------------------------------------------------------------------------


def test_a_minute_that_stays_silent_between_trades_becomes_confirmed_empty_and_its_late_bar_present(store: Store) -> None:
    quiet = Answer(store.aapl, MONDAY, {0: 10.0, 1: 10.0, 3: 10.0, 4: 10.0}, silent=[2])

    first = store.write(quiet, now=LATER)
    second = store.write(quiet, now=LATER + timedelta(hours=1))

    assert (first.confirmed_empty, second.confirmed_empty) == (0, 1)
    row = store.coverage()
    assert (row.present, row.confirmed_empty, row.attempts, row.next_attempt_at) == ("11011", "00100", 2, None)

    late = store.write(full(store.aapl, MONDAY, 10.0), now=LATER + timedelta(hours=2))

    assert late.inserted == 1
    row = store.coverage()
    assert (row.present, row.confirmed_empty) == ("11111", "00000")


def test_an_answer_without_bars_still_counts_as_an_attempt(store: Store) -> None:
    report = store.write(Answer(store.aapl, MONDAY), now=LATER)

    row = store.coverage()
    assert (report.inserted, row.present, row.attempts) == (0, "00000", 1)
    assert (row.last_attempt_at, row.next_attempt_at) == (LATER, LATER + timedelta(seconds=60))


def test_the_knowledge_time_of_a_ledger_row_moves_only_with_its_bars(store: Store) -> None:
    store.write(Answer(store.aapl, MONDAY, {0: 1.0}), known_at=at(0))

    store.write(Answer(store.aapl, MONDAY, {0: 1.0}), known_at=at(5), now=LATER + timedelta(hours=5))

    row = store.coverage()
    assert (row.attempts, row.as_of) == (2, at(0))


def test_the_digest_stands_only_for_an_answer_that_held_exactly_what_is_stored(store: Store) -> None:
    store.write(Answer(store.aapl, MONDAY, {0: 1.0, 1: 2.0}))
    whole = store.coverage().digest
    store.write(Answer(store.aapl, MONDAY, {0: 1.0}))
    partial = store.coverage().digest
    store.write(Answer(store.aapl, MONDAY, {0: 1.0, 1: 2.0}))

    assert partial is None
    assert len(whole) == 16
    assert bytes(store.coverage().digest) == bytes(whole)


def test_bars_that_the_ledger_forgot_are_found_and_kept(store: Store) -> None:
    store.write(full(store.aapl, MONDAY, 10.0), full(store.aapl, TUESDAY, 10.0), known_at=at(0))
    with store.engine.begin() as connection:
        connection.execute(sa.text("delete from coverage where session = :day"), {"day": MONDAY})

    changed = full(store.aapl, MONDAY, 10.0).but({1: 77.0})
    report = store.write(changed, full(store.aapl, WEDNESDAY, 10.0), known_at=at(0))

    assert (report.inserted, report.revised, report.unchanged) == (5, 1, 4)
    assert store.coverage().present == "11111"
    assert len(store.closes()) == 15
    assert broken_chains(store) == []


def test_bars_that_the_ledger_claims_and_the_table_lacks_are_stored_again_by_a_differing_answer(store: Store) -> None:
    store.write(full(store.aapl, MONDAY, 10.0))
    with store.engine.begin() as connection:
        connection.execute(sa.text("delete from candles_intraday where close = 10.01"))

    report = store.write(full(store.aapl, MONDAY, 11.0))

    assert (report.inserted, report.revised) == (1, 4)


def test_an_answer_on_another_grid_than_the_ledgers_is_refused_by_name(store: Store) -> None:
    store.write(full(store.aapl, MONDAY))
    stored = store.tuples()

    with pytest.raises(InvalidInputError, match=r"2024-03-04: the ledger expects 5 bars .* the answer 3 .*reconcile"):
        store.write(full(store.aapl, MONDAY, slots=3))

    assert store.tuples() == stored


def test_asking_again_about_a_complete_session_dirties_nothing_even_where_the_answer_lacks_a_bar(store: Store) -> None:
    store.write(full(store.aapl, MONDAY))
    store.write(Answer(store.aapl, MONDAY, {0: 10.0}))
    stored = store.tuples()

    store.write(Answer(store.aapl, MONDAY, {0: 10.0}), now=LATER + timedelta(days=1))

    assert store.tuples() == stored


# --- daily -------------------------------------------------------------------------------------------------------------


def test_daily_bars_are_kept_by_session_with_the_same_rules(store: Store) -> None:
    def daily(price: float) -> list[Answer]:
        return [Answer(store.aapl, day, {0: Bar(price, price + 2, price - 2, price, 1e9)}, slots=1) for day in (MONDAY, TUESDAY)]

    reports = [
        store.write(*daily(price), interval=Interval.D1, known_at=at(tick), float32_prices=True)
        for tick, price in enumerate((10.0, 10.0, 11.0))
    ]

    assert [(r.inserted, r.revised, r.unchanged) for r in reports] == [(2, 0, 0), (0, 0, 2), (0, 2, 0)]
    assert store.rows("select session_date, close, as_of from candles_daily order by 1") == [
        (MONDAY, 11.0, at(2)),
        (TUESDAY, 11.0, at(2)),
    ]
    early = store.reader.read([store.aapl], Interval.D1, *MIDNIGHTS, as_of=at(1))
    assert early.columns.close.tolist() == [10.0, 10.0]
    assert early.columns.opened_at.tolist() == [opened_at(day, 0, Interval.D1) for day in (MONDAY, TUESDAY)]
    assert store.rows("select distinct interval_s, present from coverage") == [(86_400, "1")]


# --- laws and contracts ------------------------------------------------------------------------------------------------

UNLAWFUL = {
    "low above open": Bar(10.0, 12.0, 10.5, 11.0),
    "low above close": Bar(11.0, 12.0, 10.5, 10.0),
    "high below close": Bar(10.0, 10.5, 9.0, 11.0),
    "high below open": Bar(11.0, 10.5, 9.0, 10.0),
    "NaN low": Bar(10.0, 11.0, float("nan"), 10.0),
    "NaN open": Bar(float("nan"), 11.0, 9.0, 10.0),
    "infinite high": Bar(10.0, float("inf"), 9.0, 10.0),
    "NaN volume": flat(10.0, float("nan")),
    "negative volume": flat(10.0, -1.0),
    "infinite volume": flat(10.0, float("inf")),
}


@pytest.mark.parametrize("interval", [Interval.M1, Interval.D1])
@pytest.mark.parametrize("already_known", [False, True])
def test_a_bar_that_breaks_a_law_is_refused_by_the_database_with_all_of_its_batch(
    store: Store,
    interval: Interval,
    already_known: bool,  # noqa: FBT001 - pytest passes it
) -> None:
    if already_known:
        store.write(Answer(store.aapl, MONDAY, {0: 9.5}, slots=1), interval=interval)
    stored, fetches = store.tuples(), store.one("select count(*) from fetches")

    for law, unlawful in UNLAWFUL.items():
        broken = Answer(store.aapl, MONDAY, {0: unlawful}, slots=1)
        with pytest.raises(psycopg2.errors.CheckViolation, match="_law"):
            store.write(broken, Answer(store.aapl, TUESDAY, {0: 1.0}, slots=1), interval=interval)
        assert (store.tuples(), store.one("select count(*) from fetches")) == (stored, fetches), law


def test_a_batch_that_breaks_its_contract_is_refused_before_anything_is_sent(store: Store) -> None:
    (ibm,) = add_symbols(store.engine, "IBM")
    good = batch(full(store.aapl, MONDAY), full(ibm, MONDAY))
    backwards = good.columns.take(np.arange(len(good.columns))[::-1])
    broken = {
        "sorted by": replace(good, columns=backwards),
        "of the symbol": replace(good, symbol_id=good.symbol_id[::-1].copy()),
        "session_index": replace(good, session_index=good.session_index[::-1].copy()),
        "point into": replace(good, sessions=good.sessions[:1]),
        "named once": replace(good, sessions=[good.sessions[1], good.sessions[0]]),
        "exactly the bars": replace(good, sessions=[replace(s, bars=~s.bars) for s in good.sessions]),
    }

    for message, bad in broken.items():
        with pytest.raises(ValueError, match=message):
            store.put(bad)
    assert store.one("select count(*) from fetches") == 0


def test_a_batch_of_nothing_changes_nothing(store: Store) -> None:
    assert store.write().inserted == 0


# --- what comes with the bars ------------------------------------------------------------------------------------------


def test_each_bar_names_the_answer_it_came_with(store: Store) -> None:
    (ibm,) = add_symbols(store.engine, "IBM")
    two = replace(
        batch(full(store.aapl, MONDAY), full(ibm, MONDAY)),
        fetches=[fetch(symbol="AAPL", dropped={"null": 3}), fetch(symbol="IBM", error="a \0 in \ud800 it")],
        fetch_index=np.repeat(np.arange(2, dtype=np.int32), 5),
    )

    store.put(two)

    assert store.rows(
        "select distinct c.symbol_id, f.symbol_id, f.run_id, f.dropped"
        " from candles_intraday c join fetches f using (fetch_id) order by 1"
    ) == [(store.aapl, store.aapl, "a run", {"null": 3}), (ibm, ibm, "a run", {})]


def test_an_answer_without_bars_names_its_instrument_where_the_batch_says_so(store: Store) -> None:
    store.put(replace(batch(Answer(store.aapl, MONDAY)), fetch_symbol_ids=[store.aapl]))

    assert store.one("select symbol_id from fetches") == store.aapl


# --- bars of several providers -----------------------------------------------------------------------------------------


def test_a_stored_bar_is_its_providers_and_another_one_only_fills_holes(store: Store) -> None:
    store.write(Answer(store.aapl, MONDAY, {0: 10.0, 1: 11.0}), provider="yahoo")
    report = store.write(Answer(store.aapl, MONDAY, {0: 10.0, 1: 99.0, 2: 12.0}), provider="alpaca", known_at=at(5))
    assert (report.inserted, report.revised, report.unchanged, report.left_alone) == (1, 0, 1, 1)
    assert list(store.closes().values()) == [10.0, 11.0, 12.0]
    assert store.one("select count(*) from candle_revisions") == 0
    read = store.reader.read([store.aapl], Interval.M1, *WEEK, provenance=True)
    assert read.providers == ["yahoo", "yahoo", "alpaca"]
    assert store.coverage().present == "11100"
    # What was not taken stands in the record of the answer that brought it.
    assert store.rows("select provider, dropped from fetches order by fetch_id") == [("yahoo", {}), ("alpaca", {"left_alone": 1})]


def test_an_answer_whose_values_were_not_taken_makes_nothing_final(store: Store) -> None:
    """Found by `mdp week --seed 7`: Yahoo failed at the recheck, Alpaca was left alone, and the uncorrected volume became final."""
    early = batch(full(store.aapl, MONDAY))
    store.put(replace(early, sessions=[replace(session, is_whole=False) for session in early.sessions]))
    held = dict(enumerate(store.closes().values()))
    store.write(Answer(store.aapl, MONDAY, {**held, 1: 99.0}), provider="alpaca", known_at=at(5))
    assert store.one("select finality from coverage") == 0
    store.write(Answer(store.aapl, MONDAY, held), provider="alpaca", known_at=at(6))
    assert store.one("select finality from coverage") == 2


def test_its_own_provider_still_revises_a_bar_that_another_one_was_not_allowed_to(store: Store) -> None:
    store.write(Answer(store.aapl, MONDAY, {0: 10.0, 1: 11.0}), provider="yahoo")
    store.write(Answer(store.aapl, MONDAY, {0: 10.0, 1: 99.0}), provider="alpaca", known_at=at(5))
    report = store.write(Answer(store.aapl, MONDAY, {0: 10.0, 1: 99.0}), provider="yahoo", known_at=at(6))
    assert (report.revised, report.left_alone) == (1, 0)
    assert list(store.closes().values()) == [10.0, 99.0]


@pytest.mark.parametrize(
    ("asker", "ranking", "wins"),
    [
        ("yahoo", None, False),
        ("yahoo", ["yahoo", "alpaca"], True),
        ("massive", ["yahoo", "alpaca", "massive"], False),
        ("massive", ["yahoo", "massive"], True),
        ("massive", ["yahoo"], False),
    ],
)
def test_asked_again_on_purpose_a_better_provider_takes_over_a_bar(
    store: Store, *, asker: str, ranking: list[str] | None, wins: bool
) -> None:
    store.write(Answer(store.aapl, MONDAY, {0: 10.0}), provider="alpaca", known_at=at(0))
    report = store.write(Answer(store.aapl, MONDAY, {0: 12.0}), provider=asker, known_at=at(5), ranking=ranking)
    assert (report.revised, report.left_alone) == (int(wins), int(not wins))
    assert list(store.closes().values()) == [12.0 if wins else 10.0]
    assert list(store.closes(as_of=at(4)).values()) == [10.0]


def test_what_a_second_opinion_chose_gives_way_to_its_own_provider_and_to_another_opinion_only(store: Store) -> None:
    flag = int(BarFlag.OVERRULED_ANOTHER)

    def tell(price: float, provider: str, *, flags: int = 0) -> float:
        answer = Answer(store.aapl, MONDAY, {0: price})
        store.write(answer, provider=provider, ranking=["yahoo", "massive", "alpaca"], flags=flags)
        return next(iter(store.closes().values()))

    assert tell(1000.0, "yahoo") == 1000.0
    chosen = Answer(store.aapl, MONDAY, {0: 10.0})
    store.write(chosen, provider="alpaca", ranking=["alpaca", "yahoo"], flags=flag)
    assert tell(1000.0, "yahoo") == 10.0
    assert tell(10.5, "alpaca") == 10.5
    assert tell(1000.0, "yahoo") == 10.5
    assert tell(11.0, "massive", flags=flag) == 11.0


def test_one_session_may_hold_bars_of_several_answers_each_with_its_provider_and_feed(store: Store) -> None:
    mixed = replace(
        batch(Answer(store.aapl, MONDAY, {0: 10.0, 1: 11.0, 2: 12.0})),
        fetches=[fetch(provider="yahoo"), fetch(provider="alpaca")],
        feeds=[Feed.CONSOLIDATED, Feed.IEX],
        fetch_index=np.array([0, 1, 0], np.int32),
    )
    assert store.put(mixed).inserted == 3
    read = store.reader.read([store.aapl], Interval.M1, *WEEK, provenance=True)
    assert read.providers == ["yahoo", "alpaca", "yahoo"]
    assert read.feeds == ["consolidated", "iex", "consolidated"]
    assert store.rows("select provider, extract(epoch from last_opened_at)::int8 from ingestion_cursor order by 1") == [
        ("alpaca", opened_at(MONDAY, 1)),
        ("yahoo", opened_at(MONDAY, 2)),
    ]
    assert store.reader.read([store.aapl], Interval.M1, *WEEK).providers is None


def test_an_answer_from_the_past_stores_its_bars_and_is_no_attempt(store: Store) -> None:
    whole = batch(Answer(store.aapl, MONDAY, {0: 10.0, 2: 12.0}, silent=[1]))
    store.put(replace(whole, sessions=[replace(whole.sessions[0], is_evidence=False)]))
    row = store.coverage()
    assert (row.present, row.attempts, row.failures) == ("10100", 0, 0)


def test_refused_bars_are_kept_once_with_what_the_wire_held(store: Store) -> None:
    rows = CandleColumns.of([opened_at(MONDAY, 1)], [float("nan")], [float("inf")], [1.5], [-0.0], [-3.0])
    refused = [(store.aapl, 0, RefusedBars(rows, ["volume is negative"]))]

    reports = [store.write(full(store.aapl, MONDAY), refused=refused) for _ in range(2)]

    assert [report.refused for report in reports] == [1, 1]
    assert store.rows("select symbol_id, interval_s, reason, bar from refused_bars") == [
        (
            store.aapl,
            60,
            "volume is negative",
            {"open": "nan", "high": "inf", "low": "1.5", "close": "-0.0", "volume": "-3.0", "vwap": "nan", "trades": "nan"},
        )
    ]


def test_a_corporate_action_told_again_writes_nothing_and_a_corrected_one_closes_the_old(store: Store) -> None:
    def told(value: float, known_at: datetime) -> None:
        actions = [
            (store.aapl, 0, CorporateAction("split", MONDAY, value)),
            (store.aapl, 0, CorporateAction("dividend", MONDAY, 0.25, "USD")),
        ]
        store.write(actions=actions, known_at=known_at)

    for value, tick in ((4.0, 0), (4.0, 1), (7.0, 2), (7.0, 2), (4.0, 2)):
        told(value, at(tick))

    assert store.rows("select kind, value, currency, known_from, known_to from corporate_actions order by kind, known_from") == [
        ("dividend", 0.25, "USD", at(0), None),
        ("split", 4.0, None, at(0), at(2)),
        ("split", 7.0, None, at(2), at(2.000001)),
        ("split", 4.0, None, at(2.000001), None),
    ]


def test_the_cursor_follows_the_newest_bar_and_never_goes_back(store: Store) -> None:
    store.write(full(store.aapl, TUESDAY))
    store.write(full(store.aapl, MONDAY))

    assert store.rows("select provider, interval_s, extract(epoch from last_opened_at)::int8, status from ingestion_cursor") == [
        ("yahoo", 60, opened_at(TUESDAY, 4), "ok")
    ]


def test_listeners_hear_once_of_a_change_and_nothing_of_a_repetition(store: Store, database_url: str) -> None:
    plain = sa.make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with closing(psycopg2.connect(plain)) as listener:
        listener.autocommit = True
        with listener.cursor() as cursor:
            cursor.execute("listen candles")
        for _ in range(2):
            store.write(full(store.aapl, MONDAY), full(store.aapl, TUESDAY))
        with listener.cursor() as cursor:
            cursor.execute("select 1")

        assert [json.loads(heard.payload) for heard in listener.notifies] == [{"interval": "1m", "symbols": 1, "rows": 10}]


def test_providers_keep_their_numbers_and_failed_writes_use_none_up(store: Store) -> None:
    for _ in range(3):
        with pytest.raises(psycopg2.errors.CheckViolation):
            store.write(Answer(store.aapl, MONDAY, {0: UNLAWFUL["NaN volume"]}))
    store.write(full(store.aapl, MONDAY))
    CandleWriter(store.engine).write(batch(full(store.aapl, TUESDAY)), now=LATER, policy=POLICY)

    assert store.rows("select name from providers") == [("yahoo",)]
    assert store.one("select count(distinct provider) from candles_intraday") == 1


# --- size, several writers, crashes ------------------------------------------------------------------------------------


def test_a_thousand_symbols_fit_one_batch_and_take_a_bounded_number_of_locks(store: Store) -> None:
    symbols = add_symbols(store.engine, *(f"S{number}" for number in range(1000)))

    reports = [
        store.write(*(full(symbol_id, MONDAY, price, slots=3) for symbol_id in symbols), known_at=at(price))
        for price in (10.0, 10.0, 11.0)
    ]

    assert [(r.inserted, r.revised, r.unchanged) for r in reports] == [(3000, 0, 0), (0, 0, 3000), (0, 3000, 0)]
    with transaction(store.engine) as cursor:
        lock_series(cursor, symbols, Interval.M1.seconds)
        cursor.execute("select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()")
        assert cursor.fetchone() == (LOCK_BUCKETS,)


def test_a_stage_left_by_a_failed_batch_does_not_reach_the_next(store: Store) -> None:
    store.write(full(store.aapl, MONDAY, 10.0))
    with pytest.raises(psycopg2.errors.CheckViolation):
        store.write(Answer(store.aapl, MONDAY, {3: UNLAWFUL["NaN volume"], 4: 50.0}))

    store.write(Answer(store.aapl, MONDAY, {0: 20.0}))

    assert list(store.closes().values()) == [20.0, 10.01, 10.02, 10.03, 10.04]


def test_a_stage_begins_without_the_pages_of_a_failed_batch(store: Store) -> None:
    size = f"select pg_relation_size('{INTRADAY.stage}')"
    # Each transaction gets the same connection, and so the same stage.
    with transaction(store.engine) as cursor:
        INTRADAY.open_stage(cursor)
    with pytest.raises(psycopg2.errors.DivisionByZero), transaction(store.engine) as cursor:
        fail_after_staging(cursor)
    with transaction(store.engine) as cursor:
        cursor.execute(size)
        left_behind = cursor.fetchone() or (0,)
        INTRADAY.open_stage(cursor)
        cursor.execute(size)
        assert left_behind > (0,)
        assert cursor.fetchone() == (0,)


def fail_after_staging(cursor: Cursor) -> None:
    INTRADAY.open_stage(cursor)
    cursor.execute(
        f"insert into {INTRADAY.stage}"  # noqa: S608 - a name of the module under test
        " (symbol_id, interval_s, opened_at, open, high, low, close, volume, fetch_id, as_of, provider)"
        " select 1, 60, to_timestamp(n), 1, 1, 1, 1, 1, 1, now(), 1 from generate_series(1, 500) n"
    )
    cursor.execute("select 1 / 0")


def test_a_lost_connection_is_named_and_the_next_write_gets_another(store: Store) -> None:
    store.write(full(store.aapl, MONDAY))

    with pytest.raises(DatabaseUnreachableError, match="not stored"):
        lose_the_connection(store)

    assert store.write(full(store.aapl, TUESDAY)).inserted == 5


def lose_the_connection(store: Store) -> None:
    with transaction(store.engine) as cursor:
        cursor.execute("select pg_backend_pid()")
        (pid,) = cursor.fetchone() or (0,)
        store.rows("select pg_terminate_backend(:pid, 5000)", pid=pid)
        cursor.execute("select 1")


WRITERS, ROUNDS, SYMBOLS, SLOTS = 4, 6, 30, 20


def write_in_a_process(url: str, symbols: Sequence[int], seed: int, together: Barrier, out: Any) -> None:  # noqa: ANN401 - a queue
    """Write differing values for overlapping sets of symbols, and report how many rows were inserted and revised."""
    chance = random.Random(seed)
    engine = open_engine(url)
    writer = CandleWriter(engine)
    together.wait(60)
    inserted = revised = 0
    for number in range(ROUNDS):
        chosen = chance.sample(symbols, SYMBOLS * 2 // 3)
        answers = [full(symbol_id, MONDAY, 10.0 + seed * 10 + number, slots=SLOTS) for symbol_id in chosen]
        report = writer.write(batch(*answers), now=LATER, policy=POLICY)
        inserted, revised = inserted + report.inserted, revised + report.revised
    engine.dispose()
    out.put((inserted, revised))


def test_several_processes_on_the_same_symbols_neither_deadlock_nor_duplicate_nor_lose_a_revision(
    store: Store, database_url: str
) -> None:
    symbols = add_symbols(store.engine, *(f"S{number}" for number in range(SYMBOLS)))
    spawn = multiprocessing.get_context("spawn")
    together, out = spawn.Barrier(WRITERS), spawn.Queue()
    processes = [
        spawn.Process(target=write_in_a_process, args=(database_url, symbols, seed, together, out)) for seed in range(WRITERS)
    ]
    for process in processes:
        process.start()
    reports = [out.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)

    assert [process.exitcode for process in processes] == [0] * WRITERS
    bars = store.one("select count(*) from candles_intraday")
    assert bars == sum(inserted for inserted, _ in reports)
    assert store.one("select count(*) from candle_revisions") == sum(revised for _, revised in reports)
    assert bars == store.one("select sum(bit_count(present)) from coverage")
    assert bars + store.one("select count(*) from candle_revisions") == WRITERS * ROUNDS * (SYMBOLS * 2 // 3) * SLOTS
    assert broken_chains(store) == []


def write_once(url: str, symbol_id: int) -> None:
    engine = open_engine(url)
    CandleWriter(engine).write(a_revision(symbol_id), now=LATER, policy=POLICY, known_at=at(1))


def a_revision(symbol_id: int) -> CandleBatch:
    """Something for every branch: a session revised and one that is new."""
    return batch(full(symbol_id, MONDAY, 11.0, slots=390), full(symbol_id, TUESDAY, 11.0, slots=390))


def test_a_writer_killed_in_the_middle_leaves_nothing_and_the_same_write_again_leaves_what_it_would_have(
    store: Store, database_url: str
) -> None:
    (undisturbed,) = add_symbols(store.engine, "IBM")
    for symbol_id in (store.aapl, undisturbed):
        store.write(full(symbol_id, MONDAY, 10.0, slots=390), known_at=at(0))
    before = contents(store, store.aapl)
    writer = multiprocessing.get_context("spawn").Process(target=write_once, args=(database_url, store.aapl))

    # Bars and ledger are written before the cursor: a writer that waits for that table has all of them uncommitted.
    with held(store.engine, "lock table ingestion_cursor in access exclusive mode"):
        writer.start()
        wait_for(store, "select exists (select from pg_locks where relation = 'ingestion_cursor'::regclass and not granted)")
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join(30)
    # The database's own locks: those of databases beside it are other tests'.
    wait_for(
        store,
        "select not exists (select from pg_locks l join pg_database d on d.oid = l.database"
        " where l.locktype = 'advisory' and d.datname = current_database())",
    )

    assert contents(store, store.aapl) == before
    for symbol_id in (store.aapl, undisturbed):
        store.put(a_revision(symbol_id), known_at=at(1))
    assert contents(store, store.aapl) == contents(store, undisturbed)
    assert len(store.closes()) == 780


class held:  # noqa: N801 - reads as a word in a with statement
    """Hold what a statement locked until the end of the block."""

    def __init__(self, engine: Engine, statement: str) -> None:
        self._connection = engine.connect()
        self._connection.execute(sa.text(statement))

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._connection.rollback()
        self._connection.close()


def wait_for(store: Store, condition: str) -> None:
    """Ask until it is so, half a minute at most."""
    for _ in range(600):
        if store.one(condition):
            return
        store.rows("select pg_sleep(0.05)")
    raise AssertionError(f"never came true: {condition}")
