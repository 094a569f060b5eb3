from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.storage.binary import (
    DATE,
    FLOAT8,
    HEADER,
    INT2,
    INT4,
    INT8,
    TIMESTAMPTZ,
    TRAILER,
    CopyColumn,
    CopyReader,
    dates,
    decode,
    timestamps,
)

int4s = st.integers(-(2**31), 2**31 - 1)


def drained(reader: CopyReader, size: int) -> bytes:
    pieces = []
    while piece := reader.read(size):
        assert len(piece) <= size
        pieces.append(piece)
    return b"".join(pieces)


def test_a_row_is_encoded_as_the_manual_says() -> None:
    columns = [CopyColumn(INT4, np.array([7])), CopyColumn(FLOAT8, np.array([1.5])), CopyColumn(INT2, 3)]

    expected = b"PGCOPY\n\xff\r\n\x00" + struct.pack("!ii", 0, 0) + struct.pack("!hiiidih", 3, 4, 7, 8, 1.5, 2, 3) + b"\xff\xff"
    assert CopyReader(columns, 1).read() == expected


def test_nan_of_a_nullable_column_is_null_and_of_any_other_is_nan() -> None:
    nan = np.array([np.nan])

    assert CopyReader([CopyColumn(INT8, nan, nullable=True)], 1).read() == HEADER + struct.pack("!hi", 1, -1) + TRAILER
    assert CopyReader([CopyColumn(FLOAT8, nan)], 1).read() == HEADER + struct.pack("!hid", 1, 8, np.nan) + TRAILER


def test_no_rows_are_a_header_and_a_trailer() -> None:
    assert CopyReader([CopyColumn(INT4, np.empty(0, np.int32))], 0).read() == HEADER + TRAILER


@given(
    rows=st.lists(st.tuples(int4s, st.floats(allow_nan=False)), max_size=40), chunk_rows=st.integers(1, 7), size=st.integers(1, 99)
)
def test_what_is_encoded_is_decoded_whatever_the_pieces(rows: list[tuple[int, float]], chunk_rows: int, size: int) -> None:
    numbers = np.array([r[0] for r in rows], np.int32)
    prices = np.array([r[1] for r in rows], np.float64)
    columns = [CopyColumn(INT4, numbers), CopyColumn(FLOAT8, prices), CopyColumn(INT2, 9)]

    body = drained(CopyReader(columns, len(rows), chunk_rows=chunk_rows), size)

    decoded = decode(body, {"number": INT4, "price": FLOAT8, "nine": INT2})
    assert decoded["number"].tolist() == numbers.tolist()
    assert decoded["price"].tobytes() == prices.tobytes()
    assert decoded["nine"].tolist() == [9] * len(rows)


@given(values=st.lists(st.none() | st.integers(0, 1000), min_size=1, max_size=30), chunk_rows=st.integers(1, 7))
def test_rows_with_nulls_among_rows_without_lose_nothing(values: list[int | None], chunk_rows: int) -> None:
    known = np.array([np.nan if v is None else v for v in values])
    numbers = np.arange(len(values))
    columns = [CopyColumn(INT4, numbers), CopyColumn(INT8, known, nullable=True)]

    body = CopyReader(columns, len(values), chunk_rows=chunk_rows).read()

    assert sorted(rows_of(body)) == [(n, v) for n, v in enumerate(values)]


def rows_of(body: bytes) -> list[tuple[int, int | None]]:
    """(int4, nullable int8) rows, read field by field as the manual describes them."""
    rows = []
    at = len(HEADER)
    while body[at : at + 2] != TRAILER:
        assert struct.unpack_from("!hi", body, at) == (2, 4)
        number, length = struct.unpack_from("!ii", body, at + 6)
        at += 14
        value = None
        if length == 8:
            (value,) = struct.unpack_from("!q", body, at)
            at += 8
        rows.append((number, value))
    assert at == len(body) - 2
    return rows


def test_times_are_counted_from_the_year_2000() -> None:
    assert TIMESTAMPTZ == INT8
    assert DATE == INT4
    assert timestamps(np.array([946_684_800_000_001])).tolist() == [1]
    assert dates(np.array([10_957, 0])).tolist() == [0, -10_957]


def test_an_answer_with_a_null_is_refused() -> None:
    body = CopyReader([CopyColumn(FLOAT8, np.array([np.nan, 1.0]), nullable=True)], 2).read()

    with pytest.raises(ValueError, match="binary COPY"):
        decode(body, {"price": FLOAT8})


def test_an_answer_that_is_cut_short_is_refused() -> None:
    body = CopyReader([CopyColumn(FLOAT8, np.array([1.0]))], 1).read()

    with pytest.raises(ValueError, match="binary COPY"):
        decode(body[:-3], {"price": FLOAT8})
