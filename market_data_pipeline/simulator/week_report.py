"""What came of a simulated week: what was lost, how soon it was known and healed, what that cost, and whether everything holds.

What should be there is read from the data directory and the facts of the week, as the simulated providers know them: never from
what the pipeline stored or believes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.candles import FETCHED_INTERVALS, Interval
from market_data_pipeline.domain.coverage import VERDICTS, Verdict
from market_data_pipeline.domain.finality import Finality
from market_data_pipeline.ingest.coverage import codes_of, masks_of, rows_by_symbol
from market_data_pipeline.ingest.grid import Grid
from market_data_pipeline.simulator.clock import microseconds
from market_data_pipeline.simulator.market import Market
from market_data_pipeline.simulator.week import AFTER_CLOSE, digest_as_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import date

    from market_data_pipeline.domain.candles import Bools, Int64s
    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.simulator.market import Bars
    from market_data_pipeline.simulator.week import Lived, Look, WeekPlan
    from market_data_pipeline.simulator.week_market import Facts

LATE_PRINT, OUTAGE, AFTERMATH = "late print", "outage", "provider resting"
# Lines of each kind of complaint: the first few say what is wrong.
MOST_LINES = 10


@dataclass(frozen=True, slots=True)
class Loss:
    """Bars that did not come when they were first asked for, by cause.

    In seconds of the virtual clock, one number a bar: ``detected``: from the instant at which somebody was meant to look, until
    somebody had; ``healed``: from there until it was stored. ``by``: the kind of run that brought them.
    """

    cause: str
    detected: Sequence[int]
    healed: Sequence[int]
    by: Mapping[str, int]
    never: int = 0

    @property
    def bars(self) -> int:
        """How many."""
        return len(self.detected)


@dataclass(frozen=True, slots=True)
class WeekReport:
    """A week in numbers.

    ``verdicts``: fetched bars by (what they deserve, what the ledger says); ``finality``: sessions by (interval, finality).
    """

    plan: WeekPlan
    faulty: bool
    ticks: int
    virtual: timedelta
    requests: Mapping[str, int]
    providers: Mapping[str, int]
    faults: Mapping[str, int]
    losses: Sequence[Loss]
    verdicts: Mapping[tuple[str, str], int]
    finality: Mapping[tuple[str, str], int]
    revisions: Mapping[str, int]
    evidence: Mapping[str, int]
    as_of_reads: int
    complaints: Sequence[str]
    seconds: float = field(compare=False)

    @property
    def sent(self) -> int:
        """All requests."""
        return sum(self.requests.values())

    @property
    def lost(self) -> int:
        """Bars that did not come when they were first asked for."""
        return sum(loss.bars for loss in self.losses)

    @property
    def passed(self) -> bool:
        """Everything holds."""
        return not self.complaints


def report_of(lived: Lived) -> WeekReport:
    """Measure and judge a week that is over."""
    judge = _Judge(lived)
    losses = judge.losses()
    complaints = [
        *judge.verdict_complaints(),
        *judge.value_complaints(),
        *judge.as_of_complaints(),
        *judge.rest_complaints(),
        *judge.finality_complaints(),
    ]
    diary = lived.diary
    causes: Counter[str] = Counter()
    providers: Counter[str] = Counter()
    for (cause, provider), count in diary.requests.items():
        causes[cause] += count
        providers[provider] += count
    return WeekReport(
        plan=lived.plan,
        faulty=lived.faulty,
        ticks=diary.ticks,
        virtual=(diary.ended_at or lived.facts.ends_at) - lived.facts.begins_at,
        requests=dict(sorted(causes.items())),
        providers=dict(sorted(providers.items())),
        faults=dict(sorted(diary.faults.items())),
        losses=losses,
        verdicts=dict(sorted(judge.verdicts.items())),
        finality=judge.finality(),
        revisions=judge.counted(_REVISIONS),
        evidence=judge.counted(_EVIDENCE),
        as_of_reads=len(diary.as_of),
        complaints=complaints,
        seconds=lived.seconds,
    )


_REVISIONS = "select interval_s::text, count(*) from candle_revisions group by 1 order by 1"
_EVIDENCE = "select verdict || ' by ' || rung, sum(bit_count(slots))::int8 from verdict_evidence group by 1 order by 1"
_FINALITY = "select interval_s, finality, count(*) from coverage group by 1, 2 order by 1, 2"
# When each bar was known first, and the kind of run that brought it.
_FIRST_KNOWN = """
select distinct on (b.symbol_id, b.interval_s, opened_at) b.symbol_id, b.interval_s, extract(epoch from opened_at)::int8,
       extract(epoch from known)::int8, f.run_id
  from (select symbol_id, interval_s, opened_at, as_of as known, fetch_id from candles_intraday where interval_s in (60, 3600)
        union all
        select symbol_id, 86400, session_date::timestamp at time zone 'UTC', as_of, fetch_id from candles_daily
        union all
        select symbol_id, interval_s, opened_at, known_from, fetch_id from candle_revisions where interval_s in (60, 3600, 86400)) b
  join fetches f using (fetch_id)
 order by b.symbol_id, b.interval_s, opened_at, known
"""


@dataclass(frozen=True, slots=True, eq=False)
class _Series:
    """One symbol and interval of the week: the grid, which bars really exist on it, and their values in the end."""

    instrument: Instrument
    interval: Interval
    grid: Grid
    exists: Bools
    bars: Bars
    truth: list[Verdict]

    @property
    def days(self) -> Int64s:
        """The session of each bar."""
        return np.repeat(self.grid.days, self.grid.lengths)


class _Judge:
    def __init__(self, lived: Lived) -> None:
        self._lived, self._facts, self._pipeline = lived, lived.facts, lived.pipeline
        self._market = Market(lived.data)
        self._end = lived.diary.ended_at or lived.facts.ends_at
        self._series = list(self._all_series())
        self.verdicts: Counter[tuple[str, str]] = Counter()
        self._over = lived.over_limit

    def counted(self, statement: str) -> dict[str, int]:
        """The rows of a statement that selects a name and a count."""
        with self._pipeline.engine.connect() as connection:
            return {name: int(count) for name, count in connection.exec_driver_sql(statement)}

    # --- what is true --------------------------------------------------------------------------------------------------

    def _all_series(self) -> Iterator[_Series]:
        now_us = microseconds(self._end)
        for interval in Interval:
            grids: dict[str, Grid] = {}
            for instrument in self._lived.instruments:
                name = instrument.calendar
                if name not in grids:
                    grids[name] = Grid.of(self._pipeline.calendars(name), interval, self._facts.first, self._facts.until)
                grid = grids[name]
                bars = self._market.seen(instrument.symbol, interval.value, now_us).finished
                bars = bars.take(bars.regular & np.isin(bars.opened_at, grid.starts_at))
                exists = np.isin(grid.starts_at, bars.opened_at)
                yield _Series(instrument, interval, grid, exists, bars, self._truth(instrument, grid, exists))

    def _truth(self, instrument: Instrument, grid: Grid, exists: Bools) -> list[Verdict]:
        """The verdict that each bar deserves."""
        halt = self._facts.halts.get(instrument.symbol)
        verdicts = []
        sessions = np.repeat(np.arange(len(grid)), grid.lengths)
        for place, start, end, is_there in zip(sessions, grid.starts_at, grid.ends_at, exists, strict=True):
            session = grid.sessions[place]
            if is_there:
                verdicts.append(Verdict.PRESENT)
            elif not _was_listed(self._facts, instrument.symbol, session):
                verdicts.append(Verdict.NOT_LISTED)
            elif halt is not None and start < halt[1].timestamp() and end > halt[0].timestamp():
                verdicts.append(Verdict.HALTED)
            else:
                verdicts.append(Verdict.CONFIRMED_EMPTY)
        return verdicts

    # --- does it hold --------------------------------------------------------------------------------------------------

    def verdict_complaints(self) -> list[str]:
        """Bars whose verdict is not the one that they deserve; the counts go to ``verdicts``."""
        wrong: dict[tuple[str, str, str, str], int] = Counter()
        symbol_ids = [instrument.symbol_id for instrument in self._lived.instruments]
        now = int(self._end.timestamp())
        instruments = {i.symbol: i for i in self._pipeline.universe.instruments()}
        for interval in Interval:
            rows = rows_by_symbol(self._pipeline.ledger.rows(symbol_ids, interval, self._facts.first, self._facts.until))
            for series in (one for one in self._series if one.interval is interval):
                # As the universe knows it now: evidence of its listing may have come since.
                instrument = instruments.get(series.instrument.symbol, series.instrument)
                masks = masks_of(series.grid, rows.get(instrument.symbol_id, []))
                codes = codes_of(self._pipeline, instrument, interval, series.grid, masks, now=now)
                for deserved, code in zip(series.truth, codes.tolist(), strict=True):
                    said = VERDICTS[code]
                    if interval in FETCHED_INTERVALS:
                        self.verdicts[str(deserved), str(said)] += 1
                    if said is not deserved:
                        wrong[instrument.symbol, str(interval), str(deserved), str(said)] += 1
        return _first_few(
            f"{symbol} {interval}: {count:,} bars are {said} and deserve {deserved}"
            for (symbol, interval, deserved, said), count in sorted(wrong.items())
        )

    def value_complaints(self) -> list[str]:
        """Stored bars whose values are not those that the providers serve in the end."""
        lines = []
        for series in self._series:
            start, end = int(series.grid.opened_at[0]), int(series.grid.opened_at[-1]) + 1
            stored = self._pipeline.reader.read([series.instrument.symbol_id], series.interval, start, end).columns
            opened_at = series.grid.starts_at[np.isin(series.grid.opened_at, stored.opened_at)]
            common, ours, theirs = np.intersect1d(opened_at, series.bars.opened_at, return_indices=True)
            differ = np.zeros(len(common), bool)
            for row, name in enumerate(("open", "high", "low", "close", "volume")):
                mine = getattr(stored, name)[ours].astype(np.float32)
                differ |= ~np.isclose(mine, series.bars.ohlcv[row, theirs].astype(np.float32), rtol=1e-6, atol=1e-6)
            extra = len(opened_at) - len(common)
            if differ.any():
                first = datetime.fromtimestamp(int(common[differ][0]), UTC).isoformat()
                lines.append(
                    f"{series.instrument.symbol} {series.interval}: {differ.sum():,} bars differ in value, the first at {first}"
                )
            if extra:
                lines.append(f"{series.instrument.symbol} {series.interval}: {extra:,} bars are stored that no provider has")
        return _first_few(lines)

    def as_of_complaints(self) -> list[str]:
        """Reads as of an earlier instant that answer otherwise now."""
        changed = [
            f"a read as of {then.at.isoformat()} answers otherwise than it did then"
            for then in self._lived.diary.as_of
            if digest_as_of(self._pipeline, self._lived.instruments, self._facts, then.at) != then.digest
        ]
        return _first_few(changed)

    def rest_complaints(self) -> list[str]:
        """What is still planned, and limits that were exceeded."""
        lines = [] if self._lived.diary.is_at_rest else ["weeks later, attempts or rechecks are still planned"]
        return lines + ([f"{self._over:,} requests exceeded a limit"] if self._over else [])

    def finality(self) -> dict[tuple[str, str], int]:
        """Sessions by interval and finality."""
        with self._pipeline.engine.connect() as connection:
            rows = connection.exec_driver_sql(_FINALITY).all()
        return {(str(Interval.of_seconds(interval_s)), Finality(level).name.lower()): count for interval_s, level, count in rows}

    def finality_complaints(self) -> list[str]:
        """Sessions with bars that never became final."""
        with self._pipeline.engine.connect() as connection:
            rows = connection.exec_driver_sql(_NOT_FINAL).all()
        return _first_few(
            f"{symbol} {Interval.of_seconds(interval_s)} {session}: is {Finality(level).name.lower()}, not final"
            for symbol, interval_s, session, level in rows
            # Whoever would make it final knows the symbol no more.
            if symbol not in self._facts.delisted
        )

    # --- what was lost -------------------------------------------------------------------------------------------------

    def losses(self) -> list[Loss]:
        """Bars of the fetched intervals that were absent after the first look that could have brought them."""
        with self._pipeline.engine.connect() as connection:
            known = {(s, i, o): (k, run) for s, i, o, k, run in connection.exec_driver_sql(_FIRST_KNOWN)}
        found: dict[str, list[tuple[int, int | None, str]]] = defaultdict(list)
        for series in self._series:
            if series.interval not in FETCHED_INTERVALS:
                continue
            for cause, detected, healed, by in self._lost_of(series, known):
                found[cause].append((detected, healed, by))
        return [
            Loss(
                cause,
                [detected for detected, _, _ in bars],
                [healed for _, healed, _ in bars if healed is not None],
                dict(sorted(Counter(by for _, healed, by in bars if healed is not None).items())),
                sum(healed is None for _, healed, _ in bars),
            )
            for cause, bars in sorted(found.items())
        ]

    def _lost_of(
        self, series: _Series, known: Mapping[tuple[int, int, int], tuple[int, str]]
    ) -> Iterator[tuple[str, int, int | None, str]]:
        looks = self._lived.diary.looks.get((series.instrument.symbol_id, series.interval), [])
        settle = self._pipeline.settle_seconds(series.interval)
        closes = np.repeat(series.grid.closes_at, series.grid.lengths)
        swept = series.interval is Interval.M1 and series.instrument.tier != "T2"
        first_looks = _FirstLooks(looks)
        sessions = np.repeat(np.arange(len(series.grid)), series.grid.lengths)
        for place in np.flatnonzero(series.exists).tolist():
            due = int(series.grid.ends_at[place]) + settle
            # What is not swept is first looked at after the close, which is when it is meant to be.
            meant = due if swept else max(due, int(closes[place]) + int(AFTER_CLOSE.total_seconds()))
            look = first_looks.after(meant, series.grid.sessions[sessions[place]])
            if look is None:
                continue
            opened_at = int(series.grid.opened_at[place])
            at, by = known.get((series.instrument.symbol_id, series.interval.seconds, opened_at), (None, ""))
            if at is not None and at <= look:
                continue
            cause = self._cause(series, int(series.grid.starts_at[place]), look)
            yield cause, look - meant, None if at is None else at - meant, by

    def _cause(self, series: _Series, starts_at: int, look: int) -> str:
        """Why a bar did not come at that look."""
        symbol, at = series.instrument.symbol, datetime.fromtimestamp(look, UTC)
        if not np.isin(starts_at, self._market.seen(symbol, series.interval.value, look * 1_000_000).finished.opened_at):
            return LATE_PRINT
        capability = "eod" if series.interval.is_daily else f"bars_{series.interval.value}"
        start, end = self._facts.outage
        struck = self._lived.diary.struck.get((symbol, capability, at))
        # Of the bars lost in the outage most were never asked for: its first failures open the breaker.
        if struck in {"status 503", None} and start <= at < end:
            return OUTAGE
        return AFTERMATH if struck is None else struck


_NOT_FINAL = """
select u.symbol, c.interval_s, c.session, c.finality from coverage c join symbol_universe u using (symbol_id)
 where c.finality < 2 and bit_count(c.present) > 0 order by 1, 2, 3
"""


class _FirstLooks:
    """The looks at one series, by session, in order of time."""

    def __init__(self, looks: Sequence[Look]) -> None:
        self._looks = looks
        self._by_session: dict[date, Int64s] = {}

    def after(self, instant: int, session: date) -> int | None:
        """The first look at ``session`` at ``instant`` or later; None where there was none."""
        if session not in self._by_session:
            at = [int(look.at.timestamp()) for look in self._looks if look.first <= session <= look.last]
            self._by_session[session] = np.array(sorted(set(at)), np.int64)
        stamps = self._by_session[session]
        place = int(np.searchsorted(stamps, instant))
        return int(stamps[place]) if place < len(stamps) else None


def _was_listed(facts: Facts, symbol: str, session: date) -> bool:
    if symbol in facts.unknown:
        return False
    return facts.listed.get(symbol, session) <= session <= facts.delisted.get(symbol, session)


def _first_few(lines: Iterator[str] | Sequence[str]) -> list[str]:
    all_lines = list(lines)
    more = len(all_lines) - MOST_LINES
    return all_lines if more <= 0 else [*all_lines[:MOST_LINES], f"and {more:,} more like it"]
