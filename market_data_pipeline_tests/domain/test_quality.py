"""Prices held against each other and against what is stored. yfinance's bad and fixed pairs are the oracle for units and bases."""

from __future__ import annotations

import csv
from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.candles import CandleColumns
from market_data_pipeline.domain.capabilities import Basis
from market_data_pipeline.domain.ports import CorporateAction
from market_data_pipeline.domain.quality import Findings, Reference, examine
from market_data_pipeline_tests.recorded import lean_2013, recorded, yahoo_aapl_snapshots_2026, yahoo_msft_2022

FIELDS = ("open", "high", "low", "close", "volume")
DAY = 86_400
SPRING = 19_800  # 2024-03-18, in days since 1970
FIRST = date(2024, 3, 18)
CLEAN = Findings()


def days_of(close: list[float], *, start: int = SPRING) -> CandleColumns:
    """One bar a day, each a little around its close."""
    prices = np.array(close, np.float64)
    stamps = (start + np.arange(len(close))) * DAY
    return CandleColumns.of(stamps, prices * 0.999, prices * 1.004, prices * 0.996, prices, np.full(len(close), 1000.0))


def minutes_of(close: list[float]) -> CandleColumns:
    """One bar a minute, of one session."""
    return replace(days_of(close), opened_at=SPRING * DAY + 13 * 3600 + 60 * np.arange(len(close)))


def found(
    columns: CandleColumns,
    *,
    reference: Reference = Reference(),  # noqa: B008 - frozen
    actions: tuple[CorporateAction, ...] = (),
    basis: Basis = Basis.SPLIT,
    today: int = SPRING + 30,
    step: int = 60,
) -> Findings:
    return examine(
        columns,
        days=(columns.opened_at // DAY).astype(np.int32),
        places=columns.opened_at // step,
        reference=reference,
        actions=actions,
        basis=basis,
        today=today,
    )


def split(value: float, day: int) -> CorporateAction:
    return CorporateAction("split", date(1970, 1, 1) + timedelta(days=day), value)


# --- units -------------------------------------------------------------------------------------------------------------


def test_a_bar_a_hundred_times_its_neighbours_is_refused_and_nothing_else() -> None:
    findings = found(minutes_of([10.0] * 20 + [1001.0] + [10.1] * 20))
    assert findings == Findings(refused={20: "the prices are a hundred times those around them"})


def test_a_run_of_bars_at_a_hundredth_of_the_others_is_refused() -> None:
    findings = found(minutes_of([10.0] * 20 + [0.1] * 7 + [10.1] * 20))
    assert sorted(findings.refused) == list(range(20, 27))


def test_one_price_of_a_bar_in_the_other_unit_refuses_the_bar() -> None:
    columns = minutes_of([10.0] * 20)
    columns.low[7] = 0.0996
    assert dict(found(columns).refused) == {7: "low: a hundredth of the close"}


def test_two_units_in_equal_parts_are_decided_by_what_is_stored() -> None:
    columns = days_of([14.5] * 10 + [0.145] * 10)
    assert found(columns).kind == "malformed"
    stored = Reference(close=14.6, session=FIRST - timedelta(days=1))
    assert sorted(found(columns, reference=stored).refused) == list(range(10, 20))


def test_an_answer_that_is_all_in_another_unit_than_what_is_stored_is_malformed() -> None:
    findings = found(minutes_of([1450.0] * 20), reference=Reference(close=14.6, session=FIRST - timedelta(days=3)))
    assert (findings.kind, findings.reason) == ("malformed", "every price is a hundred times the stored close of 2024-03-15")


def test_a_stored_close_of_last_year_says_nothing_about_the_unit() -> None:
    assert found(minutes_of([1450.0] * 20), reference=Reference(close=14.6, session=date(2023, 3, 15))) == CLEAN


# --- bases -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [slice(None, 10), slice(10, None)], ids=["the older half", "the newer half"])
@pytest.mark.parametrize("value", [10.0, 0.1, 2.0, 1.5])
def test_a_split_that_adjusts_half_the_range_is_two_bases_in_one_answer(half: slice, value: float) -> None:
    close = np.full(20, 50.0)
    close[half] /= value
    findings = found(days_of(close.tolist()), actions=(split(value, SPRING + 22),))
    assert findings.kind == "mixed_basis"
    assert f"the {value:g}:1 split of 2024-04-09" in str(findings.reason)


def test_two_levels_in_one_session_without_a_pause_are_two_bases_whatever_is_known_of_splits() -> None:
    findings = found(minutes_of([50.0] * 30 + [5.0] * 30))
    assert findings.kind == "mixed_basis"


def test_the_first_print_after_a_halt_may_be_far_away() -> None:
    columns = minutes_of([50.0] * 30 + [5.0] * 30)
    columns.opened_at[30:] += 600
    assert found(columns) == Findings(jumps=(30,))


def test_a_crash_overnight_is_kept_and_flagged() -> None:
    assert found(days_of([50.0] * 10 + [4.0] * 10)) == Findings(jumps=(10,))


def test_a_fall_by_half_long_after_a_split_of_two_to_one_is_a_fall() -> None:
    # AAPL, 2000-09-29: 53.50 to 25.75, a hundred days after its 2:1 split of 2000-06-21.
    september = 11_220
    columns = days_of([53.5] * 10 + [25.75] * 10, start=september)
    assert found(columns, actions=(split(2.0, september - 91),), today=september + 30).kind == "ok"


def test_the_low_of_a_flash_crash_is_kept_and_flagged() -> None:
    columns = minutes_of([41.0] * 20)
    columns.low[11] = 0.01  # ACN, 2010-05-06
    assert found(columns) == Findings(jumps=(11,))


def test_unadjusted_prices_step_on_the_first_day_of_a_split() -> None:
    columns = days_of([645.0] * 10 + [92.5] * 10)
    told = (split(7.0, SPRING + 10),)
    assert found(columns, actions=told, basis=Basis.RAW) == CLEAN
    assert found(columns, actions=told, basis=Basis.SPLIT).kind == "mixed_basis"


def test_an_answer_on_another_basis_than_what_is_stored_is_not_stored() -> None:
    """The provider adjusts before the first day of the split: what we hold of the days before is on the old basis."""
    stored = Reference(close=500.0, session=FIRST - timedelta(days=1), splits=[split(10.0, SPRING + 5)])
    findings = found(minutes_of([50.0] * 30), reference=stored)
    assert findings.kind == "mixed_basis"
    assert "the 10:1 split of 2024-03-23" in str(findings.reason)


def test_the_first_day_of_a_split_is_on_the_new_basis() -> None:
    stored = Reference(close=500.0, session=FIRST - timedelta(days=1), splits=[split(10.0, SPRING)])
    assert found(minutes_of([50.0] * 30), reference=stored) == CLEAN
    assert found(minutes_of([500.0] * 30), reference=stored) == CLEAN


def test_older_days_are_held_against_the_stored_close_that_follows_them() -> None:
    stored = Reference(close=500.0, session=FIRST + timedelta(days=3), splits=[split(10.0, SPRING + 5)])
    assert found(minutes_of([50.0] * 30), reference=stored).kind == "mixed_basis"
    assert found(minutes_of([505.0] * 30), reference=stored).kind == "ok"


def test_bars_that_are_stored_already_must_come_on_the_basis_they_are_stored_on() -> None:
    columns = minutes_of([50.0] * 30)
    held = Reference(held_at=columns.opened_at[5:20], held_close=np.full(15, 500.0))
    assert found(columns, reference=held).kind == "mixed_basis"
    assert found(columns, reference=replace(held, held_close=np.full(15, 51.0))).kind == "ok"


@given(
    st.lists(st.floats(-0.2, 0.2), min_size=1, max_size=60),
    st.sampled_from([0.001, 1.0, 90_000.0]),
    st.floats(-0.5, 0.5),
)
def test_moves_as_markets_make_them_are_never_refused(moves: list[float], level: float, gap: float) -> None:
    close = level * np.exp(np.cumsum(moves))
    stored = Reference(close=float(close[0] * np.exp(gap)), session=FIRST - timedelta(days=1))
    findings = found(minutes_of(close.tolist()), reference=stored)
    assert findings == CLEAN


@given(st.sets(st.integers(0, 59), min_size=1, max_size=15), st.sampled_from([0.01, 100.0]))
def test_every_bar_in_the_wrong_unit_is_refused_and_only_those(wrong: set[int], factor: float) -> None:
    close = 20.0 * np.exp(0.01 * np.sin(np.arange(60)))
    close[sorted(wrong)] *= factor
    assert set(found(minutes_of(close.tolist())).refused) == wrong


# --- yfinance's pairs --------------------------------------------------------------------------------------------------


def pair(name: str) -> tuple[CandleColumns, CandleColumns, tuple[CorporateAction, ...]]:
    """The bad and the fixed bars of one pair, oldest first, and the splits told with them."""
    folder = recorded("yahoo_repair_yfinance")
    read = []
    for suffix in ("", "-fixed"):
        with (folder / f"{name}{suffix}.csv").open(newline="") as file:
            rows = sorted(({k.lower(): v for k, v in row.items()} for row in csv.DictReader(file)), key=stamp_of)
        stamps = [round(date.fromisoformat(stamp_of(row)[:10]).toordinal() - 719_163) * DAY for row in rows]
        clock = [int(stamp_of(row)[11:13]) * 3600 for row in rows]
        columns = [[float(row[field]) for row in rows] for field in FIELDS]
        read.append(CandleColumns.of(np.array(stamps) + np.array(clock), *columns))
    told = tuple(
        CorporateAction("split", date.fromisoformat(stamp_of(row)[:10]), float(row["stock splits"]))
        for row in rows
        if float(row["stock splits"])
    )
    return read[0], read[1], told


def stamp_of(row: dict[str, str]) -> str:
    return row.get("datetime") or row["date"]


def rows_that_differ(bad: CandleColumns, fixed: CandleColumns) -> set[int]:
    far = [np.abs(getattr(bad, name) / getattr(fixed, name) - 1) > 0.01 for name in FIELDS[:4]]
    return set(np.flatnonzero(np.logical_or.reduce(far)).tolist())


def examined(columns: CandleColumns, told: tuple[CorporateAction, ...], reference: Reference | None = None) -> Findings:
    return found(columns, actions=told, reference=reference or Reference(), today=int(columns.opened_at[-1] // DAY) + 1, step=3600)


@pytest.mark.parametrize("name", ["AET-L-1d-100x-error", "ASAI-L-1h-bad-unit"])
def test_the_bars_that_yfinance_repairs_by_a_hundred_are_the_ones_refused(name: str) -> None:
    bad, fixed, told = pair(name)
    stored = Reference(float(fixed.close[0]), date(1970, 1, 1) + timedelta(days=int(fixed.opened_at[0] // DAY) - 1))
    assert set(examined(bad, told, stored).refused) == rows_that_differ(bad, fixed)
    assert examined(fixed, told, stored) == CLEAN


def test_two_units_of_which_nothing_says_which_is_right_store_nothing() -> None:
    bad, _, told = pair("AET-L-1d-100x-error")
    assert examined(bad, told).kind == "malformed"


def test_the_split_that_yahoo_applied_to_part_of_dex_is_two_bases() -> None:
    bad, fixed, told = pair("DEX-AX-1d-bad-stock-split")
    assert examined(bad, told).kind == "mixed_basis"
    assert examined(fixed, told) == CLEAN


def test_a_dividend_that_is_missing_from_adjusted_closes_is_no_matter_of_ours() -> None:
    bad, fixed, told = pair("8TRA-DE-1d-missing-div-adjust")
    # Adjusted closes are not stored; open, high, low and close are the same in both files.
    assert rows_that_differ(bad, fixed) == set()
    assert examined(bad, told) == CLEAN


# --- real bars ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", [yahoo_msft_2022, lean_2013, yahoo_aapl_snapshots_2026], ids=["MSFT", "Lean", "AAPL"])
def test_no_real_bar_is_refused_or_flagged(of: object, tmp_path: object) -> None:
    bars = of(tmp_path)  # type: ignore[operator]
    for (interval, _), rows in bars.rows.items():
        columns = CandleColumns.of([row.opened_at for row in rows], *([getattr(row, name) for row in rows] for name in FIELDS))
        assert len(columns) > 300
        assert found(columns, today=int(columns.opened_at[-1] // DAY), step=60 if interval == "1m" else DAY) == CLEAN
