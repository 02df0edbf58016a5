"""A small decoder with any features, and its logits over two steps through any backend."""

from typing import Any

import numpy as np
import torch

from tests.kernel_flavours import kernels_of
from tests.models import CPU, decoder_spec, moe_spec
from tokasaurus.model.attention.backend import AttentionBackend, AttentionBatch, CausalModel
from tokasaurus.model.attention.cpu_backend import CpuBackend
from tokasaurus.model.attention.torch_backend import TorchBackend
from tokasaurus.model.config import TensorSpec
from tokasaurus.model.decoder import Decoder

PAGE_SIZE = 8
SPEC = decoder_spec()
FUSED: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_embeddings": True},
    "biases": {"qkv_bias": True, "attention_out_bias": True, "mlp_bias": True},
    "head norms": {"qk_norm": True},
    "window": {"sliding_windows": (5, None)},
    "partial rotary": {"rotary_dim": 8},
}
EXPERTS = moe_spec(5, 2, shared_intermediate_size=56, layers=frozenset({1}))
PACKED: dict[str, dict[str, Any]] = {
    "experts": {"moe": EXPERTS},
    "gelu": {"activation": "gelu"},
    "parallel": {"block": "parallel_shared_norm", "norm": "layer", "mlp": "plain"},
}


def make_decoder(dtype: torch.dtype, max_model_len: int = 64, **features: Any) -> Decoder:
    tensors = TensorSpec(dtype=dtype, device=CPU)
    decoder = Decoder(decoder_spec(**features), "test", max_model_len, tensors).eval()
    rng = torch.Generator().manual_seed(0)
    for name, parameter in decoder.named_parameters():
        values = torch.randn(parameter.shape, generator=rng) * 0.2
        parameter.data.copy_(values + (1 if "norm.weight" in name else 0))
    return decoder


def logits_of_two_steps(model: CausalModel, backend: AttentionBackend) -> torch.Tensor:
    """A prefill of 13 and 1 tokens, then a decode of both rows."""
    backend.allocate(6)
    results = []
    for query_lens, kv_lens in (([13, 1], [13, 1]), ([1, 1], [14, 2])):
        positions = np.concatenate(
            [np.arange(k - q, k) for q, k in zip(query_lens, kv_lens, strict=True)]
        )
        tables = [np.array([4, 1]), np.array([3])]
        rows = np.repeat([0, 1], query_lens)
        blocks = [int(tables[r][p // PAGE_SIZE]) for r, p in zip(rows, positions, strict=True)]
        backend.plan(
            AttentionBatch(
                num_prefill_rows=2 if query_lens[0] > 1 else 0,
                query_lens=np.array(query_lens, np.int32),
                kv_lens=np.array(kv_lens, np.int32),
                block_indptr=np.array([0, 2, 3], np.int32),
                block_ids=np.array([4, 1, 3], np.int32),
                slot_mapping=np.array(blocks, np.int64) * PAGE_SIZE + positions % PAGE_SIZE,
            )
        )
        ids = torch.from_numpy(positions * 7 % SPEC.vocab_size)
        hidden = model.forward(ids, torch.from_numpy(positions), backend)
        results.append(model.logits(hidden))
    return torch.cat(results)


def backends(
    model: CausalModel, flavour: str, dtype: torch.dtype
) -> tuple[TorchBackend, CpuBackend]:
    layers = model.attention_layers
    arguments: dict[str, Any] = {"page_size": PAGE_SIZE, "dtype": dtype, "device": CPU}
    return TorchBackend(layers, **arguments), CpuBackend(
        layers, kernels=kernels_of(flavour), **arguments
    )
