"""`mdp condition`: one session of one symbol, in one word an interval, and why."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import click

from market_data_pipeline.cli.output import json_option, print_json, print_table
from market_data_pipeline.cli.parameters import SESSION, SYMBOL, intervals_option, sessions_in, written
from market_data_pipeline.cli.selection import named_instrument, opened_pipeline
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.condition import Condition
from market_data_pipeline.domain.coverage import Verdict

if TYPE_CHECKING:
    from market_data_pipeline.ingest.condition import SessionCondition
    from market_data_pipeline.storage.evidence import EvidenceRow

DONE, FOUND_SOMETHING = 0, 1
_WRONG = frozenset({Condition.DEGRADED, Condition.MISSING})


@click.command(epilog="Example: mdp condition AAPL --session 2026-11-20 --interval 1m")
@click.argument("symbol", type=SYMBOL)
@click.option("--session", "session", type=SESSION, required=True, help="Which session.")
@intervals_option
@json_option
def condition(*, symbol: str, session: date, intervals: tuple[Interval, ...], as_json: bool) -> int:
    """Say whether a session's bars are available, degraded, pending, missing or not_listed, and why.

    Without --interval: every interval that the ledger has of the session, all of them where it has none. Exit code 1 where one is
    degraded or missing.
    """
    from market_data_pipeline.ingest.condition import session_condition  # noqa: PLC0415 - `mdp --help` must not wait for it

    with opened_pipeline() as pipeline:
        instrument = named_instrument(pipeline, symbol)
        sessions_in(pipeline.calendars(instrument.calendar), session, session)
        found = [session_condition(instrument, interval, session, pipeline=pipeline) for interval in intervals or Interval]
    if not intervals and any(one.row is not None for one in found):
        found = [one for one in found if one.row is not None]
    if as_json:
        print_json({"symbol": symbol, "session": session, "intervals": [_as_json(one) for one in found]})
    else:
        _print(symbol, found)
    return FOUND_SOMETHING if any(one.condition in _WRONG for one in found) else DONE


def _print(symbol: str, found: list[SessionCondition]) -> None:
    hours = f"{_time(found[0].opens_at)} to {_time(found[0].closes_at)}"
    rows = [
        {
            "interval": one.interval,
            "condition": one.condition,
            "present": one.counts[Verdict.PRESENT],
            "expected": sum(one.counts.values()),
            "finality": None if one.row is None else one.row.finality.name.lower(),
            "recheck_at": None if one.row is None else _instant(one.row.recheck_at),
            "from": ", ".join(f"{name} {bars:,}" for name, bars in one.providers.items()) or None,
            "why": one.why,
        }
        for one in found
    ]
    columns = ["interval", "condition", "present", "expected", "finality", "recheck_at", "from", "why"]
    print_table(rows, columns=columns, title=f"{symbol}, session {found[0].session}, {hours}")
    evidence = [{"interval": one.interval, **_evidence(row)} for one in found for row in one.evidence]
    if evidence:
        columns = ["interval", "verdict", "bars", "rung", "providers", "attempts", "decided_at", "detail"]
        print_table(evidence, columns=columns, title="on what evidence")


def _as_json(one: SessionCondition) -> dict[str, Any]:
    row = one.row
    return {
        "interval": one.interval,
        "condition": one.condition,
        "why": one.why,
        "opens_at": _time(one.opens_at),
        "closes_at": _time(one.closes_at),
        "counts": dict(one.counts),
        "finality": None if row is None else row.finality.name.lower(),
        "attempts": 0 if row is None else row.attempts,
        "failures": 0 if row is None else row.failures,
        "last_attempt_at": None if row is None else _instant(row.last_attempt_at),
        "next_attempt_at": None if row is None else _instant(row.next_attempt_at),
        "recheck_at": None if row is None else _instant(row.recheck_at),
        "providers": dict(one.providers),
        "evidence": [_evidence(row) for row in one.evidence],
    }


def _evidence(row: EvidenceRow) -> dict[str, Any]:
    return {
        "verdict": row.verdict,
        "bars": int(row.slots.sum()),
        "rung": row.rung,
        "providers": ", ".join(row.providers),
        "attempts": row.attempts,
        "detail": row.detail,
        "run_id": row.run_id,
        "decided_at": _instant(row.decided_at),
    }


def _time(epoch_seconds: int) -> str:
    return written(datetime.fromtimestamp(epoch_seconds, UTC))


def _instant(at: datetime | None) -> str | None:
    return None if at is None else written(at.astimezone(UTC).replace(microsecond=0))
