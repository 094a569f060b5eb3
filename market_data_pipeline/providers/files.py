"""A directory of vendor files as a provider: users arrive with history. What lies where is said in a ``files.yaml`` beside it.

``<interval>/<SYMBOL>.csv`` (or .csv.gz, .zip, .parquet) needs no ``files.yaml``. Nothing here speaks HTTP. A file is read whole,
within a limit; a row that cannot be read refuses its file by ``file:line``: it is the user's to repair, and a part is no answer.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Literal, Self
from zoneinfo import ZoneInfo

import numpy as np
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.capabilities import Basis, Feed, RateLimit, Stamp, bars_capability
from market_data_pipeline.domain.errors import (
    ConfigurationError,
    OutOfReachError,
    TransientError,
    UnknownSymbolError,
)
from market_data_pipeline.providers.bars import (
    DAY,
    ParsedBars,
    answer_of,
    label_of,
    lay_out,
    refuse_beyond_reach,
    session_dates,
    window_of,
)
from market_data_pipeline.providers.tables import (
    EXTENSIONS,
    FileTable,
    TableForm,
    parse_table,
    read_whole,
)
from market_data_pipeline.providers.wire import Exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from market_data_pipeline.domain.capabilities import Capability
    from market_data_pipeline.domain.ports import BarsAnswer, BarsRequest, Fetch
    from market_data_pipeline.providers.registry import ProviderContext

NAME = "files"
SETTINGS_FILE = "files.yaml"
# Twenty years of minutes are 110 MB of CSV, and take a few times that while they are read.
MOST_BYTES = 128 << 20
_CACHE_BYTES = 128 << 20
# A first character that hides no file, and nothing that leads to another directory.
_SYMBOL = re.compile(r"[A-Za-z0-9^=](?:[A-Za-z0-9_^=-]|\.(?!\.)){0,31}", re.ASCII)
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_PLACEHOLDERS = {"symbol", "symbol_lower", "date"}


# --- files.yaml --------------------------------------------------------------------------------------------------------


def _zone_name(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"{name!r} is no time zone") from None
    return name


def _path(text: str) -> str:
    strange = set(_PLACEHOLDER.findall(text)) - _PLACEHOLDERS
    if strange:
        raise ValueError(f"{text!r} holds {{{min(strange)}}}: expected {', '.join(f'{{{p}}}' for p in sorted(_PLACEHOLDERS))}")
    if "{symbol" not in text:
        raise ValueError(f"{text!r} does not say where the symbol stands: {{symbol}} or {{symbol_lower}}")
    if "{date}" in text and "{date}" not in text.rpartition("/")[2]:
        raise ValueError(f"{text!r}: {{date}} belongs into the name of the file")
    if _PLACEHOLDER.sub("", text).strip("{}") != _PLACEHOLDER.sub("", text):
        raise ValueError(f"{text!r} has a brace too many")
    if text.startswith(("/", "\\")) or ".." in text:
        raise ValueError(f"{text!r} leads out of its directory")
    return text


class FileSet(BaseModel):
    """Files of one interval in one form.

    ``path``: relative to the ``files.yaml``, with {symbol}, {symbol_lower} and {date} (YYYYMMDD: one file a day); without an
    extension, any of those that can be read. ``member``: which file of a zip, where it holds several. ``columns``: ours to theirs,
    by name or, without a header, by position from 0; what is left out is found by its usual names. ``stamp``: what a row is named
    by. ``stamp_format``: "auto" (ISO 8601, or epoch seconds or milliseconds), "milliseconds_since_midnight", or a strptime format.
    ``time_zone``: of stamps without an offset. Prices are divided by ``price_divisor``, volumes multiplied by ``volume_multiplier``
    (100 where they count lots).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    interval: Literal["1m", "1h", "1d"]
    path: Annotated[str, AfterValidator(_path)]
    member: str | None = None
    header: bool = True
    skip_rows: int = Field(default=0, ge=0)
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    columns: dict[Literal["stamp", "open", "high", "low", "close", "volume", "vwap", "trades"], str | int] = Field(
        default_factory=dict
    )
    stamp: Stamp | None = None
    stamp_format: str = "auto"
    time_zone: Annotated[str, AfterValidator(_zone_name)] = "UTC"
    price_divisor: float = Field(default=1.0, gt=0)
    volume_multiplier: float = Field(default=1.0, gt=0)
    basis: Basis = Basis.SPLIT
    feed: Literal["consolidated", "sip", "iex", "cboe"] = "consolidated"
    currency: str | None = None
    float32_prices: bool = False

    @model_validator(mode="after")
    def _is_of_a_piece(self) -> Self:
        if (self.bars.is_daily) != (self.named_by is Stamp.DATE):
            raise ValueError(f"stamp: {self.named_by} does not go with {self.interval}")
        if not self.header and not {"stamp", "open", "high", "low", "close", "volume"} <= set(self.columns):
            raise ValueError("header: false needs the position of every column under columns")
        if self.stamp_format == "milliseconds_since_midnight" and "{date}" not in self.path:
            raise ValueError("stamp_format: milliseconds_since_midnight needs {date} in path")
        return self

    @property
    def bars(self) -> Interval:
        """The interval, as we name it."""
        return Interval(self.interval)

    @property
    def named_by(self) -> Stamp:
        """What a row is named by: its date for 1d, else its open, unless it says so itself."""
        return self.stamp or (Stamp.DATE if self.bars.is_daily else Stamp.OPEN)

    @property
    def form(self) -> TableForm:
        """What the reader has to know."""
        return TableForm(
            interval=self.bars,
            header=self.header,
            skip_rows=self.skip_rows,
            delimiter=self.delimiter,
            columns={str(ours): theirs for ours, theirs in self.columns.items()},
            stamp=self.named_by,
            stamp_format=self.stamp_format,
            zone=ZoneInfo(self.time_zone),
            price_divisor=self.price_divisor,
            volume_multiplier=self.volume_multiplier,
        )


class FolderSettings(BaseModel):
    """A ``files.yaml``: the sets of files below it, in the order in which they are looked through."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sets: tuple[FileSet, ...] = Field(min_length=1)


_DEFAULT = FolderSettings(sets=tuple(FileSet(interval=interval, path=f"{interval}/{{symbol}}") for interval in ("1m", "1h", "1d")))


@dataclass(frozen=True, slots=True)
class Placed:
    """A set of files and the folder that it is relative to."""

    folder: Path
    files: FileSet


def read_settings(directory: Path) -> tuple[Placed, ...]:
    """The sets of a directory and of its folders that have a ``files.yaml``, the directory's own first.

    ConfigurationError names the file and what is wrong with it, or the two sets that give one interval two meanings.
    """
    if not directory.is_dir():
        raise ConfigurationError(f"MDP_FILES_DIR: {directory} is no directory")
    folders = [directory, *sorted(path for path in directory.iterdir() if (path / SETTINGS_FILE).is_file())]
    placed = tuple(Placed(folder, files) for folder in folders for files in _settings_of(folder).sets)
    meant: dict[str, Placed] = {}
    for one in placed:
        other = meant.setdefault(one.files.interval, one)
        if (one.files.basis, one.files.feed) != (other.files.basis, other.files.feed) and _has_files(other) and _has_files(one):
            raise ConfigurationError(
                f"{one.folder / SETTINGS_FILE}: {one.files.interval} bars are {one.files.basis}, {one.files.feed} there and "
                f"{other.files.basis}, {other.files.feed} in {other.folder}: one directory has one meaning for an interval"
            )
        if not _has_files(other):
            meant[one.files.interval] = one
    return tuple(one for one in placed if _has_files(one))


def _settings_of(folder: Path) -> FolderSettings:
    path = folder / SETTINGS_FILE
    if not path.is_file():
        return _DEFAULT
    try:
        return FolderSettings.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as invalid:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in invalid.errors())
        raise ConfigurationError(f"{path}: {problems}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as unreadable:
        raise ConfigurationError(f"{path} cannot be read: {unreadable}") from None


def _has_files(placed: Placed) -> bool:
    fixed = placed.files.path.split("{", 1)[0].rpartition("/")[0]
    return (placed.folder / fixed).is_dir()


# --- the provider ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Loaded:
    """A file as read: its rows, and the digest and size of what is on the disk."""

    path: str
    table: FileTable
    sha256: str
    size: int


class FilesProvider:
    """Bars from files. Safe to use from several threads; what was read is kept, newest use first, up to 128 MiB."""

    name = NAME
    account = ""
    lacking: str | None = None
    limits: Sequence[RateLimit] = ()
    probe_symbol = "SPY"

    @classmethod
    def open(cls, context: ProviderContext) -> Self | None:
        """From MDP_FILES_DIR; None without one: there is nothing to serve from. ConfigurationError as ``read_settings``."""
        directory = context.settings.files_dir
        return cls(directory.expanduser()) if directory is not None else None

    def __init__(self, directory: Path, *, most_bytes: int = MOST_BYTES, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory.resolve()
        self._most_bytes = most_bytes
        self._clock = clock
        self._placed = read_settings(self._directory)
        sets = {interval: [p.files for p in self._placed if p.files.bars is interval] for interval in Interval}
        self._bars = MappingProxyType({interval: _capability(of_it) for interval, of_it in sets.items() if of_it})
        self._cache: OrderedDict[Path, tuple[tuple[int, int], _Loaded]] = OrderedDict()
        self._lock = Lock()

    @property
    def capabilities(self) -> Sequence[Capability]:
        """The intervals that there are files of. How far back they reach differs by symbol: beyond it, OutOfReachError."""
        return tuple(self._bars.values())

    def fetch_bars(self, request: BarsRequest, *, now: datetime) -> BarsAnswer:
        """The bars of the window that the files hold.

        Raises OutOfReachError for a window before the oldest or after the newest bar held, UnknownSymbolError where no file is of
        the symbol, PayloadError ("1m/SPY.csv:17: …") where a file cannot be read.
        """
        began = self._clock()
        asked = f"READ {request.interval} of {request.symbol[:40]}"
        exchange = Exchange(provider=NAME, symbol=request.symbol, interval=request.interval, request=asked, started_at=now)
        with exchange.on_record():
            refuse_beyond_reach(request, self._bars, now=now, provider=NAME)
            placed, loaded, parsed = self._read(request)
        exchange = replace(exchange, request=_described([one.path for one in loaded]))
        fetch = exchange.provenance(rows=len(parsed.columns), dropped=parsed.dropped)
        answer = answer_of(request, _of_files(fetch, loaded, self._clock() - began), parsed, currency=placed.files.currency)
        return replace(answer, float32_prices=placed.files.float32_prices)

    # --- finding

    def _read(self, request: BarsRequest) -> tuple[Placed, list[_Loaded], ParsedBars]:
        """The files of the set that holds most of the window, the first of equals, and the bars in them."""
        if not _SYMBOL.fullmatch(request.symbol):
            raise UnknownSymbolError(f"{request.symbol[:40]!r} cannot be the name of a file", provider=NAME)
        best: tuple[Placed, list[_Loaded], ParsedBars] | None = None
        outside: OutOfReachError | None = None
        for placed in (placed for placed in self._placed if placed.files.bars is request.interval):
            try:
                found = self._find(request, placed)
                loaded = [self._load(path, placed, day) for path, day in found or ()]
                parsed = _bars_of(loaded, request)
            except OutOfReachError as error:
                outside = error
                continue
            if found is not None and (best is None or len(parsed.columns) > len(best[2].columns)):
                best = placed, loaded, parsed
        if best is None:
            raise outside or UnknownSymbolError(f"no {request.interval} file of {request.symbol[:40]}", provider=NAME)
        return best

    def _find(self, request: BarsRequest, placed: Placed) -> list[tuple[Path, date | None]] | None:
        """The files of a set that may hold bars of the window, with the dates in their names; None where none is of the symbol."""
        if "{date}" not in placed.files.path:
            path = next(self._existing(placed, request.symbol, None), None)
            return [(path, None)] if path is not None else None
        dates = self._dates(placed, request.symbol)
        if not dates:
            return None
        wanted = [day for day in _days(request, placed) if day in dates]
        if not wanted:
            self._refuse_outside(request, label_of(min(dates)), label_of(max(dates)) + DAY)
        return [(dates[day], day) for day in wanted]

    def _existing(self, placed: Placed, symbol: str, day: date | None) -> Iterator[Path]:
        relative = placed.files.path.format(symbol=symbol, symbol_lower=symbol.lower(), date=day.strftime("%Y%m%d") if day else "")
        has_extension = relative.lower().endswith(EXTENSIONS)
        for extension in ("",) if has_extension else EXTENSIONS:
            path = (placed.folder / f"{relative}{extension}").resolve()
            # A link may lead anywhere; what it leads to is not ours to read.
            if path.is_relative_to(self._directory) and path.is_file():
                yield path

    def _dates(self, placed: Placed, symbol: str) -> dict[date, Path]:
        """The days that there are files of, one file a day."""
        before, _, after = placed.files.path.format(symbol=symbol, symbol_lower=symbol.lower(), date="{date}").partition("{date}")
        folder, prefix = placed.folder / before.rpartition("/")[0], before.rpartition("/")[2]
        found: dict[date, Path] = {}
        for path in sorted(folder.glob("*")) if folder.is_dir() else ():
            text = path.name[len(prefix) : len(prefix) + 8]
            matches = path.name.startswith(prefix + text) and path.name[len(prefix) + 8 :].startswith(after)
            if matches and re.fullmatch(r"\d{8}", text, re.ASCII):
                day = datetime.strptime(text, "%Y%m%d").date()  # noqa: DTZ007 - a date has no zone
                existing = next(self._existing(placed, symbol, day), None)
                if existing is not None:
                    found[day] = existing
        return found

    def _refuse_outside(self, request: BarsRequest, oldest: int, end: int) -> None:
        held = f"{_instant(oldest)} to {_instant(end)}"
        if request.end <= oldest or request.start >= end:
            raise OutOfReachError(f"{window_of(request)}: the files hold {held}", provider=NAME)

    def _shown(self, path: Path) -> str:
        return path.relative_to(self._directory).as_posix()

    # --- reading

    def _load(self, path: Path, placed: Placed, day: date | None) -> _Loaded:
        """The rows of a file, from memory where it has not changed since."""
        shown = self._shown(path)
        try:
            status = path.stat()
            version = (status.st_mtime_ns, status.st_size)
            with self._lock:
                known = self._cache.get(path)
                if known is not None and known[0] == version:
                    self._cache.move_to_end(path)
                    return known[1]
            whole = read_whole(path, shown=shown, member=placed.files.member, most_bytes=self._most_bytes)
        except OSError as unreadable:
            raise TransientError(f"{shown} cannot be read: {unreadable.strerror or unreadable}", provider=NAME) from None
        loaded = _Loaded(shown, parse_table(whole, placed.files.form, shown=shown, day=day), whole.sha256, whole.size_on_disk)
        self._keep(path, version, loaded)
        return loaded

    def _keep(self, path: Path, version: tuple[int, int], loaded: _Loaded) -> None:
        with self._lock:
            self._cache[path] = (version, loaded)
            self._cache.move_to_end(path)
            while len(self._cache) > 1 and sum(held.table.bytes for _, held in self._cache.values()) > _CACHE_BYTES:
                self._cache.popitem(last=False)


def _capability(sets: Sequence[FileSet]) -> Capability:
    files = sets[0]
    return bars_capability(
        files.bars,
        reach_seconds=None,
        # A file a day: a year of them is enough to have open for one answer.
        span_seconds=366 * DAY if any("{date}" in one.path for one in sets) else None,
        stamp=files.named_by,
        basis=files.basis,
        feed=Feed[files.feed.upper()],
        # A file is what it is: who replaces it asks for its bars again.
        settled_after_seconds=0,
        final_after_sessions=0,
    )


def _days(request: BarsRequest, placed: Placed) -> list[date]:
    """The days whose files may hold bars of the window, in the zone that the files are named in."""
    if request.interval.is_daily:
        first, last = session_dates(request)
    else:
        zone = ZoneInfo(placed.files.time_zone)
        first, last = (datetime.fromtimestamp(at, zone).date() for at in (request.start, request.end - 1))
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]


def _bars_of(loaded: Sequence[_Loaded], request: BarsRequest) -> ParsedBars:
    """The rows of the window, of all files."""
    if not loaded:
        return ParsedBars.empty()
    labels = np.concatenate([one.table.opened_at for one in loaded])
    if not len(labels):
        return ParsedBars.empty()
    first, last = request.start, request.end - 1
    if request.interval.is_daily:
        first, last = (label_of(session) for session in session_dates(request))
    oldest, newest = int(labels.min()), int(labels.max())
    if last < oldest or first > newest:
        raise OutOfReachError(
            f"{window_of(request)}: the files hold bars from {_instant(oldest)} to {_instant(newest)}", provider=NAME
        )
    inside = np.flatnonzero((labels >= first) & (labels <= last))
    columns = {
        # NaN is what the reader has for an empty cell, and null what everybody else has.
        name: [None if value != value else value for value in values[inside].tolist()]  # noqa: PLR0124 - true of NaN alone
        for name, values in _columns_of(loaded).items()
    }
    return lay_out(labels[inside], columns, request, provider=NAME)


def _columns_of(loaded: Sequence[_Loaded]) -> Mapping[str, np.ndarray]:
    names = loaded[0].table.columns
    return {name: np.concatenate([one.table.columns[name] for one in loaded]) for name in names}


def _of_files(fetch: Fetch, loaded: Sequence[_Loaded], seconds: float) -> Fetch:
    """``fetch`` with the size and the digest of what was read: of one file, the file's own."""
    digest = loaded[0].sha256 if len(loaded) == 1 else None
    if len(loaded) > 1:
        digest = sha256("".join(one.sha256 for one in loaded).encode()).hexdigest()
    return replace(
        fetch,
        latency_seconds=max(seconds, 0.0),
        payload_bytes=sum(one.size for one in loaded),
        payload_sha256=digest,
    )


def _described(paths: Sequence[str]) -> str:
    if len(paths) < 3:
        return f"READ {', '.join(paths)}"
    return f"READ {paths[0]} to {paths[-1]}, {len(paths)} files"


def _instant(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()
