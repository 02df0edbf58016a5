"""Measures from which size on a group of sequences gains by reading its shared prefix once.

    python scripts/bench_hydragen.py [--group-sizes 2 4 ...] [--prefix-lens 16 32 ...]

One layer of decode attention on the CPU kernels, grouped and ungrouped in turn, in CPU time of one
thread; the plan of a step is spread over `--num-layers` layers. Prints the time of ungrouped over
grouped attention (above 1: the group wins), and the smallest thresholds above which every
measured group wins.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from tokasaurus.ipc.messages.to_worker import HydragenGroup
from tokasaurus.model.attention.backend import AttentionBatch, AttentionLayer
from tokasaurus.model.attention.cpu_backend import CpuBackend

PAGE_SIZE = 16
SUFFIX_TOKENS = 64
SHAPES = {"135m": (9, 3, 64), "1b": (32, 8, 64), "8b": (32, 8, 128)}
"""Query heads, KV heads, head size."""
LEAST_GAIN = 1.02
"""A group wins if it is at least so much faster."""


class Bench:
    """A group's decode step: rows that share `prefix_len` tokens and have some of their own."""

    def __init__(self, shape: str, num_rows: int, prefix_len: int, num_layers: int) -> None:
        num_heads, num_kv_heads, head_dim = SHAPES[shape]
        layer = AttentionLayer(
            index=0,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            scale=head_dim**-0.5,
        )
        self._layer, self._num_layers = layer, num_layers
        shared, own = prefix_len // PAGE_SIZE, SUFFIX_TOKENS // PAGE_SIZE
        num_blocks = shared + num_rows * own
        self._backend = CpuBackend(
            (layer,), page_size=PAGE_SIZE, dtype=torch.bfloat16, device=torch.device("cpu")
        )
        self._backend.allocate(num_blocks)
        tables = np.empty((num_rows, shared + own), np.int32)
        tables[:, :shared] = np.arange(shared)
        tables[:, shared:] = shared + np.arange(num_rows * own).reshape(num_rows, own)
        group = HydragenGroup(first_row=0, num_rows=num_rows, num_blocks=shared)
        self._batches = [self._batch(tables, []), self._batch(tables, [group])]
        generator = torch.Generator().manual_seed(0)
        self._q, self._k, self._v = (
            torch.randn(num_rows, heads, head_dim, generator=generator).to(torch.bfloat16)
            for heads in (num_heads, num_kv_heads, num_kv_heads)
        )

    def _batch(self, tables: np.ndarray, groups: list[HydragenGroup]) -> AttentionBatch:
        num_rows, width = tables.shape
        return AttentionBatch(
            num_prefill_rows=0,
            query_lens=np.ones(num_rows, np.int32),
            kv_lens=np.full(num_rows, width * PAGE_SIZE, np.int32),
            block_indptr=(np.arange(num_rows + 1) * width).astype(np.int32),
            block_ids=tables.ravel(),
            slot_mapping=tables[:, -1].astype(np.int64) * PAGE_SIZE + PAGE_SIZE - 1,
            hydragen_groups=groups,
        )

    def seconds(self, batch: AttentionBatch, num_steps: int) -> float:
        """CPU time of one step's attention."""
        start = time.process_time()
        for _ in range(num_steps):
            self._backend.plan(batch)
            for _ in range(self._num_layers):
                self._backend.run(self._q, self._k, self._v, self._layer)
        return (time.process_time() - start) / num_steps

    def gain(self, num_pairs: int) -> float:
        """Median of ungrouped over grouped time, in pairs of runs that alternate."""
        ungrouped, grouped = self._batches
        once = max(self.seconds(ungrouped, 1), self.seconds(ungrouped, 1), 1e-5)
        num_steps = max(1, round(0.01 / once))
        ratios = []
        for index in range(num_pairs):
            first, second = (ungrouped, grouped) if index % 2 else (grouped, ungrouped)
            times = {id(first): self.seconds(first, num_steps)}
            times[id(second)] = self.seconds(second, num_steps)
            ratios.append(times[id(ungrouped)] / times[id(grouped)])
        return statistics.median(ratios)


def thresholds(gains: dict[tuple[int, int], float]) -> list[tuple[int, int]]:
    """(group size, prefix length) pairs, neither of which can be lowered: all that is measured at
    or above them wins."""
    safe = [
        (size, length)
        for size, length in gains
        if all(g >= LEAST_GAIN for (s, n), g in gains.items() if s >= size and n >= length)
    ]
    return [
        (size, length)
        for size, length in safe
        if not any((s <= size and n <= length and (s, n) != (size, length)) for s, n in safe)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="1b")
    parser.add_argument("--group-sizes", type=int, nargs="+", default=[2, 3, 4, 8, 16, 32])
    parser.add_argument("--prefix-lens", type=int, nargs="+", default=[16, 32, 64, 128, 256, 1024])
    parser.add_argument("--num-layers", type=int, default=16)
    parser.add_argument("--num-pairs", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{args.shape} heads, {SUFFIX_TOKENS} tokens of their own, pages of {PAGE_SIZE}")
    print("| rows | " + " | ".join(f"{length} shared" for length in args.prefix_lens) + " |")
    print("|---" * (len(args.prefix_lens) + 1) + "|")
    gains = {}
    for size in args.group_sizes:
        for length in args.prefix_lens:
            bench = Bench(args.shape, size, length, args.num_layers)
            gains[size, length] = bench.gain(args.num_pairs)
        cells = " | ".join(f"{gains[size, length]:.2f}" for length in args.prefix_lens)
        print(f"| {size} | {cells} |", flush=True)
    for size, length in thresholds(gains):
        print(f"groups win from {size} rows and {length} shared tokens on")


if __name__ == "__main__":
    main()
