"""Measurements in Prometheus' text format, with the process's own CPU time and memory."""

from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from tokasaurus.observability.measurements import Measurements

CONTENT_TYPE = CONTENT_TYPE_LATEST


class PrometheusExporter:
    """Shows one process's measurements."""

    def __init__(self, measurements: Measurements) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_MeasurementCollector(measurements))
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        """The body of a response of type CONTENT_TYPE."""
        return generate_latest(self._registry)


class _MeasurementCollector(Collector):
    def __init__(self, measurements: Measurements) -> None:
        self._measurements = measurements

    def collect(self) -> Iterator[Metric]:
        for metric, series in self._measurements.numbers():
            family_type = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = family_type(metric.name, metric.help, labels=metric.labels)
            for labels, number in series.items():
                family.add_metric(labels, number.value)
            yield family
        for metric, histograms in self._measurements.histograms():
            distribution = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, histogram in histograms.items():
                buckets, total = [], 0
                for bound, count in zip(
                    (*histogram.bounds, float("inf")), histogram.counts, strict=True
                ):
                    total += count
                    buckets.append((floatToGoString(bound), float(total)))
                distribution.add_metric(labels, buckets, histogram.sum)
            yield distribution
