"""Inboxes and outboxes: every process owns one inbox and holds outboxes to its peers' inboxes.

Messages of one outbox arrive in order, exactly once, as long as both processes live. Sending never
blocks: what bounds memory is the server's limit on accepted requests.
"""

from collections import deque
from types import UnionType
from typing import Generic, Protocol, TypeVar

import msgspec
import zmq
import zmq.asyncio

from tokasaurus.ipc.codec import Decoder, Encoder

M = TypeVar("M")


class Outbox(Protocol):
    """Where messages for one peer go."""

    def send(self, message: msgspec.Struct) -> None: ...

    def close(self) -> None: ...


class Inbox(Protocol[M]):
    """Where a process finds what its peers sent."""

    def receive(self, timeout_seconds: float | None) -> M | None:
        """Wait for one message; None after the timeout. A timeout of None waits forever."""

    def drain(self) -> list[M]:
        """All messages that are there now, without waiting."""

    def close(self) -> None: ...


class ZmqOutbox:
    """PUSH socket to `address`; the peer may bind later."""

    def __init__(self, address: str) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
        self._socket.set_hwm(0)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.connect(address)
        self._encoder = Encoder()

    def send(self, message: msgspec.Struct) -> None:
        self._socket.send_multipart(self._encoder.encode(message), copy=False)

    def close(self) -> None:
        self._socket.close()


class ZmqInbox(Generic[M]):
    """PULL socket bound to `address`, for messages of one union."""

    def __init__(self, address: str, message_type: type[M] | UnionType) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PULL)
        self._socket.set_hwm(0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(address)
        self._decoder: Decoder[M] = Decoder(message_type)

    def receive(self, timeout_seconds: float | None) -> M | None:
        timeout_ms = None if timeout_seconds is None else max(0, int(timeout_seconds * 1000))
        if not self._socket.poll(timeout_ms):
            return None
        return self._decoder.decode(self._socket.recv_multipart())

    def drain(self) -> list[M]:
        messages: list[M] = []
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return messages
            messages.append(self._decoder.decode(frames))

    def close(self) -> None:
        self._socket.close()


class AsyncZmqInbox(Generic[M]):
    """`ZmqInbox` for an asyncio event loop; create it inside the running loop."""

    def __init__(self, address: str, message_type: type[M] | UnionType) -> None:
        self._socket = zmq.asyncio.Context.instance().socket(zmq.PULL)
        self._socket.set_hwm(0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(address)
        self._decoder: Decoder[M] = Decoder(message_type)

    async def receive(self) -> M:
        return self._decoder.decode(await self._socket.recv_multipart())

    def close(self) -> None:
        self._socket.close()


class MemoryChannel(Generic[M]):
    """Inbox and outbox in one, within one thread: messages pass through the codec unless `raw`."""

    def __init__(self, message_type: type[M] | UnionType, *, raw: bool = False) -> None:
        self._messages: deque[M] = deque()
        self._encoder = Encoder()
        self._decoder: Decoder[M] = Decoder(message_type)
        self._raw = raw
        self.num_bytes = 0
        """Bytes of all messages sent so far (0 when raw)."""

    def send(self, message: msgspec.Struct) -> None:
        if self._raw:
            self._messages.append(message)  # type: ignore[arg-type]
            return
        frames = self._encoder.encode(message)
        self.num_bytes += sum(map(len, frames))
        self._messages.append(self._decoder.decode(frames))

    def receive(self, timeout_seconds: float | None) -> M | None:  # noqa: ARG002
        return self._messages.popleft() if self._messages else None

    def drain(self) -> list[M]:
        messages = list(self._messages)
        self._messages.clear()
        return messages

    def close(self) -> None:
        self._messages.clear()
