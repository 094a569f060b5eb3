"""The census counts in one statement what a person would count symbol by symbol, whatever the ledger holds, at any hour."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.coverage import LedgerRow
from market_data_pipeline.domain.universe import Tier, UniverseEntry
from market_data_pipeline.ingest.freshness import take_census
from market_data_pipeline.ingest.grid import Grid
from market_data_pipeline.settings import Settings
from market_data_pipeline.storage.bulk import transaction, write_ledger
from market_data_pipeline.wiring import open_pipeline

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from market_data_pipeline.domain.candles import Bools
    from market_data_pipeline.ingest.pipeline import Pipeline

# The half day after Thanksgiving: 210 minutes from 14:30 to 18:00 UTC.
DAY = date(2024, 11, 29)
OPENS, CLOSES = datetime(2024, 11, 29, 14, 30, tzinfo=UTC), datetime(2024, 11, 29, 18, 0, tzinfo=UTC)
SYMBOLS = [(f"S{n}", tier) for n, tier in enumerate([Tier.T0, Tier.T0, Tier.T1, Tier.T1, Tier.T1, Tier.T2, Tier.T2])]
CADENCE, SETTLE, EOD = 60, 90, 7200


class Known(NamedTuple):
    """What is known of one symbol. ``rows``: of its minutes, and of the interval that is looked at; None: no row."""

    seed: int
    until: int
    share: float
    answered_minutes_ago: int | None
    failures: int
    density: float | None
    has_row: bool


known = st.builds(
    Known,
    st.integers(0, 1 << 30),
    st.integers(0, 210),
    st.sampled_from([0.3, 0.9, 1.0, 1.0]),
    st.sampled_from([None, 0, 1, 2, 5, 40]),
    st.sampled_from([0, 0, 0, 2]),
    st.sampled_from([None, 0.1, 0.6, 0.97, 0.98, 1.0]),
    st.sampled_from([True, True, True, False]),
)


class Slots(NamedTuple):
    """A symbol's bars as a row has them."""

    present: Bools
    confirmed: Bools
    halted: Bools

    @property
    def resolved(self) -> Bools:
        resolved: Bools = self.present | self.confirmed | self.halted
        return resolved


@contextmanager
def at_time(url: str, home: Path, now: datetime) -> Iterator[Pipeline]:
    told = Settings(
        home=home,
        database_url=SecretStr(url),
        clock=now.isoformat(),
        settle_seconds=SETTLE,
        eod_within_seconds=EOD,
        bars_every_seconds=f"T0={CADENCE},T1={CADENCE},T2=0",
        policy_bars_1m="yahoo",
    )
    with open_pipeline(told) as pipeline:
        yield pipeline


@pytest.fixture
def stocked(database_url: str, tmp_path: Path) -> tuple[str, Path]:
    with at_time(database_url, tmp_path, OPENS) as pipeline:
        entries = [UniverseEntry(symbol, "XNAS", tier) for symbol, tier in SYMBOLS]
        pipeline.universe.load(entries, version_tag="t", source="t", source_sha256="0" * 64, loaded_by="t")
    return database_url, tmp_path


def slots_of(one: Known, interval: Interval, count: int) -> Slots:
    random = np.random.default_rng(one.seed + interval.seconds)
    until = one.until * 60 // interval.seconds if not interval.is_daily else int(one.until > 100)
    present = (random.random(count) < one.share) & (np.arange(count) < until)
    confirmed = ~present & (random.random(count) < 0.1)
    halted = ~present & ~confirmed & (random.random(count) < 0.02)
    return Slots(present, confirmed, halted)


class Judgement(NamedTuple):
    """What a person finds of one symbol."""

    tier: Tier
    stale: bool
    lost: int
    due: int
    is_expected: bool


def judged(
    everybody: Sequence[tuple[Tier, Known, Slots | None, Slots | None]],
    interval: Interval,
    ready: Sequence[float],
    due_of: dict[Tier, int],
    now: float,
) -> list[Judgement]:
    """Bar by bar, symbol by symbol: the rules in words, in loops."""
    minutes = interval.seconds // 60 if interval.source else 0
    first: list[tuple[int, int, int, bool, bool, bool]] = []
    for tier, one, mine, of_minutes in everybody:
        due = due_of[tier]
        resolved = [] if mine is None else mine.resolved.tolist()
        newest = max((slot + 1 for slot, there in enumerate(resolved) if there), default=0)
        behind = max(due - newest, 0)
        lacking = sum(1 for slot in range(due) if mine is None or not resolved[slot])
        asked = of_minutes if minutes else mine
        answered = None if one.answered_minutes_ago is None else now - 60 * one.answered_minutes_ago
        unheard = asked is None or one.failures > 0 or answered is None or answered < ready[due - 1]
        open_minutes = 0
        if minutes and of_minutes is not None:
            open_minutes = sum(1 for slot in range(min(due * minutes, 210)) if not of_minutes.resolved[slot])
        density = one.density if one.density is not None else 0.0 if tier is Tier.T2 else 1.0
        density = max(density if one.density is not None else 1.0, 0.98) if tier is Tier.T0 else density
        chance = (1 - (density**minutes if minutes else density)) ** behind > 0.001
        excused = chance and (tier is not Tier.T0 or minutes > 0) and (not minutes or due - newest <= open_minutes)
        first.append((behind, lacking, open_minutes, unheard, excused, density >= 0.98))
    liquid_and_stale = sum(1 for behind, _, _, _, excused, liquid in first if behind and liquid and not excused)
    fresh = sum(1 for behind, *_ in first if not behind)
    frozen = liquid_and_stale >= 2 and liquid_and_stale > fresh
    found = []
    for (tier, _, mine, _), (behind, lacking, open_minutes, unheard, excused, liquid) in zip(everybody, first, strict=True):
        silent = min(behind, lacking) if unheard or frozen else 0
        lost = max(lacking - open_minutes, silent) if minutes else lacking if liquid else silent
        there = 0 if mine is None else int(mine.present[: due_of[tier]].sum())
        found.append(Judgement(tier, behind > 0 and (unheard or frozen or not excused), lost, there + lost, there + lacking > 0))
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    interval=st.sampled_from([Interval.M1, Interval.M1, Interval.M5, Interval.M30, Interval.D1]),
    symbols=st.lists(known, min_size=len(SYMBOLS), max_size=len(SYMBOLS)),
    minute=st.integers(5, 500),
    is_quiet=st.booleans(),
)
def test_one_statement_counts_what_loops_count(
    stocked: tuple[str, Path], interval: Interval, symbols: list[Known], minute: int, *, is_quiet: bool
) -> None:
    url, home = stocked
    now = OPENS + timedelta(minutes=minute)
    if is_quiet:  # nobody has anything new, and is heard all the same: a provider that froze
        symbols = [one._replace(until=min(20, one.until), failures=0, answered_minutes_ago=0, share=1.0) for one in symbols]
    with at_time(url, home, now) as pipeline:
        grids = {each: Grid.of(pipeline.calendars("XNYS"), each, DAY, DAY) for each in (interval, Interval.M1)}
        ids = {i.symbol: i.symbol_id for i in pipeline.universe.instruments()}
        with transaction(pipeline.engine) as cursor:
            cursor.execute("delete from coverage")
            cursor.execute("delete from trading_density")
            for (name, _), one in zip(SYMBOLS, symbols, strict=True):
                for each, grid in grids.items():
                    if one.has_row:
                        write_ledger(cursor, each, [row_of(ids[name], each, grid, one, now)])
                if one.density is not None:
                    key = (interval.source or interval).seconds
                    cursor.execute("insert into trading_density values (%s, %s, %s, 20, now())", (ids[name], key, one.density))
        census = take_census(pipeline, intervals=(interval,))
    stamp = now.timestamp()
    ready = (grids[interval].ends_at + SETTLE).tolist()
    due_of = {tier: sum(deadline <= stamp for deadline in deadlines(interval, tier, ready)) for tier in Tier}
    everybody = []
    for (_, tier), one in zip(SYMBOLS, symbols, strict=True):
        if due_of[tier]:
            mine = slots_of(one, interval, len(ready)) if one.has_row else None
            everybody.append((tier, one, mine, slots_of(one, Interval.M1, 210) if one.has_row else None))
    expected = judged(everybody, interval, ready, due_of, stamp)
    lines = {line.tier: line for line in census.lines if any(s.tier is line.tier for s in expected)}
    for tier in {one.tier for one in expected}:
        of_tier = [one for one in expected if one.tier is tier]
        if not any(one.is_expected for one in of_tier):
            continue
        line = lines[tier]
        assert (line.symbols, line.stale, line.lost, line.due) == (
            sum(one.is_expected for one in of_tier),
            sum(one.stale for one in of_tier),
            sum(one.lost for one in of_tier),
            sum(one.due for one in of_tier),
        )
        everything = line.present + line.confirmed_empty + line.halted + line.missing + line.pending
        assert everything == len(ready) * len(of_tier)
        assert line.lost <= line.due
        assert line.stale <= line.symbols


def row_of(symbol_id: int, interval: Interval, grid: Grid, one: Known, now: datetime) -> LedgerRow:
    slots = slots_of(one, interval, len(grid.ends_at))
    ago = one.answered_minutes_ago
    return LedgerRow(
        symbol_id=symbol_id,
        interval=interval,
        session=DAY,
        opens_at=int(grid.opens_at[0]),
        closes_at=int(grid.closes_at[0]),
        present=slots.present,
        confirmed_empty=slots.confirmed,
        halted=slots.halted if slots.halted.any() else None,
        failures=one.failures,
        last_attempt_at=None if ago is None else now - timedelta(minutes=ago),
        known_at=now,
    )


def deadlines(interval: Interval, tier: Tier, ready: Sequence[float]) -> list[float]:
    """Of a tier that is swept: two lengths after it could be there, while a sweep still comes; else two hours after the close."""
    after_close = CLOSES.timestamp() + SETTLE + EOD
    if tier is Tier.T2 or interval.is_daily:
        return [after_close for _ in ready]
    live = [at + 2 * max(interval.seconds, CADENCE) for at in ready]
    swept = [at + CADENCE <= CLOSES.timestamp() + 180 for at in ready]
    return [at if is_swept else max(at, after_close) for at, is_swept in zip(live, swept, strict=True)]
