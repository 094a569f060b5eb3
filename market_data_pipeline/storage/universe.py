"""The universe in Postgres: what is loaded from a universe file and read back as instruments. Parsing the file is not done here."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.universe import Instrument, Tier

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Connection, Engine

    from market_data_pipeline.domain.universe import UniverseEntry

# Two loads at once would each count the other's symbols as theirs. No other advisory lock of ours is keyed by one bigint.
_ONE_LOAD_AT_A_TIME = "select pg_advisory_xact_lock(7306001)"

_STORED = """
select u.symbol_id, u.symbol, u.exchange, u.calendar, u.tier, u.asset_type, u.currency, u.adv_21d, u.mkt_cap,
       u.active_from, u.active_to, u.listed_from, u.listed_to, u.is_unknown, u.active
  from symbol_universe u
 where %(symbols)s::text[] is null or u.symbol = any(%(symbols)s::text[])
 order by u.symbol_id
"""

_ALIASES = "select symbol_id, provider, alias from symbol_aliases order by symbol_id, provider"

_SYMBOLS = "select symbol from symbol_universe order by symbol_id"

_VERSION_TAGS = """
select version_tag, source_sha256 from universe_versions
 where version_tag = %(tag)s or starts_with(version_tag, %(tag)s || '#')
"""

_NEW_VERSION = """
insert into universe_versions (version_tag, source, source_sha256, symbols, added, changed, deactivated, loaded_by)
values (%(tag)s, %(source)s, %(sha256)s, %(symbols)s, %(added)s, %(changed)s, %(deactivated)s, %(loaded_by)s)
returning version_id
"""

_ENTRY_COLUMNS = (
    "symbol",
    "exchange",
    "calendar",
    "tier",
    "asset_type",
    "currency",
    "adv_21d",
    "mkt_cap",
    "active_from",
    "active_to",
)
_ENTRY_ROWS = """
unnest(%(symbol)s::text[], %(exchange)s::text[], %(calendar)s::text[], %(tier)s::text[], %(asset_type)s::text[],
       %(currency)s::text[], %(adv_21d)s::float8[], %(mkt_cap)s::float8[], %(active_from)s::date[], %(active_to)s::date[])
  as e (symbol, exchange, calendar, tier, asset_type, currency, adv_21d, mkt_cap, active_from, active_to)
"""

_ADD = f"""
insert into symbol_universe (symbol, exchange, calendar, tier, asset_type, currency, adv_21d, mkt_cap,
                             active_from, active_to, version_id)
select e.*, %(version_id)s from {_ENTRY_ROWS}
"""  # noqa: S608 - joined from constants; every value is bound

_CHANGE = f"""
update symbol_universe u
   set exchange = e.exchange, calendar = e.calendar, tier = e.tier, asset_type = e.asset_type, currency = e.currency,
       adv_21d = e.adv_21d, mkt_cap = e.mkt_cap, active_from = e.active_from, active_to = e.active_to,
       active = true, version_id = %(version_id)s
  from {_ENTRY_ROWS}
 where u.symbol = e.symbol
"""  # noqa: S608 - joined from constants; every value is bound

# Who is asked for under another name, of another exchange or for other sessions was never asked for as it is now.
_FORGET_LISTINGS = """
with changed as (
  update symbol_universe set listed_from = null, listed_to = null, is_unknown = false
   where symbol = any(%(symbols)s::text[]) and (listed_from is not null or listed_to is not null or is_unknown)
  returning symbol_id)
update listing_evidence e set known_to = greatest(clock_timestamp(), e.known_from + interval '1 microsecond')
  from changed c where e.symbol_id = c.symbol_id and e.known_to is null
"""

_DEACTIVATE = "update symbol_universe set active = false, version_id = %(version_id)s where symbol = any(%(symbols)s::text[])"

_FORGET_ALIASES = """
delete from symbol_aliases a using symbol_universe u where u.symbol_id = a.symbol_id and u.symbol = any(%(symbols)s::text[])
"""

_ADD_ALIASES = """
insert into symbol_aliases (symbol_id, provider, alias)
select u.symbol_id, a.provider, a.alias
  from unnest(%(symbols)s::text[], %(providers)s::text[], %(aliases)s::text[]) as a (symbol, provider, alias)
  join symbol_universe u using (symbol)
"""

_RETIER = """
update symbol_universe u
   set tier = t.tier, version_id = %(version_id)s
  from unnest(%(symbols)s::text[], %(tiers)s::text[]) as t (symbol, tier)
 where u.symbol = t.symbol
"""

# Of each symbol that was in the universe by then, whether it was active or not.
_TIERS_AT = """
select distinct on (u.symbol) u.symbol, t.tier
  from symbol_tiers t join symbol_universe u using (symbol_id)
 where t.version_id <= (select version_id from universe_versions where version_tag = %(tag)s)
 order by u.symbol, t.version_id desc
"""

_VERSION_EXISTS = "select exists (select from universe_versions where version_tag = %(tag)s)"

_VERSIONS = """
select version_id, version_tag, source, source_sha256, symbols, added, changed, deactivated, loaded_by, loaded_at
  from universe_versions
 order by version_id desc
"""

MOST_SUGGESTIONS = 5


@dataclass(frozen=True, slots=True)
class UniverseLoadReport:
    """What one load did, symbol by symbol. ``version_tag`` is the version that the universe now is.

    ``absent``: active in the database, not in the entries, and left active because deactivating was not asked for.
    """

    version_tag: str
    added: tuple[str, ...]
    changed: tuple[str, ...]
    deactivated: tuple[str, ...]
    absent: tuple[str, ...]
    unchanged: int

    @property
    def changed_nothing(self) -> bool:
        """The universe already was what the entries say."""
        return not (self.added or self.changed or self.deactivated)


@dataclass(frozen=True, slots=True)
class UniverseVersion:
    """One load of a universe file: from where, by whom, when, and how much it changed."""

    version_id: int
    version_tag: str
    source: str
    source_sha256: str
    symbols: int
    added: int
    changed: int
    deactivated: int
    loaded_by: str
    loaded_at: datetime


@dataclass(frozen=True, slots=True)
class _Stored:
    instrument: Instrument
    active: bool


class UniverseStore:
    """Instruments as the database knows them. A symbol keeps its id for ever; it is deactivated, never deleted."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def load(
        self,
        entries: Sequence[UniverseEntry],
        *,
        version_tag: str,
        source: str,
        source_sha256: str,
        loaded_by: str,
        deactivate_absent: bool = False,
    ) -> UniverseLoadReport:
        """Make the universe say what ``entries`` say of their symbols, all or nothing, and record it as a version.

        New symbols are added, symbols that differ are updated (a deactivated one becomes active again), with all their fields and
        aliases: what an entry leaves open becomes unknown. Where exchange, aliases or dates differ, what was inferred of the
        listing is forgotten. Active symbols that are not among the entries stay active unless
        ``deactivate_absent``. Loading the same entries under the same tag again writes nothing. A tag names one content:
        InvalidInputError where it is another's. When an earlier file is loaded again to go back to it, its version gets a new row
        whose tag ends in ``#2``, ``#3``, …
        """
        with self._engine.begin() as connection:
            connection.exec_driver_sql(_ONE_LOAD_AT_A_TIME)
            stored = _read_stored(connection)
            added = [e for e in entries if e.symbol not in stored]
            changed = [e for e in entries if e.symbol in stored and _differs(stored[e.symbol], e)]
            named = {e.symbol for e in entries}
            absent = tuple(symbol for symbol, known in stored.items() if known.active and symbol not in named)
            deactivated = absent if deactivate_absent else ()
            version = {
                "source": source,
                "sha256": source_sha256,
                "symbols": len(entries),
                "added": len(added),
                "changed": len(changed),
                "deactivated": len(deactivated),
                "loaded_by": loaded_by,
            }
            tag, version_id = _version(connection, version_tag, version)
            if version_id is not None:
                _save(connection, version_id, added=added, changed=changed, deactivated=deactivated)
                renamed = [e.symbol for e in changed if _asked_for(stored[e.symbol].instrument) != _asked_for(e)]
                connection.exec_driver_sql(_FORGET_LISTINGS, {"symbols": renamed})
            return UniverseLoadReport(
                version_tag=tag,
                added=tuple(e.symbol for e in added),
                changed=tuple(e.symbol for e in changed),
                deactivated=deactivated,
                absent=() if deactivate_absent else absent,
                unchanged=len(entries) - len(added) - len(changed),
            )

    def retier(
        self, tiers: Mapping[str, Tier], *, version_tag: str, source: str, source_sha256: str, loaded_by: str
    ) -> UniverseLoadReport:
        """Give the active symbols of ``tiers`` these tiers and leave everything else of them as it is, and record it as a version.

        Tags are used as by ``load``: tiers that are so already write nothing. InvalidInputError names symbols that are not active.
        """
        with self._engine.begin() as connection:
            connection.exec_driver_sql(_ONE_LOAD_AT_A_TIME)
            stored = _read_stored(connection, list(tiers))
            _refuse_unknown(connection, list(tiers), stored, active_only=True)
            changed = [symbol for symbol, tier in tiers.items() if stored[symbol].instrument.tier is not tier]
            version = {
                "source": source,
                "sha256": source_sha256,
                "symbols": len(tiers),
                "added": 0,
                "changed": len(changed),
                "deactivated": 0,
                "loaded_by": loaded_by,
            }
            tag, version_id = _version(connection, version_tag, version)
            if version_id is not None and changed:
                given = {"version_id": version_id, "symbols": changed, "tiers": [str(tiers[symbol]) for symbol in changed]}
                connection.exec_driver_sql(_RETIER, given)
            return UniverseLoadReport(tag, (), tuple(changed), (), (), len(tiers) - len(changed))

    def tiers_at(self, version_tag: str) -> dict[str, Tier]:
        """The tier that each symbol had once ``version_tag`` was loaded; InvalidInputError where there was no such version."""
        with self._engine.connect() as connection:
            if not connection.exec_driver_sql(_VERSION_EXISTS, {"tag": version_tag}).scalar_one():
                raise InvalidInputError(f"no version of the universe is called {version_tag!r}: see the table universe_versions")
            return {symbol: Tier(tier) for symbol, tier in connection.exec_driver_sql(_TIERS_AT, {"tag": version_tag})}

    def instruments(
        self, *, symbols: Sequence[str] | None = None, tier: Tier | None = None, active_only: bool = True
    ) -> list[Instrument]:
        """The instruments asked for, in the order of their ids; all of them where neither symbols nor tier are given.

        InvalidInputError names every one of ``symbols`` that is not in the universe, or that is deactivated while ``active_only``,
        and suggests what may have been meant.
        """
        with self._engine.connect() as connection:
            stored = _read_stored(connection, symbols)
            if symbols is not None:
                _refuse_unknown(connection, symbols, stored, active_only=active_only)
        return [
            known.instrument
            for known in stored.values()
            if (known.active or not active_only) and (tier is None or known.instrument.tier is tier)
        ]

    def instrument(self, symbol: str) -> Instrument:
        """One instrument, active or not; InvalidInputError where the universe never had it."""
        (found,) = self.instruments(symbols=[symbol], active_only=False)
        return found

    def deactivated(self) -> frozenset[str]:
        """The symbols that were in the universe once and are not active now."""
        with self._engine.connect() as connection:
            return frozenset(symbol for symbol, known in _read_stored(connection).items() if not known.active)

    def versions(self) -> list[UniverseVersion]:
        """Every load that is recorded, the newest first."""
        with self._engine.connect() as connection:
            return [UniverseVersion(*row) for row in connection.exec_driver_sql(_VERSIONS)]


def _read_stored(connection: Connection, symbols: Sequence[str] | None = None) -> dict[str, _Stored]:
    """What is known of ``symbols``, in the order of their ids; of every symbol there ever was where None."""
    aliases: dict[int, dict[str, str]] = defaultdict(dict)
    for symbol_id, provider, alias in connection.exec_driver_sql(_ALIASES):
        aliases[symbol_id][provider] = alias
    stored = {}
    parameters = {"symbols": None if symbols is None else list(symbols)}
    for symbol_id, symbol, exchange, calendar, tier, *figures, active in connection.exec_driver_sql(_STORED, parameters):
        asset_type, currency, adv_21d, mkt_cap, active_from, active_to, listed_from, listed_to, is_unknown = figures
        stored[symbol] = _Stored(
            Instrument(
                symbol_id=symbol_id,
                symbol=symbol,
                exchange=exchange,
                calendar=calendar,
                tier=Tier(tier),
                asset_type=asset_type,
                currency=currency,
                adv_21d=adv_21d,
                mkt_cap=mkt_cap,
                active_from=active_from,
                active_to=active_to,
                aliases=aliases.get(symbol_id, {}),
                listed_from=listed_from,
                listed_to=listed_to,
                is_unknown=is_unknown,
            ),
            active,
        )
    return stored


def _facts(of: UniverseEntry | Instrument) -> tuple[object, ...]:
    return (
        of.exchange,
        of.calendar,
        of.tier,
        of.asset_type,
        of.currency,
        of.adv_21d,
        of.mkt_cap,
        of.active_from,
        of.active_to,
        dict(of.aliases),
    )


def _asked_for(of: UniverseEntry | Instrument) -> tuple[object, ...]:
    """What decides how, and for which sessions, providers are asked for it."""
    return of.exchange, of.active_from, of.active_to, dict(of.aliases)


def _differs(known: _Stored, entry: UniverseEntry) -> bool:
    return not known.active or _facts(known.instrument) != _facts(entry)


def _tags_like(connection: Connection, version_tag: str) -> dict[str, str]:
    """The tags that mean ``version_tag``, itself and its repeats ``#2``, ``#3``…, each with the digest of its file."""
    rows = connection.exec_driver_sql(_VERSION_TAGS, {"tag": version_tag})
    return {tag: sha256 for tag, sha256 in rows if tag == version_tag or tag[len(version_tag) + 1 :].isdigit()}


def _version(connection: Connection, version_tag: str, version: Mapping[str, Any]) -> tuple[str, int | None]:
    """The tag under which a load of this content goes, and the id of its new version; None where nothing is new."""
    tags = _tags_like(connection, version_tag)
    if tags.get(version_tag, version["sha256"]) != version["sha256"]:
        raise InvalidInputError(f"the version tag {version_tag!r} names another universe file already: expected a new tag")
    if tags and not (version["added"] or version["changed"] or version["deactivated"]):
        return version_tag if len(tags) == 1 else f"{version_tag}#{len(tags)}", None
    tag = version_tag if not tags else f"{version_tag}#{len(tags) + 1}"
    version_id: int = connection.exec_driver_sql(_NEW_VERSION, {"tag": tag, **version}).scalar_one()
    return tag, version_id


def _save(
    connection: Connection,
    version_id: int,
    *,
    added: Sequence[UniverseEntry],
    changed: Sequence[UniverseEntry],
    deactivated: Sequence[str],
) -> None:
    if added:
        connection.exec_driver_sql(_ADD, {"version_id": version_id, **_arrays(added)})
    if changed:
        connection.exec_driver_sql(_CHANGE, {"version_id": version_id, **_arrays(changed)})
        connection.exec_driver_sql(_FORGET_ALIASES, {"symbols": [e.symbol for e in changed]})
    if deactivated:
        connection.exec_driver_sql(_DEACTIVATE, {"version_id": version_id, "symbols": list(deactivated)})
    aliases = [(e.symbol, provider, alias) for e in (*added, *changed) for provider, alias in e.aliases.items()]
    if aliases:
        symbols, providers, names = zip(*aliases, strict=True)
        parameters = {"symbols": list(symbols), "providers": list(providers), "aliases": list(names)}
        connection.exec_driver_sql(_ADD_ALIASES, parameters)


def _arrays(entries: Iterable[UniverseEntry]) -> Mapping[str, list[Any]]:
    """The entries as one array a column, the way ``_ENTRY_ROWS`` takes them."""
    columns: dict[str, list[Any]] = {name: [] for name in _ENTRY_COLUMNS}
    for entry in entries:
        for name, values in columns.items():
            value = getattr(entry, name)
            values.append(str(value) if isinstance(value, Tier) else value)
    return columns


def _refuse_unknown(connection: Connection, symbols: Sequence[str], stored: Mapping[str, _Stored], *, active_only: bool) -> None:
    unknown = [symbol for symbol in dict.fromkeys(symbols) if symbol not in stored]
    inactive = [symbol for symbol, known in stored.items() if active_only and not known.active]
    complaints = []
    if unknown:
        universe = list(connection.exec_driver_sql(_SYMBOLS).scalars())
        remedy = (
            f"expected symbols of the universe{_suggestions(unknown, universe)}"
            if universe
            else "the universe is empty; load one with `mdp universe load FILE`"
        )
        complaints.append(f"unknown {_listed(unknown)}: {remedy}")
    if inactive:
        complaints.append(f"deactivated {_listed(inactive)}: expected active symbols; loading a file that names one activates it")
    if complaints:
        raise InvalidInputError("; ".join(complaints))


def _listed(symbols: Sequence[str]) -> str:
    shown = ", ".join(repr(symbol if len(symbol) <= 64 else symbol[:61] + "...") for symbol in symbols)
    return f"symbol {shown}" if len(symbols) == 1 else f"symbols {shown}"


def _suggestions(unknown: Sequence[str], universe: Sequence[str]) -> str:
    # A search costs some 10 ms for 8,000 symbols, and a long list of unknown symbols is a wrong file, not many typing errors.
    close = [match for symbol in unknown[:MOST_SUGGESTIONS] for match in get_close_matches(symbol.upper()[:64], universe, n=2)]
    return f"; did you mean {', '.join(dict.fromkeys(close))}?" if close else ""
