"""Paged attention by the C++ kernels, in bfloat16 and float32.

The cache's layout is the kernels' own: see kernels/csrc/attention.h. Rows are cut into items of
similar work once per step and kind of layer; every layer of that kind runs the same items.
"""

from dataclasses import dataclass

import numpy as np
import torch

from tokasaurus.errors import ConfigError
from tokasaurus.model.attention.backend import AttentionBatch, AttentionLayer
from tokasaurus.model.kernels.loader import Kernels, load_kernels


@dataclass(slots=True, frozen=True)
class _Kind:
    """What layers must have in common to share a plan."""

    num_kv_heads: int
    group_size: int
    head_dim: int
    window: int

    @classmethod
    def of(cls, layer: AttentionLayer) -> "_Kind":
        group_size = layer.num_heads // layer.num_kv_heads
        return cls(layer.num_kv_heads, group_size, layer.head_dim, layer.sliding_window or 0)


@dataclass(slots=True, frozen=True, kw_only=True)
class StackArguments:
    """What the fused decoder needs of a planned step; lists are over all layers."""

    slot_mapping: torch.Tensor
    block_ids: torch.Tensor
    caches: list[torch.Tensor]
    """K and V of each layer"""
    plans: list[torch.Tensor]
    """items, merges and parts of each layer"""
    partial_rows: list[int]


class CpuBackend:
    """`AttentionBackend` over one K and one V tensor per layer, block by block."""

    name = "cpu"
    supports_hydragen = True
    supports_cuda_graphs = False

    def __init__(
        self,
        layers: tuple[AttentionLayer, ...],
        *,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
        kernels: Kernels | None = None,
    ) -> None:
        """`kernels` default to the machine's best.

        Raises ConfigError where they can't be built or don't take the dtype.
        """
        if device.type != "cpu":
            raise ConfigError(f"the CPU kernels don't run on {device.type}")
        if dtype not in (torch.bfloat16, torch.float32):
            raise ConfigError(f"the CPU kernels take bfloat16 and float32, not {dtype}")
        self.kernels = kernels or load_kernels()
        self.page_size = page_size
        self._layers = layers
        self._dtype = dtype
        self._kinds = {layer.index: _Kind.of(layer) for layer in layers}
        self._sinks = {
            layer.index: layer.sinks_N.to("cpu", torch.float32).contiguous()
            for layer in layers
            if layer.sinks_N is not None
        }
        self._caches: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._plans: dict[_Kind, tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]] = {}
        self._slot_mapping = torch.empty(0, dtype=torch.int64)
        self._block_ids = torch.empty(0, dtype=torch.int32)

    def allocate(self, num_blocks: int) -> None:
        self._caches.clear()
        for layer in self._layers:
            self._caches[layer.index] = (
                self._zeros(num_blocks, self._block_elements(layer)[0]),
                self._zeros(num_blocks, self._block_elements(layer)[1]),
            )

    def kv_bytes_per_block(self) -> int:
        elements = sum(sum(self._block_elements(layer)) for layer in self._layers)
        return elements * self._dtype.itemsize

    def plan(self, batch: AttentionBatch) -> None:
        self._slot_mapping = torch.from_numpy(batch.slot_mapping)
        self._block_ids = _int32(batch.block_ids)
        groups = np.array(
            [(g.first_row, g.num_rows, g.num_blocks) for g in batch.hydragen_groups], np.int32
        )
        arrays = [_int32(x) for x in (batch.query_lens, batch.kv_lens, batch.block_indptr)]
        self._plans = {
            kind: self.kernels.ops.attention_plan(
                *arrays,
                batch.num_prefill_rows,
                torch.from_numpy(groups),
                kind.num_kv_heads,
                kind.group_size,
                kind.head_dim,
                self.page_size,
                self._dtype,
                kind.window,
            )
            for kind in set(self._kinds.values())
        }

    def run(
        self, q_TNH: torch.Tensor, k_TKH: torch.Tensor, v_TKH: torch.Tensor, layer: AttentionLayer
    ) -> torch.Tensor:
        k_cache, v_cache = self._caches[layer.index]
        return self.kernels.ops.attention(
            self._readable(q_TNH),
            self._readable(k_TKH),
            self._readable(v_TKH),
            self._slot_mapping,
            self._block_ids,
            k_cache,
            v_cache,
            self.page_size,
            layer.scale,
            layer.logit_softcap or 0.0,
            layer.sliding_window or 0,
            self._sinks.get(layer.index),
            *self._plans[self._kinds[layer.index]],
        ).to(q_TNH.dtype)

    def _readable(self, x_TNH: torch.Tensor) -> torch.Tensor:
        """As the kernel reads it: in the cache's type, a token's heads one after the other."""
        x_TNH = x_TNH.to(self._dtype)
        _, num_heads, head_dim = x_TNH.shape
        is_dense = x_TNH.stride(2) == 1 and (num_heads == 1 or x_TNH.stride(1) == head_dim)
        return x_TNH if is_dense else x_TNH.contiguous()

    def caches(self) -> list[torch.Tensor]:
        """K and V of each layer."""
        return [cache for layer in self._layers for cache in self._caches[layer.index]]

    def stack_arguments(self) -> StackArguments:
        """The planned step, for kernels that run all layers at once."""
        plans = [self._plans[self._kinds[layer.index]] for layer in self._layers]
        return StackArguments(
            slot_mapping=self._slot_mapping,
            block_ids=self._block_ids,
            caches=self.caches(),
            plans=[tensor for plan in plans for tensor in plan[:3]],
            partial_rows=[plan[3] for plan in plans],
        )

    def _block_elements(self, layer: AttentionLayer) -> tuple[int, int]:
        """Elements of one block's K and of its V."""
        return self.kernels.ops.cache_block_sizes(
            layer.num_kv_heads, layer.head_dim, self.page_size, self._dtype
        )

    def _zeros(self, num_blocks: int, block_elements: int) -> torch.Tensor:
        """Zeroed by the system on first touch: an unused part of the cache takes no memory."""
        return self.kernels.ops.huge_zeros(num_blocks * block_elements, self._dtype)


def _int32(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.int32))
