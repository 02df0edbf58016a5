"""Paged attention in plain torch: runs on any device and is the reference for all kernels.

Shapes: T query tokens, N query heads, K KV heads, G = N / K query heads per KV head, H head size,
B rows of one tile, Q queries per row, L keys per row. Scores, softmax and sums are float32 (float64
if the cache is).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from tokasaurus.ipc.messages.to_worker import HydragenGroup
from tokasaurus.model.attention.backend import AttentionBatch, AttentionLayer
from tokasaurus.model.device_copy import to_device

_MAX_GATHERED = 1 << 20
"""Elements of the keys (or values) that one tile gathers: 4 MB, which a CPU's cache holds."""
_MAX_SCORES = 1 << 21
"""Scores of one tile of a prefill chunk or a shared prefix, over all heads."""


@dataclass(slots=True, kw_only=True)
class _Tile:
    """Queries that attend to gathered keys in one dense product; `merge` adds to earlier tiles."""

    queries: slice | torch.Tensor
    """Which of the step's tokens: a range, or int64[B] (one query per row)."""
    keys: torch.Tensor
    """int32[B, L] or int32[L] (shared by all queries): flat positions in the cache."""
    hidden: torch.Tensor | None
    """bool[B, L] or bool[Q, L]: keys that a query does not see; None if it sees all."""
    merge: bool


class TorchBackend:
    """`AttentionBackend` over one [num_blocks, page_size, K, H] pair of tensors per layer."""

    name = "torch"
    supports_hydragen = True
    supports_cuda_graphs = False

    def __init__(
        self,
        layers: tuple[AttentionLayer, ...],
        *,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._layers = layers
        self._page_size = page_size
        self._dtype = dtype
        self._device = device
        self._math_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self._windows = sorted({layer.sliding_window or 0 for layer in layers})
        self._most_elements_per_key = max(layer.num_kv_heads * layer.head_dim for layer in layers)
        self._most_heads = max(layer.num_heads for layer in layers)
        self._caches: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._tiles: dict[int, list[_Tile]] = {}
        self._slot_mapping = torch.empty(0, dtype=torch.int64, device=device)

    def allocate(self, num_blocks: int) -> None:
        self._caches.clear()
        for layer in self._layers:
            shape = (num_blocks, self._page_size, layer.num_kv_heads, layer.head_dim)
            self._caches[layer.index] = (self._zeros(shape), self._zeros(shape))

    def kv_bytes_per_block(self) -> int:
        elements = sum(layer.num_kv_heads * layer.head_dim for layer in self._layers)
        return 2 * elements * self._page_size * self._dtype.itemsize

    def plan(self, batch: AttentionBatch) -> None:
        self._slot_mapping = to_device(batch.slot_mapping, self._device)
        self._tiles = {window: list(self._plan_window(batch, window)) for window in self._windows}

    def run(
        self, q_TNH: torch.Tensor, k_TKH: torch.Tensor, v_TKH: torch.Tensor, layer: AttentionLayer
    ) -> torch.Tensor:
        key, value = (cache.flatten(0, 1) for cache in self._caches[layer.index])
        key.index_copy_(0, self._slot_mapping, k_TKH.to(self._dtype))
        value.index_copy_(0, self._slot_mapping, v_TKH.to(self._dtype))
        T, N, H = q_TNH.shape
        out_TNH = q_TNH.new_zeros((T, N, H), dtype=self._math_dtype)
        lse_TN = q_TNH.new_full((T, N), -torch.inf, dtype=self._math_dtype)
        q_scaled_TNH = q_TNH.to(self._math_dtype) * layer.scale
        for tile in self._tiles[layer.sliding_window or 0]:
            out, lse = self._attend(q_scaled_TNH[tile.queries], key, value, tile, layer)
            if tile.merge:
                out, lse = _merge(out_TNH[tile.queries], lse_TN[tile.queries], out, lse)
            out_TNH[tile.queries] = out
            lse_TN[tile.queries] = lse
        if layer.sinks_N is not None:
            out_TNH *= torch.sigmoid(lse_TN - layer.sinks_N.to(lse_TN)).unsqueeze(-1)
        return out_TNH.to(q_TNH.dtype)

    def _attend(
        self,
        q_XNH: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        tile: _Tile,
        layer: AttentionLayer,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention of X queries to the tile's keys: output XNH and log-sum-exp XN.

        Row tiles hold one query per row (B = X, Q = 1); shared tiles many per key set (B = 1).
        """
        X, N, H = q_XNH.shape
        K = layer.num_kv_heads
        G = N // K
        rows = tile.keys.view(-1, tile.keys.shape[-1])
        B, L = rows.shape
        Q = X // B

        def gather(cache: torch.Tensor) -> torch.Tensor:
            picked = cache.index_select(0, rows.flatten()).view(B, L, K, H)
            return picked.permute(0, 2, 1, 3).to(self._math_dtype).contiguous()

        q_BKxH = q_XNH.reshape(B, Q, K, G, H).permute(0, 2, 1, 3, 4).reshape(B, K, Q * G, H)
        scores = q_BKxH @ gather(key_cache).transpose(2, 3)
        if layer.logit_softcap is not None:
            scores = (scores / layer.logit_softcap).tanh_().mul_(layer.logit_softcap)
        if tile.hidden is not None:
            mask = tile.hidden.view(B, 1, Q, 1, L)
            scores.view(B, K, Q, G, L).masked_fill_(mask, -torch.inf)
        peak = scores.amax(-1, keepdim=True)
        peak.masked_fill_(peak == -torch.inf, 0)
        weights = scores.sub_(peak).exp_()
        total = weights.sum(-1, keepdim=True)
        out = (weights @ gather(value_cache)) / total.clamp_min(torch.finfo(total.dtype).tiny)
        lse = peak + total.log()

        def per_query(x: torch.Tensor) -> torch.Tensor:
            return x.view(B, K, Q, G, -1).transpose(1, 2).reshape(X, N, -1)

        return per_query(out), per_query(lse).squeeze(-1)

    def _plan_window(self, batch: AttentionBatch, window: int) -> Iterator[_Tile]:
        P = batch.num_prefill_rows
        first_token = 0
        for row in range(P):
            num_queries = int(batch.query_lens[row])
            yield from self._prefill_tiles(batch, row, first_token, num_queries, window)
            first_token += num_queries
        skipped = np.zeros(batch.num_rows - P, np.int64)
        for group in batch.hydragen_groups:
            if self._sees_whole_prefix(batch, group, window):
                rows = slice(group.first_row, group.first_row + group.num_rows)
                skipped[rows] = group.num_blocks * self._page_size
                yield from self._prefix_tiles(batch, group, first_token)
        yield from self._decode_tiles(batch, skipped, first_token, window)

    def _prefill_tiles(
        self, batch: AttentionBatch, row: int, first_token: int, num_queries: int, window: int
    ) -> Iterator[_Tile]:
        """Tiles of queries x keys of one chunk, leaving out keys that none of the queries sees."""
        kv_len = int(batch.kv_lens[row])
        keys = self._to_device(self._cache_positions(batch, row, kv_len))
        max_keys = self._max_keys_per_tile()
        step = max(16, _MAX_SCORES // (self._most_heads * min(max_keys, max(1, kv_len))))
        for start in range(0, num_queries, step):
            count = min(step, num_queries - start)
            first = kv_len - num_queries + start
            begin = max(0, first + 1 - window) if window else 0
            query = np.arange(first, first + count)[:, None]
            for key_start in range(begin, first + count, max_keys):
                key_end = min(key_start + max_keys, first + count)
                key = np.arange(key_start, key_end)[None, :]
                hidden = key > query
                if window:
                    hidden |= key <= query - window
                yield _Tile(
                    queries=slice(first_token + start, first_token + start + count),
                    keys=keys[key_start:key_end],
                    hidden=self._to_device(hidden) if hidden.any() else None,
                    merge=key_start > begin,
                )

    def _prefix_tiles(
        self, batch: AttentionBatch, group: HydragenGroup, first_token: int
    ) -> Iterator[_Tile]:
        """All queries of a Hydragen group against their common prefix."""
        row = batch.num_prefill_rows + group.first_row
        num_keys = group.num_blocks * self._page_size
        keys = self._to_device(self._cache_positions(batch, row, num_keys))
        first = first_token + group.first_row
        max_keys = self._max_keys_per_tile()
        step = max(64, min(max_keys, _MAX_SCORES // (self._most_heads * group.num_rows)))
        for start in range(0, num_keys, step):
            yield _Tile(
                queries=slice(first, first + group.num_rows),
                keys=keys[start : start + step],
                hidden=None,
                merge=start > 0,
            )

    def _decode_tiles(
        self, batch: AttentionBatch, skipped: np.ndarray, first_token: int, window: int
    ) -> Iterator[_Tile]:
        """Decode rows in tiles of similar length; short rows repeat their last key, hidden.

        A row never gathers another sequence's keys: a NaN in them would leak through its weight 0.
        """
        P = batch.num_prefill_rows
        kv_lens = batch.kv_lens[P:].astype(np.int64)
        begins = np.maximum(skipped, kv_lens - window) if window else skipped
        lens = kv_lens - begins
        order = np.argsort(-lens, kind="stable")
        any_prefix = bool(skipped.any())
        start = 0
        while start < len(order):
            longest = int(lens[order[start]])
            rows = order[start : start + max(1, self._max_keys_per_tile() // max(1, longest))]
            start += len(rows)
            step = max(1, longest) if len(rows) > 1 else self._max_keys_per_tile()
            for offset in range(0, longest, step):
                offsets = np.arange(offset, min(longest, offset + step))[None, :]
                hidden = offsets >= lens[rows, None]
                position = np.minimum(begins[rows, None] + offsets, kv_lens[rows, None] - 1)
                entry = batch.block_indptr[P + rows, None] + position // self._page_size
                keys = batch.block_ids[entry] * self._page_size + position % self._page_size
                yield _Tile(
                    queries=self._to_device(first_token + rows),
                    keys=self._to_device(keys.astype(np.int32)),
                    hidden=self._to_device(hidden) if hidden.any() else None,
                    merge=any_prefix or offset > 0,
                )

    def _max_keys_per_tile(self) -> int:
        return max(16, _MAX_GATHERED // self._most_elements_per_key)

    def _zeros(self, shape: tuple[int, ...]) -> torch.Tensor:
        """On a CPU, memory that the system zeroes on first touch: unused blocks take none."""
        if self._device.type != "cpu":
            return torch.zeros(shape, dtype=self._dtype, device=self._device)
        raw = np.zeros(math.prod(shape) * self._dtype.itemsize, np.uint8)
        return torch.from_numpy(raw).view(self._dtype).view(shape)

    def _sees_whole_prefix(self, batch: AttentionBatch, group: HydragenGroup, window: int) -> bool:
        first = batch.num_prefill_rows + group.first_row
        return not window or int(batch.kv_lens[first : first + group.num_rows].max()) <= window

    def _cache_positions(self, batch: AttentionBatch, row: int, num_tokens: int) -> np.ndarray:
        """int32[num_tokens]: where the row's first tokens lie in the flattened cache."""
        position = np.arange(num_tokens)
        blocks = batch.block_ids[batch.block_indptr[row] + position // self._page_size]
        return (blocks * self._page_size + position % self._page_size).astype(np.int32)

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        return to_device(array, self._device)


def _merge(
    out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Combine attention over two disjoint key sets; an empty set has a log-sum-exp of -inf."""
    lse = torch.logaddexp(lse_a, lse_b)
    base = lse.masked_fill(lse == -torch.inf, 0)
    weight_a = (lse_a - base).exp_().unsqueeze(-1)
    weight_b = (lse_b - base).exp_().unsqueeze(-1)
    return out_a * weight_a + out_b * weight_b, lse
