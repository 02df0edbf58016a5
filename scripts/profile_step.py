"""Where the time of a decode step goes, line by line.

    python scripts/profile_step.py MODEL_DIR [--seqs 64] [--prompt 128] [--output 128] [--wall]
                                   [key=value ...]

Manager and worker run in one process, joined by channels that encode messages, so that nothing is
hidden by waiting. Parts that Python calls are timed as they run. A decode step of the fused kernels
is one call: after every eighth step its linear layers (fused with norms, activation and residual)
are run once more by themselves, kind by kind, each with its own weights; what remains is attention,
its plan, embedding and sampling. Times are medians over the decode steps, of the process's CPU time
on one thread (--wall: of the clock, with all threads).
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.ipc.channels import MemoryChannel, Outbox
from tokasaurus.ipc.messages.to_manager import (
    GenerateRequest,
    ServerHello,
    TokenSampling,
    ToManager,
    WorkerReady,
)
from tokasaurus.ipc.messages.to_server import EngineOutputs, ToServer
from tokasaurus.ipc.messages.to_worker import StepInput, ToWorker
from tokasaurus.manager.loop import Manager
from tokasaurus.manager.settings import ManagerSettings
from tokasaurus.model.attention.cpu_backend import CpuBackend
from tokasaurus.model.kernels.fused_decoder import FusedDecoder
from tokasaurus.worker.process import build_runner
from tokasaurus.worker.torch_runner import TorchRunner

STEPS_PER_REPLAY = 8
LINEAR_NAMES = ("linear: QKV", "linear: attention out", "linear: gate and up", "linear: down")
OUTER = {
    "manager: schedule, apply, outputs": "manager",
    "worker: batch building": "build",
    "worker: slots of the sampler": "apply",
    "worker: attention plan": "plan",
    "layers": "forward",
    "LM head": "logits",
    "sampling": "sample",
    "worker: reading back, reply": "reply",
}


class Stopwatch:
    """Seconds per name within the current step; a nested name's time is not its parent's.

    Reading the CPU time can take longer than the smaller parts, so what it takes is subtracted.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        readings = [clock() for _ in range(2001)]
        self._reading_seconds = (readings[-1] - readings[0]) / 2000
        self.seconds: dict[str, float] = defaultdict(float)
        self._nested = [0.0]

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        started = self.clock()
        self._nested.append(0.0)
        yield
        taken = self.clock() - started
        self.seconds[name] += taken - self._nested.pop() - self._reading_seconds
        self._nested[-1] += taken + self._reading_seconds

    @contextmanager
    def measure_step(self) -> Iterator[None]:
        """The step as a whole is `whole`, what no name has is `unaccounted`."""
        self.seconds.clear()
        with self.measure("unaccounted"):
            yield
        self.seconds["whole"] = sum(self.seconds.values())

    def wrap(self, target: Any, method: str, name: str) -> None:
        inner = getattr(target, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.measure(name):
                return inner(*args, **kwargs)

        setattr(target, method, timed)


class ProfiledEngine:
    """A manager and a runner, stepped by hand."""

    def __init__(self, config: EngineConfig, watch: Stopwatch) -> None:
        runner = build_runner(config, torch.device("cpu"))
        assert isinstance(runner, TorchRunner)
        self.runner, self.watch = runner, watch
        runner.load(lambda _fraction, _text: None)
        runner.warm_up(lambda _fraction, _text: None)
        self.to_manager: MemoryChannel[ToManager] = MemoryChannel(ToManager)
        self.to_worker: MemoryChannel[StepInput] = MemoryChannel(ToWorker)
        self.to_server: MemoryChannel[ToServer] = MemoryChannel(ToServer)
        ready = WorkerReady(
            rank=0,
            capabilities=runner.capabilities,
            num_blocks=runner.num_blocks,
            max_model_len=runner.max_model_len,
            vocab_size=runner.vocab_size,
            description=runner.description,
            hidden_size=runner.hidden_size,
        )
        settings = ManagerSettings(
            page_size=config.page_size,
            max_tokens_per_forward=config.max_tokens_per_forward,
            max_seqs_per_forward=config.max_seqs_per_forward,
            scheduling_steps_ahead=0,
        )
        outboxes: list[Outbox] = [self.to_worker]
        self.manager = Manager(
            settings, ready, self.to_manager, outboxes, lambda _address: self.to_server
        )
        self.manager.greet(ServerHello(0, "memory"))
        watch.wrap(runner._builder, "apply", "build")
        watch.wrap(runner._builder, "build", "build")
        watch.wrap(runner._sampler, "apply", "apply")
        watch.wrap(runner._sampler, "sample", "sample")
        watch.wrap(runner._backend, "plan", "plan")
        watch.wrap(runner._model, "forward", "forward")
        watch.wrap(runner._model, "logits", "logits")
        if runner._decodes is not None:
            watch.wrap(runner._decodes._decode_step, "run", "forward")

    def step(self) -> tuple[int, int]:
        """Numbers of prefilled tokens and of ended requests."""
        with self.watch.measure("manager"):
            self.manager.tick()
        num_prefilled = 0
        for step in self.to_worker.drain():
            with self.watch.measure("execute"):
                handle = self.runner.execute(step)
            with self.watch.measure("reply"):
                self.to_manager.send(handle.result())
            num_prefilled += len(step.prefill_ids)
        outputs = [m for m in self.to_server.drain() if isinstance(m, EngineOutputs)]
        return num_prefilled, sum(len(m.finished) for m in outputs)


def replays(runner: TorchRunner, num_rows: int) -> dict[str, Callable[[], None]]:
    """The linear layers of the fused layers, each kind for all layers, on so many rows; none where
    layers are not fused."""
    model, backend = runner._model, runner._backend
    if not isinstance(model, FusedDecoder) or not isinstance(backend, CpuBackend):
        return {}
    ops, weights, layers = backend.kernels.ops, model._weights, model.attention_layers
    per_layer = len(weights) // len(layers)
    heads, kv_heads, head_dim = model._sizes
    hidden, inner = model.hidden_size, model._intermediate_size
    q_size = heads * head_dim
    shapes = [
        (hidden, q_size + 2 * kv_heads * head_dim),
        (q_size, hidden),
        (hidden, inner),
        (inner, hidden),
    ]
    inputs = {k: torch.randn(num_rows, k).to(model.dtype) for k in {k for k, _ in shapes}}

    def linear(index: int) -> Callable[[], None]:
        in_features, out_features = shapes[index]
        is_normed, x = index in (0, 2), inputs[in_features]

        def run() -> None:
            for start in range(0, len(weights), per_layer):
                bias = weights[start + 4 + index]
                ops.linear(
                    x,
                    weights[start + index],
                    out_features,
                    index == 2,
                    bias if len(bias) else None,
                    weights[start + 8 + index // 2] if is_normed else None,
                    model._norm_eps,
                    None if is_normed else inputs[hidden],
                    False,
                    *model._format,
                )

        return run

    def head() -> None:
        if num_rows:
            model.logits(inputs[hidden])

    return {**{name: linear(i) for i, name in enumerate(LINEAR_NAMES)}, "LM head": head}


def profile(
    engine: ProfiledEngine, num_seqs: int, num_prompt: int, num_output: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of each decode step's parts and its whole, and of the replays."""
    rng, watch = np.random.default_rng(0), engine.watch
    for request_id in range(num_seqs):
        ids = rng.integers(3, engine.runner.vocab_size, num_prompt, dtype=np.int32)
        engine.to_manager.send(
            GenerateRequest(
                request_id=request_id,
                prompt_ids=ids,
                sampling=TokenSampling(temperature=0.0),
                max_tokens=num_output,
            )
        )
    steps: dict[str, list[float]] = defaultdict(list)
    parts: dict[str, list[float]] = defaultdict(list)
    again, empty = replays(engine.runner, num_seqs), replays(engine.runner, 0)
    num_ended = 0
    while num_ended < num_seqs:
        with watch.measure_step():
            num_prefilled, ended = engine.step()
        num_ended += ended
        if num_prefilled or num_ended:
            continue
        for name in (*OUTER.values(), "execute", "unaccounted", "whole"):
            steps[name].append(watch.seconds[name])
        if len(steps["whole"]) % STEPS_PER_REPLAY == 0:
            for name, run in again.items():
                calls = seconds_of(empty[name], watch.clock)
                parts[name].append(seconds_of(run, watch.clock) - calls)
    return steps, parts


def seconds_of(run: Callable[[], None], clock: Callable[[], float]) -> float:
    began = clock()
    run()
    return clock() - began


def print_table(steps: dict[str, list[float]], parts: dict[str, list[float]]) -> None:
    median = {name: statistics.median(values) for name, values in steps.items()}
    inside = {name: statistics.median(values) for name, values in parts.items()}
    whole = median["whole"]

    def line(name: str, seconds: float) -> None:
        print(f"{name:48s}{1000 * seconds:9.3f} ms{seconds / whole:8.2%}")

    line(f"decode step, median of {len(steps['whole'])}", whole)
    for name, key in OUTER.items():
        if not median[key]:
            continue
        if key != "forward" or not inside:
            line(f"  {name}", median[key])
            continue
        for part, seconds in inside.items():
            line(f"  {part}", seconds)
        rest = median[key] - sum(inside.values())
        line("  attention, its plan, rotary, embedding, sampling", rest)
    line("  worker: glue between these", median["execute"])
    line("  unaccounted", median["unaccounted"])
    passes = ("whole", "forward", "logits", "sample")
    between = sum(seconds for name, seconds in median.items() if name not in passes)
    line("between passes (all but layers, head, sampling)", between)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a checkpoint")
    parser.add_argument("--seqs", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument("--wall", action="store_true", help="wall time with all threads")
    parser.add_argument("options", nargs="*", help="key=value options of the engine")
    args = parser.parse_args()
    if not args.wall:
        torch.set_num_threads(1)
    watch = Stopwatch(time.perf_counter if args.wall else time.process_time)
    tokens = args.seqs * (args.prompt + args.output + 16)
    fixed = [f"model={args.model}", "device=cpu", f"kv_cache_num_tokens={2 * tokens}"]
    engine = ProfiledEngine(EngineConfig.from_args([*fixed, *args.options]), watch)
    with torch.inference_mode():
        steps, parts = profile(engine, args.seqs, args.prompt, args.output)
    print(f"{engine.runner.description}, {torch.get_num_threads()} threads")
    print_table(steps, parts)


if __name__ == "__main__":
    main()
