"""dagster.yaml and its variant on SQLite load, and are the same but for the storage."""

from __future__ import annotations

import logging
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.run_request import InstigatorType
from pydantic import SecretStr

from market_data_pipeline.defs.event_log import BatchPostgresEventLogStorage, BatchSqliteEventLogStorage
from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.observability.logs import configure
from market_data_pipeline.settings import Settings
from market_data_pipeline_tests.defs.instances import empty_database

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
POSTGRES, SQLITE = ROOT / "dagster.yaml", ROOT / "deploy" / "dagster-sqlite.yaml"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    # Set first, so that what the storage puts there is taken away again.
    monkeypatch.setenv("DAGSTER_EVENT_BATCH_SIZE", "0")
    monkeypatch.delenv("DAGSTER_EVENT_BATCH_SIZE")
    return tmp_path


@pytest.fixture
def dagster_database(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with empty_database(postgres_url) as url:
        monkeypatch.setenv("MDP_DAGSTER_DATABASE_URL", url)
        yield url


def read(path: Path) -> dict[str, Any]:
    held: dict[str, Any] = yaml.safe_load(path.read_text())
    return held


@pytest.mark.usefixtures("dagster_database")
def test_the_file_loads_on_postgres_with_the_batched_event_log(home: Path) -> None:
    shutil.copy(POSTGRES, home / "dagster.yaml")
    with dg.DagsterInstance.get() as instance:
        assert isinstance(instance.event_log_storage, BatchPostgresEventLogStorage)
        assert not instance.telemetry_enabled
        instance.add_dynamic_partitions("symbols", ["AAPL"])
        assert instance.get_dynamic_partitions("symbols") == ["AAPL"]


@pytest.mark.usefixtures("dagster_database")
@pytest.mark.parametrize("file", [POSTGRES, SQLITE], ids=lambda path: path.name)
@pytest.mark.parametrize("kind", [InstigatorType.SCHEDULE, InstigatorType.SENSOR])
def test_ticks_of_which_nothing_came_are_kept_for_three_days_and_no_tick_for_ever(
    home: Path, file: Path, kind: InstigatorType
) -> None:
    # A sensor that looks every ten seconds makes 8,640 of them a day.
    shutil.copy(file, home / "dagster.yaml")
    with dg.DagsterInstance.get() as instance:
        days = {status.value.lower(): kept for status, kept in instance.get_tick_retention_settings(kind).items()}
    assert days == {"skipped": 3, "started": 3, "success": 30, "failure": 30}


def test_what_our_modules_log_stands_on_the_page_of_the_run_whatever_thread_says_it(home: Path) -> None:
    shutil.copy(SQLITE, home / "dagster.yaml")
    logger = logging.getLogger("market_data_pipeline.ingest.somewhere")

    @dg.op
    def talks() -> None:
        undo = configure(Settings(finnhub_key=SecretStr("canary7f3a91")), ours_alone=True)
        thread = threading.Thread(target=logger.warning, args=("ALFA 1m: no bars with %s", "canary7f3a91"))
        thread.start()
        thread.join()
        logger.info("one line a fact")
        logger.debug("too much")
        undo()

    @dg.job
    def talk() -> None:
        talks()

    with dg.DagsterInstance.get() as instance:
        run = talk.execute_in_process(instance=instance)
        lines = [entry.user_message for entry in instance.all_logs(run.run_id) if not entry.is_dagster_event]
    assert lines == ["ALFA 1m: no bars with ***", "one line a fact"]


def test_the_variant_loads_on_sqlite_with_the_batched_event_log(home: Path) -> None:
    shutil.copy(SQLITE, home / "dagster.yaml")
    with dg.DagsterInstance.get() as instance:
        assert isinstance(instance.event_log_storage, BatchSqliteEventLogStorage)
        instance.add_dynamic_partitions("symbols", ["AAPL"])
        assert (home / "history" / "runs" / "index.db").exists()


def test_the_storage_asks_for_batches_where_nobody_said_otherwise(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(SQLITE, home / "dagster.yaml")
    monkeypatch.setenv("DAGSTER_EVENT_BATCH_SIZE", "7")
    with dg.DagsterInstance.get() as instance:
        assert instance._get_event_batch_size() == 7  # noqa: SLF001 - Dagster has no public name for it


def test_without_a_home_the_sqlite_log_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    with pytest.raises(ConfigurationError, match="DAGSTER_HOME"):
        BatchSqliteEventLogStorage.from_config_value(None, {"batch_size": 0})


def test_the_two_files_differ_in_nothing_but_the_storage() -> None:
    without_storage = [{name: value for name, value in read(path).items() if "storage" not in name} for path in (POSTGRES, SQLITE)]
    assert without_storage[0] == without_storage[1]


def test_few_fat_runs_at_a_time_and_a_place_for_a_session_that_has_just_closed() -> None:
    runs = read(POSTGRES)["concurrency"]["runs"]
    limits = {limit["value"]: limit["limit"] for limit in runs["tag_concurrency_limits"]}
    assert 2 <= runs["max_concurrent_runs"] <= 6
    assert limits["healing"] + limits["jobs"] < runs["max_concurrent_runs"]
    assert (limits["history"] < limits["jobs"], limits["recheck"] < limits["healing"]) == (True, True)


def test_a_run_whose_work_failed_is_not_retried_and_one_that_crashed_is() -> None:
    assert read(POSTGRES)["run_retries"] == {"enabled": True, "max_retries": 1, "retry_on_asset_or_op_failure": False}


def test_no_password_is_in_the_files() -> None:
    for path in (POSTGRES, SQLITE):
        assert "password" not in path.read_text().lower()
        assert "://user" not in path.read_text()
