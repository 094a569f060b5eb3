"""README and docs name everything a user can type, set or see: commands, settings and assets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from market_data_pipeline.cli.main import COMMANDS
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.settings import Settings
from market_data_pipeline_tests.cli.test_main import commands

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def documents() -> str:
    """README and every page under docs, one text."""
    return "\n".join(page.read_text(encoding="utf-8") for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])


def test_every_command_is_named(documents: str) -> None:
    assert [name for name, _ in commands() if not re.search(rf"\bmdp {re.escape(name)}\b", documents)] == []


def test_every_command_that_is_named_exists(documents: str) -> None:
    named = set(re.findall(r"(?:`|bin/|\$ )mdp ([a-z]+)\b", documents))
    assert named - set(COMMANDS) == set()


def test_every_setting_is_named(documents: str) -> None:
    assert [name for name in Settings.model_fields if f"MDP_{name.upper()}" not in documents] == []


def test_every_asset_is_named(documents: str) -> None:
    assert [f"candles/{interval}" for interval in Interval if not re.search(rf"candles/{interval}|`{interval}`", documents)] == []


def test_every_page_that_is_linked_exists(documents: str) -> None:
    linked = set(re.findall(r"\]\((?:docs/)?([a-z_-]+\.md)\)", documents))
    assert {page for page in linked if not (ROOT / "docs" / page).exists()} == set()
