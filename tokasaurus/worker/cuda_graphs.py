"""Decode steps as captured graphs: a launch each for hundreds of kernels.

A graph has a fixed number of rows; a smaller batch is filled up with rows that write to a block of
nobody's. Everything a graph reads lies in buffers that stay where they are.

Shapes: T tokens of a step (= rows: one per decode), D hidden size.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch

from tokasaurus.model.attention.backend import AttentionBatch, GraphBackend
from tokasaurus.model.device_copy import pinned

_SMALL_SIZES = (1, 2, 4, 8)
Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Inputs T (token ids, or TD in later stages) and positions T to hidden states TD, on the planned
attention backend."""


class Capturer(Protocol):
    """What records a function's kernels; on a GPU `CudaCapturer`."""

    def capture(self, run: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        """(replay, output): `replay` computes `output` again, from what `run` reads."""


class CudaCapturer:
    """CUDA graphs that share one pool of memory, since only one runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        # One for all: memory that a stream has used stays with it.
        self._stream = torch.cuda.Stream(device)

    def capture(self, run: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        # Kernels are compiled and libraries initialised outside of the capture.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            run()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        # A thread of NCCL's looks at events meanwhile, which a stricter mode forbids.
        mode = "thread_local"
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode=mode):
            output = run()
        return graph.replay, output


def graph_sizes(max_size: int, step: int, max_seqs: int) -> list[int]:
    """Largest first, so that smaller graphs fit into the memory of larger ones.

    Small powers of two, then multiples of `step`, up to the smaller of the limits.
    """
    largest = min(max_size, max_seqs)
    sizes = {size for size in _SMALL_SIZES if size < min(step, largest)}
    sizes |= set(range(step, largest + 1, step))
    return sorted(sizes | {largest}, reverse=True)


def padded_decodes(batch: AttentionBatch, size: int, page_size: int, block: int) -> AttentionBatch:
    """The decodes and rows of one token each, all at the start of `block`, `size` in all."""
    missing = size - batch.num_rows
    if missing == 0:
        return batch
    ones = np.ones(missing, np.int32)
    ends = batch.block_indptr[-1] + np.arange(1, missing + 1, dtype=np.int32)
    return replace(
        batch,
        query_lens=np.concatenate([batch.query_lens, ones]),
        kv_lens=np.concatenate([batch.kv_lens, ones]),
        block_indptr=np.concatenate([batch.block_indptr, ends]),
        block_ids=np.concatenate([batch.block_ids, np.full(missing, block, np.int32)]),
        slot_mapping=np.concatenate(
            [batch.slot_mapping, np.full(missing, block * page_size, np.int64)]
        ),
    )


class DecodeGraphs:
    """Graphs of a model's decode steps, one per size."""

    def __init__(
        self,
        sizes: list[int],
        forward: Forward,
        backend: GraphBackend,
        *,
        inputs_T: torch.Tensor,
        page_size: int,
        device: torch.device,
        capturer: Capturer,
    ) -> None:
        """`inputs_T` is where the graphs will read their inputs: as many as the largest has."""
        self._sizes = sizes
        self._forward = forward
        self._backend = backend
        self._page_size = page_size
        self._device = device
        self._capturer = capturer
        self._inputs_T = inputs_T
        self._positions_T = torch.zeros(max(sizes), dtype=torch.int64, device=device)
        self._graphs: dict[int, tuple[Callable[[], None], torch.Tensor]] = {}

    def capture(
        self,
        max_blocks_per_seq: int,
        progress: Callable[[float, str], None],
        captured: Callable[[int, torch.Tensor], None],
    ) -> None:
        """Capture all sizes; the KV cache must be where it will stay.

        `captured` is told each size and where its hidden states will be.
        """
        self._graphs.clear()
        self._backend.reserve_graphs(self._sizes, max(self._sizes) * max_blocks_per_seq)
        for i, size in enumerate(self._sizes):
            progress(i / len(self._sizes), f"graph of {size} sequences")
            nothing = padded_decodes(_no_rows(), size, self._page_size, self._backend.scratch_block)
            self._backend.plan_for_graph(nothing)
            inputs, positions = self._inputs_T[:size], self._positions_T[:size]

            def run(
                inputs: torch.Tensor = inputs, positions: torch.Tensor = positions
            ) -> torch.Tensor:
                return self._forward(inputs, positions)

            self._graphs[size] = self._capturer.capture(run)
            captured(size, self._graphs[size][1])

    def size_for(self, batch: AttentionBatch) -> int | None:
        """The smallest graph that holds the step; None for steps that no graph can run."""
        if batch.num_prefill_rows or batch.hydragen_groups or not self._graphs:
            return None
        fitting = [size for size in self._graphs if size >= batch.num_rows]
        return min(fitting, default=None)

    def prepare(
        self, size: int, inputs_T: torch.Tensor, positions_T: np.ndarray, batch: AttentionBatch
    ) -> None:
        """Fill what the graph reads. Rows beyond the batch keep valid inputs of earlier steps."""
        block = self._backend.scratch_block
        self._backend.plan_for_graph(padded_decodes(batch, size, self._page_size, block))
        self._inputs_T[: len(inputs_T)].copy_(inputs_T)
        padded = np.zeros(size, np.int64)
        padded[: len(positions_T)] = positions_T
        self._positions_T[:size].copy_(pinned(padded, self._device), non_blocking=True)

    def replay(self, size: int, num_rows: int) -> torch.Tensor:
        """Hidden states of the first rows; the next replay overwrites them."""
        replay, hidden_TD = self._graphs[size]
        replay()
        return hidden_TD[:num_rows]


def _no_rows() -> AttentionBatch:
    none = np.empty(0, np.int32)
    return AttentionBatch(
        num_prefill_rows=0,
        query_lens=none,
        kv_lens=none,
        block_indptr=np.zeros(1, np.int32),
        block_ids=none,
        slot_mapping=np.empty(0, np.int64),
    )
