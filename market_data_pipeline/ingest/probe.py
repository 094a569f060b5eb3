"""Asks a provider, really, for a little of each thing it says it can do: what this key is good for, and how the provider is."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

from market_data_pipeline.domain.capabilities import OPTIONS_CHAIN, QUOTES_L1, Lane, Priority
from market_data_pipeline.domain.errors import InvalidInputError, ProviderError
from market_data_pipeline.domain.health import Outcome
from market_data_pipeline.domain.ports import BarsProvider, BarsRequest, ChainProvider, MacroProvider, QuotesProvider
from market_data_pipeline.ingest.routing import outcome_of
from market_data_pipeline.providers.registry import installed_providers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from market_data_pipeline.domain.capabilities import Capability
    from market_data_pipeline.domain.ports import Provider
    from market_data_pipeline.ingest.pipeline import Pipeline

# Somebody sits in front of the screen.
PRIORITY = Priority(Lane.LIVE, "T0")
# Every probe symbol of ours trades there.
CALENDAR = "XNYS"
# As many as show that there are bars, and that an answer is not only the newest.
MOST_BARS = 30
MACRO_DAYS = 400


@dataclass(frozen=True, slots=True)
class Probed:
    """How one capability answered. ``kind``: "ok", the ``kind`` of a ProviderError, or "unasked" where there is no way to ask.

    ``expected`` bars or quotes were asked for, 0 where their number cannot be known, and ``received`` came.
    """

    capability: str
    kind: str
    detail: str
    latency_seconds: float = 0.0
    expected: int = 0
    received: int = 0
    request: str = ""

    @property
    def works(self) -> bool:
        """Whether this key gets data for it."""
        return self.kind == "ok"


def named_provider(pipeline: Pipeline, name: str) -> Provider:
    """The provider called ``name``; InvalidInputError where none is, or where it is not configured to exist."""
    if name in pipeline.providers:
        return pipeline.providers[name]
    if name in installed_providers():
        raise InvalidInputError(f"{name}: it is installed and not configured: docs/configuration.md says what it needs")
    raise InvalidInputError(f"no provider is called {name!r}: expected one of {', '.join(sorted(pipeline.providers))}")


def probe(provider: Provider, *, pipeline: Pipeline) -> Iterator[Probed]:
    """One small request for each capability, whatever its breaker or its last 403 says; the outcome counts for its health.

    Nothing is stored but health and events. A provider that lacks its key is not asked at all.
    """
    for capability in provider.capabilities:
        if provider.lacking is not None:
            yield Probed(capability.name, "unasked", provider.lacking)
            continue
        now = pipeline.clock.now()
        admission = pipeline.health.admit_by_hand(provider.name, capability.name, now=now)
        if not admission.is_admitted:
            yield Probed(capability.name, "unasked", admission.reason)
            continue
        began = time.monotonic()
        try:
            answer = _ask(provider, capability, pipeline, now)
            outcome = Outcome(answer.kind, answer.latency_seconds, expected=answer.expected, received=answer.received)
        except ProviderError as error:
            outcome = outcome_of(error, began)
            answer = Probed(capability.name, error.kind, str(error), outcome.latency_seconds)
        if answer.kind != "unasked":
            pipeline.health.record(provider.name, capability.name, outcome, now=pipeline.clock.now())
        yield answer
    pipeline.health.flush()


def _ask(provider: Provider, capability: Capability, pipeline: Pipeline, now: datetime) -> Probed:
    if capability.interval is not None and isinstance(provider, BarsProvider):
        return _ask_for_bars(provider, capability, pipeline, now)
    symbol = provider.probe_symbol
    if capability.name == QUOTES_L1 and isinstance(provider, QuotesProvider):
        quotes = provider.fetch_quotes([symbol], priority=PRIORITY, now=now)
        return _probed(capability, quotes.fetch.latency_seconds, quotes.fetch.request, expected=1, received=len(quotes.quotes))
    if capability.name == OPTIONS_CHAIN and isinstance(provider, ChainProvider):
        chain = provider.fetch_chain(symbol, expiry=_monthly_expiry(now), priority=PRIORITY, now=now)
        return _probed(capability, chain.fetch.latency_seconds, chain.fetch.request, received=len(chain.contracts))
    if isinstance(provider, MacroProvider):
        first = (now - timedelta(days=MACRO_DAYS)).date()
        macro = provider.fetch_observations(symbol, first=first, last=None, vintages=False, priority=PRIORITY, now=now)
        return _probed(capability, macro.fetch.latency_seconds, macro.fetch.request, received=len(macro.observations))
    return Probed(capability.name, "unasked", "it comes with bars and is not asked for by itself")


def _ask_for_bars(provider: BarsProvider, capability: Capability, pipeline: Pipeline, now: datetime) -> Probed:
    """The first bars of the last session that the provider should have in full."""
    interval = capability.interval
    assert interval is not None  # noqa: S101 - the caller asked
    calendar = pipeline.calendars(CALENDAR)
    over = now - timedelta(seconds=max(capability.delay_seconds, pipeline.settings.settle_seconds))
    session = calendar.previous_session(over.date() + timedelta(days=1))
    while int(calendar.bounds(session, session).closes_at[0]) > over.timestamp():
        session = calendar.previous_session(session)
    opened_at = calendar.expected_opens(interval, session, session).opened_at[:MOST_BARS].tolist()
    request = BarsRequest(
        symbol=provider.probe_symbol,
        interval=interval,
        start=opened_at[0],
        end=opened_at[-1] + interval.seconds,
        priority=PRIORITY,
    )
    answer = provider.fetch_bars(request, now=now)
    expected = len(opened_at)
    return _probed(capability, answer.fetch.latency_seconds, answer.fetch.request, expected=expected, received=len(answer.columns))


def _probed(capability: Capability, latency_seconds: float, request: str, *, received: int, expected: int = 0) -> Probed:
    came = f"{received:,} of {expected:,}" if expected else f"{received:,}"
    return Probed(
        capability=capability.name,
        kind="ok" if received else "barren",
        detail=f"{came} came",
        latency_seconds=latency_seconds,
        expected=expected,
        received=received,
        request=request,
    )


def _monthly_expiry(now: datetime) -> date:
    """The third Friday of next month: of all chains, the expiry that is surely listed."""
    first = (now.astimezone(UTC).date().replace(day=1) + timedelta(days=32)).replace(day=1)
    return first + timedelta(days=(4 - first.weekday()) % 7 + 14)
