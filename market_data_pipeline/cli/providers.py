"""`mdp providers`: what each provider can do, what this key is good for, how it does, how it did, and a fresh start for it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from market_data_pipeline.cli.output import json_option, note, print_json, print_table
from market_data_pipeline.cli.parameters import INSTANT, written
from market_data_pipeline.cli.selection import opened_pipeline
from market_data_pipeline.domain.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from market_data_pipeline.domain.capabilities import Capability
    from market_data_pipeline.domain.health import ProviderHealth
    from market_data_pipeline.domain.ports import Provider
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.storage.budgets import BudgetStatus, PostgresBudget
    from market_data_pipeline.storage.health import HealthSample, ProviderEvent

# Eight heights of one line of text: a score of 0 is the lowest, of 1 the highest.
_HEIGHTS = "▁▂▃▄▅▆▇█"
# As many as the reference service keeps; --json and `history` have more.
SPARKLINE_SAMPLES = 60

DONE, FOUND_SOMETHING = 0, 1

name_argument = click.argument("name")
capability_option = click.option("--capability", help="Only this capability, such as bars_1m.")


@click.group()
def providers() -> None:
    """Show, probe and reset the providers."""


# --- what they can do --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Served:
    """One capability of one provider and whether it can be asked for it now. ``why``: why not, or what is special."""

    provider: Provider
    capability: Capability
    usable: bool
    why: str


def _served(pipeline: Pipeline, now: datetime) -> Iterator[_Served]:
    for _, provider in sorted(pipeline.providers.items()):
        for capability in provider.capabilities:
            usable, why = _usable(pipeline, provider, capability, now)
            yield _Served(provider, capability, usable, why)


def _usable(pipeline: Pipeline, provider: Provider, capability: Capability, now: datetime) -> tuple[bool, str]:
    if provider.lacking is not None:
        return False, provider.lacking
    if provider.name not in pipeline.settings.policy(capability.name):
        return False, f"MDP_POLICY_{capability.name.upper()} does not name it"
    policy = pipeline.health.policy
    health = pipeline.health.all(now).get((provider.name, capability.name))
    if health is None:
        return True, ""
    admission = health.admission(now=now, policy=policy)
    if not admission.is_admitted or admission.is_trial:
        return admission.is_admitted, admission.reason
    return True, "demoted: asked last" if health.is_asked_last(now=now, policy=policy) else ""


@providers.command("list", epilog="Example: mdp providers list --json")
@json_option
def list_(*, as_json: bool) -> None:
    """List what every provider can do, within which limits, and whether it can be asked for it now.

    Reach is how far back it serves, span the longest window of one request. Limits are the documented ones, or those of MDP_LIMITS.
    """
    from market_data_pipeline.providers.registry import installed_providers  # noqa: PLC0415 - only this command needs it

    with opened_pipeline() as pipeline:
        budget = _budget(pipeline)
        rows = [_listed(served, budget) for served in _served(pipeline, pipeline.clock.now())]
        absent = sorted(set(installed_providers()) - set(pipeline.providers))
    rows += [{"provider": name, "usable": False, "why": "it is not configured (docs/configuration.md)"} for name in absent]
    if as_json:
        print_json(rows)
        return
    shown = [row | _in_words(row) for row in rows]
    columns = ["provider", "capability", "reach", "span", "symbols", "stamp", "basis", "feed", "delay", "access", "limits"]
    print_table(shown, columns=[*columns, "usable", "why"])


def _listed(served: _Served, budget: PostgresBudget) -> dict[str, Any]:
    capability = served.capability
    of_bars = capability.interval is not None
    return {
        "provider": served.provider.name,
        "capability": capability.name,
        "reach_seconds": capability.reach_seconds,
        "span_seconds": capability.span_seconds,
        "symbols": capability.symbols_per_request,
        "rows": capability.rows_per_request,
        "stamp": str(capability.stamp) if of_bars else None,
        "basis": str(capability.basis) if of_bars else None,
        "feed": capability.feed.label if of_bars else None,
        "delay_seconds": capability.delay_seconds,
        "access": str(capability.access),
        "limits": ", ".join(map(str, budget.limits_of(served.provider.name))) or "none",
        "usable": served.usable,
        "why": served.why or None,
    }


def _in_words(row: Mapping[str, Any]) -> dict[str, str | None]:
    """The lengths of time of a listed capability; nothing for a provider that is not there."""
    if "capability" not in row:
        return {}
    reach, span = ("no limit" if seconds is None else _duration(seconds) for seconds in (row["reach_seconds"], row["span_seconds"]))
    return {"reach": reach, "span": span, "delay": _duration(row["delay_seconds"]) if row["delay_seconds"] else None}


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:g} {unit}"
    return f"{seconds:g} s"


def _budget(pipeline: Pipeline) -> PostgresBudget:
    from market_data_pipeline.domain.budget import limits_of  # noqa: PLC0415 - only these commands need them
    from market_data_pipeline.storage.budgets import PostgresBudget  # noqa: PLC0415

    return PostgresBudget(pipeline.engine, limits_of(pipeline.providers.values(), pipeline.settings.limits))


# --- what this key can do ----------------------------------------------------------------------------------------------


@providers.command(epilog="Example: mdp providers probe finnhub")
@name_argument
@json_option
def probe(*, name: str, as_json: bool) -> int:
    """Ask the provider NAME for a little of everything it can do, and say what this key gets; exit code 1 where it gets nothing.

    Each request is real, counts against the limits and for the health: what works now is enabled again, and a 403 disables that one
    capability for a day. Then it is tried again by itself.
    """
    from market_data_pipeline.ingest.probe import named_provider  # noqa: PLC0415 - only this command needs it
    from market_data_pipeline.ingest.probe import probe as asked  # noqa: PLC0415

    with opened_pipeline() as pipeline:
        provider = named_provider(pipeline, name)
        answers = list(asked(provider, pipeline=pipeline))
    rows = [{**asdict(answer), "provider": name, "works": answer.works} for answer in answers]
    if as_json:
        print_json(rows)
    else:
        shown = [row | {"answer": row["kind"], "seconds": round(row["latency_seconds"], 3)} for row in rows]
        print_table(shown, columns=["capability", "works", "answer", "seconds", "detail"])
    return DONE if any(answer.works for answer in answers) else FOUND_SOMETHING


# --- how they do -------------------------------------------------------------------------------------------------------


@providers.command(epilog="Example: mdp providers health yahoo")
@click.argument("name", required=False)
@json_option
def health(*, name: str | None, as_json: bool) -> int:
    """Show the health of each capability with its terms; exit code 1 where a breaker is not closed or a provider is demoted.

    Score = 0.45 breaker + 0.25 (1 - latency) + 0.20 (1 - error) + 0.10 completeness: latency is the p95 over MDP_LATENCY_CAP_MS,
    error and completeness are moving averages. Who was never asked scores 1. Left: requests of each limit that may still be sent.
    """
    from market_data_pipeline.ingest.probe import named_provider  # noqa: PLC0415 - only these commands need it

    with opened_pipeline() as pipeline:
        if name is not None:
            named_provider(pipeline, name)
        now = pipeline.clock.now()
        left = {(status.provider, status.account): status for status in _budget(pipeline).status(name)}
        rows = [
            _health_row(pipeline, served, left, now) for served in _served(pipeline, now) if name in {None, served.provider.name}
        ]
    if as_json:
        print_json(rows)
    else:
        columns = ["provider", "capability", "score", "breaker", "p95_seconds", "error", "completeness", "demoted", "samples"]
        print_table(rows, columns=[*columns, "left", "held_until", "recent", "why"])
    return FOUND_SOMETHING if any(row["breaker"] != "closed" or row["demoted"] for row in rows) else DONE


def _health_row(
    pipeline: Pipeline, served: _Served, budgets: Mapping[tuple[str, str], BudgetStatus], now: datetime
) -> dict[str, Any]:
    from market_data_pipeline.domain.health import ProviderHealth  # noqa: PLC0415 - only this command needs it

    key = served.provider.name, served.capability.name
    value: ProviderHealth = pipeline.health.all(now).get(key) or ProviderHealth()
    budget = budgets.get((served.provider.name, served.provider.account))
    samples = pipeline.health.history(*key, now=now, limit=SPARKLINE_SAMPLES) if value.samples else []
    return {
        "provider": served.provider.name,
        "capability": served.capability.name,
        "score": round(value.score(pipeline.health.policy), 4),
        "breaker": str(value.breaker),
        "p95_seconds": round(value.latency_p95, 4),
        "error": round(value.error, 4),
        "completeness": round(value.completeness, 4),
        "demoted": value.is_demoted,
        "samples": value.samples,
        "sampled_at": _instant(value.sampled_at),
        "disabled_until": _instant(value.disabled_until),
        "usable": served.usable,
        "why": served.why or None,
        "left": ", ".join(f"{left} of {limit}" for limit, left in budget.left.items()) if budget else None,
        "limit_factor": round(budget.factor, 4) if budget else None,
        "held_until": _instant(budget.held_until) if budget else None,
        "recent": sparkline([sample.score for sample in samples]),
    }


def sparkline(scores: Sequence[float]) -> str:
    """Scores in [0, 1] as one line of text, the oldest first."""
    return "".join(_HEIGHTS[min(int(score * len(_HEIGHTS)), len(_HEIGHTS) - 1)] for score in scores)


def _instant(at: datetime | None) -> str | None:
    return None if at is None else written(at.astimezone(UTC).replace(microsecond=0))


# --- how they did ------------------------------------------------------------------------------------------------------


@providers.command(epilog="Example: mdp providers history yahoo --capability bars_1m --last 120")
@name_argument
@capability_option
@click.option("--since", type=INSTANT, help="Only what was at this instant or later.")
@click.option("--last", type=click.IntRange(min=1), default=60, show_default=True, help="Most samples of each capability.")
@json_option
def history(*, name: str, capability: str | None, since: datetime | None, last: int, as_json: bool) -> None:
    """Show how the health of the provider NAME went, and what happened to it: one picture a capability, samples and events.

    Samples are of ten seconds in the last day, of minutes in the last week, of hours in the last year.
    """
    from market_data_pipeline.ingest.probe import named_provider  # noqa: PLC0415 - only these commands need it

    with opened_pipeline() as pipeline:
        provider = named_provider(pipeline, name)
        _check_capability(provider, capability)
        now = pipeline.clock.now()
        names = [served.name for served in provider.capabilities if capability in {None, served.name}]
        samples = {each: pipeline.health.history(name, each, now=now, since=since, limit=last) for each in names}
        happened = [
            event
            for event in pipeline.health.events(name, limit=last)
            if (since is None or event.at >= since) and capability in {None, event.capability}
        ]
    if as_json:
        flat = [_sample_row(sample) for several in samples.values() for sample in several]
        print_json({"samples": flat, "events": [_event_row(event) for event in happened]})
        return
    for each, several in samples.items():
        if several:
            _print_samples(each, several)
    if not any(samples.values()):
        note(f"{name} was not asked for anything{'' if since is None else ' since then'}")
    if happened:
        rows = [_event_row(event) for event in reversed(happened)]
        print_table(rows, columns=["at", "capability", "kind", "is_recovery", "detail", "run_id"], title="What happened")


def _print_samples(capability: str, samples: Sequence[HealthSample]) -> None:
    worst = min(sample.score_min for sample in samples)
    picture = sparkline([sample.score for sample in samples])
    title = f"{capability}: {picture} now {samples[-1].score:.2f}, worst {worst:.2f}"
    columns = ["at", "seconds", "outcomes", "failures", "score", "score_min", "breaker", "p95_seconds", "error", "completeness"]
    print_table([_sample_row(sample) for sample in samples], columns=[*columns, "demoted"], title=title)


def _sample_row(sample: HealthSample) -> dict[str, Any]:
    return {
        "provider": sample.provider,
        "capability": sample.capability,
        "at": _instant(sample.at),
        "seconds": sample.resolution_seconds,
        "outcomes": sample.outcomes,
        "failures": sample.failures,
        "score": round(sample.score, 4),
        "score_mean": round(sample.score_mean, 4),
        "score_min": round(sample.score_min, 4),
        "score_max": round(sample.score_max, 4),
        "breaker": str(sample.breaker),
        "p95_seconds": round(sample.latency_p95, 4),
        "error": round(sample.error, 4),
        "completeness": round(sample.completeness, 4),
        "demoted": sample.is_demoted,
    }


def _event_row(event: ProviderEvent) -> dict[str, Any]:
    return asdict(event) | {"at": _instant(event.at)}


# --- a fresh start -----------------------------------------------------------------------------------------------------


@providers.command(epilog="Example: mdp providers reset finnhub --capability bars_1m")
@name_argument
@capability_option
@json_option
def reset(*, name: str, capability: str | None, as_json: bool) -> None:
    """Forget what is held against the provider NAME: breakers, disabled capabilities, averages, and limits learned from refusals.

    For after a repair: a new key, a plan that was bought, an outage that is over. What was sent stays counted, the history stays,
    and that it was done is itself an event. With --capability only that one; the limits are the provider's and stay.
    """
    from market_data_pipeline.ingest.probe import named_provider  # noqa: PLC0415 - only these commands need it

    with opened_pipeline() as pipeline:
        provider = named_provider(pipeline, name)
        _check_capability(provider, capability)
        forgotten = pipeline.health.reset(name, capability, now=pipeline.clock.now())
        limits_forgotten = capability is None and _budget(pipeline).reset(name)
    if as_json:
        print_json({"provider": name, "capabilities": forgotten, "learned_limits": limits_forgotten})
        return
    what = ", ".join(forgotten) or "nothing was held against it"
    click.echo(f"{name}: {what}{'; learned limits' if limits_forgotten else ''}")


def _check_capability(provider: Provider, capability: str | None) -> None:
    names = [served.name for served in provider.capabilities]
    if capability is not None and capability not in names:
        raise InvalidInputError(f"{provider.name} has no capability {capability!r}: expected one of {', '.join(names)}")
