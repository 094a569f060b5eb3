"""How a fault bends an answer before it is written down: one small pure function for each way, the same for every vendor."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from market_data_pipeline.simulator.market import PRICES, SECONDS
from market_data_pipeline.simulator.vendor import BarsAnswer, RecordsAnswer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from market_data_pipeline.domain.candles import Bools
    from market_data_pipeline.simulator.rules import Strike
    from market_data_pipeline.simulator.vendor import Answer, BarTable

    _Record = Mapping[str, Any]

# JSON has no NaN: `nan` puts this number where the literal shall stand, and the written text is changed in its place.
STAND_IN = 9876543210987654.0
REQUIRED = object()
# Numbers cannot be bent any more where they have become text, or a column has lost its name or its end.
_SHAPES = ("added", "nan", "ragged", "strings", "renamed", "other_symbol")
_SOME = {"fraction": 0.05, "minutes": None}
_ALL = {"fraction": 1.0, "minutes": None}


def bend_answer(answer: Answer, strikes: Sequence[Strike]) -> Answer:
    """``answer`` after every rule that bends answers of its kind, in order; what changes its shape comes behind all else."""
    for strike in sorted(strikes, key=lambda strike: _SHAPES.index(strike.rule.action) + 1 if strike.rule.action in _SHAPES else 0):
        action = strike.rule.action
        if isinstance(answer, BarsAnswer):
            if action in BEND_THE_PAGE:
                answer = BEND_THE_PAGE[action][0](answer, strike)
            elif action in BEND_THE_BARS:
                bend = BEND_THE_BARS[action][0]
                names = strike.rule.match.names
                answer = replace(answer, tables=[bend(t, strike) if names(t.symbol) else t for t in answer.tables])
        elif isinstance(answer, RecordsAnswer) and action in BEND_THE_RECORDS:
            answer = replace(answer, records=BEND_THE_RECORDS[action](answer.records, strike, answer.symbol))
    return answer


# --- bars --------------------------------------------------------------------------------------------------------------


def _chosen(table: BarTable, strike: Strike, *names: object) -> Bools:
    """The bars that the rule's ``minutes`` list, or its ``fraction`` of all; inside its window."""
    touched = strike.rule.match.touches(table.opened_at)
    if "minutes" in strike.settings:
        return touched & np.isin(table.opened_at, strike.settings["minutes"])
    return touched & strike.dice.chosen(table.opened_at, strike.settings["fraction"], table.symbol, *names)


def _with(table: BarTable, columns: Mapping[str, Any]) -> BarTable:
    return replace(table, columns={**table.columns, **columns})


def _followed_by(table: BarTable, stamps: Sequence[int], values: Mapping[str, float]) -> BarTable:
    """The table with a row for each of ``stamps`` behind it; what ``values`` does not name is that of the last row."""
    count = len(stamps)

    def longer(name: str, column: Any) -> Any:  # noqa: ANN401
        return np.append(column, [values.get(name, column[-1])] * count)

    return replace(
        table,
        opened_at=np.append(table.opened_at, np.asarray(stamps, np.int64)),
        columns={name: longer(name, column) for name, column in table.columns.items()},
        further={name: longer(name, column) for name, column in table.further.items()},
    )


def _flat(table: BarTable, row: int, *, volume: float) -> dict[str, float]:
    return dict.fromkeys(PRICES, float(table.columns["close"][row])) | {"volume": volume}


def _missing_minutes(table: BarTable, strike: Strike) -> BarTable:
    return table.take(~_chosen(table, strike))


def _null_minutes(table: BarTable, strike: Strike) -> BarTable:
    nulls = _chosen(table, strike)
    return _with(table, {name: np.where(nulls, np.nan, column) for name, column in table.columns.items()})


def _partial_nulls(table: BarTable, strike: Strike) -> BarTable:
    name = strike.settings["field"]
    if name not in table.columns:
        return table
    return _with(table, {name: np.where(_chosen(table, strike), np.nan, table.columns[name])})


def _volume_only(table: BarTable, strike: Strike) -> BarTable:
    nulls = _chosen(table, strike)
    return _with(table, {name: np.where(nulls, np.nan, table.columns[name]) for name in PRICES})


def _zero_prices(table: BarTable, strike: Strike) -> BarTable:
    zeros = _chosen(table, strike)
    return _with(table, {name: np.where(zeros, 0.0, table.columns[name]) for name in PRICES})


def _crossed(table: BarTable, strike: Strike) -> BarTable:
    crossed, high, low = _chosen(table, strike), table.columns["high"], table.columns["low"]
    return _with(table, {"high": np.where(crossed, low - 0.01, high), "low": np.where(crossed, high + 0.01, low)})


def _live_tick(table: BarTable, strike: Strike) -> BarTable:
    if not len(table):
        return table
    return _followed_by(table, [int(table.opened_at[-1]) + strike.settings["seconds"]], _flat(table, -1, volume=0.0))


def _forming_bar(table: BarTable, strike: Strike) -> BarTable:
    """The bar that has not ended yet, as if it had: flat at the last price, with little volume."""
    seconds = SECONDS[table.interval]
    opened_at = strike.scene.now - strike.scene.now % seconds
    if not len(table) or opened_at <= table.opened_at[-1]:
        return table
    return _followed_by(table, [opened_at], _flat(table, -1, volume=7.0))


def _future_bar(table: BarTable, strike: Strike) -> BarTable:
    if not len(table):
        return table
    seconds = SECONDS[table.interval]
    at = strike.scene.now + strike.settings["seconds"]
    return _followed_by(table, [at - (at - int(table.opened_at[-1])) % seconds], {})


def _outside_window(table: BarTable, strike: Strike) -> BarTable:
    if not len(table) or strike.asked.start is None or strike.asked.end is None:
        return table
    seconds, count = SECONDS[table.interval], strike.settings["bars"]
    before = [strike.asked.start - seconds * n for n in range(count, 0, -1)]
    longer = _followed_by(table, [*before, *(strike.asked.end + seconds * n for n in range(count))], {})
    return longer.take(np.argsort(longer.opened_at, kind="stable"))


def _post_market_leak(table: BarTable, strike: Strike) -> BarTable:
    """Flat bars after the close: of short sessions, which is where vendors let them through, or of all."""
    grid = strike.scene.market.grid(table.symbol)
    if not len(table) or table.interval == "1d":
        return table
    first, last = np.searchsorted(grid.closes_at, table.opened_at[0], "right"), np.searchsorted(grid.opens_at, table.opened_at[-1])
    leaky = grid.is_short if strike.settings["days"] == "short" else np.ones(len(grid.opens_at), bool)
    seconds = SECONDS[table.interval]
    for place in range(int(first), int(last) + 1):
        if place < len(leaky) and leaky[place]:
            closes_at = int(grid.closes_at[place])
            inside = np.flatnonzero((table.opened_at >= grid.opens_at[place]) & (table.opened_at < closes_at))
            if len(inside):
                stamps = [closes_at + seconds * n for n in range(strike.settings["bars"])]
                table = _followed_by(table, stamps, _flat(table, int(inside[-1]), volume=100.0))
    return table.take(np.argsort(table.opened_at, kind="stable"))


def _shifted(table: BarTable, strike: Strike) -> BarTable:
    return replace(table, opened_at=table.opened_at + strike.settings["seconds"])


def _close_labelled(table: BarTable, strike: Strike) -> BarTable:  # noqa: ARG001 - every action takes the same
    return replace(table, opened_at=table.opened_at + SECONDS[table.interval])


def _duplicate(table: BarTable, strike: Strike) -> BarTable:
    again = _chosen(table, strike)
    rows = np.repeat(np.arange(len(again)), 1 + again)
    doubled = table.take(rows)
    if not strike.settings["conflicting"]:
        return doubled
    second = np.diff(rows, prepend=-1) == 0
    return _with(doubled, {name: np.where(second, doubled.columns[name] * 1.01, doubled.columns[name]) for name in PRICES})


def _out_of_order(table: BarTable, strike: Strike) -> BarTable:
    order = np.argsort([strike.dice.share("order", stamp) for stamp in table.opened_at.tolist()], kind="stable")
    return table.take(order)


def _ragged(table: BarTable, strike: Strike) -> BarTable:
    name = strike.settings["field"]
    return _with(table, {name: table.columns[name][: -strike.settings["rows"]]}) if name in table.columns else table


def _unit(table: BarTable, strike: Strike) -> BarTable:
    factor = np.where(_chosen(table, strike), strike.settings["factor"], 1.0)
    names = PRICES if strike.settings["of"] == "prices" else ("volume",)
    return _with(table, {name: table.columns[name] * factor for name in names})


def _split_basis(table: BarTable, strike: Strike) -> BarTable:
    factor = np.where(_chosen(table, strike), strike.settings["factor"], 1.0)
    return _with(table, {name: np.round(table.columns[name] * factor, 4) for name in PRICES}) if len(table) else table


def _noise(table: BarTable, strike: Strike) -> BarTable:
    """The same prices, as if each call had gone through other floating-point arithmetic."""
    sign = np.where(strike.dice.chosen(table.opened_at, 0.5, table.symbol), 1.0, -1.0)
    return _with(table, {name: table.columns[name] * (1 + sign * strike.settings["relative"]) for name in PRICES})


def _fractional_volume(table: BarTable, strike: Strike) -> BarTable:
    return _with(table, {"volume": table.columns["volume"] + np.where(_chosen(table, strike), 0.618093, 0.0)})


def _late_correction(table: BarTable, strike: Strike) -> BarTable:
    """Until ``seconds`` after its end a chosen bar is as first printed: with half its volume, and it closes where it opened."""
    settled_at = table.opened_at + SECONDS[table.interval] + strike.settings["seconds"]
    return _as_first_printed(table, _chosen(table, strike) & (strike.scene.now < settled_at))


def _as_first_printed(table: BarTable, early: Bools) -> BarTable:
    close, volume = table.columns["close"], table.columns["volume"]
    return _with(
        table,
        {"close": np.where(early, table.columns["open"], close), "volume": np.where(early, np.floor(volume / 2), volume)},
    )


def _other_backend(table: BarTable, strike: Strike) -> BarTable:
    """Another server of the same vendor: it lacks some bars and has other numbers in others, always the same ones."""
    touched = strike.rule.match.touches(table.opened_at)
    differs = touched & strike.dice.chosen(table.opened_at, strike.settings["differs"], table.symbol, "differs")
    lacks = touched & strike.dice.chosen(table.opened_at, strike.settings["lacks"], table.symbol, "lacks")
    return _as_first_printed(table, differs).take(~lacks)


def _barren(table: BarTable, strike: Strike) -> BarTable:
    return table.take(np.empty(0, np.int64)) if strike.dice.share("barren", table.symbol) < strike.settings["share"] else table


def _strings(table: BarTable, strike: Strike) -> BarTable:  # noqa: ARG001
    def text(column: Any) -> list[str | None]:  # noqa: ANN401
        values = column if isinstance(column, list) else column.tolist()
        return [None if value is None or value != value else str(value) for value in values]  # noqa: PLR0124 - NaN is what differs from itself

    return _with(table, {name: text(column) for name, column in table.columns.items()})


def _other_symbol(table: BarTable, strike: Strike) -> BarTable:
    return replace(table, symbol=strike.settings["symbol"])


def _other_currency(table: BarTable, strike: Strike) -> BarTable:
    return replace(table, currency=strike.settings["currency"])


def _renamed(table: BarTable, strike: Strike) -> BarTable:
    old, new = strike.settings["field"], strike.settings["to"]
    return replace(table, columns={new if name == old else name: column for name, column in table.columns.items()})


def _added(table: BarTable, strike: Strike) -> BarTable:
    return _with(table, {strike.settings["name"]: table.columns["close"]})


def _nan(table: BarTable, strike: Strike) -> BarTable:  # noqa: ARG001
    """The first number of every price column becomes a literal that JSON does not have."""
    if not len(table):
        return table
    return _with(table, {name: np.concatenate([[STAND_IN], table.columns[name][1:]]) for name in PRICES})


# --- pages -------------------------------------------------------------------------------------------------------------


def _lost_page_token(answer: BarsAnswer, strike: Strike) -> BarsAnswer:  # noqa: ARG001
    return replace(answer, next_page="")


def _repeated_page(answer: BarsAnswer, strike: Strike) -> BarsAnswer:  # noqa: ARG001
    """The link to the next page leads to this one. The first page has no name: there, the last link given is given again."""
    return replace(answer, next_page=answer.page or answer.next_page)


def _truncated_page(answer: BarsAnswer, strike: Strike) -> BarsAnswer:
    """The page breaks off, the count it declares and the link onwards do not know."""
    left = int(answer.count * strike.settings["keep"])
    tables = []
    for table in answer.tables:
        tables.append(table.take(np.arange(min(left, len(table)))))
        left -= len(tables[-1])
    return replace(answer, tables=tables, declared=answer.count)


# --- records -----------------------------------------------------------------------------------------------------------


def _some_records(records: Sequence[_Record], strike: Strike, symbol: str) -> list[bool]:
    fraction = strike.settings.get("fraction", 1.0)
    return [strike.dice.share("record", symbol, place) < fraction for place in range(len(records))]


def _numbers_of(record: _Record) -> list[str]:
    return [name for name, value in record.items() if isinstance(value, int | float) and not isinstance(value, bool)]


def _changed(change: Callable[[_Record, Strike], _Record]) -> Callable[[Sequence[_Record], Strike, str], Sequence[_Record]]:
    def bend(records: Sequence[_Record], strike: Strike, symbol: str) -> Sequence[_Record]:
        chosen = _some_records(records, strike, symbol)
        return [change(record, strike) if struck else record for record, struck in zip(records, chosen, strict=True)]

    return bend


def _missing_records(records: Sequence[_Record], strike: Strike, symbol: str) -> Sequence[_Record]:
    chosen = _some_records(records, strike, symbol)
    return [record for record, struck in zip(records, chosen, strict=True) if not struck]


def _repeated_records(records: Sequence[_Record], strike: Strike, symbol: str) -> Sequence[_Record]:
    chosen = _some_records(records, strike, symbol)
    return [record for record, struck in zip(records, chosen, strict=True) for _ in range(1 + struck)]


def _shuffled_records(records: Sequence[_Record], strike: Strike, symbol: str) -> Sequence[_Record]:
    order = sorted(range(len(records)), key=lambda place: strike.dice.share("order", symbol, place))
    return [records[place] for place in order]


def _no_records(records: Sequence[_Record], strike: Strike, symbol: str) -> Sequence[_Record]:
    return [] if strike.dice.share("barren", symbol) < strike.settings["share"] else records


def _nan_records(records: Sequence[_Record], strike: Strike, symbol: str) -> Sequence[_Record]:  # noqa: ARG001
    return [{**record, **dict.fromkeys(_numbers_of(record)[:4], STAND_IN)} for record in records[:1]] + list(records[1:])


def _renamed_field(record: _Record, strike: Strike) -> _Record:
    old, new = strike.settings["field"], strike.settings["to"]
    return {new if name == old else name: value for name, value in record.items()}


# What each action may be told, with its default. A default of REQUIRED must be given.
BEND_THE_BARS: Mapping[str, tuple[Callable[[BarTable, Strike], BarTable], Mapping[str, Any]]] = {
    "missing_minutes": (_missing_minutes, _SOME),
    "null_minutes": (_null_minutes, _SOME),
    "partial_nulls": (_partial_nulls, {**_SOME, "field": "high"}),
    "volume_only": (_volume_only, _SOME),
    "zero_prices": (_zero_prices, _SOME),
    "crossed": (_crossed, _SOME),
    "live_tick": (_live_tick, {"seconds": 84}),
    "forming_bar": (_forming_bar, {}),
    "future_bar": (_future_bar, {"seconds": 3600}),
    "outside_window": (_outside_window, {"bars": 3}),
    "post_market_leak": (_post_market_leak, {"bars": 5, "days": "short"}),
    "shifted": (_shifted, {"seconds": 60}),
    "close_labelled": (_close_labelled, {}),
    "duplicate": (_duplicate, {**_SOME, "conflicting": False}),
    "out_of_order": (_out_of_order, {}),
    "ragged": (_ragged, {"field": "high", "rows": 1}),
    "unit": (_unit, {**_ALL, "factor": 100.0, "of": "prices"}),
    "split_basis": (_split_basis, {**_ALL, "factor": 4.0}),
    "noise": (_noise, {"relative": 1e-7}),
    "fractional_volume": (_fractional_volume, _ALL),
    "late_correction": (_late_correction, {**_SOME, "seconds": 900}),
    "other_backend": (_other_backend, {"lacks": 0.02, "differs": 0.03}),
    "barren": (_barren, {"share": 1.0}),
    "strings": (_strings, {}),
    "other_symbol": (_other_symbol, {"symbol": REQUIRED}),
    "other_currency": (_other_currency, {"currency": "GBp"}),
    "renamed": (_renamed, {"field": "volume", "to": "vol"}),
    "added": (_added, {"name": "previous_close"}),
    "nan": (_nan, {"literal": "NaN"}),
}
BEND_THE_PAGE: Mapping[str, tuple[Callable[[BarsAnswer, Strike], BarsAnswer], Mapping[str, Any]]] = {
    "lost_page_token": (_lost_page_token, {}),
    "repeated_page": (_repeated_page, {}),
    "truncated_page": (_truncated_page, {"keep": 0.5}),
}
# The same words for answers that are not bars: the settings are those above.
BEND_THE_RECORDS: Mapping[str, Callable[[Sequence[_Record], Strike, str], Sequence[_Record]]] = {
    "missing_minutes": _missing_records,
    "null_minutes": _changed(lambda record, _: {**record, **dict.fromkeys(_numbers_of(record))}),
    "partial_nulls": _changed(lambda record, strike: {**record, strike.settings["field"]: None}),
    "duplicate": _repeated_records,
    "out_of_order": _shuffled_records,
    "barren": _no_records,
    "unit": _changed(
        lambda record, strike: {
            name: value * strike.settings["factor"] if isinstance(value, float) else value for name, value in record.items()
        }
    ),
    "strings": _changed(lambda record, _: {**record, **{name: str(record[name]) for name in _numbers_of(record)}}),
    "other_symbol": _changed(
        lambda record, strike: {**record, **({"symbol": strike.settings["symbol"]} if "symbol" in record else {})}
    ),
    "renamed": _changed(_renamed_field),
    "added": _changed(lambda record, strike: {**record, strike.settings["name"]: 1}),
    "nan": _nan_records,
}
