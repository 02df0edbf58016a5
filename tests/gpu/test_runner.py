"""The runner on the device: graphs and compilation change nothing, and no step waits for it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.models import load, started_runner
from tests.unit.worker.step_driver import DrivenSequence, StepDriver
from tokasaurus.config.compile_options import CompileOptions
from tokasaurus.ipc.messages.to_manager import StepOutput, TokenSampling
from tokasaurus.worker.forward_pass import ForwardOptions
from tokasaurus.worker.torch_runner import RunnerSettings, TorchRunner

PAGE_SIZE = 16
MAX_LOGPROB_ERROR = 0.05
"""Between ways to run a bfloat16 model; its own rounding is of this size."""
Checkpoint = Callable[..., Path]
MakeRunner = Callable[..., TorchRunner]
PLAIN = ForwardOptions(use_cudagraphs=False)


@pytest.fixture(scope="module")
def make_runner(checkpoint: Checkpoint, device: torch.device, best_backend: str) -> MakeRunner:
    folder = checkpoint("llama", head_dim=64)

    def make(**settings: Any) -> TorchRunner:
        arguments = {
            "device": device,
            "attention_backend": best_backend,
            "cpu_kernels": False,
            "page_size": PAGE_SIZE,
            "kv_cache_num_tokens": 8192,
            "max_tokens_per_forward": 256,
            "max_seqs_per_forward": 24,
            "forward": PLAIN,
            **settings,
        }
        return started_runner(
            RunnerSettings(**arguments), lambda: load(folder, dtype="bfloat16", device=device)
        )

    return make


def sweep(driver: StepDriver) -> list[DrivenSequence]:
    """Prompts of many lengths that join a growing batch, then decodes of shrinking size."""
    random = np.random.default_rng(1)
    sampling = TokenSampling(temperature=0.0, num_top_logprobs=0)
    running: list[DrivenSequence] = []
    for slot, length in enumerate((1, 2, 3, 8, 17, 31, 64, 100)):
        sequence = driver.add(slot, random.integers(6, 300, length).tolist(), sampling)
        driver.run(prefill=[(sequence, length)], decode=running)
        running.append(sequence)
    for size in (8, 8, 7, 5, 3, 2, 1, 8):
        driver.run(decode=running[:size])
    return running


def logprob_error(a: list[DrivenSequence], b: list[DrivenSequence]) -> float:
    """Largest difference up to where the tokens part (a tie within rounding)."""
    errors = [0.0]
    for left, right in zip(a, b, strict=True):
        for i, (x, y) in enumerate(zip(left.output, right.output, strict=True)):
            errors.append(abs(left.logprobs[i] - right.logprobs[i]))
            if x != y:
                break
    return max(errors)


@pytest.fixture(scope="module")
def eager(make_runner: MakeRunner) -> list[DrivenSequence]:
    return sweep(StepDriver(make_runner(), PAGE_SIZE))


def test_quick_graphs_equal_eager(make_runner: MakeRunner, eager: list[DrivenSequence]) -> None:
    options = ForwardOptions(cudagraph_max_size=16, cudagraph_step=4)
    runner = make_runner(forward=options)
    assert logprob_error(sweep(StepDriver(runner, PAGE_SIZE)), eager) < MAX_LOGPROB_ERROR
    if runner._backend.supports_cuda_graphs and runner._device.type == "cuda":
        assert "CUDA graphs" in runner.description


def test_compiled_equals_eager(make_runner: MakeRunner, eager: list[DrivenSequence]) -> None:
    options = ForwardOptions(compile_options=CompileOptions(), cudagraph_max_size=16)
    runner = make_runner(forward=options)
    driver = CountingDriver(runner, PAGE_SIZE)
    assert logprob_error(sweep(driver), eager) < MAX_LOGPROB_ERROR
    assert driver.num_recompiles == 0


def test_quick_torch_attention_equals_the_best(
    make_runner: MakeRunner, eager: list[DrivenSequence]
) -> None:
    runner = make_runner(attention_backend="torch")
    assert logprob_error(sweep(StepDriver(runner, PAGE_SIZE)), eager) < MAX_LOGPROB_ERROR


class CountingDriver(StepDriver):
    """Adds up what steps say about compilations."""

    num_recompiles = 0

    def run(self, *args: Any, **kwargs: Any) -> StepOutput:
        output = super().run(*args, **kwargs)
        self.num_recompiles += output.num_recompiles
        return output


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Whatever makes the host wait for the GPU raises."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


SAMPLINGS = {
    "greedy": TokenSampling(temperature=0.0),
    "random": TokenSampling(temperature=0.8, seed=3),
    "top-k": TokenSampling(temperature=0.8, top_k=5, seed=3),
    "top-p": TokenSampling(temperature=0.8, top_p=0.9, seed=3),
    "min-p": TokenSampling(temperature=0.8, min_p=0.05, seed=3),
    "log-probabilities": TokenSampling(temperature=0.8, num_top_logprobs=3, seed=3),
    "penalties": TokenSampling(temperature=0.8, frequency_penalty=0.5, seed=3),
}


@pytest.mark.parametrize("graphs", [False, True])
def test_quick_no_step_waits_for_the_device(
    make_runner: MakeRunner, device: torch.device, graphs: bool
) -> None:
    options = ForwardOptions(use_cudagraphs=graphs, cudagraph_max_size=8)
    runner = make_runner(forward=options)
    execute = runner.execute
    for sampling in SAMPLINGS.values():
        driver = StepDriver(runner, PAGE_SIZE)
        sequences = [driver.add(slot, [5 + slot, 9, 11], sampling) for slot in range(3)]
        driver.run(prefill=[(s, 3) for s in sequences])
        driver.run(decode=sequences)

        def checked(step: Any, goes_on: Any) -> Any:
            with no_waiting(device):
                return execute(step, goes_on)

        runner.execute = checked  # type: ignore[method-assign]
        driver.run(decode=sequences)
        driver.run(decode=sequences)
        runner.execute = execute  # type: ignore[method-assign]
        for sequence in sequences:
            driver.free(sequence)
        driver.run()
