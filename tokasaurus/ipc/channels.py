"""Inboxes and outboxes: every process owns one inbox and holds outboxes to its peers' inboxes.

Messages of one outbox arrive in order, exactly once, as long as both processes live. Sending never
blocks: what bounds memory is the server's limit on accepted requests.
"""

import asyncio
import select
from collections import deque
from types import UnionType
from typing import Generic, Protocol, TypeVar

import msgspec
import zmq

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

    def may_have_more(self) -> bool:
        """False if nothing has come since the last `drain`. Cheaper than finding nothing."""

    @property
    def descriptor(self) -> int | None:
        """What `may_have_more` looks at, for those who look elsewhere: it can be read when
        something has come since the last `drain`. None if there is no such thing."""

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
        self.send_frame(self._encoder.encode(message))

    def send_frame(self, frame: bytes) -> None:
        """A message that has been encoded. It is copied: to share memory zmq would start a thread
        and a context of its own in the middle of serving."""
        self._socket.send(frame)

    def close(self) -> None:
        self._socket.close()


class ZmqBroadcast:
    """Sends every message to several peers, encoded once."""

    def __init__(self, addresses: list[str]) -> None:
        self._outboxes = [ZmqOutbox(address) for address in addresses]
        self._encoder = Encoder()

    def send(self, message: msgspec.Struct) -> None:
        frame = self._encoder.encode(message)
        for outbox in self._outboxes:
            outbox.send_frame(frame)

    def close(self) -> None:
        for outbox in self._outboxes:
            outbox.close()


class ZmqInbox(Generic[M]):
    """PULL socket bound to `address`, for messages of one union."""

    def __init__(self, address: str, message_type: type[M] | UnionType) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PULL)
        self._socket.set_hwm(0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(address)
        self._timeout_ms = -1
        self._decoder: Decoder[M] = Decoder(message_type)
        self._poll = select.poll()
        self._fd: int = self._socket.getsockopt(zmq.FD)
        self._poll.register(self._fd, select.POLLIN)

    def receive(self, timeout_seconds: float | None) -> M | None:
        timeout_ms = -1 if timeout_seconds is None else max(0, int(timeout_seconds * 1000))
        if timeout_ms != self._timeout_ms:  # one call per message instead of polling first
            self._socket.setsockopt(zmq.RCVTIMEO, timeout_ms)
            self._timeout_ms = timeout_ms
        try:
            return self._decoder.decode(self._socket.recv())
        except zmq.Again:
            return None

    def drain(self) -> list[M]:
        messages: list[M] = []
        while True:
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return messages
            messages.append(self._decoder.decode(frame))

    def may_have_more(self) -> bool:
        # The descriptor tells of changes only, and `drain` has seen all there were.
        return bool(self._poll.poll(0))

    @property
    def descriptor(self) -> int | None:
        return self._fd

    def close(self) -> None:
        self._socket.close()


class AsyncZmqInbox(Generic[M]):
    """`ZmqInbox` for an asyncio event loop, for one receiver; create it inside the running loop."""

    def __init__(self, address: str, message_type: type[M] | UnionType) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PULL)
        self._socket.set_hwm(0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(address)
        self._decoder: Decoder[M] = Decoder(message_type)
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._fd: int = self._socket.getsockopt(zmq.FD)
        self._loop.add_reader(self._fd, self._wake)

    async def receive(self) -> M:
        while (message := self._receive_now()) is None:
            # The descriptor tells of changes only, so nothing may be left unread before a wait.
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return message

    def drain(self) -> list[M]:
        """All messages that are there now, without waiting."""
        messages: list[M] = []
        while (message := self._receive_now()) is not None:
            messages.append(message)
        return messages

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        self._socket.close()

    def _receive_now(self) -> M | None:
        try:
            frame = self._socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None
        return self._decoder.decode(frame)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


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
        frame = self._encoder.encode(message)
        self.num_bytes += len(frame)
        self._messages.append(self._decoder.decode(frame))

    def receive(self, timeout_seconds: float | None) -> M | None:  # noqa: ARG002
        return self._messages.popleft() if self._messages else None

    def drain(self) -> list[M]:
        messages = list(self._messages)
        self._messages.clear()
        return messages

    def may_have_more(self) -> bool:
        return bool(self._messages)

    @property
    def descriptor(self) -> int | None:
        return None

    def close(self) -> None:
        self._messages.clear()
