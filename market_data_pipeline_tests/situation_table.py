"""The table in docs/situations.md, by situation: what was measured is what is written there."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "situations.md"


def as_documented(name: str) -> str:
    """The line of the table that is about the situation called ``name``; "" where none is."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return next((line for line in lines if line.startswith(f"| {name} |")), "")
