"""Records of an answer (quotes, contracts), read field by field: each becomes a value or is refused with its reason. No I/O."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from market_data_pipeline.domain.ports import RefusedRecord
from market_data_pipeline.providers.wire import number, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_T = TypeVar("_T")
# 9999-12-31: a stamp beyond it is in milliseconds, or nonsense.
_LAST_EPOCH = 253_402_300_799
# OCC's names: the class, yymmdd, C or P, the strike in thousandths. A digit in the class marks adjusted and mini contracts.
_OCC = re.compile(r"(?P<root>[A-Z][A-Z0-9.]{0,9})(?P<expiry>\d{6})(?P<right>[CP])(?P<strike>\d{8})", re.ASCII)


class UnusableRecordError(Exception):
    """A record breaks a law, and the text says which. Caught where the record is at hand: it never leaves an adapter."""


def refused(record: object, reason: str) -> RefusedRecord:
    """``record`` as JSON text, to be kept with its reason."""
    return RefusedRecord(json.dumps(record, default=str), reason)


def read_records(
    records: Iterable[object], read: Callable[[Record], _T], *, name: Callable[[_T], str], known: Iterable[_T] = ()
) -> tuple[list[_T], list[RefusedRecord]]:
    """What ``read`` makes of each record, in the order received, and those it refused: every record is in one of the two.

    Of two with one ``name`` the first is kept and the second refused; ``known`` came before all of them.
    """
    seen = {name(value) for value in known}
    values: list[_T] = []
    refusals: list[RefusedRecord] = []
    for record in records:
        try:
            value = read(Record.of(record))
        except UnusableRecordError as unusable:
            refusals.append(refused(record, str(unusable)))
            continue
        if name(value) in seen:
            refusals.append(refused(record, f"a second record of {name(value)}"))
            continue
        seen.add(name(value))
        values.append(value)
    return values, refusals


@dataclass(frozen=True, slots=True)
class Record:
    """One object of an answer. A method gives None where its field is absent or null; UnusableRecordError where it cannot be."""

    fields: Mapping[str, Any]

    @classmethod
    def of(cls, value: object) -> Record:
        """``value``, which must be an object."""
        if not isinstance(value, dict):
            raise UnusableRecordError(f"no object: {shown(value)}")
        return cls(value)

    def signed(self, name: str) -> float | None:
        """Any finite number; one that came as text is read."""
        value = self.fields.get(name)
        if value is None:
            return None
        found = number(value)
        if math.isfinite(found):
            return found
        is_number = isinstance(value, float | int) and not isinstance(value, bool)
        raise UnusableRecordError(f"{name} is {'not finite' if is_number else f'no number: {shown(value)}'}")

    def amount(self, name: str) -> float | None:
        """A number that cannot be negative, and may be 0."""
        found = self.signed(name)
        if found is not None and found < 0:
            raise UnusableRecordError(f"{name} is negative: {found:g}")
        return found

    def price(self, name: str) -> float | None:
        """A number that cannot be negative. 0 is how vendors say that there is none: None."""
        return self.amount(name) or None

    def text(self, name: str) -> str | None:
        """Text as sent, None where it is empty."""
        value = self.fields.get(name)
        if value is not None and not isinstance(value, str):
            raise UnusableRecordError(f"{name} is no text: {shown(value)}")
        return value or None

    def epoch(self, name: str) -> datetime | None:
        """Epoch seconds as an instant, UTC; 0 is none."""
        seconds = self.amount(name)
        if not seconds:
            return None
        if seconds > _LAST_EPOCH:
            raise UnusableRecordError(f"{name} is no time: {seconds:g}")
        return datetime.fromtimestamp(seconds, UTC)


@dataclass(frozen=True, slots=True)
class ContractName:
    """What the name of an option says: its class, last day, "C" or "P", and strike."""

    root: str
    expiry: date
    right: str
    strike: float

    @classmethod
    def of(cls, name: object) -> ContractName:
        """``name`` taken apart, such as AAPL250228C00110000; UnusableRecordError where it is no OCC name."""
        found = _OCC.fullmatch(name) if isinstance(name, str) else None
        if found is None:
            raise UnusableRecordError(f"no name of a contract: {shown(name)}")
        digits = found["expiry"]
        try:
            expiry = date(2000 + int(digits[:2]), int(digits[2:4]), int(digits[4:]))
        except ValueError:
            raise UnusableRecordError(f"no date in the name of the contract: {shown(name)}") from None
        strike = int(found["strike"]) / 1000
        if not strike:
            raise UnusableRecordError(f"no strike in the name of the contract: {shown(name)}")
        return cls(found["root"], expiry, found["right"], strike)
