"""The watch: who looks, when, what it cannot see, and what becomes of messages."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from market_data_pipeline.domain.alerts import AlertState, EventKind
from market_data_pipeline.domain.errors import ConfigurationError, DatabaseUnreachableError
from market_data_pipeline.domain.failures import Failure, FailureKind
from market_data_pipeline.ingest.alert_file import AlertsFile
from market_data_pipeline.ingest.alerting import open_alerts
from market_data_pipeline.ingest.watch import DiskUse, disk_under, watch
from market_data_pipeline.simulator.stage import Stage, Troupe, stage
from market_data_pipeline.storage.failures import FailureStore
from market_data_pipeline.storage.seats import WATCH, Seat
from market_data_pipeline.storage.watch import WatchState, commit_seconds, save_watch_state, watch_state

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from market_data_pipeline.domain.alert_config import Channel
    from market_data_pipeline.domain.alert_messages import Message
    from market_data_pipeline.ingest.alerting import DeliveryReport
    from market_data_pipeline.ingest.watch import WatchReport

ELEVEN = datetime(2024, 11, 20, 16, tzinfo=UTC)
FULL = DiskUse(1, 100)


@pytest.fixture
def played(database_url: str, tmp_path: Path) -> Iterator[Stage]:
    """A Wednesday at eleven in New York; all is well."""
    with stage(database_url, tmp_path, at=ELEVEN, troupe=Troupe(2, 1, 1)) as on_stage:
        yield on_stage


def ignored(_channel: Channel, _message: Message) -> None:
    """A channel that takes everything."""


def looked(on_stage: Stage, *, seconds: float = 0, free: DiskUse | None = None, force: bool = False) -> WatchReport:
    on_stage.clock.instant = ELEVEN + timedelta(seconds=seconds)
    on_stage.collect()
    use = free or DiskUse(60, 100)
    return watch(on_stage.pipeline, by="a test", force=force, disk=lambda _home: use, send=ignored)


def told(report: WatchReport) -> list[str]:
    assert report.fold is not None
    return [alert.rule for alert in report.fold.told(*EventKind)]


def delivered(report: WatchReport) -> DeliveryReport:
    assert report.delivery is not None
    return report.delivery


def firing(on_stage: Stage) -> set[str]:
    return {alert.rule for alert in open_alerts(on_stage.pipeline) if alert.state is AlertState.FIRING}


def test_nobody_looks_again_within_the_time_between_two_looks(played: Stage) -> None:
    assert looked(played).skipped is None
    assert looked(played, seconds=20).skipped == "a test looked at 16:00:00Z"
    assert looked(played, seconds=20, force=True).skipped is None
    assert looked(played, seconds=50).skipped is None


def test_a_clock_that_was_set_back_keeps_nobody_from_looking(played: Stage) -> None:
    looked(played)
    assert looked(played, seconds=-7 * 86_400).skipped is None


def test_while_one_looks_another_does_not_even_where_it_is_forced_to(played: Stage) -> None:
    with Seat(played.pipeline.engine, "mdp watch: somebody else", seat=WATCH) as seat:
        assert seat.take() is None
        assert "somebody else" in (looked(played, force=True).skipped or "")
    assert looked(played, force=True).skipped is None


def test_whoever_does_not_look_delivers_all_the_same(played: Stage) -> None:
    played.deaf_channels = {"ops"}
    looked(played, free=FULL)
    looked(played, seconds=60, free=FULL)
    FailureStore(played.pipeline.engine).note(Failure(FailureKind.RUN, "candles_1m", "it broke", ELEVEN))
    report = watch(played.pipeline, by="a test", force=True, disk=lambda _home: FULL, send=played.take)
    assert delivered(report).failed == 1
    played.deaf_channels = set()
    played.clock.instant += timedelta(seconds=20)
    report = watch(played.pipeline, by="a test", send=played.take)
    assert (report.skipped is not None, delivered(report).sent) == (True, 1)


def test_a_probe_that_fails_is_blind_and_ends_no_alert(played: Stage) -> None:
    looked(played, free=FULL)
    looked(played, seconds=60, free=FULL)
    assert firing(played) == {"DiskFilling"}

    def broken(_home: Path) -> DiskUse:
        raise OSError("Stale file handle")

    for minute in range(2, 20):
        played.clock.instant = ELEVEN + timedelta(minutes=minute)
        played.collect()
        report = watch(played.pipeline, by="a test", disk=broken, send=ignored)
        assert report.blind["DiskFilling"] == "Stale file handle"
    assert firing(played) == {"DiskFilling"}


def test_a_statement_that_fails_blinds_those_rules_alone(played: Stage) -> None:
    file = played.pipeline.settings.home / "alerts.yaml"
    symbol = played.pipeline.universe.instruments()[0].symbol
    rule = f"{{kind: threshold, source: candle, symbols: {symbol}, below: 1}}"
    file.write_text(f"price_rules: {{Cheap: {rule}}}\n", encoding="utf-8")
    with played.pipeline.engine.begin() as connection:
        connection.exec_driver_sql("drop table price_rule_state")
    played.clock.instant = ELEVEN
    played.collect()
    report = watch(played.pipeline, by="a test", alerts=AlertsFile(file), disk=lambda _home: FULL, send=ignored)
    assert (report.problem, report.blind["Cheap"]) == (None, "UndefinedTable")
    assert {alert.rule for alert in open_alerts(played.pipeline)} == {"DiskFilling"}


def test_a_run_that_failed_is_told_once_and_over_when_it_is_right_again(played: Stage) -> None:
    failures = FailureStore(played.pipeline.engine)
    failures.note(Failure(FailureKind.RUN, "candles_1m", "it broke", ELEVEN))
    assert told(looked(played)) == ["RunFailed"]
    assert told(looked(played, seconds=60)) == []
    failures.forget(FailureKind.RUN, ["candles_1m"])
    looked(played, seconds=120)
    assert firing(played) == set()


def test_an_alerts_file_that_cannot_be_used_is_said_and_slos_are_counted_all_the_same(played: Stage) -> None:
    file = played.pipeline.settings.home / "alerts.yaml"
    alerts = AlertsFile(file)
    watch(played.pipeline, by="a test", alerts=alerts, send=ignored)
    file.write_text("channels: [", encoding="utf-8")
    played.clock.instant += timedelta(minutes=1)
    with pytest.raises(ConfigurationError):
        watch(played.pipeline, by="a test", send=ignored)
    with played.pipeline.engine.connect() as connection:
        statement = "select sum(looks) from slo_samples where resolution_s = 3600 and interval_s = 60 and tier = 'T0'"
        assert connection.exec_driver_sql(statement).scalar_one() == 2
    played.clock.instant += timedelta(minutes=1)
    report = watch(played.pipeline, by="a test", alerts=alerts, send=ignored)
    assert (report.skipped, report.problem is not None) == (None, True)


def test_what_an_older_release_remembered_is_no_obstacle(played: Stage) -> None:
    save_watch_state(
        played.pipeline.engine, WatchState(ELEVEN - timedelta(minutes=5), "an older release", {"samples": [{"when": 1}]})
    )
    assert looked(played).skipped is None
    remembered = watch_state(played.pipeline.engine)
    assert remembered is not None
    assert len(remembered.memory["samples"]) == 1


def test_without_the_database_it_says_so(played: Stage) -> None:
    looked(played)
    url = played.pipeline.engine.url
    server = sa.create_engine(url.set(database="postgres"), isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.exec_driver_sql(f'alter database "{url.database}" allow_connections false')
        connection.exec_driver_sql("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (url.database,))
        try:
            with pytest.raises(DatabaseUnreachableError):
                looked(played, seconds=60)
        finally:
            connection.exec_driver_sql(f'alter database "{url.database}" allow_connections true')
    server.dispose()
    assert looked(played, seconds=60).skipped is None


def test_a_commit_is_timed_and_changes_nothing(played: Stage) -> None:
    instants = iter((10.0, 12.5))
    assert commit_seconds(played.pipeline.engine, clock=lambda: next(instants)) == 2.5


def test_the_disk_of_a_home_that_is_not_there_yet_is_that_of_its_parent(tmp_path: Path) -> None:
    assert disk_under(tmp_path / "not" / "yet").total == disk_under(tmp_path).total
