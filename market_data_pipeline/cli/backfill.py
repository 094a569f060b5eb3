"""`mdp backfill`: from symbols, intervals and sessions to Dagster runs, and what became of them."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import click
import orjson

from market_data_pipeline.cli.dagster_client import DagsterClient, RunStatus, WebserverUnreachableError
from market_data_pipeline.cli.launching import BACKFILL, Launched, Launcher, Task
from market_data_pipeline.cli.output import json_option, note, print_json, print_table
from market_data_pipeline.cli.parameters import SESSION, in_order, intervals_option, sessions_in, symbols_option, tier_option
from market_data_pipeline.cli.progress import progress
from market_data_pipeline.cli.selection import chosen_instruments, opened_pipeline
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.capabilities import bars
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.partitions import Cell, SymbolDimension, boxes
from market_data_pipeline.domain.runs import SYMBOLS, job_name
from market_data_pipeline.domain.sessions import date_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from market_data_pipeline.cli.dagster_client import Run
    from market_data_pipeline.cli.progress import CountsBars
    from market_data_pipeline.domain.partitions import PartitionPlan, Periods
    from market_data_pipeline.domain.sessions import TradingCalendar
    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.pipeline import Pipeline

DONE, FOUND_SOMETHING, INTERRUPTED = 0, 1, 130
# One run of 2,000 partitions costs some three seconds of bookkeeping and can be lost to one crash; more would lose more.
PARTITIONS_A_RUN = 2_000
# Symbols in one line of a message.
NAMED = 10


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for, resolved: fetched intervals only, sessions from ``start`` to ``end``, both included."""

    instruments: tuple[Instrument, ...]
    intervals: tuple[Interval, ...]
    start: date
    end: date
    refetch: bool
    provider: str | None = None

    @property
    def digest(self) -> str:
        """The same for the same request in any process: what its runs are found by."""
        said = {
            "symbols": sorted(instrument.symbol for instrument in self.instruments),
            "intervals": sorted(self.intervals),
            "start": self.start,
            "end": self.end,
            "refetch": self.refetch,
            **({"provider": self.provider} if self.provider else {}),
        }
        return hashlib.sha256(orjson.dumps(said)).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Needs:
    """The partitions a request comes to, per fetched interval, and what it asks for that cannot be had, a sentence each."""

    cells: Mapping[Interval, tuple[Cell, ...]]
    left_out: tuple[str, ...]


@click.command(epilog="Example: mdp backfill --symbols AAPL,MSFT --interval 1m --interval 1d --start 2026-11-16 --end 2026-11-20")
@symbols_option
@tier_option
@click.option("--all", "everything", is_flag=True, help="Every active symbol of the universe.")
@intervals_option
@click.option("--start", type=SESSION, help="First session.")
@click.option("--end", type=SESSION, help="Last session, included.")
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="The last N sessions of each exchange instead.")
@click.option("--refetch", is_flag=True, help="Ask again for bars that are stored; differences become revisions.")
@click.option("--provider", metavar="NAME", help="Ask this provider first; what it lacks is asked of the others, as always.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Watch the runs until they have ended.")
@click.option("--dry-run", is_flag=True, help="Print the runs that would be launched, and launch none.")
@json_option
def backfill(  # noqa: PLR0913 - one parameter an option
    *,
    symbols: tuple[str, ...] | None,
    tier: str | None,
    everything: bool,
    intervals: tuple[Interval, ...],
    start: date | None,
    end: date | None,
    last: int | None,
    refetch: bool,
    provider: str | None,
    wait: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Fetch candles of past sessions through Dagster runs, and watch them.

    Only what the ledger lacks is asked for, so repeating a backfill is safe. 5m, 15m and 30m come with 1m. Ctrl-C leaves the runs
    to themselves; the same command finds them again and does not launch them twice. Exit code 1 when a run failed.
    """
    from market_data_pipeline.storage.partition_plan import plan_path, read_plan  # noqa: PLC0415 - `mdp --help` must not wait for it

    if (last is None) != (start is not None and end is not None) or (last is not None and (start or end)):
        raise InvalidInputError("which sessions is not clear: expected --start and --end, or --last N")
    in_order(start, end)
    if not intervals:
        raise InvalidInputError(f"no --interval was given: expected one or more of {', '.join(Interval)}")
    if not everything and symbols is None and tier is None:
        raise InvalidInputError("no symbols were given: expected --symbols A,B, --tier T0 or --all")
    if everything and (symbols is not None or tier is not None):
        raise InvalidInputError("--all was given with --symbols or --tier: expected one of them")
    with opened_pipeline() as pipeline:
        instruments = chosen_instruments(pipeline, symbols=symbols, tier=tier)
        fetched = tuple(dict.fromkeys(interval.source or interval for interval in intervals))
        first, final = (start, end) if start and end else _last_sessions(last or 1, instruments, pipeline)
        for interval in fetched:
            _refuse_unusable(provider, interval, pipeline)
        request = Request(tuple(instruments), fetched, first, final, refetch, provider)
        plan = read_plan(plan_path(pipeline.settings.home))
        needs = needs_of(request, plan, pipeline)
        for sentence in needs.left_out:
            note(sentence)
        if dry_run:
            return _print_tasks(_dry_tasks(needs, plan, pipeline), as_json=as_json)
        with DagsterClient(pipeline.settings.dagster_url) as client:
            tasks = _tasks(client, needs, plan)
            # An event that nobody sets: waiting for it is a pause that Ctrl-C ends at once.
            launcher = Launcher(client, request.digest, refetch=refetch, sleep=threading.Event().wait, provider=provider)
            command = _Command(wait=wait, as_json=as_json)
            return _run(launcher, tasks, client, command, lambda: _bars_stored(request, pipeline))


def _last_sessions(count: int, instruments: Sequence[Instrument], pipeline: Pipeline) -> tuple[date, date]:
    """From the earliest to the latest of the last ``count`` sessions, of each exchange, that have begun."""
    now = pipeline.clock.now()
    firsts, lasts = [], []
    for name in {instrument.calendar for instrument in instruments}:
        calendar = pipeline.calendars(name)
        # Twice the days and a fortnight hold that many sessions, whatever the holidays.
        bounds = calendar.bounds(now.date() - timedelta(days=2 * count + 14), now.date() + timedelta(days=1))
        begun = bounds.session[bounds.opens_at <= now.timestamp()][-count:].tolist()
        firsts.append(date_of(begun[0]))
        lasts.append(date_of(begun[-1]))
    return min(firsts), max(lasts)


def needs_of(request: Request, plan: PartitionPlan, pipeline: Pipeline) -> Needs:
    """The partitions that ``request`` comes to. Asks nothing of Dagster.

    InvalidInputError where nothing of it can be had: the end lies in the future, no session is in the range, or all of it is
    beyond the provider's reach. What only a part of it lacks is said in ``left_out``.
    """
    now = pipeline.clock.now()
    calendars = {name: pipeline.calendars(name) for name in sorted({i.calendar for i in request.instruments})}
    _refuse_the_future(request, calendars.values(), now)
    sessions, left_out = _sessions(request, calendars)
    cells: dict[Interval, tuple[Cell, ...]] = {}
    refused: list[str] = []
    for interval in request.intervals:
        reachable, begins = dict(sessions), dict.fromkeys(sessions, request.start)
        for name, days in sessions.items():
            reach = pipeline.reach_seconds(interval, name, hint=request.provider)
            rest, beyond = _within_reach(days, calendars[name], reach, now)
            if beyond:
                reachable[name], begins[name] = rest, rest[0] if rest else request.end
                asked = _names_of_providers(pipeline, interval, request.provider)
                sentence = _beyond_reach(interval, beyond, rest, asked, calendars[name])
                (left_out if rest else refused).append(sentence)
        cells[interval] = _cells(request, reachable, begins, plan.periods(interval), plan)
    if not any(cells.values()):
        listed = f"none of {_names(request.instruments)} was listed from {request.start} to {request.end}"
        raise InvalidInputError("; ".join(refused) or f"{listed}: expected sessions in which one is")
    return Needs({interval: found for interval, found in cells.items() if found}, (*left_out, *refused))


def _refuse_unusable(provider: str | None, interval: Interval, pipeline: Pipeline) -> None:
    """InvalidInputError where ``provider`` cannot be asked first for ``interval``: the user named it and would wait for nothing."""
    if provider is None:
        return
    if not pipeline.settings.allow_source_override:
        raise InvalidInputError(f"--provider {provider}: MDP_ALLOW_SOURCE_OVERRIDE is off, so the policy alone decides")
    _, passed_over = pipeline.router.configured(bars(interval), hint=provider)
    if provider in passed_over:
        raise InvalidInputError(f"--provider {provider}: {passed_over[provider]}")


def _names_of_providers(pipeline: Pipeline, interval: Interval, hint: str | None) -> str:
    serving = pipeline.bars_providers(interval.source or interval, hint=hint)
    return ", ".join(provider.name for provider, _ in serving) or "any provider"


def _refuse_the_future(request: Request, calendars: Collection[TradingCalendar], now: datetime) -> None:
    today = max(now.astimezone(ZoneInfo(calendar.timezone)).date() for calendar in calendars)
    if request.end > today:
        raise InvalidInputError(f"--end {request.end} is in the future: expected a session up to today, {today}")


def _sessions(request: Request, calendars: Mapping[str, TradingCalendar]) -> tuple[dict[str, list[date]], list[str]]:
    """The sessions of each calendar in the range; a sentence for each calendar without one, an error where that is all."""
    found, without = {}, []
    for name, calendar in calendars.items():
        try:
            found[name] = sessions_in(calendar, request.start, request.end)
        except InvalidInputError as nothing:
            theirs = [instrument for instrument in request.instruments if instrument.calendar == name]
            without.append(f"{_names(theirs)}: {nothing}")
    if not found:
        raise InvalidInputError("; ".join(without))
    return found, without


def _within_reach(
    days: Sequence[date], calendar: TradingCalendar, reach_seconds: int | None, now: datetime
) -> tuple[list[date], list[date]]:
    """The sessions of which at least the last bar can still be asked for, and those before them."""
    if reach_seconds is None:
        return list(days), []
    closes_at = calendar.bounds(days[0], days[-1]).closes_at.tolist()
    first = sum(close <= now.timestamp() - reach_seconds for close in closes_at)
    return list(days[first:]), list(days[:first])


def _beyond_reach(
    interval: Interval, beyond: Sequence[date], rest: Sequence[date], provider: str, calendar: TradingCalendar
) -> str:
    lost = f"{beyond[0]}" if len(beyond) == 1 else f"{beyond[0]} to {beyond[-1]}"
    first = rest[0] if rest else calendar.next_session(beyond[-1])
    goes_on = f"fetching from {first}" if rest else f"expected sessions from {first} or later"
    return f"{interval}: {lost} is beyond what {provider} serves of {calendar.name} now (unreachable); {goes_on}"


def _cells(
    request: Request, sessions: Mapping[str, Sequence[date]], begins: Mapping[str, date], periods: Periods, plan: PartitionPlan
) -> tuple[Cell, ...]:
    """A cell for each period that holds something for an instrument with a session, closed days of its exchange between included.

    A partition in which nothing is expected costs a millisecond and is complete at once. Without it, every holiday of one exchange
    would cut the box of its symbols in two where another exchange trades, and a run costs five seconds.
    """
    cells: dict[Cell, None] = {}
    for instrument in request.instruments:
        listed = [day for day in sessions.get(instrument.calendar, ()) if instrument.listed_on(day)]
        if not listed:
            continue
        # Refuses what lies before the plan, where `keys` would begin later without a word.
        periods.key_of(listed[0])
        first = max(begins[instrument.calendar], instrument.active_from or request.start)
        last = min(request.end, instrument.active_to or request.end)
        cells |= dict.fromkeys(Cell(key, plan.column_of(instrument.symbol)) for key in periods.keys(first, last))
    return tuple(cells)


def _tasks(client: DagsterClient, needs: Needs, plan: PartitionPlan) -> list[Task]:
    """The runs to be: boxes in the order of keys that the webserver has now, after the symbols' keys were made sure of."""
    tasks: list[Task] = []
    for interval, cells in needs.cells.items():
        where = client.find_job(job_name(interval))
        if plan.dimension is SymbolDimension.SYMBOL:
            client.add_dynamic_partitions(where, SYMBOLS, list(dict.fromkeys(cell.symbol for cell in cells)))
        keys = client.partition_keys(("candles", interval))
        if not {cell.period for cell in cells} <= set(keys.periods):
            # The code server read an older partition plan when it started.
            client.reload(where.location)
            keys = client.partition_keys(("candles", interval))
        found = boxes(cells, periods=keys.periods, symbols=keys.symbols, largest=PARTITIONS_A_RUN)
        tasks += [Task(interval, box, where) for box in found]
    return tasks


def _dry_tasks(needs: Needs, plan: PartitionPlan, pipeline: Pipeline) -> list[Task]:
    """What ``_tasks`` would come to, guessing the webserver's order of symbols: that of the universe."""
    buckets = plan.dimension is SymbolDimension.BUCKET
    symbols = plan.bucket_keys() if buckets else [i.symbol for i in pipeline.universe.instruments(active_only=False)]
    tasks: list[Task] = []
    for interval, cells in needs.cells.items():
        periods = plan.periods(interval).existing(pipeline.clock.now())
        found = boxes(cells, periods=periods, symbols=symbols, largest=PARTITIONS_A_RUN)
        tasks += [Task(interval, box) for box in found]
    return tasks


def _print_tasks(tasks: Sequence[Task], *, as_json: bool) -> int:
    rows = [_task_row(task) for task in tasks]
    if as_json:
        print_json(rows)
    else:
        columns = ["job", "from", "to", "partitions"]
        print_table(rows, columns=columns, title=f"{len(rows)} runs would be launched")
    return DONE


def _task_row(task: Task) -> dict[str, Any]:
    return {"job": task.job, "from": task.box.first.key, "to": task.box.last.key, "partitions": task.box.partitions}


@dataclass(frozen=True, slots=True)
class _Command:
    """How the command was asked to go about it."""

    wait: bool
    as_json: bool


def _run(launcher: Launcher, tasks: Sequence[Task], client: DagsterClient, command: _Command, count: CountsBars) -> int:
    try:
        launched = launcher.launch(tasks)
        note(_opening(launched, launcher.digest))
        if not command.wait:
            return _print_launched(launched, client, launcher.digest, as_json=command.as_json)
        if not client.daemon_is_running():
            note("the runs are queued and no Dagster daemon takes them: start it with `mdp up`")
        with progress(count) as show:
            ended = launcher.watch(launched, show)
    except KeyboardInterrupt:
        note("")
        note(_detached(launcher.digest))
        return INTERRUPTED
    except WebserverUnreachableError:
        note(_detached(launcher.digest))
        raise
    return _print_ended(ended, client, launcher.digest, as_json=command.as_json)


def _detached(digest: str) -> str:
    return f"detached: runs that were launched go on, under the tag {BACKFILL}={digest}; the same command attaches to them again"


def _opening(launched: Sequence[Launched], digest: str) -> str:
    new = sum(one.is_new for one in launched)
    partitions = sum(one.task.box.partitions for one in launched)
    attached = f", {len(launched) - new} of an earlier command found again" if new < len(launched) else ""
    return f"backfill {digest}: {new} runs launched{attached}; {partitions:,} partitions"


def _print_launched(launched: Sequence[Launched], client: DagsterClient, digest: str, *, as_json: bool) -> int:
    rows = [_run_row(one, client) for one in launched]
    if as_json:
        print_json({"backfill": digest, "runs": rows})
    else:
        print_table(rows, columns=["job", "from", "to", "partitions", "url"], title="runs in flight; the same command watches them")
    return DONE


def _print_ended(ended: Sequence[Launched], client: DagsterClient, digest: str, *, as_json: bool) -> int:
    rows = [_run_row(one, client) | {"error": _error(one.run, client)} for one in ended]
    failed = [row for row in rows if row["status"] != RunStatus.SUCCESS]
    if as_json:
        print_json({"backfill": digest, "runs": rows})
    else:
        for row in failed:
            note(f"{row['job']} {row['from']} … {row['to']}: {row['status']}: {row['error']}\n  {row['url']}")
        click.echo(f"{len(rows) - len(failed)} of {len(rows)} runs succeeded; `mdp coverage` counts what is stored")
    return FOUND_SOMETHING if failed else DONE


def _run_row(one: Launched, client: DagsterClient) -> dict[str, Any]:
    run = {"run_id": one.run.run_id, "status": str(one.run.status), "url": client.run_url(one.run.run_id)}
    return _task_row(one.task) | run


def _error(run: Run, client: DagsterClient) -> str | None:
    if run.status is RunStatus.SUCCESS:
        return None
    return client.failure(run.run_id) if run.status is RunStatus.FAILURE else "it was cancelled"


def _names(instruments: Sequence[Instrument]) -> str:
    shown = ", ".join(instrument.symbol for instrument in instruments[:NAMED])
    return shown if len(instruments) <= NAMED else f"{shown} and {len(instruments) - NAMED:,} more"


def _bars_stored(request: Request, pipeline: Pipeline) -> tuple[int, int]:
    """How many bars of the request are stored, and how many its sessions expect as far as the ledger knows them."""
    ids = [instrument.symbol_id for instrument in request.instruments]
    totals = [
        total
        for interval in request.intervals
        for total in pipeline.ledger.totals(interval, symbol_ids=ids, first=request.start, last=request.end)
    ]
    return sum(total.present for total in totals), sum(total.expected for total in totals)
