"""A number of places that tasks take and give back, first come, first served."""

import asyncio
from collections import deque


class Capacity:
    """Who asks for many places is not overtaken by those who ask for few."""

    def __init__(self, num_places: int) -> None:
        self.num_places = num_places
        self._num_free = num_places
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def acquire(self, num_places: int) -> int:
        """Waits for them; returns how many to release: never more than there are in all."""
        wanted = min(num_places, self.num_places)
        if not self._waiting and wanted <= self._num_free:
            self._num_free -= wanted
            return wanted
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = wanted, granted
        self._waiting.append(entry)
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.release(wanted)
            else:
                self._waiting.remove(entry)
                self._grant()
            raise
        return wanted

    def release(self, num_places: int) -> None:
        self._num_free += num_places
        assert self._num_free <= self.num_places, "released more than was acquired"
        self._grant()

    def _grant(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._num_free:
            wanted, granted = self._waiting.popleft()
            if not granted.done():
                self._num_free -= wanted
                granted.set_result(None)
