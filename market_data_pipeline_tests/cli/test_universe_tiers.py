"""`mdp universe tiers`: from bars and from the file, dry and for good, and the same again."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.sessions import trading_calendar
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline_tests.cli.builders import pipeline_of, store, universe_file
from market_data_pipeline_tests.cli.conftest import Mdp

if TYPE_CHECKING:
    from market_data_pipeline.ingest.pipeline import Pipeline

FRIDAY = date(2024, 12, 6)
SESSIONS = trading_calendar("XNYS").sessions(date(2024, 11, 1), FRIDAY)[-21:]
UNIVERSE = """\
symbol,exchange,tier,asset_type,currency,adv_21d,mkt_cap
BIG,XNAS,T2,equity,USD,,
MID,XNAS,T2,equity,USD,,
SMALL,XNAS,T0,equity,USD,900000,
COIN,CRYPTO,T0,crypto,USD,,
NEW,XNYS,T2,equity,USD,,
"""


@pytest.fixture
def loaded(mdp: Mdp) -> Mdp:
    """A universe with 21 daily bars of three symbols, worth 1,500 times their price a day, and eleven of a fourth."""
    there = Mdp({**mdp.environment, "MDP_TIER_CAPS": "T0=1,T1=2"}, mdp.home)
    assert there("universe", "load", universe_file(mdp.home, UNIVERSE), "--tag", "file").code == 0
    with pipeline_of(there) as pipeline:
        for symbol, price in (("BIG", 300.0), ("MID", 200.0), ("SMALL", 100.0)):
            bars_of(pipeline, symbol, price, SESSIONS)
        # Fewer than more than half: its bars do not count.
        bars_of(pipeline, "NEW", 1000.0, SESSIONS[-10:])
    return there


def bars_of(pipeline: Pipeline, symbol: str, price: float, sessions: list[date], *, known_at: datetime | None = None) -> None:
    for session in sessions:
        stamp = known_at or datetime(2024, 12, 7, 9, tzinfo=UTC)
        store(pipeline, symbol, session, interval=Interval.D1, price=price - 0.5, known_at=stamp)


def tiers_in(mdp: Mdp) -> dict[str, str]:
    return {row["symbol"]: row["tier"] for row in mdp("universe", "list", "--json").json}


def versions(mdp: Mdp) -> list[str]:
    with pipeline_of(mdp) as pipeline:
        return [version.version_tag for version in pipeline.universe.versions()]


def test_the_most_liquid_by_their_bars_get_the_places(loaded: Mdp) -> None:
    done = loaded("universe", "tiers", "--json")
    assert done.code == 0, done.err
    told = done.json
    # Yesterday of Saturday noon.
    assert (told["as_of"], told["is_applied"]) == ("2024-12-06", True)
    moves = {row["symbol"]: (row["before"], row["after"], row["rank"], row["daily_value"], row["basis"]) for row in told["moves"]}
    assert moves == {
        "BIG": ("T2", "T0", 1, 450_000, "bars"),
        "MID": ("T2", "T1", 2, 300_000, "bars"),
        "SMALL": ("T0", "T1", 3, 150_000, "bars"),
        "COIN": ("T0", "T2", None, None, "none"),
    }
    assert [(row["tier"], row["before"], row["after"], row["cap"]) for row in told["tiers"]] == [
        ("T0", 2, 1, 1),
        ("T1", 0, 2, 2),
        ("T2", 3, 2, None),
    ]
    assert tiers_in(loaded) == {"BIG": "T0", "MID": "T1", "SMALL": "T1", "COIN": "T2", "NEW": "T2"}


def test_a_dry_run_says_the_same_and_writes_nothing(loaded: Mdp) -> None:
    before = tiers_in(loaded)
    dry = loaded("universe", "tiers", "--dry-run")
    assert dry.code == 0
    assert "4 symbols move" in dry.out
    assert "nothing tells how liquid it is" in dry.out
    assert "would be recorded" in dry.err
    assert (tiers_in(loaded), versions(loaded)) == (before, ["file"])


def test_the_same_as_of_again_has_the_same_tag_and_digest_and_writes_nothing(loaded: Mdp) -> None:
    first, second = (loaded("universe", "tiers", "--as-of", str(FRIDAY), "--json").json for _ in range(2))
    assert (first["version_tag"], first["figures_sha256"]) == (second["version_tag"], second["figures_sha256"])
    assert second["moves"] == []
    assert versions(loaded) == [first["version_tag"], "file"]


def test_an_earlier_tiering_can_be_done_again_as_it_was_known(loaded: Mdp) -> None:
    first = loaded("universe", "tiers", "--as-of", str(FRIDAY), "--json").json
    with pipeline_of(loaded) as pipeline:
        bars_of(pipeline, "MID", 900.0, SESSIONS, known_at=datetime(2024, 12, 7, 18, tzinfo=UTC))
    corrected = loaded("universe", "tiers", "--as-of", str(FRIDAY), "--dry-run", "--json").json
    assert corrected["figures_sha256"] != first["figures_sha256"]
    again = loaded("universe", "tiers", "--as-of", str(FRIDAY), "--known-at", "2024-12-07T12:00Z", "--dry-run", "--json").json
    assert (again["figures_sha256"], again["moves"]) == (first["figures_sha256"], [])
    with pipeline_of(loaded) as pipeline:
        assert pipeline.universe.tiers_at("file")["SMALL"] is Tier.T0
        assert pipeline.universe.tiers_at(first["version_tag"])["SMALL"] is Tier.T1


def test_the_file_of_a_tiered_universe_means_what_it_says(loaded: Mdp) -> None:
    first = loaded("universe", "tiers", "--json").json["version_tag"]
    back = loaded("universe", "load", universe_file(loaded.home, UNIVERSE), "--tag", "file", "--json").json
    assert (back["version_tag"], back["changed"]) == ("file#2", 4)
    assert tiers_in(loaded)["SMALL"] == "T0"
    assert loaded("universe", "tiers", "--json").json["version_tag"] == f"{first}#2"


def test_a_file_that_takes_the_tiers_back_or_breaks_the_caps_is_told_of(loaded: Mdp) -> None:
    loaded("universe", "tiers")
    told = loaded("universe", "load", universe_file(loaded.home, UNIVERSE), "--tag", "file").err
    assert "the tiers of the file hold again" in told
    assert "T0 has 2 symbols and MDP_TIER_CAPS allows 1: `mdp universe tiers` brings them within" in told
    again = loaded("universe", "load", universe_file(loaded.home, UNIVERSE), "--tag", "file").err
    assert "hold again" not in again


def test_from_the_file_only_its_own_figures_count(loaded: Mdp) -> None:
    told = loaded("universe", "tiers", "--from-file", "--json").json
    assert (told["as_of"], {row["symbol"]: row["basis"] for row in told["moves"]}) == (None, {"COIN": "none"})
    assert tiers_in(loaded) == {"BIG": "T2", "MID": "T2", "SMALL": "T0", "COIN": "T2", "NEW": "T2"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--from-file", "--as-of", "2024-12-06"), "--from-file reads no bars"),
        (("--as-of", "2010-01-04"), ""),
    ],
)
def test_what_contradicts_itself_is_bad_usage(loaded: Mdp, arguments: tuple[str, ...], words: str) -> None:
    answer = loaded("universe", "tiers", *arguments, "--dry-run")
    assert (answer.code, words in answer.err) == (2 if words else 0, True)


def test_a_universe_of_which_nothing_is_known_keeps_its_tiers(mdp: Mdp) -> None:
    mdp("universe", "load", universe_file(mdp.home))
    refused = mdp("universe", "tiers")
    assert refused.code == 2
    assert "nothing tells how liquid any of 3 symbols is" in refused.err
    assert tiers_in(mdp) == {"AAPL": "T0", "BRK.B": "T1", "0700.HK": "T1"}


def test_an_empty_universe_has_no_tiers_to_assign(mdp: Mdp) -> None:
    refused = mdp("universe", "tiers")
    assert (refused.code, "mdp universe load FILE" in refused.err) == (2, True)


def test_a_backfill_of_a_tier_names_exactly_its_symbols_after_some_have_moved(loaded: Mdp) -> None:
    def boxes(tier: str) -> set[tuple[str, str]]:
        asked = ("--interval", "1m", "--start", "2024-12-06", "--end", "2024-12-06", "--dry-run", "--json")
        rows: list[dict[str, Any]] = loaded("backfill", "--tier", tier, *asked).json
        return {(row["from"].split("|")[1], row["to"].split("|")[1]) for row in rows}

    assert boxes("T0") == {("SMALL", "COIN")}
    loaded("universe", "tiers")
    assert boxes("T0") == {("BIG", "BIG")}
    assert boxes("T1") == {("MID", "SMALL")}
