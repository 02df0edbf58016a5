"""The offline workloads that engines are compared on: token ids in, greedy, EOS ignored.

Everything is submitted at once. Each function takes the run's number (so that runs don't hit each
other's cached prefixes) and returns (prompts, num_output_tokens).
"""

import random
from collections.abc import Callable

Workload = tuple[list[list[int]], int]


def _random_ids(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(300, 46000) for _ in range(length)]


def w1_throughput(run: int) -> Workload:
    """64 prompts of 128 tokens, 128 output tokens each."""
    return [_random_ids(128, run * 1000 + i) for i in range(64)], 128


def w2_single_stream(run: int) -> Workload:
    """One prompt of 128 tokens, 128 output tokens."""
    return [_random_ids(128, 500_000 + run)], 128


def w3_shared_prefix(run: int) -> Workload:
    """64 prompts share 1024 tokens and have 16 of their own, 32 output tokens each; the prefix is
    new in every run."""
    prefix = _random_ids(1024, 700_000 + run)
    return [prefix + _random_ids(16, 800_000 + run * 1000 + i) for i in range(64)], 32


def w4_long_prefill(run: int) -> Workload:
    """One prompt of 4096 tokens, one output token."""
    return [_random_ids(4096, 900_000 + run)], 1


WORKLOADS: dict[str, Callable[[int], Workload]] = {
    "W1": w1_throughput,
    "W2": w2_single_stream,
    "W3": w3_shared_prefix,
    "W4": w4_long_prefill,
}
