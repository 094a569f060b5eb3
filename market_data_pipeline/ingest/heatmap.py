"""A picture of the ledger: sessions from left to right, symbols from top to bottom, and what is there of each.

What is whole is dark blue, what lacks bars is orange, the darker the more: a lone minute that is missing in a row of 32 symbols
makes the cell bright. Blue and orange stay apart in every kind of colour blindness, and whole and not whole in black and white.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.coverage import VERDICTS, Verdict
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.ingest.overview import verdict_cells

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from market_data_pipeline.domain.candles import Int64s, Interval
    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.pipeline import Pipeline

FORMATS = ("png", "svg")
# More rows than this are less than three pixels high, and more columns than this less than four wide.
MOST_ROWS, MOST_COLUMNS = 250, 250
# A label a row and column as long as they can be read; then every so many.
_MOST_LABELS, _MOST_DATES = 50, 20

# From which share of the due bars on a cell has which colour. Whole is apart: one missing minute in 390 must be seen.
_SHARES = (
    (1.0, "all that is due", "#08306b"),
    (0.99, "99 % or more of it", "#fee0b6"),
    (0.9, "90 % or more", "#fdb863"),
    (0.0, "less", "#e08214"),
)
_OTHERS = (
    ("none of it", "#7f3b08"),
    ("halted", "#cc79a7"),
    ("not due yet", "#9ecae1"),
    ("beyond every provider's reach", "#737373"),
    ("not listed", "#d0d0d0"),
    ("no session", "#ffffff"),
)
LEGEND = (*((words, colour) for _, words, colour in _SHARES), *_OTHERS)
_NONE, _HALTED, _NOT_DUE, _UNREACHABLE, _NOT_LISTED, _NO_SESSION = range(len(_SHARES), len(LEGEND))


@dataclass(frozen=True, slots=True, eq=False)
class Heatmap:
    """Verdicts of one interval by cell: ``bars`` has an axis of ``VERDICTS``, one of rows and one of columns.

    A row is one symbol, or ``symbols_a_row`` next to each other in the order of tier and name; ``labels`` names the first of each.
    A column is one session, or so many that all fit; ``sessions`` names the first of each.
    """

    interval: Interval
    bars: Int64s
    given_up: Int64s
    labels: Sequence[str]
    symbols_a_row: int
    sessions: Sequence[date]
    sessions_a_column: int
    first: date
    last: date
    symbols: int

    def total(self, verdict: Verdict) -> int:
        """The bars under one verdict, over all cells."""
        return int(self.bars[VERDICTS.index(verdict)].sum())


def heatmap_of(
    instruments: Sequence[Instrument],
    interval: Interval,
    first: date,
    last: date,
    *,
    pipeline: Pipeline,
    most_rows: int = MOST_ROWS,
    most_columns: int = MOST_COLUMNS,
) -> Heatmap:
    """The verdicts of these instruments from session ``first`` to ``last``, in at most so many rows and columns.

    InvalidInputError where there is no instrument or no session.
    """
    ordered = sorted(instruments, key=lambda instrument: (instrument.tier, instrument.symbol))
    calendars = sorted({instrument.calendar for instrument in ordered})
    days = sorted({day for name in calendars for day in pipeline.calendars(name).sessions(first, last)})
    if not ordered or not days:
        raise InvalidInputError(f"{len(ordered)} symbols and {len(days)} sessions from {first} to {last}: expected some of both")
    symbols_a_row, sessions_a_column = -(-len(ordered) // most_rows), -(-len(days) // most_columns)
    cells = verdict_cells(
        ordered,
        interval,
        first,
        last,
        pipeline=pipeline,
        row_of=[place // symbols_a_row for place in range(len(ordered))],
        column_of={day: place // sessions_a_column for place, day in enumerate(days)},
    )
    return Heatmap(
        interval=interval,
        bars=cells.bars,
        given_up=cells.given_up,
        labels=[instrument.symbol for instrument in ordered[::symbols_a_row]],
        symbols_a_row=symbols_a_row,
        sessions=days[::sessions_a_column],
        sessions_a_column=sessions_a_column,
        first=days[0],
        last=days[-1],
        symbols=len(ordered),
    )


def drawn(heatmap: Heatmap, *, format_: str = "png", dots_per_inch: int = 110) -> bytes:
    """The picture, as a file of ``format_`` holds it. The same heatmap gives the same bytes."""
    if format_ not in FORMATS:
        raise InvalidInputError(f"a picture as {format_!r}: expected one of {', '.join(FORMATS)}")
    # Here, not above: half a second that only a picture pays. Figure and canvas by hand: pyplot would keep them for ever, in a
    # state that all threads of the process share.
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    rows, columns = heatmap.bars.shape[1:]
    width, height = float(np.clip(3.5 + columns * 0.11, 9.0, 15.0)), float(np.clip(2.4 + rows * 0.17, 3.6, 12.0))
    figure = Figure(figsize=(width, height), dpi=dots_per_inch, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # imshow, not pcolormesh: one image whatever the number of cells, in svg too.
    axes.imshow(_colours(heatmap), aspect="auto", interpolation="nearest")
    _label(axes, heatmap)
    _legend(figure)
    body = io.BytesIO()
    metadata = {"Software": None} if format_ == "png" else {"Date": None}
    with mpl.rc_context({"svg.hashsalt": "market_data_pipeline"}):
        figure.savefig(body, format=format_, metadata=metadata)
    return body.getvalue()


def kinds(heatmap: Heatmap) -> npt.NDArray[np.uint8]:
    """Which entry of the legend each cell has: an index into ``LEGEND``."""
    of: dict[Verdict, Int64s] = {verdict: heatmap.bars[place] for place, verdict in enumerate(VERDICTS)}
    there = of[Verdict.PRESENT] + of[Verdict.CONFIRMED_EMPTY]
    due = there + of[Verdict.MISSING]
    share = np.divide(there, due, out=np.zeros(due.shape), where=due > 0)
    rules = {
        # A halt of most of a day is a halt, though its few bars before are there.
        "halt": (of[Verdict.HALTED] > due, _HALTED),
        **{words: ((there > 0) & (share >= least), place) for place, (least, words, _) in enumerate(_SHARES)},
        "none": (due > 0, _NONE),
        "halted": (of[Verdict.HALTED] > 0, _HALTED),
        "pending": (of[Verdict.PENDING] > 0, _NOT_DUE),
        "unreachable": (of[Verdict.UNREACHABLE] > 0, _UNREACHABLE),
        "not listed": (of[Verdict.NOT_LISTED] > 0, _NOT_LISTED),
    }
    conditions, choices = zip(*rules.values(), strict=True)
    entries: npt.NDArray[np.uint8] = np.select(conditions, choices, default=_NO_SESSION).astype(np.uint8)
    return entries


def _colours(heatmap: Heatmap) -> npt.NDArray[np.uint8]:
    palette = np.array([[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for _, colour in LEGEND], np.uint8)
    painted: npt.NDArray[np.uint8] = palette[kinds(heatmap)]
    return painted


def _label(axes: Axes, heatmap: Heatmap) -> None:
    rows, columns = heatmap.bars.shape[1:]
    every = -(-rows // _MOST_LABELS)
    axes.set_yticks(range(0, rows, every), heatmap.labels[::every], fontsize=7)
    places = range(0, columns, -(-columns // _MOST_DATES))
    axes.set_xticks(places, [heatmap.sessions[place].isoformat() for place in places], rotation=45, ha="right", fontsize=7)
    due = sum(heatmap.total(verdict) for verdict in (Verdict.PRESENT, Verdict.CONFIRMED_EMPTY, Verdict.MISSING))
    missing, given_up = heatmap.total(Verdict.MISSING), int(heatmap.given_up.sum())
    title = f"{heatmap.interval} bars of {heatmap.symbols:,} symbols, {heatmap.first} to {heatmap.last}"
    said = f"{missing:,} of {due:,} due bars are missing" if missing else f"nothing of {due:,} due bars is missing"
    axes.set_title(f"{title}\n{said}" + (f", {given_up:,} of them given up" if given_up else ""), fontsize=9)
    scale = [
        *([f"{heatmap.symbols_a_row:,} symbols a row"] if heatmap.symbols_a_row > 1 else []),
        *([f"{heatmap.sessions_a_column:,} sessions a column"] if heatmap.sessions_a_column > 1 else []),
    ]
    if scale:
        axes.set_xlabel(", ".join(scale), fontsize=8)


def _legend(figure: Figure) -> None:
    from matplotlib.patches import Patch  # noqa: PLC0415

    patches = [Patch(facecolor=colour, edgecolor="#555555", linewidth=0.4, label=words) for words, colour in LEGEND]
    figure.legend(handles=patches, loc="outside lower center", ncols=5, fontsize=7, frameon=False)
