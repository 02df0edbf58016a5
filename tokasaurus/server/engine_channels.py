"""The sockets between one front end and all managers."""

from dataclasses import dataclass
from typing import Protocol

from tokasaurus.ipc.addresses import Addresses
from tokasaurus.ipc.channels import AsyncZmqInbox, Outbox, ZmqOutbox
from tokasaurus.ipc.messages.to_server import ToServer


class AsyncInbox(Protocol):
    """Where a front end finds what managers sent."""

    async def receive(self) -> ToServer: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChannels:
    """Open them inside the event loop that uses them."""

    inbox: AsyncInbox
    address: str
    """Of the inbox."""
    managers: list[Outbox]
    """By dp_rank."""

    @classmethod
    def open(cls, addresses: Addresses, server_index: int, num_managers: int) -> "EngineChannels":
        address = addresses.server(server_index)
        return cls(
            inbox=AsyncZmqInbox(address, ToServer),
            address=address,
            managers=[ZmqOutbox(addresses.manager(rank)) for rank in range(num_managers)],
        )

    def close(self) -> None:
        self.inbox.close()
        for outbox in self.managers:
            outbox.close()
