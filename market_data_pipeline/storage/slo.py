"""What the census found, added up over time: each bar counted once, by whomever it is looked at."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING

from psycopg2.extras import execute_values

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.slo import BUDGET, WINDOWS, Bars
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.storage.bulk import transaction
from market_data_pipeline.storage.freshness import count

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - a class that psycopg2 names like a function
    from sqlalchemy import Engine

    from market_data_pipeline.storage.freshness import AskedFreshness

Line = tuple[Tier, Interval]
Place = tuple[str, Interval, Tier, date]
"""A session of a calendar, as one tier and interval is judged in it."""

# How fine the past is kept, and for how long: the short windows are read from the first, the month from the second.
RESOLUTIONS = {300: timedelta(days=8), 3600: timedelta(days=40)}
_FINE, _COARSE = sorted(RESOLUTIONS)
# The 3d window is long enough for hours; the others would be a fifth too long or more.
_FINE_WINDOWS = tuple(name for name, window in WINDOWS.items() if window <= timedelta(hours=6))
# A session's last bar has to be there a day after it opened at the latest: nobody counts it later than this.
_PROGRESS_KEPT = timedelta(days=40)

# One at a time: who comes second finds counted what the first has counted. One bigint, as the universe's load has 7306001.
_LOCK = "select pg_advisory_xact_lock(7306008)"
_PROGRESS = "select calendar, interval_s, tier, session, counted from slo_progress where session >= %(since)s"
_ADVANCE = """
insert into slo_progress (calendar, interval_s, tier, session, counted) values %s
on conflict (calendar, interval_s, tier, session) do update set counted = greatest(slo_progress.counted, excluded.counted)
"""
_ADD = """
insert into slo_samples as s (tier, interval_s, resolution_s, at, looks, symbols, stale, due, late) values %s
on conflict (resolution_s, at, tier, interval_s) do update
   set looks = s.looks + excluded.looks, symbols = s.symbols + excluded.symbols, stale = s.stale + excluded.stale,
       due = s.due + excluded.due, late = s.late + excluded.late
"""
# A bucket counts as long as any of it lies in the window: the newest is only partly over, and so may the oldest be.
_SUMS = """
select w.name, s.tier, s.interval_s, sum(s.due)::int8, sum(s.late)::int8
  from unnest(%(names)s::text[], %(resolutions)s::int4[], %(since)s::timestamptz[]) as w (name, resolution_s, since)
  join slo_samples s on s.resolution_s = w.resolution_s and s.at > w.since and s.at <= %(now)s
 group by w.name, s.tier, s.interval_s
"""
_PRUNE = """
delete from slo_samples where resolution_s = %(resolution_s)s and at < %(before)s
"""
_PRUNE_PROGRESS = "delete from slo_progress where session < %(before)s"
BUDGET_WINDOW = "30d"


@dataclass(frozen=True, slots=True)
class Glance:
    """How many symbols of a tier and interval were looked at, and how many of them were stale."""

    symbols: int
    stale: int


class SloBook:
    """Remembers what was looked at, and adds it up. Instances may be shared by threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def record(
        self,
        glances: Mapping[Line, Glance],
        to_count: Callable[[Mapping[Place, int]], Sequence[AskedFreshness]],
        *,
        at: datetime,
    ) -> dict[Line, Bars]:
        """Add a look, and the bars whose time came since somebody last looked; what was added. One transaction.

        ``to_count`` is given how many bars of each session have been counted, and says which to count now.
        """
        with transaction(self._engine) as cursor:
            cursor.execute(_LOCK)
            asked = to_count(_progress(cursor, since=at.date() - timedelta(days=30)))
            counted = count(cursor, asked, now=at, most=0)
            added: dict[Line, Bars] = defaultdict(Bars)
            for one, counts in zip(asked, counted.sessions, strict=True):
                added[one.watched.tier, one.watched.interval] += Bars(counts.due, counts.lost)
            if asked:
                progress = [(w.calendar, w.interval.seconds, w.tier, w.session, one.due) for one in asked for w in [one.watched]]
                execute_values(cursor, _ADVANCE, progress)
            rows = []
            for line in sorted({*glances, *added}):
                glance, bars = glances.get(line, Glance(0, 0)), added.get(line, Bars())
                numbers = (1, glance.symbols, glance.stale, bars.due, bars.late)
                rows += [(line[0], line[1].seconds, resolution, _bucket(at, resolution), *numbers) for resolution in RESOLUTIONS]
            if rows:
                execute_values(cursor, _ADD, rows)
        return dict(added)

    def windows(self, *, now: datetime) -> dict[Line, dict[str, Bars]]:
        """The bars of each window, by its name; ``30d`` is the budget's. A window is longer by up to one sample."""
        spans = {name: (_FINE if name in _FINE_WINDOWS else _COARSE, span) for name, span in WINDOWS.items()}
        spans[BUDGET_WINDOW] = _COARSE, BUDGET
        parameters = {
            "names": list(spans),
            "resolutions": [resolution for resolution, _ in spans.values()],
            "since": [now - span - timedelta(seconds=resolution) for resolution, span in spans.values()],
            "now": now,
        }
        found: dict[Line, dict[str, Bars]] = defaultdict(dict)
        with transaction(self._engine) as cursor:
            cursor.execute(_SUMS, parameters)
            for name, tier, seconds, due, late in cursor.fetchall():
                found[Tier(tier), Interval.of_seconds(seconds)][name] = Bars(due, late)
        return dict(found)


def prune_samples(engine: Engine, now: datetime) -> int:
    """Delete what is older than it is worth; how many rows."""
    with transaction(engine) as cursor:
        deleted = 0
        for resolution, kept in RESOLUTIONS.items():
            cursor.execute(_PRUNE, {"resolution_s": resolution, "before": now - kept})
            deleted += cursor.rowcount
        cursor.execute(_PRUNE_PROGRESS, {"before": (now - _PROGRESS_KEPT).date()})
        return deleted + int(cursor.rowcount)


def _progress(cursor: Cursor, *, since: date) -> dict[Place, int]:
    cursor.execute(_PROGRESS, {"since": since})
    return {
        (calendar, Interval.of_seconds(seconds), Tier(tier), session): counted
        for calendar, seconds, tier, session, counted in cursor.fetchall()
    }


def _bucket(at: datetime, resolution: int) -> datetime:
    return at - timedelta(seconds=at.timestamp() % resolution)
