"""What Dagster is shown, and that showing it touches nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import date
from typing import TYPE_CHECKING

import dagster as dg
import pytest

from market_data_pipeline.defs.build import build_definitions
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.partitions import PartitionPlan, default_plan, plan_partitions
from market_data_pipeline.domain.sessions import trading_calendar
from market_data_pipeline.settings import Settings
from market_data_pipeline_tests.defs.fakes import FakeWorkbench

if TYPE_CHECKING:
    from pathlib import Path

BUCKETS = plan_partitions(
    symbols=3_000,
    calendars=[trading_calendar("XNYS"), trading_calendar("24/7")],
    start=date(2024, 1, 2),
    today=date(2024, 3, 1),
    budget=60_000,
)


@pytest.fixture(scope="module")
def definitions() -> dg.Definitions:
    return build_definitions(Settings(), default_plan(), workbenches=FakeWorkbench())


@pytest.mark.parametrize("plan", [default_plan(), BUCKETS], ids=["symbols", "buckets"])
def test_the_definitions_can_be_loaded(plan: PartitionPlan) -> None:
    dg.Definitions.validate_loadable(build_definitions(Settings(), plan, workbenches=FakeWorkbench()))


def test_there_is_an_asset_for_each_interval(definitions: dg.Definitions) -> None:
    keys = {key.to_user_string() for key in definitions.resolve_all_asset_keys()}
    assert {key for key in keys if key.startswith("candles/")} == {f"candles/{interval}" for interval in Interval}


def test_derived_intervals_have_lineage_to_the_minutes(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    assert graph.get(dg.AssetKey(["candles", "15m"])).parent_keys == {dg.AssetKey(["candles", "1m"])}


def test_every_asset_says_who_owns_it_what_it_is_and_which_columns_it_has(definitions: dg.Definitions) -> None:
    for spec in definitions.resolve_all_asset_specs():
        assert (spec.group_name is not None, list(spec.owners)) == (True, ["team:market-data"])
        assert spec.description
        if spec.group_name != "candles":
            continue
        assert {"open", "high", "low", "close", "volume"} <= {c.name for c in spec.metadata["dagster/column_schema"].columns}


def test_the_jobs_have_the_names_that_the_command_line_launches(definitions: dg.Definitions) -> None:
    names = {job.name for job in definitions.get_repository_def().get_all_jobs()}
    assert {"candles_1m", "candles_1h", "candles_1d", "work_jobs", "listings", "reconcile", "prune_event_log"} <= names
    assert "candle_checks" in names
    assert {"watch", "run_failures", "check_failures"} <= {s.name for s in definitions.get_repository_def().sensor_defs}


def test_every_calendar_has_its_schedules(definitions: dg.Definitions) -> None:
    names = {schedule.name for schedule in definitions.get_repository_def().schedule_defs}
    assert {"xnys_candles_1m_after_close", "xnys_candles_1h_after_close", "xnys_candles_1d_after_close", "sweep"} <= names


def test_where_a_coordinator_makes_the_jobs_nothing_is_swept() -> None:
    definitions = build_definitions(Settings(use_rlc=True), default_plan(), workbenches=FakeWorkbench())
    assert "sweep" not in {schedule.name for schedule in definitions.get_repository_def().schedule_defs}


_IMPORT = """
import socket, sys
class Refuse:
    def __init__(self, *a, **k): raise AssertionError("a socket was opened")
socket.socket = Refuse
import market_data_pipeline.definitions as module
module.defs().get_repository_def().load_all_definitions()
print([name for name in ("psycopg2", "exchange_calendars", "pandas", "httpx") if name in sys.modules])
"""


def test_loading_the_code_location_touches_no_file_no_socket_and_no_database(tmp_path: Path) -> None:
    home = tmp_path / "home"
    environment = {
        **os.environ,
        "MDP_HOME": str(home),
        "MDP_DATABASE_URL": "postgresql://nobody@192.0.2.1/nothing",
        "HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout.strip(), home.exists(), list(tmp_path.iterdir())) == ("[]", False, [])
