"""`mdp universe`: load a universe file and the partition plan that follows from it, list and show what was loaded."""

from __future__ import annotations

import getpass
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from market_data_pipeline.cli.dagster_client import DagsterClient, DagsterRefusedError, WebserverUnreachableError
from market_data_pipeline.cli.output import MOST_ROWS, json_option, note, print_json, print_table
from market_data_pipeline.cli.parameters import INSTANT, SESSION, SYMBOL, tier_option
from market_data_pipeline.cli.selection import named_instrument, opened_pipeline
from market_data_pipeline.domain.candles import FETCHED_INTERVALS, Interval
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.partitions import Grain, PartitionPlan, changes, day_in_the_east, plan_partitions
from market_data_pipeline.domain.runs import RECONCILE
from market_data_pipeline.domain.tiers import TIERS, TierPolicy, why
from market_data_pipeline.domain.universe import Tier

# Names in one line of a message; --json has them all.
MOST_NAMED = 20

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date, datetime

    from market_data_pipeline.domain.universe import Instrument, UniverseEntry
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.ingest.tiers import Tiering
    from market_data_pipeline.storage.universe import UniverseLoadReport


def _parse_grain(_: click.Context, option: click.Parameter, texts: Sequence[str]) -> dict[Interval, Grain]:
    """`1m=month` and the like; click's callback, so that a refusal names the option."""
    chosen = {}
    for text in texts:
        interval, separator, grain = text.partition("=")
        if not separator:
            raise click.BadParameter(f"{text!r} is not INTERVAL=GRAIN: expected something like 1m=month", param=option)
        try:
            chosen[Interval.parse(interval)] = Grain.parse(grain)
        except InvalidInputError as wrong:
            raise click.BadParameter(str(wrong), param=option) from None
        if Interval(interval) not in FETCHED_INTERVALS:
            names = ", ".join(FETCHED_INTERVALS)
            raise click.BadParameter(f"{interval} is computed from 1m and has its grain: expected one of {names}", param=option)
    return chosen


@click.group()
def universe() -> None:
    """Load, list and show the symbols that are followed."""


@universe.command(epilog="Example: mdp universe load universe.csv --tag 2026-11 --deactivate-absent")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--tag", help="Name of this version of the universe; default: the file's name and digest.")
@click.option("--deactivate-absent", is_flag=True, help="Stop following active symbols that the file does not name.")
@click.option("--start", type=SESSION, help="The session from which partitions exist; default 2021-01-04, or as it was.")
@click.option("--regrain", is_flag=True, help="Take the grain that now fits best, though it renames partitions.")
@click.option(
    "--grain", "chosen", multiple=True, callback=_parse_grain, help="INTERVAL=GRAIN, such as 1m=month: that and no other."
)
@json_option
def load(
    *,
    file: Path,
    tag: str | None,
    deactivate_absent: bool,
    start: date | None,
    regrain: bool,
    chosen: Mapping[Interval, Grain],
    as_json: bool,
) -> None:
    """Load the universe in FILE, a CSV with the columns symbol, exchange and tier.

    Further columns may be asset_type, currency, adv_21d, mkt_cap, active_from, active_to and alias_<provider>. All or nothing.

    Says what was added and changed, and which partition grain each asset gets and why. A grain in use is kept
    unless --regrain or --grain asks for another, because another grain renames every partition.
    """
    from market_data_pipeline.ingest.universe_file import read_universe_file  # noqa: PLC0415 - only this command reads one

    held = read_universe_file(file)
    with opened_pipeline() as pipeline:
        # Planned before anything is stored: a plan that is refused must not leave a loaded universe behind.
        active = _active_after(pipeline, held.entries, deactivate_absent=deactivate_absent)
        planning = _planning(pipeline, active, start=start, regrain=regrain, chosen=chosen)
        was_tiered = any(version.version_tag.startswith(TIERS) for version in pipeline.universe.versions()[:1])
        report = pipeline.universe.load(
            held.entries,
            version_tag=tag or f"{file.name}@{held.sha256[:12]}",
            source=str(file),
            source_sha256=held.sha256,
            loaded_by=getpass.getuser(),
            deactivate_absent=deactivate_absent,
        )
        too_large = _beyond_caps(pipeline)
        plan_is_new = planning.save()
        reloaded = _reload_definitions(pipeline.settings.dagster_url) if plan_is_new else "the partition plan is as it was"
    if as_json:
        print_json({**_load_as_json(report, planning), "dagster": reloaded})
    else:
        _print_load(report, planning)
        if was_tiered and report.changed:
            note("the tiers of the file hold again, not those by liquidity: `mdp universe tiers` assigns them")
        for sentence in too_large:
            note(sentence)
        note(f"Dagster: {reloaded}")


def _beyond_caps(pipeline: Pipeline) -> list[str]:
    """A sentence for each tier that has more symbols than MDP_TIER_CAPS allows."""
    from market_data_pipeline.settings import numbers_by_tier  # noqa: PLC0415 - help must not wait for pydantic

    counts = Counter(instrument.tier for instrument in pipeline.universe.instruments())
    caps = {tier: int(cap) for tier, cap in numbers_by_tier(pipeline.settings.tier_caps).items() if tier is not Tier.T2}
    return [
        f"{tier} has {counts[tier]:,} symbols and MDP_TIER_CAPS allows {cap:,}: `mdp universe tiers` brings them within"
        for tier, cap in caps.items()
        if counts[tier] > cap
    ]


def _reload_definitions(url: str) -> str:
    """Have a running Dagster read the new plan, without which its sensors and schedules stand still; what became of it."""
    try:
        with DagsterClient(url) as dagster:
            dagster.reload(dagster.find_job(RECONCILE).location)
    except WebserverUnreachableError:
        return "not running; it reads the new partition plan when it starts"
    except DagsterRefusedError as refused:
        return f"could not read the new partition plan: {refused}; reload the code location, or `mdp down` and `mdp up`"
    return "has read the new partition plan"


@universe.command("list", epilog="Example: mdp universe list --tier T0")
@tier_option
@click.option("--inactive", is_flag=True, help="Show deactivated symbols, too.")
@json_option
def list_(*, tier: str | None, inactive: bool, as_json: bool) -> None:
    """Print the symbols that are followed."""
    with opened_pipeline() as pipeline:
        found = pipeline.universe.instruments(tier=Tier(tier) if tier else None, active_only=not inactive)
        deactivated = pipeline.universe.deactivated() if inactive else frozenset()
    rows = [_instrument_row(instrument, active=instrument.symbol not in deactivated) for instrument in found]
    if as_json:
        print_json(rows)
        return
    columns = ["symbol", "exchange", "calendar", "tier", "asset_type", "currency", "adv_21d", "mkt_cap", "active"]
    print_table(rows, columns=columns, title=f"{len(rows):,} symbols")
    if not rows:
        note("no symbols: load some with `mdp universe load FILE`")


@universe.command(epilog="Example: mdp universe show AAPL")
@click.argument("symbol", type=SYMBOL)
@json_option
def show(*, symbol: str, as_json: bool) -> None:
    """Print everything that is known of SYMBOL: what the universe file says of it, and its listing with the evidence.

    Sessions before listed_from and after listed_to, and all of them where is_unknown, are not listed: nobody is asked for them. A
    finding is taken back when a bar contradicts it, or when the universe file says something else of exchange, dates or aliases.
    """
    from market_data_pipeline.storage.listing import ListingStore  # noqa: PLC0415 - only this command shows findings

    with opened_pipeline() as pipeline:
        instrument = named_instrument(pipeline, symbol)
        row = _instrument_row(instrument, active=symbol not in pipeline.universe.deactivated())
        findings = [
            {
                "finding": str(stored.finding.kind),
                "session": stored.finding.session,
                "providers": list(stored.finding.providers),
                "known_from": stored.known_from,
                "known_to": stored.known_to,
                "evidence": stored.finding.detail,
            }
            for stored in ListingStore(pipeline.engine).history(instrument.symbol_id)
        ]
    row |= {"listed_from": instrument.listed_from, "listed_to": instrument.listed_to, "is_unknown": instrument.is_unknown}
    if as_json:
        print_json({**row, "findings": findings})
        return
    row["aliases"] = ", ".join(f"{provider}: {alias}" for provider, alias in instrument.aliases.items())
    print_table([{"what": what, "value": value} for what, value in row.items()], columns=["what", "value"], title=symbol)
    for finding in findings:
        until = f" until {finding['known_to']:%Y-%m-%d %H:%M}Z" if finding["known_to"] else ""
        session = f" {finding['session']}" if finding["session"] else ""
        note(f"{finding['finding']}{session}, known from {finding['known_from']:%Y-%m-%d %H:%M}Z{until}: {finding['evidence']}")


@universe.command(epilog="Example: mdp universe tiers --as-of 2026-11-20 --dry-run")
@click.option("--from-bars", "source", flag_value="bars", default="bars", help="Rank by stored daily bars first; the default.")
@click.option("--from-file", "source", flag_value="file", help="Rank by the universe file's adv_21d and mkt_cap alone.")
@click.option("--as-of", type=SESSION, help="The last session whose daily bars count. Default: yesterday.")
@click.option("--known-at", type=INSTANT, help="The bars as known at this instant; to do an earlier tiering again.")
@click.option("--dry-run", is_flag=True, help="Only say who would move.")
@json_option
def tiers(*, source: str, as_of: date | None, known_at: datetime | None, dry_run: bool, as_json: bool) -> None:
    """Assign T0, T1 and T2 by liquidity, within MDP_TIER_CAPS, and record it as a version of the universe.

    Liquidity is the mean of close times volume of the 21 sessions to --as-of, where daily bars of at least 11 are stored, else
    adv_21d of the universe file (money a day), else what its mkt_cap suggests. Symbols without a figure are T2. A symbol changes
    tier only where its rank is beyond the boundary by a tenth of the tier, or to take a free place or make room.
    """
    from market_data_pipeline.ingest.tiers import apply_tiers, plan_tiers  # noqa: PLC0415 - only this command needs numpy
    from market_data_pipeline.settings import numbers_by_tier  # noqa: PLC0415 - help must not wait for pydantic

    if source == "file" and (as_of or known_at):
        raise InvalidInputError("--from-file reads no bars: expected no --as-of and no --known-at with it")
    with opened_pipeline() as pipeline:
        caps = {tier: int(cap) for tier, cap in numbers_by_tier(pipeline.settings.tier_caps).items()}
        day = as_of or pipeline.clock.now().date() - timedelta(days=1)
        tiering = plan_tiers(pipeline, TierPolicy(caps), as_of=day if source == "bars" else None, known_at=known_at)
        report = None if dry_run else apply_tiers(pipeline, tiering, by=getpass.getuser())
    tag = tiering.version_tag if report is None else report.version_tag
    if as_json:
        told = {"version_tag": tag, "is_applied": not dry_run, "as_of": tiering.as_of, "figures_sha256": tiering.digest}
        print_json({**told, "source": tiering.source, "tiers": _tier_counts(tiering), "moves": _move_rows(tiering)})
        return
    verb = "would be" if dry_run else "is"
    print_table(_tier_counts(tiering), columns=["tier", "before", "after", "cap"], title=f"{len(tiering.placings):,} symbols")
    columns = ["symbol", "before", "after", "rank", "daily_value", "basis", "why"]
    print_table(_move_rows(tiering), columns=columns, title=f"{len(tiering.moves):,} symbols move", most=MOST_ROWS)
    note(f"universe {tag}: {tiering.source}; {verb} recorded, figures sha256 {tiering.digest}")


def _tier_counts(tiering: Tiering) -> list[dict[str, Any]]:
    before, after = (Counter(tiers) for tiers in ([p.of.tier for p in tiering.placings], [p.tier for p in tiering.placings]))
    caps = {tier: tiering.policy.caps.get(tier) for tier in (Tier.T0, Tier.T1)}
    return [{"tier": str(tier), "before": before[tier], "after": after[tier], "cap": caps.get(tier)} for tier in Tier]


def _move_rows(tiering: Tiering) -> list[dict[str, Any]]:
    return [
        {
            "symbol": placing.of.symbol,
            "before": str(placing.of.tier),
            "after": str(placing.tier),
            "rank": placing.rank,
            "daily_value": None if placing.of.daily_value is None else float(round(placing.of.daily_value)),
            "basis": str(placing.of.basis),
            "why": why(placing, tiering.policy),
        }
        for placing in tiering.moves
    ]


@dataclass(frozen=True, slots=True)
class _Planning:
    """The plan to be, and what the operator must know of it, a sentence each.

    ``renamed``: what it changes of the plan in use. ``kept_from``: what would fit best now and was not asked for.
    """

    path: Path
    plan: PartitionPlan
    renamed: tuple[str, ...] = ()
    kept_from: tuple[str, ...] = ()

    def save(self) -> bool:
        """Write the plan's file; whether it says something new."""
        from market_data_pipeline.storage.partition_plan import write_plan  # noqa: PLC0415 - only this command writes one

        before = self.path.read_bytes() if self.path.exists() else b""
        write_plan(self.path, self.plan)
        return self.path.read_bytes() != before


def _active_after(pipeline: Pipeline, entries: Sequence[UniverseEntry], *, deactivate_absent: bool) -> dict[str, str]:
    """The calendar of each symbol that will be active once ``entries`` are loaded."""
    stay = {} if deactivate_absent else {i.symbol: i.calendar for i in pipeline.universe.instruments()}
    return stay | {entry.symbol: entry.calendar for entry in entries}


def _planning(
    pipeline: Pipeline, active: Mapping[str, str], *, start: date | None, regrain: bool, chosen: Mapping[Interval, Grain]
) -> _Planning:
    from market_data_pipeline.storage.partition_plan import plan_path, read_plan  # noqa: PLC0415 - as above

    path = plan_path(pipeline.settings.home)
    in_use = read_plan(path) if path.exists() else None
    today = day_in_the_east(pipeline.clock.now())
    calendars = [pipeline.calendars(name) for name in sorted(set(active.values()))]
    begin = start or read_plan(path).start

    def planned(keep: PartitionPlan | None, choice: Mapping[Interval, Grain]) -> PartitionPlan:
        return plan_partitions(
            symbols=len(active),
            calendars=calendars,
            start=begin,
            today=today,
            budget=pipeline.settings.partition_budget,
            chosen=choice,
            keep=keep,
        )

    plan = planned(None if regrain else in_use, chosen)
    if in_use is None:
        return _Planning(path, plan)
    try:
        best_fit = planned(None, chosen)
    except InvalidInputError:
        # Only the kept grain is possible: there is nothing better to tell of.
        best_fit = plan
    return _Planning(path, plan, renamed=tuple(changes(in_use, plan)), kept_from=tuple(changes(plan, best_fit)))


def _print_load(report: UniverseLoadReport, planning: _Planning) -> None:
    counts = ", ".join(f"{count:,} {what}" for what, count in _counts(report).items())
    click.echo(f"universe {report.version_tag}: {counts}")
    for what, symbols in (("added", report.added), ("changed", report.changed), ("deactivated", report.deactivated)):
        if symbols:
            note(f"{what}: {_some(symbols)}")
    if report.absent:
        note(f"not in the file and still active: {_some(report.absent)} (--deactivate-absent stops following them)")
    plan = planning.plan
    print_table(_plan_rows(plan), columns=["asset", "grain", "partitions", "why"], title=f"partitions from {plan.start}")
    for change in planning.kept_from:
        note(f"kept as it was: {change} would fit best now, and would rename its partitions; --regrain makes the change")
    if planning.renamed:
        note(f"partitions were renamed: {'; '.join(planning.renamed)}")
        note("run `mdp reconcile` to report what is stored to Dagster under the new names")


def _load_as_json(report: UniverseLoadReport, planning: _Planning) -> dict[str, Any]:
    return {
        "version_tag": report.version_tag,
        **_counts(report),
        "added_symbols": report.added,
        "changed_symbols": report.changed,
        "deactivated_symbols": report.deactivated,
        "absent_symbols": report.absent,
        "partitions_from": planning.plan.start,
        "partitions": _plan_rows(planning.plan),
        "renamed": planning.renamed,
        "kept_from": planning.kept_from,
    }


def _counts(report: UniverseLoadReport) -> dict[str, int]:
    return {
        "added": len(report.added),
        "changed": len(report.changed),
        "unchanged": report.unchanged,
        "deactivated": len(report.deactivated),
    }


def _plan_rows(plan: PartitionPlan) -> list[dict[str, Any]]:
    return [
        {"asset": f"candles/{interval}", "grain": p.grain, "partitions": p.partitions, "why": p.reason}
        for interval, p in plan.intervals.items()
    ]


def _instrument_row(instrument: Instrument, *, active: bool) -> dict[str, Any]:
    return {
        "symbol": instrument.symbol,
        "exchange": instrument.exchange,
        "calendar": instrument.calendar,
        "tier": instrument.tier,
        "asset_type": instrument.asset_type,
        "currency": instrument.currency,
        "adv_21d": instrument.adv_21d,
        "mkt_cap": instrument.mkt_cap,
        "active_from": instrument.active_from,
        "active_to": instrument.active_to,
        "active": active,
        "aliases": dict(instrument.aliases),
    }


def _some(symbols: Sequence[str]) -> str:
    shown = ", ".join(symbols[:MOST_NAMED])
    return shown if len(symbols) <= MOST_NAMED else f"{shown} and {len(symbols) - MOST_NAMED:,} more"
