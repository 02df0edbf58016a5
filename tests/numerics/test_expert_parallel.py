"""Experts divided among ranks: hidden states equal those of one rank that has them all."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.checkpoints import VOCAB_SIZE
from tests.models import CPU, load
from tests.numerics.batch_driver import PAGE_SIZE
from tests.rank_threads import on_ranks
from tests.reference import mixed_prompts
from tokasaurus.model.attention.backend import AttentionBackend, AttentionBatch, CausalModel
from tokasaurus.model.attention.registry import create_backend
from tokasaurus.model.kernels.install import with_cpu_kernels
from tokasaurus.model.parallel import ParallelContext, RankGroup

Checkpoint = Callable[..., Path]


def hidden_states(
    folder: Path, ids_T: torch.Tensor, attention_backend: str, tp: RankGroup
) -> torch.Tensor:
    """Of one prompt in one step, TD."""
    model = load(folder, parallel=ParallelContext(tp=tp))
    backend = create_backend(
        attention_backend,
        model.attention_layers,
        page_size=PAGE_SIZE,
        dtype=model.dtype,
        device=CPU,
    )
    return _forward(with_cpu_kernels(model, backend), backend, ids_T)


@torch.inference_mode()
def _forward(model: CausalModel, backend: AttentionBackend, ids_T: torch.Tensor) -> torch.Tensor:
    num_tokens = len(ids_T)
    num_blocks = -(-num_tokens // PAGE_SIZE)
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
    return model.forward(ids_T, torch.arange(num_tokens), backend)


@pytest.mark.parametrize("attention_backend", ["torch", "cpu"])
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen2_moe_mixed", "qwen3_moe"])
def test_two_ranks_compute_what_one_does(
    family: str, attention_backend: str, checkpoint: Checkpoint
) -> None:
    folder = checkpoint(family)
    ids_T = torch.tensor(mixed_prompts(12, VOCAB_SIZE)[-1])
    alone_TD = hidden_states(folder, ids_T, attention_backend, RankGroup())
    ranks = on_ranks(2, lambda tp: hidden_states(folder, ids_T, attention_backend, tp))
    assert torch.equal(*ranks), "ranks that see different states draw different tokens"
    torch.testing.assert_close(ranks[0], alone_TD, atol=1e-4, rtol=1e-4)
