"""Finds who can be asked for a capability now, in which order, and asks until one has answered: policy meets health."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

from market_data_pipeline.domain.capabilities import parse_limits
from market_data_pipeline.domain.errors import ConfigurationError, InvalidInputError, NoProviderAvailableError, ProviderError
from market_data_pipeline.domain.health import Outcome
from market_data_pipeline.domain.routing import Contender, ranked

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from datetime import datetime

    from market_data_pipeline.domain.capabilities import Capability
    from market_data_pipeline.domain.health import ProviderHealth
    from market_data_pipeline.domain.ports import Fetch, Provider
    from market_data_pipeline.settings import Settings
    from market_data_pipeline.storage.health import HealthBook


class Answered(Protocol):
    """Any answer: it says where it came from."""

    @property
    def fetch(self) -> Fetch:
        """Its provenance."""
        ...


A = TypeVar("A", bound=Answered)


@dataclass(frozen=True, slots=True)
class Route:
    """Whom to ask for ``capability``, best first, and of every provider passed over or set back, why."""

    capability: str
    order: Sequence[tuple[Provider, Capability]] = ()
    passed_over: Mapping[str, str] = field(default_factory=dict)

    @property
    def reasons(self) -> str:
        """Why nobody else is asked, one sentence for all: of NoProviderAvailableError and of `mdp providers`."""
        return "; ".join(f"{name}: {reason}" for name, reason in self.passed_over.items()) or "no provider serves it"


class Router:
    """The policy of ``settings``, laid over the providers there are and their health. Safe to use from several threads."""

    def __init__(self, settings: Settings, providers: Mapping[str, Provider], health: HealthBook) -> None:
        self._settings, self._providers, self._health = settings, providers, health

    def configured(self, capability: str, *, hint: str | None = None) -> tuple[list[tuple[Provider, Capability]], dict[str, str]]:
        """Those that the policy (or the hint) names and that could be asked if all were well, in that order; why not the others.

        InvalidInputError where the hint names a provider that is not installed, or that does not serve the capability.
        """
        found: list[tuple[Provider, Capability]] = []
        passed_over: dict[str, str] = {}
        for name in self._names(capability, hint):
            provider = self._providers.get(name)
            served = None if provider is None else next((c for c in provider.capabilities if c.name == capability), None)
            if provider is None:
                passed_over[name] = "it is not configured"
            elif served is None:
                passed_over[name] = f"it does not serve {capability}"
            elif provider.lacking is not None:
                passed_over[name] = provider.lacking
            else:
                found.append((provider, served))
        return found, passed_over

    def candidates(self, capability: str, *, hint: str | None = None, now: datetime) -> Route:
        """Whom to ask now. Being listed is not being admitted: a trial is given to one request alone, when it is sent.

        ``hint``: the provider to ask first, where MDP_ALLOW_SOURCE_OVERRIDE is on.
        """
        configured, passed_over = self.configured(capability, hint=hint)
        healths = self._health.all(now)
        contenders = [self._contender(name, served, healths, now) for name, served in ((p.name, c) for p, c in configured)]
        ranking = ranked(contenders, hint=hint if self._settings.allow_source_override else None)
        by_name = {provider.name: (provider, served) for provider, served in configured}
        reasons = {**passed_over, **ranking.passed_over}
        in_order = {name: reasons[name] for name in self._names(capability, hint) if name in reasons}
        return Route(capability, [by_name[name] for name in ranking.order], in_order)

    def ask(
        self,
        capability: str,
        call: Callable[[Provider], A],
        *,
        now: datetime,
        hint: str | None = None,
        excluding: Collection[str] = (),
        run_id: str | None = None,
        expected: int = 0,
        received: Callable[[A], int] | None = None,
    ) -> A:
        """The first answer that a provider gives: each in turn is admitted, called and its outcome recorded.

        ``excluding``: whom not to ask, for a second opinion is somebody else's. ``expected`` and ``received``: how many records
        were asked for, and how many an answer holds: the completeness of its provider. Raises the last ProviderError where all who
        were asked failed, NoProviderAvailableError with every reason where nobody could be asked.
        """
        route = self.candidates(capability, hint=hint, now=now)
        reasons = dict(route.passed_over)
        failure: ProviderError | None = None
        for provider, _ in route.order:
            if provider.name in excluding:
                reasons[provider.name] = "it was heard already"
                continue
            admission = self._health.admit(provider.name, capability, now=now)
            if not admission.is_admitted:
                reasons[provider.name] = admission.reason
                continue
            began = time.monotonic()
            try:
                answer = call(provider)
            except ProviderError as error:
                failure = error
                self._health.record(provider.name, capability, outcome_of(error, began), now=now, run_id=run_id)
                continue
            outcome = Outcome(
                "ok",
                answer.fetch.latency_seconds,
                attempts=answer.fetch.attempts,
                expected=expected,
                received=received(answer) if received else expected,
            )
            self._health.record(provider.name, capability, outcome, now=now, run_id=run_id)
            return answer
        if failure is not None:
            raise failure
        raise nobody(Route(capability, (), reasons))

    def _names(self, capability: str, hint: str | None) -> Sequence[str]:
        policy = self._settings.policy(capability)
        if hint is None or not self._settings.allow_source_override:
            return policy
        if hint not in self._providers:
            raise InvalidInputError(f"no provider is called {hint!r}: expected one of {', '.join(sorted(self._providers))}")
        if all(served.name != capability for served in self._providers[hint].capabilities):
            raise InvalidInputError(f"{hint} does not serve {capability}")
        return list(dict.fromkeys((hint, *policy)))

    def _contender(
        self, name: str, served: Capability, healths: Mapping[tuple[str, str], ProviderHealth], now: datetime
    ) -> Contender:
        health = healths.get((name, served.name))
        base = served.feed.volume_base if served.interval is not None else None
        if health is None:
            return Contender(name, volume_base=base)
        policy = self._health.policy
        admission = health.admission(now=now, policy=policy)
        return Contender(
            name,
            obstacle=None if admission.is_admitted else admission.reason,
            is_demoted=health.is_asked_last(now=now, policy=policy),
            on_trial=admission.is_trial,
            volume_base=base,
        )


def outcome_of(error: ProviderError, began: float) -> Outcome:
    """What a failed request says of its provider's health. ``began``: monotonic seconds, for errors that carry no provenance."""
    fetch, said = error.fetch, words_of(error)
    if fetch is None:
        return Outcome(error.kind, time.monotonic() - began, detail=said)
    return Outcome(error.kind, fetch.latency_seconds, attempts=fetch.attempts, detail=said)


def words_of(error: ProviderError) -> str:
    """What it says, for where the provider's name stands before it already."""
    return str(error).removeprefix(f"{error.provider}: ")


def nobody(route: Route) -> NoProviderAvailableError:
    """The error for a route without anybody to ask, with every reason."""
    return NoProviderAvailableError(f"nobody can be asked for {route.capability}: {route.reasons}")


def check_names(settings: Settings, installed: Collection[str]) -> None:
    """Raise ConfigurationError where a policy that the user set, or a limit, names a provider that is not installed.

    The policies as shipped may name providers that are not there: they are passed over.
    """
    named = {field: settings.policy(field.removeprefix("policy_")) for field in settings.model_fields_set if "policy_" in field}
    named["limits"] = tuple(parse_limits(settings.limits))
    for field_name, names in sorted(named.items()):
        unknown = [name for name in names if name not in installed]
        if unknown:
            known = ", ".join(sorted(installed))
            raise ConfigurationError(f"MDP_{field_name.upper()} names {', '.join(unknown)}: expected some of {known}")
