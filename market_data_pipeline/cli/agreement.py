"""`mdp agreement`: what second providers said of stored sessions, and asking them now."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from market_data_pipeline.cli.coverage import end_option, start_option
from market_data_pipeline.cli.output import MOST_ROWS, json_option, note, print_json, print_table
from market_data_pipeline.cli.parameters import in_order, intervals_option, symbols_option, tier_option
from market_data_pipeline.cli.selection import chosen_instruments, opened_pipeline
from market_data_pipeline.domain.candles import FETCHED_INTERVALS, Interval
from market_data_pipeline.domain.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.ingest.second_opinion import SecondOpinions
    from market_data_pipeline.storage.opinions import Opinion

DONE, FOUND_SOMETHING = 0, 1
# What is listed where no --start is given.
LISTED_DAYS = 30


@click.command(epilog="Example: mdp agreement --ask --symbols AAPL --interval 1m --start 2026-11-16 --end 2026-11-20")
@symbols_option
@tier_option
@intervals_option
@start_option
@end_option
@click.option("--ask", is_flag=True, help="Ask a second provider now about every stored session named, sampled before or not.")
@click.option(
    "--at-most", type=click.IntRange(min=1), default=200, show_default=True, help="With --ask: no more sessions than these."
)
@json_option
def agreement(
    *,
    symbols: tuple[str, ...] | None,
    tier: str | None,
    intervals: tuple[Interval, ...],
    start: date | None,
    end: date | None,
    ask: bool,
    at_most: int,
    as_json: bool,
) -> int:
    """Show where a second provider agrees with what is stored and where not, and who was believed.

    Sessions are sampled every night (MDP_SECOND_OPINION_SHARE); --ask asks about those you name. The newest opinion on each session
    is shown, of the last 30 days unless --start says otherwise. Exit code 1 when two providers disagree and no third has settled
    it: look at both, then fetch again with `mdp backfill --refetch` and ask again here.
    """
    in_order(start, end)
    derived = [interval for interval in intervals if interval.source is not None]
    if derived:
        raise InvalidInputError(f"{derived[0]} is computed from {derived[0].source}: ask about {derived[0].source}")
    asked: list[SecondOpinions] = []
    with opened_pipeline() as pipeline:
        instruments = chosen_instruments(pipeline, symbols=symbols, tier=tier, active_only=False)
        today = pipeline.clock.now().date()
        first, last = start or (end or today) - timedelta(days=LISTED_DAYS), end or today
        wanted = intervals or FETCHED_INTERVALS
        if ask:
            asked = [_ask(pipeline, instruments, interval, first, last, at_most=at_most) for interval in wanted]
        opinions = _latest(pipeline, instruments, wanted, first, last)
    open_ = [opinion for opinion in opinions if opinion.is_open]
    if as_json:
        print_json({"opinions": [_row(opinion) for opinion in opinions], "asked": [_told(one) for one in asked]})
    else:
        _print(opinions, asked, first, last)
    return FOUND_SOMETHING if open_ else DONE


def _ask(
    pipeline: Pipeline, instruments: Sequence[Instrument], interval: Interval, first: date, last: date, *, at_most: int
) -> SecondOpinions:
    from market_data_pipeline.ingest.second_opinion import ask_second_opinions, finished_sessions  # noqa: PLC0415 - only with --ask

    subjects = list(finished_sessions(instruments, interval, first, last, pipeline=pipeline))
    return ask_second_opinions(subjects, interval, pipeline=pipeline, at_most=at_most)


def _latest(
    pipeline: Pipeline, instruments: Sequence[Instrument], intervals: Sequence[Interval], first: date, last: date
) -> list[Opinion]:
    from market_data_pipeline.storage.opinions import OpinionStore  # noqa: PLC0415 - `mdp --help` must not wait for psycopg2

    ids = [instrument.symbol_id for instrument in instruments]
    return OpinionStore(pipeline.engine).latest(first, last, symbol_ids=ids, intervals=intervals)


def _row(opinion: Opinion) -> dict[str, Any]:
    return {**asdict(opinion), "verdict": str(opinion.verdict), "is_open": opinion.is_open}


def _told(asked: SecondOpinions) -> dict[str, Any]:
    return {"opinions": len(asked.opinions), "unheard": asked.unheard, "stopped": asked.stopped}


def _print(opinions: Sequence[Opinion], asked: Sequence[SecondOpinions], first: date, last: date) -> None:
    for one in asked:
        for subject, reason in one.unheard.items():
            note(f"{subject}: nobody was heard: {reason}")
        if one.stopped is not None:
            note(f"not all were asked about: {one.stopped}")
    if not opinions:
        note(f"no second opinion on sessions from {first} to {last}: `mdp agreement --ask` asks for some")
        return
    shown = [opinion for opinion in opinions if not opinion.verdict.is_agreement]
    if shown:
        rows = [
            {
                "symbol": opinion.symbol,
                "interval": opinion.interval,
                "session": opinion.session,
                "verdict": str(opinion.verdict),
                "stored": opinion.stored_provider,
                "second": opinion.second_provider,
                "third": opinion.third_provider,
                "believed": f"{opinion.winner}, by {opinion.decided_by}",
                "revised": opinion.revised,
                "quarantined": opinion.quarantined,
                "why": opinion.reason,
            }
            for opinion in shown
        ]
        print_table(rows, columns=list(rows[0]), title="sessions about which two providers disagree", most=MOST_ROWS)
    counts = Counter(str(opinion.verdict) for opinion in opinions)
    said = ", ".join(f"{count:,} {verdict}" for verdict, count in counts.most_common())
    click.echo(f"{len(opinions):,} sessions have a second opinion, {first} to {last}: {said}")
    open_ = sum(opinion.is_open for opinion in opinions)
    if open_:
        note(
            f"{open_:,} of them are not settled by a third provider: compare `mdp candles` with both, fetch again with "
            "`mdp backfill --refetch`, then `mdp agreement --ask`"
        )
