"""`mdp prune`: old rows of ours, deleted now instead of tonight, or only counted."""

from __future__ import annotations

import getpass

import click

from market_data_pipeline.cli.output import json_option, note, print_json, print_table
from market_data_pipeline.cli.selection import opened_pipeline


@click.command(epilog="Example: mdp prune --dry-run")
@click.option("--only", multiple=True, help="Only rows of this kind, such as quotes_l1; may be given several times.")
@click.option("--dry-run", is_flag=True, help="Count what would be deleted, and delete nothing.")
@json_option
def prune(*, only: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Delete quotes, chains, provenance, refused rows, events and alerts that are older than the MDP_*_RETENTION_DAYS.

    The job `prune_event_log` does the same every night, and prunes Dagster's runs and events too. Candles, their revisions and the
    ledger are never deleted, nor what an open gap still needs. It can be interrupted: what was deleted is deleted, whole rows only.
    """
    from market_data_pipeline.ingest.retention import prune as prune_old_rows  # noqa: PLC0415 - `mdp prune --help` must not wait
    from market_data_pipeline.storage.audit import record  # noqa: PLC0415
    from market_data_pipeline.storage.bulk import transaction  # noqa: PLC0415

    found = []
    with opened_pipeline() as pipeline:
        for pruned in prune_old_rows(pipeline, only=only, dry_run=dry_run):
            found.append(pruned)
            if not as_json:
                note(f"{pruned.what}: {pruned.rows:,} rows{'' if pruned.is_complete else ', and there are more: run it again'}")
        if not dry_run:
            with transaction(pipeline.engine) as cursor:
                detail = {pruned.what: pruned.rows for pruned in found}
                record(cursor, getpass.getuser(), "prune", ",".join(only) or "everything old", detail)
    rows = [{"what": one.what, "rows": one.rows, "complete": one.is_complete} for one in found]
    if as_json:
        print_json({"dry_run": dry_run, "pruned": rows})
    else:
        print_table(rows, columns=["what", "rows"])
