"""The clock of a running simulator: demo and tests live in its virtual time, and every process agrees on it."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from market_data_pipeline.providers.http import HttpClient


class SimulatorClock:
    """Asks the control port each time: a copy kept here would be wrong as soon as somebody moved the clock."""

    is_virtual = True

    def __init__(self, http: HttpClient, control_url: str) -> None:
        self._http = http
        self._url = f"{control_url.rstrip('/')}/__sim/clock"

    def now(self) -> datetime:
        """The simulator's virtual instant, UTC. Raises TransientError when it does not answer."""
        return datetime.fromisoformat(orjson.loads(self._http.get(self._url, provider="simulator").body)["now"])
