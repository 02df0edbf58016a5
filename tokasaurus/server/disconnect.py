"""Notices that a client has gone away while its request is read or its response is made."""

import asyncio
from collections.abc import Callable
from types import TracebackType

from starlette.types import Receive

from tokasaurus.errors import TokasaurusError

CLIENT_CLOSED_REQUEST = 499
"""What logs and metrics show for a request whose client left; nobody receives it."""


class ClientGoneError(TokasaurusError):
    """The client went away; nobody is there to be told."""


class DisconnectWatch:
    """Calls `on_disconnect` if the client goes away inside the block; the body has been read.

    Nobody waits for it, and it most often ends without having been told anything, so it is no task:
    whatever `receive` waits for goes on with it.
    """

    def __init__(self, receive: Receive, on_disconnect: Callable[[], None]) -> None:
        self._receive = receive
        self._on_disconnect = on_disconnect
        self._steps = self._watch().__await__()
        self._awaited: asyncio.Future[None] | None = None
        """None while nothing keeps the steps from going on."""
        self._is_over = False

    def __enter__(self) -> None:
        self._go_on()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._awaited is not None:
            self._awaited.remove_done_callback(self._go_on)
        self._is_over = True
        self._steps.close()

    def _go_on(self, done: object = None) -> None:  # noqa: ARG002 - a future's callback
        if self._is_over:  # the callback was on its way already
            return
        self._awaited = None
        try:
            self._awaited = next(self._steps)
        except StopIteration:
            return
        if self._awaited is None:
            asyncio.get_running_loop().call_soon(self._go_on)
        else:
            self._awaited.add_done_callback(self._go_on)

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._on_disconnect()
