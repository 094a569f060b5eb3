"""What a fold and the outbox cost: so many alerts open, one look a round; and messages delivered to two channels.

python benchmarks/alerts.py [--rounds N] [--messages N] [--json FILE]
"""

from __future__ import annotations

import argparse
import statistics
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from batches import fresh_database
from pydantic import SecretStr
from report import report

from market_data_pipeline.domain.alert_config import AlertsConfig, Channel
from market_data_pipeline.domain.alerts import Finding, Look, Rule, Severity
from market_data_pipeline.ingest.alerting import deliver_due, fold
from market_data_pipeline.settings import Settings
from market_data_pipeline.wiring import open_pipeline

if TYPE_CHECKING:
    from market_data_pipeline.domain.alert_messages import Message
    from market_data_pipeline.ingest.pipeline import Pipeline

START = datetime(2024, 12, 2, 15, tzinfo=UTC)
RULES = {"Late": Rule("Late", Severity.WARNING, "Something is late.", "late")}
CONFIG = AlertsConfig(channels={name: Channel(name, SecretStr("log://")) for name in ("ops", "desk")})
OPEN = (0, 1, 20, 200, 1000)


def main() -> None:
    """Fold, then deliver, and print both."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=30)
    arguments.add_argument("--messages", type=int, default=200)
    arguments.add_argument("--json", type=Path)
    chosen = arguments.parse_args()
    with fresh_database() as engine, TemporaryDirectory() as home:
        url = engine.url.render_as_string(hide_password=False)
        told = Settings(home=Path(home), database_url=SecretStr(url), clock=START.isoformat())
        with open_pipeline(told) as pipeline:
            rows = [folding(pipeline, number, chosen.rounds) for number in OPEN]
            rows.append(delivering(pipeline, chosen.messages))
    report(
        "alerts", rows, notes=[f"medians of {chosen.rounds} rounds; a channel that takes everything at once"], json_path=chosen.json
    )


def folding(pipeline: Pipeline, number: int, rounds: int) -> dict[str, Any]:
    """One look after the other while ``number`` alerts are open; each changes them all."""
    now, seconds = START + timedelta(days=number), []
    found = [Finding("Late", 1.0, f"S{n} is late", f"{number}/{n}", {"tier": "T0"}, ("A", "B", "C")) for n in range(number)]
    for place in range(rounds + 1):
        # The first of them begins these alerts and ends those before.
        began = time.perf_counter()
        fold(pipeline, [Look(("Late",), found)], RULES, CONFIG, now=now)
        seconds.append(time.perf_counter() - began)
        now += timedelta(seconds=30 if place else 300)
    return {"what": f"fold, {number} alerts open", "ms": 1e3 * statistics.median(seconds[1:]), "worst ms": 1e3 * max(seconds[1:])}


def delivering(pipeline: Pipeline, messages: int) -> dict[str, Any]:
    """A message a pass to each of two channels, so that none is joined with another."""
    now, seconds = START + timedelta(days=9_000), []

    def send(channel: Channel, message: Message) -> None:
        """Taken."""

    deliver_due(pipeline, CONFIG, now=now, send=send)
    for number in range(messages // 2):
        now += timedelta(seconds=30)
        fold(pipeline, [Look(("Late",), [Finding("Late", 1.0, "late", f"one/{number}")])], RULES, CONFIG, now=now)
        began = time.perf_counter()
        deliver_due(pipeline, CONFIG, now=now, send=send)
        seconds.append(time.perf_counter() - began)
    return {
        "what": "deliver, a message for each of two channels",
        "ms": 1e3 * statistics.median(seconds),
        "worst ms": 1e3 * max(seconds),
    }


if __name__ == "__main__":
    main()
