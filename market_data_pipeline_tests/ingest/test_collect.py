"""Lines of live collection keep their pace on a clock of their own, say what goes wrong, and end with what they have begun."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.domain.errors import UnavailableError
from market_data_pipeline.domain.sessions import trading_calendar
from market_data_pipeline.ingest.collect import Line, Tallies, Tally, collect, running_sessions

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass
class Time:
    """Monotonic seconds and a clock, both moved by waiting and by work alone; the end comes at ``ends_at``."""

    ends_at: float
    at: float = 0.0
    clock_at: float = 1_733_150_000.0

    def monotonic(self) -> float:
        return self.at

    def clock(self) -> float:
        return self.clock_at + self.at

    def wait(self, seconds: float) -> bool:
        self.at = min(self.at + seconds, self.ends_at)
        return self.at >= self.ends_at


@dataclass
class Work:
    """Rounds that last as long as they are told, one after the other; the last duration is that of all rounds after."""

    time: Time
    durations: list[float]
    outcomes: list[Tally | Exception | None] = field(default_factory=list)
    began: list[float] = field(default_factory=list)
    asset: str = "quotes/l1"

    def __call__(self) -> Tally | None:
        self.began.append(self.time.at)
        self.time.at += self.durations.pop(0) if len(self.durations) > 1 else self.durations[0]
        outcome = self.outcomes.pop(0) if self.outcomes else Tally(1, symbols=2, new=1, requests=1)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def run(work: Work, every: float, *, phase: float | None = None) -> tuple[Tallies, list[str]]:
    tallies, said = Tallies(), list[str]()
    Line("quotes T0", work, every, phase).run(
        tallies, monotonic=work.time.monotonic, wait=work.time.wait, clock=work.time.clock, say=said.append
    )
    return tallies, said


def test_rounds_begin_at_once_and_then_on_the_beat_however_long_each_takes() -> None:
    work = Work(Time(ends_at=26.0), [4.9, 0.1, 3.0])
    tallies, said = run(work, 5.0)
    assert work.began == [0.0, 5.0, 10.0, 15.0, 20.0, 25.0]
    assert (tallies.total()["quotes/l1"].skipped, said) == (0, [])


def test_a_slow_round_skips_beats_and_says_so_once() -> None:
    work = Work(Time(ends_at=200.0), [12.0])
    tallies, said = run(work, 5.0)
    assert work.began[:4] == [0.0, 15.0, 30.0, 45.0]
    told = tallies.total()["quotes/l1"]
    assert (told.rounds, told.skipped) == (14, 28)
    assert said == [
        "quotes T0: a round took longer than 5 s, 2 beats are skipped: fewer symbols or a longer cadence would keep pace"
    ]


def test_a_line_in_phase_is_due_at_its_second_of_the_minute() -> None:
    work = Work(Time(ends_at=200.0, clock_at=20.0), [1.0])
    run(work, 60.0, phase=92.0)
    assert [(work.time.clock_at + at) % 60 for at in work.began] == [32.0] * 4


def test_a_line_whose_second_has_just_passed_begins_at_once_and_is_in_phase_from_then_on() -> None:
    work = Work(Time(ends_at=200.0, clock_at=40.0), [1.0])
    run(work, 60.0, phase=92.0)
    assert work.began == [0.0, 52.0, 112.0, 172.0]


def test_a_clock_that_is_set_meanwhile_is_followed() -> None:
    class Setting(Work):
        def __call__(self) -> Tally | None:
            self.time.clock_at += 20.0 if len(self.began) == 2 else 0.0
            return super().__call__()

    work = Setting(Time(ends_at=290.0, clock_at=0.0), [1.0])
    run(work, 60.0, phase=5.0)
    # 20 seconds forward within the third round: the fourth is 20 seconds sooner.
    assert work.began == [5.0, 65.0, 125.0, 165.0, 225.0, 285.0]


def test_a_round_that_fails_is_tried_again_at_the_next_beat_and_its_end_is_said() -> None:
    away = UnavailableError("the database is away")
    work = Work(Time(ends_at=79.0), [0.5], [away, away, away])
    tallies, said = run(work, 5.0)
    assert said == [
        "quotes T0: the round failed: the database is away; trying again at the next beat",
        "quotes T0: the round as it should be again; 3 rounds were not",
    ]
    assert (tallies.total()["quotes/l1"].rounds, tallies.total()["quotes/l1"].new) == (16, 13)


def test_symbols_without_an_answer_are_named_and_not_every_round() -> None:
    bad = Tally(1, symbols=3, failed=2, failures={"NOPE": "no quote of NOPE", "NADA": "no quote of NADA"})
    work = Work(Time(ends_at=99.0), [0.5], [bad] * 20)
    _, said = run(work, 5.0)
    assert said == ["quotes T0: 2 of 3 symbols have no answer: NOPE and 1 more: no quote of NOPE"]


def test_rounds_with_nothing_to_do_are_not_counted() -> None:
    work = Work(Time(ends_at=9.0), [0.5], [None, None])
    tallies, said = run(work, 5.0)
    assert (tallies.total(), said) == ({}, [])


def test_every_reader_of_the_tallies_sees_each_round_once() -> None:
    tallies = Tallies()
    tallies.add("quotes/l1", Tally(1, new=1))
    assert tallies.take("dagster")["quotes/l1"].new == 1
    tallies.add("quotes/l1", Tally(1, new=2))
    assert (tallies.take("dagster")["quotes/l1"].new, tallies.take("summary")["quotes/l1"].new) == (2, 3)
    assert tallies.take("dagster") == {}
    assert str(tallies.total()["quotes/l1"]) == "3 new from 0 symbols in 2 rounds, 0 requests"


def collected(lines: list[Line], stop: threading.Event, beat: Callable[[], object] = lambda: None) -> Tallies:
    tallies = Tallies()
    time = Time(ends_at=1e9)
    collect(lines, tallies, stop=stop, monotonic=time.monotonic, clock=time.clock, say=lambda _: None, beat=beat, beat_seconds=0.01)
    return tallies


class Held:
    """A round that has begun when the end is announced, and goes on until it is let go."""

    asset = "quotes/l1"

    def __init__(self) -> None:
        self.has_begun, self.let_go = threading.Event(), threading.Event()

    def __call__(self) -> Tally:
        self.has_begun.set()
        assert self.let_go.wait(20)
        return Tally(1, symbols=1, new=1)


def test_a_round_that_has_begun_is_finished_when_the_end_is_announced() -> None:
    held, stop = Held(), threading.Event()

    def announce() -> None:
        assert held.has_begun.wait(20)
        stop.set()
        held.let_go.set()

    assert collected([Line("a", held, 5.0)], stop, announce).total()["quotes/l1"].new == 1


def test_a_bug_in_one_line_ends_all_and_is_raised() -> None:
    class Bug:
        asset = "quotes/l1"

        def __call__(self) -> Tally | None:
            raise ZeroDivisionError

    stop = threading.Event()
    with pytest.raises(ZeroDivisionError):
        collected([Line("a", Bug(), 5.0), Line("b", Bug(), 5.0)], stop)
    assert stop.is_set()


@pytest.mark.parametrize(
    ("calendar", "now", "sessions"),
    [
        ("XNYS", datetime(2024, 12, 2, 14, 29, tzinfo=UTC), []),
        ("XNYS", datetime(2024, 12, 2, 14, 31, tzinfo=UTC), [date(2024, 12, 2)]),
        ("XNYS", datetime(2024, 12, 2, 21, 4, tzinfo=UTC), [date(2024, 12, 2)]),
        ("XNYS", datetime(2024, 12, 2, 21, 6, tzinfo=UTC), []),
        # The lunch break.
        ("XHKG", datetime(2024, 12, 2, 4, 30, tzinfo=UTC), [date(2024, 12, 2)]),
        # Yesterday's last minutes come today.
        ("24/7", datetime(2024, 12, 2, 0, 3, tzinfo=UTC), [date(2024, 12, 1), date(2024, 12, 2)]),
        ("24/7", datetime(2024, 12, 2, 0, 6, tzinfo=UTC), [date(2024, 12, 2)]),
    ],
)
def test_sessions_run_until_their_last_minutes_have_come(calendar: str, now: datetime, sessions: list[date]) -> None:
    assert running_sessions(trading_calendar(calendar), now, linger=timedelta(minutes=5)) == sessions
