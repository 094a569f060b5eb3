"""docs/simulator.md names everything that the simulator understands."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from market_data_pipeline.cli.simulate import sample, simulate
from market_data_pipeline.simulator.faults import SETTINGS, parse_rules
from market_data_pipeline.simulator.market import Profile
from market_data_pipeline.simulator.rules import Match
from market_data_pipeline.simulator.vendor import FREE
from market_data_pipeline.simulator.vendors import VENDORS

if TYPE_CHECKING:
    from market_data_pipeline.simulator.vendor import Vendor

PAGE = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name",
    [
        *SETTINGS,
        *(setting for settings in SETTINGS.values() for setting in settings),
        *(field.name.removesuffix("_us") for field in fields(Match)),
        *(field.name for field in fields(Profile)),
        "probability",
    ],
)
def test_the_page_names_it(name: str) -> None:
    assert f"`{name}`" in PAGE


@pytest.mark.parametrize(
    "option", [opt for command in (simulate, sample) for p in command.params for opt in p.opts if opt.startswith("--")]
)
def test_the_page_names_every_option_but_json(option: str) -> None:
    assert option in PAGE or option == "--json"


EXAMPLES = re.findall(r"\| `(\{.*action: .*\})` \|$", PAGE, re.MULTILINE)


def test_every_fault_has_an_example_that_is_a_rule() -> None:
    rules = [parse_rules([yaml.safe_load(example)])[0] for example in EXAMPLES]

    assert sorted(rule.action for rule in rules) == sorted(SETTINGS)


@pytest.mark.parametrize("vendor", VENDORS, ids=lambda vendor: vendor.name)
def test_the_page_names_every_vendor_and_its_limits(vendor: Vendor) -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and vendor.name in line.split("|")[1]]

    assert f"`{vendor.prefix}`" in PAGE or not vendor.prefix
    assert all(str(limit) in rows[-1] for limit in vendor.limits.get(FREE, ()))


def test_the_example_rules_are_rules() -> None:
    example = PAGE.partition("```yaml\n")[2].partition("```")[0]

    assert [rule.action for rule in parse_rules(yaml.safe_load(example))] == ["status", "missing_minutes"]
