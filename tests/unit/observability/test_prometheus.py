"""The text that Prometheus reads: complete, parseable, and named as its tools want it."""

import gc
import os
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.metric_tools import PROMTOOL, needs_promtool
from tests.unit.observability.filled_measurements import filled
from tokasaurus.observability import metrics
from tokasaurus.observability.measurements import Measurements
from tokasaurus.observability.prometheus import PrometheusExporter


def render(measurements: Measurements) -> str:
    return PrometheusExporter(measurements).render().decode()


def test_everything_in_the_catalogue_is_shown() -> None:
    families = {f.name: f for f in text_string_to_metric_families(render(filled()))}
    for metric in metrics.CATALOGUE:
        family = families[metric.name.removesuffix("_total")]
        assert family.type == metric.kind
        assert family.documentation == metric.help


def test_buckets_are_cumulative() -> None:
    measurements = Measurements()
    histogram = measurements.histogram(metrics.BATCH_SIZE, "1")
    for size in (1, 3, 3, 10_000):
        histogram.observe(size)
    text = render(measurements)
    name = metrics.BATCH_SIZE.name
    for bound, count in (("1.0", 1), ("2.0", 1), ("4.0", 3), ("4096.0", 3), ("+Inf", 4)):
        assert f'{name}_bucket{{dp_rank="1",le="{bound}"}} {count}.0' in text
    assert f'{name}_count{{dp_rank="1"}} 4.0' in text
    assert f'{name}_sum{{dp_rank="1"}} 10007.0' in text


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_the_process_is_shown() -> None:
    assert "process_resident_memory_bytes" in render(Measurements())


@needs_promtool
@pytest.mark.parametrize("measurements", [Measurements(), filled()], ids=["empty", "filled"])
def test_promtool_finds_nothing(measurements: Measurements) -> None:
    assert PROMTOOL is not None
    result = subprocess.run(
        [PROMTOOL, "check", "metrics"],
        input=render(measurements),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_processes_are_added_up() -> None:
    def shown(pids: list[int]) -> dict[str, float]:
        lines = PrometheusExporter(Measurements(), pids).render().decode().splitlines()
        pairs = (line.split() for line in lines if line.startswith("process_"))
        return {name: float(value) for name, value in pairs}

    gc.collect()  # closes what earlier tests left open
    one, two = shown([os.getpid()]), shown([os.getpid()] * 2)
    assert set(one) == set(two)
    if one:  # the system shows processes under /proc
        assert two["process_start_time_seconds"] == one["process_start_time_seconds"]
        assert two["process_open_fds"] >= 2 * one["process_open_fds"] - 4
