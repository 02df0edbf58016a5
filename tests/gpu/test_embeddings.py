"""Vectors of prompts on the device: chunks and company change nothing but roundings."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.models import load, started_runner
from tests.unit.worker.step_driver import DrivenSequence, StepDriver
from tokasaurus.ipc.messages.to_manager import Pooling, TokenSampling
from tokasaurus.worker.torch_runner import RunnerSettings, TorchRunner

PAGE_SIZE = 16
NO_SAMPLING = TokenSampling(temperature=0.0)
POOLINGS: tuple[Pooling, ...] = ("mean", "last")


@pytest.fixture(scope="module")
def runner(checkpoint: Callable[..., Path], device: torch.device, best_backend: str) -> TorchRunner:
    folder = checkpoint("llama", head_dim=64)
    return started_runner(
        RunnerSettings(
            device=device,
            attention_backend=best_backend,
            cpu_kernels=False,
            page_size=PAGE_SIZE,
            kv_cache_num_tokens=4096,
            max_tokens_per_forward=256,
            max_seqs_per_forward=8,
        ),
        lambda: load(folder, dtype="bfloat16", device=device),
    )


def test_chunks_beside_decodes_equal_one_chunk(runner: TorchRunner) -> None:
    driver = StepDriver(runner, PAGE_SIZE)
    random = np.random.default_rng(3)
    prompts = [random.integers(6, 380, length).tolist() for length in (1, 15, 16, 70, 200)]
    other = driver.add(7, prompts[3], NO_SAMPLING)
    driver.run(prefill=[(other, 70)])
    for pooling in POOLINGS:
        alone, together = (
            embed(driver, prompts, pooling, chunk_len, other) for chunk_len in (200, 30)
        )
        for one, another in zip(alone, together, strict=True):
            assert another.dtype == np.float32
            assert np.linalg.norm(another - one) < 0.02 * np.linalg.norm(one)


def embed(
    driver: StepDriver,
    prompts: list[list[int]],
    pooling: Pooling,
    chunk_len: int,
    decoding: DrivenSequence,
) -> list[np.ndarray]:
    """One by one if a prompt fits a chunk, else all together."""
    sequences = [
        driver.add(slot, prompt, NO_SAMPLING, pooling=pooling)
        for slot, prompt in enumerate(prompts)
    ]
    while waiting := [s for s in sequences if s.vector is None]:
        if chunk_len >= max(map(len, prompts)):
            waiting = waiting[:1]
        chunks = [(s, min(chunk_len, len(s.tokens) - s.num_computed)) for s in waiting]
        driver.run(prefill=chunks, decode=[decoding])
    for sequence in sequences:
        driver.free(sequence)
    return [s.vector for s in sequences if s.vector is not None]
