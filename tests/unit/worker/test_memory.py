"""Sizing of the KV cache."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from tokasaurus.errors import ConfigError
from tokasaurus.worker import memory
from tokasaurus.worker.memory import KVRequest, choose_num_blocks, free_device_bytes

GIB = 1 << 30
REQUEST = KVRequest(
    num_tokens=None, memory_fraction=0.5, page_size=16, bytes_per_block=1 << 20, max_model_len=1000
)


def test_given_size_is_rounded_up_to_blocks() -> None:
    assert choose_num_blocks(replace(REQUEST, num_tokens=100), GIB, "cpu") == 7


def test_given_size_that_does_not_fit_names_what_does() -> None:
    with pytest.raises(ConfigError, match=r"20\.00 GiB.* 1\.00 GiB .*lower it to at most 16384"):
        choose_num_blocks(replace(REQUEST, num_tokens=16 * 20 * 1024), GIB, "cuda")


def test_a_gpu_gets_its_fraction() -> None:
    assert choose_num_blocks(REQUEST, 100 * GIB, "cuda") == 50 * 1024


def test_a_cpu_gets_a_modest_part() -> None:
    assert choose_num_blocks(REQUEST, 4 * GIB, "cpu") == 2 * 1024
    assert choose_num_blocks(REQUEST, 1000 * GIB, "cpu") == 4 * 1024
    small = replace(REQUEST, bytes_per_block=1024)
    assert choose_num_blocks(small, 1000 * GIB, "cpu") == 63 * 128


def test_no_room_at_all_names_the_options() -> None:
    with pytest.raises(ConfigError, match="Lower page_size or max_tokens_per_forward"):
        choose_num_blocks(REQUEST, 1 << 20, "cuda")


@pytest.mark.parametrize(
    ("limit", "free"), [("max", 8 * GIB), (6 * GIB, 3 * GIB), (1 * GIB, 0), (90 * GIB, 8 * GIB)]
)
def test_free_memory_is_the_machines_or_what_the_container_leaves(
    limit: object, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{4 * GIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon {3 * GIB}\ninactive_file {GIB}\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=8 * GIB))
    assert free_device_bytes(torch.device("cpu")) == free
