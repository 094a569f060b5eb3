"""A backfill launched in Dagster's UI: what the button sends, to a real webserver, and what is in the tables afterwards."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.simulator.client import running_simulator
from market_data_pipeline_tests.stack import Running, a_home, a_stack
from market_data_pipeline_tests.world import MONDAY, SATURDAY, expected_opens, write_bars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SYMBOLS = ("ALFA", "BETA")
OPENS = expected_opens()
SESSIONS = [MONDAY + timedelta(days=n) for n in range(5)]
PATIENCE = 150.0

_LAUNCH = """
mutation($backfill: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $backfill) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}"""
_KEYS = """{ assetNodeOrError(assetKey: {path: ["candles", "1m"]}) { ... on AssetNode { partitionKeysByDimension {
  name partitionKeys } } } }"""
_TICKS = """query($name: String!) { sensorOrError(sensorSelector: {
  repositoryName: "__repository__", repositoryLocationName: "market_data_pipeline", sensorName: $name}) {
  __typename ... on Sensor { sensorState { status ticks(limit: 50) { status skipReason error { message } } } } } }"""
_CHECKS = """{ assetNodeOrError(assetKey: {path: ["candles", "1m"]}) { ... on AssetNode { assetChecksOrError {
  ... on AssetChecks { checks { name executionForLatestMaterialization { status } } } } } } }"""
_STATUS = """query($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } } }"""


@pytest.fixture
def running() -> Iterator[Running]:
    with a_home() as home:
        for symbol in SYMBOLS:
            write_bars(home / "data", symbol, Interval.M1, OPENS)
        (home / "universe.csv").write_text("symbol,exchange,tier\n" + "".join(f"{symbol},XNAS,T0\n" for symbol in SYMBOLS))
        with running_simulator(data=home / "data", now=SATURDAY) as simulator:
            told = {"MDP_CLOCK": simulator.control, "MDP_YAHOO_BASE_URL": simulator.yahoo}
            with a_stack(home, told) as stack:
                assert stack.mdp("universe", "load", str(home / "universe.csv")).returncode == 0
                yield stack


def ask(stack: Running, query: str, **variables: Any) -> Any:  # noqa: ANN401 - JSON
    url = f"{stack.environment['MDP_DAGSTER_URL']}/graphql"
    answer = httpx.post(url, json={"query": query, "variables": variables}, timeout=60).json()
    assert "errors" not in answer, answer
    return answer["data"]


def wait_until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"in {PATIENCE:.0f} seconds it did not come to pass that {what}"
        time.sleep(0.5)  # noqa: TID251 - polling other processes


def ticks(stack: Running, sensor: str) -> list[dict[str, Any]]:
    found = ask(stack, _TICKS, name=sensor)["sensorOrError"]
    assert found["__typename"] == "Sensor", found
    ticked: list[dict[str, Any]] = found["sensorState"]["ticks"]
    return ticked


def statuses_of_checks(stack: Running) -> set[str]:
    checks = ask(stack, _CHECKS)["assetNodeOrError"]["assetChecksOrError"]["checks"]
    return {check["executionForLatestMaterialization"]["status"] for check in checks if check["executionForLatestMaterialization"]}


def symbols_shown(stack: Running) -> set[str]:
    dimensions = ask(stack, _KEYS)["assetNodeOrError"]["partitionKeysByDimension"]
    return {key for dimension in dimensions if dimension["name"] == "symbol" for key in dimension["partitionKeys"]}


@pytest.mark.timeout(400)
def test_a_backfill_of_the_ui_ends_in_the_ledger_like_any_other(running: Running) -> None:
    wait_until(lambda: symbols_shown(running) >= set(SYMBOLS), "the symbols had their partitions")
    launched = ask(
        running,
        _LAUNCH,
        backfill={
            "assetSelection": [{"path": ["candles", "1m"]}, {"path": ["candles", "5m"]}],
            "partitionNames": [f"{session}|{symbol}" for session in SESSIONS for symbol in SYMBOLS],
            "title": "a week, by the button",
        },
    )["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched
    identity = launched["backfillId"]
    wait_until(
        lambda: ask(running, _STATUS, id=identity)["partitionBackfillOrError"]["status"].startswith(("COMPLETED", "FAILED")),
        "the backfill was over",
    )
    assert ask(running, _STATUS, id=identity)["partitionBackfillOrError"]["status"] == "COMPLETED_SUCCESS"
    stored = running.rows("select interval_s, count(*) from candles_intraday where interval_s in (60, 300) group by 1 order by 1")
    assert stored == [(60, 2 * len(OPENS)), (300, 2 * len(OPENS) // 5)]
    assert running.rows("select count(*), bool_and(absent = 0) from coverage where interval_s = 60") == [(10, True)]
    # The daemon's own word on the sensors of alerts: they tick, and what they say of checks is on the page.
    for sensor in ("watch", "check_failures", "run_failures"):
        wait_until(lambda sensor=sensor: bool(ticks(running, sensor)), f"{sensor} had ticked")  # type: ignore[misc]
        assert [tick["error"] for tick in ticks(running, sensor) if tick["status"] == "FAILURE"] == []
    assert "firing" in str(ticks(running, "watch")[-1]["skipReason"])
    # The button launched the checks, too, and Dagster skipped them: the watch has them evaluated.
    wait_until(lambda: {"SUCCEEDED", "FAILED"} & statuses_of_checks(running), "the checks were evaluated after the backfill")
