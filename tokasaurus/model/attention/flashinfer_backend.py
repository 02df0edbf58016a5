"""Paged attention by FlashInfer's kernels, for NVIDIA GPUs (extra `cuda`).

What a step needs is planned on the host (`flashinfer_plan.py`) while the GPU runs the step before.
FlashInfer compiles its kernels when they are first planned for, once per machine.

Shapes: T query tokens, N query heads, K KV heads, H head size.
"""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from tokasaurus.errors import ConfigError
from tokasaurus.model.attention.backend import AttentionBatch, AttentionLayer
from tokasaurus.model.attention.flashinfer_plan import (
    AttentionPlan,
    PagedRows,
    plan_appends,
    plan_attention,
    prefill_variant,
    uses_tensor_cores,
)
from tokasaurus.model.device_copy import pinned, to_device

_WORKSPACE_BYTES = 256 << 20
_LAYOUT = "NHD"
_LARGEST_FP8 = torch.finfo(torch.float8_e4m3fn).max


@dataclass(slots=True, frozen=True)
class _Kind:
    """What layers must have in common to share a plan."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int
    softcap: float

    @classmethod
    def of(cls, layer: AttentionLayer) -> "_Kind":
        return cls(
            layer.num_heads,
            layer.num_kv_heads,
            layer.head_dim,
            layer.scale,
            layer.sliding_window or 0,
            layer.logit_softcap or 0.0,
        )


@dataclass(slots=True)
class _Planned:
    """One kind's part of the step: FlashInfer's wrappers, planned."""

    plan: AttentionPlan
    prefill: Any
    decode: Any
    prefix: Any
    prefix_queries: slice | torch.Tensor | None


@dataclass(slots=True, frozen=True)
class _DecodeBuffers:
    """Where a captured graph of one size reads its block tables."""

    kv_indptr: torch.Tensor
    kv_indices: torch.Tensor
    kv_last_page_len: torch.Tensor
    batch_indices: torch.Tensor
    positions: torch.Tensor


class FlashInferBackend:
    """`GraphBackend` over a [num_blocks + 1, page_size, K, H] pair of tensors per layer.

    The block after the last one takes what rows that only fill up a graph write.
    """

    name = "flashinfer"
    supports_hydragen = True
    supports_cuda_graphs = True

    def __init__(
        self,
        layers: tuple[AttentionLayer, ...],
        *,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        """Raises ConfigError where FlashInfer is missing or can't compute these layers."""
        if find_spec("flashinfer") is None:
            raise ConfigError("FlashInfer is not installed: pip install 'tokasaurus[cuda]'")
        _check_layers(layers, dtype)
        self._flashinfer = import_module("flashinfer")
        self._layers = layers
        self._page_size = page_size
        self._dtype = dtype
        self._kv_dtype = kv_dtype or dtype
        self._device = device
        self._kinds = {layer.index: _Kind.of(layer) for layer in layers}
        self._workspace = torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        self._wrappers: dict[tuple[_Kind, str, int], Any] = {}
        self._buffers: dict[int, _DecodeBuffers] = {}
        self._graph_indices = torch.empty(0, dtype=torch.int32, device=device)
        self._caches: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._planned: dict[_Kind, _Planned] = {}
        self._append: tuple[torch.Tensor, ...] = ()
        self._copied: torch.cuda.Event | None = None
        self.scratch_block = 0

    def allocate(self, num_blocks: int) -> None:
        self._caches.clear()
        self.scratch_block = num_blocks
        for layer in self._layers:
            shape = (num_blocks + 1, self._page_size, layer.num_kv_heads, layer.head_dim)
            self._caches[layer.index] = (self._zeros(shape), self._zeros(shape))

    def kv_bytes_per_block(self) -> int:
        elements = sum(layer.num_kv_heads * layer.head_dim for layer in self._layers)
        return 2 * elements * self._page_size * self._kv_dtype.itemsize

    def plan(self, batch: AttentionBatch) -> None:
        self._wait_for_copies()
        appends = plan_appends(batch, self._page_size)
        rows = appends.rows
        arrays = [appends.batch_indices, appends.positions]
        arrays += [rows.kv_indices, rows.kv_indptr, rows.kv_last_page_len]
        self._append = tuple(to_device(array, self._device) for array in arrays)
        plans: dict[int, AttentionPlan] = {}
        self._planned = {}
        for kind in set(self._kinds.values()):
            plan = plans.get(kind.window) or plan_attention(batch, self._page_size, kind.window)
            plans[kind.window] = plan
            self._planned[kind] = _Planned(
                plan=plan,
                prefill=self._plan_prefill(kind, "prefill", plan.prefill, causal=True),
                decode=self._plan_decode(kind, plan.decode),
                prefix=self._plan_prefill(kind, "prefix", plan.prefix, causal=False),
                prefix_queries=self._on_device(plan.prefix_queries),
            )
        self._mark_copies()

    def reserve_graphs(self, sizes: list[int], max_blocks: int) -> None:
        """Allocate what graphs of these sizes read, for steps with at most so many blocks."""
        self._graph_indices = torch.zeros(max_blocks, dtype=torch.int32, device=self._device)
        for size in sizes:
            self._buffers[size] = _DecodeBuffers(
                kv_indptr=self._int32(size + 1),
                kv_indices=self._graph_indices,
                kv_last_page_len=self._int32(size),
                batch_indices=self._int32(size),
                positions=self._int32(size),
            )

    def plan_for_graph(self, batch: AttentionBatch) -> None:
        """Like `plan`, into the buffers of the graph of this size; decodes only, no groups."""
        self._wait_for_copies()
        buffers = self._buffers[batch.num_rows]
        appends = plan_appends(batch, self._page_size)
        buffers.batch_indices.copy_(pinned(appends.batch_indices, self._device), non_blocking=True)
        buffers.positions.copy_(pinned(appends.positions, self._device), non_blocking=True)
        self._append = (
            buffers.batch_indices,
            buffers.positions,
            buffers.kv_indices,
            buffers.kv_indptr,
            buffers.kv_last_page_len,
        )
        self._planned = {}
        for kind in set(self._kinds.values()):
            plan = plan_attention(batch, self._page_size, kind.window)
            assert plan.decode is not None, "a graph of no decodes"
            wrapper = self._graph_wrapper(kind, batch.num_rows, buffers)
            self._plan_decode_with(wrapper, kind, plan.decode)
            self._planned[kind] = _Planned(plan, None, wrapper, None, None)
        self._mark_copies()

    def run(
        self, q_TNH: torch.Tensor, k_TKH: torch.Tensor, v_TKH: torch.Tensor, layer: AttentionLayer
    ) -> torch.Tensor:
        cache = self._caches[layer.index]
        batch_indices, positions, kv_indices, kv_indptr, last_page_len = self._append
        self._flashinfer.append_paged_kv_cache(
            self._storable(k_TKH),
            self._storable(v_TKH),
            batch_indices,
            positions,
            cache,
            kv_indices,
            kv_indptr,
            last_page_len,
            _LAYOUT,
        )
        planned = self._planned[self._kinds[layer.index]]
        q_TNH = q_TNH.contiguous()
        out_TNH = torch.empty_like(q_TNH)
        split = planned.plan.num_prefill_tokens
        if planned.prefill is not None:
            planned.prefill.run(q_TNH[:split], cache, out=out_TNH[:split])
        if planned.prefix is not None:
            self._run_with_prefix(planned, q_TNH[split:], cache, out_TNH[split:])
        elif planned.decode is not None:
            planned.decode.run(q_TNH[split:], cache, out=out_TNH[split:])
        return out_TNH

    def _storable(self, x_TKH: torch.Tensor) -> torch.Tensor:
        """In the cache's format; what float8 can't hold becomes its largest number, not NaN."""
        if self._kv_dtype.itemsize == 1:
            x_TKH = x_TKH.clamp(-_LARGEST_FP8, _LARGEST_FP8)
        return x_TKH.to(self._kv_dtype)

    def _run_with_prefix(
        self,
        planned: _Planned,
        q_DNH: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        out_DNH: torch.Tensor,
    ) -> None:
        """Attention to each row's own blocks, merged with that to its group's prefix."""
        queries = planned.prefix_queries
        _, lse_DN = planned.decode.run(q_DNH, cache, out=out_DNH, return_lse=True)
        prefix_out, prefix_lse = planned.prefix.run(q_DNH[queries], cache, return_lse=True)
        merged, lse = out_DNH[queries], lse_DN[queries]
        self._flashinfer.merge_state_in_place(merged, lse, prefix_out, prefix_lse)
        if not isinstance(queries, slice):
            out_DNH[queries] = merged

    def _plan_prefill(
        self, kind: _Kind, purpose: str, rows: PagedRows | None, *, causal: bool
    ) -> Any:
        if rows is None:
            return None
        wrapper = self._wrappers.get((kind, purpose, 0))
        if wrapper is None:
            wrapper = self._flashinfer.BatchPrefillWithPagedKVCacheWrapper(
                self._workspace, _LAYOUT, backend=self._variant(kind)
            )
            self._wrappers[kind, purpose, 0] = wrapper
        wrapper.plan(
            self._pinned(rows.qo_indptr),
            self._pinned(rows.kv_indptr),
            to_device(rows.kv_indices, self._device),
            self._pinned(rows.kv_last_page_len),
            kind.num_heads,
            kind.num_kv_heads,
            kind.head_dim,
            self._page_size,
            causal=causal,
            # A prefix that is computed once lies inside the window of all its queries.
            window_left=kind.window - 1 if causal else -1,
            **self._common(kind),
        )
        return wrapper

    def _plan_decode(self, kind: _Kind, rows: PagedRows | None) -> Any:
        if rows is None:
            return None
        tensor_cores = uses_tensor_cores(kind.num_heads, kind.num_kv_heads, rows.num_rows)
        wrapper = self._wrappers.get((kind, "decode", int(tensor_cores)))
        if wrapper is None:
            wrapper = self._flashinfer.BatchDecodeWithPagedKVCacheWrapper(
                self._workspace, _LAYOUT, use_tensor_cores=tensor_cores
            )
            self._wrappers[kind, "decode", int(tensor_cores)] = wrapper
        self._plan_decode_with(wrapper, kind, rows)
        return wrapper

    def _graph_wrapper(self, kind: _Kind, size: int, buffers: _DecodeBuffers) -> Any:
        wrapper = self._wrappers.get((kind, "graph", size))
        if wrapper is None:
            wrapper = self._flashinfer.BatchDecodeWithPagedKVCacheWrapper(
                self._workspace,
                _LAYOUT,
                use_cuda_graph=True,
                use_tensor_cores=uses_tensor_cores(kind.num_heads, kind.num_kv_heads, size),
                paged_kv_indptr_buffer=buffers.kv_indptr,
                paged_kv_indices_buffer=buffers.kv_indices,
                paged_kv_last_page_len_buffer=buffers.kv_last_page_len,
            )
            self._wrappers[kind, "graph", size] = wrapper
        return wrapper

    def _plan_decode_with(self, wrapper: Any, kind: _Kind, rows: PagedRows) -> None:
        wrapper.plan(
            self._pinned(rows.kv_indptr),
            # On the device already: FlashInfer copies a host array and waits for it.
            to_device(rows.kv_indices, self._device),
            self._pinned(rows.kv_last_page_len),
            kind.num_heads,
            kind.num_kv_heads,
            kind.head_dim,
            self._page_size,
            window_left=kind.window - 1,
            **self._common(kind),
        )

    def _common(self, kind: _Kind) -> dict[str, Any]:
        return {
            "logits_soft_cap": kind.softcap,
            "sm_scale": kind.scale,
            "q_data_type": self._dtype,
            "kv_data_type": self._kv_dtype,
        }

    def _variant(self, kind: _Kind) -> str:
        if self._device.type != "cuda":
            return "fa2"
        capability = torch.cuda.get_device_capability(self._device)
        return prefill_variant(capability, kind.head_dim, self._dtype, self._kv_dtype)

    def _wait_for_copies(self) -> None:
        """FlashInfer's plans go through one pinned buffer per wrapper: the last one must have left
        it. It has when the step before the last is done, so this costs no time in a steady run."""
        if self._copied is not None:
            self._copied.synchronize()

    def _mark_copies(self) -> None:
        if self._device.type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record()

    def _on_device(self, queries: slice | np.ndarray | None) -> slice | torch.Tensor | None:
        if queries is None or isinstance(queries, slice):
            return queries
        return to_device(queries, self._device)

    def _pinned(self, array: np.ndarray) -> torch.Tensor:
        return pinned(array, self._device)

    def _int32(self, size: int) -> torch.Tensor:
        return torch.zeros(size, dtype=torch.int32, device=self._device)

    def _zeros(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.zeros(shape, dtype=self._kv_dtype, device=self._device)


def _check_layers(layers: tuple[AttentionLayer, ...], dtype: torch.dtype) -> None:
    if dtype not in (torch.bfloat16, torch.float16):
        raise ConfigError(f"FlashInfer computes in bfloat16 and float16, not {dtype}")
    for layer in layers:
        if layer.head_dim not in (64, 128, 256):
            raise ConfigError(f"FlashInfer has no kernels for heads of {layer.head_dim}")
        if layer.sinks_N is not None:
            raise ConfigError("FlashInfer's paged kernels used here have no attention sinks")
