"""The engine as a front end sees it: submit prompts, read generations, cancel.

Owns the table of requests in flight. Everything runs on one event loop; a message from a manager
is handled in one go, and each group that waits or listens is told once about it.
"""

import asyncio
import contextlib
import itertools
import logging
import time
from collections import defaultdict
from collections.abc import Sequence

from tokasaurus.errors import (
    EngineFailedError,
    InvalidRequestError,
    OverloadedError,
    ProcessFailedError,
)
from tokasaurus.ipc.addresses import Addresses
from tokasaurus.ipc.messages.to_manager import (
    CancelRequests,
    GenerateRequest,
    ServerHello,
    Shutdown,
)
from tokasaurus.ipc.messages.to_server import (
    EngineOutputs,
    ManagerReady,
    ManagerStats,
    RequestLogprobs,
    ToServer,
)
from tokasaurus.server.engine_channels import EngineChannels
from tokasaurus.server.engine_metrics import EngineMetrics
from tokasaurus.server.generation import Generation, TokenLogprob
from tokasaurus.server.load_balancer import LoadBalancer
from tokasaurus.server.peers import Peers
from tokasaurus.server.prompts import Prompt, RequestBuilder
from tokasaurus.server.request_building import ModelLimits
from tokasaurus.server.request_group import RequestGroup, wake_all
from tokasaurus.tokenization.tokenizer import Tokenizer

log = logging.getLogger(__name__)

_REQUEST_ID_BITS = 48
_RETRY_AFTER_SECONDS = 1.0


class EngineClient:
    """One front end's connection to all managers of an engine.

    `start` and everything after it belong to one running event loop.
    """

    def __init__(
        self,
        addresses: Addresses,
        server_index: int,
        num_managers: int,
        *,
        tokenizer: Tokenizer,
        eos_token_ids: tuple[int, ...],
        max_in_flight: int | None = None,
        default_timeout_seconds: float | None = None,
        channels: EngineChannels | None = None,
        peers: Peers | None = None,
    ) -> None:
        """`eos_token_ids`: as the model's configuration says; empty: the tokenizer's.

        `max_in_flight` bounds the samples accepted and not finished; None: no bound.
        `default_timeout_seconds` is for requests that give no `timeout`; None: they have no end.
        `channels` replace the sockets that `start` would open. `peers` get what other servers say.
        """
        self._addresses = addresses
        self._server_index = server_index
        self._num_managers = num_managers
        self._tokenizer = tokenizer
        self._eos_token_ids = eos_token_ids or tokenizer.eos_token_ids
        self._max_in_flight = max_in_flight
        self._default_timeout_seconds = default_timeout_seconds
        self._channels = channels
        self._peers = peers
        self._balancer = LoadBalancer(num_managers)
        self._in_flight: dict[int, tuple[Generation, RequestGroup]] = {}
        request_ids = itertools.count(server_index << _REQUEST_ID_BITS)
        self._builder = RequestBuilder(tokenizer, request_ids.__next__)
        self._ready: dict[int, ManagerReady] = {}
        self._all_ready = asyncio.Event()
        self._limits: ModelLimits | None = None
        self._receiver: asyncio.Task[None] | None = None
        self.failure: EngineFailedError | None = None
        """Why no request can be served any more; None as long as the engine works."""
        self.was_told_to_stop = False
        """The failure is an orderly end."""
        self.ended = asyncio.Event()
        """Set when `failure` is: the engine failed or was told to shut down."""
        self.stats: dict[int, ManagerStats] = {}
        """The newest of each manager, by dp_rank."""
        self.metrics = EngineMetrics(num_managers)

    async def start(self, deadline_seconds: float) -> None:
        """Greet every manager and wait until all answer.

        Raises ProcessFailedError when they don't in time, or shut down meanwhile.
        """
        if self._channels is None:
            self._channels = EngineChannels.open(
                self._addresses, self._server_index, self._num_managers
            )
        hello = ServerHello(self._server_index, self._channels.address)
        for outbox in self._channels.managers:
            outbox.send(hello)
        self._receiver = asyncio.create_task(self._receive_forever(self._channels))
        waits = [asyncio.create_task(e.wait()) for e in (self._all_ready, self.ended)]
        try:
            await asyncio.wait(waits, timeout=deadline_seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self.failure is not None:
            raise ProcessFailedError(str(self.failure))
        if not self._all_ready.is_set():
            missing = sorted(set(range(self._num_managers)) - set(self._ready))
            raise ProcessFailedError(
                f"manager{missing[0]} was not ready within {deadline_seconds:g} s; look at its "
                "log, or raise ready_timeout_seconds if the model takes long to load."
            )

    async def close(self) -> None:
        """Fail what is in flight, and close the sockets."""
        self.fail(EngineFailedError("The server is shutting down; try again."))
        if self._receiver is not None:
            self._receiver.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._receiver
        if self._channels is not None:
            self._channels.close()

    @property
    def limits(self) -> ModelLimits:
        """Known once `start` has returned."""
        assert self._limits is not None, "the client has not started"
        return self._limits

    @property
    def is_ready(self) -> bool:
        """Requests are taken and can be served."""
        return self._limits is not None and self.failure is None

    @property
    def num_in_flight(self) -> int:
        """Samples that some manager still holds."""
        return len(self._in_flight)

    def refresh_metrics(self) -> None:
        """Before they are shown: bring what is only known on demand up to date."""
        self.metrics.note_client(num_in_flight=len(self._in_flight), is_ready=self.is_ready)

    def submit(
        self,
        prompts: Sequence[Prompt],
        *,
        stream: bool,
        default_max_tokens: int | None = None,
        predictor_key: str = "",
    ) -> RequestGroup:
        """Start generating. `stream`: whoever waits for the group sees every bit of news.

        Raises InvalidRequestError, OverloadedError or EngineFailedError, and then sends nothing.
        """
        if self.failure is not None:
            raise self.failure
        built = self._builder.build(
            prompts, self.limits, default_max_tokens, predictor_key, stream=stream
        )
        self.check_room(sum(map(len, built)))
        group = RequestGroup(stream=stream, cancel=self._cancel)
        for prompt, requests in zip(prompts, built, strict=True):
            dp_rank = self._balancer.choose(requests[0].prompt_ids, requests[0].cache_salt)
            scores: list[TokenLogprob] = []
            for request in requests:
                self._send(request, prompt, dp_rank, group, scores)
        default = self._default_timeout_seconds
        if limits := [s for p in prompts if (s := p.params.timeout or default) is not None]:
            group.expire_after(min(limits))
        return group

    def fail(self, error: EngineFailedError) -> None:
        """No request can be served any more: everyone who waits gets the error."""
        if self.failure is None:
            self.failure = error
            self.ended.set()
        in_flight = list(self._in_flight.values())
        self._in_flight.clear()
        now = time.monotonic()
        for generation, group in in_flight:
            self._balancer.remove(generation.dp_rank, generation.request)
            if generation.finish_reason is None:
                generation.fail(error)
                group.note(generation, finished=True)
            self.metrics.note_finished(generation, now)
        wake_all(group for _, group in in_flight)

    def _send(
        self,
        request: GenerateRequest,
        prompt: Prompt,
        dp_rank: int,
        group: RequestGroup,
        scores: list[TokenLogprob],
    ) -> None:
        """`scores`: what the samples of the prompt share."""
        assert self._channels is not None
        detokenizer = self._tokenizer.detokenizer(
            skip_special_tokens=prompt.params.skip_special_tokens,
            prompt_ids=prompt.prompt_ids,
            visible_tokens=prompt.visible_tokens,
        )
        generation = Generation(
            len(group.generations), request, prompt.params, dp_rank, detokenizer, scores
        )
        group.add(generation)
        self._in_flight[request.request_id] = generation, group
        self._balancer.add(dp_rank, request)
        self._channels.post(dp_rank, request)

    def check_room(self, num_new: int) -> None:
        """Raises what `submit` would raise; to be called before work goes into the prompts."""
        bound = self._max_in_flight
        if bound is None or len(self._in_flight) + num_new <= bound:
            return
        if num_new > bound:
            raise InvalidRequestError(
                f"The request asks for {num_new} samples (prompts times n), but this server takes "
                f"at most {bound} at a time; split it."
            )
        raise OverloadedError(
            f"The server's queue is full ({len(self._in_flight)} samples of at most {bound}); try "
            "again in a moment.",
            retry_after_seconds=_RETRY_AFTER_SECONDS,
        )

    def _cancel(self, generations: list[Generation], error: EngineFailedError | None) -> None:
        """They end for their group now, and for the engine when their manager says so."""
        by_rank: defaultdict[int, list[int]] = defaultdict(list)
        groups = set()
        for generation in generations:
            generation.cancel() if error is None else generation.fail(error)
            entry = self._in_flight.get(generation.request.request_id)
            if entry is not None:
                by_rank[generation.dp_rank].append(generation.request.request_id)
                entry[1].note(generation, finished=True)
                groups.add(entry[1])
        self._send_cancels(by_rank)
        wake_all(groups)

    def _send_cancels(self, by_rank: dict[int, list[int]]) -> None:
        assert self._channels is not None
        for dp_rank, request_ids in by_rank.items():
            self._channels.post(dp_rank, CancelRequests(request_ids))

    async def _receive_forever(self, channels: EngineChannels) -> None:
        try:
            while True:
                self._handle(await channels.inbox.receive())
                await asyncio.sleep(0)  # a backlog must not keep others off the loop
        except Exception as error:
            log.exception("The connection to the engine failed")
            self.fail(EngineFailedError(f"The connection to the engine failed: {error}"))

    def _handle(self, message: ToServer) -> None:
        match message:
            case EngineOutputs():
                self._handle_outputs(message)
            case ManagerReady():
                self._handle_ready(message)
            case ManagerStats():
                self.stats[message.dp_rank] = message
                self.metrics.note_stats(message)
            case Shutdown():
                self.was_told_to_stop = True
                self.fail(EngineFailedError("The engine is shutting down; try again."))
            case _:
                assert self._peers is not None, "a lone server has no peers"
                self._peers.receive(message)

    def _handle_ready(self, message: ManagerReady) -> None:
        self._ready[message.dp_rank] = message
        if len(self._ready) < self._num_managers:
            return
        everyone = self._ready.values()
        self._limits = ModelLimits(
            max_model_len=min(min(m.max_model_len, m.num_kv_tokens) for m in everyone),
            vocab_size=min(m.vocab_size for m in everyone),
            eos_token_ids=self._eos_token_ids,
            hidden_size=min(m.hidden_size for m in everyone),
        )
        self._all_ready.set()

    def _handle_outputs(self, outputs: EngineOutputs) -> None:
        token_logprobs = self._take_logprobs(outputs.logprobs) if outputs.logprobs else {}
        touched: set[RequestGroup] = set()
        stopped: list[int] = []
        metrics, now = self.metrics, time.monotonic()
        news: list[tuple[Generation, int]] = []
        token_ids = outputs.token_ids.tolist()
        start = 0
        for request_id, num_tokens in zip(
            outputs.request_ids.tolist(), outputs.num_tokens.tolist(), strict=True
        ):
            end = start + num_tokens
            entry = self._in_flight.get(request_id)
            if entry is not None:
                generation, group = entry
                if generation.finish_reason is None and not generation.is_stopped:
                    generation.add_tokens(token_ids[start:end], token_logprobs.get(request_id, ()))
                    if generation.is_stopped:
                        stopped.append(request_id)
                    news.append((generation, num_tokens))
                    group.note(generation)
                    touched.add(group)
            start = end
        num_passes = int(outputs.num_tokens.max(initial=0))
        metrics.note_tokens(outputs.dp_rank, len(outputs.request_ids), num_passes, news, now)
        if outputs.embedding_ids is not None and outputs.embeddings is not None:
            embedded = zip(outputs.embedding_ids.tolist(), outputs.embeddings, strict=True)
            for request_id, vector in embedded:
                if (entry := self._in_flight.get(request_id)) is not None:
                    entry[0].embedding = vector
        for finished in outputs.finished:
            entry = self._in_flight.pop(finished.request_id, None)
            if entry is not None:
                generation, group = entry
                self._balancer.remove(generation.dp_rank, generation.request)
                was_finished = generation.finish_reason is not None
                generation.finish(finished)
                metrics.note_finished(generation, now, finished.queue_seconds)
                if not was_finished:
                    group.note(generation, finished=True)
                    touched.add(group)
        still_running = [i for i in stopped if i in self._in_flight]
        if still_running:
            self._send_cancels({outputs.dp_rank: still_running})
        wake_all(touched)

    def _take_logprobs(self, entries: list[RequestLogprobs]) -> dict[int, list[RequestLogprobs]]:
        """Hands out those of prompts; returns those of output tokens by request."""
        of_tokens: defaultdict[int, list[RequestLogprobs]] = defaultdict(list)
        for entry in entries:
            if not entry.is_prompt:
                of_tokens[entry.request_id].append(entry)
            elif (found := self._in_flight.get(entry.request_id)) is not None:
                found[0].add_prompt_logprobs(entry)
        return of_tokens
