"""`mdp dlq`: looked at without a secret, tried again once, forgotten after a question, and all of it in the log."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.cli.discretion import discreet, line, payload
from market_data_pipeline.domain.universe import Tier
from market_data_pipeline_tests.cli.builders import pipeline_of
from market_data_pipeline_tests.storage.test_jobs import backfill

if TYPE_CHECKING:
    from market_data_pipeline_tests.cli.conftest import Mdp

CANARY = "sk-canary-4711-canary"


def bury(mdp: Mdp, *numbers: int, reason: str = "no such symbol", tier: Tier = Tier.T0) -> None:
    """Make dead letters j-NUMBER."""
    with pipeline_of(mdp) as pipeline:
        pipeline.jobs.submit([backfill(number, tier) for number in numbers])
        for lease in pipeline.jobs.lease("w", tier=tier, limit=100):
            pipeline.jobs.fail(lease, reason, is_final=True)


def refuse(mdp: Mdp, text: str) -> str:
    """Make a dead letter of what is no job; its name."""
    with pipeline_of(mdp) as pipeline:
        return f"refused/{pipeline.jobs.refuse('rlc', text, 'no job')}"


def test_requeueing_from_the_command_line_is_once_and_audited_with_the_actor(mdp: Mdp) -> None:
    bury(mdp, 1)
    first, again = mdp("dlq", "requeue", "j-1", "--actor", "anna"), mdp("dlq", "requeue", "j-1", "--actor", "boris")
    assert (first.code, first.out) == (0, "1 requeued\n")
    assert (again.code, again.out, again.err) == (1, "0 requeued, 1 left\n", "j-1 is queued already\n")
    assert mdp("dlq", "requeue", "nobody").code == 2
    log = mdp("dlq", "audit", "--json").json
    assert [(entry["actor"], entry["action"], entry["subject"]) for entry in log] == [
        ("boris", "dlq.requeue", "j-1"),
        ("anna", "dlq.requeue", "j-1"),
    ]
    assert "anna" in mdp("dlq", "audit").out


def test_bulk_replays_are_bounded_dry_first_and_by_tier(mdp: Mdp) -> None:
    bury(mdp, 1, 2, 3)
    bury(mdp, 4, tier=Tier.T1)
    name = refuse(mdp, "{}")
    assert mdp("dlq", "requeue-all", "--tier", "T0", "--limit", "2", "--dry-run").out == "2 would be requeued\n"
    assert mdp("dlq", "requeue-all", "--tier", "T0", "--limit", "2").out == "2 requeued\n"
    rest = mdp("dlq", "requeue-all", "--json")
    assert (rest.code, rest.json["requeued"], list(rest.json["left"])) == (1, ["j-3", "j-4"], [name])
    assert mdp("dlq", "requeue-all", "--limit", "10001").code == 2
    assert mdp("dlq", "requeue-all", "--kind", "refused", "--tier", "T0").code == 2


def test_nothing_is_forgotten_without_a_yes(mdp: Mdp) -> None:
    bury(mdp, 1, 2)
    for command in (["delete", "j-1"], ["purge", "--older-than", "0m"]):
        answer = mdp("dlq", *command)
        assert answer.code == 2
        assert "expected --yes" in answer.err
    assert mdp("dlq", "delete", "j-1", "--yes").out == "j-1 is deleted\n"
    assert mdp("dlq", "purge", "--older-than", "30d", "--yes").out == "0 dead letters are forgotten\n"
    assert mdp("dlq", "purge", "--older-than", "0m", "--dry-run").out == "1 dead letters would be forgotten\n"
    assert mdp("dlq", "purge", "--older-than", "0m", "--yes", "--json").json == {"purged": ["j-2"], "would_purge": []}
    assert mdp("dlq", "list").err == "there are no such dead letters\n"
    for age in ("30", "1y", "-1d", "999999d"):
        assert mdp("dlq", "purge", "--older-than", age).code == 2


def test_dead_letters_are_counted(mdp: Mdp) -> None:
    assert mdp("dlq", "stats").err == "there are no dead letters\n"
    bury(mdp, 1, 2)
    refuse(mdp, "{}")
    told = {(one["tier"], one["kind"], one["interval"]): one["letters"] for one in mdp("dlq", "stats", "--json").json}
    assert told == {("T0", "backfill", "1m"): 2, (None, "refused", None): 1}
    assert "refused" in mdp("dlq", "stats").out


@pytest.mark.parametrize(
    "text",
    [
        f'{{"type": "backfill", "api_key": "{CANARY}"}}',
        f'{{"deep": [{{"Authorization": "Bearer {CANARY}"}}]}}',
        f'{{"url": "https://x.test/?token={CANARY}&a=1"}}',
        f'{{"redis": "redis://user:{CANARY}@host:6379/0"}}',
        f"GET /?apikey={CANARY} and then rubbish",
        f'{{"note": "our own key, {CANARY}, where nobody expects it"}}',
        f'{{"x-{CANARY}": 1}}',
    ],
)
def test_no_secret_is_shown_of_a_dead_letter(mdp: Mdp, text: str) -> None:
    name = refuse(mdp, text)
    bury(mdp, 1, reason=f"GET https://x.test/?token={CANARY} said 401")
    for command in (["dlq", "show", name], ["dlq", "show", "j-1"], ["dlq", "list"], ["jobs", "show", "j-1"], ["jobs", "list"]):
        for form in ([], ["--json"]):
            answer = mdp(*command, *form, finnhub_key=CANARY)
            assert answer.code == 0
            assert CANARY not in answer.out + answer.err


def test_what_steers_a_terminal_and_what_is_endless_is_not_shown_as_it_is(mdp: Mdp) -> None:
    name = refuse(mdp, "\x1b[2J\x1b]0;owned\x07" + "x" * 1_000_000)
    shown = mdp("dlq", "show", name)
    assert "\x1b" not in shown.out
    assert len(shown.out) < 20_000
    assert payload("[" * 1000 + "]" * 1000) is not None
    assert "\x1b" not in line("a\x1b[31mb")
    assert discreet({"password": 5, "n": 5}) == {"password": "***", "n": 5}
    assert mdp("dlq", "show", "nobody").code == 2
