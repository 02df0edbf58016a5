"""Vectors of whole prompts from their final hidden states, chunk by chunk, in bounded memory.

Shapes: T tokens of the step, D hidden size, E prompts that end in the step.
"""

from dataclasses import dataclass

import numpy as np
import torch

from tokasaurus.ipc.messages.to_worker import AddedSlot, StepInput


@dataclass(slots=True, kw_only=True)
class PooledPrompts:
    """Vectors that are finished, while still on the device."""

    slots: list[int]
    vectors: torch.Tensor
    """float32 ED"""


@dataclass(slots=True)
class _Pool:
    takes_mean: bool
    num_tokens: int
    """Of the prompt, all of which have to be computed if `takes_mean`."""
    num_left: int
    """Of these, tokens that no chunk has brought."""
    sum_D: torch.Tensor | None = None
    """float32: of the hidden states so far."""


class PromptPooler:
    """Keeps a sum for each slot that asks for a mean; where nobody asks, a step costs a look."""

    def __init__(self) -> None:
        self._pools: dict[int, _Pool] = {}

    def apply(self, step: StepInput) -> None:
        """Free and add, in this order."""
        if self._pools:
            for slot in step.freed_slots.tolist():
                self._pools.pop(slot, None)
        for added in step.added_slots:
            if added.pooling:
                self._pools[added.slot] = _pool_of(added)
            elif self._pools:
                self._pools.pop(added.slot, None)

    def pool(self, step: StepInput, hidden_TD: torch.Tensor) -> PooledPrompts | None:
        """Take in the step's chunks; the vectors of the prompts that end with them, if any do."""
        if not self._pools:
            return None
        slots: list[int] = []
        vectors: list[torch.Tensor] = []
        ends = np.cumsum(step.prefill_lens).tolist()
        for slot, length, end in zip(
            step.prefill_slots.tolist(), step.prefill_lens.tolist(), ends, strict=True
        ):
            pool = self._pools.get(slot)
            if pool is None:
                continue
            pool.num_left -= length
            if pool.takes_mean:
                # In float32 whatever the model computes in: thousands of terms lose bits otherwise.
                chunk_D = hidden_TD[end - length : end].sum(0, dtype=torch.float32)
                pool.sum_D = chunk_D if pool.sum_D is None else pool.sum_D + chunk_D
            if pool.num_left > 0:
                continue
            del self._pools[slot]
            slots.append(slot)
            last_D = hidden_TD[end - 1].float()
            vectors.append(last_D if pool.sum_D is None else pool.sum_D / pool.num_tokens)
        if not slots:
            return None
        return PooledPrompts(slots=slots, vectors=torch.stack(vectors))


def _pool_of(added: AddedSlot) -> _Pool:
    takes_mean = added.pooling == "mean"
    assert not (takes_mean and added.num_cached_tokens), "a mean over tokens nobody computes"
    num_tokens = added.num_prompt_tokens
    return _Pool(takes_mean, num_tokens, num_tokens - added.num_cached_tokens)
