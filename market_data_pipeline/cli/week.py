"""`mdp week`: a simulated week with everything that goes wrong in weeks, and whether the pipeline came through it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click
from rich.console import Console

from market_data_pipeline.cli.output import json_option, print_json, print_table
from market_data_pipeline.simulator.ground import proving_ground
from market_data_pipeline.simulator.week import WeekPlan, live
from market_data_pipeline.simulator.week_market import LEAST_SYMBOLS, MOST_SYMBOLS
from market_data_pipeline.simulator.week_report import report_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from market_data_pipeline.simulator.week_report import Loss, WeekReport

# With more than this, one request in three would need a third attempt, and the week would be about nothing else.
_MOST_FAULTS = 0.25


@click.command(
    short_help="Live through a simulated week with faults, an outage and corrections.", epilog="Example: mdp week --seed 7"
)
@click.option("--seed", type=click.IntRange(0), default=7, show_default=True, help="The same seed gives the same week.")
@click.option(
    "--symbols", type=click.IntRange(LEAST_SYMBOLS, MOST_SYMBOLS), default=50, show_default=True, help="How many follow it."
)
@click.option(
    "--probability",
    type=click.FloatRange(0, _MOST_FAULTS, min_open=True),
    default=0.03,
    show_default=True,
    help="Of a fault, in each request to any provider.",
)
@click.option("--keep", is_flag=True, help="Keep the folder with data and Postgres, and say where it is.")
@json_option
def week(*, seed: int, symbols: int, probability: float, keep: bool, as_json: bool) -> int:
    """Let the pipeline live through a week on a virtual clock: 50 symbols, a DST change, a half day declared two days before.

    With 3 % random faults, an outage of two hours, a halt, a listing, a delisting, late prints and next-day corrections; then once
    more with providers that never fail, to compare. Everything is real but the providers: a simulator process, HTTP, Postgres (of
    its own, gone afterwards). Exit code 1 where a bar is missing that some provider has, a verdict is not the one that a bar
    deserves, a value is not the corrected one, or an earlier as-of read answers otherwise.
    """
    plan = WeekPlan(seed, symbols, probability=probability)
    console = Console(stderr=True)
    with proving_ground("week", keep=keep) as place:
        with console.status(f"seed {seed}: the week with faults"):
            faulty_week = live(place, plan, faulty=True, judge=report_of)
        with console.status(f"seed {seed}: the week without faults"):
            fault_free = live(place, plan, faulty=False, judge=report_of)
        if keep:
            click.echo(f"mdp week: kept in {place.home}", err=True)
    if as_json:
        print_json({"seed": seed, "faulty": _as_json(faulty_week), "fault_free": _as_json(fault_free)})
    else:
        _print(faulty_week, fault_free)
    for report in (faulty_week, fault_free):
        for complaint in report.complaints:
            click.echo(f"mdp week: seed {seed}, {'with' if report.faulty else 'without'} faults: {complaint}", err=True)
    return 0 if faulty_week.passed and fault_free.passed else 1


def _print(faulty: WeekReport, fault_free: WeekReport) -> None:
    plan = faulty.plan
    days = faulty.virtual.total_seconds() / 86_400
    click.echo(
        f"seed {plan.seed}: {plan.symbols} symbols, sessions {plan.first} to {plan.last}, {days:.1f} virtual days until nothing "
        f"more was planned, {faulty.seconds:.0f} s"
    )
    print_table(
        [_loss_row(loss) for loss in faulty.losses], columns=_LOSS_COLUMNS, title="bars that did not come at once, by cause"
    )
    print_table(_request_rows(faulty, fault_free), columns=["requests", "with faults", "without", "ratio"], title="requests")
    print_table(
        [
            {"deserved": deserved, "in the ledger": said, "bars": f"{count:,}"}
            for (deserved, said), count in faulty.verdicts.items()
        ],
        columns=["deserved", "in the ledger", "bars"],
        title="verdicts of 1m, 1h and 1d at the end",
    )
    finality = [{"interval": i, "finality": f, "sessions": f"{n:,}"} for (i, f), n in faulty.finality.items()]
    print_table(finality, columns=["interval", "finality", "sessions"], title="finality")
    for name, counts in (("faults", faulty.faults), ("evidence", faulty.evidence), ("revisions, by interval_s", faulty.revisions)):
        click.echo(f"{name}: " + (", ".join(f"{key} {count:,}" for key, count in counts.items()) or "none"))
    gaps, healed = requests_a_healed_bar(faulty, fault_free)
    click.echo(
        f"{faulty.lost:,} bars were lost at first; {healed:,} came by healing, for {gaps:,} requests more than the week without "
        f"faults spent on gaps: {_ratio(gaps, healed)} requests a healed bar"
    )
    click.echo(f"{faulty.as_of_reads} reads as of an earlier instant were asked again at the end")
    click.echo("pass" if faulty.passed and fault_free.passed else "FAIL")


def requests_a_healed_bar(faulty: WeekReport, fault_free: WeekReport) -> tuple[int, int]:
    """The requests of healing that the faults cost, and the bars that healing brought."""
    healed = sum(loss.by.get("gap", 0) + loss.by.get("recheck", 0) for loss in faulty.losses)
    return max(0, faulty.requests.get("gap", 0) - fault_free.requests.get("gap", 0)), healed


_LOSS_COLUMNS = ["cause", "bars", "detect p50", "p95", "max", "heal p50", "heal p95", "heal max", "brought by", "never"]


def _loss_row(loss: Loss) -> dict[str, str]:
    detect, heal = _spread(loss.detected), _spread(loss.healed)
    return {
        "cause": loss.cause,
        "bars": f"{loss.bars:,}",
        **dict(zip(_LOSS_COLUMNS[2:8], (*detect, *heal), strict=True)),
        "brought by": ", ".join(f"{by} {count:,}" for by, count in loss.by.items()),
        "never": f"{loss.never:,}",
    }


def _spread(seconds: Sequence[int]) -> tuple[str, str, str]:
    """Median, 95th percentile and the longest, in minutes."""
    if not seconds:
        return ("-", "-", "-")
    ordered = sorted(seconds)
    picked = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.95, 1.0))
    p50, p95, most = (f"{value / 60:,.0f} min" for value in picked)
    return p50, p95, most


def _request_rows(faulty: WeekReport, fault_free: WeekReport) -> list[dict[str, str]]:
    names = [*dict.fromkeys([*faulty.requests, *fault_free.requests])]
    rows = [(name, faulty.requests.get(name, 0), fault_free.requests.get(name, 0)) for name in names]
    rows.append(("all", faulty.sent, fault_free.sent))
    rows += [(name, count, fault_free.providers.get(name, 0)) for name, count in faulty.providers.items()]
    return [{"requests": n, "with faults": f"{a:,}", "without": f"{b:,}", "ratio": _ratio(a, b)} for n, a, b in rows]


def _ratio(ours: int, theirs: int) -> str:
    return f"{ours / theirs:.2f}" if theirs else "-"


def _as_json(report: WeekReport) -> Mapping[str, object]:
    return {
        "passed": report.passed,
        "complaints": list(report.complaints),
        "symbols": report.plan.symbols,
        "ticks": report.ticks,
        "virtual_seconds": report.virtual.total_seconds(),
        "requests": dict(report.requests),
        "providers": dict(report.providers),
        "faults": dict(report.faults),
        "losses": [
            {
                "cause": loss.cause,
                "bars": loss.bars,
                "never": loss.never,
                "brought_by": dict(loss.by),
                "detect_seconds": _numbers(loss.detected),
                "heal_seconds": _numbers(loss.healed),
            }
            for loss in report.losses
        ],
        "verdicts": [{"deserved": d, "ledger": s, "bars": n} for (d, s), n in report.verdicts.items()],
        "finality": [{"interval": i, "finality": f, "sessions": n} for (i, f), n in report.finality.items()],
        "revisions": dict(report.revisions),
        "evidence": dict(report.evidence),
        "as_of_reads": report.as_of_reads,
        "seconds": report.seconds,
    }


def _numbers(seconds: Sequence[int]) -> Mapping[str, int] | None:
    if not seconds:
        return None
    ordered = sorted(seconds)
    return {name: ordered[math.ceil(share * len(ordered)) - 1] for name, share in (("p50", 0.5), ("p95", 0.95), ("max", 1.0))}
