"""What drawing tokens costs beside the forward pass that made the logits.

    python scripts/bench_sampling.py [--vocab 151936] [--rows 64] [--rounds 7] [--wall]

Each way of sampling is timed with the CPU kernels and with plain torch, and so are the linear
layers of one forward pass (Qwen3-0.6B's shapes and the given vocabulary, packed, bfloat16, the head
included). All of them alternate, round by round, so that whatever else the machine does hits all
alike. Columns are medians of the process's CPU time on one thread (--wall: of the clock, with all
threads).
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from tokasaurus.model.kernels.linear import PackedLinear
from tokasaurus.model.kernels.loader import load_kernels
from tokasaurus.model.kernels.sampling import KernelOperations
from tokasaurus.model.sampling.adjustments import AdjustedRows, Adjustment
from tokasaurus.model.sampling.operations import TORCH_OPERATIONS, SamplingOperations
from tokasaurus.model.sampling.sampler import SamplingBatch, sample
from tokasaurus.model.sampling.token_history import TokenHistory

HIDDEN, INTERMEDIATE, NUM_LAYERS = 1024, 3072, 28
LAYER_WEIGHTS = ((4096, HIDDEN), (HIDDEN, 2048), (2 * INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE))
"""(N, K) of Qwen3-0.6B's fused projections"""
NUM_HISTORY_TOKENS = 256

WAYS: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0},
    "greedy, 5 log-probabilities": {"temperature": 0.0, "num_top_logprobs": 5},
    "temperature 1": {},
    "temperature 2": {"temperature": 2.0},
    "top-k 50": {"top_k": 50},
    "top-k 1000": {"top_k": 1000},
    "top-p 0.9": {"top_p": 0.9},
    "top-p 0.99, temperature 2": {"top_p": 0.99, "temperature": 2.0},
    "min-p 0.05": {"min_p": 0.05},
    "top-k 50, top-p 0.9, min-p 0.05": {"top_k": 50, "top_p": 0.9, "min_p": 0.05},
    "penalties": {"penalty": 0.5},
    "all of it": {
        "top_k": 50,
        "top_p": 0.9,
        "min_p": 0.05,
        "num_top_logprobs": 5,
        "penalty": 0.5,
    },
}


def make_logits(num_rows: int, vocab_size: int) -> torch.Tensor:
    """Like a language model's: most tokens far below a few likely ones."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(num_rows, vocab_size, generator=generator) * 2.5
    likely = torch.randint(vocab_size, (num_rows, 40), generator=generator)
    bonus = torch.linspace(14, 4, 40).expand(num_rows, -1)
    return logits.scatter_add_(1, likely, bonus).contiguous()


def make_batch(num_rows: int, vocab_size: int, way: dict[str, float]) -> SamplingBatch:
    def column(name: str, default: float, dtype: type) -> np.ndarray:
        return np.full(num_rows, way.get(name, default), dtype)

    adjusted = None
    if "penalty" in way:
        history = TokenHistory(torch.device("cpu"), vocab_size)
        ids = np.random.default_rng(0).integers(0, vocab_size, (num_rows, NUM_HISTORY_TOKENS))
        seats = [history.add(row[:0], row, 0) for row in ids]
        adjustments = [Adjustment(frequency_penalty=way["penalty"], seat=seat) for seat in seats]
        rows = np.arange(num_rows)
        adjusted = AdjustedRows(rows=rows, adjustments=adjustments, history=history)
    return SamplingBatch(
        temperature=column("temperature", 1.0, np.float32),
        top_k=column("top_k", 0, np.int32),
        top_p=column("top_p", 1.0, np.float32),
        min_p=column("min_p", 0.0, np.float32),
        seeds=np.arange(num_rows, dtype=np.int64),
        positions=np.full(num_rows, 300, np.int64),
        num_top_logprobs=column("num_top_logprobs", -1, np.int32),
        banned_rows=np.empty(0, np.int64),
        banned_ids=np.empty(0, np.int64),
        adjusted=adjusted,
    )


def linear_layers(num_rows: int, vocab_size: int) -> Callable[[], None]:
    """One forward pass's linear layers, each with its own weights."""
    kernels = load_kernels()
    shapes = LAYER_WEIGHTS * NUM_LAYERS
    weights = [torch.randn(n, k).mul_(0.02).bfloat16() for n, k in (*shapes, (vocab_size, HIDDEN))]
    layers = [
        PackedLinear(kernels, weight, None, float_output=i == len(shapes))
        for i, weight in enumerate(weights)
    ]
    inputs = {k: torch.randn(num_rows, k).bfloat16() for k in (HIDDEN, 2048, INTERMEDIATE)}

    def run() -> None:
        for layer in layers:
            layer(inputs[layer.in_features])

    return run


def sampling(
    logits: torch.Tensor, batch: SamplingBatch, ops: SamplingOperations
) -> Callable[[], None]:
    def run() -> None:
        sample(logits, batch, ops)

    return run


def medians(
    tasks: dict[str, Callable[[], None]], rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Seconds per task: a round runs each of them once, quick ones several times."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(rounds + 1):
        for name, run in tasks.items():
            repeats, started = 0, clock()
            while repeats == 0 or (clock() - started < 0.02 and repeats < 20):
                run()
                repeats += 1
            if number:  # the first round warms up
                times[name].append((clock() - started) / repeats)
    return {name: statistics.median(some) for name, some in times.items()}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--wall", action="store_true", help="wall time with all threads")
    args = parser.parse_args()
    if not args.wall:
        torch.set_num_threads(1)
    clock = time.perf_counter if args.wall else time.process_time
    logits = make_logits(args.rows, args.vocab)
    kernel_operations = KernelOperations(load_kernels())
    tasks: dict[str, Callable[[], None]] = {"forward": linear_layers(args.rows, args.vocab)}
    for name, way in WAYS.items():
        # Penalties change the logits in place; what is left after many rounds is still a row.
        own = logits.clone() if "penalty" in way else logits
        batch = make_batch(args.rows, args.vocab, way)
        tasks[f"kernels {name}"] = sampling(own, batch, kernel_operations)
        tasks[f"torch {name}"] = sampling(own, batch, TORCH_OPERATIONS)
    found = medians(tasks, args.rounds, clock)
    forward = found["forward"]
    print(f"{args.rows} rows x {args.vocab}, {torch.get_num_threads()} threads")
    print(f"linear layers of a forward pass: {1000 * forward:.1f} ms")
    print(f"{'':32s}{'kernels, ms':>12s}{'of a pass':>11s}{'torch, ms':>12s}{'of a pass':>11s}")
    for name in WAYS:
        cells = "".join(
            f"{1000 * found[f'{kind} {name}']:12.2f}{found[f'{kind} {name}'] / forward:11.1%}"
            for kind in ("kernels", "torch")
        )
        print(f"{name:32s}{cells}")


if __name__ == "__main__":
    main()
