"""Replaying groups of replicas apart gives what replaying them together gives, where it can."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from simulate_schedule import main
from simulation.dealing import deal, split
from simulation.device import HARDWARE, MODELS
from simulation.policies import POLICIES
from simulation.replay import Deployment, Replay
from simulation.report import as_dict, build_report
from simulation.result import ReplayResult, join, read_result, write_result
from simulation.traces import find_trace
from simulation.workload import Prompt

from tokasaurus.manager.settings import ManagerSettings


def deployment(num_replicas: int) -> Deployment:
    return Deployment(
        hardware=HARDWARE["cpu"],
        model=MODELS["135m"],
        settings=ManagerSettings(page_size=16, max_tokens_per_forward=256, max_seqs_per_forward=16),
        num_replicas=num_replicas,
        num_blocks=400,
        max_model_len=4096,
    )


def replayed(num_replicas: int, words: list[str], group: range | None = None) -> ReplayResult:
    """Together; or those of `group` alone, out of so many."""
    whole = deployment(num_replicas)
    trace = find_trace("chat", words)()
    if group is None:
        replay = Replay(whole, POLICIES["default"])
        replay.run(trace)
    else:
        replay = Replay(deployment(len(group)), POLICIES["default"])
        replay.run(deal(trace, whole, group))
    return replay.result()


def comparable(result: ReplayResult) -> dict[str, float | None]:
    report = as_dict(build_report(result))
    return {name: value for name, value in report.items() if not name.startswith("cpu")}


SPARSE = ["requests=30", "rate=0.05", "turns=1", "max_tokens=100"]
"""A request has ended when the next one comes, so what ends when does not matter for dealing."""


def test_groups_cover_all_replicas() -> None:
    assert split(8, 3) == [range(2), range(2, 5), range(5, 8)]
    assert split(2, 2) == [range(1), range(1, 2)]


def test_apart_is_like_together_where_replicas_are_independent() -> None:
    together = comparable(replayed(2, SPARSE))
    apart = comparable(join([replayed(2, SPARSE, group) for group in split(2, 2)]))
    assert apart == pytest.approx(together, nan_ok=True)
    assert together["num_requests"] == 30


def test_every_prompt_is_dealt_once_and_to_all() -> None:
    words = ["requests=200", "rate=50"]

    def keys(trace: Iterator[Prompt]) -> list[int]:
        return [int(prompt.output_keys[0]) for prompt in trace]

    make_trace = find_trace("chat", words)
    shares = [keys(deal(make_trace(), deployment(5), group)) for group in split(5, 2)]
    assert sorted(shares[0] + shares[1]) == sorted(keys(make_trace()))
    assert min(map(len, shares)) > 10


def test_result_survives_a_file(tmp_path: Path) -> None:
    result = replayed(2, SPARSE)
    path = tmp_path / "result.npz"
    write_result(path, result)
    again = read_result(path)
    assert comparable(again) == comparable(result)
    assert again.requests.gaps.counts.tolist() == result.requests.gaps.counts.tolist()
    assert np.array_equal(again.requests.ended, result.requests.ended)


def test_processes_replay_all_requests(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["chat", *SPARSE, "--json", "--replicas", "2", "--device", "cpu"]
    reports = []
    for num_processes in ("1", "2"):
        main([*words, "--processes", num_processes])
        report = json.loads(capsys.readouterr().out)["default"]
        reports.append({k: v for k, v in report.items() if not k.startswith("cpu")})
    assert reports[1] == pytest.approx(reports[0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--processes", "3", "--replicas", "2"], "say 1 to --replicas"),
        (["--processes", "0"], "say 1 to --replicas"),
        (["--processes", "2", "--replicas", "2", "--plot", "x.png"], "predictions"),
    ],
)
def test_says_what_processes_cannot_do(words: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(["chat", *words])


def test_says_which_process_failed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"prompt_tokens": 3}\n')
    with pytest.raises(SystemExit, match="replicas 0 to 0 ended with exit code 1"):
        main([str(path), "--processes", "2", "--replicas", "2"])
    assert "line 1" in capfd.readouterr().err
