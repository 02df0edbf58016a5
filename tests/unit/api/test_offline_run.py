"""Offline runs against a manager that echoes prompts: order, bounds, cancellation, failure."""

import asyncio
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
import tokenizers

from tokasaurus.api.event_loop import EventLoopThread
from tokasaurus.api.offline_run import OfflineRun
from tokasaurus.api.prompts import PreparedPrompt
from tokasaurus.errors import EngineFailedError
from tokasaurus.ipc.addresses import Addresses
from tokasaurus.ipc.messages.to_manager import (
    CancelRequests,
    GenerateRequest,
    GenerateRequests,
    ServerHello,
)
from tokasaurus.ipc.messages.to_server import (
    EngineOutputs,
    ManagerReady,
    RequestFinished,
    ToServer,
)
from tokasaurus.server.engine_channels import EngineChannels
from tokasaurus.server.engine_client import EngineClient
from tokasaurus.server.sampling_params import SamplingParams
from tokasaurus.tokenization.tokenizer import Tokenizer

LETTERS = {letter: i for i, letter in enumerate("abcdefgh")}


class EchoManager:
    """Inbox and outbox in one: answers each request with its prompt, at once or when told."""

    def __init__(self, *, hold: bool = False) -> None:
        self._messages: asyncio.Queue[ToServer] = asyncio.Queue()
        self._hold = hold
        self.held: list[GenerateRequest] = []
        self.most_held = 0

    async def receive(self) -> ToServer:
        return await self._messages.get()

    def send(self, message: msgspec.Struct) -> None:
        match message:
            case ServerHello():
                self._messages.put_nowait(
                    ManagerReady(
                        dp_rank=0, max_model_len=8, vocab_size=8, num_kv_tokens=8, description=""
                    )
                )
            case GenerateRequests(requests=requests):
                self.held += requests
                self.most_held = max(self.most_held, len(self.held))
                if not self._hold:
                    # Later requests finish first.
                    asyncio.get_running_loop().call_later(0, self.release)
            case CancelRequests():
                self.held = [r for r in self.held if r.request_id not in message.request_ids]

    def release(self) -> None:
        for request in reversed(self.held):
            self._messages.put_nowait(
                EngineOutputs(
                    dp_rank=0,
                    request_ids=np.array([request.request_id]),
                    num_tokens=np.array([len(request.prompt_ids)], np.int32),
                    token_ids=request.prompt_ids,
                    finished=[
                        RequestFinished(
                            request_id=request.request_id, reason="length", num_cached_tokens=1
                        )
                    ],
                )
            )
        self.held = []

    def close(self) -> None:
        pass


class Loop(EventLoopThread):
    """Closes the clients that were connected on it first, as whoever uses one must."""

    def __init__(self) -> None:
        super().__init__("test-loop")
        self.clients: list[EngineClient] = []

    def close(self) -> None:
        for client in self.clients:
            self.run(client.close())
        self.clients = []
        super().close()


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def connect(loop: Loop, manager: EchoManager) -> EngineClient:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=LETTERS, merges=[]))
    client = EngineClient(
        Addresses("/nowhere"),
        0,
        1,
        tokenizer=Tokenizer(backend, {}),
        eos_token_ids=(),
        channels=EngineChannels(inbox=manager, address="", managers=[manager]),
    )
    loop.clients.append(client)
    loop.run(client.start(10))
    return client


def prompt(*ids: int, n: int = 1) -> PreparedPrompt:
    return PreparedPrompt(None, list(ids), SamplingParams(n=n, max_tokens=2))


def ignore(*_: int) -> None:
    pass


def test_results_come_in_order_with_all_samples(loop: Loop) -> None:
    finished: list[tuple[int, ...]] = []
    run = OfflineRun(connect(loop, EchoManager()), 100, lambda *counts: finished.append(counts))
    loop.run(run.add([prompt(1, 2), prompt(3, n=3)]))
    loop.run(run.add([prompt(4)]))
    outputs = loop.run(run.finish())
    assert [output.prompt_token_ids for output in outputs] == [[1, 2], [3], [4]]
    assert [output.token_ids for output in outputs] == [[1, 2], [3], [4]]
    assert [len(output.outputs) for output in outputs] == [1, 3, 1]
    assert outputs[0].finish_reason == "length"
    assert outputs[0].num_cached_tokens == 1
    assert outputs[0].logprobs is None
    assert tuple(map(sum, zip(*finished, strict=True))) == (3, 4, 6)


def test_no_prompts(loop: Loop) -> None:
    assert loop.run(OfflineRun(connect(loop, EchoManager()), 4, ignore).finish()) == []


def test_samples_in_flight_are_bounded(loop: Loop) -> None:
    manager = EchoManager()
    run = OfflineRun(connect(loop, manager), 4, ignore)
    for i in range(20):
        loop.run(run.add([prompt(i % 8, n=2)]))
    assert len(loop.run(run.finish())) == 20
    assert manager.most_held <= 4


def test_more_samples_than_the_bound_go_alone(loop: Loop) -> None:
    run = OfflineRun(connect(loop, EchoManager()), 2, ignore)
    for _ in range(2):
        loop.run(run.add([prompt(1, n=5)]))
    assert [len(output.outputs) for output in loop.run(run.finish())] == [5, 5]


def test_cancel_frees_the_engine(loop: Loop) -> None:
    manager = EchoManager(hold=True)
    run = OfflineRun(connect(loop, manager), 10, ignore)
    loop.run(run.add([prompt(1, n=3)]))
    assert len(manager.held) == 3
    loop.run(run.cancel())
    assert manager.held == []


def test_failed_engine_reaches_every_waiter(loop: Loop) -> None:
    manager = EchoManager(hold=True)
    client = connect(loop, manager)
    waiting = [OfflineRun(client, 2, ignore) for _ in range(2)]
    for run in waiting:
        loop.run(run.add([prompt(1, n=2)]))

    async def fail_while_waiting() -> list[BaseException | object]:
        waits = [asyncio.create_task(waiting[0].finish())]
        waits.append(asyncio.create_task(waiting[1].add([prompt(2)])))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        client.fail(EngineFailedError("the worker died"))
        return list(await asyncio.gather(*waits, return_exceptions=True))

    for error in loop.run(fail_while_waiting()):
        assert isinstance(error, EngineFailedError)
        assert "the worker died" in str(error)
    with pytest.raises(EngineFailedError, match="the worker died"):
        loop.run(OfflineRun(client, 2, ignore).add([prompt(1)]))


def test_work_that_was_done_before_a_failure_is_not_lost(loop: Loop) -> None:
    client = connect(loop, EchoManager())
    run = OfflineRun(client, 10, ignore)
    loop.run(run.add([prompt(1)]))
    loop.run(run.finish())
    loop.call_soon(client.fail, EngineFailedError("later"))
    assert loop.run(run.finish())[0].token_ids == [1]


def test_closed_loop_refuses() -> None:
    loop = Loop()
    loop.close()
    loop.close()
    loop.call_soon(print)
    with pytest.raises(EngineFailedError, match="closed"):
        loop.run(asyncio.sleep(0))


def test_closing_the_loop_ends_what_waits() -> None:
    loop = Loop()
    client = connect(loop, EchoManager(hold=True))
    run = OfflineRun(client, 10, ignore)
    loop.run(run.add([prompt(1)]))
    loop.run(client.close())
    loop.clients = []
    with pytest.raises(EngineFailedError):
        loop.run(run.finish())
    loop.close()
