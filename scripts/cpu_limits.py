"""What this machine's CPU could reach at best on the offline workloads, measured in one run.

    python scripts/cpu_limits.py MODEL_DIR [--threads N] [--dtype bfloat16] [--cpu-time]

Measures every way to run the model's linear layers at several batch sizes, and prints the limits
(scripts/limit_meter.py) that the fastest of each make of the workloads (scripts/workloads.py).
Beside the limit with weights in --dtype stands the one with our int8 layers, attention staying in
--dtype. `scripts/bench_offline.py --limits` measures limit and engine in turns.

--cpu-time counts the process's CPU time instead of the clock's, on one thread: for ratios on a
machine that does other work at the same time.
"""

import argparse
import time
from pathlib import Path

import torch
from limit_meter import (
    MATRIX_ROWS,
    QUANTIZATIONS,
    Clock,
    LinearPass,
    Machine,
    MemoryReader,
    Pack,
    Shape,
    limit_of,
    mean_seconds,
    plain_ways,
    quantized_ways,
)
from workloads import WORKLOADS

BATCH_SIZES = (1, 4, 16, 64, 128, 256, MATRIX_ROWS)


def pass_table(
    shape: Shape, dtype: torch.dtype, ways: dict[str, Pack], clock: Clock
) -> dict[str, dict[int, float]]:
    """Seconds per way and batch size. The weights of one way at a time are in memory, so that ways
    don't take turns: `bench_offline.py --limits` is for comparing."""
    table = {}
    for name, pack in ways.items():
        layers = LinearPass(shape, dtype, pack)
        table[name] = {m: mean_seconds([layers.with_rows(m)], clock, 1.5)[0] for m in BATCH_SIZES}
    return table


def print_pass_table(table: dict[str, dict[int, float]]) -> None:
    print(f"{'linear layers, ms':18s}" + "".join(f"{f'M={m}':>10s}" for m in BATCH_SIZES))
    for name, row in table.items():
        print(f"{name:18s}" + "".join(f"{1000 * row[m]:10.1f}" for m in BATCH_SIZES))


def print_limits(
    shape: Shape, table: dict[str, dict[int, float]], bandwidth: float, element_size: int
) -> None:
    """With the weights as they are, and with our int8 layers."""
    plain_rows = [row for name, row in table.items() if name not in QUANTIZATIONS]
    best = {m: min(row[m] for row in plain_rows) for m in BATCH_SIZES}
    rate = 2.0 * shape.parameters * MATRIX_ROWS / best[MATRIX_ROWS]
    streamed = shape.parameters * element_size / best[1]
    print(f"matrix rate {rate / 1e9:.1f} GFLOP/s; weights at M=1 stream {streamed / 1e9:.1f} GB/s")
    kinds = {"limit": (best, element_size)}
    if "int8" in table:
        kinds["int8 limit"] = (table["int8"], 1)
    for kind, (seconds, weight_size) in kinds.items():
        machine = Machine(
            pass_seconds=seconds.__getitem__,
            weight_bytes=shape.parameters * weight_size,
            bandwidth=max(bandwidth, streamed),
            attention_rate=rate,
            element_size=element_size,
        )
        for name, workload in WORKLOADS.items():
            limit = limit_of(workload, shape, machine)
            print(
                f"{kind} {name}: {limit.output_rate:8.1f} output tokens/s"
                f" | prefill {limit.prefill_rate:8.1f} tokens/s"
                f" | decode {limit.decode_rate:8.1f} tokens/s"
                f" | last TTFT {1000 * limit.ttft_seconds:7.1f} ms"
            )


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
    bandwidth = MemoryReader().bandwidth(clock)
    print(f"memory read {bandwidth / 1e9:.1f} GB/s")
    table = pass_table(shape, dtype, plain_ways(dtype) | quantized_ways(), clock)
    print_pass_table(table)
    print_limits(shape, table, bandwidth, dtype.itemsize)


if __name__ == "__main__":
    main()
