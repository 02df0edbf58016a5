"""A step's rows in the arrays that FlashInfer plans from, with vectorised numpy.

Shapes: R rows (P prefill chunks, then D decodes), T query tokens, E block-table entries, G groups.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from tokasaurus.ipc.messages.to_worker import HydragenGroup
from tokasaurus.model.attention.backend import AttentionBatch

_MIN_TENSOR_CORE_GROUP = 4
_MAX_TENSOR_CORE_ROWS = 256
"""FlashInfer's planning for tensor cores walks over the rows in Python: milliseconds for 1,024."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedRows:
    """Rows of queries, each with the blocks that it attends to; all arrays are int32."""

    qo_indptr: np.ndarray
    kv_indptr: np.ndarray
    kv_indices: np.ndarray
    kv_last_page_len: np.ndarray

    @property
    def num_rows(self) -> int:
        return len(self.kv_last_page_len)

    @property
    def num_queries(self) -> int:
        return int(self.qo_indptr[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Appends:
    """Where each token's K and V go."""

    rows: PagedRows
    """All rows, with all their blocks."""
    batch_indices: np.ndarray
    """int32[T]: each token's row"""
    positions: np.ndarray
    """int32[T]: its position in the sequence"""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPlan:
    """What layers with the same window do. A step may lack prefills, or decodes."""

    num_prefill_tokens: int
    prefill: PagedRows | None
    decode: PagedRows | None
    """Without the blocks that `prefix` covers."""
    prefix: PagedRows | None
    """Hydragen: a row per group, whose queries see the group's common blocks, all of them."""
    prefix_queries: slice | np.ndarray | None
    """Which decode rows `prefix` has, counted from the first: a range, or int64 indices."""


def plan_appends(batch: AttentionBatch, page_size: int) -> Appends:
    """For all layers."""
    lens = batch.query_lens
    ends = np.cumsum(lens)
    offsets = np.arange(ends[-1]) - np.repeat(ends - lens, lens)
    return Appends(
        rows=PagedRows(
            qo_indptr=_indptr(lens),
            kv_indptr=batch.block_indptr,
            kv_indices=batch.block_ids,
            kv_last_page_len=_last_page_lens(batch.kv_lens, page_size),
        ),
        batch_indices=np.repeat(np.arange(len(lens), dtype=np.int32), lens),
        positions=(np.repeat(batch.kv_lens - lens, lens) + offsets).astype(np.int32),
    )


def plan_attention(batch: AttentionBatch, page_size: int, window: int) -> AttentionPlan:
    """`window` 0 is none. A group whose prefix leaves a window is computed row by row."""
    num_prefills, num_rows = batch.num_prefill_rows, batch.num_rows
    groups = [
        group
        for group in batch.hydragen_groups
        if not window or _longest(batch, group.first_row, group.num_rows) <= window
    ]
    skipped = np.zeros(num_rows, np.int64)
    for group in groups:
        first = num_prefills + group.first_row
        skipped[first : first + group.num_rows] = group.num_blocks
    return AttentionPlan(
        num_prefill_tokens=int(batch.query_lens[:num_prefills].sum()),
        prefill=_rows(batch, page_size, slice(0, num_prefills), skipped),
        decode=_rows(batch, page_size, slice(num_prefills, num_rows), skipped),
        prefix=_prefixes(batch, page_size, groups) if groups else None,
        prefix_queries=_prefix_queries(groups) if groups else None,
    )


def prefill_variant(
    capability: tuple[int, int], head_dim: int, dtype: torch.dtype, kv_dtype: torch.dtype
) -> Literal["fa2", "fa3"]:
    """FlashAttention 3 is for Hopper, for K and V in the queries' format, and some head sizes."""
    is_hopper = capability[0] == 9
    return "fa3" if is_hopper and kv_dtype == dtype and head_dim in (64, 128, 256) else "fa2"


def uses_tensor_cores(num_heads: int, num_kv_heads: int, num_rows: int) -> bool:
    """For decodes, which on ordinary cores are limited by arithmetic where many heads share K."""
    enough_heads = num_heads // num_kv_heads >= _MIN_TENSOR_CORE_GROUP
    return enough_heads and num_rows <= _MAX_TENSOR_CORE_ROWS


def _rows(
    batch: AttentionBatch, page_size: int, which: slice, skipped_R: np.ndarray
) -> PagedRows | None:
    """A range of the rows, without the first blocks of some; None if it is empty."""
    if which.start == which.stop:
        return None
    first, end = batch.block_indptr[which.start], batch.block_indptr[which.stop]
    counts = np.diff(batch.block_indptr)[which]
    skipped = skipped_R[which]
    block_ids = batch.block_ids[first:end]
    if skipped.any():
        place = np.arange(end - first) - np.repeat(np.cumsum(counts) - counts, counts)
        block_ids = block_ids[place >= np.repeat(skipped, counts)]
    return PagedRows(
        qo_indptr=_indptr(batch.query_lens[which]),
        kv_indptr=_indptr(counts - skipped),
        kv_indices=block_ids,
        kv_last_page_len=_last_page_lens(batch.kv_lens[which], page_size),
    )


def _prefixes(batch: AttentionBatch, page_size: int, groups: list[HydragenGroup]) -> PagedRows:
    starts = [batch.block_indptr[batch.num_prefill_rows + group.first_row] for group in groups]
    blocks = [
        batch.block_ids[start : start + group.num_blocks]
        for start, group in zip(starts, groups, strict=True)
    ]
    return PagedRows(
        qo_indptr=_indptr(np.array([group.num_rows for group in groups])),
        kv_indptr=_indptr(np.array([group.num_blocks for group in groups])),
        kv_indices=np.concatenate(blocks),
        kv_last_page_len=np.full(len(groups), page_size, np.int32),
    )


def _prefix_queries(groups: list[HydragenGroup]) -> slice | np.ndarray:
    rows = np.concatenate([np.arange(g.first_row, g.first_row + g.num_rows) for g in groups])
    is_range = rows[-1] - rows[0] + 1 == len(rows) and bool((np.diff(rows) == 1).all())
    return slice(int(rows[0]), int(rows[-1]) + 1) if is_range else rows


def _longest(batch: AttentionBatch, first_row: int, num_rows: int) -> int:
    first = batch.num_prefill_rows + first_row
    return int(batch.kv_lens[first : first + num_rows].max())


def _indptr(lens: np.ndarray) -> np.ndarray:
    indptr = np.zeros(len(lens) + 1, np.int32)
    np.cumsum(lens, out=indptr[1:])
    return indptr


def _last_page_lens(kv_lens: np.ndarray, page_size: int) -> np.ndarray:
    return ((kv_lens - 1) % page_size + 1).astype(np.int32)
