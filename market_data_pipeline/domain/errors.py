"""Every error this project raises, by name: each leaf answers whether trying again would help."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from market_data_pipeline.domain.ports import Fetch


class MarketDataError(Exception):
    """Anything that went wrong and that we understood well enough to name."""


class InvalidInputError(MarketDataError):
    """What the user gave us cannot be meant: the message names the value and what was expected. Exit code 2."""


class ConfigurationError(InvalidInputError):
    """A setting, environment variable or configuration file cannot be used as it is."""


class UnavailableError(MarketDataError):
    """Something we need cannot be reached or used now; the message says what to do. Exit code 3."""


class DatabaseUnreachableError(UnavailableError):
    """No Postgres answers at the address we were given, or it refused us."""


class UnsupportedServerError(UnavailableError):
    """The Postgres found is of a version that this data or this software cannot use."""


class DiskError(UnavailableError):
    """The disk is full, read-only, or not ours to write."""


class MigrationError(UnavailableError):
    """The schema cannot be brought to where this software needs it."""


class MigrationEditedError(MigrationError):
    """A migration that was already applied reads differently now; released migrations are never edited."""


class CalendarHorizonError(MarketDataError):
    """A session was asked for beyond the last one that the calendar knows."""


class UndeliverableError(MarketDataError):
    """A channel did not take a message; the reason holds no URL and no secret. Another attempt may work."""


class ProviderError(MarketDataError):
    """A named provider gave us no usable data.

    ``kind`` is the class recorded in ``fetches.outcome``: stable text, one word, safe for a metric label. ``fetch`` is the
    provenance of the failed request, set by the adapter; None where the error arose outside one.
    """

    kind = "failed"
    fetch: Fetch | None = None

    def __init__(self, message: str, *, provider: str) -> None:
        super().__init__(f"{provider}: {message}")
        self.provider = provider


class TransientError(ProviderError):
    """Another attempt may work: time-out, reset, 5xx, an outage page."""

    kind = "transient"


class RateLimitedError(ProviderError):
    """Wait; ``retry_after_seconds`` is what the provider said, or None where it said nothing."""

    kind = "rate_limited"

    def __init__(self, message: str, *, provider: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message, provider=provider)
        self.retry_after_seconds = retry_after_seconds


class EntitlementError(ProviderError):
    """This capability is not ours: 401, 402, 403. Trying again does not help."""

    kind = "entitlement"


class OutOfReachError(ProviderError):
    """The range lies beyond what this provider serves for the interval (Yahoo's 422). Trying again does not help."""

    kind = "out_of_reach"


class UnknownSymbolError(ProviderError):
    """Not found, while the provider answers for others. One of these never delists a symbol."""

    kind = "unknown_symbol"


class PayloadError(ProviderError):
    """The reply is not what the provider documents: nothing of it is stored."""

    kind = "malformed"


class BarrenError(ProviderError):
    """A well-formed answer with nothing in it where bars were expected. Silence is not evidence of no trading."""

    kind = "barren"


class StaleError(ProviderError):
    """An answer from the past: the provider's own newest stamp is older than bars that were due. What it holds may be kept."""

    kind = "stale"


class MixedBasisError(ProviderError):
    """Prices on another split basis than those we hold, or on two in one answer: quarantined, nothing is overwritten."""

    kind = "mixed_basis"


class BudgetSpentError(ProviderError):
    """Our own budget for this provider allows no request in time: nothing was sent. ``wait_seconds``: until one would be."""

    kind = "budget_spent"

    def __init__(self, message: str, *, provider: str, wait_seconds: float) -> None:
        super().__init__(message, provider=provider)
        self.wait_seconds = wait_seconds


class NoProviderAvailableError(MarketDataError):
    """Nobody can be asked for this capability now: every provider is without key, disabled, open or out of budget.

    The message lists each with its reason.
    """
