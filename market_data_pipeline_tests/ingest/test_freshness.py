"""The census on a real ledger: who is stale, what is lost, and what is just silence; and bars that are counted once."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydantic import SecretStr

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.coverage import LedgerRow
from market_data_pipeline.domain.slo import Bars
from market_data_pipeline.domain.universe import Tier, UniverseEntry
from market_data_pipeline.ingest.freshness import measure_density, record_census, slo_status, take_census
from market_data_pipeline.ingest.grid import Grid
from market_data_pipeline.settings import Settings
from market_data_pipeline.storage.bulk import transaction, write_ledger
from market_data_pipeline.storage.slo import prune_samples
from market_data_pipeline.wiring import open_pipeline

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from market_data_pipeline.domain.freshness import Census, FreshnessLine
    from market_data_pipeline.ingest.pipeline import Pipeline

MONDAY, TUESDAY = date(2024, 12, 2), date(2024, 12, 3)
WEDNESDAY, HALF_DAY = date(2024, 11, 27), date(2024, 11, 29)
MINUTES = (Interval.M1,)
T0, T1, T2 = Tier.T0, Tier.T1, Tier.T2


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


@dataclass(frozen=True)
class Desk:
    """A database, and a clock that is set by hand."""

    url: str
    home: Path

    @contextmanager
    def at(self, text: str, **told: object) -> Iterator[Pipeline]:
        """The pipeline when the clock says ``text``. Everybody's minutes but T2's are asked for every minute."""
        values = {"bars_every_seconds": "T0=60,T1=60,T2=0", "policy_bars_1m": "yahoo", "policy_bars_1h": "yahoo", **told}
        settings = Settings(home=self.home, database_url=SecretStr(self.url), clock=text, **values)  # type: ignore[arg-type]
        with open_pipeline(settings) as pipeline:
            yield pipeline

    def follow(self, *entries: UniverseEntry) -> None:
        """Load these as the universe."""
        with self.at("2024-11-01T12:00:00Z") as pipeline:
            pipeline.universe.load(entries, version_tag="t", source="t", source_sha256="0" * 64, loaded_by="t")

    def census(self, text: str, interval: Interval = Interval.M1, **told: object) -> Census:
        """The census of one interval at ``text``."""
        with self.at(text, **told) as pipeline:
            return take_census(pipeline, intervals=(interval,))

    def line(self, text: str, tier: Tier = T0, interval: Interval = Interval.M1, **told: object) -> FreshnessLine:
        """The line of one tier."""
        (line,) = [line for line in self.census(text, interval, **told).lines if line.tier is tier]
        return line

    def store(
        self,
        symbol: str,
        session: date,
        *,
        until: str | None = None,
        interval: Interval = Interval.M1,
        lacking: Collection[int] = (),
        empty: Collection[int] = (),
        asked_at: str | None = None,
        failures: int = 0,
        planned: bool = True,
    ) -> None:
        """A ledger row of ``symbol``: every bar that ended ``until``, except those that are ``lacking`` or ``empty``.

        Last answered at ``asked_at``: when the newest bar was ready, unless told otherwise.
        """
        with self.at("2024-11-01T12:00:00Z") as pipeline:
            instrument = pipeline.universe.instrument(symbol)
            grid = Grid.of(pipeline.calendars(instrument.calendar), interval, session, session)
            limit = int(grid.closes_at[0]) if until is None else int(instant(until).timestamp())
            present = grid.ends_at <= limit
            confirmed = np.zeros(len(present), bool)
            present[list(lacking)] = False
            confirmed[list(empty)] = True
            present &= ~confirmed
            asked = instant(asked_at) if asked_at else datetime.fromtimestamp(limit + 91, instant("2024-01-01T00:00Z").tzinfo)
            row = LedgerRow(
                symbol_id=instrument.symbol_id,
                interval=interval,
                session=session,
                opens_at=int(grid.opens_at[0]),
                closes_at=int(grid.closes_at[0]),
                present=present,
                confirmed_empty=confirmed,
                attempts=1,
                failures=failures,
                last_attempt_at=asked if interval.source is None else None,
                next_attempt_at=asked + timedelta(hours=1) if planned and not (present | confirmed).all() else None,
                known_at=asked,
            )
            with transaction(pipeline.engine) as cursor:
                cursor.execute(
                    "delete from coverage where symbol_id = %s and interval_s = %s and session = %s",
                    (instrument.symbol_id, interval.seconds, session),
                )
                write_ledger(cursor, interval, [row])

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Run one statement."""
        with self.at("2024-11-01T12:00:00Z") as pipeline, transaction(pipeline.engine) as cursor:
            cursor.execute(statement, values)
            return list(cursor.fetchall()) if cursor.description else []

    def samples(self) -> dict[tuple[str, int], tuple[int, int]]:
        """Bars due and late by tier and interval, of the hours."""
        rows = self.sql(
            "select tier, interval_s, sum(due)::int, sum(late)::int from slo_samples where resolution_s = 3600 group by 1, 2"
        )
        fine = self.sql(
            "select tier, interval_s, sum(due)::int, sum(late)::int from slo_samples where resolution_s = 300 group by 1, 2"
        )
        assert sorted(rows, key=str) == sorted(fine, key=str)
        return {(tier, seconds): (due, late) for tier, seconds, due, late in rows}


@pytest.fixture
def desk(database_url: str, tmp_path: Path) -> Desk:
    return Desk(database_url, tmp_path)


@pytest.fixture
def aapl(desk: Desk) -> Desk:
    """One symbol, T0, of New York."""
    desk.follow(UniverseEntry("AAPL", "XNAS", T0))
    return desk


# --- one symbol and the clock


def test_a_symbol_whose_bars_stopped_is_stale_and_told_by_name(aapl: Desk) -> None:
    aapl.store("AAPL", MONDAY, until="2024-12-02T09:40-05:00", asked_at="2024-12-02T09:58-05:00", failures=3)
    census = aapl.census("2024-12-02T10:00:00-05:00")
    (line,) = census.lines
    assert (line.symbols, line.stale, line.due, line.lost) == (1, 1, 26, 16)
    assert (line.present, line.missing, line.pending) == (10, 18, 362)
    (stale,) = census.stale
    assert (stale.symbol, stale.session, stale.behind, stale.is_answered) == ("AAPL", MONDAY, 16, False)
    assert stale.newest_opened_at == instant("2024-12-02T09:39:00-05:00")
    assert stale.lag_seconds == line.worst_lag_seconds == line.median_lag_seconds == 20 * 60 - 60 - 90


def test_a_symbol_that_has_every_bar_is_silent(aapl: Desk) -> None:
    aapl.store("AAPL", MONDAY, until="2024-12-02T09:58-05:00")
    line = aapl.line("2024-12-02T10:00:00-05:00")
    assert (line.symbols, line.stale, line.lost, line.worst_lag_seconds, line.violation_rate) == (1, 0, 0, 0.0, 0.0)


def test_a_symbol_that_the_ledger_has_never_heard_of_is_stale_from_its_first_bar_on(aapl: Desk) -> None:
    assert aapl.census("2024-12-02T09:34:29-05:00").stale == []
    (stale,) = aapl.census("2024-12-02T09:34:30-05:00").stale
    assert (stale.newest_opened_at, stale.behind) == (None, 1)


def test_one_lost_minute_of_t0_counts_though_the_next_one_came(aapl: Desk) -> None:
    aapl.store("AAPL", MONDAY, until="2024-12-02T09:58-05:00", lacking=[12])
    line = aapl.line("2024-12-02T10:00:00-05:00")
    assert (line.stale, line.lost, line.due) == (0, 1, 26)


@pytest.mark.parametrize("now", ["2024-11-28T11:00-05:00", "2024-11-27T16:30-05:00", "2024-11-29T09:34-05:00"])
def test_a_holiday_a_night_and_a_morning_are_silent_after_a_whole_session(aapl: Desk, now: str) -> None:
    aapl.store("AAPL", WEDNESDAY)
    census = aapl.census(now)
    assert [(line.symbols, line.stale, line.lost) for line in census.lines] == [(1, 0, 0)]


def test_on_thanksgiving_what_wednesday_lacks_is_a_gap_and_not_stale(aapl: Desk) -> None:
    aapl.store("AAPL", WEDNESDAY, until="2024-11-27T15:00-05:00")
    evening, holiday = aapl.line("2024-11-27T20:00-05:00"), aapl.line("2024-11-28T11:00-05:00")
    assert (evening.stale, evening.lost, evening.is_over) == (1, 60, False)
    assert (holiday.stale, holiday.lost, holiday.is_over, holiday.worst_lag_seconds) == (0, 60, True, 0.0)


def test_on_a_half_day_the_morning_is_judged_after_its_early_close(aapl: Desk) -> None:
    for now in ("12:59", "13:05", "14:00", "18:30"):
        aapl.store("AAPL", HALF_DAY, until="2024-11-29T12:30-05:00", asked_at="2024-11-29T12:31-05:00")
        assert aapl.line(f"2024-11-29T{now}-05:00").stale == 1
        aapl.store("AAPL", HALF_DAY, until=f"2024-11-29T{min(now, '13:00')}-05:00")
        line = aapl.line(f"2024-11-29T{now}-05:00")
        assert (line.stale, line.lost) == (0, 0)
    assert aapl.line("2024-11-29T13:05-05:00").due == 210


@pytest.mark.parametrize(("day", "offset"), [(date(2026, 3, 9), "-04:00"), (date(2026, 11, 2), "-05:00")])
def test_on_the_monday_after_the_clocks_changed_nothing_is_early_or_late(aapl: Desk, day: date, offset: str) -> None:
    aapl.store("AAPL", day - timedelta(days=3))
    assert aapl.line(f"{day}T09:34:29{offset}").stale == 0
    assert aapl.line(f"{day}T09:34:30{offset}").stale == 1
    aapl.store("AAPL", day, until=f"{day}T09:38{offset}")
    assert aapl.line(f"{day}T09:40{offset}").stale == 0


def test_on_sunday_nothing_begins_and_nothing_is_stale(aapl: Desk) -> None:
    aapl.store("AAPL", HALF_DAY, until="2024-11-29T11:00-05:00")
    census = aapl.census("2024-12-01T12:00-05:00")
    assert [(line.stale, line.is_over) for line in census.lines] == [(0, True)]
    assert census.stale == []


def test_a_day_that_the_operator_declares_closed_is_silent(aapl: Desk) -> None:
    overrides = aapl.home / "overrides.csv"
    overrides.write_text(
        "calendar,session,kind,time,declared_at,source\nXNYS,2024-12-03,closed,,2024-12-01T21:00:00Z,a day of mourning\n"
    )
    aapl.store("AAPL", MONDAY)
    assert aapl.line("2024-12-03T11:00-05:00").stale == 1
    assert aapl.line("2024-12-03T11:00-05:00", calendar_overrides=overrides).stale == 0


def test_a_market_that_never_closes_is_judged_on_a_sunday_night(desk: Desk) -> None:
    desk.follow(UniverseEntry("BTC-USD", "CRYPTO", T0))
    sunday, monday = date(2024, 12, 1), MONDAY
    desk.store("BTC-USD", sunday, until="2024-12-01T23:58:00Z")
    assert desk.line("2024-12-01T23:59:50Z").stale == 0
    desk.store("BTC-USD", sunday)
    assert desk.line("2024-12-02T00:04:00Z").stale == 0
    assert desk.line("2024-12-02T00:05:00Z").stale == 1
    desk.store("BTC-USD", monday, until="2024-12-02T00:03:00Z")
    assert desk.line("2024-12-02T00:05:00Z").stale == 0


def test_a_lunch_break_is_silent_and_what_the_morning_lacks_is_not(desk: Desk) -> None:
    desk.follow(UniverseEntry("0700.HK", "XHKG", T0))
    desk.store("0700.HK", MONDAY, until="2024-12-02T12:00+08:00")
    assert desk.line("2024-12-02T12:55+08:00").stale == 0
    assert desk.line("2024-12-02T13:04:30+08:00").stale == 1
    desk.store("0700.HK", MONDAY, until="2024-12-02T11:50+08:00", asked_at="2024-12-02T11:52+08:00")
    assert desk.line("2024-12-02T12:55+08:00").stale == 1


def test_hours_and_days_are_judged_two_hours_after_the_close(aapl: Desk) -> None:
    aapl.store("AAPL", HALF_DAY, interval=Interval.D1)
    for interval in (Interval.H1, Interval.D1):
        assert [line.stale for line in aapl.census("2024-12-02T18:01:30-05:00", interval).lines] == [1]
    assert [line.stale for line in aapl.census("2024-12-02T18:01:29-05:00", Interval.D1).lines] == [0]
    aapl.store("AAPL", MONDAY, interval=Interval.D1)
    line = aapl.line("2024-12-02T19:00-05:00", interval=Interval.D1)
    assert (line.stale, line.due, line.lost, line.present) == (0, 1, 0, 1)


def test_backfilling_an_old_session_turns_nothing_fresh(aapl: Desk) -> None:
    aapl.store("AAPL", MONDAY, until="2024-12-02T09:40-05:00")
    before = aapl.line("2024-12-02T10:00-05:00")
    for day in (HALF_DAY, WEDNESDAY, date(2020, 3, 2)):
        aapl.store("AAPL", day, asked_at="2024-12-02T09:59:30-05:00")
    assert aapl.line("2024-12-02T10:00-05:00") == before
    assert before.stale == 1


def test_beyond_the_calendars_horizon_nothing_is_expected_and_nothing_breaks(aapl: Desk) -> None:
    assert aapl.census("2040-06-01T15:00:00Z").lines == []


def test_an_interval_that_nobody_serves_is_not_expected(aapl: Desk) -> None:
    assert aapl.census("2024-12-02T11:00-05:00", policy_bars_1m="alpaca").lines == []


# --- who counts


def test_a_symbol_that_was_added_just_now_is_given_time(aapl: Desk) -> None:
    aapl.sql("update universe_versions set loaded_at = '2024-12-02T10:58:30-05:00'")
    assert aapl.census("2024-12-02T11:00:00-05:00").stale == []
    assert len(aapl.census("2024-12-02T11:00:30-05:00").stale) == 1
    # After the close nobody asks for it before the next one.
    aapl.sql("update universe_versions set loaded_at = '2024-12-02T17:00:00-05:00'")
    assert aapl.census("2024-12-02T19:00:00-05:00", Interval.D1).stale == []


def test_who_is_gone_unknown_or_not_listed_yet_is_not_expected(desk: Desk) -> None:
    desk.follow(
        UniverseEntry("AAPL", "XNAS", T0),
        UniverseEntry("OLD", "XNAS", T0, active_to=HALF_DAY),
        UniverseEntry("NEW", "XNAS", T0, active_from=TUESDAY),
        UniverseEntry("DEAD", "XNAS", T0),
        UniverseEntry("NOBODY", "XNAS", T0),
    )
    desk.sql("update symbol_universe set listed_to = '2024-11-29' where symbol = 'DEAD'")
    desk.sql("update symbol_universe set is_unknown = true where symbol = 'NOBODY'")
    census = desk.census("2024-12-02T10:00-05:00")
    assert [line.symbols for line in census.lines] == [1]
    assert [one.symbol for one in census.stale] == ["AAPL"]
    assert desk.line("2024-12-03T10:00-05:00").symbols == 2


def test_a_halted_symbol_is_not_stale_while_it_lasts(aapl: Desk) -> None:
    aapl.store("AAPL", MONDAY, until="2024-12-02T09:40-05:00", asked_at="2024-12-02T09:59-05:00")
    assert aapl.line("2024-12-02T10:00-05:00").stale == 1
    aapl.sql(
        "insert into trading_halts (symbol_id, calendar, starts_at, source, known_from)"
        " select symbol_id, calendar, '2024-12-02T09:40-05:00', 'test', '2024-12-02T09:41-05:00' from symbol_universe"
    )
    line = aapl.line("2024-12-02T10:00-05:00")
    assert (line.stale, line.lost) == (0, 0)
    aapl.sql("update trading_halts set ends_at = '2024-12-02T09:45-05:00'")
    assert aapl.line("2024-12-02T10:00-05:00").stale == 1


def test_what_the_ledger_says_was_halted_is_neither_due_nor_lost(aapl: Desk) -> None:
    aapl.store("AAPL", MONDAY, until="2024-12-02T09:40-05:00", asked_at="2024-12-02T09:59-05:00")
    aapl.sql("update coverage set halted = (repeat('0', 10) || repeat('1', 20) || repeat('0', 360))::varbit")
    line = aapl.line("2024-12-02T10:00-05:00")
    assert (line.stale, line.due, line.lost, line.halted) == (0, 10, 0, 20)


# --- silence


def a_thin_universe(desk: Desk) -> None:
    """Four that always trade, one that trades in three minutes of five; the last twenty sessions say so."""
    desk.follow(*(UniverseEntry(f"L{n}", "XNAS", T1) for n in range(4)), UniverseEntry("THIN", "XNAS", T1))
    thinly(desk, "THIN")


def thinly(desk: Desk, symbol: str, density: float = 0.6) -> None:
    desk.sql(
        "insert into trading_density select symbol_id, 60, %s, 20, '2024-12-01T00:00Z' from symbol_universe where symbol = %s",
        density,
        symbol,
    )


def test_an_illiquid_symbol_of_t2_with_empty_minutes_violates_nothing(desk: Desk) -> None:
    desk.follow(UniverseEntry("THIN", "XNAS", T2))
    thinly(desk, "THIN")
    desk.store("THIN", MONDAY, lacking=range(2, 390, 5), empty=range(4, 390, 5), asked_at="2024-12-02T16:15-05:00")
    line = desk.line("2024-12-02T19:00-05:00", T2)
    assert (line.symbols, line.stale, line.lost, line.violation_rate) == (1, 0, 0, 0.0)
    assert (line.due, line.confirmed_empty, line.missing) == (234, 78, 78)


def test_the_silence_of_a_thin_symbol_is_ordinary_until_it_is_not(desk: Desk) -> None:
    a_thin_universe(desk)
    for n in range(4):
        desk.store(f"L{n}", MONDAY, until="2024-12-02T10:58-05:00")
    desk.store("THIN", MONDAY, until="2024-12-02T10:50-05:00", asked_at="2024-12-02T10:59-05:00")
    ordinary = desk.line("2024-12-02T11:00-05:00", T1)
    assert (ordinary.symbols, ordinary.stale, ordinary.lost) == (5, 0, 0)
    desk.store("THIN", MONDAY, until="2024-12-02T10:40-05:00", asked_at="2024-12-02T10:59-05:00")
    assert desk.line("2024-12-02T11:00-05:00", T1).stale == 1
    # Not answered since: nobody knows, and that is no silence.
    desk.store("THIN", MONDAY, until="2024-12-02T10:50-05:00", asked_at="2024-12-02T10:52-05:00")
    assert desk.line("2024-12-02T11:00-05:00", T1).stale == 1
    desk.store("THIN", MONDAY, until="2024-12-02T10:50-05:00", asked_at="2024-12-02T10:59-05:00", failures=2)
    assert desk.line("2024-12-02T11:00-05:00", T1).stale == 1


def test_of_a_frozen_provider_everybody_counts_though_it_answers(desk: Desk) -> None:
    a_thin_universe(desk)
    for symbol in ("L0", "L1", "L2", "L3", "THIN"):
        desk.store(symbol, MONDAY, until="2024-12-02T10:50-05:00", lacking=[3], asked_at="2024-12-02T10:59-05:00")
    line = desk.line("2024-12-02T11:00-05:00", T1)
    assert (line.symbols, line.stale) == (5, 5)
    # Of the liquid also the minute lost in the morning; of the thin only what is silent together with the others.
    assert line.lost == 4 * 7 + 6


def test_a_liquid_symbol_without_history_is_taken_for_liquid_unless_it_is_t2(desk: Desk) -> None:
    desk.follow(*(UniverseEntry(name, "XNAS", tier) for name, tier in (("ONE", T1), ("TWO", T2), ("A", T1), ("B", T1))))
    for name in ("ONE", "TWO"):
        desk.store(name, MONDAY, until="2024-12-02T15:30-05:00", asked_at="2024-12-02T17:00-05:00")
    for name in ("A", "B"):
        desk.store(name, MONDAY)
    assert desk.line("2024-12-02T19:00-05:00", T1).stale == 1
    assert desk.line("2024-12-02T19:00-05:00", T2).stale == 0


def test_a_lost_minute_is_lost_once_and_not_in_every_bar_above_it(aapl: Desk) -> None:
    aapl.store("AAPL", MONDAY, until="2024-12-02T10:58-05:00", lacking=[12])
    for interval, lacking in ((Interval.M5, 2), (Interval.M15, 0), (Interval.M30, 0)):
        aapl.store("AAPL", MONDAY, until="2024-12-02T10:58-05:00", interval=interval, lacking=[lacking])
    lines = {interval: aapl.line("2024-12-02T11:05-05:00", interval=interval) for interval in Interval if interval.seconds < 3600}
    assert [line.lost for line in lines.values()][1:] == [0, 0, 0]
    assert [line.stale for line in lines.values()][1:] == [0, 0, 0]
    assert aapl.line("2024-12-02T11:00-05:00").lost == 1


def test_a_derived_bar_that_nobody_computed_is_stale_though_its_minutes_are_there(aapl: Desk) -> None:
    aapl.store("AAPL", MONDAY, until="2024-12-02T10:58-05:00")
    aapl.store("AAPL", MONDAY, until="2024-12-02T10:30-05:00", interval=Interval.M5)
    census = aapl.census("2024-12-02T11:00-05:00", Interval.M5)
    assert [(line.stale, line.lost) for line in census.lines] == [(1, 3)]


def test_densities_are_measured_of_what_is_decided(desk: Desk) -> None:
    desk.follow(UniverseEntry("FULL", "XNAS", T1), UniverseEntry("THIN", "XNAS", T1), UniverseEntry("LOST", "XNAS", T1))
    for day in (WEDNESDAY, HALF_DAY):
        desk.store("FULL", day)
        desk.store("THIN", day, empty=range(200))
        desk.store("LOST", day, lacking=range(200))
    with desk.at("2024-12-02T08:00-05:00") as pipeline:
        assert measure_density(pipeline) == 3
        assert measure_density(pipeline, older_than=timedelta(days=1)) is None
    rows = dict(desk.sql("select symbol, density from trading_density join symbol_universe using (symbol_id)"))
    assert rows["FULL"] == rows["LOST"] == 1.0
    assert rows["THIN"] == pytest.approx((190 + 10) / 600)
    desk.sql("update coverage set next_attempt_at = null")
    with desk.at("2024-12-03T08:00-05:00") as pipeline:
        measure_density(pipeline)
    assert (
        dict(desk.sql("select symbol, density from trading_density join symbol_universe using (symbol_id)"))["LOST"] == rows["THIN"]
    )


# --- the budget


def watch(desk: Desk, text: str) -> None:
    with desk.at(text) as pipeline:
        record_census(pipeline, take_census(pipeline))


def test_each_bar_is_counted_once_over_breaks_and_repeated_looks(aapl: Desk) -> None:
    aapl.store("AAPL", MONDAY, until="2024-12-02T16:00-05:00", lacking=[60])
    for time in ("09:31", "09:34:30", "09:34:30", "09:35:10", "09:40", "10:35", "10:36", "12:20", "12:20:30", "16:05", "17:00"):
        watch(aapl, f"2024-12-02T{time}-05:00")
    # From 12:20:30 to 16:05 nobody watched: what had to be there from 12:21:30 to 14:04:30 is nobody's.
    unwatched = (14 * 60 + 5) - (12 * 60 + 21)
    assert aapl.samples()["T0", 60] == (390 - unwatched, 1)


def test_a_first_look_does_not_judge_what_nobody_watched(aapl: Desk) -> None:
    watch(aapl, "2024-12-02T15:00:00-05:00")
    assert aapl.samples()["T0", 60] == (120, 120)
    assert ("T0", 86400) not in aapl.samples()


def test_what_had_to_be_there_after_the_close_is_counted_then(aapl: Desk) -> None:
    aapl.store("AAPL", MONDAY, interval=Interval.D1)
    for time in ("17:00", "18:00", "18:30", "19:30", "23:00"):
        watch(aapl, f"2024-12-02T{time}-05:00")
    assert aapl.samples()["T0", 86400] == (1, 0)
    assert aapl.samples()["T0", 3600] == (7, 7)


def test_who_watches_at_the_same_time_counts_nothing_twice(aapl: Desk) -> None:
    aapl.store("AAPL", MONDAY, until="2024-12-02T10:58-05:00", lacking=[80])
    times = [f"2024-12-02T10:{minute}:00-05:00" for minute in range(30, 60, 5)]
    together = threading.Barrier(3)
    broken: list[BaseException] = []

    def look() -> None:
        try:
            for time in times:
                together.wait(30)
                watch(aapl, time)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test fails by it
            broken.append(error)
            together.abort()

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert broken == []
    assert aapl.samples()["T0", 60] == (81, 1)


def test_who_fails_half_way_has_counted_nothing(aapl: Desk) -> None:
    aapl.store("AAPL", MONDAY, until="2024-12-02T10:58-05:00")
    with aapl.at("2024-12-02T11:00-05:00") as pipeline:
        census = take_census(pipeline)
        aapl.sql("alter table slo_samples add constraint broken check (due < 10)")
        with pytest.raises(Exception, match="broken"):
            record_census(pipeline, census)
        aapl.sql("alter table slo_samples drop constraint broken")
        record_census(pipeline, census)
    assert aapl.samples()["T0", 60] == (86, 0)


def test_a_status_says_what_is_left_of_the_budget_and_how_fast_it_goes(aapl: Desk) -> None:
    aapl.store("AAPL", MONDAY, until="2024-12-02T09:40-05:00", asked_at="2024-12-02T09:59-05:00")
    for minute in range(35, 60, 6):
        watch(aapl, f"2024-12-02T09:{minute}:00-05:00")
    with aapl.at("2024-12-02T10:00:00-05:00") as pipeline:
        record_census(pipeline, take_census(pipeline))
        status = slo_status(pipeline)
    line = status.of(T0, Interval.M1)
    assert line is not None
    assert (line.objective, line.symbols, line.stale, line.due, line.late) == (0.005, 1, 1, 26, 16)
    assert line.windows["1h"] == Bars(26, 16)
    assert line.budget_left == pytest.approx(1 - 16 / (0.005 * 26))
    assert (line.is_burning_fast, line.is_burning_slowly, line.is_violated, line.is_spent) == (True, True, True, True)
    assert status.last_due_at == instant("2024-12-02T09:59:30-05:00")


def test_on_a_closed_day_the_budget_stands_still(aapl: Desk) -> None:
    aapl.store("AAPL", WEDNESDAY)
    for text in ("2024-11-27T17:00-05:00", "2024-11-28T11:00-05:00", "2024-11-28T12:00-05:00"):
        watch(aapl, text)
    (looks,) = aapl.sql("select sum(looks), sum(due) from slo_samples where resolution_s = 3600 and at >= '2024-11-28T12:00Z'")
    assert looks == (None, None)
    with aapl.at("2024-11-28T12:00-05:00") as pipeline:
        line = slo_status(pipeline).of(T0, Interval.M1)
    assert line is not None
    assert (line.burn_rates["1h"], line.is_violated, line.is_over) == (0.0, False, True)


def test_a_tier_without_a_target_has_no_budget(aapl: Desk) -> None:
    with aapl.at("2024-12-02T10:00-05:00", slo_targets="T1=0.02") as pipeline:
        line = slo_status(pipeline).of(T0, Interval.M1)
    assert line is not None
    assert (line.objective, line.budget_left, line.is_violated) == (None, None, False)


def test_old_samples_are_pruned_and_the_months_are_kept(aapl: Desk) -> None:
    watch(aapl, "2024-12-02T10:00-05:00")
    with aapl.at("2024-12-11T10:00-05:00") as pipeline:
        assert prune_samples(pipeline.engine, pipeline.clock.now()) > 0
        left = pipeline.engine.connect().exec_driver_sql("select distinct resolution_s from slo_samples").scalars().all()
    assert left == [3600]
