"""Postgres' binary COPY format, to and from numpy columns. Knows nothing of candles; opens no connection."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Array = npt.NDArray[Any]

# https://www.postgresql.org/docs/current/sql-copy.html: signature, flags, length of the header's extension (none).
HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
# Postgres counts from 2000-01-01, we count from 1970-01-01.
EPOCH_SECONDS = 946_684_800
EPOCH_DAYS = 10_957
NULL_LENGTH = -1
# Encoded lazily in pieces of this many rows, so that the server parses one piece while we encode the next.
CHUNK_ROWS = 16_384

INT2, INT4, INT8, FLOAT8 = ">i2", ">i4", ">i8", ">f8"
TIMESTAMPTZ, DATE = INT8, INT4


def timestamps(epoch_micros: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Microseconds since 1970 as a timestamptz column holds them."""
    return epoch_micros - EPOCH_SECONDS * 1_000_000


def dates(epoch_days: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Days since 1970 as a date column holds them."""
    return epoch_days - EPOCH_DAYS


@dataclass(frozen=True, slots=True, eq=False)
class CopyColumn:
    """One column to send. ``kind`` is one of this module's types; a scalar stands for the same value in every row.

    ``nullable``: ``values`` is a float array whose NaN means NULL, whatever ``kind`` is.
    """

    kind: str
    values: Array | float
    nullable: bool = False


class CopyReader(io.BufferedIOBase):
    """A file to hand to ``copy_expert``: ``rows`` rows of the columns given, in the order given, encoded as they are read.

    The order of rows is kept within a piece only where all of its rows have the same columns null; COPY does not mind.
    """

    def __init__(self, columns: Sequence[CopyColumn], rows: int, *, chunk_rows: int = CHUNK_ROWS) -> None:
        self._columns = columns
        self._rows = rows
        self._chunk_rows = min(chunk_rows, max(rows, 1))
        self._templates: dict[int, npt.NDArray[np.void]] = {}
        self._pieces = self._encoded()
        self._rest = memoryview(b"")

    def read(self, size: int | None = -1, /) -> bytes:
        """At most ``size`` bytes, at least one until the end; all that is left for a negative size or None."""
        if size is None or size < 0:
            everything = bytes(self._rest) + b"".join(self._pieces)
            self._rest = memoryview(b"")
            return everything
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        taken, self._rest = self._rest[:size], self._rest[size:]
        return bytes(taken)

    def _encoded(self) -> Iterator[bytes]:
        yield HEADER
        for start in range(0, self._rows, self._chunk_rows):
            yield from self._chunk(slice(start, min(start + self._chunk_rows, self._rows)))
        yield TRAILER

    def _chunk(self, rows: slice) -> Iterator[bytes]:
        """The rows as one block for each pattern of nulls: within a block all rows have the same length."""
        patterns = np.zeros(rows.stop - rows.start, np.int64)
        values = [c.values[rows] if isinstance(c.values, np.ndarray) else None for c in self._columns]
        for place, (column, part) in enumerate(zip(self._columns, values, strict=True)):
            if column.nullable and part is not None:
                patterns |= np.isnan(part.astype(np.float64, copy=False)).astype(np.int64) << place
        first = int(patterns[0])
        if (patterns == first).all():
            yield self._block(first, values, len(patterns))
            return
        for pattern in np.unique(patterns).tolist():
            chosen = patterns == pattern
            yield self._block(pattern, [None if v is None else v[chosen] for v in values], int(chosen.sum()))

    def _block(self, pattern: int, values: Sequence[Array | None], rows: int) -> bytes:
        block = self._template(pattern)[:rows]
        for place, part in enumerate(values):
            if part is not None and not pattern >> place & 1:
                block[f"value{place}"] = part
        return block.tobytes()

    def _template(self, pattern: int) -> npt.NDArray[np.void]:
        """Records with everything that is the same in each row filled in: counts, lengths and constants."""
        if pattern not in self._templates:
            layout = [("fields", INT2)]
            for place, column in enumerate(self._columns):
                layout.append((f"length{place}", INT4))
                if not pattern >> place & 1:
                    layout.append((f"value{place}", column.kind))
            template = np.zeros(self._chunk_rows, np.dtype(layout))
            template["fields"] = len(self._columns)
            for place, column in enumerate(self._columns):
                null = pattern >> place & 1
                template[f"length{place}"] = NULL_LENGTH if null else np.dtype(column.kind).itemsize
                if not null and not isinstance(column.values, np.ndarray):
                    template[f"value{place}"] = column.values
            self._templates[pattern] = template
        return self._templates[pattern]


def decode(body: bytes | memoryview, kinds: Mapping[str, str]) -> dict[str, Array]:
    """The columns of a whole binary COPY answer, by name, in native byte order; timestamps and dates as Postgres counts them.

    Every field must be there in every row: a NULL makes ValueError (select ``coalesce(…, 'NaN')`` instead).
    """
    layout = [("fields", INT2)]
    for name, kind in kinds.items():
        layout += [(f"length of {name}", INT4), (name, kind)]
    record = np.dtype(layout)
    rows, ragged = divmod(len(body) - len(HEADER) - len(TRAILER), record.itemsize)
    if ragged or rows < 0 or bytes(body[: len(HEADER)]) != HEADER:
        raise ValueError(f"not {record.itemsize}-byte rows of a binary COPY: {len(body)} bytes")
    table = np.frombuffer(body, record, count=rows, offset=len(HEADER))
    for name, kind in kinds.items():
        if not (table[f"length of {name}"] == np.dtype(kind).itemsize).all():
            raise ValueError(f"column {name} of a binary COPY holds a NULL or another type")
    return {name: table[name].astype(np.dtype(kind).newbyteorder("=")) for name, kind in kinds.items()}
