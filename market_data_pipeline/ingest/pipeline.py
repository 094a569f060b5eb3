"""The collaborators every use-case works with, opened once by wiring and handed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    import sqlalchemy as sa

    from market_data_pipeline.domain.candles import Interval
    from market_data_pipeline.domain.ports import BarsProvider, Clock
    from market_data_pipeline.domain.sessions import TradingCalendar
    from market_data_pipeline.settings import Settings
    from market_data_pipeline.storage.bulk import CandleWriter
    from market_data_pipeline.storage.candles import CandleReader
    from market_data_pipeline.storage.derive import CandleDeriver
    from market_data_pipeline.storage.ledger import Ledger
    from market_data_pipeline.storage.universe import UniverseStore


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Everything real: the database's stores, the provider, the calendars and the clock."""

    settings: Settings
    clock: Clock
    engine: sa.Engine
    universe: UniverseStore
    ledger: Ledger
    writer: CandleWriter
    reader: CandleReader
    deriver: CandleDeriver
    provider: BarsProvider
    calendars: Callable[[str], TradingCalendar]

    def known_at(self, now: datetime) -> datetime | None:
        """The knowledge time to store: ``now`` on a virtual clock, None (the database's own clock) otherwise.

        Real knowledge times come from one clock, the database's, so that workers on skewed hosts cannot disagree about order.
        """
        return now if self.clock.is_virtual else None

    def settle_seconds(self, interval: Interval) -> int:
        """How long after its end a bar of ``interval`` is still pending: our margin, or the provider's longer delay."""
        capability = self.provider.capability(interval.source or interval)
        return max(self.settings.settle_seconds, capability.delay_seconds if capability else 0)

    def reach_seconds(self, interval: Interval) -> int | None:
        """How far back the provider serves ``interval``, through its source where it is derived; None for no limit."""
        capability = self.provider.capability(interval.source or interval)
        return None if capability is None else capability.reach_seconds
