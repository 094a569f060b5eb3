"""docs/alerts.md says what is: every rule with its times, every option, and files that can be used as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from market_data_pipeline.domain.alert_config import PriceField, PriceRuleKind
from market_data_pipeline.domain.alert_rules import RULES
from market_data_pipeline.ingest.alert_file import PriceRulePart, parse_alerts

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "alerts.md").read_text(encoding="utf-8")
FILES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
ENVIRONMENT = {
    "OPS_SLACK_URL": "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/#ops",
    "PAGERDUTY_KEYS": "integration0key@api0key",
    "SMTP_PASSWORD": "anything",
}


def spelled(seconds: float | None) -> str:
    """A time as the table has it."""
    if not seconds:
        return "" if seconds is None else "at once"
    return f"{seconds / 3600:g} h" if seconds >= 3600 else f"{seconds / 60:g} min"


@pytest.mark.parametrize("text", FILES, ids=[next(iter(yaml.safe_load(text))) for text in FILES])
def test_each_file_of_the_page_can_be_used(text: str) -> None:
    parse_alerts(text.encode(), name="docs/alerts.md", environment=ENVIRONMENT)


@pytest.mark.parametrize("name", RULES)
def test_the_table_has_each_built_in_rule_with_its_times_and_its_page(name: str) -> None:
    named = RULES[name]
    (row,) = re.findall(rf"^\| \[{named.name}\]\(operations/{named.runbook}\.md\) \|.*$", PAGE, re.MULTILINE)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:4] == [spelled(named.for_seconds), spelled(named.escalate_seconds)]
    assert (DOCS / "operations" / f"{named.runbook}.md").exists()


@pytest.mark.parametrize("option", [*PriceRulePart.model_fields, *PriceRuleKind, *PriceField])
def test_each_option_of_a_rule_over_prices_is_named(option: str) -> None:
    assert f"`{option}`" in PAGE.partition("## Rules over prices")[2]
