"""Which providers there are: found by their entry points, opened from the settings. A vendor is one module and one entry point."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Protocol, cast

from market_data_pipeline.domain.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from market_data_pipeline.domain.ports import Provider
    from market_data_pipeline.providers.http import HttpClient
    from market_data_pipeline.settings import Settings

GROUP = "market_data_pipeline.providers"


@dataclass(frozen=True, slots=True)
class ProviderContext:
    """What a provider is opened with. ``environment``: the process's variables, for vendors that ``Settings`` does not know."""

    settings: Settings
    http: HttpClient
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)


class OpenProvider(Protocol):
    """What an entry point names."""

    def __call__(self, context: ProviderContext) -> Provider | None:
        """The provider, None where it is not configured to exist at all (`files` without a directory)."""
        ...


def installed_providers() -> tuple[str, ...]:
    """The names of all there are, whether or not they are configured to exist."""
    return tuple(sorted(point.name for point in entry_points(group=GROUP)))


def open_providers(context: ProviderContext) -> dict[str, Provider]:
    """Every provider that is installed, by name, those without a key included: they say what they lack.

    Raises ConfigurationError where an entry point cannot be loaded or two claim one name.
    """
    providers: dict[str, Provider] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        try:
            open_provider = cast("OpenProvider", point.load())
        except (ImportError, AttributeError) as broken:
            raise ConfigurationError(
                f"provider {point.name!r}: its entry point {point.value!r} cannot be loaded: {broken}"
            ) from broken
        provider = open_provider(context)
        if provider is None:
            continue
        if provider.name in providers:
            raise ConfigurationError(f"two installed providers are called {provider.name!r}: remove one of the packages")
        providers[provider.name] = provider
    return providers
