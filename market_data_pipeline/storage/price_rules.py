"""What rules over prices remember between two looks, and the quotes they look at. What they decide is domain/price_rules.py."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from market_data_pipeline.domain.alert_config import PriceField
from market_data_pipeline.domain.price_rules import PricePanel, PriceState, Side
from market_data_pipeline.storage.bulk import DAY_SECONDS, instant_of, micros, transaction

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    import numpy.typing as npt
    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - a class that psycopg2 spells in lower case
    from sqlalchemy import Engine

    from market_data_pipeline.domain.candles import Int32s

# Two looks at once would each write what the other has not seen. Whoever stops in the midst of one (SIGSTOP, a host that sleeps)
# loses his transaction: otherwise all others would wait for him. The clock is read once the lock is ours.
_ONE_LOOK_AT_A_TIME = """
set transaction isolation level read committed; set local idle_in_transaction_session_timeout = '60s';
select pg_advisory_xact_lock(7306010); select coalesce(%(at)s, clock_timestamp())"""

_NOTE_WHAT_WAS_TOLD = """
update price_rule_state s set is_told = true
 where not s.is_told and exists (select from alerts a where a.rule = s.rule and a.key = s.key and a.seen_at >= s.fired_at)"""

_REMEMBERED = """
select rule, symbol_id, side, key, definition, is_on, since, fired_at, value, text, is_told
  from price_rule_state
 order by rule, symbol_id, side"""

_REMEMBER = """
insert into price_rule_state as s (rule, symbol_id, side, key, definition, is_on, since, fired_at, is_told, value, text)
select * from unnest(%(rule)s::text[], %(symbol_id)s::int4[], %(side)s::text[], %(key)s::text[], %(definition)s::text[],
                     %(is_on)s::boolean[], %(since)s::timestamptz[], %(fired_at)s::timestamptz[], %(is_told)s::boolean[],
                     %(value)s::float8[], %(text)s::text[])
on conflict (rule, symbol_id, side) do update
   set key = excluded.key, definition = excluded.definition, is_on = excluded.is_on, since = excluded.since,
       fired_at = excluded.fired_at, is_told = excluded.is_told, value = excluded.value, text = excluded.text"""

_FORGET = """
delete from price_rule_state s
 using unnest(%(rule)s::text[], %(symbol_id)s::int4[], %(side)s::text[]) as k (rule, symbol_id, side)
 where s.rule = k.rule and s.symbol_id = k.symbol_id and s.side = k.side"""

# A flag says that a quote is crossed, stale or early: no price to act on.
_QUOTES = """
select q.symbol_id, extract(epoch from q.known_from)::int8, extract(epoch from q.quoted_at)::int8,
       extract(epoch from q.last_at)::int8, q.last, q.bid, q.ask, q.delay_seconds
  from quotes_l1 q
 where q.symbol_id = any(%(symbol_ids)s::int4[]) and q.known_from >= %(since)s and q.known_from <= %(until)s and q.flags = 0
 order by q.symbol_id, q.known_from"""

_SPLITS = """
select distinct symbol_id, session_date - date '1970-01-01' from corporate_actions
 where symbol_id = any(%(symbol_ids)s::int4[]) and kind = 'split' and known_to is null
   and session_date >= (%(since)s::timestamptz at time zone 'UTC')::date"""


_SIDES = {str(side): side for side in Side}


@dataclass(frozen=True, slots=True)
class Remembered:
    """A symbol and side of a rule that holds, or held a moment ago. ``is_told``: an alert of it was seen since it began."""

    rule: str
    symbol_id: int
    side: Side
    key: str
    definition: str
    state: PriceState
    fired_at: datetime
    value: float
    text: str
    is_told: bool = False

    @property
    def place(self) -> tuple[str, int, Side]:
        """What it is remembered under."""
        return self.rule, self.symbol_id, self.side


class QuotePrices(NamedTuple):
    """Quotes as prices. ``delay_seconds``: the longest that a provider of theirs declares."""

    panel: PricePanel
    delay_seconds: int


class PriceRuleLook:
    """One look at what is remembered, alone: until it ends nobody else looks. ``at``: when it began, by the clock of alerts."""

    def __init__(self, cursor: Cursor, at: datetime) -> None:
        self._cursor, self.at = cursor, at

    def remembered(self) -> list[Remembered]:
        """All that is remembered, of whatever rule."""
        self._cursor.execute(_NOTE_WHAT_WAS_TOLD)
        self._cursor.execute(_REMEMBERED)
        return [
            Remembered(rule, symbol_id, _SIDES[side], key, definition, _state(is_on, since), fired_at, value, text, is_told)
            for rule, symbol_id, side, key, definition, is_on, since, fired_at, value, text, is_told in self._cursor
        ]

    def remember(self, rows: Sequence[Remembered]) -> None:
        """Keep these rows in place of what was known of their symbols and sides."""
        if not rows:
            return
        names = ("rule", "symbol_id", "side", "key", "definition", "fired_at", "is_told", "value", "text")
        columns = {name: [getattr(row, name) for row in rows] for name in names}
        columns["is_on"] = [row.state.is_on for row in rows]
        columns["since"] = [instant_of(row.state.since * 1_000_000) for row in rows]
        self._cursor.execute(_REMEMBER, columns)

    def forget(self, rows: Sequence[Remembered]) -> None:
        """Drop these rows."""
        if rows:
            names = ("rule", "symbol_id", "side")
            self._cursor.execute(_FORGET, {name: [getattr(row, name) for row in rows] for name in names})


class PriceRuleStore:
    """What rules over prices remember, and what they read. Instances may be shared by threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @contextmanager
    def look(self, at: datetime | None = None) -> Iterator[PriceRuleLook]:
        """Look and remember in one transaction: all of it at the end of the block, or nothing on an error.

        ``at``: the instant on a virtual clock; None: the database's clock, which alerts go by.
        """
        with transaction(self._engine) as cursor:
            cursor.execute(_ONE_LOOK_AT_A_TIME, {"at": at})
            yield PriceRuleLook(cursor, cast("tuple[datetime]", cursor.fetchone())[0])

    def quotes(self, symbol_ids: Sequence[int], since: datetime, until: datetime, field: PriceField) -> QuotePrices:
        """The quotes that we learned in [since, until], as prices at their own time, where their provider says it.

        Those that are crossed, stale or early are left out, and those stamped later than ``until``.
        """
        given = {"symbol_ids": list(symbol_ids), "since": since, "until": until}
        with self._engine.connect() as connection:
            rows = connection.exec_driver_sql(_QUOTES, given).all()
        if not rows:
            return QuotePrices(PricePanel.of([], [], []), 0)
        columns = np.array(rows, np.float64).T
        owner, known, quoted, traded, last, bid, ask, delay = columns
        quoted = np.where(np.isnan(quoted), known, quoted)
        at, price = quoted, {PriceField.BID: bid, PriceField.ASK: ask}.get(field, (bid + ask) / 2)
        owners = owner.astype(np.int32)
        if field in {PriceField.LAST, PriceField.LAST_OR_MID}:
            # One price for all quotes of a symbol: from the last trade to the middle is no move.
            trades = np.ones(len(owners), bool) if field is PriceField.LAST else np.isin(owners, owners[~np.isnan(last)])
            at = np.where(trades, np.where(np.isnan(traded), quoted, traded), quoted)
            price = np.where(trades, last, price)
        ripe = at <= micros(until) // 1_000_000
        basis = self.split_basis(owners, at.astype(np.int64), since)
        return QuotePrices(PricePanel.of(owners[ripe], at[ripe], price[ripe], basis[ripe]), int(delay.max()))

    def split_basis(self, owner: Int32s, at: npt.NDArray[np.int64], since: datetime) -> Int32s:
        """Of each price how many splits of its symbol took effect from ``since`` on until then, by the splits known now.

        A split takes effect at midnight UTC of its session: at night in America, before or as markets open in the East.
        """
        basis = np.zeros(len(owner), np.int32)
        with self._engine.connect() as connection:
            given = {"symbol_ids": np.unique(owner).tolist(), "since": since}
            for symbol_id, day in connection.exec_driver_sql(_SPLITS, given):
                basis[(owner == symbol_id) & (at >= day * DAY_SECONDS)] += 1
        return basis


def _state(is_on: bool, since: datetime) -> PriceState:  # noqa: FBT001 - a column
    return PriceState(is_on=is_on, since=micros(since) // 1_000_000)
