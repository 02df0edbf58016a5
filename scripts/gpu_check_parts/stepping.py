"""Drives a runner with steps as a manager would, without one: decodes and prefills of any size."""

import time
from dataclasses import dataclass

import numpy as np
import torch

from tokasaurus.ipc.messages.to_manager import StepOutput, TokenSampling
from tokasaurus.ipc.messages.to_worker import AddedSlot, StepInput
from tokasaurus.worker.torch_runner import TorchRunner

_NONE = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class SteppingResult:
    """A run of like steps."""

    seconds_per_step: float
    """Median time between two results."""
    idle_share: float
    """Of the device's time between the steps; 0 where it is not measured."""
    num_recompiles: int


class RunnerDriver:
    """Keeps one step ahead of the runner, as the worker's loop does."""

    def __init__(self, runner: TorchRunner, page_size: int) -> None:
        self._runner = runner
        self._page_size = page_size
        self._step_id = 0

    def decode(
        self, batch_size: int, context: int, num_steps: int, sampling: TokenSampling
    ) -> SteppingResult:
        """Steps of so many sequences, whose caches hold `context` tokens (of any content)."""
        cached = context // self._page_size * self._page_size
        tables = -(-(cached + num_steps + 2) // self._page_size)
        slots = np.arange(batch_size, dtype=np.int32)
        steps = [
            self._step(
                added_slots=[AddedSlot(int(s), cached, cached, sampling) for s in slots],
                appended_slots=np.repeat(slots, tables),
                appended_blocks=np.arange(batch_size * tables, dtype=np.int32),
                decode_slots=slots,
                hydragen_groups=[],
            )
        ]
        steps += [self._step(decode_slots=None) for _ in range(num_steps - 1)]
        result = self._run(steps)
        self._run([self._step(freed_slots=slots, decode_slots=_NONE, hydragen_groups=[])])
        return result

    def prefill(self, num_prompts: int, prompt_len: int, num_steps: int) -> SteppingResult:
        """Steps that each compute so many whole prompts."""
        tables = -(-(prompt_len + 1) // self._page_size)
        slots = np.arange(num_prompts, dtype=np.int32)
        greedy = TokenSampling(temperature=0.0)
        random = np.random.default_rng(0)
        steps = [
            self._step(
                freed_slots=slots if number else _NONE,
                added_slots=[AddedSlot(int(s), 0, prompt_len, greedy) for s in slots],
                appended_slots=np.repeat(slots, tables),
                appended_blocks=np.arange(num_prompts * tables, dtype=np.int32),
                prefill_slots=slots,
                prefill_lens=np.full(num_prompts, prompt_len, np.int32),
                prefill_samples=np.ones(num_prompts, bool),
                prefill_ids=random.integers(
                    3, self._runner.vocab_size, num_prompts * prompt_len, dtype=np.int32
                ),
                decode_slots=_NONE,
                hydragen_groups=[],
            )
            for number in range(num_steps)
        ]
        result = self._run(steps)
        self._run([self._step(freed_slots=slots, decode_slots=_NONE, hydragen_groups=[])])
        return result

    def _run(self, steps: list[StepInput]) -> SteppingResult:
        outputs: list[StepOutput] = []
        times = []
        in_flight = None
        for step in [*steps, None]:
            launched = None if step is None else self._runner.execute(step)
            if in_flight is not None:
                outputs.append(in_flight.result())
                times.append(time.perf_counter())
            in_flight = launched
        # The first steps fill the pipeline.
        settled = outputs[len(outputs) // 5 :]
        idle = sum(output.device_idle_seconds for output in settled)
        busy = sum(output.device_busy_seconds for output in settled)
        gaps = np.diff(times[len(times) // 5 :])
        return SteppingResult(
            seconds_per_step=float(np.median(gaps)) if len(gaps) else 0.0,
            idle_share=idle / (idle + busy) if busy else 0.0,
            num_recompiles=sum(output.num_recompiles for output in outputs),
        )

    def _step(self, **parts: object) -> StepInput:
        nothing = {
            "freed_slots": _NONE,
            "appended_slots": _NONE,
            "appended_blocks": _NONE,
            "prefill_slots": _NONE,
            "prefill_lens": _NONE,
            "prefill_samples": np.empty(0, bool),
            "prefill_ids": _NONE,
        }
        self._step_id += 1
        return StepInput(step_id=self._step_id, **{**nothing, **parts})  # type: ignore[arg-type]


def fill_caches(runner: TorchRunner) -> None:
    """Random keys and values: zeros would be computed faster than what a cache really holds."""
    caches = getattr(runner._backend, "_caches", {})
    for cache in caches.values():
        for tensor in cache:
            if tensor.dtype.itemsize > 1:
                tensor.normal_()
            else:
                tensor.copy_(torch.randn(tensor.shape, device=tensor.device).to(tensor.dtype))
