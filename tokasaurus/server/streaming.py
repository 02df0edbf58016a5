"""Server-sent events: what came together for one stream leaves in one write."""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from fastapi import Response
from starlette.types import Message, Receive, Scope, Send

from tokasaurus.errors import SlowReaderError, TokasaurusError
from tokasaurus.server.disconnect import DisconnectWatch
from tokasaurus.server.errors import describe
from tokasaurus.server.generation import Generation
from tokasaurus.server.request_group import RequestGroup, Write
from tokasaurus.server.sender import Sender

_DONE = b"data: [DONE]\n\n"
_PLACE = secrets.token_hex(16)
_encode = msgspec.json.Encoder().encode

Chunks = list[msgspec.Struct]
News = Chunks | list[bytes]
"""What to write; bytes are whole events already."""


def _event(chunk: msgspec.Struct) -> bytes:
    return b"data: " + _encode(chunk) + b"\n\n"


class TextEvents:
    """Events of a stream that differ in one text only: all else is encoded once."""

    __slots__ = ("_after", "_before")

    def __init__(self, chunk_with: Callable[[str], msgspec.Struct]) -> None:
        """`chunk_with` makes the chunk that has the text."""
        event = _event(chunk_with(_PLACE))
        self._before, self._after = event.split(_encode(_PLACE))

    def event(self, text: str) -> bytes:
        return self._before + _encode(text) + self._after


def named_event(chunk: msgspec.Struct) -> bytes:
    """An event that bears the chunk's tag as its name."""
    tag = chunk.__struct_config__.tag
    assert isinstance(tag, str), f"{type(chunk).__name__} has no tag"
    return b"event: " + tag.encode() + b"\ndata: " + _encode(chunk) + b"\n\n"


@dataclass(frozen=True, slots=True)
class Framing:
    """How one API writes its events."""

    event: Callable[[msgspec.Struct], bytes]
    error: Callable[[TokasaurusError], bytes]
    """What a stream says that can't go on."""
    end: bytes


_OPENAI = Framing(_event, lambda error: _event(describe(error)), _DONE)


class EventStream(Response):
    """Streams a group's news as chunks; cancels the group when the client goes away.

    The news of a message are written while it is handled: no task wakes up per token.

    `first_chunks` leave at once. `write` turns a generation with news into chunks; `last_chunks`
    follow when all have finished.
    """

    def __init__(
        self,
        group: RequestGroup,
        write: Callable[[Generation], News],
        last_chunks: Callable[[], Chunks],
        *,
        first_chunks: Chunks | None = None,
        framing: Framing = _OPENAI,
    ) -> None:
        self._group = group
        self._write = write
        self._last_chunks = last_chunks
        self._first_chunks = first_chunks or []
        self._framing = framing
        self.status_code = 200
        self.background = None
        self.init_headers(
            {
                "content-type": "text/event-stream; charset=utf-8",
                "cache-control": "no-cache",
                "x-accel-buffering": "no",  # proxies must pass events on at once
            }
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stall_seconds: float = scope["app"].state.server.stream_stall_seconds

        def give_up() -> None:
            self._group.cancel(
                SlowReaderError(
                    f"The stream was given up: its reader took nothing for {stall_seconds:g} s."
                )
            )

        sender = Sender(send, stall_seconds, give_up)
        start = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        with self._group, DisconnectWatch(receive, self._group.cancel):
            await sender.send(start)
            if self._first_chunks:
                await sender.send(_body(b"".join(self._events(self._first_chunks))))
            await _Push(self._group, sender, self._next).run()
            await sender.send({"type": "http.response.body", "body": b""})

    def _events(self, chunks: News) -> list[bytes]:
        event = self._framing.event
        return [chunk if isinstance(chunk, bytes) else event(chunk) for chunk in chunks]

    def _next(self) -> tuple[bytes, bool]:
        """What is to be written now, and whether that was the last."""
        group, write, event = self._group, self._write, self._framing.event
        events: list[bytes] = []
        try:
            for generation in group.take_ready():
                if generation.finish_reason == "cancelled":
                    return b"", True
                if generation.error is not None:
                    raise generation.error
                for chunk in write(generation):
                    events.append(chunk if isinstance(chunk, bytes) else event(chunk))
            if group.has_finished:
                events += self._events(self._last_chunks())
                events.append(self._framing.end)
        except TokasaurusError as error:
            return b"".join([*events, self._framing.error(error), self._framing.end]), True
        return b"".join(events), group.has_finished


class _Push:
    """Writes news within the call that brings them; the stream's own task waits until the end, and
    wakes up before only to wait for a slow reader."""

    def __init__(
        self, group: RequestGroup, sender: Sender, next_body: Callable[[], tuple[bytes, bool]]
    ) -> None:
        self._group = group
        self._sender = sender
        self._next_body = next_body
        self._body = b""
        self._has_ended = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def run(self) -> None:
        self._group.listen(self._on_news)
        try:
            self._write_news()
            while self._sender.is_blocked or not self._has_ended:
                if self._sender.is_blocked:
                    await self._sender.finish()
                    self._write_news()
                else:
                    self._waiter = asyncio.get_running_loop().create_future()
                    await self._waiter
        finally:
            self._group.listen(None)
            self._sender.close()
        if self._error is not None:
            raise self._error

    def _write_news(self) -> None:
        if (write := self._on_news()) is not None:
            write()

    def _on_news(self) -> Write | None:
        if self._has_ended or self._sender.is_blocked:
            return None
        try:
            self._body, self._has_ended = self._next_body()
        except Exception as error:  # noqa: BLE001 - the stream's own task raises it
            self._fail(error)
            return None
        return self._write

    def _write(self) -> None:
        try:
            if self._body:
                self._sender.begin(_body(self._body))
        except Exception as error:  # noqa: BLE001 - the stream's own task raises it
            self._fail(error)
        if self._has_ended or self._sender.is_blocked:
            self._wake()

    def _fail(self, error: Exception) -> None:
        self._error, self._has_ended = error, True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _body(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}
