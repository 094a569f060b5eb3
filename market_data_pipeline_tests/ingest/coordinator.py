"""A Rate-Limit Coordinator as tests play it: jobs, how they are pushed, and what is left of them in Redis."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from market_data_pipeline.testing.redis_server import RedisServer


def quotes(number: int, tier: str = "T0", **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - any field
    """A valid job like no other of another number."""
    return {"type": "quotes_fetch", "job_id": f"q-{number}", "priority": tier, "symbols": [f"S{number}"], **changes}


def backfill(number: int, tier: str = "T1") -> dict[str, Any]:
    window = {"interval": "1d", "start": "2024-01-01T00:00:00Z", "end": "2024-12-01T00:00:00Z"}
    return {"type": "backfill", "job_id": f"b-{number}", "priority": tier, "symbol": f"S{number}", **window}


def push(redis: RedisServer, source: str, *jobs: dict[str, Any] | bytes | str) -> None:
    """As a Rate-Limit Coordinator does."""
    redis.client.lpush(source, *(job if isinstance(job, bytes | str) else json.dumps(job) for job in jobs))


def left_in(redis: RedisServer) -> dict[str, int]:
    """How much is in each list, processing lists included; nothing of those that are empty."""
    names = [name.decode() for name in redis.client.keys("market:*")]  # type: ignore[union-attr]
    return {name: int(redis.client.llen(name)) for name in names if redis.client.type(name) == b"list"}


def until(holds: Callable[[], bool], *, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not become true in time"
        threading.Event().wait(0.01)
