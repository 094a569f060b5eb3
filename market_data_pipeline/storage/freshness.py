"""The census: every followed symbol counted against the bars that had to be there, in one statement over the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.evidence import LIQUID
from market_data_pipeline.domain.freshness import SILENT_BY_CHANCE
from market_data_pipeline.storage.bulk import transaction

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date

    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - a class that psycopg2 names like a function
    from sqlalchemy import Engine

    from market_data_pipeline.domain.freshness import WatchedSession

# Fewer than this that are silent at once are no pattern: their provider may just have nothing of them.
_LEAST_FROZEN = 2
# A symbol's density is that of its last finished sessions.
DENSITY_SESSIONS = 20
# All facts of 8,000 symbols in six intervals stay in memory.
_WORK_MEMORY = "64MB"

# ``sessions``: what is judged, and of which bars: the first ``due`` slots of a session, those from ``counted`` on for the sums.
# ``wanted``: how many symbols should be in each. ``found``: those with a row, counted on the way past one range of an index for
# each interval and session; and the slots of those who lack something: everybody else needs no second look. ``newest``: the slot
# after the last one with a verdict, wherever it is: a bar that came before it had to makes a symbol fresh. Bit strings become text
# only where the last bar due is not there. ``unheard``: who should have a row and has none, looked for only where rows are short.
# ``troubled``: who lacks something. Derived bars are judged by their minutes: nobody is ever asked for them.
# ``judged``: is_unheard: nobody has answered since the last bar due could be asked for. is_chance: its own silence explains it.
# ``frozen``: where the liquid that are stale outnumber all who are not, silence says nothing of anybody.
# Offset 0 and the settings in ``count`` hold the plan: a scan a session, then hashes, whatever the planner thinks of the arrays.
_CENSUS = """
with sessions as materialized (
  select * from unnest(%(places)s::int4[], %(kinds)s::int4[], %(calendars)s::text[], %(intervals)s::int4[], %(tiers)s::text[],
                       %(sessions)s::date[], %(due)s::int4[], %(ready)s::int4[], %(counted)s::int4[], %(expected)s::int4[],
                       %(heard_by)s::timestamptz[], %(last_opens)s::timestamptz[], %(last_ends)s::timestamptz[],
                       %(followed_by)s::timestamptz[], %(stales)s::bool[], %(minutes)s::int4[], %(minutes_counted)s::int4[],
                       %(minutes_due)s::int4[], %(asked_seconds)s::int4[])
      as s (place, kind, calendar, interval_s, tier, session, due, ready, counted, expected, heard_by, last_opens, last_ends,
            followed_by, can_be_stale, minutes, minutes_counted, minutes_due, asked_s)
),
newcomers as materialized (
  select t.symbol_id, max(v.loaded_at) as loaded_at
    from universe_versions v join symbol_tiers t using (version_id)
   where v.loaded_at <= %(now)s and v.loaded_at > %(newcomers_since)s
   group by t.symbol_id
),
followed as materialized (
  select u.symbol_id, k.kind, coalesce(n.loaded_at, '-infinity') as loaded_at,
         greatest(coalesce(u.active_from, '-infinity'), coalesce(u.listed_from, '-infinity')) as first,
         least(coalesce(u.active_to, 'infinity'), coalesce(u.listed_to, 'infinity')) as last
    from symbol_universe u
    join (select distinct calendar, tier, kind from sessions) as k using (calendar, tier)
    left join newcomers n using (symbol_id)
   where u.active and not u.is_unknown
),
wanted as materialized (
  select s.place, sum(u.symbols) as symbols
    from (select kind, first, last, loaded_at, count(*) as symbols from followed group by kind, first, last, loaded_at) as u
    join sessions s on s.kind = u.kind and s.session between u.first and u.last and u.loaded_at <= s.followed_by
   group by s.place
),
found as materialized (
  select place, count(*) as rows, count(*) filter (where present_due + open > 0) as symbols, sum(present_due) as present_due,
         sum(bars) as present, sum(confirmed_empty) as confirmed_empty, sum(halted) as halted, sum(pending) as pending,
         array_agg(symbol_id) filter (where open > 0 or newest < due) as lacking,
         array_agg(open) filter (where open > 0 or newest < due) as opens,
         array_agg(newest) filter (where open > 0 or newest < due) as newests
    from (select s.place, s.due, c.symbol_id, c.bars, c.expected - c.bars - c.absent - c.halted as confirmed_empty, c.halted,
                 case when c.absent = 0 or s.ready >= c.expected then 0
                      else greatest(s.expected - s.ready - bit_count(substring(c.resolved from s.ready + 1))::int4, 0)
                 end as pending,
                 case when c.absent = 0 then 0
                      else s.due - s.counted - bit_count(substring(c.resolved from s.counted + 1 for s.due - s.counted))::int4
                 end as open,
                 case when c.absent = 0 or s.due > c.expected or get_bit(c.resolved, s.due - 1) = 1 then s.due
                      else length(rtrim(c.resolved::text, '0')) end as newest,
                 case when c.bars = c.expected then s.due - s.counted when s.counted = 0 and s.due >= c.expected then c.bars
                      else bit_count(substring(c.present from s.counted + 1 for s.due - s.counted))::int4 end as present_due
            from (select distinct interval_s, session from sessions) as p
           cross join lateral (
             select symbol_id, interval_s, session, expected, absent, present, bit_count(present)::int4 as bars,
                    coalesce(bit_count(halted), 0)::int4 as halted,
                    case when absent > 0 then present | confirmed_empty | coalesce(halted, confirmed_empty) end as resolved
               from coverage where session = p.session and interval_s = p.interval_s offset 0) as c
            join followed u on u.symbol_id = c.symbol_id
            join sessions s on s.kind = u.kind and s.interval_s = c.interval_s and s.session = c.session
           where c.session between u.first and u.last and u.loaded_at <= s.followed_by
          offset 0) as k
   group by place
),
short as materialized (
  select s.* from wanted w left join found f using (place) join sessions s using (place) where w.symbols > coalesce(f.rows, 0)
),
unheard as materialized (
  select s.place, u.symbol_id, s.due - s.counted as open, 0 as newest
    from short s
    join followed u on u.kind = s.kind and s.session between u.first and u.last and u.loaded_at <= s.followed_by
    left join lateral (
      select symbol_id from coverage
       where symbol_id = u.symbol_id and interval_s = s.interval_s and session = s.session offset 0) as c on true
   where c.symbol_id is null
),
halts as materialized (
  select symbol_id, calendar, starts_at, coalesce(ends_at, 'infinity') as ends_at from trading_halts
   where known_to is null and starts_at <= %(now)s
),
troubled as materialized (
  select f.place, f.symbol_id, f.open, f.newest, s.calendar, s.interval_s, s.session, s.tier, s.counted, s.due,
         case when s.tier = 'T0' then greatest(coalesce(d.density, 1), %(liquid)s)
              else coalesce(d.density, case s.tier when 'T2' then 0 else 1 end) end as density, s.minutes,
         exists (select from halts h where h.starts_at < s.last_ends and h.ends_at > s.last_opens
                                       and (h.symbol_id = f.symbol_id or (h.symbol_id is null and h.calendar = s.calendar))
                ) as is_halted,
         m.failures is null or m.failures > 0 or coalesce(m.last_attempt_at < s.heard_by, true) as is_unheard,
         case when s.minutes = 0 or coalesce(m.absent, 0) = 0 then 0
              else s.minutes_due - s.minutes_counted
                   - bit_count(substring(m.resolved from s.minutes_counted + 1 for s.minutes_due - s.minutes_counted))::int4
         end as open_minutes
    from (select f.place, t.* from found f cross join lateral unnest(f.lacking, f.opens, f.newests) as t (symbol_id, open, newest)
           union all select * from unheard) as f
    join sessions s using (place)
    left join trading_density d on d.symbol_id = f.symbol_id and d.interval_s = s.asked_s
    left join lateral (
      select failures, last_attempt_at, absent, present | confirmed_empty | coalesce(halted, confirmed_empty) as resolved
        from coverage where symbol_id = f.symbol_id and interval_s = s.asked_s and session = s.session offset 0) as m on true
),
judged as materialized (
  select t.*, case when is_halted then 0 else greatest(t.due - t.newest, 0) end as behind,
         case when is_halted then greatest(t.open - greatest(t.due - greatest(t.newest, t.counted), 0), 0)
              else t.open end as lacking,
         t.density >= %(liquid)s as is_liquid,
         (t.tier <> 'T0' or t.minutes > 0) and (t.minutes = 0 or t.due - t.newest <= t.open_minutes)
         and case when t.comes >= 1 then t.newest >= t.due
                  else greatest(t.due - t.newest, 0) * ln(1 - t.comes) > ln(%(by_chance)s) end as is_chance
    from (select *, case when minutes > 0 then power(density, minutes) else density end as comes from troubled) as t
),
frozen as materialized (
  select calendar, interval_s, session
    from (select calendar, interval_s, session, count(*) filter (where behind > 0 and is_liquid and not is_chance) as stale,
                 count(*) filter (where behind > 0) as behind
            from judged group by calendar, interval_s, session) as b
    join (select s.calendar, s.interval_s, s.session, sum(w.symbols) as symbols
            from wanted w join sessions s using (place) group by s.calendar, s.interval_s, s.session) as a
   using (calendar, interval_s, session)
   where b.stale >= %(least_frozen)s and b.stale > a.symbols - b.behind
),
verdicts as materialized (
  select j.place, j.symbol_id, j.newest, j.behind, j.is_unheard,
         j.behind > 0 and (j.is_unheard or not j.is_chance or z.calendar is not null) as is_stale,
         case when j.minutes > 0
              then greatest(j.lacking - j.open_minutes,
                            case when j.is_unheard or z.calendar is not null then least(j.behind, j.lacking) else 0 end)
              when j.is_liquid then j.lacking
              when j.is_unheard or z.calendar is not null then least(j.behind, j.lacking) else 0 end as lost
    from judged j left join frozen z using (calendar, interval_s, session)
)
select 0 as part, s.place, coalesce(f.symbols, 0) + coalesce(n.rows, 0) as symbols,
       coalesce(f.present_due, 0) + coalesce(v.lost, 0) as due, coalesce(v.lost, 0) as lost, coalesce(f.present, 0) as present,
       coalesce(f.confirmed_empty, 0) as confirmed_empty, coalesce(f.halted, 0) as halted,
       greatest(s.expected * (coalesce(f.rows, 0) + coalesce(n.rows, 0)) - coalesce(f.present + f.confirmed_empty + f.halted, 0)
                - coalesce(f.pending, 0) - (s.expected - s.ready) * coalesce(n.rows, 0), 0) as missing,
       coalesce(f.pending, 0) + (s.expected - s.ready) * coalesce(n.rows, 0) as pending, null::text as symbol,
       null::bool as is_heard
  from sessions s
  left join found f using (place)
  left join (select place, count(*) as rows from unheard group by place) as n using (place)
  left join (select place, sum(lost) as lost from verdicts group by place) as v using (place)
union all
select 1, v.place, v.newest, count(*), 0, 0, 0, 0, 0, 0, null, null
  from verdicts v join sessions s using (place)
 where v.is_stale and s.can_be_stale group by v.place, v.newest
union all
select 2, w.place, w.symbol_id, w.newest, w.behind, 0, 0, 0, 0, 0, u.symbol, not w.is_unheard
  from (select v.*, row_number() over (partition by s.tier, s.interval_s order by v.behind desc, v.symbol_id) as rank
          from verdicts v join sessions s using (place) where v.is_stale and s.can_be_stale) as w
  join symbol_universe u using (symbol_id)
 where w.rank <= %(most)s
 order by 1, 2, 5 desc, 3
"""
_TOTALS = ("symbols", "due", "lost", "present", "confirmed_empty", "halted", "missing", "pending")

_CALENDARS = "select distinct calendar from symbol_universe where active and not is_unknown order by calendar"

# Of the sessions that were over by then, the newest so many of each symbol: the share of its bars among those that are decided.
# What is still asked for says nothing, or an outage would make symbols thin; what was given up counts as silence.
_MEASURE = """
insert into trading_density (symbol_id, interval_s, density, sessions, measured_at)
select symbol_id, interval_s, sum(present)::float8 / sum(decided), count(*), %(now)s
  from (select c.symbol_id, c.interval_s, bit_count(c.present) as present,
               bit_count(c.present | c.confirmed_empty) + case when c.next_attempt_at is null then c.absent else 0 end as decided,
               row_number() over (partition by c.symbol_id, c.interval_s order by c.session desc) as nth
          from coverage c join symbol_universe u using (symbol_id)
         where u.active and c.interval_s = any(%(intervals)s::int4[]) and c.session >= %(since)s and c.closes_at < %(over_by)s) as s
 where nth <= %(sessions)s
 group by symbol_id, interval_s
having sum(decided) > 0
on conflict (symbol_id, interval_s) do update
   set density = excluded.density, sessions = excluded.sessions, measured_at = excluded.measured_at
"""
_MEASURED_AT = "select max(measured_at) from trading_density"


@dataclass(frozen=True, slots=True, eq=False)
class AskedFreshness:
    """A session to judge, and of which bars: ``due`` of them, the sums from slot ``counted`` on.

    ``followed_by``: who was added, or got another tier, later than that, is not judged yet. ``minutes``: how many a derived bar is
    made of, 0 for one that is fetched; ``minutes_counted`` and ``minutes_due``: the same slots as minutes.
    ``last_opens``, ``last_ends``: of the last bar due, epoch seconds.
    """

    watched: WatchedSession
    due: int
    ready: int
    can_be_stale: bool
    last_opens: int
    last_ends: int
    followed_by: datetime
    counted: int = 0
    minutes: int = 0
    minutes_counted: int = 0
    minutes_due: int = 0


@dataclass(frozen=True, slots=True)
class SessionCounts:
    """What the ledger says of one asked session. ``newest``: how many symbols are stale, by the slot after their newest bar's."""

    symbols: int
    due: int
    lost: int
    present: int
    confirmed_empty: int
    halted: int
    missing: int
    pending: int
    newest: Mapping[int, int]

    @property
    def stale(self) -> int:
        """How many symbols are."""
        return sum(self.newest.values())


@dataclass(frozen=True, slots=True)
class StaleRow:
    """A stale symbol of the asked session at ``place``. ``newest``: the slot after its newest bar's; 0 where there is none."""

    place: int
    symbol_id: int
    symbol: str
    newest: int
    behind: int
    is_answered: bool


@dataclass(frozen=True, slots=True)
class Counted:
    """The answer to a census: one element a session asked for, in their order; and the stale symbols that are named."""

    sessions: Sequence[SessionCounts]
    stale: Sequence[StaleRow]


class FreshnessReader:
    """Counts the ledger against what had to be there. Instances may be shared by threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def calendars(self) -> list[str]:
        """The calendars of the active symbols."""
        with self._engine.connect() as connection:
            return list(connection.exec_driver_sql(_CALENDARS).scalars())

    def count(self, asked: Sequence[AskedFreshness], *, now: datetime, most: int) -> Counted:
        """Every tradable symbol in the sessions asked for; of each tier and interval at most ``most`` stale ones by name."""
        with transaction(self._engine) as cursor:
            return count(cursor, asked, now=now, most=most)

    def measure(self, *, now: datetime, since: date, over_by: datetime) -> int:
        """Measure how densely each active symbol trades, in its newest sessions since ``since`` that closed before ``over_by``."""
        fetched = [interval.seconds for interval in Interval if interval.source is None]
        with transaction(self._engine) as cursor:
            values = {"now": now, "since": since, "over_by": over_by, "intervals": fetched, "sessions": DENSITY_SESSIONS}
            cursor.execute(_MEASURE, values)
            return int(cursor.rowcount)

    def measured_at(self) -> datetime | None:
        """When densities were last measured; None where never."""
        with self._engine.connect() as connection:
            at: datetime | None = connection.exec_driver_sql(_MEASURED_AT).scalar_one()
            return at


def count(cursor: Cursor, asked: Sequence[AskedFreshness], *, now: datetime, most: int) -> Counted:
    """As ``FreshnessReader.count``, in a transaction of the caller's."""
    if not asked:
        return Counted((), ())
    cursor.execute(
        "select set_config('work_mem', %s, true), set_config('jit', 'off', true), set_config('enable_nestloop', 'off', true),"
        " set_config('enable_sort', 'off', true)",
        (_WORK_MEMORY,),
    )
    cursor.execute(_CENSUS, _parameters(asked, now, most))
    totals: dict[int, dict[str, int]] = {}
    newest: dict[int, dict[int, int]] = {}
    stale: list[StaleRow] = []
    for part, place, *values, symbol, is_heard in cursor.fetchall():
        numbers = tuple(map(int, values))
        if part == 0:
            totals[place] = dict(zip(_TOTALS, numbers, strict=True))
        elif part == 1:
            newest.setdefault(place, {})[numbers[0]] = numbers[1]
        else:
            stale.append(StaleRow(place, numbers[0], symbol, numbers[1], numbers[2], is_heard))
    nothing = dict.fromkeys(_TOTALS, 0)
    sessions = [SessionCounts(newest=newest.get(place, {}), **totals.get(place, nothing)) for place in range(len(asked))]
    return Counted(sessions, stale)


def _parameters(asked: Sequence[AskedFreshness], now: datetime, most: int) -> dict[str, Any]:
    kinds = {kind: number for number, kind in enumerate({(one.watched.calendar, one.watched.tier) for one in asked})}
    return {
        "places": list(range(len(asked))),
        "kinds": [kinds[one.watched.calendar, one.watched.tier] for one in asked],
        "calendars": [one.watched.calendar for one in asked],
        "intervals": [one.watched.interval.seconds for one in asked],
        "tiers": [str(one.watched.tier) for one in asked],
        "sessions": [one.watched.session for one in asked],
        "due": [one.due for one in asked],
        "ready": [one.ready for one in asked],
        "counted": [one.counted for one in asked],
        "expected": [one.watched.expected for one in asked],
        "heard_by": [_instant(int(one.watched.ready_at[one.due - 1])) for one in asked],
        "last_opens": [_instant(one.last_opens) for one in asked],
        "last_ends": [_instant(one.last_ends) for one in asked],
        "followed_by": [one.followed_by for one in asked],
        "stales": [one.can_be_stale for one in asked],
        "minutes": [one.minutes for one in asked],
        "minutes_counted": [one.minutes_counted for one in asked],
        "minutes_due": [one.minutes_due for one in asked],
        "asked_seconds": [(one.watched.interval.source or one.watched.interval).seconds for one in asked],
        "newcomers_since": min(one.followed_by for one in asked),
        "now": now,
        "liquid": LIQUID,
        "by_chance": SILENT_BY_CHANCE,
        "least_frozen": _LEAST_FROZEN,
        "most": most,
    }


def _instant(at: int) -> datetime:
    return datetime.fromtimestamp(at, UTC)
