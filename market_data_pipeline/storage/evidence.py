"""Why slots are taken for empty or halted: the decisions, written beside the ledger rows, and what they are weighed against.

``witnesses`` and ``companies`` are asked inside the writing transaction, and only for sessions with something still open.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from market_data_pipeline.domain.capabilities import Feed
from market_data_pipeline.domain.coverage import Verdict
from market_data_pipeline.domain.evidence import LEAST_ELSEWHERE, DayTotal, Decision, Neighbourhood, Rung, Surroundings, company_of
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline.storage.bitmaps import bits, mask_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import date

    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - a class that psycopg2 spells in lower case
    from sqlalchemy import Engine

    from market_data_pipeline.domain.candles import Bools, Int64s, Interval
    from market_data_pipeline.domain.coverage import LedgerRow

# Symbols of a calendar that are looked at for company, the best tiers first: a minute that a provider lost is lost for many.
MOST_COMPANY = 1_500
# Ledger rows read for company at a time, bitmaps and all: some ten megabytes.
_ROWS_AT_ONCE = 20_000
# Days on each side of a session that say how densely a symbol trades: ten sessions or so each.
_AROUND = timedelta(days=15)
# Halts are inferred of what is followed closely enough that its silence is remarkable.
_INFERRED = frozenset({Tier.T0, Tier.T1})

_WHO = "select symbol_id, calendar, tier from symbol_universe where symbol_id = any(%s::int4[])"

_HALTS = """
select symbol_id, calendar, extract(epoch from starts_at)::int8, extract(epoch from ends_at)::int8, reason, source
  from trading_halts
 where known_to is null and starts_at < to_timestamp(%(end)s) and (ends_at is null or ends_at > to_timestamp(%(start)s))
   and (symbol_id = any(%(symbol_ids)s::int4[]) or (symbol_id is null and calendar = any(%(calendars)s::text[])))
 order by starts_at, halt_id"""

# A daily bar that was written while its session ran is no witness. One base: volumes of different feeds are never compared.
_DAYS = """
select k.place, d.volume, m.volume, d.feed, m.feeds, p.name, s.session is not null
  from unnest(%(symbol_ids)s::int4[], %(sessions)s::date[], %(opens_at)s::timestamptz[], %(closes_at)s::timestamptz[])
         with ordinality as k (symbol_id, session, opens_at, closes_at, place)
  left join candles_daily d on d.symbol_id = k.symbol_id and d.session_date = k.session and d.as_of >= k.closes_at
  left join providers p on p.provider = d.provider
  left join coverage s on s.symbol_id = k.symbol_id and s.interval_s = 86400 and s.session = k.session and d.symbol_id is null
        and bit_count(s.confirmed_empty) > 0
 cross join lateral (
         select coalesce(sum(b.volume), 0) as volume, array_agg(distinct b.feed) as feeds
           from candles_intraday b
          where b.symbol_id = k.symbol_id and b.interval_s = %(interval_s)s
            and b.opened_at >= k.opens_at and b.opened_at < k.closes_at
            and (d.symbol_id is not null or s.symbol_id is not null)) m
 where d.symbol_id is not null or s.symbol_id is not null"""

# Those with every bar are only counted; of the others the bitmaps are needed. Without an attempt nobody asked since the session was
# over, and what is absent says nothing.
_COMPANY = """
with followed as materialized (
  select symbol_id from symbol_universe where active and calendar = %(calendar)s
   order by tier, symbol_id limit %(most)s
)
select c.session, c.symbol_id, bit_count(c.present) = c.expected,
       case when bit_count(c.present) = c.expected then null else c.present end, c.halted
  from followed f
  join coverage c on c.symbol_id = f.symbol_id and c.interval_s = %(interval_s)s and c.session = any(%(sessions)s::date[])
 where (c.attempts > 0 or bit_count(c.present) = c.expected)
   and (%(whole)s or 4 * bit_count(c.present) >= c.expected)"""

_AROUND_THEM = """
select k.session, c.symbol_id, sum(c.expected - bit_count(c.present) - coalesce(bit_count(c.halted), 0)), sum(c.expected)
  from unnest(%(sessions)s::date[]) as k (session)
  join (select symbol_id from symbol_universe where active and calendar = %(calendar)s
         order by tier, symbol_id limit %(most)s) f on true
  join coverage c on c.symbol_id = f.symbol_id and c.interval_s = %(interval_s)s
   and (c.attempts > 0 or bit_count(c.present) = c.expected)
   and c.session between k.session - %(around)s and k.session + %(around)s and c.session <> k.session
 group by k.session, c.symbol_id"""

_RECORD = """
insert into verdict_evidence (symbol_id, interval_s, session, verdict, rung, slots, providers, attempts, detail, run_id, decided_at)
select symbol_id, %s, session, verdict, rung, slots, string_to_array(providers, ','), attempts, detail, %s, %s
  from unnest(%s::int4[], %s::date[], %s::text[], %s::text[], %s::varbit[], %s::text[], %s::int2[], %s::text[]) with ordinality
       as k (symbol_id, session, verdict, rung, slots, providers, attempts, detail, place)
 order by place"""

_OF = """
select session, verdict, rung, slots, providers, attempts, detail, run_id, decided_at
  from verdict_evidence
 where symbol_id = %(symbol_id)s and interval_s = %(interval_s)s and session between %(first)s and %(last)s
 order by session, evidence_id"""


class Question(NamedTuple):
    """A finished session with something still open, and where its slots are (None: nobody knows)."""

    row: LedgerRow
    open_slots: Bools
    starts_at: Int64s | None
    ends_at: Int64s | None


class Decided(NamedTuple):
    """A decision about a session of a symbol."""

    symbol_id: int
    session: date
    decision: Decision


@dataclass(frozen=True, slots=True, eq=False)
class EvidenceRow:
    """What was decided about some slots of a session, when, by whose silence, and why in words. ``slots``: one element a bar."""

    session: date
    verdict: Verdict
    rung: Rung
    slots: Bools
    providers: tuple[str, ...]
    attempts: int
    detail: str
    run_id: str | None
    decided_at: datetime


class Evidence:
    """The decisions there are, read back."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def of(self, symbol_id: int, interval: Interval, first: date, last: date) -> list[EvidenceRow]:
        """Of the sessions from ``first`` to ``last``, both included, by session and in the order of decision."""
        parameters = {"symbol_id": symbol_id, "interval_s": interval.seconds, "first": first, "last": last}
        with self._engine.connect() as connection:
            return [
                EvidenceRow(session, Verdict(verdict), Rung(rung), mask_of(slots), tuple(providers), *rest)
                for session, verdict, rung, slots, providers, *rest in connection.exec_driver_sql(_OF, parameters)
            ]


def record_evidence(
    cursor: Cursor, interval: Interval, decided: Sequence[Decided], *, now: datetime, run_id: str | None = None
) -> None:
    """Write one row for each decision, in the transaction that writes the ledger rows."""
    if not decided:
        return
    cursor.execute(
        _RECORD,
        (
            interval.seconds,
            run_id,
            now,
            [one.symbol_id for one in decided],
            [one.session for one in decided],
            [one.decision.verdict.value for one in decided],
            [one.decision.rung.value for one in decided],
            [bits(one.decision.slots) for one in decided],
            [",".join(one.decision.providers) for one in decided],
            [one.decision.attempts for one in decided],
            [one.decision.detail for one in decided],
        ),
    )


# --- what is known beside an answer ------------------------------------------------------------------------------------


@dataclass(eq=False)
class Witnesses:
    """What the ledger, the bars and the halts say beside the answers of one write; each question costs its statements once."""

    cursor: Cursor
    interval: Interval
    _who: dict[int, tuple[str, str]] = field(default_factory=dict)

    def of(self, questions: Sequence[Question]) -> list[Surroundings]:
        """The known halts and the daily bar of each; one lookup each for all of them together."""
        self._look_up({question.row.symbol_id for question in questions})
        days: Mapping[int, DayTotal] = {} if self.interval.is_daily else self._days(questions)
        halts = self._halts(questions)
        found = []
        for place, question in enumerate(questions):
            calendar, tier = self._who[question.row.symbol_id]
            mine = [halt for halt in halts if halt[0] == question.row.symbol_id or halt[:2] == (None, calendar)]
            suspended, words = _suspended(question, mine)
            found.append(Surroundings(suspended, words, day=days.get(place), may_halt=Tier(tier) in _INFERRED))
        return found

    def with_company(
        self, questions: Sequence[Question], surroundings: Sequence[Surroundings], changed: Mapping[tuple[int, date], LedgerRow]
    ) -> list[Surroundings]:
        """The same with what the company of each symbol says. ``changed``: ledger rows of this write, that are not stored yet."""
        self._look_up({question.row.symbol_id for question in questions} | {symbol_id for symbol_id, _ in changed})
        by_calendar: defaultdict[tuple[str, bool], list[int]] = defaultdict(list)
        for place, question in enumerate(questions):
            # Where hardly a slot is not in question, only the days around say who is liquid.
            whole = int((~question.open_slots).sum()) < LEAST_ELSEWHERE
            by_calendar[self._who[question.row.symbol_id][0], whole].append(place)
        found = list(surroundings)
        for (calendar, whole), places in by_calendar.items():
            sessions = sorted({questions[place].row.session for place in places})
            at_once = max(_ROWS_AT_ONCE // MOST_COMPANY, 1)
            for at in range(0, len(sessions), at_once):
                some = sessions[at : at + at_once]
                near = self._near(calendar, some, changed, whole=whole)
                for place in places:
                    question = questions[place]
                    if question.row.session in near:
                        company = company_of(
                            question.open_slots, near[question.row.session].of(question.row), interval_seconds=self.interval.seconds
                        )
                        found[place] = replace(found[place], company=company)
        return found

    def _look_up(self, symbol_ids: Collection[int]) -> None:
        unknown = set(symbol_ids) - self._who.keys()
        if unknown:
            self.cursor.execute(_WHO, (sorted(unknown),))
            self._who |= {symbol_id: (calendar, tier) for symbol_id, calendar, tier in self.cursor}

    def _halts(self, questions: Sequence[Question]) -> list[tuple[Any, ...]]:
        if not questions:
            return []
        self.cursor.execute(
            _HALTS,
            {
                "start": min(question.row.opens_at for question in questions),
                "end": max(question.row.closes_at for question in questions),
                "symbol_ids": sorted({question.row.symbol_id for question in questions}),
                "calendars": sorted({self._who[question.row.symbol_id][0] for question in questions}),
            },
        )
        return self.cursor.fetchall()

    def _days(self, questions: Sequence[Question]) -> dict[int, DayTotal]:
        self.cursor.execute(
            _DAYS,
            {
                "interval_s": self.interval.seconds,
                "symbol_ids": [question.row.symbol_id for question in questions],
                "sessions": [question.row.session for question in questions],
                "opens_at": [datetime.fromtimestamp(question.row.opens_at, UTC) for question in questions],
                "closes_at": [datetime.fromtimestamp(question.row.closes_at, UTC) for question in questions],
            },
        )
        found = {}
        for place, volume, minutes, feed, feeds, provider, is_absent in self.cursor:
            bases = {Feed(one).volume_base for one in feeds or ()}
            if is_absent or bases <= {Feed(feed).volume_base}:
                found[place - 1] = DayTotal(None if is_absent else volume, minutes, provider or "")
        return found

    def _near(
        self, calendar: str, sessions: Sequence[date], changed: Mapping[tuple[int, date], LedgerRow], *, whole: bool
    ) -> dict[date, _Near]:
        parameters = {
            "calendar": calendar,
            "most": MOST_COMPANY,
            "interval_s": self.interval.seconds,
            "sessions": list(sessions),
            "whole": whole,
            "around": _AROUND.days,
        }
        near: dict[date, _Near] = {session: _Near() for session in sessions}
        self.cursor.execute(_COMPANY, parameters)
        for session, symbol_id, is_full, present, halted in self.cursor:
            # What this write has just learned of a symbol stands in for what is stored of it.
            if (symbol_id, session) in changed:
                continue
            if is_full:
                near[session].full += 1
            else:
                near[session].add(symbol_id, mask_of(present), None if halted is None else mask_of(halted))
        for (symbol_id, session), row in changed.items():
            is_asked = row.attempts > 0 or row.present.all()
            if session in near and is_asked and self._who[symbol_id][0] == calendar:
                near[session].add(symbol_id, row.present, row.halted)
        if whole:
            self.cursor.execute(_AROUND_THEM, parameters)
            for session, symbol_id, missing, expected in self.cursor:
                near[session].around[symbol_id] = int(missing), int(expected)
        return near


@dataclass(eq=False)
class _Near:
    """The symbols of one session, as they are read."""

    full: int = 0
    symbol_ids: list[int] = field(default_factory=list)
    present: list[Bools] = field(default_factory=list)
    lacks: list[Bools] = field(default_factory=list)
    around: dict[int, tuple[int, int]] = field(default_factory=dict)
    by_length: dict[int, tuple[Neighbourhood, dict[int, int]]] = field(default_factory=dict)

    def add(self, symbol_id: int, present: Bools, halted: Bools | None) -> None:
        self.symbol_ids.append(symbol_id)
        self.present.append(present)
        self.lacks.append(~present if halted is None else ~present & ~halted)

    def of(self, row: LedgerRow) -> Neighbourhood:
        """As the symbol of ``row`` sees it. Rows of another grid (the calendar changed) are no company."""
        if row.expected not in self.by_length:
            self.by_length[row.expected] = self._of_length(row.expected)
        everybody, places = self.by_length[row.expected]
        return replace(everybody, mine=places.get(row.symbol_id))

    def _of_length(self, slots: int) -> tuple[Neighbourhood, dict[int, int]]:
        fitting = [place for place, present in enumerate(self.present) if len(present) == slots]
        symbol_ids = [self.symbol_ids[place] for place in fitting]
        around = np.array([self.around.get(symbol_id, (0, 0)) for symbol_id in symbol_ids], np.int64).reshape(-1, 2)
        everybody = Neighbourhood(
            present=np.array([self.present[place] for place in fitting], bool).reshape(-1, slots),
            lacks=np.array([self.lacks[place] for place in fitting], bool).reshape(-1, slots),
            full=self.full,
            around_missing=around[:, 0] if self.around else None,
            around_expected=around[:, 1] if self.around else None,
        )
        return everybody, {symbol_id: place for place, symbol_id in enumerate(symbol_ids)}


def _suspended(question: Question, halts: Sequence[tuple[Any, ...]]) -> tuple[Bools | None, str]:
    """The slots wholly inside a halt, and the halts in words."""
    if question.starts_at is None or question.ends_at is None:
        return None, ""
    inside = slots_within(question.starts_at, question.ends_at, [(start, end) for _, _, start, end, *_ in halts])
    if not inside.any():
        return None, ""
    open_, close = question.row.opens_at, question.row.closes_at
    mine = [halt for halt in halts if halt[2] < close and (halt[3] is None or halt[3] > open_)]
    return inside, "; ".join(words_of_halt(*halt[2:]) for halt in mine)


def slots_within(starts_at: Int64s, ends_at: Int64s, halts: Sequence[tuple[int, int | None]]) -> Bools:
    """The slots that lie wholly in some halt, [start, end) in epoch seconds, end None while it lasts. Halts that touch join."""
    inside = np.zeros(len(starts_at), bool)
    for start, end in _joined(halts):
        inside |= (starts_at >= start) & (ends_at <= (np.iinfo(np.int64).max if end is None else end))
    return inside


def _joined(halts: Sequence[tuple[int, int | None]]) -> list[tuple[int, int | None]]:
    joined: list[tuple[int, int | None]] = []
    for start, end in sorted(halts, key=lambda halt: halt[0]):
        before = joined[-1] if joined else None
        if before is not None and (before[1] is None or start <= before[1]):
            joined[-1] = before[0], None if before[1] is None or end is None else max(before[1], end)
        else:
            joined.append((start, end))
    return joined


def words_of_halt(start: int, end: int | None, reason: str, source: str) -> str:
    """A halt as the evidence tells it."""
    since = datetime.fromtimestamp(start, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    until = "now" if end is None else datetime.fromtimestamp(end, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"halted from {since} to {until}{f', {reason}' if reason else ''} ({source})"
