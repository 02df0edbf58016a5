"""Measures the manager alone: its real loop against a worker that returns at once (no model).

Steps: taking in the output, scheduling, building and encoding the messages. Steady state means
that nobody ends; churn, that sequences end after `--churn-tokens` tokens on average and are
replaced from the queue, with the prefill of their prompts in the same steps. Leases are steady
state with a worker that decodes several times before it answers: times and bytes are a lease's.

Onboarding: giving 1,000 queued sequences their seats while 1,024 decode. Forecast: the future of
4,096 running sequences, each of which may take 10,000 more steps, and the peak of its block usage.

Times are CPU time of one core. Machines change their speed, so all cases are measured in every one
of several rounds, each beside a fixed piece of Python and numpy. Told are the median of the rounds'
medians, the least of all, and the median of the rounds' ratios to that piece: compare the ratios.
"""

import argparse
import gc
import statistics
import time
from collections import deque
from dataclasses import dataclass
from typing import Literal, get_args

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
from tokasaurus.manager.block_owners import BlockOwners
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
WARM_UP_STEPS = 10
MAX_PASSES = ManagerSettings().max_decode_repeats
LEASES_SHARE = 4
"""One lease is measured for so many steps: it takes the cache for `MAX_PASSES` of them."""


class Bench:
    """A manager with `batch_size` seats and channels that encode and decode every message."""

    def __init__(
        self, batch_size: int, context: int, max_new_tokens: int, *, repeats: bool = False
    ) -> None:
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
                capabilities=RunnerCapabilities(repeats=repeats),
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

    def submit(self, prompt_ids: np.ndarray, max_tokens: int) -> int:
        """The request's id."""
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
        return self._num_requests - 1

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

    def tick(self) -> float:
        """One loop iteration of the manager; the worker answers one step, with all the passes of a
        lease. Milliseconds."""
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
        shape = num_rows if step.max_passes == 1 else (step.max_passes, num_rows)
        return StepOutput(
            step_id=step.step_id, token_ids=self._rng.integers(3, VOCAB_SIZE, shape, np.int32)
        )


StepKind = Literal["steady", "churn", "leases"]


class Steps:
    """Decode steps of a full batch."""

    def __init__(self, batch_size: int, options: argparse.Namespace, kind: StepKind) -> None:
        self.name = f"{kind}, B={batch_size}"
        self.bytes_per_step = 0.0
        passes = MAX_PASSES if kind == "leases" else 1
        self._num_steps = -(-options.num_steps // LEASES_SHARE) if passes > 1 else options.num_steps
        num_prefill_steps = batch_size * options.context // PREFILL_TOKENS
        num_measured = options.rounds * (self._num_steps + WARM_UP_STEPS)
        if kind == "churn":
            max_tokens = list(range(1, 2 * options.churn_tokens))
            np.random.default_rng(1).shuffle(max_tokens)
        else:
            max_tokens = [(num_measured + num_prefill_steps + 64) * passes]
        self._bench = Bench(batch_size, options.context, max(max_tokens), repeats=passes > 1)
        self._bench.fill(options.num_queued, max_tokens)

    def measure(self) -> list[float]:
        bench = self._bench
        for _ in range(WARM_UP_STEPS):
            bench.tick()
        start_bytes = bench.to_worker.num_bytes
        times = [bench.tick() for _ in range(self._num_steps)]
        self.bytes_per_step = (bench.to_worker.num_bytes - start_bytes) / self._num_steps
        return times


class Onboarding:
    """`NUM_ONBOARDED` queued sequences get their seats: samples of one prompt, or different ones.

    Afterwards they are cancelled, which leaves nothing of them, as nothing was computed.
    """

    bytes_per_step = None

    def __init__(self, *, are_samples: bool, num_tokens: int) -> None:
        kind = "samples of one prompt" if are_samples else "different prompts"
        self.name = f"onboarding {NUM_ONBOARDED} {kind}, {num_tokens} tokens"
        self._are_samples = are_samples
        self._bench = Bench(NUM_RUNNING + NUM_ONBOARDED, num_tokens, ONBOARDED_MAX_TOKENS)
        self._rng = np.random.default_rng(0)
        for _ in range(NUM_RUNNING):
            self._bench.submit(self._prompts(1)[0], ONBOARDED_MAX_TOKENS)
        for _ in range(NUM_RUNNING * num_tokens // PREFILL_TOKENS + 100):
            self._bench.tick()

    def measure(self) -> list[float]:
        bench = self._bench
        prompts = self._prompts(NUM_ONBOARDED)
        ids = [
            bench.submit(prompts[0 if self._are_samples else index].copy(), ONBOARDED_MAX_TOKENS)
            for index in range(NUM_ONBOARDED)
        ]
        engine = bench.manager.engine
        start = time.thread_time()
        engine.onboard()
        elapsed = 1e3 * (time.thread_time() - start)
        assert not len(engine.queue)
        engine.cancel(ids)
        return [elapsed]

    def _prompts(self, num_prompts: int) -> np.ndarray:
        return self._rng.integers(3, VOCAB_SIZE, (num_prompts, self._bench.context), np.int32)


class Forecasts:
    """What all running sequences will hold is foreseen, and its peak found."""

    bytes_per_step = None

    def __init__(self, num_running: int, num_steps: int) -> None:
        self.name = f"forecast of {num_running}, {num_steps} steps"
        bench = Bench(num_running, SIMULATED_PROMPT_TOKENS, num_steps)
        rng = np.random.default_rng(0)
        for _ in range(num_running):
            prompt_ids = rng.integers(3, VOCAB_SIZE, SIMULATED_PROMPT_TOKENS, np.int32)
            bench.submit(prompt_ids, int(rng.integers(num_steps // 2, num_steps)))
        for _ in range(num_running * SIMULATED_PROMPT_TOKENS // PREFILL_TOKENS + 50):
            bench.tick()
        engine = bench.manager.engine
        self._running = engine.running
        self._owners = BlockOwners(engine.running.blocks.ref_counts)
        self._policy = SimulateFuture(engine.settings, StoppingPredictor())
        for index in range(2000):
            sequence = engine.running.slots.sequences[index % num_running]
            assert sequence is not None
            self._policy.observe(sequence, int(rng.integers(1, num_steps)), is_stop=True)

    def measure(self) -> list[float]:
        times = []
        for _ in range(3):
            start = time.thread_time()
            forecast = self._policy.forecast(self._running, self._owners)
            assert forecast.peak > 0
            times.append(1e3 * (time.thread_time() - start))
        return times


Case = Steps | Onboarding | Forecasts


def reference() -> float:
    """Milliseconds of a fixed piece of Python and numpy, about as the manager's are mixed."""
    start = time.thread_time()
    values = np.arange(4096)
    places = values[::-1].copy()
    for _ in range(60):
        picked = values[places]
        picked[places] = picked + 1
        (picked > 4095).any()
        np.flatnonzero(picked[:64] == 7)
    counts: dict[tuple[int, bytes], int] = {}
    for index in range(1500):
        key = (index % 100, index.to_bytes(64, "little"))
        counts[key] = counts.get(key, 0) + 1
    return 1e3 * (time.thread_time() - start)


def make_cases(options: argparse.Namespace) -> list[Case]:
    cases: list[Case] = []
    for batch_size in options.batch_sizes:
        cases += [Steps(batch_size, options, kind) for kind in get_args(StepKind)]
    if options.no_decisions:
        return cases
    for are_samples, num_tokens in ((True, 2048), (True, 512), (False, 64), (False, 512)):
        cases.append(Onboarding(are_samples=are_samples, num_tokens=num_tokens))
    return [*cases, Forecasts(4096, 10_000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Milliseconds of the cases: medians and the reference by round and case, the least by case."""

    medians: np.ndarray
    references: np.ndarray
    least: np.ndarray


def measure(cases: list[Case], num_rounds: int) -> Measured:
    gc.collect()
    gc.freeze()
    medians = np.zeros((num_rounds, len(cases)))
    references = np.zeros_like(medians)
    least = np.full(len(cases), np.inf)
    for round_index in range(num_rounds):
        for index, case in enumerate(cases):
            before = reference()
            times = case.measure()
            references[round_index, index] = (before + reference()) / 2
            medians[round_index, index] = statistics.median(times)
            least[index] = min(least[index], *times)
    gc.unfreeze()
    return Measured(medians=medians, references=references, least=least)


def print_table(cases: list[Case], measured: Measured) -> None:
    medians, references = measured.medians, measured.references
    ratios = np.median(medians / references, axis=0)
    print("| case | median ms | least ms | ratio | bytes/step |\n|---|---|---|---|---|")
    print(f"| reference | {np.median(references):.2f} | {references.min():.2f} | 1 | |")
    for index, case in enumerate(cases):
        num_bytes = "" if case.bytes_per_step is None else f"{case.bytes_per_step:.0f}"
        print(
            f"| {case.name} | {np.median(medians[:, index]):.2f} | {measured.least[index]:.2f} "
            f"| {ratios[index]:.3f} | {num_bytes} |"
        )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[64, 256, 1024, 4096, 8192])
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--num-queued", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--num-steps", type=int, default=60, help="of a case in a round")
    parser.add_argument("--churn-tokens", type=int, default=256)
    parser.add_argument("--no-decisions", action="store_true", help="skip onboarding and forecasts")
    options = parser.parse_args(arguments)
    cases = make_cases(options)
    print(f"context {options.context}, {options.num_queued} queued, {options.rounds} rounds")
    print_table(cases, measure(cases, options.rounds))


if __name__ == "__main__":
    gc.set_threshold(GC_THRESHOLD)
    main()
