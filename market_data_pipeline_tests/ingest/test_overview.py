"""Counting by sums and counting bar by bar are the same, whatever the ledger holds, whoever is listed, whatever the hour."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.coverage import VERDICTS, LedgerRow, Verdict, tally
from market_data_pipeline.domain.finality import Finality
from market_data_pipeline.domain.universe import Tier, UniverseEntry
from market_data_pipeline.ingest.coverage import codes_of, coverage_report, gap_windows, masks_of, rows_by_symbol
from market_data_pipeline.ingest.grid import Grid
from market_data_pipeline.ingest.overview import missing_now, missing_symbols_now, verdict_cells
from market_data_pipeline.settings import Settings
from market_data_pipeline.storage.bulk import transaction, write_ledger
from market_data_pipeline.storage.overview import Plan
from market_data_pipeline.wiring import open_pipeline

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.pipeline import Pipeline

# Thanksgiving, a half day, and a Hong Kong week without holidays.
FIRST, LAST = date(2024, 11, 25), date(2024, 12, 4)
UNIVERSE = [
    UniverseEntry("AAPL", "XNAS", Tier.T0),
    UniverseEntry("NEW", "XNAS", Tier.T1, active_from=date(2024, 11, 29)),
    UniverseEntry("OLD", "XNYS", Tier.T1, active_to=date(2024, 11, 27)),
    UniverseEntry("GONE", "XNYS", Tier.T2, active_to=date(2020, 1, 3)),
    UniverseEntry("0700.HK", "XHKG", Tier.T2),
    UniverseEntry("SPUN", "XNAS", Tier.T0),
    UniverseEntry("NOBODY", "XNAS", Tier.T2),
]
# What evidence says of a listing counts like what the universe's file says.
INFERRED = """
update symbol_universe set listed_from = case symbol when 'SPUN' then date '2024-11-27' end,
                           listed_to = case symbol when 'SPUN' then date '2024-12-02' end, is_unknown = symbol = 'NOBODY'
"""
# Yahoo serves minutes of the last 30 days: at the last two clocks their edge lies inside a session of New York and of Hong Kong.
CLOCKS = [
    datetime(2024, 12, 4, 16, 0, tzinfo=UTC),
    datetime(2024, 12, 4, 3, 0, tzinfo=UTC),
    datetime(2024, 11, 29, 19, 30, tzinfo=UTC),
    datetime(2024, 12, 7, 12, 0, tzinfo=UTC),
    datetime(2024, 12, 29, 16, 0, tzinfo=UTC),
    datetime(2024, 12, 29, 3, 40, tzinfo=UTC),
]


class Known(NamedTuple):
    """One ledger row: a seed for its bitmaps, and what is planned. ``misfit``: opened under other hours."""

    symbol: int
    session: int
    seed: int
    density: float
    planned_hours: int | None
    finality: int
    misfit: bool


rows = st.builds(
    Known,
    st.integers(0, len(UNIVERSE) - 1),
    st.integers(0, 7),
    st.integers(0, 1 << 30),
    st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    st.sampled_from([None, -1000, 1000]),
    st.integers(0, 2),
    st.sampled_from([False, False, False, True]),
)


# Half known: the running session of AAPL, and the sessions over which the edge of the reach goes.
RUNNING = [Known(0, 6, 1, 0.5, -1000, 0, misfit=False)]
AT_THE_EDGE = [Known(0, 3, 1, 0.5, None, 0, misfit=False), Known(4, 4, 1, 0.5, 1000, 0, misfit=False)]


@contextmanager
def at_time(database_url: str, home: Path, now: datetime) -> Iterator[Pipeline]:
    told = Settings(
        home=home, database_url=SecretStr(database_url), clock=now.isoformat(), settle_seconds=90, policy_bars_1m="yahoo"
    )
    with open_pipeline(told) as pipeline:
        yield pipeline


@pytest.fixture
def stocked(database_url: str, tmp_path: Path) -> tuple[str, Path]:
    with at_time(database_url, tmp_path, CLOCKS[0]) as pipeline:
        pipeline.universe.load(UNIVERSE, version_tag="t", source="t", source_sha256="0" * 64, loaded_by="t")
        with pipeline.engine.begin() as connection:
            connection.exec_driver_sql(INFERRED)
    return database_url, tmp_path


def fill(pipeline: Pipeline, instruments: Sequence[Instrument], interval: Interval, known: Sequence[Known], now: datetime) -> None:
    made = {}
    for one in known:
        instrument = instruments[one.symbol]
        grid = Grid.of(pipeline.calendars(instrument.calendar), interval, FIRST, LAST)
        place = one.session % len(grid)
        length = int(grid.lengths[place]) + one.misfit
        random = np.random.default_rng(one.seed)
        present = random.random(length) < one.density
        confirmed = ~present & (random.random(length) < 0.3)
        halted = ~present & ~confirmed & (random.random(length) < 0.3)
        made[instrument.symbol_id, grid.sessions[place]] = LedgerRow(
            symbol_id=instrument.symbol_id,
            interval=interval,
            session=grid.sessions[place],
            opens_at=int(grid.opens_at[place]),
            closes_at=int(grid.closes_at[place]),
            present=present,
            confirmed_empty=confirmed,
            halted=halted if halted.any() else None,
            next_attempt_at=None if one.planned_hours is None else now + timedelta(hours=one.planned_hours),
            known_at=now,
            finality=Finality(one.finality),
        )
    with transaction(pipeline.engine) as cursor:
        cursor.execute("delete from coverage")
        write_ledger(cursor, interval, list(made.values()))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    interval=st.sampled_from([Interval.M1, Interval.M5, Interval.H1, Interval.D1]),
    known=st.lists(rows, max_size=25),
    now=st.sampled_from(CLOCKS),
)
@example(Interval.M1, RUNNING, CLOCKS[0])
@example(Interval.M1, AT_THE_EDGE, CLOCKS[4])
@example(Interval.M1, AT_THE_EDGE, CLOCKS[5])
def test_sums_by_cell_say_what_the_bars_say_one_by_one(
    stocked: tuple[str, Path], interval: Interval, known: list[Known], now: datetime
) -> None:
    with at_time(*stocked, now) as pipeline:
        instruments = pipeline.universe.instruments()
        fill(pipeline, instruments, interval, known, now)
        stamp = int(now.timestamp())
        days = sorted({day for name in ("XNYS", "XHKG") for day in pipeline.calendars(name).sessions(FIRST, LAST)})
        column_of = {day: place // 3 for place, day in enumerate(days)}
        cells = verdict_cells(instruments, interval, FIRST, LAST, pipeline=pipeline, column_of=column_of)
        lines = list(coverage_report(instruments, [interval], FIRST, LAST, pipeline=pipeline))
        for row, instrument in enumerate(instruments):
            grid = Grid.of(pipeline.calendars(instrument.calendar), interval, FIRST, LAST)
            own = rows_by_symbol(pipeline.ledger.rows([instrument.symbol_id], interval, FIRST, LAST)).get(instrument.symbol_id, [])
            codes = codes_of(pipeline, instrument, interval, grid, masks_of(grid, own), now=stamp)
            assert lines[row].counts == tally(codes)
            assert sum(lines[row].counts.values()) == lines[row].expected == len(grid.opened_at)
            columns = np.repeat([column_of[session] for session in grid.sessions], grid.lengths)
            one_by_one = np.zeros(cells.bars[:, row].shape, int)
            np.add.at(one_by_one, (codes, columns), 1)
            assert cells.bars[:, row].tolist() == one_by_one.tolist()
        assert cells.bars.sum() == sum(line.expected for line in lines)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    interval=st.sampled_from([Interval.M1, Interval.M5, Interval.D1]),
    known=st.lists(rows, max_size=25),
    now=st.sampled_from(CLOCKS),
)
@example(Interval.M1, RUNNING, CLOCKS[0])
@example(Interval.M1, AT_THE_EDGE, CLOCKS[4])
@example(Interval.M1, AT_THE_EDGE, CLOCKS[5])
def test_what_is_missing_now_is_exactly_what_the_windows_hold(
    stocked: tuple[str, Path], interval: Interval, known: list[Known], now: datetime
) -> None:
    with at_time(*stocked, now) as pipeline:
        instruments = pipeline.universe.instruments()
        fill(pipeline, instruments, interval, [one for one in known if not one.misfit], now)
        tier_of = {instrument.symbol: instrument.tier for instrument in instruments}
        in_ledger = {
            (row.symbol_id, row.session): row
            for i in instruments
            for row in pipeline.ledger.rows([i.symbol_id], interval, FIRST, LAST)
        }
        ids = {instrument.symbol: instrument.symbol_id for instrument in instruments}
        expected: Counter[tuple[date, Tier, Plan]] = Counter()
        by_symbol: Counter[str] = Counter()
        for window in gap_windows(instruments, [interval], FIRST, LAST, pipeline=pipeline):
            row = in_ledger.get((ids[window.symbol], window.session))
            if row is not None:
                expected[window.session, tier_of[window.symbol], plan_of(row, now)] += window.bars
                by_symbol[window.symbol] += window.bars
        found = missing_now(pipeline, intervals=[interval])
        assert {(line.session, line.tier, line.plan): line.bars for line in found} == dict(expected)
        symbols = missing_symbols_now(pipeline, intervals=[interval])
        assert {one.symbol: one.bars for one in symbols} == dict(by_symbol)
        assert sum(one.given_up for one in symbols) == sum(bars for (*_, plan), bars in expected.items() if plan is Plan.GIVEN_UP)


def plan_of(row: LedgerRow, now: datetime) -> Plan:
    if row.interval.source is not None:
        return Plan.DERIVED
    if row.next_attempt_at is None:
        return Plan.GIVEN_UP
    return Plan.DUE if row.next_attempt_at <= now else Plan.WAITING


def test_sessions_without_a_row_are_missing_and_said_to_be_unasked(stocked: tuple[str, Path]) -> None:
    with at_time(*stocked, datetime(2024, 12, 7, 12, tzinfo=UTC)) as pipeline:
        instruments = pipeline.universe.instruments(symbols=["AAPL"])
        cells = verdict_cells(instruments, Interval.D1, FIRST, LAST, pipeline=pipeline)
        # Seven sessions: Thanksgiving, the 28th, is none (NYSE, Holidays & Trading Hours).
        assert cells.of(Verdict.MISSING).tolist() == cells.unasked.tolist() == [[7]]
        assert len(VERDICTS) == len(cells.bars)


def test_symbols_may_share_a_row(stocked: tuple[str, Path]) -> None:
    with at_time(*stocked, datetime(2024, 12, 7, 12, tzinfo=UTC)) as pipeline:
        instruments = pipeline.universe.instruments(symbols=["AAPL", "OLD"])
        fill(pipeline, instruments, Interval.D1, [Known(0, 0, 1, 1.0, None, 2, misfit=False)], CLOCKS[0])
        cells = verdict_cells(instruments, Interval.D1, FIRST, LAST, pipeline=pipeline, row_of=[0, 0])
        counted = {verdict: int(cells.of(verdict).sum()) for verdict in VERDICTS}
        # OLD's last session is the 27th: three of its seven are listed, four are not.
        assert counted == dict.fromkeys(VERDICTS, 0) | {Verdict.PRESENT: 1, Verdict.NOT_LISTED: 4, Verdict.MISSING: 6 + 3}
        assert cells.sessions[:, 0, 0].tolist() == [0, 0, 1]
