"""Draws the dashboards of docs/monitoring.md from the example day.

Example: python -m market_data_pipeline_tests.deploy.pictures docs/images
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from market_data_pipeline_tests.deploy.programs import ROOT, a_prometheus_of_the_example_day

if __name__ == "__main__":
    out = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder, a_prometheus_of_the_example_day(Path(folder)) as prometheus:
        script = ROOT / "deploy" / "grafana" / "draw.py"
        span = ["--until", "2026-11-20T18:10:00Z", "--hours", "4"]
        sys.exit(subprocess.run([sys.executable, script, prometheus.url, *span, "--out", out], check=False).returncode)
