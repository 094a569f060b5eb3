"""Whatever was done to bars and ledger by hand: after reconciling, present is what is stored, and nothing else was changed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.coverage import Verdict
from market_data_pipeline.domain.finality import Finality
from market_data_pipeline.domain.universe import Tier, UniverseEntry
from market_data_pipeline.ingest.coverage import codes_of, coverage_report, masks_of
from market_data_pipeline.ingest.derive import derive_candles
from market_data_pipeline.ingest.grid import Grid
from market_data_pipeline.ingest.reconcile import bring_in_line, compare, derive_lost
from market_data_pipeline.ingest.report import Stretch
from market_data_pipeline.settings import Settings
from market_data_pipeline.storage.bulk import transaction, write_ledger
from market_data_pipeline.wiring import open_pipeline
from market_data_pipeline_tests.cli.builders import store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.pipeline import Pipeline

# A full Wednesday, Thanksgiving, and the half day after it.
FIRST, LAST = date(2024, 11, 27), date(2024, 11, 29)
SESSIONS = (FIRST, LAST)
SLOTS = {Interval.M1: {FIRST: 390, LAST: 210}, Interval.H1: {FIRST: 7, LAST: 4}, Interval.D1: {FIRST: 1, LAST: 1}}


@pytest.fixture
def pipeline(database_url: str, tmp_path: Path) -> Iterator[Pipeline]:
    told = Settings(home=tmp_path, database_url=SecretStr(database_url), clock="2024-12-07T12:00:00+00:00")
    with open_pipeline(told) as opened:
        opened.universe.load(
            [UniverseEntry("AAPL", "XNAS", Tier.T0)], version_tag="t", source="t", source_sha256="0" * 64, loaded_by="t"
        )
        yield opened


def verdicts(pipeline: Pipeline, apple: Instrument, interval: Interval) -> dict[int, int]:
    """The verdict of every expected bar, by the instant it is named by."""
    grid = Grid.of(pipeline.calendars(apple.calendar), interval, FIRST, LAST)
    masks = masks_of(grid, pipeline.ledger.rows([apple.symbol_id], interval, FIRST, LAST))
    codes = codes_of(pipeline, apple, interval, grid, masks, now=int(pipeline.clock.now().timestamp()))
    return dict(zip(grid.opened_at.tolist(), codes.tolist(), strict=True))


def stored(pipeline: Pipeline, apple: Instrument, interval: Interval) -> set[int]:
    return set(pipeline.reader.read([apple.symbol_id], interval, 0, 1 << 33).columns.opened_at.tolist())


def forget(pipeline: Pipeline, interval: Interval, opened_at: list[int]) -> None:
    """Delete bars by hand."""
    table, column = (
        ("candles_daily", "session_date")
        if interval.is_daily
        else ("candles_intraday", f"interval_s = {interval.seconds} and opened_at")
    )
    instants = [datetime.fromtimestamp(at, UTC) for at in opened_at]
    values = [instant.date() for instant in instants] if interval.is_daily else instants
    with pipeline.engine.begin() as connection:
        connection.exec_driver_sql(f"delete from {table} where {column} = any(%(values)s)", {"values": values})  # noqa: S608 - names above


def counts(pipeline: Pipeline, apple: Instrument, interval: Interval) -> dict[Verdict, int]:
    (line,) = coverage_report([apple], [interval], FIRST, LAST, pipeline=pipeline)
    assert sum(line.counts.values()) == line.expected
    return line.counts


slots = st.sets(st.integers(0, 389), max_size=12)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    interval=st.sampled_from(list(SLOTS)),
    never_came=slots,
    deleted=slots,
    unrecorded=slots,
    finality=st.sampled_from(Finality),
    without_row=st.sampled_from([None, None, *SESSIONS]),
)
def test_reconciling_makes_present_what_is_stored_and_leaves_every_other_verdict(
    pipeline: Pipeline,
    interval: Interval,
    never_came: set[int],
    deleted: set[int],
    unrecorded: set[int],
    finality: Finality,
    without_row: date | None,
) -> None:
    with pipeline.engine.begin() as connection:
        for table in ("coverage", "candles_intraday", "candles_daily", "candle_revisions"):
            connection.exec_driver_sql(f"delete from {table}")  # noqa: S608 - names above
    apple = pipeline.universe.instrument("AAPL")
    for session in SESSIONS:
        store(pipeline, "AAPL", session, interval=interval, lacking={slot % SLOTS[interval][session] for slot in never_came})
    doubt(pipeline, apple, interval, unrecorded, finality)
    before, bars = verdicts(pipeline, apple, interval), sorted(stored(pipeline, apple, interval))
    gone = {bars[slot % len(bars)] for slot in deleted} if bars else set()
    forget(pipeline, interval, sorted(gone))
    if without_row is not None:
        with pipeline.engine.begin() as connection:
            connection.exec_driver_sql("delete from coverage where session = %(session)s", {"session": without_row})
    counts(pipeline, apple, interval)
    list(bring_in_line(pipeline, [apple], [interval]))
    after, left = verdicts(pipeline, apple, interval), stored(pipeline, apple, interval)
    assert list(compare(pipeline, [apple], [interval])) == []
    assert {at for at, code in after.items() if code == 0} == left == set(bars) - gone
    assert counts(pipeline, apple, interval)[Verdict.PRESENT] == len(left)
    day_without = None if without_row is None else without_row.isoformat()
    changed = {at for at in after if after[at] != before[at] and datetime.fromtimestamp(at, UTC).date().isoformat() != day_without}
    assert changed <= gone | {at for at in left if before[at] != 0}
    kept = [row.finality for row in pipeline.ledger.rows([apple.symbol_id], interval, FIRST, LAST) if row.session != without_row]
    assert set(kept) <= {finality}


def doubt(pipeline: Pipeline, apple: Instrument, interval: Interval, unrecorded: set[int], finality: Finality) -> None:
    """Absent slots become halted or confirmed empty in turns, and some present ones lose their bit, as if by hand."""
    rows = []
    for row in pipeline.ledger.rows([apple.symbol_id], interval, FIRST, LAST):
        absent = np.flatnonzero(~row.present)
        present, halted, confirmed = row.present.copy(), np.zeros(row.expected, bool), row.confirmed_empty.copy()
        halted[absent[::3]] = True
        confirmed[absent[1::3]] = True
        present[[slot % row.expected for slot in unrecorded]] = False
        present[~row.present] = False
        rows.append((present, confirmed, halted if halted.any() else None, row))
    with transaction(pipeline.engine) as cursor:
        write_ledger(
            cursor,
            interval,
            [replace(row, present=p, confirmed_empty=c, halted=h, finality=finality) for p, c, h, row in rows],
        )


@pytest.mark.parametrize("interval", [Interval.M1, Interval.H1, Interval.D1])
def test_one_bar_deleted_by_hand_changes_exactly_one_verdict(pipeline: Pipeline, interval: Interval) -> None:
    apple = pipeline.universe.instrument("AAPL")
    for session in SESSIONS:
        store(pipeline, "AAPL", session, interval=interval)
    before, gone = verdicts(pipeline, apple, interval), max(stored(pipeline, apple, interval))
    forget(pipeline, interval, [gone])
    list(bring_in_line(pipeline, [apple]))
    after = verdicts(pipeline, apple, interval)
    assert {at: after[at] for at in after if after[at] != before[at]} == {gone: list(Verdict).index(Verdict.MISSING)}


def test_a_derived_bar_deleted_by_hand_is_computed_again_from_its_minutes(pipeline: Pipeline) -> None:
    apple = pipeline.universe.instrument("AAPL")
    derived(pipeline, apple)
    before, bars = verdicts(pipeline, apple, Interval.M5), stored(pipeline, apple, Interval.M5)
    closes = dict(zip(*read(pipeline, apple), strict=True))
    forget(pipeline, Interval.M5, [max(bars)])
    found = list(bring_in_line(pipeline, [apple]))
    missing = verdicts(pipeline, apple, Interval.M5)
    assert [at for at in missing if missing[at] != before[at]] == [max(bars)]
    assert derive_lost(pipeline, [apple], found) == 1
    assert verdicts(pipeline, apple, Interval.M5) == before
    assert dict(zip(*read(pipeline, apple), strict=True)) == closes


def test_a_derived_bar_stays_missing_while_one_of_its_minutes_is(pipeline: Pipeline) -> None:
    apple = pipeline.universe.instrument("AAPL")
    derived(pipeline, apple)
    minute, bar = max(stored(pipeline, apple, Interval.M1)), max(stored(pipeline, apple, Interval.M5))
    forget(pipeline, Interval.M1, [minute])
    forget(pipeline, Interval.M5, [bar])
    found = list(bring_in_line(pipeline, [apple]))
    assert [(one.interval, one.bars) for one in found] == [(Interval.M1, 1), (Interval.M5, 1)]
    assert derive_lost(pipeline, [apple], found) == 0
    assert counts(pipeline, apple, Interval.M5)[Verdict.MISSING] == 1


def test_a_minute_deleted_by_hand_does_not_take_its_derived_bar_with_it(pipeline: Pipeline) -> None:
    apple = pipeline.universe.instrument("AAPL")
    derived(pipeline, apple)
    before = verdicts(pipeline, apple, Interval.M5)
    forget(pipeline, Interval.M1, [max(stored(pipeline, apple, Interval.M1))])
    assert derive_lost(pipeline, [apple], list(bring_in_line(pipeline, [apple]))) == 0
    assert verdicts(pipeline, apple, Interval.M5) == before


def derived(pipeline: Pipeline, apple: Instrument) -> None:
    for session in SESSIONS:
        store(pipeline, "AAPL", session)
    list(derive_candles([Stretch(apple, FIRST, LAST)], Interval.M5, pipeline=pipeline))


def read(pipeline: Pipeline, apple: Instrument) -> tuple[list[int], list[float]]:
    columns = pipeline.reader.read([apple.symbol_id], Interval.M5, 0, 1 << 33).columns
    return columns.opened_at.tolist(), columns.close.tolist()
