"""Notices that the reader of a stream takes nothing: one timer per stream, nothing per write.

A write waits when the connection's buffers are full. The tokens that come meanwhile are kept, so a
reader that never goes on has to be given up at some time.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType

from starlette.types import Message, Send


class StallGuard:
    """A `send` that calls `on_stall` once if one of its writes takes longer than `seconds`."""

    def __init__(self, send: Send, seconds: float, on_stall: Callable[[], None]) -> None:
        self._send = send
        self._seconds = seconds
        self._on_stall = on_stall
        self._loop = asyncio.get_running_loop()
        self._write_began_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> "StallGuard":
        self._timer = self._loop.call_later(self._seconds, self._check)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._timer is not None
        self._timer.cancel()

    async def __call__(self, message: Message) -> None:
        self._write_began_at = self._loop.time()
        await self._send(message)
        self._write_began_at = None

    def _check(self) -> None:
        now = self._loop.time()
        began = now if self._write_began_at is None else self._write_began_at
        if now - began >= self._seconds:
            self._on_stall()
        else:
            self._timer = self._loop.call_at(began + self._seconds, self._check)
