"""Clients and an instant engine for measuring servers: no model, and little work of their own.

Both live in one event loop, so that the engine's next step can wait until every client has all of
the step before, as it is with an engine whose steps take longer than the server.
"""

import asyncio
import json
from collections.abc import Sequence
from typing import cast

import numpy as np

from tokasaurus.ipc.addresses import Addresses
from tokasaurus.ipc.channels import AsyncZmqInbox, ZmqOutbox
from tokasaurus.ipc.messages.to_manager import (
    CancelRequests,
    GenerateRequest,
    GenerateRequests,
    ServerHello,
    ToManager,
)
from tokasaurus.ipc.messages.to_server import EngineOutputs, ManagerReady, RequestFinished

_HEADER_END = b"\r\n\r\n"
_EVENT_END = b"\n\n"
_STREAM_END = b"0\r\n\r\n"


class InstantEngine:
    """The manager's side of all messages. Requests for one token are answered at once; others when
    `step` is called."""

    def __init__(self, addresses: Addresses, token_ids: Sequence[int], vocab_size: int) -> None:
        """`token_ids` are what every request gets, again and again."""
        self._inbox: AsyncZmqInbox[ToManager] = AsyncZmqInbox(addresses.manager(0), ToManager)
        self._script = np.asarray(token_ids, np.int32)
        self._vocab_size = vocab_size
        self._outboxes: dict[int, ZmqOutbox] = {}
        self._running: dict[int, list[int]] = {}
        """Request ids by server."""
        self._position = 0
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._receive())

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        self._inbox.close()
        for outbox in self._outboxes.values():
            outbox.close()

    async def wait_for(self, num_running: int) -> None:
        """Until so many requests wait for steps."""
        while sum(map(len, self._running.values())) < num_running:
            self._changed.clear()
            await self._changed.wait()
        self._position = 0

    def step(self, num_tokens: int) -> None:
        """So many new tokens for every request, in one message per server."""
        places = np.arange(self._position, self._position + num_tokens) % len(self._script)
        self._position += num_tokens
        for server, request_ids in self._running.items():
            self._send(server, request_ids, self._script[places], [])

    def finish(self) -> None:
        """The end of everything that runs."""
        for server, request_ids in self._running.items():
            finished = [RequestFinished(request_id=i, reason="length") for i in request_ids]
            self._send(server, [], self._script[:0], finished)
        self._running.clear()

    async def _receive(self) -> None:
        while True:
            one_token: dict[int, list[int]] = {}
            for message in [await self._inbox.receive(), *self._inbox.drain()]:
                match message:
                    case ServerHello(server_index=index, address=address):
                        self._greet(index, address)
                    case GenerateRequest():
                        self._take(message, one_token)
                    case GenerateRequests(requests=requests):
                        for request in requests:
                            self._take(request, one_token)
                    case CancelRequests():
                        raise RuntimeError("a server gave a request up")
            for server, request_ids in one_token.items():
                finished = [RequestFinished(request_id=i, reason="length") for i in request_ids]
                self._send(server, request_ids, self._script[:1], finished)
            self._changed.set()

    def _take(self, request: GenerateRequest, one_token: dict[int, list[int]]) -> None:
        """Note it among those for one token, or those that wait for steps."""
        by_server = one_token if request.max_tokens == 1 else self._running
        by_server.setdefault(request.request_id >> 48, []).append(request.request_id)

    def _greet(self, server_index: int, address: str) -> None:
        outbox = self._outboxes[server_index] = ZmqOutbox(address)
        outbox.send(
            ManagerReady(
                dp_rank=0,
                max_model_len=2**20,
                vocab_size=self._vocab_size,
                num_kv_tokens=2**24,
                description="instant",
            )
        )

    def _send(
        self,
        server: int,
        request_ids: list[int],
        token_ids: np.ndarray,
        finished: list[RequestFinished],
    ) -> None:
        self._outboxes[server].send(
            EngineOutputs(
                dp_rank=0,
                request_ids=np.asarray(request_ids, np.int64),
                num_tokens=np.full(len(request_ids), len(token_ids), np.int32),
                token_ids=np.tile(token_ids, len(request_ids)),
                finished=finished,
            )
        )


class Clients:
    """Many connections to one server, each with one request at a time."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self.num_behind = 0
        """Connections that have not got what they wait for."""
        self.caught_up = asyncio.Event()

    async def connect(self, host: str, port: int, count: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(count):
            _, connection = await loop.create_connection(lambda: Connection(self), host, port)
            self.connections.append(connection)

    def close(self) -> None:
        for connection in self.connections:
            connection.close()
        self.connections.clear()

    def send_all(self, request: bytes) -> None:
        for connection in self.connections:
            connection.send(request)

    async def expect_events(self, count: int, timeout_seconds: float = 60) -> None:
        """Until every connection has had so many events of its stream."""
        await self._expect("wanted_events", count, timeout_seconds)

    async def expect_responses(self, count: int, timeout_seconds: float = 60) -> None:
        """Until every connection has had so many whole responses."""
        await self._expect("wanted_responses", count, timeout_seconds)

    async def _expect(self, name: str, count: int, timeout_seconds: float) -> None:
        self.num_behind = 0
        for connection in self.connections:
            setattr(connection, name, count)
            self.num_behind += connection.is_behind
        self.caught_up.clear()
        if self.num_behind:
            await asyncio.wait_for(self.caught_up.wait(), timeout_seconds)


class Connection(asyncio.Protocol):
    """Counts events and responses, and keeps the bytes of the last response."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._transport: asyncio.Transport | None = None
        self._request = b""
        self._num_repeats = 0
        self._last = b""
        self._head = b""
        self._missing = -1
        self.received: list[bytes] = []
        self.num_events = self.wanted_events = 0
        self.num_responses = self.wanted_responses = 0
        self.num_reads = 0

    @property
    def is_behind(self) -> bool:
        return self.num_events < self.wanted_events or self.num_responses < self.wanted_responses

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def close(self) -> None:
        assert self._transport is not None
        self._transport.close()

    def send(self, request: bytes, *, times: int = 1) -> None:
        """Ask; `times`: again and again, each when its predecessor has been answered."""
        assert self._transport is not None
        self._request, self._num_repeats = request, times - 1
        self.received, self._last, self._head, self._missing = [], b"", b"", -1
        self.num_events = self.wanted_events = self.num_reads = 0
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.received.append(data)
        self.num_reads += 1
        was_behind = self.is_behind
        if self._missing < 0:
            self._read_head(data)
        elif self._missing > 0:
            self._missing -= len(data)
        else:
            self._read_events(data)
        if self._missing == 0 and self._last.endswith(_STREAM_END):
            self._finish()
        if was_behind and not self.is_behind:
            self._clients.num_behind -= 1
            if not self._clients.num_behind:
                self._clients.caught_up.set()

    def _read_head(self, data: bytes) -> None:
        self._head += data
        head, found, body = self._head.partition(_HEADER_END)
        if not found:
            return
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"a request was not answered: {self._head.decode()}")
        _, is_whole, rest = head.lower().partition(b"\r\ncontent-length: ")
        if not is_whole:
            self._missing = 0
            self._read_events(body)
        else:
            self._missing = int(rest.split(b"\r\n")[0]) - len(body)
            self._last = _STREAM_END

    def _read_events(self, data: bytes) -> None:
        tail = self._last[-1:]
        self.num_events += (tail + data).count(_EVENT_END)
        self._last = (self._last + data)[-len(_STREAM_END) :]

    def _finish(self) -> None:
        self.num_responses += 1
        if self._num_repeats:
            self.send(self._request, times=self._num_repeats)


def post(path: str, body: dict[str, object]) -> bytes:
    """A whole HTTP request."""
    data = json.dumps(body).encode()
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    ).encode() + data


def chunks_of(received: list[bytes]) -> list[bytes]:
    """The pieces in which a streamed response's body was written."""
    _, _, rest = b"".join(received).partition(_HEADER_END)
    chunks: list[bytes] = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        if length:
            chunks.append(rest[:length])
        rest = rest[length + 2 :]
    return chunks


def body_of(received: list[bytes]) -> bytes:
    return b"".join(received).partition(_HEADER_END)[2]
