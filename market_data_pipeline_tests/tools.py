"""Programs that tests use and pip does not install: where they are, or a skip that says how to get them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

INSTALLED = Path(__file__).resolve().parents[1] / ".tools" / "bin"
# What distributions call them where not by their own name.
ALSO_CALLED = {
    "blackbox_exporter": ("prometheus-blackbox-exporter",),
    "chromium": ("chromium-browser", "google-chrome"),
}


def tool(name: str) -> Path:
    """The program ``name``: ours from `make tools`, else the one on PATH. Where there is none: a skip, in CI a failure."""
    mine = INSTALLED / name
    if os.access(mine, os.X_OK):
        return mine
    for spelling in (name, *ALSO_CALLED.get(name, ())):
        found = shutil.which(spelling)
        if found:
            return Path(found)
    reason = f"there is no {name} here: run `make tools` (Debian), or put it on PATH"
    if os.environ.get("CI") == "true" or os.environ.get("MDP_TEST_TOOLS") == "required":
        pytest.fail(reason)
    pytest.skip(reason)
