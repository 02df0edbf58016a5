"""The dashboards name only metrics that exist, and every metric is on one of them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.unit.observability.filled_measurements import LABEL_VALUES, filled
from tokasaurus.observability.metrics import CATALOGUE, Metric
from tokasaurus.observability.prometheus import PrometheusExporter
from tokasaurus.observability.statsd import statsd_name

FOLDER = Path(__file__).parents[3] / "deploy" / "dashboards"
PROMETHEUS = FOLDER / "grafana-prometheus.json"
GRAPHITE = FOLDER / "grafana-graphite.json"
HISTOGRAM_SUFFIXES = ("mean", "p50", "p95", "p99")


def targets(path: Path) -> list[dict[str, Any]]:
    panels = json.loads(path.read_text())["panels"]
    return [target for panel in panels for target in panel["targets"]]


def shown_names() -> set[str]:
    text = PrometheusExporter(filled()).render().decode()
    return {re.split(r"[{ ]", line)[0] for line in text.splitlines() if not line.startswith("#")}


def statsd_paths(metric: Metric) -> list[str]:
    name = statsd_name(metric, tuple(LABEL_VALUES[label] for label in metric.labels))
    if metric.kind == "counter":
        return [f"stats.tokasaurus.{name}"]
    if metric.kind == "gauge":
        return [f"stats.gauges.tokasaurus.{name}"]
    return [f"stats.gauges.tokasaurus.{name}.{suffix}" for suffix in HISTOGRAM_SUFFIXES]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_prometheus_queries_name_what_is_shown() -> None:
    named = {
        name
        for target in targets(PROMETHEUS)
        for name in re.findall(r"(?:tokasaurus|process)_\w+", target["expr"])
    }
    assert named <= shown_names()
    bare = {re.sub(r"_bucket$", "", name) for name in named}
    assert {metric.name for metric in CATALOGUE} <= bare


def test_prometheus_labels_exist() -> None:
    known = {label for metric in CATALOGUE for label in metric.labels} | {"instance"}
    for target in targets(PROMETHEUS):
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= known


def test_graphite_paths_match_what_is_sent() -> None:
    sent = [path for metric in CATALOGUE for path in statsd_paths(metric)]
    patterns = {
        path.rstrip(".")
        for target in targets(GRAPHITE)
        for path in re.findall(r"stats\.[\w.*]+", target["target"])
    }
    for pattern in patterns:
        regex = re.escape(pattern).replace(r"\*", r"[^.]+")
        assert any(re.fullmatch(regex, path) for path in sent), pattern
    for metric in CATALOGUE:
        name = metric.name.removeprefix("tokasaurus_")
        assert any(f"tokasaurus.{name}" in pattern for pattern in patterns), name


@pytest.mark.parametrize("path", [PROMETHEUS, GRAPHITE], ids=lambda p: p.stem)
def test_panels_do_not_overlap(path: Path) -> None:
    panels = json.loads(path.read_text())["panels"]
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels]
    assert len(set(places)) == len(panels) == len({p["id"] for p in panels})
