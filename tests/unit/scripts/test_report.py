"""The arithmetic behind a report, and the command line around it."""

import json
from pathlib import Path

import numpy as np
import pytest
from simulate_schedule import main
from simulation.policies import POLICIES
from simulation.recording import GapHistogram, ReplicaLog, RequestLog
from simulation.report import max_overtaken, steady_part, weighted_percentiles

from tokasaurus.ipc.messages.to_server import RequestFinished


def test_gap_percentiles_are_close() -> None:
    gaps = np.random.default_rng(0).lognormal(-4, 1, 5000)
    histogram = GapHistogram()
    for part in np.array_split(gaps, 7):
        histogram.add(part)
    for percent in (1, 50, 99, 100):
        assert histogram.percentile(percent) == pytest.approx(
            np.percentile(gaps, percent), rel=0.03
        )


def test_nothing_has_no_percentile() -> None:
    assert np.isnan(GapHistogram().percentile(50))
    assert np.isnan(weighted_percentiles(np.empty(0), np.empty(0), [50])).all()


def test_percentiles_weigh() -> None:
    values, weights = np.array([3.0, 1.0, 2.0]), np.array([1.0, 98.0, 1.0])
    assert weighted_percentiles(values, weights, [5, 50, 98.5, 100]) == [1.0, 1.0, 2.0, 3.0]


def test_counts_the_places_that_a_request_lost() -> None:
    log = ReplicaLog(None, 1)
    assert max_overtaken(log) == 0
    log.start_order.extend([0, 3, 4, 7])
    assert max_overtaken(log) == 0
    log.start_order.extend([2, 9])
    assert max_overtaken(log) == 3


def test_steady_is_the_backlogged_time_without_its_start() -> None:
    log = ReplicaLog(None, 1)
    for time in range(40):
        queued = 5 if 10 <= time < 30 else 0
        row = (float(time), float(time), 1.0, 1.0, float(queued))
        for column, value in zip(log._columns, row, strict=True):
            column.append(value)
    assert np.flatnonzero(steady_part(log)).tolist() == list(range(12, 30))


def test_request_log_grows_and_keeps_what_it_has() -> None:
    log = RequestLog()
    log.add(1000, 1.0)
    assert log.add(3000, 2.0) == 1000
    assert log.start([3999, 5], 3.0).tolist() == [3999, 5]
    assert log.start([5, 6], 4.0).tolist() == [6]
    log.take_tokens(np.array([5, 3999]), np.array([1, 1]), 5.0)
    log.take_tokens(np.array([5, 3999]), np.array([3, 1]), 6.5)
    log.finish(RequestFinished(request_id=3999, reason="stop", num_preemptions=2), 6.5)
    log.finish(RequestFinished(request_id=0, reason="error", error="too long"), 1.0)
    assert log.arrival[[0, 1000, 3999]].tolist() == [1.0, 2.0, 2.0]
    assert log.started[[5, 6, 3999]].tolist() == [3.0, 4.0, 3.0]
    assert log.first_token[[5, 3999]].tolist() == [5.0, 5.0]
    assert log.gaps.percentile(100) == pytest.approx(1.5, rel=0.02)
    assert log.gaps.percentile(75) == pytest.approx(0.5, rel=0.02)
    assert log.num_preemptions[3999] == 2
    assert log.num_refused == 1
    assert log.num_output_tokens == 6


def test_compares_and_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "plot.png"
    words = ["monkeys", "prompts=2", "samples=20", "--compare", "--json", "--plot", str(plot)]
    main([*words, "--kv-tokens", "4000", "--set", "max_seqs_per_forward=32"])
    reports = json.loads(capsys.readouterr().out)
    assert reports.keys() == POLICIES.keys()
    assert all(report["num_requests"] == 40 for report in reports.values())
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "neither a file"),
        (["chat", "--set", "max_seqs=3"], "the settings are"),
        (["chat", "--set", "page_size=x"], "not a JSON value"),
        (["chat", "--memory-bytes", "1"], "no block fits"),
    ],
)
def test_says_what_is_wrong(words: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(words)
