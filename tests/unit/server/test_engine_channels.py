"""What is posted to managers in one turn of the event loop leaves together."""

import asyncio

import msgspec
import numpy as np

from tests.unit.server.manager_double import AsyncMemoryInbox
from tokasaurus.ipc.messages.to_manager import (
    CancelRequests,
    GenerateRequest,
    GenerateRequests,
    TokenSampling,
)
from tokasaurus.server.engine_channels import EngineChannels


class Recorder:
    def __init__(self) -> None:
        self.sent: list[msgspec.Struct] = []
        self.is_closed = False

    def send(self, message: msgspec.Struct) -> None:
        assert not self.is_closed
        self.sent.append(message)

    def close(self) -> None:
        self.is_closed = True


def test_in_order_and_once() -> None:
    first, second = Recorder(), Recorder()

    async def check() -> None:
        channels = EngineChannels(
            inbox=AsyncMemoryInbox(), address="inbox", managers=[first, second]
        )
        messages = [CancelRequests([number]) for number in range(6)]
        for turn in (messages[:4], messages[4:5]):
            for message in turn:
                channels.post(message.request_ids[0] % 2, message)
            before = len(first.sent)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert len(first.sent) > before
        channels.post(1, messages[5])
        channels.close()
        await asyncio.sleep(0)
        assert first.sent == messages[::2]
        assert second.sent == messages[1::2]

    asyncio.run(check())


def test_neighbouring_requests_are_one_message() -> None:
    outbox = Recorder()

    def request(number: int) -> GenerateRequest:
        return GenerateRequest(
            request_id=number,
            prompt_ids=np.ones(1, np.int32),
            sampling=TokenSampling(),
            max_tokens=1,
        )

    async def check() -> None:
        channels = EngineChannels(inbox=AsyncMemoryInbox(), address="inbox", managers=[outbox])
        for message in (request(0), request(1), CancelRequests([0]), request(2)):
            channels.post(0, message)
        channels.close()

    asyncio.run(check())
    several, cancel, last = outbox.sent
    assert isinstance(several, GenerateRequests)
    assert [one.request_id for one in several.requests] == [0, 1]
    assert cancel == CancelRequests([0])
    assert isinstance(last, GenerateRequests)
    assert [one.request_id for one in last.requests] == [2]
