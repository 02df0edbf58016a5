"""Server-sent events: what came together for one stream leaves in one write."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import msgspec
from fastapi import Response
from starlette.types import Receive, Scope, Send

from tokasaurus.errors import SlowReaderError, TokasaurusError
from tokasaurus.server.disconnect import watch_disconnect
from tokasaurus.server.errors import describe
from tokasaurus.server.generation import Generation
from tokasaurus.server.request_group import RequestGroup
from tokasaurus.server.stall_guard import StallGuard

_DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode

Chunks = list[msgspec.Struct]


def _event(chunk: msgspec.Struct) -> bytes:
    return b"data: " + _encode(chunk) + b"\n\n"


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

    `first_chunks` leave at once. `write` turns a generation with news into chunks; `last_chunks`
    follow when all have finished.
    """

    def __init__(
        self,
        group: RequestGroup,
        write: Callable[[Generation], Chunks],
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

        with self._group, StallGuard(send, stall_seconds, give_up) as send_guarded:
            async with watch_disconnect(receive, self._group.cancel):
                await send_guarded(
                    {
                        "type": "http.response.start",
                        "status": self.status_code,
                        "headers": self.raw_headers,
                    }
                )
                async for body in self._bodies():
                    await send_guarded(
                        {"type": "http.response.body", "body": body, "more_body": True}
                    )
                await send_guarded({"type": "http.response.body", "body": b""})

    async def _bodies(self) -> AsyncIterator[bytes]:
        group, event = self._group, self._framing.event
        if self._first_chunks:
            yield b"".join(map(event, self._first_chunks))
        while ready := await group.wait():
            events: list[bytes] = []
            try:
                for generation in ready:
                    if generation.finish_reason == "cancelled":
                        return
                    if generation.error is not None:
                        raise generation.error
                    events += map(event, self._write(generation))
                if group.has_finished:
                    events += map(event, self._last_chunks())
                    events.append(self._framing.end)
            except TokasaurusError as error:
                yield b"".join([*events, self._framing.error(error), self._framing.end])
                return
            if events:
                yield b"".join(events)
