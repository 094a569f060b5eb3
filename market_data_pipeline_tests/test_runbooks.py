"""Every built-in rule has its page, and what a page tells somebody to type can be typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from market_data_pipeline.cli.main import mdp
from market_data_pipeline.domain.alert_rules import RULES, THRESHOLDS

if TYPE_CHECKING:
    from market_data_pipeline.domain.alerts import Rule

OPERATIONS = Path(__file__).resolve().parents[1] / "docs" / "operations"
HEADINGS = ["## What it means", "## What to look at", "## What to do", "## When it is over"]
PAGES = sorted(path for path in OPERATIONS.glob("*.md") if path.name != "README.md")


def lasted(seconds: float) -> str:
    """A time as the index has it."""
    minutes = seconds / 60
    return "at once" if not seconds else f"{minutes:g} min" if minutes < 120 else f"{minutes / 60:g} h"


def row(name: str) -> str:
    """What the index must say of a built-in rule."""
    rule = RULES[name]
    numbers = "<br>".join(f"`{one.name}` {one.default:g}: {one.says}" for one in THRESHOLDS[name]) or "-"
    escalates = "-" if rule.escalate_seconds is None else lasted(rule.escalate_seconds)
    after, over = lasted(rule.for_seconds), lasted(rule.clear_seconds)
    return f"| [{name}]({rule.runbook}.md) | {rule.summary} | {rule.severity} | {after} | {over} | {escalates} | {numbers} |"


def commands_of(page: Path) -> list[str]:
    """What a reader would type of ours: lines of code, and code in a line."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`(mdp [^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL).replace("\n", " "))
    return [line for block in blocks for line in block.splitlines() if line.startswith("mdp ")] + inline


def parsed(command: str) -> click.Context:
    """``command`` as click understands it; UsageError where it does not."""
    words = [re.sub(r"^(ID|PID)$", "17", word) for word in shlex.split(command, comments=True)[1:]]
    group: click.Group = mdp
    context = click.Context(group)
    while True:
        name, words = words[0], words[1:]
        found = group.get_command(context, name)
        if found is None:
            raise click.UsageError(f"no command {name}")
        if not isinstance(found, click.Group):
            return found.make_context(name, words, parent=context)
        context, group = click.Context(found, parent=context, info_name=name), found


def test_every_built_in_rule_has_its_page() -> None:
    assert [name for name, rule in RULES.items() if not (OPERATIONS / f"{rule.runbook}.md").exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_says_what_it_means_what_to_look_at_what_to_do_and_when_it_is_over(page: Path) -> None:
    assert [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("## ")] == HEADINGS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_can_be_typed(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("universe.csv", "halts.csv", "alerts.yaml"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    wrong = {}
    for command in commands_of(page):
        try:
            parsed(command)
        except click.ClickException as refused:
            wrong[command] = refused.format_message()
    assert wrong == {}


@pytest.mark.parametrize("page", [*PAGES, OPERATIONS / "README.md"], ids=lambda page: page.stem)
def test_every_page_that_is_linked_is_there(page: Path) -> None:
    linked = re.findall(r"\]\(([^):#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [path for path in linked if not (OPERATIONS / path).exists()] == []


@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_a_page_can_be_found_by_the_name_of_its_alert(rule: Rule) -> None:
    assert rule.name in (OPERATIONS / f"{rule.runbook}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", RULES)
def test_the_index_says_of_each_rule_its_page_severity_and_thresholds(name: str) -> None:
    assert row(name) in (OPERATIONS / "README.md").read_text(encoding="utf-8").splitlines()


def test_the_index_links_every_page() -> None:
    index = (OPERATIONS / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if f"]({page.name})" not in index] == []
