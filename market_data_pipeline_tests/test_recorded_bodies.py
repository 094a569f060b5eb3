"""Everything recorded of Yahoo, CBOE and FRED goes through the production path, and every row is accounted for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from market_data_pipeline_tests.recorded import RECORDED

ROOT = Path(__file__).resolve().parents[1]
COUNTS = ("files", "rows in", "stored", "refused", "declared", "lost")


@pytest.mark.skipif(not RECORDED.is_dir(), reason=f"recorded data not here: {RECORDED}")
def test_every_recorded_row_is_stored_or_refused_by_name(database_url: str, tmp_path: Path) -> None:
    """The same command as of `make bench`, on a database of the tests. The numbers are those of the recording, counted by hand."""
    out = tmp_path / "recorded.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "recorded.py"), "--data", str(RECORDED), "--json", str(out)]
    environment = {**os.environ, "MDP_DATABASE_URL": database_url}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = {row["answers"]: row for row in json.loads(out.read_text())["rows"]}
    assert {name: tuple(row[count] for count in COUNTS) for name, row in rows.items()} == {
        "yahoo chart": (25, 581, 456, 124, 1, 0),
        "yahoo options": (6, 225, 225, 0, 0, 0),
        "yahoo quote": (16, 15, 13, 0, 2, 0),
        "cboe charts/historical": (1, 5675, 5659, 15, 1, 0),
        "cboe historical_data": (1, 1, 0, 1, 0, 0),
        "cboe options": (1, 3576, 3576, 0, 0, 0),
        "cboe quotes": (1, 1, 1, 0, 0, 0),
        "cboe redirect": (2, 0, 0, 0, 0, 0),
        "fred observations": (83, 17367, 17367, 0, 0, 0),
        "fred series": (81, 68, 68, 0, 0, 0),
        "fred release tables": (4, 233, 0, 233, 0, 0),
        "fred release series": (2, 82, 82, 0, 0, 0),
        "fred vintages": (10, 3479, 3479, 0, 0, 0),
        "everything": (233, 31303, 30926, 373, 4, 0),
    }
    # An old body of closes alone; an empty weekend; two redirects; series that FRED does not know.
    classes = [row["class"].partition(":")[0] for row in json.loads(out.with_suffix(".files.json").read_text()) if row["class"]]
    assert {name: classes.count(name) for name in set(classes)} == {
        "malformed": 1,
        "barren": 1,
        "transient": 2,
        "unknown_symbol": 26,
        "ok": 5,
    }
