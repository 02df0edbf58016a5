"""Measure the engine on fixed offline workloads: token ids in, greedy, EOS ignored, all at once.

    python scripts/bench_offline.py --model DIR --workload W1 [--workload W2 ...] [--limits]
                                    [key=value ...]

Prints output tokens/s, prefill tokens/s, TTFT, CPU time and peak memory of the processes, the share
of time that the worker waited, and that a pipeline's last stage waited for the others; medians over
the runs. `scripts/make_bench_model.py` makes a DIR; further key=value words are options of the
engine.

--limits measures before and after each counted run, while the engine rests, what the machine could
reach at best (scripts/limit_meter.py), and prints the medians of the runs' shares of that: a
machine's speed may double within minutes, a run's share of it does not.
"""

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from limit_meter import Limit, LimitMeter, Shape
from workloads import WORKLOADS, Workload

from tokasaurus import LLM, SamplingParams
from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.launch.cpu_share import usable_cores

_STATS_SETTLE_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """One run of one workload."""

    seconds: float
    output_tokens_per_second: float
    prefill_tokens_per_second: float
    """Prompt tokens over the time to the last first token."""
    decode_tokens_per_second: float
    """Output tokens after the first over the time after the first token; 0 if there are none."""
    ttft_seconds: float
    """Median over the requests."""
    worker_wait_share: float
    """Of the worker's time, from the first step of the run to the last."""
    bubble_share: float
    """Of the time that a pipeline's last stage ran steps: waiting for the other stages."""
    cpu_seconds: float
    """Of all child processes: what to compare on a machine that does other work, too."""


def run_once(llm: LLM, workload: Workload, run: int) -> RunResult:
    prompts, num_output_tokens = workload.prompts(run), workload.num_output_tokens
    params = SamplingParams(temperature=0, max_tokens=num_output_tokens, ignore_eos=True)
    worker_before, cpu_before = worker_seconds(llm), children_cpu_seconds()
    started = time.perf_counter()
    outputs = llm.generate(prompts, params, progress=False)
    seconds = time.perf_counter() - started
    cpu_seconds = children_cpu_seconds() - cpu_before
    waited, executed, bubbles = np.subtract(worker_seconds(llm), worker_before).tolist()
    samples = [output.outputs[0] for output in outputs]
    assert all(len(sample.token_ids) == num_output_tokens for sample in samples)
    ttfts = [sample.ttft_seconds or 0.0 for sample in samples]
    num_decoded = len(prompts) * (num_output_tokens - 1)
    # The wait for the run's first step belongs to the pause before it.
    waited_within = max(0.0, min(waited, seconds - executed))
    return RunResult(
        seconds=seconds,
        output_tokens_per_second=len(prompts) * num_output_tokens / seconds,
        prefill_tokens_per_second=sum(map(len, prompts)) / max(ttfts),
        decode_tokens_per_second=num_decoded / max(seconds - min(ttfts), 1e-9),
        ttft_seconds=statistics.median(ttfts),
        worker_wait_share=waited_within / (waited_within + executed),
        bubble_share=bubbles / executed,
        cpu_seconds=cpu_seconds,
    )


def worker_seconds(llm: LLM) -> tuple[float, float, float]:
    """Seconds that the worker has waited and executed since start, and of the latter waited for
    other pipeline stages, once the engine is idle."""
    deadline = time.monotonic() + _STATS_SETTLE_SECONDS
    while time.monotonic() < deadline:
        seen = llm.stats()
        if not seen:  # nothing has run yet
            return 0.0, 0.0, 0.0
        if not seen[0].num_running and not seen[0].num_queued:
            stats = seen[0]
            return stats.worker_wait_seconds, stats.worker_execute_seconds, stats.bubble_seconds
        time.sleep(0.05)
    raise SystemExit("The engine did not come to rest after a run; look at its log.")


def children_cpu_seconds() -> float:
    """User and system time of all child processes so far."""
    times = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(t.user + t.system for t in times)


def peak_memory_mib() -> dict[str, float]:
    """High-water mark of each child's resident memory (Linux)."""
    peaks = {}
    for child in psutil.Process().children(recursive=True):
        status = Path(f"/proc/{child.pid}/status")
        if status.exists():
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            peaks[f"{child.pid} {fields['Name'].strip()}"] = int(fields["VmHWM"].split()[0]) / 1024
    return peaks


def median_result(results: list[RunResult]) -> RunResult:
    columns = [asdict(result) for result in results]
    return RunResult(
        **{name: statistics.median(column[name] for column in columns) for name in columns[0]}
    )


def print_row(workload: str, result: RunResult) -> None:
    print(
        f"{workload}: {result.output_tokens_per_second:8.1f} output tokens/s"
        f" | prefill {result.prefill_tokens_per_second:8.1f} tokens/s"
        f" | decode {result.decode_tokens_per_second:7.1f} tokens/s"
        f" | TTFT {1000 * result.ttft_seconds:7.1f} ms"
        f" | worker waited {100 * result.worker_wait_share:5.1f}%"
        f" | bubbles {100 * result.bubble_share:5.1f}%"
        f" | CPU {result.cpu_seconds:6.2f} s",
        flush=True,
    )


def make_meter(config: EngineConfig) -> LimitMeter:
    """Of the engine's model, with as many threads as its worker has."""
    if config.dp_size * config.pp_size * config.tp_size > 1:
        raise SystemExit("--limits measures one worker: leave dp_size, pp_size and tp_size at 1.")
    torch.set_num_threads(config.cpu_threads or usable_cores())
    folder = Path(config.model)
    dtype = config.dtype
    if dtype == "auto":
        dtype = json.loads((folder / "config.json").read_text())["dtype"]
    shape = Shape.read(folder)
    return LimitMeter(shape, getattr(torch, dtype), config.quantization, time.perf_counter)


def shares_of(limits: list[Limit], workload: Workload, result: RunResult) -> dict[str, float]:
    """Of what the machine could reach, by the mean of what it could before and after the run."""

    def share(reached: float, rate: str) -> float:
        return reached * statistics.mean(1 / getattr(limit, rate) for limit in limits)

    if workload.num_seqs > 1:
        return {"output": share(result.output_tokens_per_second, "output_rate")}
    shares = {"prefill": share(result.prefill_tokens_per_second, "prefill_rate")}
    if workload.num_output_tokens > 1:
        shares["decode"] = share(result.decode_tokens_per_second, "decode_rate")
    return shares


def shortened(workload: Workload) -> Workload:
    """As many sequences, few tokens: to warm up."""
    return replace(
        workload,
        num_shared=min(workload.num_shared, 64),
        num_own=min(workload.num_own, 64),
        num_output_tokens=min(workload.num_output_tokens, 8),
    )


def measure_runs(
    llm: LLM, workload: Workload, num_runs: int, meter: LimitMeter | None
) -> tuple[list[RunResult], list[dict[str, float]]]:
    """Results of the counted runs, and their shares of the limits if there is a meter."""
    run_once(llm, shortened(workload), 0)
    results, shares = [], []
    before = None if meter is None else meter.measure(workload)
    for run in range(1, num_runs + 1):
        results.append(run_once(llm, workload, run))
        if meter is not None and before is not None:
            after = meter.measure(workload)
            shares.append(shares_of([before, after], workload, results[-1]))
            before = after
    return results, shares


def print_shares(workload: str, shares: list[dict[str, float]]) -> None:
    for name in shares[0] if shares else ():
        values = sorted(run[name] for run in shares)
        print(
            f"{workload}: {name} at {statistics.median(values):6.1%} of the limit"
            f" ({values[0]:.1%} to {values[-1]:.1%} in {len(values)} runs)",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of a checkpoint")
    parser.add_argument("--workload", action="append", choices=list(WORKLOADS), help="default: all")
    parser.add_argument("--runs", type=int, default=5, help="counted runs, after one warm-up")
    parser.add_argument("--limits", action="store_true", help="shares of what the machine could do")
    parser.add_argument("--json", type=Path, help="write all runs to this file")
    parser.add_argument("options", nargs="*", help="key=value options of the engine")
    args = parser.parse_args()
    config = EngineConfig.from_args([f"model={args.model}", *args.options])
    meter = make_meter(config) if args.limits else None
    results: dict[str, list[RunResult]] = {}
    shares: dict[str, list[dict[str, float]]] = {}
    with LLM(**config.to_dict()) as llm:
        for name in args.workload or list(WORKLOADS):
            results[name], shares[name] = measure_runs(llm, WORKLOADS[name], args.runs, meter)
            print_row(name, median_result(results[name]))
            print_shares(name, shares[name])
        memory = peak_memory_mib()
    for process, peak in memory.items():
        print(f"peak memory of {process}: {peak:.0f} MiB")
    if args.json:
        rows = {name: [asdict(result) for result in runs] for name, runs in results.items()}
        document = {
            "options": config.to_dict(),
            "runs": rows,
            "shares": shares,
            "peak_memory_mib": memory,
        }
        args.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
