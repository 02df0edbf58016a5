"""What is posted to managers in one turn of the event loop leaves together."""

import asyncio

import msgspec

from tests.unit.server.manager_double import AsyncMemoryInbox
from tokasaurus.ipc.messages.to_manager import CancelRequests
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
