"""Random bars removed from a full store by plain SQL: all found by `mdp reconcile --repair`, all healed, and what that costs.

Requests beside what it costs to ask for everything again, and beside the least possible: one request for each symbol, fetched
interval and longest window in which something is lost. Fails where anything else changed.

python benchmarks/healing.py [--seed N] [--symbols N] [--sessions N] [--removed N …] [--json FILE]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from report import report

from market_data_pipeline.simulator.ground import proving_ground
from market_data_pipeline.simulator.removal import remove_and_heal


def main() -> int:
    """Measure, print, write; 1 where a bar was not found or not healed, or anything else changed."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seed", type=int, default=7)
    arguments.add_argument("--symbols", type=int, default=30)
    arguments.add_argument("--sessions", type=int, default=14)
    arguments.add_argument("--removed", type=int, nargs="+", default=[100, 1_000, 10_000])
    arguments.add_argument("--json", type=Path, help="where to write the numbers (default: benchmarks/results/)")
    chosen = arguments.parse_args()
    rows: list[dict[str, object]] = []
    complaints = []
    for removed in chosen.removed:
        started = time.monotonic()
        with proving_ground("removal") as place:
            held = remove_and_heal(place, seed=chosen.seed, symbols=chosen.symbols, sessions=chosen.sessions, removed=removed)
        complaints += [f"{removed:,} removed: {complaint}" for complaint in held.complaints]
        rows.append(
            {
                "removed": held.total,
                "of": sum(held.stored.values()),
                **{interval: held.removed.get(interval, 0) for interval in held.stored},
                "found": sum(held.found.values()),
                "derived at once": held.derived_again,
                "healed": held.healed,
                "requests": held.requests,
                "a healed bar": held.requests / held.healed if held.healed else None,
                "everything again": held.requests_everything,
                "by fixed spans": held.requests_by_span,
                "else changed": "nothing" if not held.complaints else "SEE BELOW",
                "seconds": time.monotonic() - started,
            }
        )
    notes = [
        f"seed {chosen.seed}, {chosen.symbols} symbols of four exchanges and crypto, {chosen.sessions} sessions, Yahoo alone",
        "removed: single bars, runs of up to 60 neighbours, whole sessions, first and last bars of sessions; columns by interval",
        "derived at once: by `mdp reconcile --repair` itself, from stored minutes; the others with their minutes",
        "else changed: every other row compared in all columns, revisions counted, as many as deletions",
        *complaints,
    ]
    report("healing", rows, notes=notes, json_path=chosen.json)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
