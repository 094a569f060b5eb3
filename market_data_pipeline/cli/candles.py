"""`mdp candles` and `mdp revisions`: stored bars as they are, as they were known at a time, and what was replaced."""

from __future__ import annotations

import csv
import io
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from market_data_pipeline.cli.output import MOST_ROWS, json_option, note, print_json, print_table, shortest
from market_data_pipeline.cli.parameters import INSTANT, INTERVAL, MOMENT, SYMBOL, window, written
from market_data_pipeline.cli.selection import named_instrument, opened_pipeline
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.errors import DiskError, InvalidInputError
from market_data_pipeline.domain.sessions import date_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date, datetime

    import pyarrow as pa

    from market_data_pipeline.cli.parameters import Window
    from market_data_pipeline.domain.candles import CandleColumns, Int64s
    from market_data_pipeline.domain.filling import PreviousClose
    from market_data_pipeline.domain.ports import StoredCandles, StoredRevisions
    from market_data_pipeline.domain.sessions import TradingCalendar

PRICES = ("open", "high", "low", "close", "volume")
_OPTIONAL = ("vwap", "trades")
_MOMENTS = "A date means the symbol's whole session, an instant needs Z or an offset; --end is exclusive for instants."


@click.command(
    epilog="Example: mdp candles AAPL --interval 1m --start 2024-11-29 --end 2024-11-29 --as-of 2024-12-02T12:00Z --format csv"
)
@click.argument("symbol", type=SYMBOL)
@click.option("--interval", type=INTERVAL, required=True, help=f"{', '.join(Interval)}.")
@click.option("--start", type=MOMENT, required=True, help=f"First bar. {_MOMENTS}")
@click.option("--end", type=MOMENT, required=True, help="Last session (inclusive) or the instant to stop before.")
@click.option("--as-of", type=INSTANT, help="Answer with what was known at this instant.")
@click.option(
    "--provenance",
    is_flag=True,
    help="Also say whose each bar is: its provider, whose trades its feed counts, and how sure its session is now.",
)
@click.option(
    "--fill",
    type=click.Choice(["previous"]),
    help="Make up bars that are confirmed empty: flat at the previous close of their session, volume 0, is_filled true.",
)
@click.option("--format", "style", type=click.Choice(["table", "csv", "json", "parquet"]), help="How to print; default table.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write csv, json or parquet to this file instead.")
@json_option
def candles(  # noqa: PLR0913 - one parameter an option
    *,
    symbol: str,
    interval: Interval,
    start: date | datetime,
    end: date | datetime,
    as_of: datetime | None,
    provenance: bool,
    fill: str | None,
    style: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Print the stored bars of SYMBOL, as they are or as they were known at a time.

    Times are UTC and name the instant a bar opens; daily bars are named by their session. known_from is when we learned the
    value. Raw prices: no adjustment for splits and dividends. Nothing is filled unless --fill asks for it: no filled bar is stored,
    and no missing one is filled.
    """
    style = _style(style, out=out, as_json=as_json)
    with opened_pipeline() as pipeline:
        instrument = named_instrument(pipeline, symbol)
        calendar = pipeline.calendars(instrument.calendar)
        asked = window(start, end, interval=interval, calendar=calendar)
        stored = pipeline.reader.read(
            [instrument.symbol_id],
            interval,
            asked.start,
            asked.end,
            as_of=as_of,
            provenance=provenance,
            fill=_filling(asked, interval, calendar) if fill else None,
        )
    if style == "parquet":
        _write_parquet(_required(out), stored, interval)
    elif style == "table":
        known = f", as known at {written(as_of)}" if as_of else ""
        rows = _rows(stored, interval)
        columns = list(rows[0]) if rows else [_stamp_name(interval), *PRICES, "known_from", *_origins(stored)]
        print_table(rows, columns=columns, title=f"{symbol} {interval}{known}", most=MOST_ROWS)
    else:
        text = _as_csv(stored, interval) if style == "csv" else None
        if out is not None:
            _write(out, (text if text is not None else _as_json(stored, interval)).encode())
        elif text is not None:
            click.echo(text, nl=False)
        else:
            print_json(_rows(stored, interval))
    if out is not None:
        note(f"{len(stored.columns):,} bars written to {out}")
    elif not len(stored.columns):
        note(f"no {interval} bars of {symbol} are stored from {written(start)} to {written(end)}: see `mdp gaps`")


@click.command(epilog="Example: mdp revisions AAPL --interval 1m --start 2026-03-02 --end 2026-03-06")
@click.argument("symbol", type=SYMBOL)
@click.option("--interval", type=INTERVAL, required=True, help=f"{', '.join(Interval)}.")
@click.option("--start", type=MOMENT, required=True, help=f"First bar. {_MOMENTS}")
@click.option("--end", type=MOMENT, required=True, help="Last session (inclusive) or the instant to stop before.")
@json_option
def revisions(*, symbol: str, interval: Interval, start: date | datetime, end: date | datetime, as_json: bool) -> None:
    """Print every value of SYMBOL that was replaced, and what it became.

    A value was what we knew from known_from until just before known_to. Where a field changed, the table shows "old → new".
    """
    with opened_pipeline() as pipeline:
        instrument = named_instrument(pipeline, symbol)
        asked = window(start, end, interval=interval, calendar=pipeline.calendars(instrument.calendar))
        replaced = pipeline.reader.revisions(instrument.symbol_id, interval, asked.start, asked.end)
        current = pipeline.reader.read([instrument.symbol_id], interval, asked.start, asked.end)
    rows = _revision_rows(replaced, current, interval)
    if as_json:
        print_json(rows)
        return
    stamp = _stamp_name(interval)
    shown = [
        {stamp: row[stamp], "known_from": row["known_from"], "known_to": row["known_to"], **_changes(row["was"], row["became"])}
        for row in rows
    ]
    columns = [stamp, "known_from", "known_to", *PRICES]
    print_table(shown, columns=columns, title=f"{symbol} {interval}: {len(rows):,} values were replaced", most=MOST_ROWS)


def _filling(asked: Window, interval: Interval, calendar: TradingCalendar) -> PreviousClose:
    """The grid of whole sessions around the window."""
    from market_data_pipeline.domain.filling import PreviousClose  # noqa: PLC0415 - help must not wait for numpy

    # The bars of a session may be of the day before or after it in UTC.
    first, last = (date_of(edge // 86_400 + day) for edge, day in ((asked.start, -1), (asked.end, 1)))
    return PreviousClose(calendar.expected_opens(interval, first, last))


def _style(style: str | None, *, out: Path | None, as_json: bool) -> str:
    if as_json and style not in {None, "json"}:
        raise InvalidInputError(f"--json and --format {style} were both given: expected one of them")
    chosen = "json" if as_json else style or "table"
    if chosen == "parquet" and out is None:
        raise InvalidInputError("--format parquet is binary: expected --out FILE with it")
    if chosen == "table" and out is not None:
        raise InvalidInputError(f"--out {out}: a table is for the screen; expected --format csv, json or parquet with it")
    if out is not None and not out.parent.is_dir():
        raise InvalidInputError(f"--out {out}: {out.parent} is not a directory")
    return chosen


def _required(out: Path | None) -> Path:
    if out is None:
        raise InvalidInputError("expected --out FILE")
    return out


def _stamp_name(interval: Interval) -> str:
    return "session_date" if interval.is_daily else "opened_at"


def _stamps(opened_at: Int64s, interval: Interval) -> list[str]:
    """The name of each bar: ISO 8601 with Z, or the session's date."""
    if interval.is_daily:
        dates: list[str] = np.datetime_as_string(opened_at.astype("datetime64[s]"), unit="D").tolist()
        return dates
    return _instants(opened_at * 1_000_000, unit="s")


def _instants(microseconds: Int64s, *, unit: str = "us") -> list[str]:
    moments = np.datetime_as_string(microseconds.astype("datetime64[us]"), unit=unit, timezone="UTC")  # type: ignore[call-overload]  # unit is a literal
    texts: list[str] = moments.tolist()
    return texts


def _fields(columns: CandleColumns) -> tuple[str, ...]:
    """The columns worth showing: VWAP and trade count only where a provider gave them."""
    return PRICES + tuple(name for name in _OPTIONAL if not np.isnan(getattr(columns, name)).all())


def _values(columns: CandleColumns, name: str) -> list[float | None]:
    """A column as Python numbers, None for an unknown one."""
    return [None if value != value else value for value in getattr(columns, name).tolist()]  # noqa: PLR0124 - only NaN differs from itself


def _origins(stored: StoredCandles) -> dict[str, Sequence[Any]]:
    """The columns that --provenance and --fill add."""
    columns = {"provider": stored.providers, "feed": stored.feeds, "finality": stored.finalities}
    filled = None if stored.is_filled is None else stored.is_filled.tolist()
    return {name: values for name, values in {**columns, "is_filled": filled}.items() if values is not None}


def _rows(stored: StoredCandles, interval: Interval) -> list[dict[str, Any]]:
    fields, origins = _fields(stored.columns), _origins(stored)
    names = (_stamp_name(interval), *fields, "known_from", *origins)
    columns: list[Sequence[Any]] = [
        _stamps(stored.columns.opened_at, interval),
        *(_values(stored.columns, field) for field in fields),
        _known_from(stored),
        *origins.values(),
    ]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _known_from(stored: StoredCandles) -> list[str | None]:
    """When we learned each value; None for one that was made up."""
    return [text if known else None for text, known in zip(_instants(stored.known_at), stored.known_at.tolist(), strict=True)]


def _as_csv(stored: StoredCandles, interval: Interval) -> str:
    """The columns that `mdp simulate` reads from its data directory, so that what is exported can be served again."""
    rows = _rows(stored, interval)
    names = (_stamp_name(interval), *_fields(stored.columns), "known_from", *_origins(stored))
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _as_json(stored: StoredCandles, interval: Interval) -> str:
    import orjson  # noqa: PLC0415

    return orjson.dumps(_rows(stored, interval), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()


def _arrow(stored: StoredCandles, interval: Interval) -> pa.Table:
    import pyarrow as pa  # noqa: PLC0415 - a tenth of a second that only this format needs

    opened_at = stored.columns.opened_at
    if interval.is_daily:
        stamp = pa.array((opened_at // 86400).astype(np.int32), pa.int32()).cast(pa.date32())
    else:
        stamp = pa.array(opened_at * 1000, pa.timestamp("ms", "UTC"))
    fields = {name: pa.array(getattr(stored.columns, name), from_pandas=True) for name in (*PRICES, *_OPTIONAL)}
    known_from = pa.array(stored.known_at, pa.timestamp("us", "UTC"), mask=stored.known_at == 0)
    return pa.table({_stamp_name(interval): stamp, **fields, "known_from": known_from, **_origins(stored)})


def _write_parquet(out: Path, stored: StoredCandles, interval: Interval) -> None:
    import pyarrow.parquet as pq  # noqa: PLC0415 - as above

    body = io.BytesIO()
    pq.write_table(_arrow(stored, interval), body)
    _write(out, body.getvalue())


def _write(out: Path, body: bytes) -> None:
    """Put ``body`` into the file, whole or not at all."""
    try:
        handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
        draft = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(body)
            # mkstemp makes files that only we may read; what is exported gets the rights any new file gets.
            umask = os.umask(0)
            os.umask(umask)
            draft.chmod(0o666 & ~umask)
            draft.replace(out)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
    except OSError as refused:
        raise DiskError(f"--out {out} cannot be written: {refused.strerror or refused}") from refused


def _revision_rows(replaced: StoredRevisions, current: StoredCandles, interval: Interval) -> list[dict[str, Any]]:
    """Each replaced value with the one that took its place: the next revision of the bar, or the bar as it is now."""
    stamps, known_from, known_to = replaced.columns.opened_at.tolist(), replaced.known_from.tolist(), replaced.known_to.tolist()
    values = {(stamp, since): _bar(replaced.columns, at) for at, (stamp, since) in enumerate(zip(stamps, known_from, strict=True))}
    now = zip(current.columns.opened_at.tolist(), current.known_at.tolist(), strict=True)
    values |= {key: _bar(current.columns, at) for at, key in enumerate(now)}
    texts = zip(
        _stamps(replaced.columns.opened_at, interval), _instants(replaced.known_from), _instants(replaced.known_to), strict=True
    )
    return [
        {
            _stamp_name(interval): text,
            "known_from": since_text,
            "known_to": until_text,
            "was": values[stamp, since],
            "became": values.get((stamp, until)),
        }
        for (text, since_text, until_text), stamp, since, until in zip(texts, stamps, known_from, known_to, strict=True)
    ]


def _bar(columns: CandleColumns, at: int) -> dict[str, float]:
    return {name: float(getattr(columns, name)[at]) for name in PRICES}


def _changes(was: dict[str, float], became: dict[str, float] | None) -> dict[str, str]:
    if became is None:
        return {name: f"{shortest(value)} → deleted" for name, value in was.items()}
    return {
        name: shortest(value) if became[name] == value else f"{shortest(value)} → {shortest(became[name])}"
        for name, value in was.items()
    }
