"""`mdp fetch`: quotes, option chains and economic series, fetched now and stored, or read back as they were known."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from market_data_pipeline.cli.output import MOST_ROWS, json_option, note, print_json, print_table
from market_data_pipeline.cli.parameters import INSTANT, MOMENT, SERIES, SESSION, SYMBOL, in_order, tier_option, written
from market_data_pipeline.cli.selection import chosen_instruments, named_instrument, opened_pipeline
from market_data_pipeline.domain.errors import InvalidInputError, MarketDataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from market_data_pipeline.domain.ports import OptionQuote
    from market_data_pipeline.domain.snapshots import Flag
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.ingest.snapshots import MacroReport
    from market_data_pipeline.storage.macro import StoredObservation
    from market_data_pipeline.storage.options import StoredChain
    from market_data_pipeline.storage.quotes import StoredQuote

FOUND_SOMETHING = 1

_OFFERS = ("bid", "ask", "bid_size", "ask_size", "last")
_QUOTE_COLUMNS = ("symbol", *_OFFERS, "quoted_at", "provider", "known_from", "flags")
_CONTRACT = (
    "contract", "root", "expiry", "strike", "right", "bid", "ask", "last", "volume", "open_interest", "bid_size", "ask_size",
    "iv", "delta", "gamma", "vega", "theta", "rho",
)  # fmt: skip
_NOT_IN_THE_TABLE = {"root", "bid_size", "ask_size", "gamma", "vega", "theta", "rho"}
_CONTRACT_COLUMNS = [*(name for name in _CONTRACT if name not in _NOT_IN_THE_TABLE), "flags"]
_OBSERVATION_COLUMNS = ("observed_on", "value", "realtime_start", "realtime_end", "known_from", "provider")

_QUOTE_COUNTS = {"new": "inserted", "unchanged": "unchanged", "refused": "refused", "requests": "requests"}
_COUNTS = ("new", "unchanged", "ended", "refused", "requests")

provider_option = click.option("--provider", help="Ask this provider first; with --stored, read what it said and nobody else.")
stored_option = click.option("--stored", is_flag=True, help="Ask nobody: print what is stored.")


@click.group()
def fetch() -> None:
    """Fetch quotes, option chains or economic series and store them; --stored prints what is there."""


# --- quotes ------------------------------------------------------------------------------------------------------------


@fetch.command(epilog="Example: mdp fetch quotes AAPL MSFT --provider yahoo")
@click.argument("symbols", type=SYMBOL, nargs=-1)
@tier_option
@provider_option
@stored_option
@click.option("--as-of", type=INSTANT, help="With --stored: the quotes that were known at this instant.")
@json_option
def quotes(
    *, symbols: Sequence[str], tier: str | None, provider: str | None, stored: bool, as_of: datetime | None, as_json: bool
) -> int:
    """Fetch the best bid and ask of SYMBOLS, store them, and print what is stored and who said it.

    What one provider does not know is asked of the next. Flags: crossed (bid above ask), stale (older than
    MDP_QUOTE_STALE_SECONDS when it came), early (stamped later than our clock). Exit code 1 where a symbol has no quote.
    """
    from market_data_pipeline.ingest.snapshots import fetch_quotes  # noqa: PLC0415 - help must not wait for SQLAlchemy
    from market_data_pipeline.storage.quotes import QuoteStore  # noqa: PLC0415

    if not symbols and tier is None:
        raise InvalidInputError("no symbols: expected some, such as `mdp fetch quotes AAPL MSFT`, or --tier")
    _refuse_as_of_unless_stored(as_of, stored=stored)
    failures: dict[str, str] = {}
    counts = Counter[str]()
    with opened_pipeline() as pipeline:
        instruments = chosen_instruments(pipeline, symbols=list(dict.fromkeys(symbols)) or None, tier=tier)
        if not stored:
            with _progress("quotes", len(instruments)) as show:
                for report in fetch_quotes(instruments, pipeline=pipeline, hint=provider):
                    failures |= report.failures
                    counts.update({name: getattr(report, name) for name in _QUOTE_COUNTS.values()})
                    show(len(report.symbols))
        ids = [i.symbol_id for i in instruments]
        found = QuoteStore(pipeline.engine).latest(ids, provider=provider if stored else None, as_of=as_of)
    rows = [_quote_row(quote) for quote in found if quote.quote.symbol not in failures]
    quoted = {row["symbol"] for row in rows}
    missing = {i.symbol: failures.get(i.symbol, "no quote is stored") for i in instruments if i.symbol not in quoted}
    if as_json:
        print_json([*rows, *({"symbol": symbol, "failure": why} for symbol, why in missing.items())])
    else:
        known = f" as known at {written(as_of)}" if as_of else ""
        told = _counted({name: counts[of_report] for name, of_report in _QUOTE_COUNTS.items()})
        title = f"{len(rows):,} stored quotes{known}" if stored else f"{len(rows):,} quotes: {told}"
        print_table(rows, columns=_QUOTE_COLUMNS, title=title, most=MOST_ROWS)
        for symbol, why in missing.items():
            note(f"{symbol}: {why}")
    return FOUND_SOMETHING if missing else 0


def _quote_row(stored: StoredQuote) -> dict[str, Any]:
    quote = stored.quote
    return {
        "symbol": quote.symbol,
        **{name: getattr(quote, name) for name in _OFFERS},
        "last_at": _instant(quote.last_at),
        "quoted_at": _instant(quote.quoted_at),
        "volume": quote.volume,
        "previous_close": quote.previous_close,
        "currency": quote.currency,
        "market_state": quote.market_state,
        "delay_seconds": quote.delay_seconds,
        "feed": stored.feed.label,
        "provider": stored.provider,
        "known_from": _instant(stored.known_from),
        "confirmed_at": _instant(stored.confirmed_at),
        "flags": stored.flags.words,
        "fetch_id": stored.fetch_id,
    }


# --- chains ------------------------------------------------------------------------------------------------------------


@fetch.command(epilog="Example: mdp fetch chain AAPL --expiry 2026-12-18")
@click.argument("symbol", type=SYMBOL)
@click.option("--expiry", type=SESSION, help="Only the contracts that expire on this date.")
@provider_option
@stored_option
@click.option("--as-of", type=INSTANT, help="With --stored: the chain that was known at this instant.")
@json_option
def chain(*, symbol: str, expiry: date | None, provider: str | None, stored: bool, as_of: datetime | None, as_json: bool) -> None:
    """Fetch the option chain of SYMBOL, store it as one snapshot, and print it.

    A snapshot is one moment of one provider. The same answer again is no new snapshot. An empty cell is what the provider does not
    have; volatility and greeks are its own.
    """
    from market_data_pipeline.ingest.snapshots import fetch_chain  # noqa: PLC0415 - as above
    from market_data_pipeline.storage.options import OptionStore  # noqa: PLC0415

    _refuse_as_of_unless_stored(as_of, stored=stored)
    with opened_pipeline() as pipeline:
        instrument = named_instrument(pipeline, symbol)
        store = OptionStore(pipeline.engine)
        told: dict[str, Any] = {}
        if stored:
            found = store.latest(instrument.symbol_id, expiry=expiry, provider=provider, as_of=as_of)
            if found is None:
                raise InvalidInputError(f"no chain of {symbol} is stored for that: fetch one with `mdp fetch chain {symbol}`")
        else:
            report = fetch_chain(instrument, expiry=expiry, pipeline=pipeline, hint=provider)
            found = store.snapshot(report.written.snapshot_id)
            told = {"is_new": report.written.is_new, "refused": report.written.refused, "requests": report.requests}
    rows = [_contract_row(contract, flags) for contract, flags in found.contracts]
    if as_json:
        print_json({**_chain_row(found), **told, "contracts": rows})
        return
    print_table(rows, columns=_CONTRACT_COLUMNS, title=_chain_title(found, told), most=MOST_ROWS)


def _chain_row(found: StoredChain) -> dict[str, Any]:
    return {
        "symbol": found.symbol,
        "provider": found.provider,
        "snapshot_id": found.snapshot_id,
        "expiry": found.expiry,
        "taken_at": _instant(found.taken_at),
        "spot": found.spot,
        "is_complete": found.is_complete,
        "flags": found.flags.words,
        "known_from": _instant(found.known_from),
        "fetch_id": found.fetch_id,
    }


def _chain_title(found: StoredChain, told: Mapping[str, Any]) -> str:
    said = [f"{found.symbol}: {len(found.contracts):,} contracts of {found.provider} at {_instant(found.taken_at)}"]
    said += [] if found.spot is None else [f"spot {found.spot:,g}"]
    said += [f"snapshot {found.snapshot_id}" + ("" if told.get("is_new", True) else ", as it was")]
    said += [] if found.is_complete else ["not complete"]
    said += [found.flags.words] if found.flags else []
    said += [f"{told['refused']:,} refused"] if told.get("refused") else []
    return "; ".join(said)


def _contract_row(contract: OptionQuote, flags: Flag) -> dict[str, Any]:
    row = {name: getattr(contract, name) for name in _CONTRACT}
    return {**row, "last_at": _instant(contract.last_at), "flags": flags.words}


# --- economic series ---------------------------------------------------------------------------------------------------


@fetch.command(epilog="Example: mdp fetch macro UNRATE GDPC1 --vintages --as-of 2016-12-01")
@click.argument("series", type=SERIES, nargs=-1, required=True)
@click.option("--start", type=SESSION, help="The first observation date.")
@click.option("--end", type=SESSION, help="The last observation date.")
@click.option("--vintages", is_flag=True, help="Everything that was ever published, with the days between which it held.")
@click.option(
    "--as-of",
    type=MOMENT,
    help="A date: what had been published by then (with --vintages or --stored). An instant: what we knew then (with --stored).",
)
@provider_option
@stored_option
@json_option
def macro(
    *,
    series: Sequence[str],
    start: date | None,
    end: date | None,
    vintages: bool,
    as_of: date | datetime | None,
    provider: str | None,
    stored: bool,
    as_json: bool,
) -> int:
    """Fetch economic SERIES, store them with their vintages, and print what is stored.

    An empty value is an absence that was published. A vintage is never overwritten: what is replaced is kept with the time until
    which we believed it. Exit code 1 where a series could not be fetched.
    """
    from market_data_pipeline.ingest.snapshots import fetch_macro  # noqa: PLC0415 - as above

    in_order(start, end)
    if isinstance(as_of, datetime):
        _refuse_as_of_unless_stored(as_of, stored=stored)
    elif as_of is not None and not (stored or vintages):
        raise InvalidInputError(f"--as-of {as_of}: only vintages tell what had been published by then; add --vintages or --stored")
    names = list(dict.fromkeys(series))
    fetched = _Fetched()
    with opened_pipeline() as pipeline:
        if not stored:
            fetched = _fetched(
                names,
                lambda name: fetch_macro(name, first=start, last=end, vintages=vintages, pipeline=pipeline, hint=provider),
            )
        asked = _Asked(start, end, as_of, provider if stored else None, every_vintage=vintages)
        found = [_series_read(pipeline, name, asked) for name in names if name not in fetched.failures]
    if as_json:
        told = {name: _macro_told(report) for name, report in fetched.reports.items()}
        failed = [{"series": name, "failure": str(error)} for name, error in fetched.failures.items()]
        print_json([*(row | told.get(row["series"], {}) for row in found), *failed])
    else:
        for row in found:
            _print_series(row, fetched.reports.get(row["series"]), as_of)
        _say(fetched.failures)
    empty = [row["series"] for row in found if stored and not row["observations"]]
    for name in empty:
        note(f"{name}: nothing is stored for that: fetch it with `mdp fetch macro {name}`")
    return FOUND_SOMETHING if fetched.failures or empty else 0


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a stored series is read for."""

    first: date | None
    last: date | None
    as_of: date | datetime | None
    provider: str | None
    every_vintage: bool


@dataclass(slots=True)
class _Fetched:
    """What came of each series."""

    reports: dict[str, MacroReport] = field(default_factory=dict)
    failures: dict[str, MarketDataError] = field(default_factory=dict)


def _fetched(names: Sequence[str], ask: Callable[[str], MacroReport]) -> _Fetched:
    """Each series by itself: one that fails is said and fails no other. Where all fail, the last failure is raised."""
    fetched = _Fetched()
    with _progress("series", len(names)) as show:
        for name in names:
            try:
                fetched.reports[name] = ask(name)
            except InvalidInputError:
                raise
            except MarketDataError as failed:
                fetched.failures[name] = failed
            show(1)
    if not fetched.reports:
        _, last = fetched.failures.popitem()
        _say(fetched.failures)
        raise last
    return fetched


def _say(failures: Mapping[str, MarketDataError]) -> None:
    for name, failure in failures.items():
        note(f"{name}: {failure}")


def _series_read(pipeline: Pipeline, series: str, asked: _Asked) -> dict[str, Any]:
    from market_data_pipeline.storage.macro import MacroStore  # noqa: PLC0415 - as above

    store = MacroStore(pipeline.engine)
    known, published = (asked.as_of, None) if isinstance(asked.as_of, datetime) else (None, asked.as_of)
    if asked.every_vintage and published is None:
        rows = store.vintages(series, first=asked.first, last=asked.last, as_of=known, provider=asked.provider)
    else:
        rows = store.read(series, first=asked.first, last=asked.last, published_by=published, as_of=known, provider=asked.provider)
    described = next((d for d in store.described(series) if asked.provider in {None, d.provider}), None)
    return {
        "series": series,
        "title": described.title if described else None,
        "units": described.units if described else None,
        "frequency": described.frequency if described else None,
        "observations": [_observation_row(row) for row in rows],
    }


def _observation_row(stored: StoredObservation) -> dict[str, Any]:
    row = stored.observation
    return {
        "observed_on": row.observed_on,
        "value": row.value,
        "realtime_start": row.realtime_start,
        "realtime_end": row.realtime_end,
        "known_from": _instant(stored.known_from),
        "provider": stored.provider,
        "fetch_id": stored.fetch_id,
    }


def _macro_told(report: MacroReport) -> dict[str, Any]:
    return {
        "provider": report.provider,
        "has_vintages": report.has_vintages,
        "received": report.observations,
        "new": report.written.changed,
        "unchanged": report.written.unchanged,
        "ended": report.written.ended,
        "refused": report.written.refused,
        "requests": report.requests,
    }


def _print_series(row: Mapping[str, Any], report: MacroReport | None, as_of: date | datetime | None) -> None:
    described = ", ".join(filter(None, (row["title"], row["units"], row["frequency"])))
    known = f", as of {written(as_of)}" if as_of else ""
    title = f"{row['series']}{f' ({described})' if described else ''}: {len(row['observations']):,} values{known}"
    if report is not None:
        told = _macro_told(report)
        title += f"; from {report.provider}: {_counted({name: told[name] for name in _COUNTS})}"
    print_table(row["observations"], columns=_OBSERVATION_COLUMNS, title=title, most=MOST_ROWS)
    if report is not None and not report.has_vintages:
        note(f"{row['series']}: current values only; their realtime dates are the days on which we saw them")


# --- what they share ---------------------------------------------------------------------------------------------------


def _refuse_as_of_unless_stored(as_of: datetime | None, *, stored: bool) -> None:
    if as_of is not None and not stored:
        raise InvalidInputError(f"--as-of {written(as_of)}: what was known at an instant is read, not fetched; add --stored")


def _counted(counts: Mapping[str, int]) -> str:
    """As "2 new, 1 unchanged": what there is none of is left out, but for the first."""
    return ", ".join(f"{count:,} {name}" for place, (name, count) in enumerate(counts.items()) if count or not place)


def _instant(moment: datetime | None) -> str | None:
    return None if moment is None else written(moment)


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Something to tell how many more are done. A bar on a terminal, on standard error; nothing in a pipe, or for a few."""
    console = Console(stderr=True)
    if not console.is_terminal or total < 2:
        yield lambda _: None
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as display:
        task = display.add_task("", total=total)
        yield lambda count: display.advance(task, count)
