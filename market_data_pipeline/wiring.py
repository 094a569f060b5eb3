"""Settings to real collaborators, as context managers. Used by Dagster and the command line alike."""

from __future__ import annotations

import os
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from market_data_pipeline.domain.budget import limits_of
from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.domain.sessions import parse_overrides, trading_calendar
from market_data_pipeline.ingest.pipeline import Pipeline
from market_data_pipeline.ingest.routing import Router, check_names
from market_data_pipeline.observability.telemetry import tracer_of
from market_data_pipeline.providers.http import HttpClient
from market_data_pipeline.providers.registry import ProviderContext, installed_providers, open_providers
from market_data_pipeline.providers.simulator_clock import SimulatorClock
from market_data_pipeline.storage.budgets import PostgresBudget
from market_data_pipeline.storage.bulk import CandleWriter
from market_data_pipeline.storage.candles import CandleReader
from market_data_pipeline.storage.counters import Counters
from market_data_pipeline.storage.database import database_url, open_engine
from market_data_pipeline.storage.derive import CandleDeriver
from market_data_pipeline.storage.health import HealthBook
from market_data_pipeline.storage.jobs import JobQueue
from market_data_pipeline.storage.ledger import Ledger
from market_data_pipeline.storage.universe import UniverseStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from market_data_pipeline.domain.ports import Clock
    from market_data_pipeline.domain.sessions import SessionOverride, TradingCalendar
    from market_data_pipeline.settings import Settings


class SystemClock:
    """The machine's clock."""

    is_virtual = False

    def now(self) -> datetime:
        """The current instant, UTC."""
        return datetime.now(UTC)


class StandingClock:
    """A clock that stands still: for tests and for asking "what would you do at T?"."""

    is_virtual = True

    def __init__(self, instant: datetime) -> None:
        self._instant = instant

    def now(self) -> datetime:
        """The instant it stands at."""
        return self._instant


def calendars_of(settings: Settings) -> Callable[[str], TradingCalendar]:
    """The calendars by name, with the overrides of MDP_CALENDAR_OVERRIDES."""
    return partial(trading_calendar, overrides=_overrides(settings))


def _overrides(settings: Settings) -> tuple[SessionOverride, ...]:
    path = settings.calendar_overrides
    if path is None:
        return ()
    try:
        return parse_overrides(path.read_text(encoding="utf-8"))
    except OSError as unreadable:
        raise ConfigurationError(f"MDP_CALENDAR_OVERRIDES: cannot read {path}: {unreadable.strerror}") from unreadable


def clock_of(settings: Settings, http: HttpClient) -> Clock:
    """The clock that MDP_CLOCK names: the system's, one that stands still, or a simulator's."""
    if settings.clock == "system":
        return SystemClock()
    if settings.clock.startswith(("http://", "https://")):
        return SimulatorClock(http, settings.clock)
    try:
        instant = datetime.fromisoformat(settings.clock)
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None:
        expected = '"system", an ISO 8601 instant with Z or an offset, or the control URL of `mdp simulate`'
        raise ConfigurationError(f"MDP_CLOCK: {settings.clock!r} is no clock: expected {expected}")
    return StandingClock(instant.astimezone(UTC))


@contextmanager
def open_pipeline(settings: Settings) -> Iterator[Pipeline]:
    """The collaborators of every use-case, closed at the end. Raises DatabaseUnreachableError where no Postgres answers."""
    check_names(settings, installed_providers())
    engine = open_engine(database_url(settings))
    health, budget, counters = HealthBook(engine, settings.health_policy), PostgresBudget(engine), Counters(engine)
    try:
        with tracer_of(settings) as tracer, HttpClient.open(settings, budget, tracer) as http:
            providers = open_providers(ProviderContext(settings, http, os.environ))
            budget.limit(limits_of(providers.values(), settings.limits))
            yield Pipeline(
                settings=settings,
                clock=clock_of(settings, http),
                engine=engine,
                universe=UniverseStore(engine),
                ledger=Ledger(engine),
                writer=CandleWriter(engine, tracer, tell_seconds=partial(counters.observe, "write_batch_seconds", {})),
                reader=CandleReader(engine),
                deriver=CandleDeriver(engine),
                providers=providers,
                health=health,
                budget=budget,
                router=Router(settings, providers, health),
                jobs=JobQueue(engine, settings.queue_policy),
                counters=counters,
                calendars=calendars_of(settings),
                tracer=tracer,
            )
            # Not where the block raised: the database may be what is gone, and a second's health is no reason to hide that.
            health.flush()
            counters.close()
    finally:
        engine.dispose()
