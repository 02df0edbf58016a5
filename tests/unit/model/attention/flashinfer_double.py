"""Stands in for FlashInfer: the same calls, with the same meaning, computed row by row in torch.

Log-sum-exps are in base 2, as FlashInfer's are.
"""

import math
from typing import Any

import torch

Cache = tuple[torch.Tensor, torch.Tensor]


class _Wrapper:
    """What prefill and decode have in common."""

    def __init__(self, workspace: torch.Tensor, kv_layout: str) -> None:
        assert kv_layout == "NHD"
        assert workspace.dtype == torch.uint8
        self._rows: list[tuple[slice, torch.Tensor, int]] = []
        self._options: dict[str, Any] = {}
        self.num_plans = 0

    def _set(
        self,
        qo_indptr: torch.Tensor,
        indptr: torch.Tensor,
        indices: torch.Tensor,
        last_page_len: torch.Tensor,
        shape: tuple[int, int, int, int],
        causal: bool,
        options: dict[str, Any],
    ) -> None:
        for array in (qo_indptr, indptr, indices, last_page_len):
            assert array.dtype == torch.int32
        assert int(indptr[-1]) == len(indices)
        page_size = shape[3]
        self._rows = []
        for row in range(len(last_page_len)):
            blocks = indices[int(indptr[row]) : int(indptr[row + 1])]
            kv_len = (len(blocks) - 1) * page_size + int(last_page_len[row])
            queries = slice(int(qo_indptr[row]), int(qo_indptr[row + 1]))
            self._rows.append((queries, blocks.clone(), kv_len))
        self._shape, self._causal, self._options = shape, causal, options
        self.num_plans += 1

    def run(
        self,
        q: torch.Tensor,
        cache: Cache,
        *,
        out: torch.Tensor | None = None,
        return_lse: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        assert q.dtype == self._options["q_data_type"]
        assert cache[0].dtype == self._options["kv_data_type"]
        assert q.shape[1:] == (self._shape[0], self._shape[2])
        assert len(q) == self._rows[-1][0].stop
        out = torch.empty_like(q) if out is None else out
        lse = torch.empty(q.shape[:2], dtype=torch.float32)
        for queries, blocks, kv_len in self._rows:
            out[queries], lse[queries] = self._attend(q[queries], cache, blocks, kv_len)
        return (out, lse) if return_lse else out

    def _attend(
        self, q: torch.Tensor, cache: Cache, blocks: torch.Tensor, kv_len: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        group = self._shape[0] // self._shape[1]
        key, value = (
            x[blocks.long()].flatten(0, 1)[:kv_len].double().repeat_interleave(group, 1)
            for x in cache
        )
        scores = torch.einsum("qnh,lnh->qnl", q.double(), key) * self._options["sm_scale"]
        softcap = self._options["logits_soft_cap"]
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        query = torch.arange(kv_len - len(q), kv_len)[:, None, None]
        position = torch.arange(kv_len)[None, None, :]
        if self._causal:
            scores = scores.masked_fill(position > query, -torch.inf)
        window = self._options["window_left"]
        if window >= 0:
            scores = scores.masked_fill(position < query - window, -torch.inf)
        out = torch.einsum("qnl,lnh->qnh", scores.softmax(-1), value)
        return out.to(q.dtype), (scores.logsumexp(-1) / math.log(2)).float()


class BatchPrefillWithPagedKVCacheWrapper(_Wrapper):
    def __init__(self, workspace: torch.Tensor, kv_layout: str, *, backend: str) -> None:
        super().__init__(workspace, kv_layout)
        assert backend in ("fa2", "fa3")

    def plan(
        self,
        qo_indptr: torch.Tensor,
        indptr: torch.Tensor,
        indices: torch.Tensor,
        last_page_len: torch.Tensor,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        *,
        causal: bool,
        **options: Any,
    ) -> None:
        shape = (num_heads, num_kv_heads, head_dim, page_size)
        self._set(qo_indptr, indptr, indices, last_page_len, shape, causal, options)


class BatchDecodeWithPagedKVCacheWrapper(_Wrapper):
    def __init__(
        self,
        workspace: torch.Tensor,
        kv_layout: str,
        *,
        use_tensor_cores: bool,
        use_cuda_graph: bool = False,
        paged_kv_indptr_buffer: torch.Tensor | None = None,
        paged_kv_indices_buffer: torch.Tensor | None = None,
        paged_kv_last_page_len_buffer: torch.Tensor | None = None,
    ) -> None:
        super().__init__(workspace, kv_layout)
        self.use_tensor_cores = use_tensor_cores
        self._buffers = None
        if use_cuda_graph:
            self._buffers = (
                paged_kv_indptr_buffer,
                paged_kv_indices_buffer,
                paged_kv_last_page_len_buffer,
            )

    def plan(
        self,
        indptr: torch.Tensor,
        indices: torch.Tensor,
        last_page_len: torch.Tensor,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        **options: Any,
    ) -> None:
        if self._buffers is not None:
            for buffer, array in zip(self._buffers, (indptr, indices, last_page_len), strict=True):
                assert buffer is not None
                buffer[: len(array)].copy_(array)
            assert len(self._buffers[2]) == len(last_page_len)  # type: ignore[arg-type]
        qo_indptr = torch.arange(len(last_page_len) + 1, dtype=torch.int32)
        shape = (num_heads, num_kv_heads, head_dim, page_size)
        self._set(qo_indptr, indptr, indices, last_page_len, shape, True, options)


def append_paged_kv_cache(
    key: torch.Tensor,
    value: torch.Tensor,
    batch_indices: torch.Tensor,
    positions: torch.Tensor,
    cache: Cache,
    kv_indices: torch.Tensor,
    kv_indptr: torch.Tensor,
    kv_last_page_len: torch.Tensor,
    kv_layout: str,
) -> None:
    assert kv_layout == "NHD"
    assert len(kv_indptr) == len(kv_last_page_len) + 1
    page_size = cache[0].shape[1]
    for token, (row, position) in enumerate(
        zip(batch_indices.tolist(), positions.tolist(), strict=True)
    ):
        block = int(kv_indices[int(kv_indptr[row]) + position // page_size])
        assert int(kv_indptr[row]) + position // page_size < int(kv_indptr[row + 1])
        cache[0][block, position % page_size] = key[token]
        cache[1][block, position % page_size] = value[token]


def merge_state_in_place(
    v: torch.Tensor, s: torch.Tensor, v_other: torch.Tensor, s_other: torch.Tensor
) -> None:
    merged = torch.logaddexp2(s, s_other)
    weights = (torch.exp2(s - merged), torch.exp2(s_other - merged))
    v.copy_(v * weights[0].unsqueeze(-1) + v_other * weights[1].unsqueeze(-1))
    s.copy_(merged)
