"""Measures the manager alone: its real loop against a worker that returns at once (no model).

Per step: taking in the output, scheduling, building and encoding the messages, in CPU time of one
core. Steady state means that nobody ends; churn, that sequences end after `--churn-tokens` tokens
on average and are replaced from the queue, with the prefill of their prompts in the same steps.
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
from tokasaurus.manager.loop import Manager
from tokasaurus.manager.process import GC_THRESHOLD
from tokasaurus.manager.settings import ManagerSettings

PAGE_SIZE = 16
VOCAB_SIZE = 32_000
EOS = 2
PREFILL_TOKENS = 16_384


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
            self._tick()

    def measure(self, num_steps: int) -> Result:
        for _ in range(20):
            self._tick()
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        start_bytes = self.to_worker.num_bytes
        times = [self._tick() for _ in range(num_steps)]
        return Result(
            median_ms=statistics.median(times),
            mean_ms=statistics.fmean(times),
            p99_ms=float(np.percentile(times, 99)),
            bytes_per_step=(self.to_worker.num_bytes - start_bytes) / num_steps,
        )

    def _tick(self) -> float:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 256, 1024, 4096, 8192])
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--num-queued", type=int, default=50_000)
    parser.add_argument("--num-steps", type=int, default=300)
    parser.add_argument("--churn-tokens", type=int, default=256)
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


if __name__ == "__main__":
    main()
