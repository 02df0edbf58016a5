"""Server-sent events: what came together for one stream leaves in one write."""

from collections.abc import AsyncIterator, Callable

import msgspec
from fastapi import Response
from starlette.types import Receive, Scope, Send

from tokasaurus.errors import TokasaurusError
from tokasaurus.server.disconnect import watch_disconnect
from tokasaurus.server.errors import describe
from tokasaurus.server.generation import Generation
from tokasaurus.server.request_group import RequestGroup

_DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode

Chunks = list[msgspec.Struct]


def _event(chunk: msgspec.Struct) -> bytes:
    return b"data: " + _encode(chunk) + b"\n\n"


class EventStream(Response):
    """Streams a group's news as chunks; cancels the group when the client goes away.

    `write` turns a generation with news into chunks; `last_chunks` follow when all have finished.
    """

    def __init__(
        self,
        group: RequestGroup,
        write: Callable[[Generation], Chunks],
        last_chunks: Callable[[], Chunks],
    ) -> None:
        self._group = group
        self._write = write
        self._last_chunks = last_chunks
        self.status_code = 200
        self.background = None
        self.init_headers(
            {
                "content-type": "text/event-stream; charset=utf-8",
                "cache-control": "no-cache",
                "x-accel-buffering": "no",  # proxies must pass events on at once
            }
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        with self._group:
            async with watch_disconnect(receive, self._group.cancel):
                await send(
                    {
                        "type": "http.response.start",
                        "status": self.status_code,
                        "headers": self.raw_headers,
                    }
                )
                async for body in self._bodies():
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                await send({"type": "http.response.body", "body": b""})

    async def _bodies(self) -> AsyncIterator[bytes]:
        group = self._group
        while ready := await group.wait():
            events: list[bytes] = []
            try:
                for generation in ready:
                    if generation.finish_reason == "cancelled":
                        return
                    if generation.error is not None:
                        raise generation.error
                    events += map(_event, self._write(generation))
                if group.has_finished:
                    events += map(_event, self._last_chunks())
                    events.append(_DONE)
            except TokasaurusError as error:
                yield b"".join([*events, _event(describe(error)), _DONE])
                return
            if events:
                yield b"".join(events)
