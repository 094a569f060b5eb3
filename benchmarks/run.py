"""Every benchmark, one after the other: `make bench`, or some: `python benchmarks/run.py write_path read_path`."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
# In the order in which a reader wants them: what is stored, what is read, what it costs to orchestrate, then the parts.
NAMES = (
    "write_path",
    "read_path",
    "ledger_scan",
    "census",
    "watch",
    "alerts",
    "orchestration",
    "universe",
    "live",
    "rlc",
    "healing",
    "parse",
    "trading_calendar",
    "budgets",
    "jobs",
    "counting",
    "scrape",
    "retention",
    "telling",
)


def main() -> int:
    """Run the benchmarks that are named, all of them without a name; 1 when one of them failed."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("names", nargs="*", help=f"any of {', '.join(NAMES)}; all by default")
    names = arguments.parse_args().names or NAMES
    if unknown := set(names) - set(NAMES):
        arguments.error(f"no benchmark is called {', '.join(sorted(unknown))}: expected any of {', '.join(NAMES)}")
    failed = [name for name in names if subprocess.run([sys.executable, HERE / f"{name}.py"], check=False).returncode != 0]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
