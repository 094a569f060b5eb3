from __future__ import annotations

from datetime import UTC, date, datetime

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.cli.output import print_json, print_table, shortest
from market_data_pipeline.domain.candles import Interval


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (138.74000549316406, "138.74"),
        (231242.0, "231,242"),
        (1234567.5, "1,234,567.5"),
        (0.1, "0.1"),
        (97123.456789, "97,123.456789"),
        (99.61, "99.61"),
        (-2.5, "-2.5"),
    ],
)
def test_numbers_are_written_as_people_write_them(value: float, text: str) -> None:
    assert shortest(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_a_float_of_32_bits_keeps_its_value(value: float) -> None:
    assert np.float32(shortest(value).replace(",", "")) == np.float32(value)


@given(st.floats(min_value=-1e15, max_value=1e15))
def test_any_other_float_is_told_to_32_bits_at_least(value: float) -> None:
    assert float(shortest(value).replace(",", "")) == pytest.approx(value, rel=1e-7, abs=1e-45)


def test_text_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([{"what": "[bold]an error[/bold] in [link]"}], columns=["what"])
    assert "[bold]an error[/bold] in [link]" in capsys.readouterr().out


def test_a_long_table_keeps_both_ends_and_says_what_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([{"n": n} for n in range(1000)], columns=["n"], most=4)
    said = capsys.readouterr()
    assert [line.strip("│ ") for line in said.out.splitlines() if line.startswith("│")] == ["0", "1", "…", "998", "999"]
    assert "1,000 rows, 996 of them not shown" in said.err


def test_json_takes_dates_instants_and_our_enumerations(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({Interval.M1: date(2024, 12, 2), "at": datetime(2024, 12, 2, tzinfo=UTC)})
    assert orjson.loads(capsys.readouterr().out) == {"1m": "2024-12-02", "at": "2024-12-02T00:00:00+00:00"}
