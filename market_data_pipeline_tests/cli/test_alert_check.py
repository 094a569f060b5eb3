"""`mdp alerts check`: what of the alerts file will not work as it was meant, before anybody relies on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from market_data_pipeline_tests.cli.builders import universe_file

if TYPE_CHECKING:
    from pathlib import Path

    from market_data_pipeline_tests.cli.conftest import Mdp

CANARY = "canary-4711-canary"


def a_file(folder: Path, text: str) -> str:
    path = folder / "alerts.yaml"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o644)
    return str(path)


def test_without_a_file_nothing_is_wrong(offline_mdp: Mdp) -> None:
    checked = offline_mdp("alerts", "check", "--json")
    assert (checked.code, checked.json["file"], checked.json["notes"]) == (0, None, [])


def test_a_file_that_works_is_summed_up(offline_mdp: Mdp, tmp_path: Path) -> None:
    checked = offline_mdp("alerts", "check", alerts_file=a_file(tmp_path, "channels: {log: log://}"))
    assert checked.code == 0
    assert "channels" in checked.out


def test_a_file_that_cannot_be_used_is_told_problem_by_problem(offline_mdp: Mdp, tmp_path: Path) -> None:
    path = a_file(tmp_path, f"channels: {{ops: 'slack://{CANARY}'}}\nroutes: [{{channels: opps}}]")
    refused = offline_mdp("alerts", "check", alerts_file=path)
    assert refused.code == 2
    assert "channels.ops.url" in refused.err
    assert "routes.0.channels: no channel is called 'opps': did you mean ops?" in refused.err
    assert CANARY not in refused.out + refused.err


def test_a_secret_that_others_may_read_is_told(offline_mdp: Mdp, tmp_path: Path) -> None:
    checked = offline_mdp("alerts", "check", alerts_file=a_file(tmp_path, f"channels: {{hook: 'json://localhost/{CANARY}'}}"))
    assert checked.code == 1
    assert checked.err.startswith("channels.hook: its secret stands in a file that others may read")
    assert CANARY not in checked.out + checked.err


def test_rules_over_prices_that_say_nothing_of_some_symbols_are_told(mdp: Mdp, tmp_path: Path) -> None:
    mdp("universe", "load", universe_file(tmp_path))
    path = a_file(
        tmp_path,
        """
        price_rules:
          Crosses: {kind: cross, symbols: AAPL, window: 5m}
          Above: {kind: threshold, symbols: [AAPL, NOBODY], above: 250}
        """,
    )
    checked = mdp("alerts", "check", "--json", alerts_file=path)
    assert checked.code == 1
    assert checked.json["notes"] == [
        "Above: NOBODY is not active in the universe",
        "Crosses: fewer than 5 bars of AAPL to take an average of",
    ]
