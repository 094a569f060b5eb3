"""`mdp coverage` and `mdp gaps`: the ledger laid over the calendar, counted by verdict or listed as missing windows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from market_data_pipeline.cli.output import json_option, note, print_json, print_table
from market_data_pipeline.cli.parameters import SESSION, in_order, intervals_option, symbols_option, tier_option, written
from market_data_pipeline.cli.selection import chosen_instruments, opened_pipeline
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.coverage import VERDICTS, Verdict
from market_data_pipeline.domain.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from market_data_pipeline.domain.healing import HealingPolicy
    from market_data_pipeline.domain.ports import Fetch
    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.coverage import CoverageLine, GapWindow
    from market_data_pipeline.ingest.pipeline import Pipeline

DONE, FOUND_SOMETHING = 0, 1
SETTLED = "settled %"
# Thirty symbols in six intervals, and their totals, which are at the end and never cut.
MOST_LINES = 200

_RANGE = "default: what the ledger has of each symbol"
start_option = click.option("--start", type=SESSION, help=f"First session; {_RANGE}.")
end_option = click.option("--end", type=SESSION, help=f"Last session, included; {_RANGE}.")


@dataclass(frozen=True, slots=True)
class Part:
    """Instruments that are looked at over the same sessions of one interval."""

    interval: Interval
    first: date
    last: date
    instruments: tuple[Instrument, ...]


def parts(
    pipeline: Pipeline, instruments: Sequence[Instrument], intervals: Sequence[Interval], *, start: date | None, end: date | None
) -> list[Part]:
    """What to look at: the range asked for, and where an end of it is open, what the ledger has of each symbol.

    Without ``intervals``, those that the ledger has. With a whole range, every instrument is looked at, fetched before or not.
    """
    from market_data_pipeline.storage.extents import ledger_extents  # noqa: PLC0415 - `mdp --help` must not wait for it

    of_id = {instrument.symbol_id: instrument for instrument in instruments}
    extents = ledger_extents(pipeline.engine, list(of_id))
    if start is not None and end is not None:
        known = {extent.interval for extent in extents}
        wanted = intervals or [interval for interval in Interval if interval in known] or Interval
        return [Part(interval, start, end, tuple(instruments)) for interval in wanted]
    grouped: dict[tuple[Interval, date, date], list[Instrument]] = {}
    for extent in extents:
        first, last = start or extent.first, end or extent.last
        if first <= last and (not intervals or extent.interval in intervals):
            grouped.setdefault((extent.interval, first, last), []).append(of_id[extent.symbol_id])
    found = [Part(interval, first, last, tuple(group)) for (interval, first, last), group in grouped.items()]
    return sorted(found, key=lambda part: (part.interval.seconds, part.first, part.last))


@click.command(epilog="Example: mdp coverage --symbols AAPL,MSFT --interval 1m --start 2026-11-16 --end 2026-11-20")
@symbols_option
@tier_option
@intervals_option
@start_option
@end_option
@click.option("--totals", is_flag=True, help="Only the sums over all symbols, one line an interval.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also draw sessions by symbols of one interval into FILE, .png or .svg.",
)
@json_option
def coverage(
    *,
    symbols: tuple[str, ...] | None,
    tier: str | None,
    intervals: tuple[Interval, ...],
    start: date | None,
    end: date | None,
    totals: bool,
    plot: Path | None,
    as_json: bool,
) -> int:
    """Count every expected bar under its verdict, and check that the counts add up to the grid.

    Exit code 0 when they do, whatever the verdicts are; `mdp gaps` is the command that fails where something is missing.
    """
    from market_data_pipeline.ingest.coverage import coverage_report  # noqa: PLC0415 - only this command needs it

    in_order(start, end)
    picture = None if plot is None else _format(plot)
    with opened_pipeline() as pipeline:
        instruments = chosen_instruments(pipeline, symbols=symbols, tier=tier)
        looked_at = parts(pipeline, instruments, intervals, start=start, end=end)
        if plot is not None and picture is not None and looked_at:
            _draw(pipeline, looked_at, plot, format_=picture)
        lines = [
            line
            for part in looked_at
            for line in coverage_report(part.instruments, [part.interval], part.first, part.last, pipeline=pipeline)
        ]
    adds_up = all(sum(line.counts.values()) == line.expected for line in lines)
    if as_json:
        print_json(_totals(lines) if totals else [asdict(line) for line in lines])
    elif not lines:
        note("the ledger has nothing of these symbols yet: fetch some with `mdp backfill`, or give --start and --end")
    else:
        ranges = {(line.first, line.last) for line in lines}
        same = len(ranges) == 1
        title = f"expected bars by verdict, {lines[0].first} to {lines[0].last}" if same else "expected bars by verdict"
        columns = ["symbol", "interval", *([] if same else ["first", "last"]), "sessions", "expected", *VERDICTS, SETTLED]
        print_table([*(() if totals else map(_row, lines)), *_totals(lines)], columns=columns, title=title, most=MOST_LINES)
        _say_whether_it_adds_up(lines, adds_up=adds_up)
    return DONE if adds_up else FOUND_SOMETHING


def _format(path: Path) -> str:
    """What kind of picture a file of this name holds; InvalidInputError for a name that does not say it."""
    suffix = path.suffix.lower().lstrip(".")
    if suffix not in ("png", "svg"):
        raise InvalidInputError(f"--plot {path}: expected a file name that ends in .png or .svg")
    return suffix


def _draw(pipeline: Pipeline, looked_at: Sequence[Part], path: Path, *, format_: str) -> None:
    from market_data_pipeline.ingest.heatmap import drawn, heatmap_of  # noqa: PLC0415 - matplotlib, for those who draw

    shown = sorted({part.interval for part in looked_at}, key=lambda interval: interval.seconds)
    if len(shown) > 1:
        raise InvalidInputError(f"--plot draws one interval, and here are {', '.join(shown)}: choose one with --interval")
    of_id = {instrument.symbol_id: instrument for part in looked_at for instrument in part.instruments}
    first, last = min(part.first for part in looked_at), max(part.last for part in looked_at)
    picture = drawn(heatmap_of(list(of_id.values()), shown[0], first, last, pipeline=pipeline), format_=format_)
    try:
        path.write_bytes(picture)
    except OSError as refused:
        raise InvalidInputError(f"--plot {path}: {refused.strerror}") from refused
    note(f"{shown[0]} of {len(of_id):,} symbols, {first} to {last}, drawn into {path}")


def _row(line: CoverageLine) -> dict[str, Any]:
    return {
        "symbol": line.symbol,
        "interval": line.interval,
        "first": line.first,
        "last": line.last,
        "sessions": line.sessions,
        "expected": line.expected,
        **{str(verdict): count for verdict, count in line.counts.items()},
        SETTLED: _settled(line.expected, line.counts),
    }


def _totals(lines: Sequence[CoverageLine]) -> list[dict[str, Any]]:
    """One line an interval over all its symbols, and one over everything."""
    groups = [(str(interval), [line for line in lines if line.interval is interval]) for interval in Interval]
    return [_total(name, group) for name, group in (*groups, ("all", lines)) if group]


def _total(name: str, lines: Sequence[CoverageLine]) -> dict[str, Any]:
    expected = sum(line.expected for line in lines)
    counts = {verdict: sum(line.counts[verdict] for line in lines) for verdict in VERDICTS}
    return {
        "symbol": "total",
        "interval": name,
        "first": min(line.first for line in lines),
        "last": max(line.last for line in lines),
        "sessions": sum(line.sessions for line in lines),
        "expected": expected,
        **{str(verdict): count for verdict, count in counts.items()},
        SETTLED: _settled(expected, counts),
    }


def _settled(expected: int, counts: Mapping[Verdict, int]) -> float | None:
    """Percent of the bars of which we know the truth, rounded down: 100 means every one."""
    if not expected:
        return None
    return (counts[Verdict.PRESENT] + counts[Verdict.CONFIRMED_EMPTY]) * 10_000 // expected / 100


def _say_whether_it_adds_up(lines: Sequence[CoverageLine], *, adds_up: bool) -> None:
    expected, counted = sum(line.expected for line in lines), sum(sum(line.counts.values()) for line in lines)
    verdict = "every bar has exactly one" if adds_up else "THEY DO NOT ADD UP, which is a bug of ours: please report it"
    click.echo(f"{counted:,} verdicts for {expected:,} expected bars: {verdict}")


@click.command(epilog="Example: mdp gaps --symbols AAPL --interval 1m --explain")
@symbols_option
@tier_option
@intervals_option
@start_option
@end_option
@click.option("--explain", is_flag=True, help="Say of each window why it is missing and what happens next.")
@click.option("--retry", is_flag=True, help="First take up again what was given up: attempts count anew, the next is due now.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Most windows in the table.")
@json_option
def gaps(  # noqa: PLR0913 - an argument an option
    *,
    symbols: tuple[str, ...] | None,
    tier: str | None,
    intervals: tuple[Interval, ...],
    start: date | None,
    end: date | None,
    explain: bool,
    retry: bool,
    limit: int,
    as_json: bool,
) -> int:
    """List the bars that should be there and are not, joined into windows; exit code 1 where there are any.

    A window is half-open, [start, end). The table shows the first windows, --json all of them.
    """
    in_order(start, end)
    with opened_pipeline() as pipeline:
        instruments = chosen_instruments(pipeline, symbols=symbols, tier=tier)
        if retry:
            _take_up_again(pipeline, instruments, intervals, start=start, end=end)
        windows = list(_windows(pipeline, parts(pipeline, instruments, intervals, start=start, end=end)))
        shown = windows if as_json else windows[:limit]
        why = _reasons(pipeline, instruments, shown) if explain else []
        now = pipeline.clock.now()
        policy = pipeline.settings.healing_policy
    rows = [_gap_row(window) for window in shown]
    for row, window, reason in zip(rows, shown, why, strict=False):
        row |= {
            "finality": None if window.finality is None else window.finality.name.lower(),
            "why": reason,
            "next": _next(window, now=now, policy=policy),
        }
    if as_json:
        print_json(rows)
    elif windows:
        columns = ["symbol", "interval", "session", "start", "end", "bars", "since", "attempts", "next_attempt_at"]
        bars = sum(window.bars for window in windows)
        print_table(rows, columns=[*columns, *(["finality", "why", "next"] if explain else [])], title=f"{bars:,} bars are missing")
        if len(windows) > limit:
            note(f"{len(windows):,} windows, {len(windows) - limit:,} of them not shown: --limit {len(windows)} shows all")
    else:
        click.echo("nothing is missing")
    return FOUND_SOMETHING if windows else DONE


def _take_up_again(
    pipeline: Pipeline, instruments: Sequence[Instrument], intervals: Sequence[Interval], *, start: date | None, end: date | None
) -> None:
    asked = pipeline.ledger.retry(
        pipeline.clock.now(),
        symbol_ids=[instrument.symbol_id for instrument in instruments],
        intervals=intervals or None,
        first=start,
        last=end,
    )
    note(f"{asked:,} sessions that were given up are asked for again from now on")


def _windows(pipeline: Pipeline, looked_at: Sequence[Part]) -> Iterator[GapWindow]:
    from market_data_pipeline.ingest.coverage import gap_windows  # noqa: PLC0415 - only this command needs it

    for part in looked_at:
        yield from gap_windows(part.instruments, [part.interval], part.first, part.last, pipeline=pipeline)


def _gap_row(window: GapWindow) -> dict[str, Any]:
    return {
        "symbol": window.symbol,
        "interval": window.interval,
        "session": window.session,
        "start": written(datetime.fromtimestamp(window.start, UTC)),
        "end": written(datetime.fromtimestamp(window.end, UTC)),
        "bars": window.bars,
        # The last bar of the window was due then: from that instant on the whole window was missing.
        "since": written(datetime.fromtimestamp(window.end, UTC)),
        "attempts": window.attempts,
        "failures": window.failures,
        "last_attempt_at": _instant(window.last_attempt_at),
        "next_attempt_at": _instant(window.next_attempt_at),
    }


def _instant(at: datetime | None) -> str | None:
    return None if at is None else written(at.astimezone(UTC).replace(microsecond=0))


def _next(window: GapWindow, *, now: datetime, policy: HealingPolicy) -> str:
    """What will be done about the window, in words."""
    if window.interval.source is not None:
        return f"computed again when more of its {window.interval.source} is there"
    if window.last_attempt_at is None:
        return "the next schedule, or `mdp backfill`"
    if window.next_attempt_at is None:
        if window.failures >= policy.give_up_failures:
            given_up = f"given up after {window.failures} failures in a row (MDP_GIVE_UP_FAILURES is {policy.give_up_failures})"
        else:
            given_up = f"given up after {window.attempts} answers without it (MDP_GIVE_UP_AFTER is {policy.give_up_after})"
        return f"{given_up}: `mdp gaps --retry` asks again"
    if window.next_attempt_at <= now:
        return "due now: the gap sensor's next tick"
    return f"the gap sensor asks again after {_instant(window.next_attempt_at)}"


def _reasons(pipeline: Pipeline, instruments: Sequence[Instrument], windows: Sequence[GapWindow]) -> list[str]:
    """Why each window is missing: how the last request for its symbol and interval, or its source, ended."""
    from market_data_pipeline.storage.fetches import FetchStore  # noqa: PLC0415 - only `--explain` needs it

    fetches = FetchStore(pipeline.engine)
    ids = {instrument.symbol: instrument.symbol_id for instrument in instruments}
    latest: dict[tuple[str, Interval], Fetch | None] = {}
    for window in windows:
        key = window.symbol, window.interval.source or window.interval
        if key not in latest:
            found = fetches.latest(ids[window.symbol], key[1])
            latest[key] = found[0].fetch if found else None
    return [_reason(latest[window.symbol, window.interval.source or window.interval], window) for window in windows]


def _reason(fetch: Fetch | None, window: GapWindow) -> str:
    source = f"its {window.interval.source}: " if window.interval.source else ""
    if fetch is None:
        return f"{source}no request was made yet"
    when = f"{fetch.provider} at {_instant(fetch.started_at)}"
    if fetch.outcome != "ok":
        return f"{source}{when}: {fetch.outcome}, {fetch.error or fetch.status or 'no further word'}"
    if fetch.started_at.timestamp() < window.end:
        return f"{source}not asked for since it was due; last request: {when}"
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in fetch.dropped.items() if count)
    return f"{source}{when}: answered without it" + (f" (left out: {dropped})" if dropped else "")
