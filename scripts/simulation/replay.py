"""Replays a trace through real managers with simulated devices: a simulation of events in time.

Every replica is an `Engine` and a device that executes its steps one after the other; what the
device answers reaches the manager when the step is over. The manager itself takes no time. Where
the device repeats, a step may be a lease of several passes, which ends as a worker ends it.
"""

import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from simulation.device import Hardware, Model, Outputs, SimulatedDevice
from simulation.recording import Predictor, ReplicaLog, RequestLog
from simulation.result import ReplayResult
from simulation.workload import STOP_TOKEN, VOCAB_SIZE, Prompt, Trace
from tokasaurus.ipc.messages.to_manager import (
    GenerateRequest,
    RunnerCapabilities,
    TokenSampling,
    WorkerReady,
)
from tokasaurus.ipc.messages.to_server import EngineOutputs, RequestFinished
from tokasaurus.ipc.messages.to_worker import StepInput
from tokasaurus.manager.engine import Engine
from tokasaurus.manager.settings import ManagerSettings
from tokasaurus.server.load_balancer import LoadBalancer

_STOP_TOKENS = (STOP_TOKEN,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What the trace runs on."""

    hardware: Hardware
    model: Model
    settings: ManagerSettings
    num_replicas: int
    num_blocks: int
    """KV blocks of one replica."""
    max_model_len: int
    supports_hydragen: bool = True


Clock = Callable[[], float]
Wake = Callable[[float], None]
"""Asks for `Replica.end_pass` at this time."""
EngineFactory = Callable[[ManagerSettings, WorkerReady, Clock], Engine]


class Replica:
    """One manager with its device."""

    def __init__(
        self,
        rank: int,
        deployment: Deployment,
        make_engine: EngineFactory,
        outputs: Outputs,
        log: ReplicaLog,
        clock: Clock,
        wake: Wake,
    ) -> None:
        self.rank = rank
        self.log = log
        worker = WorkerReady(
            rank=0,
            capabilities=RunnerCapabilities(
                hydragen=deployment.supports_hydragen,
                async_steps=True,
                repeats=deployment.hardware.repeats,
            ),
            num_blocks=deployment.num_blocks,
            max_model_len=deployment.max_model_len,
            vocab_size=VOCAB_SIZE,
            description="simulated",
        )
        settings = deployment.settings
        self.engine = make_engine(settings, worker, clock)
        self._device = SimulatedDevice(
            deployment.hardware, deployment.model, outputs, settings.num_slots, settings.page_size
        )
        self._wake = wake
        self._waiting: deque[StepInput] = deque()
        """Steps that the device has not begun."""
        self._is_busy = False
        self._num_saved_blocks = 0
        """Block reads of a decode that the groups planned last save."""
        self.busy_seconds = 0.0
        self.num_answers = 0

    def schedule(self, now: float, requests: RequestLog) -> None:
        """Send the device whatever the manager plans."""
        while (step := self.engine.schedule()) is not None:
            if step.added_slots:
                ids = [added.sampling.seed for added in step.added_slots]
                self.log.start_order.extend(requests.start(ids, now).tolist())
            if step.hydragen_groups is not None:
                saved = [(group.num_rows - 1) * group.num_blocks for group in step.hydragen_groups]
                self._num_saved_blocks = sum(saved)
            self._waiting.append(step)
            # Every step in flight counts as one pass, whose number this is.
            pass_id = self.engine.counters.num_steps + self.engine.num_steps_in_flight - 1
            self.log.sample(self.engine, now, pass_id)
            self.log.sample_reads(self.engine, pass_id, self._num_saved_blocks)
        self._begin(now)

    def end_pass(self, now: float) -> bool:
        """A pass is over; whether the step is, too, and the manager has its result."""
        is_awaited = any(step.changes_batch for step in self._waiting)
        if self._device.may_repeat and not is_awaited:
            self._run_until(now, self._device.repeat())
            return False
        self._is_busy = False
        self.num_answers += 1
        self.engine.apply(self._device.finish())
        self._begin(now)
        return True

    def _begin(self, now: float) -> None:
        if self._waiting and not self._is_busy:
            self._is_busy = True
            self._run_until(now, self._device.begin(self._waiting.popleft()))

    def _run_until(self, now: float, seconds: float) -> None:
        self.busy_seconds += seconds
        self._wake(now + seconds)


class Replay:
    """Runs a trace to its end."""

    def __init__(
        self,
        deployment: Deployment,
        make_engine: EngineFactory,
        predict: Predictor | None = None,
        prediction_steps: int = 100,
    ) -> None:
        self.deployment = deployment
        self.requests = RequestLog()
        self.seconds = 0.0
        """Virtual time."""
        self.cpu_seconds = 0.0
        self._outputs = Outputs()
        self._pass_ends: list[tuple[float, int]] = []
        """Heap of (when, rank), one for every device that runs."""
        self.replicas = [
            Replica(
                rank,
                deployment,
                make_engine,
                self._outputs,
                ReplicaLog(predict, prediction_steps),
                lambda: self.seconds,
                partial(self._end_pass_at, rank),
            )
            for rank in range(deployment.num_replicas)
        ]
        self._balancer = LoadBalancer(deployment.num_replicas)
        self._follow_ups: list[tuple[float, int, Prompt]] = []
        """Heap of (when, tie-breaker, prompt) of prompts that will arrive."""
        self._tie_breakers = itertools.count()
        self._in_flight: dict[int, tuple[int, GenerateRequest, _Group]] = {}

    def result(self) -> ReplayResult:
        """What is to be reported, when the trace has ended."""
        counters = [replica.engine.update_counters() for replica in self.replicas]
        return ReplayResult(
            num_blocks=self.deployment.num_blocks,
            seconds=self.seconds,
            cpu_seconds=self.cpu_seconds,
            busy_seconds=sum(replica.busy_seconds for replica in self.replicas),
            num_steps=sum(c.num_steps for c in counters),
            num_answers=sum(replica.num_answers for replica in self.replicas),
            num_prompt_tokens=sum(c.num_prompt_tokens for c in counters),
            num_cached_tokens=sum(c.num_cached_tokens for c in counters),
            num_preemptions=sum(c.num_preemptions for c in counters),
            requests=self.requests,
            logs=[replica.log for replica in self.replicas],
        )

    def run(self, trace: Trace) -> None:
        started = time.process_time()
        upcoming = next(trace, None)
        while True:
            arrival = self._next_arrival(upcoming)
            if self._pass_ends and (arrival is None or self._pass_ends[0][0] < arrival):
                self._end_pass()
            elif arrival is not None:
                self.seconds = arrival
                touched = set()
                while self._next_arrival(upcoming) == arrival:
                    if upcoming is not None and upcoming.arrival_seconds == arrival:
                        prompt, upcoming = upcoming, next(trace, None)
                    else:
                        prompt = heapq.heappop(self._follow_ups)[2]
                    touched.add(self._submit(prompt))
                for rank in sorted(touched):
                    self._advance(self.replicas[rank])
            else:
                break
        stuck = [replica.rank for replica in self.replicas if not replica.engine.is_idle]
        if stuck:
            raise RuntimeError(f"the managers {stuck} hold requests but schedule nothing")
        self.cpu_seconds = time.process_time() - started

    def _next_arrival(self, upcoming: Prompt | None) -> float | None:
        arrivals = [] if upcoming is None else [upcoming.arrival_seconds]
        if self._follow_ups:
            arrivals.append(self._follow_ups[0][0])
        return min(arrivals, default=None)

    def _end_pass_at(self, rank: int, seconds: float) -> None:
        heapq.heappush(self._pass_ends, (seconds, rank))

    def _end_pass(self) -> None:
        self.seconds, rank = heapq.heappop(self._pass_ends)
        replica = self.replicas[rank]
        if replica.end_pass(self.seconds):
            self._advance(replica)

    def _advance(self, replica: Replica) -> None:
        """What the manager does after messages have come."""
        replica.schedule(self.seconds, self.requests)
        for outputs in replica.engine.take_messages().values():
            self._take(outputs)

    def _submit(self, prompt: Prompt) -> int:
        """Send all samples of a prompt to one replica; its rank."""
        num_samples = prompt.output_lens.size
        first_id = self.requests.add(num_samples, prompt.arrival_seconds)
        self._outputs.add(first_id, prompt.output_keys, prompt.output_lens)
        rank = self._balancer.choose(prompt.prompt_ids)
        engine = self.replicas[rank].engine
        group = _Group(prompt, num_samples)
        for request in as_requests(prompt, first_id):
            self._in_flight[request.request_id] = rank, request, group
            self._balancer.add(rank, request)
            engine.submit(request)
        return rank

    def _take(self, outputs: EngineOutputs) -> None:
        if outputs.request_ids.size:
            self.requests.take_tokens(outputs.request_ids, outputs.num_tokens, self.seconds)
        for finished in outputs.finished:
            self._finish(finished)

    def _finish(self, finished: RequestFinished) -> None:
        self.requests.finish(finished, self.seconds)
        rank, request, group = self._in_flight.pop(finished.request_id)
        self._balancer.remove(rank, request)
        group.num_left -= 1
        if group.num_left or group.prompt.follow_up is None:
            return
        prompt = group.prompt.follow_up(self.seconds)
        if prompt is not None:
            entry = (prompt.arrival_seconds, next(self._tie_breakers), prompt)
            heapq.heappush(self._follow_ups, entry)


def as_requests(prompt: Prompt, first_id: int) -> Iterator[GenerateRequest]:
    """One per sample, with ids from `first_id` on."""
    for request_id in range(first_id, first_id + prompt.output_lens.size):
        yield GenerateRequest(
            request_id=request_id,
            prompt_ids=prompt.prompt_ids,
            sampling=TokenSampling(seed=request_id),
            max_tokens=prompt.max_tokens,
            stop_token_ids=_STOP_TOKENS,
            priority=prompt.priority,
            predictor_key=prompt.predictor_key,
            wants_every_token=prompt.is_streamed,
        )


@dataclass(slots=True, eq=False)
class _Group:
    """The samples of one prompt."""

    prompt: Prompt
    num_left: int
