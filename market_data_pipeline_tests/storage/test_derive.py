"""A derived bar exists when its minutes are settled, says what they say, and follows them when they are revised."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, datetime
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.healing import HealingPolicy
from market_data_pipeline.domain.sessions import Segments
from market_data_pipeline.storage.bulk import CandleWriter
from market_data_pipeline.storage.candles import CandleReader
from market_data_pipeline.storage.derive import CandleDeriver, DeriveReport
from market_data_pipeline.storage.fetches import FetchStore
from market_data_pipeline.storage.ledger import Ledger
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
    flat,
    full,
    opened_at,
    opens_at,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Engine

    from market_data_pipeline.domain.candles import Bools
    from market_data_pipeline.domain.coverage import LedgerRow

POLICY = HealingPolicy()
EPOCH = date(1970, 1, 1)


def segments(*sessions: tuple[date, Sequence[tuple[int, int]]]) -> Segments:
    """Trading stretches, each as (first minute after the toy open, minutes)."""
    rows = [
        ((session - EPOCH).days, opens_at(session) + 60 * first, opens_at(session) + 60 * (first + minutes))
        for session, stretches in sessions
        for first, minutes in stretches
    ]
    days, starts, ends = zip(*rows, strict=True)
    return Segments(np.array(days, np.int32), np.array(starts, np.int64), np.array(ends, np.int64))


def plain(*sessions: date, minutes: int = 15) -> Segments:
    return segments(*((session, [(0, minutes)]) for session in sessions))


@pytest.fixture
def apple(engine: Engine) -> int:
    (symbol_id,) = add_symbols(engine, "AAPL")
    return symbol_id


def write(engine: Engine, *answers: Answer, known_at: datetime = LATER) -> None:
    CandleWriter(engine).write(batch(*answers), now=LATER, policy=POLICY, known_at=known_at)


def derive(
    engine: Engine, symbol_id: int, of: Segments, target: Interval = Interval.M5, *, known_at: datetime | None = LATER
) -> DeriveReport:
    return CandleDeriver(engine).derive([symbol_id], target, of, now=LATER, known_at=known_at, run_id="run-1")[symbol_id]


def bars(engine: Engine, symbol_id: int, target: Interval = Interval.M5) -> list[tuple[int, Bar]]:
    """The stored bars, each with its opening minute after Monday's open."""
    stored = CandleReader(engine).read([symbol_id], target, opens_at(MONDAY), opens_at(WEDNESDAY) + 86_400)
    columns = stored.columns
    values = zip(
        *(getattr(columns, name).tolist() for name in ("open", "high", "low", "close", "volume", "vwap", "trades")), strict=True
    )
    minutes = ((columns.opened_at - opens_at(MONDAY)) // 60).tolist()
    return [(minute, Bar(*of)) for minute, of in zip(minutes, values, strict=True)]


def opens(engine: Engine, symbol_id: int, target: Interval = Interval.M5) -> list[int]:
    return [minute for minute, _ in bars(engine, symbol_id, target)]


def ledger_of(engine: Engine, symbol_id: int, target: Interval = Interval.M5) -> dict[date, LedgerRow]:
    return {row.session: row for row in Ledger(engine).rows([symbol_id], target, MONDAY, WEDNESDAY)}


def shown(mask: Bools) -> str:
    return "".join("1" if slot else "0" for slot in mask)


def rows_written(engine: Engine) -> Sequence[object]:
    """Changes whenever a row of these tables is written, even with the same values."""
    with engine.connect() as connection:
        return connection.exec_driver_sql(
            """
            select 'candle', xmin::text, ctid::text from candles_intraday
            union all select 'coverage', xmin::text, ctid::text from coverage
            union all select 'fetch', xmin::text, ctid::text from fetches
            union all select 'revision', xmin::text, ctid::text from candle_revisions
            """
        ).all()


def confirm_empty(engine: Engine, symbol_id: int, session: date, slots: Sequence[int]) -> None:
    """What the healing policy says after enough answers, said at once."""
    (row,) = Ledger(engine).rows([symbol_id], Interval.M1, session, session)
    empty = "".join("1" if slot in slots else "0" for slot in range(row.expected))
    with engine.begin() as connection:
        connection.exec_driver_sql(
            """
            update coverage set confirmed_empty = %(empty)s::varbit
             where symbol_id = %(id)s and interval_s = 60 and session = %(s)s
            """,
            {"empty": empty, "id": symbol_id, "s": session},
        )


# --- what a bar says


def test_a_bar_is_the_first_highest_lowest_last_and_sum_of_its_minutes(engine: Engine, apple: int) -> None:
    minutes = {
        0: Bar(10.0, 10.5, 9.75, 10.25, 100, vwap=10.0, trades=3),
        1: Bar(10.25, 12.0, 10.0, 11.0, 300, vwap=11.0, trades=5),
        2: Bar(11.0, 11.0, 8.0, 9.0, 0, vwap=9.5, trades=1),
        3: flat(9.0, 50)._replace(vwap=9.0, trades=1),
        4: Bar(9.0, 9.5, 9.0, 9.25, 50, vwap=9.5, trades=2),
        5: Bar(1.0, 2.0, 0.5, 1.5, 7.5),
        **{slot: flat(1.5, 0.0) for slot in range(6, 10)},
    }
    write(engine, Answer(apple, MONDAY, minutes, slots=10))
    report = derive(engine, apple, plain(MONDAY, minutes=10))
    assert report == DeriveReport(inserted=2)
    first, second = bars(engine, apple)
    # VWAP: (10*100 + 11*300 + 9.5*0 + 9*50 + 9.5*50) / 500, by hand.
    assert first == (0, Bar(10.0, 12.0, 8.0, 9.25, 500.0, vwap=10.45, trades=12))
    assert second[0] == 5
    assert second[1][:5] == (1.0, 2.0, 0.5, 1.5, 7.5)
    assert np.isnan(second[1][5:]).all()


@pytest.mark.parametrize(
    ("target", "expected"), [(Interval.M5, [0, 5, 10, 15, 20, 25, 30]), (Interval.M15, [0, 15, 30]), (Interval.M30, [0, 30])]
)
def test_the_last_bar_of_a_session_may_be_shorter(engine: Engine, apple: int, target: Interval, expected: list[int]) -> None:
    write(engine, full(apple, MONDAY, slots=32))
    derive(engine, apple, plain(MONDAY, minutes=32), target)
    assert opens(engine, apple, target) == expected
    assert bars(engine, apple, target)[-1][1].volume == 200.0


def test_a_lunch_break_starts_the_bars_anew(engine: Engine, apple: int) -> None:
    """Seven minutes, a break of ten, six minutes: the bar before the break is short, the one after starts at its end."""
    lunch = segments((MONDAY, [(0, 7), (17, 6)]))
    answer = batch(full(apple, MONDAY, slots=13))
    stamps = np.array([opened_at(MONDAY, minute) for minute in [*range(7), *range(17, 23)]], np.int64)
    session = replace(answer.sessions[0], closes_at=opens_at(MONDAY) + 23 * 60)
    CandleWriter(engine).write(
        replace(answer, columns=replace(answer.columns, opened_at=stamps), sessions=[session]), now=LATER, policy=POLICY
    )
    derive(engine, apple, lunch)
    assert [(minute, bar.volume) for minute, bar in bars(engine, apple)] == [(0, 500), (5, 200), (17, 500), (22, 100)]
    assert shown(ledger_of(engine, apple)[MONDAY].present) == "1111"


# --- when a bar exists


def test_a_bar_waits_until_every_minute_of_it_is_settled(engine: Engine, apple: int) -> None:
    write(engine, Answer(apple, MONDAY, {slot: 10.0 for slot in range(15) if slot != 7}, slots=15))
    assert derive(engine, apple, plain(MONDAY)) == DeriveReport(inserted=2)
    assert opens(engine, apple) == [0, 10]
    row = ledger_of(engine, apple)[MONDAY]
    assert (shown(row.present), shown(row.confirmed_empty), row.next_attempt_at) == ("101", "000", None)
    write(engine, Answer(apple, MONDAY, {7: 10.0}, slots=15))
    assert derive(engine, apple, plain(MONDAY)) == DeriveReport(inserted=1, unchanged=2)
    assert opens(engine, apple) == [0, 5, 10]


def test_a_minute_confirmed_empty_does_not_hold_its_bar_back(engine: Engine, apple: int) -> None:
    write(engine, Answer(apple, MONDAY, {slot: 10.0 for slot in range(15) if slot != 7}, slots=15))
    confirm_empty(engine, apple, MONDAY, [7])
    derive(engine, apple, plain(MONDAY))
    assert [(minute, bar.volume) for minute, bar in bars(engine, apple)] == [(0, 500), (5, 400), (10, 500)]


def test_a_bar_whose_minutes_are_all_confirmed_empty_is_confirmed_empty(engine: Engine, apple: int) -> None:
    write(engine, Answer(apple, MONDAY, {slot: 10.0 for slot in range(15) if not 5 <= slot < 10}, slots=15))
    confirm_empty(engine, apple, MONDAY, range(5, 10))
    assert derive(engine, apple, plain(MONDAY)) == DeriveReport(inserted=2, confirmed_empty=1)
    row = ledger_of(engine, apple)[MONDAY]
    assert (shown(row.present), shown(row.confirmed_empty)) == ("101", "010")


def test_a_minute_that_arrives_late_turns_an_empty_bar_into_a_bar(engine: Engine, apple: int) -> None:
    write(engine, Answer(apple, MONDAY, {slot: 10.0 for slot in range(15) if not 5 <= slot < 10}, slots=15))
    confirm_empty(engine, apple, MONDAY, range(5, 10))
    derive(engine, apple, plain(MONDAY))
    write(engine, Answer(apple, MONDAY, {6: flat(11.0, 3)}, slots=15))
    assert derive(engine, apple, plain(MONDAY)) == DeriveReport(inserted=1, unchanged=2)
    row = ledger_of(engine, apple)[MONDAY]
    assert (shown(row.present), shown(row.confirmed_empty)) == ("111", "000")
    minute, bar = bars(engine, apple)[1]
    assert (minute, bar[:5]) == (5, (11.0, 11.0, 11.0, 11.0, 3))


def test_sessions_without_minutes_are_left_alone(engine: Engine, apple: int) -> None:
    write(engine, full(apple, TUESDAY, slots=15))
    assert derive(engine, apple, plain(MONDAY, TUESDAY, WEDNESDAY)) == DeriveReport(inserted=3)
    assert list(ledger_of(engine, apple)) == [TUESDAY]


def test_a_minute_deleted_later_does_not_take_the_bar_back(engine: Engine, apple: int) -> None:
    write(engine, full(apple, MONDAY, slots=15))
    derive(engine, apple, plain(MONDAY))
    before = repr(bars(engine, apple))
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "delete from candles_intraday where interval_s = 60 and opened_at = to_timestamp(%(at)s)", {"at": opened_at(MONDAY, 6)}
        )
        connection.exec_driver_sql("update coverage set present = set_bit(present, 6, 0) where interval_s = 60")
    assert derive(engine, apple, plain(MONDAY)) == DeriveReport(unchanged=2)
    assert repr(bars(engine, apple)) == before
    assert shown(ledger_of(engine, apple)[MONDAY].present) == "111"


# --- repeating, revising


def test_deriving_again_writes_nothing(engine: Engine, apple: int) -> None:
    # Fractions that do not add up the same in every order.
    minutes = {slot: flat(10.0, 0.1 * (slot + 1) ** 3)._replace(vwap=10.0 + slot / 7) for slot in range(15)}
    write(engine, Answer(apple, MONDAY, minutes, slots=15), full(apple, TUESDAY, slots=15))
    derive(engine, apple, plain(MONDAY, TUESDAY))
    before = rows_written(engine)
    assert derive(engine, apple, plain(MONDAY, TUESDAY), known_at=at(60)) == DeriveReport(unchanged=6)
    assert rows_written(engine) == before


def test_a_revised_minute_revises_exactly_its_bar(engine: Engine, apple: int) -> None:
    write(engine, full(apple, MONDAY, slots=15), full(apple, TUESDAY, slots=15))
    derive(engine, apple, plain(MONDAY, TUESDAY))
    write(engine, Answer(apple, MONDAY, {7: flat(99.0, 1)}, slots=15), known_at=at(60))
    assert derive(engine, apple, plain(MONDAY, TUESDAY), known_at=at(61)) == DeriveReport(revised=1, unchanged=5)
    revisions = CandleReader(engine).revisions(apple, Interval.M5, 0, opens_at(WEDNESDAY))
    assert revisions.columns.opened_at.tolist() == [opened_at(MONDAY, 5)]
    assert revisions.columns.high.tolist() == [10.09]
    assert (revisions.known_from.tolist(), revisions.known_to.tolist()) == (
        [int(LATER.timestamp() * 1e6)],
        [int(at(61).timestamp() * 1e6)],
    )
    (_, revised) = bars(engine, apple)[1]
    assert (revised.high, revised.volume) == (99.0, 401.0)


def test_what_was_derived_then_is_read_as_of_then(engine: Engine, apple: int) -> None:
    write(engine, full(apple, MONDAY, slots=15))
    derive(engine, apple, plain(MONDAY))
    write(engine, Answer(apple, MONDAY, {7: flat(99.0)}, slots=15), known_at=at(60))
    derive(engine, apple, plain(MONDAY), known_at=at(61))
    then = CandleReader(engine).read([apple], Interval.M5, 0, opens_at(TUESDAY), as_of=at(60))
    assert then.columns.high.tolist() == [10.04, 10.09, 10.14]


# --- provenance


def test_each_change_has_its_provenance(engine: Engine, apple: int) -> None:
    write(engine, full(apple, MONDAY, slots=15))
    derive(engine, apple, plain(MONDAY))
    (stored,) = FetchStore(engine).latest(apple, Interval.M5, limit=9)
    assert (stored.fetch.provider, stored.fetch.outcome, stored.fetch.rows, stored.run_id) == ("derived", "ok", 3, "run-1")
    assert stored.fetch.request == "derive 5m from 1m, sessions 2024-03-04 to 2024-03-04"
    with engine.connect() as connection:
        origins = connection.exec_driver_sql(
            "select distinct fetch_id, name from candles_intraday join providers using (provider) where interval_s = 300"
        ).all()
    assert origins == [(stored.fetch_id, "derived")]


def test_repair_flags_of_the_minutes_are_the_bars(engine: Engine, apple: int) -> None:
    CandleWriter(engine).write(batch(full(apple, MONDAY, slots=10), flags=5), now=LATER, policy=POLICY)
    derive(engine, apple, plain(MONDAY, minutes=10))
    assert CandleReader(engine).read([apple], Interval.M5, 0, opens_at(TUESDAY)).flags.tolist() == [5, 5]


# --- out of step


def test_a_ledger_of_another_calendar_is_left_alone_and_told(engine: Engine, apple: int) -> None:
    write(engine, full(apple, MONDAY, slots=15), full(apple, TUESDAY, slots=15))
    shortened = segments((MONDAY, [(0, 10)]), (TUESDAY, [(0, 15)]))
    assert derive(engine, apple, shortened) == DeriveReport(inserted=3, out_of_step=(MONDAY,))
    assert list(ledger_of(engine, apple)) == [TUESDAY]


def test_a_ledger_that_claims_minutes_that_are_not_stored_is_left_alone_and_told(engine: Engine, apple: int) -> None:
    write(engine, full(apple, MONDAY, slots=15), full(apple, TUESDAY, slots=15))
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "delete from candles_intraday where opened_at = to_timestamp(%(at)s)", {"at": opened_at(MONDAY, 6)}
        )
    assert derive(engine, apple, plain(MONDAY, TUESDAY)) == DeriveReport(inserted=3, out_of_step=(MONDAY,))
    assert list(ledger_of(engine, apple)) == [TUESDAY]


@pytest.mark.parametrize("target", [Interval.M1, Interval.H1, Interval.D1])
def test_an_interval_that_is_fetched_cannot_be_derived(engine: Engine, target: Interval) -> None:
    with pytest.raises(InvalidInputError, match=f"{target} is not derived from 1m"):
        CandleDeriver(engine).derive([1], target, plain(MONDAY), now=LATER)


# --- many


def test_every_symbol_has_a_report_of_its_own(engine: Engine) -> None:
    apple, microsoft, ibm = add_symbols(engine, "AAPL", "MSFT", "IBM")
    write(engine, full(apple, MONDAY, slots=15), full(microsoft, TUESDAY, 20.0, slots=15))
    reports = CandleDeriver(engine).derive([ibm, microsoft, apple], Interval.M15, plain(MONDAY, TUESDAY), now=LATER)
    assert reports == {apple: DeriveReport(inserted=1), microsoft: DeriveReport(inserted=1), ibm: DeriveReport()}


def test_two_that_derive_the_same_write_it_once(engine: Engine) -> None:
    ids = add_symbols(engine, *(f"S{n}" for n in range(20)))
    write(engine, *(full(symbol_id, MONDAY, slots=15) for symbol_id in ids))
    with ThreadPoolExecutor(4) as threads:
        reports = list(threads.map(lambda _: CandleDeriver(engine).derive(ids, Interval.M5, plain(MONDAY), now=LATER), range(4)))
    assert sum(report.inserted for by_symbol in reports for report in by_symbol.values()) == 60
    assert sum(report.revised for by_symbol in reports for report in by_symbol.values()) == 0


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    present=st.lists(st.sampled_from("pce"), min_size=17, max_size=17),
    stretches=st.sampled_from([[(0, 17)], [(0, 7), (20, 10)], [(0, 5), (6, 12)]]),
    target=st.sampled_from([Interval.M5, Interval.M15]),
)
def test_verdicts_of_bars_follow_from_those_of_their_minutes(
    engine: Engine, present: list[str], stretches: list[tuple[int, int]], target: Interval
) -> None:
    """p: present, c: confirmed empty, e: missing. The expected verdicts are worked out bar by bar, in plain Python."""
    with engine.begin() as connection:
        connection.exec_driver_sql("truncate candles_intraday, coverage, symbol_universe, fetches, refused_bars cascade")
    (symbol_id,) = add_symbols(engine, "AAPL")
    stamps = [opens_at(MONDAY) + 60 * (first + n) for first, minutes in stretches for n in range(minutes)]
    answer = batch(Answer(symbol_id, MONDAY, {slot: 10.0 for slot, what in enumerate(present) if what == "p"}, slots=17))
    own = np.array([stamp for stamp, what in zip(stamps, present, strict=True) if what == "p"], np.int64)
    session = replace(answer.sessions[0], closes_at=stamps[-1] + 60)
    CandleWriter(engine).write(
        replace(answer, columns=replace(answer.columns, opened_at=own), sessions=[session]), now=LATER, policy=POLICY
    )
    confirm_empty(engine, symbol_id, MONDAY, [slot for slot, what in enumerate(present) if what == "c"])
    derive(engine, symbol_id, segments((MONDAY, stretches)), target)

    buckets, slot = [], 0
    for _, minutes in stretches:
        for start in range(0, minutes, target.seconds // 60):
            length = min(target.seconds // 60, minutes - start)
            buckets.append(set(present[slot : slot + length]))
            slot += length
    row = ledger_of(engine, symbol_id, target).get(MONDAY)
    expected_present = "".join("1" if "p" in of and "e" not in of else "0" for of in buckets)
    expected_empty = "".join("1" if of == {"c"} else "0" for of in buckets)
    said = ("0" * len(buckets),) * 2 if row is None else (shown(row.present), shown(row.confirmed_empty))
    assert said == (expected_present, expected_empty)
    assert len(bars(engine, symbol_id, target)) == expected_present.count("1")
