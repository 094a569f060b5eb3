from __future__ import annotations

from typing import TYPE_CHECKING

from market_data_pipeline_tests.cli.builders import universe_file

if TYPE_CHECKING:
    from pathlib import Path

    from market_data_pipeline_tests.cli.conftest import Mdp

HALTS = """symbol,calendar,starts_at,ends_at,reason
AAPL,,2024-12-03T17:00:00Z,2024-12-03T17:05:00Z,LUDP
*,XNYS,2024-12-04T17:00:00Z,2024-12-04T17:15:00Z,MWC1
ZZZZ,,2024-12-03T17:00:00Z,,T1
"""


def halts_file(home: Path, text: str = HALTS) -> str:
    path = home / "halts.csv"
    path.write_text(text)
    return str(path)


def test_halts_are_loaded_once_listed_and_those_of_others_are_named(mdp: Mdp) -> None:
    mdp("universe", "load", universe_file(mdp.home))
    loaded = mdp("halts", "load", halts_file(mdp.home), "--source", "exchange", "--json")
    assert loaded.json == {"added": 2, "changed": 0, "unchanged": 0, "bars_now_halted": 0, "not_followed": ["ZZZZ"]}
    again = mdp("halts", "load", halts_file(mdp.home), "--source", "exchange")
    assert "not in the universe, left out: ZZZZ" in again.err
    listed = mdp("halts", "list", "--start", "2024-12-01", "--json").json
    assert [(row["symbol"], row["reason"], row["source"]) for row in listed] == [
        ("AAPL", "LUDP", "exchange"),
        ("*", "MWC1", "exchange"),
    ]
    assert "MWC1" in mdp("halts", "list", "--start", "2024-12-01").out
    assert "load them with `mdp halts load FILE`" in mdp("halts", "list", "--start", "2024-11-01", "--end", "2024-11-02").err


def test_a_file_with_a_mistake_loads_nothing_and_says_which_line(mdp: Mdp) -> None:
    mdp("universe", "load", universe_file(mdp.home))
    refused = mdp("halts", "load", halts_file(mdp.home, HALTS + "AAPL,,noon,,\n"))
    assert refused.code == 2
    assert "line 5: starts_at 'noon'" in refused.err
    assert mdp("halts", "list", "--start", "2024-12-01", "--json").json == []
