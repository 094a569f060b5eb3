"""Bars removed from a full store behind the pipeline's back, found by `mdp reconcile`, healed by the ledger's own plan, compared.

The clock is virtual but not long ago: deletions are known from the database's own clock, and what is learned afterwards must be
learned later than that.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import orjson

from market_data_pipeline.domain.candles import DERIVED_INTERVALS, FETCHED_INTERVALS, Interval
from market_data_pipeline.domain.capabilities import Lane
from market_data_pipeline.domain.coverage import Verdict
from market_data_pipeline.domain.errors import UnavailableError
from market_data_pipeline.ingest.candles import ingest_candles
from market_data_pipeline.ingest.coverage import coverage_report
from market_data_pipeline.ingest.derive import derive_candles
from market_data_pipeline.ingest.report import Stretch
from market_data_pipeline.simulator.client import running_simulator
from market_data_pipeline.simulator.ground import loaded, planned_next
from market_data_pipeline.simulator.sample import write_sample
from market_data_pipeline.storage.reconcile import audit
from market_data_pipeline.wiring import open_pipeline

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.settings import Settings
    from market_data_pipeline.simulator.client import RunningSimulator
    from market_data_pipeline.simulator.ground import ProvingGround

LIMITS = "yahoo=1000/s"
# The longest window of minutes that Yahoo answers at once.
DAYS_A_REQUEST = 8
# Shares of what is removed: bars anywhere, runs of neighbours, whole sessions, the first and last bars of sessions.
ANYWHERE, NEIGHBOURS, SESSIONS = 0.45, 0.25, 0.2
LONGEST_RUN = 60
# Of what is removed, for each interval: none is left out because it is small.
LEAST_SHARE = 0.01
MOST_ROUNDS = 50

Key = tuple[int, int, int]
"""symbol_id, interval_s, epoch seconds of opened_at (1d: of the date)."""


@dataclass(frozen=True, slots=True)
class Removal:
    """What became of the removed bars.

    Counts are by interval. ``requests``: of healing, of asking everything again, and of one a symbol and span.
    """

    seed: int
    stored: Mapping[str, int]
    removed: Mapping[str, int]
    found: Mapping[str, int]
    derived_again: int
    healed: int
    rounds: int
    requests: int
    requests_everything: int
    requests_by_span: int
    complaints: Sequence[str]

    @property
    def total(self) -> int:
        """Bars removed."""
        return sum(self.removed.values())


def remove_and_heal(place: ProvingGround, *, seed: int, symbols: int, sessions: int, removed: int) -> Removal:
    """Fill a store through the real path, remove ``removed`` random bars by plain SQL, and bring them back."""
    now = datetime.now(UTC).replace(microsecond=0)
    # The store is filled two days later: the sample's next-day corrections are in, and nothing changes any more by itself.
    last = now.date() - timedelta(days=6)
    first = last - timedelta(days=sessions * 7 // 5)
    data = place.home / f"removal-{seed}"
    write_sample(data, seed=seed, symbols=symbols, start=first, end=last)
    with (
        place.database() as url,
        running_simulator(data=data, now=now - timedelta(days=3), seed=seed, limits=LIMITS) as simulator,
    ):
        settings = place.settings(url, simulator, policy_bars_1m="yahoo", policy_eod="yahoo", limits=LIMITS)
        with open_pipeline(settings) as pipeline:
            instruments = loaded(pipeline, data / "universe.csv", tag="removal")
            trial = _Trial(pipeline, simulator, settings, instruments, first, last)
            return trial.hold(seed=seed, removed=removed)


class _Trial:
    def __init__(
        self,
        pipeline: Pipeline,
        simulator: RunningSimulator,
        settings: Settings,
        instruments: Sequence[Instrument],
        first: date,
        last: date,
    ) -> None:
        self._pipeline, self._simulator, self._settings = pipeline, simulator, settings
        self._instruments, self._first, self._last = instruments, first, last
        self._complaints: list[str] = []

    def hold(self, *, seed: int, removed: int) -> Removal:
        self._fill()
        before = self._rows()
        revisions_before = self._revisions()
        chosen = choose(sorted(before), count=removed, seed=seed)
        self._delete(chosen)
        # What is learned from here on is learned after the deletions, whose time is the database's.
        self._simulator.set_now(datetime.now(UTC) + timedelta(minutes=1))
        found, derived = self._reconcile()
        self._simulator.forget_requests()
        rounds = self._heal()
        requests = len(self._simulator.requests())
        after = self._rows()
        self._compare(before, after, set(chosen), revisions_before)
        self._simulator.forget_requests()
        revised = self._revisions()
        self._ask_everything_again()
        if self._revisions() != revised:
            self._complaints.append("asking everything again changed something")
        by_interval = Counter(str(Interval.of_seconds(interval_s)) for _, interval_s, _ in chosen)
        if dict(found) != dict(by_interval):
            self._complaints.append(f"removed {dict(by_interval)}, found {dict(found)}")
        return Removal(
            seed=seed,
            stored=_in_order(Counter(str(Interval.of_seconds(interval_s)) for _, interval_s, _ in before)),
            removed=_in_order(by_interval),
            found=_in_order(found),
            derived_again=derived,
            healed=len(set(chosen) & after.keys()),
            rounds=rounds,
            requests=requests,
            requests_everything=len(self._simulator.requests()),
            requests_by_span=self._least(chosen),
            complaints=self._complaints,
        )

    # --- the real path -------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        everything = [Stretch(i, self._first, self._last) for i in self._instruments]
        self._bring(dict.fromkeys(FETCHED_INTERVALS, everything))
        self._heal()

    def _bring(self, stretches: Mapping[Interval, Sequence[Stretch]], *, refetch: bool = False) -> None:
        for interval, asked in stretches.items():
            for _ in ingest_candles(asked, interval, pipeline=self._pipeline, refetch=refetch, lane=Lane.HEALING):
                pass
        for interval in DERIVED_INTERVALS:
            for _ in derive_candles(stretches.get(Interval.M1, ()), interval, pipeline=self._pipeline):
                pass

    def _heal(self) -> int:
        """By the ledger's plan, until it plans nothing more; how many rounds that took."""
        by_id = {instrument.symbol_id: instrument for instrument in self._instruments}
        for rounds in range(MOST_ROUNDS):
            planned = planned_next(self._pipeline)
            if planned is None:
                return rounds
            self._simulator.set_now(max(planned + timedelta(seconds=1), self._simulator.now()))
            stretches: dict[Interval, list[Stretch]] = {}
            for gap in self._pipeline.ledger.due_gaps(
                self._pipeline.clock.now(),
                limit=100_000,
                settle_seconds=self._settings.settle_seconds,
                intervals=FETCHED_INTERVALS,
                reach_seconds=self._pipeline.reaches(FETCHED_INTERVALS),
            ):
                stretches.setdefault(gap.interval, []).append(Stretch(by_id[gap.symbol_id], gap.first, gap.last))
            self._bring(stretches)
        self._complaints.append(f"after {MOST_ROUNDS} rounds attempts are still planned")
        return MOST_ROUNDS

    def _ask_everything_again(self) -> None:
        """What somebody would do who does not know what is lost."""
        everything = [Stretch(i, self._first, self._last) for i in self._instruments]
        self._bring(dict.fromkeys(FETCHED_INTERVALS, everything), refetch=True)

    def _reconcile(self) -> tuple[Counter[str], int]:
        """`mdp reconcile --repair`, the command itself: lost bars by interval, and how many were derived again at once."""
        told = {name: value for name, value in os.environ.items() if not name.startswith("MDP_")}
        told |= self._simulator.environment()
        url = self._settings.database_url
        told |= {
            "MDP_HOME": str(self._settings.home),
            "MDP_DATABASE_URL": url.get_secret_value() if url is not None else "",
            "MDP_POLICY_BARS_1M": "yahoo",
            "MDP_POLICY_EOD": "yahoo",
            # Nobody answers there: Dagster is not part of this.
            "MDP_DAGSTER_URL": "http://127.0.0.1:9",
        }
        command = [sys.executable, "-m", "market_data_pipeline.cli.main", "reconcile", "--repair", "--json"]
        done = subprocess.run(command, env=told, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise UnavailableError(f"mdp reconcile ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        answer = orjson.loads(done.stdout)
        found: Counter[str] = Counter()
        for one in answer["discrepancies"]:
            if one["kind"] == "lost_bars":
                found[one["interval"]] += one["bars"]
            else:
                self._complaints.append(f"reconcile found {one['kind']} in {one['symbol']} {one['interval']} {one['session']}")
        return found, int(answer["derived_again"])

    # --- what is stored ------------------------------------------------------------------------------------------------

    def _rows(self) -> dict[Key, tuple[object, ...]]:
        """Every stored bar with all of its columns: equal tuples are equal rows, to the last bit of a number."""
        with self._pipeline.engine.connect() as connection:
            return {(row[0], row[1], row[2]): tuple(row[3:]) for row in connection.exec_driver_sql(_ROWS)}

    def _revisions(self) -> Counter[Key]:
        with self._pipeline.engine.connect() as connection:
            return Counter((row[0], row[1], row[2]) for row in connection.exec_driver_sql(_REVISIONS))

    def _delete(self, chosen: Sequence[Key]) -> None:
        for statement, mine in (
            (_DELETE_INTRADAY, [key for key in chosen if key[1] < 86_400]),
            (_DELETE_DAILY, [key for key in chosen if key[1] == 86_400]),
        ):
            symbol_ids, intervals, opened_at = ([key[place] for key in mine] for place in range(3))
            with self._pipeline.engine.begin() as connection:
                gone = connection.exec_driver_sql(statement, {"s": symbol_ids, "i": intervals, "o": opened_at}).rowcount
            if gone != len(mine):
                raise UnavailableError(f"{len(mine)} bars were to be deleted, {gone} were")

    def _compare(
        self,
        before: Mapping[Key, tuple[object, ...]],
        after: Mapping[Key, tuple[object, ...]],
        chosen: set[Key],
        earlier: Counter[Key],
    ) -> None:
        """The removed bars are back with their values as new knowledge, their deletion is a revision, and all else is as it was."""
        complain = self._complaints.append
        if missing := before.keys() - after.keys():
            complain(f"{len(missing):,} bars did not come back, such as {min(missing)}")
        if extra := after.keys() - before.keys():
            complain(f"{len(extra):,} bars are stored that were not before")
        touched = [key for key in before.keys() - chosen if key in after and before[key] != after[key]]
        if touched:
            complain(f"{len(touched):,} bars that nobody removed are other rows now, such as {min(touched)}")
        back = [key for key in chosen if key in after]
        if changed := [key for key in back if before[key][:_VALUES] != after[key][:_VALUES]]:
            complain(f"{len(changed):,} bars came back with other values, such as {min(changed)}")
        if old := [key for key in back if not _known_at(after[key]) > _known_at(before[key])]:
            complain(f"{len(old):,} bars came back as if they had been known all along, such as {min(old)}")
        added = self._revisions() - earlier
        if added != Counter(chosen):
            complain(
                f"{added.total():,} revisions were written for {len(chosen):,} deletions, {len(added.keys() - chosen):,} of others"
            )
        lines = coverage_report(self._instruments, FETCHED_INTERVALS, self._first, self._last, pipeline=self._pipeline)
        if left := sum(line.counts[Verdict.MISSING] for line in lines):
            complain(f"{left:,} bars are still called missing")
        if wrong := self._discrepancies():
            complain(f"ledger and bars disagree in {wrong:,} sessions")

    def _discrepancies(self) -> int:
        count = 0
        for calendar_name in sorted({instrument.calendar for instrument in self._instruments}):
            calendar = self._pipeline.calendars(calendar_name)
            symbol_ids = [i.symbol_id for i in self._instruments if i.calendar == calendar_name]
            for interval in Interval:
                bounds = calendar.bounds(self._first, self._last)
                expected = calendar.expected_opens(interval, self._first, self._last)
                count += sum(1 for _ in audit(self._pipeline.engine, symbol_ids, interval, bounds=bounds, expected=expected))
        return count

    def _least(self, chosen: Sequence[Key]) -> int:
        """One request for each symbol, fetched interval and longest window in which something must be asked for.

        Lost bars of derived intervals need no request of their own.
        """
        start = int(datetime.combine(self._first, datetime.min.time(), UTC).timestamp())
        fetched = {interval.seconds for interval in FETCHED_INTERVALS}
        spans: set[tuple[int, int, int]] = set()
        for symbol_id, interval_s, opened_at in chosen:
            if interval_s in fetched:
                window = (opened_at - start) // (DAYS_A_REQUEST * 86_400) if interval_s == 60 else 0
                spans.add((symbol_id, interval_s, window))
        return len(spans)


# The first are the values, and behind them what says where they came from and when.
_VALUES = 7
_ROWS = """
select symbol_id, interval_s, extract(epoch from opened_at)::int8, open, high, low, close, volume, vwap, trades,
       fetch_id, provider, feed, finality, flags, as_of
  from candles_intraday
union all
select symbol_id, 86400, extract(epoch from session_date)::int8, open, high, low, close, volume, vwap, trades,
       fetch_id, provider, feed, finality, flags, as_of
  from candles_daily
"""
_REVISIONS = "select symbol_id, interval_s, extract(epoch from opened_at)::int8 from candle_revisions"
_KEYS = "unnest(%(s)s::int4[], %(i)s::int4[], %(o)s::int8[]) as k (symbol_id, interval_s, opened_at)"
_DELETE_INTRADAY = f"""
delete from candles_intraday c using {_KEYS}
 where c.symbol_id = k.symbol_id and c.interval_s = k.interval_s and c.opened_at = to_timestamp(k.opened_at)
"""  # noqa: S608 - constants above
_DELETE_DAILY = f"""
delete from candles_daily c using {_KEYS}
 where c.symbol_id = k.symbol_id and k.interval_s = 86400 and c.session_date = (to_timestamp(k.opened_at) at time zone 'UTC')::date
"""  # noqa: S608 - constants above


def _known_at(row: tuple[object, ...]) -> datetime:
    known = row[-1]
    if not isinstance(known, datetime):
        raise TypeError(f"{known!r}: expected the time at which a bar was known")
    return known


def _in_order(counts: Mapping[str, int]) -> dict[str, int]:
    return {interval.value: counts[interval.value] for interval in Interval if interval.value in counts}


def choose(keys: Sequence[Key], *, count: int, seed: int) -> list[Key]:
    """``count`` of the sorted ``keys``, of all intervals: single bars, runs of neighbours, whole sessions and their edges.

    Every interval gives at least one in a hundred of them, where it has as many.
    """
    chance = np.random.default_rng(seed)
    table = np.array(keys, np.int64)
    chosen: set[int] = set()
    intervals = np.unique(table[:, 1])
    for interval_s in intervals.tolist():
        mine = np.flatnonzero(table[:, 1] == interval_s)
        share = max(int(count * len(mine) / len(table)), int(count * LEAST_SHARE))
        chosen |= set(_some(table, mine, min(share, len(mine) // 2), chance))
    rest = np.array(sorted(set(range(len(table))) - chosen))
    if len(chosen) < count:
        chosen |= set(chance.choice(rest, count - len(chosen), replace=False).tolist())
    picked = sorted(chosen)
    if len(picked) > count:
        picked = sorted(chance.choice(picked, count, replace=False).tolist())
    return [keys[place] for place in picked]


def _some(table: np.ndarray, mine: np.ndarray, count: int, chance: np.random.Generator) -> list[int]:
    """``count`` places of one interval, in each of the ways in which bars get lost."""
    found: dict[int, None] = {}
    series, days = table[mine, 0], table[mine, 2] // 86_400
    begins = np.flatnonzero((np.diff(series, prepend=-1) != 0) | (np.diff(days, prepend=-1) != 0))
    ends = np.append(begins[1:], len(mine)) - 1
    for place in chance.permutation(len(begins)).tolist():
        if len(found) >= count * SESSIONS:
            break
        found |= dict.fromkeys(mine[begins[place] : ends[place] + 1].tolist())
    while len(found) < count * (SESSIONS + NEIGHBOURS):
        at = int(chance.integers(len(mine)))
        found |= dict.fromkeys(mine[at : at + int(chance.integers(2, LONGEST_RUN))].tolist())
    edges = np.concatenate([begins, ends])
    for place in chance.permutation(edges).tolist():
        if len(found) >= count * (1 - ANYWHERE):
            break
        found[int(mine[place])] = None
    for place in chance.permutation(mine).tolist():
        if len(found) >= count:
            break
        found[place] = None
    return list(found)[:count]
