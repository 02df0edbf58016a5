"""What this machine's CPU could reach at best on the offline workloads, measured in one run.

    python scripts/cpu_limits.py MODEL_DIR [--threads N] [--dtype bfloat16] [--cpu-time]

Measures the model's own linear layers (all of one forward pass, each with its own weights) at
several batch sizes, in every way that is available here, takes the fastest of each, and adds what
attention must cost at the measured memory bandwidth and matrix rate. Nothing else is counted: no
norms, no sampling, no scheduling. The workloads are those of scripts/workloads.py. Beside the limit
with weights in --dtype stands the one with our int8 layers, attention staying in --dtype.

--cpu-time counts the process's CPU time instead of the clock's, on one thread: for ratios on a
machine that does other work at the same time.

Shapes: M rows, K input features, N output features.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from tokasaurus.model.kernels.linear import PackedLinear
from tokasaurus.model.kernels.loader import kernels_available, load_kernels
from tokasaurus.model.quantization.scheme import quantization_scheme

BATCH_SIZES = (1, 4, 16, 64, 128, 512)
QUANTIZATIONS = ("int8", "int8_weight_only", "int4_weight_only")
Linear = Callable[[torch.Tensor], torch.Tensor]
Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The numbers of config.json that cost depends on."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    @classmethod
    def read(cls, folder: Path) -> "Shape":
        config = json.loads((folder / "config.json").read_text())
        heads = config["num_attention_heads"]
        return cls(
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            vocab=config["vocab_size"],
        )

    @property
    def layer_weights(self) -> list[tuple[int, int]]:
        """(N, K) of one layer's fused projections."""
        q = self.heads * self.head_dim
        return [
            (q + 2 * self.kv_heads * self.head_dim, self.hidden),
            (self.hidden, q),
            (2 * self.intermediate, self.hidden),
            (self.hidden, self.intermediate),
        ]

    @property
    def layer_parameters(self) -> int:
        return self.layers * sum(n * k for n, k in self.layer_weights)

    @property
    def parameters(self) -> int:
        return self.layer_parameters + self.vocab * self.hidden

    def attention_flops(self, num_pairs: float) -> float:
        """Of all layers, for that many pairs of a query and a key."""
        return 4.0 * self.layers * self.heads * self.head_dim * num_pairs

    def kv_bytes(self, num_tokens: float, element_size: int) -> float:
        return 2.0 * self.layers * self.kv_heads * self.head_dim * num_tokens * element_size


def median_seconds(run: Callable[[], object], clock: Clock, budget_seconds: float = 1.5) -> float:
    """Median of three runs or more, after one that does not count."""
    run()
    times: list[float] = []
    started = clock()
    while len(times) < 3 or (clock() - started < budget_seconds and len(times) < 25):
        before = clock()
        run()
        times.append(clock() - before)
    return statistics.median(times)


def plain(weight: torch.Tensor) -> Linear:
    return lambda x: F.linear(x, weight)


def packed_by_onednn(weight: torch.Tensor) -> Linear:
    reordered = torch.ops.mkldnn._reorder_linear_weight(weight.to_mkldnn())
    none: list[float] = []
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, reordered, None, "none", none, "")


def packed_by_us(weight: torch.Tensor) -> Linear:
    return PackedLinear(load_kernels(), weight, None)


def quantized_by_us(quantization: str, weight: torch.Tensor) -> Linear:
    weight_format = quantization_scheme(quantization, None).layers
    return PackedLinear(load_kernels(), weight, None, weight_format=weight_format)


def ways(dtype: torch.dtype) -> dict[str, Callable[[torch.Tensor], Linear]]:
    found: dict[str, Callable[[torch.Tensor], Linear]] = {}
    if dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        # Elsewhere torch computes in bfloat16 twenty times slower than in float32.
        found |= {"F.linear": plain, "packed oneDNN": packed_by_onednn}
    if kernels_available():
        found["our kernels"] = packed_by_us
        found |= {name: partial(quantized_by_us, name) for name in QUANTIZATIONS}
    return found or {"F.linear": plain}


def pass_seconds(
    shape: Shape, dtype: torch.dtype, pack: Callable[[torch.Tensor], Linear], clock: Clock
) -> dict[int, float]:
    """Seconds of all linear layers of one forward pass, the head on all rows, per batch size."""
    sizes = [*(shape.layer_weights * shape.layers), (shape.vocab, shape.hidden)]
    layers = [(pack(torch.randn(n, k).mul_(0.02).to(dtype)), k) for n, k in sizes]
    results = {}
    for batch_size in BATCH_SIZES:
        inputs = {k: torch.randn(batch_size, k).to(dtype) for _, k in sizes}

        def forward(inputs: dict[int, torch.Tensor] = inputs) -> None:
            for layer, k in layers:
                layer(inputs[k])

        before = clock()
        forward()
        if clock() - before > 10:  # twenty times too slow: not worth a measurement
            break
        results[batch_size] = median_seconds(forward, clock)
    return results


def read_bandwidth(clock: Clock) -> float:
    """Bytes per second of reading memory."""
    data = torch.ones(1 << 26)
    return data.numel() * 4 / median_seconds(data.sum, clock)


def print_pass_table(table: dict[str, dict[int, float]]) -> None:
    print(f"{'linear layers, ms':18s}" + "".join(f"{f'M={m}':>10s}" for m in BATCH_SIZES))
    for name, row in table.items():
        cells = [f"{1000 * row[m]:10.1f}" if m in row else f"{'-':>10s}" for m in BATCH_SIZES]
        print(f"{name:18s}" + "".join(cells))


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What was measured."""

    bandwidth: float
    """bytes/s"""
    attention_rate: float
    """FLOP/s of products in the activations' type"""
    element_size: int
    """bytes of the KV cache's elements"""


def limits(
    shape: Shape, best: dict[int, float], weight_bytes: int, machine: Machine
) -> dict[str, str]:
    """What each workload could reach with linear layers that take `best` seconds."""

    def prefill(num_tokens: int, num_pairs: float) -> float:
        linear = num_tokens * best[512] / 512 * shape.layer_parameters / shape.parameters
        return linear + shape.attention_flops(num_pairs) / machine.attention_rate

    def kv_seconds(num_tokens: float) -> float:
        return shape.kv_bytes(num_tokens, machine.element_size) / machine.bandwidth

    w1 = prefill(64 * 128, 64 * 128**2 / 2) + 127 * (best[64] + kv_seconds(64 * 192))
    one_pass = min(best[1], weight_bytes / machine.bandwidth)
    w2_step = one_pass + kv_seconds(192)
    w2_first = prefill(128, 128**2 / 2)
    prefix = shape.attention_flops(64 * 1024) / machine.attention_rate
    w3_prefill = prefill(1024 + 64 * 16, 1024**2 / 2 + 64 * 16 * 1032)
    w3 = w3_prefill + 31 * (best[64] + prefix + kv_seconds(64 * 32))
    w4 = prefill(4096, 4096**2 / 2)
    return {
        "W1": f"{64 * 128 / w1:8.1f} output tokens/s",
        "W2": f"{1 / w2_step:8.1f} decode tokens/s, TTFT {1000 * w2_first:.1f} ms",
        "W3": f"{64 * 32 / w3:8.1f} output tokens/s",
        "W4": f"{4096 / w4:8.1f} prefill tokens/s",
    }


def print_limits(
    shape: Shape, table: dict[str, dict[int, float]], bandwidth: float, element_size: int
) -> None:
    """With the weights as they are, and with our int8 layers."""
    plain_rows = [row for name, row in table.items() if name not in QUANTIZATIONS]
    best = {m: min(row[m] for row in plain_rows if m in row) for m in BATCH_SIZES}
    rate = 2.0 * shape.parameters * 512 / best[512]
    streamed = shape.parameters * element_size / best[1]
    print(f"matrix rate {rate / 1e9:.1f} GFLOP/s; weights at M=1 stream {streamed / 1e9:.1f} GB/s")
    machine = Machine(
        bandwidth=max(bandwidth, streamed), attention_rate=rate, element_size=element_size
    )
    found = {"limit": limits(shape, best, shape.parameters * element_size, machine)}
    if "int8" in table:
        found["int8 limit"] = limits(shape, table["int8"], shape.parameters, machine)
    for name, workloads in found.items():
        for workload, limit in workloads.items():
            print(f"{name} {workload}: {limit}")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of a checkpoint; only its config is read")
    parser.add_argument("--threads", type=int, help="default: what torch takes")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--cpu-time", action="store_true", help="for a machine that is not idle")
    args = parser.parse_args()
    if args.cpu_time:
        torch.set_num_threads(1)
    elif args.threads:
        torch.set_num_threads(args.threads)
    clock = time.process_time if args.cpu_time else time.perf_counter
    shape = Shape.read(args.model)
    dtype = getattr(torch, args.dtype)
    print(f"{shape.parameters / 1e6:.1f} M parameters, {args.dtype}, ", end="")
    print(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    bandwidth = read_bandwidth(clock)
    print(f"memory read {bandwidth / 1e9:.1f} GB/s")
    table = {name: pass_seconds(shape, dtype, pack, clock) for name, pack in ways(dtype).items()}
    print_pass_table(table)
    print_limits(shape, table, bandwidth, dtype.itemsize)


if __name__ == "__main__":
    main()
