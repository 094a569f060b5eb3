"""The checks of an asset as a person sees them: a real webserver, a real run of the checks, and a browser without a screen."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg
import httpx
import pytest
from pydantic import SecretStr

from market_data_pipeline.domain.universe import Tier, UniverseEntry
from market_data_pipeline.settings import Settings
from market_data_pipeline.wiring import open_pipeline
from market_data_pipeline_tests.cli.builders import store
from market_data_pipeline_tests.tools import tool

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

SYMBOLS = ("AAPL", "MSFT")
SESSIONS = [date(2024, 11, 27), date(2024, 11, 29), date(2024, 12, 2)]
TODAY = date(2024, 12, 3)
# New York at half past ten: an hour of minutes is there.
AT = datetime(2024, 12, 3, 15, 30, tzinfo=UTC)
CHECKS = (
    "newest_candle_is_on_time",
    "session_is_complete",
    "prices_are_sane",
    "ledger_matches_dagster",
    "no_partition_is_left_failed",
    "providers_agree",
)
PAGE = "/assets/candles/1m?view=checks"
# Pictures are kept in docs/images by whoever runs this with MDP_TEST_PICTURES=docs/images.
PICTURES = "MDP_TEST_PICTURES"


@dataclass(frozen=True)
class Page:
    """What the browser made of a page."""

    text: str
    picture: bytes


@dataclass(frozen=True)
class Place:
    """A Dagster home with our definitions, on a database that has AAPL and MSFT until an instant."""

    home: Path
    environment: Mapping[str, str]
    url: str

    def store(self, symbol: str, lacking: range, *, at: datetime) -> None:
        """Today's minutes of ``symbol``, except these."""
        url = SecretStr(self.environment["MDP_DATABASE_URL"])
        with open_pipeline(Settings(home=self.home, database_url=url, clock=at.isoformat())) as pipeline:
            store(pipeline, symbol, TODAY, lacking=lacking, known_at=at)

    def run(self, job: str, *, at: datetime) -> None:
        """A real run of ``job``, in a process of its own, with the pipeline's clock standing at ``at``."""
        command = [sys.executable, "-W", "ignore", "-m", "dagster", "job", "execute", "-m", "market_data_pipeline.definitions"]
        done = subprocess.run(
            [*command, "-j", job],
            env={**self.environment, "MDP_CLOCK": at.isoformat()},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr[-4000:]

    def page(self, path: str, name: str) -> Page:
        """The page at ``path``, once its scripts have rested."""
        picture = self.home / f"{name}.png"
        quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
        quiet += ["--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--no-proxy-server"]
        where = [f"--user-data-dir={self.home / 'browser'}", "--window-size=1600,1000", "--virtual-time-budget=20000"]
        looked = subprocess.run(
            [str(tool("chromium")), *quiet, *where, "--dump-dom", f"--screenshot={picture}", f"{self.url}{path}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )
        assert looked.returncode == 0, looked.stderr[-2000:]
        return Page(looked.stdout, picture.read_bytes())


@pytest.fixture
def place(database_url: str, tmp_path: Path) -> Iterator[Place]:
    tool("chromium")
    settings = Settings(home=tmp_path / "mdp", database_url=SecretStr(database_url), clock=AT.isoformat())
    with open_pipeline(settings) as pipeline:
        entries = [UniverseEntry(symbol, "XNAS", Tier.T0) for symbol in SYMBOLS]
        pipeline.universe.load(entries, version_tag="t", source="t", source_sha256="0" * 64, loaded_by="t")
        for symbol in SYMBOLS:
            for session in SESSIONS:
                store(pipeline, symbol, session, known_at=AT)
            store(pipeline, symbol, TODAY, lacking=range(60, 390), known_at=AT)
    home = tmp_path / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\nnux: {enabled: false}\n")
    with dg.DagsterInstance.from_config(str(home)) as instance:
        instance.add_dynamic_partitions("symbols", SYMBOLS)
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("MDP_", "DAGSTER_"))}
    environment = {**ours, "DAGSTER_HOME": str(home), "MDP_HOME": str(tmp_path / "mdp"), "MDP_DATABASE_URL": database_url}
    with _webserver(home, environment) as url:
        yield Place(home, environment, url)


@contextmanager
def _webserver(home: Path, environment: Mapping[str, str]) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-W", "ignore", "-m", "dagster_webserver", "--host", "127.0.0.1", "--port", url.rpartition(":")[2]]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "-m", "market_data_pipeline.definitions"], env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            deadline = time.monotonic() + 60
            while not _answers(url):
                assert process.poll() is None, (home / "log").read_text()
                assert time.monotonic() < deadline, "the webserver did not start within a minute"
                threading.Event().wait(0.2)
            yield url
        finally:
            process.terminate()
            process.wait(20)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/server_info", trust_env=False).is_success
    except httpx.TransportError:
        return False


def keep(page: Page, name: str) -> None:
    """Where somebody wants the picture, put it there."""
    folder = os.environ.get(PICTURES)
    if folder:
        from pathlib import Path  # noqa: PLC0415 - nobody else needs it here

        (Path(folder) / name).write_bytes(page.picture)


@pytest.mark.timeout(240)
def test_the_page_of_an_asset_shows_its_checks_passing_and_then_a_late_symbol(place: Place) -> None:
    place.run("reconcile", at=AT)
    place.run("candle_checks", at=AT)
    passing = place.page(f"{PAGE}&checkDetail=newest_candle_is_on_time", "passing")
    keep(passing, "checks_passing.png")
    assert [name for name in CHECKS if name not in passing.text] == []
    assert "symbols are on time" in passing.text
    later = AT + timedelta(minutes=25)
    place.store("MSFT", range(85, 390), at=later)
    place.run("candle_checks", at=later)
    failing = place.page(f"{PAGE}&checkDetail=newest_candle_is_on_time", "failing")
    keep(failing, "checks_failing.png")
    assert "1 of 2 T0 symbols are late; the worst: AAPL" in failing.text
    assert len(failing.picture) < 300_000 > len(passing.picture)
