"""The one fast write path: judged bars become rows, revisions, ledger and provenance in one transaction.

Bars of sessions we know nothing of go straight into their table by binary COPY. Others are staged and only what differs is
written; the triggers of ``sql/0001_core.sql`` keep what was replaced. ``lock_series``, ``read_ledger``, ``StagedTable`` and
``advance_ledger`` are the pieces, for writers whose stage is filled by SQL instead of by a batch.
"""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import psycopg2
import psycopg2.errors

from market_data_pipeline.domain.capabilities import Feed, bars
from market_data_pipeline.domain.coverage import LedgerRow, Verdict, runs
from market_data_pipeline.domain.errors import DatabaseUnreachableError, DiskError, InvalidInputError
from market_data_pipeline.domain.evidence import ALONE, SHORTEST_HALT_SECONDS, Rung
from market_data_pipeline.domain.finality import Finality
from market_data_pipeline.domain.healing import SessionAnswer, advanced
from market_data_pipeline.domain.ports import WriteReport
from market_data_pipeline.domain.quality import BarFlag
from market_data_pipeline.domain.tracing import NO_TRACER
from market_data_pipeline.storage import binary
from market_data_pipeline.storage.binary import CopyColumn, CopyReader
from market_data_pipeline.storage.bitmaps import bits, mask_of
from market_data_pipeline.storage.evidence import Decided, Question, Witnesses, record_evidence

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from datetime import date

    import numpy.typing as npt
    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - a class that psycopg2 spells in lower case
    from sqlalchemy.engine import Engine

    from market_data_pipeline.domain.candles import Bools, Int16s, Int64s, Interval
    from market_data_pipeline.domain.evidence import Decision, Surroundings
    from market_data_pipeline.domain.healing import Advanced, HealingPolicy
    from market_data_pipeline.domain.ports import AnsweredSession, CandleBatch, Fetch
    from market_data_pipeline.domain.tracing import Tracer

# A transaction holds at most this many locks for an interval, however many symbols it writes: the server's lock table is shared
# by all connections (64 a connection by default).
LOCK_BUCKETS = 512
# Corporate actions belong to a symbol, not to an interval: their lock has a number of its own, below all intervals.
ACTIONS_LOCK = 0
CHANNEL = "candles"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
DAY_SECONDS = 86_400


# --- transactions, locks, time -----------------------------------------------------------------------------------------


@contextmanager
def transaction(engine: Engine) -> Iterator[Cursor]:
    """A driver's cursor in one transaction, committed at the end of the block and rolled back on any error.

    Raises DatabaseUnreachableError where the connection is lost and DiskError where the server's disk is full; either way nothing
    of the block is stored, except when the connection is lost while committing: then all of it may be. Repeating is safe.
    """
    with engine.begin() as connection:
        driver = cast("psycopg2.extensions.connection", connection.connection.driver_connection)
        try:
            with driver.cursor() as cursor:
                yield cursor
        except psycopg2.errors.DiskFull as full:
            raise DiskError(f"the database server's disk is full: {full.diag.message_primary}") from full
        except (psycopg2.OperationalError, psycopg2.InterfaceError) as lost:
            if not driver.closed:
                raise
            connection.invalidate()
            raise DatabaseUnreachableError(
                "the connection to the database was lost; what was being written is not stored"
            ) from lost


LOCK = """
set transaction isolation level read committed;
select pg_advisory_xact_lock(k.interval_s, k.bucket) from unnest(%s::int4[], %s::int4[]) as k(interval_s, bucket)"""


def lock_series(cursor: Cursor, symbol_ids: Collection[int], *interval_seconds: int) -> None:
    """Wait until no other transaction writes these symbols in these intervals, and keep others out until ours ends.

    Must come first in the transaction, once, with everything it will write: all writers take the locks in the same order, so they
    cannot deadlock, and what is read afterwards includes all that was written before.
    """
    keys = sorted({(seconds, symbol_id % LOCK_BUCKETS) for seconds in interval_seconds for symbol_id in symbol_ids})
    cursor.execute(LOCK, ([seconds for seconds, _ in keys], [bucket for _, bucket in keys]))


def database_time(cursor: Cursor) -> datetime:
    """The server's clock now, not at the start of the transaction: after ``lock_series`` it is later than all earlier knowledge."""
    cursor.execute("select clock_timestamp()")
    return cast("tuple[datetime]", cursor.fetchone())[0]


def micros(instant: datetime) -> int:
    """Microseconds since 1970, exactly."""
    return (instant - EPOCH) // MICROSECOND


def instant_of(epoch_micros: int) -> datetime:
    """The inverse of ``micros``."""
    return EPOCH + epoch_micros * MICROSECOND


# --- the ledger --------------------------------------------------------------------------------------------------------

READ_LEDGER = """
select c.symbol_id, c.session, extract(epoch from c.opens_at)::int8, extract(epoch from c.closes_at)::int8,
       c.present, c.confirmed_empty, c.attempts, c.failures, c.last_attempt_at, c.next_attempt_at, c.as_of, c.digest,
       c.halted, c.finality, c.recheck_at
  from unnest(%s::int4[], %s::date[]) as k(symbol_id, session)
  join coverage c on c.symbol_id = k.symbol_id and c.session = k.session and c.interval_s = %s"""

WRITE_LEDGER = """
insert into coverage as c
       (symbol_id, interval_s, session, opens_at, closes_at, expected, present, confirmed_empty,
        attempts, failures, last_attempt_at, next_attempt_at, as_of, digest, halted, finality, recheck_at)
select symbol_id, %s, session, to_timestamp(opens_at), to_timestamp(closes_at), length(present), present, confirmed_empty,
       attempts, failures, last_attempt_at, next_attempt_at, as_of, digest, halted, finality, recheck_at
  from unnest(%s::int4[], %s::date[], %s::int8[], %s::int8[], %s::varbit[], %s::varbit[],
              %s::int2[], %s::int2[], %s::timestamptz[], %s::timestamptz[], %s::timestamptz[], %s::bytea[],
              %s::varbit[], %s::int2[], %s::timestamptz[])
       as k(symbol_id, session, opens_at, closes_at, present, confirmed_empty,
            attempts, failures, last_attempt_at, next_attempt_at, as_of, digest, halted, finality, recheck_at)
on conflict (symbol_id, interval_s, session) do update
   set opens_at = excluded.opens_at, closes_at = excluded.closes_at, expected = excluded.expected, present = excluded.present,
       confirmed_empty = excluded.confirmed_empty, attempts = excluded.attempts, failures = excluded.failures,
       last_attempt_at = excluded.last_attempt_at, next_attempt_at = excluded.next_attempt_at, as_of = excluded.as_of,
       digest = excluded.digest, halted = excluded.halted, finality = excluded.finality, recheck_at = excluded.recheck_at"""


def read_ledger(cursor: Cursor, interval: Interval, keys: Sequence[tuple[int, date]]) -> dict[tuple[int, date], LedgerRow]:
    """The ledger rows there are for these (symbol_id, session)s. Read under ``lock_series`` they stay true until commit."""
    cursor.execute(READ_LEDGER, ([symbol_id for symbol_id, _ in keys], [session for _, session in keys], interval.seconds))
    rows = (ledger_row(interval, record) for record in cursor)
    return {(row.symbol_id, row.session): row for row in rows}


def ledger_row(interval: Interval, record: Sequence[Any]) -> LedgerRow:
    """A row of ``coverage`` as the domain takes it, from the columns in the order of ``READ_LEDGER``."""
    symbol_id, session, opens_at, closes_at, present, confirmed, attempts, failures, last, following, known_at, digest, *rest = (
        record
    )
    halted, finality, recheck_at = rest
    return LedgerRow(
        symbol_id=symbol_id,
        interval=interval,
        session=session,
        opens_at=opens_at,
        closes_at=closes_at,
        present=mask_of(present),
        confirmed_empty=mask_of(confirmed),
        attempts=attempts,
        failures=failures,
        last_attempt_at=last,
        next_attempt_at=following,
        known_at=known_at,
        digest=None if digest is None else bytes(digest),
        halted=None if halted is None else mask_of(halted),
        finality=Finality(finality),
        recheck_at=recheck_at,
    )


def write_ledger(cursor: Cursor, interval: Interval, rows: Sequence[LedgerRow]) -> None:
    """Insert or replace these rows, in the order given. ``known_at`` must be set."""
    if not rows:
        return
    cursor.execute(
        WRITE_LEDGER,
        (
            interval.seconds,
            [row.symbol_id for row in rows],
            [row.session for row in rows],
            [row.opens_at for row in rows],
            [row.closes_at for row in rows],
            [bits(row.present) for row in rows],
            [bits(row.confirmed_empty) for row in rows],
            [row.attempts for row in rows],
            [row.failures for row in rows],
            [row.last_attempt_at for row in rows],
            [row.next_attempt_at for row in rows],
            [row.known_at for row in rows],
            [row.digest for row in rows],
            [None if row.halted is None else bits(row.halted) for row in rows],
            [int(row.finality) for row in rows],
            [row.recheck_at for row in rows],
        ),
    )


@dataclass(frozen=True, slots=True)
class SessionChange:
    """What became of one session's bars: rows added, rows replaced, and the newest knowledge time among them (epoch µs)."""

    inserted: int
    revised: int
    known_at: int


@dataclass(frozen=True, slots=True)
class StageChanges:
    """What applying a stage did, by session_index: what changed, and how many bars were left alone.

    Left alone is a stored bar that differs and that another provider gave, whom the staged one's may not overrule.
    ``flip_flops``: bars that went back to a value they had too often already, and were left as they are. Sessions of which there
    is nothing to say are in none.
    """

    changed: Mapping[int, SessionChange]
    left_alone: Mapping[int, int]
    flip_flops: Mapping[int, int] = field(default_factory=dict)


def advance_ledger(  # noqa: PLR0913 - what is known before, what was answered, what it changed, and the clock
    cursor: Cursor,
    interval: Interval,
    *,
    before: Mapping[tuple[int, date], LedgerRow],
    sessions: Sequence[AnsweredSession],
    changes: Mapping[int, SessionChange],
    digests: Sequence[bytes | None],
    learned_at: datetime,
    now: datetime,
    policy: HealingPolicy,
    run_id: str | None = None,
) -> Sequence[Decided]:
    """Bring the ledger in line with bars just stored, and return which slots became confirmed empty or halted, and why.

    ``changes`` is by index into ``sessions``; ``digests`` are those of the answers. Rows that would say the same are not written.
    Why a slot became empty or halted is written beside it.
    """
    started: dict[int, LedgerRow] = {}
    for index, session in enumerate(sessions):
        row, change = before.get((session.symbol_id, session.session)), changes.get(index)
        if row is not None and change is None and row.digest is not None and row.digest == digests[index] and _is_settled(row):
            continue
        started[index] = row or _opened(session, interval, known_at=learned_at)
    steps = _decided(cursor, interval, started, sessions, now=now, policy=policy)
    written: list[LedgerRow] = []
    decisions: list[Decided] = []
    for index, step in steps.items():
        session, start, change = sessions[index], started[index], changes.get(index)
        complete_answer = bool(session.bars.any()) and np.array_equal(step.row.present, session.bars)
        known_at = start.known_at if change is None else max(learned_at, instant_of(change.known_at))
        after = replace(step.row, digest=digests[index] if complete_answer else None, known_at=known_at)
        decisions += [Decided(session.symbol_id, session.session, decision) for decision in step.decisions]
        row = before.get((session.symbol_id, session.session))
        if row is None or _says_more(after, row):
            written.append(after)
    write_ledger(cursor, interval, written)
    record_evidence(cursor, interval, decisions, now=now, run_id=run_id)
    return decisions


def _decided(
    cursor: Cursor,
    interval: Interval,
    started: Mapping[int, LedgerRow],
    sessions: Sequence[AnsweredSession],
    *,
    now: datetime,
    policy: HealingPolicy,
) -> dict[int, Advanced]:
    """Each row after its answer. What is known beside an answer is only looked up where the answer leaves something open."""
    said = {index: _said(sessions[index]) for index in started}

    def step(index: int, surroundings: Surroundings = ALONE) -> Advanced:
        due = sessions[index].due
        return advanced(started[index], said[index], due=due, now=now, policy=policy, surroundings=surroundings)

    steps = {index: step(index) for index in started}
    questions = {
        index: Question(started[index], open_slots, session.starts_at, session.ends_at)
        for index in steps
        if (session := sessions[index]).is_evidence
        and session.due.all()
        and (open_slots := ~started[index].resolved & ~session.bars).any()
    }
    if not questions:
        return steps
    witnesses = Witnesses(cursor, interval)
    found = dict(zip(questions, witnesses.of(list(questions.values())), strict=True))
    steps |= {index: step(index, found[index]) for index in questions}
    doubted = [index for index in questions if _needs_company(steps[index].decisions, found[index], interval)]
    if doubted:
        learned = {(row.symbol_id, row.session): row for row in (one.row for one in steps.values())}
        asked = [questions[index] for index in doubted]
        accompanied = witnesses.with_company(asked, [found[index] for index in doubted], learned)
        steps |= {index: step(index, surroundings) for index, surroundings in zip(doubted, accompanied, strict=True)}
    return steps


def _said(session: AnsweredSession) -> SessionAnswer:
    return SessionAnswer(
        session.bars,
        session.silent,
        session.is_evidence,
        session.is_whole,
        session.settlement,
        quiet=session.quiet,
        witnessed=session.witnessed,
        seconded=session.seconded,
        providers=session.providers,
        next_over_at=session.next_over_at,
        is_taken=session.is_taken,
    )


def _needs_company(decisions: Sequence[Decision], surroundings: Surroundings, interval: Interval) -> bool:
    """Whether the company of the symbol could change what is about to be confirmed: doubt it, or call it a halt."""
    empty = [decision for decision in decisions if decision.verdict is Verdict.CONFIRMED_EMPTY]
    if any(decision.rung is not Rung.SECOND_PROVIDER for decision in empty):
        return True
    if not empty or not surroundings.may_halt:
        return False
    together = np.logical_or.reduce([decision.slots for decision in empty])
    return any((run.last - run.first) * interval.seconds >= SHORTEST_HALT_SECONDS for run in runs(together))


def _is_settled(row: LedgerRow) -> bool:
    """Every slot has its last verdict and nothing is planned: the same answer again changes nothing."""
    is_planned = row.next_attempt_at is not None or row.recheck_at is not None
    return not row.failures and not is_planned and row.finality is Finality.FINAL and bool(row.resolved.all())


def _says_more(after: LedgerRow, before: LedgerRow) -> bool:
    # Not last_attempt_at: asking again about a complete session must not dirty its row.
    return (
        (after.attempts, after.failures, after.next_attempt_at, after.known_at, after.digest, after.finality, after.recheck_at)
        != (
            before.attempts,
            before.failures,
            before.next_attempt_at,
            before.known_at,
            before.digest,
            before.finality,
            before.recheck_at,
        )
        or not np.array_equal(after.present, before.present)
        or not np.array_equal(after.confirmed_empty, before.confirmed_empty)
        or not np.array_equal(after.resolved, before.resolved)
    )


def _opened(session: AnsweredSession, interval: Interval, *, known_at: datetime) -> LedgerRow:
    nothing = np.zeros(len(session.bars), bool)
    return LedgerRow(
        symbol_id=session.symbol_id,
        interval=interval,
        session=session.session,
        opens_at=session.opens_at,
        closes_at=session.closes_at,
        present=nothing,
        confirmed_empty=nothing,
        known_at=known_at,
    )


# --- the candle tables -------------------------------------------------------------------------------------------------

PRICES = ("open", "high", "low", "close")
MEASURES = ("volume", "vwap", "trades")
VALUES = PRICES + MEASURES
ORIGIN = ("fetch_id", "as_of", "provider", "feed", "flags")
# What a provider that the policy does not name counts as: behind all that it names.
_BEHIND_ALL = 32_767
# How often a bar may take one value. Twice, so that a correction survives one relapse: old, new, a stale server's old, new. From
# then on two servers that tell different values are no news: revisions end at twice the number of values ever told.
MOST_TENURES = 2


def _same_float32(column: str, alias: str) -> str:
    # The cast fails beyond float32's range, so it is only tried within.
    within = " and ".join(f"abs({name}.{column}) between 1e-37 and 3e38" for name in (alias, "s"))
    return f"{alias}.{column} = s.{column} or case when {within} then {alias}.{column}::float4 = s.{column}::float4 else false end"


def _differs(alias: str, *, as_float32: bool) -> str:
    """Whether a stored bar, or a value it had, differs from the staged one; ``alias`` is its table's.

    What another provider does not tell is no difference: one without VWAP and trades would else take them from bars that have them.
    """
    told = ("volume",) if as_float32 else (*PRICES, "volume")
    untold = [
        f"({alias}.{column} is distinct from s.{column} and (s.{column} is not null or {alias}.provider = s.provider))"
        for column in ("vwap", "trades")
    ]
    prices = [f"not ({_same_float32(column, alias)})" for column in PRICES] if as_float32 else []
    return " or ".join([f"({_listed(told, alias)}) is distinct from ({_listed(told, 's')})", *untold, *prices])


def _listed(columns: Sequence[str], alias: str = "") -> str:
    prefix = f"{alias}." if alias else ""
    return ", ".join(prefix + column for column in columns)


class StagedTable:
    """The SQL of one candle table: its stage (a temporary table of the connection), what differs, and applying it.

    All text is made of this module's column names; values are bound.
    """

    def __init__(self, name: str, key: Sequence[str]) -> None:
        opened = key[-1]
        self.name = name
        self.stage = f"staged_{name}"
        self.columns = (*key, *VALUES, *ORIGIN)
        changed = f"changed_{name}"
        # Bounds on every part of the key let the planner read just that piece of a table with years in it.
        same_bar = " and ".join(f"b.{column} = s.{column}" for column in key)
        here = f"{same_bar} and b.symbol_id = any(%(symbol_ids)s) and b.{opened} between %(first)s and %(last)s"
        # A stored bar is its provider's: another one only fills holes, unless the policy ranks it higher and it was asked to. What
        # a second opinion decided stands until another decides again: rechecks come after it, and the policy knew nothing of it.
        by_opinion = f"{BarFlag.OVERRULED_ANOTHER:d}"
        overrules = (
            f"b.provider = s.provider or coalesce(array_position(%(ranking)s::int2[], s.provider)"
            f" < coalesce(array_position(%(ranking)s::int2[], b.provider), {_BEHIND_ALL})"
            f" and (b.flags & {by_opinion} = 0 or s.flags & {by_opinion} <> 0), false)"
        )
        # A rolled back batch leaves dead pages behind, from which the planner takes the stage to be huge and reads the whole
        # table (5.7 s instead of 31 ms). Truncated only then: it writes to the catalogue.
        self._open = f"""
set local client_min_messages = warning;
create temporary table if not exists {self.stage} (like {name} including defaults, session_index int4) on commit delete rows;
create temporary table if not exists {changed}
  (like {self.stage} including defaults, stored boolean, overrules boolean, flips boolean)
  on commit delete rows;
do $$ begin
  if pg_relation_size('{self.stage}') + pg_relation_size('{changed}') > 0 then truncate {self.stage}, {changed}; end if;
end $$"""
        # The same bar among the revisions: only its own provider's values count, and only what differs is ever looked up.
        seconds = "s.interval_s" if "interval_s" in key else DAY_SECONDS
        stamp = f"s.{opened}" if "interval_s" in key else f"s.{opened}::timestamp at time zone 'UTC'"
        same_revision = (
            f"r.symbol_id = s.symbol_id and r.interval_s = {seconds} and r.opened_at = {stamp} and r.provider = s.provider"
        )
        # A bar that is newer than our knowledge time (edited by hand, or a clock that ran ahead) still gets a later one.
        self._compare = {
            float32: f"""
with found as (
  insert into {changed} ({_listed(self.columns)}, session_index, stored, overrules, flips)
  select {_listed((*key, *VALUES), "s")}, s.fetch_id, greatest(s.as_of, b.as_of + interval '1 microsecond'),
         s.provider, s.feed, s.flags, s.session_index, b.symbol_id is not null, {overrules},
         b.provider = s.provider and %(most_tenures)s <= (
           select count(*) from candle_revisions r where {same_revision} and not ({_differs("r", as_float32=float32)}))
    from {self.stage} s left join {name} b on {here}
   where b.symbol_id is null or ({_differs("b", as_float32=float32)})
  returning session_index, stored, overrules, coalesce(flips, false) as flips, as_of)
select session_index, count(*) filter (where not stored), count(*) filter (where stored and overrules and not flips),
       count(*) filter (where stored and not overrules), count(*) filter (where flips),
       coalesce((extract(epoch from max(as_of) filter (where overrules and not flips or not stored)) * 1000000)::int8, 0)
  from found group by session_index"""  # noqa: S608 - column and table names of this module
            for float32 in (False, True)
        }
        # Whose answer it was is told how many of its bars were not taken: nothing is left out in silence.
        self._note_untaken = f"""
update fetches f set dropped = f.dropped || k.told
  from (select fetch_id, jsonb_object_agg(why, bars) as told
          from (select fetch_id, case when flips then 'flip_flop' else 'left_alone' end as why, count(*) as bars
                  from {changed} where stored and (flips or not overrules) group by 1, 2) w
         group by fetch_id) k
 where f.fetch_id = k.fetch_id"""  # noqa: S608 - as above
        replaced = ", ".join(f"{column} = s.{column}" for column in (*VALUES, *ORIGIN) if column != "flags")
        chosen = f"case when b.provider = s.provider then b.flags & {by_opinion} else 0 end"
        self._apply = f"""
merge into {name} b using {changed} s on {here}
when matched and s.overrules and s.flips is not true then update set {replaced}, flags = s.flags | {chosen}
when not matched then insert ({_listed(self.columns)}) values ({_listed(self.columns, "s")})"""  # noqa: S608 - as above
        self._copy = f"copy {name} ({_listed(self.columns)}) from stdin (format binary)"
        self._copy_stage = f"copy {self.stage} ({_listed(self.columns)}, session_index) from stdin (format binary)"

    def copy_new(self, cursor: Cursor, rows: CopyReader) -> bool:
        """Append rows in the order of ``columns``. False, and nothing is appended, where one of them is already stored."""
        cursor.execute("savepoint new_bars")
        try:
            cursor.copy_expert(self._copy, rows, size=1 << 18)
        except psycopg2.errors.UniqueViolation:
            cursor.execute("rollback to savepoint new_bars")
            return False
        cursor.execute("release savepoint new_bars")
        return True

    def open_stage(self, cursor: Cursor) -> None:
        """An empty table called ``stage``: ``columns``, and ``session_index``, which counts changes by session."""
        cursor.execute(self._open)

    def copy_to_stage(self, cursor: Cursor, rows: CopyReader) -> None:
        """Fill the stage with rows in the order of ``columns``, ``session_index`` last."""
        cursor.copy_expert(self._copy_stage, rows, size=1 << 18)

    def apply_stage(
        self,
        cursor: Cursor,
        *,
        symbol_ids: Collection[int],
        first: datetime | date,
        last: datetime | date,
        float32_prices: bool = False,
        ranking: Sequence[int] | None = None,
        most_tenures: int | None = MOST_TENURES,
    ) -> StageChanges:
        """Write the staged bars that are new or differ from what is stored; the triggers keep what is replaced.

        The bounds must enclose the stage: a bar outside them counts as new. ``float32_prices``: prices that are the same float32
        are the same. ``ranking``: the numbers of providers, best first: a stored bar gives way to that of a better one, too. None:
        only to its own provider's. ``most_tenures``: how often a bar may take one value of one provider; None: as often as it is
        told, for what is computed and follows what it is computed from.
        """
        bounds = {"symbol_ids": sorted(symbol_ids), "first": first, "last": last}
        cursor.execute(self._compare[float32_prices], {**bounds, "ranking": ranking, "most_tenures": most_tenures})
        found = cast("list[tuple[int, int, int, int, int, int]]", cursor.fetchall())
        changed = {
            index: SessionChange(inserted, revised, known_at)
            for index, inserted, revised, *_, known_at in found
            if inserted or revised
        }
        left_alone = {index: bars for index, _, _, bars, *_ in found if bars}
        flip_flops = {index: bars for index, *_, bars, _ in found if bars}
        if changed:
            cursor.execute(self._apply, bounds)
        if left_alone or flip_flops:
            cursor.execute(self._note_untaken)
        return StageChanges(changed, left_alone, flip_flops)


INTRADAY = StagedTable("candles_intraday", ("symbol_id", "interval_s", "opened_at"))
DAILY = StagedTable("candles_daily", ("symbol_id", "session_date"))


def table_of(interval: Interval) -> StagedTable:
    """Where the candles of ``interval`` live."""
    return DAILY if interval.is_daily else INTRADAY


# --- digests -----------------------------------------------------------------------------------------------------------


def session_digests(batch: CandleBatch, offsets: Int64s) -> list[bytes | None]:
    """A 128-bit digest of the bars of each session, None for a session without bars. ``offsets``: where its rows begin.

    Prices of a provider that widens float32 are digested as float32. Another resolution is another digest, always.
    """
    columns = batch.columns
    price = "<f4" if batch.float32_prices else "<f8"
    layout = np.dtype([("opened_at", "<i8"), *((name, price) for name in PRICES), ("volume", "<f8")])
    table = np.empty(len(columns), layout)
    with np.errstate(over="ignore"):
        for name in layout.names or ():
            table[name] = getattr(columns, name)
    body = table.view(np.uint8).data
    known = ~(np.isnan(columns.vwap) & np.isnan(columns.trades))
    extras = np.column_stack((columns.vwap, columns.trades)) if known.any() else None
    digests: list[bytes | None] = []
    edges = offsets.tolist()
    for first, last in pairwise(edges):
        if first == last:
            digests.append(None)
            continue
        with_extras = extras is not None and bool(known[first:last].any())
        digest = hashlib.blake2b(
            body[first * layout.itemsize : last * layout.itemsize],
            digest_size=16,
            person=f"bars {price}{' +' if with_extras else ''}".encode(),
        )
        if with_extras:
            digest.update(cast("npt.NDArray[np.float64]", extras)[first:last].tobytes())
        digests.append(digest.digest())
    return digests


# --- the writer --------------------------------------------------------------------------------------------------------


class CandleWriter:
    """Stores batches. Instances may be shared by threads; each write takes a connection of the engine's pool."""

    def __init__(
        self, engine: Engine, tracer: Tracer = NO_TRACER, *, tell_seconds: Callable[[float], object] | None = None
    ) -> None:
        self._engine, self._tracer = engine, tracer
        # Told how long each batch took, from asking for its locks until it is committed.
        self._tell_seconds = tell_seconds

    def write(
        self,
        batch: CandleBatch,
        *,
        now: datetime,
        policy: HealingPolicy,
        known_at: datetime | None = None,
        run_id: str | None = None,
        ranking: Sequence[str] | None = None,
    ) -> WriteReport:
        """Store a batch in one transaction: all of it, or nothing.

        ``known_at`` is when we learned it (None: the database's clock, read under the lock); for a session we already knew bars
        of, it is raised where needed to be later than what we knew, so knowledge never runs backwards. Writing the same again
        changes no bar and no ledger row. Bars that the batch lacks stay.

        A stored bar is revised only by the provider that gave it; others only fill holes, and what differs of theirs is counted as
        left alone. ``ranking``, names of providers, best first, is for asking again on purpose: a bar then also gives way to a
        provider that stands before its own, which counts as last where it is not named. A bar that a second opinion chose gives way
        to its own provider, and to another opinion.

        A value that a bar has had ``MOST_TENURES`` times already is not taken again: two servers of one provider that tell
        different values in turn make no endless revisions. A value never told before always is.

        Raises ValueError for a batch that breaks its contract and psycopg2's CheckViolation for a bar that breaks a law of the
        table: both are the caller's bugs.
        """
        offsets = _checked_offsets(batch)
        digests = session_digests(batch, offsets)
        rows, sessions = len(batch.columns), len(batch.sessions)
        began = time.perf_counter()
        with self._tracer.span("save", interval=str(batch.interval), rows=rows, sessions=sessions) as span, ExitStack() as ending:
            cursor = ending.enter_context(transaction(self._engine))
            # An answer that was refused whole says nothing of any session, and still brings refused bars and corporate actions.
            further = {symbol_id for symbol_id, *_ in (*batch.refused, *batch.actions)}
            symbol_ids = sorted({s.symbol_id for s in batch.sessions} | set(np.unique(batch.symbol_id).tolist()) | further)
            lock_series(cursor, symbol_ids, batch.interval.seconds, *([ACTIONS_LOCK] if batch.actions else []))
            learned_at = known_at or database_time(cursor)
            before = read_ledger(cursor, batch.interval, [(s.symbol_id, s.session) for s in batch.sessions])
            _require_same_grid(batch, before)
            fetch_ids = record_fetches(cursor, batch.fetches, _fetch_symbols(batch), run_id=run_id)
            names = dict.fromkeys((*(ranking or ()), *(fetch.provider for fetch in batch.fetches)))
            providers = {name: provider_number(cursor, name) for name in names}
            stored = _Bars(batch, offsets, digests, before, fetch_ids, providers, learned_at, ranking).store(cursor)
            changes = stored.changed
            decided = advance_ledger(
                cursor,
                batch.interval,
                before=before,
                sessions=[
                    replace(session, is_taken=False) if index in stored.left_alone else session
                    for index, session in enumerate(batch.sessions)
                ],
                changes=changes,
                # What differs from what is stored must be compared again the next time.
                digests=[
                    None if index in stored.left_alone or index in stored.flip_flops else digest
                    for index, digest in enumerate(digests)
                ],
                learned_at=learned_at,
                now=now,
                policy=policy,
                run_id=run_id,
            )
            inserted = sum(change.inserted for change in changes.values())
            revised = sum(change.revised for change in changes.values())
            refused = _keep_refused(cursor, batch, fetch_ids)
            _keep_actions(cursor, batch, fetch_ids, learned_at)
            if changes:
                _move_cursors(cursor, batch, {batch.sessions[index].symbol_id for index in changes}, now)
            if changes or decided:
                _notify(cursor, batch.interval, symbols=len(symbol_ids), rows=inserted + revised)
            span.note(symbols=len(symbol_ids), inserted=inserted, revised=revised)
            with self._tracer.span("commit"):
                ending.close()
        if self._tell_seconds is not None:
            self._tell_seconds(time.perf_counter() - began)
        left_alone, flip_flops = sum(stored.left_alone.values()), sum(stored.flip_flops.values())
        return WriteReport(
            inserted=inserted,
            revised=revised,
            unchanged=len(batch.columns) - inserted - revised - left_alone - flip_flops,
            left_alone=left_alone,
            flip_flops=flip_flops,
            refused=refused,
            confirmed_empty=sum(
                int(decision.slots.sum()) for *_, decision in decided if decision.verdict is Verdict.CONFIRMED_EMPTY
            ),
            known_at=max([learned_at, *(instant_of(change.known_at) for change in changes.values())]),
        )


def provider_number(cursor: Cursor, name: str) -> int:
    """The number that bars carry for a provider; it gets one when it first writes.

    Call it under ``lock_series``. The number is final once the transaction commits, so it must not be remembered before.
    """
    cursor.execute("select provider from providers where name = %s", (name,))
    found = cursor.fetchone()
    if found is None:
        # Selected first: an insert that ends in a conflict uses up one of the 32,767 numbers.
        cursor.execute("insert into providers (name) values (%s) on conflict (name) do nothing", (name,))
        cursor.execute("select provider from providers where name = %s", (name,))
        found = cursor.fetchone()
    return int(cast("tuple[int]", found)[0])


def _checked_offsets(batch: CandleBatch) -> Int64s:
    """Where the rows of each session begin, and the end; ValueError where the batch is not what its docstring says."""
    keys = [(session.symbol_id, session.session) for session in batch.sessions]
    if any(later <= earlier for earlier, later in pairwise(keys)):
        raise ValueError("the sessions of a batch must be sorted by (symbol_id, session), each named once")
    offsets = np.searchsorted(batch.session_index, np.arange(len(keys) + 1)).astype(np.int64)
    opened_at = batch.columns.opened_at
    owners = np.array([symbol_id for symbol_id, _ in keys], np.int64)
    same_symbol = batch.symbol_id[1:] == batch.symbol_id[:-1]
    if len(opened_at) != offsets[-1] or (np.diff(batch.session_index) < 0).any() or offsets[0] != 0:
        raise ValueError("session_index must be sorted and point into the sessions of the batch")
    if (owners[batch.session_index] != batch.symbol_id).any() or (same_symbol & (np.diff(opened_at) <= 0)).any():
        raise ValueError("bars must be sorted by (symbol_id, opened_at), unique, and of the symbol of their session")
    marked = [int(np.count_nonzero(session.bars)) for session in batch.sessions]
    if np.diff(offsets).tolist() != marked:
        raise ValueError("each session must mark in its bars exactly the bars that the batch holds of it")
    return offsets


def _require_same_grid(batch: CandleBatch, before: Mapping[tuple[int, date], LedgerRow]) -> None:
    for session in batch.sessions:
        row = before.get((session.symbol_id, session.session))
        if row is not None and (row.opens_at, row.closes_at, row.expected) != (
            session.opens_at,
            session.closes_at,
            len(session.bars),
        ):
            raise InvalidInputError(
                f"symbol {session.symbol_id}, {batch.interval}, session {session.session}: the ledger expects {row.expected} bars "
                f"from {instant_of(row.opens_at * 1_000_000)}, the answer {len(session.bars)} from "
                f"{instant_of(session.opens_at * 1_000_000)}: the calendar changed since; run `mdp reconcile --repair`"
            )


@dataclass(frozen=True, slots=True, eq=False)
class _Bars:
    """The bars of one batch on their way into their table."""

    batch: CandleBatch
    offsets: Int64s
    digests: Sequence[bytes | None]
    before: Mapping[tuple[int, date], LedgerRow]
    fetch_ids: Sequence[int]
    providers: Mapping[str, int]
    learned_at: datetime
    ranking: Sequence[str] | None

    def store(self, cursor: Cursor) -> StageChanges:
        """Write what is new or differs. Answers what came of it, by index of the session."""
        known_at = np.full(len(self.batch.sessions), micros(self.learned_at))
        new, known = [], []
        for index, session in enumerate(self.batch.sessions):
            row = self.before.get((session.symbol_id, session.session))
            if self.digests[index] is None or (row is not None and row.digest == self.digests[index]):
                continue
            if row is None or not row.present.any():
                new.append(index)
            else:
                known.append(index)
                # Two changes under a clock that stands still are two states of knowledge.
                known_at[index] = max(known_at[index], micros(cast("datetime", row.known_at)) + 1)
        table = table_of(self.batch.interval)
        counts = np.diff(self.offsets)
        changes: dict[int, SessionChange] = {}
        untaken = StageChanges({}, {})
        if new:
            if table.copy_new(cursor, self._reader(new, known_at)):
                changes = {index: SessionChange(int(counts[index]), 0, int(known_at[index])) for index in new}
            else:
                # The ledger is out of step with the bars: what the tables hold decides.
                known = sorted(new + known)
        if known:
            rows = self._rows(known)
            opened_at = self.batch.columns.opened_at[rows]
            first, last = (instant_of(int(edge) * 1_000_000) for edge in (opened_at.min(), opened_at.max()))
            table.open_stage(cursor)
            table.copy_to_stage(cursor, self._reader(known, known_at, staged=True))
            applied = table.apply_stage(
                cursor,
                symbol_ids={self.batch.sessions[index].symbol_id for index in known},
                first=first.date() if self.batch.interval.is_daily else first,
                last=last.date() if self.batch.interval.is_daily else last,
                float32_prices=self.batch.float32_prices,
                ranking=None if self.ranking is None else [self.providers[name] for name in self.ranking],
            )
            changes |= applied.changed
            untaken = applied
        return StageChanges(changes, untaken.left_alone, untaken.flip_flops)

    def _by_fetch(self, values: Sequence[int], rows: slice | Bools) -> int | Int16s:
        """What each bar has from its fetch: one value where all have the same, which costs the copy nothing."""
        if len(set(values)) == 1:
            return int(values[0])
        return np.array(values, np.int16)[self.batch.fetch_index[rows]]

    def _rows(self, sessions: Sequence[int]) -> slice | Bools:
        if len(sessions) == len(self.batch.sessions):
            return slice(None)
        chosen = np.zeros(len(self.batch.sessions), bool)
        chosen[sessions] = True
        return cast("Bools", chosen[self.batch.session_index])

    def _reader(self, sessions: Sequence[int], known_at: Int64s, *, staged: bool = False) -> CopyReader:
        """The bars of these sessions, with the columns of their table in order."""
        batch, rows = self.batch, self._rows(sessions)
        columns, session_index = batch.columns, batch.session_index[rows]
        opened_at = columns.opened_at[rows]
        if batch.interval.is_daily:
            key = [CopyColumn(binary.DATE, binary.dates(opened_at // DAY_SECONDS))]
        else:
            key = [
                CopyColumn(binary.INT4, batch.interval.seconds),
                CopyColumn(binary.TIMESTAMPTZ, binary.timestamps(opened_at * 1_000_000)),
            ]
        return CopyReader(
            [
                CopyColumn(binary.INT4, batch.symbol_id[rows]),
                *key,
                *(CopyColumn(binary.FLOAT8, getattr(columns, name)[rows]) for name in (*PRICES, "volume")),
                CopyColumn(binary.FLOAT8, columns.vwap[rows], nullable=True),
                CopyColumn(binary.INT8, columns.trades[rows], nullable=True),
                CopyColumn(binary.INT8, np.array(self.fetch_ids, np.int64)[batch.fetch_index[rows]]),
                CopyColumn(binary.TIMESTAMPTZ, binary.timestamps(known_at)[session_index]),
                CopyColumn(binary.INT2, self._by_fetch([self.providers[fetch.provider] for fetch in batch.fetches], rows)),
                CopyColumn(binary.INT2, self._by_fetch(batch.feeds or [Feed.CONSOLIDATED], rows)),
                CopyColumn(binary.INT2, batch.flags[rows]),
                *([CopyColumn(binary.INT4, session_index)] if staged else []),
            ],
            len(opened_at),
        )


# --- provenance and what else an answer brings -------------------------------------------------------------------------

RECORD_FETCHES = """
insert into fetches (provider, symbol_id, interval_s, request, started_at, latency_seconds, outcome, status, rows,
                     payload_bytes, payload_sha256, error, attempts, dropped, capability, run_id)
select provider, symbol_id, interval_s, request, started_at, latency_seconds, outcome, status, rows,
       payload_bytes, payload_sha256, error, attempts, dropped, capability, %s
  from unnest(%s::text[], %s::int4[], %s::int4[], %s::text[], %s::timestamptz[], %s::float8[], %s::text[], %s::int4[], %s::int4[],
              %s::int8[], %s::text[], %s::text[], %s::int4[], %s::jsonb[], %s::text[]) with ordinality
       as k(provider, symbol_id, interval_s, request, started_at, latency_seconds, outcome, status, rows,
            payload_bytes, payload_sha256, error, attempts, dropped, capability, place)
 order by place
returning fetch_id"""


def record_fetches(cursor: Cursor, fetches: Sequence[Fetch], symbol_ids: Sequence[int | None], *, run_id: str | None) -> list[int]:
    """Write one row of provenance for each answer; the keys come back in the order of ``fetches``."""
    if not fetches:
        return []
    cursor.execute(
        RECORD_FETCHES,
        (
            run_id,
            [fetch.provider for fetch in fetches],
            list(symbol_ids),
            [None if fetch.interval is None else fetch.interval.seconds for fetch in fetches],
            [_storable(fetch.request) for fetch in fetches],
            [fetch.started_at for fetch in fetches],
            [fetch.latency_seconds for fetch in fetches],
            [fetch.outcome for fetch in fetches],
            [fetch.status for fetch in fetches],
            [fetch.rows for fetch in fetches],
            [fetch.payload_bytes for fetch in fetches],
            [fetch.payload_sha256 for fetch in fetches],
            [None if fetch.error is None else _storable(fetch.error) for fetch in fetches],
            [fetch.attempts for fetch in fetches],
            [json.dumps(dict(fetch.dropped)) for fetch in fetches],
            [fetch.capability or ("" if fetch.interval is None else bars(fetch.interval)) for fetch in fetches],
        ),
    )
    # Numbers are given out in the order of insertion; the order of RETURNING is not promised.
    return sorted(fetch_id for (fetch_id,) in cursor)


def _storable(text: str) -> str:
    # An error may quote a body, and a body may hold what Postgres' text cannot: NUL and half a surrogate pair.
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode("utf-8")


def _fetch_symbols(batch: CandleBatch) -> list[int | None]:
    if batch.fetch_symbol_ids:
        return list(batch.fetch_symbol_ids)
    symbols: list[int | None] = [None] * len(batch.fetches)
    for symbol_id, index, _ in (*batch.refused, *batch.actions):
        symbols[index] = symbol_id
    indexes, rows = np.unique(batch.fetch_index, return_index=True)
    for index, symbol_id in zip(indexes.tolist(), batch.symbol_id[rows].tolist(), strict=True):
        symbols[index] = symbol_id
    return symbols


MOVE_CURSORS = """
insert into ingestion_cursor as c (symbol_id, interval_s, provider, last_opened_at, status, updated_at)
select symbol_id, %s, provider, to_timestamp(last_opened_at), 'ok', %s
  from unnest(%s::int4[], %s::text[], %s::int8[]) as k(symbol_id, provider, last_opened_at)
on conflict (symbol_id, interval_s, provider) do update
   set last_opened_at = greatest(c.last_opened_at, excluded.last_opened_at), status = excluded.status,
       updated_at = excluded.updated_at
 where c.last_opened_at < excluded.last_opened_at or c.status <> excluded.status"""


def _move_cursors(cursor: Cursor, batch: CandleBatch, symbol_ids: Collection[int], now: datetime) -> None:
    # Bars are sorted, so of all runs of one fetch's bars of one symbol the last to end is the newest.
    breaks = (np.diff(batch.symbol_id) != 0) | (np.diff(batch.fetch_index) != 0)
    ends = np.append(np.flatnonzero(breaks), len(batch.symbol_id) - 1)
    newest = {
        (symbol_id, batch.fetches[fetch].provider): opened_at
        for symbol_id, fetch, opened_at in zip(
            batch.symbol_id[ends].tolist(),
            batch.fetch_index[ends].tolist(),
            batch.columns.opened_at[ends].tolist(),
            strict=True,
        )
    }
    moved = sorted(key for key in newest if key[0] in symbol_ids)
    names = [name for _, name in moved]
    cursor.execute(MOVE_CURSORS, (batch.interval.seconds, now, [s for s, _ in moved], names, [newest[key] for key in moved]))


KEEP_REFUSED = """
insert into refused_bars (symbol_id, interval_s, opened_at, reason, bar, fetch_id)
select symbol_id, %(interval_s)s, to_timestamp(opened_at), reason, bar, fetch_id
  from unnest(%(symbol_ids)s::int4[], %(opened_at)s::int8[], %(reasons)s::text[], %(bars)s::jsonb[], %(fetch_ids)s::int8[])
       as k(symbol_id, opened_at, reason, bar, fetch_id)
 where not exists (select from refused_bars r
                    where r.symbol_id = k.symbol_id and r.interval_s = %(interval_s)s and r.opened_at = to_timestamp(k.opened_at)
                      and r.reason = k.reason and r.bar = k.bar)"""


def _keep_refused(cursor: Cursor, batch: CandleBatch, fetch_ids: Sequence[int]) -> int:
    """Keep refused bars, each the first time it is seen; how many the batch holds."""
    rows = [
        (
            symbol_id,
            opened_at,
            reason,
            json.dumps({name: repr(value) for name, value in zip(VALUES, values, strict=True)}),
            fetch_ids[index],
        )
        for symbol_id, index, refused in batch.refused
        for opened_at, reason, *values in zip(
            refused.columns.opened_at.tolist(),
            refused.reasons,
            *(getattr(refused.columns, name).tolist() for name in VALUES),
            strict=True,
        )
    ]
    if rows:
        names = ("symbol_ids", "opened_at", "reasons", "bars", "fetch_ids")
        columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        cursor.execute(KEEP_REFUSED, {"interval_s": batch.interval.seconds, **columns})
    return len(rows)


KEEP_ACTIONS = """
with told as materialized (
  select * from unnest(%(symbol_ids)s::int4[], %(kinds)s::text[], %(sessions)s::date[], %(providers)s::text[],
                       %(values)s::float8[], %(currencies)s::text[], %(fetch_ids)s::int8[])
                as k(symbol_id, kind, session_date, provider, value, currency, fetch_id)),
current as (
  select t.*, a.known_from, greatest(%(known_at)s, a.known_from + interval '1 microsecond') as replaced_at,
         a.value is not distinct from t.value and a.currency is not distinct from t.currency as is_same
    from told t left join corporate_actions a
      on a.symbol_id = t.symbol_id and a.kind = t.kind and a.session_date = t.session_date
     and a.provider = t.provider and a.known_to is null),
closed as (
  update corporate_actions a set known_to = c.replaced_at from current c
   where not c.is_same and a.symbol_id = c.symbol_id and a.kind = c.kind and a.session_date = c.session_date
     and a.provider = c.provider and a.known_from = c.known_from)
insert into corporate_actions (symbol_id, kind, session_date, provider, value, currency, fetch_id, known_from)
select symbol_id, kind, session_date, provider, value, currency, fetch_id, greatest(%(known_at)s, replaced_at)
  from current where not is_same"""


def _keep_actions(cursor: Cursor, batch: CandleBatch, fetch_ids: Sequence[int], learned_at: datetime) -> None:
    # Two windows of one batch may tell the same action: the last one told holds.
    told = {
        (symbol_id, action.kind, action.session, batch.fetches[index].provider): (action, fetch_ids[index])
        for symbol_id, index, action in batch.actions
    }
    if not told:
        return
    cursor.execute(
        KEEP_ACTIONS,
        {
            "symbol_ids": [symbol_id for symbol_id, *_ in told],
            "kinds": [kind for _, kind, *_ in told],
            "sessions": [session for *_, session, _ in told],
            "providers": [provider for *_, provider in told],
            "values": [action.value for action, _ in told.values()],
            "currencies": [action.currency for action, _ in told.values()],
            "fetch_ids": [fetch_id for _, fetch_id in told.values()],
            "known_at": learned_at,
        },
    )


def _notify(cursor: Cursor, interval: Interval, *, symbols: int, rows: int) -> None:
    payload = json.dumps({"interval": interval.value, "symbols": symbols, "rows": rows}, separators=(",", ":"))
    cursor.execute("select pg_notify(%s, %s)", (CHANNEL, payload))
