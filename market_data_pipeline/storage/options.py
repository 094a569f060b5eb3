"""Option chains in Postgres: one snapshot a moment, read back whole. Judging is not done here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from market_data_pipeline.domain.capabilities import OPTIONS_CHAIN
from market_data_pipeline.domain.ports import OptionQuote
from market_data_pipeline.domain.snapshots import Flag
from market_data_pipeline.storage.bulk import database_time, lock_series, record_fetches, transaction
from market_data_pipeline.storage.refused import keep_refused

if TYPE_CHECKING:
    from datetime import date, datetime

    from sqlalchemy import Connection, Engine, Row

    from market_data_pipeline.domain.snapshots import JudgedChain

# Below all intervals, and another than that of quotes.
CHAINS_LOCK = -2

_FIELDS = (
    "contract", "root", "expiry", "strike", "right", "bid", "ask", "last", "last_at", "volume", "open_interest",
    "bid_size", "ask_size", "iv", "delta", "gamma", "vega", "theta", "rho",
)  # fmt: skip
_COLUMNS = ", ".join('"right"' if name == "right" else name for name in _FIELDS)

_NEWEST = """
select snapshot_id, known_from, taken_at, digest
  from option_chains
 where symbol_id = %(symbol_id)s and provider = %(provider)s and expiry is not distinct from %(expiry)s::date
 order by known_from desc, snapshot_id desc limit 1
"""

_STORE_CHAIN = """
insert into option_chains (symbol_id, provider, expiry, taken_at, spot, contracts, is_complete, flags, digest, fetch_id, known_from)
values (%(symbol_id)s, %(provider)s, %(expiry)s, %(taken_at)s, %(spot)s, %(contracts)s, %(is_complete)s, %(flags)s, %(digest)s,
        %(fetch_id)s, %(known_from)s)
returning snapshot_id
"""

_STORE_CONTRACTS = f"""
insert into option_contracts (snapshot_id, {_COLUMNS}, flags)
select %(snapshot_id)s, k.*
  from unnest(%(contract)s::text[], %(root)s::text[], %(expiry)s::date[], %(strike)s::float8[], %(right)s::text[],
              %(bid)s::float8[], %(ask)s::float8[], %(last)s::float8[], %(last_at)s::timestamptz[], %(volume)s::float8[],
              %(open_interest)s::float8[], %(bid_size)s::float8[], %(ask_size)s::float8[], %(iv)s::float8[], %(delta)s::float8[],
              %(gamma)s::float8[], %(vega)s::float8[], %(theta)s::float8[], %(rho)s::float8[], %(flags)s::int2[])
       as k ({_COLUMNS}, flags)
"""  # noqa: S608 - column names of this module

# A chain of every expiry holds the one that is asked for, too.
_LATEST = """
select snapshot_id
  from option_chains
 where symbol_id = %(symbol_id)s and provider = coalesce(%(provider)s, provider)
   and known_from <= coalesce(%(as_of)s, 'infinity'::timestamptz)
   and (expiry is null or expiry = %(expiry)s::date)
 order by known_from desc, snapshot_id desc limit 1
"""

_CHAIN = """
select c.*, u.symbol from option_chains c join symbol_universe u using (symbol_id) where c.snapshot_id = %(snapshot_id)s
"""

_CONTRACTS = f"""
select {_COLUMNS}, flags
  from option_contracts
 where snapshot_id = %(snapshot_id)s and expiry = coalesce(%(expiry)s::date, expiry)
 order by expiry, strike, "right", contract
"""  # noqa: S608 - as above


@dataclass(frozen=True, slots=True)
class ChainWritten:
    """What one write changed. ``is_new`` False: the provider's last snapshot says the same, and ``snapshot_id`` is that one."""

    snapshot_id: int
    is_new: bool
    contracts: int
    refused: int
    fetch_id: int
    known_at: datetime


@dataclass(frozen=True, slots=True, eq=False)
class StoredChain:
    """One moment of a chain, by expiry, strike and right. ``expiry`` is what had been asked for, None for every one."""

    snapshot_id: int
    symbol_id: int
    symbol: str
    provider: str
    expiry: date | None
    taken_at: datetime
    spot: float | None
    contracts: list[tuple[OptionQuote, Flag]]
    is_complete: bool
    flags: Flag
    known_from: datetime
    fetch_id: int


class OptionStore:
    """Option chains, written and read. Instances may be shared by threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def record(
        self, judged: JudgedChain, symbol_id: int, *, known_at: datetime | None = None, run_id: str | None = None
    ) -> ChainWritten:
        """Store one chain in one transaction: its fetch, the snapshot with all of its contracts, and what was refused.

        ``known_at``: when we learned it, None for the database's clock; raised where needed to be later than the last snapshot. The
        same answer again, taken at the same moment with the same contracts, is recorded as a fetch and is no new snapshot.
        """
        provider, digest = judged.fetch.provider, _digest(judged)
        with transaction(self._engine) as cursor:
            lock_series(cursor, [symbol_id], CHAINS_LOCK)
            learned_at = known_at or database_time(cursor)
            (fetch_id,) = record_fetches(cursor, [judged.fetch], [symbol_id], run_id=run_id)
            given = {"symbol_id": symbol_id, "provider": provider, "expiry": judged.expiry}
            cursor.execute(_NEWEST, given)
            newest = cursor.fetchone()
            is_new = newest is None or (newest[2], bytes(newest[3])) != (judged.taken_at, digest)
            if newest is None or is_new:
                learned_at = learned_at if newest is None else max(learned_at, newest[1])
                chain = {
                    **given,
                    "taken_at": judged.taken_at,
                    "spot": judged.spot,
                    "contracts": len(judged.contracts),
                    "is_complete": judged.is_complete,
                    "flags": int(judged.flags),
                    "digest": digest,
                    "fetch_id": fetch_id,
                    "known_from": learned_at,
                }
                cursor.execute(_STORE_CHAIN, chain)
                (snapshot_id,) = cursor.fetchone() or (0,)
                columns = {name: [getattr(contract, name) for contract, _ in judged.contracts] for name in _FIELDS}
                flags = [int(flags) for _, flags in judged.contracts]
                cursor.execute(_STORE_CONTRACTS, {"snapshot_id": snapshot_id, **columns, "flags": flags})
            else:
                snapshot_id = newest[0]
            refused = keep_refused(
                cursor,
                [(judged.symbol, record) for record in judged.refused],
                provider=provider,
                capability=OPTIONS_CHAIN,
                fetch_id=fetch_id,
            )
        return ChainWritten(snapshot_id, is_new, len(judged.contracts), refused, fetch_id, learned_at)

    def latest(
        self, symbol_id: int, *, expiry: date | None = None, provider: str | None = None, as_of: datetime | None = None
    ) -> StoredChain | None:
        """The newest snapshot; ``as_of``: as known at that instant. None where there is none.

        ``expiry``: the contracts of that one alone, out of the newest snapshot that holds it; None: of a whole chain.
        """
        given = {"symbol_id": symbol_id, "provider": provider, "as_of": as_of, "expiry": expiry}
        with self._engine.connect() as connection:
            snapshot_id = connection.exec_driver_sql(_LATEST, given).scalar_one_or_none()
            return None if snapshot_id is None else _read(connection, snapshot_id, expiry)

    def snapshot(self, snapshot_id: int) -> StoredChain:
        """One snapshot, whole. Raises NoResultFound for one that does not exist."""
        with self._engine.connect() as connection:
            return _read(connection, snapshot_id, None)


def _read(connection: Connection, snapshot_id: int, expiry: date | None) -> StoredChain:
    chain = connection.exec_driver_sql(_CHAIN, {"snapshot_id": snapshot_id}).one()
    rows = connection.exec_driver_sql(_CONTRACTS, {"snapshot_id": snapshot_id, "expiry": expiry})
    return StoredChain(
        snapshot_id=chain.snapshot_id,
        symbol_id=chain.symbol_id,
        symbol=chain.symbol,
        provider=chain.provider,
        expiry=chain.expiry,
        taken_at=chain.taken_at,
        spot=chain.spot,
        contracts=[_contract(row) for row in rows],
        is_complete=chain.is_complete,
        flags=Flag(chain.flags),
        known_from=chain.known_from,
        fetch_id=chain.fetch_id,
    )


def _contract(row: Row[tuple[object, ...]]) -> tuple[OptionQuote, Flag]:
    return OptionQuote(**{name: row._mapping[name] for name in _FIELDS}), Flag(row.flags)  # noqa: SLF001 - public in SQLAlchemy


def _digest(judged: JudgedChain) -> bytes:
    """Of everything that a snapshot says but its moment."""
    said = hashlib.blake2b(repr((judged.spot, judged.is_complete, judged.expiry)).encode(), digest_size=16)
    for contract, _ in judged.contracts:
        said.update(repr(tuple(getattr(contract, name) for name in _FIELDS)).encode())
    return said.digest()
