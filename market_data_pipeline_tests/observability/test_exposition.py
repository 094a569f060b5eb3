"""What Prometheus reads is what was counted, in both of its formats, and its own tools find nothing to say against it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus

from market_data_pipeline.domain.metrics import LATENCY_BUCKETS, METRICS, Histogram, MetricKind, MetricsSnapshot
from market_data_pipeline.observability.exposition import exposition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client.metrics_core import Metric as Family

    from market_data_pipeline.domain.metrics import Series

PROMTOOL = Path(__file__).resolve().parents[2] / ".tools" / "bin" / "promtool"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
PARSERS: dict[str, Callable[[str], Iterable[Family]]] = {"": parse_prometheus, OPENMETRICS: parse_openmetrics}


def one_of_each() -> MetricsSnapshot:
    """A value for every metric of the catalogue."""
    values: dict[Series, float | Histogram] = {}
    for metric in METRICS:
        labels = tuple(f"a {label}" for label in metric.labels)
        is_histogram = metric.kind is MetricKind.HISTOGRAM
        values[metric.name, labels] = Histogram((1,) * (len(metric.buckets) + 1), 12.5) if is_histogram else 2.0
    return MetricsSnapshot(values)


def samples(body: bytes, accept: str = "") -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What a reader finds."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in PARSERS[accept](body.decode())
        for sample in family.samples
    }


@pytest.mark.parametrize("accept", PARSERS)
def test_every_metric_of_the_catalogue_is_read_back_by_its_name_and_labels(accept: str) -> None:
    body, content_type = exposition(one_of_each(), accept)
    found = samples(body, accept)
    assert ("openmetrics" in content_type) is bool(accept)
    for metric in METRICS:
        labels = tuple(sorted((label, f"a {label}") for label in metric.labels))
        name = f"{metric.name}_sum" if metric.kind is MetricKind.HISTOGRAM else metric.name
        assert found[name, labels] == (12.5 if metric.kind is MetricKind.HISTOGRAM else 2.0)


def test_prometheus_itself_asks_for_openmetrics_and_gets_it() -> None:
    asked = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;q=0.1"
    body, content_type = exposition(one_of_each(), asked)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")


@pytest.mark.parametrize("accept", PARSERS)
def test_a_family_without_samples_is_told_all_the_same_with_its_help_and_type(accept: str) -> None:
    body, _ = exposition(MetricsSnapshot({}), accept)
    families = {family.name.removesuffix("_total"): family for family in PARSERS[accept](body.decode())}
    assert list(families) == [metric.name.removesuffix("_total") for metric in METRICS]
    for metric in METRICS:
        family = families[metric.name.removesuffix("_total")]
        assert (family.documentation, family.type, family.samples) == (metric.help, str(metric.kind), [])


@given(st.lists(st.integers(0, 1 << 40), min_size=len(LATENCY_BUCKETS) + 1, max_size=len(LATENCY_BUCKETS) + 1))
def test_buckets_are_cumulative_and_the_last_one_has_all(counts: list[int]) -> None:
    body, _ = exposition(MetricsSnapshot({("provider_latency_seconds", ("yahoo", "eod")): Histogram(tuple(counts), 1.0)}))
    found = samples(body)
    told = (("endpoint", "eod"), ("provider", "yahoo"))
    by_bound = {dict(labels)["le"]: value for (name, labels), value in found.items() if name == "provider_latency_seconds_bucket"}
    assert by_bound == {
        **{str(bound): sum(counts[: place + 1]) for place, bound in enumerate(LATENCY_BUCKETS)},
        "+Inf": sum(counts),
    }
    assert found["provider_latency_seconds_count", told] == sum(counts)


def test_a_histogram_whose_bounds_were_changed_since_still_says_how_many_there_are() -> None:
    body, _ = exposition(MetricsSnapshot({("write_batch_seconds", ()): Histogram((1, 2), 1.0)}))
    assert samples(body)["write_batch_seconds_count", ()] == 3


@given(st.text(min_size=1))
def test_whatever_stands_in_a_label_is_read_back(text: str) -> None:
    body, _ = exposition(MetricsSnapshot({("calendar_horizon_seconds", (text,)): 1.0}))
    assert samples(body)["calendar_horizon_seconds", (("calendar", text),)] == 1.0


def test_what_the_catalogue_does_not_have_is_not_told() -> None:
    with pytest.raises(ValueError, match="unheard_of"):
        exposition(MetricsSnapshot({("unheard_of", ()): 1.0}))


@pytest.mark.skipif(not PROMTOOL.exists(), reason="promtool is not installed: `make tools`")
def test_promtool_finds_nothing_to_say_against_names_and_help() -> None:
    body, _ = exposition(one_of_each())
    checked = subprocess.run([PROMTOOL, "check", "metrics"], input=body, capture_output=True, check=False)
    said = (checked.stdout + checked.stderr).decode().splitlines()
    assert said == []
