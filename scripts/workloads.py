"""The offline workloads that engines are compared on: token ids in, greedy, EOS ignored.

Everything is submitted at once. Each run of each workload has prompts of its own, so that they
don't hit each other's cached prefixes.
"""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Sequences of one size."""

    num_seqs: int
    num_shared: int = 0
    """Tokens that all prompts of a run begin with."""
    num_own: int
    """Tokens of a prompt after the shared ones."""
    num_output_tokens: int

    def prompts(self, run: int) -> list[list[int]]:
        shared = _random_ids(self.num_shared, f"{self} {run} shared")
        return [
            shared + _random_ids(self.num_own, f"{self} {run} {i}") for i in range(self.num_seqs)
        ]


def _random_ids(length: int, seed: str) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(300, 46000) for _ in range(length)]


WORKLOADS = {
    "W1": Workload(num_seqs=64, num_own=128, num_output_tokens=128),
    "W2": Workload(num_seqs=1, num_own=128, num_output_tokens=128),
    "W3": Workload(num_seqs=64, num_shared=1024, num_own=16, num_output_tokens=32),
    "W4": Workload(num_seqs=1, num_own=4096, num_output_tokens=1),
    "W5": Workload(num_seqs=256, num_own=32, num_output_tokens=32),
    "W6": Workload(num_seqs=1, num_own=8064, num_output_tokens=64),
}
"""Throughput, a single stream, a shared prefix, a long prompt; then what should cost no more per
token: many sequences, a long context."""
