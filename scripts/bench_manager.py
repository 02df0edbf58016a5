"""Measures the manager alone: its real loop against a worker that returns at once (no model).

Steps: taking in the output, scheduling, building and encoding the messages, in CPU time of one
core. Steady state means that nobody ends; churn, that sequences end after `--churn-tokens` tokens
on average and are replaced from the queue, with the prefill of their prompts in the same steps.

Onboarding: giving 1,000 queued sequences their seats while 1,024 decode. Simulation: the future of
4,096 running sequences, each of which may take 10,000 more steps.
"""

import argparse
import gc
import statistics
import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from tokasaurus.ipc.channels import MemoryChannel
from tokasaurus.ipc.messages.to_manager import (
    GenerateRequest,
    RunnerCapabilities,
    ServerHello,
    StepOutput,
    TokenSampling,
    ToManager,
    WorkerReady,
)
from tokasaurus.ipc.messages.to_server import ToServer
from tokasaurus.ipc.messages.to_worker import StepInput, ToWorker
from tokasaurus.manager.block_usage import peak_usage
from tokasaurus.manager.loop import Manager
from tokasaurus.manager.process import GC_THRESHOLD
from tokasaurus.manager.settings import ManagerSettings
from tokasaurus.manager.simulated_admission import SimulateFuture
from tokasaurus.manager.stopping_predictor import StoppingPredictor

PAGE_SIZE = 16
VOCAB_SIZE = 32_000
EOS = 2
PREFILL_TOKENS = 16_384
NUM_RUNNING = 1024
NUM_ONBOARDED = 1000
ONBOARDED_MAX_TOKENS = 1000
SIMULATED_PROMPT_TOKENS = 256


@dataclass
class Result:
    """Milliseconds and bytes of decode steps."""

    median_ms: float
    mean_ms: float
    p99_ms: float
    bytes_per_step: float


class Bench:
    """A manager with `batch_size` seats and channels that encode and decode every message."""

    def __init__(self, batch_size: int, context: int, max_new_tokens: int) -> None:
        num_blocks = batch_size * (-(-(context + max_new_tokens) // PAGE_SIZE) + 1)
        self.batch_size = batch_size
        self.context = context
        self.inbox: MemoryChannel[ToManager] = MemoryChannel(ToManager)
        self.to_worker: MemoryChannel[StepInput] = MemoryChannel(ToWorker)
        self.to_server: MemoryChannel[ToServer] = MemoryChannel(ToServer)
        self.manager = Manager(
            ManagerSettings(
                page_size=PAGE_SIZE,
                max_tokens_per_forward=batch_size + PREFILL_TOKENS,
                max_seqs_per_forward=batch_size,
            ),
            WorkerReady(
                rank=0,
                capabilities=RunnerCapabilities(),
                num_blocks=num_blocks,
                max_model_len=context + max_new_tokens,
                vocab_size=VOCAB_SIZE,
                description="instant",
            ),
            self.inbox,
            [self.to_worker],
            lambda _address: self.to_server,
        )
        self.inbox.send(ServerHello(0, "server"))
        self._rng = np.random.default_rng(0)
        self._held: deque[StepInput] = deque()
        self._num_requests = 0
        self._num_decodes = 0

    def submit(self, prompt_ids: np.ndarray, max_tokens: int) -> None:
        self.manager.engine.submit(
            GenerateRequest(
                request_id=self._num_requests,
                prompt_ids=prompt_ids,
                sampling=TokenSampling(),
                max_tokens=max_tokens,
                stop_token_ids=(EOS,),
            )
        )
        self._num_requests += 1

    def fill(self, num_queued: int, max_tokens: list[int]) -> None:
        """Seats for everybody, and `num_queued` behind them."""
        for index in range(self.batch_size):
            prompt_ids = self._rng.integers(3, VOCAB_SIZE, self.context, np.int32)
            self.submit(prompt_ids, max_tokens[index % len(max_tokens)])
        waiting = self._rng.integers(3, VOCAB_SIZE, (64, self.context), np.int32)
        for index in range(num_queued):
            self.submit(waiting[index % 64], max_tokens[index % len(max_tokens)])
        for _ in range(self.batch_size * self.context // PREFILL_TOKENS + 8):
            self.tick()

    def measure(self, num_steps: int) -> Result:
        for _ in range(20):
            self.tick()
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        start_bytes = self.to_worker.num_bytes
        times = [self.tick() for _ in range(num_steps)]
        return Result(
            median_ms=statistics.median(times),
            mean_ms=statistics.fmean(times),
            p99_ms=float(np.percentile(times, 99)),
            bytes_per_step=(self.to_worker.num_bytes - start_bytes) / num_steps,
        )

    def tick(self) -> float:
        """One loop iteration of the manager; the worker answers one step. Milliseconds."""
        start = time.thread_time()
        self.manager.tick()
        elapsed = time.thread_time() - start
        self.to_server.drain()
        self._held.extend(self.to_worker.drain())
        self.inbox.send(self._execute(self._held.popleft()))
        return elapsed * 1e3

    def _execute(self, step: StepInput) -> StepOutput:
        if step.decode_slots is not None:
            self._num_decodes = step.decode_slots.size
        num_rows = self._num_decodes + int(step.prefill_samples.sum())
        return StepOutput(
            step_id=step.step_id,
            token_ids=self._rng.integers(3, VOCAB_SIZE, num_rows, np.int32),
        )


def measure_onboarding(*, are_samples: bool, num_tokens: int, num_runs: int) -> float:
    """Median milliseconds in which `NUM_ONBOARDED` queued sequences get their seats.

    They are samples of one prompt, or have prompts that share nothing.
    """
    times = []
    for run in range(num_runs):
        bench = Bench(NUM_RUNNING + NUM_ONBOARDED, num_tokens, ONBOARDED_MAX_TOKENS)
        rng = np.random.default_rng(run)
        for index in range(NUM_RUNNING):
            bench.submit(rng.integers(3, VOCAB_SIZE, num_tokens, np.int32), 200 + index % 800)
        for _ in range(NUM_RUNNING * num_tokens // PREFILL_TOKENS + 100):
            bench.tick()
        prompts = rng.integers(3, VOCAB_SIZE, (NUM_ONBOARDED, num_tokens), np.int32)
        for index in range(NUM_ONBOARDED):
            bench.submit(prompts[0 if are_samples else index].copy(), ONBOARDED_MAX_TOKENS)
        gc.collect()
        engine = bench.manager.engine
        num_queued = len(engine.queue)
        start = time.thread_time()
        engine.onboard()
        times.append(1e3 * (time.thread_time() - start))
        assert num_queued - len(engine.queue) == NUM_ONBOARDED
    return statistics.median(times)


def measure_simulation(num_running: int, num_steps: int, num_runs: int) -> tuple[float, float]:
    """Median milliseconds to build a forecast of all running sequences, and to find its peak."""
    bench = Bench(num_running, SIMULATED_PROMPT_TOKENS, num_steps)
    rng = np.random.default_rng(0)
    for _ in range(num_running):
        prompt_ids = rng.integers(3, VOCAB_SIZE, SIMULATED_PROMPT_TOKENS, np.int32)
        bench.submit(prompt_ids, int(rng.integers(num_steps // 2, num_steps)))
    for _ in range(num_running * SIMULATED_PROMPT_TOKENS // PREFILL_TOKENS + 50):
        bench.tick()
    engine = bench.manager.engine
    policy = SimulateFuture(engine.settings, StoppingPredictor())
    for index in range(2000):
        sequence = engine.running.slots.sequences[index % num_running]
        assert sequence is not None
        policy.observe(sequence, int(rng.integers(1, num_steps)), is_stop=True)
    build, peak = [], []
    for _ in range(num_runs):
        start = time.thread_time()
        forecast = policy.forecast(engine.running)
        middle = time.thread_time()
        peak_usage(forecast.loads, PAGE_SIZE)
        build.append(1e3 * (middle - start))
        peak.append(1e3 * (time.thread_time() - middle))
    return statistics.median(build), statistics.median(peak)


def print_decisions() -> None:
    """What onboarding and looking ahead cost."""
    print(f"\nonboarding {NUM_ONBOARDED} queued sequences while {NUM_RUNNING} decode")
    for are_samples, num_tokens in ((True, 2048), (True, 512), (False, 64), (False, 512)):
        milliseconds = measure_onboarding(
            are_samples=are_samples, num_tokens=num_tokens, num_runs=5
        )
        name = "samples of one prompt" if are_samples else "different prompts"
        print(f"  {name}, {num_tokens} tokens: {milliseconds:.1f} ms", flush=True)
    build, peak = measure_simulation(4096, 10_000, num_runs=15)
    print(
        f"simulating 4096 sequences, 10000 steps: {build:.1f} ms to build, {peak:.1f} for the peak"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 256, 1024, 4096, 8192])
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--num-queued", type=int, default=50_000)
    parser.add_argument("--num-steps", type=int, default=300)
    parser.add_argument("--churn-tokens", type=int, default=256)
    parser.add_argument("--no-decisions", action="store_true", help="skip onboarding and forecasts")
    args = parser.parse_args()
    print(f"context {args.context}, {args.num_queued} queued, {args.num_steps} steps")
    print("| B | case | median ms | mean ms | p99 ms | bytes/step | bytes/seq |")
    print("|---|---|---|---|---|---|---|")
    for batch_size in args.batch_sizes:
        num_prefill_steps = batch_size * args.context // PREFILL_TOKENS
        steady = [args.num_steps + num_prefill_steps + 64]
        churn = list(range(1, 2 * args.churn_tokens))
        np.random.default_rng(1).shuffle(churn)
        for case, max_tokens in (("steady", steady), ("churn", churn)):
            bench = Bench(batch_size, args.context, max(max_tokens))
            bench.fill(args.num_queued, max_tokens)
            result = bench.measure(args.num_steps)
            gc.unfreeze()
            print(
                f"| {batch_size} | {case} | {result.median_ms:.3f} | {result.mean_ms:.3f} "
                f"| {result.p99_ms:.3f} | {result.bytes_per_step:.0f} "
                f"| {result.bytes_per_step / batch_size:.1f} |",
                flush=True,
            )
    if not args.no_decisions:
        print_decisions()


if __name__ == "__main__":
    main()
