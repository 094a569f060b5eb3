from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import httpx
import orjson
import pytest

from market_data_pipeline.cli.dagster_client import (
    CodeLocation,
    DagsterClient,
    DagsterLostDatabaseError,
    DagsterRefusedError,
    Run,
    RunStatus,
    WebserverUnreachableError,
)
from market_data_pipeline.domain.runs import RANGE_END, RANGE_START

if TYPE_CHECKING:
    from collections.abc import Callable

    from market_data_pipeline_tests.cli.conftest import Webserver

pause = threading.Event().wait


def ended(client: DagsterClient, tags: dict[str, str]) -> Run:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        runs = client.runs(tags=tags)
        if runs and all(run.status.has_ended for run in runs):
            return runs[-1]
        pause(0.2)
    raise AssertionError(f"the run with {tags} did not end within a minute")


def test_the_client_speaks_to_the_webserver_we_install(webserver: Webserver) -> None:
    with DagsterClient(webserver.url) as client:
        where = client.find_job("candles_1h")
        client.add_dynamic_partitions(where, "symbols", ["MSFT", "IBM"])
        client.add_dynamic_partitions(where, "symbols", ["IBM", "CSCO"])
        keys = client.partition_keys(("candles", "1h"))
        # In the order in which they were added, each once; other tests may have added theirs.
        assert [key for key in keys.symbols if key in {"MSFT", "IBM", "CSCO"}] == ["MSFT", "IBM", "CSCO"]
        assert keys.periods == ("2024-12-02", "2024-12-03", "2024-12-04", "2024-12-05", "2024-12-06")
        assert client.daemon_is_running()
        client.reload(where.location)

        box = {RANGE_START: "2024-12-02|MSFT", RANGE_END: "2024-12-04|IBM", "mdp/backfill": "good"}
        run_id = client.launch(where, "candles_1h", tags=box)
        good = ended(client, {"mdp/backfill": "good"})
        assert (good.run_id, good.job, good.status, good.materialized) == (run_id, "candles_1h", RunStatus.SUCCESS, 6)
        assert good.tags[RANGE_END] == "2024-12-04|IBM"
        assert client.run(run_id) == good

        config = {"ops": {"fetch_candles_1h": {"config": {"refetch": True}}}}
        client.launch(where, "candles_1h", tags=box | {"mdp/backfill": "bad"}, config=config)
        bad = ended(client, {"mdp/backfill": "bad"})
        assert bad.status is RunStatus.FAILURE
        assert client.failure(bad.run_id) == "2 symbols failed"
        assert httpx.get(client.run_url(bad.run_id), trust_env=False).is_success

        with pytest.raises(DagsterRefusedError, match="has no job 'candles_7m'"):
            client.find_job("candles_7m")
        with pytest.raises(DagsterRefusedError, match="refetsch"):
            client.launch(where, "candles_1h", tags=box, config={"ops": {"fetch_candles_1h": {"config": {"refetsch": True}}}})
        with pytest.raises(DagsterRefusedError):
            client.partition_keys(("candles", "7m"))


@pytest.mark.parametrize(("is_new", "kind"), [(True, "assetMaterializations"), (False, "assetObservations")])
@pytest.mark.parametrize("asset", [("quotes", "told by a test"), ("candles", "1h")], ids="/".join)
def test_an_event_without_a_run_is_seen_on_the_asset_partitioned_or_not(
    webserver: Webserver, asset: tuple[str, str], kind: str, *, is_new: bool
) -> None:
    with DagsterClient(webserver.url) as client:
        client.report_asset_event(asset, f"told by a test, {kind}", is_new_data=is_new)
    asked = f"... on Asset {{ {kind} {{ description }} }}"
    query = f"query E($path: [String!]!) {{ assetOrError(assetKey: {{path: $path}}) {{ {asked} }} }}"
    body = {"query": query, "variables": {"path": list(asset)}}
    found = httpx.post(f"{webserver.url}/graphql", json=body, trust_env=False, timeout=30).json()["data"]["assetOrError"][kind]
    assert f"told by a test, {kind}" in {event["description"] for event in found}


def test_an_event_that_dagster_refuses_is_said_in_its_words() -> None:
    refused = {"reportRunlessAssetEvents": {"__typename": "UnauthorizedError", "message": "read only"}}
    with (
        client_of(lambda _: httpx.Response(200, json={"data": refused})) as client,
        pytest.raises(DagsterRefusedError, match="read only"),
    ):
        client.report_asset_event(("quotes", "l1"), "nothing")


def client_of(answer: Callable[[httpx.Request], httpx.Response]) -> DagsterClient:
    return DagsterClient("http://dagster.test", transport=httpx.MockTransport(answer))


def test_a_webserver_that_is_down_is_named_with_what_to_do() -> None:
    with DagsterClient("http://127.0.0.1:9") as client, pytest.raises(WebserverUnreachableError) as down:
        client.find_job("candles_1m")
    assert "http://127.0.0.1:9" in str(down.value)
    assert "start it with `mdp up`" in str(down.value)


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"[]", b'{"hello": 1}', b""])
def test_another_server_on_that_port_is_not_taken_for_dagster(body: bytes) -> None:
    with client_of(lambda _: httpx.Response(200, content=body)) as client, pytest.raises(WebserverUnreachableError) as wrong:
        client.find_job("candles_1m")
    assert "is no Dagster webserver" in str(wrong.value)


def test_an_error_of_graphql_is_said_in_dagsters_words() -> None:
    answer = httpx.Response(400, json={"errors": [{"message": 'Cannot query field "nonsense"'}], "data": None})
    with client_of(lambda _: answer) as client, pytest.raises(DagsterRefusedError, match="Cannot query field"):
        client.find_job("candles_1m")


def test_code_that_did_not_load_is_said_when_its_job_is_not_found() -> None:
    error = {"__typename": "PythonError", "message": "ModuleNotFoundError: No module named 'dagster_postgres'\n"}
    data = {
        "repositoriesOrError": {"__typename": "RepositoryConnection", "nodes": []},
        "workspaceOrError": {"locationEntries": [{"name": "market_data_pipeline", "locationOrLoadError": error}]},
    }
    with client_of(lambda _: httpx.Response(200, json={"data": data})) as client, pytest.raises(DagsterRefusedError) as refused:
        client.find_job("candles_1m")
    assert "market_data_pipeline: ModuleNotFoundError: No module named 'dagster_postgres'" in str(refused.value)


def test_many_symbols_are_added_in_few_requests() -> None:
    sizes = []

    def added(request: httpx.Request) -> httpx.Response:
        keys = [name for name in orjson.loads(request.content)["variables"] if name.startswith("k")]
        sizes.append(len(keys))
        return httpx.Response(200, json={"data": {key: {"__typename": "AddDynamicPartitionSuccess"} for key in keys}})

    with client_of(added) as client:
        client.add_dynamic_partitions(CodeLocation("here", "__repository__"), "symbols", [f"S{n}" for n in range(450)])
    assert sizes == [200, 200, 50]


def test_more_runs_than_a_page_holds_are_all_read() -> None:
    def result(n: int) -> dict[str, object]:
        run = {"runId": f"run-{n:03}", "jobName": "candles_1m", "status": "STARTED", "creationTime": 1000.0 - n}
        return run | {"tags": [], "stats": {"materializations": n}}

    def page(request: httpx.Request) -> httpx.Response:
        after = orjson.loads(request.content)["variables"]["cursor"]
        first = int(after.removeprefix("run-")) + 1 if after else 0
        results = [result(n) for n in range(first, min(first + 200, 450))]
        return httpx.Response(200, json={"data": {"runsOrError": {"__typename": "Runs", "results": results}}})

    with client_of(page) as client:
        runs = client.runs(tags={"mdp/backfill": "x"})
    assert len(runs) == 450
    assert runs[0].run_id == "run-449"


LOST = {"__typename": "PythonError", "message": "sqlalchemy.exc.OperationalError: server closed the connection unexpectedly"}


def test_reading_goes_on_past_the_connections_that_died_with_the_database() -> None:
    answers = iter([LOST, LOST, {"__typename": "Runs", "results": []}])
    client = client_of(lambda _: httpx.Response(200, json={"data": {"runsOrError": next(answers)}}))
    assert client.runs(tags={}) == []


def test_a_database_that_stays_away_is_said() -> None:
    client = client_of(lambda _: httpx.Response(200, json={"data": {"runsOrError": LOST}}))
    with pytest.raises(DagsterLostDatabaseError, match="server closed the connection"):
        client.runs(tags={})


def test_a_launch_is_never_repeated_by_itself() -> None:
    asked: list[httpx.Request] = []

    def lost(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json={"data": {"launchRun": LOST}})

    with pytest.raises(DagsterLostDatabaseError):
        client_of(lost).launch(CodeLocation("here", "ours"), "candles_1m", tags={})
    assert len(asked) == 1
