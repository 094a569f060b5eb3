"""Reads a universe CSV and judges every cell of it: entries out, or one error that names every problem. Knows no database."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, TypeVar

from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.universe import Tier, UniverseEntry, calendar_of, valid_symbol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

REQUIRED_COLUMNS = ("symbol", "exchange", "tier")
OPTIONAL_COLUMNS = ("asset_type", "currency", "adv_21d", "mkt_cap", "active_from", "active_to")
ALIAS_PREFIX = "alias_"
MOST_PROBLEMS = 20

T = TypeVar("T")

_PROVIDER = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)
_ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_ASSET_TYPE = re.compile(r"[a-z][a-z0-9_]{0,31}", re.ASCII)
# Three to five letters and not only ISO 4217: London quotes in GBp, crypto pairs in USDT.
_CURRENCY = re.compile(r"[A-Za-z]{3,5}", re.ASCII)
# An alias is put into the provider's URLs, so its alphabet is closed like a symbol's; vendors also use lower case and : & $ +.
_ALIAS = re.compile(r"[A-Za-z0-9^][A-Za-z0-9^.=/:&$+_-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class UniverseFile:
    """A universe file in which everything is valid. ``sha256`` is of its bytes: what a universe version is known by."""

    entries: tuple[UniverseEntry, ...]
    sha256: str


def read_universe_file(path: Path) -> UniverseFile:
    """The universe in the file at ``path``; InvalidInputError says why it cannot be used, problem by problem."""
    try:
        data = path.read_bytes()
    except OSError as unreadable:
        raise InvalidInputError(f"cannot read the universe file {str(path)!r}: {unreadable.strerror}") from unreadable
    return parse_universe(data, name=str(path))


def parse_universe(data: bytes, *, name: str) -> UniverseFile:
    """The universe that ``data``, the bytes of a CSV file in UTF-8, holds. ``name`` is what errors call the file.

    The first line names the columns; their order is free. A byte order mark, blank lines and spaces around a cell mean nothing.
    An empty optional cell means unknown. InvalidInputError lists up to ``MOST_PROBLEMS`` problems, each with its line.
    """
    reading = _Reading()
    entries = list(_entries(_text_of(data, name=name), reading))
    if not entries and not reading.problems:
        reading.problem(1, "the file has no symbols: expected a header line and at least one line after it")
    if reading.problems:
        raise InvalidInputError(_complaint(name, reading.problems))
    return UniverseFile(tuple(entries), hashlib.sha256(data).hexdigest())


class _Reading:
    """What has been seen so far: the problems, and on which line each symbol and alias first stood."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.first_line: dict[tuple[str, str], int] = {}

    def problem(self, line: int, text: str) -> None:
        self.problems.append(f"line {line}: {text}")

    def repeated(self, line: int, column: str, value: str) -> int | None:
        """The earlier line on which ``column`` had this value, None where this is the first."""
        first = self.first_line.setdefault((column, value), line)
        return None if first == line else first


def _complaint(name: str, problems: list[str]) -> str:
    shown = problems[:MOST_PROBLEMS]
    more = len(problems) - len(shown)
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = [f"{name}: {count}, nothing was loaded", *shown, *([f"and {more} more"] if more else [])]
    return "\n  ".join(lines)


def _text_of(data: bytes, *, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as undecodable:
        line = data.count(b"\n", 0, undecodable.start) + 1
        raise InvalidInputError(
            f"{name}: line {line}: byte 0x{data[undecodable.start]:02x} is not UTF-8: expected a CSV file saved as UTF-8"
        ) from None


def _entries(text: str, reading: _Reading) -> Iterator[UniverseEntry]:
    """The entries of the lines without a problem; the problems of the others go to ``reading``."""
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] | None = None
    try:
        for cells in lines:
            stripped = [cell.strip() for cell in cells]
            if not any(stripped):
                continue
            if columns is None:
                columns = stripped
                if not _header_is_valid(columns, lines.line_num, reading):
                    return
            elif len(stripped) != len(columns):
                reading.problem(
                    lines.line_num, f"{len(stripped)} cells: expected {len(columns)}, one for each column of the header"
                )
            elif entry := _entry(dict(zip(columns, stripped, strict=True)), lines.line_num, reading):
                yield entry
    except csv.Error as malformed:
        reading.problem(lines.line_num, f"not CSV: {malformed}")


def _header_is_valid(columns: list[str], line: int, reading: _Reading) -> bool:
    before = len(reading.problems)
    for missing in [column for column in REQUIRED_COLUMNS if column not in columns]:
        reading.problem(line, f"column {missing!r} is missing: expected {', '.join(REQUIRED_COLUMNS)} in the header")
    for column in dict.fromkeys(columns):
        if columns.count(column) > 1:
            reading.problem(line, f"column {column!r} stands {columns.count(column)} times: expected once")
        if column not in REQUIRED_COLUMNS + OPTIONAL_COLUMNS and not _is_alias_column(column):
            choices = ", ".join((*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS, f"{ALIAS_PREFIX}<provider>"))
            reading.problem(line, f"unknown column {_shown(column)}: expected one of {choices}")
    return len(reading.problems) == before


def _is_alias_column(column: str) -> bool:
    return column.startswith(ALIAS_PREFIX) and _PROVIDER.fullmatch(column.removeprefix(ALIAS_PREFIX)) is not None


def _entry(cells: Mapping[str, str], line: int, reading: _Reading) -> UniverseEntry | None:
    """The entry of one line, or None when a cell of it is a problem. Every cell is judged, not only up to the first problem."""
    before = len(reading.problems)
    for column in REQUIRED_COLUMNS:
        if not cells[column]:
            reading.problem(line, f"{column} is empty")
    this = _Line(cells, line, reading)
    symbol = this.judged("symbol", lambda text: valid_symbol(text[:64]))
    exchange = this.judged("exchange", _exchange)
    tier = this.judged("tier", _tier)
    asset_type = this.judged("asset_type", _matching(_ASSET_TYPE, "a lower-case word such as equity, etf, crypto"))
    currency = this.judged("currency", _matching(_CURRENCY, "a code such as USD"))
    adv_21d = this.judged("adv_21d", _amount)
    mkt_cap = this.judged("mkt_cap", _amount)
    active_from = this.judged("active_from", _date)
    active_to = this.judged("active_to", _date)
    an_alias = _matching(_ALIAS, "a name of up to 64 letters, digits and ^ . = / : & $ + _ -")
    aliases = {column: alias for column in cells if column.startswith(ALIAS_PREFIX) and (alias := this.judged(column, an_alias))}
    if active_from and active_to and active_from > active_to:
        reading.problem(line, f"active_from {active_from} is after active_to {active_to}")
    for column, value in (("symbol", symbol), *aliases.items()):
        if value and (first := reading.repeated(line, column, value)):
            reading.problem(line, f"{column} {value!r} stands on line {first} already: expected once in the file")
    if len(reading.problems) > before or symbol is None or exchange is None or tier is None:
        return None
    return UniverseEntry(
        symbol=symbol,
        exchange=exchange,
        tier=tier,
        asset_type=asset_type or "equity",
        currency=currency,
        adv_21d=adv_21d,
        mkt_cap=mkt_cap,
        active_from=active_from,
        active_to=active_to,
        aliases={column.removeprefix(ALIAS_PREFIX): alias for column, alias in aliases.items() if alias != symbol},
    )


@dataclass(frozen=True, slots=True)
class _Line:
    cells: Mapping[str, str]
    number: int
    reading: _Reading

    def judged(self, column: str, judge: Callable[[str], T]) -> T | None:
        """What ``judge`` makes of a cell; None where the cell is absent or empty, or became a problem."""
        text = self.cells.get(column)
        if not text:
            return None
        try:
            return judge(text)
        except ValueError as unfit:
            self.reading.problem(self.number, f"{column} {_shown(text)}: {unfit}")
        except InvalidInputError as unfit:
            self.reading.problem(self.number, str(unfit))
        return None


def _shown(value: str) -> str:
    """``value`` as an error shows it: quoted, control characters escaped, a long one cut."""
    return repr(value if len(value) <= 64 else value[:61] + "...")


def _exchange(text: str) -> str:
    calendar_of(text[:64])
    return text.upper()


def _tier(text: str) -> Tier:
    try:
        return Tier(text)
    except ValueError:
        raise ValueError(f"expected one of {', '.join(Tier)}") from None


def _matching(pattern: re.Pattern[str], expectation: str) -> Callable[[str], str]:
    def judge(text: str) -> str:
        if not pattern.fullmatch(text):
            raise ValueError(f"expected {expectation}")
        return text

    return judge


def _amount(text: str) -> float:
    try:
        amount = float(text)
    except ValueError:
        amount = math.nan
    # float() also reads "1_000", "nan" and "inf": none of them is what a person means in this file.
    if "_" in text or not math.isfinite(amount) or amount < 0:
        raise ValueError("expected a number of 0 or more, such as 1234567.8")
    return amount


def _date(text: str) -> date:
    try:
        # fromisoformat alone also takes 20240102 and 2024-W01-2.
        if _ISO_DATE.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise ValueError("expected a date such as 2024-01-31")
