"""A snapshot of the metrics as text: Prometheus' format or OpenMetrics, whichever the reader asks for. Decides nothing else."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from market_data_pipeline.domain.metrics import METRICS, Histogram, MetricKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client.metrics_core import Metric as Family

    from market_data_pipeline.domain.metrics import Metric, MetricsSnapshot

_LabelledValues = list[tuple[tuple[str, ...], float | Histogram]]


def exposition(snapshot: MetricsSnapshot, accept: str = "") -> tuple[bytes, str]:
    """The body and its content type. ``accept``: the reader's header of that name; "" for Prometheus' text format.

    Every family of the catalogue is there, in its order, also where there are no samples of it. ValueError for values that the
    catalogue has no metric for.
    """
    encode, content_type = choose_encoder(accept)
    return encode(_Snapshot(snapshot)), content_type


@dataclass(frozen=True)
class _Snapshot(Collector):
    snapshot: MetricsSnapshot

    def collect(self) -> Iterator[Family]:
        """The families."""
        values: dict[str, _LabelledValues] = defaultdict(list)
        for (name, labels), value in sorted(self.snapshot.values.items(), key=lambda item: item[0]):
            values[name].append((labels, value))
        for metric in METRICS:
            yield _family(metric, values.pop(metric.name, []))
        if values:
            raise ValueError(f"no metrics of the catalogue: {', '.join(sorted(values))}")


def _family(metric: Metric, values: _LabelledValues) -> Family:
    if metric.kind is MetricKind.HISTOGRAM:
        histograms = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, value in values:
            if isinstance(value, Histogram):
                histograms.add_metric(labels, _cumulative(metric.buckets, value.buckets), value.sum)
        return histograms
    # Without its _total, which the format puts back.
    is_counter = metric.kind is MetricKind.COUNTER
    family = (CounterMetricFamily if is_counter else GaugeMetricFamily)(metric.name, metric.help, labels=metric.labels)
    for labels, value in values:
        if not isinstance(value, Histogram):
            family.add_metric(labels, value)
    return family


def _cumulative(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    names = [*(str(float(bound)) for bound in bounds), "+Inf"]
    # Of a histogram whose bounds were changed since, nothing can be said but how many there are.
    if len(counts) != len(names):
        return [("+Inf", sum(counts))]
    return list(zip(names, accumulate(counts), strict=True))
