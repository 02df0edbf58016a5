"""Measurements in which every metric of the catalogue has a series."""

from tokasaurus.observability.measurements import Measurements
from tokasaurus.observability.metrics import CATALOGUE

LABEL_VALUES = {
    "dp_rank": "0",
    "finish_reason": "stop",
    "method": "POST",
    "route": "/v1/chat/completions",
    "status": "200",
}


def filled() -> Measurements:
    measurements = Measurements()
    for metric in CATALOGUE:
        labels = [LABEL_VALUES[name] for name in metric.labels]
        if metric.kind == "histogram":
            measurements.histogram(metric, *labels).observe(0.5)
        else:
            measurements.number(metric, *labels).value = 3
    return measurements
