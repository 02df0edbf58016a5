"""Choices that a worker makes from the options before it loads."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.errors import ConfigError
from tokasaurus.worker import process

CPU = torch.device("cpu")


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_auto_takes_a_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 2)
    assert process.choose_device("auto", 1) == torch.device("cuda", 1)
    assert process.choose_device("cpu", 0) == CPU
    with_gpus(monkeypatch, 0)
    assert process.choose_device("auto", 0) == CPU


@pytest.mark.parametrize(("device", "count", "dp_rank"), [("cuda", 0, 0), ("auto", 2, 2)])
def test_too_few_gpus_are_refused(
    monkeypatch: pytest.MonkeyPatch, device: str, count: int, dp_rank: int
) -> None:
    with_gpus(monkeypatch, count)
    with pytest.raises(ConfigError, match=f"at least {dp_rank + 1} GPUs"):
        process.choose_device(device, dp_rank)


@pytest.mark.parametrize(
    ("dtype", "checkpoint", "architecture", "has_instructions", "has_kernels", "expected"),
    [
        ("auto", "bfloat16", "LlamaForCausalLM", True, False, "auto"),
        ("auto", "bfloat16", "LlamaForCausalLM", False, True, "auto"),
        ("auto", "bfloat16", "LlamaForCausalLM", False, False, "float32"),
        ("auto", "bfloat16", "GPT2LMHeadModel", False, True, "float32"),
        ("auto", "float16", "LlamaForCausalLM", False, True, "float32"),
        ("auto", "float32", "LlamaForCausalLM", False, False, "auto"),
        ("bfloat16", "bfloat16", "LlamaForCausalLM", False, False, "bfloat16"),
    ],
)
def test_dtype_suits_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    checkpoint: str,
    architecture: str,
    has_instructions: bool,
    has_kernels: bool,
    expected: str,
) -> None:
    instructions = SimpleNamespace(
        _is_mkldnn_bf16_supported=lambda: has_instructions,
        _is_mkldnn_fp16_supported=lambda: has_instructions,
    )

    monkeypatch.setattr(torch.ops, "mkldnn", instructions)
    monkeypatch.setattr(process, "kernels_available", lambda: has_kernels)
    config = EngineConfig()
    config.dtype = dtype  # type: ignore[assignment]
    model = SimpleNamespace(dtype=checkpoint, architecture=architecture)
    assert process.choose_dtype(config, model, CPU) == expected  # type: ignore[arg-type]
    assert process.choose_dtype(config, model, torch.device("cuda")) == dtype  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cpu_threads", "dp_rank", "dp_size", "cores", "threads"),
    [
        (None, 0, 1, None, 2),
        (3, 0, 1, None, 3),
        (None, 1, 2, {4, 5}, 2),
        (None, 1, 4, None, 2),
        (1, 1, 2, {4}, 1),
        (3, 1, 2, None, 3),
    ],
)
def test_replicas_share_the_cores(
    monkeypatch: pytest.MonkeyPatch,
    cpu_threads: int | None,
    dp_rank: int,
    dp_size: int,
    cores: set[int] | None,
    threads: int,
) -> None:
    """With as many threads as the environment says, 2 here, unless an option does; where these are
    more than a worker's share of the cores, the system places them."""
    chosen: dict[str, object] = {"cores": None, "threads": 2}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3, 4, 5}, raising=False)
    monkeypatch.setattr(
        os, "sched_setaffinity", lambda _, mine: chosen.update(cores=mine), raising=False
    )
    monkeypatch.setattr(torch, "set_num_threads", lambda n: chosen.update(threads=n))
    monkeypatch.setattr(torch, "get_num_threads", lambda: chosen["threads"])
    monkeypatch.setattr(process, "group_by_core", lambda cpus: [[cpu] for cpu in sorted(cpus)])
    process.place_threads(cpu_threads, dp_rank, dp_size)
    assert chosen == {"cores": cores, "threads": threads}


def test_a_limit_below_the_cores_leaves_the_choice_to_the_system(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(
        os, "sched_setaffinity", lambda _, mine: pytest.fail(f"{mine}"), raising=False
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(process, "group_by_core", lambda cpus: [[cpu] for cpu in sorted(cpus)])
    process.place_threads(None, 1, 2)


@pytest.mark.parametrize(
    ("siblings", "cpus", "expected"),
    [
        (["0-1", "0-1", "2-3", "2-3"], {0, 1, 2, 3}, [[0, 1], [2, 3]]),
        (["0,2", "1,3", "0,2", "1,3"], {0, 1, 2, 3}, [[0, 2], [1, 3]]),
        (["0-1", "0-1", "2-3", "2-3"], {1, 2, 3}, [[1], [2, 3]]),
        ([], {3, 1}, [[1], [3]]),
    ],
)
def test_a_core_has_its_siblings(
    tmp_path: Path, siblings: list[str], cpus: set[int], expected: list[list[int]]
) -> None:
    for cpu, line in enumerate(siblings):
        (tmp_path / f"siblings{cpu}").write_text(line + "\n")
    assert process.group_by_core(cpus, str(tmp_path / "siblings{cpu}")) == expected


@pytest.mark.parametrize(
    ("cores", "share", "expected"),
    [
        ([[0, 4], [1, 5], [2, 6], [3, 7]], 2, [{0, 1}, {2, 3}]),
        ([[0, 1], [2, 3], [4, 5], [6, 7]], 4, [{0, 1, 2, 3}, {4, 5, 6, 7}]),
        ([[0, 1], [2, 3], [4, 5]], 2, [{0, 1}, {2, 4}]),
        ([[0, 1]], 1, [set(), {0}]),
    ],
)
def test_no_two_workers_share_a_core(
    cores: list[list[int]], share: int, expected: list[set[int]]
) -> None:
    assert [process.cpus_of_worker(cores, share, i, 2) for i in range(2)] == expected
