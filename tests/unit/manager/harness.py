"""A manager with memory channels, a simulated worker and a client that checks what it gets."""

from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from tests.unit.manager.simulated_worker import (
    SimulatedWorker,
    chain,
    chain_all,
    draw,
    vector_of,
)
from tokasaurus.ipc.channels import MemoryChannel
from tokasaurus.ipc.messages.to_manager import (
    CancelRequests,
    GenerateRequest,
    GenerateRequests,
    Pooling,
    RunnerCapabilities,
    ServerHello,
    StepOutput,
    TokenSampling,
    ToManager,
    WorkerReady,
)
from tokasaurus.ipc.messages.to_server import (
    EngineOutputs,
    ManagerReady,
    ManagerStats,
    RequestFinished,
    RequestLogprobs,
    ToServer,
)
from tokasaurus.ipc.messages.to_worker import StepInput, ToWorker
from tokasaurus.manager.loop import Manager
from tokasaurus.manager.onboarding import AdmissionPolicy
from tokasaurus.manager.settings import ManagerSettings


def make_request(
    request_id: int,
    prompt: list[int],
    max_tokens: int = 8,
    *,
    server: int = 0,
    seed: int | None = None,
    stop: tuple[int, ...] = (),
    outputs: list[int] | None = None,
    priority: int = 0,
    salt: str = "",
    num_top_logprobs: int = -1,
    num_prompt_logprobs: int = -1,
    pooling: Pooling = "",
    wants_every_token: bool = False,
    min_tokens: int = 0,
) -> GenerateRequest:
    return GenerateRequest(
        request_id=(server << 48) | request_id,
        prompt_ids=np.array(prompt, np.int32),
        output_ids=None if outputs is None else np.array(outputs, np.int32),
        sampling=TokenSampling(
            seed=request_id if seed is None else seed,
            num_top_logprobs=num_top_logprobs,
            num_prompt_logprobs=num_prompt_logprobs,
            min_tokens=min_tokens,
            banned_until_min_tokens=stop if min_tokens else (),
        ),
        max_tokens=max_tokens,
        stop_token_ids=stop,
        priority=priority,
        cache_salt=salt,
        pooling=pooling,
        wants_every_token=wants_every_token,
    )


def make_embedding(
    request_id: int, prompt: list[int], pooling: Pooling, **more: Any
) -> GenerateRequest:
    return make_request(request_id, prompt, max_tokens=1, pooling=pooling, **more)


def expected_outputs(request: GenerateRequest, vocab_size: int) -> tuple[list[int], str]:
    """Tokens and finish reason of a request that nothing disturbs."""
    known = request.prompt_ids.tolist()
    if request.output_ids is not None:
        known += request.output_ids.tolist()
    num_outputs = len(known) - request.prompt_ids.size
    value = chain_all(known)
    tokens: list[int] = []
    while True:
        token_id = draw(value, request.sampling.seed, vocab_size)
        value = chain(value, token_id)
        tokens.append(token_id)
        if token_id in request.stop_token_ids:
            return tokens, "stop"
        if num_outputs + len(tokens) == request.max_tokens:
            return tokens, "length"


class Harness:
    """Runs the real manager loop; `lag` worker outputs are held back to keep steps in flight.

    Leases are of 16 passes, so that short outputs take several.
    """

    def __init__(
        self,
        num_blocks: int = 64,
        page_size: int = 4,
        *,
        max_model_len: int = 1000,
        policy: AdmissionPolicy | None = None,
        mixed_batches: bool = True,
        hydragen: bool = True,
        repeats: bool = False,
        broken_seeds: frozenset[int] = frozenset(),
        num_servers: int = 1,
        **settings: int,
    ) -> None:
        self.worker = SimulatedWorker(
            num_blocks, page_size, mixed_batches=mixed_batches, broken_seeds=broken_seeds
        )
        self.inbox: MemoryChannel[ToManager] = MemoryChannel(ToManager)
        self.to_worker: MemoryChannel[StepInput] = MemoryChannel(ToWorker)
        self.to_server: dict[str, MemoryChannel] = {
            str(index): MemoryChannel(ToServer) for index in range(num_servers)
        }
        self.held: deque[StepOutput] = deque()
        self.steps: list[StepInput] = []
        """All that the worker got."""
        self.passes_of_lease: Callable[[StepInput], int] = lambda step: step.max_passes
        """When something comes that ends it."""
        self.seconds_of_pass: Callable[[], float] = lambda: 0.0
        """How long each pass of the next step takes."""
        self.now = 0.0
        self.manager = Manager(
            ManagerSettings(page_size=page_size, **({"max_decode_repeats": 16} | settings)),
            WorkerReady(
                rank=0,
                capabilities=RunnerCapabilities(
                    mixed_batches=mixed_batches, hydragen=hydragen, repeats=repeats
                ),
                num_blocks=num_blocks,
                max_model_len=max_model_len,
                vocab_size=self.worker.vocab_size,
                description="simulated",
                hidden_size=self.worker.hidden_size,
            ),
            self.inbox,
            [self.to_worker],
            lambda address: self.to_server[address],
            clock=lambda: self.now,
            policy=policy,
        )
        self.engine = self.manager.engine
        for index in range(num_servers):
            self.inbox.send(ServerHello(index, str(index)))
        self.requests: dict[int, GenerateRequest] = {}
        self.tokens: dict[int, list[int]] = defaultdict(list)
        self.finished: dict[int, RequestFinished] = {}
        self.logprobs: dict[int, list[RequestLogprobs]] = defaultdict(list)
        self.vectors: dict[int, list[float]] = {}
        self.stats: list[ManagerStats] = []
        self.greetings: list[ManagerReady] = []

    def submit(self, *requests: GenerateRequest) -> None:
        for request in requests:
            self.requests[request.request_id] = request
        self.inbox.send(requests[0] if len(requests) == 1 else GenerateRequests(list(requests)))

    def cancel(self, *request_ids: int) -> None:
        self.inbox.send(CancelRequests(list(request_ids)))

    def tick(self, num_outputs: int = 1) -> None:
        """One loop iteration of the manager, then the worker; returns `num_outputs` results."""
        self.manager.tick()
        self.engine.check_invariants()
        for step in self.to_worker.drain():
            self.steps.append(step)
            num_before = self.worker.num_passes
            output = self.worker.execute(step, self.passes_of_lease(step))
            seconds = self.seconds_of_pass() * (self.worker.num_passes - num_before)
            self.held.append(msgspec.structs.replace(output, execute_seconds=seconds))
            self.now += seconds
        for _ in range(min(num_outputs, len(self.held))):
            self.inbox.send(self.held.popleft())
        for address, channel in self.to_server.items():
            for message in channel.drain():
                self._take(int(address), message)

    def run(self, max_ticks: int = 10_000) -> None:
        """Until everything has ended."""
        for _ in range(max_ticks):
            self.tick()
            if len(self.finished) == len(self.requests):
                break
        else:
            raise AssertionError(f"stuck: {self.engine.gauges()}")
        for _ in range(5):
            self.tick(10)

    def _take(self, server_index: int, message: ToServer) -> None:
        match message:
            case EngineOutputs():
                self._take_outputs(server_index, message)
            case ManagerStats():
                self.stats.append(message)
            case ManagerReady():
                self.greetings.append(message)

    def _take_outputs(self, server_index: int, message: EngineOutputs) -> None:
        offset = 0
        ids = message.request_ids.tolist()
        assert len(set(ids)) == len(ids)
        for request_id, count in zip(ids, message.num_tokens.tolist(), strict=True):
            assert request_id >> 48 == server_index
            assert request_id not in self.finished
            self.tokens[request_id] += message.token_ids[offset : offset + count].tolist()
            offset += count
        assert offset == message.token_ids.size
        for logprobs in message.logprobs:
            self.logprobs[logprobs.request_id].append(logprobs)
        if message.embedding_ids is not None:
            assert message.embeddings is not None
            pairs = zip(message.embedding_ids.tolist(), message.embeddings.tolist(), strict=True)
            assert not set(self.vectors) & set(message.embedding_ids.tolist()), "embedded twice"
            self.vectors.update(pairs)
            ended = {finished.request_id for finished in message.finished}
            assert set(message.embedding_ids.tolist()) <= ended
        for finished in message.finished:
            assert finished.request_id >> 48 == server_index
            assert finished.request_id not in self.finished, "ended twice"
            self.finished[finished.request_id] = finished

    def check_tokens(self) -> None:
        """Every request got the tokens that it would have got alone."""
        for request_id, request in self.requests.items():
            finished = self.finished[request_id]
            if request.pooling:
                self._check_vector(request, finished)
                continue
            tokens, reason = expected_outputs(request, self.worker.vocab_size)
            got = self.tokens[request_id]
            if finished.reason in ("cancelled", "error"):
                assert got == tokens[: len(got)]
            else:
                assert (got, finished.reason) == (tokens, reason)

    def _check_vector(self, request: GenerateRequest, finished: RequestFinished) -> None:
        assert not self.tokens[request.request_id]
        if finished.reason == "stop":
            value = chain_all(request.prompt_ids.tolist())
            expected = np.array(vector_of(value, request.sampling.seed), np.float32)
            assert self.vectors[request.request_id] == expected.tolist()
        else:
            assert finished.reason in ("cancelled", "error")
            assert request.request_id not in self.vectors

    def check_empty(self) -> None:
        """Nothing is held by anybody."""
        running = self.engine.running
        assert running.num_running == 0
        assert len(self.engine.queue) == 0
        assert running.blocks.num_in_use == 0
        assert running.num_reserved_blocks == 0
        assert self.engine.is_idle
        assert self.engine.num_steps_in_flight == 0
