"""The simulator as the process it is: over real sockets, with its control plane, and ended like any other process."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TYPE_CHECKING

import httpx
import pytest

from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.simulator.client import RunningSimulator, running_simulator, variables
from market_data_pipeline.simulator.vendor import PREMIUM
from market_data_pipeline.simulator.vendors import VENDORS
from market_data_pipeline_tests.simulator.directories import (
    CLOSE,
    LATER,
    OPEN,
    bar,
    epochs,
    minute,
    parameters,
    session_of_minutes,
    write_bars,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHART = "/v8/finance/chart/AAPL"
WINDOW = parameters(OPEN, CLOSE)
VARIABLES = list(variables({vendor.name: "http://x" for vendor in VENDORS}, "http://x", plan=PREMIUM))


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSimulator]:
    with running_simulator(data=write_bars(tmp_path_factory.mktemp("data"), session_of_minutes()), now=LATER) as running:
        yield running


@pytest.fixture
def yahoo(simulator: RunningSimulator) -> Iterator[httpx.Client]:
    simulator.reset()
    with httpx.Client(base_url=simulator.yahoo, trust_env=False, timeout=5.0) as client:
        yield client


def test_it_answers_charts(yahoo: httpx.Client) -> None:
    answer = yahoo.get(CHART, params=WINDOW)

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json;charset=utf-8"
    assert answer.headers["date"] == "Tue, 03 Dec 2024 12:00:00 GMT"
    assert len(answer.json()["chart"]["result"][0]["timestamp"]) == 390


def test_a_connection_is_kept_for_the_next_request(simulator: RunningSimulator) -> None:
    port = int(simulator.yahoo.rpartition(":")[2])
    request = f"HEAD {CHART}?range=1d HTTP/1.1\r\nhost: x\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", port), timeout=5.0) as connection:
        for _ in range(3):
            connection.sendall(request)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_many_requests_at_once_are_all_answered(yahoo: httpx.Client) -> None:
    with ThreadPoolExecutor(16) as pool:
        sizes = set(pool.map(lambda _: len(yahoo.get(CHART, params=WINDOW).content), range(200)))

    assert len(sizes) == 1


def test_an_unknown_path_is_404_and_another_method_405(yahoo: httpx.Client) -> None:
    assert yahoo.get("/v6/finance/nothing").status_code == 404
    assert yahoo.post(CHART).status_code == 405


def test_garbage_is_answered_with_400(simulator: RunningSimulator) -> None:
    port = int(simulator.yahoo.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=5.0) as connection:
        connection.sendall(b"this is not HTTP\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 400")


def test_the_clock_is_set_and_read_over_the_control_plane(simulator: RunningSimulator, yahoo: httpx.Client) -> None:
    simulator.set_now(minute(2))

    assert simulator.now() == minute(2)
    assert yahoo.get(CHART, params=parameters(OPEN, minute(2))).json()["chart"]["result"][0]["timestamp"] == epochs(OPEN, minute(1))


def test_a_running_clock_moves_on(simulator: RunningSimulator, yahoo: httpx.Client) -> None:  # noqa: ARG001 - resets
    simulator.set_now(LATER, speed=1e6)

    # A million times the real pace: any second reading is later.
    assert LATER <= simulator.now() < simulator.now()


def test_a_naive_time_is_refused_by_the_control_plane(simulator: RunningSimulator) -> None:
    with pytest.raises(InvalidInputError, match="no time zone"):
        simulator.set_now(datetime(2024, 12, 2, 15))  # noqa: DTZ001 - what is tested


@pytest.mark.parametrize("body", ["[]", '{"when": "2024-12-02T15:00:00Z"}', '{"speed": -1}', "{"])
def test_a_clock_that_cannot_be_meant_is_refused(simulator: RunningSimulator, body: str) -> None:
    answer = httpx.post(f"{simulator.control}/__sim/clock", content=body, trust_env=False)

    assert answer.status_code == 400
    assert answer.json()["error"]


def test_bad_faults_are_refused_and_the_old_ones_stay(simulator: RunningSimulator, yahoo: httpx.Client) -> None:
    simulator.set_faults([{"action": "status", "code": 503}])

    with pytest.raises(InvalidInputError, match="unknown action 'explode'"):
        simulator.set_faults([{"action": "explode"}])

    assert yahoo.get(CHART, params=WINDOW).status_code == 503


def test_every_request_is_in_the_log(simulator: RunningSimulator, yahoo: httpx.Client) -> None:
    simulator.set_faults([{"match": {"nth": 2}, "action": "status", "code": 429, "retry_after": 1}])
    yahoo.get(CHART, params=WINDOW, headers={"user-agent": "tests"})
    yahoo.get(CHART, params=WINDOW | {"crumb": "s3cret"})

    first, second = simulator.requests()

    assert (first["number"], first["method"], first["path"], first["status"], first["actions"]) == (1, "GET", CHART, 200, [])
    assert (first["symbol"], first["interval"], first["period1"], first["period2"]) == ("AAPL", "1m", *epochs(OPEN, CLOSE))
    assert first["headers"]["user-agent"] == "tests"
    assert datetime.fromisoformat(first["at"]) == LATER
    assert (second["status"], second["actions"]) == (429, ["status"])
    assert "s3cret" not in str(second)
    assert simulator.requests(since=1) == [second]


def test_the_log_can_be_emptied_alone(simulator: RunningSimulator, yahoo: httpx.Client) -> None:
    simulator.set_now(minute(5))
    yahoo.get(CHART, params=WINDOW)
    simulator.forget_requests()

    assert simulator.requests() == []
    assert simulator.now() == minute(5)


def test_reset_starts_all_over(simulator: RunningSimulator, yahoo: httpx.Client) -> None:
    simulator.set_now(minute(5))
    simulator.set_faults([{"action": "html"}])
    yahoo.get(CHART, params=WINDOW)

    simulator.reset()

    assert simulator.now() == LATER
    assert simulator.requests() == []
    assert yahoo.get(CHART, params=WINDOW).json()["chart"]["error"] is None
    assert simulator.requests()[0]["number"] == 1


def test_the_control_plane_lists_what_there_is(simulator: RunningSimulator) -> None:
    answer = httpx.get(f"{simulator.control}/nothing", trust_env=False)

    assert answer.status_code == 404
    assert "GET /__sim/clock" in answer.json()["known"]


# --- faults that only a socket shows


def test_a_truncated_body_is_shorter_than_promised(simulator: RunningSimulator, yahoo: httpx.Client) -> None:
    simulator.set_faults([{"action": "truncate"}])

    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete"):
        yahoo.get(CHART, params=WINDOW)


@pytest.mark.parametrize("at", ["before", "headers", "body"])
def test_a_reset_cuts_the_connection(simulator: RunningSimulator, yahoo: httpx.Client, at: str) -> None:
    simulator.set_faults([{"action": "reset", "at": at}])

    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        yahoo.get(CHART, params=WINDOW)


@pytest.mark.parametrize(
    "rule", [{"action": "stall"}, {"action": "stall", "at": "headers"}, {"action": "drip", "bytes_per_second": 50}]
)
def test_a_stalled_or_dripping_answer_does_not_end_in_time(simulator: RunningSimulator, rule: dict[str, object]) -> None:
    simulator.reset()
    simulator.set_faults([rule | ({"seconds": 30} if rule["action"] == "stall" else {})])
    port = int(simulator.yahoo.rpartition(":")[2])
    request = f"GET {CHART}?range=1d&interval=1m HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode()

    with socket.create_connection(("127.0.0.1", port), timeout=0.3) as connection:
        connection.sendall(request)
        received = bytearray()
        with pytest.raises(TimeoutError):  # noqa: PT012 - reading until it stalls is the point
            for _ in range(3):
                received += connection.recv(1 << 20)
                connection.settimeout(0.05)
    assert b"}]}}" not in received


def test_a_dripping_answer_is_whole_in_the_end(simulator: RunningSimulator, yahoo: httpx.Client) -> None:
    whole = yahoo.get(CHART, params=WINDOW).content
    simulator.set_faults([{"action": "drip", "bytes_per_second": 10 * len(whole)}])

    assert yahoo.get(CHART, params=WINDOW).content == whole


def test_half_a_gzip_stream_fails_to_decode(simulator: RunningSimulator, yahoo: httpx.Client) -> None:
    simulator.set_faults([{"action": "truncated_gzip"}])

    answer = yahoo.get(CHART, params=WINDOW)

    assert answer.headers["content-encoding"] == "gzip"
    assert not answer.text.endswith("}")


def test_the_next_request_after_a_fault_is_answered(simulator: RunningSimulator, yahoo: httpx.Client) -> None:
    simulator.set_faults([{"match": {"nth": 1}, "action": "reset"}])
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        yahoo.get(CHART, params=WINDOW)

    assert yahoo.get(CHART, params=WINDOW).status_code == 200


@pytest.mark.parametrize(
    "rule", [{"action": "header_drip", "bytes_per_second": 20}, {"action": "header_drip", "bytes_per_second": 1}]
)
def test_dripping_headers_do_not_end_in_time(simulator: RunningSimulator, rule: dict[str, object]) -> None:
    simulator.reset()
    simulator.set_faults([rule])
    port = int(simulator.yahoo.rpartition(":")[2])

    with socket.create_connection(("127.0.0.1", port), timeout=0.3) as connection:
        connection.sendall(f"GET {CHART}?range=1d HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        received = connection.recv(65536)
    assert b"HTTP/1.1 200".startswith(received[:12])
    assert b"\r\n\r\n" not in received


def test_a_huge_body_is_whole_and_still_json(simulator: RunningSimulator, yahoo: httpx.Client) -> None:
    simulator.set_faults([{"action": "huge", "megabytes": 3}])

    answer = yahoo.get(CHART, params=WINDOW)

    assert len(answer.content) > 3 << 20
    assert len(answer.json()["chart"]["result"][0]["timestamp"]) == 390


def test_every_vendor_answers_under_its_own_url(simulator: RunningSimulator, yahoo: httpx.Client) -> None:
    told = simulator.environment()
    headers = {"Authorization": f"Bearer {told['MDP_MASSIVE_KEY']}"}
    aggregates = f"{told['MDP_MASSIVE_BASE_URL']}/v2/aggs/ticker/AAPL/range/1/minute/2024-12-02/2024-12-02"

    first = yahoo.get(aggregates, params={"limit": 300}, headers=headers).json()
    second = yahoo.get(first["next_url"], headers=headers).json()

    assert (len(first["results"]), len(second["results"])) == (300, 90)
    assert set(simulator.urls) == {vendor.name for vendor in VENDORS}
    assert told["MDP_CLOCK"] == simulator.control
    assert [entry["provider"] for entry in simulator.requests()] == ["massive", "massive"]
    assert told["MDP_MASSIVE_KEY"] not in str(simulator.requests())


def test_limits_are_those_of_the_command_line_until_others_are_set(tmp_path: Path) -> None:
    write_bars(tmp_path, session_of_minutes(3))
    with (
        running_simulator(data=tmp_path, now=LATER, limits="yahoo=2/m") as running,
        httpx.Client(base_url=running.yahoo, trust_env=False) as client,
    ):
        statuses = [client.get(CHART, params=WINDOW).status_code for _ in range(3)]
        refused = running.over_limit()
        running.set_limits("yahoo=none")
        statuses.append(client.get(CHART, params=WINDOW).status_code)

    assert (statuses, refused) == ([200, 200, 429, 200], 1)


# --- the process


def test_gzip_is_sent_where_the_profile_says_so(tmp_path: Path) -> None:
    write_bars(tmp_path, session_of_minutes())
    (tmp_path / "profile.yaml").write_text("gzip: true\n", encoding="ascii")

    with running_simulator(data=tmp_path, now=LATER) as running:
        answer = httpx.get(f"{running.yahoo}{CHART}", params=WINDOW, trust_env=False)

    assert answer.headers["content-encoding"] == "gzip"
    assert len(answer.json()["chart"]["result"][0]["timestamp"]) == 390


def test_a_broken_file_is_a_500_that_names_it(tmp_path: Path) -> None:
    write_bars(tmp_path, [bar(OPEN)])
    (tmp_path / "1m" / "AAPL.csv").write_text("when,what\n", encoding="ascii")

    with running_simulator(data=tmp_path, now=LATER) as running:
        answer = httpx.get(f"{running.yahoo}{CHART}", params=WINDOW, trust_env=False)

    assert answer.status_code == 500
    assert "AAPL.csv: no column opened_at" in answer.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_in_the_middle_of_a_stall(tmp_path: Path, number: signal.Signals) -> None:
    write_bars(tmp_path, [bar(OPEN)])
    with running_simulator(data=tmp_path, now=LATER, faults=[{"action": "stall", "seconds": 60}]) as running:
        port = int(running.yahoo.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=5.0) as waiting:
            waiting.sendall(f"GET {CHART} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            running.process.send_signal(number)
            assert running.process.wait(10) == 0


def test_it_writes_a_ready_file_and_prints_lines_to_export(tmp_path: Path) -> None:
    write_bars(tmp_path, [bar(OPEN)])
    ready = tmp_path / "ready"
    command = [sys.executable, "-m", "market_data_pipeline.cli.main", "simulate", "--data", str(tmp_path), "--export"]
    with subprocess.Popen([*command, "--ready-file", str(ready)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline()]
            lines += [process.stdout.readline() for _ in VARIABLES[1:]]
        finally:
            process.terminate()

    assert ready.read_text(encoding="utf-8") == "".join(lines)
    assert lines[0].startswith("export MDP_CLOCK=http://127.0.0.1:")
    assert [line.partition("=")[0].removeprefix("export ") for line in lines] == VARIABLES


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--data", "/nowhere"], "no data directory '/nowhere': expected a folder"),
        (["--data", ".", "--now", "2024-12-02T15:00:00"], "--now: '2024-12-02T15:00:00' has no time zone"),
        (["--data", ".", "--now", "noon"], "--now: 'noon' is not a time: expected ISO 8601"),
        (["--data", ".", "--faults", "/nowhere.yaml"], "fault file '/nowhere.yaml' cannot be read"),
        (["--data", ".", "--speed", "-1"], "speed -1.0: expected a number"),
        (["--data", "."], "nothing to serve in '.'"),
        (["--data", ".", "--limits", "massive=often"], "limit 'often'"),
    ],
)
def test_bad_input_is_named_with_what_was_expected(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    command = [sys.executable, "-m", "market_data_pipeline.cli.main", "simulate", *arguments]

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert complaint in done.stderr


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    write_bars(tmp_path, [bar(OPEN)])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "market_data_pipeline.cli.main", "simulate", "--data", str(tmp_path), "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 3
    assert f"127.0.0.1:{port}" in done.stderr


def test_a_simulator_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(InvalidInputError, match=r"no data directory '.*nowhere'"),
        running_simulator(data=tmp_path / "nowhere", now=LATER),
    ):
        pass
