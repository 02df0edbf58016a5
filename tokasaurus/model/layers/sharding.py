"""Which heads, features and tokens a tensor-parallel rank holds, and what can't be divided.

Shapes: S rows, V vocabulary, L tokens of a rank's share with its padding.
"""

from dataclasses import dataclass

import torch

from tokasaurus.errors import ConfigError
from tokasaurus.model.parallel import ParallelContext
from tokasaurus.model.sampling.noise import BLOCK_SIZE


def share_of(size: int, parallel: ParallelContext) -> range:
    """This rank's range of `size` features. Raises ConfigError where they can't be divided."""
    if size % parallel.tp_size:
        raise ConfigError(
            f"{size} features of a layer can't be divided by tp_size={parallel.tp_size}; choose a "
            f"tp_size that divides {size}, or use pp_size or dp_size."
        )
    length = size // parallel.tp_size
    return range(parallel.tp_rank * length, (parallel.tp_rank + 1) * length)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadShare:
    """Attention heads of a rank. KV heads are repeated where there are fewer than ranks."""

    num_heads: int
    num_kv_heads: int
    query_heads: range
    kv_heads: range

    @classmethod
    def of(cls, num_heads: int, num_kv_heads: int, parallel: ParallelContext) -> "HeadShare":
        """Raises ConfigError where the heads can't be divided."""
        size, rank = parallel.tp_size, parallel.tp_rank
        if num_heads % size or (num_kv_heads % size and size % num_kv_heads):
            raise ConfigError(
                f"{num_heads} attention heads over {num_kv_heads} KV heads can't be divided by "
                f"tp_size={size}: it must divide the heads, and divide the KV heads or be a "
                "multiple of them. Choose another tp_size, or use pp_size or dp_size."
            )
        num_held = max(1, num_kv_heads // size)
        first = rank * num_kv_heads // size
        length = num_heads // size
        return cls(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            query_heads=range(rank * length, (rank + 1) * length),
            kv_heads=range(first, first + num_held),
        )

    @property
    def num_rows_grouped(self) -> int:
        """Heads in a tensor that holds, per KV head, its query heads, its key and its value."""
        return self.num_heads + 2 * self.num_kv_heads

    def grouped_runs(self) -> list[tuple[str, int, int, int]]:
        """Runs of heads in such a tensor: ("q", "k" or "v", first head among the rank's, first
        head in the tensor, number of heads)."""
        group_size = self.num_heads // self.num_kv_heads
        runs = []
        for group in self.kv_heads:
            start = group * (group_size + 2)
            first = max(self.query_heads.start, group * group_size)
            stop = min(self.query_heads.stop, (group + 1) * group_size)
            local = group - self.kv_heads.start
            runs += [
                (
                    "q",
                    first - self.query_heads.start,
                    start + first - group * group_size,
                    stop - first,
                ),
                ("k", local, start + group_size, 1),
                ("v", local, start + group_size + 1, 1),
            ]
        return runs


@dataclass(frozen=True, slots=True, kw_only=True)
class VocabularyShare:
    """The token ids of one rank. Every rank's weight has `num_rows`; the last ones may be padding.

    Shares begin at multiples of the noise's blocks, so that a rank can draw among its own tokens.
    """

    vocab_size: int
    num_rows: int
    start: int
    num_tokens: int

    @classmethod
    def of(cls, vocab_size: int, parallel: ParallelContext) -> "VocabularyShare":
        if parallel.tp_size == 1:
            return cls(vocab_size=vocab_size, num_rows=vocab_size, start=0, num_tokens=vocab_size)
        num_blocks = -(-vocab_size // BLOCK_SIZE)
        num_rows = -(-num_blocks // parallel.tp_size) * BLOCK_SIZE
        start = parallel.tp_rank * num_rows
        return cls(
            vocab_size=vocab_size,
            num_rows=num_rows,
            start=start,
            num_tokens=min(max(vocab_size - start, 0), num_rows),
        )

    def join(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """SV, contiguous, from the ranks' SL."""
        return torch.cat(parts, dim=1)[:, : self.vocab_size].contiguous()
