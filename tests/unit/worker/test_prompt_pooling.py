"""Vectors from hidden states that come in chunks, of several slots at a time."""

import numpy as np
import torch

from tokasaurus.ipc.messages.to_manager import Pooling, TokenSampling
from tokasaurus.ipc.messages.to_worker import AddedSlot, StepInput
from tokasaurus.worker.prompt_pooling import PromptPooler

NONE = np.empty(0, np.int32)


def added(slot: int, num_tokens: int, pooling: Pooling, num_cached: int = 0) -> AddedSlot:
    return AddedSlot(slot, num_cached, num_tokens, TokenSampling(), pooling=pooling)


def step(
    chunks: dict[int, int], new: tuple[AddedSlot, ...] = (), freed: tuple[int, ...] = ()
) -> StepInput:
    """Chunk lengths by slot."""
    return StepInput(
        step_id=0,
        freed_slots=np.array(freed, np.int32),
        added_slots=list(new),
        appended_slots=NONE,
        appended_blocks=NONE,
        prefill_slots=np.array(list(chunks), np.int32),
        prefill_lens=np.array(list(chunks.values()), np.int32),
        prefill_samples=np.zeros(len(chunks), bool),
        prefill_ids=np.zeros(sum(chunks.values()), np.int32),
        decode_slots=None,
    )


def run(pooler: PromptPooler, one: StepInput, hidden_TD: torch.Tensor) -> dict[int, list[float]]:
    pooler.apply(one)
    pooled = pooler.pool(one, hidden_TD)
    if pooled is None:
        return {}
    return dict(zip(pooled.slots, pooled.vectors.tolist(), strict=True))


def numbered(num_tokens: int, first: int = 0) -> torch.Tensor:
    """Hidden states of size 2 that say which token they are; the step's decodes follow."""
    rows = torch.arange(first, first + num_tokens, dtype=torch.float32)
    return torch.stack([rows, -rows], dim=1)


def test_chunks_of_several_prompts() -> None:
    pooler = PromptPooler()
    new = (added(3, 5, "mean"), added(1, 4, "last"), added(2, 6, ""), added(7, 2, "mean"))
    assert run(pooler, step({3: 3, 1: 1, 2: 6, 7: 2}, new), numbered(14)) == {7: [10.5, -10.5]}
    later = run(pooler, step({1: 3, 3: 2}), numbered(6, first=20))
    assert later == {1: [22.0, -22.0], 3: [(0 + 1 + 2 + 23 + 24) / 5, -10.0]}
    assert run(pooler, step({2: 1}), numbered(1)) == {}


def test_cached_tokens_count_for_the_last_state() -> None:
    pooler = PromptPooler()
    assert run(pooler, step({0: 2}, (added(0, 10, "last", 8),)), numbered(2)) == {0: [1.0, -1.0]}


def test_a_slot_that_is_freed_starts_anew() -> None:
    pooler = PromptPooler()
    run(pooler, step({0: 3}, (added(0, 4, "mean"),)), numbered(3))
    again = step({0: 2}, (added(0, 2, "mean"),), freed=(0,))
    assert run(pooler, again, numbered(2)) == {0: [0.5, -0.5]}
    run(pooler, step({0: 1}, (added(0, 4, "mean"),)), numbered(1))
    assert run(pooler, step({0: 4}, (added(0, 4, ""),), freed=(0,)), numbered(4)) == {}


def test_sums_are_of_32_bits() -> None:
    pooler = PromptPooler()
    hidden_TD = torch.full((1000, 2), 1.0078125, dtype=torch.bfloat16)
    pooler.apply(step({}, (added(0, 5000, "mean"),)))
    for _ in range(4):
        assert pooler.pool(step({0: 1000}), hidden_TD) is None
    pooled = pooler.pool(step({0: 1000}), hidden_TD)
    assert pooled is not None
    assert pooled.vectors.dtype == torch.float32
    np.testing.assert_allclose(pooled.vectors.numpy(), 1.0078125, rtol=1e-6)


def test_the_next_step_may_overwrite_hidden_states() -> None:
    pooler = PromptPooler()
    hidden_TD = numbered(3)
    one = step({0: 3}, (added(0, 3, "last"),))
    pooler.apply(one)
    pooled = pooler.pool(one, hidden_TD)
    hidden_TD.zero_()
    assert pooled is not None
    assert pooled.vectors.tolist() == [[2.0, -2.0]]
