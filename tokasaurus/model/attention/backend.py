"""The interface between models and paged attention.

Shapes: R rows (P prefill chunks, then D decodes), T query tokens of all rows, N query heads, K KV
heads, H head size, E block-table entries of all rows.
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from tokasaurus.ipc.messages.to_worker import HydragenGroup


@dataclass(slots=True, kw_only=True)
class AttentionLayer:
    """What one layer's attention needs to know; models declare one per layer."""

    index: int
    """Position in the KV cache."""
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    """Factor on q·k before the softmax."""
    sliding_window: int | None = None
    """A query at position p sees keys at positions > p - sliding_window."""
    logit_softcap: float | None = None
    """Scores become softcap * tanh(scores / softcap)."""
    sinks_N: torch.Tensor | None = None
    """One extra logit per head in the softmax's denominator (gpt-oss)."""


@dataclass(slots=True, kw_only=True)
class AttentionBatch:
    """One step's rows, on the host. Rows 0..P-1 are prefill chunks, the rest are decodes."""

    num_prefill_rows: int
    query_lens: np.ndarray
    """int32[R]: tokens of this step per row; 1 for decodes."""
    kv_lens: np.ndarray
    """int32[R]: tokens visible to the row's last query, this step's own included."""
    block_indptr: np.ndarray
    """int32[R+1]: row r's blocks are block_ids[block_indptr[r]:block_indptr[r+1]]."""
    block_ids: np.ndarray
    """int32[E]: exactly ceil(kv_len / page_size) blocks per row."""
    slot_mapping: np.ndarray
    """int64[T]: where each token's K and V go: block id * page_size + offset."""
    hydragen_groups: list[HydragenGroup] = field(default_factory=list)
    """`first_row` counts from the first decode row."""

    @property
    def num_rows(self) -> int:
        return len(self.query_lens)

    @property
    def num_tokens(self) -> int:
        return len(self.slot_mapping)


class AttentionBackend(Protocol):
    """Owns the KV cache and computes attention over it.

    Per step: one `plan`, then one `run` per layer in order. `run` first writes the step's K and V
    of that layer into the cache for all rows, then attends, so that rows may read blocks that other
    rows of the same step fill.
    """

    name: str
    supports_hydragen: bool
    """`AttentionBatch.hydragen_groups` are computed once, not ignored."""
    supports_cuda_graphs: bool
    """It is a `GraphBackend`."""

    def allocate(self, num_blocks: int) -> None:
        """Allocate the KV cache for `num_blocks` blocks, replacing an earlier one."""

    def kv_bytes_per_block(self) -> int:
        """Bytes of one block over all layers, K and V."""

    def plan(self, batch: AttentionBatch) -> None:
        """Prepare everything that all layers of the step share."""

    def run(
        self, q_TNH: torch.Tensor, k_TKH: torch.Tensor, v_TKH: torch.Tensor, layer: AttentionLayer
    ) -> torch.Tensor:
        """Write k and v, attend causally, return the output as TNH in q's dtype."""


class GraphBackend(AttentionBackend, Protocol):
    """One whose plans for decodes can go to fixed places, where a captured graph reads them."""

    scratch_block: int
    """No sequence's: rows that only fill up a graph write their K and V there."""

    def reserve_graphs(self, sizes: list[int], max_blocks: int) -> None:
        """Allocate what graphs of these sizes read, for steps with at most so many blocks."""

    def plan_for_graph(self, batch: AttentionBatch) -> None:
        """Like `plan`, for the graph with this number of rows: decodes only, no groups."""


class CausalModel(Protocol):
    """A decoder on one device: what the runner calls."""

    attention_layers: tuple[AttentionLayer, ...]
    vocab_size: int
    max_model_len: int
    dtype: torch.dtype
    path: str
    """Either "native <family>" or "transformers <class>", for the start-up line."""

    def forward(
        self, input_ids_T: torch.Tensor, positions_T: torch.Tensor, attention: AttentionBackend
    ) -> torch.Tensor:
        """Final hidden states TD (after the last norm). `attention` is planned already."""

    def logits(self, hidden_SD: torch.Tensor) -> torch.Tensor:
        """float32 logits SV of the given rows."""
