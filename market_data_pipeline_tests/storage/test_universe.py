"""A universe load is all or nothing, keeps ids, and can be repeated; unknown symbols are named."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.universe import Instrument, Tier, UniverseEntry
from market_data_pipeline.storage.universe import UniverseLoadReport, UniverseStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Engine


def entry(symbol: str, **but: object) -> UniverseEntry:
    return replace(UniverseEntry(symbol=symbol, exchange="XNYS", tier=Tier.T1), **but)  # type: ignore[arg-type]


def load(store: UniverseStore, entries: Sequence[UniverseEntry], tag: str = "v1", **but: object) -> UniverseLoadReport:
    given: dict[str, object] = {"source": "u.csv", "source_sha256": tag * 8, "loaded_by": "tests"} | but
    return store.load(entries, version_tag=tag, **given)  # type: ignore[arg-type]


def rows_written(engine: Engine) -> int:
    """Changes whenever a universe table is written, even with the same values."""
    with engine.connect() as connection:
        query = """
            select coalesce(sum(xmin::text::int8), 0)
              from (select xmin from symbol_universe union all select xmin from symbol_aliases
                    union all select xmin from universe_versions) written
        """
        return int(connection.exec_driver_sql(query).scalar_one())


def test_what_was_loaded_is_read_back(engine: Engine) -> None:
    store = UniverseStore(engine)
    full = UniverseEntry(
        symbol="BRK.B",
        exchange="NYSE",
        tier=Tier.T0,
        asset_type="equity",
        currency="USD",
        adv_21d=3.5e9,
        mkt_cap=9e11,
        active_from=date(1996, 5, 9),
        active_to=date(2030, 1, 31),
        aliases={"yahoo": "BRK-B", "alpaca": "BRK/B"},
    )
    report = load(store, [full, entry("0700.HK", exchange="XHKG")])
    assert report == UniverseLoadReport("v1", added=("BRK.B", "0700.HK"), changed=(), deactivated=(), absent=(), unchanged=0)
    assert store.instruments() == [
        Instrument(
            symbol_id=1,
            symbol="BRK.B",
            exchange="NYSE",
            calendar="XNYS",
            tier=Tier.T0,
            asset_type="equity",
            currency="USD",
            adv_21d=3.5e9,
            mkt_cap=9e11,
            active_from=date(1996, 5, 9),
            active_to=date(2030, 1, 31),
            aliases={"yahoo": "BRK-B", "alpaca": "BRK/B"},
        ),
        Instrument(symbol_id=2, symbol="0700.HK", exchange="XHKG", calendar="XHKG", tier=Tier.T1),
    ]


def test_the_same_load_again_writes_nothing(engine: Engine) -> None:
    store = UniverseStore(engine)
    entries = [entry("AAPL", aliases={"yahoo": "AAPL.US"}, adv_21d=0.1), entry("MSFT")]
    load(store, entries)
    before = rows_written(engine)
    report = load(store, entries)
    assert (report.changed_nothing, report.unchanged, report.version_tag) == (True, 2, "v1")
    assert rows_written(engine) == before


def test_a_changed_symbol_keeps_its_id_and_the_others_are_not_touched(engine: Engine) -> None:
    store = UniverseStore(engine)
    load(store, [entry("AAPL", aliases={"yahoo": "A1"}), entry("MSFT", adv_21d=5.0), entry("IBM")])
    report = load(store, [entry("AAPL", aliases={"alpaca": "A2"}), entry("MSFT", tier=Tier.T0), entry("IBM"), entry("NEW")], "v2")
    assert (report.added, report.changed, report.unchanged) == (("NEW",), ("AAPL", "MSFT"), 1)
    apple, microsoft, *_ = store.instruments()
    assert (apple.symbol_id, apple.aliases) == (1, {"alpaca": "A2"})
    assert (microsoft.symbol_id, microsoft.tier, microsoft.adv_21d) == (2, Tier.T0, None)


def test_symbols_that_a_file_lacks_stay_active_unless_told_otherwise(engine: Engine) -> None:
    store = UniverseStore(engine)
    load(store, [entry("AAPL"), entry("MSFT")])
    kept = load(store, [entry("AAPL")], "v2")
    assert (kept.deactivated, kept.absent) == ((), ("MSFT",))
    ended = load(store, [entry("AAPL")], "v3", deactivate_absent=True)
    assert (ended.deactivated, ended.absent) == (("MSFT",), ())
    assert [i.symbol for i in store.instruments()] == ["AAPL"]
    assert [i.symbol for i in store.instruments(active_only=False)] == ["AAPL", "MSFT"]
    assert store.deactivated() == {"MSFT"}


def test_a_deactivated_symbol_comes_back_with_its_id(engine: Engine) -> None:
    store = UniverseStore(engine)
    load(store, [entry("AAPL"), entry("MSFT")])
    load(store, [entry("AAPL")], "v2", deactivate_absent=True)
    report = load(store, [entry("MSFT")], "v3")
    assert report.changed == ("MSFT",)
    assert store.instrument("MSFT").symbol_id == 2


def test_each_load_is_a_version_with_its_counts(engine: Engine) -> None:
    store = UniverseStore(engine)
    load(store, [entry("AAPL"), entry("MSFT")], source_sha256="a" * 64)
    load(store, [entry("MSFT", tier=Tier.T2)], "v2", deactivate_absent=True, source_sha256="b" * 64)
    newest, first = store.versions()
    assert (first.version_tag, first.symbols, first.added, first.changed, first.deactivated) == ("v1", 2, 2, 0, 0)
    assert (newest.version_tag, newest.symbols, newest.added, newest.changed, newest.deactivated) == ("v2", 1, 0, 1, 1)
    assert (newest.source, newest.source_sha256, newest.loaded_by) == ("u.csv", "b" * 64, "tests")


def test_a_tag_names_one_file(engine: Engine) -> None:
    store = UniverseStore(engine)
    load(store, [entry("AAPL")], source_sha256="a" * 64)
    with pytest.raises(InvalidInputError, match="version tag 'v1' names another universe file already"):
        load(store, [entry("MSFT")], source_sha256="b" * 64)
    assert [i.symbol for i in store.instruments()] == ["AAPL"]


def test_going_back_to_an_earlier_file_is_a_new_version_of_it(engine: Engine) -> None:
    store = UniverseStore(engine)
    old, new = [entry("AAPL", tier=Tier.T0)], [entry("AAPL", tier=Tier.T2)]
    tags = [
        load(store, e, tag).version_tag for e, tag in [(old, "100%_a"), (new, "b"), (old, "100%_a"), (old, "100%_a"), (new, "b")]
    ]
    assert tags == ["100%_a", "b", "100%_a#2", "100%_a#2", "b#2"]
    assert [v.version_tag for v in store.versions()] == ["b#2", "100%_a#2", "b", "100%_a"]


def test_a_load_that_the_database_refuses_leaves_nothing(engine: Engine) -> None:
    store = UniverseStore(engine)
    with pytest.raises(Exception, match="symbol_universe_symbol_check"):
        load(store, [entry("AAPL"), entry("'; drop table")])
    assert store.instruments() == []
    assert store.versions() == []


def test_many_loads_at_once_add_each_symbol_once(engine: Engine) -> None:
    store = UniverseStore(engine)
    entries = [entry(f"S{n}") for n in range(200)]
    with ThreadPoolExecutor(4) as threads:
        reports = list(threads.map(lambda _: load(store, entries), range(4)))
    assert sorted(len(r.added) for r in reports) == [0, 0, 0, 200]
    assert len(store.versions()) == 1


def test_instruments_can_be_asked_for_by_tier_and_by_name(engine: Engine) -> None:
    store = UniverseStore(engine)
    load(store, [entry("AAPL", tier=Tier.T0), entry("MSFT"), entry("IBM")])
    assert [i.symbol for i in store.instruments(tier=Tier.T1)] == ["MSFT", "IBM"]
    assert [i.symbol for i in store.instruments(symbols=["IBM", "AAPL", "IBM"])] == ["AAPL", "IBM"]
    assert [i.symbol for i in store.instruments(symbols=["IBM", "AAPL"], tier=Tier.T0)] == ["AAPL"]
    assert store.instruments(symbols=[]) == []


def test_every_unknown_symbol_is_named_and_close_ones_are_suggested(engine: Engine) -> None:
    store = UniverseStore(engine)
    load(store, [entry("AAPL"), entry("MSFT"), entry("GOOGL")])
    with pytest.raises(InvalidInputError, match=r"unknown symbols 'aapl', 'MFST', '%s; drop': .*did you mean AAPL, MSFT\?"):
        store.instruments(symbols=["aapl", "GOOGL", "MFST", "%s; drop"])


def test_a_deactivated_symbol_is_not_called_unknown(engine: Engine) -> None:
    store = UniverseStore(engine)
    load(store, [entry("AAPL"), entry("MSFT")])
    load(store, [entry("AAPL")], "v2", deactivate_absent=True)
    with pytest.raises(InvalidInputError, match="deactivated symbol 'MSFT'"):
        store.instruments(symbols=["MSFT"])


def test_an_empty_universe_says_how_to_fill_it(engine: Engine) -> None:
    with pytest.raises(
        InvalidInputError, match="unknown symbol 'AAPL': the universe is empty; load one with `mdp universe load FILE`"
    ):
        UniverseStore(engine).instrument("AAPL")


def test_new_tiers_change_nothing_else_and_are_a_version_of_their_own(engine: Engine) -> None:
    store = UniverseStore(engine)
    load(store, [entry("AAPL", aliases={"yahoo": "AAPL.US"}, adv_21d=0.1), entry("MSFT"), entry("IBM")])
    before = {i.symbol: i for i in store.instruments()}
    report = store.retier(
        {"AAPL": Tier.T0, "MSFT": Tier.T1}, version_tag="tiers", source="a rule", source_sha256="d" * 64, loaded_by="tests"
    )
    assert report == UniverseLoadReport("tiers", (), changed=("AAPL",), deactivated=(), absent=(), unchanged=1)
    assert {i.symbol: i for i in store.instruments()} == {**before, "AAPL": replace(before["AAPL"], tier=Tier.T0)}
    assert next((v.version_tag, v.source, v.symbols, v.changed) for v in store.versions()) == ("tiers", "a rule", 2, 1)


def test_the_tiers_of_every_version_can_be_read_again_whatever_changed_them(engine: Engine) -> None:
    store = UniverseStore(engine)
    load(store, [entry("AAPL"), entry("MSFT")], "v1")
    store.retier({"AAPL": Tier.T0}, version_tag="tiers", source="a rule", source_sha256="d" * 64, loaded_by="tests")
    load(store, [entry("MSFT", tier=Tier.T2), entry("IBM")], "v2", deactivate_absent=True)
    assert store.tiers_at("v1") == {"AAPL": Tier.T1, "MSFT": Tier.T1}
    assert store.tiers_at("tiers") == {"AAPL": Tier.T0, "MSFT": Tier.T1}
    assert store.tiers_at("v2") == {"AAPL": Tier.T0, "MSFT": Tier.T2, "IBM": Tier.T1}
    with pytest.raises(InvalidInputError, match="'v3'"):
        store.tiers_at("v3")


def test_tiers_of_symbols_that_are_not_followed_are_refused(engine: Engine) -> None:
    store = UniverseStore(engine)
    load(store, [entry("AAPL")])
    written = rows_written(engine)
    with pytest.raises(InvalidInputError, match="unknown symbol 'APPL'"):
        store.retier({"AAPL": Tier.T0, "APPL": Tier.T0}, version_tag="tiers", source="s", source_sha256="d" * 64, loaded_by="tests")
    assert rows_written(engine) == written
