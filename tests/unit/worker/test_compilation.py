"""A compiled runner gives the tokens of one that is not, and compiles nothing after warm-up."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.worker.conftest import PAGE_SIZE, VOCAB_SIZE
from tests.unit.worker.step_driver import DrivenSequence, StepDriver
from tokasaurus.config.compile_options import CompileOptions
from tokasaurus.errors import ConfigError
from tokasaurus.ipc.messages.to_manager import StepOutput, TokenSampling
from tokasaurus.worker.forward_pass import ForwardOptions
from tokasaurus.worker.torch_runner import TorchRunner

MakeRunner = Callable[..., TorchRunner]
PLAIN = {"cpu_kernels": False}


class RecordingDriver(StepDriver):
    """Keeps what each step says about compilations."""

    def __init__(self, runner: TorchRunner, page_size: int) -> None:
        super().__init__(runner, page_size)
        self.num_recompiles: list[int] = []

    def run(self, *args: Any, **kwargs: Any) -> StepOutput:
        output = super().run(*args, **kwargs)
        self.num_recompiles.append(output.num_recompiles)
        return output


def sweep(driver: StepDriver) -> list[DrivenSequence]:
    """Prefills of many lengths, decodes of many sizes, and mixes; ends where it began."""
    random = np.random.default_rng(1)
    sequences = [
        driver.add(slot, random.integers(0, VOCAB_SIZE, length).tolist(), sampling)
        for slot, length in enumerate((1, 2, 3, 8, 17, 31))
        for sampling in (TokenSampling(temperature=slot % 2, seed=slot),)
    ]
    running: list[DrivenSequence] = []
    for sequence in sequences:
        driver.run(prefill=[(sequence, len(sequence.tokens))], decode=running)
        running.append(sequence)
    for size in (6, 5, 4, 3, 2, 1, 6):
        driver.run(decode=running[:size])
    for sequence in sequences:
        driver.free(sequence)
    return sequences


@pytest.mark.parametrize(
    "backend",
    [
        "eager",
        # Slow: generates and compiles C++ for a quarter of a minute of both cores.
        pytest.param("inductor", marks=pytest.mark.slow),
    ],
)
def test_no_recompiles_and_the_same_tokens(backend: str, make_runner: MakeRunner) -> None:
    torch.compiler.reset()  # all tests share a process, and its limit of graphs
    options = CompileOptions(backend=backend)
    compiled = make_runner(forward=ForwardOptions(compile_options=options), **PLAIN)
    eager = sweep(StepDriver(make_runner(**PLAIN), PAGE_SIZE))
    driver = RecordingDriver(compiled, PAGE_SIZE)
    result = sweep(driver)
    assert [s.output for s in result] == [s.output for s in eager]
    assert driver.num_recompiles == [0] * 13
    assert "compiled" in compiled.description


def test_recompilations_are_counted(make_runner: MakeRunner) -> None:
    runner = make_runner(
        forward=ForwardOptions(compile_options=CompileOptions(backend="eager")), **PLAIN
    )
    driver = StepDriver(runner, PAGE_SIZE)
    sequence = driver.add(0, [1, 2, 3], TokenSampling())
    assert driver.run(prefill=[(sequence, 3)]).num_recompiles == 0
    torch.compiler.reset()
    assert driver.run(decode=[sequence]).num_recompiles == 1
    assert driver.run(decode=[sequence]).num_recompiles == 0


def test_what_can_not_be_compiled_is_refused(make_runner: MakeRunner) -> None:
    with pytest.raises(ConfigError, match="cpu_kernels=F"):
        make_runner(
            attention_backend="auto",
            forward=ForwardOptions(compile_options=CompileOptions(backend="eager")),
        )
    options = CompileOptions(options={"no_such_option": 1})
    with pytest.raises(ConfigError, match="no_such_option"):
        make_runner(forward=ForwardOptions(compile_options=options), **PLAIN)
