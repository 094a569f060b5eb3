"""`mdp situations`: who is told of what, and when; played on a virtual clock. Nothing of the user's is touched, nobody is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from market_data_pipeline.cli.output import json_option, print_json, print_table
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.simulator.ground import proving_ground
from market_data_pipeline.simulator.situations import COLUMNS, QUIET_WEEKS, SITUATIONS, play, play_quiet, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from market_data_pipeline.simulator.situations import Played, Situation

_EXAMPLES = """
\b
Examples: mdp situations
          mdp situations --situation "stale symbol" --situation "breaker flaps"
          mdp situations --quiet-month
"""


@click.command(short_help="Play what can go wrong and show who is told of it, and when.", epilog=_EXAMPLES)
@click.option("--situation", "names", multiple=True, metavar="NAME", help="Only these; `--list` names them.")
@click.option("--list", "only_list", is_flag=True, help="Name the situations and stop.")
@click.option("--quiet-month", is_flag=True, help="Instead: a month in which nothing happens, with ordinary noise.")
@click.option("--markdown", is_flag=True, help="The table as docs/situations.md has it.")
@json_option
def situations(*, names: Sequence[str], only_list: bool, quiet_month: bool, markdown: bool, as_json: bool) -> int:
    """Play each situation on a clock of its own and count the messages that a channel takes.

    Postgres (of its own, gone afterwards), calendars, census, rules, alerts and outbox are real; collectors, providers and channels
    are played. Exit code 1 where somebody was told too late, twice, or of anything else; for the quiet month, of anything.
    """
    if only_list:
        for situation in SITUATIONS:
            click.echo(situation.name)
        return 0
    chosen = _chosen(names)
    if quiet_month:
        return _quiet(as_json=as_json)
    with proving_ground("situations") as ground:
        played = []
        for situation in chosen:
            click.echo(f"mdp situations: {situation.name}", err=True)
            with ground.database() as url:
                played.append(play(situation, url, ground.home))
    if as_json:
        print_json([_as_json(one) for one in played])
    elif markdown:
        click.echo(table(played))
    else:
        print_table([_cells(one) for one in played], columns=(*COLUMNS, "verdict"))
    return 0 if all(one.passed for one in played) else 1


def _chosen(names: Sequence[str]) -> list[Situation]:
    known = {situation.name for situation in SITUATIONS}
    for name in names:
        if name not in known:
            raise InvalidInputError(f"no situation {name!r}: `mdp situations --list` names them")
    return [situation for situation in SITUATIONS if not names or situation.name in names]


def _quiet(*, as_json: bool) -> int:
    with proving_ground("situations") as ground:
        weeks = []
        for seed, (first, last) in enumerate(QUIET_WEEKS, 7):
            click.echo(f"mdp situations: {first} to {last}", err=True)
            with ground.database() as url:
                weeks.append(play_quiet(first, last, url, ground.home, seed=seed))
    if as_json:
        print_json(
            [
                {"first": w.first, "last": w.last, "looks": w.looks, "messages": [told.title for told in w.told], "noise": w.noise}
                for w in weeks
            ]
        )
    else:
        rows = [
            {
                "first": week.first,
                "last": week.last,
                "looks": week.looks,
                "messages": len(week.told),
                "noise": ", ".join(f"{kind} {count}" for kind, count in week.noise.items()),
            }
            for week in weeks
        ]
        print_table(rows, columns=("first", "last", "looks", "messages", "noise"))
    return 1 if any(week.told for week in weeks) else 0


def _cells(one: Played) -> dict[str, object]:
    cells = [cell.strip().replace("<br>", "; ") for cell in one.row.strip("|").split("|")]
    return {**dict(zip(COLUMNS, cells, strict=True)), "verdict": "pass" if one.passed else "FAIL"}


def _as_json(one: Played) -> dict[str, object]:
    return {
        "situation": one.situation.name,
        "passed": one.passed,
        "expected": [
            {
                "rule": heard.expected.rule,
                "told": list(heard.kinds),
                "told_after_minutes": heard.told_after,
                "told_within_minutes": heard.expected.within,
                "over_after_minutes": heard.over_after,
                "over_within_minutes": heard.expected.over_within,
                "passed": heard.passed,
            }
            for heard in one.heard
        ],
        "unexpected": [told.title for told in one.unexpected],
        "looks": one.looks,
    }
