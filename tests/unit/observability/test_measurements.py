"""Histograms count what was observed, and estimate quantiles within a bucket."""

from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokasaurus.observability import metrics
from tokasaurus.observability.measurements import Histogram, Measurements

BOUNDS = (1.0, 2.0, 5.0, 10.0)
VALUES = st.lists(st.floats(0, 10), min_size=1, max_size=50)


def histogram_of(values: list[float]) -> Histogram:
    histogram = Histogram(BOUNDS)
    for value in values:
        histogram.observe(value)
    return histogram


def test_a_bound_belongs_to_its_bucket() -> None:
    assert histogram_of([0.0, 1.0, 1.5, 10.0, 11.0]).counts == [2, 1, 0, 1, 1]


def test_many_at_once_are_many() -> None:
    histogram = Histogram(BOUNDS)
    histogram.observe(1.5, 4)
    assert histogram.counts == histogram_of([1.5] * 4).counts
    assert histogram.sum == 6.0


@given(VALUES, st.floats(0.01, 1))
def test_a_quantile_is_in_the_bucket_of_the_exact_one(values: list[float], share: float) -> None:
    ordered = sorted(values)
    rank = share * len(values)
    exact = next(v for i, v in enumerate(ordered, 1) if i >= rank)
    index = bisect_left(BOUNDS, exact)
    low = BOUNDS[index - 1] if index else 0.0
    assert low - 1e-9 <= histogram_of(values).quantile(share) <= BOUNDS[index] + 1e-9


def test_quantiles_of_nothing_and_of_what_is_beyond() -> None:
    assert Histogram(BOUNDS).quantile(0.5) == 0.0
    assert histogram_of([100.0]).quantile(0.5) == 10.0


@given(VALUES, VALUES)
def test_minus_is_what_came_since(before: list[float], since: list[float]) -> None:
    histogram = histogram_of(before)
    earlier = histogram.copy()
    for value in since:
        histogram.observe(value)
    difference = histogram.minus(earlier)
    assert difference.counts == histogram_of(since).counts
    assert difference.sum == pytest.approx(sum(since), abs=1e-6)


def test_series_without_labels_exist_from_the_start() -> None:
    names = {metric.name for metric, _ in Measurements().numbers()}
    names |= {metric.name for metric, _ in Measurements().histograms()}
    assert names == {metric.name for metric in metrics.CATALOGUE if not metric.labels}


def test_a_series_is_the_same_object_every_time() -> None:
    measurements = Measurements()
    measurements.number(metrics.RUNNING, "0").value = 2
    measurements.number(metrics.RUNNING, "1").value = 3
    assert measurements.number(metrics.RUNNING, "0").value == 2
    assert measurements.total(metrics.RUNNING) == 5


def test_the_catalogue_is_consistent() -> None:
    names = [metric.name for metric in metrics.CATALOGUE]
    assert len(set(names)) == len(names)
    for metric in metrics.CATALOGUE:
        assert metric.name.startswith("tokasaurus_")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert bool(metric.bounds) == (metric.kind == "histogram")
        assert list(metric.bounds) == sorted(set(metric.bounds))
        assert metric.help.endswith(".")


def test_the_total_of_several_servers() -> None:
    servers = [Measurements(), Measurements()]
    for index, server in enumerate(servers):
        server.number(metrics.REQUESTS_FINISHED, "stop").value = 2 + index
        server.number(metrics.OUTPUT_TOKENS, "0").value = 70  # told by a manager to both
        server.number(metrics.READY).value = index
        server.number(metrics.IN_FLIGHT).value = 1
        server.histogram(metrics.QUEUE_TIME, "0").observe(0.2, 3)
    servers[1].number(metrics.RUNNING, "1").value = 9
    total = Measurements()
    for _ in range(2):  # what was there before does not count
        total.become_total([server.snapshot() for server in servers])
    assert total.number(metrics.REQUESTS_FINISHED, "stop").value == 5
    assert total.number(metrics.OUTPUT_TOKENS, "0").value == 70
    assert total.number(metrics.READY).value == 0
    assert total.number(metrics.IN_FLIGHT).value == 2
    assert total.number(metrics.RUNNING, "1").value == 9
    assert total.histogram(metrics.QUEUE_TIME, "0").count == 6
    assert total.histogram(metrics.QUEUE_TIME, "0").sum == pytest.approx(1.2)
