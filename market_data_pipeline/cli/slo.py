"""`mdp slo`: how fresh each tier and interval is now, against its target, and what is left of its error budget."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from market_data_pipeline.cli.output import json_option, note, print_json, print_table
from market_data_pipeline.cli.parameters import intervals_option, tier_option, written
from market_data_pipeline.cli.selection import opened_pipeline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from market_data_pipeline.domain.candles import Interval
    from market_data_pipeline.domain.freshness import StaleSymbol
    from market_data_pipeline.domain.slo import SloLine, SloStatus

DONE, FOUND_SOMETHING = 0, 1
# While any market is open something is due every minute, or every half hour of a universe that is only derived.
_QUIET = timedelta(hours=1)
_COLUMNS = [
    "tier",
    "interval",
    "symbols",
    "stale",
    "violation %",
    "target %",
    "late",
    "due",
    "budget left %",
    "1h",
    "6h",
    "worst lag",
]


@click.command(epilog="Example: mdp slo --tier T0 --interval 1m --stale")
@tier_option
@intervals_option
@click.option("--stale", "name_stale", is_flag=True, help="Also name the symbols whose newest bar is late.")
@json_option
def slo(*, tier: str | None, intervals: tuple[Interval, ...], name_stale: bool, as_json: bool) -> int:
    """Say how fresh each tier is, and how much of its error budget is left.

    Stale are symbols whose newest bar is later than allowed. Late and due count bars of 30 days, each once, as the watch saw them;
    1h and 6h: how many times faster than allowed the budget is spent. Exit code 1 where more symbols are stale than the target
    allows, or a budget is spent.
    """
    from market_data_pipeline.ingest.freshness import slo_status, take_census  # noqa: PLC0415 - `mdp --help` must not wait for it

    with opened_pipeline() as pipeline:
        census = take_census(pipeline)
        status = slo_status(pipeline, census=census)
    lines = [line for line in status.lines if tier in {None, line.tier} and (not intervals or line.interval in intervals)]
    stale = [one for one in census.stale if tier in {None, one.tier} and (not intervals or one.interval in intervals)]
    if as_json:
        print_json(_as_json(status, lines, stale))
    else:
        _print(status, lines, stale if name_stale else ())
    return FOUND_SOMETHING if any(line.is_violated or line.is_spent for line in lines) else DONE


def _print(status: SloStatus, lines: Sequence[SloLine], stale: Sequence[StaleSymbol]) -> None:
    if not lines:
        note("nothing is expected of any symbol yet: load a universe (mdp universe load) and let a session begin")
        return
    print_table([_row(line) for line in lines], columns=_COLUMNS, title=f"freshness at {_instant(status.at)}")
    if status.last_due_at is not None and status.at - status.last_due_at > _QUIET:
        note(f"markets are closed: nothing has become due since {_instant(status.last_due_at)}")
    wrong = [line for line in lines if line.is_violated or line.is_spent]
    for line in wrong:
        note(f"{line.tier} {line.interval}: {_what_is_wrong(line)}")
    if stale:
        columns = ["symbol", "tier", "interval", "session", "newest bar", "bars behind", "lag", "provider"]
        print_table([_stale_row(one) for one in stale], columns=columns, title="late symbols, the latest first")


def _row(line: SloLine) -> dict[str, Any]:
    left = line.budget_left
    return {
        "tier": str(line.tier),
        "interval": str(line.interval),
        "symbols": line.symbols,
        "stale": line.stale,
        "violation %": _percent(line.violation_rate),
        "target %": None if line.objective is None else _percent(line.objective),
        "late": line.late,
        "due": line.due,
        "budget left %": None if left is None else _percent(left),
        "1h": round(line.burn_rates["1h"], 2),
        "6h": round(line.burn_rates["6h"], 2),
        "worst lag": _span(line.worst_lag_seconds),
    }


def _stale_row(one: StaleSymbol) -> dict[str, Any]:
    return {
        "symbol": one.symbol,
        "tier": str(one.tier),
        "interval": str(one.interval),
        "session": one.session,
        "newest bar": None if one.newest_opened_at is None else _instant(one.newest_opened_at),
        "bars behind": one.behind,
        "lag": _span(one.lag_seconds),
        "provider": "answers without it" if one.is_answered else "has not answered since",
    }


def _what_is_wrong(line: SloLine) -> str:
    told = []
    if line.is_violated and line.objective is not None:
        told.append(f"{line.stale:,} of {line.symbols:,} symbols are late, more than {line.objective:.2%} allows")
    if line.is_spent:
        told.append(f"{line.late:,} of {line.due:,} bars of 30 days were late: the error budget is spent")
    return "; ".join(told)


def _as_json(status: SloStatus, lines: Sequence[SloLine], stale: Sequence[StaleSymbol]) -> dict[str, Any]:
    return {
        "at": _instant(status.at),
        "last_due_at": None if status.last_due_at is None else _instant(status.last_due_at),
        "lines": [
            {
                **{name: value for name, value in asdict(line).items() if name != "windows"},
                "violation_rate": line.violation_rate,
                "is_violated": line.is_violated,
                "budget_left": line.budget_left,
                "burn_rates": line.burn_rates,
                "is_burning_fast": line.is_burning_fast,
                "is_burning_slowly": line.is_burning_slowly,
            }
            for line in lines
        ],
        "stale": [
            {
                **asdict(one),
                "newest_opened_at": None if one.newest_opened_at is None else _instant(one.newest_opened_at),
            }
            for one in stale
        ],
    }


def _percent(share: float) -> float:
    return round(100 * share, 3)


def _span(seconds: float | None) -> str | None:
    return None if seconds is None else str(timedelta(seconds=round(seconds)))


def _instant(at: datetime) -> str:
    return written(at.astimezone(UTC).replace(microsecond=0))
