from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline_tests.cli.builders import LATER, MONDAY, TUESDAY, hours, pipeline_of, store, universe_file

if TYPE_CHECKING:
    from market_data_pipeline_tests.cli.conftest import Mdp

MINUTES = ("--interval", "1m", "--start", "2024-12-02", "--end", "2024-12-02")
DAYS = ("--interval", "1d", "--start", "2024-12-02", "--end", "2024-12-06")


@pytest.fixture
def stocked(mdp: Mdp) -> Mdp:
    """Monday's minutes of AAPL without the third, two of them revised an hour later; two daily bars."""
    mdp("universe", "load", universe_file(mdp.home))
    with pipeline_of(mdp) as pipeline:
        store(pipeline, "AAPL", MONDAY, lacking=[2])
        store(
            pipeline,
            "AAPL",
            MONDAY,
            lacking=[slot for slot in range(390) if slot not in {0, 5}],
            price=200.0,
            known_at=LATER + hours(1),
        )
        store(pipeline, "AAPL", MONDAY, interval=Interval.D1)
        store(pipeline, "AAPL", TUESDAY, interval=Interval.D1, price=110.0)
    return mdp


def test_candles_are_printed_as_they_are_stored(stocked: Mdp) -> None:
    rows = stocked("candles", "AAPL", *MINUTES, "--json").json
    assert len(rows) == 389
    assert rows[0] == {
        "opened_at": "2024-12-02T14:30:00Z",
        "open": 200.0,
        "high": 201.0,
        "low": 199.0,
        "close": 200.5,
        "volume": 1500.0,
        "known_from": "2024-12-07T10:00:00.000000Z",
    }
    assert rows[2]["opened_at"] == "2024-12-02T14:33:00Z"


def test_whose_a_bar_is_is_printed_where_it_is_asked_for(stocked: Mdp) -> None:
    rows = stocked("candles", "AAPL", *MINUTES, "--provenance", "--json").json
    assert (rows[0]["provider"], rows[0]["feed"]) == ("yahoo", "consolidated")
    before = stocked("candles", "AAPL", *DAYS, "--provenance", "--as-of", "2024-12-07T09:30Z", "--format", "csv")
    assert before.out.splitlines()[0].endswith("known_from,provider,feed")
    assert before.out.splitlines()[1].endswith(",yahoo,consolidated")
    empty = stocked("candles", "AAPL", *MINUTES, "--provenance", "--as-of", "2024-12-01T00:00:00Z")
    assert "provider" in empty.out


def test_bars_are_made_up_only_where_it_is_asked_for_and_nothing_was_traded(stocked: Mdp) -> None:
    asked = ("candles", "AAPL", *MINUTES, "--fill", "previous")
    assert len(stocked(*asked, "--json").json) == 389
    with pipeline_of(stocked) as pipeline, pipeline.engine.begin() as connection:
        connection.exec_driver_sql("update coverage set confirmed_empty = set_bit(confirmed_empty, 2, 1) where interval_s = 60")
    rows = stocked(*asked, "--json").json
    assert rows[2] == {
        "opened_at": "2024-12-02T14:32:00Z",
        **dict.fromkeys(("open", "high", "low", "close"), 101.5),
        "volume": 0.0,
        "known_from": None,
        "is_filled": True,
    }
    assert [row["is_filled"] for row in rows].count(True) == 1
    assert stocked(*asked, "--format", "csv").out.splitlines()[3] == "2024-12-02T14:32:00Z,101.5,101.5,101.5,101.5,0.0,,True"
    path = stocked.home / "filled.parquet"
    assert stocked(*asked, "--format", "parquet", "--out", str(path)).code == 0
    table = pq.read_table(path)
    assert (table.column("known_from").null_count, table.column("is_filled").to_pylist().count(True)) == (1, 1)
    assert len(stocked("candles", "AAPL", *MINUTES, "--json").json) == 389
    refused = stocked("candles", "AAPL", *DAYS, "--fill", "previous")
    assert refused.code == 2
    assert "1d bars cannot be filled" in refused.err


def test_how_sure_a_session_is_is_printed_with_whose_its_bars_are(stocked: Mdp) -> None:
    rows = stocked("candles", "AAPL", *MINUTES, "--provenance", "--json").json
    assert {row["finality"] for row in rows} == {"final"}


def test_what_was_known_at_a_time_is_printed_as_it_was_known(stocked: Mdp) -> None:
    before = stocked("candles", "AAPL", *MINUTES, "--as-of", "2024-12-07T09:30Z", "--json").json
    assert len(before) == 389
    assert {row["open"] for row in before[:2]} == {100.0, 101.0}
    assert stocked("candles", "AAPL", *MINUTES, "--as-of", "2024-12-07T08:59:59Z", "--json").json == []


def test_instants_cut_the_session(stocked: Mdp) -> None:
    rows = stocked(
        "candles", "AAPL", "--interval", "1m", "--start", "2024-12-02T09:30-05:00", "--end", "2024-12-02T14:32Z", "--json"
    ).json
    assert [row["opened_at"] for row in rows] == ["2024-12-02T14:30:00Z", "2024-12-02T14:31:00Z"]


def test_daily_candles_are_named_by_their_session(stocked: Mdp) -> None:
    rows = stocked("candles", "AAPL", *DAYS, "--format", "json").json
    assert [(row["session_date"], row["open"]) for row in rows] == [("2024-12-02", 100.0), ("2024-12-03", 110.0)]


def test_csv_has_the_columns_that_the_simulator_reads(stocked: Mdp) -> None:
    lines = stocked("candles", "AAPL", *MINUTES, "--format", "csv").out.splitlines()
    assert lines[0] == "opened_at,open,high,low,close,volume,known_from"
    assert lines[1] == "2024-12-02T14:30:00Z,200.0,201.0,199.0,200.5,1500.0,2024-12-07T10:00:00.000000Z"
    assert len(lines) == 390


def test_a_file_holds_what_the_screen_would(stocked: Mdp) -> None:
    path = stocked.home / "aapl.csv"
    written = stocked("candles", "AAPL", *MINUTES, "--format", "csv", "--out", str(path))
    assert (written.code, written.out) == (0, "")
    assert "389 bars written" in written.err
    assert path.read_text() == stocked("candles", "AAPL", *MINUTES, "--format", "csv").out
    assert path.stat().st_mode & 0o444


def test_parquet_keeps_values_and_types(stocked: Mdp) -> None:
    path = stocked.home / "aapl.parquet"
    assert stocked("candles", "AAPL", *MINUTES, "--format", "parquet", "--out", str(path)).code == 0
    table = pq.read_table(path)
    assert str(table.schema.field("opened_at").type) == "timestamp[ms, tz=UTC]"
    rows = list(csv.DictReader(io.StringIO(stocked("candles", "AAPL", *MINUTES, "--format", "csv").out)))
    assert table.column("close").to_pylist() == [float(row["close"]) for row in rows]
    assert table.column("vwap").null_count == 389

    daily = stocked.home / "days.parquet"
    stocked("candles", "AAPL", *DAYS, "--format", "parquet", "--out", str(daily))
    assert pq.read_table(daily).column("session_date").to_pylist() == [MONDAY, TUESDAY]


def test_a_long_table_is_cut_in_the_middle_and_says_so(stocked: Mdp) -> None:
    printed = stocked("candles", "AAPL", *MINUTES)
    assert "2024-12-02T14:30:00Z" in printed.out
    assert "2024-12-02T20:59:00Z" in printed.out
    assert "2024-12-02T18:00:00Z" not in printed.out
    assert "389 rows, 329 of them not shown" in printed.err


def test_where_nothing_is_stored_that_is_said(stocked: Mdp) -> None:
    nothing = stocked("candles", "BRK.B", *MINUTES)
    assert nothing.code == 0
    assert "no 1m bars of BRK.B are stored" in nothing.err


def test_revisions_show_each_value_and_what_it_became(stocked: Mdp) -> None:
    rows = stocked("revisions", "AAPL", *MINUTES, "--json").json
    assert [row["opened_at"] for row in rows] == ["2024-12-02T14:30:00Z", "2024-12-02T14:35:00Z"]
    assert (rows[0]["known_from"], rows[0]["known_to"]) == ("2024-12-07T09:00:00.000000Z", "2024-12-07T10:00:00.000000Z")
    assert (rows[0]["was"]["open"], rows[0]["became"]["open"]) == (100.0, 200.0)
    assert "100 → 200" in stocked("revisions", "AAPL", *MINUTES).out


def test_a_value_replaced_twice_became_the_one_between(stocked: Mdp) -> None:
    with pipeline_of(stocked) as pipeline:
        others = [slot for slot in range(390) if slot != 0]
        store(pipeline, "AAPL", MONDAY, lacking=others, price=300.0, known_at=LATER + hours(2))
    first, second, _ = stocked("revisions", "AAPL", *MINUTES, "--json").json
    assert (first["was"]["open"], first["became"]["open"]) == (100.0, 200.0)
    assert (second["was"]["open"], second["became"]["open"]) == (200.0, 300.0)


def test_a_bar_deleted_by_hand_became_nothing(stocked: Mdp) -> None:
    with pipeline_of(stocked) as pipeline, pipeline.engine.begin() as connection:
        connection.exec_driver_sql("delete from candles_intraday where opened_at = '2024-12-02T14:31:00Z'")
    deleted = stocked("revisions", "AAPL", *MINUTES, "--json").json[1]
    assert (deleted["opened_at"], deleted["became"]) == ("2024-12-02T14:31:00Z", None)
    assert "101 → deleted" in stocked("revisions", "AAPL", *MINUTES).out


@pytest.mark.parametrize(
    ("arguments", "expectation"),
    [
        (("--format", "parquet"), "--format parquet is binary: expected --out FILE"),
        (("--out", "x.csv"), "expected --format csv, json or parquet"),
        (("--format", "csv", "--out", "/nowhere/x.csv"), "/nowhere is not a directory"),
        (("--format", "csv", "--json"), "--json and --format csv were both given"),
    ],
)
def test_what_cannot_be_printed_is_refused(offline_mdp: Mdp, arguments: tuple[str, ...], expectation: str) -> None:
    refused = offline_mdp("candles", "AAPL", *MINUTES, *arguments)
    assert refused.code == 2
    assert expectation in refused.err
