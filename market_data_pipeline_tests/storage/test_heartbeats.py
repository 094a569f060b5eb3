"""A run is alive as long as it beats."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from market_data_pipeline.storage.heartbeats import Heartbeats

if TYPE_CHECKING:
    from sqlalchemy import Engine

STARTED = datetime(2026, 3, 2, 14, 30, tzinfo=UTC)
AN_HOUR = timedelta(hours=1)


def let_pass(engine: Engine, time: timedelta) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("update run_heartbeats set beat_at = beat_at - %(time)s::interval", {"time": time})


def test_a_silent_run_lapses_and_a_beating_one_does_not(engine: Engine) -> None:
    beats = Heartbeats(engine)
    for run_id in ("silent", "longer silent", "alive"):
        beats.beat(run_id, host="a", pid=7, process_started_at=STARTED)
        let_pass(engine, AN_HOUR)
    beats.beat("alive", host="a", pid=7, process_started_at=STARTED)
    lapsed = beats.lapsed(AN_HOUR)
    assert [beat.run_id for beat in lapsed] == ["silent", "longer silent"]
    assert (lapsed[0].host, lapsed[0].pid, lapsed[0].process_started_at) == ("a", 7, STARTED)
    assert lapsed[0].silent_for >= 3 * AN_HOUR


def test_a_restarted_run_beats_from_its_new_process(engine: Engine) -> None:
    beats = Heartbeats(engine)
    beats.beat("run", host="a", pid=7, process_started_at=STARTED)
    beats.beat("run", host="b", pid=8, process_started_at=STARTED + AN_HOUR)
    (beat,) = beats.lapsed(timedelta(0))
    assert (beat.host, beat.pid, beat.process_started_at) == ("b", 8, STARTED + AN_HOUR)


def test_a_forgotten_run_never_lapses(engine: Engine) -> None:
    beats = Heartbeats(engine)
    beats.beat("run", host="a", pid=7, process_started_at=STARTED)
    beats.forget("run")
    beats.forget("run")
    assert beats.lapsed(timedelta(0)) == []
