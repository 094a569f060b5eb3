"""November 2024 without trouble, its third six days: nobody is told anything. A file each, so that they run beside each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from market_data_pipeline.simulator.situations import QUIET_WEEKS, play_quiet

if TYPE_CHECKING:
    from pathlib import Path


def test_nobody_is_told_anything_in_a_quiet_week(database_url: str, tmp_path: Path) -> None:
    quiet = play_quiet(*QUIET_WEEKS[2], database_url, tmp_path, seed=9)

    assert quiet.told == ()
    assert quiet.looks > 200
    assert quiet.noise["late by a minute"] >= 9
