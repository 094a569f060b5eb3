"""`mdp drill`: what the pipeline does when providers fail, shown on simulated ones; nothing of the user's is touched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import Progress

from market_data_pipeline.cli.output import json_option, print_json, print_table
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.simulator.drill import FAULT_FREE, SITUATIONS, VENDORS, Ground, Verdicts, ground, random_faults

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from market_data_pipeline.simulator.drill import Outcome, Situation

_EXAMPLES = """
\b
Examples: mdp drill --provider yahoo
          mdp drill --situation killed --situation "down, 503"
          mdp drill --seeds 20 --probability 0.05
"""


@click.command(short_help="Let simulated providers fail and show what becomes of a backfill.", epilog=_EXAMPLES)
@click.option("--provider", "victims", multiple=True, type=click.Choice(VENDORS), help="Whose turn it is; all by default.")
@click.option("--situation", "names", multiple=True, metavar="NAME", help="Only these; `--list` names them.")
@click.option("--list", "only_list", is_flag=True, help="Name the situations and stop.")
@click.option("--seeds", type=click.IntRange(0), default=0, help="Instead: that many backfills with random faults, seeds 1, 2, …")
@click.option("--probability", type=float, default=0.05, show_default=True, help="Of a fault, for --seeds.")
@click.option("--markdown", is_flag=True, help="The table as docs/drill.md has it.")
@json_option
def drill(
    *,
    victims: Sequence[str],
    names: Sequence[str],
    only_list: bool,
    seeds: int,
    probability: float,
    markdown: bool,
    as_json: bool,
) -> int:
    """Kill, throttle, corrupt, slow or bankrupt a provider in the middle of a backfill, and compare with a fault-free one.

    Everything is real but the providers: a simulator process, HTTP, Postgres (of its own, gone afterwards). Exit code 1 where a
    warehouse differs, a limit was exceeded, or more than 1.3 times the requests (and one trial a cool-down) were
    spent; 1.6 times where a provider falls silent, which only shows when many symbols do.
    """
    if only_list:
        for name in dict.fromkeys(situation.name for situation in SITUATIONS):
            click.echo(name)
        return 0
    chosen = _chosen(victims or VENDORS, names)
    with ground() as where:
        held = _seeded(where, seeds, probability) if seeds else _held(where, chosen)
    if as_json:
        print_json([_as_json(one) for one in held])
    elif markdown:
        click.echo(_markdown(held))
    else:
        print_table([dict(zip(_COLUMNS, _cells(one), strict=True)) for one in held], columns=_COLUMNS)
    failed = [one for one in held if not one.passed]
    for one in failed:
        _explain(one)
    return 1 if failed else 0


def _chosen(victims: Sequence[str], names: Sequence[str]) -> list[Situation]:
    known = dict.fromkeys(situation.name for situation in SITUATIONS)
    for name in names:
        if name not in known:
            raise InvalidInputError(f"no situation {name!r}: `mdp drill --list` names them")
    return [s for s in SITUATIONS if s.victim in victims and (not names or s.name in names)]


def _held(where: Ground, chosen: Sequence[Situation]) -> list[Verdicts]:
    verdicts: list[Verdicts] = []
    fault_free: dict[str, Outcome] = {}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("drill", total=len(chosen) + len({VENDORS[0], *(s.victim for s in chosen)}))
        for situation in chosen:
            for victim in (VENDORS[0], situation.victim):
                if victim not in fault_free:
                    progress.update(task, description=f"{victim}: fault-free")
                    fault_free[victim] = where.hold(FAULT_FREE[victim])
                    progress.advance(task)
            progress.update(task, description=f"{situation.victim}: {situation.name}")
            held = where.hold(situation)
            others = fault_free[VENDORS[0]].sent
            verdicts.append(Verdicts.of(held, fault_free[situation.victim], others_sent=others))
            progress.advance(task)
    return verdicts


def _seeded(where: Ground, seeds: int, probability: float) -> list[Verdicts]:
    situation = random_faults(VENDORS[0], probability)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("seeds", total=seeds + 1)
        fault_free = where.hold(FAULT_FREE[VENDORS[0]])
        progress.advance(task)
        verdicts = []
        for seed in range(1, seeds + 1):
            verdicts.append(Verdicts.of(where.hold(situation, seed=seed), fault_free))
            progress.advance(task)
    return verdicts


_COLUMNS = (
    "provider",
    "situation",
    "seed",
    "struck",
    "classes",
    "events",
    "missing at first",
    "healed after",
    "requests",
    "same",
    "verdict",
)


def _cells(one: Verdicts) -> tuple[str, ...]:
    faulty = one.faulty
    classes = ", ".join(f"{kind} {count}" for kind, count in sorted(faulty.outcomes.items()) if kind != "ok")
    if faulty.refused:
        classes = ", ".join(filter(None, (classes, f"{faulty.refused:,} rows kept aside")))
    return (
        faulty.situation.victim,
        faulty.situation.name,
        str(faulty.seed),
        f"{faulty.struck:,}",
        classes or "-",
        ", ".join(f"{kind} {count}" for kind, count in sorted(faulty.events.items())) or "-",
        f"{faulty.missing_at_first:,}",
        f"{faulty.waited.total_seconds() / 60:.0f} min",
        f"{faulty.sent:,} = {one.times:.2f} x",
        "yes" if one.is_equal else "NO",
        "pass" if one.passed else "FAIL",
    )


def _markdown(held: Sequence[Verdicts]) -> str:
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + "---|" * len(_COLUMNS)]
    lines += ["| " + " | ".join(_cells(one)) + " |" for one in held]
    return "\n".join(lines)


def _as_json(one: Verdicts) -> Mapping[str, object]:
    faulty = one.faulty
    return {
        "provider": faulty.situation.victim,
        "situation": faulty.situation.name,
        "seed": faulty.seed,
        "passed": one.passed,
        "equal": one.is_equal,
        "missing_at_first": faulty.missing_at_first,
        "missing": faulty.missing,
        "rounds": faulty.rounds,
        "waited_seconds": faulty.waited.total_seconds(),
        "requests": dict(faulty.requests),
        "requests_fault_free": dict(one.fault_free.requests),
        "requests_base": one.base,
        "times": one.times,
        "trials": faulty.trials,
        "struck": faulty.struck,
        "over_limit": faulty.over_limit,
        "refused_rows": faulty.refused,
        "outcomes": dict(faulty.outcomes),
        "events": dict(faulty.events),
        "digest": faulty.warehouse.digest,
        "seconds": faulty.seconds,
    }


def _explain(one: Verdicts) -> None:
    faulty = one.faulty
    click.echo(f"mdp drill: {faulty.situation.victim}, {faulty.situation.name}, seed {faulty.seed}:", err=True)
    if faulty.missing:
        click.echo(f"  {faulty.missing:,} bars are still missing after {faulty.rounds} rounds", err=True)
    if faulty.over_limit:
        click.echo(f"  {faulty.over_limit:,} requests exceeded a limit", err=True)
    if not one.is_frugal:
        click.echo(f"  {faulty.sent:,} requests, {one.times:.2f} times the {one.base:,} without faults", err=True)
    for line in faulty.warehouse.differences(one.fault_free.warehouse):
        click.echo(f"  {line}", err=True)
