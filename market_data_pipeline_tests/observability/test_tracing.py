"""maybe_trace: nothing when off; when on, a file of calls that holds no value, and no trouble for the work."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import timeit
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.observability.tracing import FILES_KEPT, MOST_ENTRIES, maybe_trace
from market_data_pipeline.settings import Settings
from market_data_pipeline.simulator.vendor import PREMIUM, made_up_key
from market_data_pipeline_tests.world import a_world, expected_opens, write_bars

if TYPE_CHECKING:
    from pathlib import Path

CANARY = "canary7f3a91"


@pytest.fixture
def on(tmp_path: Path) -> Settings:
    return Settings(viztracer_enabled=True, home=tmp_path, finnhub_key=SecretStr(CANARY))


def events(path: Path) -> list[dict[str, Any]]:
    held: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    return held


def names(path: Path) -> set[str]:
    return {event["name"].partition(" ")[0] for event in events(path)}


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    told = {"PATH": os.environ["PATH"], **environment}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60, env=told)


def something() -> int:
    return sum(another(number) for number in range(3))


def another(number: int) -> int:
    return number + 1


def leaky(settings: Settings, key: str) -> str:
    url = f"https://vendor.test/query?apikey={key}"
    told = {"key": key, url: [key]}
    try:
        fail(url)
    except ValueError as error:
        return f"{error} {told} {settings.finnhub_key}"
    return key


def fail(message: str) -> None:
    raise ValueError(message)


def test_off_nothing_is_written_and_nothing_imported(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from market_data_pipeline.observability.tracing import maybe_trace\n"
        "with maybe_trace('label') as path:\n"
        "    assert path is None\n"
        "print('viztracer' in sys.modules)\n"
    )
    done = run(script, MDP_HOME=str(tmp_path))
    assert (done.stdout.strip(), list(tmp_path.iterdir())) == ("False", [])


def test_off_it_costs_a_microsecond_or_so(tmp_path: Path) -> None:
    off = Settings(home=tmp_path)

    def block() -> None:
        with maybe_trace("label", off):
            pass

    # 0.2 µs on a quiet machine; what is ruled out is reading the environment, or the disk, at every call.
    assert min(timeit.repeat(block, number=1_000, repeat=5)) / 1_000 < 10e-6


def test_the_file_holds_the_calls_of_the_block(on: Settings, tmp_path: Path) -> None:
    something()
    with maybe_trace("fetch 1m: A/../B", on) as path:
        something()
    assert path is not None
    assert re.fullmatch(rf"\d{{8}}T\d{{6}}\.\d{{6}}Z-fetch-1m-a-b-{os.getpid()}\.json", path.name)
    assert path.parent == tmp_path / "traces"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert sum(event["name"].startswith("another ") for event in events(path)) == 3


def test_calls_of_other_threads_are_in_it(on: Settings) -> None:
    with maybe_trace("threads", on) as path:
        thread = threading.Thread(target=something, name="worker of a test")
        thread.start()
        thread.join()
    assert path is not None
    assert "another" in names(path)
    assert "worker of a test" in path.read_text()


def test_no_value_is_in_it(on: Settings) -> None:
    with maybe_trace("secrets", on) as path:
        leaky(on, CANARY)
        thread = threading.Thread(target=leaky, args=(on, CANARY))
        thread.start()
        thread.join()
    assert path is not None
    assert "leaky" in names(path)
    assert CANARY not in path.read_text()
    # Lines of source are no values, but may be next to some: vizviewer shows them only where the file brings them.
    assert "file_info" not in json.loads(path.read_text())


def test_a_block_within_a_block_is_an_event_in_the_file_of_the_first(on: Settings, tmp_path: Path) -> None:
    with maybe_trace("outer", on) as outer:
        with maybe_trace("inner", on) as inner:
            something()
        another(1)
    assert outer is not None
    assert (inner, len(list((tmp_path / "traces").iterdir()))) == (None, 1)
    assert {"inner", "another"} <= names(outer)


def test_blocks_of_two_threads_share_a_file_and_the_next_block_has_its_own(on: Settings, tmp_path: Path) -> None:
    both = threading.Barrier(2, timeout=10)
    paths: list[Path | None] = []

    def work() -> None:
        with maybe_trace("beside", on) as path:
            paths.append(path)
            both.wait()
            something()
            both.wait()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with maybe_trace("after", on) as later:
        something()
    assert sorted(path is None for path in paths) == [False, True]
    assert later is not None
    assert len(list((tmp_path / "traces").iterdir())) == 2


def test_what_the_block_raises_leaves_it_and_the_file_is_written(on: Settings) -> None:
    with pytest.raises(ValueError, match="no trouble of ours"), maybe_trace("broken", on) as path:
        fail("no trouble of ours")
    assert path is not None
    assert "fail" in names(path)


def test_a_folder_that_cannot_be_written_is_said_and_the_work_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with maybe_trace("work", Settings(viztracer_enabled=True, viz_out_dir=tmp_path / "file")) as path:
        worked = something()
    assert (path, worked) == (None, 6)
    assert "the trace of work was not begun; the work goes on" in caplog.text


def test_a_folder_that_is_taken_away_meanwhile_is_said_and_the_work_goes_on(
    on: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with maybe_trace("work", on) as path:
        assert path is not None
        path.unlink()
        (tmp_path / "traces").rmdir()
        (tmp_path / "traces").write_text("in the way")
    assert "the trace of work was lost; the work goes on" in caplog.text
    (tmp_path / "traces").unlink()
    with maybe_trace("next", on) as following:
        something()
    assert following is not None
    assert "another" in names(following)


def test_old_files_go_and_other_peoples_stay(on: Settings, tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "notes.json").write_text("")
    for number in range(FILES_KEPT + 5):
        (tmp_path / "traces" / f"20200101T000000.{number:06}Z-old-1.json").write_text("")
    with maybe_trace("new", on) as path:
        something()
    assert path is not None
    left = sorted(file.name for file in (tmp_path / "traces").iterdir())
    assert (len(left), left[-2:]) == (FILES_KEPT + 1, [path.name, "notes.json"])
    assert left[0] == "20200101T000000.000006Z-old-1.json"


def test_a_long_block_keeps_its_newest_calls(on: Settings) -> None:
    with maybe_trace("long", on) as path:
        for number in range(MOST_ENTRIES + 1_000):
            another(number)
        something()
    assert path is not None
    assert len(events(path)) < MOST_ENTRIES + 100
    assert "something" in names(path)
    assert path.stat().st_size < 64 << 20


def test_without_the_package_it_says_which_extra_is_missing() -> None:
    script = (
        "import sys\n"
        "sys.modules['viztracer'] = None\n"
        "from market_data_pipeline.observability.tracing import maybe_trace\n"
        "with maybe_trace('x'): pass\n"
    )
    done = run(script, MDP_VIZTRACER_ENABLED="true")
    assert f"{ConfigurationError.__name__}: MDP_VIZTRACER_ENABLED is on, and traces need the extra `tracing`" in done.stderr


@pytest.mark.parametrize(
    "told",
    [("MDP_VIZTRACER_ENABLED", "MDP_VIZ_OUT_DIR"), ("VIZTRACER_ENABLED", "VIZ_OUT_DIR")],
    ids=["ours", "the reference's"],
)
def test_the_environment_switches_it_on_under_either_name(tmp_path: Path, told: tuple[str, str]) -> None:
    script = "from market_data_pipeline.observability.tracing import maybe_trace\nwith maybe_trace('x') as path: print(path)\n"
    done = run(script, **{told[0]: "true", told[1]: str(tmp_path / "out")})
    assert done.stdout.startswith(str(tmp_path / "out")), done.stderr


def test_a_real_ingest_is_profiled_from_the_plan_to_the_store_without_its_key(tmp_path: Path, database_url: str) -> None:
    write_bars(tmp_path / "data", "ALFA", Interval.D1, [at - at % 86_400 for at in expected_opens(Interval.D1)])
    # This vendor takes its key in the URL only.
    key = f"{made_up_key('alphavantage', PREMIUM)}{CANARY}"
    options: dict[str, Any] = {"vendors": ["alphavantage"], "alphavantage_key": SecretStr(key), "viztracer_enabled": True}
    with a_world(tmp_path / "data", database_url, tmp_path / "home", **options) as world:
        instruments = world.load("ALFA")
        with maybe_trace("ingest", world.settings) as path:
            assert [report.failure for report in world.ingest(instruments, Interval.D1)] == [None]
    assert path is not None
    assert {"_Ingest.plan", "HttpClient.get", "judge", "CandleWriter.write"} <= names(path)
    assert CANARY not in path.read_text()
