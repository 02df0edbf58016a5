"""ASGI's `send` for callers that are no task: a task takes over only if the connection is full.

A write waits when the connection's buffers are full. The tokens that come meanwhile are kept, so a
reader that never goes on has to be given up at some time.
"""

import asyncio
import types
from collections.abc import Callable, Generator
from typing import Any

from starlette.types import Message, Send

_Steps = Generator[Any, None, None]


class Sender:
    """Calls `on_stall` once if one of its writes takes longer than `stall_seconds`."""

    def __init__(self, send: Send, stall_seconds: float, on_stall: Callable[[], None]) -> None:
        self._send = send
        self._stall_seconds = stall_seconds
        self._on_stall = on_stall
        self._unfinished: tuple[_Steps, Any] | None = None
        """A write that waits, and what for."""

    @property
    def is_blocked(self) -> bool:
        """A write has begun that only `finish` brings to its end; nothing may be sent before."""
        return self._unfinished is not None

    def begin(self, message: Message) -> None:
        """Send as far as is possible without waiting: most often that is all."""
        assert self._unfinished is None, "the write before has not ended"
        steps = self._send(message).__await__()
        try:
            awaited = next(steps)
        except StopIteration:
            return
        self._unfinished = steps, awaited

    async def finish(self) -> None:
        """Go on with a write that `is_blocked`, within the task that awaits this."""
        assert self._unfinished is not None, "no write waits"
        steps, awaited = self._unfinished
        timer = asyncio.get_running_loop().call_later(self._stall_seconds, self._on_stall)
        try:
            await _resumed(steps, awaited)
        finally:
            timer.cancel()
            self._unfinished = None

    async def send(self, message: Message) -> None:
        self.begin(message)
        if self.is_blocked:
            await self.finish()

    def close(self) -> None:
        """Forget a write that waits."""
        if self._unfinished is not None:
            steps, _ = self._unfinished
            self._unfinished = None
            steps.close()


@types.coroutine
def _resumed(steps: _Steps, awaited: Any) -> Generator[Any, None, None]:
    """The rest of a coroutine whose first step was made by hand and waits for `awaited`."""
    while True:
        error: BaseException | None = None
        try:
            yield awaited
        except BaseException as caught:  # noqa: BLE001 - it is for the coroutine to see
            error = caught
        try:
            awaited = next(steps) if error is None else steps.throw(error)
        except StopIteration:
            return
