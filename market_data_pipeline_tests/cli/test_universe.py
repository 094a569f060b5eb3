from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from market_data_pipeline.domain.listing import ListingFinding, ListingKind
from market_data_pipeline.storage.listing import ListingStore
from market_data_pipeline_tests.cli.builders import LATER, TUESDAY, UNIVERSE, hours, pipeline_of, universe_file

if TYPE_CHECKING:
    from market_data_pipeline_tests.cli.conftest import Mdp, Webserver


def plan_of(mdp: Mdp) -> dict[str, str]:
    plan = orjson.loads((mdp.home / "home" / "partitions.json").read_bytes())
    return {interval: held["grain"] for interval, held in plan["intervals"].items()}


def test_loading_says_what_was_added_and_which_grain_each_asset_gets_and_why(mdp: Mdp) -> None:
    loaded = mdp("universe", "load", universe_file(mdp.home))
    assert loaded.code == 0
    assert "added: AAPL, BRK.B, 0700.HK" in loaded.err
    assert "candles/1m" in loaded.out
    assert "3 symbols x" in loaded.out
    assert plan_of(mdp)["1m"] == "session"


def test_a_running_dagster_is_made_to_read_the_new_plan(mdp: Mdp, webserver: Webserver) -> None:
    path = universe_file(mdp.home)
    assert "not running" in mdp("universe", "load", path).err
    told = mdp("universe", "load", path, "--start", "2020-01-02", dagster_url=webserver.url)
    assert "Dagster: has read the new partition plan" in told.err
    assert "as it was" in mdp("universe", "load", path, dagster_url=webserver.url).err


def test_loading_the_same_file_again_changes_nothing(mdp: Mdp) -> None:
    path = universe_file(mdp.home)
    mdp("universe", "load", path)
    again = mdp("universe", "load", path, "--json").json
    assert (again["added"], again["changed"], again["unchanged"]) == (0, 0, 3)
    assert again["renamed"] == []


def test_a_tag_that_names_another_content_is_refused_and_nothing_is_loaded(mdp: Mdp) -> None:
    mdp("universe", "load", universe_file(mdp.home), "--tag", "november")
    other = universe_file(mdp.home, UNIVERSE + "MSFT,XNAS,T0,equity,USD,\n", name="other.csv")
    refused = mdp("universe", "load", other, "--tag", "november")
    assert refused.code == 2
    assert "'november'" in refused.err
    assert [row["symbol"] for row in mdp("universe", "list", "--json").json] == ["AAPL", "BRK.B", "0700.HK"]


def test_absent_symbols_stay_active_until_that_is_asked_for(mdp: Mdp) -> None:
    mdp("universe", "load", universe_file(mdp.home))
    only_apple = universe_file(mdp.home, "symbol,exchange,tier\nAAPL,XNAS,T0\n", name="apple.csv")
    assert "not in the file and still active: BRK.B, 0700.HK" in mdp("universe", "load", only_apple).err
    gone = mdp("universe", "load", only_apple, "--deactivate-absent", "--json").json
    assert gone["deactivated_symbols"] == ["BRK.B", "0700.HK"]
    assert [row["symbol"] for row in mdp("universe", "list", "--json").json] == ["AAPL"]
    everyone = mdp("universe", "list", "--inactive", "--json").json
    assert {row["symbol"]: row["active"] for row in everyone} == {"AAPL": True, "BRK.B": False, "0700.HK": False}


def test_a_grain_in_use_is_kept_until_a_change_is_asked_for(mdp: Mdp) -> None:
    path = universe_file(mdp.home)
    mdp("universe", "load", path)
    kept = mdp("universe", "load", path, partition_budget="500")
    assert kept.code == 0
    assert "kept as it was: candles/1m: session becomes" in kept.err
    assert "--regrain makes the change" in kept.err
    assert plan_of(mdp)["1m"] == "session"

    changed = mdp("universe", "load", path, "--regrain", partition_budget="500")
    assert "partitions were renamed: candles/1m: session becomes month" in changed.err
    assert "mdp reconcile" in changed.err
    assert set(plan_of(mdp).values()) == {"month"}


def test_a_grain_may_be_chosen_for_one_interval_and_its_derived_ones_follow(mdp: Mdp) -> None:
    chosen = mdp("universe", "load", universe_file(mdp.home), "--grain", "1m=week")
    assert chosen.code == 0
    assert plan_of(mdp) == {
        "1m": "week",
        "5m": "week",
        "15m": "week",
        "30m": "week",
        "1h": "session",
        "1d": "session",
    }


def test_a_plan_that_is_refused_loads_nothing(mdp: Mdp) -> None:
    refused = mdp("universe", "load", universe_file(mdp.home), "--start", "2025-06-02")
    assert refused.code == 2
    assert "2025-06-02" in refused.err
    assert mdp("universe", "list", "--json").json == []


def test_a_list_by_tier_and_one_symbol_in_full(mdp: Mdp) -> None:
    mdp("universe", "load", universe_file(mdp.home))
    assert [row["symbol"] for row in mdp("universe", "list", "--tier", "T1", "--json").json] == ["BRK.B", "0700.HK"]
    shown = mdp("universe", "show", "BRK.B")
    assert shown.code == 0
    assert "yahoo: BRK-B" in shown.out
    assert mdp("universe", "show", "0700.HK", "--json").json["calendar"] == "XHKG"


def test_a_listing_is_shown_with_its_evidence_and_with_what_was_taken_back(mdp: Mdp) -> None:
    mdp("universe", "load", universe_file(mdp.home))
    assert mdp("universe", "show", "AAPL", "--json").json["findings"] == []
    gone = ListingFinding(ListingKind.LAST_SESSION, TUESDAY, ("alpaca", "yahoo"), "no bar in the 5 sessions since")
    with pipeline_of(mdp) as pipeline:
        store, aapl = ListingStore(pipeline.engine), pipeline.universe.instrument("AAPL").symbol_id
        assert store.record(aapl, [gone], known_at=LATER) == [gone]
        shown = mdp("universe", "show", "AAPL")
        assert "last_session 2024-12-03, known from 2024-12-07 09:00Z: no bar in the 5 sessions since" in shown.err
        told = mdp("universe", "show", "AAPL", "--json").json
        assert (told["listed_from"], told["listed_to"], told["is_unknown"]) == (None, "2024-12-03", False)
        assert told["findings"][0]["providers"] == ["alpaca", "yahoo"]
        [found] = store.current([aapl])
        store.take_back(found, now=LATER + hours(1), known_at=LATER + hours(1))
    assert "until 2024-12-07 10:00Z" in mdp("universe", "show", "AAPL").err
    assert mdp("universe", "show", "AAPL", "--json").json["listed_to"] is None


def test_a_symbol_that_is_misspelt_is_refused_with_a_suggestion(mdp: Mdp) -> None:
    mdp("universe", "load", universe_file(mdp.home))
    refused = mdp("universe", "show", "APPL")
    assert refused.code == 2
    assert "'APPL'" in refused.err
    assert "AAPL" in refused.err


def test_an_empty_universe_is_said_to_be_empty(mdp: Mdp) -> None:
    assert "no symbols: load some with `mdp universe load FILE`" in mdp("universe", "list").err
