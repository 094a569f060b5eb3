"""`mdp reconcile`: ledger compared with bars and calendar and brought in line, lost derived bars derived, Dagster told."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from market_data_pipeline.cli.output import MOST_ROWS, json_option, note, print_json, print_table
from market_data_pipeline.cli.parameters import intervals_option, symbols_option, tier_option
from market_data_pipeline.cli.selection import chosen_instruments, opened_pipeline
from market_data_pipeline.domain.errors import MarketDataError
from market_data_pipeline.domain.runs import CAUSE, RECONCILE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from market_data_pipeline.cli.dagster_client import DagsterClient, Run
    from market_data_pipeline.domain.candles import Interval
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.storage.reconcile import Discrepancy

DONE, FOUND_SOMETHING = 0, 1
POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Dagster:
    """What became of telling Dagster: ``state`` is told, failed, unreachable or skipped."""

    state: str
    detail: str
    url: str | None = None


@click.command(epilog="Example: mdp reconcile --repair")
@symbols_option
@tier_option
@intervals_option
@click.option(
    "--repair",
    is_flag=True,
    help="Bring the ledger in line with bars and calendar; derive again what can be. Stored bars are never touched.",
)
@click.option("--dry-run", is_flag=True, help="Only compare ledger and bars: repair nothing, tell Dagster nothing.")
@json_option
def reconcile(
    *,
    symbols: tuple[str, ...] | None,
    tier: str | None,
    intervals: tuple[Interval, ...],
    repair: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Compare the ledger with the stored bars and the calendar, and tell Dagster what the ledger knows.

    Use it after a calendar override, after a new partition grain, and after bars were changed by hand. Exit code 1 when something
    disagrees and was not repaired, or when Dagster's own job failed.
    """
    from market_data_pipeline.ingest.reconcile import bring_in_line, compare, derive_lost  # noqa: PLC0415 - `mdp --help` must not wait

    if repair and dry_run:
        raise click.UsageError("--repair and --dry-run were both given: expected one of them")
    with opened_pipeline() as pipeline:
        instruments = chosen_instruments(pipeline, symbols=symbols, tier=tier, active_only=False)
        found = list((bring_in_line if repair else compare)(pipeline, instruments, intervals))
        derived = derive_lost(pipeline, instruments, found, run_id=RECONCILE) if repair else 0
        told = _Dagster("skipped", "--dry-run") if dry_run else _tell_dagster(pipeline)
    names = {instrument.symbol_id: instrument.symbol for instrument in instruments}
    rows = [_row(names[one.symbol_id], one, repaired=repair and one.is_repairable) for one in found]
    open_count = sum(not row["repaired"] for row in rows)
    if as_json:
        print_json({"discrepancies": rows, "derived_again": derived, "dagster": asdict(told)})
    else:
        _print(rows, told, repair=repair)
        if derived:
            click.echo(f"{derived:,} lost bars of derived intervals were derived again from stored minutes")
    return FOUND_SOMETHING if open_count or told.state == "failed" else DONE


def _row(symbol: str, found: Discrepancy, *, repaired: bool) -> dict[str, Any]:
    return {
        "symbol": symbol,
        "interval": found.interval,
        "session": found.session,
        "kind": str(found.kind),
        "bars": found.bars,
        "detail": found.detail,
        "repaired": repaired,
        "repairable": found.is_repairable,
    }


def _print(rows: Sequence[dict[str, Any]], told: _Dagster, *, repair: bool) -> None:
    if rows:
        columns = ["symbol", "interval", "session", "kind", "bars", "detail", "repaired"]
        print_table(rows, columns=columns, title=f"{len(rows):,} sessions disagree", most=MOST_ROWS)
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(Counter(row["kind"] for row in rows).items()))
        click.echo(f"ledger and bars: {kinds}")
        if not repair and any(row["repairable"] for row in rows):
            note("`mdp reconcile --repair` brings the ledger in line")
        if any(not row["repairable"] for row in rows):
            note("off_grid_bars and orphan_bars are for a person to decide about: no bar is ever changed here")
    else:
        click.echo("ledger and bars agree")
    click.echo(f"Dagster: {told.state}, {told.detail}")


def _tell_dagster(pipeline: Pipeline) -> _Dagster:
    """Run Dagster's job that reports what the ledger has, and wait for its end."""
    from market_data_pipeline.cli.dagster_client import DagsterClient, RunStatus, WebserverUnreachableError  # noqa: PLC0415 - `mdp --help` must not wait for httpx

    try:
        with DagsterClient(pipeline.settings.dagster_url) as client:
            run_id = client.launch(client.find_job(RECONCILE), RECONCILE, tags={CAUSE: "maintenance"})
            note(f"telling Dagster what the ledger knows: {client.run_url(run_id)}")
            if not client.daemon_is_running():
                return _Dagster(
                    "unreachable", "its run is queued and no daemon takes it: start it with `mdp up`", client.run_url(run_id)
                )
            run = _ended(client, run_id)
            if run.status is RunStatus.SUCCESS:
                return _Dagster("told", "it shows what the ledger has", client.run_url(run_id))
            said = client.failure(run_id) if run.status is RunStatus.FAILURE else "the run was cancelled"
            return _Dagster("failed", said, client.run_url(run_id))
    except WebserverUnreachableError as down:
        return _Dagster("unreachable", f"it was not told what the ledger knows: {down}")
    except MarketDataError as refused:
        return _Dagster("failed", str(refused))


def _ended(client: DagsterClient, run_id: str) -> Run:
    pause = threading.Event().wait
    while True:
        run = client.run(run_id)
        if run.is_over:
            return run
        pause(POLL_SECONDS)
