"""`make tools`, and what tests say where a program is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from market_data_pipeline_tests.deploy.programs import ROOT
from market_data_pipeline_tests.tools import tool

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = ROOT / "deploy" / "install_tools.sh"


def install(copy: Path, path: str) -> subprocess.CompletedProcess[str]:
    """The script in a checkout of its own, with only ``path`` to find programs on."""
    (copy / "deploy").mkdir(parents=True, exist_ok=True)
    shutil.copy(SCRIPT, copy / "deploy")
    command = ["bash", str(copy / "deploy" / SCRIPT.name)]
    return subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, check=False, timeout=120)


def test_where_everything_is_there_nothing_is_done_or_said(tmp_path: Path) -> None:
    (tmp_path / "checkout" / ".tools" / "bin").mkdir(parents=True)
    for name in ("prometheus", "promtool", "blackbox_exporter"):
        (tmp_path / "checkout" / ".tools" / "bin" / name).symlink_to("/bin/true")
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("bash", "dirname", "apt-get", "dpkg-deb", "chromium"):
        # apt-get that fails: nobody asks it.
        (programs / name).symlink_to(shutil.which(name if name in {"bash", "dirname"} else "false") or "")
    done = install(tmp_path / "checkout", str(programs))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_where_there_is_no_debian_it_says_what_is_missing_and_the_build_goes_on(tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("bash", "dirname"):
        (programs / name).symlink_to(shutil.which(name) or "")
    done = install(tmp_path / "checkout", str(programs))
    assert done.returncode == 0
    assert "put prometheus, promtool and blackbox_exporter on PATH" in done.stderr
    assert "put chromium on PATH" in done.stderr


def test_a_missing_program_is_a_skip_that_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("MDP_TEST_TOOLS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="make tools"):
        tool("no-such-program")


@pytest.mark.parametrize(("name", "value"), [("CI", "true"), ("MDP_TEST_TOOLS", "required")])
def test_in_ci_a_missing_program_is_a_failure(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(pytest.fail.Exception, match="make tools"):
        tool("no-such-program")


def test_a_program_on_path_will_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = tmp_path / "google-chrome"
    mine.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tool("chromium") == mine
    assert os.access(mine, os.X_OK)
