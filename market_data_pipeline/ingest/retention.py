"""What is kept for how long, carried out: the tables of ours, and the samples and counters that keep themselves small."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from market_data_pipeline.domain.retention import Pruned, RetentionPolicy
from market_data_pipeline.storage.counters import fold_counters
from market_data_pipeline.storage.retention import Retention
from market_data_pipeline.storage.slo import prune_samples

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.settings import Settings


def policy_of(settings: Settings) -> RetentionPolicy:
    """As the settings say."""
    return RetentionPolicy(
        quotes=timedelta(days=settings.quotes_retention_days),
        chains=timedelta(days=settings.chains_retention_days),
        fetches=timedelta(days=settings.fetches_retention_days),
    )


def prune(pipeline: Pipeline, *, only: Sequence[str] = (), dry_run: bool = False) -> Iterator[Pruned]:
    """Delete what is older than the settings allow, kind by kind; safe to repeat, and to kill."""
    policy = policy_of(pipeline.settings)
    yield from Retention(pipeline.engine).prune(policy, now=pipeline.clock.now(), only=only, dry_run=dry_run)
    if not only and not dry_run:
        yield Pruned("slo_samples", prune_samples(pipeline.engine, pipeline.clock.now()))
        yield Pruned("jobs", pipeline.jobs.prune_done(policy.done_jobs))
        # Not old rows but many: one for each connection that ever counted.
        yield Pruned("metric_counters", fold_counters(pipeline.engine))
