"""An asyncio event loop in a thread, for callers that are not asynchronous."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from tokasaurus.errors import EngineFailedError

T = TypeVar("T")

_DRAIN_SECONDS = 2.0


class EventLoopThread:
    """Runs coroutines for other threads until closed. Starts at construction."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._is_closed = False
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Wait for its result. An interrupt of the waiting thread cancels it.

        Raises EngineFailedError when the loop has been closed.
        """
        with self._lock:
            if self._is_closed:
                coroutine.close()
                raise EngineFailedError("This engine has been closed; make a new one.")
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def call_soon(self, function: Callable[..., object], *args: Any) -> None:
        """Call it on the loop, without waiting; ignored when the loop is closed."""
        with self._lock:
            if not self._is_closed:
                self._loop.call_soon_threadsafe(function, *args)

    def close(self) -> None:
        """Let what runs come to its end, but not for long; then stop. Safe to call twice."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            drained = asyncio.run_coroutine_threadsafe(self._drain(), self._loop)
        drained.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _drain(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=_DRAIN_SECONDS)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
