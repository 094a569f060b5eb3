"""The table of situations, played on the virtual clock: providers, the queue, the database, the disk, calendars."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.simulator.situations import DEPENDENCIES, Situation, play
from market_data_pipeline_tests.situation_table import as_documented

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("situation", DEPENDENCIES, ids=lambda situation: situation.name)
def test_who_must_be_told_is_told_once_and_in_time_and_of_nothing_else(
    situation: Situation, database_url: str, tmp_path: Path
) -> None:
    played = play(situation, database_url, tmp_path)

    assert played.unexpected == ()
    assert [heard for heard in played.heard if not heard.passed] == []
    assert as_documented(situation.name) == played.row
