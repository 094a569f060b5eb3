"""`make demo` is the first thing a stranger runs: here it is, whole, by its own command."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from market_data_pipeline_tests.conftest import roomy_memory


@pytest.mark.timeout(420)
def test_the_demo_loses_finds_and_heals_and_every_bar_ends_with_one_verdict() -> None:
    home = Path(tempfile.mkdtemp(prefix="mdp-demo-", dir=roomy_memory()))
    home.chmod(0o711)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MDP_", "DAGSTER_"))}
    try:
        demo = subprocess.run(
            [sys.executable, "-m", "market_data_pipeline.cli.main", "demo", "--home", str(home / "here")],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )
    finally:
        shutil.rmtree(home, ignore_errors=True)
    assert demo.returncode == 0, demo.stdout + demo.stderr
    missing = [int(found.replace(",", "")) for found in re.findall(r"([\d,]+) bars missing", demo.stdout)]
    assert missing[0] > 0
    assert missing[-1] == 0
    # 2024-11-25 to 12-06: nine XNYS sessions with one half day, ten of XHKG, twelve UTC days; minutes, derived, hours and days.
    assert "62,308 verdicts for 62,308 expected bars: every bar has exactly one" in demo.stdout
