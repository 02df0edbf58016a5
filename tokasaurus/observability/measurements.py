"""What was measured so far: plain numbers that one event loop writes and exporters read."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

import msgspec

from tokasaurus.observability.metrics import CATALOGUE, Metric

LabelValues = tuple[str, ...]


class Number:
    """A counter's or gauge's series; `value` is written in place."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0


class Histogram:
    """A histogram's series."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Per bucket, not cumulated; the last one is above all bounds."""
        self.sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """`count` observations of the same value."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.sum += value * count

    def add(self, counts: Sequence[int], total: float) -> None:
        """What was observed elsewhere: per bucket, and its sum."""
        self.counts = [a + b for a, b in zip(self.counts, counts, strict=True)]
        self.sum += total

    @property
    def count(self) -> int:
        return sum(self.counts)

    def minus(self, earlier: "Histogram") -> "Histogram":
        """What was observed since."""
        difference = Histogram(self.bounds)
        difference.counts = [a - b for a, b in zip(self.counts, earlier.counts, strict=True)]
        difference.sum = self.sum - earlier.sum
        return difference

    def copy(self) -> "Histogram":
        return self.minus(Histogram(self.bounds))

    def quantile(self, share: float) -> float:
        """Interpolated within its bucket; 0 if nothing was observed, at most the last bound."""
        rank = share * self.count
        if rank == 0:
            return 0.0
        below = 0
        for index, count in enumerate(self.counts[:-1]):
            if below + count >= rank:
                low = self.bounds[index - 1] if index else 0.0
                return low + (self.bounds[index] - low) * (rank - below) / count
            below += count
        return self.bounds[-1]


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All series of one server process at one time: (metric's name, labels, what it holds)."""

    numbers: list[tuple[str, LabelValues, float]]
    histograms: list[tuple[str, LabelValues, list[int], float]]
    """Counts per bucket, and the sum."""


class Measurements:
    """All series of the catalogue, made when they are first asked for.

    A metric without labels has its series from the start, so that exporters show it as 0.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, dict[LabelValues, Number]] = {}
        self._histograms: dict[str, dict[LabelValues, Histogram]] = {}
        for metric in CATALOGUE:
            if metric.kind == "histogram":
                self._histograms[metric.name] = {}
            else:
                self._numbers[metric.name] = {}
            if not metric.labels:
                self.histogram(metric) if metric.bounds else self.number(metric)

    def number(self, metric: Metric, *labels: str) -> Number:
        """The series of a counter or gauge; keep it where it is written often."""
        assert len(labels) == len(metric.labels), (metric.name, labels)
        return self._numbers[metric.name].setdefault(labels, Number())

    def histogram(self, metric: Metric, *labels: str) -> Histogram:
        assert len(labels) == len(metric.labels), (metric.name, labels)
        series = self._histograms[metric.name]
        if labels not in series:
            series[labels] = Histogram(metric.bounds)
        return series[labels]

    def numbers(self) -> Iterator[tuple[Metric, dict[LabelValues, Number]]]:
        """Counters and gauges that have series, in the catalogue's order."""
        for metric in CATALOGUE:
            if metric.kind != "histogram" and (series := self._numbers[metric.name]):
                yield metric, series

    def histograms(self) -> Iterator[tuple[Metric, dict[LabelValues, Histogram]]]:
        for metric in CATALOGUE:
            if metric.kind == "histogram" and (series := self._histograms[metric.name]):
                yield metric, series

    def total(self, metric: Metric) -> float:
        """Over all series of a counter or gauge."""
        return sum(number.value for number in self._numbers[metric.name].values())

    def total_histogram(self, metric: Metric) -> Histogram:
        """A copy of all series of a histogram together."""
        total = Histogram(metric.bounds)
        for series in self._histograms[metric.name].values():
            total.add(series.counts, series.sum)
        return total

    def snapshot(self) -> Snapshot:
        return Snapshot(
            numbers=[
                (metric.name, labels, float(number.value))
                for metric, series in self.numbers()
                for labels, number in series.items()
            ],
            histograms=[
                (metric.name, labels, list(histogram.counts), histogram.sum)
                for metric, series in self.histograms()
                for labels, histogram in series.items()
            ],
        )

    def become_total(self, snapshots: Sequence[Snapshot]) -> None:
        """Show what these make together, instead of what was here."""
        for numbers in self._numbers.values():
            numbers.clear()
        for histograms in self._histograms.values():
            histograms.clear()
        for snapshot in snapshots:
            for name, labels, value in snapshot.numbers:
                self._add_number(_BY_NAME[name], labels, value)
            for name, labels, counts, total in snapshot.histograms:
                self.histogram(_BY_NAME[name], *labels).add(counts, total)

    def _add_number(self, metric: Metric, labels: LabelValues, value: float) -> None:
        series = self._numbers[metric.name]
        if labels not in series:
            self.number(metric, *labels).value = value
        elif metric.over_servers == "sum":
            series[labels].value += value
        elif metric.over_servers == "least":
            series[labels].value = min(series[labels].value, value)


_BY_NAME = {metric.name: metric for metric in CATALOGUE}
