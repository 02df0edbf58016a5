"""Random paged-attention batches and a float64 oracle that attends token by token."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from tokasaurus.ipc.messages.to_worker import HydragenGroup
from tokasaurus.model.attention.backend import AttentionBackend, AttentionBatch, AttentionLayer


@dataclass(kw_only=True)
class PagedCase:
    """A batch with the full K and V of every row; shared blocks hold equal tokens."""

    batch: AttentionBatch
    num_blocks: int
    page_size: int
    layer: AttentionLayer
    queries: torch.Tensor
    """float64 TNH"""
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    """Per row float64[kv_len, K, H]; the last query_len tokens are this step's."""

    def rounded_to(self, dtype: torch.dtype) -> "PagedCase":
        """The case with inputs that `dtype` holds exactly, so that only the computing rounds."""
        return replace(
            self,
            queries=self.queries.to(dtype).double(),
            keys=[key.to(dtype).double() for key in self.keys],
            values=[value.to(dtype).double() for value in self.values],
        )

    def step_kv(self) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of the step's tokens as TKH."""
        lens = self.batch.query_lens
        empty = self.queries.new_empty(0, self.layer.num_kv_heads, self.layer.head_dim)
        parts = [
            torch.cat([empty, *(x[len(x) - n :] for x, n in zip(kv, lens, strict=True))])
            for kv in (self.keys, self.values)
        ]
        return parts[0], parts[1]

    def fill_cache(self, backend: AttentionBackend, dtype: torch.dtype) -> None:
        """Write everything before the step by one prefill-shaped step per row."""
        for row in range(self.batch.num_rows):
            before = int(self.batch.kv_lens[row] - self.batch.query_lens[row])
            if before == 0:
                continue
            blocks = self.row_blocks(row)[: -(-before // self.page_size)]
            positions = np.arange(before)
            slots = blocks[positions // self.page_size].astype(np.int64) * self.page_size
            backend.plan(
                AttentionBatch(
                    num_prefill_rows=1,
                    query_lens=np.array([before], np.int32),
                    kv_lens=np.array([before], np.int32),
                    block_indptr=np.array([0, len(blocks)], np.int32),
                    block_ids=blocks,
                    slot_mapping=slots + positions % self.page_size,
                )
            )
            key, value = self.keys[row][:before].to(dtype), self.values[row][:before].to(dtype)
            q = torch.zeros(before, self.layer.num_heads, self.layer.head_dim, dtype=dtype)
            backend.run(q, key, value, self.layer)

    def row_blocks(self, row: int) -> np.ndarray:
        indptr = self.batch.block_indptr
        return self.batch.block_ids[indptr[row] : indptr[row + 1]]

    def run(self, backend: AttentionBackend, dtype: torch.dtype) -> torch.Tensor:
        """Fill a fresh cache through `backend`, then run the step."""
        backend.allocate(self.num_blocks)
        self.fill_cache(backend, dtype)
        backend.plan(self.batch)
        key, value = self.step_kv()
        return backend.run(self.queries.to(dtype), key.to(dtype), value.to(dtype), self.layer)

    def expected(self) -> torch.Tensor:
        """The oracle: one query at a time in float64."""
        layer = self.layer
        group = layer.num_heads // layer.num_kv_heads
        outputs = []
        token = 0
        for row in range(self.batch.num_rows):
            length = int(self.batch.query_lens[row])
            key = self.keys[row].repeat_interleave(group, dim=1)
            value = self.values[row].repeat_interleave(group, dim=1)
            for i in range(length):
                position = int(self.batch.kv_lens[row]) - length + i
                begin = 0
                if layer.sliding_window is not None:
                    begin = max(0, position - layer.sliding_window + 1)
                seen = slice(begin, position + 1)
                scores = torch.einsum("nh,lnh->nl", self.queries[token], key[seen]) * layer.scale
                if layer.logit_softcap is not None:
                    scores = layer.logit_softcap * torch.tanh(scores / layer.logit_softcap)
                if layer.sinks_N is not None:
                    scores = torch.cat([scores, layer.sinks_N.double()[:, None]], dim=1)
                weights = scores.softmax(-1)[:, : position + 1 - begin]
                outputs.append(torch.einsum("nl,lnh->nh", weights, value[seen]))
                token += 1
        return torch.stack(outputs) if outputs else torch.empty_like(self.queries)


def make_case(
    *,
    seed: int,
    prefill: list[tuple[int, int]],
    decode: list[int],
    page_size: int,
    num_kv_heads: int,
    group_size: int,
    head_dim: int,
    shared: tuple[int, int, int] | None = None,
    sliding_window: int | None = None,
    logit_softcap: float | None = None,
    sinks: bool = False,
) -> PagedCase:
    """`prefill` are (kv_len, query_len), `decode` kv_lens, `shared` a Hydragen group.

    Rows of the group get its blocks; each of them must be longer than the shared blocks.
    """
    rng = torch.Generator().manual_seed(seed)
    layer = AttentionLayer(
        index=0,
        num_heads=num_kv_heads * group_size,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5 * 1.3,
        sliding_window=sliding_window,
        logit_softcap=logit_softcap,
        sinks_N=torch.randn(num_kv_heads * group_size, generator=rng) if sinks else None,
    )
    kv_lens = [kv for kv, _ in prefill] + decode
    query_lens = [n for _, n in prefill] + [1] * len(decode)
    counts = [-(-n // page_size) for n in kv_lens]
    order = np.random.default_rng(seed).permutation(sum(counts) + 3).astype(np.int32)
    tables = np.split(order[: sum(counts)], np.cumsum(counts)[:-1]) if counts else []
    shape = (num_kv_heads, head_dim)
    keys = [torch.randn(n, *shape, generator=rng, dtype=torch.float64) for n in kv_lens]
    values = [torch.randn(n, *shape, generator=rng, dtype=torch.float64) for n in kv_lens]
    groups = []
    if shared is not None:
        first, rows, num_blocks = shared
        groups = [HydragenGroup(first, rows, num_blocks)]
        leader = len(prefill) + first
        for row in range(leader + 1, leader + rows):
            tables[row] = np.concatenate([tables[leader][:num_blocks], tables[row][num_blocks:]])
            for x in (keys, values):
                x[row][: num_blocks * page_size] = x[leader][: num_blocks * page_size]
    slots = [
        table[np.arange(kv - n, kv) // page_size].astype(np.int64) * page_size
        + np.arange(kv - n, kv) % page_size
        for table, kv, n in zip(tables, kv_lens, query_lens, strict=True)
    ]
    batch = AttentionBatch(
        num_prefill_rows=len(prefill),
        query_lens=np.array(query_lens, np.int32),
        kv_lens=np.array(kv_lens, np.int32),
        block_indptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        block_ids=np.concatenate([np.empty(0, np.int32), *tables]),
        slot_mapping=np.concatenate([np.empty(0, np.int64), *slots]),
        hydragen_groups=groups,
    )
    queries = torch.randn(
        sum(query_lens), layer.num_heads, head_dim, generator=rng, dtype=torch.float64
    )
    return PagedCase(
        batch=batch,
        num_blocks=sum(counts) + 3,
        page_size=page_size,
        layer=layer,
        queries=queries,
        keys=keys,
        values=values,
    )
