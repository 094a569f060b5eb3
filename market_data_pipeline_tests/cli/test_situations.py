"""`mdp situations` names its situations and refuses others; the plays themselves are tested one by one elsewhere."""

from __future__ import annotations

from click.testing import CliRunner

from market_data_pipeline.cli.main import mdp
from market_data_pipeline.simulator.situations import SITUATIONS
from market_data_pipeline_tests.situation_table import as_documented


def test_the_list_names_every_situation() -> None:
    assert CliRunner().invoke(mdp, ["situations", "--list"]).output.splitlines() == [one.name for one in SITUATIONS]


def test_the_page_has_a_line_of_every_situation() -> None:
    assert [one.name for one in SITUATIONS if not as_documented(one.name)] == []


def test_no_two_situations_have_one_name() -> None:
    assert len({one.name for one in SITUATIONS}) == len(SITUATIONS)
