"""What the tests of adapters share: clients that never wait, requests of one session, failures as a server provokes them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.errors import ProviderError
from market_data_pipeline.domain.ports import BarsRequest
from market_data_pipeline.providers.http import HttpClient, HttpPolicy
from market_data_pipeline_tests.providers.loopback import Loopback, Reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from market_data_pipeline.domain.ports import BarsProvider

NOW = datetime(2024, 7, 2, 21, 0, 30, tzinfo=UTC)
OPEN = int(datetime(2024, 7, 1, 13, 30, tzinfo=UTC).timestamp())
MINUTES = BarsRequest("MSFT", Interval.M1, OPEN, OPEN + 390 * 60)
DAYS = BarsRequest("MSFT", Interval.D1, OPEN - 3 * 86_400, OPEN + 390 * 60)
JSON = {"Content-Type": "application/json"}


def at(text: str) -> int:
    """Epoch seconds of an ISO instant."""
    return int(datetime.fromisoformat(text).timestamp())


def encoded(value: object) -> bytes:
    return json.dumps(value).encode()


def ok(value: object) -> Reply:
    return Reply(body=encoded(value), headers=JSON)


def client() -> HttpClient:
    return HttpClient(HttpPolicy(timeout_seconds=5.0, attempts=3), sleep=lambda _: None)


def failure_of(
    open_provider: Callable[[str, HttpClient], BarsProvider], *replies: Reply, request: BarsRequest = MINUTES, now: datetime = NOW
) -> tuple[ProviderError, int]:
    """The error that fetching ends in when the server answers so, and how many requests it got."""
    with Loopback(*replies) as server, client() as http:
        with pytest.raises(ProviderError) as raised:
            open_provider(server.url, http).fetch_bars(request, now=now)
        return raised.value, len(server.requests)
