"""The page about adding a provider is true: its example runs, keeps the contract, and is as short as it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from market_data_pipeline.testing import contract

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-provider.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    """What the page's code defines, all of it in one module."""
    names: dict[str, Any] = {"__name__": "example"}
    for block in blocks():
        exec(compile(block, str(PAGE), "exec"), names)  # noqa: S102 - our own page
    return names


def test_the_adapter_takes_less_than_a_hundred_lines() -> None:
    adapter, of_the_contract = blocks()
    assert len(adapter.splitlines()) < 100
    assert len(of_the_contract.splitlines()) < 50


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
def test_the_example_keeps_the_contract(example: dict[str, Any], check: Callable[[contract.Vendor], None]) -> None:
    check(example["TIINGO"])


def test_the_example_runs_the_contract_as_it_says(example: dict[str, Any]) -> None:
    example["test_tiingo_keeps_the_contract"](contract.hands_out_the_opens_of_the_window)


def test_every_check_of_the_contract_says_what_it_is_about() -> None:
    assert all(check.__doc__ for check in contract.CHECKS)
