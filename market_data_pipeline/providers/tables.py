"""CSV and Parquet, packed or not, as columns of numbers stamped with their opens. What a file is for is said elsewhere."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zipfile
import zlib
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from market_data_pipeline.domain.capabilities import Stamp
from market_data_pipeline.domain.errors import PayloadError
from market_data_pipeline.providers.bars import DAY, label_of, local_labels
from market_data_pipeline.providers.wire import number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from market_data_pipeline.domain.candles import Float64s, Int64s, Interval

PROVIDER = "files"
EXTENSIONS = (".csv", ".csv.gz", ".csv.zip", ".zip", ".parquet")
# The usual names of a column, lower case, the likeliest first.
USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "stamp": ("opened_at", "session_date", "datetime", "timestamp", "date", "time", "t"),
    "open": ("open", "o"),
    "high": ("high", "h"),
    "low": ("low", "l"),
    "close": ("close", "c"),
    "volume": ("volume", "vol", "v"),
    "vwap": ("vwap", "vw", "average"),
    "trades": ("trades", "n", "transactions", "barcount"),
}
_OPTIONAL = {"vwap", "trades"}
_PRICES = ("open", "high", "low", "close", "vwap")
_EMPTY = ["", "null", "NULL", "None", "nan", "NaN", "NAN", "N/A"]
_ISO = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?)?", re.ASCII)
_OFFSET = re.compile(r"(?:\.0+)?\s?(Z|UTC|[+-]\d\d:?\d\d)?", re.ASCII)
_QUARTER = 900
# Of 2024-07-01T13:30:00.
_TIME_LENGTH = 19


@dataclass(frozen=True, slots=True)
class TableForm:
    """How a file is written: see ``files.FileSet``. ``columns``: ours to theirs, a name or a position from 0."""

    interval: Interval
    header: bool = True
    skip_rows: int = 0
    delimiter: str = ","
    columns: Mapping[str, str | int] = field(default_factory=dict)
    stamp: Stamp = Stamp.OPEN
    stamp_format: str = "auto"
    zone: ZoneInfo = field(default_factory=lambda: ZoneInfo("UTC"))
    price_divisor: float = 1.0
    volume_multiplier: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class FileTable:
    """A file's rows in its own order. ``opened_at``: epoch seconds; for 1d midnight UTC of the session. NaN: an empty cell."""

    opened_at: Int64s
    columns: Mapping[str, Float64s]

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return int(self.opened_at.nbytes + sum(column.nbytes for column in self.columns.values()))


# --- bytes -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """A file, unpacked. ``sha256`` and ``size_on_disk`` are of the file as it lies there."""

    body: bytes
    is_parquet: bool
    sha256: str
    size_on_disk: int


def read_whole(path: Path, *, shown: str, member: str | None, most_bytes: int) -> Whole:
    """The bytes of a file, unpacked. Never holds more than ``most_bytes`` and one, whatever a few packed bytes unfold to.

    Raises PayloadError for more than that, and for what is no gzip, no zip or holds several files; OSError as the system does.
    """
    with path.open("rb") as file:
        packed = file.read(most_bytes + 1)
    _refuse_longer(packed, shown, most_bytes)
    name = path.name.lower()
    try:
        if name.endswith(".gz"):
            with gzip.GzipFile(fileobj=io.BytesIO(packed)) as unpacked:
                body = unpacked.read(most_bytes + 1)
        elif name.endswith(".zip"):
            body = _member(packed, shown, member, most_bytes)
        else:
            body = packed
    except (gzip.BadGzipFile, zipfile.BadZipFile, EOFError, zlib.error, RuntimeError, NotImplementedError) as broken:
        # RuntimeError and NotImplementedError are zipfile's words for a password and for a method it does not know.
        raise PayloadError(f"{shown} cannot be unpacked: {broken}", provider=PROVIDER) from None
    _refuse_longer(body, shown, most_bytes)
    return Whole(body, name.endswith(".parquet"), sha256(packed).hexdigest(), len(packed))


def _member(packed: bytes, shown: str, member: str | None, most_bytes: int) -> bytes:
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
        if member is not None and member not in names:
            raise PayloadError(f"{shown} holds no {member}: it has {', '.join(names)[:200]}", provider=PROVIDER)
        if member is None and len(names) != 1:
            raise PayloadError(f"{shown} holds {len(names)} files: say which under member", provider=PROVIDER)
        with archive.open(member or names[0]) as file:
            return file.read(most_bytes + 1)


def _refuse_longer(body: bytes, shown: str, most_bytes: int) -> None:
    if len(body) > most_bytes:
        raise PayloadError(f"{shown} is longer than {most_bytes:,} bytes", provider=PROVIDER)


# --- columns -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """A table as it lies in its file. ``data``: its lines, the first of which is ``first_line``, from 1; Parquet has none."""

    shown: str
    table: pa.Table
    data: memoryview | None = None
    first_line: int = 1

    def at(self, row: int) -> str:
        """The place of a row, for messages."""
        if self.data is None:
            return f"{self.shown}: row {row + 1}"
        # Blank lines are no rows, and lines all the same.
        lines = [number for number, line in enumerate(bytes(self.data).splitlines(), self.first_line) if line.strip()]
        return f"{self.shown}:{lines[row]}"


def parse_table(whole: Whole, form: TableForm, *, shown: str, day: date | None = None) -> FileTable:
    """The rows of a file. ``day``: that of a file whose stamps count from midnight.

    Raises PayloadError that names ``shown``, the line and the value for a row that cannot be read: nothing of the file is used.
    """
    rows = _parquet(whole.body, shown) if whole.is_parquet else _csv(whole.body, form, shown)
    called = _called(rows, form)
    columns = {name: _numbers(rows, place, name) for name, place in called.items() if name != "stamp"}
    for name in _PRICES:
        if name in columns and form.price_divisor != 1.0:
            columns[name] = columns[name] / form.price_divisor
    columns["volume"] = columns["volume"] * form.volume_multiplier
    return FileTable(_opens(rows, called["stamp"], form, day), columns)


def _parquet(body: bytes, shown: str) -> _Rows:
    try:
        return _Rows(shown, pq.read_table(io.BytesIO(body)))
    except (pa.ArrowException, OSError) as invalid:
        raise PayloadError(f"{shown} is no Parquet file: {str(invalid)[:160]}", provider=PROVIDER) from None


def _csv(body: bytes, form: TableForm, shown: str) -> _Rows:
    """Every cell as text: what it means is decided where a message can say which line it is on."""
    before = form.skip_rows + int(form.header)
    start, sample = (3 if body.startswith(b"\xef\xbb\xbf") else 0), b""
    for _ in range(before):
        end = body.find(b"\n", start)
        start, sample = (end + 1, body[start:end]) if end >= 0 else (len(body), body[start:])
    # A view: a copy of the whole for each step would be several times the file.
    data = memoryview(body)[start:]
    sample = sample if form.header else body[start : body.find(b"\n", start) if b"\n" in body else len(body)]
    try:
        names = next(csv.reader([sample.decode()], delimiter=form.delimiter), [])
    except (UnicodeDecodeError, csv.Error):
        names = []
    if not names:
        raise PayloadError(f"{shown} has no first line that could be read as CSV", provider=PROVIDER)
    # Names may repeat; positions do not.
    positions = [str(place) for place in range(len(names))]
    broken: list[str] = []

    def note(row: Any) -> str:  # noqa: ANN401 - pyarrow has no types
        broken.append(row.text)
        return "skip"

    try:
        table = pacsv.read_csv(
            pa.BufferReader(pa.py_buffer(data if len(data) else b"\n")),
            read_options=pacsv.ReadOptions(column_names=positions),
            parse_options=pacsv.ParseOptions(delimiter=form.delimiter, invalid_row_handler=note),
            convert_options=pacsv.ConvertOptions(column_types=dict.fromkeys(positions, pa.string())),
        )
    except pa.ArrowInvalid as invalid:
        if "Empty CSV" not in str(invalid):
            raise PayloadError(f"{shown} is no CSV: {str(invalid)[:160]}", provider=PROVIDER) from None
        table = pa.table({position: pa.array([], pa.string()) for position in positions})
    if broken:
        read = bytes(data).decode("utf-8", "replace").splitlines()
        line = next((number for number, text in enumerate(read, before + 1) if text == broken[0]), "?")
        raise PayloadError(f"{shown}:{line}: not {len(names)} cells: {broken[0][:80]!r}", provider=PROVIDER)
    named = table.rename_columns(names) if form.header else table
    return _Rows(shown, named, data, before + 1)


def _called(rows: _Rows, form: TableForm) -> dict[str, int]:
    """Where each of our columns is, by position. PayloadError where one is missing or cannot be told from another."""
    names = [name.strip() for name in rows.table.column_names]
    places: dict[str, int] = {}
    for ours, usual in USUAL_NAMES.items():
        theirs = form.columns.get(ours)
        if isinstance(theirs, int):
            found = [theirs] if 0 <= theirs < len(names) else []
        elif theirs is not None:
            found = [place for place, name in enumerate(names) if name == theirs]
        elif form.header:
            lower = [name.lower() for name in names]
            found = next(([place for place, name in enumerate(lower) if name == one] for one in usual if one in lower), [])
        else:
            found = []
        if len(found) > 1 or (not found and (ours not in _OPTIONAL or theirs is not None)):
            wanted = repr(theirs) if theirs is not None else " or ".join(usual)
            problem = "several columns are" if found else "no column is"
            raise PayloadError(f"{rows.shown}: {problem} {wanted} ({ours}): it has {', '.join(names)[:200]}", provider=PROVIDER)
        if found:
            places[ours] = found[0]
    return places


def _numbers(rows: _Rows, place: int, name: str) -> Float64s:
    """One column as float64, an empty cell as NaN."""
    column = rows.table.column(place)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        trimmed = pc.utf8_trim_whitespace(column)
        column = pc.if_else(pc.is_in(trimmed, pa.array(_EMPTY, trimmed.type)), None, trimmed)
    try:
        return _as_array(pc.cast(column, pa.float64()))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    # Slowly, to say which: what Arrow cannot read may still be a number ("+1.5").
    values = column.to_pylist()
    read = np.array([np.nan if value is None else number(value) for value in values], np.float64)
    for row in np.flatnonzero(np.isnan(read)).tolist():
        if values[row] is not None:
            raise PayloadError(f"{rows.at(row)}: {name} {str(values[row])[:40]!r} is no number", provider=PROVIDER)
    return read


def _as_array(column: Any) -> Float64s:  # noqa: ANN401 - pyarrow has no types
    return np.array(column.to_numpy(), np.float64)


# --- stamps ------------------------------------------------------------------------------------------------------------


def _opens(rows: _Rows, place: int, form: TableForm, day: date | None) -> Int64s:
    """The open of each row, epoch seconds UTC; for 1d midnight UTC of its date."""
    column = rows.table.column(place)
    if column.null_count:
        raise PayloadError(f"{rows.at(pc.index(pc.is_null(column), value=True).as_py())}: no stamp", provider=PROVIDER)
    if form.stamp_format == "milliseconds_since_midnight":
        wall = label_of(_known(day, rows)) + _integers(rows, place) // 1000
        return _from_wall(wall, form, rows)
    kind = column.type
    if pa.types.is_timestamp(kind):
        seconds = np.array(pc.cast(column, pa.timestamp("s", kind.tz), safe=False).cast(pa.int64()).to_numpy(), np.int64)
        return _from_instants(seconds, form) if kind.tz else _from_wall(seconds, form, rows)
    if pa.types.is_date(kind):
        return _from_wall(np.array(column.cast(pa.date32()).cast(pa.int32()).to_numpy(), np.int64) * DAY, form, rows)
    if pa.types.is_integer(kind):
        return _from_instants(_epoch(_integers(rows, place), rows), form)
    return _from_text(pc.utf8_trim_whitespace(column), form, rows, place)


def _from_text(column: Any, form: TableForm, rows: _Rows, place: int) -> Int64s:  # noqa: ANN401 - pyarrow has no types
    """Stamps as text: of the format that was given, else digits since 1970, else ISO 8601."""
    if form.stamp_format != "auto":
        texts = column.to_pylist()
        return _from_wall(np.array([_by_format(text, form, rows, row) for row, text in enumerate(texts)], np.int64), form, rows)
    first = str(column[0]) if len(column) else ""
    if first.isascii() and first.isdigit() and len(first) >= 9:
        return _from_instants(_epoch(_integers(rows, place), rows), form)
    return _at_once(column, form, rows) if len(column) else np.empty(0, np.int64)


def _at_once(column: Any, form: TableForm, rows: _Rows) -> Int64s:  # noqa: ANN401 - pyarrow has no types
    """ISO 8601 by Arrow's own reading, in a tenth of the time and memory; by ours where that fails, which says on which line."""
    tails = pc.utf8_slice_codeunits(column, start=_TIME_LENGTH)
    offsets = {tail: _OFFSET.fullmatch(tail) for tail in pc.unique(tails).to_pylist()}
    try:
        if len({_offset_seconds(found[1]) is None for found in offsets.values() if found is not None}) == 1 and all(
            offsets.values()
        ):
            heads = pc.cast(pc.utf8_slice_codeunits(column, start=0, stop=_TIME_LENGTH), pa.timestamp("s"))
            wall = np.array(heads.cast(pa.int64()).to_numpy(), np.int64)
            seconds = {tail: _offset_seconds(found[1]) for tail, found in offsets.items() if found is not None}
            if None in seconds.values():
                return _from_wall(wall, form, rows)
            places = pc.index_in(tails, pa.array(list(seconds))).to_numpy()
            return _from_instants(wall - np.array(list(seconds.values()), np.int64)[places], form)
    except pa.ArrowInvalid:
        pass
    return _from_iso(column.to_pylist(), form, rows)


def _known(day: date | None, rows: _Rows) -> date:
    if day is None:
        raise PayloadError(f"{rows.shown}: no date in the name for stamps that count from midnight", provider=PROVIDER)
    return day


def _integers(rows: _Rows, place: int) -> Int64s:
    try:
        return np.array(pc.cast(rows.table.column(place), pa.int64()).to_numpy(), np.int64)
    except pa.ArrowInvalid:
        pass
    for row, text in enumerate(rows.table.column(place).to_pylist()):
        if not re.fullmatch(r"-?\d{1,18}", str(text), re.ASCII):
            raise PayloadError(f"{rows.at(row)}: stamp {str(text)[:40]!r} is no whole number", provider=PROVIDER)
    raise PayloadError(f"{rows.shown}: stamps that are no whole numbers", provider=PROVIDER)


def _epoch(numbers: Int64s, rows: _Rows) -> Int64s:
    """Seconds from seconds, milli-, micro- or nanoseconds: told by their size, which is that of a date since 1973."""
    if not len(numbers):
        return numbers
    largest = int(np.abs(numbers).max())
    for divisor in (1, 1000, 1_000_000, 1_000_000_000):
        if largest < 10**11 * divisor:
            return numbers // divisor
    raise PayloadError(f"{rows.shown}: stamp {largest} is no epoch time", provider=PROVIDER)


def _by_format(text: str, form: TableForm, rows: _Rows, row: int) -> int:
    try:
        moment = datetime.strptime(text, form.stamp_format)  # noqa: DTZ007 - its zone is the file's
    except ValueError:
        raise PayloadError(
            f"{rows.at(row)}: stamp {text[:40]!r} is not written as {form.stamp_format}", provider=PROVIDER
        ) from None
    if moment.tzinfo is not None:
        raise PayloadError(f'{rows.at(row)}: a stamp_format with an offset: leave it to "auto"', provider=PROVIDER)
    return label_of(moment.date()) + moment.hour * 3600 + moment.minute * 60 + moment.second


def _from_iso(texts: Sequence[str], form: TableForm, rows: _Rows) -> Int64s:
    """ISO 8601 with offsets, which are instants, or without, which are wall clock times; one file is written one way."""
    walls, offsets = list[str](), list[int | None]()
    known: dict[str, int | None] = {}
    for row, text in enumerate(texts):
        found = _ISO.match(text)
        tail = text[found.end() :] if found else ""
        if tail not in known:
            offset = _OFFSET.fullmatch(tail)
            if found is None or offset is None:
                raise PayloadError(f"{rows.at(row)}: stamp {text[:40]!r} is no ISO 8601 time", provider=PROVIDER)
            known[tail] = _offset_seconds(offset[1])
        elif found is None:
            raise PayloadError(f"{rows.at(row)}: stamp {text[:40]!r} is no ISO 8601 time", provider=PROVIDER)
        walls.append(found[0])
        offsets.append(known[tail])
    try:
        wall = np.array(walls, "datetime64[s]").astype(np.int64)
    except ValueError:
        row = next(row for row, text in enumerate(walls) if not _is_date(text))
        raise PayloadError(f"{rows.at(row)}: stamp {texts[row][:40]!r} is no date", provider=PROVIDER) from None
    if set(offsets) <= {None}:
        return _from_wall(wall, form, rows)
    if None in offsets:
        raise PayloadError(f"{rows.at(offsets.index(None))}: a stamp without an offset among stamps with one", provider=PROVIDER)
    return _from_instants(wall - np.array(offsets, np.int64), form)


def _is_date(text: str) -> bool:
    try:
        np.datetime64(text, "s")
    except ValueError:
        return False
    return True


def _offset_seconds(text: str | None) -> int | None:
    if text in {None, ""}:
        return None
    if text in {"Z", "UTC"}:
        return 0
    told = str(text).replace(":", "")
    return (-1 if told[0] == "-" else 1) * (int(told[1:3]) * 3600 + int(told[3:5]) * 60)


def _from_instants(instants: Int64s, form: TableForm) -> Int64s:
    if form.stamp is Stamp.DATE:
        return local_labels(instants, form.zone)
    return instants - form.interval.seconds if form.stamp is Stamp.CLOSE else instants


def _from_wall(wall: Int64s, form: TableForm, rows: _Rows) -> Int64s:
    """Wall clock times, counted as if they were UTC, as opens. A time that a clock shows twice, or never, names no instant."""
    if form.stamp is Stamp.DATE:
        return wall // DAY * DAY
    if form.zone.key == "UTC":
        return _from_instants(wall, form)
    quarters, inverse = np.unique(wall // _QUARTER, return_inverse=True)
    moments = [datetime.fromtimestamp(quarter * _QUARTER, UTC).replace(tzinfo=form.zone) for quarter in quarters.tolist()]
    first, second = ([_utc_offset(moment.replace(fold=fold)) for moment in moments] for fold in (0, 1))
    doubtful = (np.array(first) != np.array(second))[inverse] if len(wall) else np.empty(0, bool)
    if doubtful.any():
        row = int(np.flatnonzero(doubtful)[0])
        shown = datetime.fromtimestamp(int(wall[row]), UTC).replace(tzinfo=None)
        raise PayloadError(
            f"{rows.at(row)}: {shown} is shown twice or never by the clocks of {form.zone.key}: write offsets, or UTC",
            provider=PROVIDER,
        )
    return _from_instants(wall - np.array(first, np.int64)[inverse], form)


def _utc_offset(moment: datetime) -> int:
    offset = moment.utcoffset()
    return int(offset.total_seconds()) if offset is not None else 0
