"""A manager and its worker in one object, inside the test's event loop: writes scripted tokens.

Messages pass through the codec in both directions.
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import numpy as np

from tokasaurus.ipc.addresses import Addresses
from tokasaurus.ipc.channels import MemoryChannel
from tokasaurus.ipc.messages.to_manager import (
    CancelRequests,
    GenerateRequest,
    GenerateRequests,
    ServerHello,
    ToManager,
)
from tokasaurus.ipc.messages.to_server import (
    EngineOutputs,
    ManagerReady,
    RequestFinished,
    RequestLogprobs,
    ToServer,
)
from tokasaurus.server.engine_channels import EngineChannels
from tokasaurus.server.engine_client import EngineClient
from tokasaurus.tokenization.tokenizer import Tokenizer

MAX_MODEL_LEN = 64
VOCAB_SIZE = 420
EOS = 1


class AsyncMemoryInbox:
    """A front end's inbox."""

    def __init__(self) -> None:
        self._channel: MemoryChannel[ToServer] = MemoryChannel(ToServer)
        self._arrived = asyncio.Event()
        self.is_closed = False

    def send(self, message: ToServer) -> None:
        self._channel.send(message)
        self._arrived.set()

    async def receive(self) -> ToServer:
        while (message := self._channel.receive(None)) is None:
            self._arrived.clear()
            await self._arrived.wait()
        return message

    def close(self) -> None:
        self.is_closed = True


@dataclass
class Running:
    request: GenerateRequest
    script: list[int]
    num_sent: int = 0


def vector_of(request: GenerateRequest) -> list[float]:
    """What the double embeds: the sum of the ids, how many they are, and the pooling."""
    ids = request.prompt_ids.tolist()
    return [float(sum(ids)), float(len(ids)), float(request.pooling == "mean"), 2.0]


@dataclass
class ManagerDouble:
    """Outbox of a client. `script` says what is generated; `tick` sends `tokens_per_tick` each."""

    inbox: AsyncMemoryInbox
    script: Callable[[GenerateRequest], list[int]]
    dp_rank: int = 0
    tokens_per_tick: int = 1
    num_cached_tokens: int = 4
    max_model_len: int = MAX_MODEL_LEN
    hidden_size: int = 4
    fail_with: str | None = None
    runs_by_itself: bool = True
    requests: list[GenerateRequest] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    running: dict[int, Running] = field(default_factory=dict)
    is_closed: bool = False

    def __post_init__(self) -> None:
        self._channel: MemoryChannel[ToManager] = MemoryChannel(ToManager)
        self._runner: asyncio.Task[None] | None = None

    def send(self, message: ToManager) -> None:
        self._channel.send(message)
        [received] = self._channel.drain()
        match received:
            case ServerHello():
                self.inbox.send(
                    ManagerReady(
                        dp_rank=self.dp_rank,
                        max_model_len=self.max_model_len,
                        vocab_size=VOCAB_SIZE,
                        num_kv_tokens=max(1000, self.max_model_len),
                        description="a double",
                        hidden_size=self.hidden_size,
                    )
                )
            case GenerateRequest():
                self._take(received)
            case GenerateRequests(requests=requests):
                for request in requests:
                    self._take(request)
            case CancelRequests():
                self._cancel(received.request_ids)

    def close(self) -> None:
        self.is_closed = True

    def _take(self, request: GenerateRequest) -> None:
        self.requests.append(request)
        self.running[request.request_id] = Running(request, self.script(request))
        if self.runs_by_itself and (self._runner is None or self._runner.done()):
            self._runner = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while self.running:
            await asyncio.sleep(0)
            self.tick()

    def tick(self) -> None:
        """One loop: new tokens of everything that runs."""
        chunks: dict[int, list[int]] = {}
        logprobs: list[RequestLogprobs] = []
        finished: list[RequestFinished] = []
        vectors: dict[int, list[float]] = {}
        for request_id, run in list(self.running.items()):
            request = run.request
            if self.fail_with is not None:
                finished.append(
                    RequestFinished(request_id=request_id, reason="error", error=self.fail_with)
                )
                del self.running[request_id]
                continue
            if request.pooling:
                vectors[request_id] = vector_of(request)
                finished.append(
                    RequestFinished(request_id=request_id, reason="stop", queue_seconds=0.0)
                )
                del self.running[request_id]
                continue
            if run.num_sent == 0 and request.sampling.num_prompt_logprobs >= 0:
                logprobs.append(self._logprobs(request, request.prompt_ids[1:].tolist(), True))
            chunk, reason = self._advance(run)
            chunks[request_id] = chunk
            if request.sampling.num_top_logprobs >= 0:
                logprobs.append(self._logprobs(request, chunk, False))
            if reason is not None:
                finished.append(
                    RequestFinished(
                        request_id=request_id,
                        reason=reason,
                        num_cached_tokens=self.num_cached_tokens,
                        stop_token_id=chunk[-1] if reason == "stop" else None,
                        queue_seconds=0.0,
                    )
                )
                del self.running[request_id]
        self._send_outputs(chunks, logprobs, finished, vectors)

    def _advance(self, run: Running) -> tuple[list[int], str | None]:
        chunk: list[int] = []
        request = run.request
        while len(chunk) < self.tokens_per_tick:
            token = run.script[run.num_sent % len(run.script)]
            run.num_sent += 1
            chunk.append(token)
            if token in request.stop_token_ids and run.num_sent > request.sampling.min_tokens:
                return chunk, "stop"
            if run.num_sent == request.max_tokens:
                return chunk, "length"
        return chunk, None

    @staticmethod
    def _logprobs(request: GenerateRequest, ids: list[int], is_prompt: bool) -> RequestLogprobs:
        sampling = request.sampling
        num_top = sampling.num_prompt_logprobs if is_prompt else sampling.num_top_logprobs
        return RequestLogprobs(
            request_id=request.request_id,
            is_prompt=is_prompt,
            logprobs=np.array([-math.inf if i % 7 == 0 else -i / 8 for i in ids], np.float32),
            top_ids=np.array([range(20, 20 + num_top)] * len(ids), np.int32).reshape(
                len(ids), num_top
            ),
            top_logprobs=np.full((len(ids), num_top), -0.5, np.float32),
        )

    def _cancel(self, request_ids: list[int]) -> None:
        self.cancelled += request_ids
        finished = [
            RequestFinished(request_id=i, reason="cancelled", num_cached_tokens=3)
            for i in request_ids
            if self.running.pop(i, None) is not None
        ]
        self._send_outputs({}, [], finished)

    def _send_outputs(
        self,
        chunks: dict[int, list[int]],
        logprobs: list[RequestLogprobs],
        finished: list[RequestFinished],
        vectors: dict[int, list[float]] | None = None,
    ) -> None:
        self.inbox.send(
            EngineOutputs(
                dp_rank=self.dp_rank,
                request_ids=np.array(list(chunks), np.int64),
                num_tokens=np.array([len(c) for c in chunks.values()], np.int32),
                token_ids=np.array([i for c in chunks.values() for i in c], np.int32),
                logprobs=logprobs,
                finished=finished,
                embedding_ids=np.array(list(vectors), np.int64) if vectors else None,
                embeddings=np.array(list(vectors.values()), np.float32) if vectors else None,
            )
        )


class PromptChannels(EngineChannels):
    """What is posted is there at once, for tests that look without giving others a turn."""

    def post(self, dp_rank: int, message: msgspec.Struct) -> None:
        self.managers[dp_rank].send(message)


def connected(
    tokenizer: Tokenizer,
    script: Callable[[GenerateRequest], list[int]],
    *,
    num_managers: int = 1,
    max_in_flight: int | None = None,
    default_timeout_seconds: float | None = None,
    max_model_len: int = MAX_MODEL_LEN,
) -> tuple[EngineClient, list[ManagerDouble]]:
    """A client that has yet to start, and the managers it talks to."""
    inbox = AsyncMemoryInbox()
    managers = [
        ManagerDouble(inbox, script, dp_rank=rank, max_model_len=max_model_len)
        for rank in range(num_managers)
    ]
    client = EngineClient(
        Addresses("nowhere"),
        3,
        num_managers,
        tokenizer=tokenizer,
        eos_token_ids=(EOS,),
        max_in_flight=max_in_flight,
        default_timeout_seconds=default_timeout_seconds,
        channels=PromptChannels(inbox=inbox, address="inbox", managers=list(managers)),
    )
    return client, managers
