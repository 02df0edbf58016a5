"""A backend's `run` as one torch operator, so that a compiled model is one graph.

Shapes: T query tokens, N query heads, K KV heads, H head size.
"""

import itertools

import torch

from tokasaurus.model.attention.backend import AttentionBackend, AttentionBatch, AttentionLayer

_NAMESPACE = "tokasaurus_attention"
_numbers = itertools.count()


class AttentionOperator:
    """An `AttentionBackend` whose `run` a compiler takes as it is.

    The KV cache and the plan stay out of the graph: layers run in the order of their data, so that
    the operator need not declare that it writes to the cache.
    """

    def __init__(self, backend: AttentionBackend, layers: tuple[AttentionLayer, ...]) -> None:
        self.name = backend.name
        self.supports_hydragen = backend.supports_hydragen
        self.supports_cuda_graphs = backend.supports_cuda_graphs
        self._backend = backend
        by_index = {layer.index: layer for layer in layers}

        def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, index: int) -> torch.Tensor:
            return backend.run(q, k, v, by_index[index]).contiguous()

        def shape_of_run(
            q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, index: int
        ) -> torch.Tensor:
            del k, v, index
            return q.new_empty(q.shape)

        name = f"run_{next(_numbers)}"
        # The operators live as long as the library does.
        self._library = torch.library.Library(_NAMESPACE, "FRAGMENT")
        self._library.define(f"{name}(Tensor q, Tensor k, Tensor v, int index) -> Tensor")
        self._library.impl(name, run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{_NAMESPACE}::{name}", shape_of_run, lib=self._library)
        self._run = getattr(getattr(torch.ops, _NAMESPACE), name).default

    def allocate(self, num_blocks: int) -> None:
        self._backend.allocate(num_blocks)

    def kv_bytes_per_block(self) -> int:
        return self._backend.kv_bytes_per_block()

    def plan(self, batch: AttentionBatch) -> None:
        self._backend.plan(batch)

    def run(
        self, q_TNH: torch.Tensor, k_TKH: torch.Tensor, v_TKH: torch.Tensor, layer: AttentionLayer
    ) -> torch.Tensor:
        return self._run(q_TNH, k_TKH, v_TKH, layer.index)
