"""Old rows, deleted by table: in small transactions, so that nobody waits, and never what an open gap or a kept row still needs.

Never deleted: candles, revisions, the ledger, evidence, corporate actions, vintages, universe versions, the audit log. What is kept
of them is what the promise rests on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.retention import Pruned
from market_data_pipeline.storage.bulk import transaction

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime, timedelta

    from sqlalchemy import Engine

    from market_data_pipeline.domain.retention import RetentionPolicy

# Rows of one transaction: some tenths of a second, in which whoever wants the same rows waits.
ROWS_AT_ONCE = 5_000
# Symbols of one transaction where rows are found by symbol: a day of quotes of a T0 symbol is up to 4,700 rows.
SYMBOLS_AT_ONCE = 20
# Bars name their fetch without an index, so a symbol's bars are read to know which fetches they name: of this part of the universe
# a night, and of all once in four weeks.
PARTS = 28
# The newest fetches of a symbol and interval stay in any case: `mdp gaps --explain` reads in them why something is missing.
NEWEST_FETCHES = 5

_SYMBOLS = (
    "select symbol_id from symbol_universe where %(part)s::int4 is null or symbol_id %% %(parts)s = %(part)s order by symbol_id"
)

# The last quote before the edge stays: it holds until the first one after it.
_QUOTES = """
delete from quotes_l1 q
 using (select symbol_id, provider, known_from, lead(known_from) over (partition by symbol_id, provider order by known_from) as next
          from quotes_l1 where symbol_id = any(%(symbol_ids)s::int4[]) and known_from < %(before)s) old
 where old.next is not null and (q.symbol_id, q.known_from, q.provider) = (old.symbol_id, old.known_from, old.provider)"""

_CHAINS = """
with old as (
  select snapshot_id
    from (select snapshot_id, lead(snapshot_id) over w as next
            from option_chains where symbol_id = any(%(symbol_ids)s::int4[]) and known_from < %(before)s
          window w as (partition by symbol_id, provider, expiry order by known_from, snapshot_id)) c
   where next is not null
),
contracts as (delete from option_contracts c using old where c.snapshot_id = old.snapshot_id)
select snapshot_id from old"""
_DELETE_CHAINS = "delete from option_chains where snapshot_id = any(%(ids)s::int8[])"

# A refused bar is what a provider did send where a bar is missing: it stays as long as its session lacks anything.
_REFUSED_BARS = """
delete from refused_bars
 where refused_id in (
   select r.refused_id
     from (select *, (opened_at at time zone 'UTC')::date as day from refused_bars) r
    where r.refused_at < %(before)s
      and not exists (select from coverage c
                       where c.symbol_id = r.symbol_id and c.interval_s = r.interval_s and c.absent > 0
                         and c.session between r.day - 1 and r.day + 1
                         and case r.interval_s when 86400 then c.session = r.day
                                  else r.opened_at >= c.opens_at and r.opened_at < c.closes_at end)
    order by r.refused_id limit %(most)s)"""

_REFUSED_RECORDS = """
delete from refused_records
 where refused_id in (select refused_id from refused_records where refused_at < %(before)s order by refused_id limit %(most)s)"""
_REFUSED_JOBS = """
delete from refused_jobs
 where refused_id in (select refused_id from refused_jobs where refused_at < %(before)s order by refused_id limit %(most)s)"""

_EVENTS = """
delete from provider_events
 where event_id in (
   select event_id
     from (select event_id, at, row_number() over (partition by provider, capability, kind order by event_id desc) as place
             from provider_events) e
    where place > 1 and at < %(before)s order by event_id limit %(most)s)"""

# Their messages go with them.
_ALERTS = """
delete from alerts
 where alert_id in (
   select a.alert_id from alerts a
    where a.state = 'resolved' and a.resolved_at < %(before)s
      and not exists (select from alert_notices n where n.alert_id = a.alert_id and n.state = 'queued')
    order by a.alert_id limit %(most)s)"""
# Of no alert: somebody tried a channel.
_NOTICES = "delete from alert_notices where alert_id is null and state <> 'queued' and created_at < %(before)s"
_SILENCES = "delete from alert_silences where ends_at < %(before)s"

# Provenance without bars: failures, empty answers, quotes and chains that are gone. Whoever names a fetch is asked through an
# index; the quotes left from before the edge are a handful a symbol. A day more: a quote is known a little later than its fetch.
_NOT_NAMED = """
not exists (select from refused_bars r where r.fetch_id = f.fetch_id)
      and not exists (select from refused_records r where r.fetch_id = f.fetch_id)
      and not exists (select from corporate_actions a where a.fetch_id = f.fetch_id)
      and not exists (select from option_chains o where o.fetch_id = f.fetch_id)
      and not exists (select from macro_observations m where m.fetch_id = f.fetch_id)
      and not exists (select from macro_series m where m.fetch_id = f.fetch_id)
      and not exists (select from second_opinions s where s.second_fetch_id = f.fetch_id)
      and not exists (select from second_opinions s where s.third_fetch_id = f.fetch_id)"""
_NEWEST = """
(f.symbol_id is not null and f.interval_s is not null
        and f.fetch_id = any (select n.fetch_id from fetches n where n.symbol_id = f.symbol_id and n.interval_s = f.interval_s
                               order by n.recorded_at desc limit %(newest)s))"""
_FETCHES = f"""
delete from fetches
 where fetch_id in (
   select f.fetch_id from fetches f
    where f.recorded_at < %(before)s and (f.interval_s is null or (f.rows = 0 and f.outcome <> 'ok'))
      and {_NOT_NAMED}
      and not {_NEWEST}
      and not f.fetch_id = any(%(kept)s::int8[])
    order by f.recorded_at limit %(most)s)"""  # noqa: S608 - pieces of this module; values are bound
_FETCHES_OF_QUOTES_LEFT = """
select distinct q.fetch_id from symbol_universe u
 cross join lateral (
   select fetch_id from quotes_l1 q where q.symbol_id = u.symbol_id and q.known_from < %(before)s + interval '1 day') q"""

# Answers with bars of which none is stored from them: asked again and told the same.
_FETCHES_OF_BARS = f"""
with old as materialized (
  select f.fetch_id, f.symbol_id, f.interval_s from fetches f
   where f.symbol_id = any(%(symbol_ids)s::int4[]) and f.interval_s is not null and f.recorded_at < %(before)s
     and not (f.rows = 0 and f.outcome <> 'ok')
     and {_NOT_NAMED}
     and not {_NEWEST}
),
named as materialized (
  select fetch_id from candles_intraday where symbol_id in (select symbol_id from old)
  union select fetch_id from candles_daily where symbol_id in (select symbol_id from old)
  union select fetch_id from candle_revisions where symbol_id in (select symbol_id from old)
)
delete from fetches f using old where f.fetch_id = old.fetch_id and f.fetch_id not in (table named)"""  # noqa: S608 - as above


class Retention:
    """Deletes what is old enough. Repeating it is safe; a call that is killed has deleted whole batches and nothing by halves."""

    def __init__(self, engine: Engine, *, rows_at_once: int = ROWS_AT_ONCE) -> None:
        self._engine = engine
        self._rows_at_once = rows_at_once

    def prune(
        self, policy: RetentionPolicy, *, now: datetime, only: Sequence[str] = (), at_most: int = 5_000_000, dry_run: bool = False
    ) -> Iterator[Pruned]:
        """Delete what is older than ``policy`` allows at ``now``, kind by kind (``KINDS``; ``only`` some), and say how much it was.

        ``at_most`` bounds the rows of each kind in one call. ``dry_run``: nothing is deleted; the rows are those that would be.
        """
        for kind in kinds(only):
            before = now - _age(policy, kind)
            rows = 0
            for deleted in self._batches(kind, before, now, dry_run=dry_run):
                rows += deleted
                if rows >= at_most:
                    break
            yield Pruned(kind, rows, is_complete=rows < at_most)

    def _batches(self, kind: str, before: datetime, now: datetime, *, dry_run: bool) -> Iterator[int]:
        if kind in {"quotes_l1", "option_chains", "fetches_of_bars"}:
            # A dry run looks at everything: somebody waits for an answer, not for tonight's part of it.
            part = now.date().toordinal() % PARTS if kind == "fetches_of_bars" and not dry_run else None
            yield from self._by_symbol(kind, before, part, dry_run=dry_run)
            return
        given: dict[str, object] = {"before": before, "most": None if dry_run else self._rows_at_once, "newest": NEWEST_FETCHES}
        if kind == "fetches":
            given["kept"] = self._fetches_of_quotes_left(before)
        while True:
            deleted = self._execute(kind, given, dry_run=dry_run)
            yield deleted
            if dry_run or deleted < self._rows_at_once:
                return

    def _by_symbol(self, kind: str, before: datetime, part: int | None, *, dry_run: bool) -> Iterator[int]:
        with self._engine.connect() as connection:
            symbol_ids = connection.exec_driver_sql(_SYMBOLS, {"part": part, "parts": PARTS}).scalars().all()
        for at in range(0, len(symbol_ids), SYMBOLS_AT_ONCE):
            given = {"symbol_ids": list(symbol_ids[at : at + SYMBOLS_AT_ONCE]), "before": before, "newest": NEWEST_FETCHES}
            yield self._execute(kind, given, dry_run=dry_run)

    def _execute(self, kind: str, given: Mapping[str, object], *, dry_run: bool) -> int:
        """One batch in one transaction, rolled back where it is only tried."""
        with transaction(self._engine) as cursor:
            if kind in _THEN:
                cursor.execute(_STATEMENTS[kind], given)
                ids = [row[0] for row in cursor]
                cursor.execute(_THEN[kind], {"ids": ids})
                deleted = len(ids)
            else:
                cursor.execute(_STATEMENTS[kind], given)
                deleted = cursor.rowcount
            if dry_run:
                cursor.connection.rollback()
        return deleted

    def _fetches_of_quotes_left(self, before: datetime) -> list[int]:
        with self._engine.connect() as connection:
            return list(connection.exec_driver_sql(_FETCHES_OF_QUOTES_LEFT, {"before": before}).scalars())


# In this order: what names fetches goes before them.
_STATEMENTS = {
    "quotes_l1": _QUOTES,
    "option_chains": _CHAINS,
    "refused_bars": _REFUSED_BARS,
    "refused_records": _REFUSED_RECORDS,
    "refused_jobs": _REFUSED_JOBS,
    "provider_events": _EVENTS,
    "alerts": _ALERTS,
    "alert_notices": _NOTICES,
    "alert_silences": _SILENCES,
    "fetches": _FETCHES,
    "fetches_of_bars": _FETCHES_OF_BARS,
}
# Two statements where one cannot: rows that others of the same statement refer to.
_THEN = {"option_chains": _DELETE_CHAINS}
KINDS = tuple(_STATEMENTS)


def kinds(only: Sequence[str]) -> tuple[str, ...]:
    """The kinds that are meant, in the order in which they are pruned; all where none is named."""
    unknown = [kind for kind in only if kind not in KINDS]
    if unknown:
        raise InvalidInputError(f"nothing called {', '.join(map(repr, unknown))} is pruned: expected some of {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if not only or kind in only)


def _age(policy: RetentionPolicy, kind: str) -> timedelta:
    return {
        "quotes_l1": policy.quotes,
        "option_chains": policy.chains,
        "provider_events": policy.events,
        "alerts": policy.alerts,
        "alert_notices": policy.alerts,
        "alert_silences": policy.alerts,
    }.get(kind, policy.fetches)
