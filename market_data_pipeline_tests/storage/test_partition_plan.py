"""The partition plan's file: absent, written, replaced, unreadable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.domain.errors import ConfigurationError, DiskError
from market_data_pipeline.domain.partitions import default_plan
from market_data_pipeline.storage.partition_plan import plan_path, read_plan, write_plan

if TYPE_CHECKING:
    from pathlib import Path


def test_without_a_file_the_default_plan_holds_and_nothing_is_created(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert (read_plan(plan_path(home)), home.exists()) == (default_plan(), False)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = plan_path(tmp_path / "new" / "home")
    write_plan(path, default_plan())
    assert read_plan(path) == default_plan()


def test_writing_leaves_nothing_else_behind(tmp_path: Path) -> None:
    write_plan(plan_path(tmp_path), default_plan())
    write_plan(plan_path(tmp_path), default_plan())
    assert [path.name for path in tmp_path.iterdir()] == ["partitions.json"]


def test_a_file_that_was_cut_short_is_named(tmp_path: Path) -> None:
    path = plan_path(tmp_path)
    write_plan(path, default_plan())
    path.write_text(path.read_text()[:100])
    with pytest.raises(ConfigurationError, match=r"partitions\.json"):
        read_plan(path)


def test_a_home_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("not a directory")
    with pytest.raises(DiskError, match="home"):
        write_plan(plan_path(tmp_path / "home"), default_plan())
