"""A whole stack for tests: `mdp up` under a home of its own, driven by the command line, and gone at the end."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from market_data_pipeline.settings import Settings
from market_data_pipeline.storage.database import database_url, open_engine
from market_data_pipeline_tests.conftest import roomy_memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True)
class Running:
    """A whole stack, and everything that is told of where it is."""

    home: Path
    environment: Mapping[str, str]

    def mdp(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), env=self.environment, capture_output=True, text=True, check=False, timeout=280
        )

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "market_data_pipeline.cli.main", *arguments]

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        quiet = subprocess.DEVNULL
        return subprocess.Popen(self.command(*arguments), env=self.environment, stdin=quiet, stdout=quiet, stderr=quiet)

    def files(self) -> list[Path]:
        """Everything that its processes wrote down: logs, Dagster's home, what runs left."""
        folders = ("logs", "dagster", "run", "traces")
        return [path for folder in folders for path in (self.home / folder).rglob("*") if path.is_file()]

    def processes(self) -> list[psutil.Process]:
        """Every process of this stack, the database's included."""
        mine = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("MDP_HOME") == str(self.home) or str(self.home) in process.cwd():
                    mine.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return mine

    def rows(self, query: str) -> list[tuple[object, ...]]:
        engine = open_engine(database_url(Settings(home=self.home)))
        try:
            with engine.connect() as connection:
                return [tuple(row) for row in connection.exec_driver_sql(query)]
        finally:
            engine.dispose()


@contextmanager
def a_home() -> Iterator[Path]:
    """A directory that root's Postgres may enter, gone at the end."""
    home = Path(tempfile.mkdtemp(prefix="mdp-stack-", dir=roomy_memory()))
    home.chmod(0o711)
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def a_stack(home: Path, variables: Mapping[str, str]) -> Iterator[Running]:
    """`mdp up` under ``home`` with these variables; whatever is left of it at the end is killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("MDP_", "DAGSTER_"))}
    told = {
        "MDP_HOME": str(home),
        "MDP_DAGSTER_URL": f"http://127.0.0.1:{port}",
        # The simulator stands in for Yahoo alone here: nobody else may be asked, and it refuses nobody.
        "MDP_POLICY_EOD": "yahoo",
        "MDP_LIMITS": "yahoo=none",
    }
    stack = Running(home, {**ours, **told, **variables})
    try:
        started = stack.mdp("up")
        assert started.returncode == 0, started.stdout + started.stderr
        yield stack
    finally:
        stack.mdp("down")
        kill(stack.processes())


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        # Children of Postgres end by themselves once it is gone.
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(processes, timeout=10)
