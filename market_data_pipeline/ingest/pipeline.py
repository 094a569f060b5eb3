"""The collaborators every use-case works with, opened once by wiring and handed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from market_data_pipeline.domain.capabilities import bars
from market_data_pipeline.domain.ports import BarsProvider
from market_data_pipeline.domain.tracing import NO_TRACER

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    import sqlalchemy as sa

    from market_data_pipeline.domain.candles import Interval
    from market_data_pipeline.domain.capabilities import Capability
    from market_data_pipeline.domain.ports import Budget, Clock, Provider
    from market_data_pipeline.domain.sessions import TradingCalendar
    from market_data_pipeline.domain.tracing import Tracer
    from market_data_pipeline.ingest.routing import Router
    from market_data_pipeline.settings import Settings
    from market_data_pipeline.storage.bulk import CandleWriter
    from market_data_pipeline.storage.candles import CandleReader
    from market_data_pipeline.storage.counters import Counters
    from market_data_pipeline.storage.derive import CandleDeriver
    from market_data_pipeline.storage.health import HealthBook
    from market_data_pipeline.storage.jobs import JobQueue
    from market_data_pipeline.storage.ledger import Ledger
    from market_data_pipeline.storage.universe import UniverseStore


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Everything real: the database's stores, the providers, the calendars and the clock."""

    settings: Settings
    clock: Clock
    engine: sa.Engine
    universe: UniverseStore
    ledger: Ledger
    writer: CandleWriter
    reader: CandleReader
    deriver: CandleDeriver
    providers: Mapping[str, Provider]
    health: HealthBook
    router: Router
    jobs: JobQueue
    counters: Counters
    calendars: Callable[[str], TradingCalendar]
    budget: Budget | None = None
    tracer: Tracer = NO_TRACER

    def known_at(self, now: datetime) -> datetime | None:
        """The knowledge time to store: ``now`` on a virtual clock, None (the database's own clock) otherwise.

        Real knowledge times come from one clock, the database's, so that workers on skewed hosts cannot disagree about order.
        """
        return now if self.clock.is_virtual else None

    def capability(self, interval: Interval) -> Capability | None:
        """Of the first provider in the policy that can serve ``interval`` (through its source where it is derived)."""
        return next((capability for _, capability in self.bars_providers(interval.source or interval)), None)

    def bars_providers(self, interval: Interval, *, hint: str | None = None) -> list[tuple[BarsProvider, Capability]]:
        """Those that the policy and the hint name, best first, that lack nothing and serve ``interval``, whatever their health."""
        configured, _ = self.router.configured(bars(interval), hint=hint)
        return [(provider, capability) for provider, capability in configured if isinstance(provider, BarsProvider)]

    def settle_seconds(self, interval: Interval) -> int:
        """How long after its end a bar of ``interval`` is still pending: our margin, or the first provider's longer delay."""
        capability = self.capability(interval)
        return max(self.settings.settle_seconds, capability.delay_seconds if capability else 0)

    def reach_seconds(self, interval: Interval, calendar: str | None = None, *, hint: str | None = None) -> int | None:
        """How far back any provider serves ``interval`` of instruments of ``calendar``; None for no limit, 0 where none does.

        Through its source where it is derived. Without a calendar: of whatever instruments.
        """
        serving = [capability for _, capability in self.bars_providers(interval.source or interval, hint=hint)]
        reaches = [capability.reach_seconds for capability in serving if capability.knows(calendar)]
        if None in reaches or not serving:
            return None
        return max((reach for reach in reaches if reach is not None), default=0)

    def reaches(self, intervals: Sequence[Interval]) -> dict[tuple[Interval, str | None], int | None]:
        """``reach_seconds`` of each interval, by calendar where some provider is limited to some; None for all other calendars."""
        found: dict[tuple[Interval, str | None], int | None] = {}
        for interval in intervals:
            serving = [capability for _, capability in self.bars_providers(interval.source or interval)]
            named = frozenset().union(*(capability.calendars or () for capability in serving))
            elsewhere = [capability.reach_seconds for capability in serving if capability.calendars is None]
            limits = [reach for reach in elsewhere if reach is not None]
            found[interval, None] = None if None in elsewhere or not serving else max(limits, default=0)
            found |= {(interval, calendar): self.reach_seconds(interval, calendar) for calendar in sorted(named)}
        return found
