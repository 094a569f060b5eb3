"""What each cell of the picture is coloured as, and that the picture is a file that can be compared, at any size."""

from __future__ import annotations

import subprocess
import sys
from datetime import date, timedelta

import numpy as np
import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.coverage import VERDICTS, Verdict
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.ingest.heatmap import LEGEND, Heatmap, drawn, kinds

FIRST = date(2024, 1, 2)


def heatmap(*cells: dict[Verdict, int], rows: int = 1, columns: int = 1, symbols_a_row: int = 1) -> Heatmap:
    """Cells one below the other, or as many of the first as ``rows`` and ``columns`` say."""
    if cells and (rows, columns) == (1, 1):
        rows = len(cells)
    bars = np.zeros((len(VERDICTS), rows, columns), np.int64)
    for row in range(rows):
        for verdict, count in cells[row % len(cells)].items():
            bars[VERDICTS.index(verdict), row] = count
    return Heatmap(
        interval=Interval.M1,
        bars=bars,
        given_up=np.zeros((rows, columns), np.int64),
        labels=[f"SYM{row}" for row in range(rows)],
        symbols_a_row=symbols_a_row,
        sessions=[FIRST + timedelta(days=day) for day in range(columns)],
        sessions_a_column=1,
        first=FIRST,
        last=FIRST + timedelta(days=columns - 1),
        symbols=rows * symbols_a_row,
    )


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ({Verdict.PRESENT: 390}, "all that is due"),
        ({Verdict.PRESENT: 200, Verdict.CONFIRMED_EMPTY: 190}, "all that is due"),
        ({Verdict.PRESENT: 60, Verdict.PENDING: 330}, "all that is due"),
        ({Verdict.PRESENT: 389, Verdict.MISSING: 1}, "99 % or more of it"),
        ({Verdict.PRESENT: 12_479, Verdict.MISSING: 1}, "99 % or more of it"),
        ({Verdict.PRESENT: 360, Verdict.MISSING: 30}, "90 % or more"),
        ({Verdict.PRESENT: 1, Verdict.MISSING: 389}, "less"),
        ({Verdict.MISSING: 390}, "none of it"),
        ({Verdict.PRESENT: 10, Verdict.HALTED: 380}, "halted"),
        ({Verdict.PRESENT: 385, Verdict.HALTED: 5}, "all that is due"),
        ({Verdict.PENDING: 390}, "not due yet"),
        ({Verdict.UNREACHABLE: 390}, "beyond every provider's reach"),
        ({Verdict.NOT_LISTED: 390}, "not listed"),
        ({}, "no session"),
    ],
)
def test_a_cell_is_called_by_what_is_in_it(cell: dict[Verdict, int], words: str) -> None:
    [[entry]] = kinds(heatmap(cell)).tolist()
    assert LEGEND[entry][0] == words


def test_no_two_entries_of_the_legend_share_a_colour() -> None:
    assert len({colour for _, colour in LEGEND}) == len({words for words, _ in LEGEND}) == len(LEGEND)


def test_whole_and_not_whole_differ_in_lightness_alone() -> None:
    """Who sees no colours at all still sees a hole: the least difference of luminance (ITU-R BT.709) between them is a fifth."""

    def luminance(colour: str) -> float:
        red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    whole, *lacking = (luminance(colour) for _, colour in LEGEND[:5])
    assert all(abs(whole - lightness) > 0.05 for lightness in lacking)
    assert all(lightness - whole > 0.2 for lightness in lacking[:3])


@pytest.mark.parametrize(("format_", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_the_same_ledger_is_the_same_file(format_: str, begins: bytes) -> None:
    ledger = heatmap({Verdict.PRESENT: 390}, {Verdict.PRESENT: 380, Verdict.MISSING: 10})
    first = drawn(ledger, format_=format_)
    assert first.startswith(begins)
    assert drawn(ledger, format_=format_) == first


@pytest.mark.parametrize(("rows", "columns", "symbols_a_row"), [(1, 1, 1), (10, 5, 1), (250, 250, 32)])
def test_pictures_of_one_symbol_and_of_thousands_are_drawn_without_a_warning(rows: int, columns: int, symbols_a_row: int) -> None:
    picture = drawn(heatmap({Verdict.PRESENT: 390}, rows=rows, columns=columns, symbols_a_row=symbols_a_row))
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 400_000


def test_another_kind_of_file_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="'pdf': expected one of png, svg"):
        drawn(heatmap({Verdict.PRESENT: 390}), format_="pdf")


def test_drawing_leaves_pyplot_and_its_state_alone_and_importing_does_not_wait_for_matplotlib() -> None:
    program = (
        "import sys; import market_data_pipeline.ingest.heatmap; assert 'matplotlib' not in sys.modules;"
        "from market_data_pipeline_tests.ingest.test_heatmap import *; drawn(heatmap({Verdict.PRESENT: 1}));"
        "print('matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["True", "False"]
