"""Measurements in Prometheus' text format, with the server processes' CPU time and memory."""

import os
from collections.abc import Iterator, Sequence
from functools import partial

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


_START_TIME = "process_start_time_seconds"


class PrometheusExporter:
    """Shows measurements, and what the system says about the processes that measured."""

    def __init__(self, measurements: Measurements, pids: Sequence[int] = ()) -> None:
        """`pids`: of the processes; none: this one's."""
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_MeasurementCollector(measurements))
        self._registry.register(_ProcessSum(pids or [os.getpid()]))

    def render(self) -> bytes:
        """The body of a response of type CONTENT_TYPE."""
        return generate_latest(self._registry)


class _ProcessSum(Collector):
    """The process metrics of several processes together: sums, and the earliest start."""

    def __init__(self, pids: Sequence[int]) -> None:
        # A registry of its own: the collector would enter itself into the global one.
        self._collectors = [
            ProcessCollector(pid=partial(int, pid), registry=CollectorRegistry()) for pid in pids
        ]

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for collector in self._collectors:
            for family in collector.collect():
                known = families.get(family.name)
                if known is None:
                    families[family.name] = family
                else:
                    together = min if family.name == _START_TIME else sum
                    known.samples = [
                        ours._replace(value=together((ours.value, theirs.value)))
                        for ours, theirs in zip(known.samples, family.samples, strict=True)
                    ]
        yield from families.values()


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
