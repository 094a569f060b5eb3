"""The process of `mdp serve`: one socket, the routes, the watch, and an end that leaves nothing behind."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn

from market_data_pipeline.domain.errors import UnavailableError
from market_data_pipeline.ingest.alert_file import read_alerts_file
from market_data_pipeline.ingest.routing import check_names
from market_data_pipeline.providers.registry import installed_providers
from market_data_pipeline.serving.app import application, is_loopback
from market_data_pipeline.serving.source import PipelineSource
from market_data_pipeline.serving.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from market_data_pipeline.settings import Settings

logger = logging.getLogger(__name__)

# Requests under way are finished, within this; the watch and the pipeline have as long each.
GRACE_SECONDS = 5


def serve(settings: Settings, *, watches: bool, tell: Callable[[str], None]) -> None:
    """Answer until SIGTERM or Ctrl-C. ``tell`` is given the URL once it answers.

    The database need not be there: /health says so, as it does when it goes away later. Raises ConfigurationError for settings or
    an alerts file that cannot be used, and UnavailableError where it cannot listen.
    """
    check_names(settings, installed_providers())
    read_alerts_file(settings.alerts_file)
    source = PipelineSource(settings)
    with _listening(settings.serve_host, settings.serve_port) as listener, _signals_are_no_death():
        port = listener.getsockname()[1]
        name = f"[{settings.serve_host}]" if ":" in settings.serve_host else settings.serve_host
        if not is_loopback(settings.serve_host):
            logger.warning("listening on %s: whoever reaches port %d can read all of it; there is no password", name, port)
        watcher = Watcher(source, every_seconds=settings.watch_every_seconds) if watches else None
        server = _Server(_config(source, settings, watcher), on_start=lambda: tell(f"http://{name}:{port}"))
        if watcher is not None:
            watcher.start()
        try:
            server.run(sockets=[listener])
        finally:
            if watcher is not None:
                watcher.stop(GRACE_SECONDS)
            _close(source)


def _config(source: PipelineSource, settings: Settings, watcher: Watcher | None) -> uvicorn.Config:
    told = {} if watcher is None else {"census": watcher.census}
    return uvicorn.Config(
        application(source, host=settings.serve_host, **told),
        log_config=None,  # ours is in force
        access_log=False,  # nothing that is served is worth a line each fifteen seconds
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, *, on_start: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; then say so."""
        await super().startup(sockets)
        if self.started:
            self._on_start()


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise UnavailableError(f"cannot listen on {host}, port {port}: {error.strerror}") from error
    with listener:
        yield listener


@contextmanager
def _signals_are_no_death() -> Iterator[None]:
    """Uvicorn ends at a signal, and then raises it again: by then it has done its work."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _close(source: PipelineSource) -> None:
    """Close the pipeline, but do not wait for a database that has stopped."""
    closing = threading.Thread(target=source.close, name="closing", daemon=True)
    closing.start()
    closing.join(GRACE_SECONDS)
