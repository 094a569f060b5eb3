from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

from market_data_pipeline.cli.dagster_client import WILL_RETRY, CodeLocation, Run, RunStatus, WebserverUnreachableError
from market_data_pipeline.cli.launching import BACKFILL, BATCH, Launched, Launcher, Task
from market_data_pipeline.cli.progress import progress
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.errors import DatabaseUnreachableError
from market_data_pipeline.domain.partitions import Box, Cell
from market_data_pipeline.domain.runs import PROVIDER, RANGE_END, RANGE_START

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

HERE = CodeLocation("here", "__repository__")


def task(day: str, interval: Interval = Interval.H1, partitions: int = 10) -> Task:
    return Task(interval, Box(Cell(day, "AAPL"), Cell(day, "MSFT"), partitions), HERE)


@dataclass
class ScriptedWebserver:
    """A webserver whose runs move on by ``script`` each time the command sleeps. It keeps what was launched."""

    script: list[Callable[[ScriptedWebserver], None]] = field(default_factory=list)
    held: dict[str, Run] = field(default_factory=dict)
    configs: list[Mapping[str, Any] | None] = field(default_factory=list)
    lost_answers: int = 0
    silent: bool = False
    looks: int = 0

    def launch(self, where: CodeLocation, job: str, *, tags: Mapping[str, str], config: Mapping[str, Any] | None = None) -> str:
        assert where is HERE
        run_id = f"run-{len(self.held) + 1}"
        self.held[run_id] = Run(run_id, job, RunStatus.QUEUED, tags, created_at=float(len(self.held)), materialized=0)
        self.configs.append(config)
        if self.lost_answers:
            self.lost_answers -= 1
            raise WebserverUnreachableError("did not answer in 180 s")
        return run_id

    def runs(self, *, tags: Mapping[str, str]) -> list[Run]:
        if self.silent:
            raise WebserverUnreachableError("no Dagster webserver answers")
        return [run for run in self.held.values() if tags.items() <= run.tags.items()]

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.looks += 1
        assert self.looks < 100, "the watch does not end"
        if self.script:
            self.script.pop(0)(self)

    def now(self, run_id: str, status: RunStatus, *, tags: Mapping[str, str] | None = None) -> None:
        run = self.held[run_id]
        self.held[run_id] = replace(run, status=status, tags={**run.tags, **(tags or {})})


def becomes(run_id: str, status: RunStatus, *, tags: Mapping[str, str] | None = None) -> Callable[[ScriptedWebserver], None]:
    return lambda webserver: webserver.now(run_id, status, tags=tags)


def launcher_on(webserver: ScriptedWebserver, *, refetch: bool = False, digest: str = "abc") -> Launcher:
    return Launcher(webserver, digest, refetch=refetch, sleep=webserver.sleep)


def quietly(_: Sequence[Launched]) -> None:
    return None


def test_every_task_gets_a_run_with_its_box_and_the_mark_of_the_request() -> None:
    webserver = ScriptedWebserver()
    launched = launcher_on(webserver).launch([task("2024-12-02"), task("2024-12-03")])
    assert [one.is_new for one in launched] == [True, True]
    tags = webserver.held["run-2"].tags
    assert (tags[RANGE_START], tags[RANGE_END]) == ("2024-12-03|AAPL", "2024-12-03|MSFT")
    assert tags[BACKFILL] == "abc"
    assert tags[BATCH] == webserver.held["run-1"].tags[BATCH]
    assert webserver.configs == [{}, {}]


def test_a_refetch_is_told_to_the_op() -> None:
    webserver = ScriptedWebserver()
    launcher_on(webserver, refetch=True).launch([task("2024-12-02")])
    assert webserver.configs == [{"ops": {"fetch_candles_1h": {"config": {"refetch": True}}}}]


def test_the_provider_to_ask_first_is_a_tag_of_the_runs() -> None:
    webserver = ScriptedWebserver()
    Launcher(webserver, "abc", refetch=False, sleep=webserver.sleep, provider="alpaca").launch([task("2024-12-02")])
    assert webserver.held["run-1"].tags[PROVIDER] == "alpaca"


def test_the_same_command_attaches_to_runs_in_flight_and_launches_only_what_is_not_there() -> None:
    webserver = ScriptedWebserver()
    tasks = [task("2024-12-02"), task("2024-12-03"), task("2024-12-04")]
    # The first command was interrupted before its third launch; one run has ended since.
    launcher_on(webserver).launch(tasks[:2])
    webserver.now("run-1", RunStatus.SUCCESS)
    launched = launcher_on(webserver).launch(tasks)
    assert [(one.run.run_id, one.is_new) for one in launched] == [("run-1", False), ("run-2", False), ("run-3", True)]
    assert webserver.held["run-3"].tags[BATCH] == webserver.held["run-1"].tags[BATCH]


def test_a_command_whose_runs_have_all_ended_is_carried_out_anew() -> None:
    webserver = ScriptedWebserver()
    launcher_on(webserver).launch([task("2024-12-02")])
    webserver.now("run-1", RunStatus.SUCCESS)
    (again,) = launcher_on(webserver).launch([task("2024-12-02")])
    assert (again.run.run_id, again.is_new) == ("run-2", True)


def test_another_request_is_not_attached_to() -> None:
    webserver = ScriptedWebserver()
    launcher_on(webserver, digest="abc").launch([task("2024-12-02")])
    (other,) = launcher_on(webserver, digest="xyz").launch([task("2024-12-02")])
    assert other.run.run_id == "run-2"


def test_a_launch_whose_answer_was_lost_is_not_launched_twice() -> None:
    webserver = ScriptedWebserver(lost_answers=1)
    (one,) = launcher_on(webserver).launch([task("2024-12-02")])
    assert one.run.run_id == "run-1"
    assert len(webserver.held) == 1


def test_the_watch_ends_when_every_run_has_ended() -> None:
    webserver = ScriptedWebserver(script=[becomes("run-1", RunStatus.SUCCESS), becomes("run-2", RunStatus.FAILURE)])
    launcher = launcher_on(webserver)
    ended = launcher.watch(launcher.launch([task("2024-12-02"), task("2024-12-03")]), quietly)
    assert [one.run.status for one in ended] == [RunStatus.SUCCESS, RunStatus.FAILURE]
    assert len(webserver.held) == 2


def test_an_attached_run_that_fails_is_launched_once_more_and_only_once() -> None:
    webserver = ScriptedWebserver()
    launcher_on(webserver).launch([task("2024-12-02"), task("2024-12-03")])
    webserver.script = [
        becomes("run-1", RunStatus.FAILURE),
        becomes("run-2", RunStatus.SUCCESS),
        becomes("run-3", RunStatus.FAILURE),
    ]
    launcher = launcher_on(webserver)
    ended = launcher.watch(launcher.launch([task("2024-12-02"), task("2024-12-03")]), quietly)
    assert [(one.run.run_id, one.run.status) for one in ended] == [("run-3", RunStatus.FAILURE), ("run-2", RunStatus.SUCCESS)]
    assert len(webserver.held) == 3


def test_a_cancelled_run_is_left_cancelled() -> None:
    webserver = ScriptedWebserver()
    launcher_on(webserver).launch([task("2024-12-02")])
    webserver.script = [becomes("run-1", RunStatus.CANCELED)]
    launcher = launcher_on(webserver)
    (ended,) = launcher.watch(launcher.launch([task("2024-12-02")]), quietly)
    assert ended.run.status is RunStatus.CANCELED
    assert len(webserver.held) == 1


def test_a_retry_that_dagster_makes_itself_is_followed() -> None:
    def retried(webserver: ScriptedWebserver) -> None:
        webserver.launch(HERE, "candles_1h", tags={**webserver.held["run-1"].tags, "dagster/retry_number": "1"})

    webserver = ScriptedWebserver(
        script=[
            becomes("run-1", RunStatus.FAILURE, tags={WILL_RETRY: "true"}),
            retried,
            becomes("run-2", RunStatus.SUCCESS),
        ]
    )
    launcher = launcher_on(webserver)
    (ended,) = launcher.watch(launcher.launch([task("2024-12-02")]), quietly)
    assert (ended.run.run_id, ended.run.status) == ("run-2", RunStatus.SUCCESS)


def test_a_webserver_that_restarts_is_waited_for_and_one_that_stays_away_is_an_error() -> None:
    def away(webserver: ScriptedWebserver) -> None:
        webserver.silent = True

    def back(webserver: ScriptedWebserver) -> None:
        webserver.silent = False
        webserver.now("run-1", RunStatus.SUCCESS)

    webserver = ScriptedWebserver(script=[away, *[lambda _: None] * 5, back])
    launcher = launcher_on(webserver)
    (ended,) = launcher.watch(launcher.launch([task("2024-12-02")]), quietly)
    assert ended.run.status is RunStatus.SUCCESS

    webserver = ScriptedWebserver(script=[away])
    launcher = launcher_on(webserver)
    with pytest.raises(WebserverUnreachableError):
        launcher.watch(launcher.launch([task("2024-12-02")]), quietly)


@pytest.mark.parametrize(
    ("status", "materialized", "done"),
    [(RunStatus.QUEUED, 0, 0), (RunStatus.STARTED, 20, 5), (RunStatus.STARTED, 400, 10), (RunStatus.SUCCESS, 0, 10)],
)
def test_a_run_of_minutes_reports_four_intervals_a_partition(status: RunStatus, materialized: int, done: int) -> None:
    run = Run("run-1", "candles_1m", status, {}, created_at=0.0, materialized=materialized)
    assert Launched(task("2024-12-02", Interval.M1), run, is_new=True).partitions_done == done


def test_progress_in_a_log_is_a_line_when_a_run_ends_or_ten_seconds_have_passed(capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 0.0, 1.0, 11.0, 11.0, 12.0, 12.0])
    counts = iter([(0, 0), (1950, 3900), (3900, 3900)])
    running = Run("run-1", "candles_1h", RunStatus.STARTED, {}, created_at=0.0, materialized=3)
    over = replace(running, status=RunStatus.SUCCESS, materialized=10)
    with progress(lambda: next(counts), monotonic=lambda: next(clock)) as show:
        show([Launched(task("2024-12-02"), running, is_new=True)])
        show([Launched(task("2024-12-02"), running, is_new=True)])
        show([Launched(task("2024-12-02"), running, is_new=True)])
        show([Launched(task("2024-12-02"), over, is_new=True)])
    assert capsys.readouterr().err.splitlines() == [
        "3 of 10 partitions; runs: 1 started",
        "3 of 10 partitions; runs: 1 started; 1,950 of 3,900 bars stored",
        "10 of 10 partitions; runs: 1 success; 3,900 of 3,900 bars stored",
    ]


def test_a_database_that_restarts_does_not_end_the_progress(capsys: pytest.CaptureFixture[str]) -> None:
    def away() -> tuple[int, int]:
        raise DatabaseUnreachableError("the database has gone")

    running = Run("run-1", "candles_1h", RunStatus.STARTED, {}, created_at=0.0, materialized=3)
    with progress(away, monotonic=lambda: 0.0) as show:
        show([Launched(task("2024-12-02"), running, is_new=True)])
    assert "the database does not answer" in capsys.readouterr().err
