"""The routes: each asks one question and says the answer. Nothing here changes anything."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from market_data_pipeline import __version__
from market_data_pipeline.domain.errors import DatabaseUnreachableError, MarketDataError
from market_data_pipeline.ingest.metrics import snapshot
from market_data_pipeline.observability.exposition import exposition
from market_data_pipeline.serving.flight import Flight
from market_data_pipeline.serving.health import (
    OTHERS,
    Part,
    Status,
    health_of,
    other_parts,
    vital_parts,
    without_database,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from market_data_pipeline.domain.freshness import Census
    from market_data_pipeline.domain.metrics import MetricsSnapshot
    from market_data_pipeline.serving.source import PipelineSource

logger = logging.getLogger(__name__)

# Probes give up after some seconds and call it dead; this must be said before.
HEALTH_PATIENCE_SECONDS = 1.5
# Prometheus gives up after ten.
METRICS_PATIENCE_SECONDS = 8.0
LINKS = {"health": "/health", "metrics": "/metrics"}


def application(source: PipelineSource, *, host: str, census: Callable[[datetime], Census | None] = lambda _now: None) -> Starlette:
    """The application on a pipeline. ``host``: where it will listen; on loopback it answers to no other name.

    ``census``: that of a watch in this process, where it took one just before an instant; a scrape need not count all again.
    """
    health, metrics = _HealthRoute(source), _MetricsRoute(source, census)
    served = Starlette(
        routes=[Route("/", _root), Route("/health", health.answer), Route("/metrics", metrics.answer)],
        middleware=[Middleware(_OurName, host=host)],
        exception_handlers={HTTPException: _refused, Exception: _failed},
    )
    served.router.redirect_slashes = False
    return served


async def _root(_request: Request) -> Response:
    return JSONResponse({"name": "market_data_pipeline", "version": __version__, "links": LINKS})


class _HealthRoute:
    """200 where the pipeline can work, also where something of it cannot; 503 where nothing can be read or written."""

    def __init__(self, source: PipelineSource) -> None:
        self._source = source
        self._vital = Flight("health", self._look_at_vital)
        self._others = Flight("health", lambda: other_parts(self._source.get()))

    def _look_at_vital(self) -> Mapping[str, Part]:
        try:
            return vital_parts(self._source.get())
        except DatabaseUnreachableError as away:
            self._source.doubt()
            return without_database(_said(away))
        except MarketDataError as wrong:
            return without_database(str(wrong))

    async def answer(self, _request: Request) -> Response:
        """Within two seconds, whatever the database does; what has not answered by then is said to have not."""
        vital, others = await asyncio.gather(
            self._vital.ask(HEALTH_PATIENCE_SECONDS), self._others.ask(HEALTH_PATIENCE_SECONDS), return_exceptions=True
        )
        found = health_of(
            without_database(_why_not(vital)) if isinstance(vital, BaseException) else vital,
            dict.fromkeys(OTHERS, Part(ok=False, why=_why_not(others))) if isinstance(others, BaseException) else others,
        )
        parts = {name: asdict(part) for name, part in found.parts.items()}
        code = 503 if found.status is Status.UNAVAILABLE else 200
        return JSONResponse({"status": found.status, "version": __version__, "parts": parts}, code, headers=_FRESH)


def _why_not(failure: BaseException) -> str:
    if isinstance(failure, TimeoutError):
        return f"no answer within {HEALTH_PATIENCE_SECONDS:g} s"
    return f"cannot be asked: {type(failure).__name__}"


class _MetricsRoute:
    """Every metric, in the format that is asked for. Two scrapes at one time are one look at the database."""

    def __init__(self, source: PipelineSource, census: Callable[[datetime], Census | None]) -> None:
        self._source, self._census = source, census
        self._flight = Flight("scrape", self._look)

    def _look(self) -> MetricsSnapshot:
        pipeline = self._source.get()
        now = pipeline.clock.now()
        return snapshot(pipeline, now=now, census=self._census(now))

    async def answer(self, request: Request) -> Response:
        """503 where the database is away: numbers of a while ago would be taken for those of now."""
        try:
            found = await self._flight.ask(METRICS_PATIENCE_SECONDS)
        except TimeoutError:
            return _no_metrics(f"the database has not answered within {METRICS_PATIENCE_SECONDS:g} s")
        except DatabaseUnreachableError as away:
            self._source.doubt()
            return _no_metrics(_said(away))
        except MarketDataError as wrong:
            return _no_metrics(str(wrong))
        body, content_type = exposition(found, request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type, **_FRESH})


_FRESH = {"cache-control": "no-store"}


def _no_metrics(why: str) -> Response:
    return PlainTextResponse(f"no metrics: {why}\n", 503, headers=_FRESH)


def _said(away: DatabaseUnreachableError) -> str:
    # What follows the colon is libpq's and names the account; the log has it.
    return str(away).partition(": ")[0]


async def _refused(_request: Request, refused: Exception) -> Response:
    assert isinstance(refused, HTTPException)  # noqa: S101 - as it is registered
    return JSONResponse({"error": refused.detail.lower()}, refused.status_code, headers=refused.headers)


async def _failed(request: Request, _error: Exception) -> Response:
    # uvicorn logs the error itself.
    return JSONResponse({"error": f"{request.url.path} failed: see the log of `mdp serve`"}, 500)


# --- who we are ------------------------------------------------------------------------------------------------------------


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _OurName:
    """Refuses requests for other names than ours: a page in somebody's browser could else read us through a name of its own.

    Only on loopback. Whoever listens for others is known by names that we cannot know.
    """

    def __init__(self, app: ASGIApp, *, host: str) -> None:
        self._app, self._guards = app, is_loopback(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._guards or is_loopback(_name_of(scope)):
            await self._app(scope, receive, send)
            return
        refused = JSONResponse({"error": "this server is called localhost, and nothing else"}, 421)
        await refused(scope, receive, send)


def _name_of(scope: Scope) -> str:
    headers: list[tuple[bytes, Any]] = scope["headers"]
    named = next((value for name, value in headers if name == b"host"), b"").decode("latin-1")
    # [::1]:8600, 127.0.0.1:8600, localhost
    return named.partition("]")[0].removeprefix("[") if named.startswith("[") else named.partition(":")[0].lower()
