"""Greedy decoding of many prompts through the real runner, as a manager would steer it.

Steps mix chunks of prompts with decodes; some sequences share the blocks of a common prefix, and
some are preempted and recomputed.
"""

import numpy as np
import torch

from tests.models import CPU, started_runner
from tests.unit.worker.step_driver import DrivenSequence, StepDriver
from tokasaurus.ipc.messages.to_manager import TokenSampling
from tokasaurus.model.attention.backend import AttentionBatch, CausalModel
from tokasaurus.model.attention.torch_backend import TorchBackend
from tokasaurus.model.quantization.scheme import NO_QUANTIZATION, QuantizationScheme
from tokasaurus.worker.torch_runner import RunnerSettings

PAGE_SIZE = 8
_MAX_TOKENS = 100
_GREEDY = TokenSampling(temperature=0.0, num_top_logprobs=0)
_PREEMPT_EVERY = 7
"""Every so many sequences, one is preempted when half of its tokens are out."""


def prompt_logits(model: CausalModel, ids_T: torch.Tensor) -> torch.Tensor:
    """Logits TV of one whole prompt in one step."""
    num_tokens = len(ids_T)
    num_blocks = -(-num_tokens // PAGE_SIZE)
    backend = TorchBackend(
        model.attention_layers, page_size=PAGE_SIZE, dtype=model.dtype, device=CPU
    )
    backend.allocate(num_blocks)
    backend.plan(
        AttentionBatch(
            num_prefill_rows=1,
            query_lens=np.array([num_tokens], np.int32),
            kv_lens=np.array([num_tokens], np.int32),
            block_indptr=np.array([0, num_blocks], np.int32),
            block_ids=np.arange(num_blocks, dtype=np.int32),
            slot_mapping=np.arange(num_tokens),
        )
    )
    with torch.inference_mode():
        return model.logits(model.forward(ids_T, torch.arange(num_tokens), backend))


def generate(
    model: CausalModel,
    prompts: list[list[int]],
    max_new_tokens: int,
    *,
    device: torch.device = CPU,
    attention_backend: str = "torch",
    quantization: QuantizationScheme = NO_QUANTIZATION,
) -> tuple[list[list[int]], list[list[float]]]:
    """Greedy tokens and log-probabilities of every prompt, all running at once."""
    tokens_twice = sum(2 * (len(p) + max_new_tokens + PAGE_SIZE) for p in prompts)
    settings = RunnerSettings(
        device=device,
        attention_backend=attention_backend,
        quantization=quantization,
        page_size=PAGE_SIZE,
        kv_cache_num_tokens=max(model.max_model_len, tokens_twice),
        max_tokens_per_forward=_MAX_TOKENS,
        max_seqs_per_forward=len(prompts),
    )
    runner = started_runner(settings, lambda: model)
    driver = StepDriver(runner, PAGE_SIZE)
    batch = _Batch(driver, prompts, max_new_tokens)
    while batch.step():
        pass
    return [s.output for s in batch.sequences], [s.logprobs for s in batch.sequences]


class _Batch:
    """Seats sequences in order and decides what each step runs."""

    def __init__(self, driver: StepDriver, prompts: list[list[int]], max_new_tokens: int) -> None:
        self._driver = driver
        self._max_new_tokens = max_new_tokens
        self._waiting = list(enumerate(prompts))[::-1]
        self._preempted: set[int] = set()
        self.sequences: list[DrivenSequence] = []

    def step(self) -> bool:
        """Run one step; False when everything is done."""
        running = [s for s in self.sequences if len(s.output) < self._max_new_tokens]
        if not running and not self._waiting:
            return False
        for sequence in running:
            self._maybe_preempt(sequence)
        decodes = [s for s in running if s.output and s.num_computed == len(s.tokens) - 1]
        budget = _MAX_TOKENS - len(decodes)
        chunks = []
        for sequence in running:
            missing = len(sequence.tokens) - sequence.num_computed
            if sequence not in decodes and budget > 0:
                chunks.append((sequence, min(budget, missing)))
                budget -= chunks[-1][1]
        while self._waiting and budget > 0:
            sequence = self._seat_next()
            chunks.append((sequence, min(budget, len(sequence.tokens) - sequence.num_computed)))
            budget -= chunks[-1][1]
        self._driver.run(prefill=chunks, decode=decodes)
        return True

    def _seat_next(self) -> DrivenSequence:
        slot, prompt = self._waiting.pop()
        sequence = self._driver.add(
            slot, prompt, _GREEDY, shared_blocks=self._longest_shared_prefix(prompt)
        )
        self.sequences.append(sequence)
        return sequence

    def _longest_shared_prefix(self, prompt: list[int]) -> list[int]:
        """Blocks whose tokens begin `prompt`; a sequence that was preempted doesn't lend any."""
        best: list[int] = []
        for other in self.sequences:
            if other.slot % _PREEMPT_EVERY == 0:
                continue
            common = 0
            usable = min(other.num_computed, len(prompt) - 1)
            while common < usable and other.tokens[common] == prompt[common]:
                common += 1
            if common // PAGE_SIZE > len(best):
                best = other.blocks[: common // PAGE_SIZE]
        return best

    def _maybe_preempt(self, sequence: DrivenSequence) -> None:
        """Free the sequence's blocks and slot; it starts over with its tokens so far."""
        is_due = len(sequence.output) == self._max_new_tokens // 2
        slot = sequence.slot
        if slot % _PREEMPT_EVERY or slot in self._preempted or not is_due:
            return
        self._preempted.add(slot)
        self._driver.free(sequence, keep_blocks=True)
        again = self._driver.add(
            slot, sequence.tokens, _GREEDY, num_prompt_tokens=sequence.num_prompt_tokens
        )
        sequence.blocks, sequence.num_computed = again.blocks, again.num_computed
