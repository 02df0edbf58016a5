"""The sockets between one front end and all managers."""

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from tokasaurus.ipc.addresses import Addresses
from tokasaurus.ipc.channels import AsyncZmqInbox, Outbox, ZmqOutbox
from tokasaurus.ipc.messages.to_manager import GenerateRequest, GenerateRequests
from tokasaurus.ipc.messages.to_server import ToServer


class AsyncInbox(Protocol):
    """Where a front end finds what managers sent."""

    async def receive(self) -> ToServer: ...

    def close(self) -> None: ...


@dataclass(slots=True, kw_only=True)
class EngineChannels:
    """Open them inside the event loop that uses them.

    What is posted in one turn of the loop leaves together at its end, requests that follow one
    another as one message: a message costs several system calls and wakes the thread that writes.
    """

    inbox: AsyncInbox
    address: str
    """Of the inbox."""
    managers: list[Outbox]
    """By dp_rank."""
    _posted: dict[int, list[msgspec.Struct]] = field(default_factory=dict)
    """By dp_rank."""

    @classmethod
    def open(cls, addresses: Addresses, server_index: int, num_managers: int) -> "EngineChannels":
        address = addresses.server(server_index)
        return cls(
            inbox=AsyncZmqInbox(address, ToServer),
            address=address,
            managers=[ZmqOutbox(addresses.manager(rank)) for rank in range(num_managers)],
        )

    def post(self, dp_rank: int, message: msgspec.Struct) -> None:
        """Messages for one manager arrive in the order in which they were posted."""
        if not self._posted:
            asyncio.get_running_loop().call_soon(self._send_posted)
        self._posted.setdefault(dp_rank, []).append(message)

    def close(self) -> None:
        """After what was posted has been sent."""
        self._send_posted()
        self.inbox.close()
        for outbox in self.managers:
            outbox.close()

    def _send_posted(self) -> None:
        posted, self._posted = self._posted, {}
        for dp_rank, messages in posted.items():
            outbox = self.managers[dp_rank]
            for message in _joined(messages):
                outbox.send(message)


def _joined(messages: list[msgspec.Struct]) -> list[msgspec.Struct]:
    """The same, neighbouring requests in one message."""
    joined: list[msgspec.Struct] = []
    requests: list[GenerateRequest] = []
    for message in messages:
        if not isinstance(message, GenerateRequest):
            joined.append(message)
            requests = []
        elif requests:
            requests.append(message)
        else:
            requests = [message]
            joined.append(GenerateRequests(requests))
    return joined
