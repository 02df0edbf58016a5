"""Sends measurements to a statsd daemon over UDP, all that changed once per interval.

Counters go as increments, gauges as values, histograms as a `.count` increment and gauges of the
interval's `.mean`, `.p50`, `.p95` and `.p99`. Label values follow the name, separated by dots.
"""

import re

from statsd import StatsClient

from tokasaurus.errors import ConfigError
from tokasaurus.observability.measurements import Histogram, LabelValues, Measurements
from tokasaurus.observability.metrics import Metric

_PREFIX = "tokasaurus"
_QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_Series = tuple[str, LabelValues]
_NOT_ALLOWED = re.compile(r"[^A-Za-z0-9_-]+")


class StatsdSender:
    """Each `send` says what is new since the last one."""

    def __init__(self, address: str, measurements: Measurements) -> None:
        """`address`: "host:port". Raises ConfigError if that is not one."""
        host, port = parse_address(address)
        is_ipv6 = ":" in host
        try:
            self._client = StatsClient(host, port, prefix=_PREFIX, ipv6=is_ipv6)
        except OSError as error:
            raise ConfigError(f"statsd_addr {address!r} can't be resolved: {error}.") from error
        self._measurements = measurements
        self._sent_numbers: dict[_Series, float] = {}
        self._sent_histograms: dict[_Series, Histogram] = {}

    def send(self) -> None:
        """Never raises for the network: nobody may be listening."""
        with self._client.pipeline() as pipeline:
            for metric, series in self._measurements.numbers():
                for labels, number in series.items():
                    name = statsd_name(metric, labels)
                    if metric.kind == "gauge":
                        pipeline.gauge(name, _short(number.value))
                    elif increment := self._increment((metric.name, labels), number.value):
                        pipeline.incr(name, _short(increment))
            for metric, histograms in self._measurements.histograms():
                for labels, histogram in histograms.items():
                    news = self._news((metric.name, labels), histogram)
                    if not news.count:
                        continue
                    name = statsd_name(metric, labels)
                    pipeline.incr(f"{name}.count", news.count)
                    pipeline.gauge(f"{name}.mean", _short(news.sum / news.count))
                    for suffix, share in _QUANTILES.items():
                        pipeline.gauge(f"{name}.{suffix}", _short(news.quantile(share)))

    def close(self) -> None:
        self._client.close()

    def _increment(self, series: _Series, value: float) -> float:
        before = self._sent_numbers.get(series, 0.0)
        self._sent_numbers[series] = value
        # A manager that was replaced counts from 0 again.
        return value - before if value >= before else value

    def _news(self, series: _Series, histogram: Histogram) -> Histogram:
        before = self._sent_histograms.get(series)
        news = histogram.minus(before) if before is not None else histogram.copy()
        if news.count:
            self._sent_histograms[series] = histogram.copy()
        return news


def statsd_name(metric: Metric, labels: LabelValues) -> str:
    """Below the prefix: `sequences_running.dp_rank_0`, `requests_finished_total.stop`."""
    parts = [metric.name.removeprefix(f"{_PREFIX}_")]
    for name, value in zip(metric.labels, labels, strict=True):
        shown = f"{name}_{value}" if name.endswith("_rank") else value
        parts.append(_NOT_ALLOWED.sub("_", shown).strip("_") or "none")
    return ".".join(parts)


def parse_address(address: str) -> tuple[str, int]:
    """ "host:port" or "[IPv6]:port". Raises ConfigError for anything else."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) <= 65535:
        raise ConfigError(
            f"statsd_addr must be host:port, such as 127.0.0.1:8125, not {address!r}."
        )
    return host, int(port)


def _short(value: float) -> float | int:
    """Never in exponent form, which daemons don't read."""
    return int(value) if value == int(value) else round(value, 4)
