"""Measure a mixture of experts beside transformers, in one run: the same prompts, greedy, in turns.

    python scripts/make_bench_model.py DIR --shape moe-400m
    python scripts/bench_experts.py DIR [key=value ...] [--threads N]

Prompts have one length, so that a batch of transformers' needs no padding. Prints output tokens per
second of wall time and of CPU time, medians over the rounds, and the ratios within each round.
Further key=value words are options of the engine. Both compute in --dtype.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from transformers import AutoModelForCausalLM

from tokasaurus import LLM, SamplingParams
from tokasaurus.config.engine_config import EngineConfig

Prompts = list[list[int]]
Generate = Callable[[Prompts, int], None]


@dataclass(frozen=True, slots=True)
class Rates:
    """Output tokens per second of one batch."""

    wall: float
    cpu: float


def cpu_seconds() -> float:
    """Of this process and its children, so far."""
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def measure(generate: Generate, prompts: Prompts, num_output: int) -> Rates:
    began, cpu_began = time.perf_counter(), cpu_seconds()
    generate(prompts, num_output)
    seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu_began
    num_tokens = len(prompts) * num_output
    return Rates(num_tokens / seconds, num_tokens / cpu)


def theirs(folder: str, dtype: str) -> Generate:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    model.eval()

    @torch.inference_mode()
    def generate(prompts: Prompts, num_output: int) -> None:
        ids = torch.tensor(prompts)
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_output,
            min_new_tokens=num_output,
            do_sample=False,
            pad_token_id=0,
        )
        assert output.shape == (len(prompts), len(prompts[0]) + num_output), output.shape

    return generate


def ours(llm: LLM) -> Generate:
    def generate(prompts: Prompts, num_output: int) -> None:
        params = SamplingParams(temperature=0, max_tokens=num_output, ignore_eos=True)
        outputs = llm.generate(prompts, params, progress=False)
        assert all(len(output.token_ids) == num_output for output in outputs)

    return generate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a checkpoint")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--prompt-len", type=int, default=64)
    parser.add_argument("--num-output", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("options", nargs="*", help="key=value options of the engine")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    options = [f"dtype={args.dtype}", f"cpu_threads={args.threads}", *args.options]
    config = EngineConfig.from_args([f"model={args.model}", *options])
    transformers = theirs(args.model, args.dtype)
    with LLM(**config.to_dict()) as llm:
        engine = ours(llm)
        for batch_size in args.batch_sizes:
            rounds = []
            for number in range(args.rounds + 1):
                random = np.random.default_rng((batch_size, number))
                prompts = random.integers(300, 40000, (batch_size, args.prompt_len)).tolist()
                pair = [measure(run, prompts, args.num_output) for run in (engine, transformers)]
                rounds.append(pair)
            report(batch_size, rounds[1:])


def report(batch_size: int, rounds: list[list[Rates]]) -> None:
    """The first round, which warms up, is not among them."""
    for clock in ("wall", "cpu"):
        mine, other = ([getattr(pair[i], clock) for pair in rounds] for i in (0, 1))
        ratios = sorted(a / b for a, b in zip(mine, other, strict=True))
        print(
            f"{batch_size:4d} sequences, {clock} time: {statistics.median(mine):8.1f} output "
            f"tokens/s, transformers {statistics.median(other):8.1f}; ratio "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
